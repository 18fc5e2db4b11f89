//! Nearest neighbors in coefficient space: NNA at every origin, averaged over the origins.
//!
//! For origin `i` and every other `j`, the distance is the mean squared difference of their values
//! over the slots that both measured, weighted by `β^(2·age)`; an origin's `n − c·f` nearest (itself
//! included, at distance 0; ties by roster position) each get a vote of weight `1/(n − c·f)`. How
//! often an origin was chosen is its weight. `c = 2` keeps MoNNA's count (it receives `n − f` and
//! keeps `n − 2f`), `c = 1` is nearest-neighbor mixing on the full list.

use super::{Momenta, Selection, present};

/// Nearest-neighbor averaging at every origin.
pub(super) struct Nearest {
    /// How many origins are dropped for each faulty one.
    pub(super) dropped_per_faulty: usize,
}

impl Selection for Nearest {
    fn uses_window(&self) -> bool {
        true
    }

    fn weights(&self, momenta: &Momenta<'_>, faulty: usize) -> Vec<f64> {
        let origins = momenta.origins;
        let present = present(momenta);
        let members: Vec<usize> = (0..origins).filter(|&origin| present[origin]).collect();
        let kept = members.len().saturating_sub(self.dropped_per_faulty * faulty).max(1);
        let distances = distances(momenta);
        let mut weights = vec![0.0; origins];
        for &pivot in &members {
            let mut nearest = members.clone();
            nearest.sort_by(|&a, &b| {
                let (da, db) = (distances[pivot * origins + a], distances[pivot * origins + b]);
                da.total_cmp(&db).then(a.cmp(&b))
            });
            for &chosen in nearest.iter().take(kept) {
                weights[chosen] += 1.0 / kept as f64;
            }
        }
        weights
    }
}

/// Mean squared distances between all pairs of origins, row-major; infinite without overlap.
fn distances(momenta: &Momenta<'_>) -> Vec<f64> {
    let origins = momenta.origins;
    let mut sums = vec![0.0; origins * origins];
    let mut overlaps = vec![0.0; origins * origins];
    let mut factor = 1.0;
    for round in momenta.rounds.iter().rev() {
        for values in &round.slots {
            for (at, &(a, value_a)) in values.iter().enumerate() {
                for &(b, value_b) in &values[at + 1..] {
                    let pair = a.index() * origins + b.index();
                    let difference = value_a - value_b;
                    sums[pair] += factor * difference * difference;
                    overlaps[pair] += factor;
                }
            }
        }
        factor *= momenta.beta * momenta.beta;
    }
    let mut distances = vec![0.0; origins * origins];
    for a in 0..origins {
        for b in a + 1..origins {
            let pair = a * origins + b;
            let distance =
                if overlaps[pair] > 0.0 { sums[pair] / overlaps[pair] } else { f64::INFINITY };
            distances[pair] = distance;
            distances[b * origins + a] = distance;
        }
    }
    distances
}

#[cfg(test)]
mod tests {
    use super::super::tests::round;
    use super::*;

    #[test]
    fn nearest_neighbors_never_choose_far_outliers() {
        let round = round(&[
            &[1.0, 1.1, 0.9, 1.05, 0.95, 9.0, -9.0],
            &[2.0, 2.1, 1.9, 2.05, 1.95, -9.0, 9.0],
        ]);
        for dropped_per_faulty in [1, 2] {
            let momenta = Momenta { rounds: &[&round], beta: 0.9, origins: 7 };
            let weights = Nearest { dropped_per_faulty }.weights(&momenta, 2);
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
        let momenta = Momenta { rounds: &[&round], beta: 0.9, origins: 3 };
        let weights = Nearest { dropped_per_faulty: 1 }.weights(&momenta, 0);
        assert!(weights.iter().all(|weight| (weight - 1.0).abs() < 1e-15), "{weights:?}");
    }

    #[test]
    fn distances_are_normalised_by_overlap() {
        let round = round(&[&[0.0, 1.0, f64::NAN], &[0.0, 1.0, f64::NAN], &[0.0, f64::NAN, 1.0]]);
        let momenta = Momenta { rounds: &[&round], beta: 1.0, origins: 3 };
        let distances = distances(&momenta);
        assert_eq!(distances[1], distances[2]);
        assert_eq!(distances[3 + 2], f64::INFINITY);
    }
}
