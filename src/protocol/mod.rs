//! The protocol: one value that is told what happens and says what to do.
//!
//! [`Protocol::handle`] takes an [`Input`] and the time and appends [`Output`]s; nothing else moves
//! it. It has no sockets, files, clocks or threads, and the daemon and the simulator drive the same
//! value. Evaluating a loss is input and output: the protocol asks for a probe and is told two
//! losses.
//!
//! The parts, in the order in which data flows: `work` measures and closes rounds, `link` exchanges
//! with a neighbor, `agree` acknowledges and certifies heights.

mod acks;
mod agree;
mod audits;
mod cache;
mod config;
mod foundation;
mod input;
mod link;
mod models;
mod output;
mod passed;
mod recall;
mod sums;
mod work;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

pub use cache::Cache;
pub use config::{Config, EDGE_RATE_MAX, EDGE_RATE_MIN, EdgeRate, GradientClock};
pub use foundation::Foundation;
pub use input::Input;
pub use output::{Change, Entry, Event, Offence, Output, Probe, Trail};
pub use passed::Passed;

use crate::audit::{Sample, Score, section_len_max};
use crate::clock::PoissonClock;
use crate::height::{ChainDigest, Control, ControlKey, ModelDigest, RecordSet};
use crate::id::{Height, NodeId, Origin, Round, RunId};
use crate::keys::{Keys, Scheme};
use crate::ledger::{Context, Ledger, SegmentLimits};
use crate::manifest::{Founders, Manifest, ManifestError};
use crate::message::StartVote;
use crate::roster::Roster;
use crate::round::{Deal, RoundValues, directions, walk_len_max};
use crate::selection::{Measured, Standing};
use crate::start::{Start, founders_of};
use crate::time::Time;
use crate::update::{Coefficient, RoundUpdate};

use acks::Acks;
use link::Link;
use sums::Sums;
use work::Tally;

/// Certified heights that are kept in memory: a larger certificate may still replace them, and
/// neighbors that are behind may still get their records by exchange. Older ones are history.
const DEEP: u64 = 16;

/// Heights beyond the last certified one in which records are taken: the settings of height `h` are
/// known once `h − 2` is certified.
const OPEN: u64 = 2;

/// Certified heights before the deepest that may be replaced of which summaries and chains are kept, for a
/// foundation: one is made every sixteen heights, of one that has become final since.
const SPARE: u64 = 16;

/// Closed rounds beyond a height after which it is acknowledged although not all members have
/// been seen to go on.
const ACK_LAG: u64 = 2;

/// Neighbors whose frames are taken.
pub const LINKS_MAX: usize = 256;

/// What happened so far, for people and metrics.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    /// Probes measured.
    pub probes: u64,
    /// Records of others accepted for the first time, abstentions left out.
    pub accepted: u64,
    /// Bytes of these records.
    pub accepted_bytes: u64,
    /// Records received again.
    pub duplicates: u64,
    /// Bytes of all frames sent.
    pub bytes_sent: u64,
    /// Bytes of all frames received.
    pub bytes_received: u64,
    /// Exchanges begun.
    pub exchanges: u64,
    /// Time without any probe to measure, while the run was on.
    pub idle: Time,
    /// Time since the run started, until it was finished here.
    pub running: Time,
    /// Rounds closed for lack of patience.
    pub impatient: u64,
    /// Frames and statements that broke the protocol.
    pub offences: u64,
    /// Acks signed.
    pub acks: u64,
    /// Records that came too late to be certified.
    pub dropped: u64,
    /// Probes of others that were repeated.
    pub audits: u64,
}

/// One's own records of a height, signed or not.
#[derive(Clone, Debug, Default)]
struct Own {
    counts: Vec<u16>,
    bytes: Vec<u8>,
    signed_len: usize,
    closed: bool,
}

/// Everything about one height.
#[derive(Clone, Debug)]
struct HeightState {
    ledger: Ledger,
    controls: BTreeMap<ControlKey, Control>,
    /// The heaviest ack of each member.
    acks: Acks,
    /// Sets that this node acknowledged, growing. Bounded.
    signed: Vec<RecordSet>,
    /// The last set that was acknowledged before a restart: only larger ones may follow.
    signed_before: Option<RecordSet>,
    own: Own,
    certified: Option<RecordSet>,
    /// Something was added since the last ack.
    grown: bool,
    /// What is held lacks records acknowledged before: signing waits for them.
    is_short: bool,
    /// This node has signed what it does not remember: it signs nothing more.
    is_lost: bool,
    /// When all its rounds had been closed here.
    closed_at: Option<Time>,
    /// The own audits that are made at this height.
    work: Option<audits::Work>,
    /// The set of everything held, with the ledger's version and the number of control records.
    current: Option<(u64, usize, RecordSet)>,
}

impl HeightState {
    fn new(roster_len: usize) -> HeightState {
        HeightState {
            ledger: Ledger::new(roster_len),
            controls: BTreeMap::new(),
            acks: Acks::default(),
            signed: Vec::new(),
            signed_before: None,
            own: Own::default(),
            certified: None,
            grown: false,
            is_short: false,
            is_lost: false,
            closed_at: None,
            work: None,
            current: None,
        }
    }

    /// The set of everything that is held. Control records of an open height are only ever added.
    fn current_set(&mut self, height: u64) -> &RecordSet {
        let (version, controls) = (self.ledger.version(), self.controls.len());
        let fresh = self.current.as_ref().is_some_and(|c| (c.0, c.1) == (version, controls));
        if !fresh {
            let set = RecordSet::of(Height(height), &self.ledger, &self.controls, None);
            self.current = Some((version, controls, set));
        }
        &self.current.as_ref().expect("just made").2
    }

    /// Whether this node may add no more records of its own.
    fn is_frozen(&self) -> bool {
        let signed = !self.signed.is_empty() || self.signed_before.is_some();
        self.certified.is_some() || signed || self.is_lost
    }
}

/// What is the same for all nodes at one height.
#[derive(Clone, Debug)]
struct HeightParams {
    roster_len: usize,
    faulty: usize,
    exponent: i32,
    active: Vec<Origin>,
    limits: SegmentLimits,
    /// Probes of a node in a round that count: its walk may be shorter than the wire allows.
    walk_len: usize,
}

/// What later heights need to know of a certified one.
#[derive(Clone, Debug)]
struct Summary {
    active: Vec<Origin>,
    exponent_next: i32,
    /// What the audits in it found.
    audits: Vec<Sample>,
    /// Whom audits up to it cast doubt on: their records of the height after next have no weight.
    doubted: Vec<Origin>,
    /// How members agreed with each other in all rounds up to it, where the rule compares them.
    standing: Standing,
}

/// A node of a run.
pub struct Protocol {
    manifest: Manifest,
    run: RunId,
    keys: Keys,
    scheme: Scheme,
    me: NodeId,
    config: Config,
    cache: Option<Cache>,
    passes_frames: bool,
    start: Option<Start>,
    founding: Vec<StartVote>,
    roster: Roster,
    links: BTreeMap<NodeId, Link>,
    /// Neighbors that began an exchange before the run had started here: it is answered then.
    unanswered: BTreeSet<NodeId>,
    /// Members whose links were lost before they had certified the end, and when.
    cut_off: BTreeMap<NodeId, Time>,
    clock_streams: u64,

    heights: BTreeMap<u64, HeightState>,
    summaries: BTreeMap<u64, Summary>,
    /// Chain digest before each of the last heights.
    chains: BTreeMap<u64, ChainDigest>,
    certified: u64,
    /// Heights before the foundation, if the log began with one: they are not replaced.
    built_on: u64,
    /// Origins whose records count for nothing, from a height on.
    excluded: BTreeMap<Origin, u64>,
    /// Origins that audits convicted, with the height from which on their records do not count.
    convicted: BTreeMap<Origin, u64>,
    /// The scores that convicted them, as far as this node has derived them.
    verdicts: BTreeMap<Origin, Score>,
    /// Settings of heights as they were asked for, until something that they follow from changes.
    settings: RefCell<BTreeMap<u64, Arc<HeightParams>>>,

    /// The first round that is not closed.
    closed: u64,
    closed_since: Time,
    /// Rounds closed for lack of patience since the last certificate.
    impatient: u32,
    deals: BTreeMap<u64, Arc<Deal>>,
    /// Decoded rounds, as far as later rounds look at them.
    values: BTreeMap<u64, Measured>,
    applied: BTreeMap<u64, Arc<RoundUpdate>>,
    dirty: BTreeSet<u64>,
    /// The first round that the trailing model does not include; `None` where the caller has none.
    trailing: Option<u64>,
    /// The caller gets the model after so many heights if the chain is then this one: what earlier rounds
    /// pay out is not told until then.
    awaited: Option<(u64, ChainDigest)>,
    /// Whether the chain was that, once the height was reached.
    awaited_fits: Option<bool>,
    /// The caller's models after certified heights: the chain there, and the digest.
    models: BTreeMap<u64, (ChainDigest, ModelDigest)>,
    /// Sums of rounds of open heights, with rule `mean` and everything paid at once; where there are
    /// none, they are made when they are asked for.
    sums: BTreeMap<u64, Sums>,
    /// What is held of the oldest open round, until something that it follows from changes.
    tally: Option<Tally>,

    /// The round in which the next probe is made, and its position in the walk.
    round: u64,
    position: u32,
    outstanding: VecDeque<Probe>,
    last_loss_at: Time,
    /// Mean time of a probe, in seconds.
    probe_s: Option<f64>,
    gradient_clock: PoissonClock,
    gradient_due: Option<Time>,
    gradient_tokens: u32,
    probing: bool,
    stalled: Option<String>,
    finished_at: Option<Time>,
    started_at: Option<Time>,
    idle_since: Option<Time>,
    join_asked: Option<u64>,
    /// Set while neighbors are asked what they hold of this node, after a restart.
    recall: Option<recall::Recall>,
    stats: Stats,
}

impl Protocol {
    /// A node that knows the manifest and nothing else.
    ///
    /// # Errors
    /// The manifest is out of its ranges.
    pub fn new(manifest: Manifest, keys: Keys, config: Config) -> Result<Protocol, ManifestError> {
        manifest.check()?;
        let run = manifest.run_id();
        let (start, roster) = match &manifest.founders {
            Founders::Members(members) => (None, Roster::new(members)),
            Founders::Minimum(minimum) => {
                (Some(Start::new(run, usize::from(*minimum))), Roster::new(&[]))
            }
        };
        let gradient_clock = PoissonClock::new(&config.clock_seed, 0);
        let mut protocol = Protocol {
            run,
            scheme: keys.scheme(),
            me: keys.id(),
            keys,
            config,
            cache: None,
            passes_frames: false,
            start,
            founding: Vec::new(),
            roster,
            links: BTreeMap::new(),
            unanswered: BTreeSet::new(),
            cut_off: BTreeMap::new(),
            clock_streams: 1,
            heights: BTreeMap::new(),
            summaries: BTreeMap::new(),
            chains: BTreeMap::from([(0, ChainDigest::start(&run))]),
            certified: 0,
            built_on: 0,
            excluded: BTreeMap::new(),
            convicted: BTreeMap::new(),
            verdicts: BTreeMap::new(),
            settings: RefCell::default(),
            closed: 0,
            closed_since: Time::ZERO,
            impatient: 0,
            deals: BTreeMap::new(),
            values: BTreeMap::new(),
            applied: BTreeMap::new(),
            dirty: BTreeSet::new(),
            trailing: None,
            awaited: None,
            awaited_fits: None,
            models: BTreeMap::new(),
            sums: BTreeMap::new(),
            tally: None,
            round: 0,
            position: 0,
            outstanding: VecDeque::new(),
            last_loss_at: Time::ZERO,
            probe_s: None,
            gradient_clock,
            gradient_due: None,
            gradient_tokens: 0,
            probing: true,
            stalled: None,
            finished_at: None,
            started_at: None,
            idle_since: None,
            join_asked: None,
            recall: None,
            stats: Stats::default(),
            manifest,
        };
        if protocol.start.is_none() {
            protocol.open_heights();
        }
        Ok(protocol)
    }

    /// Shares results with other nodes of this process; it changes nothing that the node does.
    pub fn set_cache(&mut self, cache: Cache) {
        self.cache = Some(cache);
    }

    /// Gives frames of exchanges out as values from now on, for simulations: all neighbors are
    /// honest nodes of this process, and nobody needs the bytes.
    pub fn pass_frames(&mut self) {
        self.passes_frames = true;
    }

    /// Takes an event and appends what is to be done, in order.
    pub fn handle(&mut self, input: Input, now: Time, out: &mut Vec<Output>) {
        match input {
            Input::Wake => {}
            Input::Connected(peer) => self.on_connected(peer, now, out),
            Input::Disconnected(peer) => self.on_disconnected(peer, now),
            Input::Frame { from, bytes } => self.on_frame(from, &bytes, now, out),
            Input::Passed { from, frame } => self.on_passed(from, frame, now, out),
            Input::NotSent(peer) => {
                if let Some(link) = self.links.get_mut(&peer) {
                    link.lose_track();
                    link.unsay();
                }
            }
            Input::Losses { probe, plus, minus } => self.on_losses(probe, plus, minus, now),
            Input::Response { from, response } => self.on_response(from, response, now, out),
            Input::StopProbing => self.probing = false,
        }
        self.step(now, out);
    }

    /// Does everything that has become possible or due.
    fn step(&mut self, now: Time, out: &mut Vec<Output>) {
        self.found(now, out);
        if self.is_started() {
            if self.started_at.is_none() {
                self.started_at = Some(now);
                self.closed_since = now;
                out.push(Output::Event(Event::Started { members: self.roster.len() }));
            }
            self.answer_late(out);
            self.recall(now);
            self.close_rounds(now, out);
            self.acknowledge(now, out);
            self.certify(now, out);
            self.probe(now, out);
        }
        self.fire_edges(now, out);
        self.account(now);
    }

    /// When [`Input::Wake`] is due at the latest.
    pub fn deadline(&self) -> Option<Time> {
        let edges = self.links.values().map(Link::due);
        let patience = self.patience_due().into_iter().chain(self.ack_due());
        let patience = patience.chain(self.recall_due());
        edges.chain(self.gradient_due).chain(patience).min()
    }

    /// Gathers founders until the run has started.
    fn found(&mut self, now: Time, out: &mut Vec<Output>) {
        let Some(start) = &mut self.start else { return };
        start.beat(&self.keys, self.config.unix_s + now.as_secs_f64() as u64, now);
        if let Some(vote) = start.vote(&self.keys, now) {
            out.push(Output::Record(Entry::Vote(vote)));
        }
        if let Some(votes) = start.complete() {
            self.adopt_founders(votes, out);
        }
    }

    fn adopt_founders(&mut self, votes: Vec<StartVote>, out: &mut Vec<Output>) {
        let Founders::Minimum(minimum) = self.manifest.founders else { return };
        let founders = founders_of(&self.run, self.scheme, usize::from(minimum), &votes);
        if let (Some(founders), true) = (founders, self.start.is_some()) {
            self.roster = Roster::new(&founders);
            self.founding = votes.clone();
            self.start = None;
            out.push(Output::Record(Entry::Founded(votes)));
            self.open_heights();
        }
    }

    fn on_connected(&mut self, peer: NodeId, now: Time, out: &mut Vec<Output>) {
        if self.links.len() >= LINKS_MAX || peer == self.me {
            return;
        }
        let clock = PoissonClock::new(&self.config.clock_seed, self.clock_streams);
        self.clock_streams += 1;
        self.links.insert(peer, Link::new(clock, now));
        self.send_hello(peer, false, out);
    }

    fn on_disconnected(&mut self, peer: NodeId, now: Time) {
        self.unanswered.remove(&peer);
        let Some(link) = self.links.remove(&peer) else { return };
        // One that never exchanged anything may be leaving just now.
        let exchanged = link.has_exchanged() && !link.has_offended();
        if exchanged && link.certified() < self.manifest.heights() {
            self.cut_off.insert(peer, now);
        }
        self.cut_off.retain(|peer, _| self.roster.origin(peer).is_some());
    }

    /// Something changed that settings of heights and the sufficiency of rounds follow from.
    fn reconsider_settings(&mut self) {
        self.settings.get_mut().clear();
        self.tally = None;
    }

    /// So did something in open heights, other than that records were added.
    fn reconsider(&mut self) {
        self.reconsider_settings();
        self.sums.clear();
    }

    /// Makes the states of the heights in which records are taken.
    fn open_heights(&mut self) {
        self.reconsider_settings();
        for height in self.certified..self.certified + OPEN {
            let Some(params) = self.params(height) else { break };
            if self.heights.contains_key(&height) {
                continue;
            }
            self.heights.insert(height, HeightState::new(params.roster_len));
            if self.keeps_sums() {
                for round in self.first_round(height)..self.first_round(height + 1) {
                    let sums = self.no_sums(round, &params);
                    self.sums.insert(round, sums);
                }
            }
        }
    }

    /// The settings of a height, once height − 2 is certified.
    fn params(&self, height: u64) -> Option<Arc<HeightParams>> {
        if let Some(params) = self.settings.borrow().get(&height) {
            return Some(Arc::clone(params));
        }
        let params = Arc::new(self.derive_params(height)?);
        self.settings.borrow_mut().insert(height, Arc::clone(&params));
        Some(params)
    }

    fn derive_params(&self, height: u64) -> Option<HeightParams> {
        if height >= self.manifest.heights() || !self.is_started() {
            return None;
        }
        let roster_len = self.roster.len_at(Height(height));
        let all = (0..roster_len as u16).map(Origin);
        let (active, exponent) = if height < 2 {
            (all.collect(), self.manifest.scale_exponent)
        } else {
            let summary = self.summaries.get(&(height - 2))?;
            let new = |origin: &Origin| {
                self.roster.from(*origin).is_some_and(|from| from.0 + 1 >= height && from.0 > 0)
            };
            // Not of height − 1: that is still open when this height's first records are made.
            let counts = |origin: &Origin| !self.is_equivocator(*origin, height - 2);
            // A larger certificate may change when audits convicted somebody. His records count for
            // nothing from then on, but as long as that can change he keeps his place in the deal:
            // otherwise records that were measured before would count along other slots.
            let stays = |origin: &Origin| {
                self.is_convicted(*origin, height)
                    && !height.checked_sub(DEEP).is_some_and(|of| self.is_convicted(*origin, of))
            };
            let worked = |origin: &Origin| summary.active.binary_search(origin).is_ok();
            let active: Vec<Origin> = all
                .clone()
                .filter(|origin| worked(origin) || new(origin) || stays(origin))
                .filter(counts)
                .collect();
            let active = if active.is_empty() { all.collect() } else { active };
            (active, summary.exponent_next)
        };
        let slots = directions(&self.manifest, active.len());
        // The limits are the manifest's alone: a larger certificate may change who is active after
        // honest nodes have signed their records. What is beyond a walk is not decoded.
        let limits = SegmentLimits {
            rounds: self.manifest.rounds_per_height as usize,
            bytes_per_round: 2 * self.manifest.probes_per_round as usize,
            audits: section_len_max(&self.manifest),
        };
        let walk_len = walk_len_max(&self.manifest, slots) as usize;
        let faulty = self.manifest.faulty_of(roster_len);
        Some(HeightParams { roster_len, faulty, exponent, active, limits, walk_len })
    }

    fn is_excluded(&self, origin: Origin, height: u64) -> bool {
        self.is_equivocator(origin, height) || self.is_convicted(origin, height)
    }

    /// Whether it contradicted itself at a height or before.
    fn is_equivocator(&self, origin: Origin, height: u64) -> bool {
        self.excluded.get(&origin).is_some_and(|&from| from <= height)
    }

    fn is_convicted(&self, origin: Origin, height: u64) -> bool {
        self.convicted.get(&origin).is_some_and(|&from| from <= height)
    }

    fn is_doubted(&self, origin: Origin, height: u64) -> bool {
        let from = height.checked_sub(2).and_then(|from| self.summaries.get(&from));
        from.is_some_and(|summary| summary.doubted.binary_search(&origin).is_ok())
    }

    /// Origins whose records of a height are given no weight, in order.
    fn weightless(&self, height: u64) -> Vec<Origin> {
        let origins = (0..self.roster.len_at(Height(height)) as u16).map(Origin);
        let counts_not =
            |origin: &Origin| self.is_excluded(*origin, height) || self.is_doubted(*origin, height);
        origins.filter(counts_not).collect()
    }

    fn height_of(&self, round: u64) -> u64 {
        round / u64::from(self.manifest.rounds_per_height)
    }

    fn first_round(&self, height: u64) -> u64 {
        height * u64::from(self.manifest.rounds_per_height)
    }

    fn context(&self, height: u64, limits: SegmentLimits) -> Context<'_> {
        Context { run: &self.run, height: Height(height), scheme: self.scheme, limits }
    }

    fn offend(&mut self, peer: NodeId, offence: Offence, out: &mut Vec<Output>) {
        self.stats.offences += 1;
        if let Some(link) = self.links.get_mut(&peer) {
            link.offend();
        }
        out.push(Output::Misbehaved { peer, offence });
    }

    fn account(&mut self, now: Time) {
        let Some(started) = self.started_at else { return };
        let end = self.finished_at.unwrap_or(now);
        self.stats.running = end.since(started);
        let idle = self.outstanding.is_empty()
            && self.probing
            && self.round < self.manifest.rounds_total();
        match (idle, self.idle_since) {
            (true, None) => self.idle_since = Some(now),
            (false, Some(since)) => {
                self.stats.idle = self.stats.idle + now.since(since);
                self.idle_since = None;
            }
            _ => {}
        }
    }

    // What others may read.

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The run's identity.
    pub fn run_id(&self) -> RunId {
        self.run
    }

    /// This node.
    pub fn id(&self) -> NodeId {
        self.me
    }

    /// Whether the founders are known.
    pub fn is_started(&self) -> bool {
        self.start.is_none()
    }

    /// While the run gathers its founders: how many are present, and how many are needed.
    pub fn gathering(&self, now: Time) -> Option<(usize, usize)> {
        self.start.as_ref().map(|start| (start.present(now).len(), start.minimum()))
    }

    /// The votes that founded the run; empty when the manifest names the founders.
    pub fn founding(&self) -> &[StartVote] {
        &self.founding
    }

    /// All members.
    pub fn roster(&self) -> &Roster {
        &self.roster
    }

    /// The first round that is not closed.
    pub fn round(&self) -> Round {
        Round(self.closed)
    }

    /// Heights certified.
    pub fn certified(&self) -> u64 {
        self.certified
    }

    /// The digest chain after the last certified height.
    pub fn digest(&self) -> ChainDigest {
        self.chains[&self.certified]
    }

    /// Whether every round is certified.
    pub fn is_finished(&self) -> bool {
        self.certified == self.manifest.heights()
    }

    /// Whether this node may leave: everything is certified here, and all neighbors hold the same
    /// chain or have been waited for long enough. So are members that were cut off a short time ago,
    /// before they had certified the end: if the others left, they could not end. `awaits` says whether neighbors are
    /// expected that were never there: others may be through before a slow one has even started.
    pub fn is_done(&self, now: Time, awaits: bool) -> bool {
        let tag = self.digest().tag();
        let same = |link: &Link| {
            let ended = link.certified() == self.certified && link.tag() == tag;
            ended && link.has_heard_of(self.certified)
        };
        self.finished_at.is_some_and(|finished| {
            let is_gone = |lost: &Time| now.since(*lost) > self.config.linger;
            let none_left = !awaits && self.cut_off.values().all(is_gone);
            none_left && self.links.values().all(same) || now.since(finished) > self.config.linger
        })
    }

    /// What is waited for, when nothing can be measured.
    pub fn stalled(&self) -> Option<&str> {
        self.stalled.as_deref()
    }

    /// For every neighbor: how often this end of the edge's clock fired, and how many of the
    /// exchanges it began were completed. DADAO's constants hold for the realised rate.
    pub fn edges(&self) -> impl Iterator<Item = (NodeId, u64, u64)> + '_ {
        self.links.iter().map(|(peer, link)| {
            let (fired, completed) = link.realised();
            (*peer, fired, completed)
        })
    }

    /// Numbers for people and metrics.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// What a closed round paid out, with weights and trust of its origins; `None` where it is not
    /// closed or long certified.
    pub fn update_of(&self, round: Round) -> Option<&RoundUpdate> {
        self.applied.get(&round.0).map(Arc::as_ref)
    }

    /// Says that the caller has the model after `height` certified heights of the history with this
    /// chain, such as a checkpoint's: until as much is certified here, what the rounds of these heights
    /// pay out is not told. [`Self::awaited_fits`] says then whether the chains are the same; if not,
    /// the model is lost, and another protocol value must derive it.
    ///
    /// # Panics
    /// If something was certified before.
    pub fn await_model(&mut self, height: Height, chain: ChainDigest) {
        assert_eq!(self.certified, 0, "a model is awaited from the start");
        self.awaited = Some((height.0, chain));
        self.meet_model();
    }

    /// Whether the awaited model's history is this one; `None` before that is known.
    pub fn awaited_fits(&self) -> Option<bool> {
        self.awaited_fits
    }

    /// Compares the chains when the awaited height is reached.
    fn meet_model(&mut self) {
        // Later only where the log begins behind it.
        if let Some((height, chain)) = self.awaited.filter(|(height, _)| *height <= self.certified)
        {
            self.awaited_fits = Some(self.chains.get(&height) == Some(&chain));
            self.awaited = None;
        }
    }

    /// Whether the payouts of a round are told.
    fn is_told(&self, round: u64) -> bool {
        self.awaited.is_none_or(|(height, _)| self.height_of(round) >= height)
    }

    /// What closed rounds from `round` on have paid out, as the changes that take it back. `None` when
    /// some of it is forgotten.
    pub fn take_back_from(&self, round: Round) -> Option<Vec<Change>> {
        let kept = self.applied.range(round.0..self.closed.max(round.0));
        let all = kept.clone().count() as u64 == self.closed.saturating_sub(round.0);
        let coefficients = kept.flat_map(|(_, update)| &update.coefficients);
        let change =
            |of: &Coefficient| Change { round: of.round, slot: of.slot, from: of.value, to: 0 };
        all.then(|| coefficients.map(change).collect())
    }

    /// Origins whose records count for nothing, with the height from which on: they contradicted
    /// themselves, or audits convicted them.
    pub fn excluded(&self) -> BTreeMap<Origin, u64> {
        let mut excluded = self.excluded.clone();
        for (&origin, &from) in &self.convicted {
            let known = excluded.entry(origin).or_insert(from);
            *known = from.min(*known);
        }
        excluded
    }

    /// Origins that audits convicted, with the height from which on their records count for nothing.
    pub fn convicted(&self) -> &BTreeMap<Origin, u64> {
        &self.convicted
    }

    /// What the end of the run waits for, in words.
    pub fn missing(&self) -> String {
        if !self.is_started() {
            return "the founders of the run".into();
        }
        if self.is_finished() {
            return "neighbors that have not certified the end".into();
        }
        let height = self.certified;
        let roster_len = self.roster.len_at(Height(height));
        let quorum = self.manifest.quorum(roster_len);
        let acks = self.heights.get(&height).map_or(0, |state| state.acks.len());
        format!(
            "a certificate of height {height} ({acks} of {roster_len} members acknowledged it, \
             {quorum} with one digest are needed; rounds closed here: {})",
            self.closed
        )
    }
}
