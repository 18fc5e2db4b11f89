//! Directions: Rademacher vectors regenerated from shared seeds.
//!
//! A direction has one sign per parameter. Nobody sends it: everybody draws it again from
//! `(run, round, slot)`. The drawing is part of the wire protocol and changes only with its
//! version:
//!
//! ```text
//! key    = blake3::derive_key("rumormill v1 direction", run_id ‖ round as u64 LE ‖ slot as u32 LE)
//! stream = index of the tensor in the layout            (ChaCha8, 64-bit nonce)
//! parameter p of the tensor: 64-byte block p / 512, little-endian word p % 16,
//!                            bit 31 − (p % 512) / 16; a set bit means −1
//! ```
//!
//! So any block of any tensor is reachable without the ones before it, threads agree, and sixteen
//! neighboring parameters take the same bit of sixteen neighboring words, which is what a vector
//! unit wants: one shift and one sign flip per row of sixteen.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::id::{Round, RunId, Slot};

/// Parameters whose signs one ChaCha block holds: 64 bytes, one bit each.
pub const BLOCK_PARAMETERS: usize = 512;

/// The words of one ChaCha block; bit `31 − row` of word `lane` is the sign of parameter
/// `16·row + lane` of the block.
pub type SignBlock = [u32; 16];

const CONTEXT: &str = "rumormill v1 direction";

/// One shared direction: a sign for every parameter of the model, as the key that regenerates it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Direction {
    key: [u8; 32],
}

impl Direction {
    /// The direction of a slot of a round of a run.
    pub fn new(run: &RunId, round: Round, slot: Slot) -> Direction {
        let mut input = [0; 44];
        input[..32].copy_from_slice(&run.0);
        input[32..40].copy_from_slice(&round.0.to_le_bytes());
        input[40..].copy_from_slice(&slot.0.to_le_bytes());
        Direction { key: blake3::derive_key(CONTEXT, &input) }
    }

    /// The ChaCha8 key.
    pub fn key(&self) -> &[u8; 32] {
        &self.key
    }

    /// Writes the signs of parameters `512·first_block ..` of a tensor, one block per element.
    ///
    /// See [`SignBlock`] for the order of the bits. Generating four blocks or more at a time is
    /// cheapest: the generator works in groups of four.
    pub fn sign_words(&self, tensor: usize, first_block: u64, out: &mut [SignBlock]) {
        /// Blocks copied at a time, through a buffer that stays in the first-level cache.
        const COPY_BLOCKS: usize = 16;
        let mut generator = self.generator(tensor, first_block);
        let mut bytes = [0; 64 * COPY_BLOCKS];
        for blocks in out.chunks_mut(COPY_BLOCKS) {
            let bytes = &mut bytes[..64 * blocks.len()];
            generator.fill_bytes(bytes);
            let words = blocks.as_flattened_mut();
            for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *word = u32::from_le_bytes(*bytes);
            }
        }
    }

    /// The sign, +1 or −1, of parameter `p` of a tensor.
    ///
    /// The slow and obvious form, for tests and for looking at single parameters.
    pub fn sign(&self, tensor: usize, p: u64) -> i8 {
        let mut generator = self.generator(tensor, p / 512);
        let mut word = 0;
        for _ in 0..=p % 16 {
            word = generator.next_u32();
        }
        let bit = 31 - (p % 512) / 16;
        if word >> bit & 1 == 1 { -1 } else { 1 }
    }

    fn generator(&self, tensor: usize, block: u64) -> ChaCha8Rng {
        let mut generator = ChaCha8Rng::from_seed(self.key);
        generator.set_stream(tensor as u64);
        generator.set_word_pos(16 * u128::from(block));
        generator
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some_direction() -> Direction {
        Direction::new(&RunId([7; 32]), Round(3), Slot(2))
    }

    #[test]
    fn golden_directions_are_reproduced() {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../tests/fixtures/draws.json")).unwrap();
        let run = RunId(std::array::from_fn(|i| i as u8));
        let direction = Direction::new(&run, Round(3), Slot(2));
        let key: String = direction.key().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(golden["direction_key"], key);
        for block in golden["direction_blocks"].as_array().unwrap() {
            let tensor = block["tensor"].as_u64().unwrap() as usize;
            let mut words = [[0; 16]];
            direction.sign_words(tensor, block["block"].as_u64().unwrap(), &mut words);
            let words: Vec<String> = words[0].iter().map(|word| format!("{word:08x}")).collect();
            assert_eq!(block["words"], serde_json::json!(words), "tensor {tensor}");
        }
        let sign = |p| if direction.sign(0, p) < 0 { '-' } else { '+' };
        assert_eq!(golden["direction_signs"], (0..64).map(sign).collect::<String>());
    }

    #[test]
    fn signs_agree_with_the_slow_form_at_any_offset() {
        let direction = some_direction();
        for (tensor, first_block, blocks) in [(0, 0, 1), (0, 5, 4), (3, 1, 37), (9, 1 << 33, 2)] {
            let mut words = vec![[0; 16]; blocks];
            direction.sign_words(tensor, first_block, &mut words);
            for p in 0..blocks * BLOCK_PARAMETERS {
                let row = p % BLOCK_PARAMETERS / 16;
                let set = words[p / BLOCK_PARAMETERS][p % 16] >> (31 - row) & 1;
                let sign = direction.sign(tensor, BLOCK_PARAMETERS as u64 * first_block + p as u64);
                assert_eq!(1 - 2 * set as i8, sign, "tensor {tensor} parameter {p}");
            }
        }
    }

    #[test]
    fn key_depends_on_run_round_and_slot() {
        let key = *some_direction().key();
        for other in [
            Direction::new(&RunId([8; 32]), Round(3), Slot(2)),
            Direction::new(&RunId([7; 32]), Round(2), Slot(2)),
            Direction::new(&RunId([7; 32]), Round(3), Slot(3)),
        ] {
            assert_ne!(key, *other.key());
        }
    }

    #[test]
    fn signs_are_balanced() {
        // 2^19 fair signs have a standard deviation of 724; five of them is one in two million.
        let mut words = vec![[0; 16]; 1024];
        some_direction().sign_words(1, 0, &mut words);
        let negative: u32 = words.as_flattened().iter().map(|word| word.count_ones()).sum();
        let sum = (1 << 19) - 2 * i64::from(negative);
        assert!(sum.abs() < 5 * 724, "{sum}");
    }
}
