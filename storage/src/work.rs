//! What the core asks of storage, and what it gets back: plain data, without a word of how it is
//! kept.
//!
//! The core is pure: it never calls storage. It emits these as effects; the shell hands them to the
//! [log](crate::log), to [apply](crate::apply) and to [snapshots](crate::snapshot), and brings the
//! results back as events.

use bytes::Bytes;
use flotilla_router::{Command, Descriptor, ReplicaId, Revision, ShardId, Unfit};

/// A place in a shard's log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogPosition {
    /// Counts entries from 1; every shard starts as if truncated at [`INITIAL`].
    pub index: u64,
    /// The term of the entry at `index`.
    pub term: u64,
}

/// Where every shard's log starts when the cluster is bootstrapped: as if one entry had been
/// written, applied and truncated. raft-rs asks for an index above 0, so that an empty replica is
/// told from an initial one.
pub const INITIAL: LogPosition = LogPosition { index: 1, term: 1 };

/// Above this an index, a term or a revision that a peer speaks of is not honest: nobody counts
/// that far, and sums of it could overflow.
pub const NUMBER_MAX: u64 = 1 << 56;

/// What a log entry is. The kind is looked at **before** the data: the entry that leaves joint
/// consensus has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// Commands, or nothing (a new leader's first entry).
    Normal,
    /// A membership change of one replica.
    ConfChange,
    /// A membership change, by joint consensus or not, or, with empty data, the step out of it.
    ConfChangeV2,
}

/// One entry of a shard's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// Where it stands.
    pub at: LogPosition,
    /// What it is.
    pub kind: EntryKind,
    /// A [payload](flotilla_router::command::Payload), or a raft conf change in protobuf.
    pub data: Bytes,
    /// For a conf change the [`Change`](flotilla_router::Change) that it is, encoded; otherwise
    /// empty.
    pub context: Bytes,
}

/// What a replica must remember to keep its promises.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// The latest term that the replica has seen.
    pub term: u64,
    /// Whom it voted for in that term; 0 for nobody.
    pub vote: u64,
    /// The index up to which it knows the log to be committed.
    pub commit: u64,
}

/// One shard's share of a write to the log. Carried out in the order of the fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogWrite {
    /// The shard.
    pub shard: ShardId,
    /// Entries that a new leader overruled: first and last index to delete. They lie above, or are
    /// overwritten by, `entries`.
    pub delete: Option<(u64, u64)>,
    /// Entries to append, contiguous.
    pub entries: Vec<LogEntry>,
    /// The hard state, if it changed.
    pub hard_state: Option<HardState>,
    /// Entries to forget at the front.
    pub truncate: Option<Truncate>,
}

/// Forgets the front of a log. Never beyond what is applied: the shell writes applied data before
/// it, to the same WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truncate {
    /// The first index that the log holds.
    pub from: u64,
    /// The last place to forget; it becomes the log's truncated position.
    pub to: LogPosition,
}

/// One write for all shards of a pass: one batch, and one fsync where any of it must be durable
/// before it counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogBatch {
    /// What to write, each shard at most once.
    pub writes: Vec<LogWrite>,
    /// Whether it must be synced.
    pub sync: bool,
}

/// A committed entry to apply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApplyEntry {
    /// The entry.
    pub entry: LogEntry,
    /// Whether somebody waits here for what becomes of its commands.
    pub wants_results: bool,
}

/// Committed entries of one shard, contiguous, directly above what is applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApplyWork {
    /// The shard.
    pub shard: ShardId,
    /// In index order; never empty.
    pub entries: Vec<ApplyEntry>,
}

/// What became of one command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteResult {
    /// The key was set.
    Written {
        /// Its new revision.
        revision: Revision,
    },
    /// The key is gone, or was not there.
    Deleted,
    /// The range is empty now.
    DeletedRange {
        /// How many keys there were.
        count: u64,
    },
    /// Nothing was written, because the condition did not hold.
    ConditionFailed {
        /// The revision that the key is at.
        current: Option<Revision>,
    },
    /// Nothing was written, because the shard's range changed between propose and apply.
    WrongShard,
}

/// What applying a shard's entries came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The shard.
    pub shard: ShardId,
    /// The last entry applied.
    pub at: LogPosition,
    /// For each entry that wanted them, in order: its index, and a result per command.
    pub results: Vec<(u64, Vec<WriteResult>)>,
    /// For each conf change, in order: its index, and whether it was taken; if not, why.
    ///
    /// raft-rs must hear of those that were taken, and of no other: then its configuration is what
    /// `descriptor` says.
    pub conf_changes: Vec<(u64, Result<(), Unfit>)>,
    /// The descriptor, if it changed.
    pub descriptor: Option<Descriptor>,
}

/// A replica as found on disk when the node starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// What the shard is, as of `applied`.
    pub descriptor: Descriptor,
    /// This node's member of it.
    pub replica: ReplicaId,
    /// The hard state. Its commit was raised to `applied.index` where it lay below.
    pub hard_state: HardState,
    /// The last place that the log has forgotten.
    pub truncated: LogPosition,
    /// The log's last entry; `truncated` when it holds none.
    pub last: LogPosition,
    /// The terms of the log: the first index of each run of entries of one term above `truncated`.
    pub term_starts: Vec<LogPosition>,
    /// Up to where the data are applied.
    pub applied: LogPosition,
    /// The entries above `applied`, all of them.
    pub unapplied: Vec<LogEntry>,
    /// Bytes of the entries that the log holds, as [`LogEntry::bytes`] counts them.
    pub log_bytes: u64,
}

/// A shard at one applied index, as it is sent to a replica that fell behind the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotManifest {
    /// What the shard is at that index.
    pub descriptor: Descriptor,
    /// The index, and its term.
    pub at: LogPosition,
    /// The highest revision given out so far.
    pub revision: Revision,
    /// The files, in key order; none for a shard without keys.
    pub files: Vec<SnapshotFile>,
}

/// One file of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotFile {
    /// Its name inside the snapshot's folder; letters, digits, `-` and `.` only.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// CRC-32 of its contents.
    pub checksum: u32,
}

impl LogEntry {
    /// What the entry is counted as against every limit in bytes: its payload and 32 bytes around
    /// it.
    pub fn bytes(&self) -> u64 {
        (self.data.len() + self.context.len() + 32) as u64
    }
}

impl WriteResult {
    /// Whether `command` could have come to this result; pairs the two ends of apply in debug
    /// assertions and tests.
    pub fn fits(&self, command: &Command) -> bool {
        use flotilla_router::Op;
        match self {
            Self::Written { .. } => matches!(command.op(), Op::Put { .. }),
            Self::Deleted => matches!(command.op(), Op::Delete { .. }),
            Self::DeletedRange { .. } => matches!(command.op(), Op::DeleteRange { .. }),
            Self::ConditionFailed { .. } | Self::WrongShard => true,
        }
    }
}
