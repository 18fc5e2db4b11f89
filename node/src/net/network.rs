//! The swarm and its owner's view of it.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{IpAddr, TcpListener};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use libp2p::allow_block_list::{self, AllowedPeers, BlockedPeers};
use libp2p::connection_limits::{self, ConnectionLimits};
use libp2p::core::ConnectedPoint;
use libp2p::core::transport::{ListenerId, TransportError};
use libp2p::futures::StreamExt;
use libp2p::identity::Keypair;
use libp2p::kad::store::MemoryStore;
use libp2p::multiaddr::Protocol;
use libp2p::request_response::{self, OutboundFailure, OutboundRequestId, ProtocolSupport};
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionId, DialError, NetworkBehaviour, SwarmEvent};
use libp2p::{
    Multiaddr, PeerId, StreamProtocol, Swarm, autonat, dcutr, identify, kad, mdns, noise, ping,
    relay,
};

use super::config::NetworkConfig;
use super::event::{Counters, NetworkEvent, RequestError, RequestId, RespondError, ResponseToken};
use super::exchange::{self, SendError};
use super::failure;
use super::fetch::{self, RawCodec, TooLong};
use super::redial::{Redial, Target};
use super::transport::{self, ByteCounts};

/// What this node calls its family of protocols, to be seen by others in identify.
const PROTOCOL_VERSION: &str = "/rumormill/1";
const AGENT_VERSION: &str = concat!("rumormill/", env!("CARGO_PKG_VERSION"));
const KAD_PROTOCOL: StreamProtocol = StreamProtocol::new("/rumormill/kad/1");

/// The node's end of the network. One task owns it and calls [`next_event`](Self::next_event).
pub struct Network {
    swarm: Swarm<Behaviour>,
    config: NetworkConfig,
    listeners: Vec<ListenerId>,
    /// Events made while handling another; a handful.
    events: VecDeque<NetworkEvent>,
    redial: Redial,
    /// What the dials under way are for. At most `max_pending`.
    dials: BTreeMap<ConnectionId, Option<Target>>,
    /// When each ban ends. At most [`BANS_MAX`].
    bans: BTreeMap<PeerId, Instant>,
    /// Requests under way: at most `requests_max` per peer.
    requests: BTreeMap<OutboundRequestId, (RequestId, PeerId)>,
    next_request: u64,
    /// Per connection: unanswered pings in a row and the last round trip.
    pings: BTreeMap<ConnectionId, (PeerId, u32, Option<Duration>)>,
    bytes: Arc<ByteCounts>,
    handshakes_failed: u64,
    dials_failed: u64,
    requests_in: u64,
    requests_out: u64,
}

/// Why a network did not start. Nothing is left open.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A setting makes no sense.
    #[error("network settings: {0}")]
    Config(&'static str),
    /// The identity cannot encrypt.
    #[error("cannot set up encryption: {0}")]
    Noise(#[from] noise::Error),
    /// The local network cannot be searched.
    #[error("cannot start mDNS: {0}; turn it off to go without")]
    Mdns(io::Error),
    /// Someone else listens there.
    #[error(
        "cannot listen on {address}: port {port} is in use; stop the other process or choose \
         another port (0 takes a free one)"
    )]
    PortInUse {
        /// The address asked for.
        address: Multiaddr,
        /// Its port.
        port: u16,
    },
    /// The address is no address this node can listen on.
    #[error(
        "cannot listen on {address}: not supported; use /ip4/ADDRESS/tcp/PORT or \
         /ip4/ADDRESS/udp/PORT/quic-v1"
    )]
    Unsupported {
        /// The address asked for.
        address: Multiaddr,
    },
    /// The system refused.
    #[error("cannot listen on {address}: {source}{}", listen_hint(source))]
    Listen {
        /// The address asked for.
        address: Multiaddr,
        /// What the system said.
        source: io::Error,
    },
}

fn listen_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrNotAvailable => "; this machine does not have that address",
        io::ErrorKind::PermissionDenied => "; ports below 1024 need privileges, take a higher one",
        _ => "",
    }
}

/// The ones that may refuse a connection come first: those behind them have then made nothing.
#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p::swarm::derive_prelude")]
struct Behaviour {
    limits: connection_limits::Behaviour,
    allow: Toggle<allow_block_list::Behaviour<AllowedPeers>>,
    block: allow_block_list::Behaviour<BlockedPeers>,
    exchange: exchange::Behaviour,
    fetch: request_response::Behaviour<RawCodec>,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
    mdns: Toggle<mdns::tokio::Behaviour>,
    kad: Toggle<kad::Behaviour<MemoryStore>>,
    relay: Toggle<relay::client::Behaviour>,
    dcutr: Toggle<dcutr::Behaviour>,
    autonat_client: Toggle<autonat::v2::client::Behaviour>,
    autonat_server: Toggle<autonat::v2::server::Behaviour>,
}

/// Connections of one peer: the link, one that loses against it, one that is still closing.
const CONNECTIONS_PER_PEER_MAX: usize = 3;
/// Bans remembered; the one that ends first makes room. Identities are free, memory is not.
const BANS_MAX: usize = 4096;
/// Unanswered pings that end a connection.
const PINGS_LOST_MAX: u32 = 2;
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Streams a peer may open beside its exchange stream before it is told off. A guess.
const SURPLUS_STREAMS_MAX: u32 = 4;
/// Frames read from a peer that wait for the owner, beside those of one read. libp2p's default.
const EVENTS_PER_CONNECTION: usize = 8;
/// Addresses taken from one announcement of a peer.
const ANNOUNCED_ADDRESSES_MAX: usize = 16;

impl Network {
    /// Builds the swarm and begins to listen. Call it inside a tokio runtime.
    ///
    /// # Errors
    /// If the settings contradict each other or an address cannot be listened on.
    pub fn new(keypair: Keypair, config: NetworkConfig) -> Result<Self, NetworkError> {
        config.check()?;
        let bytes = Arc::new(ByteCounts::default());
        let local = keypair.public().to_peer_id();
        let (relay_transport, relay) = config.nat.then(|| relay::client::new(local)).unzip();
        let transport = transport::build(&keypair, &bytes, config.dns, relay_transport)?;
        let behaviour = Behaviour::new(&keypair, &config, relay)?;
        let swarm_config = libp2p::swarm::Config::with_tokio_executor()
            .with_idle_connection_timeout(config.idle_timeout)
            .with_notify_handler_buffer_size(NonZeroUsize::new(8).expect("8 is not 0"))
            .with_per_connection_event_buffer_size(EVENTS_PER_CONNECTION)
            .with_max_negotiating_inbound_streams(16);
        let mut network = Self {
            swarm: Swarm::new(transport, behaviour, local, swarm_config),
            listeners: Vec::new(),
            events: VecDeque::new(),
            redial: Redial::new(local, config.redial_max),
            dials: BTreeMap::new(),
            bans: BTreeMap::new(),
            requests: BTreeMap::new(),
            next_request: 0,
            pings: BTreeMap::new(),
            bytes,
            handshakes_failed: 0,
            dials_failed: 0,
            requests_in: 0,
            requests_out: 0,
            config,
        };
        // All are looked at before any is taken, or the node would find its own IPv4 port in use
        // when it comes to IPv6.
        network.config.listen.iter().try_for_each(refuse_port_in_use)?;
        for address in network.config.listen.clone() {
            network.listen(address)?;
        }
        Ok(network)
    }

    fn listen(&mut self, address: Multiaddr) -> Result<(), NetworkError> {
        match self.swarm.listen_on(address.clone()) {
            Ok(listener) => {
                self.listeners.push(listener);
                Ok(())
            }
            Err(TransportError::MultiaddrNotSupported(_)) => {
                Err(NetworkError::Unsupported { address })
            }
            Err(TransportError::Other(error)) => {
                let (kind, text) = failure::innermost(&error);
                match port_of(&address) {
                    Some(port) if kind == io::ErrorKind::AddrInUse => {
                        Err(NetworkError::PortInUse { address, port })
                    }
                    _ => {
                        let source = io::Error::new(kind, text);
                        Err(NetworkError::Listen { address, source })
                    }
                }
            }
        }
    }

    /// Waits for what happens next. Nothing is lost if the future is dropped.
    pub async fn next_event(&mut self) -> NetworkEvent {
        loop {
            if let Some(event) = self.events.pop_front() {
                return event;
            }
            let due = self.next_due();
            let timer = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = self.swarm.select_next_some() => self.on_swarm_event(event),
                () = timer => self.on_timer(Instant::now()),
            }
        }
    }

    /// Queues a frame for a connected peer; it never waits.
    ///
    /// # Errors
    /// If there is no link to the peer, its queue is full, or the frame is empty or too long. The
    /// frame is then gone, the link as before.
    pub fn send(&mut self, peer: PeerId, frame: Vec<u8>) -> Result<(), SendError> {
        self.swarm.behaviour_mut().exchange.send(&peer, frame)
    }

    /// Frames that wait for the peer to take them; 0 without a link.
    pub fn queue_len(&self, peer: PeerId) -> usize {
        self.swarm.behaviour().exchange.queue_len(&peer)
    }

    /// Whether everything sent to the peer has been written to its connection.
    pub fn queue_is_empty(&self, peer: PeerId) -> bool {
        self.queue_len(peer) == 0
    }

    /// Tries once to reach whoever is at `address`. A failure comes as `DialFailed`.
    pub fn dial(&mut self, address: Multiaddr) {
        let options = match peer_of(&address) {
            Some(peer) => self.peer_options(peer, vec![address.clone()]),
            None => self.address_options(address.clone()),
        };
        self.start_dial(options, peer_of(&address), None);
    }

    /// Tries once to reach a peer, at `addresses` and wherever else it is known to be.
    pub fn dial_peer(&mut self, peer: PeerId, addresses: Vec<Multiaddr>) {
        let options = self.peer_options(peer, addresses);
        self.start_dial(options, Some(peer), None);
    }

    /// Whether of the two this node dials, when both find each other at the same time. The other
    /// may dial too, if nothing happens.
    pub fn should_dial(&self, peer: PeerId) -> bool {
        *self.swarm.local_peer_id() < peer
    }

    /// Connects to the peer, at once or when it can be reached, and again whenever the connection
    /// is lost. Further calls add addresses. It is let in beyond `max_peers`.
    pub fn want(&mut self, peer: PeerId, addresses: Vec<Multiaddr>) {
        if peer == *self.swarm.local_peer_id() {
            return;
        }
        self.swarm.behaviour_mut().limits.bypass_peer_id(&peer);
        let now = Instant::now();
        if self.redial.want(Target::Peer(peer), addresses, now) && self.swarm.is_connected(&peer) {
            self.redial.on_connected(peer, now);
        }
    }

    /// As [`want`](Self::want), when only the address is known: whoever answers there is wanted
    /// from then on. An address with a peer id in it wants that peer.
    pub fn want_address(&mut self, address: Multiaddr) {
        match peer_of(&address) {
            Some(peer) => self.want(peer, vec![address]),
            None => {
                self.redial.want(Target::Address(address), Vec::new(), Instant::now());
            }
        }
    }

    /// Whether somebody is wanted who was never connected: it may only just be starting.
    pub fn awaits_somebody(&self) -> bool {
        self.redial.awaits_somebody()
    }

    /// No longer redials the peer. A connection stays.
    pub fn unwant(&mut self, peer: PeerId) {
        self.redial.unwant(&Target::Peer(peer));
        self.swarm.behaviour_mut().limits.remove_peer_id(&peer);
    }

    /// Asks a connected peer; the answer or its failure comes as `Response`.
    pub fn request(&mut self, peer: PeerId, bytes: Vec<u8>) -> RequestId {
        let id = RequestId(self.next_request);
        self.next_request += 1;
        let under_way = self.requests.values().filter(|(_, asked)| *asked == peer).count();
        let (len, max) = (bytes.len(), self.config.request_len_max);
        let refused = if len > max {
            Some(RequestError::RequestTooLong { len, max })
        } else if !self.swarm.is_connected(&peer) {
            Some(RequestError::NotConnected)
        } else if under_way >= self.config.requests_max {
            Some(RequestError::Busy(under_way))
        } else {
            None
        };
        match refused {
            Some(error) => {
                let result = Err(error);
                self.events.push_back(NetworkEvent::Response { id, peer, result });
            }
            None => {
                let outbound = self.swarm.behaviour_mut().fetch.send_request(&peer, bytes);
                self.requests.insert(outbound, (id, peer));
                self.requests_out += 1;
            }
        }
        id
    }

    /// Answers a request.
    ///
    /// # Errors
    /// If the answer is longer than peers accept, or the peer waits no longer.
    pub fn respond(&mut self, token: ResponseToken, bytes: Vec<u8>) -> Result<(), RespondError> {
        let (len, max) = (bytes.len(), self.config.response_len_max);
        if len > max {
            return Err(RespondError::TooLong { len, max });
        }
        let fetch = &mut self.swarm.behaviour_mut().fetch;
        fetch.send_response(token.0, bytes).map_err(|_| RespondError::Gone)
    }

    /// Closes every connection to the peer. If it is wanted it is dialed again.
    pub fn disconnect(&mut self, peer: PeerId) {
        // `Err` says that it was not connected.
        let _ = self.swarm.disconnect_peer_id(peer);
    }

    /// Closes every connection to the peer and refuses new ones, from here and from there, for
    /// `duration`. If it is wanted it is dialed again after that.
    pub fn ban(&mut self, peer: PeerId, duration: Duration) {
        let until = Instant::now() + duration;
        if self.bans.len() >= BANS_MAX
            && !self.bans.contains_key(&peer)
            && let Some((&first, _)) = self.bans.iter().min_by_key(|(_, until)| **until)
        {
            self.lift_ban(first);
        }
        self.bans.insert(peer, until);
        self.swarm.behaviour_mut().block.block_peer(peer);
    }

    /// Whether the peer is refused at present.
    pub fn is_banned(&self, peer: PeerId) -> bool {
        self.bans.contains_key(&peer)
    }

    /// Whether frames can be sent to the peer.
    pub fn is_connected(&self, peer: PeerId) -> bool {
        self.swarm.behaviour().exchange.is_linked(&peer)
    }

    /// The peers that frames can be sent to, in the order of their ids.
    pub fn peers(&self) -> Vec<PeerId> {
        self.swarm.behaviour().exchange.links().collect()
    }

    /// The last round trip to a peer that a ping has measured.
    pub fn round_trip(&self, peer: PeerId) -> Option<Duration> {
        self.pings.values().filter(|ping| ping.0 == peer).find_map(|ping| ping.2)
    }

    /// Where the node listens, so far.
    pub fn listen_addrs(&self) -> Vec<Multiaddr> {
        self.swarm.listeners().cloned().collect()
    }

    /// Who the node is.
    pub fn local_peer_id(&self) -> PeerId {
        *self.swarm.local_peer_id()
    }

    /// What has been carried and refused so far.
    pub fn counters(&self) -> Counters {
        let exchange = self.swarm.behaviour().exchange.counts();
        Counters {
            transport_bytes_in: self.bytes.incoming(),
            transport_bytes_out: self.bytes.outgoing(),
            frames_in: exchange.frames_in,
            frames_out: exchange.frames_out,
            frame_bytes_in: exchange.frame_bytes_in,
            frame_bytes_out: exchange.frame_bytes_out,
            frames_dropped_out: exchange.frames_dropped_out,
            frames_dropped_in: exchange.frames_dropped_in,
            garbage_streams: exchange.garbage_streams,
            surplus_streams: exchange.surplus_streams,
            handshakes_failed: self.handshakes_failed,
            dials_failed: self.dials_failed,
            requests_in: self.requests_in,
            requests_out: self.requests_out,
            peers: self.swarm.behaviour().exchange.links().count(),
        }
    }

    /// Stops: no new connections, every queue written out and read by its peer, then the
    /// connections closed, all within `deadline`. Frames that still arrive are dropped. Returns
    /// whether every peer took all there was, and the final counts.
    pub async fn close(mut self, deadline: Duration) -> (bool, Counters) {
        for listener in std::mem::take(&mut self.listeners) {
            self.swarm.remove_listener(listener);
        }
        self.swarm.behaviour_mut().exchange.finish();
        let draining = async {
            while self.swarm.behaviour().exchange.links().next().is_some() {
                self.swarm.select_next_some().await;
            }
        };
        let drained = tokio::time::timeout(deadline, draining).await.is_ok();
        (drained, self.counters())
    }

    /// Connections of all kinds, for tests.
    #[cfg(test)]
    pub(super) fn connection_count(&self) -> u32 {
        self.swarm.network_info().connection_counters().num_established()
    }

    fn next_due(&self) -> Option<Instant> {
        let ban = self.bans.values().min().copied();
        self.redial.next_due().into_iter().chain(ban).min()
    }

    fn on_timer(&mut self, now: Instant) {
        let ended: Vec<PeerId> =
            self.bans.iter().filter(|(_, until)| **until <= now).map(|(peer, _)| *peer).collect();
        ended.into_iter().for_each(|peer| self.lift_ban(peer));
        while let Some((target, addresses)) = self.redial.take_due(now) {
            let options = match &target {
                Target::Peer(peer) => match self.bans.get(peer) {
                    Some(until) => {
                        self.redial.postpone(&target, *until - now, now);
                        continue;
                    }
                    None => self.peer_options(*peer, addresses),
                },
                Target::Address(address) => self.address_options(address.clone()),
            };
            let peer = options.get_peer_id();
            self.start_dial(options, peer, Some(target));
        }
    }

    fn lift_ban(&mut self, peer: PeerId) {
        self.bans.remove(&peer);
        self.swarm.behaviour_mut().block.unblock_peer(peer);
    }

    fn peer_options(&self, peer: PeerId, addresses: Vec<Multiaddr>) -> DialOpts {
        let options = DialOpts::peer_id(peer)
            .condition(PeerCondition::DisconnectedAndNotDialing)
            .addresses(addresses)
            .extend_addresses_through_behaviour();
        // Hole punching needs dials from the listening port. Elsewhere they only meet sockets in
        // TIME_WAIT.
        if self.config.nat { options.build() } else { options.allocate_new_port().build() }
    }

    fn address_options(&self, address: Multiaddr) -> DialOpts {
        let options = DialOpts::unknown_peer_id().address(address);
        if self.config.nat { options.build() } else { options.allocate_new_port().build() }
    }

    fn start_dial(&mut self, options: DialOpts, peer: Option<PeerId>, target: Option<Target>) {
        let connection = options.connection_id();
        match self.swarm.dial(options) {
            Ok(()) => {
                self.dials.insert(connection, target);
            }
            Err(error) => self.on_dial_failed(peer, target, &error),
        }
    }

    fn on_dial_failed(&mut self, peer: Option<PeerId>, target: Option<Target>, error: &DialError) {
        let now = Instant::now();
        if let DialError::DialPeerConditionFalse(_) = error {
            // Connected, or somebody else's dial is under way: look again soon.
            if let Some(target) = &target {
                self.redial.postpone(target, Duration::from_secs(1), now);
            }
            return;
        }
        self.dials_failed += 1;
        let (address, reason, hint) = failure::describe(error);
        if let DialError::LocalPeerId { .. } = error {
            // Trying again would find this node again.
            target.iter().for_each(|target| {
                self.redial.unwant(target);
            });
        }
        let retry_in = target.as_ref().and_then(|target| self.redial.on_failed(target, now));
        let address = address.or(match target {
            Some(Target::Address(address)) => Some(address),
            Some(Target::Peer(_)) | None => None,
        });
        self.events.push_back(NetworkEvent::DialFailed { peer, address, reason, hint, retry_in });
    }

    fn on_swarm_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(event) => self.on_behaviour_event(event),
            SwarmEvent::NewListenAddr { address, .. } => {
                self.events.push_back(NetworkEvent::Listening(address));
            }
            SwarmEvent::ListenerClosed { addresses, reason: Err(error), .. } => {
                let reason = error.to_string();
                self.events.push_back(NetworkEvent::ListenFailed { addresses, reason });
            }
            SwarmEvent::ListenerError { error, .. } => {
                // One connection could not be accepted; the listener goes on.
                tracing::debug!(%error, "listener");
                self.handshakes_failed += 1;
            }
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                self.on_connection(peer_id, connection_id, &endpoint);
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, num_established, .. } => {
                self.pings.remove(&connection_id);
                if num_established == 0 {
                    self.redial.on_disconnected(peer_id, Instant::now());
                }
            }
            SwarmEvent::OutgoingConnectionError { connection_id, peer_id, error } => {
                match self.dials.remove(&connection_id) {
                    Some(target) => self.on_dial_failed(peer_id, target, &error),
                    // A dial of Kademlia or of hole punching: theirs to try again.
                    None => tracing::debug!(?peer_id, %error, "dial"),
                }
            }
            SwarmEvent::IncomingConnectionError { send_back_addr, error, .. } => {
                self.handshakes_failed += 1;
                tracing::debug!(from = %send_back_addr, %error, "incoming connection");
            }
            event => tracing::trace!(?event, "swarm"),
        }
    }

    fn on_connection(&mut self, peer: PeerId, id: ConnectionId, endpoint: &ConnectedPoint) {
        let now = Instant::now();
        self.pings.insert(id, (peer, 0, None));
        if let Some(Some(Target::Address(address))) = self.dials.remove(&id) {
            self.redial.on_answered(&address, peer, now);
            self.swarm.behaviour_mut().limits.bypass_peer_id(&peer);
        }
        self.redial.on_connected(peer, now);
        tracing::debug!(%peer, address = %endpoint.get_remote_address(), "connection");
    }

    fn on_behaviour_event(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Exchange(event) => self.on_exchange(event),
            BehaviourEvent::Fetch(event) => self.on_fetch(event),
            BehaviourEvent::Ping(ping) => self.on_ping(ping),
            BehaviourEvent::Identify(identify::Event::Received { peer_id, info, .. }) => {
                self.on_identified(peer_id, info);
            }
            BehaviourEvent::Mdns(mdns::Event::Discovered(found)) => {
                let mut peers: BTreeMap<PeerId, Vec<Multiaddr>> = BTreeMap::new();
                for (peer, address) in found {
                    peers.entry(peer).or_default().push(address);
                }
                peers.into_iter().for_each(|(peer, addresses)| self.discover(peer, addresses));
            }
            BehaviourEvent::Kad(kad::Event::RoutingUpdated { peer, addresses, .. }) => {
                self.discover(peer, addresses.into_vec());
            }
            event => tracing::debug!(?event, "behaviour"),
        }
    }

    fn discover(&mut self, peer: PeerId, mut addresses: Vec<Multiaddr>) {
        addresses.truncate(ANNOUNCED_ADDRESSES_MAX);
        if peer != *self.swarm.local_peer_id() && !addresses.is_empty() {
            self.events.push_back(NetworkEvent::Discovered { peer, addresses });
        }
    }

    fn on_exchange(&mut self, event: exchange::Event) {
        self.events.push_back(match event {
            exchange::Event::Up { peer, address } => NetworkEvent::Connected { peer, address },
            exchange::Event::Down { peer, reason } => NetworkEvent::Disconnected { peer, reason },
            exchange::Event::Frame { peer, bytes } => NetworkEvent::Frame { peer, bytes },
            exchange::Event::Bad { peer, reason } => NetworkEvent::BadPeer { peer, reason },
        });
    }

    fn on_fetch(&mut self, event: request_response::Event<Vec<u8>, Vec<u8>>) {
        use request_response::{Event, Message};
        let (outbound, result) = match event {
            Event::Message { peer, message: Message::Request { request, channel, .. }, .. } => {
                self.requests_in += 1;
                let token = ResponseToken(channel);
                self.events.push_back(NetworkEvent::Request { peer, bytes: request, token });
                return;
            }
            Event::Message { message: Message::Response { request_id, response }, .. } => {
                (request_id, Ok(response))
            }
            Event::OutboundFailure { request_id, error, .. } => {
                (request_id, Err(request_error(error)))
            }
            Event::InboundFailure { peer, error, .. } => {
                tracing::debug!(%peer, %error, "request");
                return;
            }
            Event::ResponseSent { .. } => return,
        };
        if let Some((id, peer)) = self.requests.remove(&outbound) {
            self.events.push_back(NetworkEvent::Response { id, peer, result });
        }
    }

    fn on_ping(&mut self, event: ping::Event) {
        let Some(ping) = self.pings.get_mut(&event.connection) else { return };
        match event.result {
            Ok(round_trip) => *ping = (event.peer, 0, Some(round_trip)),
            // Streams of a connection that is about to close fail too; two in a row decide.
            Err(ping::Failure::Timeout | ping::Failure::Other { .. }) => {
                ping.1 += 1;
                if ping.1 >= PINGS_LOST_MAX {
                    tracing::info!(peer = %event.peer, "no answer to pings, connection closed");
                    self.swarm.close_connection(event.connection);
                }
            }
            Err(ping::Failure::Unsupported) => {}
        }
    }

    /// Kademlia learns where a peer listens only from here.
    fn on_identified(&mut self, peer: PeerId, info: identify::Info) {
        let speaks_kad = info.protocols.contains(&KAD_PROTOCOL);
        let Some(kad) = self.swarm.behaviour_mut().kad.as_mut() else { return };
        if !speaks_kad {
            return;
        }
        // What a peer sees of itself on its own loopback interface is of use on this machine only.
        let near = is_loopback(&info.observed_addr);
        let addresses =
            info.listen_addrs.into_iter().filter(|address| near || !is_loopback(address));
        for address in addresses.take(ANNOUNCED_ADDRESSES_MAX) {
            kad.add_address(&peer, address);
        }
    }
}

impl Behaviour {
    fn new(
        keypair: &Keypair,
        config: &NetworkConfig,
        relay: Option<relay::client::Behaviour>,
    ) -> Result<Self, NetworkError> {
        let local = keypair.public().to_peer_id();
        let limits = ConnectionLimits::default()
            .with_max_pending_incoming(Some(config.max_pending))
            .with_max_pending_outgoing(Some(config.max_pending))
            // A second connection to a peer lives for a moment.
            .with_max_established(Some(config.max_peers.saturating_add(config.max_peers / 8 + 1)));
        let exchange = exchange::Limits {
            frame_len_max: config.frame_len_max,
            queue_frames_max: config.queue_len_max,
            queue_bytes_max: config.queue_bytes_max,
            opening_timeout: Duration::from_secs(10),
            openings_max: 3,
            surplus_streams_max: SURPLUS_STREAMS_MAX,
            connections_per_peer_max: CONNECTIONS_PER_PEER_MAX,
        };
        let codec = RawCodec {
            request_len_max: config.request_len_max,
            response_len_max: config.response_len_max,
        };
        let fetch = request_response::Behaviour::with_codec(
            codec,
            [(fetch::PROTOCOL, ProtocolSupport::Full)],
            request_response::Config::default()
                .with_request_timeout(config.request_timeout)
                .with_max_concurrent_streams(2 * config.requests_max),
        );
        let identify = identify::Config::new(PROTOCOL_VERSION.into(), keypair.public())
            .with_agent_version(AGENT_VERSION.into())
            .with_push_listen_addr_updates(true)
            .with_cache_size(0);
        let ping =
            ping::Config::new().with_interval(config.ping_interval).with_timeout(PING_TIMEOUT);
        let mdns = config
            .mdns
            .then(|| mdns::tokio::Behaviour::new(mdns::Config::default(), local))
            .transpose()
            .map_err(NetworkError::Mdns)?;
        let kad = config.kad.then(|| {
            let mut kad_config = kad::Config::new(KAD_PROTOCOL);
            // Only the routing is used: what others want to store is not kept.
            kad_config.set_record_filtering(kad::StoreInserts::FilterBoth);
            let mut kad = kad::Behaviour::with_config(local, MemoryStore::new(local), kad_config);
            // Otherwise a node without a confirmed outside address answers nobody.
            kad.set_mode(Some(kad::Mode::Server));
            kad
        });
        Ok(Self {
            limits: connection_limits::Behaviour::new(limits),
            allow: Toggle::from(config.allow.as_ref().map(|peers| {
                let mut allow = allow_block_list::Behaviour::<AllowedPeers>::default();
                for peer in peers {
                    allow.allow_peer(*peer);
                }
                allow
            })),
            block: allow_block_list::Behaviour::default(),
            exchange: exchange::Behaviour::new(local, exchange),
            fetch,
            identify: identify::Behaviour::new(identify),
            ping: ping::Behaviour::new(ping),
            mdns: mdns.into(),
            kad: kad.into(),
            dcutr: relay.is_some().then(|| dcutr::Behaviour::new(local)).into(),
            autonat_client: relay.is_some().then(autonat::v2::client::Behaviour::default).into(),
            autonat_server: relay.is_some().then(autonat::v2::server::Behaviour::default).into(),
            relay: relay.into(),
        })
    }
}

fn request_error(failure: OutboundFailure) -> RequestError {
    match failure {
        OutboundFailure::Timeout => RequestError::TimedOut,
        OutboundFailure::UnsupportedProtocols => RequestError::Unsupported,
        OutboundFailure::DialFailure => RequestError::NotConnected,
        OutboundFailure::ConnectionClosed => RequestError::NoAnswer("connection closed".into()),
        OutboundFailure::Io(error) => {
            match error.get_ref().and_then(|inner| inner.downcast_ref::<TooLong>()) {
                Some(too_long) => RequestError::ResponseTooLong(*too_long),
                None => RequestError::NoAnswer(error.to_string()),
            }
        }
    }
}

/// The peer id at the end of an address.
fn peer_of(address: &Multiaddr) -> Option<PeerId> {
    match address.iter().last() {
        Some(Protocol::P2p(peer)) => Some(peer),
        _ => None,
    }
}

fn is_loopback(address: &Multiaddr) -> bool {
    match address.iter().next() {
        Some(Protocol::Ip4(ip)) => ip.is_loopback(),
        Some(Protocol::Ip6(ip)) => ip.is_loopback(),
        _ => false,
    }
}

fn port_of(address: &Multiaddr) -> Option<u16> {
    address.iter().find_map(|part| match part {
        Protocol::Tcp(port) | Protocol::Udp(port) => Some(port),
        _ => None,
    })
}

/// libp2p shares TCP ports with other sockets of the same user, so that a second node on a port
/// would start and take half of the first one's connections. A plain socket is refused there.
fn refuse_port_in_use(address: &Multiaddr) -> Result<(), NetworkError> {
    let mut parts = address.iter();
    let (ip, port): (IpAddr, u16) = match (parts.next(), parts.next()) {
        (Some(Protocol::Ip4(ip)), Some(Protocol::Tcp(port))) => (ip.into(), port),
        (Some(Protocol::Ip6(ip)), Some(Protocol::Tcp(port))) => (ip.into(), port),
        _ => return Ok(()),
    };
    match TcpListener::bind((ip, port)) {
        Err(error) if port != 0 && error.kind() == io::ErrorKind::AddrInUse => {
            Err(NetworkError::PortInUse { address: address.clone(), port })
        }
        // What else is wrong shows when it is listened on.
        _ => Ok(()),
    }
}
