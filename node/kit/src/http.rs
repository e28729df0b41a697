//! A blocking HTTP client for the threads of a test.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use ureq::Agent;
use ureq::http::{HeaderMap, Request};

/// What a node answered.
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The header fields.
    pub headers: HeaderMap,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// A header field, where it is there.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The revision that the ETag shows, where there is one.
    pub fn etag(&self) -> Option<u64> {
        self.header("etag").map(|etag| etag.trim_matches('"').parse().unwrap())
    }

    /// The revision that the ETag shows.
    pub fn revision(&self) -> u64 {
        self.etag().unwrap_or_else(|| panic!("no ETag in {} {:?}", self.status, self.headers))
    }

    /// Itself, where its status is 200.
    pub fn ok(self) -> Option<Self> {
        (self.status == 200).then_some(self)
    }

    /// Panics unless the status is the one that is wanted.
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.text());
        self
    }
}

/// Asks nodes; cheap to clone, and every clone shares the connections.
#[derive(Clone)]
pub struct Client {
    agent: Agent,
    /// Where each node serves HTTP, the first first.
    nodes: Arc<[SocketAddr]>,
}

impl Client {
    /// A client of the nodes at these addresses. Nothing is ever sent a second time.
    pub fn new(nodes: impl Into<Arc<[SocketAddr]>>, timeout: Duration) -> Self {
        let config = Agent::config_builder().http_status_as_error(false);
        let config = config.timeout_global(Some(timeout)).proxy(None);
        let config = config.max_idle_connections_per_host(32).max_idle_connections(128);
        Self { agent: config.build().into(), nodes: nodes.into() }
    }

    /// The same nodes, with connections of its own and another patience.
    pub fn patience(&self, timeout: Duration) -> Self {
        Self::new(self.nodes.clone(), timeout)
    }

    /// Sends a request; an error is a connection that was refused or lost, or the timeout.
    pub fn send(
        &self,
        node: u64,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&[u8]>,
    ) -> Result<Answer, ureq::Error> {
        let address = self.nodes[node as usize - 1];
        let mut request = Request::builder().method(method).uri(format!("http://{address}{path}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = match body {
            Some(body) => self.agent.run(request.body(body).expect("the test's request is one"))?,
            None => self.agent.run(request.body(()).expect("the test's request is one"))?,
        };
        let (parts, mut body) = response.into_parts();
        let body = body.with_config().limit(256 << 20).read_to_vec()?;
        Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, body })
    }

    /// Sends a request that must be answered.
    pub fn ask(
        &self,
        node: u64,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&[u8]>,
    ) -> Answer {
        self.send(node, method, path, headers, body)
            .unwrap_or_else(|error| panic!("{method} {path} of node {node}: {error}"))
    }

    /// `GET`.
    pub fn get(&self, node: u64, path: &str) -> Answer {
        self.ask(node, "GET", path, &[], None)
    }

    /// `GET` of JSON that must be there.
    pub fn json(&self, node: u64, path: &str) -> serde_json::Value {
        self.get(node, path).expect(200).json()
    }

    /// `PUT` of a key that must succeed; the revision.
    pub fn put(&self, node: u64, key: &str, value: &[u8]) -> u64 {
        self.ask(node, "PUT", &format!("/v1/kv/{key}"), &[], Some(value)).expect(204).revision()
    }

    /// The value of a metric without labels; `None` where the node does not answer.
    pub fn metric(&self, node: u64, name: &str) -> Option<f64> {
        let text = self.send(node, "GET", "/metrics", &[], None).ok()?.text();
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    }
}

/// Whether nothing was sent, because nobody listens.
pub(crate) fn is_not_connected(error: &ureq::Error) -> bool {
    matches!(error, ureq::Error::Io(error) if error.kind() == std::io::ErrorKind::ConnectionRefused)
        || matches!(error, ureq::Error::ConnectionFailed)
}
