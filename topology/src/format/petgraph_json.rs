//! Serde JSON of a petgraph `Graph`, `StableGraph` or `GraphMap`: the native format.
//!
//! `{"nodes": […], "node_holes": […], "edge_property": "undirected", "edges": [[a, b, weight]]}`.
//! Node weights: a name, a number, an object with `id`, `name` or `label`, or null (the node is
//! then named by its number). Edge weights: null, a number (the rate), or an object with
//! attributes. A `StableGraph` with removed nodes lists their numbers in `node_holes` and its
//! removed edges as null. Text written by hand may leave out all but `nodes` and `edges`.

use serde_json::value::RawValue;

use super::json::{members_of, quote};
use super::{NumbersAsRates, ParseError, Parsed, Source};
use crate::graph::{Attributes, Topology, TopologyBuilder, TopologyError};

pub(super) fn read(source: &Source<'_>) -> Result<Parsed, ParseError> {
    let root = source.json_root()?;
    if let Some(property) = root.get("edge_property") {
        match property.get() {
            "\"undirected\"" => {}
            "\"directed\"" => return Err(source.directed(source.offset_of(property.get()))),
            other => {
                let at = source.offset_of(other);
                return Err(source.expected(at, "edge_property \"undirected\""));
            }
        }
    }
    let Some(nodes) = root.get("nodes") else {
        return Err(source.expected_but(0, "an object with nodes", "none"));
    };
    let nodes = source.json_elements(nodes)?;
    let holes = match root.get("node_holes") {
        Some(holes) => read_holes(source, holes, nodes.len())?,
        None => Vec::new(),
    };

    let mut builder = TopologyBuilder::new();
    // Place in the file, holes counted, to node number; `None` for a hole.
    let mut numbers = Vec::with_capacity(nodes.len() + holes.len());
    let mut holes = holes.into_iter().peekable();
    for raw in nodes {
        while holes.next_if_eq(&numbers.len()).is_some() {
            numbers.push(None);
        }
        let at = source.offset_of(raw.get());
        let name = read_name(source, raw)?.unwrap_or_else(|| numbers.len().to_string());
        let node = builder.add_node(&name).map_err(|error| source.refuse(at, error))?;
        numbers.push(Some(node));
    }

    let mut as_rates = NumbersAsRates::No;
    let edges = root.get("edges").map(|edges| source.json_elements(edges)).transpose()?;
    for raw in edges.unwrap_or_default().into_iter().filter(|raw| raw.get() != "null") {
        let at = source.offset_of(raw.get());
        let parts = source.json_elements(raw)?;
        let (&[a, b] | &[a, b, _]) = parts.as_slice() else {
            return Err(source.expected(at, "an edge [node, node, weight]"));
        };
        let number = |raw: &RawValue, index: usize| {
            numbers.get(index).copied().flatten().ok_or_else(|| {
                let unknown = TopologyError::UnknownIndex { index, nodes: numbers.len() };
                source.refuse(source.offset_of(raw.get()), unknown)
            })
        };
        let a = number(a, source.json_index(a)?)?;
        let b = number(b, source.json_index(b)?)?;
        let attributes = match parts.get(2) {
            Some(weight) => source.json_weight(weight, &mut as_rates)?,
            None => Attributes::default(),
        };
        builder.add_edge(a, b, attributes).map_err(|error| source.refuse(at, error))?;
    }
    source.finish(builder, as_rates)
}

/// The places of removed nodes, ascending.
fn read_holes<'a>(
    source: &Source<'a>,
    raw: &'a RawValue,
    nodes: usize,
) -> Result<Vec<usize>, ParseError> {
    let elements = source.json_elements(raw)?;
    let places = nodes + elements.len();
    let mut holes = Vec::with_capacity(elements.len());
    for element in elements {
        let hole = source.json_index(element)?;
        if hole >= places {
            let at = source.offset_of(element.get());
            return Err(source.expected(at, format!("the number of a removed node below {places}")));
        }
        holes.push(hole);
    }
    holes.sort_unstable();
    holes.dedup();
    Ok(holes)
}

fn read_name<'a>(source: &Source<'a>, raw: &'a RawValue) -> Result<Option<String>, ParseError> {
    if !raw.get().starts_with('{') {
        return source.json_name(raw);
    }
    let members = source.json_members(raw)?;
    match ["id", "name", "label"].iter().find_map(|&key| members.get(key)) {
        Some(name) => source.json_name(name),
        None => Ok(None),
    }
}

pub(super) fn write(topology: &Topology) -> String {
    let nodes: Vec<_> = topology.names().into_iter().map(quote).collect();
    let edges: Vec<_> = topology
        .edges()
        .iter()
        .map(|edge| match edge.attributes() {
            known if known.is_empty() => format!("[{},{},null]", edge.a, edge.b),
            known => format!("[{},{},{{{}}}]", edge.a, edge.b, members_of(known)),
        })
        .collect();
    format!(
        "{{\n\"nodes\":[{}],\n\"node_holes\":[],\n\"edge_property\":\"undirected\",\n\
         \"edges\":[\n{}\n]}}\n",
        nodes.join(","),
        edges.join(",\n")
    )
}

#[cfg(test)]
mod tests {
    use petgraph::graph::UnGraph;
    use petgraph::graphmap::UnGraphMap;
    use petgraph::prelude::{DiGraph, StableUnGraph};

    use super::super::{Format, ParseError, Position, parse};
    use super::*;

    fn read(content: &str) -> Result<Parsed, ParseError> {
        parse(content, Some(Format::PetgraphJson))
    }

    fn ends(topology: &Topology) -> Vec<(usize, usize)> {
        topology.edges().iter().map(|edge| (edge.a, edge.b)).collect()
    }

    #[test]
    fn petgraph_reads_what_is_written() {
        let text = write(&Topology::from_edges(3, [(0, 1), (1, 2)]).unwrap());
        let graph: UnGraph<String, Option<Attributes2>> = serde_json::from_str(&text).unwrap();
        assert_eq!((graph.node_count(), graph.edge_count()), (3, 2));
    }

    #[derive(serde::Deserialize)]
    struct Attributes2 {}

    #[test]
    fn graph_with_numbers_as_weights_gives_rates_and_a_warning() {
        let mut graph = UnGraph::<&str, f32>::new_undirected();
        let (a, b) = (graph.add_node("a"), graph.add_node("b"));
        graph.add_edge(a, b, 0.5);
        let parsed = read(&serde_json::to_string(&graph).unwrap()).unwrap();
        assert_eq!(parsed.topology.names(), ["a", "b"]);
        assert_eq!(parsed.topology.edges()[0].rate, Some(0.5));
        assert_eq!(parsed.warnings, [crate::graph::Warning::NumbersReadAsRates]);
    }

    #[test]
    fn stable_graph_with_holes_is_read() {
        let mut graph = StableUnGraph::<(), ()>::default();
        let nodes: Vec<_> = (0..5).map(|_| graph.add_node(())).collect();
        for (a, b) in [(0, 1), (1, 2), (2, 3), (3, 4), (4, 1)] {
            graph.add_edge(nodes[a], nodes[b], ());
        }
        graph.remove_node(nodes[0]);
        graph.remove_node(nodes[3]);
        let parsed = read(&serde_json::to_string(&graph).unwrap()).unwrap();
        assert_eq!(parsed.topology.names(), ["1", "2", "4"]);
        assert_eq!(ends(&parsed.topology), [(0, 1), (0, 2)]);
    }

    #[test]
    fn graph_map_names_nodes_by_their_values() {
        let graph = UnGraphMap::<u32, ()>::from_edges([(7, 9), (9, 8)]);
        let parsed = read(&serde_json::to_string(&graph).unwrap()).unwrap();
        assert_eq!(parsed.topology.names(), ["7", "9", "8"]);
        assert_eq!(ends(&parsed.topology), [(0, 1), (1, 2)]);
    }

    #[test]
    fn directed_graph_is_refused() {
        let graph = DiGraph::<(), ()>::from_edges([(0, 1)]);
        let error = read(&serde_json::to_string(&graph).unwrap()).unwrap_err();
        assert!(matches!(error, ParseError::Directed { .. }), "{error}");
    }

    #[test]
    fn errors_carry_the_place_of_the_edge() {
        let text = "{\"nodes\": [\"a\", \"b\"],\n \"edges\": [[0, 1, null],\n  [0, 2, null]]}";
        let ParseError::Graph { at, source, .. } = read(text).unwrap_err() else { panic!() };
        assert_eq!(at, Position { line: 3, column: 7 });
        assert_eq!(source, TopologyError::UnknownIndex { index: 2, nodes: 2 });
        let text = "{\"nodes\": [\"a\", \"b\"],\n \"edges\": [[0, 1, NaN]]}";
        let ParseError::Syntax { at, .. } = read(text).unwrap_err() else { panic!() };
        assert_eq!(at, Position { line: 2, column: 19 });
    }

    #[test]
    fn deep_nesting_is_only_ignored() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let text = format!("{{\"nodes\":[\"a\",\"b\"],\"edges\":[[0,1,{deep}]],\"x\":{deep}}}");
        assert_eq!(read(&text).unwrap().topology.edge_count(), 1);
    }
}
