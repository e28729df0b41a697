//! A core sets a shard aside when somebody has broken a promise of raft: a disk that forgot what
//! was synced, a peer that lies. Disks and peers keep their promises here, so it must never happen.

use super::Holds;
use flotilla_router::{NodeId, ShardId};

/// A node sets a shard aside.
pub(crate) fn set_aside(node: NodeId, shard: ShardId, why: &str) -> Holds {
    Err(format!("node {node} sets shard {shard} aside: {why}"))
}
