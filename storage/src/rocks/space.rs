//! Space on the disk that RocksDB holds and nobody needs any more: how much more it may come to,
//! and how it is given back.
//!
//! What was deleted takes space until the tombstones have met it in a compaction. RocksDB starts
//! those by itself once enough was *written*; on a full disk nothing is, so a tombstone may lie in
//! a memtable for ever, above files that it has emptied. The same holds for write-ahead logs: each
//! is held by the memtables that are not files yet. So [`RocksEngine::give_back`] turns memtables
//! into files, and compacts what lies below every tombstone that the files say they hold: in
//! pieces, those first that take the least room, and none for which there is none. It needs no
//! memory of what was deleted, and finds it after a restart, too.

use super::{RocksEngine, failed};
use crate::engine::{Engine as _, Family};
use crate::error::StorageError;
use crate::room;
use rocksdb::{CompactOptions, LiveFile, ReadOptions, ReadTier, properties};
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

/// What stays free when a memtable becomes a file: the lists of files, and what is written
/// meanwhile.
const MARGIN_BYTES: u64 = 1 << 20;

/// From so many files that came from memtables on RocksDB compacts them.
const FILES_DUE: u64 = 4;
/// What a record takes in a file beside its key and value.
const RECORD_BYTES: u64 = 16;
/// What a removal takes in a file at most.
const REMOVAL_BYTES: u64 = 5 << 10;

/// A stretch of keys, with its ends, below a file's tombstones.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Piece {
    /// Bytes of the files that a compaction takes in: as many may be written before they go.
    bytes: u64,
    start: Vec<u8>,
    end: Vec<u8>,
    /// The first and the last key of those files.
    reach: (Vec<u8>, Vec<u8>),
}

/// What is still to be written on account of what was written already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owed {
    /// Bytes of memtables, which become files.
    pub memtable_bytes: u64,
    /// Bytes that the largest compactions which are due write before they remove what they took in.
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
    /// Ranges for which there was none.
    pub left_ranges: usize,
}

impl RocksEngine {
    /// What may still be written to the disk on account of what was written already.
    pub fn owed(&self) -> Owed {
        let options = &self.inner.options;
        let due = |family| self.property(family, properties::ESTIMATE_PENDING_COMPACTION_BYTES);
        let later = (due(Family::Log) + due(Family::Data)).min(2 * options.compaction_bytes_max);
        // RocksDB takes all files that came from memtables at once, and what of the next level lies
        // below them.
        let first = |family| {
            if self.property(family, &properties::num_files_at_level(0)) < FILES_DUE {
                return 0;
            }
            self.files_at(family, 0).map_or(0, |files| {
                files.iter().map(|file| file.size as u64).sum::<u64>() + options.level_bytes
            })
        };
        let first = first(Family::Log).max(first(Family::Data));
        Owed {
            memtable_bytes: self.sum(properties::CUR_SIZE_ALL_MEM_TABLES),
            compaction_bytes: first.max(later),
        }
    }

    /// So many bytes are to stay free: exports end where less is left.
    pub fn keep_free(&self, bytes: u64) {
        self.inner.keep_free.store(bytes, Ordering::Relaxed);
    }

    /// Whether there is room for so many bytes of what can be done without.
    pub(super) fn check_room_for(&self, bytes: u64) -> Result<(), StorageError> {
        let (keep, free) =
            (self.inner.keep_free.load(Ordering::Relaxed), self.free_bytes()?.unwrap_or(u64::MAX));
        if free < keep.saturating_add(bytes) {
            let why = format!(
                "it has some {bytes} bytes more; {free} bytes are free, {keep} must stay so"
            );
            return Err(StorageError::engine("write snapshot file", why));
        }
        Ok(())
    }

    /// Whether it was opened on a disk without room, and has not come to terms with it.
    pub fn is_lean(&self) -> bool {
        self.inner.lean.load(Ordering::Relaxed)
    }

    /// Gives back what nobody needs any more, as far as there is room for that, and as long as it
    /// is wanted. May take long; nothing else waits for it.
    pub fn give_back(&self, is_wanted: impl Fn() -> bool) -> Result<GivenBack, StorageError> {
        self.give_back_within(&|| self.disk_free(), &is_wanted)
    }

    fn give_back_within(
        &self,
        free: &impl Fn() -> Result<u64, StorageError>,
        is_wanted: &impl Fn() -> bool,
    ) -> Result<GivenBack, StorageError> {
        let mut given = GivenBack::default();
        // A single tombstone may stand above all that can be given back; so its size says nothing
        // about what a memtable is worth.
        let mut memtables: Vec<_> = [Family::State, Family::Log, Family::Data]
            .into_iter()
            .filter(|family| self.memtable_entries(*family) > 0)
            .map(|family| (self.property(family, properties::CUR_SIZE_ALL_MEM_TABLES), family))
            .collect();
        if memtables.iter().all(|(_, family)| *family == Family::State) {
            // It changes all the time, and is small.
            memtables.clear();
        }
        // The smallest first: each makes the next one likelier to find room.
        memtables.sort();
        let mut left = Vec::new();
        for (bytes, family) in memtables {
            // A file for which there is no room would end the process.
            let room = free()?.saturating_sub(MARGIN_BYTES);
            if room < bytes && room < self.flush_bytes(family, room)? {
                given.left_bytes += bytes;
                left.push(family);
                continue;
            }
            self.flush_family(family)?;
            given.flushed_bytes += bytes;
        }
        if self.is_lean() && given.left_bytes == 0 {
            self.grow_lean_no_more()?;
        }
        for family in [Family::Log, Family::Data] {
            for piece in pieces(&self.files(family)?) {
                if !is_wanted() {
                    return Ok(given);
                }
                let room = free()?.saturating_sub(MARGIN_BYTES);
                // A compaction would begin with the memtable, if that holds a key of the piece, or
                // deletes one: that can't be seen.
                if left.contains(&family) {
                    given.left_ranges += 1;
                    continue;
                }
                if room < piece.bytes && !self.fits(family, &piece, room)? {
                    given.left_ranges += 1;
                    continue;
                }
                // Two at a time would need twice the room.
                self.compact(family, &piece.start, &piece.end, true);
                given.ranges += 1;
            }
        }
        Ok(given)
    }

    /// How many bytes the file has, at most, that a memtable becomes: of what was removed again
    /// nothing is written but the removal. More than `bytes_max` is not counted.
    fn flush_bytes(&self, family: Family, bytes_max: u64) -> Result<u64, StorageError> {
        if self.property(family, properties::NUM_SNAPSHOTS) > 0 {
            // What a view still shows is written, too.
            return Ok(u64::MAX);
        }
        let on_average = self.property(family, properties::CUR_SIZE_ALL_MEM_TABLES)
            / self.memtable_entries(family).max(1);
        let removals = self.property(family, properties::NUM_DELETES_ACTIVE_MEM_TABLE)
            + self.property(family, properties::NUM_DELETES_IMM_MEM_TABLES);
        let mut read = ReadOptions::default();
        read.set_read_tier(ReadTier::Memtable);
        Ok(self
            .living_bytes(family, read, bytes_max)?
            .saturating_add(removals * on_average.min(REMOVAL_BYTES)))
    }

    /// Records and removals that are not in files yet.
    fn memtable_entries(&self, family: Family) -> u64 {
        self.property(family, properties::NUM_ENTRIES_ACTIVE_MEM_TABLE)
            + self.property(family, properties::NUM_ENTRIES_IMM_MEM_TABLES)
    }

    /// Whether there is room for what is written when a piece is compacted: of what was removed
    /// nothing is, unless a view still shows it.
    fn fits(&self, family: Family, piece: &Piece, room: u64) -> Result<bool, StorageError> {
        if self.property(family, properties::NUM_SNAPSHOTS) > 0 {
            return Ok(false);
        }
        let mut read = ReadOptions::default();
        read.set_iterate_lower_bound(piece.reach.0.clone());
        read.set_iterate_upper_bound([&piece.reach.1[..], &[0]].concat());
        read.fill_cache(false);
        Ok(self.living_bytes(family, read, room)? <= room)
    }

    /// Bytes of records that are there, counted until there are more than `bytes_max`.
    fn living_bytes(
        &self,
        family: Family,
        read: ReadOptions,
        bytes_max: u64,
    ) -> Result<u64, StorageError> {
        let db = &self.inner.db;
        let mut records = db.raw().raw_iterator_cf_opt(db.family(family), read);
        records.seek_to_first();
        let mut bytes = 0;
        while let Some((key, value)) = records.item().filter(|_| bytes <= bytes_max) {
            bytes += (key.len() + value.len()) as u64 + RECORD_BYTES;
            records.next();
        }
        records.status().map_err(failed("read what is there"))?;
        Ok(bytes)
    }

    /// Compacts what lies in the first level of the data family, if that is more than a few files.
    pub(super) fn settle_first_level(&self, few: usize) -> Result<(), StorageError> {
        let files = self.files_at(Family::Data, 0)?;
        let start = files.iter().filter_map(|file| file.start_key.as_ref()).min();
        let end = files.iter().filter_map(|file| file.end_key.as_ref()).max();
        if let (true, Some(start), Some(end)) = (files.len() > few, start, end) {
            self.compact(Family::Data, start, end, false);
        }
        Ok(())
    }

    /// The files of a family.
    fn files(&self, family: Family) -> Result<Vec<LiveFile>, StorageError> {
        let name = match family {
            Family::Log => "log",
            Family::State => "state",
            Family::Data => "data",
        };
        let mut files = self.inner.db.raw().live_files().map_err(failed("list files"))?;
        files.retain(|file| file.column_family_name == name);
        Ok(files)
    }

    /// Those of them in a level.
    fn files_at(&self, family: Family, level: i32) -> Result<Vec<LiveFile>, StorageError> {
        let mut files = self.files(family)?;
        files.retain(|file| file.level == level);
        Ok(files)
    }

    fn disk_free(&self) -> Result<u64, StorageError> {
        let disk = room::disk(&self.inner.dir)
            .map_err(|error| StorageError::engine("look at the disk", error))?;
        Ok(disk.free_bytes)
    }

    /// How many bytes must be free, at most, for memtables of these families to become files.
    pub(super) fn flush_room(&self, families: &[Family]) -> u64 {
        families
            .iter()
            .map(|family| self.property(*family, properties::CUR_SIZE_ALL_MEM_TABLES))
            .sum::<u64>()
            + MARGIN_BYTES
    }

    /// Whether there is room for the file that the memtable of the data family becomes; or how much
    /// is needed.
    pub(super) fn check_flush(&self) -> Result<(), StorageError> {
        let (free_bytes, most) = (self.disk_free()?, self.flush_room(&[Family::Data]));
        if free_bytes >= most {
            return Ok(());
        }
        let needed_bytes =
            self.flush_bytes(Family::Data, most)?.saturating_add(MARGIN_BYTES).min(most);
        if free_bytes >= needed_bytes {
            return Ok(());
        }
        let dir = self.inner.dir.parent().unwrap_or(&self.inner.dir).to_owned();
        Err(StorageError::NoRoom { dir, free_bytes, needed_bytes })
    }

    /// Turns the memtable of a family into a file.
    pub(super) fn flush_family(&self, family: Family) -> Result<(), StorageError> {
        let db = &self.inner.db;
        db.raw().flush_cf(db.family(family)).map_err(failed("flush memtable"))
    }

    /// Memtables have their usual size again, and RocksDB compacts by itself.
    fn grow_lean_no_more(&self) -> Result<(), StorageError> {
        let (db, options) = (&self.inner.db, &self.inner.options);
        for (family, bytes) in [
            (Family::Log, options.log_memtable_bytes),
            (Family::State, options.state_memtable_bytes),
            (Family::Data, options.data_memtable_bytes),
        ] {
            let changed = [
                ("write_buffer_size", bytes.to_string()),
                ("disable_auto_compactions", "false".into()),
            ];
            let changed = changed.each_ref().map(|(name, value)| (*name, value.as_str()));
            db.raw()
                .set_options_cf(db.family(family), &changed)
                .map_err(failed("set the size of memtables"))?;
        }
        self.inner.lean.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Compacts the records of a stretch of keys, its end included; where `exclusive`, nothing else
    /// is compacted meanwhile.
    pub(super) fn compact(&self, family: Family, start: &[u8], end: &[u8], exclusive: bool) {
        let mut options = CompactOptions::default();
        options.set_exclusive_manual_compaction(exclusive);
        let db = &self.inner.db;
        db.raw().compact_range_cf_opt(db.family(family), Some(start), Some(end), &options);
    }
}

/// The stretches of keys that those of these files which hold tombstones span, the smallest first.
fn pieces(files: &[LiveFile]) -> Vec<Piece> {
    let span = |file: &LiveFile| Some((file.start_key.clone()?, file.end_key.clone()?));
    let last = files.iter().map(|file| file.level).max().unwrap_or(0);
    // Below the last level nothing lies. After a start RocksDB has looked into few files, and shows
    // the others as empty.
    let may_hold = |file: &&LiveFile| {
        (file.num_deletions > 0 || file.num_entries == 0) && (file.level < last || last == 0)
    };
    let spans: BTreeSet<_> = files.iter().filter(may_hold).filter_map(span).collect();
    let mut pieces: Vec<_> = spans
        .into_iter()
        .map(|(start, end)| {
            // From level to level whole files are taken in, and of the next one all that they
            // touch.
            let (mut bytes, mut reach) = (0, (start.clone(), end.clone()));
            for level in 0..=last {
                let spans = files.iter().filter(|file| file.level == level);
                let spans = spans.filter_map(|file| {
                    Some((file, file.start_key.as_ref()?, file.end_key.as_ref()?))
                });
                let mut wider = reach.clone();
                for (file, first, last) in
                    spans.filter(|(_, first, last)| **first <= reach.1 && **last >= reach.0)
                {
                    bytes += file.size as u64;
                    wider = (wider.0.min(first.clone()), wider.1.max(last.clone()));
                }
                reach = wider;
            }
            Piece { bytes, start, end, reach }
        })
        .collect();
    pieces.sort();
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Cursor as _, Order, Read as _, WriteBatch as _};
    use crate::rocks::RocksOptions;
    use crate::testing::small_rocks;
    use crate::work::SnapshotFile;

    #[test]
    fn what_lies_below_tombstones_is_taken_in_pieces_the_smallest_first() {
        let file = |level, start: &str, end: &str, size, (num_entries, num_deletions)| LiveFile {
            column_family_name: "data".into(),
            name: String::new(),
            size,
            level,
            start_key: Some(start.into()),
            end_key: Some(end.into()),
            num_entries,
            num_deletions,
        };
        let files = [
            file(1, "a", "m", 500, (9, 2)),
            file(1, "p", "q", 9, (9, 0)),
            file(2, "d", "e", 60, (9, 1)),
            file(2, "x", "z", 7, (0, 0)),
            file(3, "a", "c", 40, (9, 0)),
            file(3, "r", "s", 40, (9, 3)),
        ];
        let found: Vec<_> =
            pieces(&files).into_iter().map(|piece| (piece.bytes, piece.start)).collect();
        assert_eq!(found, [(7, b"x".to_vec()), (600, b"a".to_vec()), (600, b"d".to_vec())]);
        assert_eq!(pieces(&[file(0, "a", "b", 5, (1, 1))]).len(), 1);
    }

    /// Fills both families, deletes all of it by a range that stays in a memtable, and lets nothing
    /// be written any more.
    #[test]
    fn what_was_deleted_is_given_back_without_another_write() {
        let dir = tempfile::tempdir().unwrap();
        let engine = RocksEngine::open(&dir.path().join("db"), &small_rocks(), None).unwrap();
        for i in 0..400u32 {
            let mut batch = engine.batch();
            // Bytes that no compression makes smaller.
            let value: Vec<u8> = (0..20_000u32)
                .map(|j| (i ^ j).wrapping_mul(0x9e37_79b1).to_le_bytes()[3])
                .collect();
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
        // A compaction that RocksDB began by itself may have to end first; so it may take more than
        // one go, but nothing is written.
        let given_back = (0..50).any(|_| {
            let given = engine.give_back(|| true).unwrap();
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

    /// `files` files of 200 KB in the data family, and a deletion of all of them that stays in a
    /// memtable.
    fn deleted(engine: &RocksEngine, files: u32) {
        for i in 0..files * 10 {
            let mut batch = engine.batch();
            let value: Vec<u8> = (0..20_000u32)
                .map(|j| (i ^ j).wrapping_mul(0x9e37_79b1).to_le_bytes()[3])
                .collect();
            batch.put(Family::Data, &i.to_be_bytes(), &value);
            engine.write(batch, false).unwrap();
            if i % 10 == 9 {
                engine.flush_family(Family::Data).unwrap();
            }
        }
        let mut batch = engine.batch();
        batch.delete_range(Family::Data, &0u32.to_be_bytes(), &u32::MAX.to_be_bytes());
        engine.write(batch, true).unwrap();
    }

    /// Where there is room for a little, what was deleted is given back all the same, since nothing
    /// of it is written; what a view still shows would be, and waits until the view is gone. And
    /// nothing is begun that is not wanted any more.
    #[test]
    fn no_more_is_begun_than_there_is_room_for() {
        let dir = tempfile::tempdir().unwrap();
        let engine = RocksEngine::open(&dir.path().join("db"), &small_rocks(), None).unwrap();
        deleted(&engine, 20);
        let little = || Ok(MARGIN_BYTES + (64 << 10));
        let view = engine.view();
        let given = engine.give_back_within(&little, &|| true).unwrap();
        assert!(given.ranges == 0 && given.left_ranges > 0, "{given:?}");
        assert!(engine.statistics().sst_bytes > 3 << 20, "{:?}", engine.statistics());
        drop(view);
        assert_eq!(engine.give_back_within(&little, &|| false).unwrap().ranges, 0);
        let given_back = (0..50).any(|_| {
            engine.give_back_within(&little, &|| true).unwrap();
            engine.statistics().sst_bytes < 1 << 20
        });
        assert!(given_back, "{:?}", engine.statistics());
    }

    /// A memtable that holds much, all of which was deleted again, becomes a file where there is
    /// room for what is left of it.
    #[test]
    fn a_memtable_takes_the_room_of_what_is_left_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let roomy = RocksOptions { data_memtable_bytes: 64 << 20, ..small_rocks() };
        let engine = RocksEngine::open(&dir.path().join("db"), &roomy, None).unwrap();
        let mut batch = engine.batch();
        (0..300u32).for_each(|i| batch.put(Family::Data, &i.to_be_bytes(), &[7; 20_000]));
        engine.write(batch, true).unwrap();
        let little = || Ok(MARGIN_BYTES + (64 << 10));
        let given = engine.give_back_within(&little, &|| true).unwrap();
        assert!(given.flushed_bytes == 0 && given.left_bytes > 5 << 20, "{given:?}");
        let view = engine.view();
        let mut batch = engine.batch();
        batch.delete_range(Family::Data, &0u32.to_be_bytes(), &299u32.to_be_bytes());
        engine.write(batch, true).unwrap();
        let given = engine.give_back_within(&little, &|| true).unwrap();
        assert!(given.flushed_bytes == 0, "a view still shows it, so it is written: {given:?}");
        drop(view);
        let given = engine.give_back_within(&little, &|| true).unwrap();
        assert!(given.flushed_bytes > 5 << 20 && given.left_bytes == 0, "{given:?}");
        assert!(engine.statistics().sst_bytes < 64 << 10, "{:?}", engine.statistics());
    }

    /// A compaction begins with the memtable where that holds keys of its stretch. So where that
    /// has no room, nothing below it is compacted, though there is room for what the compaction
    /// itself would write.
    #[test]
    fn nothing_is_compacted_below_a_memtable_without_room() {
        let dir = tempfile::tempdir().unwrap();
        let roomy = RocksOptions { data_memtable_bytes: 64 << 20, ..small_rocks() };
        let engine = RocksEngine::open(&dir.path().join("db"), &roomy, None).unwrap();
        deleted(&engine, 1);
        engine.flush_family(Family::Data).unwrap();
        let mut batch = engine.batch();
        (0..300u32).for_each(|i| batch.put(Family::Data, &(i << 20).to_be_bytes(), &[7; 20_000]));
        engine.write(batch, true).unwrap();
        let before = engine.statistics().sst_bytes;
        assert!(before < 1 << 20, "{before}");
        let little = || Ok(MARGIN_BYTES + (1 << 20));
        let given = engine.give_back_within(&little, &|| true).unwrap();
        assert!(given.left_bytes > 5 << 20 && given.flushed_bytes == 0, "{given:?}");
        assert!(given.ranges == 0 && given.left_ranges > 0, "{given:?}");
        assert_eq!(engine.statistics().sst_bytes, before, "something was written");
        let given = engine.give_back(|| true).unwrap();
        assert!(given.left_bytes == 0 && given.ranges > 0, "{given:?}");
    }

    /// What is asked for before files are taken in: room for the memtables, and for the largest
    /// part of them that is taken in at once.
    #[test]
    fn taking_files_in_needs_room_for_memtables_and_a_part_of_them() {
        let dir = tempfile::tempdir().unwrap();
        let large = RocksOptions {
            data_memtable_bytes: 64 << 20,
            log_memtable_bytes: 64 << 20,
            ..small_rocks()
        };
        let options = RocksOptions { files_waiting_max: 12, ..large };
        let engine = RocksEngine::open(&dir.path().join("db"), &options, None).unwrap();
        let file = |bytes| SnapshotFile { name: String::new(), bytes, checksum: 0 };
        let files = [1, 2, 3, 4, 5, 6, 7, 8, 900].map(|mib| file(mib << 20));
        let empty = engine.bytes_to_ingest(&[]);
        assert!((MARGIN_BYTES..2 * MARGIN_BYTES).contains(&empty), "{empty}");
        assert_eq!(engine.bytes_to_ingest(&files) - empty, 900 << 20);
        assert_eq!(engine.bytes_to_ingest(&files[..8]) - empty, (5 + 6 + 7 + 8) << 20);
        let mut batch = engine.batch();
        (0..300u32).for_each(|i| batch.put(Family::Data, &i.to_be_bytes(), &[7; 20_000]));
        (0..300u32).for_each(|i| batch.put(Family::Log, &i.to_be_bytes(), &[7; 10_000]));
        engine.write(batch, true).unwrap();
        let full = engine.bytes_to_ingest(&files[..1]);
        assert!(full > MARGIN_BYTES + 300 * (20_000 + 10_000), "{full}");
    }

    /// As many files as hold writes up, and a restart on a disk without room: none of them is
    /// compacted before there is room.
    #[test]
    fn a_lean_start_compacts_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let engine =
            RocksEngine::open(&path, &RocksOptions { lean_bytes: 1, ..small_rocks() }, None)
                .unwrap();
        for i in 0..8u32 {
            let mut batch = engine.batch();
            batch.put(Family::Data, &(i % 2).to_be_bytes(), &[7; 100_000]);
            engine.write(batch, true).unwrap();
            engine.flush_family(Family::Data).unwrap();
        }
        let files = |engine: &RocksEngine| engine.files_at(Family::Data, 0).unwrap().len();
        assert_eq!(files(&engine), 8);
        assert!(engine.owed().compaction_bytes > small_rocks().level_bytes, "{:?}", engine.owed());
        drop(engine);
        let engine =
            RocksEngine::open(&path, &RocksOptions { lean_bytes: 1, ..small_rocks() }, None)
                .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(300));
        assert_eq!(files(&engine), 8);
        engine.give_back(|| true).unwrap();
        let compacted = (0..200).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(50));
            files(&engine) < 4
        });
        assert!(compacted && !engine.is_lean());
    }

    /// Files that are taken in between records of neighbours, which share a file below, pile up in
    /// the first level. They are more than hold up every write, and hold up none.
    #[test]
    fn however_many_files_are_taken_in_no_write_is_held_up() {
        let dir = tempfile::tempdir().unwrap();
        let (here, there, folder) =
            (dir.path().join("here/db"), dir.path().join("there/db"), dir.path().join("files"));
        let source = RocksEngine::open(&here, &small_rocks(), None).unwrap();
        let mut batch = source.batch();
        (0..40_000u32).for_each(|i| {
            batch.put(
                Family::Data,
                &i.to_be_bytes(),
                &xxhash_rust::xxh3::xxh3_128(&i.to_be_bytes()).to_be_bytes(),
            )
        });
        source.write(batch, true).unwrap();
        let files = source.export(&source.view(), &[], &[0xff], &folder, 16 << 10).unwrap();
        assert!(files.len() > 40, "{}", files.len());
        let options = RocksOptions { files_waiting_max: 12, ..small_rocks() };
        let target = RocksEngine::open(&there, &options, None).unwrap();
        let mut batch = target.batch();
        [&[][..], &[0xff]].iter().for_each(|key| batch.put(Family::Data, key, b"a neighbour's"));
        target.write(batch, true).unwrap();
        target.vacate(&[0], &[0xfe]).unwrap();
        target.ingest(&folder, &files).unwrap();
        let statistics = target.statistics();
        assert!(!statistics.writes_stopped && !statistics.writes_slowed, "{statistics:?}");
        assert!(target.files_at(Family::Data, 0).unwrap().len() <= 6);
        let mut cursor = target.cursor(Family::Data, &[], None, Order::Forward);
        assert_eq!(std::iter::from_fn(|| cursor.next().unwrap().map(drop)).count(), 40_002);
    }

    /// A database whose logs would need more room than there is comes to life without writing
    /// files, and with room is as ever.
    #[test]
    fn a_lean_start_writes_no_files_until_there_is_room() {
        let dir = tempfile::tempdir().unwrap();
        let (path, options) = (dir.path().join("db"), small_rocks());
        let roomy = RocksOptions {
            data_memtable_bytes: 64 << 20,
            wal_bytes_max: 1 << 30,
            ..options.clone()
        };
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
                assert_eq!(engine.give_back(|| true).unwrap().left_bytes, 0);
                assert!(engine.statistics().sst_bytes > 0);
            }
        }
        let engine = RocksEngine::open(&path, &options, None).unwrap();
        for key in [0, 49, 1000, 1001, 1002u32] {
            assert!(
                engine.get(Family::Data, &key.to_be_bytes()).unwrap().is_some(),
                "key {key} is gone"
            );
        }
    }
}
