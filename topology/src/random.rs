//! Random draws from a pinned generator: ChaCha8, keyed by a label and a seed. Only integer
//! arithmetic decides, so one seed gives one graph on every machine.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// A stream of draws.
pub(crate) struct Random(ChaCha8Rng);

impl Random {
    /// The stream of this purpose (at most 24 bytes) and seed.
    pub(crate) fn new(purpose: &str, seed: u64) -> Self {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        key[8..8 + purpose.len()].copy_from_slice(purpose.as_bytes());
        Self(ChaCha8Rng::from_seed(key))
    }

    /// A number below `bound`, all equally likely: draws that fall into the incomplete last
    /// interval of `bound` numbers are thrown away.
    pub(crate) fn index(&mut self, bound: usize) -> usize {
        assert!(bound > 0, "a draw needs at least one outcome");
        let bound = bound as u64;
        let complete = u64::MAX - u64::MAX % bound;
        loop {
            let draw = self.0.next_u64();
            if draw < complete {
                return (draw % bound) as usize;
            }
        }
    }

    /// A number from 0 up to but without 1, in steps of 2⁻⁵³.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Whether an event of this probability happens.
    pub(crate) fn happens(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }

    /// +1 or −1.
    pub(crate) fn sign(&mut self) -> f64 {
        if self.0.next_u32() & 1 == 0 { 1.0 } else { -1.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_seed_gives_same_draws_and_other_purpose_others() {
        let draws = |purpose, seed| {
            let mut random = Random::new(purpose, seed);
            (0..8).map(|_| random.index(1000)).collect::<Vec<_>>()
        };
        assert_eq!(draws("a", 7), draws("a", 7));
        assert_ne!(draws("a", 7), draws("b", 7));
        assert_ne!(draws("a", 7), draws("a", 8));
    }

    #[test]
    fn index_reaches_every_outcome_about_equally() {
        let mut random = Random::new("test", 0);
        let mut counts = [0; 6];
        (0..6000).for_each(|_| counts[random.index(6)] += 1);
        // Five standard deviations of a binomial count around 1000.
        assert!(counts.iter().all(|count| (855..1145).contains(count)), "{counts:?}");
    }
}
