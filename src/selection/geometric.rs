//! Geometric median of masked momenta, by origin weights.
//!
//! Smoothed Weiszfeld: `z = Σ w_i x_i`, `w_i ∝ 1/max(|x_i − z|, ν)`, from the origin of least summed
//! distance: from the mean, one huge value would need many iterations. The distances from `z` follow
//! from those between origins,
//!
//! ```text
//! |x_i − z|² = Σ_j w_j d_ij − ½ Σ_jk w_j w_k d_jk
//! ```
//!
//! which is exact when all share all slots and otherwise takes the normalised distances for the
//! whole; a pair without a common slot counts as the median pair. `ν` is a tenth of the median
//! distance.

use super::sums::Window;
use super::{Choice, Momenta, Selection, trust};

/// The geometric median.
pub(super) struct GeometricMedian;

/// Iterations; the published comparison uses three.
const ITERATIONS: usize = 8;

/// Part of the median distance below which nobody is nearer.
const SMOOTHING: f64 = 0.1;

impl Selection for GeometricMedian {
    fn uses_window(&self) -> bool {
        true
    }

    fn choose(&self, momenta: &Momenta<'_>, _faulty: usize) -> Choice {
        let window = Window::new(momenta);
        let members = window.members();
        let distances = distances(&window, &members);
        let mut weights = vec![0.0; momenta.origins];
        for (&origin, weight) in members.iter().zip(weiszfeld(&distances)) {
            weights[origin] = weight;
        }
        Choice { weights, trust: trust::scores(&window, &members) }
    }
}

/// The upper median; 0 without any.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// Squared distances between members, a row each.
fn distances(window: &Window, members: &[usize]) -> Vec<Vec<f64>> {
    let row = |&a: &usize| members.iter().map(|&b| window.distance(a, b)).collect();
    let mut rows: Vec<Vec<f64>> = members.iter().map(row).collect();
    let pairs = members.iter().enumerate();
    let pairs = pairs.flat_map(|(at, &a)| members[..at].iter().map(move |&b| (a, b)));
    let known = pairs.map(|(a, b)| window.distance(a, b)).filter(|distance| distance.is_finite());
    let median = median(known.collect());
    rows.iter_mut().flatten().filter(|d| d.is_infinite()).for_each(|d| *d = median);
    rows
}

/// The weights of points with the given squared distances; their mean is 1.
fn weiszfeld(distances: &[Vec<f64>]) -> Vec<f64> {
    let count = distances.len();
    let sum = |at: &usize| distances[*at].iter().map(|distance| distance.sqrt()).sum::<f64>();
    let start = (0..count).min_by(|a, b| sum(a).total_cmp(&sum(b)));
    let mut weights = vec![0.0; count];
    start.into_iter().for_each(|start| weights[start] = 1.0);
    for _ in 0..ITERATIONS {
        let dot = |row: &Vec<f64>| row.iter().zip(&weights).map(|(d, w)| d * w).sum::<f64>();
        let to_points: Vec<f64> = distances.iter().map(dot).collect();
        let half = dot(&to_points) / 2.0;
        let radii: Vec<f64> = to_points.iter().map(|d| (d - half).max(0.0).sqrt()).collect();
        let least = SMOOTHING * median(radii.clone());
        if least <= 0.0 {
            // Most are in one place, and it is theirs.
            weights = radii.iter().map(|&radius| f64::from(u8::from(radius <= 0.0))).collect();
        } else {
            weights = radii.iter().map(|radius| 1.0 / radius.max(least)).collect();
        }
        let total: f64 = weights.iter().sum();
        weights.iter_mut().for_each(|weight| *weight /= total);
    }
    weights.iter_mut().for_each(|weight| *weight *= count as f64);
    weights
}

#[cfg(test)]
mod tests {
    use super::super::tests::{momenta, round};
    use super::*;

    #[test]
    fn the_weighted_mean_is_near_the_geometric_median() {
        // On a line it is the middle point, however far off the last one is.
        let round = round(&[&[-1.0, -0.5, 0.0, 0.5, 1000.0]]);
        let weights = GeometricMedian.choose(&momenta(&[&round], 5), 1).weights;
        let slot = &round.values().slots[0];
        let limits = super::super::tests::LIMITS;
        let at = GeometricMedian.combine(slot, &weights, limits).unwrap();
        assert!((-0.5..=0.5).contains(&at), "{at}");
        assert!(weights[4] < 0.01, "{weights:?}");
    }

    #[test]
    fn distances_from_the_mean_follow_from_those_between_points() {
        // Points 0, 3, 6: from their mean 3, 0 and 3; the middle one is held up by the smoothing.
        let square = |a: f64, b: f64| (a - b) * (a - b);
        let points = [0.0, 3.0, 6.0];
        let distances: Vec<Vec<f64>> =
            points.iter().map(|&a| points.iter().map(|&b| square(a, b)).collect()).collect();
        let weights = weiszfeld(&distances);
        // Radii 3, 0, 3, the middle one smoothed to .3: weights 1, 10, 1 of 12, three times over.
        let expected = [0.25, 2.5, 0.25];
        for (weight, expected) in weights.iter().zip(expected) {
            assert!((weight - expected).abs() < 1e-12, "{weights:?}");
        }
    }

    #[test]
    fn points_that_are_one_weigh_alike() {
        assert_eq!(weiszfeld(&vec![vec![0.0; 3]; 3]), [1.0; 3]);
        assert_eq!(weiszfeld(&[]), [0.0; 0]);
    }
}
