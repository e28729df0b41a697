//! One leader per shard and term (thesis §3.4, election safety).
//!
//! Only a leader appends, heartbeats, sends snapshots and hands over; whoever does so leads in the
//! message's term.

use super::{Holds, hold};
use crate::core::Envelope;
use flotilla_router::{NodeId, ShardId};
use raft::eraftpb::MessageType;
use std::collections::BTreeMap;

/// Who led.
#[derive(Default)]
pub(crate) struct OneLeader {
    leaders: BTreeMap<(ShardId, u64), NodeId>,
}

impl OneLeader {
    /// A node sends a message.
    pub(crate) fn message(&mut self, node: NodeId, envelope: &Envelope) -> Holds {
        use MessageType::{MsgAppend, MsgHeartbeat, MsgSnapshot, MsgTimeoutNow};
        let message = &envelope.message;
        if matches!(message.get_msg_type(), MsgAppend | MsgHeartbeat | MsgSnapshot | MsgTimeoutNow)
        {
            let (shard, term) = (envelope.shard, message.term);
            let first = *self.leaders.entry((shard, term)).or_insert(node);
            hold!(first == node, "nodes {first} and {node} both lead shard {shard} in term {term}");
        }
        Ok(())
    }
}
