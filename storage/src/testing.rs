//! What the tests of this crate share: small descriptors, entries and payloads.

use crate::bootstrap::bootstrap;
use crate::engine::Engine;
use crate::log::append;
use crate::memory::MemoryEngine;
use crate::work::{
    ApplyEntry, ApplyWork, EntryKind, HardState, LogBatch, LogEntry, LogPosition, LogWrite,
};
use bytes::Bytes;
use flotilla_router::command::PayloadBuilder;
use flotilla_router::{
    Command, Condition, Descriptor, Epoch, KeyRange, NodeId, Op, Replica, ReplicaId, Role, ShardId,
};
use std::path::Path;

/// The shard of most tests.
pub(crate) const SHARD: ShardId = ShardId(7);

/// A shard at range epoch 1 with one replica on node 1.
pub(crate) fn descriptor(id: u64, start: &str, end: Option<&str>) -> Descriptor {
    Descriptor {
        id: ShardId(id),
        range: KeyRange::new(
            start.as_bytes().to_vec(),
            end.map(|end| end.as_bytes().to_vec().into()),
        ),
        epoch: Epoch { membership: 1, range: 1 },
        replicas: vec![Replica { id: ReplicaId(id * 10 + 1), node: NodeId(1), role: Role::Voter }],
    }
}

/// Bootstraps node 1 with these shards.
pub(crate) fn bootstrapped<E: Engine>(engine: &E, shards: &[Descriptor]) {
    assert!(bootstrap(engine, shards, NodeId(1), &[]).unwrap());
}

/// A normal entry.
pub(crate) fn normal(index: u64, term: u64, data: Bytes) -> LogEntry {
    LogEntry {
        at: LogPosition { index, term },
        kind: EntryKind::Normal,
        data,
        context: Bytes::new(),
    }
}

/// A put without a condition.
pub(crate) fn put(key: &str, value: &str) -> Command {
    let op =
        Op::Put { key: key.as_bytes().to_vec().into(), value: value.as_bytes().to_vec().into() };
    Command::new(op, Condition::Always)
}

/// A deletion without a condition.
pub(crate) fn delete(key: &str) -> Command {
    Command::new(Op::Delete { key: key.as_bytes().to_vec().into() }, Condition::Always)
}

/// A deletion of a range.
pub(crate) fn delete_range(start: &str, end: Option<&str>) -> Command {
    let range =
        KeyRange::new(start.as_bytes().to_vec(), end.map(|end| end.as_bytes().to_vec().into()));
    Command::new(Op::DeleteRange { range }, Condition::Always)
}

/// A payload of these commands.
pub(crate) fn payload(range_epoch: u64, commands: &[Command]) -> Bytes {
    let mut builder = PayloadBuilder::new(range_epoch, 0);
    commands.iter().for_each(|command| builder.push(command));
    builder.finish()
}

/// A payload of puts.
pub(crate) fn put_payload(range_epoch: u64, puts: &[(&str, &str)]) -> Bytes {
    payload(range_epoch, &puts.iter().map(|(key, value)| put(key, value)).collect::<Vec<_>>())
}

/// Work that wants all results.
pub(crate) fn work(shard: ShardId, entries: impl IntoIterator<Item = LogEntry>) -> ApplyWork {
    ApplyWork {
        shard,
        entries: entries
            .into_iter()
            .map(|entry| ApplyEntry { entry, wants_results: true })
            .collect(),
    }
}

/// Appends entries, committed up to the last of them, and syncs.
pub(crate) fn append_committed<E: Engine>(engine: &E, shard: ShardId, entries: Vec<LogEntry>) {
    let last = entries.last().unwrap().at;
    let hard_state = Some(HardState { term: last.term, vote: 0, commit: last.index });
    append(
        engine,
        &LogBatch {
            writes: vec![LogWrite { shard, entries, hard_state, ..Default::default() }],
            sync: true,
        },
    )
    .unwrap();
}

/// What is done to the contents of a file; `None` removes it.
pub(crate) type Tampering = fn(&[u8]) -> Option<Vec<u8>>;

/// An engine that the suites of the contract can be run on, in a folder of its own.
pub(crate) trait TestEngine: Engine + Clone {
    /// An engine over what `dir` holds.
    fn start(dir: &Path) -> Self;
    /// Loses what a crash loses, and starts again.
    fn restart(self, dir: &Path) -> Self;
    /// Brings a file of a snapshot's folder to another engine's.
    fn ship(&self, folder: &Path, name: &str, to: &Self, to_folder: &Path);
    /// Changes a file of a snapshot's folder.
    fn tamper(&self, folder: &Path, name: &str, change: Tampering);
}

impl TestEngine for MemoryEngine {
    fn start(_: &Path) -> Self {
        Self::new()
    }

    fn restart(self, _: &Path) -> Self {
        self.crash();
        self
    }

    fn ship(&self, folder: &Path, name: &str, to: &Self, to_folder: &Path) {
        to.put_file(to_folder, name, self.file(folder, name).unwrap());
    }

    fn tamper(&self, folder: &Path, name: &str, change: Tampering) {
        match change(&self.file(folder, name).unwrap()) {
            Some(contents) => self.put_file(folder, name, contents.into()),
            None => self.remove_folder(folder).unwrap(),
        }
    }
}

#[cfg(feature = "rocksdb")]
impl TestEngine for crate::rocks::RocksEngine {
    fn start(dir: &Path) -> Self {
        Self::open(&dir.join("db"), &small_rocks(), None).unwrap()
    }

    fn restart(self, dir: &Path) -> Self {
        drop(self);
        Self::start(dir)
    }

    fn ship(&self, folder: &Path, name: &str, _: &Self, to_folder: &Path) {
        std::fs::create_dir_all(to_folder).unwrap();
        std::fs::copy(folder.join(name), to_folder.join(name)).unwrap();
    }

    fn tamper(&self, folder: &Path, name: &str, change: Tampering) {
        let path = folder.join(name);
        match change(&std::fs::read(&path).unwrap()) {
            Some(contents) => std::fs::write(&path, contents).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
    }
}

/// RocksDB with little memory, so that many tests can run at once.
#[cfg(feature = "rocksdb")]
pub(crate) fn small_rocks() -> crate::rocks::RocksOptions {
    let mib = 1 << 20;
    crate::rocks::RocksOptions {
        block_cache_bytes: mib,
        log_memtable_bytes: mib,
        data_memtable_bytes: mib,
        state_memtable_bytes: mib,
        ..Default::default()
    }
}

/// Makes one test per engine of each of these generic functions.
macro_rules! on_both_engines {
    ($($name:ident),+ $(,)?) => {
        mod memory {
            $(#[test]
            fn $name() {
                super::$name::<crate::memory::MemoryEngine>();
            })+
        }
        #[cfg(feature = "rocksdb")]
        mod rocks {
            $(#[test]
            fn $name() {
                super::$name::<crate::rocks::RocksEngine>();
            })+
        }
    };
}
pub(crate) use on_both_engines;
