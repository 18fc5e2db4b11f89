//! Objectives, one per node: least squares and logistic ones made from rows, and any model of the
//! library on shards of a data set.

use std::cell::RefCell;

use nalgebra::{DMatrix, DVector};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use rumormill::objective::{self, Scratch};

/// A sum of per-node objectives.
pub trait Objective {
    /// Number of nodes.
    fn nodes(&self) -> usize;
    /// Number of coordinates.
    fn dim(&self) -> usize;
    /// Writes `∇f_node(x)` into `out`, both of length `dim`.
    fn gradient(&self, node: usize, x: &[f64], out: &mut [f64]);
}

/// `f_i(x) = (1/m) Σ_r (A_i[r]·x − b_i[r])²`, held as the d×d quadratic it is, so that a gradient
/// costs d² whatever the number of rows.
#[derive(Clone, Debug)]
pub struct LeastSquares {
    dim: usize,
    /// Per node `(2/m) AᵀA`, by rows, then `(2/m) Aᵀb`.
    quadratics: Vec<(Vec<f64>, Vec<f64>)>,
}

impl LeastSquares {
    /// From the rows and targets of each node.
    pub fn new(rows: &[Vec<Vec<f64>>], targets: &[Vec<f64>]) -> LeastSquares {
        let dim = rows[0][0].len();
        let quadratics = rows.iter().zip(targets).map(|(a, b)| quadratic(dim, a, b)).collect();
        LeastSquares { dim, quadratics }
    }

    /// The instance family of the published program: normal rows, one linear model for all with
    /// noise 10, each node's slope scaled by U(0.01, 5). Returns it with normal starting points.
    pub fn generate(
        seed: u64,
        nodes: usize,
        dim: usize,
        rows: usize,
    ) -> (LeastSquares, Vec<Vec<f64>>) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let slope: Vec<f64> = (0..dim).map(|_| 100.0 * uniform(&mut rng)).collect();
        let (mut all_rows, mut all_targets) = (Vec::new(), Vec::new());
        for _ in 0..nodes {
            let scale = 0.01 + 4.99 * uniform(&mut rng);
            let a: Vec<Vec<f64>> =
                (0..rows).map(|_| (0..dim).map(|_| normal(&mut rng)).collect()).collect();
            let b = a
                .iter()
                .map(|row| {
                    let clean: f64 = row.iter().zip(&slope).map(|(a, s)| a * s * scale).sum();
                    clean + 10.0 * normal(&mut rng)
                })
                .collect();
            all_rows.push(a);
            all_targets.push(b);
        }
        let start = (0..nodes).map(|_| (0..dim).map(|_| normal(&mut rng)).collect()).collect();
        (LeastSquares::new(&all_rows, &all_targets), start)
    }

    /// μ and L: the least strong convexity and the largest smoothness of any node.
    pub fn curvature(&self) -> (f64, f64) {
        let mut range = (f64::INFINITY, 0.0f64);
        for (hessian, _) in &self.quadratics {
            let hessian = DMatrix::from_row_slice(self.dim, self.dim, hessian);
            let values = hessian.symmetric_eigenvalues();
            range = (range.0.min(values.min()), range.1.max(values.max()));
        }
        range
    }

    /// The minimizer of the sum; `None` when it is not unique.
    pub fn minimizer(&self) -> Option<Vec<f64>> {
        let mut a = DMatrix::zeros(self.dim, self.dim);
        let mut b = DVector::zeros(self.dim);
        for (hessian, linear) in &self.quadratics {
            a += DMatrix::from_row_slice(self.dim, self.dim, hessian);
            b += DVector::from_column_slice(linear);
        }
        a.cholesky().map(|a| a.solve(&b).as_slice().to_vec())
    }
}

fn quadratic(dim: usize, rows: &[Vec<f64>], targets: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let factor = 2.0 / rows.len() as f64;
    let mut hessian = vec![0.0; dim * dim];
    let mut linear = vec![0.0; dim];
    for (row, target) in rows.iter().zip(targets) {
        for (i, a) in row.iter().enumerate() {
            for (j, b) in row.iter().enumerate() {
                hessian[i * dim + j] += factor * a * b;
            }
            linear[i] += factor * a * target;
        }
    }
    (hessian, linear)
}

impl Objective for LeastSquares {
    fn nodes(&self) -> usize {
        self.quadratics.len()
    }

    fn dim(&self) -> usize {
        self.dim
    }

    fn gradient(&self, node: usize, x: &[f64], out: &mut [f64]) {
        let (hessian, linear) = &self.quadratics[node];
        for ((out, row), b) in out.iter_mut().zip(hessian.chunks_exact(self.dim)).zip(linear) {
            *out = row.iter().zip(x).map(|(a, x)| a * x).sum::<f64>() - b;
        }
    }
}

/// `f_i(x) = (1/m) Σ_r log(1 + exp(−b_i[r] A_i[r]·x)) + (μ/2)|x|²`.
#[derive(Clone, Debug)]
pub struct Logistic {
    /// Per node its rows, each of the same length.
    pub rows: Vec<Vec<Vec<f64>>>,
    /// Per node its labels, ±1.
    pub labels: Vec<Vec<f64>>,
    /// The penalty μ, positive.
    pub mu: f64,
}

impl Objective for Logistic {
    fn nodes(&self) -> usize {
        self.rows.len()
    }

    fn dim(&self) -> usize {
        self.rows[0][0].len()
    }

    fn gradient(&self, node: usize, x: &[f64], out: &mut [f64]) {
        let rows = &self.rows[node];
        out.fill(0.0);
        for (row, label) in rows.iter().zip(&self.labels[node]) {
            let margin: f64 = label * row.iter().zip(x).map(|(a, x)| a * x).sum::<f64>();
            let weight = -label / (1.0 + margin.exp());
            out.iter_mut().zip(row).for_each(|(sum, a)| *sum += weight * a);
        }
        for (out, x) in out.iter_mut().zip(x) {
            *out = *out / rows.len() as f64 + self.mu * x;
        }
    }
}

impl Logistic {
    /// μ and the usual bound `max(μ, max_i mean|a|²/4)`, which leaves the penalty out of L as the
    /// published program does.
    pub fn curvature(&self) -> (f64, f64) {
        let bound = |rows: &Vec<Vec<f64>>| {
            rows.iter().flatten().map(|a| a * a).sum::<f64>() / (4.0 * rows.len() as f64)
        };
        (self.mu, self.rows.iter().map(bound).fold(self.mu, f64::max))
    }
}

/// A model of the library on shards of the training rows: `f_i` is the mean loss over shard `i`
/// times `m_i n / m`, so that the mean of the `f_i` is the mean loss over all `m` dealt rows
/// whatever the sizes `m_i` of the `n` shards.
pub struct Sharded<'a> {
    model: &'a dyn objective::Objective,
    dim: usize,
    shards: Vec<Vec<u32>>,
    /// `m_i n / m`.
    weights: Vec<f64>,
    /// Rows of a gradient; `None` takes all of the shard.
    batch: Option<usize>,
    /// What a gradient needs beside its arguments: it is not part of the function.
    scratch: RefCell<(Scratch, ChaCha8Rng, Vec<u32>)>,
}

impl<'a> Sharded<'a> {
    /// The model on these shards. With `batch`, gradients are over as many rows drawn with
    /// replacement under `seed`.
    ///
    /// # Panics
    /// If a shard is empty.
    pub fn new(
        model: &'a dyn objective::Objective,
        shards: Vec<Vec<u32>>,
        batch: Option<usize>,
        seed: u64,
    ) -> Sharded<'a> {
        assert!(shards.iter().all(|shard| !shard.is_empty()), "every node has rows");
        let dim = model.tensors().iter().map(objective::TensorSpec::len).sum();
        let mean = shards.iter().map(Vec::len).sum::<usize>() as f64 / shards.len() as f64;
        let weights = shards.iter().map(|shard| shard.len() as f64 / mean).collect();
        let scratch = (Scratch::default(), ChaCha8Rng::seed_from_u64(seed), Vec::new());
        Sharded { model, dim, shards, weights, batch, scratch: RefCell::new(scratch) }
    }

    /// The rows of each node.
    pub fn shards(&self) -> &[Vec<u32>] {
        &self.shards
    }

    /// μ and L over all nodes; `None` if the model is not convex.
    pub fn curvature(&self) -> Option<(f64, f64)> {
        let mut scratch = self.scratch.borrow_mut();
        let mut range = (f64::INFINITY, 0.0f64);
        for (shard, weight) in self.shards.iter().zip(&self.weights) {
            let (mu, smoothness) = self.model.curvature(shard, &mut scratch.0)?;
            range = (range.0.min(weight * mu), range.1.max(weight * smoothness));
        }
        Some(range)
    }

    /// The mean loss over some rows, and its gradient.
    pub fn loss(&self, x: &[f64], rows: &[u32], gradient: &mut [f64]) -> f64 {
        self.model.gradient(x, rows, gradient, &mut self.scratch.borrow_mut().0)
    }
}

impl Objective for Sharded<'_> {
    fn nodes(&self) -> usize {
        self.shards.len()
    }

    fn dim(&self) -> usize {
        self.dim
    }

    fn gradient(&self, node: usize, x: &[f64], out: &mut [f64]) {
        let (scratch, rng, rows) = &mut *self.scratch.borrow_mut();
        let shard = &self.shards[node];
        match self.batch {
            None => self.model.gradient(x, shard, out, scratch),
            Some(batch) => {
                rows.clear();
                rows.extend((0..batch).map(|_| shard[below(rng, shard.len())]));
                self.model.gradient(x, rows, out, scratch)
            }
        };
        out.iter_mut().for_each(|slope| *slope *= self.weights[node]);
    }
}

/// A number below `count`; the bias of a 64-bit remainder is of no account here.
pub fn below(rng: &mut ChaCha8Rng, count: usize) -> usize {
    (rng.next_u64() % count as u64) as usize
}

/// A number in [0, 1), 53 bits.
pub fn uniform(rng: &mut ChaCha8Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 * 2f64.powi(-53)
}

/// A standard normal number (Box–Muller; the second of the pair is dropped).
pub fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let radius = (-2.0 * (1.0 - uniform(rng)).ln()).sqrt();
    radius * (std::f64::consts::TAU * uniform(rng)).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_agree_with_the_rows_and_vanish_at_the_minimizer() {
        let (problem, start) = LeastSquares::generate(3, 4, 3, 20);
        let x = problem.minimizer().unwrap();
        let mut sum = [0.0; 3];
        for node in 0..4 {
            let mut g = [0.0; 3];
            problem.gradient(node, &x, &mut g);
            sum.iter_mut().zip(g).for_each(|(sum, g)| *sum += g);
        }
        assert!(sum.iter().all(|s| s.abs() < 1e-9), "{sum:?}");
        let (mu, l) = problem.curvature();
        assert!(0.0 < mu && mu < l && start.len() == 4);
    }

    #[test]
    fn one_logistic_gradient_by_hand() {
        let problem = Logistic { rows: vec![vec![vec![2.0]]], labels: vec![vec![-1.0]], mu: 0.5 };
        let mut out = [0.0];
        problem.gradient(0, &[0.0], &mut out);
        assert_eq!(out, [1.0]);
        assert_eq!(problem.curvature(), (0.5, 1.0));
    }
}
