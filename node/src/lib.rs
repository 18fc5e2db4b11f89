//! The rumormill daemon: sockets, disk and command line around the pure protocol.
//!
//! A node is one [`daemon::Daemon`]: a loop around a `Protocol` value, with [`net`] for sockets,
//! [`evaluator`] for compute and [`store`] for disk. The commands start one ([`node`]) or many
//! ([`local`]), ask a running one ([`control`]), or make some of them misbehave ([`fault`]). [`vector`] runs the rivals that exchange vectors over the same sockets.

pub mod catchup;
pub mod checkpoint;
pub mod cli;
pub mod control;
pub mod daemon;
pub mod evaluator;
pub mod fault;
pub mod hub;
pub mod identity;
pub mod init;
pub mod language;
pub mod local;
pub mod metrics;
pub mod model;
pub mod net;
pub mod node;
mod processes;
pub mod report;
pub mod resume;
pub mod run;
mod siege;
pub mod store;
pub mod topology;
pub mod vector;
