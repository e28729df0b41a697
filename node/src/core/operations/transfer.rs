//! The hand-over of leadership.
//!
//! *Propose*: only the leader, to a voter, one at a time. From here until it ends, raft-rs takes no
//! proposals for the group: commands wait. *On result*: the target leads, or another replica does,
//! or the time is up. A leader never holds a [`lease`](super::lease) again in the term in which it
//! tried to hand over.

use super::{Changes, Operation, RoleChange};
use crate::core::context::Context;
use crate::core::effect::Done;
use crate::core::event::Ticket;
use crate::core::group::Group;
use flotilla_router::{Descriptor, NodeId, Refusal, ReplicaId, Role};
use std::sync::Arc;

/// A hand-over, if one is under way.
#[derive(Default)]
pub(crate) struct Transfer {
    under_way: Option<UnderWay>,
}

struct UnderWay {
    /// Who waits; nobody, where it was this node's own idea.
    ticket: Option<Ticket>,
    /// Who shall lead.
    to: ReplicaId,
    /// Ticks until it is given up.
    ticks_left: usize,
}

impl Transfer {
    /// Whether one is under way.
    pub(crate) fn is_under_way(&self) -> bool {
        self.under_way.is_some()
    }

    /// Judges an order to hand over to the replica on node `to`: who that is, or what is answered
    /// at once.
    pub(crate) fn judge(
        &self,
        to: NodeId,
        group: &Group,
    ) -> Result<ReplicaId, Result<Arc<Descriptor>, Refusal>> {
        let shard = group.shard;
        if group.quarantined.is_some() {
            return Err(Err(Refusal::NotHosted { shard }));
        }
        if !group.leads() {
            return Err(Err(Refusal::NotLeader { shard, leader: group.leader_node() }));
        }
        let invalid = |why| Err(Err(Refusal::Invalid { why }));
        match group.descriptor().on_node(to) {
            None => {
                invalid(format!("node {to} holds no replica of shard {shard}; see its replicas"))
            }
            Some(target) if target.role == Role::Learner => invalid(format!(
                "node {to} holds a learner of shard {shard}; only a voter can lead"
            )),
            Some(target) if !target.role.votes_now() => {
                invalid(format!("node {to} gives up its vote in shard {shard}; name another"))
            }
            Some(target) if target.id == group.id => Err(Ok(group.descriptor().clone())),
            Some(_) if self.is_under_way() => {
                let why =
                    format!("shard {shard} is being handed over already; try again in a moment");
                Err(Err(Refusal::Conflict { why }))
            }
            Some(target) => Ok(target.id),
        }
    }

    /// Starts a hand-over.
    pub(crate) fn start(
        &mut self,
        to: ReplicaId,
        ticket: Option<Ticket>,
        group: &mut Group,
        ctx: &mut Context<'_>,
    ) {
        group.transferred_in_term = group.raw.raft.term;
        group.raw.transfer_leader(to.0);
        self.under_way =
            Some(UnderWay { ticket, to, ticks_left: ctx.config.raft.election_ticks * 2 });
        ctx.pass.touch(group.shard);
    }

    fn finish(&mut self, result: Result<Arc<Descriptor>, Refusal>, ctx: &mut Context<'_>) {
        if let Some(ticket) = self.under_way.take().and_then(|under_way| under_way.ticket) {
            ctx.reply(ticket, result.map(Done::Transferred));
        }
    }
}

impl Operation for Transfer {
    fn on_applied(&mut self, _: &mut Group, _: &mut Context<'_>, _: &mut Changes) {}

    fn on_role(&mut self, group: &mut Group, ctx: &mut Context<'_>, _: RoleChange) {
        let leader = group.raw.raft.leader_id;
        let Some(under_way) = &self.under_way else { return };
        if leader == 0 || leader == group.id.0 {
            return;
        }
        let result = if leader == under_way.to.0 {
            Ok(group.descriptor().clone())
        } else {
            Err(Refusal::Conflict {
                why: format!("shard {}: another replica was elected meanwhile", group.shard),
            })
        };
        self.finish(result, ctx);
    }

    /// Gives a hand-over up after its time. raft-rs itself forgets it after one election timeout.
    fn on_tick(&mut self, group: &mut Group, ctx: &mut Context<'_>) {
        let Some(under_way) = &mut self.under_way else { return };
        under_way.ticks_left = under_way.ticks_left.saturating_sub(1);
        if under_way.ticks_left > 0 {
            return;
        }
        group.raw.raft.abort_leader_transfer();
        let shard = group.shard;
        let why = format!(
            "shard {shard}: the other replica did not take over in time; it may be behind or \
             unreachable"
        );
        self.finish(Err(Refusal::Conflict { why }), ctx);
        ctx.pass.touch(shard);
    }

    fn end(&mut self, group: &mut Group, ctx: &mut Context<'_>) {
        let why = format!("shard {} was quarantined on this node", group.shard);
        self.finish(Err(Refusal::Conflict { why }), ctx);
    }

    fn is_idle(&self) -> bool {
        self.under_way.is_none()
    }
}
