//! A key and its value as a line of JSON: what scans stream, exports write, and imports read.

use super::failure::Failure;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One line of a stream or a file.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Line {
    /// The key, where it is UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<String>,
    /// The key in base64, where it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) key_b64: Option<String>,
    /// The value, where it is UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) value: Option<String>,
    /// The value in base64, where it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) value_b64: Option<String>,
    /// The revision that the key was at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) revision: Option<u64>,
    /// On the last line: nothing is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) complete: Option<bool>,
    /// On the last line: where to go on, since something is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) cursor: Option<String>,
    /// On the last line: how many items came before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) count: Option<u64>,
    /// On the last line: why something is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) problem: Option<Value>,
}

impl Line {
    /// Reads a line; says what is wrong with it.
    pub(super) fn parse(text: &[u8]) -> Result<Self, String> {
        let line: Self = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        let is_item = line.key.is_some() || line.key_b64.is_some();
        match (is_item, line.is_last()) {
            (true, true) => Err("it is both an item and the end".into()),
            (false, false) => Err("it has neither key nor key_b64".into()),
            _ => Ok(line),
        }
    }

    /// Whether it is the line behind the last item.
    pub(super) fn is_last(&self) -> bool {
        self.complete.is_some() || self.cursor.is_some() || self.problem.is_some()
    }

    /// The key's bytes.
    pub(super) fn key_bytes(&self) -> Result<Vec<u8>, Failure> {
        bytes("key", self.key.as_deref(), self.key_b64.as_deref())
    }

    /// The value's bytes; `None` where there is none, as in a scan of keys only.
    pub(super) fn value_bytes(&self) -> Result<Option<Vec<u8>>, Failure> {
        if self.value.is_none() && self.value_b64.is_none() {
            return Ok(None);
        }
        bytes("value", self.value.as_deref(), self.value_b64.as_deref()).map(Some)
    }
}

fn bytes(name: &str, text: Option<&str>, base64: Option<&str>) -> Result<Vec<u8>, Failure> {
    match (text, base64) {
        (Some(text), None) => Ok(text.as_bytes().to_vec()),
        (None, Some(base64)) => STANDARD
            .decode(base64)
            .map_err(|_| Failure::unreadable("item", format!("{name}_b64 is no base64"), false)),
        _ => Err(Failure::unreadable(
            "item",
            format!("it needs exactly one of {name} and {name}_b64"),
            false,
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_and_ends_are_told_apart() {
        let item = Line::parse(br#"{"key":"a","value_b64":"/w==","revision":3}"#).unwrap();
        assert!(!item.is_last());
        assert_eq!(item.key_bytes().unwrap(), b"a");
        assert_eq!(item.value_bytes().unwrap().unwrap(), b"\xff");
        assert!(Line::parse(br#"{"complete":true,"count":3}"#).unwrap().is_last());
        for bad in [
            "",
            "[]",
            "{}",
            r#"{"key":"a","complete":true}"#,
            r#"{"key":"a","vlaue":"b"}"#,
            r#"{"count":3}"#,
        ] {
            assert!(Line::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
