//! Between the guard and the socket: what a connection is doing, and what hyper says in our name.
//!
//! [`Wire`] replays the first bytes, which were read to tell HTTP/1.1 from HTTP/2; it notes in the [`Pulse`] when bytes came, went, or
//! did not want to go; and it puts a problem in the place of the empty answer that hyper gives to a head that is no HTTP.
//!
//! **When is an answer hyper's own?** When the guard has handed over a head, no request came of it, and what is written is nothing but
//! the head of a client error with an empty body, which we never send.

use super::connection::Socket;
use super::date;
use super::heads::Framing;
use crate::problem::Problem;
use bytes::{Buf, Bytes};
use http::StatusCode;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What a connection is doing, for those who judge whether it is too slow. Times are milliseconds since it began; 0 for "not so".
pub(super) struct Pulse {
    begun: Instant,
    /// Whether the head of a request may be expected at any time: not in HTTP/2, which reads frames.
    heads: bool,
    /// Requests that are being answered.
    in_flight: AtomicU32,
    /// hyper was handed a head, and no request has come of it.
    uncalled: AtomicBool,
    /// The head that it was handed last is one of HEAD.
    asks_for_head: AtomicBool,
    /// What stands behind the head, as hyper says: 0 for nothing said, 1 for chunks, otherwise the number of bytes and 2.
    framing: AtomicU64,
    /// Bytes that had come behind the head that hyper was handed last.
    behind: AtomicU64,
    /// A body was announced, and is not yet whole.
    body_left: AtomicBool,
    /// The client sends no more, and waits for an answer.
    half_closed: AtomicBool,
    /// Since when a head has been incomplete.
    head_since: AtomicU64,
    /// When something last came or went.
    active_at: AtomicU64,
    /// Since when the client takes no bytes.
    stalled_since: AtomicU64,
    /// Some of the client's bytes will never be read.
    refused: AtomicBool,
}

impl Pulse {
    pub(super) fn new(heads: bool) -> Self {
        Self {
            begun: Instant::now(),
            heads,
            in_flight: AtomicU32::new(0),
            uncalled: AtomicBool::new(false),
            asks_for_head: AtomicBool::new(false),
            framing: AtomicU64::new(0),
            behind: AtomicU64::new(0),
            body_left: AtomicBool::new(false),
            half_closed: AtomicBool::new(false),
            head_since: AtomicU64::new(0),
            active_at: AtomicU64::new(1),
            stalled_since: AtomicU64::new(0),
            refused: AtomicBool::new(false),
        }
    }

    fn now(&self) -> u64 {
        self.begun.elapsed().as_millis() as u64 + 1
    }

    /// Whether it reads frames: requests come many at a time, and the socket does not tell whether an answer is taken.
    pub(super) fn is_http2(&self) -> bool {
        !self.heads
    }

    /// A request came, with this behind its head.
    pub(super) fn called(&self, framing: Framing) {
        self.in_flight.fetch_add(1, Relaxed);
        if self.heads {
            self.uncalled.store(false, Relaxed);
            self.head_since.store(0, Relaxed);
            // A body that came with its head is thrown away in passing, where nobody wants it.
            let (told, left) = match framing {
                Framing::Chunked => (1, true),
                Framing::Length(bytes) => (bytes.saturating_add(2), bytes > self.behind.load(Relaxed)),
            };
            self.framing.store(told, Relaxed);
            self.body_left.store(left, Relaxed);
        }
    }

    /// What stands behind the head that hyper was handed; once, when it has said so.
    pub(super) fn take_framing(&self) -> Option<Framing> {
        match self.framing.swap(0, Relaxed) {
            0 => None,
            1 => Some(Framing::Chunked),
            bytes => Some(Framing::Length(bytes - 2)),
        }
    }

    /// The body that was announced is whole.
    pub(super) fn body_done(&self) {
        self.body_left.store(false, Relaxed);
    }

    /// Whether an answer now comes before the end of the body, so that the connection can't go on behind it.
    pub(super) fn is_early(&self) -> bool {
        self.body_left.load(Relaxed)
    }

    /// hyper was handed these bytes of a head, if any, and so many bytes had come behind it.
    pub(super) fn head_handed(&self, head: Option<&[u8]>, behind: usize) {
        if let Some(head) = head {
            self.behind.store(behind as u64, Relaxed);
            self.uncalled.store(true, Relaxed);
            self.asks_for_head.store(head.starts_with(b"HEAD "), Relaxed);
        }
    }

    /// A head has begun, or the connection itself, and is not whole.
    pub(super) fn head_begun(&self) {
        if self.head_since.load(Relaxed) == 0 {
            self.head_since.store(self.now(), Relaxed);
        }
    }

    /// No head has begun.
    pub(super) fn head_done(&self) {
        self.head_since.store(0, Relaxed);
    }

    /// Whether a request is being answered.
    pub(super) fn is_answering(&self) -> bool {
        self.in_flight.load(Relaxed) > 0
    }

    /// The client sends no more, and waits.
    pub(super) fn half_closed(&self) {
        self.half_closed.store(true, Relaxed);
    }

    /// Whether the client sends no more, so that nothing but asking shows whether it is still there.
    pub(super) fn is_half_closed(&self) -> bool {
        self.half_closed.load(Relaxed)
    }

    /// A request was answered, or given up.
    pub(super) fn answered(&self) {
        self.in_flight.fetch_sub(1, Relaxed);
        self.active_at.store(self.now(), Relaxed);
    }

    /// The rest of what the client sends is not wanted.
    pub(super) fn refuse_rest(&self) {
        self.refused.store(true, Relaxed);
    }

    /// Whether some of what the client sent will never be read, so that closing at once would take our answer from it.
    pub(super) fn is_refused(&self) -> bool {
        self.refused.load(Relaxed)
    }

    /// Whether a head has begun and is not whole.
    pub(super) fn in_head(&self) -> bool {
        self.head_since.load(Relaxed) != 0
    }

    fn read(&self, bytes: usize) {
        if bytes == 0 {
            return;
        }
        if !self.heads {
            self.active_at.store(self.now(), Relaxed);
        } else if self.in_flight.load(Relaxed) == 0 {
            self.head_begun();
        }
    }

    fn wrote(&self) {
        let now = self.now();
        self.active_at.store(now, Relaxed);
        if self.stalled_since.load(Relaxed) != 0 {
            self.stalled_since.store(0, Relaxed);
        }
        if self.heads && self.head_since.load(Relaxed) != 0 {
            self.head_since.store(now, Relaxed);
        }
    }

    fn stalled(&self) {
        if self.stalled_since.load(Relaxed) == 0 {
            self.stalled_since.store(self.now(), Relaxed);
        }
    }

    /// When the connection is too slow, unless something happens before; `None` while we are the ones who work.
    pub(super) fn deadline(&self, limits: &crate::Limits) -> Option<Instant> {
        let after = |since: u64, timeout: Duration| Some(self.begun + Duration::from_millis(since) + timeout);
        let (stalled, head) = (self.stalled_since.load(Relaxed), self.head_since.load(Relaxed));
        if stalled != 0 {
            after(stalled, limits.write_timeout)
        } else if head != 0 && !self.heads {
            // Other streams may be busy; nothing comes of them either while a block is not whole.
            after(head, limits.header_read_timeout)
        } else if self.in_flight.load(Relaxed) > 0 {
            None
        } else if head != 0 {
            after(head, limits.header_read_timeout)
        } else {
            after(self.active_at.load(Relaxed), limits.idle_timeout)
        }
    }
}

/// The socket as hyper sees it.
pub(super) struct Wire<S> {
    stream: S,
    /// What was read before hyper came.
    prefix: Bytes,
    /// What is written in the place of hyper's own answer.
    instead: Bytes,
    pulse: std::sync::Arc<Pulse>,
    /// Counts heads that are no HTTP.
    malformed: prometheus::IntCounter,
}

impl<S: Socket> Wire<S> {
    pub(super) fn new(stream: S, prefix: Bytes, pulse: std::sync::Arc<Pulse>, malformed: prometheus::IntCounter) -> Self {
        Self { stream, prefix, instead: Bytes::new(), pulse, malformed }
    }

    /// The socket, when hyper is done.
    pub(super) fn into_stream(self) -> S {
        self.stream
    }

    /// Whether the other end has given the connection up, as opposed to sending nothing more.
    pub(super) fn is_reset(&self) -> bool {
        self.stream.is_reset()
    }

    /// Notes what came of a write.
    fn note(&self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &result {
            Poll::Ready(Ok(_)) => self.pulse.wrote(),
            Poll::Pending => self.pulse.stalled(),
            Poll::Ready(Err(_)) => {}
        }
        result
    }

    /// Writes what stands in the place of hyper's answer, to its end.
    fn poll_instead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.instead.is_empty() {
            let result = Pin::new(&mut self.stream).poll_write(cx, &self.instead);
            let n = ready!(self.note(result))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.instead.advance(n);
        }
        Poll::Ready(Ok(()))
    }

    /// The status of hyper's own answer, if these bytes are one.
    fn own_answer(&self, bytes: &[u8]) -> Option<StatusCode> {
        if !self.pulse.heads || !self.pulse.uncalled.load(Relaxed) {
            return None;
        }
        let text = std::str::from_utf8(bytes).ok()?;
        let status = text.strip_prefix("HTTP/1.1 ").or_else(|| text.strip_prefix("HTTP/1.0 "))?.get(..3)?;
        let empty = text.ends_with("\r\n\r\n") && text.matches("\r\n\r\n").count() == 1 && text.contains("content-length: 0\r\n");
        if !empty || !status.starts_with('4') {
            return None;
        }
        StatusCode::from_bytes(status.as_bytes()).ok()
    }
}

/// The problem that stands in the place of hyper's own answer.
fn malformed(status: StatusCode) -> Problem {
    match status {
        StatusCode::URI_TOO_LONG => {
            Problem::new(status, "uri_too_long", "too large", "the request's target is longer than 65534 bytes")
                .limit(65534, None)
        }
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
            let detail = "the request's head has too many fields or bytes; GET /v1/limits shows header_bytes_max and headers_max";
            Problem::new(status, "header_too_large", "header too large", detail)
        }
        _ => Problem::new(status, "malformed_http", "malformed request", "the request line or a header field is no HTTP/1.1"),
    }
}

/// A problem as bytes on the wire, after which the connection is closed; without its body for HEAD.
pub(super) fn raw_answer(problem: &Problem, to_head: bool) -> Bytes {
    let status = problem.members().status;
    let body = problem.to_json();
    let retry = if status == StatusCode::SERVICE_UNAVAILABLE { "retry-after: 1\r\n" } else { "" };
    let mut out = format!(
        "HTTP/1.1 {} {}\r\ncontent-type: application/problem+json\r\nx-content-type-options: nosniff\r\ncache-control: no-store\r\n\
         date: {}\r\ncontent-length: {}\r\n{retry}connection: close\r\n\r\n",
        status.as_u16(),
        status.canonical_reason().unwrap_or_default(),
        date::now().to_str().unwrap_or_default(),
        body.len()
    )
    .into_bytes();
    if !to_head {
        out.extend_from_slice(&body);
    }
    out.into()
}

impl<S: Socket> AsyncRead for Wire<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        if self.prefix.is_empty() {
            ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        } else {
            let n = self.prefix.len().min(buf.remaining());
            buf.put_slice(&self.prefix.split_to(n));
        }
        self.pulse.read(buf.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl<S: Socket> AsyncWrite for Wire<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_instead(cx))?;
        if let Some(status) = self.own_answer(buf) {
            self.malformed.inc();
            self.pulse.refuse_rest();
            self.instead = raw_answer(&malformed(status), self.pulse.asks_for_head.load(Relaxed));
            return Poll::Ready(Ok(buf.len()));
        }
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.note(result)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if let [buf] = bufs {
            return self.poll_write(cx, buf);
        }
        ready!(self.poll_instead(cx))?;
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.note(result)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_instead(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_instead(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
