//! The bounded queue between [`send`](super::Behaviour::send) and a connection's task.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};
use std::task::{Context, Waker};

use super::frame;

/// Frames waiting for one connection. The swarm's task fills it, the connection's task empties it.
#[derive(Debug)]
pub(super) struct Outbox {
    queue: Mutex<Queue>,
    frames_max: usize,
    bytes_max: usize,
}

#[derive(Debug, Default)]
struct Queue {
    frames: VecDeque<Vec<u8>>,
    /// Bytes of `frames`.
    bytes: usize,
    /// Frames and bytes that the connection took and has not yet flushed. They still count
    /// against the bounds, else a peer that reads nothing gains one batch per poll.
    in_flight: (usize, usize),
    finishing: bool,
    /// The connection's task, when it found nothing to take.
    waker: Option<Waker>,
}

/// What a connection found when it asked for more to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// This many frames were appended to the buffer.
    Frames(usize),
    /// Nothing now; the task is woken when there is.
    Nothing,
    /// Nothing ever again: the stream may be closed.
    Finished,
}

impl Outbox {
    pub(super) fn new(frames_max: usize, bytes_max: usize) -> Self {
        Self { queue: Mutex::default(), frames_max, bytes_max }
    }

    /// Queues a frame, or gives back how many frames and bytes already wait.
    pub(super) fn push(&self, frame: Vec<u8>) -> Result<(), (usize, usize)> {
        let mut queue = self.lock();
        let frames = queue.frames.len() + queue.in_flight.0;
        let bytes = queue.bytes + queue.in_flight.1;
        if frames >= self.frames_max || bytes + frame.len() > self.bytes_max || queue.finishing {
            return Err((frames, bytes));
        }
        queue.bytes += frame.len();
        queue.frames.push_back(frame);
        if let Some(waker) = queue.waker.take() {
            drop(queue);
            waker.wake();
        }
        Ok(())
    }

    /// Moves frames to the end of `buffer` until it holds `len_min` bytes or none is left.
    pub(super) fn take(&self, buffer: &mut Vec<u8>, len_min: usize, cx: &Context<'_>) -> Taken {
        let mut queue = self.lock();
        let mut taken = 0;
        while buffer.len() < len_min {
            let Some(next) = queue.frames.pop_front() else { break };
            queue.bytes -= next.len();
            queue.in_flight.0 += 1;
            queue.in_flight.1 += next.len();
            frame::encode(&next, buffer);
            taken += 1;
        }
        if taken > 0 {
            Taken::Frames(taken)
        } else if queue.finishing {
            Taken::Finished
        } else {
            queue.waker = Some(cx.waker().clone());
            Taken::Nothing
        }
    }

    /// What was taken has been flushed to the transport.
    pub(super) fn flushed(&self) {
        self.lock().in_flight = (0, 0);
    }

    /// Takes no further frames; the stream is closed after the last one.
    pub(super) fn finish(&self) {
        let mut queue = self.lock();
        queue.finishing = true;
        if let Some(waker) = queue.waker.take() {
            drop(queue);
            waker.wake();
        }
    }

    /// Frames queued and not yet flushed.
    pub(super) fn len(&self) -> usize {
        let queue = self.lock();
        queue.frames.len() + queue.in_flight.0
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("no code panics while it holds the queue")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cx() -> Context<'static> {
        Context::from_waker(Waker::noop())
    }

    #[test]
    fn frames_in_flight_still_count() {
        let outbox = Outbox::new(2, 100);
        outbox.push(vec![1; 10]).unwrap();
        outbox.push(vec![2; 10]).unwrap();
        assert_eq!(outbox.push(vec![3; 10]), Err((2, 20)));
        let mut buffer = Vec::new();
        assert_eq!(outbox.take(&mut buffer, 1000, &cx()), Taken::Frames(2));
        assert_eq!(outbox.push(vec![3; 10]), Err((2, 20)));
        outbox.flushed();
        outbox.push(vec![3; 10]).unwrap();
    }

    #[test]
    fn bytes_are_bounded() {
        let outbox = Outbox::new(100, 25);
        outbox.push(vec![1; 20]).unwrap();
        assert_eq!(outbox.push(vec![2; 6]), Err((1, 20)));
        outbox.push(vec![2; 5]).unwrap();
    }

    #[test]
    fn finishing_lets_the_queue_run_out_first() {
        let outbox = Outbox::new(10, 100);
        outbox.push(vec![1]).unwrap();
        outbox.finish();
        assert!(outbox.push(vec![2]).is_err());
        let mut buffer = Vec::new();
        assert_eq!(outbox.take(&mut buffer, 1000, &cx()), Taken::Frames(1));
        assert_eq!(outbox.take(&mut Vec::new(), 1000, &cx()), Taken::Finished);
    }
}
