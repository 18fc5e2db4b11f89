//! `rumormill init`: writes a commented `run.toml`.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

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
pub(crate) fn write_atomically(path: &Path, bytes: impl AsRef<[u8]>) -> Result<()> {
    write_atomically_with(path, |file| Ok(file.write_all(bytes.as_ref())?))
}

/// Removes what processes that were killed while they wrote into a directory have left there. Nobody else may be writing.
pub(crate) fn remove_parts(directory: &Path) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name();
        let is_part = name.to_str().is_some_and(|name| {
            let pid = name.strip_suffix(".part").and_then(|name| name.rsplit_once('.'));
            pid.is_some_and(|(name, pid)| {
                name.starts_with('.') && name.len() > 1 && pid.parse::<u32>().is_ok()
            })
        });
        if is_part {
            // It is in nobody's way.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Writes a whole file or nothing, a piece at a time.
pub(crate) fn write_atomically_with(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> Result<()>,
) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let name = path.file_name().context("the output has no file name")?.to_string_lossy();
    let part = folder.join(format!(".{name}.{}.part", std::process::id()));
    let written = || -> Result<()> {
        let mut file = BufWriter::new(File::create(&part)?);
        write(&mut file)?;
        file.into_inner().map_err(|error| error.into_error())?.sync_all()?;
        Ok(std::fs::rename(&part, path)?)
    };
    written().map_err(|error| {
        let _ = std::fs::remove_file(&part);
        error.context(format!("cannot write {}", path.display()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_written_whole_or_not_at_all_and_parts_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        write_atomically(&path, "old").unwrap();
        let failed = write_atomically_with(&path, |file| {
            file.write_all(b"half")?;
            bail!("the disk is full")
        });
        let error = format!("{:#}", failed.unwrap_err());
        assert!(error.contains("model.safetensors: the disk is full"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        let names = || {
            let entries = std::fs::read_dir(folder.path()).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(names(), ["model.safetensors"]);
        for name in [".model.safetensors.123.part", ".x.part", "y.7.part"] {
            std::fs::write(folder.path().join(name), "half").unwrap();
        }
        remove_parts(folder.path());
        assert_eq!(names(), [".x.part", "model.safetensors", "y.7.part"]);
    }
}
