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

/// Changes that are kept; more are replayed at once.
const KEPT_MAX: usize = 1 << 21;

/// After so long without history it is decided with what there is.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where no neighbor has the checkpoint, others may be connecting: so long is waited once.
const NEIGHBORS_WAIT: Duration = Duration::from_secs(2);

/// After so long a checkpoint is no longer waited for.
const FETCH_MAX: Duration = Duration::from_secs(600);

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
    /// Heights that are certified elsewhere, as far as neighbors say.
    target: u64,
    /// Whose answer showed that this node is behind, and whether it has no more.
    source: NodeId,
    settled: bool,
    /// When history came last.
    since: Instant,
    began: Instant,
    /// When nobody was left to be asked for a checkpoint.
    alone: Option<Instant>,
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
    /// Bytes of the whole, once known.
    pub total: Option<u64>,
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
    /// A node that has `paid` since the model that the evaluator is left with, and has learned from `source`
    /// that much more is certified.
    pub fn new(paid: Vec<Change>, target: u64, source: NodeId) -> CatchUp {
        let now = Instant::now();
        CatchUp {
            kept: paid,
            target,
            source,
            settled: false,
            since: now,
            began: now,
            alone: None,
            failed: BTreeSet::new(),
            fetch: None,
        }
    }

    /// A neighbor is ahead by more.
    pub fn aim(&mut self, target: u64) {
        self.target = self.target.max(target);
    }

    /// A neighbor answered, with history or without. Where the one that had it has no more, what anybody
    /// says of more is not waited for.
    pub fn hear(&mut self, from: NodeId, history: bool) {
        match history {
            true => self.since = Instant::now(),
            false => self.settled |= from == self.source,
        }
    }

    /// Something is paid.
    pub fn keep(&mut self, changes: Vec<Change>) {
        self.kept.extend(changes);
    }

    /// Whether so much is kept that it is to be replayed.
    pub fn is_full(&self) -> bool {
        self.kept.len() >= KEPT_MAX
    }

    /// What is kept, from now on no more.
    pub fn take(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.kept)
    }

    /// Whether to decide now, or, while a checkpoint is fetched, to wait no longer.
    pub fn is_due(&self, certified: u64) -> bool {
        match self.fetch {
            None => certified >= self.target || self.settled || self.since.elapsed() > PATIENCE,
            Some(_) => self.began.elapsed() > FETCH_MAX,
        }
    }

    /// Whether a checkpoint of a model with so many parameters is cheaper, behind which `later` changes are
    /// to be replayed.
    pub fn choose(&self, source: ModelSource, later: usize, parameters: usize) -> Choice {
        let directions = self.kept.len().saturating_sub(later);
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

    /// Whether a neighbor that is not connected yet may still be the one that has the checkpoint: for no
    /// longer than the replay takes that it would save.
    pub fn waits_for_neighbors(&mut self, source: ModelSource, choice: &Choice) -> bool {
        let wait = match source {
            ModelSource::Checkpoint => NEIGHBORS_WAIT,
            _ => NEIGHBORS_WAIT.min(Duration::from_secs_f64(choice.replay_s)),
        };
        self.alone.get_or_insert_with(Instant::now).elapsed() < wait
    }

    /// Whether a checkpoint is on its way.
    pub fn is_fetching(&self) -> bool {
        self.fetch.is_some()
    }

    /// The checkpoint on its way, if this was the question.
    pub fn answered(&mut self, request: RequestId) -> Option<Fetch> {
        self.fetch.take_if(|fetch| fetch.request == request)
    }

    /// Fetches.
    pub fn begin(&mut self, fetch: Fetch) {
        self.fetch = Some(fetch);
    }

    /// The one who was asked is not asked again.
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

    /// What is to be applied to the model that the evaluator holds.
    pub fn rest(self) -> Vec<Change> {
        self.kept
    }
}

impl Fetch {
    /// Nothing has been asked for.
    pub fn new(certified: Height, digest: ModelDigest, from: NodeId) -> Fetch {
        let (request, bytes) = (RequestId::default(), Vec::new());
        Fetch { certified, digest, from, request, bytes, total: None }
    }

    /// Takes a stretch; whether it was the last. `None` when it cannot be one of a checkpoint of so many
    /// parameters.
    pub fn take(&mut self, total: u64, bytes: &[u8], parameters: usize) -> Option<bool> {
        let room = 4 * parameters as u64 + HEADER_MAX;
        let held = self.bytes.len() as u64;
        let due = total.checked_sub(held)?.min(STRETCH as u64);
        // Whole stretches, so that nobody can make a checkpoint last.
        let fits = due > 0 && bytes.len() as u64 == due && total <= room;
        if !fits || *self.total.get_or_insert(total) != total {
            return None;
        }
        self.bytes.extend_from_slice(bytes);
        Some(held + due == total)
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

    const SOURCE: NodeId = NodeId([1; 32]);

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
        let choose = |rounds, source| {
            CatchUp::new(paid(0..rounds, 128), 100, SOURCE).choose(source, 128, 25_450)
        };
        // 4 bytes a parameter at 12.5 MB/s are as long as 5,333 directions at 0.06 ns.
        assert!(!choose(42, ModelSource::Auto).fetch);
        let long = choose(43, ModelSource::Auto);
        assert!(long.fetch && long.directions == 42 * 128, "{long:?}");
        assert!(choose(2, ModelSource::Checkpoint).fetch);
        assert!(!choose(1, ModelSource::Checkpoint).fetch, "it would save nothing");
        assert!(!choose(10_000, ModelSource::History).fetch);
    }

    #[test]
    fn what_others_say_is_not_waited_for_once_history_ends() {
        let mut late = CatchUp::new(paid(0..3, 2), u64::MAX, SOURCE);
        late.keep(paid(3..5, 2));
        late.hear(NodeId([2; 32]), false);
        late.hear(SOURCE, true);
        assert!(!late.is_due(40));
        late.hear(SOURCE, false);
        assert!(late.is_due(40));
        assert_eq!(late.rest(), paid(0..5, 2));
    }

    #[test]
    fn stretches_are_bounded_and_whole() {
        let fetch = || Fetch::new(Height(16), [0; 32], SOURCE);
        let (first, rest) = (vec![1; STRETCH], [2, 3]);
        let total = STRETCH as u64 + 2;
        let mut whole = fetch();
        assert_eq!(whole.take(total, &first, 10), Some(false));
        assert_eq!(whole.take(total, &rest, 10), Some(true));
        assert!(whole.bytes == [&first[..], &rest].concat());
        let mut longer = fetch();
        assert_eq!(longer.take(total, &first, 10), Some(false));
        assert_eq!(longer.take(total + 1, &[2; 3], 10), None, "it has grown");
        let beyond = HEADER_MAX + 41;
        for (total, len) in
            [(5, 0), (5, 4), (5, 6), (0, 0), (beyond, STRETCH), (1 << 20, STRETCH + 1)]
        {
            assert_eq!(fetch().take(total, &vec![0; len], 10), None, "{total} {len}");
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
