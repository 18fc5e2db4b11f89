//! The whole from outside, in one binary.
//!
//! `support` starts the real `rumormill` binary and waits for what it says; `local` and
//! `daemon` show what a person can do with it, `fault` makes nodes misbehave, `wrong_input` says
//! what it answers to mistakes, and `golden` pins the bytes that nodes of one protocol version must
//! agree on. `convergence` says what training must be able to reach; `rivals` runs the vector
//! algorithms over sockets, `language` pretrained transformers.

mod support;

mod convergence;
mod daemon;
mod fault;
mod golden;
#[cfg(feature = "language")]
mod language;
mod local;
mod rivals;
mod wrong_input;
