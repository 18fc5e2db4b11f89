//! Shards: which training rows a node holds.
//!
//! Every node computes the whole split from `(seed, nodes)` and keeps its own part. No maths library
//! is involved: the logarithm and the exponential that Dirichlet shares need are written out below
//! from the four operations, so all platforms split alike.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::sample::KeyedRng;

const CONTEXT: &str = "rumormill v1 shard";

/// How the training rows are held.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shards {
    /// Every node holds all rows, so that anybody can repeat anybody's probe.
    Public,
    /// Every row has one holder, drawn evenly.
    Iid,
    /// Every row has one holder; a class is dealt in shares drawn from a symmetric Dirichlet
    /// distribution of this parameter. Small ones leave a node few classes.
    Dirichlet(f64),
}

/// The range of a Dirichlet parameter: below, one node takes each class; above, it is even.
pub const ALPHA_RANGE: std::ops::RangeInclusive<f64> = 1e-3..=1e6;

/// Why a text names no way to hold data.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ShardsError {
    /// Another word.
    #[error("unknown shards {0:?}; known are public, iid and dirichlet:ALPHA")]
    Unknown(String),
    /// A parameter out of range.
    #[error("Dirichlet parameter {0:?} is not a number from 0.001 to 1000000")]
    Alpha(String),
}

impl FromStr for Shards {
    type Err = ShardsError;

    fn from_str(text: &str) -> Result<Shards, ShardsError> {
        match text.split_once(':') {
            None if text == "public" => Ok(Shards::Public),
            None if text == "iid" => Ok(Shards::Iid),
            Some(("dirichlet", alpha)) => match alpha.parse() {
                Ok(value) if ALPHA_RANGE.contains(&value) => Ok(Shards::Dirichlet(value)),
                _ => Err(ShardsError::Alpha(alpha.to_owned())),
            },
            _ => Err(ShardsError::Unknown(text.to_owned())),
        }
    }
}

impl fmt::Display for Shards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Shards::Public => f.write_str("public"),
            Shards::Iid => f.write_str("iid"),
            Shards::Dirichlet(alpha) => write!(f, "dirichlet:{alpha}"),
        }
    }
}

/// Why rows cannot be dealt.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SplitError {
    /// Some node would hold nothing.
    #[error("{rows} training rows cannot be dealt to {nodes} nodes")]
    Rows {
        /// The rows.
        rows: usize,
        /// The nodes.
        nodes: usize,
    },
}

impl Shards {
    /// The rows of every node, in increasing order.
    ///
    /// With [`Shards::Public`] every node has all rows; otherwise every row has exactly one node,
    /// and every node at least one row.
    ///
    /// # Errors
    /// If there are no nodes, no rows, or fewer rows than nodes that do not share them.
    pub fn split(
        &self,
        labels: &[u16],
        nodes: usize,
        seed: u64,
    ) -> Result<Vec<Vec<u32>>, SplitError> {
        let rows = labels.len();
        let needed = if *self == Shards::Public { 1 } else { nodes };
        if nodes == 0 || rows < needed {
            return Err(SplitError::Rows { rows, nodes });
        }
        let mut rng = KeyedRng::from_seed(CONTEXT, seed, nodes as u64);
        let mut shards = match *self {
            Shards::Public => return Ok(vec![(0..rows as u32).collect(); nodes]),
            Shards::Iid => {
                let mut shards = vec![Vec::new(); nodes];
                deal_evenly(rng.permutation(rows as u32), &mut shards);
                shards
            }
            Shards::Dirichlet(alpha) => split_by_class(labels, nodes, alpha, &mut rng),
        };
        feed_the_empty(&mut shards);
        shards.iter_mut().for_each(|rows| rows.sort_unstable());
        Ok(shards)
    }

    /// The rows of one node; see [`Shards::split`].
    ///
    /// # Errors
    /// As [`Shards::split`].
    ///
    /// # Panics
    /// If `node` is not below `nodes`.
    pub fn rows(
        &self,
        labels: &[u16],
        node: usize,
        nodes: usize,
        seed: u64,
    ) -> Result<Vec<u32>, SplitError> {
        assert!(node < nodes, "node {node} of {nodes}");
        if *self == Shards::Public {
            return self.split(labels, 1, seed).map(|mut shards| shards.swap_remove(0));
        }
        self.split(labels, nodes, seed).map(|mut shards| shards.swap_remove(node))
    }
}

fn deal_evenly(rows: Vec<u32>, shards: &mut [Vec<u32>]) {
    let nodes = shards.len();
    rows.into_iter().enumerate().for_each(|(index, row)| shards[index % nodes].push(row));
}

fn split_by_class(labels: &[u16], nodes: usize, alpha: f64, rng: &mut KeyedRng) -> Vec<Vec<u32>> {
    let classes = labels.iter().max().map_or(0, |&largest| usize::from(largest) + 1);
    let mut by_class = vec![Vec::new(); classes];
    (0..).zip(labels).for_each(|(row, &label)| by_class[usize::from(label)].push(row));
    let mut shards = vec![Vec::new(); nodes];
    for mut rows in by_class {
        rng.shuffle(&mut rows);
        let mut dealt = 0;
        let mut cumulative = 0.0;
        for (shard, share) in shards.iter_mut().zip(dirichlet(alpha, nodes, rng)) {
            cumulative += share;
            let end = ((cumulative * rows.len() as f64).round() as usize).clamp(dealt, rows.len());
            shard.extend_from_slice(&rows[dealt..end]);
            dealt = end;
        }
        // Rounding may leave the shares a hair short of one.
        shards[nodes - 1].extend_from_slice(&rows[dealt..]);
    }
    shards
}

/// Gives every node without rows one of the node that has most.
fn feed_the_empty(shards: &mut [Vec<u32>]) {
    for node in 0..shards.len() {
        if shards[node].is_empty() {
            let most = (0..shards.len()).rev().max_by_key(|&n| shards[n].len());
            let row = most.and_then(|most| shards[most].pop());
            shards[node].push(row.expect("there are at least as many rows as nodes"));
        }
    }
}

/// Shares of a symmetric Dirichlet distribution: gamma variables over their sum.
///
/// Kept as logarithms until the largest is known, since small parameters underflow.
fn dirichlet(alpha: f64, count: usize, rng: &mut KeyedRng) -> Vec<f64> {
    let logs: Vec<f64> = (0..count).map(|_| ln_gamma_variable(alpha, rng)).collect();
    let largest = logs.iter().fold(f64::NEG_INFINITY, |largest, &log| largest.max(log));
    let weights: Vec<f64> = logs.iter().map(|log| exp(log - largest)).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / sum).collect()
}

/// The logarithm of a gamma variable of shape `alpha` and scale 1 (Marsaglia and Tsang 2000).
///
/// Below shape 1 by the identity `G(α) = G(α + 1) · U^(1/α)`.
fn ln_gamma_variable(alpha: f64, rng: &mut KeyedRng) -> f64 {
    if alpha < 1.0 {
        let larger = ln_gamma_variable(alpha + 1.0, rng);
        return larger + ln(rng.unit_f64()) / alpha;
    }
    let d = alpha - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let x = normal_variable(rng);
        let base = 1.0 + c * x;
        let v = base * base * base;
        if v > 0.0 && ln(rng.unit_f64()) < x * x / 2.0 + d - d * v + d * ln(v) {
            return ln(d) + ln(v);
        }
    }
}

/// A standard normal variable by Marsaglia's polar method; the second one is thrown away.
fn normal_variable(rng: &mut KeyedRng) -> f64 {
    loop {
        let (x, y) = (2.0 * rng.unit_f64() - 1.0, 2.0 * rng.unit_f64() - 1.0);
        let square = x * x + y * y;
        if square < 1.0 && square > 0.0 {
            return x * (-2.0 * ln(square) / square).sqrt();
        }
    }
}

/// The natural logarithm of a positive normal number, to about 1e-15.
///
/// With `x = 2^k·m`, `m` in `[1, 2)`: `ln x = k ln 2 + 2 artanh((m − 1)/(m + 1))`.
fn ln(x: f64) -> f64 {
    let bits = x.to_bits();
    let exponent = (bits >> 52) as i32 - 1023;
    let mantissa = f64::from_bits(bits & ((1 << 52) - 1) | 1023 << 52);
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let square = s * s;
    // s ≤ 1/3, so 17 terms leave less than 9^-17.
    let series = (0..17).rev().fold(0.0, |sum, k| sum * square + 1.0 / f64::from(2 * k + 1));
    f64::from(exponent) * std::f64::consts::LN_2 + 2.0 * s * series
}

/// The exponential of a number that is not positive, to about 1e-15; zero below −700.
fn exp(x: f64) -> f64 {
    if x < -700.0 {
        return 0.0;
    }
    let octaves = (x / std::f64::consts::LN_2).round();
    let rest = x - octaves * std::f64::consts::LN_2;
    // |rest| ≤ 0.35, so 14 terms leave less than 1e-17.
    let series = (1..=14).rev().fold(1.0, |sum, k| 1.0 + sum * rest / f64::from(k));
    series * crate::lb8::pow2_f64(octaves as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels() -> Vec<u16> {
        (0..1000).map(|row| row % 10).collect()
    }

    fn sorted(shards: &[Vec<u32>]) -> Vec<u32> {
        let mut rows = shards.concat();
        rows.sort_unstable();
        rows
    }

    #[test]
    fn names_survive_a_round_trip_and_wrong_ones_are_refused() {
        for name in ["public", "iid", "dirichlet:0.5", "dirichlet:1"] {
            assert_eq!(name.parse::<Shards>().unwrap().to_string(), name);
        }
        for name in ["", "even", "iid:1", "dirichlet", "dirichlet:0", "dirichlet:nan"] {
            assert!(name.parse::<Shards>().is_err(), "{name}");
        }
    }

    #[test]
    fn every_row_has_one_holder_and_every_node_a_row() {
        for shards in [Shards::Iid, Shards::Dirichlet(1.0), Shards::Dirichlet(0.01)] {
            for nodes in [1, 7, 1000] {
                let split = shards.split(&labels(), nodes, 3).unwrap();
                assert_eq!(split.len(), nodes);
                assert_eq!(sorted(&split), (0..1000).collect::<Vec<_>>(), "{shards} {nodes}");
                assert!(split.iter().all(|rows| !rows.is_empty()), "{shards} {nodes}");
            }
        }
    }

    #[test]
    fn a_node_computes_its_own_part() {
        for shards in [Shards::Public, Shards::Iid, Shards::Dirichlet(0.5)] {
            let split = shards.split(&labels(), 5, 3).unwrap();
            assert_eq!(shards.rows(&labels(), 4, 5, 3).unwrap(), split[4]);
        }
    }

    #[test]
    fn too_few_rows_are_refused() {
        let error = SplitError::Rows { rows: 2, nodes: 3 };
        assert_eq!(Shards::Iid.split(&[0, 1], 3, 0), Err(error));
        assert!(Shards::Public.split(&[0, 1], 3, 0).is_ok());
        assert!(Shards::Public.split(&[], 3, 0).is_err());
    }

    #[test]
    fn small_parameters_leave_a_node_few_classes() {
        // The mean share of a node's largest class, over the nodes.
        let purity = |shards: Shards| {
            let labels = labels();
            let split = shards.split(&labels, 10, 1).unwrap();
            let share = |rows: &Vec<u32>| {
                let mut counts = [0; 10];
                rows.iter().for_each(|&row| counts[usize::from(labels[row as usize])] += 1);
                f64::from(*counts.iter().max().unwrap()) / rows.len() as f64
            };
            split.iter().map(share).sum::<f64>() / 10.0
        };
        let (even, mild, strong) =
            (purity(Shards::Iid), purity(Shards::Dirichlet(1.0)), purity(Shards::Dirichlet(0.05)));
        assert!(even < 0.25 && even + 0.05 < mild && mild + 0.2 < strong, "{even} {mild} {strong}");
    }

    #[test]
    fn shares_have_the_moments_of_the_distribution() {
        // For n shares of parameter α the variance is (n − 1)/(n² (nα + 1)); 4000 draws of four
        // estimate it within some 5 %.
        for alpha in [0.1, 1.0, 10.0] {
            let mut rng = KeyedRng::from_seed(CONTEXT, 5, 0);
            let mut squares = 0.0;
            for _ in 0..4000 {
                let shares = dirichlet(alpha, 4, &mut rng);
                assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-12);
                squares += shares.iter().map(|share| (share - 0.25).powi(2)).sum::<f64>();
            }
            let expected = 3.0 / (16.0 * (4.0 * alpha + 1.0));
            assert!((squares / 16_000.0 / expected - 1.0).abs() < 0.1, "{alpha}");
        }
    }

    #[test]
    fn written_out_functions_agree_with_the_library() {
        for i in 1..2000 {
            let x = f64::from(i) * f64::from(i) * 1e-3;
            assert!((ln(x) - x.ln()).abs() < 1e-14 * (1.0 + x.ln().abs()), "{x}");
            let y = -0.35 * f64::from(i);
            assert!((exp(y) / y.exp() - 1.0).abs() < 1e-13, "{y}");
        }
        assert_eq!(exp(-1e9), 0.0);
    }
}
