//! From arguments to keys and back. A key is any bytes; a command line has text without NUL.
//!
//! - As it stands an argument **is** the key: `flotilla kv get a%2Fb` reads the key of five
//!   characters `a%2Fb`.
//! - With `--escaped` `%XX` stands for any byte, `%25` for a `%`, in arguments and in what is
//!   printed: what one command prints the other takes.
//! - Without it, what is printed is the key where that is safe on a terminal; bytes that are no
//!   text, control characters, and marks that are not seen or turn the direction of reading
//!   (`text`), show as `%XX`. `--json` is exact in any case (`key`, or `key_b64` where it is not
//!   UTF-8).

use super::failure::Failure;
use super::text;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// What is escaped in paths and queries. Dots and slashes too: what lies between may normalise
/// paths.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'~');

/// The key that an argument means.
pub(super) fn parse(argument: &OsStr, escaped: bool) -> Result<Vec<u8>, Failure> {
    let bytes = argument.as_bytes();
    if !escaped {
        return Ok(bytes.to_vec());
    }
    let mut key = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'%' {
            key.push(byte);
            continue;
        }
        let digits = tail.get(..2).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        let value = digits
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        let Some(value) = value else {
            let text = argument.to_string_lossy();
            return Err(Failure::Usage(format!(
                "{text:?}: with --escaped, % is followed by two hexadecimal digits (% itself is \
                 %25)"
            )));
        };
        key.push(value);
        rest = &tail[2..];
    }
    Ok(key)
}

/// The key in a path or a query.
pub(super) fn encode(key: &[u8]) -> String {
    percent_encode(key, ESCAPED).to_string()
}

/// Bytes as they are printed.
pub(super) fn show(bytes: &[u8], escaped: bool) -> String {
    text::escaped(bytes, escaped, &[])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_argument_is_the_key_unless_it_is_escaped() {
        let parse = |text: &str, escaped| parse(OsStr::new(text), escaped).ok();
        assert_eq!(parse("a%2Fb", false).unwrap(), b"a%2Fb");
        assert_eq!(parse("a%2Fb%00%ff", true).unwrap(), b"a/b\0\xff");
        assert_eq!(parse("ä%25", true).unwrap(), "ä%".as_bytes());
        for broken in ["%", "a%2", "%zz", "%+1", "%%41"] {
            assert_eq!(parse(broken, true), None, "{broken}");
        }
    }

    #[test]
    fn what_is_printed_escaped_is_what_is_taken() {
        for key in [
            &b"plain"[..],
            b"a%b",
            b"tab\tand\nline",
            b"\0\xff\xfe",
            "ä€".as_bytes(),
            b"\xc3",
            "\u{85}".as_bytes(),
            "\u{202e}x".as_bytes(),
        ] {
            let shown = show(key, true);
            assert!(!shown.chars().any(char::is_control), "{shown:?}");
            assert_eq!(parse(OsStr::new(&shown), true).unwrap(), key, "{shown}");
        }
        assert_eq!(show(b"100%\t", false), "100%%09");
    }

    #[test]
    fn no_key_is_normalised_on_its_way() {
        assert_eq!(encode(b"../a//b%?#\xff"), "%2E%2E%2Fa%2F%2Fb%25%3F%23%FF");
    }
}
