//! Trimmed mean: of each slot's values, the mean without the largest and smallest.
//!
//! A slot has the values of a few origins only, `k` of `n`. Cut at each end is the share of them
//! that may be faulty, `⌈k f / n⌉`, as long as one is left: three values give the median.

use super::{Choice, Limits, Momenta, Selection, everybody, sorted};
use crate::id::Origin;

/// The trimmed mean.
pub(super) struct TrimmedMean;

impl Selection for TrimmedMean {
    fn choose(&self, momenta: &Momenta<'_>, _faulty: usize) -> Choice {
        everybody(momenta)
    }

    fn combine(&self, values: &[(Origin, f64)], weights: &[f64], limits: Limits) -> Option<f64> {
        let sorted = sorted(values, weights);
        let origins = weights.iter().filter(|&&weight| weight > 0.0).count();
        let most = sorted.len().checked_sub(1)? / 2;
        let cut = (sorted.len() * limits.faulty).div_ceil(origins).min(most);
        let middle = &sorted[cut..sorted.len() - cut];
        Some(middle.iter().sum::<f64>() / middle.len() as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{LIMITS, momenta, round};
    use super::*;

    #[test]
    fn the_share_that_may_be_faulty_is_cut_at_each_end() {
        let n = f64::NAN;
        let round = round(&[
            &[1.0, 2.0, 4.0, 1e9, -1e9, 3.0, 2.0],
            &[5.0, 1.0, 1e9, n, n, n, n],
            &[1.0, 4.0, n, n, n, n, n],
            &[n; 7],
        ]);
        let weights = TrimmedMean.choose(&momenta(&[&round], 7), 1).weights;
        let combine = |slot: usize, faulty| {
            let limits = Limits { faulty, ..LIMITS };
            TrimmedMean.combine(&round.values().slots[slot], &weights, limits)
        };
        // Seven values, one faulty of seven: 1, 2, 2, 3, 4 are left; with two, 2, 2, 3.
        assert_eq!(combine(0, 1), Some(12.0 / 5.0));
        assert_eq!(combine(0, 2), Some(7.0 / 3.0));
        assert_eq!(combine(1, 1), Some(5.0));
        // Two values are never cut: which of them lies, nobody knows.
        assert_eq!(combine(2, 2), Some(2.5));
        assert_eq!(combine(3, 1), None);
    }
}
