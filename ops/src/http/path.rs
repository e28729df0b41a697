//! From the path to the key: percent-decoded once, never normalised.
//!
//! `a//b`, `.`, `..`, `%2F` and `%00` are what they are. A broken escape is an error that says
//! where, never a guess.

use crate::limits::Limits;
use crate::problem::Problem;
use bytes::Bytes;
use http::StatusCode;

/// Decodes `%XX`; everything else stays as it is (`+` too). `None` where an escape is broken.
pub(super) fn percent_decode(text: &str) -> Option<Bytes> {
    let bytes = text.as_bytes();
    let Some(first) = bytes.iter().position(|&b| b == b'%') else {
        return Some(Bytes::copy_from_slice(bytes));
    };
    let mut out = Vec::with_capacity(bytes.len());
    out.extend_from_slice(&bytes[..first]);
    let mut rest = &bytes[first..];
    while let Some((&byte, tail)) = rest.split_first() {
        if byte == b'%' {
            let [high, low, ..] = tail else { return None };
            out.push((hex(*high)? << 4) | hex(*low)?);
            rest = &tail[2..];
        } else {
            out.push(byte);
            rest = tail;
        }
    }
    Some(out.into())
}

/// The value of a hexadecimal digit.
fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

/// The key that the rest of a path names.
pub(super) fn key(rest: &str, limits: &Limits) -> Result<Bytes, Problem> {
    let key = percent_decode(rest).ok_or_else(|| {
        Problem::malformed(
            "bad_percent_encoding",
            "the key in the path: % must be followed by two hexadecimal digits (% itself is %25)",
        )
    })?;
    check_key(&key, limits)?;
    Ok(key)
}

/// Whether these bytes can be a key.
pub(super) fn check_key(key: &[u8], limits: &Limits) -> Result<(), Problem> {
    let max = limits.key_bytes_max;
    if key.is_empty() {
        return Err(Problem::malformed(
            "key_empty",
            format!("a key has 1 to {max} bytes; this one is empty"),
        )
        .limit(max as u64, Some(0)));
    }
    check_length(key, "a key", limits)
}

/// Whether these bytes can bound a range: a key, nothing, or what comes next behind a key, which
/// for the longest key is a byte longer than any key: who has read a page goes on at its last key
/// and a NUL.
pub(super) fn check_bound(bound: &[u8], what: &str, limits: &Limits) -> Result<(), Problem> {
    match bound.split_last() {
        Some((0, key)) if key.len() == limits.key_bytes_max => Ok(()),
        _ => check_length(bound, what, limits),
    }
}

fn check_length(key: &[u8], what: &str, limits: &Limits) -> Result<(), Problem> {
    if key.len() > limits.key_bytes_max {
        return Err(Problem::too_large(
            StatusCode::URI_TOO_LONG,
            "key_too_long",
            what,
            limits.key_bytes_max,
            Some(key.len()),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_decoded_once_and_never_normalised() {
        let table: [(&str, &[u8]); 12] = [
            ("a", b"a"),
            ("a//b", b"a//b"),
            ("..", b".."),
            ("./x/../y", b"./x/../y"),
            ("%2F", b"/"),
            ("%2f%2F", b"//"),
            ("%00", b"\0"),
            ("%252F", b"%2F"),
            ("a+b", b"a+b"),
            ("%ff%FE", b"\xff\xfe"),
            ("a%3Fx", b"a?x"),
            ("%C3%A4", "ä".as_bytes()),
        ];
        for (path, expected) in table {
            assert_eq!(key(path, &Limits::default()).unwrap(), expected, "{path}");
        }
        for broken in ["%", "%2", "%2g", "%g2", "a%", "%%20", "% 20", "%+1"] {
            assert_eq!(
                key(broken, &Limits::default()).unwrap_err().members().code,
                "bad_percent_encoding",
                "{broken}"
            );
        }
    }

    #[test]
    fn the_length_that_counts_is_the_decoded_one() {
        let limits = Limits::default();
        assert!(key(&"%61".repeat(4096), &limits).is_ok());
        let problem = key(&"a".repeat(4097), &limits).unwrap_err();
        let members = problem.members();
        assert_eq!(
            (members.status.as_u16(), members.limit, members.actual),
            (414, Some(4096), Some(4097))
        );
        assert_eq!(key("", &limits).unwrap_err().members().status, 400);
    }

    #[test]
    fn a_range_may_begin_behind_the_longest_key() {
        let limits = Limits::default();
        let bound = |bytes: usize, last: &[u8]| {
            check_bound(&[vec![b'k'; bytes], last.to_vec()].concat(), "start", &limits)
        };
        assert!(bound(0, b"").is_ok() && bound(4096, b"").is_ok() && bound(4096, b"\0").is_ok());
        for (bytes, last) in [(4096, &b"k"[..]), (4097, b""), (4096, b"\0\0"), (4097, b"\0")] {
            assert_eq!(
                bound(bytes, last).unwrap_err().members().status,
                414,
                "{bytes} bytes and {last:?}"
            );
        }
        assert!(
            check_key(&[&[b'k'; 4096][..], b"\0"].concat(), &limits).is_err(),
            "no key has that length"
        );
    }
}
