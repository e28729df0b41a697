//! What went wrong, as one line: what it is, its stable code, what is known of the write, and what
//! to do.
//!
//! ```text
//! error: the condition does not hold: the key is at "5" (precondition_failed, HTTP 412, nothing was written, shard 3)
//!        → read the key again, then write with the revision that it is at
//! ```
//!
//! With `--json` it is the server's problem as it came, or one of the same form.

use super::Exit;
use super::console::Console;
use flotilla_router::Outcome;
use serde::Deserialize;
use serde_json::{Value, json};
use std::io;
use std::path::Path;

/// The members of a problem that the client shows. All are optional: a proxy in between may answer
/// anything.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Members {
    /// What it is this time.
    pub(super) detail: Option<String>,
    /// The stable name.
    pub(super) code: Option<String>,
    /// What is known of the write.
    pub(super) outcome: Option<Outcome>,
    /// Whether the same request may succeed later.
    pub(super) retryable: bool,
    /// The HTTP status.
    pub(super) status: u16,
    /// The shard concerned.
    pub(super) shard: Option<u64>,
    /// Keys that were deleted before a range delete stopped.
    pub(super) count: Option<u64>,
}

/// Why a command did not do what was asked.
#[derive(Debug)]
pub(super) enum Failure {
    /// It was asked for in a way that makes no sense, or names a file that can't be opened.
    Usage(String),
    /// It was asked for well, and a local file broke off, is damaged, or can't be written to its
    /// end.
    Local(String),
    /// The cluster said no.
    Problem {
        /// What the client shows of it.
        members: Box<Members>,
        /// The problem as it came.
        body: Value,
        /// Whether it was about a write.
        is_write: bool,
    },
    /// No answer came.
    Unreachable {
        /// From whom, and why.
        why: String,
        /// What is known of the write; `None` for a read.
        outcome: Option<Outcome>,
    },
    /// Some of many failed, and was told already.
    Reported,
    /// The data could not be printed.
    Output(io::Error),
}

impl Failure {
    /// The problem in a server's answer; whatever else came instead is told as such.
    pub(super) fn problem(status: u16, body: &[u8], is_write: bool) -> Self {
        let parsed =
            serde_json::from_slice::<Value>(body).ok().filter(|body| body.get("code").is_some());
        let body = parsed.unwrap_or_else(|| {
            // 4xx is said before anything is done; of anything else a proxy or a broken server says
            // nothing that could be relied on.
            let outcome = if is_write && status >= 500 { "unknown" } else { "not_applied" };
            let detail = format!(
                "the answer is HTTP {status} without a problem; is that a \
                                  Flotilla node?"
            );
            json!({
                "status": status, "code": "unexpected_answer", "detail": detail,
                "outcome": outcome, "retryable": false,
            })
        });
        Self::of_body(body, status, is_write)
    }

    /// The failure that a problem's JSON is.
    pub(super) fn of_body(body: Value, status: u16, is_write: bool) -> Self {
        let mut members: Members = serde_json::from_value(body.clone()).unwrap_or_default();
        members.status = status;
        Self::Problem { members: Box::new(members), body, is_write }
    }

    /// An answer that says yes and can't be read.
    pub(super) fn unreadable(what: &str, why: impl std::fmt::Display, is_write: bool) -> Self {
        let detail = format!("the answer is no {what} ({why}); is that a Flotilla node?");
        let outcome = if is_write { "unknown" } else { "not_applied" };
        Self::of_body(
            json!({
                "code": "unexpected_answer", "detail": detail, "outcome": outcome,
                "retryable": false,
            }),
            200,
            is_write,
        )
    }

    /// A local file that could not be read or written to its end.
    pub(super) fn broken(action: &str, path: &Path, error: &io::Error) -> Self {
        Self::Local(format!("can't {action} {}: {error}", path.display()))
    }

    /// A local file that can't be opened.
    pub(super) fn file(action: &str, path: &Path, error: &io::Error) -> Self {
        Self::Usage(format!("can't {action} {}: {error}", path.display()))
    }

    /// How the process ends.
    pub(super) fn exit(&self) -> Exit {
        match self {
            Self::Usage(_) => Exit::Usage,
            Self::Problem { .. } | Self::Reported | Self::Local(_) => Exit::Refused,
            Self::Unreachable { .. } => Exit::Unreachable,
            // Whoever read our output has enough of it, as in `| head`.
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Done,
            Self::Output(_) => Exit::Refused,
        }
    }

    /// What is known of the write.
    pub(super) fn outcome(&self) -> Option<Outcome> {
        match self {
            Self::Problem { members, is_write: true, .. } => members.outcome,
            Self::Unreachable { outcome, .. } => *outcome,
            _ => None,
        }
    }

    /// Whether it is certain that nothing was written, and likely that it works in a moment.
    pub(super) fn is_worth_another_try(&self) -> bool {
        match self {
            Self::Problem { members, .. } => {
                matches!(members.status, 429 | 503)
                    && members.retryable
                    && members.outcome == Some(Outcome::NotApplied)
            }
            _ => false,
        }
    }

    /// Tells it.
    pub(super) fn show(&self, console: &mut Console) {
        if console.json {
            if let Some(json) = self.to_json() {
                console.say(&json.to_string());
            }
            return;
        }
        match self {
            Self::Reported => {}
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            Self::Output(error) => console.say(&format!("error: can't print: {error}")),
            Self::Usage(why) | Self::Local(why) => console.say(&format!("error: {why}")),
            _ => {
                console.say(&format!("error: {}", self.summary()));
                if let Some(advice) = self.advice() {
                    console.say(&format!("       → {advice}"));
                }
            }
        }
    }

    /// What happened, in one line.
    pub(super) fn summary(&self) -> String {
        let written = self.outcome().map(|outcome| match outcome {
            Outcome::NotApplied => "nothing was written",
            Outcome::Unknown => "outcome unknown",
        });
        match self {
            Self::Problem { members, .. } => {
                let detail = members.detail.as_deref().unwrap_or("the cluster said no");
                let mut facts = vec![
                    members.code.clone().unwrap_or_default(),
                    format!("HTTP {}", members.status),
                ];
                facts.extend(written.map(str::to_owned));
                facts.extend(members.count.map(|count| format!("{count} keys deleted")));
                facts.extend(members.shard.map(|shard| format!("shard {shard}")));
                format!("{detail} ({})", facts.join(", "))
            }
            Self::Unreachable { why, .. } => match written {
                Some(written) => format!("{why} (unreachable, {written})"),
                None => format!("{why} (unreachable)"),
            },
            Self::Usage(why) | Self::Local(why) => why.clone(),
            Self::Reported => "some of it failed".into(),
            Self::Output(error) => error.to_string(),
        }
    }

    /// What to do now, where the detail does not say it.
    fn advice(&self) -> Option<&'static str> {
        const UNKNOWN: &str =
            "it may or may not have been written, now or in a moment: read before you write again";
        match self {
            Self::Problem { members, is_write, .. } => {
                match members.code.as_deref().unwrap_or_default() {
                    "partially_applied" => Some("repeat it to delete the rest; that does no harm"),
                    _ if *is_write && members.outcome == Some(Outcome::Unknown) => Some(UNKNOWN),
                    "precondition_failed" => Some(
                        "look at what is there now, then write with the revision (or order with \
                         the epoch) that it is at",
                    ),
                    "disk_full" => Some("make room: deletes are still taken"),
                    "not_implemented" => Some("this release of the server does not have it"),
                    _ if members.retryable && *is_write => {
                        Some("nothing was written: try again in a moment")
                    }
                    _ if members.retryable => Some("try again in a moment"),
                    _ => None,
                }
            }
            Self::Unreachable { outcome: Some(Outcome::Unknown), .. } => Some(UNKNOWN),
            Self::Unreachable { .. } => {
                Some("is the cluster up? Name its nodes with --endpoint or FLOTILLA_ENDPOINTS")
            }
            _ => None,
        }
    }

    fn to_json(&self) -> Option<Value> {
        Some(match self {
            Self::Reported => return None,
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => return None,
            Self::Output(error) => json!({ "code": "output", "detail": error.to_string() }),
            Self::Usage(why) => json!({ "code": "usage", "detail": why }),
            Self::Local(why) => json!({ "code": "local", "detail": why }),
            Self::Problem { body, .. } => body.clone(),
            Self::Unreachable { why, outcome } => {
                json!({ "code": "unreachable", "detail": why, "outcome": outcome })
            }
        })
    }
}
