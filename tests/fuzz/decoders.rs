//! What reads the bytes of others, and what it may do with them: everything but panic.
//!
//! [`TARGETS`] is shared by the fuzz targets beside this file and by the suite's `decoders` tests. Its
//! samples are real encodings: those of a small run, made here in a few milliseconds.

use std::collections::{BTreeMap, VecDeque};

use rumormill::codec;
use rumormill::data::{csv, idx, libsvm};
use rumormill::height::{Ack, CertifiedHeight, Control, RecordSet};
use rumormill::id::{Height, NodeId, RunId};
use rumormill::keys::{Keys, Scheme};
use rumormill::ledger::{Context, Segment, SegmentDelta, SegmentLimits};
use rumormill::manifest::{Founders, Manifest};
use rumormill::message::{Frame, Request, Response};
use rumormill::protocol::{Config, Entry, Input, Output, Protocol};
use rumormill::time::Time;
use rumormill::vector::peer;

/// A decoder: its name, what it does with bytes, and real encodings.
pub struct Target {
    pub name: &'static str,
    pub check: fn(&[u8]),
    pub samples: fn() -> Vec<Vec<u8>>,
}

/// Everything that reads bytes of peers or files, but for what the node keeps to itself.
pub const TARGETS: [Target; 12] = [
    Target { name: "frame", check: frame, samples: || trained().frames },
    Target { name: "request", check: request, samples: requests },
    Target { name: "response", check: response, samples: || trained().responses },
    Target { name: "entry", check: entry, samples: || packets(&trained().entries, 0) },
    Target { name: "restore", check: restore, samples: || vec![pack(&trained().entries)] },
    Target { name: "protocol", check: protocol, samples: conversations },
    Target { name: "vector", check: vector, samples: vector_frames },
    Target { name: "manifest", check: manifest, samples: || vec![manifest_text()] },
    Target { name: "idx", check: idx_file, samples: idx_files },
    Target { name: "csv", check: |bytes| drop(csv::parse(bytes)), samples: csv_files },
    Target { name: "libsvm", check: |bytes| drop(libsvm::parse(bytes)), samples: libsvm_files },
    Target { name: "topology", check: topology, samples: topologies },
];

/// The target of a name.
pub fn target(name: &str) -> &'static Target {
    TARGETS.iter().find(|target| target.name == name).expect("a target of this name")
}

const NODES: u64 = 4;

/// Frames are encoded anew and read back the same.
fn frame(bytes: &[u8]) {
    if let Ok(frame) = Frame::decode(bytes) {
        assert_eq!(Frame::decode(&frame.encode()), Ok(frame));
    }
}

fn request(bytes: &[u8]) {
    if let Ok(request) = Request::decode(bytes) {
        assert_eq!(Request::decode(&request.encode()), Ok(request));
    }
}

fn response(bytes: &[u8]) {
    if let Ok(response) = Response::decode(bytes) {
        assert_eq!(Response::decode(&response.encode()), Ok(response));
    }
}

fn entry(bytes: &[u8]) {
    if let Ok(entry) = codec::decode::<Entry, { 1 << 20 }>(bytes) {
        // By their bytes: sums of audits may be no numbers, which equal nothing.
        let bytes = codec::encode(&entry);
        let again = codec::decode::<Entry, { 1 << 20 }>(&bytes).expect("it was encoded here");
        assert!(codec::encode(&again) == bytes, "{entry:?} is not {again:?}");
    }
}

/// Entries of a log, of which each may be anything, are put back into a new node, which then works.
fn restore(bytes: &[u8]) {
    let mut node = node(0, open_manifest());
    for packet in unpack(bytes).into_iter().take(64) {
        if let Ok(entry) = codec::decode::<Entry, { 1 << 20 }>(packet) {
            let _ = node.restore(entry, &mut Vec::new());
        }
    }
    drive(&mut node, Time::ZERO);
}

/// A node that has begun a run is told anything by its neighbors. Signatures are made good, so that
/// what a liar may sign is found, too.
fn protocol(bytes: &[u8]) {
    let mut node = node(0, closed_manifest());
    let mut out = Vec::new();
    let mut now = Time::ZERO;
    for peer in 1..NODES {
        let from = Keys::simulated(peer).id();
        node.handle(Input::Connected(from), now, &mut out);
        let manifest = Box::new(node.manifest().clone());
        let bytes = Frame::Hello { manifest, answer: false }.encode();
        node.handle(Input::Frame { from, bytes }, now, &mut out);
    }
    for packet in unpack(bytes).into_iter().take(64) {
        let Some((&first, rest)) = packet.split_first() else { continue };
        let from = Keys::simulated(1 + u64::from(first & 3) % (NODES - 1)).id();
        now = now + Time::from_millis(u64::from(first >> 4) * 100);
        let input = match first & 4 {
            0 => Input::Frame { from, bytes: signed_again(&node, rest) },
            _ => match Response::decode(rest) {
                Ok(response) => Input::Response { from, response: Some(response) },
                Err(_) => continue,
            },
        };
        node.handle(input, now, &mut out);
        now = drive(&mut node, now);
    }
}

/// Answers the node's probes and wakes it as it asks, some times.
fn drive(node: &mut Protocol, mut now: Time) -> Time {
    let mut out = Vec::new();
    for _ in 0..4 {
        node.handle(Input::Wake, now, &mut out);
        let mut probes: VecDeque<_> = VecDeque::new();
        for output in out.drain(..) {
            if let Output::Probe(probe) | Output::Repeat(probe) = output {
                probes.push_back(probe);
            }
        }
        for probe in probes {
            now = now + Time::from_millis(1);
            node.handle(Input::Losses { probe, plus: 1.0, minus: 0.5 }, now, &mut out);
        }
        if let Some(due) = node.deadline() {
            now = now.max(due);
        }
    }
    now
}

/// A frame whose statements are signed by those they name, as far as they can be.
fn signed_again(node: &Protocol, bytes: &[u8]) -> Vec<u8> {
    let Ok(Frame::Exchange(mut exchange)) = Frame::decode(bytes) else { return bytes.to_vec() };
    let run = node.run_id();
    let limits = SegmentLimits { rounds: 0, bytes_per_round: 0, audits: 0 };
    let keys = |origin: u16| (u64::from(origin) < NODES).then(|| Keys::simulated(origin.into()));
    let sign = |height: u64, keys: &Keys, segment: &Segment| {
        let context =
            Context { run: &run, height: Height(height), scheme: Scheme::Simulated, limits };
        let Segment { counts, bytes, closed, .. } = segment.clone();
        Segment::sign(&context, keys, counts, bytes, closed).signature
    };
    for delta in &mut exchange.segments {
        let (Some(keys), 0) = (keys(delta.origin), delta.offset) else { continue };
        let SegmentDelta { first_round, counts, bytes, closed, signature, .. } = delta.clone();
        let mut whole = vec![0; usize::from(first_round.min(64))];
        whole.extend(counts);
        let segment = Segment { counts: whole, bytes, closed, signature };
        delta.signature = sign(delta.height, &keys, &segment);
    }
    for evidence in &mut exchange.evidence {
        let Some(keys) = keys(evidence.origin) else { continue };
        evidence.first.signature = sign(evidence.height, &keys, &evidence.first);
        evidence.second.signature = sign(evidence.height, &keys, &evidence.second);
    }
    for (height, control) in &mut exchange.controls {
        let Control::Join { id, .. } = control;
        *control = Control::join(&run, Height(*height), &Keys::Simulated(*id));
    }
    for group in &mut exchange.acks {
        // A set of that weight.
        let (mut lens, mut left) = (Vec::new(), group.weight);
        while left > 0 && lens.len() < 64 {
            let len = left.min(u16::MAX.into());
            lens.push(len as u16);
            left -= len;
        }
        let (equivocators, controls) = (Vec::new(), Vec::new());
        let set = RecordSet { lens, equivocators, controls, digest: group.digest };
        for (origin, seal) in &mut group.acks {
            if let Some(keys) = keys(*origin) {
                *seal = Ack::sign(&run, Height(group.height), &keys, &set, seal.model).seal;
            }
        }
    }
    Frame::Exchange(exchange).encode()
}

/// A node of a vector algorithm is told anything by its neighbor.
fn vector(bytes: &[u8]) {
    let mut now = Time::ZERO;
    for monna in [false, true] {
        let mut peer = vector_peer(0, monna);
        let mut out = Vec::new();
        let from = Keys::simulated(1).id();
        peer.handle(peer::Input::Connected(from), now, &mut out);
        for packet in unpack(bytes).into_iter().take(64) {
            let bytes = packet.to_vec();
            peer.handle(peer::Input::Frame { from, bytes }, now, &mut out);
            peer.handle(peer::Input::Gradient(vec![0.5; 3]), now, &mut out);
            now = now + Time::from_millis(10);
            peer.handle(peer::Input::Wake, now, &mut out);
        }
    }
}

fn manifest(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(manifest) = toml::from_str::<Manifest>(text) else { return };
    let _ = manifest.difference(&open_manifest());
    if manifest.check().is_ok() {
        let _ = (manifest.run_id(), manifest.heights(), manifest.rounds_total());
        let _ = Protocol::new(manifest, Keys::simulated(0), Config::default());
    }
}

fn idx_file(bytes: &[u8]) {
    let _ = idx::parse_images(bytes);
    let _ = idx::parse_labels(bytes);
}

fn topology(bytes: &[u8]) {
    use rumormill_topology::format::{Format, parse};
    let text = String::from_utf8_lossy(bytes);
    for format in Format::ALL.into_iter().map(Some).chain([None]) {
        let _ = parse(&text, format);
    }
}

// Real encodings.

fn closed_manifest() -> Manifest {
    Manifest {
        rounds: 8,
        rounds_per_height: 2,
        probes_per_round: 4,
        audit_permille: 500,
        founders: Founders::Members((0..NODES).map(|i| Keys::simulated(i).id()).collect()),
        ..Manifest::template()
    }
}

fn open_manifest() -> Manifest {
    Manifest { founders: Founders::Minimum(NODES as u16), ..closed_manifest() }
}

fn node(index: u64, manifest: Manifest) -> Protocol {
    let config = Config { clock_seed: [index as u8 + 1; 32], block: 4, ..Config::default() };
    Protocol::new(manifest, Keys::simulated(index), config).expect("a good manifest")
}

/// What a small run sends and writes.
#[derive(Default)]
pub struct Trained {
    /// Frames, in order.
    pub frames: Vec<Vec<u8>>,
    /// The same with the sender, for [`protocol`].
    pub packets: Vec<Vec<u8>>,
    /// Answers to every request.
    pub responses: Vec<Vec<u8>>,
    /// The log of the first node.
    pub entries: Vec<Vec<u8>>,
}

/// A run of four nodes, all neighbors, of which the last starts late.
fn run(manifest: &Manifest) -> Trained {
    let mut nodes: BTreeMap<NodeId, Protocol> =
        (0..NODES).map(|i| (Keys::simulated(i).id(), node(i, manifest.clone()))).collect();
    let ids: Vec<NodeId> = (0..NODES).map(|i| Keys::simulated(i).id()).collect();
    let mut trained = Trained::default();
    let mut history: Vec<CertifiedHeight> = Vec::new();
    let mut queue: VecDeque<(NodeId, Input)> = VecDeque::new();
    for &a in &ids {
        queue.extend(ids.iter().filter(|&&b| b != a).map(|&b| (a, Input::Connected(b))));
    }
    let mut now = Time::ZERO;
    while !nodes.values().all(Protocol::is_finished) && now < Time::from_millis(120_000) {
        let (to, input) = queue.pop_front().unwrap_or_else(|| {
            now = now + Time::from_millis(1);
            let mut due: Vec<_> = nodes.iter().map(|(id, node)| (node.deadline(), *id)).collect();
            due.sort();
            let next = due.iter().find(|(due, _)| due.is_some()).copied();
            let (due, id) = next.unwrap_or((None, ids[0]));
            now = now.max(due.unwrap_or(now));
            (id, Input::Wake)
        });
        let mut out = Vec::new();
        nodes.get_mut(&to).expect("a node").handle(input, now, &mut out);
        for output in out {
            match output {
                Output::Send { to: there, bytes } => {
                    let from = ids.iter().position(|id| *id == to).expect("a node") as u8;
                    if there == ids[0] {
                        trained.packets.push([&[from.wrapping_sub(1) & 3][..], &bytes].concat());
                    }
                    trained.frames.push(bytes.clone());
                    queue.push_back((there, Input::Frame { from: to, bytes }));
                }
                Output::Probe(probe) | Output::Repeat(probe) => {
                    let step = (probe.round.0 * 7 + u64::from(probe.slot.0) * 3) % 11;
                    let (plus, minus) = (1.0 + step as f32 / 100.0, 1.0);
                    queue.push_back((to, Input::Losses { probe, plus, minus }));
                }
                Output::Record(entry) if to == ids[0] => {
                    trained.entries.push(codec::encode(&entry));
                    if let Entry::Certified(height) = entry {
                        history.push(height);
                    }
                }
                _ => {}
            }
        }
    }
    assert!(nodes.values().all(Protocol::is_finished), "the sample run ends");
    let founding = nodes[&ids[0]].founding().to_vec();
    let manifest = Box::new(manifest.clone());
    let all = [
        Response::Manifest(manifest),
        Response::Founders(founding),
        Response::History(history),
        Response::HistoryFrom(300),
        Response::Checkpoint { total: 1 << 20, bytes: vec![7; 64] },
        Response::Nothing,
    ];
    trained.responses = all.iter().map(Response::encode).collect();
    trained
}

/// An open run: it begins with its founders.
fn trained() -> Trained {
    run(&open_manifest())
}

fn requests() -> Vec<Vec<u8>> {
    let checkpoint = Request::Checkpoint { certified: 16, offset: 1 << 20 };
    let history = Request::History { from: 300 };
    let all = [Request::Manifest, Request::Founders, history, checkpoint];
    all.iter().map(Request::encode).collect()
}

/// What the first node of a run with named members hears, in pieces, and a history.
fn conversations() -> Vec<Vec<u8>> {
    let Trained { packets, responses, .. } = run(&closed_manifest());
    let mut all: Vec<Vec<u8>> = packets.chunks(24).map(pack).collect();
    all.extend(responses.iter().map(|bytes| pack(&[[&[4][..], bytes].concat()])));
    all
}

/// Packets with their lengths in front.
pub fn pack<T: AsRef<[u8]>>(packets: &[T]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for packet in packets {
        bytes.extend((packet.as_ref().len() as u16).to_le_bytes());
        bytes.extend(packet.as_ref());
    }
    bytes
}

fn unpack(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut packets = Vec::new();
    while let Some((len, rest)) = bytes.split_first_chunk::<2>() {
        let len = usize::from(u16::from_le_bytes(*len)).min(rest.len());
        packets.push(&rest[..len]);
        bytes = &rest[len..];
    }
    packets
}

/// Every `skip + 1`th of a list.
fn packets(all: &[Vec<u8>], skip: usize) -> Vec<Vec<u8>> {
    all.iter().step_by(skip + 1).cloned().collect()
}

fn vector_peer(index: u64, monna: bool) -> peer::Peer {
    use rumormill::vector::{acid, monna as rule};
    let ids: Vec<NodeId> = (0..2).map(|i| Keys::simulated(i).id()).collect();
    let schedule = peer::Schedule::Linear { step: 0.1 };
    let algorithm = match monna {
        false => {
            peer::Algorithm::Acid { constants: acid::Constants::PLAIN, schedule, momentum: 0.0 }
        }
        true => peer::Algorithm::Monna {
            config: rule::Config { nodes: 2, faulty: 0, beta: 0.9 },
            schedule,
        },
    };
    let settings = peer::Settings {
        run: RunId([9; 32]),
        me: ids[index as usize],
        members: ids.clone(),
        edges: [(ids[1 - index as usize], 1.0)].into(),
        algorithm,
        unit: Time::from_millis(10),
        duration: 20.0,
        precision: peer::Precision::F64,
        clock_seed: [index as u8 + 1; 32],
        start: vec![0.0; 3],
    };
    peer::Peer::new(settings).expect("good settings")
}

/// What two nodes of a vector algorithm say to each other.
fn vector_frames() -> Vec<Vec<u8>> {
    let ids: Vec<NodeId> = (0..2).map(|i| Keys::simulated(i).id()).collect();
    let talk = |monna: bool| {
        let mut peers = [vector_peer(0, monna), vector_peer(1, monna)];
        let mut said = Vec::new();
        let mut now = Time::ZERO;
        let mut queue: VecDeque<(usize, peer::Input)> = VecDeque::new();
        queue.push_back((0, peer::Input::Connected(ids[1])));
        queue.push_back((1, peer::Input::Connected(ids[0])));
        for _ in 0..200 {
            let (to, input) = queue.pop_front().unwrap_or_else(|| {
                now = now + Time::from_millis(5);
                queue.push_back((1, peer::Input::Wake));
                (0, peer::Input::Wake)
            });
            let mut out = Vec::new();
            peers[to].handle(input, now, &mut out);
            for output in out {
                match output {
                    peer::Output::Send { bytes, .. } => {
                        if to == 1 {
                            said.push(bytes.clone());
                        }
                        let from = ids[to];
                        queue.push_back((1 - to, peer::Input::Frame { from, bytes }));
                    }
                    peer::Output::Gradient { .. } => {
                        queue.push_back((to, peer::Input::Gradient(vec![0.25; 3])));
                    }
                    _ => {}
                }
            }
        }
        pack(&said)
    };
    vec![talk(false), talk(true)]
}

fn manifest_text() -> Vec<u8> {
    toml::to_string(&open_manifest()).expect("a manifest is a table").into_bytes()
}

fn idx_files() -> Vec<Vec<u8>> {
    let header = |magic: u32, extents: &[u32]| {
        let numbers = [&[magic][..], extents].concat();
        numbers.iter().flat_map(|number| number.to_be_bytes()).collect::<Vec<u8>>()
    };
    let images = [header(0x0803, &[3, 2, 2]), (0..12).collect()].concat();
    let labels = [header(0x0801, &[3]), vec![0, 1, 2]].concat();
    vec![images, labels]
}

fn csv_files() -> Vec<Vec<u8>> {
    let texts = ["a,b,kind\n1,2.5,x\n-3e4,0,y\n", "1;2;x\r\n3;4;y\r\n", "\"a\",1\n\"b\",2\n"];
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

fn libsvm_files() -> Vec<Vec<u8>> {
    let texts = ["+1 1:0.5 3:-2e1\n-1 2:1\n", "3 1:1 # note\n1 4:0.25\n"];
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

fn topologies() -> Vec<Vec<u8>> {
    use rumormill_topology::format::{Format, write};
    use rumormill_topology::{Attributes, TopologyBuilder};
    let mut builder = TopologyBuilder::new();
    let nodes: Vec<_> =
        ["a", "b c", "7"].iter().map(|name| builder.add_node(name).expect("new")).collect();
    let rated = Attributes { rate: Some(2.5), latency_ms: Some(10.0), loss: Some(0.125) };
    for (a, b) in [(0, 1), (1, 2), (2, 0)] {
        builder.add_edge(nodes[a], nodes[b], rated).expect("new");
    }
    let graph = builder.finish().expect("connected").0;
    let written = Format::ALL.into_iter().filter_map(|format| write(&graph, format).ok());
    let mut all: Vec<Vec<u8>> = written.map(String::into_bytes).collect();
    all.push(b">>graph6<<DQc\n".to_vec());
    all
}
