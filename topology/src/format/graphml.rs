//! GraphML: `node` and `edge` elements with typed `data`, as networkx, igraph, Gephi and yEd
//! write it. A node is named by its `id`, or
//! by igraph's own key for names. Nested graphs, hyperedges, document type
//! definitions and entities of their own are refused; ports and unknown data are ignored.

use std::collections::BTreeMap;

use roxmltree::{Document, Node, ParsingOptions};

use super::{NumbersAsRates, ParseError, Parsed, Source, set_attribute};
use crate::graph::{Attributes, Topology, TopologyBuilder, TopologyError};

pub(super) fn read(source: &Source<'_>) -> Result<Parsed, ParseError> {
    let options =
        ParsingOptions { allow_dtd: false, nodes_limit: XML_NODES_MAX, ..Default::default() };
    let document = Document::parse_with_options(source.content, options).map_err(|error| {
        let at = offset_of(source.content, error.pos());
        // The library's messages end in their place, which ours begins with.
        let message = error.to_string();
        let found = message.rsplit_once(" at ").map_or(message.as_str(), |(found, _)| found);
        source.expected_but(at, "well-formed XML", format!("fault: {found}"))
    })?;
    let root = document.root_element();
    if !root.has_tag_name_local("graphml") {
        return Err(source.expected(root.range().start, "a graphml element"));
    }

    let mut names_of_keys = BTreeMap::new();
    let mut defaults = Attributes::default();
    let mut graphs = Vec::new();
    for child in root.children().filter(Node::is_element) {
        if child.has_tag_name_local("graph") {
            graphs.push(child);
        }
        if child.has_tag_name_local("key") && matches!(child.attribute("for"), Some("edge" | "all"))
        {
            let id = required(source, child, "id")?;
            let name = child.attribute("attr.name").unwrap_or(id);
            names_of_keys.insert(id, name);
            let default = child.children().find(|node| node.has_tag_name_local("default"));
            if let Some(default) = default {
                set(source, default, &mut defaults, name)?;
            }
        }
    }
    let &[graph] = graphs.as_slice() else {
        let at = graphs.get(1).unwrap_or(&root).range().start;
        let expected = "exactly one graph in the file";
        return Err(source.expected_but(at, expected, graphs.len().to_string()));
    };
    if graph.attribute("edgedefault") == Some("directed") {
        return Err(source.directed(graph.range().start));
    }

    let mut builder = TopologyBuilder::new();
    let mut places = BTreeMap::new();
    let names = igraph_names(graph);
    let elements = || graph.children().filter(Node::is_element);
    for node in elements().filter(|node| node.has_tag_name_local("node")) {
        if let Some(inner) = node.children().find(|child| child.has_tag_name_local("graph")) {
            return Err(source.expected(inner.range().start, "a flat graph without nested ones"));
        }
        let at = node.range().start;
        let id = required(source, node, "id")?;
        let name = names.as_ref().map_or(id, |names| names[builder.node_count()]);
        let place = builder.add_node(name).map_err(|error| source.refuse(at, error))?;
        if places.insert(id, place).is_some() {
            let error = TopologyError::DuplicateNode { name: id.to_owned() };
            return Err(source.refuse(at, error));
        }
    }
    for element in elements() {
        let at = element.range().start;
        if element.has_tag_name_local("hyperedge") {
            return Err(source.expected(at, "edges between two nodes"));
        }
        if !element.has_tag_name_local("edge") {
            continue;
        }
        if element.attribute("directed") == Some("true") {
            return Err(source.directed(at));
        }
        let end = |attribute| {
            let name = required(source, element, attribute)?;
            let unknown = || TopologyError::UnknownNode { name: name.to_owned() };
            places.get(name).copied().ok_or_else(|| source.refuse(at, unknown()))
        };
        let (a, b) = (end("source")?, end("target")?);
        let mut attributes = defaults;
        for data in element.children().filter(|child| child.has_tag_name_local("data")) {
            if let Some(name) = data.attribute("key").and_then(|key| names_of_keys.get(key)) {
                set(source, data, &mut attributes, name)?;
            }
        }
        builder.add_edge(a, b, attributes).map_err(|error| source.refuse(at, error))?;
    }
    source.finish(builder, NumbersAsRates::No)
}

/// igraph calls its nodes n0, n1, … and keeps their names in data of the key `v_name`. They count
/// if every node has one.
fn igraph_names<'a>(graph: Node<'a, '_>) -> Option<Vec<&'a str>> {
    let nodes = graph.children().filter(|node| node.has_tag_name_local("node"));
    nodes
        .map(|node| {
            let mut children = node.children();
            children.find(|data| data.attribute("key") == Some("v_name"))?.text()
        })
        .collect()
}

/// The most XML nodes of a file: each edge with three data elements, their texts and the
/// blanks between at the most edges. The library keeps some 100 bytes for each.
const XML_NODES_MAX: u32 = 60_000_000;

trait LocalName {
    /// Whether the element has this name in whatever namespace.
    fn has_tag_name_local(&self, name: &str) -> bool;
}

impl LocalName for Node<'_, '_> {
    fn has_tag_name_local(&self, name: &str) -> bool {
        self.tag_name().name() == name
    }
}

fn required<'a>(
    source: &Source<'_>,
    node: Node<'a, '_>,
    attribute: &str,
) -> Result<&'a str, ParseError> {
    node.attribute(attribute).ok_or_else(|| {
        let expected = format!("a {} with the attribute {attribute}", node.tag_name().name());
        source.expected(node.range().start, expected)
    })
}

fn set(
    source: &Source<'_>,
    element: Node<'_, '_>,
    attributes: &mut Attributes,
    name: &str,
) -> Result<(), ParseError> {
    set_attribute(attributes, name, element.text().unwrap_or_default()).map_err(|()| {
        let at = element.first_child().unwrap_or(element).range().start;
        source.expected(at, format!("a number for {name}"))
    })
}

fn offset_of(content: &str, at: roxmltree::TextPos) -> usize {
    let rows = content.split_inclusive('\n').take(at.row.saturating_sub(1) as usize);
    let row_start: usize = rows.map(str::len).sum();
    let column = content[row_start..].char_indices().nth(at.col.saturating_sub(1) as usize);
    column.map_or(content.len(), |(bytes, _)| row_start + bytes)
}

pub(super) fn write(topology: &Topology) -> String {
    let mut text = String::from(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <graphml xmlns=\"http://graphml.graphdrawing.org/xmlns\">\n",
    );
    for name in ["rate", "latency_ms", "loss"] {
        if topology.edges().iter().any(|e| e.attributes().known().any(|(known, _)| known == name)) {
            text += &format!(
                "  <key id=\"{name}\" for=\"edge\" attr.name=\"{name}\" attr.type=\"double\"/>\n"
            );
        }
    }
    text += "  <graph edgedefault=\"undirected\">\n";
    let names: Vec<_> = topology.names().into_iter().map(escape_xml).collect();
    for name in &names {
        text += &format!("    <node id=\"{name}\"/>\n");
    }
    for edge in topology.edges() {
        text += &format!("    <edge source=\"{}\" target=\"{}\"", names[edge.a], names[edge.b]);
        if edge.attributes().is_empty() {
            text += "/>\n";
            continue;
        }
        text.push('>');
        for (name, value) in edge.attributes().known() {
            text += &format!("<data key=\"{name}\">{value:?}</data>");
        }
        text += "</edge>\n";
    }
    text + "  </graph>\n</graphml>\n"
}

/// Text as the value of an attribute or the content of an element.
pub(crate) fn escape_xml(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&apos;",
            _ => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::super::{Format, Position, parse};
    use super::*;

    const NETWORKX: &str = r#"<?xml version='1.0' encoding='utf-8'?>
<graphml xmlns="http://graphml.graphdrawing.org/xmlns">
  <key id="d1" for="edge" attr.name="latency_ms" attr.type="long"><default>7</default></key>
  <key id="d0" for="edge" attr.name="rate" attr.type="double" />
  <graph edgedefault="undirected">
    <node id="a"><data key="d9">x</data></node>
    <node id="b" />
    <edge source="a" target="b"><data key="d0">1.5</data></edge>
  </graph>
</graphml>"#;

    #[test]
    fn what_networkx_writes_is_read() {
        let parsed = parse(NETWORKX, None).unwrap();
        assert_eq!(parsed.format, Format::GraphMl);
        let edge = parsed.topology.edges()[0];
        assert_eq!((edge.rate, edge.latency_ms, edge.loss), (Some(1.5), Some(7.0), None));
    }

    #[test]
    fn names_that_igraph_wrote_are_read() {
        let text = NETWORKX
            .replace("<data key=\"d9\">x", "<data key=\"v_name\">alice")
            .replace("<node id=\"b\" />", "<node id=\"b\"><data key=\"v_name\">a</data></node>");
        assert_eq!(parse(&text, None).unwrap().topology.names(), ["alice", "a"]);
    }

    #[test]
    fn faults_have_their_place() {
        for (from, to, line, column) in [
            ("undirected", "directed", 5, 3),
            ("<edge ", "<edge directed=\"true\" ", 8, 5),
            ("target=\"b\"", "target=\"c\"", 8, 5),
            ("target=\"b\"", "", 8, 5),
            (">1.5<", ">nan<", 8, 5),
            (">1.5<", ">fast<", 8, 48),
            ("id=\"b\"", "id=\"a\"", 7, 5),
            ("</graph>", "</graf>", 9, 3),
        ] {
            match parse(&NETWORKX.replace(from, to), None).unwrap_err() {
                ParseError::Syntax { at, .. }
                | ParseError::Graph { at, .. }
                | ParseError::Directed { at, .. } => {
                    assert_eq!(at, Position { line, column }, "{to:?}");
                }
                other => panic!("{to:?}: {other}"),
            }
        }
    }

    #[test]
    fn entities_and_deep_nesting_do_no_harm() {
        let bomb =
            "<!DOCTYPE g [<!ENTITY a \"aaaa\"><!ENTITY b \"&a;&a;&a;\">]><graphml>&b;</graphml>";
        parse(bomb, None).unwrap_err();
        let deep = "<a>".repeat(200_000);
        parse(&deep, None).unwrap_err();
        let closed = format!("{deep}{}", "</a>".repeat(200_000));
        parse(&closed, None).unwrap_err();
    }
}
