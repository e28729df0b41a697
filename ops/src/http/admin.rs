//! `/v1/admin/…`: the cluster, its nodes and shards, and orders about them.
//!
//! Answers about a shard carry its epoch as ETag, and `If-Match` binds a request to it. What moves
//! data is not built yet: its paths answer 501, so that their place is kept.

use super::answer;
use super::body::{self, Body, Upload, Wanted};
use super::etag::{self, ReadVerdict};
use super::head::check_json;
use super::path;
use super::query::Query;
use super::service::{App, only, only_get};
use crate::admin::{NodeView, ShardView};
use crate::problem::Problem;
use crate::traits::{Admin, Inspect, Kv, Ordered};
use flotilla_router::{Epoch, NodeId, Refusal, ShardId};
use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{Method, Response, StatusCode};
use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// `GET /v1/admin/nodes`.
#[derive(Serialize)]
struct Nodes {
    nodes: Vec<NodeView>,
}

/// `GET /v1/admin/shards`.
#[derive(Serialize)]
struct Shards {
    shards: Vec<ShardView>,
    /// Where to go on; null when these were the last.
    cursor: Option<String>,
}

/// The body of `POST /v1/admin/shards/{id}/leader`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Leader {
    node: NodeId,
}

/// Methods of the orders that are not built yet, by what follows the shard's id.
const SHARD_ORDERS: [(&str, &str); 3] =
    [("split", "POST"), ("merge", "POST"), ("replicas", "POST, PUT")];

impl<K: Kv, A: Admin, I: Inspect> App<K, A, I> {
    /// Answers a request about what follows `/v1/admin/`.
    pub(super) async fn admin(
        &self,
        parts: &Parts,
        body: Upload<'_>,
        rest: &str,
    ) -> Result<Response<Body>, Problem> {
        // A key may hold slashes, so it is not a segment like the others.
        if let Some(key) = rest.strip_prefix("explain/") {
            return self.explain(parts, key).await;
        }
        let segments: Vec<&str> = rest.split('/').collect();
        match segments[..] {
            ["cluster"] => {
                only_get(parts)?;
                Query::parse(parts.uri.query(), &[])?;
                answer::json(&self.in_time(self.admin.cluster()).await?)
            }
            ["nodes"] => {
                only_get(parts)?;
                Query::parse(parts.uri.query(), &[])?;
                answer::json(&Nodes { nodes: self.in_time(self.admin.nodes()).await? })
            }
            ["nodes", node] => self.one_node(parts, id("node", node)?).await,
            ["nodes", node, "drain"] => {
                only(parts, &Method::POST, "POST")?;
                id::<NodeId>("node", node)?;
                Err(Problem::not_implemented("POST /v1/admin/nodes/{id}/drain"))
            }
            ["shards"] => self.list_shards(parts).await,
            ["shards", shard] => self.one_shard(parts, id("shard", shard)?).await,
            ["shards", shard, "leader"] => self.hand_over(parts, body, id("shard", shard)?).await,
            ["shards", shard, "replicas", node] => {
                only(parts, &Method::DELETE, "DELETE")?;
                id::<ShardId>("shard", shard)?;
                id::<NodeId>("node", node)?;
                Err(Problem::not_implemented("DELETE /v1/admin/shards/{id}/replicas/{node}"))
            }
            ["shards", shard, order] => {
                let Some((_, allow)) = SHARD_ORDERS.iter().find(|(name, _)| *name == order) else {
                    return Err(Problem::no_such_path());
                };
                id::<ShardId>("shard", shard)?;
                not_built(parts, allow, &format!("/v1/admin/shards/{{id}}/{order}"))
            }
            ["operations"] => {
                only_get(parts)?;
                Err(Problem::not_implemented("GET /v1/admin/operations"))
            }
            ["operations", _] => not_built(parts, "GET, HEAD, DELETE", "/v1/admin/operations/{id}"),
            ["settings", _] => not_built(parts, "GET, HEAD, PUT", "/v1/admin/settings/{name}"),
            ["balance"] => not_built(parts, "POST", "/v1/admin/balance"),
            _ => Err(Problem::no_such_path()),
        }
    }

    async fn one_node(&self, parts: &Parts, node: NodeId) -> Result<Response<Body>, Problem> {
        match parts.method {
            Method::GET | Method::HEAD => {
                Query::parse(parts.uri.query(), &[])?;
                answer::json(&self.in_time(self.admin.node(node)).await?)
            }
            Method::DELETE => Err(Problem::not_implemented("DELETE /v1/admin/nodes/{id}")),
            _ => Err(Problem::method_not_allowed("GET, HEAD, DELETE")),
        }
    }

    async fn list_shards(&self, parts: &Parts) -> Result<Response<Body>, Problem> {
        only_get(parts)?;
        let query = Query::parse(parts.uri.query(), &["limit", "cursor"])?;
        let limit = query
            .number("limit", 1, self.limits.admin_page_max as u64)?
            .map_or(100, |limit| limit as usize);
        let after = match query.bytes("cursor") {
            None => None,
            Some(text) => {
                let number = std::str::from_utf8(&text).ok().and_then(etag::revision);
                let bad = || {
                    Problem::malformed(
                        "bad_cursor",
                        "the cursor is not one that this list gave; begin without one",
                    )
                };
                Some(ShardId(number.ok_or_else(bad)?.0))
            }
        };
        // One more than wanted tells whether there are more.
        let page = self.admin.shards(after, limit.min(self.limits.admin_page_max) + 1);
        let mut shards = self.in_time(page).await?;
        let more = shards.len() > limit;
        shards.truncate(limit);
        let cursor = shards.last().filter(|_| more).map(|shard| shard.id.to_string());
        answer::json(&Shards { shards, cursor })
    }

    async fn one_shard(&self, parts: &Parts, shard: ShardId) -> Result<Response<Body>, Problem> {
        only_get(parts)?;
        let hash = Query::parse(parts.uri.query(), &["hash"])?.flag("hash")?.unwrap_or(false);
        let view = self.in_time(self.admin.shard(shard, hash)).await?;
        let (shard, epoch) = (view.id, view.epoch);
        conditional(parts, shard, epoch, || answer::json(&view))
    }

    async fn explain(&self, parts: &Parts, key: &str) -> Result<Response<Body>, Problem> {
        only_get(parts)?;
        Query::parse(parts.uri.query(), &[])?;
        let key = path::key(key, &self.limits)?;
        let explanation = self.in_time(self.admin.explain(&key)).await?;
        let (shard, epoch) = (explanation.shard.id, explanation.shard.epoch);
        let mut response = conditional(parts, shard, epoch, || answer::json(&explanation))?;
        answer::stamp(&mut response, Some(shard), explanation.answered_by);
        Ok(response)
    }

    async fn hand_over(
        &self,
        parts: &Parts,
        body: Upload<'_>,
        shard: ShardId,
    ) -> Result<Response<Body>, Problem> {
        only(parts, &Method::POST, "POST")?;
        let dry_run =
            Query::parse(parts.uri.query(), &["dry_run"])?.flag("dry_run")?.unwrap_or(false);
        let if_match = etag::epoch_condition(&parts.headers)?;
        check_json(parts)?;
        let wanted = Wanted {
            what: "an admin request",
            code: "body_too_large",
            bytes_max: self.limits.admin_bytes_max,
        };
        let (body, _held) = body::read(body, &wanted, &self.limits).await?;
        let Leader { node } = serde_json::from_slice(&body).map_err(|error| {
            Problem::malformed(
                "malformed_json",
                format!("malformed JSON: {error}; allowed is {{\"node\": <id>}}"),
            )
        })?;
        let transfer = self.in_time(self.admin.transfer(shard, node, if_match, dry_run)).await;
        // What was given up may have been ordered, and be carried out still.
        let late = |problem: &Problem| !dry_run && problem.members().code == "expired";
        match transfer.map_err(|problem| {
            if late(&problem) { Refusal::OutcomeUnknown { shard }.into() } else { problem }
        })? {
            Ordered::Done(transfer) => {
                let mut response = answer::json(&transfer)?;
                response.headers_mut().insert(header::ETAG, etag::of_epoch(transfer.shard.epoch));
                Ok(response)
            }
            Ordered::EpochMoved { current } => Err(epoch_moved(shard, current)),
        }
    }
}

/// An answer about a shard, unless its epoch makes it 304 or 412.
fn conditional(
    parts: &Parts,
    shard: ShardId,
    epoch: Epoch,
    answer: impl FnOnce() -> Result<Response<Body>, Problem>,
) -> Result<Response<Body>, Problem> {
    let tag: HeaderValue = etag::of_epoch(epoch);
    let mut response = match etag::judge_read(&parts.headers, Some(&tag))? {
        ReadVerdict::Go => answer()?,
        ReadVerdict::NotModified => answer::empty(StatusCode::NOT_MODIFIED),
        ReadVerdict::Failed => return Err(epoch_moved(shard, epoch)),
    };
    response.headers_mut().insert(header::ETAG, tag);
    Ok(response)
}

/// 412: the shard changed since the client looked.
fn epoch_moved(shard: ShardId, current: Epoch) -> Problem {
    let detail =
        format!("shard {shard} is at epoch \"{current}\" now; look again before you order");
    Problem::precondition_failed(detail, Some(etag::of_epoch(current))).shard(shard).epoch(current)
}

/// 501 for what has its place in the API and nothing behind it yet; 405 for all other methods.
fn not_built(parts: &Parts, allow: &'static str, path: &str) -> Result<Response<Body>, Problem> {
    if !allow.split(", ").any(|method| method == parts.method) {
        return Err(Problem::method_not_allowed(allow));
    }
    Err(Problem::not_implemented(&format!("{} {path}", parts.method)))
}

/// An id in a path.
fn id<T: FromStr>(what: &str, text: &str) -> Result<T, Problem> {
    let bad = || {
        Problem::malformed(
            "bad_id",
            format!("{what} id {text:?}: allowed is a whole number from 1"),
        )
    };
    match etag::revision(text) {
        Some(number) if number.0 > 0 => text.parse().map_err(|_| bad()),
        _ => Err(bad()),
    }
}
