//! The graph itself: an undirected simple graph with named nodes and rated edges, and the
//! builder through which every file reader and every family makes one.
//!
//! All rules of what a topology may be live here, so that a [`Topology`] in hand is always
//! valid. Whether it is connected is a separate question ([`Topology::require_connected`]),
//! because a person may want to look at a graph that is not.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use petgraph::graph::{NodeIndex, UnGraph};
use serde::Serialize;
use thiserror::Error;

/// An undirected simple graph: at least one node, no self-loop, no parallel edges.
///
/// Nodes are numbered from 0 in the order in which they were added; towards people they are
/// known by their names, which are unique. Edges are sorted by their two ends.
#[derive(Debug, Clone)]
pub struct Topology {
    /// Edge `k` of the graph is `edges[k]`.
    graph: UnGraph<String, Attributes>,
    /// Sorted by `(a, b)`, `a < b`, no pair twice, attributes within their ranges.
    edges: Vec<Edge>,
}

/// An edge between the nodes `a < b`, with what is known of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Edge {
    /// The lower end.
    pub a: usize,
    /// The upper end.
    pub b: usize,
    /// Exchanges a second on this edge; finite and positive.
    pub rate: Option<f64>,
    /// One-way delay in milliseconds; finite and not negative.
    pub latency_ms: Option<f64>,
    /// Part of the exchanges that is lost, from 0 to 1.
    pub loss: Option<f64>,
}

/// What may be known of an edge; the ranges are those of [`Edge`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Attributes {
    /// Exchanges a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
    /// One-way delay in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<f64>,
    /// Part of the exchanges that is lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
}

impl Topology {
    /// A topology of nodes named by their numbers and edges without attributes.
    ///
    /// # Errors
    ///
    /// The first edge or bound that breaks a rule of [`TopologyBuilder`].
    ///
    /// ```
    /// let square =
    ///     rumormill_topology::Topology::from_edges(4, [(0, 1), (1, 2), (2, 3), (3, 0)]).unwrap();
    /// assert_eq!(square.neighbors(0), [1, 3]);
    /// ```
    pub fn from_edges(
        nodes: usize,
        edges: impl IntoIterator<Item = (usize, usize)>,
    ) -> Result<Self, TopologyError> {
        let mut builder = TopologyBuilder::numbered(nodes)?;
        for (a, b) in edges {
            builder.add_edge(a, b, Attributes::default())?;
        }
        builder.finish().map(|(topology, _)| topology)
    }

    /// How many nodes there are, at least one.
    pub fn node_count(&self) -> usize {
        self.graph.node_count()
    }

    /// How many edges there are.
    pub fn edge_count(&self) -> usize {
        self.edges.len()
    }

    /// The names in node order.
    pub fn names(&self) -> Vec<&str> {
        self.graph.raw_nodes().iter().map(|node| node.weight.as_str()).collect()
    }

    /// The name of node `i`.
    ///
    /// # Panics
    ///
    /// If there is no node `i`.
    pub fn name(&self, i: usize) -> &str {
        &self.graph[NodeIndex::new(i)]
    }

    /// The number of the node with this name. Takes time in proportion to the nodes.
    pub fn node(&self, name: &str) -> Option<usize> {
        self.graph.raw_nodes().iter().position(|node| node.weight == name)
    }

    /// The edges, sorted by `(a, b)` with `a < b`.
    pub fn edges(&self) -> &[Edge] {
        &self.edges
    }

    /// The neighbors of node `i` in ascending order; empty if there is no node `i`.
    pub fn neighbors(&self, i: usize) -> Vec<usize> {
        let mut neighbors: Vec<usize> =
            self.graph.neighbors(NodeIndex::new(i)).map(NodeIndex::index).collect();
        neighbors.sort_unstable();
        neighbors
    }

    /// How many neighbors node `i` has.
    pub fn degree(&self, i: usize) -> usize {
        self.graph.neighbors(NodeIndex::new(i)).count()
    }

    /// Whether every node can be reached from every other.
    pub fn is_connected(&self) -> bool {
        self.require_connected().is_ok()
    }

    /// Checks that every node can be reached from the first.
    ///
    /// # Errors
    ///
    /// [`TopologyError::Disconnected`] with the first node that cannot be reached.
    pub fn require_connected(&self) -> Result<(), TopologyError> {
        let mut reached = vec![false; self.node_count()];
        let mut queue = VecDeque::from([NodeIndex::new(0)]);
        reached[0] = true;
        let mut count = 1;
        while let Some(node) = queue.pop_front() {
            for neighbor in self.graph.neighbors(node) {
                if !reached[neighbor.index()] {
                    reached[neighbor.index()] = true;
                    count += 1;
                    queue.push_back(neighbor);
                }
            }
        }
        match reached.iter().position(|reached| !reached) {
            None => Ok(()),
            Some(lost) => Err(TopologyError::Disconnected {
                unreachable: self.name(lost).to_owned(),
                from: self.name(0).to_owned(),
                reached: count,
                nodes: self.node_count(),
            }),
        }
    }

    /// The same graph with `rates[k]` as the rate of edge `k`, in exchanges a second.
    ///
    /// # Errors
    ///
    /// A rate that is not finite and positive.
    ///
    /// # Panics
    ///
    /// If there are not as many rates as edges.
    pub fn with_rates(&self, rates: &[f64]) -> Result<Self, TopologyError> {
        assert_eq!(rates.len(), self.edges.len(), "one rate for every edge");
        let mut rated = self.clone();
        for (edge, &rate) in rated.edges.iter_mut().zip(rates) {
            edge.rate = Some(rate);
            check_attributes(self.name(edge.a), self.name(edge.b), edge.attributes())?;
        }
        for (weight, edge) in rated.graph.edge_weights_mut().zip(&rated.edges) {
            *weight = edge.attributes();
        }
        Ok(rated)
    }

    /// The underlying petgraph graph: names at the nodes, edge `k` is [`Topology::edges`]`[k]`.
    pub fn as_petgraph(&self) -> &UnGraph<String, Attributes> {
        &self.graph
    }

    /// Neighbors and edge numbers of all nodes, each list in ascending order.
    pub(crate) fn adjacency(&self) -> Vec<Vec<(usize, usize)>> {
        let mut lists = vec![Vec::new(); self.node_count()];
        for (k, edge) in self.edges.iter().enumerate() {
            lists[edge.a].push((edge.b, k));
            lists[edge.b].push((edge.a, k));
        }
        lists.iter_mut().for_each(|list| list.sort_unstable());
        lists
    }
}

/// Equal names in the same order and equal edges.
impl PartialEq for Topology {
    fn eq(&self, other: &Self) -> bool {
        self.edges == other.edges && self.names() == other.names()
    }
}

impl Edge {
    /// What is known of the edge, without its ends.
    pub fn attributes(&self) -> Attributes {
        Attributes { rate: self.rate, latency_ms: self.latency_ms, loss: self.loss }
    }
}

impl Attributes {
    /// Whether nothing is known of the edge.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The attributes that are known, with the names they have in every file format.
    pub fn known(&self) -> impl Iterator<Item = (&'static str, f64)> {
        [("rate", self.rate), ("latency_ms", self.latency_ms), ("loss", self.loss)]
            .into_iter()
            .filter_map(|(name, value)| value.map(|value| (name, value)))
    }

    /// The field of this name, or `None` for a name that means nothing here.
    pub(crate) fn field(&mut self, name: &str) -> Option<&mut Option<f64>> {
        match name {
            "rate" => Some(&mut self.rate),
            "latency_ms" => Some(&mut self.latency_ms),
            "loss" => Some(&mut self.loss),
            _ => None,
        }
    }
}

/// Collects nodes and edges in any order and checks each as it comes.
///
/// Names are unique, not empty, free of control characters, at most [`NAME_LEN_MAX`] bytes.
/// Self-loops are refused. An edge that comes twice, in either direction, is merged with a
/// warning; where both name an attribute, the values must agree. Bounds: [`NODES_MAX`],
/// [`EDGES_MAX`].
#[derive(Debug, Default)]
pub struct TopologyBuilder {
    names: Vec<String>,
    indices: BTreeMap<String, usize>,
    edges: BTreeMap<(usize, usize), Attributes>,
    merged: Option<Merged>,
}

#[derive(Debug)]
struct Merged {
    first: (usize, usize),
    count: usize,
}

impl TopologyBuilder {
    /// An empty graph to add to.
    pub fn new() -> Self {
        Self::default()
    }

    /// A graph of `nodes` nodes named "0", "1", … and no edges yet.
    ///
    /// # Errors
    ///
    /// [`TopologyError::TooManyNodes`].
    pub fn numbered(nodes: usize) -> Result<Self, TopologyError> {
        if nodes > NODES_MAX {
            return Err(TopologyError::TooManyNodes { max: NODES_MAX });
        }
        let mut builder = Self::new();
        for i in 0..nodes {
            builder.add_node(&i.to_string())?;
        }
        Ok(builder)
    }

    /// How many nodes were added so far.
    pub fn node_count(&self) -> usize {
        self.names.len()
    }

    /// The name of node `i`, if it was added.
    pub fn name(&self, i: usize) -> Option<&str> {
        self.names.get(i).map(String::as_str)
    }

    /// The number of the node with this name, if it was added.
    pub fn node(&self, name: &str) -> Option<usize> {
        self.indices.get(name).copied()
    }

    /// Adds a node and returns its number.
    ///
    /// # Errors
    ///
    /// A name that is empty, too long, taken, or holds a control character; too many nodes.
    /// The builder is unchanged then.
    pub fn add_node(&mut self, name: &str) -> Result<usize, TopologyError> {
        if name.is_empty() {
            return Err(TopologyError::EmptyName { index: self.names.len() });
        }
        if name.len() > NAME_LEN_MAX {
            return Err(TopologyError::LongName { len: name.len(), max: NAME_LEN_MAX });
        }
        if let Some(character) = name.chars().find(|&c| is_unspeakable(c)) {
            return Err(TopologyError::NameCharacter { name: name.to_owned(), character });
        }
        if self.indices.contains_key(name) {
            return Err(TopologyError::DuplicateNode { name: name.to_owned() });
        }
        if self.names.len() == NODES_MAX {
            return Err(TopologyError::TooManyNodes { max: NODES_MAX });
        }
        let index = self.names.len();
        self.names.push(name.to_owned());
        self.indices.insert(name.to_owned(), index);
        Ok(index)
    }

    /// The node with this name, added if it is new.
    ///
    /// # Errors
    ///
    /// As [`TopologyBuilder::add_node`].
    pub fn node_or_add(&mut self, name: &str) -> Result<usize, TopologyError> {
        match self.node(name) {
            Some(index) => Ok(index),
            None => self.add_node(name),
        }
    }

    /// Joins two nodes.
    ///
    /// # Errors
    ///
    /// An unknown node, a self-loop, an attribute out of range or in conflict with an earlier
    /// mention of the same edge, too many edges. The builder is unchanged then.
    pub fn add_edge(
        &mut self,
        from: usize,
        to: usize,
        attributes: Attributes,
    ) -> Result<(), TopologyError> {
        let name = |i: usize| {
            self.names
                .get(i)
                .ok_or(TopologyError::UnknownIndex { index: i, nodes: self.names.len() })
        };
        let (name_from, name_to) = (name(from)?, name(to)?);
        if from == to {
            return Err(TopologyError::SelfLoop { name: name_from.clone() });
        }
        check_attributes(name_from, name_to, attributes)?;
        let ends = (from.min(to), from.max(to));
        let attributes = match self.edges.get(&ends) {
            None if self.edges.len() == EDGES_MAX => {
                return Err(TopologyError::TooManyEdges { max: EDGES_MAX });
            }
            None => attributes,
            Some(earlier) => {
                let merged = merge(name_from, name_to, *earlier, attributes)?;
                self.merged.get_or_insert(Merged { first: ends, count: 0 }).count += 1;
                merged
            }
        };
        self.edges.insert(ends, attributes);
        Ok(())
    }

    /// The finished topology and what a person should know about how it was made.
    ///
    /// # Errors
    ///
    /// [`TopologyError::Empty`] if no node was added.
    pub fn finish(self) -> Result<(Topology, Vec<Warning>), TopologyError> {
        if self.names.is_empty() {
            return Err(TopologyError::Empty);
        }
        let warnings = self
            .merged
            .iter()
            .map(|merged| Warning::MergedEdges {
                count: merged.count,
                a: self.names[merged.first.0].clone(),
                b: self.names[merged.first.1].clone(),
            })
            .collect();
        let mut graph = UnGraph::with_capacity(self.names.len(), self.edges.len());
        for name in self.names {
            graph.add_node(name);
        }
        let mut edges = Vec::with_capacity(self.edges.len());
        for ((a, b), attributes) in self.edges {
            graph.add_edge(NodeIndex::new(a), NodeIndex::new(b), attributes);
            let Attributes { rate, latency_ms, loss } = attributes;
            edges.push(Edge { a, b, rate, latency_ms, loss });
        }
        Ok((Topology { graph, edges }, warnings))
    }
}

/// Characters no file format can be trusted to carry: controls, and the two code points that
/// XML forbids.
fn is_unspeakable(c: char) -> bool {
    c.is_control() || c == '\u{FFFE}' || c == '\u{FFFF}'
}

fn check_attributes(a: &str, b: &str, attributes: Attributes) -> Result<(), TopologyError> {
    let out_of_range = |attribute, value, expected| {
        Err(TopologyError::AttributeRange {
            a: a.to_owned(),
            b: b.to_owned(),
            attribute,
            value,
            expected,
        })
    };
    match attributes {
        Attributes { rate: Some(rate), .. } if !(rate.is_finite() && rate > 0.0) => {
            out_of_range("rate", rate, "a finite number above 0, in exchanges a second")
        }
        Attributes { latency_ms: Some(latency), .. }
            if !(latency.is_finite() && latency >= 0.0) =>
        {
            out_of_range("latency_ms", latency, "a finite number of milliseconds, 0 or more")
        }
        Attributes { loss: Some(loss), .. } if !(0.0..=1.0).contains(&loss) => {
            out_of_range("loss", loss, "a probability from 0 to 1")
        }
        _ => Ok(()),
    }
}

fn merge(
    a: &str,
    b: &str,
    earlier: Attributes,
    later: Attributes,
) -> Result<Attributes, TopologyError> {
    let pick = |attribute, first: Option<f64>, second: Option<f64>| match (first, second) {
        (Some(first), Some(second)) if first != second => Err(TopologyError::ConflictingEdge {
            a: a.to_owned(),
            b: b.to_owned(),
            attribute,
            first,
            second,
        }),
        _ => Ok(first.or(second)),
    };
    Ok(Attributes {
        rate: pick("rate", earlier.rate, later.rate)?,
        latency_ms: pick("latency_ms", earlier.latency_ms, later.latency_ms)?,
        loss: pick("loss", earlier.loss, later.loss)?,
    })
}

/// Something about a graph that was repaired or guessed and that a person should know.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Warning {
    /// Edges that came more than once were merged.
    MergedEdges {
        /// How many mentions were superfluous.
        count: usize,
        /// One end of the first such edge.
        a: String,
        /// Its other end.
        b: String,
    },
    /// A bare number at an edge was read as its rate.
    NumbersReadAsRates,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MergedEdges { count: 1, a, b } => {
                write!(f, "the edge {a:?} – {b:?} is listed twice; the two are one edge here")
            }
            Self::MergedEdges { count, a, b } => write!(
                f,
                "{count} edges are listed again, the first is {a:?} – {b:?}; repeated and \
                 reversed edges are one edge here"
            ),
            Self::NumbersReadAsRates => {
                write!(f, "bare numbers at the edges were read as rates in exchanges a second")
            }
        }
    }
}

/// Why a graph cannot be a topology.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum TopologyError {
    /// There are no nodes.
    #[error("no nodes: a topology needs at least one")]
    Empty,
    /// More nodes than [`NODES_MAX`].
    #[error("more than {max} nodes; split the network or keep only the part you run")]
    TooManyNodes {
        /// The bound.
        max: usize,
    },
    /// More edges than [`EDGES_MAX`].
    #[error("more than {max} edges; choose a sparser graph")]
    TooManyEdges {
        /// The bound.
        max: usize,
    },
    /// A node without a name.
    #[error("node {index} (counted from 0) has an empty name; give every node a name")]
    EmptyName {
        /// The node's number.
        index: usize,
    },
    /// A name longer than [`NAME_LEN_MAX`].
    #[error("a node name of {len} bytes; at most {max} are allowed, shorten it")]
    LongName {
        /// Bytes of the name.
        len: usize,
        /// The bound.
        max: usize,
    },
    /// A control character in a name.
    #[error("node name {name:?} holds {character:?}; remove control characters from names")]
    NameCharacter {
        /// The name.
        name: String,
        /// The first such character.
        character: char,
    },
    /// Two nodes of one name.
    #[error("two nodes are named {name:?}; names must be unique")]
    DuplicateNode {
        /// The name.
        name: String,
    },
    /// An edge to a node number that does not exist.
    #[error("an edge names node {index}, but the {nodes} nodes are numbered from 0")]
    UnknownIndex {
        /// The number in the edge.
        index: usize,
        /// How many nodes there are.
        nodes: usize,
    },
    /// An edge to a node name that does not exist.
    #[error("an edge names node {name:?}, which is not among the nodes; add it or correct it")]
    UnknownNode {
        /// The name in the edge.
        name: String,
    },
    /// An edge from a node to itself.
    #[error("node {name:?} is joined to itself; remove the self-loop")]
    SelfLoop {
        /// The node.
        name: String,
    },
    /// The same edge twice with different values.
    #[error(
        "edge {a:?} – {b:?} is listed twice with different {attribute}: {first} and {second}; \
         keep one"
    )]
    ConflictingEdge {
        /// One end.
        a: String,
        /// The other end.
        b: String,
        /// The attribute that differs.
        attribute: &'static str,
        /// Its value at the first mention.
        first: f64,
        /// Its value at the later mention.
        second: f64,
    },
    /// A rate, latency or loss outside its range.
    #[error("edge {a:?} – {b:?} has {attribute} {value}; expected {expected}")]
    AttributeRange {
        /// One end.
        a: String,
        /// The other end.
        b: String,
        /// The attribute.
        attribute: &'static str,
        /// What came.
        value: f64,
        /// What is allowed.
        expected: &'static str,
    },
    /// Not every node can be reached.
    #[error(
        "the graph is not connected: node {unreachable:?} cannot be reached from {from:?} \
         ({reached} of {nodes} nodes can); add an edge or remove the node"
    )]
    Disconnected {
        /// A node that cannot be reached.
        unreachable: String,
        /// The node from which it cannot be reached.
        from: String,
        /// How many nodes can be reached, `from` included.
        reached: usize,
        /// How many nodes there are.
        nodes: usize,
    },
}

/// The most nodes a topology may have: ten times the largest network whose spectrum is promised.
pub const NODES_MAX: usize = 100_000;
/// The most edges: a mean degree of 100 at the most nodes.
pub const EDGES_MAX: usize = 5_000_000;
/// The most bytes of a node name: a multiaddress with peer id and relay fits.
pub const NAME_LEN_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn rated(rate: f64) -> Attributes {
        Attributes { rate: Some(rate), ..Attributes::default() }
    }

    #[test]
    fn edges_are_sorted_and_low_end_first() {
        let topology = Topology::from_edges(4, [(3, 2), (1, 0), (2, 0)]).unwrap();
        let ends: Vec<_> = topology.edges().iter().map(|edge| (edge.a, edge.b)).collect();
        assert_eq!(ends, [(0, 1), (0, 2), (2, 3)]);
        assert_eq!(topology.neighbors(2), [0, 3]);
        assert_eq!(topology.degree(2), 2);
    }

    #[test]
    fn self_loop_is_refused() {
        let error = Topology::from_edges(2, [(1, 1)]).unwrap_err();
        assert_eq!(error, TopologyError::SelfLoop { name: "1".into() });
    }

    #[test]
    fn reversed_duplicate_merges_with_a_warning() {
        let mut builder = TopologyBuilder::numbered(2).unwrap();
        builder.add_edge(0, 1, rated(2.0)).unwrap();
        builder.add_edge(1, 0, Attributes { loss: Some(0.1), ..rated(2.0) }).unwrap();
        let (topology, warnings) = builder.finish().unwrap();
        assert_eq!(
            topology.edges(),
            [Edge { a: 0, b: 1, rate: Some(2.0), latency_ms: None, loss: Some(0.1) }]
        );
        assert_eq!(warnings.len(), 1);
    }

    #[test]
    fn conflicting_duplicate_is_refused_and_leaves_the_edge() {
        let mut builder = TopologyBuilder::numbered(2).unwrap();
        builder.add_edge(0, 1, rated(2.0)).unwrap();
        let error = builder.add_edge(1, 0, rated(3.0)).unwrap_err();
        assert!(matches!(error, TopologyError::ConflictingEdge { attribute: "rate", .. }));
        assert_eq!(builder.finish().unwrap().0.edges()[0].rate, Some(2.0));
    }

    #[test]
    fn attributes_out_of_range_are_refused() {
        let mut builder = TopologyBuilder::numbered(2).unwrap();
        for bad in [
            rated(f64::NAN),
            rated(0.0),
            rated(f64::INFINITY),
            Attributes { latency_ms: Some(-1.0), ..Attributes::default() },
            Attributes { loss: Some(1.5), ..Attributes::default() },
            Attributes { loss: Some(f64::NAN), ..Attributes::default() },
        ] {
            let error = builder.add_edge(0, 1, bad).unwrap_err();
            assert!(matches!(error, TopologyError::AttributeRange { .. }), "{bad:?}");
        }
    }

    #[test]
    fn names_are_checked() {
        let mut builder = TopologyBuilder::new();
        builder.add_node("a").unwrap();
        for bad in ["", "a", "b\n", &"x".repeat(NAME_LEN_MAX + 1)] {
            builder.add_node(bad).unwrap_err();
        }
        assert_eq!(builder.node_count(), 1);
    }

    #[test]
    fn disconnected_graph_names_an_unreachable_node() {
        let topology = Topology::from_edges(4, [(0, 1), (2, 3)]).unwrap();
        let error = topology.require_connected().unwrap_err();
        assert_eq!(
            error,
            TopologyError::Disconnected {
                unreachable: "2".into(),
                from: "0".into(),
                reached: 2,
                nodes: 4
            }
        );
    }

    #[test]
    fn too_many_nodes_are_refused_before_they_are_made() {
        let error = TopologyBuilder::numbered(usize::MAX).unwrap_err();
        assert_eq!(error, TopologyError::TooManyNodes { max: NODES_MAX });
    }
}
