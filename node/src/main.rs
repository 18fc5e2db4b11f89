//! The command line of rumormill.

use std::process::ExitCode;

fn main() -> ExitCode {
    rumormill_node::cli::main()
}
