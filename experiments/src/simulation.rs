//! A deterministic discrete-event network that drives the very [`Protocol`] values the daemon runs.
//!
//! Model time only; one queue ordered by (time, sequence); every random choice from one seeded
//! generator. The same seed gives the same trace, byte for byte. What a probe costs and returns is
//! the [`Trainer`]'s affair.

use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use rumormill::fault::wire::Saboteur;
use rumormill::height::CertifiedHeight;
use rumormill::id::{NodeId, Round, Slot};
use rumormill::keys::Keys;
use rumormill::manifest::Manifest;
use rumormill::message::{Request, Response};
use rumormill::protocol::{
    Cache, Change, Config, Entry, Event, Input, Output, Passed, Probe, Protocol, Trail,
};
use rumormill::sample::KeyedRng;
use rumormill::time::Time;

/// What probes measure.
pub trait Trainer {
    /// Coefficients of a node's model change.
    fn apply(&mut self, node: usize, changes: &[Change]);
    /// The losses at both ends of a direction, at the node's present model.
    fn losses(&mut self, node: usize, probe: Probe) -> (f32, f32);
    /// Moves a node's trailing model, if there are any.
    fn trail(&mut self, node: usize, trail: &Trail) {
        let _ = (node, trail);
    }
    /// The losses at both ends of a direction, at the node's trailing model.
    fn repeat(&mut self, node: usize, probe: Probe) -> (f32, f32) {
        self.losses(node, probe)
    }
    /// The node starts again from the base model.
    fn reset(&mut self, node: usize);
}

/// How frames travel on every link. Streams keep their order unless `reorder` says otherwise.
#[derive(Clone, Debug)]
pub struct LinkModel {
    /// Shortest time on the way.
    pub latency: Time,
    /// Added uniformly at random.
    pub jitter: Time,
    /// Standard deviation of the logarithm of a log-normal factor, of median 1, on both.
    pub sigma: f64,
    /// Probability that a frame is lost.
    pub loss: f64,
    /// Probability that a frame arrives twice.
    pub duplication: f64,
    /// Probability that a frame overtakes the ones before it.
    pub reorder: f64,
}

impl Default for LinkModel {
    fn default() -> LinkModel {
        LinkModel {
            latency: Time::from_millis(1),
            jitter: Time::from_millis(1),
            sigma: 0.0,
            loss: 0.0,
            duplication: 0.0,
            reorder: 0.0,
        }
    }
}

/// Something that is done to the network at a given time.
#[derive(Clone, Debug)]
pub enum Action {
    /// Links between the two groups carry nothing from now on.
    Partition(BTreeSet<usize>),
    /// All links carry again.
    Heal,
    /// A node stops without warning; what it had written is kept, but for the last entries.
    Crash {
        /// The node.
        node: usize,
        /// Entries at the end of its log that are lost. Entries are written before anything
        /// after them is sent, so only a disk that lies loses any.
        lost_tail: usize,
    },
    /// A crashed or absent node starts.
    Start(usize),
    /// A node makes no more probes.
    StopProbing(usize),
}

enum Happening {
    Wake(usize),
    Deliver { to: usize, from: NodeId, frame: Frame },
    Losses { node: usize, life: u32, probe: Probe, losses: (f32, f32) },
    Answer { to: usize, from: NodeId, response: Option<Response> },
    Action(Action),
}

/// A frame on its way.
#[derive(Clone)]
enum Frame {
    Bytes(Vec<u8>),
    Passed(Passed),
}

impl Frame {
    fn len(&self) -> usize {
        match self {
            Frame::Bytes(bytes) => bytes.len(),
            Frame::Passed(frame) => frame.encoded_len(),
        }
    }
}

struct Queued {
    at: Time,
    sequence: u64,
    happening: Happening,
}

impl PartialEq for Queued {
    fn eq(&self, other: &Queued) -> bool {
        (self.at, self.sequence) == (other.at, other.sequence)
    }
}
impl Eq for Queued {}
impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Queued) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Queued {
    fn cmp(&self, other: &Queued) -> std::cmp::Ordering {
        (other.at, other.sequence).cmp(&(self.at, self.sequence))
    }
}

/// A node of the simulated network.
pub struct Node {
    keys: Keys,
    config: Config,
    /// Absent while crashed or not started.
    pub protocol: Option<Protocol>,
    /// What it has written.
    pub log: Vec<Entry>,
    history: BTreeMap<u64, CertifiedHeight>,
    /// Weights of certified heights, where no log is kept.
    weights: BTreeMap<u64, u64>,
    /// Time of one probe.
    pub probe_time: Time,
    busy_until: Time,
    wake_at: Option<Time>,
    life: u32,
    /// News, in order.
    pub events: Vec<(Time, Event)>,
    /// Offences it complained of.
    pub complaints: Vec<String>,
    /// Makes the node faulty: its frames and the history that it gives to others pass through here. A
    /// faulty node is waited for by nobody.
    pub saboteur: Option<Saboteur>,
}

/// The network.
pub struct Simulation<T: Trainer> {
    manifest: Manifest,
    /// The nodes.
    pub nodes: Vec<Node>,
    edges: Vec<(usize, usize)>,
    index: BTreeMap<NodeId, usize>,
    link: LinkModel,
    cut: Option<BTreeSet<usize>>,
    /// When the last frame from one node to another arrives.
    arrivals: BTreeMap<(usize, usize), Time>,
    queue: BinaryHeap<Queued>,
    sequence: u64,
    /// Now.
    pub now: Time,
    /// Bytes of all frames that went out, those that were lost among them.
    pub bytes_sent: u64,
    rng: KeyedRng,
    /// A node that was not done when it was last asked.
    waited_for: usize,
    /// Results that all nodes share; without it every node works out everything, to the same end.
    pub cache: Option<Cache>,
    /// Whether frames of exchanges travel as values, counted by the length of their bytes; those of
    /// faulty nodes are bytes always. Everything else is the same.
    pub passes_frames: bool,
    /// Whether nodes keep a log, to be restarted from. A thousand logs need much memory.
    pub keeps_logs: bool,
    /// Certified heights by height and weight, in place of the nodes' own where they keep no log:
    /// two certified sets of one height are nested, so equal weights are equal sets.
    history: BTreeMap<(u64, u64), CertifiedHeight>,
    /// What probes measure.
    pub trainer: T,
}

impl<T: Trainer> Simulation<T> {
    /// A network of nodes that have not started. `configs` has one entry a node.
    pub fn new(
        manifest: Manifest,
        keys: Vec<Keys>,
        configs: Vec<Config>,
        edges: Vec<(usize, usize)>,
        link: LinkModel,
        seed: u64,
        trainer: T,
    ) -> Simulation<T> {
        let index = keys.iter().enumerate().map(|(at, keys)| (keys.id(), at)).collect();
        let nodes = keys
            .into_iter()
            .zip(configs)
            .map(|(keys, config)| Node {
                keys,
                config,
                protocol: None,
                log: Vec::new(),
                history: BTreeMap::new(),
                weights: BTreeMap::new(),
                probe_time: Time::from_millis(10),
                busy_until: Time::ZERO,
                wake_at: None,
                life: 0,
                events: Vec::new(),
                complaints: Vec::new(),
                saboteur: None,
            })
            .collect();
        Simulation {
            manifest,
            nodes,
            edges,
            index,
            link,
            cut: None,
            arrivals: BTreeMap::new(),
            queue: BinaryHeap::new(),
            sequence: 0,
            now: Time::ZERO,
            bytes_sent: 0,
            rng: KeyedRng::from_seed("rumormill v1 simulated network", seed, 0),
            waited_for: 0,
            cache: Some(Cache::default()),
            passes_frames: false,
            keeps_logs: true,
            history: BTreeMap::new(),
            trainer,
        }
    }

    /// Plans an action.
    pub fn at(&mut self, at: Time, action: Action) {
        self.push(at, Happening::Action(action));
    }

    fn push(&mut self, at: Time, happening: Happening) {
        self.sequence += 1;
        self.queue.push(Queued { at, sequence: self.sequence, happening });
    }

    /// Starts all nodes now.
    pub fn start_all(&mut self) {
        for node in 0..self.nodes.len() {
            self.start(node);
        }
    }

    fn start(&mut self, node: usize) {
        if self.nodes[node].protocol.is_some() {
            return;
        }
        let at = &mut self.nodes[node];
        let protocol = Protocol::new(self.manifest.clone(), at.keys.clone(), at.config.clone());
        let mut protocol = protocol.expect("the scenario's manifest is valid");
        if let Some(cache) = &self.cache {
            protocol.set_cache(cache.clone());
        }
        if self.passes_frames && at.saboteur.is_none() {
            protocol.pass_frames();
        }
        at.life += 1;
        at.busy_until = self.now;
        at.wake_at = None;
        self.trainer.reset(node);
        let mut outputs = Vec::new();
        for entry in at.log.clone() {
            protocol.restore(entry, &mut outputs).expect("a log made by the simulation");
        }
        at.protocol = Some(protocol);
        self.perform(node, outputs);
        self.handle(node, Input::Wake);
        let neighbors: Vec<usize> = self.neighbors(node).collect();
        for other in neighbors {
            self.connect(node, other);
        }
    }

    fn neighbors(&self, node: usize) -> impl Iterator<Item = usize> + '_ {
        self.edges.iter().filter_map(move |&(a, b)| match node {
            _ if a == node => Some(b),
            _ if b == node => Some(a),
            _ => None,
        })
    }

    fn carries(&self, a: usize, b: usize) -> bool {
        self.cut.as_ref().is_none_or(|cut| cut.contains(&a) == cut.contains(&b))
    }

    fn connect(&mut self, a: usize, b: usize) {
        let up = |node: usize| self.nodes[node].protocol.is_some();
        if up(a) && up(b) && self.carries(a, b) {
            let (id_a, id_b) = (self.nodes[a].keys.id(), self.nodes[b].keys.id());
            self.handle(a, Input::Connected(id_b));
            self.handle(b, Input::Connected(id_a));
        }
    }

    fn disconnect(&mut self, a: usize, b: usize) {
        let (id_a, id_b) = (self.nodes[a].keys.id(), self.nodes[b].keys.id());
        self.handle(a, Input::Disconnected(id_b));
        self.handle(b, Input::Disconnected(id_a));
    }

    /// Gives an input to a node that is up.
    pub fn handle(&mut self, node: usize, input: Input) {
        let Some(protocol) = self.nodes[node].protocol.as_mut() else { return };
        let mut outputs = Vec::new();
        protocol.handle(input, self.now, &mut outputs);
        self.perform(node, outputs);
    }

    fn perform(&mut self, node: usize, outputs: Vec<Output>) {
        for output in outputs {
            if let (Output::Record(entry), Some(saboteur)) =
                (&output, &mut self.nodes[node].saboteur)
            {
                saboteur.record(entry);
            }
            match output {
                Output::Record(entry) if !self.keeps_logs => {
                    if let Entry::Certified(height) = entry {
                        self.nodes[node].weights.insert(height.height, height.weight);
                        self.history.entry((height.height, height.weight)).or_insert(height);
                    }
                }
                Output::Record(entry) => {
                    if let Entry::Certified(height) = &entry {
                        self.nodes[node].history.insert(height.height, height.clone());
                    }
                    self.nodes[node].log.push(entry);
                }
                Output::Send { to, bytes } => self.send(node, to, bytes),
                Output::Pass { to, frame } => {
                    if let Some(&to) = self.index.get(&to) {
                        self.transmit(node, to, Frame::Passed(frame));
                    }
                }
                Output::Request { to, request } => self.answer(node, to, request),
                Output::Trail(trail) => self.trainer.trail(node, &trail),
                Output::Probe(probe) | Output::Repeat(probe) => {
                    let losses = match output {
                        Output::Repeat(_) => self.trainer.repeat(node, probe),
                        _ => self.trainer.losses(node, probe),
                    };
                    let at = &mut self.nodes[node];
                    at.busy_until = at.busy_until.max(self.now) + at.probe_time;
                    let (due, life) = (at.busy_until, at.life);
                    self.push(due, Happening::Losses { node, life, probe, losses });
                }
                Output::Apply(changes) => self.trainer.apply(node, &changes),
                Output::Misbehaved { peer, offence } => {
                    let line = format!("{:?} {offence:?}", self.index.get(&peer));
                    self.nodes[node].complaints.push(line);
                }
                Output::Refused { peer, difference } => {
                    let line = format!("{:?} {difference:?}", self.index.get(&peer));
                    self.nodes[node].complaints.push(line);
                }
                Output::Event(event) => self.nodes[node].events.push((self.now, event)),
            }
        }
        let deadline = self.nodes[node].protocol.as_ref().and_then(Protocol::deadline);
        if let Some(deadline) = deadline {
            let deadline = deadline.max(self.now + Time(1));
            if self.nodes[node].wake_at.is_none_or(|at| at <= self.now || deadline < at) {
                self.nodes[node].wake_at = Some(deadline);
                self.push(deadline, Happening::Wake(node));
            }
        }
    }

    fn chance(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.rng.unit_f64() < probability
    }

    fn send(&mut self, node: usize, to: NodeId, bytes: Vec<u8>) {
        let Some(&to) = self.index.get(&to) else { return };
        let at = &mut self.nodes[node];
        let (Some(saboteur), Some(protocol)) = (&mut at.saboteur, &at.protocol) else {
            return self.transmit(node, to, Frame::Bytes(bytes));
        };
        let me = protocol.roster().origin(&protocol.id());
        for bytes in saboteur.frames(me, to, bytes) {
            self.transmit(node, to, Frame::Bytes(bytes));
        }
    }

    /// A time on the way, with the factor of the link's distribution.
    fn stretched(&mut self, span: Time) -> Time {
        if self.link.sigma == 0.0 {
            return span;
        }
        // Box–Muller; the second of the pair is dropped.
        let radius = (-2.0 * self.rng.unit_f64().ln()).sqrt();
        let normal = radius * (std::f64::consts::TAU * self.rng.unit_f64()).cos();
        Time::from_secs_f64(span.as_secs_f64() * (self.link.sigma * normal).exp())
    }

    fn transmit(&mut self, node: usize, to: usize, frame: Frame) {
        self.bytes_sent += frame.len() as u64;
        if !self.carries(node, to) || self.chance(self.link.loss) {
            return;
        }
        let jitter = Time((self.rng.unit_f64() * self.link.jitter.0 as f64) as u64);
        let mut arrival = self.now + self.stretched(self.link.latency + jitter);
        if !self.chance(self.link.reorder) {
            let last = self.arrivals.entry((node, to)).or_default();
            arrival = arrival.max(*last);
            *last = arrival;
        }
        let from = self.nodes[node].keys.id();
        if self.chance(self.link.duplication) {
            self.push(arrival, Happening::Deliver { to, from, frame: frame.clone() });
        }
        self.push(arrival, Happening::Deliver { to, from, frame });
    }

    /// Answers a request from the other node's history, as the daemon does from its disk.
    fn answer(&mut self, node: usize, to: NodeId, request: Request) {
        let Some(&other) = self.index.get(&to) else { return };
        let up = self.nodes[other].protocol.is_some();
        let lost = !up || !self.carries(node, other) || self.chance(self.link.loss);
        let response = (!lost).then(|| match request {
            Request::Manifest => Response::Manifest(Box::new(self.manifest.clone())),
            Request::Checkpoint { .. } => Response::Nothing,
            Request::Founders => {
                let protocol = self.nodes[other].protocol.as_ref().expect("it is up");
                Response::Founders(protocol.founding().to_vec())
            }
            Request::History { from } => {
                let of = &self.nodes[other];
                let own = of.history.range(from..).map(|(_, height)| height);
                let common =
                    of.weights.range(from..).map(|(&h, &weight)| &self.history[&(h, weight)]);
                let heights = own.chain(common).take(16).cloned().collect();
                Response::History(match &mut self.nodes[other].saboteur {
                    Some(saboteur) => saboteur.history(heights),
                    None => heights,
                })
            }
        });
        let way = self.link.latency + self.link.latency + self.link.jitter;
        let due = self.now + self.stretched(way);
        self.push(due, Happening::Answer { to: node, from: to, response });
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Partition(group) => {
                let edges = self.edges.clone();
                for (a, b) in edges {
                    if group.contains(&a) != group.contains(&b) {
                        self.disconnect(a, b);
                    }
                }
                self.cut = Some(group);
            }
            Action::Heal => {
                let cut = self.cut.take();
                let edges = self.edges.clone();
                for (a, b) in edges {
                    if cut.as_ref().is_some_and(|cut| cut.contains(&a) != cut.contains(&b)) {
                        self.connect(a, b);
                    }
                }
            }
            Action::Crash { node, lost_tail } => {
                if self.nodes[node].protocol.take().is_some() {
                    let kept = self.nodes[node].log.len().saturating_sub(lost_tail);
                    self.nodes[node].log.truncate(kept);
                    let id = self.nodes[node].keys.id();
                    let neighbors: Vec<usize> = self.neighbors(node).collect();
                    for other in neighbors {
                        self.handle(other, Input::Disconnected(id));
                    }
                }
            }
            Action::Start(node) => self.start(node),
            Action::StopProbing(node) => self.handle(node, Input::StopProbing),
        }
    }

    /// Runs until all nodes that are up may leave and nothing is planned, or until
    /// `limit`; what is due later stays, and another call goes on. Returns whether all are done.
    pub fn run(&mut self, limit: Time) -> bool {
        let mut planned = self.queue.iter().filter(|q| matches!(q.happening, Happening::Action(_)));
        let mut actions = planned.by_ref().count();
        while self.queue.peek().is_some_and(|queued| queued.at <= limit) {
            let queued = self.queue.pop().expect("it was looked at");
            self.now = queued.at;
            match queued.happening {
                Happening::Wake(node) => {
                    if self.nodes[node].wake_at == Some(queued.at) {
                        self.nodes[node].wake_at = None;
                        self.handle(node, Input::Wake);
                    }
                }
                Happening::Deliver { to, from, frame } => {
                    let input = match frame {
                        Frame::Bytes(bytes) => Input::Frame { from, bytes },
                        Frame::Passed(frame) => Input::Passed { from, frame },
                    };
                    self.handle(to, input);
                }
                Happening::Losses { node, life, probe, losses } => {
                    if self.nodes[node].life == life {
                        let (plus, minus) = losses;
                        self.handle(node, Input::Losses { probe, plus, minus });
                    }
                }
                Happening::Answer { to, from, response } => {
                    self.handle(to, Input::Response { from, response });
                }
                Happening::Action(action) => {
                    actions -= 1;
                    self.act(action);
                }
            }
            if actions == 0 && self.all_done() {
                return true;
            }
        }
        false
    }

    /// Whether an action is still to come.
    pub fn is_planned(&self) -> bool {
        self.queue.iter().any(|queued| matches!(queued.happening, Happening::Action(_)))
    }

    /// Asks the node first that was waited for last: asked after every event, of many nodes.
    fn all_done(&mut self) -> bool {
        let waits = |node: &Node| match &node.protocol {
            Some(protocol) => node.saboteur.is_none() && !protocol.is_done(self.now, false),
            None => false,
        };
        if self.nodes.get(self.waited_for).is_some_and(waits) {
            return false;
        }
        match self.nodes.iter().position(waits) {
            Some(node) => self.waited_for = node,
            None => return true,
        }
        false
    }
}

/// Losses that depend on nothing but node, round and slot, and a record of all coefficients: for
/// tests of agreement, where the model does not matter.
#[derive(Clone, Debug, Default)]
pub struct Bookkeeper {
    /// By node: the sum of coefficients of every direction.
    pub models: Vec<BTreeMap<(Round, Slot), i64>>,
    /// The same of the trailing models.
    pub trailing: Vec<BTreeMap<(Round, Slot), i64>>,
    /// A node that tells the opposite of what it measures.
    pub liar: Option<(usize, NodeId)>,
}

impl Bookkeeper {
    /// Of so many nodes.
    pub fn new(nodes: usize) -> Bookkeeper {
        let (models, trailing) = (vec![BTreeMap::new(); nodes], vec![BTreeMap::new(); nodes]);
        Bookkeeper { models, trailing, liar: None }
    }

    /// Makes changes in a record of coefficients.
    pub fn book(model: &mut BTreeMap<(Round, Slot), i64>, changes: &[Change]) {
        for change in changes {
            let key = (change.round, change.slot);
            let sum = model.entry(key).or_insert(0);
            *sum += change.to - change.from;
            if *sum == 0 {
                model.remove(&key);
            }
        }
    }
}

impl Trainer for Bookkeeper {
    fn apply(&mut self, node: usize, changes: &[Change]) {
        Self::book(&mut self.models[node], changes);
    }

    fn trail(&mut self, node: usize, trail: &Trail) {
        if trail.anew {
            self.trailing[node] = self.models[node].clone();
        }
        Self::book(&mut self.trailing[node], &trail.changes);
    }

    fn losses(&mut self, node: usize, probe: Probe) -> (f32, f32) {
        let mut rng = KeyedRng::from_seed(
            "rumormill v1 bookkeeper",
            probe.round.0 << 32 | u64::from(probe.slot.0),
            u64::from_le_bytes(std::array::from_fn(|at| probe.of.0[at])),
        );
        let plus = 1.0 + 0.01 * rng.symmetric(1.0);
        if self.liar == Some((node, probe.of)) { (1.0, plus) } else { (plus, 1.0) }
    }

    fn reset(&mut self, node: usize) {
        self.models[node].clear();
        self.trailing[node].clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rumormill::manifest::{Directions, Founders};
    use rumormill::selection::Rule;

    fn ring(n: usize) -> Vec<(usize, usize)> {
        match n {
            1 => Vec::new(),
            2 => vec![(0, 1)],
            _ => (0..n).map(|i| (i, (i + 1) % n)).collect(),
        }
    }

    fn manifest(n: u64, rounds: u64) -> Manifest {
        Manifest {
            rounds,
            probes_per_round: 8,
            rounds_per_height: 4,
            scale_exponent: -2,
            founders: Founders::Members((0..n).map(|i| Keys::simulated(i).id()).collect()),
            ..Manifest::template()
        }
    }

    fn network(n: usize, manifest: Manifest, link: LinkModel, seed: u64) -> Simulation<Bookkeeper> {
        let keys: Vec<Keys> = (0..n as u64).map(Keys::simulated).collect();
        let configs = (0..n)
            .map(|i| Config {
                clock_seed: [i as u8 + 1; 32],
                block: 8,
                linger: Time::from_millis(600_000),
                ..Config::default()
            })
            .collect();
        Simulation::new(manifest, keys, configs, ring(n), link, seed, Bookkeeper::new(n))
    }

    fn assert_identical(network: &Simulation<Bookkeeper>, seed: u64) {
        let up: Vec<usize> =
            (0..network.nodes.len()).filter(|&i| network.nodes[i].protocol.is_some()).collect();
        let digest = |i: usize| network.nodes[i].protocol.as_ref().unwrap().digest();
        for &i in &up {
            let missing = network.nodes[i].protocol.as_ref().unwrap().missing();
            assert!(
                network.nodes[i].protocol.as_ref().unwrap().is_finished(),
                "seed {seed}: node {i} is not finished at {:?}: {missing}; {:?}",
                network.now,
                network.nodes[i].protocol.as_ref().unwrap().stalled(),
            );
            assert_eq!(digest(i), digest(up[0]), "seed {seed}: digest of node {i}");
            assert!(
                network.trainer.models[i] == network.trainer.models[up[0]],
                "seed {seed}: model of node {i}"
            );
        }
        assert!(!network.trainer.models[up[0]].is_empty());
    }

    #[test]
    fn nodes_on_a_ring_end_identical() {
        for n in [1, 2, 3, 8] {
            let mut network = network(n, manifest(n as u64, 24), LinkModel::default(), 1);
            network.start_all();
            network.run(Time::from_millis(600_000));
            assert_identical(&network, 1);
            for node in &network.nodes {
                assert_eq!(node.complaints, Vec::<String>::new());
            }
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_trace() {
        let trace = || {
            let mut network = network(5, manifest(5, 16), LinkModel::default(), 3);
            network.start_all();
            network.run(Time::from_millis(600_000));
            let events: Vec<_> = network.nodes.into_iter().map(|node| node.events).collect();
            (network.now, events)
        };
        assert_eq!(trace(), trace());
    }

    #[test]
    fn shared_results_and_passed_frames_change_nothing() {
        let trace = |shares: bool, passes: bool, selection, audit_permille| {
            let link = LinkModel { loss: 0.1, ..LinkModel::default() };
            let manifest = Manifest { selection, audit_permille, ..manifest(6, 24) };
            let mut network = network(6, manifest, link, 3);
            network.cache = shares.then(Cache::default);
            network.passes_frames = passes;
            network.start_all();
            network.at(Time::from_millis(500), Action::Crash { node: 1, lost_tail: 0 });
            network.at(Time::from_millis(900), Action::Start(1));
            network.run(Time::from_millis(600_000));
            let events: Vec<_> = network.nodes.into_iter().map(|node| node.events).collect();
            (network.now, network.bytes_sent, events, network.trainer.models)
        };
        for (rule, audits) in [(Rule::Mean, 0), (Rule::Mean, 200), (Rule::Nnm, 0)] {
            let plain = trace(false, false, rule, audits);
            assert!(trace(true, false, rule, audits) == plain, "{rule}, {audits}: shared results");
            assert!(trace(false, true, rule, audits) == plain, "{rule}, {audits}: passed frames");
            assert!(trace(true, true, rule, audits) == plain, "{rule}, {audits}: both");
        }
    }

    /// Through late records, partitions, a crash and certificates that grow, the trailing model is one that the
    /// node had: all that was certified before some round two heights ago, and nothing else.
    #[test]
    fn trailing_models_are_those_of_a_round_two_heights_ago() {
        let (mut checked, mut replaced) = (0, 0);
        for seed in 0..8 {
            let link = LinkModel { loss: 0.3, ..LinkModel::default() };
            let manifest = Manifest { audit_permille: 200, ..manifest(6, 96) };
            let mut network = network(6, manifest, link, seed);
            network.start_all();
            network.at(Time::from_millis(500), Action::Crash { node: 1, lost_tail: 0 });
            network.at(Time::from_millis(900), Action::Start(1));
            // Certificates that grew, and audits until the last of them.
            let mut grown = [(0, 0); 6];
            for at in 1..300 {
                network.run(Time::from_secs_f64(2.0 * f64::from(at)));
                for (node, (seen, audits_then)) in grown.iter_mut().enumerate() {
                    let Some(protocol) = &network.nodes[node].protocol else { continue };
                    let audits = protocol.stats().audits;
                    let events = &network.nodes[node].events;
                    let is_replaced =
                        |(_, event): &&(Time, Event)| matches!(event, Event::Replaced { .. });
                    let now = events.iter().filter(is_replaced).count();
                    if now > *seen {
                        (*seen, *audits_then) = (now, audits);
                        replaced += 1;
                    }
                    let certified = 4 * protocol.certified();
                    let mut rounds = certified.saturating_sub(16)..certified;
                    let fits = rounds.any(|round| {
                        let mut model = network.trainer.models[node].clone();
                        let changes = protocol.take_back_from(Round(round)).unwrap_or_default();
                        Bookkeeper::book(&mut model, &changes);
                        model == network.trainer.trailing[node]
                    });
                    checked += usize::from(fits);
                    // What was certified anew is not in it until the next audits.
                    let just_grown = *seen > 0 && audits < *audits_then + 8;
                    assert!(fits || audits == 0 || just_grown, "seed {seed}, {at}, node {node}");
                }
            }
            network.run(Time::from_millis(3_000_000));
            assert_identical(&network, seed);
        }
        assert!(checked > 5_000 && replaced > 5, "{checked}, {replaced}");
    }

    #[test]
    fn lost_doubled_and_reordered_frames_do_not_divide_the_nodes() {
        for seed in 0..60 {
            let link =
                LinkModel { loss: 0.3, duplication: 0.2, reorder: 0.2, ..LinkModel::default() };
            let mut network = network(6, manifest(6, 16), link, seed);
            network.start_all();
            network.run(Time::from_millis(3_600_000));
            assert_identical(&network, seed);
        }
    }

    /// A node that is a height ahead must not think that its neighbor holds what it ignored.
    #[test]
    fn records_of_a_height_that_is_not_open_yet_are_sent_later() {
        for seed in 0..40 {
            let link = LinkModel {
                latency: Time::from_millis(4),
                jitter: Time::from_millis(12),
                ..LinkModel::default()
            };
            let n = 2 + seed % 2;
            let short = Manifest { rounds_per_height: 2, staleness: 4, ..manifest(n, 64) };
            let mut network = network(n as usize, short, link, seed);
            network.start_all();
            network.nodes[0].probe_time = Time::from_millis(1 + seed % 5);
            network.nodes[1].probe_time = Time::from_millis(1 + seed % 7);
            network.run(Time::from_millis(3_600_000));
            assert_identical(&network, seed);
            let full_minutes = network.now.as_secs_f64() / 60.0;
            assert!(full_minutes < 10.0, "seed {seed}: only patience ended it");
        }
    }

    #[test]
    fn private_directions_end_identical_whatever_is_lost() {
        for seed in 0..20 {
            let link = LinkModel { loss: 0.3, ..LinkModel::default() };
            let private = Manifest { directions: Directions::Private, ..manifest(6, 16) };
            let mut network = network(6, private, link, seed);
            network.start_all();
            network.nodes[0].probe_time = Time::from_millis(40);
            network.run(Time::from_millis(3_600_000));
            assert_identical(&network, seed);
            for node in &network.nodes {
                let stats = node.protocol.as_ref().unwrap().stats();
                assert!(stats.impatient > 0 || stats.probes == 16 * 8, "seed {seed}: {stats:?}");
            }
        }
    }

    #[test]
    fn private_directions_go_on_without_a_dead_node() {
        let private = Manifest { directions: Directions::Private, ..manifest(5, 24) };
        let mut network = network(5, private, LinkModel::default(), 1);
        network.start_all();
        network.at(Time::from_millis(200), Action::Crash { node: 2, lost_tail: 0 });
        network.run(Time::from_millis(3_600_000));
        assert_identical(&network, 1);
    }

    #[test]
    fn a_late_starter_catches_up() {
        let mut network = network(5, manifest(5, 32), LinkModel::default(), 1);
        for node in 0..4 {
            network.start(node);
        }
        network.at(Time::from_millis(5_000), Action::Start(4));
        network.run(Time::from_millis(3_600_000));
        assert_identical(&network, 1);
    }

    #[test]
    fn crashed_nodes_resume_and_never_contradict_themselves() {
        for seed in 0..60 {
            let mut network = network(5, manifest(5, 24), LinkModel::default(), seed);
            network.start_all();
            for k in 0..6_u64 {
                let node = ((seed + k * 7) % 5) as usize;
                let at = Time::from_millis(300 + 350 * k + 13 * seed);
                network.at(at, Action::Crash { node, lost_tail: 0 });
                network.at(at + Time::from_millis(200), Action::Start(node));
            }
            network.run(Time::from_millis(3_600_000));
            assert_identical(&network, seed);
            for node in &network.nodes {
                let bad = |(_, event): &(Time, Event)| matches!(event, Event::Equivocation { .. });
                assert!(!node.events.iter().any(bad), "seed {seed}");
            }
        }
    }

    /// A backup that was put back, or a disk that lost its last writes: neighbors are asked first. One
    /// node of five, as many as are tolerated: who has forgotten an ack abstains in that height.
    #[test]
    fn nodes_whose_logs_lost_their_ends_never_contradict_themselves() {
        for seed in 0..60 {
            let mut network = network(5, manifest(5, 24), LinkModel::default(), seed);
            network.start_all();
            for k in 0..6_u64 {
                let node = ((seed + k / 2 * 7) % 5) as usize;
                let at = Time::from_millis(300 + 350 * k + 13 * seed);
                let forgetful = node == (seed % 5) as usize;
                let lost_tail = usize::from(forgetful) * (1 + (seed + 3 * k) as usize % 12);
                network.at(at, Action::Crash { node, lost_tail });
                network.at(at + Time::from_millis(200), Action::Start(node));
            }
            network.run(Time::from_millis(3_600_000));
            assert_identical(&network, seed);
            for node in &network.nodes {
                let bad = |(_, event): &(Time, Event)| matches!(event, Event::Equivocation { .. });
                assert!(!node.events.iter().any(bad), "seed {seed}");
            }
        }
    }

    #[test]
    fn a_minority_stalls_and_is_identical_after_healing() {
        let mut network = network(7, manifest(7, 40), LinkModel::default(), 1);
        network.start_all();
        network.at(Time::from_millis(500), Action::Partition(BTreeSet::from([0, 1])));
        network.at(Time::from_millis(20_000), Action::Heal);
        network.run(Time::from_millis(3_600_000));
        assert_identical(&network, 1);
    }

    /// An exchange that began before the other node knew the founders was never answered, and for ten
    /// seconds its node began no other: whoever lacked a certificate then had a race with the others'
    /// leaving.
    #[test]
    fn an_exchange_that_meets_a_node_before_its_start_is_answered() {
        for seed in 0..32 {
            let open = Manifest { founders: Founders::Minimum(3), ..manifest(3, 16) };
            let mut network = network(3, open, LinkModel::default(), seed);
            network.start_all();
            network.run(Time::from_millis(3_600_000));
            assert_identical(&network, seed);
            for node in &network.nodes {
                for (_, fired, completed) in node.protocol.as_ref().unwrap().edges() {
                    assert!(2 * completed > fired, "seed {seed}: {completed} of {fired}");
                }
            }
        }
    }

    #[test]
    fn founders_that_find_each_other_start_and_a_joiner_becomes_a_member() {
        let open = Manifest { founders: Founders::Minimum(4), ..manifest(4, 40) };
        let mut network = network(5, open, LinkModel::default(), 1);
        for node in 0..4 {
            network.start(node);
        }
        network.at(Time::from_millis(1_000), Action::Start(4));
        network.run(Time::from_millis(3_600_000));
        assert_identical(&network, 1);
        assert_eq!(network.nodes[0].protocol.as_ref().unwrap().roster().len(), 5);
        let joined = |(_, event): &(Time, Event)| matches!(event, Event::Joined { .. });
        assert!(network.nodes[4].events.iter().any(joined));
        assert!(network.nodes[4].protocol.as_ref().unwrap().stats().probes > 0);
    }
}
