//! What a connection is doing: whether a head has begun, a request is being answered, the client
//! takes what it gets; and what the guard and the service tell each other about the request that is
//! under way.
//!
//! All of it is counters and flags that several tasks touch; nothing here waits.

use super::heads::Framing;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// What a connection is doing, for those who judge whether it is too slow. Times are milliseconds
/// since it began; 0 for "not so".
pub(super) struct Pulse {
    begun: Instant,
    /// Whether the head of a request may be expected at any time: not in HTTP/2, which reads
    /// frames.
    heads: bool,
    /// Requests that are being answered.
    in_flight: AtomicU32,
    /// hyper was handed a head, and no request has come of it.
    uncalled: AtomicBool,
    /// The head that it was handed last is one of HEAD.
    asks_for_head: AtomicBool,
    /// What stands behind the head, as hyper says: 0 for nothing said, 1 for chunks, otherwise the
    /// number of bytes and 2.
    framing: AtomicU64,
    /// A body was announced, and hyper does not have all of it yet; of one in chunks, the service
    /// has not read it to its end.
    body_left: AtomicBool,
    /// The client sends no more, and waits for an answer.
    half_closed: AtomicBool,
    /// Since when a head has been incomplete.
    head_since: AtomicU64,
    /// When something last came or went; of HTTP/2, when a request was answered, or its answer on
    /// its way.
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

    /// Whether it reads frames: requests come many at a time, and the socket does not tell whether
    /// an answer is taken.
    pub(super) fn is_http2(&self) -> bool {
        !self.heads
    }

    /// A request came, with this behind its head.
    pub(super) fn called(&self, framing: Framing) {
        self.in_flight.fetch_add(1, Relaxed);
        if self.heads {
            self.uncalled.store(false, Relaxed);
            self.head_since.store(0, Relaxed);
            let told = match framing {
                Framing::Chunked => 1,
                Framing::Length(bytes) => bytes.saturating_add(2),
            };
            self.framing.store(told, Relaxed);
            self.body_left.store(framing != Framing::Length(0), Relaxed);
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

    /// hyper has the whole of a body of known length, or the service that of any body.
    pub(super) fn body_done(&self) {
        self.body_left.store(false, Relaxed);
    }

    /// Whether an answer now comes before the end of the body, so that the connection can't go on
    /// behind it.
    pub(super) fn is_early(&self) -> bool {
        self.body_left.load(Relaxed)
    }

    /// Whether hyper was handed a head of which no request has come: what it says now, it says in
    /// our name.
    pub(super) fn is_uncalled(&self) -> bool {
        self.heads && self.uncalled.load(Relaxed)
    }

    /// Whether the head that hyper was handed last is one of HEAD, which gets no body.
    pub(super) fn asks_for_head(&self) -> bool {
        self.asks_for_head.load(Relaxed)
    }

    /// hyper was handed these bytes of a head, if any.
    pub(super) fn head_handed(&self, head: Option<&[u8]>) {
        if let Some(head) = head {
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

    /// Whether the client sends no more, so that nothing but asking shows whether it is still
    /// there.
    pub(super) fn is_half_closed(&self) -> bool {
        self.half_closed.load(Relaxed)
    }

    /// A request was answered, or given up.
    pub(super) fn answered(&self) {
        self.in_flight.fetch_sub(1, Relaxed);
        self.active_at.store(self.now(), Relaxed);
    }

    /// An answer is on its way.
    pub(super) fn answers(&self) {
        self.active_at.store(self.now(), Relaxed);
    }

    /// The rest of what the client sends is not wanted.
    pub(super) fn refuse_rest(&self) {
        self.refused.store(true, Relaxed);
    }

    /// Whether some of what the client sent will never be read, so that closing at once would take
    /// our answer from it.
    pub(super) fn is_refused(&self) -> bool {
        self.refused.load(Relaxed)
    }

    /// Whether a head has begun and is not whole.
    pub(super) fn in_head(&self) -> bool {
        self.head_since.load(Relaxed) != 0
    }

    pub(super) fn read(&self, bytes: usize) {
        if bytes == 0 {
            return;
        }
        if self.heads && self.in_flight.load(Relaxed) == 0 {
            self.head_begun();
        }
    }

    pub(super) fn wrote(&self) {
        let now = self.now();
        // In HTTP/2 that may be the answer to a ping.
        if self.heads {
            self.active_at.store(now, Relaxed);
        }
        if self.stalled_since.load(Relaxed) != 0 {
            self.stalled_since.store(0, Relaxed);
        }
        if self.heads && self.head_since.load(Relaxed) != 0 {
            self.head_since.store(now, Relaxed);
        }
    }

    pub(super) fn stalled(&self) {
        if self.stalled_since.load(Relaxed) == 0 {
            self.stalled_since.store(self.now(), Relaxed);
        }
    }

    /// When the connection is too slow, unless something happens before; `None` while we are the
    /// ones who work.
    pub(super) fn deadline(&self, limits: &crate::Limits) -> Option<Instant> {
        let after = |since: u64, timeout: Duration| {
            Some(self.begun + Duration::from_millis(since) + timeout)
        };
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
