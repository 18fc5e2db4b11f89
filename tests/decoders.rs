//! Everything that reads the bytes of others, on real encodings and on spoiled ones: it answers, and
//! never panics. The fuzz targets in `tests/fuzz` search the same decoders for longer.

#[path = "fuzz/decoders.rs"]
#[expect(unreachable_pub, reason = "a crate of its own for the fuzz targets")]
mod targets;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use rumormill::id::RunId;
use rumormill::sample::KeyedRng;
use rumormill_node::run::RunFile;
use rumormill_node::store::{LOG_NAME, Store, Sync};
use targets::{TARGETS, pack};

/// Spoiled inputs a decoder; `RUMORMILL_MUTATIONS` in the environment asks for another number.
const MUTATIONS: u64 = 2000;

fn mutations() -> u64 {
    let asked = std::env::var("RUMORMILL_MUTATIONS").ok();
    asked.map_or(MUTATIONS, |asked| asked.parse().expect("RUMORMILL_MUTATIONS is a number"))
}

/// Flips, cuts, insertions, doubled and swapped parts.
fn spoil(bytes: &mut Vec<u8>, rng: &mut KeyedRng) {
    for _ in 0..1 + rng.index(4) {
        let len = bytes.len();
        let at = rng.index(len as u32 + 1) as usize;
        let span = (1 + rng.index(8) as usize).min(len - at.min(len));
        match rng.index(7) {
            0 | 1 if at < len => bytes[at] ^= 1 << rng.index(8),
            2 if at < len => {
                bytes[at] = [0, 1, 0x7f, 0x80, 0xfb, 0xfd, 0xff][rng.index(7) as usize]
            }
            3 => bytes.truncate(at),
            4 => bytes.insert(at, rng.next_u32() as u8),
            5 => drop(bytes.drain(at..at + span)),
            _ => {
                let part = bytes[at..at + span].to_vec();
                bytes.splice(at..at, part);
            }
        }
    }
}

/// Gives a decoder real encodings and spoiled ones; the first that it panics at is the message.
fn search(name: &str, check: impl Fn(&[u8]), samples: &[Vec<u8>], mutations: u64) {
    assert!(!samples.is_empty(), "{name} has samples");
    let tried = |bytes: &[u8], what: String| {
        let ended = catch_unwind(AssertUnwindSafe(|| check(bytes)));
        assert!(ended.is_ok(), "{name} panicked at {what}: {bytes:02x?}");
    };
    for (at, sample) in samples.iter().enumerate() {
        tried(sample, format!("sample {at}"));
    }
    for seed in 0..mutations {
        let mut rng = KeyedRng::from_seed("rumormill test spoiled bytes", seed, 0);
        let mut bytes = samples[rng.index(samples.len() as u32) as usize].clone();
        spoil(&mut bytes, &mut rng);
        tried(&bytes, format!("seed {seed}"));
    }
}

#[test]
fn spoiled_bytes_are_read_or_refused() {
    for target in &TARGETS {
        // These two make and drive a node.
        let slow = ["protocol", "restore"].contains(&target.name);
        let mutations = mutations() / if slow { 10 } else { 1 };
        search(target.name, target.check, &(target.samples)(), mutations);
    }
}

/// A sample of every variant is there, so that none is left out of the search.
#[test]
fn the_samples_are_of_every_kind() {
    use rumormill::message::{Frame, Stage};
    use rumormill::protocol::Entry;
    let frames = (targets::target("frame").samples)();
    let frames: Vec<Frame> = frames.iter().map(|bytes| Frame::decode(bytes).unwrap()).collect();
    let exchanges = || {
        frames.iter().filter_map(|frame| match frame {
            Frame::Exchange(exchange) => Some(exchange),
            _ => None,
        })
    };
    assert!(frames.iter().any(|frame| matches!(frame, Frame::Hello { .. })));
    assert!(
        frames.iter().any(|frame| matches!(frame, Frame::Start { votes, .. } if !votes.is_empty()))
    );
    assert!(exchanges().any(|exchange| !exchange.segments.is_empty()));
    assert!(exchanges().any(|exchange| !exchange.acks.is_empty()));
    assert!(exchanges().any(|exchange| !exchange.have.is_empty()));
    assert!(exchanges().any(|exchange| exchange.stage == Stage::Close));
    let entries = (targets::target("entry").samples)();
    let entries: Vec<Entry> = entries
        .iter()
        .map(|bytes| rumormill::codec::decode::<Entry, 65536>(bytes).unwrap())
        .collect();
    for (kind, is) in [
        ("vote", (|e| matches!(e, Entry::Vote(_))) as fn(&Entry) -> bool),
        ("founded", |e| matches!(e, Entry::Founded(_))),
        ("own", |e| matches!(e, Entry::Own { .. })),
        ("acked", |e| matches!(e, Entry::Acked { .. })),
        ("certified", |e| matches!(e, Entry::Certified(_))),
    ] {
        assert!(entries.iter().any(is), "no {kind}");
    }
}

/// A ledger with a spoiled byte is refused or, when its end is missing, read as far as it is whole.
#[test]
fn spoiled_ledgers_are_read_or_refused() {
    let run = RunId([5; 32]);
    let folder = crate::support::folder();
    let directory = folder.path();
    let entries = (targets::target("entry").samples)();
    let (mut store, _) = Store::open(directory, run, Sync::Never).unwrap();
    for bytes in &entries {
        store.append(&rumormill::codec::decode::<_, 65536>(bytes).unwrap());
    }
    store.flush().unwrap();
    drop(store);
    let whole = std::fs::read(directory.join(LOG_NAME)).unwrap();
    let (_, kept) = Store::open(directory, run, Sync::Never).unwrap();
    let check = |bytes: &[u8]| {
        std::fs::write(directory.join(LOG_NAME), bytes).unwrap();
        if let Ok((mut store, entries)) = Store::open(directory, run, Sync::Never) {
            let same = entries.iter().zip(&kept).take_while(|(a, b)| a == b).count();
            assert_eq!(same, entries.len(), "other entries than were written");
            store.history(0, 1 << 20);
        }
    };
    search("ledger.log", check, std::slice::from_ref(&whole), mutations() / 4);
}

#[test]
fn spoiled_run_files_are_read_or_refused() {
    let folder = crate::support::folder();
    let path = folder.path().join("run.toml");
    let args =
        ["init", "--members", "2", "--model", "softmax", "--out", crate::support::text(&path)];
    assert_eq!(crate::support::run(&args).code, 0);
    let whole = std::fs::read(&path).unwrap();
    let check = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let read: Result<RunFile, _> = RunFile::read(Path::new(&path));
        if let Err(error) = read {
            assert!(format!("{error:#}").contains("run.toml"), "{error:#}");
        }
    };
    search("run.toml", check, &[whole], mutations() / 2);
}

/// A longer sample for the whole of a conversation, so that `pack` and its reader stay inverse.
#[test]
fn packets_are_told_apart() {
    assert_eq!(pack(&[b"ab".to_vec(), b"c".to_vec()]), b"\x02\0ab\x01\0c");
}
