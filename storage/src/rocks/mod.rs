//! The engine on disk: RocksDB, with one column family per family and one write-ahead log for all
//! of them.
//!
//! The families' handles lie beside the database that they borrow from; the pair is held by
//! `self_cell`, so that no call looks them up by name and no `unsafe` is written here.
//!
//! How it is set up is told in [`options`], how it is read, now or as it was, in `view.rs`, how it
//! is walked over, in `cursor.rs`, how its folder comes to be, in `opening.rs`, how snapshots'
//! files are written and taken in, in `files.rs`, how space on the disk is given back, in
//! `space.rs`.

mod cursor;
mod files;
mod opening;
pub mod options;
mod space;
mod view;

pub use cursor::RocksCursor;
pub use options::RocksOptions;
pub use space::{GivenBack, Owed};
pub use view::RocksView;

use crate::engine::{Engine, Family, Statistics, WriteBatch};
use crate::error::StorageError;
use crate::started::{Manifest, Started};
use crate::work::SnapshotFile;
use rocksdb::{
    Cache, ColumnFamily, DBWithThreadMode, Options, ReadOptions, SingleThreaded, WriteOptions,
    properties,
};
use self_cell::self_cell;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};

/// The families are made when the database is opened and never change, so no lock is needed around
/// them.
type RawDb = DBWithThreadMode<SingleThreaded>;

/// The handles of the families.
struct Families<'a> {
    log: &'a ColumnFamily,
    state: &'a ColumnFamily,
    data: &'a ColumnFamily,
}

self_cell!(
    struct Db {
        owner: RawDb,
        #[covariant]
        dependent: Families,
    }
);

impl Db {
    fn raw(&self) -> &RawDb {
        self.borrow_owner()
    }

    fn family(&self, family: Family) -> &ColumnFamily {
        let families = self.borrow_dependent();
        match family {
            Family::Log => families.log,
            Family::State => families.state,
            Family::Data => families.data,
        }
    }
}

/// The engine. Clones are the same engine.
#[derive(Clone)]
pub struct RocksEngine {
    inner: Arc<Inner>,
}

struct Inner {
    db: Arc<Db>,
    /// Where RocksDB's files are.
    dir: PathBuf,
    cache: Cache,
    /// How it was opened.
    options: RocksOptions,
    /// Whether it was opened on a disk without room, and there has been none since.
    lean: AtomicBool,
    /// Bytes that are to stay free on the disk.
    keep_free: AtomicU64,
    /// How the files of snapshots are written: like those of the data family.
    data_options: Options,
    read: ReadOptions,
    synced: WriteOptions,
    unsynced: WriteOptions,
    /// What the node's directory remembers of the database, and where; `None` for an engine without
    /// such a directory.
    started: Mutex<Option<(PathBuf, Started)>>,
    /// Keeps other processes out of the directory for as long as the engine lives.
    _lock: Option<File>,
}

/// Writes for a [`RocksEngine`], in RocksDB's own format from the start.
pub struct RocksBatch {
    db: Arc<Db>,
    batch: rocksdb::WriteBatch,
}

/// Records in memory, whatever range they are in, that are walked over in some milliseconds.
const LITTLE_RECORDS_MAX: u64 = 1 << 15;
/// Bytes of files for which the same holds.
const LITTLE_BYTES_MAX: u64 = 1 << 20;

fn failed(action: &'static str) -> impl FnOnce(rocksdb::Error) -> StorageError {
    move |error| StorageError::engine(action, error)
}

impl RocksEngine {
    /// Opens the database in `dir`, which is made if it is not there. `lock` is held for as long as
    /// the engine lives. [`open`](crate::open::open()) is what a node calls: it locks and
    /// identifies the directory as well.
    pub fn open(
        dir: &Path,
        options: &RocksOptions,
        lock: Option<File>,
    ) -> Result<Self, StorageError> {
        let cache = Cache::new_lru_cache(options.block_cache_bytes);
        let db = opening::open(dir, options, &cache)?;
        let data_options = options.data(&cache);
        let (mut synced, unsynced) = (WriteOptions::default(), WriteOptions::default());
        synced.set_sync(true);
        let (db, dir, read, started) =
            (Arc::new(db), dir.to_owned(), ReadOptions::default(), Mutex::default());
        let (options, lean, keep_free) =
            (options.clone(), AtomicBool::new(options.lean_bytes > 0), AtomicU64::new(0));
        let inner = Inner {
            db,
            dir,
            cache,
            options,
            lean,
            keep_free,
            data_options,
            read,
            synced,
            unsynced,
            started,
            _lock: lock,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// RocksDB's number of the last write.
    pub(crate) fn sequence(&self) -> u64 {
        self.inner.db.raw().latest_sequence_number()
    }

    /// RocksDB's list of files.
    pub(crate) fn manifest(&self) -> Result<Manifest, StorageError> {
        Manifest::in_force(&self.inner.dir)
            .map_err(|error| StorageError::engine("look at the list of files", error))
    }

    /// From here on `dir` remembers how far this engine has come.
    pub(crate) fn remember(&self, dir: &Path, started: Started) -> Result<(), StorageError> {
        started.write(dir)?;
        *self.inner.started.lock().expect("nothing panics with it held") =
            Some((dir.to_owned(), started));
        Ok(())
    }

    /// The list of files has something in it that must not be lost; and, where that is given, so
    /// has the log, up to this write.
    fn remember_more(&self, sequence: Option<u64>) -> Result<(), StorageError> {
        let mut held = self.inner.started.lock().expect("nothing panics with it held");
        let Some((dir, started)) = &mut *held else { return Ok(()) };
        started.manifest = self.manifest()?;
        started.sequence = sequence.unwrap_or(started.sequence);
        started.write(dir)
    }

    /// The sum of a property over the families.
    fn sum(&self, property: &properties::PropName) -> u64 {
        [Family::Log, Family::State, Family::Data]
            .into_iter()
            .map(|family| self.property(family, property))
            .sum()
    }

    fn property(&self, family: Family, property: &properties::PropName) -> u64 {
        // A figure that can't be had is no reason to fail; it shows as 0.
        let db = &self.inner.db;
        db.raw().property_int_value_cf(db.family(family), property).ok().flatten().unwrap_or(0)
    }
}

impl WriteBatch for RocksBatch {
    fn put(&mut self, family: Family, key: &[u8], value: &[u8]) {
        self.batch.put_cf(self.db.family(family), key, value);
    }

    fn delete(&mut self, family: Family, key: &[u8]) {
        self.batch.delete_cf(self.db.family(family), key);
    }

    fn delete_range(&mut self, family: Family, start: &[u8], end: &[u8]) {
        if start < end {
            self.batch.delete_range_cf(self.db.family(family), start, end);
        }
    }

    fn bytes(&self) -> usize {
        self.batch.size_in_bytes()
    }

    fn is_empty(&self) -> bool {
        self.batch.is_empty()
    }
}

impl Engine for RocksEngine {
    type Batch = RocksBatch;
    type View = RocksView;

    fn home(&self) -> &Path {
        self.inner.dir.parent().unwrap_or(&self.inner.dir)
    }

    fn batch(&self) -> RocksBatch {
        RocksBatch { db: self.inner.db.clone(), batch: rocksdb::WriteBatch::default() }
    }

    fn write(&self, batch: RocksBatch, sync: bool) -> Result<(), StorageError> {
        let db = self.inner.db.raw();
        match (batch.is_empty(), sync) {
            (true, true) => db.flush_wal(true).map_err(failed("sync write-ahead log")),
            (true, false) => Ok(()),
            (false, true) => db
                .write_opt(batch.batch, &self.inner.synced)
                .map_err(failed("write and sync batch")),
            (false, false) => {
                db.write_opt(batch.batch, &self.inner.unsynced).map_err(failed("write batch"))
            }
        }
    }

    fn view(&self) -> RocksView {
        RocksView::of(&self.inner.db)
    }

    fn flush(&self) -> Result<(), StorageError> {
        [Family::State, Family::Log, Family::Data]
            .into_iter()
            .try_for_each(|family| self.flush_family(family))
    }

    fn export(
        &self,
        view: &RocksView,
        start: &[u8],
        end: &[u8],
        folder: &Path,
        file_bytes_max: u64,
    ) -> Result<Vec<SnapshotFile>, StorageError> {
        files::export(self, view, (start, end), folder, file_bytes_max)
    }

    fn check_file(&self, folder: &Path, file: &SnapshotFile) -> Result<(), StorageError> {
        files::check(folder, file)
    }

    fn check_span(
        &self,
        folder: &Path,
        files: &[SnapshotFile],
        start: &[u8],
        end: &[u8],
    ) -> Result<(), StorageError> {
        files::check_span(folder, files, start, end)
    }

    fn ingest(&self, folder: &Path, files: &[SnapshotFile]) -> Result<(), StorageError> {
        files::ingest_all(self, folder, files)?;
        self.remember_more(None)
    }

    fn vacate(&self, start: &[u8], end: &[u8]) -> Result<(), StorageError> {
        if start < end {
            self.check_flush()?;
            // As a file in the first level, the deletion would have all that is taken in below it
            // stay in that level.
            self.flush_family(Family::Data)?;
            self.compact(Family::Data, start, end, false);
        }
        Ok(())
    }

    fn remove_folder(&self, folder: &Path) -> Result<(), StorageError> {
        files::remove_folder(folder)
    }

    fn data_file_bytes(&self, start: &[u8], end: &[u8]) -> u64 {
        let db = &self.inner.db;
        db.raw()
            .get_approximate_sizes_cf(db.family(Family::Data), &[rocksdb::Range::new(start, end)])
            .into_iter()
            .sum()
    }

    fn data_is_little(&self, start: &[u8], end: &[u8]) -> bool {
        // RocksDB knows how many records are in memory as a whole only.
        let in_memory =
            [properties::NUM_ENTRIES_ACTIVE_MEM_TABLE, properties::NUM_ENTRIES_IMM_MEM_TABLES];
        let records: u64 =
            in_memory.iter().map(|property| self.property(Family::Data, property)).sum();
        records <= LITTLE_RECORDS_MAX && self.data_file_bytes(start, end) <= LITTLE_BYTES_MAX
    }

    fn free_bytes(&self) -> Result<Option<u64>, StorageError> {
        let disk = rustix::fs::statvfs(&self.inner.dir)
            .map_err(|e| StorageError::engine("ask for free disk space", e))?;
        Ok(Some(disk.f_bavail.saturating_mul(disk.f_frsize)))
    }

    fn statistics(&self) -> Statistics {
        Statistics {
            wal_bytes: crate::room::wal_bytes(&self.inner.dir),
            sst_bytes: self.sum(properties::LIVE_SST_FILES_SIZE),
            memtable_bytes: self.sum(properties::CUR_SIZE_ALL_MEM_TABLES),
            compaction_pending_bytes: self.sum(properties::ESTIMATE_PENDING_COMPACTION_BYTES),
            block_cache_bytes: self.inner.cache.get_usage() as u64,
            block_cache_bytes_max: self.property(Family::Data, properties::BLOCK_CACHE_CAPACITY),
            // Properties of the database as a whole: any family tells them.
            writes_slowed: self.property(Family::Data, properties::ACTUAL_DELAYED_WRITE_RATE) > 0,
            writes_stopped: self.property(Family::Data, properties::IS_WRITE_STOPPED) > 0,
        }
    }

    fn close(&self) -> Result<(), StorageError> {
        let db = self.inner.db.raw();
        db.flush_wal(true).map_err(failed("sync write-ahead log"))?;
        db.cancel_all_background_work(true);
        self.remember_more(Some(self.sequence()))
    }
}

#[cfg(test)]
mod tests;
