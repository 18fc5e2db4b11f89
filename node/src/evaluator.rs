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

use crate::fault::{Deceit, Witness};

/// Commands that may wait. Probes are bounded by the pipeline; lists of changes come one a round.
const COMMANDS_MAX: usize = 1024;

/// Results that may wait: more than any pipeline has probes.
const RESULTS_MAX: usize = 256;

/// Changes that are made in one call. While a node catches up, many lists of them wait, and together
/// they cost far less; more than so many save nothing.
const CHANGES_MAX: usize = 4096;

/// Parameters times directions from which on changes are made by two threads: a millisecond of work.
const TWO_THREADS_MIN: usize = 1 << 24;

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
    Deceive(Option<Box<Deceit>>),
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

    /// From now on, tells lies about the node's own probes, or the truth again.
    pub fn deceive(&self, deceit: Option<Deceit>) {
        self.send(Command::Deceive(deceit.map(Box::new)));
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
    /// How the node lies, if it does.
    deceit: Option<Box<Deceit>>,
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
            deceit: None,
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
        let mut next = None;
        while let Some(command) = next.take().or_else(|| inbox.recv().ok()) {
            match command {
                Command::Apply(mut changes) => {
                    while next.is_none() && changes.len() < CHANGES_MAX {
                        match inbox.try_recv() {
                            Ok(Command::Apply(more)) => changes.extend(more),
                            Ok(other) => next = Some(other),
                            Err(_) => break,
                        }
                    }
                    self.apply(&changes);
                }
                Command::Probe(probe) => {
                    let losses = self.measure(probe);
                    if results.blocking_send(losses).is_err() {
                        return;
                    }
                }
                Command::Rows(rows) => self.task.rows = Some(rows),
                Command::Deceive(deceit) => self.deceit = deceit,
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
        let work = payouts.len().saturating_mul(self.state.layout().dim());
        let mut parts = self.state.split(if work < TWO_THREADS_MIN { 1 } else { 2 });
        let Some((own, other)) = parts.split_first_mut() else { return };
        std::thread::scope(|scope| {
            for part in other {
                scope.spawn(|| part.apply(&payouts));
            }
            own.apply(&payouts);
        });
    }

    fn measure(&mut self, probe: Probe) -> Losses {
        let ProbeSettings { run, epsilon_log2, .. } = self.settings;
        let direction = Direction::new(&run, probe.round, probe.slot);
        self.state.write_pair(&direction, epsilon_log2, &mut self.plus, &mut self.minus);
        let mut deceit = self.deceit.take();
        let (plus, minus) = match &mut deceit {
            Some(deceit) if deceit.me == probe.of => {
                let flipped = deceit.flipped.clone();
                deceit.losses(probe, epsilon_log2, |whose| {
                    self.losses(probe, whose, flipped.as_deref().filter(|_| whose.is_none()))
                })
            }
            _ => self.losses(probe, None, None),
        };
        self.deceit = deceit;
        Losses { probe, plus, minus }
    }

    /// Losses at the pair that was written last, on the minibatch of the node that the probe names or
    /// of a witness.
    fn losses(
        &mut self,
        probe: Probe,
        whose: Option<&Witness>,
        objective: Option<&dyn Objective>,
    ) -> (f32, f32) {
        let Probe { round, slot, of } = probe;
        let run = self.settings.run;
        let (node, rows) = match whose {
            Some(witness) => (witness.id, &witness.rows),
            None => (of, &self.task.rows),
        };
        match rows {
            Some(rows) => {
                minibatch(&run, &node, round, slot, rows.len(), &mut self.batch);
                self.batch.iter_mut().for_each(|row| *row = rows[*row as usize]);
            }
            None => {
                minibatch(&run, &node, round, slot, self.task.population, &mut self.batch);
            }
        }
        let objective = objective.unwrap_or(&*self.task.objective);
        objective.loss_pair(&self.plus, &self.minus, &self.batch, &mut self.scratch)
    }

    fn report(&mut self) -> Report {
        self.state.write_view(&mut self.plus);
        let test = self.task.objective.evaluate(&self.plus, Split::Test, &mut self.scratch);
        let out_of_range = self.state.values().iter().any(|value| value.unsigned_abs() > STATE_MAX);
        Report { state_hash: self.state.hash(), test, out_of_range }
    }
}
