//! What the protocol itself costs, without sockets and without losses to measure.
//!
//! `cargo bench --bench protocol`. Medians over repetitions; the least is what an idle machine would
//! show.

use std::hint::black_box;
use std::time::Instant;

use rumormill::id::{Height, Origin, RunId};
use rumormill::keys::Keys;
use rumormill::ledger::{Context, Ledger, Segment, SegmentLimits};
use rumormill::manifest::{Founders, Manifest};
use rumormill::protocol::Config;
use rumormill::time::Time;
use rumormill_experiments::simulation::{Bookkeeper, LinkModel, Simulation};

const REPETITIONS: usize = 21;

fn main() {
    for (name, seeded) in [("Ed25519", true), ("simulated signatures", false)] {
        let keys = if seeded { Keys::from_seed(&[1; 32]) } else { Keys::simulated(1) };
        ledger_insert(name, &keys);
    }
    simulated_round();
}

fn print(name: &str, unit: &str, mut times: Vec<f64>) {
    times.sort_by(f64::total_cmp);
    println!("{name:<56} {:>10.1} (least {:.1}) {unit}", times[times.len() / 2], times[0]);
}

/// A signed segment of 64 records goes into an empty ledger.
fn ledger_insert(name: &str, keys: &Keys) {
    let run = RunId([7; 32]);
    let context = Context {
        run: &run,
        height: Height(0),
        scheme: keys.scheme(),
        limits: SegmentLimits { rounds: 8, bytes_per_round: 64, audits: 0 },
    };
    let segment = Segment::sign(&context, keys, vec![64], vec![0x41; 64], false);
    let delta = segment.delta(0, Origin(0), 0);
    let times = (0..REPETITIONS).map(|_| {
        let calls = 200;
        let started = Instant::now();
        for _ in 0..calls {
            let mut ledger = Ledger::new(16);
            let inserted = ledger.insert(&context, &keys.id(), black_box(delta.clone()));
            black_box(inserted.expect("the segment is valid"));
        }
        started.elapsed().as_secs_f64() * 1e9 / f64::from(calls) / 64.0
    });
    print(&format!("ledger insert, 64 records a segment, {name}"), "ns a record", times.collect());
}

/// One round of 16 nodes on a ring: all frames, insertions, closings and certificates, no losses.
fn simulated_round() {
    let rounds = 32;
    let nodes = 16;
    let times = (0..REPETITIONS / 3).map(|_| {
        let keys: Vec<Keys> = (0..nodes as u64).map(Keys::simulated).collect();
        let founders = Founders::Members(keys.iter().map(Keys::id).collect());
        let manifest = Manifest { rounds, founders, ..Manifest::template() };
        let configs =
            (0..nodes).map(|i| Config { clock_seed: [i as u8; 32], ..Config::default() }).collect();
        let ring = (0..nodes).map(|i| (i, (i + 1) % nodes)).collect();
        let mut simulation = Simulation::new(
            manifest,
            keys,
            configs,
            ring,
            LinkModel::default(),
            1,
            Bookkeeper::new(nodes),
        );
        let started = Instant::now();
        simulation.start_all();
        assert!(simulation.run(Time::from_millis(3_600_000)), "the run ends");
        started.elapsed().as_secs_f64() * 1e6 / rounds as f64
    });
    print("simulated round, 16 nodes on a ring, 32 probes each", "us a round", times.collect());
}
