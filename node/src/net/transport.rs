//! How bytes get out: TCP with noise and yamux, QUIC, names through DNS; all of it counted.
//!
//! libp2p's own bandwidth metrics count inside the multiplexer: neither handshakes nor encryption
//! nor yamux headers. Here TCP is counted at the socket, below all of these. QUIC keeps its socket
//! to itself, so there only what its streams carry is counted: too little by packet headers,
//! acknowledgements and handshakes.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use libp2p::core::muxing::{StreamMuxer, StreamMuxerBox, StreamMuxerEvent};
use libp2p::core::transport::Boxed;
use libp2p::core::upgrade;
use libp2p::futures::{AsyncRead, AsyncWrite};
use libp2p::identity::Keypair;
use libp2p::{PeerId, Transport, dns, noise, quic, relay, tcp, yamux};

/// Bytes since the start, over all connections.
#[derive(Debug, Default)]
pub(super) struct ByteCounts {
    incoming: AtomicU64,
    outgoing: AtomicU64,
}

impl ByteCounts {
    pub(super) fn incoming(&self) -> u64 {
        self.incoming.load(Ordering::Relaxed)
    }

    pub(super) fn outgoing(&self) -> u64 {
        self.outgoing.load(Ordering::Relaxed)
    }
}

/// Streams of one connection. A connection needs about six for the protocols here and a few for
/// requests; each may make the other end hold a window of 256 KiB.
const STREAMS_MAX: usize = 32;

/// A handshake that takes longer frees its place. Three round trips on any path that is of use.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

type Connected = (PeerId, StreamMuxerBox);

/// Builds the transport of a node, with the relayed one beside it if there is a relay client.
///
/// Needs a tokio runtime around it.
pub(super) fn build(
    keypair: &Keypair,
    counts: &Arc<ByteCounts>,
    with_dns: bool,
    relay: Option<relay::client::Transport>,
) -> Result<Boxed<Connected>, noise::Error> {
    let noise = noise::Config::new(keypair)?;
    let mut yamux = yamux::Config::default();
    yamux.set_max_num_streams(STREAMS_MAX);

    let direct = || tcp_and_quic(keypair, counts, &noise, &yamux);
    let direct = if with_dns {
        dns::tokio::Transport::system(direct()).map(Transport::boxed).unwrap_or_else(|error| {
            tracing::warn!(%error, "no name resolution: only numeric addresses can be dialed");
            direct()
        })
    } else {
        direct()
    };
    Ok(match relay {
        Some(relay) => {
            let relayed = relay
                .upgrade(upgrade::Version::V1Lazy)
                .authenticate(noise)
                .multiplex(yamux)
                .timeout(HANDSHAKE_TIMEOUT)
                .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
            // The relayed one first: it alone tells relayed addresses from direct ones.
            relayed.or_transport(direct).map(|either, _| either.into_inner()).boxed()
        }
        None => direct,
    })
}

fn tcp_and_quic(
    keypair: &Keypair,
    counts: &Arc<ByteCounts>,
    noise: &noise::Config,
    yamux: &yamux::Config,
) -> Boxed<Connected> {
    let tcp_counts = counts.clone();
    let tcp = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
        .map(move |inner, _| Counted { inner, counts: tcp_counts.clone() })
        .upgrade(upgrade::Version::V1Lazy)
        .authenticate(noise.clone())
        .multiplex(yamux.clone())
        .timeout(HANDSHAKE_TIMEOUT)
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));

    let mut config = quic::Config::new(keypair);
    config.max_concurrent_stream_limit = STREAMS_MAX as u32;
    config.handshake_timeout = HANDSHAKE_TIMEOUT;
    let quic_counts = counts.clone();
    let quic = quic::tokio::Transport::new(config).map(move |(peer, inner), _| {
        (peer, StreamMuxerBox::new(CountedMuxer { inner, counts: quic_counts.clone() }))
    });
    tcp.or_transport(quic).map(|either, _| either.into_inner()).boxed()
}

/// A stream whose bytes are counted.
struct Counted<S> {
    inner: S,
    counts: Arc<ByteCounts>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let len = ready!(Pin::new(&mut self.inner).poll_read(cx, buffer))?;
        self.counts.incoming.fetch_add(len as u64, Ordering::Relaxed);
        Poll::Ready(Ok(len))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        let len = ready!(Pin::new(&mut self.inner).poll_write(cx, buffer))?;
        self.counts.outgoing.fetch_add(len as u64, Ordering::Relaxed);
        Poll::Ready(Ok(len))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let len = ready!(Pin::new(&mut self.inner).poll_write_vectored(cx, buffers))?;
        self.counts.outgoing.fetch_add(len as u64, Ordering::Relaxed);
        Poll::Ready(Ok(len))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(cx)
    }
}

/// A connection whose streams are counted.
struct CountedMuxer<M> {
    inner: M,
    counts: Arc<ByteCounts>,
}

impl<M> CountedMuxer<M> {
    fn counted<S>(&self, inner: S) -> Counted<S> {
        Counted { inner, counts: self.counts.clone() }
    }
}

impl<M> StreamMuxer for CountedMuxer<M>
where
    M: StreamMuxer + Unpin,
    M::Substream: Unpin,
{
    type Substream = Counted<M::Substream>;
    type Error = M::Error;

    fn poll_inbound(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::Substream, Self::Error>> {
        let stream = ready!(Pin::new(&mut self.inner).poll_inbound(cx))?;
        Poll::Ready(Ok(self.counted(stream)))
    }

    fn poll_outbound(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::Substream, Self::Error>> {
        let stream = ready!(Pin::new(&mut self.inner).poll_outbound(cx))?;
        Poll::Ready(Ok(self.counted(stream)))
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Pin::new(&mut self.inner).poll_close(cx)
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<StreamMuxerEvent, Self::Error>> {
        Pin::new(&mut self.inner).poll(cx)
    }
}
