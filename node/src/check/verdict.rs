//! What comes of a check, and how people read it.
//!
//! A [`Violation`] prints as a table of the few operations that contradict each other, and one
//! sentence that says why:
//!
//! ```text
//! key "m/17": 2 of 340 operations can't both be true
//!   client  called  returned  asked        answered
//!   3       120     131       put "b"      written, revision 9
//!   5       140     142       get          "a", revision 7
//! Revision 9 was answered to client 3 before client 5 asked, and client 5 was shown the older revision 7.
//! ```

use super::history::{Input, Operation, Output};
use bytes::Bytes;
use flotilla_router::Condition;
use std::fmt;

/// At most so many bytes of a value are printed.
const VALUE_BYTES_MAX: usize = 32;
/// At most so many bytes of a key are printed.
const KEY_BYTES_MAX: usize = 256;

/// What a history was found to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// For each key there is an order that fits.
    Linearizable(Summary),
    /// For one key there is none.
    Violation(Box<Violation>),
    /// For one key the search gave up, and no key was found wrong.
    Undecided(Undecided),
}

impl Verdict {
    /// Both in one: wrong if one is, otherwise undecided if one is.
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Violation(violation), _) | (_, Self::Violation(violation)) => {
                Self::Violation(violation)
            }
            (Self::Undecided(undecided), _) | (_, Self::Undecided(undecided)) => {
                Self::Undecided(undecided)
            }
            (Self::Linearizable(a), Self::Linearizable(b)) => Self::Linearizable(Summary {
                keys: a.keys + b.keys,
                operations: a.operations + b.operations,
                steps: a.steps + b.steps,
            }),
        }
    }

    /// Whether an order was found for every key.
    pub fn is_linearizable(&self) -> bool {
        matches!(self, Self::Linearizable(_))
    }
}

/// What was checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Keys.
    pub keys: u64,
    /// Operations on them, those without any effect or answer among them.
    pub operations: u64,
    /// Steps that the search tried: a measure of its work.
    pub steps: u64,
}

/// A key that nothing is known of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Undecided {
    /// The key.
    pub key: Bytes,
    /// Operations on it.
    pub operations: u64,
    /// After so many steps the search gave up.
    pub steps: u64,
}

/// A key that no order fits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The key.
    pub key: Bytes,
    /// How many operations on it the history has.
    pub operations: u64,
    /// The smallest part that was found to contradict itself, wherever all other writes of the key
    /// may stand; by call.
    pub part: Vec<Operation>,
    /// Writes of what the part shows, for whoever reads it; by call. Not needed for the
    /// contradiction.
    pub context: Vec<Operation>,
    /// Why no order works, in one sentence.
    pub why: String,
}

impl Violation {
    /// An answer that the question can't have.
    pub(super) fn incoherent(operation: &Operation, operations: u64) -> Self {
        Self {
            key: operation.key.clone(),
            operations,
            part: vec![operation.clone()],
            context: Vec::new(),
            why: format!("This is no answer to what client {} asked.", operation.client),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Linearizable(Summary { keys, operations, .. }) => {
                write!(f, "linearizable: {operations} operations on {keys} keys")
            }
            Self::Violation(violation) => write!(f, "not linearizable: {violation}"),
            Self::Undecided(Undecided { key, operations, steps }) => write!(
                f,
                "undecided: key {}: no verdict on {operations} operations after {steps} steps of \
                 the search",
                quoted_key(key)
            ),
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.part.len() == 1 { "can't be true" } else { "can't all be true" };
        writeln!(
            f,
            "key {}: {} of {} operations {what}",
            quoted_key(&self.key),
            self.part.len(),
            self.operations
        )?;
        let row = |operation: &Operation, note: &str| {
            [
                operation.client.to_string(),
                operation.called.to_string(),
                operation.returned.map_or_else(|| "-".into(), |returned| returned.to_string()),
                asked(&operation.input),
                answered(&operation.output) + note,
            ]
        };
        let mut rows =
            vec![["client", "called", "returned", "asked", "answered"].map(str::to_owned)];
        let mut all: Vec<_> = self.part.iter().map(|operation| (operation, "")).collect();
        all.extend(self.context.iter().map(|operation| (operation, " (for context)")));
        all.sort_by_key(|(operation, _)| operation.called);
        rows.extend(all.into_iter().map(|(operation, note)| row(operation, note)));
        let width =
            |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths = [0, 1, 2, 3].map(width);
        for row in &rows {
            write!(f, "  ")?;
            for (cell, width) in row.iter().zip(widths) {
                write!(f, "{cell:<width$}  ")?;
            }
            writeln!(f, "{}", row[4])?;
        }
        write!(f, "{}", self.why)
    }
}

/// A value in quotes, with what is no plain text escaped, and cut.
pub(super) fn quoted(value: &[u8]) -> String {
    cut(value, VALUE_BYTES_MAX)
}

/// A key in quotes, so long that it can be told from others.
fn quoted_key(key: &[u8]) -> String {
    cut(key, KEY_BYTES_MAX)
}

fn cut(bytes: &[u8], bytes_max: usize) -> String {
    match bytes.get(..bytes_max) {
        Some(cut) if bytes.len() > bytes_max => {
            format!("\"{}…\" ({} bytes)", cut.escape_ascii(), bytes.len())
        }
        _ => format!("\"{}\"", bytes.escape_ascii()),
    }
}

/// What was asked, in words.
pub(super) fn asked(input: &Input) -> String {
    let on = |condition: &Condition| match condition {
        Condition::Always => String::new(),
        Condition::Absent => " if absent".into(),
        Condition::Present => " if present".into(),
        Condition::At(revision) => format!(" if at revision {revision}"),
    };
    match input {
        Input::Get => "get".into(),
        Input::Put { value, condition } => format!("put {}{}", quoted(value), on(condition)),
        Input::Delete { condition } => format!("delete{}", on(condition)),
    }
}

/// What was answered, in words.
pub(super) fn answered(output: &Output) -> String {
    match output {
        Output::Read(None) => "no such key".into(),
        Output::Read(Some((revision, value))) => format!("{}, revision {revision}", quoted(value)),
        Output::Written { revision } => format!("written, revision {revision}"),
        Output::Deleted => "deleted".into(),
        Output::ConditionFailed { current: None } => "condition failed: no such key".into(),
        Output::ConditionFailed { current: Some(revision) } => {
            format!("condition failed: revision {revision}")
        }
        Output::Refused => "refused, no effect".into(),
        Output::Unknown => "unknown outcome".into(),
    }
}
