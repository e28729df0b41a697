//! Chaos: real processes under everything that a network, a disk and an operator can do to them, and the verdict that every history
//! was linearizable all the same.
//!
//! ```text
//!   schedule   what happens, drawn from a seed              fleet     the cluster: configurations, proxy, namespaces, disk
//!   faults     how it is done, and undone                   world     what is healthy now; probes that must get through
//!   check      `flotilla check` as a child: load, verdict   report    the table at the end
//! ```
//!
//! `cargo test` runs two short ones with a fixed list of faults, such that every kind occurs: one through the proxy alone, one in
//! network namespaces where the system lets us (and through the proxy where not). Hours on demand, with faults drawn from the
//! seed:
//!
//! ```text
//! FLOTILLA_CHAOS=1h FLOTILLA_SEED=7 cargo test --release --workspace --test chaos -- --nocapture
//! ```
//!
//! After the last fault everything is healed, and then: all nodes ready, every shard takes writes, all replicas equal by hash, every
//! acknowledged write of the probes there, no panic in any log, nobody ended who was not killed (or whose disk was not full), and
//! `flotilla check` says that what it saw was linearizable. `docs/chaos.md` tells more.

#![cfg(feature = "shell")]

mod check;
mod disk;
mod faults;
mod fleet;
mod namespace;
mod proxy;
mod report;
mod schedule;
mod world;

use check::{Check, Verdict};
use faults::Done;
use fleet::{Fleet, Mode, Plan};
use flotilla_kit::load::{Ledger, until_writes};
use report::Report;
use schedule::{Fault, Kind, Links, Round, Schedule};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};
use world::Probes;

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
    fn new(fleet: &Fleet) -> Self {
        let ledger = Ledger::new(&fleet.cluster, "probe", 1);
        let probes = Probes::start(&fleet.cluster.client, ledger, &fleet.replicas, &fleet.cluster.all(), &fleet.world);
        let (check, rounds, done, verdicts) = Default::default();
        Self { probes, check, begun: Instant::now(), rounds, done, verdicts }
    }

    /// Starts a check that lasts so long.
    fn start_check(&mut self, fleet: &Fleet, duration: Duration) {
        let number = self.verdicts.len() as u64;
        let history = fleet.folder().join(format!("history-{number}.ndjson"));
        self.check = Some(Check::start(fleet, duration, CLIENTS, fleet.plan.seed + number, &history));
    }

    /// Waits in peace until the check's time is up, and for its verdict.
    fn end_check(&mut self, fleet: &mut Fleet) {
        let check = self.check.take().expect("was started");
        fleet.pass(check.left().as_millis() as u64, &mut |fleet| watch(fleet, &self.probes, None));
        let history = check.history.clone();
        self.verdicts.push(check.verdict());
        // A clean history is of no more use, and hours of them fill a disk.
        let _ = std::fs::remove_file(history);
    }

    fn play(&mut self, fleet: &mut Fleet, round: &Round) {
        self.rounds += 1;
        let [ok, ..] = Report::fates(&self.probes.counts);
        let silence = self.probes.silences().0.lasted;
        let seconds = self.begun.elapsed().as_secs();
        println!(
            "{:02}:{:02}:{:02} round {}: {round}; so far {ok} probes ok, longest silence {silence:.1?}",
            seconds / 3600,
            seconds / 60 % 60,
            seconds % 60,
            self.rounds
        );
        let Self { probes, check, done, .. } = self;
        fleet.play(round, done, &mut |fleet| watch(fleet, probes, check.as_mut()));
    }

    /// All is healed: whether all is well, and what it comes to.
    fn finish(mut self, fleet: &mut Fleet) -> Report {
        let lasted = self.begun.elapsed();
        let all = fleet.cluster.all();
        let shards = fleet.cluster.shard_paths(1, "healed");
        let pauses = until_writes(&fleet.cluster.client, &shards, &all, Instant::now());
        assert!(
            pauses.iter().all(|pause| *pause < Duration::from_secs(20)),
            "a healed cluster is slow to take writes: {pauses:?}"
        );
        self.probes.stop();
        watch(fleet, &self.probes, None);
        let keys = self.probes.ledger.check(&fleet.cluster.client, &all);
        assert!(keys == self.probes.ledger.keys.len(), "the probes of some shards never got through: {keys} did");
        let equal = fleet.wait_equal(Duration::from_secs(60));
        fleet.check_running();
        let logs: Vec<(u64, String)> = all.iter().map(|node| (*node, fleet.log_from(*node, 0))).collect();
        for (node, log) in &logs {
            let panic = log.lines().find(|line| line.contains("panicked"));
            assert!(panic.is_none(), "node {node} panicked: {panic:?}");
        }
        let installed = |log: &str| log.lines().filter(|line| line.contains("snapshot installed")).count() as u64;
        let (silence, silence_per_shard) = self.probes.silences();
        Report {
            plan: fleet.plan.clone(),
            lasted,
            rounds: self.rounds,
            done: self.done,
            verdicts: self.verdicts,
            probes: Report::fates(&self.probes.counts),
            silence,
            silence_per_shard,
            snapshots: logs.iter().map(|(_, log)| installed(log)).sum(),
            equal,
            keys,
        }
    }
}

/// Panics as soon as something is known to be wrong.
fn watch(fleet: &mut Fleet, probes: &Probes, check: Option<&mut Check>) {
    if let Some(violation) = probes.violation() {
        panic!("{violation}");
    }
    if check.is_some_and(Check::ended_early) {
        panic!("flotilla check ended before its time; what it says is in {}", fleet.folder().display());
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
        round(500, vec![Fault::Stop { node: 2 }, Fault::Delay { links: Links::Of(3), millis: 30 }], 2_500),
        round(500, vec![Fault::Cut { node: 3 }], 1_500),
        round(500, vec![Fault::OneWay { from: 1, to: 2 }, Fault::Duplicate { links: all, permille: 300 }], 1_500),
        round(500, vec![Fault::Loss { links: all, permille: 100 }, Fault::Reorder { links: all, permille: 100 }], 1_500),
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
            vec![Fault::Kill { nodes: vec![3], again_millis: None }, Fault::Loss { links: Links::All, permille: 20 }],
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
    let _repeat = Repeat("cargo test --release --workspace --test chaos -- --nocapture short".into());
    let mut fleet = Fleet::new(Plan { seed: 1, nodes: 3, shards: 8, mode, lease });
    let mut run = Run::new(&fleet);
    let planned: u64 = rounds.iter().map(|round| round.pause_millis + round.hold_millis + 1_000).sum();
    run.start_check(&fleet, Duration::from_millis(planned));
    for (n, round) in rounds.iter().enumerate() {
        if run.check.as_ref().is_some_and(|check| check.left().is_zero()) {
            println!("a slow machine: round {} and those after it are not seen by the check", n + 1);
        }
        run.play(&mut fleet, round);
    }
    run.end_check(&mut fleet);
    let report = run.finish(&mut fleet);
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

/// A majority that is set back to what it held a while ago, which no cluster survives: probes and check must both notice, or their
/// silence in the other tests would mean nothing.
#[test]
fn a_cluster_that_forgets_is_found_out() {
    if std::env::var_os(ASKED).is_some() {
        return println!("left out: {ASKED} asks for the long run alone");
    }
    let mut fleet = Fleet::new(Plan { seed: 2, nodes: 3, shards: 4, mode: Mode::Proxy, lease: false });
    let mut run = Run::new(&fleet);
    run.start_check(&fleet, Duration::from_secs(8));
    let check = run.check.take().expect("was started");
    std::thread::sleep(Duration::from_millis(700));
    let past = |fleet: &Fleet, node: u64| fleet.folder().join(format!("past-of-{node}"));
    fleet.kill_all(&[1, 2]);
    for node in [1, 2] {
        disk::copy(&fleet.data(node), &past(&fleet, node)).unwrap();
    }
    fleet.start_all(&[1, 2]);
    std::thread::sleep(Duration::from_millis(1_500));
    // The third one would remember.
    fleet.kill_all(&[1, 2, 3]);
    for node in [1, 2] {
        std::fs::remove_dir_all(fleet.data(node)).unwrap();
        disk::copy(&past(&fleet, node), &fleet.data(node)).unwrap();
    }
    fleet.start_all(&[1, 2]);
    let begun = Instant::now();
    let seen = flotilla_kit::until("the probes notice", Duration::from_secs(20), || run.probes.violation());
    println!("the probes noticed after {:?}: {seen}", begun.elapsed());
    let (code, said, complained) = check.outcome();
    println!("flotilla check ended with {code:?}: {said}{complained}");
    assert_eq!(code, Some(1), "{said}{complained}");
}

#[test]
fn the_short_runs_have_every_kind_of_fault() {
    let rounds = [short_by_proxy(), short_in_namespaces()].concat();
    let kinds: BTreeSet<Kind> = rounds.iter().flat_map(|round| &round.faults).map(|fault| fault.kind(3)).collect();
    assert_eq!(kinds, Kind::ALL.into());
}

/// Runs for as long as the environment says, with faults drawn from its seed.
#[test]
fn for_as_long_as_asked() {
    let Ok(asked) = std::env::var(ASKED) else { return println!("left out: {ASKED} is not set; try {ASKED}=10m") };
    let seed = std::env::var(SEED).map_or(1, |seed| seed.parse().unwrap_or_else(|_| panic!("{SEED}={seed} is not a number")));
    let mode = std::env::var(MODE).unwrap_or_default();
    let mode = if mode == "proxy" { Mode::Proxy } else { Mode::Namespaces };
    let _repeat = Repeat(format!(
        "{ASKED}={asked} {SEED}={seed} {MODE}={} cargo test --release --workspace --test chaos -- --nocapture",
        mode.name()
    ));
    let duration = duration(&asked);
    // Every second seed has leases on: the harder case, where time is part of the argument.
    let mut fleet = Fleet::new(Plan { seed, nodes: 5, shards: 16, mode, lease: seed % 2 == 1 });
    let mut run = Run::new(&fleet);
    let mut schedule = Schedule::new(seed, 5);
    let mut next = schedule.next().expect("it has no end");
    let mut played = Vec::new();
    while run.begun.elapsed() < duration {
        let left = duration.saturating_sub(run.begun.elapsed());
        run.start_check(&fleet, left.clamp(CHECK_LASTS_MIN, CHECK_LASTS_MAX));
        loop {
            let needed = Duration::from_millis(next.pause_millis + next.hold_millis) + ROUND_MARGIN;
            if needed > run.check.as_ref().expect("was started").left() {
                break;
            }
            played.push(next.to_string());
            let text = played.join("\n");
            std::fs::write(fleet.folder().join("schedule.txt"), text).unwrap();
            run.play(&mut fleet, &next);
            next = schedule.next().expect("it has no end");
        }
        run.end_check(&mut fleet);
    }
    let report = run.finish(&mut fleet);
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
