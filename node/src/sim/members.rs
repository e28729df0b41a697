//! Orders to change a shard's members, as somebody might give them who watches the cluster: mostly
//! what makes sense, sometimes what does not, often at a bad moment.
//!
//! Voters become learners, learners voters again, one by one or several at once by way of a joint
//! group. Nobody is added or removed.

use super::faults::ORDERS;
use super::plan::SECOND;
use super::world::World;
use crate::core::{Ask, Event, Ticket, Time};
use flotilla_router::{
    Change, ChangeKind, Descriptor, MemberChange, NodeId, OperationId, Replica, Role, ShardId,
    Transition,
};

impl World {
    /// Somebody orders a change, mostly of the shard's leader, sometimes of node `other`.
    pub(super) fn change_members(&mut self, shard: ShardId, other: NodeId) {
        let asked = match self.leader(shard) {
            Some(leader) if self.rng.percent(90) => leader,
            _ => other,
        };
        let Some(descriptor) = self.invariants.told_by(asked, shard).cloned() else { return };
        let Some(change) = self.some_change(&descriptor, asked) else { return };
        self.say(|| format!("somebody asks n{asked} for {change:?} of s{shard}"));
        if !self.is_up(asked) {
            return;
        }
        let ticket = Ticket(ORDERS + self.faults.draw_ticket());
        self.invariants.orders(ticket, asked, &change);
        let patience = Time::from_nanos(self.rng.around(SECOND));
        let deadline = if self.rng.percent(50) { self.clock(asked) + patience } else { Time::MAX };
        self.post(asked, Event::Ask { ticket, ask: Ask::Change { shard, change }, deadline });
    }

    fn some_change(&mut self, shard: &Descriptor, asked: NodeId) -> Option<Change> {
        let rng = &mut self.rng;
        let all_but_asked = |role: Role| -> Vec<Replica> {
            let others = shard.replicas.iter().filter(|replica| replica.node != asked);
            others.filter(|replica| replica.role == role).copied().collect()
        };
        let (mut voters, learners) = (all_but_asked(Role::Voter), all_but_asked(Role::Learner));
        if rng.percent(5) {
            // It would lose its own vote.
            voters = shard.on_node(asked).into_iter().collect();
        }
        let mut expected = shard.epoch;
        expected.membership += u64::from(rng.percent(5));
        let of =
            |replica: Replica, kind| MemberChange { kind, replica: replica.id, node: replica.node };
        let (mut members, mut is_joint) = (Vec::new(), rng.percent(40));
        if !learners.is_empty() && rng.percent(70) {
            members.push(of(rng.pick(&learners), ChangeKind::Voter));
            if is_joint && !voters.is_empty() && rng.percent(70) {
                members.push(of(rng.pick(&voters), ChangeKind::Learner));
            }
        } else if voters.len() >= 2 || rng.percent(10) {
            members.push(of(*voters.first()?, ChangeKind::Learner));
            if voters.len() >= 4 && rng.percent(50) {
                members.push(of(voters[1], ChangeKind::Learner));
                is_joint = true;
            }
        }
        let transition = if is_joint { Transition::EnterJoint } else { Transition::Simple };
        let operation = OperationId(rng.next());
        (!members.is_empty()).then_some(Change { operation, expected, transition, members })
    }
}
