//! What travels between nodes: frames on an edge, requests and answers.

use bincode::{Decode, Encode};

use crate::codec::{self, DecodeError, FRAME_LEN_MAX, RESPONSE_LEN_MAX};
use crate::height::{CertifiedHeight, Control, Seal, SetDigest};
use crate::id::NodeId;
use crate::keys::Signature;
use crate::ledger::{Evidence, SegmentDelta};
use crate::manifest::Manifest;

/// A frame of the exchange protocol.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub enum Frame {
    /// First on every new link, in both directions.
    Hello {
        /// The run that the sender takes part in.
        manifest: Box<Manifest>,
        /// The sender has not had the receiver's hello.
        answer: bool,
    },
    /// While a run gathers its founders.
    Start {
        /// Nodes that are present.
        present: Vec<Presence>,
        /// Votes for the founders.
        votes: Vec<StartVote>,
    },
    /// What happens when an edge clock fires.
    Exchange(Exchange),
}

/// A node says that it is there, and wants to found the run.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Presence {
    /// The node.
    pub id: NodeId,
    /// A number that grows while the node is there: seconds.
    pub beat: u64,
    /// The node's signature.
    pub signature: Signature,
}

/// A founder's vote for the set of founders; see [`crate::start`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct StartVote {
    /// The ballot.
    pub ballot: u32,
    /// The set voted for, sorted.
    pub founders: Vec<NodeId>,
    /// Who votes.
    pub voter: NodeId,
    /// The voter's signature.
    pub signature: Signature,
}

/// Where in an exchange a frame stands: one and a half round trips.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Stage {
    /// The initiator says what it holds.
    Open,
    /// The other sends what the initiator lacks and says what it holds itself.
    Answer,
    /// The initiator sends what the other lacks.
    Close,
}

/// One frame of an exchange. Every list may be empty; what does not fit waits for the next.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct Exchange {
    /// Frames sent on this link so far, modulo 256: a gap means that frames were lost.
    pub sequence: u8,
    /// The stage.
    pub stage: Stage,
    /// `have` is complete rather than what changed since the last frame.
    pub full: bool,
    /// The sender has lost track of what the receiver holds and wants a full `have`.
    pub ask_full: bool,
    /// Heights that the sender knows certified.
    pub certified: u64,
    /// First bytes of the sender's digest chain at that height.
    pub tag: [u8; 4],
    /// What the sender holds.
    pub have: Vec<Have>,
    /// What the receiver lacks.
    pub segments: Vec<SegmentDelta>,
    /// Members' signatures under record sets, grouped by set.
    pub acks: Vec<AckGroup>,
    /// Control records, with their height.
    pub controls: Vec<(u64, Control)>,
    /// Proofs of equivocation in uncertified heights.
    pub evidence: Vec<Evidence>,
    /// Segments whose whole is wanted: (height, origin).
    pub wanted: Vec<(u64, u16)>,
    /// Hashes of the segments held, sent when two nodes hold the same lengths but disagree.
    pub sums: Vec<Sums>,
}

/// Lengths held of a height's segments.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Have {
    /// The height.
    pub height: u64,
    /// (origin, bytes held).
    pub lens: Vec<(u16, u16)>,
}

/// Hashes of a height's segments.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Sums {
    /// The height.
    pub height: u64,
    /// (origin, bytes held, first bytes of the segment's hash).
    pub sums: Vec<(u16, u16, [u8; 8])>,
}

/// Acks of one record set.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct AckGroup {
    /// The height.
    pub height: u64,
    /// The set's weight.
    pub weight: u64,
    /// The set's digest.
    pub digest: SetDigest,
    /// Members and their seals.
    pub acks: Vec<(u16, Seal)>,
}

/// A question to a neighbor, outside the exchange.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Request {
    /// The manifest of the neighbor's run, for a node that joins by address.
    Manifest,
    /// Who founded the run.
    Founders,
    /// Certified heights from this one on, as many as fit.
    History {
        /// The first height wanted.
        from: u64,
    },
    /// A stretch of a checkpoint: the model after so many certified heights, a multiple of
    /// [`MODEL_EVERY`](crate::height::MODEL_EVERY), as a safetensors file.
    Checkpoint {
        /// The heights.
        certified: u64,
        /// The first byte wanted.
        offset: u64,
    },
}

/// The answer to a [`Request`].
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub enum Response {
    /// The manifest.
    Manifest(Box<Manifest>),
    /// The votes that made the founders, or none when the manifest names them.
    Founders(Vec<StartVote>),
    /// Certified heights in order.
    History(Vec<CertifiedHeight>),
    /// The neighbor keeps certified heights from this one on only.
    HistoryFrom(u64),
    /// A stretch of a checkpoint.
    Checkpoint {
        /// Bytes of the whole.
        total: u64,
        /// Some of them, from the offset that was asked for.
        bytes: Vec<u8>,
    },
    /// The neighbor has nothing to say, or no room.
    Nothing,
}

impl Frame {
    /// The frame's bytes.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(self)
    }

    /// A frame from a peer's bytes.
    ///
    /// # Errors
    /// Not a frame, or larger than [`FRAME_LEN_MAX`].
    pub fn decode(bytes: &[u8]) -> Result<Frame, DecodeError> {
        codec::decode::<Frame, FRAME_LEN_MAX>(bytes)
    }
}

impl Request {
    /// The request's bytes.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(self)
    }

    /// A request from a peer's bytes.
    ///
    /// # Errors
    /// Not a request.
    pub fn decode(bytes: &[u8]) -> Result<Request, DecodeError> {
        codec::decode::<Request, 256>(bytes)
    }
}

impl Response {
    /// The answer's bytes.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(self)
    }

    /// An answer from a peer's bytes.
    ///
    /// # Errors
    /// Not an answer, or larger than [`RESPONSE_LEN_MAX`].
    pub fn decode(bytes: &[u8]) -> Result<Response, DecodeError> {
        codec::decode::<Response, RESPONSE_LEN_MAX>(bytes)
    }
}
