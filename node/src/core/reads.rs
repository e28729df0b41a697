//! Reads: linearizable by a quorum, or by the leader's lease; or stale, from any replica.
//!
//! **Linearizable** (thesis §6.4). *Propose*: all reads of a shard that wait when the pass ends share one context, which the
//! leader's heartbeats carry. *On result*: a quorum has answered, so no other leader had committed anything when the context
//! was sent; the reads wait until the index of that moment is applied, and look. A read joins only a context that is **not
//! yet sent**. Contexts are (incarnation, counter) and never used twice: raft-rs keys what is pending by the context, and an
//! answer to an older use would confirm a newer read on a leader that was deposed in between.
//!
//! A context stays on its way until it is confirmed or leadership is gone: every heartbeat carries the youngest one again, and its
//! confirmation confirms those before it. So a quorum may be as far away as an election timeout. (Contexts that were called lost
//! after a heartbeat interval, and replaced, could never be confirmed from further away than that.)
//!
//! **Lease** (thesis §6.4.1). A confirmed context proves that a quorum heard this leader at, or after, the time when it was
//! sent; each of them stands by it for an election timeout of its own clock ([`super::elections`]). Until then, less a drift bound,
//! no other leader can exist. Void while and after handing over in the same term, and on stepping down. Never raft-rs's own lease
//! mode. The clock is read after the read was taken in: a process that then stands still answers late, not wrongly.
//!
//! **Stale**. At once, by any replica, with its applied index and its age ([`super::freshness`]); not while a snapshot is being
//! installed, when there is nothing whole to be seen.

use super::effect::Effect;
use super::event::Ticket;
use super::{Node, Time};
use flotilla_router::call::Staleness;
use flotilla_router::mutation::Mutation;
use flotilla_router::{Consistency, Refusal, ShardId};
use raft::StateRole;
use std::collections::VecDeque;

/// Contexts of one shard that are sent one right after the other. Further reads gather until one comes back, or a heartbeat interval
/// has passed since the last was sent.
const CONTEXTS_MAX: usize = 2;
/// Contexts of one shard that may be on their way at all.
const CONTEXTS_FAR_MAX: usize = 64;

/// The reads of one shard.
#[derive(Default)]
pub(super) struct Reads {
    /// Reads whose context is not yet sent.
    waiting: Vec<(Ticket, Time)>,
    /// Contexts on their way, oldest first.
    sent: VecDeque<Sent>,
    /// Confirmed reads that wait for an index to be applied.
    confirmed: Vec<(u64, Vec<(Ticket, Time)>)>,
    /// Until when this leader may answer alone.
    lease_until: Option<Time>,
}

/// A context on its way.
struct Sent {
    context: [u8; 16],
    /// Who joined, and until when they wait.
    reads: Vec<(Ticket, Time)>,
    /// When it was first sent.
    at: Time,
    /// Ticks since then.
    ticks: usize,
}

impl Reads {
    /// Whether no read waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.sent.is_empty() && self.confirmed.is_empty()
    }

    /// Whether reads wait for a context that may be sent now.
    fn wants_context(&self, heartbeat_ticks: usize) -> bool {
        let far = |sent: &Sent| sent.ticks >= heartbeat_ticks && self.sent.len() < CONTEXTS_FAR_MAX;
        !self.waiting.is_empty() && (self.sent.len() < CONTEXTS_MAX || self.sent.back().is_some_and(far))
    }

    /// Contexts that raft-rs does not know any more will not be confirmed: their reads wait for another.
    fn take_back(&mut self) {
        let lost: Vec<_> = self.sent.drain(..).flat_map(|s| s.reads).collect();
        self.waiting.splice(..0, lost);
    }

    /// A quorum has confirmed a context, and with it all that were sent before.
    pub(super) fn confirm(&mut self, context: &[u8], index: u64, lease: Option<Time>) {
        let Some(place) = self.sent.iter().position(|s| s.context == context) else { return };
        for sent in self.sent.drain(..=place) {
            if let Some(lease) = lease {
                self.lease_until = self.lease_until.max(Some(sent.at + lease));
            }
            if !sent.reads.is_empty() {
                self.confirmed.push((index, sent.reads));
            }
        }
    }

    /// No lease from here on.
    pub(super) fn void_lease(&mut self) {
        self.lease_until = None;
    }

    /// Whether a lease holds at `now`.
    fn lease_holds(&self, now: Time) -> bool {
        self.lease_until.is_some_and(|until| now < until || Mutation::LeaseWithoutClock.is_on())
    }

    /// Leadership is gone: takes the reads that were not confirmed. Those that were may still look.
    pub(super) fn stop_leading(&mut self) -> Vec<Ticket> {
        self.void_lease();
        let sent = self.sent.drain(..).flat_map(|s| s.reads);
        self.waiting.drain(..).chain(sent).map(|(ticket, _)| ticket).collect()
    }

    /// Takes every read.
    pub(super) fn take_all(&mut self) -> Vec<Ticket> {
        let mut tickets = self.stop_leading();
        tickets.extend(self.confirmed.drain(..).flat_map(|(_, reads)| reads).map(|(ticket, _)| ticket));
        tickets
    }

    fn take_expired(&mut self, now: Time) -> Vec<Ticket> {
        let mut expired = Vec::new();
        let mut keep = |reads: &mut Vec<(Ticket, Time)>| {
            reads.retain(|(ticket, deadline)| {
                let up = *deadline <= now;
                if up {
                    expired.push(*ticket);
                }
                !up
            });
        };
        keep(&mut self.waiting);
        self.sent.iter_mut().for_each(|s| keep(&mut s.reads));
        self.confirmed.iter_mut().for_each(|(_, reads)| keep(reads));
        self.confirmed.retain(|(_, reads)| !reads.is_empty());
        expired
    }
}

impl Node {
    /// A client's read: served at once, refused, or in line.
    pub(super) fn read(&mut self, ticket: Ticket, shard: ShardId, consistency: Consistency, deadline: Time) {
        let refusal = match (self.registry.get_mut(shard), consistency) {
            (None, _) => Refusal::NotHosted { shard },
            (Some(replica), _) if replica.quarantined.is_some() => Refusal::NotHosted { shard },
            // Its keys are gone, and those of the snapshot are not there yet: another replica can answer.
            (Some(replica), Consistency::Stale { .. })
                if replica.snapshots.is_installing() && !Mutation::ReadDuringInstall.is_on() =>
            {
                Refusal::NotHosted { shard }
            }
            (Some(_), Consistency::Stale { age_max }) => return self.stale_read(ticket, shard, age_max),
            (Some(replica), _) if !replica.leads() => Refusal::NotLeader { shard, leader: replica.leader_node() },
            (Some(replica), Consistency::Lease) if replica.reads.lease_holds(self.now) => {
                // The lease proves that all that is committed anywhere is committed here.
                let index = replica.raw.raft.raft_log.committed;
                replica.reads.confirmed.push((index, vec![(ticket, deadline)]));
                self.counters.lease_reads += 1;
                return self.touch(shard);
            }
            (Some(replica), _) => {
                self.counters.lease_reads_refused += u64::from(consistency == Consistency::Lease);
                replica.reads.waiting.push((ticket, deadline));
                return self.touch(shard);
            }
        };
        self.outbox.effects.push(Effect::Reply { ticket, shard, result: Err(refusal) });
    }

    fn stale_read(&mut self, ticket: Ticket, shard: ShardId, age_max: Option<Time>) {
        let now = self.now;
        let replica = self.registry.get_mut(shard).expect("the caller has looked");
        let age = replica.age(now);
        let staleness = Some(Staleness { applied: replica.applied.index, age });
        let descriptor = replica.descriptor.clone();
        let effect = if age_max.is_some_and(|max| age.is_none_or(|age| age > max)) {
            Effect::Reply { ticket, shard, result: Err(Refusal::TooStale { shard }) }
        } else {
            Effect::Read { tickets: vec![ticket], descriptor, staleness }
        };
        self.outbox.effects.push(effect);
    }

    /// Sends one context for all reads of the shard that wait.
    pub(super) fn send_read_contexts(&mut self, shard: ShardId) {
        let (incarnation, now) = (self.identity.incarnation, self.now);
        let heartbeat_ticks = self.config.raft.heartbeat_ticks;
        let Some(replica) = self.registry.get_mut(shard) else { return };
        let raft = &replica.raw.raft;
        // Before its first commit of its term a leader does not know what is committed; raft-rs would drop the context.
        if !replica.reads.wants_context(heartbeat_ticks) || raft.state != StateRole::Leader || !raft.commit_to_current_term() {
            return;
        }
        let mut context = [0; 16];
        context[..8].copy_from_slice(&incarnation.0.to_be_bytes());
        context[8..].copy_from_slice(&self.next_read.to_be_bytes());
        self.next_read += u64::from(!Mutation::ReusedReadContext.is_on());
        self.counters.read_contexts += 1;
        let reads = std::mem::take(&mut replica.reads.waiting);
        self.counters.context_reads += reads.len() as u64;
        replica.reads.sent.push_back(Sent { context, reads, at: now, ticks: 0 });
        replica.raw.read_index(context.to_vec());
    }

    /// Lets confirmed reads look, whose index is applied.
    pub(super) fn serve_confirmed_reads(&mut self, shard: ShardId) {
        let lease_holds = self.config.lease();
        let heartbeat_ticks = self.config.raft.heartbeat_ticks;
        let Some(replica) = self.registry.get_mut(shard) else { return };
        if replica.snapshots.is_installing() {
            // What was confirmed while it led is in the snapshot, too; but not before all of that is there.
            return;
        }
        let transferred = replica.elections.transferred_in_term == replica.raw.raft.term;
        if lease_holds.is_none() || transferred && !Mutation::LeaseKeptInTransfer.is_on() {
            replica.reads.void_lease();
        }
        let applied = replica.applied.index;
        let mut tickets = Vec::new();
        replica.reads.confirmed.retain_mut(|(index, reads)| {
            let ready = *index <= applied || Mutation::ReadBeforeApplied.is_on();
            if ready {
                tickets.extend(reads.drain(..).map(|(ticket, _)| ticket));
            }
            !ready
        });
        // A context that came back made room for the reads that gathered meanwhile: they need not wait for a tick.
        if replica.reads.wants_context(heartbeat_ticks) && replica.leads() && replica.raw.raft.commit_to_current_term() {
            self.dirty.insert(shard);
        }
        if !tickets.is_empty() {
            let descriptor = replica.descriptor.clone();
            self.outbox.effects.push(Effect::Read { tickets, descriptor, staleness: None });
        }
    }

    /// Answers reads whose time is up, and lets those that gathered behind far contexts have one of their own.
    pub(super) fn tick_reads(&mut self, shard: ShardId) {
        let heartbeat_ticks = self.config.raft.heartbeat_ticks;
        let Some(replica) = self.registry.get_mut(shard) else { return };
        for ticket in replica.reads.take_expired(self.now) {
            self.outbox.effects.push(Effect::Reply { ticket, shard, result: Err(Refusal::Expired { shard }) });
        }
        replica.reads.sent.iter_mut().for_each(|s| s.ticks += 1);
        let raft = &replica.raw.raft;
        let forgotten = raft.pending_read_count() == 0 && raft.ready_read_count() == 0;
        let given_up = replica.reads.sent.front().is_some_and(|s| s.ticks >= heartbeat_ticks);
        if forgotten || given_up && Mutation::YoungContextsDropped.is_on() {
            replica.reads.take_back();
        }
        if replica.reads.wants_context(heartbeat_ticks) {
            self.touch(shard);
        }
    }
}
