//! DADAO and its rivals on a9a: logistic regression without bias, penalty 0.01, rows dealt evenly to
//! a ring of 16, each node's gradient exact over its rows, all from zero.
//!
//! The measure is the sub-optimality of the *global* objective, at the mean of the nodes and at the
//! worst node as lazily held. Vectors are counted at 8 bytes a number; `f32` would halve that. An
//! exchange is one vector (or one byte) each way.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use rumormill::data::shard::Shards;
use rumormill::data::source::DataFormat;
use rumormill::id::RunId;
use rumormill::objective::Logistic;
use rumormill::vector::acid;
use rumormill::vector::dadao::{Constants, Rates};
use rumormill::vector::onebyte::TrackedLb8;
use rumormill_topology::family::Family;

use super::Report;
use crate::baseline;
use crate::course::{Course, Plan, Point, follow};
use crate::event::Clocks;
use crate::graph::Graph;
use crate::network::{Acid, Dadao, OneByte};
use crate::problem::{Objective, Sharded};

const NODES: usize = 16;
/// The penalty μ.
const MU: f64 = 0.01;
/// The minimum of the global objective over all 32,561 rows.
const OPTIMUM: f64 = 0.372_723_746_863_93;
/// Sub-optimality at which runs are compared.
const GOAL: f64 = 1e-6;
/// Units of time after which a run has failed: 5000 gradients a node.
const TIME_MAX: f64 = 5000.0;
/// Bytes of a number of a vector.
const NUMBER: u64 = 8;

/// One algorithm's runs.
struct Entry {
    name: &'static str,
    /// Bytes of one exchange, both ways.
    exchange: u64,
    course: Course,
}

impl Entry {
    fn bytes(&self, point: &Point) -> u64 {
        self.exchange * point.edges
    }

    fn describe(&self) -> String {
        let end = self.course.last();
        match self.course.reached(GOAL, |point| point.worst) {
            Some(at) => format!(
                "{} gradients, {} exchanges, {:.2} MB, time {:.0}",
                at.gradients,
                at.edges,
                self.bytes(at) as f64 / 1e6,
                at.time
            ),
            None => format!(
                "not reached: {:.1e} at the worst node, {:.1e} at the mean after {} gradients and \
                 {:.1} MB",
                end.worst,
                end.mean,
                end.gradients,
                self.bytes(end) as f64 / 1e6
            ),
        }
    }
}

/// Runs every claim on one deal of the rows.
///
/// # Errors
/// When the file cannot be read or has other rows than a9a.
pub fn reproduce(data: &Path, seed: u64) -> Result<Report> {
    let name = data.to_str().context("the file's name is not UTF-8")?;
    // The training rows are all rows: what is tested on does not matter here.
    let dataset = crate::data::load(name, Some(data), Some(DataFormat::Libsvm))?;
    let rows = dataset.train.rows();
    ensure!(dataset.classes == 2, "{name} has {} classes, not 2", dataset.classes);
    let shards = Shards::Iid.split(&dataset.train.labels, NODES, seed)?;
    let model = Logistic::new(dataset.into(), MU).without_bias();
    let problem = Sharded::new(&model, shards, None, seed);
    let (mu, smoothness) = problem.curvature().context("the logistic loss is convex")?;
    let mut report = Report::default();
    report.notes.push(format!(
        "{rows} rows, dimension {}, kappa {:.1}; figures to sub-optimality {GOAL:e} at the worst \
         node, looked at every 5 units of time or 1 %; event stream and deal {seed}",
        problem.dim(),
        smoothness / mu,
    ));

    let all: Vec<u32> = (0..rows as u32).collect();
    let mut scratch = vec![0.0; problem.dim()];
    let optimum = baseline::minimizer(&problem, (mu, smoothness), 1e-13, 5000);
    let least = problem.loss(&optimum, &all, &mut scratch);
    report.claim(
        "minimum of the global objective, all rows",
        format!("{least:.14}"),
        format!("{OPTIMUM:.14}"),
        (least - OPTIMUM).abs() < 1e-12,
    );
    let entries = entries(&problem, (mu, smoothness), &optimum, seed, &mut |x| {
        problem.loss(x, &all, &mut scratch) - least
    })?;
    claims(&entries, &mut report);
    let mut csv = vec![
        "algorithm,time,gradients,exchanges,bytes,suboptimality_mean,suboptimality_worst".into(),
    ];
    for entry in &entries {
        csv.extend(entry.course.points.iter().map(|point| {
            let Point { time, gradients, edges, mean, worst } = point;
            let bytes = entry.bytes(point);
            format!("{},{time},{gradients},{edges},{bytes},{mean:e},{worst:e}", entry.name)
        }));
    }
    report.files.push(("courses.csv", csv));
    Ok(report)
}

fn entries(
    problem: &Sharded<'_>,
    (mu, smoothness): (f64, f64),
    optimum: &[f64],
    seed: u64,
    loss: &mut dyn FnMut(&[f64]) -> f64,
) -> Result<Vec<Entry>> {
    let plan = Plan { goal: GOAL, time_max: TIME_MAX, every: 5.0, share: 0.01 };
    let start = vec![vec![0.0; problem.dim()]; NODES];
    let vectors = 2 * NUMBER * problem.dim() as u64;
    // On a ring uniform rates are the optimal ones.
    let ring = Graph::uniform(Family::Ring, NODES);
    let least = ring.chi().rate_min();
    let rated = ring.scaled(least);
    let constants = |margin| Constants::new(mu, smoothness, Rates { chi: rated.chi(), margin });
    let mut entries = Vec::new();
    let mut add = |name, exchange, course| {
        let entry = Entry { name, exchange, course };
        eprintln!("{name}: {}", entry.describe());
        entries.push(entry);
    };

    for (name, margin, rate) in
        [("DADAO", 1.0, 1.0), ("DADAO, margin 2 at half the rate", 2.0, 0.5)]
    {
        let graph = rated.clone().scaled(rate);
        let constants = constants(margin)?;
        let mut network = Dadao::new(problem, &graph.edges, &constants, &start, optimum);
        let mut clocks = Clocks::new(seed, &graph, 1.0);
        add(name, vectors, follow(&mut network, NODES, &mut clocks, &plan, loss));
    }

    let constant = |t: f64| constant_step(smoothness, t);
    let falling = |t: f64| falling_step(mu, smoothness, t);
    let accelerated = acid::Constants::new(rated.chi())?;
    type Step<'a> = &'a dyn Fn(f64) -> f64;
    let gossips: [(&'static str, acid::Constants, Step<'_>); 4] = [
        ("A2CiD2, step 1/L", accelerated, &constant),
        ("A2CiD2, falling step", accelerated, &falling),
        ("plain gossip, step 1/L", acid::Constants::PLAIN, &constant),
        ("plain gossip, falling step", acid::Constants::PLAIN, &falling),
    ];
    for (name, constants, step) in gossips {
        let mut network = Acid::new(problem, &rated.edges, constants, step, &start, optimum);
        let mut clocks = Clocks::new(seed, &rated, 1.0);
        add(name, vectors, follow(&mut network, NODES, &mut clocks, &plan, loss));
    }
    let rounds: [(&'static str, Step<'_>); 2] =
        [("synchronous D-SGD, step 1/L", &constant), ("synchronous D-SGD, falling step", &falling)];
    for (name, step) in rounds {
        let course = baseline::synchronous(problem, &rated.edges, step, &start, &plan, loss);
        add(name, vectors, course);
    }

    let faster = problem.dim() as f64;
    let fast = rated.clone().scaled(faster);
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    let (run, constants, codec) = (RunId(key), constants(1.0)?, TrackedLb8::new(0));
    let mut network = OneByte::new(run, problem, &rated.edges, &constants, &start, optimum, &codec);
    let mut clocks = Clocks::new(seed, &fast, faster);
    add(ONE_BYTE, 2, follow(&mut network, NODES, &mut clocks, &plan, loss));
    Ok(entries)
}

const ONE_BYTE: &str = "one-byte DADAO";

fn constant_step(smoothness: f64, _time: f64) -> f64 {
    1.0 / smoothness
}

/// `1/L` at first, then `2/(μ t)`: the rate at which strongly convex SGD closes in on the optimum
/// in spite of a floor that is proportional to the step.
fn falling_step(mu: f64, smoothness: f64, time: f64) -> f64 {
    1.0 / smoothness.max(mu * time / 2.0)
}

fn claims(entries: &[Entry], report: &mut Report) {
    let at = |entry: &Entry| entry.course.reached(GOAL, |point| point.worst).copied();
    let bytes = |entry: &Entry| at(entry).map(|point| entry.bytes(&point));
    let dadao = &entries[0];
    for entry in entries {
        let mean = entry.course.reached(GOAL, |point| point.mean);
        report.notes.push(format!(
            "{}: {}; at the mean {}",
            entry.name,
            entry.describe(),
            mean.map_or("not reached".into(), |p| format!("{} gradients", p.gradients)),
        ));
    }
    report.claim(
        format!("DADAO: reaches {GOAL:e} at the worst node"),
        dadao.describe(),
        "linear convergence (theorem)",
        at(dadao).is_some(),
    );
    let margin = &entries[1];
    let (full, half) = (bytes(dadao), bytes(margin));
    report.explained(
        "DADAO, margin 2 at half the rate: at most 60 % of the bytes, 115 % of the gradients",
        margin.describe(),
        "56 % and 110 % (least squares, cycle of 16)",
        matches!((full, half), (Some(full), Some(half)) if half as f64 <= 0.6 * full as f64)
            && matches!((at(dadao), at(margin)), (Some(full), Some(half))
                if half.gradients as f64 <= 1.15 * full.gradients as f64),
        "the slower mixing costs more gradients here than on least squares",
    );
    for entry in entries[2..].iter().filter(|entry| entry.name != ONE_BYTE) {
        report.explained(
            format!(
                "{}: needs more bytes than DADAO at margin 2, or does not get there",
                entry.name
            ),
            entry.describe(),
            "sub-linear, or a floor (theory)",
            bytes(entry).is_none_or(|bytes| half.is_some_and(|half| bytes > half)),
            "evenly dealt rows are nearly alike, so the floor is low",
        );
    }
    if let Some(entry) = entries.iter().find(|entry| entry.name == ONE_BYTE) {
        let (time, dense) = (at(entry).map(|p| p.time), at(dadao).map(|p| p.time));
        report.explained(
            "one-byte DADAO: DADAO's time within 5 %, so an eighth of its bytes",
            entry.describe(),
            dadao.describe(),
            matches!((time, dense), (Some(time), Some(dense)) if (time / dense - 1.0).abs() <= 0.05),
            "time differs by the noise of one stream of directions or more",
        );
    }
}
