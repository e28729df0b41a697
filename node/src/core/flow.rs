//! How many bytes are on their way to each follower. raft-rs counts messages alone, and a message may be small or large.
//!
//! A leader that lets too much leave at once fills the transport's outbox, which then drops frames: the follower refuses all that
//! comes behind the gap, and is sent the same again and again, just when there is most to send. So the messages that raft-rs may have
//! in flight to a follower are set anew after every pass, to what is in flight and as many more as there is room for.
//!
//! *Sent*: appends with entries, with their last index and bytes. *On result*: what the follower is known to hold is on its way no more;
//! nor is anything once raft-rs has lost count of it and probes. *On a heartbeat's answer* raft-rs sends one more, whatever is in flight,
//! since what is in flight may be lost. A follower whose disk stands still answers heartbeats all the same, and would be sent more with
//! each. So where there is no room it is let through only once nothing has been acknowledged for an election timeout, and from there on
//! ever more rarely. The same where raft-rs probes: until the follower has answered one message, raft-rs sends it again with each answer,
//! and with many reads there are thousands of those.
//!
//! *Giving up.* A follower that acknowledges nothing for long (its replica may have been set aside) is probed, so that what it has in flight
//! is no longer charged to its node.
//!
//! **Bounds.** To one follower of one group an eighth of `raft.max_inflight_bytes`; to one node, over all groups, half of it, and one
//! message of each group beyond. One message may always leave, however large, where none is in flight.

use super::config::CoreConfig;
use super::replica::Replica;
use super::{Node, Time};
use flotilla_router::sizes::COMMAND_BYTES_MAX;
use flotilla_router::{ReplicaId, ShardId};
use raft::eraftpb::{Message, MessageType};
use raft::{Progress, ProgressState};
use std::collections::{BTreeMap, VecDeque};

/// What is in flight from one leader.
#[derive(Default)]
pub(super) struct Flow {
    followers: BTreeMap<ReplicaId, InFlight>,
    /// Followers that were probed, the last that was sent to each, and for how long its answer is waited for.
    probes: BTreeMap<ReplicaId, Probe>,
}

/// A message that is to show how far a follower is.
struct Probe {
    /// Where it begins.
    next: u64,
    /// When it was sent.
    at: Time,
    /// For how long it is not sent again.
    wait: Time,
}

/// What is in flight to one follower: for each message its last index and its bytes, oldest first.
#[derive(Default)]
struct InFlight {
    messages: VecDeque<(u64, u64)>,
    bytes: u64,
    /// Of these, bytes that its node is not yet charged with.
    uncharged: u64,
    /// Whether there is room for no more.
    full: bool,
    /// The tick at which something was last acknowledged, or sent without room for it, and for how many ticks nothing more is.
    moved_at: u64,
    patience: u64,
    /// The tick at which something was last acknowledged, or the first of it was sent.
    acknowledged_at: u64,
}

/// As many times an election timeout what is in flight is waited for at most.
const PATIENCE_MAX: u64 = 8;

impl Flow {
    /// Whether something is in flight.
    pub(super) fn is_busy(&self) -> bool {
        !self.followers.is_empty()
    }

    /// A message leaves that is to show how far a follower is.
    pub(super) fn probed(&mut self, follower: ReplicaId, next: u64, now: Time) {
        let probe = self.probes.entry(follower).or_insert(Probe { next, at: now, wait: Time::ZERO });
        let wait = if probe.next == next { probe.wait } else { Time::ZERO };
        *probe = Probe { next, at: now, wait };
    }

    /// An append with entries up to `last` leaves.
    pub(super) fn sent(&mut self, to: ReplicaId, last: u64, bytes: u64) {
        let follower = self.followers.entry(to).or_default();
        follower.messages.push_back((last, bytes));
        follower.bytes += bytes;
        follower.uncharged += bytes;
    }
}

impl InFlight {
    /// Whether one more may be sent on a heartbeat's answer, to see whether what is in flight was lost.
    fn may_probe(&mut self, now: u64, election_ticks: u64) -> bool {
        if self.full && now < self.moved_at + self.patience {
            return false;
        }
        if self.full {
            self.moved_at = now;
            self.patience = (self.patience * 2).min(PATIENCE_MAX * election_ticks);
        }
        true
    }

    /// Something was acknowledged, or is the first that is in flight.
    fn moved(&mut self, now: u64, election_ticks: u64) {
        (self.moved_at, self.acknowledged_at, self.patience) = (now, now, election_ticks);
    }

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
    /// Gives up what is in flight to followers that have acknowledged nothing for long.
    pub(super) fn tick_flow(&mut self, shard: ShardId) {
        let (now, patience) = (self.ticks, PATIENCE_MAX * self.config.raft.election_ticks as u64);
        let Some(replica) = self.registry.get_mut(shard).filter(|replica| replica.leads()) else { return };
        let silent = |in_flight: &InFlight| now >= in_flight.acknowledged_at + patience;
        let given_up: Vec<_> = replica.flow.followers.iter().filter(|(_, f)| silent(f)).map(|(id, _)| id.0).collect();
        for id in &given_up {
            replica.raw.report_unreachable(*id);
        }
        if !given_up.is_empty() {
            self.touch(shard);
        }
    }

    /// Sees to it that raft-rs sends each follower of the group no more than there is room for, until the group is handled again.
    pub(super) fn bound_flow(&mut self, shard: ShardId) {
        let Some(replica) = self.registry.get_mut(shard) else { return };
        if !replica.flow.probes.is_empty() {
            let (leads, prs) = (replica.leads(), replica.raw.raft.prs());
            let probed = |id: &ReplicaId| leads && prs.get(id.0).is_some_and(|p| p.state == ProgressState::Probe);
            replica.flow.probes.retain(|id, _| probed(id));
        }
        if replica.flow.followers.is_empty() {
            return;
        }
        let leads = replica.leads();
        let (now, election_ticks) = (self.ticks, self.config.raft.election_ticks as u64);
        let (message, most) = (self.config.append_bytes_max(), self.config.raft.max_inflight_msgs);
        for (id, in_flight) in &mut replica.flow.followers {
            let progress = replica.raw.raft.mut_prs().get_mut(id.0);
            let freed = match &progress {
                Some(p) if leads && p.state == ProgressState::Replicate => in_flight.settle(p.matched, p.next_idx),
                _ => in_flight.settle(u64::MAX, 0),
            };
            if freed > 0 || in_flight.patience == 0 {
                in_flight.moved(now, election_ticks);
            }
            let node = replica.descriptor.replica(*id).and_then(|r| self.peers.get_mut(&r.node));
            let to_node = node.map_or(0, |peer| {
                let charged = peer.in_flight_bytes + std::mem::take(&mut in_flight.uncharged);
                peer.in_flight_bytes = charged.saturating_sub(freed);
                peer.in_flight_bytes
            });
            let room = (self.config.raft.max_inflight_bytes / 2).saturating_sub(to_node);
            let room = room.min(self.config.flow_bytes_max().saturating_sub(in_flight.bytes)) / message;
            let room = usize::try_from(room).unwrap_or(usize::MAX);
            in_flight.full = room == 0 && !in_flight.messages.is_empty();
            if let Some(progress) = progress {
                let least = if in_flight.full { 0 } else { 1 };
                let cap = progress.ins.count().saturating_add(room).clamp(least, most);
                progress.ins.set_cap(cap);
            }
        }
        replica.flow.followers.retain(|_, in_flight| !in_flight.messages.is_empty());
    }
}

impl Replica {
    /// Steps a message of a peer. raft-rs sends a follower one message more for each answer to a heartbeat: here it is seen to that it does
    /// so only where there is room, or reason.
    pub(super) fn step_with_flow(
        &mut self,
        message: Message,
        (now, ticks): (Time, u64),
        config: &CoreConfig,
    ) -> raft::Result<()> {
        let (from, kind) = (ReplicaId(message.from), message.get_msg_type());
        let probes = self.is_probed(from);
        match kind {
            MessageType::MsgHeartbeatResponse if probes => return self.step_while_probing(from, message, now, config),
            MessageType::MsgHeartbeatResponse => self.before_heartbeat_answer(from, ticks, config),
            // What it acknowledges makes room for one message, and no more: raft-rs sends until there is none.
            MessageType::MsgAppendResponse if !message.reject && message.term == self.raw.raft.term => {
                let is_full = self.flow.followers.get(&from).is_some_and(|in_flight| in_flight.full);
                let progress = self.raw.raft.mut_prs().get_mut(from.0).filter(|_| is_full);
                let in_order = |p: &&mut Progress| p.state == ProgressState::Replicate && message.index > p.matched;
                if let Some(progress) = progress.filter(in_order) {
                    progress.ins.free_to(message.index);
                    let count = progress.ins.count();
                    progress.ins.set_cap(count + 1);
                }
            }
            _ => {}
        }
        self.raw.step(message)
    }

    /// Whether raft-rs does not know how far a follower is, and waits for its answer to one message.
    fn is_probed(&mut self, follower: ReplicaId) -> bool {
        self.leads() && self.raw.raft.prs().get(follower.0).is_some_and(|p| p.state == ProgressState::Probe && p.paused)
    }

    /// The same for a follower that is being probed.
    fn step_while_probing(&mut self, from: ReplicaId, message: Message, now: Time, config: &CoreConfig) -> raft::Result<()> {
        let next = self.raw.raft.prs().get(from.0).map_or(0, |progress| progress.next_idx);
        let heartbeat = config.tick() * u32::try_from(config.raft.heartbeat_ticks).unwrap_or(u32::MAX);
        let (least, most) = (heartbeat * 9 / 10, config.election_timeout());
        let sent = self.flow.probes.get(&from).filter(|probe| probe.next == next);
        let (at, wait) = sent.map_or((Time::ZERO, Time::ZERO), |probe| (probe.at, probe.wait.max(least)));
        if now >= at + wait {
            self.flow.probes.insert(from, Probe { next, at: now, wait: (wait * 2).clamp(least, most.max(least)) });
            return self.raw.step(message);
        }
        let (before, wanted) = (std::mem::take(&mut self.raw.raft.msgs), self.raw.store().wanted());
        let result = self.raw.step(message);
        self.raw.mut_store().forget_wanted(wanted);
        let again = |message: &Message| message.get_msg_type() == MessageType::MsgAppend && message.to == from.0;
        let stepped = std::mem::replace(&mut self.raw.raft.msgs, before);
        self.raw.raft.msgs.extend(stepped.into_iter().filter(|message| !again(message)));
        if let Some(progress) = self.raw.raft.mut_prs().get_mut(from.0).filter(|p| p.state == ProgressState::Probe) {
            progress.pause();
        }
        result
    }

    /// A follower answers a heartbeat, and raft-rs is about to hear of it: it forgets the oldest message that is in flight, if it may have
    /// no more, and sends another one.
    fn before_heartbeat_answer(&mut self, from: ReplicaId, now: u64, config: &CoreConfig) {
        let Some(in_flight) = self.flow.followers.get_mut(&from).filter(|in_flight| in_flight.full) else { return };
        let may_probe = in_flight.may_probe(now, config.raft.election_ticks as u64);
        let progress = self.raw.raft.mut_prs().get_mut(from.0);
        if let Some(progress) = progress.filter(|progress| progress.state == ProgressState::Replicate) {
            let count = progress.ins.count();
            progress.ins.set_cap(if may_probe { count + 1 } else { count.saturating_sub(1) });
        }
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
    fn a_follower_that_acknowledges_nothing_is_probed_ever_more_rarely() {
        let mut in_flight = InFlight { full: true, ..InFlight::default() };
        in_flight.moved(100, 12);
        let probes = |in_flight: &mut InFlight, ticks: std::ops::Range<u64>| -> Vec<u64> {
            ticks.filter(|tick| in_flight.may_probe(*tick, 12)).collect()
        };
        assert_eq!(probes(&mut in_flight, 100..500), [112, 136, 184, 280, 376, 472]);
        in_flight.moved(500, 12);
        assert_eq!(probes(&mut in_flight, 500..520), [512]);
        in_flight.full = false;
        assert_eq!(probes(&mut in_flight, 520..523), [520, 521, 522]);
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
