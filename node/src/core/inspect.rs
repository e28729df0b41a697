//! What the core shows of its shards to people: built on request, never on the hot path.

use super::Node;
use super::replica::Replica;
use flotilla_router::{Descriptor, NodeId, ReplicaId, ShardId};
use raft::{ProgressState, StateRole};
use std::sync::Arc;

/// The state of one replica, and, where it leads, of its followers.
#[derive(Clone, Debug)]
pub struct ShardReport {
    /// What the shard is.
    pub descriptor: Arc<Descriptor>,
    /// This node's member of it.
    pub replica: ReplicaId,
    /// What this replica is: leader, follower, candidate, …
    pub role: &'static str,
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
    /// Why the replica was set aside, if it was.
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
    /// `probe`, `replicate` or `snapshot`.
    pub progress: &'static str,
    /// Whether it was heard of within the last election timeout.
    pub recent_active: bool,
}

impl Node {
    /// Reports on the shards with ids above `after`, at most `limit`.
    pub(super) fn inspect(&self, after: ShardId, limit: usize) -> Vec<ShardReport> {
        use std::ops::Bound::{Excluded, Unbounded};
        self.registry.range((Excluded(after), Unbounded)).take(limit).map(|replica| replica.report()).collect()
    }
}

impl Replica {
    fn report(&self) -> ShardReport {
        let raft = &self.raw.raft;
        let followers = if raft.state == StateRole::Leader {
            let mut followers: Vec<_> = raft
                .prs()
                .iter()
                .map(|(id, progress)| FollowerReport {
                    replica: ReplicaId(*id),
                    matched: progress.matched,
                    next: progress.next_idx,
                    progress: match progress.state {
                        ProgressState::Probe => "probe",
                        ProgressState::Replicate => "replicate",
                        ProgressState::Snapshot => "snapshot",
                    },
                    recent_active: progress.recent_active || *id == self.id.0,
                })
                .collect();
            followers.sort_by_key(|f| f.replica);
            followers
        } else {
            Vec::new()
        };
        ShardReport {
            descriptor: self.descriptor.clone(),
            replica: self.id,
            role: match raft.state {
                StateRole::Leader => "leader",
                StateRole::Follower if !raft.promotable() => "learner",
                StateRole::Follower => "follower",
                StateRole::Candidate => "candidate",
                StateRole::PreCandidate => "pre_candidate",
            },
            leader: self.leader_node(),
            term: raft.term,
            log: (raft.raft_log.first_index(), raft.raft_log.last_index()),
            log_bytes: self.compaction.bytes(),
            committed: raft.raft_log.committed,
            applied: self.applied.index,
            followers,
            pending_commands: self.proposals.pending(),
            quarantined: self.quarantined.clone(),
        }
    }
}
