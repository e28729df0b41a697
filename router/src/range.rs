//! Half-open key ranges `[start, end)`, lists of them, and the boundaries that a new cluster starts
//! with.
//!
//! A list is *plain* when its ranges are in order, none is empty, and none touches the next: then
//! equal sets of keys are equal lists. [`union`] and [`without`] give plain lists of any.
//!
//! Keys are compared as unsigned bytes. The empty key stands below every key; an absent end stands
//! above every key.

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

    /// Whether every key of the range lies in one of `ranges`.
    pub fn is_within(&self, ranges: &[Self]) -> bool {
        without([self.clone()], ranges).is_empty()
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

/// The keys that lie in any of the ranges, as a plain list.
pub fn union(ranges: impl IntoIterator<Item = KeyRange>) -> Vec<KeyRange> {
    let mut ranges: Vec<_> = ranges.into_iter().filter(|range| !range.is_empty()).collect();
    ranges.sort_by(|a, b| a.start.cmp(&b.start));
    let mut plain: Vec<KeyRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match plain.last_mut() {
            Some(last) if last.end.as_ref().is_none_or(|end| range.start <= *end) => {
                // An absent end lies above all others, and not, as `Option` orders it, below.
                last.end = match (last.end.take(), range.end) {
                    (Some(a), Some(b)) => Some(a.max(b)),
                    _ => None,
                };
            }
            _ => plain.push(range),
        }
    }
    plain
}

/// The keys that lie in any of `ranges` and in none of `others`, as a plain list.
pub fn without(ranges: impl IntoIterator<Item = KeyRange>, others: &[KeyRange]) -> Vec<KeyRange> {
    let others = union(others.iter().cloned());
    let mut left = Vec::new();
    for range in union(ranges) {
        let mut rest = Some(range);
        // In order: what lies in front of each is left, what lies behind it is looked at further.
        for other in &others {
            let Some(range) = rest.take() else { break };
            if !range.overlaps(other) {
                rest = Some(range);
                continue;
            }
            left.push(KeyRange::new(range.start, Some(other.start.clone())));
            rest = other.end.clone().map(|end| KeyRange::new(end, range.end));
        }
        left.extend(rest);
    }
    left.retain(|range| !range.is_empty());
    left
}

/// What an install of a snapshot has to clear of a shard that was `old` here, if it was here at
/// all, and becomes `new`: every key that was or will be the shard's, but for those that live
/// replicas of other shards own. They own what a split took from it while this replica was behind.
///
/// The meta shard's keys are in a space of their own, so it and the others never take from another.
pub fn to_clear(old: Option<&KeyRange>, new: &KeyRange, others: &[KeyRange]) -> Vec<KeyRange> {
    without(old.into_iter().chain([new]).cloned(), others)
}

/// The smallest key above every key with this prefix; `None` where there is none (the prefix is all
/// `0xff`).
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

/// How often a byte is taken to occur in people's keys, relative to the others. Only the initial
/// boundaries rest on it.
fn weight(byte: u8) -> u64 {
    match byte {
        b'a'..=b'z' => 16,
        b'0'..=b'9' => 12,
        b'A'..=b'Z' => 6,
        b'-' | b'_' | b'/' | b':' | b'.' => 4,
        _ => 1,
    }
}

/// Cuts the key space into `shards` neighbouring ranges that would hold equally many keys if keys
/// were drawn byte by byte with [`weight`]: plain byte-wise halving would leave all ASCII keys to
/// two shards in eight.
///
/// The boundaries are quantiles, written with as few bytes as tell them apart.
pub fn initial_ranges(shards: usize) -> Vec<KeyRange> {
    assert!(shards > 0, "a cluster has at least one shard");
    let starts: Vec<Bytes> = (0..shards)
        .map(|i| if i == 0 { Bytes::new() } else { quantile(i as u64, shards as u64) })
        .collect();
    (0..shards).map(|i| KeyRange::new(starts[i].clone(), starts.get(i + 1).cloned())).collect()
}

/// The shortest key whose cumulative weight is within a quarter of a shard of `i / n`.
fn quantile(i: u64, n: u64) -> Bytes {
    let total: u64 = (0..=255).map(weight).sum();
    let mut key = Vec::new();
    // What is left of `i / n` inside the prefix chosen so far, and that prefix's own share: both as
    // fractions of one.
    let (mut target, mut share) = (i as f64 / n as f64, 1.0);
    while share > 0.25 / n as f64 && key.len() < 16 {
        let mut below = 0;
        for byte in 0..=255u8 {
            let next = below + weight(byte);
            if byte == 255 || (next as f64 / total as f64) > target {
                key.push(byte);
                target =
                    (target - below as f64 / total as f64) * total as f64 / weight(byte) as f64;
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
        let cases: [(&[u8], Option<&[u8]>); 4] =
            [(b"a", Some(b"b")), (b"a\xff", Some(b"b")), (b"\xff\xff", None), (b"", None)];
        for (prefix, end) in cases {
            assert_eq!(
                KeyRange::prefix(prefix.to_vec()).end.as_deref(),
                end,
                "{}",
                prefix.escape_ascii()
            );
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

    /// Ranges, each written as start and end with two dots between them.
    fn ranges(text: &'static str) -> Vec<KeyRange> {
        let range = |word: &'static str| {
            let (start, end) = word.split_once("..").unwrap();
            KeyRange::new(start, (!end.is_empty()).then(|| end.into()))
        };
        text.split_whitespace().map(range).collect()
    }

    #[test]
    fn what_an_install_clears_was_or_will_be_the_shards_and_is_nobody_elses() {
        // The old range, the new one, those of others, and what is cleared.
        for (old, new, others, cleared) in [
            ("", "b..m", "", "b..m"),
            ("b..m", "b..m", "a..b m..", "b..m"),
            // It was split; the back is nobody's here, or lives here already.
            ("b..z", "b..m", "", "b..z"),
            ("b..z", "b..m", "m..z", "b..m"),
            ("..", "b..m", "p..q", "..p q.."),
            // It took in its neighbour.
            ("b..m", "b..", "", "b.."),
            // It has moved away altogether.
            ("a..c", "x..", "d..e", "a..c x.."),
            ("a..c", "x..", "a..c", "x.."),
        ] {
            let shown = format!("{old} to {new} beside {others}");
            let to_clear = to_clear(ranges(old).first(), &ranges(new)[0], &ranges(others));
            assert_eq!(to_clear, ranges(cleared), "{shown}");
        }
    }

    /// The keys that the model knows: each byte, and each followed by a zero, so that the ends of
    /// ranges fall between keys, too.
    fn keys() -> impl Iterator<Item = Vec<u8>> {
        (b'a'..=b'j').flat_map(|byte| [vec![byte], vec![byte, 0]]).chain([vec![]])
    }

    fn some_range() -> impl Strategy<Value = KeyRange> {
        let bound = || prop::sample::select(keys().collect::<Vec<_>>());
        let bounds = (bound(), prop::option::weighted(0.8, bound()));
        bounds.prop_map(|(start, end)| KeyRange::new(start, end.map(Bytes::from)))
    }

    fn is_plain(ranges: &[KeyRange]) -> bool {
        let apart = |a: &KeyRange, b: &KeyRange| a.end.as_ref().is_some_and(|end| *end < b.start);
        let all_apart = ranges.windows(2).all(|pair| apart(&pair[0], &pair[1]));
        all_apart && ranges.iter().all(|range| !range.is_empty())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// Against a model that asks of every single key.
        #[test]
        fn lists_of_ranges_hold_the_keys_that_they_should(
            ranges in prop::collection::vec(some_range(), 0..5),
            others in prop::collection::vec(some_range(), 0..5),
            one in some_range(),
        ) {
            let (both, left) = (union(ranges.clone()), without(ranges.clone(), &others));
            prop_assert!(is_plain(&both) && is_plain(&left), "{:?} {:?}", both, left);
            let lies_in = |ranges: &[KeyRange], key: &[u8]| ranges.iter().any(|r| r.contains(key));
            for key in keys() {
                prop_assert_eq!(lies_in(&both, &key), lies_in(&ranges, &key), "{:?}", key);
                let expected = lies_in(&ranges, &key) && !lies_in(&others, &key);
                prop_assert_eq!(lies_in(&left, &key), expected, "{:?}", key);
            }
            let within = keys().all(|key| !one.contains(&key) || lies_in(&ranges, &key));
            prop_assert_eq!(one.is_within(&ranges), within);
        }
    }

    proptest! {
        #[test]
        fn overlap_is_a_key_in_both(
            a in any::<[u8; 2]>(),
            b in any::<[u8; 2]>(),
            c in any::<[u8; 2]>(),
            d in any::<[u8; 2]>(),
        ) {
            let x = KeyRange::new(a.to_vec(), Some(b.to_vec().into()));
            let y = KeyRange::new(c.to_vec(), Some(d.to_vec().into()));
            // In a discrete space the larger of the starts is the only candidate that needs a look.
            let witness = a.max(c);
            prop_assert_eq!(x.overlaps(&y), x.contains(&witness) && y.contains(&witness));
            let mut out = BytesMut::new();
            x.encode(&mut out);
            prop_assert_eq!(KeyRange::decode(&mut Reader::new("range", out.freeze())).unwrap(), x);
        }
    }
}
