//! `rumormill init`: writes a commented `run.toml`.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use rumormill::data::shard::Shards;
use rumormill::manifest::{Directions, Founders, Manifest};

use crate::run::{NodeSettings, RunArgs, RunFile};

/// Write a commented run.toml that every node of the run needs.
#[derive(Clone, Debug, clap::Args)]
pub struct InitArgs {
    /// The file to write
    #[arg(long, default_value = "run.toml", value_name = "FILE")]
    pub out: PathBuf,
    /// The run starts when so many nodes, at most 128, have found each other; others join
    #[arg(long, default_value_t = 3)]
    pub members: u16,
    /// Write over an existing file
    #[arg(long)]
    pub force: bool,
    /// shared: all measure along the same directions. private: each along its own and all wait for
    /// all, as in *Just One Byte*
    #[arg(long, default_value = "shared")]
    pub directions: Directions,
    /// Let faults be injected into the run's nodes
    #[arg(long)]
    pub lab: bool,
    /// What to train.
    #[command(flatten)]
    pub run: RunArgs,
}

/// Probes of others that a node repeats for every thousand of its own, unless the user says otherwise:
/// what a run among strangers costs to be safe from lies.
pub(crate) const AUDITS: u16 = 50;

/// Runs the command.
pub fn run(args: &InitArgs) -> Result<u8> {
    if args.out.exists() && !args.force {
        bail!("{} exists; --force writes over it, --out names another", args.out.display());
    }
    let mut run = args.run.clone();
    if run.shards == Shards::Public && args.members >= 4 {
        run.audits = run.audits.or(Some(AUDITS));
    }
    let prepared =
        run.prepare(Founders::Minimum(args.members), usize::from(args.members), args.directions)?;
    let absolute = |path: &str| match std::fs::canonicalize(path) {
        Ok(path) if args.run.data != rumormill::data::source::DIGITS => {
            path.to_string_lossy().into_owned()
        }
        _ => path.to_owned(),
    };
    let test = args.run.test.as_ref().map(|test| absolute(&test.to_string_lossy()));
    let weights = args.run.language.weights.as_ref();
    let weights = weights.map(|weights| match crate::hub::is_named(weights) {
        true => weights.to_string_lossy().into_owned(),
        false => absolute(&weights.to_string_lossy()),
    });
    let format = args.run.format.map(|format| format.to_string());
    let file = RunFile {
        node: NodeSettings {
            data: absolute(&args.run.data),
            test: test.unwrap_or_default(),
            format: format.unwrap_or_default(),
            weights: weights.unwrap_or_default(),
            device: args.run.language.named_device(),
            text_column: args.run.language.text_column.clone().unwrap_or_default(),
            label_column: args.run.language.label_column.clone().unwrap_or_default(),
            ..NodeSettings::default()
        },
        run: Manifest { lab: args.lab, ..prepared.manifest },
        faults: None,
    };
    write_atomically(&args.out, &file.render()?)?;
    eprintln!(
        "wrote {} (run {}); start {} nodes with `rumormill node --run {} --data-dir DIR`",
        args.out.display(),
        &file.run.run_id().to_string()[..12],
        args.members,
        args.out.display()
    );
    Ok(0)
}

/// Writes a whole file or nothing.
pub(crate) fn write_atomically(path: &std::path::Path, bytes: impl AsRef<[u8]>) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(std::path::Path::new("."));
    let name = path.file_name().context("the output has no file name")?.to_string_lossy();
    let part = folder.join(format!(".{name}.{}.part", std::process::id()));
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::File::create(&part)?;
        file.write_all(bytes.as_ref())?;
        file.sync_all()?;
        std::fs::rename(&part, path)
    };
    write().map_err(|error| {
        let _ = std::fs::remove_file(&part);
        anyhow::anyhow!("cannot write {}: {error}", path.display())
    })
}
