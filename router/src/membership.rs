//! How a change of a shard's members leads from one descriptor to the next.
//!
//! A [`Change`] says what it expects the shard to be, by epoch, and what is to become of which
//! replicas. It travels in the context of a log entry, and every replica asks the same function,
//! [`Change::applied_to`], what it comes to: a new descriptor, or the reason why it does not fit.
//! So all replicas agree without a word about whether it was taken, and one that does not fit
//! leaves everything as it was.
//!
//! There are three transitions, as in the thesis (§4.3) and in raft-rs:
//!
//! 1. *simple*: one replica changes, in one step. Any two majorities of the voters before and after
//!    overlap, so nothing else is needed.
//! 2. *enter joint*: any number of replicas change, at least one of them a voter. From here on old
//!    and new voters decide together.
//! 3. *leave joint*: the old voters decide no more. Those who are incoming are voters now, those
//!    who are outgoing are gone, those who are demoting are learners.
//!
//! A group never leaves by itself (raft-rs calls that `auto_leave`): whoever leads proposes it.
//!
//! raft-rs has rules of its own, and takes all that is taken here; a test of the core asks it
//! (`node/src/core/tests/membership.rs`). These rules are stricter: raft-rs knows no epochs and no
//! nodes, passes over what changes nothing, and lets a later word about a replica overrule an
//! earlier one.
//!
//! **The order of replicas** in the result: those who were there keep their places, those who leave
//! give theirs up, and new ones follow in the order in which the change names them.

use crate::descriptor::{Descriptor, Epoch, REPLICAS_MAX, Replica, Role};
use crate::ids::{NodeId, OperationId, ReplicaId};

mod encoding;

/// A change names at most so many replicas: all that a group may have go, and as many come.
pub const MEMBER_CHANGES_MAX: usize = 2 * REPLICAS_MAX;

/// A change of a shard's members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The operation that it is a step of.
    pub operation: OperationId,
    /// The epoch of the shard that it was made for. It fits no other.
    pub expected: Epoch,
    /// How it is carried out.
    pub transition: Transition,
    /// What becomes of which replica; each is named at most once.
    pub members: Vec<MemberChange>,
}

/// How a change is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// One replica changes, at once.
    Simple,
    /// Old and new voters decide together from here on.
    EnterJoint,
    /// The old voters decide no more. It names no replica.
    LeaveJoint,
}

/// What becomes of one replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberChange {
    /// What becomes of it.
    pub kind: ChangeKind,
    /// Its Raft id.
    pub replica: ReplicaId,
    /// The node that holds it, or will.
    pub node: NodeId,
}

/// What may become of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// It votes: a new replica, or a learner that is promoted.
    Voter,
    /// It receives the log only: a new replica, or a voter that is demoted.
    Learner,
    /// It is a member no more.
    Remove,
}

/// Why a change does not fit a shard. It leaves the shard as it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// An entry of the log that is a conf change to raft-rs, and says nothing to us.
    #[error("it carries no change that Flotilla made; propose one")]
    Bare,
    /// The shard changed since, or had not yet changed.
    #[error("it was made for epoch {expected}, and the shard is at {current}; look at it again")]
    Stale {
        /// The epoch that the change was made for.
        expected: Epoch,
        /// The shard's.
        current: Epoch,
    },
    /// The epoch stands at the end of all numbers.
    #[error("the membership epoch can't rise any further")]
    LastEpoch,
    /// Another change is half made.
    #[error("the group is joint; leave that first")]
    Joint,
    /// It was left already, or never entered.
    #[error("the group is not joint; there is nothing to leave")]
    NotJoint,
    /// What becomes of whom was said on the way in.
    #[error("the step out of a joint group names replicas; leave them out")]
    LeavesWithMembers,
    /// It would change nothing but the epoch.
    #[error("it names no replica")]
    Empty,
    /// So many can't be changed in one step: raft-rs has no words for it.
    #[error("a simple change names {0} replicas; name one, or enter a joint group")]
    NotSimple(usize),
    /// Two equal sets of voters: the descriptor would not show that the group is joint.
    #[error("no voter changes, which needs no joint group; make simple changes")]
    JointForNothing,
    /// The two may contradict each other.
    #[error("it names {what} twice")]
    Twice {
        /// Who is named.
        what: Named,
    },
    /// Neither replicas nor nodes have that id.
    #[error("it names replica 0 or node 0, which can't be")]
    Zero,
    /// Replicas stay on the node on which they were born.
    #[error("replica {replica} is on node {on}, not {named}")]
    OtherNode {
        /// The replica.
        replica: ReplicaId,
        /// Where it is.
        on: NodeId,
        /// Where the change has it.
        named: NodeId,
    },
    /// A node has one replica of a shard at most, one that is leaving included.
    #[error("node {node} holds replica {holds} already; remove that first, in a change of its own")]
    NodeTaken {
        /// The node.
        node: NodeId,
        /// What it holds.
        holds: ReplicaId,
    },
    /// A voter that is to be a voter, or a learner a learner.
    #[error("replica {0} is what the change makes of it already")]
    NoChange(ReplicaId),
    /// Who is no member can't cease to be one.
    #[error("replica {0} can't be removed, for it is no member")]
    NotThere(ReplicaId),
    /// Such a group could never decide anything again.
    #[error("nobody would vote any more")]
    NoVoter,
    /// See [`REPLICAS_MAX`] and [`MEMBER_CHANGES_MAX`].
    #[error("{0} replicas are more than a group or a change may have")]
    TooMany(usize),
}

/// What a change may name twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    /// A replica.
    Replica(ReplicaId),
    /// A node.
    Node(NodeId),
}

impl std::fmt::Display for Named {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Replica(replica) => write!(f, "replica {replica}"),
            Self::Node(node) => write!(f, "node {node}"),
        }
    }
}

impl Change {
    /// The step out of a joint group at this epoch.
    pub fn leave(operation: OperationId, expected: Epoch) -> Self {
        let transition = Transition::LeaveJoint;
        Self { operation, expected, transition, members: Vec::new() }
    }

    /// What the shard is after the change, which must be sound before it. The membership epoch
    /// rises by one; range and range epoch stay.
    pub fn applied_to(&self, shard: &Descriptor) -> Result<Descriptor, Unfit> {
        if self.expected != shard.epoch {
            return Err(Unfit::Stale { expected: self.expected, current: shard.epoch });
        }
        let membership = shard.epoch.membership.checked_add(1).ok_or(Unfit::LastEpoch)?;
        let replicas = match self.transition {
            Transition::LeaveJoint => self.leave_joint(shard)?,
            Transition::Simple => self.change_one(shard)?,
            Transition::EnterJoint => self.enter_joint(shard)?,
        };
        let epoch = Epoch { membership, ..shard.epoch };
        let changed = Descriptor { id: shard.id, range: shard.range.clone(), epoch, replicas };
        if changed.voters_now().next().is_none() {
            return Err(Unfit::NoVoter);
        }
        if changed.replicas.len() > REPLICAS_MAX {
            return Err(Unfit::TooMany(changed.replicas.len()));
        }
        assert!(changed.is_sound() || !shard.is_sound(), "{self:?} makes {changed:?} of {shard:?}");
        Ok(changed)
    }

    fn leave_joint(&self, shard: &Descriptor) -> Result<Vec<Replica>, Unfit> {
        if !self.members.is_empty() {
            return Err(Unfit::LeavesWithMembers);
        }
        if !shard.is_joint() {
            return Err(Unfit::NotJoint);
        }
        Ok(settled(&shard.replicas))
    }

    fn change_one(&self, shard: &Descriptor) -> Result<Vec<Replica>, Unfit> {
        let replicas = self.change_members(shard)?;
        match self.members.len() {
            // What a joint change does in two steps, this one does in one.
            1 => Ok(settled(&replicas)),
            more => Err(Unfit::NotSimple(more)),
        }
    }

    fn enter_joint(&self, shard: &Descriptor) -> Result<Vec<Replica>, Unfit> {
        let replicas = self.change_members(shard)?;
        if !replicas.iter().any(|replica| replica.role.is_joint()) {
            return Err(Unfit::JointForNothing);
        }
        Ok(replicas)
    }

    /// The replicas once every member is changed, voters by way of the joint roles.
    fn change_members(&self, shard: &Descriptor) -> Result<Vec<Replica>, Unfit> {
        self.check_members()?;
        if shard.is_joint() {
            return Err(Unfit::Joint);
        }
        let mut replicas = shard.replicas.clone();
        for &change in &self.members {
            let MemberChange { kind, replica: id, node } = change;
            let Some(i) = replicas.iter().position(|replica| replica.id == id) else {
                replicas.push(newcomer(change, shard)?);
                continue;
            };
            let replica = replicas[i];
            if replica.node != node {
                return Err(Unfit::OtherNode { replica: id, on: replica.node, named: node });
            }
            match (kind, replica.role) {
                (ChangeKind::Voter, Role::Learner) => replicas[i].role = Role::Incoming,
                (ChangeKind::Learner, Role::Voter) => replicas[i].role = Role::Demoting,
                (ChangeKind::Remove, Role::Voter) => replicas[i].role = Role::Outgoing,
                (ChangeKind::Remove, _) => drop(replicas.remove(i)),
                (ChangeKind::Voter | ChangeKind::Learner, _) => return Err(Unfit::NoChange(id)),
            }
        }
        Ok(replicas)
    }

    /// Whether the members are some, not too many, and each named once.
    fn check_members(&self) -> Result<(), Unfit> {
        let members = &self.members;
        if members.is_empty() {
            return Err(Unfit::Empty);
        }
        if members.len() > MEMBER_CHANGES_MAX {
            return Err(Unfit::TooMany(members.len()));
        }
        for (i, own) in members.iter().enumerate() {
            if own.replica.0 == 0 || own.node.0 == 0 {
                return Err(Unfit::Zero);
            }
            if members[..i].iter().any(|other| other.replica == own.replica) {
                return Err(Unfit::Twice { what: Named::Replica(own.replica) });
            }
            if members[..i].iter().any(|other| other.node == own.node) {
                return Err(Unfit::Twice { what: Named::Node(own.node) });
            }
        }
        Ok(())
    }
}

/// Somebody who was no member of the shard so far.
fn newcomer(change: MemberChange, shard: &Descriptor) -> Result<Replica, Unfit> {
    let MemberChange { kind, replica: id, node } = change;
    let role = match kind {
        ChangeKind::Voter => Role::Incoming,
        ChangeKind::Learner => Role::Learner,
        ChangeKind::Remove => return Err(Unfit::NotThere(id)),
    };
    match shard.on_node(node) {
        Some(holds) => Err(Unfit::NodeTaken { node, holds: holds.id }),
        None => Ok(Replica { id, node, role }),
    }
}

/// The replicas once a joint group is left.
fn settled(replicas: &[Replica]) -> Vec<Replica> {
    let settle = |replica: &Replica| {
        let role = match replica.role {
            Role::Voter | Role::Incoming => Role::Voter,
            Role::Learner | Role::Demoting => Role::Learner,
            Role::Outgoing => return None,
        };
        Some(Replica { role, ..*replica })
    };
    replicas.iter().filter_map(settle).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{KeyRange, ShardId};
    use ChangeKind::{Learner, Remove, Voter};
    use Transition::{EnterJoint, LeaveJoint, Simple};

    const AT: Epoch = Epoch { membership: 5, range: 3 };

    /// A shard with these replicas, each an id with the first letter of its role. Each is on the
    /// node with ten times its id.
    fn shard(replicas: &str) -> Descriptor {
        let replica = |word: &str| {
            let (id, role) = word.split_at(word.len() - 1);
            let id: u64 = id.parse().unwrap();
            let role = match role {
                "v" => Role::Voter,
                "l" => Role::Learner,
                "i" => Role::Incoming,
                "o" => Role::Outgoing,
                "d" => Role::Demoting,
                other => panic!("role {other}"),
            };
            Replica { id: ReplicaId(id), node: NodeId(id * 10), role }
        };
        let range = KeyRange::new("a", Some("m".into()));
        let replicas = replicas.split_whitespace().map(replica).collect();
        Descriptor { id: ShardId(7), range, epoch: AT, replicas }
    }

    fn on_node(kind: ChangeKind, replica: u64, node: u64) -> MemberChange {
        MemberChange { kind, replica: ReplicaId(replica), node: NodeId(node) }
    }

    fn voter(replica: u64) -> MemberChange {
        on_node(Voter, replica, replica * 10)
    }

    fn learner(replica: u64) -> MemberChange {
        on_node(Learner, replica, replica * 10)
    }

    fn remove(replica: u64) -> MemberChange {
        on_node(Remove, replica, replica * 10)
    }

    fn change(transition: Transition, members: &[MemberChange]) -> Change {
        let members = members.to_vec();
        Change { operation: OperationId(9), expected: AT, transition, members }
    }

    #[test]
    fn what_fits_leads_to_the_roles_that_it_says() {
        let everything = [voter(9), remove(1), remove(4), learner(8), learner(3), voter(5)];
        let table = [
            ("1v 2v 3v", change(Simple, &[learner(9)]), "1v 2v 3v 9l"),
            ("1v 2v 3v", change(Simple, &[voter(9)]), "1v 2v 3v 9v"),
            ("1v 4l 3v", change(Simple, &[voter(4)]), "1v 4v 3v"),
            ("1v 2v 3v", change(Simple, &[learner(1)]), "1l 2v 3v"),
            ("1v 2v 3v", change(Simple, &[remove(2)]), "1v 3v"),
            ("1v 4l 3v", change(Simple, &[remove(4)]), "1v 3v"),
            // The usual swap: one is promoted, one is demoted.
            ("1v 2v 3v 4l", change(EnterJoint, &[voter(4), learner(2)]), "1v 2d 3v 4i"),
            // One voter alone may change this way, too.
            ("1v 2v", change(EnterJoint, &[remove(1)]), "1o 2v"),
            // All voters are exchanged.
            ("1v", change(EnterJoint, &[remove(1), voter(2)]), "1o 2i"),
            // Everything at once; new ones stand in the order in which they are named.
            ("1v 2v 3v 4l 5l", change(EnterJoint, &everything), "1o 2v 3d 5i 9i 8l"),
            ("1o 2v 3d 5i 9i 8l", change(LeaveJoint, &[]), "2v 3l 5v 9v 8l"),
            ("1o 2i", Change::leave(OperationId(9), AT), "2v"),
        ];
        for (before, change, after) in table {
            let mut expected = shard(after);
            expected.epoch = Epoch { membership: 6, range: 3 };
            assert_eq!(change.applied_to(&shard(before)), Ok(expected), "{before} and {change:?}");
        }
    }

    #[test]
    fn what_does_not_fit_says_why() {
        const SOME: &str = "1v 2v 3v 4l";
        const ONE: &str = "1v 4l";
        const JOINT: &str = "1v 2o 3d 4i 5l";
        let many = |n: usize| (0..n as u64).map(|i| learner(100 + i)).collect::<Vec<_>>();
        let mut full = many(REPLICAS_MAX - 1);
        full[0].kind = Voter;
        let twice = |what| Unfit::Twice { what };
        let (r2, n20) = (ReplicaId(2), NodeId(20));
        let (elsewhere, on_its_node) = (on_node(Remove, 2, 10), on_node(Voter, 9, 20));
        let other_node = Unfit::OtherNode { replica: r2, on: n20, named: NodeId(10) };
        let node_taken = Unfit::NodeTaken { node: n20, holds: r2 };
        let table = [
            (SOME, change(Simple, &[]), Unfit::Empty),
            (SOME, change(EnterJoint, &[]), Unfit::Empty),
            (SOME, change(LeaveJoint, &[]), Unfit::NotJoint),
            (JOINT, change(LeaveJoint, &[voter(9)]), Unfit::LeavesWithMembers),
            (JOINT, change(Simple, &[]), Unfit::Empty),
            (JOINT, change(Simple, &[voter(9)]), Unfit::Joint),
            (JOINT, change(EnterJoint, &[voter(9)]), Unfit::Joint),
            (SOME, change(Simple, &[voter(4), remove(1)]), Unfit::NotSimple(2)),
            (SOME, change(EnterJoint, &[learner(9)]), Unfit::JointForNothing),
            (SOME, change(EnterJoint, &[remove(4)]), Unfit::JointForNothing),
            (SOME, change(Simple, &[voter(1)]), Unfit::NoChange(ReplicaId(1))),
            (SOME, change(Simple, &[learner(4)]), Unfit::NoChange(ReplicaId(4))),
            (SOME, change(Simple, &[remove(9)]), Unfit::NotThere(ReplicaId(9))),
            (SOME, change(EnterJoint, &[voter(2), remove(2)]), twice(Named::Replica(r2))),
            (SOME, change(EnterJoint, &[remove(2), on_its_node]), twice(Named::Node(n20))),
            (SOME, change(Simple, &[elsewhere]), other_node),
            (SOME, change(Simple, &[on_its_node]), node_taken),
            (SOME, change(Simple, &[on_node(Voter, 0, 90)]), Unfit::Zero),
            (SOME, change(Simple, &[on_node(Voter, 9, 0)]), Unfit::Zero),
            (ONE, change(Simple, &[remove(1)]), Unfit::NoVoter),
            (ONE, change(Simple, &[learner(1)]), Unfit::NoVoter),
            (ONE, change(EnterJoint, &[remove(1)]), Unfit::NoVoter),
            (ONE, change(EnterJoint, &full), Unfit::TooMany(REPLICAS_MAX + 1)),
            (ONE, change(EnterJoint, &many(129)), Unfit::TooMany(129)),
        ];
        for (before, change, why) in table {
            assert_eq!(change.applied_to(&shard(before)), Err(why), "{before} and {change:?}");
        }
        let mut last = shard(SOME);
        last.epoch.membership = u64::MAX;
        let late = Change { expected: last.epoch, ..change(Simple, &[remove(1)]) };
        assert_eq!(late.applied_to(&last), Err(Unfit::LastEpoch));
    }

    /// Whoever made it looked at another shard than this one is.
    #[test]
    fn a_change_fits_the_epoch_that_it_was_made_for_and_no_other() {
        let (before, fits) = (shard("1v 4l"), change(Simple, &[remove(4)]));
        let once = fits.applied_to(&before).unwrap();
        for (membership, range) in [(4, 3), (6, 3), (5, 2), (5, 4)] {
            let expected = Epoch { membership, range };
            let stale = Change { expected, ..fits.clone() };
            assert_eq!(stale.applied_to(&before), Err(Unfit::Stale { expected, current: AT }));
        }
        assert!(matches!(fits.applied_to(&once), Err(Unfit::Stale { .. })), "it was taken twice");
    }
}
