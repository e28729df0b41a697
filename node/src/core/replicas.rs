//! The one place that creates and destroys replicas, and says which keys they own.
//!
//! A replica comes to be when the node starts and finds it on disk. (A split, a message from a group that this node was added
//! to, and a removal will come here too, and to no other file, because each must be judged against all ranges of the node.)
//!
//! **Invariant.** The ranges of live replicas on a node are disjoint.

use super::config::CoreConfig;
use super::replica::Replica;
use bytes::Bytes;
use flotilla_router::{Descriptor, KeyRange, ShardId};
use flotilla_storage::Recovered;
use std::collections::BTreeMap;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

/// All replicas of the node, in the order of shard ids.
#[derive(Default)]
pub(crate) struct Replicas {
    replicas: BTreeMap<ShardId, Replica>,
    /// User shards by the start of their range.
    by_start: BTreeMap<Bytes, ShardId>,
}

impl Replicas {
    /// Brings a replica to life as it was found on disk.
    ///
    /// # Panics
    /// If its range overlaps another's: two owners of a key must never both run.
    pub(crate) fn create(&mut self, config: &CoreConfig, logger: &slog::Logger, recovered: Recovered) {
        let shard = recovered.descriptor.id;
        if let Some(other) = self.overlapping(shard, &recovered.descriptor.range) {
            panic!("shard {shard} overlaps shard {other} on this node: {:?}", recovered.descriptor);
        }
        if !shard.is_meta() {
            self.by_start.insert(recovered.descriptor.range.start.clone(), shard);
        }
        self.replicas.insert(shard, Replica::new(config, logger, recovered));
    }

    /// The shard is what this descriptor says, from now on.
    ///
    /// # Panics
    /// If its range overlaps another's.
    pub(crate) fn change(&mut self, descriptor: Arc<Descriptor>) {
        let shard = descriptor.id;
        assert_eq!(self.overlapping(shard, &descriptor.range), None, "the new range of shard {shard} overlaps another's");
        let Some(replica) = self.replicas.get_mut(&shard) else { return };
        if !shard.is_meta() {
            self.by_start.remove(&replica.group.descriptor().range.start);
            self.by_start.insert(descriptor.range.start.clone(), shard);
        }
        replica.group.set_descriptor(descriptor);
    }

    /// Whether a replica of another shard owns a key of `range`, or is about to, by a snapshot that was accepted.
    pub(crate) fn is_taken(&self, shard: ShardId, range: &KeyRange) -> bool {
        if shard.is_meta() {
            return false;
        }
        let others = self.replicas.values().filter(|r| r.group.shard != shard && !r.group.shard.is_meta());
        let mut incoming = others.filter_map(Replica::incoming_descriptor);
        self.overlapping(shard, range).is_some() || incoming.any(|descriptor| descriptor.range.overlaps(range))
    }

    /// A live replica of another shard that owns a key of `range`. The meta shard's keys are in a space of their own.
    fn overlapping(&self, shard: ShardId, range: &KeyRange) -> Option<ShardId> {
        if shard.is_meta() {
            return None;
        }
        let end = range.end.clone().map_or(Bound::Unbounded, Bound::Excluded);
        // Disjoint ranges in the order of their starts: only those that start below the end of `range` can overlap it, and of
        // them all but the last few end before it starts.
        let below = self.by_start.range((Bound::Unbounded, end)).rev().map(|(_, id)| *id);
        let mut overlapping = below.take_while(|id| self.replicas[id].group.descriptor().range.overlaps(range));
        overlapping.find(|id| *id != shard)
    }

    /// The replica of this shard.
    pub(crate) fn get(&self, shard: ShardId) -> Option<&Replica> {
        self.replicas.get(&shard)
    }

    /// The same, to change.
    pub(crate) fn get_mut(&mut self, shard: ShardId) -> Option<&mut Replica> {
        self.replicas.get_mut(&shard)
    }

    /// The replicas of a range of shard ids.
    pub(crate) fn range(&self, shards: impl RangeBounds<ShardId>) -> impl Iterator<Item = &Replica> {
        self.replicas.range(shards).map(|(_, replica)| replica)
    }

    /// Every replica.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Replica> {
        self.replicas.values()
    }

    /// Every replica, to change.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Replica> {
        self.replicas.values_mut()
    }

    /// How many replicas there are.
    pub(crate) fn len(&self) -> usize {
        self.replicas.len()
    }

    /// How many of them lead.
    pub(crate) fn leaders(&self) -> u64 {
        self.iter().filter(|r| r.group.leads()).count() as u64
    }

    /// What there is to count, in one walk: with many shards each walk costs.
    pub(crate) fn census(&self) -> Census {
        let mut census = Census::default();
        for replica in self.iter() {
            census.leaders += u64::from(replica.group.leads());
            census.quarantined += u64::from(replica.group.quarantined.is_some());
            census.apply_lag += replica.group.raw.raft.raft_log.committed.saturating_sub(replica.group.applied.index);
        }
        census
    }
}

/// What there is to count.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Census {
    /// How many replicas lead.
    pub(crate) leaders: u64,
    /// How many were quarantined.
    pub(crate) quarantined: u64,
    /// Committed entries that are not yet applied, over all replicas.
    pub(crate) apply_lag: u64,
}
