//! Algorithms that exchange vectors: the ancestors of the protocol, on exact gradients.
//!
//! - [`dadao`]: DADAO, accelerated decentralized optimization on Poisson clocks;
//! - [`acid`]: A2CiD2 and plain asynchronous pairwise averaging;
//! - [`onebyte`]: DADAO with every jump restricted to a shared direction, one byte an exchange;
//! - [`monna`]: MoNNA, momentum and nearest-neighbor averaging;
//! - [`rule`]: rival aggregation rules, for comparison;
//! - [`peer`]: a node of these that talks over links, as the daemon runs it.
//!
//! Each algorithm is the state machine of one node: time, gradients and what a neighbor sent go
//! in, the state changes, and what to send is read out. Time is [`Time`](crate::time::Time), where
//! one second stands for the expected interval of one node's gradient clock; a caller whose clocks
//! tick otherwise scales before it calls. Nothing here draws random numbers, sends or waits.

pub mod acid;
pub mod dadao;
pub mod monna;
pub mod onebyte;
pub mod peer;
pub mod rule;
