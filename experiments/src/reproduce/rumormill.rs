//! The instalment laws beside each other: which one trains best at equal probes.
//!
//! Each law has the step size of the lowest mean training loss over the seeds, on a grid that grows
//! as long as the best step is at its edge. Laws are then compared seed by seed: runs of one seed
//! share directions and minibatches, so the difference is far less noisy than each.
//!
//! Reference: a numpy prototype on twelve nodes had training loss .231 with DADAO's pair against .256
//! paid at once at r = 12, and no gain at r = 3.

use anyhow::Result;
use rumormill::update::Law;

use super::coefficients::{Outcome, Setup, Task, Training};
use super::justonebyte::{HEADER, all};
use super::{Paired, Report, mean};

/// DADAO's pair with a first payment of its own, between plain SGD and momentum.
const LAWS: [(&str, Law); 3] = [
    ("immediate", Law::Immediate),
    ("momentum 0.9", Law::Momentum { beta: 0.9 }),
    ("DADAO pair", Law::Dadao { gamma: 0.5, gamma_tilde: 1.5, beta: 0.9 }),
];

/// Redundancies when none are asked for.
pub const REDUNDANCIES: [u32; 3] = [1, 3, 12];

/// Between two steps of the grid.
const RATIO: f64 = std::f64::consts::SQRT_2;

/// Steps below and above the middle at first, and at most.
const REACH: i32 = 2;
const REACH_MAX: i32 = 12;

/// A gain below this share of the loss is none.
const NO_GAIN: f64 = 0.02;

/// A law at its best step.
struct Best {
    law: &'static str,
    step: f64,
    outcomes: Vec<Outcome>,
    /// Whether the grid ended here.
    at_edge: bool,
}

impl Best {
    fn mean(&self, of: impl Fn(&Outcome) -> f64) -> f64 {
        mean(self.outcomes.iter().map(of))
    }

    fn losses(&self) -> Vec<f64> {
        self.outcomes.iter().map(|outcome| outcome.train_loss).collect()
    }

    /// The difference of training losses as a share of the other's mean.
    fn beside(&self, other: &Best) -> Paired {
        let scale = other.mean(|outcome| outcome.train_loss);
        let share = |losses: Vec<f64>| losses.iter().map(|loss| loss / scale).collect::<Vec<_>>();
        Paired::of(&share(self.losses()), &share(other.losses()))
    }

    fn shown(&self) -> String {
        format!(
            "{}: loss {:.4} (test {:.4}, accuracy {:.4}), step {:.4}{}",
            self.law,
            self.mean(|outcome| outcome.train_loss),
            self.mean(|outcome| outcome.loss),
            self.mean(|outcome| outcome.accuracy),
            self.step,
            if self.at_edge { " at the grid's edge" } else { "" }
        )
    }
}

/// Runs all laws with the same seeds.
///
/// # Errors
/// The data cannot be read, or there is no such model on it.
pub fn reproduce(redundancies: &[u32], training: &Training) -> Result<Report> {
    let task = training.load()?;
    let mut report = Report::default();
    report.notes.push(format!(
        "{}; 12 nodes, {} probes, {} a round and node, {} seeds; steps around {} by factors of √2, \
         chosen by training loss; differences are shares of the loss of paying at once, ± standard \
         error; synchronous rounds in one process, no links",
        task.name, training.probes, training.probes_per_round, training.seeds, training.step
    ));
    let mut lines = vec![HEADER.to_owned()];
    // Laws that are better than the default beyond noise where few share a direction.
    let mut better = Vec::new();
    for &redundancy in redundancies {
        let bests = LAWS
            .iter()
            .map(|(name, law)| {
                let setup = Setup { redundancy, law: *law, ..Setup::new(training) };
                search(&task, name, &setup, training, &mut lines)
            })
            .collect::<Result<Vec<Best>>>()?;
        let (immediate, later) = bests.split_first().expect("there are laws");
        let paired: Vec<Paired> = later.iter().map(|best| best.beside(immediate)).collect();
        let mut ours: Vec<String> = bests.iter().map(Best::shown).collect();
        for (best, paired) in later.iter().zip(&paired) {
            let beyond = if paired.mean.abs() > paired.noise() { "beyond" } else { "within" };
            let law = best.law;
            ours.push(format!(
                "{law} − immediate {:+.2} ± {:.2} %, {beyond} noise",
                100.0 * paired.mean,
                100.0 * paired.error
            ));
            if redundancy <= 3 && paired.mean < -paired.noise() {
                better.push(format!("{law} at r = {redundancy}"));
            }
        }
        let ours = ours.join("; ");
        let lowest = paired.iter().map(|paired| paired.mean).fold(f64::INFINITY, f64::min);
        if redundancy <= 3 {
            report.claim(
                format!("r = {redundancy}: paying later gains less than 2 % of the loss"),
                ours,
                "no gain at r = 3",
                lowest > -NO_GAIN,
            );
        } else {
            let lower = paired.iter().any(|paired| paired.mean < -paired.noise());
            report.claim(
                format!("r = {redundancy}: paying later lowers the loss, beyond noise"),
                ours,
                ".231 against .256 (-10 %)",
                lower,
            );
        }
    }
    report.claim(
        "the default: no law is better than immediate at r = 1 and 3, beyond noise",
        if better.is_empty() { "none".into() } else { better.join(", ") },
        "none",
        better.is_empty(),
    );
    report.files.push(("instalments.csv", lines));
    Ok(report)
}

/// A law's best step, on a grid that grows while the best is at its edge.
fn search(
    task: &Task,
    law: &'static str,
    setup: &Setup,
    training: &Training,
    lines: &mut Vec<String>,
) -> Result<Best> {
    let mut best: Option<(i32, f64, Best)> = None;
    let (mut low, mut high) = (-REACH, REACH);
    let mut due: Vec<i32> = (low..=high).collect();
    while let Some(exponent) = due.pop() {
        let step = setup.step * RATIO.powi(exponent);
        let setup = Setup { step, ..setup.clone() };
        let name = format!("{law} r={} step={step:.5}", setup.redundancy);
        let outcomes = all(task, &setup, &name, training, lines)?;
        let loss = mean(outcomes.iter().map(|outcome| outcome.train_loss));
        let loss = if loss.is_finite() { loss } else { f64::INFINITY };
        if best.as_ref().is_none_or(|best| loss < best.1) {
            best = Some((exponent, loss, Best { law, step, outcomes, at_edge: false }));
        }
        let at = best.as_ref().map(|best| best.0);
        if due.is_empty() && at == Some(low) && low > -REACH_MAX {
            low -= 1;
            due.push(low);
        } else if due.is_empty() && at == Some(high) && high < REACH_MAX {
            high += 1;
            due.push(high);
        }
    }
    let (exponent, _, best) = best.expect("a grid has steps");
    Ok(Best { at_edge: exponent == low || exponent == high, ..best })
}
