//! A scenario that was found possible: numbers checked, data loaded, troubles by node and time.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rumormill::data::Dataset;
use rumormill::data::shard::Shards;
use rumormill::data::source::DataSource;
use rumormill::fault::value::Lie;
use rumormill::fault::{Fault, FaultKind};
use rumormill::objective::{Objective, build};
use rumormill::params::State;
use rumormill::sample::KeyedRng;
use rumormill_topology::Topology;
use rumormill_topology::family::{Family, Parameters, generate};
use rumormill_topology::format::{Format, parse};
use rumormill_topology::rate::{RateScheme, probabilities};

use super::Usage;
use super::scenario::{Algorithm, ChurnAction, Latency, Scenario};
use crate::data::look;

/// A scenario that can run.
pub struct Plan {
    /// As written.
    pub scenario: Scenario,
    /// Its file, for messages.
    pub path: PathBuf,
    /// Number of nodes.
    pub nodes: usize,
    /// Which nodes are there from the start: the members of the first roster.
    pub founders: Vec<usize>,
    /// How each node lies, or what else is wrong with it.
    pub lies: Vec<Option<Lie>>,
    /// The data.
    pub dataset: Arc<Dataset>,
    /// The model on the data.
    pub objective: Arc<dyn Objective>,
    /// The model on data with other labels, when some node flips them.
    pub flipped: Option<Arc<dyn Objective>>,
    /// The graph, unless a seed draws it.
    file: Option<Topology>,
}

/// The longest time in a scenario, in seconds: a year.
const TIME_MAX_S: f64 = 366.0 * 86_400.0;

/// The most nodes: as many as a roster may have.
const NODES_MAX: usize = rumormill::manifest::ROSTER_LEN_MAX;

/// Seconds for which a node that leaves stays to pass on what it measured.
pub const LEAVING_S: f64 = 1.0;

impl Plan {
    /// Checks a scenario and loads what it names.
    ///
    /// # Errors
    /// The first thing that cannot be, by its key.
    pub fn new(scenario: Scenario, path: &Path) -> Result<Plan, Usage> {
        Plan::checked(scenario, path)
            .map_err(|problem| Usage(format!("{}: {problem}", path.display())))
    }

    fn checked(scenario: Scenario, path: &Path) -> Result<Plan, String> {
        let file = scenario.graph.file.as_deref().map(read_graph).transpose()?;
        let nodes = match (scenario.nodes, &file) {
            (Some(nodes), Some(graph)) if nodes != graph.node_count() => {
                return Err(format!(
                    "nodes is {nodes}, but graph.file has {}; leave nodes out",
                    graph.node_count()
                ));
            }
            (_, Some(graph)) => graph.node_count(),
            (nodes, None) => nodes.unwrap_or(8),
        };
        if !(1..=NODES_MAX).contains(&nodes) {
            return Err(format!("nodes is {nodes}, must be between 1 and {NODES_MAX}"));
        }
        check_times(&scenario, nodes)?;
        check_numbers(&scenario, nodes)?;
        let joins = |node: usize| {
            scenario
                .churn
                .iter()
                .any(|churn| churn.node == node && churn.action == ChurnAction::Join)
        };
        let founders: Vec<usize> = (0..nodes).filter(|&node| !joins(node)).collect();
        if founders.is_empty() {
            return Err("churn: every node joins later; one at least must be there".into());
        }
        let lies = lies(&scenario, nodes)?;
        check_faulty(&scenario, nodes, &founders, &lies)?;
        let source = DataSource {
            data: scenario.task.data.clone(),
            test: scenario.task.test.clone(),
            format: scenario.task.format,
            text: None,
        };
        let dataset = source.load(&look).map_err(|error| format!("task.data: {error}"))?;
        let dataset = Arc::new(dataset);
        let model = |dataset: &Arc<Dataset>| -> Result<Arc<dyn Objective>, String> {
            let built = build(&scenario.task.model, Arc::clone(dataset));
            built.map(Arc::from).map_err(|error| format!("task.model: {error}"))
        };
        let objective = model(&dataset)?;
        let flips = |lie: &Option<Lie>| lie.is_some_and(|lie| lie.kind == FaultKind::LabelFlip);
        let flipped = match lies.iter().any(flips) {
            true => Some(model(&Arc::new(dataset.with_flipped_labels()))?),
            false => None,
        };
        let shards = scenario.task.shards;
        shards
            .split(&dataset.train.labels, founders.len(), 0)
            .map_err(|error| format!("task.shards: {error}"))?;
        let path = path.to_owned();
        let plan =
            Plan { scenario, path, nodes, founders, lies, dataset, objective, flipped, file };
        plan.topology(1)?;
        Ok(plan)
    }

    /// The graph of a seed.
    ///
    /// # Errors
    /// A family that has no such graph.
    pub fn topology(&self, seed: u64) -> Result<Topology, String> {
        let graph = &self.scenario.graph;
        if let Some(file) = &self.file {
            return Ok(file.clone());
        }
        let default = match self.scenario.algorithm {
            Algorithm::Monna => Family::Complete,
            _ => Family::Ring,
        };
        let family = graph.family.unwrap_or(default);
        let parameters = Parameters {
            rows: graph.rows,
            degree: graph.degree,
            probability: graph.probability,
            radius: graph.radius,
        };
        let made = match generate(family, self.nodes, parameters, graph.seed.unwrap_or(seed)) {
            // A ring of one or two nodes is what people mean by a small run.
            Err(_) if self.nodes <= 2 => {
                generate(Family::Line, self.nodes, Parameters::default(), 0)
            }
            made => made,
        };
        let topology = made.map_err(|error| format!("graph: {error}"))?;
        let edges = self.nodes * (self.nodes - 1) / 2;
        if self.scenario.algorithm == Algorithm::Monna && topology.edge_count() != edges {
            return Err("graph: monna needs the complete graph; leave graph.family out".into());
        }
        Ok(topology)
    }

    /// The part of all exchanges that each edge has.
    ///
    /// # Errors
    /// Rates that the graph cannot have.
    pub fn probabilities(&self, topology: &Topology) -> Result<Vec<f64>, String> {
        if topology.edge_count() == 0 {
            return Ok(Vec::new());
        }
        let scheme = self.scenario.graph.rates.unwrap_or(RateScheme::Uniform);
        probabilities(topology, scheme).map_err(|error| format!("graph.rates: {error}"))
    }

    /// The speed of every node, 1 on average (geometrically), before stragglers.
    pub fn speeds(&self, seed: u64) -> Vec<f64> {
        let mut rng = KeyedRng::from_seed("rumormill v1 simulated speeds", seed, 0);
        let spread = self.scenario.compute.spread;
        let mut speeds: Vec<f64> =
            (0..self.nodes).map(|_| spread.powf(rng.unit_f64() - 0.5)).collect();
        for straggler in &self.scenario.straggler {
            speeds[straggler.node] /= straggler.factor;
        }
        speeds
    }

    /// The training rows of every node; `None` means all. Dealt to the founders, and to those who
    /// join once more from the first, as the daemon does.
    pub fn rows(&self, seed: u64) -> Vec<Option<Arc<Vec<u32>>>> {
        if self.scenario.task.shards == Shards::Public {
            return vec![None; self.nodes];
        }
        let founders = self.founders.len();
        let dealt = self.scenario.task.shards.split(&self.dataset.train.labels, founders, seed);
        let dealt: Vec<_> = dealt
            .expect("checked with the plan")
            .into_iter()
            .map(|rows| Some(rows.into()))
            .collect();
        let joiners = (0..self.nodes).filter(|node| !self.founders.contains(node));
        let order: Vec<usize> = self.founders.iter().copied().chain(joiners).collect();
        let mut rows = vec![None; self.nodes];
        for (origin, node) in order.into_iter().enumerate() {
            rows[node] = dealt[origin % founders].clone();
        }
        rows
    }

    /// The base model of a seed.
    ///
    /// # Errors
    /// A base model that no state can hold.
    pub fn base(&self, seed: u64) -> Result<State, String> {
        State::from_base(self.objective.tensors(), self.objective.base(seed))
            .map_err(|error| format!("task.model: {error}"))
    }

    /// Nodes that do not lie.
    pub fn honest(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.nodes).filter(|&node| self.lies[node].is_none())
    }
}

fn read_graph(path: &Path) -> Result<Topology, String> {
    let named = |problem: String| format!("graph.file: {}: {problem}", path.display());
    let text = std::fs::read_to_string(path).map_err(|error| named(error.to_string()))?;
    let format = Format::from_path_suffix(&path.to_string_lossy());
    let parsed = parse(&text, format).map_err(|error| named(error.to_string()))?;
    parsed.topology.require_connected().map_err(|error| named(error.to_string()))?;
    Ok(parsed.topology)
}

fn check_node(key: &str, node: usize, nodes: usize) -> Result<(), String> {
    match node < nodes {
        true => Ok(()),
        false => Err(format!("{key} names node {node}; there are {nodes}, 0 to {}", nodes - 1)),
    }
}

fn check_range(key: &str, value: f64, low: f64, high: f64) -> Result<(), String> {
    match (low..=high).contains(&value) {
        true => Ok(()),
        false => Err(format!("{key} is {value}, must be between {low} and {high}")),
    }
}

fn check_times(scenario: &Scenario, nodes: usize) -> Result<(), String> {
    for (key, time) in [("time_s", scenario.time_s), ("sample_s", scenario.sample_s)] {
        time.map_or(Ok(()), |time| check_range(key, time, 1e-3, TIME_MAX_S))?;
    }
    let mut partitions: Vec<_> = scenario.partition.iter().collect();
    partitions.sort_by(|a, b| a.from_s.total_cmp(&b.from_s));
    for partition in &partitions {
        check_range("partition.from_s", partition.from_s, 0.0, TIME_MAX_S)?;
        check_range("partition.to_s", partition.to_s, 0.0, TIME_MAX_S)?;
        if partition.from_s >= partition.to_s {
            return Err(format!(
                "partition: from_s is {} and to_s {}; it must end after it began",
                partition.from_s, partition.to_s
            ));
        }
        partition.nodes.iter().try_for_each(|&node| check_node("partition.nodes", node, nodes))?;
    }
    if let Some(pair) = partitions.windows(2).find(|pair| pair[1].from_s < pair[0].to_s) {
        return Err(format!(
            "partition: the one from {} s begins before the one from {} s has ended at {} s; one at \
             a time",
            pair[1].from_s, pair[0].from_s, pair[0].to_s
        ));
    }
    let mut churn: Vec<_> = scenario.churn.iter().collect();
    churn.sort_by(|a, b| a.at_s.total_cmp(&b.at_s));
    let mut before: Vec<Option<(f64, ChurnAction)>> = vec![None; nodes];
    for entry in churn {
        check_range("churn.at_s", entry.at_s, 0.0, TIME_MAX_S)?;
        check_node("churn.node", entry.node, nodes)?;
        let possible = match (before[entry.node], entry.action) {
            (None, ChurnAction::Join | ChurnAction::Crash | ChurnAction::Leave) => true,
            (Some((_, ChurnAction::Crash)), ChurnAction::Restart) => true,
            (Some((at_s, ChurnAction::Leave)), ChurnAction::Restart) => {
                entry.at_s > at_s + LEAVING_S
            }
            (
                Some((_, ChurnAction::Join | ChurnAction::Restart)),
                ChurnAction::Crash | ChurnAction::Leave,
            ) => true,
            _ => false,
        };
        if !possible {
            return Err(format!(
                "churn: node {} cannot do {:?} at {} s: a node that is up crashes or leaves, one that \
                 crashed (or left more than a second ago) restarts, and join comes first",
                entry.node, entry.action, entry.at_s
            ));
        }
        before[entry.node] = Some((entry.at_s, entry.action));
    }
    Ok(())
}

fn check_numbers(scenario: &Scenario, nodes: usize) -> Result<(), String> {
    let link = &scenario.link;
    let a_minute = 60_000.0;
    match link.latency_ms {
        Latency::Constant(delay) => check_range("link.latency_ms.constant", delay, 0.0, a_minute)?,
        Latency::Uniform { min, max } => {
            check_range("link.latency_ms.uniform.min", min, 0.0, a_minute)?;
            check_range("link.latency_ms.uniform.max", max, 0.0, a_minute)?;
            if min > max {
                return Err(format!("link.latency_ms.uniform: min {min} is above max {max}"));
            }
        }
        Latency::Lognormal { median, sigma } => {
            check_range("link.latency_ms.lognormal.median", median, 1e-3, a_minute)?;
            check_range("link.latency_ms.lognormal.sigma", sigma, 0.0, 5.0)?;
        }
    }
    let probabilities =
        [("loss", link.loss), ("duplication", link.duplication), ("reorder", link.reorder)];
    for (key, value) in probabilities {
        check_range(&format!("link.{key}"), value, 0.0, 0.95)?;
    }
    check_range("compute.probe_ms", scenario.compute.probe_ms, 1e-3, 1e6)?;
    check_range("compute.spread", scenario.compute.spread, 1.0, 1e4)?;
    for straggler in &scenario.straggler {
        check_node("straggler.node", straggler.node, nodes)?;
        check_range("straggler.factor", straggler.factor, 1e-3, 1e4)?;
    }
    let run = &scenario.run;
    check_range("run.step", run.step, 2f64.powi(-24), 255.9)?;
    check_range("run.redundancy", run.redundancy.unwrap_or(1.0), 1.0, 4096.0)?;
    check_range("run.exchanges_per_round", run.exchanges_per_round, 1e-3, 1e3)?;
    check_range("run.patience_s", run.patience_s, 1e-3, 1e6)?;
    check_range("run.block", run.block as f64, 1.0, 65_536.0)?;
    let vector = &scenario.vector;
    check_range("vector.unit_ms", vector.unit_ms, 1e-3, 1e6)?;
    check_range("vector.rate", vector.rate.unwrap_or(1.0), 1e-6, 1e6)?;
    check_range("vector.step", vector.step, 1e-12, 1e12)?;
    check_range("vector.momentum", vector.momentum, 0.0, 0.999_999)?;
    check_range("vector.beta", vector.beta, 0.0, 0.999_999)?;
    check_range("vector.margin", vector.margin, 1.0, 1e3)?;
    check_range("vector.mu", vector.mu, 0.0, 1e6)
}

/// How each node lies.
fn lies(scenario: &Scenario, nodes: usize) -> Result<Vec<Option<Lie>>, String> {
    let mut faults = vec![None; nodes];
    // Named nodes first, so that counted ones do not take their places.
    for fault in &scenario.fault {
        let kind = fault.kind;
        let injected = Fault::new(kind, fault.factor).map_err(|error| error.to_string())?;
        if kind.needs_sockets() {
            return Err(format!(
                "fault.kind: {kind} needs sockets; try `rumormill local --faulty`"
            ));
        }
        let is_vector = scenario.algorithm != Algorithm::Rumormill;
        if is_vector && !kind.is_value() && kind != FaultKind::Silent {
            let algorithm = scenario.algorithm;
            return Err(format!(
                "fault.kind: {kind} is a fault of record sets, not of {algorithm}"
            ));
        }
        match (fault.nodes.is_empty(), fault.count) {
            (true, None) => return Err("fault: say nodes = [..] or count = N".into()),
            (false, Some(_)) => return Err("fault: say nodes or count, not both".into()),
            _ => {}
        }
        for &node in &fault.nodes {
            check_node("fault.nodes", node, nodes)?;
            if faults[node].replace(injected).is_some() {
                return Err(format!("fault: node {node} is named twice; a node has one fault"));
            }
        }
    }
    for fault in &scenario.fault {
        for _ in 0..fault.count.unwrap_or(0) {
            let Some(free) = faults.iter().rposition(Option::is_none) else {
                return Err(format!("fault: more faulty nodes than the {nodes} there are"));
            };
            faults[free] = Some(Fault { kind: fault.kind, factor: fault.factor });
        }
    }
    if faults.iter().all(Option::is_some) {
        return Err(format!("fault: all {nodes} nodes are faulty; one at least must be honest"));
    }
    let mut place = 0..;
    Ok(faults.into_iter().map(|fault| Some(Lie::of(fault?, place.next()?))).collect())
}

fn check_faulty(
    scenario: &Scenario,
    nodes: usize,
    founders: &[usize],
    lies: &[Option<Lie>],
) -> Result<(), String> {
    let faulty = lies.iter().flatten().count();
    match scenario.algorithm {
        Algorithm::Rumormill => {
            let members = founders.len();
            let third = (members - 1) / 3;
            let tolerated = scenario.run.tolerate.map_or(third, usize::from);
            let least = 3 * tolerated + 1;
            if members < least {
                return Err(format!(
                    "run.tolerate is {tolerated}, but {members} members tolerate at most {third} \
                     (R ≥ 3f + 1): at least {least} nodes are needed"
                ));
            }
            // Lies about values alone can be found out by audits, up to nearly half.
            let audited = scenario.run.audit_permille > 0
                && 2 * faulty < members
                && lies.iter().flatten().all(|lie| lie.kind != FaultKind::Silent);
            if faulty > tolerated && !audited {
                return Err(format!(
                    "fault: {faulty} faulty nodes, but {members} members tolerate {tolerated} \
                     (R ≥ 3f + 1): make fewer faulty, or have {} nodes",
                    3 * faulty + 1
                ));
            }
        }
        Algorithm::Monna => {
            let tolerated = scenario.vector.faulty.unwrap_or(faulty);
            if 2 * tolerated >= nodes {
                return Err(format!(
                    "vector.faulty: {tolerated} faulty of {nodes} nodes; fewer than half must be \
                     (at least {} nodes)",
                    2 * tolerated + 1
                ));
            }
        }
        Algorithm::Dadao | Algorithm::Acid | Algorithm::Gossip => {}
    }
    Ok(())
}
