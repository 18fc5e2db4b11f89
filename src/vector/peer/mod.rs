//! One node of a vector algorithm as a value, in the style of [`Protocol`](crate::protocol):
//! inputs and the time go in, outputs come out; the daemon adds sockets, a clock and gradients.
//!
//! - [`pairwise`]: DADAO, one-byte DADAO, A2CiD2 and plain gossip. A gradient clock and a clock per
//!   edge, both Poisson and independent; an exchange is an offer and an answer, applied at both ends
//!   exactly once.
//! - [`rounds`]: MoNNA. Half steps go to all, a round closes on `n − f` of them.
//!
//! Vectors cross links in `f64`, or rounded to `f32` at both ends alike, so that what one end gives
//! up the other end takes.

mod frame;
mod pairwise;
mod rounds;

use std::collections::BTreeMap;

pub use frame::{FRAME_LEN_MAX, Precision, UnknownPrecision, frame_len};

use super::{acid, dadao, monna};
use crate::id::{NodeId, RunId};
use crate::time::Time;

/// How the step size goes over a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Schedule {
    /// Constant for 70 % of the run, then linear to zero.
    Linear {
        /// The first step size.
        step: f64,
    },
    /// `step / (1 + ⌊t / span⌋)`, as in MoNNA's experiments.
    Hyperbolic {
        /// The first step size.
        step: f64,
        /// Gradients between two changes.
        span: f64,
    },
}

impl Schedule {
    /// The step size after `time` units of `duration`.
    pub fn at(self, time: f64, duration: f64) -> f64 {
        match self {
            Schedule::Linear { step } => step * ((1.0 - time / duration) / 0.3).clamp(0.0, 1.0),
            Schedule::Hyperbolic { step, span } => step / (1.0 + (time / span).floor()),
        }
    }
}

/// What a node runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Algorithm {
    /// DADAO on dense vectors; `w = y + z` crosses an edge.
    Dadao(dadao::Constants),
    /// DADAO along shared directions; one byte each way crosses an edge. All clocks run `dim` times
    /// faster than those of [`Algorithm::Dadao`].
    OneByteDadao(dadao::Constants),
    /// A2CiD2, or plain gossip with [`acid::Constants::PLAIN`]; `x` crosses an edge.
    Acid {
        /// Mixing.
        constants: acid::Constants,
        /// Step size.
        schedule: Schedule,
        /// Momentum factor of the gradient, in [0, 1).
        momentum: f64,
    },
    /// MoNNA; half steps go to everybody.
    Monna {
        /// Participants, tolerance and momentum.
        config: monna::Config,
        /// Step size.
        schedule: Schedule,
    },
}

/// Everything a node starts with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The run: a hash of everything the nodes must agree on.
    pub run: RunId,
    /// This node.
    pub me: NodeId,
    /// All nodes, in the order of their origins.
    pub members: Vec<NodeId>,
    /// The neighbors, with the rate of the edge to each, in exchanges per unit of time. (MoNNA has
    /// no edge clocks; its neighbors are all the others.)
    pub edges: BTreeMap<NodeId, f64>,
    /// The algorithm.
    pub algorithm: Algorithm,
    /// The unit of time, the mean interval of one node's gradient clock, lasts this long on the wall
    /// where compute and links keep up.
    pub unit: Time,
    /// Units of time (pairwise) or rounds (MoNNA) after which no more gradients are made.
    pub duration: f64,
    /// How vectors cross links.
    pub precision: Precision,
    /// Seed of this node's clocks.
    pub clock_seed: [u8; 32],
    /// The parameters at the start.
    pub start: Vec<f64>,
}

/// What comes in.
#[derive(Clone, Debug)]
pub enum Input {
    /// The time returned by [`Peer::deadline`] has come; harmless at any other time.
    Wake,
    /// A link to a neighbor is usable.
    Connected(NodeId),
    /// The link to a neighbor is gone.
    Disconnected(NodeId),
    /// A neighbor's frame, as authenticated by the transport.
    Frame {
        /// The neighbor.
        from: NodeId,
        /// The frame's bytes.
        bytes: Vec<u8>,
    },
    /// A frame that could not be handed to the link.
    NotSent(NodeId),
    /// The gradient that was asked for.
    Gradient(Vec<f64>),
}

/// What goes out, to be carried out in order.
#[derive(Clone, Debug)]
pub enum Output {
    /// Send a frame to a neighbor.
    Send {
        /// The neighbor.
        to: NodeId,
        /// The frame's bytes.
        bytes: Vec<u8>,
    },
    /// Compute the exact gradient of this node's objective. One is under way at a time.
    Gradient {
        /// The how-manieth gradient of this node, from 0: tells which minibatch.
        number: u64,
        /// Where.
        x: Vec<f64>,
    },
    /// A neighbor sent what the algorithm does not allow.
    Misbehaved {
        /// The neighbor.
        peer: NodeId,
        /// What it did.
        offence: String,
    },
    /// Something that people may want to know.
    Event(Event),
}

/// News for people.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// All neighbors are there, or have been waited for long enough; clocks run from now.
    Started {
        /// Neighbors that are there.
        neighbors: usize,
    },
    /// Edges fire less often than DADAO's constants assume.
    RateLow {
        /// Realised over assumed rate.
        ratio: f64,
    },
    /// A number is no longer finite; this node makes no more gradients.
    Diverged,
    /// This node makes no more gradients.
    Finished,
}

/// What happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stats {
    /// Gradients made.
    pub gradients: u64,
    /// Exchanges completed in which this node was the one that began (pairwise), or half steps of
    /// others that were used (MoNNA).
    pub exchanges: u64,
    /// Bytes of all frames sent.
    pub bytes_sent: u64,
    /// Bytes of all frames received.
    pub bytes_received: u64,
    /// Frames that the algorithm does not allow.
    pub offences: u64,
    /// Time during which a gradient was under way.
    pub busy: Time,
    /// From the start to the end at this node.
    pub running: Time,
}

/// How long a node waits for its neighbors before it starts without them, and at the end for those
/// that have not finished.
pub const PATIENCE: Time = Time::from_millis(15_000);

/// A node of a vector algorithm.
pub enum Peer {
    /// Edge clocks.
    Pairwise(Box<pairwise::Pairwise>),
    /// Rounds.
    Rounds(Box<rounds::Rounds>),
}

/// Why no node can be made of these settings.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SettingsError {
    /// MoNNA's numbers do not fit.
    #[error(transparent)]
    Monna(#[from] monna::ConfigError),
    /// This node is not among the members, or a neighbor is not.
    #[error("a node or neighbor is not among the members")]
    Members,
    /// MoNNA needs every pair of nodes to be neighbors.
    #[error("MoNNA runs on the complete graph: {neighbors} neighbors of {others} others")]
    Incomplete {
        /// Neighbors in the graph.
        neighbors: usize,
        /// Other members.
        others: usize,
    },
    /// A vector does not fit a frame.
    #[error("a vector of {dim} numbers needs {bytes} bytes, a frame holds {FRAME_LEN_MAX}")]
    Frame {
        /// Numbers.
        dim: usize,
        /// Bytes needed.
        bytes: usize,
    },
    /// A unit, duration or rate that is not positive and finite.
    #[error("unit, duration and rates must be positive and finite")]
    Numbers,
}

impl Peer {
    /// A node that has not started.
    ///
    /// # Errors
    /// The settings do not fit together.
    pub fn new(settings: Settings) -> Result<Peer, SettingsError> {
        let Settings { edges, members, unit, duration, .. } = &settings;
        let known = |node: &NodeId| members.contains(node);
        if !known(&settings.me) || !edges.keys().all(known) || members.len() > usize::from(u16::MAX)
        {
            return Err(SettingsError::Members);
        }
        let positive = |value: f64| value > 0.0 && value.is_finite();
        if unit.0 == 0 || !positive(*duration) || !edges.values().all(|&rate| positive(rate)) {
            return Err(SettingsError::Numbers);
        }
        let (dim, bytes) = (settings.start.len(), frame_len(&settings));
        if bytes > FRAME_LEN_MAX {
            return Err(SettingsError::Frame { dim, bytes });
        }
        Ok(match settings.algorithm {
            Algorithm::Monna { config, schedule } => {
                let rounds = rounds::Rounds::new(settings, config, schedule)?;
                Peer::Rounds(Box::new(rounds))
            }
            _ => Peer::Pairwise(Box::new(pairwise::Pairwise::new(settings))),
        })
    }

    /// Takes an event and appends what is to be done, in order.
    pub fn handle(&mut self, input: Input, now: Time, out: &mut Vec<Output>) {
        match self {
            Peer::Pairwise(peer) => peer.handle(input, now, out),
            Peer::Rounds(peer) => peer.handle(input, now, out),
        }
    }

    /// When [`Input::Wake`] is due at the latest.
    pub fn deadline(&self) -> Option<Time> {
        match self {
            Peer::Pairwise(peer) => peer.deadline(),
            Peer::Rounds(peer) => peer.deadline(),
        }
    }

    /// The parameters as of the last event.
    pub fn x(&self) -> &[f64] {
        match self {
            Peer::Pairwise(peer) => peer.x(),
            Peer::Rounds(peer) => peer.x(),
        }
    }

    /// Units of time since the start, or rounds; at most the duration.
    pub fn time(&self) -> f64 {
        match self {
            Peer::Pairwise(peer) => peer.time(),
            Peer::Rounds(peer) => peer.round() as f64,
        }
    }

    /// Numbers so far.
    pub fn stats(&self) -> Stats {
        match self {
            Peer::Pairwise(peer) => peer.stats(),
            Peer::Rounds(peer) => peer.stats(),
        }
    }

    /// For every neighbor: how often this end's clock fired, and how many exchanges were completed
    /// that it began.
    pub fn edges(&self) -> Vec<(NodeId, u64, u64)> {
        match self {
            Peer::Pairwise(peer) => peer.edges(),
            Peer::Rounds(_) => Vec::new(),
        }
    }

    /// Whether this node and its neighbors are through, or have been waited for long enough.
    pub fn is_done(&self, now: Time) -> bool {
        match self {
            Peer::Pairwise(peer) => peer.is_done(now),
            Peer::Rounds(peer) => peer.is_done(now),
        }
    }

    /// Whether a number ceased to be finite.
    pub fn has_diverged(&self) -> bool {
        match self {
            Peer::Pairwise(peer) => peer.has_diverged(),
            Peer::Rounds(peer) => peer.has_diverged(),
        }
    }
}

#[cfg(test)]
mod tests;
