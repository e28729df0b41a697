//! `kill -9` and SIGSTOP under load: nothing acknowledged is lost, nothing stale is read, and writes go on soon.

#![cfg(feature = "shell")]

use flotilla_kit::load::{Fate, Ledger, Targets, under_load, under_load_of, until_writes};
use flotilla_kit::{Cluster, THREE};
use rustix::process::Signal;
use std::time::{Duration, Instant};

/// What is promised is 2 s. A machine that builds and tests many things at once gets as much again.
const WRITES_AGAIN: Duration = Duration::from_secs(4);

fn sleep(millis: u64) {
    std::thread::sleep(Duration::from_millis(millis));
}

/// Each node in turn, every one of them the leader of some shards.
#[test]
fn a_killed_node_loses_nothing_and_catches_up() {
    let mut cluster = Cluster::new(3, 8);
    let ledger = Ledger::new(&cluster, "kill", 3);
    let shards = cluster.shard_paths(1, "probe");
    for victim in THREE {
        // The death of one that leads nothing would show nothing.
        let led = cluster.wait_leading(victim);
        let others = cluster.others(victim);
        let targets = Targets::new(&others);
        let folder = cluster.folder.clone();
        let client = cluster.client.clone();
        let pid = cluster.pid(victim);
        let (pauses, counts) = under_load(&cluster, &ledger, &targets, 4, || {
            sleep(700);
            let since = Instant::now();
            rustix::process::kill_process(rustix::process::Pid::from_raw(pid as i32).unwrap(), Signal::KILL).unwrap();
            let pauses = until_writes(&client, &shards, &others, since);
            sleep(500);
            pauses
        });
        let longest = pauses.iter().max().unwrap();
        println!(
            "node {victim}, leader of {led}, killed: writes to every shard again after {longest:?} ({pauses:.0?}); {counts}"
        );
        assert!(counts.all(Fate::Done) > 100, "hardly any load: {counts}");
        assert!(*longest < WRITES_AGAIN, "{pauses:?}");
        ledger.check(&cluster.client, &others);
        assert!(folder.join(format!("n{victim}/flotilla.pid")).exists());
        let (ready, counts) = {
            let targets = Targets::new(&others);
            cluster.spawn(victim);
            under_load(&cluster, &ledger, &targets, 2, || {
                let begun = Instant::now();
                cluster.wait_ready(victim);
                begun.elapsed()
            })
        };
        let equal = cluster.wait_equal(Duration::from_secs(20));
        println!(
            "node {victim} was ready after {ready:?} under load ({counts}), equal to the others {equal:?} after the load ended"
        );
        ledger.check(&cluster.client, &[victim]);
        let begun = Instant::now();
        println!("node {victim} leads {} again after another {:?}", cluster.wait_leading(victim), begun.elapsed());
    }
    println!("{} values were written, {} keys are there", ledger.attempts(), ledger.check(&cluster.client, &[1]));
}

/// All at once, twice: the second time a moment after the start, when the logs of the first are being replayed.
#[test]
fn all_killed_at_once_lose_nothing() {
    let mut cluster = Cluster::new(3, 8);
    let ledger = Ledger::new(&cluster, "all", 3);
    for round in 1..=2 {
        let pids: Vec<_> = THREE.map(|node| rustix::process::Pid::from_raw(cluster.pid(node) as i32).unwrap()).collect();
        let targets = Targets::new(&[1, 2, 3]);
        let ((), counts) = under_load(&cluster, &ledger, &targets, 4, || {
            sleep(1000);
            for pid in &pids {
                rustix::process::kill_process(*pid, Signal::KILL).unwrap();
            }
            sleep(100);
        });
        for node in THREE {
            cluster.wait_gone(node, Duration::from_secs(5));
        }
        let (status, _) = cluster.stop_dev(Signal::INT);
        assert!(status.success(), "{status}");
        let ready = cluster.start_dev();
        let known = ledger.check(&cluster.client, &[1, 2, 3]);
        println!(
            "round {round}: all killed under load ({counts}), ready after {ready:?}, all {known} acknowledged keys are there"
        );
        assert!(counts.all(Fate::Done) > 100 && known > 0, "hardly any load: {counts}");
    }
    cluster.wait_equal(Duration::from_secs(20));
}

/// A leader that is stopped for three seconds: the others go on, and what it answers when it wakes is not from before.
///
/// Leases are on, which is the hardest case: a lease that counted time by anything that stands still with the process would still
/// be in force. Reads are sent to the sleeper while it sleeps, and answered by it first thing when it wakes.
///
/// The last round reads with `consistency=stale`, which may show what was before: that this test notices it shows that it would
/// have noticed in the rounds before.
#[test]
fn a_leader_that_was_stopped_serves_nothing_stale() {
    let cluster = Cluster::with_config(3, 8, |config| {
        config["reads"].as_table_mut().unwrap().insert("lease".into(), true.into());
    });
    let ledger = Ledger::new(&cluster, "stop", 3);
    let shards = cluster.shard_paths(1, "probe");
    for (sleeper, query, load_query) in
        [(1, "", ""), (2, "?consistency=lease", "?consistency=lease"), (3, "?consistency=stale", "")]
    {
        let may_be_stale = query.ends_with("stale");
        let led = cluster.wait_leading(sleeper);
        let others = cluster.others(sleeper);
        let targets = Targets::new(&others);
        let body = || {
            sleep(500);
            let since = Instant::now();
            cluster.signal(sleeper, Signal::STOP);
            let pauses = until_writes(&cluster.client, &shards, &others, since);
            sleep(2800u64.saturating_sub(since.elapsed().as_millis() as u64));
            // Each read notes what is known when it is sent; the sleeper answers it 200 ms later, from whatever it believes then.
            let fates = std::thread::scope(|scope| {
                let client = cluster.client.patience(Duration::from_secs(10));
                let reads: Vec<_> = ledger
                    .keys
                    .iter()
                    .map(|key| {
                        let client = client.clone();
                        scope.spawn(move || key.look(&client, sleeper, query))
                    })
                    .collect();
                sleep(200);
                cluster.signal(sleeper, Signal::CONT);
                let fates: Vec<Result<Fate, String>> = reads.into_iter().map(|read| read.join().unwrap()).collect();
                // And at once again, as fast as it goes.
                for _ in 0..if may_be_stale { 0 } else { 5 } {
                    for key in &ledger.keys {
                        key.read(&client, sleeper, query);
                    }
                }
                fates
            });
            targets.set(&[1, 2, 3]);
            sleep(1000);
            (pauses, fates)
        };
        let ((pauses, fates), counts) = under_load_of(&cluster.client, &ledger, &targets, 3, 100, load_query, body);
        let longest = pauses.iter().max().unwrap();
        let done = fates.iter().filter(|fate| **fate == Ok(Fate::Done)).count();
        let stale = fates.iter().filter(|fate| fate.is_err()).count();
        println!(
            "node {sleeper}, leader of {led}, stopped for 3 s ({query:?}): writes again after {longest:?}; of {} reads sent to it \
             while it slept {done} were answered, {stale} with what was before; {counts}",
            fates.len()
        );
        assert!(*longest < WRITES_AGAIN, "{pauses:?}");
        if may_be_stale {
            assert!(stale > 0, "the sleeper knew all that happened while it slept, so this shows nothing: {fates:?}");
        } else {
            assert_eq!(stale, 0, "{fates:?}");
            assert!(done > 0, "the sleeper answered nothing, so this shows nothing: {fates:?}");
        }
        ledger.check(&cluster.client, &[1, 2, 3]);
        cluster.wait_equal(Duration::from_secs(20));
        println!("node {sleeper} leads {} again", cluster.wait_leading(sleeper));
    }
}
