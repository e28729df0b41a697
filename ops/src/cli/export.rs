//! `flotilla kv export`: every key of a range as NDJSON, in key order.
//!
//! The lines are the server's own; behind them stands `{"complete":true,"count":n}`, so that an
//! import notices a file that was cut off. A file is replaced only by one that is whole, and
//! nothing but a file is replaced ([`Target`]).

use super::client::Client;
use super::console::Console;
use super::failure::Failure;
use super::kv::{Freshness, RangeArgs};
use super::scan::Stream;
use super::target::Target;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use std::path::{Path, PathBuf};
use tokio::signal::unix::{SignalKind, signal};

/// `flotilla kv export`.
#[derive(Clone, Debug, clap::Args)]
pub struct Export {
    /// The file to write; - or nothing for standard output
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    range: RangeArgs,
    #[command(flatten)]
    freshness: Freshness,
    /// %XX in keys stands for any byte
    #[arg(long)]
    escaped: bool,
}

/// Carries it out.
pub(super) async fn run(
    export: Export,
    client: &Client,
    console: &mut Console,
) -> Result<(), Failure> {
    let mut stream =
        Stream::new(client, export.range.query(export.escaped)?, export.freshness.query(), None);
    let bar = spinner(console);
    let count = match export.file.as_deref().filter(|file| *file != Path::new("-")) {
        None => {
            let count = copy(&mut stream, &bar, |bytes| console.data(bytes)).await?;
            console.flush()?;
            count
        }
        Some(file) => to_file(&mut stream, &bar, file).await?,
    };
    bar.finish_and_clear();
    if console.json {
        let mut said = json!({ "exported": count });
        if stream.seams > 0 {
            said["seams"] = stream.seams.into();
        }
        console.say(&said.to_string());
    } else {
        stream.tell_of_seams(console);
        console.say(&format!("{count} keys exported"));
    }
    Ok(())
}

async fn to_file(stream: &mut Stream<'_>, bar: &ProgressBar, file: &Path) -> Result<u64, Failure> {
    let mut target = Target::open(file)?;
    let watched =
        |kind| signal(kind).map_err(|error| Failure::Local(format!("watch for signals: {error}")));
    let (mut interrupt, mut terminate) =
        (watched(SignalKind::interrupt())?, watched(SignalKind::terminate())?);
    let count = tokio::select! {
        count = copy(stream, bar, |bytes| target.write(bytes)) => count?,
        // What was written so far is removed on the way out.
        _ = interrupt.recv() => return Err(interrupted(file)),
        _ = terminate.recv() => return Err(interrupted(file)),
    };
    target.finish()?;
    Ok(count)
}

fn interrupted(file: &Path) -> Failure {
    Failure::Local(format!("interrupted; {} was not replaced", file.display()))
}

/// Hands every line to `write`, and the one that ends them.
async fn copy(
    stream: &mut Stream<'_>,
    bar: &ProgressBar,
    mut write: impl FnMut(&[u8]) -> Result<(), Failure>,
) -> Result<u64, Failure> {
    let mut count = 0;
    while let Some((_, raw)) = stream.next().await? {
        write(&raw)?;
        write(b"\n")?;
        count += 1;
        bar.set_position(count);
    }
    write(format!("{}\n", json!({ "complete": true, "count": count })).as_bytes())?;
    Ok(count)
}

/// Shows a count that grows, where somebody looks.
pub(super) fn spinner(console: &Console) -> ProgressBar {
    if !console.err_is_terminal {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{spinner} {human_pos} keys in {elapsed}")
        .unwrap_or_else(|_| ProgressStyle::default_spinner());
    ProgressBar::new_spinner().with_style(style)
}
