//! The one place that creates and destroys replicas, and says which keys they own.
//!
//! A replica comes to be when the node starts and finds it on disk. (A split, a message from a group that this node was added
//! to, and a removal will come here too, and to no other file, because each must be judged against all ranges of the node.)
//!
//! **Invariant.** The ranges of live replicas on a node are disjoint.

use super::compaction::Compaction;
use super::config::CoreConfig;
use super::elections::{self, Elections};
use super::flow::Flow;
use super::freshness::Freshness;
use super::log::LogView;
use super::membership::conf_state;
use super::proposals::Proposals;
use super::reads::Reads;
use super::ready::ReadyQueue;
use super::replica::Replica;
use super::snapshots::Snapshots;
use bytes::Bytes;
use flotilla_router::{Descriptor, KeyRange, ShardId};
use flotilla_storage::Recovered;
use raft::RawNode;
use std::collections::BTreeMap;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

/// All replicas of the node, in the order of shard ids.
#[derive(Default)]
pub(super) struct Registry {
    replicas: BTreeMap<ShardId, Replica>,
    /// User shards by the start of their range.
    by_start: BTreeMap<Bytes, ShardId>,
}

impl Registry {
    /// Brings a replica to life as it was found on disk.
    ///
    /// # Panics
    /// If its range overlaps another's: two owners of a key must never both run.
    pub(super) fn create(&mut self, config: &CoreConfig, logger: &slog::Logger, recovered: Recovered) {
        let (shard, id) = (recovered.descriptor.id, recovered.replica);
        if let Some(other) = self.overlapping(shard, &recovered.descriptor.range) {
            panic!("shard {shard} overlaps shard {other} on this node: {:?}", recovered.descriptor);
        }
        if !shard.is_meta() {
            self.by_start.insert(recovered.descriptor.range.start.clone(), shard);
        }
        let logger = logger.new(slog::o!("shard" => shard.0, "replica" => id.0));
        let view = LogView::recovered(&recovered, conf_state(&recovered.descriptor));
        let raw = RawNode::new(&config.raft(id, recovered.applied.index), view, &logger)
            .expect("the configuration was validated, and recovery checked commit and applied");
        let mut replica = Replica {
            shard,
            id,
            first_term: raw.raft.term,
            raw,
            handed_out: recovered.applied.index,
            applied: recovered.applied,
            ready: ReadyQueue::new(recovered.hard_state, recovered.last.index),
            proposals: Proposals::default(),
            reads: Reads::default(),
            freshness: Freshness::default(),
            elections: Elections::new(&recovered),
            snapshots: Snapshots::default(),
            compaction: Compaction::new(recovered.last, recovered.log_bytes),
            flow: Flow::default(),
            quarantined: None,
            descriptor: Arc::new(recovered.descriptor),
        };
        elections::set_timeout(&mut replica, config);
        self.replicas.insert(shard, replica);
    }

    /// The shard is what this descriptor says, from now on.
    ///
    /// # Panics
    /// If its range overlaps another's.
    pub(super) fn change(&mut self, descriptor: Arc<Descriptor>) {
        let shard = descriptor.id;
        assert_eq!(self.overlapping(shard, &descriptor.range), None, "the new range of shard {shard} overlaps another's");
        let Some(replica) = self.replicas.get_mut(&shard) else { return };
        if !shard.is_meta() {
            self.by_start.remove(&replica.descriptor.range.start);
            self.by_start.insert(descriptor.range.start.clone(), shard);
        }
        replica.descriptor = descriptor;
    }

    /// A live replica of another shard that is about to own a key of `range`, by a snapshot that was accepted.
    pub(super) fn about_to_overlap(&self, shard: ShardId, range: &KeyRange) -> Option<ShardId> {
        if shard.is_meta() {
            return None;
        }
        let others = self.replicas.values().filter(|replica| replica.shard != shard && !replica.shard.is_meta());
        let mut incoming = others.filter_map(|replica| replica.snapshots.incoming_descriptor());
        incoming.find(|descriptor| descriptor.range.overlaps(range)).map(|descriptor| descriptor.id)
    }

    /// A live replica of another shard that owns a key of `range`. The meta shard's keys are in a space of their own.
    pub(super) fn overlapping(&self, shard: ShardId, range: &KeyRange) -> Option<ShardId> {
        if shard.is_meta() {
            return None;
        }
        let end = range.end.clone().map_or(Bound::Unbounded, Bound::Excluded);
        // Disjoint ranges in the order of their starts: only those that start below the end of `range` can overlap it, and of
        // them all but the last few end before it starts.
        let below = self.by_start.range((Bound::Unbounded, end)).rev().map(|(_, id)| *id);
        let mut overlapping = below.take_while(|id| self.replicas[id].descriptor.range.overlaps(range));
        overlapping.find(|id| *id != shard)
    }

    /// The replica of this shard.
    pub(super) fn get(&self, shard: ShardId) -> Option<&Replica> {
        self.replicas.get(&shard)
    }

    /// The same, to change.
    pub(super) fn get_mut(&mut self, shard: ShardId) -> Option<&mut Replica> {
        self.replicas.get_mut(&shard)
    }

    /// Every shard that has a replica here.
    pub(super) fn shards(&self) -> impl Iterator<Item = ShardId> + '_ {
        self.replicas.keys().copied()
    }

    /// The replicas of a range of shard ids.
    pub(super) fn range(&self, shards: impl RangeBounds<ShardId>) -> impl Iterator<Item = &Replica> {
        self.replicas.range(shards).map(|(_, replica)| replica)
    }

    /// Every replica.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Replica> {
        self.replicas.values()
    }

    /// Every replica, to change.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Replica> {
        self.replicas.values_mut()
    }

    /// How many replicas there are.
    pub(super) fn len(&self) -> usize {
        self.replicas.len()
    }

    /// How many of them lead.
    pub(super) fn leaders(&self) -> u64 {
        self.iter().filter(|r| r.leads()).count() as u64
    }

    /// What there is to count, in one walk: with many shards each walk costs.
    pub(super) fn census(&self) -> Census {
        let mut census = Census::default();
        for replica in self.iter() {
            census.leaders += u64::from(replica.leads());
            census.quarantined += u64::from(replica.quarantined.is_some());
            census.apply_lag += replica.raw.raft.raft_log.committed.saturating_sub(replica.applied.index);
        }
        census
    }
}

/// What there is to count.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Census {
    /// How many replicas lead.
    pub(super) leaders: u64,
    /// How many were set aside.
    pub(super) quarantined: u64,
    /// Committed entries that are not yet applied, over all replicas.
    pub(super) apply_lag: u64,
}
