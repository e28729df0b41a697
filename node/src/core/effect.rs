//! Everything that the core can ask for: a closed list. The shell carries effects out in the order
//! in which they come.

use super::event::{SnapshotId, Ticket};
use super::report::ShardReport;
use super::wire::{Beat, Envelope};
use flotilla_router::call::Staleness;
use flotilla_router::{Descriptor, KeyRange, NodeId, Refusal, ReplicaId, ShardId};
use flotilla_storage::{ApplyWork, HardState, LogBatch, LogPosition, WriteResult};
use std::sync::Arc;

/// One output.
#[derive(Clone, Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "the largest announces a snapshot, and all are moved once"
)]
pub enum Effect {
    /// Send to one node: one frame per lane for all messages of the pass. May be lost.
    Send {
        /// The node.
        to: NodeId,
        /// Raft messages, of all shards.
        messages: Vec<Envelope>,
        /// A sign of life that goes along.
        beat: Option<Beat>,
    },
    /// Write all shards' entries and hard states as one batch; answer with `Persisted`. In order.
    Persist {
        /// Its number.
        write: u64,
        /// What to write.
        batch: LogBatch,
    },
    /// Apply committed entries; answer with `Applied`. In order.
    Apply {
        /// What to apply, each shard at most once.
        work: Vec<ApplyWork>,
    },
    /// The reads may look now: at the state as of this moment, which holds all that was applied so
    /// far.
    Read {
        /// Who waits.
        tickets: Vec<Ticket>,
        /// What the shard is at this moment; a key outside its range belongs to another.
        descriptor: Arc<Descriptor>,
        /// For stale reads, how old that state may be.
        staleness: Option<Staleness>,
    },
    /// Read entries that are no longer in memory; answer with `EntriesFetched`.
    FetchEntries {
        /// Its number.
        fetch: u64,
        /// The shard.
        shard: ShardId,
        /// The first index.
        low: u64,
        /// The index behind the last.
        high: u64,
        /// At most so many bytes, but at least one entry.
        bytes_max: u64,
    },
    /// Build a snapshot of the shard as of now, in apply order; answer with `SnapshotBuilt`.
    BuildSnapshot {
        /// The shard.
        shard: ShardId,
        /// What to call it.
        snapshot: SnapshotId,
    },
    /// The snapshot is no longer needed.
    DropSnapshot {
        /// Which.
        snapshot: SnapshotId,
    },
    /// Stream a built snapshot to a node; answer with `SnapshotSent`, always.
    SendSnapshot {
        /// The node.
        to: NodeId,
        /// The replica that it is for.
        replica: ReplicaId,
        /// Which.
        snapshot: SnapshotId,
        /// The raft message that announces it.
        envelope: Envelope,
    },
    /// Make a staged snapshot the shard's data and log; answer with `SnapshotInstalled`.
    InstallSnapshot {
        /// The shard.
        shard: ShardId,
        /// This node's member of it.
        replica: ReplicaId,
        /// Which.
        staged: SnapshotId,
        /// The hard state that goes with it.
        hard_state: HardState,
        /// Where in the log it stands.
        at: LogPosition,
        /// What is to be cleared before, disjoint and in order: all that the shard has here or will
        /// have.
        clear: Vec<KeyRange>,
    },
    /// The staged snapshot was not wanted after all.
    DiscardStaged {
        /// Which.
        staged: SnapshotId,
    },
    /// Tell the router who leads.
    PublishLeader {
        /// The shard.
        shard: ShardId,
        /// The leader's node, as far as this replica knows.
        leader: Option<NodeId>,
    },
    /// Tell the router what a shard is now.
    PublishDescriptor {
        /// The descriptor.
        descriptor: Arc<Descriptor>,
    },
    /// What came of something that was asked.
    Reply {
        /// Who waits.
        ticket: Ticket,
        /// What was done, or why not.
        result: Result<Done, Refusal>,
    },
    /// After `Drain`: no shard is led here any more that could be handed over.
    Drained,
    /// A shard is quarantined, because going on would break a promise; a person must look.
    Quarantined {
        /// The shard.
        shard: ShardId,
        /// What is wrong.
        why: String,
    },
}

/// What came of an [`Ask`](super::event::Ask).
#[derive(Clone, Debug)]
pub enum Done {
    /// A write was applied, or its condition did not hold.
    Written(WriteResult),
    /// Another node leads now; what the shard is.
    Transferred(Arc<Descriptor>),
    /// A change of members was made; what the shard is now.
    Changed(Arc<Descriptor>),
    /// The shards that were asked for, in the order of ids.
    Report(Vec<ShardReport>),
}
