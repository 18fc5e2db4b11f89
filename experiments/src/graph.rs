//! Communication graphs of the reproductions: named families with edge weights, and χ₁, χ₂.
//!
//! TODO: when the topology crate has families and spectra, this file gives way to it.

use rumormill::vector::dadao::Chi;

use crate::linear;

/// A graph with a weight (a probability or a rate) per edge.
#[derive(Clone, Debug, PartialEq)]
pub struct Graph {
    /// Number of nodes.
    pub nodes: usize,
    /// Edges `i–j`, in a fixed order.
    pub edges: Vec<(usize, usize)>,
    /// One weight per edge.
    pub weights: Vec<f64>,
}

/// The families of the reference tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Every pair.
    Complete,
    /// Node 0 and every other.
    Star,
    /// A square grid; the number of nodes is a square.
    Grid,
    /// A ring.
    Cycle,
    /// A line.
    Path,
    /// Two complete halves and one bridge.
    Barbell,
    /// Offsets ±2^k around a ring, as a multiset.
    Exponential,
}

impl Family {
    /// The name used in tables.
    pub fn name(self) -> &'static str {
        match self {
            Family::Complete => "complete",
            Family::Star => "star",
            Family::Grid => "grid",
            Family::Cycle => "cycle",
            Family::Path => "path",
            Family::Barbell => "barbell",
            Family::Exponential => "exponential",
        }
    }

    fn edges(self, n: usize) -> Vec<(usize, usize)> {
        let clique =
            |from: usize, to: usize| (from..to).flat_map(move |i| (i + 1..to).map(move |j| (i, j)));
        match self {
            Family::Complete => clique(0, n).collect(),
            Family::Star => (1..n).map(|j| (0, j)).collect(),
            Family::Grid => {
                let side = n.isqrt();
                assert_eq!(side * side, n, "a square grid has a square number of nodes");
                (0..n)
                    .flat_map(|i| {
                        let down = (i + side < n).then_some((i, i + side));
                        let right = ((i + 1) % side != 0).then_some((i, i + 1));
                        [down, right].into_iter().flatten()
                    })
                    .collect()
            }
            Family::Cycle => (0..n).map(|i| (i, (i + 1) % n)).collect(),
            Family::Path => (1..n).map(|i| (i - 1, i)).collect(),
            Family::Barbell => {
                let half = n / 2;
                clique(0, half)
                    .chain(std::iter::once((half - 1, half)))
                    .chain(clique(half, n))
                    .collect()
            }
            Family::Exponential => {
                let hops = std::iter::successors(Some(1), |hop| Some(hop * 2));
                hops.take_while(|hop| 2 * hop <= n)
                    .flat_map(|hop| (0..n).map(move |i| (i, (i + hop) % n)))
                    .collect()
            }
        }
    }
}

impl Graph {
    /// A family with equal weights that sum to one.
    ///
    /// # Panics
    /// If the family has no graph of `nodes` nodes.
    pub fn uniform(family: Family, nodes: usize) -> Graph {
        let edges = family.edges(nodes);
        let weights = vec![1.0 / edges.len() as f64; edges.len()];
        Graph { nodes, edges, weights }
    }

    /// A family in which every node averages `rate` times a unit of time with a neighbor chosen
    /// evenly: edge i–j has the rate `rate · (1/deg i + 1/deg j)/2`, the Laplacian is
    /// `rate · (I − W)` with `W_ij = 1/degree` where degrees are equal.
    pub fn neighborly(family: Family, nodes: usize, rate: f64) -> Graph {
        let edges = family.edges(nodes);
        let mut degree = vec![0.0; nodes];
        for &(i, j) in &edges {
            degree[i] += 1.0;
            degree[j] += 1.0;
        }
        let weights =
            edges.iter().map(|&(i, j)| rate * (1.0 / degree[i] + 1.0 / degree[j]) / 2.0).collect();
        Graph { nodes, edges, weights }
    }

    /// The barbell of 16 with the probabilities that minimise √(χ₁χ₂): the bridge, the edges at
    /// its ends and the others (the optimum of a semidefinite program, three values by symmetry).
    pub fn barbell_16_optimal() -> Graph {
        let mut graph = Graph::uniform(Family::Barbell, 16);
        for (&(i, j), weight) in graph.edges.iter().zip(&mut graph.weights) {
            let ends = [i, j].iter().filter(|&&end| end == 7 || end == 8).count();
            *weight = [0.006_649_754_85, 0.036_785_115_38, 0.205_718_681_2][ends];
        }
        graph
    }

    /// The same graph with all weights multiplied.
    pub fn scaled(mut self, factor: f64) -> Graph {
        self.weights.iter_mut().for_each(|weight| *weight *= factor);
        self
    }

    /// χ₁ = 1/λ₂ and χ₂ = half the largest effective resistance of an edge, of the Laplacian with
    /// these weights. A disconnected graph has infinite χ₁.
    pub fn chi(&self) -> Chi {
        let n = self.nodes;
        let mut laplacian = vec![vec![0.0; n]; n];
        for (&(i, j), weight) in self.edges.iter().zip(&self.weights) {
            laplacian[i][i] += weight;
            laplacian[j][j] += weight;
            laplacian[i][j] -= weight;
            laplacian[j][i] -= weight;
        }
        let (values, vectors) = linear::eigen(laplacian);
        let second = values[1];
        if second <= values[n - 1] * 1e-12 {
            return Chi { chi_1: f64::INFINITY, chi_2: f64::INFINITY };
        }
        let resistance = |&(i, j): &(usize, usize)| -> f64 {
            let modes = values.iter().zip(&vectors).skip(1);
            modes.map(|(value, u)| (u[i] - u[j]) * (u[i] - u[j]) / value).sum()
        };
        let largest = self.edges.iter().map(resistance).fold(0.0, f64::max);
        Chi { chi_1: 1.0 / second, chi_2: largest / 2.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closed_forms_of_the_families_at_16() {
        let pi = std::f64::consts::PI;
        let expected = [
            (Family::Complete, 7.5, 7.5),
            (Family::Star, 15.0, 7.5),
            (Family::Cycle, 16.0 / (2.0 - 2.0 * (pi / 8.0).cos()), 7.5),
            (Family::Path, 15.0 / (2.0 - 2.0 * (pi / 16.0).cos()), 7.5),
        ];
        for (family, chi_1, chi_2) in expected {
            let chi = Graph::uniform(family, 16).chi();
            assert!((chi.chi_1 / chi_1 - 1.0).abs() < 1e-12, "{}: {chi:?}", family.name());
            assert!((chi.chi_2 / chi_2 - 1.0).abs() < 1e-12, "{}: {chi:?}", family.name());
        }
    }

    #[test]
    fn the_optimal_barbell_needs_a_quarter_of_the_rate() {
        let optimal = Graph::barbell_16_optimal();
        assert!((optimal.weights.iter().sum::<f64>() - 1.0).abs() < 1e-8);
        assert!((optimal.chi().rate_min() - 32.9239).abs() < 1e-3);
        assert!((Graph::uniform(Family::Barbell, 16).chi().rate_min() - 126.148).abs() < 1e-3);
    }

    #[test]
    fn a_disconnected_graph_has_no_finite_chi() {
        let graph = Graph { nodes: 4, edges: vec![(0, 1), (2, 3)], weights: vec![0.5; 2] };
        assert_eq!(graph.chi().chi_1, f64::INFINITY);
    }
}
