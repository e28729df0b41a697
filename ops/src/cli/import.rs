//! `flotilla kv import`: every line of an NDJSON file becomes a put, many in one request, several
//! requests under way.
//!
//! Each line ends in one of three ways, and the report counts them apart: *written*; *failed*,
//! certainly not written; *unknown*, where the request was sent and no outcome came back. Only what
//! was certainly not written **and** may work in a moment (no leader, too much in flight) is tried
//! again, a few times. An unknown one never is: repeating the import is the user's decision.
//!
//! A line that can't be read stops the import: what comes after it would be a guess. A file that
//! was cut off shows by what is missing at its end: the line that every export ends with. Lines
//! made by hand have no revision and need no such end. With several requests under way, a key that
//! stands on two lines may end with either value; `--in-flight 1` keeps the order.

use super::client::{Client, Request};
use super::console::Console;
use super::export::spinner;
use super::failure::Failure;
use super::item::Line;
use super::key;
use flotilla_router::Outcome;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::time::Duration;

/// A request has at most so many puts: well below what the server takes by default.
const BATCH_LINES_MAX: usize = 500;
/// A request has about so many bytes at most.
const BATCH_BYTES_MAX: usize = 1 << 20;
/// What some editors put in front of a text.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// How often a put that was certainly not written is tried in all.
const TRIES_MAX: u32 = 6;
/// How long to wait before the second try; each further wait is twice as long.
const PAUSE: Duration = Duration::from_millis(100);
/// A line may be so long: the longest key and the largest value in JSON, where one byte may take
/// six, with room to spare.
const LINE_BYTES_MAX: u64 = 16 << 20;
/// So many failures are told one by one.
const FAILURES_SHOWN_MAX: u64 = 20;

/// `flotilla kv import`.
#[derive(Clone, Debug, clap::Args)]
pub struct Import {
    /// The file to read; - for standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Takes lines of an export whose end is missing, as when some were picked out of it
    #[arg(long)]
    incomplete: bool,
    /// Requests under way at a time
    #[arg(long, value_name = "N", default_value_t = 8)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=256))]
    in_flight: u16,
}

/// One put: where it stands in the file, and what it is.
#[derive(Clone, Serialize)]
struct Put {
    #[serde(skip)]
    number: u64,
    put: Line,
}

/// What the server says.
#[derive(Deserialize)]
struct Results {
    results: Vec<Value>,
}

/// What became of the lines.
#[derive(Debug, Default, Serialize)]
struct Report {
    written: u64,
    failed: u64,
    unknown: u64,
}

/// A put that did not succeed.
struct Failed {
    put: Put,
    failure: Failure,
}

/// Carries it out.
pub(super) async fn run(
    import: Import,
    client: &Client,
    console: &mut Console,
) -> Result<(), Failure> {
    let input: Box<dyn BufRead + Send> = if import.file.as_os_str() == "-" {
        console.take_input()?
    } else {
        let file = File::open(&import.file)
            .map_err(|error| Failure::file("read", &import.file, &error))?;
        Box::new(BufReader::new(file))
    };
    let bar = spinner(console);
    let mut lines = Lines {
        input,
        incomplete: import.incomplete,
        number: 0,
        items: 0,
        exported: false,
        ended: false,
        bad: None,
    };
    let mut under_way = FuturesUnordered::new();
    let mut report = Report::default();
    let mut stop = None;
    loop {
        while stop.is_none() && under_way.len() < usize::from(import.in_flight) {
            match lines.batch() {
                Ok(puts) if puts.is_empty() => break,
                Ok(puts) => under_way.push(write(client, puts)),
                Err(failure) => stop = Some(failure),
            }
        }
        let Some((written, failures)) = under_way.next().await else { break };
        report.written += written;
        for Failed { put, failure } in failures {
            let unknown = failure.outcome() == Some(Outcome::Unknown);
            *(if unknown { &mut report.unknown } else { &mut report.failed }) += 1;
            if report.failed + report.unknown <= FAILURES_SHOWN_MAX {
                bar.suspend(|| show(console, &put, &failure));
            }
            // Nobody is there: what is left would meet the same end.
            if matches!(failure, Failure::Unreachable { .. }) && stop.is_none() {
                stop = Some(failure);
            }
        }
        bar.set_position(report.written);
    }
    bar.finish_and_clear();
    if console.json {
        console.line(&serde_json::to_string(&report).expect("three numbers are JSON"))?;
    } else {
        let Report { written, failed, unknown } = report;
        console.say(&format!(
            "{written} written, {failed} failed (not written), {unknown} unknown (may have been \
             written)"
        ));
    }
    match stop {
        Some(failure) => Err(failure),
        None if report.failed + report.unknown > 0 => Err(Failure::Reported),
        None => Ok(()),
    }
}

fn show(console: &mut Console, put: &Put, failure: &Failure) {
    let key = put.put.key_bytes().map(|key| key::show(&key, false)).unwrap_or_default();
    if console.json {
        let unknown = failure.outcome() == Some(Outcome::Unknown);
        let outcome = if unknown { Outcome::Unknown } else { Outcome::NotApplied };
        let said = json!({
            "line": put.number, "key": key, "outcome": outcome, "detail": failure.summary(),
        });
        console.say(&said.to_string());
    } else {
        console.say(&format!("line {}, key {key}: {}", put.number, failure.summary()));
    }
}

/// Writes a batch; what was certainly not written is tried again for a while.
async fn write(client: &Client, mut puts: Vec<Put>) -> (u64, Vec<Failed>) {
    let mut written = 0;
    let mut failures = Vec::new();
    for tries in 1.. {
        let (done, failed) = write_once(client, puts).await;
        written += done;
        let (again, lost): (Vec<_>, Vec<_>) = failed
            .into_iter()
            .partition(|failed| tries < TRIES_MAX && failed.failure.is_worth_another_try());
        failures.extend(lost);
        if again.is_empty() {
            break;
        }
        puts = again.into_iter().map(|failed| failed.put).collect();
        tokio::time::sleep(PAUSE * 2u32.pow(tries - 1)).await;
    }
    (written, failures)
}

async fn write_once(client: &Client, puts: Vec<Put>) -> (u64, Vec<Failed>) {
    let request = Request::new(Method::POST, "/v1/batch").json(&json!({ "ops": &puts }));
    let results = match client
        .call(request)
        .await
        .and_then(|reply| reply.json::<Results>("answer to a batch", true))
    {
        Ok(Results { results }) if results.len() == puts.len() => results,
        Ok(Results { results }) => {
            let why = format!("{} results for {} puts", results.len(), puts.len());
            return (0, all(puts, || Failure::unreadable("answer to a batch", &why, true)));
        }
        Err(Failure::Problem { members, body, .. }) => {
            return (0, all(puts, || Failure::of_body(body.clone(), members.status, true)));
        }
        Err(Failure::Unreachable { why, outcome }) => {
            return (0, all(puts, || Failure::Unreachable { why: why.clone(), outcome }));
        }
        Err(failure) => return (0, all(puts, || Failure::Usage(failure.summary()))),
    };
    let mut written = 0;
    let mut failures = Vec::new();
    for (put, result) in puts.into_iter().zip(results) {
        match result
            .get("status")
            .and_then(Value::as_u64)
            .and_then(|status| u16::try_from(status).ok())
        {
            Some(200..=299) => written += 1,
            status => failures.push(Failed {
                put,
                failure: Failure::of_body(result, status.unwrap_or(500), true),
            }),
        }
    }
    (written, failures)
}

/// The same failure for all.
fn all(puts: Vec<Put>, failure: impl Fn() -> Failure) -> Vec<Failed> {
    puts.into_iter().map(|put| Failed { put, failure: failure() }).collect()
}

/// The lines of the file.
struct Lines {
    input: Box<dyn BufRead + Send>,
    number: u64,
    items: u64,
    /// Whether an export's end may be missing.
    incomplete: bool,
    /// Lines of an export were seen: they have revisions.
    exported: bool,
    /// The line that ends an export was seen.
    ended: bool,
    /// What is wrong with the line that was read last.
    bad: Option<String>,
}

impl Lines {
    /// The puts of the next request; none behind the last line.
    fn batch(&mut self) -> Result<Vec<Put>, Failure> {
        let mut puts = Vec::new();
        let mut bytes = 0;
        while self.bad.is_none() && puts.len() < BATCH_LINES_MAX && bytes < BATCH_BYTES_MAX {
            let mut text = Vec::new();
            let read = self.input.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut text);
            let read = match read {
                Ok(read) => read,
                Err(error) => {
                    self.bad = Some(format!("can't read on behind line {}: {error}", self.number));
                    break;
                }
            };
            if read == 0 {
                self.bad = self.cut_off();
                break;
            }
            let whole = text.ends_with(b"\n");
            let text = text.trim_ascii();
            let text = if self.number == 0 {
                text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text)
            } else {
                text
            };
            self.number += 1;
            if text.is_empty() {
                continue;
            }
            let line = match self.parse(text) {
                Ok(line) => line,
                Err(why) => {
                    let why = if whole || read as u64 == LINE_BYTES_MAX {
                        format!("line {}: {why}; nothing behind it was imported", self.number)
                    } else {
                        format!(
                            "line {}: the file was cut off in the midst of it ({why}); take a \
                             whole one",
                            self.number
                        )
                    };
                    // What stands in front of it is good, and is written first.
                    self.bad = Some(why);
                    break;
                }
            };
            if let Some(line) = line {
                bytes += text.len();
                puts.push(Put { number: self.number, put: line });
            }
        }
        match self.bad.take() {
            Some(why) if puts.is_empty() => Err(Failure::Local(why)),
            bad => {
                self.bad = bad;
                Ok(puts)
            }
        }
    }

    /// Behind the last line: what is missing of a whole file.
    fn cut_off(&self) -> Option<String> {
        if self.ended || self.incomplete || (self.items > 0 && !self.exported) {
            return None;
        }
        let cure = "take a whole one, or say --incomplete if it is meant to be so";
        Some(match self.items {
            0 => {
                format!("there is nothing to import, not even the line that ends an export; {cure}")
            }
            items => format!(
                "the file was cut off behind line {}: {items} keys were there, and the line that \
                 ends an export was not; {cure}",
                self.number
            ),
        })
    }

    /// The item of a line; `None` for the line behind the last.
    fn parse(&mut self, text: &[u8]) -> Result<Option<Line>, String> {
        if self.ended {
            return Err("something stands behind the line that ends the export".into());
        }
        let mut line = Line::parse(text)?;
        if line.is_last() {
            self.ended = true;
            return match (line.complete, line.count) {
                (Some(true), Some(count)) if count != self.items && !self.incomplete => {
                    Err(format!(
                        "it says {count} items, and {} are there (--incomplete takes them)",
                        self.items
                    ))
                }
                (Some(true), _) => Ok(None),
                _ if self.incomplete => Ok(None),
                _ => Err("the export that made this file was not complete (--incomplete takes it)"
                    .into()),
            };
        }
        line.key_bytes().map_err(|failure| failure.summary())?;
        if line.value_bytes().map_err(|failure| failure.summary())?.is_none() {
            return Err("it has neither value nor value_b64".into());
        }
        self.exported |= line.revision.take().is_some();
        self.items += 1;
        Ok(Some(line))
    }
}
