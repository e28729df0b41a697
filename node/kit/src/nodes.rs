//! The nodes of a fleet, one by one: started, waited for, stopped, killed; and what they say.
//!
//! Whoever ends a node says so. One that was started here and has ended by itself fails the test,
//! as soon as anybody waits for any of them, unless it is one that [`may_end`](Fleet::may_end).

use super::process::{finish, is_gone, send, until, wait};
use super::{Fleet, PATIENCE};
use rustix::process::Signal;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

impl Fleet {
    /// What the next starts of a node find in `FAILPOINTS`; nothing, where it is empty.
    pub fn arm(&mut self, node: u64, failpoints: &str) {
        if failpoints.is_empty() {
            self.armed.remove(&node);
            self.may_end.remove(&node);
        } else {
            self.armed.insert(node, failpoints.to_owned());
            self.may_end.insert(node);
        }
    }

    /// Starts a node, as a person would; does not wait.
    pub fn spawn(&mut self, node: u64) {
        assert!(!self.is_running(node), "node {node} runs already");
        let path = self.home(node).join("flotilla.log");
        self.lives.insert(node, fs::metadata(&path).map_or(0, |metadata| metadata.len() as usize));
        let log = fs::File::options().create(true).append(true).open(path).unwrap();
        let mut command = self.start_command(node);
        let child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        self.running.insert(node, child);
        self.ended.remove(&node);
    }

    /// Starts a node, and waits until it is ready. How long that took.
    pub fn start(&mut self, node: u64) -> Duration {
        self.start_all(&[node])
    }

    /// Starts nodes, all before the first is waited for. How long it took until all were ready.
    pub fn start_all(&mut self, nodes: &[u64]) -> Duration {
        let begun = Instant::now();
        nodes.iter().for_each(|node| self.spawn(*node));
        self.wait_ready(nodes);
        begun.elapsed()
    }

    /// Whether a node says that it is ready.
    pub fn is_ready(&self, node: u64) -> bool {
        let answer = self.client.send(node, "GET", "/readyz", &[], None);
        answer.is_ok_and(|answer| answer.status == 200)
    }

    /// Waits until these nodes are ready, in this order, and watches meanwhile that nobody ends.
    /// How long it took for all.
    pub fn wait_ready(&mut self, nodes: &[u64]) -> Duration {
        let begun = Instant::now();
        let client = self.client.patience(Duration::from_secs(2));
        for node in nodes {
            loop {
                let said = match client.send(*node, "GET", "/readyz?verbose", &[], None) {
                    Ok(answer) if answer.status == 200 => break,
                    Ok(answer) => answer.text(),
                    Err(error) => error.to_string(),
                };
                self.check_running();
                let end = self.ended(*node);
                assert!(end.is_none(), "node {node}: {end:?}\n{}", self.log_tail(*node, 8));
                assert!(
                    begun.elapsed() < PATIENCE,
                    "node {node} is not ready after {PATIENCE:?}: {said}"
                );
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        begun.elapsed()
    }

    /// Panics where a node has ended that nobody ended, and that may not.
    pub fn check_running(&mut self) {
        for node in self
            .all()
            .into_iter()
            .filter(|node| self.running.contains_key(node))
            .collect::<Vec<_>>()
        {
            if let Some(status) = self.ended(node).filter(|_| !self.may_end.contains(&node)) {
                panic!("node {node} ended by itself, with {status}:\n{}", self.log_tail(node, 8));
            }
        }
    }

    /// Whether a node was started by itself and has not ended.
    pub fn is_running(&mut self, node: u64) -> bool {
        self.ended(node).is_none() && self.running.contains_key(&node)
    }

    /// How a node ended, if it did, of those that were started by themselves.
    pub fn ended(&mut self, node: u64) -> Option<ExitStatus> {
        if let Some(status) =
            self.running.get_mut(&node).and_then(|child| child.try_wait().unwrap())
        {
            self.running.remove(&node);
            self.ended.insert(node, status);
        }
        self.ended.get(&node).copied()
    }

    /// Waits for a node's end; `None` where it goes on.
    pub fn wait_end(&mut self, node: u64, patience: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + patience;
        while self.ended(node).is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.ended(node)
    }

    /// The process of a node that runs.
    pub fn pid(&self, node: u64) -> u32 {
        self.running.get(&node).map_or_else(|| self.pid_in_file(node), Child::id)
    }

    fn pid_in_file(&self, node: u64) -> u32 {
        let path = self.home(node).join("flotilla.pid");
        let text =
            fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        text.trim().parse().unwrap()
    }

    /// Sends a signal to a node.
    pub fn signal(&self, node: u64, signal: Signal) {
        // A process id that is known to be gone may be somebody else's.
        if !self.ended.contains_key(&node) {
            send(self.pid(node), signal);
        }
    }

    /// `kill -9` to all of these at once, and waits until they are gone.
    pub fn kill(&mut self, nodes: &[u64]) {
        nodes.iter().for_each(|node| self.signal(*node, Signal::KILL));
        for node in nodes {
            let status = self.wait_gone(*node, Duration::from_secs(10));
            let is_killed = status.is_none_or(|status| status.signal() == Some(9));
            assert!(
                is_killed || self.may_end.contains(node),
                "node {node} ended by itself, with {status:?}:\n{}",
                self.log_tail(*node, 5)
            );
        }
    }

    /// Asks a node to end, and waits until it has, in good order. How long that took.
    pub fn stop(&mut self, node: u64) -> Duration {
        let begun = Instant::now();
        self.signal(node, Signal::TERM);
        let status = self.wait_gone(node, PATIENCE);
        let is_good = status.is_none_or(|status| status.success());
        assert!(is_good, "node {node} ended with {status:?}:\n{}", self.log_tail(node, 5));
        begun.elapsed()
    }

    /// Waits until a node's process is gone; how it ended, where this process is its parent.
    pub fn wait_gone(&mut self, node: u64, patience: Duration) -> Option<ExitStatus> {
        if let Some(mut child) = self.running.remove(&node) {
            self.ended.insert(node, wait(&mut child, "the node is gone", patience));
        } else if !self.ended.contains_key(&node) {
            let pid = self.pid_in_file(node);
            until("the node is gone", patience, || is_gone(pid).then_some(()));
        }
        self.ended.get(&node).copied()
    }

    /// Runs a command that must not get a node up: its one line of complaint, after an exit that
    /// says so.
    ///
    /// What is logged goes to the same place and has a time in front; the complaint begins with
    /// `flotilla:`.
    pub fn refused(&self, mut command: Command) -> String {
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let output = finish(child, Duration::from_secs(30));
        let said = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        assert!(
            matches!(output.status.code(), Some(1 | 2)),
            "ended with {}: {said}",
            output.status
        );
        let complaints: Vec<&str> =
            said.lines().filter(|line| line.starts_with("flotilla: ")).collect();
        assert_eq!(complaints.len(), 1, "one clear line is wanted: {said}");
        assert!(!said.contains("panicked"), "{said}");
        complaints[0].to_owned()
    }

    /// What a node has said since its log was that long.
    pub fn said_since(&self, node: u64, bytes: usize) -> String {
        let log = fs::read(self.home(node).join("flotilla.log")).unwrap_or_default();
        String::from_utf8_lossy(log.get(bytes..).unwrap_or_default()).into_owned()
    }

    /// All that a node has ever said.
    pub fn said(&self, node: u64) -> String {
        self.said_since(node, 0)
    }

    /// What a node has said since it was started last.
    pub fn said_in_last_life(&self, node: u64) -> String {
        self.said_since(node, self.lives.get(&node).copied().unwrap_or(0))
    }

    /// The end of a node's log.
    pub fn log_tail(&self, node: u64, lines: usize) -> String {
        let said = self.said(node);
        let all: Vec<_> = said.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// No node may have panicked.
    pub fn assert_no_panic(&self) {
        for node in self.all() {
            let panic =
                self.said(node).lines().find(|line| line.contains("panicked")).map(str::to_owned);
            assert!(panic.is_none(), "node {node} panicked: {panic:?}");
        }
    }

    /// Ends all processes, whatever they do.
    pub fn end(&mut self) {
        self.kill_dev();
        for child in self.running.values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
        self.running.clear();
    }
}
