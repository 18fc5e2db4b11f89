//! The crate from outside: files that survive a round trip and hostile ones, and the numbers
//! agreed on with other implementations.

mod files;
mod hostile;
mod vectors;
