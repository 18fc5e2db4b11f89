//! *Just One Byte* (2306.10015): what a real byte costs, what private seeds cost, and what a late
//! joiner needs.
//!
//! The published program computes a byte and then sends the float, so that the cost of the byte was
//! never measured; its paper has no accuracy to compare with. The reference figures are those of
//! the information a code keeps of a Gaussian scalar: all but 0.06 % with LB8, 64 % with the sign.

use anyhow::Result;
use rumormill::manifest::Directions;

use super::coefficients::{Code, Outcome, Setup, Task, Training, train};
use super::{Paired, Report, mean};

/// Accuracies of different seeds differ by about this much, so means of a few may.
const TOLERANCE: f64 = 0.01;

/// Runs all setups with the same seeds.
///
/// # Errors
/// The data cannot be read, or there is no such model on it.
pub fn reproduce(training: &Training) -> Result<Report> {
    let task = training.load()?;
    let mut report = Report::default();
    report.notes.push(format!(
        "{}; 12 nodes, {} probes, {} a round and node, step {}, {} seeds; synchronous rounds in one \
         process, no links",
        task.name, training.probes, training.probes_per_round, training.step, training.seeds
    ));
    let mut lines = vec![HEADER.to_owned()];
    let base = Setup::new(training);
    let exact = Setup { code: Code::Exact, ..base.clone() };
    let part = Setup { probes: training.probes * 64 / 100, ..exact.clone() };
    let sign = Setup { code: Code::Sign, ..base.clone() };
    let private = Setup { directions: Directions::Private, ..base.clone() };
    let repeated = Setup { redundancy: 3, ..base.clone() };
    let mut measure = |name: &str, setup: &Setup| all(&task, setup, name, training, &mut lines);
    let exact = measure("exact", &exact)?;
    let part = measure("exact, 64 % of the probes", &part)?;
    let byte = measure("LB8", &base)?;
    let sign = measure("sign", &sign)?;
    let private = measure("LB8, private directions", &private)?;
    let repeated = measure("LB8, shared by three", &repeated)?;
    let accuracy = |outcomes: &[Outcome]| mean(outcomes.iter().map(|outcome| outcome.accuracy));
    let shown = |outcomes: &[Outcome]| format!("{:.4}", accuracy(outcomes));
    // What a claim compares, seed by seed.
    let beside = |ours: &[Outcome], theirs: &[Outcome]| {
        let of = |outcomes: &[Outcome]| outcomes.iter().map(|o| o.accuracy).collect::<Vec<_>>();
        format!("{} (seed by seed {})", shown(ours), Paired::of(&of(ours), &of(theirs)))
    };
    report.claim(
        "one real byte (LB8) ends as exact scalars do, within one point",
        beside(&byte, &exact),
        format!("{} exact; 0.06 % of the information lost", shown(&exact)),
        (accuracy(&byte) - accuracy(&exact)).abs() <= TOLERANCE,
    );
    report.claim(
        "the sign alone costs 36 % of the information: as exact scalars of 64 % of the probes, \
         within one point",
        beside(&sign, &part),
        format!("{} exact with 64 % of the probes, {} with all", shown(&part), shown(&exact)),
        (accuracy(&sign) - accuracy(&part)).abs() <= TOLERANCE,
    );
    report.claim(
        "at equal probes private directions train as shared ones with one probe each, within one \
         point",
        beside(&private, &byte),
        format!("{} shared, r = 1; {} shared, r = 3", shown(&byte), shown(&repeated)),
        (accuracy(&private) - accuracy(&byte)).abs() <= TOLERANCE,
    );
    let first = &byte[0];
    report.claim(
        "a late joiner replays the bytes onto the base model and has the same bits",
        format!("{} bytes of history", first.history),
        format!("{} bytes of f32 parameters to download", 4 * first.parameters),
        byte.iter().all(|outcome| outcome.replayed),
    );
    report.claim(
        "that history is smaller than the model (it is until there are four probes a parameter)",
        format!("{:.2} probes a parameter", first.history as f64 / first.parameters as f64),
        "4",
        first.history < 4 * first.parameters as u64,
    );
    report.files.push(("justonebyte.csv", lines));
    Ok(report)
}

/// The header of what [`all`] writes.
pub(super) const HEADER: &str = "setup,seed,probes,accuracy,loss,train_loss";

/// One outcome a seed.
pub(super) fn all(
    task: &Task,
    setup: &Setup,
    name: &str,
    training: &Training,
    lines: &mut Vec<String>,
) -> Result<Vec<Outcome>> {
    (1..=training.seeds)
        .map(|seed| {
            let outcome = train(task, setup, seed)?;
            let Outcome { accuracy, loss, train_loss, history, .. } = outcome;
            let line =
                format!("\"{name}\",{seed},{history},{accuracy:.4},{loss:.5},{train_loss:.5}");
            eprintln!("{line}");
            lines.push(line);
            Ok(outcome)
        })
        .collect()
}
