//! `checkpoint`, `export`, `eval`, `verify` and `node --resume`: what can be done with a node's model, and
//! what is said when its files are not what they should be.

use std::fs;
use std::path::{Path, PathBuf};

use crate::daemon::{LONG, PACED, address, all_identical, certified, init, node};
use crate::support::{Ended, folder, run, text};

/// Two nodes in folders `a` and `b` that ended a run of softmax on the digits; the last line of the first.
fn finished(folder: &Path, args: &[&str]) -> serde_json::Value {
    let file = init(folder, 2, args);
    let run = ["--run", text(&file)];
    let first = node(&folder.join("a"), &run);
    let peer = address(&first);
    let second = node(&folder.join("b"), &[&run[..], &["--peer", &peer]].concat());
    all_identical(vec![first, second]).swap_remove(0)
}

const SHORT: [&str; 6] = ["--rounds", "32", "--probes-per-round", "8", "--rounds-per-height", "4"];

fn verify(directory: &Path) -> Ended {
    run(&["verify", text(directory), "--json"])
}

fn checkpoint_of(directory: &Path) -> PathBuf {
    directory.join("checkpoint.safetensors")
}

#[test]
fn a_finished_run_verifies_evaluates_and_exports_as_its_nodes_ended() {
    let folder = folder();
    let line = finished(folder.path(), &SHORT);
    let directory = folder.path().join("a");
    let verified = verify(&directory);
    assert_eq!(verified.code, 0, "{verified:#?}");
    let verified = verified.json();
    assert_eq!(verified["state_hash"], line["state_hash"]);
    assert_eq!(verified["chain"], line["digest"]);
    assert_eq!((&verified["certified"], &verified["checkpoint_height"]), (&8.into(), &8.into()));
    let said = run(&["verify", text(&directory)]);
    assert!(said.stdout.contains("VERIFIED"), "{said:#?}");

    let evaluated = run(&["eval", "--data-dir", text(&directory), "--json"]).json();
    assert_eq!(evaluated["accuracy"], line["accuracy"]);
    assert_eq!(evaluated["state_hash"], line["state_hash"]);

    // The digits are in no file that other rows could be held against.
    let other = folder.path().join("other.csv");
    fs::write(&other, "1,2,first\n3,4,second\n").unwrap();
    let refused = run(&["eval", "--data-dir", text(&directory), "--data", text(&other)]);
    assert_eq!((refused.code, &*refused.stdout), (1, ""), "{refused:#?}");
    assert!(refused.stderr.contains("held-out rows of its own"), "{refused:#?}");

    let out = folder.path().join("weights.safetensors");
    let ended = run(&["export", "--data-dir", text(&directory), "--out", text(&out)]);
    assert_eq!(ended.code, 0, "{ended:#?}");
    let bytes = fs::read(&out).unwrap();
    let weights = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let len: usize = weights.iter().map(|(_, view)| view.data().len()).sum();
    assert_eq!(len, 4 * 2_570, "softmax on 256 pixels and 10 classes, f32");

    // A checkpoint made from the log alone is the one that the node wrote.
    let made = folder.path().join("made.safetensors");
    fs::remove_file(checkpoint_of(&directory)).unwrap();
    let ended =
        run(&["checkpoint", "--data-dir", text(&directory), "--out", text(&made), "--json"]);
    assert_eq!((ended.code, &ended.json()["height"]), (0, &8.into()));
    let of_file = ["eval", "--data-dir", text(&directory), "--checkpoint", text(&made), "--json"];
    assert_eq!(run(&of_file).json()["state_hash"], line["state_hash"]);
}

#[test]
fn damage_and_foreign_files_are_named_with_their_place_and_both_values() {
    let folder = folder();
    finished(folder.path(), &SHORT);
    let directory = folder.path().join("a");
    let log = directory.join("ledger.log");
    let whole = fs::read(&log).unwrap();
    let damaged = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        fs::write(&log, bytes).unwrap();
        let ended = verify(&directory);
        assert_eq!(ended.code, 1, "byte {at}: {ended:#?}");
        ended.stderr
    };
    let middle = damaged(whole.len() / 2);
    assert!(middle.contains("ledger.log") && middle.contains("at byte"), "{middle}");
    let of_run = damaged(20);
    assert!(of_run.contains("belongs to run"), "{of_run}");
    assert!(damaged(3).contains("not a ledger log"));
    // An entry that was cut short by a crash is none.
    fs::write(&log, &whole[..whole.len() - 5]).unwrap();
    let kept = checkpoint_of(&directory);
    let checkpoint = fs::read(&kept).unwrap();
    fs::remove_file(&kept).unwrap();
    let cut = verify(&directory);
    assert_eq!(cut.code, 0, "{cut:#?}");
    assert!(cut.json()["unfinished_bytes"].as_u64() > Some(0), "{cut:#?}");
    fs::write(&log, &whole).unwrap();

    let mut bytes = checkpoint;
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&kept, &bytes).unwrap();
    let said = verify(&directory).stderr;
    assert!(said.contains("checkpoint.safetensors") && said.contains("has hash"), "{said}");
    let said = run(&["eval", "--data-dir", text(&directory), "--checkpoint", text(&kept)]).stderr;
    assert!(said.contains("damaged"), "{said}");

    let other = folder.path().join("other");
    fs::create_dir(&other).unwrap();
    finished(&other, &[&SHORT[..], &["--seed", "2"]].concat());
    fs::copy(checkpoint_of(&other.join("a")), &kept).unwrap();
    let said = verify(&directory).stderr;
    assert!(said.contains("it is of run"), "{said}");
    let file = text(&folder.path().join("run.toml")).to_owned();
    let resumed = node(&folder.path().join("c"), &["--run", &file, "--resume", text(&kept)]).end();
    assert_eq!(resumed.code, 1);
    assert!(resumed.stderr.contains("it is of run"), "{resumed:#?}");
    let nowhere = run(&["verify", text(&folder.path().join("nowhere"))]);
    assert!(nowhere.stderr.contains("no data directory"), "{nowhere:#?}");
}

#[test]
fn a_running_node_writes_a_checkpoint_and_goes_on_from_it_after_a_kill() {
    let folder = folder();
    let file = init(folder.path(), 3, &LONG);
    let run_args = [&["--run", text(&file)], &PACED[..]].concat();
    let first = node(&folder.path().join("a"), &run_args);
    let peer = address(&first);
    let follow = [&run_args[..], &["--peer", &peer]].concat();
    let second = node(&folder.path().join("b"), &follow);
    let directory = folder.path().join("killed");
    let killed = node(&directory, &follow);
    killed.wait_for(&certified(6));
    let written = run(&["checkpoint", "--data-dir", text(&directory), "--json"]);
    assert_eq!(written.code, 0, "{written:#?}");
    assert!(written.json()["height"].as_u64() >= Some(6), "{written:#?}");
    let copy = folder.path().join("copy.safetensors");
    fs::copy(checkpoint_of(&directory), &copy).unwrap();
    killed.signal("KILL");
    killed.end();
    let killed = node(&directory, &follow);
    let said = killed.wait_for("resumed from the log");
    assert!(said.contains("model_from=\"checkpoint\""), "{said}");
    // A stranger that has but the file takes its model when history has come to it.
    let late =
        node(&folder.path().join("late"), &[&follow[..], &["--resume", text(&copy)]].concat());
    late.wait_for("the checkpoint fits the certified history");
    all_identical(vec![first, second, killed, late]);
}

#[test]
fn a_damaged_checkpoint_is_said_and_costs_nothing_but_time() {
    let folder = folder();
    let line = finished(folder.path(), &SHORT);
    let directory = folder.path().join("a");
    fs::write(checkpoint_of(&directory), b"no checkpoint").unwrap();
    let file = folder.path().join("run.toml");
    let again = node(&directory, &["--run", text(&file)]);
    let ended = again.end();
    assert!(ended.stderr.contains("replayed without it"), "{}", ended.stderr);
    assert_eq!(ended.json()["state_hash"], line["state_hash"]);
}

/// Two nodes that ended a run of twenty heights and stay; a third that fetches, in folder `name`.
fn late(folder: &Path, name: &str, peers: &[String], source: &str) -> Ended {
    let file = folder.join("run.toml");
    let mut args = vec!["--run", text(&file), "--catch-up", source];
    peers.iter().for_each(|peer| args.extend(["--peer", peer]));
    node(&folder.join(name), &args).end()
}

#[test]
fn a_late_node_takes_the_model_that_members_have_signed_and_no_other() {
    let folder = folder();
    let rounds = ["--rounds", "80", "--probes-per-round", "4", "--rounds-per-height", "4"];
    let file = init(folder.path(), 2, &rounds);
    // Paid in three rounds: what later rounds pay along earlier directions is in no checkpoint.
    let at_once = "instalments = [{ age = 0, share = 65536 }]";
    let written = fs::read_to_string(&file).unwrap();
    assert!(written.contains(at_once), "{written}");
    let in_three = "instalments = [{ age = 0, share = 32768 }, { age = 1, share = 16384 }, \
                    { age = 5, share = 16384 }]";
    fs::write(&file, written.replace(at_once, in_three)).unwrap();
    let run = ["--run", text(&file), "--stay"];
    let first = node(&folder.path().join("a"), &run);
    let peer = address(&first);
    let second = node(&folder.path().join("b"), &[&run[..], &["--peer", &peer]].concat());
    let peers = [peer, address(&second)];
    for node in [&first, &second] {
        node.wait_for("all rounds are certified");
    }
    let model = |name: &str| folder.path().join(name).join("model-16.safetensors");
    crate::support::wait_until("both wrote the model after 16 heights", || {
        model("a").exists() && model("b").exists()
    });

    let fetched = late(folder.path(), "fetched", &peers, "checkpoint");
    assert!(fetched.stderr.contains("is the members' model"), "{}", fetched.stderr);
    let replayed = late(folder.path(), "replayed", &peers, "history");
    assert!(!replayed.stderr.contains("is the members' model"), "{}", replayed.stderr);

    // Who serves another model is found out, and another one asked.
    let whole = fs::read(model("b")).unwrap();
    let spoil = |name: &str| {
        let mut bytes = fs::read(model(name)).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(model(name), bytes).unwrap();
    };
    spoil("a");
    spoil("b");
    let warned = late(folder.path(), "warned", &peers[..1], "checkpoint");
    assert!(warned.stderr.contains("a false checkpoint"), "{}", warned.stderr);
    assert!(warned.stderr.contains("the history is replayed"), "{}", warned.stderr);
    fs::write(model("b"), whole).unwrap();
    let either = late(folder.path(), "either", &peers, "checkpoint");
    assert!(either.stderr.contains("is the members' model"), "{}", either.stderr);
    // Nobody has one.
    fs::remove_file(model("a")).unwrap();
    fs::remove_file(model("b")).unwrap();
    let without = late(folder.path(), "without", &peers, "checkpoint");
    assert!(without.stderr.contains("no neighbor has the checkpoint"), "{}", without.stderr);

    for node in [&first, &second] {
        node.signal("INT");
    }
    let line = first.end().json();
    for ended in [fetched, replayed, warned, either, without] {
        assert_eq!(ended.code, 0, "{ended:#?}");
        let of = ended.json();
        assert_eq!((&of["state_hash"], &of["digest"]), (&line["state_hash"], &line["digest"]));
    }
}

/// A log whose older history was dropped: selection over a window and audits look back beyond its start.
#[test]
fn a_node_that_drops_old_history_resumes_verifies_and_says_what_it_lacks() {
    let folder = folder();
    let settings = ["--selection", "stack", "--audits", "60", "--rounds", "320"];
    let rounds = ["--probes-per-round", "8", "--rounds-per-height", "2", "--window", "9"];
    let file = init(folder.path(), 4, &[&settings[..], &rounds].concat());
    let run_file = ["--run", text(&file)];
    let paced = [&run_file[..], &PACED].concat();
    let first = node(&folder.path().join("a"), &[&paced[..], &["--stay"]].concat());
    let peer = address(&first);
    let follow = [&paced[..], &["--peer", &peer]].concat();
    let others = ["b", "c"].map(|name| node(&folder.path().join(name), &follow));
    let short = folder.path().join("short");
    let retaining = [&follow[..], &["--retain-heights", "16"]].concat();
    let killed = node(&short, &retaining);
    killed.wait_for("the history before this height was dropped height=16");
    killed.wait_for(&certified(37));
    killed.signal("KILL");
    killed.end();
    let resumed = node(&short, &retaining);
    resumed.wait_for("resumed from the log");
    let mut lines = all_identical(others.into_iter().chain([resumed]).collect());
    let line = lines.pop().unwrap();

    let verified = verify(&short);
    assert_eq!(verified.code, 0, "{verified:#?}");
    let verified = verified.json();
    assert_eq!(
        (&verified["state_hash"], &verified["chain"]),
        (&line["state_hash"], &line["digest"])
    );
    let first_height = verified["from_height"].as_u64().unwrap();
    assert!(first_height >= 64 && first_height.is_multiple_of(16), "{verified}");
    assert!(
        fs::metadata(short.join("ledger.log")).unwrap().len()
            < fs::metadata(folder.path().join("b/ledger.log")).unwrap().len() * 2 / 3
    );

    // Who comes now cannot have the beginning from this node, and has it from another.
    let serving = node(&short, &[&run_file[..], &["--stay"]].concat());
    let short_peer = address(&serving);
    let newcomer = node(
        &folder.path().join("new"),
        &[&run_file[..], &["--peer", &short_peer, "--only-peers"]].concat(),
    );
    newcomer.wait_for(&format!("keeps the history from height {first_height} on only"));
    newcomer.signal("KILL");
    newcomer.end();
    let newcomer = node(
        &folder.path().join("new"),
        &[&run_file[..], &["--peer", &short_peer, "--peer", &peer]].concat(),
    );
    let ended = newcomer.end().json();
    assert_eq!(ended["state_hash"], line["state_hash"]);
    for node in [first, serving] {
        node.signal("INT");
        assert_eq!(node.end().code, 0);
    }

    // The checkpoint may go, as long as the model that the log begins with is there.
    fs::remove_file(checkpoint_of(&short)).unwrap();
    assert_eq!(verify(&short).json()["state_hash"], line["state_hash"]);
    fs::remove_file(short.join("base.safetensors")).unwrap();
    let said = verify(&short);
    assert_eq!(said.code, 1);
    let begins = format!("begins at height {first_height}");
    assert!(said.stderr.contains(&begins), "{}", said.stderr);
}

/// While its model is put together it abstains, and afterwards it measures and acknowledges as before.
#[test]
fn a_member_that_was_away_for_long_takes_the_model_and_goes_on() {
    let folder = folder();
    let rounds = ["--rounds", "240", "--probes-per-round", "8", "--rounds-per-height", "4"];
    let file = init(folder.path(), 4, &rounds);
    let run = ["--run", text(&file), "--probe-rate", "300", "--catch-up", "checkpoint"];
    let first = node(&folder.path().join("a"), &run);
    let peer = address(&first);
    let follow = [&run[..], &["--peer", &peer]].concat();
    let others = ["b", "c"].map(|name| node(&folder.path().join(name), &follow));
    let directory = folder.path().join("away");
    let away = node(&directory, &follow);
    away.wait_for(&certified(2));
    away.signal("KILL");
    away.end();
    first.wait_for(&certified(30));
    let back = node(&directory, &follow);
    back.wait_for("is the members' model");
    let lines = all_identical([first].into_iter().chain(others).chain([back]).collect());
    assert!(lines[3]["probes"].as_u64() > Some(40), "it measures again: {}", lines[3]);
}
