//! Every acknowledged write is there. At the moment of the acknowledgement its entry must survive a
//! crash of all nodes at once on a quorum of the shard's voters, in a joint group of both sets
//! (this is what an fsync is for); at the end the key must be at its revision, or above.
//!
//! The voters are those that the node which acknowledges takes the shard to have. Of what it had
//! committed when it applied the change, and of nothing above, they may be those before it.

use super::{Holds, hold};
use bytes::Bytes;
use flotilla_router::{Command, Descriptor, NodeId, Op, Replica, ShardId};
use flotilla_storage::{ApplyWork, LogPosition, MemoryEngine, log, read};
use std::collections::{BTreeMap, BTreeSet};

/// Where every written value stands.
#[derive(Default)]
pub(crate) struct AcknowledgedStays {
    places: BTreeMap<Bytes, (ShardId, LogPosition)>,
    /// What every shard has been, by membership epoch.
    ever: BTreeMap<(ShardId, u64), Descriptor>,
    /// The membership epoch that each node takes each shard to be at.
    epochs: BTreeMap<(NodeId, ShardId), u64>,
    /// Up to where each node has handed out each shard's entries.
    handed_out: BTreeMap<(NodeId, ShardId), u64>,
    /// Up to where they may have been committed by the voters before the last change.
    by_those_before: BTreeMap<(NodeId, ShardId), u64>,
    /// The shards that changed in this pass: what it commits may have been committed before.
    changed_now: BTreeSet<ShardId>,
    /// The last acknowledged place of every shard.
    acknowledged: BTreeMap<ShardId, LogPosition>,
}

impl AcknowledgedStays {
    /// An entry was committed.
    pub(crate) fn committed(&mut self, shard: ShardId, at: LogPosition, commands: &[Command]) {
        for command in commands {
            if let Op::Put { value, .. } = command.op() {
                self.places.insert(value.clone(), (shard, at));
            }
        }
    }

    /// A node's pass begins.
    pub(crate) fn pass_begins(&mut self) {
        self.changed_now.clear();
    }

    /// A node hands committed entries out.
    pub(crate) fn handed_out(&mut self, node: NodeId, work: &ApplyWork) {
        let place = (node, work.shard);
        let last = work.entries.last().map_or(0, |apply| apply.entry.at.index);
        self.handed_out.insert(place, last);
        if self.changed_now.contains(&work.shard) {
            self.by_those_before.insert(place, last);
        }
    }

    /// A node says what a shard is.
    pub(crate) fn published(&mut self, node: NodeId, descriptor: &Descriptor) -> Holds {
        let (shard, epoch) = (descriptor.id, descriptor.epoch.membership);
        self.epochs.insert((node, shard), epoch);
        self.changed_now.insert(shard);
        let handed_out = self.handed_out.get(&(node, shard)).copied().unwrap_or_default();
        self.by_those_before.insert((node, shard), handed_out);
        let known = self.ever.entry((shard, epoch)).or_insert_with(|| descriptor.clone());
        let (here, there) = (&descriptor.replicas, &known.replicas);
        hold!(here == there, "shard {shard}: node {node} has {here:?}, another one {there:?}");
        Ok(())
    }

    /// What a node last said that a shard is.
    pub(crate) fn told_by(&self, node: NodeId, shard: ShardId) -> Option<&Descriptor> {
        self.ever.get(&(shard, *self.epochs.get(&(node, shard))?))
    }

    /// A client was told by a node that `value` was written. Where it stands.
    pub(crate) fn acknowledged(
        &mut self,
        node: NodeId,
        value: &Bytes,
        disks: &BTreeMap<NodeId, MemoryEngine>,
    ) -> Result<(ShardId, LogPosition), String> {
        let Some(&(shard, at)) = self.places.get(value) else {
            return Err("a write is acknowledged that no node was told to apply".into());
        };
        let survives = |voter: Replica| survives(&disks[&voter.node], shard, at);
        let epoch = self.epochs[&(node, shard)];
        let descriptor = &self.ever[&(shard, epoch)];
        let before = self.ever.get(&(shard, epoch - 1));
        let before = before.filter(|_| at.index <= self.by_those_before[&(node, shard)]);
        let survives_by = |descriptor: &Descriptor| descriptor.has_quorum(survives);
        if !survives_by(descriptor) && !before.is_some_and(survives_by) {
            let (voters, durable) = descriptor.weakest_set(survives);
            return Err(format!(
                "shard {shard}, {at:?}: acknowledged, and would survive a crash on {durable} of \
                 {voters}"
            ));
        }
        let last = self.acknowledged.entry(shard).or_default();
        *last = at.max(*last);
        Ok((shard, at))
    }

    /// Everything is healed.
    pub(crate) fn end(
        &self,
        descriptors: &BTreeMap<ShardId, Descriptor>,
        disks: &BTreeMap<NodeId, MemoryEngine>,
    ) -> Holds {
        for (shard, at) in &self.acknowledged {
            for voter in descriptors[shard].voters_now() {
                let node = voter.node;
                let applied =
                    read::applied(&disks[&node], *shard).map_err(|error| error.to_string())?;
                hold!(
                    applied >= *at,
                    "shard {shard}: node {node} is at {applied:?} at the end; {at:?} was \
                     acknowledged"
                );
            }
        }
        Ok(())
    }
}

/// Whether an entry, or data that it is part of, would be there after a crash.
fn survives(disk: &MemoryEngine, shard: ShardId, at: LogPosition) -> bool {
    let durable = disk.durable();
    let in_log = || {
        log::entries(&durable, shard, at.index, at.index + 1, u64::MAX)
            .is_ok_and(|e| e.first().is_some_and(|e| e.at == at))
    };
    in_log() || read::applied(&durable, shard).is_ok_and(|applied| applied >= at)
}
