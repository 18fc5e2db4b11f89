//! Trust: does an origin see along the same directions what the others see?
//!
//! ```text
//! trust_i = weighted median over j ≠ i of corr(i, j),   weights = slots that i and j share
//! ```
//!
//! Leave-one-out by construction. With few probes a direction the median of "the others at the same
//! slot" is one or two values, of which a liar may be one; the median over *pairs* is of all origins
//! that an origin met in the window, and holds while fewer than half of them lie. Liars that agree
//! among themselves gain nothing by it, which a mean of correlations would grant them.
//!
//! Of the `f` least trusted those are out that lie below `max(0, min(median − 3 MAD, median/2))`: who
//! sees the opposite of most is never needed, and who agrees half as much as the others does no harm.
//! Without the half, one honest origin in ten is out every round (MAD of eleven is itself noisy). Who is below by no
//! more than chance stays. Before that the gate, sizes and [`super::Standing`] have their say.

use super::gate::{gate, put_out_sizes};
use super::sums::{Measured, Window, rounds_needed};
use super::{Choice, Momenta, Selection, middle_and_spread};

/// No value counts for more than this many typical magnitudes of its round in the averages: 4σ of
/// normal values, so that honest rounds are hardly touched.
pub(super) const AVERAGING_CLIP: f64 = 6.0;

/// Distrust must be more than so many standard deviations of chance: late in training, or with shards that differ,
/// there is nothing to agree on, and whom to put out is better left to the mixing.
const CHANCE: f64 = 1.5;

/// Gate and trust alone: everybody who is left counts alike.
pub(super) struct Trust;

impl Selection for Trust {
    fn uses_window(&self) -> bool {
        true
    }

    fn clip(&self) -> Option<f64> {
        Some(AVERAGING_CLIP)
    }

    fn choose(&self, momenta: &Momenta<'_>, faulty: usize) -> Choice {
        let window = Window::new(&newest(momenta));
        let trust = scores(&window, &window.members());
        let mut weights = vec![0.0; momenta.origins];
        for origin in trusted(&window, momenta.standing, faulty) {
            weights[origin] = 1.0;
        }
        Choice { weights, trust }
    }
}

/// As many of the newest rounds as the noise asks for.
pub(super) fn newest<'a>(momenta: &Momenta<'a>) -> Momenta<'a> {
    let rounds: &'a [&'a Measured] = momenta.rounds;
    Momenta { rounds: &rounds[rounds.len() - rounds_needed(rounds)..], ..*momenta }
}

/// Those that pass the gate and are trusted, in order. Of those that pass, no more than `faulty` are out: by size, then by
/// their standing in certified rounds as far as there is any, then by the window.
pub(super) fn trusted(window: &Window, standing: &[Option<f64>], faulty: usize) -> Vec<usize> {
    let mut held = gate(window);
    let fewest = held.len().saturating_sub(faulty);
    put_out_sizes(window, &mut held, faulty);
    let left = held.len() - fewest.min(held.len());
    put_out(&mut held, left, |origin| standing.get(origin).copied().flatten());
    let trust = scores(window, &held);
    let left = held.len() - fewest.min(held.len());
    put_out(&mut held, left, |origin| Some(trust[origin] + CHANCE * window.chance(origin)));
    held
}

/// Puts out those of the `most` least that are below `max(0, min(median − 3 MAD, median/2))`. Those without
/// a value stay.
fn put_out(held: &mut Vec<usize>, most: usize, value: impl Fn(usize) -> Option<f64>) {
    let mut ranked: Vec<(f64, usize)> =
        held.iter().filter_map(|&origin| Some((value(origin)?, origin))).collect();
    ranked.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    // Where all abstained there is nobody to trust.
    let values = ranked.iter().map(|(value, _)| *value);
    let Some((middle, spread)) = middle_and_spread(values) else { return };
    let floor = (middle - spread).min(middle / 2.0).max(0.0);
    let out = ranked.iter().take(most).filter(|(value, _)| *value < floor);
    let out: Vec<usize> = out.map(|entry| entry.1).collect();
    held.retain(|origin| !out.contains(origin));
}

/// The trust of every origin, measured against `others` only; 0 for those who met none of them.
pub(super) fn scores(window: &Window, others: &[usize]) -> Vec<f64> {
    let score = |origin: usize| {
        let met = others.iter().filter(|&&other| other != origin);
        let mut pairs: Vec<(f64, f64)> = met
            .map(|&other| {
                (window.correlation(origin, other), window.slots[origin * window.origins + other])
            })
            .filter(|(_, slots)| *slots > 0.0)
            .collect();
        weighted_median(&mut pairs)
    };
    (0..window.origins).map(score).collect()
}

/// The value up to which half of the weight lies; 0 without any.
fn weighted_median(values: &mut [(f64, f64)]) -> f64 {
    values.sort_by(|a, b| a.0.total_cmp(&b.0));
    let total: f64 = values.iter().map(|(_, weight)| weight).sum();
    let mut below = 0.0;
    let half = values.iter().find(|(_, weight)| {
        below += weight;
        2.0 * below >= total
    });
    half.map_or(0.0, |(value, _)| *value)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{gradient, momenta, round, share_of_last};
    use super::*;

    #[test]
    fn the_weighted_median_by_hand() {
        assert_eq!(weighted_median(&mut [(0.5, 1.0), (-1.0, 1.0), (0.2, 1.0)]), 0.2);
        assert_eq!(weighted_median(&mut [(0.5, 3.0), (-1.0, 1.0), (0.2, 1.0)]), 0.5);
        assert_eq!(weighted_median(&mut []), 0.0);
    }

    #[test]
    fn scores_by_hand() {
        // Correlations: 0 and 1 agree fully, 2 opposes both, 3 met nobody.
        let n = f64::NAN;
        let round = round(&[&[1.0, 1.0, -1.0, n], &[-1.0, -1.0, 1.0, n], &[n, n, n, 1.0]]);
        let window = Window::new(&momenta(&[&round], 4));
        assert_eq!(scores(&window, &[0, 1, 3]), [1.0, 1.0, -1.0, 0.0]);
    }

    /// The rule's choice among 11 honest origins and 4 that tell `lie(slot's honest values)`, at a
    /// signal-to-noise ratio of 1.
    fn choice(seed: u64, lie: impl Fn(&[f64]) -> f64) -> Choice {
        let mut values = gradient(11, 1.0, seed);
        for slot in &mut values {
            let told = lie(slot);
            slot.extend([told; 4]);
        }
        let round = round(&values.iter().map(Vec::as_slice).collect::<Vec<_>>());
        Trust.choose(&momenta(&[&round], 15), 4)
    }

    #[test]
    fn liars_inside_the_honest_ball_are_out() {
        let mean = |honest: &[f64]| honest.iter().sum::<f64>() / honest.len() as f64;
        for seed in 0..10 {
            let half = choice(seed, |honest| -0.5 * mean(honest));
            let zero = choice(seed, |_| 0.0);
            let flipped = choice(seed, |honest| -honest[0]);
            for choice in [half, zero, flipped] {
                assert_eq!(share_of_last(&choice, 4), 0.0, "seed {seed}: {choice:?}");
                assert_eq!(choice.weights.iter().sum::<f64>(), 11.0, "seed {seed}: {choice:?}");
            }
        }
    }

    #[test]
    fn liars_that_agree_among_themselves_gain_no_trust() {
        // Against the sign of the mean by its size: 3 of 14 partners agree fully, 11 oppose.
        for seed in 0..10 {
            let choice = choice(seed, |honest| -honest.iter().sum::<f64>().signum());
            assert!(choice.trust[11..].iter().all(|&trust| trust < 0.0), "seed {seed}");
            assert_eq!(share_of_last(&choice, 4), 0.0, "seed {seed}: {choice:?}");
        }
    }

    #[test]
    fn more_liars_than_tolerated_are_not_all_put_out() {
        let mut values = gradient(9, 0.5, 3);
        values.iter_mut().for_each(|slot| slot.iter_mut().skip(6).for_each(|v| *v = -*v));
        let round = round(&values.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let kept = |faulty| Trust.choose(&momenta(&[&round], 9), faulty).weights[6..].to_vec();
        assert_eq!(kept(3), [0.0; 3]);
        assert_eq!(kept(2).iter().sum::<f64>(), 1.0);
    }

    #[test]
    fn among_alike_nobody_is_out() {
        for seed in 0..10 {
            let values = gradient(9, 1.0, seed);
            let round = round(&values.iter().map(Vec::as_slice).collect::<Vec<_>>());
            let weights = Trust.choose(&momenta(&[&round], 9), 2).weights;
            assert_eq!(weights, [1.0; 9], "seed {seed}");
        }
    }
}
