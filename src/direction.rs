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

use multiversion::multiversion;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::id::{Round, RunId, Slot};

/// Parameters whose signs one ChaCha block holds: 64 bytes, one bit each.
pub const BLOCK_PARAMETERS: usize = 512;

/// The words of one ChaCha block; bit `31 − row` of word `lane` is the sign of parameter
/// `16·row + lane` of the block.
pub type SignBlock = [u32; 16];

/// Blocks that are generated side by side.
pub(crate) const LANES: usize = 8;

/// The words of so many blocks.
type Lanes = [[u32; LANES]; 16];

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

    /// Writes the signs of neighboring blocks, `LANES` of them at a time side by side: word by word,
    /// and in each word block by block.
    pub(crate) fn sign_lanes(&self, tensor: usize, first_block: u64, out: &mut [u32]) {
        let mut input = input_of([self; LANES], tensor);
        let out = out.as_chunks_mut::<LANES>().0.chunks_mut(16);
        for (block, out) in (first_block..).step_by(LANES).zip(out) {
            for (lane, block) in (0..LANES).zip(block..) {
                (input[12][lane], input[13][lane]) = (block as u32, (block >> 32) as u32);
            }
            chacha8(&input, out);
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

/// Writes the signs of one block of a tensor for several directions.
pub(crate) fn sign_words_of(
    directions: [&Direction; LANES],
    tensor: usize,
    block: u64,
    out: [&mut SignBlock; LANES],
) {
    let mut input = input_of(directions, tensor);
    (input[12], input[13]) = ([block as u32; LANES], [(block >> 32) as u32; LANES]);
    let mut lanes = [[0; LANES]; 16];
    chacha8(&input, &mut lanes);
    for (lane, out) in out.into_iter().enumerate() {
        *out = std::array::from_fn(|word| lanes[word][lane]);
    }
}

/// What ChaCha makes blocks of, but for their numbers in words 12 and 13.
fn input_of(directions: [&Direction; LANES], tensor: usize) -> Lanes {
    let constants = [*b"expa", *b"nd 3", *b"2-by", *b"te k"].map(u32::from_le_bytes);
    let mut input = [[0; LANES]; 16];
    for (input, constant) in input.iter_mut().zip(constants) {
        *input = [constant; LANES];
    }
    for (lane, direction) in directions.into_iter().enumerate() {
        let words = direction.key.as_chunks::<4>().0;
        for (input, word) in input[4..12].iter_mut().zip(words) {
            input[lane] = u32::from_le_bytes(*word);
        }
    }
    let stream = tensor as u64;
    (input[14], input[15]) = ([stream as u32; LANES], [(stream >> 32) as u32; LANES]);
    input
}

/// Eight rounds of ChaCha in every lane. `rand_chacha` generates the same bits one direction after
/// the other, a third slower for long runs of blocks and many times slower for single ones.
#[multiversion(targets("x86_64+avx2+bmi2", "aarch64+neon"))]
fn chacha8(input: &Lanes, out: &mut [[u32; LANES]]) {
    let mut x = *input;
    for _ in 0..4 {
        for i in 0..4 {
            quarter_round(&mut x, [i, 4 + i, 8 + i, 12 + i]);
        }
        for i in 0..4 {
            quarter_round(&mut x, [i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4]);
        }
    }
    for ((out, x), input) in out.iter_mut().zip(&x).zip(input) {
        for lane in 0..LANES {
            out[lane] = x[lane].wrapping_add(input[lane]);
        }
    }
}

#[inline(always)]
fn quarter_round(x: &mut Lanes, [a, b, c, d]: [usize; 4]) {
    mix(x, [a, b, d], 16);
    mix(x, [c, d, b], 12);
    mix(x, [a, b, d], 8);
    mix(x, [c, d, b], 7);
}

#[expect(clippy::needless_range_loop, reason = "one lane of three rows, of one array")]
#[inline(always)]
fn mix(x: &mut Lanes, [to, from, mixed]: [usize; 3], bits: u32) {
    for lane in 0..LANES {
        x[to][lane] = x[to][lane].wrapping_add(x[from][lane]);
        x[mixed][lane] = (x[mixed][lane] ^ x[to][lane]).rotate_left(bits);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_made_side_by_side_are_those_of_the_generator() {
        let directions: [Direction; LANES] = std::array::from_fn(|slot| {
            Direction::new(&RunId([7; 32]), Round(3), Slot(slot as u32))
        });
        for (tensor, block) in [(0, 0), (3, 7), (9, (1 << 32) - 3), (1 << 33, 1 << 40)] {
            let mut expected = [[[0; 16]; 2 * LANES]; LANES];
            for (direction, expected) in directions.iter().zip(&mut expected) {
                direction.sign_words(tensor, block, expected);
            }
            let mut lanes = [0; 2 * 16 * LANES];
            directions[5].sign_lanes(tensor, block, &mut lanes);
            for (at, word) in (0..2 * LANES * 16).map(|at| (at / 16, at % 16)) {
                let lane = at / LANES * 16 * LANES + word * LANES + at % LANES;
                assert_eq!(lanes[lane], expected[5][at][word], "tensor {tensor} block {block}");
            }
            let mut words = [[0; 16]; LANES];
            sign_words_of(directions.each_ref(), tensor, block, words.each_mut());
            assert_eq!(words, expected.map(|blocks| blocks[0]), "tensor {tensor} block {block}");
        }
    }

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
