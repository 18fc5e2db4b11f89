//! The command line of rumormill.

fn main() {}
