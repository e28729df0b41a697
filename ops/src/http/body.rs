//! Bodies, both ways. What comes in is bounded in size, in time and, over all requests, in memory; what goes out is nothing, bytes,
//! or a stream that is made only as fast as the client reads it.

use super::leash::Leash;
use super::pulse::Pulse;
use super::share::{Account, Good, Held};
use crate::limits::Limits;
use crate::problem::Problem;
use bytes::Bytes;
use futures_util::Stream;
use http::StatusCode;
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Incoming};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// An answer's body, as handlers make it. [`super::owed`] sends it.
pub(super) enum Body {
    /// None.
    Empty,
    /// Bytes, in one piece.
    Full(Piece),
    /// Pieces, each made when the one before it was taken.
    Stream(Pin<Box<dyn Stream<Item = Piece> + Send>>),
}

/// Bytes of an answer, and their part of the budget where they have one already.
pub(super) struct Piece {
    pub(super) bytes: Bytes,
    pub(super) held: Option<Held>,
}

impl<B: Into<Bytes>> From<B> for Piece {
    fn from(bytes: B) -> Self {
        Self { bytes: bytes.into(), held: None }
    }
}

/// A body on its way in, and who sends it.
pub(super) struct Upload<'a> {
    /// What comes.
    pub(super) incoming: Incoming,
    /// Who pays for it.
    pub(super) account: &'a Arc<Account>,
    /// Is told that we wait for the client,
    pub(super) leash: &'a Leash,
    /// and this, that there is nothing left of the body.
    pub(super) pulse: &'a Pulse,
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

/// Reads a whole body, and holds what has come of it. A body that came in one piece of known length is not copied.
///
/// A client must send at `client_bytes_per_second_min` on average, beyond a start of two `body_read_timeout`s, and never be silent
/// for longer than one.
pub(super) async fn read(upload: Upload<'_>, wanted: &Wanted, limits: &Limits) -> Result<(Bytes, Held), Problem> {
    let Upload { mut incoming, account, leash, pulse } = upload;
    let _waiting = leash.wait();
    let too_large =
        |actual| Problem::too_large(StatusCode::PAYLOAD_TOO_LARGE, wanted.code, wanted.what, wanted.bytes_max, actual).close();
    let exact = incoming.size_hint().exact().map(|n| usize::try_from(n).unwrap_or(usize::MAX));
    if let Some(actual) = exact.filter(|actual| *actual > wanted.bytes_max) {
        return Err(too_large(Some(actual)));
    }
    // What there is no room for now is refused before it is sent; nothing is held for what was announced.
    account.check(Good::Bodies, exact.unwrap_or(0)).map_err(Problem::close)?;
    let mut held = account.hold(Good::Bodies, 0)?;
    let pace = Pace { begun: Instant::now(), limits };
    let Some(first) = next(&mut incoming, &pace, 0).await? else {
        pulse.body_done();
        return Ok((Bytes::new(), held));
    };
    held.grow(first.len()).map_err(Problem::close)?;
    if exact == Some(first.len()) {
        return Ok((first, held));
    }
    let mut whole = Vec::new();
    let mut piece = Some(first);
    while let Some(bytes) = piece {
        let needed = whole.len() + bytes.len();
        if needed > wanted.bytes_max {
            return Err(too_large(None));
        }
        if needed > whole.capacity() {
            // Twice as much each time, but never more than will come.
            let capacity = needed.max(whole.capacity() * 2).min(exact.unwrap_or(wanted.bytes_max).max(needed));
            held.grow(capacity.saturating_sub(held.amount())).map_err(Problem::close)?;
            whole.reserve_exact(capacity - whole.len());
        }
        whole.extend_from_slice(&bytes);
        drop(bytes);
        piece = next(&mut incoming, &pace, whole.len()).await?;
    }
    pulse.body_done();
    Ok((whole.into(), held))
}

/// How fast a body must come.
struct Pace<'a> {
    begun: Instant,
    limits: &'a Limits,
}

impl Pace<'_> {
    /// By when more must have come, where `arrived` bytes have.
    fn deadline(&self, now: Instant, arrived: usize) -> Instant {
        let Limits { body_read_timeout, client_bytes_per_second_min, .. } = *self.limits;
        let seconds = arrived as f64 / client_bytes_per_second_min as f64;
        (now + body_read_timeout).min(self.begun + body_read_timeout * 2 + Duration::from_secs_f64(seconds))
    }
}

/// The next piece of a body; `None` at its end.
async fn next(body: &mut Incoming, pace: &Pace<'_>, arrived: usize) -> Result<Option<Bytes>, Problem> {
    loop {
        let deadline = pace.deadline(Instant::now(), arrived);
        match tokio::time::timeout_at(deadline.into(), body.frame()).await {
            Ok(None) => return Ok(None),
            // Trailers say nothing to us.
            Ok(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) if data.is_empty() => {}
                Ok(data) => return Ok(Some(data)),
                Err(_trailers) => {}
            },
            Ok(Some(Err(error))) => {
                let detail = format!("the body broke off or is malformed ({error}); nothing was written");
                return Err(Problem::malformed("body_incomplete", detail).close());
            }
            Err(_elapsed) => {
                let timeout = humantime::format_duration(pace.limits.body_read_timeout);
                let rate = pace.limits.client_bytes_per_second_min;
                let detail = format!(
                    "the body came too slowly: nothing for {timeout}, or fewer than {rate} bytes a second; nothing was written"
                );
                return Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", "request timeout", detail).close());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_must_come_at_a_least_rate_after_a_start() {
        let limits = Limits { client_bytes_per_second_min: 1000, ..Limits::default() };
        let begun = Instant::now();
        let pace = Pace { begun, limits: &limits };
        let at = |seconds: u64| begun + Duration::from_secs(seconds);
        assert_eq!(pace.deadline(at(0), 0), at(10), "silence");
        assert_eq!(pace.deadline(at(9), 0), at(19));
        assert_eq!(pace.deadline(at(18), 18), begun + Duration::from_millis(20_018), "a byte a second");
        assert_eq!(pace.deadline(at(100), 90_000), at(110));
        assert_eq!(pace.deadline(at(100), 85_000), at(105));
    }
}
