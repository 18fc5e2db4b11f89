//! A large network of the combined protocol in one thread, and what it costs.
//!
//! Nodes sit on a random regular graph and train a logistic regression of 123 features on synthetic
//! rows that all hold. Signatures are simulated and results are shared between nodes
//! ([`rumormill::protocol::Cache`]); frames, ledgers, rounds and certificates are the daemon's. A
//! round has about as many directions as the model has parameters: more say nothing new of its
//! gradient, so the probes of a thousand nodes are repetitions on other minibatches.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context, Result};
use multiversion::multiversion;
use rumormill::direction::Direction;
use rumormill::id::{Round, RunId, Slot};
use rumormill::keys::Keys;
use rumormill::manifest::{Founders, Manifest};
use rumormill::params::COEFFICIENT_LOG2;
use rumormill::protocol::{Change, Config, EdgeRate, Probe};
use rumormill::sample::{KeyedRng, minibatch};
use rumormill::time::Time;
use rumormill_topology::family::{Family, Parameters, generate};

use crate::simulation::{LinkModel, Simulation, Trainer};

/// Features of the model; a bias comes on top.
const FEATURES: usize = 123;

/// Rows that all nodes hold.
const ROWS: usize = 4096;

/// Probes end at θ ± 2^`EPSILON_LOG2`.
const EPSILON_LOG2: i32 = -8;

/// Rounds whose directions are kept: a late record may still change them.
const ROUNDS_KEPT: usize = 64;

/// What to simulate.
#[derive(clap::Args, Clone, Debug)]
pub struct Scale {
    /// Nodes.
    #[arg(long, default_value_t = 1000)]
    nodes: usize,
    /// Rounds, rounded up to whole heights.
    #[arg(long, default_value_t = 100)]
    rounds: u64,
    /// Neighbors of each node.
    #[arg(long, default_value_t = 6)]
    degree: usize,
    /// Probes that a node aims at in a round; it makes at most twice as many.
    #[arg(long, default_value_t = 1)]
    probes_per_round: u32,
    /// Directions in a round.
    #[arg(long, default_value_t = 128)]
    directions: u32,
    /// Rounds that are certified together.
    #[arg(long, default_value_t = 20)]
    rounds_per_height: u32,
    /// Faulty members to tolerate [default: the most that R ≥ 3f + 1 allows].
    #[arg(long)]
    tolerate: Option<u16>,
    /// Share of the frames that are lost.
    #[arg(long, default_value_t = 0.0)]
    loss: f64,
    /// Rounds that a node may run beyond the ones it has closed.
    #[arg(long, default_value_t = 16)]
    staleness: u32,
    /// Exchanges a second on an edge, of both ends together; a probe takes 10 ms.
    #[arg(long, default_value_t = 2.0)]
    edge_rate: f64,
    /// Encode and decode every frame; otherwise frames are passed on as values and only counted.
    #[arg(long)]
    bytes: bool,
    /// Seed of graph, data and clocks.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

impl Scale {
    /// Simulates and prints; whether all nodes ended identical.
    ///
    /// # Errors
    /// There is no such graph, or the manifest is out of its ranges.
    pub fn run(&self) -> Result<bool> {
        let parameters = Parameters { degree: Some(self.degree), ..Parameters::default() };
        let graph = generate(Family::RandomRegular, self.nodes, parameters, self.seed)?;
        let edges = graph.edges().iter().map(|ends| (ends.a, ends.b)).collect();
        let keys: Vec<Keys> = (0..self.nodes as u64).map(Keys::simulated).collect();
        let probes = self.nodes as u64 * u64::from(self.probes_per_round);
        let redundancy = probes as f64 / f64::from(self.directions);
        let manifest = Manifest {
            seed: self.seed,
            model: "logistic".into(),
            data: "synthetic".into(),
            rounds: self.rounds,
            rounds_per_height: self.rounds_per_height,
            probes_per_round: self.probes_per_round,
            redundancy_256: (redundancy * 256.0).max(256.0) as u32,
            staleness: self.staleness,
            batch: 16,
            epsilon_log2: EPSILON_LOG2,
            scale_exponent: -2,
            faulty: self.tolerate,
            founders: Founders::Members(keys.iter().map(Keys::id).collect()),
            ..Manifest::template()
        };
        manifest.check().context("such a network has no valid manifest")?;
        let configs = (0..self.nodes as u64)
            .map(|node| {
                let mut rng = KeyedRng::from_seed("rumormill v1 bench-sim clocks", self.seed, node);
                Config {
                    clock_seed: std::array::from_fn(|_| rng.next_u32() as u8),
                    edge_rate: EdgeRate::PerSecond(self.edge_rate),
                    ..Config::default()
                }
            })
            .collect();
        let trainer = SyntheticLogistic::new(&manifest, keys.len());
        let link = LinkModel { loss: self.loss, ..LinkModel::default() };
        let mut network = Simulation::new(manifest, keys, configs, edges, link, self.seed, trainer);
        network.keeps_logs = false;
        network.passes_frames = !self.bytes;
        let started = Instant::now();
        network.start_all();
        let done = network.run(Time::from_millis(24 * 3_600_000));
        let wall_s = started.elapsed().as_secs_f64();
        self.report(&network, done, wall_s);
        Ok(done && identical(&network))
    }

    fn report(&self, network: &Simulation<SyntheticLogistic>, done: bool, wall_s: f64) {
        let protocols: Vec<_> =
            network.nodes.iter().filter_map(|node| node.protocol.as_ref()).collect();
        let total = |of: fn(&rumormill::protocol::Stats) -> u64| -> u64 {
            protocols.iter().map(|protocol| of(&protocol.stats())).sum()
        };
        let probes = total(|stats| stats.probes);
        println!("nodes            {}", self.nodes);
        println!(
            "rounds           {}",
            network.nodes[0].protocol.as_ref().map_or(0, |p| p.round().0)
        );
        println!("probes           {probes}");
        println!("model time       {:.2} s", network.now.as_secs_f64());
        println!("wall, processor  {wall_s:.1} s, {:.1} s", processor_s().unwrap_or(f64::NAN));
        println!("peak memory      {:.0} MB", peak_mb().unwrap_or(f64::NAN));
        println!("exchanges        {}", total(|stats| stats.exchanges));
        println!("accepted         {}", total(|stats| stats.accepted));
        println!("duplicates       {}", total(|stats| stats.duplicates));
        println!("acks             {}", total(|stats| stats.acks));
        println!("impatient        {}", total(|stats| stats.impatient));
        println!(
            "bytes a record   {:.2}",
            total(|s| s.bytes_sent) as f64 / total(|s| s.accepted) as f64
        );
        let trainer = &network.trainer;
        let (first, last) = (trainer.loss(&[0; FEATURES + 1]), trainer.loss(&trainer.models[0]));
        println!("loss             {first:.4} at first, {last:.4} at last");
        let verdict = if done && identical(network) { "yes" } else { "no" };
        println!("identical        {verdict}");
    }
}

/// Whether all nodes have finished with one digest and one model.
fn identical(network: &Simulation<SyntheticLogistic>) -> bool {
    let digest = |node: usize| {
        let protocol = network.nodes[node].protocol.as_ref()?;
        protocol.is_finished().then(|| protocol.digest())
    };
    (0..network.nodes.len()).all(|node| {
        digest(node).is_some()
            && digest(node) == digest(0)
            && network.trainer.models[node] == network.trainer.models[0]
    })
}

/// Processor time of this process so far, in seconds; `None` where the system does not tell.
fn processor_s() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?;
    Some(ticks / 100.0)
}

/// The most memory that this process ever had resident, in megabytes.
fn peak_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<f64>().ok()? / 1024.0)
}

/// A direction's signs.
struct Signs {
    factors: [f32; FEATURES + 1],
    /// All bits set where the sign is −1: a quarter of the memory, which is what applying waits for.
    masks: [i8; FEATURES + 1],
}

/// The signs of a round's slots that were asked for.
type Slots = Vec<Option<Box<Signs>>>;

fn signs<'a>(slots: &'a mut Slots, run: &RunId, round: Round, slot: Slot) -> &'a Signs {
    let at = slot.0 as usize;
    if slots.len() <= at {
        slots.resize_with(at + 1, || None);
    }
    slots[at].get_or_insert_with(|| {
        let direction = Direction::new(run, round, slot);
        let signs: [i8; FEATURES + 1] = std::array::from_fn(|p| direction.sign(0, p as u64));
        Box::new(Signs { factors: signs.map(f32::from), masks: signs.map(|sign| sign >> 1) })
    })
}

/// Logistic regression on synthetic rows that all nodes hold.
pub struct SyntheticLogistic {
    run: RunId,
    rows: Vec<[f32; FEATURES + 1]>,
    labels: Vec<bool>,
    batch: Vec<u32>,
    /// By node, in units of 2⁻⁴⁰: coefficients add up exactly, in whatever order they come.
    models: Vec<[i64; FEATURES + 1]>,
    /// Signs of the directions of late rounds.
    directions: BTreeMap<Round, Slots>,
}

impl SyntheticLogistic {
    fn new(manifest: &Manifest, nodes: usize) -> SyntheticLogistic {
        let mut rng = KeyedRng::from_seed("rumormill v1 synthetic rows", manifest.seed, 0);
        let truth: Vec<f32> = (0..=FEATURES).map(|_| rng.symmetric(1.0)).collect();
        let mut rows = Vec::with_capacity(ROWS);
        let mut labels = Vec::with_capacity(ROWS);
        for _ in 0..ROWS {
            let mut row: [f32; FEATURES + 1] = std::array::from_fn(|_| rng.symmetric(1.0));
            row[FEATURES] = 1.0;
            let margin: f32 = row.iter().zip(&truth).map(|(x, w)| x * w).sum();
            labels.push(margin + rng.symmetric(1.0) > 0.0);
            rows.push(row);
        }
        SyntheticLogistic {
            run: manifest.run_id(),
            models: vec![[0; FEATURES + 1]; nodes],
            rows,
            labels,
            batch: vec![0; manifest.batch as usize],
            directions: BTreeMap::new(),
        }
    }

    fn slots(directions: &mut BTreeMap<Round, Slots>, round: Round) -> &mut Slots {
        if directions.len() > ROUNDS_KEPT {
            directions.pop_first();
        }
        directions.entry(round).or_default()
    }

    /// The mean loss of a node's model over all rows.
    fn loss(&self, model: &[i64; FEATURES + 1]) -> f64 {
        let weights = view(model);
        let losses = self.rows.iter().zip(&self.labels);
        let losses = losses.map(|(row, &label)| f64::from(logistic(dot(row, &weights), label)));
        losses.sum::<f64>() / ROWS as f64
    }
}

fn view(model: &[i64; FEATURES + 1]) -> [f32; FEATURES + 1] {
    let unit = 2f64.powi(COEFFICIENT_LOG2);
    model.map(|value| (value as f64 * unit) as f32)
}

/// Adds `difference` with a direction's signs. As `−d = (d xor −1) + 1`, without a branch or a choice.
#[multiversion(targets("x86_64+avx2", "aarch64+neon"))]
fn add(model: &mut [i64; FEATURES + 1], masks: &[i8; FEATURES + 1], difference: i64) {
    for (value, &mask) in model.iter_mut().zip(masks) {
        let mask = i64::from(mask);
        *value += (difference ^ mask) - mask;
    }
}

/// The sum of products, in four sums at a time.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0; 4];
    for (a, b) in a.as_chunks::<4>().0.iter().zip(b.as_chunks::<4>().0) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum()
}

/// log(1 + e^−margin), for the label's side.
fn logistic(margin: f32, label: bool) -> f32 {
    let margin = if label { margin } else { -margin };
    (-margin.abs()).exp().ln_1p() + (-margin).max(0.0)
}

impl Trainer for SyntheticLogistic {
    fn apply(&mut self, node: usize, changes: &[Change]) {
        let model = &mut self.models[node];
        for changes in changes.chunk_by(|a, b| a.round == b.round) {
            let slots = Self::slots(&mut self.directions, changes[0].round);
            for change in changes {
                let signs = signs(slots, &self.run, change.round, change.slot);
                add(model, &signs.masks, change.to - change.from);
            }
        }
    }

    fn losses(&mut self, node: usize, probe: Probe) -> (f32, f32) {
        let Probe { round, slot, of } = probe;
        let slots = Self::slots(&mut self.directions, round);
        let signs = signs(slots, &self.run, round, slot);
        minibatch(&self.run, &of, round, slot, ROWS, &mut self.batch);
        let weights = view(&self.models[node]);
        let epsilon = 2f32.powi(EPSILON_LOG2);
        let (mut plus, mut minus) = (0.0, 0.0);
        for &row in &self.batch {
            let (row, label) = (&self.rows[row as usize], self.labels[row as usize]);
            let (margin, slope) = (dot(row, &weights), dot(row, &signs.factors));
            plus += logistic(margin + epsilon * slope, label);
            minus += logistic(margin - epsilon * slope, label);
        }
        let rows = self.batch.len() as f32;
        (plus / rows, minus / rows)
    }

    fn reset(&mut self, node: usize) {
        self.models[node] = [0; FEATURES + 1];
    }
}
