//! Measuring and closing rounds.
//!
//! In a round a node walks its slots, one gradient event each. It leaves the round when it has
//! closed it or is through with its walk; it may run `S` rounds beyond the ones it has closed.
//! Closing is local and tentative: a round is closed when the bytes held of it, the `f` longest
//! parts left out, reach `m·(A − f)`, or after a patience time. Records that come later change
//! coefficients; the difference is applied when the next round is closed.

use std::sync::Arc;

use super::{
    Change, Event, GradientClock, HeightParams, HeightState, Output, Probe, Protocol, RoundUpdate,
    RoundValues, Sums, Time,
};
use crate::id::{Origin, Round};
use crate::lb8;
use crate::manifest::Directions;
use crate::round::Deal;
use crate::selection::{Measured, Rule, Standing};
use crate::spsa::projected_gradient;
use crate::update::{Coefficient, mean_update, round_update};

impl Protocol {
    /// Asks for as many probes as the pipeline and the gradient clock allow.
    pub(super) fn probe(&mut self, now: Time, out: &mut Vec<Output>) {
        if let GradientClock::PerSecond(rate) = self.config.gradient {
            let due = self.gradient_due.get_or_insert(now);
            if *due <= now {
                *due = now + self.gradient_clock.wait(rate);
                self.gradient_tokens = 1;
            }
        }
        while self.outstanding.len() < self.config.pipeline {
            if self.config.gradient != GradientClock::Auto && self.gradient_tokens == 0 {
                break;
            }
            match self.next_probe() {
                Ok(probe) => {
                    let repeats = probe.of != self.me;
                    if repeats {
                        // Without a model there is nothing to measure: the byte stays an abstention.
                        let Ok(trail) = self.trail(probe) else { continue };
                        out.extend(trail.map(Output::Trail));
                    }
                    self.gradient_tokens = self.gradient_tokens.saturating_sub(1);
                    if self.outstanding.is_empty() {
                        self.last_loss_at = now;
                    }
                    self.outstanding.push_back(probe);
                    out.push(if repeats { Output::Repeat(probe) } else { Output::Probe(probe) });
                    if self.stalled.take().is_some() {
                        out.push(Output::Event(Event::Resumed));
                    }
                }
                Err(reason) => {
                    if self.outstanding.is_empty() && self.stalled != reason {
                        if let Some(reason) = &reason {
                            let reason = reason.clone();
                            out.push(Output::Event(Event::Stalled { reason }));
                        }
                        self.stalled = reason;
                    }
                    break;
                }
            }
        }
    }

    /// The next probe of the walk; otherwise what is waited for, or nothing when this node has no
    /// more to measure.
    fn next_probe(&mut self) -> Result<Probe, Option<String>> {
        let staleness = self.staleness();
        loop {
            if !self.probing || self.round >= self.manifest.rounds_total() {
                return Err(None);
            }
            let height = self.height_of(self.round);
            let frozen = self.heights.get(&height).is_some_and(HeightState::is_frozen);
            if height < self.certified || frozen {
                self.enter(self.first_round(height + 1));
                continue;
            }
            let Some(params) = self.params(height).filter(|_| self.heights.contains_key(&height))
            else {
                return Err(Some(format!(
                    "height {} is not certified: {}",
                    self.certified,
                    self.missing()
                )));
            };
            let Some(origin) = self.own_origin(&params) else {
                let waits = "this node is no member yet: its wish to join is not certified";
                return Err(Some(waits.into()));
            };
            let waits = self.round >= self.closed + staleness;
            if let Some(audit) = self.next_audit(height, waits) {
                return Ok(audit);
            }
            if waits {
                return Err(Some(format!("round {} lacks records of others", self.closed)));
            }
            let walk_len = params.walk_len as u32;
            if self.round < self.closed || self.position >= walk_len {
                self.enter(self.round + 1);
                continue;
            }
            let position = self.position;
            self.position += 1;
            let slot = self.deal(self.round, &params).slot(origin, position);
            return Ok(Probe { round: Round(self.round), slot, of: self.me });
        }
    }

    /// Rounds that a node may run beyond the ones it has closed.
    pub(super) fn staleness(&self) -> u64 {
        match self.manifest.directions {
            Directions::Shared => u64::from(self.manifest.staleness),
            // A barrier: the next round begins when this one is closed.
            Directions::Private => 1,
        }
    }

    /// This node's position in the roster of a height.
    pub(super) fn own_origin(&self, params: &HeightParams) -> Option<Origin> {
        self.roster.origin(&self.me).filter(|origin| origin.index() < params.roster_len)
    }

    fn enter(&mut self, round: u64) {
        self.round = round;
        self.position = 0;
    }

    pub(super) fn deal(&mut self, round: u64, params: &HeightParams) -> &Arc<Deal> {
        let (manifest, run, cache) = (&self.manifest, &self.run, &self.cache);
        self.deals.entry(round).or_insert_with(|| {
            let deal = || Deal::new(manifest, run, Round(round), params.roster_len, &params.active);
            match cache {
                Some(cache) => cache.lock().deal(round, params.roster_len, &params.active, deal),
                None => Arc::new(deal()),
            }
        })
    }

    /// A probe was measured: its byte joins the own records.
    pub(super) fn on_losses(&mut self, probe: Probe, plus: f32, minus: f32, now: Time) {
        let Probe { round, .. } = probe;
        if self.outstanding.front() != Some(&probe) {
            return;
        }
        self.outstanding.pop_front();
        let took = now.since(self.last_loss_at).as_secs_f64();
        self.last_loss_at = now;
        self.probe_s = Some(self.probe_s.map_or(took, |mean| mean + (took - mean) / 16.0));
        let value = projected_gradient(plus, minus, self.manifest.epsilon_log2);
        if probe.of != self.me {
            self.on_repetition(probe, value);
            return;
        }
        self.stats.probes += 1;
        let height = self.height_of(round.0);
        let within = (round.0 - self.first_round(height)) as usize;
        let Some(params) = self.params(height) else { return };
        let Some(state) = self.heights.get_mut(&height) else { return };
        if state.is_frozen() || state.own.counts.len() > params.limits.rounds {
            self.stats.dropped += 1;
            return;
        }
        if state.own.bytes.is_empty() {
            // Until now the ledger spoke for this node.
            self.tally = None;
            let me = self.roster.origin(&self.me);
            if me.is_some_and(|me| state.ledger.len_of(me) > 0) {
                self.sums.clear();
            }
        }
        state.own.bytes.push(lb8::encode(value, params.exponent));
        if state.own.counts.len() <= within {
            state.own.counts.resize(within + 1, 0);
        }
        state.own.counts[within] += 1;
        if let Some(origin) = self.roster.origin(&self.me)
            && let Some(tally) = self.tally.as_ref().filter(|tally| tally.round == round.0)
        {
            let part = round_part(&state.own.counts, &state.own.bytes, within);
            let (before, after) = (tally.values(&part[..part.len() - 1]), tally.values(part));
            self.tally_growth(origin, before, after);
        }
        if round.0 < self.closed {
            self.dirty.insert(round.0);
        }
        let me = self.own_origin(&params).filter(|&me| !self.is_excluded(me, height));
        if let (Some(origin), Some(sums)) = (me, self.sums.get_mut(&round.0)) {
            let own = &self.heights[&height].own;
            let part = round_part(&own.counts, &own.bytes, within);
            sums.add(origin, &part[..part.len().min(params.walk_len)]);
        }
    }

    /// The bytes of one round by origin, without the excluded: what is certified, or everything that
    /// is held; at most a walk's length.
    fn parts(&self, round: u64, params: &HeightParams) -> impl Iterator<Item = (Origin, &[u8])> {
        let height = self.height_of(round);
        let within = (round - self.first_round(height)) as usize;
        let walk_len = params.walk_len;
        let state = self.heights.get(&height);
        let open = state.filter(|state| state.certified.is_none() && !state.own.bytes.is_empty());
        let own = self.roster.origin(&self.me).zip(open);
        let origins = (0..params.roster_len as u16).map(Origin);
        let counted = origins.filter(move |&origin| !self.is_excluded(origin, height));
        counted.map(move |origin| {
            let records = match own {
                Some((me, state)) if me == origin => Some((&state.own.counts, &state.own.bytes)),
                _ => state
                    .and_then(|state| state.ledger.segment(origin))
                    .map(|segment| (&segment.counts, &segment.bytes)),
            };
            let part = records.map_or(&[][..], |(counts, bytes)| round_part(counts, bytes, within));
            (origin, &part[..part.len().min(walk_len)])
        })
    }

    /// Closes every round that can be closed.
    pub(super) fn close_rounds(&mut self, now: Time, out: &mut Vec<Output>) {
        let mut closed_any = false;
        while self.closed < self.manifest.rounds_total() {
            let round = self.closed;
            let height = self.height_of(round);
            let Some(params) = self.params(height) else { break };
            if !self.heights.contains_key(&height) {
                break;
            }
            let enough = self.has_enough(round, &params);
            let impatient = !enough && self.patience_due().is_some_and(|due| due <= now);
            if !enough && !impatient {
                break;
            }
            if impatient {
                self.impatient += 1;
                self.stats.impatient += 1;
            }
            self.close(round, now);
            closed_any = true;
            out.push(Output::Event(Event::Closed { round: Round(round), impatient }));
        }
        if closed_any {
            self.settle(out);
        }
    }

    /// Marks a round as closed; [`Self::settle`] applies it.
    pub(super) fn close(&mut self, round: u64, now: Time) {
        self.closed = round + 1;
        self.closed_since = now;
        self.dirty.insert(round);
        let height = self.height_of(round);
        if self.closed == self.first_round(height + 1)
            && let Some(state) = self.heights.get_mut(&height)
        {
            state.closed_at = Some(now);
        }
    }

    /// Whether the bytes held of a round, the `f` longest parts left out, reach `m·(A − f)`. With
    /// private directions: whether all active members have made all their probes.
    fn has_enough(&mut self, round: u64, params: &HeightParams) -> bool {
        if self.tally.as_ref().is_none_or(|tally| tally.round != round) {
            let all_of =
                (self.manifest.directions == Directions::Private).then(|| params.active.clone());
            let mut tally = Tally { round, parts: vec![0; params.walk_len + 1], all_of };
            let sums = self.sums.get(&round).filter(|_| tally.all_of.is_none());
            if let Some(sums) = sums {
                let height = self.height_of(round);
                let numbered = (0..).map(Origin).zip(sums.values());
                for (_, values) in numbered.filter(|(at, _)| !self.is_excluded(*at, height)) {
                    tally.parts[usize::from(values)] += 1;
                }
            } else {
                for (origin, part) in self.parts(round, params) {
                    if tally.counts(origin) {
                        let values = tally.values(part);
                        tally.parts[values] += 1;
                    }
                }
            }
            self.tally = Some(tally);
        }
        if self.manifest.directions == Directions::Private {
            return self.tally.as_ref().is_some_and(Tally::is_complete);
        }
        let height = self.height_of(round);
        // Of those that audits left in, as many may be faulty as such a roster tolerates.
        let convicted = |origin: &&Origin| self.is_convicted(**origin, height);
        // Not at every event of a large network.
        let gone = match self.convicted.is_empty() {
            true => 0,
            false => params.active.iter().filter(convicted).count(),
        };
        let left = params.roster_len.saturating_sub(self.convicted.len());
        let (active, faulty) =
            (params.active.len() - gone, params.faulty.min(self.manifest.faulty_of(left)));
        let parts = &self.tally.as_ref().expect("just made").parts;
        let origins: usize = parts.iter().sum();
        let mut left_out = faulty.min(origins.saturating_sub(1));
        let mut held = 0;
        for (values, &origins) in parts.iter().enumerate().rev() {
            let dropped = origins.min(left_out);
            left_out -= dropped;
            held += values * (origins - dropped);
        }
        let target = (self.manifest.probes_per_round as usize).min(params.walk_len);
        let wanted = target * active.saturating_sub(faulty).max(1);
        // As many may be silent as are left out: what the others can make at most is enough.
        let possible = params.walk_len * active.saturating_sub(2 * faulty).max(1);
        held >= wanted.min(possible)
    }

    /// Counts on: an origin's part of the tallied round grew from `before` to `after` values.
    pub(super) fn tally_growth(&mut self, origin: Origin, before: usize, after: usize) {
        let Some(tally) = &self.tally else { return };
        let height = tally.round / u64::from(self.manifest.rounds_per_height);
        if self.is_excluded(origin, height) || !tally.counts(origin) {
            return;
        }
        if let Some(tally) = &mut self.tally {
            tally.parts[before] -= 1;
            tally.parts[after] += 1;
        }
    }

    /// When the oldest open round is closed with what there is.
    pub(super) fn patience_due(&self) -> Option<Time> {
        let open = self.is_started() && self.closed < self.manifest.rounds_total();
        let height = self.height_of(self.closed);
        if !open || !self.heights.contains_key(&height) || self.started_at.is_none() {
            return None;
        }
        Some(self.closed_since + self.patience())
    }

    /// At least as long as a slow neighbor may take, longer while nothing is certified.
    pub(super) fn patience(&self) -> Time {
        let round_s = self.probe_s.unwrap_or(0.0) * f64::from(self.manifest.probes_per_round);
        let base = self.config.patience.max(Time::from_secs_f64(6.0 * round_s));
        Time(base.0.saturating_mul(1 << self.impatient.min(5)))
    }

    /// Applies what changed in closed rounds.
    pub(super) fn settle(&mut self, out: &mut Vec<Output>) {
        self.settle_before(self.closed, out);
    }

    /// The same of rounds before one of them; what changed after it waits.
    pub(super) fn settle_before(&mut self, end: u64, out: &mut Vec<Output>) {
        let reach = self.reach();
        let mut affected = std::collections::BTreeSet::new();
        let waiting = self.dirty.split_off(&end);
        for round in std::mem::replace(&mut self.dirty, waiting) {
            if reach > 1 {
                let Some(values) = self.decode(round) else { continue };
                self.values.insert(round, values.into());
            }
            affected.extend(round..(round + reach).min(end));
        }
        let mut changes = Vec::new();
        for round in affected {
            let update =
                if reach > 1 { Some(Arc::new(self.update(round))) } else { self.alone(round) };
            let Some(update) = update else { continue };
            let before = self.applied.insert(round, Arc::clone(&update));
            if !self.is_told(round) {
                continue;
            }
            let before = before.as_ref().map_or(&[][..], |before| &before.coefficients);
            difference(before, &update.coefficients, &mut changes);
        }
        if !changes.is_empty() {
            out.push(Output::Apply(changes));
        }
    }

    /// Rounds whose coefficients a record may change: its own, and those that look back at it.
    fn reach(&self) -> u64 {
        if self.manifest.selection.selection().uses_window() {
            u64::from(self.manifest.window)
        } else {
            self.manifest.instalments.last().map_or(0, |last| u64::from(last.age)) + 1
        }
    }

    /// What a round pays out that depends on no other round.
    fn alone(&mut self, round: u64) -> Option<Arc<RoundUpdate>> {
        let key = self.certified_key(self.height_of(round));
        if let (Some(cache), Some(key)) = (&self.cache, &key)
            && let Some(update) = cache.lock().update(round, key)
        {
            return Some(update);
        }
        let update = Arc::new(match self.summed(round) {
            Some(update) => update,
            None => {
                let values = self.decode(round)?;
                self.update_from(round, &[&values.into()])
            }
        });
        if let (Some(cache), Some(key)) = (&self.cache, key) {
            cache.lock().remember_update(round, key, Arc::clone(&update));
        }
        Some(update)
    }

    /// Whether a round's coefficients follow from sums of its values alone.
    pub(super) fn keeps_sums(&self) -> bool {
        self.manifest.selection == Rule::Mean && self.reach() == 1
    }

    /// The sums of a round of which nothing is held.
    pub(super) fn no_sums(&mut self, round: u64, params: &HeightParams) -> Sums {
        let deal = Arc::clone(self.deal(round, params));
        Sums::new(deal, params.exponent, params.roster_len)
    }

    /// The same for a round of an open height with rule `mean`, from sums that are kept.
    fn summed(&mut self, round: u64) -> Option<RoundUpdate> {
        let height = self.height_of(round);
        let open = self.heights.get(&height).is_some_and(|state| state.certified.is_none());
        // Sums are of all that are not excluded.
        let doubted = height.checked_sub(2).and_then(|from| self.summaries.get(&from));
        let doubted = doubted.is_some_and(|summary| !summary.doubted.is_empty());
        if !self.keeps_sums() || !open || doubted {
            return None;
        }
        if !self.sums.contains_key(&round) {
            let params = self.params(height)?;
            let mut sums = self.no_sums(round, &params);
            self.parts(round, &params).for_each(|(origin, part)| sums.add(origin, part));
            self.sums.insert(round, sums);
        }
        let sums = &self.sums[&round];
        let update = mean_update(&self.manifest, Round(round), &sums.means(), sums.weights());
        debug_assert!(
            self.decode(round).is_some_and(|all| update == self.update_from(round, &[&all.into()])),
            "kept sums are those of all records"
        );
        Some(update)
    }

    /// A hash of all that the coefficients of a certified height follow from; `None` where nobody
    /// would ask for it, where they follow from more than the height, and while it is open.
    fn certified_key(&self, height: u64) -> Option<[u8; 32]> {
        self.cache.as_ref()?;
        if self.reach() > 1 || self.manifest.selection.selection().uses_window() {
            return None;
        }
        let set = self.heights.get(&height)?.certified.as_ref()?;
        let params = self.params(height)?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&set.digest).update(&params.exponent.to_le_bytes());
        hasher.update(&(params.roster_len as u64).to_le_bytes());
        hasher.update(&(params.active.len() as u64).to_le_bytes());
        for origin in params.active.iter().chain(&self.weightless(height)) {
            hasher.update(&origin.0.to_le_bytes());
        }
        Some(*hasher.finalize().as_bytes())
    }

    /// The decoded records of a round.
    pub(super) fn decode(&mut self, round: u64) -> Option<RoundValues> {
        let height = self.height_of(round);
        let params = self.params(height)?;
        let deal = Arc::clone(self.deal(round, &params));
        let decoded: Vec<Option<f32>> =
            (0..=u8::MAX).map(|byte| lb8::decode(byte, params.exponent)).collect();
        let slots = deal.directions() as usize;
        let expected = params.active.len() * params.walk_len / slots.max(1);
        let mut values =
            RoundValues { slots: (0..slots).map(|_| Vec::with_capacity(expected)).collect() };
        // Who is doubted has no weight, and is no measure either.
        let counted = self.parts(round, &params);
        for (origin, part) in counted.filter(|(origin, _)| !self.is_doubted(*origin, height)) {
            for (&byte, slot) in part.iter().zip(deal.walk(origin)) {
                if let Some(value) = decoded[usize::from(byte)] {
                    values.slots[slot.0 as usize].push((origin, f64::from(value)));
                }
            }
        }
        Some(values)
    }

    fn update(&self, round: u64) -> RoundUpdate {
        let oldest = self.manifest.instalments.last().map_or(0, |last| u64::from(last.age));
        let reach = oldest.max(u64::from(self.manifest.window) - 1);
        let mut window: Vec<&Measured> = Vec::new();
        for at in round.saturating_sub(reach)..=round {
            match self.values.get(&at) {
                Some(values) => window.push(values),
                None => window.clear(),
            }
        }
        self.update_from(round, &window)
    }

    fn update_from(&self, round: u64, window: &[&Measured]) -> RoundUpdate {
        let height = self.height_of(round);
        let roster_len = self.roster.len_at(crate::id::Height(height));
        let excluded = self.weightless(height);
        // Of those that are left, as many may lie as such a roster tolerates. Who is doubted is out of it, too: were it
        // wrongly so, one liar more than that could be among the others as long as the doubt lasts.
        let faulty = self.manifest.faulty_of(roster_len.saturating_sub(excluded.len()));
        let known = height.checked_sub(2).and_then(|of| self.summaries.get(&of));
        let standing = known.map(|summary| summary.standing.values()).unwrap_or_default();
        round_update(&self.manifest, Round(round), window, roster_len, faulty, &excluded, &standing)
    }

    /// What later heights need to know of this certified one: who worked, and the scale of its
    /// values by the median rule, changed by at most two octaves.
    pub(super) fn summarize(&mut self, height: u64) -> super::Summary {
        let audits = self.samples(height);
        let key = self.certified_key(height);
        if let (Some(cache), Some(key)) = (&self.cache, &key)
            && let Some(summary) = cache.lock().summary(height, key)
        {
            return super::Summary { audits, ..summary };
        }
        let summary = super::Summary { audits, ..self.derive_summary(height) };
        if let (Some(cache), Some(key)) = (&self.cache, key) {
            cache.lock().remember_summary(height, key, summary.clone());
        }
        summary
    }

    /// How members agreed with each other in all rounds up to a certified height.
    fn standing(&self, height: u64) -> Standing {
        let before = height.checked_sub(1).and_then(|before| self.summaries.get(&before));
        let mut standing = before.map(|summary| summary.standing.clone()).unwrap_or_default();
        let weightless = self.weightless(height);
        let counts = |at: usize| weightless.binary_search(&Origin(at as u16)).is_err();
        let rounds = self.first_round(height)..self.first_round(height + 1);
        for (_, update) in self.applied.range(rounds).filter(|(_, of)| !of.trust.is_empty()) {
            standing.add(&update.trust, counts);
        }
        standing
    }

    fn derive_summary(&mut self, height: u64) -> super::Summary {
        let params = self.params(height).expect("a certified height has settings");
        let rounds = self.first_round(height)..self.first_round(height + 1);
        let mut active = vec![false; params.roster_len];
        let mut magnitudes = Vec::new();
        for round in rounds {
            let decoded = if self.reach() == 1 { self.decode(round) } else { None };
            let Some(entry) =
                decoded.as_ref().or_else(|| self.values.get(&round).map(Measured::values))
            else {
                continue;
            };
            magnitudes.extend(entry.slots.iter().flatten().map(|(_, value)| *value));
            for (origin, part) in self.parts(round, &params) {
                active[origin.index()] |= part.iter().any(|&byte| byte != lb8::ABSTAIN);
            }
        }
        let scale = lb8::scale_exponent(&mut magnitudes).unwrap_or(params.exponent);
        let active = active.iter().enumerate().filter(|(_, active)| **active);
        super::Summary {
            active: active.map(|(origin, _)| Origin(origin as u16)).collect(),
            exponent_next: scale.clamp(params.exponent - 2, params.exponent + 2).clamp(-60, 60),
            audits: Vec::new(),
            doubted: Vec::new(),
            standing: self.standing(height),
        }
    }
}

/// How many origins hold how many values of a round: kept up to date record by record, so that
/// nobody counts all origins at every event.
#[derive(Clone, Debug)]
pub(super) struct Tally {
    pub(super) round: u64,
    /// Origins by the number of their values that count.
    parts: Vec<usize>,
    /// With private directions, who must have made all their probes. An abstention is one, too:
    /// nobody could wait for a node whose losses are not finite.
    all_of: Option<Vec<Origin>>,
}

impl Tally {
    fn counts(&self, origin: Origin) -> bool {
        self.all_of.as_ref().is_none_or(|active| active.binary_search(&origin).is_ok())
    }

    /// Values of a part that count.
    pub(super) fn values(&self, part: &[u8]) -> usize {
        let part = &part[..part.len().min(self.parts.len() - 1)];
        match self.all_of {
            Some(_) => part.len(),
            None => part.iter().filter(|&&byte| byte != lb8::ABSTAIN).count(),
        }
    }

    /// Whether its values are those that sums have.
    pub(super) fn takes_sums(&self) -> bool {
        self.all_of.is_none()
    }

    fn is_complete(&self) -> bool {
        self.parts.split_last().is_some_and(|(_, short)| short.iter().all(|&origins| origins == 0))
    }
}

/// The bytes of one round of a height.
pub(super) fn round_part<'a>(counts: &[u16], bytes: &'a [u8], within: usize) -> &'a [u8] {
    let Some(&count) = counts.get(within) else { return &[] };
    let before: usize = counts[..within].iter().map(|&count| usize::from(count)).sum();
    &bytes[before..before + usize::from(count)]
}

/// Changes that lead from one list of coefficients, sorted by round and slot within each
/// instalment, to another.
fn difference(before: &[Coefficient], after: &[Coefficient], changes: &mut Vec<Change>) {
    let key = |coefficient: &Coefficient| (coefficient.round, coefficient.slot);
    let sorted = |coefficients: &[Coefficient]| {
        let mut sorted = coefficients.to_vec();
        sorted.sort_unstable_by_key(key);
        sorted
    };
    let (before, after) = (sorted(before), sorted(after));
    let (mut old, mut new) = (before.iter().peekable(), after.iter().peekable());
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => break,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some(a), Some(b)) => key(a).cmp(&key(b)),
        };
        let from = if order.is_le() { old.next() } else { None };
        let to = if order.is_ge() { new.next() } else { None };
        let at = from.or(to).expect("one of both lists has an entry");
        let value = |coefficient: Option<&Coefficient>| coefficient.map_or(0, |c| c.value);
        if value(from) != value(to) {
            changes.push(Change {
                round: at.round,
                slot: at.slot,
                from: value(from),
                to: value(to),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Slot;

    #[test]
    fn differences_lead_from_one_update_to_the_other() {
        let entry = |slot, value| Coefficient { round: Round(1), slot: Slot(slot), value };
        let mut changes = Vec::new();
        let before = [entry(0, 5), entry(2, 7), entry(3, 1)];
        let after = [entry(1, 4), entry(2, 9), entry(3, 1)];
        difference(&before, &after, &mut changes);
        let change = |slot, from, to| Change { round: Round(1), slot: Slot(slot), from, to };
        assert_eq!(changes, [change(0, 5, 0), change(1, 0, 4), change(2, 7, 9)]);
    }
}
