//! What is noted of all registers of a test together: which revisions each shard gave out, and, in
//! crash tests, all that happened, in a file that no crash of the cluster can touch.
//!
//! The file's form is that of `flotilla check --history`. A line is with the kernel before anybody
//! acts on what it says, so the file can be judged also when the test is gone, by `flotilla check
//! --verify`; at the end of a test it is judged by whoever knows nothing else ([`judge`]), with the
//! one thing that the checker can't see, because it looks at one key at a time: that no shard gave
//! out a revision twice.

use super::admin::bytes_of;
use super::process::lock;
use flotilla_node::check::Operation;
use flotilla_node::check::lines::{Header, Writer, verify};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead as _, BufReader, BufWriter};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// The file.
pub(crate) struct Journal(Writer<BufWriter<File>>);

impl Journal {
    /// A new one.
    pub(crate) fn new(path: &Path) -> Self {
        let file = File::options().create_new(true).append(true).open(path).unwrap();
        Self(
            Writer::new(BufWriter::new(file), &Header::new(0, Vec::new(), "linearizable")).unwrap(),
        )
    }

    /// A write is about to be sent. The line is with the kernel when this returns, and survives
    /// this process.
    pub(crate) fn asked(&mut self, id: u64, operation: &Operation) {
        self.0.asked(id, operation).and_then(|()| self.0.flush()).unwrap();
    }

    /// An operation came to an end.
    pub(crate) fn done(&mut self, id: u64, operation: &Operation) {
        self.0.done(id, operation).and_then(|()| self.0.flush()).unwrap();
    }
}

/// What all registers of a test share.
pub(crate) struct Record {
    begun: Instant,
    next_id: AtomicU64,
    journal: Option<Mutex<Journal>>,
    /// The revisions that each shard gave out: to which register, and to which attempt at it.
    given: Mutex<BTreeMap<(u64, u64), (usize, u64)>>,
    /// The first thing that was found wrong and that no history of a key shows.
    wrong: Mutex<Option<String>>,
}

impl Record {
    pub(crate) fn new(journal: Option<Journal>) -> Arc<Self> {
        let (given, wrong) = Default::default();
        let (begun, next_id, journal) =
            (Instant::now(), AtomicU64::new(1), journal.map(Mutex::new));
        Arc::new(Self { begun, next_id, journal, given, wrong })
    }

    /// Microseconds since all began.
    pub(crate) fn now(&self) -> u64 {
        self.begun.elapsed().as_micros() as u64
    }

    pub(crate) fn write(&self, line: impl FnOnce(&mut Journal)) {
        if let Some(journal) = &self.journal {
            line(&mut lock(journal));
        }
    }

    pub(crate) fn note_wrong(&self, why: String) {
        lock(&self.wrong).get_or_insert(why);
    }

    /// The id of the next operation.
    pub(crate) fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Notes that a shard gave a revision to an attempt at a register.
    pub(crate) fn give(&self, shard: u64, revision: u64, to: (usize, u64)) {
        let before = lock(&self.given).insert((shard, revision), to);
        if let Some(before) = before.filter(|before| *before != to) {
            let twice = format!("attempt {} at register {}, and {}", before.1, before.0, to.1);
            self.note_wrong(format!(
                "revision {revision} of shard {shard} was given out twice: {twice} at {}",
                to.0
            ));
        }
    }

    /// Whether nothing was found wrong that no history of a key shows.
    pub(crate) fn is_well(&self) -> Result<(), String> {
        lock(&self.wrong).clone().map_or(Ok(()), Err)
    }
}

/// Numbers of a journal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Writes that were tried.
    pub tried: u64,
    /// Those that were acknowledged.
    pub acknowledged: u64,
    /// Those that certainly had no effect.
    pub refused: u64,
    /// Puts of which nobody knew, and whose value was read.
    pub settled: u64,
    /// Reads.
    pub reads: u64,
}

impl Totals {
    /// Writes of which nobody knows.
    pub fn unknown(&self) -> u64 {
        self.tried - self.acknowledged - self.refused - self.settled
    }
}

/// Judges the file at a path. An error says what is wrong with it.
pub(crate) fn judge(path: &Path) -> Result<Totals, String> {
    let open = || File::open(path).map(BufReader::new).map_err(|error| error.to_string());
    let verified = verify(open()?).map_err(|error| error.to_string())?;
    if !verified.verdict.is_linearizable() {
        return Err(verified.verdict.to_string());
    }
    let (mut totals, mut given) = (Totals::default(), BTreeMap::new());
    let (mut open_puts, mut shown) = (BTreeSet::new(), BTreeSet::new());
    for line in open()?.lines().skip(1) {
        let line: Value = serde_json::from_str(&line.map_err(|error| error.to_string())?)
            .map_err(|error| error.to_string())?;
        let (key, put) =
            (bytes_of(&line, "key").ok_or("no key")?, line["value"].as_str().map(str::to_owned));
        let read = line["read"].as_str().map(str::to_owned);
        match line["answer"].as_str() {
            Some("pending") => {
                totals.tried += 1;
                open_puts.extend(put.map(|put| (key, put)));
                continue;
            }
            Some("unknown") => continue,
            Some("written" | "deleted") => totals.acknowledged += 1,
            Some("condition_failed" | "refused") => totals.refused += 1,
            Some("value" | "missing") => totals.reads += 1,
            _ => return Err(format!("no answer: {line}")),
        }
        let value = put.clone().or(read.clone());
        if let (Some("written" | "value"), Some(revision)) =
            (line["answer"].as_str(), line["revision"].as_u64())
        {
            // What stands behind the prefix begins with the shard.
            let name = key.rsplit(|byte| *byte == b'/').next().unwrap();
            let shard = name.split(|byte| *byte == b'-').next().unwrap().to_owned();
            let to = (key.clone(), value.clone());
            if given.insert((shard, revision), to.clone()).is_some_and(|before| before != to) {
                return Err(format!("revision {revision} was given out twice: {line}"));
            }
        }
        shown.extend(read.map(|read| (key.clone(), read)));
        if let Some(put) = put {
            open_puts.remove(&(key, put));
        }
    }
    totals.settled = open_puts.intersection(&shown).count() as u64;
    Ok(totals)
}
