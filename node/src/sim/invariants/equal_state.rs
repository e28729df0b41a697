//! Equal data at equal applied index: the hash of a shard's data is a function of how far it is
//! applied, on every node and in every life of it.

use super::{Holds, hold};
use flotilla_router::{Descriptor, NodeId, ShardId};
use flotilla_storage::{MemoryEngine, StateHash, read};
use std::collections::BTreeMap;

/// The data at each applied index, and who showed it first.
#[derive(Default)]
pub(crate) struct EqualState {
    hashes: BTreeMap<(ShardId, u64), (NodeId, StateHash)>,
}

impl EqualState {
    /// A node's data, as its readers see it.
    pub(crate) fn compare(
        &mut self,
        node: NodeId,
        descriptor: &Descriptor,
        disk: &MemoryEngine,
    ) -> Holds {
        let shard = descriptor.id;
        let hash = read::hash(disk, descriptor)
            .map_err(|error| format!("shard {shard} of node {node} can't be read: {error}"))?;
        let (first, known) =
            *self.hashes.entry((shard, hash.applied.index)).or_insert((node, hash));
        let index = hash.applied.index;
        hold!(
            known == hash,
            "shard {shard} at applied index {index}: node {node} has {hash:?}, node {first} had \
             {known:?}"
        );
        Ok(())
    }
}
