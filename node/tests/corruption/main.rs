//! Files that are not what they were: every kind of file of one node, with bits flipped, cut,
//! emptied, removed, while the other two nodes go on.
//!
//! What may come of it: the node refuses to start, each time, with one line that says what to do;
//! or it runs and is right; or it notices later and ends, or quarantines the shard, and says so; or
//! the others keep it out. Never: something acknowledged is lost without a word, a wrong value is
//! read through it, a panic, a start that fails without a reason or succeeds at the second try.
//!
//! `cargo test` tries the cases that are most telling, and a few that are drawn. All kinds of files
//! and damage, at places from a seed:
//!
//! ```text
//! FLOTILLA_DAMAGE=1 FLOTILLA_SEED=7 cargo test --release --workspace --test corruption -- --nocapture
//! ```
//!
//! The number says how often all of them are gone through. The table that is printed stands in
//! `docs/crashes.md`.

#![cfg(feature = "shell")]

mod damage;
mod harness;

use damage::{Damage, Kind, flip};
use flotilla_kit::disk::{copy, restore};
use flotilla_kit::process::RaiseOnDrop;
use flotilla_kit::{CUT_BYTES, Fleet, Load, Registers, Rng, Targets, asked, set, until};
use harness::Harness;
use rustix::process::Signal;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How often all kinds of files and damage are gone through; a few cases where it is not set.
const ROUNDS: &str = "FLOTILLA_DAMAGE";
/// What places are drawn from.
const SEED: &str = "FLOTILLA_SEED";

/// What is always tried: where a store would most likely begin anew, go back to what it was, or go
/// on with half.
const ALWAYS: &[(Kind, Damage)] = &[
    (Kind::Current, Damage::Gone),
    (Kind::Wal, Damage::Gone),
    (Kind::Manifest, Damage::Cut(600)),
    (Kind::Manifest, Damage::Cut(995)),
    (Kind::Table, Damage::Gone),
    (Kind::Table, Damage::Flip(100)),
    (Kind::Wal, Damage::Flip(400)),
    (Kind::Started, Damage::Gone),
    (Kind::Manifest, Damage::Gone),
    (Kind::Leftover, Damage::Flip(500)),
    (Kind::Config, Damage::Cut(700)),
    (Kind::Key, Damage::Flip(500)),
    (Kind::Current, Damage::Flip(300)),
    (Kind::Wal, Damage::Cut(700)),
];

#[test]
fn a_damaged_minority_never_loses_silently() {
    let seed = asked(SEED).unwrap_or(1);
    let mut rng = Rng::new(seed);
    let mut cases: VecDeque<(Kind, Damage)> = VecDeque::new();
    match asked(ROUNDS) {
        None => {
            cases.extend(ALWAYS);
            for _ in 0..3 {
                let kind = rng.pick(&Kind::ALL);
                cases.push_back((kind, rng.pick(&Damage::drawn(&mut rng.clone()))));
            }
        }
        Some(rounds) => {
            for _ in 0..rounds {
                cases.extend(ALWAYS);
                for kind in Kind::ALL {
                    cases.extend(Damage::drawn(&mut rng).map(|damage| (kind, damage)));
                }
            }
        }
    }
    let begun = Instant::now();
    let (mut counts, mut fleets) = (BTreeMap::<&str, u64>::new(), 0);
    println!("| file | damage | what the node did |\n|---|---|---|");
    while !cases.is_empty() {
        fleets += 1;
        let mut harness = Harness::new(seed + fleets);
        let (client, registers) = (harness.fleet.client.clone(), harness.registers.clone());
        let load = Load::mixed(2, Duration::from_millis(3), seed);
        registers.under_load(&client, &Targets::new(&[1, 2]), load, || {
            while let Some((kind, damage)) = cases.pop_front() {
                let (file, reaction, is_well) = harness.try_damage(kind, damage);
                println!("| {file} | {damage} | {reaction} |");
                *counts.entry(reaction.name()).or_default() += 1;
                // It took part while its memory was wrong: what it is now, no copy of its folder
                // can be.
                if !is_well {
                    break;
                }
            }
        });
        harness.fleet.assert_no_panic();
    }
    println!("seed {seed}: {counts:?} with {fleets} clusters in {:.0?}", begun.elapsed());
    assert!(
        counts.contains_key("right") && counts.contains_key("refused"),
        "the damage was all alike: {counts:?}"
    );
}

/// Files of snapshots, spoiled where they were built, and where they arrive: none is ever
/// installed, and the follower gets there all the same.
#[test]
fn a_snapshot_that_is_spoiled_on_its_way_is_not_installed() {
    let mut fleet = Fleet::for_crashes(4);
    // Slow enough to be caught in the act.
    fleet.edit_config(|config| set(config, "transport", "snapshot_bytes_per_second", 8 << 20));
    let nodes = fleet.all();
    fleet.start_all(&nodes);
    let registers = Registers::journaled(&fleet, 20, 24);
    let (client, mut rng) = (fleet.client.clone(), Rng::new(asked(SEED).unwrap_or(1)));
    let had = fleet.last_indexes(3);
    let shards: Vec<u64> = had.keys().copied().collect();
    fleet.kill(&[3]);
    registers.fill(&client, &[1, 2], &shards, 2 * CUT_BYTES, &mut rng);
    until("the logs are cut", Duration::from_secs(20), || {
        let are_cut = fleet.cut_beyond(&shards, &[1, 2], &had) == shards;
        if !are_cut {
            registers.fill(&client, &[1, 2], &shards, 32 << 10, &mut rng);
        }
        are_cut.then_some(())
    });
    let built = [1, 2].map(|node| fleet.home(node).join("data/snapshots/out"));
    let staged = fleet.home(3).join("data/snapshots/in");
    let stop = AtomicBool::new(false);
    let (spoiled_built, spoiled_staged) = std::thread::scope(|scope| {
        let spoiler = scope.spawn(|| {
            let (mut seen, mut at_sender, mut at_receiver) = (BTreeSet::new(), 0, 0);
            while !stop.load(Ordering::SeqCst) {
                for path in built.iter().flat_map(|folder| snapshot_files(folder)) {
                    // Not before it was measured: what its builder finds there is what it calls
                    // sound.
                    let written = fs::metadata(&path).and_then(|metadata| metadata.modified());
                    let is_built = written.is_ok_and(|at| {
                        at.elapsed().is_ok_and(|age| age > Duration::from_millis(300))
                    });
                    if at_sender < 3 && is_built && seen.insert(path.clone()) && spoil(&path) {
                        at_sender += 1;
                    }
                }
                for path in snapshot_files(&staged) {
                    // Long before it is complete and verified: what changes after that is another
                    // story.
                    let is_coming = fs::metadata(&path)
                        .is_ok_and(|metadata| (1000..300_000).contains(&metadata.len()));
                    if at_receiver < 3 && is_coming && seen.insert(path.clone()) && spoil(&path) {
                        at_receiver += 1;
                    }
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            (at_sender, at_receiver)
        });
        let _stop = RaiseOnDrop(&stop);
        println!("ready after {:.2?}", fleet.start(3));
        println!("equal after another {:.2?}", fleet.wait_equal(Duration::from_secs(60)));
        stop.store(true, Ordering::SeqCst);
        spoiler.join().unwrap()
    });
    let said: String = nodes.iter().map(|node| fleet.said(*node)).collect();
    // A line in the log is held back where there was one just now; each is counted.
    let failed =
        |node| client.metric(node, "flotilla_snapshots_failed_total").unwrap_or(0.0) as u64;
    let refused: u64 = [1, 2].map(failed).iter().sum();
    let anew = said.matches("were spoiled on this node's disk; it is built anew").count();
    println!(
        "{spoiled_built} built and {spoiled_staged} staged files were spoiled, {refused} snapshots \
         were refused, {anew} built anew"
    );
    assert!(spoiled_built > 0 && spoiled_staged > 0, "nothing was spoiled in time");
    assert!(refused >= 2 && said.contains("check snapshot file"), "nobody noticed");
    for node in &nodes {
        registers.check_all(&client, *node);
    }
    fleet.assert_no_panic();
}

fn snapshot_files(folder: &Path) -> Vec<PathBuf> {
    let below = |folder: &Path| {
        fs::read_dir(folder)
            .map_or(Vec::new(), |entries| entries.flatten().map(|e| e.path()).collect())
    };
    below(folder)
        .iter()
        .flat_map(|folder| below(folder))
        .filter(|path| path.extension().is_some_and(|e| e == "sst"))
        .collect()
}

/// Flips a bit near the front of a file, if it is still there.
fn spoil(path: &Path) -> bool {
    use std::os::unix::fs::FileExt as _;
    let Ok(file) = fs::File::options().read(true).write(true).open(path) else { return false };
    let mut byte = [0];
    file.read_exact_at(&mut byte, 500).is_ok() && file.write_all_at(&[byte[0] ^ 4], 500).is_ok()
}

/// The files of a kind, with their sizes, the largest last.
fn sizes(kind: Kind, home: &Path) -> Vec<(PathBuf, u64)> {
    kind.files(home)
        .into_iter()
        .map(|path| (path.clone(), fs::metadata(path).unwrap().len()))
        .collect()
}

/// A flipped byte anywhere in the write-ahead log or in a table. A cluster of one node has nobody
/// to repair it: either it refuses to start, with a line that says so; or all that was acknowledged
/// is there. A key whose record is broken is an error, never missing and never another value.
#[test]
fn a_flipped_byte_is_never_a_silent_loss() {
    let mut cluster = Fleet::new(1, 2);
    let keys: Vec<String> =
        (0..200).map(|i| format!("{}/flip{i}", (b'a' + i % 26) as char)).collect();
    let value = |key: &str| key.repeat(40).into_bytes();
    for key in &keys {
        cluster.client.put(1, key, &value(key));
    }
    // Killed, so that the log is what it was at the last fsync, and nothing was flushed on the way
    // out.
    cluster.kill(&[1]);
    cluster.stop_dev(Signal::INT);
    cluster.may_end.insert(1);
    let data = cluster.home(1).join("data");
    let original = cluster.folder.join("original");
    copy(&data, &original).unwrap();

    let judge = |cluster: &mut Fleet, what: &str| {
        cluster.spawn(1);
        let refused = until(&format!("{what}: ready or gone"), Duration::from_secs(30), || {
            let is_gone = !cluster.is_running(1);
            (is_gone || cluster.is_ready(1)).then_some(is_gone)
        });
        if refused {
            let tail = cluster.log_tail(1, 1);
            println!("{what}: refused: {tail}");
            assert!(
                tail.contains("flotilla: ") || tail.contains("the process ends"),
                "{what}: no clear line: {tail}"
            );
        } else {
            let (mut right, mut errors) = (0, 0);
            for key in &keys {
                match cluster.client.send(1, "GET", &format!("/v1/kv/{key}"), &[], None) {
                    Ok(answer) if answer.status == 200 => {
                        assert!(answer.body == value(key), "{what}: {key} has another value");
                        right += 1;
                    }
                    Ok(answer) => {
                        assert!(
                            answer.status >= 500,
                            "{what}: {key} was acknowledged and is {}",
                            answer.status
                        );
                        errors += 1;
                    }
                    Err(_) => errors += 1,
                }
            }
            println!("{what}: started; {right} keys right, {errors} said to be broken");
            cluster.kill(&[1]);
        }
        refused
    };

    let (mut refusals, mut starts) = (0, 0);
    let mut count = |refused: bool| if refused { refusals += 1 } else { starts += 1 };
    let (wal, size) = sizes(Kind::Wal, &cluster.home(1)).pop().unwrap();
    for permille in [5, 100, 333, 500, 700, 900, 990, 999] {
        restore(&original, &data);
        let at = size * permille / 1000;
        flip(&wal, at, 0x5a);
        count(judge(&mut cluster, &format!("write-ahead log, byte {at} of {size}")));
    }
    // The last record of all, which a torn write would leave half: a flip in it is not a tear.
    for back in [2, 20] {
        restore(&original, &data);
        flip(&wal, size - back, 0x5a);
        count(judge(
            &mut cluster,
            &format!("write-ahead log, {back} bytes before its end of {size}"),
        ));
    }

    // Tables: an orderly start and stop turns the log into them.
    restore(&original, &data);
    cluster.start(1);
    cluster.stop(1);
    fs::remove_dir_all(&original).unwrap();
    copy(&data, &original).unwrap();
    let tables = sizes(Kind::Table, &cluster.home(1));
    println!(
        "{} tables, {:?} bytes",
        tables.len(),
        tables.iter().map(|(_, size)| size).collect::<Vec<_>>()
    );
    for (path, size) in &tables {
        for percent in [10, 50, 95] {
            restore(&original, &data);
            flip(path, size * percent / 100, 0x5a);
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            count(judge(
                &mut cluster,
                &format!("table {name}, byte {} of {size}", size * percent / 100),
            ));
        }
    }
    println!("{refusals} refused, {starts} started with nothing lost silently");
    assert!(refusals > 0, "no flip was ever noticed at the start");

    // What was right is right again.
    restore(&original, &data);
    cluster.start(1);
    for key in &keys {
        assert!(cluster.client.get(1, &format!("/v1/kv/{key}")).expect(200).body == value(key));
    }
}
