//! `rumormill node`: processes that find each other, train together, are killed, stopped, started
//! late or bothered, and end with the same model.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rumormill::sample::KeyedRng;
use serde_json::Value;

use crate::support::{Running, folder, rumormill, run, text};

/// A probe rate at which a run of [`LONG`] takes some seconds: long enough to be met in its midst,
/// whatever the machine.
pub(crate) const PACED: [&str; 2] = ["--probe-rate", "400"];

/// Many short heights.
pub(crate) const LONG: [&str; 6] =
    ["--rounds", "160", "--probes-per-round", "8", "--rounds-per-height", "4"];

/// Writes a run for so many founders.
pub(crate) fn init(folder: &Path, members: usize, args: &[&str]) -> PathBuf {
    let path = folder.join("run.toml");
    let members = members.to_string();
    let common = ["init", "--model", "softmax", "--members", &members, "--out", text(&path)];
    let ended = run(&[&common[..], args].concat());
    assert_eq!((ended.code, &*ended.stdout), (0, ""), "{ended:#?}");
    path
}

/// A node on a free port of the loopback interface that finds others by `--peer` alone.
pub(crate) fn node(directory: &Path, args: &[&str]) -> Running {
    let common = ["node", "--json", "--log", "debug", "--no-mdns", "--timeout", "110"];
    let listens = args.contains(&"--listen");
    let listen = if listens { &[][..] } else { &["--listen", "/ip4/127.0.0.1/tcp/0"] };
    let mut command = rumormill();
    command.args(common).args(["--data-dir", text(directory)]).args(listen).args(args);
    Running::start(&mut command)
}

/// Where a node listens, with its name.
pub(crate) fn address(node: &Running) -> String {
    let line = node.wait_for("listening on /");
    line.split_once("listening on ").expect("just found").1.to_owned()
}

/// The port in a multiaddress over TCP.
fn port(address: &str) -> u16 {
    let digits = address.split("/tcp/").nth(1).expect("a TCP address").split('/').next();
    digits.unwrap().parse().expect("a port")
}

pub(crate) fn certified(height: u64) -> String {
    format!("certified height={height} ")
}

/// Waits until all have ended well with one model; their lines.
pub(crate) fn all_identical(nodes: Vec<Running>) -> Vec<Value> {
    let mut lines: Vec<Value> = Vec::new();
    for node in nodes {
        let ended = node.end();
        assert_eq!(ended.code, 0, "{}\n{}", ended.stdout, ended.stderr);
        assert!(!ended.stderr.contains("contradicting"), "equivocation: {}", ended.stderr);
        lines.push(ended.json());
        let (line, first) = (&lines[lines.len() - 1], &lines[0]);
        assert_eq!(line["certified"], true, "{line}");
        for same in ["digest", "state_hash", "round", "accuracy"] {
            assert_eq!(line[same], first[same], "{same}:\n{line}\n{first}");
        }
    }
    lines
}

#[test]
fn three_nodes_that_know_one_address_end_identical() {
    let folder = folder();
    let run = init(folder.path(), 3, &["--rounds", "32"]);
    let run = ["--run", text(&run)];
    let first = node(&folder.path().join("a"), &run);
    let peer = address(&first);
    let follow = [&run[..], &["--peer", &peer]].concat();
    let second = node(&folder.path().join("b"), &follow);
    let third = node(&folder.path().join("c"), &follow);
    let lines = all_identical(vec![first, second, third]);
    assert!(lines.iter().all(|line| line["probes"].as_u64().unwrap() > 0), "{lines:?}");
    assert!(lines[0]["accuracy"].as_f64().unwrap() > 0.2, "{}", lines[0]);
}

#[test]
fn quic_addresses_work_as_peers() {
    let folder = folder();
    let run = init(folder.path(), 2, &["--rounds", "16"]);
    let quic = ["--run", text(&run), "--listen", "/ip4/127.0.0.1/udp/0/quic-v1"];
    let first = node(&folder.path().join("a"), &quic);
    let peer = address(&first);
    assert!(peer.contains("/quic-v1/"), "{peer}");
    let second = node(&folder.path().join("b"), &[&quic[..], &["--peer", &peer]].concat());
    all_identical(vec![first, second]);
}

/// Needs a network that carries multicast; where it does not, there is nothing to find.
#[test]
fn nodes_find_each_other_by_mdns() {
    if !multicast_works() {
        println!("skipped: no multicast on this machine");
        return;
    }
    let folder = folder();
    let run = init(folder.path(), 2, &["--rounds", "16"]);
    let start = |name: &str| {
        let directory = folder.path().join(name);
        let mut command = rumormill();
        command.args(["node", "--json", "--timeout", "110", "--run", text(&run)]);
        Running::start(command.args(["--data-dir", text(&directory)]))
    };
    all_identical(vec![start("a"), start("b")]);
}

fn multicast_works() -> bool {
    let group = Ipv4Addr::new(224, 0, 0, 251);
    let heard = || -> std::io::Result<bool> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.join_multicast_v4(&group, &Ipv4Addr::UNSPECIFIED)?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        socket.send_to(b"rumormill", SocketAddr::from((group, socket.local_addr()?.port())))?;
        let (_, from) = socket.recv_from(&mut [0; 16])?;
        Ok(!from.ip().is_loopback())
    };
    heard().unwrap_or(false)
}

#[test]
fn a_node_that_starts_late_catches_up_and_ends_identical() {
    let folder = folder();
    let run = init(folder.path(), 3, &LONG);
    let run = [&["--run", text(&run)], &PACED[..]].concat();
    let first = node(&folder.path().join("a"), &run);
    let peer = address(&first);
    let follow = [&run[..], &["--peer", &peer]].concat();
    let second = node(&folder.path().join("b"), &follow);
    let third = node(&folder.path().join("c"), &follow);
    first.wait_for(&certified(8));
    let late = node(&folder.path().join("late"), &follow);
    late.wait_for("catching up from history");
    all_identical(vec![first, second, third, late]);
}

/// Four members tolerate one fault: the others go on while one is gone.
#[test]
fn a_killed_node_resumes_as_itself_and_nobody_sees_it_contradict_itself() {
    let folder = folder();
    let run = init(folder.path(), 4, &LONG);
    let run = [&["--run", text(&run)], &PACED[..]].concat();
    let first = node(&folder.path().join("a"), &run);
    let peer = address(&first);
    let follow = [&run[..], &["--peer", &peer]].concat();
    let second = node(&folder.path().join("b"), &follow);
    let third = node(&folder.path().join("c"), &follow);
    let directory = folder.path().join("killed");
    let mut killed = node(&directory, &follow);
    let name = address(&killed).rsplit_once('/').unwrap().1.to_owned();
    for height in [2, 6] {
        killed.wait_for(&certified(height));
        killed.signal("KILL");
        let ended = killed.end();
        assert_eq!(ended.code, -1, "{ended:#?}");
        killed = node(&directory, &follow);
        killed.wait_for("resumed from the log");
    }
    let lines = all_identical(vec![first, second, third, killed]);
    assert_eq!(lines[3]["peer_id"], *name);
}

#[test]
fn the_node_all_others_began_with_may_be_killed_and_come_back_on_its_port() {
    let folder = folder();
    let run = init(folder.path(), 3, &LONG);
    let run = [&["--run", text(&run)], &PACED[..]].concat();
    let directory = folder.path().join("a");
    let first = node(&directory, &run);
    let peer = address(&first);
    let follow = [&run[..], &["--peer", &peer]].concat();
    let second = node(&folder.path().join("b"), &follow);
    let third = node(&folder.path().join("c"), &follow);
    first.wait_for(&certified(3));
    first.signal("KILL");
    first.end();
    let again = format!("/ip4/127.0.0.1/tcp/{}", port(&peer));
    let first = node(&directory, &[&run[..], &["--listen", &again]].concat());
    first.wait_for("resumed from the log");
    all_identical(vec![first, second, third]);
}

#[test]
fn an_interrupted_node_ends_cleanly_and_the_same_command_goes_on() {
    let folder = folder();
    let run = init(folder.path(), 3, &LONG);
    let run = [&["--run", text(&run)], &PACED[..]].concat();
    let first = node(&folder.path().join("a"), &run);
    let peer = address(&first);
    let follow = [&run[..], &["--peer", &peer]].concat();
    let second = node(&folder.path().join("b"), &follow);
    let directory = folder.path().join("c");
    let third = node(&directory, &follow);
    third.wait_for(&certified(3));
    third.signal("INT");
    let ended = third.end();
    assert_eq!(ended.code, 0, "{ended:#?}");
    assert!(ended.stderr.contains("the same command goes on from there"), "{}", ended.stderr);
    assert_eq!(ended.json()["certified"], false);
    let third = node(&directory, &follow);
    third.wait_for("resumed from the log");
    all_identical(vec![first, second, third]);
}

#[test]
fn a_node_of_another_run_is_refused_on_both_sides_with_the_field_that_differs() {
    let folder = folder();
    let other_folder = folder.path().join("other");
    std::fs::create_dir(&other_folder).unwrap();
    let run = init(folder.path(), 2, &["--rounds", "16"]);
    let other_run = init(&other_folder, 2, &["--rounds", "16", "--batch", "32"]);
    let first = node(&folder.path().join("a"), &["--run", text(&run)]);
    let peer = ["--peer", &address(&first)];
    let args = [&["--run", text(&other_run)], &peer[..]].concat();
    let stranger = node(&folder.path().join("stranger"), &args);
    let said = stranger.wait_for("takes part in another run");
    assert!(said.contains("run.batch is 32 here and 64 there"), "{said}");
    let said = first.wait_for("takes part in another run");
    assert!(said.contains("run.batch is 64 here and 32 there"), "{said}");
    let args = [&["--run", text(&run)], &peer[..]].concat();
    let second = node(&folder.path().join("b"), &args);
    all_identical(vec![first, second]);
}

#[test]
fn a_node_may_fetch_the_run_from_another_one() {
    let folder = folder();
    let run = init(folder.path(), 3, &["--rounds", "16"]);
    let first = node(&folder.path().join("a"), &["--run", text(&run)]);
    let peer = address(&first);
    let second = node(&folder.path().join("b"), &["--run", text(&run), "--peer", &peer]);
    let joined = folder.path().join("joined");
    let third = node(&joined, &["--join", &peer]);
    all_identical(vec![first, second, third]);
    let manifest = |path: &Path| {
        let text = std::fs::read_to_string(path).unwrap();
        text.split("[node]").next().unwrap().to_owned()
    };
    assert_eq!(manifest(&joined.join("run.toml")), manifest(&run));
}

#[test]
fn garbage_on_the_port_does_not_disturb_a_run() {
    let folder = folder();
    let run = init(folder.path(), 2, &LONG);
    let run = [&["--run", text(&run)], &PACED[..]].concat();
    let first = node(&folder.path().join("a"), &run);
    let peer = address(&first);
    let second = node(&folder.path().join("b"), &[&run[..], &["--peer", &peer]].concat());
    first.wait_for(&certified(1));
    let mut rng = KeyedRng::from_seed("rumormill test garbage", 1, 0);
    let mut held = Vec::new();
    for attempt in 0..24 {
        let mut stream = TcpStream::connect(("127.0.0.1", port(&peer))).expect("it listens");
        let garbage: Vec<u8> = (0..1000).map(|_| rng.next_u32() as u8).collect();
        // A refusal of the rest is what the node should do.
        let _ = match attempt % 3 {
            0 => stream.write_all(&garbage),
            // As far as the choice of the encryption, then garbage instead of a handshake.
            1 => stream
                .write_all(b"\x13/multistream/1.0.0\n\x07/noise\n")
                .and_then(|()| stream.write_all(&garbage)),
            _ => Ok(()),
        };
        held.push(stream);
    }
    let before = first.log().matches("certified height=").count() as u64;
    first.wait_for(&certified(before + 4));
    all_identical(vec![first, second]);
}

#[test]
fn a_node_that_meets_nobody_says_so_and_ends_with_4() {
    let folder = folder();
    let run = init(folder.path(), 2, &["--rounds", "16"]);
    // A port that was free a moment ago.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let peer = format!("/ip4/127.0.0.1/tcp/{port}");
    let directory = folder.path().join("a");
    let args = ["--run", text(&run), "--peer", &peer, "--timeout", "1"];
    let mut command = rumormill();
    command.args(["node", "--log", "error", "--no-mdns", "--data-dir", text(&directory)]);
    let ended = Running::start(command.args(args)).end();
    assert_eq!((ended.code, &*ended.stdout), (4, ""), "{ended:#?}");
    assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
    assert!(
        ended.stderr.contains("no peer") && ended.stderr.contains("--peer"),
        "{}",
        ended.stderr
    );
}

#[test]
fn a_node_keeps_its_identity_and_a_finished_run() {
    let folder = folder();
    let run_file = init(folder.path(), 1, &["--rounds", "16"]);
    let directory = folder.path().join("a");
    let lines: Vec<Value> = (0..2)
        .map(|_| all_identical(vec![node(&directory, &["--run", text(&run_file)])]).remove(0))
        .collect();
    for same in ["digest", "state_hash", "peer_id", "accuracy"] {
        assert_eq!(lines[0][same], lines[1][same], "{same}");
    }
    assert_eq!(lines[1]["probes"], 0, "nothing is measured twice");
    let ended = run(&["id", "--data-dir", text(&directory), "--json"]);
    assert_eq!(ended.code, 0, "{ended:#?}");
    assert_eq!(ended.json()["peer_id"], lines[0]["peer_id"]);
}
