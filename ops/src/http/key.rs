//! `/v1/kv/{key}`: one key, raw. The hot path.
//!
//! GET and HEAD answer 200, 304, 404 or 412; PUT and DELETE 204 or 412, once the write is durable
//! on a quorum and applied.

use super::body::{self, Body, Upload, Wanted};
use super::query::Query;
use super::service::App;
use super::{answer, etag, head, path};
use crate::problem::Problem;
use crate::traits::{Admin, Inspect, Kv};
use bytes::Bytes;
use flotilla_router::{Answer, Command, Op, Outcome, Refusal, Reply, Request, Revision};
use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{Method, Response, StatusCode};

impl<K: Kv, A: Admin, I: Inspect> App<K, A, I> {
    /// Answers a request about the key in `rest` of the path.
    pub(super) async fn key(
        &self,
        parts: &Parts,
        body: Upload<'_>,
        rest: &str,
    ) -> Result<Response<Body>, Problem> {
        match parts.method {
            Method::GET | Method::HEAD => self.get(parts, path::key(rest, &self.limits)?).await,
            Method::PUT => self.put(parts, body, path::key(rest, &self.limits)?).await,
            Method::DELETE => self.delete(parts, path::key(rest, &self.limits)?).await,
            _ => Err(Problem::method_not_allowed("GET, HEAD, PUT, DELETE")),
        }
    }

    async fn get(&self, parts: &Parts, key: Bytes) -> Result<Response<Body>, Problem> {
        let consistency = Query::parse(parts.uri.query(), &["consistency", "max_staleness"])?
            .consistency(self.kv.default_consistency())?;
        // A malformed condition is an error whatever is there.
        etag::judge_read(&parts.headers, None)?;
        let reply = self.ask(Request::Get { key, consistency }).await?;
        let mut response = match &reply.answer {
            Answer::Value { value, revision } => {
                let tag = etag::of_revision(*revision);
                let mut response = match etag::judge_read(&parts.headers, Some(&tag))? {
                    etag::ReadVerdict::Go => {
                        let mut response = answer::ok(
                            HeaderValue::from_static("application/octet-stream"),
                            Body::Full(value.clone().into()),
                        );
                        response.headers_mut().insert(
                            header::X_CONTENT_TYPE_OPTIONS,
                            HeaderValue::from_static("nosniff"),
                        );
                        response
                    }
                    etag::ReadVerdict::NotModified => answer::empty(StatusCode::NOT_MODIFIED),
                    etag::ReadVerdict::Failed => {
                        return Err(condition_failed(&reply, Some(*revision)));
                    }
                };
                response.headers_mut().insert(header::ETAG, tag);
                response
            }
            Answer::Missing => match etag::judge_read(&parts.headers, None)? {
                etag::ReadVerdict::Failed => return Err(condition_failed(&reply, None)),
                _ => answer::problem(&no_such_key(&reply), self.node),
            },
            _ => return Err(unexpected(&reply, Outcome::NotApplied)),
        };
        answer::answered_by(&mut response, &reply);
        Ok(response)
    }

    async fn put(
        &self,
        parts: &Parts,
        body: Upload<'_>,
        key: Bytes,
    ) -> Result<Response<Body>, Problem> {
        if parts.uri.query().is_some() && Query::parse(parts.uri.query(), &["ttl"])?.has("ttl") {
            return Err(Problem::not_implemented("?ttl= (a key that expires)"));
        }
        let condition = etag::write_condition(&parts.headers, true)?;
        head::check_content_encoding(parts)?;
        if parts.headers.contains_key(header::CONTENT_RANGE) {
            return Err(Problem::malformed(
                "partial_put",
                "Content-Range: a value is put whole; send all of it without this header",
            ));
        }
        let wanted = Wanted {
            what: "a value",
            code: "value_too_large",
            bytes_max: self.limits.value_bytes_max,
        };
        if body.is_large(self.limits.value_bytes_max)
            && let Some(refusal) = self.kv.refusal_of_write(&key, self.deadline())
        {
            return Err(Problem::from(refusal).close());
        }
        // Held until the write is answered: the value is in memory for so long.
        let (value, _held) = body::read(body, &wanted, &self.limits).await?;
        self.write(Command::new(Op::Put { key, value }, condition)).await
    }

    async fn delete(&self, parts: &Parts, key: Bytes) -> Result<Response<Body>, Problem> {
        Query::parse(parts.uri.query(), &[])?;
        let condition = etag::write_condition(&parts.headers, false)?;
        self.write(Command::new(Op::Delete { key }, condition)).await
    }

    async fn write(&self, command: Command) -> Result<Response<Body>, Problem> {
        let reply = self.ask(Request::Write(command)).await?;
        let mut response = match reply.answer {
            Answer::Written { revision } => {
                let mut response = answer::empty(StatusCode::NO_CONTENT);
                response.headers_mut().insert(header::ETAG, etag::of_revision(revision));
                response
            }
            Answer::Deleted => answer::empty(StatusCode::NO_CONTENT),
            Answer::ConditionFailed { current } => return Err(condition_failed(&reply, current)),
            _ => return Err(unexpected(&reply, Outcome::Unknown)),
        };
        answer::answered_by(&mut response, &reply);
        Ok(response)
    }
}

/// 412 with what is there instead.
pub(super) fn condition_failed(reply: &Reply, current: Option<Revision>) -> Problem {
    let detail = match current {
        Some(revision) => format!("the condition does not hold: the key is at \"{revision}\""),
        None => "the condition does not hold: there is no such key".to_owned(),
    };
    Problem::precondition_failed(detail, current.map(etag::of_revision))
        .shard(reply.shard)
        .answered_by(reply.node)
}

/// 404 for a key.
pub(super) fn no_such_key(reply: &Reply) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "no_such_key", "no such key", "there is no such key")
        .shard(reply.shard)
        .answered_by(reply.node)
}

/// An answer to another question than the one asked: a fault of ours.
pub(super) fn unexpected(reply: &Reply, outcome: Outcome) -> Problem {
    tracing::error!(shard = %reply.shard, node = %reply.node, "an answer that does not fit its \
        question");
    let refusal = Refusal::Internal { why: "the answer does not fit the question".into(), outcome };
    Problem::from(refusal).shard(reply.shard).answered_by(reply.node)
}
