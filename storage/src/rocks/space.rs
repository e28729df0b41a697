//! Space on the disk that RocksDB holds and nobody needs any more: how much more it may come to, and how it is given back.
//!
//! What was deleted takes space until the tombstones have met it in a compaction. RocksDB starts those by itself once enough was
//! *written*; on a full disk nothing is, so a tombstone may lie in a memtable for ever, above files that it has emptied. The same
//! holds for write-ahead logs: each is held by the memtables that are not files yet. So [`RocksEngine::give_back`] turns memtables
//! into files, and compacts what lies below every tombstone that the files say they hold. It needs no memory of what was deleted,
//! and finds it after a restart, too.

use super::{RocksEngine, failed};
use crate::engine::{Engine as _, Family};
use crate::error::StorageError;
use crate::room;
use rocksdb::{CompactOptions, LiveFile, properties};
use std::sync::atomic::Ordering;

/// What stays free when a memtable becomes a file: the lists of files, and what is written meanwhile.
const MARGIN_BYTES: u64 = 1 << 20;

/// The first and the last key of a stretch.
type Span = (Vec<u8>, Vec<u8>);

/// What is still to be written on account of what was written already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owed {
    /// Bytes of memtables, which become files.
    pub memtable_bytes: u64,
    /// Bytes that the largest compaction which is due writes before it removes what it took in.
    pub compaction_bytes: u64,
}

/// What giving back came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GivenBack {
    /// Bytes of memtables that became files.
    pub flushed_bytes: u64,
    /// Ranges below tombstones that were compacted.
    pub ranges: usize,
    /// Bytes of memtables for which there was no room.
    pub left_bytes: u64,
}

impl RocksEngine {
    /// What may still be written to the disk on account of what was written already.
    pub fn owed(&self) -> Owed {
        let due = |family| self.property(family, properties::ESTIMATE_PENDING_COMPACTION_BYTES);
        let compaction_bytes = (due(Family::Log) + due(Family::Data)).min(2 * self.inner.options.compaction_bytes_max);
        Owed { memtable_bytes: self.sum(properties::CUR_SIZE_ALL_MEM_TABLES), compaction_bytes }
    }

    /// So many bytes are to stay free: exports end where less is left.
    pub fn keep_free(&self, bytes: u64) {
        self.inner.keep_free.store(bytes, Ordering::Relaxed);
    }

    /// Whether there is room for what can be done without.
    pub(super) fn check_room(&self) -> Result<(), StorageError> {
        let (keep, free) = (self.inner.keep_free.load(Ordering::Relaxed), self.free_bytes()?.unwrap_or(u64::MAX));
        if free < keep {
            return Err(StorageError::engine("write snapshot file", format!("{free} bytes are free, {keep} must stay so")));
        }
        Ok(())
    }

    /// Whether it was opened on a disk without room, and has not come to terms with it.
    pub fn is_lean(&self) -> bool {
        self.inner.lean.load(Ordering::Relaxed)
    }

    /// Gives back what nobody needs any more, as far as there is room for that. May take long; nothing else waits for it.
    pub fn give_back(&self) -> Result<GivenBack, StorageError> {
        let mut given = GivenBack::default();
        // A single tombstone may stand above all that can be given back; so its size says nothing about what a memtable is worth.
        let entries = |family| {
            self.property(family, properties::NUM_ENTRIES_ACTIVE_MEM_TABLE)
                + self.property(family, properties::NUM_ENTRIES_IMM_MEM_TABLES)
        };
        let mut memtables: Vec<_> = [Family::State, Family::Log, Family::Data]
            .into_iter()
            .filter(|family| entries(*family) > 0)
            .map(|family| (self.property(family, properties::CUR_SIZE_ALL_MEM_TABLES), family))
            .collect();
        if memtables.iter().all(|(_, family)| *family == Family::State) {
            // It changes all the time, and is small.
            memtables.clear();
        }
        // The smallest first: each makes the next one likelier to find room.
        memtables.sort();
        for (bytes, family) in memtables {
            let disk = room::disk(&self.inner.dir).map_err(|error| StorageError::engine("look at the disk", error))?;
            // A file for which there is no room would end the process.
            if disk.free_bytes < bytes + MARGIN_BYTES {
                given.left_bytes += bytes;
                continue;
            }
            self.flush_family(family)?;
            given.flushed_bytes += bytes;
        }
        if self.is_lean() && given.left_bytes == 0 {
            self.grow_lean_no_more()?;
        }
        for family in [Family::Log, Family::Data] {
            for (start, end) in self.below_tombstones(family)? {
                self.compact(family, &start, &end);
                given.ranges += 1;
            }
        }
        Ok(given)
    }

    /// Turns the memtable of a family into a file.
    pub(super) fn flush_family(&self, family: Family) -> Result<(), StorageError> {
        let db = &self.inner.db;
        db.raw().flush_cf(db.family(family)).map_err(failed("flush memtable"))
    }

    /// Memtables have their usual size again.
    fn grow_lean_no_more(&self) -> Result<(), StorageError> {
        let (db, options) = (&self.inner.db, &self.inner.options);
        for (family, bytes) in [
            (Family::Log, options.log_memtable_bytes),
            (Family::State, options.state_memtable_bytes),
            (Family::Data, options.data_memtable_bytes),
        ] {
            let size = [("write_buffer_size", bytes.to_string())];
            let size = size.each_ref().map(|(name, value)| (*name, value.as_str()));
            db.raw().set_options_cf(db.family(family), &size).map_err(failed("set the size of memtables"))?;
        }
        self.inner.lean.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// The stretches of keys that files with tombstones span; none that touch each other.
    fn below_tombstones(&self, family: Family) -> Result<Vec<Span>, StorageError> {
        let name = match family {
            Family::Log => "log",
            Family::State => "state",
            Family::Data => "data",
        };
        let files = self.inner.db.raw().live_files().map_err(failed("list files"))?;
        let span = |file: LiveFile| (file.start_key).zip(file.end_key);
        let holds = |file: &LiveFile| file.column_family_name == name && file.num_deletions > 0;
        let mut spans: Vec<_> = files.into_iter().filter(holds).filter_map(span).collect();
        spans.sort();
        let mut joined: Vec<Span> = Vec::new();
        for (start, end) in spans {
            match joined.last_mut() {
                Some((_, last)) if *last >= start => *last = end.max(std::mem::take(last)),
                _ => joined.push((start, end)),
            }
        }
        Ok(joined)
    }

    /// Compacts the records of a stretch of keys, its end included.
    fn compact(&self, family: Family, start: &[u8], end: &[u8]) {
        let mut options = CompactOptions::default();
        // Two at a time would need twice the room.
        options.set_exclusive_manual_compaction(true);
        let db = &self.inner.db;
        db.raw().compact_range_cf_opt(db.family(family), Some(start), Some(end), &options);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Cursor as _, Order, Read as _, WriteBatch as _};
    use crate::rocks::RocksOptions;
    use crate::testing::small_rocks;

    /// Fills both families, deletes all of it by a range that stays in a memtable, and lets nothing be written any more.
    #[test]
    fn what_was_deleted_is_given_back_without_another_write() {
        let dir = tempfile::tempdir().unwrap();
        let engine = RocksEngine::open(&dir.path().join("db"), &small_rocks(), None).unwrap();
        for i in 0..400u32 {
            let mut batch = engine.batch();
            // Bytes that no compression makes smaller.
            let value: Vec<u8> = (0..20_000u32).map(|j| (i ^ j).wrapping_mul(0x9e37_79b1).to_le_bytes()[3]).collect();
            for family in [Family::Log, Family::Data] {
                batch.put(family, &i.to_be_bytes(), &value);
            }
            engine.write(batch, false).unwrap();
        }
        let mut batch = engine.batch();
        for family in [Family::Log, Family::Data] {
            batch.delete_range(family, &10u32.to_be_bytes(), &400u32.to_be_bytes());
        }
        engine.write(batch, true).unwrap();
        let before = engine.statistics();
        assert!(before.sst_bytes > 10 << 20, "{before:?}");
        // A compaction that RocksDB began by itself may have to end first; so it may take more than one go, but nothing is written.
        let given_back = (0..50).any(|_| {
            let given = engine.give_back().unwrap();
            assert_eq!(given.left_bytes, 0, "{given:?}");
            given.ranges == 0 && engine.statistics().sst_bytes < 1 << 20
        });
        assert!(given_back, "{:?}", engine.statistics());
        let mut cursor = engine.cursor(Family::Data, &[], None, Order::Forward);
        let mut left = 0;
        while cursor.next().unwrap().is_some() {
            left += 1;
        }
        assert_eq!(left, 10);
    }

    /// A database whose logs would need more room than there is comes to life without writing files, and with room is as ever.
    #[test]
    fn a_lean_start_writes_no_files_until_there_is_room() {
        let dir = tempfile::tempdir().unwrap();
        let (path, options) = (dir.path().join("db"), small_rocks());
        let roomy = RocksOptions { data_memtable_bytes: 64 << 20, wal_bytes_max: 1 << 30, ..options.clone() };
        let engine = RocksEngine::open(&path, &roomy, None).unwrap();
        for i in 0..50u32 {
            let mut batch = engine.batch();
            batch.put(Family::Data, &i.to_be_bytes(), &[7; 100_000]);
            engine.write(batch, true).unwrap();
        }
        drop(engine);
        let lean = RocksOptions { lean_bytes: room::wal_bytes(&path), ..options.clone() };
        for round in 0..3u32 {
            let engine = RocksEngine::open(&path, &lean, None).unwrap();
            assert!(engine.is_lean());
            assert_eq!(engine.statistics().sst_bytes, 0, "round {round} wrote files");
            let mut batch = engine.batch();
            batch.put(Family::Data, &(1000 + round).to_be_bytes(), b"small");
            engine.write(batch, true).unwrap();
            if round == 2 {
                assert_eq!(engine.give_back().unwrap().left_bytes, 0);
                assert!(engine.statistics().sst_bytes > 0);
            }
        }
        let engine = RocksEngine::open(&path, &options, None).unwrap();
        for key in [0, 49, 1000, 1001, 1002u32] {
            assert!(engine.get(Family::Data, &key.to_be_bytes()).unwrap().is_some(), "key {key} is gone");
        }
    }
}
