//! The algorithms of rumormill: directions, bytes, ledger, rounds, heights and selection.
//!
//! Everything here is pure: no sockets, files, clocks, threads or global randomness. Time and
//! generators are arguments, so the same seed gives the same bytes.

pub mod clock;
pub mod codec;
pub mod id;
pub mod keys;
pub mod time;

pub mod direction;
pub mod lb8;
pub mod params;

pub mod height;
pub mod ledger;
pub mod manifest;
pub mod roster;
pub mod round;
pub mod selection;
pub mod update;

pub mod message;
pub mod start;
pub mod protocol;

pub mod data;
pub mod objective;
pub mod vector;
