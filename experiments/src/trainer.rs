//! Real models for the simulated network: probes measured as the daemon's evaluator measures them,
//! and faulty nodes that report other losses, so that their bytes lie.

use std::collections::BTreeMap;
use std::sync::Arc;

use rumormill::direction::Direction;
use rumormill::fault::FaultKind;
use rumormill::fault::value::{CROWD_MAX, Crowd, Liar, Lie, Moment};
use rumormill::id::{NodeId, Round, RunId, Slot};
use rumormill::lb8;
use rumormill::manifest::Manifest;
use rumormill::objective::{Objective, Scratch};
use rumormill::params::{Payout, State};
use rumormill::protocol::{Change, Probe, Trail};
use rumormill::sample::{KeyedRng, minibatch};
use rumormill::spsa::projected_gradient;

use crate::sim::scenario::Auditors;
use crate::simulation::Trainer;

/// Directions of which the crowd's values are remembered: all faulty nodes meet at the same ones.
const REMEMBERED_MAX: usize = 1 << 16;

/// Beyond this magnitude, in LSBs, a parameter is about to leave its range.
const STATE_MAX: u32 = 1 << 30;

/// Probes by which the scale of the first bytes is measured, as the daemon does.
const SCALE_PROBES: u32 = 64;

/// A node of the trainer.
struct Learner {
    id: NodeId,
    /// Rows of the training table that it may use; `None` means all.
    rows: Option<Arc<Vec<u32>>>,
    liar: Option<Liar>,
    state: State,
    /// The model two heights ago, at which it audits.
    trailing: Option<State>,
}

/// A model for every node.
pub struct ModelTrainer {
    run: RunId,
    objective: Arc<dyn Objective>,
    /// The objective on flipped labels, when some node needs it.
    flipped: Option<Arc<dyn Objective>>,
    population: usize,
    epsilon_log2: i32,
    base: State,
    learners: Vec<Learner>,
    crowds: BTreeMap<(Round, Slot), Crowd>,
    auditors: Auditors,
    /// What was told lately, for auditors that do not measure.
    told: BTreeMap<(Round, Slot, NodeId), f64>,
    rounds: u64,
    /// Probes made by all nodes.
    pub probes: u64,
    scratch: Scratch,
    plus: Vec<f32>,
    minus: Vec<f32>,
    batch: Vec<u32>,
}

/// A node as [`ModelTrainer::new`] is told of it.
pub struct Pupil {
    /// Its identity.
    pub id: NodeId,
    /// Rows of the training table that it may use; `None` means all.
    pub rows: Option<Arc<Vec<u32>>>,
    /// How it lies.
    pub lie: Option<Lie>,
}

/// What is measured.
pub struct Subject {
    /// The model on the data.
    pub objective: Arc<dyn Objective>,
    /// The model on data with flipped labels; needed when a node flips them.
    pub flipped: Option<Arc<dyn Objective>>,
    /// Rows of the training table.
    pub population: usize,
    /// The base model.
    pub base: State,
}

impl ModelTrainer {
    /// All nodes at the base model.
    pub fn new(
        manifest: &Manifest,
        subject: Subject,
        pupils: Vec<Pupil>,
        auditors: Auditors,
        seed: u64,
    ) -> Self {
        let Subject { objective, flipped, population, base } = subject;
        let dim = base.layout().dim();
        let learners = pupils
            .into_iter()
            .enumerate()
            .map(|(at, Pupil { id, rows, lie })| {
                let rng = || KeyedRng::from_seed("rumormill v1 simulated lies", seed, at as u64);
                let liar = lie.map(|lie| Liar::new(lie, rng()));
                Learner { id, rows, liar, state: base.clone(), trailing: None }
            })
            .collect();
        ModelTrainer {
            run: manifest.run_id(),
            objective,
            flipped,
            population,
            epsilon_log2: manifest.epsilon_log2,
            base,
            learners,
            crowds: BTreeMap::new(),
            auditors,
            told: BTreeMap::new(),
            rounds: manifest.rounds_total(),
            probes: 0,
            scratch: Scratch::default(),
            plus: vec![0.0; dim],
            minus: vec![0.0; dim],
            batch: vec![0; manifest.batch as usize],
        }
    }

    /// A node's identity.
    pub fn id(&self, node: usize) -> NodeId {
        self.learners[node].id
    }

    /// What a faulty auditor says that it measured; `None` when it measures.
    fn repetition(&self, probe: Probe) -> Option<f64> {
        let told = *self.told.get(&(probe.round, probe.slot, probe.of))?;
        let mut honest = self.learners.iter().filter(|other| other.liar.is_none());
        let accuses = match self.auditors {
            Auditors::Honest => return None,
            Auditors::Accuse => honest.any(|other| other.id == probe.of),
            Auditors::Frame => honest.next().is_some_and(|victim| victim.id == probe.of),
            Auditors::Copy => false,
        };
        Some(if accuses { -told } else { told })
    }

    /// Remembers what was told, as long as it may be audited.
    fn remember(&mut self, probe: Probe, (plus, minus): (f32, f32)) {
        if self.auditors == Auditors::Honest {
            return;
        }
        if self.told.len() == REMEMBERED_MAX {
            self.told.pop_first();
        }
        let told = projected_gradient(plus, minus, self.epsilon_log2);
        self.told.insert((probe.round, probe.slot, probe.of), told);
    }

    /// Losses whose projected gradient is what shall be told.
    fn losses_of(&self, told: f64) -> (f32, f32) {
        let half = (told * 2f64.powi(self.epsilon_log2)) as f32;
        (half, -half)
    }

    /// A node's model.
    pub fn state(&self, node: usize) -> &State {
        &self.learners[node].state
    }

    /// Whether a parameter of a node is near the end of its range.
    pub fn is_out_of_range(&self, node: usize) -> bool {
        self.state(node).values().iter().any(|value| value.unsigned_abs() > STATE_MAX)
    }

    /// Losses on a node's minibatch, at the pair that was written last.
    fn measure(&mut self, node: usize, probe: Probe, flip: bool) -> (f32, f32) {
        let Probe { round, slot, of } = probe;
        let rows = &self.learners[node].rows;
        let batch = &mut self.batch;
        match rows {
            Some(rows) => {
                minibatch(&self.run, &of, round, slot, rows.len(), batch);
                batch.iter_mut().for_each(|row| *row = rows[*row as usize]);
            }
            None => minibatch(&self.run, &of, round, slot, self.population, batch),
        }
        let objective = match &self.flipped {
            Some(flipped) if flip => flipped,
            _ => &self.objective,
        };
        objective.loss_pair(&self.plus, &self.minus, batch, &mut self.scratch)
    }

    fn faulty(&self) -> usize {
        self.learners.iter().filter(|learner| learner.liar.is_some()).count()
    }

    /// What the honest would measure, at the pair that was written last.
    fn crowd(&mut self, round: Round, slot: Slot) -> Crowd {
        if let Some(crowd) = self.crowds.get(&(round, slot)) {
            return *crowd;
        }
        let honest: Vec<usize> =
            (0..self.learners.len()).filter(|&node| self.learners[node].liar.is_none()).collect();
        let values: Vec<f64> = honest
            .iter()
            .take(CROWD_MAX)
            .map(|&node| {
                let of = self.learners[node].id;
                let (plus, minus) = self.measure(node, Probe { round, slot, of }, false);
                projected_gradient(plus, minus, self.epsilon_log2)
            })
            .collect();
        let faulty = self.learners.len() - honest.len();
        let crowd = Crowd::new(values.iter().copied(), honest.len(), faulty);
        if self.crowds.len() == REMEMBERED_MAX {
            self.crowds.pop_first();
        }
        self.crowds.insert((round, slot), crowd);
        crowd
    }
}

impl Trainer for ModelTrainer {
    fn apply(&mut self, node: usize, changes: &[Change]) {
        let payouts: Vec<Payout> = changes.iter().map(|change| change.payout(&self.run)).collect();
        self.learners[node].state.apply(&payouts);
    }

    fn losses(&mut self, node: usize, probe: Probe) -> (f32, f32) {
        let losses = self.tell(node, probe);
        self.remember(probe, losses);
        losses
    }

    fn trail(&mut self, node: usize, trail: &Trail) {
        let payouts = trail.changes.iter().map(|change| change.payout(&self.run));
        let payouts: Vec<Payout> = payouts.collect();
        let Learner { state, trailing, .. } = &mut self.learners[node];
        if trail.anew {
            *trailing = Some(state.clone());
        }
        trailing.get_or_insert_with(|| state.clone()).apply(&payouts);
    }

    fn repeat(&mut self, node: usize, probe: Probe) -> (f32, f32) {
        self.probes += 1;
        let learner = &self.learners[node];
        if learner.liar.is_some()
            && let Some(said) = self.repetition(probe)
        {
            return self.losses_of(said);
        }
        let direction = Direction::new(&self.run, probe.round, probe.slot);
        let state = learner.trailing.as_ref().unwrap_or(&learner.state);
        state.write_pair(&direction, self.epsilon_log2, &mut self.plus, &mut self.minus);
        self.measure(node, probe, false)
    }

    fn reset(&mut self, node: usize) {
        self.learners[node].state = self.base.clone();
        self.learners[node].trailing = None;
    }
}

impl ModelTrainer {
    fn tell(&mut self, node: usize, probe: Probe) -> (f32, f32) {
        self.probes += 1;
        let Probe { round, slot, .. } = probe;
        let direction = Direction::new(&self.run, round, slot);
        let state = &self.learners[node].state;
        state.write_pair(&direction, self.epsilon_log2, &mut self.plus, &mut self.minus);
        let learner = &self.learners[node];
        let lie = match &learner.liar {
            Some(liar) => liar.lie,
            None => return self.measure(node, probe, false),
        };
        let (plus, minus) = self.measure(node, probe, lie.kind == FaultKind::LabelFlip);
        let own = projected_gradient(plus, minus, self.epsilon_log2);
        let crowd = match lie.needs_crowd() {
            true => self.crowd(round, slot),
            false => Crowd::new(std::iter::empty(), 1, self.faulty()),
        };
        let moment = Moment { round: round.0, rounds: self.rounds };
        let liar = self.learners[node].liar.as_mut();
        liar.map_or((plus, minus), |liar| liar.losses(own, &crowd, moment, self.epsilon_log2))
    }
}

/// The scale exponent of the base model's projected gradients, measured as the daemon does.
pub fn scale_exponent(manifest: &Manifest, subject: &Subject) -> i32 {
    let run = RunId(blake3::derive_key("rumormill v1 scale", manifest.base_hash.as_bytes()));
    let dim = subject.base.layout().dim();
    let (mut plus, mut minus) = (vec![0.0; dim], vec![0.0; dim]);
    let mut scratch = Scratch::default();
    let mut batch = vec![0; manifest.batch as usize];
    let mut values: Vec<f64> = (0..SCALE_PROBES)
        .map(|slot| {
            let (round, slot) = (Round(0), Slot(slot));
            let direction = Direction::new(&run, round, slot);
            subject.base.write_pair(&direction, manifest.epsilon_log2, &mut plus, &mut minus);
            minibatch(&run, &NodeId([0; 32]), round, slot, subject.population, &mut batch);
            let (up, down) = subject.objective.loss_pair(&plus, &minus, &batch, &mut scratch);
            projected_gradient(up, down, manifest.epsilon_log2)
        })
        .collect();
    lb8::scale_exponent(&mut values).unwrap_or(0).clamp(-60, 60)
}
