//! Looks at what is applied: one key, a page of keys, the hash of a shard.
//!
//! Everything here is generic over [`Read`]: the engine itself, where one look is enough, or a view, where several looks must
//! agree. A value is copied once, out of the engine's pinned memory into the answer.

use crate::engine::{Cursor, Family, Order, Read};
use crate::error::StorageError;
use crate::keys;
use crate::records::{self, AppliedRecord};
use crate::work::LogPosition;
use bytes::Bytes;
use flotilla_router::range::successor_of_key;
use flotilla_router::{DecodeError, Descriptor, Item, KeyRange, Revision, Scan, ScanPage, ShardId};
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
fn look<R: Read, T>(read: &R, meta: bool, key: &[u8], then: impl FnOnce(&[u8]) -> T) -> Result<Option<T>, StorageError> {
    let prefix = keys::data_prefix(meta);
    let mut small = [prefix; 1 + KEY_BYTES_ON_STACK];
    match small.get_mut(1..1 + key.len()) {
        Some(rest) => {
            rest.copy_from_slice(key);
            read.look(Family::Data, &small[..1 + key.len()], then)
        }
        None => read.look(Family::Data, &keys::data(meta, key), then),
    }
}

fn corrupt(key: &[u8], error: DecodeError) -> StorageError {
    StorageError::DataRecord { key_bytes: key.len(), why: error.why }
}

/// The revision and the value of a key, if it is there. `meta` says whose key it is: the meta shard's, or a client's.
pub fn get<R: Read>(read: &R, meta: bool, key: &[u8]) -> Result<Option<(Revision, Bytes)>, StorageError> {
    look(read, meta, key, |record| {
        records::decode_data(record).map(|(revision, value)| (revision, Bytes::copy_from_slice(value)))
    })?
    .transpose()
    .map_err(|e| corrupt(key, e))
}

/// The revision of a key, if it is there.
pub fn revision<R: Read>(read: &R, meta: bool, key: &[u8]) -> Result<Option<Revision>, StorageError> {
    let found = look(read, meta, key, |record| records::decode_data(record).map(|(revision, _)| revision))?;
    found.transpose().map_err(|e| corrupt(key, e))
}

/// One page of a scan, out of the part of its range that lies within `shard_range`. The shard owns the scan's first key (in
/// reverse: its last); what it does not own on the other side is left to the neighbours, in [`ScanPage::rest`].
///
/// A limit of 0 is taken for 1: every page moves on.
pub fn scan<R: Read>(read: &R, scan: &Scan, shard_range: &KeyRange, meta: bool) -> Result<ScanPage, StorageError> {
    let part = scan.range.intersect(shard_range);
    let mut items: Vec<Item> = Vec::new();
    if !part.is_empty() {
        let (start, end) = keys::data_range(meta, &part);
        let order = if scan.reverse { Order::Reverse } else { Order::Forward };
        let mut cursor = read.cursor(Family::Data, &start, Some(&end), order);
        let mut bytes = 0;
        while let Some((stored, record)) = cursor.next()? {
            let key = keys::parse_data(meta, stored).unwrap_or_default();
            let (revision, value) = records::decode_data(record).map_err(|e| corrupt(key, e))?;
            let value = if scan.keys_only { &[] } else { value };
            bytes += key.len() + value.len();
            let full = items.len() >= scan.limit as usize || bytes > scan.bytes_max as usize;
            if full && !items.is_empty() {
                // This key is the first that was not shown.
                let rest = if scan.reverse {
                    KeyRange::new(scan.range.start.clone(), Some(successor_of_key(key)))
                } else {
                    KeyRange::new(Bytes::copy_from_slice(key), scan.range.end.clone())
                };
                return Ok(ScanPage { items, rest: Some(rest) });
            }
            items.push(Item { key: Bytes::copy_from_slice(key), value: Bytes::copy_from_slice(value), revision });
        }
    }
    Ok(ScanPage { items, rest: beyond(&scan.range, shard_range, scan.reverse) })
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
        None => Err(StorageError::ShardRecord { shard, record: "applied state", why: "it is missing".into() }),
    }
}

/// The hash of a shard's data. Reads all of them.
pub fn hash<R: Read>(read: &R, descriptor: &Descriptor) -> Result<StateHash, StorageError> {
    let meta = descriptor.id.is_meta();
    let (mut hasher, mut keys_seen, mut bytes) = (Xxh3::new(), 0, 0);
    let (start, end) = keys::data_range(meta, &descriptor.range);
    let mut cursor = read.cursor(Family::Data, &start, Some(&end), Order::Forward);
    while let Some((stored, record)) = cursor.next()? {
        let key = keys::parse_data(meta, stored).unwrap_or_default();
        let (revision, value) = records::decode_data(record).map_err(|e| corrupt(key, e))?;
        // Lengths in front, so that no two different shards run together to the same bytes.
        for part in [key, value] {
            hasher.update(&(part.len() as u64).to_be_bytes());
            hasher.update(part);
        }
        hasher.update(&revision.0.to_be_bytes());
        keys_seen += 1;
        bytes += (key.len() + value.len()) as u64;
    }
    Ok(StateHash { applied: applied(read, descriptor.id)?, hash: hasher.digest(), keys: keys_seen, bytes })
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
            records::encode_data(&mut record, Revision(i as u64 + 1), format!("value of {key}").as_bytes());
            batch.put(Family::Data, &keys::data(false, key.as_bytes()), &record);
        }
        // Neighbours in the family that belong to nobody's range.
        records::encode_data(&mut record, Revision(1), b"meta");
        batch.put(Family::Data, &keys::data(true, b"b"), &record);
        batch.put(Family::Data, &keys::applied(ShardId(2)), &records::encode_applied(AppliedRecord::default()));
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
        let page = scan(engine, &asked, &shard, false).unwrap();
        (page.items.iter().map(|item| String::from_utf8(item.key.to_vec()).unwrap()).collect(), page.rest)
    }

    #[test]
    fn get_finds_a_key_with_its_revision_in_its_own_space() {
        let long = "x".repeat(1000);
        let engine = filled(&["a", &long]);
        assert_eq!(get(&engine, false, b"a").unwrap(), Some((Revision(1), "value of a".into())));
        assert_eq!(get(&engine, false, long.as_bytes()).unwrap().unwrap().0, Revision(2));
        assert_eq!(revision(&engine, false, long.as_bytes()).unwrap(), Some(Revision(2)));
        assert_eq!(get(&engine, false, b"b").unwrap(), None, "the meta shard's key shows among the clients'");
        assert_eq!(get(&engine, true, b"b").unwrap(), Some((Revision(1), "meta".into())));
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
            assert_eq!(got, (keys.into_iter().map(String::from).collect(), rest), "{asked:?} reverse {reverse} limit {limit}");
        }
        assert_eq!(page(&engine, all.clone(), all, false, 100).0.len(), 5);
    }

    #[test]
    fn bytes_are_bounded_but_one_item_always_comes() {
        let engine = filled(&["a", "b", "c"]);
        for (bytes_max, keys_only, items) in [(0, false, 1), (22, false, 2), (21, false, 1), (2, true, 2), (1000, false, 3)] {
            let asked = Scan { range: KeyRange::all(), reverse: false, limit: 10, bytes_max, keys_only };
            let page = scan(&engine, &asked, &KeyRange::all(), false).unwrap();
            assert_eq!(page.items.len(), items, "{bytes_max} bytes, keys only: {keys_only}");
            assert_eq!(page.items[0].value.is_empty(), keys_only);
            assert_eq!(page.items[0].revision, Revision(1));
        }
    }

    #[test]
    fn a_corrupt_record_is_an_error_and_not_a_missing_key() {
        let engine = filled(&[]);
        let mut batch = engine.batch();
        batch.put(Family::Data, &keys::data(false, b"k"), b"\x01short");
        engine.write(batch, false).unwrap();
        assert!(get(&engine, false, b"k").unwrap_err().to_string().contains("key of 1 bytes"));
    }

    #[test]
    fn the_hash_tells_keys_values_and_revisions_apart() {
        let shard = Descriptor { id: ShardId(2), range: KeyRange::all(), epoch: Default::default(), replicas: Vec::new() };
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
                let below = |end: &Option<Bytes>| end.as_ref().is_some_and(|end| end[..] <= *cut.as_bytes());
                let left = if reverse { below(&asked.end) } else { asked.start[..] < *cut.as_bytes() };
                let (page, next) = page(&engine, asked, shards[usize::from(!left)].clone(), reverse, limit);
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
