//! What of a group is under way to the disk and to apply: Readys that are not yet persisted, the
//! newest hard state, and what is scheduled to be applied.

use flotilla_storage::HardState;
use raft::eraftpb::{ConfChangeV2, Message};
use std::collections::VecDeque;

/// Readys of one group that are not yet persisted.
pub(crate) struct ReadyQueue {
    pub(super) waiting: VecDeque<Waiting>,
    /// The newest hard state, and whether it was handed out to be written.
    pub(super) hard_state: HardState,
    pub(super) hard_state_written: bool,
    /// The highest index that may stand in the log on disk.
    pub(super) disk_last: u64,
    /// Conf changes that are scheduled to be applied: index, and change.
    pub(super) conf_changes: VecDeque<(u64, ConfChangeV2)>,
    /// Bytes of entries that are scheduled to be applied: the last index of each batch, and its
    /// bytes.
    pub(super) unapplied: VecDeque<(u64, u64)>,
    /// The sum of those bytes.
    pub(crate) unapplied_bytes: u64,
    /// Bytes of entries that the disk has not taken yet.
    pub(crate) unpersisted_bytes: u64,
}

/// One Ready that is not yet persisted.
pub(super) struct Waiting {
    pub(super) number: u64,
    /// Whether it is part of a write. One that is not waits only for those before it.
    pub(super) in_write: bool,
    pub(super) messages: Vec<Message>,
}

impl ReadyQueue {
    /// Nothing waits; this hard state and a log up to `disk_last` were found on disk.
    pub(crate) fn new(hard_state: HardState, disk_last: u64) -> Self {
        Self {
            waiting: VecDeque::new(),
            hard_state,
            hard_state_written: true,
            disk_last,
            conf_changes: VecDeque::new(),
            unapplied: VecDeque::new(),
            unapplied_bytes: 0,
            unpersisted_bytes: 0,
        }
    }

    /// Whether every Ready is persisted.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The newest hard state.
    pub(crate) fn hard_state(&self) -> HardState {
        self.hard_state
    }

    /// Everything up to `index` is applied; how many bytes of entries that were.
    pub(super) fn note_applied(&mut self, index: u64) -> u64 {
        let mut bytes = 0;
        while let Some((_, more)) = self.unapplied.pop_front_if(|(last, _)| *last <= index) {
            bytes += more;
        }
        self.unapplied_bytes -= bytes;
        bytes
    }

    /// Takes what `number` completes: the highest number that counts as persisted now, and the
    /// messages that may leave.
    pub(super) fn complete(&mut self, number: u64) -> Option<(u64, Vec<Message>)> {
        let mut done = None;
        let mut messages = Vec::new();
        while self.waiting.front().is_some_and(|w| w.number <= number || !w.in_write) {
            let first = self.waiting.pop_front().expect("looked at just now");
            messages.extend(first.messages);
            done = Some(first.number);
        }
        done.map(|number| (number, messages))
    }
}
