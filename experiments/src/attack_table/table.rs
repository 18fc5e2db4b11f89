//! Rows of the attack table, and how they are shown: CSV, a table of means, a heat map.

use std::fmt::Write as _;

use anyhow::{Result, anyhow};
use plotters::prelude::*;
use rumormill::fault::Fault;
use rumormill::selection::Rule;
use serde::Serialize;

use super::Cell;

/// One run.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    pub(super) attack: String,
    /// The factor that was told, or found to be the worst.
    pub(super) factor: Option<f64>,
    pub(super) rule: Rule,
    /// Share of faulty nodes, in percent.
    pub(super) fraction: f64,
    pub(super) seed: u64,
    /// Of the worst honest node on held-out rows, in [0, 1].
    pub(super) accuracy: f64,
    pub(super) fault_free_accuracy: f64,
    /// Honest nodes ended with one certified chain and one model.
    pub(super) identical: bool,
    /// Faulty nodes that were excluded, of how many.
    pub(super) excluded: usize,
    pub(super) faulty: usize,
    pub(super) honest_excluded: usize,
    /// The round from which on the last excluded faulty node counts for nothing.
    pub(super) last_excluded_round: Option<u64>,
    /// Lowest audit score of an honest node and highest of a faulty one, at the end.
    pub(super) honest_score: Option<f64>,
    pub(super) faulty_score: Option<f64>,
    /// Mean weight of a faulty node's records in closed rounds before its exclusion, beside an honest one's.
    pub(super) selected: Option<f64>,
    /// Chance that an honest node is trusted more than a faulty one: area under the ROC curve.
    pub(super) trust_auc: Option<f64>,
}

impl Row {
    /// A row that says whose it is, and of the run nothing yet.
    pub(super) fn of(cell: &Cell<'_>, fault: Option<Fault>, fault_free_accuracy: f64) -> Row {
        Row {
            attack: cell.attack.map_or("none".into(), |attack| attack.name.clone()),
            factor: fault.and_then(|fault| fault.factor),
            rule: cell.rule,
            fraction: cell.fraction,
            seed: cell.seed,
            accuracy: 0.0,
            fault_free_accuracy,
            identical: false,
            excluded: 0,
            faulty: cell.faulty,
            honest_excluded: 0,
            last_excluded_round: None,
            honest_score: None,
            faulty_score: None,
            selected: None,
            trust_auc: None,
        }
    }
}

const CSV_HEADINGS: &str = "attack,factor,rule,fraction,seed,accuracy,fault_free_accuracy,identical,excluded,faulty,\
     honest_excluded,last_excluded_round,honest_score,faulty_score,selected,trust_auc\n";

/// The chance that a value of `above` exceeds one of `below`; ties count half.
pub(super) fn area_under_roc(above: &[f64], below: &[f64]) -> Option<f64> {
    let pairs = above.iter().flat_map(|a| below.iter().map(move |b| a.total_cmp(b)));
    let points = pairs.map(|order| match order {
        std::cmp::Ordering::Greater => 1.0,
        std::cmp::Ordering::Equal => 0.5,
        std::cmp::Ordering::Less => 0.0,
    });
    let count = above.len() * below.len();
    (count > 0).then(|| points.sum::<f64>() / count as f64)
}

pub(super) fn csv(rows: &[Row]) -> String {
    let lines = rows.iter().map(|row| csv_line(row) + "\n");
    std::iter::once(CSV_HEADINGS.to_owned()).chain(lines).collect()
}

pub(super) fn csv_line(row: &Row) -> String {
    let score = |score: Option<f64>| score.map_or(String::new(), |score| format!("{score:.3}"));
    format!(
        "{},{},{},{},{},{:.4},{:.4},{},{},{},{},{},{},{},{},{}",
        row.attack,
        row.factor.map_or(String::new(), |factor| factor.to_string()),
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
        score(row.selected),
        score(row.trust_auc),
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

    /// Over the rows that have the value.
    fn mean_of(&self, of: impl Fn(&Row) -> Option<f64>) -> Option<f64> {
        let values: Vec<f64> = self.rows.iter().filter_map(|row| of(row)).collect();
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    }

    /// Points of accuracy lost to the attack.
    fn loss(&self) -> f64 {
        100.0 * self.mean(|row| row.fault_free_accuracy - row.accuracy)
    }
}

fn shown(value: Option<f64>) -> String {
    value.map_or("-".into(), |value| format!("{value:.2}"))
}

pub(super) fn table(rows: &[Row]) -> String {
    let mut text = String::from(
        "attack            rule              faulty  accuracy  fault-free   lost  excluded  by round  \
         honest excluded  selected  trust AUC  identical\n",
    );
    for line in lines(rows) {
        let sum = |of: fn(&Row) -> usize| line.rows.iter().map(|row| of(row)).sum::<usize>();
        let last = line.rows.iter().filter_map(|row| row.last_excluded_round).max();
        let _ = writeln!(
            text,
            "{:<16}  {:<16}  {:>5}%  {:>8.4}  {:>10.4}  {:>5.1}  {:>3} of {:<2}  {:>8}  {:>15}  {:>8}  {:>9}  {:>9}",
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
            shown(line.mean_of(|row| row.selected)),
            shown(line.mean_of(|row| row.trust_auc)),
            if line.rows.iter().all(|row| row.identical) { "yes" } else { "NO" },
        );
    }
    text
}

/// Points lost, attacks by rules and fractions.
pub(super) fn heat_map(rows: &[Row]) -> Result<String> {
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

    #[test]
    fn area_under_roc_by_hand() {
        assert_eq!(area_under_roc(&[3.0, 2.0], &[1.0]), Some(1.0));
        assert_eq!(area_under_roc(&[1.0, 2.0], &[1.0, 3.0]), Some(0.375));
        assert_eq!(area_under_roc(&[], &[1.0]), None);
    }
}
