//! Edge rates with which the fewest exchanges suffice.
//!
//! DADAO (arXiv 2208.00779) needs a total rate of R = √(2 χ₁ χ₂), where χ₁ and χ₂ are those of
//! edge probabilities p that sum to 1 (module [`spectrum`]). The abstract of the
//! paper promises the best p by semidefinite programming; what its program relaxes is not
//! public, but no relaxation is needed: λ₂ and each conductance 1/R_k are concave in p and
//! proportional to it, so
//!
//! ```text
//! maximise  F(p) = ½ ln λ₂(p) + ½ ln min_k 1/R_k(p)   over  p ≥ 0, Σ p = 1;   R = exp(−F)
//! ```
//!
//! is a concave program. It is solved by exponentiated gradient on a smooth lower bound, both
//! minima replaced by power means of exponent −β, with M = Λ(p)⁺ and b_k = e_i − e_j:
//!
//! ```text
//! F_β = −(1/2β) ln Tr M^β − (1/2β) ln Σ_k R_k^β
//! g_e = ½ b_eᵀ M^(β+1) b_e / Tr M^β  +  ½ b_eᵀ N b_e,    N = M Λ(q) M,  q_k = R_k^(β−1) / Σ R^β
//! p_e ← p_e exp(η (g_e − 1)) / Σ …          (Σ p_e g_e = 1, since F is proportional)
//! ```
//!
//! β doubles as the steps run out of gain, η follows by backtracking. No eigenvectors are needed:
//! M^β is a few squarings. The same matrices bound what is left to gain: with any density matrix
//! S and weights s, `λ₂ ≤ Σ p_e α_e` and `min 1/R ≤ Σ p_e γ_e` for **all** p, hence
//! `√(λ₂ min 1/R) ≤ ½ max_e (t α_e + γ_e / t)` for every t ([`OptimalRates::gap`]).

use std::fmt;
use std::str::FromStr;

use nalgebra::DMatrix;
use thiserror::Error;

use crate::graph::Topology;
use crate::spectrum::{self, Spectrum, SpectrumError};

/// Where the rates of the edges come from; its text form is the name in parentheses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RateScheme {
    /// The same for all edges (`uniform`).
    Uniform,
    /// The `rate` attributes of the file (`file`).
    File,
    /// Those of [`optimal`] (`optimal`).
    Optimal,
}

/// The rate of each edge in exchanges a second, by the scheme's proportions, scaled so that a
/// node takes part in `exchanges_per_node_per_s` exchanges on average: an exchange has two
/// ends, so the total is `exchanges_per_node_per_s · n / 2`.
///
/// A daemon that wants the rates of the file as they are reads [`crate::Edge::rate`] instead.
///
/// # Errors
///
/// See [`probabilities`], and a rate that is not finite and positive.
pub fn edge_rates(
    topology: &Topology,
    scheme: RateScheme,
    exchanges_per_node_per_s: f64,
) -> Result<Vec<f64>, RateError> {
    if !(exchanges_per_node_per_s.is_finite() && exchanges_per_node_per_s > 0.0) {
        return Err(RateError::Total { exchanges_per_node_per_s });
    }
    let total = exchanges_per_node_per_s * topology.node_count() as f64 / 2.0;
    Ok(probabilities(topology, scheme)?.into_iter().map(|p| p * total).collect())
}

/// The part of all exchanges that each edge has; the parts sum to 1.
///
/// # Errors
///
/// A graph without edges or not connected; an edge without rate (`file`); more than
/// [`OPTIMAL_NODES_MAX`] nodes (`optimal`).
pub fn probabilities(topology: &Topology, scheme: RateScheme) -> Result<Vec<f64>, RateError> {
    topology.require_connected().map_err(SpectrumError::from)?;
    let edges = topology.edges();
    if edges.is_empty() {
        return Err(SpectrumError::NoEdge.into());
    }
    match scheme {
        RateScheme::Uniform => Ok(vec![1.0 / edges.len() as f64; edges.len()]),
        RateScheme::Optimal => Ok(optimal(topology)?.probabilities),
        RateScheme::File => {
            let rates: Result<Vec<f64>, _> = edges
                .iter()
                .map(|edge| {
                    edge.rate.ok_or_else(|| RateError::Missing {
                        a: topology.name(edge.a).to_owned(),
                        b: topology.name(edge.b).to_owned(),
                    })
                })
                .collect();
            let mut rates = rates?;
            // Divided by the largest first: the sum of huge rates would be infinite.
            let largest = rates.iter().copied().fold(0.0, f64::max);
            rates.iter_mut().for_each(|rate| *rate /= largest);
            normalize(&mut rates);
            Ok(rates)
        }
    }
}

/// The best edge probabilities found, and how good they are.
#[derive(Debug, Clone, PartialEq)]
pub struct OptimalRates {
    /// One for each edge, positive, with sum 1.
    pub probabilities: Vec<f64>,
    /// The numbers of the Laplacian with these weights; [`Spectrum::rate_min`] is R.
    pub spectrum: Spectrum,
    /// The numbers of uniform probabilities, never better.
    pub uniform: Spectrum,
    /// R is proven to be at most this part above the optimum: 0.002 means 0.2 %. The search ends
    /// at [`GAP_WANTED`], or when its steps are used up. Then the proof lags behind: on a random
    /// geometric graph of 64 nodes ten times the steps took the gap from 2 % to 0.1 %, but R down
    /// by 0.002 % only.
    pub gap: f64,
}

/// Finds the probabilities with the least R. Never worse than uniform ones.
///
/// # Errors
///
/// A graph without edges, not connected, or of more than [`OPTIMAL_NODES_MAX`] nodes.
///
/// ```
/// use rumormill_topology::family::{Family, Parameters, generate};
/// use rumormill_topology::rate;
///
/// let barbell = generate(Family::Barbell, 16, Parameters::default(), 0).unwrap();
/// let best = rate::optimal(&barbell).unwrap();
/// assert!(best.spectrum.rate_min() < 0.5 * best.uniform.rate_min());
/// ```
pub fn optimal(topology: &Topology) -> Result<OptimalRates, RateError> {
    let nodes = topology.node_count();
    if nodes > OPTIMAL_NODES_MAX {
        return Err(RateError::TooLarge { nodes, max: OPTIMAL_NODES_MAX });
    }
    let uniform = spectrum::uniform(topology)?;
    let edges = topology.edge_count();
    let mut found = Search::new(topology, vec![1.0 / edges as f64; edges]).run();
    normalize(&mut found.probabilities);
    let best = spectrum::weighted(topology, &found.probabilities)?;
    if best.rate_min() < uniform.rate_min() {
        let gap = best.rate_min() / found.rate_bound - 1.0;
        return Ok(OptimalRates {
            probabilities: found.probabilities,
            spectrum: best,
            uniform,
            gap: gap.max(0.0),
        });
    }
    Ok(OptimalRates {
        probabilities: vec![1.0 / edges as f64; edges],
        spectrum: uniform,
        uniform,
        gap: (uniform.rate_min() / found.rate_bound - 1.0).max(0.0),
    })
}

struct Found {
    probabilities: Vec<f64>,
    /// No probabilities have a smaller R.
    rate_bound: f64,
}

/// The state of the ascent.
struct Search<'a> {
    topology: &'a Topology,
    /// Where the ascent stands.
    probabilities: Vec<f64>,
    /// log₂ β.
    squarings: u32,
    step: f64,
    best: Found,
    best_rate: f64,
}

impl<'a> Search<'a> {
    fn new(topology: &'a Topology, probabilities: Vec<f64>) -> Self {
        let best = Found { probabilities: probabilities.clone(), rate_bound: 0.0 };
        Self {
            topology,
            probabilities,
            squarings: SQUARINGS_FIRST,
            step: 1.0,
            best,
            best_rate: f64::INFINITY,
        }
    }

    fn run(mut self) -> Found {
        let mut here = self.evaluate(&self.probabilities);
        let mut stalled = 0;
        for _ in 0..steps_max(self.topology.node_count()) {
            self.keep_best(&here);
            if self.best_rate <= self.best.rate_bound * (1.0 + GAP_WANTED) {
                break;
            }
            let next = self.ascend(&here);
            let there = self.evaluate(&next);
            if there.objective > here.objective {
                let gain = there.objective - here.objective;
                stalled = if gain < GAIN_MIN / self.beta() { stalled + 1 } else { 0 };
                self.step *= 1.3;
                (self.probabilities, here) = (next, there);
            } else {
                self.step *= 0.5;
                stalled += 1;
            }
            if stalled >= STALLED_MAX && self.squarings < SQUARINGS_LAST {
                stalled = 0;
                self.squarings += 1;
                self.step *= 0.5;
                here = self.evaluate(&self.probabilities);
            }
        }
        self.best
    }

    fn beta(&self) -> f64 {
        f64::from(1 << self.squarings)
    }

    fn keep_best(&mut self, here: &Evaluation) {
        self.best.rate_bound = self.best.rate_bound.max(here.rate_bound);
        if here.rate < self.best_rate {
            self.best_rate = here.rate;
            self.best.probabilities.clone_from(&self.probabilities);
        }
    }

    fn ascend(&self, here: &Evaluation) -> Vec<f64> {
        let mut next: Vec<f64> = self
            .probabilities
            .iter()
            .zip(&here.gradient)
            // No edge may vanish for good, or jump by more than a factor of e in a step.
            .map(|(p, g)| (p * (self.step * (g - 1.0)).clamp(-1.0, 1.0).exp()).max(PROBABILITY_MIN))
            .collect();
        normalize(&mut next);
        next
    }

    fn evaluate(&self, probabilities: &[f64]) -> Evaluation {
        let edges = self.topology.edges();
        let inverse = pseudo_inverse(self.topology, probabilities);
        let across = |m: &DMatrix<f64>, a, b| m[(a, a)] + m[(b, b)] - 2.0 * m[(a, b)];

        let power = Power::new(&inverse, self.squarings);
        let next_power = &power.matrix * &inverse;
        let trace_ratio = power.matrix.trace() / next_power.trace();
        let lambda_2 = power.lambda_2(&inverse);

        let resistances: Vec<f64> =
            edges.iter().map(|edge| across(&inverse, edge.a, edge.b)).collect();
        let largest = resistances.iter().copied().fold(0.0, f64::max);
        let powers = resistances.iter().map(|r| (r / largest).powf(self.beta()));
        let sum: f64 = powers.clone().sum();
        let weights: Vec<f64> =
            powers.zip(&resistances).map(|(power, resistance)| power / sum / resistance).collect();
        let mean_resistance: f64 =
            weights.iter().zip(&resistances).map(|(weight, r)| weight * r * r).sum();
        let response = &inverse * laplacian_product(self.topology, &weights, &inverse);

        let objective =
            -0.5 * power.log_trace / self.beta() - 0.5 * (largest.ln() + sum.ln() / self.beta());
        let mut gradient = Vec::with_capacity(edges.len());
        let mut bound: f64 = 0.0;
        for edge in edges {
            let alpha = across(&next_power, edge.a, edge.b) / next_power.trace();
            let gamma = across(&response, edge.a, edge.b);
            gradient.push(0.5 * (alpha / trace_ratio + gamma));
            bound = bound.max(0.5 * (alpha / lambda_2 + gamma * largest / mean_resistance));
        }
        let rate = (largest / lambda_2).sqrt();
        Evaluation { objective, gradient, rate, rate_bound: rate / bound }
    }
}

struct Evaluation {
    /// F_β.
    objective: f64,
    /// Its derivative by each probability.
    gradient: Vec<f64>,
    /// R, up to the error of λ₂ by a few power steps.
    rate: f64,
    /// A lower bound of R over all probabilities.
    rate_bound: f64,
}

/// M^β, scaled.
struct Power {
    matrix: DMatrix<f64>,
    /// ln Tr M^β.
    log_trace: f64,
}

impl Power {
    fn new(inverse: &DMatrix<f64>, squarings: u32) -> Self {
        let mut log_scale = inverse.trace().ln();
        let mut matrix = inverse / inverse.trace();
        for _ in 0..squarings {
            matrix = &matrix * &matrix;
            let trace = matrix.trace();
            matrix /= trace;
            log_scale = 2.0 * log_scale + trace.ln();
        }
        Self { matrix, log_trace: log_scale }
    }

    /// λ₂, from above: the Rayleigh quotient of the strongest column of M^β.
    fn lambda_2(&self, inverse: &DMatrix<f64>) -> f64 {
        let strongest = self.matrix.diagonal().imax();
        let vector = &self.matrix * self.matrix.column(strongest);
        vector.norm_squared() / vector.dot(&(inverse * &vector))
    }
}

/// Λ(p)⁺.
fn pseudo_inverse(topology: &Topology, weights: &[f64]) -> DMatrix<f64> {
    let mut laplacian = spectrum::laplacian(topology, weights);
    let n = laplacian.nrows() as f64;
    let lift = laplacian.trace() / (n * n);
    laplacian.add_scalar_mut(lift);
    let lifted = laplacian.cholesky().expect("a lifted Laplacian of a connected graph is definite");
    let mut inverse = lifted.inverse();
    inverse.add_scalar_mut(-1.0 / (lift * n * n));
    inverse
}

/// Λ(q) M, edge by edge: far fewer operations than a dense product on sparse graphs.
fn laplacian_product(topology: &Topology, weights: &[f64], matrix: &DMatrix<f64>) -> DMatrix<f64> {
    let n = topology.node_count();
    let mut product = DMatrix::zeros(n, n);
    for (from, mut to) in matrix.column_iter().zip(product.column_iter_mut()) {
        for (edge, weight) in topology.edges().iter().zip(weights) {
            let flow = weight * (from[edge.a] - from[edge.b]);
            to[edge.a] += flow;
            to[edge.b] -= flow;
        }
    }
    product
}

fn normalize(probabilities: &mut [f64]) {
    let sum: f64 = probabilities.iter().sum();
    probabilities.iter_mut().for_each(|p| *p /= sum);
}

/// How many steps are made at most: a step takes time in proportion to n³.
fn steps_max(nodes: usize) -> usize {
    (STEPS_WORK / (nodes * nodes * nodes)).clamp(STEPS_MIN, STEPS_MAX)
}

/// About 20 s here.
const STEPS_WORK: usize = 10_000_000_000;
const STEPS_MIN: usize = 100;
const STEPS_MAX: usize = 20_000;

/// The search ends when R is within this part of the optimum.
pub const GAP_WANTED: f64 = 1e-3;

/// β runs from 8 to 1024: with β, the smooth minimum is off by at most ln(n |E|) / 2β.
const SQUARINGS_FIRST: u32 = 3;
const SQUARINGS_LAST: u32 = 10;
/// A step that gains less than this over β counts as stalled, and so does a refused one.
const GAIN_MIN: f64 = 1e-4;
const STALLED_MAX: u32 = 3;
/// The least probability of an edge: it then still fires, but takes nothing from the others.
const PROBABILITY_MIN: f64 = 1e-12;

/// The most nodes for [`optimal`], whose matrices are dense.
pub const OPTIMAL_NODES_MAX: usize = 512;

impl RateScheme {
    /// All schemes.
    pub const ALL: [Self; 3] = [Self::Uniform, Self::File, Self::Optimal];

    /// The name by which a person asks for the scheme.
    pub fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::File => "file",
            Self::Optimal => "optimal",
        }
    }
}

impl fmt::Display for RateScheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for RateScheme {
    type Err = UnknownScheme;

    fn from_str(name: &str) -> Result<Self, UnknownScheme> {
        Self::ALL
            .into_iter()
            .find(|scheme| scheme.name() == name)
            .ok_or_else(|| UnknownScheme { name: name.to_owned() })
    }
}

/// A name that is no scheme.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("no rate scheme is called {name:?}; expected uniform, file or optimal")]
pub struct UnknownScheme {
    /// What came.
    pub name: String,
}

/// Why there are no rates.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum RateError {
    /// The graph has no spectrum.
    #[error(transparent)]
    Spectrum(#[from] SpectrumError),
    /// An edge of the file has no rate.
    #[error("edge {a:?} – {b:?} has no rate; give every edge one, or use uniform or optimal rates")]
    Missing {
        /// One end.
        a: String,
        /// The other end.
        b: String,
    },
    /// More nodes than [`OPTIMAL_NODES_MAX`].
    #[error(
        "optimal rates of {nodes} nodes would take too long; at most {max} are allowed, use \
         uniform rates"
    )]
    TooLarge {
        /// Nodes of the graph.
        nodes: usize,
        /// The bound.
        max: usize,
    },
    /// A total that is no rate.
    #[error(
        "{exchanges_per_node_per_s} exchanges a second and node; expected a finite number above 0"
    )]
    Total {
        /// What came.
        exchanges_per_node_per_s: f64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::{Family, Parameters, generate};
    use crate::graph::{Attributes, TopologyBuilder};

    fn graph(family: Family, nodes: usize) -> Topology {
        generate(family, nodes, Parameters::default(), 2).unwrap()
    }

    #[test]
    fn optimum_of_grid_and_barbell_is_that_of_the_solver() {
        // Values of a semidefinite solver (Clarabel) on the exact program.
        for (family, nodes, expected) in [
            (Family::Grid, 16, 24.8897),
            (Family::Barbell, 16, 32.9239),
            (Family::Line, 16, 76.5172),
        ] {
            let best = optimal(&graph(family, nodes)).unwrap();
            let rate = best.spectrum.rate_min();
            assert!((rate / expected - 1.0).abs() < 0.002, "{family}: {rate}, gap {}", best.gap);
            assert!(best.gap < 0.005, "{family}: gap {}", best.gap);
        }
    }

    #[test]
    fn optimum_is_never_worse_than_uniform() {
        for family in Family::ALL {
            let best = optimal(&graph(family, 16)).unwrap();
            assert!(best.spectrum.rate_min() <= best.uniform.rate_min(), "{family}");
            assert!((best.probabilities.iter().sum::<f64>() - 1.0).abs() < 1e-12, "{family}");
            assert!(best.gap < 0.005, "{family}: gap {}", best.gap);
        }
    }

    #[test]
    fn gradient_is_the_difference_quotient() {
        let grid = graph(Family::Grid, 6);
        let weights: Vec<f64> = (0..7).map(|k| 0.1 + 0.01 * f64::from(k)).collect();
        let search = Search::new(&grid, weights.clone());
        let here = search.evaluate(&weights);
        for k in 0..7 {
            let mut moved = weights.clone();
            moved[k] += 1e-6;
            let quotient = (search.evaluate(&moved).objective - here.objective) / 1e-6;
            assert!((quotient - here.gradient[k]).abs() < 1e-4, "{k}");
        }
    }

    #[test]
    fn rates_sum_to_the_total_asked_for() {
        let ring = graph(Family::Ring, 10);
        for scheme in [RateScheme::Uniform, RateScheme::Optimal] {
            let rates = edge_rates(&ring, scheme, 3.0).unwrap();
            assert!((rates.iter().sum::<f64>() - 15.0).abs() < 1e-9, "{scheme}");
        }
        assert!(matches!(edge_rates(&ring, RateScheme::File, 3.0), Err(RateError::Missing { .. })));
        assert!(edge_rates(&ring, RateScheme::Uniform, f64::NAN).is_err());
    }

    #[test]
    fn rates_of_the_file_keep_their_proportions() {
        let mut builder = TopologyBuilder::numbered(3).unwrap();
        for (a, b, rate) in [(0, 1, 1e308), (1, 2, 3e307)] {
            let attributes = Attributes { rate: Some(rate), ..Attributes::default() };
            builder.add_edge(a, b, attributes).unwrap();
        }
        let (topology, _) = builder.finish().unwrap();
        let rates = edge_rates(&topology, RateScheme::File, 2.0).unwrap();
        assert!((rates[0] / rates[1] - 10.0 / 3.0).abs() < 1e-12);
        assert!((rates.iter().sum::<f64>() - 3.0).abs() < 1e-12);
    }

    #[test]
    fn large_graphs_are_sent_to_uniform_rates() {
        let error = optimal(&graph(Family::Ring, OPTIMAL_NODES_MAX + 1)).unwrap_err();
        assert!(error.to_string().contains("use uniform"));
    }
}
