//! `/livez`, `/readyz`, `/metrics`, `/v1/limits`: what machines look at.
//!
//! A process that is not live should be restarted; one that is not ready should get no requests for
//! now. Both say `ok`, or a problem with 503; with `?verbose` they list what they rest on, one line
//! per check: `[+]name ok`, `[-]name failed: why`.

use super::answer;
use super::body::{Body, Piece};
use super::query::Query;
use super::service::{App, only_get};
use super::share::{Account, Good};
use crate::metrics::Metrics;
use crate::problem::Problem;
use crate::traits::{Admin, Check, Inspect, Kv};
use bytes::Bytes;
use http::header::{HeaderValue, RETRY_AFTER};
use http::request::Parts;
use http::{Response, StatusCode};
use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long one rendering of the metrics is shared where there is no room for another.
const SHARED_FOR: Duration = Duration::from_secs(1);

impl<K: Kv, A: Admin, I: Inspect> App<K, A, I> {
    pub(super) fn livez(&self, parts: &Parts) -> Result<Response<Body>, Problem> {
        only_get(parts)?;
        let verbose =
            Query::parse(parts.uri.query(), &["verbose"])?.flag("verbose")?.unwrap_or(false);
        let live = self.inspect.live();
        let (ok, detail) = (live.is_ok(), live.err().unwrap_or_default());
        health("livez", ok, &[Check { name: "loop".into(), ok, detail }], verbose)
    }

    pub(super) fn readyz(&self, parts: &Parts) -> Result<Response<Body>, Problem> {
        only_get(parts)?;
        let verbose =
            Query::parse(parts.uri.query(), &["verbose"])?.flag("verbose")?.unwrap_or(false);
        let readiness = self.inspect.ready();
        health("readyz", readiness.ready, &readiness.checks, verbose)
    }

    pub(super) fn show_metrics(
        &self,
        parts: &Parts,
        account: &Arc<Account>,
    ) -> Result<Response<Body>, Problem> {
        only_get(parts)?;
        Query::parse(parts.uri.query(), &[])?;
        let piece = self.rendered.show(account, || {
            self.inspect.collect();
            self.metrics.render().into()
        });
        Ok(answer::ok(HeaderValue::from_static(Metrics::CONTENT_TYPE), Body::Full(piece)))
    }

    pub(super) fn show_limits(&self, parts: &Parts) -> Result<Response<Body>, Problem> {
        only_get(parts)?;
        Query::parse(parts.uri.query(), &[])?;
        answer::json(&self.limits)
    }
}

/// The metrics as they were last rendered. They are rendered for each who asks; where answers have
/// no room left, the last rendering is shared, and made anew once a second: metrics are always
/// answered, and many who don't take them cost little.
#[derive(Default)]
pub(super) struct Rendered(Mutex<Option<(Instant, Bytes)>>);

impl Rendered {
    fn show(&self, account: &Arc<Account>, render: impl FnOnce() -> Bytes) -> Piece {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, bytes)) = &*last
            && at.elapsed() < SHARED_FOR
            && account.check(Good::Answers, bytes.len()).is_err()
        {
            return Piece {
                bytes: bytes.clone(),
                held: Some(account.hold_anyway(Good::Answers, 0)),
            };
        }
        let bytes = render();
        *last = Some((Instant::now(), bytes.clone()));
        let held = account.hold_anyway(Good::Answers, bytes.len());
        Piece { bytes, held: Some(held) }
    }
}

/// The answer of a health check: `ok`, or a problem that names what failed; with `verbose` a line
/// per check either way.
fn health(
    name: &'static str,
    ok: bool,
    checks: &[Check],
    verbose: bool,
) -> Result<Response<Body>, Problem> {
    if !verbose && !ok {
        let failed: Vec<String> = checks
            .iter()
            .filter(|check| !check.ok)
            .map(|c| format!("{}: {}", c.name, c.detail))
            .collect();
        let code = if name == "livez" { "not_live" } else { "not_ready" };
        let detail = format!("{}; /{name}?verbose shows every check", failed.join("; "));
        return Err(Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            code,
            "health check failed",
            detail,
        )
        .retryable());
    }
    let mut text = String::new();
    if verbose {
        for check in checks {
            let colon = if check.detail.is_empty() { "" } else { ": " };
            let (sign, word) = if check.ok { ('+', "ok") } else { ('-', "failed") };
            let _ = writeln!(text, "[{sign}]{} {word}{colon}{}", check.name, check.detail);
        }
        let _ = writeln!(text, "{name} check {}", if ok { "passed" } else { "failed" });
    } else {
        text.push_str("ok");
    }
    let mut response = answer::text(text);
    if !ok {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    Ok(response)
}
