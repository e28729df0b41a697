//! ETags and the conditions that rest on them (RFC 9110, sections 8.8 and 13).
//!
//! A key's ETag is its revision in quotes, a shard's its epoch. Our own are strong; a weak one
//! (`W/"5"`) is the same for `If-None-Match`, and never for `If-Match`. A condition on a write is
//! one that the shard can check where it applies: one revision, "there is one" or "there is none".

use super::query::contradiction;
use crate::problem::Problem;
use flotilla_router::{Condition, Epoch, Revision};
use http::HeaderMap;
use http::header::{HeaderName, HeaderValue, IF_MATCH, IF_NONE_MATCH};

/// What a condition header names.
#[derive(Debug, PartialEq, Eq)]
enum Tags<'a> {
    /// `*`: any.
    Any,
    /// A list: whether each is weak, and what stands in its quotes.
    List(Vec<(bool, &'a str)>),
}

/// Reads a condition header. Several fields of one name are one list.
fn tags<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<Tags<'a>>, Problem> {
    if !headers.contains_key(name) {
        return Ok(None);
    }
    let malformed = || {
        let detail = format!(
            "the header {name}: allowed is * or ETags in quotes, as they came in the ETag header, \
             such as \"5\""
        );
        Problem::malformed("bad_etag", detail)
    };
    let mut list = Vec::new();
    let mut any = false;
    for value in headers.get_all(name) {
        let mut rest = value.to_str().map_err(|_| malformed())?;
        loop {
            // Empty members say nothing (RFC 9110, section 5.6.1.2).
            rest = rest.trim_start_matches([',', ' ', '\t']);
            if rest.is_empty() {
                break;
            }
            let tail = match rest.strip_prefix('*') {
                Some(tail) => {
                    any = true;
                    tail
                }
                None => {
                    let (weak, quoted) =
                        rest.strip_prefix("W/").map_or((false, rest), |strong| (true, strong));
                    let (tag, tail) = quoted
                        .strip_prefix('"')
                        .and_then(|text| text.split_once('"'))
                        .ok_or_else(malformed)?;
                    list.push((weak, tag));
                    tail
                }
            };
            rest = tail.trim_start_matches([' ', '\t']);
            if !rest.is_empty() && !rest.starts_with(',') {
                return Err(malformed());
            }
        }
    }
    match (any, list.is_empty()) {
        (true, true) => Ok(Some(Tags::Any)),
        (true, false) => Err(malformed()),
        // Nothing is like none of these; but a write that is bound to nothing was not meant.
        (false, true) if *name == IF_MATCH => Err(malformed()),
        (false, _) => Ok(Some(Tags::List(list))),
    }
}

/// The ETag of a revision.
pub(super) fn of_revision(revision: Revision) -> HeaderValue {
    let mut digits = itoa::Buffer::new();
    let digits = digits.format(revision.0).as_bytes();
    let mut text = [b'"'; 22];
    text[1..=digits.len()].copy_from_slice(digits);
    HeaderValue::from_bytes(&text[..digits.len() + 2]).expect("digits in quotes are a header value")
}

/// The ETag of an epoch.
pub(super) fn of_epoch(epoch: Epoch) -> HeaderValue {
    HeaderValue::try_from(format!("\"{epoch}\""))
        .expect("digits, a dot and quotes are a header value")
}

/// What a conditional read comes to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ReadVerdict {
    /// Answer as if there were no condition.
    Go,
    /// 304: the client has it.
    NotModified,
    /// 412: what the client wants is not what is there.
    Failed,
}

/// Judges the conditions of a read by the ETag of what is there; `None` when nothing is.
pub(super) fn judge_read(
    headers: &HeaderMap,
    current: Option<&HeaderValue>,
) -> Result<ReadVerdict, Problem> {
    let current = current.map(|etag| etag.to_str().unwrap_or_default().trim_matches('"'));
    if let Some(wanted) = tags(headers, &IF_MATCH)? {
        let holds = match (&wanted, current) {
            (_, None) => false,
            (Tags::Any, Some(_)) => true,
            (Tags::List(list), Some(current)) => {
                list.iter().any(|(weak, tag)| !weak && *tag == current)
            }
        };
        if !holds {
            // The other header must make sense all the same.
            tags(headers, &IF_NONE_MATCH)?;
            return Ok(ReadVerdict::Failed);
        }
    }
    let has = match (tags(headers, &IF_NONE_MATCH)?, current) {
        (None, _) | (_, None) => false,
        (Some(Tags::Any), Some(_)) => true,
        (Some(Tags::List(list)), Some(current)) => list.iter().any(|(_, tag)| *tag == current),
    };
    Ok(if has { ReadVerdict::NotModified } else { ReadVerdict::Go })
}

/// The condition of a PUT, or of a DELETE (which knows no `If-None-Match`).
pub(super) fn write_condition(
    headers: &HeaderMap,
    takes_if_none_match: bool,
) -> Result<Condition, Problem> {
    let if_match = tags(headers, &IF_MATCH)?;
    let if_none_match = tags(headers, &IF_NONE_MATCH)?;
    match (if_match, if_none_match) {
        (None, None) => Ok(Condition::Always),
        (Some(_), Some(_)) => Err(contradiction(
            "If-Match and If-None-Match exclude each other here; send one of them",
        )),
        (None, Some(_)) if !takes_if_none_match => Err(contradiction(
            "If-None-Match makes no sense for DELETE; allowed is If-Match with * or one ETag",
        )),
        (None, Some(Tags::Any)) => Ok(Condition::Absent),
        (None, Some(Tags::List(_))) => Err(Problem::malformed(
            "bad_condition",
            "If-None-Match takes only * on a write: \"set it if there is no such key\"",
        )),
        (Some(Tags::Any), None) => Ok(Condition::Present),
        (Some(Tags::List(list)), None) => match list[..] {
            [(false, tag)] => revision(tag).map(Condition::At).ok_or_else(|| {
                let detail = format!(
                    "If-Match: \"{}\" is no ETag of a key; they are revisions in quotes, such as \
                     \"5\"",
                    tag.escape_debug()
                );
                Problem::malformed("bad_etag", detail)
            }),
            [(true, _)] => Err(Problem::malformed(
                "bad_etag",
                "If-Match needs a strong ETag: \"5\", not W/\"5\"",
            )),
            _ => Err(Problem::malformed(
                "bad_condition",
                "If-Match takes * or one ETag on a write; several are not supported",
            )),
        },
    }
}

/// The epoch that an admin order is bound to; `None` for `*` and where there is no condition.
pub(super) fn epoch_condition(headers: &HeaderMap) -> Result<Option<Epoch>, Problem> {
    if headers.contains_key(IF_NONE_MATCH) {
        return Err(contradiction(
            "If-None-Match makes no sense here; allowed is If-Match with a shard's epoch",
        ));
    }
    let malformed = || {
        Problem::malformed(
            "bad_etag",
            "If-Match: allowed is * or a shard's epoch in quotes, such as \"3.1\"",
        )
    };
    match tags(headers, &IF_MATCH)? {
        None | Some(Tags::Any) => Ok(None),
        Some(Tags::List(list)) => match list[..] {
            [(false, tag)] => {
                let (membership, range) = tag.split_once('.').ok_or_else(malformed)?;
                match (revision(membership), revision(range)) {
                    (Some(membership), Some(range)) => {
                        Ok(Some(Epoch { membership: membership.0, range: range.0 }))
                    }
                    _ => Err(malformed()),
                }
            }
            _ => Err(malformed()),
        },
    }
}

/// A number as we write it: digits alone, none too many.
pub(super) fn revision(text: &str) -> Option<Revision> {
    let canonical =
        text.bytes().all(|b| b.is_ascii_digit()) && (text.len() == 1 || !text.starts_with('0'));
    if canonical { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let pairs = pairs
            .iter()
            .map(|(n, v)| (HeaderName::try_from(*n).unwrap(), HeaderValue::from_str(v).unwrap()));
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name, value);
        }
        headers
    }

    #[test]
    fn a_revision_in_quotes() {
        for (revision, etag) in [
            (0, "\"0\""),
            (7, "\"7\""),
            (1234567890, "\"1234567890\""),
            (u64::MAX, "\"18446744073709551615\""),
        ] {
            assert_eq!(of_revision(Revision(revision)), etag);
        }
    }

    #[test]
    fn conditions_of_writes() {
        let ok = [
            (vec![], Condition::Always),
            (vec![("if-match", "\"5\"")], Condition::At(Revision(5))),
            (vec![("if-match", "*")], Condition::Present),
            (vec![("if-none-match", "*")], Condition::Absent),
        ];
        for (pairs, condition) in ok {
            assert_eq!(write_condition(&headers(&pairs), true).unwrap(), condition, "{pairs:?}");
        }
        let bad = [
            vec![("if-match", "5")],
            vec![("if-match", "")],
            vec![("if-match", "\"5")],
            vec![("if-match", "\"five\"")],
            vec![("if-match", "\"05\"")],
            vec![("if-match", "W/\"5\"")],
            vec![("if-match", "\"5\", \"6\"")],
            vec![("if-match", "\"5\""), ("if-match", "\"6\"")],
            vec![("if-match", "*, \"6\"")],
            vec![("if-match", "*"), ("if-match", "\"6\"")],
            vec![("if-match", " , ")],
            vec![("if-match", "\"5\" \"5\"")],
            vec![("if-none-match", "")],
            vec![("if-none-match", "**")],
            vec![("if-none-match", "\"5\"")],
            vec![("if-match", "\"5\""), ("if-none-match", "*")],
        ];
        for pairs in bad {
            assert_eq!(
                write_condition(&headers(&pairs), true).unwrap_err().members().status,
                400,
                "{pairs:?}"
            );
        }
        assert!(write_condition(&headers(&[("if-none-match", "*")]), false).is_err());
    }

    #[test]
    fn conditions_of_reads() {
        let at = |revision| Some(of_revision(Revision(revision)));
        let table = [
            (vec![], at(5), ReadVerdict::Go),
            (vec![("if-none-match", "\"5\"")], at(5), ReadVerdict::NotModified),
            (vec![("if-none-match", "\"4\", W/\"5\"")], at(5), ReadVerdict::NotModified),
            (
                vec![("if-none-match", "\"4\""), ("if-none-match", "\"5\"")],
                at(5),
                ReadVerdict::NotModified,
            ),
            (vec![("if-none-match", "*")], at(5), ReadVerdict::NotModified),
            (vec![("if-none-match", "\"4\"")], at(5), ReadVerdict::Go),
            (vec![("if-none-match", "\"a,b\"")], at(5), ReadVerdict::Go),
            (vec![("if-none-match", ",\"5\"")], at(5), ReadVerdict::NotModified),
            (vec![("if-none-match", " , ,\t\"4\" ,, \"5\" , ")], at(5), ReadVerdict::NotModified),
            (vec![("if-none-match", ", *")], at(5), ReadVerdict::NotModified),
            (vec![("if-none-match", "")], at(5), ReadVerdict::Go),
            (vec![("if-none-match", " , ")], at(5), ReadVerdict::Go),
            (vec![("if-match", ", \"5\",")], at(5), ReadVerdict::Go),
            (vec![("if-none-match", "*")], None, ReadVerdict::Go),
            (vec![("if-match", "\"5\"")], at(5), ReadVerdict::Go),
            (vec![("if-match", "W/\"5\"")], at(5), ReadVerdict::Failed),
            (vec![("if-match", "\"4\"")], at(5), ReadVerdict::Failed),
            (vec![("if-match", "*")], None, ReadVerdict::Failed),
            (
                vec![("if-match", "\"5\""), ("if-none-match", "\"5\"")],
                at(5),
                ReadVerdict::NotModified,
            ),
        ];
        for (pairs, current, verdict) in table {
            assert_eq!(
                judge_read(&headers(&pairs), current.as_ref()).unwrap(),
                verdict,
                "{pairs:?} at {current:?}"
            );
        }
        assert!(judge_read(&headers(&[("if-none-match", "5")]), at(5).as_ref()).is_err());
        assert!(judge_read(&headers(&[("if-none-match", "\"5\" \"6\"")]), at(5).as_ref()).is_err());
    }

    #[test]
    fn conditions_of_orders() {
        let epoch = |value| epoch_condition(&headers(&[("if-match", value)]));
        assert_eq!(epoch("\"3.1\"").unwrap(), Some(Epoch { membership: 3, range: 1 }));
        assert_eq!(epoch("*").unwrap(), None);
        for bad in ["3.1", "\"3\"", "\"3.x\"", "\"3.1\",\"3.2\"", "\"+3.1\""] {
            assert!(epoch(bad).is_err(), "{bad}");
        }
    }
}
