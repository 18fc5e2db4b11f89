//! A run of the record-set algorithm: the daemon's own protocol values on the simulated network.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use rumormill::data::shard::Shards;
use rumormill::fault::FaultKind;
use rumormill::fault::wire::Saboteur;
use rumormill::id::{Height, Round};
use rumormill::keys::Keys;
use rumormill::manifest::{DataMode, Founders, Manifest};
use rumormill::objective::{Scratch, Split};
use rumormill::params::State;
use rumormill::protocol::{Config, EdgeRate, Event, Protocol};
use rumormill::sample::KeyedRng;
use rumormill::selection::Rule;
use rumormill::time::Time;
use rumormill_topology::Topology;

use super::plan::{LEAVING_S, Plan};
use super::scenario::{ChurnAction, Latency, Link};
use super::trace::{Gathering, Sample};
use super::{Outcome, Standing, Usage, Verdict};
use crate::simulation::{Action, LinkModel, Simulation};
use crate::trainer::{ModelTrainer, Pupil, Subject, scale_exponent};

/// Model seconds after which a run that does not end by itself has failed: a day.
const TIME_LIMIT_S: f64 = 86_400.0;

/// Model seconds without a probe or a certificate, with nothing planned, after which it has, too.
const STANDSTILL_S: f64 = 1_800.0;

/// Seconds that a finished node waits for others: their partitions may be long.
const LINGER_S: f64 = 3_600.0;

/// Manifest and subject of a seed.
fn prepare(plan: &Plan, seed: u64, keys: &[Keys]) -> Result<(Manifest, Subject), Usage> {
    let wrong = |problem: String| Usage(format!("{}: {problem}", plan.path.display()));
    let (run, task) = (&plan.scenario.run, &plan.scenario.task);
    let base = plan.base(seed).map_err(wrong)?;
    let redundancy = run.redundancy.unwrap_or(if run.selection == Rule::Mean { 1.0 } else { 3.0 });
    let public = task.shards == Shards::Public;
    let mut manifest = Manifest {
        name: "simulation".into(),
        seed,
        model: task.model.to_string(),
        data: plan.dataset.name.clone(),
        data_hash: hex(&plan.dataset.hash()),
        base_hash: hex(&base.hash()),
        data_mode: if public { DataMode::Public } else { DataMode::Private },
        shards: task.shards.to_string(),
        rounds: run.rounds,
        rounds_per_height: run.rounds_per_height,
        probes_per_round: run.probes_per_round,
        redundancy_256: (redundancy * 256.0).round() as u32,
        staleness: run.staleness,
        batch: task.batch,
        epsilon_log2: task.epsilon_log2,
        step_24: ((run.step * f64::from(1 << 24)).round() as u32).max(1),
        selection: run.selection,
        audit_permille: run.audit_permille,
        window: run.window,
        faulty: run.tolerate,
        founders: Founders::Members(plan.founders.iter().map(|&node| keys[node].id()).collect()),
        ..Manifest::template()
    };
    manifest.check().map_err(|error| wrong(error.to_string()))?;
    let subject = Subject {
        objective: plan.objective.clone(),
        flipped: plan.flipped.clone(),
        population: plan.dataset.train.rows(),
        base,
    };
    manifest.scale_exponent = scale_exponent(&manifest, &subject);
    Ok((manifest, subject))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn link_model(link: &Link) -> LinkModel {
    let millis = |span: f64| Time::from_secs_f64(span / 1000.0);
    let (latency, jitter, sigma) = match link.latency_ms {
        Latency::Constant(delay) => (millis(delay), Time::ZERO, 0.0),
        Latency::Uniform { min, max } => (millis(min), millis(max - min), 0.0),
        Latency::Lognormal { median, sigma } => (millis(median), Time::ZERO, sigma),
    };
    let Link { loss, duplication, reorder, .. } = *link;
    LinkModel { latency, jitter, sigma, loss, duplication, reorder }
}

/// Every node's own settings.
fn configs(
    plan: &Plan,
    seed: u64,
    keys: &[Keys],
    topology: &Topology,
) -> Result<Vec<Config>, String> {
    let run = &plan.scenario.run;
    let parts = plan.probabilities(topology)?;
    let edges = topology.edge_count() as f64;
    let config = |node: usize| {
        let mut input = seed.to_le_bytes().to_vec();
        input.extend((node as u64).to_le_bytes());
        let ends = topology.edges().iter().zip(&parts);
        let shares = ends.filter_map(|(edge, part)| match node {
            _ if edge.a == node => Some((keys[edge.b].id(), part * edges)),
            _ if edge.b == node => Some((keys[edge.a].id(), part * edges)),
            _ => None,
        });
        Config {
            clock_seed: blake3::derive_key("rumormill v1 simulated clock", &input),
            edge_rate: EdgeRate::PerRound(run.exchanges_per_round),
            edge_shares: shares.collect(),
            block: run.block,
            patience: Time::from_secs_f64(run.patience_s),
            linger: Time::from_secs_f64(LINGER_S),
            ..Config::default()
        }
    };
    Ok((0..plan.nodes).map(config).collect())
}

/// The network of a seed, with everything that will happen to it.
fn network(plan: &Plan, seed: u64) -> Result<Simulation<ModelTrainer>, Usage> {
    let wrong = |problem: String| Usage(format!("{}: {problem}", plan.path.display()));
    let scenario = &plan.scenario;
    let topology = plan.topology(seed).map_err(wrong)?;
    let keys: Vec<Keys> = (0..plan.nodes as u64).map(Keys::simulated).collect();
    let (manifest, subject) = prepare(plan, seed, &keys)?;
    let configs = configs(plan, seed, &keys, &topology).map_err(wrong)?;
    let rows = plan.rows(seed);
    let pupils = keys.iter().zip(rows).zip(&plan.lies);
    let pupils = pupils.map(|((keys, rows), &lie)| Pupil { id: keys.id(), rows, lie }).collect();
    let trainer = ModelTrainer::new(&manifest, subject, pupils, scenario.run.auditors, seed);
    let breaks = |node: usize| plan.lies[node].map(|lie| lie.kind).filter(|kind| !kind.is_value());
    let saboteur = |node: usize| {
        let rng = KeyedRng::from_seed("rumormill v1 simulated saboteur", seed, node as u64);
        Some(Saboteur::new(breaks(node)?, manifest.clone(), keys[node].clone(), rng))
    };
    let saboteurs: Vec<Option<Saboteur>> = (0..plan.nodes).map(saboteur).collect();
    let edges = topology.edges().iter().map(|edge| (edge.a, edge.b)).collect();
    let link = link_model(&scenario.link);
    let mut network = Simulation::new(manifest, keys, configs, edges, link, seed, trainer);
    for (node, saboteur) in network.nodes.iter_mut().zip(saboteurs) {
        node.saboteur = saboteur;
    }
    for (node, speed) in network.nodes.iter_mut().zip(plan.speeds(seed)) {
        node.probe_time = Time::from_secs_f64(scenario.compute.probe_ms / 1000.0 / speed);
    }
    let silent = |node: usize| plan.lies[node].is_some_and(|lie| lie.kind == FaultKind::Silent);
    for &node in plan.founders.iter().filter(|&&node| !silent(node)) {
        network.at(Time::ZERO, Action::Start(node));
    }
    for entry in scenario.churn.iter().filter(|entry| !silent(entry.node)) {
        let (node, at) = (entry.node, Time::from_secs_f64(entry.at_s));
        let stop = Action::Crash { node, lost_tail: 0 };
        match entry.action {
            ChurnAction::Crash => network.at(at, stop),
            ChurnAction::Restart | ChurnAction::Join => network.at(at, Action::Start(node)),
            ChurnAction::Leave => {
                network.at(at, Action::StopProbing(node));
                network.at(at + Time::from_secs_f64(LEAVING_S), stop);
            }
        }
    }
    for partition in &scenario.partition {
        let nodes = partition.nodes.iter().copied().collect::<BTreeSet<_>>();
        network.at(Time::from_secs_f64(partition.from_s), Action::Partition(nodes));
        network.at(Time::from_secs_f64(partition.to_s), Action::Heal);
    }
    Ok(network)
}

/// Checks what only a seed tells.
///
/// # Errors
/// What cannot be.
pub fn check(plan: &Plan, seed: u64) -> Result<(), Usage> {
    network(plan, seed).map(drop)
}

/// The models of the honest nodes that are up, at the time of a sample.
pub struct Models<'a> {
    plan: &'a Plan,
    network: &'a Simulation<ModelTrainer>,
}

impl Models<'_> {
    /// The parameters of each node.
    pub fn parameters(&self) -> Vec<Vec<f32>> {
        up(self.plan, self.network)
            .map(|node| {
                let state = self.network.trainer.state(node);
                let mut params = vec![0.0; state.layout().dim()];
                state.write_view(&mut params);
                params
            })
            .collect()
    }
}

/// Runs a seed; every sample is shown to `watch`.
///
/// # Errors
/// As [`check`].
pub fn run(plan: &Plan, seed: u64, watch: &mut dyn FnMut(&Sample)) -> Result<Outcome> {
    follow(plan, seed, &mut |sample, _| watch(sample))
}

/// As [`run`], for who wants to see the models, too.
///
/// # Errors
/// As [`check`].
pub fn follow(
    plan: &Plan,
    seed: u64,
    watch: &mut dyn FnMut(&Sample, &Models<'_>),
) -> Result<Outcome> {
    let mut network = network(plan, seed)?;
    let mut evaluator = Evaluator::default();
    let span = plan.scenario.sample_s.unwrap_or(1.0);
    let end = plan.scenario.time_s.unwrap_or(TIME_LIMIT_S);
    let mut samples: Vec<Sample> = Vec::new();
    let mut moved_s = 0.0;
    let mut judged = Judged::default();
    let verdict = loop {
        let at = (samples.len() as f64 * span).min(end);
        let idle = network.run(Time::from_secs_f64(at));
        if let Some(witness) = up(plan, &network).next() {
            judged.look(protocol(&network, witness));
        }
        let done = idle || is_settled(plan, &network);
        // A run that is over is sampled at its last event.
        let at = if done { network.now.as_secs_f64() } else { at };
        let sample = sample(plan, &network, at, &mut evaluator);
        watch(&sample, &Models { plan, network: &network });
        let moved = samples.last().is_none_or(|last| {
            (last.work, last.rounds, last.up) != (sample.work, sample.rounds, sample.up)
        });
        if moved || network.is_planned() {
            moved_s = at;
        }
        samples.push(sample);
        let honest_up = up(plan, &network);
        if honest_up.clone().any(|node| network.trainer.is_out_of_range(node))
            || (sample.up > 0 && !sample.is_finite())
        {
            break Verdict::Diverged;
        }
        if done || at >= end || at - moved_s > STANDSTILL_S {
            break verdict(plan, &network, done);
        }
    };
    let states: Vec<[u8; 32]> =
        up(plan, &network).map(|node| network.trainer.state(node).hash()).collect();
    let models = states.iter().collect::<BTreeSet<_>>().len();
    report_news(plan, &network, seed);
    let standings = standings(plan, &network, &judged);
    Ok(Outcome { seed, verdict, samples, models: Some(models), standings })
}

/// Trust and weights of the rounds that the first honest node closed.
#[derive(Default)]
struct Judged {
    /// By round, by origin. Rounds that were certified long before a look are not in it.
    rounds: BTreeMap<u64, (Vec<f64>, Vec<f64>)>,
}

impl Judged {
    fn look(&mut self, witness: &Protocol) {
        // What was seen may have changed since, as long as it is held there.
        let held =
            (0..witness.round().0).rev().map(|round| (round, witness.update_of(Round(round))));
        let held = held.skip_while(|(_, update)| update.is_none());
        for (round, update) in held.map_while(|(round, update)| Some((round, update?))) {
            self.rounds.insert(round, (update.trust.clone(), update.weights.clone()));
        }
    }

    /// Mean trust and weight of an origin before a round, the weight beside that of all.
    fn means(&self, origin: usize, until: u64) -> (Option<f64>, Option<f64>) {
        let rounds = self.rounds.range(..until).map(|(_, judged)| judged);
        let (mut trust, mut weight, mut all, mut trusted, mut weighed) = (0.0, 0.0, 0.0, 0, 0);
        for (trusts, weights) in rounds {
            if let Some(value) = trusts.get(origin) {
                trust += value;
                trusted += 1;
            }
            if let Some(value) = weights.get(origin) {
                weight += value;
                all += weights.iter().sum::<f64>() / weights.len() as f64;
                weighed += 1;
            }
        }
        let share = (weighed > 0 && all > 0.0).then_some(weight / all);
        ((trusted > 0).then(|| trust / f64::from(trusted)), share)
    }
}

/// What the first honest node has to say of verdicts and replaced heights, on stderr.
fn report_news(plan: &Plan, network: &Simulation<ModelTrainer>, seed: u64) {
    let Some(witness) = up(plan, network).next() else { return };
    let name = |id| (0..plan.nodes).find(|&node| network.trainer.id(node) == id);
    for (at, event) in &network.nodes[witness].events {
        let at = at.as_secs_f64();
        match event {
            Event::Convicted { origin, from, score } => eprintln!(
                "seed {seed}: {at:.2} s: node {:?} excluded from height {} on: audits fit by {:.2} \
                 ({} repetitions by {} auditors)",
                name(*origin),
                from.0,
                score.correlation,
                score.samples,
                score.auditors
            ),
            Event::Replaced { height } => {
                eprintln!("seed {seed}: {at:.2} s: a larger certificate of height {}", height.0);
            }
            _ => {}
        }
    }
}

fn standings(plan: &Plan, network: &Simulation<ModelTrainer>, judged: &Judged) -> Vec<Standing> {
    let Some(witness) = up(plan, network).next() else { return Vec::new() };
    let (events, witness) = (&network.nodes[witness].events, protocol(network, witness));
    let doubted_from = |id| {
        events.iter().find_map(|(_, event)| match event {
            Event::Doubted { origins, from } if origins.contains(&id) => Some(from.0),
            _ => None,
        })
    };
    let excluded = witness.excluded();
    let scores = witness.audit_scores();
    let nodes = 0..plan.nodes;
    nodes
        .filter_map(|node| {
            let id = network.trainer.id(node);
            let origin = witness.roster().origin(&id)?;
            let per_height = u64::from(plan.scenario.run.rounds_per_height);
            let excluded_from = excluded.get(&origin).map(|from| from * per_height);
            let (trust, weight) = judged.means(origin.index(), excluded_from.unwrap_or(u64::MAX));
            Some(Standing {
                node,
                doubted_from: doubted_from(id).map(|from| from * per_height),
                excluded_from,
                audit_score: scores[origin.index()].map(|score| score.correlation),
                trust,
                weight,
            })
        })
        .collect()
}

/// Honest nodes that are up.
fn up<'a>(
    plan: &'a Plan,
    network: &'a Simulation<ModelTrainer>,
) -> impl Iterator<Item = usize> + Clone + 'a {
    let honest = (0..plan.nodes).filter(|&node| plan.lies[node].is_none());
    honest.filter(|&node| network.nodes[node].protocol.is_some())
}

fn protocol(network: &Simulation<ModelTrainer>, node: usize) -> &Protocol {
    network.nodes[node].protocol.as_ref().expect("the node is up")
}

/// Whether nothing more is planned and all honest nodes that are up are through alike: the rest of
/// the run would only be waiting for those that are gone.
fn is_settled(plan: &Plan, network: &Simulation<ModelTrainer>) -> bool {
    let mut digests = BTreeSet::new();
    let finished = up(plan, network).all(|node| {
        digests.insert(protocol(network, node).digest().0);
        protocol(network, node).is_finished()
    });
    finished && digests.len() == 1 && !network.is_planned()
}

/// Loss and accuracy of models, remembered: nodes that wait keep theirs for long.
#[derive(Default)]
struct Evaluator {
    scratch: Scratch,
    known: BTreeMap<[u8; 32], (f64, f64)>,
}

impl Evaluator {
    fn quality(&mut self, plan: &Plan, state: &State, params: &[f32]) -> (f64, f64) {
        let hash = state.hash();
        if let Some(quality) = self.known.get(&hash) {
            return *quality;
        }
        // What nodes hold now is found again soon, if at all.
        if self.known.len() >= 4 * plan.nodes {
            self.known.clear();
        }
        let evaluation = plan.objective.evaluate(params, Split::Test, &mut self.scratch);
        *self.known.entry(hash).or_insert((evaluation.loss, evaluation.accuracy))
    }
}

fn sample(
    plan: &Plan,
    network: &Simulation<ModelTrainer>,
    time_s: f64,
    evaluator: &mut Evaluator,
) -> Sample {
    let mut gathering = Gathering::default();
    for node in up(plan, network) {
        let state = network.trainer.state(node);
        let mut params = vec![0.0; state.layout().dim()];
        state.write_view(&mut params);
        gathering.add(params.into_iter().map(f64::from).collect(), |params| {
            evaluator.quality(plan, state, params)
        });
    }
    let per_height = u64::from(plan.scenario.run.rounds_per_height);
    let certified = up(plan, network).map(|node| protocol(network, node).certified()).min();
    let mut sample = Sample {
        time_s,
        work: network.trainer.probes,
        bytes: network.bytes_sent,
        rounds: Some(certified.unwrap_or(0) * per_height),
        ..Sample::default()
    };
    gathering.finish(&mut sample);
    sample
}

/// Whether honest nodes agree. At the end of the rounds their whole chains and models are
/// compared; when time is up, the chains as far as all have certified.
fn verdict(plan: &Plan, network: &Simulation<ModelTrainer>, done: bool) -> Verdict {
    let nodes: Vec<usize> = up(plan, network).collect();
    if nodes.is_empty() {
        return Verdict::Unfinished("no honest node is up".into());
    }
    let unfinished = nodes.iter().find(|&&node| !protocol(network, node).is_finished());
    if let (Some(&node), true) = (unfinished, done || plan.scenario.time_s.is_none()) {
        let missing = protocol(network, node).missing();
        return Verdict::Unfinished(format!("node {node} is not through: {missing}"));
    }
    let differ = |what: &str| Verdict::Differ(format!("honest nodes differ in their {what}"));
    if unfinished.is_some() {
        let certified = nodes.iter().map(|&node| protocol(network, node).certified()).min();
        let digests: BTreeSet<_> = nodes
            .iter()
            .filter_map(|&node| {
                network.nodes[node].events.iter().rev().find_map(|(_, event)| match event {
                    Event::Certified { height: Height(height), digest, .. }
                        if Some(height + 1) == certified =>
                    {
                        Some(digest.0)
                    }
                    _ => None,
                })
            })
            .collect();
        return if digests.len() > 1 { differ("certified chains") } else { Verdict::Agreed };
    }
    let digests: BTreeSet<_> = nodes.iter().map(|&n| protocol(network, n).digest().0).collect();
    let hashes: BTreeSet<_> = nodes.iter().map(|&n| network.trainer.state(n).hash()).collect();
    match (digests.len(), hashes.len()) {
        (1, 1) => Verdict::Agreed,
        (1, _) => differ("models"),
        _ => differ("chains"),
    }
}
