//! Across shards: whose commands are proposed next, and what is under way already.

use super::Node;
use super::budgets::UnderWay;

impl Node {
    /// Proposes what has gathered, unless as many writes as allowed are under way: their end brings
    /// us here again.
    pub(super) fn propose_gathered(&mut self) {
        if self.pass.writes_under_way() >= self.config.raft.inflight_writes_max
            || self.budgets.gathering.is_empty()
        {
            return;
        }
        if self.budgets.room.is_full() || self.liveness.is_any_disk_full() {
            for shard in self.budgets.gathering.clone() {
                self.with(shard, |replica, ctx| replica.turn_puts_away_without_room(ctx));
            }
        }
        let gathering = self.budgets.take_gathering();
        self.look_at_what_is_under_way();
        for shard in gathering {
            self.with(shard, |replica, ctx| replica.propose(ctx));
        }
        self.budgets.note_under_way();
        self.budgets.choose_first();
    }

    /// Takes note of the pace at which what waits is proposed. Once per tick.
    pub(super) fn note_pace(&mut self) {
        let (now, patience) = (self.now, self.config.stand_still_patience());
        let waiting = self.budgets.gathering.iter().filter_map(|shard| self.replicas.get(*shard));
        let standing = waiting.filter(|replica| replica.stands_still(now, patience));
        self.budgets.pace.standing = standing.map(|replica| replica.write.waiting_bytes()).sum();
        self.budgets.look_at_pace(now);
        self.look_at_what_is_under_way();
        self.budgets.note_under_way();
    }

    /// Looks at what is proposed here and not yet applied, over all groups that lead here.
    fn look_at_what_is_under_way(&mut self) {
        let (now, patience) = (self.now, self.config.stand_still_patience());
        let (replicas, mut sum) = (&self.replicas, UnderWay::default());
        self.budgets.proposing.retain(|shard| {
            let Some(replica) = replicas.get(*shard).filter(|replica| replica.group.leads()) else {
                return false;
            };
            let bytes = replica.group.under_way_bytes();
            sum.bytes += bytes;
            sum.uncommitted += replica.group.raw.raft.uncommitted_size() as u64;
            sum.standing += if replica.stands_still(now, patience) { bytes } else { 0 };
            bytes > 0
        });
        self.budgets.under_way = sum;
    }
}
