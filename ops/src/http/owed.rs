//! Answers on their way: what a client was given and has not taken.
//!
//! hyper and h2 take a body's bytes long before the client does. So the bytes themselves know what
//! they cost: [`Sent`] hands them out as [`Owed`] pieces, which give back their part of the budget
//! when the last buffer lets go of them. The request's place among those in flight is held as long.
//!
//! The connection's [`Ledger`] has each of them, is told by them ([`Out`]) when the socket takes
//! some, and tells when the client is too slow.

use super::body::{Body, Piece};
use super::ledger::{Ledger, Patience};
use super::share::Held;
use bytes::{Buf, Bytes};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// The largest piece that a stream of HTTP/2 is given at once. hyper asks for one more before the
/// client's window lets this one go; streams that wait for the connection's window get it in turns,
/// a piece each.
const STEP_BYTES: usize = 64 << 10;

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
    _held: Held,
}

impl AsRef<[u8]> for Owed {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Bytes on their way to the socket.
pub(super) struct Out {
    bytes: Bytes,
    /// `None` where nobody watches.
    entry: Option<Arc<Entry>>,
}

impl Buf for Out {
    fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.bytes
    }

    /// The socket took so many. h2 and hyper have bytes copied only where they are few, for frames
    /// and chunks.
    fn advance(&mut self, bytes: usize) {
        self.bytes.advance(bytes);
        if let Some(entry) = self.entry.as_ref().filter(|_| bytes > 0) {
            entry.ledger.took(entry.number, bytes as u64);
        }
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
    /// What is left of the part that is under way.
    rest: Bytes,
    /// Whether it is handed out in steps.
    steps: bool,
}

impl Sent {
    /// An answer. Small ones are not watched in HTTP/1.1, where the socket tells, and there is one
    /// at most.
    pub(super) fn new(
        body: Body,
        place: Option<Held>,
        ledger: &Arc<Ledger>,
        patience: Patience,
    ) -> Self {
        let steps = patience.steps;
        let watched = match &body {
            Body::Empty => false,
            Body::Full(piece) => steps || piece.held.is_some(),
            Body::Stream(_) => true,
        };
        let watch = watched.then(|| {
            let entry = Arc::new(Entry { ledger: ledger.clone(), number: ledger.enter(patience) });
            Watch { entry, rest: Bytes::new(), steps }
        });
        Self { body, _place: place, watch }
    }
}

impl Watch {
    /// Begins a part.
    fn begin(&mut self, piece: Piece) {
        let Piece { bytes, held } = piece;
        self.entry.ledger.begin(self.entry.number, bytes.len() as u64);
        self.rest = match held {
            Some(held) => Bytes::from_owner(Owed { bytes, _held: held }),
            None => bytes,
        };
    }

    /// The next step of the part.
    fn step(&mut self) -> Option<Out> {
        if self.rest.is_empty() {
            return None;
        }
        let bytes = if self.steps {
            self.rest.split_to(STEP_BYTES.min(self.rest.len()))
        } else {
            std::mem::take(&mut self.rest)
        };
        Some(Out { bytes, entry: Some(self.entry.clone()) })
    }
}

impl HttpBody for Sent {
    type Data = Out;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Out>, Infallible>>> {
        let this = self.get_mut();
        let Some(watch) = &mut this.watch else {
            return match std::mem::replace(&mut this.body, Body::Empty) {
                Body::Full(piece) if !piece.bytes.is_empty() => {
                    Poll::Ready(Some(Ok(Frame::data(Out { bytes: piece.bytes, entry: None }))))
                }
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
                watch.entry.ledger.make(watch.entry.number);
                std::task::ready!(stream.as_mut().poll_next(cx))
            }
        };
        let Some(part) = part else {
            watch.entry.ledger.end(watch.entry.number);
            return Poll::Ready(None);
        };
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
    use std::time::Duration;

    const PATIENCE: Patience = Patience {
        step: Duration::from_secs(30),
        making: Duration::from_secs(5),
        rate_min: 1 << 20,
        steps: true,
    };

    #[test]
    fn bytes_are_held_until_the_last_buffer_lets_go_of_them() {
        let gauges = [(); 3].map(|()| IntGauge::new("used", "test").unwrap());
        let [requests, bodies, answers] = gauges.clone();
        let shares = Shares::new((10, requests), (10, bodies), (1 << 20, answers));
        let account = shares.open(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let ledger = Arc::new(Ledger::default());
        let held = account.hold(Good::Answers, 200_000).unwrap();
        let piece = Piece { bytes: vec![7; 200_000].into(), held: Some(held) };
        let place = account.hold(Good::Requests, 1).ok();
        let mut sent = Sent::new(Body::Full(piece), place, &ledger, PATIENCE);
        assert_eq!(sent.size_hint().exact(), Some(200_000));
        let mut frame = || futures_util::FutureExt::now_or_never(sent.frame()).unwrap();
        let mut taken: Vec<Out> =
            std::iter::from_fn(|| frame().and_then(|f| f.unwrap().into_data().ok())).collect();
        assert_eq!(
            taken.iter().map(Buf::remaining).collect::<Vec<_>>(),
            [65536, 65536, 65536, 3392]
        );
        assert!(sent.is_end_stream());
        assert_eq!(gauges[0].get(), 1);
        drop(sent);
        assert_eq!(gauges[0].get(), 0, "the request's place is held by nobody");
        let last = taken.pop();
        taken.iter_mut().for_each(|out| out.advance(65536));
        drop(taken);
        assert_eq!(gauges[2].get(), 200_000, "a buffer still has bytes of it");
        assert!(!ledger.is_empty() && ledger.deadline().is_some());
        drop(last);
        assert_eq!(gauges[2].get(), 0);
        assert!(ledger.is_empty());
    }
}
