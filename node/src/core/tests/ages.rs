//! A stale read's age is a bound, whatever stands still: a leader that has not applied what it
//! committed, a leader that was deposed and those who still follow it, a process that was paused
//! and finds old messages. Where no bound can be shown, it is refused.

use super::cluster::{Answer, Cluster, FOREVER, SHARD, TICK, config};
use crate::sim::member::Lane;
use flotilla_router::{Consistency, NodeId, Refusal};
use std::time::Duration;

/// At most two ticks old.
const BOUND: Consistency = Consistency::Stale { age_max: Some(Duration::from_millis(200)) };
const ANY: Consistency = Consistency::Stale { age_max: None };

#[track_caller]
fn too_stale(answer: Option<&Answer>) {
    assert!(matches!(answer, Some(Answer::Refused(Refusal::TooStale { .. }))), "{answer:?}");
}

/// The age that an answer claims.
#[track_caller]
fn age(answer: Option<Answer>) -> Option<Duration> {
    let Some(Answer::Read { staleness: Some(staleness), .. }) = answer else {
        panic!("{answer:?}")
    };
    staleness.age
}

/// A read asked of a node whose mailbox is looked at, and nothing else.
fn ask(cluster: &mut Cluster, node: NodeId, consistency: Consistency) -> Option<Answer> {
    let ticket = cluster.post_get(node, "a", consistency, FOREVER);
    cluster.pass(node);
    cluster.answer(ticket).cloned()
}

/// Everybody but `paused`, for whom time goes on unnoticed, gets a tick.
fn without(cluster: &mut Cluster, paused: NodeId) {
    for node in cluster.nodes() {
        if node == paused {
            cluster.pause(node, TICK);
        } else {
            cluster.tick(node, 1);
        }
    }
    cluster.settle();
}

#[test]
fn a_leader_that_is_behind_with_apply_knows_no_age() {
    let mut cluster = Cluster::led();
    cluster.put(NodeId(1), "a", "1");
    cluster.run(3);
    cluster.running_mut(NodeId(2)).hold(Lane::Apply);
    cluster.running_mut(NodeId(3)).hold(Lane::Apply);
    cluster.put(NodeId(1), "a", "2");
    let told_at = cluster.member(NodeId(2)).now;
    cluster.crash(NodeId(1), 0);
    cluster.run(60);
    let leader = cluster.leader(SHARD).unwrap();
    too_stale(ask(&mut cluster, leader, BOUND).as_ref());
    let shown = ask(&mut cluster, leader, ANY);
    let since = cluster.member(leader).now - told_at;
    assert!(
        age(shown.clone()).is_none_or(|age| age > since),
        "{since:?} ago somebody was told of a newer value: {shown:?}"
    );
    cluster.running_mut(leader).release(Lane::Apply);
    cluster.run(4);
    assert!(age(cluster.get(leader, "a", BOUND)) <= Some(Duration::from_millis(200)));
}

#[test]
fn who_follows_a_deposed_leader_grows_old_with_it() {
    let mut cluster = Cluster::new(5, 1, config());
    cluster.run(20);
    let old = cluster.leader(SHARD).unwrap();
    cluster.put(old, "a", "1");
    cluster.run(6);
    let others: Vec<_> = cluster.nodes().into_iter().filter(|node| *node != old).collect();
    cluster.partition(&[old, others[0]], &others[1..]);
    let mut told_at = None;
    for _ in 0..60 {
        cluster.run(1);
        let leader = cluster.leader(SHARD).filter(|leader| *leader != old);
        if told_at.is_none()
            && let Some(leader) = leader
            && matches!(cluster.put(leader, "a", "2"), Some(Answer::Written(_)))
        {
            told_at = Some(cluster.member(old).now);
        }
        for node in [old, others[0]] {
            let shown = cluster.get(node, "a", ANY);
            let since = told_at.map(|at| cluster.member(node).now - at);
            assert!(
                age(shown.clone()) >= since,
                "n{node}: {since:?} ago somebody was told of a newer value: {shown:?}"
            );
        }
    }
    assert!(told_at.is_some(), "nobody was elected");
    too_stale(cluster.get(others[0], "a", BOUND).as_ref());
    // What it knew once stays known, though it leads no more.
    assert!(age(cluster.get(old, "a", ANY)) > Some(Duration::from_secs(3)));
}

#[test]
fn answers_that_were_long_on_their_way_make_no_leader_young() {
    let mut cluster = Cluster::led();
    let old = NodeId(1);
    cluster.put(old, "a", "1");
    cluster.run(3);
    let others = [NodeId(2), NodeId(3)];
    // The followers' answers stand still; they elect one of themselves while the old leader's
    // process stands still.
    others.iter().for_each(|other| cluster.network.hold((*other, old)));
    cluster.run(4);
    others.iter().for_each(|other| cluster.cut((old, *other)));
    let mut new = None;
    for _ in 0..60 {
        without(&mut cluster, old);
        new = others.into_iter().find(|node| {
            cluster.replica(*node, SHARD).is_some_and(|replica| replica.group.leads())
        });
        if new.is_some() {
            break;
        }
    }
    let new = new.expect("nobody was elected");
    assert!(matches!(cluster.put(new, "a", "2"), Some(Answer::Written(_))));
    (0..20).for_each(|_| without(&mut cluster, old));
    // It wakes up, and finds the answers from before.
    let mut frames = 0;
    while cluster.deliver((others[0], old), 0) {
        frames += 1;
        too_stale(ask(&mut cluster, old, BOUND).as_ref());
    }
    assert!(frames > 3, "only {frames} frames were late");
}

#[test]
fn a_follower_that_was_paused_is_as_old_as_the_pause() {
    let mut cluster = Cluster::led();
    cluster.put(NodeId(1), "a", "1");
    cluster.run(6);
    let paused = NodeId(3);
    assert!(age(cluster.get(paused, "a", ANY)) <= Some(Duration::from_millis(400)));
    // What the leader says gathers before its door; halfway through, something is written.
    cluster.network.hold((NodeId(1), paused));
    cluster.running_mut(paused).hold(Lane::Apply);
    (0..20).for_each(|_| without(&mut cluster, paused));
    assert!(matches!(cluster.put(NodeId(1), "a", "2"), Some(Answer::Written(_))));
    (0..20).for_each(|_| without(&mut cluster, paused));
    let mut frames = 0;
    while cluster.deliver((NodeId(1), paused), 0) {
        frames += 1;
        too_stale(ask(&mut cluster, paused, BOUND).as_ref());
        assert!(age(ask(&mut cluster, paused, ANY)) >= Some(Duration::from_secs(2)));
    }
    assert!(frames > 10, "only {frames} frames had gathered");
}

#[test]
fn moments_of_an_earlier_life_prove_nothing() {
    let mut cluster = Cluster::led();
    cluster.put(NodeId(1), "a", "1");
    cluster.run(6);
    // The leader's answer to what the follower said in its first life arrives in its second, whose
    // clock begins at 0.
    cluster.network.hold((NodeId(1), NodeId(3)));
    cluster.run(4);
    let kept = cluster.network.waiting((NodeId(1), NodeId(3)));
    let frames: Vec<_> =
        (0..kept).filter_map(|_| cluster.network.take((NodeId(1), NodeId(3)), 0)).collect();
    cluster.crash(NodeId(3), usize::MAX);
    cluster.member_mut(NodeId(3)).now = Duration::ZERO;
    cluster.start(NodeId(3));
    for frame in frames {
        assert!(cluster.network.send((NodeId(1), NodeId(3)), frame).is_none());
    }
    cluster.pause(NodeId(3), Duration::from_secs(5));
    while cluster.deliver((NodeId(1), NodeId(3)), 0) {}
    assert_eq!(
        age(ask(&mut cluster, NodeId(3), ANY)),
        None,
        "it took a moment of its former life for one of its own"
    );
    cluster.network.release((NodeId(1), NodeId(3)));
    cluster.run(7);
    assert!(age(cluster.get(NodeId(3), "a", ANY)) <= Some(Duration::from_millis(400)));
}
