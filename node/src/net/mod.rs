//! Sockets: a libp2p swarm that carries frames between neighbors.
