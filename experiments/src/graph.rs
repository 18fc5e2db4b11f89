//! Communication graphs of the reproductions: a family of the topology crate with a weight per edge.

use std::collections::BTreeMap;

use rumormill::vector::dadao::Chi;
use rumormill_topology::family::{Family, Parameters, generate};
use rumormill_topology::{Topology, rate, spectrum};

/// A graph with a weight (a probability or a rate) per edge.
#[derive(Clone, Debug, PartialEq)]
pub struct Graph {
    /// Number of nodes.
    pub nodes: usize,
    /// Edges `i–j`, in a fixed order.
    pub edges: Vec<(usize, usize)>,
    /// One positive weight per edge.
    pub weights: Vec<f64>,
}

/// Seed of the random families: one graph each.
const SEED: u64 = 1;

impl Graph {
    fn new(topology: &Topology, weights: Vec<f64>) -> Graph {
        let edges = topology.edges().iter().map(|edge| (edge.a, edge.b)).collect();
        Graph { nodes: topology.node_count(), edges, weights }
    }

    /// A family with equal weights that sum to one.
    ///
    /// # Panics
    /// If the family has no graph of `nodes` nodes.
    pub fn uniform(family: Family, nodes: usize) -> Graph {
        let topology = topology(family, nodes);
        let edges = topology.edge_count();
        Graph::new(&topology, vec![1.0 / edges as f64; edges])
    }

    /// A family with the probabilities that need the least total rate.
    ///
    /// # Panics
    /// If the family has no graph of `nodes` nodes, or that is too large for dense matrices.
    pub fn optimal(family: Family, nodes: usize) -> Graph {
        let topology = topology(family, nodes);
        let optimal = rate::optimal(&topology).expect("families are connected and small here");
        Graph::new(&topology, optimal.probabilities)
    }

    /// A family in which every node averages `rate` times a unit of time with a neighbor chosen
    /// evenly: edge i–j has the rate `rate · (1/deg i + 1/deg j)/2`, the Laplacian is
    /// `rate · (I − W)` with `W_ij = 1/degree` where degrees are equal. On an exponential graph the
    /// opposite node is met from both sides and counts as two neighbors, as in A2CiD2's program.
    ///
    /// # Panics
    /// If the family has no graph of `nodes` nodes.
    pub fn neighborly(family: Family, nodes: usize, rate: f64) -> Graph {
        let topology = topology(family, nodes);
        let doubled = |a: usize, b: usize| family == Family::Exponential && 2 * (b - a) == nodes;
        let count = |a, b| if doubled(a, b) { 2.0 } else { 1.0 };
        let mut degree = vec![0.0; nodes];
        for edge in topology.edges() {
            degree[edge.a] += count(edge.a, edge.b);
            degree[edge.b] += count(edge.a, edge.b);
        }
        let weight = |a: usize, b: usize| rate * (1.0 / degree[a] + 1.0 / degree[b]) / 2.0;
        let weights = topology.edges().iter().map(|e| count(e.a, e.b) * weight(e.a, e.b)).collect();
        Graph::new(&topology, weights)
    }

    /// The same graph with all weights multiplied.
    pub fn scaled(mut self, factor: f64) -> Graph {
        self.weights.iter_mut().for_each(|weight| *weight *= factor);
        self
    }

    /// χ₁ and χ₂ of the Laplacian with these weights; parallel edges add up. Both are infinite when
    /// the graph is not connected or a weight is not positive.
    pub fn chi(&self) -> Chi {
        let mut merged: BTreeMap<(usize, usize), f64> = BTreeMap::new();
        for (&(i, j), weight) in self.edges.iter().zip(&self.weights) {
            *merged.entry((i.min(j), i.max(j))).or_default() += weight;
        }
        // In the order of the topology's own edges.
        let weights: Vec<f64> = merged.values().copied().collect();
        let spectrum = Topology::from_edges(self.nodes, merged.into_keys())
            .ok()
            .and_then(|topology| spectrum::weighted(&topology, &weights).ok());
        match spectrum {
            Some(spectrum) => Chi { chi_1: spectrum.chi_1, chi_2: spectrum.chi_2 },
            None => Chi { chi_1: f64::INFINITY, chi_2: f64::INFINITY },
        }
    }
}

fn topology(family: Family, nodes: usize) -> Topology {
    generate(family, nodes, Parameters::default(), SEED).expect("the family has this size")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_optimal_barbell_needs_a_quarter_of_the_rate() {
        let optimal = Graph::optimal(Family::Barbell, 16);
        assert!((optimal.chi().rate_min() / 32.9239 - 1.0).abs() < 2e-3);
        assert!((Graph::uniform(Family::Barbell, 16).chi().rate_min() - 126.148).abs() < 1e-3);
    }

    #[test]
    fn neighborly_rates_give_every_node_its_number_of_averages() {
        for family in [Family::Ring, Family::Exponential, Family::Complete] {
            let graph = Graph::neighborly(family, 16, 3.0);
            let mut rates = [0.0; 16];
            for (&(i, j), weight) in graph.edges.iter().zip(&graph.weights) {
                rates[i] += weight;
                rates[j] += weight;
            }
            assert!(rates.iter().all(|rate| (rate - 3.0).abs() < 1e-12), "{family}: {rates:?}");
        }
    }

    #[test]
    fn chi_does_not_depend_on_the_order_of_edges() {
        let graph = Graph { nodes: 3, edges: vec![(2, 1), (0, 1)], weights: vec![2.0, 1.0] };
        let other = Graph { nodes: 3, edges: vec![(0, 1), (1, 2)], weights: vec![1.0, 2.0] };
        assert_eq!(graph.chi(), other.chi());
        assert!((graph.chi().chi_2 - 0.5).abs() < 1e-12);
    }

    #[test]
    fn a_disconnected_graph_has_no_finite_chi() {
        let graph = Graph { nodes: 4, edges: vec![(0, 1), (2, 3)], weights: vec![0.5; 2] };
        assert_eq!(graph.chi().chi_1, f64::INFINITY);
    }
}
