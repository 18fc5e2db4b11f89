//! Cells of the attack table in the simulator.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use clap::ValueEnum;
use rumormill::fault::Fault;

use super::table::{Row, area_under_roc};
use super::{AttackTable, Cell, Field, placement};
use crate::sim::plan::Plan;
use crate::sim::scenario::Scenario;
use crate::sim::{Standing, Usage, Verdict, simulate};

/// Model seconds between two looks at trust: a few heights, so that no round is missed.
const LOOK_S: f64 = 4.0;

/// Runs in one thread, in model time.
pub(super) struct Simulator;

/// A scenario of a cell, with these faulty nodes.
fn plan(table: &AttackTable, cell: &Cell<'_>, nodes: usize, fault: &str) -> Result<Plan> {
    let mut text = format!(
        "nodes = {nodes}\nsample_s = {LOOK_S:?}\n[task]\ndata = {:?}\nmodel = {:?}\nshards = {:?}\n\
         [graph]\nfamily = {:?}\n[run]\nrounds = {}\nprobes_per_round = {}\nstep = {:?}\n\
         selection = \"{}\"\nredundancy = {:?}\nrounds_per_height = {}\nwindow = {}\n",
        table.data,
        table.model,
        table.shards,
        table.family,
        table.rounds,
        table.probes_per_round,
        table.step,
        cell.rule,
        table.redundancy,
        table.rounds_per_height,
        table.window,
    );
    if nodes == table.nodes {
        let auditors = table.auditors.to_possible_value();
        let auditors = auditors.as_ref().map_or("", |value| value.get_name());
        write!(text, "audit_permille = {}\nauditors = {auditors:?}\n", table.audits)?;
        text += fault;
    }
    let wrong = |error: toml::de::Error| Usage(format!("attack-table: {}", error.message()));
    let scenario: Scenario = toml::from_str(&text).map_err(wrong)?;
    Ok(Plan::new(scenario, Path::new("attack-table"))?)
}

fn with_faults(table: &AttackTable, cell: &Cell<'_>, fault: Option<Fault>) -> Result<Plan> {
    let Some(Fault { kind, factor }) = fault else { return plan(table, cell, table.nodes, "") };
    let honest = plan(table, cell, table.nodes, "")?;
    let wrong = |problem: String| Usage(format!("attack-table: {problem}"));
    let topology = honest.topology(cell.seed).map_err(wrong)?;
    let faulty = placement::worst(&topology, cell.faulty).ok_or_else(|| {
        let family = &table.family;
        wrong(format!("no {} nodes can go and leave the others of {family} connected", cell.faulty))
    })?;
    let factor = factor.map_or(String::new(), |factor| format!("factor = {factor:?}\n"));
    plan(
        table,
        cell,
        table.nodes,
        &format!("[[fault]]\nnodes = {faulty:?}\nkind = \"{kind}\"\n{factor}"),
    )
}

impl Field for Simulator {
    fn fault_free(&self, table: &AttackTable, cell: &Cell<'_>) -> Result<f64> {
        let plan = plan(table, cell, table.nodes - cell.faulty, "")?;
        Ok(simulate(&plan, &[cell.seed])?[0].worst_accuracy())
    }

    fn check(&self, table: &AttackTable, cell: &Cell<'_>, fault: Option<Fault>) -> Result<()> {
        with_faults(table, cell, fault).map(drop)
    }

    fn run(
        &self,
        table: &AttackTable,
        cell: &Cell<'_>,
        fault: Option<Fault>,
        fault_free: f64,
    ) -> Result<Row> {
        let plan = with_faults(table, cell, fault)?;
        let outcome = simulate(&plan, &[cell.seed])?.pop().context("one seed has one outcome")?;
        let is_faulty = |of: &&Standing| plan.lies[of.node].is_some();
        let (faulty, honest): (Vec<&Standing>, Vec<&Standing>) =
            outcome.standings.iter().partition(is_faulty);
        let excluded = |of: &[&Standing]| of.iter().filter(|of| of.excluded_from.is_some()).count();
        let trust = |of: &[&Standing]| of.iter().filter_map(|of| of.trust).collect::<Vec<_>>();
        let weights: Vec<f64> = faulty.iter().filter_map(|of| of.weight).collect();
        let usual: Vec<f64> = honest.iter().filter_map(|of| of.weight).collect();
        let mean = |of: &[f64]| of.iter().sum::<f64>() / of.len().max(1) as f64;
        Ok(Row {
            accuracy: outcome.worst_accuracy(),
            identical: matches!(outcome.verdict, Verdict::Agreed),
            excluded: excluded(&faulty),
            honest_excluded: excluded(&honest),
            last_excluded_round: faulty.iter().filter_map(|of| of.excluded_from).max(),
            honest_score: honest.iter().filter_map(|of| of.audit_score).reduce(f64::min),
            faulty_score: faulty.iter().filter_map(|of| of.audit_score).reduce(f64::max),
            selected: (mean(&usual) > 0.0 && !weights.is_empty())
                .then(|| mean(&weights) / mean(&usual)),
            trust_auc: area_under_roc(&trust(&honest), &trust(&faulty)),
            ..Row::of(cell, fault, fault_free)
        })
    }
}
