//! What comes in and concerns more than one replica, or needs to be looked at before one hears of
//! it: questions, writes that are durable, entries that were applied, snapshots from peers.

use super::Node;
use super::context::Context;
use super::effect::{Done, Effect};
use super::event::{Ask, SnapshotId, Ticket};
use super::replica::Replica;
use super::report::ShardReport;
use super::time::Time;
use super::wire::Envelope;
use flotilla_router::{Descriptor, NodeId, Refusal, ShardId};
use flotilla_storage::{Applied, LogPosition, SnapshotManifest};
use std::ops::Bound;
use std::sync::Arc;

impl Node {
    /// Somebody asks, and waits for the answer.
    pub(super) fn ask(&mut self, ticket: Ticket, ask: Ask, deadline: Time) {
        self.counters.commands += u64::from(matches!(ask, Ask::Write { .. }));
        let result = match (ask.shard(), ask) {
            (_, Ask::Inspect { after, limit }) => Ok(Done::Report(self.inspect(after, limit))),
            (None, _) => return,
            (Some(shard), ask) => {
                match self.with(shard, |replica, ctx| replica.ask(ticket, ask, deadline, ctx)) {
                    Some(()) => return,
                    None => Err(Refusal::NotHosted { shard }),
                }
            }
        };
        self.pass.effects.push(Effect::Reply { ticket, result });
    }

    /// Reports on the shards with ids above `after`, at most `limit`.
    fn inspect(&self, after: ShardId, limit: usize) -> Vec<ShardReport> {
        let range = (Bound::Excluded(after), Bound::Unbounded);
        self.replicas.range(range).take(limit).map(Replica::report).collect()
    }

    /// A write is durable.
    pub(super) fn persisted(&mut self, write: u64) {
        let done = self.pass.persisted(write);
        for (shard, bytes) in done.bytes {
            self.with(shard, |replica, ctx| replica.written(bytes, ctx));
        }
        for (shard, id, number) in done.readies {
            self.with(shard, |replica, ctx| {
                if replica.group.id == id {
                    replica.persisted(number, ctx);
                }
            });
        }
        done.shards.into_iter().for_each(|shard| self.pass.touch(shard));
    }

    /// Entries were applied; a change that they came to is known before anything else happens.
    pub(super) fn applied(&mut self, applied: Vec<Applied>) {
        self.pass.applied();
        for mut applied in applied {
            if let Some(descriptor) = applied.descriptor.take() {
                self.change(Arc::new(descriptor));
            }
            self.with(applied.shard, |replica, ctx| replica.applied(applied, ctx));
        }
    }

    /// A snapshot from a peer lies verified on disk.
    pub(super) fn snapshot_staged(
        &mut self,
        (from, staged): (NodeId, SnapshotId),
        envelope: Envelope,
        manifest: &SnapshotManifest,
    ) {
        let shard = envelope.shard;
        let claim = self.replicas.claim(shard, &manifest.descriptor.range);
        let act = |replica: &mut Replica, ctx: &mut Context<'_>| {
            replica.snapshot_staged((from, staged), envelope, manifest, claim, ctx);
        };
        if self.with(shard, act).is_none() {
            self.pass.effects.push(Effect::DiscardStaged { staged });
        }
    }

    /// A staged snapshot has become a shard's data and log.
    pub(super) fn snapshot_installed(&mut self, shard: ShardId, at: LogPosition) {
        if let Some(descriptor) =
            self.replicas.get(shard).and_then(Replica::incoming_descriptor).cloned()
        {
            self.change(descriptor);
        }
        self.with(shard, |replica, ctx| replica.snapshot_installed(at, ctx));
    }

    /// The shard is what this descriptor says, from now on.
    fn change(&mut self, descriptor: Arc<Descriptor>) {
        if self.replicas.change(descriptor.clone()) {
            self.pass.effects.push(Effect::PublishDescriptor { descriptor });
        }
    }
}
