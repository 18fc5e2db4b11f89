//! A layer applied to one row at a time, skipping its zero inputs.
//!
//! Four fifths of an image of digits are background, and half of a hidden layer's units are off.
//! So a row is first reduced to its non-zero inputs, and a layer adds up their rows of weights
//! in registers. A probe's first layer has the same inputs at both ends, so they are read once for
//! both. No fused multiply-add: without the instruction it would be a library call per product.

use multiversion::multiversion;

use crate::data::{Features, slice};

/// The non-zero inputs of a layer: positions and values.
#[derive(Clone, Debug, Default)]
pub(super) struct Sparse {
    // Both as long as the widest row so far; only the first `len` entries count.
    positions: Vec<u32>,
    values: Vec<f32>,
    len: usize,
}

impl Sparse {
    /// Takes the non-zero features of a row, without the features' common offset.
    pub(super) fn take_row(&mut self, features: &Features, row: usize) {
        self.reserve(features.columns());
        match features {
            Features::U8 { values, scale, .. } => self.take_bytes(slice(values.row(row)), *scale),
            Features::F32(values) => self.take(slice(values.row(row)), |value| value != 0.0),
            Features::Text(_) => unreachable!("texts are refused when the model is built"),
        }
    }

    /// Takes the outputs of a layer that pass a rectifier; NaN passes.
    pub(super) fn take_rectified(&mut self, outputs: &[f32]) {
        self.reserve(outputs.len());
        self.take(outputs, |value| value > 0.0 || value.is_nan());
    }

    /// The positions and values taken.
    pub(super) fn entries(&self) -> impl Iterator<Item = (usize, f32)> + '_ {
        let values = &self.values[..self.len];
        let positions = self.positions[..self.len].iter().map(|&position| position as usize);
        positions.zip(values.iter().copied())
    }

    fn take_bytes(&mut self, bytes: &[u8], scale: f32) {
        self.len = 0;
        let (words, rest) = bytes.as_chunks::<8>();
        for (word, bytes) in words.iter().enumerate() {
            // Background comes in runs.
            if u64::from_ne_bytes(*bytes) != 0 {
                self.push_bytes(8 * word, bytes, scale);
            }
        }
        self.push_bytes(8 * words.len(), rest, scale);
    }

    #[inline(always)]
    fn push_bytes(&mut self, first: usize, bytes: &[u8], scale: f32) {
        for (position, &byte) in (first..).zip(bytes) {
            self.positions[self.len] = position as u32;
            self.values[self.len] = scale * f32::from(byte);
            // Without a branch: whether a pixel is set is anyone's guess.
            self.len += usize::from(byte != 0);
        }
    }

    fn take(&mut self, inputs: &[f32], counts: impl Fn(f32) -> bool) {
        self.len = 0;
        for (position, &value) in inputs.iter().enumerate() {
            self.positions[self.len] = position as u32;
            self.values[self.len] = value;
            self.len += usize::from(counts(value));
        }
    }

    fn reserve(&mut self, columns: usize) {
        // One more, as the entry after the last one is written before it is known to count.
        if self.positions.len() <= columns {
            self.positions.resize(columns + 1, 0);
            self.values.resize(columns + 1, 0.0);
        }
    }
}

/// Adds to `outputs` the inputs' rows of `weights`, which has one row of outputs per input.
#[multiversion(targets("x86_64+avx2+bmi2", "aarch64+neon"))]
pub(super) fn add_rows(inputs: &Sparse, weights: &[f32], outputs: &mut [f32]) {
    let width = outputs.len();
    let mut from = 0;
    while from < width {
        match width - from {
            32.. => from += add_columns::<32>(inputs, weights, width, from, outputs),
            16.. => from += add_columns::<16>(inputs, weights, width, from, outputs),
            8.. => from += add_columns::<8>(inputs, weights, width, from, outputs),
            4.. => from += add_columns::<4>(inputs, weights, width, from, outputs),
            2.. => from += add_columns::<2>(inputs, weights, width, from, outputs),
            _ => from += add_columns::<1>(inputs, weights, width, from, outputs),
        }
    }
}

/// [`add_rows`] with the same inputs for two sets of weights.
#[multiversion(targets("x86_64+avx2+bmi2", "aarch64+neon"))]
pub(super) fn add_rows_pair(
    inputs: &Sparse,
    weights: [&[f32]; 2],
    outputs: &mut [f32],
    outputs_minus: &mut [f32],
) {
    let width = outputs.len();
    let mut outputs = [outputs, outputs_minus];
    let mut from = 0;
    while from < width {
        match width - from {
            32.. => from += add_columns_pair::<32>(inputs, weights, width, from, &mut outputs),
            16.. => from += add_columns_pair::<16>(inputs, weights, width, from, &mut outputs),
            8.. => from += add_columns_pair::<8>(inputs, weights, width, from, &mut outputs),
            4.. => from += add_columns_pair::<4>(inputs, weights, width, from, &mut outputs),
            2.. => from += add_columns_pair::<2>(inputs, weights, width, from, &mut outputs),
            _ => from += add_columns_pair::<1>(inputs, weights, width, from, &mut outputs),
        }
    }
}

#[inline(always)]
fn add_columns<const C: usize>(
    inputs: &Sparse,
    weights: &[f32],
    width: usize,
    from: usize,
    outputs: &mut [f32],
) -> usize {
    let outputs: &mut [f32; C] = outputs[from..].first_chunk_mut().expect("C columns are left");
    let mut sums = *outputs;
    let entries = inputs.positions[..inputs.len].iter().zip(&inputs.values[..inputs.len]);
    for (&position, &value) in entries {
        let start = position as usize * width + from;
        let row: &[f32; C] = weights[start..].first_chunk().expect("C columns are left");
        for (sum, weight) in sums.iter_mut().zip(row) {
            *sum += value * weight;
        }
    }
    *outputs = sums;
    C
}

#[inline(always)]
fn add_columns_pair<const C: usize>(
    inputs: &Sparse,
    [plus, minus]: [&[f32]; 2],
    width: usize,
    from: usize,
    [outputs_plus, outputs_minus]: &mut [&mut [f32]; 2],
) -> usize {
    let outputs_plus: &mut [f32; C] =
        outputs_plus[from..].first_chunk_mut().expect("C columns are left");
    let outputs_minus: &mut [f32; C] =
        outputs_minus[from..].first_chunk_mut().expect("C columns are left");
    let (mut sums_plus, mut sums_minus) = (*outputs_plus, *outputs_minus);
    let entries = inputs.positions[..inputs.len].iter().zip(&inputs.values[..inputs.len]);
    for (&position, &value) in entries {
        let start = position as usize * width + from;
        let row_plus: &[f32; C] = plus[start..].first_chunk().expect("C columns are left");
        let row_minus: &[f32; C] = minus[start..].first_chunk().expect("C columns are left");
        for (sum, weight) in sums_plus.iter_mut().zip(row_plus) {
            *sum += value * weight;
        }
        for (sum, weight) in sums_minus.iter_mut().zip(row_minus) {
            *sum += value * weight;
        }
    }
    (*outputs_plus, *outputs_minus) = (sums_plus, sums_minus);
    C
}

/// Adds to the inputs' rows of `slopes` what these inputs and slopes of a layer's outputs amount to:
/// the transpose of [`add_rows`].
#[multiversion(targets("x86_64+avx2+bmi2", "aarch64+neon"))]
pub(super) fn add_outer(inputs: &Sparse, deltas: &[f32], slopes: &mut [f32]) {
    let width = deltas.len();
    let mut from = 0;
    while from < width {
        match width - from {
            32.. => from += add_outer_columns::<32>(inputs, deltas, from, slopes),
            16.. => from += add_outer_columns::<16>(inputs, deltas, from, slopes),
            8.. => from += add_outer_columns::<8>(inputs, deltas, from, slopes),
            4.. => from += add_outer_columns::<4>(inputs, deltas, from, slopes),
            2.. => from += add_outer_columns::<2>(inputs, deltas, from, slopes),
            _ => from += add_outer_columns::<1>(inputs, deltas, from, slopes),
        }
    }
}

#[inline(always)]
fn add_outer_columns<const C: usize>(
    inputs: &Sparse,
    deltas: &[f32],
    from: usize,
    slopes: &mut [f32],
) -> usize {
    let width = deltas.len();
    let deltas: [f32; C] = *deltas[from..].first_chunk().expect("C columns are left");
    let entries = inputs.positions[..inputs.len].iter().zip(&inputs.values[..inputs.len]);
    for (&position, &value) in entries {
        let start = position as usize * width + from;
        let row: &mut [f32; C] = slopes[start..].first_chunk_mut().expect("C columns are left");
        for (slope, delta) in row.iter_mut().zip(&deltas) {
            *slope += value * delta;
        }
    }
    C
}

/// Writes `bias + offset · (sum of all rows of weights)`: what a feature's common offset amounts to.
#[multiversion(targets("x86_64+avx2+bmi2", "aarch64+neon"))]
pub(super) fn offset_bias(bias: &[f32], weights: &[f32], offset: f32, out: &mut Vec<f32>) {
    out.clear();
    out.resize(bias.len(), 0.0);
    if offset != 0.0 {
        for row in weights.chunks_exact(bias.len()) {
            for (sum, weight) in out.iter_mut().zip(row) {
                *sum += weight;
            }
        }
    }
    for (out, bias) in out.iter_mut().zip(bias) {
        *out = bias + offset * *out;
    }
}
