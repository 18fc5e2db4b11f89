//! What the rules need of a round, summed over its slots once: a window of rounds is then a sum of
//! sums, a few numbers for each pair of origins that share a slot.
//!
//! For scoring, a value is taken in units of its round's typical magnitude, the median of `|v|` over
//! all values of the round, and clipped at [`SCORING_CLIP`] of them. The unit is the round's and not
//! the window's, so that a round's sums never change, and a falling loss does not let old rounds
//! drown the new ones.

use std::sync::OnceLock;

use super::Momenta;
use crate::round::RoundValues;

/// Values are clipped at so many typical magnitudes before they are compared (`reference`: without
/// it, one huge value poisons the score of all who share its slot). Twice the median is 1.35σ.
pub(super) const SCORING_CLIP: f64 = 2.0;

/// An origin whose median magnitude is off by more than this either way is out for the round.
pub(super) const GATE: f64 = 4.0;

/// No value adds more than so many typical magnitudes to its origin's size.
const SIZE_CLIP: f64 = 8.0;

/// The records of a round with the sums over them, which are made when first asked for.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    values: RoundValues,
    /// Follows from `values`, which never change.
    sums: OnceLock<Sums>,
}

impl From<RoundValues> for Measured {
    fn from(values: RoundValues) -> Measured {
        Measured { values, sums: OnceLock::new() }
    }
}

impl Measured {
    /// The records themselves.
    pub fn values(&self) -> &RoundValues {
        &self.values
    }

    /// The median magnitude of all values; where that is zero their mean magnitude.
    pub fn typical(&self) -> f64 {
        self.sums().typical
    }

    pub(super) fn sums(&self) -> &Sums {
        self.sums.get_or_init(|| Sums::new(&self.values))
    }
}

/// Sums over one round.
#[derive(Clone, Debug, Default)]
pub(super) struct Sums {
    typical: f64,
    /// Pairs that share a slot, by `(a, b)` with `a < b`.
    pairs: Vec<Pair>,
    /// By roster position, as far as there are any.
    pub(super) sizes: Vec<Sizes>,
}

/// Sums over the slots that two origins share.
#[derive(Clone, Copy, Debug, Default)]
struct Pair {
    a: u16,
    b: u16,
    slots: f64,
    /// Of squared differences, unclipped and in the unit of the loss.
    difference: f64,
    /// Of products of clipped values.
    product: f64,
    /// Of squares of `a`'s clipped values, and of `b`'s.
    energy: [f64; 2],
}

/// How many values an origin has, and of what size.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Sizes {
    pub(super) all: f64,
    /// Above [`GATE`] typical magnitudes.
    pub(super) large: f64,
    /// Below the `GATE`-th part of the typical magnitude.
    pub(super) small: f64,
    /// In slots with another origin's value.
    pub(super) shared: f64,
    /// Sum of magnitudes, in typical magnitudes and at most [`SIZE_CLIP`] each.
    pub(super) magnitude: f64,
}

impl Sums {
    fn new(values: &RoundValues) -> Sums {
        let typical = typical(values);
        let unit = if typical > 0.0 { typical } else { 1.0 };
        let clipped = |value: f64| (value / unit).clamp(-SCORING_CLIP, SCORING_CLIP);
        let last = values.slots.iter().filter_map(|slot| slot.last());
        let origins = last.map(|entry| entry.0.index() + 1).max().unwrap_or(0);
        let mut sizes = vec![Sizes::default(); origins];
        let mut places: Vec<Vec<(usize, usize)>> = vec![Vec::new(); origins];
        for (slot, entries) in values.slots.iter().enumerate() {
            for (at, &(origin, value)) in entries.iter().enumerate() {
                let size = &mut sizes[origin.index()];
                size.all += 1.0;
                size.large += f64::from(u8::from(value.abs() > GATE * typical));
                size.small += f64::from(u8::from(value.abs() < typical / GATE));
                size.shared += f64::from(u8::from(entries.len() > 1));
                size.magnitude += (value.abs() / unit).min(SIZE_CLIP);
                places[origin.index()].push((slot, at));
            }
        }
        // One row of pairs at a time: a square of all origins would not fit large rosters.
        let mut row = vec![Pair::default(); origins];
        let mut pairs = Vec::new();
        for (a, places) in places.iter().enumerate() {
            for &(slot, at) in places {
                let entries = &values.slots[slot];
                let (raw_a, value_a) = (entries[at].1, clipped(entries[at].1));
                for &(b, raw_b) in &entries[at + 1..] {
                    let value_b = clipped(raw_b);
                    let sums = &mut row[b.index()];
                    sums.slots += 1.0;
                    sums.difference += (raw_a - raw_b) * (raw_a - raw_b);
                    sums.product += value_a * value_b;
                    sums.energy[0] += value_a * value_a;
                    sums.energy[1] += value_b * value_b;
                }
            }
            for (b, sums) in row.iter_mut().enumerate().skip(a + 1) {
                if sums.slots > 0.0 {
                    pairs.push(Pair { a: a as u16, b: b as u16, ..*sums });
                    *sums = Pair::default();
                }
            }
        }
        Sums { typical, pairs, sizes }
    }
}

fn typical(values: &RoundValues) -> f64 {
    let mut magnitudes: Vec<f64> =
        values.slots.iter().flatten().map(|(_, value)| value.abs()).collect();
    if magnitudes.is_empty() {
        return 0.0;
    }
    let mean = magnitudes.iter().sum::<f64>() / magnitudes.len() as f64;
    let middle = magnitudes.len() / 2;
    let (_, median, _) = magnitudes.select_nth_unstable_by(middle, f64::total_cmp);
    if *median > 0.0 { *median } else { mean }
}

/// Sums over a window of rounds, each weighted by `β^(2·age)`, for all pairs of origins: row-major
/// squares.
pub(super) struct Window {
    pub(super) origins: usize,
    pub(super) slots: Vec<f64>,
    difference: Vec<f64>,
    product: Vec<f64>,
    /// Of the row's origin, over the slots that it shares with the column's.
    energy: Vec<f64>,
    pub(super) sizes: Vec<Sizes>,
}

impl Window {
    pub(super) fn new(momenta: &Momenta<'_>) -> Window {
        let origins = momenta.origins;
        let square = vec![0.0; origins * origins];
        let mut window = Window {
            origins,
            slots: square.clone(),
            difference: square.clone(),
            product: square.clone(),
            energy: square,
            sizes: vec![Sizes::default(); origins],
        };
        let mut factor = 1.0;
        for round in momenta.rounds.iter().rev() {
            let sums = round.sums();
            for pair in &sums.pairs {
                let (a, b) = (usize::from(pair.a), usize::from(pair.b));
                let (at, mirrored) = (a * origins + b, b * origins + a);
                window.slots[at] += factor * pair.slots;
                window.difference[at] += factor * pair.difference;
                window.product[at] += factor * pair.product;
                window.energy[at] += factor * pair.energy[0];
                window.energy[mirrored] += factor * pair.energy[1];
            }
            for (sum, size) in window.sizes.iter_mut().zip(&sums.sizes) {
                sum.all += factor * size.all;
                sum.large += factor * size.large;
                sum.small += factor * size.small;
                sum.shared += factor * size.shared;
                sum.magnitude += factor * size.magnitude;
            }
            factor *= momenta.beta * momenta.beta;
        }
        momenta.excluded.iter().for_each(|origin| window.sizes[origin.index()] = Sizes::default());
        for a in 0..origins {
            for b in a + 1..origins {
                let (at, mirrored) = (a * origins + b, b * origins + a);
                window.slots[mirrored] = window.slots[at];
                window.difference[mirrored] = window.difference[at];
                window.product[mirrored] = window.product[at];
            }
        }
        window
    }

    /// Origins with any value, without the excluded.
    pub(super) fn members(&self) -> Vec<usize> {
        (0..self.origins).filter(|&origin| self.sizes[origin].all > 0.0).collect()
    }

    /// The mean magnitude of an origin's values, in typical ones.
    pub(super) fn size(&self, origin: usize) -> f64 {
        let Sizes { all, magnitude, .. } = self.sizes[origin];
        if all > 0.0 { magnitude / all } else { 0.0 }
    }

    /// The standard deviation of an origin's correlation with all others together, if they have nothing in
    /// common: one over the root of the values that it shares with them.
    pub(super) fn chance(&self, origin: usize) -> f64 {
        let row = &self.slots[origin * self.origins..(origin + 1) * self.origins];
        1.0 / row.iter().sum::<f64>().max(1.0).sqrt()
    }

    /// The mean squared difference of two origins over the slots that they share, in the unit of the
    /// loss; infinite without any, zero to itself.
    pub(super) fn distance(&self, a: usize, b: usize) -> f64 {
        let at = a * self.origins + b;
        match () {
            () if a == b => 0.0,
            () if self.slots[at] > 0.0 => self.difference[at] / self.slots[at],
            () => f64::INFINITY,
        }
    }

    /// The same of clipped values, in typical magnitudes.
    pub(super) fn clipped_distance(&self, a: usize, b: usize) -> f64 {
        let (at, mirrored) = (a * self.origins + b, b * self.origins + a);
        match () {
            () if a == b => 0.0,
            () if self.slots[at] > 0.0 => {
                let squares = self.energy[at] + self.energy[mirrored];
                (squares - 2.0 * self.product[at]) / self.slots[at]
            }
            () => f64::INFINITY,
        }
    }

    /// The correlation (about zero) of clipped values over the slots that two origins share; zero
    /// without any, or where one has only zeros.
    pub(super) fn correlation(&self, a: usize, b: usize) -> f64 {
        let (at, mirrored) = (a * self.origins + b, b * self.origins + a);
        let energy = self.energy[at] * self.energy[mirrored];
        if energy > 0.0 { (self.product[at] / energy.sqrt()).clamp(-1.0, 1.0) } else { 0.0 }
    }
}

/// How many of the newest rounds are worth comparing: as many as give an origin
/// `L* = 10 + 20 (1/SNR + 1/SNR²)` slots in common with others, and all there are if they are fewer.
///
/// The signal is what two origins have in common along the same direction (mean product), the noise
/// what is left of the mean square: the variance between nodes. Liars only make the signal look
/// weaker, and the window longer.
pub(super) fn rounds_needed(rounds: &[&Measured]) -> usize {
    let (mut common, mut all) = (0.0, 0.0);
    for pair in rounds.iter().flat_map(|round| &round.sums().pairs) {
        common += pair.product;
        all += (pair.energy[0] + pair.energy[1]) / 2.0;
    }
    let noise_to_signal = if common > 0.0 { (all - common) / common } else { f64::INFINITY };
    let wanted = 10.0 + 20.0 * (noise_to_signal + noise_to_signal * noise_to_signal);
    let mut shared = 0.0;
    for (age, round) in rounds.iter().rev().enumerate() {
        let sizes = &round.sums().sizes;
        let present = sizes.iter().filter(|size| size.all > 0.0).count();
        shared += sizes.iter().map(|size| size.shared).sum::<f64>() / present.max(1) as f64;
        if shared >= wanted {
            return age + 1;
        }
    }
    rounds.len()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{momenta, round};
    use super::*;

    #[test]
    fn sums_of_a_round_by_hand() {
        // Magnitudes 1, 1, 2, 2, 10: typical 2; the 10 counts as 2 · 2 = 4, in units 2.
        let round = round(&[&[1.0, -2.0, 10.0], &[1.0, f64::NAN, -2.0]]);
        let sums = round.sums();
        assert_eq!(round.typical(), 2.0);
        let pairs: Vec<(u16, u16)> = sums.pairs.iter().map(|pair| (pair.a, pair.b)).collect();
        assert_eq!(pairs, [(0, 1), (0, 2), (1, 2)]);
        let pair = sums.pairs[1];
        assert_eq!((pair.slots, pair.difference), (2.0, 90.0));
        // .5 · 2 + .5 · (−1); .25 + .25; 4 + 1.
        assert_eq!((pair.product, pair.energy), (0.5, [0.5, 5.0]));
        assert_eq!(
            sums.sizes[2],
            Sizes { all: 2.0, large: 1.0, small: 0.0, shared: 2.0, magnitude: 6.0 }
        );
    }

    #[test]
    fn distances_and_correlations_are_normalised_by_overlap() {
        let n = f64::NAN;
        let newest = round(&[&[1.0, 2.0, n], &[-1.0, -2.0, n], &[1.0, n, 2.0]]);
        let oldest = round(&[&[1.0, n, 2.0, n]]);
        let rounds = [&oldest, &newest];
        let window = Window::new(&momenta(&rounds, 4));
        assert_eq!((window.distance(0, 1), window.distance(1, 0)), (1.0, 1.0));
        assert_eq!(window.distance(0, 2), 1.0);
        assert_eq!(window.distance(1, 2), f64::INFINITY);
        assert_eq!(window.clipped_distance(1, 2), f64::INFINITY);
        assert_eq!(window.correlation(0, 1), 1.0);
        assert_eq!(window.correlation(1, 2), 0.0);
        assert_eq!(window.members(), [0, 1, 2]);
        assert_eq!(window.slots[2], 1.0 + 0.81);
    }

    #[test]
    fn the_window_grows_with_the_noise() {
        // Two origins, forty shared slots a round. With product = (1 − x)·energy, SNR = (1 − x)/x.
        let rounds = |noise: f64| -> Vec<Measured> {
            let slot = |k: usize| {
                let sign = if k.is_multiple_of(2) { noise } else { -noise };
                vec![1.0 + sign, 1.0 - sign]
            };
            let slots: Vec<Vec<f64>> = (0..40).map(slot).collect();
            let slots: Vec<&[f64]> = slots.iter().map(Vec::as_slice).collect();
            (0..6).map(|_| round(&slots)).collect()
        };
        let needed = |noise| {
            let rounds = rounds(noise);
            rounds_needed(&rounds.iter().collect::<Vec<_>>())
        };
        // Product 1 − .04, mean square 1 + .04: SNR .96/.08 = 12, L* = 10 + 20/12 + 20/144 < 40.
        assert_eq!(needed(0.2), 1);
        // (1 − .36)/(2 · .36) = .89: L* = 10 + 22.5 + 25.3 = 57.8, two rounds of 40.
        assert_eq!(needed(0.6), 2);
        // Opposed values have nothing in common: all there are.
        assert_eq!(needed(1.5), 6);
    }
}
