//! Mixed troubles from one seed: whatever the network does, the honest nodes end identical.
//!
//! [`scenario`] draws graph, speeds, loss, partitions, crashes and late starters from its seed and
//! runs them to quiescence; [`byzantine`] adds faulty nodes, up to the tolerated number, each with
//! one of [`FAULTS`]. Both say in words what is wrong, so that a failing seed can be run again alone.

use std::collections::BTreeSet;

use rumormill::fault::FaultKind;
use rumormill::fault::wire::Saboteur;
use rumormill::keys::Keys;
use rumormill::manifest::{DataMode, Founders, Manifest};
use rumormill::protocol::Config;
use rumormill::sample::KeyedRng;
use rumormill::selection::Rule;
use rumormill::time::Time;

use crate::simulation::{Action, Bookkeeper, LinkModel, Simulation};

/// Faults that are a matter of frames. Their order chooses the streams of random numbers.
pub const FAULTS: [FaultKind; 14] = [
    FaultKind::Equivocation,
    FaultKind::Silent,
    FaultKind::Withhold,
    FaultKind::Forge,
    FaultKind::Replay,
    FaultKind::Malformed,
    FaultKind::FalseAck,
    FaultKind::LateReveal,
    FaultKind::FalseHistory,
    FaultKind::WrongRun,
    FaultKind::FarRound,
    FaultKind::Overlong,
    FaultKind::Oversize,
    FaultKind::RestoredBackup,
];

/// Honest nodes on a troubled network.
///
/// # Errors
/// What is not as it should be in the end.
pub fn scenario(seed: u64) -> Result<(), String> {
    troubled(seed, 0, 0).map(|_| ())
}

/// The same with a rule that looks back over a window, while some of the nodes are no founders and join.
///
/// # Errors
/// What is not as it should be in the end.
pub fn joined(seed: u64) -> Result<(), String> {
    troubled(seed, 0, 1 + seed as usize % 2).map(|_| ())
}

/// The same with public data and audits, while the last node tells the opposite of what it measures.
/// Whether it was found out: in short runs it may not be.
///
/// # Errors
/// What is not as it should be in the end; an honest node that was convicted, too.
pub fn audited(seed: u64) -> Result<bool, String> {
    troubled(seed, 500, 0)
}

fn troubled(seed: u64, audit_permille: u16, joiners: usize) -> Result<bool, String> {
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
    let mut manifest = some_manifest(n, &mut rng);
    if audit_permille > 0 {
        manifest.audit_permille = audit_permille;
        manifest.data_mode = DataMode::Public;
        manifest.rounds = u64::from(manifest.rounds_per_height) * 12;
    }
    if joiners > 0 {
        let founders = (0..(n - joiners) as u64).map(|at| Keys::simulated(at).id());
        manifest.founders = Founders::Members(founders.collect());
        manifest.rounds = u64::from(manifest.rounds_per_height) * 12;
        manifest.selection = [Rule::Stack, Rule::Nnm, Rule::Median][rng.index(3) as usize];
        // Rounds before a joiner was a member are in the window of those after.
        manifest.window = 3 * manifest.rounds_per_height;
    }
    let edges = some_graph(n, &mut rng);
    let mut network = network(n, manifest, edges, link, seed, &mut rng);
    let liar = (n - 1, Keys::simulated(n as u64 - 1).id());
    network.trainer.liar = (audit_permille > 0).then_some(liar);
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
    verdict(&network, 0, seed)?;
    let witness = network.nodes.iter().find_map(|node| node.protocol.as_ref());
    let convicted = witness.map(|protocol| protocol.convicted().clone()).unwrap_or_default();
    match convicted.keys().find(|origin| origin.index() != liar.0) {
        Some(origin) => Err(format!("seed {seed}: honest node {} was convicted", origin.0)),
        None => Ok(!convicted.is_empty()),
    }
}

/// The tolerated number of faulty nodes, all with the same fault, beside honest ones whose own
/// graph is connected.
///
/// # Errors
/// What is not as it should be in the end.
pub fn byzantine(fault: FaultKind, seed: u64) -> Result<(), String> {
    let stream = FAULTS.iter().position(|&other| other == fault);
    let stream = stream.ok_or_else(|| format!("{fault} is no matter of frames"))?;
    let mut rng = KeyedRng::from_seed("rumormill v1 byzantine soak", seed, stream as u64);
    let n = 4 + rng.index(7) as usize;
    let faulty = (n - 1) / 3;
    let manifest = some_manifest(n, &mut rng);
    // The faulty ones are the first, and everybody's neighbors.
    let honest = some_graph(n - faulty, &mut rng);
    let mut edges: Vec<_> = honest.into_iter().map(|(a, b)| (a + faulty, b + faulty)).collect();
    edges.extend((0..faulty).flat_map(|a| (a + 1..n).map(move |b| (a, b))));
    let loss = if rng.index(2) == 0 { 0.0 } else { 0.1 };
    let link = LinkModel { loss, ..LinkModel::default() };
    let mut network = network(n, manifest.clone(), edges, link, seed, &mut rng);
    for node in 0..faulty {
        let at = node as u64;
        let rng = match fault {
            FaultKind::FalseHistory => KeyedRng::from_seed("rumormill v1 historian", at, 0),
            _ => KeyedRng::from_seed("rumormill v1 liar", seed, at),
        };
        let saboteur = Saboteur::new(fault, manifest.clone(), Keys::simulated(at), rng);
        network.nodes[node].saboteur = Some(saboteur);
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
        selection: [Rule::Mean, Rule::Nnm, Rule::Median, Rule::Stack][rng.index(4) as usize],
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
    // Half of the seeds go the way of large simulations: it must lead to the same.
    network.passes_frames = seed % 2 == 1;
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

    fn holds(fault: FaultKind) {
        let failed: Vec<String> =
            soak_seeds(4).filter_map(|seed| byzantine(fault, seed).err()).collect();
        assert_eq!(failed, Vec::<String>::new(), "{fault}");
    }

    #[test]
    fn nodes_that_join_in_mixed_troubles_end_identical() {
        let failed: Vec<String> = soak_seeds(25).filter_map(|seed| joined(seed).err()).collect();
        assert_eq!(failed, Vec::<String>::new());
    }

    /// Records of the joiner were in the window of heights before which the roster was without it.
    #[test]
    fn a_larger_certificate_takes_back_a_member_of_which_records_are_held() {
        joined(122).unwrap();
    }

    #[test]
    fn audits_in_mixed_troubles_convict_liars_alike_and_nobody_else() {
        let ended: Vec<Result<bool, String>> = soak_seeds(15).map(audited).collect();
        let failed: Vec<&String> = ended.iter().filter_map(|end| end.as_ref().err()).collect();
        assert_eq!(failed, Vec::<&String>::new());
        assert!(ended.contains(&Ok(true)), "no liar was ever found out");
    }

    #[test]
    fn a_hello_that_is_lost_is_no_offence_of_the_next_frame() {
        scenario(10).unwrap();
    }

    #[test]
    fn one_digest_acknowledged_under_two_weights_is_not_blamed_on_the_relay() {
        byzantine(FaultKind::FalseAck, 0).unwrap();
    }

    #[test]
    fn a_larger_certificate_deals_later_rounds_again() {
        byzantine(FaultKind::FalseHistory, 57).unwrap();
        byzantine(FaultKind::Equivocation, 27).unwrap();
        byzantine(FaultKind::Equivocation, 30).unwrap();
    }

    #[test]
    fn an_exclusion_does_not_change_the_limits_of_a_height_already_open() {
        byzantine(FaultKind::Equivocation, 36).unwrap();
        byzantine(FaultKind::Equivocation, 59).unwrap();
    }

    #[test]
    fn a_certified_set_whose_records_fell_to_evidence_is_fetched() {
        byzantine(FaultKind::Equivocation, 114).unwrap();
        byzantine(FaultKind::Equivocation, 193).unwrap();
    }

    #[test]
    fn records_made_before_a_larger_certificate_stay_within_the_limits() {
        scenario(878).unwrap();
    }

    #[test]
    fn branches_of_equal_length_are_found_by_their_hashes() {
        byzantine(FaultKind::Equivocation, 80).unwrap();
    }

    #[test]
    fn equivocating_nodes_do_not_divide_the_honest() {
        holds(FaultKind::Equivocation);
    }

    #[test]
    fn silent_nodes_do_not_divide_the_honest() {
        holds(FaultKind::Silent);
    }

    #[test]
    fn withholding_nodes_do_not_divide_the_honest() {
        holds(FaultKind::Withhold);
    }

    #[test]
    fn forging_nodes_do_not_divide_the_honest() {
        holds(FaultKind::Forge);
    }

    #[test]
    fn replaying_nodes_do_not_divide_the_honest() {
        holds(FaultKind::Replay);
    }

    #[test]
    fn malformed_frames_do_not_divide_the_honest() {
        holds(FaultKind::Malformed);
    }

    #[test]
    fn two_faced_acks_do_not_divide_the_honest() {
        holds(FaultKind::FalseAck);
    }

    #[test]
    fn late_reveals_do_not_divide_the_honest() {
        holds(FaultKind::LateReveal);
    }

    #[test]
    fn false_history_does_not_divide_the_honest() {
        holds(FaultKind::FalseHistory);
    }
    #[test]
    fn nodes_of_another_run_do_not_divide_the_honest() {
        holds(FaultKind::WrongRun);
    }

    #[test]
    fn records_of_far_rounds_do_not_divide_the_honest() {
        holds(FaultKind::FarRound);
    }

    #[test]
    fn overlong_rounds_do_not_divide_the_honest() {
        holds(FaultKind::Overlong);
    }

    #[test]
    fn oversized_frames_do_not_divide_the_honest() {
        holds(FaultKind::Oversize);
    }

    #[test]
    fn restored_backups_do_not_divide_the_honest() {
        holds(FaultKind::RestoredBackup);
    }
}
