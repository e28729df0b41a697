//! Query parameters: percent-decoded, each at most once, and only those that the path takes.
//!
//! `+` is a plus, not a space: keys stand in queries, and percent-encoding alone can write all of
//! them.

use super::path::percent_decode;
use crate::problem::Problem;
use bytes::Bytes;
use flotilla_router::Consistency;
use std::time::Duration;

/// The parameters of one request. Each is taken out by name.
#[derive(Debug)]
pub(super) struct Query {
    /// Name and value; the value is absent where there was no `=`.
    pairs: Vec<(&'static str, Option<Bytes>)>,
}

impl Query {
    /// Reads a query whose parameters are among `allowed`.
    pub(super) fn parse(query: Option<&str>, allowed: &[&'static str]) -> Result<Self, Problem> {
        let mut pairs: Vec<(&'static str, Option<Bytes>)> = Vec::new();
        for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (raw_name, raw_value) =
                pair.split_once('=').map_or((pair, None), |(name, value)| (name, Some(value)));
            let broken = || {
                let detail = format!(
                    "the query parameter {raw_name:?}: % must be followed by two hexadecimal \
                     digits (% itself is %25)"
                );
                Problem::malformed("bad_percent_encoding", detail)
            };
            let given = percent_decode(raw_name).ok_or_else(broken)?;
            let Some(name) = allowed.iter().copied().find(|name| name.as_bytes() == &given[..])
            else {
                let given = String::from_utf8_lossy(&given);
                let detail = match allowed {
                    [] => format!("query parameter {given:?} is not known; none is allowed here"),
                    _ => format!(
                        "query parameter {given:?} is not known; allowed here: {}",
                        allowed.join(", ")
                    ),
                };
                return Err(Problem::malformed("unknown_parameter", detail));
            };
            if pairs.iter().any(|(known, _)| *known == name) {
                return Err(Problem::malformed(
                    "repeated_parameter",
                    format!("query parameter {name:?} is there twice; once is allowed"),
                ));
            }
            let value =
                raw_value.map(|value| percent_decode(value).ok_or_else(broken)).transpose()?;
            pairs.push((name, value));
        }
        Ok(Self { pairs })
    }

    /// Whether a parameter is there.
    pub(super) fn has(&self, name: &str) -> bool {
        self.pairs.iter().any(|(known, _)| *known == name)
    }

    /// The bytes of a parameter; empty where it has no `=`.
    pub(super) fn bytes(&self, name: &str) -> Option<Bytes> {
        let (_, value) = self.pairs.iter().find(|(known, _)| *known == name)?;
        Some(value.clone().unwrap_or_default())
    }

    /// A parameter that is text.
    fn text(&self, name: &'static str, allowed: &str) -> Result<Option<String>, Problem> {
        match self.bytes(name) {
            None => Ok(None),
            Some(bytes) => String::from_utf8(bytes.to_vec())
                .map(Some)
                .map_err(|_| bad(name, "bytes that are no text", allowed)),
        }
    }

    /// A parameter that is yes or no; its name alone means yes.
    pub(super) fn flag(&self, name: &'static str) -> Result<Option<bool>, Problem> {
        let Some((_, value)) = self.pairs.iter().find(|(known, _)| *known == name) else {
            return Ok(None);
        };
        match value.as_deref() {
            None | Some(b"true" | b"1") => Ok(Some(true)),
            Some(b"false" | b"0") => Ok(Some(false)),
            Some(other) => Err(bad(name, &String::from_utf8_lossy(other), "true, false, 1, 0")),
        }
    }

    /// A parameter that is a whole number within limits.
    pub(super) fn number(
        &self,
        name: &'static str,
        min: u64,
        max: u64,
    ) -> Result<Option<u64>, Problem> {
        let allowed = format!("{min} to {max}");
        let Some(text) = self.text(name, &allowed)? else { return Ok(None) };
        match text.parse::<u64>() {
            Ok(number)
                if (min..=max).contains(&number) && text.bytes().all(|b| b.is_ascii_digit()) =>
            {
                Ok(Some(number))
            }
            Ok(number) if number > max => Err(bad(name, &text, &allowed).limit(max, Some(number))),
            _ => Err(bad(name, &text, &allowed)),
        }
    }

    /// A parameter that is a duration such as `2s` or `500ms`.
    fn duration(&self, name: &'static str) -> Result<Option<Duration>, Problem> {
        let allowed = "a duration such as 2s, 500ms or 1m";
        let Some(text) = self.text(name, allowed)? else { return Ok(None) };
        humantime::parse_duration(&text).map(Some).map_err(|_| bad(name, &text, allowed))
    }

    /// `consistency` and `max_staleness`; `default` is what a request gets that does not say.
    pub(super) fn consistency(&self, default: Consistency) -> Result<Consistency, Problem> {
        if self.pairs.is_empty() {
            return Ok(default);
        }
        let allowed = "linearizable, lease, stale";
        let age_max = self.duration("max_staleness")?;
        let consistency = match self.text("consistency", allowed)?.as_deref() {
            None if matches!(default, Consistency::Stale { .. }) => Consistency::Stale { age_max },
            None => default,
            Some("linearizable") => Consistency::Linearizable,
            Some("lease") => Consistency::Lease,
            Some("stale") => Consistency::Stale { age_max },
            Some(other) => return Err(bad("consistency", other, allowed)),
        };
        if age_max.is_some() && !matches!(consistency, Consistency::Stale { .. }) {
            return Err(contradiction(
                "max_staleness goes with consistency=stale alone; other reads are never stale",
            ));
        }
        Ok(consistency)
    }
}

/// A parameter whose value is not allowed.
fn bad(name: &str, value: &str, allowed: &str) -> Problem {
    Problem::malformed(
        "bad_parameter",
        format!("query parameter {name}={value:?}: allowed is {allowed}"),
    )
}

/// Parameters or headers that exclude each other.
pub(super) fn contradiction(detail: impl Into<String>) -> Problem {
    Problem::malformed("contradiction", detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOME: &[&str] = &["consistency", "max_staleness", "limit", "reverse", "prefix"];

    fn error(query: &str) -> String {
        let read = Query::parse(Some(query), SOME).and_then(|q| {
            q.consistency(Consistency::Linearizable)?;
            q.number("limit", 1, 10_000)?;
            q.flag("reverse")
        });
        read.expect_err(query).members().detail.clone()
    }

    #[test]
    fn what_is_wrong_is_named_with_what_is_allowed() {
        for (query, expected) in [
            ("colour=red", "\"colour\" is not known; allowed here: consistency, max_staleness"),
            ("limit=0", "limit=\"0\": allowed is 1 to 10000"),
            ("limit=10001", "allowed is 1 to 10000"),
            ("limit=-1", "allowed is 1 to 10000"),
            ("limit=+1", "allowed is 1 to 10000"),
            ("limit=ten", "allowed is 1 to 10000"),
            ("limit=1&limit=2", "\"limit\" is there twice"),
            ("reverse=yes", "reverse=\"yes\": allowed is true, false, 1, 0"),
            ("prefix=%zz", "two hexadecimal digits"),
            ("consistency=strong", "allowed is linearizable, lease, stale"),
            ("consistency=stale&max_staleness=long", "a duration such as 2s"),
            ("max_staleness=2s", "goes with consistency=stale alone"),
            ("consistency=lease&max_staleness=2s", "goes with consistency=stale alone"),
        ] {
            assert!(error(query).contains(expected), "{query}: {}", error(query));
        }
    }

    #[test]
    fn values_are_percent_decoded_and_a_plus_is_a_plus() {
        let query = Query::parse(Some("prefix=a%2Fb%20+%FF&limit=5&reverse"), SOME).unwrap();
        assert_eq!(query.bytes("prefix").unwrap(), &b"a/b +\xff"[..]);
        assert_eq!(query.number("limit", 1, 10).unwrap(), Some(5));
        assert_eq!(query.flag("reverse").unwrap(), Some(true));
        assert!(!query.has("consistency"));
        let stale = Query::parse(Some("consistency=stale&max_staleness=1500ms"), SOME).unwrap();
        assert_eq!(
            stale.consistency(Consistency::Linearizable).unwrap(),
            Consistency::Stale { age_max: Some(Duration::from_millis(1500)) }
        );
    }
}
