//! A fleet under `flotilla dev`, as most people run it: one process that starts the others, and
//! ends with them.

use super::process::{children_of, is_gone, send, until, wait};
use super::{Fleet, PATIENCE};
use rustix::process::Signal;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// A running `flotilla dev`.
pub(crate) struct Dev {
    child: Child,
    lines: Receiver<String>,
    /// What it has said so far.
    said: Vec<String>,
}

impl Fleet {
    /// The same where whoever runs the tests ignores hang-ups, as under `nohup`: it would be told
    /// so, and ignore them, too.
    pub fn dev_command_on_a_terminal(&self) -> Command {
        let dev = self.dev_command();
        let mut command = Command::new("env");
        command.arg("--default-signal=HUP").arg(dev.get_program()).args(dev.get_args());
        command.envs(dev.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command
    }

    /// The command that runs the cluster.
    pub fn dev_command(&self) -> Command {
        let mut command = self.flotilla();
        command.arg("dev").args([
            "--nodes",
            &self.nodes.to_string(),
            "--shards",
            &self.shards.to_string(),
        ]);
        command
            .arg("--data")
            .arg(&self.folder)
            .args(["--http", &format!("127.0.0.1:{}", self.http(1))]);
        command
    }

    /// Starts `flotilla dev`, and waits until it says `ready` on a line of its own. How long that
    /// took.
    pub fn start_dev(&mut self) -> Duration {
        let begun = Instant::now();
        let mut child =
            self.dev_command().stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = channel();
        let both = sender.clone();
        std::thread::spawn(move || {
            stdout.lines().map_while(Result::ok).for_each(|line| drop(sender.send(line)))
        });
        std::thread::spawn(move || {
            stderr
                .lines()
                .map_while(Result::ok)
                .for_each(|line| drop(both.send(format!("! {line}"))))
        });
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
                Err(RecvTimeoutError::Timeout) => {
                    panic!("flotilla dev did not say {wanted:?} in {patience:?}: {:#?}", dev.said)
                }
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("flotilla dev ended before it said {wanted:?}: {:#?}", dev.said)
                }
            }
        }
    }

    /// Sends a signal to `flotilla dev` and waits for its end; all of its nodes must have ended
    /// with it. How long that took.
    pub fn stop_dev(&mut self, signal: Signal) -> (ExitStatus, Duration) {
        let begun = Instant::now();
        let mut dev = self.dev.take().expect("dev was started");
        let nodes = children_of(dev.child.id());
        send(dev.child.id(), signal);
        let status = wait(&mut dev.child, "flotilla dev ends", PATIENCE);
        for node in nodes {
            until("a node ends with flotilla dev", Duration::from_secs(5), || {
                is_gone(node).then_some(())
            });
        }
        (status, begun.elapsed())
    }

    /// Kills `flotilla dev` and its nodes.
    pub(crate) fn kill_dev(&mut self) {
        let Some(mut dev) = self.dev.take() else { return };
        // Its children first, while they still are its children.
        for node in children_of(dev.child.id()) {
            send(node, Signal::KILL);
        }
        let _ = dev.child.kill();
        let _ = dev.child.wait();
    }
}
