//! What stands in the body of a batch: read no further than a batch may go, and checked before
//! anything is done.
//!
//! A body of the greatest size holds some 800,000 of the shortest operations. They are counted
//! while they are read, so that a batch that has too many costs no more than one that has just
//! enough.

use super::etag;
use super::path::check_key;
use crate::limits::Limits;
use crate::problem::Problem;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use flotilla_router::{Command, Condition, Op, Revision};
use http::StatusCode;
use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::cell::Cell;
use std::fmt;

/// The members of the body.
#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "lowercase")]
enum Member {
    Ops,
}

/// The body, of which no more operations are read than a batch may have.
struct Batch<'a> {
    ops_max: usize,
    /// Set where there are more.
    too_long: &'a Cell<bool>,
}

impl<'de> DeserializeSeed<'de> for Batch<'_> {
    type Value = Vec<Written>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<Written>, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Batch<'_> {
    type Value = Vec<Written>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with the member \"ops\"")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut members: M) -> Result<Vec<Written>, M::Error> {
        let mut ops = None;
        while let Some(Member::Ops) = members.next_key()? {
            if ops.is_some() {
                return Err(M::Error::duplicate_field("ops"));
            }
            ops = Some(members.next_value_seed(Ops(&self))?);
        }
        ops.ok_or_else(|| M::Error::missing_field("ops"))
    }
}

/// The list of operations.
struct Ops<'a>(&'a Batch<'a>);

impl<'de> DeserializeSeed<'de> for Ops<'_> {
    type Value = Vec<Written>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<Written>, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Ops<'_> {
    type Value = Vec<Written>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of operations")
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut list: S) -> Result<Vec<Written>, S::Error> {
        let mut ops = Vec::new();
        while let Some(op) = list.next_element()? {
            if ops.len() == self.0.ops_max {
                self.0.too_long.set(true);
                return Err(S::Error::custom("too many operations"));
            }
            ops.push(op);
        }
        Ok(ops)
    }
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
pub(super) enum Planned {
    /// A read of this key.
    Get(Bytes),
    /// A write.
    Write(Command),
}

impl Planned {
    /// The key that it is about.
    pub(super) fn key(&self) -> &Bytes {
        match self {
            Self::Get(key) => key,
            Self::Write(command) => command.routing_key(),
        }
    }
}

/// Reads and checks a whole batch.
pub(super) fn plan(body: &[u8], limits: &Limits) -> Result<Vec<Planned>, Problem> {
    let too_long = Cell::new(false);
    let mut json = serde_json::Deserializer::from_slice(body);
    let read = Batch { ops_max: limits.batch_ops_max, too_long: &too_long }.deserialize(&mut json);
    let ops = read.and_then(|ops| json.end().map(|()| ops)).map_err(|error| {
        if !too_long.get() {
            return Problem::malformed("malformed_json", format!("malformed JSON: {error}"));
        }
        let limit = limits.batch_ops_max;
        let detail = format!("a batch has at most {limit} ops; this one has more");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "batch_too_long", "too large", detail)
            .limit(limit as u64, None)
    })?;
    let planned = ops.into_iter().enumerate().map(|(index, op)| {
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
                Ok(Planned::Write(Command::new(
                    Op::Delete { key },
                    condition(delete.if_match, None)?,
                )))
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
                Ok(Planned::Write(Command::new(
                    Op::Put { key, value },
                    condition(put.if_match, put.if_none_match)?,
                )))
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
        (None, Some(base64)) => STANDARD.decode(base64).map(Bytes::from).map_err(|_| {
            Problem::malformed(
                "bad_base64",
                format!("{name}_b64 is no base64 (standard alphabet, with padding)"),
            )
        }),
        _ => Err(Problem::malformed(
            "bad_operation",
            format!("needs exactly one of {name} and {name}_b64"),
        )),
    }
}

fn condition(if_match: Option<Tag>, if_none_match: Option<String>) -> Result<Condition, Problem> {
    match (if_match, if_none_match) {
        (None, None) => Ok(Condition::Always),
        (Some(Tag::Number(revision)), None) => Ok(Condition::At(Revision(revision))),
        (Some(Tag::Text(text)), None) if text == "*" => Ok(Condition::Present),
        (Some(Tag::Text(text)), None) => {
            let digits =
                text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(&text);
            etag::revision(digits).map(Condition::At).ok_or_else(|| {
                Problem::malformed(
                    "bad_etag",
                    "if_match: allowed is a revision (5, \"5\", or an ETag as it came) or \"*\"",
                )
            })
        }
        (None, Some(text)) if text == "*" => Ok(Condition::Absent),
        (None, Some(_)) => {
            Err(Problem::malformed("bad_condition", "if_none_match: allowed is \"*\" alone"))
        }
        (Some(_), Some(_)) => Err(Problem::malformed(
            "contradiction",
            "if_match and if_none_match exclude each other",
        )),
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
            (
                r#"{"ops":[{"patch":{"key":"a"}}]}"#,
                400,
                "unknown variant `patch`, expected one of `put`, `get`, `delete`",
            ),
            (r#"{"ops":[{"put":{"key":"a","value":"b","ttl":3}}]}"#, 400, "unknown field `ttl`"),
            (
                r#"{"ops":[{"get":{"key":"a"}},{"put":{"key":"a"}}]}"#,
                400,
                "ops[1].put: needs exactly one of value and value_b64",
            ),
            (
                r#"{"ops":[{"put":{"key":"a","value":5}}]}"#,
                400,
                "invalid type: integer `5`, expected a string",
            ),
            (r#"{"ops":[{"get":{}}]}"#, 400, "ops[0].get: needs exactly one of key and key_b64"),
            (r#"{"ops":[{"get":{"key":"a","key_b64":"YQ=="}}]}"#, 400, "exactly one of key"),
            (r#"{"ops":[{"get":{"key":""}}]}"#, 400, "ops[0].get: a key has 1 to 4096 bytes"),
            (r#"{"ops":[{"get":{"key_b64":"?"}}]}"#, 400, "key_b64 is no base64"),
            (r#"{"ops":[{"delete":{"key":"a","if_match":"x"}}]}"#, 400, "ops[0].delete: if_match"),
            (
                r#"{"ops":[{"put":{"key":"a","value":"","if_match":1,"if_none_match":"*"}}]}"#,
                400,
                "exclude each other",
            ),
            (
                r#"{"ops":[{"put":{"key":"a","value":"","if_none_match":"1"}}]}"#,
                400,
                "if_none_match: allowed is \"*\"",
            ),
            (long.as_str(), 413, "ops[0].get: a key is limited to 4096 bytes; this one has 4097"),
        ] {
            let problem = plan(body.as_bytes(), &Limits::default()).map(|_| ()).expect_err(body);
            assert_eq!(problem.members().status, status, "{body}");
            assert!(
                problem.members().detail.contains(expected),
                "{body}: {}",
                problem.members().detail
            );
        }
        for (body, expected) in [
            (r#"{"ops":[],"ops":[]}"#, "duplicate field `ops`"),
            ("{}", "missing field `ops`"),
            ("[]", "expected an object with the member \"ops\""),
            (r#"{"ops":{}}"#, "expected a list of operations"),
            (r#"{"ops":[]} x"#, "trailing characters"),
        ] {
            let problem = plan(body.as_bytes(), &Limits::default()).map(|_| ()).expect_err(body);
            assert!(
                problem.members().detail.contains(expected),
                "{body}: {}",
                problem.members().detail
            );
        }
    }

    /// What stands behind the first operation too many is not even looked at: it may be much, and
    /// it may be no JSON.
    #[test]
    fn a_batch_is_read_no_further_than_its_limit() {
        let ops = |n| vec![r#"{"get":{"key":"a"}}"#; n].join(",");
        let whole = format!(r#"{{"ops":[{}]}}"#, ops(1000));
        assert_eq!(
            plan(whole.as_bytes(), &Limits::default()).map(|planned| planned.len()).unwrap(),
            1000
        );
        let more = format!(r#"{{"ops":[{},and so on"#, ops(1001));
        let problem = plan(more.as_bytes(), &Limits::default()).map(|_| ()).unwrap_err();
        assert_eq!((problem.members().status.as_u16(), problem.members().limit), (413, Some(1000)));
    }

    #[test]
    fn conditions_may_be_numbers_or_etags() {
        for (if_match, expected) in
            [("5", Revision(5)), ("\"5\"", Revision(5)), ("\"\\\"5\\\"\"", Revision(5))]
        {
            let body = format!(r#"{{"ops":[{{"delete":{{"key":"a","if_match":{if_match}}}}}]}}"#);
            let planned = plan(body.as_bytes(), &Limits::default()).unwrap();
            let Planned::Write(command) = &planned[0] else { panic!("a get") };
            assert_eq!(command.condition(), Condition::At(expected));
        }
    }
}
