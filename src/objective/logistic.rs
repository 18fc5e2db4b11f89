//! Logistic regression of two classes, with an optional penalty.
//!
//! ```text
//! loss = mean ln(1 + exp(−y (x·w + b))) + μ/2 |w|²,   y = −1 for class 0 and +1 for class 1
//! ```
//!
//! The bias is not penalized, and may be left out. Parameters start at zero. The gradient is computed
//! in `f64`; the Hessian is at most `XᵀX/4m + μ`, as the logistic function's slope is at most 1/4.

use std::sync::Arc;

use super::{Evaluation, Objective, Scratch, Split, TensorSpec, kernel, spectrum};
use crate::data::{Dataset, Table};

/// Logistic regression on a data set of two classes.
#[derive(Clone, Debug)]
pub struct Logistic {
    dataset: Arc<Dataset>,
    l2: f64,
    bias: bool,
}

impl Logistic {
    /// A model with a penalty of `l2/2 · |weights|²`.
    ///
    /// # Panics
    /// If the data set does not have exactly two classes.
    pub fn new(dataset: Arc<Dataset>, l2: f64) -> Logistic {
        assert_eq!(dataset.classes, 2, "logistic regression tells two classes apart");
        Logistic { dataset, l2, bias: true }
    }

    /// The model without a bias: its only tensor is the weights.
    pub fn without_bias(self) -> Logistic {
        Logistic { bias: false, ..self }
    }

    /// Weights and bias, which is zero where the model has none.
    fn split<'a, T: Copy + Default>(&self, params: &'a [T]) -> (&'a [T], T) {
        let dim = self.dataset.features + usize::from(self.bias);
        assert_eq!(params.len(), dim, "the parameters of all tensors together");
        let (weights, bias) = params.split_at(self.dataset.features);
        (weights, bias.first().copied().unwrap_or_default())
    }

    fn penalty<T: Copy + Into<f64>>(&self, params: &[T]) -> f64 {
        if self.l2 == 0.0 {
            // A diverging weight must not hide behind 0 · ∞; the margins show it.
            return 0.0;
        }
        let squares: f64 = params[..self.dataset.features].iter().map(|&w| w.into().powi(2)).sum();
        self.l2 / 2.0 * squares
    }

    /// Calls `f` with `y (x·w + b)` of every row.
    fn margins(
        &self,
        table: &Table,
        rows: impl Iterator<Item = u32>,
        params: &[f32],
        scratch: &mut Scratch,
        mut f: impl FnMut(f32),
    ) {
        let (weights, bias) = self.split(params);
        kernel::offset_bias(&[bias], weights, table.features.offset(), &mut scratch.bias);
        for row in rows {
            let row = row as usize;
            scratch.inputs.take_row(&table.features, row);
            let mut score = [scratch.bias[0]];
            kernel::add_rows(&scratch.inputs, weights, &mut score);
            f(if table.labels[row] == 1 { score[0] } else { -score[0] });
        }
    }
}

impl Objective for Logistic {
    fn tensors(&self) -> Vec<TensorSpec> {
        let mut tensors = vec![TensorSpec::new("weight", &[self.dataset.features])];
        if self.bias {
            tensors.push(TensorSpec::new("bias", &[1]));
        }
        tensors
    }

    /// Zero: the loss is convex.
    fn base(&self, _seed: u64) -> Vec<f32> {
        vec![0.0; self.dataset.features + usize::from(self.bias)]
    }

    fn loss_pair(
        &self,
        plus: &[f32],
        minus: &[f32],
        batch: &[u32],
        scratch: &mut Scratch,
    ) -> (f32, f32) {
        assert!(!batch.is_empty(), "a mean needs rows");
        let table = &self.dataset.train;
        let count = batch.len() as f64;
        let losses = [plus, minus].map(|params| {
            let mut sum = 0.0;
            let rows = batch.iter().copied();
            self.margins(table, rows, params, scratch, |margin| sum += loss(margin));
            (sum / count + self.penalty(params)) as f32
        });
        (losses[0], losses[1])
    }

    fn evaluate(&self, params: &[f32], split: Split, scratch: &mut Scratch) -> Evaluation {
        let table = split.table(&self.dataset);
        let count = table.rows();
        let (mut sum, mut correct) = (0.0, 0);
        self.margins(table, 0..count as u32, params, scratch, |margin| {
            sum += loss(margin);
            // Zero is the model's refusal to say; it does not count.
            correct += usize::from(margin > 0.0);
        });
        let loss = sum / count as f64 + self.penalty(params);
        Evaluation { loss, accuracy: correct as f64 / count as f64, count }
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
        let (weights, bias) = self.split(params);
        let table = &self.dataset.train;
        let offset = f64::from(table.features.offset());
        // As `0 · ∞` in the kernel: without an offset, a diverging weight counts where it is used.
        let base = if offset == 0.0 { bias } else { bias + offset * weights.iter().sum::<f64>() };
        out.fill(0.0);
        let (mut loss, mut slopes) = (0.0, 0.0);
        for &row in batch {
            let row = row as usize;
            scratch.inputs.take_row(&table.features, row);
            let products =
                scratch.inputs.entries().map(|(column, x)| f64::from(x) * weights[column]);
            let score = base + products.sum::<f64>();
            let sign = if table.labels[row] == 1 { 1.0 } else { -1.0 };
            let margin = sign * score;
            let tail = (-margin.abs()).exp();
            loss += (-margin).max(0.0) + tail.ln_1p();
            // −y / (1 + exp(margin)), without overflow.
            let slope = -sign * if margin >= 0.0 { tail } else { 1.0 } / (1.0 + tail);
            slopes += slope;
            scratch.inputs.entries().for_each(|(column, x)| out[column] += slope * f64::from(x));
        }
        let count = batch.len() as f64;
        let (weight_slopes, bias_slope) = out.split_at_mut(weights.len());
        for (out, weight) in weight_slopes.iter_mut().zip(weights) {
            *out = (*out + offset * slopes) / count + self.l2 * weight;
        }
        bias_slope.fill(slopes / count);
        loss / count + self.penalty(params)
    }

    fn curvature(&self, rows: &[u32], scratch: &mut Scratch) -> Option<(f64, f64)> {
        let largest = spectrum::largest(&self.dataset.train, rows, self.bias, scratch);
        Some((if self.bias { 0.0 } else { self.l2 }, largest / 4.0 + self.l2))
    }
}

/// `ln(1 + exp(−margin))` without overflow.
fn loss(margin: f32) -> f64 {
    f64::from((-margin).max(0.0) + (-margin.abs()).exp().ln_1p())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::data::{Features, libsvm};

    /// Rows (0.5, 0) of class 1 and (0, 1), (1, 0.5) of class 0.
    fn three_rows() -> Arc<Dataset> {
        let raw = libsvm::parse(b"1 1:0.5\n-1 2:1\n-1 1:1 2:0.5\n").unwrap();
        Arc::new(Dataset::assemble("three rows", raw.clone(), Some(raw)).unwrap())
    }

    #[test]
    fn losses_agree_with_the_formula() {
        let model = Logistic::new(three_rows(), 0.5);
        let params: [f64; 3] = [1.5, -2.0, 0.25];
        let margins = [0.5 * 1.5 + 0.25, -(-2.0 + 0.25), -(1.5 - 1.0 + 0.25)];
        let mean = margins.iter().map(|m: &f64| (1.0 + (-m).exp()).ln()).sum::<f64>() / 3.0;
        let loss = mean + 0.25 * (1.5 * 1.5 + 4.0);
        let params = params.map(|value| value as f32);
        let mut scratch = Scratch::default();
        let pair = model.loss_pair(&params, &[0.0; 3], &[0, 1, 2], &mut scratch);
        assert!((f64::from(pair.0) - loss).abs() < 1e-6, "{pair:?} {loss}");
        assert!((pair.1 - 2f32.ln()).abs() < 1e-7);
        let evaluation = model.evaluate(&params, Split::Test, &mut scratch);
        assert!((evaluation.loss - loss).abs() < 1e-6);
        assert_eq!((evaluation.accuracy, evaluation.count), (2.0 / 3.0, 3));
    }

    #[test]
    fn large_margins_neither_overflow_nor_vanish() {
        let model = Logistic::new(three_rows(), 0.0);
        let mut scratch = Scratch::default();
        let (wrong, right) =
            model.loss_pair(&[-1e4, 0.0, 0.0], &[1e4, 0.0, 0.0], &[0], &mut scratch);
        assert_eq!((wrong, right), (5e3, 0.0));
        let (nan, _) = model.loss_pair(&[f32::NAN, 0.0, 0.0], &[0.0; 3], &[0], &mut scratch);
        assert!(nan.is_nan());
    }

    /// [`three_rows`] with features `0.5 · byte − 0.25`.
    fn three_rows_of_bytes() -> Arc<Dataset> {
        let mut dataset = Dataset::clone(&three_rows());
        let values = ndarray::array![[3, 0], [0, 2], [1, 5]];
        dataset.train.features = Features::U8 { values, scale: 0.5, offset: -0.25 };
        Arc::new(dataset)
    }

    /// The loss straight from the formula.
    fn slow_loss(model: &Logistic, params: &[f64], batch: &[u32]) -> f64 {
        let table = &model.dataset.train;
        let mut sum = 0.0;
        for &row in batch {
            let mut features = [0.0; 2];
            table.features.write_row(row as usize, &mut features);
            let bias = if model.bias { params[2] } else { 0.0 };
            let score = f64::from(features[0]) * params[0] + f64::from(features[1]) * params[1];
            let sign = 2.0 * f64::from(table.labels[row as usize]) - 1.0;
            sum += (1.0 + (-sign * (score + bias)).exp()).ln();
        }
        let squares = params[0] * params[0] + params[1] * params[1];
        sum / batch.len() as f64 + model.l2 / 2.0 * squares
    }

    #[test]
    fn gradient_is_the_slope_of_the_loss() {
        let mut scratch = Scratch::default();
        for dataset in [three_rows(), three_rows_of_bytes()] {
            let model = Logistic::new(dataset, 0.3);
            for model in [model.clone(), model.without_bias()] {
                let params = &[0.7, -1.1, 0.4][..model.base(0).len()];
                for batch in [&[1][..], &[2, 0, 1, 1]] {
                    let mut gradient = vec![f64::NAN; params.len()];
                    let loss = model.gradient(params, batch, &mut gradient, &mut scratch);
                    assert!((loss - slow_loss(&model, params, batch)).abs() < 1e-15);
                    for (index, slope) in gradient.iter().enumerate() {
                        let at = |by: f64| {
                            let mut params = params.to_vec();
                            params[index] += by;
                            slow_loss(&model, &params, batch)
                        };
                        // A fourth-order difference: the rest is rounding.
                        let near = (at(1e-3) - at(-1e-3)) / 2e-3;
                        let far = (at(2e-3) - at(-2e-3)) / 4e-3;
                        let difference = near + (near - far) / 3.0;
                        assert!((slope - difference).abs() < 1e-11, "{slope} {difference}");
                    }
                }
            }
        }
    }

    #[test]
    fn gradient_at_large_margins_neither_overflows_nor_vanishes() {
        let model = Logistic::new(three_rows(), 0.0);
        let (mut scratch, mut out) = (Scratch::default(), [0.0; 3]);
        assert_eq!(model.gradient(&[-1e4, 0.0, 0.0], &[0], &mut out, &mut scratch), 5e3);
        assert_eq!(out, [-0.5, 0.0, -1.0]);
        assert_eq!(model.gradient(&[1e4, 0.0, 0.0], &[0], &mut out, &mut scratch), 0.0);
        assert_eq!(out, [0.0; 3]);
        assert!(model.gradient(&[f64::NAN, 0.0, 0.0], &[0], &mut out, &mut scratch).is_nan());
    }

    #[test]
    fn without_a_bias_the_weights_are_all() {
        let model = Logistic::new(three_rows_of_bytes(), 0.5).without_bias();
        assert_eq!(model.tensors(), [TensorSpec::new("weight", &[2])]);
        let mut scratch = Scratch::default();
        let (plus, minus) = model.loss_pair(&[1.0, 2.0], &[0.0; 2], &[0, 1, 2], &mut scratch);
        let loss = slow_loss(&model, &[1.0, 2.0], &[0, 1, 2]);
        assert!((f64::from(plus) - loss).abs() < 1e-6 && (minus - 2f32.ln()).abs() < 1e-7);
        assert_eq!(model.curvature(&[0], &mut scratch).unwrap().0, 0.5);
        let with_bias = Logistic::new(three_rows(), 0.5);
        assert_eq!(with_bias.curvature(&[0], &mut scratch).unwrap().0, 0.0);
    }

    /// The optimum and the smoothness are reference values from outside this crate.
    #[test]
    fn accelerated_descent_reaches_the_optimum_of_a9a() {
        let Some(packed) = crate::shared("data/libsvm/a9a.gz") else { return };
        let mut text = Vec::new();
        flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut text).unwrap();
        let raw = libsvm::parse(&text).unwrap();
        let dataset = Arc::new(Dataset::assemble("a9a", raw.clone(), Some(raw)).unwrap());
        let rows: Vec<u32> = (0..32_561).collect();
        let model = Logistic::new(dataset, 0.01).without_bias();
        let mut scratch = Scratch::default();
        let (convexity, smoothness) = model.curvature(&rows, &mut scratch).unwrap();
        assert_eq!(convexity, 0.01);
        let excess = (smoothness - 0.01) / 1.5719196992;
        assert!((1.0..1.0011).contains(&excess), "{excess}");
        // Nesterov's method for strongly convex functions.
        let ratio = (convexity / smoothness).sqrt();
        let momentum = (1.0 - ratio) / (1.0 + ratio);
        let (mut params, mut ahead, mut slopes) = ([0.0; 123], [0.0; 123], [0.0; 123]);
        let mut loss = f64::NAN;
        for _ in 0..140 {
            loss = model.gradient(&ahead, &rows, &mut slopes, &mut scratch);
            for ((param, ahead), slope) in params.iter_mut().zip(&mut ahead).zip(&slopes) {
                let stepped = *ahead - slope / smoothness;
                *ahead = stepped + momentum * (stepped - *param);
                *param = stepped;
            }
        }
        let gap = loss - 0.37272374686393;
        assert!((-1e-12..1e-6).contains(&gap), "{gap}");
    }
}
