//! What all groups of the node together may hold, and what they hold of it: bytes in memory, on
//! their way and on disk, and turns. One group takes no more than it leaves to the others; each
//! bound is told where it is applied.

mod pace;
mod room;
mod turns;

pub(crate) use pace::{Pace, WAITING_BYTES_MIN};
pub(crate) use room::Room;
pub(crate) use turns::Turns;

use super::config::CoreConfig;
use super::time::Time;
use flotilla_router::{NodeId, ShardId};
use std::collections::{BTreeMap, BTreeSet};

/// Bytes that are proposed and not yet applied.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct UnderWay {
    /// All of them.
    pub(crate) bytes: u64,
    /// Of these, those that are not committed.
    pub(crate) uncommitted: u64,
    /// Of these, those of groups that stand still.
    pub(crate) standing: u64,
}

/// What the groups share.
pub(crate) struct Budgets {
    /// Bytes of commands that wait to be proposed.
    pub(crate) waiting_bytes: u64,
    /// Groups whose commands wait for a write to finish.
    pub(crate) gathering: BTreeSet<ShardId>,
    /// The first of them to propose, so that each gets its turn.
    propose_first: ShardId,
    /// Shards of whose proposals some are not yet applied.
    pub(crate) proposing: BTreeSet<ShardId>,
    /// What is proposed and not yet applied, as of the last look and with what was proposed since.
    pub(crate) under_way: UnderWay,
    /// Bytes that were proposed and not yet committed when something was last proposed.
    pub(crate) uncommitted_bytes: u64,
    /// How fast what waits is proposed.
    pub(crate) pace: Pace,
    /// Bytes of entries that are committed and not yet applied.
    pub(crate) unapplied_bytes: u64,
    /// Bytes of entries that wait for a write to the log, or are in one that is under way.
    pub(crate) unpersisted_bytes: u64,
    /// Bytes of log bodies in memory.
    pub(crate) cache_bytes: u64,
    /// Bytes of log on disk.
    pub(crate) log_bytes: u64,
    /// Bytes of entries on their way to each node.
    in_flight: BTreeMap<NodeId, u64>,
    /// Room on the disk.
    pub(crate) room: Room,
    /// Whose turn it is to be sent to a node as a snapshot.
    pub(crate) turns: Turns,
    /// How many replicas share all this.
    pub(crate) replicas: u64,
}

impl Budgets {
    /// Nothing is held.
    pub(crate) fn new(config: &CoreConfig) -> Self {
        Self {
            waiting_bytes: 0,
            gathering: BTreeSet::new(),
            propose_first: ShardId(0),
            proposing: BTreeSet::new(),
            under_way: UnderWay::default(),
            uncommitted_bytes: 0,
            pace: Pace::new(config),
            unapplied_bytes: 0,
            unpersisted_bytes: 0,
            cache_bytes: 0,
            log_bytes: 0,
            in_flight: BTreeMap::new(),
            room: Room::default(),
            turns: Turns::default(),
            replicas: 0,
        }
    }

    /// Takes the groups whose commands wait, in the order in which they propose.
    pub(crate) fn take_gathering(&mut self) -> impl Iterator<Item = ShardId> + use<> {
        let mut last = std::mem::take(&mut self.gathering);
        let first = last.split_off(&self.propose_first);
        first.into_iter().chain(last)
    }

    /// All have had their turn: whoever was held back for the sake of others goes before them the
    /// next time.
    pub(crate) fn choose_first(&mut self) {
        if let Some(held) =
            self.gathering.range(self.propose_first..).next().or(self.gathering.first())
        {
            self.propose_first = *held;
        }
    }

    /// Takes note of what is under way.
    pub(crate) fn note_under_way(&mut self) {
        self.pace.under_way(self.under_way.bytes - self.under_way.standing);
        self.uncommitted_bytes = self.under_way.uncommitted;
    }

    /// Takes note of what all logs have, in memory and on disk.
    pub(crate) fn note_logs(&mut self, cache_bytes: u64, log_bytes: u64) {
        (self.cache_bytes, self.log_bytes) = (cache_bytes, log_bytes);
    }

    /// Looks at the pace, once per tick.
    pub(crate) fn look_at_pace(&mut self, now: Time) {
        self.pace
            .look(now, self.waiting_bytes.saturating_sub(self.pace.standing) > WAITING_BYTES_MIN);
    }

    /// So many bytes more are on their way to a node, and so many no longer; how many that leaves.
    pub(crate) fn charge(&mut self, node: NodeId, more: u64, freed: u64) -> u64 {
        let bytes = self.in_flight.entry(node).or_default();
        *bytes = (*bytes + more).saturating_sub(freed);
        *bytes
    }

    /// Bytes of entries on their way to a node.
    #[cfg(test)]
    pub(crate) fn in_flight_bytes(&self, node: NodeId) -> u64 {
        self.in_flight.get(&node).copied().unwrap_or_default()
    }
}
