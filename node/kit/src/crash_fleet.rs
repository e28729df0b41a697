//! Three nodes that are made to die, and started again.
//!
//! The cluster is made by `flotilla dev`, once; from then on a [`Fleet`] starts each node by itself, as a person would after a crash, and
//! knows how each one ended. It runs a copy of the binary that it made at its beginning, so that a build in between does not put
//! another one in its place. Nodes must be started by the thread that made the fleet, and it must live as long: they end with it.

use crate::http::Client;
use crate::{Cluster, PATIENCE, flotilla, until, wait};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// The least that the configuration takes; logs are cut in pieces of a quarter of a mebibyte.
const LOG_BYTES: i64 = 64 << 10;
/// How much has to be written to a shard so that its log is cut behind whoever is away.
pub const CUT_BYTES: usize = 700 << 10;

/// The name of the journal; kept when the test fails.
const JOURNAL: &str = "journal";

/// Three nodes.
pub struct Fleet {
    /// The cluster's folder, ports and client; none of its processes.
    pub cluster: Cluster,
    running: BTreeMap<u64, Child>,
    /// How long each node's log was when it was started last.
    lives: BTreeMap<u64, usize>,
    /// What is in the environment of each node's next start.
    armed: BTreeMap<u64, String>,
    binary: PathBuf,
    /// Outside of the cluster's folder: the binary, and what a test wants to keep.
    kept: tempfile::TempDir,
}

impl Fleet {
    /// A new cluster of three nodes that serve. Logs and memtables are small, so that snapshots and compactions happen; elections are
    /// quick, so that many crashes fit into a minute.
    pub fn new(shards: u64) -> Self {
        let mut fleet = Self::prepare(shards);
        let nodes = fleet.cluster.all();
        nodes.iter().for_each(|node| fleet.start(*node));
        fleet.wait_ready(&nodes);
        fleet
    }

    /// The same, with nothing running yet; the nodes were founded and stopped.
    pub fn prepare(shards: u64) -> Self {
        let kept = tempfile::Builder::new().prefix("flotilla-kept-").tempdir().unwrap();
        let binary = kept.path().join("flotilla");
        std::fs::copy(flotilla().get_program(), &binary).unwrap();
        let mut cluster = Cluster::new(3, shards);
        cluster.stop_dev(Signal::INT);
        cluster.edit_config(|config| {
            let mut set = |table: &str, name: &str, value: i64| {
                config[table].as_table_mut().unwrap().insert(name.into(), value.into());
            };
            set("log", "bytes_per_shard_max", LOG_BYTES);
            set("raft", "tick_ms", 25);
            set("storage", "log_memtable_bytes", 1 << 20);
            set("storage", "data_memtable_bytes", 1 << 20);
            set("storage", "wal_bytes_max", 4 << 20);
            // So slow that a snapshot takes a while, which is when nodes are to be killed.
            set("transport", "snapshot_bytes_per_second", 4 << 20);
        });
        let (running, lives, armed) = Default::default();
        Self { cluster, running, lives, armed, binary, kept }
    }

    /// Where the journal is to be: outside of the cluster's folder.
    pub fn journal(&self) -> PathBuf {
        self.kept.path().join(JOURNAL)
    }

    /// A folder that no node knows of.
    pub fn kept(&self) -> &Path {
        self.kept.path()
    }

    /// A client of the nodes.
    pub fn client(&self) -> &Client {
        &self.cluster.client
    }

    /// What the next starts of a node find in `FAILPOINTS`; nothing, where it is empty.
    pub fn arm(&mut self, node: u64, failpoints: &str) {
        self.armed.insert(node, failpoints.to_owned());
    }

    /// `flotilla start`; does not wait.
    pub fn start(&mut self, node: u64) {
        self.start_by(node, &[]);
    }

    /// The same, with something in front of the command.
    pub fn start_by(&mut self, node: u64, launcher: &[&str]) {
        let template = self.cluster.start_command(node);
        let mut command = match launcher {
            [] => Command::new(&self.binary),
            [program, arguments @ ..] => {
                let mut command = Command::new(program);
                command.args(arguments).arg(&self.binary);
                command
            }
        };
        self.lives.insert(node, self.said_bytes(node));
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log_path(node)).unwrap();
        command.args(template.get_args()).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        command.env_remove("FLOTILLA_LOG").env_remove("FAILPOINTS");
        if let Some(armed) = self.armed.get(&node).filter(|armed| !armed.is_empty()) {
            command.env("FAILPOINTS", armed);
        }
        let before = self.running.insert(node, command.spawn().unwrap());
        assert!(before.is_none(), "node {node} runs already");
    }

    /// Where a node's words go.
    pub fn log_path(&self, node: u64) -> PathBuf {
        self.cluster.home(node).join("flotilla.log")
    }

    /// What a node has said since its log was that long.
    pub fn said_since(&self, node: u64, bytes: usize) -> String {
        let log = std::fs::read(self.log_path(node)).unwrap_or_default();
        String::from_utf8_lossy(&log[bytes.min(log.len())..]).into_owned()
    }

    /// What a node has said since it was started last.
    pub fn said_in_last_life(&self, node: u64) -> String {
        self.said_since(node, self.lives.get(&node).copied().unwrap_or(0))
    }

    /// How long a node's log is.
    fn said_bytes(&self, node: u64) -> usize {
        std::fs::metadata(self.log_path(node)).map_or(0, |metadata| metadata.len() as usize)
    }

    /// Waits until these nodes are ready, in this order; how long it took for all of them.
    pub fn wait_ready(&mut self, nodes: &[u64]) -> Duration {
        let begun = Instant::now();
        for node in nodes {
            until(&format!("node {node} is ready"), PATIENCE, || {
                let ended = self.ended(*node);
                assert!(ended.is_none(), "node {node} ended with {}:\n{}", ended.unwrap(), self.cluster.log_tail(*node, 5));
                self.is_ready(*node).then_some(())
            });
        }
        begun.elapsed()
    }

    /// Whether a node says that it is ready.
    pub fn is_ready(&self, node: u64) -> bool {
        self.client().send(node, "GET", "/readyz", &[], None).is_ok_and(|answer| answer.status == 200)
    }

    /// `kill -9` to all of these at once, and waits until they are gone.
    pub fn kill(&mut self, nodes: &[u64]) {
        for node in nodes {
            self.signal(*node, Signal::KILL);
        }
        for node in nodes {
            let mut child = self.running.remove(node).expect("a node that runs");
            let status = wait(&mut child, "a killed node is gone", Duration::from_secs(10));
            assert_eq!(status.signal(), Some(9), "node {node} ended by itself: {}", self.cluster.log_tail(*node, 5));
        }
    }

    /// Sends a signal.
    pub fn signal(&self, node: u64, signal: Signal) {
        let pid = Pid::from_raw(self.running[&node].id() as i32).expect("a process id is not 0");
        kill_process(pid, signal).unwrap();
    }

    /// SIGTERM, and waits for a good end.
    pub fn stop(&mut self, node: u64) {
        self.signal(node, Signal::TERM);
        let mut child = self.running.remove(&node).expect("a node that runs");
        let status = wait(&mut child, "a stopped node is gone", PATIENCE);
        assert!(status.success(), "node {node} ended with {status}: {}", self.cluster.log_tail(node, 5));
    }

    /// Whether a node was started and has not ended.
    pub fn is_running(&mut self, node: u64) -> bool {
        self.running.get_mut(&node).is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    /// How a node ended, if it did; it can then be started again.
    pub fn ended(&mut self, node: u64) -> Option<ExitStatus> {
        let status = self.running.get_mut(&node).expect("a node that was started").try_wait().unwrap();
        if status.is_some() {
            self.running.remove(&node);
        }
        status
    }

    /// Waits for a node's end.
    pub fn wait_end(&mut self, node: u64, patience: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + patience;
        loop {
            match self.ended(node) {
                None if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
                ended => return ended,
            }
        }
    }

    /// The last index of every shard but the meta shard, as a node has it.
    pub fn last_indexes(&self, via: u64) -> BTreeMap<u64, u64> {
        self.indexes(via, "last").unwrap_or_else(|| panic!("node {via} does not list its shards"))
    }

    fn indexes(&self, via: u64, name: &str) -> Option<BTreeMap<u64, u64>> {
        let answer = self.client().send(via, "GET", "/v1/admin/shards", &[], None).ok().filter(|answer| answer.status == 200)?;
        let list = answer.json();
        let shards = list["shards"].as_array()?.iter().filter(|shard| shard["id"] != 1);
        shards.map(|shard| Some((shard["id"].as_u64()?, shard[name].as_u64()?))).collect()
    }

    /// Whether some, or all, of these shards have cut their logs beyond what a node had, on every one of these nodes: it can catch up
    /// with them by a snapshot only.
    pub fn is_behind(&self, shards: &[u64], nodes: &[u64], had: &BTreeMap<u64, u64>, all: bool) -> bool {
        let cut = |shard: &u64| {
            nodes.iter().all(|node| {
                self.indexes(*node, "log_first")
                    .is_some_and(|first| first.get(shard).is_some_and(|first| *first > had[shard] + 1))
            })
        };
        if all { shards.iter().all(cut) } else { shards.iter().any(cut) }
    }

    /// Asks for a shard to be led by a node, until it is.
    pub fn hand_over(&self, shard: u64, node: u64) {
        let body = format!("{{\"node\":{node}}}");
        until(&format!("node {node} leads shard {shard}"), Duration::from_secs(20), || {
            let asked = self.client().send(
                node,
                "POST",
                &format!("/v1/admin/shards/{shard}/leader"),
                &[("content-type", "application/json")],
                Some(body.as_bytes()),
            );
            drop(asked);
            (self.cluster.leaders(node).get(&shard) == Some(&Some(node))).then_some(())
        });
    }

    /// How many snapshots a node has built, or failed to build, in this life; none where it does not answer.
    pub fn snapshots_begun(&self, node: u64) -> f64 {
        let answer = self.client().send(node, "GET", "/metrics", &[], None);
        let text = answer.map(|answer| answer.text()).unwrap_or_default();
        let of = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok()).unwrap_or(0.0);
        of("flotilla_snapshots_built_total ") + of("flotilla_snapshots_failed_total ")
    }

    /// Waits until all replicas are equal by hash; `false` where that node ended meanwhile, or set a shard aside. Two that differ at the same
    /// index are a failure.
    pub fn wait_equal_or_end(&mut self, node: u64, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        for shard in self.cluster.shard_ids(1) {
            let path = format!("/v1/admin/shards/{shard}?hash=1");
            loop {
                if !self.is_running(node) || self.said_in_last_life(node).contains("shard set aside") {
                    return false;
                }
                let of = |node: u64| -> Option<(u64, String)> {
                    let answer = self.client().send(node, "GET", &path, &[], None).ok().filter(|answer| answer.status == 200)?;
                    let local = answer.json()["local"].clone();
                    Some((local["applied"].as_u64()?, local["hash"].as_str()?.to_owned()))
                };
                if let Some(seen) = self.cluster.all().into_iter().map(of).collect::<Option<Vec<_>>>()
                    && seen.iter().all(|one| one.0 == seen[0].0)
                {
                    assert!(seen.iter().all(|one| *one == seen[0]), "shard {shard}: replicas differ at the same index: {seen:?}");
                    break;
                }
                assert!(Instant::now() < deadline, "shard {shard}: replicas are not equal after {patience:?}");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        true
    }

    /// No node may have panicked.
    pub fn assert_no_panic(&self) {
        for node in self.cluster.all() {
            assert!(!self.said_since(node, 0).contains("panicked"), "node {node} panicked");
        }
    }

    /// No node may have panicked, nor complained of anything at which a person must look.
    pub fn assert_calm(&self) {
        for node in self.cluster.all() {
            let said = self.said_since(node, 0);
            let bad: Vec<&str> =
                said.lines().filter(|line| line.contains("panicked") || line.contains(" ERROR ")).take(5).collect();
            assert!(bad.is_empty(), "node {node} says: {bad:#?}");
        }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for child in self.running.values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let journal = self.kept.path().join(JOURNAL);
        if std::thread::panicking() && journal.exists() {
            let kept = std::env::temp_dir().join(self.kept.path().file_name().unwrap_or_default()).with_extension("journal");
            match std::fs::copy(&journal, &kept) {
                Ok(_) => eprintln!("the journal is kept as {}", kept.display()),
                Err(error) => eprintln!("the journal could not be kept: {error}"),
            }
        }
    }
}
