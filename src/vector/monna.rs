//! MoNNA: momentum, a half step, and the average of the nearest neighbors' half steps.
//!
//! S. Farhadkhani, R. Guerraoui, N. Gupta, L.-N. Hoang, R. Pinot, J. Stephan, "Robust Collaborative
//! Learning with Linear Gradient Overhead" (MoNNA), ICML 2023. `n` nodes on a complete graph, at
//! most `f` of them faulty. A round at every honest node:
//!
//! ```text
//! m ← β m + (1 − β) g            momentum
//! x½ = x − γ m                   half step; only this is sent
//! hold n − f half steps, the own one among them
//! x ← mean of the n − 2f of them nearest to the own x½ (Euclidean; the own has distance 0)
//! ```
//!
//! | symbol | here | meaning |
//! |---|---|---|
//! | n, f | `nodes`, `faulty` | all participants; how many of them may be faulty |
//! | β | `beta` | momentum factor |
//! | γ | `step_size` | step of the round |
//!
//! [`nearest`] works on any list and keeps any number: on a *full* list of `n` it gives the variant
//! that keeps `n − f` (used inside attack searches and by [`rule::Nna`](super::rule::Nna)).
//!
//! Ties of distance go to the own vector, then to the smaller [`Origin`]. Departures from the
//! published program: vectors that are not finite are refused before any distance (there a NaN
//! spreads to every node), and one peer counts once. "Asynchronous" in the paper means that a round
//! closes on `n − f` arrivals; the theory covers no pairwise gossip and no sparse graph.

use thiserror::Error;

use crate::id::Origin;

/// What a MoNNA node is told before the first round.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Config {
    /// All participants, n.
    pub nodes: usize,
    /// How many may be faulty, f; `2f < n`. (The proof wants `n > 11f`; experiments exceed it.)
    pub faulty: usize,
    /// Momentum factor in [0, 1); 0.99 in the paper. Larger averages longer and follows slower.
    pub beta: f64,
}

/// A half step as received; the caller vouches for the origin (by signature) and for the round.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    /// Whose half step.
    pub origin: Origin,
    /// The half step, of the run's dimension.
    pub vector: &'a [f64],
}

/// Why a node cannot be made of this configuration.
#[derive(Clone, Copy, Debug, Error, PartialEq)]
pub enum ConfigError {
    /// Half the nodes or more may be faulty: no majority is left.
    #[error("{faulty} faulty of {nodes} nodes: fewer than half must be faulty")]
    Faulty {
        /// n.
        nodes: usize,
        /// f.
        faulty: usize,
    },
    /// The momentum factor is outside [0, 1).
    #[error("beta must be in [0, 1), got {beta}")]
    Beta {
        /// β as given.
        beta: f64,
    },
}

/// Why a round was not mixed. The state is unchanged: drop the named message and wait for another.
#[derive(Clone, Copy, Debug, Error, PartialEq)]
pub enum MixError {
    /// Another number of messages than `n − f − 1`.
    #[error("a round closes on {expected} messages of others, got {got}")]
    Count {
        /// `n − f − 1`.
        expected: usize,
        /// Messages given.
        got: usize,
    },
    /// A vector of another length.
    #[error("the vector of {origin:?} has {got} numbers, not {expected}")]
    Length {
        /// Its sender.
        origin: Origin,
        /// The run's dimension.
        expected: usize,
        /// Its length.
        got: usize,
    },
    /// A NaN or an infinity.
    #[error("the vector of {origin:?} is not finite")]
    NotFinite {
        /// Its sender.
        origin: Origin,
    },
    /// A peer speaks twice, or in this node's own name.
    #[error("{origin:?} counts once a round, and not for others")]
    Duplicate {
        /// The repeated origin.
        origin: Origin,
    },
}

/// The own gradient is not finite; momentum and parameters are unchanged.
#[derive(Clone, Copy, Debug, Error, PartialEq)]
#[error("the gradient is not finite: training diverged")]
pub struct NotFinite;

/// One node: parameters and momentum.
#[derive(Clone, Debug)]
pub struct Node {
    config: Config,
    origin: Origin,
    /// The parameters; between `on_gradient` and `mix`, the half step.
    x: Vec<f64>,
    momentum: Vec<f64>,
    mixed: Vec<f64>,
}

impl Node {
    /// A node that starts from `x` with zero momentum.
    ///
    /// # Errors
    /// When the configuration is impossible.
    pub fn new(config: Config, origin: Origin, x: Vec<f64>) -> Result<Node, ConfigError> {
        let Config { nodes, faulty, beta } = config;
        if 2 * faulty >= nodes {
            return Err(ConfigError::Faulty { nodes, faulty });
        }
        if !(0.0..1.0).contains(&beta) {
            return Err(ConfigError::Beta { beta });
        }
        let zero = vec![0.0; x.len()];
        Ok(Node { config, origin, x, momentum: zero.clone(), mixed: zero })
    }

    /// The parameters; after [`on_gradient`](Node::on_gradient) the half step to send.
    pub fn x(&self) -> &[f64] {
        &self.x
    }

    /// The momentum; it is never mixed.
    pub fn momentum(&self) -> &[f64] {
        &self.momentum
    }

    /// Updates the momentum and makes the half step.
    ///
    /// # Errors
    /// When the gradient is not finite.
    ///
    /// # Panics
    /// If `gradient` has another length than `x`.
    pub fn on_gradient(&mut self, gradient: &[f64], step_size: f64) -> Result<(), NotFinite> {
        assert_eq!(gradient.len(), self.x.len(), "a gradient has the length of x");
        if !is_finite(gradient) {
            return Err(NotFinite);
        }
        let beta = self.config.beta;
        for ((x, m), g) in self.x.iter_mut().zip(&mut self.momentum).zip(gradient) {
            *m = beta * *m + (1.0 - beta) * g;
            *x -= step_size * *m;
        }
        Ok(())
    }

    /// Sets the parameters to the result of another rule; the momentum stays. For comparisons.
    ///
    /// # Panics
    /// If `x` has another length.
    pub fn replace(&mut self, x: &[f64]) {
        self.x.copy_from_slice(x);
    }

    /// Closes the round on the half steps of `n − f − 1` others, in any order: `x` becomes the
    /// mean of the `n − 2f` nearest, the own included.
    ///
    /// # Errors
    /// When a message is unusable; see [`MixError`].
    pub fn mix(&mut self, received: &[Received<'_>]) -> Result<(), MixError> {
        let Config { nodes, faulty, .. } = self.config;
        let expected = nodes - faulty - 1;
        if received.len() != expected {
            return Err(MixError::Count { expected, got: received.len() });
        }
        let mut sorted = received.to_vec();
        sorted.sort_by_key(|message| message.origin);
        let mut previous = None;
        for Received { origin, vector } in sorted.iter().copied() {
            if origin == self.origin || previous == Some(origin) {
                return Err(MixError::Duplicate { origin });
            }
            if vector.len() != self.x.len() {
                let (expected, got) = (self.x.len(), vector.len());
                return Err(MixError::Length { origin, expected, got });
            }
            if !is_finite(vector) {
                return Err(MixError::NotFinite { origin });
            }
            previous = Some(origin);
        }
        // The own vector first, then by origin: list order is the order of ties.
        let list: Vec<&[f64]> =
            std::iter::once(&self.x[..]).chain(sorted.iter().map(|m| m.vector)).collect();
        let kept = nearest(&self.x, &list, nodes - 2 * faulty);
        average(kept.iter().map(|neighbor| list[neighbor.index]), &mut self.mixed);
        std::mem::swap(&mut self.x, &mut self.mixed);
        Ok(())
    }
}

/// A vector of a list and its distance from the pivot.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Neighbor {
    /// Position in the list.
    pub index: usize,
    /// Euclidean distance from the pivot.
    pub distance: f64,
}

/// The `keep` vectors of a list nearest to the pivot, nearest first; ties keep list order. The
/// vectors are finite: callers refuse others before.
///
/// # Panics
/// If `keep` exceeds the list or lengths differ.
pub fn nearest(pivot: &[f64], list: &[&[f64]], keep: usize) -> Vec<Neighbor> {
    assert!(keep <= list.len(), "no more can be kept than there are");
    let mut neighbors: Vec<Neighbor> = list
        .iter()
        .enumerate()
        .map(|(index, vector)| Neighbor { index, distance: distance(pivot, vector) })
        .collect();
    neighbors.sort_by(|a, b| a.distance.total_cmp(&b.distance));
    neighbors.truncate(keep);
    neighbors
}

/// The Euclidean distance of two vectors of equal length.
///
/// # Panics
/// If the lengths differ.
pub fn distance(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len(), "vectors of one run have one length");
    // Four fixed lanes let the compiler vectorise and keep the order of the sum the same always.
    let mut lanes = [0.0f64; 4];
    let (a_blocks, b_blocks) = (a.chunks_exact(4), b.chunks_exact(4));
    let rest: f64 =
        a_blocks.remainder().iter().zip(b_blocks.remainder()).map(|(a, b)| (a - b).powi(2)).sum();
    for (a, b) in a_blocks.zip(b_blocks) {
        for (lane, (a, b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *lane += (a - b) * (a - b);
        }
    }
    (lanes[0] + lanes[1] + lanes[2] + lanes[3] + rest).sqrt()
}

/// Writes the mean of some vectors, summed in the order given.
///
/// # Panics
/// If there is no vector.
pub fn average<'a>(vectors: impl Iterator<Item = &'a [f64]>, out: &mut [f64]) {
    out.fill(0.0);
    let mut count = 0usize;
    for vector in vectors {
        count += 1;
        for (sum, value) in out.iter_mut().zip(vector) {
            *sum += value;
        }
    }
    assert!(count > 0, "an average is over something");
    for sum in out {
        *sum /= count as f64;
    }
}

pub(super) fn is_finite(vector: &[f64]) -> bool {
    vector.iter().all(|value| value.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: Config = Config { nodes: 5, faulty: 1, beta: 0.5 };

    fn node(x: f64) -> Node {
        Node::new(CONFIG, Origin(0), vec![x]).unwrap()
    }

    fn received<'a>(of: &'a [(u16, [f64; 1])]) -> Vec<Received<'a>> {
        of.iter().map(|(id, vector)| Received { origin: Origin(*id), vector }).collect()
    }

    #[test]
    fn a_round_by_hand() {
        let mut node = node(1.0);
        node.on_gradient(&[4.0], 0.25).unwrap();
        // m = 2, half step 0.5.
        assert_eq!((node.x(), node.momentum()), (&[0.5][..], &[2.0][..]));
        // Three of 0.5, 1.0, 0.0, 100 are kept: the far one is not.
        node.mix(&received(&[(1, [100.0]), (2, [1.0]), (3, [0.0])])).unwrap();
        assert_eq!(node.x(), [0.5]);
    }

    #[test]
    fn ties_go_to_the_own_vector_then_to_the_smaller_origin() {
        let config = Config { nodes: 3, faulty: 1, beta: 0.0 };
        let mut node = Node::new(config, Origin(9), vec![0.0]).unwrap();
        node.mix(&[Received { origin: Origin(2), vector: &[0.0] }]).unwrap();
        assert_eq!(node.x(), [0.0]);
        // Kept: own 0, then of 2 and −2 at equal distance the one of origin 1, then the other.
        let mut node = Node::new(Config { nodes: 4, faulty: 1, ..config }, Origin(9), vec![0.0]);
        let list = [(7, [2.0]), (1, [-2.0])];
        let node = node.as_mut().unwrap();
        node.mix(&received(&list)).unwrap();
        assert_eq!(node.x(), [-1.0]);
    }

    #[test]
    fn the_mix_does_not_depend_on_the_order_of_arrival() {
        let list = [(4, [0.3]), (1, [0.1]), (2, [-0.7])];
        let mut reversed = list;
        reversed.reverse();
        let (mut a, mut b) = (node(0.2), node(0.2));
        a.mix(&received(&list)).unwrap();
        b.mix(&received(&reversed)).unwrap();
        assert_eq!(a.x(), b.x());
    }

    #[test]
    fn unusable_messages_are_refused_and_change_nothing() {
        let mut node = node(1.0);
        let nan = [(1, [0.0]), (2, [f64::NAN]), (3, [0.0])];
        let twice = [(1, [0.0]), (1, [0.0]), (3, [0.0])];
        let own = [(1, [0.0]), (0, [0.0]), (3, [0.0])];
        assert_eq!(node.mix(&received(&nan)), Err(MixError::NotFinite { origin: Origin(2) }));
        assert_eq!(node.mix(&received(&twice)), Err(MixError::Duplicate { origin: Origin(1) }));
        assert_eq!(node.mix(&received(&own)), Err(MixError::Duplicate { origin: Origin(0) }));
        assert!(matches!(node.mix(&[]), Err(MixError::Count { expected: 3, got: 0 })));
        assert_eq!(node.on_gradient(&[f64::INFINITY], 0.1), Err(NotFinite));
        assert_eq!((node.x(), node.momentum()), (&[1.0][..], &[0.0][..]));
    }

    #[test]
    fn f_far_vectors_are_ignored_and_f_plus_one_are_not() {
        let honest = [(1, [1.1]), (2, [0.9]), (3, [1.0])];
        let mut with_f = honest;
        with_f[2].1 = [1e6];
        let mut past_f = with_f;
        past_f[1].1 = [1e6];
        let (mut held, mut lost) = (node(1.0), node(1.0));
        held.mix(&received(&with_f)).unwrap();
        lost.mix(&received(&past_f)).unwrap();
        assert!((held.x()[0] - 1.0).abs() < 0.1 && lost.x()[0] > 1e5);
    }

    #[test]
    fn impossible_configurations_are_refused() {
        let new = |nodes, faulty, beta| {
            Node::new(Config { nodes, faulty, beta }, Origin(0), vec![0.0]).map(|_| ())
        };
        assert!(matches!(new(4, 2, 0.5), Err(ConfigError::Faulty { .. })));
        assert!(matches!(new(5, 2, 1.0), Err(ConfigError::Beta { .. })));
        assert!(matches!(new(5, 2, f64::NAN), Err(ConfigError::Beta { .. })));
        assert!(new(5, 2, 0.0).is_ok());
    }
}
