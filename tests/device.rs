//! A graphics card's kernels, run on the processor: the very files that are compiled for a card, with a few of
//! CUDA's names defined (`device/host.cpp`). Those that make weights and updates must give the bits of the library,
//! those of a forward pass what their definitions give in 64 bits. So their arithmetic is tested where there is no
//! card; what only a card can show (that they are launched as they should be) is tested beside the launches, where
//! there is one.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rumormill::direction::Direction;
use rumormill::id::{Round, RunId, Slot};
use rumormill::params::{COEFFICIENT_LOG2, End, Payout, State, TensorSpec};
use rumormill::sample::KeyedRng;
use tempfile::TempDir;

/// Threads of a block of threads, in all kernels but attention's.
const THREADS: usize = 256;

/// The kernels as a program of the processor.
struct Host {
    program: PathBuf,
    _folder: TempDir,
}

impl Host {
    /// Compiles it; `None`, said aloud, where there is no compiler of C++.
    fn compiled() -> Option<Host> {
        Host::with_heads(8, 1)
    }

    /// The same with attention for heads of so many values, that so many threads share.
    fn with_heads(head: usize, lanes: usize) -> Option<Host> {
        let folder = crate::support::folder();
        let program = folder.path().join("host");
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let named = std::env::var("CXX").ok();
        for compiler in named.iter().map(String::as_str).chain(["c++", "g++", "clang++"]) {
            let output = Command::new(compiler)
                .args([
                    "-std=c++11",
                    "-O1",
                    "-ffp-contract=off",
                    "-Wno-unknown-pragmas",
                    "-pthread",
                ])
                .args([format!("-DHEAD={head}"), format!("-DLANES={lanes}"), "-I".into()])
                .arg(root.join("src/language/cuda"))
                .arg(root.join("tests/device/host.cpp"))
                .arg("-o")
                .arg(&program)
                .output();
            let Ok(output) = output else { continue };
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{compiler} refuses the kernels: {said}");
            return Some(Host { program, _folder: folder });
        }
        println!("skipped: there is no compiler of C++ here (set CXX)");
        None
    }

    /// What the kernels leave of the first arrays of requests, in words.
    fn run(&self, requests: &[Request]) -> Vec<Vec<u32>> {
        let mut child = Command::new(&self.program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a program that was just made");
        let mut input = child.stdin.take().expect("a pipe");
        let bytes: Vec<u8> = requests.iter().flat_map(Request::bytes).collect();
        let writer = std::thread::spawn(move || input.write_all(&bytes));
        let output = child.wait_with_output().expect("a program that ends");
        writer.join().unwrap().expect("a program that reads all");
        assert!(output.status.success(), "the kernels on the processor: {}", output.status);
        let mut words =
            output.stdout.as_chunks::<4>().0.iter().map(|word| u32::from_ne_bytes(*word));
        let results: Vec<Vec<u32>> = requests
            .iter()
            .map(|request| words.by_ref().take(request.arrays[0].len() / 4).collect())
            .collect();
        let last = requests.last().map(|last| last.arrays[0].len() / 4);
        assert_eq!(results.last().map(Vec::len), last);
        assert_eq!(words.next(), None);
        results
    }

    /// The same of one request, in floats.
    fn floats(&self, request: Request) -> Vec<f32> {
        self.run(&[request]).swap_remove(0).into_iter().map(f32::from_bits).collect()
    }
}

/// What `host.cpp` reads.
#[derive(Default)]
struct Request {
    kind: u32,
    blocks: usize,
    rows: usize,
    numbers: [u32; 4],
    reals: [f32; 2],
    key: [u8; 32],
    arrays: Vec<Vec<u8>>,
}

impl Request {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let sizes = [self.arrays.len() as u32, self.blocks as u32, self.rows as u32];
        for word in [self.kind].iter().chain(&sizes).chain(&self.numbers) {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(self.reals.iter().flat_map(|real| real.to_ne_bytes()));
        bytes.extend(key_words(&self.key));
        for array in &self.arrays {
            bytes.extend((array.len() as u64).to_ne_bytes());
            bytes.extend(array);
        }
        bytes
    }
}

fn key_words(key: &[u8; 32]) -> Vec<u8> {
    let words = key.as_chunks::<4>().0.iter();
    words.flat_map(|word| u32::from_le_bytes(*word).to_ne_bytes()).collect()
}

fn of_floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

fn of_ints(values: &[i32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

fn of_words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

/// A tensor as the kernels know it: where it begins in the state and in the view, its length, number and unit.
struct Part {
    at: usize,
    out: usize,
    len: usize,
    stream: u32,
    lsb: f32,
}

/// A table of them, and how many blocks of threads work on it.
fn table(parts: &[Part]) -> (Vec<u8>, usize) {
    let (mut bytes, mut chacha_blocks) = (Vec::new(), 0);
    for part in parts {
        for number in [part.at, part.out, part.len, chacha_blocks] {
            bytes.extend((number as u64).to_ne_bytes());
        }
        bytes.extend(part.stream.to_ne_bytes());
        bytes.extend(part.lsb.to_ne_bytes());
        chacha_blocks += part.len.div_ceil(512);
    }
    (bytes, (16 * chacha_blocks).div_ceil(THREADS))
}

/// Those of a state, with gaps between them in the view.
fn parts_of(state: &State) -> Vec<Part> {
    let tensors = state.layout().tensors().iter().enumerate();
    let part = |(index, tensor): (usize, &rumormill::params::Tensor)| Part {
        at: tensor.offset,
        out: tensor.offset + 7 * index,
        len: tensor.len,
        stream: index as u32,
        lsb: power(tensor.lsb_log2),
    };
    tensors.map(part).collect()
}

fn direction(slot: u32) -> Direction {
    Direction::new(&RunId(std::array::from_fn(|i| i as u8)), Round(3), Slot(slot))
}

fn power(log2: i32) -> f32 {
    2f64.powi(log2) as f32
}

/// Tensors of sizes around those of blocks and launches, and of different units, with values anywhere in their
/// range.
fn some_state() -> State {
    let mut rng = KeyedRng::from_seed("rumormill v1 test", 9, 0);
    let tensors = [
        (1, 1e-3),
        (0, 1.0),
        (511, 0.1),
        (512, 1e19),
        (513, 1.0),
        (8191, 1e6),
        (8193, 1e-2),
        (20_011, 100.0),
    ];
    let spec = |(len, _): &(usize, f32)| TensorSpec::new(len.to_string(), &[*len]);
    let base: Vec<f32> = tensors.iter().flat_map(|&(len, scale)| vec![scale; len]).collect();
    let state = State::from_base(tensors.iter().map(spec).collect(), base).unwrap();
    let mut values: Vec<i32> = (0..state.layout().dim()).map(|_| rng.next_u32() as i32).collect();
    // Small ones, too, where the sum is a tie or a cancellation; and the ends of the range.
    values.iter_mut().step_by(3).for_each(|value| *value >>= 20);
    values[513..520].copy_from_slice(&[0, 1, -1, i32::MAX, i32::MIN, 1 << 24, (1 << 24) + 1]);
    State::from_values(state.layout().clone(), values).unwrap()
}

#[test]
fn kernels_of_a_card_make_the_signs_of_the_directions() {
    let Some(host) = Host::compiled() else { return };
    // With nothing else in them, what a direction leaves is its signs.
    let zeros = vec![0; 70_000];
    let streams = [0, 1, 3, u32::MAX];
    let request = |&stream| {
        let part = Part { at: 0, out: 0, len: zeros.len(), stream, lsb: 1.0 };
        let (parts, blocks) = table(&[part]);
        let amounts = of_words(&[1]);
        let arrays = vec![of_ints(&zeros), parts, key_words(direction(2).key()), amounts];
        Request { kind: 2, blocks, numbers: [1, 1, 0, 0], arrays, ..Request::default() }
    };
    let requests: Vec<Request> = streams.iter().map(request).collect();
    for (stream, found) in streams.iter().zip(host.run(&requests)) {
        let mut words = vec![[0; 16]; zeros.len().div_ceil(512)];
        direction(2).sign_words(*stream as usize, 0, &mut words);
        for (p, found) in found.iter().enumerate() {
            let set = words[p / 512][p % 16] >> (31 - p % 512 / 16) & 1;
            assert_eq!(*found as i32, 1 - 2 * set as i32, "stream {stream} parameter {p}");
        }
    }
}

#[test]
fn kernels_of_a_card_write_the_weights_bit_for_bit() {
    let Some(host) = Host::compiled() else { return };
    let state = some_state();
    let direction = direction(5);
    let parts = parts_of(&state);
    let count = parts.len() as u32;
    let (bytes, blocks) = table(&parts);
    let end = |epsilon_log2, plus| Some(End { direction: &direction, epsilon_log2, plus });
    let ends =
        [None, end(-8, true), end(-8, false), end(-30, true), end(-126, false), end(7, true)];
    let untouched = 123.0f32;
    let room = vec![untouched; parts.last().map_or(0, |last| last.out + last.len + 3)];
    let requests: Vec<Request> = ends
        .iter()
        .map(|end| {
            let sign = |end: End<'_>| if end.plus { 1.0 } else { -1.0 };
            let step = end.map_or(0.0, |end| sign(end) * power(end.epsilon_log2));
            Request {
                kind: u32::from(end.is_some()),
                blocks,
                numbers: [count, 0, 0, 0],
                reals: [step, 0.0],
                key: *direction.key(),
                arrays: vec![of_floats(&room), of_ints(state.values()), bytes.clone()],
                ..Request::default()
            }
        })
        .collect();
    for (end, found) in ends.iter().zip(host.run(&requests)) {
        let mut expected = room.clone();
        for (index, part) in parts.iter().enumerate() {
            state.write_part(index, 0, *end, &mut expected[part.out..part.out + part.len]);
        }
        let wrong = expected.iter().zip(&found).position(|(a, b)| a.to_bits() != *b);
        assert_eq!(wrong, None, "{end:?}");
    }
}

#[test]
fn kernels_of_a_card_apply_updates_bit_for_bit() {
    let Some(host) = Host::compiled() else { return };
    let mut rng = KeyedRng::from_seed("rumormill v1 test", 10, 0);
    for count in [1, 2, 8, 33] {
        let before = some_state();
        let mut after = before.clone();
        // Whole numbers of the finest unit; in coarser ones they are rounded, to nothing in the coarsest.
        let finest = before.layout().tensors().iter().map(|tensor| tensor.lsb_log2).min().unwrap();
        let payouts: Vec<Payout> = (0..count)
            .map(|slot| {
                let to = match slot % 4 {
                    0 => i64::from(i32::MIN) << (finest - COEFFICIENT_LOG2),
                    1 => i64::from(i32::MAX) << (finest - COEFFICIENT_LOG2),
                    _ => i64::from(rng.next_u32() as i32) << (finest - COEFFICIENT_LOG2),
                };
                Payout { direction: direction(slot), from: 0, to }
            })
            .collect();
        after.apply(&payouts);
        let parts = parts_of(&before);
        let (bytes, blocks) = table(&parts);
        let keys = payouts.iter().flat_map(|payout| key_words(payout.direction.key())).collect();
        let tensors = before.layout().tensors().iter();
        let amounts: Vec<i32> = tensors
            .flat_map(|tensor| payouts.iter().map(|payout| amount(payout.to, tensor.lsb_log2)))
            .collect();
        let found = host.run(&[Request {
            kind: 2,
            blocks,
            numbers: [parts.len() as u32, count, 0, 0],
            arrays: vec![of_ints(before.values()), bytes, keys, of_ints(&amounts)],
            ..Request::default()
        }]);
        let wrong = found[0].iter().zip(after.values()).position(|(a, b)| *a as i32 != *b);
        assert_eq!(wrong, None, "{count} directions");
    }
}

/// A coefficient in units of `2^lsb_log2`, ties to even, modulo 2³².
fn amount(coefficient: i64, lsb_log2: i32) -> i32 {
    let exact = coefficient as f64 * 2f64.powi(COEFFICIENT_LOG2 - lsb_log2);
    exact.round_ties_even() as i64 as i32
}

/// Values around zero.
fn random(rng: &mut KeyedRng, len: usize) -> Vec<f32> {
    (0..len).map(|_| rng.next_u32() as i32 as f32 / (1u32 << 30) as f32).collect()
}

/// Compares with values in 64 bits.
fn near(found: &[f32], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        let far = (f64::from(*found) - expected).abs();
        let same = far <= 2e-6 * (1.0 + expected.abs());
        assert!(same || found.is_nan() && expected.is_nan(), "{what} {at}: {found} {expected}");
    }
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|value| f64::from(*value)).collect()
}

/// The error function: its Taylor series.
fn erf(x: f64) -> f64 {
    let (mut term, mut sum) = (x, 0.0);
    for n in 0..200 {
        sum += term / f64::from(2 * n + 1);
        term *= -x * x / f64::from(n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

#[test]
fn kernels_of_a_card_compute_values_and_rows_as_defined() {
    let Some(host) = Host::compiled() else { return };
    let mut rng = KeyedRng::from_seed("rumormill v1 test", 11, 0);
    // Narrower than a warp, no multiple of one, and wider than a block.
    for (rows, width) in [(1, 5), (11, 70), (3, 300)] {
        let (x, other) = (random(&mut rng, rows * width), random(&mut rng, rows * width));
        let (weight, bias) = (random(&mut rng, width), random(&mut rng, width));
        let size = [rows as u32, width as u32, 0, 0];
        let by_block = |kind, second: &[f32], third: &[f32], last| Request {
            kind,
            blocks: rows,
            numbers: [width as u32, last, 0, 0],
            arrays: vec![of_floats(&x), of_floats(second), of_floats(third)],
            ..Request::default()
        };
        let each = |f: &dyn Fn(f64, f64, f64) -> f64| -> Vec<f64> {
            let (x, other, bias) = (wide(&x), wide(&other), wide(&bias));
            (0..rows * width).map(|at| f(x[at], bias[at % width], other[at])).collect()
        };
        let what = format!("{rows} rows of {width}");
        let found = host.floats(by_block(3, &bias, &[], 0));
        near(&found, &each(&|x, bias, _| x + bias), &format!("bias, {what}"));
        let found = host.floats(by_block(4, &bias, &other, 0));
        near(&found, &each(&|x, bias, other| x + bias + other), &format!("both, {what}"));
        let found = host.floats(by_block(5, &other, &[], 0));
        near(&found, &each(&|x, _, other| x + other), &format!("other, {what}"));
        let silu = |x: f64| x / (1.0 + (-x).exp());
        let found = host.floats(by_block(7, &other, &[], 0));
        near(&found, &each(&|x, _, other| silu(x) * other), &format!("silu, {what}"));
        let gelu = |x: f64| 0.5 * x * (1.0 + erf(x / 2f64.sqrt()));
        let gelu_tanh = |x: f64| {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            0.5 * x * (1.0 + inner.tanh())
        };
        let relu = |x: f64| x.max(0.0);
        let all: [&dyn Fn(f64) -> f64; 3] = [&gelu, &gelu_tanh, &relu];
        for (number, activation) in all.into_iter().enumerate() {
            let found = host.floats(by_block(6, &bias, &[], number as u32));
            let expected = each(&|x, bias, _| activation(x + bias));
            near(&found, &expected, &format!("activation {number}, {what}"));
        }

        let epsilon = 1e-5;
        let by_row = |f: &dyn Fn(&[f64]) -> Vec<f64>| -> Vec<f64> {
            wide(&x).chunks(width).flat_map(f).collect()
        };
        let (wide_weight, wide_bias) = (wide(&weight), wide(&bias));
        let mean = |row: &[f64]| row.iter().sum::<f64>() / width as f64;
        let squares = |row: &[f64], from: f64| {
            row.iter().map(|value| (value - from).powi(2)).sum::<f64>() / width as f64
        };
        let layer_norm = by_row(&|row| {
            let from = mean(row);
            let scale = 1.0 / (squares(row, from) + f64::from(epsilon)).sqrt();
            let each = |at: usize| (row[at] - from) * scale * wide_weight[at] + wide_bias[at];
            (0..width).map(each).collect()
        });
        let rms_norm = by_row(&|row| {
            let scale = 1.0 / (squares(row, 0.0) + f64::from(epsilon)).sqrt();
            (0..width).map(|at| row[at] * scale * wide_weight[at]).collect()
        });
        let by_warp = |kind, arrays: [&[f32]; 3]| Request {
            kind,
            blocks: rows.div_ceil(THREADS / 32),
            numbers: size,
            reals: [epsilon, 0.0],
            arrays: arrays.map(of_floats).into(),
            ..Request::default()
        };
        let found = host.floats(by_warp(8, [&x, &weight, &bias]));
        near(&found, &layer_norm, &format!("layer norm, {what}"));
        let found = host.floats(by_warp(9, [&vec![0.0; x.len()], &x, &weight]));
        near(&found, &rms_norm, &format!("rms norm, {what}"));

        // Sequences of these rows: the first of one, the others of all the rest.
        let offsets: Vec<usize> = if rows == 1 { vec![0, 1] } else { vec![0, 1, rows] };
        let pooled: Vec<f64> = offsets
            .windows(2)
            .flat_map(|pair| {
                let x = wide(&x);
                let own = &x[pair[0] * width..pair[1] * width];
                let sums: Vec<f64> =
                    (0..width).map(|at| own.iter().skip(at).step_by(width).sum()).collect();
                let length = sums.iter().map(|sum| sum * sum).sum::<f64>().sqrt();
                let scale = (width as f64).sqrt() / length;
                sums.into_iter().map(move |sum| sum * scale).collect::<Vec<f64>>()
            })
            .collect();
        let words: Vec<u32> = offsets.iter().map(|offset| *offset as u32).collect();
        let sequences = offsets.len() - 1;
        let found = host.floats(Request {
            kind: 12,
            blocks: 1,
            numbers: [sequences as u32, width as u32, 0, 0],
            arrays: vec![vec![0; 4 * pooled.len()], of_floats(&x), of_words(&words)],
            ..Request::default()
        });
        near(&found, &pooled, &format!("pool, {what}"));
    }
}

#[test]
fn kernels_of_a_card_find_losses_and_those_that_are_none() {
    let Some(host) = Host::compiled() else { return };
    let mut rng = KeyedRng::from_seed("rumormill v1 test", 12, 0);
    let width = 70;
    let mut logits = random(&mut rng, 9 * width);
    let mut targets: Vec<u32> = (0..9).map(|row| row * 7).collect();
    // The largest twice: the first of them is the most likely.
    logits[3 * width + 20] = 9.0;
    logits[3 * width + 40] = 9.0;
    targets[3] = 20;
    logits[4 * width + 20] = 9.0;
    logits[4 * width + 40] = 9.0;
    targets[4] = 40;
    logits[5 * width + 3] = f32::NAN;
    logits[6 * width + 3] = f32::INFINITY;
    logits[7 * width + 3] = f32::NEG_INFINITY;
    // Beyond the row.
    targets[8] = width as u32;
    let mut expected = Vec::new();
    for (row, &target) in wide(&logits).chunks(width).zip(&targets) {
        let sum: f64 = row.iter().map(|logit| logit.exp()).sum();
        let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let first = row.iter().position(|logit| *logit == top).unwrap();
        let is_there = row.iter().all(|logit| logit.is_finite()) && (target as usize) < width;
        let loss = if is_there { sum.ln() - row[target as usize] } else { f64::NAN };
        expected.push((loss, first == target as usize));
    }
    let found = host.floats(Request {
        kind: 11,
        blocks: 2,
        numbers: [9, width as u32, 0, 0],
        arrays: vec![vec![0; 4 * 2 * 9], of_floats(&logits), of_words(&targets)],
        ..Request::default()
    });
    let losses: Vec<f32> = found.iter().copied().step_by(2).collect();
    near(&losses, &expected.iter().map(|(loss, _)| *loss).collect::<Vec<f64>>(), "losses");
    assert_eq!(losses.iter().filter(|loss| loss.is_nan()).count(), 4);
    for (row, (found, (_, right))) in found.chunks(2).zip(&expected).enumerate().take(5) {
        assert_eq!(found[1] == 1.0, *right, "row {row}");
    }
}

#[test]
fn kernels_of_a_card_turn_heads_and_attend_within_sequences() {
    for (head, lanes) in [(8, 1), (6, 2), (64, 2)] {
        let Some(host) = Host::with_heads(head, lanes) else { return };
        let mut rng = KeyedRng::from_seed("rumormill v1 test", 13, head as u64);
        let (heads, key_heads) = (4, 2);
        // One longer than a block's queries, in threads that share one and in those that do not.
        let lengths = [1, 37, 3];
        let tokens: usize = lengths.iter().sum();
        let (width, key_width) = (heads * head, key_heads * head);
        let x = random(&mut rng, tokens * width);

        let positions: Vec<u32> = lengths.iter().flat_map(|len| 0..*len as u32).collect();
        let half = head / 2;
        let angles = random(&mut rng, 37 * half);
        let [cosines, sines] = [f32::cos, f32::sin]
            .map(|f| -> Vec<f32> { angles.iter().map(|angle| f(*angle)).collect() });
        let mut turned = wide(&x);
        for (row, &position) in turned.chunks_mut(width).zip(&positions) {
            for own in row.chunks_mut(head) {
                for at in 0..half {
                    let (a, b) = (own[at], own[at + half]);
                    let cosine = f64::from(cosines[position as usize * half + at]);
                    let sine = f64::from(sines[position as usize * half + at]);
                    own[at] = a * cosine - b * sine;
                    own[at + half] = b * cosine + a * sine;
                }
            }
        }
        let found = host.floats(Request {
            kind: 10,
            blocks: tokens,
            numbers: [width as u32, half as u32, 0, 0],
            arrays: vec![
                of_floats(&x),
                of_words(&positions),
                of_floats(&cosines),
                of_floats(&sines),
            ],
            ..Request::default()
        });
        near(&found, &turned, &format!("turned heads of {head}"));

        let [k, v] = [0, 1].map(|_| random(&mut rng, tokens * key_width));
        let queries = 32 / lanes;
        let mut tiles = Vec::new();
        let mut first = 0;
        for len in lengths {
            for query in (0..len).step_by(queries) {
                tiles.extend([first as u32, len as u32, query as u32]);
            }
            first += len;
        }
        for window in [0, 1, 5, 1 << 30] {
            let expected = attended([&x, &k, &v], &lengths, [head, heads, key_heads], window);
            let found = host.floats(Request {
                kind: 13,
                blocks: tiles.len() / 3,
                rows: heads,
                numbers: [heads as u32, key_heads as u32, window, 0],
                reals: [1.0 / (head as f32).sqrt(), 0.0],
                arrays: vec![
                    vec![0; 4 * x.len()],
                    of_floats(&x),
                    of_floats(&k),
                    of_floats(&v),
                    of_words(&tiles),
                ],
                ..Request::default()
            });
            near(&found, &expected, &format!("heads of {head}, window {window}"));
        }
    }
}

#[test]
fn kernels_of_a_card_give_no_weight_to_a_score_that_has_overflowed() {
    let Some(host) = Host::compiled() else { return };
    // The first key of two scores minus infinity.
    let q = [1e30f32; 16];
    let k: Vec<f32> = [-1e30f32; 8].into_iter().chain([1.0; 8]).collect();
    let v: Vec<f32> = (0..16).map(|at| at as f32).collect();
    let found = host.floats(Request {
        kind: 13,
        blocks: 1,
        rows: 1,
        numbers: [1, 1, 0, 0],
        reals: [1.0, 0.0],
        arrays: vec![
            vec![0; 64],
            of_floats(&q),
            of_floats(&k),
            of_floats(&v),
            of_words(&[0, 2, 0]),
        ],
        ..Request::default()
    });
    assert_eq!(found, [&v[8..], &v[8..]].concat());
}

/// Attention by its definition: `softmax(q kᵀ / √head) v`, within sequences. With a window a token sees no later one.
fn attended(
    [q, k, v]: [&[f32]; 3],
    lengths: &[usize],
    [head, heads, key_heads]: [usize; 3],
    window: u32,
) -> Vec<f64> {
    let [q, k, v] = [q, k, v].map(wide);
    let (width, key_width) = (heads * head, key_heads * head);
    let mut out = vec![0.0; q.len()];
    let mut first = 0;
    for &len in lengths {
        for at in 0..len {
            for own in 0..heads {
                let query = &q[(first + at) * width + own * head..][..head];
                let shared = own / (heads / key_heads) * head;
                let seen: Vec<usize> = (0..len)
                    .filter(|other| window == 0 || *other <= at && other + window as usize > at)
                    .map(|other| (first + other) * key_width + shared)
                    .collect();
                let score = |key: &usize| {
                    let product: f64 = query.iter().zip(&k[*key..]).map(|(a, b)| a * b).sum();
                    (product / (head as f64).sqrt()).exp()
                };
                let weights: Vec<f64> = seen.iter().map(score).collect();
                let total: f64 = weights.iter().sum();
                for i in 0..head {
                    let sum: f64 = seen.iter().zip(&weights).map(|(key, w)| w * v[key + i]).sum();
                    out[(first + at) * width + own * head + i] = sum / total;
                }
            }
        }
        first += len;
    }
    out
}
