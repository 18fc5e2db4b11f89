//! Networks of the vector algorithms on a convex problem, for [`event::run`](crate::event::run).
//!
//! The error is `mean_i |x_i − x*|²` with every node as of its own last event, the convention of
//! the reference counts.

use rumormill::id::{Origin, RunId};
use rumormill::time::Time;
use rumormill::vector::acid;
use rumormill::vector::dadao::{self, Constants};
use rumormill::vector::onebyte::{self, Link, ScalarCodec, Stream};

use crate::event::Network;
use crate::problem::Objective;

/// Squared distances to the optimum, kept up to date node by node.
#[derive(Clone, Debug)]
struct Distances<'a> {
    optimum: &'a [f64],
    squared: Vec<f64>,
}

impl<'a> Distances<'a> {
    fn new(optimum: &'a [f64], start: &[Vec<f64>]) -> Distances<'a> {
        let mut distances = Distances { optimum, squared: vec![0.0; start.len()] };
        start.iter().enumerate().for_each(|(node, x)| distances.set(node, x));
        distances
    }

    fn set(&mut self, node: usize, x: &[f64]) {
        self.squared[node] = x.iter().zip(self.optimum).map(|(x, o)| (x - o) * (x - o)).sum();
    }

    fn mean(&self) -> f64 {
        self.squared.iter().sum::<f64>() / self.squared.len() as f64
    }
}

/// Two different elements of a slice.
fn pair<T>(items: &mut [T], (i, j): (usize, usize)) -> (&mut T, &mut T) {
    let [a, b] = items.get_disjoint_mut([i, j]).expect("an edge joins two nodes of the network");
    (a, b)
}

/// DADAO on dense vectors.
pub struct Dadao<'a, O> {
    problem: &'a O,
    edges: &'a [(usize, usize)],
    nodes: Vec<dadao::Node>,
    distances: Distances<'a>,
    scratch: Vec<f64>,
}

impl<'a, O: Objective> Dadao<'a, O> {
    /// A network at time zero.
    pub fn new(
        problem: &'a O,
        edges: &'a [(usize, usize)],
        constants: &Constants,
        start: &[Vec<f64>],
        optimum: &'a [f64],
    ) -> Self {
        Dadao {
            problem,
            edges,
            nodes: start.iter().map(|x| dadao::Node::new(constants, x.clone())).collect(),
            distances: Distances::new(optimum, start),
            scratch: vec![0.0; problem.dim()],
        }
    }
}

impl<O: Objective> Network for Dadao<'_, O> {
    fn on_gradient(&mut self, time: Time, node: usize) {
        let problem = self.problem;
        self.nodes[node].on_gradient(time, &mut self.scratch, |x, out| {
            problem.gradient(node, x, out);
        });
        self.distances.set(node, &self.nodes[node].state().x);
    }

    fn on_edge(&mut self, time: Time, edge: usize) {
        let (i, j) = self.edges[edge];
        let (a, b) = pair(&mut self.nodes, (i, j));
        dadao::exchange(time, a, b, &mut self.scratch);
        self.distances.set(i, &a.state().x);
        self.distances.set(j, &b.state().x);
    }

    fn error(&self) -> f64 {
        self.distances.mean()
    }

    fn x(&self, node: usize) -> &[f64] {
        &self.nodes[node].state().x
    }
}

/// A2CiD2, or plain pairwise averaging, with SGD steps whose size may fall with time.
pub struct Acid<'a, O> {
    problem: &'a O,
    edges: &'a [(usize, usize)],
    nodes: Vec<acid::Node>,
    step: &'a dyn Fn(f64) -> f64,
    distances: Distances<'a>,
    scratch: Vec<f64>,
}

impl<'a, O: Objective> Acid<'a, O> {
    /// A network at time zero; `step` gives the step size at a time.
    pub fn new(
        problem: &'a O,
        edges: &'a [(usize, usize)],
        constants: acid::Constants,
        step: &'a dyn Fn(f64) -> f64,
        start: &[Vec<f64>],
        optimum: &'a [f64],
    ) -> Self {
        let node = |x: &Vec<f64>| acid::Node::new(constants, x.clone());
        Acid {
            problem,
            edges,
            nodes: start.iter().map(node).collect(),
            step,
            distances: Distances::new(optimum, start),
            scratch: vec![0.0; problem.dim()],
        }
    }
}

impl<O: Objective> Network for Acid<'_, O> {
    fn on_gradient(&mut self, time: Time, node: usize) {
        let (problem, step) = (self.problem, (self.step)(time.as_secs_f64()));
        self.nodes[node].on_gradient(time, step, &mut self.scratch, |x, out| {
            problem.gradient(node, x, out);
        });
        self.distances.set(node, self.nodes[node].x());
    }

    fn on_edge(&mut self, time: Time, edge: usize) {
        let (i, j) = self.edges[edge];
        let (a, b) = pair(&mut self.nodes, (i, j));
        acid::exchange(time, a, b, &mut self.scratch);
        self.distances.set(i, a.x());
        self.distances.set(j, b.x());
    }

    fn error(&self) -> f64 {
        self.distances.mean()
    }

    fn x(&self, node: usize) -> &[f64] {
        self.nodes[node].x()
    }
}

/// One-byte DADAO: directions in place of vectors, symbols of a code in place of numbers.
pub struct OneByte<'a, O, C> {
    run: RunId,
    problem: &'a O,
    edges: &'a [(usize, usize)],
    nodes: Vec<onebyte::Node<C>>,
    /// Both ends of every edge.
    links: Vec<(Link<C>, Link<C>)>,
    gradient_counts: Vec<u64>,
    edge_counts: Vec<u64>,
    distances: Distances<'a>,
    direction: Vec<f64>,
    scratch: Vec<f64>,
}

impl<'a, O: Objective, C: ScalarCodec + Clone> OneByte<'a, O, C> {
    /// A network at time zero; every stream starts from `codec`.
    pub fn new(
        run: RunId,
        problem: &'a O,
        edges: &'a [(usize, usize)],
        constants: &Constants,
        start: &[Vec<f64>],
        optimum: &'a [f64],
        codec: &C,
    ) -> Self {
        let dim = problem.dim();
        let node = |x: &Vec<f64>| onebyte::Node::new(constants, x.clone(), codec.clone());
        let link = || Link::new(dim, codec.clone());
        OneByte {
            run,
            problem,
            edges,
            nodes: start.iter().map(node).collect(),
            links: edges.iter().map(|_| (link(), link())).collect(),
            gradient_counts: vec![0; start.len()],
            edge_counts: vec![0; edges.len()],
            distances: Distances::new(optimum, start),
            direction: vec![0.0; dim],
            scratch: vec![0.0; dim],
        }
    }
}

fn origin(node: usize) -> Origin {
    Origin(u16::try_from(node).expect("a simulated network has fewer than 65,536 nodes"))
}

impl<O: Objective, C: ScalarCodec> Network for OneByte<'_, O, C> {
    fn on_gradient(&mut self, time: Time, node: usize) {
        let stream = Stream::Gradient(origin(node));
        onebyte::direction(self.run, stream, self.gradient_counts[node], &mut self.direction);
        self.gradient_counts[node] += 1;
        let (problem, scratch) = (self.problem, &mut self.scratch);
        self.nodes[node].on_gradient(time, &self.direction, |x, u| {
            // An exact directional derivative: two loss probes with vanishing distance.
            problem.gradient(node, x, scratch);
            scratch.iter().zip(u).map(|(g, u)| g * u).sum()
        });
        self.distances.set(node, &self.nodes[node].dadao().state().x);
    }

    fn on_edge(&mut self, time: Time, edge: usize) {
        let (i, j) = self.edges[edge];
        let stream = Stream::Edge(origin(i), origin(j));
        onebyte::direction(self.run, stream, self.edge_counts[edge], &mut self.direction);
        self.edge_counts[edge] += 1;
        let (a, b) = pair(&mut self.nodes, (i, j));
        let (at_a, at_b) = &mut self.links[edge];
        let from_a = a.on_edge(time, &self.direction, at_a);
        let from_b = b.on_edge(time, &self.direction, at_b);
        a.on_symbols(time, &self.direction, at_a, from_a, from_b);
        b.on_symbols(time, &self.direction, at_b, from_b, from_a);
        self.distances.set(i, &a.dadao().state().x);
        self.distances.set(j, &b.dadao().state().x);
    }

    fn error(&self) -> f64 {
        self.distances.mean()
    }

    fn x(&self, node: usize) -> &[f64] {
        &self.nodes[node].dadao().state().x
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{self, Clocks, End};
    use crate::graph::Graph;
    use crate::problem::LeastSquares;
    use rumormill::vector::dadao::Rates;
    use rumormill::vector::onebyte::TrackedLb8;
    use rumormill_topology::family::Family;

    fn constants(problem: &LeastSquares, graph: &Graph, margin: f64) -> Constants {
        let (mu, smoothness) = problem.curvature();
        Constants::new(mu, smoothness, Rates { chi: graph.chi(), margin }).unwrap()
    }

    #[test]
    fn dense_and_one_byte_reach_the_optimum_in_about_the_same_time() {
        let (problem, start) = LeastSquares::generate(1, 6, 3, 30);
        let optimum = problem.minimizer().unwrap();
        let graph = Graph::uniform(Family::Ring, 6);
        let graph = graph.clone().scaled(graph.chi().rate_min());
        let constants = constants(&problem, &graph, 1.0);
        let mut dense = Dadao::new(&problem, &graph.edges, &constants, &start, &optimum);
        let dense = event::run(&mut dense, &mut Clocks::new(5, &graph, 1.0), &[1e-8], 2e3);
        let fast = graph.clone().scaled(3.0);
        let run = RunId([3; 32]);
        let codec = TrackedLb8::new(4);
        let mut bytes =
            OneByte::new(run, &problem, &graph.edges, &constants, &start, &optimum, &codec);
        let bytes = event::run(&mut bytes, &mut Clocks::new(6, &fast, 3.0), &[1e-8], 2e3);
        let (dense, bytes) = (dense.last.time, bytes.last.time);
        assert!((bytes / dense - 1.0).abs() < 0.15, "{dense} {bytes}");
    }

    #[test]
    fn a_rate_that_is_too_low_ends_as_diverged_and_not_as_nan() {
        let (problem, start) = LeastSquares::generate(2, 8, 2, 30);
        let optimum = problem.minimizer().unwrap();
        let graph = Graph::uniform(Family::Ring, 8);
        let rate = graph.chi().rate_min();
        let constants = constants(&problem, &graph.clone().scaled(rate), 1.0);
        let mut network = Dadao::new(&problem, &graph.edges, &constants, &start, &optimum);
        let slow = graph.clone().scaled(0.3 * rate);
        let outcome = event::run(&mut network, &mut Clocks::new(1, &slow, 1.0), &[1e-9], 1e5);
        assert_eq!(outcome.end, End::Diverged);
        assert_eq!(outcome.marks, [None]);
    }
}
