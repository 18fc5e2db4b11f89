//! Simulator, reproductions and benchmarks.
//!
//! [`event`] draws the Poisson clocks and drives a [`event::Network`] of vector algorithms;
//! [`problem`] holds the objectives and [`graph`] the communication graphs with their spectral
//! numbers; [`reproduce`] compares what comes out with published or measured figures;
//! [`vectors`] recomputes files of test vectors. [`simulation`] is the discrete-event network that
//! drives the very protocol value of the daemon; [`soak`] mixes its troubles by seed; [`sim`] runs
//! scenario files on it and on the vector algorithms, with real models ([`trainer`]).

pub mod attack;
pub mod attack_table;
pub mod baseline;
pub mod compare;
pub mod course;
pub mod data;
pub mod event;
pub mod graph;
#[cfg(feature = "language")]
pub mod language;
pub mod network;
pub mod problem;
pub mod reproduce;
pub mod robust;
pub mod scale;
pub mod sim;
pub mod simulation;
pub mod soak;
pub mod spread;
pub mod trainer;
pub mod vectors;
