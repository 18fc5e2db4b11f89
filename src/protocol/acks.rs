//! The acks of one height, counted as they come.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::height::{Ack, SetDigest};
use crate::id::Origin;

/// The heaviest ack of each member. Bounded by the roster.
#[derive(Clone, Debug, Default)]
pub(super) struct Acks {
    by_origin: Vec<Option<Arc<Ack>>>,
    /// Acks with each digest, none of them zero.
    tally: BTreeMap<SetDigest, usize>,
    /// Another number after every change.
    version: u64,
}

impl Acks {
    pub(super) fn get(&self, origin: Origin) -> Option<&Ack> {
        self.by_origin.get(origin.index()).and_then(Option::as_deref)
    }

    pub(super) fn insert(&mut self, origin: Origin, ack: Arc<Ack>) {
        if self.by_origin.len() <= origin.index() {
            self.by_origin.resize(origin.index() + 1, None);
        }
        *self.tally.entry(ack.digest).or_default() += 1;
        if let Some(before) = self.by_origin[origin.index()].replace(ack) {
            self.untally(&before);
        }
        self.version += 1;
    }

    fn untally(&mut self, ack: &Ack) {
        if let Some(count) = self.tally.get_mut(&ack.digest) {
            *count -= 1;
            if *count == 0 {
                self.tally.remove(&ack.digest);
            }
        }
    }

    /// Drops the acks of other sets.
    pub(super) fn keep_only(&mut self, digest: &SetDigest) {
        for at in self.by_origin.iter_mut().filter(|at| at.is_some()) {
            if at.as_ref().is_some_and(|ack| ack.digest != *digest) {
                *at = None;
            }
        }
        self.tally.retain(|of, _| of == digest);
        self.version += 1;
    }

    /// Replaces all of them.
    pub(super) fn replace(&mut self, acks: Acks) {
        let version = self.version + acks.version + 1;
        *self = Acks { version, ..acks };
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Origin, &Ack)> {
        let numbered = self.by_origin.iter().enumerate();
        numbered.filter_map(|(at, ack)| Some((Origin(at as u16), ack.as_deref()?)))
    }

    pub(super) fn len(&self) -> usize {
        self.tally.values().sum()
    }

    /// How many members signed each digest.
    pub(super) fn tally(&self) -> &BTreeMap<SetDigest, usize> {
        &self.tally
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }
}

impl FromIterator<(Origin, Ack)> for Acks {
    fn from_iter<I: IntoIterator<Item = (Origin, Ack)>>(acks: I) -> Acks {
        let mut all = Acks::default();
        acks.into_iter().for_each(|(origin, ack)| all.insert(origin, Arc::new(ack)));
        all
    }
}
