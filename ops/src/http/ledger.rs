//! The ledger of one connection: the answers that its client has not taken, and by when it must go on with them.
//!
//! **A client that does not take its answers** is noticed by time. In HTTP/1.1 the socket tells
//! whether it takes anything; in HTTP/2 it does not, since a stream can stand still, with a window of 0, while pings go on. So there
//! something must be taken of what is ready within each `write_timeout`, and by each answer within that and the time that the others
//! need for their steps at the least rate, since streams share what the connection can do. In both, what the connection owes, over all
//! of its answers, must be taken at `client_bytes_per_second_min`, beyond one `write_timeout`. When the first of these times passes,
//! the connection is closed.

use super::leash::now_ms;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The largest piece that a stream of HTTP/2 is given at once: it asks for the next one when the client's window lets it go on.
pub(super) const STEP_BYTES: usize = 64 << 10;

/// The answers of one connection that were not taken, and by when they must be. Times are milliseconds since it began.
pub(super) struct Ledger {
    begun: Instant,
    open: Mutex<Open>,
    /// When the first of its times passes.
    due: AtomicU64,
    /// When the client last took something, on the clock of [`now_ms`].
    taken_at: AtomicU64,
}

/// What a [`Ledger`] has.
#[derive(Default)]
struct Open {
    answers: Vec<Answer>,
    /// The number of the next one.
    next: u64,
    /// Bytes of them all.
    owed: u64,
    /// When those would be taken at the least rate; who is faster for a while earns nothing by it.
    paid_at: u64,
    /// When one of them last went on, or there came to be one.
    moved_at: u64,
    patience: Option<Patience>,
}

/// An answer on its way.
struct Answer {
    number: u64,
    /// By when it must go on where there is no other one.
    due: u64,
    /// Bytes of the part that is under way.
    bytes: u64,
    /// We make the next part.
    is_made: bool,
}

/// How long a client may take.
#[derive(Clone, Copy)]
pub(super) struct Patience {
    /// For one step: `write_timeout`.
    pub(super) step: Duration,
    /// For us to make the next part of a stream: `request_timeout`.
    pub(super) making: Duration,
    /// Bytes per second that it must take on average.
    pub(super) rate_min: u64,
    /// Whether answers go out in steps, as in HTTP/2.
    pub(super) steps: bool,
}

impl Patience {
    /// How long so many bytes may take.
    fn time_of(&self, bytes: u64) -> u64 {
        bytes.saturating_mul(1000) / self.rate_min
    }

    /// When an answer that goes on now must go on again.
    fn due(&self, now: u64) -> u64 {
        if self.steps { now + self.step.as_millis() as u64 } else { u64::MAX }
    }
}

impl Open {
    /// When the client is too slow, unless it takes something before.
    fn due(&self) -> u64 {
        let Some(patience) = self.patience else { return u64::MAX };
        let Some(first) = self.answers.iter().map(|answer| answer.due).min() else { return u64::MAX };
        let others = patience.time_of((self.answers.len() as u64 - 1) * STEP_BYTES as u64);
        let step = patience.step.as_millis() as u64;
        let stalled = if patience.steps && self.waits() { self.moved_at + step } else { u64::MAX };
        let slow = if self.owed > 0 { self.paid_at + step } else { u64::MAX };
        first.saturating_add(others).min(stalled).min(slow)
    }

    /// Whether any answer waits for the client.
    fn waits(&self) -> bool {
        self.answers.iter().any(|answer| !answer.is_made)
    }

    /// So many bytes less are owed.
    fn pay(&mut self, bytes: u64, now: u64) {
        self.owed -= bytes;
        let time = self.patience.map_or(0, |patience| patience.time_of(self.owed));
        self.paid_at = self.paid_at.min(now + time);
    }
}

impl Ledger {
    pub(super) fn new(begun: Instant) -> Self {
        Self { begun, open: Mutex::default(), due: AtomicU64::new(u64::MAX), taken_at: AtomicU64::new(0) }
    }

    /// When the client is too slow, unless it takes something before.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.due.load(Relaxed) {
            u64::MAX => None,
            due => Some(self.begun + Duration::from_millis(due)),
        }
    }

    /// Whether there are no answers that were not taken.
    pub(super) fn is_empty(&self) -> bool {
        self.open().answers.is_empty()
    }

    /// Whether the next part of an answer is being made.
    pub(super) fn is_made_for(&self) -> bool {
        self.open().answers.iter().any(|answer| answer.is_made)
    }

    /// When the client last took something.
    pub(super) fn taken_at(&self) -> u64 {
        self.taken_at.load(Relaxed)
    }

    /// One more answer; its number.
    pub(super) fn enter(&self, patience: Patience) -> u64 {
        self.change(|open, now| {
            if !open.waits() {
                open.moved_at = now;
            }
            open.patience = Some(patience);
            let number = open.next;
            open.next += 1;
            open.answers.push(Answer { number, due: now + patience.step.as_millis() as u64, bytes: 0, is_made: false });
            number
        })
    }

    /// A part of an answer is there.
    pub(super) fn begin(&self, number: u64, bytes: u64) {
        self.with(number, |open, at, patience, now| {
            if !open.waits() {
                open.moved_at = now;
            }
            open.owed += bytes;
            open.paid_at = open.paid_at.max(now) + patience.time_of(bytes);
            open.answers[at] = Answer { number, due: patience.due(now), bytes, is_made: false };
        });
    }

    /// So many bytes of a part were taken, and it goes on.
    pub(super) fn step(&self, number: u64, taken: u64) {
        self.taken_at.store(now_ms(), Relaxed);
        self.with(number, |open, at, patience, now| {
            open.moved_at = now;
            open.answers[at].bytes -= taken;
            open.answers[at].due = patience.due(now);
            open.pay(taken, now);
        });
    }

    /// A part was taken, and we make the next one.
    pub(super) fn make(&self, number: u64) {
        self.with(number, |open, at, patience, now| {
            if open.answers[at].is_made {
                return;
            }
            self.taken_at.store(now_ms(), Relaxed);
            open.moved_at = now;
            open.pay(open.answers[at].bytes, now);
            let due = now + (patience.making + patience.step).as_millis() as u64;
            open.answers[at] = Answer { number, due, bytes: 0, is_made: true };
        });
    }

    /// There is no next part.
    pub(super) fn end(&self, number: u64) {
        self.with(number, |open, at, patience, now| {
            open.answers[at].is_made = false;
            open.answers[at].due = now + patience.step.as_millis() as u64;
        });
    }

    /// An answer was taken, or given up.
    pub(super) fn leave(&self, number: u64) {
        self.taken_at.store(now_ms(), Relaxed);
        self.with(number, |open, at, _, now| {
            let answer = open.answers.swap_remove(at);
            open.pay(answer.bytes, now);
        });
    }

    fn with(&self, number: u64, change: impl FnOnce(&mut Open, usize, Patience, u64)) {
        self.change(|open, now| {
            let at = open.answers.iter().position(|answer| answer.number == number);
            if let (Some(at), Some(patience)) = (at, open.patience) {
                change(open, at, patience, now);
            }
        });
    }

    fn change<T>(&self, change: impl FnOnce(&mut Open, u64) -> T) -> T {
        let now = self.begun.elapsed().as_millis() as u64;
        let mut open = self.open();
        let result = change(&mut open, now);
        self.due.store(open.due(), Relaxed);
        result
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::body::{Body, Piece};
    use super::super::owed::Sent;
    use super::*;
    use bytes::Bytes;
    use http_body_util::BodyExt;
    use std::sync::Arc;

    const PATIENCE: Patience =
        Patience { step: Duration::from_secs(30), making: Duration::from_secs(5), rate_min: 1 << 20, steps: true };

    fn near(ledger: &Ledger, seconds: u32) {
        let due = ledger.deadline().expect("a deadline") - ledger.begun;
        assert!(due.abs_diff(Duration::from_secs(1) * seconds) <= Duration::from_secs(1), "{due:?}, and not {seconds} s");
    }

    fn next(sent: &mut Sent) -> Option<Bytes> {
        let frame = futures_util::FutureExt::now_or_never(sent.frame()).expect("no frame")?;
        Some(frame.unwrap().into_data().unwrap())
    }

    #[test]
    fn an_answer_is_due_a_step_after_its_last_one_and_as_a_whole() {
        let ledger = Arc::new(Ledger::new(Instant::now()));
        let large = Body::Full(Piece::from(Bytes::from(vec![0; 2 << 20])));
        let mut sent = Sent::new(large, None, &ledger, PATIENCE);
        near(&ledger, 30);
        next(&mut sent);
        near(&ledger, 30);
        // Without steps the whole of 2 MiB is due, at 1 MiB/s.
        let ledger = Arc::new(Ledger::new(ledger.begun));
        let held = Piece { bytes: vec![0; 2 << 20].into(), held: None };
        let stream: Body = Body::Stream(Box::pin(futures_util::stream::iter([held])));
        let mut sent = Sent::new(stream, None, &ledger, Patience { steps: false, ..PATIENCE });
        next(&mut sent);
        near(&ledger, 32);
        assert!(next(&mut sent).is_none());
        near(&ledger, 30);
        drop(sent);
        assert_eq!(ledger.deadline(), None);
    }

    #[test]
    fn streams_share_the_least_rate_and_who_takes_nothing_of_any_is_noticed() {
        let ledger = Arc::new(Ledger::new(Instant::now()));
        let patience = Patience { rate_min: 64 << 10, ..PATIENCE };
        let large = || Sent::new(Body::Full(Piece::from(Bytes::from(vec![0; 1 << 20]))), None, &ledger, patience);
        let mut streams: Vec<_> = (0..100).map(|_| large()).collect();
        let mut taken: Vec<_> = streams.iter_mut().map(next).collect();
        near(&ledger, 30);
        // Some time later a few of them have gone on; for the others 100 steps are not too many.
        let later = |open: &mut Open, seconds: u64| open.moved_at += seconds * 1000;
        ledger.change(|open, _| later(open, 60));
        near(&ledger, 90);
        ledger.change(|open, _| later(open, 600));
        near(&ledger, 30 + 99);
        // One alone has the least rate for itself.
        taken.truncate(1);
        streams.truncate(1);
        ledger.change(|open, _| open.answers[0].due = u64::MAX);
        near(&ledger, 30 + 16);
        for _ in 0..8 {
            taken.push(next(&mut streams[0]));
        }
        ledger.change(|open, _| (open.answers[0].due, open.moved_at) = (u64::MAX, u64::MAX / 2));
        near(&ledger, 30 + 8);
    }

    #[test]
    fn a_part_that_is_made_is_waited_for_by_the_client() {
        let ledger = Arc::new(Ledger::new(Instant::now()));
        let parts = futures_util::stream::iter([Piece::from(Bytes::from_static(b"part"))]);
        let never = futures_util::StreamExt::chain(parts, futures_util::stream::pending());
        let mut sent = Sent::new(Body::Stream(Box::pin(never)), None, &ledger, Patience { steps: false, ..PATIENCE });
        next(&mut sent);
        assert!(!ledger.is_made_for());
        assert!(futures_util::FutureExt::now_or_never(sent.frame()).is_none());
        assert!(ledger.is_made_for());
        near(&ledger, 35);
        drop(sent);
        assert!(!ledger.is_made_for() && ledger.is_empty());
    }
}
