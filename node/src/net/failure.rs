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
    let deepest = deepest(error);
    let text = deepest.to_string();
    // What a stack of boxed errors hides, the text of the innermost still says.
    let kind = deepest.downcast_ref::<io::Error>().map_or(io::ErrorKind::Other, io::Error::kind);
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

/// The innermost error: the one that says what the system said.
pub(super) fn deepest(error: &io::Error) -> &(dyn Error + 'static) {
    let mut error: &(dyn Error + 'static) = error;
    // Boxes nest only a few deep; the bound is against a cycle in foreign code.
    for _ in 0..16 {
        // An `io::Error` around another error passes over it in `source`.
        let inner = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner as &(dyn Error + 'static)),
            None => error.source(),
        };
        match inner {
            Some(inner) => error = inner,
            None => break,
        }
    }
    error
}
