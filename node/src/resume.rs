//! Putting a node back together from its log, and from a checkpoint where the log bears it out.
//!
//! The protocol is always derived from the log, every signature checked again. The model is replayed
//! from the base model, or taken from a checkpoint whose digest chain is the one that the log leads to:
//! then only what came after it is replayed.

use rumormill::id::Round;
use rumormill::keys::Keys;
use rumormill::manifest::{Manifest, ManifestError};
use rumormill::params::State;
use rumormill::protocol::{Change, Config, Entry, Output, Protocol};

use crate::checkpoint::Checkpoint;

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
    /// It goes from the base model to this one, beside all that is applied.
    Load(State),
    /// Coefficients change.
    Apply(Vec<Change>),
}

/// Why a log does not make a node. Nothing was changed on disk.
#[derive(Debug, thiserror::Error)]
pub enum ResumeError {
    /// The manifest is out of its ranges.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
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
/// The checkpoint is used when the chain at its height is its own. When the log does not reach so far and
/// `waits`, it comes back: then the model lacks what rounds before it paid out, and the caller loads it once
/// the protocol has certified as much, with [`settle`].
///
/// # Errors
/// See [`ResumeError`].
pub fn resume(
    manifest: &Manifest,
    keys: &Keys,
    config: &Config,
    log: &[Logged],
    checkpoint: Option<Checkpoint>,
    waits: bool,
    moves: &mut dyn FnMut(Move),
) -> Result<(Protocol, Option<Checkpoint>), ResumeError> {
    if let Some(checkpoint) = checkpoint {
        let mut protocol = Protocol::new(manifest.clone(), keys.clone(), config.clone())?;
        protocol.tell_from(Round(checkpoint.stand.round));
        let mut awaited = Some(checkpoint);
        // Few, as the model's part is in the checkpoint; kept back until that is known to fit.
        let mut changes = Vec::new();
        let mut fits = true;
        let mut loaded = None;
        restore(&mut protocol, log, &mut |protocol, new| {
            changes.extend(new);
            match settle(protocol, &mut awaited) {
                Some(Settled::Load(state)) => loaded = Some(state),
                Some(Settled::Differs) => fits = false,
                None => {}
            }
            fits
        })?;
        if fits && (waits || awaited.is_none()) {
            loaded.into_iter().for_each(|state| moves(Move::Load(state)));
            moves(Move::Apply(changes));
            return Ok((protocol, awaited));
        }
        tracing::warn!("the checkpoint does not fit the log; the model is replayed from its base");
    }
    let mut protocol = Protocol::new(manifest.clone(), keys.clone(), config.clone())?;
    restore(&mut protocol, log, &mut |_, changes| {
        if !changes.is_empty() {
            moves(Move::Apply(changes));
        }
        true
    })?;
    Ok((protocol, None))
}

/// What a checkpoint comes to once as many heights are certified as it has.
pub enum Settled {
    /// Its chain is the one derived here: this is the model.
    Load(State),
    /// Its chain is another one.
    Differs,
}

/// Compares an awaited checkpoint with the protocol; it is taken when that could be said.
pub fn settle(protocol: &mut Protocol, awaited: &mut Option<Checkpoint>) -> Option<Settled> {
    let height = awaited.as_ref()?.stand.height;
    if protocol.certified() < height {
        return None;
    }
    let checkpoint = awaited.take()?;
    if protocol.certified() > height || protocol.digest().to_string() != checkpoint.stand.chain {
        return Some(Settled::Differs);
    }
    protocol.tell_from(Round(0));
    Some(Settled::Load(checkpoint.state))
}

/// Replays a log; `watch` sees the changes of every entry, and says whether to go on.
fn restore(
    protocol: &mut Protocol,
    log: &[Logged],
    watch: &mut dyn FnMut(&mut Protocol, Vec<Change>) -> bool,
) -> Result<(), ResumeError> {
    let mut outputs = Vec::new();
    // A log of nothing may still meet a checkpoint of nothing.
    let mut goes_on = watch(protocol, Vec::new());
    for Logged { offset, entry } in log {
        if !goes_on {
            break;
        }
        protocol.restore(entry.clone(), &mut outputs).map_err(|offence| ResumeError::Entry {
            offset: *offset,
            problem: offence.to_string(),
        })?;
        let changes = outputs.drain(..).flat_map(|output| match output {
            Output::Apply(changes) => changes,
            _ => Vec::new(),
        });
        let changes = changes.collect();
        goes_on = watch(protocol, changes);
    }
    Ok(())
}
