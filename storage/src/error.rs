//! Everything that storage can say no with: three families, as in the whole house.
//!
//! Nothing here is *routable* or *retryable* by a client: storage speaks to the node alone. What is
//! left is **refusals to start** (each carries its cure, and no data were changed), **corruption**
//! (names the shard and the index, and is never skipped) and **failures** of the engine. After
//! either of the last two the process stops: a failed write is never retried, because after a
//! failed fsync nobody knows what the disk holds. Two are none of these: a walk that met too many
//! removed records, and a snapshot that can't be used.

use flotilla_router::cure::NO_WAY_BACK;
use flotilla_router::{ClusterId, DecodeError, NodeId, ShardId};
use std::path::PathBuf;

/// What storage fails with.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// Refusal to start: the path is taken by something else.
    #[error("{} is not a directory; give this node its own directory", dir.display())]
    NotADirectory {
        /// The path that was given.
        dir: PathBuf,
    },
    /// Refusal to start: nothing can be written there.
    #[error("{} can't be written to ({why}); make it writable for this user, or give this node \
             its own directory", dir.display())]
    ReadOnly {
        /// The path that was given.
        dir: PathBuf,
        /// What the system said.
        why: String,
    },
    /// Refusal to start: the disk is full to the last.
    #[error(
        "{}: the disk has {free_bytes} bytes left, and this node needs {needed_bytes} to start, \
         without puts: remove something else from the disk, or copy the folder as it is to a \
         larger one; no data were changed", dir.display()
    )]
    NoRoom {
        /// The path that was given.
        dir: PathBuf,
        /// Bytes that are free.
        free_bytes: u64,
        /// Bytes that must be.
        needed_bytes: u64,
    },
    /// Refusal to start: another process works in the directory.
    #[error("{} is in use by another process; stop that one first, or give this node its own \
             directory", dir.display())]
    InUse {
        /// The path that was given.
        dir: PathBuf,
    },
    /// Refusal to start: the directory belongs to somebody else.
    #[error(
        "{} belongs to node {node} of cluster {cluster}, not to node {wanted_node} of cluster \
         {wanted_cluster}; start it with that id, or give this node its own directory (an empty \
         one only if it never ran)", dir.display()
    )]
    ForeignDirectory {
        /// The path that was given.
        dir: PathBuf,
        /// The cluster that it belongs to.
        cluster: ClusterId,
        /// The node that it belongs to.
        node: NodeId,
        /// The cluster that was to be started.
        wanted_cluster: ClusterId,
        /// The node that was to be started.
        wanted_node: NodeId,
    },
    /// Refusal to start: the directory was written by another program, or by another release.
    #[error(
        "{}: {why}; start it with the release that wrote it, or restore the directory as it was \
         when the node ran last", dir.display()
    )]
    UnknownFormat {
        /// The path that was given.
        dir: PathBuf,
        /// What was found.
        why: String,
    },
    /// Refusal to start: RocksDB does not open its own files.
    #[error(
        "{} can't be opened ({why}); nothing was removed: repair the disk or restore the directory \
         as it was when the node ran last; {NO_WAY_BACK}", dir.display()
    )]
    Unopenable {
        /// The path that was given.
        dir: PathBuf,
        /// What RocksDB said.
        why: String,
    },
    /// Refusal to start: RocksDB opened its files, and some of what was durable is not in them.
    #[error(
        "{} has forgotten what it knew ({why}), and this node what it promised: restore the \
         directory as it was when the node ran last; {NO_WAY_BACK}", dir.display()
    )]
    Forgotten {
        /// The path that was given.
        dir: PathBuf,
        /// How that shows.
        why: String,
    },
    /// Corruption of a log.
    #[error(
        "shard {shard}, log index {index}: {why}; the log of this replica can't be trusted any more"
    )]
    LogEntry {
        /// The shard.
        shard: ShardId,
        /// The index of the entry that is wrong or missing.
        index: u64,
        /// What is wrong with it.
        why: String,
    },
    /// Corruption of what a replica remembers beside its log.
    #[error("shard {shard}, {record}: {why}")]
    ShardRecord {
        /// The shard.
        shard: ShardId,
        /// Which record.
        record: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// Corruption of what the node remembers about itself.
    #[error("node record, {record}: {why}")]
    NodeRecord {
        /// Which record.
        record: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// Corruption of a key's record. The key itself stays out of messages and logs.
    #[error("data record under a key of {key_bytes} bytes: {why}")]
    DataRecord {
        /// The length of the key.
        key_bytes: usize,
        /// What is wrong with the record.
        why: String,
    },
    /// A step of a walk passed over more removed records than its [`Pace`](crate::engine::Pace)
    /// allows. Nothing is wrong: the walk may be begun anew with more patience.
    #[error("more than {0} removed records lie before the next key")]
    TooManyRemoved(u64),
    /// An entry that can't be applied; the same on every replica.
    #[error("shard {shard}, apply of log index {index}: {why}")]
    Apply {
        /// The shard.
        shard: ShardId,
        /// The index of the entry.
        index: u64,
        /// Why not.
        why: String,
    },
    /// A snapshot's files are not what its manifest says, or are not there.
    #[error("snapshot of shard {shard}: {why}")]
    Snapshot {
        /// The shard.
        shard: ShardId,
        /// What is wrong with it.
        why: String,
    },
    /// A failure of the engine, or of the file system below it.
    #[error("{action}: {why}")]
    Engine {
        /// What was being done, as in "write batch".
        action: &'static str,
        /// What the engine said.
        why: String,
    },
}

impl StorageError {
    /// Whether it is a refusal to start, which says what to do.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::NotADirectory { .. }
            | Self::ReadOnly { .. }
            | Self::NoRoom { .. }
            | Self::InUse { .. }
            | Self::ForeignDirectory { .. }
            | Self::UnknownFormat { .. }
            | Self::Unopenable { .. }
            | Self::Forgotten { .. } => true,
            Self::LogEntry { .. }
            | Self::ShardRecord { .. }
            | Self::NodeRecord { .. }
            | Self::DataRecord { .. }
            | Self::TooManyRemoved(_)
            | Self::Apply { .. }
            | Self::Snapshot { .. }
            | Self::Engine { .. } => false,
        }
    }

    /// An entry of `shard`'s log that can't be read.
    pub(crate) fn entry(shard: ShardId, index: u64, why: impl ToString) -> Self {
        Self::LogEntry { shard, index, why: why.to_string() }
    }

    /// A record of `shard` that can't be read.
    pub(crate) fn record(shard: ShardId, error: DecodeError) -> Self {
        Self::ShardRecord { shard, record: error.what, why: error.why }
    }

    /// A record of the node that can't be read.
    pub(crate) fn node(error: DecodeError) -> Self {
        Self::NodeRecord { record: error.what, why: error.why }
    }

    /// A failure of the engine while doing `action`.
    pub fn engine(action: &'static str, why: impl ToString) -> Self {
        Self::Engine { action, why: why.to_string() }
    }

    /// A snapshot of `shard` that can't be used.
    pub(crate) fn snapshot(shard: ShardId, why: impl ToString) -> Self {
        Self::Snapshot { shard, why: why.to_string() }
    }
}
