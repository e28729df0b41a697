//! The net is tested too: each known mistake, switched into the code, is caught by the simulation
//! within so many seeds.
//!
//! Built only with the features `sim` and `mutation` (`ops/test` does so). What catches which, and
//! how soon, is told in `docs/simulation.md`; a run prints it anew with `-- --nocapture`.

#![cfg(all(feature = "sim", feature = "mutation"))]

use flotilla_router::mutation::Mutation;
use std::process::{Command, Output};
use std::time::Instant;
use strum::IntoEnumIterator as _;

/// Mistakes that show only under one kind of fault, which then strikes in every seed.
const FAULTS: &[(Mutation, &str)] = &[
    (Mutation::ReusedReadContext, "Echo,Transfer"),
    (Mutation::LeaseWithoutClock, "Echo,Isolate"),
    (Mutation::LeaseKeptInTransfer, "Transfer"),
    (Mutation::ReadBeforeApplied, "SlowDisk,Transfer"),
    (Mutation::AppliedApart, "Crash,PowerLoss"),
    (Mutation::ReadDuringInstall, "SlowDisk,Crash"),
    (Mutation::AgeByArrival, "Pause,Clog,Isolate"),
    (Mutation::AgeBeforeApplied, "SlowDisk,Transfer"),
    (Mutation::PromiseForgotten, "Startle"),
    (Mutation::JointKept, "Members"),
    (Mutation::RaftUntold, "Members"),
    (Mutation::LateChangeMade, "Members,SlowDisk"),
];

/// Mistakes that take an order of events which seeds meet too seldom: the core's own harness plays
/// it (`core/tests/promises.rs`).
const PLAYED: &[Mutation] = &[Mutation::PromiseByLeaderId];

/// Within so many seeds every mistake is caught.
const SEEDS_MAX: u64 = 5000;

fn simulate(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_flotilla-sim"))
        .args(arguments)
        .output()
        .expect("run flotilla-sim")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout)
}

#[test]
fn every_known_mistake_is_caught() {
    for mutation in Mutation::iter().filter(|mutation| !PLAYED.contains(mutation)) {
        let name: &str = mutation.into();
        let begun = Instant::now();
        let seeds = SEEDS_MAX.to_string();
        let faults =
            FAULTS.iter().find(|(of, _)| *of == mutation).map(|(_, faults)| ["--faults", faults]);
        let mut arguments = vec!["--mutation", name, "--seeds", &seeds];
        arguments.extend(faults.iter().flatten());
        let output = simulate(&arguments);
        let said = said(&output);
        assert_eq!(
            output.status.code(),
            Some(1),
            "{name} goes unnoticed in {SEEDS_MAX} seeds:\n{said}"
        );
        let seeds = said.lines().find(|line| line.contains(" seeds in ")).unwrap_or_default();
        let caught = said.lines().find(|line| line.starts_with("seed ")).unwrap_or_default();
        println!(
            "{name:24} {:6.1} s  {}  {caught}",
            begun.elapsed().as_secs_f64(),
            seeds.split(" in ").next().unwrap_or_default()
        );
    }
}

/// Without a mistake the same faults are survived: what catches the mistakes is not the faults
/// themselves.
#[test]
fn without_a_mistake_nothing_is_caught() {
    for (_, faults) in FAULTS {
        let output = simulate(&["--seeds", "100", "--faults", faults]);
        assert!(output.status.success(), "{faults}: {}", said(&output));
    }
}
