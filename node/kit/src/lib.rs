//! Real processes: a dev cluster in a folder of its own, on ports of its own, that never outlives its test.
//!
//! [`Cluster`] runs `flotilla dev`, and single nodes with `flotilla start` as a person would after a `kill -9`. Every process is
//! ended by its id when the cluster is dropped, a panic included; what the nodes said last is then printed. Tests of one binary
//! take turns, because they measure pauses and the machine may be small.

#![cfg(feature = "shell")]

pub mod crash_fleet;
pub mod crash_journal;
pub mod crash_load;
pub mod http;
pub mod load;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::Client;
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{BufRead as _, BufReader};
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long anything may take that has to happen at all.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The nodes of a cluster of three.
pub const THREE: std::ops::RangeInclusive<u64> = 1..=3;

static TURN: Mutex<()> = Mutex::new(());

/// The binary under test. Cargo tells integration tests where it is; without cargo, it lies above them.
pub fn flotilla() -> Command {
    let beside = || std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("flotilla");
    let binary = std::env::var_os("CARGO_BIN_EXE_flotilla").map_or_else(beside, PathBuf::from);
    let mut command = Command::new(binary);
    command.stdin(Stdio::null()).env_remove("FLOTILLA_LOG");
    command
}

/// Asks again and again until there is an answer, and panics when there is none in time.
pub fn until<T>(what: &str, patience: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "{what}: not within {patience:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A port from which `nodes` TCP ports, and as many UDP ports 100 above, are free.
///
/// Below the range from which the kernel takes ports for connections, so that none of those gets in the way.
pub fn free_ports(nodes: u16) -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    for _ in 0..200 {
        let step = u32::from(NEXT.fetch_add(1, Ordering::Relaxed));
        let base = 20_000 + ((std::process::id() * 97 + step * 307) % 12_000) as u16;
        let free =
            |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok() && UdpSocket::bind(("127.0.0.1", port + 100)).is_ok();
        if (base..base + nodes).all(free) {
            return base;
        }
    }
    panic!("no free ports between 20000 and 32000");
}

/// A cluster on this machine.
pub struct Cluster {
    /// Asks its nodes.
    pub client: Client,
    /// The folder that `flotilla dev` keeps everything in.
    pub folder: PathBuf,
    /// How many nodes there are.
    pub nodes: u64,
    shards: u64,
    http: u16,
    dev: Option<Dev>,
    /// Nodes that the test started by itself.
    alone: BTreeMap<u64, Child>,
    /// What stands in front of the command that starts a node, such as what brings it into a network of its own.
    pub launchers: BTreeMap<u64, Vec<OsString>>,
    /// Removed last.
    _temp: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

/// A running `flotilla dev`.
struct Dev {
    child: Child,
    lines: Receiver<String>,
    /// What it has said so far.
    said: Vec<String>,
}

impl Cluster {
    /// A new cluster that is ready.
    pub fn new(nodes: u64, shards: u64) -> Self {
        let mut cluster = Self::prepare(nodes, shards, None);
        cluster.start_dev();
        cluster
    }

    /// A new cluster whose configuration was changed by hand after its folder was made, on every node.
    pub fn with_config(nodes: u64, shards: u64, edit: impl Fn(&mut toml::Table)) -> Self {
        let mut cluster = Self::new(nodes, shards);
        cluster.stop_dev(Signal::INT);
        cluster.edit_config(edit);
        cluster.start_dev();
        cluster
    }

    /// Nothing runs yet. The data go into `folder`, or into a temporary one.
    pub fn prepare(nodes: u64, shards: u64, folder: Option<&Path>) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let temp = tempfile::Builder::new().prefix("flotilla-test-").tempdir().unwrap();
        let folder = folder.map_or_else(|| temp.path().join("dev"), Path::to_owned);
        let http = free_ports(nodes as u16);
        let client = Client::new(http, Duration::from_secs(10));
        let (alone, launchers) = Default::default();
        Self { client, folder, nodes, shards, http, dev: None, alone, launchers, _temp: temp, _turn: turn }
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

    /// The command that runs the cluster.
    pub fn dev_command(&self) -> Command {
        let mut command = flotilla();
        command.arg("dev").args(["--nodes", &self.nodes.to_string(), "--shards", &self.shards.to_string()]);
        command.arg("--data").arg(&self.folder).args(["--http", &format!("127.0.0.1:{}", self.http)]);
        command
    }

    /// Starts `flotilla dev`, and waits until it says `ready` on a line of its own. How long that took.
    pub fn start_dev(&mut self) -> Duration {
        let begun = Instant::now();
        let mut child = self.dev_command().stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = channel();
        let both = sender.clone();
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).for_each(|line| drop(sender.send(line))));
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).for_each(|line| drop(both.send(format!("! {line}")))));
        self.dev = Some(Dev { child, lines, said: Vec::new() });
        self.dev_says("ready", PATIENCE);
        begun.elapsed()
    }

    /// Waits until `flotilla dev` prints this line, and shows all that it has said.
    pub fn dev_says(&mut self, wanted: &str, patience: Duration) -> Vec<String> {
        let dev = self.dev.as_mut().expect("dev was started");
        let deadline = Instant::now() + patience;
        loop {
            if dev.said.iter().any(|line| line == wanted) {
                return dev.said.clone();
            }
            match dev.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => dev.said.push(line),
                Err(RecvTimeoutError::Timeout) => panic!("flotilla dev did not say {wanted:?} in {patience:?}: {:#?}", dev.said),
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("flotilla dev ended before it said {wanted:?}: {:#?}", dev.said)
                }
            }
        }
    }

    /// Sends a signal to `flotilla dev` and waits for its end; all of its nodes must have ended with it. How long that took.
    pub fn stop_dev(&mut self, signal: Signal) -> (ExitStatus, Duration) {
        let begun = Instant::now();
        let mut dev = self.dev.take().expect("dev was started");
        let nodes = children_of(dev.child.id());
        send(dev.child.id(), signal);
        let status = wait(&mut dev.child, "flotilla dev ends", PATIENCE);
        for node in nodes {
            until("a node ends with flotilla dev", Duration::from_secs(5), || is_gone(node).then_some(()));
        }
        (status, begun.elapsed())
    }

    /// Changes the configuration of every node by hand.
    pub fn edit_config(&self, edit: impl Fn(&mut toml::Table)) {
        for node in self.all() {
            let path = self.home(node).join("flotilla.toml");
            let mut table: toml::Table = std::fs::read_to_string(&path).unwrap().parse().unwrap();
            edit(&mut table);
            std::fs::write(&path, table.to_string()).unwrap();
        }
    }

    /// The process of a node that runs.
    pub fn pid(&self, node: u64) -> u32 {
        let path = self.home(node).join("flotilla.pid");
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        text.trim().parse().unwrap()
    }

    /// `kill -9`, and waits until the process is gone.
    pub fn kill(&mut self, node: u64) {
        self.signal(node, Signal::KILL);
        self.wait_gone(node, Duration::from_secs(10));
    }

    /// Sends a signal to a node.
    pub fn signal(&self, node: u64, signal: Signal) {
        send(self.alone.get(&node).map_or_else(|| self.pid(node), Child::id), signal);
    }

    /// Asks a node to end, and waits until it has. How long that took.
    pub fn stop(&mut self, node: u64) -> Duration {
        let begun = Instant::now();
        let pid = self.alone.get(&node).map_or_else(|| self.pid(node), Child::id);
        send(pid, Signal::TERM);
        match self.alone.remove(&node) {
            Some(mut child) => assert!(wait(&mut child, "the node ends", PATIENCE).success(), "node {node} ended badly"),
            None => until("the node ends", PATIENCE, || is_gone(pid).then_some(())),
        }
        begun.elapsed()
    }

    /// Waits until a node's process is gone.
    pub fn wait_gone(&mut self, node: u64, patience: Duration) {
        match self.alone.remove(&node) {
            Some(mut child) => drop(wait(&mut child, "the node is gone", patience)),
            None => {
                let pid = self.pid(node);
                until("the node is gone", patience, || is_gone(pid).then_some(()));
            }
        }
    }

    /// Whether a node that the test started has ended by itself; it is then no longer this cluster's.
    pub fn exited(&mut self, node: u64) -> bool {
        let Some(child) = self.alone.get_mut(&node) else { return true };
        let ended = child.try_wait().unwrap().is_some();
        if ended {
            self.alone.remove(&node);
        }
        ended
    }

    /// `flotilla start --config n<i>/flotilla.toml`, as a person would; does not wait.
    pub fn spawn(&mut self, node: u64) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.home(node).join("flotilla.log")).unwrap();
        let mut command = self.start_command(node);
        let child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let before = self.alone.insert(node, child);
        assert!(before.is_none(), "node {node} runs already");
    }

    /// Starts a node, and waits until it is ready. How long that took.
    pub fn start(&mut self, node: u64) -> Duration {
        let begun = Instant::now();
        self.spawn(node);
        self.wait_ready(node);
        begun.elapsed()
    }

    /// Starts a node that may have no room to be ready, and waits until it answers a read. How long that took.
    pub fn start_lean(&mut self, node: u64) -> Duration {
        let begun = Instant::now();
        self.spawn(node);
        until("a read is answered", PATIENCE, || {
            let answer = self.client.send(node, "GET", "/v1/kv/nothing-here", &[], None);
            answer.is_ok_and(|answer| answer.status == 404).then_some(())
        });
        begun.elapsed()
    }

    /// The command that starts one node.
    pub fn start_command(&self, node: u64) -> Command {
        let mut command = flotilla();
        if let Some([program, args @ ..]) = self.launchers.get(&node).map(Vec::as_slice) {
            let target = command.get_program().to_owned();
            command = Command::new(program);
            command.args(args).arg(target).stdin(Stdio::null()).env_remove("FLOTILLA_LOG");
        }
        // A test that is killed can't end what it started.
        command.args(["start", "--with-parent", "--config"]).arg(self.home(node).join("flotilla.toml"));
        command
    }

    /// Starts a node that must not come up: its one line of complaint, after an exit that says so.
    ///
    /// What is logged goes to the same place and has a time in front; the complaint is the last line, and begins with `flotilla:`.
    pub fn refused(&self, mut command: Command) -> String {
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let output = finish(child, Duration::from_secs(30));
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(matches!(output.status.code(), Some(1 | 2)), "ended with {}: {said}", output.status);
        let complaints: Vec<&str> = said.lines().filter(|line| line.starts_with("flotilla: ")).collect();
        assert_eq!(complaints.len(), 1, "one clear line is wanted: {said}");
        assert!(!said.contains("panicked"), "{said}");
        complaints[0].to_owned()
    }

    /// Waits until a node says that it is ready.
    pub fn wait_ready(&self, node: u64) {
        let ready = || self.client.send(node, "GET", "/readyz", &[], None).is_ok_and(|a| a.status == 200).then_some(());
        until(&format!("node {node} is ready"), PATIENCE, ready);
    }

    /// The ids of all shards, the meta shard among them.
    pub fn shard_ids(&self, via: u64) -> Vec<u64> {
        let list = self.client.json(via, "/v1/admin/shards?limit=1000");
        list["shards"].as_array().unwrap().iter().map(|shard| shard["id"].as_u64().unwrap()).collect()
    }

    /// For each shard that holds keys: its id, and a path under `/v1/kv/` such that all keys below it are the shard's.
    pub fn shard_paths(&self, via: u64, name: &str) -> Vec<(u64, String)> {
        let list = self.client.json(via, "/v1/admin/shards?limit=1000");
        let bound = |shard: &serde_json::Value, text: &str, base64: &str| match (shard[text].as_str(), shard[base64].as_str()) {
            (Some(text), _) => Some(text.as_bytes().to_vec()),
            (None, Some(base64)) => Some(BASE64.decode(base64).unwrap()),
            (None, None) => None,
        };
        let shards = list["shards"].as_array().unwrap().iter().filter(|shard| shard["id"] != 1);
        let paths = shards.map(|shard| {
            let start = bound(shard, "start", "start_b64").unwrap();
            let end = bound(shard, "end", "end_b64");
            // A shard that ends at "/" needs something smaller.
            let keys = ["/", "!"].map(|mark| [&start, mark.as_bytes(), name.as_bytes(), b"/"].concat());
            let key = keys.into_iter().find(|key| end.as_ref().is_none_or(|end| key < end));
            let key = key.unwrap_or_else(|| panic!("{shard} has no room for {name}"));
            (shard["id"].as_u64().unwrap(), key.iter().map(|byte| format!("%{byte:02X}")).collect())
        });
        paths.collect()
    }

    /// Who leads each shard, seen from one node.
    pub fn leaders(&self, via: u64) -> BTreeMap<u64, Option<u64>> {
        let list = self.client.json(via, "/v1/admin/shards?limit=1000");
        let shards = list["shards"].as_array().unwrap().iter();
        shards.map(|shard| (shard["id"].as_u64().unwrap(), shard["leader"].as_u64())).collect()
    }

    /// Waits until a node leads something; how many groups. After a restart elections fall as they may, and a node that got none is
    /// handed some by the others after a few seconds.
    pub fn wait_leading(&self, node: u64) -> u64 {
        until(&format!("node {node} leads something"), Duration::from_secs(20), || {
            let leads = self.leaders(node).values().filter(|leader| **leader == Some(node)).count() as u64;
            (leads > 0).then_some(leads)
        })
    }

    /// Waits until all replicas of all shards have applied the same, and are equal by hash. How long that took.
    pub fn wait_equal(&self, patience: Duration) -> Duration {
        let begun = Instant::now();
        for shard in self.shard_ids(1) {
            let path = format!("/v1/admin/shards/{shard}?hash=1");
            until(&format!("all replicas of shard {shard} are equal"), patience, || {
                let mut seen = Vec::new();
                for node in self.all() {
                    let answer = self.client.send(node, "GET", &path, &[], None).ok().filter(|a| a.status == 200)?;
                    let local = answer.json()["local"].clone();
                    seen.push((local["applied"].as_u64()?, local["hash"].as_str()?.to_owned()));
                }
                let same = seen.iter().all(|(applied, _)| *applied == seen[0].0);
                if same {
                    assert!(seen.iter().all(|one| *one == seen[0]), "shard {shard}: replicas differ at the same index: {seen:?}");
                }
                same.then_some(())
            });
        }
        begun.elapsed()
    }

    /// The value of a metric without labels.
    pub fn metric(&self, node: u64, name: &str) -> f64 {
        let text = self.client.get(node, "/metrics").text();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned));
        line.unwrap_or_else(|| panic!("node {node} has no metric {name}")).parse().unwrap()
    }

    /// The end of a node's log.
    pub fn log_tail(&self, node: u64, lines: usize) -> String {
        let log = std::fs::read_to_string(self.home(node).join("flotilla.log")).unwrap_or_default();
        let all: Vec<_> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for node in self.all() {
                eprintln!("--- the end of the log of node {node}\n{}", self.log_tail(node, 15));
            }
        }
        if let Some(mut dev) = self.dev.take() {
            // Its children first, while they still are its children.
            for node in children_of(dev.child.id()) {
                send(node, Signal::KILL);
            }
            let _ = dev.child.kill();
            let _ = dev.child.wait();
        }
        for child in self.alone.values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Sends a signal to a process, by its id. One that is gone needs none.
fn send(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid as i32).expect("a process id is not 0");
    let _ = kill_process(pid, signal);
}

/// The processes that this one started and that still run.
fn children_of(parent: u32) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    ids.filter(|id| stat(*id).is_some_and(|(state, of)| of == parent && state != 'Z')).collect()
}

/// A process's state and its parent, from `/proc/<id>/stat`; the name before them may hold anything, so it is cut off.
fn stat(pid: u32) -> Option<(char, u32)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut rest = text.rsplit_once(')')?.1.split_whitespace();
    Some((rest.next()?.chars().next()?, rest.next()?.parse().ok()?))
}

/// Whether a process is gone, or only waits for its parent to take notice.
fn is_gone(pid: u32) -> bool {
    stat(pid).is_none_or(|(state, _)| state == 'Z')
}

/// Waits for a child's end; one that does not end is killed, and the test fails.
pub fn wait(child: &mut Child, what: &str, patience: Duration) -> ExitStatus {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{what}: not within {patience:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits for the end of a child that says little, and takes what it said.
pub fn finish(mut child: Child, patience: Duration) -> Output {
    wait(&mut child, "the command ends", patience);
    child.wait_with_output().unwrap()
}

/// Runs a command that says little to its end.
pub fn run(command: &mut Command) -> Output {
    finish(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap(), PATIENCE)
}
