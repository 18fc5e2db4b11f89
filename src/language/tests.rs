//! Language models on small folders made here: against published numbers, and against themselves.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::model;
use super::objective::{outputs_of, tokens_of, words_of};
use super::spec::LanguageSpec;
use super::view::{Place, Source};
use super::*;
use super::{op, view};
use candle_core::{DType, Device};

use crate::data::source::Found;
use crate::data::text::{Columns, TextFormat};
use crate::data::{Dataset, text};
use crate::direction::Direction;
use crate::id::{Round, RunId, Slot};
use crate::objective::{Objective, Scratch, Split};
use crate::params::{Payout, State, TensorSpec, coefficient};
use crate::sample::KeyedRng;

const VOCABULARY: usize = 24;

/// A folder in memory.
type Files = BTreeMap<PathBuf, Vec<u8>>;

fn read(files: &Files, path: &str) -> Result<Folder, FolderError> {
    Folder::read(Path::new(path), &|path| match files.get(path) {
        Some(bytes) => Ok(Found::bytes(bytes.clone())),
        None if files.keys().any(|file| file.starts_with(path)) => Ok(Found::Folder),
        None => Err(io::ErrorKind::NotFound.into()),
    })
}

/// One word a token; an encoder's text stands between two marks, a decoder's behind one.
fn tokenizer(encoder: bool) -> Value {
    let words = ["[CLS]", "[SEP]", "[UNK]", "bad", "good", "film", "a", "very", "not", "it", "was"];
    let vocabulary: serde_json::Map<String, Value> =
        words.iter().zip(0..).map(|(word, id)| ((*word).to_owned(), json!(id))).collect();
    let special = |name: &str| json!({ "SpecialToken": { "id": name, "type_id": 0 } });
    let text = json!({ "Sequence": { "id": "A", "type_id": 0 } });
    let single = match encoder {
        true => json!([special("[CLS]"), text, special("[SEP]")]),
        false => json!([special("[CLS]"), text]),
    };
    let mark = |id: u32, name: &str| {
        (name.to_owned(), json!({ "id": name, "ids": [id], "tokens": [name] }))
    };
    let marks: serde_json::Map<String, Value> =
        [mark(0, "[CLS]"), mark(1, "[SEP]")].into_iter().collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": { "type": "Whitespace" },
        "post_processor": {
            "type": "TemplateProcessing", "single": single, "pair": [text, text], "special_tokens": marks
        },
        "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]" }
    })
}

fn config(model_type: &str) -> Value {
    match model_type {
        "distilbert" => json!({
            "model_type": model_type, "vocab_size": VOCABULARY, "dim": 16, "n_layers": 2, "n_heads": 2,
            "hidden_dim": 32, "activation": "gelu", "max_position_embeddings": 24,
            "initializer_range": 0.02, "pad_token_id": 0
        }),
        "bert" | "roberta" => json!({
            "model_type": model_type, "vocab_size": VOCABULARY, "hidden_size": 16,
            "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
            "hidden_act": "gelu", "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
            "max_position_embeddings": 26, "type_vocab_size": 2, "initializer_range": 0.02,
            "layer_norm_eps": 1e-5, "pad_token_id": 1, "position_embedding_type": "absolute"
        }),
        _ => json!({
            "model_type": model_type, "vocab_size": VOCABULARY, "hidden_size": 16,
            "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "max_position_embeddings": 24, "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": model_type == "llama",
            "sliding_window": if model_type == "mistral" { 3 } else { 24 }, "max_window_layers": 2,
            "use_sliding_window": false
        }),
    }
}

type Named = Vec<(String, Vec<usize>, Vec<f32>)>;

/// Random weights for a configuration, as a file.
fn weights(config: &Value, prefix: &str) -> Named {
    let parsed = Config::parse(config.to_string().as_bytes()).unwrap();
    let mut rng = KeyedRng::from_seed("rumormill v1 test", 7, 0);
    let tensors = model::tensors(&parsed).into_iter();
    let drawn = tensors.map(|(name, shape)| {
        let offset = if name.contains("orm") && name.ends_with("weight") { 1.0 } else { 0.0 };
        let values = (0..shape.iter().product()).map(|_| offset + rng.symmetric(0.5)).collect();
        let prefix = if name.starts_with("lm_head") { "" } else { prefix };
        (format!("{prefix}{name}"), shape, values)
    });
    drawn.collect()
}

fn safetensors(named: &Named) -> Vec<u8> {
    let bytes: Vec<Vec<u8>> = named
        .iter()
        .map(|(_, _, values)| values.iter().flat_map(|value| value.to_le_bytes()).collect())
        .collect();
    let views = named.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
        let view =
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes);
        (name.clone(), view.unwrap())
    });
    safetensors::serialize(views, None).unwrap()
}

fn folder_files(model_type: &str, prefix: &str) -> Files {
    let config = config(model_type);
    let encoder = model_type.contains("bert");
    [
        ("m/config.json", config.to_string().into_bytes()),
        ("m/tokenizer.json", tokenizer(encoder).to_string().into_bytes()),
        ("m/model.safetensors", safetensors(&weights(&config, prefix))),
    ]
    .map(|(name, bytes)| (PathBuf::from(name), bytes))
    .into()
}

const ROWS: &str =
    "a very good film\tpos\nit was not good\tneg\nbad\tneg\nnot a very bad film it was\tpos\n";

fn dataset(rows: &str) -> Dataset {
    let raw = text::parse(rows.as_bytes(), TextFormat::Tsv, &Columns::default()).unwrap();
    Dataset::assemble("rows", raw.clone(), Some(raw)).unwrap()
}

fn passages() -> Dataset {
    let raw = text::parse(b"a good film\n", TextFormat::Plain, &Columns::default()).unwrap();
    let more: String = (0..40).map(|_| "it was not a very good film\n").collect();
    let other = text::parse(more.as_bytes(), TextFormat::Plain, &Columns::default()).unwrap();
    Dataset::assemble("passages", other, Some(raw)).unwrap()
}

fn joined(
    files: &Files,
    spec: &str,
    data: &Dataset,
) -> Result<(LanguageModel, State), LanguageError> {
    let spec: LanguageSpec = spec.parse().unwrap();
    let model = LanguageModel::new(&read(files, "m")?, &spec, data)?;
    let state = State::from_base(model.tensors(), model.base(1)).unwrap();
    Ok((model, state))
}

const WORDS: &str = "labels=pos:good,neg:bad;tokens=24";

/// How far losses may be apart whose texts went through products of different sizes: these add in another
/// order, and logits are 20 times cosines, each rounded to 10⁻⁷.
const ROUNDING: f64 = 1e-5;

fn close(ours: &[f32], theirs: &[f32], what: &str) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    for (ours, theirs) in ours.iter().zip(theirs) {
        assert!((ours - theirs).abs() < 2e-5, "{what}: {ours} {theirs}");
    }
}

#[test]
fn a_sliding_window_hides_what_is_far_back() {
    let files = folder_files("mistral", "model.");
    let (model, state) = joined(&files, &format!("classify;{WORDS}"), &dataset(ROWS)).unwrap();
    let wide = {
        let mut config = config("mistral");
        config["sliding_window"] = Value::Null;
        let mut files = files.clone();
        files.insert("m/config.json".into(), config.to_string().into_bytes());
        joined(&files, &format!("classify;{WORDS}"), &dataset(ROWS)).unwrap()
    };
    // Three tokens and their mark: only the longer texts see a difference.
    close(&outputs_of(&model, &state, 2), &outputs_of(&wide.0, &wide.1, 2), "short");
    assert_ne!(outputs_of(&model, &state, 3), outputs_of(&wide.0, &wide.1, 3));
}

#[test]
fn a_probe_is_the_losses_at_the_ends_and_the_same_every_time() {
    for (model_type, spec) in [("bert", "classify"), ("llama", "classify"), ("qwen2", "causal")] {
        let encoder = model_type == "bert";
        let files = folder_files(model_type, if encoder { "bert." } else { "model." });
        let data = if spec == "causal" { passages() } else { dataset(ROWS) };
        let words = if spec == "causal" { "tokens=24" } else { WORDS };
        let (model, state) = joined(&files, &format!("{spec};{words}"), &data).unwrap();
        let direction = Direction::new(&RunId([3; 32]), Round(1), Slot(0));
        let mut ends = [vec![0.0; state.layout().dim()], vec![0.0; state.layout().dim()]];
        let [plus, minus] = &mut ends;
        state.write_pair(&direction, -6, plus, minus);
        let mut scratch = Scratch::default();
        let batch = [1, 0, 1];
        let probe = model.probe(&state, &direction, -6, &batch, &mut scratch);
        let losses = model.loss_pair(plus, minus, &batch, &mut scratch);
        let again = model.probe(&state, &direction, -6, &batch, &mut Scratch::default());
        assert_eq!((probe, probe), (losses, again), "{model_type}");
        assert!(probe.0.is_finite() && probe.0 != probe.1, "{model_type} {probe:?}");
    }
}

/// Halves of layers share the room for their weights, and of tables rows are written for each batch.
#[test]
fn what_earlier_probes_left_is_never_read() {
    for model_type in ["bert", "roberta", "distilbert", "llama", "qwen2"] {
        let prefix = if model_type.contains("bert") { "" } else { "model." };
        let files = folder_files(model_type, prefix);
        let fresh = || joined(&files, &format!("classify;{WORDS}"), &dataset(ROWS)).unwrap();
        let (model, state) = fresh();
        let mut scratch = Scratch::default();
        for (round, batch) in [&[2][..], &[1, 2], &[0, 3], &[2, 0]].into_iter().enumerate() {
            let direction = Direction::new(&RunId([3; 32]), Round(round as u64), Slot(0));
            let used = model.probe(&state, &direction, -6, batch, &mut scratch);
            let new = model.probe(&state, &direction, -6, batch, &mut Scratch::default());
            let mut ends = [vec![0.0; state.layout().dim()], vec![0.0; state.layout().dim()]];
            let [plus, minus] = &mut ends;
            state.write_pair(&direction, -6, plus, minus);
            let whole = model.loss_pair(plus, minus, batch, &mut Scratch::default());
            assert_eq!((used, new), (whole, whole), "{model_type} {batch:?}");
        }
        let used = model.quality(&state, Split::Test, &mut scratch);
        let new = fresh().0.quality(&state, Split::Test, &mut Scratch::default());
        assert_eq!(used, new, "{model_type}");
    }
}

#[test]
fn both_ends_of_a_large_tensor_are_written_in_chunks_as_in_one() {
    let base: Vec<f32> = (0..70_000).map(|at| at as f32 / 7e4).collect();
    let specs = vec![TensorSpec::new("a", &[690, 100]), TensorSpec::new("b", &[1_000])];
    let state = State::from_base(specs, base).unwrap();
    let direction = Direction::new(&RunId([3; 32]), Round(1), Slot(0));
    let mut ends = [vec![0.0; 70_000], vec![0.0; 70_000]];
    let [plus, minus] = &mut ends;
    state.write_pair(&direction, -6, plus, minus);
    let room = candle_core::Tensor::zeros((2, 70_100), DType::F32, &Device::Cpu).unwrap();
    let places = [(1, 10, 1_000), (0, 1_064, 69_000)];
    let places = places.map(|(tensor, at, len)| Place { tensor, at, len });
    let write = |source: Source<'_>| {
        room.inplace_op1(&op::Write { source: &source, places: &places }).unwrap();
        [0, 1].map(|end| {
            let room = op::with(&room.get(end).unwrap(), <[f32]>::to_vec).unwrap();
            assert_eq!([&room[..10], &room[1_010..1_064], &room[70_064..]].concat(), [0.0; 100]);
            [&room[1_064..70_064], &room[10..1_010]].concat()
        })
    };
    assert_eq!(write(Source::Both(&state, &direction, -6)), ends);
    let mut view = vec![0.0; 70_000];
    state.write_view(&mut view);
    let [_, minus] = ends;
    assert_eq!(write(Source::One(&state, None)), [view, minus]);
}

/// More rows than a thread writes at a time, some of them neighbors.
#[test]
fn rows_of_a_table_are_those_of_the_whole() {
    for model_type in ["bert", "llama"] {
        let prefix = if model_type == "bert" { "" } else { "model." };
        let files = folder_files(model_type, prefix);
        let (model, state) = joined(&files, &format!("classify;{WORDS}"), &dataset(ROWS)).unwrap();
        let direction = Direction::new(&RunId([3; 32]), Round(1), Slot(0));
        let dim = state.layout().dim();
        let [mut plus, mut minus, mut view] = [vec![0.0; dim], vec![0.0; dim], vec![0.0; dim]];
        state.write_pair(&direction, -6, &mut plus, &mut minus);
        state.write_view(&mut view);
        let is_words = |name: &str| {
            name.ends_with("word_embeddings.weight") || name.ends_with("embed_tokens.weight")
        };
        let mut tensors = state.layout().tensors().iter();
        let words = tensors.find(|tensor| is_words(&tensor.name)).unwrap();
        let width = words.shape[1];
        let numbers: Vec<u32> =
            (0..VOCABULARY as u32).filter(|row| ![3, 6, 15, 18].contains(row)).collect();
        let expected = |all: &[f32]| -> Vec<f32> {
            let row = |row: &u32| &all[words.offset + *row as usize * width..][..width];
            numbers.iter().flat_map(row).copied().collect()
        };
        let both = Source::Both(&state, &direction, -6);
        assert_eq!(words_of(&model, &both, &numbers), [expected(&plus), expected(&minus)]);
        assert_eq!(words_of(&model, &Source::One(&state, None), &numbers), [expected(&view)]);
    }
}

#[test]
fn losses_do_not_depend_on_how_many_threads_share_the_texts() {
    for (model_type, spec) in [("bert", "classify"), ("llama", "classify"), ("qwen2", "causal")] {
        let prefix = if model_type == "bert" { "" } else { "model." };
        let files = folder_files(model_type, prefix);
        let data = if spec == "causal" { passages() } else { dataset(ROWS) };
        let words = if spec == "causal" { "tokens=24" } else { WORDS };
        let (model, state) = joined(&files, &format!("{spec};{words}"), &data).unwrap();
        let direction = Direction::new(&RunId([3; 32]), Round(0), Slot(0));
        let losses = |threads: usize, batch: &[u32]| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| model.probe(&state, &direction, -6, batch, &mut Scratch::default()))
        };
        let few = [0, 3, 2, 1, 2];
        let one = losses(1, &few);
        // More tokens than a pass has, of the same texts.
        let many: Vec<u32> = few.iter().copied().cycle().take(1000).collect();
        for threads in [1, 2, 3, 16] {
            for batch in [&few[..], &many] {
                let (plus, minus) = losses(threads, batch);
                let far = (plus - one.0).abs().max((minus - one.1).abs());
                let rows = batch.len();
                assert!(far < ROUNDING as f32, "{model_type} {threads} threads {rows}: {far}");
            }
        }
    }
}

/// Losses at both ends of a probe and the qualities, and hidden states or logits, under one way of computing.
fn measured(files: &Files, spec: &str, data: &Dataset, device: device::Device) -> [Vec<f32>; 2] {
    let (folder, settings) = (read(files, "m").unwrap(), spec.parse().unwrap());
    let model = LanguageModel::on(device, &folder, &settings, data).unwrap();
    let mut state = State::from_base(model.tensors(), model.base(1)).unwrap();
    step(&mut state, 1e-3);
    let direction = Direction::new(&RunId([3; 32]), Round(1), Slot(0));
    let mut scratch = Scratch::default();
    let (plus, minus) = model.probe(&state, &direction, -6, &[1, 0, 3, 2, 1], &mut scratch);
    let mut losses = vec![plus, minus];
    for split in [Split::Train, Split::Test] {
        let quality = model.quality(&state, split, &mut scratch);
        losses.extend([quality.loss as f32, quality.accuracy as f32]);
    }
    let mut outputs = Vec::new();
    // Where the head alone is trained, what is kept of a text is no longer its hidden states.
    if !spec.contains("train=classifier") {
        outputs = outputs_of(&model, &state, 0);
    }
    [losses, outputs]
}

/// The largest difference.
fn apart(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// What measures a model of a folder with a task on data: losses, and outputs.
type Way<'a> = &'a dyn Fn(&Files, &str, &Dataset) -> [Vec<f32>; 2];

/// Compares two ways of computing, for all families, tasks and heads.
fn compare(ways: [Way<'_>; 2]) {
    // Beside short ones.
    let long = format!("a very good{} film\tpos\n", " not bad".repeat(8));
    let texts = dataset(&format!("{ROWS}{long}"));
    let words = "labels=pos:good,neg:bad;tokens=22";
    let mut wrong = Vec::new();
    for (model_type, prefix, settings) in [
        ("bert", "bert.", "classify;"),
        ("bert", "bert.", "classify;head=linear;train=classifier.*;"),
        ("bert", "bert.", "classify;train=bert.encoder.layer.1.*;"),
        ("roberta", "roberta.", "classify;head=prototype;"),
        ("distilbert", "distilbert.", "classify;"),
        ("distilbert", "distilbert.", "classify;lora=2;"),
        ("bert", "bert.", "classify;lora=2;"),
        ("llama", "model.", "classify;"),
        ("mistral", "model.", "classify;lora=2;"),
        ("qwen2", "model.", "classify;"),
        ("mistral", "model.", "causal;"),
        ("qwen2", "model.", "causal;"),
    ] {
        let files = folder_files(model_type, prefix);
        let (spec, data) = match settings.starts_with("causal") {
            true => (format!("{settings}tokens=22"), passages()),
            false => (format!("{settings}{words}"), texts.clone()),
        };
        let [one, other] = ways.map(|way| way(&files, &spec, &data));
        assert!(
            one.iter().chain(&other).flatten().all(|value| value.is_finite()),
            "{model_type} {spec}"
        );
        let (losses, outputs) = (apart(&one[0], &other[0]), apart(&one[1], &other[1]));
        println!("{model_type} {spec}: losses {losses:e}, outputs {outputs:e}");
        // Both ways are as far from a computation in f64 as from each other: up to 3e-5 for these random
        // weights of DistilBERT. A wrong mask, head or angle shows in the second digit.
        if !(losses < 2e-5 && outputs < 2e-4) {
            wrong.push(format!("{model_type} {spec}: losses {losses:e}, outputs {outputs:e}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn all_weights_of_an_end_at_once_give_the_losses_of_half_by_half() {
    let by_half = |files: &Files, spec: &str, data: &Dataset| {
        measured(files, spec, data, device::Device::Cpu)
    };
    compare([&by_half, &|files, spec, data| {
        view::WHOLE.set(true);
        let measured = by_half(files, spec, data);
        view::WHOLE.set(false);
        measured
    }]);
}

#[cfg(feature = "cuda")]
#[test]
fn a_device_measures_what_main_memory_does() {
    let Some(_) = cuda::tests::card() else { return };
    let on = |device| {
        move |files: &Files, spec: &str, data: &Dataset| measured(files, spec, data, device)
    };
    compare([&on(device::Device::Cpu), &on(device::Device::Cuda(0))]);
}

#[cfg(feature = "cuda")]
#[test]
fn a_device_follows_updates_that_it_is_told_of_and_others() {
    let Some(_) = cuda::tests::card() else { return };
    for (model_type, prefix, spec) in [
        ("bert", "bert.", format!("classify;{WORDS}")),
        ("mistral", "model.", format!("classify;lora=2;{WORDS}")),
        ("qwen2", "model.", "causal;tokens=24".into()),
    ] {
        let files = folder_files(model_type, prefix);
        let data = if spec.starts_with("causal") { passages() } else { dataset(ROWS) };
        let losses = [device::Device::Cpu, device::Device::Cuda(0)].map(|device| {
            let (folder, spec) = (read(&files, "m").unwrap(), spec.parse().unwrap());
            let model = LanguageModel::on(device, &folder, &spec, &data).unwrap();
            let mut state = State::from_base(model.tensors(), model.base(1)).unwrap();
            let mut scratch = Scratch::default();
            let mut losses = Vec::new();
            for round in 0..3 {
                let direction = Direction::new(&RunId([3; 32]), Round(round), Slot(0));
                let (plus, minus) = model.probe(&state, &direction, -6, &[1, 0, 2], &mut scratch);
                losses.extend([plus, minus]);
                let before = state.mark();
                let payouts = [Payout { direction, from: 0, to: coefficient(1e-3) }];
                state.apply(&payouts);
                // In the last round nobody says so.
                if round < 1 {
                    model.applied(&before, &payouts, &state, &mut scratch);
                }
            }
            losses.push(model.quality(&state, Split::Test, &mut scratch).loss as f32);
            losses
        });
        close(&losses[1], &losses[0], model_type);
    }
}

#[test]
fn a_loss_that_is_none_is_none_wherever_it_is_computed() {
    let (nan, infinite) = (f32::NAN, f32::INFINITY);
    let rows = [
        [0.5, 1.0, -2.0],
        [nan, 0.0, 0.0],
        [infinite, 0.0, 0.0],
        [-infinite, 0.0, 1.0],
        [3.0, 90.0, -90.0],
        [0.0, 0.0, 1.0],
    ];
    let targets = [Some(1), Some(1), Some(0), Some(2), Some(2), None];
    #[cfg(feature = "cuda")]
    let devices = [Some(Device::Cpu), cuda::tests::card()];
    #[cfg(not(feature = "cuda"))]
    let devices = [Some(Device::Cpu)];
    for device in devices.into_iter().flatten() {
        let logits = candle_core::Tensor::new(&rows, &device).unwrap();
        let losses = op::losses(&logits, &targets).unwrap();
        let [(one, right), none, other, third, (last, wrong)] = losses[..] else {
            panic!("{losses:?}")
        };
        assert!((one - 0.504_597).abs() < 1e-5 && right, "{losses:?}");
        assert!((last - 180.0).abs() < 2e-4 && !wrong, "{losses:?}");
        assert!([none, other, third].iter().all(|(loss, right)| loss.is_nan() && !right));
    }
}

#[test]
fn packed_texts_do_not_see_each_other() {
    let files = folder_files("bert", "");
    let (model, state) = joined(&files, &format!("classify;{WORDS}"), &dataset(ROWS)).unwrap();
    let direction = Direction::new(&RunId([3; 32]), Round(0), Slot(0));
    let loss = |batch: &[u32]| {
        let mut scratch = Scratch::default();
        f64::from(model.probe(&state, &direction, -6, batch, &mut scratch).0)
    };
    let alone: f64 = (0..4).map(|row| loss(&[row])).sum();
    assert!((loss(&[0, 1, 2, 3]) - alone / 4.0).abs() < ROUNDING);
}

#[test]
fn a_budget_of_tokens_leaves_rows_out() {
    let files = folder_files("bert", "");
    let probe = |spec: &str, batch: &[u32]| {
        let (model, state) =
            joined(&files, &format!("classify;{spec}{WORDS}"), &dataset(ROWS)).unwrap();
        let direction = Direction::new(&RunId([3; 32]), Round(0), Slot(0));
        model.probe(&state, &direction, -6, batch, &mut Scratch::default())
    };
    // Six tokens each with their marks.
    assert_eq!(probe("budget=12;", &[0, 1, 2]), probe("", &[0, 1]));
    assert_eq!(probe("budget=2;", &[1, 0, 2]), probe("", &[1]));
}

#[test]
fn frozen_layers_are_computed_once_and_give_the_same_losses() {
    let files = folder_files("bert", "");
    let data = dataset(ROWS);
    let quality = |train: &str| {
        let (model, state) = joined(&files, &format!("classify;{train}{WORDS}"), &data).unwrap();
        let mut scratch = Scratch::default();
        let first = model.quality(&state, Split::Train, &mut scratch);
        assert_eq!(first, model.quality(&state, Split::Train, &mut scratch), "{train}");
        let test = model.quality(&state, Split::Test, &mut scratch);
        assert!((first.loss - test.loss).abs() < ROUNDING, "{train}");
        first.loss
    };
    let all = quality("");
    for train in ["encoder.layer.1.*|classifier.*", "classifier.*", ".*output.LayerNorm.*"] {
        assert!((quality(&format!("train={train};")) - all).abs() < ROUNDING, "{train}");
    }
}

#[test]
fn adapters_start_at_the_base_and_are_multiplied_out() {
    for (model_type, prefix) in [("bert", "bert."), ("llama", "model."), ("distilbert", "")] {
        let files = folder_files(model_type, prefix);
        let spec = format!("classify;lora=2;{WORDS}");
        let (plain, base) = joined(&files, &format!("classify;{WORDS}"), &dataset(ROWS)).unwrap();
        let (tuned, mut state) = joined(&files, &spec, &dataset(ROWS)).unwrap();
        let mut scratch = Scratch::default();
        let loss = |model: &LanguageModel, state: &State, scratch: &mut Scratch| {
            model.quality(state, Split::Test, scratch).loss
        };
        let start = loss(&tuned, &state, &mut scratch);
        // The plain model's weights are rounded to their LSBs, as all are trained.
        let plain = loss(&plain, &base, &mut scratch);
        assert!((start - plain).abs() < 1e-5, "{model_type}: {start} beside {plain}");
        step(&mut state, 0.05);
        let after = loss(&tuned, &state, &mut scratch);
        assert!((after - start).abs() > 1e-4, "{model_type}");
        let mut exported = files.clone();
        let mut file = Vec::new();
        export(&read(&files, "m").unwrap(), &state, &mut file).unwrap();
        exported.insert("m/model.safetensors".into(), file);
        let (again, state) =
            joined(&exported, &format!("classify;{WORDS}"), &dataset(ROWS)).unwrap();
        assert!((loss(&again, &state, &mut scratch) - after).abs() < 1e-5, "{model_type}");
    }
}

fn step(state: &mut State, size: f64) {
    let direction = Direction::new(&RunId([9; 32]), Round(0), Slot(1));
    state.apply(&[Payout { direction, from: 0, to: coefficient(size) }]);
}

#[test]
fn tuned_weights_survive_export_under_the_folders_names() {
    let mut files = folder_files("roberta", "roberta.");
    // Adapters that nobody asked for.
    let mut named = weights(&config("roberta"), "roberta.");
    let adapter = "roberta.encoder.layer.0.attention.self.query";
    for part in ["lora_A", "lora_B"] {
        named.push((format!("{adapter}.{part}.weight"), vec![2, 2], vec![0.5; 4]));
    }
    files.insert("m/model.safetensors".into(), safetensors(&named));
    let spec = format!("classify;train=.*layer.1.*|classifier.*;{WORDS}");
    let (tuned, mut state) = joined(&files, &spec, &dataset(ROWS)).unwrap();
    step(&mut state, 0.03);
    let folder = read(&files, "m").unwrap();
    let mut file = Vec::new();
    export(&folder, &state, &mut file).unwrap();
    let mut exported = files.clone();
    exported.insert("m/model.safetensors".into(), file);
    let names = |folder: &Folder| folder.names().map(str::to_owned).collect::<Vec<_>>();
    let mut expected = names(&folder);
    expected.extend(["classifier.bias".into(), "classifier.weight".into()]);
    expected.sort();
    assert_eq!(names(&read(&exported, "m").unwrap()), expected);
    let (again, base) = joined(&exported, &spec, &dataset(ROWS)).unwrap();
    let mut scratch = Scratch::default();
    let losses =
        [(&tuned, &state), (&again, &base)].map(|(m, s)| m.quality(s, Split::Test, &mut scratch));
    assert!((losses[0].loss - losses[1].loss).abs() < 1e-6, "{losses:?}");
}

#[test]
fn weights_that_are_not_trained_count_in_the_identity() {
    let files = folder_files("bert", "");
    let hash = |files: &Files, train: &str| {
        let (model, state) =
            joined(files, &format!("classify;train={train};{WORDS}"), &dataset(ROWS)).unwrap();
        (model.fixed_hash().unwrap(), state.hash())
    };
    let mut other = weights(&config("bert"), "");
    other[0].2[5] += 0.25;
    let mut changed = files.clone();
    changed.insert("m/model.safetensors".into(), safetensors(&other));
    let (frozen, trained) = (hash(&files, "classifier.*"), hash(&changed, "classifier.*"));
    assert!(frozen.0 != trained.0 && frozen.1 == trained.1);
    assert_ne!(hash(&files, ".*").1, hash(&changed, ".*").1);
}

#[test]
fn labels_can_be_flipped() {
    let files = folder_files("bert", "");
    let (model, state) = joined(&files, &format!("classify;{WORDS}"), &dataset(ROWS)).unwrap();
    let flipped = model.with_flipped_labels().unwrap();
    let quality =
        |model: &dyn Objective, split| model.quality(&state, split, &mut Scratch::default());
    let honest = quality(&model, Split::Train);
    assert!((quality(&*flipped, Split::Train).accuracy + honest.accuracy - 1.0).abs() < 1e-9);
    assert_eq!(quality(&*flipped, Split::Test), quality(&model, Split::Test));
}

#[test]
fn a_model_in_shards_is_the_model_in_one_file() {
    let mut files = folder_files("llama", "model.");
    let spec = format!("classify;{WORDS}");
    let whole = joined(&files, &spec, &dataset(ROWS)).unwrap().1.hash();
    files.remove(Path::new("m/model.safetensors"));
    let all = weights(&config("llama"), "model.");
    let (a, b) = all.split_at(5);
    let map: serde_json::Map<String, Value> =
        (a.iter().map(|t| (t.0.clone(), json!("a.safetensors"))))
            .chain(b.iter().map(|t| (t.0.clone(), json!("b.safetensors"))))
            .collect();
    let index = json!({ "weight_map": map }).to_string().into_bytes();
    files.insert("m/model.safetensors.index.json".into(), index);
    files.insert("m/a.safetensors".into(), safetensors(&a.to_vec()));
    let error = joined(&files, &spec, &dataset(ROWS)).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("m has no b.safetensors") && error.contains("index"), "{error}");
    files.insert("m/b.safetensors".into(), safetensors(&b.to_vec()));
    assert_eq!(joined(&files, &spec, &dataset(ROWS)).unwrap().1.hash(), whole);
}

#[test]
fn wrong_folders_are_refused_with_what_is_wrong_and_what_helps() {
    let files = folder_files("bert", "");
    let error = |name: &str, bytes: Option<&[u8]>| {
        let mut files = files.clone();
        match bytes {
            Some(bytes) => files.insert(PathBuf::from("m").join(name), bytes.to_vec()),
            None => files.remove(&PathBuf::from("m").join(name)),
        };
        let made = joined(&files, &format!("classify;{WORDS}"), &dataset(ROWS));
        made.map(|_| ()).unwrap_err().to_string()
    };
    let mut fat = tokenizer(true);
    fat["model"]["vocab"]["extra"] = json!(VOCABULARY + 3);
    let fat = fat.to_string();
    let mut missing = weights(&config("bert"), "");
    let named = missing.remove(7).0;
    let missing = safetensors(&missing);
    let mut narrow = weights(&config("bert"), "");
    narrow[7].1.push(1);
    let narrow = safetensors(&narrow);
    for (name, bytes, says) in [
        ("config.json", None, vec!["m has no config.json", "tokenizer.json"]),
        ("tokenizer.json", None, vec!["m has no tokenizer.json"]),
        ("model.safetensors", None, vec!["m has no model.safetensors", "shards"]),
        (
            "config.json",
            Some(&b"{\"model_type\": \"t5\"}"[..]),
            vec!["t5", "supported are bert", "qwen2"],
        ),
        ("tokenizer.json", Some(fat.as_bytes()), vec!["tokens up to 27", "24 rows"]),
        ("tokenizer.json", Some(b"{}"), vec!["m/tokenizer.json"]),
        ("model.safetensors", Some(b"garbage"), vec!["m/model.safetensors"]),
        ("model.safetensors", Some(&missing), vec![&named, "bert"]),
        ("model.safetensors", Some(&narrow), vec![&named, "config.json makes it"]),
    ] {
        let error = error(name, bytes);
        assert!(says.iter().all(|part| error.contains(part)), "{name}: {error}");
    }
    let mut pickled = files.clone();
    pickled.remove(Path::new("m/model.safetensors"));
    pickled.insert("m/pytorch_model.bin".into(), vec![1]);
    let error = read(&pickled, "m").map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("safe_serialization"), "{error}");
}

#[test]
fn files_cut_off_anywhere_are_errors() {
    let files = folder_files("llama", "model.");
    let whole = &files[Path::new("m/model.safetensors")];
    for len in (0..whole.len()).step_by(97) {
        let mut files = files.clone();
        files.insert("m/model.safetensors".into(), whole[..len].to_vec());
        assert!(read(&files, "m").is_err(), "{len}");
    }
}

#[test]
fn settings_that_do_not_fit_the_model_or_the_data_are_refused() {
    let (bert, llama) = (folder_files("bert", ""), folder_files("llama", "model."));
    let numbers = dataset("a good film\t1\nit was bad\t0\n");
    let passages = passages();
    let rows = dataset(ROWS);
    for (files, spec, data, says) in [
        (&bert, "classify;tokens=27", &rows, "at most 26"),
        (&bert, "classify;tokens=9;train=nothing", &rows, "matches the whole name of no tensor"),
        (&bert, "classify;tokens=9;train=(", &rows, "no regular expression"),
        (&bert, "classify;tokens=9;labels=pos:good", &rows, "no word for label \"neg\""),
        (&bert, "classify;tokens=9;labels=pos:good,neg:bad,x:it", &rows, "\"x\", which no row has"),
        (&bert, "classify;tokens=9", &numbers, "--labels 0:WORD"),
        (&bert, "causal;tokens=9", &passages, "does not predict the next token"),
        (&bert, "classify;tokens=9", &passages, "--task causal"),
        (&llama, "classify;tokens=9;labels=pos:very good,neg:very bad", &rows, "same token"),
        (&llama, "classify;tokens=2;template={} it was;labels=pos:good,neg:bad", &rows, "no room"),
        (&bert, "classify;tokens=2;labels=pos:good,neg:bad", &rows, "adds 2 marks"),
    ] {
        let error = joined(files, spec, data).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(says), "{spec}: {error}");
    }
    assert!(joined(&bert, "classify;tokens=9;head=linear", &numbers).is_ok());
}

/// Marks are numbers in the tokenizer's file that nothing ties to its vocabulary.
#[test]
fn marks_beyond_the_vocabulary_are_refused() {
    let mut files = folder_files("bert", "");
    let mut json = tokenizer(true);
    json["post_processor"]["special_tokens"]["[SEP]"]["ids"] = json!([4_000_000]);
    files.insert("m/tokenizer.json".into(), json.to_string().into_bytes());
    let error = joined(&files, &format!("classify;{WORDS}"), &dataset(ROWS));
    let error = error.map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("token 4000000"), "{error}");
}

#[test]
fn long_texts_are_cut_and_counted_and_keep_the_templates_end() {
    let files = folder_files("llama", "model.");
    let spec = "classify;tokens=6;template=a {} it was;labels=pos:good,neg:bad";
    let (model, _) = joined(&files, spec, &dataset(ROWS)).unwrap();
    assert_eq!(tokens_of(&model, 0), [0, 6, 6, 7, 9, 10]);
    assert_eq!(tokens_of(&model, 2), [0, 6, 3, 9, 10]);
    let notes = model.notes().join("\n");
    assert!(notes.contains("3 of 4 training texts") && notes.contains("longer than 6"), "{notes}");
}

/// The published small model of llama2.c, with the losses that its README gives.
#[test]
fn stories_has_its_golden_losses() {
    let root = "data/stories260k";
    let (Some(model_bytes), Some(tokens)) = (
        crate::shared(&format!("{root}/stories260K.bin")),
        crate::shared(&format!("{root}/tok512.bin")),
    ) else {
        return;
    };
    let files: Files =
        [("s/m.bin", model_bytes), ("s/tok512.bin", tokens)].map(|(n, b)| (n.into(), b)).into();
    let folder = read(&files, "s/m.bin").unwrap();
    for (line, count, loss) in [
        (
            "Once upon a time, there was a little girl named Lily. She loved to play outside in the \
             park with her friends.",
            35,
            0.19790,
        ),
        (
            "The quarterly revenue report exceeded analyst expectations by a significant margin.",
            58,
            4.18970,
        ),
    ] {
        let raw = text::parse(line.as_bytes(), TextFormat::Plain, &Columns::default()).unwrap();
        let data = Dataset::assemble("line", raw.clone(), Some(raw)).unwrap();
        let model = LanguageModel::new(&folder, &"causal".parse().unwrap(), &data).unwrap();
        let state = State::from_base(model.tensors(), model.base(1)).unwrap();
        assert_eq!((tokens_of(&model, 0).len() - 1, state.layout().dim()), (count, 260_032));
        let quality = model.quality(&state, Split::Test, &mut Scratch::default());
        assert!((quality.loss - loss).abs() < 1e-5, "{quality:?}");
    }
}

/// The published sentence encoder, where `RUMORMILL_MINILM` names its folder; the numbers are PyTorch's
/// (`experiments/results/2026-11-25-language/torch_forward.py`).
#[test]
fn minilm_agrees_with_pytorch() {
    let Some(path) = std::env::var_os("RUMORMILL_MINILM").map(PathBuf::from) else {
        println!("skipped: RUMORMILL_MINILM names no folder");
        return;
    };
    let golden: Value =
        serde_json::from_str(include_str!("../../tests/fixtures/minilm.json")).unwrap();
    let golden = golden.as_array().unwrap();
    let lines: String = golden
        .iter()
        .map(|row| {
            format!("{}\t{}\n", row["text"].as_str().unwrap(), row["text"].as_str().unwrap().len())
        })
        .collect();
    let folder = Folder::read(&path, &|path| match path.is_dir() {
        true => Ok(Found::Folder),
        false => std::fs::read(path).map(Found::bytes),
    })
    .unwrap();
    let spec = "classify;head=linear;train=classifier.*".parse().unwrap();
    let model = LanguageModel::new(&folder, &spec, &dataset(&lines)).unwrap();
    let state = State::from_base(model.tensors(), model.base(1)).unwrap();
    for (row, golden) in golden.iter().enumerate() {
        let numbers = |key: &str| -> Vec<f32> {
            golden[key].as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
        };
        let tokens: Vec<f32> = tokens_of(&model, row).iter().map(|&id| id as f32).collect();
        assert_eq!(tokens, numbers("tokens"));
        let hidden = outputs_of(&model, &state, row as u32);
        close(&hidden[..16], &numbers("first"), "first token");
        close(&hidden[hidden.len() - 384..][..16], &numbers("last"), "last token");
    }
}
