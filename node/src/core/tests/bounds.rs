//! What is bounded, and that a bound never holds anything back for ever: each limit at its least,
//! each queue filled.

use super::cluster::{Answer, Cluster, FOREVER, SHARD, config};
use crate::core::{CoreConfig, Event};
use crate::sim::member::Lane;
use flotilla_router::{Command, Condition, KeyRange, NodeId, Op, Refusal};
use std::time::Duration;

const N1: NodeId = NodeId(1);
const N2: NodeId = NodeId(2);
const N3: NodeId = NodeId(3);

/// Limits at their least: one entry may be under way however large it is, so every write passes,
/// one after the other.
#[test]
fn writes_larger_than_every_limit_pass_one_by_one() {
    let mut config = config();
    config.raft.message_bytes_max = 1;
    config.raft.uncommitted_bytes_max = 64 << 10;
    config.raft.entry_bytes_max = 1;
    config.raft.waiting_bytes_max = 1;
    config.raft.committed_bytes_per_ready_max = 1;
    let mut cluster = Cluster::led_with(config);
    for n in 0..5 {
        let written = cluster.put(N1, "k", &format!("{n}").repeat(100_000));
        assert!(matches!(written, Some(Answer::Written(_))), "{written:?}");
    }
}

/// Writes that would wait in line for longer than their clients do are refused while it is certain
/// that they were not applied; those that have time are taken.
#[test]
fn what_can_not_be_proposed_in_time_is_refused_at_once() {
    let mut cluster = Cluster::led();
    cluster.running_mut(N1).hold(Lane::Persist);
    cluster.post_put(N1, "k", "under way", FOREVER);
    cluster.pass(N1);
    let soon = cluster.member(N1).now + Duration::from_millis(20);
    let value = "v".repeat(600 << 10);
    let tickets: Vec<_> = [soon, soon, soon, FOREVER]
        .into_iter()
        .map(|deadline| cluster.post_put(N1, "k", &value, deadline))
        .collect();
    cluster.pass(N1);
    let refused: Vec<_> = tickets
        .iter()
        .map(|ticket| {
            matches!(cluster.answer(*ticket), Some(Answer::Refused(Refusal::Overloaded { .. })))
        })
        .collect();
    assert_eq!(refused, [false, false, true, false], "a mebibyte may always wait");
}

/// Entries that nobody could commit lie in a replica's memory, more of them than may wait for
/// apply. That must not keep it from taking the entries in by which they would be committed, or
/// overruled: neither now, nor after a restart.
#[test]
fn entries_that_are_not_committed_do_not_close_the_gate() {
    let mut config = config();
    config.log.unapplied_bytes_max = 64 << 10;
    config.log.cache_bytes_max = 0;
    let mut cluster = Cluster::led_with(config);
    // Node 1 hears nothing any more; what it proposes lies in its own log and in node 2's.
    cluster.partition(&[N1, N2], &[N3]);
    cluster.cut((N2, N1));
    let lost: Vec<_> = (0..12)
        .map(|n| cluster.post_put(N1, &format!("k{n}"), &"v".repeat(10_000), FOREVER))
        .collect();
    cluster.settle();
    assert!(lost.iter().all(|ticket| cluster.answer(*ticket).is_none()), "somebody committed it");
    for id in [N1, N2] {
        let replica = cluster.replica(id, SHARD).unwrap();
        assert!(
            replica.group.raw.raft.raft_log.last_index()
                > replica.group.raw.raft.raft_log.committed,
            "node {id} has nothing to spare"
        );
    }
    for id in [N1, N2] {
        cluster.crash(id, usize::MAX);
        cluster.start(id);
    }
    cluster.network.heal();
    cluster.run(60);
    let leader = cluster.leader(SHARD).expect("somebody leads");
    assert!(matches!(cluster.put(leader, "after", "it goes on"), Some(Answer::Written(_))));
    cluster.run(10);
    assert!(cluster.is_level(), "somebody is left behind: {:?}", cluster.places());
}

/// What is committed and not applied does close it, and opens it again.
#[test]
fn apply_that_stands_still_bounds_what_is_taken_in() {
    let mut config = config();
    config.log.unapplied_bytes_max = 64 << 10;
    let mut cluster = Cluster::led_with(config);
    cluster.running_mut(N3).hold(Lane::Apply);
    for n in 0..20 {
        assert!(matches!(
            cluster.put(N1, &format!("k{n}"), &"v".repeat(10_000)),
            Some(Answer::Written(_))
        ));
    }
    cluster.run(10);
    let held = |cluster: &Cluster| {
        let raft_log = &cluster.replica(N3, SHARD).unwrap().group.raw.raft.raft_log;
        raft_log.last_index() - cluster.replica(N3, SHARD).unwrap().group.applied.index
    };
    assert!(
        (3..=12).contains(&held(&cluster)),
        "node 3 holds {} entries that it has not applied",
        held(&cluster)
    );
    cluster.running_mut(N3).release(Lane::Apply);
    cluster.run(30);
    assert!(cluster.is_level(), "node 3 never caught up: {:?}", cluster.places());
}

/// A snapshot that never arrives, while its shard is written to: the log grows to a few times its
/// share and no further, and a snapshot that is built anew brings the follower back.
#[test]
fn a_snapshot_that_is_stuck_does_not_hold_the_log_for_ever() {
    for fails in [false, true] {
        let mut cluster = Cluster::led_with(small_log());
        let share = cluster.config.log.bytes_per_shard_max;
        cluster.partition(&[N1, N2], &[N3]);
        fill(&mut cluster, 20);
        cluster.network.heal();
        // Nothing but what node 1 sends it stands still, the snapshot with it; or is lost, whenever
        // it is sent.
        cluster.network.hold((N1, N3));
        let mut largest = 0;
        for _ in 0..30 {
            fill(&mut cluster, 8);
            cluster.run(2);
            if fails {
                while cluster.drop_packet((N1, N3), 0) {}
                cluster.settle();
            } else {
                // Everything but the snapshot passes, so that node 1 goes on asking.
                cluster.deliver_frames((N1, N3));
            }
            largest = largest.max(cluster.replica(N1, SHARD).unwrap().truncation.bytes());
        }
        assert!(
            largest <= 6 * share,
            "the log grew to {largest} bytes; its share is {share} (stream fails: {fails})"
        );
        while cluster.drop_packet((N1, N3), 0) {}
        cluster.network.heal();
        cluster.run(60);
        assert!(cluster.is_level(), "node 3 never came back: {:?}", cluster.places());
    }
}

/// What was taken in while there was room waits in line, and then there is none: puts are refused,
/// for certain, and deletions go on.
#[test]
fn what_waits_when_the_disk_is_full_is_refused() {
    for full in [N1, N3] {
        let mut cluster = Cluster::led();
        cluster.running_mut(N1).hold(Lane::Persist);
        let first = cluster.post_put(N1, "a", "under way", FOREVER);
        cluster.pass(N1);
        let puts = ["b", "c"].map(|key| cluster.post_put(N1, key, "waits", FOREVER));
        let delete = Command::new(Op::Delete { key: "a".into() }, Condition::Always);
        let delete = cluster.post_command(N1, delete, FOREVER);
        cluster.pass(N1);
        cluster.post(full, Event::Disk { free_bytes: 50 << 20, reserve_bytes: 60 << 20 });
        cluster.run(4);
        cluster.running_mut(N1).release(Lane::Persist);
        cluster.run(4);
        for put in puts {
            assert!(
                matches!(cluster.answer(put), Some(Answer::Refused(Refusal::DiskFull { .. }))),
                "{:?}",
                cluster.answer(put)
            );
        }
        for ticket in [first, delete] {
            assert!(
                matches!(cluster.answer(ticket), Some(Answer::Written(_))),
                "{:?}",
                cluster.answer(ticket)
            );
        }
        // With hardly anything left a deletion is refused, too, that of a range last.
        let range = Op::DeleteRange { range: KeyRange::new("a", Some("b".into())) };
        for (free, op, goes_on) in [
            (1 << 19, Op::Delete { key: "a".into() }, false),
            (1 << 19, range.clone(), true),
            (1 << 17, range.clone(), false),
        ] {
            cluster.post(N1, Event::Disk { free_bytes: free, reserve_bytes: 60 << 20 });
            let ticket = cluster.post_command(N1, Command::new(op, Condition::Always), FOREVER);
            cluster.run(4);
            assert_eq!(
                matches!(cluster.answer(ticket), Some(Answer::Written(_))),
                goes_on,
                "{:?}",
                cluster.answer(ticket)
            );
        }
    }
}

/// On a full disk no snapshot can be built, and a follower that needs one asks with every answer to
/// a heartbeat: it is tried again, ever more rarely, and at once when there has been no failure.
#[test]
fn what_can_not_be_built_is_tried_ever_more_rarely() {
    let mut cluster = Cluster::led_with(small_log());
    cluster.partition(&[N1, N2], &[N3]);
    fill(&mut cluster, 80);
    cluster.network.heal();
    cluster.running_mut(N1).hold(Lane::Build);
    let mut tried = Vec::new();
    for tick in 0..400 {
        cluster.run(1);
        if cluster.running_mut(N1).fail_build() {
            tried.push(tick);
            cluster.settle();
        }
    }
    assert!((5..=10).contains(&tried.len()), "tried at {tried:?}");
    let pauses: Vec<_> = tried.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(
        pauses.is_sorted_by(|a, b| a <= &(b + 3)) && pauses.iter().all(|pause| *pause <= 110),
        "{pauses:?}"
    );
    cluster.running_mut(N1).release(Lane::Build);
    cluster.run(130);
    assert!(cluster.is_level(), "node 3 never came back: {:?}", cluster.places());
}

/// A node that takes in as many snapshots as it may from others is asked again soon, with the same
/// snapshot.
#[test]
fn a_busy_node_is_asked_again_and_nothing_is_built_anew() {
    let mut cluster = Cluster::led_with(small_log());
    cluster.partition(&[N1, N2], &[N3]);
    fill(&mut cluster, 80);
    cluster.network.heal();
    let link = (N1, N3);
    cluster.network.hold(link);
    cluster.take_trace();
    let mut turned_away = Vec::new();
    for tick in 0..400 {
        cluster.run(1);
        cluster.deliver_frames(link);
        if cluster.turn_snapshot_away(link) {
            turned_away.push(tick);
            cluster.settle();
        }
    }
    let most = turned_away.windows(2).map(|pair| pair[1] - pair[0]).max();
    assert!(turned_away.len() > 12 && most <= Some(12), "asked at {turned_away:?}");
    let built = cluster.take_trace().iter().filter(|line| line.contains("builds snapshot")).count();
    assert!(built <= 1, "{built} were built");
    cluster.network.heal();
    cluster.run(40);
    assert!(cluster.is_level(), "node 3 never came back: {:?}", cluster.places());
}

/// A node that was away comes back to many shards, all of which it can be helped with by a snapshot
/// only: few are on their way to it at a time, and few are built for it; the others wait for their
/// turn, and each has it.
#[test]
fn many_shards_send_few_snapshots_at_a_time() {
    const SHARDS: u64 = 40;
    let mut cluster = Cluster::new(3, SHARDS, small_log());
    cluster.run(30);
    cluster.partition(&[N1, N2], &[N3]);
    cluster.run(80);
    for shard in cluster.shards.clone() {
        let key = [&shard.range.start[..], b"k"].concat();
        let leader = cluster.leader(shard.id).unwrap();
        for _ in 0..50 {
            let op = Op::Put { key: key.clone().into(), value: vec![7; 8 << 10].into() };
            cluster.post_command(leader, Command::new(op, Condition::Always), FOREVER);
        }
    }
    cluster.run(20);
    assert!(cluster.open_tickets().is_empty());
    cluster.network.heal();
    let links = [(N1, N3), (N2, N3)];
    links.iter().for_each(|link| cluster.network.hold(*link));
    cluster.take_trace();
    let (mut sent, mut rounds) = (0, 0);
    while !cluster.is_level() {
        assert!(rounds < 1000, "node 3 never came back: {:?}", cluster.places());
        rounds += 1;
        cluster.run(1);
        for link in links {
            cluster.deliver_frames(link);
            assert!(
                cluster.network.waiting(link) <= 2,
                "{} snapshots are on their way at once",
                cluster.network.waiting(link)
            );
            cluster.deliver(link, 0);
        }
        cluster.settle();
        sent += cluster.take_trace().iter().filter(|line| line.contains("=> n3 ")).count();
    }
    assert!((1..=SHARDS as usize * 3 / 2).contains(&sent), "{sent} snapshots were sent");
}

/// Among many shards the share of each is small. A busy one of which a follower needs a snapshot
/// may have what the idle ones leave: the follower comes back while the load goes on.
#[test]
fn a_busy_shard_among_many_gets_its_follower_back() {
    const VALUE: usize = 64 << 10;
    let mut config = small_log();
    config.log.bytes_per_shard_max = 4 << 20;
    config.log.bytes_max = 16 << 20;
    let mut cluster = Cluster::new(3, 16, config);
    cluster.run(20);
    assert_eq!(cluster.leader(SHARD), Some(N1));
    let write = |cluster: &mut Cluster| {
        for n in 0..8 {
            let key = format!("\0k{n}");
            assert_eq!(cluster.owner(key.as_bytes()), SHARD);
            assert!(matches!(cluster.put(N1, &key, &"v".repeat(VALUE)), Some(Answer::Written(_))));
        }
        cluster.run(1);
    };
    cluster.partition(&[N1, N2], &[N3]);
    (0..20).for_each(|_| write(&mut cluster));
    cluster.network.heal();
    // What a snapshot takes: so many ticks to be built, and to arrive.
    const TICKS: u64 = 12;
    let link = (N1, N3);
    cluster.network.hold(link);
    cluster.running_mut(N1).hold(Lane::Build);
    let (mut building, mut travelling, mut is_back) = (0, 0, false);
    for _ in 0..150 {
        write(&mut cluster);
        cluster.deliver_frames(link);
        building = if cluster.running_mut(N1).waiting(Lane::Build) > 0 { building + 1 } else { 0 };
        if building == TICKS {
            cluster.work(N1, Lane::Build);
        }
        travelling = if cluster.network.waiting(link) > 0 { travelling + 1 } else { 0 };
        if travelling == TICKS {
            cluster.deliver(link, 0);
        }
        cluster.settle();
        cluster.deliver_frames(link);
        let applied = |id| cluster.replica(id, SHARD).unwrap().group.applied.index;
        is_back |= applied(N3) + 16 >= applied(N1);
        let bytes = cluster.replica(N1, SHARD).unwrap().truncation.bytes();
        assert!(bytes <= cluster.config.log.bytes_max + (4 << 20), "the log grew to {bytes} bytes");
    }
    assert!(
        is_back,
        "the follower never came back under load: {:?}",
        cluster.places()[..3].to_vec()
    );
}

/// A shard that is applied aside for long, and written to meanwhile, takes a part of what may wait
/// to be applied: the others go on, on its leader's node and on its followers'.
#[test]
fn a_shard_that_is_applied_aside_keeps_no_other() {
    for node in [N1, N3] {
        let mut config = config();
        config.log.unapplied_bytes_max = 64 << 10;
        config.raft.entry_bytes_max = 1;
        let mut cluster = Cluster::new(3, 2, config);
        cluster.run(20);
        let other = cluster.shards[1].clone();
        let leader = cluster.leader(other.id).unwrap();
        let ticket = cluster.post_transfer(leader, other.id, N1);
        cluster.run(5);
        assert!(leader == N1 || cluster.answer(ticket) == Some(&Answer::Transferred));
        cluster.running_mut(node).take_aside(SHARD);
        for n in 0..30 {
            cluster.post_put(N1, &format!("\0k{n}"), &"v".repeat(10_000), FOREVER);
            cluster.settle();
        }
        let key = [&other.range.start[..], b"k"].concat();
        for _ in 0..5 {
            let op = Op::Put { key: key.clone().into(), value: vec![7; 1000].into() };
            let ticket = cluster.post_command(N1, Command::new(op, Condition::Always), FOREVER);
            cluster.run(4);
            assert!(
                matches!(cluster.answer(ticket), Some(Answer::Written(_))),
                "the other shard stands still, too"
            );
        }
        let applied =
            |cluster: &Cluster, id, shard| cluster.replica(id, shard).unwrap().group.applied.index;
        assert_eq!(
            applied(&cluster, node, other.id),
            applied(&cluster, N2, other.id),
            "node {node} takes nothing in any more"
        );
        let (done, behind) = (applied(&cluster, N2, SHARD), applied(&cluster, node, SHARD));
        assert!(done > behind, "the shard was not aside");
        cluster.running_mut(node).come_back();
        cluster.run(40);
        assert!(cluster.is_level() && cluster.open_tickets().is_empty(), "{:?}", cluster.places());
    }
}

fn small_log() -> CoreConfig {
    let mut config = config();
    config.log.bytes_per_shard_max = 1 << 16;
    config.log.cache_bytes_max = 0;
    config.raft.entry_bytes_max = 1;
    config
}

fn fill(cluster: &mut Cluster, writes: usize) {
    for n in 0..writes {
        let written = cluster.put(N1, &format!("k{n}"), &"v".repeat(8 << 10));
        assert!(matches!(written, Some(Answer::Written(_))), "{written:?}");
    }
}
