//! Whoever has heard a leader votes for nobody for an election timeout, whatever late messages and
//! restarts make raft-rs forget. A lease read is only as good as that.

use super::cluster::{Answer, Cluster, FOREVER, SHARD, config};
use crate::core::Event;
use flotilla_router::{Consistency, NodeId};
use raft::StateRole;
use raft::eraftpb::MessageType;

const N1: NodeId = NodeId(1);
const N2: NodeId = NodeId(2);
const N3: NodeId = NodeId(3);

/// Three nodes with leases, led by the first.
fn leased(seed: u64) -> Cluster {
    let mut config = config();
    config.reads.lease = true;
    config.seed = seed;
    Cluster::led_with(config)
}

fn role(cluster: &Cluster, node: NodeId) -> StateRole {
    cluster.replica(node, SHARD).unwrap().group.raw.raft.state
}

fn vote(cluster: &Cluster, node: NodeId) -> u64 {
    cluster.replica(node, SHARD).unwrap().group.raw.raft.vote
}

/// A message as `from` could have sent it to `to`, `above` terms above that one's.
fn forge(
    cluster: &mut Cluster,
    (from, to): (NodeId, NodeId),
    kind: MessageType,
    above: u64,
    context: &'static [u8],
) {
    let envelope = cluster.forge(from, to, |message| {
        message.set_msg_type(kind);
        message.term += above;
        (message.index, message.log_term) = (100, message.term);
        message.reject = kind == MessageType::MsgRequestPreVoteResponse;
        message.context = context.into();
    });
    cluster.post(to, Event::Message { from, envelope });
    cluster.pass(to);
}

#[test]
fn a_late_message_of_a_higher_term_ends_no_promise() {
    let mut cluster = leased(7);
    cluster.run(3);
    let election_ticks = cluster.config.raft.election_ticks as u64;
    cluster.network.hold((N1, N2));
    // raft-rs follows nobody any more; but it was an answer, not a leader.
    forge(&mut cluster, (N3, N2), MessageType::MsgRequestPreVoteResponse, 1, b"");
    assert_eq!(cluster.replica(N2, SHARD).unwrap().group.raw.raft.leader_id, 0);
    for tick in 1..2 * election_ticks {
        // Of the term that it is in already, and of the next.
        for above in [0, 1] {
            forge(&mut cluster, (N3, N2), MessageType::MsgRequestVote, above, b"");
            let voted = vote(&cluster, N2) != 0;
            assert_eq!(voted, tick > election_ticks, "{tick} ticks after the leader was heard");
            if voted {
                return;
            }
        }
        cluster.tick(N2, 1);
    }
    panic!("it stands by its leader for ever");
}

#[test]
fn who_has_just_started_stands_by_whomever_it_may_have_heard() {
    let mut cluster = leased(7);
    cluster.run(3);
    cluster.crash(N2, usize::MAX);
    cluster.start(N2);
    cluster.network.hold((N1, N2));
    let election_ticks = cluster.config.raft.election_ticks as u64;
    cluster.tick(N2, election_ticks - 1);
    forge(&mut cluster, (N3, N2), MessageType::MsgRequestVote, 1, b"");
    assert_ne!(vote(&cluster, N2), 23);
    cluster.tick(N2, 1);
    forge(&mut cluster, (N3, N2), MessageType::MsgRequestVote, 1, b"");
    assert_eq!(vote(&cluster, N2), 23);
}

#[test]
fn a_leader_that_hands_over_releases_its_followers() {
    let mut cluster = leased(7);
    cluster.run(3);
    forge(&mut cluster, (N3, N2), MessageType::MsgRequestVote, 1, raft::CAMPAIGN_TRANSFER);
    assert_eq!(vote(&cluster, N2), 23);
}

/// The whole of it, in the order in which it happens, for many shapes of timeouts: the leader's
/// links stand still; one follower becomes a candidate, and what it says to the other is long on
/// its way; the other hears the leader again, which reads at a quorum and so has a lease; then its
/// links stand still once more, and the old words arrive.
#[test]
fn no_lease_outlives_the_promises_that_it_rests_on() {
    let mut played = 0;
    for seed in 0..200 {
        let mut cluster = leased(seed);
        cluster.put(N1, "a", "1");
        cluster.run(3);
        let timeout = |node| {
            cluster.replica(node, SHARD).unwrap().group.raw.raft.randomized_election_timeout()
        };
        let (follower, candidate) = if timeout(N2) > timeout(N3) { (N2, N3) } else { (N3, N2) };
        if timeout(N2) == timeout(N3) {
            continue;
        }
        // The leader has just found its quorum active: it leads on for an election timeout without
        // an answer.
        while cluster.replica(N1, SHARD).unwrap().group.raw.raft.election_elapsed != 4 {
            cluster.run(1);
        }
        cluster.network.hold((N1, follower));
        cluster.network.hold((N1, candidate));
        cluster.cut((candidate, N1));
        if !becomes_candidate(&mut cluster, candidate, follower) {
            continue;
        }
        cluster.network.hold((candidate, follower));
        cluster.settle();
        for _ in 0..20 {
            if role(&cluster, follower) != StateRole::Follower {
                break;
            }
            cluster.run(1);
        }
        if (role(&cluster, follower), role(&cluster, candidate), role(&cluster, N1))
            != (StateRole::PreCandidate, StateRole::Candidate, StateRole::Leader)
        {
            continue;
        }
        cluster.network.release((N1, follower));
        cluster.settle();
        if !matches!(cluster.get(N1, "a", Consistency::Linearizable), Some(Answer::Read { .. })) {
            continue;
        }
        played += 1;
        cluster.network.hold((N1, follower));
        cluster.network.release((candidate, follower));
        cluster.settle();
        for _ in 0..12 {
            let read = cluster.post_get(N1, "a", Consistency::Lease, FOREVER);
            cluster.pass(N1);
            let by_lease = matches!(cluster.answer(read), Some(Answer::Read { .. }));
            let other_leads =
                [N2, N3].iter().any(|node| role(&cluster, *node) == StateRole::Leader);
            assert!(!(by_lease && other_leads), "seed {seed}: a lease read beside another leader");
            cluster.run(1);
        }
    }
    assert!(played > 5, "only {played} seeds came that far");
}

/// Ticks until the candidate has won its pre-vote and asks for votes, which are not delivered.
fn becomes_candidate(cluster: &mut Cluster, candidate: NodeId, follower: NodeId) -> bool {
    for _ in 0..40 {
        cluster.nodes().into_iter().for_each(|node| cluster.tick(node, 1));
        for _ in 0..3 {
            while cluster.deliver((candidate, follower), 0) {}
            cluster.pass(follower);
            while cluster.deliver((follower, candidate), 0) {}
            cluster.pass(candidate);
            if role(cluster, candidate) == StateRole::Candidate {
                return true;
            }
        }
    }
    false
}
