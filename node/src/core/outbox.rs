//! What leaves at the end of a pass, merged over all groups: one write, one apply, one message effect per node.
//!
//! **Sizes.** No append has more entries than `raft.max_size_per_msg_bytes`, or it has one: a message always fits into a frame.
//!
//! **Order.** Messages that may leave come first, so that a leader does not wait for its own fsync; then everything else, in the
//! order in which it came up; then the write and the work for apply, unless those before are still under way: then they gather. Of what
//! gathered for apply each shard gets a part, so that one with much of it does not hold the others for long.

use super::Node;
use super::Time;
use super::effect::Effect;
use super::event::SnapshotId;
use super::log::entry_bytes;
use super::replica::Replica;
use super::wire::{Envelope, Stamp};
use flotilla_router::mutation::Mutation;
use flotilla_router::{NodeId, ReplicaId, ShardId};
use flotilla_storage::{ApplyWork, LogBatch, LogWrite};
use raft::ProgressState;
use raft::eraftpb::{Entry, Message, MessageType};
use std::collections::BTreeMap;

/// What leaves at the end of the pass.
#[derive(Default)]
pub(super) struct Outbox {
    /// The time of this pass, and what messages that leave in it say of it.
    pub(super) now: Time,
    /// See above.
    pub(super) stamp: Stamp,
    /// In the order in which they must be carried out.
    pub(super) effects: Vec<Effect>,
    /// Messages that may leave now, by node.
    pub(super) messages: BTreeMap<NodeId, Vec<Envelope>>,
    /// Entries and hard states that wait for the next write.
    pub(super) writes: BTreeMap<ShardId, LogWrite>,
    /// Whether that write must be synced.
    pub(super) sync: bool,
    /// Bytes of those entries, by shard.
    pub(super) staged_bytes: BTreeMap<ShardId, u64>,
    /// Bytes of entries that are staged, or in a write that is under way.
    pub(super) unpersisted_bytes: u64,
    /// The Readys that the next write completes: shard, replica, number.
    pub(super) readies: Vec<(ShardId, ReplicaId, u64)>,
    /// Committed entries that wait to be applied.
    pub(super) apply: BTreeMap<ShardId, ApplyWork>,
    /// The first shard of the next work, so that each gets its turn.
    pub(super) apply_first: ShardId,
    /// Bytes of entries in one append.
    pub(super) append_bytes_max: u64,
}

/// Bytes of entries that are applied at once.
const APPLY_BYTES_MAX: u64 = 4 << 20;

/// A write to the log that is under way.
pub(super) struct Writing {
    /// Its number.
    pub(super) number: u64,
    /// The Readys that it completes: shard, replica, number.
    pub(super) readies: Vec<(ShardId, ReplicaId, u64)>,
    /// Every shard that it writes to, be it only to truncate.
    pub(super) shards: Vec<ShardId>,
    /// Bytes of the entries that it writes, by shard.
    pub(super) bytes: BTreeMap<ShardId, u64>,
}

impl Outbox {
    /// A message with what raft does not know about it.
    fn envelope(&self, replica: &Replica, message: Message) -> Envelope {
        Envelope {
            shard: replica.shard,
            epoch: replica.descriptor.epoch,
            committed: replica.raw.raft.raft_log.committed,
            timing: replica.timing(&message, self.stamp, self.now),
            message,
        }
    }

    /// Takes what is to be applied next, `bytes_max` or one entry: of each shard the same part of it, or one entry.
    fn take_apply(&mut self, bytes_max: u64) -> Vec<ApplyWork> {
        let part = bytes_max / self.apply.len().max(1) as u64;
        let mut last = std::mem::take(&mut self.apply);
        let first = last.split_off(&self.apply_first);
        let (mut works, mut later, mut bytes) = (Vec::new(), BTreeMap::new(), 0);
        for (shard, mut work) in first.into_iter().chain(last) {
            if bytes >= bytes_max {
                if self.apply.is_empty() {
                    self.apply_first = shard;
                }
                self.apply.insert(shard, work);
                continue;
            }
            let mut of_shard = 0;
            let fits = work.entries.iter().take_while(|entry| {
                of_shard += entry.entry.bytes();
                of_shard <= part
            });
            let rest = work.entries.split_off(fits.count().max(1).min(work.entries.len()));
            bytes += work.entries.iter().map(|entry| entry.entry.bytes()).sum::<u64>();
            works.push(work);
            if !rest.is_empty() {
                // Behind those who got nothing.
                later.insert(shard, ApplyWork { shard, entries: rest });
            }
        }
        self.apply.append(&mut later);
        works
    }

    /// Sends a message of a group: with the frame of its node, or, a snapshot's announcement, with the snapshot.
    pub(super) fn send(&mut self, replica: &mut Replica, mut message: Message) {
        let Some(to) = replica.descriptor.replica(ReplicaId(message.to)) else { return };
        if message.get_msg_type() == MessageType::MsgAppend && !put_in_place(replica, &mut message) {
            return;
        }
        if message.get_msg_type() == MessageType::MsgAppend
            && let Some(progress) = replica.raw.raft.prs().get(to.id.0).filter(|p| p.state == ProgressState::Probe)
        {
            replica.flow.probed(to.id, progress.next_idx, self.now);
        }
        if let Some(last) = message.entries.last() {
            replica.flow.sent(to.id, last.index, message.entries.iter().map(entry_bytes).sum());
        }
        while let Some(first) = cut(&mut message, self.append_bytes_max) {
            let envelope = self.envelope(replica, first);
            self.messages.entry(to.node).or_default().push(envelope);
        }
        let envelope = self.envelope(replica, message);
        if envelope.message.get_msg_type() == MessageType::MsgSnapshot {
            let snapshot = SnapshotId(snapshot_number(&envelope.message));
            replica.snapshots.sending(to.id, snapshot);
            self.effects.push(Effect::SendSnapshot { to: to.node, replica: to.id, snapshot, envelope });
        } else {
            self.messages.entry(to.node).or_default().push(envelope);
        }
    }
}

/// Sees to it that an append names the place right below its entries. raft-rs, where it batches, adds entries to an empty append
/// that waits to be sent, whatever place that one names (trap 16). False where the place is gone; raft-rs finds out and asks again.
fn put_in_place(replica: &Replica, message: &mut Message) -> bool {
    let Some(first) = message.entries.first().map(|entry| entry.index) else { return true };
    if first == message.index + 1 {
        return true;
    }
    message.index = first - 1;
    match replica.raw.raft.raft_log.term(message.index) {
        Ok(term) if term > 0 => message.log_term = term,
        _ => return false,
    }
    true
}

/// Cuts an append that is too large: what fits goes first, and `message` keeps the rest, right behind it. `None` where all of it
/// fits. raft-rs, where it batches, adds entries to an append that waits without any bound (trap 18).
fn cut(message: &mut Message, bytes_max: u64) -> Option<Message> {
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

/// The snapshot's number, which the core put into its data when it offered it.
fn snapshot_number(message: &Message) -> u64 {
    let bytes = message.get_snapshot().get_data();
    u64::from_be_bytes(bytes.try_into().expect("the core itself wrote eight bytes"))
}

impl Node {
    /// So many bytes of a shard's entries are on the disk, or will never be.
    pub(super) fn no_more_unpersisted(&mut self, shard: ShardId, bytes: u64) {
        self.outbox.unpersisted_bytes -= bytes;
        if let Some(replica) = self.registry.get_mut(shard) {
            replica.ready.unpersisted_bytes -= bytes;
        }
    }

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
        let (readies, bytes) = (std::mem::take(&mut outbox.readies), std::mem::take(&mut outbox.staged_bytes));
        self.writing.push_back(Writing { number: write, readies, shards, bytes });
    }

    /// Hands out what is committed, unless apply has work.
    pub(super) fn emit_apply(&mut self) {
        if self.applying || self.outbox.apply.is_empty() {
            return;
        }
        self.applying = true;
        let work = self.outbox.take_apply(APPLY_BYTES_MAX);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::log::to_stored;
    use flotilla_storage::ApplyEntry;

    #[test]
    fn of_what_waits_for_apply_each_shard_gets_its_part() {
        let entry = |index, bytes: usize| ApplyEntry {
            entry: to_stored(&Entry { index, term: 1, data: vec![0; bytes].into(), ..Entry::default() }),
            wants_results: false,
        };
        let mut outbox = Outbox::default();
        for (shard, entries, bytes) in [(2, 20, 1000), (3, 1, 10), (4, 1, 5000), (5, 3, 10)] {
            let entries = (1..=entries).map(|index| entry(index, bytes)).collect();
            outbox.apply.insert(ShardId(shard), ApplyWork { shard: ShardId(shard), entries });
        }
        let mut taken = Vec::new();
        while !outbox.apply.is_empty() {
            assert!(taken.len() < 20, "it never ends");
            let works = outbox.take_apply(8192);
            taken.push(works.iter().map(|work| (work.shard.0, work.entries.len())).collect::<Vec<_>>());
        }
        assert_eq!(taken[..3], [vec![(2, 1), (3, 1), (4, 1), (5, 3)], vec![(2, 7)], vec![(2, 7)]]);
        assert_eq!(taken.iter().flatten().filter(|(shard, _)| *shard == 2).map(|(_, count)| count).sum::<usize>(), 20);
        // Large ones of many shards: some now, the others first the next time.
        for shard in 2..=5 {
            let entries = vec![entry(1, 5000), entry(2, 5000)];
            outbox.apply.insert(ShardId(shard), ApplyWork { shard: ShardId(shard), entries });
        }
        let mut next = || outbox.take_apply(8192).iter().map(|work| work.shard.0).collect::<Vec<_>>();
        assert_eq!([next(), next(), next(), next()], [[2, 3], [4, 5], [2, 3], [4, 5]]);
    }

    #[test]
    fn an_append_is_cut_into_pieces_that_fit_and_follow_one_another() {
        let entry = |index, bytes: usize| Entry { index, term: index / 2, data: vec![0; bytes].into(), ..Entry::default() };
        let sizes = [10, 10, 500, 10, 10, 10, 10];
        let mut message = Message { index: 4, log_term: 2, commit: 9, ..Message::default() };
        message.set_entries((5..).zip(sizes).map(|(index, bytes)| entry(index, bytes)).collect::<Vec<_>>().into());
        let mut pieces = Vec::new();
        while let Some(first) = cut(&mut message, 100) {
            pieces.push(first);
        }
        pieces.push(message);
        let shape = |m: &Message| (m.index, m.log_term, m.entries.iter().map(|e| e.index).collect::<Vec<_>>());
        assert_eq!(
            pieces.iter().map(shape).collect::<Vec<_>>(),
            [(4, 2, vec![5, 6]), (6, 3, vec![7]), (7, 3, vec![8, 9]), (9, 4, vec![10, 11])]
        );
        assert!(pieces.iter().all(|m| m.commit == 9));
        let mut empty = Message::default();
        assert!(cut(&mut empty, 0).is_none());
    }
}
