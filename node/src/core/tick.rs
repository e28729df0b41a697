//! What time brings: every group ticks, and what concerns all of them is looked after.

use super::Node;
use super::placement::drain::Drain;

impl Node {
    /// One tick of the election clock.
    pub(super) fn tick(&mut self) {
        self.ticks += 1;
        self.pass.ticked = true;
        self.liveness.tick();
        self.tick_groups();
        for shard in self.replicas.active_shards() {
            self.with(shard, |replica, ctx| replica.tick_operations(ctx));
        }
        if self.ticks.is_multiple_of(self.config.raft.heartbeat_ticks as u64 * 2) {
            self.place_leaders();
        }
        if self.budgets.room.is_full() {
            self.cut_logs();
        }
        self.evict_caches();
        self.note_pace();
    }

    /// The process is about to end: says so to all, and hands over.
    pub(super) fn drain(&mut self) {
        self.drain.is_draining = true;
        self.liveness.beat_at_once();
        self.place_leaders();
    }

    /// Hands leadership over: what is beyond the fair share; all of it while going down.
    fn place_leaders(&mut self) {
        let hand_overs = if self.drain.is_draining {
            Drain::hand_overs(&self.replicas, &self.liveness)
        } else if self.config.raft.balance_leaders {
            self.balance.hand_overs(&self.replicas, &self.liveness, self.ticks, &self.config)
        } else {
            Vec::new()
        };
        for (shard, to) in hand_overs {
            self.with(shard, |replica, ctx| replica.start_transfer(to, None, ctx));
        }
    }

    /// The disk is full: cuts the logs of shards that nobody writes to any more, either.
    fn cut_logs(&mut self) {
        // Those that are not active have a log, too.
        for shard in self.replicas.shards() {
            self.with(shard, |replica, ctx| {
                // What was quarantined is for a person to look at, and a log that a snapshot
                // replaces is no longer this one's.
                if replica.group.quarantined.is_none() && !replica.group.installing {
                    replica.cut_log(ctx);
                }
            });
        }
    }

    /// Drops bodies from memory that are not needed soon.
    fn evict_caches(&mut self) {
        let is_short = self.budgets.cache_bytes > self.config.log.cache_bytes_max;
        for shard in self.replicas.active_shards() {
            self.with(shard, |replica, ctx| replica.evict(is_short, ctx));
        }
    }
}
