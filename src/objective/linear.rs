//! Least squares onto the classes: the simplest model whose optimum is known in closed form.
//!
//! ```text
//! loss = mean ½ |x·W + b − e_class|² + L2/2 |W|²,   e_class the unit vector of the row's class
//! ```
//!
//! The class is that of the largest output. The bias is not penalized. Parameters start at zero.
//! The gradient is computed in `f64`.
//!
//! The Hessian is, for each class, the second moments `M` of a row's features and a constant 1,
//! plus the penalty of all but the constant. It is strongly convex in the bias too: with the mean
//! row `x̄`, `M ⪰ (x̄, 1)(x̄, 1)ᵀ`, and what that leaves of two dimensions has the eigenvalues
//!
//! ```text
//! (T ± √(T² − 4·L2)) / 2,   T = |x̄|² + L2 + 1
//! ```

use std::sync::Arc;

use super::{Evaluation, Objective, Scratch, Split, TensorSpec, kernel, layer, spectrum};
use crate::data::Dataset;

/// Least squares on a data set.
#[derive(Clone, Debug)]
pub struct Linear {
    dataset: Arc<Dataset>,
    l2: f64,
}

impl Linear {
    /// A model with a penalty of `l2/2 · |weights|²`.
    pub fn new(dataset: Arc<Dataset>, l2: f64) -> Linear {
        Linear { dataset, l2 }
    }

    /// Weights, with a row per feature, and biases.
    fn split<'a, T>(&self, params: &'a [T]) -> (&'a [T], &'a [T]) {
        let (features, classes) = (self.dataset.features, self.dataset.classes);
        assert_eq!(params.len(), (features + 1) * classes, "all tensors' parameters together");
        params.split_at(features * classes)
    }

    fn penalty<T: Copy + Into<f64>>(&self, weights: &[T]) -> f64 {
        if self.l2 == 0.0 {
            // A diverging weight must not hide behind 0 · ∞; the outputs show it.
            return 0.0;
        }
        self.l2 / 2.0 * weights.iter().map(|&weight| weight.into().powi(2)).sum::<f64>()
    }
}

impl Objective for Linear {
    fn tensors(&self) -> Vec<TensorSpec> {
        let (features, classes) = (self.dataset.features, self.dataset.classes);
        vec![TensorSpec::new("weight", &[features, classes]), TensorSpec::new("bias", &[classes])]
    }

    /// Zero: the loss is convex.
    fn base(&self, _seed: u64) -> Vec<f32> {
        vec![0.0; (self.dataset.features + 1) * self.dataset.classes]
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
        let ((weights, bias), (weights_minus, bias_minus)) = (self.split(plus), self.split(minus));
        let offset = table.features.offset();
        kernel::offset_bias(bias, weights, offset, &mut scratch.bias);
        kernel::offset_bias(bias_minus, weights_minus, offset, &mut scratch.bias_minus);
        let (mut sum_plus, mut sum_minus) = (0.0, 0.0);
        for &row in batch {
            let row = row as usize;
            scratch.inputs.take_row(&table.features, row);
            scratch.outputs.clone_from(&scratch.bias);
            scratch.outputs_minus.clone_from(&scratch.bias_minus);
            let (outputs, outputs_minus) = (&mut scratch.outputs, &mut scratch.outputs_minus);
            let weights = [weights, weights_minus];
            kernel::add_rows_pair(&scratch.inputs, weights, outputs, outputs_minus);
            let class = usize::from(table.labels[row]);
            sum_plus += half_square(outputs, class);
            sum_minus += half_square(outputs_minus, class);
        }
        let count = batch.len() as f64;
        let loss = |sum, weights| (sum / count + self.penalty(weights)) as f32;
        (loss(sum_plus, weights), loss(sum_minus, weights_minus))
    }

    fn evaluate(&self, params: &[f32], split: Split, scratch: &mut Scratch) -> Evaluation {
        let table = split.table(&self.dataset);
        let (weights, bias) = self.split(params);
        kernel::offset_bias(bias, weights, table.features.offset(), &mut scratch.bias);
        let (mut sum, mut correct) = (0.0, 0);
        for (row, &class) in table.labels.iter().enumerate() {
            scratch.inputs.take_row(&table.features, row);
            scratch.outputs.clone_from(&scratch.bias);
            kernel::add_rows(&scratch.inputs, weights, &mut scratch.outputs);
            sum += half_square(&scratch.outputs, usize::from(class));
            correct += usize::from(layer::is_largest(&scratch.outputs, usize::from(class)));
        }
        let count = table.rows();
        let loss = sum / count as f64 + self.penalty(weights);
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
        let (table, classes) = (&self.dataset.train, self.dataset.classes);
        let offset = f64::from(table.features.offset());
        let Scratch { inputs, wide: [base, residuals], .. } = scratch;
        base.clear();
        base.extend_from_slice(bias);
        if offset != 0.0 {
            for row in weights.chunks_exact(classes) {
                base.iter_mut().zip(row).for_each(|(sum, weight)| *sum += offset * weight);
            }
        }
        out.fill(0.0);
        let (weight_slopes, bias_slopes) = out.split_at_mut(weights.len());
        let mut squares = 0.0;
        for &row in batch {
            let row = row as usize;
            inputs.take_row(&table.features, row);
            residuals.clone_from(base);
            for (column, x) in inputs.entries() {
                let weights = &weights[column * classes..][..classes];
                let x = f64::from(x);
                residuals.iter_mut().zip(weights).for_each(|(sum, weight)| *sum += x * weight);
            }
            residuals[usize::from(table.labels[row])] -= 1.0;
            squares += residuals.iter().map(|residual| residual * residual).sum::<f64>();
            for (column, x) in inputs.entries() {
                let slopes = &mut weight_slopes[column * classes..][..classes];
                let x = f64::from(x);
                slopes.iter_mut().zip(&*residuals).for_each(|(sum, r)| *sum += x * r);
            }
            bias_slopes.iter_mut().zip(&*residuals).for_each(|(sum, r)| *sum += r);
        }
        let count = batch.len() as f64;
        bias_slopes.iter_mut().for_each(|slope| *slope /= count);
        let rows = weight_slopes.chunks_exact_mut(classes).zip(weights.chunks_exact(classes));
        for (slopes, weights) in rows {
            for ((slope, weight), bias) in slopes.iter_mut().zip(weights).zip(&*bias_slopes) {
                *slope = *slope / count + offset * bias + self.l2 * weight;
            }
        }
        squares / 2.0 / count + self.penalty(weights)
    }

    fn curvature(&self, rows: &[u32], scratch: &mut Scratch) -> Option<(f64, f64)> {
        let table = &self.dataset.train;
        let trace = spectrum::mean_square(table, rows, scratch) + self.l2 + 1.0;
        // The smaller eigenvalue as product over larger one, which does not cancel.
        let larger = (trace + (trace * trace - 4.0 * self.l2).max(0.0).sqrt()) / 2.0;
        Some((self.l2 / larger, spectrum::largest(table, rows, true, scratch) + self.l2))
    }
}

/// `½ |outputs − e_class|²`.
fn half_square(outputs: &[f32], class: usize) -> f64 {
    let target = |index| f64::from(u8::from(index == class));
    let residuals = outputs.iter().enumerate().map(|(index, &o)| f64::from(o) - target(index));
    residuals.map(|residual| residual * residual).sum::<f64>() / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Features, Table, digits};

    /// Five rows of three features and three classes, as bytes with an offset or as floats.
    fn five_rows(bytes: bool) -> Arc<Dataset> {
        let values = ndarray::array![[0u8, 3, 9], [4, 0, 1], [7, 7, 2], [1, 0, 0], [0, 5, 5]];
        let features = if bytes {
            Features::U8 { values, scale: 0.25, offset: -0.5 }
        } else {
            Features::F32(values.mapv(|byte| 0.25 * f32::from(byte) - 0.5))
        };
        let table = Table { features, labels: vec![2, 0, 1, 1, 0] };
        Arc::new(Dataset {
            name: "five rows".to_owned(),
            features: 3,
            classes: 3,
            class_names: ["a", "b", "c"].map(str::to_owned).to_vec(),
            train: table.clone(),
            test: table,
        })
    }

    fn some_params() -> Vec<f64> {
        (0..12u8).map(|index| f64::from(index * 7 % 12) / 8.0 - 0.5).collect()
    }

    /// The loss straight from the formula.
    fn slow_loss(model: &Linear, params: &[f64], batch: &[u32]) -> f64 {
        let table = &model.dataset.train;
        let mut sum = 0.0;
        for &row in batch {
            let mut x = [0.0; 3];
            table.features.write_row(row as usize, &mut x);
            for class in 0..3 {
                let output: f64 =
                    (0..3).map(|column| f64::from(x[column]) * params[3 * column + class]).sum();
                let target = f64::from(u8::from(usize::from(table.labels[row as usize]) == class));
                sum += (output + params[9 + class] - target).powi(2) / 2.0;
            }
        }
        let squares: f64 = params[..9].iter().map(|weight| weight * weight).sum();
        sum / batch.len() as f64 + model.l2 / 2.0 * squares
    }

    #[test]
    fn gradient_is_the_slope_of_the_loss() {
        let mut scratch = Scratch::default();
        for bytes in [true, false] {
            let model = Linear::new(five_rows(bytes), 0.3);
            let params = some_params();
            for batch in [&[1][..], &[0, 1, 2, 3, 4, 4]] {
                let mut gradient = [f64::NAN; 12];
                let loss = model.gradient(&params, batch, &mut gradient, &mut scratch);
                assert!((loss - slow_loss(&model, &params, batch)).abs() < 1e-14);
                for (place, slope) in gradient.iter().enumerate() {
                    let at = |by: f64| {
                        let mut params = params.clone();
                        params[place] += by;
                        slow_loss(&model, &params, batch)
                    };
                    // Exact for a quadratic loss but for rounding.
                    let difference = at(0.5) - at(-0.5);
                    assert!((slope - difference).abs() < 1e-13, "{slope} {difference}");
                }
            }
        }
    }

    #[test]
    fn losses_agree_with_the_formula() {
        let mut scratch = Scratch::default();
        for bytes in [true, false] {
            let model = Linear::new(five_rows(bytes), 0.3);
            let params: Vec<f32> = some_params().iter().map(|&param| param as f32).collect();
            let slow = slow_loss(&model, &some_params(), &[0, 1, 2, 3, 4]);
            let (plus, minus) =
                model.loss_pair(&params, &[0.0; 12], &[0, 1, 2, 3, 4], &mut scratch);
            assert!((f64::from(plus) - slow).abs() < 1e-6 && minus == 0.5, "{plus} {minus}");
            let whole = model.evaluate(&params, Split::Test, &mut scratch);
            assert!((whole.loss - slow).abs() < 1e-6 && whole.count == 5);
        }
    }

    /// The Hessian of a quadratic is the difference of two gradients, so every direction shows one
    /// of its values.
    #[test]
    fn curvature_holds_along_every_direction() {
        let mut scratch = Scratch::default();
        let rows = [0, 1, 2, 3, 4];
        let model = Linear::new(five_rows(true), 0.3);
        let (convexity, smoothness) = model.curvature(&rows, &mut scratch).unwrap();
        assert!(convexity > 0.1, "{convexity}");
        let mut origin = [0.0; 12];
        model.gradient(&[0.0; 12], &rows, &mut origin, &mut scratch);
        let mut rng = crate::sample::KeyedRng::from_seed("rumormill v1 test", 9, 0);
        let mut direction: Vec<f64> = (0..12).map(|_| f64::from(rng.symmetric(1.0))).collect();
        let mut image = [0.0; 12];
        let mut range = (f64::INFINITY, 0.0f64);
        for step in 0..200 {
            let length = direction.iter().map(|value| value * value).sum::<f64>().sqrt();
            direction.iter_mut().for_each(|value| *value /= length);
            model.gradient(&direction, &rows, &mut image, &mut scratch);
            image.iter_mut().zip(&origin).for_each(|(image, origin)| *image -= origin);
            let value: f64 = image.iter().zip(&direction).map(|(a, b)| a * b).sum();
            range = (range.0.min(value), range.1.max(value));
            // Power iterations towards the largest value, then towards the smallest.
            let shift = if step < 100 { 0.0 } else { smoothness };
            direction.iter_mut().zip(&image).for_each(|(v, image)| *v = image - shift * *v);
        }
        assert!(convexity <= range.0 && range.1 <= smoothness, "{convexity} {range:?}");
        // The penalty counts in full, though the bias has a part in the steepest direction.
        assert!(range.1 > smoothness - 0.3, "{range:?} {smoothness}");
    }

    #[test]
    fn descent_learns_the_built_in_task() {
        let (train, test) = (digits::table(1, 0, 600), digits::table(1, 1, 300));
        let dataset = Dataset::assemble("some digits", train, Some(test)).unwrap();
        let model = Linear::new(Arc::new(dataset), 0.01);
        let rows: Vec<u32> = (0..600).collect();
        let mut scratch = Scratch::default();
        let (_, smoothness) = model.curvature(&rows, &mut scratch).unwrap();
        let mut params: Vec<f64> = model.base(0).into_iter().map(f64::from).collect();
        let mut slopes = vec![0.0; params.len()];
        for _ in 0..60 {
            model.gradient(&params, &rows, &mut slopes, &mut scratch);
            params.iter_mut().zip(&slopes).for_each(|(param, slope)| *param -= slope / smoothness);
        }
        let view: Vec<f32> = params.iter().map(|&param| param as f32).collect();
        let evaluation = model.evaluate(&view, Split::Test, &mut scratch);
        println!("least squares, 60 steps: {evaluation:?}");
        assert!(evaluation.loss < 0.4 && evaluation.accuracy > 0.5, "{evaluation:?}");
    }
}
