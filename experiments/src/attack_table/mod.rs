//! Attacks × selection rules × shares of faulty nodes × seeds: what honest nodes reach, beside the same
//! number of honest probes without any faulty node.
//!
//! Every cell is a run of the simulator, so of the daemon's own protocol value, or of the daemon over
//! real sockets. The fault-free run has the honest nodes alone, at the same probes a node and the same
//! seed.

mod attack;
mod placement;
mod simulated;
mod sockets;
mod table;

use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, anyhow};
use clap::Args;
use rumormill::data::source::DIGITS;
use rumormill::fault::Fault;
use rumormill::selection::Rule;

use crate::sim::Usage;
use crate::sim::scenario::Auditors;
use attack::Attack;
use sockets::Sockets;
use table::{Row, heat_map, table};

/// What is compared.
#[derive(Args, Clone, Debug)]
pub struct AttackTable {
    /// Attacks: KIND, KIND:FACTOR, or alie:search and foe:search, which try several factors and keep
    /// the one that costs the honest most.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "sign-flip,scaled-sign-flip,zero,random,largest-opposing,foe,alie,label-flip,mimic"
    )]
    attacks: Vec<String>,
    /// Selection rules, by name.
    #[arg(long, value_delimiter = ',', default_value = "mean")]
    rules: Vec<Rule>,
    /// Faulty nodes of --nodes, in percent, rounded to the nearest number of nodes.
    #[arg(long, value_delimiter = ',', default_value = "0,10,20,27,33")]
    fractions: Vec<f64>,
    /// Seeds 1, 2, …
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=100))]
    seeds: u64,
    /// Nodes, faulty ones included.
    #[arg(long, default_value_t = 15)]
    nodes: usize,
    /// Rounds.
    #[arg(long, default_value_t = 152)]
    rounds: u64,
    /// Probes a node aims at in a round.
    #[arg(long, default_value_t = 16)]
    probes_per_round: u32,
    /// Probes a direction.
    #[arg(long, default_value_t = 3.0)]
    redundancy: f64,
    /// Rounds that are certified together.
    #[arg(long, default_value_t = 8)]
    rounds_per_height: u32,
    /// Rounds that the selection looks at.
    #[arg(long, default_value_t = 20)]
    window: u32,
    /// Step size: the sum of absolute coefficients of a round.
    #[arg(long, default_value_t = 0.1)]
    step: f64,
    /// Probes of others repeated for every thousand of one's own; zero turns audits off.
    #[arg(long, default_value_t = 0)]
    audits: u16,
    /// How faulty nodes audit.
    #[arg(long, value_enum, default_value_t = Auditors::Honest)]
    auditors: Auditors,
    /// Data: `digits`, a folder of idx files, a .csv or a .libsvm file.
    #[arg(long, default_value = DIGITS)]
    data: String,
    /// The model, as in a scenario.
    #[arg(long, default_value = "mlp:32")]
    model: String,
    /// Shards: public, iid or dirichlet:ALPHA.
    #[arg(long, default_value = "public")]
    shards: String,
    /// Graph family: complete, ring, random-regular (of degree 4), …. Faulty nodes are placed where
    /// they leave the honest ones the worst connected, but connected.
    #[arg(long, default_value = "complete")]
    family: String,
    /// Run real nodes over sockets instead: `rumormill local` from this program's folder.
    #[arg(long)]
    sockets: bool,
    /// A folder for CSV and heat map; made when missing.
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// One JSON object a row on stdout, in place of the table.
    #[arg(long)]
    json: bool,
}

/// What an attack, a rule and a share of faulty nodes are tried with.
#[derive(Clone, Copy)]
struct Cell<'a> {
    attack: Option<&'a Attack>,
    rule: Rule,
    /// Share of faulty nodes, in percent.
    fraction: f64,
    faulty: usize,
    seed: u64,
}

/// Where runs take place.
trait Field: Sync {
    /// The accuracy of the honest nodes of a cell alone: of the worst of them, on held-out rows.
    fn fault_free(&self, table: &AttackTable, cell: &Cell<'_>) -> Result<f64>;

    /// A run with faulty nodes, or none.
    fn run(
        &self,
        table: &AttackTable,
        cell: &Cell<'_>,
        fault: Option<Fault>,
        fault_free: f64,
    ) -> Result<Row>;

    /// Refuses what cannot be, before anything runs.
    fn check(&self, table: &AttackTable, cell: &Cell<'_>, fault: Option<Fault>) -> Result<()>;
}

impl AttackTable {
    fn cells<'a>(&self, attacks: &'a [Attack]) -> Vec<Cell<'a>> {
        let mut cells = Vec::new();
        for &fraction in &self.fractions {
            let faulty = (fraction / 100.0 * self.nodes as f64).round() as usize;
            // Without faulty nodes there is no attack to tell apart.
            let attacks: Vec<_> =
                if faulty == 0 { vec![None] } else { attacks.iter().map(Some).collect() };
            for &rule in &self.rules {
                for &attack in &attacks {
                    let of_seed = |seed| Cell { attack, rule, fraction, faulty, seed };
                    cells.extend((1..=self.seeds).map(of_seed));
                }
            }
        }
        cells
    }

    /// The run of a cell that costs the honest most, of those that its attack tries.
    fn worst(&self, field: &dyn Field, cell: &Cell<'_>, fault_free: f64) -> Result<Row> {
        let mut worst: Option<Row> = None;
        for fault in Attack::faults(cell.attack) {
            let row = field.run(self, cell, fault, fault_free)?;
            let is_worse =
                |before: &Row| (row.identical, row.accuracy) < (before.identical, before.accuracy);
            if worst.as_ref().is_none_or(is_worse) {
                worst = Some(row);
            }
        }
        worst.context("an attack tries one factor at least")
    }

    /// Runs all cells; prints rows as they come and the table at the end.
    ///
    /// # Errors
    /// Wrong input, or data that cannot be read.
    pub fn run(&self) -> Result<bool> {
        if let Some(fraction) = self.fractions.iter().find(|part| !(0.0..50.0).contains(*part)) {
            let problem = format!("--fractions: {fraction} is not between 0 and 50 percent");
            return Err(Usage(problem).into());
        }
        let attacks: Vec<Attack> = self
            .attacks
            .iter()
            .map(|text| text.parse())
            .collect::<Result<_, String>>()
            .map_err(|problem| Usage(format!("--attacks: {problem}")))?;
        let field: Box<dyn Field> = match self.sockets {
            true => Box::new(Sockets::new(self)?),
            false => Box::new(simulated::Simulator),
        };
        let cells = self.cells(&attacks);
        // All wrong input is found before anything runs.
        for cell in &cells {
            for fault in Attack::faults(cell.attack) {
                field.check(self, cell, fault)?;
            }
        }
        let references: Vec<Cell<'_>> = {
            let mut all: Vec<Cell<'_>> =
                cells.iter().map(|cell| Cell { attack: None, fraction: 0.0, ..*cell }).collect();
            all.sort_by_key(|cell| (cell.rule.name(), cell.faulty, cell.seed));
            all.dedup_by_key(|cell| (cell.rule, cell.faulty, cell.seed));
            all
        };
        // Real nodes use all cores by themselves.
        let threads = if self.sockets { 1 } else { cores() };
        let fault_free =
            parallel(threads, &references, |reference| field.fault_free(self, reference))?;
        let rows = parallel(threads, &cells, |cell| {
            let same = |of: &Cell<'_>| {
                (of.rule, of.faulty, of.seed) == (cell.rule, cell.faulty, cell.seed)
            };
            let at = references.iter().position(same).context("every cell has a reference")?;
            let row = self.worst(&*field, cell, fault_free[at])?;
            eprintln!("{}", table::csv_line(&row));
            Ok(row)
        })?;
        if self.json {
            for row in &rows {
                println!("{}", serde_json::to_string(row)?);
            }
        } else {
            print!("{}", table(&rows));
        }
        if let Some(out) = &self.out {
            fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
            let write = |name: &str, text: &str| {
                let path = out.join(name);
                fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
            };
            write("attacks.csv", &table::csv(&rows))?;
            write("attacks.svg", &heat_map(&rows)?)?;
        }
        Ok(rows.iter().all(|row| row.identical))
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Applies `work` to all items on some threads, in the items' order.
fn parallel<T: Sync, R: Send>(
    threads: usize,
    items: &[T],
    work: impl Fn(&T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<Option<Result<R>>>> = Mutex::new(items.iter().map(|_| None).collect());
    std::thread::scope(|scope| {
        for _ in 0..threads.min(items.len()) {
            scope.spawn(|| {
                while let Some((at, item)) = {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    items.get(at).map(|item| (at, item))
                } {
                    let result = work(item);
                    if let Ok(mut done) = done.lock() {
                        done[at] = Some(result);
                    }
                }
            });
        }
    });
    let done = done.into_inner().map_err(|_| anyhow!("a worker failed"))?;
    done.into_iter()
        .map(|result| result.unwrap_or_else(|| Err(anyhow!("a worker failed"))))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Parsed {
        #[command(flatten)]
        table: AttackTable,
    }

    fn parse(args: &[&str]) -> AttackTable {
        let args = std::iter::once("test").chain(args.iter().copied());
        <Parsed as clap::Parser>::parse_from(args).table
    }

    #[test]
    fn unknown_attacks_and_too_many_faulty_are_refused_before_anything_runs() {
        let usage = |args: &[&str]| parse(args).run().unwrap_err().to_string();
        assert!(usage(&["--attacks", "sing-flip", "--fractions", "20"]).contains("sign-flip"));
        assert!(usage(&["--attacks", "zero:search", "--fractions", "20"]).contains("alie"));
        assert!(usage(&["--fractions", "50"]).contains("50"));
        let many = usage(&["--fractions", "40", "--attacks", "zero"]);
        assert!(many.contains("tolerate"), "{many}");
    }

    #[test]
    fn audits_exclude_liars_and_nobody_else() {
        let args = ["--attacks", "mimic", "--fractions", "27", "--audits", "60", "--model"];
        let rest = ["softmax", "--rounds", "120", "--probes-per-round", "16"];
        let table = parse(&[&args[..], &rest[..]].concat());
        let attacks = ["mimic".parse().unwrap()];
        let cells = table.cells(&attacks);
        let row = table.worst(&simulated::Simulator, &cells[0], 1.0).unwrap();
        assert!(row.identical);
        assert_eq!((row.excluded, row.faulty, row.honest_excluded), (4, 4, 0), "{row:?}");
    }
}
