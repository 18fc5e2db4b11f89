//! Heights: record sets, acks and certificates.
//!
//! `E` rounds form a height. Its record set says for every origin which prefix of its segment
//! counts, which origins contradicted themselves, and which control records were made. A member
//! signs an [`Ack`] for the digest of its set; if the set grows it signs again, never for a smaller
//! one. `⌊(R + f)/2⌋ + 1` acks with one digest are a certificate. Two certificates of one height
//! share an honest signer, whose sets are nested; so the larger set contains the smaller, and the
//! largest certified set counts.

use std::collections::BTreeMap;
use std::sync::Arc;

use bincode::{Decode, Encode};

use crate::id::{Height, NodeId, Origin, RunId};
use crate::keys::{Keys, Scheme, Signature};
use crate::ledger::{Ledger, Segment, SegmentLimits};
use crate::roster::Roster;

/// BLAKE3 of a record set.
pub type SetDigest = [u8; 32];

/// BLAKE3 of a model after so many certified heights, and of the history that made it.
pub type ModelDigest = [u8; 32];

/// Members say which model they hold after every so many certified heights: a newcomer can then take
/// the model from anybody and check it, rather than replay what made it.
pub const MODEL_EVERY: u64 = 16;

/// What an ack says of the model after `certified` heights with this chain.
pub fn model_digest(certified: u64, chain: &ChainDigest, state_hash: &[u8; 32]) -> ModelDigest {
    let mut hasher = blake3::Hasher::new_derive_key("rumormill v1 model");
    hasher.update(&certified.to_le_bytes()).update(&chain.0).update(state_hash);
    *hasher.finalize().as_bytes()
}

/// Control records of one height that are kept.
pub const CONTROLS_MAX: usize = 64;

/// What evidence or a control record adds to the weight of a record set: more than any segment.
const CONTROL_WEIGHT: u64 = 1 << 16;

/// A record with lasting effect, at a position that all agree on.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Control {
    /// A node asks to be a member from the height after next.
    Join {
        /// The node.
        id: NodeId,
        /// The node's signature over run, height and its wish.
        signature: Signature,
    },
}

/// What makes two control records the same: different proofs of one fault are one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub enum ControlKey {
    /// See [`Control::Join`].
    Join(NodeId),
}

impl Control {
    /// A signed wish to join.
    pub fn join(run: &RunId, height: Height, keys: &Keys) -> Control {
        let signature = keys.sign(&join_statement(run, height, &keys.id()));
        Control::Join { id: keys.id(), signature }
    }

    /// What the record is about.
    pub fn key(&self) -> ControlKey {
        match self {
            Control::Join { id, .. } => ControlKey::Join(*id),
        }
    }

    /// Whether a wish to join is signed by the one who wishes.
    pub fn is_valid_join(&self, run: &RunId, height: Height, scheme: Scheme) -> bool {
        match self {
            Control::Join { id, signature } => {
                scheme.verify(id, &join_statement(run, height, id), signature)
            }
        }
    }
}

fn join_statement(run: &RunId, height: Height, id: &NodeId) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("rumormill v1 join");
    hasher.update(&run.0).update(&height.0.to_le_bytes()).update(&id.0);
    *hasher.finalize().as_bytes()
}

/// The record set of a height, by what its digest covers.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct RecordSet {
    /// Records that count, by origin; an origin that contradicted itself has none.
    pub lens: Vec<u16>,
    /// Origins that contradicted themselves in this height.
    pub equivocators: Vec<Origin>,
    /// Control records.
    pub controls: Vec<ControlKey>,
    /// The digest of all this and of the records themselves.
    pub digest: SetDigest,
}

impl RecordSet {
    /// The set of everything in a ledger, or of its prefixes `lens`.
    pub fn of(
        height: Height,
        ledger: &Ledger,
        controls: &BTreeMap<ControlKey, Control>,
        lens: Option<&[u16]>,
    ) -> RecordSet {
        let mut hasher = blake3::Hasher::new_derive_key("rumormill v1 record set");
        hasher.update(&height.0.to_le_bytes());
        let mut set_lens = vec![0; ledger.roster_len()];
        let mut equivocators = Vec::new();
        for at in 0..ledger.roster_len() {
            let origin = Origin(at as u16);
            if ledger.evidence().contains_key(&origin) {
                hasher.update(&origin.0.to_le_bytes()).update(b"equivocation");
                equivocators.push(origin);
                continue;
            }
            let held = ledger.len_of(origin);
            let len = lens.map_or(held, |lens| held.min(usize::from(lens[at])));
            let Some(segment) = ledger.held(origin).filter(|_| len > 0) else { continue };
            hasher.update(&origin.0.to_le_bytes()).update(b"segment");
            hasher.update(&segment.hash_of_prefix(len));
            set_lens[at] = len as u16;
        }
        let controls: Vec<ControlKey> = controls.keys().copied().collect();
        for key in &controls {
            match key {
                ControlKey::Join(id) => hasher.update(b"join").update(&id.0),
            };
        }
        let digest = *hasher.finalize().as_bytes();
        RecordSet { lens: set_lens, equivocators, controls, digest }
    }

    /// A number that grows when the set grows.
    pub fn weight(&self) -> u64 {
        let records: u64 = self.lens.iter().map(|&len| u64::from(len)).sum();
        records + CONTROL_WEIGHT * (self.equivocators.len() + self.controls.len()) as u64
    }

    /// Whether everything in another set of the same height is in this one too, as far as lengths
    /// tell.
    pub fn contains(&self, other: &RecordSet) -> bool {
        let equivocated = |at: usize| self.equivocators.contains(&Origin(at as u16));
        let lens = other.lens.iter().enumerate();
        self.lens.len() == other.lens.len()
            && lens.into_iter().all(|(at, &len)| equivocated(at) || self.lens[at] >= len)
            && other.equivocators.iter().all(|origin| self.equivocators.contains(origin))
            && other.controls.iter().all(|key| self.controls.contains(key))
    }

    /// Number of records.
    pub fn records(&self) -> u64 {
        self.lens.iter().map(|&len| u64::from(len)).sum()
    }
}

/// What a member adds to the set that it acknowledges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Seal {
    /// Where the heights before the last one are a multiple of [`MODEL_EVERY`]: the model after them,
    /// if the member had it at hand. Acks need not agree about it to be a certificate.
    pub model: Option<ModelDigest>,
    /// The member's signature over run, height, set and model.
    pub signature: Signature,
}

impl Seal {
    /// The length of its encoding.
    pub(crate) fn encoded_len(&self) -> usize {
        1 + self.model.map_or(0, |model| model.len()) + self.signature.0.len()
    }
}

/// A member's signature under a record set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// [`RecordSet::weight`].
    pub weight: u64,
    /// [`RecordSet::digest`].
    pub digest: SetDigest,
    /// What the member adds, and its signature.
    pub seal: Seal,
}

impl Ack {
    /// Signs a record set.
    pub fn sign(
        run: &RunId,
        height: Height,
        keys: &Keys,
        set: &RecordSet,
        model: Option<ModelDigest>,
    ) -> Ack {
        let (weight, digest) = (set.weight(), set.digest);
        let signature = keys.sign(&ack_statement(run, height, weight, &digest, &model));
        Ack { weight, digest, seal: Seal { model, signature } }
    }

    /// Whether `member` signed it.
    pub fn is_signed_by(
        &self,
        run: &RunId,
        height: Height,
        scheme: Scheme,
        member: &NodeId,
    ) -> bool {
        let statement = ack_statement(run, height, self.weight, &self.digest, &self.seal.model);
        scheme.verify(member, &statement, &self.seal.signature)
    }
}

fn ack_statement(
    run: &RunId,
    height: Height,
    weight: u64,
    digest: &SetDigest,
    model: &Option<ModelDigest>,
) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("rumormill v1 ack");
    hasher.update(&run.0).update(&height.0.to_le_bytes());
    hasher.update(&weight.to_le_bytes()).update(digest);
    if let Some(model) = model {
        hasher.update(model);
    }
    *hasher.finalize().as_bytes()
}

/// The records of one origin in a certified height; the certificate vouches for them.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct CertifiedSegment {
    /// Whose records.
    pub origin: u16,
    /// Bytes per round.
    pub counts: Vec<u16>,
    /// LB8 codes.
    pub bytes: Vec<u8>,
}

/// A certified height with everything that a newcomer needs to check it and to replay it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct CertifiedHeight {
    /// The height.
    pub height: u64,
    /// Records, by origin.
    pub segments: Arc<Vec<CertifiedSegment>>,
    /// Origins that contradicted themselves.
    pub equivocators: Vec<u16>,
    /// Control records.
    pub controls: Vec<Control>,
    /// Weight under the members' signatures.
    pub weight: u64,
    /// Members and their seals, at least a quorum.
    pub acks: Vec<(u16, Seal)>,
}

/// Why a certified height was not accepted. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// It is not the height that was asked for.
    #[error("certified height {found} where {expected} was expected")]
    Height {
        /// The height asked for.
        expected: u64,
        /// The height in the message.
        found: u64,
    },
    /// Segments, origins or control records break a limit or repeat.
    #[error("certified height {0} is malformed")]
    Malformed(u64),
    /// Fewer valid signatures than a quorum.
    #[error("certified height {height} has {valid} valid signatures, a quorum is {quorum}")]
    Quorum {
        /// The height.
        height: u64,
        /// Distinct members whose signature is valid.
        valid: usize,
        /// Signatures needed.
        quorum: usize,
    },
}

impl CertifiedHeight {
    /// What is in the height, once its signatures have been checked against the roster of that height.
    ///
    /// # Errors
    /// See [`CertificateError`].
    pub fn check(
        &self,
        run: &RunId,
        scheme: Scheme,
        roster: &Roster,
        quorum: usize,
        limits: SegmentLimits,
    ) -> Result<Checked, CertificateError> {
        let height = Height(self.height);
        let roster_len = roster.len_at(height);
        let malformed = || CertificateError::Malformed(self.height);
        let mut ledger = Ledger::new(roster_len);
        let mut hasher_order = None;
        for segment in self.segments.iter() {
            let in_order = hasher_order.is_none_or(|before| before < segment.origin);
            hasher_order = Some(segment.origin);
            let whole = Segment {
                counts: segment.counts.clone(),
                bytes: segment.bytes.clone(),
                closed: true,
                signature: Signature([0; 64]),
            };
            if !in_order
                || usize::from(segment.origin) >= roster_len
                || whole.bytes.is_empty()
                || !whole.fits(limits)
            {
                return Err(malformed());
            }
            ledger.set_certified(Origin(segment.origin), Some(whole));
        }
        let mut equivocators = self.equivocators.clone();
        equivocators.dedup();
        let sorted = equivocators.windows(2).all(|pair| pair[0] < pair[1]);
        let distinct = equivocators.len() == self.equivocators.len();
        if !sorted || !distinct || equivocators.iter().any(|&o| usize::from(o) >= roster_len) {
            return Err(malformed());
        }
        for &origin in &equivocators {
            ledger.mark_equivocator(Origin(origin), self.height);
        }
        if self.controls.len() > CONTROLS_MAX {
            return Err(malformed());
        }
        let controls: BTreeMap<ControlKey, Control> =
            self.controls.iter().map(|control| (control.key(), control.clone())).collect();
        let set = RecordSet::of(height, &ledger, &controls, None);
        if set.weight() != self.weight {
            return Err(malformed());
        }
        let mut signers: BTreeMap<Origin, Ack> = BTreeMap::new();
        for (origin, seal) in self.acks.iter().take(roster_len) {
            let ack = Ack { weight: self.weight, digest: set.digest, seal: *seal };
            let member = roster.id(Origin(*origin)).filter(|_| usize::from(*origin) < roster_len);
            if member.is_some_and(|id| ack.is_signed_by(run, height, scheme, id)) {
                signers.insert(Origin(*origin), ack);
            }
        }
        if signers.len() < quorum {
            return Err(CertificateError::Quorum {
                height: self.height,
                valid: signers.len(),
                quorum,
            });
        }
        Ok(Checked { ledger, controls, set, acks: signers })
    }
}

/// A certified height whose signatures have been checked.
#[derive(Debug)]
pub struct Checked {
    /// Its records.
    pub ledger: Ledger,
    /// Its control records.
    pub controls: BTreeMap<ControlKey, Control>,
    /// What the digest covers.
    pub set: RecordSet,
    /// The acks whose signatures hold, a quorum at least; others in the message count for nothing.
    pub acks: BTreeMap<Origin, Ack>,
}

/// The digest chain: `D_h = BLAKE3(D_{h−1} ‖ certified set ‖ coefficients)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainDigest(pub [u8; 32]);

impl ChainDigest {
    /// The digest before the first height.
    pub fn start(run: &RunId) -> ChainDigest {
        ChainDigest(blake3::derive_key("rumormill v1 chain", &run.0))
    }

    /// The digest after a height: `payouts` are the height's coefficients in canonical order.
    pub fn next(&self, set: &SetDigest, payouts: &[u8]) -> ChainDigest {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.0).update(set).update(payouts);
        ChainDigest(*hasher.finalize().as_bytes())
    }

    /// The first bytes, by which neighbors notice that their chains differ.
    pub fn tag(&self) -> [u8; 4] {
        [self.0[0], self.0[1], self.0[2], self.0[3]]
    }
}

impl std::str::FromStr for ChainDigest {
    type Err = String;

    /// 64 hexadecimal digits.
    fn from_str(text: &str) -> Result<ChainDigest, String> {
        let wrong = || format!("'{}' is no digest of 64 hexadecimal digits", text.escape_debug());
        let digits = text.as_bytes();
        if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(wrong());
        }
        let mut bytes = [0; 32];
        for (byte, at) in bytes.iter_mut().zip((0..).step_by(2)) {
            *byte = u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| wrong())?;
        }
        Ok(ChainDigest(bytes))
    }
}

impl std::fmt::Display for ChainDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who serves history may add what it likes behind a quorum of genuine acks.
    #[test]
    fn acks_that_nobody_signed_are_not_taken_with_a_certificate() {
        let run = RunId([3; 32]);
        let ids: Vec<NodeId> = (0..4).map(|at| Keys::simulated(at).id()).collect();
        let set = RecordSet::of(Height(17), &Ledger::new(4), &BTreeMap::new(), None);
        let sign = |at: u64| Ack::sign(&run, Height(17), &Keys::simulated(at), &set, None);
        let forged = |at: u16| (at, Seal { model: Some([9; 32]), ..sign(u64::from(at)).seal });
        let mut acks: Vec<(u16, Seal)> = (0..3).map(|at| (at as u16, sign(at).seal)).collect();
        acks.extend([forged(3), forged(0), forged(1), forged(2)]);
        let certified = CertifiedHeight {
            height: 17,
            segments: Arc::default(),
            equivocators: Vec::new(),
            controls: Vec::new(),
            weight: set.weight(),
            acks,
        };
        let limits = SegmentLimits { rounds: 2, bytes_per_round: 8, audits: 0 };
        let scheme = Keys::simulated(0).scheme();
        let checked = certified.check(&run, scheme, &Roster::new(&ids), 3, limits).unwrap();
        let genuine: BTreeMap<Origin, Ack> =
            (0..3).map(|at| (Origin(at as u16), sign(at))).collect();
        assert_eq!(checked.acks, genuine);
    }
}
