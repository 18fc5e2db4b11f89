//! Reproductions: each repeats figures of a paper or of a reference program and ends with a table
//! of claim, our number, reference number and verdict.

pub mod a9a;
pub mod acid;
pub mod coefficients;
pub mod dadao;
pub mod justonebyte;
pub mod monna;
pub mod rumormill;
pub mod selection;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, Subcommand};

/// What to reproduce.
#[derive(Subcommand)]
pub enum What {
    /// DADAO: event counts on six graphs, margins, optimal rates, one byte an exchange, speed.
    Dadao {
        /// Problem instances (JSON); without it a seeded family like the published one is drawn.
        #[arg(long, env = "RUMORMILL_DADAO_INSTANCES")]
        instances: Option<PathBuf>,
        /// Common to all.
        #[command(flatten)]
        options: Options,
    },
    /// A2CiD2: communications of pure averaging, and the ring against doubling the rate.
    Acid {
        /// Common to all.
        #[command(flatten)]
        options: Options,
    },
    /// DADAO, A2CiD2, gossip, D-SGD and one-byte DADAO on a9a: logistic regression, a ring of 16.
    A9a {
        /// The LIBSVM file a9a, gzipped or not.
        #[arg(long)]
        data: PathBuf,
        /// Seed of the deal of rows and of the event streams.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// A folder for the CSV file; made when missing.
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Just One Byte: exact scalars, a byte and a sign; private directions; late joiners.
    Justonebyte {
        /// Data and length.
        #[command(flatten)]
        training: coefficients::Training,
    },
    /// The combined algorithm: instalment laws at several redundancies.
    Rumormill {
        /// Probes of a direction.
        #[arg(long, value_delimiter = ',', default_values_t = rumormill::REDUNDANCIES)]
        redundancies: Vec<u32>,
        /// Data and length.
        #[command(flatten)]
        training: coefficients::Training,
    },
    /// Selection rules under attack: 15 nodes, 4 faulty, digits.
    Selection {
        /// Attacks, rules, length.
        #[command(flatten)]
        options: selection::Options,
    },
    /// Everything, one after another; what needs data that are not named is left out and said.
    All {
        /// Problem instances of DADAO (JSON).
        #[arg(long, env = "RUMORMILL_DADAO_INSTANCES")]
        instances: Option<PathBuf>,
        /// The LIBSVM file a9a, gzipped or not.
        #[arg(long)]
        a9a: Option<PathBuf>,
        /// A folder with the four MNIST idx files.
        #[arg(long)]
        mnist: Option<PathBuf>,
        /// Seeds 1, 2, … of what trains a network.
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=100))]
        seeds: u64,
        /// Event streams per entry of what draws Poisson clocks.
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=1000))]
        streams: u64,
        /// A folder with one folder a reproduction; made when missing.
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// MoNNA: 26 nodes, 5 faulty, an MLP on MNIST under four attacks.
    Monna {
        /// A folder with the four gzipped MNIST idx files.
        #[arg(long)]
        data: PathBuf,
        /// How many seeds; about four CPU minutes each at 600 steps.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=100))]
        seeds: u64,
        /// The first seed.
        #[arg(long, default_value_t = 1)]
        from: u64,
        /// Steps, a multiple of 50, at least 150.
        #[arg(long, default_value_t = 600)]
        steps: usize,
        /// Compare rival rules on a smaller network for 100 steps instead.
        #[arg(long, conflicts_with = "steps")]
        rules: bool,
        /// A folder for the CSV files; made when missing.
        #[arg(long)]
        out: Option<PathBuf>,
    },
}

/// Options of every reproduction.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Event streams per entry, 1 to 1000; figures are means over them [default: 100 for dadao, 10
    /// for acid].
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub streams: Option<u64>,
    /// A folder for the CSV files; made when missing.
    #[arg(long)]
    pub out: Option<PathBuf>,
}

/// Runs a reproduction and prints its table; whether every claim was reproduced.
///
/// # Errors
/// When an input cannot be read or a result cannot be written.
pub fn run(what: What) -> Result<bool> {
    let (report, out) = match what {
        What::All { instances, a9a, mnist, seeds, streams, out } => {
            return all(instances, a9a, mnist, seeds, streams, out);
        }
        What::Dadao { instances, options } => {
            let streams = options.streams.unwrap_or(100);
            (dadao::reproduce(instances.as_deref(), streams)?, options.out)
        }
        What::Acid { options } => (acid::reproduce(options.streams.unwrap_or(10)), options.out),
        What::A9a { data, seed, out } => (a9a::reproduce(&data, seed)?, out),
        What::Monna { data, seeds, from, steps, rules, out } => {
            let seeds = from..from.saturating_add(seeds);
            let report = match rules {
                true => monna::rules(&data, seeds)?,
                false => monna::reproduce(&data, seeds, steps)?,
            };
            (report, out)
        }
        What::Justonebyte { training } => (justonebyte::reproduce(&training)?, training.out),
        What::Selection { options } => (selection::reproduce(&options)?, options.out),
        What::Rumormill { redundancies, training } => {
            (rumormill::reproduce(&redundancies, &training)?, training.out)
        }
    };
    if let Some(folder) = &out {
        report.write(folder)?;
    }
    println!("{report}");
    Ok(report.claims.iter().all(|claim| claim.reproduced))
}

/// Every reproduction, each in a folder of its own.
fn all(
    instances: Option<PathBuf>,
    a9a: Option<PathBuf>,
    mnist: Option<PathBuf>,
    seeds: u64,
    streams: u64,
    out: Option<PathBuf>,
) -> Result<bool> {
    let folder = |name: &str| out.as_ref().map(|out| out.join(name));
    let options = |name: &str| Options { streams: Some(streams), out: folder(name) };
    let training = |name: &str| coefficients::Training {
        seeds,
        out: folder(name),
        ..coefficients::Training::default()
    };
    let mut list = vec![
        What::Dadao { instances, options: options("dadao") },
        What::Acid { options: options("acid") },
        What::Justonebyte { training: training("justonebyte") },
        What::Rumormill {
            redundancies: rumormill::REDUNDANCIES.to_vec(),
            training: training("rumormill"),
        },
    ];
    match a9a {
        Some(data) => list.push(What::A9a { data, seed: 1, out: folder("a9a") }),
        None => eprintln!("left out: a9a, which needs --a9a FILE"),
    }
    match mnist {
        Some(data) => {
            let (from, steps, out) = (1, 600, folder("monna"));
            list.push(What::Monna { data, seeds, from, steps, rules: false, out });
        }
        None => eprintln!("left out: monna, which needs --mnist FOLDER"),
    }
    let mut good = true;
    for what in list {
        good &= run(what)?;
    }
    Ok(good)
}

/// A claim and what became of it.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The sentence.
    pub claim: String,
    /// What we measured.
    pub ours: String,
    /// What the paper or the reference program has.
    pub reference: String,
    /// Whether ours agrees, by the tolerance the claim names.
    pub reproduced: bool,
    /// Why it was not, where that is known.
    pub why_not: Option<String>,
}

/// All claims of a reproduction with the raw numbers.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// What the figures stand on: instances, streams, conventions.
    pub notes: Vec<String>,
    /// The claims, in the order made.
    pub claims: Vec<Claim>,
    /// CSV files: name, and lines with the header first.
    pub files: Vec<(&'static str, Vec<String>)>,
}

impl Report {
    fn claim(
        &mut self,
        claim: impl Into<String>,
        ours: impl Into<String>,
        reference: impl Into<String>,
        reproduced: bool,
    ) {
        self.explained(claim, ours, reference, reproduced, "");
    }

    /// A claim with the reason that is given when it is not reproduced; empty if none is known.
    fn explained(
        &mut self,
        claim: impl Into<String>,
        ours: impl Into<String>,
        reference: impl Into<String>,
        reproduced: bool,
        why_not: impl Into<String>,
    ) {
        let claim = Claim {
            claim: claim.into(),
            ours: ours.into(),
            reference: reference.into(),
            reproduced,
            why_not: Some(why_not.into()).filter(|why| !reproduced && !why.is_empty()),
        };
        eprintln!("{claim}");
        self.claims.push(claim);
    }

    fn write(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        for (name, lines) in &self.files {
            let path = folder.join(name);
            let text = lines.join("\n") + "\n";
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        let path = folder.join("claims.txt");
        fs::write(&path, format!("{self}\n"))
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Claim { claim, ours, reference, .. } = self;
        let verdict = if self.reproduced { "reproduced" } else { "NOT REPRODUCED" };
        write!(f, "{claim}\n    ours {ours}   reference {reference}   {verdict}")?;
        self.why_not.iter().try_for_each(|why| write!(f, ": {why}"))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        for claim in &self.claims {
            writeln!(f, "{claim}")?;
        }
        let reproduced = self.claims.iter().filter(|claim| claim.reproduced).count();
        write!(f, "{reproduced} of {} claims reproduced", self.claims.len())
    }
}

/// The standard deviation of some numbers around their mean, relative to it, in percent.
fn spread_percent(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let center = mean(values.clone());
    100.0 * mean(values.map(|value| (value / center - 1.0).powi(2))).sqrt()
}

/// The standard deviation of some numbers around their mean.
fn spread(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let center = mean(values.clone());
    mean(values.map(|value| (value - center).powi(2))).sqrt()
}

/// Differences of pairs, as of runs that share a seed and so directions and minibatches.
#[derive(Clone, Copy, Debug)]
struct Paired {
    mean: f64,
    /// Standard error of the mean; infinite for a single pair.
    error: f64,
    pairs: usize,
}

impl Paired {
    /// `ours − theirs`, pair by pair.
    fn of(ours: &[f64], theirs: &[f64]) -> Paired {
        assert_eq!(ours.len(), theirs.len(), "paired samples have one length");
        let differences: Vec<f64> = ours.iter().zip(theirs).map(|(a, b)| a - b).collect();
        let (center, pairs) = (mean(differences.iter().copied()), differences.len());
        let squares: f64 = differences.iter().map(|value| (value - center).powi(2)).sum();
        let error = match pairs {
            0 | 1 => f64::INFINITY,
            _ => (squares / (pairs * (pairs - 1)) as f64).sqrt(),
        };
        Paired { mean: center, error, pairs }
    }

    /// Beyond this a mean is not explained by noise: two-sided, 5 %, Student's t.
    fn noise(&self) -> f64 {
        const QUANTILES: [f64; 12] =
            [12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18];
        let freedom = self.pairs.saturating_sub(2);
        self.error * QUANTILES.get(freedom).unwrap_or(&2.16)
    }
}

impl fmt::Display for Paired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:+.4} ± {:.4}", self.mean, self.error)
    }
}

/// The mean of some numbers; NaN when there are none.
fn mean(values: impl IntoIterator<Item = f64>) -> f64 {
    let (mut sum, mut count) = (0.0, 0.0);
    for value in values {
        sum += value;
        count += 1.0;
    }
    sum / count
}
