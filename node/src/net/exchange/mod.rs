//! The exchange protocol: one long-lived stream of frames in each direction of a link.
//!
//! A **link** is one connection to a peer. Frames of a link arrive in order and without gaps until
//! the link goes down; whatever ends it is seen at both ends, so state negotiated over a link
//! (indices, deltas) lives exactly as long as the link. Therefore a stream that breaks costs its
//! connection, and when two connections to one peer exist (both dialed, or a relayed one became
//! direct) the link is on one of them and the other is closed, by a rule both ends share:
//!
//! - a direct connection before a relayed one;
//! - of two that were dialed from both sides at about the same time, the one the smaller peer id
//!   dialed;
//! - otherwise the newer one (an older one may belong to a process that no longer exists).
//!
//! While the ends disagree for a moment, frames that arrive on the connection that is not the link
//! are dropped, and that connection never becomes the link: it is closed instead.
//!
//! The protocol knows nothing of what the frames say.

mod frame;
mod handler;
mod outbox;

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use libp2p::core::transport::PortUse;
use libp2p::core::{ConnectedPoint, Endpoint};
use libp2p::swarm::behaviour::{ConnectionClosed, ConnectionEstablished};
use libp2p::swarm::{
    CloseConnection, ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler,
    THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId, StreamProtocol};

pub(super) use frame::FRAME_LEN_LIMIT;
pub use frame::FrameError;
pub use handler::Garbage;
use handler::{Handler, ToBehaviour};
use outbox::Outbox;

/// The name both ends negotiate; a change of the framing changes it.
pub(super) const PROTOCOL: StreamProtocol = StreamProtocol::new("/rumormill/exchange/1");

/// Two connections dialed from both ends within this time were a simultaneous dial. A guess: more
/// than two handshakes over a slow path take.
const SIMULTANEOUS: Duration = Duration::from_secs(5);

/// Bounds of the protocol, per connection.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    pub(super) frame_len_max: usize,
    pub(super) queue_frames_max: usize,
    pub(super) queue_bytes_max: usize,
    pub(super) opening_timeout: Duration,
    /// Attempts to open the outbound stream.
    pub(super) openings_max: u32,
    /// Streams a peer may open beside its first, each dropped, before it counts as hostile.
    pub(super) surplus_streams_max: u32,
    /// Connections of one peer; a further one is refused.
    pub(super) connections_per_peer_max: usize,
}

/// The exchange protocol of a swarm.
pub(super) struct Behaviour {
    local: PeerId,
    limits: Arc<Limits>,
    /// Connections with a handler that are not established yet.
    starting: BTreeMap<ConnectionId, Arc<Outbox>>,
    peers: BTreeMap<PeerId, Peer>,
    /// At most a few per connection event: the swarm empties it before it takes in the next.
    events: VecDeque<ToSwarm<Event, Infallible>>,
    waker: Option<Waker>,
    finishing: bool,
    counts: Counts,
}

/// The links of a swarm and what they carry.
#[derive(Debug)]
pub(super) enum Event {
    Up { peer: PeerId, address: Multiaddr },
    Down { peer: PeerId, reason: DownReason },
    Frame { peer: PeerId, bytes: Vec<u8> },
    Bad { peer: PeerId, reason: Garbage },
}

/// Why a link ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DownReason {
    /// The peer closed its stream after its last frame: it stops, or wants this link no longer.
    #[error("the peer closed the link")]
    Finished,
    /// This node closed the connection.
    #[error("closed by this node")]
    Closed,
    /// The link moved to another connection; an `Up` follows at once or soon.
    #[error("replaced by another connection")]
    Replaced,
    /// The peer broke the protocol.
    #[error("protocol broken: {0}")]
    Garbage(Garbage),
    /// The connection or one of its streams broke.
    #[error("{0}")]
    Lost(String),
}

/// Why a frame was not queued. The link is as before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// There is no link to the peer.
    #[error("not connected")]
    NotConnected,
    /// The peer takes frames more slowly than they are sent.
    #[error("queue full: {frames} frames of {bytes} bytes wait")]
    QueueFull {
        /// Frames that wait.
        frames: usize,
        /// Their bytes.
        bytes: usize,
    },
    /// The peer would refuse the frame.
    #[error("frame of {len} bytes, allowed are 1 to {max}")]
    Length {
        /// The frame's length.
        len: usize,
        /// The limit.
        max: usize,
    },
}

/// A peer already has as many connections as one may have.
#[derive(Debug, thiserror::Error)]
#[error("the peer already has {max} connections")]
struct TooManyConnections {
    max: usize,
}

/// What happened since the start.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) frames_in: u64,
    pub(super) frames_out: u64,
    pub(super) frame_bytes_in: u64,
    pub(super) frame_bytes_out: u64,
    pub(super) frames_dropped_out: u64,
    pub(super) frames_dropped_in: u64,
    pub(super) garbage_streams: u64,
    pub(super) surplus_streams: u64,
}

#[derive(Default)]
struct Peer {
    /// In the order of their establishment. At most what the connection limits allow.
    connections: Vec<Connection>,
    /// The connection that is the link, once `Up` was reported.
    link: Option<ConnectionId>,
}

struct Connection {
    id: ConnectionId,
    address: Multiaddr,
    outbox: Arc<Outbox>,
    shape: Shape,
    /// The peer speaks the protocol on it.
    opened: bool,
    /// Asked to close; it counts no longer.
    closing: Option<DownReason>,
    /// A frame was dropped here, so it cannot be a link any more.
    tainted: bool,
    /// The peer's stream has ended, or ours has; see [`Behaviour::finish`].
    ended: bool,
    finished: bool,
}

/// What the choice between two connections depends on.
#[derive(Debug, Clone, Copy)]
struct Shape {
    relayed: bool,
    dialed_here: bool,
    established: Instant,
}

impl Behaviour {
    pub(super) fn new(local: PeerId, limits: Limits) -> Self {
        Self {
            local,
            limits: Arc::new(limits),
            starting: BTreeMap::new(),
            peers: BTreeMap::new(),
            events: VecDeque::new(),
            waker: None,
            finishing: false,
            counts: Counts::default(),
        }
    }

    /// Queues a frame for the peer's link.
    pub(super) fn send(&mut self, peer: &PeerId, frame: Vec<u8>) -> Result<(), SendError> {
        let len = frame.len();
        let max = self.limits.frame_len_max;
        if len == 0 || len > max {
            return Err(SendError::Length { len, max });
        }
        let link = self.link(peer).ok_or(SendError::NotConnected)?;
        match link.outbox.push(frame) {
            Ok(()) => {
                self.counts.frames_out += 1;
                self.counts.frame_bytes_out += len as u64;
                Ok(())
            }
            Err((frames, bytes)) => {
                self.counts.frames_dropped_out += 1;
                Err(SendError::QueueFull { frames, bytes })
            }
        }
    }

    /// Frames queued for the peer and not yet written, 0 without a link.
    pub(super) fn queue_len(&self, peer: &PeerId) -> usize {
        self.link(peer).map_or(0, |link| link.outbox.len())
    }

    /// Peers with a link.
    pub(super) fn links(&self) -> impl Iterator<Item = PeerId> {
        self.peers.iter().filter(|(_, peer)| peer.link.is_some()).map(|(id, _)| *id)
    }

    pub(super) fn is_linked(&self, peer: &PeerId) -> bool {
        self.link(peer).is_some()
    }

    pub(super) fn counts(&self) -> Counts {
        self.counts
    }

    /// Closes every stream after its last frame. The peers answer by closing the connections, so
    /// when no connection is left every frame has arrived.
    pub(super) fn finish(&mut self) {
        self.finishing = true;
        for connection in self.peers.values().flat_map(|peer| &peer.connections) {
            connection.outbox.finish();
        }
    }

    fn link(&self, peer: &PeerId) -> Option<&Connection> {
        let peer = self.peers.get(peer)?;
        let id = peer.link?;
        peer.connections.iter().find(|connection| connection.id == id)
    }

    /// The bound is here and not with libp2p's connection limits, because those are lifted for
    /// wanted peers as a whole.
    fn handler(&mut self, id: ConnectionId, peer: PeerId) -> Result<Handler, ConnectionDenied> {
        let limits = &self.limits;
        let max = limits.connections_per_peer_max;
        if self.peers.get(&peer).is_some_and(|peer| peer.connections.len() >= max) {
            return Err(ConnectionDenied::new(TooManyConnections { max }));
        }
        let outbox = Arc::new(Outbox::new(limits.queue_frames_max, limits.queue_bytes_max));
        if self.finishing {
            outbox.finish();
        }
        self.starting.insert(id, outbox.clone());
        Ok(Handler::new(limits.clone(), outbox))
    }

    fn on_established(&mut self, event: ConnectionEstablished<'_>) {
        let outbox = self
            .starting
            .remove(&event.connection_id)
            .expect("a handler was made for every connection that is established");
        let address = event.endpoint.get_remote_address().clone();
        let shape = Shape {
            relayed: event.endpoint.is_relayed(),
            // Hole punching has two dialers; one of them was told to act as the listener.
            dialed_here: matches!(
                event.endpoint,
                ConnectedPoint::Dialer { role_override: Endpoint::Dialer, .. }
            ),
            established: Instant::now(),
        };
        self.peers.entry(event.peer_id).or_default().connections.push(Connection {
            id: event.connection_id,
            address,
            outbox,
            shape,
            opened: false,
            closing: None,
            tainted: false,
            ended: false,
            finished: false,
        });
        self.settle(event.peer_id);
    }

    fn on_closed(&mut self, event: ConnectionClosed<'_>) {
        let Some(peer) = self.peers.get_mut(&event.peer_id) else { return };
        let Some(index) = peer.connections.iter().position(|c| c.id == event.connection_id) else {
            return;
        };
        let connection = peer.connections.remove(index);
        if peer.link == Some(connection.id) {
            peer.link = None;
            let reason = connection.closing.unwrap_or_else(|| match event.cause {
                Some(error) => DownReason::Lost(error.to_string()),
                None => DownReason::Closed,
            });
            self.emit(Event::Down { peer: event.peer_id, reason });
        }
        self.settle(event.peer_id);
    }

    /// Makes the best connection to the peer its link and closes what the rule says.
    fn settle(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if peer.connections.is_empty() {
            self.peers.remove(&id);
            return;
        }
        let local_is_smaller = self.local < id;
        let best =
            peer.connections
                .iter()
                .filter(|connection| connection.closing.is_none())
                .reduce(|best, next| {
                    if next.shape.replaces(&best.shape, local_is_smaller) { next } else { best }
                })
                .map(|connection| (connection.id, connection.shape));
        let Some((best, shape)) = best else { return };
        let mut events = Vec::new();
        for connection in &mut peer.connections {
            let redundant = connection.id != best
                && connection.closing.is_none()
                && connection.shape.may_be_closed_here(&shape);
            if redundant || (connection.id == best && connection.tainted) {
                connection.closing.get_or_insert(DownReason::Replaced);
                events.push(close(id, CloseConnection::One(connection.id)));
            }
        }
        if peer.link.is_some_and(|link| link != best) {
            peer.link = None;
            let reason = DownReason::Replaced;
            events.push(ToSwarm::GenerateEvent(Event::Down { peer: id, reason }));
        }
        let connection = peer.connections.iter().find(|connection| connection.id == best);
        let connection = connection.expect("best was taken from these");
        if peer.link.is_none() && connection.opened && connection.closing.is_none() {
            peer.link = Some(best);
            let address = connection.address.clone();
            events.push(ToSwarm::GenerateEvent(Event::Up { peer: id, address }));
        }
        self.events.extend(events);
        self.wake();
    }

    /// Closes one connection; `reason` is what `Down` will say if it was the link.
    fn close_connection(&mut self, id: PeerId, connection: ConnectionId, reason: DownReason) {
        if let Some(connection) = self.connection_mut(&id, connection) {
            connection.closing.get_or_insert(reason);
        }
        self.events.push_back(close(id, CloseConnection::One(connection)));
    }

    fn on_frame(&mut self, id: PeerId, connection: ConnectionId, bytes: Vec<u8>) {
        let is_link = self.peers.get(&id).is_some_and(|peer| peer.link == Some(connection));
        let Some(from) = self.connection_mut(&id, connection) else { return };
        if is_link && from.closing.is_none() {
            self.counts.frames_in += 1;
            self.counts.frame_bytes_in += bytes.len() as u64;
            self.emit(Event::Frame { peer: id, bytes });
        } else {
            from.tainted = true;
            self.counts.frames_dropped_in += 1;
        }
    }

    fn on_garbage(&mut self, id: PeerId, reason: Garbage) {
        self.counts.garbage_streams += 1;
        if let Some(peer) = self.peers.get_mut(&id) {
            for connection in &mut peer.connections {
                connection.closing.get_or_insert(DownReason::Garbage(reason));
            }
        }
        self.emit(Event::Bad { peer: id, reason });
        self.events.push_back(close(id, CloseConnection::All));
    }

    /// The peer will send no more. While this node finishes too, its own last frames come first.
    fn on_half_closed(&mut self, id: PeerId, connection: ConnectionId) {
        let finishing = self.finishing;
        let Some(half) = self.connection_mut(&id, connection) else { return };
        if half.ended && (half.finished || !finishing) {
            self.close_connection(id, connection, DownReason::Finished);
        }
    }

    fn connection_mut(&mut self, peer: &PeerId, id: ConnectionId) -> Option<&mut Connection> {
        let connections = &mut self.peers.get_mut(peer)?.connections;
        connections.iter_mut().find(|connection| connection.id == id)
    }

    fn emit(&mut self, event: Event) {
        self.events.push_back(ToSwarm::GenerateEvent(event));
        self.wake();
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl Shape {
    /// Whether a link moves from `old` to this connection, which was established after it.
    fn replaces(&self, old: &Shape, local_is_smaller: bool) -> bool {
        if self.relayed != old.relayed {
            return old.relayed;
        }
        let simultaneous = self.established.duration_since(old.established) < SIMULTANEOUS;
        if self.dialed_here != old.dialed_here && simultaneous {
            return self.dialed_here == local_is_smaller;
        }
        true
    }

    /// Whether this end closes the connection in favor of `best`. Of two connections that one end
    /// dialed, only that end knows which the peer saw last.
    fn may_be_closed_here(&self, best: &Shape) -> bool {
        self.relayed != best.relayed || self.dialed_here != best.dialed_here || self.dialed_here
    }
}

fn close(peer_id: PeerId, connection: CloseConnection) -> ToSwarm<Event, Infallible> {
    ToSwarm::CloseConnection { peer_id, connection }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Event;

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        _local: &Multiaddr,
        _remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.handler(id, peer)
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        _remote: &Multiaddr,
        _role: Endpoint,
        _port_use: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.handler(id, peer)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(event) => self.on_established(event),
            FromSwarm::ConnectionClosed(event) => self.on_closed(event),
            // Another behaviour may have refused a connection after this one made its handler.
            FromSwarm::ListenFailure(failure) => {
                self.starting.remove(&failure.connection_id);
            }
            FromSwarm::DialFailure(failure) => {
                self.starting.remove(&failure.connection_id);
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        match event {
            ToBehaviour::Frame(bytes) => self.on_frame(peer, connection, bytes),
            ToBehaviour::Opened => {
                if let Some(opened) = self.connection_mut(&peer, connection) {
                    opened.opened = true;
                }
                self.settle(peer);
            }
            ToBehaviour::Garbage(reason) => self.on_garbage(peer, reason),
            ToBehaviour::Ended => {
                if let Some(half) = self.connection_mut(&peer, connection) {
                    half.ended = true;
                }
                self.on_half_closed(peer, connection);
            }
            ToBehaviour::Finished => {
                if let Some(half) = self.connection_mut(&peer, connection) {
                    half.finished = true;
                }
                self.on_half_closed(peer, connection);
            }
            ToBehaviour::Failed(reason) => {
                self.close_connection(peer, connection, DownReason::Lost(reason));
            }
            ToBehaviour::Unsupported => {
                tracing::debug!(%peer, "peer does not speak {PROTOCOL}");
            }
            ToBehaviour::Surplus => self.counts.surplus_streams += 1,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Event, THandlerInEvent<Self>>> {
        match self.events.pop_front() {
            Some(event) => Poll::Ready(event),
            None => {
                self.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(relayed: bool, dialed_here: bool, established: Instant) -> Shape {
        Shape { relayed, dialed_here, established }
    }

    #[test]
    fn both_ends_choose_the_smaller_peers_dial() {
        let now = Instant::now();
        let (here, there) = (shape(false, true, now), shape(false, false, now));
        // The smaller end sees its own dial win whichever came first; the larger end loses its own.
        assert!(here.replaces(&there, true) && !there.replaces(&here, true));
        assert!(!here.replaces(&there, false) && there.replaces(&here, false));
    }

    #[test]
    fn a_much_later_connection_replaces_a_stale_one() {
        let old = shape(false, true, Instant::now());
        let new = shape(false, false, old.established + 2 * SIMULTANEOUS);
        assert!(new.replaces(&old, true) && new.replaces(&old, false));
    }

    #[test]
    fn direct_replaces_relayed() {
        let now = Instant::now();
        let (direct, relayed) = (shape(false, false, now), shape(true, true, now));
        assert!(direct.replaces(&relayed, true) && !relayed.replaces(&direct, true));
    }

    #[test]
    fn only_the_dialer_closes_one_of_its_two_dials() {
        let now = Instant::now();
        let (dialed, accepted) = (shape(false, true, now), shape(false, false, now));
        assert!(dialed.may_be_closed_here(&dialed));
        assert!(!accepted.may_be_closed_here(&accepted));
    }
}
