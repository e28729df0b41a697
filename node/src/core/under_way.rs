//! What is proposed here and not yet applied, and what of that which waits is not proposed any more.

use super::Node;
use super::effect::Effect;
use flotilla_router::Refusal;

/// Bytes that are proposed and not yet applied.
#[derive(Clone, Copy, Default)]
pub(super) struct UnderWay {
    /// All of them.
    pub(super) bytes: u64,
    /// Of these, those that are not committed.
    pub(super) uncommitted: u64,
    /// Of these, those of groups that stand still.
    pub(super) standing: u64,
}

impl Node {
    /// Looks at what is under way, and takes note of it.
    pub(super) fn note_under_way(&mut self) {
        let under_way = self.under_way();
        self.take_note(under_way);
    }

    /// Takes note of what is under way.
    pub(super) fn take_note(&mut self, under_way: UnderWay) {
        self.pace.under_way(under_way.bytes - under_way.standing);
        self.uncommitted_bytes = under_way.uncommitted;
    }

    /// What is proposed here and not yet applied, over all groups that lead here.
    pub(super) fn under_way(&mut self) -> UnderWay {
        let (now, patience) = (self.now, self.config.stand_still_patience());
        let (registry, mut sum) = (&mut self.registry, UnderWay::default());
        self.under_way.retain(|shard| {
            let Some(replica) = registry.get_mut(*shard).filter(|replica| replica.leads()) else { return false };
            let bytes = replica.under_way_bytes();
            sum.bytes += bytes;
            sum.uncommitted += replica.raw.raft.uncommitted_size() as u64;
            sum.standing += if replica.stands_still(now, patience) { bytes } else { 0 };
            bytes > 0
        });
        sum
    }

    /// What was taken in while there was room waits still, and there is none any more: puts are refused, for certain; deletions go on.
    pub(super) fn turn_puts_away_where_disks_are_full(&mut self) {
        if !self.room.is_full() && !self.peers.values().any(|peer| peer.beat.disk_full) {
            return;
        }
        for shard in self.gathering.clone() {
            if !self.lacks_room(shard) {
                continue;
            }
            let Some(replica) = self.registry.get_mut(shard) else { continue };
            let (tickets, bytes) = replica.proposals.take_puts();
            self.waiting_bytes -= bytes;
            for ticket in tickets {
                let refusal = Refusal::DiskFull { free_bytes: 0, reserve_bytes: 0 };
                self.outbox.effects.push(Effect::Reply { ticket, shard, result: Err(refusal) });
            }
        }
    }
}
