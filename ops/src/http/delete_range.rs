//! `DELETE /v1/kv?prefix=` or `start=&end=`: removes a range, shard by shard, and answers
//! `{"count": …}`.
//!
//! Atomic per shard, not over shards; all shards share the time of one request. Where it stops
//! midway the problem says how many keys are gone so far, with an unknown outcome; repeating it
//! does no harm. A range must be named, so that nobody deletes everything by leaving something out:
//! `prefix=` (present and empty) means every key.

use super::body::Body;
use super::key::unexpected;
use super::query::{Query, contradiction};
use super::scan::{RANGE_PARAMETERS, range_of};
use super::service::App;
use super::{answer, etag};
use crate::problem::Problem;
use crate::traits::{Admin, Inspect, Kv};
use flotilla_router::{Answer, Command, Condition, KeyRange, Op, Outcome, Request};
use http::Response;
use http::request::Parts;
use serde::Serialize;

/// The answer.
#[derive(Serialize)]
struct Deleted {
    /// How many keys were removed.
    count: u64,
}

impl<K: Kv, A: Admin, I: Inspect> App<K, A, I> {
    pub(super) async fn delete_range(&self, parts: &Parts) -> Result<Response<Body>, Problem> {
        let query = Query::parse(parts.uri.query(), &RANGE_PARAMETERS)?;
        if etag::write_condition(&parts.headers, true)? != Condition::Always {
            return Err(contradiction(
                "If-Match and If-None-Match are about one key, not about a range",
            ));
        }
        let named = range_of(&query, &self.limits)?
            .filter(|range| query.has("prefix") || *range != KeyRange::all());
        let Some(mut range) = named else {
            let detail = "which keys? prefix=, or start= and end=; prefix= with nothing behind it \
                          means every key";
            return Err(Problem::malformed("range_missing", detail));
        };
        let deadline = self.deadline();
        let (mut count, mut shards_done) = (0_u64, 0);
        loop {
            let command = Command::new(Op::DeleteRange { range: range.clone() }, Condition::Always);
            let reply = self.ask_by(Request::Write(command), deadline).await;
            let reply = reply.map_err(|problem| problem.after_deleting(count, shards_done))?;
            let Answer::DeletedRange { count: here, rest } = &reply.answer else {
                return Err(unexpected(&reply, Outcome::Unknown).after_deleting(count, shards_done));
            };
            count = count.saturating_add(*here);
            shards_done += 1;
            match rest {
                None => return answer::json(&Deleted { count }),
                // Every step leaves less, or we would walk forever.
                Some(rest) if rest.start > range.start && rest.end == range.end => {
                    range = rest.clone()
                }
                Some(_) => {
                    return Err(
                        unexpected(&reply, Outcome::Unknown).after_deleting(count, shards_done)
                    );
                }
            }
        }
    }
}
