//! One pass of the loop: which groups were touched in it, and what leaves at its end, merged over
//! all of them: one write, one piece of work for apply, one effect per node with all messages to
//! it. It knows no replica.
//!
//! **Order.** Messages that may leave come first, so that a leader does not wait for its own fsync;
//! what must wait for it was held back ([`ready`](super::group)). Then everything else, in the
//! order in which it came up; then the write and the work for apply, unless those before are still
//! under way: then they gather. Of what gathered for apply each shard gets a part, so that one with
//! much of it does not hold the others for long.

use super::effect::Effect;
use super::time::Time;
use super::wire::{Beat, Envelope, Stamp};
use flotilla_router::{Incarnation, NodeId, ReplicaId, ShardId};
use flotilla_storage::{ApplyEntry, ApplyWork, LogBatch, LogWrite};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Bytes of entries that are applied at once.
const APPLY_BYTES_MAX: u64 = 4 << 20;

/// A write to the log that is under way.
pub(crate) struct Writing {
    /// Its number.
    number: u64,
    /// The Readys that it completes: shard, replica, number.
    pub(crate) readies: Vec<(ShardId, ReplicaId, u64)>,
    /// Every shard that it writes to, be it only to truncate.
    pub(crate) shards: Vec<ShardId>,
    /// Bytes of the entries that it writes, by shard.
    pub(crate) bytes: BTreeMap<ShardId, u64>,
}

/// What leaves at the end of the pass.
#[derive(Default)]
pub(crate) struct Pass {
    /// What messages that leave in this pass say of its time.
    pub(crate) stamp: Stamp,
    /// In the order in which they must be carried out.
    pub(crate) effects: Vec<Effect>,
    /// Groups that were touched.
    dirty: BTreeSet<ShardId>,
    /// Messages that may leave now, by node.
    messages: BTreeMap<NodeId, Vec<Envelope>>,
    /// Entries and hard states that wait for the next write.
    writes: BTreeMap<ShardId, LogWrite>,
    /// Whether that write must be synced.
    sync: bool,
    /// Bytes of those entries, by shard.
    staged_bytes: BTreeMap<ShardId, u64>,
    /// The Readys that the next write completes: shard, replica, number.
    readies: Vec<(ShardId, ReplicaId, u64)>,
    /// Writes under way, oldest first.
    writing: VecDeque<Writing>,
    last_write: u64,
    /// Committed entries that wait to be applied.
    apply: BTreeMap<ShardId, ApplyWork>,
    /// The first shard of the next work, so that each gets its turn.
    apply_first: ShardId,
    /// Whether apply has work; more gathers meanwhile.
    applying: bool,
    /// Whether this pass had a tick.
    pub(crate) ticked: bool,
}

impl Pass {
    /// A pass begins.
    pub(crate) fn begin(&mut self, life: Incarnation, now: Time) {
        self.stamp = Stamp::new(life, now);
    }

    /// Marks a group to be looked at before the pass ends.
    pub(crate) fn touch(&mut self, shard: ShardId) {
        self.dirty.insert(shard);
    }

    /// Takes the groups that were touched.
    pub(crate) fn take_dirty(&mut self) -> BTreeSet<ShardId> {
        std::mem::take(&mut self.dirty)
    }

    /// Whether no group waits to be looked at.
    #[cfg(test)]
    pub(crate) fn is_at_rest(&self) -> bool {
        self.dirty.is_empty()
    }

    /// A message leaves with this pass's frame for a node.
    pub(crate) fn send(&mut self, to: NodeId, envelope: Envelope) {
        self.messages.entry(to).or_default().push(envelope);
    }

    /// What the next write says of a shard.
    pub(crate) fn write(&mut self, shard: ShardId) -> &mut LogWrite {
        self.writes.entry(shard).or_insert_with(|| LogWrite { shard, ..LogWrite::default() })
    }

    /// So many bytes of a shard's entries are part of the next write.
    pub(crate) fn note_staged(&mut self, shard: ShardId, bytes: u64) {
        *self.staged_bytes.entry(shard).or_default() += bytes;
    }

    /// The next write, synced, completes a Ready.
    pub(crate) fn complete_with_write(&mut self, shard: ShardId, replica: ReplicaId, ready: u64) {
        self.readies.push((shard, replica, ready));
        self.sync = true;
    }

    /// A shard's log starts over: what waits to be written to the old one is not. How many bytes of
    /// entries that were.
    pub(crate) fn forget_writes(&mut self, shard: ShardId) -> u64 {
        self.writes.remove(&shard);
        self.staged_bytes.remove(&shard).unwrap_or_default()
    }

    /// Whether a write that is under way concerns the shard.
    pub(crate) fn is_writing(&self, shard: ShardId) -> bool {
        self.writing.iter().any(|writing| writing.shards.contains(&shard))
    }

    /// How many writes are under way.
    pub(crate) fn writes_under_way(&self) -> usize {
        self.writing.len()
    }

    /// A write is durable.
    pub(crate) fn persisted(&mut self, write: u64) -> Writing {
        let done = self.writing.pop_front().expect("a write was reported that was not under way");
        assert_eq!(done.number, write, "writes were reported out of order");
        done
    }

    /// A committed entry waits to be applied.
    pub(crate) fn schedule(&mut self, shard: ShardId, entry: ApplyEntry) {
        let work =
            self.apply.entry(shard).or_insert_with(|| ApplyWork { shard, entries: Vec::new() });
        work.entries.push(entry);
    }

    /// Apply has done its work.
    pub(crate) fn applied(&mut self) {
        self.applying = false;
    }

    /// Hands the gathered writes out, unless as many as allowed are under way.
    pub(crate) fn emit_writes(&mut self, writes_max: usize) {
        // What needs no sync goes along with what does, or with the next tick.
        let due = self.sync || self.ticked && !self.writes.is_empty();
        self.ticked = false;
        if !due || self.writing.len() >= writes_max {
            return;
        }
        self.last_write += 1;
        let number = self.last_write;
        let shards = self.writes.keys().copied().collect();
        let sync = std::mem::take(&mut self.sync);
        let batch =
            LogBatch { writes: std::mem::take(&mut self.writes).into_values().collect(), sync };
        self.effects.push(Effect::Persist { write: number, batch });
        let (readies, bytes) =
            (std::mem::take(&mut self.readies), std::mem::take(&mut self.staged_bytes));
        self.writing.push_back(Writing { number, readies, shards, bytes });
    }

    /// Hands out what is committed, unless apply has work.
    pub(crate) fn emit_apply(&mut self) {
        if self.applying || self.apply.is_empty() {
            return;
        }
        self.applying = true;
        let work = self.take_apply(APPLY_BYTES_MAX);
        self.effects.push(Effect::Apply { work });
    }

    /// One effect per node, in front of everything else; a sign of life goes to all `nodes`.
    pub(crate) fn emit_messages(
        &mut self,
        beat: Option<Beat>,
        nodes: impl Iterator<Item = NodeId>,
    ) {
        let mut messages = std::mem::take(&mut self.messages);
        if beat.is_some() {
            for node in nodes {
                messages.entry(node).or_default();
            }
        }
        if !messages.is_empty() {
            let sends =
                messages.into_iter().map(|(to, messages)| Effect::Send { to, messages, beat });
            self.effects.splice(..0, sends);
        }
    }

    /// Takes what is to be applied next, `bytes_max` or one entry: of each shard the same part of
    /// it, or one entry.
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_storage::{EntryKind, LogEntry, LogPosition};

    #[test]
    fn of_what_waits_for_apply_each_shard_gets_its_part() {
        let entry = |index, bytes: usize| ApplyEntry {
            entry: LogEntry {
                at: LogPosition { index, term: 1 },
                kind: EntryKind::Normal,
                data: vec![0; bytes].into(),
                context: Default::default(),
            },
            wants_results: false,
        };
        let mut pass = Pass::default();
        for (shard, entries, bytes) in [(2, 20, 1000), (3, 1, 10), (4, 1, 5000), (5, 3, 10)] {
            let entries = (1..=entries).map(|index| entry(index, bytes)).collect();
            pass.apply.insert(ShardId(shard), ApplyWork { shard: ShardId(shard), entries });
        }
        let mut taken = Vec::new();
        while !pass.apply.is_empty() {
            assert!(taken.len() < 20, "it never ends");
            let works = pass.take_apply(8192);
            taken.push(
                works.iter().map(|work| (work.shard.0, work.entries.len())).collect::<Vec<_>>(),
            );
        }
        assert_eq!(taken[..3], [vec![(2, 1), (3, 1), (4, 1), (5, 3)], vec![(2, 7)], vec![(2, 7)]]);
        assert_eq!(
            taken
                .iter()
                .flatten()
                .filter(|(shard, _)| *shard == 2)
                .map(|(_, count)| count)
                .sum::<usize>(),
            20
        );
        // Large ones of many shards: some now, the others first the next time.
        for shard in 2..=5 {
            let entries = vec![entry(1, 5000), entry(2, 5000)];
            pass.apply.insert(ShardId(shard), ApplyWork { shard: ShardId(shard), entries });
        }
        let mut next = || pass.take_apply(8192).iter().map(|work| work.shard.0).collect::<Vec<_>>();
        assert_eq!([next(), next(), next(), next()], [[2, 3], [4, 5], [2, 3], [4, 5]]);
    }
}
