//! The acks of one height, counted as they come.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::codec::varint_len;
use crate::height::{Ack, SetDigest};
use crate::id::Origin;
use crate::message::AckGroup;

/// The heaviest ack of each member. Bounded by the roster.
#[derive(Clone, Debug, Default)]
pub(super) struct Acks {
    by_origin: Vec<Option<Arc<Ack>>>,
    /// The weights of `by_origin` plus one, for comparisons with what neighbors have; 0 for none.
    weights: Vec<u64>,
    /// Acks with each digest, none of them zero.
    tally: BTreeMap<SetDigest, usize>,
    /// Another number after every change.
    version: u64,
}

impl Acks {
    pub(super) fn get(&self, origin: Origin) -> Option<&Arc<Ack>> {
        self.by_origin.get(origin.index()).and_then(Option::as_ref)
    }

    /// The weight of a member's ack plus one, by origin; 0 for none. Shorter than the roster where
    /// nothing more is held.
    pub(super) fn weights(&self) -> &[u64] {
        &self.weights
    }

    /// Whether a member's ack is held that is not lighter.
    pub(super) fn has(&self, origin: Origin, weight: u64) -> bool {
        self.weights.get(origin.index()).is_some_and(|&held| held >= weight.saturating_add(1))
    }

    pub(super) fn insert(&mut self, origin: Origin, ack: Arc<Ack>) {
        if self.by_origin.len() <= origin.index() {
            self.by_origin.resize(origin.index() + 1, None);
            self.weights.resize(origin.index() + 1, 0);
        }
        self.weights[origin.index()] = ack.weight.saturating_add(1);
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
        for (at, weight) in self.by_origin.iter_mut().zip(&mut self.weights) {
            if at.as_ref().is_some_and(|ack| ack.digest != *digest) {
                *at = None;
                *weight = 0;
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

/// Acks of one set that a neighbor is told of: an [`AckGroup`] before its seals are copied.
#[derive(Clone, Debug)]
pub(super) struct ToldAcks {
    pub(super) height: u64,
    pub(super) weight: u64,
    pub(super) digest: SetDigest,
    pub(super) acks: Vec<(Origin, Arc<Ack>)>,
}

impl ToldAcks {
    /// What goes over the wire.
    pub(super) fn group(&self) -> AckGroup {
        AckGroup {
            height: self.height,
            weight: self.weight,
            digest: self.digest,
            acks: self.acks.iter().map(|(origin, ack)| (origin.0, ack.seal)).collect(),
        }
    }

    /// The length of the group's encoding.
    pub(super) fn encoded_len(&self) -> usize {
        let signed = |(origin, ack): &(Origin, Arc<Ack>)| {
            varint_len(origin.index()) + ack.seal.encoded_len()
        };
        varint_len(self.height as usize)
            + varint_len(self.weight as usize)
            + self.digest.len()
            + varint_len(self.acks.len())
            + self.acks.iter().map(signed).sum::<usize>()
    }
}

impl FromIterator<(Origin, Ack)> for Acks {
    fn from_iter<I: IntoIterator<Item = (Origin, Ack)>>(acks: I) -> Acks {
        let mut all = Acks::default();
        acks.into_iter().for_each(|(origin, ack)| all.insert(origin, Arc::new(ack)));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::height::Seal;
    use crate::keys::Signature;

    #[test]
    fn what_is_told_has_the_length_of_its_group() {
        for (height, weight, members) in [(0, 0, 0), (300, 70_000, 3), (1, u64::MAX - 1, 600)] {
            let ack = |model| {
                let seal = Seal { model, signature: Signature([9; 64]) };
                Arc::new(Ack { weight, digest: [7; 32], seal })
            };
            let (without, with) = (ack(None), ack(Some([5; 32])));
            let of = |at| Arc::clone(if at % 2 == 0 { &without } else { &with });
            let acks = (0..members).map(|at| (Origin(at), of(at))).collect();
            let told = ToldAcks { height, weight, digest: [7; 32], acks };
            assert_eq!(told.encoded_len(), crate::codec::encode(&told.group()).len());
        }
    }
}
