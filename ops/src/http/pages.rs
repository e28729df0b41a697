//! Web pages. A browser on this machine, or within reach of a node, sends requests on behalf of
//! whatever page it shows; the page must not reach the data by that.
//!
//! Three ways lead here, and each has its door:
//!
//! 1. A foreign page sends a request that needs no permission, such as a form. The browser says
//!    where the page is from, in `Origin` or at least in `Sec-Fetch-Site`: foreign ones are
//!    refused, unless their origin is configured (`http_origins`). What a page may not read it may
//!    not cause either, so reads are refused too.
//! 2. A page makes its own name point to a loopback address, and is then at home with us. Its
//!    requests still name it in `Host`, so on a loopback address only loopback names are served,
//!    unless others are configured (`http_hosts`). A name without a dot is nobody's in public DNS,
//!    so it is served too: it stands in hosts files and in `curl -H 'Host: x'`. `0.0.0.0` leads to
//!    a loopback address as well, but is none: browsers send no `Sec-Fetch-Site` to it over plain
//!    HTTP, and no `Origin` with a GET, so door 1 stands open.
//! 3. A body that is JSON without saying so: [`super::head::check_json`].
//!
//! Whoever is no browser sends none of these headers, and notices nothing.

use super::body::Body;
use super::{answer, head};
use crate::problem::Problem;
use http::header::{self, HeaderName, HeaderValue};
use http::request::Parts;
use http::uri::Authority;
use http::{Method, Response, StatusCode};
use std::net::IpAddr;

/// Where a request's page is from, in one word.
static FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// A browser asks whether a public page may talk to a private address.
static ASKS_PRIVATE: HeaderName = HeaderName::from_static("access-control-request-private-network");

/// Which hosts and origins are served beyond those that always are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pages {
    /// Names and addresses, in lower case, without ports.
    hosts: Vec<String>,
    /// Origins as browsers send them: `https://console.example.com`.
    origins: Vec<String>,
}

impl Pages {
    /// Takes what is configured; if it can't be meant, what is wrong with it.
    pub fn new(hosts: &[String], origins: &[String]) -> Result<Self, String> {
        let host = |text: &String| {
            let text = text.to_ascii_lowercase();
            let plain = text.trim_start_matches('[').trim_end_matches(']');
            let is_name = !plain.is_empty()
                && plain.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
            if is_name || plain.parse::<IpAddr>().is_ok() {
                return Ok(plain.to_owned());
            }
            Err(format!(
                "http_hosts: {text:?} is no host name or address (without a port), such as \
                 db.example.com"
            ))
        };
        let origin = |text: &String| {
            let text = text.to_ascii_lowercase();
            let parsed = text
                .strip_prefix("https://")
                .or_else(|| text.strip_prefix("http://"))
                .map(str::parse::<Authority>);
            match parsed {
                // Browsers leave out the port that goes without saying.
                Some(Ok(authority)) if !authority.as_str().contains('@') => {
                    let port = if text.starts_with("https://") { ":443" } else { ":80" };
                    Ok(text.strip_suffix(port).unwrap_or(&text).to_owned())
                }
                _ => Err(format!(
                    "http_origins: {text:?} is no origin, such as https://console.example.com"
                )),
            }
        };
        Ok(Self {
            hosts: hosts.iter().map(host).collect::<Result<_, _>>()?,
            origins: origins.iter().map(origin).collect::<Result<_, _>>()?,
        })
    }

    /// Whether a request that came in on a loopback address, or not, may be answered. If so, the
    /// origin that may see the answer, where the request is a configured page's.
    pub(super) fn judge(
        &self,
        parts: &Parts,
        on_loopback: bool,
    ) -> Result<Option<HeaderValue>, Problem> {
        let named = parts
            .headers
            .get(header::HOST)
            .filter(|host| !host.is_empty())
            .and_then(head::authority);
        // Both, since a proxy in front may have looked at either.
        for host in parts.uri.authority().into_iter().chain(&named) {
            if !self.serves(host.host(), on_loopback) {
                return Err(foreign_host(host));
            }
        }
        let origin = parts.headers.get(header::ORIGIN);
        let text =
            origin.map(|origin| String::from_utf8_lossy(origin.as_bytes()).to_ascii_lowercase());
        if text.as_ref().is_some_and(|text| self.origins.contains(text)) {
            return Ok(origin.cloned());
        }
        if parts
            .headers
            .get_all(&FETCH_SITE)
            .iter()
            .any(|site| site.as_bytes().eq_ignore_ascii_case(b"cross-site"))
        {
            return Err(foreign_page("Sec-Fetch-Site: cross-site"));
        }
        let Some(text) = text else { return Ok(None) };
        let own = parts.uri.authority().or(named.as_ref());
        match own.is_some_and(|own| is_same(&text, own)) {
            true => Ok(None),
            false => Err(foreign_page(&format!("Origin: {text}"))),
        }
    }

    /// Whether a host's name is one of ours.
    fn serves(&self, host: &str, on_loopback: bool) -> bool {
        let host = host.to_ascii_lowercase();
        let plain = host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.');
        if self.hosts.iter().any(|known| known == plain) {
            return true;
        }
        match plain.parse::<IpAddr>() {
            // An address can't be made to point elsewhere. 0.0.0.0 leads here as well, but browsers
            // don't say from where.
            Ok(address) => !on_loopback || address.to_canonical().is_loopback(),
            Err(_) if !plain.contains('.') || plain.ends_with(".localhost") => true,
            Err(_) => !on_loopback && self.hosts.is_empty(),
        }
    }
}

/// Whether an origin is the host itself. With or without TLS: that may end at a proxy.
fn is_same(origin: &str, host: &Authority) -> bool {
    let (rest, port) = match (origin.strip_prefix("http://"), origin.strip_prefix("https://")) {
        (Some(rest), _) => (rest, 80),
        (None, Some(rest)) => (rest, 443),
        (None, None) => return false,
    };
    let Ok(origin) = rest.parse::<Authority>() else { return false };
    let ports = (origin.port_u16().unwrap_or(port), host.port_u16().unwrap_or(port));
    origin.host().eq_ignore_ascii_case(host.host()) && ports.0 == ports.1
}

fn foreign_host(host: &Authority) -> Problem {
    let detail = format!(
        "Host: {host} is not served here, since by that name a foreign web page could reach this \
         address; ask by a loopback address or localhost, or add the name to http_hosts in the \
         configuration"
    );
    Problem::new(StatusCode::FORBIDDEN, "foreign_host", "foreign host", detail).close()
}

fn foreign_page(what: &str) -> Problem {
    let detail = format!(
        "{what}: a browser sends this for a web page from elsewhere, which is not answered; \
         add the page's origin to http_origins in the configuration if it may"
    );
    Problem::new(StatusCode::FORBIDDEN, "foreign_origin", "foreign origin", detail).close()
}

/// The answer to a browser that asks, before a configured page's request, whether it may send it.
pub(super) fn preflight(parts: &Parts) -> Option<Response<Body>> {
    if parts.method != Method::OPTIONS
        || !parts.headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
    {
        return None;
    }
    let mut response = answer::empty(StatusCode::NO_CONTENT);
    let headers = response.headers_mut();
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_METHODS,
        HeaderValue::from_static("GET, HEAD, PUT, DELETE, POST"),
    );
    let fields = HeaderValue::from_static("Accept, Content-Type, If-Match, If-None-Match");
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, fields);
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    if parts.headers.contains_key(&ASKS_PRIVATE) {
        let name = HeaderName::from_static("access-control-allow-private-network");
        headers.insert(name, HeaderValue::from_static("true"));
    }
    Some(response)
}

/// Lets a configured page see an answer.
pub(super) fn show_to(origin: HeaderValue, response: &mut Response<Body>) {
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(header::VARY, HeaderValue::from_static("Origin"));
    let shown = "ETag, Location, Retry-After, Flotilla-Shard, Flotilla-Node, Flotilla-Applied, \
                 Flotilla-Age, Flotilla-Consistency";
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(shown));
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|&text| text.to_owned()).collect()
    }

    fn judged(pages: &Pages, on_loopback: bool, headers: &[(&str, &str)]) -> &'static str {
        let mut request = Request::builder().uri("/v1/kv/a");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        match pages.judge(&request.body(()).unwrap().into_parts().0, on_loopback) {
            Ok(None) => "ok",
            Ok(Some(_)) => "shown",
            Err(problem) => problem.members().code,
        }
    }

    #[test]
    fn on_loopback_only_loopback_names_are_served() {
        let (plain, named) =
            (Pages::default(), Pages::new(&texts(&["DB.example.com", "10.0.0.7"]), &[]).unwrap());
        let table = [
            ("127.0.0.1:7001", "ok", "ok"),
            ("127.9.9.9", "ok", "ok"),
            ("[::1]:7001", "ok", "ok"),
            ("[::ffff:127.0.0.1]:1", "ok", "ok"),
            ("localhost:7001", "ok", "ok"),
            ("LOCALHOST.", "ok", "ok"),
            ("n1.localhost", "ok", "ok"),
            ("x", "ok", "ok"),
            ("db.example.com:7001", "foreign_host", "ok"),
            ("10.0.0.7:7001", "foreign_host", "ok"),
            ("rebind.evil.example:7001", "foreign_host", "foreign_host"),
            ("localhost.evil.example", "foreign_host", "foreign_host"),
            ("evil.example.", "foreign_host", "foreign_host"),
            ("127.0.0.1.evil.example", "foreign_host", "foreign_host"),
            ("0.0.0.0:7001", "foreign_host", "foreign_host"),
            ("[::]:7001", "foreign_host", "foreign_host"),
            ("192.168.0.1:7001", "foreign_host", "foreign_host"),
            ("[fe80::1]", "foreign_host", "foreign_host"),
        ];
        for (host, without, with) in table {
            assert_eq!(judged(&plain, true, &[("host", host)]), without, "{host}");
            assert_eq!(judged(&named, true, &[("host", host)]), with, "{host}");
            assert_eq!(judged(&plain, false, &[("host", host)]), "ok", "{host} elsewhere");
        }
        assert_eq!(judged(&named, false, &[("host", "db.example.com")]), "ok");
        assert_eq!(
            judged(&named, false, &[("host", "evil.example")]),
            "foreign_host",
            "hosts that are configured are all there are"
        );
        assert_eq!(judged(&named, false, &[("host", "10.1.1.1")]), "ok");
        assert_eq!(judged(&plain, true, &[]), "ok");
    }

    #[test]
    fn foreign_pages_are_refused() {
        let origins = [
            "https://console.example.com",
            "https://Ported.example.com:443",
            "http://ported.example.com:80",
        ];
        let pages = Pages::new(&[], &texts(&origins)).unwrap();
        let table: [(&[(&str, &str)], &str); 15] = [
            (&[("origin", "http://127.0.0.1:7001")], "ok"),
            (&[("origin", "https://127.0.0.1:7001")], "ok"),
            (&[("origin", "https://console.example.com")], "shown"),
            (
                &[("origin", "https://console.example.com"), ("sec-fetch-site", "cross-site")],
                "shown",
            ),
            (&[("origin", "https://ported.example.com")], "shown"),
            (&[("origin", "http://ported.example.com")], "shown"),
            (&[("origin", "http://console.example.com")], "foreign_origin"),
            (&[("origin", "https://evil.example")], "foreign_origin"),
            (&[("origin", "http://127.0.0.1:3000")], "foreign_origin"),
            (&[("origin", "http://127.0.0.1")], "foreign_origin"),
            (&[("origin", "null")], "foreign_origin"),
            (&[("origin", "")], "foreign_origin"),
            (&[("sec-fetch-site", "cross-site")], "foreign_origin"),
            (&[("sec-fetch-site", "none"), ("sec-fetch-site", "Cross-Site")], "foreign_origin"),
            (&[("sec-fetch-site", "same-origin")], "ok"),
        ];
        for (headers, expected) in table {
            for on_loopback in [true, false] {
                let headers = [&[("host", "127.0.0.1:7001")], headers].concat();
                assert_eq!(judged(&pages, on_loopback, &headers), expected, "{headers:?}");
            }
        }
        assert_eq!(
            judged(&pages, true, &[("host", "localhost"), ("origin", "http://localhost")]),
            "ok"
        );
        assert_eq!(
            judged(&pages, true, &[("host", "localhost"), ("origin", "http://localhost:80")]),
            "ok"
        );
        assert_eq!(
            judged(&pages, true, &[("origin", "http://localhost")]),
            "foreign_origin",
            "no host to be at home at"
        );
    }

    #[test]
    fn what_can_not_be_meant_is_named() {
        for bad in ["", "a b", "db.example.com:7001", "http://a", "*"] {
            assert!(
                Pages::new(&texts(&[bad]), &[]).unwrap_err().starts_with("http_hosts: "),
                "{bad:?}"
            );
        }
        for bad in
            ["", "*", "console.example.com", "https://", "https://a/b", "https://me@a", "ftp://a"]
        {
            assert!(
                Pages::new(&[], &texts(&[bad])).unwrap_err().starts_with("http_origins: "),
                "{bad:?}"
            );
        }
        assert!(
            Pages::new(
                &texts(&["::1", "[fe80::1]", "a_b.example"]),
                &texts(&["http://localhost:3000"])
            )
            .is_ok()
        );
    }
}
