//! What raft-rs asks of a log while it looks into it: entries that are no longer in memory, and snapshots.

use super::Node;
use super::effect::Effect;
use super::log::from_stored;
use flotilla_router::{ReplicaId, ShardId};
use flotilla_storage::LogEntry;
use raft::GetEntriesContext;

/// Entries on their way from disk.
pub(super) struct Fetch {
    shard: ShardId,
    low: u64,
    context: GetEntriesContext,
}

impl Node {
    /// Acts on what raft-rs asked of the log while it was not looking: entries on disk, a snapshot.
    pub(super) fn take_asked(&mut self, shard: ShardId) {
        let replica = self.registry.get_mut(shard).expect("the caller holds it");
        replica.raw.mut_store().drop_fetched();
        let (wanted, behind) = replica.raw.mut_store().take_asked();
        for wanted in wanted {
            // Every proposal asks again for what a follower far behind needs; without this each would start a row of fetches
            // that never ends before the follower has caught up. Another follower at the same place asks again on its heartbeat.
            if self.fetches.values().any(|f| f.shard == shard && f.low == wanted.low) {
                continue;
            }
            let fetch = self.next_fetch;
            self.next_fetch += 1;
            let (low, high, bytes_max) = (wanted.low, wanted.high, wanted.bytes_max.min(4 << 20));
            self.outbox.effects.push(Effect::FetchEntries { fetch, shard, low, high, bytes_max });
            self.fetches.insert(fetch, Fetch { shard, low, context: wanted.context });
        }
        for follower in behind {
            self.want_snapshot(shard, ReplicaId(follower));
        }
    }

    /// Entries have come from disk: raft-rs sends them on, if the follower still needs them.
    pub(super) fn entries_fetched(&mut self, fetch: u64, shard: ShardId, entries: Vec<LogEntry>) {
        let Some(Fetch { shard: asked, low: _, context }) = self.fetches.remove(&fetch) else { return };
        assert_eq!(asked, shard, "entries of another shard were fetched");
        let Some(replica) = self.registry.get_mut(shard) else { return };
        if entries.is_empty() || replica.quarantined.is_some() {
            return;
        }
        // The log may have been truncated or overwritten since; only what it still says is held.
        let view = replica.raw.mut_store();
        if entries.iter().all(|e| view.term_at(e.at.index) == Some(e.at.term)) {
            view.hold_fetched(entries.into_iter().map(from_stored).collect());
            replica.raw.on_entries_fetched(context);
            self.touch(shard);
        }
    }
}
