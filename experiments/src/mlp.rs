//! A perceptron with one hidden ReLU layer and log-softmax, its gradient by hand. Parameters are one
//! flat vector: first layer's weights (hidden × inputs), its biases, second layer's, its biases.

use ndarray::{Array1, Array2, ArrayView2, Axis, Slice};
use rand_chacha::ChaCha8Rng;

use crate::mnist::Images;
use crate::problem::uniform;

/// Sizes of a network.
#[derive(Clone, Copy, Debug)]
pub struct Mlp {
    /// Inputs.
    pub inputs: usize,
    /// Hidden units.
    pub hidden: usize,
    /// Classes.
    pub classes: usize,
}

struct Layers {
    w1: Array2<f32>,
    b1: Array1<f32>,
    w2: Array2<f32>,
    b2: Array1<f32>,
}

impl Mlp {
    /// The number of parameters.
    pub fn dim(self) -> usize {
        self.hidden * (self.inputs + 1) + self.classes * (self.hidden + 1)
    }

    /// Starting parameters, uniform within ±1/√inputs of each layer.
    pub fn start(self, rng: &mut ChaCha8Rng) -> Vec<f64> {
        let first = self.hidden * (self.inputs + 1);
        (0..self.dim())
            .map(|k| {
                let inputs = if k < first { self.inputs } else { self.hidden };
                (2.0 * uniform(rng) - 1.0) / (inputs as f64).sqrt()
            })
            .collect()
    }

    fn layers(self, x: &[f64]) -> Layers {
        let Mlp { inputs, hidden, classes } = self;
        let mut rest = x;
        let mut take = |count: usize| -> Vec<f32> {
            let (head, tail) = rest.split_at(count);
            rest = tail;
            head.iter().map(|&value| value as f32).collect()
        };
        let shape = "the sizes are those of dim()";
        Layers {
            w1: Array2::from_shape_vec((hidden, inputs), take(hidden * inputs)).expect(shape),
            b1: Array1::from_vec(take(hidden)),
            w2: Array2::from_shape_vec((classes, hidden), take(classes * hidden)).expect(shape),
            b2: Array1::from_vec(take(classes)),
        }
    }

    /// Hidden activations and class probabilities of some rows.
    fn forward(layers: &Layers, rows: ArrayView2<'_, f32>) -> (Array2<f32>, Array2<f32>) {
        let mut hidden = rows.dot(&layers.w1.t()) + &layers.b1;
        hidden.mapv_inplace(|value| value.max(0.0));
        let mut output = hidden.dot(&layers.w2.t()) + &layers.b2;
        for mut row in output.axis_iter_mut(Axis(0)) {
            let largest = row.fold(f32::NEG_INFINITY, |a, &b| a.max(b));
            row.mapv_inplace(|value| (value - largest).exp());
            let sum = row.sum();
            row /= sum;
        }
        (hidden, output)
    }

    /// Adds up the gradient of the mean loss of a batch for each labelling into a vector each:
    /// several labellings of the same rows share the forward pass.
    pub fn gradients(
        self,
        x: &[f64],
        rows: ArrayView2<'_, f32>,
        labellings: &[&[u8]],
        out: &mut [Vec<f64>],
    ) {
        let layers = self.layers(x);
        let (hidden, probabilities) = Mlp::forward(&layers, rows);
        for (labels, out) in labellings.iter().zip(out) {
            let mut error = probabilities.clone();
            for (mut row, &label) in error.axis_iter_mut(Axis(0)).zip(*labels) {
                row[usize::from(label)] -= 1.0;
            }
            error /= labels.len() as f32;
            let mut back = error.dot(&layers.w2);
            back.zip_mut_with(&hidden, |back, &hidden| {
                if hidden <= 0.0 {
                    *back = 0.0;
                }
            });
            let (w1, b1) = (back.t().dot(&rows), back.sum_axis(Axis(0)));
            let (w2, b2) = (error.t().dot(&hidden), error.sum_axis(Axis(0)));
            let parts = w1.iter().chain(&b1).chain(&w2).chain(&b2);
            out.iter_mut().zip(parts).for_each(|(out, value)| *out = f64::from(*value));
        }
    }

    /// The share of images classified rightly.
    pub fn accuracy(self, x: &[f64], images: &Images) -> f64 {
        let layers = self.layers(x);
        let mut right = 0usize;
        let count = images.labels.len();
        for from in (0..count).step_by(1000) {
            let to = (from + 1000).min(count);
            let (_, output) =
                Mlp::forward(&layers, images.rows.slice_axis(Axis(0), Slice::from(from..to)));
            for (row, &label) in output.axis_iter(Axis(0)).zip(&images.labels[from..to]) {
                let own = row[usize::from(label)];
                // A tie or a NaN is no right answer.
                let beaten = row.iter().filter(|&&value| value < own).count();
                right += usize::from(beaten == self.classes - 1);
            }
        }
        right as f64 / count as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::rand_core::SeedableRng;

    #[test]
    fn the_gradient_is_that_of_differences() {
        let mlp = Mlp { inputs: 3, hidden: 4, classes: 3 };
        let mut x = mlp.start(&mut ChaCha8Rng::seed_from_u64(2));
        let rows = Array2::from_shape_fn((5, 3), |(i, j)| (i as f32 - 1.7) * (j as f32 - 0.8));
        let labels = [0u8, 1, 2, 1, 0];
        let mut gradient = [vec![0.0; mlp.dim()]];
        mlp.gradients(&x, rows.view(), &[&labels], &mut gradient);
        let loss = |x: &[f64]| -> f64 {
            let (_, p) = Mlp::forward(&mlp.layers(x), rows.view());
            let terms = labels.iter().enumerate().map(|(i, &l)| -f64::from(p[(i, l.into())]).ln());
            terms.sum::<f64>() / 5.0
        };
        for k in 0..mlp.dim() {
            // Small enough that no row crosses the kink of a unit (1e-2 does), large enough for f32.
            let (old, step) = (x[k], 1e-3);
            x[k] = old + step;
            let above = loss(&x);
            x[k] = old - step;
            let slope = (above - loss(&x)) / (2.0 * step);
            x[k] = old;
            assert!((slope - gradient[0][k]).abs() < 5e-4, "{k}: {slope} {}", gradient[0][k]);
        }
    }
}
