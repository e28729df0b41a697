//! A shard is set aside on this node, where going on with it would break a promise: never the process, and no other shard.

use super::Node;
use super::effect::Effect;
use flotilla_router::{Refusal, ShardId};

impl Node {
    /// Sets one shard aside: it neither votes, nor leads, nor applies, until a person has looked.
    pub(super) fn quarantine(&mut self, shard: ShardId, why: String) {
        let Some(replica) = self.registry.get_mut(shard) else { return };
        replica.quarantined = Some(why.clone());
        self.waiting_bytes -= replica.proposals.waiting_bytes();
        let tickets = replica.take_waiting_tickets();
        let transfer = replica.elections.transfer.take();
        self.outbox.effects.push(Effect::Quarantined { shard, why });
        self.outbox.effects.push(Effect::PublishLeader { shard, leader: None });
        if let Some(ticket) = transfer.and_then(|t| t.ticket) {
            let refusal = Refusal::Conflict { why: format!("shard {shard} was set aside on this node") };
            self.outbox.effects.push(Effect::TransferDone { ticket, result: Err(refusal) });
        }
        self.bound_flow(shard);
        for (ticket, proposed) in tickets {
            let refusal = if proposed { Refusal::Unknown { shard } } else { Refusal::NotHosted { shard } };
            self.outbox.effects.push(Effect::Reply { ticket, shard, result: Err(refusal) });
        }
    }
}
