//! Every error as people and programs get it: `application/problem+json` (RFC 9457), with stable
//! members.
//!
//! | member | |
//! |---|---|
//! | `type` | `urn:flotilla:problem:<code>` |
//! | `title`, `detail` | for people: what it is, and what to do |
//! | `status`, `code` | for programs; a code never changes its meaning |
//! | `outcome` | `not_applied` or `unknown`: whether it is certain that nothing was written |
//! | `retryable` | whether the same request may succeed later |
//! | `shard`, `epoch`, `leader` | what is concerned, where it is known |
//! | `limit`, `actual` | for what is too large or too many |
//! | `count` | keys that were deleted before a range delete stopped |
//!
//! [`Problem`] is what a handler returns instead of an answer; [`From<Refusal>`] says which status
//! each of a node's refusals is.

use flotilla_router::{Descriptor, NodeId, Outcome, Refusal, ShardId};
use http::StatusCode;
use http::header::HeaderValue;
use serde::Serialize;
use std::borrow::Cow;

/// Bytes of a detail that are shown; of a longer one, its beginning and its end.
const DETAIL_BYTES_MAX: usize = 1024;
/// The content type of a problem.
pub const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/problem+json");

/// An error on its way to the client. Small, since it is the error of every handler's result.
#[derive(Clone, Debug)]
pub struct Problem(Box<Members>);

/// What a problem is made of.
#[derive(Clone, Debug)]
pub struct Members {
    /// The HTTP status.
    pub status: StatusCode,
    /// The stable name.
    pub code: &'static str,
    /// What it is, always the same for a code.
    pub title: &'static str,
    /// What it is this time, and what to do.
    pub detail: String,
    /// What is known of the write.
    pub outcome: Outcome,
    /// Whether the same request may succeed later.
    pub retryable: bool,
    /// The shard concerned.
    pub shard: Option<ShardId>,
    /// The epoch concerned, `"membership.range"`.
    pub epoch: Option<String>,
    /// Who leads the shard, where that is the cure.
    pub leader: Option<NodeId>,
    /// The limit that was passed.
    pub limit: Option<u64>,
    /// By what.
    pub actual: Option<u64>,
    /// How many keys were deleted before a range delete stopped.
    pub count: Option<u64>,
    /// `Allow`, for 405.
    pub allow: Option<&'static str>,
    /// `ETag`, for 412: what is there instead.
    pub etag: Option<HeaderValue>,
    /// Who answered, where it was a replica.
    pub answered_by: Option<NodeId>,
    /// Whether the connection is to be closed, since the rest of the request is not wanted.
    pub close: bool,
}

impl Problem {
    /// A problem that is certain to have written nothing, and that the same request would meet
    /// again.
    pub fn new(
        status: StatusCode,
        code: &'static str,
        title: &'static str,
        detail: impl Into<String>,
    ) -> Self {
        Self(Box::new(Members {
            status,
            code,
            title,
            detail: detail.into(),
            outcome: Outcome::NotApplied,
            retryable: false,
            shard: None,
            epoch: None,
            leader: None,
            limit: None,
            actual: None,
            count: None,
            allow: None,
            etag: None,
            answered_by: None,
            close: false,
        }))
    }

    /// 400: which part is malformed, and what is allowed.
    pub fn malformed(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, "malformed request", detail)
    }

    /// 404: nothing is at this path.
    pub fn no_such_path() -> Self {
        let detail = "nothing is at this path; keys are at /v1/kv/{key}, ranges at /v1/kv, the \
                      cluster at /v1/admin/cluster";
        Self::new(StatusCode::NOT_FOUND, "no_such_path", "no such path", detail)
    }

    /// 405: the path takes other methods.
    pub fn method_not_allowed(allow: &'static str) -> Self {
        let mut problem = Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            "method not allowed",
            format!("this path takes {allow}"),
        );
        problem.0.allow = Some(allow);
        problem
    }

    /// 501: its place is kept free.
    pub fn not_implemented(what: &str) -> Self {
        let detail = format!("{what} is not built yet; its place in the API is kept free");
        Self::new(StatusCode::NOT_IMPLEMENTED, "not_implemented", "not implemented", detail)
    }

    /// 412: the condition did not hold.
    pub fn precondition_failed(detail: impl Into<String>, etag: Option<HeaderValue>) -> Self {
        let mut problem = Self::new(
            StatusCode::PRECONDITION_FAILED,
            "precondition_failed",
            "precondition failed",
            detail,
        );
        problem.0.etag = etag;
        problem
    }

    /// Something is larger than its limit.
    pub fn too_large(
        status: StatusCode,
        code: &'static str,
        what: &str,
        limit: usize,
        actual: Option<usize>,
    ) -> Self {
        let detail = match actual {
            Some(actual) => format!("{what} is limited to {limit} bytes; this one has {actual}"),
            None => format!("{what} is limited to {limit} bytes; this one has more"),
        };
        Self::new(status, code, "too large", detail).limit(limit as u64, actual.map(|n| n as u64))
    }

    /// 429: too much is in flight.
    pub fn overloaded(what: &str, limit: usize) -> Self {
        Refusal::Overloaded { what: what.to_owned(), limit: limit as u64 }.into()
    }

    /// 500, before anything was asked of the node.
    pub fn internal(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "internal error", detail)
    }

    /// The same, with the limit and what passed it.
    pub fn limit(mut self, limit: u64, actual: Option<u64>) -> Self {
        (self.0.limit, self.0.actual) = (Some(limit), actual);
        self
    }

    /// The same, about a shard.
    pub fn shard(mut self, shard: ShardId) -> Self {
        self.0.shard = Some(shard);
        self
    }

    /// The same, answered by a node's replica.
    pub fn answered_by(mut self, node: NodeId) -> Self {
        self.0.answered_by = Some(node);
        self
    }

    /// The same, with another status.
    pub fn status(mut self, status: StatusCode) -> Self {
        self.0.status = status;
        self
    }

    /// The same, which may succeed later.
    pub fn retryable(mut self) -> Self {
        self.0.retryable = true;
        self
    }

    /// The same, about an epoch.
    pub fn epoch(mut self, epoch: impl ToString) -> Self {
        self.0.epoch = Some(epoch.to_string());
        self
    }

    /// The same, after which the connection is closed.
    pub fn close(mut self) -> Self {
        self.0.close = true;
        self
    }

    /// The same, with what it is about in front of the detail: `ops[3].put.key: …`.
    pub fn within(mut self, place: &str) -> Self {
        self.0.detail = format!("{place}: {}", self.0.detail);
        self
    }

    /// The same, from an operation over many shards that had deleted `count` keys in `shards_done`
    /// shards before this happened.
    ///
    /// Once a shard was done it would be a lie to say that nothing was applied, so the outcome is
    /// unknown; repeating a range delete does no harm.
    pub fn after_deleting(mut self, count: u64, shards_done: u64) -> Self {
        self.0.count = Some(count);
        if shards_done > 0 {
            self.0.detail = format!(
                "stopped after {shards_done} shards and {count} deleted keys: {}; repeat to delete \
                 the rest",
                self.0.detail
            );
            self.0.status = StatusCode::GATEWAY_TIMEOUT;
            self.0.code = "partially_applied";
            self.0.title = "partially applied";
            self.0.outcome = Outcome::Unknown;
            self.0.retryable = true;
        }
        self
    }

    /// What it is made of.
    pub fn members(&self) -> &Members {
        &self.0
    }

    /// The body.
    pub fn to_json(&self) -> Vec<u8> {
        #[derive(Serialize)]
        struct Body<'a> {
            r#type: String,
            title: &'a str,
            status: u16,
            detail: &'a str,
            code: &'a str,
            outcome: Outcome,
            retryable: bool,
            #[serde(skip_serializing_if = "Option::is_none")]
            shard: Option<ShardId>,
            #[serde(skip_serializing_if = "Option::is_none")]
            epoch: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            leader: Option<NodeId>,
            #[serde(skip_serializing_if = "Option::is_none")]
            limit: Option<u64>,
            #[serde(skip_serializing_if = "Option::is_none")]
            actual: Option<u64>,
            #[serde(skip_serializing_if = "Option::is_none")]
            count: Option<u64>,
        }
        let m = &*self.0;
        let body = Body {
            r#type: format!("urn:flotilla:problem:{}", m.code),
            title: m.title,
            status: m.status.as_u16(),
            detail: &clipped(&m.detail),
            code: m.code,
            outcome: m.outcome,
            retryable: m.retryable,
            shard: m.shard,
            epoch: m.epoch.as_deref(),
            leader: m.leader,
            limit: m.limit,
            actual: m.actual,
            count: m.count,
        };
        serde_json::to_vec(&body).expect("a struct of strings and numbers is always JSON")
    }
}

/// What is shown of a detail: it may quote what the client sent, and that may be as long as a body.
fn clipped(detail: &str) -> Cow<'_, str> {
    if detail.len() <= DETAIL_BYTES_MAX {
        return detail.into();
    }
    let half = DETAIL_BYTES_MAX / 2;
    let (head, tail) =
        (detail.floor_char_boundary(half), detail.ceil_char_boundary(detail.len() - half));
    format!("{} … ({} bytes left out) … {}", &detail[..head], tail - head, &detail[tail..]).into()
}

/// The status and title of a refusal.
fn status_of(refusal: &Refusal) -> (StatusCode, &'static str) {
    match refusal {
        Refusal::NotLeader { .. } | Refusal::NotHosted { .. } | Refusal::WrongShard { .. } => {
            (StatusCode::SERVICE_UNAVAILABLE, "asked in the wrong place")
        }
        Refusal::NoLeader { .. } => (StatusCode::SERVICE_UNAVAILABLE, "no leader"),
        Refusal::TooStale { .. } => (StatusCode::SERVICE_UNAVAILABLE, "too stale"),
        Refusal::ShuttingDown => (StatusCode::SERVICE_UNAVAILABLE, "shutting down"),
        Refusal::Expired { .. } => (StatusCode::SERVICE_UNAVAILABLE, "deadline passed"),
        Refusal::ViewGivenUp { .. } => (StatusCode::SERVICE_UNAVAILABLE, "view given up"),
        Refusal::Overloaded { .. } => (StatusCode::TOO_MANY_REQUESTS, "too much in flight"),
        Refusal::OutcomeUnknown { .. } => (StatusCode::GATEWAY_TIMEOUT, "outcome unknown"),
        Refusal::DiskFull { .. } => (StatusCode::INSUFFICIENT_STORAGE, "disk nearly full"),
        Refusal::NotFound { .. } => (StatusCode::NOT_FOUND, "not found"),
        Refusal::Conflict { .. } => (StatusCode::CONFLICT, "conflict"),
        Refusal::Invalid { .. } => (StatusCode::BAD_REQUEST, "malformed request"),
        Refusal::Internal { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "internal error"),
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let (status, title) = status_of(&refusal);
        let mut problem = Self::new(status, refusal.code(), title, refusal.to_string());
        let m = &mut *problem.0;
        m.outcome = refusal.outcome();
        m.retryable = refusal.is_retryable();
        m.shard = refusal.shard();
        match refusal {
            Refusal::NotLeader { leader, .. } => m.leader = leader,
            Refusal::WrongShard { descriptors, .. } => {
                let first = descriptors.into_iter().next();
                m.epoch = first
                    .and_then(|bytes| Descriptor::decode(bytes.0).ok())
                    .map(|d| d.epoch.to_string());
            }
            Refusal::Overloaded { limit, .. } => m.limit = Some(limit),
            Refusal::DiskFull { free_bytes, reserve_bytes } => {
                (m.limit, m.actual) = (Some(reserve_bytes), Some(free_bytes))
            }
            _ => {}
        }
        problem
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_keep_what_is_certain() {
        let shard = ShardId(3);
        let internal = |outcome| Refusal::Internal { why: "broken".into(), outcome };
        let table = [
            (Refusal::NotLeader { shard, leader: Some(NodeId(2)) }, 503, "not_applied", true),
            (Refusal::NotHosted { shard }, 503, "not_applied", true),
            (Refusal::WrongShard { shard, descriptors: vec![] }, 503, "not_applied", true),
            (Refusal::NoLeader { shard }, 503, "not_applied", true),
            (Refusal::Overloaded { what: "x".into(), limit: 5 }, 429, "not_applied", true),
            (Refusal::TooStale { shard }, 503, "not_applied", true),
            (Refusal::ShuttingDown, 503, "not_applied", true),
            (Refusal::Expired { shard }, 503, "not_applied", true),
            (Refusal::ViewGivenUp { shard }, 503, "not_applied", true),
            (Refusal::OutcomeUnknown { shard }, 504, "unknown", false),
            (Refusal::DiskFull { free_bytes: 1, reserve_bytes: 2 }, 507, "not_applied", true),
            (Refusal::NotFound { what: "node 9".into() }, 404, "not_applied", false),
            (Refusal::Conflict { why: "busy".into() }, 409, "not_applied", false),
            (Refusal::Invalid { why: "no".into() }, 400, "not_applied", false),
            (internal(Outcome::Unknown), 500, "unknown", false),
            (internal(Outcome::NotApplied), 500, "not_applied", false),
        ];
        for (refusal, status, outcome, retryable) in table {
            let code = refusal.code();
            let json: serde_json::Value =
                serde_json::from_slice(&Problem::from(refusal).to_json()).unwrap();
            assert_eq!(json["status"], status, "{json}");
            assert_eq!(json["outcome"], outcome, "{json}");
            assert_eq!(json["retryable"], retryable, "{json}");
            assert_eq!(json["code"], code, "{json}");
            assert_eq!(json["type"], format!("urn:flotilla:problem:{code}"), "{json}");
        }
    }

    #[test]
    fn a_detail_that_quotes_a_whole_body_is_cut() {
        let quoted = "ä".repeat(1 << 20);
        let json = Problem::malformed(
            "malformed_json",
            format!("unknown field `{quoted}`, expected `ops`"),
        )
        .to_json();
        assert!(json.len() < 2048, "{} bytes", json.len());
        let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
        let detail = json["detail"].as_str().unwrap();
        assert!(
            detail.starts_with("unknown field `ää") && detail.ends_with("ä`, expected `ops`"),
            "{detail}"
        );
        assert!(detail.contains("bytes left out"));
    }

    #[test]
    fn a_range_delete_that_stopped_midway_claims_neither() {
        let refusal = Refusal::NoLeader { shard: ShardId(4) };
        let before = Problem::from(refusal.clone()).after_deleting(0, 0);
        assert_eq!(before.members().outcome, Outcome::NotApplied);
        assert_eq!(before.members().status, StatusCode::SERVICE_UNAVAILABLE);
        let midway = Problem::from(refusal).after_deleting(7, 2);
        assert_eq!(midway.members().outcome, Outcome::Unknown);
        assert_eq!(midway.members().status, StatusCode::GATEWAY_TIMEOUT);
        assert_eq!(midway.members().count, Some(7));
    }
}
