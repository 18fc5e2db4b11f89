//! Checkpoints: the model after a certified height, in a safetensors file.
//!
//! A checkpoint holds the exact integer state (`I32`, in units of each tensor's LSB) and, in its
//! metadata, the run, the height, the digest chain up to it, the LSBs and the state's hash. It is
//! believed only as far as the chain goes: who uses one derives the chain from the certified history
//! itself, and takes the model when both agree. So it saves the replay of the model, never a check.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rumormill::height::ChainDigest;
use rumormill::id::RunId;
use rumormill::params::{Layout, State, Tensor};
use rumormill::tensors::{Announced, Dtype, PIECE_LEN, TensorsError, TensorsFile, header};

use crate::init::write_atomically_with;
use crate::run::hex;

/// Name of a node's own checkpoint in its data directory.
pub const CHECKPOINT_NAME: &str = "checkpoint.safetensors";

/// Name of the model that a log begins with whose older history was dropped.
pub const BASE_NAME: &str = "base.safetensors";

/// What the file says it is; the number is the version of its format.
const FORMAT: &str = "rumormill checkpoint 1";

/// What a checkpoint is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stand {
    /// The run.
    pub run: RunId,
    /// Heights certified.
    pub height: u64,
    /// The first round that is not in it.
    pub round: u64,
    /// The digest chain after these heights.
    pub chain: ChainDigest,
}

/// A model after a certified height.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// What it is of.
    pub stand: Stand,
    /// The model.
    pub state: State,
}

impl Checkpoint {
    /// What the model has beyond the base model that it grew from.
    pub fn beyond(self, base: &State) -> Advance {
        let Checkpoint { stand, state: mut beyond } = self;
        beyond.subtract(base);
        Advance { stand, beyond }
    }
}

/// A checkpoint as something to be added: what is applied before and after comes together with it.
#[derive(Clone, Debug, PartialEq)]
pub struct Advance {
    /// What it is of.
    pub stand: Stand,
    /// The model, less the base model.
    pub beyond: State,
}

/// The units of a layout's tensors, in its order.
fn units(layout: &Layout) -> String {
    let of_all = layout.tensors().iter().map(|tensor| tensor.lsb_log2.to_string());
    of_all.collect::<Vec<_>>().join(" ")
}

/// Writes a checkpoint, whole or not at all.
///
/// # Errors
/// The system refused.
pub fn write(path: &Path, stand: &Stand, state: &State) -> Result<()> {
    let entries = [
        ("format", FORMAT.to_owned()),
        ("run", stand.run.to_string()),
        ("height", stand.height.to_string()),
        ("round", stand.round.to_string()),
        ("chain", stand.chain.to_string()),
        ("lsb_log2", units(state.layout())),
        ("state_hash", hex(&state.hash())),
    ];
    let metadata = entries.map(|(key, value)| (key.to_owned(), value)).into_iter().collect();
    write_atomically_with(path, |file| {
        file.write_all(&header(&announced(state.layout(), Dtype::I32), &metadata))?;
        // The tensors' values follow each other in the state as in the file.
        for values in state.values().chunks(PIECE_LEN / 4) {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            file.write_all(&bytes)?;
        }
        Ok(())
    })
}

/// Writes the weights as `F32`, with the names and shapes that the model gives its tensors.
///
/// # Errors
/// The system refused.
pub fn export(path: &Path, stand: &Stand, state: &State) -> Result<()> {
    let entries = [
        // What the Python libraries look for.
        ("format", "pt".to_owned()),
        ("rumormill_run", stand.run.to_string()),
        ("rumormill_round", stand.round.to_string()),
        ("rumormill_state_hash", hex(&state.hash())),
    ];
    let metadata = entries.map(|(key, value)| (key.to_owned(), value)).into_iter().collect();
    write_atomically_with(path, |file| {
        file.write_all(&header(&announced(state.layout(), Dtype::F32), &metadata))?;
        let mut tensors = 0..state.layout().tensors().len();
        Ok(tensors
            .try_for_each(|tensor| state.weight_bytes(tensor, |bytes| file.write_all(bytes)))?)
    })
}

fn announced(layout: &Layout, dtype: Dtype) -> Vec<Announced> {
    let announced = |tensor: &Tensor| Announced {
        name: tensor.name.clone(),
        dtype,
        shape: tensor.shape.clone(),
    };
    layout.tensors().iter().map(announced).collect()
}

/// Reads a checkpoint of a run whose base model is `base`.
///
/// # Errors
/// The file cannot be read, is no checkpoint, is of another run or model, or is damaged: the message
/// names the file and both values.
pub fn read(path: &Path, run: RunId, base: &State) -> Result<Checkpoint> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    decode(file, run, base.layout()).with_context(|| path.display().to_string())
}

/// A checkpoint from an open file, or bytes.
///
/// # Errors
/// As [`read`], without the file's name.
pub fn decode(file: impl Read + Seek, run: RunId, layout: &Layout) -> Result<Checkpoint> {
    let mut file = TensorsFile::open(file).map_err(|error| match error {
        TensorsError::Read(error) => anyhow::Error::new(error),
        damaged => anyhow::Error::new(damaged).context("take another copy of the checkpoint"),
    })?;
    let entry = |key: &str| {
        let value = file.about(key).map(str::to_owned);
        value.with_context(|| format!("no checkpoint: it does not say its {key}"))
    };
    let format = entry("format")?;
    ensure!(
        format == FORMAT,
        "its format is {format:?}, this program reads {FORMAT:?}; `rumormill checkpoint` writes one"
    );
    let found = entry("run")?;
    ensure!(found == run.to_string(), "it is of run {found}, not of {run}");
    let number = |key: &str| -> Result<u64> {
        entry(key)?.parse().with_context(|| format!("its {key} is no number"))
    };
    let (height, round) = (number("height")?, number("round")?);
    let chain = entry("chain")?.parse().map_err(anyhow::Error::msg).context("its chain")?;
    let (found, ours) = (entry("lsb_log2")?, units(layout));
    ensure!(found == ours, "the units of its tensors are {found}, those of the base model {ours}");
    let said = entry("state_hash")?;
    let mut values = Vec::with_capacity(layout.dim());
    for Tensor { name, shape, .. } in layout.tensors() {
        let stored = file.tensor(name).with_context(|| format!("it has no tensor {name}"))?;
        if stored.dtype != Dtype::I32 || stored.shape != *shape {
            let (dtype, found) = (stored.dtype, stored.shape);
            bail!(
                "tensor {name} is {dtype:?} of shape {found:?}, the run's is I32 of shape {shape:?}"
            );
        }
        file.read(stored.range, |bytes| {
            let words = bytes.as_chunks::<4>().0;
            values.extend(words.iter().map(|&bytes| i32::from_le_bytes(bytes)));
            std::io::Result::Ok(())
        })?;
    }
    let state = State::from_values(layout.clone(), values)?;
    let found = hex(&state.hash());
    ensure!(
        said == found,
        "it says that its state has hash {said}, but it has {found}: the file is damaged; delete it"
    );
    Ok(Checkpoint { stand: Stand { run, height, round, chain }, state })
}

/// The model that a directory's log begins with, when older history was dropped, as something to be added
/// to the base model of the run.
///
/// # Errors
/// As [`read`].
pub fn read_base(directory: &Path, run: RunId, base: &State) -> Result<Option<Advance>> {
    let path = directory.join(BASE_NAME);
    if !path.exists() {
        return Ok(None);
    }
    Ok(Some(read(&path, run, base)?.beyond(base)))
}

/// Where a data directory keeps its checkpoint.
pub fn path_in(directory: &Path) -> PathBuf {
    directory.join(CHECKPOINT_NAME)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rumormill::params::TensorSpec;
    use std::io::Cursor;

    fn base() -> State {
        let specs = vec![TensorSpec::new("weight", &[2, 3]), TensorSpec::new("bias", &[2])];
        State::from_base(specs, vec![0.5, -1.0, 0.25, 0.0, 2.0, 1.0, 0.0, 0.0]).unwrap()
    }

    fn stand() -> Stand {
        Stand { run: RunId([7; 32]), height: 3, round: 24, chain: ChainDigest([0xab; 32]) }
    }

    #[test]
    fn a_checkpoint_reads_back_bit_for_bit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.safetensors");
        write(&path, &stand(), &base()).unwrap();
        let back = read(&path, RunId([7; 32]), &base()).unwrap();
        assert_eq!(back, Checkpoint { stand: stand(), state: base() });
    }

    #[test]
    fn every_flipped_byte_and_every_cut_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.safetensors");
        write(&path, &stand(), &base()).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let whole = decode(Cursor::new(&bytes), RunId([7; 32]), base().layout()).unwrap();
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x10;
            // What does not matter (the order of keys, padding) may change; the model may not.
            if let Ok(read) = decode(Cursor::new(&flipped), RunId([7; 32]), base().layout()) {
                assert_eq!(read.state, whole.state, "byte {at}");
            }
            assert!(
                decode(Cursor::new(&bytes[..at]), RunId([7; 32]), base().layout()).is_err(),
                "cut at {at}"
            );
        }
    }

    #[test]
    fn another_run_or_model_is_refused_with_both_values() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.safetensors");
        write(&path, &stand(), &base()).unwrap();
        let error = |run, base: &State| format!("{:#}", read(&path, run, base).unwrap_err());
        let other = error(RunId([8; 32]), &base());
        assert!(other.contains("0707") && other.contains("0808"), "{other}");
        let wide = State::from_base(vec![TensorSpec::new("weight", &[3])], vec![1.0; 3]).unwrap();
        assert!(error(RunId([7; 32]), &wide).contains("units"));
        export(&path, &stand(), &base()).unwrap();
        assert!(error(RunId([7; 32]), &base()).contains("format"));
    }
}
