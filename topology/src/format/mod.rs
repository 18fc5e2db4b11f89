//! Graph files: text in, [`Topology`] out, and back.
//!
//! One file per format. Each reader turns hostile text into a topology or into a [`ParseError`]
//! with line, column and what was expected; none recurses, and what is kept in memory is bounded
//! by the text ([`CONTENT_LEN_MAX`]) and by the bounds of a topology. A graph means the same
//! in every format: undirected, no self-loops, repeated edges merged, edge attributes `rate`,
//! `latency_ms` and `loss`; attributes of other names are ignored.
//!
//! | format | names | attributes | reads | writes |
//! |---|---|---|---|---|
//! | petgraph JSON | yes | all | yes | yes |
//! | networkx node-link JSON | yes | all | yes | yes |
//! | GraphML | yes | all | yes | yes |
//! | DOT | yes | all | a subset | yes |
//! | edge list | yes | all | yes | yes |
//! | adjacency CSV | yes | the rate, if every edge has one | yes | yes |
//! | graph6 | no | none | yes | no |

mod adjacency;
mod dot;
mod edge_list;
mod graph6;
mod graphml;
mod json;
mod node_link;
mod petgraph_json;

pub(crate) use graphml::escape_xml;

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::graph::{Attributes, Topology, TopologyBuilder, TopologyError, Warning};

/// A file format; its text form is the name in parentheses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Format {
    /// Serde JSON of a petgraph graph, the native form (`petgraph`).
    PetgraphJson,
    /// networkx node-link data, with `edges` or `links` (`node-link`).
    NodeLinkJson,
    /// GraphML as networkx, igraph and Gephi write it (`graphml`).
    GraphMl,
    /// A subset of Graphviz DOT (`dot`).
    Dot,
    /// Two nodes a line (`edge-list`).
    EdgeList,
    /// A symmetric matrix (`adjacency`).
    AdjacencyCsv,
    /// One line of printable characters, read only (`graph6`).
    Graph6,
}

/// A topology read from a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    /// What the file means.
    pub topology: Topology,
    /// The format it was read as.
    pub format: Format,
    /// What was repaired or guessed.
    pub warnings: Vec<Warning>,
}

/// Reads a graph, in the given format or in the one its content shows.
///
/// The two JSON formats share a suffix, so each is accepted where the other is named.
///
/// # Errors
///
/// Text that is not of the format, or a graph that is no topology. The topology may still be
/// disconnected, see [`Topology::require_connected`].
///
/// ```
/// use rumormill_topology::format::{Format, parse};
///
/// let parsed = parse("alice bob {\"rate\": 2.0}\nbob carol\n", None).unwrap();
/// assert_eq!(parsed.format, Format::EdgeList);
/// assert_eq!(parsed.topology.names(), ["alice", "bob", "carol"]);
/// assert_eq!(parsed.topology.edges()[0].rate, Some(2.0));
/// ```
pub fn parse(content: &str, format: Option<Format>) -> Result<Parsed, ParseError> {
    if content.len() > CONTENT_LEN_MAX {
        return Err(ParseError::TooLong { len: content.len(), max: CONTENT_LEN_MAX });
    }
    let content = content.strip_prefix('\u{FEFF}').unwrap_or(content);
    let shown = detect(content);
    let Some(declared) = format else {
        return read(content, shown.ok_or(ParseError::Unrecognized)?);
    };
    if declared.is_json() && shown.is_some_and(Format::is_json) {
        return read(content, shown.unwrap_or(declared));
    }
    match shown {
        Some(shown) if shown != declared && shown.is_unmistakable(content) => {
            Err(ParseError::WrongFormat { declared, shown })
        }
        Some(shown) if shown != declared => read(content, declared).map_err(|error| {
            // The content only looked like another format; it is one if it can be read so.
            match read(content, shown) {
                Ok(parsed) if parsed.topology.edge_count() > 0 => {
                    ParseError::WrongFormat { declared, shown }
                }
                _ => error,
            }
        }),
        _ => read(content, declared),
    }
}

fn read(content: &str, format: Format) -> Result<Parsed, ParseError> {
    let source = Source { format, content };
    match format {
        Format::PetgraphJson => petgraph_json::read(&source),
        Format::NodeLinkJson => node_link::read(&source),
        Format::GraphMl => graphml::read(&source),
        Format::Dot => dot::read(&source),
        Format::EdgeList => edge_list::read(&source),
        Format::AdjacencyCsv => adjacency::read(&source),
        Format::Graph6 => graph6::read(&source),
    }
}

/// The graph as text of this format, ending in a newline.
///
/// # Errors
///
/// [`WriteError`] for graph6, which can hold neither names nor rates and is read only.
pub fn write(topology: &Topology, format: Format) -> Result<String, WriteError> {
    match format {
        Format::PetgraphJson => Ok(petgraph_json::write(topology)),
        Format::NodeLinkJson => Ok(node_link::write(topology)),
        Format::GraphMl => Ok(graphml::write(topology)),
        Format::Dot => Ok(dot::write(topology)),
        Format::EdgeList => Ok(edge_list::write(topology)),
        Format::AdjacencyCsv => Ok(adjacency::write(topology)),
        Format::Graph6 => Err(WriteError),
    }
}

/// The format the text looks like, if any. Looking is quick and does not check the whole.
pub fn detect(content: &str) -> Option<Format> {
    let content = content.trim_start_matches('\u{FEFF}').trim_start();
    match content.as_bytes().first()? {
        b'{' => Some(json::detect(content)),
        b'<' => Some(Format::GraphMl),
        _ if content.starts_with(graph6::HEADER) => Some(Format::Graph6),
        _ if dot::detect(content) => Some(Format::Dot),
        _ if graph6::detect(content) => Some(Format::Graph6),
        _ if adjacency::detect(content) => Some(Format::AdjacencyCsv),
        b'[' => None,
        _ => Some(Format::EdgeList),
    }
}

impl Format {
    /// All formats, in the order of their declaration.
    pub const ALL: [Self; 7] = [
        Self::PetgraphJson,
        Self::NodeLinkJson,
        Self::GraphMl,
        Self::Dot,
        Self::EdgeList,
        Self::AdjacencyCsv,
        Self::Graph6,
    ];

    /// The name by which a person asks for the format.
    pub fn name(self) -> &'static str {
        match self {
            Self::PetgraphJson => "petgraph",
            Self::NodeLinkJson => "node-link",
            Self::GraphMl => "graphml",
            Self::Dot => "dot",
            Self::EdgeList => "edge-list",
            Self::AdjacencyCsv => "adjacency",
            Self::Graph6 => "graph6",
        }
    }

    /// The format that a path's suffix says, in either case: `.json` petgraph,
    /// `.nodelink.json` (or `.node-link.json`, `.nx.json`) networkx, `.graphml` or `.xml`,
    /// `.dot` or `.gv`, `.edges`, `.edgelist`, `.el` or `.txt`, `.csv` or `.adj`, `.g6` or
    /// `.graph6`.
    pub fn from_path_suffix(path: &str) -> Option<Self> {
        let path = path.to_ascii_lowercase();
        let suffixes: [(&[&str], Self); 7] = [
            (&[".nodelink.json", ".node-link.json", ".nx.json"], Self::NodeLinkJson),
            (&[".json"], Self::PetgraphJson),
            (&[".graphml", ".xml"], Self::GraphMl),
            (&[".dot", ".gv"], Self::Dot),
            (&[".edges", ".edgelist", ".el", ".txt"], Self::EdgeList),
            (&[".csv", ".adj"], Self::AdjacencyCsv),
            (&[".g6", ".graph6"], Self::Graph6),
        ];
        let found = suffixes.iter().find(|(ends, _)| ends.iter().any(|end| path.ends_with(end)));
        found.map(|&(_, format)| format)
    }

    fn is_json(self) -> bool {
        matches!(self, Self::PetgraphJson | Self::NodeLinkJson)
    }

    /// Whether the first characters, which [`detect`] took for this format, cannot begin a file
    /// of another one.
    fn is_unmistakable(self, content: &str) -> bool {
        match self {
            Self::PetgraphJson | Self::NodeLinkJson | Self::GraphMl | Self::Dot => true,
            Self::Graph6 => content.trim_start().starts_with(graph6::HEADER),
            Self::EdgeList | Self::AdjacencyCsv => false,
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(name: &str) -> Result<Self, UnknownFormat> {
        Self::ALL
            .into_iter()
            .find(|format| format.name() == name)
            .ok_or_else(|| UnknownFormat { name: name.to_owned() })
    }
}

/// A name that is no format.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "no format is called {name:?}; expected petgraph, node-link, graphml, dot, edge-list, \
     adjacency or graph6"
)]
pub struct UnknownFormat {
    /// What came.
    pub name: String,
}

/// The format cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("graph6 is read only: it holds no names and no rates; write edge-list or petgraph")]
pub struct WriteError;

/// A place in a text, both counted from 1, the column in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The character in the line.
    pub column: usize,
}

impl Position {
    /// The position of a byte offset; past the end it is the end.
    pub fn at(content: &str, offset: usize) -> Self {
        let mut offset = offset.min(content.len());
        while !content.is_char_boundary(offset) {
            offset -= 1;
        }
        let before = &content[..offset];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Self {
            line: 1 + before.bytes().filter(|&byte| byte == b'\n').count(),
            column: 1 + before[line_start..].chars().count(),
        }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

/// Why a text is no topology.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum ParseError {
    /// The text breaks off from its format.
    #[error("{at}: expected {expected}, found {found}")]
    Syntax {
        /// The format it was read as.
        format: Format,
        /// Where.
        at: Position,
        /// What would have been right.
        expected: String,
        /// What was there.
        found: String,
    },
    /// The text is of the format, but its graph is no topology.
    #[error("{at}: {source}")]
    Graph {
        /// The format it was read as.
        format: Format,
        /// Where.
        at: Position,
        /// Which rule is broken.
        source: TopologyError,
    },
    /// The edges have a direction.
    #[error(
        "{at}: the graph is directed, but exchanges go both ways; save it as an undirected graph"
    )]
    Directed {
        /// The format it was read as.
        format: Format,
        /// Where it says so.
        at: Position,
    },
    /// The content is of another format than declared.
    #[error(
        "expected {declared}, but the content is {shown}; rename the file or name the format \
         {shown}"
    )]
    WrongFormat {
        /// The format named by the suffix or by the person.
        declared: Format,
        /// The format the content has.
        shown: Format,
    },
    /// The content is of no known format.
    #[error(
        "no known graph format; expected petgraph or node-link JSON, GraphML, DOT, an edge list, \
         an adjacency matrix or graph6"
    )]
    Unrecognized,
    /// More text than [`CONTENT_LEN_MAX`].
    #[error("{len} bytes of text; at most {max} are read, use a sparser format")]
    TooLong {
        /// Bytes of the text.
        len: usize,
        /// The bound.
        max: usize,
    },
}

/// The longest text that is read, in bytes: the largest allowed graph fits as JSON, and a matrix
/// of 20,000 nodes as CSV.
pub const CONTENT_LEN_MAX: usize = 1 << 30;

/// The text being read, for the places in its errors.
struct Source<'a> {
    format: Format,
    content: &'a str,
}

impl Source<'_> {
    fn expected(&self, offset: usize, expected: impl Into<String>) -> ParseError {
        self.expected_but(offset, expected, snippet(self.content, offset))
    }

    fn expected_but(
        &self,
        offset: usize,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> ParseError {
        ParseError::Syntax {
            format: self.format,
            at: Position::at(self.content, offset),
            expected: expected.into(),
            found: found.into(),
        }
    }

    fn refuse(&self, offset: usize, source: TopologyError) -> ParseError {
        ParseError::Graph { format: self.format, at: Position::at(self.content, offset), source }
    }

    fn directed(&self, offset: usize) -> ParseError {
        ParseError::Directed { format: self.format, at: Position::at(self.content, offset) }
    }

    fn finish(
        &self,
        builder: TopologyBuilder,
        rates: NumbersAsRates,
    ) -> Result<Parsed, ParseError> {
        let (topology, mut warnings) =
            builder.finish().map_err(|error| self.refuse(self.content.len(), error))?;
        if rates == NumbersAsRates::Yes {
            warnings.push(Warning::NumbersReadAsRates);
        }
        Ok(Parsed { topology, format: self.format, warnings })
    }
}

/// Whether a bare number at an edge was taken for its rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NumbersAsRates {
    No,
    Yes,
}

/// The first characters at an offset, in quotes.
fn snippet(content: &str, offset: usize) -> String {
    match content.get(offset..) {
        None | Some("") => "the end of the file".to_owned(),
        Some(rest) if rest.starts_with(['\n', '\r']) => "the end of the line".to_owned(),
        Some(rest) => {
            let line = rest.split(['\n', '\r']).next().unwrap_or_default();
            let mut shown: String = line.chars().take(SNIPPET_LEN).collect();
            if line.chars().nth(SNIPPET_LEN).is_some() {
                shown.push('…');
            }
            format!("{shown:?}")
        }
    }
}

const SNIPPET_LEN: usize = 24;

/// Sets the attribute of this name; names that mean nothing here are ignored.
fn set_attribute(attributes: &mut Attributes, name: &str, text: &str) -> Result<(), ()> {
    if let Some(field) = attributes.field(name) {
        *field = Some(text.trim().parse().map_err(drop)?);
    }
    Ok(())
}
