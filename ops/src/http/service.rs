//! From a request to its route, and from its result to a response: what every request passes,
//! whatever it is about.

use super::body::{Body, Upload};
use super::connection::too_many;
use super::heads::Framing;
use super::health::Rendered;
use super::leash::Leash;
use super::ledger::Patience;
use super::owed::Sent;
use super::pages::Pages;
use super::pulse::Pulse;
use super::server::Serves;
use super::share::{Account, Good, Held, Shares};
use super::{answer, head, pages, target};
use crate::limits::Limits;
use crate::metrics::{Metrics, Route};
use crate::problem::Problem;
use crate::traits::{Admin, Inspect, Kv};
use flotilla_router::{NodeId, Refusal, Reply, Request};
use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{Method, Response, StatusCode, Version};
use hyper::body::{Body as _, Incoming};
use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

/// Answers up to so many bytes are not counted one by one: the place of their request stands for
/// them.
const SMALL: usize = 4 << 10;

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
    /// What clients share.
    pub(super) shares: Arc<Shares>,
    /// The metrics as they were last rendered.
    pub(super) rendered: Rendered,
    /// Whether nothing but probes is answered here.
    probes_only: bool,
}

impl<K: Kv, A: Admin, I: Inspect> App<K, A, I> {
    pub(super) fn new(
        limits: Limits,
        serves: Serves,
        kv: Arc<K>,
        admin: Arc<A>,
        inspect: Arc<I>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let shares = Shares::new(
            (limits.requests_in_flight_max, metrics.http.in_flight.clone()),
            (limits.in_flight_bytes_max, metrics.http.in_flight_bytes.clone()),
            (limits.answer_bytes_max, metrics.http.answer_bytes.clone()),
        );
        let node = inspect.node();
        let (pages, probes_only) = match serves {
            Serves::Everything(pages) => (pages, false),
            Serves::Probes(pages) => (pages, true),
        };
        Self {
            kv,
            admin,
            inspect,
            metrics,
            limits,
            pages,
            node,
            shares,
            rendered: Rendered::default(),
            probes_only,
        }
    }

    /// When the time of a question that is asked now is up.
    pub(super) fn deadline(&self) -> Instant {
        Instant::now() + self.limits.request_timeout
    }

    /// Asks the node what is all that a request asks.
    pub(super) async fn ask(&self, request: Request) -> Result<Reply, Problem> {
        self.kv.call(request, self.deadline()).await.map_err(Problem::from)
    }

    /// Asks the node one of several questions of a request, whose time ends at `deadline`.
    pub(super) async fn ask_by(
        &self,
        request: Request,
        deadline: Instant,
    ) -> Result<Reply, Problem> {
        if Instant::now() >= deadline {
            return Err(self.too_late());
        }
        self.kv.call(request, deadline).await.map_err(Problem::from)
    }

    /// Waits for an answer about the cluster as long as a request may take. What is given up then,
    /// nobody works on any more.
    pub(super) async fn in_time<T>(
        &self,
        answer: impl Future<Output = Result<T, Refusal>>,
    ) -> Result<T, Problem> {
        match tokio::time::timeout(self.limits.request_timeout, answer).await {
            Ok(answer) => answer.map_err(Problem::from),
            Err(_elapsed) => Err(self.too_late()),
        }
    }

    /// 503: the request's time was up before this was asked, or before a question that changes
    /// nothing was answered.
    fn too_late(&self) -> Problem {
        let timeout = humantime::format_duration(self.limits.request_timeout);
        let detail = format!(
            "a request has {timeout}, and they were over; request for less at a time, or raise \
             limits.request_timeout"
        );
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "expired", "deadline passed", detail)
            .retryable()
    }
}

/// One connection's view of the server. A request holds this rather than the [`App`], so that
/// counting who holds it stays on one core.
pub(super) struct Session<K, A, I> {
    /// What all connections share.
    pub(super) app: Arc<App<K, A, I>>,
    /// What its socket is doing.
    pub(super) pulse: Arc<Pulse>,
    /// Whether it came in on a loopback address.
    pub(super) on_loopback: bool,
    /// What it is doing for the server.
    pub(super) leash: Arc<Leash>,
    /// What it has of what is shared.
    pub(super) account: Arc<Account>,
    /// Whether it has a kept place, and gets nothing but probes answered.
    pub(super) kept: bool,
}

/// A request that is being answered, for those who judge the connection; over also when its client
/// goes away.
struct InFlight<K, A, I>(Arc<Session<K, A, I>>);

impl<K, A, I> InFlight<K, A, I> {
    fn new(session: &Arc<Session<K, A, I>>, framing: Framing) -> Self {
        session.pulse.called(framing);
        session.leash.called();
        Self(session.clone())
    }
}

impl<K, A, I> Drop for InFlight<K, A, I> {
    fn drop(&mut self) {
        self.0.pulse.answered();
        self.0.leash.answered();
    }
}

impl<K: Kv, A: Admin, I: Inspect> Session<K, A, I> {
    /// Takes one request. What hyper says of its body is told at once: nothing more is read before.
    pub(super) fn handle(
        self: Arc<Self>,
        request: http::Request<Incoming>,
    ) -> impl Future<Output = Result<Response<Sent>, Infallible>> + Send {
        let framing = request.body().size_hint().exact().map_or(Framing::Chunked, Framing::Length);
        let in_flight = InFlight::new(&self, framing);
        self.answer(request, in_flight)
    }

    /// Answers it.
    async fn answer(
        self: Arc<Self>,
        request: http::Request<Incoming>,
        in_flight: InFlight<K, A, I>,
    ) -> Result<Response<Sent>, Infallible> {
        let begun = Instant::now();
        let app = &*self.app;
        let (parts, body) = request.into_parts();
        let mut shown_to = None;
        let (place, (route, result)) = match self.admit(&parts, &mut shown_to) {
            Err(problem) => (None, (Route::Other, Err(problem))),
            Ok(place) => (place, self.route(&parts, body, shown_to.is_some()).await),
        };
        let mut response = result.unwrap_or_else(|problem| self.refusal(&parts, &problem));
        self.pay(&parts, &mut response);
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
        Ok(self.send(response, place))
    }

    /// Judges a head, and finds a place among the requests in flight. Probes need none, where they
    /// are one at a time. `shown_to` is the origin whose pages may see the answer, a refusal too.
    fn admit(
        &self,
        parts: &Parts,
        shown_to: &mut Option<HeaderValue>,
    ) -> Result<Option<Held>, Problem> {
        let probe = is_probe(parts.uri.path());
        if self.kept && !probe {
            return Err(too_many(self.app.limits.connections_max));
        }
        if self.app.probes_only && !probe {
            let detail = "this address serves /livez, /readyz and /metrics; the rest of the API \
                          has another one";
            return Err(Problem::new(StatusCode::NOT_FOUND, "no_such_path", "not found", detail));
        }
        if let Some(problem) = target::refusal(parts.uri.path(), &self.app.limits) {
            return Err(problem);
        }
        head::check(parts, &self.app.limits)?;
        *shown_to = self.app.pages.judge(parts, self.on_loopback)?;
        if probe && parts.version < Version::HTTP_2 {
            return Ok(None);
        }
        self.account.hold(Good::Requests, 1).map(Some).map_err(Problem::close)
    }

    /// Answers what was admitted, on behalf of a web page or not.
    async fn route(
        self: &Arc<Self>,
        parts: &Parts,
        body: Incoming,
        for_page: bool,
    ) -> (Route, Result<Response<Body>, Problem>) {
        if let Some(response) = for_page.then(|| pages::preflight(parts)).flatten() {
            return (Route::Other, Ok(response));
        }
        let upload = Upload {
            incoming: body,
            account: &self.account,
            leash: &self.leash,
            pulse: &self.pulse,
        };
        self.app.dispatch(parts, upload, self).await
    }

    /// The response that a problem is.
    fn refusal(&self, parts: &Parts, problem: &Problem) -> Response<Body> {
        let mut response = answer::problem(problem, self.app.node);
        if problem.members().close {
            self.pulse.refuse_rest();
            if parts.version < Version::HTTP_2 {
                response
                    .headers_mut()
                    .insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
        }
        response
    }

    /// Takes what an answer needs of the budget for answers, where its handler has not. A read is
    /// refused where there is none; the answer to what was done is given anyway.
    fn pay(&self, parts: &Parts, response: &mut Response<Body>) {
        let Body::Full(piece) = response.body_mut() else { return };
        let bytes = piece.bytes.len();
        if piece.held.is_some() || bytes <= SMALL || parts.method == Method::HEAD {
            return;
        }
        if parts.method != Method::GET {
            piece.held = Some(self.account.hold_anyway(Good::Answers, bytes));
            return;
        }
        match self.account.hold(Good::Answers, bytes) {
            Ok(held) => piece.held = Some(held),
            Err(problem) => *response = self.refusal(parts, &problem),
        }
    }

    /// Hands an answer to hyper, and keeps an eye on it.
    fn send(&self, response: Response<Body>, place: Option<Held>) -> Response<Sent> {
        let limits = &self.app.limits;
        let patience = Patience {
            step: limits.write_timeout,
            making: limits.request_timeout,
            rate_min: limits.client_bytes_per_second_min,
            steps: self.pulse.is_http2(),
        };
        response.map(|body| Sent::new(body, place, &self.leash.ledger, patience))
    }
}

/// Whether a path is looked at by who wants to know how the node is.
fn is_probe(path: &str) -> bool {
    matches!(path, "/livez" | "/readyz" | "/metrics")
}

impl<K: Kv, A: Admin, I: Inspect> App<K, A, I> {
    /// Finds who answers. What answers rare questions is boxed: its state would else be copied with
    /// that of every question about a key.
    async fn dispatch(
        &self,
        parts: &Parts,
        body: Upload<'_>,
        session: &Arc<Session<K, A, I>>,
    ) -> (Route, Result<Response<Body>, Problem>) {
        let path = parts.uri.path();
        if parts.method == Method::CONNECT {
            return (
                Route::Other,
                Err(Problem::method_not_allowed("GET, HEAD, PUT, DELETE, POST")),
            );
        }
        if let Some(key) = path.strip_prefix("/v1/kv/") {
            return (Route::Key, self.key(parts, body, key).await);
        }
        if let Some(rest) = path.strip_prefix("/v1/admin/") {
            return (Route::Admin, Box::pin(self.admin(parts, body, rest)).await);
        }
        match path {
            "/v1/kv" => (Route::Range, Box::pin(self.range(parts, session)).await),
            "/v1/batch" => {
                (Route::Batch, Box::pin(self.batch(parts, body, &session.account)).await)
            }
            "/v1/txn" => (
                Route::Other,
                only(parts, &Method::POST, "POST")
                    .and(Err(Problem::not_implemented("POST /v1/txn"))),
            ),
            "/v1/watch" => (
                Route::Other,
                only(parts, &Method::GET, "GET")
                    .and(Err(Problem::not_implemented("GET /v1/watch"))),
            ),
            "/v1/limits" => (Route::Other, self.show_limits(parts)),
            "/livez" => (Route::Other, self.livez(parts)),
            "/readyz" => (Route::Other, self.readyz(parts)),
            "/metrics" => (Route::Other, self.show_metrics(parts, &session.account)),
            _ => (Route::Other, Err(Problem::no_such_path())),
        }
    }

    async fn range(
        &self,
        parts: &Parts,
        session: &Arc<Session<K, A, I>>,
    ) -> Result<Response<Body>, Problem> {
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
    if matches!(parts.method, Method::GET | Method::HEAD) {
        Ok(())
    } else {
        Err(Problem::method_not_allowed("GET, HEAD"))
    }
}
