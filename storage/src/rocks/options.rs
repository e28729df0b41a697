//! How RocksDB is set up, and why.
//!
//! - **Recovery** tolerates a corrupt *tail* of the write-ahead log and nothing else. RocksDB's default silently drops everything
//!   behind a corruption in the middle, synced or not; the strictest mode refuses to open after an ordinary kill. Log files are
//!   not recycled, because a recycled file's old contents look like a corrupt tail.
//! - **Log files** are expected to be there: each names the one before it, and the list of files those that were closed. Without
//!   that, RocksDB takes a log with a hole for one without.
//! - **`log`** is written once, in order, and deleted in order soon after: large memtables, so that most entries are truncated
//!   before they reach a file; no bloom filter, no compression in the upper levels.
//! - **`data`** is read by key: a bloom filter, a block cache, compression below the upper levels.
//! - **`state`** is tiny and overwritten all the time. It would pin the write-ahead log for ever; `wal_bytes_max` makes RocksDB
//!   flush whichever family holds back the oldest file.
//! - **Removed records** are passed over by every walk until a compaction meets them, which for a queue that is filled and emptied at one
//!   place may be never. Files that are full of them, and memtables in which a walk met many, are not left to chance.
//! - Writes come from one or two threads that batch by themselves, so neither pipelined nor unordered writes gain anything.

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
    /// How many memtables a family may have, full ones that wait to be flushed included. Writes stop beyond.
    pub memtables_max: i32,
    /// Size of the write-ahead log beyond which the family that holds it back is flushed. Also what a restart may have to replay.
    pub wal_bytes_max: u64,
    /// How many files RocksDB keeps open.
    pub open_files_max: i32,
    /// Threads for flushes and compactions.
    pub background_jobs: i32,
    /// After how many bytes a file that is being written is handed to the disk, so that no fsync meets a mountain.
    pub bytes_per_sync: u64,
}

/// A file in which half of so many records in a row, or of all, are removals is compacted soon, since every walk passes over them.
const REMOVED_WINDOW: usize = 4096;
/// A memtable in which one step of a walk passed over so many removed records becomes a file, which can then be compacted.
const REMOVED_PASSED_MAX: u32 = 20_000;

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
        }
    }
}

impl RocksOptions {
    /// What concerns the database as a whole.
    ///
    /// `create` makes it, with its families. One that is there already is never made: where RocksDB finds no list of its files, it would
    /// begin anew in the midst of the old ones, and remove them.
    pub(super) fn database(&self, create: bool) -> Result<Options, rocksdb::Error> {
        // No binding has a function for it.
        let mut options = Options::default().get_options_from_string("track_and_verify_wals=true")?;
        options.create_if_missing(create);
        options.create_missing_column_families(create);
        options.set_track_and_verify_wals_in_manifest(true);
        options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
        options.set_recycle_log_file_num(0);
        options.set_max_total_wal_size(self.wal_bytes_max);
        options.set_paranoid_checks(true);
        options.set_max_open_files(self.open_files_max);
        options.set_max_background_jobs(self.background_jobs);
        options.set_bytes_per_sync(self.bytes_per_sync);
        // The write-ahead log is synced by our own writes; pushing it out in between would only add system calls.
        options.set_wal_bytes_per_sync(0);
        options.set_enable_pipelined_write(false);
        options.set_unordered_write(false);
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
        options.set_write_buffer_size(self.log_memtable_bytes);
        options
    }

    /// The `state` family.
    pub(super) fn state(&self, cache: &Cache) -> Options {
        let mut options = self.family(cache, Some(10.0));
        options.set_write_buffer_size(self.state_memtable_bytes);
        options
    }

    /// The `data` family, and the files of snapshots.
    pub(super) fn data(&self, cache: &Cache) -> Options {
        // No binding has a function for it; a RocksDB that does not know it keeps removed records in memory a little longer.
        let named = Options::default().get_options_from_string(format!("memtable_op_scan_flush_trigger={REMOVED_PASSED_MAX}"));
        let mut options = self.family_from(named.unwrap_or_default(), cache, Some(10.0));
        options.set_write_buffer_size(self.data_memtable_bytes);
        options.add_compact_on_deletion_collector_factory(REMOVED_WINDOW, REMOVED_WINDOW / 2, 0.5);
        options
    }

    fn family(&self, cache: &Cache, bloom_bits_per_key: Option<f64>) -> Options {
        self.family_from(Options::default(), cache, bloom_bits_per_key)
    }

    fn family_from(&self, mut options: Options, cache: &Cache, bloom_bits_per_key: Option<f64>) -> Options {
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
        let (none, lz4) = (DBCompressionType::None, DBCompressionType::Lz4);
        options.set_compression_per_level(&[none, none, lz4, lz4, lz4, lz4, lz4]);
        options
    }
}
