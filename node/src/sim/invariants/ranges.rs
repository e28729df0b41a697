//! Live ranges on a node are disjoint, since keys carry no shard prefix; over the cluster they
//! cover the key space, once.

use super::{Holds, hold};
use flotilla_router::{Descriptor, KeyRange, NodeId, ShardId};
use std::collections::BTreeMap;

/// What each node holds.
#[derive(Default)]
pub(crate) struct Ranges {
    held: BTreeMap<NodeId, BTreeMap<ShardId, KeyRange>>,
}

impl Ranges {
    /// A node says what a shard of its own is now.
    pub(crate) fn published(&mut self, node: NodeId, descriptor: &Descriptor) -> Holds {
        let held = self.held.entry(node).or_default();
        if descriptor.on_node(node).is_none() {
            held.remove(&descriptor.id);
            return Ok(());
        }
        for (shard, range) in held.iter().filter(|(shard, _)| **shard != descriptor.id) {
            let id = descriptor.id;
            hold!(
                !range.overlaps(&descriptor.range),
                "node {node}: shard {id} overlaps shard {shard}"
            );
        }
        held.insert(descriptor.id, descriptor.range.clone());
        Ok(())
    }

    /// A node went down; it will say again what it holds.
    pub(crate) fn went_down(&mut self, node: NodeId) {
        self.held.remove(&node);
    }

    /// All shards together.
    pub(crate) fn end(&self, shards: &[Descriptor]) -> Holds {
        let mut ranges: Vec<_> =
            shards.iter().filter(|d| !d.id.is_meta()).map(|d| &d.range).collect();
        ranges.sort_by(|a, b| a.start.cmp(&b.start));
        hold!(
            ranges.first().is_some_and(|first| first.start.is_empty()),
            "no shard owns the first key"
        );
        hold!(ranges.last().is_some_and(|last| last.end.is_none()), "no shard owns the last keys");
        for pair in ranges.windows(2) {
            let meet = pair[0].end.as_ref() == Some(&pair[1].start);
            hold!(meet, "{:?} and {:?} are neighbours and do not meet", pair[0], pair[1]);
        }
        Ok(())
    }
}
