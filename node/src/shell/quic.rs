//! Threads of their own for what passes between nodes.
//!
//! A task of the runtime runs when those in front of it have. Where clients send large bodies,
//! hundreds of tasks are ready at any time, each with a millisecond of copying to do, and QUIC,
//! which hands out a few packets and goes to the end of the line, would come to a crawl just when
//! there is most to send: heartbeats come too late, leaders step down, connections count as lost.
//! On threads of its own it waits for nobody but the processor, and the system sees to it that a
//! thread which mostly waits runs soon.

use tokio::runtime::{Builder, EnterGuard, Runtime};

/// The threads; they end when this is dropped.
pub(super) struct QuicThreads(Option<Runtime>);

impl QuicThreads {
    /// Half as many as serve HTTP, but one at least.
    pub(super) fn start(http_threads: usize) -> std::io::Result<Self> {
        let threads = (http_threads / 2).max(1);
        Ok(Self(Some(
            Builder::new_multi_thread()
                .worker_threads(threads)
                .thread_name("quic")
                .enable_all()
                .build()?,
        )))
    }

    /// What is started while the guard is there runs on them.
    pub(super) fn enter(&self) -> EnterGuard<'_> {
        self.0.as_ref().expect("taken only when dropped").enter()
    }
}

impl Drop for QuicThreads {
    fn drop(&mut self) {
        // Not by waiting: this may be a thread of the other runtime, which must not stand still.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
