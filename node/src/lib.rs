//! The rumormill daemon: sockets, disk and command line around the pure protocol.

pub mod daemon;
pub mod evaluator;
pub mod identity;
pub mod net;
pub mod store;
