//! A follower that was away while far more was written than the log keeps comes back by snapshot,
//! and is equal by hash; also when it is killed again and again while it catches up.

#![cfg(feature = "shell")]

use flotilla_kit::{Fleet, set, until};
use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

/// The least that the configuration takes; logs are cut in pieces of a quarter of a mebibyte.
const LOG_BYTES: i64 = 64 << 10;
const VALUE_BYTES: usize = 32 << 10;

/// Writes `count` values to every shard through some nodes, in batches, and some of them deleted
/// again.
fn write_much(cluster: &Fleet, nodes: &[u64], round: u8, count: usize) -> u64 {
    let paths = cluster.shard_paths(nodes[0], "much");
    // Nothing that could be compressed, or there would not be much to send.
    let value = |i: usize| -> Vec<u8> {
        let mut state = (i as u64 + 1) << 8 | u64::from(round);
        let word = |_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        };
        (0..VALUE_BYTES / 8).flat_map(word).collect()
    };
    std::thread::scope(|scope| {
        for (n, (_, path)) in paths.iter().enumerate() {
            let client = cluster.client.clone();
            scope.spawn(move || {
                for i in 0..count {
                    client.put(
                        nodes[(n + i) % nodes.len()],
                        &format!("{path}{round}-{i}"),
                        &value(i),
                    );
                }
                // Some are gone again: a snapshot must not bring them back, nor leave what was
                // there before.
                for i in (0..count).step_by(5) {
                    client
                        .ask(nodes[0], "DELETE", &format!("/v1/kv/{path}{round}-{i}"), &[], None)
                        .expect(204);
                }
            });
        }
    });
    (paths.len() * count * VALUE_BYTES) as u64
}

/// Waits until every shard's leader has cut its log beyond what the follower had. How long that
/// took.
///
/// A log is cut when something was applied, and a snapshot that was built is kept for some seconds
/// for another follower, and the log behind it with it. So a little is written until then.
fn until_cut(cluster: &Fleet, via: u64, had: &BTreeMap<u64, u64>) -> Duration {
    let begun = Instant::now();
    let paths = cluster.shard_paths(via, "little");
    let shards: Vec<u64> = had.keys().copied().collect();
    until("the logs are cut", Duration::from_secs(30), || {
        let all = cluster.cut_beyond(&shards, &[via], had) == shards;
        if !all {
            std::thread::sleep(Duration::from_millis(200));
            for (_, path) in &paths {
                cluster.client.put(via, &format!("{path}x"), b"little");
            }
        }
        all.then_some(())
    });
    begun.elapsed()
}

#[test]
fn a_follower_behind_the_log_comes_back_by_snapshot() {
    let mut cluster = Fleet::with_config(3, 8, |config| {
        set(config, "log", "bytes_per_shard_max", LOG_BYTES);
        // So slow that a snapshot takes a while, which is when it is to be killed.
        set(config, "transport", "snapshot_bytes_per_second", 12 << 20);
    });
    let away = 3;
    let others = cluster.others(away);
    write_much(&cluster, &[1, 2, 3], 0, 3);
    cluster.wait_equal(Duration::from_secs(20));
    let mut had = cluster.last_indexes(1);

    println!("node {away} stopped after {:?}", cluster.stop(away));
    let begun = Instant::now();
    let bytes = write_much(&cluster, &others, 1, 40);
    println!("{} MiB written in {:?} while it was away", bytes >> 20, begun.elapsed());
    println!("the logs were cut beyond what it had after {:?}", until_cut(&cluster, 1, &had));
    println!("ready after {:?}", cluster.start(away));
    println!("equal by hash after another {:?}", cluster.wait_equal(Duration::from_secs(60)));
    let metric = |name| cluster.client.metric(away, name).unwrap();
    let installed = metric("flotilla_snapshots_installed_total");
    println!(
        "{installed} snapshots installed, {} failed",
        metric("flotilla_snapshots_failed_total")
    );
    assert!(installed >= 8.0, "every shard was behind its log, and {installed} came by snapshot");

    // Killed in the middle of catching up, at different moments of it.
    had = cluster.last_indexes(1);
    cluster.kill(&[away]);
    let bytes = write_much(&cluster, &others, 2, 40);
    println!("the logs were cut again beyond what it had after {:?}", until_cut(&cluster, 1, &had));
    let mut midway = 0;
    let staged =
        ["in", "install"].map(|folder| cluster.home(away).join("data/snapshots").join(folder));
    let on_their_way = || {
        staged.iter().map(|folder| fs::read_dir(folder).map_or(0, Iterator::count)).sum::<usize>()
    };
    for millis in [0, 5, 20, 60, 150, 400] {
        cluster.spawn(away);
        // A moment after the first snapshot begins to come.
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(3) && on_their_way() == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(millis));
        let client = cluster.client.patience(Duration::from_millis(200));
        let installed = client.metric(away, "flotilla_snapshots_installed_total");
        let files = on_their_way();
        cluster.kill(&[away]);
        midway += usize::from(files > 0);
        println!(
            "killed {millis} ms after the first snapshot began: {installed:?} were installed, \
             {files} were on their way"
        );
    }
    assert!(midway >= 2, "only {midway} kills met a snapshot on its way, so they show nothing");
    println!("ready after {:?}", cluster.start(away));
    println!(
        "equal by hash after another {:?}, {} MiB behind",
        cluster.wait_equal(Duration::from_secs(60)),
        bytes >> 20
    );
    // What was staged by the lives before is gone from the disk.
    until("nothing is left of snapshots", Duration::from_secs(30), || {
        (on_their_way() == 0).then_some(())
    });
    // And it takes part: with one of the others away, every shard needs it.
    cluster.stop(1);
    for (_, path) in cluster.shard_paths(2, "after") {
        cluster.client.put(2, &format!("{path}x"), b"with the one that came back");
    }
}
