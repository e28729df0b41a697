//! Bodies, both ways. What comes in is bounded in size, in time and, over all requests, in memory; what goes out is nothing, bytes,
//! or a stream that is made only as fast as the client reads it.

use crate::limits::Limits;
use crate::problem::Problem;
use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use http::StatusCode;
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use prometheus::IntGauge;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

/// An answer's body.
pub(super) enum Body {
    /// None.
    Empty,
    /// Bytes, in one piece.
    Full(Bytes),
    /// Pieces, each made when the one before it was taken.
    Stream(Pin<Box<dyn Stream<Item = Bytes> + Send>>),
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        match this {
            Self::Empty => Poll::Ready(None),
            Self::Full(_) => match std::mem::replace(this, Self::Empty) {
                Self::Full(bytes) if !bytes.is_empty() => Poll::Ready(Some(Ok(Frame::data(bytes)))),
                _ => Poll::Ready(None),
            },
            Self::Stream(stream) => stream.as_mut().poll_next(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_empty(),
            Self::Stream(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Stream(_) => SizeHint::default(),
        }
    }
}

/// How many bytes of request bodies all requests together may hold.
pub(super) struct Budget {
    held: AtomicUsize,
    max: usize,
    gauge: IntGauge,
}

/// A part of the [`Budget`], given back when dropped.
pub(super) struct Held<'a> {
    budget: &'a Budget,
    bytes: usize,
}

impl Budget {
    pub(super) fn new(max: usize, gauge: IntGauge) -> Self {
        Self { held: AtomicUsize::new(0), max, gauge }
    }

    fn hold(&self, bytes: usize) -> Result<Held<'_>, Problem> {
        let mut held = Held { budget: self, bytes: 0 };
        held.grow(bytes)?;
        Ok(held)
    }
}

impl Held<'_> {
    /// Takes more; 429 where there is none.
    fn grow(&mut self, bytes: usize) -> Result<(), Problem> {
        if bytes == 0 {
            return Ok(());
        }
        let before = self.budget.held.fetch_add(bytes, Ordering::Relaxed);
        self.bytes += bytes;
        if before + bytes > self.budget.max {
            return Err(Problem::overloaded("bytes of request bodies", self.budget.max).close());
        }
        self.budget.gauge.add(bytes as i64);
        Ok(())
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if self.bytes > 0 {
            let before = self.budget.held.fetch_sub(self.bytes, Ordering::Relaxed);
            self.budget.gauge.set(before.saturating_sub(self.bytes) as i64);
        }
    }
}

/// What is being read, for errors.
pub(super) struct Wanted {
    /// In words: "a value".
    pub(super) what: &'static str,
    /// The code of the problem when it is too large.
    pub(super) code: &'static str,
    /// How large it may be.
    pub(super) bytes_max: usize,
}

/// Reads a whole body. A body that came in one piece of known length is not copied.
pub(super) async fn read<'a>(
    mut body: Incoming,
    wanted: &Wanted,
    limits: &Limits,
    budget: &'a Budget,
) -> Result<(Bytes, Held<'a>), Problem> {
    let too_large =
        |actual| Problem::too_large(StatusCode::PAYLOAD_TOO_LARGE, wanted.code, wanted.what, wanted.bytes_max, actual).close();
    let exact = body.size_hint().exact().map(|n| usize::try_from(n).unwrap_or(usize::MAX));
    if let Some(actual) = exact.filter(|actual| *actual > wanted.bytes_max) {
        return Err(too_large(Some(actual)));
    }
    let mut held = budget.hold(exact.unwrap_or(0))?;
    let Some(first) = next(&mut body, limits).await? else { return Ok((Bytes::new(), held)) };
    if exact == Some(first.len()) {
        return Ok((first, held));
    }
    let mut whole = BytesMut::with_capacity(first.len().max(exact.unwrap_or(0).min(64 << 10)));
    let mut piece = Some(first);
    while let Some(bytes) = piece {
        if whole.len() + bytes.len() > wanted.bytes_max {
            return Err(too_large(None));
        }
        whole.extend_from_slice(&bytes);
        if whole.len() > held.bytes {
            held.grow(whole.len() - held.bytes)?;
        }
        piece = next(&mut body, limits).await?;
    }
    Ok((whole.freeze(), held))
}

/// The next piece of a body; `None` at its end.
async fn next(body: &mut Incoming, limits: &Limits) -> Result<Option<Bytes>, Problem> {
    loop {
        match tokio::time::timeout(limits.body_read_timeout, body.frame()).await {
            Ok(None) => return Ok(None),
            // Trailers say nothing to us.
            Ok(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => return Ok(Some(data)),
                Err(_trailers) => {}
            },
            Ok(Some(Err(error))) => {
                let detail = format!("the body broke off or is malformed ({error}); nothing was written");
                return Err(Problem::malformed("body_incomplete", detail).close());
            }
            Err(_elapsed) => {
                let timeout = humantime::format_duration(limits.body_read_timeout);
                let detail = format!("nothing more of the body came for {timeout}; nothing was written");
                return Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", "request timeout", detail).close());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_given_back() {
        let budget = Budget::new(100, IntGauge::new("bytes", "test").unwrap());
        let first = budget.hold(60).unwrap();
        assert_eq!(budget.hold(60).map(|_| ()).unwrap_err().members().status, 429);
        assert_eq!(budget.held.load(Ordering::Relaxed), 60);
        drop(first);
        assert!(budget.hold(100).is_ok());
        assert_eq!(budget.gauge.get(), 0);
    }
}
