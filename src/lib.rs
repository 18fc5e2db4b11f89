//! The algorithms of rumormill: directions, bytes, ledger, rounds, heights and selection.
//!
//! Everything here is pure: no sockets, files, clocks, threads or global randomness. Time and
//! generators are arguments, so the same seed gives the same bytes.

pub mod id;
pub mod time;

pub mod direction;
pub mod lb8;
pub mod params;

pub mod data;
pub mod objective;
pub mod vector;
