//! The lengths in front of frames on a stream, however it is cut. The decoder is the node's own file:
//! the node itself would bring libp2p into every target.
#![no_main]
#![allow(dead_code)]

// Modules written inside one another are looked for in folders of their names, which are not there.
#[path = "."]
mod net {
    #[path = "."]
    pub(crate) mod exchange {
        #[path = "../../../node/src/net/exchange/frame.rs"]
        pub(crate) mod frame;

        /// Reads a stream in pieces: whatever the cuts, the frames are the same.
        pub(crate) fn check(bytes: &[u8]) {
            let Some((&piece, stream)) = bytes.split_first() else { return };
            let read = |piece: usize| {
                let mut decoder = frame::FrameDecoder::new(1 << 16);
                let mut frames = std::collections::VecDeque::new();
                let ended = stream.chunks(piece).try_for_each(|part| decoder.feed(part, &mut frames));
                (ended.is_ok(), frames)
            };
            let (good, frames) = read(usize::from(piece) + 1);
            assert_eq!((good, &frames), (read(stream.len().max(1)).0, &read(1).1));
            let mut again = Vec::new();
            frames.iter().for_each(|frame| frame::encode(frame, &mut again));
            assert!(stream.starts_with(&again), "frames are written as they were read");
        }
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| net::exchange::check(bytes));
