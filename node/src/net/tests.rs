//! Networks on real sockets of the loopback interface. Nothing sleeps: each step waits for its
//! event, within a limit that is only there to fail.

#![allow(clippy::result_large_err, reason = "an event that a test passes over is given back")]

use std::collections::{BTreeSet, VecDeque};
use std::io::{Read, Write};
use std::time::Duration;

use libp2p::futures::StreamExt;
use libp2p::identity::Keypair;
use libp2p::multiaddr::Protocol;
use libp2p::request_response;
use libp2p::swarm::SwarmEvent;
use libp2p::swarm::dial_opts::DialOpts;

use super::exchange::PROTOCOL;
use super::fetch::RawCodec;

use super::*;

const LIMIT: Duration = Duration::from_secs(20);

fn tcp() -> NetworkConfig {
    NetworkConfig::loopback()
}

fn quic() -> NetworkConfig {
    NetworkConfig {
        listen: vec!["/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap()],
        ..NetworkConfig::loopback()
    }
}

/// A network and the events that came while another was waited for.
struct Node {
    network: Network,
    seen: VecDeque<NetworkEvent>,
}

impl Node {
    async fn start(config: NetworkConfig) -> (Self, Multiaddr) {
        let network = Network::new(Keypair::generate_ed25519(), config).unwrap();
        let mut node = Self { network, seen: VecDeque::new() };
        let address = node
            .until(|event| match event {
                NetworkEvent::Listening(address) => Ok(address),
                other => Err(other),
            })
            .await;
        (node, address)
    }

    fn id(&self) -> PeerId {
        self.network.local_peer_id()
    }

    /// Waits for an event that `pick` takes; it gives back the others.
    async fn until<T>(&mut self, pick: impl FnMut(NetworkEvent) -> Result<T, NetworkEvent>) -> T {
        self.until_among(&mut [], pick).await
    }

    /// Drives `others` too, which only collect what they see.
    async fn until_among<T>(
        &mut self,
        others: &mut [&mut Node],
        mut pick: impl FnMut(NetworkEvent) -> Result<T, NetworkEvent>,
    ) -> T {
        let waiting = async {
            let mut found = None;
            for event in std::mem::take(&mut self.seen) {
                match (&found, event) {
                    (None, event) => match pick(event) {
                        Ok(picked) => found = Some(picked),
                        Err(event) => self.seen.push_back(event),
                    },
                    (Some(_), event) => self.seen.push_back(event),
                }
            }
            if let Some(found) = found {
                return found;
            }
            loop {
                tokio::select! {
                    event = self.network.next_event() => match pick(event) {
                        Ok(found) => return found,
                        Err(event) => self.seen.push_back(event),
                    },
                    () = drive(others) => unreachable!("driving never ends"),
                }
            }
        };
        let waited = tokio::time::timeout(LIMIT, waiting).await;
        waited.unwrap_or_else(|_| panic!("the event did not come, only {:?}", self.seen))
    }
}

async fn drive(nodes: &mut [&mut Node]) {
    if nodes.is_empty() {
        std::future::pending::<()>().await;
    }
    let mut nexts: Vec<_> = nodes
        .iter_mut()
        .map(|node| {
            Box::pin(async {
                loop {
                    let event = node.network.next_event().await;
                    node.seen.push_back(event);
                }
            })
        })
        .collect();
    std::future::poll_fn(|cx| {
        for next in &mut nexts {
            let _: std::task::Poll<()> = next.as_mut().poll(cx);
        }
        std::task::Poll::Pending
    })
    .await
}

fn connected(event: NetworkEvent) -> Result<PeerId, NetworkEvent> {
    match event {
        NetworkEvent::Connected { peer, .. } => Ok(peer),
        other => Err(other),
    }
}

fn disconnected(event: NetworkEvent) -> Result<DownReason, NetworkEvent> {
    match event {
        NetworkEvent::Disconnected { reason, .. } => Ok(reason),
        other => Err(other),
    }
}

fn frame(event: NetworkEvent) -> Result<Vec<u8>, NetworkEvent> {
    match event {
        NetworkEvent::Frame { bytes, .. } => Ok(bytes),
        other => Err(other),
    }
}

fn bad(event: NetworkEvent) -> Result<(PeerId, Garbage), NetworkEvent> {
    match event {
        NetworkEvent::BadPeer { peer, reason } => Ok((peer, reason)),
        other => Err(other),
    }
}

fn request(event: NetworkEvent) -> Result<(Vec<u8>, ResponseToken), NetworkEvent> {
    match event {
        NetworkEvent::Request { bytes, token, .. } => Ok((bytes, token)),
        other => Err(other),
    }
}

fn response(
    event: NetworkEvent,
) -> Result<(RequestId, Result<Vec<u8>, RequestError>), NetworkEvent> {
    match event {
        NetworkEvent::Response { id, result, .. } => Ok((id, result)),
        other => Err(other),
    }
}

fn dial_failed(
    event: NetworkEvent,
) -> Result<(String, &'static str, Option<Duration>), NetworkEvent> {
    match event {
        NetworkEvent::DialFailed { reason, hint, retry_in, .. } => Ok((reason, hint, retry_in)),
        other => Err(other),
    }
}

fn port_of(address: &Multiaddr) -> u16 {
    let port = address.iter().find_map(|part| match part {
        Protocol::Tcp(port) | Protocol::Udp(port) => Some(port),
        _ => None,
    });
    port.expect("an address with a port")
}

async fn pair(config: impl Fn() -> NetworkConfig) -> (Node, Node) {
    let (mut a, _) = Node::start(config()).await;
    let (mut b, address) = Node::start(config()).await;
    a.network.dial(address);
    assert_eq!(a.until_among(&mut [&mut b], connected).await, b.id());
    assert_eq!(b.until_among(&mut [&mut a], connected).await, a.id());
    (a, b)
}

async fn frames_go_both_ways(config: fn() -> NetworkConfig) {
    let (mut a, mut b) = pair(config).await;
    let (a_id, b_id) = (a.id(), b.id());
    a.network.send(b_id, b"to b".to_vec()).unwrap();
    b.network.send(a_id, b"to a".to_vec()).unwrap();
    assert_eq!(b.until_among(&mut [&mut a], frame).await, b"to b");
    assert_eq!(a.until_among(&mut [&mut b], frame).await, b"to a");
    let counters = a.network.counters();
    assert_eq!((counters.frames_in, counters.frames_out, counters.peers), (1, 1, 1));
    assert!(counters.transport_bytes_out > 4 && counters.transport_bytes_in > 4);
}

#[tokio::test]
async fn frames_go_both_ways_over_tcp() {
    frames_go_both_ways(tcp).await;
}

#[tokio::test]
async fn frames_go_both_ways_over_quic() {
    frames_go_both_ways(quic).await;
}

/// Sends `count` frames as fast as the queue takes them and checks that they come in order.
async fn burst(config: fn() -> NetworkConfig, count: u32) {
    let (mut a, mut b) = pair(config).await;
    let b_id = b.id();
    let (mut sent, mut received) = (0, 0u32);
    while received < count {
        while sent < count {
            let frame = [sent.to_le_bytes().as_slice(), &vec![0; (sent % 64) as usize]].concat();
            match a.network.send(b_id, frame) {
                Ok(()) => sent += 1,
                Err(SendError::QueueFull { .. }) => break,
                Err(error) => panic!("{error}"),
            }
        }
        let bytes = b.until_among(&mut [&mut a], frame).await;
        assert_eq!(bytes[..4], received.to_le_bytes());
        assert_eq!(bytes.len(), 4 + (received % 64) as usize);
        received += 1;
    }
}

#[tokio::test]
async fn a_burst_arrives_in_order_over_tcp() {
    burst(tcp, 20_000).await;
}

#[tokio::test]
async fn a_burst_arrives_in_order_over_quic() {
    burst(quic, 5_000).await;
}

#[tokio::test]
async fn a_full_queue_refuses_and_counts() {
    let small =
        || NetworkConfig { queue_len_max: 4, frame_len_max: 1000, queue_bytes_max: 3000, ..tcp() };
    let (mut a, b) = pair(small).await;
    let b_id = b.id();
    // Nobody awaits in between, so nothing can leave the queue.
    for _ in 0..3 {
        a.network.send(b_id, vec![7; 1000]).unwrap();
    }
    let full = SendError::QueueFull { frames: 3, bytes: 3000 };
    assert_eq!(a.network.send(b_id, vec![7]), Err(full));
    assert_eq!(a.network.counters().frames_dropped_out, 1);
    assert_eq!(a.network.queue_len(b_id), 3);
    assert_eq!(
        a.network.send(b_id, vec![7; 1001]),
        Err(SendError::Length { len: 1001, max: 1000 })
    );
    assert_eq!(a.network.send(b_id, vec![]), Err(SendError::Length { len: 0, max: 1000 }));
    assert_eq!(a.network.send(PeerId::random(), vec![7]), Err(SendError::NotConnected));
}

#[tokio::test]
async fn a_peer_that_reads_nothing_costs_a_bounded_queue() {
    let (mut a, b) = pair(tcp).await;
    let b_id = b.id();
    // `b` is not polled: its connection stops reading when a few frames wait for its owner.
    let filling = async {
        let mut accepted = 0;
        loop {
            match a.network.send(b_id, vec![1; 64 * 1024]) {
                Ok(()) => accepted += 1,
                Err(_) if accepted > 1000 => panic!("{accepted} frames were accepted"),
                Err(_) => {
                    // Full; give the connection a while to move what it still can.
                    let event =
                        tokio::time::timeout(Duration::from_millis(300), a.network.next_event());
                    if event.await.is_err() && a.network.send(b_id, vec![1]).is_err() {
                        return accepted;
                    }
                }
            }
        }
    };
    let accepted = tokio::time::timeout(LIMIT, filling).await.expect("the queue fills up");
    assert!(accepted >= 16, "a megabyte fits the queue");
    assert!(a.network.counters().frames_dropped_out > 0);
}

#[tokio::test]
async fn an_oversize_frame_is_reported_and_costs_the_connection() {
    let (mut a, _) = Node::start(NetworkConfig { frame_len_max: 2000, ..tcp() }).await;
    let (mut b, address) = Node::start(NetworkConfig { frame_len_max: 1000, ..tcp() }).await;
    let (a_id, b_id) = (a.id(), b.id());
    a.network.dial(address);
    a.until_among(&mut [&mut b], connected).await;
    a.network.send(b_id, vec![1; 1500]).unwrap();
    let (peer, reason) = b.until_among(&mut [&mut a], bad).await;
    let too_long = Garbage::Frame(FrameError::TooLong { len: 1500, max: 1000 });
    assert_eq!((peer, reason), (a_id, too_long));
    assert_eq!(b.until_among(&mut [&mut a], disconnected).await, DownReason::Garbage(too_long));
    a.until_among(&mut [&mut b], disconnected).await;
    assert_eq!(b.network.counters().garbage_streams, 1);
}

/// A swarm that speaks something else under the exchange protocol's name.
fn impostor() -> libp2p::Swarm<request_response::Behaviour<RawCodec>> {
    let codec = RawCodec { request_len_max: 100, response_len_max: 100 };
    let protocol = (PROTOCOL, request_response::ProtocolSupport::Full);
    let behaviour = request_response::Behaviour::with_codec(codec, [protocol], Default::default());
    let keypair = Keypair::generate_ed25519();
    let transport = transport::build(&keypair, &Default::default(), false, None).unwrap();
    let config = libp2p::swarm::Config::with_tokio_executor();
    libp2p::Swarm::new(transport, behaviour, keypair.public().to_peer_id(), config)
}

#[tokio::test]
async fn garbage_on_a_stream_is_reported_and_costs_the_connection() {
    let (mut a, address) = Node::start(tcp()).await;
    let mut impostor = impostor();
    let a_id = a.id();
    // Its length prefix of four zero bytes is no frame.
    impostor.behaviour_mut().send_request_with_addresses(&a_id, Vec::new(), vec![address]);
    let reported = async {
        tokio::select! {
            bad = a.until(bad) => bad,
            () = async { loop { impostor.select_next_some().await; } } => unreachable!(),
        }
    };
    let (peer, reason) = reported.await;
    assert_eq!((peer, reason), (*impostor.local_peer_id(), Garbage::Frame(FrameError::Empty)));
    assert_eq!(a.network.counters().garbage_streams, 1);
    let reason = a.until(disconnected).await;
    assert_eq!(reason, DownReason::Garbage(Garbage::Frame(FrameError::Empty)));
}

#[tokio::test]
async fn one_peer_holds_few_connections_even_if_wanted() {
    let (mut a, address) = Node::start(tcp()).await;
    let mut impostor = impostor();
    a.network.want(*impostor.local_peer_id(), Vec::new());
    for _ in 0..8 {
        let dial = DialOpts::unknown_peer_id().address(address.clone()).allocate_new_port();
        impostor.dial(dial.build()).unwrap();
    }
    let refused = async {
        let mut closed = 0;
        while closed < 5 {
            tokio::select! {
                event = impostor.select_next_some() => {
                    if let SwarmEvent::ConnectionClosed { .. } = event {
                        closed += 1;
                    }
                }
                event = a.network.next_event() => a.seen.push_back(event),
            }
        }
    };
    tokio::time::timeout(LIMIT, refused).await.expect("five of eight are refused");
    assert!(a.network.connection_count() <= 3);
}

#[tokio::test]
async fn garbage_on_the_port_disturbs_nobody() {
    let (mut a, mut b) = pair(tcp).await;
    let port = port_of(&b.network.listen_addrs()[0]);
    let strangers: Vec<_> = [b"GET / HTTP/1.1\r\n\r\n".to_vec(), vec![0xff; 5000], vec![]]
        .into_iter()
        .map(|bytes| {
            std::thread::spawn(move || {
                let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
                // It may hang up before it has read everything.
                let _ = stream.write_all(&bytes);
                let _ = stream.shutdown(std::net::Shutdown::Write);
                let _ = stream.read_to_end(&mut Vec::new());
            })
        })
        .collect();
    let b_id = b.id();
    let counted = async {
        let mut pings = 0u8;
        while b.network.counters().handshakes_failed < strangers.len() as u64 {
            a.network.send(b_id, vec![pings]).unwrap();
            assert_eq!(b.until_among(&mut [&mut a], frame).await, [pings]);
            pings = pings.wrapping_add(1);
        }
    };
    tokio::time::timeout(LIMIT, counted).await.expect("every stranger is counted");
    strangers.into_iter().for_each(|stranger| stranger.join().unwrap());
    assert!(b.network.is_connected(a.id()));
}

#[tokio::test]
async fn a_request_is_answered() {
    let (mut a, mut b) = pair(tcp).await;
    let id = a.network.request(b.id(), b"manifest?".to_vec());
    let (bytes, token) = b.until_among(&mut [&mut a], request).await;
    assert_eq!(bytes, b"manifest?");
    b.network.respond(token, vec![9; 100_000]).unwrap();
    let answer = a.until_among(&mut [&mut b], response).await;
    assert_eq!(answer, (id, Ok(vec![9; 100_000])));
}

#[tokio::test]
async fn a_dropped_token_is_an_answer_too() {
    let (mut a, mut b) = pair(tcp).await;
    let id = a.network.request(b.id(), b"history?".to_vec());
    drop(b.until_among(&mut [&mut a], request).await);
    let (answered, result) = a.until_among(&mut [&mut b], response).await;
    assert_eq!(answered, id);
    assert!(matches!(result, Err(RequestError::NoAnswer(_))), "{result:?}");
}

#[tokio::test]
async fn a_response_that_is_too_long_is_not_read() {
    let (mut a, _) = Node::start(NetworkConfig { response_len_max: 1000, ..tcp() }).await;
    let (mut b, address) = Node::start(tcp()).await;
    a.network.dial(address);
    a.until_among(&mut [&mut b], connected).await;
    let id = a.network.request(b.id(), b"all".to_vec());
    let (_, token) = b.until_among(&mut [&mut a], request).await;
    b.network.respond(token, vec![9; 1001]).unwrap();
    let too_long = TooLong { len: 1001, max: 1000 };
    let answer = a.until_among(&mut [&mut b], response).await;
    assert_eq!(answer, (id, Err(RequestError::ResponseTooLong(too_long))));
    // The responder's own limit is checked before anything is sent.
    a.network.request(b.id(), b"all".to_vec());
    let (_, token) = b.until_among(&mut [&mut a], request).await;
    let max = tcp().response_len_max;
    let refused = b.network.respond(token, vec![0; max + 1]);
    assert_eq!(refused, Err(RespondError::TooLong { len: max + 1, max }));
}

#[tokio::test]
async fn requests_are_bounded() {
    let (mut a, b) = pair(|| NetworkConfig { requests_max: 2, ..tcp() }).await;
    a.network.request(b.id(), vec![1]);
    a.network.request(b.id(), vec![2]);
    let third = a.network.request(b.id(), vec![3]);
    assert_eq!(a.until(response).await, (third, Err(RequestError::Busy(2))));
    let nowhere = a.network.request(PeerId::random(), vec![4]);
    assert_eq!(a.until(response).await, (nowhere, Err(RequestError::NotConnected)));
    let long = a.network.request(b.id(), vec![5; tcp().request_len_max + 1]);
    let (id, result) = a.until(response).await;
    assert_eq!(id, long);
    assert!(matches!(result, Err(RequestError::RequestTooLong { .. })));
}

#[tokio::test]
async fn a_banned_peer_is_refused_until_the_ban_ends() {
    let (mut a, mut b) = pair(tcp).await;
    let (a_id, b_id) = (a.id(), b.id());
    let address = b.network.listen_addrs()[0].clone();
    b.network.ban(a_id, Duration::from_secs(2));
    a.until_among(&mut [&mut b], disconnected).await;
    assert_eq!(b.until_among(&mut [&mut a], disconnected).await, DownReason::Closed);
    assert!(b.network.is_banned(a_id));
    b.network.dial_peer(a_id, a.network.listen_addrs());
    let (_, hint, _) = b.until_among(&mut [&mut a], dial_failed).await;
    assert!(hint.contains("banned"), "{hint}");
    // Wanted from the other side, it is refused for two seconds and let in afterwards.
    a.network.want(b_id, vec![address]);
    assert_eq!(a.until_among(&mut [&mut b], connected).await, b_id);
    assert!(!b.network.is_banned(a_id));
    assert!(b.network.counters().handshakes_failed > 0);
}

#[tokio::test]
async fn only_allowed_peers_connect() {
    let (mut friend, _) = Node::start(tcp()).await;
    let (mut stranger, _) = Node::start(tcp()).await;
    let allow = Some(BTreeSet::from([friend.id()]));
    let (mut a, address) = Node::start(NetworkConfig { allow, ..tcp() }).await;
    friend.network.dial(address.clone());
    assert_eq!(a.until_among(&mut [&mut friend], connected).await, friend.id());
    friend.until_among(&mut [&mut a], connected).await;
    stranger.network.dial(address);
    let a_id = a.id();
    let refused = async {
        while a.network.counters().handshakes_failed == 0 {
            friend.network.send(a_id, vec![1]).unwrap();
            a.until_among(&mut [&mut friend, &mut stranger], frame).await;
        }
    };
    tokio::time::timeout(LIMIT, refused).await.expect("the stranger is refused");
    assert!(!a.network.is_connected(stranger.id()));
}

#[tokio::test]
async fn simultaneous_dials_leave_one_usable_link() {
    for _ in 0..10 {
        let (mut a, at_a) = Node::start(tcp()).await;
        let (mut b, at_b) = Node::start(tcp()).await;
        let (a_id, b_id) = (a.id(), b.id());
        a.network.dial(at_b);
        b.network.dial(at_a);
        // A link that is replaced says so and comes back; wait until frames pass both ways on
        // links that stay.
        let settled = async {
            let (mut a_heard, mut b_heard) = (false, false);
            while !(a_heard && b_heard) {
                tokio::select! {
                    event = a.network.next_event() => match event {
                        NetworkEvent::Connected { .. } => a.network.send(b_id, vec![1]).unwrap(),
                        NetworkEvent::Disconnected { .. } => a_heard = false,
                        NetworkEvent::Frame { .. } => a_heard = true,
                        _ => {}
                    },
                    event = b.network.next_event() => match event {
                        NetworkEvent::Connected { .. } => b.network.send(a_id, vec![1]).unwrap(),
                        NetworkEvent::Disconnected { .. } => b_heard = false,
                        NetworkEvent::Frame { .. } => b_heard = true,
                        _ => {}
                    },
                }
            }
        };
        tokio::time::timeout(LIMIT, settled).await.expect("the link settles");
        assert_eq!(a.network.peers(), [b_id]);
        assert_eq!(b.network.peers(), [a_id]);
    }
}

#[tokio::test]
async fn however_often_two_want_each_other_one_link_remains() {
    for _ in 0..10 {
        let (mut a, at_a) = Node::start(tcp()).await;
        let (mut b, at_b) = Node::start(tcp()).await;
        let (a_id, b_id) = (a.id(), b.id());
        a.network.want_address(at_b.clone());
        a.network.want(b_id, vec![at_b.clone()]);
        a.network.dial(at_b);
        b.network.want_address(at_a.clone());
        b.network.dial(at_a);
        // Each answers a frame of one byte with one of two. A round trip on a link of which
        // nothing new was heard for its duration is a link that works at both ends.
        let settled = async {
            let mut answered = false;
            while !answered {
                tokio::select! {
                    event = a.network.next_event() => match event {
                        NetworkEvent::Connected { .. } => a.network.send(b_id, vec![1]).unwrap(),
                        NetworkEvent::Frame { bytes, .. } => answered = bytes.len() == 2,
                        _ => {}
                    },
                    event = b.network.next_event() => {
                        if let NetworkEvent::Frame { .. } = event {
                            // It may go down at this moment.
                            let _ = b.network.send(a_id, vec![2, 2]);
                        }
                    }
                }
            }
        };
        tokio::time::timeout(LIMIT, settled).await.expect("the link settles");
    }
}

#[tokio::test]
async fn a_wanted_peer_is_found_again() {
    let (mut a, _) = Node::start(tcp()).await;
    let keypair = Keypair::generate_ed25519();
    let (b, address) = Node::start(tcp()).await;
    drop(b);
    // Nobody is there yet.
    a.network.want_address(address.clone());
    let (reason, hint, retry_in) = a.until(dial_failed).await;
    assert!(hint.contains("is the node running"), "{reason}: {hint}");
    assert!(retry_in.is_some());
    for _ in 0..2 {
        let config = NetworkConfig { listen: vec![address.clone()], ..tcp() };
        let network = Network::new(keypair.clone(), config).unwrap();
        let mut b = Node { network, seen: VecDeque::new() };
        assert_eq!(a.until_among(&mut [&mut b], connected).await, b.id());
        drop(b);
        a.until(disconnected).await;
    }
}

#[tokio::test]
async fn another_identity_at_the_address_is_named() {
    let (mut a, _) = Node::start(tcp()).await;
    let (mut b, address) = Node::start(tcp()).await;
    a.network.dial_peer(PeerId::random(), vec![address]);
    let (reason, hint, retry_in) = a.until_among(&mut [&mut b], dial_failed).await;
    assert!(reason.contains(&b.id().to_string()), "{reason}");
    assert!(hint.contains("/p2p/"), "{hint}");
    assert_eq!(retry_in, None);
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    for config in [tcp(), quic()] {
        let (_a, address) = Node::start(config).await;
        let config = NetworkConfig { listen: vec![address.clone()], ..NetworkConfig::loopback() };
        let Err(error) = Network::new(Keypair::generate_ed25519(), config) else {
            panic!("a second node listens on {address}")
        };
        let text = error.to_string();
        assert!(text.contains(&format!("port {} is in use", port_of(&address))), "{text}");
    }
}

#[tokio::test]
async fn an_address_of_another_machine_is_refused() {
    let listen = vec!["/ip4/192.0.2.1/tcp/0".parse().unwrap()];
    let config = NetworkConfig { listen, ..NetworkConfig::loopback() };
    let error = Network::new(Keypair::generate_ed25519(), config).err().expect("not our address");
    assert!(error.to_string().contains("does not have that address"), "{error}");
}

#[tokio::test]
async fn closing_delivers_what_was_queued() {
    for config in [tcp, quic] {
        let (mut a, mut b) = pair(config).await;
        for i in 0..1000u32 {
            a.network.send(b.id(), i.to_le_bytes().to_vec()).unwrap();
        }
        let Node { network, .. } = a;
        let closing = network.close(LIMIT);
        let receiving = async {
            for i in 0..1000u32 {
                assert_eq!(b.until(frame).await, i.to_le_bytes());
            }
            assert_eq!(b.until(disconnected).await, DownReason::Finished);
            // Dropping the network is what ends the connection at last.
            b
        };
        let ((drained, counters), _b) = tokio::join!(closing, receiving);
        assert!(drained);
        assert_eq!(counters.frames_out, 1000);
    }
}

#[tokio::test]
async fn two_that_close_at_once_do_not_wait_for_each_other() {
    let (a, b) = pair(tcp).await;
    let (a, b) = tokio::join!(a.network.close(LIMIT), b.network.close(LIMIT));
    assert!(a.0 && b.0);
}

#[tokio::test]
async fn everything_on_still_exchanges_frames() {
    let everything = || NetworkConfig {
        listen: vec![
            "/ip4/127.0.0.1/tcp/0".parse().unwrap(),
            "/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap(),
        ],
        ..NetworkConfig::default()
    };
    let (mut a, mut b) = pair(everything).await;
    a.network.send(b.id(), b"hello".to_vec()).unwrap();
    assert_eq!(b.until_among(&mut [&mut a], frame).await, b"hello");
}

#[tokio::test]
async fn kademlia_finds_the_peer_of_a_peer() {
    let with_kad = || NetworkConfig { kad: true, ..tcp() };
    let (mut a, _) = Node::start(with_kad()).await;
    let (mut b, address) = Node::start(with_kad()).await;
    let (mut c, at_c) = Node::start(with_kad()).await;
    c.network.dial(address.clone());
    c.until_among(&mut [&mut b], connected).await;
    a.network.dial(address);
    let c_id = c.id();
    let addresses = a
        .until_among(&mut [&mut b, &mut c], |event| match event {
            NetworkEvent::Discovered { peer, addresses } if peer == c_id => Ok(addresses),
            other => Err(other),
        })
        .await;
    let found = |address: &Multiaddr| address.to_string().starts_with(&at_c.to_string());
    assert!(addresses.iter().any(found), "{addresses:?}");
}
