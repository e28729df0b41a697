//! Leadership spread over the nodes, and handed over before a node goes down.
//!
//! Every node tells every other how many shards it leads ([`Beat`]). A leader that leads clearly more than a node which could
//! take over hands it a few shards at a time. "Clearly" leaves an operator's own hand-over of a shard or two alone.

use super::event::Beat;
use super::{Node, Peer};
use flotilla_router::{NodeId, ReplicaId, Role, ShardId};
use raft::ProgressState;
use std::collections::BTreeMap;

/// Hand-overs started at once.
const HANDOVERS_MAX: usize = 16;
/// How many more shards than another a node must lead before it hands any over.
const IMBALANCE_MIN: usize = 3;
/// Ticks that a leader stays at least, so that shards do not wander.
const STAY_TICKS: u64 = 40;

impl Node {
    /// What this node says of itself.
    pub(super) fn beat(&self) -> Beat {
        Beat {
            leaders: self.registry.leaders() as u32,
            replicas: self.registry.len() as u32,
            draining: self.draining,
            disk_full: self.disk_full.is_some(),
        }
    }

    /// A peer gave a sign of life.
    pub(super) fn heard(&mut self, from: NodeId, beat: Beat) {
        let peer = self.peers.entry(from).or_default();
        (peer.beat, peer.silent_ticks, peer.heard) = (beat, 0, true);
    }

    /// Whether a sign of life is due in the pass that ends. One per pair of nodes and heartbeat interval, not one per group.
    pub(super) fn beat_is_due(&mut self) -> bool {
        let interval = self.config.raft.heartbeat_ticks as u64;
        let due = std::mem::take(&mut self.beat_now) || self.ticks >= self.last_beat + interval;
        if due {
            self.last_beat = self.ticks;
        }
        due
    }

    /// The process is about to end: says so to all, and hands over.
    pub(super) fn drain(&mut self) {
        self.draining = true;
        self.beat_now = true;
        self.hand_over_everything();
    }

    fn is_alive(&self, node: NodeId) -> bool {
        is_alive(&self.peers, node, self.config.raft.election_ticks)
    }

    /// Hands some shards to the node that leads fewest, where the difference is clear; all of them while going down.
    pub(super) fn balance_leaders(&mut self) {
        if self.draining {
            self.hand_over_everything();
            return;
        }
        if !self.config.raft.balance_leaders {
            return;
        }
        let mine = self.registry.leaders() as usize;
        let candidates = self.peers.iter().filter(|(node, p)| self.is_alive(**node) && !p.beat.draining && !p.beat.disk_full);
        let Some((&target, theirs)) =
            candidates.map(|(node, p)| (node, p.beat.leaders as usize)).min_by_key(|(node, n)| (*n, *node))
        else {
            return;
        };
        let difference = mine.saturating_sub(theirs);
        if difference < IMBALANCE_MIN.max(mine / 10) {
            return;
        }
        let wanted = (difference / 2).min(HANDOVERS_MAX);
        let shards: Vec<(ShardId, ReplicaId)> = self
            .registry
            .iter()
            .filter(|r| r.leads() && r.elections.led_ticks >= STAY_TICKS)
            .filter_map(|r| Some((r.shard, can_take_over(r, r.descriptor.on_node(target)?.id)?)))
            .take(wanted)
            .collect();
        for (shard, to) in shards {
            self.start_transfer(shard, to, None);
        }
    }

    /// Going down: every shard that is led here goes to the voter that is furthest, among nodes that stay.
    pub(super) fn hand_over_everything(&mut self) {
        let shards: Vec<(ShardId, ReplicaId)> = self
            .registry
            .iter()
            .filter(|r| r.leads() && r.elections.transfer.is_none())
            .filter_map(|r| {
                let stays = |node: NodeId| self.is_alive(node) && !self.peers[&node].beat.draining;
                let voters = r.descriptor.voters().filter(|v| v.id != r.id && stays(v.node));
                let best = voters.filter_map(|v| Some((r.raw.raft.prs().get(v.id.0)?.matched, v.id))).max()?;
                Some((r.shard, best.1))
            })
            .collect();
        for (shard, to) in shards {
            self.start_transfer(shard, to, None);
        }
    }

    /// Whether going down need wait no longer: nothing is led here that anybody alive could take.
    pub(super) fn nothing_left_to_hand_over(&self) -> bool {
        self.registry
            .iter()
            .filter(|r| r.leads())
            .all(|r| !r.descriptor.voters().any(|v| v.id != r.id && self.is_alive(v.node) && !self.peers[&v.node].beat.draining))
    }
}

/// Whether a node was heard of lately.
pub(super) fn is_alive(peers: &BTreeMap<NodeId, Peer>, node: NodeId, silent_ticks_max: usize) -> bool {
    peers.get(&node).is_some_and(|p| p.heard && p.silent_ticks < silent_ticks_max)
}

/// The replica, if it is a voter that follows closely and nothing is in the way.
fn can_take_over(replica: &super::replica::Replica, to: ReplicaId) -> Option<ReplicaId> {
    let raft = &replica.raw.raft;
    let progress = raft.prs().get(to.0)?;
    let follows = progress.state == ProgressState::Replicate
        && progress.recent_active
        && progress.matched + 64 > raft.raft_log.last_index();
    let votes = replica.descriptor.replica(to)?.role == Role::Voter;
    (follows && votes && replica.elections.transfer.is_none() && !raft.has_pending_conf()).then_some(to)
}
