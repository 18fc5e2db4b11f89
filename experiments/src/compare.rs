//! `rumormill-lab compare`: every algorithm on one problem, by the bytes that all nodes sent together
//! and by gradients or probes.
//!
//! Training rows are dealt evenly; all algorithms start from the model's base. On a strongly convex
//! model gradients are exact and the measure is the sub-optimality of the loss over all training rows;
//! otherwise gradients are over minibatches and the measure is the share of test rows classified
//! wrongly. It is taken at the worst node, as lazily held. Numbers of vectors count 8 bytes. A probe,
//! two losses of a minibatch, takes about the time of a gradient.
//!
//! The combined protocol is the daemon's own value on the simulated network ([`crate::sim`]), with
//! minibatches, one-byte probes and all its framing, signatures and certificates in its bytes. It and
//! MeZO, whose steps no curvature gives, have the best of three steps.

mod figure;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Args;

use rumormill::data::shard::Shards;
use rumormill::data::source::DataFormat;
use rumormill::id::RunId;
use rumormill::objective::{ModelSpec, Objective as Model, Scratch, Split, build};
use rumormill::vector::acid;
use rumormill::vector::dadao::{Constants, Rates};
use rumormill::vector::onebyte::TrackedLb8;
use rumormill_topology::family::Family;

use crate::baseline;
use crate::course::{Course, Plan, follow};
use crate::data::load;
use crate::event::Clocks;
use crate::graph::Graph;
use crate::network::{Acid, Dadao, OneByte};
use crate::problem::{Objective, Sharded};
use crate::sim::plan::Plan as Simulated;
use crate::sim::records;
use crate::sim::scenario::{self, Scenario};

/// Arguments of `compare`.
#[derive(Args, Clone, Debug)]
pub struct CompareArgs {
    /// Data set: `digits` (built in), a folder of MNIST-style idx files, a .csv or a .libsvm file
    #[arg(long, default_value = "digits")]
    pub data: String,
    /// File of held-out rows, for .csv and .libsvm
    #[arg(long, value_name = "FILE")]
    pub test: Option<PathBuf>,
    /// Format of the data file, overriding its suffix: csv, libsvm, idx
    #[arg(long)]
    pub format: Option<DataFormat>,
    /// Model: `softmax`, `logistic[:L2[:no-bias]]` or `mlp:H[,H2…]`
    #[arg(long, default_value = "mlp:32")]
    pub model: ModelSpec,
    /// Number of nodes
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(4..=128))]
    pub nodes: u16,
    /// Graph of all algorithms but MoNNA, which needs the complete one
    #[arg(long, default_value = "ring")]
    pub family: Family,
    /// Gradients, and probes, of a node
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(10..=100_000))]
    pub gradients: u32,
    /// Rows of a minibatch
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub batch: u32,
    /// Step size where the curvature does not give one
    #[arg(long, default_value_t = 0.3)]
    pub step: f64,
    /// Step of the combined protocol; a quarter of it and four times it are tried, too
    #[arg(long, default_value_t = 0.07)]
    pub protocol_step: f64,
    /// Seed of the deal of rows, minibatches, directions and clocks
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// A folder for compare.csv, compare.svg and compare.txt; made when missing
    #[arg(long)]
    pub out: Option<PathBuf>,
}

/// What one algorithm did.
struct Entry {
    name: String,
    /// What its work is counted in.
    unit: &'static str,
    points: Vec<Point>,
    /// Test accuracy of the worst node at the end, in percent.
    accuracy: f64,
}

/// How far it was at one moment.
#[derive(Clone, Copy)]
struct Point {
    work: u64,
    /// Bytes that all nodes sent together.
    bytes: u64,
    /// The measure at the mean of the nodes.
    mean: f64,
    /// The measure at the worst node.
    worst: f64,
}

/// A problem and how nodes go about it.
struct Contest<'a> {
    args: &'a CompareArgs,
    /// The data set's name: a path is nobody's business.
    data: String,
    model: &'a dyn Model,
    problem: Sharded<'a>,
    /// All training rows at one place.
    central: Sharded<'a>,
    /// μ and L where the model is strongly convex; the minimizer and the minimum.
    convex: Option<((f64, f64), Vec<f64>, f64)>,
    base: Vec<f64>,
    rows: Vec<u32>,
    plan: Plan,
    entries: Vec<Entry>,
}

/// Bytes of a number of a vector.
const NUMBER: u64 = 8;

/// The largest dimension for one-byte DADAO: it makes as many events for one of DADAO's.
const ONE_BYTE_DIM_MAX: usize = 512;

/// Condition number pretended to DADAO where the model has none: a guess outside its theory.
const NOMINAL_KAPPA: f64 = 100.0;

/// Runs everything and prints the table.
///
/// # Errors
/// Data that cannot be read, a model or graph that cannot be had.
pub fn run(args: &CompareArgs) -> Result<()> {
    let dataset = std::sync::Arc::new(load(&args.data, args.test.as_deref(), args.format)?);
    let model = build(&args.model, dataset.clone())?;
    let (nodes, seed) = (usize::from(args.nodes), args.seed);
    let labels = &dataset.train.labels;
    let deal = |nodes| Shards::Iid.split(labels, nodes, seed);
    let exact = Sharded::new(&*model, deal(nodes)?, None, seed);
    let curvature = exact.curvature().filter(|(mu, _)| *mu > 0.0);
    let batch = if curvature.is_some() { None } else { Some(args.batch as usize) };
    let problem = Sharded::new(&*model, deal(nodes)?, batch, seed);
    let rows: Vec<u32> = (0..labels.len() as u32).collect();
    let convex = curvature.map(|curvature| {
        let optimum = baseline::minimizer(&exact, curvature, 1e-12, 20_000);
        let least = exact.loss(&optimum, &rows, &mut vec![0.0; optimum.len()]);
        (curvature, optimum, least)
    });
    let time_max = f64::from(args.gradients);
    let mut contest = Contest {
        args,
        data: dataset.name.clone(),
        model: &*model,
        problem,
        central: Sharded::new(&*model, vec![rows.clone()], batch.map(|b| b * nodes), seed),
        convex,
        base: model.base(seed).into_iter().map(f64::from).collect(),
        rows,
        plan: Plan { goal: -1.0, time_max, every: time_max / 40.0, share: 0.0 },
        entries: Vec::new(),
    };
    contest.in_rounds()?;
    contest.on_clocks()?;
    contest.combined()?;
    let table = contest.table();
    println!("{table}");
    if let Some(folder) = &args.out {
        let shown = folder.display();
        fs::create_dir_all(folder).with_context(|| format!("cannot make {shown}"))?;
        let csv = contest.csv();
        let svg = figure::draw(
            &format!("{} on {}, {} nodes", args.model, contest.data, args.nodes),
            &csv,
        )?;
        for (name, text) in [("compare.csv", csv), ("compare.svg", svg), ("compare.txt", table)] {
            let path = folder.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    Ok(())
}

/// What is to become small, at some parameters.
fn measure(
    model: &dyn Model,
    exact: Option<(&Sharded<'_>, &[u32], f64)>,
    scratch: &mut (Scratch, Vec<f64>),
    x: &[f64],
) -> f64 {
    match exact {
        Some((problem, rows, least)) => {
            scratch.1.resize(x.len(), 0.0);
            problem.loss(x, rows, &mut scratch.1) - least
        }
        None => 1.0 - accuracy(model, x, &mut scratch.0),
    }
}

fn accuracy(model: &dyn Model, x: &[f64], scratch: &mut Scratch) -> f64 {
    let x: Vec<f32> = x.iter().map(|&value| value as f32).collect();
    model.evaluate(&x, Split::Test, scratch).accuracy
}

impl Contest<'_> {
    fn step(&self) -> f64 {
        self.convex.as_ref().map_or(self.args.step, |((_, smoothness), ..)| 1.0 / smoothness)
    }

    fn nodes(&self) -> usize {
        self.problem.nodes()
    }

    fn start(&self) -> Vec<Vec<f64>> {
        vec![self.base.clone(); self.nodes()]
    }

    fn vectors(&self) -> u64 {
        2 * NUMBER * self.problem.dim() as u64
    }

    /// Runs one algorithm: `course` is told how to measure, and gives its course and the worst node's
    /// test accuracy by way of the last measurement of all nodes.
    fn add(
        &mut self,
        name: &str,
        unit: &'static str,
        exchange: u64,
        course: impl FnOnce(&Self, &mut dyn FnMut(&[f64]) -> f64) -> Result<Course>,
    ) -> Result<()> {
        let mut scratch = (Scratch::default(), Vec::new());
        let exact =
            self.convex.as_ref().map(|(_, _, least)| (&self.problem, &self.rows[..], *least));
        // The nodes of a look come first, their mean last: the accuracies of the last look are kept.
        let mut accuracies: Vec<f64> = Vec::new();
        let mut loss = |x: &[f64]| {
            let value = measure(self.model, exact, &mut scratch, x);
            let accuracy = match exact {
                Some(_) => accuracy(self.model, x, &mut scratch.0),
                None => 1.0 - value,
            };
            accuracies.push(accuracy);
            value
        };
        let course = course(self, &mut loss)?;
        let looks = course.points.len();
        // Every look measures as many nodes.
        let each = accuracies.len() / looks;
        let nodes = &accuracies[accuracies.len() - each..accuracies.len() - 1];
        let worst = nodes.iter().copied().fold(f64::INFINITY, f64::min);
        let points = course.points.iter();
        let points = points
            .map(|point| Point {
                work: point.gradients,
                bytes: exchange * point.edges,
                mean: point.mean,
                worst: point.worst,
            })
            .collect();
        let entry = Entry { name: name.into(), unit, points, accuracy: 100.0 * worst };
        eprintln!("{}", line(&entry));
        self.entries.push(entry);
        Ok(())
    }

    /// Centralized SGD, MeZO, synchronous D-SGD and MoNNA.
    fn in_rounds(&mut self) -> Result<()> {
        let edges = Graph::uniform(self.args.family, self.nodes()).edges;
        let (vectors, nodes) = (self.vectors(), self.nodes());
        self.add("centralized SGD", "gradients", 0, |contest, loss| {
            let step = contest.step();
            let mut course = baseline::synchronous(
                &contest.central,
                &[],
                &|_| step,
                std::slice::from_ref(&contest.base),
                &contest.plan,
                loss,
            );
            // A gradient over all rows is as much work as one at every node.
            course.points.iter_mut().for_each(|point| point.gradients *= nodes as u64);
            Ok(course)
        })?;
        // The step of SPSA that is stable falls with an effective dimension nobody knows.
        let mut best: Option<Entry> = None;
        for multiple in [1.0, 8.0, 64.0] {
            self.add(&format!("MeZO, step {multiple}/d"), "probes", 0, |contest, loss| {
                let dim = contest.base.len() as f64;
                let step = multiple * contest.step() / dim;
                let probes = u64::from(contest.args.gradients) * nodes as u64;
                let batch = contest.args.batch as usize;
                let seed = contest.args.seed;
                let mezo = baseline::Mezo { step, probes, batch, seed };
                Ok(mezo.run(contest.model, &contest.rows, &contest.base, &contest.plan, loss))
            })?;
            let entry = self.entries.pop().expect("one was added");
            let end =
                |entry: &Entry| entry.points.last().map_or(f64::INFINITY, |point| point.worst);
            if best.as_ref().is_none_or(|best| end(&entry) < end(best)) {
                best = Some(entry);
            }
        }
        self.entries.extend(best);
        self.add("synchronous D-SGD", "gradients", vectors, |contest, loss| {
            let step = contest.step();
            let start = contest.start();
            let plan = &contest.plan;
            Ok(baseline::synchronous(&contest.problem, &edges, &|_| step, &start, plan, loss))
        })?;
        self.add("MoNNA, complete graph", "gradients", vectors, |contest, loss| {
            let faulty = (nodes - 1) / 5;
            let monna = baseline::Monna { faulty, beta: 0.9, seed: contest.args.seed };
            let (step, start) = (contest.step(), contest.start());
            monna.run(&contest.problem, step, &start, &contest.plan, loss)
        })
    }

    /// DADAO, one-byte DADAO, A2CiD2 and plain gossip.
    fn on_clocks(&mut self) -> Result<()> {
        let nodes = self.nodes();
        let (vectors, seed) = (self.vectors(), self.args.seed);
        let optimum = match &self.convex {
            Some((_, optimum, _)) => optimum.clone(),
            None => self.base.clone(),
        };
        let ((mu, smoothness), nominal) = match &self.convex {
            Some((curvature, ..)) => (*curvature, ""),
            None => {
                let smoothness = 1.0 / self.step();
                ((smoothness / NOMINAL_KAPPA, smoothness), ", nominal curvature")
            }
        };
        let graph = Graph::optimal(self.args.family, nodes);
        let least = graph.chi().rate_min();
        let rated = graph.scaled(least);
        let constants = |margin| Constants::new(mu, smoothness, Rates { chi: rated.chi(), margin });
        for (name, margin, rate) in
            [("DADAO", 1.0, 1.0), ("DADAO, margin 2, half the rate", 2.0, 0.5)]
        {
            let constants = constants(margin)?;
            let graph = rated.clone().scaled(rate);
            self.add(&format!("{name}{nominal}"), "gradients", vectors, |contest, loss| {
                let start = contest.start();
                let mut network =
                    Dadao::new(&contest.problem, &graph.edges, &constants, &start, &optimum);
                let mut clocks = Clocks::new(seed, &graph, 1.0);
                Ok(follow(&mut network, nodes, &mut clocks, &contest.plan, loss))
            })?;
        }
        let gossip = Graph::neighborly(self.args.family, nodes, 1.0);
        let accelerated = acid::Constants::new(gossip.chi())?;
        for (name, constants) in [("A2CiD2", accelerated), ("plain gossip", acid::Constants::PLAIN)]
        {
            self.add(name, "gradients", vectors, |contest, loss| {
                let (start, step) = (contest.start(), contest.step());
                let step = |_: f64| step;
                let mut network =
                    Acid::new(&contest.problem, &gossip.edges, constants, &step, &start, &optimum);
                let mut clocks = Clocks::new(seed, &gossip, 1.0);
                Ok(follow(&mut network, nodes, &mut clocks, &contest.plan, loss))
            })?;
        }
        let dim = self.base.len();
        if self.convex.is_none() || dim > ONE_BYTE_DIM_MAX {
            return Ok(());
        }
        let constants = constants(1.0)?;
        self.add("one-byte DADAO", "gradients", 2, |contest, loss| {
            let (faster, start) = (dim as f64, contest.start());
            let fast = rated.clone().scaled(faster);
            let mut key = [0; 32];
            key[..8].copy_from_slice(&seed.to_le_bytes());
            let (run, codec) = (RunId(key), TrackedLb8::new(0));
            let mut network = OneByte::new(
                run,
                &contest.problem,
                &rated.edges,
                &constants,
                &start,
                &optimum,
                &codec,
            );
            let mut clocks = Clocks::new(seed, &fast, faster);
            Ok(follow(&mut network, nodes, &mut clocks, &contest.plan, loss))
        })
    }

    /// The daemon's protocol on the simulated network, with the best of three steps.
    fn combined(&mut self) -> Result<()> {
        let mut best: Option<Entry> = None;
        for multiple in [0.25, 1.0, 4.0] {
            let entry = self.combined_with(multiple * self.args.protocol_step)?;
            eprintln!("{}", line(&entry));
            let end =
                |entry: &Entry| entry.points.last().map_or(f64::INFINITY, |point| point.worst);
            if best.as_ref().is_none_or(|best| end(&entry) < end(best)) {
                best = Some(entry);
            }
        }
        self.entries.extend(best);
        Ok(())
    }

    fn combined_with(&self, step: f64) -> Result<Entry> {
        let args = self.args;
        let mut scenario = Scenario { nodes: Some(self.nodes()), ..Scenario::default() };
        scenario.graph.family = Some(args.family);
        scenario.task = scenario::Task {
            data: args.data.clone(),
            test: args.test.clone(),
            format: args.format,
            model: args.model.clone(),
            shards: Shards::Iid,
            batch: args.batch,
            ..scenario::Task::default()
        };
        let run = &mut scenario.run;
        run.step = step;
        run.rounds = u64::from(args.gradients).div_ceil(u64::from(run.probes_per_round));
        let probes = run.rounds * u64::from(run.probes_per_round);
        scenario.sample_s = Some(scenario.compute.probe_ms / 1000.0 * probes as f64 / 40.0);
        let plan = Simulated::new(scenario, "compare".as_ref())?;
        let exact =
            self.convex.as_ref().map(|(_, _, least)| (&self.problem, &self.rows[..], *least));
        let mut scratch = (Scratch::default(), Vec::new());
        let mut points = Vec::new();
        let outcome = records::follow(&plan, args.seed, &mut |sample, models| {
            // Nodes that agree are measured once.
            let mut nodes: Vec<Vec<f64>> = models.parameters().into_iter().map(wide).collect();
            let count = nodes.len() as f64;
            let mut center = vec![0.0; self.base.len()];
            for node in &nodes {
                center.iter_mut().zip(node).for_each(|(sum, value)| *sum += value / count);
            }
            nodes.dedup();
            let mut error = |x: &Vec<f64>| measure(self.model, exact, &mut scratch, x);
            let worst = nodes.iter().map(&mut error).fold(f64::NEG_INFINITY, f64::max);
            let mean = error(&center);
            points.push(Point { work: sample.work, bytes: sample.bytes, mean, worst });
        })?;
        ensure!(outcome.verdict.is_good(), "the combined protocol ended as {:?}", outcome.verdict);
        let last = outcome.samples.last().context("a run is sampled at its start")?;
        let name = format!("combined protocol, step {step}");
        Ok(Entry { name, unit: "probes", points, accuracy: 100.0 * last.accuracy_min })
    }

    fn table(&self) -> String {
        let args = self.args;
        let measure = match self.convex {
            Some(_) => "sub-optimality over all training rows",
            None => "share of test rows classified wrongly",
        };
        // What is asked of all: a hundredth of the start, or two points above the centralized end.
        let first = &self.entries[0].points;
        let goal = match self.convex {
            Some(_) => first[0].worst / 100.0,
            None => first[first.len() - 1].worst + 0.02,
        };
        let mut text = format!(
            "{} on {}, {} nodes, {}, dimension {}, seed {}; measure: {measure}, worst node\n\
             | algorithm | work | sent, MB | measure | mean of nodes | test accuracy, % | \
             work to {goal:.3e} | MB to it |\n|---|---|---|---|---|---|---|---|\n",
            args.model,
            self.data,
            args.nodes,
            args.family,
            self.base.len(),
            args.seed,
        );
        for entry in &self.entries {
            let Point { work, bytes, mean, worst } = entry.points[entry.points.len() - 1];
            let at = entry.points.iter().find(|point| point.worst <= goal);
            let reached = |f: &dyn Fn(&Point) -> String| at.map_or("-".into(), f);
            let megabytes = |bytes: u64| format!("{:.3}", bytes as f64 / 1e6);
            let number = |x: f64| if x.is_nan() { "-".into() } else { format!("{x:.3e}") };
            text += &format!(
                "| {} | {work} {} | {} | {} | {} | {:.2} | {} | {} |\n",
                entry.name,
                entry.unit,
                megabytes(bytes),
                number(worst),
                number(mean),
                entry.accuracy,
                reached(&|point| point.work.to_string()),
                reached(&|point| megabytes(point.bytes)),
            );
        }
        text
    }

    fn csv(&self) -> String {
        let measure = if self.convex.is_some() { "suboptimality" } else { "test_error" };
        let mut text = format!("algorithm,unit,work,bytes,{measure}_mean,{measure}_worst\n");
        for entry in &self.entries {
            for Point { work, bytes, mean, worst } in &entry.points {
                let Entry { name, unit, .. } = entry;
                let name = name.replace(',', ";");
                text += &format!("{name},{unit},{work},{bytes},{mean:e},{worst:e}\n");
            }
        }
        text
    }
}

fn wide(params: Vec<f32>) -> Vec<f64> {
    params.into_iter().map(f64::from).collect()
}

fn line(entry: &Entry) -> String {
    let Point { work, bytes, worst, .. } = entry.points[entry.points.len() - 1];
    let Entry { name, unit, accuracy, .. } = entry;
    format!("{name}: {work} {unit}, {bytes} bytes, measure {worst:.3e}, accuracy {accuracy:.2} %")
}
