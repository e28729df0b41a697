//! Applied only grows: in each life a node applies every index once and in order; a snapshot takes
//! it forward, never back. A crash may take back what was not synced, but never what a restart had
//! found before that crash.

use super::{Holds, hold};
use flotilla_router::{NodeId, ShardId};
use flotilla_storage::{LogPosition, Recovered};
use std::collections::BTreeMap;

/// Up to where each replica has applied.
#[derive(Default)]
pub(crate) struct AppliedGrows {
    applied: BTreeMap<(NodeId, ShardId), u64>,
    /// What each replica last started with.
    started: BTreeMap<(NodeId, ShardId), u64>,
}

impl AppliedGrows {
    /// Entries up to `at` were applied. Returns up to where the replica was before.
    pub(crate) fn applied(
        &mut self,
        node: NodeId,
        shard: ShardId,
        at: LogPosition,
    ) -> Result<u64, String> {
        let before = self.applied.insert((node, shard), at.index).unwrap_or(0);
        hold!(
            before < at.index,
            "node {node} had applied {before} in shard {shard}, and is at {} now",
            at.index
        );
        Ok(before)
    }

    /// A snapshot at `at` was installed.
    pub(crate) fn installed(&mut self, node: NodeId, shard: ShardId, at: LogPosition) -> Holds {
        let before = self.applied.insert((node, shard), at.index).unwrap_or(0);
        let index = at.index;
        hold!(
            before <= index,
            "node {node} had applied {before} in shard {shard}, and installs a snapshot at {index}"
        );
        Ok(())
    }

    /// A node starts.
    pub(crate) fn starts(&mut self, node: NodeId, recovered: &[Recovered]) -> Holds {
        self.applied.retain(|(of, _), _| *of != node);
        for replica in recovered {
            let (shard, index) = (replica.descriptor.id, replica.applied.index);
            self.applied.insert((node, shard), index);
            let before = self.started.insert((node, shard), index).unwrap_or(0);
            hold!(
                before <= index,
                "node {node} started with {before} applied in shard {shard}, and starts with \
                 {index} now"
            );
        }
        Ok(())
    }
}
