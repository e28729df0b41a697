//! Whether a write is taken in: by the replica that leads, for keys that it owns, with room on the disks, and only if it has a chance to
//! be proposed in time. What is refused here was certainly not applied, and costs little; what is taken in and then waits for longer
//! than its client does has cost all that, for nothing. So past what a node can carry it goes on carrying that much.

use super::balance::is_alive;
use super::config::CoreConfig;
use super::{Node, Time};
use flotilla_router::{Command, Op, Refusal, ShardId};

/// Bytes of commands that may always wait, however slowly they were proposed before.
const WAITING_BYTES_MIN: u64 = 1 << 20;

/// How fast what waits is proposed.
pub(super) struct Pace {
    /// In bytes per second, over the last second or so in which something waited.
    rate: u64,
    /// Bytes proposed since the last tick.
    bytes: u64,
    /// Bytes proposed and not yet committed when something was last proposed: they go before what waits.
    under_way: u64,
}

impl Pace {
    /// As if a full queue were empty after a second, until it is known better.
    pub(super) fn new(config: &CoreConfig) -> Self {
        Self { rate: config.raft.max_waiting_bytes, bytes: 0, under_way: 0 }
    }

    /// So many bytes were proposed.
    pub(super) fn proposed(&mut self, bytes: u64) {
        self.bytes += bytes;
    }

    /// So many bytes are under way now.
    pub(super) fn under_way(&mut self, bytes: u64) {
        self.under_way = bytes;
    }

    /// A tick has passed. While nothing waits, what was proposed says only how much is possible at least.
    fn tick(&mut self, tick_ms: u64, something_waits: bool) {
        let rate = std::mem::take(&mut self.bytes).saturating_mul(1000) / tick_ms.max(1);
        self.rate = if something_waits { self.rate / 16 * 15 + rate / 16 } else { self.rate.max(rate) };
    }

    /// How many bytes may wait in front of a command that has so much time: whoever would spend more than half of it in line, and
    /// behind what is under way, had better be told at once.
    fn waiting_bytes_max(&self, time_left: Time, most: u64) -> u64 {
        let in_time = u128::from(self.rate) * (time_left / 2).as_millis() / 1000;
        let in_time = u64::try_from(in_time).unwrap_or(u64::MAX);
        in_time.saturating_sub(self.under_way).max(WAITING_BYTES_MIN).min(most)
    }
}

impl Node {
    /// Once per tick.
    pub(super) fn note_pace(&mut self) {
        self.pace.tick(self.config.raft.tick_ms, self.waiting_bytes > 0);
    }

    /// Whether a command may wait to be proposed.
    pub(super) fn admit(&mut self, shard: ShardId, command: &Command, deadline: Time) -> Result<(), Refusal> {
        command.check_sizes().map_err(|why| Refusal::Invalid { why })?;
        let limit = self.pace.waiting_bytes_max(deadline.saturating_sub(self.now), self.config.raft.max_waiting_bytes);
        let replica = self.registry.get_mut(shard).ok_or(Refusal::NotHosted { shard })?;
        if replica.quarantined.is_some() {
            return Err(Refusal::NotHosted { shard });
        }
        if !replica.leads() {
            return Err(Refusal::NotLeader { shard, leader: replica.leader_node() });
        }
        if !command.touches(&replica.descriptor.range) {
            return Err(Refusal::WrongShard { shard, descriptors: vec![(&*replica.descriptor).into()] });
        }
        if self.waiting_bytes >= limit {
            let what = "the line of writes on the leader's node, at the pace at which it proposes, in bytes,".into();
            return Err(Refusal::Overloaded { what, limit });
        }
        if matches!(command.op, Op::Put { .. }) {
            // A voter without room would stop taking entries, or stop altogether. What a node that is gone said last counts no
            // more, or it would keep the shard from being written for as long as it is gone.
            let silent_ticks_max = self.config.raft.election_ticks;
            let full = |r: &flotilla_router::Replica| {
                is_alive(&self.peers, r.node, silent_ticks_max) && self.peers[&r.node].beat.disk_full
            };
            if replica.descriptor.replicas.iter().any(full) {
                return Err(Refusal::DiskFull { free_bytes: 0, reserve_bytes: 0 });
            }
            let accepted = self.room.accept(command.encoded_bytes() as u64);
            accepted.map_err(|(free_bytes, reserve_bytes)| Refusal::DiskFull { free_bytes, reserve_bytes })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_wait_follows_the_pace_and_the_time_that_is_left() {
        const MIB: u64 = 1 << 20;
        let mut pace = Pace { rate: 64 * MIB, bytes: 0, under_way: 0 };
        let limit = |pace: &Pace, seconds| pace.waiting_bytes_max(Time::from_secs(seconds), 256 * MIB) / MIB;
        assert_eq!([0, 1, 4, 100].map(|seconds| limit(&pace, seconds)), [1, 32, 128, 256]);
        pace.under_way(30 * MIB);
        assert_eq!([0, 1, 4].map(|seconds| limit(&pace, seconds)), [1, 2, 98]);
        pace.under_way(0);
        // A quarter of that for some seconds, while more waits.
        for _ in 0..100 {
            pace.proposed(16 * MIB / 20);
            pace.tick(50, true);
        }
        assert_eq!(limit(&pace, 4), 32);
        // Nothing at all for long: a little may wait all the same, or nobody would ever learn that it goes on.
        (0..1000).for_each(|_| pace.tick(50, true));
        assert_eq!(limit(&pace, 4), 1);
        pace.proposed(10 * MIB);
        pace.tick(50, false);
        assert_eq!(limit(&pace, 1), 100);
    }
}
