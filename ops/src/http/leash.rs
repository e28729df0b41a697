//! What the server and one of its connections know of each other: what the server wants, and what the connection is doing.

use super::owed::Ledger;
use futures_util::task::AtomicWaker;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, LazyLock};
use std::task::Context;
use std::time::Instant;

/// Where times are counted from, so that those of all connections can be compared.
static BEGUN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Milliseconds, on the clock of [`Leash::standing`].
pub(super) fn now_ms() -> u64 {
    BEGUN.elapsed().as_millis() as u64
}

/// A connection as the server holds it.
pub(super) struct Leash {
    phase: AtomicU8,
    waker: AtomicWaker,
    /// Requests that are being answered.
    requests: AtomicU32,
    /// Those of them whose body is still to come.
    waiting: AtomicU32,
    /// When a request was last answered, or the connection began.
    served_at: AtomicU64,
    /// The answers that the client has not taken.
    pub(super) ledger: Arc<Ledger>,
}

/// What a connection that could be closed is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Standing {
    /// Nothing.
    Idle,
    /// It sends a body or takes an answer; the server has nothing to do for it.
    Waiting,
}

impl Default for Leash {
    fn default() -> Self {
        Self {
            phase: AtomicU8::new(0),
            waker: AtomicWaker::new(),
            requests: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            served_at: AtomicU64::new(now_ms()),
            ledger: Arc::new(Ledger::new(Instant::now())),
        }
    }
}

impl Leash {
    /// Finish what is in flight, take nothing more.
    pub(super) const FINISH: u8 = 1;
    /// Drop everything.
    pub(super) const DROP: u8 = 2;

    /// Tells the connection.
    pub(super) fn pull(&self, phase: u8) {
        self.phase.fetch_max(phase, SeqCst);
        self.waker.wake();
    }

    /// What the server wants; it wakes the task when that changes.
    pub(super) fn phase(&self, cx: &Context<'_>) -> u8 {
        self.waker.register(cx.waker());
        self.phase.load(SeqCst)
    }

    /// A request came.
    pub(super) fn called(&self) {
        self.requests.fetch_add(1, Relaxed);
    }

    /// A request was answered, or given up.
    pub(super) fn answered(&self) {
        self.served_at.store(now_ms(), Relaxed);
        self.requests.fetch_sub(1, Relaxed);
    }

    /// A body is waited for.
    pub(super) fn wait(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Relaxed);
        Waiting(self)
    }

    /// What it is doing, and since when it has not been served; `None` while the server works for it.
    pub(super) fn standing(&self) -> Option<(Standing, u64)> {
        let (requests, waiting) = (self.requests.load(Relaxed), self.waiting.load(Relaxed));
        if requests > waiting {
            return None;
        }
        let standing = if requests == 0 && self.ledger.is_empty() { Standing::Idle } else { Standing::Waiting };
        Some((standing, self.served_at.load(Relaxed)))
    }
}

/// A body that is waited for.
pub(super) struct Waiting<'a>(&'a Leash);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_can_be_closed_unless_the_server_works_for_it() {
        let leash = Leash::default();
        assert_eq!(leash.standing().unwrap().0, Standing::Idle);
        leash.called();
        assert_eq!(leash.standing(), None);
        let body = leash.wait();
        assert_eq!(leash.standing().unwrap().0, Standing::Waiting);
        leash.called();
        assert_eq!(leash.standing(), None);
        drop(body);
        leash.answered();
        leash.answered();
        assert_eq!(leash.standing().unwrap().0, Standing::Idle);
    }
}
