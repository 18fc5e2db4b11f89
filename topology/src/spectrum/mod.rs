//! What a graph means for gossip: the spectral numbers of its rated Laplacian.
//!
//! Follows DADAO (Nabli and Oyallon, arXiv 2208.00779) and, for [`acid`], A2CiD2 (Nabli,
//! Belilovsky and Oyallon, arXiv 2306.08289). With rates λ_ij on the edges,
//!
//! ```text
//! Λ = Σ λ_ij (e_i − e_j)(e_i − e_j)ᵀ
//! χ₁ = 1 / λ₂(Λ)                                worst mixing of the whole
//! χ₂ = ½ max_ij (e_i − e_j)ᵀ Λ⁺ (e_i − e_j)     half the worst resistance of an edge
//! R = √(2 χ₁ χ₂)                                least total rate, for rates that sum to 1
//! ```
//!
//! | symbol | name | where |
//! |---|---|---|
//! | λ₂ | `lambda_2` | smallest positive eigenvalue of Λ |
//! | χ₁ | `chi_1` | DADAO, section 2 |
//! | χ₂ | `chi_2` | DADAO, section 2; χ₂ ≤ χ₁, and ≥ (n − 1)/2 for rates that sum to 1 |
//! | η | `eta` | A2CiD2, 1 / (2 √(χ₁ χ₂)) |
//! | α̃ | `alpha_tilde` | A2CiD2, ½ √(χ₁ / χ₂) |
//!
//! **Uniform** numbers are those of the Laplacian whose edge weights are the probabilities
//! 1/|E|. Up to [`DENSE_NODES_MAX`] nodes all is computed to rounding; above, λ₂ and χ₂ are
//! within 1 % (λ₂ far closer), see the `sparse` module.

mod dense;
mod sparse;

pub(crate) use dense::laplacian;

use thiserror::Error;

use crate::graph::{Topology, TopologyError};

/// The spectral numbers of one graph under one set of edge weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spectrum {
    /// The smallest positive eigenvalue of the Laplacian, in units of the weights.
    pub lambda_2: f64,
    /// 1/λ₂.
    pub chi_1: f64,
    /// Half the largest effective resistance over the edges.
    pub chi_2: f64,
}

impl Spectrum {
    fn new(lambda_2: f64, resistance_max: f64) -> Self {
        Self { lambda_2, chi_1: 1.0 / lambda_2, chi_2: resistance_max / 2.0 }
    }

    /// R = √(2 χ₁ χ₂): by how much the weights must be multiplied so that DADAO's condition
    /// χ₁ χ₂ ≤ ½ holds. For weights that sum to 1 this is the least total rate of exchanges, in
    /// units of one gradient per node and unit of time.
    pub fn rate_min(&self) -> f64 {
        (2.0 * self.chi_1 * self.chi_2).sqrt()
    }
}

/// The numbers of the graph with all edge weights 1/|E|.
///
/// # Errors
///
/// A graph that is not connected or has no edge.
///
/// ```
/// use rumormill_topology::{Topology, spectrum};
///
/// let star = Topology::from_edges(4, [(0, 1), (0, 2), (0, 3)]).unwrap();
/// assert!((spectrum::uniform(&star).unwrap().rate_min() - 3.0).abs() < 1e-12);
/// ```
pub fn uniform(topology: &Topology) -> Result<Spectrum, SpectrumError> {
    let edges = topology.edge_count();
    weighted(topology, &vec![1.0 / edges.max(1) as f64; edges])
}

/// The numbers of the graph with `weights[k]` on edge `k`.
///
/// # Errors
///
/// A graph that is not connected or has no edge; a weight that is not finite and positive.
///
/// # Panics
///
/// If there are not as many weights as edges.
pub fn weighted(topology: &Topology, weights: &[f64]) -> Result<Spectrum, SpectrumError> {
    check(topology, weights)?;
    Ok(if topology.node_count() <= DENSE_NODES_MAX {
        dense::spectrum(topology, weights)
    } else {
        sparse::spectrum(topology, weights)
    })
}

fn check(topology: &Topology, weights: &[f64]) -> Result<(), SpectrumError> {
    assert_eq!(weights.len(), topology.edge_count(), "one weight for every edge");
    topology.require_connected()?;
    if weights.is_empty() {
        return Err(SpectrumError::NoEdge);
    }
    match weights.iter().position(|weight| !(weight.is_finite() && *weight > 0.0)) {
        Some(edge) => Err(SpectrumError::Weight { edge, weight: weights[edge] }),
        None => Ok(()),
    }
}

/// DADAO's least total edge rate with uniform rates, in exchanges per unit of time, where every
/// node computes one gradient per unit of time.
///
/// # Errors
///
/// As [`uniform`].
pub fn uniform_rate(topology: &Topology) -> Result<f64, SpectrumError> {
    Ok(uniform(topology)?.rate_min())
}

/// The constants of A2CiD2.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Acid {
    /// χ₁ of the Laplacian described at [`acid`].
    pub chi_1: f64,
    /// χ₂ of the same.
    pub chi_2: f64,
    /// Strength of the continuous mixing between a node's two parameter vectors.
    pub eta: f64,
    /// Weight of an exchange in the second vector; in the first it is ½.
    pub alpha_tilde: f64,
}

/// The constants of A2CiD2 when each node averages `rate` times per gradient.
///
/// The Laplacian is `rate (I − W)` with `W_ij = 1/degree`, as in the paper's code. Where the
/// degrees of an edge's ends differ, W is the mean of both: each end starts half of the exchanges
/// and picks among its neighbors evenly.
///
/// # Errors
///
/// As [`weighted`], if `rate` is not finite and positive.
pub fn acid(topology: &Topology, rate: f64) -> Result<Acid, SpectrumError> {
    let share = |i| 0.5 / topology.degree(i) as f64;
    let weights: Vec<_> =
        topology.edges().iter().map(|edge| rate * (share(edge.a) + share(edge.b))).collect();
    let Spectrum { chi_1, chi_2, .. } = weighted(topology, &weights)?;
    Ok(Acid {
        chi_1,
        chi_2,
        eta: 0.5 / (chi_1 * chi_2).sqrt(),
        alpha_tilde: 0.5 * (chi_1 / chi_2).sqrt(),
    })
}

/// Why a graph has no spectral numbers.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum SpectrumError {
    /// Not every node can be reached.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// A single node.
    #[error("the graph has no edge; the spectrum needs at least two joined nodes")]
    NoEdge,
    /// A weight that is no rate.
    #[error("edge {edge} (counted from 0) has weight {weight}; expected a finite number above 0")]
    Weight {
        /// The edge's place in [`Topology::edges`].
        edge: usize,
        /// What came.
        weight: f64,
    },
}

/// The most nodes for the dense methods, which take time in proportion to the cube of the nodes
/// (half a second here).
pub const DENSE_NODES_MAX: usize = 512;

#[cfg(test)]
mod tests {
    use std::f64::consts::PI;

    use super::*;
    use crate::family::{Family, Parameters, generate};

    fn graph(family: Family, nodes: usize) -> Topology {
        generate(family, nodes, Parameters::default(), 1).unwrap()
    }

    fn close(got: f64, expected: f64) {
        assert!((got / expected - 1.0).abs() < 1e-9, "{got} is not {expected}");
    }

    #[test]
    fn closed_forms_hold() {
        for nodes in [3, 4, 16, 33] {
            let n = nodes as f64;
            let half = (n - 1.0) / 2.0;
            let chain = |angle: f64| 1.0 / (2.0 - 2.0 * angle.cos());
            for (family, chi_1) in [
                (Family::Complete, half),
                (Family::Star, n - 1.0),
                (Family::Line, (n - 1.0) * chain(PI / n)),
                (Family::Ring, n * chain(2.0 * PI / n)),
            ] {
                let spectrum = uniform(&graph(family, nodes)).unwrap();
                close(spectrum.chi_1, chi_1);
                close(spectrum.chi_2, half);
                close(spectrum.rate_min(), (2.0 * chi_1 * half).sqrt());
            }
        }
    }

    #[test]
    fn numbers_scale_as_the_inverse_of_the_weights() {
        let grid = graph(Family::Grid, 12);
        let weights: Vec<_> = (0..grid.edge_count()).map(|k| 1.0 + k as f64).collect();
        let doubled: Vec<_> = weights.iter().map(|weight| 2.0 * weight).collect();
        let (one, two) = (weighted(&grid, &weights).unwrap(), weighted(&grid, &doubled).unwrap());
        close(two.chi_1 * 2.0, one.chi_1);
        close(two.chi_2 * 2.0, one.chi_2);
    }

    #[test]
    fn acid_of_the_cycle_of_four_is_that_of_the_paper() {
        let acid = acid(&graph(Family::Ring, 4), 1.0).unwrap();
        close(acid.chi_1, 1.0);
        close(acid.chi_2, 0.75);
        close(acid.eta, 0.5773502691896256);
        close(acid.alpha_tilde, 0.5773502691896256);
    }

    #[test]
    fn graphs_without_spectrum_are_refused() {
        let two = Topology::from_edges(2, []).unwrap();
        assert!(matches!(uniform(&two), Err(SpectrumError::Topology(_))));
        let one = Topology::from_edges(1, []).unwrap();
        assert_eq!(uniform(&one), Err(SpectrumError::NoEdge));
        let pair = Topology::from_edges(2, [(0, 1)]).unwrap();
        assert!(matches!(weighted(&pair, &[f64::NAN]), Err(SpectrumError::Weight { .. })));
        assert!(acid(&pair, 0.0).is_err());
    }

    #[test]
    fn sparse_agrees_with_dense_within_a_percent() {
        use Family::*;
        for family in [Ring, Grid, Torus, Exponential, Barbell, Hypercube] {
            compare(&graph(family, 256));
        }
        for family in [RandomRegular, ErdosRenyi, RandomGeometric, SmallWorld] {
            for seed in 0..4 {
                compare(&generate(family, 300, Parameters::default(), seed).unwrap());
            }
        }
    }

    fn compare(topology: &Topology) {
        let m = topology.edge_count();
        // Uneven weights, so that the answer is not a symmetry of the graph.
        let uneven: Vec<_> = (0..m).map(|k| 1.0 + (k * 37 % 11) as f64).collect();
        for weights in [vec![1.0 / m as f64; m], uneven] {
            let dense = dense::spectrum(topology, &weights);
            let sparse = sparse::spectrum(topology, &weights);
            assert!((sparse.lambda_2 / dense.lambda_2 - 1.0).abs() < 1e-4, "{sparse:?} {dense:?}");
            assert!((sparse.chi_2 / dense.chi_2 - 1.0).abs() < 0.01, "{sparse:?} {dense:?}");
        }
    }
}
