//! `POST /v1/batch`: many operations in one request, each with its own outcome. Not atomic.
//!
//! All operations are handed to the node at once, so that those of one shard share log entries;
//! those on the **same key** one after the other, so that they take effect in the order in which
//! they stand. Where the outcome of one of them is unknown, the later ones on its key are not tried
//! (424): they might overtake it. All of them share the time of one request: those for which none
//! is left are not tried either (503).
//!
//! ```text
//! {"ops":[{"put":{"key":"a","value":"1","if_none_match":"*"}}, {"get":{"key_b64":"/w=="}}, {"delete":{"key":"b","if_match":5}}]}
//! {"results":[{"status":204,"revision":7,"shard":2}, {"status":200,"value":"1","revision":7,"shard":2}, {"status":404,"code":…}]}
//! ```
//!
//! A batch that is malformed anywhere is refused whole, before anything is done;
//! [`operations`](super::operations) reads it. Its answer is bounded (`batch_answer_bytes_max`):
//! gets whose values have no room in it fail, each by itself, with 413, and may be asked again.

use super::answer;
use super::body::{self, Body, Piece, Upload, Wanted};
use super::head::check_json;
use super::key::{condition_failed, no_such_key, unexpected};
use super::operations::{Planned, plan};
use super::query::Query;
use super::room::{OUTCOME_BYTES, Room};
use super::service::{App, only};
use super::share::{Account, Good};
use crate::problem::Problem;
use crate::traits::{Admin, Inspect, Kv};
use bytes::Bytes;
use flotilla_router::{Answer, Consistency, Outcome, Request, Revision, ShardId};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::header::HeaderValue;
use http::request::Parts;
use http::{Method, Response, StatusCode};
use std::collections::HashMap;
use std::io::Write;
use std::sync::Arc;
use std::time::Instant;

/// What one operation came to.
enum Done {
    /// As it stands in the answer; the [`Room`] has counted it.
    Value(Vec<u8>),
    Written {
        revision: Option<Revision>,
        shard: ShardId,
    },
    Failed {
        problem: Problem,
        current: Option<Revision>,
    },
}

impl<K: Kv, A: Admin, I: Inspect> App<K, A, I> {
    pub(super) async fn batch(
        &self,
        parts: &Parts,
        body: Upload<'_>,
        account: &Arc<Account>,
    ) -> Result<Response<Body>, Problem> {
        only(parts, &Method::POST, "POST")?;
        let consistency = Query::parse(parts.uri.query(), &["consistency", "max_staleness"])?
            .consistency(self.kv.default_consistency())?;
        check_json(parts)?;
        let wanted = Wanted {
            what: "a batch",
            code: "batch_too_large",
            bytes_max: self.limits.batch_bytes_max,
        };
        let (body, _held) = body::read(body, &wanted, &self.limits).await?;
        let planned = plan(&body, &self.limits)?;
        drop(body);

        let deadline = self.deadline();
        // What fails for want of room fails before anything is done.
        let room = Room::new(
            account.hold(Good::Answers, planned.len() * OUTCOME_BYTES)?,
            self.limits.batch_answer_bytes_max,
        );

        let mut by_key: HashMap<&Bytes, Vec<usize>> = HashMap::with_capacity(planned.len());
        for (index, op) in planned.iter().enumerate() {
            by_key.entry(op.key()).or_default().push(index);
        }
        let mut done: Vec<Option<Done>> = planned.iter().map(|_| None).collect();
        let mut chains: FuturesUnordered<_> = by_key
            .into_values()
            .map(|indexes| self.chain(&planned, indexes, consistency, deadline, &room))
            .collect();
        while let Some(outcomes) = chains.next().await {
            for (index, outcome) in outcomes {
                done[index] = Some(outcome);
            }
        }
        drop(chains);
        let mut out = Vec::with_capacity(16 + room.used() + done.len() * 48);
        out.extend_from_slice(b"{\"results\":[");
        for (index, outcome) in done.into_iter().flatten().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            outcome.write(&mut out);
        }
        out.extend_from_slice(b"]}");
        let piece = Piece { held: Some(room.into_held(out.len())), bytes: out.into() };
        Ok(answer::ok(HeaderValue::from_static("application/json"), Body::Full(piece)))
    }

    /// The operations on one key, one after the other.
    async fn chain(
        &self,
        planned: &[Planned],
        indexes: Vec<usize>,
        consistency: Consistency,
        deadline: Instant,
        room: &Room,
    ) -> Vec<(usize, Done)> {
        let mut outcomes = Vec::with_capacity(indexes.len());
        let mut unknown = None;
        for index in indexes {
            let outcome = match unknown {
                Some(earlier) => Done::Failed { problem: after_unknown(earlier), current: None },
                None => self.one(&planned[index], consistency, deadline, room).await,
            };
            if let Done::Failed { problem, .. } = &outcome
                && problem.members().outcome == Outcome::Unknown
            {
                unknown = Some(index);
            }
            outcomes.push((index, outcome));
        }
        outcomes
    }

    async fn one(
        &self,
        op: &Planned,
        consistency: Consistency,
        deadline: Instant,
        room: &Room,
    ) -> Done {
        let (request, if_odd) = match op {
            Planned::Get(_) if room.is_full() => {
                return Done::Failed { problem: room.refusal(), current: None };
            }
            Planned::Get(key) => {
                (Request::Get { key: key.clone(), consistency }, Outcome::NotApplied)
            }
            Planned::Write(command) => (Request::Write(command.clone()), Outcome::Unknown),
        };
        let reply = match self.ask_by(request, deadline).await {
            Ok(reply) => reply,
            Err(problem) => return Done::Failed { problem, current: None },
        };
        let shard = reply.shard;
        match reply.answer {
            Answer::Value { value, revision } => match room.take(&value, revision, shard) {
                Ok(json) => Done::Value(json),
                Err(problem) => Done::Failed { problem, current: None },
            },
            Answer::Written { revision } => Done::Written { revision: Some(revision), shard },
            Answer::Deleted => Done::Written { revision: None, shard },
            Answer::Missing => Done::Failed { problem: no_such_key(&reply), current: None },
            Answer::ConditionFailed { current } => {
                Done::Failed { problem: condition_failed(&reply, current), current }
            }
            _ => Done::Failed { problem: unexpected(&reply, if_odd), current: None },
        }
    }
}

impl Done {
    /// Appends the outcome as JSON.
    fn write(&self, out: &mut Vec<u8>) {
        // Writing to memory does not fail.
        let _ = match self {
            Self::Value(json) => out.write_all(json),
            Self::Written { revision: Some(revision), shard } => {
                write!(out, "{{\"status\":204,\"revision\":{revision},\"shard\":{shard}}}")
            }
            Self::Written { revision: None, shard } => {
                write!(out, "{{\"status\":204,\"shard\":{shard}}}")
            }
            Self::Failed { problem, current } => {
                // A problem is an object; the revision goes in front of its members.
                let problem = problem.to_json();
                match current {
                    Some(revision) => write!(out, "{{\"revision\":{revision},"),
                    None => write!(out, "{{"),
                }
                .and_then(|()| out.write_all(&problem[1..]))
            }
        };
    }
}

/// 424 for an operation behind one whose outcome is unknown.
fn after_unknown(earlier: usize) -> Problem {
    let detail = format!("not tried: the outcome of ops[{earlier}], on the same key, is unknown");
    Problem::new(StatusCode::FAILED_DEPENDENCY, "earlier_outcome_unknown", "not tried", detail)
        .retryable()
}
