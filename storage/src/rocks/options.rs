//! How RocksDB is set up, and why.
//!
//! - **Recovery** tolerates a corrupt *tail* of the write-ahead log and nothing else. RocksDB's
//!   default silently drops everything behind a corruption in the middle, synced or not; the
//!   strictest mode refuses to open after an ordinary kill. Log files are not recycled, because a
//!   recycled file's old contents look like a corrupt tail.
//! - **Log files** are expected to be there: each names the one before it, and the list of files
//!   those that were closed. Without that, RocksDB takes a log with a hole for one without.
//! - **`log`** is written once, in order, and deleted in order soon after: large memtables, so that
//!   most entries are truncated before they reach a file; no bloom filter, no compression in the
//!   upper levels.
//! - **`data`** is read by key: a bloom filter, a block cache, compression below the upper levels.
//! - **`state`** is tiny and overwritten all the time. It would pin the write-ahead log for ever;
//!   `wal_bytes_max` makes RocksDB flush whichever family holds back the oldest file.
//! - **Removed records** are passed over by every walk until a compaction meets them, which for a
//!   queue that is filled and emptied at one place may be never. Files that are full of them, and
//!   memtables in which a walk met many, are not left to chance.
//! - Writes come from a few threads that batch by themselves, so neither pipelined nor unordered
//!   writes gain anything.
//! - **A small disk** is not filled by what RocksDB keeps beside the data ([`RocksOptions::fit`]):
//!   logs that were written ahead, memtables that still become files, and compactions, which write
//!   anew before they remove.

use rocksdb::{BlockBasedOptions, Cache, DBCompressionType, DBRecoveryMode, LogLevel, Options};

/// What can be chosen about RocksDB. The rest is decided in this file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RocksOptions {
    /// Memory for blocks read from files, over all families.
    pub block_cache_bytes: usize,
    /// Size at which a memtable of the `log` family is turned into a file.
    pub log_memtable_bytes: usize,
    /// Size at which a memtable of the `data` family is turned into a file.
    pub data_memtable_bytes: usize,
    /// Size at which a memtable of the `state` family is turned into a file.
    pub state_memtable_bytes: usize,
    /// How many memtables a family may have, full ones that wait to be flushed included. Writes
    /// stop beyond.
    pub memtables_max: i32,
    /// Size of the write-ahead log beyond which the family that holds it back is flushed. Also what
    /// a restart may have to replay.
    pub wal_bytes_max: u64,
    /// How many files RocksDB keeps open.
    pub open_files_max: i32,
    /// Threads for flushes and compactions.
    pub background_jobs: i32,
    /// After how many bytes a file that is being written is handed to the disk, so that no fsync
    /// meets a mountain.
    pub bytes_per_sync: u64,
    /// Size of a file that a compaction writes.
    pub file_bytes: u64,
    /// Bytes of the first level that compaction keeps in order; each further one is ten times as
    /// large.
    pub level_bytes: u64,
    /// About how much one compaction takes in, and so writes anew before what it took in is
    /// removed.
    pub compaction_bytes_max: u64,
    /// Files that came from memtables and wait for a compaction; writes are held beyond, and slowed
    /// down before.
    pub files_waiting_max: i32,
    /// Bytes of write-ahead logs that are replayed without becoming files, since the disk has no
    /// room for those: they stay in memory and in the logs, and no space is taken beforehand. 0
    /// where there is room.
    pub lean_bytes: u64,
}

/// A file in which half of so many records in a row, or of all, are removals is compacted soon,
/// since every walk passes over them.
const REMOVED_WINDOW: usize = 4096;
/// A memtable in which one step of a walk passed over so many removed records becomes a file, which
/// can then be compacted.
const REMOVED_PASSED_MAX: u32 = 20_000;
/// The part of a disk that each of these may take at most.
const MEMTABLE_PART: u64 = 256;
const WAL_PART: u64 = 32;
const COMPACTION_PART: u64 = 32;

impl Default for RocksOptions {
    fn default() -> Self {
        Self {
            block_cache_bytes: 256 << 20,
            log_memtable_bytes: 64 << 20,
            data_memtable_bytes: 64 << 20,
            state_memtable_bytes: 8 << 20,
            memtables_max: 4,
            wal_bytes_max: 256 << 20,
            open_files_max: 1024,
            background_jobs: 2,
            bytes_per_sync: 1 << 20,
            file_bytes: 64 << 20,
            level_bytes: 256 << 20,
            compaction_bytes_max: 1600 << 20,
            files_waiting_max: 36,
            lean_bytes: 0,
        }
    }
}

impl RocksOptions {
    /// The same, made to fit a disk of this size: from 50 GiB on the defaults stay. Below, what is
    /// kept beside the data must leave room for them, and for the nodes that may share the disk.
    pub fn fit(mut self, capacity_bytes: u64) -> Self {
        let part = |divisor: u64, least: u64| (capacity_bytes / divisor).max(least);
        let memtable = part(MEMTABLE_PART, 2 << 20);
        let least = |bytes: usize| bytes.min(usize::try_from(memtable).unwrap_or(usize::MAX));
        self.log_memtable_bytes = least(self.log_memtable_bytes);
        self.data_memtable_bytes = least(self.data_memtable_bytes);
        self.state_memtable_bytes = least(self.state_memtable_bytes);
        self.wal_bytes_max = self.wal_bytes_max.min(part(WAL_PART, 8 << 20));
        self.file_bytes = self.file_bytes.min(memtable);
        // All of the files that came from memtables are compacted at once: on a small disk there
        // may not be many.
        self.files_waiting_max =
            if capacity_bytes / MEMTABLE_PART < 64 << 20 { 12 } else { self.files_waiting_max };
        self.level_bytes = self.level_bytes.min(part(WAL_PART, 8 << 20));
        self.compaction_bytes_max = self.compaction_bytes_max.min(part(COMPACTION_PART, 16 << 20));
        self
    }

    /// The size of a memtable: large enough for all that is replayed where nothing may become a
    /// file.
    fn memtable_bytes(&self, usual: usize) -> usize {
        usual.max(usize::try_from(self.lean_bytes.saturating_mul(2)).unwrap_or(usize::MAX))
    }

    /// What concerns the database as a whole.
    ///
    /// `create` makes it, with its families. One that is there already is never made: where RocksDB
    /// finds no list of its files, it would begin anew in the midst of the old ones, and remove
    /// them.
    pub(super) fn database(&self, create: bool) -> Result<Options, rocksdb::Error> {
        // No binding has functions for these.
        let mut named = String::from("track_and_verify_wals=true");
        if self.lean_bytes > 0 {
            named += ";avoid_flush_during_recovery=true;allow_fallocate=false";
        }
        let mut options = Options::default().get_options_from_string(named)?;
        options.create_if_missing(create);
        options.create_missing_column_families(create);
        options.set_track_and_verify_wals_in_manifest(true);
        options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
        options.set_recycle_log_file_num(0);
        // Neither must the sum of the logs ask for files for which there is no room.
        options.set_max_total_wal_size(self.wal_bytes_max.saturating_add(self.lean_bytes));
        options.set_paranoid_checks(true);
        options.set_max_open_files(self.open_files_max);
        options.set_max_background_jobs(self.background_jobs);
        options.set_bytes_per_sync(self.bytes_per_sync);
        // The write-ahead log is synced by our own writes; pushing it out in between would only add
        // system calls.
        options.set_wal_bytes_per_sync(0);
        options.set_enable_pipelined_write(false);
        options.set_unordered_write(false);
        // Whoever drops the last view of a file or a memtable may be answering a client: the
        // removal is a background job's.
        options.set_avoid_unnecessary_blocking_io(true);
        // A list of files that has grown large is begun anew; it need not take 4 MiB beforehand.
        options.set_manifest_preallocation_size(256 << 10);
        options.set_stats_dump_period_sec(0);
        options.set_stats_persist_period_sec(0);
        options.set_log_level(LogLevel::Warn);
        options.set_max_log_file_size(4 << 20);
        options.set_keep_log_file_num(4);
        Ok(options)
    }

    /// The `log` family.
    pub(super) fn log(&self, cache: &Cache) -> Options {
        let mut options = self.family(cache, None);
        options.set_write_buffer_size(self.memtable_bytes(self.log_memtable_bytes));
        options
    }

    /// The `state` family.
    pub(super) fn state(&self, cache: &Cache) -> Options {
        let mut options = self.family(cache, Some(10.0));
        options.set_write_buffer_size(self.memtable_bytes(self.state_memtable_bytes));
        options
    }

    /// The `data` family, and the files of snapshots.
    pub(super) fn data(&self, cache: &Cache) -> Options {
        // No binding has a function for it; a RocksDB that does not know it keeps removed records
        // in memory a little longer.
        let named = Options::default().get_options_from_string(format!(
            "memtable_op_scan_flush_trigger={REMOVED_PASSED_MAX}"
        ));
        let mut options = self.family_from(named.unwrap_or_default(), cache, Some(10.0));
        options.set_write_buffer_size(self.memtable_bytes(self.data_memtable_bytes));
        options.add_compact_on_deletion_collector_factory(REMOVED_WINDOW, REMOVED_WINDOW / 2, 0.5);
        options
    }

    fn family(&self, cache: &Cache, bloom_bits_per_key: Option<f64>) -> Options {
        self.family_from(Options::default(), cache, bloom_bits_per_key)
    }

    fn family_from(
        &self,
        mut options: Options,
        cache: &Cache,
        bloom_bits_per_key: Option<f64>,
    ) -> Options {
        let mut table = BlockBasedOptions::default();
        table.set_block_cache(cache);
        // Within the cache's bound, instead of growing with the number of files.
        table.set_cache_index_and_filter_blocks(true);
        table.set_pin_l0_filter_and_index_blocks_in_cache(true);
        if let Some(bits) = bloom_bits_per_key {
            table.set_bloom_filter(bits, false);
        }
        options.set_block_based_table_factory(&table);
        options.set_max_write_buffer_number(self.memtables_max);
        options.set_target_file_size_base(self.file_bytes);
        options.set_max_bytes_for_level_base(self.level_bytes);
        options.set_level_zero_slowdown_writes_trigger(self.files_waiting_max * 5 / 9);
        options.set_level_zero_stop_writes_trigger(self.files_waiting_max);
        options.set_max_compaction_bytes(self.compaction_bytes_max);
        // On a disk without room a compaction might find none for what it writes.
        options.set_disable_auto_compactions(self.lean_bytes > 0);
        let (none, lz4) = (DBCompressionType::None, DBCompressionType::Lz4);
        options.set_compression_per_level(&[none, none, lz4, lz4, lz4, lz4, lz4]);
        options
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_beside_the_data_fits_the_disk() {
        let usual = RocksOptions::default();
        assert_eq!(usual.clone().fit(50 << 30), usual);
        for mib in [200u64, 400, 600, 900, 2_000, 10_000] {
            let fitted = usual.clone().fit(mib << 20);
            let memtables = (fitted.log_memtable_bytes
                + fitted.data_memtable_bytes
                + fitted.state_memtable_bytes) as u64;
            let beside = memtables + fitted.wal_bytes_max + fitted.compaction_bytes_max;
            assert!(beside <= (mib << 20) / 6, "{beside} bytes on a disk of {mib} MiB");
            assert!(fitted.wal_bytes_max >= fitted.data_memtable_bytes as u64, "{fitted:?}");
        }
    }
}
