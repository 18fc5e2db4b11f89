//! `rumormill local --algorithm …`: the vector algorithms over real sockets.

use serde_json::Value;

use crate::support::{Ended, clusters, folder, libsvm, run, shared, text};

/// Runs a vector algorithm with `--json` and checks what holds for all of them.
fn rival(algorithm: &str, args: &[&str]) -> Value {
    let start = ["local", "--json", "--timeout", "100", "--algorithm", algorithm];
    let ended = run(&[&start, args].concat());
    assert_eq!(ended.code, 0, "{ended:#?}");
    let result = ended.json();
    assert_eq!(result["algorithm"], algorithm);
    for null in ["identical", "digest", "state_hash"] {
        assert!(result["agreement"][null].is_null(), "{null}: {result}");
    }
    assert!(result["wire"]["payload_bytes_per_gradient"].is_null());
    for number in ["application_bytes_per_gradient", "transport_bytes_per_gradient"] {
        assert!(result["wire"][number].as_f64().is_some_and(|n| n > 0.0), "{number}: {result}");
    }
    assert!(result["consensus_distance"].as_f64().is_some_and(|d| d >= 0.0), "{result}");
    assert!(result["exchanges"].as_u64().is_some_and(|n| n > 0), "{result}");
    let lines = result["per_node"].as_array().expect("per_node is a list");
    assert_eq!(lines.len() as u64, result["nodes"].as_u64().unwrap());
    for line in lines {
        for null in ["digest", "state_hash", "certified"] {
            assert!(line[null].is_null(), "{null}: {line}");
        }
        assert!(line["probes"].as_u64().is_some_and(|n| n > 0), "{line}");
        assert!(line["train_loss"].is_f64() && line["accuracy"].is_f64(), "{line}");
    }
    result
}

fn worst_train_loss(result: &Value) -> f64 {
    let lines = result["per_node"].as_array().unwrap().iter();
    lines.map(|line| line["train_loss"].as_f64().unwrap()).fold(f64::NEG_INFINITY, f64::max)
}

/// Two clusters as a LIBSVM file; returns its folder and path.
fn two_clusters() -> (tempfile::TempDir, String) {
    let folder = folder();
    let path = folder.path().join("train.libsvm");
    std::fs::write(&path, libsvm(&clusters(400, 0))).unwrap();
    let path = text(&path).to_owned();
    (folder, path)
}

#[test]
fn every_vector_algorithm_learns_the_digits_over_sockets() {
    // Chance is 0.1.
    for (algorithm, rounds) in [("acid", "150"), ("gossip", "150"), ("monna", "150")] {
        let model = ["--model", "mlp:16", "--nodes", "4", "--rounds", rounds];
        let result = rival(algorithm, &model);
        let accuracy = result["accuracy"]["min"].as_f64().unwrap();
        assert!(accuracy > 0.4, "{algorithm}: {accuracy}");
    }
    let result = rival("dadao", &["--model", "softmax", "--nodes", "4", "--rounds", "150"]);
    assert!(result["accuracy"]["min"].as_f64().unwrap() > 0.4, "{}", result["accuracy"]);
}

/// The least penalized loss by slow, obvious gradient descent is what DADAO must reach.
#[test]
fn dadao_brings_all_nodes_to_the_optimum_in_whole_vectors_or_in_bytes() {
    let (_folder, data) = two_clusters();
    let base = ["--data", &data, "--model", "logistic:0.1:no-bias", "--nodes", "5"];
    let dense = rival("dadao", &[&base[..], &["--rounds", "400"]].concat());
    assert!(dense["consensus_distance"].as_f64().unwrap() < 1e-4, "{dense}");
    // Twice the time changes the loss no more: it is the optimum.
    let longer = rival("dadao", &[&base[..], &["--rounds", "800"]].concat());
    let (short, long) = (worst_train_loss(&dense), worst_train_loss(&longer));
    assert!((short - long).abs() < 1e-7, "{short} {long}");
    let bytes = rival("one-byte-dadao", &[&base[..], &["--rounds", "400"]].concat());
    assert!((worst_train_loss(&bytes) - long).abs() < 1e-6, "{} {long}", worst_train_loss(&bytes));
}

#[test]
fn f32_vectors_take_half_the_bytes() {
    let bytes = |precision: &str| {
        let args = ["--model", "mlp:16", "--nodes", "3", "--rounds", "60", "--unit-ms", "4"];
        let result = rival("gossip", &[&args[..], &["--precision", precision]].concat());
        let exchanges = result["exchanges"].as_f64().unwrap();
        let lines = result["per_node"].as_array().unwrap().iter();
        lines.map(|line| line["bytes_out"].as_f64().unwrap()).sum::<f64>() / exchanges
    };
    let ratio = bytes("f64") / bytes("f32");
    // Hello and farewell are a few bytes among kilobytes.
    assert!((1.9..2.1).contains(&ratio), "{ratio}");
}

#[test]
fn the_table_names_distance_and_worst_loss_and_the_trace_is_written() {
    let (folder, data) = two_clusters();
    let trace = folder.path().join("trace.csv");
    let args = ["local", "--algorithm", "dadao", "--data", &data, "--model", "logistic:0.1"];
    let more = ["--nodes", "3", "--rounds", "300", "--unit-ms", "3", "--trace", text(&trace)];
    let ended = run(&[&args[..], &more].concat());
    assert_eq!(ended.code, 0, "{ended:#?}");
    assert!(ended.stdout.contains("CLOSE to") && ended.stdout.contains("worst node"), "{ended:#?}");
    let written = std::fs::read_to_string(&trace).unwrap();
    let mut lines = written.lines();
    let header = "time,gradients,exchanges,bytes,loss_worst,loss_mean,consensus_distance";
    assert_eq!(lines.next(), Some(header));
    let losses: Vec<f64> =
        lines.map(|line| line.split(',').nth(4).unwrap().parse().unwrap()).collect();
    assert!(losses.len() > 5 && losses[0] > *losses.last().unwrap(), "{written}");
}

#[test]
fn a_diverging_run_ends_with_its_verdict_and_without_nan_in_the_table() {
    let (_folder, data) = two_clusters();
    let args = ["local", "--algorithm", "gossip", "--data", &data, "--model", "linear"];
    let more = ["--nodes", "3", "--rounds", "4000", "--unit-ms", "1", "--step", "1e6"];
    let ended: Ended = run(&[&args[..], &more].concat());
    assert_eq!(ended.code, 1, "{ended:#?}");
    assert!(ended.stdout.contains("DIVERGED"), "{ended:#?}");
    assert!(!ended.stdout.contains("NaN"), "{ended:#?}");
}

/// Optimum 0.37272374686393 (Newton's method, gradient below 1e-14).
#[test]
fn dadao_reaches_a9a_s_optimum_to_1e_4_over_sockets() {
    let Some(data) = shared("data/libsvm/a9a.gz") else { return };
    let test = shared("data/libsvm/a9a.t.gz").expect("both files come together");
    let data = ["--data", text(&data), "--test", text(&test), "--format", "libsvm"];
    let more = ["--model", "logistic:0.01:no-bias", "--rounds", "700"];
    let result = rival("dadao", &[&data[..], &more].concat());
    let excess = worst_train_loss(&result) - 0.372_723_746_863_93;
    assert!((-1e-12..1e-4).contains(&excess), "{excess}");
}
