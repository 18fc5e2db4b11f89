//! A run of a vector algorithm: its own state machines on Poisson clocks and the task's gradients.
//!
//! Model time counts in units of `vector.unit_ms`, in which a node of average speed has one gradient
//! event; a slower node's clock is thinned. An exchange takes no time: when an edge's clock fires
//! both ends move at once, or, if the link loses it, one end is down or a partition is between
//! them, neither does. Of `[link]` only `loss` matters therefore. A node that is down keeps its
//! vectors; a flow that needs no message (DADAO, A2CiD2) catches up when it is back.
//!
//! `monna` runs in rounds on the complete graph: every node that is up makes a gradient, and the
//! round ends with the (n − f)-th fastest of them. Each then holds its own half step, those of all
//! faulty nodes, and of random honest ones as many as make n − f; if it gets fewer, it keeps its own.
//!
//! Faulty nodes lie about gradients, or, in `monna`, about their half step's way from the honest
//! mean: see [`Lie`]. Bytes are those of vectors of `f64`: both ways of an exchange, or a half step
//! to each other node.

use std::collections::VecDeque;
use std::sync::Arc;

use anyhow::Result;
use rumormill::fault::FaultKind;
use rumormill::fault::value::{CROWD_MAX, Crowd, Lie, Moment};
use rumormill::id::Origin;
use rumormill::objective::{Objective, Scratch, Split};
use rumormill::sample::KeyedRng;
use rumormill::time::Time;
use rumormill::vector::acid;
use rumormill::vector::dadao::{self, Chi, Rates};
use rumormill::vector::monna::{self, Received};
use rumormill_topology::{Topology, spectrum};

use super::plan::Plan;
use super::scenario::{Algorithm, ChurnAction};
use super::trace::{Gathering, Sample};
use super::{Outcome, Usage, Verdict};
use crate::event::{Clocks, Event};
use crate::graph;

/// Units of time of a run for which none is given.
const UNITS: f64 = 100.0;

/// Samples of a run for which no interval is given.
const SAMPLES: f64 = 100.0;

/// A loss so many times the first one (or so many nats) has diverged.
const DIVERGED: f64 = 1e3;

/// The nodes of a network, each with its algorithm's state.
enum Nodes {
    Dadao(Vec<dadao::Node>),
    /// Each with its momentum.
    Acid(Vec<(acid::Node, Vec<f64>)>),
    Monna(Vec<monna::Node>),
}

/// What a seed starts from.
struct Start {
    nodes: Nodes,
    /// Edges with their rates per unit.
    graph: graph::Graph,
}

/// Gradients of the task at every node, true or not.
struct Gradients<'a> {
    plan: &'a Plan,
    /// The rows of every node.
    rows: Vec<Arc<Vec<u32>>>,
    honest: Vec<usize>,
    /// The first gradient of every node that goes on telling it.
    stale: Vec<Option<Vec<f64>>>,
    rng: KeyedRng,
    batch: Vec<u32>,
    scratch: Scratch,
    /// Made by all nodes.
    made: u64,
}

impl<'a> Gradients<'a> {
    fn new(plan: &'a Plan, seed: u64) -> Gradients<'a> {
        let all: Arc<Vec<u32>> = Arc::new((0..plan.dataset.train.rows() as u32).collect());
        let rows = plan.rows(seed).into_iter();
        Gradients {
            plan,
            rows: rows.map(|rows| rows.unwrap_or_else(|| Arc::clone(&all))).collect(),
            honest: plan.honest().collect(),
            stale: vec![None; plan.nodes],
            rng: KeyedRng::from_seed("rumormill v1 simulated gradients", seed, 0),
            batch: Vec::new(),
            scratch: Scratch::default(),
            made: 0,
        }
    }

    /// The true gradient at a node, on flipped labels if it flips them.
    fn measure(&mut self, node: usize, x: &[f64], out: &mut [f64]) {
        let vector = &self.plan.scenario.vector;
        let rows = &self.rows[node];
        let rows: &[u32] = match vector.batch {
            0 => rows,
            batch => {
                self.batch.clear();
                let rng = &mut self.rng;
                let draws = (0..batch).map(|_| rows[rng.index(rows.len() as u32) as usize]);
                self.batch.extend(draws);
                &self.batch
            }
        };
        let flips = self.plan.lies[node].is_some_and(|lie| lie.kind == FaultKind::LabelFlip);
        let objective: &Arc<dyn Objective> = match &self.plan.flipped {
            Some(flipped) if flips => flipped,
            _ => &self.plan.objective,
        };
        objective.gradient(x, rows, out, &mut self.scratch);
        out.iter_mut().zip(x).for_each(|(out, x)| *out += vector.mu * x);
    }

    /// The gradient that a node steps along: a faulty one's lies.
    fn told(&mut self, node: usize, x: &[f64], out: &mut [f64]) {
        self.made += 1;
        self.measure(node, x, out);
        let Some(lie) = self.plan.lies[node] else { return };
        if lie.kind == FaultKind::Stale {
            out.copy_from_slice(self.stale[node].get_or_insert_with(|| out.to_vec()));
        }
        let mut others = Vec::new();
        if lie.needs_crowd() {
            for other in self.honest.iter().copied().take(CROWD_MAX).collect::<Vec<_>>() {
                let mut gradient = vec![0.0; x.len()];
                self.measure(other, x, &mut gradient);
                others.push(gradient);
            }
        }
        self.lie(lie, out, &others);
    }

    /// Puts a lie in place of a vector, coordinate by coordinate.
    fn lie(&mut self, lie: Lie, own: &mut [f64], others: &[Vec<f64>]) {
        let faulty = self.plan.nodes - self.honest.len();
        let vector = &self.plan.scenario.vector;
        let units = self.plan.scenario.time_s.map_or(UNITS, |end| end * 1000.0 / vector.unit_ms);
        let moment = Moment { round: self.made / self.plan.nodes as u64, rounds: units as u64 };
        for (k, own) in own.iter_mut().enumerate() {
            let values = others.iter().map(|vector| vector[k]);
            let crowd = Crowd::new(values, self.honest.len(), faulty);
            *own = lie.tell(*own, &crowd, moment, &mut self.rng);
        }
    }
}

/// Who is up, and who can reach whom, as time goes.
struct Weather<'a> {
    plan: &'a Plan,
    up: Vec<bool>,
    /// Times in seconds, node, whether it is up from then on.
    planned: VecDeque<(f64, usize, bool)>,
    now_s: f64,
}

impl<'a> Weather<'a> {
    fn new(plan: &'a Plan) -> Weather<'a> {
        let silent = |node: usize| plan.lies[node].is_some_and(|lie| lie.kind == FaultKind::Silent);
        let up = (0..plan.nodes).map(|node| plan.founders.contains(&node) && !silent(node));
        let mut planned: Vec<_> = plan
            .scenario
            .churn
            .iter()
            .filter(|entry| !silent(entry.node))
            .map(|entry| {
                let starts = matches!(entry.action, ChurnAction::Join | ChurnAction::Restart);
                (entry.at_s, entry.node, starts)
            })
            .collect();
        planned.sort_by(|a, b| a.0.total_cmp(&b.0));
        Weather { plan, up: up.collect(), planned: planned.into(), now_s: 0.0 }
    }

    fn advance(&mut self, now_s: f64) {
        self.now_s = now_s;
        while let Some(&(at_s, node, up)) = self.planned.front().filter(|entry| entry.0 <= now_s) {
            debug_assert!(at_s <= now_s);
            self.up[node] = up;
            self.planned.pop_front();
        }
    }

    fn reaches(&self, a: usize, b: usize) -> bool {
        let now = self.now_s;
        let mut cuts = self.plan.scenario.partition.iter();
        self.up[a]
            && self.up[b]
            && !cuts.any(|cut| {
                (cut.from_s..cut.to_s).contains(&now)
                    && cut.nodes.contains(&a) != cut.nodes.contains(&b)
            })
    }
}

/// The algorithm's constants on the task and graph of a seed, and nodes at the base model.
fn start(plan: &Plan, seed: u64) -> Result<Start, String> {
    let vector = &plan.scenario.vector;
    let topology = plan.topology(seed)?;
    let parts = plan.probabilities(&topology)?;
    let base = plan.objective.base(seed);
    let x: Vec<f64> = base.iter().map(|&value| f64::from(value)).collect();
    let chi = chi(&topology, &parts);
    let least = chi.as_ref().map(|chi| chi.rate_min()).map_err(Clone::clone);
    // Exchanges of all nodes together; each has two ends.
    let total = match (vector.rate, plan.scenario.algorithm) {
        (Some(rate), _) => rate * plan.nodes as f64 / 2.0,
        (None, Algorithm::Dadao) => least.clone()? / vector.margin,
        (None, _) => plan.nodes as f64 / 2.0,
    };
    let every = |x: Vec<f64>| vec![x; plan.nodes];
    let nodes = match plan.scenario.algorithm {
        Algorithm::Dadao => {
            let (mu, smoothness) = curvature(plan, seed)?;
            let rates = Rates { chi: chi?.scaled(total), margin: vector.margin };
            let constants = dadao::Constants::new(mu, smoothness, rates).map_err(|error| {
                let least = least.unwrap_or(f64::NAN) / vector.margin * 2.0 / plan.nodes as f64;
                format!("vector.rate: {error}; on this graph at least {least:.4}")
            })?;
            Nodes::Dadao(every(x).into_iter().map(|x| dadao::Node::new(&constants, x)).collect())
        }
        Algorithm::Monna => {
            let faulty = vector.faulty.unwrap_or(plan.lies.iter().flatten().count());
            let config = monna::Config { nodes: plan.nodes, faulty, beta: vector.beta };
            let made = every(x).into_iter().enumerate();
            let made = made.map(|(node, x)| monna::Node::new(config, Origin(node as u16), x));
            Nodes::Monna(made.collect::<Result<_, _>>().map_err(|error| error.to_string())?)
        }
        algorithm => {
            let constants = match algorithm {
                Algorithm::Acid => {
                    let made = acid::Constants::new(chi?.scaled(total));
                    made.map_err(|error| format!("graph: {error}"))?
                }
                _ => acid::Constants::PLAIN,
            };
            let zero = vec![0.0; x.len()];
            let node = |x| (acid::Node::new(constants, x), zero.clone());
            Nodes::Acid(every(x).into_iter().map(node).collect())
        }
    };
    let edges = topology.edges().iter().map(|edge| (edge.a, edge.b)).collect();
    let weights = parts.into_iter().map(|part| part * total).collect();
    Ok(Start { nodes, graph: graph::Graph { nodes: plan.nodes, edges, weights } })
}

/// χ₁ and χ₂ of edge probabilities.
fn chi(topology: &Topology, parts: &[f64]) -> Result<Chi, String> {
    let spectrum =
        spectrum::weighted(topology, parts).map_err(|error| format!("graph: {error}"))?;
    Ok(Chi { chi_1: spectrum.chi_1, chi_2: spectrum.chi_2 })
}

/// μ and L over all nodes, with the penalty.
fn curvature(plan: &Plan, seed: u64) -> Result<(f64, f64), String> {
    let gradients = Gradients::new(plan, seed);
    let mut scratch = Scratch::default();
    let mut range = (f64::INFINITY, 0.0f64);
    let mut rows = gradients.rows;
    rows.dedup_by(|a, b| Arc::ptr_eq(a, b));
    for rows in rows {
        let Some((mu, smoothness)) = plan.objective.curvature(&rows, &mut scratch) else {
            let model = &plan.scenario.task.model;
            return Err(format!(
                "task.model: {model} is not convex; dadao needs softmax or logistic"
            ));
        };
        range = (range.0.min(mu), range.1.max(smoothness));
    }
    let mu = plan.scenario.vector.mu;
    if range.0 + mu <= 0.0 {
        return Err(format!(
            "vector.mu: dadao needs a strongly convex loss, and {} has no penalty on every \
             parameter; set mu above 0 (1e-3, say)",
            plan.scenario.task.model
        ));
    }
    Ok((range.0 + mu, range.1 + mu))
}

/// Checks what only a seed tells.
///
/// # Errors
/// What cannot be.
pub fn check(plan: &Plan, seed: u64) -> Result<(), Usage> {
    let wrong = |problem: String| Usage(format!("{}: {problem}", plan.path.display()));
    start(plan, seed).map(drop).map_err(wrong)
}

/// A run under way.
struct Course<'a> {
    plan: &'a Plan,
    nodes: Nodes,
    gradients: Gradients<'a>,
    weather: Weather<'a>,
    /// Draws losses and thinned gradients.
    rng: KeyedRng,
    bytes: u64,
    rounds: u64,
    unit_s: f64,
    end_s: f64,
    span_s: f64,
    samples: Vec<Sample>,
    /// A node met numbers that are not finite.
    broken: bool,
    scratch: Vec<f64>,
}

/// Runs a seed; every sample is shown to `watch`.
///
/// # Errors
/// As [`check`].
pub fn run(plan: &Plan, seed: u64, watch: &mut dyn FnMut(&Sample)) -> Result<Outcome> {
    let wrong = |problem: String| Usage(format!("{}: {problem}", plan.path.display()));
    let Start { nodes, graph } = start(plan, seed).map_err(wrong)?;
    let unit_s = plan.scenario.vector.unit_ms / 1000.0;
    let end_s = plan.scenario.time_s.unwrap_or(UNITS * unit_s);
    let dim = plan.objective.base(seed).len();
    let mut course = Course {
        plan,
        nodes,
        gradients: Gradients::new(plan, seed),
        weather: Weather::new(plan),
        rng: KeyedRng::from_seed("rumormill v1 simulated links", seed, 0),
        bytes: 0,
        rounds: 0,
        unit_s,
        end_s,
        span_s: plan.scenario.sample_s.unwrap_or(end_s / SAMPLES),
        samples: Vec::new(),
        broken: false,
        scratch: vec![0.0; dim],
    };
    let speeds = plan.speeds(seed);
    match course.nodes {
        Nodes::Monna(_) => course.rounds(&speeds, watch),
        _ => course.events(Clocks::new(seed, &graph, fastest(&speeds)), &graph, &speeds, watch),
    }
    let verdict = match course.has_diverged() {
        true => Verdict::Diverged,
        false => Verdict::Done,
    };
    Ok(Outcome { seed, verdict, samples: course.samples, models: None, standings: Vec::new() })
}

fn fastest(speeds: &[f64]) -> f64 {
    speeds.iter().copied().fold(0.0, f64::max)
}

impl Course<'_> {
    /// Takes all samples that are due before `time_s`; `false` when the run is over.
    fn sample_until(&mut self, time_s: f64, watch: &mut dyn FnMut(&Sample)) -> bool {
        loop {
            let due_s = (self.samples.len() as f64 * self.span_s).min(self.end_s);
            if due_s >= time_s {
                return true;
            }
            self.weather.advance(due_s);
            let sample = self.sample(due_s);
            watch(&sample);
            self.samples.push(sample);
            if due_s >= self.end_s || self.has_diverged() {
                return false;
            }
        }
    }

    fn has_diverged(&self) -> bool {
        let (Some(first), Some(last)) = (self.samples.first(), self.samples.last()) else {
            return false;
        };
        let lost = last.up > 0 && !last.is_finite();
        self.broken || lost || last.loss_max > DIVERGED * first.loss_max.max(1.0)
    }

    fn sample(&mut self, time_s: f64) -> Sample {
        let time = Time::from_secs_f64(time_s / self.unit_s);
        let mut gathering = Gathering::default();
        let Course { plan, nodes, gradients, weather, .. } = self;
        for &node in gradients.honest.iter().filter(|&&node| weather.up[node]) {
            // A flow composes, so that looking at a node changes it by rounding only.
            let x = match nodes {
                Nodes::Dadao(nodes) => {
                    nodes[node].advance(time);
                    nodes[node].state().x.clone()
                }
                Nodes::Acid(nodes) => {
                    nodes[node].0.advance(time);
                    nodes[node].0.x().to_vec()
                }
                Nodes::Monna(nodes) => nodes[node].x().to_vec(),
            };
            gathering.add(x, |params| {
                let scratch = &mut gradients.scratch;
                let evaluation = plan.objective.evaluate(params, Split::Test, scratch);
                (evaluation.loss, evaluation.accuracy)
            });
        }
        let rounds = matches!(nodes, Nodes::Monna(_)).then_some(self.rounds);
        let (work, bytes) = (gradients.made, self.bytes);
        let mut sample = Sample { time_s, work, bytes, rounds, ..Sample::default() };
        gathering.finish(&mut sample);
        sample
    }

    /// The asynchronous algorithms.
    fn events(
        &mut self,
        mut clocks: Clocks,
        graph: &graph::Graph,
        speeds: &[f64],
        watch: &mut dyn FnMut(&Sample),
    ) {
        let fastest = fastest(speeds);
        loop {
            let (time, event) = clocks.next_event();
            let time_s = time.as_secs_f64() * self.unit_s;
            if !self.sample_until(time_s, watch) {
                return;
            }
            self.weather.advance(time_s);
            match event {
                Event::Gradient(node) => {
                    let kept = self.rng.unit_f64() * fastest < speeds[node];
                    if kept && self.weather.up[node] {
                        self.gradient(time, node);
                    }
                }
                Event::Edge(edge) => {
                    let (a, b) = graph.edges[edge];
                    if self.weather.reaches(a, b) {
                        self.bytes += 2 * 8 * self.scratch.len() as u64;
                        if self.rng.unit_f64() >= self.plan.scenario.link.loss {
                            self.exchange(time, a, b);
                        }
                    }
                }
            }
        }
    }

    fn gradient(&mut self, time: Time, node: usize) {
        let Course { nodes, gradients, scratch, plan, .. } = self;
        let vector = &plan.scenario.vector;
        match nodes {
            Nodes::Dadao(nodes) => nodes[node].on_gradient(time, scratch, |x, out| {
                gradients.told(node, x, out);
            }),
            Nodes::Acid(nodes) => {
                let (node_state, velocity) = &mut nodes[node];
                node_state.on_gradient(time, vector.step, scratch, |x, out| {
                    gradients.told(node, x, out);
                    for (velocity, out) in velocity.iter_mut().zip(out) {
                        *velocity = vector.momentum * *velocity + *out;
                        *out = *velocity;
                    }
                });
            }
            Nodes::Monna(_) => unreachable!("monna runs in rounds"),
        }
    }

    fn exchange(&mut self, time: Time, a: usize, b: usize) {
        let ends = "an edge joins two nodes of the network";
        match &mut self.nodes {
            Nodes::Dadao(nodes) => {
                let [a, b] = nodes.get_disjoint_mut([a, b]).expect(ends);
                dadao::exchange(time, a, b, &mut self.scratch);
            }
            Nodes::Acid(nodes) => {
                let [a, b] = nodes.get_disjoint_mut([a, b]).expect(ends);
                acid::exchange(time, &mut a.0, &mut b.0, &mut self.scratch);
            }
            Nodes::Monna(_) => unreachable!("monna runs in rounds"),
        }
    }

    /// MoNNA.
    fn rounds(&mut self, speeds: &[f64], watch: &mut dyn FnMut(&Sample)) {
        let vector = &self.plan.scenario.vector;
        let faulty = vector.faulty.unwrap_or(self.plan.lies.iter().flatten().count());
        let mut time_s = 0.0;
        loop {
            self.weather.advance(time_s);
            let up: Vec<usize> = (0..self.plan.nodes).filter(|&n| self.weather.up[n]).collect();
            let mut spans: Vec<f64> = up.iter().map(|&node| self.unit_s / speeds[node]).collect();
            spans.sort_by(f64::total_cmp);
            let last = (self.plan.nodes - faulty).min(spans.len());
            // With nobody up, time passes all the same.
            time_s += last.checked_sub(1).map_or(self.unit_s, |last| spans[last]);
            if !self.sample_until(time_s, watch) {
                return;
            }
            if !self.round(&up, faulty) {
                self.broken = true;
                self.sample_until(f64::INFINITY, watch);
                return;
            }
            self.rounds += 1;
        }
    }

    /// One round of the nodes that are up; `false` when an honest gradient is not finite.
    fn round(&mut self, up: &[usize], faulty: usize) -> bool {
        let Course { plan, nodes: Nodes::Monna(nodes), gradients, weather, rng, .. } = self else {
            unreachable!("only monna runs in rounds")
        };
        let dim = self.scratch.len();
        let honest: Vec<usize> =
            up.iter().copied().filter(|&node| plan.lies[node].is_none()).collect();
        if honest.is_empty() {
            return true;
        }
        let center =
            crate::attack::mean(&honest.iter().map(|&node| nodes[node].x()).collect::<Vec<_>>());
        let mut gradient = vec![0.0; dim];
        for &node in up {
            gradients.made += 1;
            gradients.measure(node, nodes[node].x(), &mut gradient);
            let stepped = nodes[node].on_gradient(&gradient, plan.scenario.vector.step);
            if stepped.is_err() && plan.lies[node].is_none() {
                return false;
            }
        }
        let way = |x: &[f64]| -> Vec<f64> { x.iter().zip(&center).map(|(x, c)| x - c).collect() };
        let ways: Vec<Vec<f64>> = honest.iter().map(|&node| way(nodes[node].x())).collect();
        // What every node sends.
        let mut sent: Vec<Option<Vec<f64>>> = vec![None; plan.nodes];
        for &node in up {
            sent[node] = Some(match plan.lies[node] {
                None => nodes[node].x().to_vec(),
                Some(lie) => {
                    let mut told = way(nodes[node].x());
                    gradients.lie(lie, &mut told, &ways);
                    told.iter().zip(&center).map(|(told, c)| told + c).collect()
                }
            });
        }
        self.bytes += (up.len() * up.len().saturating_sub(1) * dim * 8) as u64;
        let wanted = plan.nodes - faulty - 1;
        for &node in &honest {
            let mut others: Vec<usize> =
                up.iter().copied().filter(|&other| other != node).collect();
            rng.shuffle(&mut others);
            // The faulty are never late.
            others.sort_by_key(|&other| plan.lies[other].is_none());
            let loss = plan.scenario.link.loss;
            let mut received = Vec::with_capacity(wanted);
            for other in others {
                let vector = sent[other].as_deref().expect("who is up has sent");
                let arrives = weather.reaches(node, other) && rng.unit_f64() >= loss;
                if received.len() < wanted && arrives && vector.iter().all(|v| v.is_finite()) {
                    received.push(Received { origin: Origin(other as u16), vector });
                }
            }
            if received.len() == wanted {
                nodes[node].mix(&received).expect("the messages are those of a round");
            }
        }
        true
    }
}
