//! Death at every step: a node dies at each fail point of `flotilla_storage::failpoint`, is started
//! again, and nothing that was acknowledged is lost; or its disk says no there, and the process
//! ends instead of trying again.
//!
//! Built with the feature `failpoints` only (`ops/test` does so); without it, this file shows that
//! a release has none.
//!
//! ```text
//! cargo test --release --workspace --features flotilla-node/failpoints --test failpoints -- --nocapture
//! ```
//!
//! Each point has a scenario that leads there (`harness.rs`). A round arms one point on one node,
//! lets the scenario play until the node has ended there, by its own word and by SIGABRT, and
//! starts it without: it must be ready, a sample of the journal right, and the replicas equal by
//! hash. A point at which no node died fails the test. The table that is printed stands in
//! `docs/crashes.md`.

#![cfg(feature = "shell")]

#[cfg(feature = "failpoints")]
mod harness;

/// Whoever runs a build in which the environment can end the process is to see it; and a release is
/// no such build.
#[test]
fn the_version_says_whether_there_are_fail_points() {
    let output = flotilla_kit::run(flotilla_kit::flotilla().arg("--version"));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.starts_with("flotilla "), "{output:?}");
    assert_eq!(said.contains("failpoints"), cfg!(feature = "failpoints"), "{said}");
}

/// A typing error must not pass for a run without faults.
#[cfg(feature = "failpoints")]
#[test]
fn a_fail_point_that_does_not_exist_is_refused() {
    let cluster = flotilla_kit::Fleet::new(1, 1);
    for (armed, wanted) in [
        ("no-such-point=return", "there is no fail point"),
        ("log-begun", "no action"),
        ("log-begun=dance", "dance"),
    ] {
        let mut command = cluster.start_command(1);
        command.env("FAILPOINTS", armed);
        let complaint = cluster.refused(command);
        assert!(complaint.contains(wanted), "{complaint}");
    }
}

#[cfg(feature = "failpoints")]
mod rounds {
    //! The rounds: each point, deaths in a row, and disks that say no.

    use crate::harness::{End, Harness, Row, Scenario, VICTIM, armed, pass_of};
    use flotilla_kit::{Fleet, Load, Targets, until};
    use flotilla_storage::FailPoint;
    use rustix::process::Signal;
    use std::fs;
    use std::path::PathBuf;
    use std::time::{Duration, Instant};
    use strum::IntoEnumIterator as _;

    /// Points at which the disk says no, where the round of death leads, too; and what the node
    /// must do.
    const ERRORS: &[(FailPoint, End)] = &[
        (FailPoint::OpenReplayed, End::Refuses),
        (FailPoint::LogBegun, End::Aborts),
        (FailPoint::LogWritten, End::Aborts),
        (FailPoint::LazyLogBegun, End::Aborts),
        (FailPoint::ApplyBegun, End::Aborts),
        (FailPoint::InstallVerified, End::Aborts),
        (FailPoint::InstallCleared, End::Aborts),
        (FailPoint::InstallIngested, End::Aborts),
        (FailPoint::ResumeBegun, End::Refuses),
    ];

    /// A restart that dies while it completes an install begins again the next time, until the
    /// marker is gone.
    fn times_in_a_row(point: FailPoint, scenario: Scenario) -> u64 {
        let is_done = matches!(point, FailPoint::InstallFinished | FailPoint::ResumeEnded);
        if scenario == Scenario::Resuming && !is_done { 3 } else { 1 }
    }

    fn print(rows: &[Row]) {
        println!(
            "| fail point | scenario | the node | at pass | times in a row | ready again after |\n\
             |---|---|---|---|---|---|"
        );
        for Row { point, scenario, end, pass, times, recovered_in } in rows {
            let (scenario, end) =
                (format!("{scenario:?}").to_lowercase(), format!("{end:?}").to_lowercase());
            println!(
                "| {} | {scenario} | {end} | {pass} | {times} | {:.2} s |",
                point.name(),
                recovered_in.as_secs_f64()
            );
        }
    }

    /// The first starts of a cluster, each cut short; what is there then is a node that was
    /// bootstrapped, or one that was not.
    fn found(rows: &mut Vec<Row>) {
        let mut fleet = Fleet::for_crashes(4);
        let deaths = [
            FailPoint::OpenLocked,
            FailPoint::OpenCreated,
            FailPoint::OpenReplayed,
            FailPoint::OpenBound,
            FailPoint::BootstrapBegun,
            FailPoint::BootstrapWritten,
            FailPoint::DirectoryBegun,
            FailPoint::DirectoryWritten,
        ];
        let deaths = deaths
            .map(|point| (point, End::Dies, 1 + u64::from(point == FailPoint::OpenCreated) * 2));
        let errors = [
            (FailPoint::BootstrapBegun, End::Refuses, 1),
            (FailPoint::DirectoryBegun, End::Aborts, 1),
        ];
        for (point, end, times) in deaths.into_iter().chain(errors) {
            let nodes = fleet.all();
            for node in &nodes {
                fs::remove_dir_all(fleet.home(*node).join("data")).unwrap();
            }
            fleet.arm(VICTIM, &armed(point, 0, end));
            nodes.iter().for_each(|node| fleet.spawn(*node));
            let mut pass = 0;
            for life in 1..=times {
                let status = fleet.wait_end(VICTIM, Duration::from_secs(20));
                let status =
                    status.unwrap_or_else(|| panic!("{}: not met in life {life}", point.name()));
                pass = pass_of(&end.check(point, status, &fleet.said_in_last_life(VICTIM)));
                if life == times {
                    fleet.arm(VICTIM, "");
                }
                fleet.spawn(VICTIM);
            }
            let recovered_in = fleet.wait_ready(&[VICTIM]);
            fleet.wait_ready(&nodes);
            fleet.client.put(VICTIM, "bootstrapped", point.name().as_bytes());
            for node in &nodes {
                assert_eq!(
                    fleet.client.get(*node, "/v1/kv/bootstrapped").expect(200).text(),
                    point.name()
                );
            }
            fleet.wait_equal(Duration::from_secs(20));
            fleet.kill(&nodes);
            rows.push(Row { point, scenario: Scenario::Bootstrap, end, pass, times, recovered_in });
        }
    }

    #[test]
    fn a_node_that_dies_anywhere_comes_back_and_nothing_is_lost() {
        let mut rows = Vec::new();
        found(&mut rows);
        let mut harness = Harness::new();
        let client = harness.fleet.client.clone();
        // One journal, one cluster, dozens of deaths: what one round spoils, a later one finds.
        let mut played = Vec::new();
        let registers = harness.registers.clone();
        let load = Load::mixed(3, Duration::from_millis(2), 3);
        registers.under_load(&client, &Targets::new(&[1, 2, 3]), load, || {
            for point in FailPoint::iter() {
                let (scenario, _) = Scenario::of(point);
                if scenario != Scenario::Bootstrap {
                    played.push(harness.round(
                        point,
                        scenario,
                        End::Dies,
                        times_in_a_row(point, scenario),
                    ));
                }
            }
            // A restart that completes an install, and dies on the way.
            for point in
                [FailPoint::InstallCleared, FailPoint::InstallIngested, FailPoint::InstallFinished]
            {
                played.push(harness.round(
                    point,
                    Scenario::Resuming,
                    End::Dies,
                    times_in_a_row(point, Scenario::Resuming),
                ));
            }
            for (point, end) in ERRORS {
                let (scenario, _) = Scenario::of(*point);
                played.push(harness.round(*point, scenario, *end, 1));
            }
            build_fails_once(&mut harness);
        });
        rows.append(&mut played);
        print(&rows);
        let present: Vec<usize> =
            harness.fleet.all().iter().map(|node| registers.check_all(&client, *node)).collect();
        println!("{} keys are there at the end; {:?}", present[0], registers.judge_file().unwrap());
        for point in FailPoint::iter() {
            assert!(
                rows.iter().any(|row| row.point == point && row.end == End::Dies),
                "nobody ever died at {}",
                point.name()
            );
        }
    }

    /// The files of a snapshot are the one thing that may be written again: nobody relies on them
    /// before they are complete, and what was begun is thrown away.
    fn build_fails_once(harness: &mut Harness) {
        harness
            .play(Scenario::Sending, &format!("{}=1*return(error)", FailPoint::BuildBegun.name()));
        until("the failure is told", Duration::from_secs(20), || {
            harness
                .fleet
                .said_in_last_life(VICTIM)
                .contains("could not be built; it will be tried again")
                .then_some(())
        });
        harness.fleet.wait_ready(&[1, 2, 3]);
        harness.registers.at_rest(|| harness.fleet.wait_equal(Duration::from_secs(30)));
        let metric = |name| harness.fleet.client.metric(VICTIM, name).unwrap();
        let (built, failed) =
            (metric("flotilla_snapshots_built_total"), metric("flotilla_snapshots_failed_total"));
        assert!(built >= 1.0 && failed >= 1.0, "{built} built, {failed} failed");
    }

    /// A node that is told to stop while a snapshot is being built, verified or installed ends in
    /// time and in good order: it waits for none of them. An install is completed by the next
    /// start.
    #[test]
    fn a_snapshot_under_way_holds_no_shutdown_up() {
        let mut harness = Harness::new();
        for (point, scenario) in [
            (FailPoint::BuildWritten, Scenario::Sending),
            (FailPoint::StageArrived, Scenario::Receiving),
            (FailPoint::InstallMarked, Scenario::Receiving),
            // It goes on while the node stops, and meets an engine that is being closed.
            (FailPoint::InstallCleared, Scenario::Receiving),
        ] {
            let sleep = if point == FailPoint::InstallCleared { 1_500 } else { 120_000 };
            harness.play(scenario, &format!("{}=sleep({sleep})", point.name()));
            let folder = match point {
                FailPoint::BuildWritten => "data/snapshots/out",
                FailPoint::StageArrived => "data/snapshots/in",
                _ => "data/snapshots/install",
            };
            let folder = harness.fleet.home(VICTIM).join(folder);
            until("a snapshot is under way", Duration::from_secs(30), || {
                let files = fs::read_dir(&folder)
                    .ok()?
                    .flatten()
                    .flat_map(|folder| fs::read_dir(folder.path()).into_iter().flatten());
                (files.count() > 0).then_some(())
            });
            std::thread::sleep(Duration::from_secs(1));
            let begun = Instant::now();
            harness.fleet.signal(VICTIM, Signal::TERM);
            // The grace is ten seconds.
            let status = harness.fleet.wait_end(VICTIM, Duration::from_secs(15));
            let said = harness.fleet.said_in_last_life(VICTIM);
            let status =
                status.unwrap_or_else(|| panic!("{}: it goes on for ever: {said}", point.name()));
            assert!(status.success(), "{}: {status}: {said}", point.name());
            println!("{}: ended after {:?}", point.name(), begun.elapsed());
            println!("ready again after {:?}", harness.come_back());
        }
    }

    /// The files of the snapshots that lie at the victim, to be installed.
    fn staged(fleet: &Fleet) -> Vec<PathBuf> {
        let folders =
            fs::read_dir(fleet.home(VICTIM).join("data/snapshots/install")).unwrap().flatten();
        let files = folders
            .flat_map(|folder| fs::read_dir(folder.path()).unwrap().flatten())
            .map(|file| file.path());
        files.filter(|path| path.extension().is_some_and(|extension| extension == "sst")).collect()
    }

    /// A crash in the middle of an install, and then the disk has spoiled the files that it is to
    /// be completed from: the node says so, each time it is started, and what is left of the shard
    /// is not taken for the shard. With the files as they were it completes it.
    #[test]
    fn an_install_that_can_not_be_completed_is_refused() {
        let mut harness = Harness::new();
        let client = harness.fleet.client.clone();
        let registers = harness.registers.clone();
        let load = Load::mixed(2, Duration::from_millis(2), 4);
        registers.under_load(&client, &Targets::new(&[1, 2]), load, || {
            for step in [FailPoint::InstallMarked, FailPoint::InstallCleared] {
                harness.play(Scenario::Receiving, &armed(step, 0, End::Dies));
                harness.await_end(step, End::Dies);
                harness.fleet.arm(VICTIM, "");
                let files = staged(&harness.fleet);
                let file = files.first().expect("the marker says that there are files");
                let sound = fs::read(file).unwrap();
                let mut flipped = sound.clone();
                flipped[sound.len() / 2] ^= 0x10;
                for (damage, contents) in [
                    ("flipped", Some(&flipped[..])),
                    ("cut", Some(&sound[..sound.len() - 1])),
                    ("gone", None),
                ] {
                    match contents {
                        Some(contents) => fs::write(file, contents).unwrap(),
                        None => fs::remove_file(file).unwrap(),
                    }
                    for _ in 0..2 {
                        harness.fleet.spawn(VICTIM);
                        let status = harness
                            .fleet
                            .wait_end(VICTIM, Duration::from_secs(20))
                            .expect("it starts, with half a shard");
                        let said = harness.fleet.said_in_last_life(VICTIM);
                        let complaints: Vec<&str> =
                            said.lines().filter(|line| line.starts_with("flotilla: ")).collect();
                        assert_eq!(
                            (status.code(), complaints.len()),
                            (Some(1), 1),
                            "{damage}: {said}"
                        );
                        assert!(complaints[0].contains("can't be completed"), "{}", complaints[0]);
                        println!("{}, {damage}: {}", step.name(), complaints[0]);
                    }
                }
                fs::write(file, &sound).unwrap();
                println!("restored, ready again after {:.2?}", harness.come_back());
            }
        });
    }
}
