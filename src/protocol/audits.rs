//! Repeating others' probes, and excluding those whose bytes do not fit: see [`crate::audit`].

use super::{Change, Event, Output, Probe, Protocol, Trail};
use crate::audit::{self, Panel, SEED_LEN, Sample, Score, Target, WINDOW};
use crate::height::SetDigest;
use crate::id::{Height, NodeId, Origin, Round};
use crate::keys::Signature;
use crate::lb8;
use crate::update::Coefficient;

/// Own probes asked for between two audits: audits are made early in a height, and not all at once.
const PACE: u64 = 3;

/// Heights between a record and its audit: at height `h`, height `h − 2` is certified everywhere.
const LAG: u64 = 2;

/// The model of a round cannot be made any more.
#[derive(Debug)]
pub(super) struct Forgotten;

/// A probe that is to be repeated.
#[derive(Clone, Debug)]
struct Repetition {
    /// Its position among the targets.
    at: usize,
    probe: Probe,
    /// The model that it is repeated at includes the rounds before this one.
    to: u64,
}

/// A member's own audits of one height, made in the height after next.
#[derive(Clone, Debug)]
pub(super) struct Work {
    /// The set they are of.
    digest: SetDigest,
    seed: Signature,
    /// By the models that they are repeated at, as the trailing one only goes forward.
    probes: Vec<Repetition>,
    /// Probes asked for.
    asked: usize,
    /// Whether any was measured.
    measured: bool,
    /// What was measured, by position; abstentions where nothing was.
    bytes: Vec<u8>,
}

impl Protocol {
    fn audits(&self) -> bool {
        self.manifest.audit_permille > 0
    }

    /// The next audit to be made in `height`, unless it is too early for it. `idle`: there is nothing
    /// else to measure.
    pub(super) fn next_audit(&mut self, height: u64, idle: bool) -> Option<Probe> {
        let of = height.checked_sub(LAG).filter(|_| self.audits())?;
        let digest = self.heights.get(&of)?.certified.as_ref()?.digest;
        let state = self.heights.get(&height)?;
        if state.work.as_ref().is_none_or(|work| work.digest != digest) {
            let work = self.plan_audits(of, digest)?;
            self.heights.get_mut(&height)?.work = Some(work);
        }
        let probes = (self.round - self.first_round(height))
            * u64::from(self.manifest.probes_per_round)
            + u64::from(self.position);
        let work = self.heights.get_mut(&height)?.work.as_mut()?;
        let probe = work.probes.get(work.asked)?.probe;
        if !idle && (work.asked as u64 + 1) * PACE > probes {
            return None;
        }
        work.asked += 1;
        Some(probe)
    }

    fn plan_audits(&mut self, height: u64, digest: SetDigest) -> Option<Work> {
        let params = self.params(height)?;
        let me = self.own_origin(&params)?;
        let seed = audit::seed(&self.run, Height(height), &digest, &self.keys);
        let targets = self.targets(height, me, &seed);
        let repetition = |protocol: &mut Protocol, (at, target): (usize, &Target)| {
            let segment = protocol.heights.get(&height)?.ledger.segment(target.origin)?;
            let mut before = 0;
            let (within, position) =
                segment.counts.iter().enumerate().find_map(|(round, &count)| {
                    let position = target.index.checked_sub(before)?;
                    before += usize::from(count);
                    (position < usize::from(count)).then_some((round, position))
                })?;
            let round = protocol.first_round(height) + within as u64;
            let slot = protocol.deal(round, &params).slot(target.origin, position as u32);
            let of = *protocol.roster.id(target.origin)?;
            let probe = Probe { round: Round(round), slot, of };
            // Who walks a round has closed all before it in the second half of its walk, and all but one in the first.
            let open = protocol.staleness() > 1
                && 2 * position < protocol.manifest.probes_per_round as usize;
            Some(Repetition { at, probe, to: round.saturating_sub(open.into()) })
        };
        // All or none: position tells which target a byte belongs to.
        let probes = targets.iter().enumerate().map(|target| repetition(self, target));
        let mut probes = probes.collect::<Option<Vec<Repetition>>>()?;
        let bytes = vec![lb8::ABSTAIN; probes.len()];
        // As many as there is time for, before they are sorted: those left out are of any round.
        let own =
            u64::from(self.manifest.probes_per_round) * u64::from(self.manifest.rounds_per_height);
        probes.truncate((own / PACE) as usize);
        probes.sort_by_key(|repetition| repetition.to);
        Some(Work { digest, seed, probes, asked: 0, measured: false, bytes })
    }

    /// Moves the trailing model to where a record was measured, if it is not there. Measured with a model as it is
    /// two heights later instead, honest bytes fit by 0.93 and not by 0.99 (`ARCHITECTURE.md`, "Audits").
    ///
    /// # Errors
    /// What was paid out since is forgotten, so that there is no such model.
    pub(super) fn trail(&mut self, probe: Probe) -> Result<Option<Trail>, Forgotten> {
        let state = self.heights.get(&(self.height_of(probe.round.0) + LAG));
        let planned = state.and_then(|state| state.work.as_ref()).map(|work| &work.probes[..]);
        let planned = planned.unwrap_or_default().iter().find(|planned| planned.probe == probe);
        let to = planned.ok_or(Forgotten)?.to;
        if self.trailing.is_some_and(|at| at >= to) {
            return Ok(None);
        }
        let change =
            |of: &Coefficient| Change { round: of.round, slot: of.slot, from: 0, to: of.value };
        let follow = |at: u64| {
            let rounds = self.applied.range(at..to);
            let all = rounds.clone().count() as u64 == to - at;
            let coefficients = rounds.flat_map(|(_, update)| &update.coefficients);
            all.then(|| coefficients.map(change).collect())
        };
        let trail = match self.trailing.take().and_then(follow) {
            Some(changes) => Trail { anew: false, changes },
            None => Trail { anew: true, changes: self.take_back_from(Round(to)).ok_or(Forgotten)? },
        };
        self.trailing = Some(to);
        Ok(Some(trail))
    }

    /// Says that the caller has no trailing model, as it could not make the last one.
    pub fn lose_trail(&mut self) {
        self.trailing = None;
    }

    fn targets(&self, height: u64, auditor: Origin, seed: &Signature) -> Vec<Target> {
        let (Some(state), Some(params)) = (self.heights.get(&height), self.params(height)) else {
            return Vec::new();
        };
        let records = |origin: Origin| match state.ledger.segment(origin) {
            Some(segment) if !self.is_excluded(origin, height) => {
                &segment.bytes[..segment.records(params.limits)]
            }
            _ => &[],
        };
        let (manifest, run) = (&self.manifest, &self.run);
        audit::targets(manifest, run, Height(height), auditor, seed, params.roster_len, records)
    }

    /// An audit was measured.
    pub(super) fn on_repetition(&mut self, probe: Probe, value: f64) {
        let of = self.height_of(probe.round.0);
        let Some(exponent) = self.params(of).map(|params| params.exponent) else { return };
        let work = self.heights.get_mut(&(of + LAG)).and_then(|state| state.work.as_mut());
        let Some(work) = work else { return };
        // The same record may be a target twice.
        for planned in work.probes.iter().filter(|planned| planned.probe == probe) {
            work.bytes[planned.at] = lb8::encode(value, exponent);
            work.measured = true;
            self.stats.audits += 1;
        }
    }

    /// Appends the audit section to the own records of a height that is through here.
    pub(super) fn append_audits(&mut self, height: u64) {
        let rounds = self.manifest.rounds_per_height as usize;
        let certified = height.checked_sub(LAG).and_then(|of| self.heights.get(&of));
        let digest = certified.and_then(|state| Some(state.certified.as_ref()?.digest));
        let Some(state) = self.heights.get_mut(&height) else { return };
        let Some(work) = state.work.as_ref().filter(|work| Some(work.digest) == digest) else {
            return;
        };
        if !work.measured || state.own.counts.len() > rounds {
            return;
        }
        state.own.counts.resize(rounds, 0);
        state.own.counts.push((SEED_LEN + work.bytes.len()) as u16);
        state.own.bytes.extend(work.seed.0);
        state.own.bytes.extend(&work.bytes);
    }

    /// What the audits in a certified height say.
    pub(super) fn samples(&self, height: u64) -> Vec<Sample> {
        let Some(of) = height.checked_sub(LAG).filter(|_| self.audits()) else { return Vec::new() };
        let (Some(state), Some(audited)) = (self.heights.get(&height), self.heights.get(&of))
        else {
            return Vec::new();
        };
        let Some(digest) = audited.certified.as_ref().map(|set| set.digest) else {
            return Vec::new();
        };
        let (Some(params), Some(params_of)) = (self.params(height), self.params(of)) else {
            return Vec::new();
        };
        let mut samples = Vec::new();
        for auditor in (0..params_of.roster_len as u16).map(Origin) {
            let Some(segment) = state.ledger.segment(auditor) else { continue };
            let section = &segment.bytes[segment.records(params.limits)..];
            let Some((seed, bytes)) = section.split_first_chunk::<SEED_LEN>() else { continue };
            let seed = Signature(*seed);
            let Some(id) = self.roster.id(auditor) else { continue };
            let (run, scheme) = (&self.run, self.scheme);
            if self.is_excluded(auditor, height)
                || !audit::is_seed_of(id, &seed, run, Height(of), &digest, scheme)
            {
                continue;
            }
            let first = samples.len();
            for (target, &byte) in self.targets(of, auditor, &seed).iter().zip(bytes) {
                let Some(audited) = audited.ledger.segment(target.origin) else { continue };
                let known = samples[first..]
                    .iter()
                    .position(|sample: &Sample| sample.origin == target.origin);
                let at = known.map_or_else(
                    || {
                        samples.push(Sample::new(auditor, target.origin));
                        samples.len() - 1
                    },
                    |known| first + known,
                );
                samples[at].add(audited.bytes[target.index], byte);
            }
        }
        // Each origin's together, for [`audit::score`].
        samples.sort_by_key(|sample| sample.origin);
        samples
    }

    /// What audits up to the last certified heights say of every member, or said when they convicted it; `None`
    /// while it is little.
    pub fn audit_scores(&self) -> Vec<Option<Score>> {
        let mut scores = match self.certified.checked_sub(1) {
            Some(height) => self.panel(height).scores(self.roster.len()),
            None => vec![None; self.roster.len()],
        };
        for (origin, verdict) in &self.verdicts {
            if self.convicted.contains_key(origin)
                && let Some(score) = scores.get_mut(origin.index())
            {
                *score = Some(*verdict);
            }
        }
        scores
    }

    /// Whom audits cast doubt on, as known after the last certified height.
    pub fn doubted(&self) -> &[Origin] {
        let last = self.certified.checked_sub(1).and_then(|height| self.summaries.get(&height));
        last.map_or(&[], |summary| &summary.doubted)
    }

    /// What the audits up to a certified height found.
    fn panel(&self, height: u64) -> Panel<'_> {
        // Of the members that are left a third may be faulty auditors; of few, fewer than a third, as nobody would
        // have auditors enough.
        let left = self.roster.len_at(Height(height)).saturating_sub(self.convicted.len());
        let third = if left < 9 { left.saturating_sub(1) / 3 } else { left / 3 };
        let faulty = third.max(1);
        let heights = (height.saturating_sub(WINDOW - 1)..=height).rev();
        let heights = heights.map_while(|at| self.summaries.get(&at));
        let samples = heights.map(|summary| &summary.audits[..]);
        let convicted =
            |auditor: &Origin| self.convicted.get(auditor).is_some_and(|from| *from <= height + 2);
        Panel::new(Height(height), samples, faulty, |auditor| !convicted(&auditor))
    }

    /// Excludes those whom the audits up to a certified height convict, from the height after next on, and doubts
    /// others in that height.
    pub(super) fn judge(&mut self, height: u64, out: &mut Vec<Output>) {
        if !self.audits() {
            return;
        }
        let from = height + 2;
        let panel = self.panel(height);
        let roster_len = self.roster.len_at(Height(height));
        let (scores, mut doubted) = (panel.scores(roster_len), panel.doubted(roster_len));
        let convicted: Vec<(Origin, Score)> = (0..)
            .map(Origin)
            .zip(scores)
            .filter_map(|(origin, score)| Some((origin, score.filter(|score| score.convicts)?)))
            .filter(|(origin, _)| !self.convicted.contains_key(origin))
            .collect();
        for (origin, score) in convicted {
            self.convicted.insert(origin, from);
            self.verdicts.insert(origin, score);
            let id = self.roster.id(origin).copied().unwrap_or(NodeId([0; 32]));
            out.push(Output::Event(Event::Convicted { origin: id, from: Height(from), score }));
            self.reconsider();
        }
        doubted.retain(|origin| !self.convicted.contains_key(origin));
        let before = height.checked_sub(1).and_then(|before| self.summaries.get(&before));
        if before.is_some_and(|before| before.doubted != doubted) {
            let origins = doubted.iter().filter_map(|origin| self.roster.id(*origin).copied());
            let origins = origins.collect();
            out.push(Output::Event(Event::Doubted { origins, from: Height(from) }));
        }
        if let Some(summary) = self.summaries.get_mut(&height) {
            summary.doubted = doubted;
        }
    }
}
