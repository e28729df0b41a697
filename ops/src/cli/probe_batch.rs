//! A batch, asked once: what is certain of each of its operations. The table of [`super::probe`]
//! holds for each by itself, and where there is no answer that can be understood as a whole, for
//! all of them.

use super::client::Request;
use super::failure::Members;
use super::item::Line;
use super::probe::{Probe, Told};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use flotilla_router::{Condition, Outcome, Revision};
use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

/// One operation of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// A read.
    Get,
    /// A key is set.
    Put(Bytes, Condition),
    /// A key is removed.
    Delete(Condition),
}

/// What one operation of a batch came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// A read: what was there, if anything.
    Read(Option<(Revision, Bytes)>),
    /// The key was set.
    Written(Revision),
    /// The key is not there.
    Deleted,
}

/// The answer to a batch.
#[derive(Deserialize)]
struct Results {
    results: Vec<Value>,
}

/// One result, as far as it is not a problem.
#[derive(Deserialize)]
struct Found {
    status: u16,
    revision: Option<u64>,
    value: Option<String>,
    value_b64: Option<String>,
}

impl Probe {
    /// Asks a batch; what is told of each operation, in their order. `at` says which endpoint is
    /// asked first.
    pub async fn batch(&self, at: usize, ops: &[(Bytes, Asked)]) -> Vec<Told<Done>> {
        let body =
            json!({ "ops": ops.iter().map(|(key, asked)| op(key, asked)).collect::<Vec<_>>() });
        let request =
            Request::new(Method::POST, format!("/v1/batch?{}", self.consistency)).json(&body);
        let understood = self.judged(at, &request, |whole| {
            let results = serde_json::from_slice::<Results>(&whole.body)
                .ok()
                .filter(|_| whole.status == StatusCode::OK)?
                .results;
            (results.len() == ops.len()).then_some(results)
        });
        match understood.await {
            Told::Answer(results) => {
                ops.iter().zip(results).map(|((_, asked), result)| told(asked, result)).collect()
            }
            Told::Refused(why) => ops.iter().map(|_| Told::Refused(why.clone())).collect(),
            Told::ConditionFailed(_) => {
                ops.iter().map(|_| Told::Unknown("a condition failed as a whole".into())).collect()
            }
            Told::Unknown(why) => ops.iter().map(|_| Told::Unknown(why.clone())).collect(),
        }
    }
}

/// An operation as it is sent.
fn op(key: &Bytes, asked: &Asked) -> Value {
    let mut members = json!({ "key_b64": STANDARD.encode(key) });
    let (name, condition) = match asked {
        Asked::Get => ("get", Condition::Always),
        Asked::Put(value, condition) => {
            members["value_b64"] = STANDARD.encode(value).into();
            ("put", *condition)
        }
        Asked::Delete(condition) => ("delete", *condition),
    };
    match condition {
        Condition::Always => {}
        Condition::Absent => members["if_none_match"] = "*".into(),
        Condition::Present => members["if_match"] = "*".into(),
        Condition::At(revision) => members["if_match"] = revision.0.into(),
    }
    json!({ name: members })
}

/// What is certain of an operation with this result.
fn told(asked: &Asked, result: Value) -> Told<Done> {
    let members: Option<Members> = serde_json::from_value(result.clone()).ok();
    let code = members.as_ref().and_then(|members| members.code.clone());
    let found: Option<Found> = serde_json::from_value(result).ok();
    let revision = found.as_ref().and_then(|found| found.revision).map(Revision);
    match (asked, found.as_ref().map(|found| found.status), code.as_deref()) {
        (Asked::Get, Some(200), None) => {
            let value = found.and_then(|Found { value, value_b64, .. }| {
                Line { value, value_b64, ..Line::default() }.value_bytes().ok()?
            });
            if let (Some(revision), Some(value)) = (revision, value) {
                return Told::Answer(Done::Read(Some((revision, value.into()))));
            }
        }
        (Asked::Get, Some(404), Some("no_such_key")) => return Told::Answer(Done::Read(None)),
        (Asked::Put(..), Some(204), None) => {
            if let Some(revision) = revision {
                return Told::Answer(Done::Written(revision));
            }
        }
        (Asked::Delete(_), Some(204), None) => return Told::Answer(Done::Deleted),
        (Asked::Put(..) | Asked::Delete(_), Some(412), Some("precondition_failed")) => {
            return Told::ConditionFailed(revision);
        }
        _ => {}
    }
    let why = code.unwrap_or_else(|| "not understood".into());
    match members.and_then(|members| members.outcome) {
        Some(Outcome::NotApplied) => Told::Refused(why),
        _ => Told::Unknown(why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_written_as_the_api_takes_them() {
        let key = Bytes::from_static(b"k");
        let value = Bytes::from_static(b"v");
        for (asked, expected) in [
            (Asked::Get, json!({"get": {"key_b64": "aw=="}})),
            (
                Asked::Put(value.clone(), Condition::Always),
                json!({"put": {"key_b64": "aw==", "value_b64": "dg=="}}),
            ),
            (
                Asked::Put(value, Condition::Absent),
                json!({"put": {"key_b64": "aw==", "value_b64": "dg==", "if_none_match": "*"}}),
            ),
            (
                Asked::Delete(Condition::Present),
                json!({"delete": {"key_b64": "aw==", "if_match": "*"}}),
            ),
            (
                Asked::Delete(Condition::At(Revision(7))),
                json!({"delete": {"key_b64": "aw==", "if_match": 7}}),
            ),
        ] {
            assert_eq!(op(&key, &asked), expected);
        }
    }

    #[test]
    fn what_is_not_certain_of_an_operation_is_unknown() {
        let put = Asked::Put("v".into(), Condition::Always);
        let no = |code: &str, outcome: &str| {
            let (status, retryable) = (503, true);
            json!({"status": status, "code": code, "outcome": outcome, "retryable": retryable})
        };
        let table = [
            (
                Asked::Get,
                json!({"status": 200, "value": "v", "revision": 3}),
                Told::Answer(Done::Read(Some((Revision(3), "v".into())))),
            ),
            (
                Asked::Get,
                json!({"status": 404, "code": "no_such_key", "outcome": "not_applied"}),
                Told::Answer(Done::Read(None)),
            ),
            (
                put.clone(),
                json!({"status": 204, "revision": 4, "shard": 2}),
                Told::Answer(Done::Written(Revision(4))),
            ),
            (
                Asked::Delete(Condition::Always),
                json!({"status": 204, "shard": 2}),
                Told::Answer(Done::Deleted),
            ),
            (
                put.clone(),
                json!({
                    "revision": 9, "status": 412, "code": "precondition_failed",
                    "outcome": "not_applied",
                }),
                Told::ConditionFailed(Some(Revision(9))),
            ),
            (put.clone(), no("no_leader", "not_applied"), Told::Refused("no_leader".into())),
            (
                put.clone(),
                no("unknown_outcome", "unknown"),
                Told::Unknown("unknown_outcome".into()),
            ),
            (put.clone(), json!({"status": 204}), Told::Unknown("not understood".into())),
            (put, json!("yes"), Told::Unknown("not understood".into())),
        ];
        for (asked, result, expected) in table {
            assert_eq!(told(&asked, result.clone()), expected, "{result}");
        }
    }
}
