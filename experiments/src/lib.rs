//! Simulator, reproductions and benchmarks.

pub mod network;
