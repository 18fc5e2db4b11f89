//! The ledger: who measured which byte along which shared direction.
//!
//! An origin's records of one height are a [`Segment`]: its bytes in the order of its walk, the
//! byte count of each round, and one Ed25519 signature over the whole prefix. Position gives round
//! and slot, so a record is one byte on the wire. Segments only grow: of two honest statements of
//! one origin and height, one is a prefix of the other. Two that are not are [`Evidence`] of
//! equivocation, and from then on the origin's records of that height count for nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use bincode::{Decode, Encode};

use crate::codec::varint_len;
use crate::id::{Height, NodeId, Origin, RunId};
use crate::keys::{Keys, Scheme, Signature};

/// A signed prefix of an origin's records of one height.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Segment {
    /// Bytes per round, from the height's first round; the last count is not zero.
    pub counts: Vec<u16>,
    /// LB8 codes in the order of the origin's walk, all rounds one after the other.
    pub bytes: Vec<u8>,
    /// The origin says that it will not extend this segment.
    pub closed: bool,
    /// The origin's signature over domain, run, origin, height, counts, bytes and `closed`.
    pub signature: Signature,
}

/// What a neighbor lacks of a segment.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct SegmentDelta {
    /// Heights above the sender's certified count.
    pub height: u64,
    /// Whose records.
    pub origin: u16,
    /// Bytes of the prefix that the receiver is known to hold.
    pub offset: u16,
    /// The round, within the height, of the first byte of the delta.
    pub first_round: u16,
    /// Total counts from `first_round` on.
    pub counts: Vec<u16>,
    /// The bytes after the offset.
    pub bytes: Vec<u8>,
    /// See [`Segment::closed`].
    pub closed: bool,
    /// See [`Segment::signature`].
    pub signature: Signature,
}

/// Two signed statements of one origin about one height that cannot both be honest.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Evidence {
    /// The height both speak of.
    pub height: u64,
    /// Who signed both.
    pub origin: u16,
    /// The statement held first.
    pub first: Segment,
    /// The one that contradicts it.
    pub second: Segment,
}

/// What bounds a segment: the manifest's numbers.
#[derive(Clone, Copy, Debug)]
pub struct SegmentLimits {
    /// Rounds in the height.
    pub rounds: usize,
    /// Most bytes in one round.
    pub bytes_per_round: usize,
    /// Most bytes of the audit section, which follows the rounds like one round more; zero where there
    /// is none.
    pub audits: usize,
}

impl SegmentLimits {
    /// Entries of a segment's counts.
    fn counts_max(&self) -> usize {
        self.rounds + usize::from(self.audits > 0)
    }
}

/// What an insertion did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inserted {
    /// The origin's segment grew by this many records.
    Extended(usize),
    /// Nothing new: a duplicate of so many records.
    Duplicate(usize),
    /// The delta starts beyond what is held, or does not fit the prefix that is held: the segment
    /// is needed from its start. Nothing was changed and nobody is at fault.
    NeedsWhole,
    /// The origin contradicted itself; the ledger keeps the evidence and drops the segment.
    Equivocation,
}

/// Why a statement was refused. The ledger is unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InsertError {
    /// The origin is not in the roster of that height.
    #[error("origin {0} is not in the roster")]
    UnknownOrigin(u16),
    /// Counts and bytes do not fit the limits or each other.
    #[error("segment of origin {0} breaks its limits")]
    Limits(u16),
    /// A whole statement carries a signature that is not its origin's.
    #[error("segment of origin {0} is not signed by it")]
    Signature(u16),
    /// The claimed evidence proves nothing.
    #[error("evidence against origin {0} proves nothing")]
    NoEvidence(u16),
}

/// Who a statement belongs to and how it is signed.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The run.
    pub run: &'a RunId,
    /// The height.
    pub height: Height,
    /// How statements are signed.
    pub scheme: Scheme,
    /// Bounds on a segment.
    pub limits: SegmentLimits,
}

/// BLAKE3 of counts and bytes: what a record set says of one origin.
pub fn segment_hash(counts: &[u16], bytes: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(counts.len() as u64).to_le_bytes());
    for count in counts {
        hasher.update(&count.to_le_bytes());
    }
    hasher.update(bytes);
    *hasher.finalize().as_bytes()
}

/// Whether `prefix` is [`counts_of_prefix`] of `counts`, without making it.
fn is_counts_of_prefix(prefix: &[u16], counts: &[u16], len: usize) -> bool {
    // All rounds but the last one that has bytes are whole; the last may be cut short.
    match prefix.split_last() {
        None => len == 0,
        Some((last, whole)) => {
            let before: usize = whole.iter().map(|&count| usize::from(count)).sum();
            *last > 0
                && counts.len() > whole.len()
                && counts[..whole.len()] == *whole
                && counts[whole.len()] >= *last
                && before + usize::from(*last) == len
        }
    }
}

/// The canonical counts of the first `len` bytes: no trailing zeros.
pub fn counts_of_prefix(counts: &[u16], len: usize) -> Vec<u16> {
    let mut left = len;
    let mut prefix = Vec::with_capacity(counts.len());
    for &count in counts {
        if left == 0 {
            break;
        }
        let taken = left.min(usize::from(count));
        prefix.push(taken as u16);
        left -= taken;
    }
    prefix
}

fn statement(context: &Context<'_>, origin: &NodeId, segment: (&[u16], &[u8], bool)) -> [u8; 32] {
    let (counts, bytes, closed) = segment;
    let mut hasher = blake3::Hasher::new_derive_key("rumormill v1 segment");
    hasher.update(&context.run.0);
    hasher.update(&origin.0);
    hasher.update(&context.height.0.to_le_bytes());
    hasher.update(&[u8::from(closed)]);
    hasher.update(&segment_hash(counts, bytes));
    *hasher.finalize().as_bytes()
}

impl Segment {
    /// Signs a prefix of one's own records.
    pub fn sign(
        context: &Context<'_>,
        keys: &Keys,
        counts: Vec<u16>,
        bytes: Vec<u8>,
        closed: bool,
    ) -> Segment {
        let digest = statement(context, &keys.id(), (&counts, &bytes, closed));
        Segment { signature: keys.sign(&digest), counts, bytes, closed }
    }

    /// Whether counts fit the bytes and the limits, in canonical form.
    pub fn fits(&self, limits: SegmentLimits) -> bool {
        counts_fit(&self.counts, self.bytes.len(), limits)
    }

    /// Bytes that are records: all before the audit section.
    pub fn records(&self, limits: SegmentLimits) -> usize {
        self.counts.iter().take(limits.rounds).map(|&count| usize::from(count)).sum()
    }

    /// Whether `origin` signed this statement.
    pub fn is_signed_by(&self, context: &Context<'_>, origin: &NodeId) -> bool {
        let digest = statement(context, origin, (&self.counts, &self.bytes, self.closed));
        context.scheme.verify(origin, &digest, &self.signature)
    }

    /// Whether the first statement is a prefix of the second.
    fn is_prefix_of(&self, longer: &Segment) -> bool {
        longer.bytes.starts_with(&self.bytes)
            && is_counts_of_prefix(&self.counts, &longer.counts, self.bytes.len())
    }

    /// Whether two statements of one origin cannot both be honest.
    pub fn contradicts(&self, other: &Segment) -> bool {
        !(self.is_prefix_of(other) || other.is_prefix_of(self))
    }

    /// What a neighbor that holds the first `offset` bytes lacks. An offset beyond the segment
    /// gives the whole.
    pub fn delta(&self, height: u64, origin: Origin, offset: usize) -> SegmentDelta {
        let offset = if offset > self.bytes.len() { 0 } else { offset };
        let first_round = self.round_at(offset);
        SegmentDelta {
            height,
            origin: origin.0,
            offset: offset as u16,
            first_round: first_round as u16,
            counts: self.counts.get(first_round..).unwrap_or_default().to_vec(),
            bytes: self.bytes[offset..].to_vec(),
            closed: self.closed,
            signature: self.signature,
        }
    }

    /// The round of the first byte after `offset`; that of the last round when there is none.
    fn round_at(&self, offset: usize) -> usize {
        let mut before = 0;
        let mut at = 0;
        for (round, &count) in self.counts.iter().enumerate() {
            at = round;
            before += usize::from(count);
            if before > offset {
                break;
            }
        }
        at
    }
}

fn counts_fit(counts: &[u16], len: usize, limits: SegmentLimits) -> bool {
    let most = |at: usize| if at < limits.rounds { limits.bytes_per_round } else { limits.audits };
    counts.len() <= limits.counts_max()
        && counts.last() != Some(&0)
        && counts.iter().enumerate().all(|(at, &count)| usize::from(count) <= most(at))
        && counts.iter().map(|&count| usize::from(count)).sum::<usize>() == len
}

/// A segment as ledgers hold it: shared by those that hold the same one.
///
/// In the order of its fields: a simulation of many nodes waits for memory more than for anything
/// else, and most of what is asked of a segment can be told from the first ones.
#[derive(Debug)]
#[repr(C)]
pub struct Held {
    /// The same for all versions of an own segment, of which the shorter is a prefix of the longer:
    /// where they are handed on within a process nobody compares their bytes.
    line: Option<Arc<()>>,
    recent: Recent,
    segment: Segment,
    hash: OnceLock<[u8; 32]>,
}

/// Bytes of a segment that are also kept beside its header.
const RECENT: usize = 8;

/// The end of a segment.
#[derive(Debug)]
struct Recent {
    /// The segment's length and whether it is closed.
    len: u16,
    closed: bool,
    /// The last bytes; where there are fewer, zeros first.
    bytes: [u8; RECENT],
    /// Their rounds within the height.
    rounds: [u16; RECENT],
}

impl Recent {
    fn of(segment: &Segment) -> Recent {
        let len = segment.bytes.len();
        let mut recent = Recent {
            len: len as u16,
            closed: segment.closed,
            bytes: [0; RECENT],
            rounds: [0; RECENT],
        };
        let rounds = segment.counts.iter().enumerate().rev();
        let rounds = rounds.flat_map(|(at, &count)| std::iter::repeat_n(at as u16, count.into()));
        let last = segment.bytes.iter().rev().zip(rounds).take(RECENT);
        for (at, (&byte, round)) in (0..RECENT).rev().zip(last) {
            (recent.bytes[at], recent.rounds[at]) = (byte, round);
        }
        recent
    }
}

impl PartialEq for Held {
    fn eq(&self, other: &Held) -> bool {
        self.segment == other.segment
    }
}

/// As the segment alone.
impl Encode for Held {
    fn encode<E: bincode::enc::Encoder>(
        &self,
        encoder: &mut E,
    ) -> Result<(), bincode::error::EncodeError> {
        self.segment.encode(encoder)
    }
}

impl<Context> Decode<Context> for Held {
    fn decode<D: bincode::de::Decoder<Context = Context>>(
        decoder: &mut D,
    ) -> Result<Held, bincode::error::DecodeError> {
        Ok(Held::of(Decode::decode(decoder)?, None))
    }
}

bincode::impl_borrow_decode!(Held);

impl Held {
    fn new(segment: Segment) -> Arc<Held> {
        Arc::new(Held::of(segment, None))
    }

    fn of(segment: Segment, line: Option<Arc<()>>) -> Held {
        Held { line, recent: Recent::of(&segment), segment, hash: OnceLock::new() }
    }

    /// The number of its bytes.
    fn len(&self) -> usize {
        self.recent.len.into()
    }

    /// Whether it is closed.
    pub fn is_closed(&self) -> bool {
        self.recent.closed
    }

    /// The bytes after the first `offset`, each with its round within the height; `None` where they
    /// are too many to be kept beside the header, or none.
    pub fn recent(&self, offset: usize) -> Option<impl Iterator<Item = (usize, u8)> + Clone> {
        let new = self.len().checked_sub(offset).filter(|new| (1..=RECENT).contains(new))?;
        let Recent { bytes, rounds, .. } = &self.recent;
        let rounds = rounds[RECENT - new..].iter().map(|&round| usize::from(round));
        Some(rounds.zip(bytes[RECENT - new..].iter().copied()))
    }

    /// Whether this is a prefix of a later statement of the same origin.
    fn is_prefix_of(&self, longer: &Held) -> bool {
        match (&self.line, &longer.line) {
            (Some(own), Some(other)) if Arc::ptr_eq(own, other) => self.len() <= longer.len(),
            _ => self.segment.is_prefix_of(&longer.segment),
        }
    }

    /// The segment.
    pub fn segment(&self) -> &Segment {
        &self.segment
    }

    /// [`segment_hash`] of the first `len` bytes; that of the whole is made once.
    pub fn hash_of_prefix(&self, len: usize) -> [u8; 32] {
        let Segment { counts, bytes, .. } = &self.segment;
        if len == bytes.len() {
            return *self.hash.get_or_init(|| segment_hash(counts, bytes));
        }
        segment_hash(&counts_of_prefix(counts, len), &bytes[..len])
    }
}

/// A segment that a neighbor is told of, from an offset on: a [`SegmentDelta`] before its bytes are
/// copied.
#[derive(Clone, Debug)]
pub struct Told {
    /// The height.
    pub height: u64,
    /// Whose records.
    pub origin: Origin,
    /// Bytes that the neighbor is known to hold, at most the segment's.
    pub offset: usize,
    /// The segment, signed by its origin.
    pub held: Arc<Held>,
}

impl Told {
    /// What goes over the wire.
    pub fn delta(&self) -> SegmentDelta {
        self.held.segment.delta(self.height, self.origin, self.offset)
    }

    /// The length of the delta's encoding.
    pub fn encoded_len(&self) -> usize {
        let len = self.held.len();
        let counted = |counts: &[u16]| counts.iter().map(|&count| varint_len(count.into())).sum();
        let (first_round, counts, counts_len): (usize, usize, usize) =
            match self.held.recent(self.offset) {
                // All counts are as short as they can be.
                Some(mut recent) if len <= 250 => {
                    let (first, _) = recent.next().expect("there is one at least");
                    let last = recent.last().map_or(first, |(last, _)| last);
                    (first, last + 1 - first, last + 1 - first)
                }
                _ => {
                    let first = self.held.segment.round_at(self.offset);
                    let counts = self.held.segment.counts.get(first..).unwrap_or_default();
                    (first, counts.len(), counted(counts))
                }
            };
        let new = len - self.offset;
        let numbers = [self.origin.index(), self.offset, first_round, counts, new];
        varint_len(self.height as usize)
            + numbers.map(varint_len).iter().sum::<usize>()
            + counts_len
            + new
            + size_of::<bool>()
            + size_of::<Signature>()
    }
}

/// Statements that were found to be signed by their origin, so that the other ledgers of a process
/// need not check them again. One a run: it takes the signatures' context for granted.
///
/// Bounded by [`VERSIONS_MAX`] statements an origin in [`HEIGHTS_MAX`] heights.
#[derive(Debug, Default)]
pub struct Checked {
    heights: BTreeMap<u64, Vec<Vec<Arc<Held>>>>,
}

/// Statements of an origin and height that are remembered: as many as have rounds, mostly.
const VERSIONS_MAX: usize = 32;

/// Heights of which statements are remembered: more than a node holds.
const HEIGHTS_MAX: usize = 20;

impl Checked {
    /// The statement that a delta completes, if it was checked before.
    fn find(&self, delta: &SegmentDelta) -> Option<&Arc<Held>> {
        let versions = self.heights.get(&delta.height)?.get(usize::from(delta.origin))?;
        let (offset, first_round) = (usize::from(delta.offset), usize::from(delta.first_round));
        versions.iter().rev().find(|held| {
            let segment = &held.segment;
            // Eight bytes tell nearly all versions apart, and are compared at once.
            segment.signature.0[..8] == delta.signature.0[..8]
                && segment.signature == delta.signature
                && segment.closed == delta.closed
                && segment.bytes.len() == offset + delta.bytes.len()
                && segment.bytes[offset..] == delta.bytes
                && segment.counts.get(first_round..) == Some(&delta.counts)
        })
    }

    fn remember(&mut self, height: u64, origin: Origin, held: &Arc<Held>) {
        let by_origin = self.heights.entry(height).or_default();
        if by_origin.len() <= origin.index() {
            by_origin.resize(origin.index() + 1, Vec::new());
        }
        let versions = &mut by_origin[origin.index()];
        if versions.len() == VERSIONS_MAX {
            versions.remove(0);
        }
        versions.push(Arc::clone(held));
        if self.heights.len() > HEIGHTS_MAX {
            self.heights.pop_first();
        }
    }
}

/// All records of one height that a node holds.
///
/// Bounded by the roster: one segment of at most `2m·E` bytes and one piece of evidence an origin.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// By origin; an empty segment is not kept.
    segments: Vec<Option<Arc<Held>>>,
    /// The lengths of `segments`, for comparisons with what neighbors hold.
    lens: Vec<u16>,
    /// 1 where a segment is closed, otherwise 0: for the same comparisons.
    closed: Vec<u16>,
    /// Origins that contradicted themselves, with the proof.
    evidence: BTreeMap<Origin, Evidence>,
    /// Counts the changes.
    version: u64,
}

impl Ledger {
    /// An empty ledger for a roster of `roster_len`.
    pub fn new(roster_len: usize) -> Ledger {
        Ledger {
            segments: vec![None; roster_len],
            lens: vec![0; roster_len],
            closed: vec![0; roster_len],
            evidence: BTreeMap::new(),
            version: 0,
        }
    }

    /// The segment held of `origin`; none when it contradicted itself.
    pub fn segment(&self, origin: Origin) -> Option<&Segment> {
        self.held(origin).map(|held| &held.segment)
    }

    /// The segment held of `origin`, with its hash.
    pub fn held(&self, origin: Origin) -> Option<&Arc<Held>> {
        self.segments.get(origin.index()).and_then(Option::as_ref)
    }

    /// All segments held.
    pub fn segments(&self) -> impl Iterator<Item = &Segment> {
        self.segments.iter().flatten().map(|held| &held.segment)
    }

    /// Records held of `origin`.
    pub fn len_of(&self, origin: Origin) -> usize {
        self.lens.get(origin.index()).copied().map_or(0, usize::from)
    }

    /// Records held, by origin.
    pub fn lens(&self) -> &[u16] {
        &self.lens
    }

    /// By origin: 1 where the segment held is closed, otherwise 0.
    pub fn closed(&self) -> &[u16] {
        &self.closed
    }

    /// A number that is another one after every change.
    pub fn version(&self) -> u64 {
        self.version
    }

    fn put(&mut self, origin: Origin, held: Option<Arc<Held>>) {
        self.lens[origin.index()] = held.as_ref().map_or(0, |held| held.recent.len);
        self.closed[origin.index()] = held.as_ref().map_or(0, |held| held.is_closed().into());
        self.segments[origin.index()] = held;
        self.version += 1;
    }

    /// Origins in the roster of this height.
    pub fn roster_len(&self) -> usize {
        self.segments.len()
    }

    /// Proofs of equivocation, by origin.
    pub fn evidence(&self) -> &BTreeMap<Origin, Evidence> {
        &self.evidence
    }

    /// Replaces a segment by one's own, newly signed; growth is the caller's promise.
    pub fn set_own(&mut self, origin: Origin, segment: Segment) {
        assert!(
            self.segment(origin).is_none_or(|held| held.is_prefix_of(&segment)),
            "an own segment only ever grows"
        );
        let line = self.held(origin).and_then(|held| held.line.clone()).unwrap_or_default();
        self.put(origin, Some(Arc::new(Held::of(segment, Some(line)))));
    }

    /// Tells other ledgers of this process of a segment that is signed by its origin.
    pub fn share(&self, height: u64, origin: Origin, checked: &mut Checked) {
        if let Some(Some(held)) = self.segments.get(origin.index()) {
            checked.remember(height, origin, held);
        }
    }

    /// Replaces a segment by what a certificate covers.
    pub fn set_certified(&mut self, origin: Origin, segment: Option<Segment>) {
        self.put(origin, segment.map(Held::new));
    }

    /// Takes a delta that completes a statement which was checked before, provided that what is
    /// held is a beginning of it; otherwise `None`, and [`Ledger::insert`] decides.
    pub fn insert_checked(&mut self, delta: &SegmentDelta, checked: &Checked) -> Option<Inserted> {
        let found = checked.find(delta)?;
        self.insert_held(Origin(delta.origin), usize::from(delta.offset), found)
    }

    /// Takes a segment that is known to be signed by its origin, told from `offset` on, like
    /// [`Ledger::insert_checked`].
    pub fn insert_held(
        &mut self,
        origin: Origin,
        offset: usize,
        found: &Arc<Held>,
    ) -> Option<Inserted> {
        if origin.index() >= self.segments.len() || self.evidence.contains_key(&origin) {
            return None;
        }
        let new_len = found.len();
        let mut before = 0;
        if let Some(held) = &self.segments[origin.index()] {
            before = held.len();
            let closes = found.is_closed() && !held.is_closed();
            if !held.is_prefix_of(found) {
                return None;
            }
            if new_len == before && !closes {
                return Some(Inserted::Duplicate(new_len - offset));
            }
        } else if new_len == 0 {
            return None;
        }
        if offset > before {
            return None;
        }
        self.put(origin, Some(Arc::clone(found)));
        Some(Inserted::Extended(new_len - before))
    }

    /// Inserts what a neighbor sent of `origin`'s segment.
    ///
    /// # Errors
    /// The statement breaks a limit or is not signed by its origin; nothing was changed.
    pub fn insert(
        &mut self,
        context: &Context<'_>,
        id: &NodeId,
        delta: SegmentDelta,
    ) -> Result<Inserted, InsertError> {
        let origin = Origin(delta.origin);
        if origin.index() >= self.segments.len() {
            return Err(InsertError::UnknownOrigin(delta.origin));
        }
        if self.evidence.contains_key(&origin) {
            return Ok(Inserted::Duplicate(delta.bytes.len()));
        }
        let held = self.segment(origin);
        let offset = usize::from(delta.offset);
        let held_len = held.map_or(0, |segment| segment.bytes.len());
        if offset > held_len {
            return Ok(Inserted::NeedsWhole);
        }
        let first_round = usize::from(delta.first_round);
        let mut counts = match held {
            Some(segment) if offset > 0 => {
                // Rounds before the delta's first are as held, and as long as the prefix says.
                counts_of_prefix(&segment.counts, offset)
            }
            _ => Vec::new(),
        };
        let most = context.limits.counts_max();
        if first_round > most || delta.counts.len() > most {
            return Err(InsertError::Limits(delta.origin));
        }
        counts.resize(first_round, 0);
        counts.extend(&delta.counts);
        let mut bytes = held.map_or_else(Vec::new, |segment| segment.bytes[..offset].to_vec());
        bytes.extend(&delta.bytes);
        let candidate = Segment { counts, bytes, closed: delta.closed, signature: delta.signature };
        if !candidate.fits(context.limits) {
            // Counts that do not add up may come from another prefix than the one held.
            return match offset {
                0 => Err(InsertError::Limits(delta.origin)),
                _ => Ok(Inserted::NeedsWhole),
            };
        }
        self.insert_candidate(context, id, origin, candidate, offset)
    }

    fn insert_candidate(
        &mut self,
        context: &Context<'_>,
        id: &NodeId,
        origin: Origin,
        candidate: Segment,
        offset: usize,
    ) -> Result<Inserted, InsertError> {
        let new_len = candidate.bytes.len();
        let held = self.segment(origin);
        if let Some(segment) = held {
            let news = new_len > segment.bytes.len() || (candidate.closed && !segment.closed);
            if !news && !candidate.contradicts(segment) {
                return Ok(Inserted::Duplicate(new_len - offset));
            }
        } else if new_len == 0 && !candidate.closed {
            return Ok(Inserted::Duplicate(0));
        }
        if !candidate.is_signed_by(context, id) {
            return match offset {
                0 => Err(InsertError::Signature(origin.0)),
                _ => Ok(Inserted::NeedsWhole),
            };
        }
        match held {
            Some(segment) if segment.contradicts(&candidate) => {
                let evidence = Evidence {
                    height: context.height.0,
                    origin: origin.0,
                    first: segment.clone(),
                    second: candidate,
                };
                self.put(origin, None);
                self.evidence.insert(origin, evidence);
                Ok(Inserted::Equivocation)
            }
            // A shorter statement that says "closed" although a longer one exists.
            Some(segment) if segment.bytes.len() > new_len => {
                Ok(Inserted::Duplicate(new_len - offset))
            }
            segment => {
                let before = segment.map_or(0, |segment| segment.bytes.len());
                self.put(origin, Some(Held::new(candidate)));
                Ok(Inserted::Extended(new_len - before))
            }
        }
    }

    /// Takes evidence found by another node.
    ///
    /// # Errors
    /// The two statements do not contradict each other, or are not both signed by the origin.
    pub fn insert_evidence(
        &mut self,
        context: &Context<'_>,
        id: &NodeId,
        evidence: Evidence,
    ) -> Result<bool, InsertError> {
        let origin = Origin(evidence.origin);
        if origin.index() >= self.segments.len() {
            return Err(InsertError::UnknownOrigin(evidence.origin));
        }
        if self.evidence.contains_key(&origin) {
            return Ok(false);
        }
        let proves = evidence.height == context.height.0
            && evidence.first.fits(context.limits)
            && evidence.second.fits(context.limits)
            && evidence.first.contradicts(&evidence.second)
            && evidence.first.is_signed_by(context, id)
            && evidence.second.is_signed_by(context, id);
        if !proves {
            return Err(InsertError::NoEvidence(evidence.origin));
        }
        self.put(origin, None);
        self.evidence.insert(origin, evidence);
        Ok(true)
    }

    /// Puts back evidence from one's own log, where it was written after it had been checked.
    pub fn restore_evidence(&mut self, evidence: Evidence) {
        let origin = Origin(evidence.origin);
        if origin.index() < self.segments.len() {
            self.put(origin, None);
            self.evidence.entry(origin).or_insert(evidence);
        }
    }

    /// Records that a certified set names `origin` as one that contradicted itself: the quorum
    /// vouches for the proof, which need not travel again.
    pub fn mark_equivocator(&mut self, origin: Origin, height: u64) {
        let nothing = || Segment {
            counts: Vec::new(),
            bytes: Vec::new(),
            closed: true,
            signature: Signature([0; 64]),
        };
        self.put(origin, None);
        self.evidence.entry(origin).or_insert_with(|| Evidence {
            height,
            origin: origin.0,
            first: nothing(),
            second: nothing(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: RunId = RunId([1; 32]);

    fn context() -> Context<'static> {
        Context {
            run: &RUN,
            height: Height(3),
            scheme: Scheme::Simulated,
            limits: SegmentLimits { rounds: 4, bytes_per_round: 8, audits: 0 },
        }
    }

    fn segment(keys: &Keys, counts: &[u16], first: u8) -> Segment {
        let len: u16 = counts.iter().sum();
        let bytes = (0..len).map(|i| first.wrapping_add(i as u8)).collect();
        Segment::sign(&context(), keys, counts.to_vec(), bytes, false)
    }

    #[test]
    fn a_segment_arrives_in_deltas_of_any_cut() {
        let keys = Keys::simulated(0);
        let whole = segment(&keys, &[3, 0, 5, 2], 7);
        for cut in 0..=10_usize {
            let mut ledger = Ledger::new(1);
            let counts = counts_of_prefix(&whole.counts, cut);
            let bytes = whole.bytes[..cut].to_vec();
            let prefix = Segment::sign(&context(), &keys, counts, bytes, false);
            let first = ledger.insert(&context(), &keys.id(), prefix.delta(3, Origin(0), 0));
            assert_eq!(
                first,
                Ok(if cut == 0 { Inserted::Duplicate(0) } else { Inserted::Extended(cut) })
            );
            let second = ledger.insert(&context(), &keys.id(), whole.delta(3, Origin(0), cut));
            let expected =
                if cut == 10 { Inserted::Duplicate(0) } else { Inserted::Extended(10 - cut) };
            assert_eq!(second, Ok(expected), "cut {cut}");
            assert_eq!(ledger.segment(Origin(0)), Some(&whole), "cut {cut}");
        }
    }

    #[test]
    fn what_is_told_has_the_length_of_its_delta() {
        let keys = Keys::simulated(0);
        for counts in [&[][..], &[3, 0, 5, 2], &[0, 0, 8], &[1, 0, 249], &[300, 260, 251]] {
            let held = Held::new(segment(&keys, counts, 7));
            for offset in 0..=held.segment.bytes.len() {
                let held = Arc::clone(&held);
                let told = Told { height: 300, origin: Origin(251), offset, held };
                assert_eq!(told.encoded_len(), crate::codec::encode(&told.delta()).len());
            }
        }
    }

    #[test]
    fn recent_bytes_are_those_of_the_segment() {
        let keys = Keys::simulated(0);
        for counts in [&[][..], &[2], &[3, 0, 5, 2], &[0, 0, 8], &[1, 0, 0, 1, 1]] {
            let held = Held::new(segment(&keys, counts, 7));
            let rounds = held.segment.counts.iter().enumerate();
            let rounds = rounds.flat_map(|(at, &count)| std::iter::repeat_n(at, count.into()));
            let all: Vec<_> = rounds.zip(held.segment.bytes.iter().copied()).collect();
            for offset in 0..=all.len() + 1 {
                let expected = all.get(offset..).filter(|new| (1..=RECENT).contains(&new.len()));
                let recent = held.recent(offset).map(Iterator::collect::<Vec<_>>);
                assert_eq!(recent.as_deref(), expected, "{counts:?} from {offset}");
            }
        }
    }

    #[test]
    fn duplicate_delta_leaves_ledger_unchanged() {
        let keys = Keys::simulated(0);
        let mut ledger = Ledger::new(1);
        let whole = segment(&keys, &[4], 0);
        ledger.insert(&context(), &keys.id(), whole.delta(3, Origin(0), 0)).unwrap();
        let again = ledger.insert(&context(), &keys.id(), whole.delta(3, Origin(0), 0));
        assert_eq!(again, Ok(Inserted::Duplicate(4)));
        assert_eq!(ledger.len_of(Origin(0)), 4);
    }

    #[test]
    fn two_contradicting_statements_are_evidence_that_convinces_others() {
        let keys = Keys::simulated(0);
        let (one, other) = (segment(&keys, &[4], 0), segment(&keys, &[4], 9));
        let mut ledger = Ledger::new(1);
        ledger.insert(&context(), &keys.id(), one.delta(3, Origin(0), 0)).unwrap();
        let inserted = ledger.insert(&context(), &keys.id(), other.delta(3, Origin(0), 0));
        assert_eq!(inserted, Ok(Inserted::Equivocation));
        assert_eq!(ledger.segment(Origin(0)), None);
        let proof = ledger.evidence()[&Origin(0)].clone();
        let mut elsewhere = Ledger::new(1);
        assert_eq!(elsewhere.insert_evidence(&context(), &keys.id(), proof.clone()), Ok(true));
        let mut forged = proof;
        forged.second = forged.first.clone();
        let refused = Ledger::new(1).insert_evidence(&context(), &keys.id(), forged);
        assert_eq!(refused, Err(InsertError::NoEvidence(0)));
    }

    #[test]
    fn a_moved_round_boundary_is_a_contradiction() {
        let keys = Keys::simulated(0);
        assert!(segment(&keys, &[4], 0).contradicts(&segment(&keys, &[2, 2], 0)));
        assert!(!segment(&keys, &[4], 0).contradicts(&segment(&keys, &[4, 2], 0)));
        assert!(!segment(&keys, &[2], 0).contradicts(&segment(&keys, &[4, 2], 0)));
    }

    #[test]
    fn a_delta_against_another_prefix_asks_for_the_whole_before_judging() {
        let keys = Keys::simulated(0);
        let mut ledger = Ledger::new(1);
        let held = segment(&keys, &[4], 0);
        ledger.insert(&context(), &keys.id(), held.delta(3, Origin(0), 0)).unwrap();
        let other = segment(&keys, &[6], 9);
        let inserted = ledger.insert(&context(), &keys.id(), other.delta(3, Origin(0), 4));
        assert_eq!(inserted, Ok(Inserted::NeedsWhole));
        let beyond = ledger.insert(&context(), &keys.id(), other.delta(3, Origin(0), 5));
        assert_eq!(beyond, Ok(Inserted::NeedsWhole));
    }

    #[test]
    fn forged_overlong_and_foreign_statements_are_refused() {
        let (keys, other) = (Keys::simulated(0), Keys::simulated(1));
        let mut ledger = Ledger::new(1);
        let forged = segment(&other, &[4], 0);
        let result = ledger.insert(&context(), &keys.id(), forged.delta(3, Origin(0), 0));
        assert_eq!(result, Err(InsertError::Signature(0)));
        let long = segment(&keys, &[9], 0);
        let result = ledger.insert(&context(), &keys.id(), long.delta(3, Origin(0), 0));
        assert_eq!(result, Err(InsertError::Limits(0)));
        let many = segment(&keys, &[1, 1, 1, 1, 1], 0);
        let result = ledger.insert(&context(), &keys.id(), many.delta(3, Origin(0), 0));
        assert_eq!(result, Err(InsertError::Limits(0)));
        let result = ledger.insert(&context(), &keys.id(), many.delta(3, Origin(5), 0));
        assert_eq!(result, Err(InsertError::UnknownOrigin(5)));
    }
}
