//! What the server and one of its connections know of each other: what the server wants, and what
//! the connection is doing.

use super::ledger::Ledger;
use futures_util::task::AtomicWaker;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, LazyLock};
use std::task::Context;
use std::time::{Duration, Instant};

/// Where times are counted from, so that those of all connections can be compared.
static BEGUN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Milliseconds, on the clock of [`Leash::standing`].
pub(super) fn now_ms() -> u64 {
    BEGUN.elapsed().as_millis() as u64
}

/// A time on that clock.
pub(super) fn instant(ms: u64) -> Instant {
    *BEGUN + Duration::from_millis(ms)
}

/// A connection as the server holds it.
pub(super) struct Leash {
    phase: AtomicU8,
    waker: AtomicWaker,
    /// Requests that are being answered.
    requests: AtomicU32,
    /// Those of them whose body is still to come.
    waiting: AtomicU32,
    /// When the client last did its part, or got its answer: the connection or a request began, a
    /// body came on. Who has bodies to send does its part by sending them, and not by asking for
    /// more.
    served_at: AtomicU64,
    /// Bytes of bodies that came, and when the last of them did.
    arrived: AtomicU64,
    arrived_at: AtomicU64,
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
            arrived: AtomicU64::new(0),
            arrived_at: AtomicU64::new(0),
            ledger: Arc::default(),
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
        self.serve();
        self.requests.fetch_add(1, Relaxed);
    }

    /// A request was answered, or given up.
    pub(super) fn answered(&self) {
        self.serve();
        self.requests.fetch_sub(1, Relaxed);
    }

    fn serve(&self) {
        if self.bodies() == 0 {
            self.served_at.store(now_ms(), Relaxed);
        }
    }

    /// A body is waited for.
    pub(super) fn wait(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Relaxed);
        Waiting(self)
    }

    /// Bytes of a body came, for which a client has so many milliseconds at the least rate. Who
    /// sends as slowly as may be is not left alone for longer than who sends nothing.
    pub(super) fn arrived(&self, bytes: usize, allowed_ms: u64) {
        let now = now_ms();
        self.arrived.fetch_add(bytes as u64, Relaxed);
        self.arrived_at.store(now, Relaxed);
        self.served_at.fetch_max((self.served_at.load(Relaxed) + allowed_ms).min(now), Relaxed);
    }

    /// How many bytes of bodies came in all, and when the last of them did.
    pub(super) fn arrivals(&self) -> (u64, Instant) {
        (self.arrived.load(Relaxed), instant(self.arrived_at.load(Relaxed)))
    }

    /// How many bodies are waited for.
    pub(super) fn bodies(&self) -> u32 {
        self.waiting.load(Relaxed)
    }

    /// What it is doing, and since when it has not been served; `None` while the server works for
    /// it.
    pub(super) fn standing(&self) -> Option<(Standing, u64)> {
        let (requests, waiting) = (self.requests.load(Relaxed), self.waiting.load(Relaxed));
        if requests > waiting || self.ledger.is_made_for() {
            return None;
        }
        let (served, taken) = (self.served_at.load(Relaxed), self.ledger.kept_up());
        // It must do both: send what it has begun, and take what it asked for.
        Some(match (requests > 0, !self.ledger.is_empty()) {
            (false, false) => (Standing::Idle, served.max(taken)),
            (true, false) => (Standing::Waiting, served),
            (false, true) => (Standing::Waiting, taken),
            (true, true) => (Standing::Waiting, served.min(taken)),
        })
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
    use super::super::ledger::Patience;
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

    #[test]
    fn who_does_its_part_is_not_found_to_have_waited() {
        let leash = Leash::default();
        let since = || leash.standing().unwrap().1;
        let pause = || std::thread::sleep(Duration::from_millis(30));
        pause();
        let begun = now_ms();
        leash.called();
        let _body = leash.wait();
        assert!(since() >= begun, "a request began just now");
        pause();
        leash.arrived(1, 0);
        assert!(since() < begun + 25, "a byte now and then is not enough");
        leash.arrived(100_000, 3_000);
        assert!(since() >= begun + 30 && since() <= now_ms(), "a body came on");
    }
    #[test]
    fn who_asks_for_more_does_not_do_its_part_by_it() {
        let asks = |leash: &Leash| {
            let begun = now_ms();
            std::thread::sleep(Duration::from_millis(30));
            leash.called();
            leash.answered();
            let since = leash.standing().unwrap().1;
            (since > begun + 20, since)
        };
        let leash = Leash::default();
        assert!(asks(&leash).0, "nothing is owed");
        // An answer of which nothing is taken,
        let second = Duration::from_secs(1);
        let answer = leash.ledger.enter(Patience {
            step: second,
            making: second,
            rate_min: 1000,
            steps: true,
        });
        leash.ledger.begin(answer, 1000);
        let since = leash.standing().unwrap().1;
        assert_eq!(asks(&leash), (false, since));
        leash.ledger.took(answer, 10);
        assert_eq!(asks(&leash), (false, since + 10), "a little is no more than it is");
        leash.ledger.took(answer, 900);
        assert!(leash.standing().unwrap().1 >= since + 60);
        leash.ledger.leave(answer);
        assert!(asks(&leash).0);
        // and a body that does not come.
        leash.called();
        let _body = leash.wait();
        assert!(!asks(&leash).0);
    }
}
