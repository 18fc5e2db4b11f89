//! Selection rules under attack: attack by rule, accuracy beside that of the honest alone.
//!
//! Fifteen nodes, the last four faulty, each direction measured by three. A synchronous driver like that of
//! [`coefficients`](super::coefficients): every record arrives, so figures show what a rule does and
//! nothing else. Faulty nodes know what every honest node would measure and tell alike.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use rumormill::data::shard::Shards;
use rumormill::direction::Direction;
use rumormill::fault::FaultKind;
use rumormill::fault::value::{Crowd, Lie, Moment};
use rumormill::id::{NodeId, Origin, Round, RunId};
use rumormill::keys::Keys;
use rumormill::lb8;
use rumormill::manifest::{DataMode, Manifest};
use rumormill::objective::{ModelSpec, Objective, Scratch, Split, build};
use rumormill::params::{Payout, State};
use rumormill::round::{Deal, RoundValues, directions};
use rumormill::sample::{KeyedRng, minibatch};
use rumormill::selection::{Measured, RULES, Rule};
use rumormill::spsa::projected_gradient;
use rumormill::update::round_update;

use super::{Report, mean};

/// What is measured.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Model: `softmax` or `mlp:H[,H2…]`.
    #[arg(long, default_value = "mlp:32")]
    pub model: ModelSpec,
    /// Rounds that the selection looks at.
    #[arg(long, default_value_t = 20)]
    pub window: u32,
    /// Momentum factor of the window, in 1/1000.
    #[arg(long, default_value_t = 950)]
    pub beta_permille: u32,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    pub from: u64,
    /// How many seeds.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=100))]
    pub seeds: u64,
    /// Rounds of a run.
    #[arg(long, default_value_t = 160, value_parser = clap::value_parser!(u64).range(8..=100_000))]
    pub rounds: u64,
    /// Step size, the sum of absolute coefficients of a round.
    #[arg(long, default_value_t = 0.15)]
    pub step: f64,
    /// How the rows are held: public, iid or dirichlet:ALPHA.
    #[arg(long, default_value = "public")]
    pub shards: Shards,
    /// Only these rules.
    #[arg(long, value_delimiter = ',')]
    pub rules: Vec<Rule>,
    /// Only attacks whose name contains this.
    #[arg(long)]
    pub attack: Option<String>,
    /// A folder for the CSV file; made when missing.
    #[arg(long)]
    pub out: Option<PathBuf>,
}

const NODES: usize = 15;
const FAULTY: usize = 4;
const ROUNDS_PER_HEIGHT: u64 = 8;

const ATTACKS: [(&str, FaultKind, Option<f64>); 10] = [
    ("sign-flip", FaultKind::SignFlip, None),
    ("scaled-sign-flip", FaultKind::ScaledSignFlip, None),
    ("zero", FaultKind::Zero, None),
    ("random", FaultKind::Random, None),
    ("foe 0.5", FaultKind::Foe, None),
    ("alie 0.21", FaultKind::Alie, Some(0.21)),
    ("alie 1.5", FaultKind::Alie, None),
    ("largest-opposing", FaultKind::LargestOpposing, None),
    ("label-flip", FaultKind::LabelFlip, None),
    ("mimic", FaultKind::Mimic, None),
];

/// Runs every rule under every attack.
///
/// # Errors
/// The settings fit no run.
pub fn reproduce(options: &Options) -> Result<Report> {
    let rules = if options.rules.is_empty() { RULES.to_vec() } else { options.rules.clone() };
    let task = Task::new(&options.model)?;
    let mut report = Report::default();
    report.notes.push(format!(
        "digits, {}, shards {}, window {}; {NODES} nodes, {FAULTY} faulty, r = 3, {} rounds, step {}, {} \
         seeds; synchronous rounds in one process; accuracy in percent, and in brackets the share of \
         the weight that faulty nodes have in the last three quarters of the rounds",
        options.model,
        options.shards,
        options.window,
        options.rounds,
        options.step,
        options.seeds
    ));
    let mut lines =
        vec!["attack,rule,seed,accuracy,faulty_weight,trust_honest,trust_faulty".into()];
    let wanted = |name: &str| options.attack.as_deref().is_none_or(|part| name.contains(part));
    let attacks = ATTACKS.iter().filter(|attack| wanted(attack.0));
    let attacks = attacks.map(|&(name, kind, factor)| (name, Some(Lie::new(kind, factor))));
    let mut table = String::from("| attack |");
    rules.iter().for_each(|rule| table.push_str(&format!(" {rule} |")));
    table.push_str(&format!("\n|---|{}\n", "---|".repeat(rules.len())));
    for (name, lie) in [("none (15 honest)", None)].into_iter().chain(attacks) {
        table.push_str(&format!("| {name} |"));
        for &rule in &rules {
            let mut outcomes = Vec::new();
            for seed in options.from..options.from + options.seeds {
                let outcome = train(&task, options, rule, lie, seed)?;
                eprintln!("{name}, {rule}, seed {seed}: {outcome:?}");
                let Outcome { accuracy, faulty_weight, trust: [honest, faulty] } = outcome;
                lines.push(format!(
                    "{name},{rule},{seed},{accuracy:.2},{faulty_weight:.4},{honest:.3},{faulty:.3}"
                ));
                outcomes.push(outcome);
            }
            let accuracy = mean(outcomes.iter().map(|outcome| outcome.accuracy));
            let weight = mean(outcomes.iter().map(|outcome| outcome.faulty_weight));
            table.push_str(&match lie {
                Some(_) => format!(" {accuracy:.1} ({weight:.2}) |"),
                None => format!(" {accuracy:.1} |"),
            });
        }
        table.push('\n');
    }
    report.notes.push(table);
    report.files.push(("selection.csv", lines));
    Ok(report)
}

struct Task {
    honest: Box<dyn Objective>,
    flipped: Box<dyn Objective>,
    dataset: std::sync::Arc<rumormill::data::Dataset>,
}

impl Task {
    fn new(model: &ModelSpec) -> Result<Task> {
        let dataset = crate::data::load(rumormill::data::source::DIGITS, None, None)?;
        let mut flipped = dataset.clone();
        let last = (dataset.classes - 1) as u16;
        flipped.train.labels.iter_mut().for_each(|label| *label = last - *label);
        let dataset = std::sync::Arc::new(dataset);
        let build = |data| build(model, data).context("no such model here");
        Ok(Task { honest: build(dataset.clone())?, flipped: build(flipped.into())?, dataset })
    }
}

#[derive(Debug)]
struct Outcome {
    /// In percent.
    accuracy: f64,
    /// Share of all weights, without the first quarter of the rounds.
    faulty_weight: f64,
    /// Mean trust of the honest and of the faulty, over the same rounds.
    trust: [f64; 2],
}

fn train(
    task: &Task,
    options: &Options,
    rule: Rule,
    lie: Option<Lie>,
    seed: u64,
) -> Result<Outcome> {
    let public = options.shards == Shards::Public;
    let manifest = Manifest {
        seed,
        rounds: options.rounds,
        redundancy_256: 3 * 256,
        data_mode: if public { DataMode::Public } else { DataMode::Private },
        step_24: (options.step * f64::from(1 << 24)).round() as u32,
        selection: rule,
        window: options.window,
        beta_permille: options.beta_permille,
        ..Manifest::template()
    };
    manifest.check()?;
    let shards = match public {
        true => vec![Vec::new(); NODES],
        false => options.shards.split(&task.dataset.train.labels, NODES, seed)?,
    };
    let run = RunId(Manifest { seed, ..Manifest::template() }.run_id().0);
    let mut bench = Bench {
        task,
        run,
        epsilon_log2: manifest.epsilon_log2,
        ids: (0..NODES as u64).map(|i| Keys::simulated(i).id()).collect(),
        shards,
        plus: vec![0.0; task.honest.base(seed).len()],
        minus: vec![0.0; task.honest.base(seed).len()],
        batch: vec![0; manifest.batch as usize],
        scratch: Scratch::default(),
    };
    let mut state = State::from_base(task.honest.tensors(), task.honest.base(seed))
        .context("the base model cannot be represented")?;
    let active: Vec<Origin> = (0..NODES as u16).map(Origin).collect();
    let honest = if lie.is_some() { NODES - FAULTY } else { NODES };
    let mut rng = KeyedRng::from_seed("rumormill v1 simulated lies", seed, 0);
    let mut window: Vec<Measured> = Vec::new();
    let mut exponent = bench.exponent(&state);
    let (mut magnitudes, mut next_exponent) = (Vec::new(), exponent);
    let mut outcome = Outcome { accuracy: 0.0, faulty_weight: 0.0, trust: [0.0; 2] };
    let from = manifest.rounds_total() / 4;
    for number in 0..manifest.rounds_total() {
        if number % ROUNDS_PER_HEIGHT == 0 && number > 0 {
            exponent = next_exponent;
            let scale = lb8::scale_exponent(&mut magnitudes).unwrap_or(exponent);
            next_exponent = scale.clamp(exponent - 2, exponent + 2);
            magnitudes.clear();
        }
        let round = Round(number);
        let moment = Moment { round: number, rounds: manifest.rounds_total() };
        let deal = Deal::new(&manifest, &run, round, NODES, &active);
        let slots = directions(&manifest, NODES) as usize;
        let mut at_slot: Vec<Vec<usize>> = vec![Vec::new(); slots];
        for &origin in &active {
            for slot in deal.walk(origin).take(manifest.probes_per_round as usize) {
                at_slot[slot.0 as usize].push(origin.index());
            }
        }
        let mut values = RoundValues { slots: vec![Vec::new(); slots] };
        for (slot, (origins, told)) in at_slot.iter().zip(&mut values.slots).enumerate() {
            let direction = Direction::new(&run, round, rumormill::id::Slot(slot as u32));
            state.write_pair(&direction, bench.epsilon_log2, &mut bench.plus, &mut bench.minus);
            let mut crowd = None;
            for &origin in origins {
                let scalar = match lie.filter(|_| origin >= honest) {
                    None => bench.probe(origin, round, slot, false),
                    Some(lie) => {
                        let flip = lie.kind == FaultKind::LabelFlip;
                        let own = bench.probe(origin, round, slot, flip);
                        let crowd = *crowd.get_or_insert_with(|| {
                            let of = if lie.needs_crowd() { 0..honest } else { 0..0 };
                            let all: Vec<f64> =
                                of.map(|node| bench.probe(node, round, slot, false)).collect();
                            Crowd::new(all.iter().copied(), honest, FAULTY)
                        });
                        let told = lie.tell(own, &crowd, moment, &mut rng);
                        // The largest byte there is.
                        if lie.kind == FaultKind::LargestOpposing { told * 1e6 } else { told }
                    }
                };
                let byte = lb8::encode(scalar, exponent);
                if let Some(value) = lb8::decode(byte, exponent) {
                    magnitudes.push(f64::from(value));
                    told.push((Origin(origin as u16), f64::from(value)));
                }
            }
        }
        window.push(values.into());
        if window.len() > manifest.window as usize {
            window.remove(0);
        }
        let rounds: Vec<&Measured> = window.iter().collect();
        let update = round_update(&manifest, round, &rounds, NODES, FAULTY, &[], &[]);
        let payouts = update.coefficients.iter().map(|coefficient| Payout {
            direction: Direction::new(&run, coefficient.round, coefficient.slot),
            from: 0,
            to: coefficient.value,
        });
        state.apply(&payouts.collect::<Vec<_>>());
        if number >= from {
            let share = 1.0 / (manifest.rounds_total() - from) as f64;
            let total: f64 = update.weights.iter().sum();
            outcome.faulty_weight += share * update.weights[honest..].iter().sum::<f64>() / total;
            for (origin, trust) in update.trust.iter().enumerate() {
                let group = usize::from(origin >= honest);
                let members = if group == 0 { honest } else { NODES - honest };
                outcome.trust[group] += share * trust / members as f64;
            }
        }
    }
    state.write_view(&mut bench.plus);
    let test = task.honest.evaluate(&bench.plus, Split::Test, &mut bench.scratch);
    outcome.accuracy = 100.0 * test.accuracy;
    Ok(outcome)
}

/// Where probes are made.
struct Bench<'a> {
    task: &'a Task,
    run: RunId,
    epsilon_log2: i32,
    ids: Vec<NodeId>,
    /// Rows by node; none for public data.
    shards: Vec<Vec<u32>>,
    plus: Vec<f32>,
    minus: Vec<f32>,
    batch: Vec<u32>,
    scratch: Scratch,
}

impl Bench<'_> {
    /// The projected gradient of a node's minibatch at the pair that was written last.
    fn probe(&mut self, node: usize, round: Round, slot: usize, flip: bool) -> f64 {
        let rows = &self.shards[node];
        let population = if rows.is_empty() { self.task.dataset.train.rows() } else { rows.len() };
        let slot = rumormill::id::Slot(slot as u32);
        minibatch(&self.run, &self.ids[node], round, slot, population, &mut self.batch);
        if !rows.is_empty() {
            self.batch.iter_mut().for_each(|row| *row = rows[*row as usize]);
        }
        let objective = if flip { &self.task.flipped } else { &self.task.honest };
        let (plus, minus) =
            objective.loss_pair(&self.plus, &self.minus, &self.batch, &mut self.scratch);
        projected_gradient(plus, minus, self.epsilon_log2)
    }

    /// The exponent of the first bytes, measured on the base model.
    fn exponent(&mut self, base: &State) -> i32 {
        let mut values: Vec<f64> = (0..64)
            .map(|slot| {
                let round = Round(u64::MAX);
                let direction = Direction::new(&self.run, round, rumormill::id::Slot(slot as u32));
                base.write_pair(&direction, self.epsilon_log2, &mut self.plus, &mut self.minus);
                self.probe(0, round, slot, false)
            })
            .collect();
        lb8::scale_exponent(&mut values).unwrap_or(0)
    }
}
