//! `rumormill-lab sim`: a whole network in one thread, described by a file.
//!
//! [`scenario`] is the file, [`plan`] what was found possible. [`records`] drives the daemon's own
//! protocol values through [`crate::simulation`], [`vectors`] the vector algorithms on Poisson
//! clocks; both give [`trace::Sample`]s at regular model times. [`plot`] draws them from the CSV alone.
//! Everything random comes from the seed: the same seed gives the same CSV, byte for byte, on one
//! machine (losses use the platform's `exp`).

pub mod plan;
pub mod plot;
pub mod records;
pub mod scenario;
pub mod trace;
pub mod vectors;

#[cfg(test)]
mod tests;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use serde_json::json;

use plan::Plan;
use scenario::{Algorithm, Scenario};
use trace::Sample;

/// Wrong input: found before anything runs, ends with exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// Arguments of `sim`.
#[derive(Args, Clone, Debug)]
pub struct SimArgs {
    /// The scenario file (TOML)
    pub scenario: PathBuf,
    /// One run for each seed from A to B, both included (default: the file's)
    #[arg(long, value_name = "A..B", conflicts_with = "seed")]
    pub seeds: Option<Seeds>,
    /// One run with this seed
    #[arg(long)]
    pub seed: Option<u64>,
    /// A folder for trace.csv, figures, the scenario and a README; made when missing
    #[arg(long, value_name = "FOLDER")]
    pub out: Option<PathBuf>,
    /// Print one JSON object on stdout and nothing else there
    #[arg(long)]
    pub json: bool,
}

/// A range of seeds, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seeds(u64, u64);

/// The most seeds of one command.
const SEEDS_MAX: u64 = 10_000;

impl FromStr for Seeds {
    type Err = String;

    fn from_str(text: &str) -> Result<Seeds, String> {
        let ends = text.split_once("..").and_then(|(from, to)| {
            Some((from.parse::<u64>().ok()?, to.trim_start_matches('=').parse::<u64>().ok()?))
        });
        match ends {
            Some((from, to)) if from <= to && to - from < SEEDS_MAX => Ok(Seeds(from, to)),
            _ => {
                Err(format!("expected A..B with A ≤ B and at most {SEEDS_MAX} seeds, as in 1..20"))
            }
        }
    }
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Honest nodes hold the same records and the same model.
    Agreed,
    /// A vector algorithm's time is up.
    Done,
    /// Honest nodes do not agree.
    Differ(String),
    /// It did not come to its end.
    Unfinished(String),
    /// Parameters or losses left all bounds.
    Diverged,
}

impl Verdict {
    /// Whether the run is as it should be.
    pub fn is_good(&self) -> bool {
        matches!(self, Verdict::Agreed | Verdict::Done)
    }

    /// One word.
    pub fn word(&self) -> &'static str {
        match self {
            Verdict::Agreed => "agreed",
            Verdict::Done => "done",
            Verdict::Differ(_) => "differ",
            Verdict::Unfinished(_) => "unfinished",
            Verdict::Diverged => "diverged",
        }
    }

    /// What there is to say beyond the word.
    pub fn detail(&self) -> &str {
        match self {
            Verdict::Differ(detail) | Verdict::Unfinished(detail) => detail,
            Verdict::Diverged => "parameters or losses left all bounds: take a smaller step",
            Verdict::Agreed | Verdict::Done => "",
        }
    }
}

/// What a run gave.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Its seed.
    pub seed: u64,
    /// How it ended.
    pub verdict: Verdict,
    /// The trace.
    pub samples: Vec<Sample>,
    /// Different models among the honest nodes that are up, where equality is promised.
    pub models: Option<usize>,
    /// How the first honest node that is up sees every node at the end.
    pub standings: Vec<Standing>,
}

/// What an honest node holds of another.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    /// The node.
    pub node: usize,
    /// The round in which its records first had no weight, as audits cast doubt on it.
    pub doubted_from: Option<u64>,
    /// The round from which on its records count for nothing.
    pub excluded_from: Option<u64>,
    /// Correlation of its bytes with their repetitions.
    pub audit_score: Option<f64>,
    /// Mean trust over the rounds in which it counted, in [−1, 1]; `None` where the rule compares
    /// nobody.
    pub trust: Option<f64>,
    /// Mean weight over the same rounds, beside the mean over all nodes.
    pub weight: Option<f64>,
}

impl Outcome {
    /// Of the worst honest node that is up, at the end, in [0, 1].
    pub fn worst_accuracy(&self) -> f64 {
        self.last().accuracy_min
    }

    fn last(&self) -> &Sample {
        self.samples.last().expect("a run is sampled at its start")
    }
}

/// Reads and checks a scenario and its seeds.
///
/// # Errors
/// Wrong input.
pub fn prepare(args: &SimArgs) -> Result<(Plan, Vec<u64>), Usage> {
    let scenario = Scenario::read(&args.scenario)?;
    let seeds = match (args.seed, args.seeds) {
        (Some(seed), _) => vec![seed],
        (None, Some(Seeds(from, to))) => (from..=to).collect(),
        (None, None) => scenario.seeds.clone(),
    };
    let plan = Plan::new(scenario, &args.scenario)?;
    if seeds.is_empty() {
        let problem = "seeds is empty; name one at least";
        return Err(Usage(format!("{}: {problem}", args.scenario.display())));
    }
    for &seed in &seeds {
        match plan.scenario.algorithm {
            Algorithm::Rumormill => records::check(&plan, seed)?,
            _ => vectors::check(&plan, seed)?,
        }
    }
    Ok((plan, seeds))
}

/// Runs a scenario for some seeds.
///
/// # Errors
/// Wrong input that [`prepare`] did not see.
pub fn simulate(plan: &Plan, seeds: &[u64]) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::with_capacity(seeds.len());
    for &seed in seeds {
        let mut progress = Progress::new(seed);
        let mut watch = |sample: &Sample| progress.show(sample);
        let outcome = match plan.scenario.algorithm {
            Algorithm::Rumormill => records::run(plan, seed, &mut watch)?,
            _ => vectors::run(plan, seed, &mut watch)?,
        };
        progress.end(&outcome);
        outcomes.push(outcome);
    }
    Ok(outcomes)
}

/// Runs the command; whether every seed ended as it should.
///
/// # Errors
/// Wrong input, and results that cannot be written.
pub fn run(args: &SimArgs) -> Result<bool> {
    let (plan, seeds) = prepare(args)?;
    if let Some(out) = &args.out {
        fs::create_dir_all(out).with_context(|| format!("cannot make folder {}", out.display()))?;
    }
    let outcomes = simulate(&plan, &seeds)?;
    let table = table(&plan, &outcomes);
    if args.json {
        println!("{}", to_json(&plan, &outcomes));
    } else {
        print!("{table}");
    }
    if let Some(out) = &args.out {
        write(args, out, &plan, &outcomes, &table)?;
    }
    Ok(outcomes.iter().all(|outcome| outcome.verdict.is_good()))
}

/// What nodes do most: probes or gradients.
fn work_name(plan: &Plan) -> &'static str {
    match plan.scenario.algorithm {
        Algorithm::Rumormill => "probes",
        _ => "gradients",
    }
}

/// Lines on stderr now and then.
struct Progress {
    seed: u64,
    began: Instant,
    said: Instant,
}

impl Progress {
    fn new(seed: u64) -> Progress {
        Progress { seed, began: Instant::now(), said: Instant::now() }
    }

    fn show(&mut self, sample: &Sample) {
        if self.said.elapsed() > Duration::from_secs(2) {
            self.said = Instant::now();
            let rounds = sample.rounds.map_or(String::new(), |rounds| format!(", round {rounds}"));
            eprintln!(
                "seed {}: {:.1} s{rounds}, accuracy {:.3}, loss {:.4}",
                self.seed, sample.time_s, sample.accuracy, sample.loss
            );
        }
    }

    fn end(&self, outcome: &Outcome) {
        let detail = outcome.verdict.detail();
        let detail = if detail.is_empty() { String::new() } else { format!(" ({detail})") };
        eprintln!(
            "seed {}: {}{detail} at {:.1} model seconds, after {:.1} s",
            self.seed,
            outcome.verdict.word(),
            outcome.last().time_s,
            self.began.elapsed().as_secs_f64()
        );
    }
}

/// A column of the result table: heading, digits, value.
type Column = (&'static str, usize, fn(&Sample) -> Option<f64>);

const RESULT: [Column; 8] = [
    ("time_s", 1, |sample| Some(sample.time_s)),
    ("probes", 0, |sample| Some(sample.work as f64)),
    ("bytes", 0, |sample| Some(sample.bytes as f64)),
    ("accuracy", 4, |sample| Some(sample.accuracy)),
    ("worst", 4, |sample| Some(sample.accuracy_min)),
    ("loss", 4, |sample| Some(sample.loss)),
    ("consensus", 6, |sample| Some(sample.consensus)),
    ("rounds", 0, |sample| sample.rounds.map(|rounds| rounds as f64)),
];

/// Mean and standard deviation over seeds; without numbers, nothing.
fn mean_and_spread(values: &[f64]) -> Option<(f64, f64)> {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
    let spread = (squares / (count - 1.0).max(1.0)).sqrt();
    mean.is_finite().then_some((mean, spread))
}

/// The finite values of a column at the runs' ends.
fn finals(outcomes: &[Outcome], value: fn(&Sample) -> Option<f64>) -> Vec<f64> {
    let values = outcomes.iter().filter_map(|outcome| value(outcome.last()));
    values.filter(|value| value.is_finite()).collect()
}

fn table(plan: &Plan, outcomes: &[Outcome]) -> String {
    let mut rows: Vec<Vec<String>> = Vec::new();
    let heading = |name: &str| if name == "probes" { work_name(plan).into() } else { name.into() };
    let headings = RESULT.iter().map(|column| heading(column.0));
    rows.push(["seed".into(), "verdict".into()].into_iter().chain(headings).collect());
    for outcome in outcomes {
        let cells = RESULT.iter().map(|&(_, digits, value)| match value(outcome.last()) {
            Some(value) if value.is_finite() => format!("{value:.digits$}"),
            _ => "-".into(),
        });
        let first = [outcome.seed.to_string(), outcome.verdict.word().into()];
        rows.push(first.into_iter().chain(cells).collect());
    }
    if outcomes.len() > 1 {
        let good = outcomes.iter().filter(|outcome| outcome.verdict.is_good()).count();
        let cells = RESULT.iter().map(|&(_, digits, value)| {
            mean_and_spread(&finals(outcomes, value))
                .map_or("-".into(), |(mean, spread)| format!("{mean:.digits$} ± {spread:.digits$}"))
        });
        let first = ["mean ± sd".into(), format!("{good}/{} good", outcomes.len())];
        rows.push(first.into_iter().chain(cells).collect());
    }
    let columns = rows[0].len();
    let width = |at: usize| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:>width$}"));
        let _ = writeln!(text, "{}", cells.collect::<Vec<_>>().join("  "));
    }
    for outcome in outcomes.iter().filter(|outcome| !outcome.verdict.is_good()) {
        let Outcome { seed, verdict, .. } = outcome;
        let _ = writeln!(text, "seed {seed}: {}: {}", verdict.word(), verdict.detail());
    }
    text
}

fn to_json(plan: &Plan, outcomes: &[Outcome]) -> serde_json::Value {
    let name = |column: &Column| if column.0 == "probes" { work_name(plan) } else { column.0 };
    let finite = |value: Option<f64>| value.filter(|value| value.is_finite());
    let seeds = outcomes.iter().map(|outcome| {
        let mut object = serde_json::Map::new();
        object.insert("seed".into(), json!(outcome.seed));
        object.insert("verdict".into(), json!(outcome.verdict.word()));
        object.insert("detail".into(), json!(outcome.verdict.detail()));
        object.insert("models".into(), json!(outcome.models));
        for column in &RESULT {
            object.insert(name(column).into(), json!(finite(column.2(outcome.last()))));
        }
        object
    });
    let over_seeds = |part: fn((f64, f64)) -> f64| {
        let numbers = RESULT.iter().map(|column| {
            let value = mean_and_spread(&finals(outcomes, column.2)).map(part);
            (name(column).to_string(), json!(value))
        });
        numbers.collect::<serde_json::Map<_, _>>()
    };
    json!({
        "scenario": plan.path.display().to_string(),
        "algorithm": plan.scenario.algorithm.to_string(),
        "nodes": plan.nodes,
        "good": outcomes.iter().all(|outcome| outcome.verdict.is_good()),
        "seeds": seeds.collect::<Vec<_>>(),
        "mean": over_seeds(|pair| pair.0),
        "spread": over_seeds(|pair| pair.1),
    })
}

/// The trace of some runs.
pub fn trace_csv(plan: &Plan, outcomes: &[Outcome]) -> String {
    let traces: Vec<_> =
        outcomes.iter().map(|outcome| (outcome.seed, outcome.samples.clone())).collect();
    trace::csv(work_name(plan), &traces)
}

fn write(args: &SimArgs, out: &Path, plan: &Plan, outcomes: &[Outcome], table: &str) -> Result<()> {
    let save = |name: &str, text: &str| {
        let path = out.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    let scenario = fs::read_to_string(&args.scenario)
        .with_context(|| format!("cannot read {}", args.scenario.display()))?;
    save("scenario.toml", &scenario)?;
    let seeds = match (args.seed, args.seeds) {
        (Some(seed), _) => format!(" --seed {seed}"),
        (None, Some(Seeds(from, to))) => format!(" --seeds {from}..{to}"),
        (None, None) => String::new(),
    };
    // The copy does for a scenario that names no other files.
    let task = &plan.scenario.task;
    let alone = task.data == rumormill::data::source::DIGITS && plan.scenario.graph.file.is_none();
    let file = if alone { "scenario.toml".into() } else { args.scenario.display().to_string() };
    let command = format!("rumormill-lab sim {file}{seeds} --out .\n");
    save("command.txt", &command)?;
    let csv = trace_csv(plan, outcomes);
    save("trace.csv", &csv)?;
    let figures = plot::figures(&csv).context("cannot draw the trace")?;
    let mut shown = String::new();
    for (name, svg) in &figures {
        save(name, svg)?;
        let _ = writeln!(shown, "![{name}]({name})");
    }
    let good = outcomes.iter().filter(|outcome| outcome.verdict.is_good()).count();
    let claim = match plan.scenario.claim.as_str() {
        "" => "none stated in the scenario",
        claim => claim,
    };
    save(
        "README.md",
        &format!(
            "# {} on {} nodes\n\nClaim: {claim}\n\nCommand, from within this folder:\n\n```sh\n{command}```\n\n\
             ```text\n{table}```\n\nVerdict: {good} of {} seeds ended as they should.\n\n{shown}",
            plan.scenario.algorithm,
            plan.nodes,
            outcomes.len(),
        ),
    )
}
