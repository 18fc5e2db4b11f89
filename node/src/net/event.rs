//! What a network reports and what it counts.

use std::time::Duration;

use libp2p::request_response::ResponseChannel;
use libp2p::{Multiaddr, PeerId};

use super::exchange::{DownReason, Garbage};
use super::fetch::TooLong;

/// Something that happened on the network, as [`Network::next_event`](super::Network::next_event)
/// returns it.
#[derive(Debug)]
pub enum NetworkEvent {
    /// The node listens there.
    Listening(Multiaddr),
    /// A listener stopped, and with it its addresses.
    ListenFailed {
        /// Where it listened; may be empty.
        addresses: Vec<Multiaddr>,
        /// What the system said.
        reason: String,
    },
    /// Frames can be exchanged with the peer. Comes once, until `Disconnected`.
    Connected {
        /// The peer.
        peer: PeerId,
        /// Where it is.
        address: Multiaddr,
    },
    /// No further frame comes from the peer, and what was queued for it may be lost. With
    /// [`DownReason::Replaced`] a `Connected` follows: begin anew, as with a new peer.
    Disconnected {
        /// The peer.
        peer: PeerId,
        /// Why.
        reason: DownReason,
    },
    /// A frame, in order and without gaps since `Connected`.
    Frame {
        /// Who sent it.
        peer: PeerId,
        /// What it says; at least one byte.
        bytes: Vec<u8>,
    },
    /// The peer sent what is no frame. Its connection is being closed; `Disconnected` follows if
    /// it was connected.
    BadPeer {
        /// The peer.
        peer: PeerId,
        /// What it did.
        reason: Garbage,
    },
    /// A peer was found by mDNS or Kademlia. Nobody dials it but the caller.
    Discovered {
        /// The peer.
        peer: PeerId,
        /// Where it may be reached.
        addresses: Vec<Multiaddr>,
    },
    /// An attempt to reach a peer failed.
    DialFailed {
        /// Whom, if that was known.
        peer: Option<PeerId>,
        /// Where, if there was an address.
        address: Option<Multiaddr>,
        /// What happened.
        reason: String,
        /// What may help.
        hint: &'static str,
        /// When it is tried again; `None` if the peer is not wanted.
        retry_in: Option<Duration>,
    },
    /// A peer asks; answer with [`Network::respond`](super::Network::respond) or drop the token.
    Request {
        /// Who asks.
        peer: PeerId,
        /// What it asks.
        bytes: Vec<u8>,
        /// Where the answer goes.
        token: ResponseToken,
    },
    /// A request of this node has ended. Comes once for each.
    Response {
        /// The request.
        id: RequestId,
        /// Who was asked.
        peer: PeerId,
        /// The answer.
        result: Result<Vec<u8>, RequestError>,
    },
}

/// Names a request of this node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub(super) u64);

/// The right to answer one request. Dropping it tells the peer that there is no answer.
#[derive(Debug)]
pub struct ResponseToken(pub(super) ResponseChannel<Vec<u8>>);

/// Why a request has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// There is no connection to the peer.
    #[error("not connected")]
    NotConnected,
    /// As many requests as allowed are under way to the peer.
    #[error("{0} requests are already under way")]
    Busy(usize),
    /// The request is longer than peers accept.
    #[error("request of {len} bytes, at most {max} are allowed")]
    RequestTooLong {
        /// Its length.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// The answer is longer than this node accepts; it was not read.
    #[error("response refused: {0}")]
    ResponseTooLong(TooLong),
    /// No answer in time.
    #[error("timed out")]
    TimedOut,
    /// The connection closed, or the peer had no answer.
    #[error("no answer: {0}")]
    NoAnswer(String),
    /// The peer does not answer requests of this kind.
    #[error("the peer does not answer requests")]
    Unsupported,
}

/// Why an answer was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RespondError {
    /// Longer than peers accept; the token is spent and the peer is told that there is no answer.
    #[error("response of {len} bytes, at most {max} are allowed")]
    TooLong {
        /// Its length.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// The peer waits no longer.
    #[error("the peer waits no longer")]
    Gone,
}

/// What a network has carried and refused since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes read: for TCP at the socket, for QUIC inside its streams (less than the socket's).
    pub transport_bytes_in: u64,
    /// Bytes written, counted likewise.
    pub transport_bytes_out: u64,
    /// Frames given out as [`NetworkEvent::Frame`].
    pub frames_in: u64,
    /// Frames accepted by `send`.
    pub frames_out: u64,
    /// Their bytes, without lengths.
    pub frame_bytes_in: u64,
    /// Their bytes, without lengths.
    pub frame_bytes_out: u64,
    /// Frames that `send` refused because the queue was full.
    pub frames_dropped_out: u64,
    /// Frames that came on a connection that was about to be closed.
    pub frames_dropped_in: u64,
    /// Exchange streams that broke the protocol.
    pub garbage_streams: u64,
    /// Second exchange streams of one connection, dropped.
    pub surplus_streams: u64,
    /// Incoming connections that failed in their handshake: scanners, other protocols, refused
    /// peers.
    pub handshakes_failed: u64,
    /// Dials that failed.
    pub dials_failed: u64,
    /// Requests answered, requests sent.
    pub requests_in: u64,
    /// Requests sent.
    pub requests_out: u64,
    /// Peers with a link now.
    pub peers: usize,
}
