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
//! and each checks the other in the tests. The gradient goes in blocks as well, but for the first
//! layer of byte features, where skipping the zeros is worth more than a fast product.

use std::sync::Arc;

use super::layer::{self, Layer};
use super::{Evaluation, Objective, Scratch, Split, TensorSpec, kernel, spectrum};
use crate::data::{Dataset, Features};
use crate::sample::KeyedRng;

/// Rows of an evaluation or a gradient that pass through the layers together.
const BLOCK_ROWS: usize = 256;

/// Softmax regression or a perceptron on a data set.
#[derive(Clone, Debug)]
pub struct Network {
    dataset: Arc<Dataset>,
    layers: Vec<Layer>,
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

    fn check_len(&self, len: usize) {
        let last = self.layers.last().expect("a network has a last layer");
        assert_eq!(len, last.end(), "the parameters of all tensors together");
    }

    /// Writes the rectified outputs of every hidden layer to `scratch.hidden`, and the logits
    /// behind them.
    fn forward_rows(&self, rows: &[u32], scratch: &mut Scratch) {
        let features = &self.dataset.train.features;
        let Scratch { inputs, bias, block, params, hidden, .. } = scratch;
        hidden.resize(self.layers.len(), Vec::new());
        let first = &self.layers[0];
        match features {
            Features::U8 { offset, .. } => {
                let weights = first.weights(params);
                kernel::offset_bias(first.bias(params), weights, *offset, bias);
                hidden[0].clear();
                rows.iter().for_each(|_| hidden[0].extend_from_slice(bias));
                for (&row, outputs) in rows.iter().zip(hidden[0].chunks_exact_mut(first.outputs)) {
                    inputs.take_row(features, row as usize);
                    kernel::add_rows(inputs, weights, outputs);
                }
            }
            Features::F32(_) | Features::Text(_) => {
                block[0].resize(rows.len() * first.inputs, 0.0);
                for (&row, out) in rows.iter().zip(block[0].chunks_exact_mut(first.inputs)) {
                    features.write_row(row as usize, out);
                }
                first.forward(params, &block[0], &mut hidden[0], rows.len());
            }
        }
        for index in 1..self.layers.len() {
            let (before, after) = hidden.split_at_mut(index);
            let inputs = &mut before[index - 1];
            layer::rectify(inputs);
            self.layers[index].forward(params, inputs, &mut after[0], rows.len());
        }
    }

    /// Adds `share` of the slopes of the rows' losses, whose slopes by the logits are in
    /// `scratch.deltas`.
    fn backward_rows(&self, rows: &[u32], share: f64, out: &mut [f64], scratch: &mut Scratch) {
        let features = &self.dataset.train.features;
        let Scratch { inputs, block, params, hidden, deltas, slopes, .. } = scratch;
        let [deltas, deltas_inputs] = deltas;
        for (index, layer) in self.layers.iter().enumerate().rev() {
            slopes.clear();
            slopes.resize(layer.len(), 0.0);
            let (weight_slopes, bias_slopes) = slopes.split_at_mut(layer.inputs * layer.outputs);
            layer.add_bias_slopes(deltas, bias_slopes);
            match features {
                Features::U8 { .. } if index == 0 => {
                    for (&row, deltas) in rows.iter().zip(deltas.chunks_exact(layer.outputs)) {
                        inputs.take_row(features, row as usize);
                        kernel::add_outer(inputs, deltas, weight_slopes);
                    }
                }
                _ => {
                    let inputs = if index == 0 { &block[0] } else { &hidden[index - 1] };
                    layer.add_weight_slopes(inputs, deltas, weight_slopes, rows.len());
                }
            }
            let offset = if index == 0 { features.offset() } else { 0.0 };
            let out = &mut out[layer.offset..][..layer.len()];
            let (out_weights, out_bias) = out.split_at_mut(weight_slopes.len());
            add_slopes(weight_slopes, offset, bias_slopes, share, out_weights);
            add_slopes(bias_slopes, 0.0, bias_slopes, share, out_bias);
            if index > 0 {
                layer.backward(params, deltas, deltas_inputs, rows.len());
                layer::rectify_slopes(deltas_inputs, &hidden[index - 1]);
                std::mem::swap(deltas, deltas_inputs);
            }
        }
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
        self.check_len(plus.len());
        self.check_len(minus.len());
        assert!(!batch.is_empty(), "a mean needs rows");
        let (table, first) = (&self.dataset.train, &self.layers[0]);
        let offset = table.features.offset();
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
            sum_plus += f64::from(layer::cross_entropy(outputs, class));
            sum_minus += f64::from(layer::cross_entropy(outputs_minus, class));
        }
        let count = batch.len() as f64;
        ((sum_plus / count) as f32, (sum_minus / count) as f32)
    }

    fn evaluate(&self, params: &[f32], split: Split, scratch: &mut Scratch) -> Evaluation {
        self.check_len(params.len());
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
                    layer::rectify(inputs);
                }
                layer.forward(params, inputs, outputs, labels.len());
                std::mem::swap(inputs, outputs);
            }
            for (logits, &class) in inputs.chunks_exact(self.dataset.classes).zip(labels) {
                loss += f64::from(layer::cross_entropy(logits, usize::from(class)));
                correct += usize::from(layer::is_largest(logits, usize::from(class)));
            }
        }
        let count = table.rows();
        Evaluation { loss: loss / count as f64, accuracy: correct as f64 / count as f64, count }
    }

    /// In `f32` from the parameters on; rows are added up in blocks of 256, and these in `f64`.
    fn gradient(
        &self,
        params: &[f64],
        batch: &[u32],
        out: &mut [f64],
        scratch: &mut Scratch,
    ) -> f64 {
        self.check_len(params.len());
        self.check_len(out.len());
        assert!(!batch.is_empty(), "a mean needs rows");
        scratch.params.clear();
        scratch.params.extend(params.iter().map(|&param| param as f32));
        out.fill(0.0);
        let (mut loss, count) = (0.0, batch.len() as f64);
        for rows in batch.chunks(BLOCK_ROWS) {
            self.forward_rows(rows, scratch);
            let logits = scratch.hidden.last().expect("a network has a last layer");
            scratch.deltas[0].clone_from(logits);
            let deltas = scratch.deltas[0].chunks_exact_mut(self.dataset.classes);
            for (&row, deltas) in rows.iter().zip(deltas) {
                let class = usize::from(self.dataset.train.labels[row as usize]);
                loss += f64::from(layer::cross_entropy(deltas, class));
                layer::softmax_slopes(deltas, class);
            }
            self.backward_rows(rows, 1.0 / count, out, scratch);
        }
        loss / count
    }

    /// Of softmax regression only: the Hessian of the loss by the logits is at most half the
    /// identity (Böhning 1992).
    fn curvature(&self, rows: &[u32], scratch: &mut Scratch) -> Option<(f64, f64)> {
        let convex = self.layers.len() == 1;
        convex.then(|| (0.0, spectrum::largest(&self.dataset.train, rows, true, scratch) / 2.0))
    }
}

/// Replaces a layer's outputs by those of the next layer.
fn forward(layer: &Layer, params: &[f32], inputs: &mut kernel::Sparse, outputs: &mut Vec<f32>) {
    inputs.take_rectified(outputs);
    outputs.clear();
    outputs.extend_from_slice(layer.bias(params));
    kernel::add_rows(inputs, layer.weights(params), outputs);
}

/// Adds a share of a block's slopes by the weights, with what the features' common offset adds to
/// each row.
fn add_slopes(slopes: &[f32], offset: f32, bias_slopes: &[f32], share: f64, out: &mut [f64]) {
    let rows = out.chunks_exact_mut(bias_slopes.len());
    for (out, slopes) in rows.zip(slopes.chunks_exact(bias_slopes.len())) {
        for ((out, &slope), &bias) in out.iter_mut().zip(slopes).zip(bias_slopes) {
            *out += share * f64::from(slope + offset * bias);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::digits;
    use crate::direction::Direction;
    use crate::id::{NodeId, Round, RunId, Slot};
    use crate::objective::{ModelSpec, build};
    use crate::params::{Payout, State, coefficient};
    use crate::sample::minibatch;
    use crate::spsa::projected_gradient;

    fn some_digits() -> Arc<Dataset> {
        let (train, test) = (digits::table(1, 0, 600), digits::table(1, 1, 300));
        Arc::new(Dataset::assemble("some digits", train, Some(test)).unwrap())
    }

    /// The same rows with features stored as floats.
    fn as_floats(dataset: &Dataset) -> Arc<Dataset> {
        let mut dataset = dataset.clone();
        for table in [&mut dataset.train, &mut dataset.test] {
            let mut rows = ndarray::Array2::zeros((table.rows(), table.features.columns()));
            for (index, mut row) in rows.rows_mut().into_iter().enumerate() {
                table.features.write_row(index, row.as_slice_mut().unwrap());
            }
            table.features = Features::F32(rows);
        }
        Arc::new(dataset)
    }

    #[test]
    fn untrained_softmax_knows_nothing() {
        let network = Network::new(some_digits(), &[]);
        let base = network.base(0);
        let mut scratch = Scratch::default();
        let (plus, minus) = network.loss_pair(&base, &base, &[3, 5], &mut scratch);
        assert!((plus - 10f32.ln()).abs() < 1e-6 && plus == minus, "{plus} {minus}");
        let evaluation = network.evaluate(&base, Split::Test, &mut scratch);
        assert!((evaluation.loss - 10f64.ln()).abs() < 1e-6);
        // Equal logits go to the first class, and every tenth row is a zero.
        assert_eq!((evaluation.accuracy, evaluation.count), (0.1, 300));
    }

    #[test]
    fn probe_and_evaluation_agree() {
        let dataset = some_digits();
        for dataset in [as_floats(&dataset), dataset] {
            for hidden in [&[][..], &[32], &[7, 45, 3]] {
                let network = Network::new(dataset.clone(), hidden);
                let mut scratch = Scratch::default();
                let mut rng = KeyedRng::from_seed("rumormill v1 test", 3, 0);
                let shaken = |rng: &mut KeyedRng| -> Vec<f32> {
                    network.base(5).iter().map(|v| v + rng.symmetric(0.05)).collect()
                };
                let (plus, minus) = (shaken(&mut rng), shaken(&mut rng));
                let batch: Vec<u32> = (0..600).collect();
                let losses = network.loss_pair(&plus, &minus, &batch, &mut scratch);
                for (params, loss) in [(&plus, losses.0), (&minus, losses.1)] {
                    let whole = network.evaluate(params, Split::Train, &mut scratch).loss;
                    assert!((whole - f64::from(loss)).abs() < 1e-5, "{hidden:?} {whole} {loss}");
                }
            }
        }
    }

    /// The mean loss straight from the formula, in `f64`.
    fn slow_loss(network: &Network, params: &[f64], batch: &[u32]) -> f64 {
        let table = &network.dataset.train;
        let mut sum = 0.0;
        for &row in batch {
            let mut features = vec![0.0; network.dataset.features];
            table.features.write_row(row as usize, &mut features);
            let mut inputs: Vec<f64> = features.iter().map(|&x| f64::from(x)).collect();
            for (index, layer) in network.layers.iter().enumerate() {
                if index > 0 {
                    inputs.iter_mut().for_each(|h| *h = h.max(0.0));
                }
                let (weights, bias) =
                    params[layer.offset..][..layer.len()].split_at(layer.inputs * layer.outputs);
                let output = |to: usize| {
                    let products = inputs.iter().zip(weights[to..].iter().step_by(layer.outputs));
                    bias[to] + products.map(|(input, weight)| input * weight).sum::<f64>()
                };
                inputs = (0..layer.outputs).map(output).collect();
            }
            let exponentials: f64 = inputs.iter().map(|logit| logit.exp()).sum();
            sum += exponentials.ln() - inputs[usize::from(table.labels[row as usize])];
        }
        sum / batch.len() as f64
    }

    #[test]
    fn gradient_is_the_slope_of_the_loss() {
        let dataset = some_digits();
        for dataset in [as_floats(&dataset), dataset] {
            for hidden in [&[][..], &[12], &[7, 45, 3]] {
                let network = Network::new(dataset.clone(), hidden);
                let mut scratch = Scratch::default();
                let mut rng = KeyedRng::from_seed("rumormill v1 test", 6, 0);
                // What `f32` can hold, so that both losses are of the same parameters.
                let params: Vec<f64> = network
                    .base(5)
                    .iter()
                    .map(|value| f64::from(value + rng.symmetric(0.05)))
                    .collect();
                // More than a block of rows, and after it a few in the same scratch.
                for batch in [(0..300).collect(), vec![7, 30, 7]] {
                    let mut gradient = vec![f64::NAN; params.len()];
                    let loss = network.gradient(&params, &batch, &mut gradient, &mut scratch);
                    assert!((loss - slow_loss(&network, &params, &batch)).abs() < 1e-6);
                    let places = (0..params.len()).step_by(151).chain([params.len() - 1]);
                    for place in places {
                        let at = |by: f64| {
                            let mut params = params.clone();
                            params[place] += by;
                            slow_loss(&network, &params, &batch)
                        };
                        let difference = (at(1e-6) - at(-1e-6)) / 2e-6;
                        let slope = gradient[place];
                        assert!(
                            (slope - difference).abs() < 2e-6 * (1.0 + difference.abs()),
                            "{hidden:?} {place}: {slope} {difference}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn softmax_alone_is_convex() {
        let (dataset, mut scratch) = (some_digits(), Scratch::default());
        let softmax = Network::new(dataset.clone(), &[]);
        let (convexity, smoothness) = softmax.curvature(&[0, 1, 2], &mut scratch).unwrap();
        assert!(convexity == 0.0 && smoothness > 0.0, "{smoothness}");
        assert_eq!(Network::new(dataset, &[8]).curvature(&[0], &mut scratch), None);
    }

    #[test]
    fn steps_of_one_over_the_smoothness_only_descend() {
        let (dataset, mut scratch) = (some_digits(), Scratch::default());
        let softmax = Network::new(dataset, &[]);
        let rows: Vec<u32> = (0..600).collect();
        let (_, smoothness) = softmax.curvature(&rows, &mut scratch).unwrap();
        let mut params: Vec<f64> = softmax.base(0).into_iter().map(f64::from).collect();
        let mut slopes = vec![0.0; params.len()];
        let mut before = f64::INFINITY;
        for _ in 0..30 {
            let loss = softmax.gradient(&params, &rows, &mut slopes, &mut scratch);
            assert!(loss < before, "{loss} after {before}");
            before = loss;
            params.iter_mut().zip(&slopes).for_each(|(param, slope)| *param -= slope / smoothness);
        }
        assert!(before < 2.0, "{before}");
    }

    #[test]
    fn losses_that_are_not_finite_flow_through() {
        for hidden in [&[][..], &[8]] {
            let network = Network::new(some_digits(), hidden);
            let mut scratch = Scratch::default();
            for value in [f32::NAN, f32::INFINITY, 1e38] {
                let mut plus = network.base(0);
                plus.fill(value);
                let minus = network.base(0);
                let (bad, good) = network.loss_pair(&plus, &minus, &[0, 1], &mut scratch);
                assert!(!bad.is_finite() && good.is_finite(), "{value}: {bad} {good}");
                assert!(!network.evaluate(&plus, Split::Test, &mut scratch).loss.is_finite());
            }
        }
    }

    #[test]
    fn base_depends_on_the_seed_alone() {
        let network = Network::new(some_digits(), &[32]);
        assert_eq!(network.base(1), network.base(1));
        assert_ne!(network.base(1), network.base(2));
        let dim: usize = network.tensors().iter().map(TensorSpec::len).sum();
        assert_eq!((network.base(1).len(), dim), (8554, 8554));
    }

    /// First-order SGD with momentum and a rate falling linearly to zero; one row at a time within
    /// minibatches of 32, straight from the chain rule.
    fn train_first_order(network: &Network, epochs: usize, rate: f32) -> Vec<f32> {
        let mut params = network.base(1);
        let mut velocity = vec![0.0; params.len()];
        let table = &network.dataset.train;
        let steps = epochs * table.rows() / 32;
        let mut rng = KeyedRng::from_seed("rumormill v1 test", 4, 0);
        let mut rows: Vec<u32> = Vec::new();
        for step in 0..steps {
            if rows.len() < 32 {
                rows = rng.permutation(table.rows() as u32);
            }
            let mut gradient = vec![0.0; params.len()];
            for row in rows.split_off(rows.len() - 32) {
                add_gradient(network, &params, row as usize, &mut gradient);
            }
            let rate = rate * (1.0 - step as f32 / steps as f32) / 32.0;
            for ((param, velocity), gradient) in params.iter_mut().zip(&mut velocity).zip(gradient)
            {
                *velocity = 0.9 * *velocity - rate * gradient;
                *param += *velocity;
            }
        }
        params
    }

    fn add_gradient(network: &Network, params: &[f32], row: usize, gradient: &mut [f32]) {
        let table = &network.dataset.train;
        let mut activations = vec![vec![0.0; network.dataset.features]];
        table.features.write_row(row, &mut activations[0]);
        for (index, layer) in network.layers.iter().enumerate() {
            let mut outputs = layer.bias(params).to_vec();
            let inputs = &activations[index];
            for (input, weights) in inputs.iter().zip(layer.weights(params).chunks(layer.outputs)) {
                outputs.iter_mut().zip(weights).for_each(|(sum, weight)| *sum += input * weight);
            }
            if index + 1 < network.layers.len() {
                outputs.iter_mut().for_each(|h| *h = h.max(0.0));
            }
            activations.push(outputs);
        }
        let mut delta = activations.pop().unwrap();
        let largest = delta.iter().copied().fold(f32::MIN, f32::max);
        let sum: f32 = delta.iter().map(|logit| (logit - largest).exp()).sum();
        delta.iter_mut().for_each(|logit| *logit = (*logit - largest).exp() / sum);
        delta[usize::from(table.labels[row])] -= 1.0;
        for (layer, inputs) in network.layers.iter().zip(&activations).rev() {
            let slopes = &mut gradient[layer.offset..];
            for (input, slopes) in inputs.iter().chain([&1.0]).zip(slopes.chunks_mut(layer.outputs))
            {
                slopes.iter_mut().zip(&delta).for_each(|(slope, delta)| *slope += input * delta);
            }
            let weights = layer.weights(params).chunks(layer.outputs);
            let back = inputs.iter().zip(weights).map(|(&input, weights)| {
                let sum: f32 = weights.iter().zip(&delta).map(|(w, d)| w * d).sum();
                if input > 0.0 { sum } else { 0.0 }
            });
            delta = back.collect();
        }
    }

    #[test]
    fn built_in_task_needs_more_than_a_linear_model() {
        let dataset = Arc::new(digits::dataset(1));
        let mut scratch = Scratch::default();
        let mut accuracy = |hidden: &[usize], epochs, rate| {
            let network = Network::new(dataset.clone(), hidden);
            let params = train_first_order(&network, epochs, rate);
            network.evaluate(&params, Split::Test, &mut scratch).accuracy
        };
        let (linear, perceptron) = (accuracy(&[], 4, 0.01), accuracy(&[32], 6, 0.02));
        println!("first-order SGD: softmax {linear}, mlp:32 {perceptron}");
        assert!((0.82..0.91).contains(&linear), "{linear}");
        assert!(perceptron > linear + 0.05, "{perceptron} against {linear}");
    }

    #[test]
    fn plain_spsa_lowers_the_loss_of_the_built_in_task() {
        let objective = build(&ModelSpec::Softmax, some_digits()).unwrap();
        let mut state = State::from_base(objective.tensors(), objective.base(0)).unwrap();
        let dim = state.layout().dim();
        let (mut plus, mut minus, mut view) = (vec![0.0; dim], vec![0.0; dim], vec![0.0; dim]);
        let mut scratch = Scratch::default();
        let (run, node) = (RunId([1; 32]), NodeId([2; 32]));
        let mut batch = [0; 64];
        for round in 0..300 {
            let payouts: Vec<Payout> = (0..16)
                .map(|slot| {
                    let (round, slot) = (Round(round), Slot(slot));
                    let direction = Direction::new(&run, round, slot);
                    state.write_pair(&direction, -7, &mut plus, &mut minus);
                    minibatch(&run, &node, round, slot, 600, &mut batch);
                    let (l_plus, l_minus) =
                        objective.loss_pair(&plus, &minus, &batch, &mut scratch);
                    let slope = projected_gradient(l_plus, l_minus, -7);
                    Payout { direction, from: 0, to: coefficient(-0.0001 * slope) }
                })
                .collect();
            state.apply(&payouts);
        }
        state.write_view(&mut view);
        let evaluation = objective.evaluate(&view, Split::Test, &mut scratch);
        println!("plain SPSA, 4800 probes: {evaluation:?}");
        assert!(evaluation.loss < 1.9 && evaluation.accuracy > 0.45, "{evaluation:?}");
    }
}
