//! What the head of a request must be before a route looks at it: not too large, and nothing in it
//! that two programs could read in two ways.
//!
//! hyper frames a message as RFC 9112 says, and is generous where that allows it. Here stands what
//! we refuse all the same, because what we would do otherwise is not what the client meant: a body
//! that is coded in a way which we would store as it is, two hosts, two content types.

use crate::limits::Limits;
use crate::problem::Problem;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::uri::Authority;
use http::{StatusCode, Version};

/// Fields that say one thing, so that two of them say nothing.
const ONCE: [HeaderName; 3] = [header::CONTENT_TYPE, header::ORIGIN, header::EXPECT];

/// Whether the head can be taken as it is.
pub(super) fn check(parts: &Parts, limits: &Limits) -> Result<(), Problem> {
    check_size(parts, limits)?;
    check_hosts(parts)?;
    for name in &ONCE {
        if parts.headers.get_all(name).iter().nth(1).is_some() {
            return Err(Problem::malformed(
                "repeated_header",
                format!("the header {name} is there twice; once is allowed"),
            )
            .close());
        }
    }
    check_transfer_encoding(&parts.headers)?;
    match parts.headers.get(header::EXPECT) {
        Some(expected)
            if !expected.as_bytes().eq_ignore_ascii_case(b"100-continue")
                && parts.version > Version::HTTP_10 =>
        {
            let detail = "Expect: allowed is 100-continue alone";
            Err(Problem::new(
                StatusCode::EXPECTATION_FAILED,
                "expectation_failed",
                "expectation failed",
                detail,
            )
            .close())
        }
        _ => Ok(()),
    }
}

/// 431 for a head that hyper let through, since it came in one piece.
fn check_size(parts: &Parts, limits: &Limits) -> Result<(), Problem> {
    // Four bytes stand around a field: colon, space, CR, LF.
    let fields: usize =
        parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    let line = parts.uri.path().len() + parts.uri.query().map_or(0, str::len);
    if fields + line > limits.header_bytes_max || parts.headers.len() > limits.headers_max {
        let (what, limit, actual) = if parts.headers.len() > limits.headers_max {
            ("header fields", limits.headers_max, parts.headers.len())
        } else {
            ("bytes of request line and header fields", limits.header_bytes_max, fields + line)
        };
        let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        let detail = format!("a request has at most {limit} {what}; this one has {actual}");
        return Err(Problem::new(status, "header_too_large", "header too large", detail)
            .limit(limit as u64, Some(actual as u64))
            .close());
    }
    Ok(())
}

/// 400 unless there is one host, and it is one: HTTP/1.1 must name it (RFC 9112, section 3.2),
/// other versions may.
fn check_hosts(parts: &Parts) -> Result<(), Problem> {
    let bad = |detail: &str| Err(Problem::malformed("bad_host", detail).close());
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) if parts.version == Version::HTTP_11 => {
            bad("a request has a Host header; this one has none")
        }
        (Some(_), Some(_)) => bad("a request has one Host header; this one has more"),
        (Some(host), None) if !host.is_empty() && authority(host).is_none() => {
            bad("the header Host is no host, or host and port, such as 127.0.0.1:7001")
        }
        (Some(host), None) if parts.version == Version::HTTP_2 => match parts.uri.authority() {
            Some(named) if !host.as_bytes().eq_ignore_ascii_case(named.as_str().as_bytes()) => {
                bad("the header Host is not what :authority says")
            }
            _ => Ok(()),
        },
        _ => Ok(()),
    }
}

/// A header's value as a host with an optional port.
pub(super) fn authority(value: &HeaderValue) -> Option<Authority> {
    Authority::try_from(value.as_bytes()).ok().filter(|authority| !authority.as_str().contains('@'))
}

/// 501 for a body in any transfer coding but chunked: hyper would take off the last and hand us the
/// rest, which we would store.
fn check_transfer_encoding(headers: &HeaderMap) -> Result<(), Problem> {
    let mut chunked = false;
    for coding in members(headers, &header::TRANSFER_ENCODING) {
        if !coding.eq_ignore_ascii_case(b"chunked") {
            return Err(unsupported_coding());
        }
        if chunked {
            return Err(Problem::malformed(
                "bad_transfer_encoding",
                "Transfer-Encoding: chunked stands there twice",
            )
            .close());
        }
        chunked = true;
    }
    Ok(())
}

/// 501 for a body in another transfer coding.
pub(super) fn unsupported_coding() -> Problem {
    let detail = "Transfer-Encoding: allowed is chunked alone; send the body as it is";
    Problem::new(
        StatusCode::NOT_IMPLEMENTED,
        "unsupported_transfer_encoding",
        "not implemented",
        detail,
    )
    .close()
}

/// 415 for a body that would have to be decoded first.
pub(super) fn check_content_encoding(parts: &Parts) -> Result<(), Problem> {
    match members(&parts.headers, &header::CONTENT_ENCODING)
        .all(|coding| coding.eq_ignore_ascii_case(b"identity"))
    {
        true => Ok(()),
        false => Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_content_encoding",
            "unsupported content encoding",
            "Content-Encoding: bodies are taken as they are; allowed is identity, or no such \
             header",
        )
        .close()),
    }
}

/// 415 unless the body says that it is JSON. A web page can send a body that says anything else, or
/// nothing, to a node on this machine without asking first.
pub(super) fn check_json(parts: &Parts) -> Result<(), Problem> {
    check_content_encoding(parts)?;
    let media = parts
        .headers
        .get(header::CONTENT_TYPE)
        .map(|value| String::from_utf8_lossy(value.as_bytes()));
    let essence =
        media.as_deref().and_then(|media| media.split(';').next()).unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let given = match essence {
        "" => "nothing".to_owned(),
        _ => format!("{essence:?}"),
    };
    let detail = format!(
        "Content-Type: this takes application/json, and was given {given}; with curl: -H \
         'Content-Type: application/json'"
    );
    Err(Problem::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "unsupported_media_type",
        "unsupported media type",
        detail,
    )
    .close())
}

/// The members of a header that is a list, over all fields of that name; empty ones are skipped.
fn members<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    let fields = headers.get_all(name).iter();
    fields
        .flat_map(|field| field.as_bytes().split(|&byte| byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|member| !member.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn parts(version: Version, uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().version(version).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        let host = ("host", "127.0.0.1:7001");
        let table: [(&[(&str, &str)], u16); 18] = [
            (&[host], 200),
            (&[("host", "")], 200),
            (&[("host", "[::1]:7001")], 200),
            (&[], 400),
            (&[host, host], 400),
            (&[("host", "a b")], 400),
            (&[("host", "a,b")], 200),
            (&[("host", "user@a")], 400),
            (&[("host", "a/b")], 400),
            (&[host, ("transfer-encoding", "Chunked")], 200),
            (&[host, ("transfer-encoding", ", chunked ,")], 200),
            (&[host, ("transfer-encoding", "gzip, chunked")], 501),
            (&[host, ("transfer-encoding", "gzip"), ("transfer-encoding", "chunked")], 501),
            (&[host, ("transfer-encoding", "chunked, chunked")], 400),
            (&[host, ("content-type", "application/json"), ("content-type", "text/plain")], 400),
            (&[host, ("expect", "100-Continue")], 200),
            (&[host, ("expect", "200-ok")], 417),
            (&[host, ("expect", "100-continue"), ("expect", "100-continue")], 400),
        ];
        for (headers, status) in table {
            let result = check(&parts(Version::HTTP_11, "/v1/kv/a", headers), &Limits::default());
            assert_eq!(
                result.map_or_else(|problem| problem.members().status.as_u16(), |()| 200),
                status,
                "{headers:?}"
            );
        }
        let of = |version, uri: &str, headers: &[(&str, &str)]| {
            check(&parts(version, uri, headers), &Limits::default()).is_ok()
        };
        assert!(of(Version::HTTP_10, "/v1/kv/a", &[("expect", "anything")]));
        assert!(
            of(Version::HTTP_2, "http://a:1/v1/kv/a", &[])
                && of(Version::HTTP_2, "http://a:1/v1/kv/a", &[("host", "A:1")])
        );
        assert!(!of(Version::HTTP_2, "http://a:1/v1/kv/a", &[("host", "b:1")]));
    }

    #[test]
    fn every_field_of_an_encoding_counts() {
        let table: [(&[(&str, &str)], bool); 7] = [
            (&[], true),
            (&[("content-encoding", "identity")], true),
            (&[("content-encoding", "Identity, ,identity")], true),
            (&[("content-encoding", "gzip")], false),
            (&[("content-encoding", "identity"), ("content-encoding", "gzip")], false),
            (&[("content-encoding", "gzip"), ("content-encoding", "identity")], false),
            (&[("content-encoding", "identity, gzip")], false),
        ];
        for (headers, ok) in table {
            assert_eq!(
                check_content_encoding(&parts(Version::HTTP_11, "/", headers)).is_ok(),
                ok,
                "{headers:?}"
            );
        }
    }

    #[test]
    fn json_must_say_so() {
        for (media, ok) in [
            ("application/json", true),
            ("Application/JSON; charset=utf-8", true),
            ("application/json ;", true),
            ("", false),
            ("text/plain", false),
            ("application/x-www-form-urlencoded", false),
            ("multipart/form-data; boundary=application/json", false),
            ("application/jsonx", false),
            ("text/plain; application/json", false),
        ] {
            let result = check_json(&parts(Version::HTTP_11, "/", &[("content-type", media)]));
            assert_eq!(result.is_ok(), ok, "{media:?}");
        }
        let problem = check_json(&parts(Version::HTTP_11, "/", &[])).unwrap_err();
        assert!(
            problem.members().detail.contains("with curl: -H 'Content-Type: application/json'")
        );
    }
}
