//! How many bytes are on their way to each follower. raft-rs counts messages alone, and a message
//! may be small or large.
//!
//! A leader that lets too much leave at once fills the transport's outbox, which then drops frames:
//! the follower refuses all that comes behind the gap, and is sent the same again and again, just
//! when there is most to send. So the messages that raft-rs may have in flight to a follower are
//! set anew after every pass, to what is in flight and as many more as there is room for.
//!
//! *Sent*: appends with entries, with their last index and bytes. *On result*: what the follower is
//! known to hold is on its way no more; nor is anything once raft-rs has lost count of it and
//! probes. *On a heartbeat's answer* raft-rs sends one more, whatever is in flight, since what is
//! in flight may be lost. A follower whose disk stands still answers heartbeats all the same, and
//! would be sent more with each. So where there is no room it is let through only once nothing has
//! been acknowledged for an election timeout, and from there on ever more rarely. The same where
//! raft-rs probes: until the follower has answered one message, raft-rs sends it again with each
//! answer, and with many reads there are thousands of those.
//!
//! *Giving up.* A follower that acknowledges nothing for long (its replica may have been
//! quarantined) is probed, so that what it has in flight is no longer charged to its node.
//!
//! **Bounds.** To one follower of one group an eighth of `raft.inflight_bytes_max`; to one node,
//! over all groups, half of it, and one message of each group beyond. One message may always leave,
//! however large, where none is in flight.

use super::{Changes, Operation, RoleChange};
use crate::core::context::Context;
use crate::core::group::Group;
use crate::core::group::log::entry_bytes;
use crate::core::time::Time;
use flotilla_router::{NodeId, ReplicaId};
use raft::eraftpb::{Message, MessageType};
use raft::{Progress, ProgressState};
use std::collections::{BTreeMap, VecDeque};

/// What is in flight from one leader.
#[derive(Default)]
pub(crate) struct Flow {
    followers: BTreeMap<ReplicaId, InFlight>,
    /// Followers that were probed, the last that was sent to each, and for how long its answer is
    /// waited for.
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
    /// The node that is charged: it stays so when the follower is a member no more.
    node: Option<NodeId>,
    /// Whether there is room for no more.
    full: bool,
    /// The tick at which something was last acknowledged, or sent without room for it, and for how
    /// many ticks nothing more is.
    moved_at: u64,
    patience: u64,
    /// The tick at which something was last acknowledged, or the first of it was sent.
    acknowledged_at: u64,
}

/// As many times an election timeout what is in flight is waited for at most.
const PATIENCE_MAX: u64 = 8;

impl Flow {
    /// An append leaves for a follower.
    pub(crate) fn sent(&mut self, to: ReplicaId, message: &Message, group: &Group, now: Time) {
        let progress = group.raw.raft.prs().get(to.0);
        if let Some(progress) = progress.filter(|progress| progress.state == ProgressState::Probe) {
            self.probed(to, progress.next_idx, now);
        }
        if let Some(last) = message.entries.last() {
            self.entries_sent(to, last.index, message.entries.iter().map(entry_bytes).sum());
        }
    }

    /// A message leaves that is to show how far a follower is.
    fn probed(&mut self, follower: ReplicaId, next: u64, now: Time) {
        let probe =
            self.probes.entry(follower).or_insert(Probe { next, at: now, wait: Time::ZERO });
        let wait = if probe.next == next { probe.wait } else { Time::ZERO };
        *probe = Probe { next, at: now, wait };
    }

    /// An append with entries up to `last` leaves.
    fn entries_sent(&mut self, to: ReplicaId, last: u64, bytes: u64) {
        let follower = self.followers.entry(to).or_default();
        follower.messages.push_back((last, bytes));
        follower.bytes += bytes;
        follower.uncharged += bytes;
    }
}

impl InFlight {
    /// Whether one more may be sent on a heartbeat's answer, to see whether what is in flight was
    /// lost.
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

    /// The follower holds everything up to `matched`, and nothing from `next` on was sent; how many
    /// bytes that frees.
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

impl Flow {
    /// Sees to it that raft-rs sends each follower of the group no more than there is room for,
    /// until the group is handled again.
    pub(crate) fn bound(&mut self, group: &mut Group, ctx: &mut Context<'_>) {
        let leads = group.leads();
        if !self.probes.is_empty() {
            let prs = group.raw.raft.prs();
            let probed = |id: &ReplicaId| {
                leads && prs.get(id.0).is_some_and(|p| p.state == ProgressState::Probe)
            };
            self.probes.retain(|id, _| probed(id));
        }
        if self.followers.is_empty() {
            return;
        }
        let (now, election_ticks) = (ctx.ticks, ctx.config.raft.election_ticks as u64);
        let (message, most) =
            (ctx.config.append_bytes_max(), ctx.config.raft.inflight_messages_max);
        for (id, in_flight) in &mut self.followers {
            in_flight.node = in_flight.node.or_else(|| group.node_of(*id));
            let progress = group.raw.raft.mut_prs().get_mut(id.0);
            let freed = match &progress {
                Some(p) if leads && p.state == ProgressState::Replicate => {
                    in_flight.settle(p.matched, p.next_idx)
                }
                _ => in_flight.settle(u64::MAX, 0),
            };
            if freed > 0 || in_flight.patience == 0 {
                in_flight.moved(now, election_ticks);
            }
            let to_node = in_flight.node.map_or(0, |node| {
                ctx.budgets.charge(node, std::mem::take(&mut in_flight.uncharged), freed)
            });
            let room = (ctx.config.raft.inflight_bytes_max / 2).saturating_sub(to_node);
            let room =
                room.min(ctx.config.flow_bytes_max().saturating_sub(in_flight.bytes)) / message;
            let room = usize::try_from(room).unwrap_or(usize::MAX);
            in_flight.full = room == 0 && !in_flight.messages.is_empty();
            if let Some(progress) = progress {
                let least = if in_flight.full { 0 } else { 1 };
                let cap = progress.ins.count().saturating_add(room).clamp(least, most);
                progress.ins.set_cap(cap);
            }
        }
        self.followers.retain(|_, in_flight| !in_flight.messages.is_empty());
    }

    /// Steps a message of a peer. raft-rs sends a follower one message more for each answer to a
    /// heartbeat: here it is seen to that it does so only where there is room, or reason.
    pub(crate) fn step(
        &mut self,
        message: Message,
        group: &mut Group,
        ctx: &Context<'_>,
    ) -> raft::Result<()> {
        let (from, kind) = (ReplicaId(message.from), message.get_msg_type());
        match kind {
            MessageType::MsgHeartbeatResponse if is_probed(group, from) => {
                return self.step_while_probing(from, message, group, ctx);
            }
            MessageType::MsgHeartbeatResponse => self.before_heartbeat_answer(from, group, ctx),
            // What it acknowledges makes room for one message, and no more: raft-rs sends until
            // there is none.
            MessageType::MsgAppendResponse
                if !message.reject && message.term == group.raw.raft.term =>
            {
                let is_full = self.followers.get(&from).is_some_and(|in_flight| in_flight.full);
                let progress = group.raw.raft.mut_prs().get_mut(from.0).filter(|_| is_full);
                let in_order = |p: &&mut Progress| {
                    p.state == ProgressState::Replicate && message.index > p.matched
                };
                if let Some(progress) = progress.filter(in_order) {
                    progress.ins.free_to(message.index);
                    let count = progress.ins.count();
                    progress.ins.set_cap(count + 1);
                }
            }
            _ => {}
        }
        group.step(message, ctx.config)
    }

    /// The same for a follower that is being probed.
    fn step_while_probing(
        &mut self,
        from: ReplicaId,
        message: Message,
        group: &mut Group,
        ctx: &Context<'_>,
    ) -> raft::Result<()> {
        let (now, config) = (ctx.now, ctx.config);
        let next = group.raw.raft.prs().get(from.0).map_or(0, |progress| progress.next_idx);
        let heartbeat =
            config.tick() * u32::try_from(config.raft.heartbeat_ticks).unwrap_or(u32::MAX);
        let (least, most) = (heartbeat * 9 / 10, config.election_timeout());
        let sent = self.probes.get(&from).filter(|probe| probe.next == next);
        let (at, wait) =
            sent.map_or((Time::ZERO, Time::ZERO), |probe| (probe.at, probe.wait.max(least)));
        if now >= at + wait {
            let wait = (wait * 2).clamp(least, most.max(least));
            self.probes.insert(from, Probe { next, at: now, wait });
            return group.step(message, config);
        }
        let (before, wanted) =
            (std::mem::take(&mut group.raw.raft.msgs), group.raw.store().wanted());
        let result = group.step(message, config);
        group.raw.mut_store().forget_wanted(wanted);
        let again = |message: &Message| {
            message.get_msg_type() == MessageType::MsgAppend && message.to == from.0
        };
        let stepped = std::mem::replace(&mut group.raw.raft.msgs, before);
        group.raw.raft.msgs.extend(stepped.into_iter().filter(|message| !again(message)));
        if let Some(progress) =
            group.raw.raft.mut_prs().get_mut(from.0).filter(|p| p.state == ProgressState::Probe)
        {
            progress.pause();
        }
        result
    }

    /// A follower answers a heartbeat, and raft-rs is about to hear of it: it forgets the oldest
    /// message that is in flight, if it may have no more, and sends another one.
    fn before_heartbeat_answer(&mut self, from: ReplicaId, group: &mut Group, ctx: &Context<'_>) {
        let Some(in_flight) = self.followers.get_mut(&from).filter(|in_flight| in_flight.full)
        else {
            return;
        };
        let may_probe = in_flight.may_probe(ctx.ticks, ctx.config.raft.election_ticks as u64);
        let progress = group.raw.raft.mut_prs().get_mut(from.0);
        if let Some(progress) =
            progress.filter(|progress| progress.state == ProgressState::Replicate)
        {
            let count = progress.ins.count();
            progress.ins.set_cap(if may_probe { count + 1 } else { count.saturating_sub(1) });
        }
    }
}

/// Whether raft-rs does not know how far a follower is, and waits for its answer to one message.
fn is_probed(group: &Group, follower: ReplicaId) -> bool {
    let progress = group.raw.raft.prs().get(follower.0);
    group.leads() && progress.is_some_and(|p| p.state == ProgressState::Probe && p.paused)
}

impl Operation for Flow {
    fn on_applied(&mut self, _: &mut Group, _: &mut Context<'_>, _: &mut Changes) {}

    fn on_role(&mut self, _: &mut Group, _: &mut Context<'_>, _: RoleChange) {
        // What was on its way from a leader that is none any more is settled when the group comes
        // to rest.
    }

    /// Gives up what is in flight to followers that have acknowledged nothing for long.
    fn on_tick(&mut self, group: &mut Group, ctx: &mut Context<'_>) {
        if !group.leads() {
            return;
        }
        let patience = PATIENCE_MAX * ctx.config.raft.election_ticks as u64;
        for (id, in_flight) in &self.followers {
            if ctx.ticks >= in_flight.acknowledged_at + patience {
                group.raw.report_unreachable(id.0);
                ctx.pass.touch(group.shard);
            }
        }
    }

    fn end(&mut self, group: &mut Group, ctx: &mut Context<'_>) {
        self.bound(group, ctx);
    }

    fn is_idle(&self) -> bool {
        self.followers.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::config::CoreConfig;

    #[test]
    fn what_is_acknowledged_or_taken_back_is_in_flight_no_more() {
        let mut flow = Flow::default();
        let to = ReplicaId(22);
        [(10, 100), (20, 200), (30, 300)]
            .into_iter()
            .for_each(|(last, bytes)| flow.entries_sent(to, last, bytes));
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
        config.raft.message_bytes_max = 8 << 20;
        assert_eq!(config.inflight_msgs_at_first(), 1);
        config.raft.inflight_bytes_max = 1 << 50;
        assert_eq!(config.inflight_msgs_at_first(), config.raft.inflight_messages_max);
    }
}
