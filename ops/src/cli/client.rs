//! Finds a node that answers, asks it, and never sends a write twice.
//!
//! | what happened | a read | a write |
//! |---|---|---|
//! | no connection: nothing was sent | asks the next endpoint | asks the next endpoint |
//! | the connection broke, or nothing came in time | asks the next endpoint | gives up, outcome unknown |
//! | an answer came | takes it | takes it |
//!
//! Inside the cluster a request finds its own way, so which node is asked does not matter. The one
//! that answered last is asked first. Below this, the HTTP library sends a request anew where the
//! kept connection was closed before any of it had left: that is no second time.

use super::failure::Failure;
use bytes::{Bytes, BytesMut};
use flotilla_router::Outcome;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Method, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use std::error::Error;
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// How long to wait for one connection before the next endpoint is tried.
const CONNECT_TIMEOUT_MAX: Duration = Duration::from_secs(2);

/// The first node of `flotilla dev`.
pub const DEFAULT_ENDPOINT: &str = "http://127.0.0.1:7001";

/// A node's HTTP address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint(String);

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let bad = |why: &str| format!("{why}; an endpoint is http://host:port");
        let with_scheme =
            if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let uri: http::Uri = with_scheme.parse().map_err(|error| bad(&format!("{error}")))?;
        let authority = uri
            .authority()
            .filter(|authority| !authority.host().is_empty())
            .ok_or_else(|| bad("no host"))?;
        if uri.scheme_str() != Some("http") {
            return Err(bad("only http is spoken here"));
        }
        // With `http://` in front, the usual port is meant; a bare word is more likely to lack one.
        if authority.port_u16().is_none() && !text.contains("://") {
            return Err(bad("no port"));
        }
        if uri.path_and_query().is_some_and(|rest| !matches!(rest.as_str(), "" | "/")) {
            return Err(bad("no path goes behind the port"));
        }
        Ok(Self(format!("http://{authority}")))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Several addresses, as one argument or variable holds them: with commas, semicolons or spaces
/// between them. None where it is empty, as a variable is that somebody set to nothing.
#[derive(Clone, Debug)]
pub struct Endpoints(Vec<Endpoint>);

impl Endpoints {
    /// All of several arguments; where they name none, the first node of a cluster on this machine.
    pub fn all(lists: &[Self]) -> Vec<Endpoint> {
        let named: Vec<Endpoint> = lists.iter().flat_map(|list| list.0.iter().cloned()).collect();
        if named.is_empty() { vec![Endpoint(DEFAULT_ENDPOINT.to_owned())] } else { named }
    }
}

impl FromStr for Endpoints {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let named = text
            .split(|c: char| matches!(c, ',' | ';') || c.is_whitespace())
            .filter(|one| !one.is_empty());
        named.map(str::parse).collect::<Result<_, _>>().map(Self)
    }
}

/// What is asked.
#[derive(Clone, Debug)]
pub(super) struct Request {
    method: Method,
    path_and_query: String,
    headers: HeaderMap,
    body: Bytes,
}

impl Request {
    /// Without headers or body.
    pub(super) fn new(method: Method, path_and_query: impl Into<String>) -> Self {
        Self {
            method,
            path_and_query: path_and_query.into(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
        }
    }

    /// A read.
    pub(super) fn get(path_and_query: impl Into<String>) -> Self {
        Self::new(Method::GET, path_and_query)
    }

    /// The same with a header.
    pub(super) fn header(mut self, name: HeaderName, value: &str) -> Result<Self, Failure> {
        let value = HeaderValue::from_str(value)
            .map_err(|_| Failure::Usage(format!("{value:?} can't stand in the header {name}")))?;
        self.headers.insert(name, value);
        Ok(self)
    }

    /// The same with a body.
    pub(super) fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// The same with a body of JSON.
    pub(super) fn json(mut self, body: &impl serde::Serialize) -> Self {
        self.headers
            .insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        self.body(
            serde_json::to_vec(body)
                .expect("what the client sends are plain structs, which always are JSON"),
        )
    }

    /// Whether sending it twice could do harm.
    pub(super) fn is_write(&self) -> bool {
        self.method != Method::GET
    }
}

/// What was answered.
#[derive(Debug)]
pub(super) struct Reply {
    headers: HeaderMap,
    /// The whole body.
    pub(super) body: Bytes,
}

impl Reply {
    /// A header's value.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// A header that is a number, with or without quotes.
    pub(super) fn number(&self, name: &str) -> Option<u64> {
        self.header(name)?.trim_matches('"').parse().ok()
    }

    /// The body as JSON.
    pub(super) fn json<T: serde::de::DeserializeOwned>(
        &self,
        what: &str,
        is_write: bool,
    ) -> Result<T, Failure> {
        serde_json::from_slice(&self.body)
            .map_err(|error| Failure::unreadable(what, error, is_write))
    }
}

/// Asks nodes.
pub(super) struct Client {
    http: legacy::Client<HttpConnector, Full<Bytes>>,
    endpoints: Vec<Endpoint>,
    /// The endpoint that answered last.
    last: AtomicUsize,
    timeout: Duration,
}

impl Client {
    /// Asks these endpoints, and waits so long for an answer.
    pub(super) fn new(endpoints: Vec<Endpoint>, timeout: Duration) -> Self {
        let http = legacy::Client::builder(TokioExecutor::new()).build(connector(timeout));
        Self { http, endpoints, last: AtomicUsize::new(0), timeout }
    }

    /// Asks, and takes the whole answer. An answer that says no is a failure.
    pub(super) async fn call(&self, request: Request) -> Result<Reply, Failure> {
        let (response, endpoint) = self.send(&request).await?;
        let (parts, body) = response.into_parts();
        let collected = tokio::time::timeout(self.timeout, body.collect()).await;
        let body = match collected {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) => {
                return Err(lost(
                    &request,
                    format!("{endpoint}: the answer broke off: {}", cause(&error)),
                ));
            }
            Err(_) => {
                return Err(lost(
                    &request,
                    format!(
                        "{endpoint}: the answer broke off: nothing more for {:?}",
                        self.timeout
                    ),
                ));
            }
        };
        if parts.status.is_success() {
            return Ok(Reply { headers: parts.headers, body });
        }
        Err(Failure::problem(parts.status.as_u16(), &body, request.is_write()))
    }

    /// Asks for lines, which are read as they come.
    pub(super) async fn lines(&self, request: Request) -> Result<Lines, Failure> {
        let (response, endpoint) = self.send(&request).await?;
        if response.status() == StatusCode::OK {
            let body = response.into_body();
            return Ok(Lines {
                body,
                endpoint,
                buffer: BytesMut::new(),
                searched: 0,
                timeout: self.timeout,
            });
        }
        let status = response.status().as_u16();
        let body = tokio::time::timeout(self.timeout, response.into_body().collect()).await;
        let body = body.ok().and_then(Result::ok).map(|body| body.to_bytes()).unwrap_or_default();
        Err(Failure::problem(status, &body, request.is_write()))
    }

    /// Asks one endpoint after the other, as the table above says.
    async fn send(&self, request: &Request) -> Result<(Response<Incoming>, Endpoint), Failure> {
        let first = self.last.load(Ordering::Relaxed);
        let mut failures = Vec::new();
        for n in 0..self.endpoints.len() {
            let at = (first + n) % self.endpoints.len();
            let endpoint = &self.endpoints[at];
            let why = match tokio::time::timeout(
                self.timeout,
                self.http.request(build(request, endpoint)?),
            )
            .await
            {
                Ok(Ok(response)) => {
                    self.last.store(at, Ordering::Relaxed);
                    return Ok((response, endpoint.clone()));
                }
                Ok(Err(error)) if error.is_connect() => format!("{endpoint}: {}", cause(&error)),
                Ok(Err(error)) => {
                    let why = format!(
                        "{endpoint}: the connection was lost before the answer came: {}",
                        cause(&error)
                    );
                    if request.is_write() {
                        return Err(lost(request, why));
                    }
                    why
                }
                Err(_) => {
                    let why = format!(
                        "{endpoint}: no answer within {}",
                        humantime::format_duration(self.timeout)
                    );
                    if request.is_write() {
                        return Err(lost(request, why));
                    }
                    why
                }
            };
            failures.push(why);
        }
        let outcome = request.is_write().then_some(Outcome::NotApplied);
        Err(Failure::Unreachable {
            why: format!("no node answered: {}", failures.join("; ")),
            outcome,
        })
    }
}

/// What opens connections for requests of this patience.
pub(super) fn connector(timeout: Duration) -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(timeout.min(CONNECT_TIMEOUT_MAX)));
    connector.set_nodelay(true);
    connector
}

/// A request that was sent and not answered.
fn lost(request: &Request, why: String) -> Failure {
    Failure::Unreachable { why, outcome: request.is_write().then_some(Outcome::Unknown) }
}

/// The request as it goes to one endpoint.
pub(super) fn build(
    request: &Request,
    endpoint: &Endpoint,
) -> Result<http::Request<Full<Bytes>>, Failure> {
    let mut built = http::Request::builder()
        .method(request.method.clone())
        .uri(format!("{endpoint}{}", request.path_and_query))
        .body(Full::new(request.body.clone()))
        .map_err(|error| Failure::Usage(format!("this can't be asked over HTTP: {error}")))?;
    *built.headers_mut() = request.headers.clone();
    Ok(built)
}

/// The innermost reason: "Connection refused" rather than "client error".
pub(super) fn cause(error: &dyn Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// A stream of lines.
pub(super) struct Lines {
    body: Incoming,
    endpoint: Endpoint,
    buffer: BytesMut,
    /// So many bytes of the buffer hold no end of a line.
    searched: usize,
    timeout: Duration,
}

impl Lines {
    /// The next line, without its end; `None` behind the last.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            if let Some(at) = self.buffer[self.searched..].iter().position(|&byte| byte == b'\n') {
                let line = self.buffer.split_to(self.searched + at + 1).freeze();
                self.searched = 0;
                return Ok(Some(line.slice(..line.len() - 1)));
            }
            self.searched = self.buffer.len();
            let broke_off = |why: String| Failure::Unreachable {
                why: format!("{}: the stream broke off: {why}", self.endpoint),
                outcome: None,
            };
            match tokio::time::timeout(self.timeout, self.body.frame()).await {
                Err(_) => {
                    return Err(broke_off(format!(
                        "nothing more for {}",
                        humantime::format_duration(self.timeout)
                    )));
                }
                Ok(Some(Err(error))) => return Err(broke_off(cause(&error))),
                Ok(Some(Ok(frame))) => {
                    if let Some(data) = frame.data_ref() {
                        self.buffer.extend_from_slice(data);
                    }
                }
                Ok(None) if self.buffer.is_empty() => return Ok(None),
                Ok(None) => {
                    self.searched = 0;
                    return Ok(Some(self.buffer.split().freeze()));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_understood_or_refused_with_what_is_allowed() {
        for (text, expected) in [
            ("http://127.0.0.1:7001", "http://127.0.0.1:7001"),
            ("http://[::1]:7001/", "http://[::1]:7001"),
            ("db-1:7001", "http://db-1:7001"),
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), expected);
        }
        let several = "http://a:1, b:2  c:3;".parse::<Endpoints>().unwrap();
        assert_eq!(
            Endpoints::all(&[several]).iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["http://a:1", "http://b:2", "http://c:3"]
        );
        let none = " , ".parse::<Endpoints>().unwrap();
        assert_eq!(
            Endpoints::all(&[none]).iter().map(ToString::to_string).collect::<Vec<_>>(),
            [DEFAULT_ENDPOINT]
        );
        for bad in [
            "localhost",
            "db-1",
            "127.0.0.1",
            "",
            "https://a:1",
            "http://",
            "http://a:1/v1",
            "a b",
            "unix:///x",
        ] {
            assert!(bad.parse::<Endpoint>().unwrap_err().contains("http://host:port"), "{bad:?}");
        }
    }
}
