//! How a node is brought to each fail point, and what is asked of it afterwards.
//!
//! A [`Scenario`] is a situation in which a point is passed. [`Harness::round`] arms a point on one
//! node, plays the scenario until the node has ended there, starts it again without, and checks:
//! ready, the journal right, the replicas equal by hash. All happens under load.

use flotilla_kit::{CUT_BYTES, Fleet, Registers, Rng, until};
use flotilla_storage::FailPoint;
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a node may take to come to the point.
const PATIENCE: Duration = Duration::from_secs(40);
/// How often it is tried to have a node asked for a snapshot.
const SENDINGS: usize = 3;
/// The node that dies.
pub(crate) const VICTIM: u64 = 3;
/// The one that needs a snapshot of it.
const FOLLOWER: u64 = 2;

/// What leads to a fail point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scenario {
    /// The very first start of a cluster.
    Bootstrap,
    /// Any start.
    Starting,
    /// Load.
    Serving,
    /// It leads a shard with a follower that needs a snapshot.
    Sending,
    /// It needs a snapshot itself.
    Receiving,
    /// It starts after it died while it installed a snapshot.
    Resuming,
    /// It is told to stop.
    Stopping,
}

impl Scenario {
    /// The scenario of a point, and how often the point is passed before the node ends there.
    pub(crate) fn of(point: FailPoint) -> (Self, u64) {
        use FailPoint::*;
        match point {
            OpenCreated | BootstrapBegun | BootstrapWritten | DirectoryBegun | DirectoryWritten => {
                (Self::Bootstrap, 0)
            }
            OpenLocked | OpenReplayed | OpenBound => (Self::Starting, 0),
            LogBegun | LogWritten | ApplyBegun | ApplyWritten => (Self::Serving, 50),
            LazyLogBegun | LazyLogWritten => (Self::Serving, 1),
            BuildBegun | BuildWritten | SendBegun | SendEnded => (Self::Sending, 0),
            StageBegun | StageArrived | StageVerified | InstallVerified | InstallMarked
            | InstallCleared | InstallIngested | InstallFinished | InstallTidied | InstallNoted => {
                (Self::Receiving, 0)
            }
            ResumeBegun | ResumeEnded => (Self::Resuming, 0),
            CloseBegun | CloseEnded => (Self::Stopping, 0),
        }
    }
}

/// How a node is to end at its point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// On the spot, as by a crash.
    Dies,
    /// Its disk says no, and it aborts.
    Aborts,
    /// Its disk says no, and it does not start.
    Refuses,
}

impl End {
    /// The action of the fail point.
    fn action(self) -> &'static str {
        if self == Self::Dies { "return" } else { "return(error)" }
    }

    /// Checks that a node ended so, and takes the line that says it.
    pub(crate) fn check(self, point: FailPoint, status: ExitStatus, said: &str) -> String {
        let name = point.name();
        let lines =
            |what: &str| -> Vec<&str> { said.lines().filter(|line| line.contains(what)).collect() };
        let words = match self {
            Self::Dies => lines(&format!("fail point {name}, pass ")),
            Self::Aborts => lines("the process ends"),
            Self::Refuses => lines("flotilla: "),
        };
        assert_eq!(words.len(), 1, "{name}: one line is to say it ({status}): {said}");
        let (signal, code) = if self == Self::Refuses { (None, Some(1)) } else { (Some(6), None) };
        assert_eq!((status.signal(), status.code()), (signal, code), "{name}: {status}: {said}");
        if self != Self::Dies {
            assert_eq!(
                lines("injected").len(),
                1,
                "{name}: a write that failed was tried again, or nobody says so: {said}"
            );
            assert!(words[0].contains("injected"), "{name}: {}", words[0]);
        }
        assert!(!said.contains("panicked"), "{name}: {said}");
        words[0].to_owned()
    }
}

/// One row of the table.
pub(crate) struct Row {
    /// Where the node ended.
    pub(crate) point: FailPoint,
    /// What led there.
    pub(crate) scenario: Scenario,
    /// How it ended.
    pub(crate) end: End,
    /// The last time, at which pass of that life.
    pub(crate) pass: u64,
    /// How often in a row.
    pub(crate) times: u64,
    /// How long it took to be ready again afterwards.
    pub(crate) recovered_in: Duration,
}

/// The pass at which a node ended, by its own words.
pub(crate) fn pass_of(words: &str) -> u64 {
    let digits: String = words
        .split("pass ")
        .nth(1)
        .unwrap_or_default()
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    digits.parse().unwrap_or_else(|_| panic!("no pass in {words:?}"))
}

/// A cluster, its journal, and the rounds so far.
pub(crate) struct Harness {
    /// The nodes.
    pub(crate) fleet: Fleet,
    /// What was acknowledged.
    pub(crate) registers: Arc<Registers>,
    rng: Rng,
    /// Taken by turns: a snapshot that was just sent is kept for a while, and the log behind it.
    shards: Vec<u64>,
}

/// What arms a point such that the node ends at the pass after so many.
pub(crate) fn armed(point: FailPoint, passes: u64, end: End) -> String {
    let off = if passes > 0 { format!("{passes}*off->") } else { String::new() };
    format!("{}={off}{}", point.name(), end.action())
}

impl Harness {
    /// A new cluster under a new journal.
    pub(crate) fn new() -> Self {
        let mut fleet = Fleet::for_crashes(8);
        fleet.start_all(&fleet.all());
        let registers = Arc::new(Registers::journaled(&fleet, 20, 4));
        let shards = fleet.last_indexes(1).into_keys().collect();
        Self { fleet, registers, rng: Rng::new(3), shards }
    }

    /// A node ends at a point so many times in a row, and comes back.
    pub(crate) fn round(
        &mut self,
        point: FailPoint,
        scenario: Scenario,
        end: End,
        times: u64,
    ) -> Row {
        let passes = if Scenario::of(point).0 == scenario { Scenario::of(point).1 } else { 0 };
        self.play(scenario, &armed(point, passes, end));
        let mut words = self.await_end(point, end);
        for _ in 1..times {
            self.fleet.spawn(VICTIM);
            words = self.await_end(point, end);
        }
        let recovered_in = self.come_back();
        Row { point, scenario, end, pass: pass_of(&words), times, recovered_in }
    }

    /// Starts the node without anything armed, and checks that all is well. How long it took to be
    /// ready.
    pub(crate) fn come_back(&mut self) -> Duration {
        self.fleet.arm(VICTIM, "");
        let recovered_in = self.fleet.start(VICTIM);
        let nodes = self.fleet.all();
        self.fleet.wait_ready(&nodes);
        let client = self.fleet.client.clone();
        self.registers.check_some(&client, &nodes, &mut self.rng, 20);
        self.registers.at_rest(|| self.fleet.wait_equal(Duration::from_secs(30)));
        recovered_in
    }

    /// Leads to the point, which is armed with `armed`; the node has ended there, or is about to.
    pub(crate) fn play(&mut self, scenario: Scenario, armed: &str) {
        let client = self.fleet.client.clone();
        match scenario {
            Scenario::Bootstrap => unreachable!("a cluster is made once; that is another test's"),
            Scenario::Starting | Scenario::Serving | Scenario::Stopping => {
                self.fleet.kill(&[VICTIM]);
                self.fleet.arm(VICTIM, armed);
                self.fleet.spawn(VICTIM);
                if scenario == Scenario::Serving {
                    // Truncations are written when logs grow, and unsynced when nothing else is to
                    // be written with them.
                    until(&format!("the node comes to {armed}"), PATIENCE, || {
                        let shard = self.next_shard();
                        self.registers.fill(&client, &[1, 2], &[shard], 256 << 10, &mut self.rng);
                        self.fleet.ended(VICTIM)
                    });
                }
                if scenario == Scenario::Stopping {
                    self.fleet.wait_ready(&[VICTIM]);
                    self.fleet.signal(VICTIM, Signal::TERM);
                }
            }
            Scenario::Sending => {
                // Leadership may move on at any moment, by the balance or by an election; then
                // another node is asked for the snapshot.
                let asked = (0..SENDINGS).any(|_| self.lead_who_needs_a_snapshot(armed));
                assert!(asked, "{armed}: nobody asked the node for a snapshot, {SENDINGS} times");
            }
            Scenario::Receiving => {
                self.fall_behind();
                self.fleet.arm(VICTIM, armed);
                self.fleet.spawn(VICTIM);
            }
            Scenario::Resuming => {
                self.fall_behind();
                self.fleet.arm(VICTIM, &format!("{}=return", FailPoint::InstallMarked.name()));
                self.fleet.spawn(VICTIM);
                self.await_end(FailPoint::InstallMarked, End::Dies);
                self.fleet.arm(VICTIM, armed);
                self.fleet.spawn(VICTIM);
            }
        }
    }

    /// Has the victim, where that is armed, lead shards of which the follower needs a snapshot;
    /// whether it came to build one, or to its end.
    fn lead_who_needs_a_snapshot(&mut self, armed: &str) -> bool {
        let client = self.fleet.client.clone();
        let shard = self.next_shard();
        if self.fleet.is_running(VICTIM) {
            self.fleet.kill(&[VICTIM]);
        }
        self.fleet.arm(VICTIM, armed);
        self.fleet.spawn(VICTIM);
        self.fleet.wait_ready(&[VICTIM]);
        self.fleet.hand_over(shard, VICTIM);
        let had = self.fleet.last_indexes(FOLLOWER);
        self.fleet.kill(&[FOLLOWER]);
        let leaders = self.fleet.leaders(VICTIM);
        let led: Vec<u64> =
            self.shards.iter().copied().filter(|s| leaders[s] == Some(VICTIM)).take(3).collect();
        self.registers.fill(&client, &[1, VICTIM], &led, CUT_BYTES, &mut self.rng);
        self.await_behind(&led, &[VICTIM], &had);
        self.fleet.spawn(FOLLOWER);
        let deadline = Instant::now() + PATIENCE / 2;
        while Instant::now() < deadline {
            let files = self.fleet.home(VICTIM).join("data/snapshots/out");
            let builds = std::fs::read_dir(files).is_ok_and(|mut folders| folders.next().is_some());
            if !self.fleet.is_running(VICTIM) || builds || self.snapshots_begun() > 0.0 {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.fleet.wait_ready(&[FOLLOWER]);
        false
    }

    /// Waits until the node has ended at that point in that way; the line that says so.
    pub(crate) fn await_end(&mut self, point: FailPoint, end: End) -> String {
        let ended = self.fleet.wait_end(VICTIM, PATIENCE);
        let status = ended.unwrap_or_else(|| panic!("the node never came to {}", point.name()));
        end.check(point, status, &self.fleet.said_in_last_life(VICTIM))
    }

    /// Kills the node, and has the others write until they can help it by a snapshot only.
    fn fall_behind(&mut self) {
        let shard = self.next_shard();
        let (client, others) = (self.fleet.client.clone(), self.fleet.others(VICTIM));
        let had = self.fleet.last_indexes(VICTIM);
        self.fleet.kill(&[VICTIM]);
        self.registers.fill(&client, &others, &[shard], CUT_BYTES, &mut self.rng);
        self.await_behind(&[shard], &others, &had);
    }

    fn await_behind(&mut self, shards: &[u64], nodes: &[u64], had: &BTreeMap<u64, u64>) {
        let client = self.fleet.client.clone();
        until(&format!("the logs of shards {shards:?} are cut"), PATIENCE, || {
            let are_cut = self.fleet.cut_beyond(shards, nodes, had) == shards;
            if !are_cut {
                self.registers.fill(&client, nodes, shards, 64 << 10, &mut self.rng);
            }
            are_cut.then_some(())
        });
    }

    /// How many snapshots the node has built, or failed to build, in this life; none where it does
    /// not answer.
    fn snapshots_begun(&self) -> f64 {
        let of = |name| self.fleet.client.metric(VICTIM, name).unwrap_or(0.0);
        of("flotilla_snapshots_built_total") + of("flotilla_snapshots_failed_total")
    }

    fn next_shard(&mut self) -> u64 {
        self.shards.rotate_left(1);
        self.shards[0]
    }
}
