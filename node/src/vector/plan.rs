//! From the command line to an algorithm's constants: graph numbers, curvature, the unit of time.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use rumormill::data::Dataset;
use rumormill::data::shard::Shards;
use rumormill::id::{NodeId, RunId};
use rumormill::objective::{Objective, Scratch, build};
use rumormill::sample::KeyedRng;
use rumormill::selection::Rule;
use rumormill::time::Time;
use rumormill::vector::peer::{Algorithm, Precision, Schedule, Settings};
use rumormill::vector::{acid, dadao, monna};
use rumormill_topology::Topology;
use rumormill_topology::rate::{RateScheme, probabilities};
use rumormill_topology::spectrum;

use super::Work;
use crate::identity::Identity;
use crate::local::{AlgorithmName, LocalArgs, shares_of};

/// What only the vector algorithms take.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Vector algorithms (dadao, one-byte-dadao, acid, gossip, monna)")]
pub struct VectorArgs {
    /// Numbers on the wire: f64 (exact) or f32
    #[arg(long, default_value = "f64")]
    pub precision: Precision,
    /// Milliseconds between two gradients of a node, on average (default: what this machine can
    /// sustain)
    #[arg(long, value_name = "MS")]
    pub unit_ms: Option<f64>,
    /// Exchanges, as a multiple of the least rate (dadao) or of one a node and gradient (acid,
    /// gossip)
    #[arg(long, default_value_t = 1.0)]
    pub exchange_factor: f64,
    /// dadao: how much more than the least rate the exchange step is made for; more tolerates lost
    /// or rarer exchanges
    #[arg(long, default_value_t = 1.5)]
    pub margin: f64,
    /// Add PENALTY/2 · |x|² to every node's objective (default: 0.001 for dadao on a model without
    /// strong convexity, else 0)
    #[arg(long)]
    pub penalty: Option<f64>,
    /// dadao: smoothness of the objectives (default: computed; estimated for mlp)
    #[arg(long, value_name = "L")]
    pub smoothness: Option<f64>,
    /// Momentum factor (default: 0.99 for monna, 0.9 for acid and gossip)
    #[arg(long)]
    pub momentum: Option<f64>,
    /// Write time, events, bytes, training losses and consensus distance on the way to this CSV file
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
}

/// Gradients a node where nothing is said.
const ROUNDS: u64 = 600;

/// Strong convexity that DADAO gets where the model has none.
const PENALTY: f64 = 1e-3;

/// Compute and exchanges fill about this share of the machine in the automatic unit of time: waits
/// in line then stay short beside the unit.
const LOAD: f64 = 0.4;

/// What one exchange costs both ends together beside its bytes, and a byte; measured on loopback.
const EXCHANGE_S: f64 = 1.5e-4;
const BYTE_S: f64 = 6e-9;

/// MoNNA's step schedule in the paper's program: 0.75/(1 + ⌊t/50⌋).
const MONNA_STEP: f64 = 0.75;
const MONNA_SPAN: f64 = 50.0;

/// Step size of A2CiD2 and gossip on a model that is not convex; 1/L otherwise.
const STEP: f64 = 0.05;

/// A run that can begin.
pub(super) struct Plan {
    pub(super) objective: Arc<dyn Objective>,
    pub(super) dataset: Arc<Dataset>,
    pub(super) duration: f64,
    algorithm: Algorithm,
    shards: Vec<Arc<Vec<u32>>>,
    batch: Option<usize>,
    penalty: f64,
    /// Exchanges per unit of time, by edge.
    rates: Vec<f64>,
    unit: Time,
    precision: Precision,
    start: Vec<f64>,
    run: RunId,
    seed: u64,
    /// What people should know, a line each.
    notes: Vec<String>,
}

impl Plan {
    pub(super) fn new(
        args: &LocalArgs,
        topology: &Topology,
        identities: &[Identity],
        cores: usize,
    ) -> Result<Plan> {
        check(args, topology)?;
        let dataset = Arc::new(args.run.load()?);
        let objective: Arc<dyn Objective> =
            Arc::from(build(&args.run.model, Arc::clone(&dataset))?);
        let start: Vec<f64> =
            objective.base(args.run.seed).iter().map(|&value| f64::from(value)).collect();
        let mut notes = Vec::new();
        let nodes = topology.node_count();
        let full = args.algorithm.is_dadao();
        let held = match args.run.shards {
            // Every node could compute everything; each takes an equal part of the same sum.
            Shards::Public if full => {
                notes.push(
                    "public data: the rows are dealt evenly, each node differentiates its \
                            own"
                    .into(),
                );
                Shards::Iid
            }
            held => held,
        };
        let shards: Vec<Arc<Vec<u32>>> = held
            .split(&dataset.train.labels, nodes, args.run.seed)
            .context("cannot cut the training rows into shards")?
            .into_iter()
            .map(Arc::new)
            .collect();
        let batch = (!full).then_some(args.run.batch as usize);
        let curvature = curvature(&*objective, &shards);
        let (algorithm, rates, penalty) =
            algorithm(args, topology, &*objective, &shards, &start, curvature, &mut notes)?;
        let mut plan = Plan {
            objective,
            dataset,
            duration: args.run.rounds.unwrap_or(ROUNDS) as f64,
            algorithm,
            shards,
            batch,
            penalty,
            rates,
            unit: Time::from_millis(1),
            precision: args.vector.precision,
            start,
            run: RunId([0; 32]),
            seed: args.run.seed,
            notes,
        };
        plan.unit = match args.vector.unit_ms {
            Some(unit) => Time::from_secs_f64(unit / 1e3),
            None => plan.sustainable_unit(args, nodes, cores),
        };
        if let Some(seconds) = args.run.seconds {
            plan.duration = (seconds / plan.unit.as_secs_f64()).max(1.0).round();
        }
        // What the nodes must agree on: here one command tells it to all.
        let ids: Vec<NodeId> = identities.iter().map(Identity::node_id).collect();
        let agreed = format!(
            "{:?} {} {:?} {} {:?} {} {ids:?}",
            plan.algorithm,
            args.run.model,
            plan.dataset.hash(),
            plan.duration,
            plan.precision,
            plan.seed
        );
        plan.run = RunId(blake3::derive_key("rumormill v1 vector run", agreed.as_bytes()));
        Ok(plan)
    }

    /// A unit of time in which this machine makes all gradients and exchanges at [`LOAD`].
    fn sustainable_unit(&self, args: &LocalArgs, nodes: usize, cores: usize) -> Time {
        let work = self.work(0);
        let mut scratch = Scratch::default();
        let measured = (0..4).map(|number| {
            let started = Instant::now();
            work.gradient(number, &self.start, &mut scratch);
            started.elapsed().as_secs_f64()
        });
        let gradient_s = measured.fold(f64::INFINITY, f64::min);
        let dim = self.start.len() as f64;
        let (speed, bytes) = match args.algorithm {
            AlgorithmName::OneByteDadao => (dim, 8.0),
            _ => (1.0, dim * self.precision.bytes() as f64),
        };
        let exchange_s = EXCHANGE_S + 2.0 * bytes * BYTE_S;
        let rate: f64 = self.rates.iter().sum();
        let busy = speed * (nodes as f64 * gradient_s + rate * exchange_s);
        Time::from_secs_f64((busy / cores.min(nodes).max(1) as f64 / LOAD).max(1e-4))
    }

    pub(super) fn announce(&self, topology: &Topology) {
        eprintln!(
            "{} nodes, {} edges; {} parameters on {} ({} rows to train on, {} held out); {:.0} \
             gradients a node, one in {:.2} ms; {:.2} exchanges in that time, vectors in {}",
            topology.node_count(),
            topology.edge_count(),
            self.start.len(),
            self.dataset.name,
            self.dataset.train.rows(),
            self.dataset.test.rows(),
            self.duration,
            1e3 * self.unit.as_secs_f64(),
            self.rates.iter().sum::<f64>(),
            self.precision
        );
        self.notes.iter().for_each(|note| eprintln!("note: {note}"));
    }

    /// What a node differentiates.
    pub(super) fn work(&self, index: usize) -> Work {
        Work {
            objective: Arc::clone(&self.objective),
            rows: Arc::clone(&self.shards[index]),
            batch: self.batch,
            penalty: self.penalty,
            seed: self.seed,
            index,
        }
    }

    /// Settings of a node.
    pub(super) fn settings(&self, topology: &Topology, ids: &[NodeId], index: usize) -> Settings {
        let mut input = self.seed.to_le_bytes().to_vec();
        input.extend((index as u64).to_le_bytes());
        let edges = shares_of(topology, &self.rates, index);
        Settings {
            run: self.run,
            me: ids[index],
            members: ids.to_vec(),
            edges: edges.map(|(at, rate)| (ids[at], rate)).collect(),
            algorithm: self.algorithm,
            unit: self.unit,
            duration: self.duration,
            precision: self.precision,
            clock_seed: blake3::derive_key("rumormill v1 local clock", &input),
            start: self.start.clone(),
        }
    }

    pub(super) fn all_rows(&self) -> Vec<u32> {
        (0..self.dataset.train.rows() as u32).collect()
    }
}

/// Refuses what does not fit before anything is read.
fn check(args: &LocalArgs, topology: &Topology) -> Result<()> {
    let VectorArgs { unit_ms, exchange_factor, margin, penalty, smoothness, momentum, .. } =
        &args.vector;
    let name = args.algorithm.name();
    if args.run.language.weights.is_some() {
        crate::cli::usage(format!(
            "--algorithm {name} differentiates, --weights is trained without gradients; use rumormill or \
             justonebyte"
        ))?;
    }
    for (flag, value) in [
        ("--unit-ms", *unit_ms),
        ("--exchange-factor", Some(*exchange_factor)),
        ("--smoothness", *smoothness),
        ("--step", args.run.step),
        ("--seconds", args.run.seconds),
    ] {
        if value.is_some_and(|value| !(value > 0.0 && value.is_finite())) {
            crate::cli::usage(format!("{flag} must be a positive number"))?;
        }
    }
    if unit_ms.is_some_and(|unit| !(1e-3..=1e9).contains(&unit)) || *exchange_factor > 1e3 {
        crate::cli::usage(
            "--unit-ms must be between 0.001 and 1e9, --exchange-factor at most 1000".into(),
        )?;
    }
    if args.run.decay_from.is_some() {
        crate::cli::usage(format!(
            "--decay-from is for the steps of rounds; leave it out with --algorithm {name}"
        ))?;
    }
    if args.run.selection != Rule::Mean {
        crate::cli::usage(format!(
            "--selection is for record sets; leave it out with --algorithm {name}"
        ))?;
    }
    if let Some(folder) = args.vector.trace.as_ref().and_then(|path| path.parent())
        && !(folder.as_os_str().is_empty() || folder.is_dir())
    {
        crate::cli::usage(format!("--trace: there is no folder {}", folder.display()))?;
    }
    if penalty.is_some_and(|penalty| !(0.0..f64::INFINITY).contains(&penalty)) {
        crate::cli::usage("--penalty must be a number from 0 on".into())?;
    }
    if momentum.is_some_and(|momentum| !(0.0..1.0).contains(&momentum)) {
        crate::cli::usage("--momentum must be at least 0 and below 1".into())?;
    }
    if !(1.0..=1e3).contains(margin) {
        crate::cli::usage("--margin must be between 1 and 1000".into())?;
    }
    if args.run.rounds == Some(0) || args.run.batch == 0 {
        crate::cli::usage("--rounds and --batch must be at least 1".into())?;
    }
    if args.processes {
        crate::cli::usage(format!(
            "--processes starts nodes of the record set; leave it out with --algorithm {name}"
        ))?;
    }
    if topology.edge_count() == 0 {
        crate::cli::usage(format!("--algorithm {name} needs at least two nodes"))?;
    }
    let nodes = topology.node_count();
    let faulty = args.run.tolerate.map_or(0, usize::from);
    if args.algorithm == AlgorithmName::Monna && 2 * faulty >= nodes {
        crate::cli::usage(format!(
            "--tolerate {faulty} of {nodes} nodes: fewer than half may be faulty"
        ))?;
    }
    if args.algorithm == AlgorithmName::Monna && topology.edge_count() != nodes * (nodes - 1) / 2 {
        crate::cli::usage(
            "MoNNA needs every node to hear every other: use --family complete".into(),
        )?;
    }
    Ok(())
}

/// The least strong convexity and the largest smoothness of any node, where the model is convex.
fn curvature(objective: &dyn Objective, shards: &[Arc<Vec<u32>>]) -> Option<(f64, f64)> {
    let mut scratch = Scratch::default();
    // Nodes with the same rows have the same objective.
    let distinct = match shards {
        [first, rest @ ..] if rest.iter().all(|rows| rows == first) => &shards[..1],
        all => all,
    };
    let each = distinct.iter().map(|rows| objective.curvature(rows, &mut scratch));
    each.reduce(|a, b| {
        let ((mu_a, l_a), (mu_b, l_b)) = (a?, b?);
        Some((mu_a.min(mu_b), l_a.max(l_b)))
    })?
}

fn algorithm(
    args: &LocalArgs,
    topology: &Topology,
    objective: &dyn Objective,
    shards: &[Arc<Vec<u32>>],
    start: &[f64],
    curvature: Option<(f64, f64)>,
    notes: &mut Vec<String>,
) -> Result<(Algorithm, Vec<f64>, f64)> {
    let vector = &args.vector;
    let schedule = |default: f64| Schedule::Linear { step: args.run.step.unwrap_or(default) };
    let nodes = topology.node_count();
    match args.algorithm {
        AlgorithmName::Rumormill | AlgorithmName::Justonebyte => {
            unreachable!("record sets have a manifest, not a plan")
        }
        AlgorithmName::Dadao | AlgorithmName::OneByteDadao => {
            let one_byte = args.algorithm == AlgorithmName::OneByteDadao;
            if one_byte && curvature.is_none() {
                bail!("one-byte-dadao is for convex models: softmax, logistic or linear");
            }
            let strong = curvature.is_some_and(|(mu, _)| mu > 0.0);
            let penalty = vector.penalty.unwrap_or(if strong { 0.0 } else { PENALTY });
            if !strong && penalty == 0.0 {
                bail!("DADAO needs strong convexity, which this model has not: --penalty above 0");
            }
            if penalty > 0.0 {
                notes.push(format!("{penalty}/2 · |x|² is added to every node's objective"));
            }
            let (mu, smoothness) = curvature.unwrap_or_else(|| {
                notes.push("the model is not convex: DADAO's theory does not cover it".into());
                (0.0, estimated_smoothness(objective, &shards[0], start))
            });
            let mu = mu + penalty;
            let smoothness = vector.smoothness.unwrap_or(smoothness + penalty);
            let shares = probabilities(topology, args.rates)
                .with_context(|| format!("--rates {} on a graph of {nodes} nodes", args.rates))?;
            let of_shares = spectrum::weighted(topology, &shares)?;
            let total = of_shares.rate_min() * vector.exchange_factor;
            let chi = dadao::Chi { chi_1: of_shares.chi_1, chi_2: of_shares.chi_2 };
            // β~ is that of the least rate; --exchange-factor runs the edges at another one.
            let rates =
                dadao::Rates { chi: chi.scaled(of_shares.rate_min()), margin: vector.margin };
            let constants = dadao::Constants::new(mu, smoothness, rates)?;
            notes.push(format!(
                "mu {mu:.3e}, L {smoothness:.3e}; chi_1 chi_2 at these rates {:.3} (at most 1/2 \
                 where the theory holds)",
                chi.scaled(total).chi_1 * chi.scaled(total).chi_2
            ));
            if vector.exchange_factor * vector.margin < 1.0 {
                notes.push(
                    "edges run at less than 1/margin of the least rate: this may diverge".into(),
                );
            }
            let rates = shares.iter().map(|share| share * total).collect();
            let algorithm = match one_byte {
                true => Algorithm::OneByteDadao(constants),
                false => Algorithm::Dadao(constants),
            };
            Ok((algorithm, rates, penalty))
        }
        AlgorithmName::Acid | AlgorithmName::Gossip => {
            let rates = gossip_rates(args, topology)?;
            let of_rates = spectrum::weighted(topology, &rates)?;
            let chi = dadao::Chi { chi_1: of_rates.chi_1, chi_2: of_rates.chi_2 };
            let constants = match args.algorithm {
                AlgorithmName::Acid => acid::Constants::new(chi)?,
                _ => acid::Constants::PLAIN,
            };
            let momentum = vector.momentum.unwrap_or(0.9);
            // Momentum multiplies what a gradient does in the end by 1/(1 − momentum).
            let safe = curvature.map_or(STEP, |(_, smoothness)| (1.0 - momentum) / smoothness);
            let algorithm = Algorithm::Acid { constants, schedule: schedule(safe), momentum };
            Ok((algorithm, rates, vector.penalty.unwrap_or(0.0)))
        }
        AlgorithmName::Monna => {
            let faulty = args.run.tolerate.map_or((nodes - 1) / 3, usize::from);
            let beta = vector.momentum.unwrap_or(0.99);
            let config = monna::Config { nodes, faulty, beta };
            let step = args.run.step.unwrap_or(MONNA_STEP);
            let schedule = Schedule::Hyperbolic { step, span: MONNA_SPAN };
            let rates = vec![1.0; topology.edge_count()];
            Ok((Algorithm::Monna { config, schedule }, rates, vector.penalty.unwrap_or(0.0)))
        }
    }
}

/// Every node averages `--exchange-factor` times per gradient: edge i–j has half the sum of both
/// ends' rates over their degrees; with other rates than uniform ones, the same in total.
fn gossip_rates(args: &LocalArgs, topology: &Topology) -> Result<Vec<f64>> {
    let factor = args.vector.exchange_factor;
    if args.rates == RateScheme::Uniform {
        let share = |i| 0.5 / topology.degree(i) as f64;
        let edges = topology.edges().iter();
        return Ok(edges.map(|edge| factor * (share(edge.a) + share(edge.b))).collect());
    }
    let total = factor * topology.node_count() as f64 / 2.0;
    let shares =
        probabilities(topology, args.rates).with_context(|| format!("--rates {}", args.rates))?;
    Ok(shares.into_iter().map(|share| share * total).collect())
}

/// Largest curvature at the start, by power iteration on differences of gradients, times four: it
/// grows while a network learns. An estimate, for models of which nothing better is known.
fn estimated_smoothness(objective: &dyn Objective, rows: &[u32], start: &[f64]) -> f64 {
    let rows = &rows[..rows.len().min(1024)];
    let mut rng = KeyedRng::from_seed("rumormill v1 smoothness", 1, 0);
    let mut direction: Vec<f64> = start.iter().map(|_| f64::from(rng.symmetric(1.0))).collect();
    let mut scratch = Scratch::default();
    let (mut above, mut below) = (vec![0.0; start.len()], vec![0.0; start.len()]);
    let mut largest = 0.0;
    for _ in 0..20 {
        let norm = direction.iter().map(|d| d * d).sum::<f64>().sqrt().max(1e-300);
        let reach = 1e-2 / norm;
        let shifted = |sign: f64| -> Vec<f64> {
            start.iter().zip(&direction).map(|(x, d)| x + sign * reach * d).collect()
        };
        objective.gradient(&shifted(1.0), rows, &mut above, &mut scratch);
        objective.gradient(&shifted(-1.0), rows, &mut below, &mut scratch);
        for ((d, a), b) in direction.iter_mut().zip(&above).zip(&below) {
            *d = (a - b) / 2e-2;
        }
        largest = direction.iter().map(|d| d * d).sum::<f64>().sqrt();
    }
    4.0 * largest.max(1e-3)
}
