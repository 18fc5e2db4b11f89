//! Logistic regression of two classes, with an optional penalty.
//!
//! ```text
//! loss = mean ln(1 + exp(−y (x·w + b))) + μ/2 |w|²,   y = −1 for class 0 and +1 for class 1
//! ```
//!
//! The bias is not penalized. Parameters start at zero.

use std::sync::Arc;

use super::{Evaluation, Objective, Scratch, Split, TensorSpec, kernel};
use crate::data::{Dataset, Features, Table};

/// Logistic regression on a data set of two classes.
#[derive(Clone, Debug)]
pub struct Logistic {
    dataset: Arc<Dataset>,
    l2: f64,
}

impl Logistic {
    /// A model with a penalty of `l2/2 · |weights|²`.
    ///
    /// # Panics
    /// If the data set does not have exactly two classes.
    pub fn new(dataset: Arc<Dataset>, l2: f64) -> Logistic {
        assert_eq!(dataset.classes, 2, "logistic regression tells two classes apart");
        Logistic { dataset, l2 }
    }

    fn penalty(&self, params: &[f32]) -> f64 {
        if self.l2 == 0.0 {
            // A diverging weight must not hide behind 0 · ∞; the margins show it.
            return 0.0;
        }
        let squares: f64 =
            params[..self.dataset.features].iter().map(|&w| f64::from(w).powi(2)).sum();
        self.l2 / 2.0 * squares
    }
}

impl Objective for Logistic {
    fn tensors(&self) -> Vec<TensorSpec> {
        vec![TensorSpec::new("weight", &[self.dataset.features]), TensorSpec::new("bias", &[1])]
    }

    /// Zero: the loss is convex.
    fn base(&self, _seed: u64) -> Vec<f32> {
        vec![0.0; self.dataset.features + 1]
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
            margins(table, batch.iter().copied(), params, scratch, |margin| sum += loss(margin));
            (sum / count + self.penalty(params)) as f32
        });
        (losses[0], losses[1])
    }

    fn evaluate(&self, params: &[f32], split: Split, scratch: &mut Scratch) -> Evaluation {
        let table = split.table(&self.dataset);
        let count = table.rows();
        let (mut sum, mut correct) = (0.0, 0);
        margins(table, 0..count as u32, params, scratch, |margin| {
            sum += loss(margin);
            // Zero is the model's refusal to say; it does not count.
            correct += usize::from(margin > 0.0);
        });
        let loss = sum / count as f64 + self.penalty(params);
        Evaluation { loss, accuracy: correct as f64 / count as f64, count }
    }
}

/// Calls `f` with `y (x·w + b)` of every row.
fn margins(
    table: &Table,
    rows: impl Iterator<Item = u32>,
    params: &[f32],
    scratch: &mut Scratch,
    mut f: impl FnMut(f32),
) {
    let features = table.features.columns();
    assert_eq!(params.len(), features + 1, "the parameters of all tensors together");
    let (weights, bias) = params.split_at(features);
    let offset = match table.features {
        Features::U8 { offset, .. } => offset,
        Features::F32(_) => 0.0,
    };
    kernel::offset_bias(bias, weights, offset, &mut scratch.bias);
    for row in rows {
        let row = row as usize;
        scratch.inputs.take_row(&table.features, row);
        let mut score = [scratch.bias[0]];
        kernel::add_rows(&scratch.inputs, weights, &mut score);
        f(if table.labels[row] == 1 { score[0] } else { -score[0] });
    }
}

/// `ln(1 + exp(−margin))` without overflow.
fn loss(margin: f32) -> f64 {
    f64::from((-margin).max(0.0) + (-margin.abs()).exp().ln_1p())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::libsvm;

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
}
