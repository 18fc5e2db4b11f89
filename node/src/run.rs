//! A run as people describe it: on the command line, and in `run.toml`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use rumormill::data::Dataset;
use rumormill::data::shard::Shards;
use rumormill::data::source::{DIGITS, DataFormat, DataSource, Found};
use rumormill::data::text::Columns;
use rumormill::direction::Direction;
use rumormill::fault::Fault;
use rumormill::id::{NodeId, Round, RunId, Slot};
use rumormill::language::device::Device;
use rumormill::lb8;
use rumormill::manifest::{DataMode, Directions, Founders, Manifest};
use rumormill::objective::{ModelSpec, Objective, Scratch, build};
use rumormill::params::State;
use rumormill::sample::minibatch;
use rumormill::selection::Rule;
use rumormill::spsa::projected_gradient;
use serde::{Deserialize, Serialize};

use crate::catchup::ModelSource;
use crate::evaluator::Task;
use crate::language::LanguageArgs;
use crate::store::Sync;

/// What to train and how; the same for all nodes of a run.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Run")]
pub struct RunArgs {
    /// Data set: `digits` (built in), a folder of MNIST-style idx files, a .csv or a .libsvm file
    #[arg(long, default_value = "digits", env = "RUMORMILL_DATA")]
    pub data: String,
    /// File of held-out rows, for .csv and .libsvm (otherwise 20 % of the rows are held out)
    #[arg(long, value_name = "FILE")]
    pub test: Option<PathBuf>,
    /// Format of the data file, overriding its suffix: csv, libsvm, idx
    #[arg(long)]
    pub format: Option<DataFormat>,
    /// Model: `softmax`, `linear[:L2]`, `logistic[:L2[:no-bias]]`, `mlp:H[,H2…]` or `cnn`
    #[arg(long, default_value = "mlp:32", conflicts_with = "weights")]
    pub model: ModelSpec,
    /// How the training rows are held: `public` (every node has all), `iid`, `dirichlet:ALPHA`
    #[arg(long, default_value = "public")]
    pub shards: Shards,
    /// Number of rounds (rounded up to whole heights); gradients a node for vector algorithms
    #[arg(long, conflicts_with = "seconds")]
    pub rounds: Option<u64>,
    /// Choose the number of rounds so that the run takes about this long on this machine
    #[arg(long)]
    pub seconds: Option<f64>,
    /// Seed of the base model, the shards and, for `local`, the nodes' keys
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Step size: the sum of absolute coefficients of a round
    #[arg(long)]
    pub step: Option<f64>,
    /// After so many percent of the rounds the step falls to zero [default: 70]. Where millions of
    /// parameters are trained, 0
    #[arg(long, value_name = "PERCENT")]
    pub decay_from: Option<f64>,
    /// Rows in the minibatch of a probe
    #[arg(long, default_value_t = 64)]
    pub batch: u32,
    /// ε = 2^E, the length of a probe
    #[arg(long, default_value_t = -8, allow_negative_numbers = true, value_name = "E")]
    pub epsilon_log2: i32,
    /// Probes that a node aims at in a round; it makes at most twice as many
    #[arg(long, default_value_t = 32)]
    pub probes_per_round: u32,
    /// Probes per direction, when every node makes just --probes-per-round (default: 1 with the
    /// selection rule mean, otherwise 3, so that rules have values to compare)
    #[arg(long)]
    pub redundancy: Option<f64>,
    /// Rounds that are certified together
    #[arg(long, default_value_t = 8)]
    pub rounds_per_height: u32,
    /// Rounds that a node may run beyond the ones it has closed
    #[arg(long, default_value_t = 2)]
    pub staleness: u32,
    /// Selection rule: mean, median, trimmed-mean, krum, nna, nnm, geometric-median, trust, stack
    #[arg(long, default_value = "mean")]
    pub selection: Rule,
    /// Rounds that the selection looks at
    #[arg(long, default_value_t = 20)]
    pub window: u32,
    /// Probes of others that a node repeats for every thousand of its own, so that lies are found out;
    /// needs public data (default: 50 in a run made by init with four members or more, otherwise 0)
    #[arg(long, value_name = "PERMILLE", value_parser = clap::value_parser!(u16).range(0..=1000))]
    pub audits: Option<u16>,
    /// Faulty members to tolerate (default: the most that R ≥ 3f + 1 allows)
    #[arg(long, value_name = "F")]
    pub tolerate: Option<u16>,
    /// Name of the run
    #[arg(long, default_value = "rumormill")]
    pub name: String,
    /// A pretrained model instead of --model.
    #[command(flatten)]
    pub language: LanguageArgs,
}

/// A run that can begin: the manifest and what it speaks of.
#[derive(Clone)]
pub struct Prepared {
    /// The agreement.
    pub manifest: Manifest,
    /// The data set.
    pub dataset: Arc<Dataset>,
    /// The model.
    pub spec: ModelSpec,
    /// The model on the data, at its base.
    pub task: Task,
    /// How the rows are held.
    pub shards: Shards,
    /// Seconds that one probe took here.
    pub probe_s: f64,
}

impl RunArgs {
    /// Loads the data, builds the base model, measures the scale of its projected gradients, and
    /// writes the manifest for these founders.
    pub fn prepare(
        &self,
        founders: Founders,
        cores: usize,
        directions: Directions,
    ) -> Result<Prepared> {
        let spec = self.spec()?;
        let dataset = Arc::new(self.load()?);
        let LanguageArgs { weights, device, .. } = &self.language;
        let (objective, base) = model(&spec, &dataset, self.seed, weights.as_deref(), *device)?;
        let redundancy =
            self.redundancy.unwrap_or(if self.selection == Rule::Mean { 1.0 } else { 3.0 });
        if !(1.0..=4096.0).contains(&redundancy) {
            bail!("--redundancy is {redundancy}, must be between 1 and 4096");
        }
        let step = self.step.unwrap_or(DEFAULT_STEP);
        if !(step > 0.0 && step < 256.0) {
            bail!("--step is {step}, must be above 0 and below 256");
        }
        let template = Manifest::template();
        let decay_from_permille = match self.decay_from {
            Some(percent) if (0.0..=100.0).contains(&percent) => (10.0 * percent).round() as u32,
            Some(percent) => bail!("--decay-from is {percent}, must be between 0 and 100"),
            None => template.decay_from_permille,
        };
        let public = self.shards == Shards::Public;
        let members = match &founders {
            Founders::Members(members) => members.len(),
            Founders::Minimum(minimum) => usize::from(*minimum),
        };
        let mut manifest = Manifest {
            name: self.name.clone(),
            seed: self.seed,
            model: spec.to_string(),
            data: dataset.name.clone(),
            data_hash: hex(&dataset.hash()),
            base_hash: base_hash(&*objective, &base),
            data_mode: if public { DataMode::Public } else { DataMode::Private },
            shards: self.shards.to_string(),
            rounds: self.rounds.unwrap_or(DEFAULT_ROUNDS),
            rounds_per_height: self.rounds_per_height,
            probes_per_round: self.probes_per_round,
            directions,
            redundancy_256: (redundancy * 256.0).round() as u32,
            staleness: self.staleness,
            batch: self.batch,
            epsilon_log2: self.epsilon_log2,
            step_24: ((step * f64::from(1 << 24)).round() as u32).max(1),
            decay_from_permille,
            selection: self.selection,
            window: self.window,
            audit_permille: self.audits.unwrap_or(0),
            faulty: self.tolerate,
            founders,
            ..template
        };
        manifest.check()?;
        let (exponent, probe_s) = measure(&manifest, &*objective, &base, &dataset);
        manifest.scale_exponent = exponent;
        if let Some(seconds) = self.seconds {
            if seconds.is_nan() || seconds <= 0.0 {
                bail!("--seconds must be positive");
            }
            // A node makes between m and 2m probes a round; a third of the time goes elsewhere.
            let parallel = cores.min(members).max(1) as f64;
            let round_s =
                f64::from(self.probes_per_round) * 2.0 * probe_s * members as f64 / parallel;
            manifest.rounds = ((seconds / round_s) as u64).max(1);
        }
        manifest.check()?;
        let task = task(objective, &dataset, base);
        Ok(Prepared { manifest, dataset, spec, task, shards: self.shards, probe_s })
    }

    /// Loads the data set.
    ///
    /// # Errors
    /// It cannot be read; the error names the file.
    pub fn load(&self) -> Result<Dataset> {
        Ok(self.source().load(&look)?)
    }

    /// The model, whichever way it was named.
    ///
    /// # Errors
    /// A setting of a language model that cannot be.
    pub fn spec(&self) -> Result<ModelSpec> {
        Ok(self.language.spec(&self.data)?.unwrap_or_else(|| self.model.clone()))
    }

    fn source(&self) -> DataSource {
        DataSource {
            data: self.data.clone(),
            test: self.test.clone(),
            format: self.format,
            text: self.language.columns(),
        }
    }
}

/// What is at a path of this machine.
pub(crate) fn look(path: &Path) -> std::io::Result<Found> {
    match std::fs::metadata(path)?.is_dir() {
        true => Ok(Found::Folder),
        false => Ok(Found::File(Box::new(File::open(path)?))),
    }
}

/// Step size where nothing is said; measured, see ARCHITECTURE.md.
const DEFAULT_STEP: f64 = 0.07;

/// Rounds where nothing is said: the built-in task is through in well under a minute.
const DEFAULT_ROUNDS: u64 = 1000;

/// Probes by which the scale of the first bytes is measured.
const SCALE_PROBES: u32 = 64;

/// The same where a probe takes a good part of a second.
const SCALE_PROBES_SLOW: u32 = 16;

fn model(
    spec: &ModelSpec,
    dataset: &Arc<Dataset>,
    seed: u64,
    weights: Option<&Path>,
    device: Device,
) -> Result<(Arc<dyn Objective>, State)> {
    let objective = match spec {
        ModelSpec::Language(spec) => crate::language::objective(weights, device, spec, dataset)?,
        _ if device != Device::Cpu => {
            bail!("--device is {device}, but only language models (--weights) compute there")
        }
        _ => Arc::from(build(spec, Arc::clone(dataset))?),
    };
    let base = State::from_base(objective.tensors(), objective.base(seed))
        .context("the base model cannot be represented")?;
    Ok((objective, base))
}

/// The hash of everything a run begins with: the state, and what of the model is not trained.
fn base_hash(objective: &dyn Objective, base: &State) -> String {
    match objective.fixed_hash() {
        None => hex(&base.hash()),
        Some(fixed) => {
            let both = [base.hash(), fixed].concat();
            hex(&blake3::derive_key("rumormill v1 base model", &both))
        }
    }
}

fn task(objective: Arc<dyn Objective>, dataset: &Dataset, base: State) -> Task {
    let population = dataset.train.rows();
    Task { objective, rows: None, population, base, threads: 1, keep: false }
}

/// The scale exponent of the base model's projected gradients, and the seconds of a probe.
fn measure(
    manifest: &Manifest,
    objective: &dyn Objective,
    base: &State,
    dataset: &Dataset,
) -> (i32, f64) {
    let run = RunId(blake3::derive_key("rumormill v1 scale", manifest.base_hash.as_bytes()));
    let mut scratch = Scratch::default();
    let mut batch = vec![0; manifest.batch as usize];
    let probes = if objective.is_differentiable() { SCALE_PROBES } else { SCALE_PROBES_SLOW };
    let started = Instant::now();
    let mut values: Vec<f64> = (0..probes)
        .map(|slot| {
            let (round, slot) = (Round(0), Slot(slot));
            let direction = Direction::new(&run, round, slot);
            let epsilon_log2 = manifest.epsilon_log2;
            minibatch(&run, &NodeId([0; 32]), round, slot, dataset.train.rows(), &mut batch);
            let (up, down) = objective.probe(base, &direction, epsilon_log2, &batch, &mut scratch);
            projected_gradient(up, down, epsilon_log2)
        })
        .collect();
    let probe_s = started.elapsed().as_secs_f64() / f64::from(probes);
    (lb8::scale_exponent(&mut values).unwrap_or(0).clamp(-60, 60), probe_s)
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A node's own settings: the `[node]` table of `run.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NodeSettings {
    /// `digits`, a folder or a file.
    pub data: String,
    /// File of held-out rows; empty for none.
    pub test: String,
    /// Format of the data file; empty to go by its suffix.
    pub format: String,
    /// Folder or file of a language model's weights; empty for other models.
    pub weights: String,
    /// Device of a language model, if it is not the processor: `cuda` or `cuda:N`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub device: String,
    /// Column of the texts; empty to go by the header.
    pub text_column: String,
    /// Column of the labels; empty to go by the header.
    pub label_column: String,
    /// Addresses to listen on.
    pub listen: Vec<String>,
    /// Addresses of peers to begin with.
    pub peers: Vec<String>,
    /// Find peers on the local network.
    pub mdns: bool,
    /// Find peers through a distributed hash table.
    pub kad: bool,
    /// Relay client, hole punching and AutoNAT.
    pub nat: bool,
    /// Connections that the node makes itself.
    pub neighbors: usize,
    /// Exchanges a second on an edge; 0 for automatic.
    pub edge_rate_per_s: f64,
    /// Probes a second; 0 for as fast as compute allows.
    pub probe_rate_per_s: f64,
    /// When the disk must have confirmed what was written.
    pub sync: Sync,
    /// Seconds between two checkpoints; 0 for one at the end only.
    pub checkpoint_s: f64,
    /// Where the model comes from when the node is far behind.
    pub catch_up: ModelSource,
    /// Certified heights of which the history is kept, at least; 0 for all.
    pub retain_heights: u64,
}

impl Default for NodeSettings {
    fn default() -> NodeSettings {
        NodeSettings {
            data: DIGITS.into(),
            test: String::new(),
            format: String::new(),
            weights: String::new(),
            device: String::new(),
            text_column: String::new(),
            label_column: String::new(),
            listen: vec!["/ip4/0.0.0.0/tcp/0".into(), "/ip4/0.0.0.0/udp/0/quic-v1".into()],
            peers: Vec::new(),
            mdns: true,
            kad: true,
            nat: false,
            neighbors: 8,
            edge_rate_per_s: 0.0,
            probe_rate_per_s: 0.0,
            sync: Sync::Always,
            checkpoint_s: 60.0,
            catch_up: ModelSource::Auto,
            retain_heights: 0,
        }
    }
}

/// `run.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunFile {
    /// The manifest: the same text at every node.
    pub run: Manifest,
    /// This node's own settings.
    #[serde(default)]
    pub node: NodeSettings,
    /// How this node misbehaves; only in a run with `lab = true`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub faults: Option<Fault>,
}

/// Comment above each key of `[run]`.
const RUN_COMMENTS: &[(&str, &str)] = &[
    ("version", "Version of protocol and manifest."),
    ("name", "A name for people."),
    ("seed", "Seed of the base model and of the shards."),
    ("model", "softmax, linear[:L2], logistic[:L2[:no-bias]], mlp:H[,H2…], cnn or language:…"),
    ("data", "Name of the data set, for people; each node says in [node] where it is."),
    ("data_hash", "BLAKE3 of the data set as parsed."),
    ("base_hash", "BLAKE3 of the base model."),
    ("data_mode", "public: every node has all rows. private: each its own shard."),
    ("shards", "public, iid or dirichlet:ALPHA."),
    ("rounds", "Number of rounds, rounded up to whole heights."),
    ("rounds_per_height", "E, rounds that are certified together."),
    ("probes_per_round", "m, probes a node aims at in a round; at most 2m are counted."),
    ("directions", "shared: all walk the same. private: each its own, and all wait for all."),
    ("redundancy_256", "Probes per direction, in units of 1/256."),
    ("staleness", "Rounds a node may run beyond the ones it has closed."),
    ("batch", "Rows in the minibatch of a probe."),
    ("epsilon_log2", "Length of a probe: 2^epsilon_log2."),
    ("step_24", "Step size, the sum of absolute coefficients of a round, in units of 2^-24."),
    ("decay_from_permille", "After this part of the run (in 1/1000) the step falls to zero."),
    ("scale_exponent", "Scale of the first bytes, measured on the base model."),
    ("selection", "mean, median, trimmed-mean, krum, nna, nnm, geometric-median, trust or stack."),
    ("window", "Rounds that the selection looks at."),
    ("beta_permille", "Momentum factor of the selection window, in 1/1000."),
    ("instalments", "Which share (in units of 2^-16) of a record is paid out at which age."),
    ("faulty", "Faulty members to tolerate; without it the most that R >= 3f + 1 allows."),
    (
        "founders",
        "{ minimum = N }: the first N nodes that find each other. { members = [..] }: these.",
    ),
    ("lab", "Whether faults may be injected."),
    (
        "audit_permille",
        "Probes of others that a node repeats for every 1000 of its own; needs public data.",
    ),
];

/// Comment above each key of `[node]`.
const NODE_COMMENTS: &[(&str, &str)] = &[
    ("data", "digits (built in), a folder of MNIST-style idx files, a .csv or .libsvm file."),
    ("test", "File of held-out rows; empty: 20 % of the rows are held out."),
    ("format", "csv or libsvm, if the suffix does not tell."),
    (
        "weights",
        "Folder of a language model's weights, or a llama2.c .bin; empty for other models.",
    ),
    ("device", "Where a language model computes: cpu, or an NVIDIA card, cuda:N."),
    ("text_column", "Column of a language model's texts, by name or number; empty: by the header."),
    ("label_column", "Column of the labels."),
    ("listen", "Addresses to listen on; port 0 takes a free one."),
    ("peers", "Addresses of other nodes: /ip4/192.0.2.7/tcp/4001/p2p/12D3…"),
    ("mdns", "Find nodes on the local network."),
    ("kad", "Find nodes through those already known."),
    ("nat", "Relay client, hole punching and AutoNAT."),
    ("neighbors", "Connections the node makes itself; it accepts more."),
    ("edge_rate_per_s", "Exchanges a second on an edge; 0: by the speed of the probes."),
    ("probe_rate_per_s", "Probes a second; 0: as fast as compute allows."),
    (
        "checkpoint_s",
        "Seconds between two checkpoints, which make a restart short; 0: at the end only.",
    ),
    (
        "catch_up",
        "A node far behind: history (replay it), checkpoint (a neighbor's), auto (the faster one).",
    ),
    (
        "retain_heights",
        "Certified heights of which the history is kept, at least; 0: all, so that nodes can join late.",
    ),
    ("sync", "always: the disk confirms one's own signatures before they are sent. never."),
];

/// Comment above each key of `[faults]`.
const FAULTS_COMMENTS: &[(&str, &str)] = &[
    ("kind", "How this node misbehaves: sign-flip, alie, silent, equivocation, …"),
    ("factor", "How strongly; the usual strength without it."),
];

impl RunFile {
    /// The file's text, every key with its comment.
    pub fn render(&self) -> Result<String> {
        let table = toml::Table::try_from(self)?;
        let mut text = String::from(
            "# A rumormill run. Every node needs the same [run] table: its hash is the run's\n\
             # identity, and nodes of different runs refuse each other.\n",
        );
        for (name, comments) in [("run", RUN_COMMENTS), ("node", NODE_COMMENTS)] {
            text += &format!("\n[{name}]\n");
            let section = table.get(name).and_then(toml::Value::as_table);
            let section = section.context("a run file has both tables")?;
            render_section(section, comments, &mut text);
        }
        if let Some(section) = table.get("faults").and_then(toml::Value::as_table) {
            text += "\n[faults]\n";
            render_section(section, FAULTS_COMMENTS, &mut text);
        }
        Ok(text)
    }

    /// Reads a file.
    pub fn read(path: &Path) -> Result<RunFile> {
        let text = std::fs::read_to_string(path).with_context(|| {
            format!("cannot read {}; `rumormill init` writes one", path.display())
        })?;
        let file: RunFile = toml::from_str(&text).map_err(|error| {
            let message = error.to_string();
            let message = message.trim_end().replace('\n', "; ");
            anyhow::anyhow!("{}: {message}", path.display())
        })?;
        file.run.check().with_context(|| path.display().to_string())?;
        if let Some(fault) = file.faults {
            Fault::new(fault.kind, fault.factor).with_context(|| path.display().to_string())?;
            if !file.run.lab {
                bail!(
                    "{}: faults: only a run with lab = true lets its nodes misbehave",
                    path.display()
                );
            }
        }
        Ok(file)
    }

    /// Where a pretrained model's weights are.
    pub fn weights(&self) -> Option<&Path> {
        (!self.node.weights.is_empty()).then(|| Path::new(&self.node.weights))
    }

    /// The run's model on a data set, and its base model.
    ///
    /// # Errors
    /// They do not fit each other.
    pub fn model(&self, dataset: &Arc<Dataset>) -> Result<(Arc<dyn Objective>, State)> {
        let spec = self.run.model.parse()?;
        let device = match &*self.node.device {
            "" => Device::Cpu,
            name => name.parse().context("node.device")?,
        };
        model(&spec, dataset, self.run.seed, self.weights(), device)
    }

    fn source(&self) -> Result<DataSource> {
        let spec: ModelSpec = self.run.model.parse()?;
        let named = |text: &String| (!text.is_empty()).then(|| text.clone());
        Ok(DataSource {
            data: self.node.data.clone(),
            test: (!self.node.test.is_empty()).then(|| self.node.test.clone().into()),
            format: match self.node.format.as_str() {
                "" => None,
                name => Some(name.parse().map_err(anyhow::Error::msg)?),
            },
            text: matches!(spec, ModelSpec::Language(_)).then(|| Columns {
                text: named(&self.node.text_column),
                label: named(&self.node.label_column),
            }),
        })
    }

    /// A data set whose held-out rows are other data of the run's form: the file beside the run's own
    /// training rows, which number its classes, or the folder itself.
    ///
    /// # Errors
    /// It cannot be read, or does not fit the run's data.
    pub fn other_data(&self, data: &str, format: Option<DataFormat>) -> Result<Dataset> {
        let ours = self.source()?;
        let source = match Path::new(data).is_file() {
            true => DataSource { test: Some(data.into()), format: format.or(ours.format), ..ours },
            false => DataSource { data: data.into(), test: None, format, ..ours },
        };
        Ok(source.load(&look)?)
    }

    /// Loads the data and the base model that the manifest speaks of, and compares their hashes.
    pub fn prepare(&self) -> Result<Prepared> {
        let spec: ModelSpec = self.run.model.parse()?;
        let source = self.source()?;
        let dataset = Arc::new(source.load(&look)?);
        let found = hex(&dataset.hash());
        if found != self.run.data_hash {
            bail!(
                "data set {} has hash {found}, the run was made with {} (run.data_hash): use the \
                 same files",
                self.node.data,
                self.run.data_hash
            );
        }
        let weights = self.weights();
        let (objective, base) = self.model(&dataset)?;
        let found = base_hash(&*objective, &base);
        if found != self.run.base_hash {
            let remedy = match weights {
                Some(path) => format!("{} holds other weights; take the run's", path.display()),
                None => "it was changed by hand, or made by another version".into(),
            };
            bail!(
                "the base model has hash {found}, the run was made with {} (run.base_hash): {remedy}",
                self.run.base_hash
            );
        }
        let shards = match self.run.data_mode {
            DataMode::Public => Shards::Public,
            DataMode::Private => self.run.shards.parse()?,
        };
        let task = task(objective, &dataset, base);
        Ok(Prepared { manifest: self.run.clone(), dataset, spec, task, shards, probe_s: 0.0 })
    }
}

fn render_section(section: &toml::Table, comments: &[(&str, &str)], text: &mut String) {
    for (key, comment) in comments {
        if let Some(value) = section.get(*key) {
            *text += &format!("# {comment}\n{key} = {value}\n");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rumormill::fault::FaultKind;

    #[test]
    fn a_rendered_file_reads_back_and_every_key_has_a_comment() {
        let file = RunFile {
            run: Manifest { faulty: Some(0), ..Manifest::template() },
            node: NodeSettings { device: "cuda:1".into(), ..NodeSettings::default() },
            faults: Some(Fault { kind: FaultKind::Alie, factor: Some(0.5) }),
        };
        let text = file.render().unwrap();
        let back: RunFile = toml::from_str(&text).unwrap();
        assert_eq!(back, file);
        let table = toml::Table::try_from(&file).unwrap();
        let tables = [("run", RUN_COMMENTS), ("node", NODE_COMMENTS), ("faults", FAULTS_COMMENTS)];
        for (name, comments) in tables {
            for key in table[name].as_table().unwrap().keys() {
                assert!(comments.iter().any(|(known, _)| known == key), "{name}.{key}");
            }
        }
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_name() {
        let (run, node) = (Manifest::template(), NodeSettings::default());
        let text = RunFile { run, node, faults: None }
            .render()
            .unwrap()
            .replace("mdns = true", "mnds = true");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.toml");
        std::fs::write(&path, text).unwrap();
        let error = format!("{:#}", RunFile::read(&path).unwrap_err());
        assert!(error.contains("mnds") && error.contains("run.toml"), "{error}");
    }
}
