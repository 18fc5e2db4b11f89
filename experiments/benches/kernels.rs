//! What the inner loops cost, beside a plain `f32` stream over an array of the same size.
//!
//! `cargo bench --bench kernels [-- GROUP...]` with the groups `parameters`, `replay`, `ends`,
//! `bytes` and `probes`. Printed is the median over interleaved repetitions: every kernel of a group runs once,
//! then all again, so that a busy machine slows all of them alike and the ratio to the first one
//! holds. The least time is what an idle machine would show; the processor's time leaves out what
//! others ran for in between (in the resolution of a scheduler's tick, one thread only). That is
//! why this is a plain program: the usual harnesses time one function after the other.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use multiversion::multiversion;
use rumormill::data::{Dataset, Features, Raw, Scaling, digits};
use rumormill::direction::Direction;
use rumormill::id::{NodeId, Round, RunId, Slot};
use rumormill::objective::{ModelSpec, Objective, Scratch, Split, build};
use rumormill::params::{End, Payout, State, TensorSpec, coefficient};
use rumormill::sample::{KeyedRng, minibatch};
use rumormill::{lb8, spsa};

// That of the programs, without huge pages.
#[cfg(feature = "language")]
#[global_allocator]
static ALLOCATOR: rumormill::language::memory::Allocator = rumormill::language::memory::Allocator;

/// Time of a repetition of one kernel; long against the clock, short against a scheduler's slice.
const REPETITION: Duration = Duration::from_millis(4);

/// Repetitions of every kernel.
const REPETITIONS: usize = 61;

type Kernel<'a> = (&'static str, f64, Box<dyn FnMut() + 'a>);

fn main() {
    #[cfg(feature = "language")]
    rumormill::language::memory::huge_pages(false);
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let is_wanted = |group: &str| wanted.is_empty() || wanted.iter().any(|name| name == group);
    if is_wanted("parameters") {
        parameters(25_450);
        parameters(10_000_000);
    }
    if is_wanted("replay") {
        replay();
    }
    if is_wanted("ends") {
        ends();
    }
    if is_wanted("bytes") {
        bytes();
    }
    if is_wanted("probes") {
        probes();
    }
}

/// Times kernels in turn; each has a name and the number of units that one call works on.
fn group(title: &str, unit: &str, mut kernels: Vec<Kernel<'_>>) {
    let calls: Vec<u32> = kernels.iter_mut().map(|(_, _, kernel)| calls_needed(kernel)).collect();
    let mut times = vec![Vec::with_capacity(REPETITIONS); kernels.len()];
    let mut processor = vec![0.0; kernels.len()];
    // Kernels that take long have fewer repetitions, all the same number.
    let longest = kernels.iter_mut().map(|(_, _, kernel)| seconds(kernel)).fold(0.0, f64::max);
    let repetitions = ((20.0 / longest) as usize).clamp(5, REPETITIONS);
    for _ in 0..repetitions {
        for (at, (_, units, kernel)) in kernels.iter_mut().enumerate() {
            let all = f64::from(calls[at]) * *units;
            let before = processor_ns();
            let start = Instant::now();
            (0..calls[at]).for_each(|_| kernel());
            times[at].push(start.elapsed().as_secs_f64() * 1e9 / all);
            processor[at] += (processor_ns() - before) / (all * repetitions as f64);
        }
    }
    println!("\n{title}, {repetitions} repetitions");
    println!(
        "  {:<44} {:>9} {:>9} {:>9} ns per {unit}, x the first",
        "", "median", "least", "processor"
    );
    let mut first = None;
    for (((name, _, _), times), processor) in kernels.iter().zip(&mut times).zip(processor) {
        times.sort_by(f64::total_cmp);
        let all = [times[times.len() / 2], times[0], processor];
        let first = first.get_or_insert(all);
        let [median, least, processor] = all;
        let [a, b, c] = [median / first[0], least / first[1], processor / first[2]];
        println!(
            "  {name:<44} {median:>9.4} {least:>9.4} {processor:>9.4}    {a:.2} {b:.2} {c:.2}"
        );
    }
}

fn seconds(kernel: &mut dyn FnMut()) -> f64 {
    let start = Instant::now();
    kernel();
    start.elapsed().as_secs_f64()
}

/// Time that this thread ran for.
fn processor_ns() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    stat.split_whitespace().next().and_then(|ns| ns.parse().ok()).unwrap_or(f64::NAN)
}

fn calls_needed(kernel: &mut dyn FnMut()) -> u32 {
    kernel();
    let start = Instant::now();
    let mut calls = 0;
    while start.elapsed() < REPETITION {
        kernel();
        calls += 1;
    }
    calls
}

fn parameters(dim: usize) {
    let run = RunId([1; 32]);
    let direction = |slot| Direction::new(&run, Round(0), Slot(slot));
    let mut rng = KeyedRng::from_seed("rumormill v1 bench", 0, 0);
    let base: Vec<f32> = (0..dim).map(|_| rng.symmetric(0.1)).collect();
    let state =
        State::from_base(vec![TensorSpec::new("weight", &[dim])], base.clone()).expect("finite");
    let payouts = |count: u32| -> Vec<Payout> {
        let amount = |slot: u32| coefficient(1e-3 * f64::from(slot + 1));
        let payout = |slot| Payout { direction: direction(slot), from: 0, to: amount(slot) };
        (0..count).map(payout).collect()
    };
    let (one, many) = (payouts(1), payouts(170));
    let [mut a, b, mut c, mut d] = std::array::from_fn(|_| state.clone());
    let mut x = base.clone();
    let mut z = base.clone();
    let [mut view, mut plus, mut minus, mut view_b] = std::array::from_fn(|_| base.clone());
    let mut signs = vec![[0; 16]; dim.div_ceil(512)];
    let dim_f64 = dim as f64;
    let many_units = dim_f64 * many.len() as f64;
    let mut kernels: Vec<Kernel<'_>> = vec![
        (
            "f32 in place",
            dim_f64,
            Box::new(|| {
                let factor = black_box(1.0 + 1e-9);
                scale(black_box(&mut x), factor);
            }),
        ),
        ("signs alone", dim_f64, Box::new(|| one[0].direction.sign_words(0, 0, &mut signs))),
        ("direction + state update", dim_f64, Box::new(|| a.apply(black_box(&one)))),
        (
            "the same with f32",
            dim_f64,
            Box::new(|| add_signs(black_box(&mut z), &one[0].direction, 1e-9)),
        ),
        ("view", dim_f64, Box::new(|| b.write_view(black_box(&mut view)))),
        (
            "direction + state update and view",
            dim_f64,
            Box::new(|| {
                c.apply(black_box(&one));
                c.write_view(black_box(&mut view_b));
            }),
        ),
        (
            "direction + both ends of a probe",
            dim_f64,
            Box::new(|| state.write_pair(black_box(&one[0].direction), -7, &mut plus, &mut minus)),
        ),
    ];
    // A large array would take minutes here, and the figure is the same.
    if dim < 1_000_000 {
        kernels.push((
            "170 directions + state, per direction",
            many_units,
            Box::new(|| d.apply(black_box(&many))),
        ));
    }
    group(&format!("{dim} parameters"), "parameter", kernels);
}

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+bmi2", "aarch64+neon"))]
fn scale(values: &mut [f32], factor: f32) {
    values.iter_mut().for_each(|value| *value *= factor);
}

/// What the state's update would be if the state were `f32`.
fn add_signs(values: &mut [f32], direction: &Direction, amount: f32) {
    let mut signs = [[0; 16]; 16];
    for (superblock, values) in values.chunks_mut(8192).enumerate() {
        direction.sign_words(0, superblock as u64 * 16, &mut signs);
        add_blocks(values, &signs, amount);
    }
}

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+bmi2", "aarch64+neon"))]
fn add_blocks(values: &mut [f32], signs: &[[u32; 16]; 16], amount: f32) {
    for (values, words) in values.as_chunks_mut::<512>().0.iter_mut().zip(signs) {
        let mut words = *words;
        for row in values.as_chunks_mut::<16>().0 {
            for (value, word) in row.iter_mut().zip(&mut words) {
                *value += f32::from_bits(amount.to_bits() ^ *word & 1 << 31);
                *word <<= 1;
            }
        }
    }
}

/// Many directions at once, and a joiner's way through a long history.
fn replay() {
    let run = RunId([1; 32]);
    let mut rng = KeyedRng::from_seed("rumormill v1 bench", 3, 0);
    // As of a run of 8 nodes: values of about one, in steps of 0.07 over 256 directions.
    let mut payouts = |round: u64, count: u32| -> Vec<Payout> {
        let payout = |slot| {
            let direction = Direction::new(&run, Round(round), Slot(slot));
            let to = coefficient(f64::from(rng.symmetric(2.0)) * 0.07 / 256.0);
            Payout { direction, from: 0, to }
        };
        (0..count).map(payout).collect()
    };
    let many = payouts(0, 1024);
    for dim in [1 << 18, 10_000_000] {
        let specs = vec![TensorSpec::new("weight", &[dim])];
        let state = State::from_base(specs, vec![0.01; dim]).expect("finite");
        let [mut a, mut b, mut c, mut d, mut e] = std::array::from_fn(|_| state.clone());
        let mut signs = vec![[0; 16]; dim.div_ceil(512)];
        let units = |count: usize| (dim * count) as f64;
        let kernels: Vec<Kernel<'_>> = vec![
            ("one direction", units(1), Box::new(|| a.apply(black_box(&many[..1])))),
            (
                "signs alone",
                units(1),
                Box::new(|| many[0].direction.sign_words(0, 0, black_box(&mut signs))),
            ),
            ("8 directions", units(8), Box::new(|| b.apply(black_box(&many[..8])))),
            ("64 directions", units(64), Box::new(|| c.apply(black_box(&many[..64])))),
            (
                "64 directions, two threads (time of one)",
                units(64),
                Box::new(|| {
                    let mut parts = d.split(2);
                    std::thread::scope(|scope| {
                        for part in &mut parts {
                            scope.spawn(|| part.apply(black_box(&many[..64])));
                        }
                    });
                }),
            ),
            ("1,024 directions", units(1024), Box::new(|| e.apply(black_box(&many)))),
        ];
        group(&format!("{dim} parameters, per direction"), "parameter", kernels);
    }
    let specs = [("w1", &[784, 32][..]), ("b1", &[32]), ("w2", &[32, 10]), ("b2", &[10])];
    let specs: Vec<TensorSpec> =
        specs.iter().map(|(name, shape)| TensorSpec::new(*name, shape)).collect();
    let state = State::from_base(specs, vec![0.01; 25_450]).expect("finite");
    // A hundredth of the history; what a direction costs does not depend on its length.
    let history: Vec<Vec<Payout>> = (0..100).map(|round| payouts(round, 256)).collect();
    let together = history.concat();
    let [mut a, mut b, mut c] = std::array::from_fn(|_| state.clone());
    let kernels: Vec<Kernel<'_>> = vec![
        (
            "eight directions a call",
            100.0,
            Box::new(|| together.chunks(8).for_each(|payouts| a.apply(payouts))),
        ),
        ("a round a call", 100.0, Box::new(|| history.iter().for_each(|payouts| b.apply(payouts)))),
        (
            "4,096 directions a call",
            100.0,
            Box::new(|| together.chunks(4096).for_each(|payouts| c.apply(payouts))),
        ),
    ];
    group("history of mlp:32 on MNIST, 256 directions a round", "round", kernels);
}

/// Both ends of a probe and the update that follows, by two threads: who reads the state matters to who changes it.
fn ends() {
    const PIECE: usize = 1 << 17;
    let dim = 172 * PIECE;
    let specs = vec![TensorSpec::new("weight", &[dim])];
    let state = State::from_base(specs, vec![0.01; dim]).expect("finite");
    let direction = Direction::new(&RunId([1; 32]), Round(0), Slot(0));
    let payout = [Payout { direction, from: 0, to: coefficient(1e-6) }];
    let [mut alone, mut shared, mut own] = std::array::from_fn(|_| state.clone());
    let mut rooms = [[vec![0.0; PIECE], vec![0.0; PIECE]], [vec![0.0; PIECE], vec![0.0; PIECE]]];
    let mut rooms_own = rooms.clone();
    let kernels: Vec<Kernel<'_>> = vec![
        ("update alone", dim as f64, Box::new(|| alone.apply_in_threads(2, black_box(&payout)))),
        (
            "each thread both ends of half, and update",
            dim as f64,
            Box::new(|| {
                std::thread::scope(|scope| {
                    for (thread, [plus, minus]) in rooms.iter_mut().enumerate() {
                        let (state, direction) = (&shared, &direction);
                        scope.spawn(move || {
                            for first in (thread * PIECE..dim).step_by(2 * PIECE) {
                                let probe = (direction, -7);
                                state.write_pair_part(0, first, probe, plus, minus);
                                black_box((&plus, &minus));
                            }
                        });
                    }
                });
                shared.apply_in_threads(2, black_box(&payout));
            }),
        ),
        (
            "each thread one end of all, and update",
            dim as f64,
            Box::new(|| {
                std::thread::scope(|scope| {
                    for (thread, [room, _]) in rooms_own.iter_mut().enumerate() {
                        let (state, direction) = (&own, &direction);
                        scope.spawn(move || {
                            let end = End { direction, epsilon_log2: -7, plus: thread == 0 };
                            for first in (0..dim).step_by(PIECE) {
                                state.write_part(0, first, Some(end), room);
                                black_box(&room);
                            }
                        });
                    }
                });
                own.apply_in_threads(2, black_box(&payout));
            }),
        ),
    ];
    group(&format!("two threads, {dim} parameters"), "parameter", kernels);
}

fn bytes() {
    let mut rng = KeyedRng::from_seed("rumormill v1 bench", 1, 0);
    let values: Vec<f64> = (0..4096)
        .map(|_| f64::from(rng.symmetric(1.0)) * 2f64.powi(rng.index(16) as i32 - 12))
        .collect();
    let codes: Vec<u8> = values.iter().map(|&value| lb8::encode(value, 0)).collect();
    let count = values.len() as f64;
    let kernels: Vec<Kernel<'_>> = vec![
        (
            "encode",
            count,
            Box::new(|| {
                let sum = values.iter().fold(0u8, |sum, &v| sum.wrapping_add(lb8::encode(v, 0)));
                black_box(sum);
            }),
        ),
        (
            "decode",
            count,
            Box::new(|| {
                let sum: f32 = codes.iter().filter_map(|&code| lb8::decode(code, 0)).sum();
                black_box(sum);
            }),
        ),
    ];
    group("LB8", "byte", kernels);
}

/// Images with the share of background that MNIST has, for want of the files here.
fn images_like_mnist() -> Dataset {
    let mut rng = KeyedRng::from_seed("rumormill v1 bench", 2, 0);
    let mut table = |rows: usize| {
        let mut values = ndarray::Array2::zeros((rows, 784));
        for mut row in values.rows_mut() {
            // Strokes lie in runs: 37 of 4 pixels in the middle of the image.
            for _ in 0..37 {
                let start = 110 + rng.index(560) as usize;
                (start..start + 4).for_each(|pixel| row[pixel] = rng.next_u32() as u8 | 1);
            }
        }
        let labels = (0..rows).map(|row| (row % 10).to_string()).collect();
        let features = Features::U8 { values, scale: 1.0, offset: 0.0 };
        Raw { features, labels, scaling: Scaling::Global }
    };
    let (train, test) = (table(60_000), table(10_000));
    Dataset::assemble("like MNIST", train, Some(test)).expect("two tables of one kind")
}

fn probes() {
    let mnist = Arc::new(images_like_mnist());
    let digits = Arc::new(digits::dataset(1));
    for (name, dataset) in [("784-pixel images", mnist), ("built-in digits", digits)] {
        for model in ["softmax", "mlp:32", "mlp:128"] {
            let spec: ModelSpec = model.parse().expect("a model");
            let objective = build(&spec, dataset.clone()).expect("it fits");
            probe(&format!("{model} on {name}, batch 64"), &*objective, dataset.train.rows());
        }
    }
}

fn probe(title: &str, objective: &dyn Objective, rows: usize) {
    let (run, node) = (RunId([1; 32]), NodeId([2; 32]));
    let state = State::from_base(objective.tensors(), objective.base(0)).expect("finite");
    let dim = state.layout().dim();
    let [mut plus, mut minus, mut ends_plus, mut ends_minus] =
        std::array::from_fn(|_| vec![0.0; dim]);
    let mut slots = (0..).map(Slot);
    let mut batch = [0; 64];
    let mut batches = batch;
    let [mut scratch, mut scratch_losses, mut scratch_test] =
        std::array::from_fn(|_| Scratch::default());
    let mut view = vec![0.0; dim];
    state.write_view(&mut view);
    let first = Direction::new(&run, Round(0), Slot(0));
    state.write_pair(&first, -7, &mut ends_plus, &mut ends_minus);
    let mut rounds = (0..).map(Round);
    let kernels: Vec<Kernel<'_>> = vec![
        (
            "whole probe: direction, ends, batch, losses",
            1e3,
            Box::new(|| {
                let slot = slots.next().expect("slots do not end");
                let direction = Direction::new(&run, Round(0), slot);
                state.write_pair(&direction, -7, &mut plus, &mut minus);
                minibatch(&run, &node, Round(0), slot, rows, &mut batch);
                let losses = objective.loss_pair(&plus, &minus, &batch, &mut scratch);
                black_box(spsa::projected_gradient(losses.0, losses.1, -7));
            }),
        ),
        (
            "batch and both losses",
            1e3,
            Box::new(|| {
                let round = rounds.next().expect("rounds do not end");
                minibatch(&run, &node, round, Slot(0), rows, &mut batches);
                let scratch = &mut scratch_losses;
                black_box(objective.loss_pair(&ends_plus, &ends_minus, &batches, scratch));
            }),
        ),
        (
            "evaluation of 10,000 rows",
            1e3,
            Box::new(|| {
                black_box(objective.evaluate(&view, Split::Test, &mut scratch_test));
            }),
        ),
    ];
    // A thousandth of a call in nanoseconds is a call in microseconds.
    group(&format!("{title} (µs per call)"), "1/1000 call", kernels);
}
