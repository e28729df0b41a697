//! What Flotilla asks of a storage engine: three families of ordered keys, one write-ahead log,
//! views, and files.
//!
//! The contract, which [`memory`](crate::memory) and [`rocks`](crate::rocks) both keep and one test
//! suite checks on both:
//!
//! - A [batch](WriteBatch) takes effect whole or not at all, over all families, in the order in
//!   which it was filled.
//! - Batches become durable in the order in which they were written. A write with `sync` has
//!   returned only when it **and every write before it** are durable; a crash may cut off any
//!   suffix of the writes behind the last synced one, and nothing else.
//! - A [view](Engine::View) shows the engine as it was when the view was taken, for as long as it
//!   lives.
//! - Files that were [ingested](Engine::ingest) are durable when the call returns.
//!
//! Values are handed out pinned: a look is a closure over the engine's own bytes, so that the
//! caller decides what to copy.

use crate::error::StorageError;
use crate::work::SnapshotFile;
use bytes::Bytes;
use std::path::Path;

/// Which of the three families.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// The logs of all shards. Written once, read rarely, deleted in order.
    Log,
    /// What replicas and the node remember. Small, and overwritten often.
    State,
    /// What clients stored, and up to where each shard has applied.
    Data,
}

/// In which direction a cursor goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// From the first key on.
    Forward,
    /// From the last key backwards.
    Reverse,
}

/// How a long walk behaves towards others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// A step that passes over more removed records than this gives up, with
    /// [`StorageError::TooManyRemoved`].
    pub removed_max: u64,
    /// Whether what passes by is kept in the cache; what is read once must not drive out what is
    /// read often.
    pub keep: bool,
}

/// Writes that take effect together. Filled directly in the engine's own format.
pub trait WriteBatch: Send {
    /// Sets a key.
    fn put(&mut self, family: Family, key: &[u8], value: &[u8]);
    /// Removes a key.
    fn delete(&mut self, family: Family, key: &[u8]);
    /// Removes every key from `start` up to, and without, `end`, earlier ones of this batch
    /// included.
    fn delete_range(&mut self, family: Family, start: &[u8], end: &[u8]);
    /// About how many bytes the batch takes in the write-ahead log.
    fn bytes(&self) -> usize;
    /// Whether nothing was added.
    fn is_empty(&self) -> bool;
}

/// Looks: at the engine as it is now, or at a view of how it was.
pub trait Read {
    /// What walks over a range.
    type Cursor<'a>: Cursor
    where
        Self: 'a;

    /// Shows the value of `key` to `look`, without a copy.
    fn look<R>(
        &self,
        family: Family,
        key: &[u8],
        look: impl FnOnce(&[u8]) -> R,
    ) -> Result<Option<R>, StorageError>;

    /// A walk from `start` up to, and without, `end` (to the family's last key, where it is
    /// `None`), or the same backwards.
    fn cursor<'a>(
        &'a self,
        family: Family,
        start: &[u8],
        end: Option<&[u8]>,
        order: Order,
    ) -> Self::Cursor<'a>;

    /// The same walk at a pace that suits a long look. An engine in which removed records are gone
    /// at once needs none.
    fn cursor_at<'a>(
        &'a self,
        family: Family,
        start: &[u8],
        end: Option<&[u8]>,
        order: Order,
        _pace: Pace,
    ) -> Self::Cursor<'a> {
        self.cursor(family, start, end, order)
    }

    /// The value of `key`, copied.
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        self.look(family, key, Bytes::copy_from_slice)
    }
}

/// A key and its value.
pub type Record<'a> = (&'a [u8], &'a [u8]);

/// A walk over keys in order.
pub trait Cursor {
    /// The next key and its value; valid until the next step.
    #[allow(
        clippy::should_implement_trait,
        reason = "the items borrow from the cursor, which Iterator can't say"
    )]
    fn next(&mut self) -> Result<Option<Record<'_>>, StorageError>;
}

/// A storage engine.
pub trait Engine: Read + Send + Sync + 'static {
    /// Its batches.
    type Batch: WriteBatch;
    /// Its views: cheap to take and to clone; a view that is kept keeps what was deleted since.
    type View: Read + Clone + Send + Sync + 'static;

    /// The directory that holds all that is the node's: paths in records are meant below it. It may
    /// be another one after a restart.
    fn home(&self) -> &Path;

    /// An empty batch.
    fn batch(&self) -> Self::Batch;

    /// Writes a batch; with `sync` it returns when that, and all before it, is durable. An error is
    /// fatal: the caller ends the process, since nobody knows any more what the disk holds.
    fn write(&self, batch: Self::Batch, sync: bool) -> Result<(), StorageError>;

    /// A view of how things are now.
    fn view(&self) -> Self::View;

    /// Moves what is in memory only into files, so that a restart has little to replay.
    fn flush(&self) -> Result<(), StorageError>;

    /// Writes the records of the data family from `start` up to `end`, as `view` shows them, into
    /// files of about `file_bytes_max` bytes in `folder`, which is emptied first. No files for no
    /// records.
    fn export(
        &self,
        view: &Self::View,
        start: &[u8],
        end: &[u8],
        folder: &Path,
        file_bytes_max: u64,
    ) -> Result<Vec<SnapshotFile>, StorageError>;

    /// Whether the file lies in `folder` with that length and checksum; otherwise says what is
    /// wrong with it.
    fn check_file(&self, folder: &Path, file: &SnapshotFile) -> Result<(), StorageError>;

    /// Whether the files, which were checked, are what an engine of this kind exports, without a
    /// record below `start` or from `end` on.
    fn check_span(
        &self,
        folder: &Path,
        files: &[SnapshotFile],
        start: &[u8],
        end: &[u8],
    ) -> Result<(), StorageError>;

    /// Takes the records of exported files into the data family, durably and all together. The
    /// files stay where they are.
    fn ingest(&self, folder: &Path, files: &[SnapshotFile]) -> Result<(), StorageError>;

    /// Gives back at once what was deleted from the data family from `start` up to `end`, where
    /// everything was: what is taken in there next lies in its place, and need not be moved. May
    /// take long; nothing else waits for it.
    fn vacate(&self, start: &[u8], end: &[u8]) -> Result<(), StorageError>;

    /// Removes a folder of exported files; that it is gone already is no error.
    fn remove_folder(&self, folder: &Path) -> Result<(), StorageError>;

    /// About how many bytes of files the records of the data family from `start` up to `end` take.
    /// What is in memory only does not count.
    fn data_file_bytes(&self, start: &[u8], end: &[u8]) -> u64;

    /// Whether a walk over the data family from `start` up to `end` is short for certain, whatever
    /// was removed there: what a deletion of a range covers may have to be stepped over without a
    /// word.
    fn data_is_little(&self, start: &[u8], end: &[u8]) -> bool;

    /// How many bytes the disk has left for this user; `None` where there is no disk.
    fn free_bytes(&self) -> Result<Option<u64>, StorageError>;

    /// Figures for the metrics.
    fn statistics(&self) -> Statistics;

    /// Makes everything written so far durable, and stops background work. Nothing may be written
    /// afterwards.
    fn close(&self) -> Result<(), StorageError>;
}

/// What the metrics show of an engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Bytes in write-ahead log files.
    pub wal_bytes: u64,
    /// Bytes in live table files.
    pub sst_bytes: u64,
    /// Bytes in memtables.
    pub memtable_bytes: u64,
    /// Bytes that compaction still has to rewrite, as estimated.
    pub compaction_pending_bytes: u64,
    /// Bytes in the block cache.
    pub block_cache_bytes: u64,
    /// Bytes that the block cache may grow to.
    pub block_cache_bytes_max: u64,
    /// Whether writes are slowed down, because compaction lags behind.
    pub writes_slowed: bool,
    /// Whether writes are held, because compaction lags far behind.
    pub writes_stopped: bool,
}

#[cfg(test)]
mod tests;
