//! Frames on a stream: a length (4, big-endian), then so many bytes. No checksum, for TLS has one.
//!
//! Going out, [`Gather`] lays many frames into few large pieces: QUIC walks over the pieces of a
//! stream that are not yet acknowledged for every packet, so many small ones would cost more than a
//! copy. Coming in, [`FrameDecoder`] gives every frame an allocation of its own and of its size: a
//! slice of what the socket read would keep 64 KiB alive for each small message that somebody holds
//! on to. A length is never believed before the bytes arrive.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// About how much one write gathers.
pub(crate) const GATHER_BYTES: usize = 256 << 10;
/// From this size on a payload is handed on as it is instead of being copied.
const COPY_BYTES_MAX: usize = 16 << 10;
/// The most that is allocated on the word of a length alone.
const TRUST_BYTES: usize = 256 << 10;
/// How long a length is.
pub(crate) const LENGTH_BYTES: usize = 4;

/// Frames on their way out, in few pieces.
#[derive(Default)]
pub(crate) struct Gather {
    pieces: Vec<Bytes>,
    small: BytesMut,
    bytes: usize,
}

impl Gather {
    /// Opens a frame; `payload_bytes` of payload must follow.
    pub(crate) fn frame(&mut self, payload_bytes: usize) {
        self.u32(
            u32::try_from(payload_bytes)
                .expect("frame_bytes_max is below 4 GiB, and checked before"),
        );
    }

    /// Four bytes of payload.
    pub(crate) fn u32(&mut self, n: u32) {
        self.small.put_u32(n);
        self.bytes += 4;
    }

    /// Eight bytes of payload.
    pub(crate) fn u64(&mut self, n: u64) {
        self.small.put_u64(n);
        self.bytes += 8;
    }

    /// One byte of payload.
    pub(crate) fn u8(&mut self, n: u8) {
        self.small.put_u8(n);
        self.bytes += 1;
    }

    /// Some payload.
    pub(crate) fn payload(&mut self, bytes: &Bytes) {
        self.bytes += bytes.len();
        if bytes.len() < COPY_BYTES_MAX {
            self.small.put_slice(bytes);
        } else {
            self.cut();
            self.pieces.push(bytes.clone());
        }
    }

    /// How many bytes there are.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether one write is full.
    pub(crate) fn is_full(&self) -> bool {
        self.bytes >= GATHER_BYTES
    }

    /// The pieces in order; to be written, and then cleared by [`Gather::clear`].
    pub(crate) fn pieces(&mut self) -> &mut [Bytes] {
        self.cut();
        &mut self.pieces
    }

    /// Forgets what was written.
    pub(crate) fn clear(&mut self) {
        self.pieces.clear();
        self.bytes = 0;
    }

    fn cut(&mut self) {
        if !self.small.is_empty() {
            self.pieces.push(self.small.split().freeze());
        }
    }
}

/// A frame that says it is larger than is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a frame of {bytes} bytes; at most {bytes_max} are allowed (`frame_bytes_max`)")]
pub(crate) struct FrameTooLarge {
    /// What it says.
    pub(crate) bytes: usize,
    /// What is allowed.
    pub(crate) bytes_max: usize,
}

/// Puts frames together from whatever pieces they arrive in.
pub(crate) struct FrameDecoder {
    /// The part of the length that has arrived.
    length: [u8; LENGTH_BYTES],
    length_bytes: usize,
    /// The frame under way, once its length is known.
    body: Option<Body>,
    frame_bytes_max: usize,
}

struct Body {
    bytes: BytesMut,
    missing_bytes: usize,
}

impl FrameDecoder {
    /// A decoder that refuses frames above `frame_bytes_max`.
    pub(crate) fn new(frame_bytes_max: usize) -> Self {
        Self { length: [0; LENGTH_BYTES], length_bytes: 0, body: None, frame_bytes_max }
    }

    /// Takes from `input` until a frame is complete (there may be more) or all is taken.
    pub(crate) fn decode(&mut self, input: &mut Bytes) -> Result<Option<Bytes>, FrameTooLarge> {
        if self.body.is_none() {
            let n = input.len().min(LENGTH_BYTES - self.length_bytes);
            input.copy_to_slice(&mut self.length[self.length_bytes..self.length_bytes + n]);
            self.length_bytes += n;
            if self.length_bytes < LENGTH_BYTES {
                return Ok(None);
            }
            let bytes = u32::from_be_bytes(self.length) as usize;
            if bytes > self.frame_bytes_max {
                return Err(FrameTooLarge { bytes, bytes_max: self.frame_bytes_max });
            }
            self.body = Some(Body {
                bytes: BytesMut::with_capacity(bytes.min(TRUST_BYTES)),
                missing_bytes: bytes,
            });
        }
        let body = self.body.as_mut().expect("it was set above where it was missing");
        let n = input.len().min(body.missing_bytes);
        body.bytes.put_slice(&input[..n]);
        input.advance(n);
        body.missing_bytes -= n;
        if body.missing_bytes > 0 {
            return Ok(None);
        }
        self.length_bytes = 0;
        Ok(self.body.take().map(|body| body.bytes.freeze()))
    }

    /// Whether a frame has begun and not ended.
    pub(crate) fn is_within_frame(&self) -> bool {
        self.length_bytes > 0
    }
}

/// Why no more frames come from a stream.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    /// The sender breaks the rules: its connection is closed.
    #[error(transparent)]
    TooLarge(#[from] FrameTooLarge),
    /// The stream ended in the middle of a frame.
    #[error("a stream ended within a frame")]
    Truncated,
    /// The stream names a lane that there is not.
    #[error("an unknown lane, {0}")]
    UnknownLane(u8),
    /// What a frame holds can't be read.
    #[error(transparent)]
    Malformed(#[from] flotilla_router::DecodeError),
    /// The connection is gone, or the stream was given up.
    #[error(transparent)]
    Read(#[from] quinn::ReadError),
}

/// The frames of a stream.
pub(crate) struct FrameReader {
    stream: quinn::RecvStream,
    decoder: FrameDecoder,
    chunks: [Bytes; 32],
    chunks_filled: usize,
    chunk: usize,
}

impl FrameReader {
    /// Reads frames of at most `frame_bytes_max`.
    pub(crate) fn new(stream: quinn::RecvStream, frame_bytes_max: usize) -> Self {
        Self {
            stream,
            decoder: FrameDecoder::new(frame_bytes_max),
            chunks: std::array::from_fn(|_| Bytes::new()),
            chunks_filled: 0,
            chunk: 0,
        }
    }

    /// The next frame; `None` when the sender ended the stream.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, FrameError> {
        loop {
            while self.chunk < self.chunks_filled {
                let chunk = &mut self.chunks[self.chunk];
                if let Some(frame) = self.decoder.decode(chunk)? {
                    return Ok(Some(frame));
                }
                *chunk = Bytes::new();
                self.chunk += 1;
            }
            self.chunk = 0;
            self.chunks_filled = 0;
            match self.stream.read_chunks(&mut self.chunks).await? {
                Some(n) => self.chunks_filled = n,
                None if self.decoder.is_within_frame() => return Err(FrameError::Truncated),
                None => return Ok(None),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode_all(
        decoder: &mut FrameDecoder,
        mut input: Bytes,
    ) -> Result<Vec<Bytes>, FrameTooLarge> {
        let mut frames = Vec::new();
        while !input.is_empty() {
            frames.extend(decoder.decode(&mut input)?);
        }
        Ok(frames)
    }

    #[test]
    fn a_frame_over_the_limit_is_refused_before_it_is_read() {
        let mut decoder = FrameDecoder::new(10);
        let error = decode_all(&mut decoder, Bytes::from_static(&[0, 0, 0, 11])).unwrap_err();
        assert_eq!(error, FrameTooLarge { bytes: 11, bytes_max: 10 });
        assert!(decode_all(&mut FrameDecoder::new(10), Bytes::from_static(&[255; 4])).is_err());
    }

    #[test]
    fn a_length_alone_allocates_little() {
        let mut decoder = FrameDecoder::new(1 << 30);
        assert_eq!(
            decode_all(&mut decoder, Bytes::from_static(&[0x3f, 0, 0, 0, 1])).unwrap(),
            Vec::<Bytes>::new()
        );
        assert!(decoder.body.unwrap().bytes.capacity() <= TRUST_BYTES);
    }

    #[test]
    fn large_payloads_are_not_copied() {
        let large = Bytes::from(vec![7; COPY_BYTES_MAX]);
        let mut gather = Gather::default();
        gather.frame(large.len());
        gather.payload(&large);
        let pieces = gather.pieces();
        assert_eq!(pieces.len(), 2);
        assert_eq!(pieces[1].as_ptr(), large.as_ptr());
    }

    proptest! {
        #[test]
        fn frames_come_out_as_they_went_in(
            frames in proptest::collection::vec(
                proptest::collection::vec(any::<u8>(), 0..40_000), 0..6),
            cut in 1usize..5000,
        ) {
            let frames: Vec<Bytes> = frames.into_iter().map(Bytes::from).collect();
            let mut gather = Gather::default();
            for frame in &frames {
                gather.frame(frame.len());
                gather.payload(frame);
            }
            let total = gather.bytes();
            let wire = gather.pieces().concat();
            prop_assert_eq!(total, wire.len());
            let mut decoder = FrameDecoder::new(40_000);
            let mut found = Vec::new();
            for piece in wire.chunks(cut) {
                let mut piece = Bytes::copy_from_slice(piece);
                while let Some(frame) = decoder.decode(&mut piece).unwrap() {
                    found.push(frame);
                }
                prop_assert!(piece.is_empty());
            }
            prop_assert_eq!(found, frames);
            prop_assert!(!decoder.is_within_frame());
        }

        #[test]
        fn arbitrary_bytes_never_panic(
            pieces in proptest::collection::vec(
                proptest::collection::vec(any::<u8>(), 0..50), 0..20),
        ) {
            let mut decoder = FrameDecoder::new(1000);
            for piece in pieces {
                if decode_all(&mut decoder, piece.into()).is_err() {
                    break;
                }
            }
        }
    }
}
