//! graph6: one line of printable characters, six bits each (McKay, "Description of graph6,
//! sparse6 and digraph6 encodings"): the number of nodes, then the upper triangle of the
//! adjacency matrix column by column. Read with or without the `>>graph6<<` header and the
//! newline; sparse6 and digraph6 are refused by name.

use super::{NumbersAsRates, ParseError, Parsed, Source};
use crate::graph::{Attributes, NODES_MAX, TopologyBuilder, TopologyError};

pub(super) const HEADER: &str = ">>graph6<<";

/// One word of the alphabet. Whether its length is right is for the reader to say: a file cut
/// short should not pass as an edge list with a single node of a strange name.
pub(super) fn detect(content: &str) -> bool {
    let text = content.trim();
    !text.is_empty() && text.bytes().all(|byte| (63..=126).contains(&byte))
}

pub(super) fn read(source: &Source<'_>) -> Result<Parsed, ParseError> {
    let content = source.content.trim_end();
    let start = content.len() - content.trim_start().len();
    let start = if content[start..].starts_with(HEADER) { start + HEADER.len() } else { start };
    let line = &content.as_bytes()[start..];
    match line.first() {
        Some(b'&') => return Err(source.directed(start)),
        Some(b':' | b';') => return Err(source.expected(start, "graph6, not sparse6")),
        _ => {}
    }
    if let Some(at) = line.iter().position(|byte| !(63..=126).contains(byte)) {
        return Err(source.expected(start + at, "characters from ? to ~ on one line"));
    }
    let Some((nodes, used)) = size(line) else {
        return Err(source.expected(content.len(), "the number of nodes"));
    };
    if nodes > NODES_MAX {
        return Err(source.refuse(start, TopologyError::TooManyNodes { max: NODES_MAX }));
    }
    let (data, expected) = (&line[used..], data_len(nodes));
    if data.len() != expected {
        let at = start + used + data.len().min(expected);
        let expected = format!("{expected} characters of edges for {nodes} nodes");
        return Err(source.expected_but(at, expected, format!("{}", data.len())));
    }

    let mut builder =
        TopologyBuilder::numbered(nodes).map_err(|error| source.refuse(start, error))?;
    // The bit's place in the triangle: row above column.
    let (mut row, mut column) = (0, 1);
    for (at, byte) in data.iter().enumerate() {
        for bit in (0..6).rev() {
            let is_set = (byte - 63) >> bit & 1 == 1;
            if is_set && column >= nodes {
                return Err(source.expected(start + used + at, "zero bits after the last edge"));
            }
            if is_set {
                builder
                    .add_edge(row, column, Attributes::default())
                    .map_err(|error| source.refuse(start + used + at, error))?;
            }
            row += 1;
            if row == column {
                (row, column) = (0, column + 1);
            }
        }
    }
    source.finish(builder, NumbersAsRates::No)
}

/// The number of nodes and how many characters say it: one, `~` and three, or `~~` and six.
fn size(line: &[u8]) -> Option<(usize, usize)> {
    let number = |digits: &[u8]| {
        digits.iter().fold(0usize, |number, byte| number << 6 | usize::from(byte - 63))
    };
    match line {
        [b'~', b'~', rest @ ..] => Some((number(rest.get(..6)?), 8)),
        [b'~', rest @ ..] => Some((number(rest.get(..3)?), 4)),
        [first, ..] => Some((number(&[*first]), 1)),
        [] => None,
    }
}

/// Characters for the upper triangle. Saturates far above any real text.
fn data_len(nodes: usize) -> usize {
    (nodes.saturating_mul(nodes.saturating_sub(1)) / 2).div_ceil(6)
}

#[cfg(test)]
mod tests {
    use super::super::{Format, Position, parse};
    use super::*;
    use crate::graph::Topology;

    #[test]
    fn the_example_of_the_description_is_read() {
        // McKay's formats.txt: n = 5, edges 0-2, 0-4, 1-3, 3-4 are "DQc".
        let expected = Topology::from_edges(5, [(0, 2), (0, 4), (1, 3), (3, 4)]).unwrap();
        for text in ["DQc", "DQc\n", ">>graph6<<DQc\r\n", "  DQc"] {
            let parsed = parse(text, None).unwrap();
            assert_eq!((parsed.format, parsed.topology), (Format::Graph6, expected.clone()));
        }
    }

    #[test]
    fn long_sizes_are_read() {
        // 64 nodes without edges: ~ and the three digits 0, 1, 0.
        let text = format!("~?@?{}", "?".repeat(336));
        assert_eq!(parse(&text, None).unwrap().topology.node_count(), 64);
        let text = format!("~~?????@{}", "?".repeat(336));
        parse(&text, Some(Format::Graph6)).unwrap_err();
        let text = format!("~~????@?{}", "?".repeat(336));
        assert_eq!(parse(&text, None).unwrap().topology.node_count(), 64);
    }

    #[test]
    fn faults_have_their_place() {
        for (text, column) in [
            ("DQ", 3),
            ("DQcc", 4),
            ("DQc\tx y", 4),
            ("DQd", 3),
            ("~~~~~~~~", 1),
            ("~?", 3),
            (":An", 1),
        ] {
            match parse(text, Some(Format::Graph6)).unwrap_err() {
                ParseError::Syntax { at, .. } | ParseError::Graph { at, .. } => {
                    assert_eq!(at, Position { line: 1, column }, "{text:?}");
                }
                other => panic!("{text:?}: {other}"),
            }
        }
    }
}
