//! One truth of membership: what the descriptor becomes, raft-rs becomes, whatever is proposed.
//!
//! Random histories ask the router's function and a real `RawNode` the same; then whole cores do.

use super::cluster::{Answer, Cluster, FOREVER, SHARD, config};
use crate::core::group::entries::check_entry;
use crate::core::group::membership::{agrees, conf_state, to_raft};
use crate::core::{Envelope, Event, Timing};
use crate::rng::Rng;
use crate::sim::member::Lane;
use bytes::Bytes;
use flotilla_router::{Change, ChangeKind, MemberChange, OperationId, Transition, Unfit};
use flotilla_router::{
    Descriptor, Epoch, KeyRange, NodeId, Refusal, Replica, ReplicaId, Role, ShardId,
};
use protobuf::Message as _;
use raft::RawNode;
use raft::eraftpb::{
    ConfChangeTransition, ConfChangeV2, ConfState, Entry, EntryType, Message, MessageType,
};
use raft::storage::MemStorage;
use std::collections::BTreeMap;

const N1: NodeId = NodeId(1);
const N2: NodeId = NodeId(2);
const N3: NodeId = NodeId(3);

/// How many histories are lived through, and the changes of each.
const HISTORIES: u64 = 100_000;
const CHANGES: u64 = 8;
/// Replica ids and nodes are drawn from 1 up to this.
const IDS: u64 = 7;

/// A member of a group with this configuration.
fn member_of(conf_state: ConfState) -> RawNode<MemStorage> {
    let config = raft::Config { id: 1, ..raft::Config::default() };
    let storage = MemStorage::new_with_conf_state(conf_state);
    RawNode::new(&config, storage, &slog::Logger::root(slog::Discard, slog::o!())).unwrap()
}

/// What raft-rs says its configuration is.
fn conf_state_of<S: raft::Storage>(raw: &RawNode<S>) -> ConfState {
    raw.raft.prs().conf().to_conf_state()
}

/// A group of one to five, at least one of them a voter.
fn some_group(rng: &mut Rng) -> Descriptor {
    let count = rng.within(1..=5);
    let replica = |id| {
        let role = if id == 1 || rng.percent(65) { Role::Voter } else { Role::Learner };
        Replica { id: ReplicaId(id), node: NodeId(id), role }
    };
    let replicas = (1..=count).map(replica).collect();
    let epoch = Epoch { membership: rng.within(1..=9), range: rng.within(1..=9) };
    Descriptor { id: ShardId(7), range: KeyRange::all(), epoch, replicas }
}

/// Anything that somebody might propose, more often than not what fits.
fn some_change(descriptor: &Descriptor, rng: &mut Rng) -> Change {
    let leaves = rng.percent(if descriptor.is_joint() { 60 } else { 6 });
    let transition = match rng.below(2) {
        _ if leaves => Transition::LeaveJoint,
        0 => Transition::Simple,
        _ => Transition::EnterJoint,
    };
    let count = match transition {
        Transition::Simple if rng.percent(90) => 1,
        Transition::LeaveJoint if rng.percent(90) => 0,
        _ => rng.below(5),
    };
    let member = |rng: &mut Rng| {
        let id = rng.within(1..=IDS);
        let node = if rng.percent(95) { id } else { rng.within(1..=IDS) };
        let kind = rng.pick(&[ChangeKind::Voter, ChangeKind::Learner, ChangeKind::Remove]);
        MemberChange { kind, replica: ReplicaId(id), node: NodeId(node) }
    };
    let members = (0..count).map(|_| member(rng)).collect();
    let mut expected = descriptor.epoch;
    match rng.below(30) {
        0 => expected.membership -= 1,
        1 => expected.range += 1,
        _ => {}
    }
    Change { operation: OperationId(rng.next()), expected, transition, members }
}

/// What a refusal is called, and whether raft-rs, too, must refuse. Where it need not, the rules
/// here are stricter than its own; the reason stands beside each.
fn reason(why: &Unfit) -> (&'static str, bool) {
    match why {
        Unfit::Joint => ("joint", true),
        Unfit::NotJoint => ("not joint", true),
        Unfit::NoVoter => ("no voter", true),
        // raft-rs knows no epochs.
        Unfit::Stale { .. } => ("stale", false),
        // It knows no nodes.
        Unfit::OtherNode { .. } => ("on another node", false),
        Unfit::NodeTaken { .. } => ("node taken", false),
        // It carries out one word after the other, so the last one counts.
        Unfit::Twice { .. } => ("twice", false),
        // It passes over what changes nothing.
        Unfit::NoChange(_) => ("no change", false),
        Unfit::NotThere(_) => ("not there", false),
        // It enters with two equal sets, or takes nothing at all for the step out.
        Unfit::JointForNothing => ("joint for nothing", false),
        Unfit::Empty => ("empty", false),
        // It takes one for a simple change, more for the implicit way into a joint group.
        Unfit::LeavesWithMembers => ("leaves with members", false),
        Unfit::NotSimple(_) => ("not simple", false),
        Unfit::Bare | Unfit::LastEpoch | Unfit::Zero | Unfit::TooMany(_) => {
            panic!("no change that is drawn here is refused for this: {why}")
        }
    }
}

#[test]
fn raft_takes_what_is_taken_here_and_comes_to_the_same() {
    let mut counts = BTreeMap::<(&str, &str), u64>::new();
    for seed in 0..HISTORIES {
        let mut rng = Rng::new(seed);
        let mut descriptor = some_group(&mut rng);
        let mut raw = member_of(conf_state(&descriptor));
        for _ in 0..rng.within(1..=CHANGES) {
            let change = some_change(&descriptor, &mut rng);
            let shown = || format!("seed {seed}: {:?} and {change:?}", descriptor.replicas);
            let encoded = Change::decode(change.encode());
            assert_eq!(encoded.as_ref(), Ok(&change));
            let class = match change.applied_to(&descriptor) {
                Ok(changed) => {
                    let came_to = raw.apply_conf_change(&to_raft(&change));
                    let came_to = came_to.unwrap_or_else(|error| panic!("{}: {error}", shown()));
                    let expected = conf_state(&changed);
                    assert!(agrees(&came_to, &changed), "{}: {came_to:?}, {expected:?}", shown());
                    assert!(agrees(&conf_state_of(&raw), &changed), "{}", shown());
                    assert_eq!(changed.is_joint(), !came_to.get_voters_outgoing().is_empty());
                    assert!(changed.is_sound(), "{}", shown());
                    assert_eq!(changed.epoch.membership, descriptor.epoch.membership + 1);
                    descriptor = changed;
                    match change.transition {
                        Transition::Simple => ("taken", "simple"),
                        Transition::EnterJoint => ("taken", "enter joint"),
                        Transition::LeaveJoint => ("taken", "leave joint"),
                    }
                }
                Err(why) => {
                    // raft-rs is not asked at all then. What it would say, another one tells, which
                    // was made from the descriptor as after a restart.
                    let mut other = member_of(conf_state(&descriptor));
                    assert!(agrees(&conf_state_of(&other), &descriptor), "{}", shown());
                    let takes = other.apply_conf_change(&to_raft(&change)).is_ok();
                    let (name, both) = reason(&why);
                    assert!(!(takes && both), "{}: raft takes it, here it is {why}", shown());
                    (name, if takes { "raft takes it" } else { "raft refuses it" })
                }
            };
            *counts.entry(class).or_default() += 1;
        }
    }
    let taken = ["simple", "enter joint", "leave joint"].map(|how| ("taken", how));
    let both = ["joint", "not joint", "no voter"].map(|why| (why, "raft refuses it"));
    let stricter = [
        "stale",
        "on another node",
        "node taken",
        "twice",
        "no change",
        "not there",
        "joint for nothing",
        "empty",
        "leaves with members",
        "not simple",
    ];
    let stricter = stricter.map(|why| (why, "raft takes it"));
    for class in taken.into_iter().chain(both).chain(stricter) {
        let count = counts.get(&class).copied().unwrap_or_default();
        assert!(count >= 500, "{class:?} came up {count} times: {counts:#?}");
    }
}

impl Cluster {
    /// What a node's core takes the shard to be.
    fn descriptor(&self, node: NodeId) -> Descriptor {
        (**self.replica(node, SHARD).unwrap().group.descriptor()).clone()
    }

    /// Has the shard's leader propose what nobody can ask for yet, and everybody apply it.
    fn propose(&mut self, leader: NodeId, context: Bytes, data: ConfChangeV2) {
        let replica = self.running_mut(leader).core.replicas.get_mut(SHARD).unwrap();
        assert!(!replica.group.raw.raft.has_pending_conf(), "raft-rs would make it an empty entry");
        replica.group.raw.propose_conf_change(context.to_vec(), data).unwrap();
        let put = self.post_put(leader, "k", "v", FOREVER);
        self.settle();
        self.run(20);
        assert!(matches!(self.answer(put), Some(Answer::Written(_))), "{:?}", self.answer(put));
    }

    /// Checks that on these nodes core, raft-rs and disk take the shard to be this.
    fn check_members(&self, nodes: &[NodeId], expected: &Descriptor) {
        for node in nodes {
            let replica = self.replica(*node, SHARD).unwrap();
            assert_eq!(replica.group.quarantined, None, "node {node}");
            assert_eq!(**replica.group.descriptor(), *expected, "node {node}");
            let conf_state = conf_state_of(&replica.group.raw);
            assert!(agrees(&conf_state, expected), "node {node}: {conf_state:?}");
            let stored =
                raft::Storage::initial_state(replica.group.raw.store()).unwrap().conf_state;
            assert!(agrees(&stored, expected), "node {node}: {stored:?}");
            assert_eq!(self.member(*node).on_disk(SHARD).descriptor, *expected, "node {node}");
        }
    }
}

fn change(expected: Epoch, transition: Transition, members: &[(ChangeKind, NodeId)]) -> Change {
    let member = |&(kind, node): &(ChangeKind, NodeId)| {
        let replica = ReplicaId(SHARD.0 * 10 + node.0);
        MemberChange { kind, replica, node }
    };
    let members = members.iter().map(member).collect();
    Change { operation: OperationId(3), expected, transition, members }
}

/// Enters a joint group {1, 2} → {1, 3} on nodes 1 and 2, while node 3 is down: it can't be left.
fn stuck_in_the_middle() -> (Cluster, Descriptor) {
    let mut cluster = Cluster::led();
    let original = cluster.descriptor(N1);
    // A voter becomes a learner, in one step.
    let demote = change(original.epoch, Transition::Simple, &[(ChangeKind::Learner, N3)]);
    cluster.propose(N1, demote.encode(), to_raft(&demote));
    let expected = demote.applied_to(&original).unwrap();
    cluster.check_members(&[N1, N2, N3], &expected);
    cluster.crash(N3, 0);
    // It becomes a voter again, while another becomes a learner.
    let swap = [(ChangeKind::Voter, N3), (ChangeKind::Learner, N2)];
    let enter = change(expected.epoch, Transition::EnterJoint, &swap);
    let replica = cluster.running_mut(N1).core.replicas.get_mut(SHARD).unwrap();
    replica.group.raw.propose_conf_change(enter.encode().to_vec(), to_raft(&enter)).unwrap();
    cluster.post_put(N1, "k", "v", FOREVER);
    cluster.run(3);
    let expected = enter.applied_to(&expected).unwrap();
    assert!(expected.is_joint());
    cluster.check_members(&[N1, N2], &expected);
    (cluster, expected)
}

#[test]
fn a_joint_group_lives_through_restarts_and_is_left_by_whoever_leads_it() {
    let (mut cluster, joint) = stuck_in_the_middle();
    // Those who are there go down in the middle of it, and find both sets of voters again.
    for node in [N1, N2] {
        cluster.crash(node, 0);
        cluster.start(node);
    }
    cluster.run(100);
    cluster.check_members(&[N1, N2], &joint);
    assert_eq!(cluster.leader(SHARD), None, "the old voters elected a leader alone");
    cluster.start(N3);
    cluster.run(100);
    cluster.leader(SHARD).expect("both sets have a quorum");
    let leave = Change::leave(OperationId(3), joint.epoch);
    // The step out has no data, only a context.
    assert!(to_raft(&leave) == ConfChangeV2::default());
    let left = leave.applied_to(&joint).unwrap();
    cluster.check_members(&[N1, N2, N3], &left);
    let roles: Vec<_> = left.replicas.iter().map(|replica| replica.role).collect();
    assert_eq!(roles, [Role::Voter, Role::Learner, Role::Voter]);
}

/// A joint group needs a quorum of both sets: of the new one, node 3 is gone, and node 1 is half.
#[test]
fn a_joint_group_commits_nothing_without_both_quorums() {
    let (mut cluster, _) = stuck_in_the_middle();
    let age = |cluster: &mut Cluster| {
        let now = cluster.member(N1).now;
        let replica = cluster.running_mut(N1).core.replicas.get_mut(SHARD).unwrap();
        replica.freshness.age(&replica.group, now)
    };
    let before = age(&mut cluster).expect("it leads");
    let put = cluster.post_put(N1, "k", "w", FOREVER);
    cluster.tick(N1, 4);
    cluster.settle();
    assert_eq!(cluster.answer(put), None, "the old voters decided alone");
    // What it shows grows older: the old voters alone don't vouch for it either.
    let after = age(&mut cluster).expect("it was fresh once");
    assert!(after >= before + 3 * super::cluster::TICK, "{before:?}, and then {after:?}");
    cluster.start(N3);
    cluster.run(60);
    assert!(cluster.answer(put).is_some());
}

/// Whoever entered may be gone: its own vote is given up here, and it dies before it has seen that.
#[test]
fn a_joint_group_is_left_by_a_leader_that_did_not_enter_it() {
    let mut cluster = Cluster::led();
    let original = cluster.descriptor(N1);
    let enter = change(original.epoch, Transition::EnterJoint, &[(ChangeKind::Learner, N1)]);
    cluster.running_mut(N1).hold(Lane::Apply);
    let replica = cluster.running_mut(N1).core.replicas.get_mut(SHARD).unwrap();
    replica.group.raw.propose_conf_change(enter.encode().to_vec(), to_raft(&enter)).unwrap();
    cluster.post_put(N1, "k", "v", FOREVER);
    cluster.run(3);
    let joint = enter.applied_to(&original).unwrap();
    cluster.check_members(&[N2, N3], &joint);
    cluster.crash(N1, 0);
    cluster.run(100);
    let left = Change::leave(OperationId(0), joint.epoch).applied_to(&joint).unwrap();
    cluster.check_members(&[N2, N3], &left);
    cluster.start(N1);
    cluster.run(20);
    cluster.check_members(&[N1, N2, N3], &left);
}

#[test]
fn whoever_orders_a_change_hears_what_the_shard_is_then() {
    let mut cluster = Cluster::led();
    let order = |cluster: &mut Cluster, transition, members: &[(ChangeKind, NodeId)]| {
        let before = cluster.descriptor(N1);
        let change = change(before.epoch, transition, members);
        let ticket = cluster.post_change(N1, change.clone(), FOREVER);
        cluster.settle();
        let expected = change.applied_to(&before).unwrap();
        assert_eq!(cluster.answer(ticket), Some(&Answer::Changed(expected.clone().into())));
        cluster.run(5);
        let left = Change::leave(OperationId(0), expected.epoch).applied_to(&expected);
        cluster.check_members(&[N1, N2, N3], &left.unwrap_or(expected));
    };
    order(&mut cluster, Transition::Simple, &[(ChangeKind::Learner, N3)]);
    let swap = [(ChangeKind::Voter, N3), (ChangeKind::Learner, N2)];
    order(&mut cluster, Transition::EnterJoint, &swap);
    order(&mut cluster, Transition::Simple, &[(ChangeKind::Voter, N2)]);
    assert_eq!(cluster.descriptor(N1).epoch.membership, 5);
}

#[test]
fn a_change_that_would_do_harm_is_refused_before_it_is_proposed() {
    use ChangeKind::{Learner, Remove, Voter};
    use Transition::{EnterJoint, LeaveJoint, Simple};
    let refused = |cluster: &mut Cluster, node: NodeId, change: Change, why: &str| {
        let last = |cluster: &Cluster| {
            cluster.replica(node, SHARD).unwrap().group.raw.raft.raft_log.last_index()
        };
        let before = last(cluster);
        let ticket = cluster.post_change(node, change, FOREVER);
        cluster.pass(node);
        let answer = format!("{:?}", cluster.answer(ticket));
        assert!(answer.contains(why), "{answer}, which does not say {why:?}");
        assert_eq!(last(cluster), before, "{why}: it was proposed");
    };
    let mut cluster = Cluster::led();
    let epoch = cluster.descriptor(N1).epoch;
    let simple = |kind, node| change(epoch, Simple, &[(kind, node)]);
    refused(&mut cluster, N2, simple(Learner, N3), "NotLeader");
    refused(&mut cluster, N1, simple(Learner, N1), "hand leadership over first");
    refused(&mut cluster, N1, simple(Remove, N1), "hand leadership over first");
    let stale = Epoch { membership: 9, ..epoch };
    refused(&mut cluster, N1, change(stale, Simple, &[(Learner, N3)]), "look at it again");
    refused(&mut cluster, N1, change(epoch, LeaveJoint, &[]), "nothing to leave");
    let new = simple(Voter, NodeId(4));
    refused(&mut cluster, N1, new, "add it as a learner first");
    // One at a time.
    let ticket = cluster.post_change(N1, simple(Learner, N3), FOREVER);
    cluster.pass(N1);
    refused(&mut cluster, N1, simple(Learner, N2), "another change is under way");
    cluster.settle();
    assert!(matches!(cluster.answer(ticket), Some(Answer::Changed(_))));
    // A learner that is behind, or gone, would hold the quorum up.
    let epoch = cluster.descriptor(N1).epoch;
    let promote = |kind, node| change(epoch, Simple, &[(kind, node)]);
    cluster.running_mut(N3).hold(Lane::Persist);
    for n in 0..70 {
        cluster.put(N1, "k", &n.to_string());
    }
    refused(&mut cluster, N1, promote(Voter, N3), "entries behind");
    cluster.running_mut(N3).release(Lane::Persist);
    cluster.crash(N3, 0);
    cluster.run(60);
    refused(&mut cluster, N1, promote(Voter, N3), "does not take part");
    // Neither the old set of voters nor the new one may lack a quorum that is alive.
    let mut cluster = Cluster::led();
    cluster.crash(N2, 0);
    cluster.run(20);
    let epoch = cluster.descriptor(N1).epoch;
    let why = "of 2 voters 1 would take part, and 2 are needed";
    refused(&mut cluster, N1, change(epoch, Simple, &[(Remove, N3)]), why);
    refused(&mut cluster, N1, change(epoch, EnterJoint, &[(Learner, N3)]), why);
    let ticket = cluster.post_change(N1, change(epoch, Simple, &[(Remove, N2)]), FOREVER);
    cluster.settle();
    assert!(matches!(cluster.answer(ticket), Some(Answer::Changed(_))), "a dead one may go");
}

/// A node may give signs of life while its replica takes no part: a quorum that counts on it would
/// never decide anything again, the way back included.
#[test]
fn a_replica_that_is_quarantined_counts_for_no_quorum() {
    let mut cluster = Cluster::led();
    let epoch = cluster.descriptor(N1).epoch;
    // Its disk has lost what it promised, says the leader.
    let mut envelope = heartbeat(&cluster, cluster.descriptor(N1).on_node(N1).unwrap().id, 0);
    let group = &cluster.replica(N2, SHARD).unwrap().group;
    (envelope.message.to, envelope.message.term) = (group.id.0, group.raw.raft.term);
    (envelope.message.commit, envelope.committed) = (1000, 1000);
    cluster.post(N2, Event::Message { from: N1, envelope });
    cluster.run(30);
    assert!(cluster.replica(N2, SHARD).unwrap().group.quarantined.is_some());
    let demote = change(epoch, Transition::Simple, &[(ChangeKind::Learner, N3)]);
    let ticket = cluster.post_change(N1, demote, FOREVER);
    cluster.pass(N1);
    let answer = format!("{:?}", cluster.answer(ticket));
    assert!(answer.contains("of 2 voters 1 would take part"), "{answer}");
}

/// raft-rs gives whoever is new a good start: heard lately, and hardly behind where the log is
/// short.
#[test]
fn a_learner_that_was_never_there_does_not_become_a_voter() {
    let mut cluster = Cluster::led();
    cluster.crash(N3, 0);
    let order = |cluster: &mut Cluster, kind, replica: u64| {
        let members = vec![MemberChange { kind, replica: ReplicaId(replica), node: N3 }];
        let (expected, transition) = (cluster.descriptor(N1).epoch, Transition::Simple);
        let change = Change { operation: OperationId(3), expected, transition, members };
        let ticket = cluster.post_change(N1, change, FOREVER);
        cluster.settle();
        format!("{:?}", cluster.answer(ticket))
    };
    assert!(order(&mut cluster, ChangeKind::Remove, SHARD.0 * 10 + N3.0).contains("Changed"));
    assert!(order(&mut cluster, ChangeKind::Learner, 99).contains("Changed"));
    let answer = order(&mut cluster, ChangeKind::Voter, 99);
    assert!(answer.contains("does not take part"), "{answer}");
}

/// raft-rs takes a snapshot's members over as soon as it is offered. A change that was applied
/// late, below the snapshot, must not be made on top of them.
#[test]
fn a_change_that_is_applied_late_is_not_made_on_top_of_a_snapshot() {
    let (n4, n5) = (NodeId(4), NodeId(5));
    let all = [N1, N2, N3, n4, n5];
    let mut config = config();
    config.log.bytes_per_shard_max = 1 << 16;
    let mut cluster = Cluster::new(5, 1, config);
    cluster.run(20);
    let order = |cluster: &mut Cluster, kind| {
        let change = change(cluster.descriptor(N1).epoch, Transition::Simple, &[(kind, N2)]);
        let ticket = cluster.post_change(N1, change, FOREVER);
        cluster.settle();
        cluster.run(3);
        assert!(matches!(cluster.answer(ticket), Some(Answer::Changed(_))));
    };
    cluster.running_mut(n5).hold(Lane::Apply);
    order(&mut cluster, ChangeKind::Learner);
    assert!(cluster.running_mut(n5).waiting(Lane::Apply) > 0, "the change was not handed out");
    cluster.partition(&[n5], &[N1, N2, N3, n4]);
    order(&mut cluster, ChangeKind::Voter);
    // It is taken for dead, and the log is cut away above what it has.
    cluster.run(20);
    for n in 0..40 {
        cluster.put(N1, "k", &format!("{n}{}", "x".repeat(8 << 10)));
    }
    cluster.network.heal();
    for _ in 0..300 {
        if cluster.replica(n5, SHARD).unwrap().group.installing {
            break;
        }
        cluster.run(1);
    }
    assert!(cluster.replica(n5, SHARD).unwrap().group.installing, "no snapshot is accepted");
    cluster.running_mut(n5).release(Lane::Apply);
    cluster.settle();
    cluster.run(60);
    let expected = cluster.descriptor(N1);
    cluster.check_members(&all, &expected);
}

/// Leaving, it would step down, and nobody would lead for an election timeout.
#[test]
fn a_leader_that_gives_its_vote_up_hands_over_before_it_leaves() {
    let mut cluster = Cluster::led();
    let original = cluster.descriptor(N1);
    let enter = change(original.epoch, Transition::EnterJoint, &[(ChangeKind::Learner, N1)]);
    let replica = cluster.running_mut(N1).core.replicas.get_mut(SHARD).unwrap();
    replica.group.raw.propose_conf_change(enter.encode().to_vec(), to_raft(&enter)).unwrap();
    cluster.post_put(N1, "k", "v", FOREVER);
    cluster.settle();
    // An election would take at least twelve ticks.
    cluster.run(2);
    assert!([Some(N2), Some(N3)].contains(&cluster.leader(SHARD)), "{:#?}", cluster.take_trace());
    cluster.run(10);
    let joint = enter.applied_to(&original).unwrap();
    let left = Change::leave(OperationId(0), joint.epoch).applied_to(&joint).unwrap();
    cluster.check_members(&[N1, N2, N3], &left);
}

/// As with a write: *not applied* only if that is certain, unknown if it is not.
#[test]
fn an_order_whose_leader_is_cut_off_is_answered_honestly() {
    let mut cluster = Cluster::led();
    let epoch = cluster.descriptor(N1).epoch;
    let demote = change(epoch, Transition::Simple, &[(ChangeKind::Learner, N3)]);
    cluster.partition(&[N1], &[N2, N3]);
    let soon = cluster.member(N1).now + 3 * super::cluster::TICK;
    let overdue = cluster.post_change(N1, demote.clone(), soon);
    cluster.run(5);
    assert!(matches!(
        cluster.answer(overdue),
        Some(Answer::Refused(Refusal::OutcomeUnknown { .. }))
    ));
    let mut cluster = Cluster::led();
    cluster.partition(&[N1], &[N2, N3]);
    let overruled = cluster.post_change(N1, demote, FOREVER);
    cluster.pass(N1);
    // It might take the vote of whoever is to lead; but only a leader can say so.
    let early = cluster.post_transfer(N1, SHARD, N3);
    cluster.run(100);
    assert!(matches!(cluster.answer(early), Some(Answer::Refused(Refusal::Conflict { .. }))));
    assert_eq!(cluster.answer(overruled), None, "nobody can know yet");
    let late = cluster.post_transfer(N1, SHARD, N3);
    cluster.pass(N1);
    assert!(matches!(cluster.answer(late), Some(Answer::Refused(Refusal::NotLeader { .. }))));
    cluster.network.heal();
    cluster.run(40);
    assert!(matches!(cluster.answer(overruled), Some(Answer::Refused(Refusal::NotLeader { .. }))));
    assert_eq!(cluster.descriptor(N1).epoch, epoch);
}

/// What a leader may append: data and context say the same, or there is no context at all.
#[test]
fn an_entry_whose_data_and_context_differ_is_not_let_into_the_log() {
    let mut cluster = Cluster::led();
    let epoch = cluster.descriptor(N1).epoch;
    let simple = |node| change(epoch, Transition::Simple, &[(ChangeKind::Remove, node)]);
    let swap = [(ChangeKind::Learner, N2), (ChangeKind::Remove, N3)];
    let enter = change(epoch, Transition::EnterJoint, &swap);
    let leave = Change::leave(OperationId(1), epoch);
    let mut implicit = to_raft(&enter);
    implicit.set_transition(ConfChangeTransition::Implicit);
    let (none, descriptor) = (Bytes::new(), cluster.descriptor(N1).encode());
    let unread = Some("a membership change whose context can't be read");
    let differ = Some("a membership change whose data and context differ");
    for (context, data, refused) in [
        (simple(N2).encode(), to_raft(&simple(N2)), None),
        (enter.encode(), to_raft(&enter), None),
        // Neither fits here, which is not for the guard to say.
        (leave.encode(), to_raft(&leave), None),
        (none, to_raft(&simple(N2)), None),
        (Bytes::from_static(&[0xff]), to_raft(&simple(N2)), unread),
        (descriptor, to_raft(&simple(N2)), unread),
        (simple(N2).encode(), to_raft(&simple(N3)), differ),
        (simple(N2).encode(), to_raft(&leave), differ),
        (leave.encode(), to_raft(&simple(N2)), differ),
        (enter.encode(), implicit, differ),
    ] {
        let shown = format!("{data:?} as {context:?}");
        let mut entry = Entry { index: 3, term: 2, context, ..Entry::default() };
        entry.set_entry_type(EntryType::EntryConfChangeV2);
        entry.data = data.write_to_bytes().unwrap().into();
        assert_eq!(check_entry(&entry).err(), refused, "{shown}");
        let envelope = cluster.forge(N1, N2, |m| {
            m.set_msg_type(MessageType::MsgAppend);
            (m.index, m.log_term) = (2, 2);
            m.set_entries(vec![entry].into());
        });
        let before = cluster.running_mut(N2).core.counters().messages_refused;
        cluster.post(N2, Event::Message { from: N1, envelope });
        cluster.pass(N2);
        let after = cluster.running_mut(N2).core.counters().messages_refused;
        assert_eq!(after - before, u64::from(refused.is_some()), "{shown}");
    }
}

/// raft-rs must not hear of a change that was refused, and takes the next one all the same.
#[test]
fn a_change_that_does_not_fit_is_passed_over_by_all() {
    let mut cluster = Cluster::led();
    let all = [N1, N2, N3];
    let original = cluster.descriptor(N1);
    let stale = Epoch { membership: original.epoch.membership + 1, ..original.epoch };
    let remove = |epoch| change(epoch, Transition::Simple, &[(ChangeKind::Remove, N3)]);
    // raft-rs would take all of these.
    let late = remove(stale);
    cluster.propose(N1, late.encode(), to_raft(&late));
    cluster.check_members(&all, &original);
    cluster.propose(N1, Bytes::new(), to_raft(&remove(original.epoch)));
    cluster.check_members(&all, &original);
    let twice = [(ChangeKind::Remove, N2), (ChangeKind::Learner, N2)];
    let twice = change(original.epoch, Transition::EnterJoint, &twice);
    cluster.propose(N1, twice.encode(), to_raft(&twice));
    cluster.check_members(&all, &original);
    let fits = change(original.epoch, Transition::Simple, &[(ChangeKind::Learner, N3)]);
    cluster.propose(N1, fits.encode(), to_raft(&fits));
    cluster.check_members(&all, &fits.applied_to(&original).unwrap());
    for node in all {
        cluster.crash(node, 0);
        cluster.start(node);
    }
    cluster.run(60);
    cluster.check_members(&all, &fits.applied_to(&original).unwrap());
}

/// The guard keeps such an entry out of followers' logs. Where it is in one all the same, the shard
/// is quarantined rather than led by other voters than those that its descriptor names.
#[test]
fn a_shard_whose_members_and_raft_part_is_quarantined() {
    let add = |epoch| change(epoch, Transition::Simple, &[(ChangeKind::Learner, N2)]);
    let other = |epoch| change(epoch, Transition::Simple, &[(ChangeKind::Voter, N3)]);
    let leave = |epoch| Change::leave(OperationId(1), epoch);
    let other: fn(Epoch) -> Change = other;
    for (data, why) in [(other, "raft has come to"), (leave, "raft refuses it")] {
        let mut cluster = Cluster::new(1, 1, config());
        cluster.run(20);
        let epoch = cluster.descriptor(N1).epoch;
        let (context, data) = (add(epoch).encode(), to_raft(&data(epoch)));
        let replica = cluster.running_mut(N1).core.replicas.get_mut(SHARD).unwrap();
        if data == ConfChangeV2::default() {
            // raft-rs itself does not propose to leave what is not joint.
            let mut entry = Entry { context, ..Entry::default() };
            entry.set_entry_type(EntryType::EntryConfChangeV2);
            assert!(replica.group.raw.raft.append_entry(&mut [entry]));
        } else {
            replica.group.raw.propose_conf_change(context.to_vec(), data).unwrap();
        }
        cluster.post_put(N1, "k", "v", FOREVER);
        cluster.run(20);
        let quarantined = cluster.replica(N1, SHARD).unwrap().group.quarantined.clone();
        let quarantined = quarantined.expect("it goes on with two memberships");
        assert!(quarantined.contains(why), "{quarantined}");
    }
}

/// A heartbeat of a leader in the next term, from a replica on a node, at an epoch so many changes
/// ahead.
fn heartbeat(cluster: &Cluster, from: ReplicaId, epochs_ahead: u64) -> Envelope {
    let group = &cluster.replica(N3, SHARD).unwrap().group;
    let term = group.raw.raft.term + 1;
    let mut message = Message { from: from.0, to: group.id.0, term, ..Message::default() };
    message.set_msg_type(MessageType::MsgHeartbeat);
    let mut epoch = group.descriptor().epoch;
    epoch.membership += epochs_ahead;
    Envelope { shard: SHARD, epoch, committed: 0, timing: Timing::default(), message }
}

/// Thesis §4.1: a server that was away must hear a leader that its configuration does not know, or
/// it never catches up.
#[test]
fn a_leader_that_was_added_while_a_replica_was_away_is_heard_and_answered() {
    let mut cluster = Cluster::led();
    cluster.partition(&[N3], &[N1]);
    cluster.network.hold((N3, N2));
    let newcomer = ReplicaId(99);
    let envelope = heartbeat(&cluster, newcomer, 2);
    cluster.post(N3, Event::Message { from: N2, envelope });
    cluster.pass(N3);
    let group = &cluster.replica(N3, SHARD).unwrap().group;
    assert_eq!((group.raw.raft.leader_id, group.leader_node()), (99, Some(N2)));
    assert!(cluster.network.first_frame((N3, N2)).is_some(), "it is not answered");
}

/// raft-rs names a leader by the id of a replica; where that is may be known earlier or later.
#[test]
fn a_leader_is_published_again_once_its_node_is_known() {
    let mut cluster = Cluster::led();
    cluster.partition(&[N3], &[N1, N2]);
    let leads = heartbeat(&cluster, ReplicaId(99), 2);
    let published = |cluster: &mut Cluster| {
        cluster.post(N3, Event::Message { from: N2, envelope: leads.clone() });
        cluster.take_trace();
        cluster.pass(N3);
        let trace = cluster.take_trace();
        trace.into_iter().filter(|line| line.contains("publishes")).collect::<Vec<_>>()
    };
    assert_eq!(published(&mut cluster), ["n3 publishes n2 as leader of s2"]);
    assert!(published(&mut cluster).is_empty(), "nothing changed");
    // A descriptor that does not have it yet, as an install would bring.
    let replicas = &mut cluster.running_mut(N3).core.replicas;
    let descriptor = replicas.get(SHARD).unwrap().group.descriptor().clone();
    assert!(replicas.change(descriptor));
    cluster.running_mut(N3).core.pass.touch(SHARD);
    cluster.take_trace();
    cluster.pass(N3);
    assert!(cluster.take_trace().contains(&"n3 publishes no leader of s2".to_owned()));
    assert_eq!(published(&mut cluster), ["n3 publishes n2 as leader of s2"]);
}

#[test]
fn a_replica_is_who_its_node_and_its_epoch_say_it_is_and_nobody_else() {
    let mut cluster = Cluster::led();
    cluster.partition(&[N3], &[N1, N2]);
    let known = cluster.descriptor(N3).on_node(N1).unwrap().id;
    let refused = |cluster: &mut Cluster| cluster.running_mut(N3).core.counters().messages_refused;
    for (what, from, replica, epochs_ahead) in [
        ("nobody, at an epoch at which both know all", N2, ReplicaId(99), 0),
        ("a member of another node", N2, known, 0),
        ("the same, which may have moved: ids never do", N2, known, 5),
    ] {
        let (before, envelope) =
            (refused(&mut cluster), heartbeat(&cluster, replica, epochs_ahead));
        let leader = cluster.replica(N3, SHARD).unwrap().group.raw.raft.leader_id;
        cluster.post(N3, Event::Message { from, envelope });
        cluster.pass(N3);
        assert_eq!(refused(&mut cluster), before + 1, "{what} was heard");
        assert_eq!(cluster.replica(N3, SHARD).unwrap().group.raw.raft.leader_id, leader, "{what}");
    }
}

/// What a member says may show that this disk lost something; what a newcomer says shows nothing.
#[test]
fn a_newcomer_quarantines_nobody() {
    let mut cluster = Cluster::led();
    for (replica, node, quarantines) in
        [(ReplicaId(99), N2, false), (cluster.descriptor(N3).on_node(N1).unwrap().id, N1, true)]
    {
        let mut envelope = heartbeat(&cluster, replica, 2);
        envelope.message.commit = 1000;
        envelope.committed = 1000;
        cluster.post(N3, Event::Message { from: node, envelope });
        cluster.pass(N3);
        assert_eq!(
            cluster.replica(N3, SHARD).unwrap().group.quarantined.is_some(),
            quarantines,
            "replica {replica}"
        );
    }
}

/// What a snapshot holds is what the shard was when it was pinned. Whoever gets it compares its
/// members with what its files say, so the members of a later moment would have it refused, and
/// sent again, for ever.
#[test]
fn a_change_that_is_applied_while_a_snapshot_is_built_does_not_spoil_it() {
    let mut config = config();
    config.log.bytes_per_shard_max = 1 << 16;
    let mut cluster = Cluster::led_with(config);
    cluster.crash(N3, 0);
    cluster.running_mut(N1).hold(Lane::Build);
    for n in 0..40 {
        cluster.put(N1, "k", &format!("{n}{}", "x".repeat(8 << 10)));
    }
    // It is taken for dead, and its log is cut away.
    cluster.run(20);
    cluster.start(N3);
    for _ in 0..200 {
        if cluster.running_mut(N1).waiting(Lane::Build) > 0 {
            break;
        }
        cluster.run(1);
    }
    // The build is done; before anybody hears of it the shard's members change.
    assert!(cluster.work(N1, Lane::Build), "no snapshot is asked for");
    let built = cluster.running_mut(N1).mailbox.pop_back().expect("the build is reported");
    assert!(matches!(built, Event::SnapshotBuilt { .. }), "{built:?}");
    let original = cluster.descriptor(N1);
    let demote = change(original.epoch, Transition::Simple, &[(ChangeKind::Learner, N2)]);
    let replica = cluster.running_mut(N1).core.replicas.get_mut(SHARD).unwrap();
    replica.group.raw.propose_conf_change(demote.encode().to_vec(), to_raft(&demote)).unwrap();
    cluster.put(N1, "k", "v");
    let expected = demote.applied_to(&original).unwrap();
    assert_eq!(cluster.descriptor(N1), expected);
    cluster.post(N1, built);
    cluster.running_mut(N1).release(Lane::Build);
    cluster.settle();
    cluster.run(100);
    cluster.check_members(&[N1, N2, N3], &expected);
    assert_eq!(
        cluster.running_mut(N3).core.counters().messages_refused,
        0,
        "the snapshot was refused"
    );
}

/// What a newcomer may say is bounded: it leads or asks for votes, at an epoch that can be, from
/// one node.
#[test]
fn a_newcomer_is_believed_no_more_than_it_must_be() {
    let mut cluster = Cluster::led();
    cluster.partition(&[N3], &[N1, N2]);
    let (newcomer, refused) = (ReplicaId(99), |cluster: &mut Cluster| {
        cluster.running_mut(N3).core.counters().messages_refused
    });
    let mut say = |from: NodeId, envelope: Envelope| {
        let before = refused(&mut cluster);
        cluster.post(N3, Event::Message { from, envelope });
        cluster.pass(N3);
        refused(&mut cluster) > before
    };
    let spoil: [fn(&mut Envelope); 3] = [
        |envelope| envelope.epoch.membership = u64::MAX,
        |envelope| envelope.message.set_msg_type(MessageType::MsgAppendResponse),
        |envelope| envelope.message.set_msg_type(MessageType::MsgTimeoutNow),
    ];
    let honest = heartbeat(&Cluster::led(), newcomer, 2);
    for spoil in spoil {
        let mut envelope = honest.clone();
        spoil(&mut envelope);
        assert!(say(N2, envelope.clone()), "{envelope:?} was heard");
    }
    assert!(!say(N2, honest.clone()), "it is not heard at all");
    assert!(say(N1, honest), "it speaks from two nodes");
}
