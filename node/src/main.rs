//! The command line of rumormill.

use std::process::ExitCode;

#[cfg(feature = "language")]
#[global_allocator]
static ALLOCATOR: rumormill::language::memory::Allocator = rumormill::language::memory::Allocator;

fn main() -> ExitCode {
    #[cfg(feature = "language")]
    rumormill::language::memory::huge_pages(false);
    rumormill_node::cli::main()
}
