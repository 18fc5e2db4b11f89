//! A node: one loop around a [`Protocol`] value.
//!
//! One arm per source of events (network, evaluator, time, commands), each arm one call into the
//! protocol, and one function that turns each output into its effect.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use libp2p::{Multiaddr, PeerId};
use rumormill::data::shard::Shards;
use rumormill::id::{NodeId, Origin};
use rumormill::keys::Keys;
use rumormill::manifest::{Manifest, ManifestError};
use rumormill::message::{Request, Response};
use rumormill::protocol::{Config, Entry, Event, Input, Offence, Output, Protocol, Stats};
use rumormill::time::Time;
use tokio::sync::{mpsc, watch};
use tracing::{debug, error, info, warn};

use crate::evaluator::{Evaluator, Losses, ProbeSettings, Report, Task};
use crate::identity::{Identity, node_of, peer_of};
use crate::net::{Counters, Network, NetworkConfig, NetworkError, NetworkEvent, ResponseToken};
use crate::net::{DownReason, RequestId};
use crate::store::{Store, StoreError};

/// Statements that broke the protocol before a peer loses its connection. An honest peer never
/// sends one; a few are let pass so that a bug does not cost a run.
const OFFENCES_MAX: u32 = 4;

/// How long a peer that broke the protocol, or takes part in another run, is not spoken to.
const BAN: Duration = Duration::from_secs(60);

/// How long a link to a node of another run stays open: its own refusal needs this node's hello,
/// and closing at once may overtake that.
const FAREWELL: Duration = Duration::from_secs(1);

/// How long closing may take at the end.
const CLOSE_WAIT: Duration = Duration::from_secs(3);

/// Bytes of history in one answer, well below what the network lets through.
const HISTORY_BYTES: usize = 1 << 19;

/// Network events handled before time and results are looked at again.
const EVENTS_PER_TURN: usize = 32;

/// Whom a node talks to.
#[derive(Clone, Debug)]
pub enum Neighbors {
    /// The neighbors in a graph, nobody else.
    Only(BTreeMap<NodeId, Vec<Multiaddr>>),
    /// Whoever is found, up to a number of connections.
    Found {
        /// Connections that this node makes itself; it accepts more.
        target: usize,
        /// Addresses to begin with.
        addresses: Vec<Multiaddr>,
    },
}

/// Everything a node starts with.
pub struct Setup {
    /// The run.
    pub manifest: Manifest,
    /// This node's key.
    pub identity: Identity,
    /// The protocol's own settings.
    pub config: Config,
    /// Sockets.
    pub network: NetworkConfig,
    /// Whom to talk to.
    pub neighbors: Neighbors,
    /// What to train on.
    pub task: Task,
    /// Private shards by roster position; public data otherwise.
    pub shards: Shards,
    /// Labels of the training rows, for the shards.
    pub labels: Arc<Vec<u16>>,
    /// The log, and what it said when it was opened.
    pub store: Store,
    /// Entries of the log.
    pub entries: Vec<Entry>,
    /// Stop although the run is not certified after this long.
    pub timeout: Option<Duration>,
    /// Go on serving history after the run is certified, until told to stop.
    pub stay: bool,
}

/// Why a node could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The manifest is out of its ranges.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// No socket.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The log cannot be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The private shards cannot be cut.
    #[error("cannot cut the training rows into shards: {0}")]
    Shards(String),
}

/// How a node ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The last height is certified here.
    Certified,
    /// It was asked to stop.
    Stopped,
    /// Time ran out.
    TimedOut,
}

/// What a node can say of itself at the end.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// How it ended.
    pub ending: Ending,
    /// The node.
    pub id: NodeId,
    /// Its libp2p name.
    pub peer_id: PeerId,
    /// Position in the roster.
    pub origin: Option<Origin>,
    /// Rounds closed.
    pub round: u64,
    /// Heights certified.
    pub certified: u64,
    /// Members.
    pub members: usize,
    /// Digest chain, hexadecimal.
    pub digest: String,
    /// The model.
    pub report: Report,
    /// Protocol numbers.
    pub stats: Stats,
    /// Socket numbers.
    pub counters: Counters,
    /// For every neighbor: how often this end of the edge fired, and how many exchanges it
    /// completed.
    pub edges: Vec<(PeerId, u64, u64)>,
    /// What was missing when it ended without a certificate.
    pub missing: String,
}

/// A node's progress, for whoever watches.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Rounds closed.
    pub round: u64,
    /// Heights certified.
    pub certified: u64,
    /// Probes measured.
    pub probes: u64,
    /// Neighbors connected.
    pub peers: usize,
    /// What is waited for.
    pub waits_for: Option<String>,
    /// Founders present and needed, before the start.
    pub gathering: Option<(usize, usize)>,
    /// Where it listens.
    pub addresses: Vec<Multiaddr>,
}

/// The way to a running node.
#[derive(Clone)]
pub struct Handle {
    stop: mpsc::Sender<()>,
    /// The node's progress.
    pub progress: watch::Receiver<Progress>,
}

impl Handle {
    /// Asks the node to stop.
    pub fn stop(&self) {
        // A second request finds the first still there.
        let _ = self.stop.try_send(());
    }
}

/// A node that is ready to run.
pub struct Daemon {
    protocol: Protocol,
    network: Network,
    evaluator: Evaluator,
    losses: mpsc::Receiver<Losses>,
    store: Store,
    neighbors: Neighbors,
    shards: Shards,
    labels: Arc<Vec<u16>>,
    started: Instant,
    timeout: Option<Duration>,
    stay: bool,
    requests: BTreeMap<RequestId, NodeId>,
    /// libp2p names of the connected neighbors.
    links: BTreeMap<NodeId, PeerId>,
    offences: BTreeMap<NodeId, u32>,
    /// Nodes of other runs, and when their links are closed.
    refused: BTreeMap<NodeId, Instant>,
    /// Peers dialled because they were found.
    sought: BTreeSet<PeerId>,
    stop: mpsc::Receiver<()>,
    progress: watch::Sender<Progress>,
    progressed: Instant,
    stopping: bool,
}

impl Daemon {
    /// Opens the sockets and puts back what the log says.
    ///
    /// # Errors
    /// See [`DaemonError`].
    pub fn new(setup: Setup) -> Result<(Daemon, Handle), DaemonError> {
        let keys = Keys::from_seed(setup.identity.seed());
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let config = Config { unix_s: unix.as_secs(), ..setup.config };
        let mut protocol = Protocol::new(setup.manifest, keys, config)?;
        let network = Network::new(setup.identity.to_keypair(), setup.network)?;
        let manifest = protocol.manifest();
        let settings = ProbeSettings {
            run: protocol.run_id(),
            node: protocol.id(),
            batch: manifest.batch as usize,
            epsilon_log2: manifest.epsilon_log2,
        };
        let (evaluator, losses) = Evaluator::start(setup.task, settings);
        let mut outputs = Vec::new();
        let restored = setup.entries.len();
        for entry in setup.entries {
            protocol.restore(entry, &mut outputs);
            for output in outputs.drain(..) {
                if let Output::Apply(changes) = output {
                    evaluator.apply(changes);
                }
            }
        }
        if restored > 0 {
            info!(entries = restored, certified = protocol.certified(), "resumed from the log");
        }
        let (stop_sender, stop) = mpsc::channel(1);
        let (progress, watcher) = watch::channel(Progress::default());
        let mut daemon = Daemon {
            protocol,
            network,
            evaluator,
            losses,
            store: setup.store,
            neighbors: setup.neighbors,
            shards: setup.shards,
            labels: setup.labels,
            started: Instant::now(),
            timeout: setup.timeout,
            stay: setup.stay,
            requests: BTreeMap::new(),
            links: BTreeMap::new(),
            offences: BTreeMap::new(),
            refused: BTreeMap::new(),
            sought: BTreeSet::new(),
            stop,
            progress,
            progressed: Instant::now(),
            stopping: false,
        };
        daemon.seek();
        if daemon.protocol.is_started() {
            daemon.take_shard()?;
        }
        Ok((daemon, Handle { stop: stop_sender, progress: watcher }))
    }

    /// Where the node listens, once it does.
    pub fn addresses(&self) -> Vec<Multiaddr> {
        self.network.listen_addrs()
    }

    /// Lets network events pass until the node listens somewhere.
    pub async fn listening(&mut self) -> Vec<Multiaddr> {
        while self.network.listen_addrs().is_empty() {
            let event = self.network.next_event().await;
            if let Err(error) = self.on_network(event) {
                error!(%error, "cannot start");
                break;
            }
        }
        self.network.listen_addrs()
    }

    /// Tells the node who its neighbors are, when their addresses became known after its start.
    pub fn set_neighbors(&mut self, neighbors: Neighbors) {
        self.neighbors = neighbors;
        self.seek();
    }

    fn seek(&mut self) {
        match &self.neighbors {
            Neighbors::Only(neighbors) => {
                for (node, addresses) in neighbors {
                    if let Some(peer) = peer_of(*node) {
                        self.network.want(peer, addresses.clone());
                    }
                }
            }
            Neighbors::Found { addresses, .. } => {
                for address in addresses {
                    self.network.want_address(address.clone());
                }
            }
        }
    }

    fn now(&self) -> Time {
        Time(u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// Runs the node to its end.
    ///
    /// # Errors
    /// The log could not be written: the node stops rather than sign what it may forget.
    pub async fn run(mut self) -> Result<Outcome, DaemonError> {
        self.started = Instant::now();
        self.feed(Input::Wake)?;
        let ending = loop {
            if !self.stay && self.protocol.is_done(self.now()) {
                break Ending::Certified;
            }
            if self.timeout.is_some_and(|timeout| self.started.elapsed() > timeout) {
                break match self.protocol.is_finished() {
                    true => Ending::Certified,
                    false => Ending::TimedOut,
                };
            }
            self.report_progress();
            self.close_refused();
            let sleep = self.sleep_until_due();
            tokio::select! {
                event = self.network.next_event() => {
                    self.on_network(event)?;
                    self.drain_network().await?;
                }
                Some(losses) = self.losses.recv() => self.on_losses(losses)?,
                () = tokio::time::sleep(sleep) => self.feed(Input::Wake)?,
                _ = self.stop.recv(), if !self.stopping => {
                    self.stopping = true;
                    break match self.protocol.is_finished() {
                        true => Ending::Certified,
                        false => Ending::Stopped,
                    };
                }
            }
        };
        self.finish(ending).await
    }

    /// Takes what the network has ready, without waiting, so that a burst costs one turn.
    async fn drain_network(&mut self) -> Result<(), DaemonError> {
        for _ in 0..EVENTS_PER_TURN {
            let ready = tokio::select! {
                biased;
                event = self.network.next_event() => Some(event),
                () = std::future::ready(()) => None,
            };
            match ready {
                Some(event) => self.on_network(event)?,
                None => break,
            }
        }
        Ok(())
    }

    fn sleep_until_due(&self) -> Duration {
        let now = self.now();
        let due = self.protocol.deadline().map_or(Time(u64::MAX), |due| due.since(now));
        // At least twice a second, for progress and time-outs.
        Duration::from_nanos(due.0).min(Duration::from_millis(500))
    }

    async fn finish(mut self, ending: Ending) -> Result<Outcome, DaemonError> {
        self.store.flush()?;
        let report = self.evaluator.report();
        let missing = match ending {
            Ending::Certified => String::new(),
            _ => self.protocol.missing(),
        };
        let report = report.await.expect("the evaluator answers before it ends");
        let id = self.protocol.id();
        let peer_id = self.network.local_peer_id();
        let edges = self.protocol.edges();
        let edges = edges.filter_map(|(node, fired, done)| Some((peer_of(node)?, fired, done)));
        let edges = edges.collect();
        let (_, counters) = self.network.close(CLOSE_WAIT).await;
        Ok(Outcome {
            ending,
            id,
            peer_id,
            origin: self.protocol.roster().origin(&id),
            round: self.protocol.round().0,
            certified: self.protocol.certified(),
            members: self.protocol.roster().len(),
            digest: self.protocol.digest().to_string(),
            report,
            stats: self.protocol.stats(),
            counters,
            edges,
            missing,
        })
    }

    fn report_progress(&mut self) {
        if self.progressed.elapsed() < Duration::from_millis(100) {
            return;
        }
        self.progressed = Instant::now();
        let progress = Progress {
            round: self.protocol.round().0,
            certified: self.protocol.certified(),
            probes: self.protocol.stats().probes,
            peers: self.network.peers().len(),
            waits_for: self.protocol.stalled().map(str::to_owned),
            gathering: self.protocol.gathering(self.now()),
            addresses: self.network.listen_addrs(),
        };
        self.progress.send_replace(progress);
    }

    fn on_losses(&mut self, losses: Losses) -> Result<(), DaemonError> {
        let Losses { round, slot, plus, minus } = losses;
        self.feed(Input::Losses { round, slot, plus, minus })?;
        // What else has been measured meanwhile.
        while let Ok(Losses { round, slot, plus, minus }) = self.losses.try_recv() {
            self.feed(Input::Losses { round, slot, plus, minus })?;
        }
        Ok(())
    }

    /// One event into the protocol, and its effects out.
    fn feed(&mut self, input: Input) -> Result<(), DaemonError> {
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            let mut outputs = Vec::new();
            let now = self.now();
            self.protocol.handle(input, now, &mut outputs);
            for output in outputs {
                if let Some(input) = self.perform(output)? {
                    inputs.push(input);
                }
            }
        }
        self.store.flush()?;
        Ok(())
    }

    /// Carries out one effect. A frame that could not be sent comes back as an input.
    fn perform(&mut self, output: Output) -> Result<Option<Input>, DaemonError> {
        match output {
            Output::Record(entry) => self.store.append(&entry),
            Output::Pass { .. } => unreachable!("this protocol was not told to pass frames"),
            Output::Send { to, bytes } => {
                // Nothing leaves before what it follows from is written.
                self.store.flush()?;
                let sent = self.links.get(&to).map(|peer| self.network.send(*peer, bytes));
                if !matches!(sent, Some(Ok(()))) {
                    return Ok(Some(Input::NotSent(to)));
                }
            }
            Output::Request { to, request } => {
                if let Some(peer) = peer_of(to) {
                    let id = self.network.request(peer, request.encode());
                    self.requests.insert(id, to);
                }
            }
            Output::Probe { round, slot } => self.evaluator.probe(round, slot),
            Output::Apply(changes) => self.evaluator.apply(changes),
            Output::Misbehaved { peer, offence } => self.on_offence(peer, &offence),
            Output::Refused { peer, difference } => {
                let name = peer_of(peer).map(|peer| peer.to_string()).unwrap_or_default();
                error!(
                    "peer {name} takes part in another run: run.{} is {} here and {} there",
                    difference.field, difference.ours, difference.theirs
                );
                self.refused.entry(peer).or_insert_with(|| Instant::now() + FAREWELL);
            }
            Output::Event(event) => self.on_event(&event)?,
        }
        Ok(None)
    }

    fn on_offence(&mut self, node: NodeId, offence: &Offence) {
        let Some(peer) = peer_of(node) else { return };
        let count = self.offences.entry(node).or_insert(0);
        *count += 1;
        if *count == 1 {
            warn!(%peer, ?offence, "a peer broke the protocol");
        }
        if *count > OFFENCES_MAX || matches!(offence, Offence::Undecodable(_)) {
            self.offences.remove(&node);
            warn!(%peer, "connection closed, peer avoided for {} s", BAN.as_secs());
            self.refuse(node);
        }
    }

    /// Closes the links to nodes of other runs that have had time to hear why.
    fn close_refused(&mut self) {
        let now = Instant::now();
        let due: Vec<NodeId> =
            self.refused.iter().filter(|(_, at)| **at <= now).map(|(node, _)| *node).collect();
        for node in due {
            self.refused.remove(&node);
            self.refuse(node);
        }
    }

    fn refuse(&mut self, node: NodeId) {
        if let Some(peer) = peer_of(node) {
            self.network.ban(peer, BAN);
            self.sought.remove(&peer);
        }
    }

    fn on_event(&mut self, event: &Event) -> Result<(), DaemonError> {
        match event {
            Event::Started { members } => {
                info!(members, "the run has started");
                self.take_shard()?;
            }
            Event::Joined { height } => {
                info!(height = height.0, "this node is a member");
                self.take_shard()?;
            }
            Event::Closed { round, impatient: true } => {
                info!(round = round.0, "closed without waiting longer for records of others");
            }
            Event::Closed { .. } => {}
            Event::Certified { height, records, digest } => {
                debug!(height = height.0, records, %digest, "certified");
            }
            Event::Replaced { height } => {
                info!(height = height.0, "a larger certificate replaced a height");
            }
            Event::Stalled { reason } => debug!(reason, "stalled"),
            Event::Resumed => debug!("goes on"),
            Event::Equivocation { origin, height } => {
                let peer = peer_of(*origin).map(|peer| peer.to_string()).unwrap_or_default();
                warn!(
                    height = height.0,
                    "{peer} signed two contradicting segments; its records count for nothing"
                );
            }
            Event::CatchingUp { certified, target, from } => {
                let peer = peer_of(*from).map(|peer| peer.to_string()).unwrap_or_default();
                info!(certified, target, from = peer, "catching up from history");
            }
            Event::Finished { digest } => info!(%digest, "all rounds are certified"),
        }
        Ok(())
    }

    /// With private data: takes the shard of this node's position among the members.
    fn take_shard(&mut self) -> Result<(), DaemonError> {
        if self.shards == Shards::Public {
            return Ok(());
        }
        let roster = self.protocol.roster();
        let Some(origin) = roster.origin(&self.protocol.id()) else { return Ok(()) };
        let founders = roster.len_at(rumormill::id::Height(0)).max(1);
        let seed = self.protocol.manifest().seed;
        let rows = self
            .shards
            .rows(&self.labels, origin.index() % founders, founders, seed)
            .map_err(|error| DaemonError::Shards(error.to_string()))?;
        self.evaluator.set_rows(Arc::new(rows));
        Ok(())
    }

    fn on_network(&mut self, event: NetworkEvent) -> Result<(), DaemonError> {
        match event {
            NetworkEvent::Listening(address) => {
                let me = self.network.local_peer_id();
                info!("listening on {address}/p2p/{me}");
            }
            NetworkEvent::ListenFailed { addresses, reason } => {
                error!(?addresses, reason, "a listener stopped");
            }
            NetworkEvent::Connected { peer, address } => {
                debug!(%peer, %address, "connected");
                if let Some(node) = self.neighbor(peer) {
                    self.links.insert(node, peer);
                    self.feed(Input::Connected(node))?;
                }
            }
            NetworkEvent::Disconnected { peer, reason } => {
                debug!(%peer, %reason, "disconnected");
                if let Some(node) = node_of(peer) {
                    self.links.remove(&node);
                    self.feed(Input::Disconnected(node))?;
                }
                if matches!(reason, DownReason::Finished) {
                    self.sought.remove(&peer);
                }
            }
            NetworkEvent::Frame { peer, bytes } => {
                if let Some(from) = node_of(peer) {
                    self.feed(Input::Frame { from, bytes })?;
                }
            }
            NetworkEvent::BadPeer { peer, reason } => {
                warn!(%peer, ?reason, "a peer sent what is no frame; connection closed");
                self.network.ban(peer, BAN);
            }
            NetworkEvent::Discovered { peer, addresses } => self.on_discovered(peer, addresses),
            NetworkEvent::DialFailed { peer, address, reason, hint, retry_in } => {
                let peer = peer.map(|peer| peer.to_string()).unwrap_or_default();
                let address = address.map(|address| address.to_string()).unwrap_or_default();
                warn!(peer, address, reason, hint, ?retry_in, "cannot reach a peer");
            }
            NetworkEvent::Request { peer, bytes, token } => self.serve(peer, &bytes, token),
            NetworkEvent::Response { id, result, .. } => {
                let Some(from) = self.requests.remove(&id) else { return Ok(()) };
                let response = match result {
                    Ok(bytes) => match Response::decode(&bytes) {
                        Ok(response) => Some(response),
                        Err(error) => {
                            self.on_offence(from, &Offence::Undecodable(error.to_string()));
                            None
                        }
                    },
                    Err(error) => {
                        debug!(%error, "no answer");
                        None
                    }
                };
                self.feed(Input::Response { from, response })?;
            }
        }
        Ok(())
    }

    /// The node behind a peer, if this node talks to it.
    fn neighbor(&self, peer: PeerId) -> Option<NodeId> {
        let node = node_of(peer)?;
        match &self.neighbors {
            Neighbors::Only(neighbors) => neighbors.contains_key(&node).then_some(node),
            Neighbors::Found { .. } => Some(node),
        }
    }

    fn on_discovered(&mut self, peer: PeerId, addresses: Vec<Multiaddr>) {
        let Neighbors::Found { target, .. } = self.neighbors else { return };
        if self.network.is_banned(peer) || self.sought.contains(&peer) {
            return;
        }
        if self.sought.len() < target {
            info!(%peer, "found a peer");
            self.sought.insert(peer);
            self.network.want(peer, addresses);
        }
    }

    fn serve(&mut self, peer: PeerId, bytes: &[u8], token: ResponseToken) {
        let response = match Request::decode(bytes) {
            Ok(Request::Manifest) => Response::Manifest(Box::new(self.protocol.manifest().clone())),
            Ok(Request::Founders) => Response::Founders(self.protocol.founding().to_vec()),
            Ok(Request::History { from }) => {
                Response::History(self.store.history(from, HISTORY_BYTES))
            }
            Err(error) => {
                if let Some(node) = node_of(peer) {
                    self.on_offence(node, &Offence::Undecodable(error.to_string()));
                }
                Response::Nothing
            }
        };
        if let Err(error) = self.network.respond(token, response.encode()) {
            debug!(%peer, %error, "an answer was not sent");
        }
    }
}
