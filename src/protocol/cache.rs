//! What the nodes of one process need not work out again.
//!
//! A simulation runs a thousand protocols in one thread, and most of what they do is the same: all
//! check the same signatures, deal the same slots, and decode the same certified records. A
//! [`Cache`] that they share holds such results by their inputs, all of them; so with it and
//! without it every node does the same, byte for byte. A daemon has none.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use super::Summary;
use crate::height::{Ack, CertifiedSegment, SetDigest};
use crate::id::Origin;
use crate::ledger::Checked;
use crate::round::Deal;
use crate::update::RoundUpdate;

/// Results shared by the protocols of one run and process.
#[derive(Clone, Debug, Default)]
pub struct Cache(Arc<Mutex<Store>>);

/// Heights and rounds of which results are kept: more than a node may still change.
const HEIGHTS_MAX: usize = 24;
const ROUNDS_MAX: usize = 512;

/// Results of one round or height, for different inputs.
const VARIANTS_MAX: usize = 8;

/// Results by a hash of what they follow from.
type Keyed<T> = Vec<([u8; 32], T)>;

/// A deal, with what it follows from besides the round.
#[derive(Debug)]
struct Dealt {
    roster_len: usize,
    active: Vec<Origin>,
    deal: Arc<Deal>,
}

#[derive(Debug, Default)]
pub(super) struct Store {
    pub(super) segments: Checked,
    /// Acks that were checked, by height and origin.
    acks: BTreeMap<u64, Vec<Vec<Arc<Ack>>>>,
    deals: BTreeMap<u64, Vec<Dealt>>,
    /// What certified rounds pay out, by a hash of all that it depends on.
    updates: BTreeMap<u64, Keyed<Arc<RoundUpdate>>>,
    summaries: BTreeMap<u64, Keyed<Summary>>,
    exports: BTreeMap<u64, Keyed<Arc<Vec<CertifiedSegment>>>>,
}

impl Cache {
    pub(super) fn lock(&self) -> MutexGuard<'_, Store> {
        self.0.lock().expect("nobody panics with the cache in hand")
    }
}

impl Store {
    pub(super) fn ack(&self, height: u64, origin: Origin, ack: &Ack) -> Option<Arc<Ack>> {
        let known = self.acks.get(&height)?.get(origin.index())?;
        known.iter().rev().find(|known| ***known == *ack).cloned()
    }

    pub(super) fn remember_ack(&mut self, height: u64, origin: Origin, ack: &Arc<Ack>) {
        let by_origin = self.acks.entry(height).or_default();
        if by_origin.len() <= origin.index() {
            by_origin.resize(origin.index() + 1, Vec::new());
        }
        bounded(&mut by_origin[origin.index()], Arc::clone(ack));
        if self.acks.len() > HEIGHTS_MAX {
            self.acks.pop_first();
        }
    }

    /// The deal of a round.
    pub(super) fn deal(
        &mut self,
        round: u64,
        roster_len: usize,
        active: &[Origin],
        make: impl FnOnce() -> Deal,
    ) -> Arc<Deal> {
        let known = self.deals.entry(round).or_default();
        let same = |dealt: &&Dealt| dealt.roster_len == roster_len && dealt.active == active;
        let found = known.iter().find(same).map(|dealt| Arc::clone(&dealt.deal));
        let deal = found.unwrap_or_else(|| {
            let deal = Arc::new(make());
            let active = active.to_vec();
            bounded(known, Dealt { roster_len, active, deal: Arc::clone(&deal) });
            deal
        });
        if self.deals.len() > ROUNDS_MAX {
            self.deals.pop_first();
        }
        deal
    }

    pub(super) fn update(&self, round: u64, key: &[u8; 32]) -> Option<Arc<RoundUpdate>> {
        find(self.updates.get(&round)?, key)
    }

    pub(super) fn remember_update(&mut self, round: u64, key: [u8; 32], update: Arc<RoundUpdate>) {
        bounded(self.updates.entry(round).or_default(), (key, update));
        if self.updates.len() > ROUNDS_MAX {
            self.updates.pop_first();
        }
    }

    pub(super) fn summary(&self, height: u64, key: &[u8; 32]) -> Option<Summary> {
        find(self.summaries.get(&height)?, key)
    }

    pub(super) fn remember_summary(&mut self, height: u64, key: [u8; 32], summary: Summary) {
        bounded(self.summaries.entry(height).or_default(), (key, summary));
        if self.summaries.len() > HEIGHTS_MAX {
            self.summaries.pop_first();
        }
    }

    pub(super) fn export(
        &mut self,
        height: u64,
        digest: SetDigest,
        make: impl FnOnce() -> Vec<CertifiedSegment>,
    ) -> Arc<Vec<CertifiedSegment>> {
        let known = self.exports.entry(height).or_default();
        let segments = find(known, &digest).unwrap_or_else(|| {
            let segments = Arc::new(make());
            bounded(known, (digest, Arc::clone(&segments)));
            segments
        });
        if self.exports.len() > HEIGHTS_MAX {
            self.exports.pop_first();
        }
        segments
    }
}

fn find<T: Clone>(known: &[([u8; 32], T)], key: &[u8; 32]) -> Option<T> {
    known.iter().find(|entry| entry.0 == *key).map(|entry| entry.1.clone())
}

fn bounded<T>(known: &mut Vec<T>, entry: T) {
    if known.len() == VARIANTS_MAX {
        known.remove(0);
    }
    known.push(entry);
}
