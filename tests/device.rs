//! A graphics card's kernels, run on the processor: the very file that is compiled for a card, with a few of
//! CUDA's names defined (`device/host.cpp`), must give the bits of the library. So its arithmetic is tested
//! where there is no card; what only a card can show (that it is launched as it should be) is tested beside
//! the launches, where there is one.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rumormill::direction::Direction;
use rumormill::id::{Round, RunId, Slot};
use rumormill::params::{COEFFICIENT_LOG2, End, Payout, State, TensorSpec};
use rumormill::sample::KeyedRng;
use tempfile::TempDir;

/// The kernels as a program of the processor.
struct Host {
    program: PathBuf,
    _folder: TempDir,
}

impl Host {
    /// Compiles it; `None`, said aloud, where there is no compiler of C++.
    fn compiled() -> Option<Host> {
        let folder = crate::support::folder();
        let program = folder.path().join("host");
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let named = std::env::var("CXX").ok();
        for compiler in named.iter().map(String::as_str).chain(["c++", "g++", "clang++"]) {
            let output = Command::new(compiler)
                .args(["-std=c++11", "-O1", "-ffp-contract=off", "-Wno-unknown-pragmas", "-I"])
                .arg(root.join("src/language"))
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

    /// What the kernels leave for requests, one behind the other.
    fn run(&self, requests: &[Request<'_>]) -> Vec<Vec<u32>> {
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
            .map(|request| words.by_ref().take(request.values.len()).collect())
            .collect();
        assert_eq!(results.last().map(Vec::len), requests.last().map(|last| last.values.len()));
        assert_eq!(words.next(), None);
        results
    }
}

/// What `host.cpp` reads.
#[derive(Default)]
struct Request<'a> {
    kind: u32,
    stream: u64,
    key: [u8; 32],
    lsb: f32,
    step: f32,
    values: &'a [i32],
    directions: Vec<(Direction, i32)>,
}

impl Request<'_> {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.kind.to_ne_bytes());
        bytes.extend((self.directions.len() as u32).to_ne_bytes());
        bytes.extend(self.stream.to_ne_bytes());
        bytes.extend((self.values.len() as u64).to_ne_bytes());
        bytes.extend(key_words(&self.key));
        bytes.extend(self.lsb.to_ne_bytes());
        bytes.extend(self.step.to_ne_bytes());
        bytes.extend(self.values.iter().flat_map(|value| value.to_ne_bytes()));
        for (direction, amount) in &self.directions {
            bytes.extend(key_words(direction.key()));
            bytes.extend(amount.to_ne_bytes());
        }
        bytes
    }
}

fn key_words(key: &[u8; 32]) -> Vec<u8> {
    let words = key.as_chunks::<4>().0.iter();
    words.flat_map(|word| u32::from_le_bytes(*word).to_ne_bytes()).collect()
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
    let streams = [0, 1, 3, u64::from(u32::MAX), 1 << 33];
    let request = |&stream| Request {
        kind: 2,
        stream,
        values: &zeros,
        directions: vec![(direction(2), 1)],
        ..Request::default()
    };
    let requests: Vec<Request<'_>> = streams.iter().map(request).collect();
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
    let (mut requests, mut expected) = (Vec::new(), Vec::new());
    for (index, tensor) in state.layout().tensors().iter().enumerate() {
        let values = &state.values()[tensor.offset..tensor.offset + tensor.len];
        let end = |epsilon_log2, plus| Some(End { direction: &direction, epsilon_log2, plus });
        for end in
            [None, end(-8, true), end(-8, false), end(-30, true), end(-126, false), end(7, true)]
        {
            let mut view = vec![0.0f32; tensor.len];
            state.write_part(index, 0, end, &mut view);
            expected.push(view.iter().map(|value| value.to_bits()).collect::<Vec<u32>>());
            let sign = |end: End<'_>| if end.plus { 1.0 } else { -1.0 };
            requests.push(Request {
                kind: u32::from(end.is_some()),
                stream: index as u64,
                key: *direction.key(),
                lsb: power(tensor.lsb_log2),
                step: end.map_or(0.0, |end| sign(end) * power(end.epsilon_log2)),
                values,
                directions: Vec::new(),
            });
        }
    }
    for (at, (found, expected)) in host.run(&requests).iter().zip(&expected).enumerate() {
        assert!(found == expected, "request {at} of tensor {}", at / 6);
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
        let tensors = before.layout().tensors();
        let requests: Vec<Request<'_>> = tensors
            .iter()
            .enumerate()
            .map(|(index, tensor)| Request {
                kind: 2,
                stream: index as u64,
                values: &before.values()[tensor.offset..tensor.offset + tensor.len],
                directions: payouts
                    .iter()
                    .map(|payout| (payout.direction, amount(payout.to, tensor.lsb_log2)))
                    .collect(),
                ..Request::default()
            })
            .collect();
        for (tensor, found) in tensors.iter().zip(host.run(&requests)) {
            let expected = &after.values()[tensor.offset..tensor.offset + tensor.len];
            let same = found.iter().zip(expected).all(|(found, value)| *found as i32 == *value);
            assert!(same, "{count} directions, tensor of {}", tensor.len);
        }
    }
}

/// A coefficient in units of `2^lsb_log2`, ties to even, modulo 2³².
fn amount(coefficient: i64, lsb_log2: i32) -> i32 {
    let exact = coefficient as f64 * 2f64.powi(COEFFICIENT_LOG2 - lsb_log2);
    exact.round_ties_even() as i64 as i32
}
