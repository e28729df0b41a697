//! `flotilla check` as a child process: the load while faults rage, and the verdict on its history.

use super::harness::Harness;
use flotilla_kit::{finish, flotilla};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// How long the verdict may take after the load has ended.
const VERDICT_PATIENCE: Duration = Duration::from_secs(180);

/// A check that runs.
pub(crate) struct Check {
    child: Option<Child>,
    duration: Duration,
    begun: Instant,
    /// Where its history goes.
    pub(crate) history: PathBuf,
}

/// What it found.
#[derive(Clone, Debug)]
pub(crate) struct Verdict {
    /// Its figures.
    pub(crate) figures: serde_json::Value,
}

impl Check {
    /// Starts it against these nodes.
    pub(crate) fn start(
        harness: &Harness,
        duration: Duration,
        clients: u64,
        seed: u64,
        history: &Path,
    ) -> Self {
        let duration = Duration::from_secs(duration.as_secs());
        let endpoints: Vec<String> =
            harness.http.iter().map(|address| format!("http://{address}")).collect();
        let mut command = flotilla();
        command.args([
            "check",
            "--endpoint",
            &endpoints.join(","),
            "--duration",
            &format!("{}s", duration.as_secs()),
        ]);
        command.args([
            "--clients",
            &clients.to_string(),
            "--seed",
            &seed.to_string(),
            "--timeout",
            "5s",
            "--json",
        ]);
        command.args([
            "--consistency",
            if harness.plan.lease { "lease" } else { "linearizable" },
            "--history",
        ]);
        let errors = std::fs::File::create(history.with_extension("err")).unwrap();
        let output = std::fs::File::create(history.with_extension("json")).unwrap();
        let child = command
            .arg(history)
            .stdout(Stdio::from(output))
            .stderr(Stdio::from(errors))
            .spawn()
            .unwrap();
        Self { child: Some(child), duration, begun: Instant::now(), history: history.to_owned() }
    }

    /// How long its load goes on.
    pub(crate) fn left(&self) -> Duration {
        self.duration.saturating_sub(self.begun.elapsed())
    }

    /// Whether it ended before its time.
    pub(crate) fn ended_early(&mut self) -> bool {
        self.left() > Duration::from_secs(1)
            && self.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_some())
    }

    /// Waits for the verdict, which must be a clean one.
    pub(crate) fn verdict(self) -> Verdict {
        let (code, said, complained) = self.outcome();
        assert!(code == Some(0), "flotilla check ended with {code:?}: {said}\n{complained}");
        let figures = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"));
        Verdict { figures }
    }

    /// Waits for its end: exit code, output, complaints.
    pub(crate) fn outcome(mut self) -> (Option<i32>, String, String) {
        let child = self.child.take().expect("taken once");
        let code = finish(child, self.left() + VERDICT_PATIENCE).status.code();
        let [said, complained] = ["json", "err"]
            .map(|e| std::fs::read_to_string(self.history.with_extension(e)).unwrap());
        (code, said, complained)
    }
}

impl Drop for Check {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
