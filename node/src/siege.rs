//! Attacks that take sockets of their own: a host that comes as many.
//!
//! Both are meant for runs with an allow-list, which turns strangers away before they cost anything
//! but a handshake. An open run has no defence against either; see the README's known limits.

use std::time::Duration;

use libp2p::Multiaddr;
use rumormill::fault::FaultKind;
use rumormill::manifest::Manifest;
use rumormill::message::Frame;
use tokio::task::JoinSet;

use crate::identity::Identity;
use crate::net::{Network, NetworkConfig, NetworkEvent};
use crate::node::network_limits;

/// Identities of a sybil. A guess: more than a small run has members.
const SYBILS: usize = 16;

/// How long a stranger of a flood stays. Ten a second and target.
const VISIT: Duration = Duration::from_millis(100);

/// An attack under way; dropping it ends it.
pub(crate) struct Siege {
    _attackers: JoinSet<()>,
}

impl Siege {
    /// Begins an attack on these addresses, if the kind is one.
    pub(crate) fn start(
        kind: FaultKind,
        manifest: &Manifest,
        targets: &[Multiaddr],
    ) -> Option<Siege> {
        let mut attackers = JoinSet::new();
        match kind {
            FaultKind::ConnectionFlood => {
                attackers.spawn(flood(targets.to_vec()));
            }
            FaultKind::Sybil => {
                let manifest = Box::new(manifest.clone());
                let hello = Frame::Hello { manifest, answer: true }.encode();
                for _ in 0..SYBILS {
                    attackers.spawn(stranger(targets.to_vec(), hello.clone()));
                }
            }
            _ => return None,
        }
        Some(Siege { _attackers: attackers })
    }
}

fn network() -> Option<Network> {
    let config = NetworkConfig { listen: Vec::new(), ..NetworkConfig::loopback() };
    let made = Network::new(Identity::generate().to_keypair(), network_limits(config));
    made.inspect_err(|error| tracing::warn!(%error, "a fault has no network")).ok()
}

/// Connects again and again, each time as somebody else.
async fn flood(targets: Vec<Multiaddr>) {
    loop {
        let Some(mut network) = network() else { return };
        targets.iter().for_each(|target| network.dial(target.clone()));
        let visit = async {
            loop {
                network.next_event().await;
            }
        };
        // It never ends by itself.
        let _ = tokio::time::timeout(VISIT, visit).await;
    }
}

/// Somebody who wants to take part and is no member.
async fn stranger(targets: Vec<Multiaddr>, hello: Vec<u8>) {
    let Some(mut network) = network() else { return };
    targets.into_iter().for_each(|target| network.want_address(target));
    loop {
        if let NetworkEvent::Connected { peer, .. } = network.next_event().await {
            // The link may be gone already.
            let _ = network.send(peer, hello.clone());
        }
    }
}
