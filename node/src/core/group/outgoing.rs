//! What raft-rs has to say to others, put right before it leaves.
//!
//! **Sizes.** No append has more entries than `raft.message_bytes_max`, or it has one: a message
//! always fits into a frame.
//!
//! **Places.** An append names the place right below its first entry, or it does not leave.

use super::Group;
use super::log::entry_bytes;
use crate::core::event::SnapshotId;
use flotilla_router::mutation::Mutation;
use raft::eraftpb::{Entry, Message};

impl Group {
    /// Sees to it that an append names the place right below its entries. raft-rs, where it
    /// batches, adds entries to an empty append that waits to be sent, whatever place that one
    /// names (trap 16). False where the place is gone; raft-rs finds out and asks again.
    pub(crate) fn put_in_place(&self, message: &mut Message) -> bool {
        let Some(first) = message.entries.first().map(|entry| entry.index) else { return true };
        if first == message.index + 1 {
            return true;
        }
        message.index = first - 1;
        match self.raw.raft.raft_log.term(message.index) {
            Ok(term) if term > 0 => message.log_term = term,
            _ => return false,
        }
        true
    }
}

/// Cuts an append that is too large: what fits goes first, and `message` keeps the rest, right
/// behind it. `None` where all of it fits. raft-rs, where it batches, adds entries to an append
/// that waits without any bound (trap 18).
pub(crate) fn cut(message: &mut Message, bytes_max: u64) -> Option<Message> {
    if message.entries.len() < 2 || Mutation::AppendsUncut.is_on() {
        return None;
    }
    let mut bytes = 0;
    let fitting = message.entries.iter().take_while(|entry| {
        bytes += entry_bytes(entry);
        bytes <= bytes_max
    });
    // At least one, however large it is.
    let count = fitting.count().max(1);
    if count == message.entries.len() {
        return None;
    }
    let mut entries: Vec<Entry> = message.take_entries().into();
    let rest = entries.split_off(count);
    let last = entries.last().map(|last| (last.index, last.term)).expect("at least one");
    let mut first = message.clone();
    first.set_entries(entries.into());
    (message.index, message.log_term) = last;
    message.set_entries(rest.into());
    Some(first)
}

/// The number of the snapshot that a message announces; the core put it into the data when it
/// offered the snapshot.
pub(crate) fn announced_snapshot(message: &Message) -> SnapshotId {
    let bytes = message.get_snapshot().get_data();
    SnapshotId(u64::from_be_bytes(bytes.try_into().expect("the core itself wrote eight bytes")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_append_is_cut_into_pieces_that_fit_and_follow_one_another() {
        let entry = |index, bytes: usize| Entry {
            index,
            term: index / 2,
            data: vec![0; bytes].into(),
            ..Entry::default()
        };
        let sizes = [10, 10, 500, 10, 10, 10, 10];
        let mut message = Message { index: 4, log_term: 2, commit: 9, ..Message::default() };
        message.set_entries(
            (5..).zip(sizes).map(|(index, bytes)| entry(index, bytes)).collect::<Vec<_>>().into(),
        );
        let mut pieces = Vec::new();
        while let Some(first) = cut(&mut message, 100) {
            pieces.push(first);
        }
        pieces.push(message);
        let shape = |m: &Message| {
            (m.index, m.log_term, m.entries.iter().map(|e| e.index).collect::<Vec<_>>())
        };
        assert_eq!(
            pieces.iter().map(shape).collect::<Vec<_>>(),
            [(4, 2, vec![5, 6]), (6, 3, vec![7]), (7, 3, vec![8, 9]), (9, 4, vec![10, 11])]
        );
        assert!(pieces.iter().all(|m| m.commit == 9));
        let mut empty = Message::default();
        assert!(cut(&mut empty, 0).is_none());
    }
}
