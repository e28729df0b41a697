//! More than a node can carry: what is in line, under way and in flight stays bounded, and whoever
//! stands still keeps no other.

use super::cluster::{Answer, Cluster, FOREVER, SHARD, config};
use crate::core::{CoreConfig, Event};
use crate::sim::member::Lane;
use flotilla_router::command::PayloadBuilder;
use flotilla_router::{Command, Condition, Consistency, NodeId, Op, Refusal};
use raft::eraftpb::{Entry, MessageType};

const N1: NodeId = NodeId(1);
const N3: NodeId = NodeId(3);
const MIB: u64 = 1 << 20;

/// Least limits on what is on its way: 16 MiB, of which a quarter may be proposed and not applied,
/// and an eighth in flight to a follower.
fn small_flow() -> CoreConfig {
    let mut config = config();
    config.raft.inflight_bytes_max = 16 << 20;
    config
}

/// A shard of which nothing is applied fills what it may, in line and under way. Another one that
/// its node leads goes on as before.
#[test]
fn a_shard_that_stands_still_closes_no_others_line() {
    let mut config = small_flow();
    config.raft.waiting_bytes_max = 4 * MIB;
    let mut cluster = Cluster::new(3, 2, config);
    cluster.run(20);
    let other = cluster.shards[1].clone();
    let leader = cluster.leader(other.id).unwrap();
    let ticket = cluster.post_transfer(leader, other.id, N1);
    cluster.run(5);
    assert!(leader == N1 || cluster.answer(ticket) == Some(&Answer::Transferred));
    cluster.running_mut(N1).take_aside(SHARD);
    let key = [&other.range.start[..], b"k"].concat();
    let refused = |answer: Option<&Answer>| {
        matches!(answer, Some(Answer::Refused(Refusal::Overloaded { .. })))
    };
    for round in 0..40 {
        let tickets: Vec<_> = (0..8)
            .map(|n| cluster.post_put(N1, &format!("\0k{n}"), &"v".repeat(256 << 10), FOREVER))
            .collect();
        cluster.pass(N1);
        assert!(
            round < 10 || tickets.iter().all(|ticket| refused(cluster.answer(*ticket))),
            "round {round}: it has no end"
        );
        let puts: Vec<_> = (0..4)
            .map(|_| {
                let op = Op::Put { key: key.clone().into(), value: vec![7; 200 << 10].into() };
                cluster.post_command(N1, Command::new(op, Condition::Always), FOREVER)
            })
            .collect();
        cluster.run(2);
        for put in puts {
            assert!(
                matches!(cluster.answer(put), Some(Answer::Written(_))),
                "round {round}: {:?}",
                cluster.answer(put)
            );
        }
    }
    cluster.running_mut(N1).come_back();
    cluster.run(20);
    assert!(cluster.is_level() && cluster.open_tickets().is_empty(), "{:?}", cluster.places());
}

/// What is committed and not applied is under way still: whoever writes it waits for it. So no more
/// is proposed than apply keeps up with.
#[test]
fn no_more_is_proposed_than_is_applied_soon() {
    let mut cluster = Cluster::led_with(small_flow());
    cluster.running_mut(N1).hold(Lane::Apply);
    for _ in 0..20 {
        for n in 0..8 {
            cluster.post_put(N1, &format!("k{n}"), &"v".repeat(128 << 10), FOREVER);
        }
        cluster.run(1);
    }
    let under_way = cluster.replica(N1, SHARD).unwrap().group.under_way_bytes();
    assert!((MIB..=4 * MIB).contains(&under_way), "{under_way} bytes are under way");
    cluster.running_mut(N1).release(Lane::Apply);
    cluster.run(40);
    assert!(cluster.is_level() && cluster.open_tickets().is_empty(), "{:?}", cluster.places());
}

/// A follower whose disk stands still answers heartbeats all the same. It is sent what it may have
/// in flight and, ever more rarely, one message more; when its disk goes on it is level soon.
#[test]
fn a_follower_whose_disk_stands_still_is_sent_no_more() {
    let mut cluster = Cluster::led_with(small_flow());
    cluster.running_mut(N3).hold(Lane::Persist);
    let mut most = 0;
    for n in 0..400 {
        let written = cluster.put(N1, &format!("k{}", n % 8), &"v".repeat(128 << 10));
        assert!(matches!(written, Some(Answer::Written(_))), "{written:?}");
        cluster.run(1);
        most = most.max(cluster.running_mut(N1).core.budgets.in_flight_bytes(N3));
    }
    assert!(most <= 5 * MIB, "{most} bytes were in flight");
    let log = &cluster.replica(N3, SHARD).unwrap().group.raw.raft.raft_log;
    assert!(
        log.last_index() < log.persisted + 40,
        "node 3 holds {} entries that are not on its disk",
        log.last_index() - log.persisted
    );
    // Its disk goes on, one write at a time: each acknowledgement makes room for what it
    // acknowledges, and no more.
    for _ in 0..400 {
        cluster.work(N3, Lane::Persist);
        cluster.run(1);
        let held = cluster.running_mut(N1).core.budgets.in_flight_bytes(N3);
        assert!(held <= 5 * MIB, "{held} bytes are in flight while it catches up");
    }
    cluster.running_mut(N3).release(Lane::Persist);
    cluster.run(80);
    assert!(cluster.is_level(), "node 3 never came back: {:?}", cluster.places());
    assert_eq!(cluster.running_mut(N1).core.budgets.in_flight_bytes(N3), 0);
}

/// Reads send heartbeats, and raft-rs sends a follower that it probes the same message again with
/// each answer.
#[test]
fn reads_do_not_multiply_what_a_probed_follower_is_sent() {
    let mut cluster = Cluster::led_with(small_flow());
    cluster.running_mut(N3).hold(Lane::Persist);
    cluster.post(N1, Event::NodeUnreachable { node: N3 });
    cluster.pass(N1);
    let written = cluster.put(N1, "k", &"v".repeat(200 << 10));
    assert!(matches!(written, Some(Answer::Written(_))), "{written:?}");
    cluster.take_trace();
    for _ in 0..50 {
        let found = cluster.get(N1, "k", Consistency::Linearizable);
        assert!(matches!(found, Some(Answer::Read { found: Some(_), .. })), "{found:?}");
    }
    let sent = |line: &&String| {
        line.starts_with("n1 -> n3") && line.contains("MsgAppend after") && !line.contains("[]")
    };
    let again = cluster.take_trace().iter().filter(sent).count();
    assert!(again <= 2, "it was sent {again} times more");
    cluster.running_mut(N3).release(Lane::Persist);
    cluster.run(10);
    assert!(cluster.is_level(), "{:?}", cluster.places());
}

/// Whoever sends, and however much: what a follower's disk has not taken yet lies in its memory,
/// and has a bound.
#[test]
fn a_follower_takes_in_no_more_than_its_disk_will_take() {
    let mut cluster = Cluster::led_with(small_flow());
    cluster.running_mut(N3).hold(Lane::Persist);
    let op = Op::Put { key: "k".into(), value: vec![7; 1 << 20].into() };
    let mut payload = PayloadBuilder::new(1, 2 << 20);
    payload.push(&Command::new(op, Condition::Always));
    let payload = payload.finish();
    let held = |cluster: &Cluster| {
        let log = &cluster.replica(N3, SHARD).unwrap().group.raw.raft.raft_log;
        (log.last_index(), log.term(log.last_index()).unwrap(), log.last_index() - log.persisted)
    };
    for _ in 0..40 {
        let (index, term, _) = held(&cluster);
        let envelope = cluster.forge(N1, N3, |m| {
            m.set_msg_type(MessageType::MsgAppend);
            (m.index, m.log_term) = (index, term);
            let entry =
                Entry { index: index + 1, term: m.term, data: payload.clone(), ..Entry::default() };
            m.set_entries(vec![entry].into());
        });
        cluster.post(N3, Event::Message { from: N1, envelope });
        cluster.pass(N3);
    }
    let (_, _, held) = held(&cluster);
    assert!((10..=18).contains(&held), "{held} MiB are held");
}
