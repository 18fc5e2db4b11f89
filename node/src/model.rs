//! Commands on the model of a data directory: `checkpoint`, `export`, `eval`, `verify`.
//!
//! They read the log and never write to it, so they may run beside the node. The model is the one after
//! the last certified height, derived as the node derives it.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use rumormill::data::source::DataFormat;
use rumormill::id::RunId;
use rumormill::keys::Keys;
use rumormill::objective::{Evaluation, ModelSpec, Scratch, Split};
use rumormill::params::{Payout, State};
use rumormill::protocol::{Change, Config, Entry, Protocol};
use serde_json::json;

use crate::checkpoint::{self, Checkpoint, Stand, path_in};
use crate::control::{self, Answer, Request};
use crate::identity::{DirectoryLock, Identity};
use crate::resume::{Move, resume};
use crate::run::{Prepared, RunFile, hex};
use crate::store;

/// Write the model down, so that a node starts from it: a running one does it itself
#[derive(Clone, Debug, clap::Args)]
pub struct CheckpointArgs {
    /// The node's data directory
    #[arg(long, value_name = "DIR", env = "RUMORMILL_DATA_DIR")]
    pub data_dir: PathBuf,
    /// Where to, instead of the data directory
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Where a model comes from.
#[derive(Clone, Debug, clap::Args)]
pub struct Source {
    /// The node's data directory
    #[arg(long, value_name = "DIR", env = "RUMORMILL_DATA_DIR")]
    pub data_dir: PathBuf,
    /// The model of this checkpoint of the same run, instead of that of the log
    #[arg(long, value_name = "FILE")]
    pub checkpoint: Option<PathBuf>,
}

/// A form of exported weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ExportFormat {
    /// One file of named `F32` tensors, as the Python libraries read it
    Safetensors,
}

/// Write the weights for other programs
#[derive(Clone, Debug, clap::Args)]
pub struct ExportArgs {
    #[command(flatten)]
    source: Source,
    /// The form
    #[arg(long, value_enum, default_value = "safetensors")]
    format: ExportFormat,
    /// Where to: a file, or a new folder for a language model
    #[arg(long, value_name = "PATH", default_value = "model.safetensors")]
    out: PathBuf,
}

/// Measure the model on held-out rows, or on other data of the same form
#[derive(Clone, Debug, clap::Args)]
pub struct EvalArgs {
    #[command(flatten)]
    source: Source,
    /// Other data: a .csv or .libsvm file, all of whose rows are taken, where the run's data are such a
    /// file; or a folder of idx files, whose held-out rows are taken
    #[arg(long)]
    data: Option<String>,
    /// Format of the data file, overriding its suffix: csv, libsvm, idx
    #[arg(long, requires = "data")]
    format: Option<DataFormat>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Replay a ledger from the base model and check every signature, every height, the digest chain and the
/// checkpoint; the first wrong entry is named
#[derive(Clone, Debug, clap::Args)]
pub struct VerifyArgs {
    /// The data directory
    #[arg(value_name = "DIR")]
    data_dir: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// A data directory whose log was replayed.
struct Replayed {
    file: RunFile,
    prepared: Prepared,
    stand: Stand,
    state: State,
    /// Entries of the log.
    entries: usize,
    /// Bytes of an unfinished entry at the end of the log.
    unfinished: u64,
    protocol: Protocol,
}

fn run_file(directory: &Path) -> Result<RunFile> {
    if !directory.join("run.toml").is_file() {
        bail!("{} is no data directory of a node: it has no run.toml", directory.display());
    }
    RunFile::read(&directory.join("run.toml"))
}

impl Replayed {
    /// Replays the log of a directory; from its checkpoint, unless `whole`.
    fn of(directory: &Path, whole: bool) -> Result<Replayed> {
        let file = run_file(directory)?;
        let run = file.run.run_id();
        let (log, unfinished) = store::read(directory, run)?;
        let prepared = file.prepare()?;
        let keys = Keys::from_seed(Identity::load_or_any(directory)?.seed());
        let mut state = prepared.task.base.clone();
        let kept = path_in(directory);
        let base = &prepared.task.base;
        let mut checkpoints = Vec::new();
        if !whole && kept.exists() {
            checkpoints.push(checkpoint::read(&kept, run, base)?.beyond(base));
        }
        let begins_later = log.first().is_some_and(|of| matches!(of.entry, Entry::Foundation(_)));
        if begins_later {
            checkpoints.extend(checkpoint::read_base(directory, run, base)?);
        }
        let mut waiting: Vec<Change> = Vec::new();
        let mut moves = |of: Move| match of {
            Move::Add(beyond) => state.add(&beyond),
            Move::Apply(changes) => {
                waiting.extend(changes);
                // Many directions at a time are cheaper each.
                if waiting.len() >= REPLAYED_TOGETHER {
                    apply(&mut state, &run, &std::mem::take(&mut waiting));
                }
            }
        };
        let (protocol, _) =
            resume(&file.run, &keys, &Config::default(), &log, checkpoints, false, &mut moves)?;
        apply(&mut state, &run, &waiting);
        let height = protocol.certified();
        let stand = Stand {
            run,
            height,
            round: height * u64::from(file.run.rounds_per_height),
            chain: protocol.digest(),
        };
        let entries = log.len();
        Ok(Replayed { file, prepared, stand, state, entries, unfinished, protocol })
    }
}

/// Changes that are replayed in one call.
const REPLAYED_TOGETHER: usize = 1 << 14;

fn apply(state: &mut State, run: &RunId, changes: &[Change]) {
    let payouts: Vec<Payout> = changes.iter().map(|change| change.payout(run)).collect();
    state.apply(&payouts);
}

/// The model that a command is about.
fn model(source: &Source) -> Result<(RunFile, Prepared, Stand, State)> {
    if let Some(path) = &source.checkpoint {
        let file = run_file(&source.data_dir)?;
        let prepared = file.prepare()?;
        let Checkpoint { stand, state } =
            checkpoint::read(path, file.run.run_id(), &prepared.task.base)?;
        return Ok((file, prepared, stand, state));
    }
    let Replayed { file, prepared, stand, state, .. } = Replayed::of(&source.data_dir, false)?;
    Ok((file, prepared, stand, state))
}

/// Runs `rumormill checkpoint`.
pub fn run_checkpoint(args: &CheckpointArgs) -> Result<u8> {
    let kept = path_in(&args.data_dir);
    let target = args.out.as_ref().unwrap_or(&kept);
    let (height, round) = match control::ask(&args.data_dir, &Request::Checkpoint) {
        Ok(Answer::Checkpoint { height, round }) => {
            if *target != kept {
                let mut file = std::fs::File::open(&kept)
                    .with_context(|| format!("cannot read {}", kept.display()))?;
                crate::init::write_atomically_with(target, |target| {
                    std::io::copy(&mut file, target).with_context(|| kept.display().to_string())?;
                    Ok(())
                })?;
            }
            (height, round)
        }
        Ok(Answer::Refused { reason }) => bail!("{reason}"),
        Ok(_) => bail!("the node gave no checkpoint; is it of another version?"),
        // No node runs there.
        Err(_) => {
            // Nor shall one start meanwhile: it would tidy the directory up.
            let _lock = DirectoryLock::acquire(&args.data_dir)?;
            let Replayed { stand, state, .. } = Replayed::of(&args.data_dir, false)?;
            checkpoint::write(target, &stand, &state)?;
            (stand.height, stand.round)
        }
    };
    let text = match args.json {
        true => {
            let object = json!({ "file": target, "height": height, "round": round });
            format!("{object}\n")
        }
        false => format!(
            "wrote {}: the model after {height} heights ({round} rounds)\n",
            target.display()
        ),
    };
    crate::cli::print(&text)?;
    Ok(0)
}

/// Runs `rumormill export`.
pub fn run_export(args: &ExportArgs) -> Result<u8> {
    let (file, _, stand, state) = model(&args.source)?;
    let language = matches!(file.run.model.parse()?, ModelSpec::Language(_));
    match args.format {
        // With the names and files of the folder that the model came from.
        ExportFormat::Safetensors if language => {
            crate::language::export(file.weights(), &state, &args.out)?;
        }
        ExportFormat::Safetensors => checkpoint::export(&args.out, &stand, &state)?,
    }
    eprintln!(
        "wrote {}: {} parameters in {} tensors after {} rounds",
        args.out.display(),
        state.layout().dim(),
        state.layout().tensors().len(),
        stand.round
    );
    Ok(0)
}

/// Runs `rumormill eval`.
pub fn run_eval(args: &EvalArgs) -> Result<u8> {
    let (file, prepared, stand, state) = model(&args.source)?;
    let mut scratch = Scratch::default();
    let (name, evaluation) = match &args.data {
        None => {
            let held_out = prepared.task.objective.quality(&state, Split::Test, &mut scratch);
            (format!("held-out rows of {}", file.run.data), held_out)
        }
        Some(data) => {
            let dataset = file.other_data(data, args.format)?;
            let ours = &prepared.dataset;
            if (dataset.features, dataset.classes) != (ours.features, ours.classes) {
                bail!(
                    "{data} has {} features and {} classes, the data of the run {} and {}",
                    dataset.features,
                    dataset.classes,
                    ours.features,
                    ours.classes
                );
            }
            let (objective, _) = file.model(&dataset.into())?;
            (data.clone(), objective.quality(&state, Split::Test, &mut scratch))
        }
    };
    let Evaluation { loss, accuracy, count } = evaluation;
    let text = match args.json {
        true => {
            let object = json!({
                "data": name, "rows": count, "loss": loss, "accuracy": accuracy,
                "round": stand.round, "state_hash": hex(&state.hash()),
            });
            format!("{object}\n")
        }
        false => format!(
            "{name}: accuracy {:.2} %, loss {loss:.4} over {count} rows, after {} rounds\n",
            100.0 * accuracy,
            stand.round
        ),
    };
    crate::cli::print(&text)?;
    Ok(0)
}

/// Runs `rumormill verify`.
pub fn run_verify(args: &VerifyArgs) -> Result<u8> {
    let started = Instant::now();
    let directory = &args.data_dir;
    let replayed = Replayed::of(directory, true)?;
    let Replayed { file, prepared, stand, state, entries, unfinished, protocol } = &replayed;
    check_own(directory, file.run.run_id())?;
    let kept = path_in(directory);
    let mut checkpoint_height = None;
    if kept.exists() {
        let Checkpoint { stand: kept_stand, state: kept_state } =
            checkpoint::read(&kept, stand.run, &prepared.task.base)?;
        checkpoint_height = Some(kept_stand.height);
        if kept_stand.height > stand.height {
            bail!(
                "{} is of height {}, but the log ends at {}; delete it, or restore the log",
                kept.display(),
                kept_stand.height,
                stand.height
            );
        }
        if kept_stand.height == stand.height {
            if kept_stand.chain != stand.chain {
                bail!(
                    "{}: its digest chain is {}, the ledger's {}",
                    kept.display(),
                    kept_stand.chain,
                    stand.chain
                );
            }
            if kept_state != *state {
                bail!(
                    "{}: its state has hash {}, the replayed one {}; delete it",
                    kept.display(),
                    hex(&kept_state.hash()),
                    hex(&state.hash())
                );
            }
        } else if kept_stand.height >= protocol.built_on().0 {
            // Of an earlier height: going on from it must lead to the same model.
            let from_it = Replayed::of(directory, false)?;
            if from_it.state != *state {
                bail!(
                    "{}: replayed from its height {} the state has hash {}, from the base model {}; \
                     delete it",
                    kept.display(),
                    kept_stand.height,
                    hex(&from_it.state.hash()),
                    hex(&state.hash())
                );
            }
        }
    }
    let heights = file.run.heights();
    let text = match args.json {
        true => {
            let object = json!({
                "run": stand.run.to_string(), "entries": entries, "certified": stand.height,
                "heights": heights, "chain": stand.chain.to_string(), "state_hash": hex(&state.hash()),
                "from_height": protocol.built_on().0,
                "checkpoint_height": checkpoint_height, "unfinished_bytes": unfinished,
                "members": protocol.roster().len(), "seconds": started.elapsed().as_secs_f64(),
            });
            format!("{object}\n")
        }
        false => {
            let checkpoint = match checkpoint_height {
                Some(height) => format!("of height {height}, fits"),
                None => "none".into(),
            };
            let dropped = match protocol.built_on().0 {
                0 => String::new(),
                height => format!(" (the history before height {height} was dropped)"),
            };
            let tail = match unfinished {
                0 => String::new(),
                bytes => format!(" ({bytes} bytes of an unfinished one behind them)"),
            };
            format!(
                "run        {}\nentries    {entries}{tail}\ncertified  {} of {heights} heights{dropped}\n\
                 chain      {}\nstate      {}\ncheckpoint {checkpoint}\nVERIFIED in {:.1} s: every \
                 signature, height and coefficient follows\n",
                stand.run,
                stand.height,
                stand.chain,
                hex(&state.hash()),
                started.elapsed().as_secs_f64()
            )
        }
    };
    crate::cli::print(&text)?;
    Ok(0)
}

/// Checks that the node never signed two contradicting segments of one height.
fn check_own(directory: &Path, run: RunId) -> Result<()> {
    let (log, _) = store::read(directory, run)?;
    let mut last = std::collections::BTreeMap::new();
    for logged in &log {
        let Entry::Own { height, segment } = &logged.entry else { continue };
        if let Some((offset, before)) = last.insert(*height, (logged.offset, segment))
            && segment.contradicts(before)
        {
            bail!(
                "ledger.log: the own segments of height {height} at bytes {offset} and {} contradict \
                 each other: this directory has been used twice",
                logged.offset
            );
        }
    }
    Ok(())
}
