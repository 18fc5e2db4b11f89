//! An affine layer on blocks of rows, forward and backward, and the cross entropy behind the last.
//!
//! ```text
//! Y = X·W + b,  ∂W = Xᵀ·∂Y,  ∂b = Σ rows of ∂Y,  ∂X = ∂Y·Wᵀ
//! ```
//!
//! A layer does not hold its parameters: it knows where they are in the flat vector. Weights have a
//! row per input.

use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView2, ArrayViewMut2};

#[derive(Clone, Copy, Debug)]
pub(super) struct Layer {
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    /// Where the weights begin in the flat parameters; the biases follow them.
    pub(super) offset: usize,
}

impl Layer {
    /// The number of parameters.
    pub(super) fn len(&self) -> usize {
        (self.inputs + 1) * self.outputs
    }

    /// Where the parameters end in the flat vector.
    pub(super) fn end(&self) -> usize {
        self.offset + self.len()
    }

    pub(super) fn weights<'a>(&self, params: &'a [f32]) -> &'a [f32] {
        &params[self.offset..self.offset + self.inputs * self.outputs]
    }

    pub(super) fn bias<'a>(&self, params: &'a [f32]) -> &'a [f32] {
        &params[self.offset + self.inputs * self.outputs..self.end()]
    }

    /// Writes the outputs of `rows` rows of inputs.
    pub(super) fn forward(
        &self,
        params: &[f32],
        inputs: &[f32],
        outputs: &mut Vec<f32>,
        rows: usize,
    ) {
        outputs.clear();
        (0..rows).for_each(|_| outputs.extend_from_slice(self.bias(params)));
        let inputs = matrix(rows, self.inputs, inputs);
        let weights = matrix(self.inputs, self.outputs, self.weights(params));
        let mut outputs = matrix_mut(rows, self.outputs, outputs);
        general_mat_mul(1.0, &inputs, &weights, 1.0, &mut outputs);
    }

    /// Adds the slopes by the weights, given those by the outputs.
    pub(super) fn add_weight_slopes(
        &self,
        inputs: &[f32],
        deltas: &[f32],
        slopes: &mut [f32],
        rows: usize,
    ) {
        let inputs = matrix(rows, self.inputs, inputs);
        let deltas = matrix(rows, self.outputs, deltas);
        let mut slopes = matrix_mut(self.inputs, self.outputs, slopes);
        general_mat_mul(1.0, &inputs.t(), &deltas, 1.0, &mut slopes);
    }

    /// Adds the slopes by the biases, given those by the outputs.
    pub(super) fn add_bias_slopes(&self, deltas: &[f32], slopes: &mut [f32]) {
        for row in deltas.chunks_exact(self.outputs) {
            slopes.iter_mut().zip(row).for_each(|(sum, delta)| *sum += delta);
        }
    }

    /// Writes the slopes by the inputs, given those by the outputs.
    pub(super) fn backward(&self, params: &[f32], deltas: &[f32], out: &mut Vec<f32>, rows: usize) {
        out.resize(rows * self.inputs, 0.0);
        let deltas = matrix(rows, self.outputs, deltas);
        let weights = matrix(self.inputs, self.outputs, self.weights(params));
        let mut out = matrix_mut(rows, self.inputs, out);
        general_mat_mul(1.0, &deltas, &weights.t(), 0.0, &mut out);
    }
}

fn matrix(rows: usize, columns: usize, values: &[f32]) -> ArrayView2<'_, f32> {
    ArrayView2::from_shape((rows, columns), values).expect("the length is rows times columns")
}

fn matrix_mut(rows: usize, columns: usize, values: &mut [f32]) -> ArrayViewMut2<'_, f32> {
    ArrayViewMut2::from_shape((rows, columns), values).expect("the length is rows times columns")
}

/// Sets what is negative to zero; written so that NaN stays.
pub(super) fn rectify(values: &mut [f32]) {
    values.iter_mut().for_each(|h| *h = if *h <= 0.0 { 0.0 } else { *h });
}

/// Sets the slopes by rectified outputs to zero where the rectifier is flat.
pub(super) fn rectify_slopes(deltas: &mut [f32], rectified: &[f32]) {
    for (delta, &output) in deltas.iter_mut().zip(rectified) {
        *delta = if output == 0.0 { 0.0 } else { *delta };
    }
}

/// `ln Σ exp(logits) − logits[class]`, shifted by the largest logit so that none overflows.
pub(super) fn cross_entropy(logits: &[f32], class: usize) -> f32 {
    let largest = logits.iter().fold(f32::NEG_INFINITY, |largest, &logit| largest.max(logit));
    let sum: f32 = logits.iter().map(|logit| (logit - largest).exp()).sum();
    sum.ln() + (largest - logits[class])
}

/// Replaces logits by the slopes of the cross entropy: `exp(logit) / Σ exp(logits) − [class]`.
pub(super) fn softmax_slopes(logits: &mut [f32], class: usize) {
    let largest = logits.iter().fold(f32::NEG_INFINITY, |largest, &logit| largest.max(logit));
    logits.iter_mut().for_each(|logit| *logit = (*logit - largest).exp());
    let sum: f32 = logits.iter().sum();
    logits.iter_mut().for_each(|share| *share /= sum);
    logits[class] -= 1.0;
}

/// Whether the class has the largest logit, and the first of equal ones.
pub(super) fn is_largest(logits: &[f32], class: usize) -> bool {
    let before = logits[..class].iter().all(|&logit| logit < logits[class]);
    before && logits[class + 1..].iter().all(|&logit| logit <= logits[class])
}
