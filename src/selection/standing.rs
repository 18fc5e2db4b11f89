//! Standing: how much an origin has agreed with the others, in all certified rounds.
//!
//! ```text
//! standing_i = Σ_t λ^(T−t) ρ_t trust_i,t / Σ_t λ^(T−t) ρ_t²        ρ_t = median trust of round t, at least 0
//! ```
//!
//! Where shards differ (Dirichlet), honest origins agree early, when all gradients point the same way, and hardly
//! later; a window of rounds then tells liars from honest ones no better than chance, and puts out either.
//! Every round counts by how much there was to agree on, `ρ_t`, which is the matched filter for a signal of
//! strength `ρ_t` in equal noise: 1 for who sees what the middle one sees, 0 for who says anything, −1
//! for who says the opposite. The factor λ lets who changes be seen again.

use bincode::{Decode, Encode};

/// λ, the factor a round: 1/e in a hundred rounds.
const DECAY: f64 = 0.99;

/// Sums over certified rounds.
#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
pub struct Standing {
    /// Σ λ^(T−t) ρ_t trust_i,t by roster position.
    agreed: Vec<f64>,
    /// Σ λ^(T−t) ρ_t².
    all: f64,
}

impl Standing {
    /// Takes the trust of a round in which `counts` says who counted.
    pub fn add(&mut self, trust: &[f64], counts: impl Fn(usize) -> bool) {
        if self.agreed.len() < trust.len() {
            self.agreed.resize(trust.len(), 0.0);
        }
        let mut counted: Vec<f64> = trust
            .iter()
            .enumerate()
            .filter(|(at, _)| counts(*at))
            .map(|(_, &trust)| trust)
            .collect();
        counted.sort_by(f64::total_cmp);
        let usual = counted.get(counted.len() / 2).copied().unwrap_or(0.0).max(0.0);
        self.all = DECAY * self.all + usual * usual;
        for (agreed, trust) in self.agreed.iter_mut().zip(trust) {
            *agreed = DECAY * *agreed + usual * trust;
        }
    }

    /// By roster position; empty without anything to agree on.
    pub fn values(&self) -> Vec<f64> {
        if self.all > 0.0 {
            self.agreed.iter().map(|agreed| agreed / self.all).collect()
        } else {
            Vec::new()
        }
    }

    /// Whether it can be that of so many members: every number is one.
    pub(crate) fn is_plausible(&self, roster_len: usize) -> bool {
        let numbers = self.agreed.iter().chain([&self.all]);
        self.agreed.len() <= roster_len && self.all >= 0.0 && numbers.copied().all(f64::is_finite)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_count_by_how_much_there_was_to_agree_on() {
        let mut standing = Standing::default();
        assert_eq!(standing.values(), [0.0; 0]);
        // The middle one of three is at .4; the last opposes.
        standing.add(&[0.5, 0.4, -0.4], |_| true);
        let near = |values: Vec<f64>, expected: [f64; 3]| {
            values.iter().zip(expected).all(|(value, expected)| (value - expected).abs() < 1e-12)
        };
        assert!(near(standing.values(), [1.25, 1.0, -1.0]));
        // With nothing to agree on nothing changes, whatever chance says.
        standing.add(&[-0.1, 0.0, 0.1], |_| true);
        assert!(near(standing.values(), [1.25, 1.0, -1.0]));
        // Late agreement is weak, and weighs little: λ² .16 and .02².
        standing.add(&[-0.02, 0.02, 0.02], |_| true);
        let all = 0.99 * 0.99 * 0.16 + 0.0004;
        let agreed = [0.5, 0.4, -0.4].map(|trust| 0.99 * 0.99 * 0.4 * trust);
        let expected = [agreed[0] - 0.0004, agreed[1] + 0.0004, agreed[2] + 0.0004];
        assert!(near(standing.values(), expected.map(|sum| sum / all)));
    }

    #[test]
    fn who_does_not_count_is_no_measure() {
        let mut standing = Standing::default();
        standing.add(&[0.5, 0.4, -0.9, -0.9, -0.9], |at| at < 2);
        assert_eq!(standing.values()[0], 1.0);
    }
}
