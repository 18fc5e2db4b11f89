//! Frames that stay in the process.
//!
//! Nine tenths of the time that a simulation of a thousand nodes spends on frames goes into
//! copying records into bytes and out of them again. A [`Passed`] frame holds the very segments of
//! the sender's ledger; its length is the one that its bytes would have, so traffic is counted as
//! ever. Such segments were checked by the node that tells them: frames are passed between honest
//! nodes only.

use std::sync::Arc;

use crate::codec::{encoded_len, varint_len};
use crate::ledger::Told;
use crate::message::{Exchange, Frame};

/// A frame of an exchange as a value.
#[derive(Clone, Debug)]
pub struct Passed(Arc<Parts>);

/// Behind one pointer, as it lies in queues together with small things.
#[derive(Clone, Debug)]
struct Parts {
    /// Everything but the segments.
    rest: Exchange,
    segments: Vec<Told>,
    encoded_len: usize,
}

impl Passed {
    pub(super) fn new(rest: Exchange, segments: Vec<Told>) -> Passed {
        assert!(rest.segments.is_empty(), "segments are passed beside the exchange");
        let frame = Frame::Exchange(rest);
        let bare = encoded_len(&frame) - varint_len(0);
        let told: usize = segments.iter().map(Told::encoded_len).sum();
        let encoded_len = bare + varint_len(segments.len()) + told;
        let Frame::Exchange(rest) = frame else { unreachable!("made above") };
        Passed(Arc::new(Parts { rest, segments, encoded_len }))
    }

    pub(super) fn into_parts(self) -> (Exchange, Vec<Told>) {
        let Parts { rest, segments, .. } = Arc::unwrap_or_clone(self.0);
        (rest, segments)
    }

    /// The length of [`Passed::encode`], which it is counted as.
    pub fn encoded_len(&self) -> usize {
        self.0.encoded_len
    }

    /// The frame's bytes, as a protocol that passes no frames would send them.
    pub fn encode(&self) -> Vec<u8> {
        let segments = self.0.segments.iter().map(Told::delta).collect();
        Frame::Exchange(Exchange { segments, ..self.0.rest.clone() }).encode()
    }
}
