//! The magnitude gate: an origin whose values are of another size than everybody's is out.
//!
//! Zeros and half means sit inside the honest ball, where no distance finds them, and huge values
//! decide every mean; both give themselves away by size. An origin passes while its median magnitude
//! is within [`GATE`](super::sums::GATE) times the typical one of each round, which is asked without
//! sorting: not more than half of its values may be larger, nor smaller.

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
    fn somebody_always_passes() {
        // Each origin has more than half of its values far from the typical 1.
        let round = round(&[&[0.1, 10.0], &[0.1, 10.0], &[1.0, 1.0]]);
        assert_eq!(gate(&Window::new(&momenta(&[&round], 2))), [0, 1]);
    }
}
