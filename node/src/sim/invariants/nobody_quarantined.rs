//! A core quarantines a shard when somebody has broken a promise of raft: a disk that forgot what
//! was synced, a peer that lies. Disks and peers keep their promises here, so it must never happen.

use super::Holds;
use flotilla_router::{NodeId, ShardId};

/// A node quarantines a shard.
pub(crate) fn quarantined(node: NodeId, shard: ShardId, why: &str) -> Holds {
    Err(format!("node {node} quarantines shard {shard}: {why}"))
}
