//! The one place that tells the core's effects apart: whoever drives a [`Node`](super::Node)
//! implements [`Hands`], with a method for each effect, and [`carry_out`] calls them in the order
//! of the pass.
//!
//! The shell, the simulation and the golden scripts do with an effect what their world asks for.
//! What they must not differ in stands here: every effect is carried out, in its order, and what
//! shards are is published before anybody is answered. A new effect is a new arm of the `match`
//! below, and then the compiler asks each of them for its method.

use super::effect::{Done, Effect};
use super::event::{SnapshotId, Ticket};
use super::wire::{Beat, Envelope};
use flotilla_router::call::Staleness;
use flotilla_router::{Descriptor, KeyRange, NodeId, Refusal, ReplicaId, ShardId};
use flotilla_storage::{ApplyWork, HardState, LogBatch};
use std::ops::ControlFlow;
use std::sync::Arc;

/// What carries effects out. Each method is the effect of its name; [`Effect`] says what it owes.
pub trait Hands {
    /// Sees an effect right before it is carried out. A test that has seen a promise broken breaks
    /// the pass off here, before what follows can hide it.
    fn witness(&mut self, _effect: &Effect) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    /// Publishes all descriptors of the pass at once: whoever keeps a table of them makes one new
    /// table, and whoever is answered later in the pass already finds the shards as they are now.
    fn publish_descriptors(&mut self, descriptors: Vec<Arc<Descriptor>>);

    /// Sends a pass's messages to one node.
    fn send(&mut self, to: NodeId, messages: Vec<Envelope>, beat: Option<Beat>);

    /// Writes to the log.
    fn persist(&mut self, write: u64, batch: LogBatch);

    /// Applies committed entries.
    fn apply(&mut self, work: Vec<ApplyWork>);

    /// Lets reads look.
    fn read(
        &mut self,
        tickets: Vec<Ticket>,
        descriptor: Arc<Descriptor>,
        staleness: Option<Staleness>,
    );

    /// Reads the entries `low..high` from disk.
    fn fetch_entries(&mut self, fetch: u64, shard: ShardId, low: u64, high: u64, bytes_max: u64);

    /// Builds a snapshot.
    fn build_snapshot(&mut self, shard: ShardId, snapshot: SnapshotId);

    /// Forgets a snapshot that was built here.
    fn drop_snapshot(&mut self, snapshot: SnapshotId);

    /// Streams a snapshot to the node that holds `replica`.
    fn send_snapshot(
        &mut self,
        to: NodeId,
        replica: ReplicaId,
        snapshot: SnapshotId,
        envelope: Envelope,
    );

    /// Installs a snapshot that came from another node.
    fn install_snapshot(
        &mut self,
        replica: (ShardId, ReplicaId),
        staged: SnapshotId,
        hard_state: HardState,
        clear: Vec<KeyRange>,
    );

    /// Forgets a snapshot that came from another node.
    fn discard_staged(&mut self, staged: SnapshotId);

    /// Publishes who leads a shard.
    fn publish_leader(&mut self, shard: ShardId, leader: Option<NodeId>);

    /// Answers whoever holds the ticket.
    fn reply(&mut self, ticket: Ticket, result: Result<Done, Refusal>);

    /// Tells whoever asked for it that the node is drained.
    fn drained(&mut self);

    /// Calls a person to a shard that was quarantined.
    fn quarantined(&mut self, shard: ShardId, why: String);
}

/// Carries out the effects of one pass.
pub fn carry_out(effects: Vec<Effect>, hands: &mut impl Hands) {
    let descriptors: Vec<_> = effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::PublishDescriptor { descriptor } => Some(descriptor.clone()),
            _ => None,
        })
        .collect();
    if !descriptors.is_empty() {
        hands.publish_descriptors(descriptors);
    }
    for effect in effects {
        if hands.witness(&effect).is_break() {
            return;
        }
        match effect {
            Effect::Send { to, messages, beat } => hands.send(to, messages, beat),
            Effect::Persist { write, batch } => hands.persist(write, batch),
            Effect::Apply { work } => hands.apply(work),
            Effect::Read { tickets, descriptor, staleness } => {
                hands.read(tickets, descriptor, staleness)
            }
            Effect::FetchEntries { fetch, shard, low, high, bytes_max } => {
                hands.fetch_entries(fetch, shard, low, high, bytes_max);
            }
            Effect::BuildSnapshot { shard, snapshot } => hands.build_snapshot(shard, snapshot),
            Effect::DropSnapshot { snapshot } => hands.drop_snapshot(snapshot),
            Effect::SendSnapshot { to, replica, snapshot, envelope } => {
                hands.send_snapshot(to, replica, snapshot, envelope);
            }
            Effect::InstallSnapshot { shard, replica, staged, hard_state, at: _, clear } => {
                hands.install_snapshot((shard, replica), staged, hard_state, clear);
            }
            Effect::DiscardStaged { staged } => hands.discard_staged(staged),
            Effect::PublishLeader { shard, leader } => hands.publish_leader(shard, leader),
            // Published before, with the others of the pass.
            Effect::PublishDescriptor { .. } => {}
            Effect::Reply { ticket, result } => hands.reply(ticket, result),
            Effect::Drained => hands.drained(),
            Effect::Quarantined { shard, why } => hands.quarantined(shard, why),
        }
    }
}
