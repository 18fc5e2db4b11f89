//! An exchange with a neighbor.
//!
//! When an edge's clock fires, the initiator says what it holds, the other answers with what the
//! initiator lacks and with what it holds itself, and the initiator sends what the other lacks:
//! one and a half round trips, after which both hold the same. Lists of what is held are
//! differences to the last one on the link; a gap in the frames' sequence makes the next one full.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Stats;
use super::{
    DEEP, EDGE_RATE_MAX, EDGE_RATE_MIN, EdgeRate, Event, OPEN, Offence, Output, Passed, Protocol,
};
use crate::clock::PoissonClock;
use crate::height::{Ack, ControlKey};
use crate::id::{Height, NodeId, Origin};
use crate::ledger::{Evidence, InsertError, Inserted, SegmentDelta, Told};
use crate::message::{Exchange, Frame, Have, Presence, Request, Stage, StartVote, Sums};
use crate::protocol::acks::ToldAcks;
use crate::protocol::agree::UNSIGNED;
use crate::protocol::work::round_part;
use crate::time::Time;

/// Bytes of segments in one frame; the rest waits for the next exchange.
const SEGMENT_BUDGET: usize = 1 << 18;

/// Acks in one frame, a quarter of its length; the rest waits for the next exchange.
const ACKS_MAX: usize = 2048;

/// How long an exchange or a request may stay unanswered.
const ANSWER_WAIT: Time = Time::from_millis(10_000);

/// Exchanges a second while a run gathers founders or ends, when latency matters more than bytes.
const EDGE_RATE_WAITING: f64 = 20.0;

/// The state of the link to a neighbor.
pub(super) struct Link {
    clock: PoissonClock,
    due: Time,
    greeted: bool,
    offended: bool,
    /// Bytes of each segment that the neighbor holds: by height, by origin.
    known: BTreeMap<u64, Vec<u16>>,
    /// Bytes of each segment that the neighbor knows to be held here.
    told: BTreeMap<u64, Vec<u16>>,
    /// Weight of each member's ack that the neighbor has, plus one: by height, by origin.
    acks: BTreeMap<u64, Vec<u64>>,
    /// The version of a height's acks of which the neighbor has all.
    acks_told: BTreeMap<u64, u64>,
    controls: BTreeSet<(u64, ControlKey)>,
    evidence: BTreeSet<(u64, Origin)>,
    /// By origin: 1 where the neighbor knows the segment of the last height to be closed.
    closed: Vec<u16>,
    /// Segments wanted whole by the neighbor, and from it. Both bounded by heights × roster.
    wanted_there: BTreeSet<(u64, u16)>,
    wanted_here: BTreeSet<(u64, u16)>,
    /// Heights below are forgotten.
    oldest: u64,
    sequence: u8,
    received: Option<u8>,
    lost_track: bool,
    send_full: bool,
    opened: Option<Time>,
    /// Heights certified here when the exchange under way was opened, and when the last one was that
    /// the neighbor answered.
    opened_at: u64,
    answered_at: Option<u64>,
    asked: Option<Time>,
    certified: u64,
    tag: [u8; 4],
    /// The certified height that was said here last.
    said_certified: u64,
    /// Exchanges since this node's certified height changed in which the neighbor was ahead.
    ahead: (u64, u32),
    /// Consecutive exchanges without news in either direction.
    quiet: u32,
    /// How often the clock fired here since the run started, and how many of the exchanges begun
    /// then were answered.
    fired: u64,
    completed: u64,
    /// The clock fired while an exchange was under way.
    again: bool,
    /// Mean time from opening an exchange to its answer, in seconds.
    round_trip_s: Option<f64>,
    /// Exchanges in which a height was acknowledged differently with equal lengths.
    disagreed: u32,
}

impl Link {
    pub(super) fn new(clock: PoissonClock, now: Time) -> Link {
        Link {
            clock,
            due: now,
            greeted: false,
            offended: false,
            known: BTreeMap::new(),
            told: BTreeMap::new(),
            acks: BTreeMap::new(),
            acks_told: BTreeMap::new(),
            controls: BTreeSet::new(),
            evidence: BTreeSet::new(),
            closed: Vec::new(),
            wanted_there: BTreeSet::new(),
            wanted_here: BTreeSet::new(),
            oldest: 0,
            sequence: 0,
            received: None,
            lost_track: false,
            send_full: true,
            opened: None,
            opened_at: 0,
            answered_at: None,
            asked: None,
            certified: 0,
            tag: [0; 4],
            said_certified: 0,
            ahead: (0, 0),
            quiet: 0,
            fired: 0,
            completed: 0,
            again: false,
            round_trip_s: None,
            disagreed: 0,
        }
    }

    pub(super) fn realised(&self) -> (u64, u64) {
        (self.fired, self.completed)
    }

    pub(super) fn due(&self) -> Time {
        self.due
    }

    pub(super) fn certified(&self) -> u64 {
        self.certified
    }

    /// What was said last may not have been heard.
    pub(super) fn unsay(&mut self) {
        self.said_certified = 0;
    }

    /// Begins the next exchange now.
    pub(super) fn hurry(&mut self, now: Time) {
        self.due = now;
    }

    /// Whether the neighbor was told that so much is certified here.
    pub(super) fn has_heard_of(&self, certified: u64) -> bool {
        self.said_certified >= certified
    }

    /// A link to a neighbor that has greeted, claims so many certified heights, and has answered or not.
    #[cfg(test)]
    pub(super) fn greeted(clock: PoissonClock, certified: u64, answered: bool) -> Link {
        let answered_at = answered.then_some(0);
        let received = answered.then_some(0);
        Link { greeted: true, certified, answered_at, received, ..Link::new(clock, Time::ZERO) }
    }

    pub(super) fn is_greeted(&self) -> bool {
        self.greeted
    }

    /// Whether a frame of an exchange came from the neighbor.
    pub(super) fn has_exchanged(&self) -> bool {
        self.received.is_some()
    }

    pub(super) fn offend(&mut self) {
        self.offended = true;
    }

    pub(super) fn has_offended(&self) -> bool {
        self.offended
    }

    /// Whether an exchange that was begun here was answered.
    pub(super) fn has_answered(&self) -> bool {
        self.answered_at.is_some()
    }

    /// Whether the neighbor has been asked what it holds of a height, and has said so.
    pub(super) fn has_told(&self, height: u64) -> bool {
        self.answered_at.is_some_and(|certified| height < certified + OPEN)
    }

    /// Bytes of an origin's segment that the neighbor holds, as it says.
    pub(super) fn known_len(&self, height: u64, origin: Origin) -> usize {
        usize::from(len_at(&self.known, height, origin.0))
    }

    /// Asks for the whole of a segment.
    pub(super) fn want_whole(&mut self, height: u64, origin: Origin) {
        self.wanted_here.insert((height, origin.0));
    }

    pub(super) fn tag(&self) -> [u8; 4] {
        self.tag
    }

    pub(super) fn lose_track(&mut self) {
        self.lost_track = true;
        self.resend();
    }

    /// Says everything again: what was on its way may be lost.
    fn resend(&mut self) {
        self.send_full = true;
        self.acks.clear();
        self.acks_told.clear();
        self.controls.clear();
        self.evidence.clear();
        self.closed.clear();
    }

    /// Whether the neighbor has been ahead of `mine` certified heights for some exchanges, so that
    /// acks alone will not do.
    pub(super) fn is_ahead_for_long(&self, mine: u64) -> bool {
        self.certified > mine + 1 || (self.ahead.0 == mine && self.ahead.1 >= 3)
    }

    /// Marks a request as asked; `false` while another is unanswered.
    pub(super) fn ask(&mut self, now: Time) -> bool {
        let free = self.asked.is_none_or(|asked| now.since(asked) > ANSWER_WAIT);
        if free {
            self.asked = Some(now);
        }
        free
    }

    pub(super) fn answered(&mut self) {
        self.asked = None;
        self.ahead.1 = 0;
    }

    /// Puts a frame on its way.
    pub(super) fn send(
        &mut self,
        to: NodeId,
        bytes: Vec<u8>,
        stats: &mut Stats,
        out: &mut Vec<Output>,
    ) {
        stats.bytes_sent += bytes.len() as u64;
        out.push(Output::Send { to, bytes });
    }

    /// Notes that the neighbor has a member's ack of this weight.
    fn note_ack(&mut self, height: u64, origin: Origin, weight: u64) {
        let known = self.acks.entry(height).or_default();
        if known.len() <= origin.index() {
            known.resize(origin.index() + 1, 0);
        }
        let known = &mut known[origin.index()];
        *known = (*known).max(weight.saturating_add(1));
    }

    /// Forgets what either side holds from a height on, whose roster has changed.
    pub(super) fn reopen(&mut self, height: u64) {
        self.known.split_off(&height);
        self.lose_track();
    }

    /// Forgets what is known about heights below `oldest`, and about those that the neighbor has
    /// certified: nothing of them is said any more. One more is kept, as frames overtake each other.
    fn forget(&mut self, oldest: u64) {
        let needed = oldest.max(self.certified.saturating_sub(1));
        while self.known.first_key_value().is_some_and(|(&height, _)| height < needed) {
            self.known.pop_first();
        }
        while self.told.first_key_value().is_some_and(|(&height, _)| height < needed) {
            self.told.pop_first();
        }
        while self.acks.first_key_value().is_some_and(|(&height, _)| height < needed) {
            self.acks.pop_first();
        }
        while self.acks_told.first_key_value().is_some_and(|(&height, _)| height < needed) {
            self.acks_told.pop_first();
        }
        if oldest == self.oldest {
            return;
        }
        self.oldest = oldest;
        let least = ControlKey::Join(NodeId([0; 32]));
        self.controls = self.controls.split_off(&(oldest, least));
        self.evidence = self.evidence.split_off(&(oldest, Origin(0)));
        self.wanted_there = self.wanted_there.split_off(&(oldest, 0));
        self.wanted_here = self.wanted_here.split_off(&(oldest, 0));
    }
}

/// Bytes of a segment in a frame, about, with so many new records.
fn budgeted(new: usize) -> usize {
    new + 80
}

/// Bytes of evidence in a frame, about.
fn evidence_len(evidence: &Evidence) -> usize {
    evidence.first.bytes.len() + evidence.second.bytes.len() + 1024
}

fn len_at(lens: &BTreeMap<u64, Vec<u16>>, height: u64, origin: u16) -> u16 {
    let lens = lens.get(&height).and_then(|lens| lens.get(usize::from(origin)));
    lens.copied().unwrap_or(0)
}

/// A height's lengths, for as many origins as the roster has.
fn lens_of(lens: &mut BTreeMap<u64, Vec<u16>>, height: u64, roster_len: usize) -> &mut Vec<u16> {
    let lens = lens.entry(height).or_default();
    if lens.len() < roster_len {
        lens.resize(roster_len, 0);
    }
    lens
}

/// Calls `visit` with every index at which `ours` is larger than `theirs`. Most are equal, and most
/// exchanges look at all: whole blocks are compared at once.
fn for_each_longer<T: Copy + PartialOrd>(ours: &[T], theirs: &[T], mut visit: impl FnMut(usize)) {
    const BLOCK: usize = 64;
    for (block, (ours, theirs)) in ours.chunks(BLOCK).zip(theirs.chunks(BLOCK)).enumerate() {
        let longer = ours.iter().zip(theirs).fold(false, |any, (a, b)| any | (a > b));
        if !longer {
            continue;
        }
        for (at, (a, b)) in ours.iter().zip(theirs).enumerate() {
            if a > b {
                visit(block * BLOCK + at);
            }
        }
    }
}

/// What a neighbor says of an origin's segment.
enum Statement {
    Delta(SegmentDelta),
    Told(Told),
}

impl Statement {
    fn of(&self) -> (u64, Origin) {
        match self {
            Statement::Delta(delta) => (delta.height, Origin(delta.origin)),
            Statement::Told(told) => (told.height, told.origin),
        }
    }

    fn into_delta(self) -> SegmentDelta {
        match self {
            Statement::Delta(delta) => delta,
            Statement::Told(told) => told.delta(),
        }
    }
}

impl Protocol {
    /// Begins an exchange on every edge whose clock has fired.
    pub(super) fn fire_edges(&mut self, now: Time, out: &mut Vec<Output>) {
        let due: Vec<NodeId> =
            self.links.iter().filter(|(_, link)| link.due <= now).map(|(peer, _)| *peer).collect();
        for peer in due {
            let rate = self.edge_rate(peer) / 2.0;
            let link = self.links.get_mut(&peer).expect("just listed");
            link.due = now + link.clock.wait(rate).max(Time(1));
            if !link.greeted {
                self.send_hello(peer, true, out);
                continue;
            }
            if let Some(start) = &self.start {
                let (present, votes) = start.told(&self.me, now);
                let frame = Frame::Start { present, votes };
                self.send_frame(peer, &frame, out);
                continue;
            }
            link.fired += 1;
            match link.opened {
                // The last exchange is under way: this one follows at once.
                Some(opened) if now.since(opened) < ANSWER_WAIT => {
                    link.again = true;
                    continue;
                }
                Some(_) => link.lose_track(),
                None => {}
            }
            self.open_exchange(peer, now, out);
        }
    }

    fn open_exchange(&mut self, peer: NodeId, now: Time, out: &mut Vec<Output>) {
        let certified = self.certified;
        let link = self.link_mut(peer);
        link.opened = Some(now);
        link.opened_at = certified;
        link.again = false;
        self.stats.exchanges += 1;
        self.send_exchange(peer, Stage::Open, out);
    }

    /// Exchanges a second on the edge to a neighbor, both ends together.
    fn edge_rate(&self, peer: NodeId) -> f64 {
        let share = self.config.edge_shares.get(&peer).copied().unwrap_or(1.0);
        let waiting = !self.is_started() || self.round >= self.manifest.rounds_total();
        let (round_trip_s, quiet) = self
            .links
            .get(&peer)
            .map_or((0.0, 0), |link| (link.round_trip_s.unwrap_or(0.0), link.quiet));
        let rate = match self.config.edge_rate {
            EdgeRate::PerSecond(rate) => return rate * share,
            EdgeRate::PerRound(exchanges) => {
                let round_s =
                    self.probe_s.unwrap_or(1e-3) * f64::from(self.manifest.probes_per_round);
                2.0 * exchanges / (round_s * self.links.len().max(1) as f64)
            }
        };
        // No more than the edge can complete: an exchange at a time from each end.
        let possible = EDGE_RATE_MAX.min(1.0 / round_trip_s.max(1e-6));
        let rate = (rate * share).clamp(EDGE_RATE_MIN, possible.max(EDGE_RATE_MIN));
        let rate = if waiting { rate.max(EDGE_RATE_WAITING) } else { rate };
        // Nothing new on either side for a while: nobody is waiting for this edge.
        (rate / f64::from(1_u32 << (quiet / 64).min(7))).max(EDGE_RATE_MIN)
    }

    fn send_frame(&mut self, to: NodeId, frame: &Frame, out: &mut Vec<Output>) {
        if let Some(link) = self.links.get_mut(&to) {
            link.send(to, frame.encode(), &mut self.stats, out);
        }
    }

    /// Says which run this node takes part in; `answer` asks for the same.
    pub(super) fn send_hello(&mut self, to: NodeId, answer: bool, out: &mut Vec<Output>) {
        let frame = Frame::Hello { manifest: Box::new(self.manifest.clone()), answer };
        self.send_frame(to, &frame, out);
    }

    /// Heights a neighbor may still need something of, and takes: not those that are open here only,
    /// which it would ignore and then be thought to hold.
    fn window(&self, neighbor_certified: u64) -> std::ops::Range<u64> {
        let oldest = self.certified.saturating_sub(DEEP);
        neighbor_certified.max(oldest)..self.certified.min(neighbor_certified) + OPEN
    }

    /// Builds and sends a frame of an exchange. A closing frame without content is not sent, unless it
    /// says that the run ended here.
    fn send_exchange(&mut self, peer: NodeId, stage: Stage, out: &mut Vec<Output>) {
        for height in self.certified..self.certified + OPEN {
            self.seal(height, false, out);
        }
        self.refresh_acks(out);
        let Some(mut link) = self.links.remove(&peer) else { return };
        link.forget(self.certified.saturating_sub(DEEP));
        let mut exchange = Exchange {
            sequence: link.sequence,
            stage,
            full: link.send_full && stage != Stage::Close,
            // A neighbor that has not noticed the restart would tell news only.
            ask_full: link.lost_track || (self.is_recalling() && !link.has_answered()),
            certified: self.certified,
            tag: self.digest().tag(),
            have: Vec::new(),
            segments: Vec::new(),
            acks: Vec::new(),
            controls: Vec::new(),
            evidence: Vec::new(),
            wanted: std::mem::take(&mut link.wanted_here).into_iter().collect(),
            sums: Vec::new(),
        };
        if exchange.full {
            link.told.clear();
            link.send_full = false;
        }
        let (mut segments, mut acks) = (Vec::new(), Vec::new());
        let mut used = 0;
        for height in self.window(link.certified) {
            if stage != Stage::Open {
                self.add_segments(height, &mut link, &mut used, &mut segments);
            }
            if stage != Stage::Close {
                exchange.have.extend(self.changed_lens(height, &mut link, exchange.full));
            }
            self.add_acks(height, &mut link, &mut acks);
            self.add_controls(height, &mut link, &mut exchange);
        }
        exchange.sums = self.sums(&mut link, stage);
        let empty = segments.is_empty()
            && acks.is_empty()
            && exchange.controls.is_empty()
            && exchange.evidence.is_empty()
            && exchange.wanted.is_empty()
            && exchange.sums.is_empty();
        link.quiet = if empty && exchange.have.is_empty() { link.quiet + 1 } else { 0 };
        let ended = self.is_finished() && !link.has_heard_of(self.certified);
        if stage != Stage::Close || !empty || ended {
            link.said_certified = self.certified;
            link.sequence = link.sequence.wrapping_add(1);
            link.lost_track = false;
            if self.passes_frames {
                let frame = Passed::new(exchange, segments, acks);
                self.stats.bytes_sent += frame.encoded_len() as u64;
                out.push(Output::Pass { to: peer, frame });
            } else {
                exchange.segments = segments.iter().map(Told::delta).collect();
                exchange.acks = acks.iter().map(ToldAcks::group).collect();
                link.send(peer, Frame::Exchange(exchange).encode(), &mut self.stats, out);
            }
        }
        self.links.insert(peer, link);
    }

    /// Lengths held that the neighbor does not know of.
    fn changed_lens(&self, height: u64, link: &mut Link, full: bool) -> Option<Have> {
        let held = self.heights.get(&height)?.ledger.lens();
        let told = lens_of(&mut link.told, height, held.len());
        if full {
            told.fill(0);
        }
        let mut lens = Vec::new();
        for_each_longer(held, told, |at| lens.push((at as u16, held[at])));
        for &(origin, len) in &lens {
            told[usize::from(origin)] = len;
        }
        (!lens.is_empty()).then_some(Have { height, lens })
    }

    /// Segments that the neighbor lacks.
    fn add_segments(
        &self,
        height: u64,
        link: &mut Link,
        used: &mut usize,
        segments: &mut Vec<Told>,
    ) {
        let Some(state) = self.heights.get(&height) else { return };
        let last = height + 1 == self.manifest.heights();
        let held = state.ledger.lens();
        let mut candidates: Vec<u16> = Vec::new();
        if last {
            link.closed.resize(held.len(), 0);
        }
        if link.wanted_there.range((height, 0)..=(height, u16::MAX)).next().is_some() {
            candidates.extend(0..held.len() as u16);
        } else {
            let known = lens_of(&mut link.known, height, held.len());
            for_each_longer(held, known, |at| candidates.push(at as u16));
            if last {
                for_each_longer(state.ledger.closed(), &link.closed, |at| {
                    candidates.push(at as u16);
                });
                candidates.sort_unstable();
                candidates.dedup();
            }
        }
        segments.reserve(candidates.len());
        let lens = state.ledger.lens();
        let known = lens_of(&mut link.known, height, lens.len());
        let told = lens_of(&mut link.told, height, lens.len());
        for at in candidates {
            let index = usize::from(at);
            let (Some(held), len) = (state.ledger.held(Origin(at)), lens[index]) else { continue };
            let whole = link.wanted_there.contains(&(height, at));
            // The last height's closing statement may come without new records.
            let closing = last && held.is_closed() && link.closed[index] == 0;
            let news = len > known[index] || closing;
            // Prefixes that a certificate vouches for have no signature.
            let unsigned = state.certified.is_some() && held.segment().signature == UNSIGNED;
            if unsigned || !(news || whole) || *used > SEGMENT_BUDGET {
                continue;
            }
            let offset = if whole { 0 } else { usize::from(known[index]) };
            *used += budgeted(usize::from(len) - offset);
            link.wanted_there.remove(&(height, at));
            if last && held.is_closed() {
                link.closed[index] = 1;
            }
            (known[index], told[index]) = (len, len);
            segments.push(Told { height, origin: Origin(at), offset, held: Arc::clone(held) });
        }
    }

    /// Acks that the neighbor lacks, grouped by the set they sign.
    fn add_acks(&self, height: u64, link: &mut Link, groups: &mut Vec<ToldAcks>) {
        let Some(state) = self.heights.get(&height) else { return };
        let version = state.acks.version();
        if link.acks_told.get(&height) == Some(&version) {
            return;
        }
        let known = link.acks.entry(height).or_default();
        let held = state.acks.weights();
        if known.len() < held.len() {
            known.resize(held.len(), 0);
        }
        let mut news = Vec::new();
        for_each_longer(held, known, |at| news.push(at));
        let mut told: usize = groups.iter().map(|group| group.acks.len() + 1).sum();
        let mut all = true;
        for at in news {
            if told > ACKS_MAX {
                all = false;
                break;
            }
            let origin = Origin(at as u16);
            let ack = state.acks.get(origin).expect("it has a weight");
            known[at] = held[at];
            told += 1;
            // A liar may sign one digest under two weights: the signature covers both.
            let same = |group: &ToldAcks| {
                (group.height, group.weight, group.digest) == (height, ack.weight, ack.digest)
            };
            let entry = (origin, Arc::clone(ack));
            match groups.iter_mut().find(|group| same(group)) {
                Some(group) => group.acks.push(entry),
                None => {
                    told += 1;
                    groups.push(ToldAcks {
                        height,
                        weight: ack.weight,
                        digest: ack.digest,
                        acks: vec![entry],
                    });
                }
            }
        }
        if all {
            link.acks_told.insert(height, version);
        }
    }

    fn add_controls(&self, height: u64, link: &mut Link, exchange: &mut Exchange) {
        let Some(state) = self.heights.get(&height) else { return };
        for (key, control) in &state.controls {
            if link.controls.insert((height, *key)) {
                exchange.controls.push((height, control.clone()));
            }
        }
        if state.certified.is_some() {
            return;
        }
        for (&origin, evidence) in state.ledger.evidence() {
            let held: usize = exchange.evidence.iter().map(evidence_len).sum();
            if held <= SEGMENT_BUDGET && link.evidence.insert((height, origin)) {
                exchange.evidence.push(evidence.clone());
            }
        }
    }

    /// Hashes of the segments of the oldest open height, when the neighbor has acknowledged another
    /// set of it although both hold the same lengths: somebody was told something else.
    fn sums(&self, link: &mut Link, stage: Stage) -> Vec<Sums> {
        let height = self.certified;
        let Some(state) = self.heights.get(&height) else { return Vec::new() };
        // Answers and closings come between two openings and say nothing of either.
        if stage != Stage::Open {
            return Vec::new();
        }
        if state.acks.tally().len() < 2 || state.signed.is_empty() {
            link.disagreed = 0;
            return Vec::new();
        }
        let mut sums = Vec::new();
        for at in 0..state.ledger.roster_len() as u16 {
            let Some(segment) = state.ledger.held(Origin(at)) else { continue };
            let len = state.ledger.len_of(Origin(at)) as u16;
            if len != len_at(&link.known, height, at) {
                link.disagreed = 0;
                return Vec::new();
            }
            let hash = segment.hash_of_prefix(usize::from(len));
            sums.push((at, len, hash[..8].try_into().expect("eight bytes")));
        }
        link.disagreed += 1;
        // The first exchanges after an ack differ because acks are on their way.
        if link.disagreed % 4 == 3 { vec![Sums { height, sums }] } else { Vec::new() }
    }

    /// A neighbor's frame.
    pub(super) fn on_frame(
        &mut self,
        from: NodeId,
        bytes: &[u8],
        now: Time,
        out: &mut Vec<Output>,
    ) {
        self.stats.bytes_received += bytes.len() as u64;
        if !self.links.contains_key(&from) {
            return;
        }
        match Frame::decode(bytes) {
            Err(error) => self.offend(from, Offence::Undecodable(error.to_string()), out),
            Ok(Frame::Hello { manifest, answer }) => self.on_hello(from, &manifest, answer, out),
            // The neighbor's hello was lost or is on its way: the edge's clock asks for it again.
            Ok(_) if !self.links[&from].greeted => {}
            Ok(Frame::Start { present, votes }) => self.on_start(from, present, votes, now, out),
            Ok(Frame::Exchange(mut exchange)) => {
                let segments = std::mem::take(&mut exchange.segments);
                let segments = segments.into_iter().map(Statement::Delta);
                self.on_exchange(from, exchange, segments, Vec::new(), now, out);
            }
        }
    }

    /// A neighbor's frame that was handed over as a value.
    pub(super) fn on_passed(
        &mut self,
        from: NodeId,
        frame: Passed,
        now: Time,
        out: &mut Vec<Output>,
    ) {
        self.stats.bytes_received += frame.encoded_len() as u64;
        if self.links.get(&from).is_some_and(|link| link.greeted) {
            let (exchange, segments, acks) = frame.into_parts();
            let segments = segments.into_iter().map(Statement::Told);
            self.on_exchange(from, exchange, segments, acks, now, out);
        }
    }

    fn on_hello(
        &mut self,
        from: NodeId,
        manifest: &crate::manifest::Manifest,
        answer: bool,
        out: &mut Vec<Output>,
    ) {
        if let Some(difference) = self.manifest.difference(manifest) {
            self.links.remove(&from);
            out.push(Output::Refused { peer: from, difference });
            return;
        }
        self.link_mut(from).greeted = true;
        if answer {
            self.send_hello(from, false, out);
        }
    }

    fn on_start(
        &mut self,
        from: NodeId,
        present: Vec<Presence>,
        votes: Vec<StartVote>,
        now: Time,
        out: &mut Vec<Output>,
    ) {
        let scheme = self.scheme;
        match &mut self.start {
            Some(start) => {
                let valid = present.into_iter().all(|node| start.hear(node, scheme, now))
                    && votes.into_iter().all(|vote| start.take(vote, scheme));
                if !valid {
                    let offence = Offence::InvalidStatement("presence or start vote".into());
                    self.offend(from, offence, out);
                }
            }
            // Still gathering there: the votes that founded the run end it.
            None if !self.founding.is_empty() => {
                let founding = self.founding.clone();
                let known = founding.iter().all(|vote| votes.contains(vote));
                if !known {
                    let frame = Frame::Start { present: Vec::new(), votes: founding };
                    self.send_frame(from, &frame, out);
                }
            }
            None => {}
        }
    }

    fn on_exchange(
        &mut self,
        from: NodeId,
        exchange: Exchange,
        segments: impl Iterator<Item = Statement>,
        acks: Vec<ToldAcks>,
        now: Time,
        out: &mut Vec<Output>,
    ) {
        if !self.is_started() {
            // The neighbor has started: ask who founded the run.
            let link = self.links.get_mut(&from).expect("checked by the caller");
            if link.ask(now) {
                out.push(Output::Request { to: from, request: Request::Founders });
            }
            if exchange.stage == Stage::Open {
                link.lose_track();
                self.unanswered.insert(from);
            }
            return;
        }
        let stage = exchange.stage;
        let is_first = !self.link_mut(from).has_exchanged();
        self.note(from, &exchange);
        if let Err(offence) = self.take_statements(from, exchange, segments, acks, out) {
            self.offend(from, offence, out);
        }
        self.close_rounds(now, out);
        self.acknowledge(now, out);
        self.certify(now, out);
        match stage {
            Stage::Open => {
                self.send_exchange(from, Stage::Answer, out);
                self.ask_history(from, now, out);
            }
            Stage::Answer => {
                self.on_answer(from, now, is_first);
                self.send_exchange(from, Stage::Close, out);
                self.ask_history(from, now, out);
                if self.links.get(&from).is_some_and(|link| link.again && link.opened.is_none()) {
                    self.open_exchange(from, now, out);
                }
            }
            Stage::Close => {}
        }
    }

    /// Answers the exchanges that neighbors began before the run had started here. They would wait
    /// for it in vain, and begin no other as long.
    pub(super) fn answer_late(&mut self, out: &mut Vec<Output>) {
        while let Some(peer) = self.unanswered.pop_first() {
            self.send_exchange(peer, Stage::Answer, out);
        }
    }

    fn on_answer(&mut self, from: NodeId, now: Time, is_first: bool) {
        let link = self.link_mut(from);
        if let Some(opened) = link.opened.take() {
            link.completed += 1;
            link.answered_at = Some(link.opened_at);
            if is_first {
                // It may have waited for the run to start there.
                return;
            }
            let took = now.since(opened).as_secs_f64();
            link.round_trip_s =
                link.round_trip_s.map(|mean| mean + (took - mean) / 8.0).or(Some(took));
        }
    }

    /// Notes what the neighbor holds and knows.
    fn note(&mut self, from: NodeId, exchange: &Exchange) {
        self.cut_off.remove(&from);
        let mine = self.certified;
        let heights = &self.heights;
        let roster_len = |height: u64| heights.get(&height).map(|state| state.ledger.roster_len());
        let link = self.links.get_mut(&from).expect("checked by the caller");
        let expected = link.received.map(|last| last.wrapping_add(1));
        if expected.is_some_and(|expected| expected != exchange.sequence) {
            link.lose_track();
        }
        link.received = Some(exchange.sequence);
        if exchange.ask_full {
            link.resend();
        }
        if exchange.full {
            link.known.clear();
        }
        if exchange.stage != Stage::Close || exchange.certified >= link.certified {
            link.certified = exchange.certified;
            link.tag = exchange.tag;
        }
        if link.certified > mine && exchange.stage != Stage::Close {
            let count = if link.ahead.0 == mine { link.ahead.1 + 1 } else { 1 };
            link.ahead = (mine, count);
        }
        for have in &exchange.have {
            let Some(roster_len) = roster_len(have.height) else { continue };
            let known = lens_of(&mut link.known, have.height, roster_len);
            for &(origin, len) in &have.lens {
                if let Some(known) = known[..roster_len].get_mut(usize::from(origin)) {
                    *known = len.max(*known);
                }
            }
        }
        for &(height, origin) in &exchange.wanted {
            if roster_len(height).is_some_and(|len| usize::from(origin) < len) {
                link.wanted_there.insert((height, origin));
            }
        }
        for sums in exchange.sums.iter().take(1) {
            let Some(state) = heights.get(&sums.height) else { continue };
            // One hash an origin: a frame could ask for the same long one many thousand times.
            for &(origin, len, hash) in sums.sums.iter().take(state.ledger.roster_len()) {
                let Some(segment) = state.ledger.held(Origin(origin)) else { continue };
                let held = state.ledger.len_of(Origin(origin));
                if held == usize::from(len) && segment.hash_of_prefix(held)[..8] != hash {
                    link.wanted_there.insert((sums.height, origin));
                }
            }
        }
    }

    /// Takes everything that is signed.
    fn take_statements(
        &mut self,
        from: NodeId,
        exchange: Exchange,
        mut segments: impl Iterator<Item = Statement>,
        acks: Vec<ToldAcks>,
        out: &mut Vec<Output>,
    ) -> Result<(), Offence> {
        let invalid = |what: String| Offence::InvalidStatement(what);
        let mut link = self.links.remove(&from).expect("frames are taken from links only");
        let me = self.roster.origin(&self.me);
        let refused = segments.find_map(|told| self.take_segment(&mut link, me, told, out).err());
        self.links.insert(from, link);
        if let Some(error) = refused {
            return Err(invalid(error.to_string()));
        }
        for evidence in exchange.evidence {
            self.take_evidence(from, evidence, out).map_err(|error| invalid(error.to_string()))?;
        }
        for (height, control) in exchange.controls {
            let key = control.key();
            if !self.take_control(height, control) {
                return Err(invalid("control record".into()));
            }
            // Only what is held here: anybody can invent wishes to join.
            if self.heights.get(&height).is_some_and(|s| s.controls.contains_key(&key)) {
                self.link_mut(from).controls.insert((height, key));
            }
        }
        for group in exchange.acks {
            if !(self.certified..self.certified + OPEN).contains(&group.height) {
                continue;
            }
            for (origin, seal) in group.acks {
                let ack = Ack { weight: group.weight, digest: group.digest, seal };
                if !self.take_ack(group.height, Origin(origin), ack) {
                    return Err(invalid(format!("ack of member {origin}")));
                }
                self.link_mut(from).note_ack(group.height, Origin(origin), group.weight);
            }
        }
        for told in acks {
            if !(self.certified..self.certified + OPEN).contains(&told.height) {
                continue;
            }
            self.take_checked_acks(&told);
            for (origin, _) in told.acks {
                self.link_mut(from).note_ack(told.height, origin, told.weight);
            }
        }
        Ok(())
    }

    fn link_mut(&mut self, peer: NodeId) -> &mut Link {
        self.links.get_mut(&peer).expect("frames are taken from links only")
    }

    fn take_segment(
        &mut self,
        link: &mut Link,
        me: Option<Origin>,
        statement: Statement,
        out: &mut Vec<Output>,
    ) -> Result<(), InsertError> {
        if let Statement::Told(told) = &statement
            && self.take_recent(link, me, told)
        {
            return Ok(());
        }
        let (height, origin) = statement.of();
        // Outside the open window: ignored, not punished. The neighbor may be ahead or behind.
        if !(self.certified..self.certified + OPEN).contains(&height) {
            return Ok(());
        }
        let Some(params) = self.params(height) else { return Ok(()) };
        if origin.index() >= params.roster_len {
            return Err(InsertError::UnknownOrigin(origin.0));
        }
        if me == Some(origin) {
            return self.take_own(link, statement.into_delta(), out);
        }
        let (run, scheme) = (self.run, self.scheme);
        let Some(state) = self.heights.get_mut(&height) else { return Ok(()) };
        let context = crate::ledger::Context {
            run: &run,
            height: Height(height),
            scheme,
            limits: params.limits,
        };
        let before = state.ledger.len_of(origin);
        let known = match &statement {
            Statement::Told(told) => state.ledger.insert_held(origin, told.offset, &told.held),
            Statement::Delta(delta) => {
                let checked = self.cache.as_ref().map(|cache| cache.lock());
                checked.and_then(|c| state.ledger.insert_checked(delta, &c.segments))
            }
        };
        let inserted = match known {
            Some(inserted) => inserted,
            None => {
                let id = self.roster.id(origin).expect("the roster is as long as the height's");
                let inserted = state.ledger.insert(&context, id, statement.into_delta())?;
                if let (Some(cache), Inserted::Extended(_)) = (&self.cache, &inserted) {
                    state.ledger.share(height, origin, &mut cache.lock().segments);
                }
                inserted
            }
        };
        let after = state.ledger.len_of(origin);
        match inserted {
            Inserted::Extended(_) => {
                state.grown = true;
                let segment = state.ledger.segment(origin).expect("just extended");
                let all = segment.records(params.limits);
                let news = &segment.bytes[before.min(all)..all];
                let records = news.iter().filter(|&&byte| byte != crate::lb8::ABSTAIN).count();
                self.stats.accepted += records as u64;
                self.stats.accepted_bytes += (records * size_of::<u8>()) as u64;
                let first = height * u64::from(self.manifest.rounds_per_height);
                if let Some(tally) = &self.tally
                    && (first..first + u64::from(self.manifest.rounds_per_height))
                        .contains(&tally.round)
                    && tally.round - first < segment.counts.len() as u64
                {
                    let within = (tally.round - first) as usize;
                    let after = round_part(&segment.counts, &segment.bytes, within);
                    let start: usize =
                        segment.counts[..within].iter().map(|&count| usize::from(count)).sum();
                    let held = before.saturating_sub(start).min(after.len());
                    let (before, after) = (tally.values(&after[..held]), tally.values(after));
                    self.tally_growth(origin, before, after);
                }
                let segment = self.heights[&height].ledger.segment(origin).expect("just extended");
                let excluded = self.is_excluded(origin, height);
                let mut end = 0;
                // Not the audit section, which comes after the rounds.
                let rounds = segment.counts.iter().take(params.limits.rounds);
                for (round, &count) in (first..).zip(rounds) {
                    let start = end;
                    end += usize::from(count);
                    if end <= before || count == 0 {
                        continue;
                    }
                    if round < self.closed {
                        self.dirty.insert(round);
                    }
                    if let Some(sums) = self.sums.get_mut(&round).filter(|_| !excluded) {
                        let part = &segment.bytes[start..end];
                        sums.add(origin, &part[..part.len().min(params.walk_len)]);
                    }
                }
            }
            Inserted::Duplicate(records) => self.stats.duplicates += records as u64,
            Inserted::NeedsWhole => {
                link.wanted_here.insert((height, origin.0));
                return Ok(());
            }
            Inserted::Equivocation => self.on_equivocation(height, origin, out),
        }
        for lens in [&mut link.known, &mut link.told] {
            let len = &mut lens_of(lens, height, params.roster_len)[origin.index()];
            *len = (*len).max(after as u16);
        }
        Ok(())
    }

    /// [`Self::take_segment`] as it mostly is between nodes of one process: a few records more, of
    /// which the beginning of the segment's memory tells everything. `false`, and nothing was changed,
    /// where it is not that simple.
    fn take_recent(&mut self, link: &mut Link, me: Option<Origin>, told: &Told) -> bool {
        let (height, origin) = (told.height, told.origin);
        let is_open = (self.certified..self.certified + OPEN).contains(&height);
        if !is_open || me == Some(origin) || self.is_excluded(origin, height) {
            return false;
        }
        let Some(params) = self.params(height) else { return false };
        let first = self.first_round(height);
        let Some(state) = self.heights.get_mut(&height) else { return false };
        let before = state.ledger.len_of(origin);
        let Some(recent) = told.held.recent(before) else { return false };
        // Not the audit section, which comes after the rounds.
        let recent = recent.filter(|&(within, _)| within < params.limits.rounds);
        let counted = self.tally.as_ref().map(|tally| (tally.round, tally.takes_sums()));
        if let Some((round, takes_sums)) = counted
            && recent.clone().any(|(within, _)| first + within as u64 == round)
            && !(takes_sums && self.sums.contains_key(&round))
        {
            return false;
        }
        let inserted = state.ledger.insert_held(origin, told.offset, &told.held);
        if !matches!(inserted, Some(Inserted::Extended(_))) {
            return false;
        }
        state.grown = true;
        let after = state.ledger.len_of(origin) as u16;
        let mut last = None;
        for (within, byte) in recent {
            let round = first + within as u64;
            let is_record = usize::from(byte != crate::lb8::ABSTAIN);
            self.stats.accepted += is_record as u64;
            self.stats.accepted_bytes += (is_record * size_of::<u8>()) as u64;
            if round < self.closed && last != Some(round) {
                self.dirty.insert(round);
            }
            last = Some(round);
            let Some(sums) = self.sums.get_mut(&round) else { continue };
            let before = sums.values_of(origin);
            sums.push(origin, byte, params.walk_len);
            let after = sums.values_of(origin);
            if after > before && self.tally.as_ref().is_some_and(|tally| tally.round == round) {
                self.tally_growth(origin, before, after);
            }
        }
        for lens in [&mut link.known, &mut link.told] {
            let len = &mut lens_of(lens, height, params.roster_len)[origin.index()];
            *len = (*len).max(after);
        }
        true
    }

    fn take_evidence(
        &mut self,
        from: NodeId,
        evidence: crate::ledger::Evidence,
        out: &mut Vec<Output>,
    ) -> Result<(), InsertError> {
        let (height, origin) = (evidence.height, Origin(evidence.origin));
        if !(self.certified..self.certified + OPEN).contains(&height) {
            return Ok(());
        }
        let Some(params) = self.params(height) else { return Ok(()) };
        let Some(&id) = self.roster.id(origin).filter(|_| origin.index() < params.roster_len)
        else {
            return Err(InsertError::UnknownOrigin(evidence.origin));
        };
        let (run, scheme) = (self.run, self.scheme);
        let Some(state) = self.heights.get_mut(&height) else { return Ok(()) };
        let context = crate::ledger::Context {
            run: &run,
            height: Height(height),
            scheme,
            limits: params.limits,
        };
        let new = state.ledger.insert_evidence(&context, &id, evidence)?;
        self.link_mut(from).evidence.insert((height, origin));
        if new {
            self.on_equivocation(height, origin, out);
        }
        Ok(())
    }

    pub(super) fn on_equivocation(&mut self, height: u64, origin: Origin, out: &mut Vec<Output>) {
        if let Some(state) = self.heights.get_mut(&height) {
            state.grown = true;
        }
        self.reconsider();
        let rounds = self.first_round(height)..self.first_round(height + 1).min(self.closed);
        self.dirty.extend(rounds);
        let id = *self.roster.id(origin).expect("checked by the caller");
        let height = Height(height);
        out.push(Output::Event(Event::Equivocation { origin: id, height }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::height::ChainDigest;
    use crate::keys::Keys;
    use crate::manifest::{Founders, Manifest};
    use crate::protocol::{Config, Input};

    /// Member 0 of four, which has certified the end, and a neighbor with so many certified heights of the
    /// same chain that it has exchanged frames with, or has not.
    fn finished(neighbor: u64, certified: u64, exchanged: bool) -> (Protocol, NodeId) {
        let founders = Founders::Members((0..4).map(|i| Keys::simulated(i).id()).collect());
        let manifest =
            Manifest { rounds: 8, rounds_per_height: 2, founders, ..Manifest::template() };
        let mut node = Protocol::new(manifest, Keys::simulated(0), Config::default()).unwrap();
        node.certified = node.manifest.heights();
        (node.closed, node.round) = (8, 8);
        node.chains.insert(node.certified, ChainDigest([4; 32]));
        node.finished_at = Some(Time::ZERO);
        let clock = PoissonClock::new(&[0; 32], 1);
        let link = Link::greeted(clock, certified, exchanged);
        let neighbor = Keys::simulated(neighbor).id();
        node.links.insert(neighbor, Link { tag: node.digest().tag(), ..link });
        (node, neighbor)
    }

    const END: u64 = 4;

    /// A frame without content.
    fn frame(stage: Stage, sequence: u8, certified: u64, tag: [u8; 4]) -> Vec<u8> {
        let exchange = Exchange {
            sequence,
            stage,
            full: false,
            ask_full: false,
            certified,
            tag,
            have: Vec::new(),
            segments: Vec::new(),
            acks: Vec::new(),
            controls: Vec::new(),
            evidence: Vec::new(),
            wanted: Vec::new(),
            sums: Vec::new(),
        };
        Frame::Exchange(exchange).encode()
    }

    /// A neighbor's answer may never come: its own exchanges must do.
    #[test]
    fn history_is_asked_for_in_exchanges_that_a_neighbor_begins() {
        let (mut node, from) = finished(1, END, true);
        (node.certified, node.finished_at) = (0, None);
        let asked = |out: &[Output]| out.iter().any(|of| matches!(of, Output::Request { .. }));
        let mut out = Vec::new();
        for sequence in 1..=3 {
            assert!(!asked(&out), "acks may be on their way");
            let bytes = frame(Stage::Open, sequence, 1, [1; 4]);
            node.handle(Input::Frame { from, bytes }, Time::ZERO, &mut out);
        }
        assert!(asked(&out));
    }

    #[test]
    fn a_node_leaves_when_all_have_ended_and_have_heard_that_it_has() {
        let (mut node, _) = finished(1, END, true);
        assert!(!node.is_done(Time::ZERO, false), "it was not told");
        node.handle(Input::Wake, Time::ZERO, &mut Vec::new());
        assert!(node.is_done(Time::ZERO, false));
        assert!(!node.is_done(Time::ZERO, true), "somebody is expected");
        let (mut node, neighbor) = finished(1, END, true);
        node.handle(Input::Wake, Time::ZERO, &mut Vec::new());
        node.handle(Input::NotSent(neighbor), Time::ZERO, &mut Vec::new());
        assert!(!node.is_done(Time::ZERO, false), "the frame was not sent");
        let (mut node, _) = finished(1, END - 1, true);
        node.handle(Input::Wake, Time::ZERO, &mut Vec::new());
        assert!(!node.is_done(Time::ZERO, false), "it has not ended");
    }

    #[test]
    fn the_end_is_said_in_a_closing_frame_of_its_own() {
        let (mut node, neighbor) = finished(1, END, true);
        for expected in [1, 0] {
            let mut out = Vec::new();
            node.send_exchange(neighbor, Stage::Close, &mut out);
            assert_eq!(out.len(), expected);
        }
    }

    #[test]
    fn a_member_that_is_cut_off_before_the_end_is_waited_for_a_while() {
        let lost_at = Time::from_millis(5_000);
        let lost = |number: u64, certified: u64, exchanged: bool| {
            let (mut node, neighbor) = finished(number, certified, exchanged);
            node.handle(Input::Disconnected(neighbor), lost_at, &mut Vec::new());
            // As if it had ended just now.
            node.finished_at = Some(lost_at);
            node
        };
        let later = lost_at + Config::default().linger + Time(1);
        let node = lost(1, END - 1, true);
        assert!(!node.is_done(lost_at, false) && node.is_done(later, false));
        let mut node = lost(1, END - 1, true);
        node.finished_at = Some(later);
        assert!(node.is_done(later, false), "it was lost long before the end");
        assert!(lost(1, END, true).is_done(lost_at, false), "it had certified the end");
        assert!(lost(1, END - 1, false).is_done(lost_at, false), "it was never there");
        assert!(lost(9, END - 1, true).is_done(lost_at, false), "it is no member");
        let (mut node, neighbor) = finished(1, END - 1, true);
        node.link_mut(neighbor).offend();
        node.handle(Input::Disconnected(neighbor), lost_at, &mut Vec::new());
        assert!(node.is_done(lost_at, false), "it is faulty");
    }

    #[test]
    fn a_member_that_is_back_is_no_longer_waited_for_as_cut_off() {
        let (mut node, neighbor) = finished(1, END - 1, true);
        let (mut other, _) = finished(1, END - 1, true);
        node.handle(Input::Disconnected(neighbor), Time::ZERO, &mut Vec::new());
        assert!(!node.is_done(Time::ZERO, false));
        node.links.append(&mut other.links);
        let bytes = frame(Stage::Close, 1, END, node.digest().tag());
        node.handle(Input::Frame { from: neighbor, bytes }, Time::ZERO, &mut Vec::new());
        assert!(node.is_done(Time::ZERO, false));
    }
}
