//! Whose turn it is to be sent to a node as a snapshot: few at a time, since no node takes in more.

use flotilla_router::{NodeId, ShardId};
use std::collections::BTreeMap;

/// Snapshots for one node at a time, of all shards: it takes no more in.
const TURNS_MAX: usize = 2;

/// Shards of which a snapshot is being built for a node, or sent to it, and the tick at which that
/// was last seen.
#[derive(Default)]
pub(crate) struct Turns(BTreeMap<(NodeId, ShardId), u64>);

impl Turns {
    /// Whether it is a shard's turn to be sent to a node; from here on it is, if so. Whoever has
    /// not been seen for `ticks_max` is done.
    pub(crate) fn take(&mut self, to: NodeId, shard: ShardId, now: u64, ticks_max: u64) -> bool {
        self.0.retain(|_, seen| *seen + ticks_max >= now);
        let others = self.0.keys().filter(|(node, other)| *node == to && *other != shard).count();
        let turn = others < TURNS_MAX;
        if turn {
            self.0.insert((to, shard), now);
        }
        turn
    }

    /// A shard's snapshot is still being built or sent.
    pub(crate) fn seen(&mut self, shard: ShardId, now: u64) {
        self.0.iter_mut().filter(|((_, of), _)| *of == shard).for_each(|(_, seen)| *seen = now);
    }

    /// A shard's snapshot has arrived at a node.
    pub(crate) fn end(&mut self, to: NodeId, shard: ShardId) {
        self.0.remove(&(to, shard));
    }
}
