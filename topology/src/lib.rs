//! Communication graphs: files, families, spectrum and gossip rates.
//!
//! Pure: text and numbers in, text and numbers out; no files, clocks, threads or global
//! randomness. A [`Topology`] comes out of a file ([`format::parse`]) or a family
//! ([`family::generate`]) and is always valid: undirected, simple, with rates in range. From it
//! come its shape ([`structure`]), what the shape means for gossip ([`spectrum`]), the edge rates
//! with which the fewest exchanges suffice ([`rate`]), all of that in words ([`report`]), a
//! picture ([`draw`]) and files again ([`format::write`]).
//!
//! It does not know the training protocol: rates are numbers here, clocks are elsewhere.

pub mod draw;
pub mod family;
pub mod format;
mod graph;
mod random;
pub mod rate;
pub mod report;
pub mod spectrum;
pub mod structure;

pub use graph::{
    Attributes, EDGES_MAX, Edge, NAME_LEN_MAX, NODES_MAX, Topology, TopologyBuilder, TopologyError,
    Warning,
};
