//! Algorithms that exchange vectors: DADAO, A2CiD2 and MoNNA.
