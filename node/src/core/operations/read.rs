//! Linearizable reads, through a quorum (thesis §6.4).
//!
//! A read must see every write that anybody was told of before it began. The leader has applied all
//! of those, if it *is* the leader: nobody tells a leader that was cut off that others have elected
//! another one, which has taken writes since. So before it answers it asks: it sends every follower
//! a heartbeat in its term, and waits until a majority has answered in that term. Whoever wants to
//! be elected needs the vote of one of them, and had none when it answered; so at the moment at
//! which the heartbeats left nobody of a higher term had committed anything, and all that was
//! committed by then is at or below this leader's commit index of that moment. Once that index is
//! applied the read may look. It costs no entry in the log and no disk, only one round of
//! heartbeats, which all reads that wait share.
//!
//! Three things go wrong easily. A read that joins a round which has *already left* is vouched for
//! by answers that may be older than itself. A leader that has committed nothing in its own term
//! yet does not know its commit index. And an answer that is later than all, to a round of an
//! earlier life of this node or of an earlier use of the same number, vouches for the wrong moment.
//!
//! *Propose*: all reads of a shard that wait when the pass ends share one context, which the
//! leader's heartbeats carry. *On result*: a quorum has answered, so no other leader had committed
//! anything when the context was sent; the reads wait until the index of that moment is applied,
//! and look. A read joins only a context that is **not yet sent**. Contexts are (incarnation,
//! counter) and never used twice: raft-rs keys what is pending by the context, and an answer to an
//! older use would confirm a newer read on a leader that was deposed in between.
//!
//! A context stays on its way until it is confirmed or leadership is gone: every heartbeat carries
//! the youngest one again, and its confirmation confirms those before it. So a quorum may be as far
//! away as an election timeout. (Contexts that were called lost after a heartbeat interval, and
//! replaced, could never be confirmed from further away than that.)
//!
//! A read that a [`lease`](super::lease) vouches for is confirmed at once, at what is committed
//! here. Stale reads are [`freshness`](super::freshness)'s.

use super::{Changes, Operation, RoleChange};
use crate::core::context::Context;
use crate::core::effect::Effect;
use crate::core::event::Ticket;
use crate::core::group::Group;
use crate::core::time::Time;
use flotilla_router::Refusal;
use flotilla_router::mutation::Mutation;
use raft::StateRole;
use std::collections::VecDeque;

/// Contexts of one shard that are sent one right after the other. Further reads gather until one
/// comes back, or a heartbeat interval has passed since the last was sent.
const CONTEXTS_MAX: usize = 2;
/// Contexts of one shard that may be on their way at all.
const CONTEXTS_FAR_MAX: usize = 64;

/// The reads of one shard.
#[derive(Default)]
pub(crate) struct Read {
    /// Reads whose context is not yet sent.
    waiting: Vec<(Ticket, Time)>,
    /// Contexts on their way, oldest first.
    sent: VecDeque<Sent>,
    /// Confirmed reads that wait for an index to be applied.
    confirmed: Vec<(u64, Vec<(Ticket, Time)>)>,
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

impl Read {
    /// A read waits for the next context.
    pub(crate) fn ask(&mut self, ticket: Ticket, deadline: Time) {
        self.waiting.push((ticket, deadline));
    }

    /// A read is vouched for, at everything up to `index`.
    pub(crate) fn confirmed_at(&mut self, index: u64, ticket: Ticket, deadline: Time) {
        self.confirmed.push((index, vec![(ticket, deadline)]));
    }

    /// A quorum has confirmed a context, and with it all that were sent before; when they were
    /// sent.
    pub(crate) fn confirm(
        &mut self,
        context: &[u8],
        index: u64,
    ) -> impl Iterator<Item = Time> + use<> {
        let count =
            self.sent.iter().position(|sent| sent.context == context).map_or(0, |place| place + 1);
        let mut sent_at = Vec::with_capacity(count);
        for sent in self.sent.drain(..count) {
            sent_at.push(sent.at);
            if !sent.reads.is_empty() {
                self.confirmed.push((index, sent.reads));
            }
        }
        sent_at.into_iter()
    }

    /// Sends one context for all reads that wait.
    pub(crate) fn send_context(&mut self, group: &mut Group, ctx: &mut Context<'_>) {
        let raft = &group.raw.raft;
        // Before its first commit of its term a leader does not know what is committed; raft-rs
        // would drop the context.
        if !self.wants_context(ctx)
            || raft.state != StateRole::Leader
            || !raft.commit_to_current_term()
        {
            return;
        }
        let mut context = [0; 16];
        context[..8].copy_from_slice(&ctx.identity.incarnation.0.to_be_bytes());
        context[8..].copy_from_slice(&ctx.ids.read().to_be_bytes());
        ctx.counters.read_contexts += 1;
        let reads = std::mem::take(&mut self.waiting);
        ctx.counters.context_reads += reads.len() as u64;
        self.sent.push_back(Sent { context, reads, at: ctx.now, ticks: 0 });
        group.raw.read_index(context.to_vec());
    }

    /// Lets confirmed reads look, whose index is applied.
    pub(crate) fn serve(&mut self, group: &mut Group, ctx: &mut Context<'_>) {
        let applied = group.applied.index;
        let mut tickets = Vec::new();
        self.confirmed.retain_mut(|(index, reads)| {
            let ready = *index <= applied || Mutation::ReadBeforeApplied.is_on();
            if ready {
                tickets.extend(reads.drain(..).map(|(ticket, _)| ticket));
            }
            !ready
        });
        // A context that came back made room for the reads that gathered meanwhile: they need not
        // wait for a tick.
        if self.wants_context(ctx) && group.leads() && group.raw.raft.commit_to_current_term() {
            ctx.pass.touch(group.shard);
        }
        if !tickets.is_empty() {
            let descriptor = group.descriptor().clone();
            ctx.pass.effects.push(Effect::Read { tickets, descriptor, staleness: None });
        }
    }

    /// Whether reads wait for a context that may be sent now.
    fn wants_context(&self, ctx: &Context<'_>) -> bool {
        let far = |sent: &Sent| {
            sent.ticks >= ctx.config.raft.heartbeat_ticks && self.sent.len() < CONTEXTS_FAR_MAX
        };
        !self.waiting.is_empty()
            && (self.sent.len() < CONTEXTS_MAX || self.sent.back().is_some_and(far))
    }

    /// Contexts that raft-rs does not know any more will not be confirmed: their reads wait for
    /// another.
    fn take_back(&mut self) {
        let lost: Vec<_> = self.sent.drain(..).flat_map(|s| s.reads).collect();
        self.waiting.splice(..0, lost);
    }

    /// Takes the reads that were not confirmed. Those that were may still look.
    fn take_unconfirmed(&mut self) -> Vec<Ticket> {
        let sent = self.sent.drain(..).flat_map(|s| s.reads);
        self.waiting.drain(..).chain(sent).map(|(ticket, _)| ticket).collect()
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

impl Operation for Read {
    fn on_applied(&mut self, _: &mut Group, _: &mut Context<'_>, _: &mut Changes) {
        // Reads are served when the group comes to rest.
    }

    fn on_role(&mut self, group: &mut Group, ctx: &mut Context<'_>, change: RoleChange) {
        if change.ends {
            let refusal = Refusal::NotLeader { shard: group.shard, leader: change.leader };
            ctx.refuse_all(self.take_unconfirmed(), &refusal);
        }
    }

    /// Answers reads whose time is up, and lets those that gathered behind far contexts have one of
    /// their own.
    fn on_tick(&mut self, group: &mut Group, ctx: &mut Context<'_>) {
        let (shard, heartbeat_ticks) = (group.shard, ctx.config.raft.heartbeat_ticks);
        ctx.refuse_all(self.take_expired(ctx.now), &Refusal::Expired { shard });
        self.sent.iter_mut().for_each(|s| s.ticks += 1);
        let raft = &group.raw.raft;
        let forgotten = raft.pending_read_count() == 0 && raft.ready_read_count() == 0;
        let given_up = self.sent.front().is_some_and(|s| s.ticks >= heartbeat_ticks);
        if forgotten || given_up && Mutation::YoungContextsDropped.is_on() {
            self.take_back();
        }
        if self.wants_context(ctx) {
            ctx.pass.touch(shard);
        }
    }

    fn end(&mut self, group: &mut Group, ctx: &mut Context<'_>) {
        let mut tickets = self.take_unconfirmed();
        tickets.extend(
            self.confirmed.drain(..).flat_map(|(_, reads)| reads).map(|(ticket, _)| ticket),
        );
        ctx.refuse_all(tickets, &Refusal::NotHosted { shard: group.shard });
    }

    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.sent.is_empty() && self.confirmed.is_empty()
    }
}
