//! Softmax regression and perceptrons: affine layers with rectifiers between, cross entropy behind.
//!
//! ```text
//! h₀ = x,  hₖ₊₁ = max(0, hₖ·Wₖ + bₖ),  logits = h_last·W_last + b_last
//! loss = ln Σ exp(logits) − logits[class]
//! ```
//!
//! Without hidden layers this is softmax regression, convex, and starts at zero. Weights are stored
//! with a row per input, so that an input's weights are neighbors. The losses of a probe go row by
//! row through the sparse kernel; the evaluation goes in blocks through ndarray's matrix product,
//! and each checks the other in the tests.

use std::sync::Arc;

use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView2, ArrayViewMut2};

use super::{Evaluation, Objective, Scratch, Split, TensorSpec, kernel};
use crate::data::{Dataset, Features};
use crate::sample::KeyedRng;

/// Rows of an evaluation that pass through the layers together.
const BLOCK_ROWS: usize = 256;

/// Softmax regression or a perceptron on a data set.
#[derive(Clone, Debug)]
pub struct Network {
    dataset: Arc<Dataset>,
    layers: Vec<Layer>,
}

#[derive(Clone, Copy, Debug)]
struct Layer {
    inputs: usize,
    outputs: usize,
    // Where the weights begin in the flat parameters; the biases follow them.
    offset: usize,
}

impl Layer {
    fn weights<'a>(&self, params: &'a [f32]) -> &'a [f32] {
        &params[self.offset..self.offset + self.inputs * self.outputs]
    }

    fn bias<'a>(&self, params: &'a [f32]) -> &'a [f32] {
        let start = self.offset + self.inputs * self.outputs;
        &params[start..start + self.outputs]
    }
}

impl Network {
    /// A network with hidden layers of these sizes, possibly none.
    pub fn new(dataset: Arc<Dataset>, hidden: &[usize]) -> Network {
        let mut layers = Vec::with_capacity(hidden.len() + 1);
        let (mut inputs, mut offset) = (dataset.features, 0);
        for &outputs in hidden.iter().chain([&dataset.classes]) {
            layers.push(Layer { inputs, outputs, offset });
            offset += (inputs + 1) * outputs;
            inputs = outputs;
        }
        Network { dataset, layers }
    }

    fn check_len(&self, params: &[f32]) {
        let last = self.layers.last().expect("a network has a last layer");
        let dim = last.offset + (last.inputs + 1) * last.outputs;
        assert_eq!(params.len(), dim, "the parameters of all tensors together");
    }
}

impl Objective for Network {
    fn tensors(&self) -> Vec<TensorSpec> {
        let tensors = self.layers.iter().enumerate().flat_map(|(index, layer)| {
            [
                TensorSpec::new(format!("layer{index}.weight"), &[layer.inputs, layer.outputs]),
                TensorSpec::new(format!("layer{index}.bias"), &[layer.outputs]),
            ]
        });
        tensors.collect()
    }

    /// Weights uniform within `±sqrt(6 / inputs)` (He) before a rectifier and
    /// `±sqrt(6 / (inputs + outputs))` (Glorot) in the last layer; biases zero. Softmax regression
    /// starts at zero.
    fn base(&self, seed: u64) -> Vec<f32> {
        let mut params = Vec::new();
        let last = self.layers.len() - 1;
        for (index, layer) in self.layers.iter().enumerate() {
            let limit = match index {
                _ if last == 0 => 0.0,
                _ if index == last => (6.0 / (layer.inputs + layer.outputs) as f64).sqrt(),
                _ => (6.0 / layer.inputs as f64).sqrt(),
            };
            let mut rng = KeyedRng::from_seed("rumormill v1 base", seed, index as u64);
            let weights = (0..layer.inputs * layer.outputs).map(|_| rng.symmetric(limit as f32));
            params.extend(weights);
            params.extend(std::iter::repeat_n(0.0, layer.outputs));
        }
        params
    }

    fn loss_pair(
        &self,
        plus: &[f32],
        minus: &[f32],
        batch: &[u32],
        scratch: &mut Scratch,
    ) -> (f32, f32) {
        self.check_len(plus);
        self.check_len(minus);
        assert!(!batch.is_empty(), "a mean needs rows");
        let (table, first) = (&self.dataset.train, &self.layers[0]);
        let offset = match table.features {
            Features::U8 { offset, .. } => offset,
            Features::F32(_) => 0.0,
        };
        let weights = [first.weights(plus), first.weights(minus)];
        kernel::offset_bias(first.bias(plus), weights[0], offset, &mut scratch.bias);
        kernel::offset_bias(first.bias(minus), weights[1], offset, &mut scratch.bias_minus);
        let (mut sum_plus, mut sum_minus) = (0.0, 0.0);
        for &row in batch {
            let row = row as usize;
            scratch.inputs.take_row(&table.features, row);
            scratch.outputs.clone_from(&scratch.bias);
            scratch.outputs_minus.clone_from(&scratch.bias_minus);
            let (outputs, outputs_minus) = (&mut scratch.outputs, &mut scratch.outputs_minus);
            kernel::add_rows_pair(&scratch.inputs, weights, outputs, outputs_minus);
            for layer in &self.layers[1..] {
                forward(layer, plus, &mut scratch.inputs, outputs);
                forward(layer, minus, &mut scratch.inputs_minus, outputs_minus);
            }
            let class = usize::from(table.labels[row]);
            sum_plus += f64::from(cross_entropy(outputs, class));
            sum_minus += f64::from(cross_entropy(outputs_minus, class));
        }
        let count = batch.len() as f64;
        ((sum_plus / count) as f32, (sum_minus / count) as f32)
    }

    fn evaluate(&self, params: &[f32], split: Split, scratch: &mut Scratch) -> Evaluation {
        self.check_len(params);
        let table = split.table(&self.dataset);
        let (mut loss, mut correct) = (0.0, 0);
        for start in (0..table.rows()).step_by(BLOCK_ROWS) {
            let labels = &table.labels[start..table.rows().min(start + BLOCK_ROWS)];
            let [inputs, outputs] = &mut scratch.block;
            inputs.resize(labels.len() * self.dataset.features, 0.0);
            for (row, out) in (start..).zip(inputs.chunks_exact_mut(self.dataset.features)) {
                table.features.write_row(row, out);
            }
            for (index, layer) in self.layers.iter().enumerate() {
                if index > 0 {
                    // Written so that NaN stays.
                    inputs.iter_mut().filter(|h| **h <= 0.0).for_each(|h| *h = 0.0);
                }
                forward_block(layer, params, inputs, outputs, labels.len());
                std::mem::swap(inputs, outputs);
            }
            for (logits, &class) in inputs.chunks_exact(self.dataset.classes).zip(labels) {
                loss += f64::from(cross_entropy(logits, usize::from(class)));
                correct += usize::from(is_largest(logits, usize::from(class)));
            }
        }
        let count = table.rows();
        Evaluation { loss: loss / count as f64, accuracy: correct as f64 / count as f64, count }
    }
}

/// Replaces a layer's outputs by those of the next layer.
fn forward(layer: &Layer, params: &[f32], inputs: &mut kernel::Sparse, outputs: &mut Vec<f32>) {
    inputs.take_rectified(outputs);
    outputs.clear();
    outputs.extend_from_slice(layer.bias(params));
    kernel::add_rows(inputs, layer.weights(params), outputs);
}

/// Applies a layer to `rows` rows of inputs.
fn forward_block(
    layer: &Layer,
    params: &[f32],
    inputs: &[f32],
    outputs: &mut Vec<f32>,
    rows: usize,
) {
    outputs.clear();
    (0..rows).for_each(|_| outputs.extend_from_slice(layer.bias(params)));
    let expected = "the length is rows times columns";
    let inputs = ArrayView2::from_shape((rows, layer.inputs), inputs).expect(expected);
    let shape = (layer.inputs, layer.outputs);
    let weights = ArrayView2::from_shape(shape, layer.weights(params)).expect(expected);
    let mut outputs = ArrayViewMut2::from_shape((rows, layer.outputs), outputs).expect(expected);
    general_mat_mul(1.0, &inputs, &weights, 1.0, &mut outputs);
}

/// `ln Σ exp(logits) − logits[class]`, shifted by the largest logit so that none overflows.
fn cross_entropy(logits: &[f32], class: usize) -> f32 {
    let largest = logits.iter().fold(f32::NEG_INFINITY, |largest, &logit| largest.max(logit));
    let sum: f32 = logits.iter().map(|logit| (logit - largest).exp()).sum();
    sum.ln() + (largest - logits[class])
}

/// Whether the class has the largest logit, and the first of equal ones.
fn is_largest(logits: &[f32], class: usize) -> bool {
    let before = logits[..class].iter().all(|&logit| logit < logits[class]);
    before && logits[class + 1..].iter().all(|&logit| logit <= logits[class])
}
