//! The one place that creates and destroys replicas, and says which keys they own.
//!
//! A replica comes to be when the node starts and finds it on disk. (A split, a message from a
//! group that this node was added to, and a removal will come here too, and to no other file,
//! because each must be judged against all ranges of the node.)
//!
//! **Invariant.** The ranges of live replicas on a node are disjoint.

use super::config::CoreConfig;
use super::operations::snapshot_in::Claim;
use super::replica::{Replica, Tally};
use bytes::Bytes;
use flotilla_router::range::to_clear;
use flotilla_router::{Descriptor, KeyRange, ShardId};
use flotilla_storage::Recovered;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

/// All replicas of the node, in the order of shard ids.
#[derive(Default)]
pub(crate) struct Replicas {
    replicas: BTreeMap<ShardId, Replica>,
    /// User shards by the start of their range.
    by_start: BTreeMap<Bytes, ShardId>,
    index: Index,
}

/// Which of them are what; kept by increments, since with many shards each walk costs.
#[derive(Default)]
struct Index {
    /// Those that lead.
    led: BTreeSet<ShardId>,
    /// Those in which something goes on that time moves.
    active: BTreeSet<ShardId>,
    sums: Sums,
}

impl Index {
    /// Something was done with a replica.
    fn note(&mut self, replica: &mut Replica) {
        let Some((before, now)) = replica.take_tally() else { return };
        let shard = replica.group.shard;
        let keep = |set: &mut BTreeSet<ShardId>, stays| {
            if stays { set.insert(shard) } else { set.remove(&shard) }
        };
        if before.leads != now.leads {
            keep(&mut self.led, now.leads);
        }
        if before.active != now.active {
            keep(&mut self.active, now.active);
            if !now.active {
                replica.rest();
            }
        }
        self.sums.replace(before, now);
    }
}

/// What there is of each kind, over all replicas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    /// How many replicas were quarantined.
    pub(crate) quarantined: u64,
    /// How many hand over.
    pub(crate) handing_over: u64,
    /// Committed entries that are not yet applied.
    pub(crate) apply_lag: u64,
    /// Bytes of log bodies in memory.
    pub(crate) cache_bytes: u64,
    /// Bytes of log on disk.
    pub(crate) log_bytes: u64,
}

impl Sums {
    fn replace(&mut self, before: Tally, now: Tally) {
        let swap = |sum: &mut u64, before: u64, now: u64| *sum = *sum + now - before;
        swap(&mut self.quarantined, before.quarantined.into(), now.quarantined.into());
        swap(&mut self.handing_over, before.hands_over.into(), now.hands_over.into());
        swap(&mut self.apply_lag, before.apply_lag, now.apply_lag);
        swap(&mut self.cache_bytes, before.cache_bytes, now.cache_bytes);
        swap(&mut self.log_bytes, before.log_bytes, now.log_bytes);
    }
}

impl Replicas {
    /// Brings a replica to life as it was found on disk.
    ///
    /// # Panics
    /// If its range overlaps another's: two owners of a key must never both run.
    pub(crate) fn create(
        &mut self,
        config: &CoreConfig,
        logger: &slog::Logger,
        recovered: Recovered,
    ) {
        let shard = recovered.descriptor.id;
        if let Some(other) = self.overlapping(shard, &recovered.descriptor.range) {
            panic!("shard {shard} overlaps shard {other} on this node: {:?}", recovered.descriptor);
        }
        if !shard.is_meta() {
            self.by_start.insert(recovered.descriptor.range.start.clone(), shard);
        }
        self.replicas.insert(shard, Replica::new(config, logger, recovered));
        self.with(shard, |_| ());
    }

    /// Has something done with a shard's replica, and sums it up anew; `None` where there is none.
    pub(crate) fn with<T>(
        &mut self,
        shard: ShardId,
        act: impl FnOnce(&mut Replica) -> T,
    ) -> Option<T> {
        let replica = self.replicas.get_mut(&shard)?;
        let outcome = act(replica);
        self.index.note(replica);
        Some(outcome)
    }

    /// The shard is what this descriptor says, from now on; false where it has no replica here.
    ///
    /// # Panics
    /// If its range overlaps another's.
    pub(crate) fn change(&mut self, descriptor: Arc<Descriptor>) -> bool {
        let shard = descriptor.id;
        assert_eq!(
            self.overlapping(shard, &descriptor.range),
            None,
            "the new range of shard {shard} overlaps another's"
        );
        let Some(replica) = self.replicas.get_mut(&shard) else { return false };
        if !shard.is_meta() {
            self.by_start.remove(&replica.group.descriptor().range.start);
            self.by_start.insert(descriptor.range.start.clone(), shard);
        }
        replica.group.set_descriptor(descriptor);
        true
    }

    /// Judges the range that a shard will have once a snapshot is installed: against what replicas
    /// of other shards own, and what they are about to own by snapshots that were accepted. Until
    /// it is installed, it is reserved in the same way, and so is what the shard has now: nobody
    /// comes to own what will be cleared.
    pub(crate) fn claim(&self, shard: ShardId, range: &KeyRange) -> Claim {
        let old = self.replicas.get(&shard).map(|replica| &replica.group.descriptor().range);
        if shard.is_meta() {
            return Claim::Free(to_clear(old, range, &[]));
        }
        let others = || {
            self.replicas.values().filter(|r| r.group.shard != shard && !r.group.shard.is_meta())
        };
        let mut incoming = others().filter_map(Replica::incoming_descriptor);
        if self.overlapping(shard, range).is_some()
            || incoming.any(|descriptor| descriptor.range.overlaps(range))
        {
            return Claim::Taken;
        }
        let owned: Vec<_> = others().map(|r| r.group.descriptor().range.clone()).collect();
        Claim::Free(to_clear(old, range, &owned))
    }

    /// A live replica of another shard that owns a key of `range`. The meta shard's keys are in a
    /// space of their own.
    fn overlapping(&self, shard: ShardId, range: &KeyRange) -> Option<ShardId> {
        if shard.is_meta() {
            return None;
        }
        let end = range.end.clone().map_or(Bound::Unbounded, Bound::Excluded);
        // Disjoint ranges in the order of their starts: only those that start below the end of
        // `range` can overlap it, and of them all but the last few end before it starts.
        let below = self.by_start.range((Bound::Unbounded, end)).rev().map(|(_, id)| *id);
        let mut overlapping =
            below.take_while(|id| self.replicas[id].group.descriptor().range.overlaps(range));
        overlapping.find(|id| *id != shard)
    }

    /// The replica of this shard.
    pub(crate) fn get(&self, shard: ShardId) -> Option<&Replica> {
        self.replicas.get(&shard)
    }

    /// Every shard that has a replica here.
    pub(crate) fn shards(&self) -> Vec<ShardId> {
        self.replicas.keys().copied().collect()
    }

    /// Whether what is kept by increments is what a walk over all replicas finds.
    #[cfg(test)]
    pub(crate) fn are_summed_up(&mut self) -> bool {
        let mut found = Index::default();
        for (shard, replica) in &mut self.replicas {
            let tally = replica.tally();
            found.led.extend(tally.leads.then_some(*shard));
            found.active.extend(tally.active.then_some(*shard));
            found.sums.replace(Tally::default(), tally);
        }
        let Index { led, active, sums } = &self.index;
        (led, active, sums) == (&found.led, &found.active, &found.sums)
    }

    /// A replica, to change, without summing it up.
    #[cfg(test)]
    pub(crate) fn get_mut(&mut self, shard: ShardId) -> Option<&mut Replica> {
        self.replicas.get_mut(&shard)
    }

    /// The replicas of a range of shard ids.
    pub(crate) fn range(
        &self,
        shards: impl RangeBounds<ShardId>,
    ) -> impl Iterator<Item = &Replica> {
        self.replicas.range(shards).map(|(_, replica)| replica)
    }

    /// Every replica.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Replica> {
        self.replicas.values()
    }

    /// Gives every replica its tick. Those for which `tick` is true may have changed, and are
    /// summed up anew.
    pub(crate) fn tick(&mut self, mut tick: impl FnMut(&mut Replica) -> bool) {
        for replica in self.replicas.values_mut() {
            if tick(replica) {
                self.index.note(replica);
            }
        }
    }

    /// Those that lead.
    pub(crate) fn led(&self) -> impl Iterator<Item = &Replica> {
        self.index.led.iter().map(|shard| &self.replicas[shard])
    }

    /// The shards of those that lead.
    pub(crate) fn led_shards(&self) -> Vec<ShardId> {
        self.index.led.iter().copied().collect()
    }

    /// The shards of those in which something goes on that time moves.
    pub(crate) fn active_shards(&self) -> Vec<ShardId> {
        self.index.active.iter().copied().collect()
    }

    /// How many replicas there are.
    pub(crate) fn len(&self) -> usize {
        self.replicas.len()
    }

    /// How many of them lead.
    pub(crate) fn leaders(&self) -> usize {
        self.index.led.len()
    }

    /// What there is of each kind.
    pub(crate) fn sums(&self) -> Sums {
        self.index.sums
    }
}
