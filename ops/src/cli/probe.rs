//! One request to one node, and exactly what is certain of it: what a checker needs, and a client
//! that wants to succeed does not.
//!
//! | what happened | told |
//! |---|---|
//! | no connection to any endpoint: nothing was sent | refused |
//! | the answer says what was done, or what was read | that |
//! | 412 | the condition failed, and the revision there is |
//! | a problem with `outcome: not_applied` | refused |
//! | everything else: connection lost, no answer in time, an answer that can't be understood | unknown |
//!
//! Nothing is ever sent twice, reads neither. Only where no connection came about is the next
//! endpoint asked. Below this, the HTTP library sends a request anew where a kept connection was
//! closed before any of it had left: that is no second time.

use super::Endpoint;
use super::client::{Request, build, cause, connector};
use super::failure::{Failure, Members};
use super::item::Line;
use super::key;
use crate::admin::{RangeView, ShardView, bytes_of};
use bytes::Bytes;
use flotilla_router::range::successor_of_key;
use flotilla_router::{Condition, KeyRange, Outcome, Revision};
use http::header::{HeaderName, IF_MATCH, IF_NONE_MATCH};
use http::{Method, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;
use std::time::Duration;

/// What is certain of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told<T> {
    /// It was answered.
    Answer(T),
    /// Its condition did not hold; the revision that the key is at, if it is there.
    ConditionFailed(Option<Revision>),
    /// It had no effect, and will have none. Why.
    Refused(String),
    /// Nobody knows. Why.
    Unknown(String),
}

/// What a part of a scan showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The part of the range that was looked at.
    pub range: KeyRange,
    /// What was there, in order.
    pub items: Vec<(Bytes, Revision, Bytes)>,
}

/// Asks nodes.
pub struct Probe {
    http: legacy::Client<HttpConnector, Full<Bytes>>,
    endpoints: Vec<Endpoint>,
    timeout: Duration,
    /// What stands behind `?` in reads.
    pub(super) consistency: &'static str,
}

/// An answer, whole.
pub(super) struct Whole {
    pub(super) status: StatusCode,
    revision: Option<Revision>,
    /// How old it may be, where it says so.
    age: Option<Duration>,
    pub(super) body: Bytes,
}

/// How a key is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// As this probe reads everything.
    Usual,
    /// By the leader's lease.
    Lease,
    /// From any replica, no older than so many milliseconds where that is said.
    Stale(Option<u64>),
}

/// A page of a scan.
#[derive(Deserialize)]
struct Page {
    items: Vec<Line>,
    cursor: Option<String>,
}

/// A page of the list of shards.
#[derive(Deserialize)]
struct Shards {
    shards: Vec<ShardView>,
    cursor: Option<String>,
}

impl Probe {
    /// Asks these endpoints, of which there is at least one, and waits so long for an answer. Reads
    /// by the leader's lease, or by a quorum.
    pub fn new(endpoints: Vec<Endpoint>, timeout: Duration, lease: bool) -> Self {
        let http = legacy::Client::builder(TokioExecutor::new()).build(connector(timeout));
        Self {
            http,
            endpoints,
            timeout,
            consistency: if lease { "consistency=lease" } else { "consistency=linearizable" },
        }
    }

    /// How many endpoints there are.
    pub fn endpoints(&self) -> usize {
        self.endpoints.len()
    }

    /// Reads a key. `at` says which endpoint is asked first, counted round and round.
    pub async fn get(&self, at: usize, key: &[u8]) -> Told<Option<(Revision, Bytes)>> {
        match self.get_as(at, key, Freshness::Usual).await {
            Told::Answer((seen, _)) => Told::Answer(seen),
            Told::ConditionFailed(current) => Told::ConditionFailed(current),
            Told::Refused(why) => Told::Refused(why),
            Told::Unknown(why) => Told::Unknown(why),
        }
    }

    /// Reads a key in this way, and says how old the answer may be, where it says so itself.
    pub async fn get_as(
        &self,
        at: usize,
        key: &[u8],
        freshness: Freshness,
    ) -> Told<(Option<(Revision, Bytes)>, Option<Duration>)> {
        let how = match freshness {
            Freshness::Usual => self.consistency.to_owned(),
            Freshness::Lease => "consistency=lease".into(),
            Freshness::Stale(None) => "consistency=stale".into(),
            Freshness::Stale(Some(millis)) => format!("consistency=stale&max_staleness={millis}ms"),
        };
        let request = Request::get(format!("{}?{how}", path(key)));
        self.judged(at, &request, |whole| match (whole.status, whole.revision) {
            (StatusCode::OK, Some(revision)) => {
                Some((Some((revision, whole.body.clone())), whole.age))
            }
            (StatusCode::NOT_FOUND, _) if code(&whole.body).as_deref() == Some("no_such_key") => {
                Some((None, whole.age))
            }
            _ => None,
        })
        .await
    }

    /// Sets a key; its new revision.
    pub async fn put(
        &self,
        at: usize,
        key: &[u8],
        value: &Bytes,
        condition: Condition,
    ) -> Told<Revision> {
        match conditional(Request::new(Method::PUT, path(key)).body(value.clone()), condition) {
            Ok(request) => {
                let done = |whole: &Whole| {
                    whole.revision.filter(|_| whole.status == StatusCode::NO_CONTENT)
                };
                self.judged(at, &request, done).await
            }
            Err(failure) => Told::Refused(failure.summary()),
        }
    }

    /// Removes a key.
    pub async fn delete(&self, at: usize, key: &[u8], condition: Condition) -> Told<()> {
        match conditional(Request::new(Method::DELETE, path(key)), condition) {
            Ok(request) => {
                self.judged(at, &request, |whole| {
                    (whole.status == StatusCode::NO_CONTENT).then_some(())
                })
                .await
            }
            Err(failure) => Told::Refused(failure.summary()),
        }
    }

    /// Shows the keys of a range, as many as one page has.
    pub async fn scan(&self, at: usize, range: &KeyRange) -> Told<Seen> {
        let request = Request::get(format!("/v1/kv?{}&{}", query(range), self.consistency));
        self.judged(at, &request, |whole| {
            let page: Page = serde_json::from_slice(&whole.body)
                .ok()
                .filter(|_| whole.status == StatusCode::OK)?;
            let items: Option<Vec<_>> = page.items.iter().map(item).collect();
            let items = items?;
            let mut range = range.clone();
            if page.cursor.is_some() {
                // What lies behind the last item was not looked at; without an item, nothing was.
                let end = items
                    .last()
                    .map_or_else(|| range.start.clone(), |(key, ..)| successor_of_key(key));
                range.end = Some(end);
            }
            Some(Seen { range, items })
        })
        .await
    }

    /// Removes every key of a range.
    pub async fn delete_range(&self, at: usize, range: &KeyRange) -> Told<()> {
        let request = Request::new(Method::DELETE, format!("/v1/kv?{}", query(range)));
        self.judged(at, &request, |whole| (whole.status == StatusCode::OK).then_some(())).await
    }

    /// The ranges of all shards that hold keys, the lowest first; why not, where nobody tells.
    pub async fn shards(&self, at: usize) -> Result<Vec<KeyRange>, String> {
        let (mut ranges, mut cursor) = (Vec::new(), String::new());
        // So many pages of a thousand that no cluster has more.
        for _ in 0..1_000 {
            let request = Request::get(format!("/v1/admin/shards?limit=1000{cursor}"));
            let told = self
                .judged(at, &request, |whole| serde_json::from_slice::<Shards>(&whole.body).ok())
                .await;
            let page = match told {
                Told::Answer(page) => page,
                Told::Refused(why) | Told::Unknown(why) => return Err(why),
                Told::ConditionFailed(_) => {
                    return Err("a condition failed that was not sent".into());
                }
            };
            ranges.extend(
                page.shards
                    .iter()
                    .filter(|shard| !shard.id.is_meta())
                    .filter_map(|shard| key_range(&shard.range)),
            );
            match page.cursor {
                Some(next) => cursor = format!("&cursor={}", key::encode(next.as_bytes())),
                None => break,
            }
        }
        ranges.sort_by(|a, b| a.start.cmp(&b.start));
        Ok(ranges)
    }

    /// Asks, and judges by the table above. `understand` finds the answer in what came, if it is
    /// one.
    pub(super) async fn judged<T>(
        &self,
        at: usize,
        request: &Request,
        understand: impl FnOnce(&Whole) -> Option<T>,
    ) -> Told<T> {
        let whole = match self.ask(at, request).await {
            Told::Answer(whole) => whole,
            Told::ConditionFailed(current) => return Told::ConditionFailed(current),
            Told::Refused(why) => return Told::Refused(why),
            Told::Unknown(why) => return Told::Unknown(why),
        };
        let members: Option<Members> = serde_json::from_slice(&whole.body).ok();
        let problem =
            members.filter(|members| !whole.status.is_success() && members.code.is_some());
        let of_condition =
            |members: &Members| members.code.as_deref() == Some("precondition_failed");
        if whole.status == StatusCode::PRECONDITION_FAILED
            && problem.as_ref().is_some_and(of_condition)
        {
            return Told::ConditionFailed(whole.revision);
        }
        if let Some(answer) = understand(&whole) {
            return Told::Answer(answer);
        }
        let code = problem
            .as_ref()
            .and_then(|members| members.code.clone())
            .unwrap_or_else(|| "not understood".into());
        let why = format!("HTTP {}, {code}", whole.status.as_u16());
        match problem {
            Some(members) if members.outcome == Some(Outcome::NotApplied) => Told::Refused(why),
            _ => Told::Unknown(why),
        }
    }

    /// Asks the first endpoint to which there is a connection, and takes the whole answer, whatever
    /// it is.
    async fn ask(&self, at: usize, request: &Request) -> Told<Whole> {
        let mut failures = Vec::new();
        for n in 0..self.endpoints.len() {
            let endpoint = &self.endpoints[(at + n) % self.endpoints.len()];
            let built = match build(request, endpoint) {
                Ok(built) => built,
                Err(failure) => return Told::Refused(failure.summary()),
            };
            let exchange = async {
                let response = self
                    .http
                    .request(built)
                    .await
                    .map_err(|error| (error.is_connect(), cause(&error)))?;
                let (parts, body) = response.into_parts();
                let body = body.collect().await.map_err(|error| (false, cause(&error)))?.to_bytes();
                let tag = parts.headers.get(http::header::ETAG).and_then(|tag| tag.to_str().ok());
                let revision = tag.and_then(|tag| tag.trim_matches('"').parse().ok()).map(Revision);
                let age = parts
                    .headers
                    .get("flotilla-age")
                    .and_then(|age| age.to_str().ok()?.parse().ok());
                let age = age.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
                Ok(Whole { status: parts.status, revision, age, body })
            };
            match tokio::time::timeout(self.timeout, exchange).await {
                Ok(Ok(whole)) => return Told::Answer(whole),
                Ok(Err((true, why))) => failures.push(format!("{endpoint}: {why}")),
                Ok(Err((false, why))) => {
                    return Told::Unknown(format!("{endpoint}: the connection was lost: {why}"));
                }
                Err(_) => return Told::Unknown(format!("{endpoint}: no answer in time")),
            }
        }
        Told::Refused(format!("no node could be reached: {}", failures.join("; ")))
    }
}

/// The path of a key.
fn path(key: &[u8]) -> String {
    format!("/v1/kv/{}", key::encode(key))
}

/// The query that names a range.
fn query(range: &KeyRange) -> String {
    let end =
        range.end.as_ref().map_or_else(String::new, |end| format!("&end={}", key::encode(end)));
    format!("start={}{end}", key::encode(&range.start))
}

/// The same request on a condition.
fn conditional(request: Request, condition: Condition) -> Result<Request, Failure> {
    let (name, value): (HeaderName, String) = match condition {
        Condition::Always => return Ok(request),
        Condition::Absent => (IF_NONE_MATCH, "*".into()),
        Condition::Present => (IF_MATCH, "*".into()),
        Condition::At(revision) => (IF_MATCH, format!("\"{revision}\"")),
    };
    request.header(name, &value)
}

/// The stable name of a problem.
fn code(body: &[u8]) -> Option<String> {
    serde_json::from_slice::<Members>(body).ok()?.code
}

/// An item of a page.
fn item(line: &Line) -> Option<(Bytes, Revision, Bytes)> {
    let value = line.value_bytes().ok()??;
    Some((line.key_bytes().ok()?.into(), Revision(line.revision?), value.into()))
}

/// A range as the admin API shows it.
fn key_range(view: &RangeView) -> Option<KeyRange> {
    let start = bytes_of(view.start.as_deref(), view.start_b64.as_deref())?;
    let end = match (&view.end, &view.end_b64) {
        (None, None) => None,
        (end, base64) => Some(bytes_of(end.as_deref(), base64.as_deref())?.into()),
    };
    Some(KeyRange::new(start, end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;

    /// A server that answers one connection with these bytes, then closes it.
    fn answers(with: &'static str) -> Endpoint {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            let _ = stream.read(&mut request);
            let _ = stream.write_all(with.as_bytes());
        });
        address.to_string().parse().unwrap()
    }

    fn nobody() -> Endpoint {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        address.to_string().parse().unwrap()
    }

    fn put(endpoints: Vec<Endpoint>) -> Told<Revision> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let probe = Probe::new(endpoints, Duration::from_secs(2), false);
        runtime.block_on(probe.put(0, b"k", &Bytes::from_static(b"v"), Condition::Always))
    }

    #[test]
    fn what_is_not_certain_is_unknown() {
        let done = "HTTP/1.1 204 No Content\r\netag: \"7\"\r\n\r\n";
        assert_eq!(put(vec![answers(done)]), Told::Answer(Revision(7)));
        assert_eq!(
            put(vec![nobody(), answers(done)]),
            Told::Answer(Revision(7)),
            "nothing was sent to the first"
        );
        assert!(matches!(
            put(vec![nobody(), nobody()]),
            Told::Refused(why) if why.contains("no node could be reached")
        ));
        let unknown = [
            // Nothing, half an answer, an answer without the revision, of a proxy, of another
            // server.
            "",
            "HTTP/1.1 204 No",
            "HTTP/1.1 204 No Content\r\n\r\n",
            "HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy",
            "HTTP/1.1 400 Bad\r\ncontent-length: 2\r\n\r\n{}",
            "HTTP/1.1 412 Failed\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 504 Late\r\ncontent-length: 48\r\n\r\n\
             {\"code\":\"unknown_outcome\",\"outcome\":\"unknown\"}   ",
            "HTTP/1.1 503 Busy\r\ncontent-length: 90\r\n\r\n\
             {\"code\":\"no_leader\",\"outcome\":\"not_applied\"}",
        ];
        for answer in unknown {
            assert!(matches!(put(vec![answers(answer)]), Told::Unknown(_)), "{answer:?}");
        }
        let refused = "HTTP/1.1 503 Busy\r\ncontent-length: 44\r\n\r\n\
                       {\"code\":\"no_leader\",\"outcome\":\"not_applied\"}";
        assert!(
            matches!(put(vec![answers(refused)]), Told::Refused(why) if why.contains("no_leader"))
        );
        let failed = "HTTP/1.1 412 No\r\netag: \"9\"\r\ncontent-length: 54\r\n\r\n\
                      {\"code\":\"precondition_failed\",\"outcome\":\"not_applied\"}";
        assert_eq!(put(vec![answers(failed)]), Told::ConditionFailed(Some(Revision(9))));
    }

    #[test]
    fn ranges_of_shards_are_read_as_they_are_shown() {
        let odd = KeyRange::new(&b"\xff"[..], Some(Bytes::from_static(b"\xff\xfe")));
        for range in [KeyRange::all(), KeyRange::new("a", Some("m".into())), odd] {
            assert_eq!(key_range(&RangeView::from(&range)), Some(range));
        }
    }
}
