//! The logs of all shards: written by the pass, read by who fell behind.
//!
//! [`append`] carries out one [`LogBatch`]: whatever all shards of a pass have to write goes into
//! **one** engine batch, and, where any of it must be durable before it counts, under one fsync.
//! Within a shard: overruled entries are deleted, new ones appended, the hard state stored, the
//! front truncated, with the truncated position in the same batch, so that a restart finds either
//! the entries or the position that replaces them.
//!
//! **Invariant.** A log holds exactly the entries above its truncated position, without a gap.
//! [`recover`](crate::recover()) checks it.
//!
//! Truncation deletes few entries one by one and many by one range. Tombstones of single keys
//! vanish with the entries when a memtable is flushed; range tombstones are looked at by every
//! later walk over the family, so there must never be thousands.

use crate::engine::{Cursor, Engine, Family, Order, Read, WriteBatch};
use crate::error::StorageError;
use crate::failpoint::FailPoint;
use crate::keys::{self, StateTag};
use crate::records;
use crate::work::{LogBatch, LogEntry, LogWrite};
use bytes::Bytes;
use flotilla_router::ShardId;
use flotilla_router::mutation::Mutation;

/// From how many entries on a deletion is one range instead of single keys.
const RANGE_DELETE_ENTRIES_MIN: u64 = 4096;

/// Writes what the shards of a pass have to write, as one batch. An error is fatal.
pub fn append<E: Engine>(engine: &E, log_batch: &LogBatch) -> Result<(), StorageError> {
    let mut batch = engine.batch();
    let mut record = Vec::new();
    for write in &log_batch.writes {
        stage(&mut batch, &mut record, write);
    }
    // A sync without anything new still makes durable what was written before.
    if batch.is_empty() && !log_batch.sync {
        return Ok(());
    }
    let (begun, written) = if log_batch.sync {
        (FailPoint::LogBegun, FailPoint::LogWritten)
    } else {
        (FailPoint::LazyLogBegun, FailPoint::LazyLogWritten)
    };
    begun.pass()?;
    engine.write(batch, log_batch.sync && !Mutation::SkippedFsync.is_on())?;
    written.pass()
}

/// Adds one shard's share to the batch.
fn stage(batch: &mut impl WriteBatch, record: &mut Vec<u8>, write: &LogWrite) {
    let shard = write.shard;
    assert!(
        write.entries.windows(2).all(|pair| pair[0].at.index + 1 == pair[1].at.index),
        "appended entries leave a gap"
    );
    if let Some((first, last)) = write.delete {
        // What is overwritten needs no tombstone.
        let overwritten = write
            .entries
            .first()
            .map(|first| first.at.index)
            .zip(write.entries.last().map(|last| last.at.index));
        match overwritten {
            Some((from, to)) if from <= first && to >= first => {
                delete(batch, shard, to.saturating_add(1), last)
            }
            _ => delete(batch, shard, first, last),
        }
    }
    for entry in &write.entries {
        let key = keys::log_entry(shard, entry.at.index);
        records::encode_entry(record, &key, entry);
        batch.put(Family::Log, &key, record);
    }
    if let Some(hard_state) = write.hard_state {
        let key = keys::state(shard, StateTag::HardState);
        records::encode_hard_state(record, &key, hard_state);
        batch.put(Family::State, &key, record);
    }
    if let Some(truncate) = write.truncate {
        delete(batch, shard, truncate.from, truncate.to.index);
        let key = keys::state(shard, StateTag::Truncated);
        records::encode_truncated(record, &key, truncate.to);
        batch.put(Family::State, &key, record);
    }
}

/// Deletes the entries from `first` to `last`.
fn delete(batch: &mut impl WriteBatch, shard: ShardId, first: u64, last: u64) {
    if last.saturating_sub(first) >= RANGE_DELETE_ENTRIES_MIN {
        let end = if last == u64::MAX {
            keys::log_end(shard).to_vec()
        } else {
            keys::log_entry(shard, last + 1).to_vec()
        };
        batch.delete_range(Family::Log, &keys::log_entry(shard, first), &end);
    } else {
        for index in first..=last {
            batch.delete(Family::Log, &keys::log_entry(shard, index));
        }
    }
}

/// The entries from `low` up to, and without, `high`: as many as `bytes_max` allows by
/// [`LogEntry::bytes`], but at least one. Each is verified; one that is corrupt is an error that
/// names it. One that is not there (truncated or overruled since it was asked for) ends the run,
/// before it.
pub fn entries<R: Read>(
    read: &R,
    shard: ShardId,
    low: u64,
    high: u64,
    bytes_max: u64,
) -> Result<Vec<LogEntry>, StorageError> {
    let (mut found, mut bytes) = (Vec::new(), 0u64);
    let (start, end) = (keys::log_entry(shard, low), keys::log_entry(shard, high));
    let mut cursor = read.cursor(Family::Log, &start, Some(&end), Order::Forward);
    for index in low..high {
        let key = keys::log_entry(shard, index);
        let Some((_, record)) = cursor.next()?.filter(|(found, _)| *found == &key[..]) else {
            break;
        };
        let entry = decode(shard, index, &key, Bytes::copy_from_slice(record))?;
        bytes = bytes.saturating_add(entry.bytes());
        if bytes > bytes_max && !found.is_empty() {
            break;
        }
        found.push(entry);
    }
    Ok(found)
}

/// Decodes the entry that must stand at `index`.
fn decode(shard: ShardId, index: u64, key: &[u8], record: Bytes) -> Result<LogEntry, StorageError> {
    let entry =
        records::decode_entry(key, &record).map_err(|e| StorageError::entry(shard, index, e))?;
    if entry.at.index != index {
        return Err(StorageError::entry(
            shard,
            index,
            format!("the entry of index {} stands here", entry.at.index),
        ));
    }
    Ok(entry)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryEngine;
    use crate::testing::{normal, put_payload};
    use crate::work::{HardState, LogPosition, Truncate};

    const SHARD: ShardId = ShardId(7);

    fn write(engine: &MemoryEngine, write: LogWrite) {
        append(engine, &LogBatch { writes: vec![write], sync: true }).unwrap();
    }

    fn indexes(engine: &MemoryEngine) -> Vec<(u64, u64)> {
        let mut cursor = engine.cursor(Family::Log, &[], None, Order::Forward);
        let mut all = Vec::new();
        while let Some((key, record)) = cursor.next().unwrap() {
            let head = records::check_entry(key, record).unwrap();
            assert_eq!(keys::parse_log_entry(key), Some((SHARD, head.at.index)));
            all.push((head.at.index, head.at.term));
        }
        all
    }

    fn filled() -> MemoryEngine {
        let engine = MemoryEngine::new();
        let entries =
            (2..=6).map(|index| normal(index, 1, put_payload(1, &[("k", "v")]))).collect();
        write(&engine, LogWrite { shard: SHARD, entries, ..Default::default() });
        engine
    }

    #[test]
    fn an_overruled_suffix_is_replaced() {
        let engine = filled();
        let entries = vec![normal(4, 2, Bytes::new()), normal(5, 2, Bytes::new())];
        write(
            &engine,
            LogWrite { shard: SHARD, delete: Some((4, 6)), entries, ..Default::default() },
        );
        assert_eq!(indexes(&engine), [(2, 1), (3, 1), (4, 2), (5, 2)]);
        // Deleted entries may also lie wholly above the new ones.
        let entries = vec![normal(4, 3, Bytes::new())];
        write(
            &engine,
            LogWrite { shard: SHARD, delete: Some((5, 5)), entries, ..Default::default() },
        );
        assert_eq!(indexes(&engine), [(2, 1), (3, 1), (4, 3)]);
        write(&engine, LogWrite { shard: SHARD, delete: Some((3, 4)), ..Default::default() });
        assert_eq!(indexes(&engine), [(2, 1)]);
    }

    #[test]
    fn truncation_removes_the_front_and_remembers_where_it_ended() {
        let engine = filled();
        let to = LogPosition { index: 4, term: 1 };
        write(
            &engine,
            LogWrite {
                shard: SHARD,
                truncate: Some(Truncate { from: 2, to }),
                ..Default::default()
            },
        );
        assert_eq!(indexes(&engine), [(5, 1), (6, 1)]);
        let key = keys::state(SHARD, StateTag::Truncated);
        assert_eq!(
            records::decode_truncated(&key, &engine.get(Family::State, &key).unwrap().unwrap()),
            Ok(to)
        );
    }

    #[test]
    fn a_long_truncation_is_one_range_and_a_short_one_single_keys() {
        for (count, by_range) in [(10, false), (RANGE_DELETE_ENTRIES_MIN + 1, true)] {
            let engine = MemoryEngine::new();
            let mut batch = engine.batch();
            delete(&mut batch, SHARD, 2, 1 + count);
            assert_eq!(batch.bytes() < 16 * count as usize, by_range, "{count} entries");
            let entries = (2..=2 + count).map(|index| normal(index, 1, Bytes::new())).collect();
            write(&engine, LogWrite { shard: SHARD, entries, ..Default::default() });
            engine.write(batch, true).unwrap();
            assert_eq!(indexes(&engine), [(2 + count, 1)]);
        }
    }

    #[test]
    fn fetched_entries_are_bounded_in_bytes_but_never_none() {
        let engine = filled();
        let all = entries(&engine, SHARD, 2, 7, u64::MAX).unwrap();
        assert_eq!(all.iter().map(|e| e.at.index).collect::<Vec<_>>(), [2, 3, 4, 5, 6]);
        let two = all[0].bytes() * 2;
        assert_eq!(entries(&engine, SHARD, 2, 7, two).unwrap(), all[..2]);
        assert_eq!(entries(&engine, SHARD, 3, 7, 0).unwrap(), all[1..2]);
        assert_eq!(entries(&engine, SHARD, 3, 3, 0).unwrap(), []);
        assert_eq!(
            entries(&engine, SHARD, 5, 9, u64::MAX).unwrap(),
            all[3..],
            "the run ends where the log does"
        );
        assert_eq!(
            entries(&engine, SHARD, 1, 4, u64::MAX).unwrap(),
            [],
            "the first is not there any more"
        );
    }

    #[test]
    fn what_must_not_wait_is_not_synced() {
        let engine = MemoryEngine::new();
        let hard_state = Some(HardState { term: 1, vote: 0, commit: 1 });
        let writes = vec![LogWrite { shard: SHARD, hard_state, ..Default::default() }];
        append(&engine, &LogBatch { writes, sync: false }).unwrap();
        assert_eq!(engine.unsynced(), 1);
        append(&engine, &LogBatch { writes: Vec::new(), sync: true }).unwrap();
        assert_eq!(engine.unsynced(), 0, "a sync covers what was written before it");
    }
}
