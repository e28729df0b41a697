//! How many bytes are on their way to each follower. raft-rs counts messages alone, and a message may be small or large.
//!
//! A leader that lets too much leave at once fills the transport's outbox, which then drops frames: the follower refuses all that
//! comes behind the gap, and is sent the same again and again, just when there is most to send. So the messages that raft-rs may have
//! in flight to a follower are set anew after every pass, to what is in flight and as many more as there is room for.
//!
//! *Sent*: appends with entries, with their last index and bytes. *On result*: what the follower is known to hold is on its way no more;
//! nor is anything once raft-rs has lost count of it and probes.
//!
//! **Bounds.** To one follower of one group an eighth of `raft.max_inflight_bytes`; to one node, over all groups, half of it, and one
//! message of each group beyond. One message may always leave, however large.

use super::Node;
use super::config::CoreConfig;
use flotilla_router::sizes::COMMAND_BYTES_MAX;
use flotilla_router::{ReplicaId, ShardId};
use raft::ProgressState;
use std::collections::{BTreeMap, VecDeque};

/// What is in flight from one leader.
#[derive(Default)]
pub(super) struct Flow {
    followers: BTreeMap<ReplicaId, InFlight>,
}

/// What is in flight to one follower: for each message its last index and its bytes, oldest first.
#[derive(Default)]
struct InFlight {
    messages: VecDeque<(u64, u64)>,
    bytes: u64,
    /// Of these, bytes that its node is not yet charged with.
    uncharged: u64,
}

impl Flow {
    /// An append with entries up to `last` leaves.
    pub(super) fn sent(&mut self, to: ReplicaId, last: u64, bytes: u64) {
        let follower = self.followers.entry(to).or_default();
        follower.messages.push_back((last, bytes));
        follower.bytes += bytes;
        follower.uncharged += bytes;
    }
}

impl InFlight {
    /// The follower holds everything up to `matched`, and nothing from `next` on was sent; how many bytes that frees.
    fn settle(&mut self, matched: u64, next: u64) -> u64 {
        let before = self.bytes;
        while let Some((_, bytes)) = self.messages.pop_front_if(|(last, _)| *last <= matched) {
            self.bytes -= bytes;
        }
        while let Some((_, bytes)) = self.messages.pop_back_if(|(last, _)| *last >= next) {
            self.bytes -= bytes;
        }
        before - self.bytes
    }
}

impl CoreConfig {
    /// What may be on its way to one follower of one group.
    fn flow_bytes_max(&self) -> u64 {
        self.raft.max_inflight_bytes / 8
    }

    /// What one append may have at most.
    fn append_bytes_max(&self) -> u64 {
        let command = (COMMAND_BYTES_MAX as u64).min(self.frame_bytes_max as u64 / 2);
        self.raft.max_size_per_msg_bytes.max(self.raft.max_entry_size_bytes).max(command)
    }

    /// How many messages may be in flight to a follower to which none is.
    pub(super) fn inflight_msgs_at_first(&self) -> usize {
        let room = usize::try_from(self.flow_bytes_max() / self.append_bytes_max()).unwrap_or(usize::MAX);
        room.clamp(1, self.raft.max_inflight_msgs)
    }
}

impl Node {
    /// Sees to it that raft-rs sends each follower of the group no more than there is room for, until the group is handled again.
    pub(super) fn bound_flow(&mut self, shard: ShardId) {
        let Some(replica) = self.registry.get_mut(shard) else { return };
        if replica.flow.followers.is_empty() {
            return;
        }
        let leads = replica.leads();
        let (message, most) = (self.config.append_bytes_max(), self.config.raft.max_inflight_msgs);
        for (id, in_flight) in &mut replica.flow.followers {
            let progress = replica.raw.raft.mut_prs().get_mut(id.0);
            let freed = match &progress {
                Some(p) if leads && p.state == ProgressState::Replicate => in_flight.settle(p.matched, p.next_idx),
                _ => in_flight.settle(u64::MAX, 0),
            };
            let node = replica.descriptor.replica(*id).and_then(|r| self.peers.get_mut(&r.node));
            let to_node = node.map_or(0, |peer| {
                let charged = peer.in_flight_bytes + std::mem::take(&mut in_flight.uncharged);
                peer.in_flight_bytes = charged.saturating_sub(freed);
                peer.in_flight_bytes
            });
            let room = (self.config.raft.max_inflight_bytes / 2).saturating_sub(to_node);
            let room = room.min(self.config.flow_bytes_max().saturating_sub(in_flight.bytes)) / message;
            let room = usize::try_from(room).unwrap_or(usize::MAX);
            if let Some(progress) = progress {
                let cap = progress.ins.count().saturating_add(room).clamp(1, most);
                progress.ins.set_cap(cap);
            }
        }
        replica.flow.followers.retain(|_, in_flight| !in_flight.messages.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_acknowledged_or_taken_back_is_in_flight_no_more() {
        let mut flow = Flow::default();
        let to = ReplicaId(22);
        [(10, 100), (20, 200), (30, 300)].into_iter().for_each(|(last, bytes)| flow.sent(to, last, bytes));
        let in_flight = flow.followers.get_mut(&to).unwrap();
        assert_eq!((in_flight.settle(9, 31), in_flight.bytes), (0, 600));
        assert_eq!((in_flight.settle(20, 31), in_flight.bytes), (300, 300));
        assert_eq!((in_flight.settle(20, 21), in_flight.bytes), (300, 0));
    }

    #[test]
    fn however_small_the_room_one_message_may_leave() {
        let mut config = CoreConfig::default();
        assert_eq!(config.inflight_msgs_at_first(), 7);
        config.raft.max_size_per_msg_bytes = 8 << 20;
        assert_eq!(config.inflight_msgs_at_first(), 1);
        config.raft.max_inflight_bytes = 1 << 50;
        assert_eq!(config.inflight_msgs_at_first(), config.raft.max_inflight_msgs);
    }
}
