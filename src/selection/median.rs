//! Coordinate median: of each slot's values, the middle one.
//!
//! A safety cap rather than a defence: at low signal-to-noise ratio it biases every step.

use super::{Momenta, Selection, present};
use crate::id::Origin;

/// The coordinate median.
pub(super) struct Median;

impl Selection for Median {
    fn weights(&self, momenta: &Momenta<'_>, _faulty: usize) -> Vec<f64> {
        present(momenta).iter().map(|&present| f64::from(u8::from(present))).collect()
    }

    fn combine(&self, values: &[(Origin, f64)], weights: &[f64]) -> Option<f64> {
        let counted = values.iter().filter(|(origin, _)| weights[origin.index()] > 0.0);
        let mut sorted: Vec<f64> = counted.map(|&(_, value)| value).collect();
        sorted.sort_by(f64::total_cmp);
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
    use super::super::tests::round;
    use super::*;

    #[test]
    fn median_ignores_a_minority_of_any_size() {
        let round = round(&[&[1.0, 1.5, 2.0, 1e9, -1e9], &[1.0, 2.0, 5.0, 6.0]]);
        let momenta = Momenta { rounds: &[&round], beta: 0.9, origins: 5 };
        let weights = Median.weights(&momenta, 1);
        assert_eq!(Median.combine(&round.slots[0], &weights), Some(1.5));
        assert_eq!(Median.combine(&round.slots[1], &weights), Some(3.5));
    }
}
