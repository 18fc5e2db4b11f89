//! The inner loops over parameters, compiled for several instruction sets.
//!
//! Rows of sixteen parameters share a bit position, so a row's signs are the top bits of sixteen
//! words, shifted up by one from row to row. The shift is carried from row to row on purpose: written as
//! `word << row` the loop over rows vectorizes instead, with gathers, ten times slower. All paths
//! use the same integer or singly rounded operations and give the same bits.
//!
//! AVX-512 is for one or two directions alone, which wait for memory: there it is a fifth faster. With four
//! or more it was measured up to four times *slower* than AVX2 (`experiments/results/2026-11-25-replay`), so those and
//! all others are compiled for AVX2 at most.

use multiversion::multiversion;

use crate::direction::{BLOCK_PARAMETERS, SignBlock};

/// ChaCha blocks whose signs are generated together: 8192 parameters, 32 KiB of state.
pub(super) const SUPERBLOCK: usize = 16;

/// Parameters in a row: one for each word of a block.
const ROW: usize = 16;

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

/// Writes `lsb · value ± epsilon · sign` for a superblock, or its beginning.
#[multiversion(targets("x86_64+avx2+bmi2", "aarch64+neon"))]
pub(super) fn pair(
    values: &[i32],
    signs: &[SignBlock],
    lsb: f32,
    epsilon: f32,
    plus: &mut [f32],
    minus: &mut [f32],
) {
    let (values, values_rest) = values.as_chunks::<BLOCK_PARAMETERS>();
    let (plus, plus_rest) = plus.as_chunks_mut::<BLOCK_PARAMETERS>();
    let (minus, minus_rest) = minus.as_chunks_mut::<BLOCK_PARAMETERS>();
    for (((values, signs), plus), minus) in values.iter().zip(signs).zip(plus).zip(minus) {
        pair_block(values, *signs, lsb, epsilon, plus, minus);
    }
    if !values_rest.is_empty() {
        let len = values_rest.len();
        let mut block = [0; BLOCK_PARAMETERS];
        let (mut plus, mut minus) = ([0.0; BLOCK_PARAMETERS], [0.0; BLOCK_PARAMETERS]);
        block[..len].copy_from_slice(values_rest);
        pair_block(&block, signs[values.len()], lsb, epsilon, &mut plus, &mut minus);
        plus_rest.copy_from_slice(&plus[..len]);
        minus_rest.copy_from_slice(&minus[..len]);
    }
}

#[inline(always)]
fn pair_block(
    values: &[i32; BLOCK_PARAMETERS],
    mut words: SignBlock,
    lsb: f32,
    epsilon: f32,
    plus: &mut [f32; BLOCK_PARAMETERS],
    minus: &mut [f32; BLOCK_PARAMETERS],
) {
    let values = values.as_chunks::<ROW>().0;
    let plus = plus.as_chunks_mut::<ROW>().0;
    let minus = minus.as_chunks_mut::<ROW>().0;
    for ((values, plus), minus) in values.iter().zip(plus).zip(minus) {
        for lane in 0..ROW {
            let weight = values[lane] as f32 * lsb;
            let step = f32::from_bits(epsilon.to_bits() ^ words[lane] & 1 << 31);
            plus[lane] = weight + step;
            minus[lane] = weight - step;
            words[lane] <<= 1;
        }
    }
}

/// Writes `lsb · value + step · sign` for a superblock, or its beginning.
#[multiversion(targets("x86_64+avx2+bmi2", "aarch64+neon"))]
pub(super) fn end(values: &[i32], signs: &[SignBlock], lsb: f32, step: f32, out: &mut [f32]) {
    let (values, values_rest) = values.as_chunks::<BLOCK_PARAMETERS>();
    let (out, out_rest) = out.as_chunks_mut::<BLOCK_PARAMETERS>();
    for ((values, signs), out) in values.iter().zip(signs).zip(out) {
        end_block(values, *signs, lsb, step, out);
    }
    if !values_rest.is_empty() {
        let len = values_rest.len();
        let (mut block, mut ends) = ([0; BLOCK_PARAMETERS], [0.0; BLOCK_PARAMETERS]);
        block[..len].copy_from_slice(values_rest);
        end_block(&block, signs[values.len()], lsb, step, &mut ends);
        out_rest.copy_from_slice(&ends[..len]);
    }
}

#[inline(always)]
fn end_block(
    values: &[i32; BLOCK_PARAMETERS],
    mut words: SignBlock,
    lsb: f32,
    step: f32,
    out: &mut [f32; BLOCK_PARAMETERS],
) {
    for (values, out) in values.as_chunks::<ROW>().0.iter().zip(out.as_chunks_mut::<ROW>().0) {
        for lane in 0..ROW {
            let signed = f32::from_bits(step.to_bits() ^ words[lane] & 1 << 31);
            out[lane] = values[lane] as f32 * lsb + signed;
            words[lane] <<= 1;
        }
    }
}
