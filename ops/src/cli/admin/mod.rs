//! `flotilla shard` and `flotilla node`: what the admin API shows, as tables, and orders.
//!
//! With `--json` the server's answers are printed as they came; of lists, one object per line. An
//! order that the server does not have yet is sent all the same: the server says so (exit code 1),
//! and a newer server carries it out.

pub(super) mod nodes;
pub(super) mod shards;

use super::client::{Client, Reply, Request};
use super::console::Console;
use super::failure::Failure;
use super::key;
use crate::admin::RangeView;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use std::fmt::Display;

/// Gives an order whose answer has no form yet.
async fn order(request: Request, client: &Client, console: &mut Console) -> Result<(), Failure> {
    let reply = client.call(request).await?;
    match reply.header("location") {
        Some(location) if !console.json => console.line(&format!("under way: {location}")),
        _ => console.line(String::from_utf8_lossy(&reply.body).trim()),
    }
}

/// Prints an answer: as it came with `--json`, otherwise as `show` does.
fn shown<T: serde::de::DeserializeOwned>(
    reply: &Reply,
    what: &str,
    console: &mut Console,
    show: impl FnOnce(&T, &mut Console) -> Result<(), Failure>,
) -> Result<(), Failure> {
    if console.json {
        return console.value(&reply.json(what, false)?);
    }
    show(&reply.json(what, false)?, console)
}

/// The objects of a list.
fn items(answer: &mut Value, name: &str) -> Result<Vec<Value>, Failure> {
    match answer.get_mut(name).map(Value::take) {
        Some(Value::Array(items)) => Ok(items),
        _ => Err(Failure::unreadable("list", format!("no {name}"), false)),
    }
}

fn typed<T: serde::de::DeserializeOwned>(items: Vec<Value>, what: &str) -> Result<Vec<T>, Failure> {
    items
        .into_iter()
        .map(|item| {
            serde_json::from_value(item).map_err(|error| Failure::unreadable(what, error, false))
        })
        .collect()
}

/// A value, or a dash where nobody knows it.
fn or_dash(value: Option<impl Display>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// An enum's value as it stands in JSON.
fn word(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value)
        .ok()
        .and_then(|value| value.as_str().map(str::to_owned))
        .unwrap_or_default()
}

/// A size as people read it.
fn bytes(n: u64) -> String {
    indicatif::BinaryBytes(n).to_string()
}

/// The ends of a range as people read them; keys that are no text are escaped.
fn bounds(range: &RangeView) -> (String, String) {
    let decode = |text: &Option<String>, base64: &Option<String>| {
        let bytes = base64.as_ref().and_then(|base64| STANDARD.decode(base64).ok());
        bytes
            .or_else(|| text.as_ref().map(|text| text.as_bytes().to_vec()))
            .map(|bytes| key::show(&bytes, false))
    };
    let start = decode(&range.start, &range.start_b64).filter(|start| !start.is_empty());
    (
        start.unwrap_or_else(|| "(first)".into()),
        decode(&range.end, &range.end_b64).unwrap_or_else(|| "(last)".into()),
    )
}
