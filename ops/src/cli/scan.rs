//! `flotilla kv scan`: keys and values in order, as they come from the server's stream.
//!
//! On a terminal a table; into a pipe one line per key, `key TAB value` (the key alone with
//! `--keys-only`), where control characters show as `%XX`; with `--json` the server's own lines.
//! [`Stream`] is shared with exports: it follows the cursor where a stream stopped early, goes on
//! behind the last key where a connection was lost (as the server ends one whose reader pauses for
//! long), and says honestly when it can't go on.

use super::client::{Client, Lines, Request};
use super::console::Console;
use super::failure::Failure;
use super::item::Line;
use super::key;
use super::kv::{Freshness, RangeArgs, with_query};
use bytes::Bytes;
use flotilla_router::KeyRange;
use flotilla_router::range::successor_of_key;
use http::header::ACCEPT;
use percent_encoding::percent_decode_str;
use std::time::Duration;

/// How often a stream that stopped without a step forward is taken up again.
const TRIES_MAX: u32 = 5;
/// How long to wait before that, at first.
const PAUSE: Duration = Duration::from_millis(200);

/// `flotilla kv scan`.
#[derive(Clone, Debug, clap::Args)]
pub struct Scan {
    #[command(flatten)]
    range: RangeArgs,
    /// At most so many keys; 0 for all
    #[arg(long, value_name = "N", default_value_t = 1000)]
    limit: u64,
    /// From the end backwards
    #[arg(long)]
    reverse: bool,
    /// Without values
    #[arg(long)]
    keys_only: bool,
    #[command(flatten)]
    freshness: Freshness,
    /// %XX stands for any byte, in arguments and in what is printed
    #[arg(long)]
    escaped: bool,
}

/// Carries it out.
pub(super) async fn run(scan: Scan, client: &Client, console: &mut Console) -> Result<(), Failure> {
    let mut query = scan.range.query(scan.escaped)?;
    query.extend(scan.reverse.then(|| ("reverse", "true".into())));
    query.extend(scan.keys_only.then(|| ("keys_only", "true".into())));
    let limit = (scan.limit > 0).then_some(scan.limit);
    let mut stream = Stream::new(client, query, scan.freshness.query(), limit);
    let mut rows = Vec::new();
    let outcome = loop {
        let (line, raw) = match stream.next().await {
            Ok(Some(item)) => item,
            Ok(None) => break Ok(()),
            Err(failure) => break Err(failure),
        };
        if console.json {
            console.json_line(&raw)?;
            continue;
        }
        let shown = key::show(&line.key_bytes()?, scan.escaped);
        let value = line.value_bytes()?.map(|value| key::show(&value, scan.escaped));
        if console.out_is_terminal {
            let mut row = vec![
                shown,
                line.revision.map_or_else(String::new, |revision| revision.to_string()),
            ];
            row.extend(value);
            rows.push(row);
        } else {
            console
                .line(&value.map_or_else(|| shown.clone(), |value| format!("{shown}\t{value}")))?;
        }
    };
    if !rows.is_empty() {
        let names: &[&str] =
            if scan.keys_only { &["KEY", "REVISION"] } else { &["KEY", "REVISION", "VALUE"] };
        console.table(names, rows)?;
    }
    if outcome.is_ok() && (stream.more || stream.seams > 0) {
        console.flush()?;
        stream.tell_of_seams(console);
    }
    if outcome.is_ok() && stream.more {
        console.say(&format!(
            "there are more keys: --limit {} was reached; --limit 0 shows all",
            scan.limit
        ));
    }
    outcome
}

/// Where a stream begins.
enum Place {
    /// At the front of its range.
    Front,
    /// Where the one before ended.
    Cursor(String),
    /// Behind the key that came last.
    Behind,
}

/// The items of a range, over as many streams as it takes.
pub(super) struct Stream<'a> {
    client: &'a Client,
    /// What goes along only at the beginning: a cursor knows it.
    range: Vec<(&'static str, String)>,
    /// What goes along every time.
    freshness: Vec<(&'static str, String)>,
    /// How many items may still come.
    left: Option<u64>,
    place: Place,
    /// The key that came last.
    last: Option<Vec<u8>>,
    lines: Option<Lines>,
    /// Failures since the last item.
    tries: u32,
    /// How often it was taken up again in the midst: what came behind is of another moment than
    /// what came before.
    pub(super) seams: u32,
    /// Whether something is left that the limit kept back.
    pub(super) more: bool,
    done: bool,
}

impl<'a> Stream<'a> {
    /// At most `limit` items of what the query names.
    pub(super) fn new(
        client: &'a Client,
        range: Vec<(&'static str, String)>,
        freshness: Vec<(&'static str, String)>,
        limit: Option<u64>,
    ) -> Self {
        let (place, last, lines) = (Place::Front, None, None);
        Self {
            client,
            range,
            freshness,
            left: limit,
            place,
            last,
            lines,
            tries: 0,
            seams: 0,
            more: false,
            done: false,
        }
    }

    /// Says how often it was taken up again in the midst, if ever.
    pub(super) fn tell_of_seams(&self, console: &mut Console) {
        if self.seams > 0 {
            let often =
                if self.seams == 1 { "once".to_owned() } else { format!("{} times", self.seams) };
            console.say(&format!(
                "the stream was lost and taken up again {often}: a shard that was being read then \
                 is shown at more than one moment"
            ));
        }
    }

    /// The next item, and the line that it came as; `None` when there are no more, or no more are
    /// wanted.
    pub(super) async fn next(&mut self) -> Result<Option<(Line, Bytes)>, Failure> {
        loop {
            if self.done {
                return Ok(None);
            }
            if self.lines.is_none() {
                let Some(target) = self.target() else { return Ok(None) };
                let request = Request::get(target).header(ACCEPT, "application/x-ndjson")?;
                match self.client.lines(request).await {
                    Ok(lines) => self.lines = Some(lines),
                    Err(failure) if failure.is_worth_another_try() => self.pause(failure).await?,
                    Err(failure) => return Err(failure),
                }
                continue;
            }
            let Some(lines) = &mut self.lines else { continue };
            let raw = match lines.next().await {
                Ok(Some(raw)) => raw,
                Ok(None) => {
                    return Err(Failure::unreadable(
                        "whole scan",
                        "its last line is missing",
                        false,
                    ));
                }
                Err(failure) => {
                    self.lines = None;
                    if self.last.is_some() {
                        self.place = Place::Behind;
                        self.seams += 1;
                    }
                    self.pause(failure).await?;
                    continue;
                }
            };
            let line = Line::parse(&raw)
                .map_err(|why| Failure::unreadable("item of a scan", why, false))?;
            if !line.is_last() {
                self.tries = 0;
                self.last = Some(line.key_bytes()?);
                self.left = self.left.map(|left| left.saturating_sub(1));
                return Ok(Some((line, raw)));
            }
            self.lines = None;
            let has_cursor = line.cursor.is_some();
            if let Some(cursor) = line.cursor {
                self.place = Place::Cursor(cursor);
            }
            match (line.complete, line.problem) {
                (Some(true), _) => self.done = true,
                _ if self.left == Some(0) => (self.done, self.more) = (true, true),
                (_, Some(problem)) => {
                    let status = problem
                        .get("status")
                        .and_then(|status| status.as_u64())
                        .and_then(|n| u16::try_from(n).ok());
                    let failure = Failure::of_body(problem, status.unwrap_or(500), false);
                    if !failure.is_worth_another_try() || !has_cursor {
                        return Err(failure);
                    }
                    self.seams += 1;
                    self.pause(failure).await?;
                }
                _ if has_cursor => {}
                _ => {
                    return Err(Failure::unreadable(
                        "whole scan",
                        "it stopped without a cursor",
                        false,
                    ));
                }
            }
        }
    }

    /// What to ask for; `None` where no key can be left.
    fn target(&self) -> Option<String> {
        let mut query = match (&self.place, &self.last) {
            (Place::Cursor(cursor), _) => vec![("cursor", key::encode(cursor.as_bytes()))],
            (Place::Behind, Some(last)) => self.behind(last)?,
            _ => self.range.clone(),
        };
        query.extend(self.left.map(|left| ("limit", left.to_string())));
        query.extend(self.freshness.iter().cloned());
        Some(with_query("/v1/kv", &query))
    }

    /// What is left of the range behind `last`; `None` where nothing can be.
    fn behind(&self, last: &[u8]) -> Option<Vec<(&'static str, String)>> {
        let named = |name| self.range.iter().find(|(given, _)| *given == name);
        let bound = |name| {
            named(name).map(|(_, text)| Bytes::from(percent_decode_str(text).collect::<Vec<u8>>()))
        };
        let whole = match bound("prefix") {
            Some(prefix) => KeyRange::prefix(prefix),
            None => KeyRange::new(
                bound("start").unwrap_or_default(),
                bound("end").filter(|end| !end.is_empty()),
            ),
        };
        let rest = match named("reverse") {
            Some(_) => KeyRange::new(whole.start, Some(Bytes::copy_from_slice(last))),
            None => KeyRange::new(successor_of_key(last), whole.end),
        };
        if rest.is_empty() {
            return None;
        }
        let mut query = vec![("start", key::encode(&rest.start))];
        query.extend(rest.end.map(|end| ("end", key::encode(&end))));
        query.extend(
            self.range
                .iter()
                .filter(|(name, _)| !matches!(*name, "prefix" | "start" | "end"))
                .cloned(),
        );
        Some(query)
    }

    /// Waits before the next try, or gives up.
    async fn pause(&mut self, failure: Failure) -> Result<(), Failure> {
        self.tries += 1;
        if self.tries >= TRIES_MAX {
            return Err(failure);
        }
        tokio::time::sleep(PAUSE * self.tries).await;
        Ok(())
    }
}
