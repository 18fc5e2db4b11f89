//! What is written is read back, in every format, as far as it can hold it.

use proptest::prelude::*;
use rumormill_topology::format::{Format, ParseError, detect, parse, write};
use rumormill_topology::{Attributes, Topology, TopologyBuilder};

/// Formats that hold names and all attributes.
const FULL: [Format; 5] =
    [Format::PetgraphJson, Format::NodeLinkJson, Format::GraphMl, Format::Dot, Format::EdgeList];

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        // Names that could be taken for something else.
        prop::sample::select(vec![
            "0",
            "1",
            "7",
            "graph",
            "digraph",
            "strict",
            "node",
            "edge",
            "subgraph",
            "null",
            "->",
            "--",
            "#",
            "%",
            "{",
            "}",
            "[",
            "\"",
            "'",
            "\\",
            "a\\",
            "\\n",
            "a b",
            " a",
            "a ",
            ",",
            ";",
            "<b>",
            "&amp;",
            "]]>",
            "rate",
            "adjacency",
            "A_",
            ">>graph6<<",
            "-1.5",
            "1e3",
            "nan",
            "\u{FEFF}",
            "ü",
            "節点",
            "a:b",
            "/*",
            "//",
            "=",
            "\u{A0}",
            "\u{2028}",
        ])
        .prop_map(str::to_owned),
        "[^\\p{Cc}\u{FFFE}\u{FFFF}]{1,12}",
    ]
}

fn attributes() -> impl Strategy<Value = Attributes> {
    let positive = prop_oneof![Just(1.0), Just(1e-300), Just(1e300), Just(0.1), 1e-9..1e9];
    let probability = prop_oneof![Just(0.0), Just(1.0), 0.0..1.0];
    (
        prop::option::of(positive.clone()),
        prop::option::of(prop_oneof![Just(0.0), positive]),
        prop::option::of(probability),
    )
        .prop_map(|(rate, latency_ms, loss)| Attributes { rate, latency_ms, loss })
}

fn topology() -> impl Strategy<Value = Topology> {
    let nodes = prop::collection::btree_set(name(), 1..9).prop_shuffle_names();
    nodes.prop_flat_map(|names| {
        let n = names.len();
        let edges = prop::collection::btree_map((0..n, 0..n), attributes(), 0..14);
        edges.prop_map(move |edges| {
            let mut builder = TopologyBuilder::new();
            for name in &names {
                builder.add_node(name).unwrap();
            }
            // Both directions of a pair may have drawn different attributes: the first wins.
            let mut seen = std::collections::BTreeSet::new();
            for ((a, b), attributes) in edges {
                if a != b && seen.insert((a.min(b), a.max(b))) {
                    builder.add_edge(a, b, attributes).unwrap();
                }
            }
            builder.finish().unwrap().0
        })
    })
}

trait ShuffleNames {
    /// The set as a list in random order: node order is part of what must survive.
    fn prop_shuffle_names(self) -> impl Strategy<Value = Vec<String>>;
}

impl<S: Strategy<Value = std::collections::BTreeSet<String>>> ShuffleNames for S {
    fn prop_shuffle_names(self) -> impl Strategy<Value = Vec<String>> {
        self.prop_map(|set| set.into_iter().collect::<Vec<_>>()).prop_shuffle()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

    #[test]
    fn names_and_attributes_survive_a_round_trip(topology in topology()) {
        for format in FULL {
            let text = write(&topology, format).unwrap();
            let parsed = parse(&text, Some(format)).map_err(|error| {
                TestCaseError::fail(format!("{format}: {error}\n{text}"))
            })?;
            prop_assert_eq!(&parsed.topology, &topology, "{}:\n{}", format, text);
            prop_assert_eq!(parsed.warnings, vec![], "{}:\n{}", format, text);
        }
    }

    #[test]
    fn adjacency_keeps_names_and_edges_and_rates_if_all_have_one(topology in topology()) {
        let text = write(&topology, Format::AdjacencyCsv).unwrap();
        let parsed = parse(&text, Some(Format::AdjacencyCsv)).map_err(|error| {
            TestCaseError::fail(format!("{error}\n{text}"))
        })?;
        prop_assert_eq!(parsed.topology.names(), topology.names(), "{}", text);
        let all_rated = topology.edges().iter().all(|edge| edge.rate.is_some());
        for (read, written) in parsed.topology.edges().iter().zip(topology.edges()) {
            prop_assert_eq!((read.a, read.b), (written.a, written.b));
            prop_assert_eq!(read.rate, written.rate.filter(|_| all_rated));
        }
    }

    #[test]
    fn the_format_is_recognized_in_all_but_pathological_files(
        edges in prop::collection::btree_set((0usize..9, 0usize..9), 4..20),
    ) {
        let edges = edges.into_iter().filter(|(a, b)| a < b);
        let topology = Topology::from_edges(9, edges.chain([(0, 8)])).unwrap();
        for format in FULL.into_iter().chain([Format::AdjacencyCsv]) {
            let text = write(&topology, format).unwrap();
            prop_assert_eq!(detect(&text), Some(format), "{}", text);
            prop_assert_eq!(parse(&text, None).unwrap().topology.edge_count(), topology.edge_count());
        }
    }
}

#[test]
fn a_file_of_another_format_than_declared_is_refused_naming_both() {
    let topology = Topology::from_edges(5, [(0, 1), (1, 2), (2, 3), (3, 4), (0, 2)]).unwrap();
    let json = |format| matches!(format, Format::PetgraphJson | Format::NodeLinkJson);
    let mut texts: Vec<_> = FULL
        .into_iter()
        .chain([Format::AdjacencyCsv])
        .map(|format| (format, write(&topology, format).unwrap()))
        .collect();
    texts.push((Format::Graph6, ">>graph6<<DQc\n".to_owned()));
    for (shown, text) in &texts {
        for declared in Format::ALL {
            let result = parse(text, Some(declared));
            if declared == *shown || json(declared) && json(*shown) {
                assert!(result.is_ok(), "{shown} as {declared}");
                continue;
            }
            let expected = ParseError::WrongFormat { declared, shown: *shown };
            assert_eq!(result.unwrap_err(), expected, "{shown} as {declared}");
        }
    }
}

#[test]
fn suffixes_say_the_format() {
    for (path, format) in [
        ("a/b.json", Some(Format::PetgraphJson)),
        ("b.nodelink.json", Some(Format::NodeLinkJson)),
        ("b.GraphML", Some(Format::GraphMl)),
        ("b.gv", Some(Format::Dot)),
        ("b.edges", Some(Format::EdgeList)),
        ("b.csv", Some(Format::AdjacencyCsv)),
        ("b.g6", Some(Format::Graph6)),
        ("b.png", None),
    ] {
        assert_eq!(Format::from_path_suffix(path), format, "{path}");
    }
}
