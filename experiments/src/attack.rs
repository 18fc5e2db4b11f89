//! Attacks of omniscient colluding nodes on a round of vectors, and the search for their factor.
//!
//! With μ the mean and σ the coordinate-wise unbiased standard deviation of the honest vectors:
//! ALIE ("little") sends `μ + zσ`, FOE ("empire") `(1 − z)μ`, sign flip `−μ`, scaled sign flip
//! `−μ (n − f)/f`. All faulty nodes send the same vector to everyone.

use multiversion::multiversion;

use rumormill::vector::monna::{average, nearest};

/// The direction an attack moves in from the mean of the honest, by a factor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attack {
    /// A little is enough: along the standard deviation.
    Alie,
    /// Fall of empires: against the mean.
    Foe,
}

/// The mean of some vectors.
pub fn mean(vectors: &[&[f64]]) -> Vec<f64> {
    let mut out = vec![0.0; vectors[0].len()];
    average(vectors.iter().copied(), &mut out);
    out
}

/// The coordinate-wise unbiased standard deviation of at least two vectors.
pub fn deviation(vectors: &[&[f64]], mean: &[f64]) -> Vec<f64> {
    let mut sums = vec![0.0; mean.len()];
    for vector in vectors {
        for ((sum, value), mean) in sums.iter_mut().zip(*vector).zip(mean) {
            *sum += (value - mean) * (value - mean);
        }
    }
    let divisor = (vectors.len() - 1) as f64;
    sums.iter_mut().for_each(|sum| *sum = (*sum / divisor).sqrt());
    sums
}

impl Attack {
    /// The vector per unit of factor, added to the mean of the honest.
    pub fn direction(self, honest: &[&[f64]], mean: &[f64]) -> Vec<f64> {
        match self {
            Attack::Alie => deviation(honest, mean),
            Attack::Foe => mean.iter().map(|value| -value).collect(),
        }
    }

    /// The attack vector for a factor.
    pub fn vector(self, honest: &[&[f64]], factor: f64) -> Vec<f64> {
        let mean = mean(honest);
        let direction = self.direction(honest, &mean);
        mean.iter().zip(&direction).map(|(m, d)| m + factor * d).collect()
    }

    /// The factor that moves nearest-neighbor averaging farthest from the honest mean: the score
    /// is the squared distance between the mean and the average, over the honest pivots, of the
    /// rule on all honest vectors and `faulty` copies with `faulty` dropped.
    pub fn search(self, honest: &[&[f64]], faulty: usize, evaluations: usize) -> f64 {
        let center = mean(honest);
        let mut mixed = vec![0.0; center.len()];
        search(evaluations, |factor| {
            let copy = self.vector(honest, factor);
            let mut list = honest.to_vec();
            list.extend(std::iter::repeat_n(&copy[..], faulty));
            let mut total = vec![0.0; center.len()];
            for pivot in honest {
                let kept = nearest(pivot, &list, honest.len());
                average(kept.iter().map(|neighbor| list[neighbor.index]), &mut mixed);
                total.iter_mut().zip(&mixed).for_each(|(sum, value)| *sum += value);
            }
            let pivots = honest.len() as f64;
            total.iter().zip(&center).map(|(sum, c)| (sum / pivots - c).powi(2)).sum()
        })
        .0
    }
}

/// The published line search from factor 0 with step 1: doubles the step while the score rises;
/// after the first failure probes back and forth around the best with steps shrunk by 0.8. Returns
/// the best factor and everything probed.
pub fn search(evaluations: usize, mut score: impl FnMut(f64) -> f64) -> (f64, Vec<f64>) {
    let (mut best, mut step) = (0.0, 1.0);
    let mut best_score = score(best);
    let mut probed = vec![best];
    let mut x = best;
    while probed.len() < evaluations {
        x = best + step;
        probed.push(x);
        let value = score(x);
        if value > best_score {
            (best, best_score) = (x, value);
            step *= 2.0;
        } else {
            step *= 0.8;
            break;
        }
    }
    while probed.len() < evaluations {
        if x < best {
            x += step
        } else {
            x -= step
        }
        probed.push(x);
        let value = score(x);
        if value > best_score {
            (best, best_score) = (x, value);
        }
        step *= 0.8;
    }
    (best, probed)
}

/// Inner products of the honest vectors of a round and of the attack's direction: with them a probe
/// of the factor search, and any rule that works by distances, costs no pass over the vectors.
pub struct Gram {
    honest: usize,
    /// Of the honest vectors less the center, then the direction.
    products: Vec<Vec<f64>>,
}

impl Gram {
    /// One pass over all pairs. Centering on the honest mean leaves distances alone and keeps the
    /// small differences that matter from cancelling.
    pub fn new(honest: &[&[f64]], direction: &[f64], center: &[f64]) -> Gram {
        let count = honest.len() + 1;
        let mut products = vec![vec![0.0; count]; count];
        let mut block = vec![[0.0; BLOCK]; count];
        for from in (0..center.len()).step_by(BLOCK) {
            let to = (from + BLOCK).min(center.len());
            let width = to - from;
            for (centered, vector) in block.iter_mut().zip(honest) {
                let pairs = vector[from..to].iter().zip(&center[from..to]);
                centered.iter_mut().zip(pairs).for_each(|(out, (v, c))| *out = v - c);
            }
            block[count - 1][..width].copy_from_slice(&direction[from..to]);
            add_products(&block, width, &mut products);
        }
        for i in 0..count {
            let (above, below) = products.split_at_mut(i);
            above.iter_mut().zip(&below[0]).for_each(|(row, value)| row[i] = *value);
        }
        Gram { honest: honest.len(), products }
    }

    /// How many honest vectors there are.
    pub fn honest(&self) -> usize {
        self.honest
    }

    /// The inner product of two honest vectors less the center; the index after the last is the
    /// direction.
    pub fn product(&self, i: usize, j: usize) -> f64 {
        self.products[i][j]
    }

    /// The squared distance between an honest vector and the center plus `factor` directions.
    pub fn to_faulty(&self, i: usize, factor: f64) -> f64 {
        let (n, g) = (self.honest, &self.products);
        g[i][i] - 2.0 * factor * g[i][n] + factor * factor * g[n][n]
    }

    /// The squared distance between two honest vectors.
    pub fn between(&self, i: usize, j: usize) -> f64 {
        let g = &self.products;
        g[i][i] - 2.0 * g[i][j] + g[j][j]
    }

    /// The score of [`Attack::search`] for a factor.
    pub fn score(&self, factor: f64, faulty: usize) -> f64 {
        let (n, g) = (self.honest, &self.products);
        // Coefficients of the average over pivots, in honest vectors and direction.
        let mut sum = vec![0.0; n + 1];
        for pivot in 0..n {
            let to_copy = self.to_faulty(pivot, factor);
            let mut list: Vec<(f64, usize)> = (0..n)
                .map(|j| (self.between(pivot, j), j))
                .chain(std::iter::repeat_n((to_copy, n), faulty))
                .collect();
            list.sort_by(|a, b| a.0.total_cmp(&b.0));
            for &(_, index) in list.iter().take(n) {
                sum[index] += if index == n { factor } else { 1.0 };
            }
        }
        let scale = (n * n) as f64;
        let quadratic = |i: usize| (0..=n).map(|j| sum[i] * sum[j] * g[i][j]).sum::<f64>();
        (0..=n).map(quadratic).sum::<f64>() / (scale * scale)
    }
}

/// Coordinates of a block: for some 25 vectors together they fit the second cache.
const BLOCK: usize = 512;

/// Adds the inner products of the first `width` coordinates to the lower triangle.
#[multiversion(targets("x86_64+avx2", "aarch64+neon"))]
fn add_products(block: &[[f64; BLOCK]], width: usize, products: &mut [Vec<f64>]) {
    for (i, row) in products.iter_mut().enumerate() {
        for (j, sum) in row[..=i].iter_mut().enumerate() {
            *sum += dot(&block[i][..width], &block[j][..width]);
        }
    }
}

/// The inner product, in sixteen fixed lanes.
#[inline(always)]
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut lanes = [0.0f64; 16];
    let (a_blocks, a_rest) = a.as_chunks::<16>();
    let (b_blocks, b_rest) = b.as_chunks::<16>();
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        for lane in 0..16 {
            lanes[lane] += a[lane] * b[lane];
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    lanes.iter().sum::<f64>() + rest
}

/// Weighted sums of the same vectors, one for each list of (index, weight), in blocks of coordinates.
pub fn combine(vectors: &[&[f64]], weights: &[Vec<(usize, f64)>], out: &mut [Vec<f64>]) {
    let dim = vectors[0].len();
    for from in (0..dim).step_by(BLOCK) {
        let to = (from + BLOCK).min(dim);
        for (weights, out) in weights.iter().zip(&mut *out) {
            let out = &mut out[from..to];
            out.fill(0.0);
            for &(index, weight) in weights {
                add_scaled(&vectors[index][from..to], weight, out);
            }
        }
    }
}

#[multiversion(targets("x86_64+avx2", "aarch64+neon"))]
fn add_scaled(vector: &[f64], weight: f64, out: &mut [f64]) {
    for (out, value) in out.iter_mut().zip(vector) {
        *out += weight * value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::normal;
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::SeedableRng;

    #[test]
    fn the_search_in_gram_space_finds_the_factor_of_the_search_on_vectors() {
        for seed in 0..5 {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let vectors: Vec<Vec<f64>> =
                (0..9).map(|_| (0..13).map(|_| 1.0 + normal(&mut rng)).collect()).collect();
            let honest: Vec<&[f64]> = vectors.iter().map(Vec::as_slice).collect();
            let mean = mean(&honest);
            for attack in [Attack::Alie, Attack::Foe] {
                let gram = Gram::new(&honest, &attack.direction(&honest, &mean), &mean);
                let (fast, _) = search(16, |factor| gram.score(factor, 3));
                let slow = attack.search(&honest, 3, 16);
                assert!((fast - slow).abs() < 1e-12, "seed {seed}, {attack:?}: {fast} {slow}");
            }
        }
    }
}
