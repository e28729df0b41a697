//! The rest of a body that nobody wants, read and thrown away before the answer.
//!
//! A client that is told no while it sends, and whose connection is then closed, may never see the
//! answer: its system throws it away when what it sends is turned back, and its HTTP library
//! reports the broken pipe. So the answer is held back until the body is over, within bounds: so
//! many bytes, so much time, and not for a client that is slow or silent, or that waits for
//! `100 Continue`.

use super::connection::Socket;
use super::pulse::Pulse;
use super::wire::Wire;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::Sleep;

/// The most bytes of a body that are thrown away.
const BYTES_MAX: u64 = 64 << 20;
/// The longest time that an answer is held back for them.
const TIME_MAX: Duration = Duration::from_secs(10);
/// The longest silence; so long, too, a client may send less than [`BYTES_PER_SECOND_MIN`].
const SILENCE_MAX: Duration = Duration::from_secs(1);
/// At what rate a client sends that is worth waiting for.
const BYTES_PER_SECOND_MIN: u64 = 64 << 10;

/// A body that is being thrown away.
pub(super) struct Discard {
    begun: Instant,
    bytes: u64,
    silence: Pin<Box<Sleep>>,
    scratch: Box<[u8]>,
}

impl Discard {
    pub(super) fn new() -> Self {
        let silence = Box::pin(tokio::time::sleep(SILENCE_MAX));
        Self { begun: Instant::now(), bytes: 0, silence, scratch: vec![0; 32 << 10].into() }
    }

    /// Some more of what the client sends; nothing at its end, and where it has taken too much or
    /// too long.
    pub(super) fn poll_more<S: Socket>(
        &mut self,
        wire: &mut Wire<S>,
        pulse: &Pulse,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<&[u8]>> {
        if self.bytes >= BYTES_MAX || Instant::now() >= self.deadline() {
            return Poll::Ready(Ok(&[]));
        }
        let mut buf = ReadBuf::new(&mut self.scratch);
        let Poll::Ready(read) = Pin::new(wire).poll_read(cx, &mut buf) else {
            ready!(self.silence.as_mut().poll(cx));
            return Poll::Ready(Ok(&[]));
        };
        read?;
        let bytes = buf.filled().len();
        // It is no head that came there.
        pulse.head_done();
        self.bytes += bytes as u64;
        let until = self.deadline().min(Instant::now() + SILENCE_MAX);
        self.silence.as_mut().reset(until.into());
        Poll::Ready(Ok(&self.scratch[..bytes]))
    }

    /// Until when an answer is held back, by what came so far.
    fn deadline(&self) -> Instant {
        let earned = SILENCE_MAX + Duration::from_millis(self.bytes * 1000 / BYTES_PER_SECOND_MIN);
        self.begun + earned.min(TIME_MAX)
    }
}
