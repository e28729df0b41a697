//! A change of the shard's members, and the way out of a joint group.
//!
//! *Propose*: only the leader, one change at a time, once an entry of its own term is committed:
//! before that, what a predecessor changed may still be under way (the errata of the thesis's
//! algorithm). *Apply*: every replica asks the shard's descriptor what the change comes to
//! ([`Change::applied_to`]); raft-rs hears of those that were taken, and of no other. *On result*:
//! whoever ordered it hears what the shard is now, or why the change did not fit.
//!
//! **What is refused**, beyond what does not fit the descriptor: whatever takes the leader's own
//! vote (it hands over first), a new voter that has not been a learner and caught up (it would
//! count for the quorum, and hold it up), and whatever leaves the group without a quorum of voters
//! that take part, in the old set or the new. Taking part is more than being alive: a node may give
//! signs of life while its replica is quarantined, has no way to answer, or was never there. Who
//! takes part has answered this leader within an election timeout, and follows entry by entry.
//!
//! **Invariants.** A group that is joint is left: by whoever leads it, asked or not, again and
//! again until it is applied, since the one who entered may be gone. One whose own vote is given up
//! hands over first, if anybody can take over: leaving, it would step down. Whoever waits is
//! answered exactly once; *not applied* only if another entry was committed in the change's place,
//! or one of a higher term below it.

use super::{Changes, Operation, RoleChange};
use crate::core::context::Context;
use crate::core::effect::Done;
use crate::core::event::Ticket;
use crate::core::group::membership::to_raft;
use crate::core::group::{CLOSE_ENTRIES, Group};
use crate::core::time::Time;
use flotilla_router::membership::{Change, ChangeKind, MemberChange};
use flotilla_router::mutation::Mutation;
use flotilla_router::{Descriptor, OperationId, Refusal, ReplicaId, Role};
use flotilla_storage::LogPosition;
use raft::ProgressState;

/// The step out of a joint group belongs to no operation: whoever leads takes it.
const NOBODYS: OperationId = OperationId(0);

/// The changes of one replica's group.
#[derive(Default)]
pub(crate) struct Membership {
    /// The change that somebody waits for.
    ordered: Option<Ordered>,
    /// The group is joint, and this replica leads it.
    must_leave: bool,
    /// Who shall lead, since this replica is about to give its own vote up.
    heir: Option<ReplicaId>,
}

struct Ordered {
    ticket: Ticket,
    /// Where its entry stands.
    at: LogPosition,
    /// Whether that entry was committed.
    is_committed: bool,
    deadline: Time,
}

impl Membership {
    /// Somebody orders a change: refused at once, or proposed. `answers` tells which followers have
    /// answered this leader lately.
    pub(crate) fn ask(
        &mut self,
        (ticket, deadline): (Ticket, Time),
        change: &Change,
        answers: impl Fn(ReplicaId) -> bool,
        group: &mut Group,
        ctx: &mut Context<'_>,
    ) {
        let proposed = self.judge(change, deadline, answers, group, ctx);
        match proposed.and_then(|()| propose(change, group, ctx)) {
            Ok(at) => self.ordered = Some(Ordered { ticket, at, is_committed: false, deadline }),
            Err(refusal) => ctx.reply(ticket, Err(refusal)),
        }
    }

    /// Whether a change can be made now.
    fn judge(
        &self,
        change: &Change,
        deadline: Time,
        answers: impl Fn(ReplicaId) -> bool,
        group: &Group,
        ctx: &Context<'_>,
    ) -> Result<(), Refusal> {
        let shard = group.shard;
        if group.quarantined.is_some() {
            return Err(Refusal::NotHosted { shard });
        }
        if !group.leads() {
            return Err(Refusal::NotLeader { shard, leader: group.leader_node() });
        }
        if deadline <= ctx.now {
            return Err(Refusal::Expired { shard });
        }
        let conflict =
            |why: String| Err(Refusal::Conflict { why: format!("shard {shard}: {why}") });
        let now = group.descriptor();
        let after = match change.applied_to(now) {
            Ok(after) => after,
            Err(unfit) => return conflict(unfit.to_string()),
        };
        if self.ordered.is_some() || group.raw.raft.has_pending_conf() {
            return conflict("another change is under way; try again in a moment".into());
        }
        if group.raw.raft.lead_transferee.is_some() {
            return conflict("leadership is being handed over; try again in a moment".into());
        }
        if !keeps_its_vote(&after, group.id) {
            let node = ctx.identity.node;
            return conflict(format!(
                "node {node} leads it, and would vote no more; hand leadership over first"
            ));
        }
        let takes_part = |replica: ReplicaId| {
            let follows = group.raw.raft.prs().get(replica.0);
            let follows = follows.is_some_and(|it| it.state == ProgressState::Replicate);
            replica == group.id || follows && answers(replica)
        };
        for member in change.members.iter().filter(|member| member.kind == ChangeKind::Voter) {
            if let Err(why) = may_vote(member, now, takes_part, group) {
                return conflict(why);
            }
        }
        for (when, shard) in [("take part", &**now), ("would take part", &after)] {
            let (voters, present) = shard.weakest_set(|voter| takes_part(voter.id));
            if present <= voters / 2 {
                let needed = voters / 2 + 1;
                return conflict(format!(
                    "of {voters} voters {present} {when}, and {needed} are needed; wait for the \
                     others"
                ));
            }
        }
        Ok(())
    }

    /// An entry was committed at `at`. Returns who waits for a change that can't be committed any
    /// more: its place was taken, or an entry of a higher term was committed below it.
    pub(crate) fn note_committed(&mut self, at: LogPosition) -> Option<Ticket> {
        let ordered = self.ordered.as_mut().filter(|ordered| !ordered.is_committed)?;
        if ordered.at == at {
            ordered.is_committed = true;
        } else if at.index == ordered.at.index || at.term > ordered.at.term {
            return self.ordered.take().map(|ordered| ordered.ticket);
        }
        None
    }

    /// Takes whoever waits for a change that a snapshot up to `index` passed over: nobody here will
    /// ever see what became of it.
    pub(crate) fn take_passed_over(&mut self, index: u64) -> Option<Ticket> {
        self.ordered.take_if(|ordered| ordered.at.index <= index).map(|ordered| ordered.ticket)
    }

    /// Whether somebody waits for a change.
    pub(crate) fn is_under_way(&self) -> bool {
        self.ordered.is_some()
    }

    /// Takes whoever shall lead instead of this replica, if that is to be so now.
    pub(crate) fn take_heir(&mut self) -> Option<ReplicaId> {
        self.heir.take()
    }

    /// Leaves a joint group, if this replica leads one and nothing else is under way.
    fn leave(&mut self, group: &mut Group, ctx: &mut Context<'_>) {
        let raft = &group.raw.raft;
        // A pass may have deposed it, and not told it yet.
        let is_free = group.leads() && !raft.has_pending_conf() && raft.lead_transferee.is_none();
        if !self.must_leave || !is_free || Mutation::JointKept.is_on() {
            return;
        }
        // Tried once in a term: without an heir it leaves, and steps down.
        if !keeps_its_vote(group.descriptor(), group.id) && group.transferred_in_term != raft.term {
            self.heir = heir(group);
            if self.heir.is_some() {
                return;
            }
        }
        // Where it can't be proposed now, the next tick tries again.
        let _ = propose(&Change::leave(NOBODYS, group.descriptor().epoch), group, ctx);
    }
}

/// Whether a replica votes once the change that is under way is complete.
fn keeps_its_vote(shard: &Descriptor, replica: ReplicaId) -> bool {
    shard.replica(replica).is_some_and(|own| own.role.votes_now())
}

/// Who can lead instead of this replica soon: follows closely, and keeps its vote.
fn heir(group: &Group) -> Option<ReplicaId> {
    let mut voters = group.descriptor().voters_now().map(|voter| voter.id);
    voters.find(|voter| group.follows_closely(*voter))
}

/// Whether a replica may become a voter: a learner that takes part, and has nearly all that the
/// leader has.
fn may_vote(
    member: &MemberChange,
    now: &Descriptor,
    takes_part: impl Fn(ReplicaId) -> bool,
    group: &Group,
) -> Result<(), String> {
    let &MemberChange { replica, node, .. } = member;
    if now.replica(replica).is_none_or(|member| member.role != Role::Learner) {
        return Err(format!("replica {replica} is new to it; add it as a learner first"));
    }
    let raft = &group.raw.raft;
    let progress = raft.prs().get(replica.0).filter(|_| takes_part(replica));
    let Some(progress) = progress else {
        return Err(format!(
            "replica {replica} on node {node} does not take part: it was not heard lately, or has \
             no log yet; wait until it has"
        ));
    };
    let behind = raft.raft_log.last_index().saturating_sub(progress.matched);
    if behind > CLOSE_ENTRIES {
        return Err(format!(
            "replica {replica} on node {node} is {behind} entries behind; wait until it has them"
        ));
    }
    Ok(())
}

/// Proposes a change that nothing stands in the way of; where its entry stands.
fn propose(
    change: &Change,
    group: &mut Group,
    ctx: &mut Context<'_>,
) -> Result<LogPosition, Refusal> {
    let shard = group.shard;
    if !group.raw.raft.commit_to_current_term() {
        return Err(Refusal::NoLeader { shard });
    }
    let context = change.encode().to_vec();
    let pending = group.raw.raft.pending_conf_index;
    let proposed = group.raw.propose_conf_change(context, to_raft(change));
    group.set_timeout(ctx.config);
    if proposed.is_err() {
        // raft-rs notes where the entry will stand before it finds that there is no room for it.
        group.raw.raft.pending_conf_index = pending;
        let limit = ctx.config.raft.uncommitted_bytes_max;
        return Err(Refusal::Overloaded { what: "raft.uncommitted_bytes_max".into(), limit });
    }
    ctx.pass.touch(shard);
    let raft = &group.raw.raft;
    if !raft.has_pending_conf() {
        // raft-rs says `Ok`, and puts an empty entry there, where it would rather not. What was
        // judged before leaves it no reason, unless the two have parted: then a quarantine follows.
        let why = format!("shard {shard}: raft passed the change over; look at the shard again");
        return Err(Refusal::Conflict { why });
    }
    Ok(LogPosition { index: raft.raft_log.last_index(), term: raft.term })
}

impl Operation for Membership {
    fn on_applied(&mut self, group: &mut Group, ctx: &mut Context<'_>, changes: &mut Changes) {
        let outcome = |at: LogPosition| {
            let mut outcomes = changes.conf_changes.iter();
            outcomes.find(|(index, _)| *index == at.index).map(|(_, outcome)| outcome.clone())
        };
        let is_applied =
            |ordered: &mut Ordered| ordered.is_committed && ordered.at.index <= group.applied.index;
        if let Some(Ordered { ticket, at, .. }) = self.ordered.take_if(is_applied) {
            let shard = group.shard;
            let outcome = outcome(at).expect("a change that was applied has an outcome");
            let result = match outcome {
                Ok(()) => Ok(Done::Changed(group.descriptor().clone())),
                Err(unfit) => Err(Refusal::Conflict { why: format!("shard {shard}: {unfit}") }),
            };
            ctx.reply(ticket, result);
        }
        self.must_leave = group.leads() && group.descriptor().is_joint();
        // Whoever gives its own vote up leaves by the next tick: it hands over first, and raft-rs
        // lets nobody campaign before it has applied the change.
        if keeps_its_vote(group.descriptor(), group.id) {
            self.leave(group, ctx);
        }
    }

    /// A change that was proposed stays until the log shows what became of it.
    fn on_role(&mut self, group: &mut Group, _: &mut Context<'_>, _: RoleChange) {
        self.must_leave = group.leads() && group.descriptor().is_joint();
    }

    fn on_tick(&mut self, group: &mut Group, ctx: &mut Context<'_>) {
        let shard = group.shard;
        let now = ctx.now;
        if let Some(overdue) = self.ordered.take_if(|ordered| ordered.deadline <= now) {
            ctx.reply(overdue.ticket, Err(Refusal::OutcomeUnknown { shard }));
        }
        self.leave(group, ctx);
    }

    fn end(&mut self, group: &mut Group, ctx: &mut Context<'_>) {
        self.must_leave = false;
        if let Some(ordered) = self.ordered.take() {
            ctx.reply(ordered.ticket, Err(Refusal::OutcomeUnknown { shard: group.shard }));
        }
    }

    fn is_idle(&self) -> bool {
        self.ordered.is_none() && !self.must_leave
    }
}
