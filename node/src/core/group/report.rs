//! The state of a group, as people see it: built on request, never on the hot path.

use super::Group;
use crate::core::report::{FollowerReport, Part, Progress, ShardReport};
use flotilla_router::ReplicaId;
use raft::{ProgressState, StateRole};

impl Group {
    /// Where this replica stands; the bytes of its log, and how many commands wait, are known to
    /// others.
    pub(crate) fn report(&self, log_bytes: u64, pending_commands: usize) -> ShardReport {
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
                        ProgressState::Probe => Progress::Probe,
                        ProgressState::Replicate => Progress::Replicate,
                        ProgressState::Snapshot => Progress::Snapshot,
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
            part: match raft.state {
                StateRole::Leader => Part::Leader,
                StateRole::Follower if !raft.promotable() => Part::Learner,
                StateRole::Follower => Part::Follower,
                StateRole::Candidate => Part::Candidate,
                StateRole::PreCandidate => Part::PreCandidate,
            },
            leader: self.leader_node(),
            term: raft.term,
            log: (raft.raft_log.first_index(), raft.raft_log.last_index()),
            log_bytes,
            committed: raft.raft_log.committed,
            applied: self.applied.index,
            followers,
            pending_commands,
            quarantined: self.quarantined.clone(),
        }
    }
}
