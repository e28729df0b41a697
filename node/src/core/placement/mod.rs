//! Where leadership lies, across shards: [`balance`] spreads it over the nodes, [`drain`] gives it
//! away before the node goes down. Both only say who shall have what; each hand-over is its shard's
//! own.

pub(crate) mod balance;
pub(crate) mod drain;

use flotilla_router::{ReplicaId, ShardId};

/// A shard that is led here, and who shall lead it.
pub(crate) type HandOver = (ShardId, ReplicaId);
