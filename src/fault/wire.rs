//! Broken promises on the wire: what a faulty node sends in place of its protocol's frames.
//!
//! A [`Saboteur`] stands between an honest protocol value and its links. It reads the entries of the
//! node's log ([`Saboteur::record`]), rewrites frames ([`Saboteur::frames`]) and certified history
//! ([`Saboteur::history`]), and signs with the node's own key, so that only what the protocol can
//! detect gives it away.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::FaultKind;
use crate::codec::FRAME_LEN_MAX;
use crate::height::{Ack, CertifiedHeight, Control, RecordSet, Seal};
use crate::id::{Height, NodeId, Origin, RunId};
use crate::keys::{Keys, Signature};
use crate::ledger::{Context, Segment, SegmentDelta, SegmentLimits};
use crate::manifest::Manifest;
use crate::message::{AckGroup, Exchange, Frame, Have, Sums};
use crate::protocol::Entry;
use crate::sample::KeyedRng;

/// Heights of which one's own log is remembered: more than a node exchanges.
const HEIGHTS_MAX: usize = 20;

/// Old frames that are remembered, to be sent again.
const FRAMES_MAX: usize = 200;

/// How far ahead records of [`FaultKind::FarRound`] are: beyond every window.
const FAR_HEIGHTS: u64 = 1000;

/// Signatures of a height that a restored backup still knows, and those that were made after it.
const BACKUP_VERSIONS: u32 = 2;

/// One's own records of a height, as the log has them.
struct Own {
    first: Segment,
    latest: Segment,
    /// Signatures so far.
    versions: u32,
}

/// A node that breaks the protocol.
pub struct Saboteur {
    kind: FaultKind,
    manifest: Manifest,
    run: RunId,
    keys: Keys,
    rng: KeyedRng,
    /// At most [`HEIGHTS_MAX`].
    own: BTreeMap<u64, Own>,
    /// Heights that this node acknowledged. At most [`HEIGHTS_MAX`].
    acked: BTreeSet<u64>,
    /// At most [`FRAMES_MAX`].
    old: Vec<Vec<u8>>,
}

impl Saboteur {
    /// A node with one fault. Kinds that are no matter of frames change none.
    pub fn new(kind: FaultKind, manifest: Manifest, keys: Keys, rng: KeyedRng) -> Saboteur {
        let (own, acked, old) = (BTreeMap::new(), BTreeSet::new(), Vec::new());
        Saboteur { kind, run: manifest.run_id(), manifest, keys, rng, own, acked, old }
    }

    /// What it does.
    pub fn kind(&self) -> FaultKind {
        self.kind
    }

    /// Reads what the protocol writes into its log.
    pub fn record(&mut self, entry: &Entry) {
        match entry {
            Entry::Own { height, segment } => {
                let first = || Own { first: segment.clone(), latest: segment.clone(), versions: 0 };
                let own = self.own.entry(*height).or_insert_with(first);
                own.latest = segment.clone();
                own.versions += 1;
                if self.own.len() > HEIGHTS_MAX {
                    self.own.pop_first();
                }
            }
            Entry::Acked { height, .. } => {
                self.acked.insert(*height);
                if self.acked.len() > HEIGHTS_MAX {
                    self.acked.pop_first();
                }
            }
            _ => {}
        }
    }

    /// The frames that go to a neighbor in place of `bytes`. `me` is the node's position in the
    /// roster; `to`, that of the neighbor, says which half it belongs to.
    pub fn frames(&mut self, me: Option<Origin>, to: usize, bytes: Vec<u8>) -> Vec<Vec<u8>> {
        if self.kind == FaultKind::Silent {
            return Vec::new();
        }
        let mut exchange = match Frame::decode(&bytes) {
            Ok(Frame::Exchange(exchange)) => exchange,
            Ok(Frame::Hello { manifest, answer }) if self.kind == FaultKind::WrongRun => {
                let seed = manifest.seed.wrapping_add(1);
                let manifest = Box::new(Manifest { seed, ..*manifest });
                return vec![Frame::Hello { manifest, answer }.encode()];
            }
            _ => return vec![bytes],
        };
        // Nobody has this position.
        let me = me.map_or(u16::MAX, |origin| origin.0);
        match self.kind {
            FaultKind::Equivocation if to % 2 == 1 => {
                self.replace_own(&mut exchange, me, |saboteur, height, own| {
                    let bytes = own.latest.bytes.iter().map(|byte| byte ^ 1).collect();
                    Some(saboteur.sign(height, own.latest.counts.clone(), bytes, own.latest.closed))
                });
            }
            FaultKind::RestoredBackup => {
                self.replace_own(&mut exchange, me, |saboteur, height, own| {
                    let lost = own.versions > BACKUP_VERSIONS;
                    lost.then(|| saboteur.continue_from_backup(height, own))
                });
            }
            FaultKind::Overlong => {
                let beyond = 2 * self.manifest.probes_per_round as usize + 1;
                self.replace_own(&mut exchange, me, |saboteur, height, own| {
                    let Segment { mut counts, mut bytes, closed, .. } = own.latest.clone();
                    let last = counts.last_mut()?;
                    *last = last.saturating_add(u16::try_from(beyond).unwrap_or(u16::MAX));
                    let len = counts.iter().map(|&count| usize::from(count)).sum();
                    bytes.resize(len, 0);
                    Some(saboteur.sign(height, counts, bytes, closed))
                });
            }
            FaultKind::Withhold if to % 3 != 1 => {
                exchange.segments.retain(|delta| delta.origin != me);
            }
            FaultKind::Forge => self.forge(&mut exchange),
            FaultKind::Replay => return self.replay(bytes),
            FaultKind::Malformed => return malformed(&exchange, bytes, &mut self.rng),
            FaultKind::Oversize if self.rng.index(4) == 0 => {
                return vec![vec![2; FRAME_LEN_MAX + 1]];
            }
            FaultKind::FarRound => self.far_round(&mut exchange, me),
            FaultKind::FalseAck => self.false_ack(&mut exchange, me, to),
            FaultKind::LateReveal => {
                let acked = &self.acked;
                exchange.segments.retain(|delta| {
                    delta.origin != me || (to % 2 == 1 && acked.contains(&delta.height))
                });
                for have in &mut exchange.have {
                    have.lens.retain(|entry| entry.0 != me);
                }
                if exchange.segments.is_empty() && to % 2 == 1 {
                    exchange.ask_full = true;
                }
            }
            _ => {}
        }
        vec![Frame::Exchange(exchange).encode()]
    }

    /// The certified history that others are given in place of `heights`.
    pub fn history(&mut self, heights: Vec<CertifiedHeight>) -> Vec<CertifiedHeight> {
        match self.kind {
            FaultKind::FalseHistory => {
                heights.into_iter().map(|height| falsify(height, &mut self.rng)).collect()
            }
            FaultKind::Silent => Vec::new(),
            _ => heights,
        }
    }

    /// The stretch of a checkpoint that others are given in place of `bytes`.
    pub fn checkpoint(&mut self, mut bytes: Vec<u8>) -> Vec<u8> {
        match self.kind {
            FaultKind::FalseHistory => {
                // In a model's values rather than in what says what they are.
                if let Some(last) = bytes.last_mut() {
                    *last ^= 1;
                }
                bytes
            }
            FaultKind::Silent => Vec::new(),
            _ => bytes,
        }
    }

    /// Puts other whole segments in place of one's own.
    fn replace_own(
        &self,
        exchange: &mut Exchange,
        me: u16,
        other: impl Fn(&Saboteur, u64, &Own) -> Option<Segment>,
    ) {
        for delta in exchange.segments.iter_mut().filter(|delta| delta.origin == me) {
            let own = self.own.get(&delta.height);
            if let Some(segment) = own.and_then(|own| other(self, delta.height, own)) {
                *delta = segment.delta(delta.height, Origin(me), 0);
            }
        }
    }

    fn sign(&self, height: u64, counts: Vec<u16>, bytes: Vec<u8>, closed: bool) -> Segment {
        // Bounds are those who read look at.
        let limits = SegmentLimits { rounds: 0, bytes_per_round: 0, audits: 0 };
        let scheme = self.keys.scheme();
        let context = Context { run: &self.run, height: Height(height), scheme, limits };
        Segment::sign(&context, &self.keys, counts, bytes, closed)
    }

    /// The first signed prefix with other records after it: what a node signs whose log was put back
    /// to that point.
    fn continue_from_backup(&self, height: u64, own: &Own) -> Segment {
        let kept = own.first.bytes.len();
        let bytes = own.latest.bytes.iter().enumerate();
        let bytes = bytes.map(|(at, &byte)| if at < kept { byte } else { byte ^ 1 }).collect();
        self.sign(height, own.latest.counts.clone(), bytes, own.latest.closed)
    }

    fn forge(&mut self, exchange: &mut Exchange) {
        let rng = &mut self.rng;
        let mut spoil = |signature: &mut Signature| {
            if rng.index(4) == 0 {
                signature.0[rng.index(32) as usize] ^= 1;
            }
        };
        exchange.segments.iter_mut().for_each(|delta| spoil(&mut delta.signature));
        let acks = exchange.acks.iter_mut().flat_map(|group| &mut group.acks);
        acks.for_each(|ack| spoil(&mut ack.1.signature));
    }

    fn replay(&mut self, bytes: Vec<u8>) -> Vec<Vec<u8>> {
        self.old.push(bytes.clone());
        let again = self.old[self.rng.index(self.old.len() as u32) as usize].clone();
        if self.old.len() > FRAMES_MAX {
            self.old.swap_remove(self.rng.index(FRAMES_MAX as u32) as usize);
        }
        vec![bytes, again]
    }

    /// Adds one's last records, signed for other heights.
    fn far_round(&mut self, exchange: &mut Exchange, me: u16) {
        let Some(own) = self.own.last_key_value().map(|(_, own)| own.latest.clone()) else {
            return;
        };
        let ahead = exchange.certified.saturating_add(FAR_HEIGHTS);
        let behind = exchange.certified.saturating_sub(u64::from(self.rng.index(64)));
        for height in [ahead, u64::MAX, behind] {
            let Segment { counts, bytes, closed, .. } = own.clone();
            let segment = self.sign(height, counts, bytes, closed);
            let delta: SegmentDelta = segment.delta(height, Origin(me), 0);
            exchange.have.push(Have { height, lens: vec![(me, delta.bytes.len() as u16)] });
            exchange.segments.push(delta);
        }
    }

    fn false_ack(&mut self, exchange: &mut Exchange, me: u16, to: usize) {
        for group in &mut exchange.acks {
            group.acks.retain(|ack| ack.0 != me);
        }
        let height = exchange.certified;
        let (weight, digest) = (self.rng.next_u32() as u16, [to as u8 % 2; 32]);
        // A set of which only the signature's inputs matter.
        let set = RecordSet {
            lens: vec![weight],
            equivocators: Vec::new(),
            controls: Vec::new(),
            digest,
        };
        let ack = Ack::sign(&self.run, Height(height), &self.keys, &set, None);
        exchange.acks.push(AckGroup {
            height,
            weight: ack.weight,
            digest,
            acks: vec![(me, ack.seal)],
        });
    }
}

fn falsify(mut height: CertifiedHeight, rng: &mut KeyedRng) -> CertifiedHeight {
    match rng.index(6) {
        0 => height.weight = u64::MAX,
        1 => height.acks.truncate(1),
        2 => height.height = u64::MAX - u64::from(rng.index(3)),
        3 => {
            let segment = Arc::make_mut(&mut height.segments).first_mut();
            if let Some(byte) = segment.and_then(|segment| segment.bytes.first_mut()) {
                *byte ^= 1;
            }
        }
        4 => Arc::make_mut(&mut height.segments).reverse(),
        _ => {
            if let Some(&first) = height.acks.first() {
                height.acks.iter_mut().for_each(|ack| *ack = first);
            }
        }
    }
    height
}

fn malformed(exchange: &Exchange, bytes: Vec<u8>, rng: &mut KeyedRng) -> Vec<Vec<u8>> {
    let mut other = exchange.clone();
    let far = u64::MAX - u64::from(rng.index(4));
    match rng.index(9) {
        0 => return vec![(0..rng.index(200)).map(|_| rng.next_u32() as u8).collect()],
        1 => return vec![vec![2; FRAME_LEN_MAX + 7]],
        2 => {
            let mut bytes = bytes;
            let at = rng.index(bytes.len() as u32) as usize;
            bytes[at] = rng.next_u32() as u8;
            return vec![bytes];
        }
        3 => {
            for delta in &mut other.segments {
                match rng.index(5) {
                    0 => delta.height = far,
                    1 => delta.origin = u16::MAX,
                    2 => delta.offset = rng.next_u32() as u16,
                    3 => delta.first_round = rng.next_u32() as u16,
                    _ => delta.counts = vec![u16::MAX; 3000],
                }
            }
        }
        4 => {
            other.certified = far;
            other.tag = [7; 4];
        }
        5 => {
            let lens = vec![(rng.next_u32() as u16, u16::MAX); 1000];
            other.have = [0, 1, far].map(|height| Have { height, lens: lens.clone() }).to_vec();
            other.wanted = (0..1000).map(|i| (i % 5, i as u16)).collect();
        }
        6 => {
            let sums = (0..4000).map(|i| ((i % 4) as u16, i as u16 % 64, [0; 8])).collect();
            other.sums = vec![Sums { height: other.certified, sums }];
        }
        7 => {
            let seal = Seal { model: Some([1; 32]), signature: Signature([0; 64]) };
            let acks = vec![(0, seal); 100];
            let digest = [0; 32];
            let group = |height, weight| AckGroup { height, weight, digest, acks: acks.clone() };
            other.acks = vec![group(far, far), group(0, far), group(other.certified, u64::MAX)];
        }
        _ => {
            let signature = Signature([0; 64]);
            let id = NodeId([rng.next_u32() as u8; 32]);
            other.controls = vec![(far, Control::Join { id, signature })];
        }
    }
    vec![Frame::Exchange(other).encode()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::height::CertifiedSegment;
    use crate::message::Stage;

    /// The position of the saboteur, and those of one neighbor in each half.
    const ME: Option<Origin> = Some(Origin(0));
    const HALVES: [usize; 2] = [1, 2];

    fn keys() -> Keys {
        Keys::simulated(0)
    }

    fn limits() -> SegmentLimits {
        let manifest = Manifest::template();
        SegmentLimits {
            rounds: 8,
            bytes_per_round: 2 * manifest.probes_per_round as usize,
            audits: 0,
        }
    }

    fn context(run: &RunId, height: u64) -> Context<'_> {
        Context { run, height: Height(height), scheme: keys().scheme(), limits: limits() }
    }

    fn segment(height: u64, bytes: &[u8]) -> Segment {
        let run = Manifest::template().run_id();
        let counts = vec![bytes.len() as u16];
        Segment::sign(&context(&run, height), &keys(), counts, bytes.to_vec(), false)
    }

    /// A saboteur that has signed two and then four records of height 3.
    fn saboteur(kind: FaultKind) -> Saboteur {
        let rng = KeyedRng::from_seed("rumormill v1 test", 1, 0);
        let mut saboteur = Saboteur::new(kind, Manifest::template(), keys(), rng);
        for bytes in [&[1, 2][..], &[1, 2, 3], &[1, 2, 3, 4]] {
            saboteur.record(&Entry::Own { height: 3, segment: segment(3, bytes) });
        }
        saboteur
    }

    fn exchange() -> Exchange {
        let seal = |byte| Seal { model: None, signature: Signature([byte; 64]) };
        let other = segment(3, &[9]).delta(3, Origin(1), 0);
        Exchange {
            sequence: 0,
            stage: Stage::Open,
            full: false,
            ask_full: false,
            certified: 3,
            tag: [0; 4],
            have: vec![Have { height: 3, lens: vec![(0, 4), (1, 1)] }],
            segments: vec![segment(3, &[1, 2, 3, 4]).delta(3, Origin(0), 0), other],
            acks: vec![AckGroup {
                height: 3,
                weight: 5,
                digest: [3; 32],
                acks: vec![(0, seal(1)), (1, seal(2))],
            }],
            controls: Vec::new(),
            evidence: Vec::new(),
            wanted: Vec::new(),
            sums: Vec::new(),
        }
    }

    fn sent(saboteur: &mut Saboteur, to: usize) -> Vec<Vec<u8>> {
        saboteur.frames(ME, to, Frame::Exchange(exchange()).encode())
    }

    /// The one exchange that the neighbor gets.
    fn told(saboteur: &mut Saboteur, to: usize) -> Exchange {
        let frames = sent(saboteur, to);
        assert_eq!(frames.len(), 1);
        match Frame::decode(&frames[0]) {
            Ok(Frame::Exchange(exchange)) => exchange,
            other => panic!("{other:?}"),
        }
    }

    /// The saboteur's own statement about a height in an exchange, with a valid signature.
    fn own(exchange: &Exchange, height: u64) -> Option<Segment> {
        let delta = exchange.segments.iter().find(|d| (d.origin, d.height) == (0, height))?;
        let SegmentDelta { counts, bytes, closed, signature, .. } = delta.clone();
        let segment = Segment { counts, bytes, closed, signature };
        let run = Manifest::template().run_id();
        assert!(segment.is_signed_by(&context(&run, height), &keys().id()));
        Some(segment)
    }

    #[test]
    fn values_and_sockets_change_no_frame() {
        for kind in FaultKind::all() {
            if kind.is_value() || kind.needs_sockets() {
                assert_eq!(told(&mut saboteur(kind), 1), exchange(), "{kind}");
            }
        }
    }

    #[test]
    fn equivocation_signs_one_thing_for_one_half_and_another_for_the_other() {
        let mut saboteur = saboteur(FaultKind::Equivocation);
        let [a, b] = HALVES.map(|to| own(&told(&mut saboteur, to), 3).unwrap());
        assert!(a.contradicts(&b));
    }

    #[test]
    fn silence_is_total() {
        let mut saboteur = saboteur(FaultKind::Silent);
        assert!(sent(&mut saboteur, 1).is_empty());
        let manifest = Box::new(Manifest::template());
        let hello = Frame::Hello { manifest, answer: true }.encode();
        assert!(saboteur.frames(ME, 1, hello).is_empty());
    }

    #[test]
    fn withheld_records_reach_a_third() {
        let mut saboteur = saboteur(FaultKind::Withhold);
        let seen = [0, 1, 2].map(|to| own(&told(&mut saboteur, to), 3).is_some());
        assert_eq!(seen, [false, true, false]);
    }

    #[test]
    fn replays_are_frames_that_were_sent() {
        let mut saboteur = saboteur(FaultKind::Replay);
        for sequence in 0..=255 {
            let frame = Frame::Exchange(Exchange { sequence, ..exchange() }).encode();
            let frames = saboteur.frames(ME, 1, frame.clone());
            assert_eq!((frames.len(), &frames[0]), (2, &frame));
            assert!(matches!(Frame::decode(&frames[1]), Ok(Frame::Exchange(_))));
        }
        assert!(saboteur.old.len() <= FRAMES_MAX);
    }

    #[test]
    fn forged_signatures_come_now_and_then() {
        let mut saboteur = saboteur(FaultKind::Forge);
        let honest = exchange();
        let forged = (0..100)
            .filter(|_| {
                told(&mut saboteur, 1).segments[0].signature != honest.segments[0].signature
            })
            .count();
        assert!((5..60).contains(&forged), "{forged}");
    }

    #[test]
    fn the_hello_of_another_run_differs_in_its_seed() {
        let mut saboteur = saboteur(FaultKind::WrongRun);
        let ours = Manifest::template();
        let hello = Frame::Hello { manifest: Box::new(ours.clone()), answer: true }.encode();
        match Frame::decode(&saboteur.frames(ME, 1, hello)[0]) {
            Ok(Frame::Hello { manifest, answer: true }) => {
                assert_eq!(ours.difference(&manifest).map(|d| d.field), Some("seed"));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(told(&mut saboteur, 1), exchange());
    }

    #[test]
    fn far_records_are_signed_for_heights_that_nobody_has_open() {
        let far = told(&mut saboteur(FaultKind::FarRound), 1);
        assert!(own(&far, 3 + FAR_HEIGHTS).is_some() && own(&far, u64::MAX).is_some());
        assert_eq!(far.segments.len(), exchange().segments.len() + 3);
    }

    #[test]
    fn an_overlong_round_is_signed_and_breaks_the_limits() {
        let overlong = own(&told(&mut saboteur(FaultKind::Overlong), 1), 3).unwrap();
        assert!(!overlong.fits(limits()));
        let roomy = SegmentLimits { rounds: 8, bytes_per_round: usize::from(u16::MAX), audits: 0 };
        assert!(overlong.fits(roomy), "only the limit is broken");
    }

    #[test]
    fn malformed_frames_differ_and_never_fail_to_be_made() {
        let mut saboteur = saboteur(FaultKind::Malformed);
        let honest = Frame::Exchange(exchange()).encode();
        let same = (0..200).filter(|_| sent(&mut saboteur, 1)[0] == honest).count();
        assert!(same < 20, "{same}");
    }

    #[test]
    fn oversized_frames_are_beyond_what_is_decoded() {
        let mut saboteur = saboteur(FaultKind::Oversize);
        let frames: Vec<_> = (0..40).flat_map(|_| sent(&mut saboteur, 1)).collect();
        let large = frames.iter().filter(|frame| frame.len() > FRAME_LEN_MAX).count();
        assert!((1..30).contains(&large), "{large}");
        assert!(frames.iter().all(|f| f.len() < 1000 || Frame::decode(f).is_err()));
    }

    #[test]
    fn late_records_are_shown_to_one_half_when_they_are_acknowledged() {
        let mut saboteur = saboteur(FaultKind::LateReveal);
        let shown =
            |saboteur: &mut Saboteur| HALVES.map(|to| own(&told(saboteur, to), 3).is_some());
        assert_eq!(shown(&mut saboteur), [false, false]);
        let set = RecordSet {
            lens: vec![4, 1],
            equivocators: Vec::new(),
            controls: Vec::new(),
            digest: [0; 32],
        };
        let (segments, evidence, controls) = (Vec::new(), Vec::new(), Vec::new());
        saboteur.record(&Entry::Acked { height: 3, set, segments, evidence, controls });
        assert_eq!(shown(&mut saboteur), [true, false]);
    }

    #[test]
    fn false_acks_name_another_digest_to_each_half() {
        let mut saboteur = saboteur(FaultKind::FalseAck);
        let [a, b] = HALVES.map(|to| {
            let acks = told(&mut saboteur, to).acks;
            let own: Vec<_> =
                acks.into_iter().filter(|g| g.acks.iter().any(|ack| ack.0 == 0)).collect();
            assert_eq!(own.len(), 1);
            own[0].digest
        });
        assert_ne!(a, b);
    }

    #[test]
    fn false_history_differs_and_survives_empty_heights() {
        let seal = |byte| Seal { model: Some([7; 32]), signature: Signature([byte; 64]) };
        let segment = CertifiedSegment { origin: 0, counts: vec![2], bytes: vec![1, 2] };
        let full = CertifiedHeight {
            height: 0,
            segments: Arc::new(vec![segment.clone(), CertifiedSegment { origin: 1, ..segment }]),
            equivocators: Vec::new(),
            controls: Vec::new(),
            weight: 4,
            acks: vec![(0, seal(1)), (1, seal(2))],
        };
        let empty = CertifiedHeight { segments: Arc::default(), acks: Vec::new(), ..full.clone() };
        let mut saboteur = saboteur(FaultKind::FalseHistory);
        for _ in 0..50 {
            assert_ne!(saboteur.history(vec![full.clone()])[0], full);
            assert_eq!(saboteur.history(vec![empty.clone()]).len(), 1);
        }
    }

    #[test]
    fn a_restored_backup_goes_on_otherwise_from_what_it_knew() {
        let mut saboteur = saboteur(FaultKind::RestoredBackup);
        let second = own(&told(&mut saboteur, 1), 3).unwrap();
        assert_eq!(second.bytes[..2], [1, 2]);
        assert!(second.contradicts(&segment(3, &[1, 2, 3])));
        assert!(!second.contradicts(&segment(3, &[1, 2])));
    }
}
