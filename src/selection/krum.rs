//! Krum on masked momenta: the origins in the densest places.
//!
//! An origin's score is the sum of its squared distances to its `n − f − 2` nearest. Krum proper keeps
//! the one with the lowest score, which has measured a fifth of the directions only, so that most
//! slots would be lost; kept are the `n − f` lowest (multi-Krum), alike.

use super::sums::Window;
use super::{Choice, Momenta, Selection, trust};

/// Multi-Krum.
pub(super) struct Krum;

impl Selection for Krum {
    fn uses_window(&self) -> bool {
        true
    }

    fn choose(&self, momenta: &Momenta<'_>, faulty: usize) -> Choice {
        let window = Window::new(momenta);
        let members = window.members();
        let close = members.len().saturating_sub(faulty + 2).max(1);
        let score = |&origin: &usize| {
            let others = members.iter().filter(|&&other| other != origin);
            let mut distances: Vec<f64> =
                others.map(|&other| window.distance(origin, other)).collect();
            distances.sort_by(f64::total_cmp);
            (distances.iter().take(close).sum::<f64>(), origin)
        };
        let mut scores: Vec<(f64, usize)> = members.iter().map(score).collect();
        scores.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let mut weights = vec![0.0; momenta.origins];
        for &(_, origin) in scores.iter().take(members.len().saturating_sub(faulty).max(1)) {
            weights[origin] = 1.0;
        }
        Choice { weights, trust: trust::scores(&window, &members) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{momenta, round};
    use super::*;

    #[test]
    fn the_loosest_neighborhoods_are_left_out() {
        // Scores over the 6 − 1 − 2 = 3 nearest: 0 → 1 + 1 + 4, 1 → 1 + 1 + 4 (of 0, 2, 3), 2 → 6,
        // 3 → 1 + 4 + 9, 7 → 16 + 25 + 36, 8 → 1 + 25 + 36.
        let round = round(&[&[0.0, 1.0, -1.0, 2.0, 7.0, 8.0]]);
        let kept = |faulty| Krum.choose(&momenta(&[&round], 6), faulty).weights;
        assert_eq!(kept(1), [1.0, 1.0, 1.0, 1.0, 1.0, 0.0]);
        // With two faulty over the two nearest: 2, 2, 5, 5, 26, 37.
        assert_eq!(kept(2), [1.0, 1.0, 1.0, 1.0, 0.0, 0.0]);
    }
}
