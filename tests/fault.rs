//! Injected faults: nodes of `local --faulty` lie or break the protocol, a running node is told to over
//! its local interface, and what cannot be is refused.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::Value;

use crate::support::{Running, folder, rumormill, run, text};

/// A short run of a small model on a graph where all are neighbors.
const SHORT: [&str; 8] =
    ["local", "--json", "--model", "softmax", "--rounds", "32", "--family", "complete"];

fn local(args: &[&str]) -> Value {
    let ended = run(&[&SHORT[..], &["--timeout", "100"], args].concat());
    assert_eq!(ended.code, 0, "{ended:#?}");
    let result = ended.json();
    assert_eq!(result["agreement"]["identical"], true, "{result}");
    result
}

/// Indices and kinds of the faulty nodes.
fn faulty(result: &Value) -> Vec<(u64, &str)> {
    let lines = result["faulty"].as_array().expect("a list").iter();
    let lines = lines.map(|line| (line["index"].as_u64().unwrap(), line["kind"].as_str().unwrap()));
    lines.collect()
}

#[test]
fn a_liar_is_named_with_what_it_did_and_how_often_it_was_selected() {
    let args = ["--nodes", "4", "--faulty", "1:sign-flip", "--selection", "nnm"];
    let result = local(&args);
    assert_eq!(faulty(&result), [(3, "sign-flip")]);
    assert_eq!((&result["nodes"], &result["honest"]), (&4.into(), &3.into()));
    assert_eq!(result["honest_excluded_fraction"], 0.0);
    assert_eq!(result["baseline_accuracy"], Value::Null);
    let line = &result["faulty"][0];
    let between = |key: &str, low, high| {
        assert!(line[key].as_f64().is_some_and(|at| (low..high).contains(&at)), "{line}");
    };
    between("selected_fraction", 0.0, 1.2);
    between("trust", -1.0, 1.0);
    assert_eq!(result["per_node"][3]["faulty"], true);
    assert_eq!(result["per_node"][0]["faulty"], false);
}

#[test]
fn processes_of_their_own_misbehave_as_tasks_do() {
    // More than once: three can certify all before the fourth has started, and must then wait for it.
    for _ in 0..4 {
        let result = local(&["--nodes", "4", "--faulty", "1:sign-flip", "--processes"]);
        assert_eq!(faulty(&result), [(3, "sign-flip")]);
        let line = &result["faulty"][0];
        assert!(line["selected_fraction"].as_f64() > Some(0.0), "{line}");
        assert!(line["excluded_from_round"].is_null() || line["audit_score"].as_f64() < Some(0.8));
    }
}

#[test]
fn under_the_mean_a_large_lie_costs_accuracy_and_the_baseline_says_how_much() {
    // With audits the liar would be found out on the way.
    let args = ["--nodes", "4", "--faulty", "@1:scaled-sign-flip", "--baseline", "--rounds", "64"];
    let args = [&args[..], &["--audits", "0"]].concat();
    let args: Vec<&str> =
        SHORT.into_iter().filter(|arg| *arg != "32" && *arg != "--rounds").chain(args).collect();
    let ended = run(&args);
    assert_eq!(ended.code, 0, "{ended:#?}");
    let result = ended.json();
    assert_eq!(faulty(&result), [(1, "scaled-sign-flip")]);
    let baseline = result["baseline_accuracy"].as_f64().expect("a baseline was run");
    let accuracy = result["accuracy"]["mean"].as_f64().unwrap();
    assert!(accuracy < baseline, "{accuracy} with the fault, {baseline} without");
}

#[test]
fn honest_nodes_end_identical_beside_one_that_breaks_the_protocol() {
    for kind in ["equivocation", "silent", "oversize", "slow-reader", "sybil"] {
        let result = local(&["--nodes", "4", "--faulty", &format!("1:{kind}")]);
        assert_eq!(faulty(&result), [(3, kind)]);
    }
}

#[test]
fn the_table_says_who_misbehaved() {
    let args = ["local", "--model", "softmax", "--rounds", "16", "--nodes", "4"];
    let ended = run(&[&args[..], &["--faulty", "1:foe:2"]].concat());
    assert_eq!(ended.code, 0, "{ended:#?}");
    for say in ["foe:2", "selected", "trust", "IDENTICAL: all 3 honest nodes"] {
        assert!(ended.stdout.contains(say), "{say}: {}", ended.stdout);
    }
}

#[test]
fn casts_that_cannot_be_are_usage_errors_with_the_reason() {
    for (args, says) in [
        (&["--faulty", "1:elie"][..], "known: sign-flip"),
        (&["--faulty", "alie"], "COUNT:KIND"),
        (&["--faulty", "4:alie"], "4 of 4 nodes"),
        (&["--faulty", "2:silent"], "R ≥ 3f + 1"),
        (&["--faulty", "@9:zero"], "no such node"),
        (&["--faulty", "@1:zero,@3:zero", "--family", "ring"], "not connected"),
        (&["--faulty", "1:zero", "--algorithm", "monna"], "record sets"),
        (&["--baseline"], "--faulty"),
    ] {
        let ended = run(&[&["local", "--nodes", "4", "--rounds", "8"], args].concat());
        assert_eq!((ended.code, &*ended.stdout), (2, ""), "{args:?}: {ended:#?}");
        assert!(ended.stderr.contains(says), "{args:?}: {}", ended.stderr);
        assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
    }
}

/// A run of one member, whose node stays when it is through.
fn solo(folder: &Path, args: &[&str]) -> Running {
    let path = folder.join("run.toml");
    let init = ["init", "--model", "softmax", "--members", "1", "--rounds", "16"];
    let ended = run(&[&init[..], &["--out", text(&path)], args].concat());
    assert_eq!(ended.code, 0, "{ended:#?}");
    let mut command = rumormill();
    command.args(["node", "--json", "--no-mdns", "--stay", "--listen", "/ip4/127.0.0.1/tcp/0"]);
    command.args(["--run", text(&path), "--data-dir", text(&folder.join("data"))]);
    let node = Running::start(&mut command);
    node.wait_for("all rounds are certified");
    node
}

#[test]
fn a_running_node_of_a_lab_run_is_told_to_misbehave_and_to_behave() {
    let folder = folder();
    let node = solo(folder.path(), &["--lab"]);
    let directory = folder.path().join("data");
    let told = |args: &[&str]| run(&[args, &["--data-dir", text(&directory)]].concat());
    let status = || told(&["status", "--json"]).json();
    assert_eq!(status()["fault"], Value::Null);
    assert_eq!(status()["round"], 16);
    let mode = std::fs::metadata(directory.join("control")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    for kind in ["sign-flip", "label-flip", "silent", "connection-flood"] {
        let ended = told(&["fault", "set", kind]);
        assert_eq!((ended.code, &*ended.stdout), (0, ""), "{ended:#?}");
        assert_eq!(status()["fault"]["kind"], kind);
    }
    assert_eq!(told(&["fault", "set", "alie", "--factor=-1"]).code, 2);
    let unknown = told(&["fault", "set", "elie"]);
    assert!(unknown.code == 2 && unknown.stderr.contains("sign-flip"), "{unknown:#?}");
    assert_eq!(told(&["fault", "clear"]).code, 0);
    assert_eq!(status()["fault"], Value::Null);
    node.signal("INT");
    assert_eq!(node.end().code, 0);
    assert!(!directory.join("control").exists(), "the socket is gone with the node");
    let ended = told(&["fault", "clear"]);
    assert!(ended.code == 1 && ended.stderr.contains("no node runs"), "{ended:#?}");
}

#[test]
fn a_node_of_any_other_run_refuses_to_misbehave() {
    let folder = folder();
    let node = solo(folder.path(), &[]);
    let directory = folder.path().join("data");
    let ended = run(&["fault", "set", "sign-flip", "--data-dir", text(&directory)]);
    assert_eq!((ended.code, &*ended.stdout), (1, ""), "{ended:#?}");
    assert!(ended.stderr.contains("lab = false"), "{}", ended.stderr);
    node.signal("INT");
    assert_eq!(node.end().code, 0);
    // Nor does its run file.
    let path = folder.path().join("run.toml");
    let whole = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, whole + "\n[faults]\nkind = \"silent\"\n").unwrap();
    let ended = run(&["node", "--run", text(&path), "--data-dir", text(&directory)]);
    assert_eq!(ended.code, 1, "{ended:#?}");
    assert!(ended.stderr.contains("lab = true"), "{}", ended.stderr);
}

#[test]
fn a_run_file_may_make_its_node_misbehave_from_the_start() {
    let folder = folder();
    let path = folder.path().join("run.toml");
    let init = ["init", "--model", "softmax", "--members", "1", "--rounds", "8", "--lab"];
    assert_eq!(run(&[&init[..], &["--out", text(&path)]].concat()).code, 0);
    let whole = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, whole + "\n[faults]\nkind = \"sign-flip\"\nfactor = 1.0\n").unwrap();
    let directory = folder.path().join("data");
    let args = ["node", "--json", "--no-mdns", "--listen", "/ip4/127.0.0.1/tcp/0"];
    let places = ["--run", text(&path), "--data-dir", text(&directory)];
    let ended = run(&[&args[..], &places].concat());
    assert_eq!(ended.code, 0, "{ended:#?}");
    assert_eq!(ended.json()["fault"]["kind"], "sign-flip");
    assert_eq!(ended.json()["faulty"], true);
}
