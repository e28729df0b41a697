//! An engine in memory, which forgets in a crash what a disk would forget.
//!
//! It keeps two copies of the truth: what readers see, and what a crash would leave. A write goes
//! into the first at once and into a queue; a synced write moves the whole queue into the second,
//! because the write-ahead log is sequential: what was written before is durable with it.
//! [`MemoryEngine::crash`] throws the queue away, [`MemoryEngine::crash_keeping`] all but a prefix
//! of it: a real crash may keep any prefix.
//!
//! The maps are shared copy-on-write: a view costs three reference counts, and a write while a view
//! lives copies one map. No thread, no clock, no randomness. Exported files are byte strings inside
//! the engine, under folder and name; they survive a crash, as files that were synced do.

mod files;

use crate::engine::{Cursor, Engine, Family, Order, Read, Record, Statistics, WriteBatch};
use crate::error::StorageError;
use crate::work::SnapshotFile;
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

type Map = BTreeMap<Bytes, Bytes>;

/// The engine. Clones are the same engine.
#[derive(Clone, Default)]
pub struct MemoryEngine {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    /// What readers see.
    current: Families,
    /// What a crash leaves.
    durable: Families,
    /// What leads from `durable` to `current`, in the order in which it was written.
    unsynced: VecDeque<MemoryBatch>,
    /// Exported files by folder and name.
    files: BTreeMap<(PathBuf, String), Bytes>,
}

#[derive(Clone, Default)]
struct Families {
    log: Arc<Map>,
    state: Arc<Map>,
    data: Arc<Map>,
}

/// Writes for a [`MemoryEngine`].
#[derive(Default)]
pub struct MemoryBatch {
    changes: Vec<Change>,
    bytes: usize,
}

enum Change {
    Put(Family, Bytes, Bytes),
    Delete(Family, Bytes),
    DeleteRange(Family, Bytes, Bytes),
}

/// A [`MemoryEngine`] as it was.
#[derive(Clone)]
pub struct MemoryView {
    families: Families,
}

/// A walk over a family as it was when the walk began.
pub struct MemoryCursor {
    map: Arc<Map>,
    /// What is still to be walked over.
    rest: (Bound<Bytes>, Bound<Bytes>),
    order: Order,
}

impl MemoryEngine {
    /// An empty engine.
    pub fn new() -> Self {
        Self::default()
    }

    /// Loses power: everything behind the last synced write is gone.
    pub fn crash(&self) {
        self.crash_keeping(0);
    }

    /// Loses power with luck: the first `kept` writes behind the last synced one survive. With
    /// `usize::MAX` it is the process alone that dies.
    pub fn crash_keeping(&self, kept: usize) {
        let mut inner = self.lock();
        let kept = kept.min(inner.unsynced.len());
        inner.settle(kept);
        inner.unsynced.clear();
        inner.current = inner.durable.clone();
    }

    /// What a crash at this moment would leave.
    pub fn durable(&self) -> MemoryView {
        MemoryView { families: self.lock().durable.clone() }
    }

    /// How many writes a crash would lose.
    pub fn unsynced(&self) -> usize {
        self.lock().unsynced.len()
    }

    /// An exported file.
    pub fn file(&self, folder: &Path, name: &str) -> Option<Bytes> {
        self.lock().files.get(&(folder.to_owned(), name.to_owned())).cloned()
    }

    /// Puts a file into a folder, as a snapshot that came from another node does.
    pub fn put_file(&self, folder: &Path, name: &str, contents: Bytes) {
        self.lock().files.insert((folder.to_owned(), name.to_owned()), contents);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing below panics halfway through a change, so a poisoned lock guards a sound state.
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Inner {
    /// Makes the first `n` unsynced writes durable.
    fn settle(&mut self, n: usize) {
        for batch in self.unsynced.drain(..n) {
            self.durable.change(&batch);
        }
    }
}

impl Families {
    fn map(&self, family: Family) -> &Arc<Map> {
        match family {
            Family::Log => &self.log,
            Family::State => &self.state,
            Family::Data => &self.data,
        }
    }

    fn map_mut(&mut self, family: Family) -> &mut Map {
        Arc::make_mut(match family {
            Family::Log => &mut self.log,
            Family::State => &mut self.state,
            Family::Data => &mut self.data,
        })
    }

    fn change(&mut self, batch: &MemoryBatch) {
        for change in &batch.changes {
            match change {
                Change::Put(family, key, value) => {
                    self.map_mut(*family).insert(key.clone(), value.clone());
                }
                Change::Delete(family, key) => {
                    self.map_mut(*family).remove(key);
                }
                Change::DeleteRange(family, start, end) => {
                    let map = self.map_mut(*family);
                    let keys: Vec<Bytes> =
                        map.range(start.clone()..end.clone()).map(|(key, _)| key.clone()).collect();
                    for key in keys {
                        map.remove(&key);
                    }
                }
            }
        }
    }
}

impl MemoryBatch {
    /// Whether some change touches a key of the data family from `first` to `last`.
    fn touches_data(&self, first: &[u8], last: &[u8]) -> bool {
        self.changes.iter().any(|change| match change {
            Change::Put(Family::Data, key, _) | Change::Delete(Family::Data, key) => {
                &key[..] >= first && &key[..] <= last
            }
            Change::DeleteRange(Family::Data, start, end) => &start[..] <= last && &end[..] > first,
            _ => false,
        })
    }
}

impl WriteBatch for MemoryBatch {
    fn put(&mut self, family: Family, key: &[u8], value: &[u8]) {
        self.bytes += key.len() + value.len();
        self.changes.push(Change::Put(
            family,
            Bytes::copy_from_slice(key),
            Bytes::copy_from_slice(value),
        ));
    }

    fn delete(&mut self, family: Family, key: &[u8]) {
        self.bytes += key.len();
        self.changes.push(Change::Delete(family, Bytes::copy_from_slice(key)));
    }

    fn delete_range(&mut self, family: Family, start: &[u8], end: &[u8]) {
        if start < end {
            self.bytes += start.len() + end.len();
            self.changes.push(Change::DeleteRange(
                family,
                Bytes::copy_from_slice(start),
                Bytes::copy_from_slice(end),
            ));
        }
    }

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

impl Read for MemoryView {
    type Cursor<'a> = MemoryCursor;

    fn look<R>(
        &self,
        family: Family,
        key: &[u8],
        look: impl FnOnce(&[u8]) -> R,
    ) -> Result<Option<R>, StorageError> {
        Ok(self.families.map(family).get(key).map(|value| look(value)))
    }

    fn cursor(
        &self,
        family: Family,
        start: &[u8],
        end: Option<&[u8]>,
        order: Order,
    ) -> MemoryCursor {
        let end = end.map_or(Bound::Unbounded, |end| Bound::Excluded(Bytes::copy_from_slice(end)));
        let rest = (Bound::Included(Bytes::copy_from_slice(start)), end);
        MemoryCursor { map: self.families.map(family).clone(), rest, order }
    }
}

impl Read for MemoryEngine {
    type Cursor<'a> = MemoryCursor;

    fn look<R>(
        &self,
        family: Family,
        key: &[u8],
        look: impl FnOnce(&[u8]) -> R,
    ) -> Result<Option<R>, StorageError> {
        // The value is taken out of the lock first: what looks may look again.
        let value = self.lock().current.map(family).get(key).cloned();
        Ok(value.map(|value| look(&value)))
    }

    fn cursor(
        &self,
        family: Family,
        start: &[u8],
        end: Option<&[u8]>,
        order: Order,
    ) -> MemoryCursor {
        self.view().cursor(family, start, end, order)
    }
}

impl Cursor for MemoryCursor {
    fn next(&mut self) -> Result<Option<Record<'_>>, StorageError> {
        let (Bound::Included(start) | Bound::Excluded(start)) = &self.rest.0 else {
            return Ok(None);
        };
        if let Bound::Excluded(end) = &self.rest.1
            && start >= end
        {
            return Ok(None);
        }
        let mut range = self.map.range(self.rest.clone());
        let found = match self.order {
            Order::Forward => range.next(),
            Order::Reverse => range.next_back(),
        };
        let Some((key, value)) = found else { return Ok(None) };
        match self.order {
            Order::Forward => self.rest.0 = Bound::Excluded(key.clone()),
            Order::Reverse => self.rest.1 = Bound::Excluded(key.clone()),
        }
        Ok(Some((key, value)))
    }
}

impl Engine for MemoryEngine {
    type Batch = MemoryBatch;
    type View = MemoryView;

    fn home(&self) -> &Path {
        Path::new("")
    }

    fn batch(&self) -> MemoryBatch {
        MemoryBatch::default()
    }

    fn write(&self, batch: MemoryBatch, sync: bool) -> Result<(), StorageError> {
        let mut inner = self.lock();
        inner.current.change(&batch);
        inner.unsynced.push_back(batch);
        if sync {
            let all = inner.unsynced.len();
            inner.settle(all);
        }
        Ok(())
    }

    fn view(&self) -> MemoryView {
        MemoryView { families: self.lock().current.clone() }
    }

    fn flush(&self) -> Result<(), StorageError> {
        let mut inner = self.lock();
        let all = inner.unsynced.len();
        inner.settle(all);
        Ok(())
    }

    fn export(
        &self,
        view: &MemoryView,
        start: &[u8],
        end: &[u8],
        folder: &Path,
        file_bytes_max: u64,
    ) -> Result<Vec<SnapshotFile>, StorageError> {
        files::export(self, view, (start, end), folder, file_bytes_max)
    }

    fn check_file(&self, folder: &Path, file: &SnapshotFile) -> Result<(), StorageError> {
        const ACTION: &str = "check snapshot file";
        let contents = self.file(folder, &file.name);
        let contents = contents
            .ok_or_else(|| StorageError::engine(ACTION, format!("{} is not there", file.name)))?;
        if contents.len() as u64 != file.bytes || crc32fast::hash(&contents) != file.checksum {
            return Err(StorageError::engine(
                ACTION,
                format!("{} is not what was sent", file.name),
            ));
        }
        Ok(())
    }

    fn check_span(
        &self,
        folder: &Path,
        files: &[SnapshotFile],
        start: &[u8],
        end: &[u8],
    ) -> Result<(), StorageError> {
        let outside = |(key, _): &(Bytes, Bytes)| key[..] < *start || key[..] >= *end;
        match files::records(self, folder, files)?.iter().find(|record| outside(record)) {
            Some((key, _)) => Err(StorageError::engine(
                "check snapshot file",
                format!("it holds the key {key:?} of another shard"),
            )),
            None => Ok(()),
        }
    }

    fn ingest(&self, folder: &Path, files: &[SnapshotFile]) -> Result<(), StorageError> {
        let mut batch = MemoryBatch::default();
        files.iter().try_for_each(|file| self.check_file(folder, file))?;
        for (key, value) in files::records(self, folder, files)? {
            batch.changes.push(Change::Put(Family::Data, key, value));
        }
        let (Some(Change::Put(_, first, _)), Some(Change::Put(_, last, _))) =
            (batch.changes.first(), batch.changes.last())
        else {
            return Ok(());
        };
        let mut inner = self.lock();
        // An engine with files flushes its memtable first where it overlaps; otherwise the files
        // are durable by themselves, before writes that came earlier.
        if let Some(overlapping) =
            inner.unsynced.iter().rposition(|unsynced| unsynced.touches_data(first, last))
        {
            inner.settle(overlapping + 1);
        }
        inner.current.change(&batch);
        inner.durable.change(&batch);
        Ok(())
    }

    fn vacate(&self, _: &[u8], _: &[u8]) -> Result<(), StorageError> {
        Ok(())
    }

    fn remove_folder(&self, folder: &Path) -> Result<(), StorageError> {
        self.lock().files.retain(|(of, _), _| of != folder);
        Ok(())
    }

    fn data_file_bytes(&self, _start: &[u8], _end: &[u8]) -> u64 {
        0
    }

    fn data_is_little(&self, _start: &[u8], _end: &[u8]) -> bool {
        true
    }

    fn free_bytes(&self) -> Result<Option<u64>, StorageError> {
        Ok(None)
    }

    fn statistics(&self) -> Statistics {
        Statistics::default()
    }

    fn close(&self) -> Result<(), StorageError> {
        self.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engine_with_three_writes() -> MemoryEngine {
        let engine = MemoryEngine::new();
        for (i, sync) in [(0u8, true), (1, false), (2, false)] {
            let mut batch = engine.batch();
            batch.put(Family::Data, &[i], &[i]);
            batch.put(Family::State, &[i], &[i]);
            engine.write(batch, sync).unwrap();
        }
        engine
    }

    fn kept(engine: &MemoryEngine, family: Family) -> Vec<u8> {
        (0..5).filter(|i| engine.get(family, &[*i]).unwrap().is_some()).collect()
    }

    #[test]
    fn a_crash_keeps_a_prefix_of_what_was_not_synced() {
        for (n, want) in
            [(0, vec![0]), (1, vec![0, 1]), (2, vec![0, 1, 2]), (usize::MAX, vec![0, 1, 2])]
        {
            let engine = engine_with_three_writes();
            assert_eq!(engine.unsynced(), 2);
            engine.crash_keeping(n);
            assert_eq!(
                (kept(&engine, Family::Data), kept(&engine, Family::State)),
                (want.clone(), want),
                "keeping {n}"
            );
            assert_eq!(engine.unsynced(), 0);
        }
    }

    #[test]
    fn a_synced_write_makes_what_came_before_it_durable() {
        let engine = engine_with_three_writes();
        let mut batch = engine.batch();
        batch.put(Family::Log, b"k", b"v");
        engine.write(batch, true).unwrap();
        engine.crash();
        assert_eq!(kept(&engine, Family::Data), [0, 1, 2]);
    }

    #[test]
    fn what_is_ingested_survives_a_crash_that_loses_earlier_writes_elsewhere() {
        let (source, target) = (engine_with_three_writes(), engine_with_three_writes());
        let files = source.export(&source.view(), &[2], &[3], Path::new("f"), 1).unwrap();
        let mut batch = target.batch();
        batch.put(Family::Data, &[4], &[4]);
        target.write(batch, false).unwrap();
        target.put_file(
            Path::new("f"),
            &files[0].name,
            source.file(Path::new("f"), &files[0].name).unwrap(),
        );
        target.ingest(Path::new("f"), &files).unwrap();
        target.crash();
        assert_eq!(
            kept(&target, Family::Data),
            [0, 1, 2],
            "4 was not synced, 1 lies before the overlapping 2"
        );
    }
}
