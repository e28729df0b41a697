//! What comes from peers: messages, checked and stepped, and word that one can't be reached.

use super::wire::Envelope;
use super::{Node, check, elections};
use flotilla_router::NodeId;

impl Node {
    /// A message from a peer: checked, then stepped.
    pub(super) fn message(&mut self, from: NodeId, envelope: Envelope) {
        let shard = envelope.shard;
        let context = check::Context {
            unapplied_bytes: self.unapplied_bytes,
            unpersisted_bytes: self.outbox.unpersisted_bytes,
            ticks: self.ticks,
            config: &self.config,
        };
        let Some(replica) = self.registry.get_mut(shard) else {
            self.counters.messages_refused += 1;
            return;
        };
        match check::check(replica, from, &envelope, &context) {
            check::Verdict::Step => {
                self.note_heard(shard, &envelope);
                let replica = self.registry.get_mut(shard).expect("looked up just now");
                // An error is raft-rs's way to say that a response came from nobody it knows; there is nothing to do about it.
                let _ = replica.step_with_flow(envelope.message, (self.now, self.ticks), &self.config);
                elections::set_timeout(replica, &self.config);
                self.touch(shard);
            }
            check::Verdict::Drop => {}
            check::Verdict::Refuse(_) => self.counters.messages_refused += 1,
            check::Verdict::Quarantine(why) => self.quarantine(shard, why),
        }
    }

    /// Something that was sent to a node is lost: its followers are probed.
    pub(super) fn node_unreachable(&mut self, node: NodeId) {
        let shards: Vec<_> = self.registry.shards().collect();
        for shard in shards {
            let replica = self.registry.get_mut(shard).expect("listed just now");
            if let (true, Some(member)) = (replica.leads(), replica.descriptor.on_node(node)) {
                replica.raw.report_unreachable(member.id.0);
                self.dirty.insert(shard);
            }
        }
    }
}
