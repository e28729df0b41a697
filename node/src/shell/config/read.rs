//! From a file and flags to a table, and from the table to a [`Config`]; what can't be read names
//! its key and the cure.
//!
//! A flag's value is read by the type of its key: text is text, so that
//! `--cluster 1234567890123456` and `--data 2024` are names and no numbers; numbers, switches and
//! lists are written as in TOML. Paths in flags are relative to where they were typed, paths in the
//! file to the file's folder. A byte order mark in front of the file is passed over.

use super::{Config, ConfigError};
use std::path::Path;
use toml::{Table, Value};

/// The most replicas of a shard, where nothing is said.
const REPLICAS: i64 = 3;

/// Reads the file, if there is one, and puts flags over it: pairs of a dotted key and a value.
pub(super) fn load(file: Option<&Path>, flags: &[(String, String)]) -> Result<Config, ConfigError> {
    let source = file.map_or_else(|| "flags".to_owned(), |f| f.display().to_string());
    let mut table = match file {
        Some(path) => read(path)?,
        None => Table::new(),
    };
    let kinds = Table::try_from(Config::sample()).expect("every field has a form in TOML");
    for (key, text) in flags {
        let kind = find(&kinds, key);
        let value =
            parse_flag(kind, text).map_err(|why| ConfigError(format!("{}: {why}", flag(key))))?;
        put(&mut table, key, value).map_err(|why| ConfigError(format!("{}: {why}", flag(key))))?;
    }
    as_many_replicas_as_there_are_nodes(&mut table);
    // Where a complaint is about a flag, it is the flag that has to be put right.
    let blame = |key: &str| match flags.iter().find(|(given, _)| given == key) {
        Some((given, _)) => flag(given),
        None => source.clone(),
    };
    let mut config: Config = serde_path_to_error::deserialize(table).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        ConfigError(format!("{}: {}", blame(&path), explain(&kinds, &path, inner.message())))
    })?;
    let here =
        std::env::current_dir().map_err(|e| ConfigError(format!("the current folder: {e}")))?;
    let folder = file.and_then(Path::parent).unwrap_or(&here);
    for (key, path) in config.paths() {
        if !path.as_os_str().is_empty() && path.is_relative() {
            *path = if flags.iter().any(|(given, _)| given == key) { &here } else { folder }
                .join(&*path);
        }
    }
    config.check().map_err(|why| {
        let key = why.split([' ', '[', ':']).next().unwrap_or_default();
        ConfigError(format!("{}: {why}", blame(key)))
    })?;
    Ok(config)
}

/// The flag of a key.
pub fn flag(key: &str) -> String {
    format!("--{}", key.replace(['.', '_'], "-"))
}

/// What keys were called before the first release, by section. `flotilla dev` has written them into
/// many folders.
const OLD_NAMES: &[(&str, &str, &str)] = &[
    ("raft", "max_size_per_msg_bytes", "message_bytes_max"),
    ("raft", "max_committed_size_per_ready_bytes", "committed_bytes_per_ready_max"),
    ("raft", "max_uncommitted_size_bytes", "uncommitted_bytes_max"),
    ("raft", "max_inflight_msgs", "inflight_messages_max"),
    ("raft", "max_inflight_bytes", "inflight_bytes_max"),
    ("raft", "max_entry_size_bytes", "entry_bytes_max"),
    ("raft", "max_inflight_writes", "inflight_writes_max"),
    ("raft", "max_waiting_bytes", "waiting_bytes_max"),
    ("reads", "clock_drift_max_percent", "clock_drift_percent_max"),
];

/// Takes an old name for the new one, unless both are there: then the old one is complained about.
fn rename(table: &mut Table, old: &str, new: &str) {
    if !table.contains_key(new)
        && let Some(value) = table.remove(old)
    {
        table.insert(new.into(), value);
    }
}

fn read(path: &Path) -> Result<Table, ConfigError> {
    let shown = path.display();
    let text = std::fs::read(path).map_err(|e| {
        ConfigError(format!("read {shown}: {e}; `flotilla dev` makes one to start from, under n1/"))
    })?;
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&text);
    let text = std::str::from_utf8(text)
        .map_err(|_| ConfigError(format!("{shown} is no text: name a TOML file with --config")))?;
    let mut table: Table =
        text.parse().map_err(|error| ConfigError(format!("{shown}: {error}")))?;
    rename(&mut table, "founding", "bootstrap");
    for (section, old, new) in OLD_NAMES {
        if let Some(Value::Table(section)) = table.get_mut(*section) {
            rename(section, old, new);
        }
    }
    Ok(table)
}

/// What could not be read: the key, what is wrong with its value, and how it is written.
fn explain(kinds: &Table, path: &str, why: &str) -> String {
    if why.starts_with("missing field") {
        let of = if path == "." { String::new() } else { format!(" in {path}") };
        return format!(
            "{why}{of}: `flotilla dev` makes complete files to start from; docs/configuration.md \
             tells of every key"
        );
    }
    if why.starts_with("unknown field") {
        return format!("{path}: {why}");
    }
    let cure = match find(kinds, path) {
        Some(Value::String(_)) if why.starts_with("invalid type") => {
            format!("; it is text: write it in quotes, {path} = \"…\"")
        }
        Some(Value::String(_)) if matches!(path, "http" | "quic") => {
            "; it takes an IP address and a port, such as 127.0.0.1:7001 (names are not looked up \
             here)"
                .into()
        }
        Some(Value::String(text))
            if humantime_serde::re::humantime::parse_duration(text).is_ok() =>
        {
            format!("; a duration has a unit, such as \"{text}\"")
        }
        Some(Value::Integer(_)) => "; it is a whole number, without quotes or unit".into(),
        Some(Value::Boolean(_)) => "; it is true or false, without quotes".into(),
        _ => String::new(),
    };
    format!("{path}: {why}{cure}")
}

/// A flag's value, read by the kind of its key.
fn parse_flag(kind: Option<&Value>, text: &str) -> Result<Value, String> {
    let toml =
        || format!("v = {text}").parse::<Table>().ok().and_then(|mut table| table.remove("v"));
    match kind {
        Some(Value::String(_)) => Ok(match toml() {
            Some(Value::String(quoted)) => Value::String(quoted),
            _ => Value::String(text.to_owned()),
        }),
        Some(Value::Integer(_)) => match toml() {
            Some(Value::Integer(number)) => Ok(Value::Integer(number)),
            _ => Err(format!(
                "{text:?} is no whole number (bytes are plain numbers, without a unit)"
            )),
        },
        Some(Value::Boolean(_)) => match toml() {
            Some(Value::Boolean(on)) => Ok(Value::Boolean(on)),
            _ => Err(format!("{text:?} is neither true nor false")),
        },
        // A list of names may be written without TOML's brackets and quotes.
        Some(Value::Array(sample)) if !sample.iter().any(Value::is_table) => Ok(match toml() {
            Some(Value::Array(list)) => Value::Array(list),
            _ => text
                .split(',')
                .map(str::trim)
                .filter(|one| !one.is_empty())
                .collect::<Vec<_>>()
                .into(),
        }),
        Some(_) => toml().ok_or_else(|| {
            format!(
                "{text:?} is no TOML, which it is written in; for nodes: '[{{ id = 1, quic = \
                 \"10.0.0.1:7101\" }}, …]'"
            )
        }),
        None => Ok(toml().unwrap_or_else(|| Value::String(text.to_owned()))),
    }
}

/// Where nothing is said, a shard has three replicas, or one on each node where there are fewer.
fn as_many_replicas_as_there_are_nodes(table: &mut Table) {
    let Some(Value::Array(peers)) = table.get("peers") else { return };
    let replicas = (peers.len() as i64).clamp(1, REPLICAS);
    let bootstrap = table.entry("bootstrap").or_insert_with(|| Value::Table(Table::new()));
    if let Value::Table(bootstrap) = bootstrap {
        bootstrap.entry("replicas").or_insert(Value::Integer(replicas));
    }
}

fn find<'a>(table: &'a Table, key: &str) -> Option<&'a Value> {
    match key.split_once('.') {
        None => table.get(key),
        Some((outer, inner)) => find(table.get(outer)?.as_table()?, inner),
    }
}

/// Sets a dotted key.
fn put(table: &mut Table, key: &str, value: Value) -> Result<(), String> {
    match key.split_once('.') {
        None => {
            table.insert(key.to_owned(), value);
            Ok(())
        }
        Some((outer, inner)) => {
            match table.entry(outer).or_insert_with(|| Value::Table(Table::new())) {
                Value::Table(table) => put(table, inner, value),
                _ => Err(format!("{outer} is not a table")),
            }
        }
    }
}
