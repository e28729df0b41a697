//! `kill -9`, again and again, of one node, of two, of all three, at any moment; and a journal
//! outside of the cluster that says what was acknowledged. Nothing of it may ever be lost.
//!
//! A cycle kills some nodes under load (a moment after they were ready, or before), starts them
//! again, perhaps kills them once more while they recover, and checks a sample of the journal. Some
//! cycles leave a node down until the others have cut their logs, and kill it again while snapshots
//! come in. Every so often, and at the end, the load rests, every key is checked through every
//! node, and the replicas are equal by hash. At last the journal is judged anew, from the file
//! alone.
//!
//! `cargo test` runs a few cycles. As many as one likes, and with other moments:
//!
//! ```text
//! FLOTILLA_CRASHES=1000 FLOTILLA_SEED=7 cargo test --release --workspace --test crash -- --nocapture
//! ```
//!
//! The seed decides whom and when; what the cluster is doing at that moment differs from run to
//! run. What was seen is told in `docs/crashes.md`.

#![cfg(feature = "shell")]

mod oracle;

use flotilla_kit::{CUT_BYTES, Fleet, Load, Registers, Rng, THREE, Targets, asked, until};
use std::os::unix::process::ExitStatusExt as _;
use std::time::{Duration, Instant};

/// How many cycles are asked for.
const CYCLES: &str = "FLOTILLA_CRASHES";
/// What victims and moments are drawn from.
const SEED: &str = "FLOTILLA_SEED";

/// What is counted over the cycles.
#[derive(Default)]
struct Counts {
    kills: u64,
    /// Kills of nodes that were not ready yet.
    early: u64,
    /// Cycles in which all nodes were killed at once.
    all_at_once: u64,
    /// Kills of a node to which snapshots were on their way.
    midway: u64,
    slowest: Duration,
    recoveries: Vec<Duration>,
}

fn sleep_up_to(rng: &mut Rng, millis: u64) {
    std::thread::sleep(Duration::from_millis(rng.below(millis + 1)));
}

/// Starts nodes and waits until they are ready; kills them so many times before they are.
fn recover(fleet: &mut Fleet, nodes: &[u64], again: u64, rng: &mut Rng, counts: &mut Counts) {
    for _ in 0..again {
        nodes.iter().for_each(|node| fleet.spawn(*node));
        sleep_up_to(rng, 250);
        // One of them may even be there already, and another not.
        counts.early += nodes.len() as u64;
        counts.kills += nodes.len() as u64;
        fleet.kill(nodes);
    }
    nodes.iter().for_each(|node| fleet.spawn(*node));
    let took = fleet.wait_ready(nodes);
    counts.slowest = counts.slowest.max(took);
    counts.recoveries.push(took);
}

/// Leaves a node down until snapshots are its only way back, and kills it while they come.
fn crash_midway(fleet: &mut Fleet, registers: &Registers, rng: &mut Rng, counts: &mut Counts) {
    let away = 1 + rng.below(3);
    let others = fleet.others(away);
    let had = fleet.last_indexes(away);
    fleet.kill(&[away]);
    counts.kills += 1;
    let shards: Vec<u64> = had.keys().copied().filter(|_| rng.below(2) == 0).collect();
    registers.fill(&fleet.client, &others, &shards, CUT_BYTES, &mut rng.clone());
    // A snapshot that was built of late is kept for a few seconds, and the log behind it. Then this
    // cycle shows less.
    let deadline = Instant::now() + Duration::from_secs(2);
    while fleet.cut_beyond(&shards, &others, &had).is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    let staged =
        ["in", "install"].map(|folder| fleet.home(away).join("data/snapshots").join(folder));
    let coming =
        || staged.iter().any(|folder| std::fs::read_dir(folder).map_or(0, Iterator::count) > 0);
    for _ in 0..1 + rng.below(2) {
        fleet.spawn(away);
        let deadline = Instant::now() + Duration::from_secs(2);
        while !coming() && !fleet.is_ready(away) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        sleep_up_to(rng, 150);
        fleet.kill(&[away]);
        counts.kills += 1;
        counts.midway += u64::from(coming());
    }
    recover(fleet, &[away], 0, rng, counts);
}

/// No node may have panicked, nor complained of anything at which a person must look.
fn assert_calm(fleet: &Fleet) {
    for node in fleet.all() {
        let said = fleet.said(node);
        let is_bad = |line: &&str| line.contains("panicked") || line.contains(" ERROR ");
        let bad: Vec<&str> = said.lines().filter(is_bad).take(5).collect();
        assert!(bad.is_empty(), "node {node} says: {bad:#?}");
    }
}

#[test]
fn no_kill_loses_what_was_acknowledged() {
    let (cycles, seed) = (asked(CYCLES).unwrap_or(15), asked(SEED).unwrap_or(1));
    let check_every = if cycles > 100 { 50 } else { 7 };
    let begun = Instant::now();
    let mut fleet = Fleet::for_crashes(8);
    fleet.start_all(&fleet.all());
    assert!(
        !fleet.scratch().starts_with(&fleet.folder),
        "the journal must lie outside of the cluster's folder"
    );
    let registers = Registers::journaled(&fleet, 200, 4);
    let (mut any, mut counts) = (Rng::new(seed), Counts::default());
    let client = fleet.client.clone();
    let nodes: Vec<u64> = THREE.collect();
    let check_all = |fleet: &Fleet, registers: &Registers| {
        registers.at_rest(|| {
            let present: Vec<usize> =
                nodes.iter().map(|node| registers.check_all(&fleet.client, *node)).collect();
            fleet.wait_equal(Duration::from_secs(30));
            present[0]
        })
    };
    registers.under_load(&client, &Targets::new(&nodes), Load::mixed(6, Duration::ZERO, seed), || {
        let mut told = Instant::now();
        for cycle in 1..=cycles {
            // Of its own, so that what it draws does not depend on how long the cycles before took.
            let mut rng = Rng::new(seed.wrapping_mul(1_000_003).wrapping_add(cycle));
            if cycle % 7 == 3 {
                crash_midway(&mut fleet, &registers, &mut rng, &mut counts);
            } else {
                sleep_up_to(&mut rng, 300);
                let mut victims = nodes.clone();
                let spared = if cycle % 6 == 0 { 0 } else { rng.pick(&[0, 1, 1, 2, 2, 2]) };
                for _ in 0..spared {
                    victims.remove(rng.below(victims.len() as u64) as usize);
                }
                let again = if cycle % 5 == 0 { 1 } else { rng.below(9).saturating_sub(6) };
                fleet.kill(&victims);
                counts.kills += victims.len() as u64;
                counts.all_at_once += u64::from(victims.len() == nodes.len());
                recover(&mut fleet, &victims, again, &mut rng, &mut counts);
            }
            registers.check_some(&client, &nodes, &mut any, 30);
            if cycle % check_every == 0 {
                check_all(&fleet, &registers);
            }
            if told.elapsed() > Duration::from_secs(30) {
                told = Instant::now();
                println!(
                    "{cycle} cycles in {:.0?}: {} kills, {} writes acknowledged, slowest recovery \
                     {:.2?}",
                    begun.elapsed(),
                    counts.kills,
                    registers.acknowledged(),
                    counts.slowest
                );
            }
        }
    });
    let present = check_all(&fleet, &registers);
    let totals = registers.judge_file().unwrap();
    assert_calm(&fleet);
    let said: String = nodes.iter().map(|node| fleet.said(*node)).collect();
    let snapshots = said.matches("snapshot installed").count();
    counts.recoveries.sort();
    println!(
        "{cycles} cycles (seed {seed}) in {:.0?}: {} kills ({} before the node was ready, {} times \
         all three at once, {} with snapshots on their way), {snapshots} snapshots installed; {} \
         writes tried, {} acknowledged, {} refused, {} unknown, {} of those seen later; {} reads \
         judged, {present} keys there at the end, lost = 0; recovery: median {:.2?}, slowest \
         {:.2?}",
        begun.elapsed(),
        counts.kills,
        counts.early,
        counts.all_at_once,
        counts.midway,
        totals.tried,
        totals.acknowledged,
        totals.refused,
        totals.unknown() + totals.settled,
        totals.settled,
        totals.reads,
        counts.recoveries[counts.recoveries.len() / 2],
        counts.slowest
    );
    assert_eq!(totals.acknowledged, registers.acknowledged(), "the file and the test disagree");
    assert!(totals.acknowledged > 20 * cycles, "hardly any load: {totals:?}");
    assert!(present > 200, "hardly anything was there to be lost: {present}");
    assert!(
        cycles < 10 || snapshots > 0 && counts.early > 0 && counts.all_at_once > 0,
        "the cycles were all alike"
    );
}

/// A write that fails, by the kernel's own word: no file may grow beyond a mebibyte. The process
/// ends at once, says why, and nothing that it acknowledged is lost.
#[test]
fn a_failed_write_ends_the_process_and_loses_nothing() {
    let mut fleet = Fleet::for_crashes(4);
    fleet.start_all(&fleet.all());
    let registers = Registers::journaled(&fleet, 20, 4);
    let (client, mut rng) = (fleet.client.clone(), Rng::new(5));
    let shards: Vec<u64> = fleet.last_indexes(1).into_keys().collect();
    fleet.kill(&[3]);
    // Blocks of 512 bytes or, in some shells, of 1024. Without the trap, the signal would end the
    // process before its write could fail.
    let limited = ["sh", "-c", "trap '' XFSZ; ulimit -f 1024; exec \"$@\"", "sh"];
    fleet.launchers.insert(3, limited.map(Into::into).into());
    fleet.start(3);
    let load = Load::mixed(3, Duration::from_millis(1), 5);
    let (status, _) = registers.under_load(&client, &Targets::new(&[1, 2, 3]), load, || {
        until("the node ends, as its disk says no", Duration::from_secs(20), || {
            registers.fill(&client, &[1, 2], &shards, 256 << 10, &mut rng);
            fleet.ended(3)
        })
    });
    fleet.launchers.clear();
    let said = fleet.said_in_last_life(3);
    let line = said
        .lines()
        .find(|line| line.contains("the process ends"))
        .unwrap_or_else(|| panic!("no word of it: {said}"));
    println!("ended with {status}: {line}");
    assert_eq!(status.signal(), Some(6), "it did not abort");
    assert!(line.contains("File too large"), "{line}");
    registers.check_some(&client, &[1, 2], &mut rng, 30);
    println!("ready again after {:.2?}", fleet.start(3));
    let present = registers.check_all(&client, 3);
    fleet.wait_equal(Duration::from_secs(30));
    println!("all {present} keys are there, {:?}", registers.judge_file().unwrap());
}
