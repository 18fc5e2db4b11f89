//! Pretrained transformers from outside: made small and random here, trained over sockets, written back.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::{Running, folder, rumormill, run, text};

const WIDTH: usize = 16;
const WORDS: [&str; 10] =
    ["[CLS]", "[SEP]", "[UNK]", "good", "bad", "film", "a", "it", "was", "very"];

/// A BERT of one layer with weights that a seed decides, as a model folder.
fn write_model(folder: &Path, seed: u32) {
    let config = json!({
        "model_type": "bert", "vocab_size": WORDS.len(), "hidden_size": WIDTH,
        "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 2 * WIDTH,
        "hidden_act": "gelu", "max_position_embeddings": 16, "type_vocab_size": 1,
        "layer_norm_eps": 1e-5
    });
    let layer = "encoder.layer.0";
    let mut shapes = vec![
        ("embeddings.word_embeddings.weight".to_owned(), vec![WORDS.len(), WIDTH]),
        ("embeddings.position_embeddings.weight".to_owned(), vec![16, WIDTH]),
        ("embeddings.token_type_embeddings.weight".to_owned(), vec![1, WIDTH]),
    ];
    for name in ["attention.self.query", "attention.self.key", "attention.self.value"]
        .into_iter()
        .chain(["attention.output.dense", "intermediate.dense", "output.dense"])
    {
        let outputs = if name.starts_with("inter") { 2 * WIDTH } else { WIDTH };
        let inputs = if name == "output.dense" { 2 * WIDTH } else { WIDTH };
        shapes.push((format!("{layer}.{name}.weight"), vec![outputs, inputs]));
        shapes.push((format!("{layer}.{name}.bias"), vec![outputs]));
    }
    for name in
        ["embeddings".to_owned(), format!("{layer}.attention.output"), format!("{layer}.output")]
    {
        shapes.push((format!("{name}.LayerNorm.weight"), vec![WIDTH]));
        shapes.push((format!("{name}.LayerNorm.bias"), vec![WIDTH]));
    }
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    let mut state = seed;
    for (name, shape) in shapes {
        let begin = data.len();
        for _ in 0..shape.iter().product() {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let value = (state >> 8) as f32 / (1 << 23) as f32 - 1.0;
            let value = if name.ends_with("LayerNorm.weight") { 1.0 } else { 0.4 * value };
            data.extend(value.to_le_bytes());
        }
        let offsets = [begin, data.len()];
        header.insert(name, json!({ "dtype": "F32", "shape": shape, "data_offsets": offsets }));
    }
    let header = Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.bytes());
    file.extend(data);
    let vocabulary: serde_json::Map<String, Value> =
        WORDS.iter().zip(0..).map(|(word, id)| ((*word).to_owned(), json!(id))).collect();
    let mark = |name: &str| json!({ "SpecialToken": { "id": name, "type_id": 0 } });
    let sequence = json!({ "Sequence": { "id": "A", "type_id": 0 } });
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": { "type": "Whitespace" }, "decoder": null,
        "post_processor": {
            "type": "TemplateProcessing", "single": [mark("[CLS]"), sequence, mark("[SEP]")],
            "pair": [sequence, sequence],
            "special_tokens": {
                "[CLS]": { "id": "[CLS]", "ids": [0], "tokens": ["[CLS]"] },
                "[SEP]": { "id": "[SEP]", "ids": [1], "tokens": ["[SEP]"] }
            }
        },
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]" }
    });
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    fs::write(folder.join("model.safetensors"), file).unwrap();
}

/// Short reviews, good ones with label 1.
fn write_reviews(path: &Path) {
    let mut rows = "label\tsentence\n".to_owned();
    for row in 0..120 {
        let word = if row % 2 == 1 { "good" } else { "bad" };
        let fill = ["a film", "it was", "it was a very", "very"][row / 2 % 4];
        let end = ["", " film", " it was"][row / 8 % 3];
        rows += &format!("{}\t{fill} {word}{end} {}\n", row % 2, "film ".repeat(row / 24));
    }
    fs::write(path, rows).unwrap();
}

/// A model and data in a folder, and the arguments that name them.
fn prepared(folder: &Path, seed: u32) -> Vec<String> {
    let (model, data) = (folder.join(format!("model-{seed}")), folder.join("reviews.tsv"));
    write_model(&model, seed);
    write_reviews(&data);
    ["--weights", text(&model), "--data", text(&data), "--tokens", "16", "--batch", "16"]
        .map(str::to_owned)
        .into()
}

fn with<'a>(before: &[&'a str], args: &'a [String]) -> Vec<&'a str> {
    before.iter().copied().chain(args.iter().map(String::as_str)).collect()
}

#[test]
fn a_language_model_is_trained_over_sockets_and_written_back() {
    let folder = folder();
    let args = prepared(folder.path(), 1);
    let out = folder.path().join("tuned");
    let command = ["local", "--json", "--nodes", "3", "--rounds", "64", "--labels", "0:bad,1:good"];
    let mut command = with(&command, &args);
    command.extend(["--export", text(&out), "--probes-per-round", "8", "--step", "0.02"]);
    let ended = run(&command);
    assert_eq!(ended.code, 0, "{ended:#?}");
    let result = ended.json();
    let loss = |result: &Value| result["loss"]["mean"].as_f64().unwrap();
    assert!(loss(&result) < 0.6, "{result}");
    assert!(ended.stderr.contains("parameters are trained"), "{ended:#?}");
    // Again from the tuned weights, with a step of nearly nothing.
    let mut again = args.clone();
    again[1] = text(&out).to_owned();
    let command = ["local", "--json", "--nodes", "1", "--rounds", "2", "--step", "0.0000001"];
    let mut command = with(&command, &again);
    command.extend(["--labels", "0:bad,1:good"]);
    let ended = run(&command);
    assert_eq!(ended.code, 0, "{ended:#?}");
    let (tuned, read) = (loss(&result), loss(&ended.json()));
    assert!((tuned - read).abs() < 1e-4, "{tuned} {read}");
    assert!(out.join("tokenizer.json").exists() && out.join("config.json").exists());
}

#[test]
fn adapters_and_child_processes_end_identical() {
    let folder = folder();
    let args = prepared(folder.path(), 1);
    let command =
        ["local", "--json", "--nodes", "2", "--rounds", "8", "--lora", "2", "--processes"];
    let mut command = with(&command, &args);
    command.extend(["--head", "linear", "--probes-per-round", "4"]);
    let ended = run(&command);
    assert_eq!(ended.code, 0, "{ended:#?}");
    assert_eq!(ended.json()["agreement"]["identical"], true);
}

#[test]
fn nodes_with_other_weights_are_refused_with_both_hashes() {
    let folder = folder();
    let init = |seed: u32| {
        let args = prepared(folder.path(), seed);
        let out = folder.path().join(format!("run-{seed}.toml"));
        let command =
            ["init", "--members", "2", "--head", "linear", "--rounds", "8", "--out", text(&out)];
        let ended = run(&with(&command, &args));
        assert_eq!(ended.code, 0, "{ended:#?}");
        let file = fs::read_to_string(&out).unwrap();
        let hash = file.lines().find_map(|line| line.strip_prefix("base_hash = ")).unwrap();
        (out.clone(), hash.trim_matches('"').to_owned())
    };
    let ((ours, our_hash), (theirs, their_hash)) = (init(1), init(2));
    assert_ne!(our_hash, their_hash);
    // A node that has other weights at hand than its own run's.
    let other = folder.path().join("model-2");
    let data_dir = folder.path().join("a");
    let ended = run(&[
        "node",
        "--run",
        text(&ours),
        "--data-dir",
        text(&data_dir),
        "--weights",
        text(&other),
    ]);
    assert_eq!(ended.code, 1, "{ended:#?}");
    for part in [&our_hash, &their_hash, "model-2", "holds other weights"] {
        assert!(ended.stderr.contains(part), "{part}: {ended:#?}");
    }
    // Two nodes of runs that begin at different weights.
    let node = |run: &Path, name: &str, extra: &[&str]| {
        let directory = folder.path().join(name);
        let mut command = rumormill();
        command.args(["node", "--no-mdns", "--sync", "never", "--listen", "/ip4/127.0.0.1/tcp/0"]);
        command.args(["--run", text(run), "--data-dir", text(&directory)]).args(extra);
        Running::start(&mut command)
    };
    let first = node(&ours, "b", &[]);
    let line = first.wait_for("listening on");
    let address = line.split_whitespace().find(|word| word.contains("/p2p/")).unwrap().to_owned();
    let stranger = node(&theirs, "c", &["--peer", &address]);
    let said = stranger.wait_for("takes part in another run");
    assert!(said.contains("run.base_hash") && said.contains(&our_hash[..8]), "{said}");
    assert!(said.contains(&their_hash[..8]), "{said}");
}

#[test]
fn mistakes_with_language_models_are_named() {
    let folder = folder();
    let args = prepared(folder.path(), 1);
    let empty = folder.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let rows = folder.path().join("rows.tsv");
    fs::write(&rows, "label\tsentence\n1\tgood\n0\t\n").unwrap();
    let labels = ["--labels", "0:bad,1:good"];
    let hub = if cfg!(feature = "hub") { "from the hub" } else { "--features hub" };
    let no_card = if cfg!(feature = "cuda") { "cannot be used" } else { "--features cuda" };
    for (extra, code, says) in [
        (vec!["--weights", text(&empty)], 1, "no config.json"),
        (vec!["--weights", "hub:model"], 1, "not hub:OWNER/NAME"),
        (vec!["--weights", "hub:owner/model"], 1, hub),
        (vec!["--data", text(&rows)], 1, "line 3: the text is empty"),
        (vec!["--tokens", "17"], 1, "at most 16"),
        (vec!["--train", "decoder.*"], 1, "matches the whole name of no tensor"),
        (vec!["--template", "It was"], 2, "{}"),
        (vec!["--model", "softmax"], 2, "--weights"),
        (vec!["--algorithm", "dadao"], 2, "without gradients"),
        (vec!["--text-column", "review"], 1, "--text-column"),
        (vec!["--labels", "0:bad"], 1, "no word for label \"1\""),
        (vec!["--device", "gpu"], 2, "is no device"),
        (vec!["--device", "cuda:99"], 1, no_card),
    ] {
        let mut command = vec!["local", "--nodes", "1", "--rounds", "1"];
        let is_given = |flag: &str| extra.contains(&flag);
        for pair in args.chunks(2).filter(|pair| !is_given(&pair[0])) {
            command.extend([pair[0].as_str(), pair[1].as_str()]);
        }
        command.extend(labels.iter().filter(|_| !is_given("--labels")));
        command.extend(&extra);
        let ended = run(&command);
        assert_eq!(ended.code, code, "{extra:?}: {ended:#?}");
        assert!(ended.stderr.contains(says), "{extra:?}: {ended:#?}");
    }
}

/// Where there is a card: one node computes on it and one on the processor, and each repeats some of the other's
/// probes.
#[cfg(feature = "cuda")]
#[test]
fn a_card_and_a_processor_end_one_run_alike() {
    let folder = folder();
    let args = prepared(folder.path(), 1);
    let run_file = folder.path().join("run.toml");
    let command =
        ["init", "--members", "2", "--rounds", "16", "--labels", "0:bad,1:good", "--audits", "500"];
    let mut command = with(&command, &args);
    command.extend(["--step", "0.02", "--rounds-per-height", "4", "--out", text(&run_file)]);
    let ended = run(&command);
    assert_eq!(ended.code, 0, "{ended:#?}");
    let alone = ["local", "--nodes", "1", "--rounds", "1", "--device", "cuda"];
    let mut alone = with(&alone, &args);
    alone.extend(["--labels", "0:bad,1:good"]);
    let ended = run(&alone);
    if ended.stderr.contains("cannot be used") {
        println!("skipped: {}", ended.stderr);
        return;
    }
    assert_eq!(ended.code, 0, "{ended:#?}");
    let node = |name: &str, device: &str, extra: &[&str]| {
        let directory = folder.path().join(name);
        let mut command = rumormill();
        command.args(["node", "--no-mdns", "--sync", "never", "--listen", "/ip4/127.0.0.1/tcp/0"]);
        command.args(["--run", text(&run_file), "--data-dir", text(&directory)]);
        command.args(["--device", device]).args(extra);
        Running::start(&mut command)
    };
    let first = node("a", "cpu", &[]);
    let line = first.wait_for("listening on");
    let address = line.split_whitespace().find(|word| word.contains("/p2p/")).unwrap().to_owned();
    let second = node("b", "cuda", &["--peer", &address]);
    let ends = [first, second].map(|node| {
        node.wait_for("all rounds are certified");
        let ended = node.end();
        assert_eq!(ended.code, 0, "{ended:#?}");
        ended.stdout.lines().find(|line| line.starts_with("model ")).unwrap()[..70].to_owned()
    });
    assert_eq!(ends[0], ends[1]);
}
