//! A synchronous driver for one-byte training: all bytes of a round are combined by the protocol's
//! own `round_update`, in one process, without links.
//!
//! It answers what a code, a law or a deal costs in accuracy per probe. Nothing travels and nobody
//! is early or late, so it says nothing of bytes on the wire, staleness or agreement.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Args;
use rumormill::data::Dataset;
use rumormill::data::source::{DIGITS, DataFormat};
use rumormill::direction::Direction;
use rumormill::id::{NodeId, Origin, Round, RunId, Slot};
use rumormill::keys::Keys;
use rumormill::lb8;
use rumormill::manifest::{Directions, Manifest};
use rumormill::objective::{ModelSpec, Objective, Scratch, Split, build};
use rumormill::params::{Payout, State};
use rumormill::round::{Deal, RoundValues, directions};
use rumormill::sample::minibatch;
use rumormill::selection::Measured;
use rumormill::spsa::projected_gradient;
use rumormill::update::{Law, round_update};

/// What to train on and how long.
#[derive(Args, Clone, Debug)]
pub struct Training {
    /// Data set: `digits` (built in), a folder of MNIST-style idx files, a .csv or a .libsvm file.
    #[arg(long, default_value = DIGITS)]
    pub data: String,
    /// File of held-out rows, for .csv and .libsvm.
    #[arg(long)]
    pub test: Option<PathBuf>,
    /// Format of the data file, overriding its suffix.
    #[arg(long)]
    pub format: Option<DataFormat>,
    /// Model: `softmax`, `logistic[:L2]` or `mlp:H[,H2…]`.
    #[arg(long, default_value = "mlp:32")]
    pub model: ModelSpec,
    /// Seeds 1, 2, …
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=100))]
    pub seeds: u64,
    /// Probes of all nodes together.
    #[arg(long, default_value_t = 24_000)]
    pub probes: u64,
    /// Step size, the sum of absolute coefficients of a round; where a grid is tried, its middle.
    #[arg(long, default_value_t = 0.1)]
    pub step: f64,
    /// Probes of a node in a round.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub probes_per_round: u32,
    /// A folder for the CSV files; made when missing.
    #[arg(long)]
    pub out: Option<PathBuf>,
}

impl Default for Training {
    /// The built-in digits, as on the command line where nothing is said.
    fn default() -> Training {
        Training {
            data: DIGITS.into(),
            test: None,
            format: None,
            model: ModelSpec::Mlp { hidden: vec![32] },
            seeds: 3,
            probes: 24_000,
            step: 0.1,
            probes_per_round: 4,
            out: None,
        }
    }
}

/// A model on its data.
pub(super) struct Task {
    objective: Box<dyn Objective>,
    rows: usize,
    pub(super) name: String,
}

impl Training {
    pub(super) fn load(&self) -> Result<Task> {
        let dataset: Dataset = crate::data::load(&self.data, self.test.as_deref(), self.format)?;
        let dataset = Arc::new(dataset);
        let objective = build(&self.model, Arc::clone(&dataset)).context("no such model here")?;
        let name = format!("{}, {}", dataset.name, self.model);
        Ok(Task { objective, rows: dataset.train.rows(), name })
    }
}

/// What stands for a projected gradient on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    /// The scalar itself.
    Exact,
    /// One byte: sign and logarithm.
    Lb8,
    /// The sign alone.
    Sign,
}

/// One run.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    pub(super) nodes: usize,
    pub(super) code: Code,
    pub(super) directions: Directions,
    pub(super) redundancy: u32,
    pub(super) law: Law,
    pub(super) step: f64,
    pub(super) probes: u64,
    pub(super) probes_per_round: u32,
}

impl Setup {
    /// Twelve nodes with one probe a direction, each paid for at once.
    pub(super) fn new(training: &Training) -> Setup {
        Setup {
            nodes: 12,
            code: Code::Lb8,
            directions: Directions::Shared,
            redundancy: 1,
            law: Law::Immediate,
            step: training.step,
            probes: training.probes,
            probes_per_round: training.probes_per_round,
        }
    }
}

/// How a run ended.
pub(super) struct Outcome {
    /// Of the held-out rows.
    pub(super) accuracy: f64,
    /// Of the held-out rows.
    pub(super) loss: f64,
    /// Of the rows trained on.
    pub(super) train_loss: f64,
    /// Bytes measured: what a late joiner needs to replay everything.
    pub(super) history: u64,
    pub(super) parameters: usize,
    /// Replaying the recorded coefficients on the base model gave the same bits.
    pub(super) replayed: bool,
}

/// Rounds with one scale exponent, as in a height of the daemon's. The manifest here has the shortest
/// heights there are, as runs end with whole heights and their lengths are compared.
const ROUNDS_PER_SCALE: u64 = 8;
const ROUNDS_PER_HEIGHT: u32 = 2;

pub(super) fn train(task: &Task, setup: &Setup, seed: u64) -> Result<Outcome> {
    let per_round = setup.nodes as u64 * u64::from(setup.probes_per_round);
    let manifest = Manifest {
        seed,
        rounds: setup.probes.div_ceil(per_round),
        rounds_per_height: ROUNDS_PER_HEIGHT,
        probes_per_round: setup.probes_per_round,
        directions: setup.directions,
        redundancy_256: 256 * setup.redundancy,
        step_24: (setup.step * f64::from(1 << 24)).round() as u32,
        instalments: setup.law.instalments(),
        ..Manifest::template()
    };
    manifest.check()?;
    // One run for all setups of a seed: the same directions and minibatches where slots agree.
    let run = RunId(blake3_of(seed));
    let base = State::from_base(task.objective.tensors(), task.objective.base(seed))
        .context("the base model cannot be represented")?;
    let mut bench = Bench::new(task, &manifest, run, base.clone());
    let active: Vec<Origin> = (0..setup.nodes as u16).map(Origin).collect();
    let ids: Vec<NodeId> = (0..setup.nodes as u64).map(|i| Keys::simulated(i).id()).collect();
    let reach = manifest.instalments.last().map_or(0, |last| last.age) as usize + 1;
    let mut window: Vec<Measured> = Vec::new();
    let mut replay: Vec<Payout> = Vec::new();
    let mut exponent = bench.scale(&ids[0]);
    let (mut magnitudes, mut next_exponent) = (Vec::new(), exponent);
    let mut history = 0;
    for round in 0..manifest.rounds_total() {
        if round % ROUNDS_PER_SCALE == 0 && round > 0 {
            exponent = next_exponent;
            let scale = lb8::scale_exponent(&mut magnitudes).unwrap_or(exponent);
            next_exponent = scale.clamp(exponent - 2, exponent + 2);
            magnitudes.clear();
        }
        let round = Round(round);
        let deal = Deal::new(&manifest, &run, round, setup.nodes, &active);
        let slots = directions(&manifest, setup.nodes) as usize;
        let mut values = RoundValues { slots: vec![Vec::new(); slots] };
        for &origin in &active {
            for slot in deal.walk(origin).take(setup.probes_per_round as usize) {
                let scalar = bench.probe(&ids[origin.index()], round, slot);
                history += 1;
                let value = match setup.code {
                    Code::Exact => scalar,
                    Code::Lb8 => {
                        let byte = lb8::encode(scalar, exponent);
                        lb8::decode(byte, exponent).map_or(f64::NAN, f64::from)
                    }
                    Code::Sign => scalar.signum(),
                };
                if value.is_finite() {
                    magnitudes.push(value);
                    values.slots[slot.0 as usize].push((origin, value));
                }
            }
        }
        window.push(values.into());
        if window.len() > reach {
            window.remove(0);
        }
        let rounds: Vec<&Measured> = window.iter().collect();
        let update = round_update(&manifest, round, &rounds, setup.nodes, 0, &[], &[]);
        let payouts = update.coefficients.iter().map(|coefficient| Payout {
            direction: Direction::new(&run, coefficient.round, coefficient.slot),
            from: 0,
            to: coefficient.value,
        });
        let payouts: Vec<Payout> = payouts.collect();
        bench.state.apply(&payouts);
        replay.extend(payouts);
    }
    let mut replayed = base;
    replayed.apply(&replay);
    bench.state.write_view(&mut bench.plus);
    let test = task.objective.evaluate(&bench.plus, Split::Test, &mut bench.scratch);
    let train = task.objective.evaluate(&bench.plus, Split::Train, &mut bench.scratch);
    Ok(Outcome {
        accuracy: test.accuracy,
        loss: test.loss,
        train_loss: train.loss,
        history,
        parameters: bench.plus.len(),
        replayed: replayed.hash() == bench.state.hash(),
    })
}

fn blake3_of(seed: u64) -> [u8; 32] {
    Manifest { seed, name: "coefficients".into(), ..Manifest::template() }.run_id().0
}

/// Where probes are made.
struct Bench<'a> {
    task: &'a Task,
    run: RunId,
    epsilon_log2: i32,
    state: State,
    plus: Vec<f32>,
    minus: Vec<f32>,
    batch: Vec<u32>,
    scratch: Scratch,
}

impl Bench<'_> {
    fn new<'a>(task: &'a Task, manifest: &Manifest, run: RunId, state: State) -> Bench<'a> {
        let dim = state.layout().dim();
        Bench {
            task,
            run,
            epsilon_log2: manifest.epsilon_log2,
            state,
            plus: vec![0.0; dim],
            minus: vec![0.0; dim],
            batch: vec![0; manifest.batch as usize],
            scratch: Scratch::default(),
        }
    }

    fn probe(&mut self, node: &NodeId, round: Round, slot: Slot) -> f64 {
        let direction = Direction::new(&self.run, round, slot);
        self.state.write_pair(&direction, self.epsilon_log2, &mut self.plus, &mut self.minus);
        minibatch(&self.run, node, round, slot, self.task.rows, &mut self.batch);
        let objective = &self.task.objective;
        let (plus, minus) =
            objective.loss_pair(&self.plus, &self.minus, &self.batch, &mut self.scratch);
        projected_gradient(plus, minus, self.epsilon_log2)
    }

    /// The exponent of the first bytes, measured on the base model.
    fn scale(&mut self, node: &NodeId) -> i32 {
        let mut values: Vec<f64> =
            (0..64).map(|slot| self.probe(node, Round(u64::MAX), Slot(slot))).collect();
        lb8::scale_exponent(&mut values).unwrap_or(0)
    }
}
