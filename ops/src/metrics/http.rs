//! What the HTTP server counts: requests by route, method and status, their time, connections,
//! bytes.
//!
//! The counter of each (route, method, status) is looked up by label once, when it is first needed,
//! and then found by index: the way of a request takes no lock and hashes nothing.

use super::{Maker, SECONDS};
use http::Method;
use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge};
use std::sync::OnceLock;
use std::time::Duration;

/// What a request is about, as far as metrics tell requests apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// One key.
    Key,
    /// A range of keys.
    Range,
    /// A batch.
    Batch,
    /// The admin API.
    Admin,
    /// Health, metrics, limits, and paths that don't exist.
    Other,
}

/// Names of the routes, in the order of [`Route`].
const ROUTES: [&str; 5] = ["key", "range", "batch", "admin", "other"];
/// Names of the methods; the last stands for all others.
const METHODS: [&str; 6] = ["GET", "PUT", "DELETE", "POST", "HEAD", "other"];
/// The statuses that the server answers with, in order; any other is counted as 500.
const STATUSES: [u16; 25] = [
    200, 202, 204, 304, 400, 401, 403, 404, 405, 406, 408, 409, 412, 413, 414, 415, 417, 428, 429,
    431, 500, 501, 503, 504, 507,
];
/// Where 500 stands among them.
const STATUS_500: usize = 20;

/// The HTTP server's metrics.
pub struct HttpMetrics {
    requests_by_label: IntCounterVec,
    requests: [[[OnceLock<IntCounter>; STATUSES.len()]; METHODS.len()]; ROUTES.len()],
    seconds: [[Histogram; METHODS.len()]; ROUTES.len()],
    /// Requests that are being answered.
    pub in_flight: IntGauge,
    /// Bytes of request bodies held for requests that are being answered.
    pub in_flight_bytes: IntGauge,
    /// Bytes of answers that clients have not taken.
    pub answer_bytes: IntGauge,
    /// Open connections.
    pub connections: IntGauge,
    /// Connections accepted.
    pub connections_accepted: IntCounter,
    /// Connections refused because there were too many.
    pub connections_refused: IntCounter,
    /// Idle connections closed for others.
    pub connections_evicted: IntCounter,
    /// Requests that HTTP itself could not make sense of.
    pub malformed: IntCounter,
    /// Connections closed because the client was too slow.
    pub timeouts: IntCounter,
}

impl HttpMetrics {
    pub(super) fn new(make: &Maker<'_>) -> Self {
        let seconds: HistogramVec = make.registered(HistogramVec::new(
            HistogramOpts::new(
                "flotilla_http_request_seconds",
                "Time from a request's head to its answer, by route and method.",
            )
            .buckets(SECONDS.to_vec()),
            &["route", "method"],
        ));
        Self {
            requests_by_label: make.counters(
                "flotilla_http_requests_total",
                "Requests answered, by route, method and status.",
                &["route", "method", "status"],
            ),
            requests: Default::default(),
            seconds: ROUTES
                .map(|route| METHODS.map(|method| seconds.with_label_values(&[route, method]))),
            in_flight: make
                .gauge("flotilla_http_requests_in_flight", "Requests that are being answered."),
            in_flight_bytes: make.gauge(
                "flotilla_http_request_bytes_in_flight",
                "Bytes of request bodies being held.",
            ),
            answer_bytes: make.gauge(
                "flotilla_http_answer_bytes",
                "Bytes of answers that clients have not taken.",
            ),
            connections: make.gauge("flotilla_http_connections", "Open connections."),
            connections_accepted: make
                .counter("flotilla_http_connections_accepted_total", "Connections accepted."),
            connections_refused: make.counter(
                "flotilla_http_connections_refused_total",
                "Connections refused because there were too many.",
            ),
            connections_evicted: make.counter(
                "flotilla_http_connections_evicted_total",
                "Connections closed for others, since there were too many and they were idle for \
                 longest.",
            ),
            malformed: make.counter("flotilla_http_malformed_total", "Requests that were no HTTP."),
            timeouts: make.counter(
                "flotilla_http_timeouts_total",
                "Connections closed because the client was too slow.",
            ),
        }
    }

    /// Counts one answered request.
    pub fn observe(&self, route: Route, method: &Method, status: u16, time: Duration) {
        let route = route as usize;
        let method = match *method {
            Method::GET => 0,
            Method::PUT => 1,
            Method::DELETE => 2,
            Method::POST => 3,
            Method::HEAD => 4,
            _ => 5,
        };
        let index = STATUSES.binary_search(&status).unwrap_or(STATUS_500);
        self.requests[route][method][index]
            .get_or_init(|| {
                let status = STATUSES[index].to_string();
                self.requests_by_label.with_label_values(&[ROUTES[route], METHODS[method], &status])
            })
            .inc();
        self.seconds[route][method].observe(time.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Metrics;

    #[test]
    fn the_table_of_statuses_can_be_searched() {
        assert!(STATUSES.is_sorted());
        assert_eq!(STATUSES[STATUS_500], 500);
        let metrics = Metrics::default();
        for status in [200, 431, 507, 418] {
            metrics.http.observe(Route::Batch, &Method::POST, status, Duration::ZERO);
        }
        let text = String::from_utf8(metrics.render()).unwrap();
        for status in [200, 431, 507, 500] {
            assert!(
                text.contains(&format!(r#"{{method="POST",route="batch",status="{status}"}} 1"#)),
                "{status} in {text}"
            );
        }
    }
}
