//! Everything that can happen to the core: a closed list.

use super::time::Time;
use super::wire::{Beat, Envelope};
use flotilla_router::{
    Change, Command, Consistency, Descriptor, Incarnation, NodeId, ReplicaId, Revision, ShardId,
};
use flotilla_storage::{Applied, LogEntry, LogPosition, SnapshotManifest};

/// Stands for somebody who waits for an answer. The shell draws it, the core hands it back exactly
/// once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// What can be asked of the core. Each is answered exactly once: by
/// [`Effect::Read`](super::Effect::Read) for a read that may look, by
/// [`Effect::Reply`](super::Effect::Reply) for everything else.
#[derive(Clone, Debug)]
pub enum Ask {
    /// A write.
    Write {
        /// The shard that the router chose.
        shard: ShardId,
        /// What to write.
        command: Command,
    },
    /// A read: of a key or of many, the core does not look.
    Read {
        /// The shard that the router chose.
        shard: ShardId,
        /// How fresh it must be.
        consistency: Consistency,
    },
    /// An order to hand a shard's leadership over.
    Transfer {
        /// The shard.
        shard: ShardId,
        /// The node that shall lead it.
        to: NodeId,
    },
    /// An order to change a shard's members.
    Change {
        /// The shard.
        shard: ShardId,
        /// What is to become of whom.
        change: Change,
    },
    /// A question about the state of shards.
    Inspect {
        /// Which shards: those with ids above this one.
        after: ShardId,
        /// At most so many.
        limit: usize,
    },
}

impl Ask {
    /// The one shard that it concerns.
    pub fn shard(&self) -> Option<ShardId> {
        match self {
            Self::Write { shard, .. }
            | Self::Read { shard, .. }
            | Self::Transfer { shard, .. }
            | Self::Change { shard, .. } => Some(*shard),
            Self::Inspect { .. } => None,
        }
    }
}

/// How a snapshot stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// The other side has it, verified.
    Taken,
    /// The other side takes in as many as it may. The snapshot is as good as it was.
    Busy,
    /// It did not arrive, or is not wanted.
    Failed,
}

/// One input.
#[derive(Clone, Debug)]
pub enum Event {
    /// A pass begins: what the monotonic clock showed **after** the pass's events were taken from
    /// the mailbox. Leases and deadlines are measured on it, elections are not.
    Clock {
        /// Never goes back.
        now: Time,
    },
    /// One tick of the election clock. The shell never gives two closer together than the tick's
    /// length.
    Tick,
    /// A raft message from a peer, parsed and not yet checked.
    Message {
        /// The node that the connection's certificate names.
        from: NodeId,
        /// The message, with its shard and epoch.
        envelope: Envelope,
    },
    /// A peer's sign of life.
    Beat {
        /// The node that the connection's certificate names.
        from: NodeId,
        /// What it says of itself.
        beat: Beat,
    },
    /// Somebody asks, and waits for the answer.
    Ask {
        /// Who waits.
        ticket: Ticket,
        /// What is asked.
        ask: Ask,
        /// When whoever asked stops waiting.
        deadline: Time,
    },
    /// A write to the log is durable, with all before it.
    Persisted {
        /// The number that its effect carried.
        write: u64,
    },
    /// Committed entries were applied.
    Applied {
        /// What it came to, per shard.
        applied: Vec<Applied>,
    },
    /// Entries that were no longer in memory.
    EntriesFetched {
        /// The number that its effect carried.
        fetch: u64,
        /// The shard.
        shard: ShardId,
        /// The entries; empty when they could not be read, because the log was truncated meanwhile.
        entries: Vec<LogEntry>,
    },
    /// A snapshot for followers that fell behind is ready to be sent, or could not be built.
    SnapshotBuilt {
        /// The shard.
        shard: ShardId,
        /// Which build.
        snapshot: SnapshotId,
        /// What became of it; `None` when it failed.
        built: Option<Built>,
    },
    /// A snapshot stream has ended, well or not. Comes for every `SendSnapshot`, always.
    SnapshotSent {
        /// The shard.
        shard: ShardId,
        /// The replica that it was for.
        to: ReplicaId,
        /// How.
        delivery: Delivery,
    },
    /// A snapshot from a peer lies verified on disk.
    SnapshotStaged {
        /// The node that the connection's certificate names.
        from: NodeId,
        /// Where the shell keeps it.
        staged: SnapshotId,
        /// The raft message that announced it.
        envelope: Envelope,
        /// What it holds.
        manifest: SnapshotManifest,
    },
    /// A staged snapshot has become the shard's data and log.
    SnapshotInstalled {
        /// The shard.
        shard: ShardId,
        /// Where in the log it stands.
        at: LogPosition,
        /// Its highest revision.
        revision: Revision,
    },
    /// A node can be reached (again).
    NodeReachable {
        /// The node.
        node: NodeId,
        /// Its present incarnation.
        incarnation: Incarnation,
    },
    /// Messages to a node were lost.
    NodeUnreachable {
        /// The node.
        node: NodeId,
    },
    /// Somebody has looked at the disk.
    Disk {
        /// Bytes free.
        free_bytes: u64,
        /// What must stay free: less, or less than that and what was accepted since, and puts are
        /// refused; 0 for never.
        reserve_bytes: u64,
    },
    /// The process is about to end: hand all leadership over.
    Drain,
}

/// A snapshot that was built.
#[derive(Clone, Debug)]
pub struct Built {
    /// Where in the log it stands.
    pub at: LogPosition,
    /// What the shard was there: it may have changed since.
    pub descriptor: Descriptor,
}

/// Names a snapshot that the shell keeps on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotId(pub u64);
