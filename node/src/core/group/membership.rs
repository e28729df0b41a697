//! What the members of a shard's group are to raft-rs.
//!
//! The descriptor is the truth, and raft-rs is told: its configuration ([`conf_state`]) is derived
//! from a descriptor, and a change of one ([`Change`]) is translated into what raft-rs calls a conf
//! change ([`to_raft`]). Apply judges a change by the descriptor alone; raft-rs hears of those that
//! were taken, and of no other, and must then come to the configuration of the new descriptor.
//! Where it does not, something is broken, and the shard is quarantined.
//!
//! An entry's data is what raft-rs reads, its context what apply reads. Both say the same
//! ([`check_context`]), or the entry is not let into the log.
//!
//! That raft-rs takes all that [`Change::applied_to`] takes, and comes to the same, is shown by
//! random histories in `core/tests/membership.rs`.

use flotilla_router::membership::{Change, ChangeKind, Transition};
use flotilla_router::{Descriptor, MemberChange, Role};
use raft::eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2};
use raft::eraftpb::{ConfState, Entry};

/// The configuration that a descriptor stands for, each list in the order of its replicas.
///
/// The voters of raft-rs are those of the new set; of the old one it hears only while the group is
/// joint. Who is demoted votes in the old set, and is a learner to be.
pub(crate) fn conf_state(descriptor: &Descriptor) -> ConfState {
    let ids = |who: fn(Role) -> bool| {
        let members = descriptor.replicas.iter().filter(|replica| who(replica.role));
        members.map(|replica| replica.id.0).collect::<Vec<_>>()
    };
    let mut conf_state = ConfState::default();
    conf_state.set_voters(ids(Role::votes_now));
    conf_state.set_learners(ids(|role| role == Role::Learner));
    if descriptor.is_joint() {
        conf_state.set_voters_outgoing(ids(Role::votes_before));
        conf_state.set_learners_next(ids(|role| role == Role::Demoting));
    }
    conf_state
}

/// Whether raft-rs has come to what the descriptor says. Its sets have no order.
pub(crate) fn agrees(conf_state: &ConfState, descriptor: &Descriptor) -> bool {
    let sets = |conf_state: &ConfState| {
        let sorted = |ids: &[u64]| -> Vec<u64> {
            let mut ids = ids.to_vec();
            ids.sort_unstable();
            ids
        };
        [
            sorted(conf_state.get_voters()),
            sorted(conf_state.get_voters_outgoing()),
            sorted(conf_state.get_learners()),
            sorted(conf_state.get_learners_next()),
        ]
    };
    !conf_state.auto_leave && sets(conf_state) == sets(&self::conf_state(descriptor))
}

/// A change in the words of raft-rs. The transitions are told apart as it tells them: one change on
/// its own is simple, the explicit way leads into a joint group, and nothing at all leads out of
/// it. The implicit way, out of which raft-rs finds by itself, is never taken.
pub(crate) fn to_raft(change: &Change) -> ConfChangeV2 {
    let single = |member: &MemberChange| {
        let mut single = ConfChangeSingle { node_id: member.replica.0, ..Default::default() };
        single.set_change_type(match member.kind {
            ChangeKind::Voter => ConfChangeType::AddNode,
            ChangeKind::Learner => ConfChangeType::AddLearnerNode,
            ChangeKind::Remove => ConfChangeType::RemoveNode,
        });
        single
    };
    let mut conf_change = ConfChangeV2::default();
    conf_change.set_changes(change.members.iter().map(single).collect::<Vec<_>>().into());
    conf_change.set_transition(match change.transition {
        Transition::Simple | Transition::LeaveJoint => ConfChangeTransition::Auto,
        Transition::EnterJoint => ConfChangeTransition::Explicit,
    });
    conf_change
}

/// Whether the context of a conf change can be read, and says the same as its data, which were read
/// as `data`. One without a context says nothing, and apply passes it over.
///
/// What a change is about stands in the context: replicas, and nothing else. So it can't touch the
/// shard's range. Whether it fits is judged where it is applied: the descriptor here may be older
/// than the one that it was made for.
pub(crate) fn check_context(entry: &Entry, data: &ConfChangeV2) -> Result<(), &'static str> {
    if entry.context.is_empty() {
        return Ok(());
    }
    let Ok(change) = Change::decode(entry.context.clone()) else {
        return Err("a membership change whose context can't be read");
    };
    if to_raft(&change) == *data {
        return Ok(());
    }
    Err("a membership change whose data and context differ")
}
