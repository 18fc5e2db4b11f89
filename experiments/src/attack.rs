//! Attacks of omniscient colluding nodes on a round of vectors, and the search for their factor.
//!
//! With μ the mean and σ the coordinate-wise unbiased standard deviation of the honest vectors:
//! ALIE ("little") sends `μ + zσ`, FOE ("empire") `(1 − z)μ`, sign flip `−μ`, scaled sign flip
//! `−μ (n − f)/f`. All faulty nodes send the same vector to everyone.

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
    let divisor = (vectors.len() - 1) as f64;
    (0..mean.len())
        .map(|k| {
            let sum: f64 = vectors.iter().map(|v| (v[k] - mean[k]) * (v[k] - mean[k])).sum();
            (sum / divisor).sqrt()
        })
        .collect()
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

/// Everything the factor search needs of a round: inner products of the honest vectors and of the
/// attack's direction, so that a probe of the search costs no pass over the vectors.
pub struct Gram {
    honest: usize,
    /// Inner products of the honest vectors, then the direction; all less the honest mean.
    products: Vec<Vec<f64>>,
}

impl Gram {
    /// One pass over all pairs. Vectors are centered on the honest mean first, which leaves
    /// distances alone and keeps the small differences that matter from cancelling.
    pub fn new(honest: &[&[f64]], direction: &[f64], mean: &[f64]) -> Gram {
        let count = honest.len() + 1;
        let mut products = vec![vec![0.0; count]; count];
        // Blocks of coordinates that fit the cache for all vectors together.
        const BLOCK: usize = 512;
        let mut block = vec![[0.0; BLOCK]; count];
        for from in (0..mean.len()).step_by(BLOCK) {
            let to = (from + BLOCK).min(mean.len());
            let width = to - from;
            for (centered, vector) in block.iter_mut().zip(honest) {
                let pairs = vector[from..to].iter().zip(&mean[from..to]);
                centered.iter_mut().zip(pairs).for_each(|(out, (v, m))| *out = v - m);
            }
            block[count - 1][..width].copy_from_slice(&direction[from..to]);
            for i in 0..count {
                for j in 0..=i {
                    products[i][j] += dot(&block[i][..width], &block[j][..width]);
                }
            }
        }
        for i in 0..count {
            let (above, below) = products.split_at_mut(i);
            above.iter_mut().zip(&below[0]).for_each(|(row, value)| row[i] = *value);
        }
        Gram { honest: honest.len(), products }
    }

    /// The score of [`Attack::search`] for a factor.
    pub fn score(&self, factor: f64, faulty: usize) -> f64 {
        let (n, g) = (self.honest, &self.products);
        let copy = factor * factor * g[n][n];
        // Coefficients of the average over pivots, in honest vectors and direction.
        let mut sum = vec![0.0; n + 1];
        for pivot in 0..n {
            let to_copy = g[pivot][pivot] - 2.0 * factor * g[pivot][n] + copy;
            let mut list: Vec<(f64, usize)> = (0..n)
                .map(|j| (g[pivot][pivot] - 2.0 * g[pivot][j] + g[j][j], j))
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

/// The inner product, in eight fixed lanes.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut lanes = [0.0f64; 8];
    let (a_blocks, b_blocks) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f64 = a_blocks.remainder().iter().zip(b_blocks.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a_blocks.zip(b_blocks) {
        lanes.iter_mut().zip(a.iter().zip(b)).for_each(|(lane, (a, b))| *lane += a * b);
    }
    lanes.iter().sum::<f64>() + rest
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
