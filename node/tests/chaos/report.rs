//! What a run comes to: a table for people, JSON for programs.

use super::check::Verdict;
use super::faults::Done;
use super::harness::Plan;
use super::health::Silence;
use super::schedule::KINDS;
use flotilla_kit::{Counts, Outcome};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Everything that is told of a run.
pub(crate) struct Report {
    /// How the cluster was made.
    pub(crate) plan: Plan,
    /// From the first round to the last, healed times included.
    pub(crate) lasted: Duration,
    /// How many rounds there were.
    pub(crate) rounds: u64,
    /// What the faults did.
    pub(crate) done: Done,
    /// What each `flotilla check` found.
    pub(crate) verdicts: Vec<Verdict>,
    /// The requests of the probes: done, refused, unknown, broken.
    pub(crate) probes: [u64; 4],
    /// The longest time without a success while a majority was healthy.
    pub(crate) silence: Silence,
    /// Of each shard.
    pub(crate) silence_per_shard: BTreeMap<u64, Duration>,
    /// Snapshots that were installed.
    pub(crate) snapshots: u64,
    /// From the end of the load until all replicas were equal.
    pub(crate) equal: Duration,
    /// Keys of the probes whose acknowledged values were all there.
    pub(crate) keys: usize,
}

impl Report {
    /// How many requests of the probes had each outcome.
    pub(crate) fn outcomes(counts: &Counts) -> [u64; 4] {
        Outcome::ALL.map(|outcome| counts.all(outcome))
    }

    /// The sum of a figure over all checks; the path leads to it in their JSON.
    fn sum(&self, path: &str) -> u64 {
        self.verdicts
            .iter()
            .map(|verdict| verdict.figures.pointer(path).and_then(Value::as_u64).unwrap_or(0))
            .sum()
    }

    /// For programs.
    pub(crate) fn json(&self) -> Value {
        let seconds = self.lasted.as_secs_f64();
        json!({
            "seed": self.plan.seed,
            "mode": self.plan.mode.name(),
            "nodes": self.plan.nodes,
            "shards": self.plan.shards,
            "lease": self.plan.lease,
            "seconds": seconds,
            "rounds": self.rounds,
            "faults": self.done.kinds,
            "skipped": self.done.skipped,
            "datagrams_lost": self.done.datagrams_lost,
            "disk_refusals": self.done.disk_refusals,
            "disk_deaths": self.done.disk_deaths,
            "turned_away": self.done.turned_away,
            "check": {
                "runs": self.verdicts.len(),
                "ok": self.sum(OK),
                "failed": self.sum(FAILED),
                "unknown": self.sum(UNKNOWN),
                "ok_per_second": self.sum(OK) as f64 / seconds,
            },
            "probes": {
                "ok": self.probes[0],
                "failed": self.probes[1],
                "unknown": self.probes[2],
                "unanswered": self.probes[3],
            },
            "longest_silence_seconds": self.silence.lasted.as_secs_f64(),
            "longest_silence_faults": self.silence.faults,
            "longest_silence_seconds_per_shard": self
                .silence_per_shard
                .iter()
                .map(|(shard, time)| (shard.to_string(), time.as_secs_f64()))
                .collect::<BTreeMap<_, _>>(),
            "slowest_recovery_seconds": self.done.slowest_recovery.as_secs_f64(),
            "snapshots_installed": self.snapshots,
            "equal_after_seconds": self.equal.as_secs_f64(),
            "verdict": "linearizable",
        })
    }

    /// For people, in Markdown.
    pub(crate) fn table(&self) -> String {
        let mut text = String::new();
        let mut row = |what: &str, value: String| {
            writeln!(text, "| {what} | {value} |").expect("a string takes everything")
        };
        let Plan { seed, nodes, shards, mode, lease } = &self.plan;
        let reads = if *lease { "lease" } else { "quorum" };
        row(
            "run",
            format!(
                "seed {seed}, {nodes} nodes, {shards} shards, {} mode, {reads} reads",
                mode.name()
            ),
        );
        row("---", "---".into());
        row("lasted", format!("{:.0} s, {} rounds", self.lasted.as_secs_f64(), self.rounds));
        for kind in KINDS {
            let skipped = self
                .done
                .skipped
                .get(kind)
                .map_or_else(String::new, |n| format!(" ({n} SKIPPED: no small disk)"));
            row(kind, format!("{}{skipped}", self.done.kinds.get(kind).unwrap_or(&0)));
        }
        row("datagrams lost to cuts and loss", self.done.datagrams_lost.to_string());
        row("nodes ended by a full disk", self.done.disk_deaths.to_string());
        row("snapshots installed", self.snapshots.to_string());
        let rate = self.sum(OK) as f64 / self.lasted.as_secs_f64();
        row("operations of the check: ok", format!("{} ({rate:.0} a second)", self.sum(OK)));
        row("operations of the check: failed, and not applied", self.sum(FAILED).to_string());
        row("operations of the check: unknown", self.sum(UNKNOWN).to_string());
        let [done, refused, unknown, broken] = self.probes;
        row(
            "requests of the probes",
            format!("{done} ok, {refused} refused, {unknown} unknown, {broken} without an answer"),
        );
        let Silence { lasted, shard, at, faults } = &self.silence;
        let when = format!("shard {shard}, after {:.0} s: {faults}", at.as_secs_f64());
        row(
            "longest time without a write while a majority was healthy",
            format!("{:.1} s ({when})", lasted.as_secs_f64()),
        );
        row(
            "slowest recovery of all nodes after a fault",
            format!("{:.1} s", self.done.slowest_recovery.as_secs_f64()),
        );
        row("all replicas equal after the load", format!("{:.1} s", self.equal.as_secs_f64()));
        row(
            "verdict",
            format!(
                "linearizable ({} checks), {} probed keys complete",
                self.verdicts.len(),
                self.keys
            ),
        );
        text
    }

    /// Writes both into a folder; what the files are called.
    pub(crate) fn write(&self, folder: &Path) -> [PathBuf; 2] {
        let name = format!("chaos-{}-seed-{}", self.plan.mode.name(), self.plan.seed);
        let [json, table] =
            ["json", "md"].map(|extension| folder.join(format!("{name}.{extension}")));
        std::fs::write(&json, format!("{:#}\n", self.json())).unwrap();
        std::fs::write(&table, self.table()).unwrap();
        [json, table]
    }
}

/// Where the figures stand in what `flotilla check --json` says.
const OK: &str = "/ok";
/// Those that were refused and certainly not applied.
const FAILED: &str = "/failed";
/// Those whose outcome nobody knows.
const UNKNOWN: &str = "/unknown";
