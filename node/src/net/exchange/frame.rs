//! Frames on a stream: a varint length, then that many bytes.
//!
//! The length is checked before anything is reserved for it, and memory grows only with the bytes
//! that arrived: a peer that announces a long frame and sends nothing costs a few kilobytes.

use std::collections::VecDeque;

/// Turns the bytes of a stream into frames, however they are cut.
#[derive(Debug)]
pub(super) struct FrameDecoder {
    frame_len_max: usize,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Inside the length: the bits so far and how many there are.
    Length { value: usize, bits: u32 },
    /// Inside the body, which ends at `len` bytes.
    Body { frame: Vec<u8>, len: usize },
}

/// Bytes that are no frame. What follows on the stream cannot be understood any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A length above the limit; nothing was reserved for it.
    #[error("frame of {len} bytes, at most {max} are allowed")]
    TooLong {
        /// The length announced.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// A length of more than four bytes, or written longer than necessary.
    #[error("frame length is not a short varint of at most four bytes")]
    BadLength,
    /// A frame of no bytes says nothing.
    #[error("empty frame")]
    Empty,
}

/// Four varint bytes of seven bits each.
pub(in super::super) const FRAME_LEN_LIMIT: usize = (1 << 28) - 1;

/// Reserved for a frame before its first byte has come.
const RESERVE_LEN: usize = 1024;

const START: State = State::Length { value: 0, bits: 0 };

impl FrameDecoder {
    pub(super) fn new(frame_len_max: usize) -> Self {
        assert!(frame_len_max <= FRAME_LEN_LIMIT, "a frame length fits four varint bytes");
        Self { frame_len_max, state: START }
    }

    /// Takes in `bytes` and appends the frames they complete. After an error, stop.
    pub(super) fn feed(
        &mut self,
        mut bytes: &[u8],
        frames: &mut VecDeque<Vec<u8>>,
    ) -> Result<(), FrameError> {
        while !bytes.is_empty() {
            match &mut self.state {
                State::Length { value, bits } => {
                    let byte = bytes[0];
                    bytes = &bytes[1..];
                    *value |= usize::from(byte & 0x7f) << *bits;
                    if byte & 0x80 != 0 {
                        *bits += 7;
                        if *bits > 21 {
                            return Err(FrameError::BadLength);
                        }
                        continue;
                    }
                    if byte == 0 && *bits > 0 {
                        return Err(FrameError::BadLength);
                    }
                    let len = *value;
                    if len == 0 {
                        return Err(FrameError::Empty);
                    }
                    if len > self.frame_len_max {
                        return Err(FrameError::TooLong { len, max: self.frame_len_max });
                    }
                    self.state =
                        State::Body { frame: Vec::with_capacity(len.min(RESERVE_LEN)), len };
                }
                State::Body { frame, len } => {
                    let missing = *len - frame.len();
                    let taken = missing.min(bytes.len());
                    if frame.capacity() - frame.len() < taken {
                        // Doubling, but never past the frame's end.
                        frame.reserve_exact(frame.len().max(taken).min(missing));
                    }
                    frame.extend_from_slice(&bytes[..taken]);
                    bytes = &bytes[taken..];
                    if taken == missing {
                        frames.push_back(std::mem::take(frame));
                        self.state = START;
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether the stream may end here without cutting a frame.
    pub(super) fn is_between_frames(&self) -> bool {
        matches!(self.state, State::Length { bits: 0, .. })
    }
}

/// Appends `frame` with its length in front.
pub(super) fn encode(frame: &[u8], out: &mut Vec<u8>) {
    let mut len = frame.len();
    while len >= 0x80 {
        out.push(len as u8 | 0x80);
        len >>= 7;
    }
    out.push(len as u8);
    out.extend_from_slice(frame);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(bytes: &[u8], frame_len_max: usize) -> Result<Vec<Vec<u8>>, FrameError> {
        let mut frames = VecDeque::new();
        FrameDecoder::new(frame_len_max).feed(bytes, &mut frames)?;
        Ok(frames.into())
    }

    #[test]
    fn frames_survive_any_cut() {
        let sent: Vec<Vec<u8>> = [1, 2, 127, 128, 129, 5000].map(|len| vec![len as u8; len]).into();
        let mut bytes = Vec::new();
        sent.iter().for_each(|frame| encode(frame, &mut bytes));
        for cut in [1, 2, 3, 7, 1000, bytes.len()] {
            let mut decoder = FrameDecoder::new(5000);
            let mut frames = VecDeque::new();
            for piece in bytes.chunks(cut) {
                decoder.feed(piece, &mut frames).unwrap();
            }
            assert_eq!(Vec::from(frames), sent, "pieces of {cut} bytes");
            assert!(decoder.is_between_frames());
        }
    }

    #[test]
    fn a_long_frame_is_refused_at_its_length() {
        assert_eq!(decode(&[0x81, 0x01], 128), Err(FrameError::TooLong { len: 129, max: 128 }));
    }

    #[test]
    fn a_length_has_one_spelling() {
        assert_eq!(decode(&[0x81, 0x00], 128), Err(FrameError::BadLength));
        assert_eq!(decode(&[0x80, 0x80, 0x80, 0x80], 128), Err(FrameError::BadLength));
        assert_eq!(decode(&[0x00], 128), Err(FrameError::Empty));
    }

    #[test]
    fn an_announced_frame_reserves_little() {
        let mut decoder = FrameDecoder::new(1 << 20);
        decoder.feed(&[0x80, 0x80, 0x40, 1, 2, 3], &mut VecDeque::new()).unwrap();
        let State::Body { frame, len } = decoder.state else { panic!("inside the body") };
        assert_eq!(len, 1 << 20);
        assert!(frame.capacity() <= 2 * RESERVE_LEN);
    }

    #[test]
    fn arbitrary_bytes_never_panic() {
        for seed in 0..200u32 {
            let bytes: Vec<u8> = (0..400u32)
                .map(|i| {
                    (seed.wrapping_mul(2_654_435_761) ^ i.wrapping_mul(40_503)).to_le_bytes()[1]
                })
                .collect();
            let _ = decode(&bytes, 64);
        }
    }
}
