//! A scan as a stream of NDJSON over all shards.
//!
//! One item stands on a line. The last line is `{"complete":true,"count":n}`, or
//! `{"cursor":…,"count":n}` where a limit stopped it, with the `problem` where a shard did. Each
//! part is asked for when the client took the one before, so a slow client costs one part's memory.
//!
//! All parts of one shard show the same view, which the shard's node keeps meanwhile
//! ([`HeldView`](flotilla_router::HeldView)). Where it had to give the view up, the stream ends and
//! says so (`view_given_up`): what goes on at the cursor is of another moment.

use super::answer;
use super::body::{Body, Piece};
use super::scan::{Page, Walk};
use super::service::{App, Session};
use super::share::{Good, Held};
use crate::problem::Problem;
use crate::traits::{Admin, Inspect, Kv};
use bytes::Bytes;
use flotilla_router::Item;
use http::Response;
use http::header::HeaderValue;
use serde_json::json;
use std::sync::Arc;

/// The most items of one part of a stream.
const PART_ITEMS: u32 = 1_000;
/// The most bytes of one part of a stream.
const PART_BYTES: u32 = 256 << 10;

impl<K: Kv, A: Admin, I: Inspect> App<K, A, I> {
    /// A stream. The first part is asked for before the answer begins, so that what fails at once
    /// fails with a status.
    pub(super) async fn stream(
        &self,
        mut walk: Walk,
        limit: Option<u64>,
        bytes_max: Option<u64>,
        session: &Arc<Session<K, A, I>>,
    ) -> Result<Response<Body>, Problem> {
        let part = (capped(limit, PART_ITEMS), capped(bytes_max, PART_BYTES));
        let held = session.account.hold(Good::Answers, PART_BYTES as usize)?;
        let first = Some((walk.step(self, part.0, part.1, true, self.deadline()).await?, held));
        let flow = Flow {
            session: session.clone(),
            walk,
            first,
            count: 0,
            left: limit,
            bytes_left: bytes_max,
            done: false,
        };
        let stream = futures_util::stream::unfold(flow, |mut flow| async move {
            let part = flow.next().await?;
            Some((part, flow))
        });
        Ok(answer::ok(
            HeaderValue::from_static("application/x-ndjson"),
            Body::Stream(Box::pin(stream)),
        ))
    }
}

/// A stream that is being made.
struct Flow<K: Kv, A: Admin, I: Inspect> {
    session: Arc<Session<K, A, I>>,
    walk: Walk,
    /// What was asked for before the answer began, and what pays for it.
    first: Option<(Vec<Item>, Held)>,
    count: u64,
    /// Items that may still come; `None` for any number.
    left: Option<u64>,
    /// Bytes that may still come; `None` for any number.
    bytes_left: Option<u64>,
    /// The last line is out.
    done: bool,
}

impl<K: Kv, A: Admin, I: Inspect> Drop for Flow<K, A, I> {
    fn drop(&mut self) {
        if let Some(view) = self.walk.view.take() {
            self.session.app.kv.let_go(view);
        }
    }
}

impl<K: Kv, A: Admin, I: Inspect> Flow<K, A, I> {
    /// The next part; `None` after the last line.
    async fn next(&mut self) -> Option<Piece> {
        if self.done {
            return None;
        }
        let walk = &mut self.walk;
        loop {
            let (limit, bytes_max) =
                (capped(self.left, PART_ITEMS), capped(self.bytes_left, PART_BYTES));
            let step = match self.first.take() {
                Some(first) => Ok(first),
                // Room is found before the part is made.
                None => match self.session.account.hold(Good::Answers, PART_BYTES as usize) {
                    Ok(held) => {
                        let app = &self.session.app;
                        walk.step(app, limit, bytes_max, true, app.deadline())
                            .await
                            .map(|items| (items, held))
                    }
                    Err(problem) => Err(problem),
                },
            };
            let (items, mut held) = match step {
                Ok(part) => part,
                Err(problem) => {
                    self.done = true;
                    let problem: serde_json::Value =
                        serde_json::from_slice(&problem.to_json()).unwrap_or_default();
                    let last = json!({
                        "cursor": walk.cursor(), "count": self.count, "problem": problem,
                    });
                    return Some(line(last).into());
                }
            };
            let mut page =
                Page { out: Vec::new(), separator: "\n", items: 0, bytes: 0, limit, bytes_max };
            page.take(items, walk);
            self.count += u64::from(page.items);
            self.left = self.left.map(|left| left.saturating_sub(page.items.into()));
            self.bytes_left = self.bytes_left.map(|left| left.saturating_sub(page.bytes.into()));
            let mut out = page.out;
            if page.items > 0 {
                out.push(b'\n');
            }
            if walk.rest.is_none() {
                self.done = true;
                out.extend_from_slice(&line(json!({ "complete": true, "count": self.count })));
            } else if self.left == Some(0) || self.bytes_left == Some(0) {
                self.done = true;
                out.extend_from_slice(&line(
                    json!({ "cursor": walk.cursor(), "count": self.count }),
                ));
            }
            // An empty shard makes no line; go on to the next.
            if !out.is_empty() {
                held.set(out.len());
                return Some(Piece { bytes: out.into(), held: Some(held) });
            }
        }
    }
}

/// What may still come, and no more than one part has.
fn capped(left: Option<u64>, max: u32) -> u32 {
    left.map_or(max, |left| u32::try_from(left).unwrap_or(max).min(max))
}

fn line(value: serde_json::Value) -> Bytes {
    format!("{value}\n").into()
}
