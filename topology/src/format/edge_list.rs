//! Edge list: two node names a line, then what is known of the edge.
//!
//! ```text
//! # anything after a # is ignored
//! alice bob {"rate": 2.5, "latency_ms": 10.0}
//! bob   "carol of the hill"
//! dave
//! ```
//!
//! Parts are separated by spaces, tabs or one comma. A name in double quotes is a JSON string.
//! The attributes are a Python or JSON dictionary, as networkx writes it, or one bare number,
//! the rate. A name alone on its line is a node; a bare whole number alone on the first line is
//! a count of nodes "0", "1", … (decentralizepy), and edges may then name no others.

use super::json::{members_of, quote};
use super::{NumbersAsRates, ParseError, Parsed, Source, set_attribute};
use crate::graph::{Attributes, Topology, TopologyBuilder, TopologyError};

pub(super) fn read(source: &Source<'_>) -> Result<Parsed, ParseError> {
    let mut builder = TopologyBuilder::new();
    let mut as_rates = NumbersAsRates::No;
    let mut counted = false;
    let mut line_start = 0;
    for raw in source.content.split_inclusive('\n') {
        let mut line = Line { source, rest: raw.trim_end(), offset: line_start };
        line_start += raw.len();
        let Some(first) = line.name()? else { continue };
        let second = line.name()?;
        if second.as_ref().is_some_and(|token| token.name == "->" && !token.quoted) {
            return Err(source.directed(line.offset));
        }
        let Some(second) = second else {
            let count = first.name.parse::<usize>();
            if let (0, false, false, Ok(count)) =
                (builder.node_count(), first.quoted, counted, count)
            {
                builder = TopologyBuilder::numbered(count)
                    .map_err(|error| source.refuse(first.offset, error))?;
                counted = true;
            } else {
                builder
                    .add_node(&first.name)
                    .map_err(|error| source.refuse(first.offset, error))?;
            }
            continue;
        };
        let mut node = |token: &Token| match counted {
            true => builder
                .node(&token.name)
                .ok_or(TopologyError::UnknownNode { name: token.name.clone() }),
            false => builder.node_or_add(&token.name),
        };
        let a = node(&first).map_err(|error| source.refuse(first.offset, error))?;
        let b = node(&second).map_err(|error| source.refuse(second.offset, error))?;
        let attributes = line.attributes(&mut as_rates)?;
        builder.add_edge(a, b, attributes).map_err(|error| source.refuse(first.offset, error))?;
    }
    source.finish(builder, as_rates)
}

struct Token {
    name: String,
    quoted: bool,
    offset: usize,
}

/// What is left of a line.
struct Line<'a> {
    source: &'a Source<'a>,
    rest: &'a str,
    offset: usize,
}

impl<'a> Line<'a> {
    fn advance(&mut self, bytes: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(bytes);
        self.rest = rest;
        self.offset += bytes;
        taken
    }

    fn skip_blank(&mut self) {
        let blank = self.rest.len() - self.rest.trim_start().len();
        self.advance(blank);
    }

    /// Blanks, and at most one comma among them.
    fn skip_separator(&mut self) {
        self.skip_blank();
        if self.rest.starts_with(',') {
            self.advance(1);
            self.skip_blank();
        }
    }

    /// The next name, `None` at the end of the line or at a comment.
    fn name(&mut self) -> Result<Option<Token>, ParseError> {
        self.skip_blank();
        let offset = self.offset;
        let token = match self.rest.bytes().next() {
            None | Some(b'#' | b'%') => return Ok(None),
            Some(b'"') => {
                let bytes = self.quoted_len('"')?;
                let text = self.advance(bytes);
                let name = serde_json::from_str(text)
                    .map_err(|_| self.source.expected(offset, "a JSON string"))?;
                Token { name, quoted: true, offset }
            }
            Some(b'{' | b',') => return Err(self.source.expected(offset, "a node name")),
            Some(_) => {
                let end = self.rest.find(|c: char| c.is_whitespace() || is_special(c));
                let name = self.advance(end.unwrap_or(self.rest.len())).to_owned();
                Token { name, quoted: false, offset }
            }
        };
        self.skip_separator();
        Ok(Some(token))
    }

    /// Bytes of the quoted text that begins here, both quotes counted.
    fn quoted_len(&self, quote: char) -> Result<usize, ParseError> {
        let mut escaped = false;
        for (at, c) in self.rest.char_indices().skip(1) {
            match c {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                c if c == quote => return Ok(at + 1),
                _ => {}
            }
        }
        Err(self.source.expected_but(self.offset, format!("a closing {quote}"), "none on the line"))
    }

    /// The rest of the line: nothing, a rate, or a dictionary.
    fn attributes(&mut self, as_rates: &mut NumbersAsRates) -> Result<Attributes, ParseError> {
        let mut attributes = Attributes::default();
        match self.rest.bytes().next() {
            None | Some(b'#' | b'%') => return Ok(attributes),
            Some(b'{') => self.dictionary(&mut attributes)?,
            Some(_) => {
                let at = self.offset;
                let number = self.word();
                let rate = number
                    .parse()
                    .map_err(|_| self.source.expected(at, "a rate or a {…} of attributes"))?;
                *as_rates = NumbersAsRates::Yes;
                attributes.rate = Some(rate);
            }
        }
        self.skip_blank();
        match self.rest.bytes().next() {
            None | Some(b'#' | b'%') => Ok(attributes),
            Some(_) => Err(self.source.expected(self.offset, "the end of the line")),
        }
    }

    fn word(&mut self) -> &'a str {
        let end = self.rest.find(|c: char| c.is_whitespace() || is_special(c));
        self.advance(end.unwrap_or(self.rest.len()))
    }

    /// A flat dictionary; values that are no numbers may only stand at names that mean nothing.
    fn dictionary(&mut self, attributes: &mut Attributes) -> Result<(), ParseError> {
        self.advance(1);
        loop {
            self.skip_blank();
            match self.rest.chars().next() {
                Some('}') => break,
                Some(quote @ ('"' | '\'')) => {
                    let bytes = self.quoted_len(quote)?;
                    let key = &self.advance(bytes)[1..bytes - 1];
                    self.skip_blank();
                    if !self.rest.starts_with(':') {
                        return Err(self.source.expected(self.offset, "a colon"));
                    }
                    self.advance(1);
                    self.skip_blank();
                    let at = self.offset;
                    let value = self.value()?;
                    if value != "None" && value != "null" {
                        set_attribute(attributes, key, value).map_err(|()| {
                            self.source.expected(at, format!("a number for {key}"))
                        })?;
                    }
                }
                _ => return Err(self.source.expected(self.offset, "a quoted key or }")),
            }
            self.skip_blank();
            match self.rest.chars().next() {
                Some(',') => drop(self.advance(1)),
                Some('}') => {}
                _ => return Err(self.source.expected(self.offset, "a comma or }")),
            }
        }
        self.advance(1);
        Ok(())
    }

    fn value(&mut self) -> Result<&'a str, ParseError> {
        let len = match self.rest.chars().next() {
            Some(quote @ ('"' | '\'')) => self.quoted_len(quote)?,
            _ => self.rest.find([',', '}']).unwrap_or(self.rest.len()),
        };
        Ok(self.advance(len).trim())
    }
}

/// Characters that end an unquoted name.
fn is_special(c: char) -> bool {
    matches!(c, ',' | '"' | '{' | '#')
}

pub(super) fn write(topology: &Topology) -> String {
    let names = topology.names();
    let mut text = String::new();
    // Nodes come into being in the order of their first mention; where that is not their order,
    // or a node has no edge, all are named first.
    let mut mentioned = topology.edges().iter().flat_map(|edge| [edge.a, edge.b]);
    let mut next = 0;
    let in_order = mentioned.all(|node| {
        next += usize::from(node == next);
        node < next
    });
    if !in_order || next < names.len() {
        for (i, name) in names.iter().enumerate() {
            // A whole number on the first line would be a count.
            let bare = is_bare(name) && !(i == 0 && name.parse::<usize>().is_ok());
            text += &if bare { (*name).to_owned() } else { quote(name) };
            text.push('\n');
        }
    }
    let written = |i: usize| if is_bare(names[i]) { names[i].to_owned() } else { quote(names[i]) };
    for edge in topology.edges() {
        text += &format!("{} {}", written(edge.a), written(edge.b));
        if !edge.attributes().is_empty() {
            text += &format!(" {{{}}}", members_of(edge.attributes()));
        }
        text.push('\n');
    }
    text
}

/// Whether the name stands for itself, and does not make the file look like another format.
fn is_bare(name: &str) -> bool {
    !["->", "graph", "digraph", "strict"].iter().any(|word| name.eq_ignore_ascii_case(word))
        && !name.starts_with(['%', '<', '>', '[', '\u{FEFF}'])
        && !name.contains(|c: char| c.is_whitespace() || is_special(c))
}

#[cfg(test)]
mod tests {
    use super::super::{Format, Position, parse};
    use super::*;

    fn read(content: &str) -> Result<Parsed, ParseError> {
        parse(content, Some(Format::EdgeList))
    }

    #[test]
    fn what_networkx_writes_is_read() {
        let parsed = read("# by hand\n1 2 {'rate': 1.5, 'tag': 'a, b'}\n2 3 {}\n").unwrap();
        assert_eq!(parsed.topology.names(), ["1", "2", "3"]);
        assert_eq!(parsed.topology.edges()[0].rate, Some(1.5));
        assert_eq!(parsed.warnings, []);
    }

    #[test]
    fn count_line_and_both_directions_of_decentralizepy_are_read() {
        let parsed = read("3\n0 1\n1 0\n1 2\n2 1\n").unwrap();
        assert_eq!(parsed.topology.node_count(), 3);
        assert_eq!(parsed.topology.edge_count(), 2);
        assert_eq!(parsed.warnings.len(), 1);
        let ParseError::Graph { at, source, .. } = read("3\n0 1\n1 3\n").unwrap_err() else {
            panic!()
        };
        assert_eq!(at, Position { line: 3, column: 3 });
        assert_eq!(source, TopologyError::UnknownNode { name: "3".into() });
    }

    #[test]
    fn commas_tabs_and_bare_rates_are_read() {
        let parsed = read("a,b,0.5\nb\tc\t2\n").unwrap();
        assert_eq!(parsed.topology.edges()[1].rate, Some(2.0));
    }

    #[test]
    fn faults_have_their_place() {
        for (text, line, column) in [
            ("a b\nc", 0, 0),
            ("a b\na c {'rate': x}\n", 2, 14),
            ("a b\na a\n", 2, 1),
            ("a b nan\n", 1, 1),
            ("a b c d\n", 1, 5),
            ("a b 1 2\n", 1, 7),
            ("a b {'rate' 1}\n", 1, 13),
            ("a \"b\n", 1, 3),
            ("a -> b\n", 1, 6),
        ] {
            match read(text) {
                Ok(_) => assert_eq!(line, 0, "{text:?}"),
                Err(
                    ParseError::Syntax { at, .. }
                    | ParseError::Graph { at, .. }
                    | ParseError::Directed { at, .. },
                ) => assert_eq!(at, Position { line, column }, "{text:?}"),
                Err(other) => panic!("{text:?}: {other}"),
            }
        }
    }
}
