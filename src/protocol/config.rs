//! What a node decides for itself; what all must agree on is in the manifest.

use std::collections::BTreeMap;

use crate::id::NodeId;
use crate::time::Time;

/// When gradient events happen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum GradientClock {
    /// As fast as compute allows.
    Auto,
    /// A Poisson process of so many probes a second; it paces, it does not catch up.
    PerSecond(f64),
}

/// How often an edge's two ends exchange, together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum EdgeRate {
    /// So many exchanges of a node with all its neighbors together (each has two ends) in the time
    /// that it needs for the probes of a round; on each edge between [`EDGE_RATE_MIN`] and
    /// [`EDGE_RATE_MAX`].
    PerRound(f64),
    /// So many exchanges a second on an average edge.
    PerSecond(f64),
}

/// Fewest exchanges per second on an edge that an automatic rate gives.
pub const EDGE_RATE_MIN: f64 = 0.2;

/// Most exchanges per second on an edge that an automatic rate gives: at about 0.2 ms of
/// processor time each, 4 % of a core an edge.
pub const EDGE_RATE_MAX: f64 = 200.0;

/// A node's own settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// Seed of this node's clocks.
    pub clock_seed: [u8; 32],
    /// Seconds since 1970 at time zero; only tells a node's presence before the start from the
    /// one before it was restarted.
    pub unix_s: u64,
    /// When gradient events happen.
    pub gradient: GradientClock,
    /// How often edges exchange.
    pub edge_rate: EdgeRate,
    /// Relative rates of the edges to neighbors; 1 where nothing is said.
    pub edge_shares: BTreeMap<NodeId, f64>,
    /// Probes handed to the evaluator at a time. More hides the way to it and back, fewer keeps
    /// the model that a probe sees fresh.
    pub pipeline: usize,
    /// Unsigned records that are offered at once. A signature costs 64 bytes: more records share
    /// it, and others wait longer for them. Records of a round that was left are always offered.
    pub block: usize,
    /// How long a round may wait for records before it is closed without them. Tentative: a
    /// certificate decides in the end.
    pub patience: Time,
    /// How long a node that has certified the whole run waits for neighbors that have not, and for
    /// members since their links were lost.
    pub linger: Time,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            clock_seed: [0; 32],
            unix_s: 0,
            gradient: GradientClock::Auto,
            // Measured: ARCHITECTURE.md, "Settings of local".
            edge_rate: EdgeRate::PerRound(2.0),
            edge_shares: BTreeMap::new(),
            pipeline: 4,
            block: 64,
            patience: Time::from_millis(2_000),
            linger: Time::from_millis(10_000),
        }
    }
}
