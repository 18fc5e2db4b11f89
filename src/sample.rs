//! Keyed generators: who draws what, reproducibly.
//!
//! Minibatches, permutations, shards and initial parameters come from ChaCha8 with a key derived
//! from a context string and the position in the run, so nobody chooses them freely and anybody
//! can draw them again. Which words a draw consumes is part of the protocol, so the index draw and
//! the shuffle are written out here and pinned by golden values, and no distribution crate is used.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::id::{NodeId, Round, RunId, Slot};

const MINIBATCH_CONTEXT: &str = "rumormill v1 minibatch";

/// A ChaCha8 generator named by a context and a position.
#[derive(Clone, Debug)]
pub struct KeyedRng {
    generator: ChaCha8Rng,
}

impl KeyedRng {
    /// The generator of `context` at a position of a run.
    ///
    /// The key is `blake3::derive_key(context, run ‖ parts…)`. The parts are joined without
    /// separators: within one context use always the same number of parts of the same lengths.
    pub fn new(context: &str, run: &RunId, parts: &[&[u8]]) -> KeyedRng {
        KeyedRng::from_parts(context, std::iter::once(&run.0[..]).chain(parts.iter().copied()))
    }

    /// The generator of `context` for something outside any run, such as a data set's seed.
    ///
    /// The key is `blake3::derive_key(context, seed as u64 LE ‖ index as u64 LE)`.
    pub fn from_seed(context: &str, seed: u64, index: u64) -> KeyedRng {
        KeyedRng::from_parts(context, [&seed.to_le_bytes()[..], &index.to_le_bytes()].into_iter())
    }

    fn from_parts<'a>(context: &str, parts: impl Iterator<Item = &'a [u8]>) -> KeyedRng {
        let mut hasher = blake3::Hasher::new_derive_key(context);
        parts.for_each(|part| {
            hasher.update(part);
        });
        KeyedRng { generator: ChaCha8Rng::from_seed(hasher.finalize().into()) }
    }

    /// The next 32 bits.
    pub fn next_u32(&mut self) -> u32 {
        self.generator.next_u32()
    }

    /// The next 64 bits; the first word drawn is the lower half.
    pub fn next_u64(&mut self) -> u64 {
        u64::from(self.next_u32()) | u64::from(self.next_u32()) << 32
    }

    /// An index below `bound`, each equally likely.
    ///
    /// Lemire's multiplication: of `x · bound` the upper word is the index, and the `2^32 mod bound`
    /// lowest lower words are drawn again, which makes the classes equally large.
    ///
    /// # Panics
    /// If `bound` is zero.
    pub fn index(&mut self, bound: u32) -> u32 {
        assert!(bound > 0, "an index needs something to point at");
        let rejected = bound.wrapping_neg() % bound;
        loop {
            let product = u64::from(self.next_u32()) * u64::from(bound);
            if product as u32 >= rejected {
                return (product >> 32) as u32;
            }
        }
    }

    /// A number in `[0, 1)` with 24 bits, exact in `f32`.
    pub fn unit_f32(&mut self) -> f32 {
        (self.next_u32() >> 8) as f32 * (1.0 / (1 << 24) as f32)
    }

    /// A number in `(0, 1)` with 53 bits: an odd multiple of `2^-53`, so neither zero nor one.
    pub fn unit_f64(&mut self) -> f64 {
        ((self.next_u64() >> 12) as f64 + 0.5) * (1.0 / (1u64 << 52) as f64)
    }

    /// A number in `[-limit, limit)`.
    pub fn symmetric(&mut self, limit: f32) -> f32 {
        (2.0 * self.unit_f32() - 1.0) * limit
    }

    /// Puts the elements into a random order, each equally likely (Fisher–Yates from the end).
    ///
    /// # Panics
    /// If there are more than `2^32 − 1` elements.
    pub fn shuffle<T>(&mut self, elements: &mut [T]) {
        let len = u32::try_from(elements.len()).expect("at most 2^32 − 1 elements");
        for last in (1..len).rev() {
            let other = self.index(last + 1);
            elements.swap(last as usize, other as usize);
        }
    }

    /// The numbers `0..len` in a random order.
    pub fn permutation(&mut self, len: u32) -> Vec<u32> {
        let mut numbers: Vec<u32> = (0..len).collect();
        self.shuffle(&mut numbers);
        numbers
    }
}

/// Draws the minibatch of a probe: `out.len()` rows out of `population`, with replacement.
///
/// A function of run, node, round and slot alone, so with public data anybody can repeat anybody's
/// probe, and nobody can look for a minibatch that suits him.
///
/// # Panics
/// If `population` is zero or above `2^32 − 1`.
pub fn minibatch(
    run: &RunId,
    node: &NodeId,
    round: Round,
    slot: Slot,
    population: usize,
    out: &mut [u32],
) {
    let population = u32::try_from(population).expect("rows are counted in 32 bits");
    let parts: [&[u8]; 3] = [&node.0, &round.0.to_le_bytes(), &slot.0.to_le_bytes()];
    let mut rng = KeyedRng::new(MINIBATCH_CONTEXT, run, &parts);
    out.iter_mut().for_each(|row| *row = rng.index(population));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some_rng() -> KeyedRng {
        KeyedRng::from_seed("rumormill v1 test", 1, 2)
    }

    #[test]
    fn golden_draws_are_reproduced() {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../tests/fixtures/draws.json")).unwrap();
        let run = RunId(std::array::from_fn(|i| i as u8));
        let node = NodeId(std::array::from_fn(|i| 32 + i as u8));
        let mut rows = [0; 16];
        minibatch(&run, &node, Round(3), Slot(2), 1000, &mut rows);
        assert_eq!(golden["minibatch_of_1000"], serde_json::json!(rows));
        let mut rng = some_rng();
        let indices: Vec<u32> = (0..16).map(|_| rng.index(3 << 30)).collect();
        assert_eq!(golden["indices_below_3221225472"], serde_json::json!(indices));
        assert_eq!(golden["permutation_of_12"], serde_json::json!(some_rng().permutation(12)));
    }

    #[test]
    fn indices_are_balanced_for_an_awkward_bound() {
        // 3·2^30 of 2^32 values: without rejection the first third would come twice as often.
        let bound = 3 << 30;
        let mut rng = some_rng();
        let mut thirds = [0u32; 3];
        for _ in 0..30_000 {
            thirds[(rng.index(bound) >> 30) as usize] += 1;
        }
        // Standard deviation 82; five of them is one in a million.
        assert!(thirds.iter().all(|&count| count.abs_diff(10_000) < 410), "{thirds:?}");
    }

    #[test]
    fn permutation_holds_every_number_once() {
        for len in [0, 1, 2, 100] {
            let mut numbers = some_rng().permutation(len);
            numbers.sort_unstable();
            assert_eq!(numbers, (0..len).collect::<Vec<_>>());
        }
    }

    #[test]
    fn shuffles_of_three_are_equally_likely() {
        let mut rng = some_rng();
        let mut counts = std::collections::BTreeMap::new();
        for _ in 0..6000 {
            *counts.entry(rng.permutation(3)).or_insert(0u32) += 1;
        }
        // Standard deviation 29.
        assert_eq!(counts.len(), 6);
        assert!(counts.values().all(|&count| count.abs_diff(1000) < 145), "{counts:?}");
    }

    #[test]
    fn minibatches_differ_by_every_part_of_the_position() {
        let draw = |run, node, round, slot| {
            let mut rows = [0; 16];
            minibatch(&RunId([run; 32]), &NodeId([node; 32]), round, slot, 1000, &mut rows);
            assert!(rows.iter().all(|&row| row < 1000));
            rows
        };
        let rows = draw(0, 0, Round(0), Slot(0));
        assert_eq!(rows, draw(0, 0, Round(0), Slot(0)));
        for other in [
            draw(1, 0, Round(0), Slot(0)),
            draw(0, 1, Round(0), Slot(0)),
            draw(0, 0, Round(1), Slot(0)),
            draw(0, 0, Round(0), Slot(1)),
        ] {
            assert_ne!(rows, other);
        }
    }

    #[test]
    fn units_stay_inside() {
        let mut rng = some_rng();
        for _ in 0..10_000 {
            assert!((0.0..1.0).contains(&rng.unit_f32()));
            let unit = rng.unit_f64();
            assert!(unit > 0.0 && unit < 1.0);
            assert!(rng.symmetric(3.0).abs() <= 3.0);
        }
    }
}
