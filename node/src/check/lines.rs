//! Histories as files: one line of JSON for each operation.
//!
//! ```text
//! {"format":"flotilla-history","version":1,"seed":7,"endpoints":["http://127.0.0.1:7001"],"consistency":"linearizable","unit":"microseconds"}
//! {"id":1,"client":3,"key":"a/…","called":120,"op":"put","value":"3-0","if":"absent","answer":"pending"}
//! {"id":1,"client":3,"key":"a/…","called":120,"returned":131,"op":"put","value":"3-0","if":"absent","answer":"written","revision":9}
//! {"id":2,"client":5,"key":"a/…","called":140,"returned":142,"op":"get","answer":"value","revision":9,"read":"3-0"}
//! {"end_of_key":"a/…"}
//! ```
//!
//! A write stands there twice: when it is asked, and when it is answered; the second line replaces
//! the first. So a file that was cut off anywhere lacks no write whose value a read in it shows:
//! writes that are still pending have an unknown outcome, and the rest is judged as ever. Bytes
//! that are no text stand under `key_b64`, `value_b64`, `read_b64`, in base64. `end_of_key` says
//! that nothing more comes for a key, so that whoever reads the file can judge the key and forget
//! it.

use super::history::{Input, Operation, Output};
use super::{Verdict, check_key};
use bytes::Bytes;
use flotilla_ops::admin::{bytes_of, text_or_base64};
use flotilla_router::{Condition, Revision};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{self, BufRead, Write};

/// What the first line says that it is.
const FORMAT: &str = "flotilla-history";
/// The version of the lines.
const VERSION: u32 = 1;

/// The first line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    format: String,
    version: u32,
    /// What the load's choices were drawn from.
    pub seed: u64,
    /// Who was asked.
    pub endpoints: Vec<String>,
    /// How reads were asked for.
    pub consistency: String,
    /// What times count, from the begin of the load on.
    pub unit: String,
}

impl Header {
    /// Of a load that counts in microseconds.
    pub fn new(seed: u64, endpoints: Vec<String>, consistency: &str) -> Self {
        let (format, version) = (FORMAT.to_owned(), VERSION);
        Self {
            format,
            version,
            seed,
            endpoints,
            consistency: consistency.into(),
            unit: "microseconds".into(),
        }
    }
}

/// Any other line.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    End(End),
    Operation(Box<Written>),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct End {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    end_of_key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    end_of_key_b64: Option<String>,
}

/// An operation as it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    id: u64,
    client: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key_b64: Option<String>,
    called: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    returned: Option<u64>,
    op: Op,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value_b64: Option<String>,
    #[serde(default, rename = "if", skip_serializing_if = "Option::is_none")]
    condition: Option<When>,
    answer: Answer,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    revision: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    read: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    read_b64: Option<String>,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Op {
    Get,
    Put,
    Delete,
}

/// A condition: a word, or a revision.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(untagged)]
enum When {
    Word(Word),
    At(u64),
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Word {
    Absent,
    Present,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Pending,
    Value,
    Missing,
    Written,
    Deleted,
    ConditionFailed,
    Refused,
    Unknown,
}

/// Writes a history.
pub struct Writer<W> {
    out: W,
}

impl<W: Write> Writer<W> {
    /// Begins with the first line.
    pub fn new(mut out: W, header: &Header) -> io::Result<Self> {
        write_line(&mut out, header)?;
        Ok(Self { out })
    }

    /// A write was asked. Its output does not matter.
    pub fn asked(&mut self, id: u64, operation: &Operation) -> io::Result<()> {
        write_line(&mut self.out, &Written::of(id, operation, true))
    }

    /// An operation came to an end.
    pub fn done(&mut self, id: u64, operation: &Operation) -> io::Result<()> {
        write_line(&mut self.out, &Written::of(id, operation, false))
    }

    /// Nothing more comes for this key.
    pub fn end_of_key(&mut self, key: &[u8]) -> io::Result<()> {
        let (end_of_key, end_of_key_b64) = text_or_base64(key);
        write_line(&mut self.out, &End { end_of_key, end_of_key_b64 })
    }

    /// Hands on what is buffered.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn write_line(out: &mut impl Write, line: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    out.write_all(b"\n")
}

impl Written {
    fn of(id: u64, operation: &Operation, pending: bool) -> Self {
        let (key, key_b64) = text_or_base64(&operation.key);
        let (op, value, condition) = match &operation.input {
            Input::Get => (Op::Get, None, Condition::Always),
            Input::Put { value, condition } => (Op::Put, Some(value), *condition),
            Input::Delete { condition } => (Op::Delete, None, *condition),
        };
        let condition = match condition {
            Condition::Always => None,
            Condition::Absent => Some(When::Word(Word::Absent)),
            Condition::Present => Some(When::Word(Word::Present)),
            Condition::At(revision) => Some(When::At(revision.0)),
        };
        let (answer, read) = match &operation.output {
            _ if pending => (Answer::Pending, None),
            Output::Read(None) => (Answer::Missing, None),
            Output::Read(Some((_, value))) => (Answer::Value, Some(value)),
            Output::Written { .. } => (Answer::Written, None),
            Output::Deleted => (Answer::Deleted, None),
            Output::ConditionFailed { .. } => (Answer::ConditionFailed, None),
            Output::Refused => (Answer::Refused, None),
            Output::Unknown => (Answer::Unknown, None),
        };
        let (value, value_b64) = value.map_or((None, None), |value| text_or_base64(value));
        let (read, read_b64) = read.map_or((None, None), |read| text_or_base64(read));
        let revision = operation.revision().filter(|_| !pending).map(|revision| revision.0);
        let Operation { client, called, returned, .. } = *operation;
        let returned = returned.filter(|_| !pending);
        Self {
            id,
            client,
            key,
            key_b64,
            called,
            returned,
            op,
            value,
            value_b64,
            condition,
            answer,
            revision,
            read,
            read_b64,
        }
    }

    fn operation(self) -> Result<Operation, String> {
        let bytes = |name: &str, text: &Option<String>, base64: &Option<String>| {
            let bytes = bytes_of(text.as_deref(), base64.as_deref());
            bytes
                .map(Bytes::from)
                .ok_or_else(|| format!("{name} is wanted, or {name}_b64 in base64"))
        };
        let condition = match self.condition {
            None => Condition::Always,
            Some(When::Word(Word::Absent)) => Condition::Absent,
            Some(When::Word(Word::Present)) => Condition::Present,
            Some(When::At(revision)) => Condition::At(Revision(revision)),
        };
        let input = match self.op {
            Op::Get => Input::Get,
            Op::Put => {
                Input::Put { value: bytes("value", &self.value, &self.value_b64)?, condition }
            }
            Op::Delete => Input::Delete { condition },
        };
        let revision = || self.revision.map(Revision).ok_or("a revision is wanted");
        let output = match self.answer {
            Answer::Value => {
                Output::Read(Some((revision()?, bytes("read", &self.read, &self.read_b64)?)))
            }
            Answer::Missing => Output::Read(None),
            Answer::Written => Output::Written { revision: revision()? },
            Answer::Deleted => Output::Deleted,
            Answer::ConditionFailed => {
                Output::ConditionFailed { current: self.revision.map(Revision) }
            }
            Answer::Refused => Output::Refused,
            Answer::Pending | Answer::Unknown => Output::Unknown,
        };
        let key = bytes("key", &self.key, &self.key_b64)?;
        Ok(Operation {
            client: self.client,
            key,
            called: self.called,
            returned: self.returned,
            input,
            output,
        })
    }
}

/// What a file was found to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Its first line.
    pub header: Header,
    /// The verdict on everything in it.
    pub verdict: Verdict,
    /// Writes that were asked and never answered, as far as the file tells: taken as unknown.
    pub pending: u64,
    /// Whether the last line is torn (it does not end, and makes no sense), and was left out.
    pub torn: bool,
}

/// Why a file could not be judged.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It can't be read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It is no history, or one of another version.
    #[error("line {line}: {why}")]
    Line {
        /// Counted from 1.
        line: u64,
        /// What is wrong with it.
        why: String,
    },
}

/// The operations of one key, each under its id.
type Open = BTreeMap<u64, (Operation, bool)>;

/// Reads a history and judges it, key by key.
pub fn verify(mut input: impl BufRead) -> Result<Verified, ReadError> {
    let mut buffer = Vec::new();
    input.read_until(b'\n', &mut buffer)?;
    let header: Header = serde_json::from_slice(&buffer).map_err(|error| ReadError::Line {
        line: 1,
        why: format!("this is no history of flotilla check: {error}"),
    })?;
    if header.format != FORMAT || header.version != VERSION {
        let why = format!(
            "{} version {}; this binary reads {FORMAT} version {VERSION}",
            header.format, header.version
        );
        return Err(ReadError::Line { line: 1, why });
    }
    let mut verified = Verified {
        header,
        verdict: Verdict::Linearizable(super::Summary::default()),
        pending: 0,
        torn: false,
    };
    let mut keys: BTreeMap<Bytes, Open> = BTreeMap::new();
    for line in 2.. {
        buffer.clear();
        if input.read_until(b'\n', &mut buffer)? == 0 {
            break;
        }
        let parsed = serde_json::from_slice::<Line>(&buffer)
            .map_err(|_| "this is no line of a history".to_owned());
        let taken = parsed.and_then(|parsed| verified.take(parsed, &mut keys));
        if let Err(why) = taken {
            if !buffer.ends_with(b"\n") {
                verified.torn = true;
                break;
            }
            return Err(ReadError::Line { line, why });
        }
        if matches!(verified.verdict, Verdict::Violation(_)) {
            return Ok(verified);
        }
    }
    for open in keys.into_values() {
        verified.judge(&open);
        if matches!(verified.verdict, Verdict::Violation(_)) {
            break;
        }
    }
    Ok(verified)
}

impl Verified {
    fn take(&mut self, line: Line, keys: &mut BTreeMap<Bytes, Open>) -> Result<(), String> {
        match line {
            Line::End(End { end_of_key, end_of_key_b64 }) => {
                let key = bytes_of(end_of_key.as_deref(), end_of_key_b64.as_deref())
                    .ok_or("which key has ended?")?;
                if let Some(open) = keys.remove(&Bytes::from(key)) {
                    self.judge(&open);
                }
            }
            Line::Operation(written) => {
                let (id, pending) = (written.id, written.answer == Answer::Pending);
                let operation = written.operation()?;
                keys.entry(operation.key.clone()).or_default().insert(id, (operation, pending));
            }
        }
        Ok(())
    }

    fn judge(&mut self, open: &Open) {
        self.pending += open.values().filter(|(_, pending)| *pending).count() as u64;
        let operations: Vec<&Operation> = open.values().map(|(operation, _)| operation).collect();
        let so_far =
            std::mem::replace(&mut self.verdict, Verdict::Linearizable(super::Summary::default()));
        self.verdict = so_far.and(check_key(&operations));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operations() -> Vec<Operation> {
        let at = |n: u64, input, output| Operation {
            client: n,
            key: Bytes::from_static(b"k"),
            called: 10 * n,
            returned: Some(10 * n + 5),
            input,
            output,
        };
        let put = |value: &'static [u8], condition| Input::Put {
            value: Bytes::from_static(value),
            condition,
        };
        let five = Revision(5);
        vec![
            at(1, put(b"one", Condition::Absent), Output::Written { revision: five }),
            at(2, Input::Get, Output::Read(Some((five, Bytes::from_static(b"one"))))),
            at(3, put(b"\xff", Condition::At(five)), Output::Unknown),
            at(4, put(b"two", Condition::Always), Output::Refused),
            at(
                5,
                put(b"three", Condition::At(Revision(1))),
                Output::ConditionFailed { current: Some(Revision(6)) },
            ),
            at(6, Input::Get, Output::Read(Some((Revision(6), Bytes::from_static(b"\xff"))))),
            at(7, Input::Delete { condition: Condition::Present }, Output::Deleted),
            at(
                8,
                Input::Delete { condition: Condition::At(five) },
                Output::ConditionFailed { current: None },
            ),
            at(9, Input::Get, Output::Read(None)),
        ]
    }

    /// The history as a file; reads are written as they are answered, writes also as they are
    /// asked.
    fn file(ended: bool) -> String {
        let mut out = Vec::new();
        let mut writer =
            Writer::new(&mut out, &Header::new(7, vec!["http://a:1".into()], "lease")).unwrap();
        for (id, operation) in operations().iter().enumerate() {
            if operation.input != Input::Get {
                writer.asked(id as u64, operation).unwrap();
            }
            writer.done(id as u64, operation).unwrap();
        }
        if ended {
            writer.end_of_key(b"k").unwrap();
        }
        writer.flush().unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_history_is_read_as_it_was_written() {
        for ended in [false, true] {
            let verified = verify(file(ended).as_bytes()).unwrap();
            assert_eq!(
                verified.verdict,
                super::super::check(&operations()),
                "the end of the key is there: {ended}"
            );
            assert!(matches!(
                verified.verdict,
                Verdict::Linearizable(summary) if summary.operations == 9
            ));
            assert_eq!((verified.pending, verified.torn, verified.header.seed), (0, false, 7));
        }
        for operation in operations() {
            let json = serde_json::to_string(&Written::of(3, &operation, false)).unwrap();
            let Line::Operation(read) = serde_json::from_str(&json).unwrap() else {
                panic!("{json}")
            };
            assert_eq!(read.operation().unwrap(), operation, "{json}");
        }
    }

    #[test]
    fn a_file_that_was_cut_off_anywhere_is_judged_as_far_as_it_goes() {
        let whole = file(true);
        let header = whole.find('\n').unwrap();
        let (mut torn, mut pending) = (0, 0);
        for cut in header + 1..=whole.len() {
            let verified = verify(&whole.as_bytes()[..cut])
                .unwrap_or_else(|error| panic!("cut at {cut}: {error}"));
            assert!(verified.verdict.is_linearizable(), "cut at {cut}: {}", verified.verdict);
            torn += u64::from(verified.torn);
            pending += verified.pending;
        }
        assert!(torn > 500 && pending > 500, "{torn} torn, {pending} pending");
    }

    #[test]
    fn what_is_wrong_in_the_file_is_found() {
        let stale = file(true)
            .replace(r#""answer":"missing""#, r#""answer":"value","revision":5,"read":"one""#);
        let verified = verify(stale.as_bytes()).unwrap();
        assert!(matches!(verified.verdict, Verdict::Violation(_)), "{}", verified.verdict);
        let odd = file(true).replacen("\"op\":\"get\"", "\"op\":\"fetch\"", 1);
        assert!(matches!(verify(odd.as_bytes()), Err(ReadError::Line { line: 4, .. })));
        for bad in
            ["", "{}\n", "hello\n", &file(true).replacen("\"version\":1", "\"version\":2", 1)]
        {
            let error = verify(bad.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with("line 1: "), "{error}");
        }
    }
}
