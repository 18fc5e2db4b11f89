//! Measuring and closing rounds.
//!
//! In a round a node walks its slots, one gradient event each. It leaves the round when it has
//! closed it or is through with its walk; it may run `S` rounds beyond the ones it has closed.
//! Closing is local and tentative: a round is closed when the bytes held of it, the `f` longest
//! parts left out, reach `m·(A − f)`, or after a patience time. Records that come later change
//! coefficients; the difference is applied when the next round is closed.

use super::{
    Change, Event, GradientClock, HeightParams, HeightState, Output, Protocol, RoundUpdate,
    RoundValues, Time,
};
use crate::id::{Origin, Round, Slot};
use crate::lb8;
use crate::round::Deal;
use crate::spsa::projected_gradient;
use crate::update::{Coefficient, round_update};

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
                Ok((round, slot)) => {
                    self.gradient_tokens = self.gradient_tokens.saturating_sub(1);
                    if self.outstanding.is_empty() {
                        self.last_loss_at = now;
                    }
                    self.outstanding.push_back((round, slot));
                    out.push(Output::Probe { round, slot });
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
    fn next_probe(&mut self) -> Result<(Round, Slot), Option<String>> {
        let staleness = u64::from(self.manifest.staleness);
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
            if self.round >= self.closed + staleness {
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
            return Ok((Round(self.round), slot));
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

    fn deal(&mut self, round: u64, params: &HeightParams) -> &Deal {
        let (manifest, run) = (&self.manifest, &self.run);
        self.deals.entry(round).or_insert_with(|| {
            Deal::new(manifest, run, Round(round), params.roster_len, &params.active)
        })
    }

    /// A probe was measured: its byte joins the own records.
    pub(super) fn on_losses(&mut self, round: Round, slot: Slot, plus: f32, minus: f32, now: Time) {
        if self.outstanding.front() != Some(&(round, slot)) {
            return;
        }
        self.outstanding.pop_front();
        self.stats.probes += 1;
        let took = now.since(self.last_loss_at).as_secs_f64();
        self.last_loss_at = now;
        self.probe_s = Some(self.probe_s.map_or(took, |mean| mean + (took - mean) / 16.0));
        let height = self.height_of(round.0);
        let within = (round.0 - self.first_round(height)) as usize;
        let Some(params) = self.params(height) else { return };
        let Some(state) = self.heights.get_mut(&height) else { return };
        if state.is_frozen() {
            self.stats.dropped += 1;
            return;
        }
        let value = projected_gradient(plus, minus, self.manifest.epsilon_log2);
        state.own.bytes.push(lb8::encode(value, params.exponent));
        if state.own.counts.len() <= within {
            state.own.counts.resize(within + 1, 0);
        }
        state.own.counts[within] += 1;
        if round.0 < self.closed {
            self.dirty.insert(round.0);
        }
    }

    /// An origin's counts and bytes of a height: what is certified, or everything that is held.
    fn records(&self, height: u64, origin: Origin) -> Option<(&[u16], &[u8])> {
        let state = self.heights.get(&height)?;
        let own = self.roster.origin(&self.me) == Some(origin) && state.certified.is_none();
        if own && !state.own.bytes.is_empty() {
            return Some((&state.own.counts, &state.own.bytes));
        }
        state.ledger.segment(origin).map(|segment| (&segment.counts[..], &segment.bytes[..]))
    }

    /// An origin's bytes of one round.
    fn round_bytes(&self, round: u64, origin: Origin) -> &[u8] {
        let height = self.height_of(round);
        let within = (round - self.first_round(height)) as usize;
        let Some((counts, bytes)) = self.records(height, origin) else { return &[] };
        let Some(&count) = counts.get(within) else { return &[] };
        let before: usize = counts[..within].iter().map(|&count| usize::from(count)).sum();
        &bytes[before..before + usize::from(count)]
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

    /// Whether the bytes held of a round, the `f` longest parts left out, reach `m·(A − f)`.
    fn has_enough(&self, round: u64, params: &HeightParams) -> bool {
        let height = self.height_of(round);
        let mut counts: Vec<usize> = (0..params.roster_len as u16)
            .map(Origin)
            .filter(|&origin| !self.is_excluded(origin, height))
            .map(|origin| {
                let bytes = self.round_bytes(round, origin);
                let bytes = &bytes[..bytes.len().min(params.walk_len)];
                bytes.iter().filter(|&&byte| byte != lb8::ABSTAIN).count()
            })
            .collect();
        counts.sort_unstable();
        let left_out = params.faulty.min(counts.len().saturating_sub(1));
        counts.truncate(counts.len() - left_out);
        let target = (self.manifest.probes_per_round as usize).min(params.walk_len);
        let wanted = params.active.len().saturating_sub(params.faulty).max(1);
        counts.iter().sum::<usize>() >= target * wanted
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
        let reach = if self.manifest.selection.selection().uses_window() {
            u64::from(self.manifest.window)
        } else {
            self.manifest.instalments.last().map_or(0, |last| u64::from(last.age)) + 1
        };
        let mut affected = std::collections::BTreeSet::new();
        for round in std::mem::take(&mut self.dirty) {
            if round >= self.closed {
                continue;
            }
            let Some(values) = self.decode(round) else { continue };
            self.values.insert(round, values);
            affected.extend(round..(round + reach).min(self.closed));
        }
        let mut changes = Vec::new();
        for round in affected {
            let update = self.update(round);
            let before = self.applied.insert(round, update);
            let before = before.map_or(Vec::new(), |update| update.coefficients);
            difference(&before, &self.applied[&round].coefficients, &mut changes);
        }
        if !changes.is_empty() {
            out.push(Output::Apply(changes));
        }
    }

    /// The decoded records of a round.
    fn decode(&mut self, round: u64) -> Option<RoundValues> {
        let height = self.height_of(round);
        let params = self.params(height)?;
        let slots = self.deal(round, &params).directions() as usize;
        let deal = &self.deals[&round];
        let mut values = RoundValues { slots: vec![Vec::new(); slots] };
        for origin in (0..params.roster_len as u16).map(Origin) {
            if self.is_excluded(origin, height) {
                continue;
            }
            let bytes = self.round_bytes(round, origin).iter().take(params.walk_len);
            for (position, &byte) in bytes.enumerate() {
                if let Some(value) = lb8::decode(byte, params.exponent) {
                    let slot = deal.slot(origin, position as u32).0 as usize;
                    values.slots[slot].push((origin, f64::from(value)));
                }
            }
        }
        Some(values)
    }

    fn update(&self, round: u64) -> RoundUpdate {
        let height = self.height_of(round);
        let roster_len = self.roster.len_at(crate::id::Height(height));
        let oldest = self.manifest.instalments.last().map_or(0, |last| u64::from(last.age));
        let reach = oldest.max(u64::from(self.manifest.window) - 1);
        let mut window: Vec<&RoundValues> = Vec::new();
        for at in round.saturating_sub(reach)..=round {
            match self.values.get(&at) {
                Some(values) => window.push(values),
                None => window.clear(),
            }
        }
        let excluded: Vec<Origin> = (0..roster_len as u16)
            .map(Origin)
            .filter(|&origin| self.is_excluded(origin, height))
            .collect();
        let faulty = self.manifest.faulty_of(roster_len);
        round_update(&self.manifest, Round(round), &window, roster_len, faulty, &excluded)
    }

    /// What later heights need to know of this certified one: who worked, and the scale of its
    /// values by the median rule, changed by at most two octaves.
    pub(super) fn summarize(&self, height: u64) -> super::Summary {
        let params = self.params(height).expect("a certified height has settings");
        let rounds = self.first_round(height)..self.first_round(height + 1);
        let mut active = vec![false; params.roster_len];
        let mut magnitudes = Vec::new();
        for entry in rounds.filter_map(|round| self.values.get(&round)) {
            for &(origin, value) in entry.slots.iter().flatten() {
                active[origin.index()] = true;
                magnitudes.push(value);
            }
        }
        let scale = lb8::scale_exponent(&mut magnitudes).unwrap_or(params.exponent);
        let active = active.iter().enumerate().filter(|(_, active)| **active);
        super::Summary {
            active: active.map(|(origin, _)| Origin(origin as u16)).collect(),
            exponent_next: scale.clamp(params.exponent - 2, params.exponent + 2).clamp(-60, 60),
        }
    }
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
