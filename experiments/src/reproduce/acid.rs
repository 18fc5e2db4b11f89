//! A2CiD2 beside its published program: how many communications pure averaging takes, and whether
//! on a ring it is worth doubling the communication rate.
//!
//! The reference does not say whose error it takes, when, or how edges of irregular graphs are
//! drawn. Here it is that of `x` with all nodes mixed up to now. Other readings were tried: as lazily
//! held (cycle of 16: 59.8) and of `x` and `x~` together (61.0, cycle of 64: 255); none gives 68 and
//! 278, all are below. The published program takes the difference of parameters that are not mixed up
//! to now and mixes afterwards; that variant is counted beside ours, as *unmixed*.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use rumormill::time::Time;
use rumormill::vector::acid::{self, Constants};
use rumormill_topology::family::Family;

use super::{Report, mean};
use crate::event::{self, Clocks, Network};
use crate::graph::Graph;
use crate::problem::normal;

/// Communications per node to cut the squared consensus error a million times: plain, A2CiD2.
const REFERENCE: [(Family, usize, f64, f64); 8] = [
    (Family::Ring, 16, 156.0, 68.0),
    (Family::Ring, 64, 2117.0, 278.0),
    (Family::Line, 16, 532.0, 121.0),
    (Family::Grid, 16, 62.0, 42.0),
    (Family::Star, 16, 31.8, 29.8),
    (Family::Exponential, 16, 25.8, 26.0),
    (Family::Complete, 16, 23.6, 23.6),
    (Family::Barbell, 16, 395.0, 158.0),
];

/// The reference is five seeds of a noisy count, ours `streams`; agreement is judged at this.
const TOLERANCE: f64 = 0.10;

/// Coordinates: averaged over, they smooth the counts.
const DIM: usize = 16;

/// A network that averages, and trains when its step is positive.
struct Averaging {
    edges: Vec<(usize, usize)>,
    nodes: Vec<acid::Node>,
    scratch: Vec<f64>,
    rng: ChaCha8Rng,
    training: Training,
    /// Each node's own minimizer.
    centers: Vec<Vec<f64>>,
    /// Each node's SGD momentum.
    momentum: Vec<Vec<f64>>,
    /// Whether differences are taken before mixing up to now.
    unmixed: bool,
    time: Time,
}

/// SGD on `f_i(x) = |x − c_i|²/2` with noisy gradients; all zero means averaging alone.
#[derive(Clone, Copy, Default)]
struct Training {
    step: f64,
    /// Standard deviation of the nodes' minimizers c_i.
    heterogeneity: f64,
    /// Standard deviation of the noise of a gradient.
    noise: f64,
    /// Momentum factor: the step goes along v ← momentum · v + gradient.
    momentum: f64,
}

impl Averaging {
    fn new(graph: &Graph, constants: Constants, seed: u64, training: Training) -> Averaging {
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0x5eed);
        let mut draw = |scale: f64| -> Vec<Vec<f64>> {
            (0..graph.nodes).map(|_| (0..DIM).map(|_| scale * normal(&mut rng)).collect()).collect()
        };
        let nodes = draw(1.0).into_iter().map(|x| acid::Node::new(constants, x)).collect();
        let centers = draw(training.heterogeneity);
        let momentum = vec![vec![0.0; DIM]; graph.nodes];
        let edges = graph.edges.clone();
        Averaging {
            edges,
            nodes,
            scratch: vec![0.0; DIM],
            rng,
            training,
            centers,
            momentum,
            unmixed: false,
            time: Time::ZERO,
        }
    }

    /// Mixes every node up to now: the consensus error is then that of one moment. The flow
    /// composes, so this changes no later state beyond rounding.
    fn advance(&mut self, time: Time) {
        self.nodes.iter_mut().for_each(|node| node.advance(time));
    }
}

impl Network for Averaging {
    fn on_gradient(&mut self, time: Time, node: usize) {
        self.advance(time);
        let Averaging { nodes, scratch, rng, training, centers, momentum, .. } = self;
        nodes[node].on_gradient(time, training.step, scratch, |x, out| {
            let state = out.iter_mut().zip(&mut momentum[node]);
            for ((out, velocity), (x, center)) in state.zip(x.iter().zip(&centers[node])) {
                let gradient = x - center + training.noise * normal(rng);
                *velocity = training.momentum * *velocity + gradient;
                *out = *velocity;
            }
        });
    }

    fn on_edge(&mut self, time: Time, edge: usize) {
        self.time = time;
        let (i, j) = self.edges[edge];
        if self.unmixed {
            let [a, b] = self.nodes.get_disjoint_mut([i, j]).expect("an edge joins two nodes");
            let difference = a.x().iter().zip(b.x()).map(|(a, b)| a - b).collect::<Vec<_>>();
            a.on_edge(time, &difference);
            b.on_edge(time, &difference.iter().map(|d| -d).collect::<Vec<_>>());
            return;
        }
        self.advance(time);
        let [a, b] = self.nodes.get_disjoint_mut([i, j]).expect("an edge joins two nodes");
        acid::exchange(time, a, b, &mut self.scratch);
    }

    /// The squared consensus error, mean over nodes, of x as of the last event.
    fn error(&self) -> f64 {
        let mut nodes = std::borrow::Cow::Borrowed(&self.nodes);
        if self.unmixed {
            nodes.to_mut().iter_mut().for_each(|node| node.advance(self.time));
        }
        let count = nodes.len() as f64;
        let squared = |k: usize| {
            let center = nodes.iter().map(|node| node.x()[k]).sum::<f64>() / count;
            nodes.iter().map(|node| (node.x()[k] - center).powi(2)).sum::<f64>()
        };
        (0..self.scratch.len()).map(squared).sum::<f64>() / count
    }

    fn x(&self, node: usize) -> &[f64] {
        self.nodes[node].x()
    }
}

/// Runs every claim.
pub fn reproduce(streams: u64) -> Report {
    let mut report = Report::default();
    report.notes.push(format!(
        "means over {} streams; a communication of an edge counts at both its ends; every node \
         averages once a unit of time with a neighbor chosen evenly",
        streams
    ));
    let mut csv = vec!["graph,nodes,plain,acid,acid_unmixed".to_string()];
    for (family, nodes, plain_reference, acid_reference) in REFERENCE {
        let graph = Graph::neighborly(family, nodes, 1.0);
        let accelerated = Constants::new(graph.chi()).expect("the families are connected");
        let plain = averaging(&graph, Constants::PLAIN, streams, false);
        let acid = averaging(&graph, accelerated, streams, false);
        let unmixed = averaging(&graph, accelerated, streams, true);
        csv.push(format!("{family},{nodes},{plain},{acid},{unmixed}"));
        let off = |ours: f64, theirs: f64| 100.0 * (ours / theirs - 1.0);
        let (plain_off, acid_off) = (off(plain, plain_reference), off(acid, acid_reference));
        let near = |off: f64| off.abs() <= 100.0 * TOLERANCE;
        let unmixed_off = off(unmixed, acid_reference);
        report.explained(
            format!(
                "{family}{nodes}: communications a node, A2CiD2 with differences taken before \
                 mixing as in its program, within 10 %"
            ),
            format!("{unmixed:.1}"),
            format!("{acid_reference}"),
            near(unmixed_off),
            format!("off by {unmixed_off:+.0} %; how the program draws its edges is not known"),
        );
        report.explained(
            format!("{family}{nodes}: communications a node, plain -> A2CiD2, within 10 %"),
            format!("{plain:.1} -> {acid:.1}"),
            format!("{plain_reference} -> {acid_reference}"),
            near(plain_off) && near(acid_off),
            format!(
                "plain is off by {plain_off:+.0} %, A2CiD2 by {acid_off:+.0} %; with unmixed \
                 exchanges, as in the published program, A2CiD2 takes {unmixed:.1} ({:+.0} %){}",
                unmixed_off,
                if near(plain_off) { "" } else { "; how its edges are drawn is not known" },
            ),
        );
    }
    report.files.push(("averaging.csv", csv));
    for nodes in [16, 64] {
        ring(nodes, streams, &mut report);
    }
    report
}

/// Communications a node until the squared consensus error is a millionth of the first.
fn averaging(graph: &Graph, constants: Constants, streams: u64, unmixed: bool) -> f64 {
    mean((0..streams).map(|stream| {
        let mut network = Averaging::new(graph, constants, stream, Training::default());
        network.unmixed = unmixed;
        let goal = network.error() * 1e-6;
        let mut clocks = Clocks::new(stream, graph, 0.0);
        let outcome = event::run(&mut network, &mut clocks, &[goal], 1e6);
        outcome.marks[0].map_or(f64::NAN, |mark| 2.0 * mark.edges as f64 / graph.nodes as f64)
    }))
}

/// "On the ring graph, adding A2CiD2 has the same effect as doubling the communication rate":
/// judged by the steady consensus error of training, for three sources of disagreement.
fn ring(nodes: usize, streams: u64, report: &mut Report) {
    let step = 0.02;
    let cases = [
        ("nodes with minimizers of their own, exact gradients", 1.0, 0.0, 0.0),
        ("equal nodes, noisy gradients, momentum 0.9", 0.0, 1.0, 0.9),
        ("equal nodes, noisy gradients", 0.0, 1.0, 0.0),
    ];
    for (name, heterogeneity, noise, momentum) in cases {
        // Momentum multiplies the effective step by 1/(1 − momentum).
        let step = step * (1.0 - momentum);
        let training = Training { step, heterogeneity, noise, momentum };
        let plain = steady(nodes, 1.0, false, training, streams);
        let doubled = steady(nodes, 2.0, false, training, streams);
        let acid = steady(nodes, 1.0, true, training, streams);
        let ratio = acid / doubled;
        report.explained(
            format!(
                "ring of {nodes}, {name}: A2CiD2 at rate 1 holds nodes at least as close as plain \
                 averaging at rate 2 (steady squared consensus error, within 5 %)"
            ),
            format!("plain {plain:.2e}, at double rate {doubled:.2e}, A2CiD2 {acid:.2e}"),
            "same effect as doubling (abstract, training networks)",
            acid <= doubled * 1.05,
            format!(
                "its steady error is {ratio:.2} times that at double rate and {:.2} times plain \
                 averaging's; acceleration pays for differences that last, while fresh noise is \
                 averaged by the number of exchanges",
                acid / plain
            ),
        );
    }
}

/// The mean squared consensus error over the last three quarters of 2000 units of time.
fn steady(nodes: usize, rate: f64, accelerate: bool, training: Training, streams: u64) -> f64 {
    let graph = Graph::neighborly(Family::Ring, nodes, rate);
    let constants = if accelerate {
        Constants::new(graph.chi()).expect("a ring is connected")
    } else {
        Constants::PLAIN
    };
    mean((0..streams).map(|stream| {
        let mut network = Averaging::new(&graph, constants, stream, training);
        let mut clocks = Clocks::new(stream, &graph, 1.0);
        let outcome = event::run(&mut network, &mut clocks, &[], 2000.0);
        mean(outcome.trace.iter().filter(|(mark, _)| mark.time > 500.0).map(|(_, error)| *error))
    }))
}
