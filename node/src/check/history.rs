//! What clients asked and what they were told: one [`Operation`] each, all on one clock.
//!
//! A history holds everything that was asked, also what was refused and what was never answered.
//! Three things can be known of a write afterwards, and they are kept apart:
//!
//! | answer | it took effect |
//! |---|---|
//! | written, deleted, condition failed | as it was answered, at one moment between call and return |
//! | [`Output::Refused`] | never: not then, not later |
//! | [`Output::Unknown`] | at one moment after the call, however late, or never |
//!
//! A scan is no operation of its own: each shard shows one consistent view, two shards may be seen
//! at different times, so what a scan promises is exactly what reads of its keys promise, and
//! [`Scanned::reads`] turns it into them.

use bytes::Bytes;
use flotilla_router::{Condition, KeyRange, Revision};
use std::collections::BTreeSet;

/// One request of one client, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Who asked. Only shown; one client may have several requests under way.
    pub client: u64,
    /// The key.
    pub key: Bytes,
    /// When it was asked, in any unit, on the one clock of the history.
    pub called: u64,
    /// When the answer came; `None` where none came. An operation comes after another only if it
    /// was called *after* (not at) the moment at which the other returned.
    pub returned: Option<u64>,
    /// What was asked.
    pub input: Input,
    /// What was answered.
    pub output: Output,
}

/// What was asked of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Its value and revision.
    Get,
    /// To set it.
    Put {
        /// The new value. Values that are unique per key make the verdict sharp; the checker does
        /// not rely on it.
        value: Bytes,
        /// When to do so.
        condition: Condition,
    },
    /// To remove it, whether it is there or not, as far as the condition allows.
    Delete {
        /// When to do so.
        condition: Condition,
    },
}

/// What was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// A get: what was there, if anything.
    Read(Option<(Revision, Bytes)>),
    /// A put took effect.
    Written {
        /// The key's new revision.
        revision: Revision,
    },
    /// A delete took effect, or there was nothing and the condition allowed that.
    Deleted,
    /// The condition did not hold, and nothing was written.
    ConditionFailed {
        /// The revision that the key was at; `None` when there was no such key.
        current: Option<Revision>,
    },
    /// It is certain that it had no effect, and will have none. A read was not answered.
    Refused,
    /// Nobody knows: it took effect at some moment after the call, or will, or never. A read was
    /// not answered.
    Unknown,
}

impl Operation {
    /// Whether the answer is one that this question can have.
    pub fn is_coherent(&self) -> bool {
        matches!(
            (&self.input, &self.output),
            (_, Output::Refused | Output::Unknown)
                | (Input::Get, Output::Read(_))
                | (Input::Put { .. }, Output::Written { .. } | Output::ConditionFailed { .. })
                | (Input::Delete { .. }, Output::Deleted | Output::ConditionFailed { .. })
        )
    }

    /// The revision that the answer shows.
    pub fn revision(&self) -> Option<Revision> {
        match &self.output {
            Output::Read(seen) => seen.as_ref().map(|(revision, _)| *revision),
            Output::Written { revision } => Some(*revision),
            Output::ConditionFailed { current } => *current,
            Output::Deleted | Output::Refused | Output::Unknown => None,
        }
    }
}

/// What a scan showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scanned {
    /// Who asked.
    pub client: u64,
    /// The part of the asked range that was looked at: up to the cursor, where a limit stopped the
    /// scan.
    pub range: KeyRange,
    /// When it was asked.
    pub called: u64,
    /// When the answer was complete.
    pub returned: u64,
    /// The keys that were there, with revision and value.
    pub items: Vec<(Bytes, Revision, Bytes)>,
}

impl Scanned {
    /// The scan as reads of single keys: what it showed, and the absence of every key of the
    /// history (`keys`) that lies in its range and that it did not show. A key that it showed twice
    /// is read twice.
    pub fn reads<'a>(&self, keys: impl IntoIterator<Item = &'a Bytes>) -> Vec<Operation> {
        let read = |key: &Bytes, seen| Operation {
            client: self.client,
            key: key.clone(),
            called: self.called,
            returned: Some(self.returned),
            input: Input::Get,
            output: Output::Read(seen),
        };
        let mut reads: Vec<_> = self
            .items
            .iter()
            .map(|(key, revision, value)| read(key, Some((*revision, value.clone()))))
            .collect();
        let shown: BTreeSet<&Bytes> = self.items.iter().map(|(key, ..)| key).collect();
        let absent =
            keys.into_iter().filter(|key| self.range.contains(key) && !shown.contains(key));
        reads.extend(absent.map(|key| read(key, None)));
        reads
    }
}
