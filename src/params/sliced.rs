//! Adding many directions at once, with counters made of single bits.
//!
//! An amount is split into signed digits, `Σ ±2^w`, a third of which are not zero. For every weight
//! `w` the sign bits of the directions that have a digit there are counted, 8192 parameters at a
//! time: a *plane* holds one bit for each of them, and a full adder turns three planes of one weight
//! into one of it and one of the next, whatever the parameter. In the end one plane a weight is
//! left, which is a number for every parameter. As `sign = 1 − 2·bit`,
//!
//! ```text
//! Σ amount · sign = Σ amount − 2 · Σ_w 2^w · (bits of digits +1  −  bits of digits −1)
//!                 = total − 2 · Σ_w 2^w · count_w             with −bit = (1 − bit) − 1
//! ```
//!
//! Everything is modulo 2³², so the result is that of any other order. Which adders are needed
//! follows from the amounts alone: they are planned once for all superblocks.

use multiversion::multiversion;

use super::kernel::{Lines, SUPERBLOCK};
use crate::direction::{BLOCK_PARAMETERS, Direction, LANES, SignBlock};

/// Words of a plane.
const WORDS: usize = 16 * SUPERBLOCK;

/// One bit for every parameter of a superblock, in the order of [`Direction::sign_lanes`].
type Plane = Lines<[u32; WORDS]>;

/// Directions whose signs are held at a time, in half a first-level cache with their complements.
const GROUP: usize = 16;

/// Weights that count: twice 2³¹ is nothing.
const WEIGHTS: usize = 31;

/// Planes of a group's signs and of their complements, in front of all others.
const SIGNS: u16 = 2 * GROUP as u16;

/// An adder: planes of one weight in; planes of this weight, the next and the one after out.
enum Adder {
    /// One as it is.
    Copy([u16; 1], [u16; 1]),
    /// Two into a sum and a carry.
    Half([u16; 2], [u16; 2]),
    /// Three into a sum and a carry.
    Full([u16; 3], [u16; 2]),
    /// Seven into a number of three bits: four full adders whose results stay in registers.
    Seven([u16; 7], [u16; 3]),
}

/// What is done with the signs of a superblock, whichever it is.
pub(super) struct Plan {
    directions: Vec<Direction>,
    /// The adders after each group of signs.
    groups: Vec<Vec<Adder>>,
    /// The plane of each weight in the end, if it has one.
    counts: [Option<u16>; WEIGHTS],
    /// What every parameter gets besides.
    total: i32,
    /// Where it all happens.
    planes: Vec<Plane>,
}

impl Plan {
    /// Plans to add `amount · direction` for every change.
    pub(super) fn new(changes: &[(Direction, i32)]) -> Plan {
        let mut planner = Planner::default();
        let mut total = 0_u32;
        let mut groups = Vec::with_capacity(changes.len().div_ceil(GROUP));
        for changes in changes.chunks(GROUP) {
            for (at, &(_, amount)) in (0..).zip(changes) {
                let (plus, minus) = digits(amount);
                // Of −bit = (1 − bit) − 1 the last is taken away twice, like all of it.
                total = total.wrapping_add(amount as u32).wrapping_add((minus as u32) << 1);
                planner.wait(at, plus);
                planner.wait(at + GROUP as u16, minus);
            }
            groups.push(planner.adders(false));
        }
        if let Some(last) = groups.last_mut() {
            last.extend(planner.adders(true));
        }
        Plan {
            directions: changes.iter().map(|change| change.0).collect(),
            groups,
            counts: std::array::from_fn(|weight| planner.waiting[weight].first().copied()),
            total: total as i32,
            planes: vec![Lines([0; WORDS]); usize::from(planner.len)],
        }
    }

    /// Adds to a superblock, or its beginning.
    pub(super) fn add(&mut self, values: &mut [i32], tensor: usize, superblock: u64) {
        let first_block = superblock * SUPERBLOCK as u64;
        let planes = &mut self.planes[..];
        for (directions, adders) in self.directions.chunks(GROUP).zip(&self.groups) {
            let (signs, complements) = planes.split_at_mut(GROUP);
            for (direction, (signs, complement)) in
                directions.iter().zip(signs.iter_mut().zip(complements))
            {
                direction.sign_lanes(tensor, first_block, &mut signs.0);
                invert(signs, complement);
            }
            execute(adders, planes);
        }
        for (block, values) in values.chunks_mut(BLOCK_PARAMETERS).enumerate() {
            let mut counts = Lines([[0; 16]; 32]);
            for (weight, plane) in self.counts.iter().enumerate() {
                if let Some(plane) = plane {
                    let first = block / LANES * 16 * LANES + block % LANES;
                    let words = planes[usize::from(*plane)].0[first..].iter().step_by(LANES);
                    counts.0[31 - weight].iter_mut().zip(words).for_each(|(at, word)| *at = *word);
                }
            }
            add_counts(values, &mut counts.0, self.total);
        }
    }
}

/// The weights of an amount's digits +1 and −1, as bits: no two digits are neighbors.
fn digits(amount: i32) -> (u64, u64) {
    let amount = i64::from(amount);
    let half = amount >> 1;
    let sum = amount + half;
    let changed = half ^ sum;
    ((sum & changed) as u64, (half & changed) as u64)
}

/// Planes that wait to be added, by weight, and those that are free.
struct Planner {
    waiting: [Vec<u16>; WEIGHTS],
    free: Vec<u16>,
    len: u16,
}

impl Default for Planner {
    fn default() -> Planner {
        Planner { waiting: Default::default(), free: Vec::new(), len: SIGNS }
    }
}

impl Planner {
    /// A plane of signs waits at each of these weights.
    fn wait(&mut self, plane: u16, weights: u64) {
        let mut left = weights & ((1 << WEIGHTS) - 1);
        while left != 0 {
            self.waiting[left.trailing_zeros() as usize].push(plane);
            left &= left - 1;
        }
    }

    /// Adders until at most two planes wait at every weight, or one (`wholly`), none of them of signs.
    fn adders(&mut self, wholly: bool) -> Vec<Adder> {
        let mut adders = Vec::new();
        for weight in 0..WEIGHTS {
            while let Some(inputs) = self.inputs(weight) {
                adders.push(Adder::Seven(inputs, self.outputs(weight, &inputs)));
            }
            while let Some(inputs) = self.inputs(weight) {
                adders.push(Adder::Full(inputs, self.outputs(weight, &inputs)));
            }
            // The next group overwrites signs.
            let stay = self.waiting[weight].iter().all(|&plane| plane >= SIGNS);
            if stay && !wholly {
                continue;
            }
            if let Some(inputs) = self.inputs(weight) {
                adders.push(Adder::Half(inputs, self.outputs(weight, &inputs)));
            } else if !stay && let Some(inputs) = self.inputs(weight) {
                adders.push(Adder::Copy(inputs, self.outputs(weight, &inputs)));
            }
        }
        adders
    }

    fn inputs<const N: usize>(&mut self, weight: usize) -> Option<[u16; N]> {
        let waiting = &mut self.waiting[weight];
        let inputs = *waiting.last_chunk()?;
        waiting.truncate(waiting.len() - N);
        Some(inputs)
    }

    /// Planes for an adder's sum and carries, which wait from then on. Carries beyond the last
    /// weight count for nothing.
    fn outputs<const N: usize>(&mut self, weight: usize, inputs: &[u16]) -> [u16; N] {
        let outputs: [u16; N] = std::array::from_fn(|_| {
            self.free.pop().unwrap_or_else(|| {
                self.len += 1;
                self.len - 1
            })
        });
        // Only now, so that an adder's planes are all different.
        self.free.extend(inputs.iter().filter(|&&plane| plane >= SIGNS));
        for (weight, &plane) in (weight..).zip(&outputs) {
            match self.waiting.get_mut(weight) {
                Some(waiting) => waiting.push(plane),
                None => self.free.push(plane),
            }
        }
        outputs
    }
}

#[multiversion(targets("x86_64+avx2+bmi2", "aarch64+neon"))]
fn invert(signs: &Plane, complement: &mut Plane) {
    for (complement, signs) in complement.0.iter_mut().zip(&signs.0) {
        *complement = !signs;
    }
}

#[multiversion(targets(
    "x86_64+avx512f+avx512dq+avx512vl+avx512bw",
    "x86_64+avx2+bmi2",
    "aarch64+neon"
))]
fn execute(adders: &[Adder], planes: &mut [Plane]) {
    for adder in adders {
        match *adder {
            Adder::Copy(inputs, outputs) => {
                let [a, sum] = of(planes, [inputs[0], outputs[0]]);
                *sum = *a;
            }
            Adder::Half([a, b], [sum, carry]) => {
                let [a, b, sum, carry] = of(planes, [a, b, sum, carry]);
                for at in 0..WORDS {
                    (sum[at], carry[at]) = (a[at] ^ b[at], a[at] & b[at]);
                }
            }
            Adder::Full([a, b, c], [sum, carry]) => {
                let [a, b, c, sum, carry] = of(planes, [a, b, c, sum, carry]);
                for at in 0..WORDS {
                    (sum[at], carry[at]) = full(a[at], b[at], c[at]);
                }
            }
            Adder::Seven([a, b, c, d, e, f, g], [sum, carry, next]) => {
                let [a, b, c, d, e, f, g, sum, carry, next] =
                    of(planes, [a, b, c, d, e, f, g, sum, carry, next]);
                for at in 0..WORDS {
                    let (s, x) = full(a[at], b[at], c[at]);
                    let (s, y) = full(s, d[at], e[at]);
                    let (s, z) = full(s, f[at], g[at]);
                    sum[at] = s;
                    (carry[at], next[at]) = full(x, y, z);
                }
            }
        }
    }
}

#[inline(always)]
fn of<const N: usize>(planes: &mut [Plane], indices: [u16; N]) -> [&mut [u32; WORDS]; N] {
    let planes = planes.get_disjoint_mut(indices.map(usize::from));
    planes.expect("an adder's planes are all different").map(|plane| &mut plane.0)
}

/// The sum of three bits and its carry.
#[inline(always)]
fn full(a: u32, b: u32, c: u32) -> (u32, u32) {
    let half = a ^ b;
    (half ^ c, (a & b) | (half & c))
}

/// Adds `total` less twice the number that the planes of a block say; the highest weight first.
#[multiversion(targets("x86_64+avx2+bmi2", "aarch64+neon"))]
fn add_counts(values: &mut [i32], planes: &mut [SignBlock; 32], total: i32) {
    transpose(planes);
    for (values, counts) in values.chunks_mut(16).zip(planes) {
        for (value, count) in values.iter_mut().zip(counts) {
            *value = value.wrapping_add(total).wrapping_sub((*count as i32) << 1);
        }
    }
}

/// Swaps bit `31 − j` of word `i` with bit `31 − i` of word `j`, in each of the sixteen lanes.
#[inline(always)]
fn transpose(words: &mut [SignBlock; 32]) {
    swap::<16>(words, 0x0000_ffff);
    swap::<8>(words, 0x00ff_00ff);
    swap::<4>(words, 0x0f0f_0f0f);
    swap::<2>(words, 0x3333_3333);
    swap::<1>(words, 0x5555_5555);
}

#[inline(always)]
fn swap<const S: usize>(words: &mut [SignBlock; 32], mask: u32) {
    for pair in words.chunks_exact_mut(2 * S) {
        let (high, low) = pair.split_at_mut(S);
        for (high, low) in high.iter_mut().zip(low) {
            for lane in 0..16 {
                let changed = (high[lane] ^ low[lane] >> S) & mask;
                high[lane] ^= changed;
                low[lane] ^= changed << S;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_add_up_and_are_no_neighbors() {
        for amount in [0, 1, 2, 3, 7, 11, -1, -6, 0x5555_5555, i32::MAX, i32::MIN, i32::MIN + 1] {
            let (plus, minus) = digits(amount);
            assert_eq!(plus.wrapping_sub(minus) as i64, i64::from(amount), "{amount}");
            assert_eq!((plus & minus, (plus | minus) & (plus | minus) << 1), (0, 0), "{amount}");
        }
    }

    #[test]
    fn transposition_swaps_words_and_bits() {
        let mut words = [[0; 16]; 32];
        for (i, word) in words.iter_mut().enumerate() {
            *word =
                std::array::from_fn(|lane| (i as u32 * 16 + lane as u32).wrapping_mul(0x9e37_79b9));
        }
        let before = words;
        transpose(&mut words);
        for (i, j, lane) in (0..32 * 32 * 16).map(|at| (at / 512, at / 16 % 32, at % 16)) {
            assert_eq!(words[i][lane] >> (31 - j) & 1, before[j][lane] >> (31 - i) & 1);
        }
    }
}
