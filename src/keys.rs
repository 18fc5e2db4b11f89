//! Signatures: Ed25519, or a stand-in for simulations of thousands of nodes.
//!
//! Every statement that is relayed (segments, acks, votes, control records) is signed by its
//! author under a domain string, so that a signature made for one purpose says nothing in another.

use bincode::{Decode, Encode};
use ed25519_dalek::{Signature as Ed25519Signature, Signer, SigningKey, VerifyingKey};

use crate::id::NodeId;

/// A signature over a 32-byte statement digest.
#[derive(Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Signature(pub [u8; 64]);

impl std::fmt::Debug for Signature {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signature({:02x}{:02x}…)", self.0[0], self.0[1])
    }
}

/// How statements are signed. All nodes of a run use the same scheme.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Ed25519 with strict verification.
    Ed25519,
    /// A keyed hash that anybody can compute. It costs little and protects nothing: only for
    /// simulations.
    Simulated,
}

/// A node's signing key.
#[derive(Clone)]
pub enum Keys {
    /// A real key pair.
    Ed25519(Box<SigningKey>),
    /// A stand-in for simulations.
    Simulated(NodeId),
}

impl Keys {
    /// The Ed25519 key pair of a 32-byte secret seed.
    pub fn from_seed(seed: &[u8; 32]) -> Keys {
        Keys::Ed25519(Box::new(SigningKey::from_bytes(seed)))
    }

    /// A stand-in key whose identity is derived from `index`.
    pub fn simulated(index: u64) -> Keys {
        let hash = blake3::derive_key("rumormill v1 simulated identity", &index.to_le_bytes());
        Keys::Simulated(NodeId(hash))
    }

    /// The identity others know this key by.
    pub fn id(&self) -> NodeId {
        match self {
            Keys::Ed25519(key) => NodeId(key.verifying_key().to_bytes()),
            Keys::Simulated(id) => *id,
        }
    }

    /// The scheme this key belongs to.
    pub fn scheme(&self) -> Scheme {
        match self {
            Keys::Ed25519(_) => Scheme::Ed25519,
            Keys::Simulated(_) => Scheme::Simulated,
        }
    }

    /// Signs a statement digest.
    pub fn sign(&self, digest: &[u8; 32]) -> Signature {
        match self {
            Keys::Ed25519(key) => Signature(key.sign(digest).to_bytes()),
            Keys::Simulated(id) => simulated(id, digest),
        }
    }
}

impl Scheme {
    /// Whether `signature` is `author`'s over `digest`. Hostile bytes are simply `false`.
    pub fn verify(self, author: &NodeId, digest: &[u8; 32], signature: &Signature) -> bool {
        match self {
            Scheme::Ed25519 => VerifyingKey::from_bytes(&author.0).is_ok_and(|key| {
                key.verify_strict(digest, &Ed25519Signature::from_bytes(&signature.0)).is_ok()
            }),
            Scheme::Simulated => simulated(author, digest) == *signature,
        }
    }
}

fn simulated(id: &NodeId, digest: &[u8; 32]) -> Signature {
    let mut bytes = [0; 64];
    bytes[..32].copy_from_slice(blake3::keyed_hash(&id.0, digest).as_bytes());
    Signature(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_holds_for_its_author_and_statement_only() {
        for keys in [Keys::from_seed(&[7; 32]), Keys::simulated(7)] {
            let scheme = keys.scheme();
            let other = match scheme {
                Scheme::Ed25519 => Keys::from_seed(&[8; 32]).id(),
                Scheme::Simulated => Keys::simulated(8).id(),
            };
            let signature = keys.sign(&[1; 32]);
            assert!(scheme.verify(&keys.id(), &[1; 32], &signature));
            assert!(!scheme.verify(&keys.id(), &[2; 32], &signature));
            assert!(!scheme.verify(&other, &[1; 32], &signature));
        }
        assert!(!Scheme::Ed25519.verify(&NodeId([255; 32]), &[1; 32], &Signature([255; 64])));
    }
}
