//! The bytes that nodes of one protocol version agree on, and decoders that are fed anything.
//!
//! Golden values change only with the protocol version. Those of the run's identity, of directions
//! and of signatures were computed by an independent program: BLAKE3 from its own package, ChaCha8
//! and bincode's varints written out from their specifications in Python. The frames beside them
//! are also written out by hand here, field by field.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};

use std::sync::Arc;

use rumormill::codec;
use rumormill::direction::Direction;
use rumormill::height::{Ack, CertifiedHeight, Control, RecordSet, Seal};
use rumormill::id::{Height, NodeId, Round, RunId, Slot};
use rumormill::keys::{Keys, Scheme, Signature};
use rumormill::lb8;
use rumormill::ledger::{Context, Evidence, Ledger, Segment, SegmentDelta, SegmentLimits};
use rumormill::manifest::{Founders, Manifest};
use rumormill::message::{
    AckGroup, Exchange, Frame, Have, Presence, Request, Response, Stage, StartVote, Sums,
};
use rumormill::protocol::{Config, Entry, Event, Input, Offence, Output, Probe, Protocol};
use rumormill::sample::{KeyedRng, minibatch};
use rumormill::time::Time;

const RUN: RunId = RunId([7; 32]);

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Two founders, short rounds.
fn manifest() -> Manifest {
    Manifest {
        rounds: 16,
        rounds_per_height: 4,
        probes_per_round: 8,
        scale_exponent: -2,
        founders: Founders::Members(vec![Keys::simulated(0).id(), Keys::simulated(1).id()]),
        ..Manifest::template()
    }
}

fn segment() -> Segment {
    let context = Context {
        run: &RUN,
        height: Height(3),
        scheme: Scheme::Simulated,
        limits: SegmentLimits { rounds: 4, bytes_per_round: 16, audits: 0 },
    };
    let (counts, bytes) = (vec![2, 0, 3], vec![0x60, 0xe1, 0x00, 0x80, 0x7f]);
    Segment::sign(&context, &Keys::simulated(1), counts, bytes, false)
}

fn exchange() -> Exchange {
    Exchange {
        sequence: 200,
        stage: Stage::Answer,
        full: true,
        ask_full: false,
        certified: 300,
        tag: [1, 2, 3, 4],
        have: vec![Have { height: 3, lens: vec![(0, 5), (1, 251)] }],
        segments: vec![segment().delta(3, rumormill::id::Origin(1), 2)],
        acks: Vec::new(),
        controls: Vec::new(),
        evidence: Vec::new(),
        wanted: vec![(3, 1)],
        sums: Vec::new(),
    }
}

/// The signature of [`segment`]: a keyed hash, then 32 zeros.
const SEGMENT_SIGNATURE: &str = "acf3b8f5cdef2e1b9849bc961530f0fdbdab9c2006b6964b0cc815f880753572";

#[test]
fn a_segment_is_signed_over_domain_run_origin_height_counts_and_bytes() {
    assert_eq!(hex(&segment().signature.0), SEGMENT_SIGNATURE.to_owned() + &"00".repeat(32));
}

#[test]
fn a_segment_delta_is_eight_fields_of_varints() {
    let expected = [
        "03",       // height
        "01",       // origin
        "02",       // offset: the first round's two bytes are held
        "02",       // the round of the first byte sent
        "0103",     // one count: three
        "0300807f", // three bytes
        "00",       // not closed
        SEGMENT_SIGNATURE,
        &"00".repeat(32),
    ];
    let delta = segment().delta(3, rumormill::id::Origin(1), 2);
    assert_eq!(hex(&codec::encode(&delta)), expected.concat());
    assert_eq!(codec::decode::<SegmentDelta, 4096>(&codec::encode(&delta)), Ok(delta));
}

#[test]
fn an_exchange_is_its_fields_in_order() {
    let delta = hex(&codec::encode(&exchange().segments[0]));
    let expected = [
        "02",       // the third kind of frame
        "c8",       // sequence, a plain byte
        "01",       // answer
        "01",       // full
        "00",       // does not ask for a full one
        "fb2c01",   // certified: 300 in two bytes
        "01020304", // tag, without a length
        "01",       // one have:
        "03",       //   height
        "02",       //   two lengths:
        "0005",     //     5 of origin 0
        "01fbfb00", //     251 of origin 1: the first number that takes two bytes
        "01",       // one segment:
        &delta,     //
        "00",       // no acks
        "00",       // no control records
        "00",       // no evidence
        "01",       // one segment wanted whole:
        "0301",     //   height and origin
        "00",       // no sums
    ];
    let frame = Frame::Exchange(exchange());
    assert_eq!(hex(&frame.encode()), expected.concat());
    assert_eq!(Frame::decode(&frame.encode()), Ok(frame));
}

#[test]
fn hello_carries_the_manifest_and_its_hash_is_the_run() {
    let encoded = "060972756d6f726d696c6c01066d6c703a33320664696769747300000003616c6c10040800fb000202400ffc00004000fbbc02030014fbb6030100fc000002000000027eb72c89948e39eb25b907a9d4bd2973e1a101b21ffaf214f2014c9bc94d4141f30eaf0c2431bd4bd20cfd163b239ca7978dc76681d97ca618203d6ea8544f2f0000";
    assert_eq!(hex(&codec::encode(&manifest())), encoded);
    assert_eq!(
        manifest().run_id().to_string(),
        "842a72eac9ebe535638a8b065c7edcdadf54d649034f3caceb248548a13ffbb1"
    );
    let hello = Frame::Hello { manifest: Box::new(manifest()), answer: true };
    assert_eq!(hex(&hello.encode()), format!("00{encoded}01"));
    assert_eq!(Frame::decode(&hello.encode()), Ok(hello));
}

#[test]
fn directions_are_pinned() {
    let mut words = [[0; 16]; 2];
    Direction::new(&RUN, Round(3), Slot(2)).sign_words(1, 4, &mut words);
    let found: Vec<String> =
        words.as_flattened().iter().map(|word| format!("{word:08x}")).collect();
    assert_eq!(found[..4], ["96e5965f", "ca09628b", "0700a88e", "c328a12f"]);
    assert_eq!(found[16..20], ["98dc42eb", "360bc6a2", "f386c514", "8ecf0c9e"]);
}

#[test]
fn minibatches_are_pinned() {
    let mut rows = [0; 6];
    minibatch(&RUN, &NodeId([9; 32]), Round(3), Slot(2), 12_000, &mut rows);
    assert_eq!(rows, [6619, 5624, 8799, 651, 10824, 1097]);
}

/// By hand from the definition: code 96 is the scale itself, eight codes are an octave, 127 is
/// the most, the top bit the sign, and 128 says nothing.
#[test]
fn bytes_of_projected_gradients_are_pinned() {
    let cases = [
        (0.0, 0x00),
        (0.25, 0x60),
        (-0.25, 0xe0),
        (0.5, 0x68),
        (0.125, 0x58),
        (-1.0, 0xf0),
        (1e9, 0x7f),
        (-1e9, 0xff),
        (1e-9, 0x00),
        (f64::INFINITY, 0x80),
        (f64::NAN, 0x80),
    ];
    for (value, byte) in cases {
        assert_eq!(lb8::encode(value, -2), byte, "{value}");
    }
    assert_eq!(lb8::decode(0x60, -2), Some(0.25));
    assert_eq!(lb8::decode(0xf0, -2), Some(-1.0));
    assert_eq!(lb8::decode(0x80, -2), None);
    for byte in (0..=255_u8).filter(|&byte| byte != lb8::ABSTAIN) {
        let value = lb8::decode(byte, 5).expect("only one byte abstains");
        assert_eq!(lb8::encode(f64::from(value), 5), byte, "{byte:#x} is {value}");
    }
}

/// One frame, request or answer of every kind, with every list filled.
fn frames() -> Vec<Frame> {
    let keys = Keys::simulated(1);
    let signature = keys.sign(&[5; 32]);
    let acks = vec![AckGroup {
        height: 3,
        weight: 900,
        digest: [8; 32],
        acks: vec![
            (0, Seal { model: None, signature }),
            (1, Seal { model: Some([9; 32]), signature }),
        ],
    }];
    let evidence = Evidence { height: 3, origin: 1, first: segment(), second: segment() };
    let full = Exchange {
        acks,
        controls: vec![(3, Control::join(&RUN, Height(3), &keys))],
        evidence: vec![evidence],
        sums: vec![Sums { height: 3, sums: vec![(0, 5, [3; 8])] }],
        ..exchange()
    };
    let founders = vec![Keys::simulated(0).id(), keys.id()];
    let vote = StartVote { ballot: 2, founders, voter: keys.id(), signature };
    let present = vec![Presence { id: keys.id(), beat: 1 << 40, signature }];
    vec![
        Frame::Hello { manifest: Box::new(manifest()), answer: false },
        Frame::Start { present, votes: vec![vote] },
        Frame::Exchange(exchange()),
        Frame::Exchange(full),
    ]
}

fn certified_height() -> CertifiedHeight {
    let mut ledger = Ledger::new(2);
    ledger.set_certified(rumormill::id::Origin(1), Some(segment()));
    let set = RecordSet::of(Height(3), &ledger, &Default::default(), None);
    let ack = Ack::sign(&RUN, Height(3), &Keys::simulated(0), &set, None);
    CertifiedHeight {
        height: 3,
        segments: Arc::new(vec![rumormill::height::CertifiedSegment {
            origin: 1,
            counts: segment().counts,
            bytes: segment().bytes,
        }]),
        equivocators: vec![0],
        controls: vec![Control::join(&RUN, Height(3), &Keys::simulated(4))],
        weight: set.weight(),
        acks: vec![(0, ack.seal)],
    }
}

fn responses() -> Vec<Response> {
    let Frame::Start { votes, .. } = frames().remove(1) else { unreachable!() };
    vec![
        Response::Manifest(Box::new(manifest())),
        Response::Founders(votes),
        Response::History(vec![certified_height()]),
        Response::HistoryFrom(1 << 33),
        Response::Checkpoint { total: 1 << 33, bytes: vec![4, 5, 6] },
        Response::Nothing,
    ]
}

#[test]
fn what_is_encoded_is_decoded() {
    for frame in frames() {
        assert_eq!(Frame::decode(&frame.encode()), Ok(frame));
    }
    let checkpoint = Request::Checkpoint { certified: 16, offset: 1 << 40 };
    let history = Request::History { from: 1 << 40 };
    for request in [Request::Manifest, Request::Founders, history, checkpoint] {
        assert_eq!(Request::decode(&request.encode()), Ok(request));
    }
    for response in responses() {
        assert_eq!(Response::decode(&response.encode()), Ok(response));
    }
}

/// Changes a few bytes: flips, cuts, repeats, inserts large numbers.
fn mutate(bytes: &mut Vec<u8>, rng: &mut KeyedRng) {
    for _ in 0..=rng.index(4) {
        let at = rng.index(bytes.len() as u32 + 1) as usize;
        match rng.index(6) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, rng.next_u32() as u8),
            // The marks of numbers of two, four, eight and sixteen bytes.
            2 => bytes.insert(at, 251 + rng.index(5) as u8),
            3 => bytes.extend_from_within(at..),
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << rng.index(8);
                }
            }
        }
    }
}

#[test]
fn decoders_take_any_bytes_without_panic() {
    let mut seeds: Vec<Vec<u8>> = frames().iter().map(Frame::encode).collect();
    seeds.extend(responses().iter().map(Response::encode));
    seeds.push(Request::History { from: 1 << 40 }.encode());
    for seed in 0..40_000 {
        let mut rng = KeyedRng::from_seed("rumormill test mutation", seed, 0);
        let mut bytes = seeds[rng.index(seeds.len() as u32) as usize].clone();
        if seed % 8 == 0 {
            bytes = (0..rng.index(200)).map(|_| rng.next_u32() as u8).collect();
        }
        mutate(&mut bytes, &mut rng);
        let decoded = catch_unwind(|| {
            if let Ok(frame) = Frame::decode(&bytes) {
                assert_eq!(Frame::decode(&frame.encode()), Ok(frame));
            }
            let _ = Request::decode(&bytes);
            let _ = Response::decode(&bytes);
        });
        assert!(decoded.is_ok(), "seed {seed}: {}", hex(&bytes));
    }
}

/// What travels between the two nodes of a [`Pair`].
enum Parcel {
    Frame(Vec<u8>),
    Request(Request),
    Response(Option<Response>),
    Losses(Probe),
}

/// Two protocol values with a wire between them that may damage what it carries.
struct Pair {
    nodes: [Protocol; 2],
    history: [Vec<CertifiedHeight>; 2],
    /// For each node: when it arrives, and what.
    inbox: [VecDeque<(Time, Parcel)>; 2],
    now: Time,
    rng: KeyedRng,
    /// How many of 16 parcels are damaged.
    damaged: u32,
    offences: usize,
    equivocations: usize,
}

impl Pair {
    fn new(manifest: &Manifest, seed: u64) -> Pair {
        let node = |index: u64| {
            let config = Config {
                clock_seed: [index as u8 + 1; 32],
                block: 4,
                linger: Time::from_millis(600_000),
                ..Config::default()
            };
            Protocol::new(manifest.clone(), Keys::simulated(index), config).unwrap()
        };
        let mut pair = Pair {
            nodes: [node(0), node(1)],
            history: Default::default(),
            inbox: Default::default(),
            now: Time::ZERO,
            rng: KeyedRng::from_seed("rumormill test wire", seed, 0),
            damaged: 0,
            offences: 0,
            equivocations: 0,
        };
        pair.connect();
        pair
    }

    fn connect(&mut self) {
        for at in 0..2 {
            let other = self.nodes[1 - at].id();
            self.handle(at, Input::Disconnected(other));
        }
        for at in 0..2 {
            self.inbox[at].retain(|(_, parcel)| matches!(parcel, Parcel::Losses(..)));
            let other = self.nodes[1 - at].id();
            self.handle(at, Input::Connected(other));
        }
    }

    fn handle(&mut self, at: usize, input: Input) {
        let mut outputs = Vec::new();
        self.nodes[at].handle(input, self.now, &mut outputs);
        let mut reconnect = false;
        for output in outputs {
            match output {
                Output::Send { bytes, .. } => self.send(1 - at, Parcel::Frame(bytes)),
                Output::Pass { .. } => unreachable!("frames are bytes here"),
                Output::Request { request, .. } => self.send(1 - at, Parcel::Request(request)),
                Output::Probe(probe) | Output::Repeat(probe) => {
                    let due = self.now + Time::from_millis(2);
                    self.inbox[at].push_back((due, Parcel::Losses(probe)));
                }
                Output::Record(Entry::Certified(height)) => {
                    self.history[at].truncate(height.height as usize);
                    self.history[at].push(height);
                }
                Output::Misbehaved { offence, .. } => {
                    self.offences += 1;
                    reconnect |= matches!(offence, Offence::Undecodable(_));
                }
                // The daemon closes the link, and somebody dials again later.
                Output::Refused { .. } => reconnect = true,
                Output::Event(Event::Equivocation { .. }) => self.equivocations += 1,
                Output::Record(_) | Output::Apply(_) | Output::Trail(_) | Output::Event(_) => {}
            }
        }
        if reconnect {
            self.connect();
        }
    }

    /// Puts something on the wire, and damages it now and then.
    fn send(&mut self, to: usize, parcel: Parcel) {
        let damage = self.rng.index(16) < self.damaged;
        let parcel = match parcel {
            Parcel::Frame(mut bytes) if damage => {
                mutate(&mut bytes, &mut self.rng);
                Parcel::Frame(bytes)
            }
            Parcel::Response(Some(response)) if damage => {
                let mut bytes = response.encode();
                mutate(&mut bytes, &mut self.rng);
                Parcel::Response(Response::decode(&bytes).ok())
            }
            parcel => parcel,
        };
        self.inbox[to].push_back((self.now + Time::from_millis(1), parcel));
    }

    /// One millisecond.
    fn tick(&mut self) {
        self.now = self.now + Time::from_millis(1);
        for at in 0..2 {
            let other = self.nodes[1 - at].id();
            let waiting = std::mem::take(&mut self.inbox[at]);
            let (due, later): (Vec<_>, _) =
                waiting.into_iter().partition(|(due, _)| *due <= self.now);
            self.inbox[at] = VecDeque::from(later);
            for (_, parcel) in due {
                match parcel {
                    Parcel::Frame(bytes) => self.handle(at, Input::Frame { from: other, bytes }),
                    Parcel::Request(request) => {
                        let response = self.answer(at, &request);
                        self.send(1 - at, Parcel::Response(Some(response)));
                    }
                    Parcel::Response(response) => {
                        self.handle(at, Input::Response { from: other, response });
                    }
                    Parcel::Losses(probe) => {
                        let (round, slot) = (probe.round, probe.slot);
                        let plus = 1.0 + ((round.0 * 7 + u64::from(slot.0) * 3) % 11) as f32 / 1e3;
                        self.handle(at, Input::Losses { probe, plus, minus: 1.0 });
                    }
                }
            }
            self.handle(at, Input::Wake);
        }
    }

    fn answer(&self, at: usize, request: &Request) -> Response {
        match request {
            Request::Manifest => Response::Manifest(Box::new(self.nodes[at].manifest().clone())),
            Request::Founders => Response::Founders(self.nodes[at].founding().to_vec()),
            Request::Checkpoint { .. } => Response::Nothing,
            Request::History { from } => {
                let from = usize::try_from(*from).unwrap_or(usize::MAX);
                Response::History(self.history[at].iter().skip(from).take(4).cloned().collect())
            }
        }
    }

    fn is_finished(&self) -> bool {
        self.nodes.iter().all(Protocol::is_finished)
    }

    /// Damages what is on the way for a while, then lets the wire heal and both finish.
    fn run(&mut self, damaged: u32, for_ms: u64) {
        self.damaged = damaged;
        for _ in 0..for_ms {
            self.tick();
        }
        self.damaged = 0;
        self.connect();
        for _ in 0..600_000 {
            if self.is_finished() {
                return;
            }
            self.tick();
        }
    }
}

#[test]
fn a_wire_that_damages_frames_neither_stops_nor_divides_two_nodes() {
    let open = Manifest { founders: Founders::Minimum(2), ..manifest() };
    let mut offences = 0;
    for seed in 0..300 {
        let manifest = if seed % 2 == 0 { manifest() } else { open.clone() };
        let mut pair = Pair::new(&manifest, seed);
        let ran = catch_unwind(AssertUnwindSafe(|| pair.run(1 + seed as u32 % 8, 1_500)));
        assert!(ran.is_ok(), "seed {seed}: a node panicked");
        let missing = [pair.nodes[0].missing(), pair.nodes[1].missing()];
        assert!(pair.is_finished(), "seed {seed}, at {:?}: {missing:?}", pair.now);
        assert_eq!(pair.nodes[0].digest(), pair.nodes[1].digest(), "seed {seed}");
        assert_eq!(pair.equivocations, 0, "seed {seed}: damage is nobody's contradiction");
        offences += pair.offences;
    }
    assert!(offences > 100, "the wire did damage something: {offences}");
}

/// Whatever a peer sends that is well formed but says nothing true costs it, and nothing else.
#[test]
fn frames_of_another_time_and_place_change_nothing() {
    let mut pair = Pair::new(&manifest(), 1);
    let peer = pair.nodes[1].id();
    for _ in 0..40 {
        pair.tick();
        for frame in frames().into_iter().skip(1) {
            pair.handle(0, Input::Frame { from: peer, bytes: frame.encode() });
        }
        pair.handle(0, Input::Response { from: peer, response: Some(responses().remove(2)) });
    }
    assert!(pair.offences > 0);
    pair.run(0, 0);
    assert!(pair.is_finished(), "{}", pair.nodes[0].missing());
    assert_eq!(pair.nodes[0].digest(), pair.nodes[1].digest());
    assert_eq!(pair.equivocations, 0);
}

#[test]
fn signatures_are_64_plain_bytes() {
    assert_eq!(codec::encode(&Signature([3; 64])), [3; 64]);
}
