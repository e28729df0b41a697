//! Looks at what is applied: one key, a page of keys, the hash of a shard.
//!
//! Everything here is generic over [`Read`]: the engine itself, where one look is enough, or a
//! view, where several looks must agree. A value is copied once, out of the engine's pinned memory
//! into the answer.
//!
//! What may take long (a [page](PageLook) over large values or masses of removed records, a
//! [hash](HashLook)) is looked at in **slices**: `look_on` goes on until it is done, or until it is
//! told that its time is up, and knows where to go on. Between two slices nothing is held but what
//! was found, so that whoever runs them can let others in, or give up.

use crate::engine::{Cursor, Family, Order, Pace, Read};
use crate::error::StorageError;
use crate::keys;
use crate::records::{self, AppliedRecord};
use crate::work::LogPosition;
use bytes::Bytes;
use flotilla_router::range::successor_of_key;
use flotilla_router::{
    DecodeError, Descriptor, Item, KeyRange, KeySpace, Revision, Scan, ScanPage, ShardId,
};
use xxhash_rust::xxh3::Xxh3;

/// How replicas are compared: equal at equal `applied`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateHash {
    /// The last entry whose effects are counted in.
    pub applied: LogPosition,
    /// XXH3 over every key, revision and value in key order.
    pub hash: u64,
    /// How many keys there are.
    pub keys: u64,
    /// How many bytes their keys and values take.
    pub bytes: u64,
}

/// Keys up to this length are looked up without an allocation.
const KEY_BYTES_ON_STACK: usize = 256;

/// Shows the record of `key` to `then`.
fn look<R: Read, T>(
    read: &R,
    space: KeySpace,
    key: &[u8],
    then: impl FnOnce(&[u8]) -> T,
) -> Result<Option<T>, StorageError> {
    let prefix = keys::data_prefix(space);
    let mut small = [prefix; 1 + KEY_BYTES_ON_STACK];
    match small.get_mut(1..1 + key.len()) {
        Some(rest) => {
            rest.copy_from_slice(key);
            read.look(Family::Data, &small[..1 + key.len()], then)
        }
        None => read.look(Family::Data, &keys::data(space, key), then),
    }
}

fn corrupt(key: &[u8], error: DecodeError) -> StorageError {
    StorageError::DataRecord { key_bytes: key.len(), why: error.why }
}

/// The revision and the value of a key, if it is there. Of which space it is, `space` says.
pub fn get<R: Read>(
    read: &R,
    space: KeySpace,
    key: &[u8],
) -> Result<Option<(Revision, Bytes)>, StorageError> {
    look(read, space, key, |record| {
        records::decode_data(record)
            .map(|(revision, value)| (revision, Bytes::copy_from_slice(value)))
    })?
    .transpose()
    .map_err(|e| corrupt(key, e))
}

/// The revision of a key, if it is there.
pub fn revision<R: Read>(
    read: &R,
    space: KeySpace,
    key: &[u8],
) -> Result<Option<Revision>, StorageError> {
    let found = look(read, space, key, |record| {
        records::decode_data(record).map(|(revision, _)| revision)
    })?;
    found.transpose().map_err(|e| corrupt(key, e))
}

/// One page of a scan, in one go; see [`PageLook`].
pub fn scan<R: Read>(
    read: &R,
    scan: &Scan,
    shard_range: &KeyRange,
    space: KeySpace,
) -> Result<ScanPage, StorageError> {
    let mut look = PageLook::new(scan.clone(), shard_range.clone(), space, true);
    while !look.look_on(read, || true)? {}
    Ok(look.page())
}

/// How many removed records a step passes over before the time is looked at: some tens of
/// milliseconds.
const REMOVED_MAX: u64 = 50_000;
/// How many records, or KiB of them, are read between two looks at the time.
const STRIDE: usize = 32;

/// Counts what was read, and asks now and then whether to go on.
struct Stride<F> {
    go_on: F,
    walked: usize,
}

impl<F: FnMut() -> bool> Stride<F> {
    fn new(go_on: F) -> Self {
        Self { go_on, walked: 0 }
    }

    /// Whether the time is up, once so many more bytes were read.
    fn is_over(&mut self, bytes: usize) -> bool {
        self.walked += 1 + bytes / 1024;
        if self.walked < STRIDE {
            return false;
        }
        self.walked = 0;
        !(self.go_on)()
    }
}

/// A page of a scan that is being filled, out of the part of its range that lies within the
/// shard's. The shard owns the scan's first key (in reverse: its last); what it does not own on the
/// other side is left to the neighbours, in [`ScanPage::rest`].
///
/// A limit of 0 is taken for 1: every page moves on.
pub struct PageLook {
    asked: Scan,
    shard_range: KeyRange,
    space: KeySpace,
    pace: Pace,
    items: Vec<Item>,
    bytes: usize,
    /// Once the page is done: what it leaves.
    done: Option<Option<KeyRange>>,
}

impl PageLook {
    /// Nothing was looked at yet. With `keep`, what passes by stays in the cache.
    pub fn new(asked: Scan, shard_range: KeyRange, space: KeySpace, keep: bool) -> Self {
        let pace = Pace { removed_max: REMOVED_MAX, keep };
        Self { asked, shard_range, space, pace, items: Vec::new(), bytes: 0, done: None }
    }

    /// Looks on, in the same view as before; `true` when the page is done. Where `go_on` says no it
    /// may be shown as it is.
    pub fn look_on<R: Read>(
        &mut self,
        read: &R,
        go_on: impl FnMut() -> bool,
    ) -> Result<bool, StorageError> {
        if self.done.is_some() {
            return Ok(true);
        }
        let part = self.to_come().intersect(&self.shard_range);
        if part.is_empty() {
            self.done = Some(beyond(&self.asked.range, &self.shard_range, self.asked.reverse));
            return Ok(true);
        }
        let (start, end) = keys::data_range(self.space, &part);
        let order = if self.asked.reverse { Order::Reverse } else { Order::Forward };
        let mut cursor = read.cursor_at(Family::Data, &start, Some(&end), order, self.pace);
        let mut stride = Stride::new(go_on);
        loop {
            let (stored, record) = match cursor.next() {
                Ok(Some(record)) => record,
                Ok(None) => break,
                Err(StorageError::TooManyRemoved(_)) => {
                    // Where the step came to is not known, so it is taken again; never more than
                    // twice in vain for what it takes.
                    self.pace.removed_max = self.pace.removed_max.saturating_mul(2);
                    return Ok(false);
                }
                Err(error) => return Err(error),
            };
            let key = keys::parse_data(self.space, stored).unwrap_or_default();
            let (revision, value) = records::decode_data(record).map_err(|e| corrupt(key, e))?;
            let read = value.len();
            let value = if self.asked.keys_only { &[] } else { value };
            let bytes = self.bytes + key.len() + value.len();
            let full = self.items.len() >= self.asked.limit as usize
                || bytes > self.asked.bytes_max as usize;
            if full && !self.items.is_empty() {
                // This key is the first that was not shown.
                let range = &self.asked.range;
                let rest = if self.asked.reverse {
                    KeyRange::new(range.start.clone(), Some(successor_of_key(key)))
                } else {
                    KeyRange::new(Bytes::copy_from_slice(key), range.end.clone())
                };
                self.done = Some(Some(rest));
                return Ok(true);
            }
            self.bytes = bytes;
            self.items.push(Item {
                key: Bytes::copy_from_slice(key),
                value: Bytes::copy_from_slice(value),
                revision,
            });
            self.pace.removed_max = REMOVED_MAX;
            if stride.is_over(read) {
                return Ok(false);
            }
        }
        self.done = Some(beyond(&self.asked.range, &self.shard_range, self.asked.reverse));
        Ok(true)
    }

    /// What of the asked range is still to be looked at: what comes behind the last item.
    fn to_come(&self) -> KeyRange {
        let range = &self.asked.range;
        match self.items.last() {
            None => range.clone(),
            Some(last) if self.asked.reverse => {
                KeyRange::new(range.start.clone(), Some(last.key.clone()))
            }
            Some(last) => KeyRange::new(successor_of_key(&last.key), range.end.clone()),
        }
    }

    /// Bytes of the items so far, in memory.
    pub fn held_bytes(&self) -> usize {
        self.bytes + self.items.len() * size_of::<Item>()
    }

    /// Whether nothing is to be shown yet, not even that there is nothing.
    pub fn is_bare(&self) -> bool {
        self.done.is_none() && self.items.is_empty()
    }

    /// The page as it is now.
    pub fn page(self) -> ScanPage {
        let rest = self.done.clone().unwrap_or_else(|| Some(self.to_come()));
        ScanPage { items: self.items, rest }
    }
}

/// The part of a scanned range that lies beyond the shard, in the direction of the scan.
fn beyond(scanned: &KeyRange, shard: &KeyRange, reverse: bool) -> Option<KeyRange> {
    let rest = if reverse {
        KeyRange::new(scanned.start.clone(), Some(shard.start.clone()))
    } else {
        KeyRange::new(shard.end.clone()?, scanned.end.clone())
    };
    let rest = rest.intersect(scanned);
    (!rest.is_empty()).then_some(rest)
}

/// Up to where the shard is applied, as `read` shows it.
pub fn applied<R: Read>(read: &R, shard: ShardId) -> Result<LogPosition, StorageError> {
    applied_record(read, shard).map(|applied| applied.at)
}

/// The shard's applied state, as `read` shows it.
pub fn applied_record<R: Read>(read: &R, shard: ShardId) -> Result<AppliedRecord, StorageError> {
    match read.look(Family::Data, &keys::applied(shard), records::decode_applied)? {
        Some(applied) => applied.map_err(|e| StorageError::record(shard, e)),
        None => Err(StorageError::ShardRecord {
            shard,
            record: "applied state",
            why: "it is missing".into(),
        }),
    }
}

/// The hash of a shard's data, in one go; see [`HashLook`].
pub fn hash<R: Read>(read: &R, descriptor: &Descriptor) -> Result<StateHash, StorageError> {
    let mut look = HashLook::new(descriptor);
    while !look.look_on(read, || true)? {}
    look.hash(read)
}

/// The hash of a shard's data that is being worked out. Reads all of them, and keeps none of them
/// in the cache.
pub struct HashLook {
    shard: ShardId,
    pace: Pace,
    /// Where to go on, and where to end, as stored.
    rest: (Vec<u8>, Vec<u8>),
    hasher: Xxh3,
    keys: u64,
    bytes: u64,
}

impl HashLook {
    /// Nothing was looked at yet.
    pub fn new(descriptor: &Descriptor) -> Self {
        let rest = keys::data_range(descriptor.id.key_space(), &descriptor.range);
        let pace = Pace { removed_max: REMOVED_MAX, keep: false };
        Self { shard: descriptor.id, pace, rest, hasher: Xxh3::new(), keys: 0, bytes: 0 }
    }

    /// Looks on, in the same view as before, until all is seen (`true`) or `go_on` says no.
    pub fn look_on<R: Read>(
        &mut self,
        read: &R,
        go_on: impl FnMut() -> bool,
    ) -> Result<bool, StorageError> {
        let (start, end) = &mut self.rest;
        let mut cursor = read.cursor_at(Family::Data, start, Some(end), Order::Forward, self.pace);
        let mut stride = Stride::new(go_on);
        loop {
            let (stored, record) = match cursor.next() {
                Ok(Some(record)) => record,
                Ok(None) => return Ok(true),
                Err(StorageError::TooManyRemoved(_)) => {
                    self.pace.removed_max = self.pace.removed_max.saturating_mul(2);
                    return Ok(false);
                }
                Err(error) => return Err(error),
            };
            let key = keys::parse_data(self.shard.key_space(), stored).unwrap_or_default();
            let (revision, value) = records::decode_data(record).map_err(|e| corrupt(key, e))?;
            // Lengths in front, so that no two different shards run together to the same bytes.
            for part in [key, value] {
                self.hasher.update(&(part.len() as u64).to_be_bytes());
                self.hasher.update(part);
            }
            self.hasher.update(&revision.0.to_be_bytes());
            self.keys += 1;
            let bytes = key.len() + value.len();
            self.bytes += bytes as u64;
            // Behind this key is this key and a NUL.
            start.clear();
            start.extend_from_slice(stored);
            start.push(0);
            self.pace.removed_max = REMOVED_MAX;
            if stride.is_over(bytes) {
                return Ok(false);
            }
        }
    }

    /// What came of it, once all is seen.
    pub fn hash<R: Read>(&self, read: &R) -> Result<StateHash, StorageError> {
        let applied = applied(read, self.shard)?;
        Ok(StateHash { applied, hash: self.hasher.digest(), keys: self.keys, bytes: self.bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Engine, WriteBatch};
    use crate::memory::MemoryEngine;
    use proptest::prelude::*;

    fn filled(keys: &[&str]) -> MemoryEngine {
        let engine = MemoryEngine::new();
        let (mut batch, mut record) = (engine.batch(), Vec::new());
        for (i, key) in keys.iter().enumerate() {
            records::encode_data(
                &mut record,
                Revision(i as u64 + 1),
                format!("value of {key}").as_bytes(),
            );
            batch.put(Family::Data, &keys::data(KeySpace::User, key.as_bytes()), &record);
        }
        // Neighbours in the family that belong to nobody's range.
        records::encode_data(&mut record, Revision(1), b"meta");
        batch.put(Family::Data, &keys::data(KeySpace::Meta, b"b"), &record);
        batch.put(
            Family::Data,
            &keys::applied(ShardId(2)),
            &records::encode_applied(AppliedRecord::default()),
        );
        engine.write(batch, false).unwrap();
        engine
    }

    fn range(start: &str, end: Option<&str>) -> KeyRange {
        KeyRange::new(start.as_bytes().to_vec(), end.map(|end| end.as_bytes().to_vec().into()))
    }

    fn page(
        engine: &MemoryEngine,
        range: KeyRange,
        shard: KeyRange,
        reverse: bool,
        limit: u32,
    ) -> (Vec<String>, Option<KeyRange>) {
        let asked = Scan { range, reverse, limit, bytes_max: u32::MAX, keys_only: false };
        let page = scan(engine, &asked, &shard, KeySpace::User).unwrap();
        (
            page.items.iter().map(|item| String::from_utf8(item.key.to_vec()).unwrap()).collect(),
            page.rest,
        )
    }

    #[test]
    fn get_finds_a_key_with_its_revision_in_its_own_space() {
        let long = "x".repeat(1000);
        let engine = filled(&["a", &long]);
        assert_eq!(
            get(&engine, KeySpace::User, b"a").unwrap(),
            Some((Revision(1), "value of a".into()))
        );
        assert_eq!(get(&engine, KeySpace::User, long.as_bytes()).unwrap().unwrap().0, Revision(2));
        assert_eq!(revision(&engine, KeySpace::User, long.as_bytes()).unwrap(), Some(Revision(2)));
        assert_eq!(
            get(&engine, KeySpace::User, b"b").unwrap(),
            None,
            "the meta shard's key shows among the clients'"
        );
        assert_eq!(get(&engine, KeySpace::Meta, b"b").unwrap(), Some((Revision(1), "meta".into())));
    }

    #[test]
    fn a_page_says_what_is_left() {
        let engine = filled(&["a", "b", "c", "d", "e"]);
        let (all, shard) = (range("", None), range("b", Some("e")));
        let table = [
            // range asked for, reverse, limit -> keys, rest
            (range("b", None), false, 9, vec!["b", "c", "d"], Some(range("e", None))),
            (range("b", Some("d")), false, 9, vec!["b", "c"], None),
            (range("b", Some("e")), false, 9, vec!["b", "c", "d"], None),
            (range("b", None), false, 2, vec!["b", "c"], Some(range("d", None))),
            (range("b", Some("d")), false, 2, vec!["b", "c"], None),
            (range("b", None), false, 0, vec!["b"], Some(range("c", None))),
            (range("", Some("e")), true, 9, vec!["d", "c", "b"], Some(range("", Some("b")))),
            (range("c", Some("e")), true, 9, vec!["d", "c"], None),
            (range("", Some("e")), true, 1, vec!["d"], Some(range("", Some("c\0")))),
            (range("c", Some("c")), false, 9, vec![], None),
        ];
        for (asked, reverse, limit, keys, rest) in table {
            let got = page(&engine, asked.clone(), shard.clone(), reverse, limit);
            assert_eq!(
                got,
                (keys.into_iter().map(String::from).collect(), rest),
                "{asked:?} reverse {reverse} limit {limit}"
            );
        }
        assert_eq!(page(&engine, all.clone(), all, false, 100).0.len(), 5);
    }

    #[test]
    fn bytes_are_bounded_but_one_item_always_comes() {
        let engine = filled(&["a", "b", "c"]);
        for (bytes_max, keys_only, items) in
            [(0, false, 1), (22, false, 2), (21, false, 1), (2, true, 2), (1000, false, 3)]
        {
            let asked =
                Scan { range: KeyRange::all(), reverse: false, limit: 10, bytes_max, keys_only };
            let page = scan(&engine, &asked, &KeyRange::all(), KeySpace::User).unwrap();
            assert_eq!(page.items.len(), items, "{bytes_max} bytes, keys only: {keys_only}");
            assert_eq!(page.items[0].value.is_empty(), keys_only);
            assert_eq!(page.items[0].revision, Revision(1));
        }
    }

    /// However often it is interrupted, a page and a hash come to what they come to in one go; and
    /// what a page shows halfway is the beginning of it, with a rest that goes on right behind.
    #[test]
    fn slices_together_are_the_whole() {
        let names: Vec<String> = (0..100).map(|n| format!("k{n:03}")).collect();
        let engine = filled(&names.iter().map(String::as_str).collect::<Vec<_>>());
        for reverse in [false, true] {
            let asked = Scan {
                range: range("k010", Some("k090")),
                reverse,
                limit: 75,
                bytes_max: u32::MAX,
                keys_only: false,
            };
            let whole = scan(&engine, &asked, &KeyRange::all(), KeySpace::User).unwrap();
            let mut look = PageLook::new(asked.clone(), KeyRange::all(), KeySpace::User, true);
            let mut slices = 1;
            assert!(look.is_bare());
            while !look.look_on(&engine, || false).unwrap() {
                slices += 1;
                let rest = look.to_come();
                let asked =
                    Scan { range: rest, limit: 75 - look.items.len() as u32, ..asked.clone() };
                let next = scan(&engine, &asked, &KeyRange::all(), KeySpace::User).unwrap();
                assert_eq!([look.items.clone(), next.items].concat(), whole.items);
            }
            assert!(slices > 2, "only {slices} slices");
            assert_eq!(look.page(), whole);
        }
        let shard = Descriptor {
            id: ShardId(2),
            range: KeyRange::all(),
            epoch: Default::default(),
            replicas: Vec::new(),
        };
        let (mut look, mut slices) = (HashLook::new(&shard), 1);
        while !look.look_on(&engine, || false).unwrap() {
            slices += 1;
        }
        assert!(slices > 2, "only {slices} slices");
        assert_eq!(look.hash(&engine).unwrap(), hash(&engine, &shard).unwrap());
    }

    #[test]
    fn a_corrupt_record_is_an_error_and_not_a_missing_key() {
        let engine = filled(&[]);
        let mut batch = engine.batch();
        batch.put(Family::Data, &keys::data(KeySpace::User, b"k"), b"\x01short");
        engine.write(batch, false).unwrap();
        assert!(
            get(&engine, KeySpace::User, b"k").unwrap_err().to_string().contains("key of 1 bytes")
        );
    }

    #[test]
    fn the_hash_tells_keys_values_and_revisions_apart() {
        let shard = Descriptor {
            id: ShardId(2),
            range: KeyRange::all(),
            epoch: Default::default(),
            replicas: Vec::new(),
        };
        let of = |keys: &[&str]| hash(&filled(keys), &shard).unwrap();
        assert_eq!(of(&["a", "b"]), of(&["a", "b"]));
        assert_ne!(of(&["a", "b"]).hash, of(&["b", "a"]).hash, "the same keys at other revisions");
        assert_ne!(of(&["a"]).hash, of(&["b"]).hash);
        assert_eq!((of(&["a", "b"]).keys, of(&["a", "b"]).bytes), (2, 22));
    }

    proptest! {
        #[test]
        fn pages_of_shards_together_show_every_key_once(
            keys in proptest::collection::btree_set("[a-d]{1,3}", 0..20),
            cut in "[a-d]{1,2}",
            limit in 1..4u32,
            reverse in any::<bool>(),
        ) {
            let engine = filled(&keys.iter().map(String::as_str).collect::<Vec<_>>());
            let shards = [range("", Some(&cut)), range(&cut, None)];
            let (mut rest, mut seen) = (Some(KeyRange::all()), Vec::new());
            while let Some(asked) = rest {
                let below = |end: &Option<Bytes>| {
                    end.as_ref().is_some_and(|end| end[..] <= *cut.as_bytes())
                };
                let left =
                    if reverse { below(&asked.end) } else { asked.start[..] < *cut.as_bytes() };
                let shard = shards[usize::from(!left)].clone();
                let (page, next) = page(&engine, asked, shard, reverse, limit);
                seen.extend(page);
                rest = next;
            }
            if reverse {
                seen.reverse();
            }
            prop_assert_eq!(seen, keys.into_iter().collect::<Vec<_>>());
        }
    }
}
