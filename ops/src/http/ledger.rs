//! The ledger of one connection: the answers that its client has not taken, and by when it must go
//! on with them.
//!
//! What counts is bytes that left: each buffer tells when the socket takes some of it. What a
//! client asks for, its pings, and what its windows would allow are no progress.
//!
//! - **Something** must be taken within each `write_timeout` while anything is owed.
//! - **The least rate**: as long as a part of an answer is on its way, the connection must take
//!   `client_bytes_per_second_min`, of whatever answers, beyond one `write_timeout`. Who is faster
//!   for a while earns nothing by it.
//! - **Each answer** must go on within one `write_timeout` and the time that what the others owed
//!   needs at the least rate: streams of HTTP/2 share what the connection can do, and are served in
//!   whatever order. What counts of the others is the most that they owed at a time since this one
//!   went on: a stream with a window of 0 does not stand for ever, however many others come and go.
//! - **The next part of a stream** is made by us; a client has as long as that may take on top.
//!
//! When the first of these times passes, the connection is closed.

use super::leash::{instant, now_ms};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The answers of one connection that were not taken, and by when they must be. Times are those of
/// [`now_ms`].
pub(super) struct Ledger {
    open: Mutex<Open>,
    /// When the first of its times passes.
    due: AtomicU64,
}

/// What a [`Ledger`] has.
#[derive(Default)]
struct Open {
    answers: Vec<Answer>,
    /// The number of the next one.
    next: u64,
    /// Bytes of them all.
    owed: u64,
    /// When something of them was last taken, or came to be owed where nothing was.
    moved_at: u64,
    /// Bytes that were taken in all.
    taken: u64,
    /// When the client last was as fast as it must be, or owed nothing.
    even: Mark,
    patience: Option<Patience>,
}

/// A time, and what had been taken by then.
type Mark = (u64, u64);

/// An answer on its way.
struct Answer {
    number: u64,
    /// Bytes of it that are there and were not taken.
    bytes: u64,
    /// When the part that is under way began.
    begun: Mark,
    /// When it last went on.
    moved_at: u64,
    /// The most that the others owed at a time since.
    others: u64,
    /// We make the next part.
    is_made: bool,
}

/// How long a client may take.
#[derive(Clone, Copy)]
pub(super) struct Patience {
    /// To go on: `write_timeout`.
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
}

impl Answer {
    /// It has gone on.
    fn moved(&mut self, now: u64) {
        (self.moved_at, self.others) = (now, 0);
    }
}

impl Open {
    fn enter(&mut self, patience: Patience, now: u64) -> u64 {
        self.patience = Some(patience);
        let number = self.next;
        self.next += 1;
        self.answers.push(Answer {
            number,
            bytes: 0,
            begun: (now, self.taken),
            moved_at: now,
            others: 0,
            is_made: false,
        });
        number
    }

    fn begin(&mut self, at: usize, bytes: u64, now: u64) {
        if self.owed == 0 {
            self.moved_at = now;
        }
        let answer = &mut self.answers[at];
        if answer.bytes == 0 {
            answer.moved(now);
        }
        answer.bytes += bytes;
        answer.begun = (now, self.taken);
        answer.is_made = false;
        self.owed += bytes;
    }

    fn took(&mut self, at: usize, bytes: u64, now: u64) {
        self.answers[at].bytes -= bytes;
        self.answers[at].moved(now);
        self.owed -= bytes;
        self.taken += bytes;
        self.moved_at = now;
    }

    fn is_made(&mut self, at: usize, is_made: bool, now: u64) {
        let answer = &mut self.answers[at];
        if answer.is_made != is_made {
            answer.is_made = is_made;
            // What is left of the part before must still be taken.
            if answer.bytes == 0 {
                answer.moved(now);
            }
        }
    }

    fn leave(&mut self, at: usize) {
        // What is given up was not taken.
        self.owed -= self.answers.swap_remove(at).bytes;
    }

    /// Up to when the client has taken what it must. It is furthest behind with what began first.
    fn kept_up(&self) -> u64 {
        let first =
            self.answers.iter().filter(|answer| answer.bytes > 0).map(|answer| answer.begun).min();
        let (since, taken) = self.even.max(first.unwrap_or_default());
        since + self.patience.map_or(0, |patience| patience.time_of(self.taken - taken))
    }

    /// Changes something now. When the client is too slow, unless it takes something before.
    fn change<T>(&mut self, now: u64, change: impl FnOnce(&mut Self) -> T) -> (T, u64) {
        let result = change(self);
        let kept_up = self.kept_up();
        if self.owed == 0 || kept_up >= now {
            self.even = (now, self.taken);
        }
        let Some(patience) = self.patience else { return (result, u64::MAX) };
        let step = patience.step.as_millis() as u64;
        let mut due =
            if self.owed > 0 { kept_up.min(now).min(self.moved_at) + step } else { u64::MAX };
        for answer in &mut self.answers {
            answer.others = answer.others.max(self.owed - answer.bytes);
            let least = answer.moved_at + step;
            if least < due {
                let more = match answer {
                    Answer { bytes: 1.., others, .. } => patience.time_of(*others),
                    Answer { is_made: true, .. } => patience.making.as_millis() as u64,
                    _ => 0,
                };
                due = due.min(least.saturating_add(more));
            }
        }
        (result, due)
    }
}

impl Default for Ledger {
    fn default() -> Self {
        Self { open: Mutex::default(), due: AtomicU64::new(u64::MAX) }
    }
}

impl Ledger {
    /// When the client is too slow, unless it takes something before.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.due.load(Relaxed) {
            u64::MAX => None,
            due => Some(instant(due)),
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

    /// Up to when the client has taken what it must; where nothing is left, when it took the last
    /// of it.
    pub(super) fn kept_up(&self) -> u64 {
        self.open().kept_up()
    }

    /// One more answer; its number.
    pub(super) fn enter(&self, patience: Patience) -> u64 {
        self.change(|open, now| open.enter(patience, now))
    }

    /// A part of an answer is there.
    pub(super) fn begin(&self, number: u64, bytes: u64) {
        self.with(number, |open, at, now| open.begin(at, bytes, now));
    }

    /// So many bytes of an answer were taken.
    pub(super) fn took(&self, number: u64, bytes: u64) {
        self.with(number, |open, at, now| open.took(at, bytes, now));
    }

    /// We make the next part.
    pub(super) fn make(&self, number: u64) {
        self.with(number, |open, at, now| open.is_made(at, true, now));
    }

    /// There is no next part.
    pub(super) fn end(&self, number: u64) {
        self.with(number, |open, at, now| open.is_made(at, false, now));
    }

    /// An answer was taken, or given up.
    pub(super) fn leave(&self, number: u64) {
        self.with(number, |open, at, _| open.leave(at));
    }

    fn with(&self, number: u64, change: impl FnOnce(&mut Open, usize, u64)) {
        self.change(|open, now| {
            if let Some(at) = open.answers.iter().position(|answer| answer.number == number) {
                change(open, at, now);
            }
        });
    }

    fn change<T>(&self, change: impl FnOnce(&mut Open, u64) -> T) -> T {
        let mut open = self.open();
        let now = now_ms();
        let (result, due) = open.change(now, |open| change(open, now));
        self.due.store(due, Relaxed);
        result
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::body::{Body, Piece};
    use super::super::owed::{Out, Sent};
    use super::*;
    use bytes::{Buf, Bytes};
    use http_body_util::BodyExt;
    use std::sync::Arc;

    const KIB: u64 = 1 << 10;
    const FRAME: u64 = 16 * KIB;
    const PATIENCE: Patience = Patience {
        step: Duration::from_secs(30),
        making: Duration::from_secs(5),
        rate_min: 32 * KIB,
        steps: true,
    };

    /// A ledger with answers of so many bytes each, which began at once, and when the client is too
    /// slow.
    fn with_answers(bytes: &[u64]) -> (Open, u64) {
        let (mut open, mut due) = (Open::default(), 0);
        for bytes in bytes {
            let number = open.change(0, |open| open.enter(PATIENCE, 0)).0;
            due = open.change(0, |open| open.begin(number as usize, *bytes, 0)).1;
        }
        (open, due)
    }

    /// A client takes one frame after the other of answers of so many bytes, at `rate`, each time
    /// of the one that `choose` names, of those that are left. When it is found to be too slow;
    /// `None` where it is not.
    fn too_slow(
        bytes: &[u64],
        rate: u64,
        choose: impl Fn(usize, &[Answer]) -> usize,
    ) -> Option<u64> {
        let (mut open, mut due) = with_answers(bytes);
        let mut taken = 0;
        for turn in 0.. {
            if open.answers.is_empty() {
                break;
            }
            let at = choose(turn, &open.answers);
            let frame = open.answers[at].bytes.min(FRAME);
            taken += frame;
            let now = taken * 1000 / rate;
            if now > due {
                return Some(due);
            }
            due = open.change(now, |open| open.took(at, frame, now)).1;
            if open.answers[at].bytes == 0 {
                due = open.change(now, |open| open.leave(at)).1;
            }
        }
        None
    }

    fn number_of(answers: &[Answer], first: bool) -> usize {
        let by_number = |at: &usize| answers[*at].number;
        let found = if first {
            (0..answers.len()).min_by_key(by_number)
        } else {
            (0..answers.len()).max_by_key(by_number)
        };
        found.unwrap()
    }

    #[test]
    fn who_takes_at_the_least_rate_may_take_in_any_order() {
        for answers in [
            vec![60 * KIB; 200],
            vec![1024 * KIB; 250],
            [vec![KIB; 100], vec![8192 * KIB]].concat(),
        ] {
            for rate in [32 * KIB, 100 * KIB, 10_000 * KIB] {
                let what = format!("{} answers at {rate}", answers.len());
                assert_eq!(
                    too_slow(&answers, rate, |turn, left| turn % left.len()),
                    None,
                    "{what}, in turns"
                );
                assert_eq!(
                    too_slow(&answers, rate, |_, left| number_of(left, true)),
                    None,
                    "{what}, the first one first"
                );
                assert_eq!(
                    too_slow(&answers, rate, |_, left| number_of(left, false)),
                    None,
                    "{what}, the last one first"
                );
            }
            let half = too_slow(&answers, 16 * KIB, |turn, left| turn % left.len());
            assert!(
                half.is_some_and(|at| (59_000..=61_000).contains(&at)),
                "{half:?}: at half of it, one is 30 s behind after 60 s"
            );
        }
        // Who was faster for a while earns nothing by it.
        let (mut open, _) = with_answers(&[1024 * KIB]);
        let due = open.change(1000, |open| open.took(0, 1000 * KIB, 1000)).1;
        assert_eq!(due, 31_000);
    }

    #[test]
    fn what_is_asked_for_is_no_progress() {
        let (mut open, due) = with_answers(&[1024 * KIB; 100]);
        assert_eq!(due, 30_000);
        for second in 1..30 {
            let now = second * 1000;
            let number = open.change(now, |open| open.enter(PATIENCE, now)).0;
            assert_eq!(open.change(now, |open| open.begin(number as usize, KIB, now)).1, 30_000);
        }
        // Nor is what is given up.
        assert_eq!(open.change(29_900, |open| open.leave(0)).1, 30_000);
        assert_eq!(open.kept_up(), 0);
        // A byte now and then is no more than it is.
        assert_eq!(open.change(29_900, |open| open.took(5, 32, 29_900)).1, 30_000);
    }

    #[test]
    fn who_is_slow_with_little_at_a_time_is_served() {
        // Four answers at any time, each of which is taken within 15 s, at half the least rate.
        let (mut open, mut due) = with_answers(&[60 * KIB; 4]);
        for turn in 0..600 {
            let now = (turn + 1) * 1000;
            assert!(now <= due, "closed after {turn} s");
            let at = turn as usize % 4;
            let frame = open.answers[at].bytes.min(FRAME);
            due = open.change(now, |open| open.took(at, frame, now)).1;
            if open.answers[at].bytes == 0 {
                due = open.change(now, |open| open.begin(at, 60 * KIB, now)).1;
            }
        }
    }

    #[test]
    fn an_answer_among_others_that_go_on_does_not_stand_for_ever() {
        let (mut open, _) = with_answers(&[1024 * KIB]);
        let mut due = 0;
        for second in 1..=30 {
            let now = second * 1000;
            let number = open.change(now, |open| open.enter(PATIENCE, now)).0;
            let at = open.answers.len() - 1;
            open.change(now, |open| open.begin(at, 64 * KIB, now));
            open.change(now, |open| open.took(at, 64 * KIB, now));
            due = open.change(now, |open| open.leave(at)).1;
            assert_eq!((number, open.kept_up()), (second, now), "twice the least rate");
        }
        assert_eq!(due, 32_000, "a step, and the time for what others owed at a time");
        assert_eq!(
            open.change(31_000, |open| open.took(0, 64 * KIB, 31_000)).1,
            61_000,
            "it went on"
        );
    }

    fn near(ledger: &Ledger, seconds: u64) {
        let due = ledger.deadline().expect("a deadline").duration_since(Instant::now());
        assert!(
            due.abs_diff(Duration::from_secs(seconds)) <= Duration::from_secs(1),
            "{due:?}, and not {seconds} s"
        );
    }

    fn next(sent: &mut Sent) -> Option<Out> {
        let frame = futures_util::FutureExt::now_or_never(sent.frame()).expect("no frame")?;
        frame.unwrap().into_data().ok()
    }

    #[test]
    fn a_part_that_is_made_is_waited_for_by_the_client() {
        let ledger = Arc::new(Ledger::default());
        let parts = futures_util::stream::iter([Piece::from(Bytes::from_static(b"part"))]);
        let never = futures_util::StreamExt::chain(parts, futures_util::stream::pending());
        let mut sent = Sent::new(
            Body::Stream(Box::pin(never)),
            None,
            &ledger,
            Patience { steps: false, ..PATIENCE },
        );
        let mut part = next(&mut sent).unwrap();
        assert!(!ledger.is_made_for());
        near(&ledger, 30);
        // hyper asks for the next part before the client has all of this one.
        part.advance(1);
        assert!(futures_util::FutureExt::now_or_never(sent.frame()).is_none());
        assert!(ledger.is_made_for());
        near(&ledger, 30);
        part.advance(3);
        near(&ledger, 35);
        drop((sent, part));
        assert!(!ledger.is_made_for() && ledger.is_empty());
        assert_eq!(ledger.deadline(), None);
    }
}
