//! Between the guard and the socket: what a connection is doing, and what hyper says in our name.
//!
//! [`Wire`] replays the first bytes, which were read to tell HTTP/1.1 from HTTP/2; it notes in the
//! [`Pulse`] when bytes came, went, or did not want to go; and it puts a problem in the place of
//! the empty answer that hyper gives to a head that is no HTTP.
//!
//! **When is an answer hyper's own?** When the guard has handed over a head, no request came of it,
//! and what is written is nothing but the head of a client error with an empty body, which we never
//! send.

use super::connection::Socket;
use super::date;
use super::pulse::Pulse;
use crate::problem::Problem;
use bytes::{Buf, Bytes};
use http::StatusCode;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

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
    pub(super) fn new(
        stream: S,
        prefix: Bytes,
        pulse: std::sync::Arc<Pulse>,
        malformed: prometheus::IntCounter,
    ) -> Self {
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
        if !self.pulse.is_uncalled() {
            return None;
        }
        let text = std::str::from_utf8(bytes).ok()?;
        let status =
            text.strip_prefix("HTTP/1.1 ").or_else(|| text.strip_prefix("HTTP/1.0 "))?.get(..3)?;
        let empty = text.ends_with("\r\n\r\n")
            && text.matches("\r\n\r\n").count() == 1
            && text.contains("content-length: 0\r\n");
        if !empty || !status.starts_with('4') {
            return None;
        }
        StatusCode::from_bytes(status.as_bytes()).ok()
    }
}

/// The problem that stands in the place of hyper's own answer.
fn malformed(status: StatusCode) -> Problem {
    match status {
        StatusCode::URI_TOO_LONG => Problem::new(
            status,
            "uri_too_long",
            "too large",
            "the request's target is longer than 65534 bytes",
        )
        .limit(65534, None),
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
            let detail = "the request's head has too many fields or bytes; GET /v1/limits shows \
                          header_bytes_max and headers_max";
            Problem::new(status, "header_too_large", "header too large", detail)
        }
        _ => Problem::new(
            status,
            "malformed_http",
            "malformed request",
            "the request line or a header field is no HTTP/1.1",
        ),
    }
}

/// A problem as bytes on the wire, after which the connection is closed; without its body for HEAD.
pub(super) fn raw_answer(problem: &Problem, to_head: bool) -> Bytes {
    let status = problem.members().status;
    let body = problem.to_json();
    let retry = if status == StatusCode::SERVICE_UNAVAILABLE { "retry-after: 1\r\n" } else { "" };
    let mut out = format!(
        "HTTP/1.1 {} {}\r\ncontent-type: application/problem+json\r\n\
         x-content-type-options: nosniff\r\ncache-control: no-store\r\n\
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
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
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
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_instead(cx))?;
        if let Some(status) = self.own_answer(buf) {
            self.malformed.inc();
            self.pulse.refuse_rest();
            self.instead = raw_answer(&malformed(status), self.pulse.asks_for_head());
            return Poll::Ready(Ok(buf.len()));
        }
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.note(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
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
