//! What a node's network may do and how much of everything.

use std::collections::BTreeSet;
use std::time::Duration;

use libp2p::{Multiaddr, PeerId};

use super::NetworkError;
use super::exchange::FRAME_LEN_LIMIT;

/// Settings of a [`Network`](super::Network). The defaults are for a node on its own machine;
/// [`NetworkConfig::loopback`] is for many nodes in one process.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// Addresses to listen on. Port 0 takes a free one; the real address comes as `Listening`.
    pub listen: Vec<Multiaddr>,
    /// Find peers on the local network by multicast. It does not see loopback interfaces.
    pub mdns: bool,
    /// Find peers beyond the local network through a distributed hash table. Needs one address to
    /// start from.
    pub kad: bool,
    /// Reach nodes behind address translation: relay client, hole punching, AutoNAT. Costs a few
    /// small messages per peer; dials go out from the listening port.
    pub nat: bool,
    /// Resolve `/dns…` addresses. Off, a resolver less per node.
    pub dns: bool,
    /// The longest frame sent or accepted, in bytes. Longer ones need fewer writes and hold more
    /// memory per neighbor. A guess.
    pub frame_len_max: usize,
    /// Frames that may wait for one neighbor before `send` refuses. A guess.
    pub queue_len_max: usize,
    /// Bytes that may wait for one neighbor; at least one frame. A guess.
    pub queue_bytes_max: usize,
    /// The longest request sent or accepted, in bytes.
    pub request_len_max: usize,
    /// The longest response sent or accepted, in bytes. One is held whole in memory at both ends,
    /// so longer things move in pieces.
    pub response_len_max: usize,
    /// Requests of one peer answered at the same time, and requests to one peer under way.
    pub requests_max: usize,
    /// How long a request may take, its response included.
    pub request_timeout: Duration,
    /// Peers connected at the same time. Wanted peers are let in beyond it.
    pub max_peers: u32,
    /// Connections in their handshake, in each direction. A stranger that connects and says
    /// nothing holds a place for 10 s.
    pub max_pending: u32,
    /// A connection without an exchange link and without any open stream closes after this.
    pub idle_timeout: Duration,
    /// Two unanswered pings close a connection; they are sent this often. Shorter finds dead
    /// peers sooner, at about 100 bytes each. libp2p's default.
    pub ping_interval: Duration,
    /// The longest pause between two attempts to reach a wanted peer.
    pub redial_max: Duration,
    /// If set, connections with any other peer are refused.
    pub allow: Option<BTreeSet<PeerId>>,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            listen: Vec::new(),
            mdns: true,
            kad: true,
            nat: true,
            dns: true,
            frame_len_max: 256 * 1024,
            queue_len_max: 1024,
            queue_bytes_max: 1024 * 1024,
            request_len_max: 16 * 1024,
            response_len_max: 1024 * 1024,
            requests_max: 8,
            request_timeout: Duration::from_secs(20),
            max_peers: 128,
            max_pending: 64,
            idle_timeout: Duration::from_secs(30),
            ping_interval: Duration::from_secs(15),
            redial_max: Duration::from_secs(30),
            allow: None,
        }
    }
}

impl NetworkConfig {
    /// For nodes on one machine: a free TCP port of the loopback interface, nothing that looks
    /// for peers.
    pub fn loopback() -> Self {
        Self {
            listen: vec!["/ip4/127.0.0.1/tcp/0".parse().expect("a valid address")],
            mdns: false,
            kad: false,
            nat: false,
            dns: false,
            ..Self::default()
        }
    }

    pub(super) fn check(&self) -> Result<(), NetworkError> {
        let refuse = |what| Err(NetworkError::Config(what));
        if !(1..=FRAME_LEN_LIMIT).contains(&self.frame_len_max) {
            return refuse("frame_len_max must be from 1 to 268435455");
        }
        if self.queue_len_max == 0 || self.queue_bytes_max < self.frame_len_max {
            return refuse("a queue must hold at least one frame of frame_len_max");
        }
        if self.request_len_max > u32::MAX as usize || self.response_len_max > u32::MAX as usize {
            return refuse("request_len_max and response_len_max must be below 4 GiB");
        }
        if self.requests_max == 0 || self.max_peers == 0 || self.max_pending == 0 {
            return refuse("requests_max, max_peers and max_pending must not be 0");
        }
        Ok(())
    }
}
