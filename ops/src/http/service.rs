//! From a request to its route, and from its result to a response: what every request passes, whatever it is about.

use super::body::{Body, Budget};
use super::heads::Framing;
use super::pages::Pages;
use super::wire::Pulse;
use super::{answer, head, pages, target};
use crate::limits::Limits;
use crate::metrics::{Metrics, Route};
use crate::problem::Problem;
use crate::traits::{Admin, Inspect, Kv};
use flotilla_router::{Ask, NodeId, Refusal, Reply};
use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Version};
use hyper::body::{Body as _, Incoming};
use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// What all connections share.
pub(super) struct App<K, A, I> {
    /// Answers questions about keys.
    pub(super) kv: Arc<K>,
    /// Answers questions about the cluster.
    pub(super) admin: Arc<A>,
    /// Answers questions about the process.
    pub(super) inspect: Arc<I>,
    /// Where everything is counted.
    pub(super) metrics: Arc<Metrics>,
    /// The limits in force.
    pub(super) limits: Limits,
    /// Which hosts and web pages are served.
    pages: Pages,
    /// This node.
    pub(super) node: NodeId,
    /// What request bodies may hold together.
    pub(super) budget: Budget,
    /// Requests that are being answered.
    in_flight: AtomicUsize,
}

impl<K: Kv, A: Admin, I: Inspect> App<K, A, I> {
    pub(super) fn new(limits: Limits, pages: Pages, kv: Arc<K>, admin: Arc<A>, inspect: Arc<I>, metrics: Arc<Metrics>) -> Self {
        let budget = Budget::new(limits.in_flight_bytes_max, metrics.http.in_flight_bytes.clone());
        let node = inspect.node();
        Self { kv, admin, inspect, metrics, limits, pages, node, budget, in_flight: AtomicUsize::new(0) }
    }

    /// When the time of a question that is asked now is up.
    pub(super) fn deadline(&self) -> Instant {
        Instant::now() + self.limits.request_timeout
    }

    /// Asks the node what is all that a request asks.
    pub(super) async fn ask(&self, ask: Ask) -> Result<Reply, Problem> {
        self.kv.call(ask, self.deadline()).await.map_err(Problem::from)
    }

    /// Asks the node one of several questions of a request, whose time ends at `deadline`.
    pub(super) async fn ask_by(&self, ask: Ask, deadline: Instant) -> Result<Reply, Problem> {
        if Instant::now() >= deadline {
            return Err(self.too_late());
        }
        self.kv.call(ask, deadline).await.map_err(Problem::from)
    }

    /// Waits for an answer about the cluster as long as a request may take. What is given up then, nobody works on any more.
    pub(super) async fn in_time<T>(&self, answer: impl Future<Output = Result<T, Refusal>>) -> Result<T, Problem> {
        match tokio::time::timeout(self.limits.request_timeout, answer).await {
            Ok(answer) => answer.map_err(Problem::from),
            Err(_elapsed) => Err(self.too_late()),
        }
    }

    /// 503: the request's time was up before this was asked, or before a question that changes nothing was answered.
    fn too_late(&self) -> Problem {
        let timeout = humantime::format_duration(self.limits.request_timeout);
        let detail =
            format!("a request has {timeout}, and they were over; ask for less at a time, or raise limits.request_timeout");
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "expired", "deadline passed", detail).retryable()
    }
}

/// One connection's view of the server. A request holds this rather than the [`App`], so that counting who holds it stays on one core.
pub(super) struct Session<K, A, I> {
    /// What all connections share.
    pub(super) app: Arc<App<K, A, I>>,
    /// What the connection is doing.
    pub(super) pulse: Arc<Pulse>,
    /// Whether it came in on a loopback address.
    pub(super) on_loopback: bool,
}

/// A request that is being answered; counted while it lives, also when its client goes away.
struct InFlight<K, A, I>(Arc<Session<K, A, I>>);

impl<K, A, I> Drop for InFlight<K, A, I> {
    fn drop(&mut self) {
        self.0.pulse.answered();
        self.0.app.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.0.app.metrics.http.in_flight.dec();
    }
}

impl<K: Kv, A: Admin, I: Inspect> Session<K, A, I> {
    /// Takes one request. What hyper says of its body is told at once: nothing more is read before.
    pub(super) fn handle(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> impl Future<Output = Result<Response<Body>, Infallible>> + Send {
        self.pulse.called(request.body().size_hint().exact().map_or(Framing::Chunked, Framing::Length));
        self.app.metrics.http.in_flight.inc();
        let others = self.app.in_flight.fetch_add(1, Ordering::Relaxed);
        let in_flight = InFlight(self.clone());
        self.answer(request, others, in_flight)
    }

    /// Answers it.
    async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
        others: usize,
        in_flight: InFlight<K, A, I>,
    ) -> Result<Response<Body>, Infallible> {
        let begun = Instant::now();
        let app = &*self.app;
        let (parts, body) = request.into_parts();
        let mut shown_to = None;
        let (route, result) = if others >= app.limits.requests_in_flight_max {
            (Route::Other, Err(Problem::overloaded("requests in flight", app.limits.requests_in_flight_max).close()))
        } else if let Some(problem) = target::refusal(parts.uri.path(), &app.limits) {
            (Route::Other, Err(problem))
        } else {
            match head::check(&parts, &app.limits).and_then(|()| app.pages.judge(&parts, self.on_loopback)) {
                Err(problem) => (Route::Other, Err(problem)),
                Ok(origin) => {
                    let preflight = origin.is_some().then(|| pages::preflight(&parts)).flatten();
                    shown_to = origin;
                    match preflight {
                        Some(response) => (Route::Other, Ok(response)),
                        None => app.dispatch(&parts, body, &self).await,
                    }
                }
            }
        };
        let mut response = result.unwrap_or_else(|problem| {
            let mut response = answer::problem(&problem, app.node);
            if problem.members().close {
                self.pulse.refuse_rest();
                if parts.version < Version::HTTP_2 {
                    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
            }
            response
        });
        if parts.version < Version::HTTP_2 && self.pulse.is_early() {
            self.pulse.refuse_rest();
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if let Some(origin) = shown_to {
            pages::show_to(origin, &mut response);
        }
        answer::finish(&mut response, &parts.method);
        app.metrics.http.observe(route, &parts.method, response.status().as_u16(), begun.elapsed());
        drop(in_flight);
        Ok(response)
    }
}

impl<K: Kv, A: Admin, I: Inspect> App<K, A, I> {
    /// Finds who answers.
    async fn dispatch(
        &self,
        parts: &Parts,
        body: Incoming,
        session: &Arc<Session<K, A, I>>,
    ) -> (Route, Result<Response<Body>, Problem>) {
        let path = parts.uri.path();
        if parts.method == Method::CONNECT {
            return (Route::Other, Err(Problem::method_not_allowed("GET, HEAD, PUT, DELETE, POST")));
        }
        if let Some(key) = path.strip_prefix("/v1/kv/") {
            return (Route::Key, self.key(parts, body, key).await);
        }
        if let Some(rest) = path.strip_prefix("/v1/admin/") {
            return (Route::Admin, self.admin(parts, body, rest).await);
        }
        match path {
            "/v1/kv" => (Route::Range, self.range(parts, session).await),
            "/v1/batch" => (Route::Batch, self.batch(parts, body).await),
            "/v1/txn" => (Route::Other, only(parts, &Method::POST, "POST").and(Err(Problem::not_implemented("POST /v1/txn")))),
            "/v1/watch" => (Route::Other, only(parts, &Method::GET, "GET").and(Err(Problem::not_implemented("GET /v1/watch")))),
            "/v1/limits" => (Route::Other, self.show_limits(parts)),
            "/livez" => (Route::Other, self.livez(parts)),
            "/readyz" => (Route::Other, self.readyz(parts)),
            "/metrics" => (Route::Other, self.show_metrics(parts)),
            _ => (Route::Other, Err(Problem::no_such_path())),
        }
    }

    async fn range(&self, parts: &Parts, session: &Arc<Session<K, A, I>>) -> Result<Response<Body>, Problem> {
        match parts.method {
            Method::GET | Method::HEAD => self.scan(parts, session).await,
            Method::DELETE => self.delete_range(parts).await,
            _ => Err(Problem::method_not_allowed("GET, HEAD, DELETE")),
        }
    }
}

/// 405 unless the request has this method.
pub(super) fn only(parts: &Parts, method: &Method, allow: &'static str) -> Result<(), Problem> {
    if parts.method == *method { Ok(()) } else { Err(Problem::method_not_allowed(allow)) }
}

/// 405 unless the request reads.
pub(super) fn only_get(parts: &Parts) -> Result<(), Problem> {
    if matches!(parts.method, Method::GET | Method::HEAD) { Ok(()) } else { Err(Problem::method_not_allowed("GET, HEAD")) }
}
