//! Bodies, both ways. What comes in is bounded in size, in time and, over all requests, in memory;
//! what goes out is nothing, bytes, or a stream that is made only as fast as the client reads it.

use super::connection::STREAM_WINDOW;
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

/// From how many bytes on it is asked before a body is read whether that is of any use.
const LARGE_BYTES: u64 = 64 << 10;

impl Upload<'_> {
    /// Whether it costs something to read it, and it has no more bytes than it may.
    pub(super) fn is_large(&self, bytes_max: usize) -> bool {
        (LARGE_BYTES..=bytes_max as u64).contains(&self.incoming.size_hint().lower())
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

/// Reads a whole body, and holds what has come of it. A body that came in one piece of known length
/// is not copied.
///
/// A client must send at `client_bytes_per_second_min` on average, beyond a start of two
/// `body_read_timeout`s, and never be silent for longer than one. Bodies that come on one
/// connection at a time share what it can carry, in whatever order: then all of them count, and one
/// may be silent for as long as what comes of the others needs at that rate.
pub(super) async fn read(
    upload: Upload<'_>,
    wanted: &Wanted,
    limits: &Limits,
) -> Result<(Bytes, Held), Problem> {
    let Upload { mut incoming, account, leash, pulse } = upload;
    let _waiting = leash.wait();
    let too_large = |actual| {
        Problem::too_large(
            StatusCode::PAYLOAD_TOO_LARGE,
            wanted.code,
            wanted.what,
            wanted.bytes_max,
            actual,
        )
        .close()
    };
    let exact = incoming.size_hint().exact().map(|n| usize::try_from(n).unwrap_or(usize::MAX));
    if let Some(actual) = exact.filter(|actual| *actual > wanted.bytes_max) {
        return Err(too_large(Some(actual)));
    }
    // What there is no room for now is refused before it is sent; nothing is held for what was
    // announced.
    account.check(Good::Bodies, exact.unwrap_or(0)).map_err(Problem::close)?;
    let mut held = account.hold(Good::Bodies, 0)?;
    let mut pace = Pace::new(limits, leash);
    let Some(first) = next(&mut incoming, &mut pace).await? else {
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
            let capacity =
                needed.max(whole.capacity() * 2).min(exact.unwrap_or(wanted.bytes_max).max(needed));
            held.grow(capacity.saturating_sub(held.amount())).map_err(Problem::close)?;
            whole.reserve_exact(capacity - whole.len());
        }
        whole.extend_from_slice(&bytes);
        drop(bytes);
        piece = next(&mut incoming, &mut pace).await?;
    }
    pulse.body_done();
    Ok((whole.into(), held))
}

/// How fast a body must come.
struct Pace<'a> {
    limits: &'a Limits,
    leash: &'a Leash,
    begun: Instant,
    /// When something of it last came.
    came_at: Instant,
    /// What had come on the connection before it began, and when something of it last came.
    before: u64,
    seen: u64,
}

impl<'a> Pace<'a> {
    fn new(limits: &'a Limits, leash: &'a Leash) -> Self {
        let (now, before) = (Instant::now(), leash.arrivals().0);
        Self { limits, leash, begun: now, came_at: now, before, seen: before }
    }

    /// Something came.
    fn came(&mut self, bytes: usize) {
        self.came_at = Instant::now();
        self.leash.arrived(bytes, bytes as u64 * 1000 / self.limits.client_bytes_per_second_min);
        self.seen = self.leash.arrivals().0;
    }

    /// By when more must come.
    fn deadline(&self) -> Instant {
        let (arrived, at) = self.leash.arrivals();
        self.deadline_of(arrived, at, self.leash.bodies())
    }

    /// The same where so many bytes came on the connection, the last of them `at`, and so many
    /// bodies are waited for.
    fn deadline_of(&self, arrived: u64, at: Instant, bodies: u32) -> Instant {
        let Limits { body_read_timeout: silence, client_bytes_per_second_min, .. } = *self.limits;
        let time_of =
            |bytes: u64| Duration::from_secs_f64(bytes as f64 / client_bytes_per_second_min as f64);
        let others = u64::from(bodies.saturating_sub(1));
        let (since_begun, since_seen) =
            (arrived.saturating_sub(self.before), arrived.saturating_sub(self.seen));
        let of_any = at.max(self.came_at) + silence;
        let of_this =
            self.came_at + silence + time_of(since_seen + others * u64::from(STREAM_WINDOW));
        of_any.min(of_this).min(self.begun + silence * 2 + time_of(since_begun))
    }
}

/// The next piece of a body; `None` at its end.
async fn next(body: &mut Incoming, pace: &mut Pace<'_>) -> Result<Option<Bytes>, Problem> {
    loop {
        match tokio::time::timeout_at(pace.deadline().into(), body.frame()).await {
            Ok(None) => return Ok(None),
            // Trailers say nothing to us.
            Ok(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) if data.is_empty() => {}
                Ok(data) => {
                    pace.came(data.len());
                    return Ok(Some(data));
                }
                Err(_trailers) => {}
            },
            Ok(Some(Err(error))) => {
                let detail =
                    format!("the body broke off or is malformed ({error}); nothing was written");
                return Err(Problem::malformed("body_incomplete", detail).close());
            }
            // Something may have come of another one.
            Err(_elapsed) if pace.deadline() > Instant::now() => {}
            Err(_elapsed) => {
                let timeout = humantime::format_duration(pace.limits.body_read_timeout);
                let rate = pace.limits.client_bytes_per_second_min;
                let detail = format!(
                    "the body came too slowly: nothing for {timeout}, or fewer than {rate} bytes a \
                     second; nothing was written"
                );
                return Err(Problem::new(
                    StatusCode::REQUEST_TIMEOUT,
                    "body_timeout",
                    "request timeout",
                    detail,
                )
                .close());
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
        let leash = Leash::default();
        let begun = Instant::now();
        let at = |seconds: u64| begun + Duration::from_secs(seconds);
        let deadline = |now: Instant, arrived: u64| {
            Pace { limits: &limits, leash: &leash, begun, came_at: now, before: 0, seen: arrived }
                .deadline_of(arrived, now, 1)
        };
        assert_eq!(deadline(at(0), 0), at(10), "silence");
        assert_eq!(deadline(at(9), 0), at(19));
        assert_eq!(deadline(at(18), 18), begun + Duration::from_millis(20_018), "a byte a second");
        assert_eq!(deadline(at(100), 90_000), at(110));
        assert_eq!(deadline(at(100), 85_000), at(105));
        // Of several on one connection, one may be silent while others come, as fast as they must.
        let one =
            Pace { limits: &limits, leash: &leash, begun, came_at: at(1), before: 0, seen: 1000 };
        assert_eq!(
            one.deadline_of(90_000, at(100), 11),
            at(110),
            "all are silent, or too slow together"
        );
        assert_eq!(one.deadline_of(50_000, at(100), 11), at(70));
        assert_eq!(one.deadline_of(1000, at(9_000), 11), at(21), "nothing came of any");
        let fast = Pace { seen: 9_000_000, ..one };
        let windows = Duration::from_millis(2_621_440);
        assert_eq!(
            fast.deadline_of(9_000_000, at(9_000), 11),
            at(11) + windows,
            "a window of each of the others"
        );
        // They are sent one after the other, and this is one of the last.
        assert_eq!(fast.deadline_of(18_000_000, at(9_000), 2), at(9_010));
        assert_eq!(fast.deadline_of(17_000_000, at(9_000), 1), at(8_011));
    }
}
