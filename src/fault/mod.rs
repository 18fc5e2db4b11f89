//! Faults that are injected on purpose: one list of names for the simulator and the daemon.
//!
//! [`value`] says what a faulty node tells in place of what it measured; [`wire`] rewrites the frames
//! of one that breaks the protocol. The protocol value itself stays honest and knows nothing of either:
//! whoever drives it puts the lie between it and the evaluator, or between it and the links. What
//! needs sockets of its own ([`FaultKind::SlowReader`], [`FaultKind::ConnectionFlood`],
//! [`FaultKind::Sybil`]) is the daemon's affair.

pub mod value;
pub mod wire;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How a node misbehaves. μ and σ are mean and standard deviation of what the honest would measure
/// along a direction (or coordinate), which faulty nodes know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum FaultKind {
    /// Its own value with the other sign.
    SignFlip,
    /// −μ · (n − f)/f: the faulty together cancel the honest.
    ScaledSignFlip,
    /// Zero.
    Zero,
    /// A normal number as large as the honest values.
    Random,
    /// As large as can be, against μ.
    LargestOpposing,
    /// Fall of empires: −`factor` · μ.
    Foe,
    /// A little is enough: μ less `factor` · σ, away from its sign.
    Alie,
    /// What it measures on data whose class c is called C − 1 − c.
    LabelFlip,
    /// What the first honest node would tell.
    Mimic,
    /// Its own first values again and again: a free rider.
    Stale,
    /// Honest at first, then slowly turning to its own value with the other sign.
    Drift,
    /// The faulty take turns: one flips its signs while the others are honest.
    Sleeper,
    /// Different signed segments for different neighbors.
    Equivocation,
    /// Nothing is ever sent.
    Silent,
    /// Its own records go to a third of its neighbors alone.
    Withhold,
    /// Old frames are sent again.
    Replay,
    /// Signatures of segments and acks are wrong now and then.
    Forge,
    /// It greets with the manifest of another run.
    WrongRun,
    /// Segments of heights far ahead and far behind.
    FarRound,
    /// More records in a round than the manifest allows.
    Overlong,
    /// Random bytes, oversized frames, and lists and numbers beyond all limits.
    Malformed,
    /// Frames beyond the longest that is allowed.
    Oversize,
    /// It reads one frame a second.
    SlowReader,
    /// It connects to its neighbors in a loop, each time as somebody else.
    ConnectionFlood,
    /// Its own records of a height are shown, to half of the others, when it acknowledges it.
    LateReveal,
    /// Acks for different digests to different halves.
    FalseAck,
    /// Certified history with other bytes, weights and signatures.
    FalseHistory,
    /// It goes on from an older copy of its own log, and so signs a second continuation.
    RestoredBackup,
    /// Many identities from one host ask to take part.
    Sybil,
}

impl FaultKind {
    /// All kinds with their names in files and on the command line, values before protocol.
    const NAMES: [(FaultKind, &str); 29] = {
        use FaultKind::*;
        [
            (SignFlip, "sign-flip"),
            (ScaledSignFlip, "scaled-sign-flip"),
            (Zero, "zero"),
            (Random, "random"),
            (LargestOpposing, "largest-opposing"),
            (Foe, "foe"),
            (Alie, "alie"),
            (LabelFlip, "label-flip"),
            (Mimic, "mimic"),
            (Stale, "stale"),
            (Drift, "drift"),
            (Sleeper, "sleeper"),
            (Equivocation, "equivocation"),
            (Silent, "silent"),
            (Withhold, "withhold"),
            (Replay, "replay"),
            (Forge, "forge"),
            (WrongRun, "wrong-run"),
            (FarRound, "far-round"),
            (Overlong, "overlong"),
            (Malformed, "malformed"),
            (Oversize, "oversize"),
            (SlowReader, "slow-reader"),
            (ConnectionFlood, "connection-flood"),
            (LateReveal, "late-reveal"),
            (FalseAck, "false-ack"),
            (FalseHistory, "false-history"),
            (RestoredBackup, "restored-backup"),
            (Sybil, "sybil"),
        ]
    };

    /// All kinds, values before protocol.
    pub fn all() -> impl Iterator<Item = FaultKind> {
        FaultKind::NAMES.into_iter().map(|(kind, _)| kind)
    }

    /// The name in files and on the command line.
    pub fn name(self) -> &'static str {
        FaultKind::NAMES[self as usize].1
    }

    /// Whether it lies about values and keeps to the protocol.
    pub fn is_value(self) -> bool {
        self <= FaultKind::Sleeper
    }

    /// Whether it takes sockets, and not only other frames.
    pub fn needs_sockets(self) -> bool {
        use FaultKind::*;
        matches!(self, SlowReader | ConnectionFlood | Sybil)
    }
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl From<FaultKind> for String {
    fn from(kind: FaultKind) -> String {
        kind.name().into()
    }
}

/// A text that names no fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown fault '{name}' (known: {known})", known = known())]
pub struct UnknownFault {
    /// What was said.
    pub name: String,
}

fn known() -> String {
    FaultKind::NAMES.map(|(_, name)| name).join(", ")
}

impl FromStr for FaultKind {
    type Err = UnknownFault;
    fn from_str(name: &str) -> Result<FaultKind, UnknownFault> {
        let unknown = || UnknownFault { name: name.chars().take(64).collect() };
        FaultKind::all().find(|kind| kind.name() == name).ok_or_else(unknown)
    }
}

impl TryFrom<String> for FaultKind {
    type Error = UnknownFault;
    fn try_from(name: String) -> Result<FaultKind, UnknownFault> {
        name.parse()
    }
}

/// What one node is told to do.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Written")]
pub struct Fault {
    /// The behaviour.
    pub kind: FaultKind,
    /// How strongly; see [`value::Lie::new`]. `None` is the usual.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub factor: Option<f64>,
}

/// A fault as it is read, before its strength is checked.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    kind: FaultKind,
    factor: Option<f64>,
}

impl TryFrom<Written> for Fault {
    type Error = FaultError;
    fn try_from(Written { kind, factor }: Written) -> Result<Fault, FaultError> {
        Fault::new(kind, factor)
    }
}

/// The strongest lie: beyond it every byte is the largest there is.
const FACTOR_MAX: f64 = 1e12;

/// Why a fault cannot be injected.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum FaultError {
    /// The name is unknown.
    #[error(transparent)]
    Unknown(#[from] UnknownFault),
    /// The strength is no number in its range.
    #[error("fault {kind}: factor {factor} must be a number from 0 to 1e12")]
    Factor {
        /// The kind.
        kind: FaultKind,
        /// What was said.
        factor: String,
    },
}

impl Fault {
    /// A fault whose strength is in range.
    ///
    /// # Errors
    /// [`FaultError::Factor`].
    pub fn new(kind: FaultKind, factor: Option<f64>) -> Result<Fault, FaultError> {
        match factor {
            Some(factor) if !(0.0..=FACTOR_MAX).contains(&factor) => {
                Err(FaultError::Factor { kind, factor: factor.to_string() })
            }
            _ => Ok(Fault { kind, factor }),
        }
    }
}

impl FromStr for Fault {
    type Err = FaultError;
    /// `KIND` or `KIND:FACTOR`.
    fn from_str(text: &str) -> Result<Fault, FaultError> {
        let Some((kind, factor)) = text.split_once(':') else {
            return Ok(Fault { kind: text.parse()?, factor: None });
        };
        let kind = kind.parse()?;
        match factor.parse() {
            Ok(number) => Fault::new(kind, Some(number)),
            Err(_) => Err(FaultError::Factor { kind, factor: factor.chars().take(64).collect() }),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.factor {
            Some(factor) => write!(f, "{}:{factor}", self.kind),
            None => write!(f, "{}", self.kind),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_listed_once_and_reads_back() {
        for (at, kind) in FaultKind::all().enumerate() {
            assert_eq!(kind as usize, at);
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        assert_eq!(FaultKind::Sybil as usize + 1, FaultKind::NAMES.len());
        assert_eq!(FaultKind::all().filter(|kind| kind.is_value()).count(), 12);
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_known_ones() {
        let error = "sign-flop".parse::<Fault>().unwrap_err().to_string();
        for say in ["sign-flop", "sign-flip", "sybil"] {
            assert!(error.contains(say), "{error}");
        }
    }

    #[test]
    fn a_strength_is_a_number_in_range() {
        let fault = Fault { kind: FaultKind::Alie, factor: Some(0.5) };
        assert_eq!("alie:0.5".parse(), Ok(fault));
        assert_eq!(fault.to_string(), "alie:0.5");
        for wrong in ["-1.0", "1e13"] {
            let text = format!("{{\"kind\": \"alie\", \"factor\": {wrong}}}");
            let error = serde_json::from_str::<Fault>(&text).unwrap_err().to_string();
            assert!(error.contains("from 0 to 1e12"), "{error}");
        }
        for wrong in ["alie:", "alie:x", "alie:-1", "alie:nan", "alie:1e13"] {
            assert!(matches!(wrong.parse::<Fault>(), Err(FaultError::Factor { .. })), "{wrong}");
        }
    }
}
