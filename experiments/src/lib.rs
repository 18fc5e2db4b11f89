//! Simulator, reproductions and benchmarks.
