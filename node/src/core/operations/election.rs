//! Elections: who calls one when, and who is told how it ended.
//!
//! **The first election.** In a new cluster the first voter of each descriptor is meant to lead,
//! which spreads leadership evenly. It calls the election soon and again until somebody leads; the
//! others hold back for a while.

use super::{Changes, Operation, RoleChange};
use crate::core::context::Context;
use crate::core::effect::Effect;
use crate::core::group::Group;
use crate::core::group::timeouts::mix;
use flotilla_router::NodeId;
use flotilla_storage::{INITIAL, Recovered};
use raft::StateRole;

/// Ticks between two attempts of the replica that is meant to lead a new shard.
const FIRST_ELECTION_RETRY_TICKS: u64 = 4;
/// Ticks for which the other replicas of a new shard hold back.
const FIRST_ELECTION_GRACE_TICKS: u64 = 60;

/// The elections of one replica.
pub(crate) struct Election {
    /// The group has never had a leader; only after a bootstrap.
    is_new: bool,
    /// What raft-rs was last seen as, to notice changes.
    role: StateRole,
    /// The leader by raft-rs when it was last looked at.
    leader: u64,
    /// The node of the leader as it was last published. A leader may be heard of before the
    /// descriptor that says where it is.
    published: Option<NodeId>,
    /// Ticks since this replica began to lead.
    led_ticks: u64,
}

impl Election {
    /// The state of a replica that was found on disk.
    pub(crate) fn new(recovered: &Recovered) -> Self {
        Self {
            is_new: recovered.last == INITIAL && recovered.hard_state.term == INITIAL.term,
            role: StateRole::Follower,
            leader: 0,
            published: None,
            led_ticks: 0,
        }
    }

    /// Ticks since this replica began to lead, if it does.
    pub(crate) fn led_ticks(&self) -> u64 {
        self.led_ticks
    }

    /// Notices that the replica began or ceased to lead, or follows another, and tells the router.
    pub(crate) fn notice(&mut self, group: &Group, ctx: &mut Context<'_>) -> Option<RoleChange> {
        let (role, leader) = (group.raw.raft.state, group.raw.raft.leader_id);
        let node = group.leader_node();
        if (role, leader, node) == (self.role, self.leader, self.published) {
            return None;
        }
        let (leads, led) = (role == StateRole::Leader, self.role == StateRole::Leader);
        (self.role, self.leader, self.published) = (role, leader, node);
        let change = RoleChange { begins: leads && !led, ends: led && !leads, leader: node };
        ctx.pass.effects.push(Effect::PublishLeader { shard: group.shard, leader: change.leader });
        Some(change)
    }

    /// Gives the group a tick. Whether there may be something ready.
    pub(crate) fn tick(&mut self, group: &mut Group, ctx: &mut Context<'_>) -> bool {
        if group.installing {
            return false;
        }
        self.led_ticks += 1;
        let ready = self.tick_raft(group, ctx);
        if ready {
            // At once, since the same pass may bring more ticks.
            group.set_timeout(ctx.config);
            ctx.pass.touch(group.shard);
        }
        ready
    }

    fn tick_raft(&self, group: &mut Group, ctx: &mut Context<'_>) -> bool {
        let raft = &group.raw.raft;
        if raft.state != StateRole::Leader && group.would_win_too_early() {
            return false;
        }
        if self.is_new && raft.term == INITIAL.term && raft.leader_id == 0 {
            let meant_to_lead =
                group.descriptor().voters_now().next().is_some_and(|first| first.id == group.id);
            if !meant_to_lead && ctx.ticks < FIRST_ELECTION_GRACE_TICKS {
                return false;
            }
            // Spread over the first ticks, so that thousands of groups do not all call at once.
            let offset = mix(ctx.config.seed ^ group.shard.0) % FIRST_ELECTION_RETRY_TICKS;
            if meant_to_lead && ctx.ticks % FIRST_ELECTION_RETRY_TICKS == offset {
                // Fails only where a conf change waits to be applied, which no new group has.
                let _ = group.raw.campaign();
                ctx.counters.elections += 1;
                return true;
            }
        }
        let was = (raft.state, raft.term);
        let ready = group.raw.tick();
        let is = group.raw.raft.state;
        if matches!(is, StateRole::Candidate | StateRole::PreCandidate)
            && was != (is, group.raw.raft.term)
        {
            ctx.counters.elections += 1;
        }
        ready
    }
}

impl Operation for Election {
    fn on_applied(&mut self, _: &mut Group, _: &mut Context<'_>, _: &mut Changes) {}

    fn on_role(&mut self, group: &mut Group, ctx: &mut Context<'_>, change: RoleChange) {
        if group.raw.raft.leader_id != 0 {
            self.is_new = false;
        }
        if change.begins {
            self.led_ticks = 0;
            ctx.counters.elections_won += 1;
        }
    }

    fn on_tick(&mut self, _: &mut Group, _: &mut Context<'_>) {
        // The group's own clock ticks always; the composer sees to it.
    }

    fn end(&mut self, group: &mut Group, ctx: &mut Context<'_>) {
        ctx.pass.effects.push(Effect::PublishLeader { shard: group.shard, leader: None });
    }

    fn is_idle(&self) -> bool {
        true
    }
}
