//! One connection, from its first byte to its last.
//!
//! 1. Its first bytes tell HTTP/2 (which begins with a fixed preface) from HTTP/1.1.
//! 2. hyper serves it, behind the [`Guard`], which judges what it gets to see. Whenever hyper
//!    waits, the [`Pulse`] is asked when the connection will be too slow, and one timer is set to
//!    the earliest such time; it is moved back only when it fires, so a busy connection touches no
//!    timer.
//! 3. When the server shuts down, hyper is told to finish what is in flight and take nothing more.
//! 4. Where we answered without reading all that the client sent, what it still sends is read and
//!    thrown away for a moment: closing at once would make its system discard our answer.

use super::blocks::PREFACE;
use super::guard::Guard;
use super::leash::Leash;
use super::pulse::Pulse;
use super::service::{App, Session};
use super::share::Account;
use super::wire::{Wire, raw_answer};
use crate::limits::Limits;
use crate::problem::Problem;
use crate::traits::{Admin, Inspect, Kv};
use bytes::{Bytes, BytesMut};
use http::StatusCode;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long a client is listened to after an answer that it did not wait for.
const LINGER: Duration = Duration::from_secs(2);
/// The same in bytes.
const LINGER_BYTES: usize = 64 << 20;
/// As many fields of a head hyper takes unless told otherwise, without memory of their own for
/// each.
const HEADERS_MAX: usize = 100;
/// How often a client that sends no more is asked whether it is still there, while it waits.
const RESET_CHECK: Duration = Duration::from_millis(250);

/// How long a kept place may be had, and how long its request may take to begin.
const KEPT: Duration = Duration::from_secs(5);
const KEPT_HEAD: Duration = Duration::from_secs(2);
/// How much hyper reads ahead of us in HTTP/1.1, where a head needs no more.
const READ_BUFFER: usize = 64 << 10;
/// What one stream of HTTP/2, and all of a connection, may send ahead of us.
pub(super) const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;

/// What carries a connection: a TCP stream, or bytes in memory, where the server is fuzzed.
pub trait Socket: AsyncRead + AsyncWrite + Unpin + Send {
    /// Whether the other end has given the connection up, as opposed to sending nothing more.
    fn is_reset(&self) -> bool {
        false
    }
}

impl Socket for TcpStream {
    fn is_reset(&self) -> bool {
        matches!(self.take_error(), Ok(Some(_)) | Err(_))
    }
}

/// How serving a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// By either end, in good order or not.
    Closed,
    /// The client was too slow.
    TooSlow,
    /// The server wants it gone.
    Dropped,
}

/// Serves one connection, which came in on a loopback address or not, to its end.
pub(super) async fn serve<S: Socket, K: Kv, A: Admin, I: Inspect>(
    stream: S,
    on_loopback: bool,
    app: Arc<App<K, A, I>>,
    leash: Arc<Leash>,
    account: Arc<Account>,
    kept: bool,
) {
    if kept {
        // Nobody has such a place for long.
        let _ =
            tokio::time::timeout(KEPT, serve_any(stream, on_loopback, app, leash, account, true))
                .await;
    } else {
        serve_any(stream, on_loopback, app, leash, account, false).await;
    }
}

async fn serve_any<S: Socket, K: Kv, A: Admin, I: Inspect>(
    mut stream: S,
    on_loopback: bool,
    app: Arc<App<K, A, I>>,
    leash: Arc<Leash>,
    account: Arc<Account>,
    kept: bool,
) {
    let patience =
        if kept { KEPT_HEAD.min(app.limits.idle_timeout) } else { app.limits.idle_timeout };
    let first = sniff(&mut stream, patience, &app.limits, &leash).await;
    let (prefix, is_http2) = match first {
        Some((_, true)) | None if kept => {
            return refuse(stream, &too_many(app.limits.connections_max)).await;
        }
        Some(first) => first,
        None => return,
    };
    let pulse = Arc::new(Pulse::new(!is_http2));
    let wire = Wire::new(stream, prefix, pulse.clone(), app.metrics.http.malformed.clone());
    let session = Arc::new(Session {
        app: app.clone(),
        pulse: pulse.clone(),
        leash: leash.clone(),
        account,
        on_loopback,
        kept,
    });
    let wire = Guard::new(wire, pulse.clone(), is_http2, &app.limits);
    let service = service_fn(move |request| session.clone().handle(request));
    let limits = &app.limits;
    if is_http2 {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .auto_date_header(false)
            .keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(20))
            .max_concurrent_streams(limits.http2_streams_max)
            .max_header_list_size(limits.header_bytes_max as u32)
            // What is sent to us and not yet read: a client may have so much of it in memory, for
            // all of its streams together.
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            // What a stream says it takes at once; `owed` gives it no more than that, and counts
            // it.
            .max_send_buf_size(64 << 10);
        let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(wire), service));
        let ended = drive(&pulse, &leash, limits, |cx, finish| {
            if finish {
                connection.as_mut().graceful_shutdown();
            }
            connection.as_mut().poll(cx).map(|_| ())
        })
        .await;
        if ended == Ended::TooSlow {
            app.metrics.http.timeouts.inc();
        }
        return;
    }
    let mut builder = http1::Builder::new();
    // Timeouts are ours: hyper's own would make a timer for each request, and close idle
    // connections as early as slow ones. Not `pipeline_flush`: with it hyper buffers a stream
    // without bound, holds answers back while the next head is incomplete, and forgets them where
    // that head is malformed. The tests of slow clients and malformed heads show each.
    builder
        .max_header_size(limits.header_bytes_max)
        .max_buf_size(READ_BUFFER.max(limits.header_bytes_max + (8 << 10)))
        .header_read_timeout(None)
        .auto_date_header(false)
        .half_close(true)
        .keep_alive(!kept);
    if limits.headers_max > HEADERS_MAX {
        builder.max_headers(limits.headers_max);
    }
    let mut connection = builder.serve_connection(TokioIo::new(wire), service);
    let ended = drive(&pulse, &leash, limits, |cx, finish| {
        let mut connection = Pin::new(&mut connection);
        if finish {
            connection.as_mut().graceful_shutdown();
        }
        connection.poll(cx).map(|_| ())
    })
    .await;
    match ended {
        Ended::TooSlow => {
            app.metrics.http.timeouts.inc();
            if pulse.in_head() {
                let timeout = humantime::format_duration(limits.header_read_timeout);
                let detail = format!("the request's head was not whole within {timeout}");
                let problem = Problem::new(
                    StatusCode::REQUEST_TIMEOUT,
                    "header_timeout",
                    "request timeout",
                    detail,
                );
                refuse(connection.into_parts().io.into_inner().into_stream(), &problem).await;
            }
        }
        Ended::Closed if pulse.is_refused() => {
            linger(connection.into_parts().io.into_inner().into_stream()).await
        }
        Ended::Closed | Ended::Dropped => {}
    }
}

/// Reads the first bytes, and says whether they begin HTTP/2. `None` where nothing more is to be
/// done.
async fn sniff(
    stream: &mut impl Socket,
    patience: Duration,
    limits: &Limits,
    leash: &Leash,
) -> Option<(Bytes, bool)> {
    let mut first = BytesMut::with_capacity(1024);
    let mut reading = std::pin::pin!(async {
        let mut until = Instant::now() + patience;
        loop {
            match tokio::time::timeout_at(until.into(), stream.read_buf(&mut first)).await {
                Ok(Ok(n)) if n > 0 => {}
                _ => return None,
            }
            if first.len() >= PREFACE.len() || !PREFACE.starts_with(&first) {
                let is_http2 = first.starts_with(PREFACE);
                return Some((std::mem::take(&mut first).freeze(), is_http2));
            }
            // However many more bytes come, one by one.
            until = until.min(Instant::now() + limits.header_read_timeout);
        }
    });
    poll_fn(|cx| match leash.phase(cx) {
        0 => reading.as_mut().poll(cx),
        _ => Poll::Ready(None),
    })
    .await
}

/// Lets hyper work until it is done, the client is too slow, or the server wants the connection
/// gone. `step` polls hyper, and first tells it to finish where its second argument says so.
async fn drive(
    pulse: &Pulse,
    leash: &Leash,
    limits: &Limits,
    mut step: impl FnMut(&mut Context<'_>, bool) -> Poll<()>,
) -> Ended {
    let mut armed = Instant::now() + limits.idle_timeout;
    let mut timer = std::pin::pin!(tokio::time::sleep_until(armed.into()));
    let mut told = false;
    let mut asked = None;
    poll_fn(|cx| {
        let phase = leash.phase(cx);
        if phase == Leash::DROP {
            return Poll::Ready(Ended::Dropped);
        }
        let tell = phase == Leash::FINISH && !told;
        told |= tell;
        if step(cx, tell).is_ready() {
            return Poll::Ready(Ended::Closed);
        }
        if pulse.is_half_closed() {
            let check = asked.get_or_insert_with(|| Box::pin(tokio::time::sleep(RESET_CHECK)));
            if check.as_mut().poll(cx).is_ready() {
                // hyper flushes when it is polled, and the guard asks.
                asked = None;
                cx.waker().wake_by_ref();
            }
        }
        if pulse.is_http2() && leash.ledger.deadline().is_some() {
            pulse.answers();
        }
        let deadline = || pulse.deadline(limits).into_iter().chain(leash.ledger.deadline()).min();
        if let Some(deadline) = deadline().filter(|deadline| *deadline < armed) {
            armed = deadline;
            timer.as_mut().reset(armed.into());
        }
        while timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            armed = deadline().unwrap_or(now + limits.idle_timeout);
            if armed <= now {
                return Poll::Ready(Ended::TooSlow);
            }
            timer.as_mut().reset(armed.into());
        }
        Poll::Pending
    })
    .await
}

/// 503 for a connection that there is no place for.
pub(super) fn too_many(connections_max: usize) -> Problem {
    let detail = format!(
        "this node has {connections_max} connections, all at work, and takes no more; close some, \
         or ask another node"
    );
    Problem::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "too_many_connections",
        "too many connections",
        detail,
    )
    .retryable()
    .limit(connections_max as u64, None)
    .close()
}

/// Says why, and closes.
async fn refuse(mut stream: impl Socket, problem: &Problem) {
    let answer = raw_answer(problem, false);
    let said = tokio::time::timeout(LINGER, async {
        stream.write_all(&answer).await?;
        stream.shutdown().await
    });
    if let Ok(Ok(())) = said.await {
        linger(stream).await;
    }
}

/// Reads and throws away what still comes, for a moment.
async fn linger(mut stream: impl Socket) {
    let mut left = LINGER_BYTES;
    let mut scratch = vec![0; 16 << 10];
    let _ = tokio::time::timeout(LINGER, async {
        while left > 0 {
            match stream.read(&mut scratch).await {
                Ok(n) if n > 0 => left = left.saturating_sub(n),
                _ => break,
            }
        }
    })
    .await;
}
