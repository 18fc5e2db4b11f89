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
use rumormill::protocol::{Change, Probe, Trail};
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
    /// Threads that a probe may use; small models use one, the evaluator's own. A large update uses two at least.
    pub threads: usize,
    /// Whether the last report brings the parameters along.
    pub keep: bool,
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
    /// The parameters, where the task asks for them.
    pub state: Option<Arc<State>>,
}

enum Command {
    Apply(Vec<Change>),
    Probe(Probe),
    Trail(Trail),
    Repeat(Probe),
    Abstain(Probe),
    Rows(Arc<Vec<u32>>),
    Deceive(Option<Box<Deceit>>),
    Report(oneshot::Sender<Report>),
    Add(Box<State>),
    Replace(Box<State>),
    Show(Vec<Change>, Box<dyn FnOnce(&State) + Send>),
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
            .spawn(move || {
                within(task.threads, move || Worker::new(task, settings).work(&inbox, &results));
            })
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

    /// Moves the trailing model.
    pub fn trail(&self, trail: Trail) {
        self.send(Command::Trail(trail));
    }

    /// Asks for a probe at the trailing model, truthful whether the node lies or not.
    pub fn repeat(&self, probe: Probe) {
        self.send(Command::Repeat(probe));
    }

    /// Says that a probe cannot be measured, in its turn.
    pub fn abstain(&self, probe: Probe) {
        self.send(Command::Abstain(probe));
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

    /// Adds what a checkpoint's model has beyond the base model; changes that were applied before, or
    /// will be, are beyond it.
    pub fn add(&self, beyond: State) {
        self.send(Command::Add(Box::new(beyond)));
    }

    /// From now on, this is the model.
    pub fn replace(&self, state: State) {
        self.send(Command::Replace(Box::new(state)));
    }

    /// Shows the model as it stands after everything sent so far, but for `taken_back`.
    pub fn show(&self, taken_back: Vec<Change>, look: impl FnOnce(&State) + Send + 'static) {
        self.send(Command::Show(taken_back, Box::new(look)));
    }

    /// Why the thread has ended, which it does of itself only where something cannot be computed.
    pub fn failure(&mut self) -> String {
        self.commands = None;
        let ended = self.thread.take().map(JoinHandle::join);
        let Some(Err(payload)) = ended else { return "its thread has ended".into() };
        let text = payload.downcast_ref::<String>().map(String::as_str);
        text.or_else(|| payload.downcast_ref().copied()).unwrap_or("no reason was given").to_owned()
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

/// Runs the evaluator where parallel loops use so many threads, itself among them.
///
/// A language model's matrix products otherwise take all cores in every evaluator of a process, and
/// eight of them get in each other's way.
#[cfg(feature = "language")]
fn within(threads: usize, work: impl FnOnce() + Send) {
    match rayon::ThreadPoolBuilder::new().num_threads(threads.max(1)).build() {
        Ok(pool) => pool.install(work),
        Err(error) => {
            tracing::warn!(%error, "no threads for compute");
            work();
        }
    }
}

#[cfg(not(feature = "language"))]
fn within(_: usize, work: impl FnOnce()) {
    work();
}

struct Worker {
    task: Measured,
    settings: ProbeSettings,
    /// How the node lies, if it does.
    deceit: Option<Box<Deceit>>,
    state: State,
    /// The model of two heights ago, where others' probes are repeated; only a node that audits has one.
    trailing: Option<State>,
    scratch: Scratch,
    batch: Vec<u32>,
}

/// What a worker needs of its task once it holds the state.
struct Measured {
    objective: Arc<dyn Objective>,
    rows: Option<Arc<Vec<u32>>>,
    population: usize,
    keep: bool,
    /// That change the model, two at least.
    threads: usize,
}

impl Worker {
    fn new(task: Task, settings: ProbeSettings) -> Worker {
        let Task { objective, rows, population, base, keep, threads } = task;
        Worker {
            deceit: None,
            // Moved, not copied: a model may be most of what fits.
            state: base,
            trailing: None,
            scratch: Scratch::default(),
            batch: vec![0; settings.batch],
            task: Measured { objective, rows, population, keep, threads: threads.max(2) },
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
                Command::Trail(Trail { anew, changes }) => {
                    let trailing = self.trailing.take().filter(|_| !anew);
                    self.trailing = Some(trailing.unwrap_or_else(|| self.state.clone()));
                    self.on_trailing(|worker| worker.apply(&changes));
                }
                Command::Repeat(probe) => {
                    let losses = self.on_trailing(|worker| worker.measure_truly(probe));
                    if results.blocking_send(losses).is_err() {
                        return;
                    }
                }
                Command::Abstain(probe) => {
                    let losses = Losses { probe, plus: f32::NAN, minus: f32::NAN };
                    if results.blocking_send(losses).is_err() {
                        return;
                    }
                }
                Command::Rows(rows) => self.task.rows = Some(rows),
                Command::Deceive(deceit) => self.deceit = deceit,
                Command::Report(reply) => {
                    let _ = reply.send(self.report());
                }
                Command::Add(beyond) => self.state.add(&beyond),
                Command::Replace(state) => self.state = *state,
                Command::Show(mut changes, look) => {
                    // In place, so that no second model is held; adds are exact both ways.
                    self.apply(&changes);
                    self.state.settle(self.task.threads);
                    look(&self.state);
                    changes.iter_mut().for_each(|of| std::mem::swap(&mut of.from, &mut of.to));
                    self.apply(&changes);
                }
            }
        }
    }

    /// Does something with the trailing model, if there is one, in place of the model.
    fn on_trailing<T>(&mut self, work: impl FnOnce(&mut Worker) -> T) -> T {
        let mut trailing = self.trailing.take();
        if let Some(trailing) = &mut trailing {
            std::mem::swap(&mut self.state, trailing);
        }
        let done = work(self);
        if let Some(trailing) = &mut trailing {
            std::mem::swap(&mut self.state, trailing);
        }
        self.trailing = trailing;
        done
    }

    fn apply(&mut self, changes: &[Change]) {
        let run = &self.settings.run;
        let payouts: Vec<Payout> = changes.iter().map(|change| change.payout(run)).collect();
        let before = self.state.mark();
        self.state.apply_lazily(self.task.threads, &payouts, self.task.objective.tables());
        self.task.objective.applied(&before, &payouts, &self.state, &mut self.scratch);
    }

    fn measure_truly(&mut self, probe: Probe) -> Losses {
        let direction = Direction::new(&self.settings.run, probe.round, probe.slot);
        let (plus, minus) = self.losses(probe, &direction, None, None);
        Losses { probe, plus, minus }
    }

    fn measure(&mut self, probe: Probe) -> Losses {
        let Some(mut deceit) = self.deceit.take() else { return self.measure_truly(probe) };
        let ProbeSettings { run, epsilon_log2, .. } = self.settings;
        let direction = Direction::new(&run, probe.round, probe.slot);
        let flipped = deceit.flipped.clone();
        let (plus, minus) = deceit.losses(probe, epsilon_log2, |whose| {
            let flipped = flipped.as_deref().filter(|_| whose.is_none());
            self.losses(probe, &direction, whose, flipped)
        });
        self.deceit = Some(deceit);
        Losses { probe, plus, minus }
    }

    /// Losses along a direction on the minibatch of the node that the probe names or of a witness.
    fn losses(
        &mut self,
        probe: Probe,
        direction: &Direction,
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
        let epsilon_log2 = self.settings.epsilon_log2;
        objective.probe(&self.state, direction, epsilon_log2, &self.batch, &mut self.scratch)
    }

    fn report(&mut self) -> Report {
        self.state.settle(self.task.threads);
        let test = self.task.objective.quality(&self.state, Split::Test, &mut self.scratch);
        let out_of_range = self.state.values().iter().any(|value| value.unsigned_abs() > STATE_MAX);
        let state = self.task.keep.then(|| Arc::new(self.state.clone()));
        Report { state_hash: self.state.hash(), test, out_of_range, state }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rumormill::id::{NodeId, Round, Slot};

    fn task() -> (Task, ProbeSettings) {
        let dataset = Arc::new(rumormill::data::digits::dataset(1));
        let population = dataset.train.rows();
        let objective: Arc<dyn Objective> =
            Arc::new(rumormill::objective::Network::new(dataset, &[]));
        let base = State::from_base(objective.tensors(), objective.base(1)).unwrap();
        let task = Task { objective, rows: None, population, base, threads: 1, keep: false };
        let settings = ProbeSettings { run: RunId([1; 32]), batch: 8, epsilon_log2: -8 };
        (task, settings)
    }

    fn evaluator() -> (Evaluator, mpsc::Receiver<Losses>) {
        let (task, settings) = task();
        Evaluator::start(task, settings)
    }

    /// A model of which everything may wait.
    struct Waiting(rumormill::objective::Network);

    impl Objective for Waiting {
        fn tensors(&self) -> Vec<rumormill::params::TensorSpec> {
            self.0.tensors()
        }
        fn base(&self, seed: u64) -> Vec<f32> {
            self.0.base(seed)
        }
        fn loss_pair(
            &self,
            a: &[f32],
            b: &[f32],
            batch: &[u32],
            scratch: &mut Scratch,
        ) -> (f32, f32) {
            self.0.loss_pair(a, b, batch, scratch)
        }
        fn evaluate(&self, params: &[f32], split: Split, scratch: &mut Scratch) -> Evaluation {
            self.0.evaluate(params, split, scratch)
        }
        fn tables(&self) -> &[usize] {
            &[0, 1]
        }
        fn gradient(
            &self,
            a: &[f64],
            batch: &[u32],
            out: &mut [f64],
            scratch: &mut Scratch,
        ) -> f64 {
            self.0.gradient(a, batch, out, scratch)
        }
        fn curvature(&self, rows: &[u32], scratch: &mut Scratch) -> Option<(f64, f64)> {
            self.0.curvature(rows, scratch)
        }
    }

    /// What anybody sees of a model does not tell whether changes of its tables wait.
    #[test]
    fn a_model_with_tables_that_wait_is_the_same() {
        let seen = |waits: bool| {
            let (mut task, settings) = task();
            task.keep = true;
            if waits {
                let dataset = Arc::new(rumormill::data::digits::dataset(1));
                let network = rumormill::objective::Network::new(dataset, &[]);
                task.objective = Arc::new(Waiting(network));
            }
            let (evaluator, mut losses) = Evaluator::start(task, settings);
            let mut measured = Vec::new();
            let mut measure = |ask: fn(&Evaluator, Probe)| {
                ask(&evaluator, PROBE);
                let Losses { plus, minus, .. } = losses.blocking_recv().unwrap();
                measured.push((plus, minus));
            };
            for round in 0..20 {
                evaluator.apply(vec![change(round, 1 << 34)]);
                measure(Evaluator::probe);
                if round % 7 == 3 {
                    let changes = vec![change(round + 100, 1 << 33)];
                    evaluator.trail(Trail { anew: round == 3, changes });
                    measure(Evaluator::repeat);
                }
            }
            let (send, shown) = sync_channel(1);
            evaluator.show(vec![change(200, 1 << 33)], move |state| {
                send.send((state.hash(), state.values().to_vec())).unwrap();
            });
            measure(Evaluator::probe);
            let report = evaluator.report().blocking_recv().unwrap();
            let values = report.state.expect("it was asked for").values().to_vec();
            (measured, shown.recv().unwrap(), report.state_hash, values, report.test.loss)
        };
        assert!(seen(true) == seen(false));
    }

    #[test]
    fn a_thread_that_cannot_compute_says_why_it_ended() {
        let (mut task, settings) = task();
        // Minibatches have rows that are not there.
        task.population *= 1000;
        let (mut evaluator, mut losses) = Evaluator::start(task, settings);
        evaluator.probe(PROBE);
        assert!(losses.blocking_recv().is_none());
        // Sent to nobody.
        evaluator.probe(PROBE);
        let failure = evaluator.failure();
        // What ndarray says, which depends on how it was built.
        let unsaid = ["", "its thread has ended", "no reason was given"];
        assert!(!unsaid.contains(&&*failure), "{failure}");
    }

    fn change(round: u64, to: i64) -> Change {
        Change { round: Round(round), slot: Slot(0), from: 0, to }
    }

    const PROBE: Probe = Probe { round: Round(9), slot: Slot(3), of: NodeId([2; 32]) };

    /// What is measured after these changes.
    fn after(changes: &[Change]) -> (f32, f32) {
        let (evaluator, mut losses) = evaluator();
        evaluator.apply(changes.to_vec());
        evaluator.probe(PROBE);
        let Losses { plus, minus, .. } = losses.blocking_recv().unwrap();
        (plus, minus)
    }

    #[test]
    fn repetitions_are_measured_on_the_trailing_model_and_probes_on_the_present_one() {
        let changes = [0, 1, 2].map(|round| change(round, 1 << 34));
        let back = |of: &Change| Change { from: of.to, to: of.from, ..*of };
        let (evaluator, mut losses) = evaluator();
        let mut measured = |ask: &dyn Fn(&Evaluator, Probe)| {
            ask(&evaluator, PROBE);
            let Losses { plus, minus, .. } = losses.blocking_recv().unwrap();
            (plus, minus)
        };
        evaluator.apply(changes[..2].to_vec());
        let to_the_base = changes[..2].iter().map(back).collect();
        evaluator.trail(Trail { anew: true, changes: to_the_base });
        evaluator.apply(changes[2..].to_vec());
        assert_eq!(measured(&Evaluator::repeat), after(&[]));
        assert_eq!(measured(&Evaluator::probe), after(&changes));
        evaluator.trail(Trail { anew: false, changes: changes[..1].to_vec() });
        assert_eq!(measured(&Evaluator::repeat), after(&changes[..1]));
        assert_eq!(measured(&Evaluator::probe), after(&changes));
        evaluator.trail(Trail { anew: true, changes: vec![back(&changes[2])] });
        assert_eq!(measured(&Evaluator::repeat), after(&changes[..2]));
        assert_ne!(after(&changes[..2]), after(&changes[..1]));
    }
}
