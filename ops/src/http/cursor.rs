//! Where a scan goes on: an opaque string for the client, which holds everything but how many items
//! are wanted.
//!
//! ```text
//! cursor := base64url( format (1) ‖ flags (1) ‖ range of the whole scan ‖ next bound (4 + n) ‖ checksum (4) )
//! ```
//!
//! Forwards the next bound is the first key not yet seen; in reverse it is the key below which to
//! go on. The checksum tells a cursor from something made up or cut off; it is no secret, and need
//! not be: a cursor gives nothing that a scan of the same range would not. Every node reads every
//! node's cursors.

use crate::limits::Limits;
use crate::problem::Problem;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::{BufMut, Bytes, BytesMut};
use flotilla_router::KeyRange;
use flotilla_router::codec::{DecodeError, Put, Reader};

/// The first byte of a cursor.
const FORMAT: u8 = 1;
/// The scan goes from the end backwards.
const REVERSE: u8 = 1;
/// The scan leaves values out.
const KEYS_ONLY: u8 = 2;

/// A scan that goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cursor {
    /// What the whole scan looks at.
    pub(super) whole: KeyRange,
    /// What is left of it.
    pub(super) rest: KeyRange,
    /// From the end backwards.
    pub(super) reverse: bool,
    /// Without values.
    pub(super) keys_only: bool,
}

impl Cursor {
    /// What the client gets.
    pub(super) fn encode(&self) -> String {
        let mut out = BytesMut::new();
        out.put_u8(FORMAT);
        out.put_u8(
            if self.reverse { REVERSE } else { 0 } | if self.keys_only { KEYS_ONLY } else { 0 },
        );
        self.whole.encode(&mut out);
        match (self.reverse, &self.rest.end) {
            (false, _) => out.put_bytes_prefixed(&self.rest.start),
            (true, end) => out.put_bytes_prefixed(end.as_deref().unwrap_or_default()),
        }
        out.put_u32(crc32fast::hash(&out));
        URL_SAFE_NO_PAD.encode(&out)
    }

    /// Reads what a client sent.
    pub(super) fn decode(text: &[u8], limits: &Limits) -> Result<Self, Problem> {
        let bad = || {
            Problem::malformed(
                "bad_cursor",
                "the cursor is not one that a scan gave; begin without one",
            )
        };
        let bytes = Bytes::from(URL_SAFE_NO_PAD.decode(text).map_err(|_| bad())?);
        let body = bytes.len().checked_sub(4).map(|n| bytes.slice(..n)).ok_or_else(bad)?;
        if crc32fast::hash(&body).to_be_bytes() != bytes[body.len()..] {
            return Err(bad());
        }
        let cursor = Self::read(body).map_err(|_| bad())?;
        let bounds = [
            Some(&cursor.whole.start),
            cursor.whole.end.as_ref(),
            Some(&cursor.rest.start),
            cursor.rest.end.as_ref(),
        ];
        // A bound may be the successor of the longest key.
        if bounds.into_iter().flatten().any(|bound| bound.len() > limits.key_bytes_max + 1) {
            return Err(bad());
        }
        Ok(cursor)
    }

    fn read(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("cursor", bytes);
        let (format, flags) = (reader.u8()?, reader.u8()?);
        if format != FORMAT || flags & !(REVERSE | KEYS_ONLY) != 0 {
            return Err(reader.error("an unknown format"));
        }
        let whole = KeyRange::decode(&mut reader)?;
        let next = reader.bytes()?;
        let reverse = flags & REVERSE != 0;
        let rest = if reverse {
            KeyRange::new(whole.start.clone(), Some(next))
        } else {
            KeyRange::new(next, whole.end.clone())
        };
        if rest.is_empty() || rest.intersect(&whole) != rest {
            return Err(reader.error("a rest that is not of the whole"));
        }
        reader.end()?;
        Ok(Self { whole, rest, reverse, keys_only: flags & KEYS_ONLY != 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cursors() -> Vec<Cursor> {
        let range = |start: &'static [u8], end: Option<&'static [u8]>| {
            KeyRange::new(start, end.map(Bytes::from_static))
        };
        let cursor = |whole, rest, reverse, keys_only| Cursor { whole, rest, reverse, keys_only };
        vec![
            cursor(KeyRange::all(), range(b"m\0", None), false, false),
            cursor(range(b"a", Some(b"q")), range(b"b", Some(b"q")), false, true),
            cursor(KeyRange::all(), range(b"", Some(b"\xff\0")), true, false),
            cursor(range(b"a", Some(b"q")), range(b"a", Some(b"c")), true, true),
        ]
    }

    #[test]
    fn a_cursor_survives_its_encoding() {
        for cursor in cursors() {
            assert_eq!(
                Cursor::decode(cursor.encode().as_bytes(), &Limits::default()).unwrap(),
                cursor
            );
        }
    }

    #[test]
    fn what_no_scan_gave_is_refused() {
        for bad in ["", "x", "abc", "AQAA", "!!!!"] {
            assert!(Cursor::decode(bad.as_bytes(), &Limits::default()).is_err(), "{bad:?}");
        }
        for cursor in cursors() {
            let text = cursor.encode().into_bytes();
            for n in 0..text.len() {
                assert!(
                    Cursor::decode(&text[..n], &Limits::default()).is_err(),
                    "the first {n} characters were taken"
                );
                let mut other = text.clone();
                other[n] = if other[n] == b'A' { b'B' } else { b'A' };
                assert!(
                    Cursor::decode(&other, &Limits::default()).is_err(),
                    "a change at {n} was taken"
                );
            }
        }
    }

    #[test]
    fn a_rest_outside_the_whole_is_refused_even_with_a_checksum() {
        let whole = KeyRange::new("d", Some("m".into()));
        for (rest, reverse) in [
            (KeyRange::new("a", Some("m".into())), false),
            (KeyRange::new("d", Some("z".into())), true),
        ] {
            let forged = Cursor { whole: whole.clone(), rest, reverse, keys_only: false }.encode();
            assert!(Cursor::decode(forged.as_bytes(), &Limits::default()).is_err());
        }
    }
}
