//! Reads: linearizable by a quorum, or by the leader's lease; or stale, from any replica.
//!
//! **Linearizable** (thesis §6.4). *Propose*: all reads of a shard that wait when the pass ends share one context, which the
//! leader's heartbeats carry. *On result*: a quorum has answered, so no other leader had committed anything when the context
//! was sent; the reads wait until the index of that moment is applied, and look. A read joins only a context that is **not
//! yet sent**. Contexts are (incarnation, counter) and never used twice: raft-rs keys what is pending by the context, and an
//! answer to an older use would confirm a newer read on a leader that was deposed in between.
//!
//! **Lease** (thesis §6.4.1). A confirmed context proves that a quorum heard this leader at, or after, the time when it was
//! sent; each of them stands by it for an election timeout of its own clock. Until then, less a drift bound, no other leader
//! can exist. Void while and after handing over in the same term, and on stepping down. Never raft-rs's own lease mode.
//!
//! **Stale**. At once, with the applied index, and the time since the replica knew that it had applied all that was committed.

use super::effect::Effect;
use super::event::Ticket;
use super::replica::Replica;
use super::wire::Envelope;
use super::{Node, Time};
use flotilla_router::call::Staleness;
use flotilla_router::mutation::Mutation;
use flotilla_router::{Consistency, Refusal, ReplicaId, ShardId};
use raft::StateRole;
use raft::eraftpb::MessageType;
use std::collections::{BTreeMap, VecDeque};

/// Contexts of one shard that may be on their way at once. Reads gather while they are.
const CONTEXTS_MAX: usize = 2;

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
    /// When the replica last knew that it had applied all that was committed.
    fresh_at: Option<Time>,
    /// A committed index that the leader named, and when, which is not applied yet.
    catching_up: Option<(u64, Time)>,
    /// On the leader: when each follower last answered in this term.
    heard: BTreeMap<ReplicaId, Time>,
}

struct Sent {
    context: [u8; 16],
    reads: Vec<(Ticket, Time)>,
    at: Time,
    ticks: usize,
}

impl Reads {
    /// Whether no read waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.sent.is_empty() && self.confirmed.is_empty()
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
        self.heard.clear();
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

impl Replica {
    /// When a quorum was last heard by this leader, itself included.
    fn heard_by_quorum_at(&self, now: Time) -> Option<Time> {
        let at = |id| if id == self.id { Some(now) } else { self.reads.heard.get(&id).copied() };
        let mut times: Vec<_> = self.descriptor.voters().map(|v| at(v.id)).collect();
        times.sort();
        // With n voters, n / 2 + 1 of them were heard at or after the one at this place.
        times.get(times.len().checked_sub(times.len() / 2 + 1)?).copied().flatten()
    }
}

impl Node {
    /// A client's read: served at once, refused, or in line.
    pub(super) fn read(&mut self, ticket: Ticket, shard: ShardId, consistency: Consistency, deadline: Time) {
        let refusal = match (self.registry.get_mut(shard), consistency) {
            (None, _) => Refusal::NotHosted { shard },
            (Some(replica), _) if replica.quarantined.is_some() => Refusal::NotHosted { shard },
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
        let fresh_at = if replica.leads() { replica.heard_by_quorum_at(now) } else { replica.reads.fresh_at };
        let age = fresh_at.map(|at| now.saturating_sub(at));
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
        let Some(replica) = self.registry.get_mut(shard) else { return };
        let raft = &replica.raw.raft;
        // Before its first commit of its term a leader does not know what is committed; raft-rs would drop the context.
        if replica.reads.waiting.is_empty()
            || replica.reads.sent.len() >= CONTEXTS_MAX
            || raft.state != StateRole::Leader
            || !raft.commit_to_current_term()
        {
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
        let Some(replica) = self.registry.get_mut(shard) else { return };
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
        if !replica.reads.waiting.is_empty()
            && replica.reads.sent.len() < CONTEXTS_MAX
            && replica.leads()
            && replica.raw.raft.commit_to_current_term()
        {
            self.dirty.insert(shard);
        }
        if !tickets.is_empty() {
            let descriptor = replica.descriptor.clone();
            self.outbox.effects.push(Effect::Read { tickets, descriptor, staleness: None });
        }
    }

    /// Retries a context whose heartbeats may have been lost, under a new one, and answers reads whose time is up.
    pub(super) fn tick_reads(&mut self, shard: ShardId) {
        let heartbeat_ticks = self.config.raft.heartbeat_ticks;
        let Some(replica) = self.registry.get_mut(shard) else { return };
        for ticket in replica.reads.take_expired(self.now) {
            self.outbox.effects.push(Effect::Reply { ticket, shard, result: Err(Refusal::Expired { shard }) });
        }
        replica.reads.sent.iter_mut().for_each(|s| s.ticks += 1);
        if replica.reads.sent.front().is_some_and(|s| s.ticks >= heartbeat_ticks) {
            // All of them, so that a context that was lost holds no place for ever.
            let lost: Vec<_> = replica.reads.sent.drain(..).flat_map(|s| s.reads).collect();
            replica.reads.waiting.splice(..0, lost);
        }
        if !replica.reads.waiting.is_empty() {
            self.touch(shard);
        }
    }

    /// Notes that the leader named its committed index, before the message that did so is stepped.
    pub(super) fn note_freshness(&mut self, shard: ShardId, envelope: &Envelope) {
        let now = self.now;
        let Some(replica) = self.registry.get_mut(shard) else { return };
        if replica.leads() {
            replica.reads.heard.insert(ReplicaId(envelope.message.from), now);
            return;
        }
        let from_leader = matches!(envelope.message.get_msg_type(), MessageType::MsgHeartbeat | MessageType::MsgAppend)
            && envelope.message.term >= replica.raw.raft.term;
        if !from_leader {
            return;
        }
        if envelope.committed <= replica.applied.index {
            replica.reads.fresh_at = Some(now);
            replica.reads.catching_up = None;
        } else if replica.reads.catching_up.is_none() {
            replica.reads.catching_up = Some((envelope.committed, now));
        }
    }

    /// Notes that more was applied.
    pub(super) fn note_applied(&mut self, shard: ShardId) {
        let Some(replica) = self.registry.get_mut(shard) else { return };
        if let Some((index, at)) = replica.reads.catching_up
            && index <= replica.applied.index
        {
            replica.reads.fresh_at = Some(at);
            replica.reads.catching_up = None;
        }
    }
}
