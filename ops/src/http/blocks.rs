//! One HTTP/2 connection's bytes on their way to hyper: what target each block of header fields
//! names.
//!
//! h2 makes a URI of `:path`, and drops what stands behind `#`. So the frames are read here before
//! it gets them, by its own decoder, and what is wrong is handed over with a refusal for a target,
//! as [`super::heads`] does.
//!
//! - All frames but HEADERS and CONTINUATION pass as they come.
//! - A block is kept until it is whole and judged. Then its frames pass as they came, byte for
//!   byte: h2's decoder and ours see the same, and keep the same table.
//! - From the first refusal on the two tables differ, since h2 gets another block in the place of
//!   that one. So from then on every block is written anew, all its fields as literals that refer
//!   to no table.
//! - What is no HTTP/2 is handed over as it is: h2 says so, by resetting the stream or closing the
//!   connection.

use super::target::{self, Flaw};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::Stream;
use h2::Codec;
use h2::frame::{Frame, Pseudo};
use http::{HeaderMap, Method};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How a connection begins.
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes of a frame's head.
const FRAME_HEAD: usize = 9;
/// The largest payload of a frame that we take; hyper announces the same.
const PAYLOAD_MAX: usize = 16_384;
/// Types and flags of frames.
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// Refers to nothing in any table, which ends the connection.
const NO_BLOCK: &[u8] = &[0x80];

/// The connection's blocks.
pub(super) struct Blocks {
    decoder: Codec<Fed, Bytes>,
    /// Bytes that pass as they come.
    raw: u64,
    /// The frames of a block that is not yet whole.
    block: BytesMut,
    /// Whether a frame was seen.
    begun: bool,
    /// Whether h2's table has parted from ours.
    anew: bool,
    /// Whether h2 will end the connection.
    over: bool,
}

impl Blocks {
    pub(super) fn new(bytes_max: usize) -> Self {
        let mut decoder = Codec::new(Fed(BytesMut::new()));
        decoder.set_max_recv_header_list_size(bytes_max);
        let raw = PREFACE.len() as u64;
        Self { decoder, raw, block: BytesMut::new(), begun: false, anew: false, over: false }
    }

    /// So many bytes pass as they come.
    pub(super) fn raw(&self) -> u64 {
        if self.over { u64::MAX } else { self.raw }
    }

    /// So many bytes passed.
    pub(super) fn passed(&mut self, bytes: usize) {
        self.raw = self.raw.saturating_sub(bytes as u64);
    }

    /// Whether something has begun that is not whole: the connection itself, or a block.
    pub(super) fn is_midway(&self) -> bool {
        !self.begun || !self.block.is_empty()
    }

    /// What hyper gets of the bytes that are kept, beyond what passes as it comes; `None` where
    /// more must come first.
    pub(super) fn take(&mut self, kept: &mut BytesMut) -> Option<Bytes> {
        while kept.len() >= FRAME_HEAD {
            let length =
                usize::from(kept[0]) << 16 | usize::from(kept[1]) << 8 | usize::from(kept[2]);
            let (kind, in_block) = (kept[3], !self.block.is_empty());
            if length > PAYLOAD_MAX || in_block != (kind == CONTINUATION) {
                // h2 ends the connection for either.
                self.over = true;
                return Some(self.block.split().freeze());
            }
            if kind != HEADERS && kind != CONTINUATION {
                self.begun = true;
                self.raw = (FRAME_HEAD + length) as u64;
                return None;
            }
            if kept.len() < FRAME_HEAD + length {
                return None;
            }
            self.begun = true;
            let frame = kept.split_to(FRAME_HEAD + length);
            self.decoder.get_mut().0.extend_from_slice(&frame);
            self.block.unsplit(frame);
            let mut cx = Context::from_waker(Waker::noop());
            if let Poll::Ready(decoded) = Pin::new(&mut self.decoder).poll_next(&mut cx) {
                let block = self.block.split().freeze();
                return Some(self.judged(block, decoded));
            }
        }
        None
    }

    /// What h2 gets for a block of which the decoder made this.
    fn judged(&mut self, block: Bytes, decoded: Option<Result<Frame, h2::proto::Error>>) -> Bytes {
        match decoded {
            Some(Ok(Frame::Headers(headers))) => {
                let is_too_long = headers.is_over_size();
                let (pseudo, fields) = headers.into_parts();
                match flaw(&pseudo, is_too_long) {
                    None if self.anew => written(&block, &literals(&pseudo, &fields)),
                    None => block,
                    Some((method, flaw)) => {
                        self.anew = true;
                        let mut fields =
                            literal(Vec::new(), b":method", method.as_str().as_bytes());
                        fields = literal(fields, b":scheme", b"http");
                        written(&block, &literal(fields, b":path", flaw.target().as_bytes()))
                    }
                }
            }
            // A request that h2 refuses, and goes on; without fields, it does the same.
            Some(Err(h2::proto::Error::Reset(..))) => {
                if self.anew {
                    written(&block, &[])
                } else {
                    block
                }
            }
            _ => {
                self.over = true;
                if self.anew { written(&block, NO_BLOCK) } else { block }
            }
        }
    }
}

/// What is wrong with a request, and its method. Trailers have neither.
fn flaw(pseudo: &Pseudo, is_too_long: bool) -> Option<(&Method, Flaw)> {
    let method = pseudo.method.as_ref()?;
    if is_too_long {
        return Some((method, Flaw::LongHead));
    }
    let flaw = target::check(method.as_str().as_bytes(), pseudo.path.as_ref()?.as_bytes()).err()?;
    Some((method, flaw))
}

/// The fields of a block as literals.
fn literals(pseudo: &Pseudo, fields: &HeaderMap) -> Vec<u8> {
    let mut out = Vec::new();
    if let Some(method) = &pseudo.method {
        out = literal(out, b":method", method.as_str().as_bytes());
    }
    for (name, value) in
        [(":scheme", &pseudo.scheme), (":authority", &pseudo.authority), (":path", &pseudo.path)]
    {
        if let Some(value) = value {
            out = literal(out, name.as_bytes(), value.as_bytes());
        }
    }
    fields
        .iter()
        .fold(out, |out, (name, value)| literal(out, name.as_str().as_bytes(), value.as_bytes()))
}

/// Appends a field that refers to no table and enters none (RFC 7541, section 6.2.2).
fn literal(mut out: Vec<u8>, name: &[u8], value: &[u8]) -> Vec<u8> {
    out.push(0);
    for text in [name, value] {
        // A length in seven bits, or what is beyond them in further bytes.
        match text.len() {
            short @ 0..127 => out.push(short as u8),
            long => {
                out.push(127);
                let mut rest = long - 127;
                while rest >= 128 {
                    out.push(rest as u8 | 128);
                    rest >>= 7;
                }
                out.push(rest as u8);
            }
        }
        out.extend_from_slice(text);
    }
    out
}

/// The frames of a block with other fields in it.
fn written(block: &[u8], fields: &[u8]) -> Bytes {
    let (stream, ends) = (&block[5..FRAME_HEAD], block[4] & END_STREAM);
    let mut out = BytesMut::with_capacity(fields.len() + 2 * FRAME_HEAD);
    let mut rest = fields;
    loop {
        let piece = rest.split_off(..rest.len().min(PAYLOAD_MAX)).unwrap_or_default();
        let (kind, ends) = if out.is_empty() { (HEADERS, ends) } else { (CONTINUATION, 0) };
        out.put_uint(piece.len() as u64, 3);
        out.put_slice(&[kind, ends | if rest.is_empty() { END_HEADERS } else { 0 }]);
        out.put_slice(stream);
        out.put_slice(piece);
        if rest.is_empty() {
            return out.freeze();
        }
    }
}

/// What the decoder reads from: the frames that it is fed.
struct Fed(BytesMut);

impl AsyncRead for Fed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.0.is_empty() {
            return Poll::Pending;
        }
        let bytes = self.0.len().min(buf.remaining());
        buf.put_slice(&self.0[..bytes]);
        self.0.advance(bytes);
        Poll::Ready(Ok(()))
    }
}

/// Never used: the decoder's type asks for it.
impl AsyncWrite for Fed {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
