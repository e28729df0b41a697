//! From what a handler says to a response: headers, and problems.
//!
//! Headers that are the same for every answer are constants; ids below [`IDS`] are made once and
//! then shared, since they stand in every answer about a key.

use super::body::Body;
use super::date;
use crate::problem::{self, Problem};
use flotilla_router::{NodeId, Reply, ShardId};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Response, StatusCode};
use std::sync::LazyLock;

/// Which shard a key belongs to.
pub(super) static SHARD: HeaderName = HeaderName::from_static("flotilla-shard");
/// Who answered.
pub(super) static NODE: HeaderName = HeaderName::from_static("flotilla-node");
/// The applied index that a stale read saw.
static APPLIED: HeaderName = HeaderName::from_static("flotilla-applied");
/// How old a stale read's data is at most, in seconds with three decimals; absent where nobody
/// knows.
static AGE: HeaderName = HeaderName::from_static("flotilla-age");
/// What a scan promises.
pub(super) static CONSISTENCY: HeaderName = HeaderName::from_static("flotilla-consistency");

/// How many ids are kept as header values.
const IDS: usize = 4096;
static ID_VALUES: LazyLock<Vec<HeaderValue>> = LazyLock::new(|| {
    // Leaked on purpose, once: a static string is shared without counting who holds it.
    (0..IDS)
        .map(|id| HeaderValue::from_static(Box::leak(id.to_string().into_boxed_str())))
        .collect()
});

/// An id as a header's value.
fn id_value(id: u64) -> HeaderValue {
    usize::try_from(id)
        .ok()
        .and_then(|index| ID_VALUES.get(index))
        .cloned()
        .unwrap_or_else(|| HeaderValue::from(id))
}

/// As many fields as an answer about a key has; their map need not grow.
const FIELDS: usize = 8;

fn new(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.headers_mut() = HeaderMap::with_capacity(FIELDS);
    response
}

/// A response without headers.
pub(super) fn empty(status: StatusCode) -> Response<Body> {
    let mut response = new(Body::Empty);
    *response.status_mut() = status;
    response
}

/// 200 with a body.
pub(super) fn ok(content_type: HeaderValue, body: Body) -> Response<Body> {
    let mut response = new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}

/// 200 with JSON.
pub(super) fn json<T: serde::Serialize>(value: &T) -> Result<Response<Body>, Problem> {
    match serde_json::to_vec(value) {
        Ok(bytes) => Ok(ok(HeaderValue::from_static("application/json"), Body::Full(bytes.into()))),
        Err(error) => Err(Problem::internal(format!("encode the answer: {error}"))),
    }
}

/// 200 with text.
pub(super) fn text(text: String) -> Response<Body> {
    ok(HeaderValue::from_static("text/plain; charset=utf-8"), Body::Full(text.into()))
}

/// Says which shard answered, and whose replica.
pub(super) fn answered_by(response: &mut Response<Body>, reply: &Reply) {
    stamp(response, Some(reply.shard), reply.node);
    if let Some(staleness) = reply.staleness {
        let headers = response.headers_mut();
        headers.insert(&APPLIED, HeaderValue::from(staleness.applied));
        if let Some(age) = staleness.age {
            // A bound is rounded up.
            let millis = age.as_micros().div_ceil(1000);
            let seconds = format!("{}.{:03}", millis / 1000, millis % 1000);
            headers
                .insert(&AGE, HeaderValue::try_from(seconds).expect("a number is a header value"));
        }
    }
}

/// Says which shard answered, where one is known, and who.
pub(super) fn stamp(response: &mut Response<Body>, shard: Option<ShardId>, node: NodeId) {
    let headers = response.headers_mut();
    if let Some(shard) = shard {
        headers.insert(&SHARD, id_value(shard.0));
    }
    headers.insert(&NODE, id_value(node.0));
}

/// The response that a problem is; `here` answers where no other node did.
pub(super) fn problem(problem: &Problem, here: NodeId) -> Response<Body> {
    let members = problem.members();
    let mut response = ok(problem::CONTENT_TYPE, Body::Full(problem.to_json().into()));
    *response.status_mut() = members.status;
    stamp(&mut response, members.shard, members.answered_by.unwrap_or(here));
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Some(allow) = members.allow {
        headers.insert(header::ALLOW, HeaderValue::from_static(allow));
    }
    if let Some(etag) = &members.etag {
        headers.insert(header::ETAG, etag.clone());
    }
    if matches!(members.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// What every answer has: when it was made, and that nobody keeps it. HEAD gets the same headers as
/// GET, the length among them, and no body.
pub(super) fn finish(response: &mut Response<Body>, method: &Method) {
    if method == Method::HEAD {
        if let Body::Full(piece) = response.body() {
            let length = HeaderValue::from(piece.bytes.len());
            response.headers_mut().insert(header::CONTENT_LENGTH, length);
        }
        *response.body_mut() = Body::Empty;
    }
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::DATE, date::now());
}
