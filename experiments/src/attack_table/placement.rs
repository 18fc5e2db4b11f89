//! Where faulty nodes hurt most.

use rumormill_topology::spectrum;
use rumormill_topology::{Topology, TopologyBuilder};

/// Nodes of a graph whose absence leaves the others the worst connected (least λ₂ of the uniform
/// Laplacian), but connected: chosen one after another, the highest of equals. `None` when there are no
/// such nodes.
pub(super) fn worst(topology: &Topology, count: usize) -> Option<Vec<usize>> {
    let mut left: Vec<usize> = (0..topology.node_count()).collect();
    let mut chosen = Vec::new();
    for _ in 0..count {
        let connectivity = |without: usize| {
            let rest: Vec<usize> = left.iter().copied().filter(|&node| node != without).collect();
            let part = part(topology, &rest)?;
            let lambda_2 = part.is_connected().then(|| spectrum::uniform(&part).ok())??.lambda_2;
            // Equal ones differ by rounding.
            Some((lambda_2 * 1e9).round())
        };
        let scored = left.iter().filter_map(|&node| Some((connectivity(node)?, node)));
        let (_, node) = scored.min_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)))?;
        left.retain(|&other| other != node);
        chosen.push(node);
    }
    chosen.sort_unstable();
    Some(chosen)
}

/// The graph between some nodes.
fn part(topology: &Topology, nodes: &[usize]) -> Option<Topology> {
    let mut builder = TopologyBuilder::numbered(nodes.len()).ok()?;
    for edge in topology.edges() {
        let place = |node| nodes.iter().position(|&other| other == node);
        if let (Some(a), Some(b)) = (place(edge.a), place(edge.b)) {
            builder.add_edge(a, b, edge.attributes()).ok()?;
        }
    }
    Some(builder.finish().ok()?.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rumormill_topology::family::{Family, Parameters, generate};

    #[test]
    fn on_a_ring_faulty_nodes_stand_together_and_the_rest_is_a_line() {
        let ring = generate(Family::Ring, 9, Parameters::default(), 0).unwrap();
        assert_eq!(worst(&ring, 3), Some(vec![6, 7, 8]));
    }

    #[test]
    fn the_rest_of_a_random_graph_stays_connected() {
        let graph = generate(Family::RandomRegular, 15, Parameters::default(), 3).unwrap();
        let chosen = worst(&graph, 4).unwrap();
        let rest: Vec<usize> = (0..15).filter(|node| !chosen.contains(node)).collect();
        assert!(part(&graph, &rest).unwrap().is_connected());
        let star = generate(Family::Star, 6, Parameters::default(), 0).unwrap();
        let hub = (0..6).find(|&node| star.degree(node) == 5).unwrap();
        assert!(!worst(&star, 3).unwrap().contains(&hub));
    }
}
