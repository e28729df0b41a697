//! What the core shows of its shards to people.

use flotilla_router::{Descriptor, NodeId, ReplicaId};
use std::sync::Arc;

/// The state of one replica, and, where it leads, of its followers.
#[derive(Clone, Debug)]
pub struct ShardReport {
    /// What the shard is.
    pub descriptor: Arc<Descriptor>,
    /// This node's member of it.
    pub replica: ReplicaId,
    /// What part this replica plays.
    pub part: Part,
    /// The leader's node, as far as this replica knows.
    pub leader: Option<NodeId>,
    /// The current term.
    pub term: u64,
    /// The log's first and last index.
    pub log: (u64, u64),
    /// Bytes of log kept.
    pub log_bytes: u64,
    /// The committed index, as far as this replica knows.
    pub committed: u64,
    /// The applied index.
    pub applied: u64,
    /// The followers' progress; empty unless this replica leads.
    pub followers: Vec<FollowerReport>,
    /// Commands that wait or are in flight here.
    pub pending_commands: usize,
    /// Why the replica was quarantined, if it was.
    pub quarantined: Option<String>,
}

/// What a leader knows of one follower (or of itself).
#[derive(Clone, Debug)]
pub struct FollowerReport {
    /// The replica.
    pub replica: ReplicaId,
    /// The last index that it is known to hold.
    pub matched: u64,
    /// The index to be sent next.
    pub next: u64,
    /// How it is sent to.
    pub progress: Progress,
    /// Whether it was heard of within the last election timeout.
    pub recent_active: bool,
}

/// What part a replica plays in its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// It leads.
    Leader,
    /// It follows, and has a vote.
    Follower,
    /// It follows, and has none.
    Learner,
    /// It has called an election.
    Candidate,
    /// It asks whether it could win one.
    PreCandidate,
}

/// How a leader sends to a follower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// One message, to see how far it is.
    Probe,
    /// As fast as there is room.
    Replicate,
    /// Nothing, until a snapshot has arrived.
    Snapshot,
}
