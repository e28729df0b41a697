//! Fuzzes the HTTP server: whatever bytes a client sends, in whatever pieces, nothing panics, every
//! answer is HTTP, every error a problem, what reaches the node keeps the limits, and all memory is
//! given back.
//!
//! ```text
//! input := piece (1) ‖ fault (1) ‖ what the client sends
//! ```
//!
//! The whole of `ops` works on it, from the first byte of a connection to its last, without a
//! socket: a [`Client`] in memory stands in the place of the stream, and the node is the one of the
//! server's own tests. Limits are small, so that a few bytes reach them.

use super::script::Script;
use bytes::Bytes;
use flotilla_ops::http::Offline;
use flotilla_ops::{Kv, Limits, Metrics};
use flotilla_router::Reply;
use flotilla_router::{Condition, KeyRange, NodeId, Op, Outcome, Refusal, Request, ShardId};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::Instant;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::{Builder, Runtime};

#[path = "../../../ops/tests/http/fake.rs"]
#[allow(dead_code, reason = "the server's own tests use all of it")]
mod fake;

/// Keys and values of more bytes than this are refused.
const KEY_BYTES_MAX: usize = 48;
const VALUE_BYTES_MAX: usize = 256;
/// How often the client lets the server work before it closes its end.
const PATIENCE: u32 = 8;

/// Made once: a hundred metrics take longer than a request.
static METRICS: LazyLock<Arc<Metrics>> = LazyLock::new(Arc::default);

thread_local! {
    static RUNTIME: Runtime =
        Builder::new_current_thread().enable_time().build().expect("a runtime needs memory alone");
}

/// Runs one input.
pub(crate) fn run(data: &[u8]) {
    let mut script = Script::new(data);
    let (piece, fault) = (usize::from(script.u8()), script.u8());
    let sent = script.rest();
    serve(piece, fault, sent, |output| check(output, sent, is_internal(fault)));
    assert_eq!(METRICS.http.in_flight.get(), 0, "a request is counted for ever");
    assert_eq!(METRICS.http.in_flight_bytes.get(), 0, "bytes of bodies are held for ever");
}

/// Serves one connection, and shows what came back.
fn serve(piece: usize, fault: u8, sent: &[u8], look: impl FnOnce(&[u8])) {
    let node = Arc::new(fake::Fake::default());
    if let Some(refusal) = refusal(fault) {
        node.break_shard(3, refusal);
    }
    let limits = Limits {
        key_bytes_max: KEY_BYTES_MAX,
        value_bytes_max: VALUE_BYTES_MAX,
        header_bytes_max: 8 << 10,
        in_flight_bytes_max: 2048,
        batch_bytes_max: 1024,
        batch_ops_max: 8,
        scan_items_default: 3,
        scan_items_max: 5,
        scan_bytes_max: 1024,
        scan_bytes_default: 1024,
        admin_page_max: 2,
        ..Limits::default()
    };
    let (kv, output) = (Arc::new(Checked(node.clone())), Arc::default());
    let server = Offline::new(limits, kv, node.clone(), node, METRICS.clone());
    let client = Client {
        input: Bytes::copy_from_slice(sent),
        piece,
        patience: PATIENCE,
        output: Arc::clone(&output),
    };
    RUNTIME.with(|runtime| runtime.block_on(server.serve(client)));
    look(&output.lock().expect("nothing panics with it held"));
}

/// What one shard of the node answers instead; nothing for most inputs.
fn refusal(fault: u8) -> Option<Refusal> {
    let shard = ShardId(3);
    Some(match fault % 16 {
        1 => Refusal::NotLeader { shard, leader: Some(NodeId(2)) },
        2 => Refusal::OutcomeUnknown { shard },
        3 => Refusal::Overloaded { what: "a queue".into(), limit: 7 },
        4 => Refusal::Internal { why: "it broke".into(), outcome: Outcome::Unknown },
        5 => Refusal::ShuttingDown,
        6 => Refusal::DiskFull { free_bytes: 1, reserve_bytes: 2 },
        7 => Refusal::TooStale { shard },
        8 => Refusal::Expired { shard },
        _ => return None,
    })
}

fn is_internal(fault: u8) -> bool {
    matches!(refusal(fault), Some(Refusal::Internal { .. }))
}

/// The node, behind a check of what the server may ask of it.
struct Checked(Arc<fake::Fake>);

impl Kv for Checked {
    async fn call(&self, request: Request, deadline: Instant) -> Result<Reply, Refusal> {
        let key = |key: &Bytes| {
            assert!((1..=KEY_BYTES_MAX).contains(&key.len()), "a key of {} bytes", key.len())
        };
        let range = |range: &KeyRange| {
            let bounds = [Some(&range.start), range.end.as_ref()];
            assert!(!range.is_empty(), "an empty range was asked for");
            assert!(
                bounds.into_iter().flatten().all(|bound| bound.len() <= KEY_BYTES_MAX + 1),
                "a bound is too long"
            );
        };
        match &request {
            Request::Get { key: wanted, .. } => key(wanted),
            Request::Scan { scan, .. } | Request::Part { scan, .. } => {
                range(&scan.range);
                assert!(scan.limit > 0 && scan.bytes_max > 0, "a scan of nothing");
            }
            Request::Write(command) => match command.op() {
                Op::Put { key: written, value } => {
                    key(written);
                    assert!(value.len() <= VALUE_BYTES_MAX, "a value of {} bytes", value.len());
                }
                Op::Delete { key: deleted } => key(deleted),
                Op::DeleteRange { range: deleted } => {
                    range(deleted);
                    assert_eq!(
                        command.condition(),
                        Condition::Always,
                        "a range was deleted under a condition"
                    );
                }
            },
            Request::Admin(_) => panic!("an admin question among those about keys"),
        }
        self.0.call(request, deadline).await
    }
}

/// A client in memory: gives what it has in pieces, takes everything, and closes its end when it
/// has waited long enough.
struct Client {
    input: Bytes,
    /// Bytes of one piece; 0 for all at once.
    piece: usize,
    patience: u32,
    output: Arc<std::sync::Mutex<Vec<u8>>>,
}

impl AsyncRead for Client {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.input.is_empty() && self.patience > 0 {
            self.patience -= 1;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let most = if self.piece == 0 { usize::MAX } else { self.piece };
        let length = self.input.len().min(most).min(buf.remaining());
        buf.put_slice(&self.input.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl flotilla_ops::http::Socket for Client {}

impl AsyncWrite for Client {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.output.lock().expect("nothing panics with it held").extend_from_slice(buf);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Whether what came back is a row of answers: whole heads, a status that we give, problems in
/// JSON.
fn check(mut output: &[u8], sent: &[u8], may_be_internal: bool) {
    let is_http2 = sent.starts_with(b"PRI * HTTP/2.0");
    // The answer to HEAD says how long a body would be, and has none: behind one the next answer
    // can't be told.
    let has_head = sent.windows(4).any(|window| window.eq_ignore_ascii_case(b"head"));
    while !output.is_empty() && !is_http2 {
        let end = find(output, b"\r\n\r\n").expect("an answer's head is whole") + 4;
        let head = std::str::from_utf8(&output[..end])
            .expect("an answer's head is text")
            .to_ascii_lowercase();
        let status =
            head.strip_prefix("http/1.").and_then(|rest| rest.get(2..5)?.parse::<u16>().ok());
        let status = status.unwrap_or_else(|| panic!("no status in {head:?}"));
        assert!((100..600).contains(&status), "status {status}");
        assert!(status != 500 || may_be_internal, "an internal error: {head}");
        let field =
            |name: &str| head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        let Some(length) = field("content-length")
            .and_then(|text| text.parse::<usize>().ok())
            .filter(|_| !has_head)
        else {
            // A stream, an answer without a body, or one whose body can't be told.
            return;
        };
        let body = output.get(end..end + length).expect("a body as long as its head says");
        if field("content-type") == Some("application/problem+json") {
            let problem: serde_json::Value =
                serde_json::from_slice(body).expect("a problem is JSON");
            assert_eq!(problem["status"], status, "a problem of another status: {problem}");
            assert!(
                problem["code"].is_string() && problem["outcome"].is_string(),
                "a problem lacks members: {problem}"
            );
        }
        output = &output[end + length..];
    }
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}
