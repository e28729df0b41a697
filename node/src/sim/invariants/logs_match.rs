//! Logs match (thesis §3.5): entries of one index and term are the same on all nodes, and so are
//! the entries below them.
//!
//! For each (shard, index, term) that anybody sends or writes: one content, and one term of the
//! entry below. By induction two logs that agree at one place agree in all places below it.

use super::{Holds, contents, hold};
use crate::core::Envelope;
use flotilla_router::{NodeId, ShardId};
use flotilla_storage::{EntryKind, LogWrite};
use raft::eraftpb::{EntryType, MessageType};
use std::collections::BTreeMap;

/// Every entry that was seen.
#[derive(Default)]
pub(crate) struct LogsMatch {
    entries: BTreeMap<(ShardId, u64, u64), Seen>,
}

struct Seen {
    contents: u64,
    /// The term of the entry below, where it is known.
    below: Option<u64>,
}

impl LogsMatch {
    fn entry(
        &mut self,
        node: NodeId,
        at: (ShardId, u64, u64),
        contents: u64,
        below: Option<u64>,
    ) -> Holds {
        let (shard, index, term) = at;
        let seen = self.entries.entry(at).or_insert(Seen { contents, below });
        hold!(
            seen.contents == contents,
            "shard {shard}, index {index}, term {term}: node {node} has another entry there"
        );
        if let (Some(known), Some(below)) = (seen.below, below) {
            hold!(
                known == below,
                "shard {shard}, index {index}, term {term}: below it node {node} has term {below}, \
                 not {known}"
            );
        }
        seen.below = seen.below.or(below);
        Ok(())
    }

    /// A node sends entries.
    pub(crate) fn message(&mut self, node: NodeId, envelope: &Envelope) -> Holds {
        let message = &envelope.message;
        if message.get_msg_type() != MessageType::MsgAppend {
            return Ok(());
        }
        let first = message.entries.first().map_or(message.index + 1, |first| first.index);
        let (shard, place) = (envelope.shard, message.index);
        hold!(
            first == place + 1,
            "shard {shard}: node {node} sends entries from {first} on as those above {place}"
        );
        let mut below = message.log_term;
        for entry in &message.entries {
            let is_change = entry.get_entry_type() != EntryType::EntryNormal;
            let contents = contents(is_change, &entry.data, &entry.context);
            self.entry(node, (envelope.shard, entry.index, entry.term), contents, Some(below))?;
            below = entry.term;
        }
        Ok(())
    }

    /// A node writes entries.
    pub(crate) fn write(&mut self, node: NodeId, write: &LogWrite) -> Holds {
        let mut below = None;
        for entry in &write.entries {
            let is_change = entry.kind != EntryKind::Normal;
            let contents = contents(is_change, &entry.data, &entry.context);
            self.entry(node, (write.shard, entry.at.index, entry.at.term), contents, below)?;
            below = Some(entry.at.term);
        }
        Ok(())
    }
}
