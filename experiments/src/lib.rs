//! Simulator, reproductions and benchmarks.
//!
//! [`event`] draws the Poisson clocks and drives a [`event::Network`] of vector algorithms;
//! [`problem`] holds the objectives and [`graph`] the communication graphs with their spectral
//! numbers; [`reproduce`] compares what comes out with published or measured figures;
//! [`vectors`] recomputes files of test vectors. [`simulation`] is the discrete-event network that
//! drives the very protocol value of the daemon; [`soak`] mixes its troubles by seed.

pub mod attack;
pub mod event;
pub mod graph;
pub mod lb8;
pub mod linear;
pub mod mlp;
pub mod mnist;
pub mod network;
pub mod problem;
pub mod reproduce;
pub mod scale;
pub mod simulation;
pub mod soak;
pub mod spread;
pub mod vectors;
