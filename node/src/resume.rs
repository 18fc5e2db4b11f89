//! Putting a node back together from its log, and from a checkpoint where the log bears it out.
//!
//! The protocol is always derived from the log, every signature checked again. The model is replayed
//! from the base model, or taken from a checkpoint whose digest chain is the one that the log leads to:
//! then only what came after it is replayed.

use rumormill::id::Height;
use rumormill::keys::Keys;
use rumormill::manifest::{Manifest, ManifestError};
use rumormill::params::State;
use rumormill::protocol::{Change, Config, Entry, Output, Protocol};

use crate::checkpoint::{Advance, Stand};

/// An entry of the log, and the byte of the file it begins at.
#[derive(Clone, Debug, PartialEq)]
pub struct Logged {
    /// The byte.
    pub offset: u64,
    /// The entry.
    pub entry: Entry,
}

/// What is to be done to the model, in any order.
pub enum Move {
    /// This is added: what a checkpoint has beyond the base model.
    Add(State),
    /// Coefficients change.
    Apply(Vec<Change>),
}

/// Why a log does not make a node. Nothing was changed on disk.
#[derive(Debug, thiserror::Error)]
pub enum ResumeError {
    /// The manifest is out of its ranges.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The history before the log's first height was dropped, and no model is there to go on from.
    #[error(
        "ledger.log begins at height {height}, as the history before it was dropped, and no checkpoint of \
         that height or a later one fits it: base.safetensors and checkpoint.safetensors are missing, \
         damaged or of another history"
    )]
    NoModel {
        /// The log's first height.
        height: u64,
    },
    /// An entry is whole but does not follow from those before.
    #[error(
        "the entry at byte {offset} of ledger.log does not follow from those before: {problem}"
    )]
    Entry {
        /// Where it begins.
        offset: u64,
        /// What is wrong.
        problem: String,
    },
}

/// Derives the protocol from the log.
///
/// The first checkpoint is used of which the chain at its height is its own. When the log does not reach so
/// far and `waits`, it comes back: the caller loads its model once [`Protocol::awaited_fits`] says so.
///
/// # Errors
/// See [`ResumeError`].
pub fn resume(
    manifest: &Manifest,
    keys: &Keys,
    config: &Config,
    log: &[Logged],
    checkpoints: impl IntoIterator<Item = Advance>,
    waits: bool,
    moves: &mut dyn FnMut(Move),
) -> Result<(Protocol, Option<Advance>), ResumeError> {
    for checkpoint in checkpoints {
        let mut protocol = Protocol::new(manifest.clone(), keys.clone(), config.clone())?;
        let Stand { height, chain, .. } = checkpoint.stand;
        protocol.await_model(Height(height), chain);
        // Few, as the model's part is in the checkpoint; kept back until that is known to fit.
        let mut kept = Vec::new();
        restore(&mut protocol, log, &mut |changes| kept.extend(changes))?;
        match protocol.awaited_fits() {
            Some(true) => {
                moves(Move::Add(checkpoint.beyond));
                moves(Move::Apply(kept));
                return Ok((protocol, None));
            }
            None if waits => {
                moves(Move::Apply(kept));
                return Ok((protocol, Some(checkpoint)));
            }
            _ => tracing::warn!(
                height,
                "a checkpoint does not fit the log; the model is replayed from an older one or its base"
            ),
        }
    }
    if let Some(Entry::Foundation(foundation)) = log.first().map(|logged| &logged.entry) {
        return Err(ResumeError::NoModel { height: foundation.certified });
    }
    let mut protocol = Protocol::new(manifest.clone(), keys.clone(), config.clone())?;
    restore(&mut protocol, log, &mut |changes| {
        if !changes.is_empty() {
            moves(Move::Apply(changes));
        }
    })?;
    Ok((protocol, None))
}

/// Replays a log; `watch` sees the changes of every entry.
fn restore(
    protocol: &mut Protocol,
    log: &[Logged],
    watch: &mut dyn FnMut(Vec<Change>),
) -> Result<(), ResumeError> {
    let mut outputs = Vec::new();
    for Logged { offset, entry } in log {
        protocol.restore(entry.clone(), &mut outputs).map_err(|offence| ResumeError::Entry {
            offset: *offset,
            problem: offence.to_string(),
        })?;
        let changes = outputs.drain(..).flat_map(|output| match output {
            Output::Apply(changes) => changes,
            _ => Vec::new(),
        });
        watch(changes.collect());
    }
    Ok(())
}
