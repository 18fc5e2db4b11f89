//! A node: one loop around a [`Protocol`] value.
//!
//! One arm per source of events (network, evaluator, time, commands), each arm one call into the
//! protocol, and one function that turns each output into its effect.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Cursor, Seek};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use libp2p::{Multiaddr, PeerId};
use rumormill::data::shard::Shards;
use rumormill::fault::value::{Liar, Lie};
use rumormill::fault::wire::Saboteur;
use rumormill::fault::{Fault, FaultKind};
use rumormill::height::{CertifiedHeight, ChainDigest, MODEL_EVERY, model_digest};
use rumormill::id::{Height, NodeId, Origin, Round};
use rumormill::keys::Keys;
use rumormill::manifest::{Manifest, ManifestError};
use rumormill::message::{Request, Response};
use rumormill::params::{Layout, State};
use rumormill::protocol::{Change, Config, Event, Input, Offence, Output, Protocol, Stats};
use rumormill::sample::KeyedRng;
use rumormill::time::Time;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, error, info, warn};

use crate::catchup::{self, BEHIND_MIN, CatchUp, Fetch, ModelSource};
use crate::checkpoint::{Advance, Stand};
use crate::control::{Answer, Cause, Command, Counts, MemberLine, Request as Question, Status};
use crate::evaluator::{Evaluator, Losses, ProbeSettings, Report, Task};
use crate::fault::{Deceit, Lab, WITNESSES_MAX, Witness};
use crate::identity::{Identity, node_of, peer_of};
use crate::net::{Counters, Network, NetworkConfig, NetworkError, NetworkEvent, ResponseToken};
use crate::net::{DownReason, RequestId};
use crate::resume::{Logged, Move, ResumeError, resume};
use crate::siege::Siege;
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

/// Requests over the local interface that wait for the loop.
const COMMANDS_MAX: usize = 16;

/// How long a slow reader lets its neighbors wait for the next frame.
const SLOW_READ: Duration = Duration::from_secs(1);

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
    pub entries: Vec<Logged>,
    /// Models to go on from: the first whose chain is the run's.
    pub going_on_from: Vec<Advance>,
    /// Wait for the history to come to the checkpoint when the log does not reach so far.
    pub waits: bool,
    /// Where checkpoints are written, and how often.
    pub checkpoints: Option<Checkpoints>,
    /// Where the model comes from when the node is far behind.
    pub catch_up: ModelSource,
    /// Certified heights of which the history is kept, at least; 0 for all.
    pub retain_heights: u64,
    /// The key is older than the log: what it signed may not all be in there.
    pub doubt: bool,
    /// Stop although the run is not certified after this long.
    pub timeout: Option<Duration>,
    /// Go on serving history after the run is certified, until told to stop.
    pub stay: bool,
    /// In runs whose manifest allows it: what is needed to misbehave.
    pub lab: Option<Lab>,
}

/// How a node keeps checkpoints.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    /// The file; each one replaces the last.
    pub path: PathBuf,
    /// The least time between two; `None` writes one at the end only.
    pub every: Option<Duration>,
    /// The folder of those that others may fetch.
    pub directory: PathBuf,
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
    /// The log makes no node.
    #[error("{0}; restore the file, or move the data directory away and start as another node")]
    Log(#[from] ResumeError),
    /// The checkpoint that was asked for is of another history.
    #[error(
        "the checkpoint is of another history: after {height} heights the digest chain of the run is \
         not its {chain}; leave --resume out"
    )]
    Checkpoint {
        /// Heights in it.
        height: u64,
        /// Its chain.
        chain: ChainDigest,
    },
    /// The private shards cannot be cut.
    #[error("cannot cut the training rows into shards: {0}")]
    Shards(String),
    /// The thread that measures has ended: a graphics card may run out of memory, or fall off its bus.
    #[error(
        "the model cannot be measured any more: {0}; what was certified is kept, and the node goes on from there \
         when it is started again (with --device cpu, if a card has too little memory for it)"
    )]
    Compute(String),
    /// The fault cannot be injected; the node behaves.
    #[error("cannot inject the fault: {0}")]
    Fault(String),
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
    /// Mean weight of every origin in the rounds closed here, by roster position.
    pub weights: Vec<f64>,
    /// Mean trust of every origin in these rounds, in [−1, 1]; empty where the rule compares nobody.
    pub trust: Vec<f64>,
    /// Origins whose records counted for nothing in the end, with the round from which on.
    pub excluded: Vec<(Origin, u64)>,
    /// What audits said of every origin in the end, by roster position.
    pub audit_scores: Vec<Option<f64>>,
    /// The fault that was injected.
    pub fault: Option<Fault>,
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
    /// The digest chain, once every round is certified.
    pub finished: Option<String>,
}

/// The way to a running node.
#[derive(Clone)]
pub struct Handle {
    stop: mpsc::Sender<()>,
    commands: mpsc::Sender<Command>,
    /// The node's progress.
    pub progress: watch::Receiver<Progress>,
}

impl Handle {
    /// Asks the node to stop.
    pub fn stop(&self) {
        // A second request finds the first still there.
        let _ = self.stop.try_send(());
    }

    /// Asks the node over its local interface; `None` when it has ended.
    pub async fn ask(&self, request: Question) -> Option<Answer> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command { request, reply }).await.ok()?;
        answer.await.ok()
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
    commands: mpsc::Receiver<Command>,
    /// The node's own key, with which a saboteur signs.
    keys: Keys,
    lab: Option<Lab>,
    /// How it misbehaves now, and what carries that out.
    fault: Option<Fault>,
    saboteur: Option<Saboteur>,
    siege: Option<Siege>,
    /// When a slow reader read last.
    read_at: Instant,
    /// Sums of the origins' weights and trust over the rounds closed here, and how many these were.
    weights: Vec<f64>,
    trust: Vec<f64>,
    weighed: u64,
    /// A checkpoint that history has not come to yet. Until then the model is not the run's.
    awaited: Option<Advance>,
    checkpoints: Option<Checkpoints>,
    /// When the last checkpoint was taken, and how many heights were certified then.
    checkpoint_at: Instant,
    certified_then: u64,
    /// The model's tensors.
    layout: Layout,
    model_source: ModelSource,
    retain_heights: u64,
    /// Heights certified when the log was looked at last.
    compacted_then: u64,
    /// Neighbors that do not keep what is asked for.
    short_histories: BTreeSet<NodeId>,
    /// A neighbor that says it is far ahead, and how far.
    behind: Option<(NodeId, u64)>,
    catch_up: Option<CatchUp>,
    /// Models after certified heights whose hashes are known: told by the evaluator.
    models: mpsc::Receiver<Hashed>,
    hashed: mpsc::Sender<Hashed>,
    /// The last model that the evaluator was asked to hash.
    hashed_then: u64,
}

/// The model after certified heights, by its hash.
struct Hashed {
    certified: Height,
    chain: ChainDigest,
    state_hash: [u8; 32],
}

/// Heights in an answer from which on a node may be far behind; one that is not lacks two at most.
const NEWS_MIN: usize = 4;

/// Hashes that may wait for the loop; with more, the newest is dropped and not named in an ack.
const MODELS_MAX: usize = 4;

impl Daemon {
    /// Opens the sockets and puts back what the log says.
    ///
    /// # Errors
    /// See [`DaemonError`].
    pub fn new(setup: Setup) -> Result<(Daemon, Handle), DaemonError> {
        let keys = Keys::from_seed(setup.identity.seed());
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let config = Config { unix_s: unix.as_secs(), ..setup.config };
        let network = Network::new(setup.identity.to_keypair(), setup.network)?;
        let manifest = &setup.manifest;
        manifest.check()?;
        let settings = ProbeSettings {
            run: manifest.run_id(),
            batch: manifest.batch as usize,
            epsilon_log2: manifest.epsilon_log2,
        };
        let layout = setup.task.base.layout().clone();
        let (hashed, models) = mpsc::channel(MODELS_MAX);
        let (evaluator, losses) = Evaluator::start(setup.task, settings);
        let restored = setup.entries.len();
        let resumed = Instant::now();
        let mut model_from = "base";
        let (mut protocol, awaited) = resume(
            &setup.manifest,
            &keys,
            &config,
            &setup.entries,
            setup.going_on_from,
            setup.waits,
            &mut |of| match of {
                Move::Add(beyond) => {
                    model_from = "checkpoint";
                    evaluator.add(beyond);
                }
                Move::Apply(changes) => evaluator.apply(changes),
            },
        )?;
        drop(setup.entries);
        if setup.doubt {
            protocol.doubt_log();
        }
        if restored > 0 {
            info!(
                entries = restored,
                certified = protocol.certified(),
                model_from,
                seconds = format!("{:.2}", resumed.elapsed().as_secs_f64()),
                "resumed from the log"
            );
        }
        let (stop_sender, stop) = mpsc::channel(1);
        let (command_sender, commands) = mpsc::channel(COMMANDS_MAX);
        let (progress, watcher) = watch::channel(Progress::default());
        let fault = setup.lab.as_ref().and_then(|lab| lab.fault);
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
            commands,
            keys,
            lab: setup.lab,
            fault,
            saboteur: None,
            siege: None,
            read_at: Instant::now(),
            weights: Vec::new(),
            trust: Vec::new(),
            weighed: 0,
            awaited,
            checkpoints: setup.checkpoints,
            checkpoint_at: Instant::now(),
            certified_then: 0,
            layout,
            model_source: setup.catch_up,
            retain_heights: setup.retain_heights,
            compacted_then: 0,
            short_histories: BTreeSet::new(),
            behind: None,
            catch_up: None,
            models,
            hashed,
            hashed_then: 0,
        };
        daemon.certified_then = daemon.protocol.certified();
        daemon.seek();
        if daemon.protocol.is_started() {
            daemon.take_shard()?;
        }
        daemon.misbehave().map_err(DaemonError::Fault)?;
        let handle = Handle { stop: stop_sender, commands: command_sender, progress: watcher };
        Ok((daemon, handle))
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
        self.besiege();
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
        // Started again after the end: others need not be there any more.
        let was_finished = self.protocol.is_finished();
        self.feed(Input::Wake)?;
        let ending = loop {
            if !self.stay && self.catch_up.is_none() {
                let awaits = !was_finished && self.network.awaits_somebody();
                if self.protocol.is_done(self.now(), awaits) {
                    break Ending::Certified;
                }
            }
            if self.timeout.is_some_and(|timeout| self.started.elapsed() > timeout) {
                break match self.protocol.is_finished() {
                    true => Ending::Certified,
                    false => Ending::TimedOut,
                };
            }
            self.report_progress();
            self.settle_checkpoint()?;
            self.go_on_catching_up();
            self.checkpoint_if_due();
            self.name_model_if_due();
            self.compact_if_due();
            self.close_refused();
            let sleep = self.sleep_until_due();
            tokio::select! {
                event = self.network.next_event(), if self.reads() => {
                    self.read_at = Instant::now();
                    self.on_network(event)?;
                    self.drain_network().await?;
                }
                Some(command) = self.commands.recv() => self.on_command(command),
                losses = self.losses.recv() => match losses {
                    Some(losses) => self.on_losses(losses)?,
                    None => return Err(DaemonError::Compute(self.evaluator.failure())),
                },
                Some(Hashed { certified, chain, state_hash }) = self.models.recv() => {
                    self.protocol.tell_model(certified, chain, &state_hash);
                }
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
            if !self.reads() {
                break;
            }
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
        self.replay_kept("the node ends");
        self.publish();
        if self.checkpoints.is_some() && self.protocol.certified() > 0 {
            self.checkpoint(|written| {
                if let Err(error) = written {
                    warn!("no checkpoint: {error:#}");
                }
            });
        }
        let report = self.evaluator.report();
        let missing = match ending {
            Ending::Certified => String::new(),
            _ => self.protocol.missing(),
        };
        let Ok(report) = report.await else {
            return Err(DaemonError::Compute(self.evaluator.failure()));
        };
        let id = self.protocol.id();
        let peer_id = self.network.local_peer_id();
        let edges = self.protocol.edges();
        let edges = edges.filter_map(|(node, fired, done)| Some((peer_of(node)?, fired, done)));
        let edges = edges.collect();
        let rounds = self.weighed.max(1) as f64;
        let mean = |sums: &[f64]| sums.iter().map(|sum| sum / rounds).collect();
        let (weights, trust) = (mean(&self.weights), mean(&self.trust));
        let excluded = self.excluded_from().into_iter().collect();
        let audit_scores = self.audit_scores();
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
            weights,
            trust,
            excluded,
            audit_scores,
            fault: self.fault,
        })
    }

    /// Takes the awaited checkpoint's model when history has come to it.
    fn settle_checkpoint(&mut self) -> Result<(), DaemonError> {
        let Some(fits) = self.protocol.awaited_fits() else { return Ok(()) };
        let Some(Advance { stand, beyond }) = self.awaited.take() else { return Ok(()) };
        if !fits {
            return Err(DaemonError::Checkpoint { height: stand.height, chain: stand.chain });
        }
        info!(height = stand.height, "the checkpoint fits the certified history");
        self.evaluator.add(beyond);
        Ok(())
    }

    fn checkpoint_if_due(&mut self) {
        let Some(every) = self.checkpoints.as_ref().and_then(|of| of.every) else { return };
        let certified = self.protocol.certified();
        if self.checkpoint_at.elapsed() < every || certified == self.certified_then {
            return;
        }
        self.checkpoint(|written| {
            if let Err(error) = written {
                // The log has everything; only the next start takes longer.
                warn!("no checkpoint: {error:#}");
            }
        });
    }

    /// Begins to keep what history pays, before an answer is taken that brings much of it. That a neighbor
    /// says it is ahead is not enough: anybody may say so.
    fn fall_behind(&mut self, from: NodeId, heights: &[CertifiedHeight]) {
        let certified = self.protocol.certified();
        let claimed = self.behind.filter(|(by, _)| *by == from).map_or(0, |(_, target)| target);
        let brought = heights.last().map_or(0, |height| height.height.saturating_add(1));
        let target = claimed.max(brought);
        if let Some(catch_up) = &mut self.catch_up {
            return catch_up.aim(target);
        }
        let is_news = heights.first().is_some_and(|height| height.height == certified)
            && heights.len() >= NEWS_MIN;
        let keeps = self.model_source != ModelSource::History && self.awaited.is_none();
        if !is_news || !keeps || target < certified + BEHIND_MIN {
            return;
        }
        let first = Round(self.first_round(Height(certified)));
        let Some(mut paid) = self.protocol.take_back_from(first) else { return };
        self.evaluator.apply(paid.clone());
        invert(&mut paid);
        self.catch_up = Some(CatchUp::new(paid, target, from));
    }

    /// Decides where the model comes from once history has come, and whom to ask for a checkpoint.
    fn go_on_catching_up(&mut self) {
        let certified = self.protocol.certified();
        let Some(catch_up) = &mut self.catch_up else { return };
        if catch_up.is_full() {
            // More than is kept: replayed so far, and a checkpoint may still save the rest.
            self.evaluator.apply(catch_up.take());
        }
        if !catch_up.is_due(certified) {
            return;
        }
        if catch_up.is_fetching() {
            return self.replay_kept("the checkpoint takes too long");
        }
        let Some((at, digest)) = self.protocol.vouched_model() else {
            return self.replay_kept("no model is vouched for");
        };
        let first = self.first_round(at);
        let Some(catch_up) = &self.catch_up else { return };
        let Some(later) = self.protocol.take_back_from(Round(first)) else {
            return self.replay_kept("the model that is vouched for is too old");
        };
        let choice = catch_up.choose(self.model_source, later.len(), self.layout.dim());
        let estimates = format!(
            "{} directions to replay, about {:.1} s; the checkpoint after {} heights has {} bytes, about {:.1} s",
            choice.directions,
            choice.replay_s,
            at.0,
            4 * self.layout.dim(),
            choice.fetch_s
        );
        if !choice.fetch {
            return self.replay_kept(&estimates);
        }
        // Whoever is connected may have it; the first that has not costs a round trip.
        let Some(from) = self.links.keys().copied().find(|node| catch_up.may_ask(node)) else {
            let source = self.model_source;
            if self.catch_up.as_mut().is_some_and(|late| late.waits_for_neighbors(source, &choice))
            {
                return;
            }
            return self.replay_kept("no neighbor has the checkpoint");
        };
        info!("the model comes from a neighbor: {estimates}");
        self.ask_stretch(Fetch::new(at, digest, from));
    }

    fn first_round(&self, height: Height) -> u64 {
        height.0 * u64::from(self.protocol.manifest().rounds_per_height)
    }

    fn ask_stretch(&mut self, mut fetch: Fetch) {
        let (Some(catch_up), Some(peer)) = (&mut self.catch_up, peer_of(fetch.from)) else {
            return;
        };
        let offset = fetch.bytes.len() as u64;
        let request = Request::Checkpoint { certified: fetch.certified.0, offset };
        fetch.request = self.network.request(peer, request.encode());
        catch_up.begin(fetch);
    }

    /// Applies what was kept to the base model.
    fn replay_kept(&mut self, why: &str) {
        let Some(catch_up) = self.catch_up.take() else { return };
        let rest = catch_up.rest();
        info!(directions = rest.len(), "the history is replayed: {why}");
        self.evaluator.apply(rest);
    }

    /// A stretch of the checkpoint that is on its way, or an answer that came too late.
    fn on_stretch(&mut self, id: RequestId, answer: Option<Vec<u8>>) {
        let parameters = self.layout.dim();
        let fetch = self.catch_up.as_mut().and_then(|catch_up| catch_up.answered(id));
        let Some(mut fetch) = fetch else { return };
        let answer = answer.and_then(|bytes| Response::decode(&bytes).ok());
        let taken = match answer {
            Some(Response::Checkpoint { total, bytes }) => fetch.take(total, &bytes, parameters),
            _ => None,
        };
        if taken == Some(false) {
            return self.ask_stretch(fetch);
        }
        let Fetch { certified, digest, from, bytes, .. } = fetch;
        if let Some(catch_up) = &mut self.catch_up {
            // Nobody is asked twice.
            catch_up.give_up(from);
        }
        if taken.is_none() {
            return;
        }
        let peer = peer_of(from).map(|of| of.to_string()).unwrap_or_default();
        match self.checked(certified, digest, &bytes) {
            Ok(Some(state)) => self.take_model(certified, state, bytes.len()),
            // A larger certificate may have come since it was written: nobody's fault.
            Ok(None) => debug!(%peer, "a checkpoint of another history"),
            Err(error) => {
                warn!(%peer, "a false checkpoint: {error:#}; another node is asked");
                self.refuse(from);
            }
        }
    }

    /// The model of a checkpoint, if it is the one that the members have signed; `None` when it does not
    /// claim to be, as its history is another one.
    fn checked(
        &self,
        certified: Height,
        digest: [u8; 32],
        bytes: &[u8],
    ) -> anyhow::Result<Option<State>> {
        let run = self.protocol.run_id();
        let checkpoint = crate::checkpoint::decode(Cursor::new(bytes), run, &self.layout)?;
        let chain = self.protocol.chain_after(certified);
        let Some(chain) = chain.filter(|chain| *chain == checkpoint.stand.chain) else {
            return Ok(None);
        };
        let found = model_digest(certified.0, &chain, &checkpoint.state.hash());
        anyhow::ensure!(
            found == digest,
            "the members have signed model {}, this is {}",
            crate::run::hex(&digest),
            crate::run::hex(&found)
        );
        Ok(Some(checkpoint.state))
    }

    fn take_model(&mut self, certified: Height, state: State, bytes: usize) {
        let first = self.first_round(certified);
        // Not what was kept: a later round may pay along directions of an earlier one.
        let Some(mut rest) = self.protocol.take_back_from(Round(first)) else {
            return self.replay_kept("the checkpoint came too late");
        };
        invert(&mut rest);
        let Some(catch_up) = self.catch_up.take() else { return };
        let seconds = format!("{:.2}", catch_up.seconds());
        info!(
            bytes,
            seconds,
            directions = rest.len(),
            "the checkpoint after {} heights is the members' model; what came later is replayed",
            certified.0
        );
        self.evaluator.replace(state);
        self.evaluator.apply(rest);
    }

    /// Has the model hashed after every so many heights, for the acks, and written down for newcomers.
    fn name_model_if_due(&mut self) {
        let certified = self.protocol.certified() / MODEL_EVERY * MODEL_EVERY;
        if certified <= self.hashed_then || self.awaited.is_some() || self.catch_up.is_some() {
            return;
        }
        self.hashed_then = certified;
        let height = Height(certified);
        let round = self.first_round(height);
        let Some(beyond) = self.protocol.take_back_from(Round(round)) else { return };
        let Some(chain) = self.protocol.chain_after(height) else { return };
        let stand = Stand { run: self.protocol.run_id(), height: certified, round, chain };
        let directory = self.checkpoints.as_ref().map(|of| of.directory.clone());
        let hashed = self.hashed.clone();
        self.evaluator.show(beyond, move |state| {
            let state_hash = state.hash();
            // A full channel means that the loop is far behind: then the ack names no model.
            let _ = hashed.try_send(Hashed { certified: height, chain, state_hash });
            let Some(directory) = directory else { return };
            let path = catchup::served_path(&directory, height);
            match crate::checkpoint::write(&path, &stand, state) {
                Ok(()) => catchup::forget_served(&directory, height),
                Err(error) => warn!("no checkpoint for others: {error:#}"),
            }
        });
    }

    /// Drops from the log what nobody needs, after every so many certified heights.
    fn compact_if_due(&mut self) {
        let certified = self.protocol.certified() / MODEL_EVERY * MODEL_EVERY;
        // What is kept: heights that may still be replaced, and a model of a height of its own.
        let Some(settled) = certified.checked_sub(MODEL_EVERY) else { return };
        if certified == self.compacted_then || self.awaited.is_some() || self.catch_up.is_some() {
            return;
        }
        self.compacted_then = certified;
        let every = self.retain_heights.checked_next_multiple_of(MODEL_EVERY);
        let done = match every.unwrap_or(u64::MAX) {
            0 if self.store.has_grown() => self.store.compact(settled, None).map_err(Into::into),
            0 => Ok(()),
            every if settled % every == 0 && settled > self.store.first() => {
                self.drop_history(settled)
            }
            _ => Ok(()),
        };
        if let Err(error) = done {
            // Nothing is lost: it is tried again later.
            warn!("the log is not shortened: {error:#}");
        }
    }

    /// Drops the history before a height that is final.
    fn drop_history(&mut self, settled: u64) -> anyhow::Result<()> {
        let Some(Checkpoints { directory, .. }) = &self.checkpoints else { return Ok(()) };
        let model = catchup::served_path(directory, Height(settled));
        if !model.exists() {
            // The node came by this height while it was behind.
            return Ok(());
        }
        let first = settled.saturating_sub(self.protocol.looked_back());
        let heights = self.store.heights(first..settled);
        let foundation =
            heights.and_then(|heights| self.protocol.foundation(Height(settled), heights));
        let Some(foundation) = foundation else { return Ok(()) };
        // The model first: with it the old log is as good as the new one.
        let mut file =
            File::open(&model).with_context(|| format!("cannot read {}", model.display()))?;
        let checkpoint = crate::checkpoint::decode(&file, self.protocol.run_id(), &self.layout)?;
        anyhow::ensure!(
            checkpoint.stand.chain == foundation.chain(),
            "the model is of another history"
        );
        drop(checkpoint);
        file.rewind()?;
        crate::init::write_atomically_with(
            &directory.join(crate::checkpoint::BASE_NAME),
            |base| {
                std::io::copy(&mut file, base).with_context(|| model.display().to_string())?;
                Ok(())
            },
        )?;
        self.store.compact(settled, Some(Box::new(foundation)))?;
        info!(height = settled, "the history before this height was dropped");
        Ok(())
    }

    fn serve_checkpoint(&mut self, certified: u64, offset: u64) -> Response {
        let Some(Checkpoints { directory, .. }) = &self.checkpoints else {
            return Response::Nothing;
        };
        let path = catchup::served_path(directory, Height(certified));
        match catchup::stretch(&path, offset) {
            Ok((total, bytes)) => {
                let bytes = match &mut self.saboteur {
                    Some(saboteur) => saboteur.checkpoint(bytes),
                    None => bytes,
                };
                Response::Checkpoint { total, bytes }
            }
            Err(error) => {
                debug!(%error, certified, offset, "no such checkpoint");
                Response::Nothing
            }
        }
    }

    /// Has the model after the last certified height written down; `then` is told of it.
    fn checkpoint(&mut self, then: impl FnOnce(anyhow::Result<Stand>) + Send + 'static) {
        let Some(Checkpoints { path, .. }) = self.checkpoints.clone() else {
            return then(Err(anyhow::anyhow!("this node keeps no data directory")));
        };
        self.checkpoint_at = Instant::now();
        self.certified_then = self.protocol.certified();
        let per_height = u64::from(self.protocol.manifest().rounds_per_height);
        let round = self.protocol.certified() * per_height;
        let beyond = self.protocol.take_back_from(Round(round));
        let whole = self.awaited.is_none() && self.catch_up.is_none();
        let Some(beyond) = beyond.filter(|_| whole) else {
            return then(Err(anyhow::anyhow!("the model is still being put together")));
        };
        let stand = Stand {
            run: self.protocol.run_id(),
            height: self.protocol.certified(),
            round,
            chain: self.protocol.digest(),
        };
        self.evaluator.show(beyond, move |state| {
            then(crate::checkpoint::write(&path, &stand, state).map(|()| stand));
        });
    }

    fn report_progress(&mut self) {
        if self.progressed.elapsed() < Duration::from_millis(100) {
            return;
        }
        self.publish();
    }

    fn publish(&mut self) {
        self.progressed = Instant::now();
        let progress = Progress {
            round: self.protocol.round().0,
            certified: self.protocol.certified(),
            probes: self.protocol.stats().probes,
            peers: self.network.peers().len(),
            waits_for: match self.catch_up {
                Some(_) => Some("the history of the run".into()),
                None => self.protocol.stalled().map(str::to_owned),
            },
            gathering: self.protocol.gathering(self.now()),
            addresses: self.network.listen_addrs(),
            finished: self.protocol.is_finished().then(|| self.protocol.digest().to_string()),
        };
        self.progress.send_replace(progress);
    }

    fn on_losses(&mut self, losses: Losses) -> Result<(), DaemonError> {
        let Losses { probe, plus, minus } = losses;
        self.feed(Input::Losses { probe, plus, minus })?;
        // What else has been measured meanwhile.
        while let Ok(Losses { probe, plus, minus }) = self.losses.try_recv() {
            self.feed(Input::Losses { probe, plus, minus })?;
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
            Output::Record(entry) => {
                if let Some(saboteur) = &mut self.saboteur {
                    saboteur.record(&entry);
                }
                self.store.append(&entry);
            }
            Output::Pass { .. } => unreachable!("this protocol was not told to pass frames"),
            Output::Send { to, bytes } => {
                // Nothing leaves before what it follows from is written.
                self.store.flush()?;
                for bytes in self.frames(to, bytes) {
                    let sent = self.links.get(&to).map(|peer| self.network.send(*peer, bytes));
                    if !matches!(sent, Some(Ok(()))) {
                        return Ok(Some(Input::NotSent(to)));
                    }
                }
            }
            Output::Request { to, request } => {
                if let Some(peer) = peer_of(to) {
                    let id = self.network.request(peer, request.encode());
                    self.requests.insert(id, to);
                }
            }
            // The model is not there: nothing can be measured, and that has its own byte.
            Output::Probe(probe) | Output::Repeat(probe)
                if self.awaited.is_some() || self.catch_up.is_some() =>
            {
                // In its turn: the protocol takes losses in the order of its probes.
                self.evaluator.abstain(probe);
            }
            Output::Probe(probe) => self.evaluator.probe(probe),
            Output::Trail(_) if self.awaited.is_some() || self.catch_up.is_some() => {
                self.protocol.lose_trail();
            }
            Output::Trail(trail) => self.evaluator.trail(trail),
            Output::Repeat(probe) => self.evaluator.repeat(probe),
            Output::Apply(changes) => match &mut self.catch_up {
                Some(catch_up) => catch_up.keep(changes),
                None => self.evaluator.apply(changes),
            },
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
                self.misbehave().map_err(DaemonError::Fault)?;
            }
            Event::Joined { height } => {
                info!(height = height.0, "this node is a member");
                self.take_shard()?;
            }
            Event::Closed { round, impatient } => {
                if *impatient {
                    info!(round = round.0, "closed without waiting longer for records of others");
                }
                self.weigh(*round);
            }
            Event::Certified { height, records, digest } => {
                debug!(height = height.0, records, %digest, "certified");
            }
            Event::Replaced { height } => {
                info!(height = height.0, "a larger certificate replaced a height");
                // Models after it are others now.
                self.hashed_then = self.hashed_then.min(height.0 / MODEL_EVERY * MODEL_EVERY);
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
            Event::Convicted { origin, from, score } => {
                let peer = peer_of(*origin).map(|peer| peer.to_string()).unwrap_or_default();
                warn!(
                    from = from.0,
                    score = format!("{:.2}", score.correlation),
                    auditors = score.auditors,
                    samples = score.samples,
                    "{peer} is excluded: its bytes do not fit what others measure at the same place"
                );
            }
            Event::Doubted { origins, from } => {
                let names = origins.iter().map(name_of).collect::<Vec<String>>().join(", ");
                let names = if names.is_empty() { "nobody".into() } else { names };
                info!(from = from.0, "audits cast doubt on {names}: no weight for the time being");
            }
            Event::CatchingUp { certified, target, from } => {
                let peer = peer_of(*from).map(|peer| peer.to_string()).unwrap_or_default();
                info!(certified, target, from = peer, "catching up from history");
                self.behind = Some((*from, *target));
            }
            Event::Finished { digest } => {
                let dropped = self.protocol.stats().dropped;
                info!(%digest, dropped, "all rounds are certified");
            }
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

    /// Adds the weights and the trust of a round that was closed to the sums.
    fn weigh(&mut self, round: Round) {
        let Some(update) = self.protocol.update_of(round) else { return };
        for (sums, values) in
            [(&mut self.weights, &update.weights), (&mut self.trust, &update.trust)]
        {
            if sums.len() < values.len() {
                sums.resize(values.len(), 0.0);
            }
            sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
        }
        self.weighed += 1;
    }

    fn on_command(&mut self, command: Command) {
        let answer = match command.request {
            Question::Status => Answer::Status(Box::new(self.status())),
            Question::Checkpoint => {
                let reply = command.reply;
                return self.checkpoint(|written| {
                    let answer = match written {
                        Ok(stand) => {
                            Answer::Checkpoint { height: stand.height, round: stand.round }
                        }
                        Err(error) => Answer::Refused { reason: format!("{error:#}") },
                    };
                    // Who asked may be gone.
                    let _ = reply.send(answer);
                });
            }
            Question::Peers => Answer::Peers { members: self.member_lines() },
            Question::FaultSet { fault } => self.set_fault(Some(fault)),
            Question::FaultClear => self.set_fault(None),
        };
        // Who asked may be gone.
        let _ = command.reply.send(answer);
    }

    /// Origins whose records count for nothing, with the round from which on.
    fn excluded_from(&self) -> BTreeMap<Origin, u64> {
        let per_height = u64::from(self.protocol.manifest().rounds_per_height);
        let excluded = self.protocol.excluded().into_iter();
        excluded.map(|(origin, height)| (origin, height.saturating_mul(per_height))).collect()
    }

    fn audit_scores(&self) -> Vec<Option<f64>> {
        let scores = self.protocol.audit_scores().into_iter();
        scores.map(|score| Some(score?.correlation)).collect()
    }

    fn member_lines(&self) -> Vec<MemberLine> {
        let roster = self.protocol.roster();
        let convicted = self.protocol.convicted();
        let excluded = self.excluded_from();
        let scores = self.audit_scores();
        let doubted = self.protocol.doubted();
        let usual = self.weights.iter().sum::<f64>() / self.weights.len().max(1) as f64;
        let line = |at: usize| {
            let origin = Origin(at as u16);
            let id = roster.id(origin)?;
            let cause = excluded.get(&origin).map(|_| match convicted.contains_key(&origin) {
                true => Cause::Audits,
                false => Cause::Equivocation,
            });
            Some(MemberLine {
                node: name_of(id),
                connected: self.links.contains_key(id),
                weight: self.weights.get(at).filter(|_| usual > 0.0).map(|sum| sum / usual),
                trust: self.trust.get(at).map(|sum| sum / self.weighed.max(1) as f64),
                audit_score: scores[at],
                doubted: doubted.contains(&origin),
                excluded_from_round: excluded.get(&origin).copied(),
                cause,
            })
        };
        (0..roster.len()).filter_map(line).collect()
    }

    fn status(&self) -> Status {
        let roster = self.protocol.roster();
        let excluded = self.protocol.excluded();
        Status {
            run: self.protocol.run_id().to_string(),
            node: name_of(&self.protocol.id()),
            round: self.protocol.round().0,
            rounds: self.protocol.manifest().rounds_total(),
            certified: self.protocol.certified(),
            heights: self.protocol.manifest().heights(),
            probes: self.protocol.stats().probes,
            counts: Counts::new(&self.protocol.stats()),
            members: roster.len(),
            peers: self.links.values().map(PeerId::to_string).collect(),
            stalled: self.protocol.stalled().map(str::to_owned),
            excluded: excluded
                .keys()
                .filter_map(|&origin| roster.id(origin))
                .map(name_of)
                .collect(),
            fault: self.fault,
        }
    }

    fn set_fault(&mut self, fault: Option<Fault>) -> Answer {
        let refused = |reason: String| Answer::Refused { reason };
        if self.lab.is_none() {
            return refused(
                "the run does not allow faults to be injected: its manifest says lab = false"
                    .into(),
            );
        }
        let before = std::mem::replace(&mut self.fault, fault);
        match self.misbehave() {
            Ok(()) => Answer::Done,
            Err(reason) => {
                self.fault = before;
                refused(reason)
            }
        }
    }

    /// Whether the network is listened to now.
    fn reads(&self) -> bool {
        let slow = self.fault.is_some_and(|fault| fault.kind == FaultKind::SlowReader);
        !slow || self.read_at.elapsed() >= SLOW_READ
    }

    /// The frames that go out in place of the protocol's own.
    fn frames(&mut self, to: NodeId, bytes: Vec<u8>) -> Vec<Vec<u8>> {
        let Some(saboteur) = &mut self.saboteur else { return vec![bytes] };
        let roster = self.protocol.roster();
        let to = roster.origin(&to).map_or(0, Origin::index);
        saboteur.frames(roster.origin(&self.protocol.id()), to, bytes)
    }

    /// Makes the node do what its fault says, or behave.
    fn misbehave(&mut self) -> Result<(), String> {
        let (Some(lab), Some(fault)) = (&self.lab, self.fault) else {
            self.evaluator.deceive(None);
            (self.saboteur, self.siege) = (None, None);
            return Ok(());
        };
        let me = self.protocol.id();
        let manifest = self.protocol.manifest();
        let place = lab.colluders.iter().position(|node| *node == me).unwrap_or(0);
        let rng = |context| KeyedRng::from_seed(context, manifest.seed, place as u64);
        let deceit = match fault.kind.is_value() {
            true => {
                let liar = Liar::new(Lie::of(fault, place), rng("rumormill v1 lies"));
                Some(self.deceit(lab, liar)?)
            }
            false => None,
        };
        let saboteur = (!fault.kind.is_value()).then(|| {
            let rng = rng("rumormill v1 saboteur");
            Saboteur::new(fault.kind, manifest.clone(), self.keys.clone(), rng)
        });
        self.evaluator.deceive(deceit);
        self.saboteur = saboteur;
        self.besiege();
        warn!(%fault, "this node misbehaves, as it was told to");
        Ok(())
    }

    fn besiege(&mut self) {
        let targets: Vec<Multiaddr> = match &self.neighbors {
            Neighbors::Only(neighbors) => neighbors.values().flatten().cloned().collect(),
            Neighbors::Found { addresses, .. } => addresses.clone(),
        };
        let kind = self.fault.map(|fault| fault.kind);
        let manifest = self.protocol.manifest();
        self.siege = kind.and_then(|kind| Siege::start(kind, manifest, &targets));
    }

    /// A lie with those whose values it looks at.
    fn deceit(&self, lab: &Lab, liar: Liar) -> Result<Deceit, String> {
        let me = self.protocol.id();
        let roster = self.protocol.roster();
        let honest: Vec<(Origin, NodeId)> = roster
            .ids()
            .map(|(origin, id)| (origin, *id))
            .filter(|(_, id)| *id != me && !lab.colluders.contains(id))
            .collect();
        let founders = roster.len_at(rumormill::id::Height(0)).max(1);
        let shards = match (self.shards, liar.lie.needs_crowd()) {
            (Shards::Public, _) | (_, false) => None,
            (shards, true) => {
                let seed = self.protocol.manifest().seed;
                let cut = shards.split(&self.labels, founders, seed);
                Some(cut.map_err(|error| error.to_string())?)
            }
        };
        let rows = |origin: Origin| {
            let shard = shards.as_ref()?.get(origin.index() % founders)?;
            Some(Arc::new(shard.clone()))
        };
        let witnesses = honest.iter().take(WITNESSES_MAX);
        let witnesses = witnesses.map(|&(origin, id)| Witness { id, rows: rows(origin) });
        let flipped = match liar.lie.kind {
            FaultKind::LabelFlip => Some(lab.flipped().map_err(|error| format!("{error:#}"))?),
            _ => None,
        };
        Ok(Deceit {
            liar,
            witnesses: witnesses.collect(),
            honest: honest.len(),
            faulty: lab.colluders.len().max(1),
            rounds: self.protocol.manifest().rounds_total(),
            flipped,
            crowds: Arc::clone(&lab.crowds),
        })
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
                    self.short_histories.remove(&node);
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
            NetworkEvent::Response { id, result, peer, .. } => {
                let Some(from) = self.requests.remove(&id) else {
                    self.on_stretch(id, result.ok());
                    return Ok(());
                };
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
                if let Some(Response::HistoryFrom(first)) = response
                    && self.short_histories.insert(from)
                {
                    warn!(
                        "peer {peer} keeps the history from height {first} on only, and this node has \
                         {} heights: a peer with retain_heights = 0 is needed",
                        self.protocol.certified()
                    );
                }
                let was_behind = self.catch_up.is_some();
                let history = match &response {
                    Some(Response::History(heights)) => {
                        self.fall_behind(from, heights);
                        !heights.is_empty()
                    }
                    _ => false,
                };
                let before = self.protocol.certified();
                self.feed(Input::Response { from, response })?;
                let grew = self.protocol.certified() > before;
                if !was_behind && !grew {
                    // What was to show that this node is behind shows nothing.
                    self.replay_kept("the answer had no history");
                }
                if let Some(catch_up) = &mut self.catch_up
                    && (grew || !history)
                {
                    catch_up.hear(from, grew);
                }
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
            Ok(Request::History { from }) if from < self.store.first() => {
                Response::HistoryFrom(self.store.first())
            }
            Ok(Request::History { from }) => {
                let heights = self.store.history(from, HISTORY_BYTES);
                Response::History(match &mut self.saboteur {
                    Some(saboteur) => saboteur.history(heights),
                    None => heights,
                })
            }
            Ok(Request::Checkpoint { certified, offset }) => {
                self.serve_checkpoint(certified, offset)
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

/// Turns what takes changes back into what makes them.
fn invert(changes: &mut [Change]) {
    changes.iter_mut().for_each(|of| std::mem::swap(&mut of.from, &mut of.to));
}

/// A node's libp2p name.
fn name_of(node: &NodeId) -> String {
    peer_of(*node).map_or_else(|| node.to_string(), |peer| peer.to_string())
}
