//! How a program lays out the memory of a language model.
//!
//! A step reads and writes all of the state, and its products the weights and activations; with pages of 4 KiB a
//! twentieth of its time is spent on finding them (`experiments/results/2026-11-27-lines`). The allocator begins large
//! blocks with a line of the cache and asks for huge pages. Of these a small model would only fill the corners, so
//! programs leave them out until a language model is read.

/// The allocator of programs that train language models.
pub use mimalloc::MiMalloc as Allocator;

/// Whether this process gets huge pages where its allocator asks for them, from now on. Nothing happens on systems
/// without them.
pub fn huge_pages(wanted: bool) {
    #[cfg(target_os = "linux")]
    {
        // Without the system's leave all works as before, more slowly or with some more memory.
        let _ = rustix::thread::disable_transparent_huge_pages(!wanted);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = wanted;
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn huge_pages_are_switched_off_and_on() {
        for wanted in [false, true] {
            huge_pages(wanted);
            // A system that knows none has nothing to say.
            if let Ok(disabled) = rustix::thread::transparent_huge_pages_are_disabled() {
                assert_eq!(disabled, !wanted);
            }
        }
    }
}
