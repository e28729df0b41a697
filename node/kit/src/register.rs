//! A key, all that was ever asked of it, and the verdict on it.
//!
//! A write is noted before it is sent and again when it is answered, a read when it is answered;
//! each with the moments of its call and its return, and with one of three outcomes: as it was
//! answered, certainly without effect, or unknown, which means that it may take effect at any later
//! time, once, or never. Every write has a value of its own (the number of the attempt), so whoever
//! reads it knows which it is. Reads may go on while the key is written. A stale read, which
//! promises no more than that it was true once, is a read that was called when all began.
//!
//! The judge is [`flotilla_node::check`]. This file has no rules of its own but two that a look at
//! one key can't have:
//!
//! - Revisions are given out by shard, each once. Two writes with the same one mean that the shard
//!   forgot the first, even where nobody looked in time.
//! - A value is whole: each is derived from its register and attempt, byte by byte.

use super::Rng;
use super::admin::escaped;
use super::http::{Answer, Client, is_not_connected};
use super::journal::Record;
use super::load::Outcome;
use super::process::lock;
use flotilla_node::check::{Input, Operation, Output, Verdict, check_key};
use flotilla_router::{Condition, Revision};
use std::sync::{Arc, Mutex};

/// A register is worn when it has so many operations; see [`Register::renew`].
const OPERATIONS_MAX: usize = 300;
/// The longest value.
pub(crate) const LARGE_BYTES: usize = 32 << 10;

/// The value of an attempt at a register, which no other has. Printable, and nothing that could be
/// compressed.
fn value(number: usize, attempt: u64, bytes: usize) -> Vec<u8> {
    let mut rng = Rng::new((number as u64) << 40 ^ attempt);
    let letters = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_";
    let mut value = format!("{number} {attempt} {bytes} ").into_bytes();
    value.extend((0..bytes).map(|_| letters[rng.below(64) as usize]));
    value
}

/// Which attempt at this register a value is of; `Err` where it is none.
pub(crate) fn attempt_of(number: usize, seen: &[u8]) -> Result<u64, String> {
    let nth = |i: usize| -> Option<u64> {
        std::str::from_utf8(seen.split(|b| *b == b' ').nth(i)?).ok()?.parse().ok()
    };
    let (attempt, bytes) = nth(1).zip(nth(2)).ok_or("a value that nobody ever wrote")?;
    let is_whole = bytes <= LARGE_BYTES as u64 && value(number, attempt, bytes as usize) == seen;
    is_whole
        .then_some(attempt)
        .ok_or_else(|| format!("a value that nobody ever wrote; it begins like attempt {attempt}"))
}

/// A key, and all that was asked of it.
pub struct Register {
    /// Its shard.
    pub shard: u64,
    pub(crate) number: usize,
    /// Its first key; those after it begin with this.
    pub(crate) key: Vec<u8>,
    /// Held by whoever writes.
    pub(crate) turn: Mutex<()>,
    history: Mutex<History>,
    record: Arc<Record>,
}

#[derive(Default)]
struct History {
    key: Vec<u8>,
    operations: Vec<(u64, Operation)>,
    attempts: u64,
    acknowledged: u64,
    /// How often something was noted, and how often when all was last found well.
    noted: u64,
    judged: u64,
    /// What the key is thought to be at, for conditions; `None` where it is thought to be absent.
    revision: Option<u64>,
}

impl Register {
    pub(crate) fn new(shard: u64, number: usize, key: Vec<u8>, record: Arc<Record>) -> Self {
        let history = Mutex::new(History { key: key.clone(), ..History::default() });
        Self { shard, number, key, turn: Mutex::default(), history, record }
    }

    /// The moment that it is, for [`Self::saw`].
    pub fn now(&self) -> u64 {
        self.record.now()
    }

    /// The revision that a condition may ask for.
    pub(crate) fn revision(&self) -> Option<u64> {
        lock(&self.history).revision
    }

    /// How many writes were acknowledged.
    pub fn acknowledged(&self) -> u64 {
        lock(&self.history).acknowledged
    }

    /// How many writes were tried.
    pub fn attempts(&self) -> u64 {
        lock(&self.history).attempts
    }

    /// Notes that a write is about to be sent through a node; which of the operations it is.
    pub fn asked(&self, node: u64, input: Input) -> usize {
        let (id, mut history) = (self.record.next_id(), lock(&self.history));
        let (key, called) = (history.key.clone().into(), self.record.now());
        let operation =
            Operation { client: node, key, called, returned: None, input, output: Output::Unknown };
        self.record.write(|journal| journal.asked(id, &operation));
        history.noted += 1;
        history.operations.push((id, operation));
        history.operations.len() - 1
    }

    /// Notes what became of a write.
    pub fn answered(&self, at: usize, output: Output) {
        let mut history = lock(&self.history);
        history.noted += 1;
        match &output {
            Output::Written { revision } => history.revision = Some(revision.0),
            Output::Deleted => history.revision = None,
            Output::ConditionFailed { current } => {
                history.revision = current.map(|current| current.0)
            }
            _ => {}
        }
        history.acknowledged +=
            u64::from(matches!(output, Output::Written { .. } | Output::Deleted));
        let (id, operation) = &mut history.operations[at];
        operation.returned = (output != Output::Unknown).then(|| self.record.now());
        operation.output = output;
        self.record.write(|journal| journal.done(*id, operation));
        if let (Input::Put { value, .. }, Output::Written { revision }) =
            (&operation.input, &operation.output)
        {
            self.give(revision.0, value);
        }
    }

    /// Notes what a read through a node showed, between two moments; which of the operations it is.
    pub fn saw(&self, node: u64, called: u64, returned: u64, seen: Option<(u64, u64)>) -> usize {
        let (id, mut history) = (self.record.next_id(), lock(&self.history));
        let seen = seen.map(|(revision, attempt)| (Revision(revision), attempt.to_string().into()));
        let (key, output) = (history.key.clone().into(), Output::Read(seen));
        if let Output::Read(Some((revision, value))) = &output {
            self.give(revision.0, value);
        }
        let operation = Operation {
            client: node,
            key,
            called,
            returned: Some(returned),
            input: Input::Get,
            output,
        };
        self.record.write(|journal| journal.done(id, &operation));
        history.noted += 1;
        history.operations.push((id, operation));
        history.operations.len() - 1
    }

    /// Notes that the shard gave a revision to an attempt.
    fn give(&self, revision: u64, value: &[u8]) {
        let attempt = std::str::from_utf8(value).unwrap().parse().unwrap();
        self.record.give(self.shard, revision, (self.number, attempt));
    }

    /// Puts the next value, when nobody else writes.
    pub fn put(&self, client: &Client, node: u64, bytes: usize) -> (Outcome, Option<Answer>) {
        let _turn = lock(&self.turn);
        self.write(client, node, Some(bytes), Condition::Always)
    }

    /// Puts a value of so many bytes, or deletes. Whoever calls this has the turn.
    pub(crate) fn write(
        &self,
        client: &Client,
        node: u64,
        bytes: Option<usize>,
        condition: Condition,
    ) -> (Outcome, Option<Answer>) {
        let (path, attempt) = {
            let mut history = lock(&self.history);
            history.attempts += 1;
            (format!("/v1/kv/{}", escaped(&history.key)), history.attempts)
        };
        let tag = match condition {
            Condition::Always => None,
            Condition::Absent => Some(("if-none-match", "*".to_owned())),
            Condition::Present => Some(("if-match", "*".to_owned())),
            Condition::At(revision) => Some(("if-match", format!("\"{revision}\""))),
        };
        let headers: Vec<(&str, &str)> =
            tag.iter().map(|(name, value)| (*name, &**value)).collect();
        let body = bytes.map(|bytes| value(self.number, attempt, bytes));
        let at = self.asked(
            node,
            match &body {
                Some(_) => Input::Put { value: attempt.to_string().into(), condition },
                None => Input::Delete { condition },
            },
        );
        let sent = client.send(
            node,
            if body.is_some() { "PUT" } else { "DELETE" },
            &path,
            &headers,
            body.as_deref(),
        );
        let (outcome, output) = match &sent {
            Ok(answer) if answer.status == 204 && body.is_none() => {
                (Outcome::Done, Output::Deleted)
            }
            Ok(answer) if answer.status == 204 => {
                (Outcome::Done, Output::Written { revision: Revision(answer.revision()) })
            }
            Ok(answer) if answer.status == 412 => {
                (Outcome::Refused, Output::ConditionFailed { current: answer.etag().map(Revision) })
            }
            Ok(answer) if answer.json()["outcome"] == "not_applied" => {
                (Outcome::Refused, Output::Refused)
            }
            Ok(answer) => {
                assert_eq!(answer.json()["outcome"], "unknown", "{}", answer.text());
                (Outcome::Unknown, Output::Unknown)
            }
            // Nothing was sent, because nobody listens.
            Err(error) if is_not_connected(error) => (Outcome::Broken, Output::Refused),
            Err(_) => (Outcome::Broken, Output::Unknown),
        };
        self.answered(at, output);
        (outcome, sent.ok())
    }

    /// Reads, while others may write.
    pub fn read(&self, client: &Client, node: u64, query: &str) -> (Outcome, Option<Answer>) {
        let (outcome, answer, _) = self.read_as(client, node, query);
        (outcome, answer)
    }

    /// Reads, and says whether what was ever asked is linearizable with this answer. An answer with
    /// which it is not is forgotten.
    pub fn look(&self, client: &Client, node: u64, query: &str) -> Result<Outcome, String> {
        let (outcome, answer, at) = self.read_as(client, node, query);
        self.judge().map(|()| outcome).map_err(|why| {
            if let Some(at) = at {
                lock(&self.history).operations[at].1.output = Output::Unknown;
            }
            let by = answer.and_then(|answer| answer.header("flotilla-node").map(str::to_owned));
            format!("read through node {node}, answered by {by:?}: {why}")
        })
    }

    fn read_as(
        &self,
        client: &Client,
        node: u64,
        query: &str,
    ) -> (Outcome, Option<Answer>, Option<usize>) {
        let (called, path) =
            (self.record.now(), format!("/v1/kv/{}{query}", escaped(&lock(&self.history).key)));
        let Ok(answer) = client.send(node, "GET", &path, &[], None) else {
            return (Outcome::Broken, None, None);
        };
        let returned = self.record.now();
        let seen = match answer.status {
            200 => match attempt_of(self.number, &answer.body) {
                Ok(attempt) => Some((answer.revision(), attempt)),
                Err(why) => {
                    self.record.note_wrong(format!("{path} through node {node}: {why}"));
                    return (Outcome::Done, Some(answer), None);
                }
            },
            404 => None,
            429.. => return (Outcome::Refused, Some(answer), None),
            other => panic!("{other}: {}", answer.text()),
        };
        let at = self.saw(node, called, returned, seen);
        (Outcome::Done, Some(answer), Some(at))
    }

    /// Whether all that was asked of the key so far is linearizable, whatever is still under way.
    /// `Err` says why not.
    pub fn judge(&self) -> Result<(), String> {
        // Not while it is held: who asks is not to wait for who judges.
        let (operations, noted) = {
            let history = lock(&self.history);
            let is_judged = history.judged == history.noted;
            let operations = if is_judged { &[] } else { &history.operations[..] };
            (operations.to_vec(), history.noted)
        };
        let operations: Vec<&Operation> =
            operations.iter().map(|(_, operation)| operation).collect();
        match check_key(&operations) {
            Verdict::Linearizable(_) => {
                lock(&self.history).judged = noted;
                self.record.is_well()
            }
            verdict => Err(format!("shard {}: {verdict}", self.shard)),
        }
    }

    /// Goes on with another key, and forgets the history of the one before, once that has grown.
    /// Nobody may be asking, and it was just judged. So a load may go on for hours, and be judged
    /// after each answer.
    pub fn renew(&self) {
        let mut history = lock(&self.history);
        if history.operations.len() >= OPERATIONS_MAX {
            history.key = [&self.key, format!("-{}", history.attempts).as_bytes()].concat();
            (history.operations, history.revision) = (Vec::new(), None);
        }
    }
}
