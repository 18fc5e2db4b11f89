//! The small convolutional network that MoNNA is measured on (Farhadkhani et al., ICML 2023).
//!
//! ```text
//! conv 20@5×5 – pool 2 – ReLU – conv 50@5×5 – pool 2 – ReLU – fc 500 – ReLU – fc classes
//! loss = ln Σ exp(logits) − logits[class]
//! ```
//!
//! Convolutions are valid ones, pools take the maximum of 2×2. Taking the maximum before the
//! rectifier gives the same numbers as after it, of a quarter as many. Images have one channel and
//! their channels last inside the network, so a filter's patch is a few runs of memory: a
//! convolution copies its patches to rows and is an affine layer on these (`im2col`). It does so
//! image by image, as the patches of one image fit a cache; the last two layers, whose weights do
//! not, take a block of rows.
//!
//! Not here: anything but square images whose sides the two pools halve without a rest. All is
//! computed in `f32`; rows are added up in blocks of 64, and these in `f64`.

use std::sync::Arc;

use super::layer::{self, Layer};
use super::{Evaluation, Objective, Scratch, Split, TensorSpec};
use crate::data::{Dataset, Table};
use crate::sample::KeyedRng;

/// Rows that pass through the last two layers together.
const BLOCK_ROWS: usize = 64;

/// The convolutional network on a data set of square images.
#[derive(Clone, Debug)]
pub struct Cnn {
    dataset: Arc<Dataset>,
    convolutions: [Convolution; 2],
    hidden: Layer,
    last: Layer,
}

/// What is fixed in the published network, and smaller in tests.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    channels: [usize; 2],
    kernel: usize,
    hidden: usize,
}

const PUBLISHED: Sizes = Sizes { channels: [20, 50], kernel: 5, hidden: 500 };

/// What a gradient needs of the way forward, and room for one image.
#[derive(Clone, Debug, Default)]
pub(super) struct Buffers {
    images: Vec<f32>,
    /// The rectified maxima behind each convolution, for a block of rows.
    pooled: [Vec<f32>; 2],
    /// Which of its four outputs each maximum is.
    winners: [Vec<u8>; 2],
    /// The slopes by the first convolution's maxima, of one image.
    pooled_deltas: Vec<f32>,
    /// The patches of an image, a row each, and the slopes by them.
    patches: Vec<f32>,
    patch_deltas: Vec<f32>,
    /// The outputs of a convolution before the maxima, and the slopes by them.
    outputs: Vec<f32>,
}

impl Cnn {
    /// The published network, or `None` if the features are no square images of a fitting side.
    pub fn new(dataset: Arc<Dataset>) -> Option<Cnn> {
        Cnn::with_sizes(dataset, PUBLISHED)
    }

    fn with_sizes(dataset: Arc<Dataset>, sizes: Sizes) -> Option<Cnn> {
        let Sizes { channels, kernel, hidden } = sizes;
        let side = dataset.features.isqrt();
        if side * side != dataset.features {
            return None;
        }
        let first = Convolution::new(side, 1, kernel, channels[0], 0)?;
        let end = first.filters.end();
        let second = Convolution::new(first.pooled_side, channels[0], kernel, channels[1], end)?;
        let offset = second.filters.end();
        let hidden = Layer { inputs: second.pooled_len(), outputs: hidden, offset };
        let classes = dataset.classes;
        let last = Layer { inputs: hidden.outputs, outputs: classes, offset: hidden.end() };
        Some(Cnn { dataset, convolutions: [first, second], hidden, last })
    }

    fn layers(&self) -> [Layer; 4] {
        let [first, second] = &self.convolutions;
        [first.filters, second.filters, self.hidden, self.last]
    }

    /// Writes the logits of rows to `scratch.hidden[1]`, and to `scratch` what led there.
    fn forward(&self, params: &[f32], table: &Table, rows: &[u32], scratch: &mut Scratch) {
        assert_eq!(params.len(), self.last.end(), "the parameters of all tensors together");
        let Scratch { hidden, images: buffers, .. } = scratch;
        let Buffers { images, pooled, winners, patches, outputs, .. } = buffers;
        images.resize(rows.len() * self.dataset.features, 0.0);
        for ((pooled, winners), convolution) in
            pooled.iter_mut().zip(&mut *winners).zip(&self.convolutions)
        {
            pooled.resize(rows.len() * convolution.pooled_len(), 0.0);
            winners.resize(pooled.len(), 0);
        }
        let [first, second] = &self.convolutions;
        let [pooled, pooled_last] = pooled;
        let [winners, winners_last] = winners;
        for (index, &row) in rows.iter().enumerate() {
            let image = &mut images[first.input_range(index)];
            table.features.write_row(row as usize, image);
            let range = first.pooled_range(index);
            let (pooled, winners) = (&mut pooled[range.clone()], &mut winners[range]);
            first.forward(params, image, patches, outputs, pooled, winners);
            let range = second.pooled_range(index);
            let (pooled_last, winners_last) =
                (&mut pooled_last[range.clone()], &mut winners_last[range]);
            second.forward(params, pooled, patches, outputs, pooled_last, winners_last);
        }
        hidden.resize(hidden.len().max(2), Vec::new());
        let (before, after) = hidden.split_at_mut(1);
        self.hidden.forward(params, pooled_last, &mut before[0], rows.len());
        layer::rectify(&mut before[0]);
        self.last.forward(params, &before[0], &mut after[0], rows.len());
    }

    /// Adds the slopes of the losses of the rows last passed forward to `scratch.slopes`; those by
    /// their logits are in `scratch.deltas[0]`.
    fn backward(&self, params: &[f32], count: usize, scratch: &mut Scratch) {
        let Scratch { hidden, deltas: [deltas, deltas_before], slopes, images: buffers, .. } =
            scratch;
        let Buffers { images, pooled, winners, .. } = buffers;
        let [pooled, pooled_last] = pooled;
        let [winners, winners_last] = winners;

        add_layer_slopes(&self.last, &hidden[0], deltas, slopes, count);
        self.last.backward(params, deltas, deltas_before, count);
        layer::rectify_slopes(deltas_before, &hidden[0]);
        std::mem::swap(deltas, deltas_before);
        add_layer_slopes(&self.hidden, pooled_last, deltas, slopes, count);
        self.hidden.backward(params, deltas, deltas_before, count);
        layer::rectify_slopes(deltas_before, pooled_last);

        let [first, second] = &self.convolutions;
        let Buffers { patches, patch_deltas, outputs, pooled_deltas, .. } = buffers;
        for index in 0..count {
            let range = second.pooled_range(index);
            second.spread(&deltas_before[range.clone()], &winners_last[range], outputs);
            let (range, inputs) = (first.pooled_range(index), second.input_range(index));
            let pooled = &pooled[inputs];
            second.copy_patches(pooled, patches);
            add_layer_slopes(&second.filters, patches, outputs, slopes, second.positions());
            second.filters.backward(params, outputs, patch_deltas, second.positions());
            second.add_patches(patch_deltas, pooled_deltas);
            layer::rectify_slopes(pooled_deltas, pooled);
            first.spread(pooled_deltas, &winners[range], outputs);
            first.copy_patches(&images[first.input_range(index)], patches);
            add_layer_slopes(&first.filters, patches, outputs, slopes, first.positions());
        }
    }

    fn mean_loss(&self, params: &[f32], batch: &[u32], scratch: &mut Scratch) -> f32 {
        let table = &self.dataset.train;
        let mut sum = 0.0;
        for rows in batch.chunks(BLOCK_ROWS) {
            self.forward(params, table, rows, scratch);
            let logits = scratch.hidden[1].chunks_exact(self.dataset.classes);
            for (logits, &row) in logits.zip(rows) {
                let class = usize::from(table.labels[row as usize]);
                sum += f64::from(layer::cross_entropy(logits, class));
            }
        }
        (sum / batch.len() as f64) as f32
    }
}

impl Objective for Cnn {
    fn tensors(&self) -> Vec<TensorSpec> {
        let [first, second] = &self.convolutions;
        let filters = |c: &Convolution| vec![c.kernel, c.kernel, c.channels, c.filters.outputs];
        let weights = |layer: &Layer| vec![layer.inputs, layer.outputs];
        let shapes = [filters(first), filters(second), weights(&self.hidden), weights(&self.last)];
        let names = ["conv0", "conv1", "layer0", "layer1"];
        let tensors = names.iter().zip(shapes).flat_map(|(name, shape)| {
            let outputs = shape[shape.len() - 1];
            [
                TensorSpec::new(format!("{name}.weight"), &shape),
                TensorSpec::new(format!("{name}.bias"), &[outputs]),
            ]
        });
        tensors.collect()
    }

    /// Weights uniform within `±1/sqrt(inputs)`, an input being one of a patch; biases zero.
    ///
    /// The limits of perceptrons (He's) are too wide here, as maxima of four are larger than what
    /// they are taken of: on the built-in digits the loss would start at 6.8 instead of ln 10.
    fn base(&self, seed: u64) -> Vec<f32> {
        let mut params = Vec::with_capacity(self.last.end());
        for (index, layer) in self.layers().iter().enumerate() {
            let limit = (1.0 / layer.inputs as f64).sqrt() as f32;
            let mut rng = KeyedRng::from_seed("rumormill v1 base", seed, index as u64);
            params.extend((0..layer.inputs * layer.outputs).map(|_| rng.symmetric(limit)));
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
        assert!(!batch.is_empty(), "a mean needs rows");
        (self.mean_loss(plus, batch, scratch), self.mean_loss(minus, batch, scratch))
    }

    fn evaluate(&self, params: &[f32], split: Split, scratch: &mut Scratch) -> Evaluation {
        let table = split.table(&self.dataset);
        let (mut loss, mut correct, count) = (0.0, 0, table.rows());
        let mut rows = [0; BLOCK_ROWS];
        for start in (0..count).step_by(BLOCK_ROWS) {
            let rows = &mut rows[..BLOCK_ROWS.min(count - start)];
            rows.iter_mut().zip(start as u32..).for_each(|(row, number)| *row = number);
            self.forward(params, table, rows, scratch);
            let logits = scratch.hidden[1].chunks_exact(self.dataset.classes);
            for (logits, &class) in logits.zip(&table.labels[start..]) {
                loss += f64::from(layer::cross_entropy(logits, usize::from(class)));
                correct += usize::from(layer::is_largest(logits, usize::from(class)));
            }
        }
        Evaluation { loss: loss / count as f64, accuracy: correct as f64 / count as f64, count }
    }

    fn gradient(
        &self,
        params: &[f64],
        batch: &[u32],
        out: &mut [f64],
        scratch: &mut Scratch,
    ) -> f64 {
        assert!(!batch.is_empty(), "a mean needs rows");
        assert_eq!(out.len(), params.len(), "a slope per parameter");
        let table = &self.dataset.train;
        // Out of the scratch while the rest of it is written to.
        let mut narrow = std::mem::take(&mut scratch.params);
        narrow.clear();
        narrow.extend(params.iter().map(|&param| param as f32));
        out.fill(0.0);
        let (mut loss, count) = (0.0, batch.len() as f64);
        for rows in batch.chunks(BLOCK_ROWS) {
            self.forward(&narrow, table, rows, scratch);
            scratch.deltas[0].clone_from(&scratch.hidden[1]);
            let deltas = scratch.deltas[0].chunks_exact_mut(self.dataset.classes);
            for (deltas, &row) in deltas.zip(rows) {
                let class = usize::from(table.labels[row as usize]);
                loss += f64::from(layer::cross_entropy(deltas, class));
                layer::softmax_slopes(deltas, class);
            }
            scratch.slopes.clear();
            scratch.slopes.resize(narrow.len(), 0.0);
            self.backward(&narrow, rows.len(), scratch);
            let slopes = out.iter_mut().zip(&scratch.slopes);
            slopes.for_each(|(out, &slope)| *out += 1.0 / count * f64::from(slope));
        }
        scratch.params = narrow;
        loss / count
    }

    /// `None`: the loss is not convex.
    fn curvature(&self, _rows: &[u32], _scratch: &mut Scratch) -> Option<(f64, f64)> {
        None
    }
}

fn add_layer_slopes(
    layer: &Layer,
    inputs: &[f32],
    deltas: &[f32],
    slopes: &mut [f32],
    rows: usize,
) {
    let slopes = &mut slopes[layer.offset..layer.end()];
    let (weights, bias) = slopes.split_at_mut(layer.inputs * layer.outputs);
    layer.add_weight_slopes(inputs, deltas, weights, rows);
    layer.add_bias_slopes(deltas, bias);
}

/// A valid convolution of a square image, the maxima of 2×2 of its outputs, and a rectifier.
#[derive(Clone, Copy, Debug)]
struct Convolution {
    /// An affine layer of a patch's numbers.
    filters: Layer,
    side: usize,
    channels: usize,
    kernel: usize,
    pooled_side: usize,
}

impl Convolution {
    /// `None` if the outputs are not evenly many a side, or none.
    fn new(
        side: usize,
        channels: usize,
        kernel: usize,
        filters: usize,
        offset: usize,
    ) -> Option<Convolution> {
        let outputs_side = (side + 1).checked_sub(kernel)?;
        if outputs_side == 0 || outputs_side % 2 != 0 {
            return None;
        }
        let filters = Layer { inputs: kernel * kernel * channels, outputs: filters, offset };
        Some(Convolution { filters, side, channels, kernel, pooled_side: outputs_side / 2 })
    }

    /// The number of patches of an image.
    fn positions(&self) -> usize {
        4 * self.pooled_side * self.pooled_side
    }

    fn pooled_len(&self) -> usize {
        self.pooled_side * self.pooled_side * self.filters.outputs
    }

    fn pooled_range(&self, index: usize) -> std::ops::Range<usize> {
        index * self.pooled_len()..(index + 1) * self.pooled_len()
    }

    fn input_range(&self, index: usize) -> std::ops::Range<usize> {
        let len = self.side * self.side * self.channels;
        index * len..(index + 1) * len
    }

    fn forward(
        &self,
        params: &[f32],
        image: &[f32],
        patches: &mut Vec<f32>,
        outputs: &mut Vec<f32>,
        pooled: &mut [f32],
        winners: &mut [u8],
    ) {
        self.copy_patches(image, patches);
        self.filters.forward(params, patches, outputs, self.positions());
        let channels = self.filters.outputs;
        let pooled = pooled.chunks_exact_mut(channels).zip(winners.chunks_exact_mut(channels));
        for (place, (pooled, winners)) in pooled.enumerate() {
            pooled.fill(f32::NEG_INFINITY);
            winners.fill(0);
            for (corner, start) in self.corners(place).into_iter().enumerate() {
                let outputs = &outputs[start..][..channels];
                for ((largest, winner), &output) in
                    pooled.iter_mut().zip(&mut *winners).zip(outputs)
                {
                    // NaN wins, and stays.
                    let wins = output > *largest || output.is_nan();
                    *largest = if wins { output } else { *largest };
                    *winner = if wins { corner as u8 } else { *winner };
                }
            }
            layer::rectify(pooled);
        }
    }

    /// Writes the slopes by the outputs: those by the maxima where they come from, zero elsewhere.
    fn spread(&self, pooled_deltas: &[f32], winners: &[u8], outputs: &mut Vec<f32>) {
        let channels = self.filters.outputs;
        outputs.resize(self.positions() * channels, 0.0);
        let pooled = pooled_deltas.chunks_exact(channels).zip(winners.chunks_exact(channels));
        for (place, (deltas, winners)) in pooled.enumerate() {
            for (corner, start) in self.corners(place).into_iter().enumerate() {
                let outputs = &mut outputs[start..][..channels];
                for ((output, &delta), &winner) in outputs.iter_mut().zip(deltas).zip(winners) {
                    *output = if usize::from(winner) == corner { delta } else { 0.0 };
                }
            }
        }
    }

    /// Where the four outputs of a maximum begin.
    fn corners(&self, place: usize) -> [usize; 4] {
        let (y, x) = (place / self.pooled_side, place % self.pooled_side);
        let (row, channels) = (2 * self.pooled_side * self.filters.outputs, self.filters.outputs);
        let start = 2 * y * row + 2 * x * channels;
        [start, start + channels, start + row, start + row + channels]
    }

    fn copy_patches(&self, image: &[f32], patches: &mut Vec<f32>) {
        patches.clear();
        for start in self.starts() {
            for y in 0..self.kernel {
                let start = start + y * self.side * self.channels;
                patches.extend_from_slice(&image[start..][..self.kernel * self.channels]);
            }
        }
    }

    /// Writes the slopes by the image, given those by the patches.
    fn add_patches(&self, patch_deltas: &[f32], image: &mut Vec<f32>) {
        image.clear();
        image.resize(self.side * self.side * self.channels, 0.0);
        let run = self.kernel * self.channels;
        for (start, deltas) in self.starts().zip(patch_deltas.chunks_exact(self.kernel * run)) {
            for (y, deltas) in deltas.chunks_exact(run).enumerate() {
                let image = &mut image[start + y * self.side * self.channels..][..run];
                image.iter_mut().zip(deltas).for_each(|(sum, delta)| *sum += delta);
            }
        }
    }

    /// Where each patch begins in the image.
    fn starts(&self) -> impl Iterator<Item = usize> + use<> {
        let Convolution { side, channels, pooled_side, .. } = *self;
        let row = move |y| (0..2 * pooled_side).map(move |x| (y * side + x) * channels);
        (0..2 * pooled_side).flat_map(row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Features, digits};

    const TINY: Sizes = Sizes { channels: [3, 5], kernel: 3, hidden: 8 };

    /// Four noisy images of 10×10 and three classes.
    fn noise(bytes: bool) -> Arc<Dataset> {
        let mut rng = KeyedRng::from_seed("rumormill v1 test", 7, 0);
        let values = ndarray::Array2::from_shape_simple_fn((4, 100), || rng.symmetric(1.0));
        let features = if bytes {
            let values = values.mapv(|value| (200.0 * value).max(0.0) as u8);
            Features::U8 { values, scale: 0.01, offset: -0.4 }
        } else {
            Features::F32(values)
        };
        let table = Table { features, labels: vec![0, 2, 1, 2] };
        Arc::new(Dataset {
            name: "noise".to_owned(),
            features: 100,
            classes: 3,
            class_names: ["a", "b", "c"].map(str::to_owned).to_vec(),
            train: table.clone(),
            test: table,
        })
    }

    fn some_digits() -> Arc<Dataset> {
        let (train, test) = (digits::table(1, 0, 600), digits::table(1, 1, 300));
        Arc::new(Dataset::assemble("some digits", train, Some(test)).unwrap())
    }

    /// A convolution, the rectifier and the pool, in the order of the paper and in `f64`.
    fn slow_convolution(c: &Convolution, params: &[f64], image: &[f64]) -> Vec<f64> {
        let (n, outputs) = (2 * c.pooled_side, c.filters.outputs);
        let (weights, bias) =
            params[c.filters.offset..c.filters.end()].split_at(c.filters.inputs * outputs);
        let output = |y: usize, x: usize, o: usize| {
            let mut sum = bias[o];
            for (dy, dx) in (0..c.kernel).flat_map(|dy| (0..c.kernel).map(move |dx| (dy, dx))) {
                for i in 0..c.channels {
                    let weight = weights[((dy * c.kernel + dx) * c.channels + i) * outputs + o];
                    sum += weight * image[((y + dy) * c.side + x + dx) * c.channels + i];
                }
            }
            sum.max(0.0)
        };
        let mut pooled = Vec::new();
        for (y, x) in (0..n / 2).flat_map(|y| (0..n / 2).map(move |x| (2 * y, 2 * x))) {
            for o in 0..outputs {
                let four = [(y, x), (y, x + 1), (y + 1, x), (y + 1, x + 1)];
                pooled.push(four.map(|(y, x)| output(y, x, o)).into_iter().fold(0.0, f64::max));
            }
        }
        pooled
    }

    fn slow_layer(layer: &Layer, params: &[f64], inputs: &[f64]) -> Vec<f64> {
        let (weights, bias) =
            params[layer.offset..layer.end()].split_at(layer.inputs * layer.outputs);
        let output = |to: usize| {
            let products = inputs.iter().zip(weights[to..].iter().step_by(layer.outputs));
            bias[to] + products.map(|(input, weight)| input * weight).sum::<f64>()
        };
        (0..layer.outputs).map(output).collect()
    }

    fn slow_loss(cnn: &Cnn, params: &[f64], batch: &[u32]) -> f64 {
        let table = &cnn.dataset.train;
        let mut sum = 0.0;
        for &row in batch {
            let mut image = vec![0.0; cnn.dataset.features];
            table.features.write_row(row as usize, &mut image);
            let mut values: Vec<f64> = image.into_iter().map(f64::from).collect();
            for convolution in &cnn.convolutions {
                values = slow_convolution(convolution, params, &values);
            }
            values = slow_layer(&cnn.hidden, params, &values);
            values.iter_mut().for_each(|h| *h = h.max(0.0));
            values = slow_layer(&cnn.last, params, &values);
            let exponentials: f64 = values.iter().map(|logit| logit.exp()).sum();
            sum += exponentials.ln() - values[usize::from(table.labels[row as usize])];
        }
        sum / batch.len() as f64
    }

    #[test]
    fn mnist_takes_the_published_number_of_parameters() {
        let mut dataset = Dataset::clone(&noise(true));
        (dataset.features, dataset.classes) = (784, 10);
        let cnn = Cnn::new(Arc::new(dataset)).unwrap();
        let dim: usize = cnn.tensors().iter().map(TensorSpec::len).sum();
        assert_eq!((dim, cnn.base(0).len(), cnn.hidden.inputs), (431_080, 431_080, 800));
    }

    #[test]
    fn only_sides_that_halve_twice_fit() {
        let fits = |features: usize| {
            let mut dataset = Dataset::clone(&noise(true));
            dataset.features = features;
            Cnn::new(Arc::new(dataset)).is_some()
        };
        let sides: Vec<usize> = (0..=32).filter(|side| fits(side * side)).collect();
        assert_eq!(sides, [16, 20, 24, 28, 32]);
        assert!(!fits(783) && !fits(785));
    }

    #[test]
    fn gradient_is_the_slope_of_the_loss() {
        for bytes in [true, false] {
            let cnn = Cnn::with_sizes(noise(bytes), TINY).unwrap();
            let mut scratch = Scratch::default();
            let mut rng = KeyedRng::from_seed("rumormill v1 test", 8, 0);
            let params: Vec<f32> = cnn.base(5).iter().map(|v| v + rng.symmetric(0.1)).collect();
            let wide: Vec<f64> = params.iter().map(|&param| f64::from(param)).collect();
            // More than a block of rows, and after it a few in the same scratch.
            for batch in [(0..70).map(|row| row % 4).collect(), vec![1, 3, 1]] {
                let mut gradient = vec![f64::NAN; params.len()];
                let loss = cnn.gradient(&wide, &batch, &mut gradient, &mut scratch);
                let slow = slow_loss(&cnn, &wide, &batch);
                assert!((loss - slow).abs() < 1e-6, "{loss} {slow}");
                let (plus, minus) = cnn.loss_pair(&params, &params, &batch, &mut scratch);
                assert!((f64::from(plus) - slow).abs() < 1e-6 && plus == minus);
                for (place, &slope) in gradient.iter().enumerate() {
                    let at = |by: f64| {
                        let mut params = wide.clone();
                        params[place] += by;
                        slow_loss(&cnn, &params, &batch)
                    };
                    let difference = (at(1e-6) - at(-1e-6)) / 2e-6;
                    assert!(
                        (slope - difference).abs() < 3e-6 * (1.0 + difference.abs()),
                        "{place}: {slope} {difference}"
                    );
                }
                let alive = gradient.iter().filter(|&&slope| slope != 0.0).count();
                assert!(alive > gradient.len() / 2, "{alive} of {}", gradient.len());
            }
            let whole = cnn.evaluate(&params, Split::Test, &mut scratch);
            assert!((whole.loss - slow_loss(&cnn, &wide, &[0, 1, 2, 3])).abs() < 1e-6);
        }
    }

    #[test]
    fn losses_that_are_not_finite_flow_through() {
        let cnn = Cnn::with_sizes(noise(true), TINY).unwrap();
        let mut scratch = Scratch::default();
        let good = cnn.base(0);
        for value in [f32::NAN, f32::INFINITY] {
            let bad = vec![value; good.len()];
            let (bad, good) = cnn.loss_pair(&bad, &good, &[0, 1], &mut scratch);
            assert!(!bad.is_finite() && good.is_finite(), "{value}: {bad} {good}");
        }
    }

    #[test]
    fn a_few_steps_lower_the_loss_of_the_built_in_task() {
        let cnn = Cnn::new(some_digits()).unwrap();
        let mut scratch = Scratch::default();
        let mut params: Vec<f64> = cnn.base(1).into_iter().map(f64::from).collect();
        let mut slopes = vec![0.0; params.len()];
        let mut losses = Vec::new();
        for step in 0..48 {
            let batch: Vec<u32> = (0..50).map(|row| (50 * step + row) % 600).collect();
            losses.push(cnn.gradient(&params, &batch, &mut slopes, &mut scratch));
            params.iter_mut().zip(&slopes).for_each(|(param, slope)| *param -= 0.05 * slope);
        }
        let view: Vec<f32> = params.iter().map(|&param| param as f32).collect();
        let evaluation = cnn.evaluate(&view, Split::Test, &mut scratch);
        println!("first loss {}, after 48 steps {evaluation:?}", losses[0]);
        assert!(evaluation.loss < 0.8 * losses[0] && evaluation.accuracy > 0.4, "{evaluation:?}");
    }
}
