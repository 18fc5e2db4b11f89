//! Acknowledging and certifying heights, and catching up from certified history.

use std::sync::Arc;

use super::acks::ToldAcks;
use super::{ACK_LAG, DEEP, Entry, Event, OPEN, Offence, Output, Protocol};
use crate::height::{
    Ack, CONTROLS_MAX, CertifiedHeight, CertifiedSegment, Checked, Control, ControlKey, RecordSet,
};
use crate::id::{Height, NodeId, Origin};
use crate::keys::Signature;
use crate::ledger::{Ledger, Segment, counts_of_prefix};
use crate::message::{Request, Response};
use crate::time::Time;

/// Sets of one height that a node remembers having acknowledged.
const SIGNED_MAX: usize = 8;

impl Protocol {
    /// Signs the record sets of heights that are complete here, and those that have grown.
    pub(super) fn acknowledge(&mut self, now: Time, out: &mut Vec<Output>) {
        for height in self.certified..self.certified + OPEN {
            if !self.heights.contains_key(&height) || !self.may_acknowledge(height, now) {
                break;
            }
            self.seal(height, true, out);
            self.sign_set(height, out);
        }
    }

    /// Signs anew the sets that have grown since they were signed: once per exchange, so that
    /// late records cost one signature together.
    pub(super) fn refresh_acks(&mut self, out: &mut Vec<Output>) {
        for height in self.certified..self.certified + OPEN {
            let Some(state) = self.heights.get(&height) else { break };
            if state.grown && !state.signed.is_empty() {
                self.sign_set(height, out);
            }
        }
    }

    fn sign_set(&mut self, height: u64, out: &mut Vec<Output>) {
        let Some(params) = self.params(height) else { return };
        let Some(origin) = self.own_origin(&params).filter(|_| self.may_sign(height)) else {
            return;
        };
        let model = self.model_of_ack(height);
        let Some(state) = self.heights.get_mut(&height) else { return };
        state.grown = false;
        let set = state.current_set(height).clone();
        let last = state.signed.last();
        let floor = last.or(state.signed_before.as_ref());
        state.is_short = floor.is_some_and(|floor| !set.contains(floor));
        if state.is_short || last.is_some_and(|last| last.digest == set.digest) {
            return;
        }
        let logged = |at: usize| floor.is_some_and(|floor| floor.lens[at] == set.lens[at]);
        let segments = (0..state.ledger.roster_len())
            .filter(|&at| Origin(at as u16) != origin && !logged(at))
            .filter_map(|at| Some(Origin(at as u16)).zip(state.ledger.held(Origin(at as u16))))
            .map(|(origin, held)| (origin, Arc::clone(held)));
        out.push(Output::Record(Entry::Acked {
            height,
            set: set.clone(),
            segments: segments.collect(),
            evidence: state.ledger.evidence().values().cloned().collect(),
            controls: state.controls.values().cloned().collect(),
        }));
        let ack = Ack::sign(&self.run, Height(height), &self.keys, &set, model);
        state.acks.insert(origin, Arc::new(ack));
        if state.signed.len() == SIGNED_MAX {
            state.signed.remove(0);
        }
        state.signed.push(set);
        self.stats.acks += 1;
    }

    /// Whether a height is complete as far as this node can tell.
    fn may_acknowledge(&self, height: u64, now: Time) -> bool {
        let Some(state) = self.heights.get(&height) else { return false };
        let end = self.first_round(height + 1);
        if state.certified.is_some() || !state.signed.is_empty() || self.closed < end {
            return false;
        }
        let Some(params) = self.params(height) else { return false };
        let Some(me) = self.own_origin(&params) else { return false };
        if !self.may_sign(height) {
            return false;
        }
        // The height is closed here, so the next probe is beyond it; those under way still count.
        if self.is_measuring_before(end) {
            return false;
        }
        let beyond = |origin: &Origin| {
            *origin == me
                || self.heights.get(&(height + 1)).is_some_and(|s| s.ledger.len_of(*origin) > 0)
                || state.ledger.segment(*origin).is_some_and(|segment| segment.closed)
                || state.ledger.evidence().contains_key(origin)
        };
        self.closed >= end + ACK_LAG
            || params.active.iter().all(beyond)
            || self.ack_due().is_some_and(|due| due <= now)
    }

    fn is_measuring_before(&self, end: u64) -> bool {
        self.outstanding.iter().any(|probe| probe.of == self.me && probe.round.0 < end)
    }

    /// When the lowest open height is acknowledged although some members were not seen to go on.
    /// A node that is no member of it, or whose set lacks what it signed before a restart, has nothing
    /// to sign, and would wake for it without end.
    pub(super) fn ack_due(&self) -> Option<Time> {
        let state = self.heights.get(&self.certified)?;
        let params = self.params(self.certified)?;
        self.own_origin(&params)?;
        let waiting = self.may_sign(self.certified)
            && state.certified.is_none()
            && state.signed.is_empty()
            && (state.grown || !state.is_short)
            && !self.is_measuring_before(self.first_round(self.certified + 1));
        let closed_at = state.closed_at.filter(|_| waiting)?;
        let round_s = self.probe_s.unwrap_or(0.0) * f64::from(self.manifest.probes_per_round);
        let wait = self.config.patience.max(Time::from_secs_f64(2.0 * round_s));
        Some(closed_at + wait)
    }

    /// Signs the own records of a height that are not signed yet. Unless `all`, records wait until
    /// a block is full or their round was left.
    pub(super) fn seal(&mut self, height: u64, all: bool, out: &mut Vec<Output>) {
        let Some(params) = self.params(height) else { return };
        let Some(origin) = self.own_origin(&params).filter(|_| self.may_sign(height)) else {
            return;
        };
        let end = self.first_round(height + 1);
        let left = !self.probing || self.round >= end;
        let measuring = self.is_measuring_before(end);
        let last_height = height + 1 == self.manifest.heights();
        let first = self.first_round(height);
        let (round, probing) = (self.round, self.probing);
        let stalled = self.outstanding.is_empty();
        let block = self.config.block;
        let Some(state) = self.heights.get(&height) else { return };
        if state.is_frozen() {
            return;
        }
        if left && !measuring {
            self.append_audits(height);
        }
        let Some(state) = self.heights.get(&height) else { return };
        let own = &state.own;
        let unsigned = own.bytes.len() - own.signed_len;
        let closed = left && !measuring;
        let news = unsigned > 0 || (closed && last_height && !own.closed);
        let round_left = !probing || round >= first + own.counts.len() as u64;
        if !news || !(all || unsigned >= block || round_left || stalled || closed) {
            return;
        }
        let context = self.context(height, params.limits);
        let (counts, bytes) = (own.counts.clone(), own.bytes.clone());
        let segment = Segment::sign(&context, &self.keys, counts, bytes, closed);
        out.push(Output::Record(Entry::Own { height, segment: segment.clone() }));
        let state = self.heights.get_mut(&height).expect("looked up above");
        state.own.signed_len = segment.bytes.len();
        state.own.closed = closed;
        state.ledger.set_own(origin, segment);
        if let Some(cache) = &self.cache {
            state.ledger.share(height, origin, &mut cache.lock().segments);
        }
        state.grown = true;
    }

    /// Takes a member's ack. `false` when it is not signed by the member.
    pub(super) fn take_ack(&mut self, height: u64, origin: Origin, ack: Ack) -> bool {
        let (run, scheme) = (self.run, self.scheme);
        let roster_len = self.roster.len_at(Height(height));
        let Some(id) = self.roster.id(origin).filter(|_| origin.index() < roster_len) else {
            return false;
        };
        let Some(state) = self.heights.get_mut(&height) else { return true };
        if state.certified.is_some() || state.acks.has(origin, ack.weight) {
            return true;
        }
        let checked = self.cache.as_ref().and_then(|cache| cache.lock().ack(height, origin, &ack));
        let ack = match checked {
            Some(ack) => ack,
            None if !ack.is_signed_by(&run, Height(height), scheme, id) => return false,
            None => {
                let ack = Arc::new(ack);
                if let Some(cache) = &self.cache {
                    cache.lock().remember_ack(height, origin, &ack);
                }
                ack
            }
        };
        if *id == self.me {
            let floor = state.signed.last().or(state.signed_before.as_ref());
            let floor = floor.map(|set| (set.weight(), set.digest));
            let known = floor.is_some_and(|(weight, digest)| {
                ack.weight < weight || (ack.weight, ack.digest) == (weight, digest)
            });
            state.is_lost |= !known;
        }
        state.acks.insert(origin, ack);
        true
    }

    /// Takes acks that a node of this process has checked.
    pub(super) fn take_checked_acks(&mut self, told: &ToldAcks) {
        let roster_len = self.roster.len_at(Height(told.height));
        let Some(state) = self.heights.get_mut(&told.height) else { return };
        if state.certified.is_some() {
            return;
        }
        for (origin, ack) in &told.acks {
            if origin.index() < roster_len && !state.acks.has(*origin, told.weight) {
                state.acks.insert(*origin, Arc::clone(ack));
            }
        }
    }

    /// Takes a control record of an open height.
    pub(super) fn take_control(&mut self, height: u64, control: Control) -> bool {
        let (run, scheme) = (self.run, self.scheme);
        let ControlKey::Join(id) = control.key();
        // Only what all who work at this height know by now: one node may have certified the
        // admission while another still takes wishes, and their sets would never agree.
        let from = self.roster.origin(&id).and_then(|origin| self.roster.from(origin));
        if from.is_some_and(|from| from <= Height(height)) {
            return true;
        }
        let Some(state) = self.heights.get_mut(&height) else { return true };
        let room = state.controls.len() < CONTROLS_MAX;
        if state.certified.is_some() || state.controls.contains_key(&control.key()) || !room {
            return true;
        }
        if !control.is_valid_join(&run, Height(height), scheme) {
            return false;
        }
        state.controls.insert(control.key(), control);
        state.grown = true;
        true
    }

    /// Asks to become a member, in the next height that most have not acknowledged yet.
    pub(super) fn wish_to_join(&mut self) {
        let height = self.certified + 1;
        let member = self.roster.origin(&self.me).is_some();
        if member || !self.is_started() || self.join_asked.is_some_and(|asked| asked >= height) {
            return;
        }
        if let Some(state) = self.heights.get_mut(&height) {
            let control = Control::join(&self.run, Height(height), &self.keys);
            state.controls.insert(control.key(), control);
            state.grown = true;
            self.join_asked = Some(height);
        }
    }

    /// Certifies as many heights as have a quorum of acks for a set that is held here.
    pub(super) fn certify(&mut self, now: Time, out: &mut Vec<Output>) {
        while let Some(set) = self.certifiable() {
            let height = self.certified;
            self.complete(height, set, now, out);
        }
    }

    fn certifiable(&mut self) -> Option<RecordSet> {
        let height = self.certified;
        let quorum = self.manifest.quorum(self.roster.len_at(Height(height)));
        let state = self.heights.get_mut(&height)?;
        if !state.acks.tally().values().any(|&count| count >= quorum) {
            return None;
        }
        state.current_set(height);
        let current = state.current.as_ref().map(|current| &current.2);
        let tally = state.acks.tally();
        let certified = |set: &RecordSet| tally.get(&set.digest).is_some_and(|&n| n >= quorum);
        // Evidence that came since may have taken records which an older set still counts: then
        // it can be had from history only.
        let held = |set: &RecordSet| {
            let lens = set.lens.iter().enumerate();
            lens.into_iter()
                .all(|(at, &len)| state.ledger.len_of(Origin(at as u16)) >= usize::from(len))
        };
        state.signed.iter().chain(current).find(|set| certified(set) && held(set)).cloned()
    }

    /// A height is certified: its coefficients are those of exactly this set.
    fn complete(&mut self, height: u64, set: RecordSet, now: Time, out: &mut Vec<Output>) {
        assert_eq!(height, self.certified, "heights are certified in order");
        let end = self.first_round(height + 1);
        let state = self.heights.get_mut(&height).expect("only open heights are certified");
        let own = self.roster.origin(&self.me);
        for at in 0..state.ledger.roster_len() {
            let origin = Origin(at as u16);
            let certified_len = usize::from(set.lens[at]);
            let Some(segment) = state.ledger.segment(origin) else { continue };
            if own == Some(origin) {
                self.stats.dropped += state.own.bytes.len().saturating_sub(certified_len) as u64;
            }
            if segment.bytes.len() > certified_len {
                // A prefix has no signature of its own; the certificate vouches for it.
                let prefix = Segment {
                    counts: counts_of_prefix(&segment.counts, certified_len),
                    bytes: segment.bytes[..certified_len].to_vec(),
                    closed: true,
                    signature: UNSIGNED,
                };
                state.ledger.set_certified(origin, (certified_len > 0).then_some(prefix));
            }
        }
        state.controls.retain(|key, _| set.controls.contains(key));
        state.acks.keep_only(&set.digest);
        state.certified = Some(set.clone());
        state.current = None;
        self.reconsider_settings();
        self.sums = self.sums.split_off(&end);
        for &origin in &set.equivocators {
            self.exclude(origin, height);
            self.dirty.extend(end..self.closed.max(end));
        }
        while self.closed < end {
            self.close(self.closed, now);
        }
        self.dirty.extend(self.first_round(height)..end);
        self.settle(out);
        self.advance(height, &set, now, out);
    }

    /// Extends the digest chain and opens the next height.
    fn advance(&mut self, height: u64, set: &RecordSet, now: Time, out: &mut Vec<Output>) {
        let mut coefficients = Vec::new();
        for (_, update) in
            self.applied.range(self.first_round(height)..self.first_round(height + 1))
        {
            coefficients.extend(update.digest_bytes());
        }
        let digest = self.chains[&height].next(&set.digest, &coefficients);
        self.chains.insert(height + 1, digest);
        let summary = self.summarize(height);
        self.summaries.insert(height, summary);
        self.judge(height, out);
        self.reconsider_settings();
        for key in &set.controls {
            let ControlKey::Join(id) = key;
            if self.roster.admit(*id, Height(height + 2)) && *id == self.me {
                out.push(Output::Event(Event::Joined { height: Height(height + 2) }));
            }
        }
        out.push(Output::Record(Entry::Certified(self.export(height))));
        self.certified = height + 1;
        self.meet_model();
        self.impatient = 0;
        out.push(Output::Event(Event::Certified {
            height: Height(height),
            records: set.records(),
            digest,
        }));
        self.forget();
        self.open_heights();
        self.wish_to_join();
        if self.is_finished() && self.finished_at.is_none() {
            self.finished_at = Some(now);
            // Neighbors are to hear of it before their own clocks fire.
            self.links.values_mut().for_each(|link| link.hurry(now));
            out.push(Output::Event(Event::Finished { digest }));
        }
    }

    /// Drops what can no longer change.
    fn forget(&mut self) {
        let oldest = self.certified.saturating_sub(DEEP);
        // The audits of a height that may be replaced are of records two heights before it.
        self.heights = self.heights.split_off(&oldest.saturating_sub(2));
        self.forget_past(oldest);
        let round = self.first_round(oldest);
        self.deals = self.deals.split_off(&round);
        self.applied = self.applied.split_off(&round);
        let reach = u64::from(self.manifest.window);
        self.values = self.values.split_off(&round.saturating_sub(reach));
    }

    /// A certified height as others need it.
    fn export(&self, height: u64) -> CertifiedHeight {
        let state = &self.heights[&height];
        let set = state.certified.as_ref().expect("only certified heights are exported");
        let segments = || {
            let segments = (0..state.ledger.roster_len() as u16).filter_map(|origin| {
                let segment = state.ledger.segment(Origin(origin))?;
                (!segment.bytes.is_empty()).then(|| CertifiedSegment {
                    origin,
                    counts: segment.counts.clone(),
                    bytes: segment.bytes.clone(),
                })
            });
            segments.collect()
        };
        CertifiedHeight {
            height,
            segments: match &self.cache {
                Some(cache) => cache.lock().export(height, set.digest, segments),
                None => Arc::new(segments()),
            },
            equivocators: set.equivocators.iter().map(|origin| origin.0).collect(),
            controls: state.controls.values().cloned().collect(),
            weight: set.weight(),
            acks: state.acks.iter().map(|(origin, ack)| (origin.0, ack.seal)).collect(),
        }
    }

    /// A neighbor's answer to a request.
    pub(super) fn on_response(
        &mut self,
        from: NodeId,
        response: Option<Response>,
        now: Time,
        out: &mut Vec<Output>,
    ) {
        if let Some(link) = self.links.get_mut(&from) {
            link.answered();
        }
        match response {
            Some(Response::Founders(votes)) => self.adopt_founders(votes, out),
            Some(Response::History(heights)) => {
                for certified in heights {
                    if let Err(offence) = self.adopt(certified, now, out) {
                        self.offend(from, offence, out);
                        break;
                    }
                }
                self.wish_to_join();
            }
            Some(
                Response::Manifest(_)
                | Response::HistoryFrom(_)
                | Response::Checkpoint { .. }
                | Response::Nothing,
            )
            | None => {}
        }
    }

    /// Adopts a certified height from history: the next one, or a larger set of a recent one.
    fn adopt(
        &mut self,
        certified: CertifiedHeight,
        now: Time,
        out: &mut Vec<Output>,
    ) -> Result<(), Offence> {
        let height = certified.height;
        let oldest = self.certified.saturating_sub(DEEP).max(self.built_on);
        let recent = height >= oldest && self.heights.contains_key(&height);
        if !self.is_started() || height > self.certified || !recent {
            return Ok(());
        }
        let held = self.heights[&height].certified.as_ref();
        if held.is_some_and(|set| set.weight() >= certified.weight) {
            return Ok(());
        }
        let replaces = held.is_some();
        let Some(params) = self.params(height) else { return Ok(()) };
        let quorum = self.manifest.quorum(params.roster_len);
        let Checked { ledger, controls, set, acks } = certified
            .check(&self.run, self.scheme, &self.roster, quorum, params.limits)
            .map_err(|error| Offence::FalseHistory(error.to_string()))?;
        if controls.values().any(|c| !c.is_valid_join(&self.run, Height(height), self.scheme)) {
            return Err(Offence::FalseHistory(format!("height {height} has a forged control")));
        }
        let state = self.heights.get_mut(&height).expect("looked up above");
        keep_signatures(&mut state.ledger, ledger);
        state.controls = controls;
        state.acks.replace(acks.into_iter().collect());
        state.current = None;
        self.reconsider();
        self.go_on_recalling();
        if replaces {
            self.replace(height, set, now, out);
        } else {
            self.complete(height, set, now, out);
        }
        Ok(())
    }

    /// A larger certificate replaces a height's set: everything after it is derived again.
    fn replace(&mut self, height: u64, set: RecordSet, now: Time, out: &mut Vec<Output>) {
        let end = self.certified;
        out.push(Output::Event(Event::Replaced { height: Height(height) }));
        for &origin in &set.equivocators {
            self.exclude(origin, height);
        }
        // Members, walks and limits from the height after next on follow from this set.
        let members = self.roster.clone();
        self.roster.retract(Height(height + 2));
        self.convicted.retain(|_, from| *from < height + 2);
        self.reconsider();
        // It may include what these heights paid out before.
        self.trailing = None;
        self.heights.get_mut(&height).expect("the height is recent").certified = Some(set);
        for later in height..end {
            let set = self.heights[&later].certified.clone().expect("certified before");
            self.certified = later;
            let end = self.first_round(later + 1);
            self.derive_again(later, end);
            // Rounds after it were decoded for members that may be others now.
            self.settle_before(end, out);
            self.advance(later, &set, now, out);
            // Walks that were dealt with the settings before.
            let dealt = self.first_round(later + 2);
            self.deals.split_off(&dealt);
        }
        if self.roster != members {
            self.reopen();
        }
        self.derive_again(end, self.closed);
        self.settle(out);
    }

    /// Marks rounds as changed, from a height on: who works, and so who walks where, may differ.
    fn derive_again(&mut self, height: u64, end: u64) {
        let first = self.first_round(height);
        self.deals.split_off(&first);
        self.sums.clear();
        self.dirty.extend(first..end);
    }

    /// Makes the open heights anew for another roster. What was acknowledged in them stays
    /// acknowledged, so this node signs no other set there.
    fn reopen(&mut self) {
        let before = self.heights.split_off(&self.certified);
        self.open_heights();
        for (height, old) in before {
            let Some(params) = self.params(height) else { continue };
            let Some(origin) = self.own_origin(&params) else { continue };
            let Some(state) = self.heights.get_mut(&height) else { continue };
            let own = old.ledger.segments().find(|segment| {
                segment.bytes.len() == old.own.signed_len
                    && old.own.bytes.starts_with(&segment.bytes)
            });
            if let Some(own) = own.filter(|own| !own.bytes.is_empty()) {
                state.ledger.set_own(origin, own.clone());
            }
            state.own = old.own;
            state.signed_before = old.signed.last().cloned().or(old.signed_before);
            state.closed_at = old.closed_at;
        }
        self.links.values_mut().for_each(|link| link.reopen(self.certified));
    }

    /// From the lowest height on in which it is known, an equivocator counts for nothing.
    fn exclude(&mut self, origin: Origin, height: u64) {
        let from = self.excluded.entry(origin).or_insert(height);
        *from = height.min(*from);
        self.reconsider();
    }

    /// Asks a neighbor that is ahead, or whose chain differs, for certified history.
    pub(super) fn ask_history(&mut self, peer: NodeId, now: Time, out: &mut Vec<Output>) {
        let mine = self.certified;
        let tag = |height: u64| self.chains.get(&height).map(|chain| chain.tag());
        let (Some(link), true) = (self.links.get(&peer), self.is_started()) else { return };
        let theirs = link.certified();
        let from = if theirs > mine && link.is_ahead_for_long(mine) {
            mine
        } else if theirs <= mine && tag(theirs).is_some_and(|tag| tag != link.tag()) && theirs > 0 {
            // The same heights with another chain: somebody holds a larger certificate.
            theirs.saturating_sub(DEEP)
        } else {
            return;
        };
        let link = self.links.get_mut(&peer).expect("looked up above");
        if link.ask(now) {
            if theirs > mine + 1 {
                let event = Event::CatchingUp { certified: mine, target: theirs, from: peer };
                out.push(Output::Event(event));
            }
            out.push(Output::Request { to: peer, request: Request::History { from } });
        }
    }

    /// Puts back what the log on disk says, in order, before the first event.
    ///
    /// Changes of coefficients come out as [`Output::Apply`], everything else is as it was.
    ///
    /// # Errors
    /// A certified height that its signatures do not bear out, or that does not follow from those
    /// before; it has no effect.
    pub fn restore(&mut self, entry: Entry, out: &mut Vec<Output>) -> Result<(), Offence> {
        let mut effects = Vec::new();
        self.doubt_log();
        match entry {
            Entry::Vote(vote) => {
                if let Some(start) = &mut self.start {
                    start.restore(vote);
                }
            }
            Entry::Founded(votes) => self.adopt_founders(votes, &mut effects),
            Entry::Certified(certified) => {
                // The signatures were checked when the height was written, and are again.
                let height = certified.height;
                self.adopt(certified, Time::ZERO, &mut effects)?;
                if height >= self.certified {
                    let expected = self.certified;
                    let problem = format!("height {height} stands where {expected} should");
                    return Err(Offence::FalseHistory(problem));
                }
            }
            Entry::Foundation(foundation) => self.build_on(*foundation)?,
            Entry::Own { height, segment } => self.restore_own(height, segment),
            Entry::Acked { height, set, segments, evidence, controls } => {
                let Some(params) = self.params(height) else { return Ok(()) };
                let Some(state) = self.heights.get_mut(&height) else { return Ok(()) };
                if state.certified.is_some() {
                    return Ok(());
                }
                if segments.iter().any(|(_, of)| !of.segment().fits(params.limits)) {
                    let problem =
                        format!("an acknowledged segment of height {height} is malformed");
                    return Err(Offence::InvalidStatement(problem));
                }
                for (origin, segment) in segments {
                    if origin.index() < state.ledger.roster_len() {
                        state.ledger.set_certified(origin, Some(segment.segment().clone()));
                    }
                }
                for evidence in evidence {
                    state.ledger.restore_evidence(evidence);
                }
                state.controls.extend(controls.into_iter().map(|c| (c.key(), c)));
                state.signed_before = Some(set);
                self.reconsider();
            }
        }
        out.extend(effects.into_iter().filter(|output| matches!(output, Output::Apply(_))));
        Ok(())
    }

    fn restore_own(&mut self, height: u64, segment: Segment) {
        self.reconsider();
        let Some(params) = self.params(height) else { return };
        let Some(origin) = self.own_origin(&params) else { return };
        let Some(state) = self.heights.get_mut(&height) else { return };
        if state.certified.is_some() || !segment.fits(params.limits) {
            return;
        }
        // A log that signs anew is no log of this program: what was signed first counts.
        let grows =
            |held: &Segment| !held.contradicts(&segment) && held.bytes.len() <= segment.bytes.len();
        if !state.ledger.segment(origin).is_none_or(grows) {
            return;
        }
        state.ledger.set_own(origin, segment.clone());
        self.go_on_from(height, &segment);
    }
}

/// Stands where a certificate vouches instead of an origin's signature.
pub(super) const UNSIGNED: Signature = Signature([0; 64]);

/// Replaces a ledger by a certified one, keeping the origins' signatures where records are the
/// same, so that neighbors that are behind can still be served by exchange.
fn keep_signatures(held: &mut Ledger, certified: Ledger) {
    let mut kept = certified;
    for at in 0..kept.roster_len() {
        let origin = Origin(at as u16);
        let same = match (held.segment(origin), kept.segment(origin)) {
            (Some(held), Some(new)) => held.counts == new.counts && held.bytes == new.bytes,
            _ => false,
        };
        if same {
            kept.set_certified(origin, held.segment(origin).cloned());
        }
    }
    *held = kept;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Round;
    use crate::keys::Keys;
    use crate::manifest::{Founders, Manifest};
    use crate::protocol::{Config, Input};

    /// A node of a run with four members, 0 to 3; its number is that of its keys.
    fn node(number: u64) -> Protocol {
        let manifest = Manifest {
            rounds: 8,
            rounds_per_height: 2,
            founders: Founders::Members((0..4).map(|i| Keys::simulated(i).id()).collect()),
            ..Manifest::template()
        };
        Protocol::new(manifest, Keys::simulated(number), Config::default()).unwrap()
    }

    /// Wakes a node that hears of nobody whenever it asks for it, until it asks no more.
    fn wake_as_asked(protocol: &mut Protocol) {
        let mut now = Time::ZERO;
        let mut outputs = Vec::new();
        protocol.handle(Input::Wake, now, &mut outputs);
        while let Some(due) = protocol.deadline() {
            assert!(due > now, "asked at {now:?} to be woken at {due:?}");
            now = due;
            protocol.handle(Input::Wake, now, &mut outputs);
        }
        assert!(protocol.round() >= Round(2), "the first height was not closed");
        assert_eq!(protocol.certified(), 0);
    }

    /// Its patience runs out like everybody's, and it has nothing to sign.
    #[test]
    fn a_joiner_does_not_ask_to_be_woken_in_the_past() {
        wake_as_asked(&mut node(4));
    }

    /// The log is made by hand: an ack whose records were not written.
    #[test]
    fn a_member_that_lacks_what_it_signed_does_not_ask_to_be_woken_in_the_past() {
        let mut protocol = node(0);
        let mut set = RecordSet::of(Height(0), &Ledger::new(4), &Default::default(), None);
        set.lens[1] = 3;
        let (segments, evidence, controls) = Default::default();
        let entry = Entry::Acked { height: 0, set, segments, evidence, controls };
        protocol.restore(entry, &mut Vec::new()).unwrap();
        // As if neighbors had said that they hold no more of this node.
        protocol.recall = None;
        wake_as_asked(&mut protocol);
        assert!(protocol.heights[&0].is_short && protocol.heights[&0].signed.is_empty());
    }

    /// Found by fuzzing: its counts promise more bytes than there are.
    #[test]
    fn an_acknowledged_segment_that_is_malformed_is_refused() {
        let mut protocol = node(0);
        let (counts, bytes, signature) = (vec![40, 7], vec![1; 16], UNSIGNED);
        let segment = Segment { counts, bytes, closed: false, signature };
        let mut set = RecordSet::of(Height(0), &Ledger::new(4), &Default::default(), None);
        set.lens[1] = 16;
        let mut ledger = Ledger::new(4);
        ledger.set_certified(Origin(1), Some(segment));
        let segments = vec![(Origin(1), Arc::clone(ledger.held(Origin(1)).unwrap()))];
        let (evidence, controls) = Default::default();
        let entry = Entry::Acked { height: 0, set, segments, evidence, controls };
        assert!(protocol.restore(entry, &mut Vec::new()).is_err());
        wake_as_asked(&mut protocol);
    }

    /// Found by spoiling the entries of logs: the second of two own segments was taken for granted.
    #[test]
    fn a_log_that_signs_anew_is_read_as_far_as_it_grows() {
        let mut protocol = node(0);
        let limits = protocol.params(0).unwrap().limits;
        let run = protocol.run_id();
        let keys = Keys::simulated(0);
        let context =
            crate::ledger::Context { run: &run, height: Height(0), scheme: keys.scheme(), limits };
        let own = |bytes: Vec<u8>| Entry::Own {
            height: 0,
            segment: Segment::sign(&context, &keys, vec![bytes.len() as u16], bytes, false),
        };
        for bytes in [vec![1, 2], vec![1, 2, 3], vec![1, 2], vec![4, 2, 3, 5]] {
            let _ = protocol.restore(own(bytes), &mut Vec::new());
        }
        assert_eq!(protocol.heights[&0].own.bytes, [1, 2, 3]);
        assert_eq!(protocol.heights[&0].ledger.len_of(Origin(0)), 3);
    }
}
