//! The instalment laws beside each other: which one trains best at equal probes.
//!
//! Each law has the best of two step sizes, by the mean loss over the seeds, at each redundancy.
//! Reference: a numpy prototype on twelve nodes had loss .231 with DADAO's pair against .256 paid at
//! once at r = 12, and no gain at r = 3.

use anyhow::Result;
use rumormill::update::Law;

use super::coefficients::{Setup, Training};
use super::justonebyte::all;
use super::{Report, mean};

/// DADAO's pair with a first payment of its own, between plain SGD and momentum.
const LAWS: [(&str, Law); 3] = [
    ("immediate", Law::Immediate),
    ("momentum 0.9", Law::Momentum { beta: 0.9 }),
    ("DADAO pair", Law::Dadao { gamma: 0.5, gamma_tilde: 1.5, beta: 0.9 }),
];

const REDUNDANCIES: [u32; 3] = [1, 3, 12];

/// Times the step size asked for.
const STEPS: [f64; 2] = [1.0, 2.0];

/// Runs all laws with the same seeds.
///
/// # Errors
/// The data cannot be read, or there is no such model on it.
pub fn reproduce(training: &Training) -> Result<Report> {
    let task = training.load()?;
    let mut report = Report::default();
    report.notes.push(format!(
        "{}; 12 nodes, {} probes, {} seeds, the best of steps {STEPS:?} times {}; synchronous \
         rounds in one process, no links",
        task.name, training.probes, training.seeds, training.step
    ));
    let mut lines = vec!["setup,seed,accuracy,loss".to_owned()];
    // By redundancy and law: loss, accuracy and step.
    let mut best = [[(f64::INFINITY, 0.0, 0.0); LAWS.len()]; REDUNDANCIES.len()];
    for (best, redundancy) in best.iter_mut().zip(REDUNDANCIES) {
        for (best, (law_name, law)) in best.iter_mut().zip(LAWS) {
            for step in STEPS.map(|factor| factor * training.step) {
                let setup = Setup { redundancy, law, step, ..Setup::new(training) };
                let name = format!("{law_name} r={redundancy} step={step}");
                let outcomes = all(&task, &setup, &name, training, &mut lines)?;
                let loss = mean(outcomes.iter().map(|outcome| outcome.loss));
                if loss < best.0 {
                    *best = (loss, mean(outcomes.iter().map(|outcome| outcome.accuracy)), step);
                }
            }
        }
    }
    let shown = |(loss, accuracy, step): (f64, f64, f64)| {
        format!("loss {loss:.4}, accuracy {accuracy:.4}, step {step}")
    };
    for (best, redundancy) in best.iter().zip(REDUNDANCIES) {
        let ours: Vec<String> = LAWS
            .iter()
            .zip(best)
            .map(|((name, _), &outcome)| format!("{name}: {}", shown(outcome)))
            .collect();
        let lowest = (0..LAWS.len()).min_by(|&a, &b| best[a].0.total_cmp(&best[b].0));
        let lowest = lowest.expect("there are laws");
        match redundancy {
            12 => report.claim(
                "r = 12: paying later lowers the loss",
                ours.join("; "),
                ".231 against .256",
                lowest != 0,
            ),
            _ => report.claim(
                format!("r = {redundancy}: paying later gains nothing (within 2 % of the loss)"),
                ours.join("; "),
                "no gain at r = 3",
                best[0].0 <= 1.02 * best[lowest].0,
            ),
        }
    }
    let mut sums: Vec<(f64, &str)> = (0..LAWS.len())
        .map(|law| (best.iter().take(2).map(|of| of[law].0.ln()).sum(), LAWS[law].0))
        .collect();
    sums.sort_by(|a, b| a.0.total_cmp(&b.0));
    report.claim(
        "the default law is the one with the lowest loss at r = 1 and 3 together",
        sums[0].1,
        "immediate, the default",
        sums[0].1 == LAWS[0].0,
    );
    report.files.push(("instalments.csv", lines));
    Ok(report)
}
