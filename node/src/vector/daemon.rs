//! A node of a vector algorithm: one loop around a [`Peer`] value, and a thread for its gradients.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use libp2p::{Multiaddr, PeerId};
use rumormill::id::NodeId;
use rumormill::objective::{Objective, Scratch};
use rumormill::sample::KeyedRng;
use rumormill::time::Time;
use rumormill::vector::peer::{Event, Input, Output, Peer, Stats};
use tokio::sync::{mpsc, watch};
use tracing::{debug, error, warn};

use crate::identity::{Identity, node_of, peer_of};
use crate::net::{Counters, Network, NetworkConfig, NetworkError, NetworkEvent};

/// Frames of a peer that the algorithm does not allow before it loses its connection.
const OFFENCES_MAX: u32 = 4;

/// How long such a peer is not spoken to.
const BAN: Duration = Duration::from_secs(60);

/// How long closing may take at the end.
const CLOSE_WAIT: Duration = Duration::from_secs(3);

/// How often others can see how far a node is.
const PROGRESS_EVERY: Duration = Duration::from_millis(50);

/// What a node differentiates.
#[derive(Clone)]
pub(crate) struct Work {
    pub(crate) objective: Arc<dyn Objective>,
    /// Rows of the training table that this node's objective is the mean of.
    pub(crate) rows: Arc<Vec<u32>>,
    /// Rows drawn for a gradient; all where nothing is said.
    pub(crate) batch: Option<usize>,
    /// `penalty/2 · |x|²` is added to the objective.
    pub(crate) penalty: f64,
    pub(crate) seed: u64,
    pub(crate) index: usize,
}

impl Work {
    /// Gradient number `number` of this node at `x`.
    pub(crate) fn gradient(&self, number: u64, x: &[f64], scratch: &mut Scratch) -> Vec<f64> {
        let mut out = vec![0.0; x.len()];
        match self.batch {
            None => self.objective.gradient(x, &self.rows, &mut out, scratch),
            Some(batch) => {
                let stream = number << 16 | self.index as u64;
                let context = "rumormill v1 minibatch of a vector algorithm";
                let mut rng = KeyedRng::from_seed(context, self.seed, stream);
                let rows =
                    (0..batch).map(|_| self.rows[rng.index(self.rows.len() as u32) as usize]);
                let rows: Vec<u32> = rows.collect();
                self.objective.gradient(x, &rows, &mut out, scratch)
            }
        };
        if self.penalty > 0.0 {
            out.iter_mut().zip(x).for_each(|(g, x)| *g += self.penalty * x);
        }
        out
    }
}

/// The way to the thread that computes gradients, one at a time; dropping it ends the thread.
struct Worker {
    requests: SyncSender<(u64, Vec<f64>)>,
}

impl Worker {
    fn start(work: Work) -> (Worker, mpsc::Receiver<Vec<f64>>) {
        // A node has one gradient under way.
        let (requests, inbox): (_, Receiver<(u64, Vec<f64>)>) = sync_channel(1);
        let (results, outbox) = mpsc::channel(1);
        std::thread::Builder::new()
            .name("gradient".into())
            .spawn(move || {
                let mut scratch = Scratch::default();
                while let Ok((number, x)) = inbox.recv() {
                    let gradient = work.gradient(number, &x, &mut scratch);
                    if results.blocking_send(gradient).is_err() {
                        return;
                    }
                }
            })
            .expect("the system can start a thread");
        (Worker { requests }, outbox)
    }
}

/// How far a node is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress {
    /// Units of time, or rounds.
    pub(crate) time: f64,
    pub(crate) stats: Stats,
    /// The parameters, where they were asked for.
    pub(crate) x: Vec<f64>,
}

/// How a node ended.
pub(crate) struct Outcome {
    pub(crate) peer_id: PeerId,
    pub(crate) x: Vec<f64>,
    pub(crate) time: f64,
    pub(crate) stats: Stats,
    pub(crate) counters: Counters,
    pub(crate) edges: Vec<(PeerId, u64, u64)>,
    pub(crate) diverged: bool,
    /// Why it ended before its time, if it did.
    pub(crate) missing: String,
}

pub(crate) struct VectorDaemon {
    peer: Peer,
    network: Network,
    worker: Worker,
    gradients: mpsc::Receiver<Vec<f64>>,
    neighbors: BTreeMap<NodeId, Vec<Multiaddr>>,
    links: BTreeMap<NodeId, PeerId>,
    /// All neighbors have been connected at once.
    met_all: bool,
    offences: BTreeMap<NodeId, u32>,
    started: Instant,
    timeout: Duration,
    stop: mpsc::Receiver<()>,
    progress: watch::Sender<Progress>,
    progressed: Instant,
    /// Whether the parameters are shown on the way.
    shows_x: bool,
}

impl VectorDaemon {
    pub(crate) fn new(
        peer: Peer,
        identity: &Identity,
        network: NetworkConfig,
        work: Work,
        timeout: Duration,
        shows_x: bool,
    ) -> Result<(VectorDaemon, mpsc::Sender<()>, watch::Receiver<Progress>), NetworkError> {
        let network = Network::new(identity.to_keypair(), network)?;
        let (worker, gradients) = Worker::start(work);
        let (stop_sender, stop) = mpsc::channel(1);
        let (progress, watcher) = watch::channel(Progress::default());
        let daemon = VectorDaemon {
            peer,
            network,
            worker,
            gradients,
            neighbors: BTreeMap::new(),
            links: BTreeMap::new(),
            met_all: false,
            offences: BTreeMap::new(),
            started: Instant::now(),
            timeout,
            stop,
            progress,
            progressed: Instant::now(),
            shows_x,
        };
        Ok((daemon, stop_sender, watcher))
    }

    /// Lets network events pass until the node listens somewhere.
    pub(crate) async fn listening(&mut self) -> Vec<Multiaddr> {
        while self.network.listen_addrs().is_empty() {
            if let NetworkEvent::ListenFailed { reason, .. } = self.network.next_event().await {
                error!(reason, "cannot listen");
                break;
            }
        }
        self.network.listen_addrs()
    }

    pub(crate) fn set_neighbors(&mut self, neighbors: BTreeMap<NodeId, Vec<Multiaddr>>) {
        for (node, addresses) in &neighbors {
            if let Some(peer) = peer_of(*node) {
                self.network.want(peer, addresses.clone());
            }
        }
        self.neighbors = neighbors;
    }

    fn now(&self) -> Time {
        Time(u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// Runs the node to its end.
    pub(crate) async fn run(mut self) -> Outcome {
        self.started = Instant::now();
        self.feed(Input::Wake);
        let missing = loop {
            if self.peer.is_done(self.now()) {
                break String::new();
            }
            if self.started.elapsed() > self.timeout {
                break "more time: --timeout is over".into();
            }
            self.report_progress();
            let now = self.now();
            let due = self.peer.deadline().map_or(Time(u64::MAX), |due| due.since(now));
            let sleep = Duration::from_nanos(due.0).min(Duration::from_millis(500));
            tokio::select! {
                event = self.network.next_event() => self.on_network(event),
                Some(gradient) = self.gradients.recv() => self.feed(Input::Gradient(gradient)),
                () = tokio::time::sleep(sleep) => self.feed(Input::Wake),
                _ = self.stop.recv() => break "the rest: it was stopped".into(),
            }
        };
        let edges = self.peer.edges().into_iter();
        let edges = edges.filter_map(|(node, fired, done)| Some((peer_of(node)?, fired, done)));
        let edges = edges.collect();
        let peer_id = self.network.local_peer_id();
        let time = self.peer.time();
        let (_, counters) = self.network.close(CLOSE_WAIT).await;
        Outcome {
            peer_id,
            x: self.peer.x().to_vec(),
            time,
            stats: self.peer.stats(),
            counters,
            edges,
            diverged: self.peer.has_diverged(),
            missing,
        }
    }

    fn report_progress(&mut self) {
        if self.progressed.elapsed() < PROGRESS_EVERY {
            return;
        }
        self.progressed = Instant::now();
        let x = if self.shows_x { self.peer.x().to_vec() } else { Vec::new() };
        let time = self.peer.time();
        self.progress.send_replace(Progress { time, stats: self.peer.stats(), x });
    }

    /// One event into the algorithm, and its effects out.
    fn feed(&mut self, input: Input) {
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            let mut outputs = Vec::new();
            let now = self.now();
            self.peer.handle(input, now, &mut outputs);
            for output in outputs {
                match output {
                    Output::Send { to, bytes } => {
                        let sent = self.links.get(&to).map(|peer| self.network.send(*peer, bytes));
                        if !matches!(sent, Some(Ok(()))) {
                            inputs.push(Input::NotSent(to));
                        }
                    }
                    Output::Gradient { number, x } => {
                        // One is under way at a time, so the queue of one has room.
                        let _ = self.worker.requests.try_send((number, x));
                    }
                    Output::Misbehaved { peer, offence } => self.on_offence(peer, &offence),
                    Output::Event(event) => on_event(&event),
                }
            }
        }
    }

    fn on_offence(&mut self, node: NodeId, offence: &str) {
        let Some(peer) = peer_of(node) else { return };
        let count = self.offences.entry(node).or_insert(0);
        *count += 1;
        if *count == 1 {
            warn!(%peer, offence, "a peer broke the protocol");
        }
        if *count > OFFENCES_MAX {
            self.offences.remove(&node);
            warn!(%peer, "connection closed, peer avoided for {} s", BAN.as_secs());
            self.network.ban(peer, BAN);
        }
    }

    fn on_network(&mut self, event: NetworkEvent) {
        match event {
            NetworkEvent::Connected { peer, .. } => {
                let node = node_of(peer).filter(|node| self.neighbors.contains_key(node));
                if let Some(node) = node {
                    self.links.insert(node, peer);
                    self.met_all |= self.links.len() == self.neighbors.len();
                    self.feed(Input::Connected(node));
                }
            }
            NetworkEvent::Disconnected { peer, reason } => {
                debug!(%peer, %reason, "disconnected");
                if let Some(node) = node_of(peer) {
                    self.links.remove(&node);
                    self.feed(Input::Disconnected(node));
                }
            }
            NetworkEvent::Frame { peer, bytes } => {
                if let Some(from) = node_of(peer) {
                    self.feed(Input::Frame { from, bytes });
                }
            }
            NetworkEvent::BadPeer { peer, reason } => {
                warn!(%peer, ?reason, "a peer sent what is no frame; connection closed");
                self.network.ban(peer, BAN);
            }
            // At the end neighbors leave one by one, and that is no trouble.
            NetworkEvent::DialFailed { reason, hint, .. } if !self.met_all => {
                warn!(reason, hint, "cannot reach a peer");
            }
            NetworkEvent::DialFailed { reason, .. } => debug!(reason, "cannot reach a peer"),
            NetworkEvent::ListenFailed { reason, .. } => error!(reason, "a listener stopped"),
            // Vector runs have no history to ask for and seek nobody.
            NetworkEvent::Request { .. }
            | NetworkEvent::Response { .. }
            | NetworkEvent::Discovered { .. }
            | NetworkEvent::Listening(_) => {}
        }
    }
}

fn on_event(event: &Event) {
    match event {
        Event::Started { neighbors } => debug!(neighbors, "started"),
        Event::RateLow { ratio } => warn!(
            "edges fire at {:.0} % of the rate that DADAO's constants assume: compute or links are \
             behind; give more time with --unit-ms, or a larger --margin",
            100.0 * ratio
        ),
        Event::Diverged => warn!("the parameters are no longer finite: the run has diverged"),
        Event::Finished => debug!("finished"),
    }
}
