//! A2CiD2, accelerated asynchronous gossip for non-convex training, and plain pairwise averaging.
//!
//! A. Nabli, E. Belilovsky, E. Oyallon, "A2CiD2", NeurIPS 2023 (arXiv 2306.08289). Each node keeps
//! its parameters `x` and a companion `x~`, equal at the start. Between events they mix:
//!
//! ```text
//! dx = η(x~ − x),   dx~ = η(x − x~);   with w = e^(−2ηt) and u = (x − x~)/2:
//! x ← (x + x~)/2 + w u,   x~ ← (x + x~)/2 − w u
//!
//! gradient event:  x −= step · g;  x~ −= step · g
//! edge event i–j:  d = x_i − x_j;  x_i −= α d;  x~_i −= α~ d;  j the opposite
//! ```
//!
//! | symbol | here | value | role |
//! |---|---|---|---|
//! | χ₁, χ₂ | [`Chi`] | of the Laplacian weighted by edge rates | |
//! | η | `eta` | 1/(2√(χ₁χ₂)), plain: 0 | mixing |
//! | α | `alpha` | 1/2 | exchange, x |
//! | α~ | `alpha_tilde` | √(χ₁/χ₂)/2, plain: 1/2 | exchange, x~ |
//!
//! With η = 0 and α~ = 1/2 it is plain asynchronous averaging (as in AD-PSGD). Both ends are mixed
//! *before* the difference is taken, as in the paper; the published program exchanges unmixed
//! parameters. Momentum on the gradient belongs to the caller.

use thiserror::Error;

use super::dadao::Chi;
use crate::time::Time;

/// A2CiD2's three constants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Constants {
    /// Rate of mixing, per unit of time.
    pub eta: f64,
    /// Share of the difference that `x` gives up in an exchange.
    pub alpha: f64,
    /// Share of the difference that `x~` gives up.
    pub alpha_tilde: f64,
}

/// The graph has no finite positive χ₁ and χ₂. Nothing was changed.
#[derive(Clone, Copy, Debug, Error, PartialEq)]
#[error("needs finite positive chi_1 and chi_2, got {chi_1} and {chi_2}")]
pub struct ConstantsError {
    /// χ₁ as given.
    pub chi_1: f64,
    /// χ₂ as given.
    pub chi_2: f64,
}

impl Constants {
    /// Plain asynchronous pairwise averaging: no mixing, both halves meet in the middle.
    pub const PLAIN: Constants = Constants { eta: 0.0, alpha: 0.5, alpha_tilde: 0.5 };

    /// A2CiD2's constants for a graph under its edge rates.
    ///
    /// # Errors
    /// When χ₁ or χ₂ is not positive and finite, as on a disconnected graph.
    pub fn new(chi: Chi) -> Result<Constants, ConstantsError> {
        let Chi { chi_1, chi_2 } = chi;
        if !(chi_1 > 0.0 && chi_2 > 0.0 && chi_1.is_finite() && chi_2.is_finite()) {
            return Err(ConstantsError { chi_1, chi_2 });
        }
        Ok(Constants {
            eta: 0.5 / (chi_1 * chi_2).sqrt(),
            alpha: 0.5,
            alpha_tilde: 0.5 * (chi_1 / chi_2).sqrt(),
        })
    }
}

/// One node: `x`, `x~` and the time they hold at.
#[derive(Clone, Debug)]
pub struct Node {
    constants: Constants,
    /// The time of the last event; an earlier event mixes nothing.
    time: Time,
    x: Vec<f64>,
    x_tilde: Vec<f64>,
}

impl Node {
    /// A node at time zero with `x~ = x`.
    pub fn new(constants: Constants, x: Vec<f64>) -> Node {
        Node { constants, time: Time::ZERO, x_tilde: x.clone(), x }
    }

    /// The parameters as of the last event; also the message of an exchange, after
    /// [`advance`](Node::advance).
    pub fn x(&self) -> &[f64] {
        &self.x
    }

    /// The companion as of the last event.
    pub fn x_tilde(&self) -> &[f64] {
        &self.x_tilde
    }

    /// Mixes up to `time`. A `time` before the last event changes nothing.
    pub fn advance(&mut self, time: Time) {
        let span = time.since(self.time).as_secs_f64();
        self.time = self.time.max(time);
        if span == 0.0 || self.constants.eta == 0.0 {
            return;
        }
        let decay = (-2.0 * self.constants.eta * span).exp();
        for (x, x_tilde) in self.x.iter_mut().zip(&mut self.x_tilde) {
            let mean = 0.5 * (*x + *x_tilde);
            let half = 0.5 * decay * (*x - *x_tilde);
            *x = mean + half;
            *x_tilde = mean - half;
        }
    }

    /// A gradient event: mixes, then steps by `−step · gradient` on both vectors. `gradient` is
    /// called with `x` at `time` and writes into `scratch`.
    ///
    /// # Panics
    /// If `scratch` has another length than `x`.
    pub fn on_gradient(
        &mut self,
        time: Time,
        step: f64,
        scratch: &mut [f64],
        gradient: impl FnOnce(&[f64], &mut [f64]),
    ) {
        assert_eq!(scratch.len(), self.x.len(), "a gradient has the length of x");
        self.advance(time);
        gradient(&self.x, scratch);
        for ((x, x_tilde), g) in self.x.iter_mut().zip(&mut self.x_tilde).zip(scratch) {
            *x -= step * *g;
            *x_tilde -= step * *g;
        }
    }

    /// An edge event at one end: `difference` is `x_own − x_neighbor`, both mixed up to `time`.
    ///
    /// # Panics
    /// If `difference` has another length than `x`.
    pub fn on_edge(&mut self, time: Time, difference: &[f64]) {
        assert_eq!(difference.len(), self.x.len(), "a difference has the length of x");
        self.advance(time);
        let Constants { alpha, alpha_tilde, .. } = self.constants;
        for ((x, x_tilde), d) in self.x.iter_mut().zip(&mut self.x_tilde).zip(difference) {
            *x -= alpha * d;
            *x_tilde -= alpha_tilde * d;
        }
    }
}

/// An edge event with both ends at hand; `scratch` has the length of `x`.
///
/// # Panics
/// If the lengths differ.
pub fn exchange(time: Time, a: &mut Node, b: &mut Node, scratch: &mut [f64]) {
    a.advance(time);
    b.advance(time);
    assert_eq!(a.x.len(), b.x.len(), "neighbors share a dimension");
    for ((d, own), other) in scratch.iter_mut().zip(&a.x).zip(&b.x) {
        *d = own - other;
    }
    a.on_edge(time, scratch);
    for d in &mut *scratch {
        *d = -*d;
    }
    b.on_edge(time, scratch);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_exchange_meets_in_the_middle() {
        let mut a = Node::new(Constants::PLAIN, vec![1.0, -2.0]);
        let mut b = Node::new(Constants::PLAIN, vec![3.0, 4.0]);
        exchange(Time::from_millis(5), &mut a, &mut b, &mut [0.0; 2]);
        assert_eq!((a.x(), b.x()), (&[2.0, 1.0][..], &[2.0, 1.0][..]));
        assert_eq!(a.x(), a.x_tilde());
    }

    #[test]
    fn constants_of_the_cycle_of_four_by_hand() {
        // Rates 1/2 an edge: λ₂ = 1, and an edge's resistance is 3/4 over 1/2.
        let constants = Constants::new(Chi { chi_1: 1.0, chi_2: 0.75 }).unwrap();
        assert!((constants.eta - 1.0 / 3f64.sqrt()).abs() < 1e-15);
        assert!((constants.alpha_tilde - 1.0 / 3f64.sqrt()).abs() < 1e-15);
        assert!(Constants::new(Chi { chi_1: f64::INFINITY, chi_2: 1.0 }).is_err());
    }

    #[test]
    fn mixing_and_exchanges_keep_both_averages() {
        // A path of five, each edge once in 148 ms: rate 1/0.148, λ₂ = rate·(2 − 2 cos 36°).
        let chi = Chi { chi_1: 0.148 / 0.381_966, chi_2: 0.148 / 2.0 };
        let constants = Constants::new(chi).unwrap();
        let mut nodes: Vec<Node> =
            (0..5).map(|i| Node::new(constants, vec![f64::from(i * i)])).collect();
        for k in 0..300u64 {
            let i = (k % 4) as usize;
            let (left, right) = nodes.split_at_mut(i + 1);
            exchange(Time::from_millis(37 * k), &mut left[i], &mut right[0], &mut [0.0]);
        }
        nodes.iter_mut().for_each(|node| node.advance(Time::from_millis(37 * 300)));
        // Mixing keeps x + x~ at every node, an exchange keeps Σx and Σx~.
        let sum: f64 = nodes.iter().map(|node| node.x()[0] + node.x_tilde()[0]).sum();
        assert!((sum - 60.0).abs() < 1e-11, "{sum}");
        let spread = nodes.iter().map(|node| (node.x()[0] - 6.0).abs()).fold(0.0, f64::max);
        assert!(spread < 1e-6, "{spread}");
    }

    #[test]
    fn mixing_agrees_with_many_small_euler_steps() {
        let constants = Constants { eta: 0.3, alpha: 0.5, alpha_tilde: 0.5 };
        let mut node = Node::new(constants, vec![0.0]);
        node.x = vec![2.0];
        node.x_tilde = vec![-1.0];
        let (mut x, mut x_tilde) = (2.0f64, -1.0f64);
        for _ in 0..200_000 {
            let flow = 0.3 * (x_tilde - x) * 1e-5;
            (x, x_tilde) = (x + flow, x_tilde - flow);
        }
        node.advance(Time::from_millis(2_000));
        assert!((node.x()[0] - x).abs() < 1e-5 && (node.x_tilde()[0] - x_tilde).abs() < 1e-5);
    }
}
