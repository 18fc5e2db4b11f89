//! Attacks × selection rules × shares of faulty nodes × seeds: what honest nodes reach, beside the same
//! number of honest probes without any faulty node.
//!
//! Every cell is a run of the simulator, so of the daemon's own protocol value. The fault-free run has
//! the honest nodes alone, at the same probes a node and the same seed.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, anyhow};
use clap::Args;
use plotters::prelude::*;
use rumormill::data::source::DIGITS;
use rumormill::selection::Rule;
use serde::Serialize;

use crate::sim::plan::Plan;
use crate::sim::scenario::Scenario;
use crate::sim::{Usage, Verdict, simulate};

/// What is compared.
#[derive(Args, Clone, Debug)]
pub struct AttackTable {
    /// Value attacks, by name.
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
    /// Step size: the sum of absolute coefficients of a round.
    #[arg(long, default_value_t = 0.1)]
    step: f64,
    /// Probes of others repeated for every thousand of one's own; zero turns audits off.
    #[arg(long, default_value_t = 0)]
    audits: u16,
    /// How faulty nodes audit: honest, accuse (honest ones, and clear each other), copy.
    #[arg(long, default_value = "honest")]
    auditors: String,
    /// Data: `digits`, a folder of idx files, a .csv or a .libsvm file.
    #[arg(long, default_value = DIGITS)]
    data: String,
    /// The model, as in a scenario.
    #[arg(long, default_value = "mlp:32")]
    model: String,
    /// Shards: public, iid or dirichlet:ALPHA.
    #[arg(long, default_value = "public")]
    shards: String,
    /// Graph family.
    #[arg(long, default_value = "complete")]
    family: String,
    /// A folder for CSV and heat map; made when missing.
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// One JSON object a row on stdout, in place of the table.
    #[arg(long)]
    json: bool,
}

/// One run.
#[derive(Clone, Debug, Serialize)]
struct Row {
    attack: String,
    rule: Rule,
    /// Share of faulty nodes, in percent.
    fraction: f64,
    seed: u64,
    /// Of the worst honest node on held-out rows, in [0, 1].
    accuracy: f64,
    fault_free_accuracy: f64,
    /// Honest nodes ended with one certified chain and one model.
    identical: bool,
    /// Faulty nodes that were excluded, of how many.
    excluded: usize,
    faulty: usize,
    honest_excluded: usize,
    /// The round from which on the last excluded faulty node counts for nothing.
    last_excluded_round: Option<u64>,
    /// Lowest audit score of an honest node and highest of a faulty one, at the end.
    honest_score: Option<f64>,
    faulty_score: Option<f64>,
}

struct Cell<'a> {
    attack: &'a str,
    rule: Rule,
    fraction: f64,
    faulty: usize,
    seed: u64,
}

impl AttackTable {
    fn plan(&self, cell: &Cell<'_>, fault_free: bool) -> Result<Plan> {
        let nodes = if fault_free { self.nodes - cell.faulty } else { self.nodes };
        let mut text = format!(
            "nodes = {nodes}\nsample_s = 1e6\n[task]\ndata = {:?}\nmodel = {:?}\nshards = {:?}\n\
             [graph]\nfamily = {:?}\n[run]\nrounds = {}\nprobes_per_round = {}\nstep = {}\n\
             selection = \"{}\"\nredundancy = {:?}\naudit_permille = {}\n",
            self.data,
            self.model,
            self.shards,
            self.family,
            self.rounds,
            self.probes_per_round,
            self.step,
            cell.rule,
            self.redundancy,
            if fault_free { 0 } else { self.audits },
        );
        if cell.faulty > 0 && !fault_free {
            write!(
                text,
                "auditors = \"{}\"\n[[fault]]\ncount = {}\nkind = \"{}\"\n",
                self.auditors, cell.faulty, cell.attack
            )?;
        }
        let wrong = |error: toml::de::Error| Usage(format!("attack-table: {}", error.message()));
        let scenario: Scenario = toml::from_str(&text).map_err(wrong)?;
        Ok(Plan::new(scenario, Path::new("attack-table"))?)
    }

    fn fault_free(&self, cell: &Cell<'_>) -> Result<f64> {
        let outcomes = simulate(&self.plan(cell, true)?, &[cell.seed])?;
        Ok(outcomes[0].worst_accuracy())
    }

    fn run_cell(&self, cell: &Cell<'_>, fault_free: f64) -> Result<Row> {
        let plan = self.plan(cell, false)?;
        let outcome = simulate(&plan, &[cell.seed])?.remove(0);
        let first_faulty = self.nodes - cell.faulty;
        let excluded = |faulty: bool| {
            outcome.standings.iter().filter(move |of| (of.node >= first_faulty) == faulty)
        };
        let rounds = excluded(true).filter_map(|of| of.excluded_from);
        Ok(Row {
            attack: cell.attack.into(),
            rule: cell.rule,
            fraction: cell.fraction,
            seed: cell.seed,
            accuracy: outcome.worst_accuracy(),
            fault_free_accuracy: fault_free,
            identical: matches!(outcome.verdict, Verdict::Agreed),
            excluded: excluded(true).filter(|of| of.excluded_from.is_some()).count(),
            faulty: cell.faulty,
            honest_excluded: excluded(false).filter(|of| of.excluded_from.is_some()).count(),
            last_excluded_round: rounds.max(),
            honest_score: excluded(false).filter_map(|of| of.audit_score).reduce(f64::min),
            faulty_score: excluded(true).filter_map(|of| of.audit_score).reduce(f64::max),
        })
    }

    fn cells(&self) -> Vec<Cell<'_>> {
        let mut cells = Vec::new();
        for &fraction in &self.fractions {
            let faulty = (fraction / 100.0 * self.nodes as f64).round() as usize;
            for &rule in &self.rules {
                for (at, attack) in self.attacks.iter().enumerate() {
                    // Without faulty nodes there is no attack to tell apart.
                    if faulty == 0 && at > 0 {
                        continue;
                    }
                    let attack = if faulty == 0 { "none" } else { attack };
                    cells.extend((1..=self.seeds).map(|seed| Cell {
                        attack,
                        rule,
                        fraction,
                        faulty,
                        seed,
                    }));
                }
            }
        }
        cells
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
        let cells = self.cells();
        // All wrong input is found before anything runs.
        for cell in &cells {
            self.plan(cell, false)?;
        }
        let references: Vec<(Rule, usize, u64)> = {
            let mut all: Vec<_> = cells.iter().map(|c| (c.rule, c.faulty, c.seed)).collect();
            all.sort_by_key(|&(rule, faulty, seed)| (rule.name(), faulty, seed));
            all.dedup();
            all
        };
        let of_reference = |&(rule, faulty, seed): &(Rule, usize, u64)| {
            self.fault_free(&Cell { attack: "none", rule, fraction: 0.0, faulty, seed })
        };
        let fault_free = parallel(&references, of_reference)?;
        let rows = parallel(&cells, |cell| {
            let of = (cell.rule, cell.faulty, cell.seed);
            let at = references.iter().position(|reference| *reference == of);
            let row = self.run_cell(cell, fault_free[at.expect("every cell has a reference")])?;
            eprintln!("{}", csv_line(&row));
            Ok(row)
        })?;
        let mut csv = String::from(
            "attack,rule,fraction,seed,accuracy,fault_free_accuracy,identical,excluded,faulty,\
             honest_excluded,last_excluded_round,honest_score,faulty_score\n",
        );
        rows.iter().for_each(|row| csv += &(csv_line(row) + "\n"));
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
            write("attacks.csv", &csv)?;
            write("attacks.svg", &heat_map(&rows)?)?;
        }
        Ok(rows.iter().all(|row| row.identical))
    }
}

/// Applies `work` to all items on all cores, in the items' order.
fn parallel<T: Sync, R: Send>(
    items: &[T],
    work: impl Fn(&T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<Option<Result<R>>>> = Mutex::new(items.iter().map(|_| None).collect());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores.min(items.len()) {
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

fn csv_line(row: &Row) -> String {
    let score = |score: Option<f64>| score.map_or(String::new(), |score| format!("{score:.3}"));
    format!(
        "{},{},{},{},{:.4},{:.4},{},{},{},{},{},{},{}",
        row.attack,
        row.rule,
        row.fraction,
        row.seed,
        row.accuracy,
        row.fault_free_accuracy,
        row.identical,
        row.excluded,
        row.faulty,
        row.honest_excluded,
        row.last_excluded_round.map_or(String::new(), |round| round.to_string()),
        score(row.honest_score),
        score(row.faulty_score),
    )
}

/// Means over seeds, one line an attack, rule and fraction.
struct Line<'a> {
    attack: &'a str,
    rule: Rule,
    fraction: f64,
    rows: Vec<&'a Row>,
}

fn lines(rows: &[Row]) -> Vec<Line<'_>> {
    let mut lines: Vec<Line<'_>> = Vec::new();
    for row in rows {
        let same = |line: &&mut Line<'_>| {
            line.attack == row.attack && line.rule == row.rule && line.fraction == row.fraction
        };
        match lines.iter_mut().find(same) {
            Some(line) => line.rows.push(row),
            None => lines.push(Line {
                attack: &row.attack,
                rule: row.rule,
                fraction: row.fraction,
                rows: vec![row],
            }),
        }
    }
    lines
}

impl Line<'_> {
    fn mean(&self, of: impl Fn(&Row) -> f64) -> f64 {
        self.rows.iter().map(|row| of(row)).sum::<f64>() / self.rows.len() as f64
    }

    /// Points of accuracy lost to the attack.
    fn loss(&self) -> f64 {
        100.0 * self.mean(|row| row.fault_free_accuracy - row.accuracy)
    }
}

fn table(rows: &[Row]) -> String {
    let mut text = String::from(
        "attack            rule              faulty  accuracy  fault-free   lost  excluded  by round  \
         honest excluded  identical\n",
    );
    for line in lines(rows) {
        let sum = |of: fn(&Row) -> usize| line.rows.iter().map(|row| of(row)).sum::<usize>();
        let last = line.rows.iter().filter_map(|row| row.last_excluded_round).max();
        let _ = writeln!(
            text,
            "{:<16}  {:<16}  {:>5}%  {:>8.4}  {:>10.4}  {:>5.1}  {:>3} of {:<2}  {:>8}  {:>15}  {:>9}",
            line.attack,
            line.rule.name(),
            line.fraction,
            line.mean(|row| row.accuracy),
            line.mean(|row| row.fault_free_accuracy),
            line.loss(),
            sum(|row| row.excluded),
            sum(|row| row.faulty),
            last.map_or("-".into(), |round| round.to_string()),
            sum(|row| row.honest_excluded),
            if line.rows.iter().all(|row| row.identical) { "yes" } else { "NO" },
        );
    }
    text
}

/// Points lost, attacks by rules and fractions.
fn heat_map(rows: &[Row]) -> Result<String> {
    let lines = lines(rows);
    let mut attacks: Vec<&str> = Vec::new();
    let mut columns: Vec<(Rule, f64)> = Vec::new();
    for line in &lines {
        if !attacks.contains(&line.attack) {
            attacks.push(line.attack);
        }
        if !columns.contains(&(line.rule, line.fraction)) {
            columns.push((line.rule, line.fraction));
        }
    }
    columns.sort_by(|a, b| a.0.name().cmp(b.0.name()).then(a.1.total_cmp(&b.1)));
    let (wide, high, left, top) = (64, 26, 150, 64);
    let size = (left + wide * columns.len() as u32 + 20, top + high * attacks.len() as u32 + 40);
    let mut svg = String::new();
    let draw = |svg: &mut String| -> std::result::Result<(), Box<dyn std::error::Error>> {
        let root = SVGBackend::with_string(svg, size).into_drawing_area();
        root.fill(&WHITE)?;
        let text = |at: (i32, i32), what: &str, size: i32| {
            root.draw(&Text::new(what.to_owned(), at, ("sans-serif", size)))
        };
        text((8, 8), "Points of accuracy lost to the attack (worst honest node)", 15)?;
        for (at, (rule, fraction)) in columns.iter().enumerate() {
            let x = left as i32 + wide as i32 * at as i32 + 4;
            text((x, 32), rule.name(), 11)?;
            text((x, 46), &format!("{fraction} %"), 12)?;
        }
        for (row, attack) in attacks.iter().enumerate() {
            let y = top as i32 + high as i32 * row as i32;
            text((8, y + 7), attack, 13)?;
            for (at, column) in columns.iter().enumerate() {
                let of = |line: &&Line<'_>| {
                    line.attack == *attack && (line.rule, line.fraction) == *column
                };
                let Some(line) = lines.iter().find(of) else { continue };
                let lost = line.loss();
                let shade = (lost / 20.0).clamp(0.0, 1.0);
                let fade = |to: f64| (255.0 - shade * (255.0 - to)) as u8;
                let color = RGBColor(fade(200.0), fade(60.0), fade(40.0));
                let x = left as i32 + wide as i32 * at as i32;
                let cell = [(x, y), (x + wide as i32 - 2, y + high as i32 - 2)];
                root.draw(&Rectangle::new(cell, color.filled()))?;
                text((x + 14, y + 7), &format!("{lost:.1}"), 13)?;
            }
        }
        root.present()?;
        Ok(())
    };
    draw(&mut svg).map_err(|error| anyhow!("heat map: {error}"))?;
    Ok(svg)
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
        assert!(usage(&["--fractions", "50"]).contains("50"));
        let many = usage(&["--fractions", "40", "--attacks", "zero"]);
        assert!(many.contains("tolerate"), "{many}");
    }

    #[test]
    fn audits_exclude_liars_and_nobody_else() {
        let args = ["--attacks", "mimic", "--fractions", "27", "--audits", "60", "--model"];
        let rest = ["softmax", "--rounds", "120", "--probes-per-round", "16"];
        let table = parse(&[&args[..], &rest[..]].concat());
        let cells = table.cells();
        let row = table.run_cell(&cells[0], 1.0).unwrap();
        assert!(row.identical);
        assert_eq!((row.excluded, row.faulty, row.honest_excluded), (4, 4, 0), "{row:?}");
    }
}
