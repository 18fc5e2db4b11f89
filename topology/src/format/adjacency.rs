//! Adjacency matrix as CSV: square, symmetric, zero on the diagonal.
//!
//! A bare matrix has nodes "0", "1", …. A first row that holds a word, or an empty first cell,
//! gives the names, and a first column repeats them if the matrix would not be square
//! otherwise. The corner may say what the cells are: `adjacency` (anything but 0 is an edge) or
//! `rate`. Without such a corner, cells that are all 0 or 1 are edges, others are rates. An empty
//! cell is 0.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::{NumbersAsRates, ParseError, Parsed, Source};
use crate::graph::{Attributes, EDGES_MAX, NODES_MAX, Topology, TopologyBuilder, TopologyError};

pub(super) fn detect(content: &str) -> bool {
    let mut lines = content.lines().filter(|line| !line.trim().is_empty());
    let columns = lines.next().map_or(0, |line| cells(line, 0).take(NODES_MAX + 2).count());
    let rows = 1 + lines.count();
    // Bare or with names on both sides, or with names on top only.
    columns > 1 && (rows == columns || rows == columns + 1)
}

pub(super) fn read(source: &Source<'_>) -> Result<Parsed, ParseError> {
    let mut lines = lines(source.content).peekable();
    let Some(&(first_start, first)) = lines.peek() else {
        return Err(source.expected(0, "a matrix"));
    };
    let first: Vec<_> = cells(first, first_start).take(NODES_MAX + 2).collect();
    let is_header =
        first[0].text.is_empty() || first.iter().any(|cell| cell.text.parse::<f64>().is_err());
    let is_header = is_header && !first.iter().all(|cell| cell.text.is_empty());

    let mut builder;
    let mut corner = String::new();
    let mut has_row_names = false;
    if is_header {
        lines.next();
        // Names on the left make the first row one longer than the number of rows below it.
        let rows = self::lines(source.content).take(NODES_MAX + 3).count() - 1;
        has_row_names = first.len() == rows + 1;
        if has_row_names {
            corner = first[0].text.to_ascii_lowercase();
        }
        builder = TopologyBuilder::new();
        for cell in &first[usize::from(has_row_names)..] {
            builder.add_node(&cell.text).map_err(|error| source.refuse(cell.offset, error))?;
        }
    } else {
        builder = TopologyBuilder::numbered(first.len())
            .map_err(|error| source.refuse(first_start, error))?;
    }

    let entries = read_entries(source, lines, &builder, has_row_names)?;
    let as_rates = match corner.as_str() {
        "adjacency" => false,
        "rate" => true,
        _ => entries.values().any(|entry| entry.value != 1.0),
    };
    for (&(row, column), entry) in &entries {
        let name = |i| builder.name(i).unwrap_or_default().to_owned();
        let mirrored = entries.get(&(column, row)).map_or(0.0, |entry| entry.value);
        if mirrored != entry.value {
            let (row, column) = (name(row), name(column));
            return Err(source.expected_but(
                entry.offset,
                format!(
                    "a symmetric matrix (undirected graph): {mirrored} as in row {column:?}, \
                         column {row:?}"
                ),
                entry.value.to_string(),
            ));
        }
        if row <= column {
            let rate = as_rates.then_some(entry.value);
            builder
                .add_edge(row, column, Attributes { rate, ..Attributes::default() })
                .map_err(|error| source.refuse(entry.offset, error))?;
        }
    }
    let guessed = as_rates && corner != "rate";
    source.finish(builder, if guessed { NumbersAsRates::Yes } else { NumbersAsRates::No })
}

struct Entry {
    value: f64,
    offset: usize,
}

/// The cells that are not zero, by row and column.
fn read_entries<'a>(
    source: &Source<'_>,
    lines: impl Iterator<Item = (usize, &'a str)>,
    builder: &TopologyBuilder,
    has_row_names: bool,
) -> Result<BTreeMap<(usize, usize), Entry>, ParseError> {
    let nodes = builder.node_count();
    let mut entries = BTreeMap::new();
    let mut row = 0;
    let mut end = source.content.len();
    for (start, line) in lines {
        if row == nodes {
            return Err(source.expected(start, format!("{nodes} rows, as many as columns")));
        }
        let mut cells = cells(line, start);
        if has_row_names {
            let cell = cells.next().filter(|cell| builder.node(&cell.text) == Some(row));
            if cell.is_none() {
                let name = builder.name(row).unwrap_or_default();
                return Err(source.expected(start, format!("the row of {name:?}")));
            }
        }
        let mut column = 0;
        for cell in cells {
            if column == nodes {
                return Err(source.expected(cell.offset, format!("{nodes} cells in the row")));
            }
            if !matches!(&*cell.text, "0" | "") {
                let value: f64 = cell
                    .text
                    .parse()
                    .map_err(|_| source.expected(cell.offset, "a number or an empty cell"))?;
                if value != 0.0 {
                    entries.insert((row, column), Entry { value, offset: cell.offset });
                }
            }
            column += 1;
        }
        end = start + line.len();
        if column < nodes {
            return Err(source.expected(end, format!("{nodes} cells in the row, got {column}")));
        }
        if entries.len() > 2 * EDGES_MAX {
            return Err(source.refuse(start, TopologyError::TooManyEdges { max: EDGES_MAX }));
        }
        row += 1;
    }
    if row < nodes {
        return Err(source.expected(end, format!("{nodes} rows, as many as columns, got {row}")));
    }
    Ok(entries)
}

/// The lines that are not blank, with their offsets.
fn lines(content: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut start = 0;
    content
        .split_inclusive('\n')
        .map(move |line| {
            let this = (start, line.trim_end_matches(['\n', '\r']));
            start += line.len();
            this
        })
        .filter(|(_, line)| !line.trim().is_empty())
}

struct Cell<'a> {
    text: Cow<'a, str>,
    offset: usize,
}

/// The cells of a line. A cell in double quotes may hold commas, and quotes doubled.
fn cells(line: &str, start: usize) -> impl Iterator<Item = Cell<'_>> {
    let mut at = Some(0);
    std::iter::from_fn(move || {
        let from = at?;
        let rest = &line[from..];
        let trimmed = rest.trim_start();
        let offset = start + line.len() - trimmed.len();
        if let Some(quoted) = trimmed.strip_prefix('"') {
            let bytes = quoted.as_bytes();
            let mut end = 0;
            while end < bytes.len() && (bytes[end] != b'"' || bytes.get(end + 1) == Some(&b'"')) {
                end += if bytes[end] == b'"' { 2 } else { 1 };
            }
            let end = end.min(bytes.len());
            let after = &quoted[end..];
            at = after.find(',').map(|comma| line.len() - after.len() + comma + 1);
            return Some(Cell { text: Cow::Owned(quoted[..end].replace("\"\"", "\"")), offset });
        }
        let end = rest.bytes().position(|byte| byte == b',');
        at = end.map(|comma| from + comma + 1);
        Some(Cell { text: Cow::Borrowed(rest[..end.unwrap_or(rest.len())].trim()), offset })
    })
}

pub(super) fn write(topology: &Topology) -> String {
    let nodes = topology.node_count();
    let has_rates = topology.edge_count() > 0 && topology.edges().iter().all(|e| e.rate.is_some());
    let numbered = topology.names().iter().enumerate().all(|(i, name)| *name == i.to_string());
    // One node, or a bare 1 that could be a name: a header keeps these apart.
    let is_bare = numbered && !has_rates;
    let mut text = String::with_capacity(2 * nodes * nodes);
    if !is_bare {
        text += if has_rates { "rate" } else { "adjacency" };
        for name in topology.names() {
            text += &format!(",{}", quote(name));
        }
        text.push('\n');
    }
    for (i, neighbors) in topology.adjacency().into_iter().enumerate() {
        if !is_bare {
            text += &format!("{},", quote(topology.name(i)));
        }
        let mut neighbors = neighbors.into_iter().peekable();
        for j in 0..nodes {
            match neighbors.next_if(|&(neighbor, _)| neighbor == j) {
                None => text.push('0'),
                Some((_, edge)) => match topology.edges()[edge].rate {
                    Some(rate) if has_rates => text += &format!("{rate:?}"),
                    _ => text.push('1'),
                },
            }
            text.push(if j + 1 < nodes { ',' } else { '\n' });
        }
    }
    text
}

/// A name as a cell: in quotes if it would be read otherwise.
fn quote(name: &str) -> Cow<'_, str> {
    if name.contains([',', '"']) || name.trim() != name {
        Cow::Owned(format!("\"{}\"", name.replace('"', "\"\"")))
    } else {
        Cow::Borrowed(name)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Format, Position, parse};
    use super::*;

    fn read(content: &str) -> Result<Parsed, ParseError> {
        parse(content, Some(Format::AdjacencyCsv))
    }

    #[test]
    fn bare_matrix_of_zeros_and_ones_has_no_rates() {
        let parsed = read("0, 1, 0\n1, 0, 1.0\n0, 1, 0\n").unwrap();
        assert_eq!(parsed.topology, Topology::from_edges(3, [(0, 1), (1, 2)]).unwrap());
    }

    #[test]
    fn names_on_top_or_on_both_sides_are_read() {
        let both = read("rate,a,\"b, c\"\na,0,1\n\"b, c\",1,0\n").unwrap();
        assert_eq!(both.topology.names(), ["a", "b, c"]);
        assert_eq!(both.topology.edges()[0].rate, Some(1.0));
        let top = read("a,b\n0,2.5\n2.5,0\n").unwrap();
        assert_eq!(top.topology.edges()[0].rate, Some(2.5));
        assert_eq!(top.warnings, [crate::graph::Warning::NumbersReadAsRates]);
        let pandas = read(",0,1\n0,0,1\n1,1,0\n").unwrap();
        assert_eq!(pandas.topology.names(), ["0", "1"]);
    }

    #[test]
    fn faults_have_their_place() {
        for (text, line, column) in [
            ("0,1\n0,0\n", 1, 3),
            ("0,1\n1\n", 2, 2),
            ("0,1\n1,0,1\n", 2, 5),
            ("0,1\n1,x\n", 2, 3),
            ("0,1,0\n", 1, 6),
            ("0,1\n1,0\n0,1\n", 3, 1),
            ("1,1\n1,0\n", 1, 1),
            ("0,-1\n-1,0\n", 1, 3),
            ("rate,a,b\na,0,1\nc,1,0\n", 3, 1),
        ] {
            match read(text).unwrap_err() {
                ParseError::Syntax { at, .. } | ParseError::Graph { at, .. } => {
                    assert_eq!(at, Position { line, column }, "{text:?}");
                }
                other => panic!("{text:?}: {other}"),
            }
        }
    }

    #[test]
    fn nan_is_refused() {
        let error = read("0,nan\nnan,0\n").unwrap_err().to_string();
        assert!(error.contains("column 3"), "{error}");
    }
}
