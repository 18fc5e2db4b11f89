//! `rumormill local`: graphs, data, models, selection rules, and its machine-readable contract.

use serde_json::Value;

use crate::support::{
    Ended, Running, clusters, csv, folder, gzip, libsvm, rumormill, run, shared, text,
    write_idx_folder,
};

/// Few rounds of a small model: enough to pass every stage of a run.
const SHORT: [&str; 4] = ["--model", "softmax", "--rounds", "16"];

/// Runs `local --json` and checks everything that the contract says of any run.
fn local(args: &[&str]) -> Value {
    let ended = run(&[&["local", "--json", "--timeout", "100"], args].concat());
    let result = identical(&ended);
    check_contract(&result);
    result
}

fn identical(ended: &Ended) -> Value {
    assert_eq!(ended.code, 0, "{ended:#?}");
    let result = ended.json();
    assert_eq!(result["agreement"]["identical"], true, "{result}");
    result
}

/// Keys of an object, in alphabetical order.
fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = value.as_object().expect("an object").keys().map(|k| &**k).collect();
    keys.sort_unstable();
    keys
}

fn is_hash(value: &Value) -> bool {
    value.as_str().is_some_and(|hash| {
        hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    })
}

fn check_contract(result: &Value) {
    let nodes = result["nodes"].as_u64().expect("nodes is a whole number") as usize;
    assert_eq!(result["honest"], nodes);
    for whole in ["rounds", "probes"] {
        assert!(result[whole].as_u64().is_some_and(|n| n > 0), "{whole}: {result}");
    }
    for number in ["seconds", "idle_fraction"] {
        assert!(result[number].as_f64().is_some_and(|n| n >= 0.0), "{number}: {result}");
    }
    assert!(result["idle_fraction"].as_f64().unwrap() <= 1.0);
    let accuracy = |name: &str| result["accuracy"][name].as_f64().expect("a number");
    assert!(0.0 <= accuracy("min") && accuracy("max") <= 1.0);
    assert!(
        accuracy("min") <= accuracy("mean") + 1e-9 && accuracy("mean") <= accuracy("max") + 1e-9
    );
    assert!(result["loss"]["mean"].as_f64().is_some_and(|loss| loss >= 0.0));
    assert!(result["agreement"]["identical"].is_boolean());
    assert!(is_hash(&result["agreement"]["digest"]) && is_hash(&result["agreement"]["state_hash"]));
    assert_eq!(
        keys(&result["wire"]),
        [
            "application_bytes_per_gradient",
            "payload_bytes_per_gradient",
            "transport_bytes_per_gradient"
        ]
    );
    let lines = result["per_node"].as_array().expect("per_node is a list");
    assert_eq!(lines.len(), nodes);
    for (index, line) in lines.iter().enumerate() {
        assert_eq!(line["index"], index);
        assert!(line["peer_id"].as_str().is_some_and(|id| id.starts_with("12D3KooW")), "{line}");
        assert_eq!(line["faulty"], false);
        assert!(line["accuracy"].is_f64(), "{line}");
        assert_eq!(line["round"], result["rounds"]);
        assert_eq!(line["digest"], result["agreement"]["digest"]);
        for whole in ["probes", "bytes_in", "bytes_out"] {
            assert!(line[whole].is_u64(), "{whole}: {line}");
        }
    }
    let probes = lines.iter().map(|line| line["probes"].as_u64().unwrap()).sum::<u64>();
    assert_eq!(result["probes"], probes);
}

fn accuracy(result: &Value) -> f64 {
    result["accuracy"]["min"].as_f64().unwrap()
}

fn application_bytes(result: &Value) -> f64 {
    result["wire"]["application_bytes_per_gradient"].as_f64().unwrap()
}

#[test]
fn json_is_one_object_with_the_fields_of_the_contract() {
    let result = local(&[&SHORT[..], &["--nodes", "3"]].concat());
    let contract = [
        "accuracy",
        "agreement",
        "honest",
        "idle_fraction",
        "loss",
        "nodes",
        "per_node",
        "probes",
        "rounds",
        "seconds",
        "wire",
    ];
    // More may be said, nothing less.
    assert!(contract.iter().all(|key| keys(&result).contains(key)), "{:?}", keys(&result));
    for (object, fields) in [
        ("accuracy", &["max", "mean", "min"][..]),
        ("loss", &["mean"]),
        ("agreement", &["digest", "identical", "state_hash"]),
    ] {
        assert_eq!(keys(&result[object]), fields);
    }
}

#[test]
fn just_one_byte_ends_identical_with_one_probe_a_direction() {
    let result = local(&[&SHORT[..], &["--algorithm", "justonebyte", "--nodes", "4"]].concat());
    assert_eq!(result["algorithm"], "justonebyte");
    assert_eq!(result["wire"]["payload_bytes_per_gradient"], 1.0);
    // A barrier a round: nobody makes more or fewer than 32 probes in each of the 16 rounds.
    assert_eq!(result["probes"], 4 * 16 * 32);
}

/// The run of the README: 8 nodes on a ring, the built-in digits. Chance is 0.1.
#[test]
fn default_settings_send_one_byte_a_gradient_in_at_most_four_and_learn_the_digits() {
    let result = local(&["--rounds", "200"]);
    assert_eq!(result["nodes"], 8);
    assert_eq!(result["wire"]["payload_bytes_per_gradient"], 1.0);
    assert!(application_bytes(&result) <= 4.0, "{}", result["wire"]);
    let transport = result["wire"]["transport_bytes_per_gradient"].as_f64().unwrap();
    assert!(transport > application_bytes(&result), "{}", result["wire"]);
    assert!(accuracy(&result) > 0.5, "{}", result["accuracy"]);
}

#[test]
fn without_json_stdout_is_a_table_with_one_verdict_line() {
    let ended = run(&[&["local", "--nodes", "3"], &SHORT[..]].concat());
    assert_eq!(ended.code, 0, "{ended:#?}");
    let lines: Vec<&str> = ended.stdout.lines().collect();
    for word in ["accuracy", "loss", "probes", "bytes in", "bytes out", "digest"] {
        assert!(lines[0].contains(word), "{word}: {}", ended.stdout);
    }
    let digest = |line: &str| line.split_whitespace().last().unwrap().to_owned();
    assert!(lines[1..4].iter().all(|line| digest(line) == digest(lines[1])), "{}", ended.stdout);
    let verdicts: Vec<_> = lines.iter().filter(|line| line.contains("IDENTICAL")).collect();
    assert_eq!(verdicts.len(), 1, "{}", ended.stdout);
    assert!(verdicts[0].starts_with("IDENTICAL: all 3 honest nodes"), "{}", verdicts[0]);
    assert!(verdicts[0].contains("1 byte a gradient"), "{}", verdicts[0]);
}

#[test]
fn every_family_ends_identical() {
    for (family, nodes) in
        [("complete", "5"), ("ring", "5"), ("line", "4"), ("star", "5"), ("grid", "6")]
    {
        let result = local(&[&SHORT[..], &["--family", family, "--nodes", nodes]].concat());
        assert_eq!(result["nodes"].to_string(), nodes, "{family}");
        assert_eq!(result["wire"]["payload_bytes_per_gradient"], 1.0, "{family}");
    }
}

#[test]
fn one_node_trains_alone_and_sends_nothing() {
    let result = local(&[&SHORT[..], &["--nodes", "1"]].concat());
    assert_eq!(result["wire"]["application_bytes_per_gradient"], Value::Null);
    assert_eq!(result["per_node"][0]["bytes_out"], 0);
    assert!(accuracy(&result) > 0.2, "{result}");
}

#[test]
fn two_and_three_nodes_of_every_family_end_identical() {
    for nodes in ["2", "3"] {
        for family in ["complete", "ring", "star"] {
            let result = local(&[&SHORT[..], &["--family", family, "--nodes", nodes]].concat());
            assert_eq!(result["nodes"].to_string(), nodes, "{family}");
        }
    }
}

#[test]
fn graphs_come_from_petgraph_json_and_edge_lists() {
    let folder = folder();
    let json = folder.path().join("graph.json");
    let edges = r#"{"nodes": ["a", "b", "c", "d"], "node_holes": [], "edge_property": "undirected",
        "edges": [[0, 1, null], [1, 2, null], [2, 3, null], [3, 0, null]]}"#;
    std::fs::write(&json, edges).unwrap();
    let list = folder.path().join("graph.edges");
    std::fs::write(&list, "# a triangle and a tail\n0 1\n1 2\n2 0\n2 3\n").unwrap();
    for file in [&json, &list] {
        let result = local(&[&SHORT[..], &["--topology", text(file)]].concat());
        assert_eq!(result["nodes"], 4, "{}", file.display());
        let agreed = local(&[&SHORT[..], &["--topology", text(file), "--nodes", "4"]].concat());
        assert_eq!(agreed["nodes"], 4, "{}", file.display());
    }
}

/// Every link is noted once at each end, so a node is named as often as its degree.
#[test]
fn nodes_talk_to_their_neighbors_in_the_graph_only() {
    let degrees: [(&str, [usize; 5]); 3] =
        [("star", [4, 1, 1, 1, 1]), ("line", [1, 2, 2, 2, 1]), ("complete", [4; 5])];
    for (family, expected) in degrees {
        let args = ["local", "--json", "--log", "debug", "--nodes", "5", "--family", family];
        let ended = run(&[&args[..], &SHORT[..]].concat());
        let result = identical(&ended);
        let found: Vec<usize> = (0..5)
            .map(|index| {
                let peer = result["per_node"][index]["peer_id"].as_str().unwrap();
                let said = format!(" connected peer={peer}");
                ended.stderr.lines().filter(|line| line.contains(&said)).count()
            })
            .collect();
        assert_eq!(found, expected, "{family}");
    }
}

#[test]
fn private_shards_end_identical_and_learn() {
    for shards in ["public", "iid", "dirichlet:1"] {
        let args = ["--nodes", "4", "--model", "softmax", "--rounds", "48", "--shards", shards];
        let result = local(&args);
        assert!(accuracy(&result) > 0.3, "{shards}: {}", result["accuracy"]);
    }
}

#[test]
fn every_selection_rule_ends_identical_and_learns() {
    for rule in rumormill::selection::RULES.map(rumormill::selection::Rule::name) {
        let args = ["--nodes", "5", "--model", "softmax", "--rounds", "48", "--selection", rule];
        let result = local(&args);
        assert!(accuracy(&result) > 0.3, "{rule}: {}", result["accuracy"]);
    }
}

#[test]
fn quic_carries_a_run() {
    let result = local(&[&SHORT[..], &["--nodes", "4", "--quic"]].concat());
    assert_eq!(result["wire"]["payload_bytes_per_gradient"], 1.0);
}

#[test]
fn child_processes_end_identical_over_tcp_and_quic() {
    for quic in [&[][..], &["--quic"]] {
        let args = ["--nodes", "3", "--processes"];
        let result = local(&[&SHORT[..], &args, quic].concat());
        assert_eq!(result["nodes"], 3);
        assert_eq!(result["wire"]["payload_bytes_per_gradient"], 1.0);
    }
}

#[test]
fn csv_and_libsvm_tables_are_learned_by_their_suffix_or_by_format() {
    let folder = folder();
    let rows = clusters(400, 0);
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        text(&path).to_owned()
    };
    let plain = csv(&rows);
    let headless = plain.split_once('\n').unwrap().1;
    for (data, extra) in [
        (write("a.csv", plain.as_bytes()), &[][..]),
        (write("headless.csv", headless.as_bytes()), &[]),
        (write("a.csv.gz", &gzip(plain.as_bytes())), &[]),
        (write("a.libsvm", libsvm(&rows).as_bytes()), &[]),
        (write("csv.data", plain.as_bytes()), &["--format", "csv"]),
        (write("svm.csv", libsvm(&rows).as_bytes()), &["--format", "libsvm"]),
    ] {
        for model in ["logistic", "softmax", "mlp:4"] {
            let args = ["--nodes", "2", "--rounds", "64", "--model", model, "--data", &data];
            let result = local(&[&args[..], extra].concat());
            assert!(accuracy(&result) > 0.8, "{data} {model}: {}", result["accuracy"]);
        }
    }
}

#[test]
fn idx_folders_are_learned_packed_or_not() {
    for gz in [false, true] {
        let folder = folder();
        write_idx_folder(folder.path(), gz);
        let data = text(folder.path());
        let args = ["--nodes", "2", "--rounds", "64", "--model", "softmax", "--data", data];
        let result = local(&args);
        assert!(accuracy(&result) > 0.6, "gz {gz}: {}", result["accuracy"]);
    }
}

/// The held-out rows say the opposite of the training rows and outnumber them four to one: who
/// trains on them scores high.
#[test]
fn held_out_rows_are_not_trained_on() {
    let folder = folder();
    let (train, test) = (folder.path().join("train.csv"), folder.path().join("test.csv"));
    std::fs::write(&train, csv(&clusters(200, 0))).unwrap();
    let opposite: Vec<_> = clusters(800, 200).iter().map(|&(x, kind)| (x, !kind)).collect();
    std::fs::write(&test, csv(&opposite)).unwrap();
    let args = ["--data", text(&train), "--test", text(&test)];
    let result =
        local(&[&args[..], &["--nodes", "2", "--model", "logistic", "--rounds", "24"]].concat());
    assert!(result["accuracy"]["max"].as_f64().unwrap() < 0.2, "{}", result["accuracy"]);
}

#[test]
fn the_same_seed_makes_the_same_run_and_another_seed_another_base_model() {
    let folder = folder();
    let init = |name: &str, seed: &str| {
        let path = folder.path().join(name);
        let ended = run(&["init", "--out", text(&path), "--model", "mlp:8", "--seed", seed]);
        assert_eq!((ended.code, &*ended.stdout), (0, ""), "{ended:#?}");
        std::fs::read_to_string(path).unwrap()
    };
    let line = |text: &str, key: &str| {
        text.lines()
            .find(|line| line.starts_with(key))
            .unwrap_or_else(|| panic!("{key}"))
            .to_owned()
    };
    let (first, again, other) = (init("a", "7"), init("b", "7"), init("c", "8"));
    assert_eq!(first, again);
    assert_eq!(line(&first, "data_hash"), line(&other, "data_hash"));
    assert_ne!(line(&first, "base_hash"), line(&other, "base_hash"));
}

#[test]
fn the_step_falls_from_where_the_flag_says() {
    let folder = folder();
    let path = folder.path().join("run.toml");
    for (flags, line) in [
        (&[][..], "decay_from_permille = 700"),
        (&["--decay-from", "0"], "decay_from_permille = 0"),
        (&["--decay-from", "12.5"], "decay_from_permille = 125"),
    ] {
        let common = ["init", "--force", "--out", text(&path), "--model", "softmax"];
        let ended = run(&[&common[..], flags].concat());
        assert_eq!(ended.code, 0, "{ended:#?}");
        let written = std::fs::read_to_string(&path).unwrap();
        assert!(written.lines().any(|found| found == line), "{line}: {written}");
    }
}

/// Short: two heights on the real images. That the figure of the README is reached is measured,
/// not tested.
#[test]
fn mnist_is_read_and_learned() {
    let Some(mnist) = shared("data/mnist") else { return };
    let args = ["--data", text(&mnist), "--model", "mlp:32", "--nodes", "4", "--rounds", "64"];
    let result = local(&args);
    assert!(accuracy(&result) > 0.4, "{}", result["accuracy"]);
}

#[test]
fn a_line_of_progress_is_shown_and_an_interrupted_run_reports_what_it_has() {
    let args = ["local", "--json", "--nodes", "3", "--rounds", "100000", "--model", "softmax"];
    let running = Running::start(rumormill().args(args));
    running.wait_for("round ");
    running.wait_for("/100000");
    running.signal("INT");
    let ended = running.end();
    assert_eq!(ended.code, 3, "the end was not certified: {ended:#?}");
    let result = ended.json();
    assert_eq!(result["agreement"]["identical"], false);
    assert!(result["probes"].as_u64().unwrap() > 0);
}
