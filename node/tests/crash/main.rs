//! `kill -9`, again and again, of one node, of two, of all three, at any moment; and a journal outside of the cluster that says what was
//! acknowledged. Nothing of it may ever be lost.
//!
//! A cycle kills some nodes under load (a moment after they were ready, or before), starts them again, perhaps kills them once more
//! while they recover, and checks a sample of the journal. Some cycles leave a node down until the others have cut their logs, and
//! kill it again while snapshots come in. Every so often, and at the end, the load rests, every key is checked through every node,
//! and the replicas are equal by hash. At last the journal is judged anew, from the file alone.
//!
//! `cargo test` runs a few cycles. As many as one likes, and with other moments:
//!
//! ```text
//! FLOTILLA_CRASHES=1000 FLOTILLA_SEED=7 cargo test --release --workspace --test crash -- --nocapture
//! ```
//!
//! The seed decides whom and when; what the cluster is doing at that moment differs from run to run. What was seen is told in
//! `docs/crashes.md`.

#![cfg(feature = "shell")]

use flotilla_kit::THREE;
use flotilla_kit::crash_fleet::{CUT_BYTES, Fleet};
use flotilla_kit::crash_load::Book;
use flotilla_node::dice::Dice;
use std::os::unix::process::ExitStatusExt as _;
use std::time::{Duration, Instant};

/// How many cycles are asked for.
const CYCLES: &str = "FLOTILLA_CRASHES";
/// What victims and moments are drawn from.
const SEED: &str = "FLOTILLA_SEED";

fn asked(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

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

fn sleep_up_to(dice: &mut Dice, millis: u64) {
    std::thread::sleep(Duration::from_millis(dice.below(millis + 1)));
}

/// Starts nodes and waits until they are ready; kills them so many times before they are.
fn recover(fleet: &mut Fleet, nodes: &[u64], again: u64, dice: &mut Dice, counts: &mut Counts) {
    for _ in 0..again {
        nodes.iter().for_each(|node| fleet.start(*node));
        sleep_up_to(dice, 250);
        // One of them may even be there already, and another not.
        counts.early += nodes.len() as u64;
        counts.kills += nodes.len() as u64;
        fleet.kill(nodes);
    }
    nodes.iter().for_each(|node| fleet.start(*node));
    let took = fleet.wait_ready(nodes);
    counts.slowest = counts.slowest.max(took);
    counts.recoveries.push(took);
}

/// Leaves a node down until snapshots are its only way back, and kills it while they come.
fn crash_midway(fleet: &mut Fleet, book: &Book, dice: &mut Dice, counts: &mut Counts) {
    let away = 1 + dice.below(3);
    let others = fleet.cluster.others(away);
    let had = fleet.last_indexes(away);
    fleet.kill(&[away]);
    counts.kills += 1;
    let shards: Vec<u64> = had.keys().copied().filter(|_| dice.below(2) == 0).collect();
    book.fill(fleet.client(), &others, &shards, CUT_BYTES, &mut dice.clone());
    // A snapshot that was built of late is kept for a few seconds, and the log behind it. Then this cycle shows less.
    let deadline = Instant::now() + Duration::from_secs(2);
    while !fleet.is_behind(&shards, &others, &had, false) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    let staged = ["in", "install"].map(|folder| fleet.cluster.home(away).join("data/snapshots").join(folder));
    let coming = || staged.iter().any(|folder| std::fs::read_dir(folder).map_or(0, Iterator::count) > 0);
    for _ in 0..1 + dice.below(2) {
        fleet.start(away);
        let deadline = Instant::now() + Duration::from_secs(2);
        while !coming() && !fleet.is_ready(away) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        sleep_up_to(dice, 150);
        fleet.kill(&[away]);
        counts.kills += 1;
        counts.midway += u64::from(coming());
    }
    recover(fleet, &[away], 0, dice, counts);
}

#[test]
fn no_kill_loses_what_was_acknowledged() {
    flotilla_kit::crash_journal::try_the_judge();
    let (cycles, seed) = (asked(CYCLES, 15), asked(SEED, 1));
    let check_every = if cycles > 100 { 50 } else { 7 };
    let begun = Instant::now();
    let mut fleet = Fleet::new(8);
    let path = fleet.journal();
    assert!(!path.starts_with(&fleet.cluster.folder), "the journal must lie outside of the cluster's folder");
    let book = Book::new(&fleet.cluster, &path, 200, 4);
    let (mut any, mut counts) = (Dice::new(seed), Counts::default());
    let client = fleet.client().clone();
    let nodes: Vec<u64> = THREE.collect();
    let check_all = |fleet: &Fleet, book: &Book| {
        book.at_rest(|| {
            let present: Vec<usize> = nodes.iter().map(|node| book.check_all(fleet.client(), *node)).collect();
            fleet.cluster.wait_equal(Duration::from_secs(30));
            present[0]
        })
    };
    book.under_load(&client, &nodes, 6, Duration::ZERO, seed, || {
        let mut told = Instant::now();
        for cycle in 1..=cycles {
            // Of its own, so that what it draws does not depend on how long the cycles before took.
            let mut dice = Dice::new(seed.wrapping_mul(1_000_003).wrapping_add(cycle));
            if cycle % 7 == 3 {
                crash_midway(&mut fleet, &book, &mut dice, &mut counts);
            } else {
                sleep_up_to(&mut dice, 300);
                let mut victims = nodes.clone();
                let spared = if cycle % 6 == 0 { 0 } else { dice.pick(&[0, 1, 1, 2, 2, 2]) };
                for _ in 0..spared {
                    victims.remove(dice.below(victims.len() as u64) as usize);
                }
                let again = if cycle % 5 == 0 { 1 } else { dice.below(9).saturating_sub(6) };
                fleet.kill(&victims);
                counts.kills += victims.len() as u64;
                counts.all_at_once += u64::from(victims.len() == nodes.len());
                recover(&mut fleet, &victims, again, &mut dice, &mut counts);
            }
            book.check_some(&client, &nodes, &mut any, 30);
            if cycle % check_every == 0 {
                check_all(&fleet, &book);
            }
            if told.elapsed() > Duration::from_secs(30) {
                told = Instant::now();
                println!(
                    "{cycle} cycles in {:.0?}: {} kills, {} writes acknowledged, slowest recovery {:.2?}",
                    begun.elapsed(),
                    counts.kills,
                    book.acknowledged(),
                    counts.slowest
                );
            }
        }
    });
    let present = check_all(&fleet, &book);
    let totals = book.judge_again();
    fleet.assert_calm();
    let said: String = nodes.iter().map(|node| fleet.said_since(*node, 0)).collect();
    let snapshots = said.matches("snapshot installed").count();
    counts.recoveries.sort();
    println!(
        "{cycles} cycles (seed {seed}) in {:.0?}: {} kills ({} before the node was ready, {} times all three at once, {} with snapshots on \
         their way), {snapshots} snapshots installed; {} writes tried, {} acknowledged, {} refused, \
         {} unknown, {} of those seen later; {} reads judged, {present} keys there at the end, lost = 0; recovery: median {:.2?}, slowest {:.2?}",
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
        totals.looks,
        counts.recoveries[counts.recoveries.len() / 2],
        counts.slowest
    );
    assert_eq!(totals.acknowledged, book.acknowledged(), "the file and the test disagree");
    assert!(totals.acknowledged > 20 * cycles, "hardly any load: {totals:?}");
    assert!(present > 200, "hardly anything was there to be lost: {present}");
    assert!(cycles < 10 || snapshots > 0 && counts.early > 0 && counts.all_at_once > 0, "the cycles were all alike");
}

/// A write that fails, by the kernel's own word: no file may grow beyond a mebibyte. The process ends at once, says why, and nothing that it
/// acknowledged is lost.
#[test]
fn a_failed_write_ends_the_process_and_loses_nothing() {
    let mut fleet = Fleet::new(4);
    let book = Book::new(&fleet.cluster, &fleet.journal(), 20, 4);
    let (client, mut dice) = (fleet.client().clone(), Dice::new(5));
    let shards: Vec<u64> = fleet.last_indexes(1).into_keys().collect();
    fleet.kill(&[3]);
    // Blocks of 512 bytes or, in some shells, of 1024. Without the trap, the signal would end the process before its write could fail.
    fleet.start_by(3, &["sh", "-c", "trap '' XFSZ; ulimit -f 1024; exec \"$@\"", "sh"]);
    fleet.wait_ready(&[3]);
    let status = book.under_load(&client, &[1, 2, 3], 3, Duration::from_millis(1), 5, || {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            book.fill(&client, &[1, 2], &shards, 256 << 10, &mut dice);
            if let Some(status) = fleet.ended(3) {
                break status;
            }
            assert!(Instant::now() < deadline, "the node goes on, whatever its disk says");
        }
    });
    let said = fleet.said_in_last_life(3);
    let line = said.lines().find(|line| line.contains("the process ends")).unwrap_or_else(|| panic!("no word of it: {said}"));
    println!("ended with {status}: {line}");
    assert_eq!(status.signal(), Some(6), "it did not abort");
    assert!(line.contains("File too large"), "{line}");
    book.check_some(&client, &[1, 2], &mut dice, 30);
    fleet.start(3);
    println!("ready again after {:.2?}", fleet.wait_ready(&[3]));
    let present = book.check_all(&client, 3);
    fleet.cluster.wait_equal(Duration::from_secs(30));
    println!("all {present} keys are there, {:?}", book.judge_again());
}
