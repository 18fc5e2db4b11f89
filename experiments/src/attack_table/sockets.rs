//! Cells of the attack table over real sockets: `rumormill local`, one run after another.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use rumormill::fault::Fault;
use serde_json::Value;

use super::table::Row;
use super::{AttackTable, Cell, Field};
use crate::sim::Usage;
use crate::sim::scenario::Auditors;

/// The daemon's program.
pub(super) struct Sockets {
    program: PathBuf,
}

impl Sockets {
    /// Finds the program beside this one.
    ///
    /// # Errors
    /// When it is not there.
    pub(super) fn new(table: &AttackTable) -> Result<Sockets> {
        let here = std::env::current_exe().context("cannot find this program")?;
        let program = here.with_file_name("rumormill");
        if !program.is_file() {
            let problem = format!(
                "--sockets: {} is not there; build it by `cargo build --release`",
                program.display()
            );
            return Err(Usage(problem).into());
        }
        if table.auditors != Auditors::Honest {
            let problem = "--sockets: --auditors is for the simulator; faulty nodes audit honestly";
            return Err(Usage(problem.into()).into());
        }
        Ok(Sockets { program })
    }

    fn local(&self, table: &AttackTable, cell: &Cell<'_>, nodes: usize) -> Command {
        let mut command = Command::new(&self.program);
        let rows: [(&str, String); 12] = [
            ("--nodes", nodes.to_string()),
            ("--family", table.family.clone()),
            ("--data", table.data.clone()),
            ("--model", table.model.clone()),
            ("--shards", table.shards.clone()),
            ("--rounds", table.rounds.to_string()),
            ("--probes-per-round", table.probes_per_round.to_string()),
            ("--redundancy", table.redundancy.to_string()),
            ("--rounds-per-height", table.rounds_per_height.to_string()),
            ("--window", table.window.to_string()),
            ("--step", table.step.to_string()),
            ("--seed", cell.seed.to_string()),
        ];
        command.arg("local").args(["--json", "--log", "error", "--selection", cell.rule.name()]);
        for (flag, value) in rows {
            command.arg(flag).arg(value);
        }
        command.stdin(Stdio::null());
        command
    }
}

/// The object that `local --json` printed. Exit 3 is a result: honest nodes disagree.
fn result(mut command: Command) -> Result<Value> {
    let output = command.output().context("cannot start rumormill local")?;
    if !matches!(output.status.code(), Some(0 | 3)) {
        let said = String::from_utf8_lossy(&output.stderr);
        match output.status.code() {
            Some(2) => return Err(Usage(said.trim().into()).into()),
            _ => bail!("rumormill local failed: {}", said.trim()),
        }
    }
    serde_json::from_slice(&output.stdout).context("rumormill local printed no JSON")
}

/// Of the worst honest node.
fn worst_accuracy(result: &Value) -> Result<f64> {
    result["accuracy"]["min"].as_f64().context("rumormill local gave no accuracy")
}

impl Field for Sockets {
    fn fault_free(&self, table: &AttackTable, cell: &Cell<'_>) -> Result<f64> {
        worst_accuracy(&result(self.local(table, cell, table.nodes - cell.faulty))?)
    }

    fn check(&self, _: &AttackTable, _: &Cell<'_>, _: Option<Fault>) -> Result<()> {
        // The program checks everything before it starts a node.
        Ok(())
    }

    fn run(
        &self,
        table: &AttackTable,
        cell: &Cell<'_>,
        fault: Option<Fault>,
        fault_free: f64,
    ) -> Result<Row> {
        let mut command = self.local(table, cell, table.nodes);
        command.args(["--audits", &table.audits.to_string()]);
        if let Some(fault) = fault {
            command.args(["--faulty", &format!("{}:{fault}", cell.faulty)]);
        }
        let result = result(command)?;
        let faulty = result["faulty"].as_array().map_or(&[][..], Vec::as_slice);
        let all = |key: &str| faulty.iter().filter_map(|of| of[key].as_f64()).collect::<Vec<_>>();
        let mean =
            |of: Vec<f64>| (!of.is_empty()).then(|| of.iter().sum::<f64>() / of.len() as f64);
        let honest = (table.nodes - cell.faulty) as f64;
        let honest_excluded = result["honest_excluded_fraction"].as_f64().unwrap_or(0.0) * honest;
        let rounds = faulty.iter().filter_map(|of| of["excluded_from_round"].as_u64());
        Ok(Row {
            accuracy: worst_accuracy(&result)?,
            identical: result["agreement"]["identical"].as_bool() == Some(true),
            excluded: rounds.clone().count(),
            honest_excluded: honest_excluded.round() as usize,
            last_excluded_round: rounds.max(),
            faulty_score: all("audit_score").into_iter().reduce(f64::max),
            selected: mean(all("selected_fraction")),
            // The trust of honest nodes, and what audits say of them, are not printed.
            ..Row::of(cell, fault, fault_free)
        })
    }
}
