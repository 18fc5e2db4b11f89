//! Nothing lost: nodes that are killed at random, directories that were put back, damaged, full or of
//! another node, and what a node says of them.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rumormill::codec;
use rumormill::id::{NodeId, RunId};
use rumormill::protocol::Entry;
use rumormill::sample::KeyedRng;
use rumormill_node::run::RunFile;
use serde_json::Value;

use crate::support::{Ended, Running, folder, rumormill, run, text};

/// A port that is free now: a node that is started again needs the one it had.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn init(folder: &Path, args: &[&str]) -> PathBuf {
    let path = folder.join("run.toml");
    let common = ["init", "--model", "softmax", "--out", text(&path)];
    let ended = run(&[&common[..], args].concat());
    assert_eq!(ended.code, 0, "{ended:#?}");
    path
}

fn run_id(path: &Path) -> RunId {
    RunFile::read(path).unwrap().run.run_id()
}

/// One of several nodes, each on a port of its own and told those of the others.
struct Host {
    directory: PathBuf,
    args: Vec<String>,
}

/// So many nodes of a run.
fn hosts(folder: &Path, run: &Path, n: usize, rate: &str, timeout: &str) -> Vec<Host> {
    let ports: Vec<u16> = (0..n).map(|_| free_port()).collect();
    let address = |port: u16| format!("/ip4/127.0.0.1/tcp/{port}");
    let host = |at: usize| {
        let mut args = ["node", "--json", "--log", "debug", "--no-mdns", "--probe-rate", rate]
            .map(String::from)
            .to_vec();
        args.extend(["--timeout", timeout, "--run", text(run)].map(String::from));
        args.extend(["--listen".into(), address(ports[at])]);
        for step in [1, 2, n - 1] {
            args.extend(["--peer".into(), address(ports[(at + step) % n])]);
        }
        let directory = folder.join(format!("node-{at}"));
        args.extend(["--data-dir".into(), text(&directory).into()]);
        Host { directory, args }
    };
    (0..n).map(host).collect()
}

impl Host {
    fn start(&self) -> Running {
        self.start_with(&[])
    }

    fn start_with(&self, extra: &[&str]) -> Running {
        Running::start(rumormill().args(&self.args).args(extra))
    }

    fn ledger(&self) -> PathBuf {
        self.directory.join("ledger.log")
    }

    /// Its position among the founders.
    fn origin(&self) -> u16 {
        let name = run(&["id", "--json", "--data-dir", text(&self.directory)]).json();
        let me: NodeId = name["node_id"].as_str().unwrap().parse().unwrap();
        let founders = entries(&self.ledger()).into_iter().find_map(|entry| match entry {
            Entry::Founded(votes) => Some(votes[0].founders.clone()),
            _ => None,
        });
        founders.unwrap().iter().position(|id| *id == me).unwrap() as u16
    }
}

/// The entries of a log, without opening it: another process may hold it.
fn entries(path: &Path) -> Vec<Entry> {
    let bytes = fs::read(path).unwrap();
    let mut rest = &bytes[48..];
    let mut entries = Vec::new();
    while let Some(len) = rest.first_chunk::<4>() {
        let end = 16 + u32::from_le_bytes(*len) as usize;
        let Some(payload) = rest.get(16..end) else { break };
        entries.push(codec::decode::<Entry, { 64 << 20 }>(payload).unwrap());
        rest = &rest[end..];
    }
    entries
}

/// The longest own segment of every height in a log.
fn own_segments(path: &Path) -> BTreeMap<u64, Vec<u8>> {
    let mut own: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    for entry in entries(path) {
        if let Entry::Own { height, segment } = entry {
            let before = own.insert(height, segment.bytes.clone()).unwrap_or_default();
            assert!(segment.bytes.starts_with(&before), "height {height} was signed anew");
        }
    }
    own
}

/// What is certified, by height and origin.
fn certified(path: &Path) -> BTreeMap<(u64, u16), Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in entries(path) {
        if let Entry::Certified(height) = entry {
            all.retain(|&(at, _), _| at < height.height);
            for segment in height.segments.iter() {
                all.insert((height.height, segment.origin), segment.bytes.clone());
            }
        }
    }
    all
}

fn assert_no_contradiction(ended: &Ended) {
    let line = ended.stderr.lines().find(|line| line.contains("contradicting"));
    assert_eq!(line, None, "a node signed two different things");
}

/// Waits until all have ended well with one model.
fn all_identical(nodes: Vec<Running>) -> Vec<Value> {
    let mut lines: Vec<Value> = Vec::new();
    for node in nodes {
        let ended = node.end();
        assert_eq!(ended.code, 0, "{}\n{}", ended.stdout, ended.stderr);
        assert_no_contradiction(&ended);
        lines.push(ended.json());
        let (line, first) = (&lines[lines.len() - 1], &lines[0]);
        for same in ["digest", "state_hash", "round", "accuracy"] {
            assert_eq!(line[same], first[same], "{same}:\n{line}\n{first}");
        }
    }
    lines
}

/// `RUMORMILL_KILLS` in the environment asks for another number of kills, and
/// `RUMORMILL_KILLS_SEED` for another order: the long form is
/// `RUMORMILL_KILLS=100 cargo test --release --test suite killed_at_random -- --nocapture`.
#[test]
fn nodes_killed_at_random_lose_nothing_and_end_identical() {
    let number = |name: &str, usual: u64| {
        let asked = std::env::var(name).ok();
        asked.map_or(usual, |asked| asked.parse().expect("a number"))
    };
    let (wanted, seed) = (number("RUMORMILL_KILLS", 6), number("RUMORMILL_KILLS_SEED", 1));
    const NODES: usize = 8;
    let folder = folder();
    // About a second a kill, at twelve rounds a second on an idle machine.
    let rounds = (12 * wanted + 24).to_string();
    let args = ["--probes-per-round", "8", "--rounds-per-height", "4", "--rounds", &rounds];
    let run = init(folder.path(), &[&["--members", "8"], &args[..]].concat());
    let timeout = (100 + 6 * wanted).to_string();
    let hosts = hosts(folder.path(), &run, NODES, "100", &timeout);
    let mut nodes: Vec<Option<Running>> = hosts.iter().map(|host| Some(host.start())).collect();
    for node in nodes.iter().flatten() {
        node.wait_for("certified height=0 ");
    }
    let mut rng = KeyedRng::from_seed("rumormill test kills", seed, 0);
    let mut before: Vec<BTreeMap<u64, Vec<u8>>> = vec![BTreeMap::new(); NODES];
    let mut restarts: Vec<(Instant, usize)> = Vec::new();
    let (mut kills, mut lives) = (0, Vec::new());
    let begun = Instant::now();
    while kills < wanted || !restarts.is_empty() {
        restarts.retain(|&(at, node)| {
            let due = at <= Instant::now();
            if due {
                nodes[node] = Some(hosts[node].start());
            }
            !due
        });
        let node = rng.index(NODES as u32) as usize;
        // Eight members tolerate two that are away; a node may be killed while it starts.
        let finished = nodes.iter().flatten().any(|node| node.said("all rounds are certified"));
        if kills < wanted && restarts.len() < 2 && !finished {
            if let Some(killed) = nodes[node].take() {
                killed.signal("KILL");
                lives.push(killed.end());
                kills += 1;
                if hosts[node].ledger().exists() {
                    before[node].append(&mut own_segments(&hosts[node].ledger()));
                }
                let down = Duration::from_millis(u64::from(rng.index(1200)));
                restarts.push((Instant::now() + down, node));
            }
        } else if finished {
            assert!(kills >= wanted / 2, "the run ended after {kills} kills");
            for (_, node) in restarts.drain(..) {
                nodes[node] = Some(hosts[node].start());
            }
            break;
        }
        std::thread::sleep(Duration::from_millis(200 + u64::from(rng.index(800))));
    }
    let killed_for = begun.elapsed();
    for life in &lives {
        assert_no_contradiction(life);
    }
    let patience = Duration::from_secs(100 + 6 * wanted);
    let nodes: Vec<Running> = nodes.into_iter().map(|node| node.expect("started again")).collect();
    all_identical_within(nodes, patience);
    let ledger = certified(&hosts[0].ledger());
    let (mut records, mut late) = (0, 0);
    for (at, host) in hosts.iter().enumerate() {
        assert_eq!(certified(&host.ledger()), ledger, "ledger of node {at}");
        let origin = host.origin();
        let after = own_segments(&host.ledger());
        // Before that the log was shortened: what counts of them is in the certified heights.
        let first = after.first_key_value().map_or(0, |(height, _)| *height);
        for (height, bytes) in &before[at] {
            let kept =
                *height < first || after.get(height).is_some_and(|kept| kept.starts_with(bytes));
            assert!(kept, "node {at} lost own records of height {height}");
            let counted = ledger.get(&(*height, origin)).map_or(&[][..], |bytes| bytes);
            let shorter = counted.len().min(bytes.len());
            assert_eq!(counted[..shorter], bytes[..shorter], "node {at}, height {height}");
            records += bytes.len();
            late += bytes.len() - shorter;
        }
    }
    println!(
        "{kills} kills of {NODES} nodes in {:.0} s, seed {seed}: all identical after {rounds} rounds, 0 \
         equivocations, 0 of {records} own records on disk lost ({late} came too late for a certificate)",
        killed_for.as_secs_f64()
    );
}

fn all_identical_within(nodes: Vec<Running>, patience: Duration) -> Vec<Value> {
    let deadline = Instant::now() + patience;
    while nodes.iter().any(Running::runs) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
    }
    all_identical(nodes)
}

/// Three nodes of which two are enough, and how long a run is: about ten seconds.
fn trio(folder: &Path) -> (PathBuf, Vec<Host>) {
    let args = ["--probes-per-round", "8", "--rounds-per-height", "4", "--rounds", "128"];
    let run = init(folder, &[&["--members", "3"], &args[..]].concat());
    let hosts = hosts(folder, &run, 3, "200", "110");
    (run, hosts)
}

/// Starts a node, and kills it when a height is certified there.
fn kill_at(host: &Host, height: u64) {
    let node = host.start();
    node.wait_for(&format!("certified height={height} "));
    node.signal("KILL");
    node.end();
}

/// What was signed since the backup is known to neighbors: they are asked before anything is signed.
#[test]
fn a_node_whose_backup_was_put_back_never_contradicts_itself() {
    let folder = folder();
    let (_, hosts) = trio(folder.path());
    let nodes: Vec<Running> = hosts[..2].iter().map(Host::start).collect();
    kill_at(&hosts[2], 2);
    let backup = fs::read(hosts[2].ledger()).unwrap();
    // Killed in the midst of height 6, so that records of it are signed and not certified.
    kill_at(&hosts[2], 5);
    let lost = own_segments(&hosts[2].ledger());
    fs::write(hosts[2].ledger(), &backup).unwrap();
    let third = hosts[2].start();
    all_identical(nodes.into_iter().chain([third]).collect());
    // What was certified of them is what was signed first. Of the height after it nobody may have had any:
    // then other records contradict nothing, and neighbors would have said so above.
    let ledger = certified(&hosts[0].ledger());
    let origin = hosts[2].origin();
    assert!(lost.keys().any(|height| *height <= 5), "{lost:?}");
    for (height, bytes) in lost.range(..=5) {
        let counted = ledger.get(&(*height, origin)).map_or(&[][..], |bytes| bytes);
        let shorter = counted.len().min(bytes.len());
        assert_eq!(counted[..shorter], bytes[..shorter], "height {height}");
    }
}

#[test]
fn a_ledger_damaged_in_the_middle_is_repaired_from_peers() {
    let folder = folder();
    let (_, hosts) = trio(folder.path());
    let nodes: Vec<Running> = hosts[..2].iter().map(Host::start).collect();
    kill_at(&hosts[2], 3);
    let mut bytes = fs::read(hosts[2].ledger()).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(hosts[2].ledger(), &bytes).unwrap();
    let refused = hosts[2].start().end();
    assert_eq!((refused.code, &*refused.stdout), (1, ""), "{refused:#?}");
    for say in ["ledger.log", "damaged at byte", "--repair"] {
        assert!(refused.stderr.contains(say), "no '{say}' in: {}", refused.stderr);
    }
    assert_eq!(fs::read(hosts[2].ledger()).unwrap(), bytes, "it was changed");
    let third = hosts[2].start_with(&["--repair"]);
    third.wait_for("the rest is dropped and fetched from peers");
    all_identical(nodes.into_iter().chain([third]).collect());
    let copy = hosts[2].directory.join("ledger.log.damaged-1");
    assert_eq!(fs::read(copy).unwrap(), bytes);
    assert_eq!(certified(&hosts[2].ledger()), certified(&hosts[0].ledger()));
}

/// The key without its log: the node asks what it has signed.
#[test]
fn a_node_that_lost_its_whole_ledger_never_contradicts_itself() {
    let folder = folder();
    let (_, hosts) = trio(folder.path());
    let nodes: Vec<Running> = hosts[..2].iter().map(Host::start).collect();
    kill_at(&hosts[2], 3);
    fs::remove_file(hosts[2].ledger()).unwrap();
    let third = hosts[2].start();
    all_identical(nodes.into_iter().chain([third]).collect());
}

/// A file system of so many bytes in memory; `None`, said aloud, where that is not permitted.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn new(folder: &Path, size: &str) -> Option<SmallDisk> {
        let path = folder.join("disk");
        fs::create_dir(&path).unwrap();
        let options = format!("size={size}");
        let args = ["-t", "tmpfs", "-o", &options, "tmpfs", text(&path)];
        match Command::new("mount").args(args).output() {
            Ok(output) if output.status.success() => Some(SmallDisk(path)),
            _ => {
                println!("skipped: no file system may be mounted here");
                None
            }
        }
    }

    fn remount(&self, options: &str) {
        let options = format!("remount,{options}");
        let status = Command::new("mount").args(["-o", &options, text(&self.0)]).status();
        assert!(status.unwrap().success(), "mount -o {options}");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// A node that is a run of its own.
fn solo(run_file: &Path, directory: &Path) -> Ended {
    let args = ["node", "--json", "--no-mdns", "--log", "error", "--timeout", "100"];
    let listen = ["--listen", "/ip4/127.0.0.1/tcp/0"];
    run(&[&args[..], &listen, &["--run", text(run_file), "--data-dir", text(directory)]].concat())
}

fn refused(ended: &Ended, says: &[&str]) {
    assert_eq!((ended.code, &*ended.stdout), (1, ""), "{ended:#?}");
    assert_eq!(ended.stderr.lines().count(), 1, "one line: {}", ended.stderr);
    for say in says {
        assert!(ended.stderr.contains(say), "no '{say}' in: {}", ended.stderr);
    }
}

#[test]
fn a_full_disk_ends_a_node_with_a_clear_error_and_it_goes_on_when_there_is_room() {
    let folder = folder();
    let Some(disk) = SmallDisk::new(folder.path(), "32k") else { return };
    let run_file = init(folder.path(), &["--members", "1", "--rounds", "320"]);
    let directory = disk.0.join("node");
    refused(&solo(&run_file, &directory), &["ledger.log", "No space left", "make room"]);
    // The same again: what was cut short is dropped, and nothing else.
    refused(&solo(&run_file, &directory), &["No space left"]);
    disk.remount("size=16m");
    let ended = solo(&run_file, &directory);
    assert_eq!(ended.code, 0, "{ended:#?}");
    let line = ended.json();
    assert_eq!(line["certified"], true);
    own_segments(&directory.join("ledger.log"));
}

#[test]
fn a_read_only_directory_is_named() {
    let folder = folder();
    let Some(disk) = SmallDisk::new(folder.path(), "1m") else { return };
    let run_file = init(folder.path(), &["--members", "1", "--rounds", "16"]);
    let directory = disk.0.join("node");
    disk.remount("ro");
    refused(&solo(&run_file, &directory), &[text(&directory), "Read-only"]);
    disk.remount("rw");
    assert_eq!(solo(&run_file, &directory).code, 0);
    disk.remount("ro");
    refused(&solo(&run_file, &directory), &[text(&directory), "Read-only"]);
}

#[test]
fn the_key_of_another_node_is_refused_with_both_names() {
    let folder = folder();
    let run_file = init(folder.path(), &["--members", "1", "--rounds", "16"]);
    let (mine, other) = (folder.path().join("mine"), folder.path().join("other"));
    assert_eq!(solo(&run_file, &mine).code, 0);
    let name = |directory: &Path| {
        let ended = run(&["id", "--data-dir", text(directory), "--json"]);
        ended.json()["peer_id"].as_str().unwrap().to_owned()
    };
    let (me, them) = (name(&mine), name(&other));
    fs::copy(other.join("identity.key"), mine.join("identity.key")).unwrap();
    let before = fs::read(mine.join("ledger.log")).unwrap();
    refused(&solo(&run_file, &mine), &["ledger.log", &me, "identity.key", &them]);
    assert_eq!(fs::read(mine.join("ledger.log")).unwrap(), before);
}

#[test]
fn a_ledger_of_another_format_is_refused_with_both_numbers() {
    let folder = folder();
    let run_file = init(folder.path(), &["--members", "1", "--rounds", "16"]);
    let directory = folder.path().join("node");
    assert_eq!(solo(&run_file, &directory).code, 0);
    let path = directory.join("ledger.log");
    let mut bytes = fs::read(&path).unwrap();
    bytes[14..16].copy_from_slice(b"00");
    fs::write(&path, &bytes).unwrap();
    refused(&solo(&run_file, &directory), &["ledger.log", "format 00", "reads format 02"]);
    // A header cut short, and of another run.
    bytes[14..16].copy_from_slice(b"02");
    bytes[20] ^= 1;
    fs::write(&path, &bytes[..30]).unwrap();
    refused(&solo(&run_file, &directory), &["ledger.log", "not a ledger log"]);
}

#[test]
fn a_directory_with_the_run_file_of_another_run_is_refused_with_both() {
    let folder = folder();
    let run_file = init(folder.path(), &["--members", "1", "--rounds", "16"]);
    let directory = folder.path().join("node");
    assert_eq!(solo(&run_file, &directory).code, 0);
    let kept = directory.join("run.toml");
    let whole = fs::read_to_string(&kept).unwrap();
    let other = whole.replace("name = \"rumormill\"", "name = \"another\"");
    fs::write(&kept, &other).unwrap();
    let (found, expected) = (run_id(&kept).to_string(), run_id(&run_file).to_string());
    refused(&solo(&run_file, &directory), &["run.toml", &found, &expected]);
    fs::remove_file(directory.join("ledger.log")).unwrap();
    refused(&solo(&run_file, &directory), &["run.toml", &found, &expected]);
    assert!(!directory.join("ledger.log").exists(), "a file was made");
    // A copy that cannot be read says nothing: it is written again.
    fs::write(&kept, &whole[..whole.len() / 2]).unwrap();
    assert_eq!(solo(&run_file, &directory).code, 0);
    assert_eq!(fs::read_to_string(&kept).unwrap(), whole);
}
