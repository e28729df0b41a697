//! What waits for one lane to one peer. Bounded in bytes; when it is full, or there is no
//! connection, a frame is dropped.
//!
//! Dropping is right for raft messages: raft sends again what is not acknowledged, and a message
//! that waited for seconds is worth less than a new one. The bytes of the write under way count, so
//! the bound is on all that has not reached QUIC.

use crate::frame::{Gather, LENGTH_BYTES};
use crate::writer::Source;
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};
use tokio::sync::Notify;

/// The queue of one lane to one peer.
pub(crate) struct Outbox {
    state: Mutex<State>,
    ready: Notify,
    bytes_max: usize,
    frame_bytes_max: usize,
}

#[derive(Default)]
struct State {
    /// Whether there is a connection whose writer empties the queue.
    open: bool,
    frames: VecDeque<Bytes>,
    /// Bytes of `frames` and of the write under way.
    bytes: usize,
    /// Bytes of the write under way.
    writing_bytes: usize,
}

/// A frame that did not get into the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dropped {
    /// There is no connection.
    Closed,
    /// Too much waits already.
    Full,
    /// It is larger than any frame may be.
    TooLarge,
}

impl Outbox {
    /// A closed one.
    pub(crate) fn new(bytes_max: usize, frame_bytes_max: usize) -> Self {
        Self { state: Mutex::default(), ready: Notify::new(), bytes_max, frame_bytes_max }
    }

    /// Puts a frame behind the others, from any thread, without ever waiting for the network.
    pub(crate) fn push(&self, frame: Bytes) -> Result<(), Dropped> {
        if frame.len() > self.frame_bytes_max {
            return Err(Dropped::TooLarge);
        }
        let mut state = self.lock();
        if !state.open {
            return Err(Dropped::Closed);
        }
        let bytes = frame.len() + LENGTH_BYTES;
        // A frame is always taken when nothing else waits: frame_bytes_max is what bounds it then.
        if state.bytes > 0 && state.bytes + bytes > self.bytes_max {
            return Err(Dropped::Full);
        }
        state.bytes += bytes;
        let was_empty = state.frames.is_empty();
        state.frames.push_back(frame);
        drop(state);
        if was_empty {
            self.ready.notify_one();
        }
        Ok(())
    }

    /// A writer is there from now on.
    pub(crate) fn open(&self) {
        self.lock().open = true;
    }

    /// The writer is gone; says how many frames and bytes still waited, which are dropped.
    pub(crate) fn close(&self) -> (usize, usize) {
        let state = std::mem::take(&mut *self.lock());
        (state.frames.len(), state.frames.iter().map(Bytes::len).sum())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds an outbox")
    }
}

impl Source for Outbox {
    fn gather(&self, into: &mut Gather) -> usize {
        let mut state = self.lock();
        state.bytes -= state.writing_bytes;
        state.writing_bytes = 0;
        let mut frames = 0;
        while !into.is_full() {
            let Some(frame) = state.frames.pop_front() else { break };
            into.frame(frame.len());
            into.payload(&frame);
            frames += 1;
        }
        state.writing_bytes = into.bytes();
        frames
    }

    fn ready(&self) -> &Notify {
        &self.ready
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(bytes: usize) -> Bytes {
        vec![0; bytes].into()
    }

    #[test]
    fn without_a_connection_everything_is_dropped() {
        let outbox = Outbox::new(1000, 100);
        assert_eq!(outbox.push(frame(1)), Err(Dropped::Closed));
        outbox.open();
        assert_eq!(outbox.push(frame(1)), Ok(()));
        assert_eq!(outbox.push(frame(2)), Ok(()));
        assert_eq!(outbox.close(), (2, 3));
        assert_eq!(outbox.push(frame(1)), Err(Dropped::Closed));
    }

    #[test]
    fn the_write_under_way_counts_until_it_is_done() {
        let outbox = Outbox::new(20, 16);
        outbox.open();
        assert_eq!(outbox.push(frame(17)), Err(Dropped::TooLarge));
        assert_eq!(outbox.push(frame(10)), Ok(()));
        assert_eq!(outbox.push(frame(10)), Err(Dropped::Full));
        let mut gather = Gather::default();
        assert_eq!(outbox.gather(&mut gather), 1);
        assert_eq!(outbox.push(frame(10)), Err(Dropped::Full), "the write is still under way");
        gather.clear();
        assert_eq!(outbox.gather(&mut gather), 0);
        assert_eq!(outbox.push(frame(10)), Ok(()));
    }

    #[test]
    fn one_write_takes_many_small_frames_and_few_large_ones() {
        let outbox = Outbox::new(64 << 20, 16 << 20);
        outbox.open();
        for _ in 0..100 {
            outbox.push(frame(100)).unwrap();
        }
        let mut gather = Gather::default();
        assert_eq!(outbox.gather(&mut gather), 100);
        gather.clear();
        for _ in 0..3 {
            outbox.push(frame(1 << 20)).unwrap();
        }
        assert_eq!(outbox.gather(&mut gather), 1);
        assert_eq!(gather.bytes(), (1 << 20) + LENGTH_BYTES);
    }
}
