//! The manifest: everything the nodes of a run must agree on before they start.
//!
//! Its hash is the [`RunId`], from which directions, minibatches and permutations are derived, so
//! two nodes with different manifests cannot mix their records. Numbers that reach the
//! coefficients are integers or exact binary fractions.

use std::fmt;
use std::str::FromStr;

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

use crate::codec;
use crate::id::{NodeId, RunId};
use crate::selection::Rule;
use crate::spsa::EPSILON_LOG2_RANGE;

/// The version of protocol and manifest. Nodes of different versions refuse each other.
pub const PROTOCOL_VERSION: u16 = 6;

/// The largest roster. Origin indices are 16 bits wide; 4,096 acks of a height stay under 300 KB.
pub const ROSTER_LEN_MAX: usize = 4096;

/// The most founders of an open run: each votes for all of them, and the votes travel in one frame. Others join.
pub const FOUNDERS_MAX: usize = 128;

/// The longest name of a model: room for a template and the words of labels.
pub const MODEL_LEN_MAX: usize = 2048;

/// Who may hold which rows of the training data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Encode, Decode)]
#[serde(rename_all = "kebab-case")]
pub enum DataMode {
    /// Every node holds the whole training set: anybody can repeat anybody's probe.
    Public,
    /// Every node holds a shard of its own: only its owner can repeat a probe.
    Private,
}

/// Who measures along which directions of a round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Encode, Decode)]
#[serde(rename_all = "kebab-case")]
pub enum Directions {
    /// All walk the same directions, nobody waits within a round, and several measure each.
    #[default]
    Shared,
    /// Every member has its own `m` directions and goes on when all have measured theirs: the shape of
    /// the published *Just One Byte*, whose seeds belong to a machine and a sample.
    Private,
}

impl fmt::Display for Directions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Directions::Shared => "shared",
            Directions::Private => "private",
        })
    }
}

/// A text that names no kind of directions.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("directions are shared or private, not '{0}'")]
pub struct UnknownDirections(pub String);

impl FromStr for Directions {
    type Err = UnknownDirections;
    fn from_str(name: &str) -> Result<Directions, UnknownDirections> {
        match name {
            "shared" => Ok(Directions::Shared),
            "private" => Ok(Directions::Private),
            _ => Err(UnknownDirections(name.into())),
        }
    }
}

/// Who starts the run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Encode, Decode)]
#[serde(rename_all = "kebab-case")]
pub enum Founders {
    /// Exactly these nodes, in this order.
    Members(Vec<NodeId>),
    /// The first so many nodes that find each other and sign the same start.
    Minimum(u16),
}

/// One term of the instalment law: which share of a record's value is paid out at which age.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Encode, Decode)]
#[serde(deny_unknown_fields)]
pub struct Instalment {
    /// Age of the record in rounds.
    pub age: u32,
    /// Share paid at that age, in units of 2⁻¹⁶.
    pub share: i32,
}

/// The agreement that all nodes of a run share.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Encode, Decode)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of protocol and manifest ([`PROTOCOL_VERSION`]).
    pub version: u16,
    /// A name for people, at most 64 bytes.
    pub name: String,
    /// Seed of the base model, shards and everything else that is drawn once.
    pub seed: u64,
    /// The model, as on the command line (`softmax`, `logistic`, `mlp:32`).
    pub model: String,
    /// The data set's name, for people.
    pub data: String,
    /// BLAKE3 of the data set as parsed (training and held-out part), hexadecimal.
    pub data_hash: String,
    /// BLAKE3 of the base model's integer state, hexadecimal.
    pub base_hash: String,
    /// Public data or private shards.
    pub data_mode: DataMode,
    /// How private shards are cut (`iid`, `dirichlet:ALPHA`), or `all` for public data.
    pub shards: String,
    /// Number of rounds; rounded up to whole heights.
    pub rounds: u64,
    /// `E`, rounds per height.
    pub rounds_per_height: u32,
    /// `m`, probes that a node aims at in a round; at most `2m` are counted.
    pub probes_per_round: u32,
    /// Who measures along which directions of a round.
    pub directions: Directions,
    /// `r`, probes per direction, in units of 1/256; without meaning where directions are private.
    pub redundancy_256: u32,
    /// `S`, rounds that a node may run beyond the ones it has closed.
    pub staleness: u32,
    /// Rows in the minibatch of a probe.
    pub batch: u32,
    /// ε = 2^`epsilon_log2`, the length of a probe.
    pub epsilon_log2: i32,
    /// Step size in units of 2⁻²⁴: the sum of absolute coefficients of a round.
    pub step_24: u32,
    /// Share of the run, in 1/1000, after which the step size falls linearly to zero.
    pub decay_from_permille: u32,
    /// Scale exponent of the bytes in the first heights (`reference` LB8, S = 2^e).
    pub scale_exponent: i32,
    /// Selection rule.
    pub selection: Rule,
    /// `W`, rounds that enter an origin's momentum in coefficient space.
    pub window: u32,
    /// Momentum factor of the selection window, in 1/1000.
    pub beta_permille: u32,
    /// The instalment law.
    pub instalments: Vec<Instalment>,
    /// Faulty members tolerated; `None` means the largest `f` with `3f + 1 ≤ R`.
    pub faulty: Option<u16>,
    /// Who starts the run.
    pub founders: Founders,
    /// Whether faults may be injected at run time.
    pub lab: bool,
    /// Probes of others that a node repeats for every thousand of its own; zero turns audits off.
    pub audit_permille: u16,
}

/// Why a manifest cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("run.{field}: {problem}")]
pub struct ManifestError {
    /// The field at fault.
    pub field: &'static str,
    /// What is wrong and what would be right.
    pub problem: String,
}

/// A field in which two manifests differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Name of the field.
    pub field: &'static str,
    /// Our value.
    pub ours: String,
    /// The other's value.
    pub theirs: String,
}

impl Manifest {
    /// Settings that suit a small model on one machine; the caller fills in data, model and
    /// founders. Each number's provenance is in `ARCHITECTURE.md`.
    pub fn template() -> Manifest {
        Manifest {
            version: PROTOCOL_VERSION,
            name: "rumormill".into(),
            seed: 1,
            model: "mlp:32".into(),
            data: "digits".into(),
            data_hash: String::new(),
            base_hash: String::new(),
            data_mode: DataMode::Public,
            shards: "all".into(),
            rounds: 400,
            rounds_per_height: 8,
            probes_per_round: 32,
            directions: Directions::Shared,
            redundancy_256: 512,
            staleness: 2,
            batch: 64,
            epsilon_log2: -8,
            step_24: 1 << 22,
            decay_from_permille: 700,
            scale_exponent: 0,
            selection: Rule::Mean,
            window: 20,
            beta_permille: 950,
            instalments: vec![Instalment { age: 0, share: 1 << 16 }],
            faulty: None,
            founders: Founders::Minimum(1),
            lab: false,
            audit_permille: 0,
        }
    }

    /// The identity of the run: a hash over every field.
    pub fn run_id(&self) -> RunId {
        RunId(blake3::derive_key("rumormill v1 run", &codec::encode(self)))
    }

    /// Number of heights: all rounds are in whole heights.
    pub fn heights(&self) -> u64 {
        self.rounds.div_ceil(u64::from(self.rounds_per_height))
    }

    /// Number of rounds, whole heights.
    pub fn rounds_total(&self) -> u64 {
        self.heights() * u64::from(self.rounds_per_height)
    }

    /// Faulty members tolerated in a roster of `roster_len`.
    pub fn faulty_of(&self, roster_len: usize) -> usize {
        let third = roster_len.saturating_sub(1) / 3;
        self.faulty.map_or(third, |f| usize::from(f).min(third))
    }

    /// Acks with one digest that make a certificate: `⌊(R + f)/2⌋ + 1`, so that any two
    /// certificates share an honest signer.
    pub fn quorum(&self, roster_len: usize) -> usize {
        (roster_len + self.faulty_of(roster_len)) / 2 + 1
    }

    /// The most bytes an origin's segment may hold.
    pub fn segment_len_max(&self) -> usize {
        2 * self.probes_per_round as usize * self.rounds_per_height as usize
            + crate::audit::section_len_max(self)
    }

    /// Checks every field.
    ///
    /// # Errors
    /// The first field that is out of its range, with the range.
    pub fn check(&self) -> Result<(), ManifestError> {
        let fail = |field, problem: String| Err(ManifestError { field, problem });
        if self.version != PROTOCOL_VERSION {
            return fail(
                "version",
                format!("is {}, this program speaks version {PROTOCOL_VERSION}", self.version),
            );
        }
        if self.name.is_empty() || self.name.len() > 64 {
            return fail("name", "must have 1 to 64 bytes".into());
        }
        if self.model.len() > MODEL_LEN_MAX {
            return fail(
                "model",
                format!("has {} bytes, at most {MODEL_LEN_MAX}", self.model.len()),
            );
        }
        if self.data.len() > 256 || self.shards.len() > 64 {
            return fail("data", "data or shards is longer than 256 bytes".into());
        }
        let ranges: [(&'static str, u64, u64, u64); 10] = [
            ("rounds", self.rounds, 1, 1 << 40),
            ("rounds_per_height", self.rounds_per_height.into(), 2, 256),
            ("probes_per_round", self.probes_per_round.into(), 1, 4096),
            ("redundancy_256", self.redundancy_256.into(), 256, 256 * 4096),
            ("staleness", self.staleness.into(), 1, 64),
            ("batch", self.batch.into(), 1, 1 << 16),
            ("decay_from_permille", self.decay_from_permille.into(), 0, 1000),
            ("window", self.window.into(), 1, 256),
            ("beta_permille", self.beta_permille.into(), 0, 1000),
            ("audit_permille", self.audit_permille.into(), 0, 1000),
        ];
        for (field, value, low, high) in ranges {
            if !(low..=high).contains(&value) {
                return fail(field, format!("is {value}, must be between {low} and {high}"));
            }
        }
        if self.segment_len_max() > 1 << 15 {
            return fail(
                "probes_per_round",
                format!(
                    "a segment of 2 · probes_per_round · rounds_per_height bytes and its audits has {}, must be \
                     at most 32768",
                    self.segment_len_max()
                ),
            );
        }
        if !EPSILON_LOG2_RANGE.contains(&self.epsilon_log2) {
            return fail(
                "epsilon_log2",
                format!("is {}, must be between -30 and 10", self.epsilon_log2),
            );
        }
        if !(-60..=60).contains(&self.scale_exponent) {
            return fail(
                "scale_exponent",
                format!("is {}, must be between -60 and 60", self.scale_exponent),
            );
        }
        if self.step_24 == 0 {
            return fail("step_24", "is 0, must be positive".into());
        }
        if self.instalments.is_empty() || self.instalments.len() > 8 {
            return fail("instalments", "must have 1 to 8 entries".into());
        }
        if let Some(entry) = self.instalments.iter().find(|i| i.age > self.window) {
            return fail(
                "instalments",
                format!("age {} is beyond the window of {} rounds", entry.age, self.window),
            );
        }
        if !self.instalments.windows(2).all(|pair| pair[0].age < pair[1].age) {
            return fail("instalments", "ages must increase".into());
        }
        if self.audit_permille > 0 && self.data_mode == DataMode::Private {
            return fail(
                "audit_permille",
                "must be 0 with private data: nobody else can repeat a probe".into(),
            );
        }
        if self.directions == Directions::Private {
            if self.instalments.iter().any(|entry| entry.age > 0) {
                return fail("instalments", "private directions are paid for at once".into());
            }
            if self.selection.selection().uses_window() {
                return fail(
                    "selection",
                    format!("{} compares values along shared directions only", self.selection),
                );
            }
        }
        match &self.founders {
            Founders::Minimum(0) => fail("founders", "minimum must be at least 1".into()),
            Founders::Minimum(n) if usize::from(*n) > FOUNDERS_MAX => fail(
                "founders",
                format!("minimum is {n}, at most {FOUNDERS_MAX}; nodes beyond it join the run"),
            ),
            Founders::Members(members) => {
                let mut sorted = members.clone();
                sorted.sort();
                sorted.dedup();
                if members.is_empty() || members.len() > ROSTER_LEN_MAX {
                    fail("founders", format!("must name 1 to {ROSTER_LEN_MAX} members"))
                } else if sorted.len() != members.len() {
                    fail("founders", "names a member twice".into())
                } else {
                    self.check_faulty(members.len())
                }
            }
            Founders::Minimum(n) => self.check_faulty(usize::from(*n)),
        }
    }

    fn check_faulty(&self, roster_len: usize) -> Result<(), ManifestError> {
        match self.faulty {
            Some(f) if roster_len < 3 * usize::from(f) + 1 => Err(ManifestError {
                field: "faulty",
                problem: format!(
                    "is {f}, but {roster_len} members tolerate at most {} (R ≥ 3f + 1)",
                    roster_len.saturating_sub(1) / 3
                ),
            }),
            _ => Ok(()),
        }
    }

    /// The first field in which `theirs` differs, in words; `None` when the manifests are equal.
    pub fn difference(&self, theirs: &Manifest) -> Option<Difference> {
        macro_rules! first_difference {
            ($($field:ident),* $(,)?) => {
                $(if self.$field != theirs.$field {
                    return Some(Difference {
                        field: stringify!($field),
                        ours: shorten(format!("{:?}", self.$field)),
                        theirs: shorten(format!("{:?}", theirs.$field)),
                    });
                })*
            };
        }
        first_difference!(
            version,
            data,
            data_hash,
            model,
            base_hash,
            name,
            seed,
            data_mode,
            shards,
            rounds,
            rounds_per_height,
            probes_per_round,
            directions,
            redundancy_256,
            staleness,
            batch,
            epsilon_log2,
            step_24,
            decay_from_permille,
            scale_exponent,
            selection,
            window,
            beta_permille,
            instalments,
            faulty,
            founders,
            lab,
            audit_permille,
        );
        None
    }
}

/// Peers' values are shown in logs: bounded, without control characters.
fn shorten(text: String) -> String {
    text.chars().filter(|c| !c.is_control()).take(96).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_is_valid_and_every_field_changes_the_run() {
        let manifest = Manifest::template();
        assert_eq!(manifest.check(), Ok(()));
        let mut other = manifest.clone();
        other.step_24 += 1;
        assert_ne!(manifest.run_id(), other.run_id());
        assert_eq!(manifest.difference(&other).map(|d| d.field), Some("step_24"));
        assert_eq!(manifest.difference(&manifest.clone()), None);
    }

    #[test]
    fn private_directions_leave_nothing_to_compare_and_nothing_to_pay_later() {
        let private = Manifest { directions: Directions::Private, ..Manifest::template() };
        assert_eq!(private.check(), Ok(()));
        let compared = Manifest { selection: Rule::Nnm, ..private.clone() };
        assert_eq!(compared.check().unwrap_err().field, "selection");
        let late = Instalment { age: 2, share: 1 << 16 };
        let late = Manifest { instalments: vec![late], ..private };
        assert_eq!(late.check().unwrap_err().field, "instalments");
        for name in ["shared", "private"] {
            assert_eq!(name.parse::<Directions>().map(|d| d.to_string()), Ok(name.into()));
        }
        assert!("both".parse::<Directions>().is_err());
    }

    #[test]
    fn two_quorums_share_an_honest_member() {
        let manifest = Manifest::template();
        for roster_len in 1..200 {
            let (q, f) = (manifest.quorum(roster_len), manifest.faulty_of(roster_len));
            assert!(2 * q > roster_len + f, "R = {roster_len}");
            assert!(q <= roster_len - f, "the honest alone must suffice, R = {roster_len}");
        }
    }

    #[test]
    fn a_roster_too_small_for_its_faulty_members_is_refused() {
        let manifest =
            Manifest { faulty: Some(2), founders: Founders::Minimum(6), ..Manifest::template() };
        assert_eq!(manifest.check().unwrap_err().field, "faulty");
    }
}
