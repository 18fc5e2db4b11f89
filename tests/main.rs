//! The whole from outside, in one binary.
//!
//! `support` starts the real `rumormill` binary and waits for what it says; `local` and
//! `daemon` show what a person can do with it, `fault` makes nodes misbehave,
//! `model` looks at what they leave behind, `wrong_input` says
//! what it answers to mistakes, and `golden` pins the bytes that nodes of one protocol version must
//! agree on. `convergence` says what training must be able to reach; `rivals` runs the vector
//! algorithms over sockets, `language` pretrained transformers. `trouble` kills nodes and spoils their
//! disks, `hosts` cuts a network of several hosts in two, and `decoders` spoils all that is read from others.
//! `device` runs a graphics card's kernels on the processor.

mod support;

mod convergence;
mod daemon;
mod decoders;
mod device;
mod fault;
mod golden;
mod hosts;
#[cfg(feature = "language")]
mod language;
mod local;
mod model;
mod rivals;
mod trouble;
mod wrong_input;
