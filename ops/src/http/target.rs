//! What a request's target may be, judged by its raw bytes.
//!
//! The types that hyper and h2 make of a target drop what stands behind `#`, so
//! `DELETE /v1/kv?prefix=team#1/` would become an order to delete all of `team`. So whatever RFC
//! 3986 does not allow in a path or query is refused, before any parser sees it: a key is
//! percent-encoded, and what is not may mean two things to two programs.
//!
//! [`super::guard`] looks at the bytes, and cannot answer; the service answers, and cannot see
//! them. Between the two a refusal is a target of its own, below [`REFUSED`]: the guard writes it
//! in the place of the one that was sent. Whoever asks for such a target on purpose gets the same
//! refusal, which does no harm.

use super::head;
use crate::limits::Limits;
use crate::problem::Problem;
use http::StatusCode;

/// Where refusals have their targets.
const REFUSED: &str = "/-/refused/";

/// Why a head is refused before anything else is made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flaw {
    /// A byte that must not stand in a target, and where it stands.
    Byte(u8, usize),
    /// Neither a path, nor a URI of `http`, nor `*` with OPTIONS.
    Form,
    /// The request line is longer than a whole head may be.
    LongLine,
    /// The head has too many bytes.
    LongHead,
    /// The head has too many fields.
    ManyFields,
    /// More than one field says how long the body is.
    Framing,
    /// The body has a transfer coding that is not `chunked`.
    Coding,
    /// The body is longer than any could be.
    Endless,
}

impl Flaw {
    /// The target that stands for it.
    pub(super) fn target(self) -> String {
        match self {
            Self::Byte(byte, at) => format!("{REFUSED}byte/{byte:02x}/{at}"),
            Self::Form => format!("{REFUSED}form"),
            Self::LongLine => format!("{REFUSED}line"),
            Self::LongHead => format!("{REFUSED}head"),
            Self::ManyFields => format!("{REFUSED}fields"),
            Self::Framing => format!("{REFUSED}framing"),
            Self::Coding => format!("{REFUSED}coding"),
            Self::Endless => format!("{REFUSED}endless"),
        }
    }

    /// What a target stands for, if it is one of these.
    fn of(path: &str) -> Option<Self> {
        match path.strip_prefix(REFUSED)? {
            "form" => Some(Self::Form),
            "line" => Some(Self::LongLine),
            "head" => Some(Self::LongHead),
            "fields" => Some(Self::ManyFields),
            "framing" => Some(Self::Framing),
            "coding" => Some(Self::Coding),
            "endless" => Some(Self::Endless),
            rest => {
                let (byte, at) = rest.strip_prefix("byte/")?.split_once('/')?;
                Some(Self::Byte(u8::from_str_radix(byte, 16).ok()?, at.parse().ok()?))
            }
        }
    }

    /// Whether the rest of what the client sends can still be told apart from the next request.
    pub(super) fn keeps_framing(self) -> bool {
        matches!(self, Self::Byte(..) | Self::Form)
    }

    fn problem(self, limits: &Limits) -> Problem {
        let too_large = |what: &str, limit: usize| {
            let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
            let detail = format!("a request has at most {limit} {what}; this one has more");
            Problem::new(status, "header_too_large", "header too large", detail)
                .limit(limit as u64, None)
                .close()
        };
        match self {
            Self::Byte(byte, at) => {
                let shown = match byte {
                    0x21..0x7f => format!("'{}'", char::from(byte)),
                    b' ' => "a space".to_owned(),
                    _ => format!("byte 0x{byte:02x}"),
                };
                let detail = format!(
                    "the request's target: {shown} at {at} must not stand in it as it is; write \
                     %{byte:02X}, in keys and in the query"
                );
                Problem::malformed("bad_target", detail)
            }
            Self::Form => Problem::malformed(
                "bad_target",
                "the request's target: allowed is a path that begins with /",
            ),
            Self::LongLine => {
                let limit = limits.header_bytes_max;
                Problem::too_large(
                    StatusCode::URI_TOO_LONG,
                    "uri_too_long",
                    "a request line",
                    limit,
                    None,
                )
                .close()
            }
            Self::LongHead => {
                too_large("bytes of request line and header fields", limits.header_bytes_max)
            }
            Self::ManyFields => too_large("header fields", limits.headers_max),
            Self::Framing => {
                let detail = "a request says once how long its body is: by one Content-Length, or \
                              by Transfer-Encoding: chunked";
                Problem::malformed("ambiguous_length", detail).close()
            }
            Self::Coding => head::unsupported_coding(),
            Self::Endless => {
                let limit = limits.value_bytes_max.max(limits.batch_bytes_max);
                Problem::too_large(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    "body_too_large",
                    "a body",
                    limit,
                    None,
                )
                .close()
            }
        }
    }
}

/// The refusal that a target stands for, if it is one.
pub(super) fn refusal(path: &str, limits: &Limits) -> Option<Problem> {
    Flaw::of(path).map(|flaw| flaw.problem(limits))
}

/// Whether the target of a request with this method can be taken as it is.
pub(super) fn check(method: &[u8], target: &[u8]) -> Result<(), Flaw> {
    let first_bad = |from: usize, allowed: fn(u8) -> bool| match target[from..]
        .iter()
        .position(|&byte| !allowed(byte))
    {
        Some(at) => Err(Flaw::Byte(target[from + at], from + at)),
        None => Ok(()),
    };
    match target {
        [b'/', ..] => first_bad(0, stands_in_path_or_query),
        b"*" if method == b"OPTIONS" => Ok(()),
        // A host and port, which are for the service to refuse.
        _ if method == b"CONNECT" => first_bad(0, stands_in_authority),
        _ => {
            let lower = target.get(..8).unwrap_or(target).to_ascii_lowercase();
            let scheme = [&b"http://"[..], b"https://"]
                .into_iter()
                .find(|scheme| lower.starts_with(scheme))
                .map(<[u8]>::len);
            let Some(host) = scheme else {
                first_bad(0, stands_in_path_or_query)?;
                return Err(Flaw::Form);
            };
            let path = target[host..]
                .iter()
                .position(|byte| matches!(byte, b'/' | b'?'))
                .map_or(target.len(), |at| host + at);
            if path == host {
                return Err(Flaw::Form);
            }
            match target[host..path].iter().position(|&byte| !stands_in_authority(byte)) {
                Some(at) => Err(Flaw::Byte(target[host + at], host + at)),
                None => first_bad(path, stands_in_path_or_query),
            }
        }
    }
}

/// `pchar`, `/` and `?` of RFC 3986; of what `%` needs behind it the decoder tells.
fn stands_in_path_or_query(byte: u8) -> bool {
    ALLOWED[usize::from(byte)]
}

/// One look per byte, since every request passes here.
const ALLOWED: [bool; 256] = {
    let mut table = [false; 256];
    let others = b"-._~!$&'()*+,;=:@/?%";
    let mut byte = 0;
    while byte < 128 {
        table[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let mut at = 0;
    while at < others.len() {
        table[others[at] as usize] = true;
        at += 1;
    }
    table
};

/// A host, perhaps in brackets, and a port. No `@`: nobody sends a password here on purpose.
fn stands_in_authority(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:%[]".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_allowed_or_refused_as_rfc_3986_says() {
        let allowed =
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~!$&'()*+,;=:@/?%";
        for byte in 0..=255 {
            let expected = if allowed.contains(&byte) { Ok(()) } else { Err(Flaw::Byte(byte, 8)) };
            assert_eq!(
                check(b"GET", &[b"/v1/kv/a", &[byte][..], b"b"].concat()),
                expected,
                "{byte:#x} in a path"
            );
            let expected = expected.map_err(|_| Flaw::Byte(byte, 14));
            assert_eq!(
                check(b"GET", &[b"/v1/kv?prefix=", &[byte][..]].concat()),
                expected,
                "{byte:#x} in a query"
            );
        }
    }

    #[test]
    fn targets_of_every_form() {
        for (method, target, expected) in [
            ("GET", "/", Ok(())),
            ("GET", "//a/../b", Ok(())),
            ("GET", "http://127.0.0.1:7001/v1/kv/a?b=%23", Ok(())),
            ("GET", "HTTPS://[::1]:7001", Ok(())),
            ("GET", "http://a?b", Ok(())),
            ("OPTIONS", "*", Ok(())),
            ("CONNECT", "a:80", Ok(())),
            ("GET", "*", Err(Flaw::Form)),
            ("GET", "", Err(Flaw::Form)),
            ("GET", "a:80", Err(Flaw::Form)),
            ("GET", "v1/kv/a", Err(Flaw::Form)),
            ("GET", "ftp://a/b", Err(Flaw::Form)),
            ("GET", "http:///b", Err(Flaw::Form)),
            ("GET", "#", Err(Flaw::Byte(b'#', 0))),
            ("GET", "http://a/b#c", Err(Flaw::Byte(b'#', 10))),
            ("GET", "http://me@a/b", Err(Flaw::Byte(b'@', 9))),
            ("GET", "http://a#/b", Err(Flaw::Byte(b'#', 8))),
        ] {
            assert_eq!(check(method.as_bytes(), target.as_bytes()), expected, "{method} {target}");
        }
    }

    #[test]
    fn a_refusal_survives_as_a_target() {
        let flaws = [
            (Flaw::Byte(b'#', 14), 400),
            (Flaw::Byte(0xff, 0), 400),
            (Flaw::Form, 400),
            (Flaw::LongLine, 414),
            (Flaw::LongHead, 431),
            (Flaw::ManyFields, 431),
            (Flaw::Framing, 400),
        ];
        for (flaw, status) in flaws {
            let target = flaw.target();
            assert_eq!(check(b"GET", target.as_bytes()), Ok(()));
            assert_eq!(Flaw::of(&target), Some(flaw));
            assert_eq!(refusal(&target, &Limits::default()).unwrap().members().status, status);
        }
        let detail = Flaw::Byte(b'#', 14).problem(&Limits::default()).members().detail.clone();
        assert!(detail.contains("'#' at 14") && detail.contains("write %23"), "{detail}");
        for other in [
            "/v1/kv/a",
            "/-/refused/",
            "/-/refused/byte/zz/1",
            "/-/refused/byte/23",
            "/-/refused/byte/23/x",
        ] {
            assert_eq!(Flaw::of(other), None, "{other}");
        }
    }
}
