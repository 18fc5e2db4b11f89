//! Language models on the command line: what `--weights` and its companions mean, and tuned weights as
//! files.

use std::path::{Path, PathBuf};
#[cfg(feature = "language")]
use std::sync::Arc;

use anyhow::{Result, bail};
use rumormill::data::Dataset;
use rumormill::data::text::Columns;
use rumormill::language::device::Device;
use rumormill::language::spec::{Head, LanguageSpec, TOKENS, Task, parse_labels};
use rumormill::objective::{ModelSpec, Objective};
use rumormill::params::State;

use crate::run::look;

/// What is said of a pretrained model.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Pretrained language models")]
pub struct LanguageArgs {
    /// A pretrained transformer: a folder with config.json, safetensors and tokenizer.json,
    /// hub:OWNER/NAME[@REVISION], or a llama2.c .bin; --data is then a .tsv, .csv, .jsonl or .txt file
    #[arg(long, value_name = "PATH", env = "RUMORMILL_WEIGHTS")]
    pub weights: Option<PathBuf>,
    /// Where the model computes: cpu, or in a build with the feature `cuda` an NVIDIA card, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value_t)]
    pub device: Device,
    /// classify, or causal: predict the next token (default: causal for .txt data)
    #[arg(long)]
    pub task: Option<Task>,
    /// Trained tensors: an expression that matches their whole names, such as
    /// 'encoder.layer.5.*|classifier.*' (default: all; with --lora the adapters and the head)
    #[arg(long, value_name = "REGEX")]
    pub train: Option<String>,
    /// Rank of low-rank adapters of the attention's queries and values
    #[arg(long, value_name = "RANK", default_value_t = 0)]
    pub lora: u16,
    /// How an encoder's vector becomes a class: linear, prototype (cosines to the labels' words), both
    #[arg(long, default_value = "both")]
    pub head: Head,
    /// Text around every row, with {} for it; a decoder's answer comes behind it
    #[arg(long)]
    pub template: Option<String>,
    /// The word of each label: LABEL:WORD,LABEL:WORD
    #[arg(long, value_name = "LABEL:WORD")]
    pub labels: Option<String>,
    /// Tokens of a text that are read; longer ones are cut and counted
    #[arg(long, default_value_t = TOKENS)]
    pub tokens: u32,
    /// Tokens of a minibatch; rows beyond are left out of it (0: no limit)
    #[arg(long, default_value_t = 0)]
    pub token_budget: u32,
    /// Column of the texts, by name or counted from 1
    #[arg(long, value_name = "COLUMN")]
    pub text_column: Option<String>,
    /// Column of the labels
    #[arg(long, value_name = "COLUMN")]
    pub label_column: Option<String>,
}

impl LanguageArgs {
    /// The model that these arguments name for a data set, if they do.
    ///
    /// # Errors
    /// A setting that cannot be, as a usage error.
    pub fn spec(&self, data: &str) -> Result<Option<ModelSpec>> {
        if self.weights.is_none() {
            return Ok(None);
        }
        let plain = data.strip_suffix(".gz").unwrap_or(data).ends_with(".txt");
        let task = self.task.unwrap_or(if plain { Task::Causal } else { Task::Classify });
        let labels = self.labels.as_deref().map(parse_labels).transpose();
        let spec = labels.and_then(|labels| {
            let spec = LanguageSpec {
                head: self.head,
                train: self.train.clone(),
                lora: self.lora,
                template: self.template.clone(),
                labels: labels.unwrap_or_default(),
                tokens: self.tokens,
                budget: self.token_budget,
                ..LanguageSpec::new(task)
            };
            spec.check().map(|()| spec)
        });
        match spec {
            Ok(spec) => Ok(Some(ModelSpec::Language(spec))),
            Err(error) => crate::cli::usage(error.to_string()).map(|()| None),
        }
    }

    /// The device as a node's settings name it.
    pub fn named_device(&self) -> String {
        match self.device {
            Device::Cpu => String::new(),
            device => device.to_string(),
        }
    }

    /// Where the texts are in their file, if the data are texts.
    pub fn columns(&self) -> Option<Columns> {
        let (text, label) = (self.text_column.clone(), self.label_column.clone());
        self.weights.is_some().then_some(Columns { text, label })
    }
}

/// The objective of a language model whose weights are at `path`.
///
/// # Errors
/// There are no weights, or they do not fit.
#[cfg(feature = "language")]
pub fn objective(
    path: Option<&Path>,
    device: Device,
    spec: &LanguageSpec,
    dataset: &Dataset,
) -> Result<Arc<dyn Objective>> {
    let Some(path) = path else { bail!(rumormill::objective::BuildError::Weights) };
    rumormill::language::memory::huge_pages(true);
    let folder = rumormill::language::Folder::read(&crate::hub::located(path)?, &look)?;
    Ok(Arc::new(rumormill::language::LanguageModel::on(device, &folder, spec, dataset)?))
}

/// Writes tuned weights: for a language model a folder like the one it came from, otherwise one
/// `model.safetensors`.
///
/// # Errors
/// The folder is there already, or cannot be written.
#[cfg(feature = "language")]
pub fn export(weights: Option<&Path>, state: &State, out: &Path) -> Result<()> {
    use anyhow::Context;
    use rumormill::language::{Folder, export, export_config};

    use crate::init::{write_atomically, write_atomically_with};

    if out.exists() {
        bail!("{} exists; name a new folder for the tuned weights", out.display());
    }
    let Some(path) = weights else { bail!("only language models are exported here") };
    let path = &crate::hub::located(path)?;
    let folder = Folder::read(path, &look)?;
    std::fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    let write = |name: &str, bytes: &[u8]| write_atomically(&out.join(name), bytes);
    write_atomically_with(&out.join("model.safetensors"), |file| {
        Ok(export(&folder, state, file)?)
    })?;
    if path.is_dir() {
        let entries = std::fs::read_dir(path)?;
        for entry in entries.filter_map(Result::ok) {
            let name = entry.file_name().to_string_lossy().into_owned();
            // Configuration, tokenizer and what sentence encoders keep beside them.
            let wanted = [".json", ".txt", ".model"].iter().any(|suffix| name.ends_with(suffix));
            if entry.path().is_file() && wanted && name != "model.safetensors.index.json" {
                write(&name, &std::fs::read(entry.path())?)?;
            }
        }
    } else {
        write("config.json", export_config(&folder).as_bytes())?;
    }
    Ok(())
}

#[cfg(not(feature = "language"))]
const ABSENT: &str = "this program was built without language models (feature `language`)";

/// Language models are not in this build.
///
/// # Errors
/// Always.
#[cfg(not(feature = "language"))]
pub fn objective(
    _: Option<&Path>,
    _: Device,
    _: &LanguageSpec,
    _: &Dataset,
) -> Result<std::sync::Arc<dyn Objective>> {
    bail!(ABSENT)
}

/// Language models are not in this build.
///
/// # Errors
/// Always.
#[cfg(not(feature = "language"))]
pub fn export(_: Option<&Path>, _: &State, _: &Path) -> Result<()> {
    let _ = look;
    bail!(ABSENT)
}
