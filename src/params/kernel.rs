//! The inner loops over parameters, compiled for several instruction sets.
//!
//! Rows of sixteen parameters share a bit position, so a row's signs are the top bits of sixteen
//! words, shifted up by one from row to row. The shift is carried from row to row on purpose: written as
//! `word << row` the loop over rows vectorizes instead, with gathers, ten times slower. All paths
//! use the same integer or singly rounded operations and give the same bits.
//!
//! AVX-512 moves a line of the cache at a time, and one that lies across two costs twice. It is for adding one or two
//! directions, which waits for memory and is a fifth faster wherever the numbers begin; for both ends of whole
//! superblocks that are written to whole lines; and for the counters of [`sliced`](super::sliced), which are
//! [`Lines`]. Adding four or eight directions, adding counts to the state, and ChaCha were measured up to four times
//! *slower* than with AVX2, as the compiler arranges them badly (`experiments/results/2026-11-25-replay` and
//! `2026-11-27-lines`): these and all others are compiled for AVX2 at most.

use std::ops::Range;

use multiversion::multiversion;

use crate::direction::{BLOCK_PARAMETERS, SignBlock};

/// ChaCha blocks whose signs are generated together: 8192 parameters, 32 KiB of state.
pub(super) const SUPERBLOCK: usize = 16;

/// Parameters in a row: one for each word of a block.
const ROW: usize = 16;

/// Rows of a block.
const ROWS: usize = BLOCK_PARAMETERS / ROW;

/// Something that begins with a line of the cache.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct Lines<T>(pub(super) T);

/// Whether these numbers begin with a line of the cache.
fn begin_a_line<T>(values: &[T]) -> bool {
    values.as_ptr().addr().is_multiple_of(align_of::<Lines<()>>())
}

/// Adds `amount · sign` of one direction to a superblock, or its beginning.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+bmi2", "aarch64+neon"))]
pub(super) fn add_one(values: &mut [i32], signs: &[[SignBlock; SUPERBLOCK]], amounts: &[i32; 8]) {
    add::<1>(values, signs.first_chunk().expect("one direction"), amounts);
}

/// Adds `amount · sign` of two directions.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+bmi2", "aarch64+neon"))]
pub(super) fn add_two(values: &mut [i32], signs: &[[SignBlock; SUPERBLOCK]], amounts: &[i32; 8]) {
    add::<2>(values, signs.first_chunk().expect("two directions"), amounts);
}

/// Adds `amount · sign` of four directions.
#[multiversion(targets("x86_64+avx2+bmi2", "aarch64+neon"))]
pub(super) fn add_four(values: &mut [i32], signs: &[[SignBlock; SUPERBLOCK]], amounts: &[i32; 8]) {
    add::<4>(values, signs.first_chunk().expect("four directions"), amounts);
}

/// Adds `amount · sign` of eight directions.
#[multiversion(targets("x86_64+avx2+bmi2", "aarch64+neon"))]
pub(super) fn add_eight(values: &mut [i32], signs: &[[SignBlock; SUPERBLOCK]], amounts: &[i32; 8]) {
    add::<8>(values, signs.first_chunk().expect("eight directions"), amounts);
}

#[inline(always)]
fn add<const D: usize>(
    values: &mut [i32],
    signs: &[[SignBlock; SUPERBLOCK]; D],
    amounts: &[i32; 8],
) {
    let (blocks, rest) = values.as_chunks_mut::<BLOCK_PARAMETERS>();
    for (index, block) in blocks.iter_mut().enumerate() {
        add_block::<D>(block, std::array::from_fn(|d| signs[d][index]), amounts);
    }
    if !rest.is_empty() {
        let mut block = [0; BLOCK_PARAMETERS];
        block[..rest.len()].copy_from_slice(rest);
        add_block::<D>(&mut block, std::array::from_fn(|d| signs[d][blocks.len()]), amounts);
        rest.copy_from_slice(&block[..rest.len()]);
    }
}

#[inline(always)]
fn add_block<const D: usize>(
    values: &mut [i32; BLOCK_PARAMETERS],
    mut words: [SignBlock; D],
    amounts: &[i32; 8],
) {
    // Add every amount once, then take it away twice where the sign bit is set.
    let total = amounts[..D].iter().fold(0, |sum: i32, &amount| sum.wrapping_add(amount));
    let twice: [i32; D] = std::array::from_fn(|d| amounts[d].wrapping_mul(2));
    for row in values.as_chunks_mut::<ROW>().0 {
        let mut sums: [i32; ROW] = std::array::from_fn(|lane| row[lane].wrapping_add(total));
        for (words, twice) in words.iter_mut().zip(&twice) {
            for (sum, word) in sums.iter_mut().zip(words) {
                let set = *word as i32 >> 31;
                *sum = sum.wrapping_sub(twice & set);
                *word <<= 1;
            }
        }
        *row = sums;
    }
}

/// Writes `lsb · value`.
#[multiversion(targets("x86_64+avx2+bmi2", "aarch64+neon"))]
pub(super) fn view(values: &[i32], lsb: f32, out: &mut [f32]) {
    for (out, &value) in out.iter_mut().zip(values) {
        *out = value as f32 * lsb;
    }
}

/// Writes `lsb · value ± epsilon · sign` for a part of a superblock. The first value is number `first` of it.
pub(super) fn pair(
    values: &[i32],
    signs: &[SignBlock],
    first: usize,
    [lsb, epsilon]: [f32; 2],
    plus: &mut [f32],
    minus: &mut [f32],
) {
    // The processor needs some microseconds to switch its wide units on: small tensors are left without.
    let whole = values.len() == SUPERBLOCK * BLOCK_PARAMETERS;
    if whole && begin_a_line(plus) && begin_a_line(minus) {
        pair_of_lines(values, signs, [lsb, epsilon], plus, minus);
    } else {
        pair_anywhere(values, signs, first, [lsb, epsilon], plus, minus);
    }
}

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+bmi2", "aarch64+neon"))]
fn pair_of_lines(
    values: &[i32],
    signs: &[SignBlock],
    units: [f32; 2],
    plus: &mut [f32],
    minus: &mut [f32],
) {
    pair_inline(values, signs, 0, units, plus, minus);
}

#[multiversion(targets("x86_64+avx2+bmi2", "aarch64+neon"))]
fn pair_anywhere(
    values: &[i32],
    signs: &[SignBlock],
    first: usize,
    units: [f32; 2],
    plus: &mut [f32],
    minus: &mut [f32],
) {
    pair_inline(values, signs, first, units, plus, minus);
}

#[inline(always)]
fn pair_inline(
    values: &[i32],
    signs: &[SignBlock],
    first: usize,
    units: [f32; 2],
    plus: &mut [f32],
    minus: &mut [f32],
) {
    for Piece { range, words, lane } in pieces(signs, first, values.len()) {
        let (plus, minus) = (&mut plus[range.clone()], &mut minus[range.clone()]);
        let values = &values[range];
        if values.len() < ROW {
            let (mut a, mut b) = ([[0.0; ROW]], [[0.0; ROW]]);
            pair_rows(&[padded(values, lane)], words, units, &mut a, &mut b);
            plus.copy_from_slice(&a[0][lane..lane + values.len()]);
            minus.copy_from_slice(&b[0][lane..lane + values.len()]);
        } else {
            let (rows, plus, minus) =
                (values.as_chunks().0, plus.as_chunks_mut().0, minus.as_chunks_mut().0);
            pair_rows(rows, words, units, plus, minus);
        }
    }
}

/// Rows of one block.
#[inline(always)]
fn pair_rows(
    rows: &[[i32; ROW]],
    mut words: SignBlock,
    [lsb, epsilon]: [f32; 2],
    plus: &mut [[f32; ROW]],
    minus: &mut [[f32; ROW]],
) {
    for ((row, plus), minus) in rows.iter().zip(plus).zip(minus) {
        for lane in 0..ROW {
            let weight = row[lane] as f32 * lsb;
            let step = f32::from_bits(epsilon.to_bits() ^ words[lane] & 1 << 31);
            plus[lane] = weight + step;
            minus[lane] = weight - step;
            words[lane] <<= 1;
        }
    }
}

/// Writes `lsb · value + step · sign` for a part of a superblock. The first value is number `first` of it.
#[multiversion(targets("x86_64+avx2+bmi2", "aarch64+neon"))]
pub(super) fn end(
    values: &[i32],
    signs: &[SignBlock],
    first: usize,
    [lsb, step]: [f32; 2],
    out: &mut [f32],
) {
    for Piece { range, words, lane } in pieces(signs, first, values.len()) {
        let (values, out) = (&values[range.clone()], &mut out[range]);
        if values.len() < ROW {
            let mut ends = [[0.0; ROW]];
            end_rows(&[padded(values, lane)], words, [lsb, step], &mut ends);
            out.copy_from_slice(&ends[0][lane..lane + values.len()]);
        } else {
            end_rows(values.as_chunks().0, words, [lsb, step], out.as_chunks_mut().0);
        }
    }
}

/// Rows of one block.
#[inline(always)]
fn end_rows(
    rows: &[[i32; ROW]],
    mut words: SignBlock,
    [lsb, step]: [f32; 2],
    out: &mut [[f32; ROW]],
) {
    for (row, out) in rows.iter().zip(out) {
        for lane in 0..ROW {
            let signed = f32::from_bits(step.to_bits() ^ words[lane] & 1 << 31);
            out[lane] = row[lane] as f32 * lsb + signed;
            words[lane] <<= 1;
        }
    }
}

/// Values that are whole rows of one block, or a part of one row.
struct Piece {
    /// Which of the values.
    range: Range<usize>,
    /// The block's words, shifted so that the signs of the first row are on top.
    words: SignBlock,
    /// The first value's place in its row.
    lane: usize,
}

/// The pieces of `len` values, the first of which is number `first` of the blocks of these signs.
#[inline(always)]
fn pieces(signs: &[SignBlock], first: usize, len: usize) -> impl Iterator<Item = Piece> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let left = len - at;
        if left == 0 {
            return None;
        }
        let (row, lane) = ((first + at) / ROW, (first + at) % ROW);
        let most =
            if lane > 0 { ROW - lane } else { BLOCK_PARAMETERS - (first + at) % BLOCK_PARAMETERS };
        let taken = match left.min(most) {
            few if few < ROW => few,
            rows => rows / ROW * ROW,
        };
        let words = signs[row / ROWS].map(|word| word << (row % ROWS));
        at += taken;
        Some(Piece { range: at - taken..at, words, lane })
    })
}

/// A row that has these values from this lane on.
#[inline(always)]
fn padded(values: &[i32], lane: usize) -> [i32; ROW] {
    let mut row = [0; ROW];
    row[lane..lane + values.len()].copy_from_slice(values);
    row
}
