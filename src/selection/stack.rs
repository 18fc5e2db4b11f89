//! The whole stack: gate, size, standing, trust, then nearest-neighbor mixing among the rest.
//!
//! Each catches what the others cannot see: the gate what is of another size (zeros, huge values),
//! trust what is inside the honest ball but points elsewhere (half means), mixing what agrees with the
//! direction and yet stands apart. Size, standing, trust and mixing drop no more than `f` in all: when the others have put
//! `f` out, everybody who is left is everybody's neighbor.

use super::nearest::votes;
use super::sums::Window;
use super::trust::{AVERAGING_CLIP, newest, scores, trusted};
use super::{Choice, Momenta, Selection};

/// Gate, trust, nearest-neighbor mixing.
pub(super) struct Stack;

impl Selection for Stack {
    fn uses_window(&self) -> bool {
        true
    }

    fn clip(&self) -> Option<f64> {
        Some(AVERAGING_CLIP)
    }

    fn choose(&self, momenta: &Momenta<'_>, faulty: usize) -> Choice {
        let window = Window::new(&newest(momenta));
        let members = window.members();
        let held = trusted(&window, momenta.standing, faulty);
        let kept = members.len().saturating_sub(faulty).clamp(1, held.len().max(1));
        let weights = votes(&held, kept, window.origins, |a, b| window.clipped_distance(a, b));
        Choice { weights, trust: scores(&window, &members) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{gradient, momenta, round, share_of_last};
    use super::super::trust::Trust;
    use super::*;

    #[test]
    fn mixing_drops_who_agrees_and_yet_stands_apart() {
        // The last two see what all see, and one of them twice as large as the clip lets pass: no
        // gate, no distrust, but no honest origin's neighbors.
        for seed in 0..10 {
            let mut values = gradient(9, 0.3, seed);
            for (at, slot) in values.iter_mut().enumerate() {
                let mean = slot.iter().sum::<f64>() / 9.0;
                let apart = if at.is_multiple_of(2) { 1.5 } else { -1.5 };
                slot.extend([mean + apart; 2]);
            }
            let round = round(&values.iter().map(Vec::as_slice).collect::<Vec<_>>());
            let rounds = [&round];
            let momenta = momenta(&rounds, 11);
            let trust = share_of_last(&Trust.choose(&momenta, 2), 2);
            let stack = share_of_last(&Stack.choose(&momenta, 2), 2);
            assert!(stack <= trust && stack < 0.05, "seed {seed}: {stack}, trust {trust}");
        }
    }

    #[test]
    fn without_liars_nearly_everybody_counts_alike() {
        let values = gradient(9, 1.0, 1);
        let round = round(&values.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let weights = Stack.choose(&momenta(&[&round], 9), 0).weights;
        assert!(weights.iter().all(|weight| (weight - 1.0).abs() < 1e-12), "{weights:?}");
    }
}
