//! The algorithms of rumormill: directions, bytes, ledger, rounds, heights and selection.
//!
//! Everything here is pure: no sockets, files, clocks, threads or global randomness. Time and
//! generators are arguments, so the same seed gives the same bytes.

#![cfg_attr(not(feature = "cuda"), forbid(unsafe_code))]

pub mod audit;
pub mod clock;
pub mod codec;
pub mod id;
pub mod keys;
pub mod time;

pub mod direction;
pub mod sample;
pub mod spsa;

pub mod lb8;
pub mod params;
pub mod tensors;

pub mod height;
pub mod ledger;
pub mod manifest;
pub mod roster;
pub mod round;
pub mod selection;
pub mod update;

pub mod message;
pub mod protocol;
pub mod start;

pub mod fault;

pub mod data;
pub mod language;
pub mod objective;
pub mod vector;

/// A file of the shared reference material, for tests; `None`, said aloud, where it is absent.
#[cfg(test)]
fn shared(path: &str) -> Option<Vec<u8>> {
    let root = std::env::var_os("RUMORMILL_SHARED")
        .map(std::path::PathBuf::from)
        .unwrap_or_else(|| std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"));
    let bytes = std::fs::read(root.join(path)).ok();
    if bytes.is_none() {
        println!("skipped: {} is not here", root.join(path).display());
    }
    bytes
}
