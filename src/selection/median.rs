//! Coordinate median: of each slot's values, the middle one.
//!
//! A safety cap rather than a defence: at low signal-to-noise ratio it biases every step.

use super::{Choice, Limits, Momenta, Selection, everybody, sorted};
use crate::id::Origin;

/// The coordinate median.
pub(super) struct Median;

impl Selection for Median {
    fn choose(&self, momenta: &Momenta<'_>, _faulty: usize) -> Choice {
        everybody(momenta)
    }

    fn combine(&self, values: &[(Origin, f64)], weights: &[f64], _: Limits) -> Option<f64> {
        let sorted = sorted(values, weights);
        let middle = sorted.len() / 2;
        match sorted.len() {
            0 => None,
            n if n % 2 == 1 => Some(sorted[middle]),
            _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{LIMITS, momenta, round};
    use super::*;

    #[test]
    fn median_ignores_a_minority_of_any_size() {
        let round = round(&[&[1.0, 1.5, 2.0, 1e9, -1e9], &[1.0, 2.0, 5.0, 6.0]]);
        let weights = Median.choose(&momenta(&[&round], 5), 1).weights;
        let slots = &round.values().slots;
        assert_eq!(Median.combine(&slots[0], &weights, LIMITS), Some(1.5));
        assert_eq!(Median.combine(&slots[1], &weights, LIMITS), Some(3.5));
    }
}
