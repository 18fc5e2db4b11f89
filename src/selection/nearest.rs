//! Nearest neighbors in coefficient space: NNA at every origin, averaged over the origins.
//!
//! For origin `i` and every other `j`, the distance is the mean squared difference of their values
//! over the slots that both measured, weighted by `β^(2·age)`; an origin's `n − c·f` nearest (itself
//! included, at distance 0; ties by roster position) each get a vote of weight `1/(n − c·f)`. How
//! often an origin was chosen is its weight. `c = 2` keeps MoNNA's count (it receives `n − f` and
//! keeps `n − 2f`), `c = 1` is nearest-neighbor mixing on the full list.

use super::sums::Window;
use super::{Choice, Momenta, Selection, trust};

/// Nearest-neighbor averaging at every origin.
pub(super) struct Nearest {
    /// How many origins are dropped for each faulty one.
    pub(super) dropped_per_faulty: usize,
}

impl Selection for Nearest {
    fn uses_window(&self) -> bool {
        true
    }

    fn choose(&self, momenta: &Momenta<'_>, faulty: usize) -> Choice {
        let window = Window::new(momenta);
        let members = window.members();
        let kept = members.len().saturating_sub(self.dropped_per_faulty * faulty).max(1);
        let weights = votes(&members, kept, window.origins, |a, b| window.distance(a, b));
        Choice { weights, trust: trust::scores(&window, &members) }
    }
}

/// How often each of `origins` is among the `kept` nearest of one of `members`, of which there are at
/// least so many; a member's votes add up to 1.
pub(super) fn votes(
    members: &[usize],
    kept: usize,
    origins: usize,
    distance: impl Fn(usize, usize) -> f64,
) -> Vec<f64> {
    let mut weights = vec![0.0; origins];
    for &pivot in members {
        let mut nearest: Vec<(f64, usize)> =
            members.iter().map(|&other| (distance(pivot, other), other)).collect();
        nearest.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        for &(_, chosen) in nearest.iter().take(kept) {
            weights[chosen] += 1.0 / kept as f64;
        }
    }
    weights
}

#[cfg(test)]
mod tests {
    use super::super::tests::{momenta, round};
    use super::*;

    #[test]
    fn nearest_neighbors_never_choose_far_outliers() {
        let round = round(&[
            &[1.0, 1.1, 0.9, 1.05, 0.95, 9.0, -9.0],
            &[2.0, 2.1, 1.9, 2.05, 1.95, -9.0, 9.0],
        ]);
        for dropped_per_faulty in [1, 2] {
            let weights = Nearest { dropped_per_faulty }.choose(&momenta(&[&round], 7), 2).weights;
            let outliers = weights[5] + weights[6];
            let total: f64 = weights.iter().sum();
            // The outliers choose themselves and each other's company; nobody else chooses them.
            assert!((total - 7.0).abs() < 1e-12);
            assert!(outliers <= 2.0 / (7 - 2 * dropped_per_faulty) as f64 + 1e-12, "{weights:?}");
        }
    }

    #[test]
    fn without_faulty_ones_every_weight_is_equal() {
        let round = round(&[&[1.0, 5.0, -3.0]]);
        let weights = Nearest { dropped_per_faulty: 1 }.choose(&momenta(&[&round], 3), 0).weights;
        assert!(weights.iter().all(|weight| (weight - 1.0).abs() < 1e-15), "{weights:?}");
    }

    #[test]
    fn ties_are_broken_by_origin() {
        // To 1, both 0 and 2 are as near.
        let distance = |a: usize, b: usize| (a as f64 - b as f64) * (a as f64 - b as f64);
        assert_eq!(votes(&[0, 1, 2], 2, 3, distance), [1.0, 1.5, 0.5]);
    }
}
