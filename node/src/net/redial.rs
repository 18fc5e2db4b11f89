//! When to try again to reach the peers this node wants.
//!
//! Pauses double from half a second to a bound and are stretched or shortened by up to a quarter,
//! so that nodes that lost each other at one moment do not all come back at one moment. The
//! stretch is a hash of who, whom and how often: it needs no generator and differs where it must.
//!
//! Of two peers that want each other the one with the smaller id dials; the other waits a little
//! longer, in case the first does not know where it is. That keeps simultaneous dials rare.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use libp2p::{Multiaddr, PeerId};

/// Whom a dial is meant for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Target {
    /// A peer by its id.
    Peer(PeerId),
    /// Whoever answers there; once it has, the target becomes that peer.
    Address(Multiaddr),
}

/// The peers and addresses this node wants to be connected with.
#[derive(Debug)]
pub(super) struct Redial {
    local: PeerId,
    pause_max: Duration,
    wanted: BTreeMap<Target, Wanted>,
}

#[derive(Debug)]
struct Wanted {
    /// Where it was seen, newest last, at most [`ADDRESSES_MAX`]. Empty for an address.
    addresses: Vec<Multiaddr>,
    /// Attempts since the last connection that lasted.
    attempts: u32,
    /// Whether it was ever connected.
    met: bool,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting { until: Instant },
    Dialing,
    Connected { since: Instant },
}

const ADDRESSES_MAX: usize = 16;
const PAUSE_MIN: Duration = Duration::from_millis(500);
/// How long the peer with the larger id leaves the dialing to the other. A guess: a handshake and
/// a bit.
const PATIENCE: Duration = Duration::from_millis(1500);
/// A connection that ends sooner was no success: the peer may refuse us each time. A guess.
const LASTING: Duration = Duration::from_secs(10);

impl Redial {
    pub(super) fn new(local: PeerId, pause_max: Duration) -> Self {
        Self { local, pause_max, wanted: BTreeMap::new() }
    }

    /// Adds a target, or addresses to it. Whether it is new.
    pub(super) fn want(&mut self, target: Target, addresses: Vec<Multiaddr>, now: Instant) -> bool {
        let wait = match target {
            Target::Peer(peer) if peer < self.local => PATIENCE,
            _ => Duration::ZERO,
        };
        let mut is_new = false;
        let wanted = self.wanted.entry(target).or_insert_with(|| {
            is_new = true;
            Wanted {
                addresses: Vec::new(),
                attempts: 0,
                met: false,
                state: State::Waiting { until: now + wait },
            }
        });
        for address in addresses {
            wanted.addresses.retain(|known| *known != address);
            wanted.addresses.push(address);
        }
        let surplus = wanted.addresses.len().saturating_sub(ADDRESSES_MAX);
        wanted.addresses.drain(..surplus);
        is_new
    }

    pub(super) fn unwant(&mut self, target: &Target) -> bool {
        self.wanted.remove(target).is_some()
    }

    /// When the next target is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.wanted
            .values()
            .filter_map(|wanted| match wanted.state {
                State::Waiting { until } => Some(until),
                State::Dialing | State::Connected { .. } => None,
            })
            .min()
    }

    /// Takes one target that is due; the caller dials it and reports what came of it.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<(Target, Vec<Multiaddr>)> {
        let (target, wanted) = self
            .wanted
            .iter_mut()
            .find(|(_, wanted)| matches!(wanted.state, State::Waiting { until } if until <= now))?;
        wanted.state = State::Dialing;
        Some((target.clone(), wanted.addresses.clone()))
    }

    /// The dial failed. The pause before the next attempt, if the target is still wanted.
    pub(super) fn on_failed(&mut self, target: &Target, now: Instant) -> Option<Duration> {
        let (local, pause_max) = (self.local, self.pause_max);
        let wanted = self.wanted.get_mut(target)?;
        if let State::Connected { .. } = wanted.state {
            return None;
        }
        wanted.attempts = wanted.attempts.saturating_add(1);
        let pause = pause(local, target, wanted.attempts, pause_max);
        wanted.state = State::Waiting { until: now + pause };
        Some(pause)
    }

    /// Not now: try again after `pause`, without counting it as a failure.
    pub(super) fn postpone(&mut self, target: &Target, pause: Duration, now: Instant) {
        if let Some(wanted) = self.wanted.get_mut(target)
            && !matches!(wanted.state, State::Connected { .. })
        {
            wanted.state = State::Waiting { until: now + pause };
        }
    }

    /// Someone answered at a wanted address: from now on, that peer is wanted there.
    pub(super) fn on_answered(&mut self, address: &Multiaddr, peer: PeerId, now: Instant) {
        if self.wanted.remove(&Target::Address(address.clone())).is_some() {
            self.want(Target::Peer(peer), vec![address.clone()], now);
        }
    }

    pub(super) fn on_connected(&mut self, peer: PeerId, now: Instant) {
        if let Some(wanted) = self.wanted.get_mut(&Target::Peer(peer)) {
            wanted.state = State::Connected { since: now };
            wanted.met = true;
        }
    }

    /// Whether somebody is wanted who was never connected.
    pub(super) fn awaits_somebody(&self) -> bool {
        self.wanted.values().any(|wanted| !wanted.met)
    }

    pub(super) fn on_disconnected(&mut self, peer: PeerId, now: Instant) {
        let (local, pause_max) = (self.local, self.pause_max);
        let target = Target::Peer(peer);
        let Some(wanted) = self.wanted.get_mut(&target) else { return };
        let State::Connected { since } = wanted.state else { return };
        wanted.attempts = if now.duration_since(since) >= LASTING {
            1
        } else {
            wanted.attempts.saturating_add(1)
        };
        let mut pause = pause(local, &target, wanted.attempts, pause_max);
        if peer < local {
            pause += PATIENCE;
        }
        wanted.state = State::Waiting { until: now + pause };
    }
}

fn pause(local: PeerId, target: &Target, attempts: u32, pause_max: Duration) -> Duration {
    let doubled = PAUSE_MIN * 2u32.saturating_pow(attempts.saturating_sub(1).min(16));
    let mut hasher = DefaultHasher::new();
    (local, target, attempts).hash(&mut hasher);
    let stretch = 0.75 + 0.5 * (hasher.finish() as f64 / u64::MAX as f64);
    doubled.mul_f64(stretch).min(pause_max)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: Duration = Duration::from_secs(30);

    fn redial() -> (Redial, Instant) {
        (Redial::new(PeerId::random(), MAX), Instant::now())
    }

    fn address() -> Multiaddr {
        "/ip4/127.0.0.1/tcp/4001".parse().unwrap()
    }

    #[test]
    fn pauses_double_to_their_bound() {
        let (mut redial, now) = redial();
        let target = Target::Address(address());
        redial.want(target.clone(), Vec::new(), now);
        let pauses: Vec<Duration> =
            (0..12).map(|_| redial.on_failed(&target, now).expect("wanted")).collect();
        assert!(pauses[0] >= PAUSE_MIN.mul_f64(0.75) && pauses[0] <= PAUSE_MIN.mul_f64(1.25));
        assert!(pauses[3] > 3 * pauses[0]);
        assert!(pauses.iter().all(|pause| *pause <= MAX));
        assert!(pauses[11] >= MAX.mul_f64(0.75));
    }

    #[test]
    fn a_target_is_dialed_once_at_a_time() {
        let (mut redial, now) = redial();
        redial.want(Target::Address(address()), Vec::new(), now);
        assert!(redial.take_due(now).is_some());
        assert!(redial.take_due(now + MAX).is_none());
        assert_eq!(redial.next_due(), None);
    }

    #[test]
    fn an_address_becomes_the_peer_that_answered() {
        let (mut redial, now) = redial();
        let peer = PeerId::random();
        redial.want(Target::Address(address()), Vec::new(), now);
        redial.take_due(now).unwrap();
        redial.on_answered(&address(), peer, now);
        assert!(redial.awaits_somebody());
        redial.on_connected(peer, now);
        assert_eq!(redial.next_due(), None);
        assert!(!redial.awaits_somebody());
        redial.on_disconnected(peer, now + LASTING);
        let (target, addresses) = redial.take_due(now + LASTING + 2 * MAX).expect("wanted again");
        assert_eq!((target, addresses), (Target::Peer(peer), vec![address()]));
        assert!(!redial.awaits_somebody(), "it was met before");
    }

    #[test]
    fn short_connections_do_not_reset_the_pause() {
        let (mut redial, mut now) = redial();
        let peer = PeerId::random();
        redial.want(Target::Peer(peer), vec![address()], now);
        let mut last = Duration::ZERO;
        for _ in 0..6 {
            redial.on_connected(peer, now);
            redial.on_disconnected(peer, now);
            let due = redial.next_due().expect("waiting");
            last = due - now;
            now = due;
        }
        assert!(last >= 8 * PAUSE_MIN);
    }

    #[test]
    fn addresses_are_bounded() {
        let (mut redial, now) = redial();
        let target = Target::Peer(PeerId::random());
        for port in 1..100 {
            let address = format!("/ip4/127.0.0.1/tcp/{port}").parse().unwrap();
            redial.want(target.clone(), vec![address], now);
        }
        assert_eq!(redial.wanted[&target].addresses.len(), ADDRESSES_MAX);
    }
}
