//! The command line of rumormill-lab.

fn main() {}
