//! Objectives: what a probe measures.
