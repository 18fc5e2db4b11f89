//! The magnitude gate: an origin whose values are of another size than everybody's is out.
//!
//! Two measures of other size. One is absolute, below; the other is relative to how much sizes differ anyway
//! ([`put_out_sizes`]): who trains on other labels sees what the others see as long as nobody knows much, and
//! later measures losses that nobody else has. Where shards differ (Dirichlet) nothing but size tells it then.
//!
//! Zeros and half means sit inside the honest ball, where no distance finds them, and huge values
//! decide every mean; both give themselves away by size. An origin passes while its median magnitude
//! is within [`GATE`](super::sums::GATE) times the typical one of each round, which is asked without
//! sorting: not more than half of its values may be larger, nor smaller.

use super::middle_and_spread;
use super::sums::Window;

/// Origins that pass, in order; all that have values, should none pass.
pub(super) fn gate(window: &Window) -> Vec<usize> {
    let members = window.members();
    let passes = |origin: &usize| {
        let size = window.sizes[*origin];
        2.0 * size.large <= size.all && 2.0 * size.small <= size.all
    };
    let passed: Vec<usize> = members.iter().copied().filter(passes).collect();
    if passed.is_empty() { members } else { passed }
}

/// Sizes within this factor of the middle one are never out, whatever the spread.
const ALIKE: f64 = 1.75;

/// Puts out those of the `most` oddest sizes that are off by more than `max(1.75, 1 + 3 MAD)` times the middle one
/// either way.
pub(super) fn put_out_sizes(window: &Window, held: &mut Vec<usize>, most: usize) {
    let sizes = held.iter().map(|&origin| window.size(origin));
    let Some((middle, spread)) = middle_and_spread(sizes).filter(|(middle, _)| *middle > 0.0)
    else {
        return;
    };
    let bound = ALIKE.max(1.0 + spread / middle);
    let odd = |origin: usize| {
        let ratio = window.size(origin) / middle;
        if ratio > 0.0 { ratio.max(1.0 / ratio) } else { f64::INFINITY }
    };
    let mut ranked: Vec<(f64, usize)> = held.iter().map(|&origin| (odd(origin), origin)).collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let out = ranked.iter().take(most).filter(|(odd, _)| *odd > bound);
    let out: Vec<usize> = out.map(|entry| entry.1).collect();
    held.retain(|origin| !out.contains(origin));
}

#[cfg(test)]
mod tests {
    use super::super::tests::{momenta, round};
    use super::*;

    #[test]
    fn origins_of_another_size_are_out() {
        // Typical is 1. The fourth is at 4.1, the fifth at .24, the sixth at 4, the last zero.
        let round = round(&[
            &[1.0, -1.0, 1.0, 4.1, 0.24, 4.0, 0.0],
            &[1.0, 1.0, -0.9, -4.1, 0.24, -4.0, 0.0],
            &[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
        ]);
        assert_eq!(round.typical(), 1.0);
        assert_eq!(gate(&Window::new(&momenta(&[&round], 7))), [0, 1, 2, 5]);
    }

    #[test]
    fn one_wild_value_does_not_put_its_origin_out() {
        let round = round(&[&[1.0, 1.0, 100.0], &[1.0, 1.0, 1.0], &[1.0, 1.0, 1.0]]);
        assert_eq!(gate(&Window::new(&momenta(&[&round], 3))), [0, 1, 2]);
    }

    #[test]
    fn who_is_odd_beside_how_much_sizes_differ_is_out() {
        let left = |sizes: &[f64], most| {
            let round = round(&[sizes, &sizes.iter().map(|size| -size).collect::<Vec<f64>>()]);
            let rounds = [&round];
            let window = Window::new(&momenta(&rounds, sizes.len()));
            let mut held = window.members();
            put_out_sizes(&window, &mut held, most);
            held
        };
        assert_eq!(left(&[1.0, 1.02, 0.98, 1.0, 1.7, 1.8, 0.5], 2), [0, 1, 2, 3, 4]);
        assert_eq!(left(&[1.0, 1.02, 0.98, 1.0, 1.7, 1.8, 0.5], 1), [0, 1, 2, 3, 4, 5]);
        // Where sizes differ by a third of the middle one, 1.2, twice as much is nothing odd: 1 + 3 · 1.4826 / 3 = 2.5.
        assert_eq!(left(&[1.0, 0.75, 1.25, 0.8, 1.2, 2.4, 3.2], 2), [0, 1, 2, 3, 4, 5]);
        assert_eq!(left(&[0.0; 3], 1), [0, 1, 2]);
    }

    #[test]
    fn somebody_always_passes() {
        // Each origin has more than half of its values far from the typical 1.
        let round = round(&[&[0.1, 10.0], &[0.1, 10.0], &[1.0, 1.0]]);
        assert_eq!(gate(&Window::new(&momenta(&[&round], 2))), [0, 1]);
    }
}
