//! Rival aggregation rules on vectors, side by side behind one trait, for comparison with
//! nearest-neighbor averaging. Each takes the vectors one node holds, its own among them, and
//! writes one vector; non-finite or unequal vectors are refused, the order of sums is fixed.
//!
//! | rule | keeps or computes | source |
//! |---|---|---|
//! | [`Mean`] | everything | |
//! | [`Median`] | the middle of each coordinate | Yin et al. 2018 |
//! | [`TrimmedMean`] | each coordinate without its f largest and f smallest | Yin et al. 2018; BRIDGE-T |
//! | [`GeometricMedian`] | argmin Σ‖v − x_j‖, smoothed Weiszfeld | Pillutla et al. 2022 |
//! | [`Krum`] | the `keep` vectors with the smallest sum of squared distances to their m − f − 2 nearest | Blanchard et al. 2017 |
//! | [`CenteredClipping`] | v + mean of clip(x_j − v, τ), from the own vector | Karimireddy et al. 2021; SCC |
//! | [`Nna`] | mean of the m − f nearest to the own vector | MoNNA 2023, on a full list |
//! | [`Nnm`] | another rule after each vector became the mean of its m − f nearest | Allouah et al. 2023 |
//! | [`ClippedSum`] | own + Σ w clip(x_j − own, t), t with weight 2b above it (CS+) | Gaucher et al. 2024 |

use thiserror::Error;

use super::monna::{average, distance, is_finite, nearest};

/// A rule that combines the vectors a node holds.
pub trait Rule {
    /// The name used in tables and on the command line.
    fn name(&self) -> String;

    /// Combines `m` vectors of equal length into `out`; `own` is the index of the node's own.
    ///
    /// # Errors
    /// When the vectors are unusable or too few; `out` is then unspecified.
    ///
    /// # Panics
    /// If `own` is not an index of `vectors` or `out` has another length than the own vector.
    fn combine(&self, own: usize, vectors: &[&[f64]], out: &mut [f64]) -> Result<(), RuleError>;
}

/// Why a rule gave no vector.
#[derive(Clone, Copy, Debug, Error, PartialEq)]
pub enum RuleError {
    /// A vector with a NaN or an infinity.
    #[error("vector {index} is not finite")]
    NotFinite {
        /// Its position.
        index: usize,
    },
    /// A vector of another length than the own.
    #[error("vector {index} has {got} numbers, not {expected}")]
    Length {
        /// Its position.
        index: usize,
        /// The own vector's length.
        expected: usize,
        /// Its length.
        got: usize,
    },
    /// The rule needs more vectors to tolerate its number of faulty ones.
    #[error("needs at least {least} vectors, got {got}")]
    TooFew {
        /// The least number.
        least: usize,
        /// How many there are.
        got: usize,
    },
}

fn check(own: usize, vectors: &[&[f64]], out: &mut [f64], least: usize) -> Result<(), RuleError> {
    assert_eq!(vectors[own].len(), out.len(), "the result has the length of the own vector");
    if vectors.len() < least {
        return Err(RuleError::TooFew { least, got: vectors.len() });
    }
    for (index, vector) in vectors.iter().enumerate() {
        if vector.len() != out.len() {
            return Err(RuleError::Length { index, expected: out.len(), got: vector.len() });
        }
        if !is_finite(vector) {
            return Err(RuleError::NotFinite { index });
        }
    }
    Ok(())
}

/// The plain mean.
#[derive(Clone, Copy, Debug)]
pub struct Mean;

impl Rule for Mean {
    fn name(&self) -> String {
        "mean".into()
    }

    fn combine(&self, own: usize, vectors: &[&[f64]], out: &mut [f64]) -> Result<(), RuleError> {
        check(own, vectors, out, 1)?;
        average(vectors.iter().copied(), out);
        Ok(())
    }
}

/// The median of each coordinate; of an even number, the mean of the middle two.
#[derive(Clone, Copy, Debug)]
pub struct Median;

impl Rule for Median {
    fn name(&self) -> String {
        "median".into()
    }

    fn combine(&self, own: usize, vectors: &[&[f64]], out: &mut [f64]) -> Result<(), RuleError> {
        check(own, vectors, out, 1)?;
        let count = vectors.len();
        trimmed(vectors, (count - 1) / 2, out);
        Ok(())
    }
}

/// The mean of each coordinate without its `faulty` largest and smallest values.
#[derive(Clone, Copy, Debug)]
pub struct TrimmedMean {
    /// How many are cut at each end; `2·faulty` is below the number of vectors.
    pub faulty: usize,
}

impl Rule for TrimmedMean {
    fn name(&self) -> String {
        "trimmed-mean".into()
    }

    fn combine(&self, own: usize, vectors: &[&[f64]], out: &mut [f64]) -> Result<(), RuleError> {
        check(own, vectors, out, 2 * self.faulty + 1)?;
        trimmed(vectors, self.faulty, out);
        Ok(())
    }
}

/// Per coordinate the mean of what is left after cutting `cut` values at each end.
fn trimmed(vectors: &[&[f64]], cut: usize, out: &mut [f64]) {
    let mut column = vec![0.0; vectors.len()];
    for (k, out) in out.iter_mut().enumerate() {
        for (value, vector) in column.iter_mut().zip(vectors) {
            *value = vector[k];
        }
        column.sort_unstable_by(f64::total_cmp);
        let middle = &column[cut..column.len() - cut];
        *out = middle.iter().sum::<f64>() / middle.len() as f64;
    }
}

/// The point of least summed distance, by smoothed Weiszfeld iterations from the mean.
#[derive(Clone, Copy, Debug)]
pub struct GeometricMedian {
    /// Iterations; the published MoNNA comparison uses 3, but from the zero vector.
    pub iterations: usize,
    /// Distances are taken as at least this, positive; 0.1 in the same comparison.
    pub smoothing: f64,
}

impl Rule for GeometricMedian {
    fn name(&self) -> String {
        "geometric-median".into()
    }

    fn combine(&self, own: usize, vectors: &[&[f64]], out: &mut [f64]) -> Result<(), RuleError> {
        check(own, vectors, out, 1)?;
        average(vectors.iter().copied(), out);
        let mut weights = vec![0.0; vectors.len()];
        for _ in 0..self.iterations {
            for (weight, vector) in weights.iter_mut().zip(vectors) {
                *weight = 1.0 / distance(vector, out).max(self.smoothing);
            }
            let total: f64 = weights.iter().sum();
            out.fill(0.0);
            for (weight, vector) in weights.iter().zip(vectors) {
                for (sum, value) in out.iter_mut().zip(*vector) {
                    *sum += weight / total * value;
                }
            }
        }
        Ok(())
    }
}

/// Krum with `keep` 1; multi-Krum averages the `keep` best.
#[derive(Clone, Copy, Debug)]
pub struct Krum {
    /// Faulty vectors tolerated, f; at least `f + 3` vectors are needed.
    pub faulty: usize,
    /// How many of the best are averaged, at least 1; at most all there are.
    pub keep: usize,
}

impl Rule for Krum {
    fn name(&self) -> String {
        if self.keep == 1 { "krum".into() } else { "multi-krum".into() }
    }

    fn combine(&self, own: usize, vectors: &[&[f64]], out: &mut [f64]) -> Result<(), RuleError> {
        check(own, vectors, out, (self.faulty + 3).max(self.keep))?;
        let close = vectors.len() - self.faulty - 2;
        let mut scores: Vec<(f64, usize)> = vectors
            .iter()
            .enumerate()
            .map(|(index, vector)| {
                // The nearest of all is the vector itself, at distance zero: one more, no cost.
                let near = nearest(vector, vectors, close + 1);
                (near.iter().map(|n| n.distance * n.distance).sum(), index)
            })
            .collect();
        scores.sort_by(|a, b| a.0.total_cmp(&b.0));
        let kept = scores.iter().take(self.keep.max(1));
        average(kept.map(|&(_, index)| vectors[index]), out);
        Ok(())
    }
}

/// Centered clipping around the own vector.
#[derive(Clone, Copy, Debug)]
pub struct CenteredClipping {
    /// The clipping radius τ, positive.
    pub radius: f64,
    /// Iterations; each moves the center.
    pub iterations: usize,
}

impl Rule for CenteredClipping {
    fn name(&self) -> String {
        "centered-clipping".into()
    }

    fn combine(&self, own: usize, vectors: &[&[f64]], out: &mut [f64]) -> Result<(), RuleError> {
        check(own, vectors, out, 1)?;
        out.copy_from_slice(vectors[own]);
        let mut center = vec![0.0; out.len()];
        let weight = 1.0 / vectors.len() as f64;
        for _ in 0..self.iterations {
            center.copy_from_slice(out);
            for vector in vectors {
                add_clipped(&center, vector, self.radius, weight, out);
            }
        }
        Ok(())
    }
}

/// `out += weight · clip(vector − center, radius)`.
fn add_clipped(center: &[f64], vector: &[f64], radius: f64, weight: f64, out: &mut [f64]) {
    let length = distance(center, vector);
    let scale = if length > radius { weight * radius / length } else { weight };
    for ((out, value), center) in out.iter_mut().zip(vector).zip(center) {
        *out += scale * (value - center);
    }
}

/// Nearest-neighbor averaging on a full list: the mean of all but the `faulty` farthest.
#[derive(Clone, Copy, Debug)]
pub struct Nna {
    /// How many of the farthest are left out, f.
    pub faulty: usize,
}

impl Rule for Nna {
    fn name(&self) -> String {
        "nna".into()
    }

    fn combine(&self, own: usize, vectors: &[&[f64]], out: &mut [f64]) -> Result<(), RuleError> {
        check(own, vectors, out, self.faulty + 1)?;
        let kept = nearest(vectors[own], vectors, vectors.len() - self.faulty);
        average(kept.iter().map(|neighbor| vectors[neighbor.index]), out);
        Ok(())
    }
}

/// Nearest-neighbor mixing before another rule: each vector is replaced by its own NNA mean.
#[derive(Clone, Copy, Debug)]
pub struct Nnm<R> {
    /// How many of the farthest each vector leaves out, f.
    pub faulty: usize,
    /// The rule applied to the mixed vectors.
    pub rule: R,
}

impl<R: Rule> Rule for Nnm<R> {
    fn name(&self) -> String {
        format!("nnm+{}", self.rule.name())
    }

    fn combine(&self, own: usize, vectors: &[&[f64]], out: &mut [f64]) -> Result<(), RuleError> {
        check(own, vectors, out, self.faulty + 1)?;
        let mixed: Vec<Vec<f64>> = (0..vectors.len())
            .map(|pivot| {
                let kept = nearest(vectors[pivot], vectors, vectors.len() - self.faulty);
                let mut mean = vec![0.0; out.len()];
                average(kept.iter().map(|neighbor| vectors[neighbor.index]), &mut mean);
                mean
            })
            .collect();
        let mixed: Vec<&[f64]> = mixed.iter().map(Vec::as_slice).collect();
        self.rule.combine(own, &mixed, out)
    }
}

/// CS+ (clipped gossip) for sparse graphs, with one weight for all neighbors.
#[derive(Clone, Copy, Debug)]
pub struct ClippedSum {
    /// How many neighbors may be faulty; twice their weight is clipped. With half or more faulty
    /// the threshold is 0 and the own vector stays.
    pub faulty: usize,
}

impl Rule for ClippedSum {
    fn name(&self) -> String {
        "cs+".into()
    }

    fn combine(&self, own: usize, vectors: &[&[f64]], out: &mut [f64]) -> Result<(), RuleError> {
        check(own, vectors, out, 1)?;
        let weight = 1.0 / vectors.len() as f64;
        let neighbors: Vec<(&[f64], f64)> = vectors
            .iter()
            .enumerate()
            .filter(|&(index, _)| index != own)
            .map(|(_, vector)| (*vector, weight))
            .collect();
        clipped_gossip(vectors[own], &neighbors, self.faulty as f64 * weight, out);
        Ok(())
    }
}

/// CS+ with gossip weights: `out = own + Σ w_j clip(x_j − own, t)`, where `t` is the largest
/// distance that neighbors of more than `2·faulty_weight` total weight reach. Weights are
/// positive and sum to at most 1.
pub fn clipped_gossip(
    own: &[f64],
    neighbors: &[(&[f64], f64)],
    faulty_weight: f64,
    out: &mut [f64],
) {
    let mut distances: Vec<(f64, f64)> =
        neighbors.iter().map(|(vector, weight)| (distance(own, vector), *weight)).collect();
    distances.sort_by(|a, b| b.0.total_cmp(&a.0));
    // Sums of equal weights are compared with half of the smallest weight as slack.
    let slack = neighbors.iter().map(|n| n.1).fold(f64::INFINITY, f64::min) / 2.0;
    let mut above = 0.0;
    let threshold = distances
        .iter()
        .find(|(_, weight)| {
            above += weight;
            above > 2.0 * faulty_weight + slack
        })
        .map_or(0.0, |(distance, _)| *distance);
    out.copy_from_slice(own);
    for (vector, weight) in neighbors {
        add_clipped(own, vector, threshold, *weight, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apply(rule: &dyn Rule, own: usize, vectors: &[[f64; 2]]) -> Result<[f64; 2], RuleError> {
        let list: Vec<&[f64]> = vectors.iter().map(|v| &v[..]).collect();
        let mut out = [0.0; 2];
        rule.combine(own, &list, &mut out).map(|()| out)
    }

    const HONEST_AND_ONE: [[f64; 2]; 5] =
        [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1000.0, -1000.0]];

    #[test]
    fn simple_rules_by_hand() {
        let v = &HONEST_AND_ONE;
        assert_eq!(apply(&Mean, 0, v).unwrap(), [200.4, -199.6]);
        assert_eq!(apply(&Median, 0, v).unwrap(), [1.0, 0.0]);
        assert_eq!(apply(&Median, 0, &v[..4]).unwrap(), [0.5, 0.5]);
        let third = 2.0 / 3.0;
        assert_eq!(apply(&TrimmedMean { faulty: 1 }, 0, v).unwrap(), [third, 1.0 / 3.0]);
        assert_eq!(apply(&Nna { faulty: 1 }, 0, v).unwrap(), [0.5, 0.5]);
        // Scores over the 2 nearest others are 2 for every corner; the first wins.
        assert_eq!(apply(&Krum { faulty: 1, keep: 1 }, 0, v).unwrap(), [0.0, 0.0]);
        assert_eq!(apply(&Krum { faulty: 1, keep: 4 }, 0, v).unwrap(), [0.5, 0.5]);
    }

    #[test]
    fn clipping_bounds_what_one_vector_can_move() {
        let own = [[0.0, 0.0], [0.0, 0.0], [300.0, 400.0]];
        let rule = CenteredClipping { radius: 3.0, iterations: 1 };
        let moved = apply(&rule, 0, &own).unwrap();
        assert!((moved[0] - 0.6).abs() < 1e-15 && (moved[1] - 0.8).abs() < 1e-15, "{moved:?}");
    }

    #[test]
    fn cs_plus_clips_at_the_distance_with_twice_the_faulty_weight_above() {
        // Distances 1, 2, 3, 4 from the own; f = 1 clips at the third largest, 2.
        let v = [[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [4.0, 0.0]];
        let out = apply(&ClippedSum { faulty: 1 }, 0, &v).unwrap();
        assert!((out[0] - 7.0 / 5.0).abs() < 1e-15, "{out:?}");
        assert_eq!(apply(&ClippedSum { faulty: 2 }, 0, &v).unwrap(), [0.0, 0.0]);
        let unclipped = apply(&ClippedSum { faulty: 0 }, 0, &v).unwrap();
        assert!((unclipped[0] - 2.0).abs() < 1e-15);
    }

    #[test]
    fn every_robust_rule_holds_one_far_vector_and_the_mean_does_not() {
        let rules: [&dyn Rule; 10] = [
            &Median,
            &TrimmedMean { faulty: 1 },
            &GeometricMedian { iterations: 50, smoothing: 1e-6 },
            &Krum { faulty: 1, keep: 1 },
            &Krum { faulty: 1, keep: 4 },
            &CenteredClipping { radius: 1.0, iterations: 3 },
            &Nna { faulty: 1 },
            &Nnm { faulty: 1, rule: TrimmedMean { faulty: 1 } },
            &Nnm { faulty: 1, rule: Median },
            &ClippedSum { faulty: 1 },
        ];
        let far = |v: [f64; 2]| v.iter().any(|c| c.abs() > 2.0);
        for rule in rules {
            let out = apply(rule, 0, &HONEST_AND_ONE).unwrap();
            assert!(!far(out), "{}: {out:?}", rule.name());
        }
        assert!(far(apply(&Mean, 0, &HONEST_AND_ONE).unwrap()));
    }

    #[test]
    fn equal_vectors_are_left_alone_by_every_rule() {
        let same = [[0.25, -3.0]; 5];
        let rules: [&dyn Rule; 7] = [
            &Mean,
            &Median,
            &GeometricMedian { iterations: 3, smoothing: 0.1 },
            &Krum { faulty: 1, keep: 1 },
            &CenteredClipping { radius: 1.0, iterations: 3 },
            &Nnm { faulty: 2, rule: Nna { faulty: 2 } },
            &ClippedSum { faulty: 1 },
        ];
        for rule in rules {
            let out = apply(rule, 2, &same).unwrap();
            for (out, value) in out.iter().zip(same[0]) {
                assert!((out - value).abs() < 1e-15, "{}", rule.name());
            }
        }
    }

    #[test]
    fn the_geometric_median_of_a_line_is_its_middle() {
        let v = [[0.0, 0.0], [1.0, 0.0], [100.0, 0.0]];
        let rule = GeometricMedian { iterations: 4000, smoothing: 1e-9 };
        assert!((apply(&rule, 0, &v).unwrap()[0] - 1.0).abs() < 1e-3);
    }

    #[test]
    fn unusable_vectors_are_refused() {
        let mut v = HONEST_AND_ONE;
        v[3][1] = f64::NAN;
        assert_eq!(apply(&Mean, 0, &v), Err(RuleError::NotFinite { index: 3 }));
        let few = Krum { faulty: 3, keep: 1 };
        let too_few = RuleError::TooFew { least: 6, got: 5 };
        assert_eq!(apply(&few, 0, &HONEST_AND_ONE), Err(too_few));
    }
}
