//! A cluster of real processes on this machine, on ports of its own, in a folder of its own.
//!
//! `flotilla dev` makes it. It may go on under `dev`, as most people run it ([`Fleet::new`]), or be
//! stopped, so that each node is started by itself with `flotilla start`, as a person would after a
//! crash ([`Fleet::bootstrapped`]). What is done with single nodes is told in `nodes`, what they
//! show of themselves in `admin`.
//!
//! All runs on a copy of the binary, so that a build in between does not put another one in its
//! place. Nodes end with the thread that started them. After a failure the folder stays, with logs,
//! data and journals, and the last lines say where it is.

use super::dev::Dev;
use super::http::Client;
use super::process::{binary, command, free_ports};
use rustix::process::Signal;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What the name of a fleet's folder begins with; the process id follows.
pub(crate) const FOLDER_PREFIX: &str = "flotilla-test-";

/// How much has to be written to a shard of a cluster [for crashes](Fleet::for_crashes) so that its
/// log is cut behind whoever is away.
pub const CUT_BYTES: usize = 700 << 10;

static TURN: Mutex<()> = Mutex::new(());

/// A cluster, its processes, and their folder.
pub struct Fleet {
    /// Asks its nodes.
    pub client: Client,
    /// The folder that holds a folder for each node.
    pub folder: PathBuf,
    /// How many nodes there are.
    pub nodes: u64,
    /// What stands in front of the command that starts a node, such as what brings it into a
    /// network of its own.
    pub launchers: BTreeMap<u64, Vec<OsString>>,
    /// Nodes that may end by themselves, because of what is done to them.
    pub may_end: BTreeSet<u64>,
    pub(crate) shards: u64,
    pub(crate) dev: Option<Dev>,
    http: u16,
    /// The nodes that were started by themselves and are not known to have ended.
    pub(crate) running: BTreeMap<u64, Child>,
    /// How those ended that did, and were not started since.
    pub(crate) ended: BTreeMap<u64, ExitStatus>,
    /// How long each node's log was when it was started last.
    pub(crate) lives: BTreeMap<u64, usize>,
    /// What the next starts of a node find in `FAILPOINTS`.
    pub(crate) armed: BTreeMap<u64, String>,
    /// Removed last.
    scratch: Scratch,
    _turn: MutexGuard<'static, ()>,
}

/// The folder of a test, which stays when the test fails.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("logs, data and journals are kept in {}", self.0.display());
        } else {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

/// Sets a key of a configuration; the table must be there.
pub fn set(config: &mut toml::Table, table: &str, key: &str, value: impl Into<toml::Value>) {
    config[table].as_table_mut().unwrap().insert(key.into(), value.into());
}

impl Fleet {
    /// A new cluster under `flotilla dev` that is ready.
    pub fn new(nodes: u64, shards: u64) -> Self {
        let mut fleet = Self::prepare(nodes, shards, None);
        fleet.start_dev();
        fleet
    }

    /// The same, with every node's configuration changed by hand after its folder was made.
    pub fn with_config(nodes: u64, shards: u64, edit: impl Fn(&mut toml::Table)) -> Self {
        let mut fleet = Self::bootstrapped(nodes, shards, edit);
        fleet.start_dev();
        fleet
    }

    /// A cluster that was made and stopped, and whose configuration was then changed by hand.
    pub fn bootstrapped(nodes: u64, shards: u64, edit: impl Fn(&mut toml::Table)) -> Self {
        let mut fleet = Self::new(nodes, shards);
        fleet.stop_dev(Signal::INT);
        fleet.edit_config(edit);
        fleet
    }

    /// Three nodes that were bootstrapped and stopped. Logs and memtables are small, so that
    /// snapshots and compactions happen; elections are quick, so that many crashes fit into a
    /// minute.
    pub fn for_crashes(shards: u64) -> Self {
        Self::bootstrapped(3, shards, |config| {
            // The least that it takes; logs are cut in pieces of a quarter of a mebibyte.
            set(config, "log", "bytes_per_shard_max", 64 << 10);
            set(config, "raft", "tick_ms", 25);
            set(config, "storage", "log_memtable_bytes", 1 << 20);
            set(config, "storage", "data_memtable_bytes", 1 << 20);
            set(config, "storage", "wal_bytes_max", 4 << 20);
            // So slow that a snapshot takes a while, which is when nodes are to be killed.
            set(config, "transport", "snapshot_bytes_per_second", 4 << 20);
        })
    }

    /// Nothing runs yet. The nodes' folders are to be in `folder`, or in one that goes with the
    /// test.
    pub fn prepare(nodes: u64, shards: u64, folder: Option<&Path>) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let prefix = format!("{FOLDER_PREFIX}{}-", std::process::id());
        let scratch = Scratch(tempfile::Builder::new().prefix(&prefix).tempdir().unwrap().keep());
        let folder = folder.map_or_else(|| scratch.0.join("nodes"), Path::to_owned);
        let copy = scratch.0.join("flotilla");
        // A link is enough: who builds makes a new file.
        fs::hard_link(binary(), &copy).or_else(|_| fs::copy(binary(), &copy).map(drop)).unwrap();
        let http = free_ports(nodes as u16);
        let serving: Vec<_> =
            (http..).map(|port| ([127, 0, 0, 1], port).into()).take(nodes as usize).collect();
        Self {
            client: Client::new(serving, Duration::from_secs(10)),
            folder,
            nodes,
            launchers: BTreeMap::new(),
            may_end: BTreeSet::new(),
            shards,
            dev: None,
            http,
            running: BTreeMap::new(),
            ended: BTreeMap::new(),
            lives: BTreeMap::new(),
            armed: BTreeMap::new(),
            scratch,
            _turn: turn,
        }
    }

    /// A folder that no node knows of.
    pub fn scratch(&self) -> &Path {
        &self.scratch.0
    }

    /// A node's folder.
    pub fn home(&self, node: u64) -> PathBuf {
        self.folder.join(format!("n{node}"))
    }

    /// A node's HTTP port.
    pub fn http(&self, node: u64) -> u16 {
        self.http + node as u16 - 1
    }

    /// All nodes.
    pub fn all(&self) -> Vec<u64> {
        (1..=self.nodes).collect()
    }

    /// All nodes but one.
    pub fn others(&self, node: u64) -> Vec<u64> {
        (1..=self.nodes).filter(|n| *n != node).collect()
    }

    /// Changes the configuration of every node by hand.
    pub fn edit_config(&self, edit: impl Fn(&mut toml::Table)) {
        for node in self.all() {
            let path = self.home(node).join("flotilla.toml");
            let mut table: toml::Table = fs::read_to_string(&path).unwrap().parse().unwrap();
            edit(&mut table);
            fs::write(&path, table.to_string()).unwrap();
        }
    }

    /// The binary.
    pub(crate) fn flotilla(&self) -> Command {
        command(self.scratch.0.join("flotilla"))
    }

    /// The command that starts one node.
    pub fn start_command(&self, node: u64) -> Command {
        let mut start = self.flotilla();
        if let Some([program, args @ ..]) = self.launchers.get(&node).map(Vec::as_slice) {
            let target = start.get_program().to_owned();
            start = command(program);
            start.args(args).arg(target);
        }
        if let Some(armed) = self.armed.get(&node) {
            start.env("FAILPOINTS", armed);
        }
        // A test that is killed can't end what it started.
        start
            .args(["start", "--with-parent", "--config"])
            .arg(self.home(node).join("flotilla.toml"));
        start
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for node in self.all() {
                eprintln!("--- the end of the log of node {node}\n{}", self.log_tail(node, 15));
            }
        }
        self.end();
    }
}
