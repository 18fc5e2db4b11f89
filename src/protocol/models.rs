//! Which model members hold.
//!
//! The digest chain covers coefficients, not the model that they make. So that a newcomer can take the
//! model from anybody, members name it in their acks, after every [`MODEL_EVERY`] certified heights.
//! Of more members with one answer than can be faulty, one is honest.

use std::collections::BTreeMap;

use super::{DEEP, Protocol};
use crate::height::{ChainDigest, MODEL_EVERY, ModelDigest, model_digest};
use crate::id::Height;

impl Protocol {
    /// Tells the hash of the model after so many certified heights with this chain, for the acks of the
    /// height that names it. Where it comes late, or another chain counts by then, nothing is named.
    pub fn tell_model(&mut self, certified: Height, chain: ChainDigest, state_hash: &[u8; 32]) {
        let digest = model_digest(certified.0, &chain, state_hash);
        self.models.insert(certified.0, (chain, digest));
        let oldest = self.certified.saturating_sub(DEEP);
        self.models = self.models.split_off(&oldest);
    }

    /// What an ack of a height says.
    pub(super) fn model_of_ack(&self, height: u64) -> Option<ModelDigest> {
        let certified = height.checked_sub(1)?;
        let (chain, digest) = self.models.get(&certified)?;
        let counts = certified % MODEL_EVERY == 0 && self.chains.get(&certified) == Some(chain);
        counts.then_some(*digest)
    }

    /// The newest model that more members than can be faulty have named in certified acks: after how
    /// many heights, and its digest, to be compared with [`model_digest`] over [`Self::chain_after`].
    pub fn vouched_model(&self) -> Option<(Height, ModelDigest)> {
        let newest = self.certified.checked_sub(2)? / MODEL_EVERY * MODEL_EVERY;
        let oldest = self.certified.saturating_sub(DEEP).max(1);
        let mut candidates = (oldest..=newest).rev().filter(|of| of % MODEL_EVERY == 0);
        candidates.find_map(|certified| {
            let height = certified + 1;
            let state = self.heights.get(&height)?;
            let faulty = self.manifest.faulty_of(self.roster.len_at(Height(height)));
            let mut named: BTreeMap<ModelDigest, usize> = BTreeMap::new();
            for (_, ack) in state.acks.iter() {
                if let Some(model) = ack.seal.model {
                    *named.entry(model).or_default() += 1;
                }
            }
            let (digest, _) = named.into_iter().find(|(_, members)| *members > faulty)?;
            Some((Height(certified), digest))
        })
    }

    /// The digest chain after so many certified heights; `None` beyond the last, and long before it.
    pub fn chain_after(&self, certified: Height) -> Option<ChainDigest> {
        self.chains.get(&certified.0).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::height::{Ack, RecordSet};
    use crate::id::Origin;
    use crate::keys::Keys;
    use crate::ledger::Ledger;
    use crate::manifest::{Founders, Manifest};
    use crate::protocol::{Config, HeightState};

    const STATE: [u8; 32] = [5; 32];

    /// Four members, of which one may be faulty, after 18 certified heights of an invented history.
    fn node() -> Protocol {
        let founders = Founders::Members((0..4).map(|i| Keys::simulated(i).id()).collect());
        let manifest = Manifest { rounds: 1000, founders, ..Manifest::template() };
        let mut node = Protocol::new(manifest, Keys::simulated(0), Config::default()).unwrap();
        node.certified = 18;
        node.chains = (2..=18).map(|at| (at, ChainDigest([at as u8; 32]))).collect();
        node
    }

    /// Takes acks of height 17 in which members name these models.
    fn acknowledge(node: &mut Protocol, models: &[Option<ModelDigest>]) {
        let set = RecordSet::of(Height(17), &Ledger::new(4), &Default::default(), None);
        let mut state = HeightState::new(4);
        for (at, model) in models.iter().enumerate() {
            let keys = Keys::simulated(at as u64);
            let ack = Ack::sign(&node.run_id(), Height(17), &keys, &set, *model);
            assert!(ack.is_signed_by(&node.run_id(), Height(17), node.scheme, &keys.id()));
            let other =
                Ack { seal: crate::height::Seal { model: Some([9; 32]), ..ack.seal }, ..ack };
            assert!(!other.is_signed_by(&node.run_id(), Height(17), node.scheme, &keys.id()));
            state.acks.insert(Origin(at as u16), std::sync::Arc::new(ack));
        }
        node.heights.insert(17, state);
    }

    #[test]
    fn a_model_is_vouched_for_by_more_members_than_can_be_faulty() {
        let mut node = node();
        let chain = node.chain_after(Height(16)).unwrap();
        let digest = model_digest(16, &chain, &STATE);
        let named = Some(digest);
        acknowledge(&mut node, &[None, named, None, None]);
        assert_eq!(node.vouched_model(), None, "one may be faulty");
        acknowledge(&mut node, &[None, named, Some([3; 32]), None]);
        assert_eq!(node.vouched_model(), None, "they name different models");
        acknowledge(&mut node, &[None, named, Some([3; 32]), named]);
        assert_eq!(node.vouched_model(), Some((Height(16), digest)));
        node.certified = 17;
        assert_eq!(node.vouched_model(), None, "these acks are of no certified height");
    }

    #[test]
    fn an_ack_names_the_model_of_the_chain_that_counts() {
        let mut node = node();
        let chain = node.chain_after(Height(16)).unwrap();
        node.tell_model(Height(16), chain, &STATE);
        assert_eq!(node.model_of_ack(17), Some(model_digest(16, &chain, &STATE)));
        assert_eq!((node.model_of_ack(16), node.model_of_ack(18)), (None, None));
        // A larger certificate replaced something meanwhile.
        node.chains.insert(16, ChainDigest([77; 32]));
        assert_eq!(node.model_of_ack(17), None);
    }
}
