//! The log's size: when its front is forgotten, and which bodies stay in memory.
//!
//! *Truncation* is driven by size. A log larger than its share is cut to half of it, but never beyond what is applied; up to twice
//! the share not beyond what a live follower still needs, and up to four times not above a snapshot that is on its way to one. A
//! snapshot that takes longer than that, or keeps failing, is given up. For these two the share is what one shard may have at most, as
//! long as all logs together stay within their bound: with many shards most are idle, and a busy one needs what they leave.
//! While the disk is full a log keeps an eighth of its share: what nobody needs soon makes room.
//! It is staged like any write: applied data were written before it, to the same WAL, so that no crash can keep the cut and
//! lose what justified it.
//!
//! *Memory*: bodies that are applied here and known to every live follower are dropped first; beyond the bound over all shards,
//! all that are applied.

use super::Node;
use super::balance::is_alive;
use super::effect::Effect;
use super::log::entry_bytes;
use super::replica::Replica;
use flotilla_router::{NodeId, ShardId};
use flotilla_storage::{LogPosition, LogWrite, Truncate};
use raft::eraftpb::Entry;
use std::collections::VecDeque;

/// As many times its share a log may grow for the sake of a live follower.
const NEEDED_SHARES_MAX: u64 = 2;
/// The same for the sake of a snapshot that is on its way.
const PINNED_SHARES_MAX: u64 = 4;
/// Bytes of log between two places at which it can be cut.
const MARK_BYTES: u64 = 256 << 10;

/// The size of one log, and where it can be cut.
pub(super) struct Compaction {
    /// The last index up to each mark, and the bytes between it and the mark before.
    marks: VecDeque<(u64, u64)>,
    /// Bytes above the last mark.
    open_bytes: u64,
    last: u64,
    bytes: u64,
}

impl Compaction {
    /// A log of this many bytes was found on disk; where they lie inside it is not known.
    pub(super) fn new(last: LogPosition, bytes: u64) -> Self {
        Self { marks: VecDeque::from([(last.index, bytes)]), open_bytes: 0, last: last.index, bytes }
    }

    /// Bytes of log.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Entries were appended. What they overwrote still counts until it is cut: overwriting is rare and short.
    pub(super) fn appended(&mut self, entries: &[Entry]) {
        for entry in entries {
            let bytes = entry_bytes(entry);
            self.bytes += bytes;
            self.open_bytes += bytes;
            self.last = self.last.max(entry.index);
            if self.open_bytes >= MARK_BYTES {
                self.marks.push_back((self.last, std::mem::take(&mut self.open_bytes)));
            }
        }
    }

    /// The lowest place to cut at which the log would be no larger than `bytes_max`, or the highest below `index_max`.
    fn place(&self, bytes_max: u64, index_max: u64) -> Option<u64> {
        let mut left = self.bytes;
        let mut place = None;
        for (index, bytes) in &self.marks {
            if left <= bytes_max || *index > index_max {
                break;
            }
            left -= bytes;
            place = Some(*index);
        }
        place
    }

    /// The log was cut at `index`.
    fn cut(&mut self, index: u64) {
        while self.marks.front().is_some_and(|(mark, _)| *mark <= index) {
            let (_, bytes) = self.marks.pop_front().expect("looked at just now");
            self.bytes -= bytes;
        }
    }

    /// The log starts over at `index`.
    pub(super) fn reset(&mut self, index: u64) {
        *self = Self { marks: VecDeque::new(), open_bytes: 0, last: index, bytes: 0 };
    }
}

impl Node {
    /// Forgets the front of a log that is too large.
    pub(super) fn truncate_log(&mut self, shard: ShardId) {
        let replicas = self.registry.len() as u64;
        let silent_ticks_max = self.config.raft.election_ticks;
        let alive = |node| is_alive(&self.peers, node, silent_ticks_max);
        let Some(replica) = self.registry.get_mut(shard) else { return };
        let log = &self.config.log;
        let share = log.bytes_per_shard_max.min((log.bytes_max / replicas.max(1)).max(1 << 20));
        let kept = if self.room.is_full() { share / 8 } else { share };
        if replica.compaction.bytes() <= kept {
            return;
        }
        let lent = if self.log_bytes <= log.bytes_max { log.bytes_per_shard_max } else { share };
        if replica.compaction.bytes() > PINNED_SHARES_MAX.saturating_mul(lent)
            && let Some(snapshot) = replica.snapshots.unpin()
        {
            // It takes longer than the log may grow, or never arrives. A stream under way breaks off, or is of no use; either way
            // raft-rs hears how it ended, and asks for a snapshot from where the log begins then.
            replica.raw.mut_store().offer_snapshot(None);
            self.outbox.effects.push(Effect::DropSnapshot { snapshot });
        }
        let mut index_max = replica.applied.index.min(replica.snapshots.pins().unwrap_or(u64::MAX));
        if replica.compaction.bytes() <= NEEDED_SHARES_MAX.saturating_mul(lent) {
            index_max = index_max.min(needed_by_live_followers(replica, alive));
        }
        let Some(index) = replica.compaction.place(kept / 2, index_max) else { return };
        let view = replica.raw.store();
        let (truncated, Some(term)) = (view.truncated(), view.term_at(index)) else { return };
        if index <= truncated.index {
            return;
        }
        let to = LogPosition { index, term };
        let cached = replica.raw.store().cache_bytes();
        replica.raw.mut_store().truncate(to);
        replica.compaction.cut(index);
        self.cache_bytes = self.cache_bytes + replica.raw.store().cache_bytes() - cached;
        let write = self.outbox.writes.entry(shard).or_insert_with(|| LogWrite { shard, ..LogWrite::default() });
        let from = write.truncate.map_or(truncated.index + 1, |t| t.from);
        write.truncate = Some(Truncate { from, to });
    }

    /// Cuts the logs of shards that nobody writes to any more, either.
    pub(super) fn cut_logs_while_full(&mut self) {
        if !self.room.is_full() {
            return;
        }
        let shards: Vec<_> = self.registry.shards().collect();
        for shard in shards {
            // What was set aside is for a person to look at, and a log that a snapshot replaces is no longer this one's.
            let stays = |r: &mut Replica| r.quarantined.is_some() || r.snapshots.is_installing();
            if !self.registry.get_mut(shard).is_none_or(stays) {
                self.truncate_log(shard);
            }
        }
    }

    /// Drops bodies from memory that are not needed soon; and takes stock of the logs.
    pub(super) fn evict_caches(&mut self) {
        let (mut bytes, mut log_bytes) = (0, 0);
        let over = self.cache_bytes > self.config.log.cache_bytes_max;
        let silent_ticks_max = self.config.raft.election_ticks;
        let alive = |node| is_alive(&self.peers, node, silent_ticks_max);
        for replica in self.registry.iter_mut() {
            if replica.raw.store().cache_bytes() > 0 {
                let applied = replica.applied.index;
                let index = if over { applied } else { applied.min(needed_by_live_followers(replica, alive)) };
                replica.raw.mut_store().evict(index);
            }
            if replica.leads() && replica.proposals.pending() == 0 {
                // A buffer for every follower of every group that is idle would add up.
                replica.raw.raft.maybe_free_inflight_buffers();
            }
            bytes += replica.raw.store().cache_bytes();
            log_bytes += replica.compaction.bytes();
        }
        (self.cache_bytes, self.log_bytes) = (bytes, log_bytes);
    }
}

/// The last index that every live follower is known to hold; everything, for a follower.
fn needed_by_live_followers(replica: &Replica, alive: impl Fn(NodeId) -> bool) -> u64 {
    if !replica.leads() {
        return u64::MAX;
    }
    let followers = replica.descriptor.replicas.iter().filter(|r| r.id != replica.id && alive(r.node));
    followers.filter_map(|r| Some(replica.raw.raft.prs().get(r.id.0)?.matched)).min().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(from: u64, to: u64) -> Vec<Entry> {
        (from..=to).map(|index| Entry { index, term: 1, data: vec![0; (64 << 10) - 32].into(), ..Default::default() }).collect()
    }

    #[test]
    fn the_log_is_cut_at_marks_and_never_above_what_is_allowed() {
        let mut log = Compaction::new(LogPosition { index: 1, term: 1 }, 0);
        log.appended(&entries(2, 41));
        assert_eq!(log.bytes(), 40 * (64 << 10));
        let half = log.bytes() / 2;
        let place = log.place(half, u64::MAX).unwrap();
        assert_eq!(place, 21, "twenty entries go, twenty stay");
        assert_eq!(log.place(half, 20).unwrap(), 17, "the highest mark at or below 20");
        assert_eq!(log.place(half, 4), Some(1), "only the mark of what was found on disk");
        log.cut(place);
        assert_eq!(log.bytes(), half);
        assert_eq!(log.place(half, u64::MAX), None, "small enough");
    }
}
