//! The evaluator: a thread that holds the model and measures losses.
//!
//! It takes commands in order, so a probe sees exactly the coefficients that were applied before it
//! was asked for. Compute never blocks the network: results go back through a channel.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use rumormill::direction::Direction;
use rumormill::id::RunId;
use rumormill::objective::{Evaluation, Objective, Scratch, Split};
use rumormill::params::{Payout, State};
use rumormill::protocol::{Change, Probe};
use rumormill::sample::minibatch;
use tokio::sync::{mpsc, oneshot};

/// Commands that may wait. Probes are bounded by the pipeline; lists of changes come one a round.
const COMMANDS_MAX: usize = 1024;

/// Results that may wait: more than any pipeline has probes.
const RESULTS_MAX: usize = 256;

/// Beyond this magnitude, in LSBs, a parameter is about to leave its range.
const STATE_MAX: u32 = 1 << 30;

/// What a node trains on.
#[derive(Clone)]
pub struct Task {
    /// The model on its data.
    pub objective: Arc<dyn Objective>,
    /// Rows of the training table that this node may use; `None` means all.
    pub rows: Option<Arc<Vec<u32>>>,
    /// Rows of the training table.
    pub population: usize,
    /// The base model.
    pub base: State,
}

/// The numbers of a probe that the manifest fixes.
#[derive(Clone, Copy, Debug)]
pub struct ProbeSettings {
    /// The run.
    pub run: RunId,
    /// Rows in a minibatch.
    pub batch: usize,
    /// ε = 2^`epsilon_log2`.
    pub epsilon_log2: i32,
}

/// A measured probe.
#[derive(Clone, Copy, Debug)]
pub struct Losses {
    /// The probe.
    pub probe: Probe,
    /// Loss at θ + ε·direction.
    pub plus: f32,
    /// Loss at θ − ε·direction.
    pub minus: f32,
}

/// The model as it stands.
#[derive(Clone, Debug)]
pub struct Report {
    /// BLAKE3 of layout and parameters.
    pub state_hash: [u8; 32],
    /// Quality on the held-out rows.
    pub test: Evaluation,
    /// A parameter is near the end of its integer range.
    pub out_of_range: bool,
}

enum Command {
    Apply(Vec<Change>),
    Probe(Probe),
    Rows(Arc<Vec<u32>>),
    Report(oneshot::Sender<Report>),
}

/// The way to the evaluator's thread; dropping it ends the thread.
pub struct Evaluator {
    commands: Option<SyncSender<Command>>,
    thread: Option<JoinHandle<()>>,
}

impl Evaluator {
    /// Starts the thread. Results come out of the receiver in the order of the probes.
    pub fn start(task: Task, settings: ProbeSettings) -> (Evaluator, mpsc::Receiver<Losses>) {
        let (commands, inbox) = sync_channel(COMMANDS_MAX);
        let (results, outbox) = mpsc::channel(RESULTS_MAX);
        let thread = std::thread::Builder::new()
            .name("evaluator".into())
            .spawn(move || Worker::new(task, settings).work(&inbox, &results))
            .expect("the system can start a thread");
        (Evaluator { commands: Some(commands), thread: Some(thread) }, outbox)
    }

    /// Changes coefficients.
    pub fn apply(&self, changes: Vec<Change>) {
        self.send(Command::Apply(changes));
    }

    /// Asks for a probe.
    pub fn probe(&self, probe: Probe) {
        self.send(Command::Probe(probe));
    }

    /// From now on, minibatches are drawn from these rows.
    pub fn set_rows(&self, rows: Arc<Vec<u32>>) {
        self.send(Command::Rows(rows));
    }

    /// The model as it stands after everything sent so far.
    pub fn report(&self) -> oneshot::Receiver<Report> {
        let (reply, report) = oneshot::channel();
        self.send(Command::Report(reply));
        report
    }

    /// Hands over a command. The queue is far longer than what the protocol has under way; should
    /// it be full all the same, the sender waits, as compute is then the bottleneck.
    fn send(&self, command: Command) {
        let Some(commands) = &self.commands else { return };
        if let Err(TrySendError::Full(command)) = commands.try_send(command) {
            // The thread never waits for the sender's loop: its results fit their channel.
            let _ = commands.send(command);
        }
    }
}

impl Drop for Evaluator {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Worker {
    task: Task,
    settings: ProbeSettings,
    state: State,
    scratch: Scratch,
    plus: Vec<f32>,
    minus: Vec<f32>,
    batch: Vec<u32>,
}

impl Worker {
    fn new(task: Task, settings: ProbeSettings) -> Worker {
        let dim = task.base.layout().dim();
        Worker {
            state: task.base.clone(),
            scratch: Scratch::default(),
            plus: vec![0.0; dim],
            minus: vec![0.0; dim],
            batch: vec![0; settings.batch],
            task,
            settings,
        }
    }

    fn work(mut self, inbox: &Receiver<Command>, results: &mpsc::Sender<Losses>) {
        while let Ok(command) = inbox.recv() {
            match command {
                Command::Apply(changes) => self.apply(&changes),
                Command::Probe(probe) => {
                    let losses = self.measure(probe);
                    if results.blocking_send(losses).is_err() {
                        return;
                    }
                }
                Command::Rows(rows) => self.task.rows = Some(rows),
                Command::Report(reply) => {
                    let _ = reply.send(self.report());
                }
            }
        }
    }

    fn apply(&mut self, changes: &[Change]) {
        let run = &self.settings.run;
        let payouts: Vec<Payout> = changes
            .iter()
            .map(|change| Payout {
                direction: Direction::new(run, change.round, change.slot),
                from: change.from,
                to: change.to,
            })
            .collect();
        self.state.apply(&payouts);
    }

    fn measure(&mut self, probe: Probe) -> Losses {
        let Probe { round, slot, of: node } = probe;
        let ProbeSettings { run, epsilon_log2, .. } = self.settings;
        let direction = Direction::new(&run, round, slot);
        self.state.write_pair(&direction, epsilon_log2, &mut self.plus, &mut self.minus);
        match &self.task.rows {
            Some(rows) => {
                minibatch(&run, &node, round, slot, rows.len(), &mut self.batch);
                self.batch.iter_mut().for_each(|row| *row = rows[*row as usize]);
            }
            None => {
                minibatch(&run, &node, round, slot, self.task.population, &mut self.batch);
            }
        }
        let (plus, minus) =
            self.task.objective.loss_pair(&self.plus, &self.minus, &self.batch, &mut self.scratch);
        Losses { probe, plus, minus }
    }

    fn report(&mut self) -> Report {
        self.state.write_view(&mut self.plus);
        let test = self.task.objective.evaluate(&self.plus, Split::Test, &mut self.scratch);
        let out_of_range = self.state.values().iter().any(|value| value.unsigned_abs() > STATE_MAX);
        Report { state_hash: self.state.hash(), test, out_of_range }
    }
}
