//! What comes out of the protocol.

use std::sync::Arc;

use thiserror::Error;

use super::{Foundation, Passed};
use crate::audit::Score;
use crate::direction::Direction;
use crate::height::{CertifiedHeight, ChainDigest, Control, RecordSet};
use crate::id::{Height, NodeId, Origin, Round, RunId, Slot};
use crate::ledger::{Evidence, Held, Segment};
use crate::manifest::Difference;
use crate::message::{Request, StartVote};
use crate::params::Payout;

/// An effect to be carried out, in order.
#[derive(Clone, Debug)]
pub enum Output {
    /// Write to disk before anything after it takes effect.
    Record(Entry),
    /// Send a frame to a neighbor.
    Send {
        /// The neighbor.
        to: NodeId,
        /// The frame's bytes.
        bytes: Vec<u8>,
    },
    /// Hand a frame to a neighbor in the same process; only after [`Protocol::pass_frames`].
    ///
    /// [`Protocol::pass_frames`]: super::Protocol::pass_frames
    Pass {
        /// The neighbor.
        to: NodeId,
        /// The frame.
        frame: Passed,
    },
    /// Ask a neighbor.
    Request {
        /// The neighbor.
        to: NodeId,
        /// The question.
        request: Request,
    },
    /// Measure the losses at both ends of a direction, after all changes before this output.
    Probe(Probe),
    /// Move the *trailing model*: a second one, of a moment two heights ago.
    Trail(Trail),
    /// The same as [`Output::Probe`] at the trailing model, where a record that is audited was measured.
    Repeat(Probe),
    /// Change the coefficients of directions.
    Apply(Vec<Change>),
    /// A neighbor broke the protocol.
    Misbehaved {
        /// The neighbor.
        peer: NodeId,
        /// What it did.
        offence: Offence,
    },
    /// A neighbor takes part in another run.
    Refused {
        /// The neighbor.
        peer: NodeId,
        /// The first field that differs.
        difference: Difference,
    },
    /// Something that people may want to know.
    Event(Event),
}

/// A probe to be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The direction's round.
    pub round: Round,
    /// The direction's slot.
    pub slot: Slot,
    /// Whose minibatch: this node's, or that of an origin whose byte is audited.
    pub of: NodeId,
}

/// How the trailing model becomes one of another round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trail {
    /// Whether it begins anew as a copy of the model as it stands, or goes on from where it was.
    pub anew: bool,
    /// What is changed in it then.
    pub changes: Vec<Change>,
}

/// A line of the node's log on disk.
#[derive(Clone, Debug, PartialEq, bincode::Encode, bincode::Decode)]
pub enum Entry {
    /// One's own vote for the founders.
    Vote(StartVote),
    /// The votes that founded the run.
    Founded(Vec<StartVote>),
    /// One's own segment of a height, before it is sent.
    Own {
        /// The height.
        height: u64,
        /// The signed prefix.
        segment: Segment,
    },
    /// The record set that is about to be acknowledged.
    Acked {
        /// The height.
        height: u64,
        /// What the signature is about to cover.
        set: RecordSet,
        /// Segments of others in it that were not in the set acknowledged before: after a restart
        /// this node must hold the very records it signed for, and may be the only one to.
        segments: Vec<(Origin, Arc<Held>)>,
        /// Proofs of equivocation in it.
        evidence: Vec<Evidence>,
        /// Control records in it.
        controls: Vec<Control>,
    },
    /// First in a log whose older history was dropped.
    Foundation(Box<Foundation>),
    /// A certified height; a later entry of the same height replaces it and all after it.
    Certified(CertifiedHeight),
}

/// The coefficient of a direction changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The direction's round.
    pub round: Round,
    /// The direction's slot.
    pub slot: Slot,
    /// In units of 2⁻⁴⁰.
    pub from: i64,
    /// In units of 2⁻⁴⁰.
    pub to: i64,
}

impl Change {
    /// The same for a model's state.
    pub fn payout(&self, run: &RunId) -> Payout {
        let direction = Direction::new(run, self.round, self.slot);
        Payout { direction, from: self.from, to: self.to }
    }
}

/// What a neighbor did wrong.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Offence {
    /// Bytes that are no frame: the connection is lost at once.
    #[error("no frame: {0}")]
    Undecodable(String),
    /// Statements that are not signed by those they name, or break a limit.
    #[error("a statement that cannot be: {0}")]
    InvalidStatement(String),
    /// A history that its certificates do not cover.
    #[error("a history that its certificates do not cover: {0}")]
    FalseHistory(String),
}

/// News for people, logs and metrics.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The founders are known.
    Started {
        /// Members of the first roster.
        members: usize,
    },
    /// This node became a member.
    Joined {
        /// The height its records count from.
        height: Height,
    },
    /// A round was closed tentatively.
    Closed {
        /// The round.
        round: Round,
        /// It was closed for lack of patience, without enough records.
        impatient: bool,
    },
    /// A height was certified.
    Certified {
        /// The height.
        height: Height,
        /// Records in it.
        records: u64,
        /// The digest chain after it.
        digest: ChainDigest,
    },
    /// A larger certificate replaced what was certified before.
    Replaced {
        /// The first height that changed.
        height: Height,
    },
    /// Nothing can be measured until something comes from others.
    Stalled {
        /// What is waited for.
        reason: String,
    },
    /// Work goes on.
    Resumed,
    /// An origin contradicted itself.
    Equivocation {
        /// The origin's identity.
        origin: NodeId,
        /// The height.
        height: Height,
    },
    /// Audits found an origin's bytes to be no measurements.
    Convicted {
        /// The origin's identity.
        origin: NodeId,
        /// The height from which on its records count for nothing.
        from: Height,
        /// What the audits say.
        score: Score,
    },
    /// Audits began to cast doubt on members, or no longer do.
    Doubted {
        /// All that are doubted now.
        origins: Vec<NodeId>,
        /// The height in which their records have no weight.
        from: Height,
    },
    /// Certified history is fetched.
    CatchingUp {
        /// Heights certified here.
        certified: u64,
        /// Heights certified at the neighbor.
        target: u64,
        /// The neighbor.
        from: NodeId,
    },
    /// All rounds are certified.
    Finished {
        /// The digest chain after the last height.
        digest: ChainDigest,
    },
}
