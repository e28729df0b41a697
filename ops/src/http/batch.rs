//! `POST /v1/batch`: many operations in one request, each with its own outcome. Not atomic.
//!
//! All operations are handed to the node at once, so that those of one shard share log entries; those on the **same key** one after
//! the other, so that they take effect in the order in which they stand. Where the outcome of one of them is unknown, the later ones
//! on its key are not tried (424): they might overtake it.
//!
//! ```text
//! {"ops":[{"put":{"key":"a","value":"1","if_none_match":"*"}}, {"get":{"key_b64":"/w=="}}, {"delete":{"key":"b","if_match":5}}]}
//! {"results":[{"status":204,"revision":7,"shard":2}, {"status":200,"value":"1","revision":7,"shard":2}, {"status":404,"code":…}]}
//! ```
//!
//! A batch that is malformed anywhere is refused whole, before anything is done.

use super::answer;
use super::body::{self, Body, Wanted};
use super::etag;
use super::head::check_json;
use super::key::{condition_failed, no_such_key, unexpected};
use super::path::check_key;
use super::query::Query;
use super::scan::write_member;
use super::service::{App, only};
use crate::limits::Limits;
use crate::problem::Problem;
use crate::traits::{Admin, Inspect, Kv};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use flotilla_router::{Answer, Ask, Command, Condition, Consistency, Op, Outcome, Revision, ShardId};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::header::HeaderValue;
use http::request::Parts;
use http::{Method, Response, StatusCode};
use hyper::body::Incoming;
use serde::Deserialize;
use std::collections::HashMap;
use std::io::Write;

/// The body.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Batch {
    ops: Vec<Written>,
}

/// One operation, as it is written.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
enum Written {
    Put(Put),
    Get(Get),
    Delete(Delete),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Put {
    key: Option<String>,
    key_b64: Option<String>,
    value: Option<String>,
    value_b64: Option<String>,
    if_match: Option<Tag>,
    if_none_match: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Get {
    key: Option<String>,
    key_b64: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Delete {
    key: Option<String>,
    key_b64: Option<String>,
    if_match: Option<Tag>,
}

/// A revision: a number as in results, or text as in an ETag, or `"*"`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Tag {
    Number(u64),
    Text(String),
}

/// One operation, checked.
enum Planned {
    Get(Bytes),
    Write(Command),
}

impl Planned {
    fn key(&self) -> &Bytes {
        match self {
            Self::Get(key) => key,
            Self::Write(command) => command.routing_key(),
        }
    }
}

/// What one operation came to.
enum Done {
    Value { value: Bytes, revision: Revision, shard: ShardId },
    Written { revision: Option<Revision>, shard: ShardId },
    Failed { problem: Problem, current: Option<Revision> },
}

impl<K: Kv, A: Admin, I: Inspect> App<K, A, I> {
    pub(super) async fn batch(&self, parts: &Parts, body: Incoming) -> Result<Response<Body>, Problem> {
        only(parts, &Method::POST, "POST")?;
        let consistency =
            Query::parse(parts.uri.query(), &["consistency", "max_staleness"])?.consistency(self.kv.default_consistency())?;
        check_json(parts)?;
        let wanted = Wanted { what: "a batch", code: "batch_too_large", bytes_max: self.limits.batch_bytes_max };
        let (body, _held) = body::read(body, &wanted, &self.limits, &self.budget).await?;
        let planned = plan(&body, &self.limits)?;
        drop(body);

        let mut by_key: HashMap<&Bytes, Vec<usize>> = HashMap::with_capacity(planned.len());
        for (index, op) in planned.iter().enumerate() {
            by_key.entry(op.key()).or_default().push(index);
        }
        let mut done: Vec<Option<Done>> = planned.iter().map(|_| None).collect();
        let mut chains: FuturesUnordered<_> =
            by_key.into_values().map(|indexes| self.chain(&planned, indexes, consistency)).collect();
        while let Some(outcomes) = chains.next().await {
            for (index, outcome) in outcomes {
                done[index] = Some(outcome);
            }
        }
        let mut out = Vec::with_capacity(16 + done.len() * 48);
        out.extend_from_slice(b"{\"results\":[");
        for (index, outcome) in done.iter().flatten().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            outcome.write(&mut out);
        }
        out.extend_from_slice(b"]}");
        Ok(answer::ok(HeaderValue::from_static("application/json"), Body::Full(out.into())))
    }

    /// The operations on one key, one after the other.
    async fn chain(&self, planned: &[Planned], indexes: Vec<usize>, consistency: Consistency) -> Vec<(usize, Done)> {
        let mut outcomes = Vec::with_capacity(indexes.len());
        let mut unknown = None;
        for index in indexes {
            let outcome = match unknown {
                Some(earlier) => Done::Failed { problem: after_unknown(earlier), current: None },
                None => self.one(&planned[index], consistency).await,
            };
            if matches!(&outcome, Done::Failed { problem, .. } if problem.members().outcome == Outcome::Unknown) {
                unknown = Some(index);
            }
            outcomes.push((index, outcome));
        }
        outcomes
    }

    async fn one(&self, op: &Planned, consistency: Consistency) -> Done {
        let (ask, if_odd) = match op {
            Planned::Get(key) => (Ask::Get { key: key.clone(), consistency }, Outcome::NotApplied),
            Planned::Write(command) => (Ask::Write(command.clone()), Outcome::Unknown),
        };
        let reply = match self.ask(ask).await {
            Ok(reply) => reply,
            Err(problem) => return Done::Failed { problem, current: None },
        };
        let shard = reply.shard;
        match reply.answer {
            Answer::Value { value, revision } => Done::Value { value, revision, shard },
            Answer::Written { revision } => Done::Written { revision: Some(revision), shard },
            Answer::Deleted => Done::Written { revision: None, shard },
            Answer::Missing => Done::Failed { problem: no_such_key(&reply), current: None },
            Answer::ConditionFailed { current } => Done::Failed { problem: condition_failed(&reply, current), current },
            _ => Done::Failed { problem: unexpected(&reply, if_odd), current: None },
        }
    }
}

impl Done {
    /// Appends the outcome as JSON.
    fn write(&self, out: &mut Vec<u8>) {
        // Writing to memory does not fail.
        let _ = match self {
            Self::Value { value, revision, shard } => {
                out.extend_from_slice(b"{\"status\":200,");
                write_member(out, "value", value);
                write!(out, ",\"revision\":{revision},\"shard\":{shard}}}")
            }
            Self::Written { revision: Some(revision), shard } => {
                write!(out, "{{\"status\":204,\"revision\":{revision},\"shard\":{shard}}}")
            }
            Self::Written { revision: None, shard } => write!(out, "{{\"status\":204,\"shard\":{shard}}}"),
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
    Problem::new(StatusCode::FAILED_DEPENDENCY, "earlier_outcome_unknown", "not tried", detail).retryable()
}

/// Reads and checks a whole batch.
fn plan(body: &[u8], limits: &Limits) -> Result<Vec<Planned>, Problem> {
    let batch: Batch =
        serde_json::from_slice(body).map_err(|error| Problem::malformed("malformed_json", format!("malformed JSON: {error}")))?;
    if batch.ops.len() > limits.batch_ops_max {
        let (limit, actual) = (limits.batch_ops_max, batch.ops.len());
        let detail = format!("a batch has at most {limit} ops; this one has {actual}");
        let problem = Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "batch_too_long", "too large", detail);
        return Err(problem.limit(limit as u64, Some(actual as u64)));
    }
    let planned = batch.ops.into_iter().enumerate().map(|(index, op)| {
        let name = match &op {
            Written::Put(_) => "put",
            Written::Get(_) => "get",
            Written::Delete(_) => "delete",
        };
        op.check(limits).map_err(|problem| problem.within(&format!("ops[{index}].{name}")))
    });
    planned.collect()
}

impl Written {
    fn check(self, limits: &Limits) -> Result<Planned, Problem> {
        match self {
            Self::Get(get) => Ok(Planned::Get(key(get.key, get.key_b64, limits)?)),
            Self::Delete(delete) => {
                let key = key(delete.key, delete.key_b64, limits)?;
                Ok(Planned::Write(Command { op: Op::Delete { key }, condition: condition(delete.if_match, None)? }))
            }
            Self::Put(put) => {
                let key = key(put.key, put.key_b64, limits)?;
                let value = either("value", put.value, put.value_b64)?;
                if value.len() > limits.value_bytes_max {
                    let status = StatusCode::PAYLOAD_TOO_LARGE;
                    return Err(Problem::too_large(
                        status,
                        "value_too_large",
                        "a value",
                        limits.value_bytes_max,
                        Some(value.len()),
                    ));
                }
                Ok(Planned::Write(Command { op: Op::Put { key, value }, condition: condition(put.if_match, put.if_none_match)? }))
            }
        }
    }
}

fn key(text: Option<String>, base64: Option<String>, limits: &Limits) -> Result<Bytes, Problem> {
    let key = either("key", text, base64)?;
    // In a path such a key is a long URI; here it is long content.
    check_key(&key, limits).map_err(|problem| match problem.members().status {
        StatusCode::URI_TOO_LONG => problem.status(StatusCode::PAYLOAD_TOO_LARGE),
        _ => problem,
    })?;
    Ok(key)
}

/// The bytes that stand as text, or as base64 under a name of their own.
fn either(name: &str, text: Option<String>, base64: Option<String>) -> Result<Bytes, Problem> {
    match (text, base64) {
        (Some(text), None) => Ok(text.into()),
        (None, Some(base64)) => STANDARD
            .decode(base64)
            .map(Bytes::from)
            .map_err(|_| Problem::malformed("bad_base64", format!("{name}_b64 is no base64 (standard alphabet, with padding)"))),
        _ => Err(Problem::malformed("bad_operation", format!("needs exactly one of {name} and {name}_b64"))),
    }
}

fn condition(if_match: Option<Tag>, if_none_match: Option<String>) -> Result<Condition, Problem> {
    match (if_match, if_none_match) {
        (None, None) => Ok(Condition::Always),
        (Some(Tag::Number(revision)), None) => Ok(Condition::At(Revision(revision))),
        (Some(Tag::Text(text)), None) if text == "*" => Ok(Condition::Present),
        (Some(Tag::Text(text)), None) => {
            let digits = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(&text);
            etag::revision(digits).map(Condition::At).ok_or_else(|| {
                Problem::malformed("bad_etag", "if_match: allowed is a revision (5, \"5\", or an ETag as it came) or \"*\"")
            })
        }
        (None, Some(text)) if text == "*" => Ok(Condition::Absent),
        (None, Some(_)) => Err(Problem::malformed("bad_condition", "if_none_match: allowed is \"*\" alone")),
        (Some(_), Some(_)) => Err(Problem::malformed("contradiction", "if_match and if_none_match exclude each other")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_in_a_batch_is_named() {
        let long = format!(r#"{{"ops":[{{"get":{{"key":"{}"}}}}]}}"#, "a".repeat(4097));
        for (body, status, expected) in [
            ("", 400, "malformed JSON: EOF"),
            ("{\"ops\":[}", 400, "line 1 column 9"),
            (r#"{"ops":[],"atomic":true}"#, 400, "unknown field `atomic`"),
            (r#"{"ops":[{"patch":{"key":"a"}}]}"#, 400, "unknown variant `patch`, expected one of `put`, `get`, `delete`"),
            (r#"{"ops":[{"put":{"key":"a","value":"b","ttl":3}}]}"#, 400, "unknown field `ttl`"),
            (r#"{"ops":[{"get":{"key":"a"}},{"put":{"key":"a"}}]}"#, 400, "ops[1].put: needs exactly one of value and value_b64"),
            (r#"{"ops":[{"put":{"key":"a","value":5}}]}"#, 400, "invalid type: integer `5`, expected a string"),
            (r#"{"ops":[{"get":{}}]}"#, 400, "ops[0].get: needs exactly one of key and key_b64"),
            (r#"{"ops":[{"get":{"key":"a","key_b64":"YQ=="}}]}"#, 400, "exactly one of key"),
            (r#"{"ops":[{"get":{"key":""}}]}"#, 400, "ops[0].get: a key has 1 to 4096 bytes"),
            (r#"{"ops":[{"get":{"key_b64":"?"}}]}"#, 400, "key_b64 is no base64"),
            (r#"{"ops":[{"delete":{"key":"a","if_match":"x"}}]}"#, 400, "ops[0].delete: if_match"),
            (r#"{"ops":[{"put":{"key":"a","value":"","if_match":1,"if_none_match":"*"}}]}"#, 400, "exclude each other"),
            (r#"{"ops":[{"put":{"key":"a","value":"","if_none_match":"1"}}]}"#, 400, "if_none_match: allowed is \"*\""),
            (long.as_str(), 413, "ops[0].get: a key is limited to 4096 bytes; this one has 4097"),
        ] {
            let problem = plan(body.as_bytes(), &Limits::default()).map(|_| ()).expect_err(body);
            assert_eq!(problem.members().status, status, "{body}");
            assert!(problem.members().detail.contains(expected), "{body}: {}", problem.members().detail);
        }
        let many = format!(r#"{{"ops":[{}]}}"#, vec![r#"{"get":{"key":"a"}}"#; 1001].join(","));
        let problem = plan(many.as_bytes(), &Limits::default()).map(|_| ()).unwrap_err();
        assert_eq!((problem.members().limit, problem.members().actual), (Some(1000), Some(1001)));
    }

    #[test]
    fn conditions_may_be_numbers_or_etags() {
        for (if_match, expected) in [("5", Revision(5)), ("\"5\"", Revision(5)), ("\"\\\"5\\\"\"", Revision(5))] {
            let body = format!(r#"{{"ops":[{{"delete":{{"key":"a","if_match":{if_match}}}}}]}}"#);
            let planned = plan(body.as_bytes(), &Limits::default()).unwrap();
            let Planned::Write(command) = &planned[0] else { panic!("a get") };
            assert_eq!(command.condition, Condition::At(expected));
        }
    }
}
