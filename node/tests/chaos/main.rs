//! Chaos: real processes under everything that a network, a disk and an operator can do to them,
//! and the verdict that every history was linearizable all the same.
//!
//! ```text
//!   schedule   what happens, drawn from a seed              harness   the cluster: configurations, proxy, namespaces, disk
//!   faults     how it is done, and undone                   health    what is healthy now; probes that must get through
//!   check      `flotilla check` as a child: load, verdict   report    the table at the end
//! ```
//!
//! `cargo test` runs two short ones with a fixed list of faults, such that every kind occurs: one
//! through the proxy alone, one in network namespaces where the system lets us (and through the
//! proxy where not). Hours on demand, with faults drawn from the seed:
//!
//! ```text
//! FLOTILLA_CHAOS=1h FLOTILLA_SEED=7 cargo test --release --workspace --test chaos -- --nocapture
//! ```
//!
//! After the last fault everything is healed, and then: all nodes ready, every shard takes writes,
//! all replicas equal by hash, every acknowledged write of the probes there, no panic in any log,
//! nobody ended who was not killed (or whose disk was not full), and `flotilla check` says that
//! what it saw was linearizable. `docs/chaos.md` tells more.

#![cfg(feature = "shell")]

mod check;
mod faults;
mod harness;
mod health;
mod namespace;
mod proxy;
mod report;
mod schedule;

use check::{Check, Verdict};
use faults::Done;
use flotilla_kit::disk::copy;
use flotilla_kit::{Registers, until, until_writes};
use harness::{Harness, Mode, Plan};
use health::Probes;
use report::Report;
use schedule::{Fault, KINDS, Links, Round, Schedule};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long the long run asks for, such as `90s`, `10m` or `1h`.
const ASKED: &str = "FLOTILLA_CHAOS";
/// What its faults are drawn from.
const SEED: &str = "FLOTILLA_SEED";
/// `proxy` for a long run without namespaces.
const MODE: &str = "FLOTILLA_CHAOS_MODE";
/// How long one check of a long run is; what it remembers grows with it.
const CHECK_LASTS_MAX: Duration = Duration::from_secs(300);
/// The least, such that the longest round fits in.
const CHECK_LASTS_MIN: Duration = Duration::from_secs(48);
/// What a round may take beside its pause and its faults: starts and what has to be waited for.
const ROUND_MARGIN: Duration = Duration::from_secs(8);
/// Clients of the check.
const CLIENTS: u64 = 12;

/// All that is at stake in a run.
struct Run {
    probes: Probes,
    check: Option<Check>,
    begun: Instant,
    rounds: u64,
    done: Done,
    verdicts: Vec<Verdict>,
}

impl Run {
    /// Starts the probes.
    fn new(harness: &Harness) -> Self {
        let Harness { fleet, replicas, health, .. } = harness;
        let registers = Registers::new(fleet, "probe", 1);
        let probes = Probes::start(&fleet.client, registers, replicas, &fleet.all(), health);
        let (check, rounds, done, verdicts) = Default::default();
        Self { probes, check, begun: Instant::now(), rounds, done, verdicts }
    }

    /// Starts a check that lasts so long.
    fn start_check(&mut self, harness: &Harness, duration: Duration) {
        let number = self.verdicts.len() as u64;
        let history = harness.fleet.scratch().join(format!("history-{number}.ndjson"));
        self.check =
            Some(Check::start(harness, duration, CLIENTS, harness.plan.seed + number, &history));
    }

    /// Waits in peace until the check's time is up, and for its verdict.
    fn end_check(&mut self, harness: &mut Harness) {
        let check = self.check.take().expect("was started");
        harness.pass(check.left().as_millis() as u64, &mut |harness| {
            watch(harness, &self.probes, None)
        });
        let history = check.history.clone();
        self.verdicts.push(check.verdict());
        // A clean history is of no more use, and hours of them fill a disk.
        let _ = std::fs::remove_file(history);
    }

    fn play(&mut self, harness: &mut Harness, round: &Round) {
        self.rounds += 1;
        let [ok, ..] = Report::outcomes(&self.probes.counts);
        let silence = self.probes.silences().0.lasted;
        let seconds = self.begun.elapsed().as_secs();
        println!(
            "{:02}:{:02}:{:02} round {}: {round}; so far {ok} probes ok, longest silence \
             {silence:.1?}",
            seconds / 3600,
            seconds / 60 % 60,
            seconds % 60,
            self.rounds
        );
        let Self { probes, check, done, .. } = self;
        harness.play(round, done, &mut |harness| watch(harness, probes, check.as_mut()));
    }

    /// All is healed: whether all is well, and what it comes to.
    fn finish(mut self, harness: &mut Harness) -> Report {
        let lasted = self.begun.elapsed();
        let all = harness.fleet.all();
        let shards = harness.fleet.shard_paths(1, "healed");
        let pauses = until_writes(&harness.fleet.client, &shards, &all, Instant::now());
        assert!(
            pauses.iter().all(|pause| *pause < Duration::from_secs(20)),
            "a healed cluster is slow to take writes: {pauses:?}"
        );
        self.probes.stop();
        watch(harness, &self.probes, None);
        let fleet = &mut harness.fleet;
        let keys = self.probes.registers.check(&fleet.client, &all);
        assert!(
            keys == self.probes.registers.all.len(),
            "the probes of some shards never got through: {keys} did"
        );
        let equal = fleet.wait_equal(Duration::from_secs(60));
        fleet.check_running();
        fleet.assert_no_panic();
        let installed = |node: &u64| fleet.said(*node).matches("snapshot installed").count() as u64;
        let (silence, silence_per_shard) = self.probes.silences();
        Report {
            plan: harness.plan.clone(),
            lasted,
            rounds: self.rounds,
            done: self.done,
            verdicts: self.verdicts,
            probes: Report::outcomes(&self.probes.counts),
            silence,
            silence_per_shard,
            snapshots: all.iter().map(installed).sum(),
            equal,
            keys,
        }
    }
}

/// Panics as soon as something is known to be wrong.
fn watch(harness: &mut Harness, probes: &Probes, check: Option<&mut Check>) {
    if let Some(violation) = probes.violation() {
        panic!("{violation}");
    }
    if check.is_some_and(Check::ended_early) {
        panic!(
            "flotilla check ended before its time; what it says is in {}",
            harness.fleet.scratch().display()
        );
    }
}

/// Says how to do the same again, when the test fails.
struct Repeat(String);

impl Drop for Repeat {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the same again: {}", self.0);
        }
    }
}

fn round(pause_millis: u64, faults: Vec<Fault>, hold_millis: u64) -> Round {
    Round { pause_millis, faults, hold_millis }
}

/// What the short run through the proxy does.
fn short_by_proxy() -> Vec<Round> {
    let all = Links::All;
    vec![
        round(500, vec![Fault::Kill { nodes: vec![1], again_millis: Some(100) }], 700),
        round(
            500,
            vec![Fault::Stop { node: 2 }, Fault::Delay { links: Links::Of(3), millis: 30 }],
            2_500,
        ),
        round(500, vec![Fault::Cut { node: 3 }], 1_500),
        round(
            500,
            vec![Fault::OneWay { from: 1, to: 2 }, Fault::Duplicate { links: all, permille: 300 }],
            1_500,
        ),
        round(
            500,
            vec![
                Fault::Loss { links: all, permille: 100 },
                Fault::Reorder { links: all, permille: 100 },
            ],
            1_500,
        ),
        round(500, vec![Fault::Restart { node: 2 }, Fault::Delay { links: all, millis: 20 }], 800),
        round(500, vec![Fault::Ring], 1_500),
        round(500, vec![Fault::Kill { nodes: vec![2, 3], again_millis: None }], 500),
    ]
}

/// What the short run in namespaces does.
fn short_in_namespaces() -> Vec<Round> {
    vec![
        round(500, vec![Fault::Kill { nodes: vec![1, 2, 3], again_millis: None }], 300),
        round(
            500,
            vec![
                Fault::Kill { nodes: vec![3], again_millis: None },
                Fault::Loss { links: Links::All, permille: 20 },
            ],
            700,
        ),
        round(500, vec![Fault::Cut { node: 1 }], 1_500),
        round(500, vec![Fault::OneWay { from: 3, to: 2 }], 1_500),
        round(500, vec![Fault::Loss { links: Links::Of(2), permille: 200 }], 1_500),
        round(500, vec![Fault::Stop { node: 1 }], 4_000),
        round(500, vec![Fault::Wipe { node: 2 }], 300),
        round(500, vec![Fault::DiskLow], 500),
        round(500, vec![Fault::DiskFull], 500),
    ]
}

fn short(mode: Mode, lease: bool, rounds: &[Round]) {
    if std::env::var_os(ASKED).is_some() {
        return println!("left out: {ASKED} asks for the long run alone");
    }
    let _repeat =
        Repeat("cargo test --release --workspace --test chaos -- --nocapture short".into());
    let mut harness = Harness::new(Plan { seed: 1, nodes: 3, shards: 8, mode, lease });
    let mut run = Run::new(&harness);
    let planned: u64 =
        rounds.iter().map(|round| round.pause_millis + round.hold_millis + 1_000).sum();
    run.start_check(&harness, Duration::from_millis(planned));
    for (n, round) in rounds.iter().enumerate() {
        if run.check.as_ref().is_some_and(|check| check.left().is_zero()) {
            println!(
                "a slow machine: round {} and those after it are not seen by the check",
                n + 1
            );
        }
        run.play(&mut harness, round);
    }
    run.end_check(&mut harness);
    let report = run.finish(&mut harness);
    println!("{}", report.table());
}

#[test]
fn short_by_proxy_alone() {
    short(Mode::Proxy, false, &short_by_proxy());
}

#[test]
fn short_in_namespaces_where_allowed() {
    short(Mode::Namespaces, true, &short_in_namespaces());
}

/// A majority that is set back to what it held a while ago, which no cluster survives: probes and
/// check must both notice, or their silence in the other tests would mean nothing.
#[test]
fn a_cluster_that_forgets_is_found_out() {
    if std::env::var_os(ASKED).is_some() {
        return println!("left out: {ASKED} asks for the long run alone");
    }
    let mut harness =
        Harness::new(Plan { seed: 2, nodes: 3, shards: 4, mode: Mode::Proxy, lease: false });
    let mut run = Run::new(&harness);
    run.start_check(&harness, Duration::from_secs(8));
    let check = run.check.take().expect("was started");
    std::thread::sleep(Duration::from_millis(700));
    let past =
        |harness: &Harness, node: u64| harness.fleet.scratch().join(format!("past-of-{node}"));
    harness.fleet.kill(&[1, 2]);
    for node in [1, 2] {
        copy(&harness.data(node), &past(&harness, node)).unwrap();
    }
    harness.fleet.start_all(&[1, 2]);
    std::thread::sleep(Duration::from_millis(1_500));
    // The third one would remember.
    harness.fleet.kill(&[1, 2, 3]);
    for node in [1, 2] {
        std::fs::remove_dir_all(harness.data(node)).unwrap();
        copy(&past(&harness, node), &harness.data(node)).unwrap();
    }
    harness.fleet.start_all(&[1, 2]);
    let begun = Instant::now();
    let seen = until("the probes notice", Duration::from_secs(20), || run.probes.violation());
    println!("the probes noticed after {:?}: {seen}", begun.elapsed());
    let (code, said, complained) = check.outcome();
    println!("flotilla check ended with {code:?}: {said}{complained}");
    assert_eq!(code, Some(1), "{said}{complained}");
}

#[test]
fn the_short_runs_have_every_kind_of_fault() {
    let rounds = [short_by_proxy(), short_in_namespaces()].concat();
    let kinds: BTreeSet<&str> =
        rounds.iter().flat_map(|round| &round.faults).map(|fault| fault.kind(3)).collect();
    assert_eq!(kinds, KINDS.into());
}

/// Runs for as long as the environment says, with faults drawn from its seed.
#[test]
fn for_as_long_as_asked() {
    let Ok(asked) = std::env::var(ASKED) else {
        return println!("left out: {ASKED} is not set; try {ASKED}=10m");
    };
    let seed = std::env::var(SEED)
        .map_or(1, |seed| seed.parse().unwrap_or_else(|_| panic!("{SEED}={seed} is not a number")));
    let mode = std::env::var(MODE).unwrap_or_default();
    let mode = if mode == "proxy" { Mode::Proxy } else { Mode::Namespaces };
    let _repeat = Repeat(format!(
        "{ASKED}={asked} {SEED}={seed} {MODE}={} cargo test --release --workspace --test chaos -- \
         --nocapture",
        mode.name()
    ));
    let duration = duration(&asked);
    // Every second seed has leases on: the harder case, where time is part of the argument.
    let mut harness = Harness::new(Plan { seed, nodes: 5, shards: 16, mode, lease: seed % 2 == 1 });
    let mut run = Run::new(&harness);
    let mut schedule = Schedule::new(seed, 5);
    let mut next = schedule.next().expect("it has no end");
    let mut played = Vec::new();
    while run.begun.elapsed() < duration {
        let left = duration.saturating_sub(run.begun.elapsed());
        run.start_check(&harness, left.clamp(CHECK_LASTS_MIN, CHECK_LASTS_MAX));
        loop {
            let needed = Duration::from_millis(next.pause_millis + next.hold_millis) + ROUND_MARGIN;
            if needed > run.check.as_ref().expect("was started").left() {
                break;
            }
            played.push(next.to_string());
            let text = played.join("\n");
            std::fs::write(harness.fleet.scratch().join("schedule.txt"), text).unwrap();
            run.play(&mut harness, &next);
            next = schedule.next().expect("it has no end");
        }
        run.end_check(&mut harness);
    }
    let report = run.finish(&mut harness);
    println!("{}", report.table());
    let files = report.write(Path::new(env!("CARGO_TARGET_TMPDIR")));
    println!("the same in {}", files.map(|file| file.display().to_string()).join(" and "));
}

fn duration(text: &str) -> Duration {
    let bad = || -> ! { panic!("{ASKED}={text} is no time; try 90s, 10m or 1h") };
    let (number, unit) = text.split_at(text.len().saturating_sub(1));
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => bad(),
    };
    Duration::from_secs(seconds * number.parse::<u64>().unwrap_or_else(|_| bad()))
}
