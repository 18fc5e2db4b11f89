//! Readers take any text: they answer, quickly, and what they accept is a valid topology.

use proptest::prelude::*;
use rumormill_topology::format::{Format, ParseError, parse, write};
use rumormill_topology::{Attributes, Topology, TopologyBuilder};

/// A small graph with every feature, in each format.
fn samples() -> Vec<(Format, String)> {
    let mut builder = TopologyBuilder::new();
    let nodes: Vec<_> =
        ["a", "b c", "\"d\"", "7"].iter().map(|name| builder.add_node(name).unwrap()).collect();
    let rated = Attributes { rate: Some(2.5), latency_ms: Some(10.0), loss: Some(0.125) };
    for (a, b) in [(0, 1), (1, 2), (2, 3), (3, 0)] {
        builder.add_edge(nodes[a], nodes[b], rated).unwrap();
    }
    let topology = builder.finish().unwrap().0;
    let written = Format::ALL.into_iter().filter(|format| *format != Format::Graph6);
    let mut samples: Vec<_> =
        written.map(|format| (format, write(&topology, format).unwrap())).collect();
    samples.push((Format::Graph6, ">>graph6<<DQc\n".to_owned()));
    samples
        .push((Format::Dot, "graph { edge [rate=2]; a -- {b c:n}; subgraph { c -- d } }".into()));
    samples.push((Format::EdgeList, "4\n0 1 {'rate': 2, 'x': 'y'}\n1,2,0.5\n# c\n2 3\n".into()));
    samples
}

/// Everything a reader may do with a text, except to panic.
fn read_every_way(text: &str) {
    for format in Format::ALL.into_iter().map(Some).chain([None]) {
        match parse(text, format) {
            Ok(parsed) => assert_valid(&parsed.topology),
            Err(error) => {
                let place = match &error {
                    ParseError::Syntax { at, .. }
                    | ParseError::Graph { at, .. }
                    | ParseError::Directed { at, .. } => *at,
                    _ => continue,
                };
                assert!(place.line <= 1 + text.matches('\n').count(), "{error} in {text:?}");
                assert!(error.to_string().len() < 2000, "{error}");
            }
        }
    }
}

fn assert_valid(topology: &Topology) {
    let names: std::collections::BTreeSet<_> = topology.names().into_iter().collect();
    assert_eq!(names.len(), topology.node_count());
    assert!(
        topology.edges().windows(2).all(|pair| (pair[0].a, pair[0].b) < (pair[1].a, pair[1].b))
    );
    for edge in topology.edges() {
        assert!(edge.a < edge.b && edge.b < topology.node_count());
        assert!(edge.rate.is_none_or(|rate| rate.is_finite() && rate > 0.0));
        assert!(edge.latency_ms.is_none_or(|latency| latency.is_finite() && latency >= 0.0));
        assert!(edge.loss.is_none_or(|loss| (0.0..=1.0).contains(&loss)));
    }
}

/// Bytes that mean something somewhere.
const MEANINGFUL: &[u8] = b"{}[]()<>\"'\\,:;=-/*#%&~?@ \n\t0129eE.+naN\0\x7f\xc3\xff";

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1500) })]

    #[test]
    fn mutated_files_are_read_or_refused(
        sample in 0..samples().len(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), 0u8..5, any::<u8>(), prop::sample::select(MEANINGFUL)), 1..6),
    ) {
        let mut bytes = samples()[sample].1.clone().into_bytes();
        for (place, kind, any, meaningful) in changes {
            if bytes.is_empty() {
                break;
            }
            let at = place.index(bytes.len());
            match kind {
                0 => bytes[at] = any,
                1 => bytes[at] = meaningful,
                2 => bytes.insert(at, meaningful),
                3 => drop(bytes.remove(at)),
                _ => bytes.truncate(at),
            }
        }
        read_every_way(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn arbitrary_text_is_read_or_refused(text in "(?s).{0,80}") {
        read_every_way(&text);
    }

    #[test]
    fn soup_of_meaningful_bytes_is_read_or_refused(
        soup in prop::collection::vec(prop::sample::select(MEANINGFUL), 0..60),
    ) {
        read_every_way(&String::from_utf8_lossy(&soup));
    }
}

#[test]
fn every_single_byte_change_of_every_sample_is_read_or_refused() {
    for (_, text) in samples() {
        for at in 0..text.len() {
            for &byte in MEANINGFUL {
                let mut bytes = text.clone().into_bytes();
                bytes[at] = byte;
                let text = String::from_utf8_lossy(&bytes);
                for format in [None, Some(Format::EdgeList)] {
                    if let Ok(parsed) = parse(&text, format) {
                        assert_valid(&parsed.topology);
                    }
                }
            }
            read_every_way(&text[..text.floor_char_boundary(at)]);
        }
    }
}

#[test]
fn depth_and_length_cost_no_stack() {
    for (open, close) in [
        ("{\"a\":", "1}"),
        ("[", "]"),
        ("{", "}"),
        ("<a>", "</a>"),
        ("(", ")"),
        ("graph{", "}"),
        ("graph { subgraph x {", "}}"),
        ("\"", "\""),
        ("a -- ", "b"),
        ("/*", "*/"),
        ("<", ">"),
        ("graph { a -- {", "}}"),
        ("{\"nodes\":[", "]}"),
        ("0,", "0\n"),
    ] {
        let text = format!("{}{}", open.repeat(20_000), close.repeat(20_000));
        read_every_way(&text);
        read_every_way(&open.repeat(20_000));
        read_every_way(&format!("graph {{ {text}"));
        read_every_way(&format!("{{\"nodes\":{text}"));
    }
}

#[test]
fn huge_promises_take_no_memory() {
    for text in [
        "99999999999\n0 1\n",
        "100001\n",
        "~~~~~~~~",
        ">>graph6<<~~zzzzzz??",
        "{\"nodes\":[],\"node_holes\":[4000000000],\"edge_property\":\"undirected\",\"edges\":[]}",
        "{\"nodes\":[null],\"edges\":[[0,18446744073709551615,null]]}",
    ] {
        read_every_way(text);
        assert!(parse(text, None).is_err(), "{text}");
    }
}

#[test]
fn faults_of_meaning_are_named() {
    for (text, words) in [
        ("digraph { a -> b }", "directed"),
        ("{\"directed\":true,\"nodes\":[],\"links\":[]}", "directed"),
        ("{\"nodes\":[],\"edge_property\":\"directed\",\"edges\":[]}", "directed"),
        ("a a\n", "joined to itself"),
        ("a b {\"rate\": nan}\n", "rate NaN"),
        ("graph { a -- b [rate=-1] }", "rate -1"),
        ("graph { a -- b [rate=1]; b -- a [rate=2] }", "different rate: 1 and 2"),
        ("{\"nodes\":[\"a\"],\"edges\":[[0,1,null]]}", "names node 1"),
        ("", "no known graph format"),
        ("graph { }", "no nodes"),
    ] {
        let error = parse(text, None).unwrap_err().to_string();
        assert!(error.contains(words), "{error} for {text}");
    }
    let split = parse("a b\nc d\n", None).unwrap().topology;
    assert!(split.require_connected().unwrap_err().to_string().contains("\"c\" cannot be reached"));
}
