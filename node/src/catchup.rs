//! Where the model of a node that comes late comes from.
//!
//! The certified history is fetched and checked in any case: who is a member, which certificates hold and
//! what every round paid follow from it alone. What it pays can then be replayed, or the model after some
//! of it be fetched from a neighbor and compared with what members have signed
//! ([`Protocol::vouched_model`](rumormill::protocol::Protocol::vouched_model)). A direction costs as much
//! as the model is large, and so does the checkpoint; so the number of directions decides, whatever the
//! model. Until then payouts are kept, and the node abstains from measuring.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rumormill::height::{MODEL_EVERY, ModelDigest};
use rumormill::id::{Height, NodeId};
use rumormill::protocol::Change;

use crate::net::RequestId;

/// Where a model may come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ModelSource {
    /// Whatever takes less time by estimate.
    #[default]
    Auto,
    /// Replay the history.
    History,
    /// A neighbor's checkpoint, wherever one is vouched for.
    Checkpoint,
}

impl std::str::FromStr for ModelSource {
    type Err = String;
    fn from_str(name: &str) -> Result<ModelSource, String> {
        match name {
            "auto" => Ok(ModelSource::Auto),
            "history" => Ok(ModelSource::History),
            "checkpoint" => Ok(ModelSource::Checkpoint),
            _ => Err(format!("'{name}' is none of auto, history, checkpoint")),
        }
    }
}

/// Seconds that a replay takes for one direction and parameter, of many directions at once: measured
/// with AVX2 and one thread (`experiments/results/2026-11-25-replay`).
const REPLAY_S: f64 = 0.6e-10;

/// What a link is taken to carry, in bytes a second: 100 Mbit/s.
const LINK_BYTES_PER_S: f64 = 12.5e6;

/// Heights that a node must be behind for a checkpoint to be thought of: with fewer, none is vouched for
/// that saves anything.
pub const BEHIND_MIN: u64 = MODEL_EVERY + 2;

/// Changes that are kept; with more, it is decided with what there is.
const KEPT_MAX: usize = 1 << 21;

/// After so long without a certified height, it is decided with what there is.
const PATIENCE: Duration = Duration::from_secs(10);

/// Bytes of a checkpoint in one answer.
pub const STRETCH: usize = 1 << 20;

/// What a checkpoint has beyond its values: names, shapes, and what it is of.
const HEADER_MAX: u64 = 1 << 20;

/// Checkpoints for others that are kept: a newcomer may still be fetching the last but one.
const SERVED: u64 = 2;

/// A node that is far behind.
#[derive(Debug)]
pub struct CatchUp {
    /// What has been paid since the model that the evaluator holds.
    kept: Vec<Change>,
    /// Heights that a neighbor had certified.
    target: u64,
    /// Heights certified here, and since when.
    certified: u64,
    since: Instant,
    began: Instant,
    /// Neighbors that had no such checkpoint, or a wrong one.
    failed: BTreeSet<NodeId>,
    fetch: Option<Fetch>,
}

/// A checkpoint on its way.
#[derive(Debug)]
pub struct Fetch {
    /// Certified heights in it.
    pub certified: Height,
    /// What the members say of it.
    pub digest: ModelDigest,
    /// Who sends it.
    pub from: NodeId,
    /// The question that is not answered.
    pub request: RequestId,
    /// What has come.
    pub bytes: Vec<u8>,
}

/// What is cheaper, with the estimates in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Fetch the checkpoint.
    pub fetch: bool,
    /// Directions that it saves.
    pub directions: usize,
    /// Time to replay them.
    pub replay_s: f64,
    /// Time to fetch it.
    pub fetch_s: f64,
}

impl CatchUp {
    /// A node that has `paid` since the model that the evaluator is left with.
    pub fn new(paid: Vec<Change>, certified: u64, target: u64) -> CatchUp {
        let now = Instant::now();
        CatchUp {
            kept: paid,
            target,
            certified,
            since: now,
            began: now,
            failed: BTreeSet::new(),
            fetch: None,
        }
    }

    /// A neighbor is ahead by more.
    pub fn aim(&mut self, target: u64) {
        self.target = self.target.max(target);
    }

    /// Something is paid.
    pub fn keep(&mut self, changes: Vec<Change>) {
        self.kept.extend(changes);
    }

    /// Whether to decide now, or, while a checkpoint is fetched, to wait no longer.
    pub fn is_due(&mut self, certified: u64) -> bool {
        if certified != self.certified {
            (self.certified, self.since) = (certified, Instant::now());
        }
        match self.fetch {
            None => {
                certified >= self.target
                    || self.kept.len() >= KEPT_MAX
                    || self.since.elapsed() > PATIENCE
            }
            Some(_) => self.kept.len() >= 2 * KEPT_MAX,
        }
    }

    /// Whether a checkpoint before round `first` of a model with so many parameters is cheaper.
    pub fn choose(&self, source: ModelSource, first: u64, parameters: usize) -> Choice {
        let directions = self.kept.iter().filter(|change| change.round.0 < first).count();
        let (directions_f, parameters) = (directions as f64, parameters as f64);
        let replay_s = directions_f * parameters * REPLAY_S;
        let fetch_s = 4.0 * parameters / LINK_BYTES_PER_S;
        let fetch = match source {
            ModelSource::Auto => fetch_s < replay_s,
            ModelSource::History => false,
            ModelSource::Checkpoint => directions > 0,
        };
        Choice { fetch, directions, replay_s, fetch_s }
    }

    /// The checkpoint on its way.
    pub fn fetch(&mut self) -> Option<&mut Fetch> {
        self.fetch.as_mut()
    }

    /// Fetches.
    pub fn begin(&mut self, fetch: Fetch) {
        self.fetch = Some(fetch);
    }

    /// The one who was asked has no such checkpoint, or a wrong one.
    pub fn give_up(&mut self, from: NodeId) {
        self.failed.insert(from);
        self.fetch = None;
    }

    /// Whether a neighbor may be asked.
    pub fn may_ask(&self, neighbor: &NodeId) -> bool {
        !self.failed.contains(neighbor)
    }

    /// Seconds since it began.
    pub fn seconds(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    /// What is left to apply to a model after the rounds before `first`.
    pub fn rest(self, first: u64) -> Vec<Change> {
        let mut rest = self.kept;
        rest.retain(|change| change.round.0 >= first);
        rest
    }
}

impl Fetch {
    /// Takes a stretch; whether it was the last. `None` when it cannot be one of a checkpoint of so many
    /// parameters.
    pub fn take(&mut self, total: u64, bytes: &[u8], parameters: usize) -> Option<bool> {
        let room = 4 * parameters as u64 + HEADER_MAX;
        let len = (self.bytes.len() + bytes.len()) as u64;
        if bytes.is_empty() || bytes.len() > STRETCH || total > room || len > total {
            return None;
        }
        self.bytes.extend_from_slice(bytes);
        Some(len == total)
    }
}

/// The file of a checkpoint that others may fetch.
pub fn served_path(directory: &Path, certified: Height) -> PathBuf {
    directory.join(format!("model-{}.safetensors", certified.0))
}

/// Removes the files of older checkpoints than others may still fetch.
pub fn forget_served(directory: &Path, certified: Height) {
    let oldest = certified.0.saturating_sub((SERVED - 1) * MODEL_EVERY);
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| {
            name.strip_prefix("model-")?.strip_suffix(".safetensors")?.parse::<u64>().ok()
        });
        if number.is_some_and(|number| number < oldest) {
            // It is tried again with the next.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// A stretch of a file, and the file's length.
///
/// # Errors
/// There is no such file, or it ends before `offset`.
pub fn stretch(path: &Path, offset: u64) -> std::io::Result<(u64, Vec<u8>)> {
    use std::io::{Error, ErrorKind, Read, Seek, SeekFrom};
    let mut file = std::fs::File::open(path)?;
    let total = file.metadata()?.len();
    if offset >= total {
        return Err(Error::from(ErrorKind::UnexpectedEof));
    }
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = Vec::new();
    file.take(STRETCH as u64).read_to_end(&mut bytes)?;
    Ok((total, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rumormill::id::{Round, Slot};

    fn paid(rounds: std::ops::Range<u64>, slots: u32) -> Vec<Change> {
        let of = |round| {
            (0..slots).map(move |slot| Change {
                round: Round(round),
                slot: Slot(slot),
                from: 0,
                to: 7,
            })
        };
        rounds.flat_map(of).collect()
    }

    #[test]
    fn many_directions_make_a_checkpoint_cheaper_than_history() {
        let choose =
            |rounds, source| CatchUp::new(paid(0..rounds, 128), 0, 100).choose(source, 800, 25_450);
        // 4 bytes a parameter at 12.5 MB/s are as long as 5,333 directions at 0.06 ns.
        assert!(!choose(41, ModelSource::Auto).fetch);
        let long = choose(42, ModelSource::Auto);
        assert!(long.fetch && long.directions == 42 * 128, "{long:?}");
        assert!(choose(1, ModelSource::Checkpoint).fetch);
        assert!(!choose(10_000, ModelSource::History).fetch);
        assert_eq!(choose(1000, ModelSource::Auto).directions, 800 * 128);
    }

    #[test]
    fn what_a_checkpoint_holds_is_not_paid_again() {
        let mut late = CatchUp::new(paid(0..3, 2), 0, 20);
        late.keep(paid(3..5, 2));
        let rest = late.rest(3);
        assert_eq!(rest, paid(3..5, 2));
    }

    #[test]
    fn stretches_are_bounded_and_whole() {
        let fetch = || Fetch {
            certified: Height(16),
            digest: [0; 32],
            from: NodeId([1; 32]),
            request: RequestId::default(),
            bytes: Vec::new(),
        };
        let mut whole = fetch();
        assert_eq!(whole.take(5, &[1, 2, 3], 10), Some(false));
        assert_eq!(whole.take(5, &[4, 5], 10), Some(true));
        assert_eq!(whole.bytes, [1, 2, 3, 4, 5]);
        for (total, bytes) in [
            (5, vec![]),
            (5, vec![0; 6]),
            (HEADER_MAX + 41, vec![0]),
            (1 << 21, vec![0; STRETCH + 1]),
        ] {
            assert_eq!(fetch().take(total, &bytes, 10), None, "{total} {}", bytes.len());
        }
    }

    #[test]
    fn the_last_two_checkpoints_are_served() {
        let folder = tempfile::tempdir().unwrap();
        let path = |height| served_path(folder.path(), Height(height));
        for height in [16, 32, 48] {
            std::fs::write(path(height), vec![height as u8; 10]).unwrap();
        }
        std::fs::write(folder.path().join("model-x.safetensors"), [0]).unwrap();
        forget_served(folder.path(), Height(48));
        assert_eq!([16, 32, 48].map(|height| path(height).exists()), [false, true, true]);
        assert_eq!(stretch(&path(48), 7).unwrap(), (10, vec![48; 3]));
        assert!(stretch(&path(48), 10).is_err() && stretch(&path(16), 0).is_err());
    }
}
