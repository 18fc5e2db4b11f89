//! What choosing costs, beside the probes of a round: `cargo bench --bench selection`.
//!
//! Sixteen nodes with 32 probes each, three a direction, and a window of twenty rounds. The sums of
//! nineteen rounds are kept, those of the newest are made: what a node does once when it closes a
//! round, and again for each record that comes late.

use std::hint::black_box;
use std::time::Instant;

use rumormill::id::{Origin, Round, RunId};
use rumormill::manifest::Manifest;
use rumormill::round::{Deal, RoundValues};
use rumormill::sample::KeyedRng;
use rumormill::selection::{Measured, RULES};
use rumormill::update::round_update;

const NODES: usize = 16;
const REPETITIONS: usize = 401;
const PROBE_US: f64 = 80.0;

fn main() {
    let template = Manifest { redundancy_256: 3 * 256, ..Manifest::template() };
    let active: Vec<Origin> = (0..NODES as u16).map(Origin).collect();
    let mut rng = KeyedRng::from_seed("rumormill v1 bench", 0, 0);
    let mut round = |number: u64| {
        let deal = Deal::new(&template, &RunId([1; 32]), Round(number), NODES, &active);
        let mut values = RoundValues { slots: vec![Vec::new(); deal.directions() as usize] };
        let signals: Vec<f32> = values.slots.iter().map(|_| rng.symmetric(0.4)).collect();
        for &origin in &active {
            for slot in deal.walk(origin).take(template.probes_per_round as usize) {
                let slot = slot.0 as usize;
                values.slots[slot].push((origin, f64::from(signals[slot] + rng.symmetric(1.0))));
            }
        }
        values
    };
    let kept: Vec<Measured> = (0..19).map(|number| round(number).into()).collect();
    let newest = round(19);
    let budget_us = PROBE_US * f64::from(template.probes_per_round);
    println!("a round of {NODES} nodes; a node's own probes take {budget_us} us");
    for rule in RULES {
        let manifest = Manifest { selection: rule, ..template.clone() };
        let mut times: Vec<f64> = (0..REPETITIONS)
            .map(|_| {
                let start = Instant::now();
                let newest = Measured::from(newest.clone());
                let window: Vec<&Measured> = kept.iter().chain([&newest]).collect();
                black_box(round_update(&manifest, Round(19), &window, NODES, 5, &[], &[]));
                start.elapsed().as_secs_f64() * 1e6
            })
            .collect();
        times.sort_by(f64::total_cmp);
        let (median, least) = (times[REPETITIONS / 2], times[0]);
        println!(
            "  {:<18} {median:>7.1} us (least {least:.1}), {:.2} % of the probes",
            rule.name(),
            100.0 * least / budget_us
        );
    }
}
