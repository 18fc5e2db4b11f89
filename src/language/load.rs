//! Which tensors of a folder are trained, which stay, and what the head is made of.

use std::collections::BTreeMap;
use std::sync::Mutex;

use candle_core::{Device, Tensor};
use regex::Regex;
use thiserror::Error;

use super::config::{Config, Kind};
use super::folder::{Folder, FolderError};
use super::model;
use super::spec::{Head, LanguageSpec, Task};
use crate::data::Dataset;
use crate::direction::BLOCK_PARAMETERS;
use crate::params::TensorSpec;
use crate::sample::KeyedRng;

/// Why a language model cannot be had.
#[derive(Debug, Error)]
pub enum LanguageError {
    /// The folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The data hold numbers.
    #[error(
        "a language model learns from texts; name a .tsv, .csv, .jsonl or .txt file with --data"
    )]
    Numbers,
    /// Texts without labels to classify, or the other way round.
    #[error("{0}")]
    Task(String),
    /// A row that the tokenizer makes nothing of.
    #[error("row {0} (counted from 0) has too few tokens to learn from; take it out")]
    Short(usize),
    /// The tokenizer.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// A setting that does not fit the model.
    #[error("{setting} {problem}")]
    Setting {
        /// The flag.
        setting: &'static str,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// A tensor of frozen weights could not be made.
    #[error("{0}")]
    Tensor(#[from] candle_core::Error),
}

/// Everything of a model that is the same in all probes and nodes.
pub(super) struct Core {
    /// Where all tensors are.
    pub(super) device: Device,
    pub(super) config: Config,
    pub(super) spec: LanguageSpec,
    pub(super) classes: usize,
    /// The trained tensors as the files name them, in the order of the flat parameters.
    pub(super) tensors: Vec<TensorSpec>,
    /// The same by the architecture's names.
    pub(super) trained: Vec<String>,
    /// Where each begins among the flat parameters.
    pub(super) offsets: Vec<usize>,
    /// Numbers of large tables, of which a pass reads few rows.
    pub(super) tables: Vec<usize>,
    /// The others.
    pub(super) fixed: BTreeMap<String, Tensor>,
    /// The trained tensors' values as read, until they are taken.
    pub(super) base: Mutex<Vec<f32>>,
    /// Where an adapter's random half begins among them, and its inputs.
    pub(super) adapters: Vec<(usize, usize, usize)>,
    pub(super) fixed_hash: [u8; 32],
    /// Layers below the first that is trained.
    pub(super) depth: usize,
    /// The texts of the labels, as an encoder's prototypes.
    pub(super) prototypes: Vec<Box<[u32]>>,
    /// The tokens of the labels, as a decoder's answers.
    pub(super) answers: Vec<u32>,
}

/// Parameters of a table of which a probe's tokens have few rows: so many are beyond the caches.
const TABLE_MIN: usize = 1 << 22;

/// Parameters of a row of such a table: what is owed comes in whole blocks, of which shorter rows need little.
const ROW_MIN: usize = BLOCK_PARAMETERS / 2;

/// A tensor on its way: the architecture's name, the file's, the shape.
struct Entry {
    name: String,
    stored: String,
    shape: Vec<usize>,
    /// Absent from the files: zero, or an adapter's random half.
    fresh: bool,
}

impl Core {
    pub(super) fn new(
        folder: &Folder,
        spec: &LanguageSpec,
        dataset: &Dataset,
        device: Device,
    ) -> Result<Core, LanguageError> {
        let config = folder.config.clone();
        check(&config, spec, dataset)?;
        let words = words(spec, dataset, &config)?;
        let entries = entries(folder, spec, dataset.classes)?;
        let pattern = pattern(spec)?;
        let head_only = spec.train.is_none() && spec.lora > 0;
        let is_trained = |entry: &Entry| {
            let adapter = entry.name.contains(".lora_");
            let head = entry.name.starts_with("classifier.");
            adapter || if head_only { head } else { pattern.is_match(&entry.stored) }
        };
        let mut tensors = Vec::new();
        let mut trained = Vec::new();
        let mut offsets = Vec::new();
        let mut fixed = BTreeMap::new();
        for entry in entries.iter().filter(|entry| !entry.fresh) {
            folder.check(&entry.stored, &entry.shape)?;
        }
        let len = |entry: &Entry| entry.shape.iter().product::<usize>();
        let mut base = Vec::with_capacity(entries.iter().filter(|e| is_trained(e)).map(len).sum());
        let mut adapters = Vec::new();
        let mut hasher = blake3::Hasher::new_derive_key("rumormill v1 fixed weights");
        hasher.update(&folder.hash);
        for entry in entries {
            let len = len(&entry);
            let values = |out: &mut Vec<f32>| match entry.fresh {
                true => {
                    out.resize(out.len() + len, 0.0);
                    Ok(())
                }
                false => folder.values(&entry.stored, &entry.shape, out),
            };
            if is_trained(&entry) {
                if entry.name.ends_with(".lora_A.weight") {
                    adapters.push((base.len(), len, entry.shape[1]));
                }
                offsets.push(base.len());
                values(&mut base)?;
                tensors.push(TensorSpec::new(entry.stored, &entry.shape));
                trained.push(entry.name);
            } else {
                hasher.update(&(entry.name.len() as u64).to_le_bytes());
                hasher.update(entry.name.as_bytes());
                let mut own = Vec::with_capacity(len);
                values(&mut own)?;
                own.iter().for_each(|value| {
                    hasher.update(&value.to_le_bytes());
                });
                fixed.insert(entry.name, Tensor::from_vec(own, entry.shape, &device)?);
            }
        }
        if tensors.is_empty() {
            let names: Vec<&str> = folder.names().take(3).collect();
            return Err(LanguageError::Setting {
                setting: "--train",
                problem: format!(
                    "{:?} matches the whole name of no tensor; names are {}, …",
                    spec.train.as_deref().unwrap_or_default(),
                    names.join(", ")
                ),
            });
        }
        let depth = trained.iter().map(|name| model::layer_of(&config, name)).min().unwrap_or(0);
        let (prototypes, answers) = labels(folder, spec, &words)?;
        let is_table = |tensor: &usize| {
            let causal = spec.task == Task::Causal;
            let of = &tensors[*tensor];
            // Only what has rows is read by them: others may have one dimension.
            !model::is_read_whole(&config, &trained[*tensor], causal)
                && of.len() >= TABLE_MIN
                && of.shape[1] >= ROW_MIN
        };
        let all = 0..tensors.len();
        let tables = if device.is_cpu() { all.filter(is_table).collect() } else { Vec::new() };
        Ok(Core {
            device,
            classes: dataset.classes,
            spec: spec.clone(),
            config,
            tensors,
            trained,
            offsets,
            tables,
            fixed,
            base: Mutex::new(base),
            adapters,
            fixed_hash: *hasher.finalize().as_bytes(),
            depth,
            prototypes,
            answers,
        })
    }

    /// Fills the random halves of the adapters: uniform, with the variance of one over the inputs.
    pub(super) fn draw_adapters(&self, seed: u64, base: &mut [f32]) {
        for (index, &(from, len, inputs)) in self.adapters.iter().enumerate() {
            let mut rng = KeyedRng::from_seed("rumormill v1 adapter", seed, index as u64);
            let bound = (3.0 / inputs as f64).sqrt() as f32;
            base[from..from + len].iter_mut().for_each(|value| *value = rng.symmetric(bound));
        }
    }
}

fn check(config: &Config, spec: &LanguageSpec, dataset: &Dataset) -> Result<(), LanguageError> {
    let tokens = spec.tokens as usize;
    if tokens > config.positions {
        return Err(LanguageError::Setting {
            setting: "--tokens",
            problem: format!("is {tokens}, the model reads at most {}", config.positions),
        });
    }
    let labeled = dataset.classes > 1;
    match spec.task {
        Task::Causal if !config.is_decoder() => Err(LanguageError::Task(format!(
            "a {} model does not predict the next token; use --task classify",
            config.model_type
        ))),
        Task::Classify if !labeled => Err(LanguageError::Task(
            "the data are running text without labels; use --task causal, or a table".into(),
        )),
        _ => Ok(()),
    }
}

/// The word of every class; empty where none is needed.
fn words(
    spec: &LanguageSpec,
    dataset: &Dataset,
    config: &Config,
) -> Result<Vec<String>, LanguageError> {
    if spec.task == Task::Causal || (!config.is_decoder() && spec.head == Head::Linear) {
        return Ok(Vec::new());
    }
    let fail = |problem: String| LanguageError::Setting { setting: "--labels", problem };
    let known = |label: &String| dataset.class_names.contains(label);
    if let Some((label, _)) = spec.labels.iter().find(|(label, _)| !known(label)) {
        return Err(fail(format!(
            "names {label:?}, which no row has; the data's labels are {}",
            dataset.class_names.join(", ")
        )));
    }
    let word = |class: &String| {
        let given = spec.labels.iter().find(|(label, _)| label == class);
        match given {
            Some((_, word)) => Ok(word.clone()),
            None if !spec.labels.is_empty() => {
                Err(fail(format!("has no word for label {class:?} of the data; add {class}:WORD")))
            }
            None if class.parse::<f64>().is_ok() => Err(fail(format!(
                "is needed, as label {class:?} is a number: --labels {class}:WORD,… (or, for an \
                 encoder, --head linear)"
            ))),
            None => Ok(class.clone()),
        }
    };
    dataset.class_names.iter().map(word).collect()
}

/// All tensors of the model, its head and its adapters, in the order of the files' names.
fn entries(
    folder: &Folder,
    spec: &LanguageSpec,
    classes: usize,
) -> Result<Vec<Entry>, LanguageError> {
    let config = &folder.config;
    let mut entries = Vec::new();
    for (name, shape) in model::tensors(config) {
        let plain = format!("{}{name}", folder.prefix);
        let stored = folder.stored_name(&name).unwrap_or(plain);
        entries.push(Entry { name, stored, shape, fresh: false });
    }
    if spec.task == Task::Classify && !config.is_decoder() && spec.head != Head::Prototype {
        for (part, shape) in [("weight", vec![classes, config.hidden]), ("bias", vec![classes])] {
            let name = format!("classifier.{part}");
            let fresh = !folder.names().any(|stored| stored == name);
            entries.push(Entry { stored: name.clone(), name, shape, fresh });
        }
    }
    if spec.lora > 0 {
        let rank = usize::from(spec.lora);
        for name in model::adapted(config) {
            let matrix = entries.iter().find(|entry| entry.name == format!("{name}.weight"));
            let matrix = matrix.expect("adapters are for the model's own matrices");
            let (outputs, inputs) = (matrix.shape[0], matrix.shape[1]);
            let stored = matrix.stored.trim_end_matches(".weight").to_owned();
            for (part, shape) in [("lora_A", [rank, inputs]), ("lora_B", [outputs, rank])] {
                entries.push(Entry {
                    name: format!("{name}.{part}.weight"),
                    stored: format!("{stored}.{part}.weight"),
                    shape: shape.to_vec(),
                    fresh: true,
                });
            }
        }
    }
    entries.sort_by(|a, b| a.stored.cmp(&b.stored));
    Ok(entries)
}

fn pattern(spec: &LanguageSpec) -> Result<Regex, LanguageError> {
    let text = spec.train.as_deref().unwrap_or(".*");
    Regex::new(&format!("^(?:{text})$")).map_err(|error| LanguageError::Setting {
        setting: "--train",
        problem: format!(
            "{text:?} is no regular expression: {}",
            error.to_string().replace('\n', " ")
        ),
    })
}

/// The tokens of each label's words, for an encoder; the token of each answer, for a decoder.
type Labels = (Vec<Box<[u32]>>, Vec<u32>);

/// The labels' words as an encoder's prototypes or a decoder's answers.
fn labels(folder: &Folder, spec: &LanguageSpec, words: &[String]) -> Result<Labels, LanguageError> {
    if let Kind::Encoder { .. } = folder.config.kind {
        let tokens = spec.tokens as usize;
        let encoded = folder.tokenizer.encode(words, tokens).map_err(LanguageError::Tokenizer)?;
        return Ok((encoded.into_iter().map(|(ids, _)| ids.into()).collect(), Vec::new()));
    }
    let first = |word: &String| folder.tokenizer.first_of(word);
    let answers: Result<Vec<u32>, String> = words.iter().map(first).collect();
    let answers = answers.map_err(LanguageError::Tokenizer)?;
    for (at, answer) in answers.iter().enumerate() {
        if let Some(other) = answers[..at].iter().position(|earlier| earlier == answer) {
            return Err(LanguageError::Setting {
                setting: "--labels",
                problem: format!(
                    "gives the words {:?} and {:?}, which begin with the same token; choose others",
                    words[other], words[at]
                ),
            });
        }
    }
    Ok((Vec::new(), answers))
}
