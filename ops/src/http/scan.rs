//! `GET /v1/kv?prefix=` or `start=&end=`: a range of keys, as a page of JSON or as a stream of
//! NDJSON over all shards.
//!
//! A node answers for one shard at a time; [`Walk`] goes from shard to shard until the page is full
//! or the range is done. What one shard shows is one consistent view, two shards may be seen at
//! different times, and both answers say so.
//!
//! - **A page** is `{"items":[…],"cursor":…,"consistent":"per_shard"}`; the cursor is null once
//!   nothing is left. A page may be short of its limit, or empty, with a cursor: when a shard fails
//!   midway, or takes long, the client keeps what was found. No shard is asked twice for a page,
//!   since it would answer from another view.
//! - **A stream** is told of in [`stream`](super::stream).

use super::accept::accepts_stream;
use super::answer::{self, CONSISTENCY};
use super::body::{Body, Piece};
use super::cursor::Cursor;
use super::key::unexpected;
use super::path::check_bound;
use super::query::{Query, contradiction};
use super::service::{App, Session};
use super::share::{Account, Good, Held};
use crate::limits::Limits;
use crate::problem::Problem;
use crate::traits::{Admin, Inspect, Kv};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flotilla_router::range::successor_of_key;
use flotilla_router::{
    Answer, Consistency, HeldView, Item, KeyRange, Outcome, Request, Scan, ShardId,
};
use http::Response;
use http::header::HeaderValue;
use http::request::Parts;
use serde_json::json;
use std::sync::Arc;
use std::time::Instant;

/// The parameters that name a range.
pub(super) const RANGE_PARAMETERS: [&str; 3] = ["prefix", "start", "end"];
/// All parameters of a scan.
const PARAMETERS: [&str; 10] = [
    "prefix",
    "start",
    "end",
    "limit",
    "max_bytes",
    "reverse",
    "keys_only",
    "cursor",
    "consistency",
    "max_staleness",
];
/// The range that a query names; `None` where it names none.
pub(super) fn range_of(query: &Query, limits: &Limits) -> Result<Option<KeyRange>, Problem> {
    let (prefix, start, end) = (query.bytes("prefix"), query.bytes("start"), query.bytes("end"));
    for (name, bound) in [("prefix", &prefix), ("start", &start), ("end", &end)] {
        check_bound(bound.as_deref().unwrap_or_default(), name, limits)?;
    }
    match (prefix, start, end) {
        (None, None, None) => Ok(None),
        (Some(prefix), None, None) => Ok(Some(KeyRange::prefix(prefix))),
        (Some(_), ..) => Err(contradiction("prefix excludes start and end; send either")),
        (None, start, end) => {
            let range = KeyRange::new(start.unwrap_or_default(), end.filter(|end| !end.is_empty()));
            if range.is_empty() {
                return Err(contradiction(
                    "no key lies in this range: start must be below end (start is in it, end is \
                     not)",
                ));
            }
            Ok(Some(range))
        }
    }
}

/// A scan on its way from shard to shard.
pub(super) struct Walk {
    whole: KeyRange,
    /// What is left.
    pub(super) rest: Option<KeyRange>,
    reverse: bool,
    keys_only: bool,
    consistency: Consistency,
    /// The shard that answered last.
    shard: Option<ShardId>,
    /// Of a stream: the view to go on in.
    pub(super) view: Option<HeldView>,
}

impl Walk {
    /// Where a query begins: at the front of its range, or where its cursor says.
    fn begin(query: &Query, limits: &Limits, default: Consistency) -> Result<Self, Problem> {
        let consistency = query.consistency(default)?;
        let (range, reverse, keys_only) =
            (range_of(query, limits)?, query.flag("reverse")?, query.flag("keys_only")?);
        let Some(text) = query.bytes("cursor").filter(|text| !text.is_empty()) else {
            let whole = range.unwrap_or_default();
            let rest = Some(whole.clone());
            return Ok(Self {
                whole,
                rest,
                reverse: reverse.unwrap_or(false),
                keys_only: keys_only.unwrap_or(false),
                consistency,
                shard: None,
                view: None,
            });
        };
        let Cursor { whole, rest, reverse: reverse_before, keys_only: keys_only_before } =
            Cursor::decode(&text, limits)?;
        if range.is_some_and(|range| range != whole) {
            return Err(contradiction(
                "the cursor is of a scan of another range; send the same prefix, start and end, or \
                 none",
            ));
        }
        if reverse.is_some_and(|reverse| reverse != reverse_before) {
            return Err(contradiction(
                "the cursor is of a scan in the other direction; send the same reverse, or none",
            ));
        }
        Ok(Self {
            whole,
            rest: Some(rest),
            reverse: reverse_before,
            keys_only: keys_only.unwrap_or(keys_only_before),
            consistency,
            shard: None,
            view: None,
        })
    }

    /// Asks one shard for what comes next, and moves on behind it. In a stream, what comes next in
    /// a shard is of the same view.
    pub(super) async fn step<K: Kv, A: Admin, I: Inspect>(
        &mut self,
        app: &App<K, A, I>,
        limit: u32,
        bytes_max: u32,
        streams: bool,
        deadline: Instant,
    ) -> Result<Vec<Item>, Problem> {
        let Some(range) = self.rest.clone() else { return Ok(Vec::new()) };
        let scan = Scan {
            range: range.clone(),
            reverse: self.reverse,
            limit,
            bytes_max,
            keys_only: self.keys_only,
        };
        let request = match streams {
            true => Request::Part { scan, consistency: self.consistency, view: self.view },
            false => Request::Scan { scan, consistency: self.consistency },
        };
        let mut reply = app.ask_by(request, deadline).await?;
        let (page, view) = match &mut reply.answer {
            Answer::Page(page) if !streams => (page, None),
            Answer::Part { page, view } if streams => (page, *view),
            _ => return Err(unexpected(&reply, Outcome::NotApplied)),
        };
        let (items, rest) = (std::mem::take(&mut page.items), page.rest.take());
        // Every step leaves less, or we would walk forever.
        let shrinks =
            rest.as_ref().is_none_or(|rest| *rest != range && rest.intersect(&range) == *rest);
        if !shrinks || items.len() > limit as usize {
            return Err(unexpected(&reply, Outcome::NotApplied));
        }
        self.rest = rest.filter(|rest| !rest.is_empty());
        (self.shard, self.view) = (Some(reply.shard), view);
        Ok(items)
    }

    /// Moves back to an item that there was no room for.
    fn give_back(&mut self, item: &Item) {
        self.rest = Some(if self.reverse {
            KeyRange::new(self.whole.start.clone(), Some(successor_of_key(&item.key)))
        } else {
            KeyRange::new(item.key.clone(), self.whole.end.clone())
        });
    }

    /// Moves back to the first of items that there was no room for.
    fn give_back_all(&mut self, items: &[Item]) {
        if let Some(first) = items.first() {
            self.give_back(first);
        }
    }

    /// What a client needs to go on; `None` when nothing is left.
    pub(super) fn cursor(&self) -> Option<String> {
        let rest = self.rest.clone()?;
        Some(
            Cursor {
                whole: self.whole.clone(),
                rest,
                reverse: self.reverse,
                keys_only: self.keys_only,
            }
            .encode(),
        )
    }
}

impl<K: Kv, A: Admin, I: Inspect> App<K, A, I> {
    /// Answers a scan in the form that the client accepts.
    pub(super) async fn scan(
        &self,
        parts: &Parts,
        session: &Arc<Session<K, A, I>>,
    ) -> Result<Response<Body>, Problem> {
        let streams = accepts_stream(&parts.headers)?;
        let query = Query::parse(parts.uri.query(), &PARAMETERS)?;
        let walk = Walk::begin(&query, &self.limits, self.kv.default_consistency())?;
        let limits = &self.limits;
        let limit = query.number(
            "limit",
            1,
            if streams { u64::MAX } else { limits.scan_items_max.into() },
        )?;
        let bytes_max = query.number(
            "max_bytes",
            1,
            if streams { u64::MAX } else { limits.scan_bytes_max.into() },
        )?;
        let mut response = if streams {
            self.stream(walk, limit, bytes_max, session).await?
        } else {
            let limit = limit.map_or(limits.scan_items_default, |n| n as u32);
            let bytes_max = bytes_max.map_or(limits.scan_bytes_default, |n| n as u32);
            self.page(walk, limit, bytes_max, &session.account).await?
        };
        response.headers_mut().insert(&CONSISTENCY, HeaderValue::from_static("per_shard"));
        Ok(response)
    }

    /// One page, of as many shards as it takes.
    async fn page(
        &self,
        mut walk: Walk,
        limit: u32,
        bytes_max: u32,
        account: &Arc<Account>,
    ) -> Result<Response<Body>, Problem> {
        let (begun, deadline) = (Instant::now(), self.deadline());
        let mut page = Page {
            out: br#"{"items":["#.to_vec(),
            separator: ",",
            items: 0,
            bytes: 0,
            limit,
            bytes_max,
        };
        let mut held = account.hold(Good::Answers, 0)?;
        let mut shards = 0;
        while walk.rest.is_some()
            && !page.is_full()
            && (shards == 0 || begun.elapsed() < self.limits.request_timeout / 2)
        {
            let (before, rest) = (walk.shard, walk.rest.clone());
            match walk.step(self, limit - page.items, bytes_max - page.bytes, false, deadline).await
            {
                Ok(_) if before.is_some() && walk.shard == before => {
                    walk.rest = rest;
                    break;
                }
                Ok(mut items) => {
                    // Where there is no room for more, a page ends early, and one that would be
                    // empty is refused.
                    let beyond = match fit(&mut held, &mut items) {
                        Err(problem) if page.items == 0 => return Err(problem),
                        Err(_) => std::mem::take(&mut items),
                        Ok(beyond) => beyond,
                    };
                    walk.give_back_all(&beyond);
                    page.take(items, &mut walk);
                    held.set(page.out.len());
                    if !beyond.is_empty() {
                        break;
                    }
                }
                Err(problem) if shards == 0 => return Err(problem),
                Err(_) => break,
            }
            shards += 1;
        }
        let mut out = page.out;
        let tail = json!({ "cursor": walk.cursor(), "consistent": "per_shard" }).to_string();
        out.extend_from_slice(b"],");
        out.extend_from_slice(&tail.as_bytes()[1..]);
        held.set(out.len());
        let piece = Piece { bytes: out.into(), held: Some(held) };
        Ok(answer::ok(HeaderValue::from_static("application/json"), Body::Full(piece)))
    }
}

/// Items on their way into a page or a part of a stream.
pub(super) struct Page {
    /// As they are written.
    pub(super) out: Vec<u8>,
    /// What stands between two items.
    pub(super) separator: &'static str,
    /// How many there are.
    pub(super) items: u32,
    /// How many bytes of keys and values they have.
    pub(super) bytes: u32,
    /// How many there may be.
    pub(super) limit: u32,
    /// How many bytes they may have.
    pub(super) bytes_max: u32,
}

impl Page {
    fn is_full(&self) -> bool {
        self.items >= self.limit || self.bytes >= self.bytes_max
    }

    /// Takes items in until one does not fit; at least one always does.
    pub(super) fn take(&mut self, items: Vec<Item>, walk: &mut Walk) {
        for item in items {
            let bytes = u32::try_from(item.key.len() + item.value.len()).unwrap_or(u32::MAX);
            if self.items > 0 && bytes > self.bytes_max - self.bytes {
                walk.give_back(&item);
                // Nothing more goes in behind what was given back.
                self.bytes = self.bytes_max;
                return;
            }
            if self.items > 0 {
                self.out.extend_from_slice(self.separator.as_bytes());
            }
            write_item(&mut self.out, &item, walk.keys_only);
            self.items += 1;
            self.bytes = self.bytes.saturating_add(bytes).min(self.bytes_max);
        }
    }
}

/// Takes room for the first of these items, at least one, and says which there was none for.
fn fit(held: &mut Held, items: &mut Vec<Item>) -> Result<Vec<Item>, Problem> {
    let mut beyond = Vec::new();
    loop {
        match held.grow(bytes_of(items)) {
            Ok(()) => return Ok(beyond),
            Err(problem) if items.len() <= 1 => return Err(problem),
            Err(_) => {
                let mut more = items.split_off(items.len() / 2);
                more.append(&mut beyond);
                beyond = more;
            }
        }
    }
}

/// What items take in memory, about.
fn bytes_of(items: &[Item]) -> usize {
    items.iter().map(|item| item.key.len() + item.value.len() + size_of::<Item>()).sum()
}

/// Appends `{"key":…,"value":…,"revision":…}`.
fn write_item(out: &mut Vec<u8>, item: &Item, keys_only: bool) {
    out.push(b'{');
    write_member(out, "key", &item.key);
    if !keys_only {
        out.push(b',');
        write_member(out, "value", &item.value);
    }
    out.extend_from_slice(b",\"revision\":");
    out.extend_from_slice(item.revision.0.to_string().as_bytes());
    out.push(b'}');
}

/// Appends `"name":"text"`, or `"name_b64":"base64"` where the bytes are no text.
pub(super) fn write_member(out: &mut Vec<u8>, name: &str, bytes: &[u8]) {
    out.push(b'"');
    out.extend_from_slice(name.as_bytes());
    match std::str::from_utf8(bytes) {
        Ok(text) => {
            out.extend_from_slice(b"\":");
            serde_json::to_writer(&mut *out, text)
                .expect("text always is JSON, and memory takes it");
        }
        Err(_) => {
            out.extend_from_slice(b"_b64\":\"");
            out.extend_from_slice(STANDARD.encode(bytes).as_bytes());
            out.push(b'"');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn ranges_are_named_by_prefix_or_bounds() {
        let range = |query| {
            range_of(&Query::parse(Some(query), &RANGE_PARAMETERS).unwrap(), &Limits::default())
        };
        let expect = |start: &'static str, end: Option<&'static str>| {
            Some(KeyRange::new(start, end.map(Bytes::from)))
        };
        assert_eq!(range("").unwrap(), None);
        assert_eq!(range("prefix=").unwrap(), expect("", None));
        assert_eq!(range("prefix=a%2F").unwrap(), expect("a/", Some("a0")));
        assert_eq!(range("start=a").unwrap(), expect("a", None));
        assert_eq!(range("end=m").unwrap(), expect("", Some("m")));
        assert_eq!(range("start=a&end=").unwrap(), expect("a", None));
        for bad in ["prefix=a&start=b", "prefix=a&end=b", "start=b&end=a", "start=a&end=a"] {
            assert_eq!(range(bad).unwrap_err().members().code, "contradiction", "{bad}");
        }
        assert_eq!(
            range(&format!("start={}", "a".repeat(4097))).unwrap_err().members().status,
            414
        );
    }
}
