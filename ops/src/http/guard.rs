//! What stands in front of hyper: it hands over one request's bytes after the other, each judged
//! before hyper sees it.
//!
//! - [`heads`] (HTTP/1.1) and [`blocks`] (HTTP/2) say what of the bytes may pass. Most of them are
//!   read from the socket straight into hyper's own buffer; only what can't be judged yet is kept
//!   here, which is never more than a head.
//! - **A client that closes its sending side** (`nc -N`, `SHUT_WR`) still wants its answer. hyper
//!   is told to allow that, and then does not listen while it answers; so this does, whenever hyper
//!   flushes: it reads ahead, a little, and notices when the connection was reset. The end of what
//!   the client sends is handed over only when hyper asks for the next request.
//! - **An answer before the end of a body** is held back until that was read and thrown away
//!   ([`super::discard`]). hyper still waits for those bytes, and would take whatever comes next
//!   for them; so from then on it gets nothing but the end.

use super::blocks::Blocks;
use super::connection::Socket;
use super::discard::Discard;
use super::heads::{Heads, Next};
use super::pulse::Pulse;
use super::wire::Wire;
use crate::limits::Limits;
use bytes::{Buf, Bytes, BytesMut};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that are read while a request is answered, of what comes behind it.
const AHEAD_BYTES_MAX: usize = 16 << 10;

/// The socket as hyper sees it, with only what was judged.
pub(super) struct Guard<S> {
    wire: Wire<S>,
    pulse: Arc<Pulse>,
    version: Version,
    /// What came and is not yet judged.
    kept: BytesMut,
    /// What was judged and not yet handed over.
    judged: Bytes,
    /// The client sends no more.
    ended: bool,
    /// What is thrown away before the answer, and whether no more will be.
    discard: Option<Discard>,
    given_up: bool,
    /// Bytes were thrown away for which hyper may still ask.
    cut: bool,
}

/// What the connection speaks.
enum Version {
    One(Heads),
    Two(Box<Blocks>),
}

impl<S: Socket> Guard<S> {
    pub(super) fn new(wire: Wire<S>, pulse: Arc<Pulse>, is_http2: bool, limits: &Limits) -> Self {
        let version = match is_http2 {
            false => Version::One(Heads::new(limits.header_bytes_max, limits.headers_max)),
            true => {
                pulse.head_begun();
                Version::Two(Box::new(Blocks::new(limits.header_bytes_max)))
            }
        };
        Self {
            wire,
            pulse,
            version,
            kept: BytesMut::new(),
            judged: Bytes::new(),
            ended: false,
            discard: None,
            given_up: false,
            cut: false,
        }
    }

    /// The socket, when hyper is done.
    pub(super) fn into_stream(self) -> S {
        self.wire.into_stream()
    }

    /// What may be handed over next.
    fn next(&mut self) -> io::Result<Next> {
        match &mut self.version {
            Version::One(heads) => {
                if let Some(framing) = self.pulse.take_framing() {
                    heads.told(framing);
                }
                match heads.next() {
                    // hyper asks for more of a head that is whole: it saw something else than we
                    // did.
                    Next::Nothing if !self.ended => {
                        Err(io::Error::new(io::ErrorKind::InvalidData, "a head without an end"))
                    }
                    next => Ok(next),
                }
            }
            Version::Two(blocks) => Ok(match blocks.raw() {
                0 => Next::Judged,
                raw => Next::Raw(raw),
            }),
        }
    }

    fn passed(&mut self, bytes: usize) {
        match &mut self.version {
            Version::One(heads) => {
                heads.passed(bytes);
                if heads.is_between() {
                    self.pulse.body_done();
                }
            }
            Version::Two(blocks) => blocks.passed(bytes),
        }
        self.forget_if_empty();
    }

    /// Gives the memory back of what was kept.
    fn forget_if_empty(&mut self) {
        if self.kept.is_empty() {
            self.kept = BytesMut::new();
        }
    }

    /// Judges what is kept. Whether there is something to hand over, or that passes as it comes.
    fn judge(&mut self) -> io::Result<bool> {
        let taken = match &mut self.version {
            Version::One(heads) => {
                let taken = heads.take(&mut self.kept);
                let taken = taken
                    .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "a malformed chunk"))?;
                if taken.is_none() && self.kept.is_empty() && heads.is_between() {
                    // Nothing but empty lines, which begin no head.
                    self.pulse.head_done();
                }
                if matches!(heads.next(), Next::Nothing) {
                    self.pulse.head_handed(taken.as_deref());
                }
                taken
            }
            Version::Two(blocks) => {
                let taken = blocks.take(&mut self.kept);
                match taken.is_none()
                    && (blocks.is_midway() || !self.kept.is_empty())
                    && blocks.raw() == 0
                {
                    true => self.pulse.head_begun(),
                    false => self.pulse.head_done(),
                }
                if taken.is_none() && blocks.raw() > 0 {
                    return Ok(true);
                }
                taken
            }
        };
        let Some(bytes) = taken else { return Ok(false) };
        self.judged = bytes;
        self.forget_if_empty();
        Ok(true)
    }

    /// What came into hyper's buffer, behind its first `before` bytes: leaves there what may stay,
    /// and keeps the rest.
    fn sort(&mut self, buf: &mut ReadBuf<'_>, before: usize) {
        let came = &buf.filled()[before..];
        let stays = match &mut self.version {
            Version::One(heads) if self.kept.is_empty() => heads.whole(came),
            _ => None,
        };
        if let Some(stays) = stays {
            self.pulse.head_handed(Some(&came[..stays]));
        }
        let stays = stays.unwrap_or(0);
        self.kept.extend_from_slice(&came[stays..]);
        buf.set_filled(before + stays);
    }

    /// Listens while a request is answered: an error where the connection was reset.
    fn listen(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let Version::One(heads) = &mut self.version else { return Ok(()) };
        if let Some(framing) = self.pulse.take_framing() {
            heads.told(framing);
        }
        if !self.pulse.is_answering() || !heads.is_between() {
            return Ok(());
        }
        if self.ended {
            return match self.wire.is_reset() {
                true => Err(io::ErrorKind::ConnectionReset.into()),
                false => Ok(()),
            };
        }
        let mut piece = [0; 512];
        while self.kept.len() < AHEAD_BYTES_MAX {
            let mut buf = ReadBuf::new(&mut piece);
            match Pin::new(&mut self.wire).poll_read(cx, &mut buf) {
                Poll::Pending => break,
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Ready(Ok(())) if buf.filled().is_empty() => {
                    self.ended = true;
                    self.pulse.half_closed();
                    break;
                }
                Poll::Ready(Ok(())) => self.kept.extend_from_slice(buf.filled()),
            }
        }
        Ok(())
    }

    /// Whether an answer that begins like this may be written: where it comes before the end of a
    /// body, that is read first.
    fn poll_answer(&mut self, begins: &[u8], cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Version::One(heads) = &mut self.version else { return Poll::Ready(Ok(())) };
        if let Some(framing) = self.pulse.take_framing() {
            heads.told(framing);
        }
        if begins.starts_with(b"HTTP/1.1 100 ") {
            heads.continued();
            return Poll::Ready(Ok(()));
        }
        while heads.is_in_body() && !self.given_up && !self.ended {
            self.cut = true;
            // What is no body ends it, too: the connection is closed behind this answer.
            if !self.kept.is_empty() {
                match heads.discard(&self.kept) {
                    Ok(bytes) => self.kept.advance(bytes),
                    Err(_) => self.given_up = true,
                }
                continue;
            }
            let discard = self.discard.get_or_insert_with(Discard::new);
            let more = ready!(discard.poll_more(&mut self.wire, &self.pulse, cx))?;
            match heads.discard(more) {
                Ok(bytes) if bytes > 0 => self.kept.extend_from_slice(&more[bytes..]),
                _ => self.given_up = true,
            }
        }
        self.discard = None;
        Poll::Ready(Ok(()))
    }
}

impl<S: Socket> AsyncRead for Guard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if buf.remaining() == 0 || this.cut {
            return Poll::Ready(Ok(()));
        }
        loop {
            if !this.judged.is_empty() {
                let bytes = this.judged.len().min(buf.remaining());
                buf.put_slice(&this.judged.split_to(bytes));
                return Poll::Ready(Ok(()));
            }
            match this.next()? {
                Next::Raw(most) if !this.kept.is_empty() => {
                    let bytes = this
                        .kept
                        .len()
                        .min(buf.remaining())
                        .min(usize::try_from(most).unwrap_or(usize::MAX));
                    buf.put_slice(&this.kept[..bytes]);
                    this.kept.advance(bytes);
                    this.passed(bytes);
                    return Poll::Ready(Ok(()));
                }
                Next::Raw(_) if this.ended => return Poll::Ready(Ok(())),
                Next::Raw(most) => {
                    let before = buf.filled().len();
                    ready!(Pin::new(&mut this.wire).poll_read(cx, buf))?;
                    let came = buf.filled().len() - before;
                    let bytes = came.min(usize::try_from(most).unwrap_or(usize::MAX));
                    this.kept.extend_from_slice(&buf.filled()[before + bytes..]);
                    buf.set_filled(before + bytes);
                    this.ended |= came == 0;
                    this.passed(bytes);
                    return Poll::Ready(Ok(()));
                }
                Next::Nothing => return Poll::Ready(Ok(())),
                Next::Judged => {}
            }
            if !this.kept.is_empty() && this.judge()? {
                continue;
            }
            if this.ended {
                // hyper says what it makes of a part of a head.
                this.judged = this.kept.split().freeze();
                if this.judged.is_empty() {
                    return Poll::Ready(Ok(()));
                }
                this.pulse.head_handed(Some(&this.judged));
                continue;
            }
            if !this.kept.is_empty() && matches!(this.version, Version::One(_)) {
                this.pulse.head_begun();
            }
            let before = buf.filled().len();
            ready!(Pin::new(&mut this.wire).poll_read(cx, buf))?;
            if buf.filled().len() == before {
                this.ended = true;
                continue;
            }
            this.sort(buf, before);
            if buf.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: Socket> AsyncWrite for Guard<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_answer(buf, cx))?;
        Pin::new(&mut self.wire).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_answer(bufs.first().map_or(&[], |buf| &buf[..]), cx))?;
        Pin::new(&mut self.wire).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.wire.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.listen(cx)?;
        Pin::new(&mut self.wire).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_shutdown(cx)
    }
}
