//! Half-open key ranges `[start, end)`, and the boundaries that a new cluster starts with.
//!
//! Keys are compared as unsigned bytes. The empty key stands below every key; an absent end stands above every key.

use crate::codec::{DecodeError, Put, Reader};
use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A half-open range of keys.
#[derive(Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct KeyRange {
    /// The first key of the range; empty for "from the beginning".
    pub start: Bytes,
    /// The first key above the range; `None` for "to the end".
    pub end: Option<Bytes>,
}

impl KeyRange {
    /// From `start` up to, and without, `end`.
    pub fn new(start: impl Into<Bytes>, end: Option<Bytes>) -> Self {
        Self { start: start.into(), end }
    }

    /// Every key.
    pub fn all() -> Self {
        Self::default()
    }

    /// Every key that begins with `prefix`.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let start = prefix.into();
        let end = successor_of_prefix(&start);
        Self { start, end }
    }

    /// Whether `key` lies in the range.
    pub fn contains(&self, key: &[u8]) -> bool {
        key >= &self.start[..] && self.end.as_ref().is_none_or(|end| key < &end[..])
    }

    /// Whether no key lies in the range.
    pub fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| end <= &self.start)
    }

    /// Whether some key lies in both.
    pub fn overlaps(&self, other: &Self) -> bool {
        !self.intersect(other).is_empty()
    }

    /// The keys that lie in both; an empty range where there are none.
    pub fn intersect(&self, other: &Self) -> Self {
        let start = self.start.clone().max(other.start.clone());
        let end = match (&self.end, &other.end) {
            (Some(a), Some(b)) => Some(a.min(b).clone()),
            (a, b) => a.as_ref().or(b.as_ref()).cloned(),
        };
        Self { start, end }
    }

    /// Appends the encoding: start, then the end if there is one.
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_bytes_prefixed(&self.start);
        out.put_u8(self.end.is_some().into());
        if let Some(end) = &self.end {
            out.put_bytes_prefixed(end);
        }
    }

    /// Reads what [`Self::encode`] wrote.
    pub fn decode(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self { start: reader.bytes()?, end: reader.option(Reader::bytes)? })
    }
}

impl fmt::Debug for KeyRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, ", self.start.escape_ascii())?;
        match &self.end {
            Some(end) => write!(f, "{})", end.escape_ascii()),
            None => write!(f, "∞)"),
        }
    }
}

/// The smallest key above every key with this prefix; `None` where there is none (the prefix is all `0xff`).
pub fn successor_of_prefix(prefix: &[u8]) -> Option<Bytes> {
    let last = prefix.iter().rposition(|&b| b != 0xff)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end.into())
}

/// The smallest key above `key`.
pub fn successor_of_key(key: &[u8]) -> Bytes {
    let mut next = BytesMut::with_capacity(key.len() + 1);
    next.put_slice(key);
    next.put_u8(0);
    next.freeze()
}

/// How often a byte is taken to occur in people's keys, relative to the others. Only the initial boundaries rest on it.
fn weight(byte: u8) -> u64 {
    match byte {
        b'a'..=b'z' => 16,
        b'0'..=b'9' => 12,
        b'A'..=b'Z' => 6,
        b'-' | b'_' | b'/' | b':' | b'.' => 4,
        _ => 1,
    }
}

/// Cuts the key space into `shards` neighbouring ranges that would hold equally many keys if keys were drawn byte by byte
/// with [`weight`]: plain byte-wise halving would leave all ASCII keys to two shards in eight.
///
/// The boundaries are quantiles, written with as few bytes as tell them apart.
pub fn initial_ranges(shards: usize) -> Vec<KeyRange> {
    assert!(shards > 0, "a cluster has at least one shard");
    let starts: Vec<Bytes> = (0..shards).map(|i| if i == 0 { Bytes::new() } else { quantile(i as u64, shards as u64) }).collect();
    (0..shards).map(|i| KeyRange::new(starts[i].clone(), starts.get(i + 1).cloned())).collect()
}

/// The shortest key whose cumulative weight is within a quarter of a shard of `i / n`.
fn quantile(i: u64, n: u64) -> Bytes {
    let total: u64 = (0..=255).map(weight).sum();
    let mut key = Vec::new();
    // What is left of `i / n` inside the prefix chosen so far, and that prefix's own share: both as fractions of one.
    let (mut target, mut share) = (i as f64 / n as f64, 1.0);
    while share > 0.25 / n as f64 && key.len() < 16 {
        let mut below = 0;
        for byte in 0..=255u8 {
            let next = below + weight(byte);
            if byte == 255 || (next as f64 / total as f64) > target {
                key.push(byte);
                target = (target - below as f64 / total as f64) * total as f64 / weight(byte) as f64;
                share *= weight(byte) as f64 / total as f64;
                break;
            }
            below = next;
        }
    }
    key.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_prefix_ends_where_the_next_begins() {
        let cases: [(&[u8], Option<&[u8]>); 4] = [(b"a", Some(b"b")), (b"a\xff", Some(b"b")), (b"\xff\xff", None), (b"", None)];
        for (prefix, end) in cases {
            assert_eq!(KeyRange::prefix(prefix.to_vec()).end.as_deref(), end, "{}", prefix.escape_ascii());
        }
    }

    #[test]
    fn initial_ranges_cover_everything_once() {
        for shards in [1, 2, 3, 7, 8, 64, 1_000, 10_000] {
            let ranges = initial_ranges(shards);
            assert_eq!(ranges.len(), shards);
            assert!(ranges[0].start.is_empty());
            assert!(ranges[shards - 1].end.is_none());
            for pair in ranges.windows(2) {
                assert_eq!(pair[0].end.as_ref(), Some(&pair[1].start));
                assert!(!pair[0].is_empty(), "{shards} shards: {:?} is empty", pair[0]);
            }
        }
    }

    #[test]
    fn eight_initial_shards_share_words_and_numbers() {
        let ranges = initial_ranges(8);
        let hit = |key: &str| ranges.iter().position(|r| r.contains(key.as_bytes())).unwrap();
        let used: std::collections::BTreeSet<_> =
            ('0'..='9').chain('a'..='z').chain('A'..='Z').map(|c| hit(&format!("{c}x"))).collect();
        assert!(used.len() >= 7, "only {used:?} are hit by letters and digits: {ranges:?}");
    }

    proptest! {
        #[test]
        fn overlap_is_a_key_in_both(a in any::<[u8; 2]>(), b in any::<[u8; 2]>(), c in any::<[u8; 2]>(), d in any::<[u8; 2]>()) {
            let (x, y) = (KeyRange::new(a.to_vec(), Some(b.to_vec().into())), KeyRange::new(c.to_vec(), Some(d.to_vec().into())));
            // In a discrete space the larger of the starts is the only candidate that needs a look.
            let witness = a.max(c);
            prop_assert_eq!(x.overlaps(&y), x.contains(&witness) && y.contains(&witness));
            let mut out = BytesMut::new();
            x.encode(&mut out);
            prop_assert_eq!(KeyRange::decode(&mut Reader::new("range", out.freeze())).unwrap(), x);
        }
    }
}
