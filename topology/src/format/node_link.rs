//! networkx node-link JSON: `{"directed": false, "nodes": [{"id": …}], "edges": [{"source": …,
//! "target": …}]}`, with `links` for `edges` in files of networkx before 3.6 and of D3.
//!
//! Nodes without `id` have a `name`, or are named by their numbers; the ends of edges may then
//! be numbers of nodes, as D3 has them.

use serde_json::value::RawValue;

use super::json::{members_of, quote};
use super::{NumbersAsRates, ParseError, Parsed, Source};
use crate::graph::{Topology, TopologyBuilder, TopologyError};

pub(super) fn read(source: &Source<'_>) -> Result<Parsed, ParseError> {
    let root = source.json_root()?;
    match root.get("directed").map(|raw| raw.get()) {
        None | Some("false" | "null") => {}
        Some(raw) if raw == "true" => return Err(source.directed(source.offset_of(raw))),
        Some(raw) => return Err(source.expected(source.offset_of(raw), "directed: false")),
    }
    let Some(nodes) = root.get("nodes") else {
        return Err(source.expected_but(0, "an object with nodes", "none"));
    };
    let mut builder = TopologyBuilder::new();
    let mut has_ids = false;
    for raw in source.json_elements(nodes)? {
        let at = source.offset_of(raw.get());
        let members = source.json_members(raw)?;
        has_ids |= members.contains_key("id");
        let name = match ["id", "name"].iter().find_map(|&key| members.get(key)) {
            Some(name) => source.json_name(name)?,
            None => None,
        };
        let name = name.unwrap_or_else(|| builder.node_count().to_string());
        builder.add_node(&name).map_err(|error| source.refuse(at, error))?;
    }

    let edges = root.get("edges").or_else(|| root.get("links"));
    let edges = edges.map(|edges| source.json_elements(edges)).transpose()?;
    for raw in edges.unwrap_or_default() {
        let at = source.offset_of(raw.get());
        let members = source.json_members(raw)?;
        let end = |key| match members.get(key) {
            Some(raw) => find_node(source, &builder, raw, has_ids),
            None => Err(source.expected_but(at, format!("an edge with {key:?}"), "none")),
        };
        let (a, b) = (end("source")?, end("target")?);
        let attributes = source.json_attributes(&members)?;
        builder.add_edge(a, b, attributes).map_err(|error| source.refuse(at, error))?;
    }
    source.finish(builder, NumbersAsRates::No)
}

fn find_node<'a>(
    source: &Source<'a>,
    builder: &TopologyBuilder,
    raw: &'a RawValue,
    has_ids: bool,
) -> Result<usize, ParseError> {
    let at = source.offset_of(raw.get());
    if !has_ids && let Ok(index) = raw.get().parse::<usize>() {
        let nodes = builder.node_count();
        return match index < nodes {
            true => Ok(index),
            false => Err(source.refuse(at, TopologyError::UnknownIndex { index, nodes })),
        };
    }
    let Some(name) = source.json_name(raw)? else {
        return Err(source.expected(at, "the id of a node"));
    };
    builder.node(&name).ok_or_else(|| source.refuse(at, TopologyError::UnknownNode { name }))
}

pub(super) fn write(topology: &Topology) -> String {
    let names: Vec<_> = topology.names().into_iter().map(quote).collect();
    let nodes: Vec<_> = names.iter().map(|name| format!("{{\"id\":{name}}}")).collect();
    let edges: Vec<_> = topology
        .edges()
        .iter()
        .map(|edge| {
            let (source, target) = (&names[edge.a], &names[edge.b]);
            let known = match edge.attributes() {
                known if known.is_empty() => String::new(),
                known => format!(",{}", members_of(known)),
            };
            format!("{{\"source\":{source},\"target\":{target}{known}}}")
        })
        .collect();
    format!(
        "{{\n\"directed\":false,\n\"multigraph\":false,\n\"graph\":{{}},\n\"nodes\":[\n{}\n],\n\
         \"edges\":[\n{}\n]}}\n",
        nodes.join(",\n"),
        edges.join(",\n")
    )
}

#[cfg(test)]
mod tests {
    use super::super::{Format, Position, parse};
    use super::*;

    #[test]
    fn edges_and_links_mean_the_same() {
        let text = r#"{"directed": false, "multigraph": false, "graph": {},
            "nodes": [{"id": 0, "color": "red"}, {"id": "b"}],
            "edges": [{"weight": 3, "rate": 1.5, "loss": null, "source": 0, "target": "b"}]}"#;
        let new = parse(text, None).unwrap();
        let old = parse(&text.replace("\"edges\"", "\"links\""), None).unwrap();
        assert_eq!(new, old);
        assert_eq!(new.format, Format::NodeLinkJson);
        assert_eq!(new.topology.names(), ["0", "b"]);
        assert_eq!((new.topology.edges()[0].rate, new.topology.edges()[0].loss), (Some(1.5), None));
    }

    #[test]
    fn nodes_of_networkx_grids_are_named_by_their_arrays() {
        let text = r#"{"directed": false, "nodes": [{"id": [0, 0]}, {"id": [0, 1]}],
            "edges": [{"source": [0,0], "target": [0, 1]}]}"#;
        assert_eq!(parse(text, None).unwrap().topology.names(), ["[0,0]", "[0,1]"]);
    }

    #[test]
    fn numbers_are_places_where_nodes_have_no_ids() {
        let text = r#"{"nodes": [{"name": "5"}, {"name": "a"}],
            "links": [{"source": 0, "target": 1}]}"#;
        assert_eq!(parse(text, None).unwrap().topology.edge_count(), 1);
    }

    #[test]
    fn unknown_node_and_direction_are_refused_at_their_place() {
        let text = "{\"directed\":false,\"nodes\":[{\"id\":\"a\"}],\n\
                    \"edges\":[{\"source\":\"a\",\"target\":\"b\"}]}";
        let ParseError::Graph { at, source, .. } = parse(text, None).unwrap_err() else { panic!() };
        assert_eq!(at, Position { line: 2, column: 33 });
        assert_eq!(source, TopologyError::UnknownNode { name: "b".into() });
        let error = parse(&text.replace("false", "true"), None).unwrap_err();
        assert!(matches!(error, ParseError::Directed { .. }), "{error}");
    }
}
