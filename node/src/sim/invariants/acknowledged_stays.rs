//! Every acknowledged write is there. At the moment of the acknowledgement its entry must survive a
//! crash of all nodes at once on a quorum of the shard's voters, in a joint group of both sets
//! (this is what an fsync is for); at the end the key must be at its revision, or above.
//!
//! The voters are those that the node which acknowledges takes the shard to have, or those of the
//! change before: a quorum of these has committed the entry, where the change was applied with it.

use super::{Holds, hold};
use bytes::Bytes;
use flotilla_router::{Command, Descriptor, NodeId, Op, Replica, ShardId};
use flotilla_storage::{LogPosition, MemoryEngine, log, read};
use std::collections::BTreeMap;

/// Where every written value stands.
#[derive(Default)]
pub(crate) struct AcknowledgedStays {
    places: BTreeMap<Bytes, (ShardId, LogPosition)>,
    /// What every shard has been, by membership epoch.
    ever: BTreeMap<(ShardId, u64), Descriptor>,
    /// The membership epoch that each node takes each shard to be at.
    epochs: BTreeMap<(NodeId, ShardId), u64>,
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

    /// A node says what a shard is.
    pub(crate) fn published(&mut self, node: NodeId, descriptor: &Descriptor) {
        let (shard, epoch) = (descriptor.id, descriptor.epoch.membership);
        self.epochs.insert((node, shard), epoch);
        self.ever.entry((shard, epoch)).or_insert_with(|| descriptor.clone());
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
