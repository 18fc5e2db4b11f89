//! What the inner loops cost, beside a plain `f32` axpy over an array of the same size.
//!
//! `cargo bench --bench kernels`. Printed is the median over interleaved repetitions: every
//! kernel of a group runs once, then all again, so that a busy machine slows all of them alike and the
//! ratio to the axpy holds. The least time is what an idle machine would show. That is why this is a plain program: the usual harnesses time one
//! function after the other.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rumormill::data::{Dataset, Features, Raw, Scaling, digits};
use rumormill::direction::Direction;
use rumormill::id::{NodeId, Round, RunId, Slot};
use rumormill::objective::{ModelSpec, Objective, Scratch, Split, build};
use rumormill::params::{Payout, State, TensorSpec, coefficient};
use rumormill::sample::{KeyedRng, minibatch};
use rumormill::{lb8, spsa};

/// Time of a repetition of one kernel; long against the clock, short against a scheduler's slice.
const REPETITION: Duration = Duration::from_millis(4);

/// Repetitions of every kernel.
const REPETITIONS: usize = 61;

type Kernel<'a> = (&'static str, f64, Box<dyn FnMut() + 'a>);

fn main() {
    parameters(25_450);
    parameters(10_000_000);
    bytes();
    probes();
}

/// Times kernels in turn; each has a name and the number of units that one call works on.
fn group(title: &str, unit: &str, mut kernels: Vec<Kernel<'_>>) {
    let calls: Vec<u32> = kernels.iter_mut().map(|(_, _, kernel)| calls_needed(kernel)).collect();
    let mut times = vec![Vec::with_capacity(REPETITIONS); kernels.len()];
    for _ in 0..REPETITIONS {
        for (((_, units, kernel), times), &calls) in kernels.iter_mut().zip(&mut times).zip(&calls)
        {
            let start = Instant::now();
            (0..calls).for_each(|_| kernel());
            times.push(start.elapsed().as_secs_f64() * 1e9 / (f64::from(calls) * *units));
        }
    }
    println!("\n{title}");
    let mut baseline = None;
    for ((name, _, _), times) in kernels.iter().zip(&mut times) {
        times.sort_by(f64::total_cmp);
        let median = times[times.len() / 2];
        let ratio = median / *baseline.get_or_insert(median);
        let least = times[0];
        println!(
            "  {name:<44} {median:>9.4} (least {least:.4}) ns per {unit}, {ratio:.2} x the first"
        );
    }
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
    let state = State::from_base(vec![TensorSpec::new("weight", &[dim])], &base).expect("finite");
    let payouts = |count: u32| -> Vec<Payout> {
        let amount = |slot: u32| coefficient(1e-3 * f64::from(slot + 1));
        let payout = |slot| Payout { direction: direction(slot), from: 0, to: amount(slot) };
        (0..count).map(payout).collect()
    };
    let (one, many) = (payouts(1), payouts(170));
    let [mut a, b, mut c, mut d] = std::array::from_fn(|_| state.clone());
    let (mut x, y) = (base.clone(), base.clone());
    let [mut view, mut plus, mut minus, mut view_b] = std::array::from_fn(|_| base.clone());
    let mut signs = vec![[0; 16]; dim.div_ceil(512)];
    let dim_f64 = dim as f64;
    let many_units = dim_f64 * many.len() as f64;
    let mut kernels: Vec<Kernel<'_>> = vec![
        (
            "f32 axpy, two arrays",
            dim_f64,
            Box::new(|| {
                let factor = black_box(1e-9);
                x.iter_mut().zip(&y).for_each(|(x, y)| *x += factor * y);
                black_box(&mut x);
            }),
        ),
        ("signs alone", dim_f64, Box::new(|| one[0].direction.sign_words(0, 0, &mut signs))),
        ("direction + state update", dim_f64, Box::new(|| a.apply(black_box(&one)))),
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
    let state = State::from_base(objective.tensors(), &objective.base(0)).expect("finite");
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
