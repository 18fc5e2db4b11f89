//! One MeZO node on a language model, and what a step costs: what the network is compared with.
//!
//! MeZO (Malladi et al. 2023) is SPSA with the exact projected gradient, one direction a step:
//! `θ ← θ − rate · s · direction`. It runs here on the same model, batches and integer state as the network,
//! with the network's schedule: constant for 70 % of the steps, then linear to zero.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::Args;
use rumormill::data::source::DataSource;
use rumormill::data::text::Columns;
use rumormill::direction::Direction;
use rumormill::id::{NodeId, Round, RunId, Slot};
use rumormill::language::device::Device;
use rumormill::language::{Folder, LanguageModel, memory};
use rumormill::objective::{ModelSpec, Objective, Scratch, Split};
use rumormill::params::{Payout, State, coefficient};
use rumormill::sample::minibatch;
use rumormill::spsa::projected_gradient;

use crate::data::look;

/// What to train, and how.
#[derive(Args)]
pub struct LanguageArgs {
    /// A model folder, or a llama2.c .bin.
    #[arg(long)]
    weights: PathBuf,
    /// Where it computes: cpu, or in a build with the feature `cuda` an NVIDIA card, cuda or cuda:N.
    #[arg(long, default_value_t)]
    device: Device,
    /// The task, as in a manifest: `language:classify;…` or `language:causal;…`.
    #[arg(long)]
    model: ModelSpec,
    /// A .tsv, .csv, .jsonl or .txt file.
    #[arg(long)]
    data: String,
    /// Held-out rows in a file of their own.
    #[arg(long)]
    test: Option<PathBuf>,
    /// Probes; each is two forwards. With 0, only the quality of the weights as they are.
    #[arg(long, default_value_t = 1000)]
    probes: u64,
    /// The rate: what a projected gradient is multiplied with.
    #[arg(long, default_value_t = 1e-3)]
    rate: f64,
    /// Directions of a step, each with a minibatch of its own, whose projected gradients are averaged.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096))]
    directions: u32,
    /// Rows in a minibatch.
    #[arg(long, default_value_t = 64)]
    batch: usize,
    /// ε = 2^E.
    #[arg(long, default_value_t = -8, allow_negative_numbers = true, value_name = "E")]
    epsilon_log2: i32,
    /// Seed of directions and minibatches.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A line of the table after so many probes.
    #[arg(long, default_value_t = 1000)]
    every: u64,
    /// Time the parts of so many steps instead of training, for each direction of a step; of sixteen directions at
    /// least, in which large tables are paid once.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    time: u32,
}

/// Trains or times, and prints CSV.
///
/// # Errors
/// The model or the data cannot be had.
pub fn run(args: &LanguageArgs) -> Result<bool> {
    let ModelSpec::Language(spec) = &args.model else {
        bail!(
            "--model {} is no language model: say language:classify or language:causal",
            args.model
        )
    };
    let directions = u64::from(args.directions);
    let are_whole = [args.probes, args.every].iter().all(|n| n.is_multiple_of(directions));
    if args.time == 0 && !are_whole {
        bail!(
            "--probes {} and --every {} have to be multiples of --directions {directions}",
            args.probes,
            args.every
        )
    }
    let source = DataSource {
        data: args.data.clone(),
        test: args.test.clone(),
        format: None,
        text: Some(Columns::default()),
    };
    let dataset = source.load(&look)?;
    memory::huge_pages(true);
    let folder = Folder::read(&args.weights, &look)?;
    let model = LanguageModel::on(args.device, &folder, spec, &dataset)?;
    drop(folder);
    model.notes().iter().for_each(|note| eprintln!("{note}"));
    let mut state = State::from_base(model.tensors(), model.base(args.seed))?;
    // In a thread of the pool, as an evaluator's work: from outside of it, every parallel loop would wait until one
    // has woken up.
    rayon::scope(|_| match args.time {
        0 => train(args, &model, &mut state, dataset.train.rows()),
        steps => time(args, &model, &mut state, dataset.train.rows(), steps),
    });
    Ok(true)
}

fn train(args: &LanguageArgs, model: &LanguageModel, state: &mut State, rows: usize) {
    let run = RunId(blake3::derive_key("rumormill v1 mezo", &args.seed.to_le_bytes()));
    let mut scratch = Scratch::default();
    let mut batch = vec![0; args.batch];
    println!("probes,seconds,held_out_loss,held_out_accuracy");
    let started = Instant::now();
    let mut payouts = Vec::new();
    for step in 0..=args.probes {
        if step % args.every == 0 || step == args.probes {
            state.settle(cores());
            let quality = model.quality(state, Split::Test, &mut scratch);
            println!(
                "{step},{:.1},{:.5},{:.4}",
                started.elapsed().as_secs_f64(),
                quality.loss,
                quality.accuracy
            );
        }
        if step == args.probes {
            break;
        }
        let (round, slot) = (Round(step), Slot(0));
        let direction = Direction::new(&run, round, slot);
        minibatch(&run, &NodeId([0; 32]), round, slot, rows, &mut batch);
        let (plus, minus) = model.probe(state, &direction, args.epsilon_log2, &batch, &mut scratch);
        let scalar = projected_gradient(plus, minus, args.epsilon_log2);
        if scalar.is_finite() {
            let left = (args.probes - step) as f64 / (0.3 * args.probes as f64);
            let rate = args.rate * left.min(1.0) / f64::from(args.directions);
            payouts.push(Payout { direction, from: 0, to: coefficient(-rate * scalar) });
        }
        if (step + 1) % u64::from(args.directions) == 0 && !payouts.is_empty() {
            apply(model, state, &payouts, &mut scratch);
            payouts.clear();
        }
    }
}

/// Applies a step, a large one in all cores.
fn apply(model: &LanguageModel, state: &mut State, payouts: &[Payout], scratch: &mut Scratch) {
    let before = state.mark();
    state.apply_lazily(cores(), payouts, model.tables());
    model.applied(&before, payouts, state, scratch);
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from)
}

/// Directions of which the updates are timed together: tables wait until so many are due.
const TIMED_TOGETHER: u32 = 16;

/// Medians of the parts of a step for each of its directions, in milliseconds.
fn time(args: &LanguageArgs, model: &LanguageModel, state: &mut State, rows: usize, steps: u32) {
    let together = TIMED_TOGETHER.div_ceil(args.directions);
    let steps = steps.max(together);
    let run = RunId([1; 32]);
    let mut scratch = Scratch::default();
    let mut batch = vec![0; args.batch];
    let mut parts = [Vec::new(), Vec::new(), Vec::new()];
    let ms = |since: Instant| 1e3 * since.elapsed().as_secs_f64();
    for step in 0..steps + 2 {
        let mut payouts = Vec::new();
        for slot in 0..args.directions {
            let (round, slot) = (Round(u64::from(step)), Slot(slot));
            let direction = Direction::new(&run, round, slot);
            minibatch(&run, &NodeId([0; 32]), round, slot, rows, &mut batch);
            let began = Instant::now();
            model.probe(state, &direction, args.epsilon_log2, &batch, &mut scratch);
            let probed = ms(began);
            let began = Instant::now();
            model.write_ends(state, &direction, args.epsilon_log2, &batch, &mut scratch);
            let written = ms(began);
            payouts.push(Payout { direction, from: 0, to: coefficient(1e-6) });
            // The first steps make the weights and fill caches.
            if step >= 2 {
                parts[0].push(probed);
                parts[1].push(written);
            }
        }
        let began = Instant::now();
        apply(model, state, &payouts, &mut scratch);
        if step >= 2 {
            parts[2].push(ms(began) / f64::from(args.directions));
        }
    }
    // Of updates, means.
    let groups = parts[2].chunks_exact(together as usize);
    parts[2] = groups.map(|group| group.iter().sum::<f64>() / f64::from(together)).collect();
    let [probe, write, apply] = parts.map(|mut part| {
        part.sort_by(f64::total_cmp);
        (part[part.len() / 2], part[0])
    });
    println!("part,median_ms,least_ms");
    println!("step,{:.2},{:.2}", probe.0 + apply.0, probe.1 + apply.1);
    println!("two forwards,{:.2},{:.2}", probe.0 - write.0, probe.1 - write.1);
    println!("writing both ends,{:.2},{:.2}", write.0, write.1);
    println!("update of the state,{:.2},{:.2}", apply.0, apply.1);
}
