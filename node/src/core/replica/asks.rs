//! What somebody asks of a replica, and waits for: writes, reads, hand-overs, changes of members.

use super::Replica;
use crate::core::context::Context;
use crate::core::effect::Done;
use crate::core::event::{Ask, Ticket};
use crate::core::time::Time;
use flotilla_router::mutation::Mutation;
use flotilla_router::{Change, Consistency, NodeId, Refusal, ReplicaId};

impl Replica {
    /// Somebody asks something of the shard.
    pub(crate) fn ask(&mut self, ticket: Ticket, ask: Ask, deadline: Time, ctx: &mut Context<'_>) {
        match ask {
            Ask::Write { command, .. } => {
                self.write.ask(ticket, command, deadline, &self.group, ctx)
            }
            Ask::Read { consistency, .. } => self.ask_read(ticket, consistency, deadline, ctx),
            Ask::Transfer { to, .. } => self.ask_transfer(ticket, to, ctx),
            Ask::Change { change, .. } => self.ask_change((ticket, deadline), &change, ctx),
            Ask::Inspect { .. } => {
                unreachable!("a question about many shards is asked of none of them")
            }
        }
    }

    /// A client's read: served at once, refused, or in line.
    fn ask_read(
        &mut self,
        ticket: Ticket,
        consistency: Consistency,
        deadline: Time,
        ctx: &mut Context<'_>,
    ) {
        let shard = self.group.shard;
        let refusal = match consistency {
            _ if self.group.quarantined.is_some() => Refusal::NotHosted { shard },
            // Its keys are gone, and those of the snapshot are not there yet: another replica can
            // answer.
            Consistency::Stale { .. }
                if self.group.installing && !Mutation::ReadDuringInstall.is_on() =>
            {
                Refusal::NotHosted { shard }
            }
            Consistency::Stale { age_max } => {
                return self.freshness.read(ticket, age_max, &self.group, ctx);
            }
            _ if !self.group.leads() => {
                Refusal::NotLeader { shard, leader: self.group.leader_node() }
            }
            Consistency::Lease if self.lease.holds(ctx.now) => {
                // The lease proves that all that is committed anywhere is committed here.
                self.read.confirmed_at(self.group.raw.raft.raft_log.committed, ticket, deadline);
                ctx.counters.lease_reads += 1;
                return ctx.pass.touch(shard);
            }
            _ => {
                ctx.counters.lease_reads_refused += u64::from(consistency == Consistency::Lease);
                self.read.ask(ticket, deadline);
                return ctx.pass.touch(shard);
            }
        };
        ctx.reply(ticket, Err(refusal));
    }

    /// An order to hand leadership over to the replica on node `to`.
    fn ask_transfer(&mut self, ticket: Ticket, to: NodeId, ctx: &mut Context<'_>) {
        if self.group.leads() && self.membership.is_under_way() {
            // It might take the vote of whoever is to lead.
            let shard = self.group.shard;
            let why = format!("the members of shard {shard} are being changed; try again");
            return ctx.reply(ticket, Err(Refusal::Conflict { why }));
        }
        match self.transfer.judge(to, &self.group) {
            Ok(target) => self.start_transfer(target, Some(ticket), ctx),
            Err(result) => ctx.reply(ticket, result.map(Done::Transferred)),
        }
    }

    /// An order to change the group's members.
    fn ask_change(&mut self, waits: (Ticket, Time), change: &Change, ctx: &mut Context<'_>) {
        let (freshness, since) =
            (&self.freshness, ctx.now.saturating_sub(ctx.config.election_timeout()));
        let answers = |follower| freshness.answered(follower).is_some_and(|at| at >= since);
        self.membership.ask(waits, change, answers, &mut self.group, ctx);
    }

    /// Hands over to whoever shall lead instead, where its own vote is about to go.
    pub(super) fn hand_over_to_heir(&mut self, ctx: &mut Context<'_>) {
        if let Some(heir) = self.membership.take_heir() {
            self.start_transfer(heir, None, ctx);
        }
    }

    /// Starts a hand-over. The lease ends before anybody else can lead.
    pub(crate) fn start_transfer(
        &mut self,
        to: ReplicaId,
        ticket: Option<Ticket>,
        ctx: &mut Context<'_>,
    ) {
        self.lease.hand_over();
        self.transfer.start(to, ticket, &mut self.group, ctx);
    }
}
