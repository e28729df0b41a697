//! Answers on their way: what a client was given and has not taken.
//!
//! hyper and h2 take a body's bytes long before the client does. So the bytes themselves know what they cost: [`Sent`] hands them out
//! as [`Owed`] pieces, which give back their part of the budget when the last buffer lets go of them. The request's place among those
//! in flight is held as long.
//!
//! **A client that does not take its answer** is noticed by time. Each answer is in the connection's [`Ledger`] with the time by
//! which it must have gone on: `write_timeout` after its last step, and at no less than `client_bytes_per_second_min` over all. When
//! the first of these times passes, the connection is closed. In HTTP/1.1 the socket says as much; in HTTP/2 it does not, since one
//! stream can stand still, with a window of 0, while pings go on.

use super::body::{Body, Piece};
use super::share::Held;
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// The largest piece that a stream of HTTP/2 is given at once: it asks for the next one when the client's window lets it go on.
const STEP_BYTES: usize = 64 << 10;

/// The answers of one connection that were not taken, and by when they must be. Times are milliseconds since it began.
pub(super) struct Ledger {
    begun: Instant,
    /// Each answer's number, and by when it must go on.
    open: Mutex<Vec<(u64, u64)>>,
    next: AtomicU64,
    /// No later than the first of these times.
    earliest: AtomicU64,
}

impl Ledger {
    pub(super) fn new(begun: Instant) -> Self {
        Self { begun, open: Mutex::default(), next: AtomicU64::new(0), earliest: AtomicU64::new(u64::MAX) }
    }

    /// When the first answer must have gone on; too early where that one was taken.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.earliest.load(Relaxed) {
            u64::MAX => None,
            due => Some(self.begun + Duration::from_millis(due)),
        }
    }

    /// Looks at every answer, so that [`Self::deadline`] is exact.
    pub(super) fn settle(&self) {
        let open = self.open();
        self.earliest.store(open.iter().map(|(_, due)| *due).min().unwrap_or(u64::MAX), Relaxed);
    }

    /// Whether there are answers that were not taken.
    pub(super) fn is_empty(&self) -> bool {
        self.open().is_empty()
    }

    fn enter(&self, due: Instant) -> u64 {
        let (number, due) = (self.next.fetch_add(1, Relaxed), self.since_begun(due));
        let mut open = self.open();
        open.push((number, due));
        self.earliest.fetch_min(due, Relaxed);
        number
    }

    fn put_off(&self, number: u64, due: Instant) {
        let due = self.since_begun(due);
        let mut open = self.open();
        if let Some(entry) = open.iter_mut().find(|entry| entry.0 == number) {
            entry.1 = due;
            self.earliest.fetch_min(due, Relaxed);
        }
    }

    fn leave(&self, number: u64) {
        let mut open = self.open();
        if let Some(at) = open.iter().position(|entry| entry.0 == number) {
            open.swap_remove(at);
        }
    }

    fn since_begun(&self, due: Instant) -> u64 {
        due.saturating_duration_since(self.begun).as_millis() as u64
    }

    fn open(&self) -> MutexGuard<'_, Vec<(u64, u64)>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
}

/// One answer in the [`Ledger`], for as long as any of its bytes are in memory.
struct Entry {
    ledger: Arc<Ledger>,
    number: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.ledger.leave(self.number);
    }
}

/// Bytes of an answer, with what they hold.
struct Owed {
    bytes: Bytes,
    _held: Option<Held>,
    _entry: Arc<Entry>,
}

impl AsRef<[u8]> for Owed {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// An answer's body as hyper sees it.
pub(super) struct Sent {
    body: Body,
    /// The request's place among those in flight.
    _place: Option<Held>,
    /// `None` where the body is small, and hyper takes it at once.
    watch: Option<Watch>,
}

/// What is needed to watch an answer.
struct Watch {
    entry: Arc<Entry>,
    patience: Patience,
    /// When an answer of known length, or the part of a stream that is under way, must be taken as a whole.
    whole_by: Instant,
    /// What is left of the part that is under way.
    rest: Bytes,
    /// Whether it is handed out in steps.
    steps: bool,
}

impl Sent {
    /// An answer for a client that is closed to whoever does not read: HTTP/1.1, where the socket tells. Small answers are not
    /// watched there, since there is one at most.
    pub(super) fn new(body: Body, place: Option<Held>, ledger: &Arc<Ledger>, patience: Patience, steps: bool) -> Self {
        let watched = match &body {
            Body::Empty => false,
            Body::Full(piece) => steps || piece.held.is_some(),
            Body::Stream(_) => true,
        };
        let watch = watched.then(|| {
            let now = Instant::now();
            let number = ledger.enter(now + patience.step);
            let entry = Arc::new(Entry { ledger: ledger.clone(), number });
            Watch { entry, patience, whole_by: now + patience.step, rest: Bytes::new(), steps }
        });
        Self { body, _place: place, watch }
    }
}

impl Watch {
    /// Begins a part.
    fn begin(&mut self, piece: Piece) {
        let Piece { bytes, held } = piece;
        let seconds = bytes.len() as f64 / self.patience.rate_min as f64;
        self.whole_by = Instant::now() + self.patience.step + Duration::from_secs_f64(seconds);
        self.rest = Bytes::from_owner(Owed { bytes, _held: held, _entry: self.entry.clone() });
    }

    /// The next step of the part, by when it must be taken.
    fn step(&mut self) -> Option<Bytes> {
        if self.rest.is_empty() {
            return None;
        }
        let step = if self.steps { self.rest.split_to(STEP_BYTES.min(self.rest.len())) } else { std::mem::take(&mut self.rest) };
        let due = if self.steps { self.whole_by.min(Instant::now() + self.patience.step) } else { self.whole_by };
        self.entry.ledger.put_off(self.entry.number, due);
        Some(step)
    }

    /// The client took what there was, and we make the next part.
    fn make(&self) {
        let due = Instant::now() + self.patience.making + self.patience.step;
        self.entry.ledger.put_off(self.entry.number, due);
    }
}

impl HttpBody for Sent {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        let Some(watch) = &mut this.watch else {
            return match std::mem::replace(&mut this.body, Body::Empty) {
                Body::Full(piece) if !piece.bytes.is_empty() => Poll::Ready(Some(Ok(Frame::data(piece.bytes)))),
                _ => Poll::Ready(None),
            };
        };
        if let Some(step) = watch.step() {
            return Poll::Ready(Some(Ok(Frame::data(step))));
        }
        let part = match &mut this.body {
            Body::Empty => None,
            Body::Full(_) => match std::mem::replace(&mut this.body, Body::Empty) {
                Body::Full(piece) => Some(piece),
                _ => None,
            },
            Body::Stream(stream) => {
                watch.make();
                std::task::ready!(stream.as_mut().poll_next(cx))
            }
        };
        let Some(part) = part else { return Poll::Ready(None) };
        watch.begin(part);
        Poll::Ready(watch.step().map(|step| Ok(Frame::data(step))))
    }

    fn is_end_stream(&self) -> bool {
        let nothing_left = self.watch.as_ref().is_none_or(|watch| watch.rest.is_empty());
        nothing_left
            && match &self.body {
                Body::Empty => true,
                Body::Full(piece) => piece.bytes.is_empty(),
                Body::Stream(_) => false,
            }
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.watch.as_ref().map_or(0, |watch| watch.rest.len() as u64);
        match &self.body {
            Body::Empty => SizeHint::with_exact(rest),
            Body::Full(piece) => SizeHint::with_exact(rest + piece.bytes.len() as u64),
            Body::Stream(_) => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::share::{Good, Shares};
    use super::*;
    use http_body_util::BodyExt;
    use prometheus::IntGauge;
    use std::net::{IpAddr, Ipv4Addr};

    const PATIENCE: Patience = Patience { step: Duration::from_secs(30), making: Duration::from_secs(5), rate_min: 1 << 20 };

    #[test]
    fn bytes_are_held_until_the_last_buffer_lets_go_of_them() {
        let gauges = [(); 3].map(|()| IntGauge::new("used", "test").unwrap());
        let [requests, bodies, answers] = gauges.clone();
        let shares = Shares::new((10, requests), (10, bodies), (1 << 20, answers));
        let account = shares.open(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let ledger = Arc::new(Ledger::new(Instant::now()));
        let held = account.hold(Good::Answers, 200_000).unwrap();
        let piece = Piece { bytes: vec![7; 200_000].into(), held: Some(held) };
        let place = account.hold(Good::Requests, 1).ok();
        let mut sent = Sent::new(Body::Full(piece), place, &ledger, PATIENCE, true);
        assert_eq!(sent.size_hint().exact(), Some(200_000));
        let mut frame = || futures_util::FutureExt::now_or_never(sent.frame()).unwrap();
        let mut taken: Vec<Bytes> = std::iter::from_fn(|| frame().map(|f| f.unwrap().into_data().unwrap())).collect();
        assert_eq!(taken.iter().map(Bytes::len).collect::<Vec<_>>(), [65536, 65536, 65536, 3392]);
        assert!(sent.is_end_stream());
        assert_eq!(gauges[0].get(), 1);
        drop(sent);
        assert_eq!(gauges[0].get(), 0, "the request's place is held by nobody");
        let last = taken.pop();
        drop(taken);
        assert_eq!(gauges[2].get(), 200_000, "a buffer still has bytes of it");
        assert!(!ledger.is_empty());
        drop(last);
        assert_eq!(gauges[2].get(), 0);
        assert!(ledger.is_empty());
    }

    #[test]
    fn an_answer_is_due_a_step_after_its_last_one_and_as_a_whole() {
        let ledger = Arc::new(Ledger::new(Instant::now()));
        let (begun, second) = (ledger.begun, Duration::from_secs(1));
        let near = |due: Option<Instant>, seconds: u32| {
            let due = due.expect("a deadline");
            assert!(due >= begun + second * seconds - second && due <= begun + second * seconds + second, "{:?}", due - begun);
        };
        let large = Body::Full(Piece::from(Bytes::from(vec![0; 2 << 20])));
        let mut sent = Sent::new(large, None, &ledger, PATIENCE, true);
        near(ledger.deadline(), 30);
        futures_util::FutureExt::now_or_never(sent.frame()).unwrap();
        ledger.settle();
        near(ledger.deadline(), 30);
        // Without steps the whole of 2 MiB is due, at 1 MiB/s.
        let ledger = Arc::new(Ledger::new(begun));
        let held = Piece { bytes: vec![0; 2 << 20].into(), held: None };
        let stream: Body = Body::Stream(Box::pin(futures_util::stream::iter([held])));
        let mut sent = Sent::new(stream, None, &ledger, PATIENCE, false);
        futures_util::FutureExt::now_or_never(sent.frame()).unwrap();
        ledger.settle();
        near(ledger.deadline(), 32);
        drop(sent);
        ledger.settle();
        assert_eq!(ledger.deadline(), None);
    }
}
