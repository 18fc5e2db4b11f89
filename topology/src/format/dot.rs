//! A subset of Graphviz DOT: `graph`, node and edge statements with attributes, chains
//! `a -- b -- c`, flat groups `a -- {b c}`, `edge [rate=2]` defaults, and subgraphs, whose
//! content counts as the graph's. Ports are ignored. In a quoted name `\"` is a quote and
//! `\\` one backslash (Graphviz itself keeps both). Directed graphs are refused.

use super::{NumbersAsRates, ParseError, Parsed, Source, set_attribute};
use crate::graph::{Attributes, Topology, TopologyBuilder};

pub(super) fn detect(content: &str) -> bool {
    let mut lexer = Lexer { content, at: 0 };
    let mut word = || lexer.next().ok().map(|token| token.kind);
    let is_graph = |kind: &Option<Kind>| {
        matches!(kind, Some(Kind::Id(id)) if id.eq_ignore_ascii_case("graph")
            || id.eq_ignore_ascii_case("digraph"))
    };
    let mut first = word();
    if matches!(&first, Some(Kind::Id(id)) if id.eq_ignore_ascii_case("strict")) {
        first = word();
    }
    // "graph" could be the name of a node in an edge list; a brace follows only here.
    is_graph(&first)
        && match word() {
            Some(Kind::Open) => true,
            Some(Kind::Id(_) | Kind::Quoted(_)) => word() == Some(Kind::Open),
            _ => false,
        }
}

pub(super) fn read(source: &Source<'_>) -> Result<Parsed, ParseError> {
    let lexer = Lexer { content: source.content, at: 0 };
    let mut parser = Parser::new(source, lexer)?;
    parser.header()?;
    parser.statements()?;
    source.finish(parser.builder, NumbersAsRates::No)
}

#[derive(Debug, Clone, PartialEq)]
enum Kind {
    Id(String),
    Quoted(String),
    Open,
    Close,
    OpenList,
    CloseList,
    Equals,
    Colon,
    /// A comma or semicolon.
    Separator,
    Line,
    Arrow,
    End,
}

#[derive(Debug, Clone)]
struct Token {
    kind: Kind,
    at: usize,
}

struct Lexer<'a> {
    content: &'a str,
    at: usize,
}

/// Where and what should have been there.
type Fault = (usize, &'static str);

impl Lexer<'_> {
    fn next(&mut self) -> Result<Token, Fault> {
        self.skip_blank()?;
        let at = self.at;
        let rest = &self.content[at..];
        let (kind, len) = match rest.chars().next() {
            None => (Kind::End, 0),
            Some('{') => (Kind::Open, 1),
            Some('}') => (Kind::Close, 1),
            Some('[') => (Kind::OpenList, 1),
            Some(']') => (Kind::CloseList, 1),
            Some('=') => (Kind::Equals, 1),
            Some(':') => (Kind::Colon, 1),
            Some(',' | ';') => (Kind::Separator, 1),
            Some('"') => quoted(rest, at)?,
            Some('<') => (Kind::Quoted(String::new()), markup_len(rest, at)?),
            Some('-') if rest.starts_with("--") => (Kind::Line, 2),
            Some('-') if rest.starts_with("->") => (Kind::Arrow, 2),
            Some(c) if is_word(c) || c == '-' => {
                // A minus may begin a number, but stands nowhere else in a name.
                let mut rest_of_name = rest.char_indices().skip(1);
                let end = rest_of_name.find(|&(_, c)| !is_word(c));
                let end = end.map_or(rest.len(), |(end, _)| end);
                (Kind::Id(rest[..end].to_owned()), end)
            }
            Some(_) => return Err((at, "a name, a brace, a bracket or an edge")),
        };
        self.at += len;
        Ok(Token { kind, at })
    }

    fn skip_blank(&mut self) -> Result<(), Fault> {
        loop {
            let rest = &self.content[self.at..];
            let trimmed = rest.trim_start();
            self.at += rest.len() - trimmed.len();
            let at_line_start = self.content[..self.at].ends_with('\n') || self.at == 0;
            if trimmed.starts_with("//") || (trimmed.starts_with('#') && at_line_start) {
                self.at += trimmed.find('\n').unwrap_or(trimmed.len());
            } else if let Some(comment) = trimmed.strip_prefix("/*") {
                let end = comment.find("*/").ok_or((self.at, "a closing */"))?;
                self.at += end + 4;
            } else {
                return Ok(());
            }
        }
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == '.' || (!c.is_ascii() && !c.is_whitespace())
}

fn quoted(rest: &str, at: usize) -> Result<(Kind, usize), Fault> {
    let mut text = String::new();
    let mut chars = rest.char_indices().skip(1);
    while let Some((index, c)) = chars.next() {
        match c {
            '"' => return Ok((Kind::Quoted(text), index + 1)),
            '\\' => match chars.next() {
                Some((_, escaped @ ('"' | '\\'))) => text.push(escaped),
                Some((_, '\n')) => {}
                Some((_, other)) => text.extend(['\\', other]),
                None => break,
            },
            _ => text.push(c),
        }
    }
    Err((at, "a closing quote"))
}

/// Bytes of an HTML-like label with balanced angle brackets.
fn markup_len(rest: &str, at: usize) -> Result<usize, Fault> {
    let mut depth = 0;
    for (index, byte) in rest.bytes().enumerate() {
        match byte {
            b'<' => depth += 1,
            b'>' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Ok(index + 1);
        }
    }
    Err((at, "a closing >"))
}

struct Parser<'a> {
    source: &'a Source<'a>,
    lexer: Lexer<'a>,
    token: Token,
    builder: TopologyBuilder,
    /// The edge defaults of the graph and of each subgraph that is open.
    defaults: Vec<Attributes>,
}

impl<'a> Parser<'a> {
    fn new(source: &'a Source<'a>, mut lexer: Lexer<'a>) -> Result<Self, ParseError> {
        let token = lexer.next().map_err(|(at, expected)| source.expected(at, expected))?;
        let builder = TopologyBuilder::new();
        Ok(Self { source, lexer, token, builder, defaults: vec![Attributes::default()] })
    }

    /// Takes the current token.
    fn take(&mut self) -> Result<Token, ParseError> {
        let next =
            self.lexer.next().map_err(|(at, expected)| self.source.expected(at, expected))?;
        Ok(std::mem::replace(&mut self.token, next))
    }

    fn take_if(&mut self, kind: &Kind) -> Result<bool, ParseError> {
        let matches = self.token.kind == *kind;
        if matches {
            self.take()?;
        }
        Ok(matches)
    }

    fn require(&mut self, kind: &Kind, expected: &str) -> Result<(), ParseError> {
        match self.take_if(kind)? {
            true => Ok(()),
            false => Err(self.source.expected(self.token.at, expected)),
        }
    }

    /// Whether the current token is this word, not in quotes, in either case.
    fn at_word(&self, word: &str) -> bool {
        matches!(&self.token.kind, Kind::Id(id) if id.eq_ignore_ascii_case(word))
    }

    fn text(&mut self, expected: &str) -> Result<(String, usize), ParseError> {
        if !matches!(self.token.kind, Kind::Id(_) | Kind::Quoted(_)) {
            return Err(self.source.expected(self.token.at, expected));
        }
        let Token { kind: Kind::Id(text) | Kind::Quoted(text), at } = self.take()? else {
            unreachable!("the token was checked above");
        };
        Ok((text, at))
    }

    fn header(&mut self) -> Result<(), ParseError> {
        if self.at_word("strict") {
            self.take()?;
        }
        if self.at_word("digraph") {
            return Err(self.source.directed(self.token.at));
        }
        if !self.at_word("graph") {
            return Err(self.source.expected(self.token.at, "graph"));
        }
        self.take()?;
        if matches!(self.token.kind, Kind::Id(_) | Kind::Quoted(_)) {
            self.take()?;
        }
        self.require(&Kind::Open, "{")
    }

    /// All statements to the end of the text. Open subgraphs are the stack of defaults.
    fn statements(&mut self) -> Result<(), ParseError> {
        loop {
            match &self.token.kind {
                Kind::Separator => drop(self.take()?),
                Kind::Open => self.open_subgraph()?,
                Kind::Close => {
                    self.take()?;
                    self.defaults.pop();
                    if self.defaults.is_empty() {
                        return self.require(&Kind::End, "the end of the file");
                    }
                    if matches!(self.token.kind, Kind::Line | Kind::Arrow) {
                        let at = self.token.at;
                        let expected = "a subgraph on the right of an edge, or a flat group {…}";
                        return Err(self.source.expected(at, expected));
                    }
                }
                Kind::Id(_) if self.at_word("subgraph") => {
                    self.take()?;
                    if matches!(self.token.kind, Kind::Id(_) | Kind::Quoted(_)) {
                        self.take()?;
                    }
                    self.open_subgraph()?;
                }
                Kind::Id(_) if self.at_word("graph") || self.at_word("node") => {
                    self.take()?;
                    self.lists(&mut Attributes::default())?;
                }
                Kind::Id(_) if self.at_word("edge") => {
                    self.take()?;
                    let mut defaults = self.default();
                    self.lists(&mut defaults)?;
                    *self.defaults.last_mut().expect("the graph itself is open") = defaults;
                }
                Kind::Id(_) | Kind::Quoted(_) => self.node_or_edges()?,
                _ => return Err(self.source.expected(self.token.at, "a statement or }")),
            }
        }
    }

    fn default(&self) -> Attributes {
        *self.defaults.last().expect("the graph itself is open")
    }

    fn open_subgraph(&mut self) -> Result<(), ParseError> {
        self.require(&Kind::Open, "{")?;
        if self.defaults.len() == DEPTH_MAX {
            let expected = format!("at most {DEPTH_MAX} nested subgraphs");
            return Err(self.source.expected(self.token.at, expected));
        }
        self.defaults.push(self.default());
        Ok(())
    }

    /// `a`, `a [x=1]`, `a -- b -- {c d} [rate=2]`, or `name = value` of the graph.
    fn node_or_edges(&mut self) -> Result<(), ParseError> {
        let (name, at) = self.text("a node name")?;
        if self.take_if(&Kind::Equals)? {
            self.text("a value")?;
            return Ok(());
        }
        let mut group = vec![self.node(&name, at)?];
        let mut edges = Vec::new();
        while matches!(self.token.kind, Kind::Line | Kind::Arrow) {
            let dash = self.take()?;
            if dash.kind == Kind::Arrow {
                return Err(self.source.directed(dash.at));
            }
            let next = self.group()?;
            for &a in &group {
                edges.extend(next.iter().map(|&b| (a, b, dash.at)));
                if edges.len() > crate::graph::EDGES_MAX {
                    let max = crate::graph::EDGES_MAX;
                    let error = crate::graph::TopologyError::TooManyEdges { max };
                    return Err(self.source.refuse(dash.at, error));
                }
            }
            group = next;
        }
        let mut attributes = if edges.is_empty() { Attributes::default() } else { self.default() };
        let is_node = edges.is_empty();
        self.lists_of(&mut attributes, is_node)?;
        for (a, b, at) in edges {
            self.builder
                .add_edge(a, b, attributes)
                .map_err(|error| self.source.refuse(at, error))?;
        }
        Ok(())
    }

    fn node(&mut self, name: &str, at: usize) -> Result<usize, ParseError> {
        while self.take_if(&Kind::Colon)? {
            self.text("a port")?;
        }
        self.builder.node_or_add(name).map_err(|error| self.source.refuse(at, error))
    }

    /// A node, or a flat group of nodes.
    fn group(&mut self) -> Result<Vec<usize>, ParseError> {
        if self.at_word("subgraph") {
            self.take()?;
            if !matches!(self.token.kind, Kind::Open) {
                self.text("the name of a subgraph or {")?;
            }
        } else if self.token.kind != Kind::Open {
            let (name, at) = self.text("a node name or {")?;
            return Ok(vec![self.node(&name, at)?]);
        }
        self.require(&Kind::Open, "{")?;
        let mut group = Vec::new();
        while !self.take_if(&Kind::Close)? {
            if !self.take_if(&Kind::Separator)? {
                let (name, at) = self.text("a node name or }")?;
                group.push(self.node(&name, at)?);
            }
        }
        Ok(group)
    }

    fn lists(&mut self, attributes: &mut Attributes) -> Result<(), ParseError> {
        self.lists_of(attributes, false)
    }

    /// Attribute lists `[a=1, b=2][c=3]`, of an edge or of a node, whose values mean nothing.
    fn lists_of(&mut self, attributes: &mut Attributes, is_node: bool) -> Result<(), ParseError> {
        while self.take_if(&Kind::OpenList)? {
            while !self.take_if(&Kind::CloseList)? {
                let (name, _) = self.text("an attribute or ]")?;
                if self.take_if(&Kind::Equals)? {
                    let (value, at) = self.text("a value")?;
                    if !is_node {
                        set_attribute(attributes, &name, &value).map_err(|()| {
                            self.source.expected(at, format!("a number for {name}"))
                        })?;
                    }
                }
                self.take_if(&Kind::Separator)?;
            }
        }
        Ok(())
    }
}

/// Subgraphs within subgraphs; far more than a person writes.
const DEPTH_MAX: usize = 100;

pub(super) fn write(topology: &Topology) -> String {
    let mut text = String::from("graph {\n");
    let names: Vec<_> = topology.names().into_iter().map(quote).collect();
    for name in &names {
        text += &format!("  {name};\n");
    }
    for edge in topology.edges() {
        text += &format!("  {} -- {}", names[edge.a], names[edge.b]);
        let known: Vec<_> = edge
            .attributes()
            .known()
            .map(|(name, value)| match format!("{value:?}") {
                // DOT knows no exponents outside of quotes.
                value if value.contains('e') => format!("{name}=\"{value}\""),
                value => format!("{name}={value}"),
            })
            .collect();
        if !known.is_empty() {
            text += &format!(" [{}]", known.join(", "));
        }
        text += ";\n";
    }
    text + "}\n"
}

fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::super::{Format, Position, parse};
    use super::*;

    fn ends(topology: &Topology) -> Vec<(usize, usize)> {
        topology.edges().iter().map(|edge| (edge.a, edge.b)).collect()
    }

    #[test]
    fn chains_groups_defaults_and_subgraphs_are_read() {
        let text = r#"
            // a comment
            strict graph "G" {
              rankdir = LR; node [shape=box]
              edge [rate=2]
              a -- b -- c:n [latency_ms=5.5];
              c -- {d, "e \"f\""} [rate="3", label=<b<i>>];
              subgraph cluster_x { edge [rate=4] d -- g }
              g -- a /* default again */
              -1.5
            }"#;
        let parsed = parse(text, None).unwrap();
        assert_eq!(parsed.format, Format::Dot);
        let topology = &parsed.topology;
        assert_eq!(topology.names(), ["a", "b", "c", "d", "e \"f\"", "g", "-1.5"]);
        assert_eq!(ends(topology), [(0, 1), (0, 5), (1, 2), (2, 3), (2, 4), (3, 5)]);
        let rates: Vec<_> = topology.edges().iter().map(|edge| edge.rate.unwrap()).collect();
        assert_eq!(rates, [2.0, 2.0, 2.0, 3.0, 3.0, 4.0]);
        assert_eq!(topology.edges()[0].latency_ms, Some(5.5));
    }

    #[test]
    fn faults_have_their_place() {
        for (text, column) in [
            ("digraph { a -> b }", 1),
            ("graph { a -> b }", 11),
            ("graph { a -- a }", 11),
            ("graph { a -- }", 14),
            ("graph { a -- b [rate=x] }", 22),
            ("graph { a -- b [rate=nan] }", 11),
            ("graph { a -- b", 15),
            ("graph { \"a", 9),
            ("graph { a } b", 13),
            ("graph { a /* }", 11),
            ("graph { {a b} -- c }", 15),
        ] {
            match parse(text, Some(Format::Dot)).unwrap_err() {
                ParseError::Syntax { at, .. }
                | ParseError::Graph { at, .. }
                | ParseError::Directed { at, .. } => {
                    assert_eq!(at, Position { line: 1, column }, "{text:?}");
                }
                other => panic!("{text:?}: {other}"),
            }
        }
    }

    #[test]
    fn deep_nesting_is_refused() {
        let text = format!("graph {}", "{".repeat(100_000));
        let error = parse(&text, Some(Format::Dot)).unwrap_err().to_string();
        assert!(error.contains("nested"), "{error}");
    }
}
