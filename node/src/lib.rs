//! The rumormill daemon.

pub mod identity;
pub mod net;
