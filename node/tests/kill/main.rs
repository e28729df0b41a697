//! `kill -9` and SIGSTOP under load: nothing acknowledged is lost, nothing stale is read, and
//! writes go on soon.

#![cfg(feature = "shell")]

use flotilla_kit::process::send;
use flotilla_kit::{Fleet, Load, Outcome, Registers, THREE, Targets, set, until_writes};
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
    let mut cluster = Fleet::new(3, 8);
    let registers = Registers::new(&cluster, "kill", 3);
    let shards = cluster.shard_paths(1, "probe");
    for victim in THREE {
        // The death of one that leads nothing would show nothing.
        let led = cluster.wait_leading(victim);
        let others = cluster.others(victim);
        let targets = Targets::new(&others);
        let folder = cluster.folder.clone();
        let client = cluster.client.clone();
        let pid = cluster.pid(victim);
        let (pauses, counts) = registers.under_load(&client, &targets, Load::plain(4), || {
            sleep(700);
            let since = Instant::now();
            send(pid, Signal::KILL);
            let pauses = until_writes(&client, &shards, &others, since);
            sleep(500);
            pauses
        });
        let longest = pauses.iter().max().unwrap();
        println!(
            "node {victim}, leader of {led}, killed: writes to every shard again after {longest:?} \
             ({pauses:.0?}); {counts}"
        );
        assert!(counts.all(Outcome::Done) > 100, "hardly any load: {counts}");
        assert!(*longest < WRITES_AGAIN, "{pauses:?}");
        registers.check(&cluster.client, &others);
        assert!(folder.join(format!("n{victim}/flotilla.pid")).exists());
        let (ready, counts) = {
            let targets = Targets::new(&others);
            cluster.spawn(victim);
            registers
                .under_load(&client, &targets, Load::plain(2), || cluster.wait_ready(&[victim]))
        };
        let equal = cluster.wait_equal(Duration::from_secs(20));
        println!(
            "node {victim} was ready after {ready:?} under load ({counts}), equal to the others \
             {equal:?} after the load ended"
        );
        registers.check(&cluster.client, &[victim]);
        let begun = Instant::now();
        println!(
            "node {victim} leads {} again after another {:?}",
            cluster.wait_leading(victim),
            begun.elapsed()
        );
    }
    println!(
        "{} values were written, {} keys are there",
        registers.attempts(),
        registers.check(&cluster.client, &[1])
    );
}

/// All at once, twice: the second time a moment after the start, when the logs of the first are
/// being replayed.
#[test]
fn all_killed_at_once_lose_nothing() {
    let mut cluster = Fleet::new(3, 8);
    let registers = Registers::new(&cluster, "all", 3);
    for round in 1..=2 {
        let targets = Targets::new(&[1, 2, 3]);
        let client = cluster.client.clone();
        let ((), counts) = registers.under_load(&client, &targets, Load::plain(4), || {
            sleep(1000);
            cluster.kill(&[1, 2, 3]);
            sleep(100);
        });
        let (status, _) = cluster.stop_dev(Signal::INT);
        assert!(status.success(), "{status}");
        let ready = cluster.start_dev();
        let known = registers.check(&cluster.client, &[1, 2, 3]);
        println!(
            "round {round}: all killed under load ({counts}), ready after {ready:?}, all {known} \
             acknowledged keys are there"
        );
        assert!(counts.all(Outcome::Done) > 100 && known > 0, "hardly any load: {counts}");
    }
    cluster.wait_equal(Duration::from_secs(20));
}

/// A leader that is stopped for three seconds: the others go on, and what it answers when it wakes
/// is not from before.
///
/// Leases are on, which is the hardest case: a lease that counted time by anything that stands
/// still with the process would still be in force. Reads are sent to the sleeper while it sleeps,
/// and answered by it first thing when it wakes.
///
/// The last round reads with `consistency=stale`, which may show what was before: that this test
/// notices it shows that it would have noticed in the rounds before.
#[test]
fn a_leader_that_was_stopped_serves_nothing_stale() {
    let cluster = Fleet::with_config(3, 8, |config| set(config, "reads", "lease", true));
    let registers = Registers::new(&cluster, "stop", 3);
    let shards = cluster.shard_paths(1, "probe");
    for (sleeper, query, load_query) in [
        (1, "", ""),
        (2, "?consistency=lease", "?consistency=lease"),
        (3, "?consistency=stale", ""),
    ] {
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
            // Each read notes what is known when it is sent; the sleeper answers it 200 ms later,
            // from whatever it believes then.
            let outcomes = std::thread::scope(|scope| {
                let client = cluster.client.patience(Duration::from_secs(10));
                let reads: Vec<_> = registers
                    .all
                    .iter()
                    .map(|register| {
                        let client = client.clone();
                        scope.spawn(move || register.look(&client, sleeper, query))
                    })
                    .collect();
                sleep(200);
                cluster.signal(sleeper, Signal::CONT);
                let outcomes: Vec<Result<Outcome, String>> =
                    reads.into_iter().map(|read| read.join().unwrap()).collect();
                // And at once again, as fast as it goes.
                for _ in 0..if may_be_stale { 0 } else { 5 } {
                    for register in &registers.all {
                        register.read(&client, sleeper, query);
                    }
                }
                outcomes
            });
            targets.set(&[1, 2, 3]);
            sleep(1000);
            (pauses, outcomes)
        };
        let load = Load::plain(3).reading(load_query);
        let ((pauses, outcomes), counts) =
            registers.under_load(&cluster.client, &targets, load, body);
        let longest = pauses.iter().max().unwrap();
        let done = outcomes.iter().filter(|outcome| **outcome == Ok(Outcome::Done)).count();
        let stale = outcomes.iter().filter(|outcome| outcome.is_err()).count();
        println!(
            "node {sleeper}, leader of {led}, stopped for 3 s ({query:?}): writes again after \
             {longest:?}; of {} reads sent to it while it slept {done} were answered, {stale} with \
             what was before; {counts}",
            outcomes.len()
        );
        assert!(*longest < WRITES_AGAIN, "{pauses:?}");
        if may_be_stale {
            assert!(
                stale > 0,
                "the sleeper knew all that happened while it slept, so this shows nothing: \
                 {outcomes:?}"
            );
        } else {
            assert_eq!(stale, 0, "{outcomes:?}");
            assert!(done > 0, "the sleeper answered nothing, so this shows nothing: {outcomes:?}");
        }
        registers.check(&cluster.client, &[1, 2, 3]);
        cluster.wait_equal(Duration::from_secs(20));
        println!("node {sleeper} leads {} again", cluster.wait_leading(sleeper));
    }
}
