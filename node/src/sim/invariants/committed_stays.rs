//! Committed is never lost (thesis §3.6: leader completeness, state machine safety).
//!
//! What one node was told to apply at an index stands there for ever: every node that applies that
//! index applies the same entry, no replica that holds it deletes it as overruled, no leader
//! appends on top of something else, no snapshot ends in another term.

use super::{Holds, hold};
use crate::core::Envelope;
use flotilla_router::{NodeId, ShardId};
use flotilla_storage::{LogPosition, LogWrite, MemoryEngine, SnapshotManifest, log};
use raft::eraftpb::MessageType;
use std::collections::BTreeMap;

/// Every entry that any node was told to apply.
#[derive(Default)]
pub(crate) struct CommittedStays {
    entries: BTreeMap<(ShardId, u64), Committed>,
    /// The highest term in which anybody was seen to lead.
    terms: BTreeMap<ShardId, u64>,
}

struct Committed {
    term: u64,
    /// A hash of its data.
    contents: u64,
    /// The highest term of the shard when it was first seen committed: leaders of later terms must
    /// have it.
    known_in: u64,
}

impl CommittedStays {
    /// A node is told to apply an entry; whether nobody was before.
    pub(crate) fn committed(
        &mut self,
        node: NodeId,
        shard: ShardId,
        at: LogPosition,
        contents: u64,
    ) -> Result<bool, String> {
        let LogPosition { index, term } = at;
        if let Some(known) = self.entries.get(&(shard, index)) {
            let same = (known.term, known.contents) == (term, contents);
            let other = known.term;
            hold!(
                same,
                "shard {shard}, index {index}: node {node} applies an entry of term {term}, \
                 another one of term {other}"
            );
            return Ok(false);
        }
        let known_in = self.terms.get(&shard).copied().unwrap_or(term);
        self.entries.insert((shard, index), Committed { term, contents, known_in });
        Ok(true)
    }

    fn same_term(&self, node: NodeId, shard: ShardId, at: LogPosition, does: &str) -> Holds {
        if let Some(Committed { term, .. }) = self.entries.get(&(shard, at.index)) {
            let LogPosition { index, term: other } = at;
            hold!(
                *term == other,
                "shard {shard}: node {node} {does} index {index} in term {other}, which is \
                 committed in {term}"
            );
        }
        Ok(())
    }

    /// A leader appends.
    pub(crate) fn message(&mut self, node: NodeId, envelope: &Envelope) -> Holds {
        let (shard, message) = (envelope.shard, &envelope.message);
        if message.get_msg_type() != MessageType::MsgAppend {
            return Ok(());
        }
        let highest = self.terms.entry(shard).or_default();
        *highest = message.term.max(*highest);
        // A leader of an older term may not have heard of what was committed in a newer one.
        let below = LogPosition { index: message.index, term: message.log_term };
        if self
            .entries
            .get(&(shard, below.index))
            .is_some_and(|known| message.term > known.known_in)
        {
            self.same_term(node, shard, below, "appends above")?;
        }
        Ok(())
    }

    /// A replica writes to its log, and may delete what was overruled.
    pub(crate) fn write(&self, node: NodeId, write: &LogWrite, disk: &MemoryEngine) -> Holds {
        let shard = write.shard;
        for entry in &write.entries {
            if let Some(Committed { term, .. }) = self.entries.get(&(shard, entry.at.index)) {
                // Written again after a restart, or late; but never instead of it, once this
                // replica had it.
                let had = term_on_disk(disk, shard, entry.at.index);
                let lost = had == Some(*term) && entry.at.term != *term;
                hold!(
                    !lost,
                    "shard {shard}: node {node} overwrites committed index {} of term {term}",
                    entry.at.index
                );
            }
        }
        let Some((first, last)) = write.delete else { return Ok(()) };
        for (&(_, index), &Committed { term, .. }) in
            self.entries.range((shard, first)..=(shard, last))
        {
            let had = term_on_disk(disk, shard, index);
            hold!(
                had != Some(term),
                "shard {shard}: node {node} deletes committed index {index} of term {term}"
            );
        }
        Ok(())
    }

    /// A snapshot was built.
    pub(crate) fn built(&self, node: NodeId, manifest: &SnapshotManifest) -> Holds {
        self.same_term(node, manifest.descriptor.id, manifest.at, "builds a snapshot at")
    }

    /// A snapshot was installed.
    pub(crate) fn installed(&self, node: NodeId, shard: ShardId, at: LogPosition) -> Holds {
        self.same_term(node, shard, at, "installs a snapshot at")
    }

    /// The highest index that is known to be committed in a shard.
    pub(crate) fn last(&self, shard: ShardId) -> u64 {
        self.entries
            .range((shard, 0)..=(shard, u64::MAX))
            .next_back()
            .map_or(0, |((_, index), _)| *index)
    }
}

fn term_on_disk(disk: &MemoryEngine, shard: ShardId, index: u64) -> Option<u64> {
    log::entries(disk, shard, index, index + 1, u64::MAX).ok()?.first().map(|entry| entry.at.term)
}
