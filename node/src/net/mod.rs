//! Sockets: a libp2p swarm that carries frames between neighbors.
//!
//! One task owns a [`Network`] and does nothing long between two calls of
//! [`Network::next_event`]: the connections run in their own tasks, and everything between them
//! and the owner is bounded. Sending never waits; a full queue is an error at once. Reading never
//! waits for anything but the owner: if it is slow, the peers' streams fill up and they wait. An
//! owner that does not come back for half a minute answers no pings and loses its connections.
//!
//! ```no_run
//! # use rumormill_node::net::{Network, NetworkConfig, NetworkEvent};
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let keypair = libp2p::identity::Keypair::generate_ed25519();
//! let mut network = Network::new(keypair, NetworkConfig::loopback())?;
//! let mut clock = tokio::time::interval(std::time::Duration::from_secs(1));
//! let mut peers = std::collections::BTreeSet::new();
//! loop {
//!     tokio::select! {
//!         event = network.next_event() => match event {
//!             NetworkEvent::Connected { peer, .. } => { peers.insert(peer); }
//!             NetworkEvent::Disconnected { peer, .. } => { peers.remove(&peer); }
//!             NetworkEvent::Frame { peer, bytes } => println!("{peer}: {} bytes", bytes.len()),
//!             _ => {}
//!         },
//!         _ = clock.tick() => for peer in &peers {
//!             let _counted = network.send(*peer, b"hello".to_vec());
//!         },
//!         _ = tokio::signal::ctrl_c() => break,
//!     }
//! }
//! network.close(std::time::Duration::from_secs(5)).await;
//! # Ok(())
//! # }
//! ```
//!
//! Frames travel by the protocol in `exchange`, requests by `fetch`; `redial` decides when to try
//! again, `transport` what lies below. Nothing here knows what the bytes say: a peer that sends
//! valid frames with wrong contents is the caller's to [`Network::ban`].
//!
//! Whoever connects and is not refused becomes `Connected`, also when Kademlia dialed it or it came
//! by itself. Which of them are neighbors is the caller's to decide; [`NetworkConfig::allow`]
//! decides it beforehand.

mod config;
mod event;
mod exchange;
mod failure;
mod fetch;
mod network;
mod redial;
mod transport;

#[cfg(test)]
mod tests;

pub use config::NetworkConfig;
pub use event::{Counters, NetworkEvent, RequestError, RequestId, RespondError, ResponseToken};
pub use exchange::{DownReason, FrameError, Garbage, SendError};
pub use fetch::TooLong;
pub use libp2p::{Multiaddr, PeerId};
pub use network::{Network, NetworkError};
