//! Frames that stay in the process.
//!
//! Nine tenths of the time that a simulation of a thousand nodes spends on frames goes into
//! copying records into bytes and out of them again. A [`Passed`] frame holds the very segments and
//! acks that the sender holds; its length is the one that its bytes would have, so traffic is counted as
//! ever. They were checked by the node that tells them: frames are passed between honest
//! nodes only.

use std::sync::Arc;

use super::acks::ToldAcks;
use crate::codec::{encoded_len, varint_len};
use crate::ledger::Told;
use crate::message::{Exchange, Frame};

/// A frame of an exchange as a value.
#[derive(Clone, Debug)]
pub struct Passed(Arc<Parts>);

/// Behind one pointer, as it lies in queues together with small things.
#[derive(Clone, Debug)]
struct Parts {
    /// Everything but segments and acks.
    rest: Exchange,
    segments: Vec<Told>,
    acks: Vec<ToldAcks>,
    encoded_len: usize,
}

impl Passed {
    pub(super) fn new(rest: Exchange, segments: Vec<Told>, acks: Vec<ToldAcks>) -> Passed {
        let empty = rest.segments.is_empty() && rest.acks.is_empty();
        assert!(empty, "segments and acks are passed beside the exchange");
        let frame = Frame::Exchange(rest);
        let encoded_len = encoded_len(&frame) - 2 * varint_len(0)
            + varint_len(segments.len())
            + segments.iter().map(Told::encoded_len).sum::<usize>()
            + varint_len(acks.len())
            + acks.iter().map(ToldAcks::encoded_len).sum::<usize>();
        let Frame::Exchange(rest) = frame else { unreachable!("made above") };
        Passed(Arc::new(Parts { rest, segments, acks, encoded_len }))
    }

    pub(super) fn into_parts(self) -> (Exchange, Vec<Told>, Vec<ToldAcks>) {
        let Parts { rest, segments, acks, .. } = Arc::unwrap_or_clone(self.0);
        (rest, segments, acks)
    }

    /// The length of [`Passed::encode`], which it is counted as.
    pub fn encoded_len(&self) -> usize {
        self.0.encoded_len
    }

    /// The frame's bytes, as a protocol that passes no frames would send them.
    pub fn encode(&self) -> Vec<u8> {
        let segments = self.0.segments.iter().map(Told::delta).collect();
        let acks = self.0.acks.iter().map(ToldAcks::group).collect();
        Frame::Exchange(Exchange { segments, acks, ..self.0.rest.clone() }).encode()
    }
}
