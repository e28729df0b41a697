//! Snapshots: files from node to node, on a connection of their own, so that they never stand in
//! the way of a heartbeat.
//!
//! ```text
//!   sender                                             receiver
//!   dial, handshake (purpose: snapshot) ─────────────► proved, a slot is free?          else: busy
//!   header ──────────────────────────────────────────► Handler::stage_snapshot          else: refused
//!   count of files ‖ per file: name ‖ length ‖ bytes ‖ CRC-32 ─► written as they come   else: failed
//!                                                      files and folder synced
//!                                                      Handler::snapshot_staged
//!                  ◄────────────────────────────────── verdict: kind ‖ text
//!   done
//! ```
//!
//! Both ends hold themselves to `snapshot_bytes_per_second`, over all their snapshots. Whatever
//! happens, the sender gets a result: the verdict, the end of the connection, or a stall that
//! lasted too long; and the receiver either hands the folder on or is told to clean it up. On the
//! wire, strings and the header are a length (4) and bytes, lengths of files take 8 bytes.

mod files;
mod pace;
mod receive;
mod send;

pub(crate) use pace::Pace;
pub(crate) use receive::receive;
pub(crate) use send::send;

use crate::frame::{FrameError, FrameReader};
use bytes::{BufMut, Bytes, BytesMut};
use flotilla_router::DecodeError;
use flotilla_router::codec::{Put, Reader};

/// The most files in a snapshot.
const FILES_MAX: u32 = 10_000;
/// The longest name of a file.
const NAME_BYTES_MAX: usize = 128;
/// The longest text of a verdict.
const TEXT_BYTES_MAX: usize = 4096;
/// How much is read from, or written to, a file at a time.
const CHUNK_BYTES: usize = 256 << 10;
/// How many such chunks wait between file and network.
const CHUNKS_AHEAD: usize = 4;

/// What the receiver says in the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is installed, or will be: the sender's part is done.
    Taken,
    /// The handler does not want it.
    Refused(String),
    /// Too many at a time.
    Busy,
    /// It did not arrive whole.
    Failed(String),
}

impl Verdict {
    /// As one frame: kind (1) ‖ text.
    pub(crate) fn encode(&self) -> Bytes {
        let (kind, text) = match self {
            Self::Taken => (0, ""),
            Self::Refused(text) => (1, &text[..]),
            Self::Busy => (2, ""),
            Self::Failed(text) => (3, &text[..]),
        };
        let text = &text.as_bytes()[..text.floor_char_boundary(TEXT_BYTES_MAX)];
        let mut bytes = BytesMut::new();
        bytes.put_u32(u32::try_from(1 + 4 + text.len()).expect("the text was just cut"));
        bytes.put_u8(kind);
        bytes.put_bytes_prefixed(text);
        bytes.freeze()
    }

    /// Reads it from its stream.
    async fn read(stream: quinn::RecvStream) -> Result<Self, FrameError> {
        let frame = FrameReader::new(stream, TEXT_BYTES_MAX + 16)
            .next()
            .await?
            .ok_or(FrameError::Truncated)?;
        Ok(Self::decode(frame)?)
    }

    /// Reads what [`Self::encode`] wrote.
    pub(crate) fn decode(frame: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("verdict on a snapshot", frame);
        let kind = reader.u8()?;
        let text = reader.string()?;
        match kind {
            0 => Ok(Self::Taken),
            1 => Ok(Self::Refused(text)),
            2 => Ok(Self::Busy),
            3 => Ok(Self::Failed(text)),
            other => Err(reader.error(format!("unknown kind {other}"))),
        }
    }
}

/// Whether a file may be called so: letters, digits, `-`, `_` and `.`, no dot first. So no name
/// leads out of its folder.
pub(crate) fn is_allowed_name(name: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_leads_out_of_its_folder() {
        for good in ["a", "000123.sst", "data-1_2.sst", "a..b"] {
            assert!(is_allowed_name(good), "{good:?} was refused");
        }
        for bad in
            ["", ".", "..", ".hidden", "a/b", "/a", "a\\b", "a b", "a\0", "ä", &"x".repeat(129)]
        {
            assert!(!is_allowed_name(bad), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_long_verdict_is_cut_between_characters() {
        let encoded = Verdict::Refused("ä".repeat(TEXT_BYTES_MAX)).encode();
        let text = Reader::new("verdict", encoded.slice(5..)).string().unwrap();
        assert_eq!(text.len(), TEXT_BYTES_MAX);
        let encoded = Verdict::Refused(format!("x{}", "ä".repeat(TEXT_BYTES_MAX))).encode();
        assert_eq!(
            Reader::new("verdict", encoded.slice(5..)).string().unwrap().len(),
            TEXT_BYTES_MAX - 1
        );
    }
}
