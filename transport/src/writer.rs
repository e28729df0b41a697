//! One task per stream writes all that waits for it, again and again.
//!
//! Self-clocking, without a timer: while a write is under way (the network is slower, or the task
//! just has not run yet) the next frames gather, and leave in one write. When told to stop it
//! writes what is left and waits until the peer has it.

use crate::frame::Gather;
use crate::shared::stopped;
use crate::stats::{LaneStats, Stats};
use quinn::{SendStream, WriteError};
use std::sync::Arc;
use tokio::sync::{Notify, watch};

/// A queue that a writer empties.
pub(crate) trait Source: Send + Sync + 'static {
    /// Lays what waits into `into`, until that is full, and says how many frames these were. A call
    /// also means that what the last call gave has been handed to QUIC.
    fn gather(&self, into: &mut Gather) -> usize;

    /// Is notified whenever something comes into the empty queue.
    fn ready(&self) -> &Notify;
}

/// Writes until the stream breaks, or until `stop` says so and all is written and acknowledged.
pub(crate) async fn write(
    source: Arc<impl Source>,
    mut stream: SendStream,
    stats: Arc<Stats>,
    lane: fn(&Stats) -> &LaneStats,
    mut stop: watch::Receiver<bool>,
) -> Result<(), WriteError> {
    let mut gather = Gather::default();
    loop {
        let frames = source.gather(&mut gather);
        if frames > 0 {
            let lane = lane(&stats);
            lane.frames_sent.add(frames as u64);
            lane.bytes_sent.add(gather.bytes() as u64);
            lane.writes.count();
            stream.write_all_chunks(gather.pieces()).await?;
            gather.clear();
            continue;
        }
        if *stop.borrow() || stop.has_changed().is_err() {
            // An error means that it was finished or stopped before: there is nothing to wait for
            // then.
            if stream.finish().is_ok() {
                let _ = stream.stopped().await;
            }
            return Ok(());
        }
        tokio::select! {
            () = source.ready().notified() => {}
            () = stopped(&mut stop) => {}
        }
    }
}
