//! Why a dial failed, in words, and what a person can do about it.

use std::error::Error;
use std::io;

use libp2p::core::transport::TransportError;
use libp2p::swarm::DialError;
use libp2p::{Multiaddr, allow_block_list, connection_limits};

/// The address a dial failed at (the first, of several), what happened, and the likely remedy.
pub(super) fn describe(error: &DialError) -> (Option<Multiaddr>, String, &'static str) {
    match error {
        DialError::LocalPeerId { address } => (
            Some(address.clone()),
            "this node itself answered".into(),
            "leave this node's own address out",
        ),
        DialError::NoAddresses => {
            (None, "no address is known".into(), "name an address, or turn on mDNS or Kademlia")
        }
        DialError::DialPeerConditionFalse(_) => {
            (None, "already connected or connecting".into(), "nothing to do")
        }
        DialError::Aborted => (None, "the attempt was given up".into(), "it is tried again"),
        DialError::WrongPeerId { obtained, address } => (
            Some(address.clone()),
            format!("another peer answered, {obtained}"),
            "its identity is new or the address is another node's: correct the id after /p2p/",
        ),
        DialError::Denied { cause } => (None, cause_of_denial(cause), denial_hint(cause)),
        DialError::Transport(failures) => match failures.first() {
            Some((address, failure)) => {
                let (reason, hint) = describe_transport(failure);
                (Some(address.clone()), reason, hint)
            }
            None => (None, "no address could be dialed".into(), "check the addresses"),
        },
    }
}

fn cause_of_denial(cause: &libp2p::swarm::ConnectionDenied) -> String {
    // `ConnectionDenied` itself only says that a connection was denied.
    cause.source().map_or_else(|| cause.to_string(), |source| source.to_string())
}

fn denial_hint(cause: &libp2p::swarm::ConnectionDenied) -> &'static str {
    if cause.downcast_ref::<allow_block_list::NotAllowed>().is_some() {
        "the peer is not on this node's allow-list"
    } else if cause.downcast_ref::<allow_block_list::Blocked>().is_some() {
        "the peer broke the protocol and is banned for a while"
    } else if cause.downcast_ref::<connection_limits::Exceeded>().is_some() {
        "this node has all the connections it may have: raise max_peers"
    } else {
        "this node refuses the connection"
    }
}

fn describe_transport(failure: &TransportError<io::Error>) -> (String, &'static str) {
    let error = match failure {
        TransportError::MultiaddrNotSupported(_) => {
            return (
                "this kind of address is not supported".into(),
                "use /ip4/…/tcp/PORT or /ip4/…/udp/PORT/quic-v1, or turn on DNS for names",
            );
        }
        TransportError::Other(error) => error,
    };
    let (kind, text) = innermost(error);
    let lower = text.to_lowercase();
    let hint = match kind {
        io::ErrorKind::ConnectionRefused => "is the node running and the port right?",
        io::ErrorKind::TimedOut => "is the address right, and does a firewall let it through?",
        io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable => {
            "this machine has no route there: check the network and the address"
        }
        io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof => {
            "it answered and hung up: it refuses this node, or it is no libp2p node"
        }
        _ if lower.contains("refused") => "is the node running and the port right?",
        _ if lower.contains("timeout") || lower.contains("timed out") => {
            "is the address right, and does a firewall let it through?"
        }
        _ if lower.contains("resolve") || lower.contains("record") => {
            "the name does not resolve: check its spelling and the DNS"
        }
        _ => "is it a libp2p node of a compatible version?",
    };
    (text, hint)
}

/// Kind and text of the innermost error: what the system said.
pub(super) fn innermost(error: &io::Error) -> (io::ErrorKind, String) {
    let mut innermost: &(dyn Error + 'static) = error;
    // Boxes nest only a few deep; the bound is against a cycle in foreign code.
    for _ in 0..16 {
        // An `io::Error` around another error passes over it in `source`.
        let next = match innermost.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(next) => Some(next as &(dyn Error + 'static)),
            None => innermost.source(),
        };
        match next {
            Some(next) => innermost = next,
            None => break,
        }
    }
    let text = innermost.to_string();
    // The combined transports pass on the text of the system's error but not the error itself;
    // its number stands at the end.
    let number = text.rsplit_once("(os error ").and_then(|(_, end)| end.strip_suffix(')'));
    let kind = match (innermost.downcast_ref::<io::Error>(), number.map(str::parse)) {
        (Some(error), _) => error.kind(),
        (None, Some(Ok(number))) => io::Error::from_raw_os_error(number).kind(),
        (None, _) => error.kind(),
    };
    (kind, text)
}
