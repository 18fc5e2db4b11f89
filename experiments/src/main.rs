//! The command line of rumormill-lab. Results on stdout, errors on stderr; exit codes 0 fine, 1
//! failed, 2 usage.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use rumormill_experiments::attack_table::AttackTable;
use rumormill_experiments::sim::{self, Usage, plot};
use rumormill_experiments::{compare, reproduce, scale, soak, spread, vectors};

#[cfg(feature = "language")]
#[global_allocator]
static ALLOCATOR: rumormill::language::memory::Allocator = rumormill::language::memory::Allocator;

/// Simulator, reproductions and benchmarks of rumormill.
#[derive(Parser)]
#[command(name = "rumormill-lab", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Recompute a file of test vectors; prints a JSON tally, exit 1 on a mismatch.
    Vectors {
        /// An lb8, nna or dadao vectors file.
        file: PathBuf,
    },
    /// Simulate honest nodes in loss, partitions, crashes and late starts, one scenario a seed; exit
    /// 1 if any disagree, naming the seed.
    Soak {
        /// The first seed.
        #[arg(long, default_value_t = 0)]
        from: u64,
        /// How many seeds.
        #[arg(long, default_value_t = 100)]
        seeds: u64,
        /// With audits and a node that lies.
        #[arg(long)]
        audits: bool,
        /// With nodes that are no founders and join.
        #[arg(long, conflicts_with = "audits")]
        joins: bool,
    },
    /// How fast a record spreads with uniform and with optimal edge rates; prints CSV.
    Spread {
        /// Trials for each graph and scheme.
        #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(2..=1_000_000))]
        trials: u64,
    },
    /// Simulate a network described by a scenario file; exit 1 if a seed does not end as it should.
    Sim(sim::SimArgs),
    /// Draw the figures of a trace, or of a soak.
    Plot {
        /// A trace.csv of `sim`, or the CSV of a soak.
        trace: PathBuf,
        /// The folder for the figures; made when missing.
        #[arg(long, value_name = "FOLDER")]
        out: PathBuf,
    },
    /// Attacks × selection rules × shares of faulty nodes: what honest nodes lose, as a table and a heat
    /// map; exit 1 unless all honest nodes end identical.
    AttackTable(Box<AttackTable>),
    /// Run every algorithm on one problem: bytes sent, gradients or probes, and what is reached.
    Compare(compare::CompareArgs),
    /// Simulate a large network of the combined protocol; prints what it costs, exit 1 unless all
    /// nodes end identical.
    BenchSim(scale::Scale),
    /// One MeZO node on a language model, or what a step costs; prints CSV.
    #[cfg(feature = "language")]
    Language(Box<rumormill_experiments::language::LanguageArgs>),
    /// Repeat a published or measured result: claim, our number, reference, verdict.
    Reproduce {
        #[command(subcommand)]
        what: reproduce::What,
    },
}

fn main() -> ExitCode {
    #[cfg(feature = "language")]
    rumormill::language::memory::huge_pages(false);
    match run(Arguments::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(if error.is::<Usage>() { 2 } else { 1 })
        }
    }
}

/// Whether everything came out as it should.
fn run(command: Command) -> Result<bool> {
    match command {
        Command::Vectors { file } => {
            let tally = vectors::check_file(&file)?;
            println!("{}", serde_json::to_string(&tally)?);
            Ok(tally.mismatches == 0)
        }
        Command::Soak { from, seeds, audits, joins } => {
            let mut failed = 0;
            for seed in from..from.saturating_add(seeds) {
                let ended = match (audits, joins) {
                    (true, _) => soak::audited(seed).map(|_| ()),
                    (_, true) => soak::joined(seed),
                    (false, false) => soak::scenario(seed),
                };
                if let Err(problem) = ended {
                    failed += 1;
                    println!("seed {seed}: {problem}");
                }
            }
            println!("{seeds} seeds, {failed} failed");
            Ok(failed == 0)
        }
        Command::Spread { trials } => {
            print!("{}", spread::table(trials)?);
            Ok(true)
        }
        Command::Sim(args) => sim::run(&args),
        Command::Plot { trace, out } => plot::run(&trace, &out).map(|()| true),
        Command::AttackTable(table) => table.run(),
        Command::Compare(args) => compare::run(&args).map(|()| true),
        Command::BenchSim(scale) => scale.run(),
        #[cfg(feature = "language")]
        Command::Language(args) => rumormill_experiments::language::run(&args),
        Command::Reproduce { what } => reproduce::run(what),
    }
}
