//! One replica: a RawNode, and one field per operation that concerns it.

use super::Time;
use super::compaction::Compaction;
use super::elections::Elections;
use super::event::Ticket;
use super::flow::Flow;
use super::freshness::Freshness;
use super::log::LogView;
use super::proposals::Proposals;
use super::reads::Reads;
use super::ready::ReadyQueue;
use super::snapshots::Snapshots;
use flotilla_router::{Descriptor, NodeId, ReplicaId, ShardId};
use flotilla_storage::LogPosition;
use raft::{RawNode, StateRole};
use std::sync::Arc;

/// One member of one shard's group, on this node.
pub(super) struct Replica {
    /// The shard.
    pub(super) shard: ShardId,
    /// The Raft id.
    pub(super) id: ReplicaId,
    /// What the shard is, as of `applied`.
    pub(super) descriptor: Arc<Descriptor>,
    /// The term that it had when it started.
    pub(super) first_term: u64,
    /// The group, as raft-rs sees it.
    pub(super) raw: RawNode<LogView>,
    /// Up to where the data are applied.
    pub(super) applied: LogPosition,
    /// Up to where entries were handed out to be applied.
    pub(super) handed_out: u64,
    /// Readys that are not yet persisted, and the messages that wait for them.
    pub(super) ready: ReadyQueue,
    /// Writes that wait, and writes in flight.
    pub(super) proposals: Proposals,
    /// Reads that wait.
    pub(super) reads: Reads,
    /// How old what it shows may be.
    pub(super) freshness: Freshness,
    /// Election timeouts, transfers.
    pub(super) elections: Elections,
    /// Snapshots under way, out and in.
    pub(super) snapshots: Snapshots,
    /// The size of the log, and where it can be cut.
    pub(super) compaction: Compaction,
    /// What is on its way to each follower.
    pub(super) flow: Flow,
    /// Why the replica was set aside, if it was.
    pub(super) quarantined: Option<String>,
}

impl Replica {
    /// Whether this replica leads, as far as it knows.
    pub(super) fn leads(&self) -> bool {
        self.raw.raft.state == StateRole::Leader && self.quarantined.is_none()
    }

    /// The node of the leader, as far as this replica knows. One that was set aside hears of no election any more.
    pub(super) fn leader_node(&self) -> Option<NodeId> {
        if self.quarantined.is_some() {
            return None;
        }
        self.descriptor.replica(ReplicaId(self.raw.raft.leader_id)).map(|r| r.node)
    }

    /// Whether a tick concerns more than elections and heartbeats.
    pub(super) fn waits_for_something(&self) -> bool {
        self.proposals.pending() > 0
            || !self.reads.is_empty()
            || self.elections.transfer.is_some()
            || self.snapshots.is_busy()
            || self.flow.is_busy()
    }

    /// Whether commands are there and none of them has come any further for so long, though the disk here has all: no quorum, an apply that
    /// takes long, a hand-over that does not end.
    pub(super) fn stands_still(&self, now: Time, patience: Time) -> bool {
        let log = &self.raw.raft.raft_log;
        self.proposals.pending() > 0
            && log.persisted == log.last_index()
            && now.saturating_sub(self.proposals.moved_at()) > patience
    }

    /// Bytes of entries that are proposed, or committed, and not yet applied here.
    pub(super) fn under_way_bytes(&self) -> u64 {
        self.raw.raft.uncommitted_size() as u64 + self.ready.unapplied_bytes
    }

    /// Everybody who waits, and whether what they wait for was proposed.
    pub(super) fn take_waiting_tickets(&mut self) -> Vec<(Ticket, bool)> {
        let mut tickets = self.proposals.take_all();
        tickets.extend(self.reads.take_all().into_iter().map(|ticket| (ticket, false)));
        tickets
    }
}
