//! The byte encoding shared by everything that is stored or sent: big-endian integers and
//! length-prefixed strings.
//!
//! Written with [`bytes::BufMut`] and the few helpers of [`Put`]; read with a [`Reader`], which
//! never panics, never allocates more than it was given, and hands out slices of the original
//! buffer without copying.

use bytes::{BufMut, Bytes};

/// Bytes that are not what they should be: which part, and what was expected there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed {what}: {why}")]
pub struct DecodeError {
    /// What was being read, in the words of ARCHITECTURE.md.
    pub what: &'static str,
    /// What is wrong with it.
    pub why: String,
}

impl DecodeError {
    /// An error about `what`.
    pub fn new(what: &'static str, why: impl Into<String>) -> Self {
        Self { what, why: why.into() }
    }
}

/// Writing what [`Reader`] reads.
pub trait Put: BufMut {
    /// A string of at most 4 GiB: its length in four bytes, then itself.
    fn put_bytes_prefixed(&mut self, bytes: &[u8]) {
        self.put_u32(
            u32::try_from(bytes.len()).expect("no string in Flotilla is longer than a frame"),
        );
        self.put_slice(bytes);
    }
}

impl<B: BufMut> Put for B {}

/// Reads one record from front to back. Every method fails, rather than panics, where the record
/// ends too early.
pub struct Reader {
    what: &'static str,
    rest: Bytes,
}

impl Reader {
    /// A reader of `bytes`, whose errors speak of `what`.
    pub fn new(what: &'static str, bytes: Bytes) -> Self {
        Self { what, rest: bytes }
    }

    /// How many bytes are left.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Whether everything was read.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// An error about this record.
    pub fn error(&self, why: impl Into<String>) -> DecodeError {
        DecodeError::new(self.what, why)
    }

    /// The next `n` bytes, shared with the buffer they came in.
    pub fn take(&mut self, n: usize) -> Result<Bytes, DecodeError> {
        if n > self.rest.len() {
            return Err(self.error(format!("needs {n} more bytes, has {}", self.rest.len())));
        }
        Ok(self.rest.split_to(n))
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.take(1)?[0])
    }

    /// Four bytes, big-endian.
    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        let bytes = self.take(4)?;
        Ok(u32::from_be_bytes(bytes[..].try_into().expect("take gave four bytes")))
    }

    /// Eight bytes, big-endian.
    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        let bytes = self.take(8)?;
        Ok(u64::from_be_bytes(bytes[..].try_into().expect("take gave eight bytes")))
    }

    /// A length-prefixed string.
    pub fn bytes(&mut self) -> Result<Bytes, DecodeError> {
        let n = self.u32()?;
        self.take(n as usize)
    }

    /// A length-prefixed string that is UTF-8.
    pub fn string(&mut self) -> Result<String, DecodeError> {
        let bytes = self.bytes()?;
        String::from_utf8(bytes.to_vec()).map_err(|_| self.error("text that is not UTF-8"))
    }

    /// A yes or no.
    pub fn bool(&mut self) -> Result<bool, DecodeError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(self.error(format!("{other} where 0 or 1 stands"))),
        }
    }

    /// A value that may be absent: a yes or no, then the value.
    pub fn option<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Option<T>, DecodeError> {
        if self.bool()? { read(self).map(Some) } else { Ok(None) }
    }

    /// The count of a list whose items take at least `item_bytes_min` bytes each, so that a forged
    /// count allocates nothing.
    pub fn count(&mut self, item_bytes_min: usize) -> Result<usize, DecodeError> {
        let n = self.u32()? as usize;
        if n.saturating_mul(item_bytes_min) > self.rest.len() {
            return Err(self.error(format!("says {n} items, has {} bytes", self.rest.len())));
        }
        Ok(n)
    }

    /// The end of the record; anything left over is an error.
    pub fn end(self) -> Result<(), DecodeError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(self.error(format!("{} bytes too many", self.rest.len())))
        }
    }
}
