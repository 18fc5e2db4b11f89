//! Deterministic Poisson clocks, and the loop that drives a network of vector algorithms with them.
//!
//! All gradient clocks and edge clocks together are one Poisson process; each event then falls on a
//! clock in proportion to its rate. Same seed, same events.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rumormill::time::Time;

use crate::graph::Graph;
use crate::problem::uniform;

/// What fired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The gradient clock of a node.
    Gradient(usize),
    /// The clock of an edge, by its position in the graph.
    Edge(usize),
}

/// The clocks of a network.
#[derive(Clone, Debug)]
pub struct Clocks {
    rng: ChaCha8Rng,
    time: Time,
    nodes: usize,
    gradient_rate: f64,
    /// Running sums of the edge rates.
    edge_sums: Vec<f64>,
}

impl Clocks {
    /// Gradient clocks of `gradient_rate` a node and unit of time (may be zero), edge clocks at the
    /// graph's weights.
    ///
    /// # Panics
    /// If no clock has a positive rate.
    pub fn new(seed: u64, graph: &Graph, gradient_rate: f64) -> Clocks {
        let mut sum = 0.0;
        let edge_sums: Vec<f64> = graph
            .weights
            .iter()
            .map(|weight| {
                sum += weight;
                sum
            })
            .collect();
        assert!(gradient_rate * graph.nodes as f64 + sum > 0.0, "some clock ticks");
        let rng = ChaCha8Rng::seed_from_u64(seed);
        Clocks { rng, time: Time::ZERO, nodes: graph.nodes, gradient_rate, edge_sums }
    }

    /// The next event and when it happens.
    pub fn next_event(&mut self) -> (Time, Event) {
        let edge_total = self.edge_sums.last().copied().unwrap_or(0.0);
        let gradient_total = self.gradient_rate * self.nodes as f64;
        let total = gradient_total + edge_total;
        let gap = -(1.0 - uniform(&mut self.rng)).ln() / total;
        self.time = self.time + Time::from_secs_f64(gap);
        let mark = uniform(&mut self.rng) * total;
        let event = if mark < gradient_total {
            let node = (mark / self.gradient_rate) as usize;
            Event::Gradient(node.min(self.nodes - 1))
        } else {
            let mark = mark - gradient_total;
            let edge = self.edge_sums.partition_point(|&sum| sum <= mark);
            Event::Edge(edge.min(self.edge_sums.len() - 1))
        };
        (self.time, event)
    }
}

/// A network of nodes that run one algorithm.
pub trait Network {
    /// The gradient clock of a node fired.
    fn on_gradient(&mut self, time: Time, node: usize);
    /// The clock of an edge fired.
    fn on_edge(&mut self, time: Time, edge: usize);
    /// What is to become small, as the nodes lazily hold it.
    fn error(&self) -> f64;
    /// A node's parameters as of its last event.
    fn x(&self, node: usize) -> &[f64];
}

/// Counts at the moment an error was first reached.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mark {
    /// Gradient events so far.
    pub gradients: u64,
    /// Edge events so far.
    pub edges: u64,
    /// Units of model time.
    pub time: f64,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Every goal was reached.
    Reached,
    /// Time ran out first.
    OutOfTime,
    /// The error became infinite, not a number, or [`DIVERGED`] times the first one.
    Diverged,
}

/// An error this many times the first one counts as divergence.
pub const DIVERGED: f64 = 1e6;

/// What a run gave.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// One entry per goal, in the order of the goals; `None` when not reached.
    pub marks: Vec<Option<Mark>>,
    /// How it ended.
    pub end: End,
    /// All events.
    pub last: Mark,
    /// The error at the end; finite unless the run diverged.
    pub error: f64,
    /// (time, gradients, edges, error) at about equal spans of time.
    pub trace: Vec<(Mark, f64)>,
}

/// Runs until the last of the falling `goals` is reached, the run diverges, or `time_max` units
/// have passed. The error is looked at after every event; the trace is taken `TRACE_POINTS` times.
pub fn run(
    network: &mut impl Network,
    clocks: &mut Clocks,
    goals: &[f64],
    time_max: f64,
) -> Outcome {
    let start = network.error();
    let mut now = Mark { gradients: 0, edges: 0, time: 0.0 };
    let mut marks: Vec<Option<Mark>> = vec![None; goals.len()];
    let mut trace = vec![(now, start)];
    let mut reached = 0;
    loop {
        let (time, event) = clocks.next_event();
        now.time = time.as_secs_f64();
        if now.time > time_max {
            let error = network.error();
            return Outcome { marks, end: End::OutOfTime, last: now, error, trace };
        }
        match event {
            Event::Gradient(node) => {
                network.on_gradient(time, node);
                now.gradients += 1;
            }
            Event::Edge(edge) => {
                network.on_edge(time, edge);
                now.edges += 1;
            }
        }
        let error = network.error();
        if now.time >= trace.len() as f64 * time_max / TRACE_POINTS {
            trace.push((now, error));
        }
        if error.is_nan() || error > start * DIVERGED {
            return Outcome { marks, end: End::Diverged, last: now, error, trace };
        }
        while reached < goals.len() && error <= goals[reached] {
            marks[reached] = Some(now);
            reached += 1;
        }
        if reached == goals.len() && !goals.is_empty() {
            trace.push((now, error));
            return Outcome { marks, end: End::Reached, last: now, error, trace };
        }
    }
}

/// Points of a trace over the whole time allowed.
const TRACE_POINTS: f64 = 1000.0;

#[cfg(test)]
mod tests {
    use super::*;
    use rumormill_topology::family::Family;

    #[test]
    fn the_same_seed_gives_the_same_events() {
        let graph = Graph::uniform(Family::Ring, 5).scaled(3.0);
        let draw = |seed| {
            let mut clocks = Clocks::new(seed, &graph, 1.0);
            (0..100).map(|_| clocks.next_event()).collect::<Vec<_>>()
        };
        assert_eq!(draw(4), draw(4));
        assert_ne!(draw(4), draw(5));
    }

    #[test]
    fn every_clock_ticks_at_its_rate() {
        let mut graph = Graph::uniform(Family::Line, 3);
        graph.weights = vec![0.5, 4.0];
        let mut clocks = Clocks::new(1, &graph, 2.0);
        let mut counts = [0u32; 5];
        let mut end = 0.0;
        for _ in 0..100_000 {
            let (time, event) = clocks.next_event();
            end = time.as_secs_f64();
            match event {
                Event::Gradient(node) => counts[node] += 1,
                Event::Edge(edge) => counts[3 + edge] += 1,
            }
        }
        for (count, rate) in counts.iter().zip([2.0, 2.0, 2.0, 0.5, 4.0]) {
            // Five standard deviations of a Poisson count.
            let expected = rate * end;
            assert!((f64::from(*count) - expected).abs() < 5.0 * expected.sqrt(), "{counts:?}");
        }
    }
}
