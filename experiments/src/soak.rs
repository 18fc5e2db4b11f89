//! Mixed troubles from one seed: whatever the network does, the honest nodes end identical.
//!
//! [`scenario`] draws graph, speeds, loss, partitions, crashes and late starters from its seed and
//! runs them to quiescence; [`byzantine`] adds faulty nodes, up to the tolerated number, each with
//! one [`Fault`]. Both say in words what is wrong, so that a failing seed can be run again alone.

use std::collections::BTreeSet;
use std::sync::Arc;

use rumormill::height::{Ack, CertifiedHeight, Control, RecordSet};
use rumormill::id::{Height, RunId};
use rumormill::keys::{Keys, Signature};
use rumormill::ledger::{Context, Segment, SegmentLimits};
use rumormill::manifest::{DataMode, Founders, Manifest};
use rumormill::message::{AckGroup, Frame, Have, Sums};
use rumormill::protocol::{Config, Entry};
use rumormill::sample::KeyedRng;
use rumormill::selection::Rule;
use rumormill::time::Time;

use crate::simulation::{Action, Bookkeeper, LinkModel, Simulation};

/// How a faulty node breaks the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Different signed segments for different neighbors.
    Equivocates,
    /// Nothing is ever sent.
    Silent,
    /// Its own records go to one neighbor alone.
    Withholds,
    /// Signatures of segments and acks are wrong now and then.
    Forges,
    /// Old frames are sent again.
    Replays,
    /// Random bytes, oversized frames, and lists and numbers beyond all limits.
    Malformed,
    /// Acks for different digests to different halves.
    TwoFacedAcks,
    /// Its own records of a height are shown, to half of the others, when it acknowledges it.
    RevealsLate,
    /// Certified history with other bytes, weights and signatures.
    FalseHistory,
}

/// All faults.
pub const FAULTS: [Fault; 9] = [
    Fault::Equivocates,
    Fault::Silent,
    Fault::Withholds,
    Fault::Forges,
    Fault::Replays,
    Fault::Malformed,
    Fault::TwoFacedAcks,
    Fault::RevealsLate,
    Fault::FalseHistory,
];

/// Honest nodes on a troubled network.
///
/// # Errors
/// What is not as it should be in the end.
pub fn scenario(seed: u64) -> Result<(), String> {
    let mut rng = KeyedRng::from_seed("rumormill v1 soak", seed, 0);
    let n = 4 + rng.index(9) as usize;
    let link = LinkModel {
        latency: Time::from_millis(1 + u64::from(rng.index(20))),
        jitter: Time::from_millis(u64::from(rng.index(30))),
        loss: 0.3 * rng.unit_f64(),
        duplication: 0.3 * rng.unit_f64(),
        reorder: 0.3 * rng.unit_f64(),
        ..LinkModel::default()
    };
    let manifest = some_manifest(n, &mut rng);
    let edges = some_graph(n, &mut rng);
    let mut network = network(n, manifest, edges, link, seed, &mut rng);
    let mut late = BTreeSet::new();
    for _ in 0..rng.index(3) {
        late.insert(rng.index(n as u32) as usize);
    }
    for node in 0..n {
        let at = if late.contains(&node) { 200 + u64::from(rng.index(8_000)) } else { 0 };
        network.at(Time::from_millis(at), Action::Start(node));
    }
    let mut at = 0;
    for _ in 0..1 + rng.index(3) {
        at += 200 + u64::from(rng.index(3_000));
        let group = (0..n).filter(|_| rng.index(3) == 0).collect();
        network.at(Time::from_millis(at), Action::Partition(group));
        at += 200 + u64::from(rng.index(10_000));
        network.at(Time::from_millis(at), Action::Heal);
    }
    let mut at = 0;
    for _ in 0..rng.index(6) {
        at += u64::from(rng.index(2_000));
        // Sometimes all at once, as in a power cut.
        let all = rng.index(6) == 0;
        let one = rng.index(n as u32) as usize;
        for node in (0..n).filter(|&node| all || node == one) {
            network.at(Time::from_millis(at), Action::Crash { node, lost_tail: 0 });
            let down = 50 + u64::from(rng.index(3_000));
            network.at(Time::from_millis(at + down), Action::Start(node));
        }
    }
    network.run(Time::from_millis(4 * 3_600_000));
    verdict(&network, 0, seed)
}

/// The tolerated number of faulty nodes, all with the same fault, beside honest ones whose own
/// graph is connected.
///
/// # Errors
/// What is not as it should be in the end.
pub fn byzantine(fault: Fault, seed: u64) -> Result<(), String> {
    let mut rng = KeyedRng::from_seed("rumormill v1 byzantine soak", seed, fault as u64);
    let n = 4 + rng.index(7) as usize;
    let faulty = (n - 1) / 3;
    let manifest = some_manifest(n, &mut rng);
    let run = manifest.run_id();
    // The faulty ones are the first, and everybody's neighbors.
    let honest = some_graph(n - faulty, &mut rng);
    let mut edges: Vec<_> = honest.into_iter().map(|(a, b)| (a + faulty, b + faulty)).collect();
    edges.extend((0..faulty).flat_map(|a| (a + 1..n).map(move |b| (a, b))));
    let loss = if rng.index(2) == 0 { 0.0 } else { 0.1 };
    let link = LinkModel { loss, ..LinkModel::default() };
    let mut network = network(n, manifest, edges, link, seed, &mut rng);
    for node in 0..faulty {
        let rng = KeyedRng::from_seed("rumormill v1 liar", seed, node as u64);
        corrupt(&mut network, node, fault, run, rng);
    }
    network.start_all();
    // One honest node restarts on the way.
    if rng.index(2) == 0 && faulty + 1 < n {
        let node = faulty + rng.index((n - faulty) as u32) as usize;
        let at = 100 + u64::from(rng.index(2_000));
        network.at(Time::from_millis(at), Action::Crash { node, lost_tail: 0 });
        network.at(Time::from_millis(at + 300), Action::Start(node));
    }
    network.run(Time::from_millis(4 * 3_600_000));
    verdict(&network, faulty, seed)
}

fn some_manifest(n: usize, rng: &mut KeyedRng) -> Manifest {
    let rounds_per_height = 2 + rng.index(3);
    Manifest {
        seed: u64::from(rng.next_u32()),
        rounds: u64::from(rounds_per_height * (2 + rng.index(5))),
        rounds_per_height,
        probes_per_round: 2 + rng.index(7),
        redundancy_256: 256 * (1 + rng.index(3)),
        data_mode: [DataMode::Public, DataMode::Private][rng.index(2) as usize],
        selection: [Rule::Mean, Rule::Nnm, Rule::Median][rng.index(3) as usize],
        window: 1 + rng.index(8),
        scale_exponent: -2,
        founders: Founders::Members((0..n as u64).map(|i| Keys::simulated(i).id()).collect()),
        ..Manifest::template()
    }
}

/// A random spanning tree and some edges more.
fn some_graph(n: usize, rng: &mut KeyedRng) -> Vec<(usize, usize)> {
    let mut edges = BTreeSet::new();
    for node in 1..n {
        edges.insert((rng.index(node as u32) as usize, node));
    }
    for _ in 0..rng.index(n as u32 + 1) {
        let (a, b) = (rng.index(n as u32) as usize, rng.index(n as u32) as usize);
        if a != b {
            edges.insert((a.min(b), a.max(b)));
        }
    }
    edges.into_iter().collect()
}

fn network(
    n: usize,
    manifest: Manifest,
    edges: Vec<(usize, usize)>,
    link: LinkModel,
    seed: u64,
    rng: &mut KeyedRng,
) -> Simulation<Bookkeeper> {
    let keys: Vec<Keys> = (0..n as u64).map(Keys::simulated).collect();
    let config = |i: usize| Config {
        clock_seed: [i as u8 + 1; 32],
        block: 1 + seed as usize % 16,
        linger: Time::from_millis(120_000),
        ..Config::default()
    };
    let configs = (0..n).map(config).collect();
    let trainer = Bookkeeper::new(n);
    let mut network = Simulation::new(manifest, keys, configs, edges, link, seed, trainer);
    for node in &mut network.nodes {
        node.probe_time = Time::from_millis(3 + u64::from(rng.index(28)));
    }
    network
}

/// Whether all honest nodes that are up have finished alike and complained of no honest one.
fn verdict(network: &Simulation<Bookkeeper>, faulty: usize, seed: u64) -> Result<(), String> {
    let mut first = None;
    for (at, node) in network.nodes.iter().enumerate().skip(faulty) {
        let Some(protocol) = node.protocol.as_ref() else { continue };
        if !protocol.is_finished() {
            return Err(format!(
                "seed {seed}: node {at} is not finished at {:?}: {}; {:?}",
                network.now,
                protocol.missing(),
                protocol.stalled()
            ));
        }
        let model = &network.trainer.models[at];
        let (other, digest, other_model) = *first.get_or_insert((at, protocol.digest(), model));
        if digest != protocol.digest() {
            return Err(format!("seed {seed}: nodes {other} and {at} differ in their digests"));
        }
        if model != other_model {
            return Err(format!("seed {seed}: nodes {other} and {at} differ in their models"));
        }
        let of_faulty =
            |line: &&String| (0..faulty).any(|liar| line.starts_with(&format!("Some({liar}) ")));
        if let Some(line) = node.complaints.iter().find(|line| !of_faulty(line)) {
            return Err(format!("seed {seed}: node {at} complains of an honest node: {line}"));
        }
    }
    match first {
        Some((_, _, model)) if model.is_empty() => Err(format!("seed {seed}: nothing was learned")),
        Some(_) => Ok(()),
        None => Err(format!("seed {seed}: nobody is up")),
    }
}

fn corrupt(
    network: &mut Simulation<Bookkeeper>,
    node: usize,
    fault: Fault,
    run: RunId,
    mut rng: KeyedRng,
) {
    let keys = Keys::simulated(node as u64);
    let scheme = keys.scheme();
    let origin = node as u16;
    let mut old: Vec<Vec<u8>> = Vec::new();
    if fault == Fault::FalseHistory {
        let mut rng = KeyedRng::from_seed("rumormill v1 historian", node as u64, 0);
        network.nodes[node].historian = Some(Box::new(move |heights| {
            heights.into_iter().map(|height| falsify(height, &mut rng)).collect()
        }));
    }
    let liar = move |to: usize, bytes: Vec<u8>, log: &[Entry]| -> Vec<Vec<u8>> {
        let frame = Frame::decode(&bytes).expect("a node's own frame");
        let Frame::Exchange(mut exchange) = frame else {
            return if fault == Fault::Silent { Vec::new() } else { vec![bytes] };
        };
        match fault {
            Fault::Silent => return Vec::new(),
            Fault::Equivocates if to % 2 == 1 => {
                for delta in exchange.segments.iter_mut().filter(|delta| delta.origin == origin) {
                    let height = delta.height;
                    let own = log.iter().rev().find_map(|entry| match entry {
                        Entry::Own { height: of, segment } if *of == height => Some(segment),
                        _ => None,
                    });
                    let Some(own) = own else { continue };
                    let limits = SegmentLimits { rounds: 0, bytes_per_round: 0, audits: 0 };
                    let context = Context { run: &run, height: Height(height), scheme, limits };
                    let bytes = own.bytes.iter().map(|byte| byte ^ 1).collect();
                    let other =
                        Segment::sign(&context, &keys, own.counts.clone(), bytes, own.closed);
                    *delta = other.delta(height, rumormill::id::Origin(origin), 0);
                }
            }
            Fault::Withholds if to % 3 != 1 => {
                exchange.segments.retain(|delta| delta.origin != origin);
            }
            Fault::Forges => {
                let mut spoil = |signature: &mut Signature| {
                    if rng.index(4) == 0 {
                        signature.0[rng.index(32) as usize] ^= 1;
                    }
                };
                exchange.segments.iter_mut().for_each(|delta| spoil(&mut delta.signature));
                let acks = exchange.acks.iter_mut().flat_map(|group| &mut group.acks);
                acks.for_each(|ack| spoil(&mut ack.1));
            }
            Fault::Replays => {
                old.push(bytes.clone());
                let again = old[rng.index(old.len() as u32) as usize].clone();
                if old.len() > 200 {
                    old.swap_remove(rng.index(200) as usize);
                }
                return vec![bytes, again];
            }
            Fault::Malformed => return malformed(&exchange, bytes, &mut rng),
            Fault::TwoFacedAcks => {
                for group in &mut exchange.acks {
                    group.acks.retain(|ack| ack.0 != origin);
                }
                let height = exchange.certified;
                let (weight, digest) = (rng.next_u32() as u16, [to as u8 % 2; 32]);
                let set = forged_set(weight, digest);
                let ack = Ack::sign(&run, Height(height), &keys, &set);
                exchange.acks.push(AckGroup {
                    height,
                    weight: ack.weight,
                    digest,
                    acks: vec![(origin, ack.signature)],
                });
            }
            Fault::RevealsLate => {
                let acknowledged = |height: u64| {
                    log.iter()
                        .any(|e| matches!(e, Entry::Acked { height: of, .. } if *of == height))
                };
                exchange.segments.retain(|delta| {
                    delta.origin != origin || (to % 2 == 1 && acknowledged(delta.height))
                });
                for have in &mut exchange.have {
                    have.lens.retain(|entry| entry.0 != origin);
                }
                if exchange.segments.is_empty() && to % 2 == 1 {
                    exchange.ask_full = true;
                }
            }
            _ => {}
        }
        vec![Frame::Exchange(exchange).encode()]
    };
    network.nodes[node].liar = Some(Box::new(liar));
}

/// A set of which only the signature's inputs matter.
fn forged_set(weight: u16, digest: [u8; 32]) -> RecordSet {
    RecordSet { lens: vec![weight], equivocators: Vec::new(), controls: Vec::new(), digest }
}

fn falsify(mut height: CertifiedHeight, rng: &mut KeyedRng) -> CertifiedHeight {
    match rng.index(6) {
        0 => height.weight = u64::MAX,
        1 => height.acks.truncate(1),
        2 => height.height = u64::MAX - u64::from(rng.index(3)),
        3 => {
            if let Some(segment) = Arc::make_mut(&mut height.segments).first_mut() {
                segment.bytes[0] ^= 1;
            }
        }
        4 => Arc::make_mut(&mut height.segments).reverse(),
        _ => {
            let first = height.acks[0];
            height.acks.iter_mut().for_each(|ack| *ack = first);
        }
    }
    height
}

fn malformed(
    exchange: &rumormill::message::Exchange,
    bytes: Vec<u8>,
    rng: &mut KeyedRng,
) -> Vec<Vec<u8>> {
    let mut other = exchange.clone();
    let far = u64::MAX - u64::from(rng.index(4));
    match rng.index(9) {
        0 => return vec![(0..rng.index(200)).map(|_| rng.next_u32() as u8).collect()],
        1 => return vec![vec![2; (1 << 20) + 7]],
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
            let acks = vec![(0, Signature([0; 64])); 100];
            let digest = [0; 32];
            let group = |height, weight| AckGroup { height, weight, digest, acks: acks.clone() };
            other.acks = vec![group(far, far), group(0, far), group(other.certified, u64::MAX)];
        }
        _ => {
            let signature = Signature([0; 64]);
            let id = rumormill::id::NodeId([rng.next_u32() as u8; 32]);
            other.controls = vec![(far, Control::Join { id, signature })];
        }
    }
    vec![Frame::Exchange(other).encode()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn honest_nodes_end_identical_after_mixed_troubles() {
        let failed: Vec<String> = soak_seeds(25).filter_map(|seed| scenario(seed).err()).collect();
        assert_eq!(failed, Vec::<String>::new());
    }

    /// `SOAK=FROM..TO` in the environment runs other seeds.
    fn soak_seeds(n: u64) -> std::ops::Range<u64> {
        let range = std::env::var("SOAK").ok();
        let range = range.and_then(|range| {
            let (from, to) = range.split_once("..")?;
            Some(from.parse().ok()?..to.parse().ok()?)
        });
        range.unwrap_or(0..n)
    }

    fn holds(fault: Fault) {
        let failed: Vec<String> =
            soak_seeds(4).filter_map(|seed| byzantine(fault, seed).err()).collect();
        assert_eq!(failed, Vec::<String>::new(), "{fault:?}");
    }

    #[test]
    fn a_hello_that_is_lost_is_no_offence_of_the_next_frame() {
        scenario(10).unwrap();
    }

    #[test]
    fn one_digest_acknowledged_under_two_weights_is_not_blamed_on_the_relay() {
        byzantine(Fault::TwoFacedAcks, 0).unwrap();
    }

    #[test]
    fn a_larger_certificate_deals_later_rounds_again() {
        byzantine(Fault::FalseHistory, 57).unwrap();
        byzantine(Fault::Equivocates, 27).unwrap();
        byzantine(Fault::Equivocates, 30).unwrap();
    }

    #[test]
    fn an_exclusion_does_not_change_the_limits_of_a_height_already_open() {
        byzantine(Fault::Equivocates, 36).unwrap();
        byzantine(Fault::Equivocates, 59).unwrap();
    }

    #[test]
    fn a_certified_set_whose_records_fell_to_evidence_is_fetched() {
        byzantine(Fault::Equivocates, 114).unwrap();
        byzantine(Fault::Equivocates, 193).unwrap();
    }

    #[test]
    fn records_made_before_a_larger_certificate_stay_within_the_limits() {
        scenario(878).unwrap();
    }

    #[test]
    fn branches_of_equal_length_are_found_by_their_hashes() {
        byzantine(Fault::Equivocates, 80).unwrap();
    }

    #[test]
    fn equivocating_nodes_do_not_divide_the_honest() {
        holds(Fault::Equivocates);
    }

    #[test]
    fn silent_nodes_do_not_divide_the_honest() {
        holds(Fault::Silent);
    }

    #[test]
    fn withholding_nodes_do_not_divide_the_honest() {
        holds(Fault::Withholds);
    }

    #[test]
    fn forging_nodes_do_not_divide_the_honest() {
        holds(Fault::Forges);
    }

    #[test]
    fn replaying_nodes_do_not_divide_the_honest() {
        holds(Fault::Replays);
    }

    #[test]
    fn malformed_frames_do_not_divide_the_honest() {
        holds(Fault::Malformed);
    }

    #[test]
    fn two_faced_acks_do_not_divide_the_honest() {
        holds(Fault::TwoFacedAcks);
    }

    #[test]
    fn late_reveals_do_not_divide_the_honest() {
        holds(Fault::RevealsLate);
    }

    #[test]
    fn false_history_does_not_divide_the_honest() {
        holds(Fault::FalseHistory);
    }
}
