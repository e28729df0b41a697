//! Replica ids never come back: an id belongs to one shard on one node, and once its shard's
//! descriptor has lost it, it is never part of a descriptor of a later membership again.

use super::{Holds, hold};
use flotilla_router::{Descriptor, NodeId, ReplicaId, ShardId};
use std::collections::BTreeMap;

/// Every id that was ever seen.
#[derive(Default)]
pub(crate) struct ReplicaIds {
    owners: BTreeMap<ReplicaId, (ShardId, NodeId)>,
    /// The membership epoch from which on an id was gone.
    gone: BTreeMap<ReplicaId, u64>,
}

impl ReplicaIds {
    /// A node says who is a member of a shard.
    pub(crate) fn published(&mut self, node: NodeId, descriptor: &Descriptor) -> Holds {
        let (shard, membership) = (descriptor.id, descriptor.epoch.membership);
        for replica in &descriptor.replicas {
            let id = replica.id;
            let owner = *self.owners.entry(id).or_insert((shard, replica.node));
            hold!(
                owner == (shard, replica.node),
                "replica id {id} is {owner:?}, and for node {node} {:?}",
                (shard, replica.node)
            );
            let back = self.gone.get(&id).is_some_and(|gone| membership >= *gone);
            hold!(
                !back,
                "replica id {id} of shard {shard} was removed, and is back for node {node}"
            );
        }
        let of_shard = self.owners.iter().filter(|(_, (of, _))| *of == shard).map(|(id, _)| *id);
        let missing: Vec<_> = of_shard.filter(|id| descriptor.replica(*id).is_none()).collect();
        for id in missing {
            let gone = self.gone.entry(id).or_insert(membership);
            *gone = membership.min(*gone);
        }
        Ok(())
    }
}
