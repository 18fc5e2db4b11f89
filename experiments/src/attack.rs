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
