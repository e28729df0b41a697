//! What time brings: every group ticks, and what concerns all of them is looked after.

use super::Node;
use super::placement::drain::Drain;

impl Node {
    /// One tick of the election clock.
    pub(super) fn tick(&mut self) {
        self.ticks += 1;
        self.pass.ticked = true;
        self.liveness.tick();
        self.each(|replica, ctx| replica.tick(ctx));
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
        self.each(|replica, ctx| {
            // What was quarantined is for a person to look at, and a log that a snapshot replaces is no longer this one's.
            if replica.group.quarantined.is_none() && !replica.group.installing {
                replica.cut_log(ctx);
            }
        });
    }

    /// Drops bodies from memory that are not needed soon; and takes stock of the logs.
    fn evict_caches(&mut self) {
        let (mut cache_bytes, mut log_bytes) = (0, 0);
        let is_short = self.budgets.cache_bytes > self.config.log.cache_bytes_max;
        for replica in self.replicas.iter_mut() {
            replica.group.evict(&self.liveness, is_short);
            if replica.group.leads() && replica.write.pending() == 0 {
                // A buffer for every follower of every group that is idle would add up.
                replica.group.raw.raft.maybe_free_inflight_buffers();
            }
            cache_bytes += replica.group.raw.store().cache_bytes();
            log_bytes += replica.truncation.bytes();
        }
        (self.budgets.cache_bytes, self.budgets.log_bytes) = (cache_bytes, log_bytes);
    }
}
