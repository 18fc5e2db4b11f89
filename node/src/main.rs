//! The command line of rumormill.

use std::process::ExitCode;

/// Large blocks begin with a line of the cache and lie in huge pages where the system has them: a language model reads
/// and writes its state once a probe.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    rumormill_node::cli::main()
}
