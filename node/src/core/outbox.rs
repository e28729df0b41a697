//! What leaves at the end of a pass, merged over all groups: one write, one apply, one message effect per node.
//!
//! **Order.** Messages that may leave come first, so that a leader does not wait for its own fsync; then everything else, in the
//! order in which it came up; then the write and the work for apply, unless those before are still under way: then they gather.

use super::Node;
use super::effect::Effect;
use super::wire::Envelope;
use flotilla_router::{NodeId, ReplicaId, ShardId};
use flotilla_storage::{ApplyWork, LogBatch, LogWrite};
use std::collections::BTreeMap;

/// What leaves at the end of the pass.
#[derive(Default)]
pub(super) struct Outbox {
    /// In the order in which they must be carried out.
    pub(super) effects: Vec<Effect>,
    /// Messages that may leave now, by node.
    pub(super) messages: BTreeMap<NodeId, Vec<Envelope>>,
    /// Entries and hard states that wait for the next write.
    pub(super) writes: BTreeMap<ShardId, LogWrite>,
    /// Whether that write must be synced.
    pub(super) sync: bool,
    /// The Readys that the next write completes: shard, replica, number.
    pub(super) readies: Vec<(ShardId, ReplicaId, u64)>,
    /// Committed entries that wait to be applied.
    pub(super) apply: BTreeMap<ShardId, ApplyWork>,
}

/// A write to the log that is under way.
pub(super) struct Writing {
    /// Its number.
    pub(super) number: u64,
    /// The Readys that it completes: shard, replica, number.
    pub(super) readies: Vec<(ShardId, ReplicaId, u64)>,
    /// Every shard that it writes to, be it only to truncate.
    pub(super) shards: Vec<ShardId>,
}

impl Node {
    /// Hands the gathered writes out, unless as many as allowed are under way.
    pub(super) fn emit_writes(&mut self) {
        let outbox = &mut self.outbox;
        // What needs no sync goes along with what does, or with the next tick.
        let due = outbox.sync || self.ticked && !outbox.writes.is_empty();
        self.ticked = false;
        if !due || self.writing.len() >= self.config.raft.max_inflight_writes {
            return;
        }
        let write = self.next_write;
        self.next_write += 1;
        let shards = outbox.writes.keys().copied().collect();
        let sync = std::mem::take(&mut outbox.sync);
        let batch = LogBatch { writes: std::mem::take(&mut outbox.writes).into_values().collect(), sync };
        outbox.effects.push(Effect::Persist { write, batch });
        self.writing.push_back(Writing { number: write, readies: std::mem::take(&mut outbox.readies), shards });
    }

    pub(super) fn emit_apply(&mut self) {
        if self.applying || self.outbox.apply.is_empty() {
            return;
        }
        self.applying = true;
        let work = std::mem::take(&mut self.outbox.apply).into_values().collect();
        self.outbox.effects.push(Effect::Apply { work });
    }

    /// One effect per node. Messages leave before anything of the same pass is written: a leader does not wait for its own
    /// fsync; what must wait for it was held back by [`ready`](super::ready).
    pub(super) fn emit_messages(&mut self) {
        let beat = self.beat_is_due().then(|| self.beat());
        let mut messages = std::mem::take(&mut self.outbox.messages);
        let mut sends = Vec::new();
        if beat.is_some() {
            for node in self.peers.keys() {
                messages.entry(*node).or_default();
            }
        }
        for (to, messages) in messages {
            sends.push(Effect::Send { to, messages, beat });
        }
        if !sends.is_empty() {
            sends.append(&mut self.outbox.effects);
            self.outbox.effects = sends;
        }
    }
}
