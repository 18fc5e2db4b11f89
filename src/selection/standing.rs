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
//! for who says the opposite. The factor λ lets who changes be seen again. A good standing protects nobody: it only
//! fails to put out.

use bincode::{Decode, Encode};

/// λ, the factor a round: 1/e in a hundred rounds.
const DECAY: f64 = 0.99;

/// Part of what there was to agree on that an origin must have been there for.
const KNOWN: f64 = 0.25;

/// Sums over certified rounds.
#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
pub struct Standing {
    /// Σ λ^(T−t) ρ_t trust_i,t and Σ λ^(T−t) ρ_t² over the rounds in which an origin met others, by roster position.
    sums: Vec<(f64, f64)>,
}

impl Standing {
    /// Takes the trust of a round in which `counts` says who counted.
    pub fn add(&mut self, trust: &[f64], counts: impl Fn(usize) -> bool) {
        if self.sums.len() < trust.len() {
            self.sums.resize(trust.len(), (0.0, 0.0));
        }
        let counts = |at: usize| counts(at) && trust[at] != 0.0;
        let mut counted: Vec<f64> = trust
            .iter()
            .enumerate()
            .filter(|(at, _)| counts(*at))
            .map(|(_, &trust)| trust)
            .collect();
        counted.sort_by(f64::total_cmp);
        let usual = counted.get(counted.len() / 2).copied().unwrap_or(0.0).max(0.0);
        for ((agreed, all), &trust) in self.sums.iter_mut().zip(trust) {
            (*agreed, *all) = (DECAY * *agreed, DECAY * *all);
            // Exactly zero is the trust of who met nobody.
            if trust != 0.0 {
                *agreed += usual * trust;
                *all += usual * usual;
            }
        }
    }

    /// By roster position; `None` for those who were not there when most of what there was to agree on was
    /// agreed on.
    pub fn values(&self) -> Vec<Option<f64>> {
        let most = self.sums.iter().map(|(_, all)| *all).fold(0.0, f64::max);
        let value =
            |&(agreed, all): &(f64, f64)| (all > 0.0 && all >= KNOWN * most).then(|| agreed / all);
        self.sums.iter().map(value).collect()
    }

    /// Whether it can be that of so many members: every number is one.
    pub(crate) fn is_plausible(&self, roster_len: usize) -> bool {
        let is_sum =
            |(agreed, all): &(f64, f64)| agreed.is_finite() && all.is_finite() && *all >= 0.0;
        self.sums.len() <= roster_len && self.sums.iter().all(is_sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_count_by_how_much_there_was_to_agree_on() {
        let mut standing = Standing::default();
        assert_eq!(standing.values(), []);
        // The middle one of three is at .4; the last opposes.
        standing.add(&[0.5, 0.4, -0.4], |_| true);
        let near = |values: Vec<Option<f64>>, expected: [f64; 3]| {
            let near = |(value, expected): (&Option<f64>, f64)| {
                value.is_some_and(|value| (value - expected).abs() < 1e-12)
            };
            values.iter().zip(expected).all(near)
        };
        assert!(near(standing.values(), [1.25, 1.0, -1.0]));
        // With nothing to agree on nothing changes, whatever chance says.
        standing.add(&[-0.1, -0.01, 0.1], |_| true);
        assert!(near(standing.values(), [1.25, 1.0, -1.0]));
        // Late agreement is weak, and weighs little: λ² .16 and .02².
        standing.add(&[-0.02, 0.02, 0.02], |_| true);
        let all = 0.99 * 0.99 * 0.16 + 0.0004;
        let agreed = [0.5, 0.4, -0.4].map(|trust| 0.99 * 0.99 * 0.4 * trust);
        let expected = [agreed[0] - 0.0004, agreed[1] + 0.0004, agreed[2] + 0.0004];
        assert!(near(standing.values(), expected.map(|sum| sum / all)));
    }

    #[test]
    fn who_came_late_has_no_standing_instead_of_a_bad_one() {
        let mut standing = Standing::default();
        standing.add(&[0.5, 0.4, 0.4], |_| true);
        standing.add(&[0.05, 0.05, 0.05, 0.05], |_| true);
        let values = standing.values();
        assert!(values[..3].iter().all(|value| value.is_some_and(|value| value > 0.9)));
        assert_eq!(values[3], None);
        for _ in 0..3 {
            standing.add(&[0.3, 0.3, 0.0, 0.3], |_| true);
        }
        assert!(standing.values()[3].is_some_and(|value| value > 0.9), "{:?}", standing.values());
    }

    #[test]
    fn who_does_not_count_is_no_measure() {
        let mut standing = Standing::default();
        standing.add(&[0.5, 0.4, -0.9, -0.9, -0.9], |at| at < 2);
        assert_eq!(standing.values()[0], Some(1.0));
    }
}
