//! One connection's share of the exchange protocol: a stream out, a stream in.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use libp2p::core::upgrade::ReadyUpgrade;
use libp2p::futures::{AsyncRead, AsyncWrite};
use libp2p::swarm::handler::{
    ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound,
};
use libp2p::swarm::{
    ConnectionHandler, ConnectionHandlerEvent, StreamUpgradeError, SubstreamProtocol,
};
use libp2p::{Stream, StreamProtocol};

use super::frame::{FrameDecoder, FrameError};
use super::outbox::{Outbox, Taken};
use super::{Limits, PROTOCOL};

/// Reads and writes the two streams of one connection.
///
/// A stream that was open and failed is not opened again: frames may be lost with it, and the
/// neighbor cannot tell. The behaviour closes the connection instead, so that both ends see the
/// link end. Only the opening itself, before any frame went out, is tried again.
pub(in super::super) struct Handler {
    limits: Arc<Limits>,
    outbox: Arc<Outbox>,
    outbound: Outbound,
    inbound: Inbound,
    openings_left: u32,
    surplus_left: u32,
    opened: bool,
    /// For the behaviour. At most what one read of [`READ_LEN`] bytes can hold, and a few more.
    events: VecDeque<ToBehaviour>,
}

/// What a connection tells the behaviour.
#[derive(Debug)]
pub(in super::super) enum ToBehaviour {
    /// The peer speaks the protocol.
    Opened,
    Frame(Vec<u8>),
    /// The peer broke the protocol; its stream is no longer read.
    Garbage(Garbage),
    /// The peer closed its stream after a whole frame.
    Ended,
    /// Our own stream is closed after its last frame.
    Finished,
    /// A stream broke, or could not be opened.
    Failed(String),
    /// The peer does not speak the protocol; the connection may serve others.
    Unsupported,
    /// The peer opened a second stream, which was dropped.
    Surplus,
}

/// How a peer broke the exchange protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Garbage {
    /// Bytes that are no frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// It kept opening streams beside the one it has.
    #[error("opened stream after stream")]
    Streams,
}

enum Outbound {
    Wanted,
    Requested,
    Open { stream: Stream, buffer: Vec<u8>, written: usize, needs_flush: bool },
    Finishing(Stream),
    Closed,
}

enum Inbound {
    Waiting,
    Open { stream: Stream, decoder: FrameDecoder },
    Closed,
}

/// Read from a stream at once. On the stack: nothing is held for an idle connection.
const READ_LEN: usize = 8 * 1024;
/// Frames are joined to one write up to this length: yamux cuts at 16 KiB.
const WRITE_LEN: usize = 16 * 1024;
/// Writes and reads before the connection's other protocols get their turn. A guess.
const STEPS_PER_POLL: usize = 16;

impl Handler {
    pub(super) fn new(limits: Arc<Limits>, outbox: Arc<Outbox>) -> Self {
        Self {
            openings_left: limits.openings_max,
            surplus_left: limits.surplus_streams_max,
            limits,
            outbox,
            outbound: Outbound::Wanted,
            inbound: Inbound::Waiting,
            opened: false,
            events: VecDeque::new(),
        }
    }

    fn on_opened(&mut self) {
        if !self.opened {
            self.opened = true;
            self.events.push_back(ToBehaviour::Opened);
        }
    }

    fn on_inbound(&mut self, stream: Stream) {
        match self.inbound {
            Inbound::Waiting => {
                let decoder = FrameDecoder::new(self.limits.frame_len_max);
                self.inbound = Inbound::Open { stream, decoder };
                self.on_opened();
            }
            Inbound::Open { .. } | Inbound::Closed => {
                self.events.push_back(ToBehaviour::Surplus);
                match self.surplus_left.checked_sub(1) {
                    Some(left) => self.surplus_left = left,
                    None => {
                        self.events.push_back(ToBehaviour::Garbage(Garbage::Streams));
                        self.inbound = Inbound::Closed;
                    }
                }
            }
        }
    }

    fn on_opening_failed(&mut self, error: StreamUpgradeError<Infallible>) {
        self.openings_left = self.openings_left.saturating_sub(1);
        let (event, retry) = match error {
            StreamUpgradeError::NegotiationFailed => (ToBehaviour::Unsupported, false),
            StreamUpgradeError::Apply(never) => match never {},
            StreamUpgradeError::Timeout => {
                (ToBehaviour::Failed("opening a stream timed out".into()), true)
            }
            StreamUpgradeError::Io(error) => {
                (ToBehaviour::Failed(format!("cannot open a stream: {error}")), true)
            }
        };
        if retry && self.openings_left > 0 {
            self.outbound = Outbound::Wanted;
        } else {
            self.outbound = Outbound::Closed;
            self.events.push_back(event);
        }
    }

    /// Writes once. Whether it got further.
    fn write(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        match &mut self.outbound {
            Outbound::Open { stream, buffer, written, needs_flush } => {
                if *written == buffer.len() {
                    buffer.clear();
                    *written = 0;
                    match self.outbox.take(buffer, WRITE_LEN, cx) {
                        Taken::Frames(_) => *needs_flush = true,
                        Taken::Nothing | Taken::Finished if *needs_flush => {
                            if Pin::new(stream).poll_flush(cx)?.is_pending() {
                                return Ok(false);
                            }
                            *needs_flush = false;
                            self.outbox.flushed();
                            // An idle link keeps no buffer.
                            *buffer = Vec::new();
                            return Ok(true);
                        }
                        Taken::Nothing => return Ok(false),
                        Taken::Finished => {
                            let Outbound::Open { stream, .. } =
                                std::mem::replace(&mut self.outbound, Outbound::Closed)
                            else {
                                unreachable!("matched above")
                            };
                            self.outbound = Outbound::Finishing(stream);
                            return Ok(true);
                        }
                    }
                }
                match Pin::new(stream).poll_write(cx, &buffer[*written..])? {
                    Poll::Ready(0) => Err(io::ErrorKind::WriteZero.into()),
                    Poll::Ready(n) => {
                        *written += n;
                        Ok(true)
                    }
                    Poll::Pending => Ok(false),
                }
            }
            Outbound::Finishing(stream) => match Pin::new(stream).poll_close(cx)? {
                Poll::Ready(()) => {
                    self.outbound = Outbound::Closed;
                    self.events.push_back(ToBehaviour::Finished);
                    Ok(true)
                }
                Poll::Pending => Ok(false),
            },
            Outbound::Wanted | Outbound::Requested | Outbound::Closed => Ok(false),
        }
    }

    /// Reads once. Whether it got further.
    fn read(&mut self, cx: &mut Context<'_>) -> bool {
        let Inbound::Open { stream, decoder } = &mut self.inbound else { return false };
        let mut bytes = [0; READ_LEN];
        let last = match Pin::new(stream).poll_read(cx, &mut bytes) {
            Poll::Pending => return false,
            Poll::Ready(Ok(0)) if decoder.is_between_frames() => ToBehaviour::Ended,
            Poll::Ready(Ok(0)) => ToBehaviour::Failed("stream ended inside a frame".into()),
            Poll::Ready(Err(error)) => ToBehaviour::Failed(format!("stream broke: {error}")),
            Poll::Ready(Ok(n)) => {
                let mut frames = VecDeque::new();
                let decoded = decoder.feed(&bytes[..n], &mut frames);
                self.events.extend(frames.into_iter().map(ToBehaviour::Frame));
                match decoded {
                    Ok(()) => return true,
                    Err(error) => ToBehaviour::Garbage(error.into()),
                }
            }
        };
        self.inbound = Inbound::Closed;
        self.events.push_back(last);
        true
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Infallible;
    type ToBehaviour = ToBehaviour;
    type InboundProtocol = ReadyUpgrade<StreamProtocol>;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol> {
        SubstreamProtocol::new(ReadyUpgrade::new(PROTOCOL), ())
    }

    /// A link stays while its stream is open or may be; a peer that does not speak the protocol
    /// keeps no connection.
    fn connection_keep_alive(&self) -> bool {
        !matches!(self.outbound, Outbound::Closed)
    }

    fn on_behaviour_event(&mut self, event: Infallible) {
        match event {}
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<'_, Self::InboundProtocol, Self::OutboundProtocol>,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol, ..
            }) => self.on_inbound(protocol),
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: stream,
                ..
            }) => {
                self.outbound =
                    Outbound::Open { stream, buffer: Vec::new(), written: 0, needs_flush: false };
                self.on_opened();
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { error, .. }) => {
                self.on_opening_failed(error);
            }
            _ => {}
        }
    }

    /// Frames already read go first; the stream is read again only when the swarm has taken them
    /// all. So a slow consumer stops the reading, the stream's window fills, and the peer waits.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, (), ToBehaviour>> {
        for _ in 0..STEPS_PER_POLL {
            if let Some(event) = self.events.pop_front() {
                return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(event));
            }
            if matches!(self.outbound, Outbound::Wanted) {
                self.outbound = Outbound::Requested;
                let protocol = SubstreamProtocol::new(ReadyUpgrade::new(PROTOCOL), ())
                    .with_timeout(self.limits.opening_timeout);
                return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
            }
            let wrote = self.write(cx).unwrap_or_else(|error| {
                self.outbound = Outbound::Closed;
                self.events.push_back(ToBehaviour::Failed(format!("stream broke: {error}")));
                true
            });
            let read = self.read(cx);
            if !wrote && !read && self.events.is_empty() {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
