//! `flotilla kv`: one key at a time, and the door to scans, imports and exports.
//!
//! `get` prints the value's bytes and nothing else, so that `flotilla kv get k > file` is the
//! value. `put` and `delete` print what they did. Nothing is read from the cluster before it is
//! written: conditions are checked there, by `If-Match` and `If-None-Match`.

use super::client::{Client, Reply, Request};
use super::console::Console;
use super::failure::Failure;
use super::{export, import, key, scan};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use http::header::{IF_MATCH, IF_NONE_MATCH};
use serde_json::{Map, Value, json};
use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// What to do with keys.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Command {
    /// Sets a key; done once it is durable on a quorum and applied
    #[command(
        after_help = "Examples:\n  flotilla kv put greeting hello\n  flotilla kv put greeting hi \
                      --if-match 5\n  flotilla kv put config --file config.json --if-none-match\n  \
                      date | flotilla kv put now -\n\n\
                      A value that begins with a dash goes behind --, as in: flotilla kv put k -- \
                      -x"
    )]
    Put(Put),
    /// Prints a key's value: its bytes and nothing else
    #[command(after_help = "Examples:\n  flotilla kv get greeting\n  flotilla kv get greeting \
                            --consistency stale --max-staleness 2s\n  flotilla kv get photo -o \
                            photo.jpg")]
    Get(Get),
    /// Removes a key, or a range of keys
    #[command(
        after_help = "Examples:\n  flotilla kv delete greeting\n  flotilla kv delete --prefix \
                      session/\n  flotilla kv delete --start a --end b"
    )]
    Delete(Delete),
    /// Lists keys and values in order
    #[command(
        after_help = "Examples:\n  flotilla kv scan --prefix user/ --limit 20\n  flotilla kv scan \
                      --start a --end b --keys-only\n  flotilla kv scan --limit 0 --json | jq -r \
                      .key"
    )]
    Scan(scan::Scan),
    /// Sets every key of an NDJSON file, as export writes it
    #[command(
        after_help = "Examples:\n  flotilla kv import backup.ndjson\n  zcat backup.ndjson.gz | \
                      flotilla kv import -\n\n\
                      A line is {\"key\":\"a\",\"value\":\"1\"}, or key_b64 and value_b64 in \
                      base64.\nIt is no transaction: what fails is told, line by line."
    )]
    Import(import::Import),
    /// Writes every key of a range to an NDJSON file
    #[command(
        after_help = "Examples:\n  flotilla kv export backup.ndjson\n  flotilla kv export --prefix \
                      user/ - | gzip > users.ndjson.gz\n\n\
                      Consistent within each shard, not over all of them. The last line is \
                      {\"complete\":true,\"count\":…}."
    )]
    Export(export::Export),
    /// Follows changes (the server does not have it yet)
    #[command(after_help = "Example:\n  flotilla kv watch --prefix user/")]
    Watch(Watch),
}

/// The revision that a key has to be at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Match(pub(super) String);

impl FromStr for Match {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bare = text.trim_matches('"');
        match text {
            "*" => Ok(Self("*".into())),
            _ if !bare.is_empty() && bare.bytes().all(|byte| byte.is_ascii_digit()) => {
                Ok(Self(format!("\"{bare}\"")))
            }
            _ => Err("a revision (a number, as put and scan show it), or * for any".into()),
        }
    }
}

/// A range of keys.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct RangeArgs {
    /// Keys that begin with this; empty (`--prefix=`) for every key
    #[arg(long, value_name = "PREFIX", conflicts_with_all = ["start", "end"])]
    pub(super) prefix: Option<OsString>,
    /// Keys from this one on
    #[arg(long, value_name = "KEY")]
    pub(super) start: Option<OsString>,
    /// Keys below this one
    #[arg(long, value_name = "KEY")]
    pub(super) end: Option<OsString>,
}

impl RangeArgs {
    /// The query that names it; empty for no range.
    pub(super) fn query(&self, escaped: bool) -> Result<Vec<(&'static str, String)>, Failure> {
        let mut query = Vec::new();
        for (name, bound) in [("prefix", &self.prefix), ("start", &self.start), ("end", &self.end)]
        {
            if let Some(bound) = bound {
                query.push((name, key::encode(&key::parse(bound, escaped)?)));
            }
        }
        Ok(query)
    }
}

/// A path with a query.
pub(super) fn with_query(path: &str, query: &[(&'static str, String)]) -> String {
    let pairs: Vec<String> = query.iter().map(|(name, value)| format!("{name}={value}")).collect();
    if pairs.is_empty() { path.to_owned() } else { format!("{path}?{}", pairs.join("&")) }
}

/// How fresh a read must be.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct Freshness {
    /// How fresh it must be: by a quorum, by the leader's lease, or whatever a replica has
    #[arg(long, value_name = "WORD", value_parser = ["linearizable", "lease", "stale"])]
    consistency: Option<String>,
    /// How old a stale read may be, such as 2s
    #[arg(long, value_name = "TIME", value_parser = super::duration)]
    max_staleness: Option<Duration>,
}

impl Freshness {
    /// The query that says so. What goes with what, the server knows.
    pub(super) fn query(&self) -> Vec<(&'static str, String)> {
        let mut query = Vec::new();
        query.extend(self.consistency.clone().map(|word| ("consistency", word)));
        // A duration has spaces between its parts, as in "1m 2s".
        query.extend(self.max_staleness.map(|age| {
            ("max_staleness", key::encode(humantime::format_duration(age).to_string().as_bytes()))
        }));
        query
    }
}

/// `flotilla kv put`.
#[derive(Clone, Debug, clap::Args)]
#[command(
    override_usage = "flotilla kv put [OPTIONS] <KEY> <VALUE | - | --file FILE>",
    group(clap::ArgGroup::new("what").required(true).args(["value", "file"]))
)]
pub struct Put {
    /// The key
    key: OsString,
    /// The value; - reads it from standard input
    #[arg(allow_negative_numbers = true)]
    value: Option<OsString>,
    /// Reads the value from a file
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Only if the key is at this revision; * for any, as long as it is there
    #[arg(long, value_name = "REVISION", conflicts_with = "if_none_match")]
    if_match: Option<Match>,
    /// Only if there is no such key
    #[arg(long)]
    if_none_match: bool,
    /// %XX in the key stands for any byte
    #[arg(long)]
    escaped: bool,
}

/// `flotilla kv get`.
#[derive(Clone, Debug, clap::Args)]
pub struct Get {
    /// The key
    key: OsString,
    #[command(flatten)]
    freshness: Freshness,
    /// Writes the value to a file
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// %XX in the key stands for any byte
    #[arg(long)]
    escaped: bool,
}

/// `flotilla kv delete`.
#[derive(Clone, Debug, clap::Args)]
pub struct Delete {
    /// The key; instead of it, a range
    #[arg(required_unless_present_any = ["prefix", "start", "end"])]
    #[arg(conflicts_with_all = ["prefix", "start", "end"])]
    key: Option<OsString>,
    #[command(flatten)]
    range: RangeArgs,
    /// Only if the key is at this revision; * for any, as long as it is there
    #[arg(long, value_name = "REVISION", conflicts_with_all = ["prefix", "start", "end"])]
    if_match: Option<Match>,
    /// %XX in keys stands for any byte
    #[arg(long)]
    escaped: bool,
}

/// `flotilla kv watch`.
#[derive(Clone, Debug, clap::Args)]
pub struct Watch {
    /// Keys that begin with this
    #[arg(long, value_name = "PREFIX", default_value = "")]
    prefix: OsString,
    /// Changes above this revision
    #[arg(long, value_name = "REVISION")]
    since: Option<u64>,
    /// %XX in the prefix stands for any byte
    #[arg(long)]
    escaped: bool,
}

impl Command {
    /// Whether it changes anything in the cluster.
    pub(super) fn is_write(&self) -> bool {
        matches!(self, Self::Put(_) | Self::Delete(_) | Self::Import(_))
    }
}

/// Carries it out.
pub(super) async fn run(
    command: Command,
    client: &Client,
    console: &mut Console,
) -> Result<(), Failure> {
    match command {
        Command::Put(put) => self::put(put, client, console).await,
        Command::Get(get) => self::get(get, client, console).await,
        Command::Delete(delete) => self::delete(delete, client, console).await,
        Command::Scan(scan) => scan::run(scan, client, console).await,
        Command::Import(import) => import::run(import, client, console).await,
        Command::Export(export) => export::run(export, client, console).await,
        Command::Watch(watch) => self::watch(watch, client, console).await,
    }
}

/// The path of one key.
fn path(argument: &OsStr, escaped: bool) -> Result<(Vec<u8>, String), Failure> {
    let key = key::parse(argument, escaped)?;
    if key.is_empty() {
        return Err(Failure::Usage("a key has at least one byte; this one is empty".into()));
    }
    let path = format!("/v1/kv/{}", key::encode(&key));
    Ok((key, path))
}

async fn put(put: Put, client: &Client, console: &mut Console) -> Result<(), Failure> {
    let (key, path) = path(&put.key, put.escaped)?;
    let value = match (&put.value, &put.file) {
        (_, Some(file)) if file.as_os_str() != "-" => {
            std::fs::read(file).map_err(|error| Failure::file("read", file, &error))?
        }
        (None, Some(_)) => whole_input(console)?,
        (Some(dash), _) if dash == "-" => whole_input(console)?,
        (value, _) => value.clone().unwrap_or_default().as_bytes().to_vec(),
    };
    let mut request = Request::new(Method::PUT, path).body(value);
    if let Some(Match(tag)) = &put.if_match {
        request = request.header(IF_MATCH, tag)?;
    }
    if put.if_none_match {
        request = request.header(IF_NONE_MATCH, "*")?;
    }
    let reply = client.call(request).await?;
    if console.json {
        return console.value(&about(&key, &reply, None));
    }
    match reply.number("etag") {
        Some(revision) => console.line(&format!("revision {revision}")),
        None => console.line("done"),
    }
}

/// All of standard input.
fn whole_input(console: &mut Console) -> Result<Vec<u8>, Failure> {
    let mut value = Vec::new();
    let read = console.take_input()?.read_to_end(&mut value);
    read.map_err(|error| Failure::Local(format!("can't read standard input: {error}")))?;
    Ok(value)
}

async fn get(get: Get, client: &Client, console: &mut Console) -> Result<(), Failure> {
    let (key, path) = path(&get.key, get.escaped)?;
    let reply = client.call(Request::get(with_query(&path, &get.freshness.query()))).await?;
    if let Some(file) = &get.output {
        std::fs::write(file, &reply.body)
            .map_err(|error| Failure::broken("write", file, &error))?;
        return if console.json { console.value(&about(&key, &reply, None)) } else { Ok(()) };
    }
    if console.json {
        return console.value(&about(&key, &reply, Some(&reply.body)));
    }
    console.data(&reply.body)?;
    // On a terminal the prompt goes on a line of its own.
    if console.out_is_terminal && !reply.body.ends_with(b"\n") {
        console.data(b"\n")?;
    }
    if console.hidden {
        console.flush()?;
        console.say(
            "what a terminal can't show is written as %XX; --output FILE or a pipe gets the bytes",
        );
    }
    Ok(())
}

async fn delete(delete: Delete, client: &Client, console: &mut Console) -> Result<(), Failure> {
    let Some(argument) = &delete.key else {
        let query = delete.range.query(delete.escaped)?;
        let reply = client.call(Request::new(Method::DELETE, with_query("/v1/kv", &query))).await?;
        let answer: Value = reply.json("answer to a range delete", true)?;
        let count = answer
            .get("count")
            .and_then(Value::as_u64)
            .ok_or_else(|| Failure::unreadable("answer to a range delete", "no count", true))?;
        return if console.json {
            console.value(&answer)
        } else {
            console.line(&format!("{count} keys deleted"))
        };
    };
    let (key, path) = path(argument, delete.escaped)?;
    let mut request = Request::new(Method::DELETE, path);
    if let Some(Match(tag)) = &delete.if_match {
        request = request.header(IF_MATCH, tag)?;
    }
    let reply = client.call(request).await?;
    if console.json { console.value(&about(&key, &reply, None)) } else { console.line("deleted") }
}

async fn watch(watch: Watch, client: &Client, console: &mut Console) -> Result<(), Failure> {
    let mut query = vec![("prefix", key::encode(&key::parse(&watch.prefix, watch.escaped)?))];
    query.extend(watch.since.map(|revision| ("since", revision.to_string())));
    let mut lines = client.lines(Request::get(with_query("/v1/watch", &query))).await?;
    while let Some(line) = lines.next().await? {
        console.data(&line)?;
        console.data(b"\n")?;
        console.flush()?;
    }
    Ok(())
}

/// What is known of a key from an answer about it.
fn about(key: &[u8], reply: &Reply, value: Option<&[u8]>) -> Value {
    let mut object = Map::new();
    put_bytes(&mut object, "key", key);
    if let Some(value) = value {
        put_bytes(&mut object, "value", value);
    }
    for (name, header) in [
        ("revision", "etag"),
        ("shard", "flotilla-shard"),
        ("node", "flotilla-node"),
        ("applied", "flotilla-applied"),
    ] {
        if let Some(number) = reply.number(header) {
            object.insert(name.into(), number.into());
        }
    }
    if let Some(age) = reply.header("flotilla-age").and_then(|age| age.parse::<f64>().ok()) {
        object.insert("age_seconds".into(), json!(age));
    }
    Value::Object(object)
}

fn put_bytes(object: &mut Map<String, Value>, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object.insert(name.to_owned(), text.into()),
        Err(_) => object.insert(format!("{name}_b64"), STANDARD.encode(bytes).into()),
    };
}
