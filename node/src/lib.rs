//! The rumormill daemon.

pub mod net;
