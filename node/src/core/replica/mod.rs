//! One replica: a group, and one field per operation. The only room that knows more than one
//! operation, and the order in which they hear of what happens.
//!
//! What comes in is a function here, which asks one operation, or tells several in order; what
//! somebody asks for is judged in `asks.rs`, and what the group has ready is handled in `ready.rs`.
//! What every operation is told (an apply, a change of role, a tick, the end) goes through the
//! trait [`Operation`]. After each visit the replica is summed up anew ([`Tally`]).

mod asks;
mod ready;

use crate::core::config::CoreConfig;
use crate::core::context::Context;
use crate::core::effect::Effect;
use crate::core::event::{Built, Delivery, SnapshotId};
use crate::core::group::guard::{self, Verdict};
use crate::core::group::{Group, Sender};
use crate::core::operations::election::Election;
use crate::core::operations::fetch::Fetch;
use crate::core::operations::flow::Flow;
use crate::core::operations::freshness::Freshness;
use crate::core::operations::lease::Lease;
use crate::core::operations::membership::Membership;
use crate::core::operations::read::Read;
use crate::core::operations::snapshot_in::{Claim, SnapshotIn};
use crate::core::operations::snapshot_out::SnapshotOut;
use crate::core::operations::transfer::Transfer;
use crate::core::operations::truncation::Truncation;
use crate::core::operations::write::Write;
use crate::core::operations::{Changes, Operation};
use crate::core::report::ShardReport;
use crate::core::time::Time;
use crate::core::wire::Envelope;
use flotilla_router::{Descriptor, NodeId, Refusal, ReplicaId};
use flotilla_storage::{Applied, LogEntry, LogPosition, Recovered, SnapshotManifest};
use std::sync::Arc;

/// One member of one shard's group, on this node.
pub(crate) struct Replica {
    /// The group.
    pub(crate) group: Group,
    /// Writes that wait, and writes in flight.
    pub(crate) write: Write,
    /// Linearizable reads that wait.
    read: Read,
    /// Until when it may answer reads alone.
    lease: Lease,
    /// How old what it shows may be.
    pub(crate) freshness: Freshness,
    /// Elections.
    pub(crate) election: Election,
    /// The hand-over of leadership.
    pub(crate) transfer: Transfer,
    /// Changes of the group's members.
    pub(crate) membership: Membership,
    /// What is on its way to each follower.
    flow: Flow,
    /// The size of the log, and where it can be cut.
    pub(crate) truncation: Truncation,
    /// Entries on their way from disk.
    fetch: Fetch,
    /// The snapshot for followers that fell behind.
    snapshot_out: SnapshotOut,
    /// The snapshot that becomes its state.
    snapshot_in: SnapshotIn,
    /// What was last summed up of it.
    tally: Tally,
}

/// What of a replica is summed up over all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// It leads.
    pub(crate) leads: bool,
    /// It was quarantined.
    pub(crate) quarantined: bool,
    /// It hands over.
    pub(crate) hands_over: bool,
    /// Something goes on in it that time moves.
    pub(crate) active: bool,
    /// Committed entries that are not yet applied.
    pub(crate) apply_lag: u64,
    /// Bytes of log bodies in memory.
    pub(crate) cache_bytes: u64,
    /// Bytes of log on disk.
    pub(crate) log_bytes: u64,
}

impl Replica {
    /// The replica as it was found on disk.
    pub(crate) fn new(config: &CoreConfig, logger: &slog::Logger, recovered: Recovered) -> Self {
        Self {
            write: Write::default(),
            read: Read::default(),
            lease: Lease::default(),
            freshness: Freshness::default(),
            election: Election::new(&recovered),
            transfer: Transfer::default(),
            membership: Membership::default(),
            flow: Flow::default(),
            truncation: Truncation::new(recovered.last, recovered.log_bytes),
            fetch: Fetch::default(),
            snapshot_out: SnapshotOut::default(),
            snapshot_in: SnapshotIn::default(),
            tally: Tally::default(),
            group: Group::new(config, logger, recovered),
        }
    }

    /// Every operation, in the order in which it hears of what concerns all.
    fn operations(&mut self) -> (&mut Group, [&mut dyn Operation; 12]) {
        let operations: [&mut dyn Operation; 12] = [
            &mut self.election,
            &mut self.write,
            &mut self.read,
            &mut self.lease,
            &mut self.freshness,
            &mut self.transfer,
            &mut self.membership,
            &mut self.flow,
            &mut self.truncation,
            &mut self.fetch,
            &mut self.snapshot_out,
            &mut self.snapshot_in,
        ];
        (&mut self.group, operations)
    }

    /// A message from a peer: checked, then stepped.
    pub(crate) fn message(&mut self, from: NodeId, envelope: Envelope, ctx: &mut Context<'_>) {
        match guard::check(&self.group, from, &envelope, ctx) {
            Verdict::Step => {
                if self.group.sender(from, &envelope) == Sender::Newcomer {
                    self.group.note_newcomer(ReplicaId(envelope.message.from), from);
                }
                self.freshness.note_heard(&envelope, &mut self.group, ctx);
                // An error is raft-rs's way to say that a response came from nobody it knows; there
                // is nothing to do about it.
                let _ = self.flow.step(envelope.message, &mut self.group, ctx);
                ctx.pass.touch(self.group.shard);
            }
            Verdict::Drop => {}
            Verdict::Refuse(_) => ctx.counters.messages_refused += 1,
            Verdict::Quarantine(why) => self.quarantine(why, ctx),
        }
    }

    /// Something that was sent to a node is lost: a follower there is probed.
    pub(crate) fn unreachable(&mut self, node: NodeId, ctx: &mut Context<'_>) {
        if let (true, Some(member)) = (self.group.leads(), self.group.descriptor().on_node(node)) {
            self.group.raw.report_unreachable(member.id.0);
            ctx.pass.touch(self.group.shard);
        }
    }

    /// Proposes what has gathered.
    pub(crate) fn propose(&mut self, ctx: &mut Context<'_>) {
        self.write.propose(&mut self.group, ctx);
    }

    /// Refuses the puts that wait, where there is no room for them any more.
    pub(crate) fn turn_puts_away_without_room(&mut self, ctx: &mut Context<'_>) {
        self.write.turn_puts_away_without_room(&self.group, ctx);
    }

    /// So many bytes of its entries are on the disk.
    pub(crate) fn written(&mut self, bytes: u64, ctx: &mut Context<'_>) {
        self.group.no_more_unpersisted(bytes, ctx);
    }

    /// Entries were applied. What the shard is now was set before.
    pub(crate) fn applied(&mut self, applied: Applied, ctx: &mut Context<'_>) {
        ctx.pass.touch(self.group.shard);
        if let Err(why) = self.group.note_applied(applied.at, &applied.conf_changes, ctx) {
            // Nobody is told that anything was done by a group that has two memberships.
            return self.quarantine(why, ctx);
        }
        let (results, conf_changes) = (applied.results, applied.conf_changes);
        let mut changes = Changes { results, conf_changes };
        let (group, operations) = self.operations();
        operations.into_iter().for_each(|operation| operation.on_applied(group, ctx, &mut changes));
        self.cut_log(ctx);
    }

    /// Entries have come from disk.
    pub(crate) fn entries_fetched(
        &mut self,
        fetch: u64,
        entries: Vec<LogEntry>,
        ctx: &mut Context<'_>,
    ) {
        self.fetch.fetched(fetch, entries, &mut self.group, ctx);
    }

    /// A snapshot for followers is there, or could not be built.
    pub(crate) fn snapshot_built(
        &mut self,
        snapshot: SnapshotId,
        built: Option<Built>,
        ctx: &mut Context<'_>,
    ) {
        self.snapshot_out.built(snapshot, built, &mut self.group, ctx);
    }

    /// A snapshot stream to a follower has ended.
    pub(crate) fn snapshot_sent(
        &mut self,
        to: ReplicaId,
        delivery: Delivery,
        ctx: &mut Context<'_>,
    ) {
        self.snapshot_out.sent(to, delivery, &mut self.group, ctx);
    }

    /// A snapshot from a peer lies verified on disk.
    pub(crate) fn snapshot_staged(
        &mut self,
        (from, staged): (NodeId, SnapshotId),
        envelope: Envelope,
        manifest: &SnapshotManifest,
        claim: Claim,
        ctx: &mut Context<'_>,
    ) {
        self.snapshot_in.staged((from, staged), envelope, manifest, claim, &mut self.group, ctx);
    }

    /// What the shard will be once the snapshot that was accepted is installed.
    pub(crate) fn incoming_descriptor(&self) -> Option<&Arc<Descriptor>> {
        self.snapshot_in.descriptor()
    }

    /// A staged snapshot is this replica's state now. What the shard is now was set before.
    pub(crate) fn snapshot_installed(&mut self, at: LogPosition, ctx: &mut Context<'_>) {
        let shard = self.group.shard;
        let ready = self.snapshot_in.installed(at, &mut self.group);
        let mut passed_over = self.write.take_passed_over(at.index);
        passed_over.extend(self.membership.take_passed_over(at.index));
        self.persisted(ready, ctx);
        self.group.raw.advance_apply_to(at.index);
        ctx.refuse_all(passed_over, &Refusal::OutcomeUnknown { shard });
        self.freshness.note_applied(&self.group);
        if let Err(why) = self.group.check_members() {
            self.quarantine(why, ctx);
        }
    }

    /// The election clock ticks. Whether there may be something ready.
    pub(crate) fn tick(&mut self, ctx: &mut Context<'_>) -> bool {
        self.group.quarantined.is_none() && self.election.tick(&mut self.group, ctx)
    }

    /// The same for what goes on beside elections and heartbeats; only where something does.
    pub(crate) fn tick_operations(&mut self, ctx: &mut Context<'_>) {
        if self.group.quarantined.is_some() {
            return;
        }
        let pinned = self.snapshot_out.pins();
        let (group, operations) = self.operations();
        operations
            .into_iter()
            .filter(|o| !o.is_idle())
            .for_each(|operation| operation.on_tick(group, ctx));
        self.hand_over_to_heir(ctx);
        if pinned.is_some() && self.snapshot_out.pins().is_none() {
            self.cut_log(ctx);
        }
    }

    /// Drops from memory what is not needed soon; all that is applied, where memory is short.
    pub(crate) fn evict(&mut self, is_short: bool, ctx: &Context<'_>) {
        self.group.evict(ctx.liveness, is_short);
        if self.write.pending() == 0 {
            self.rest();
        }
    }

    /// What is to be summed up of it, if that changed: what it was, and what it is.
    pub(crate) fn take_tally(&mut self) -> Option<(Tally, Tally)> {
        let now = self.tally();
        (now != self.tally).then(|| (std::mem::replace(&mut self.tally, now), now))
    }

    /// Nothing is written to it just now. A buffer for every follower of every group that is idle
    /// would add up.
    pub(crate) fn rest(&mut self) {
        if self.group.leads() {
            self.group.raw.raft.maybe_free_inflight_buffers();
        }
    }

    /// What is to be summed up of it.
    pub(crate) fn tally(&mut self) -> Tally {
        let cache_bytes = self.group.raw.store().cache_bytes();
        let (_, operations) = self.operations();
        let busy = operations.into_iter().any(|operation| !operation.is_idle());
        let group = &self.group;
        Tally {
            leads: group.leads(),
            quarantined: group.quarantined.is_some(),
            hands_over: self.transfer.is_under_way(),
            active: cache_bytes > 0 || busy && group.quarantined.is_none(),
            apply_lag: group.raw.raft.raft_log.committed.saturating_sub(group.applied.index),
            cache_bytes,
            log_bytes: self.truncation.bytes(),
        }
    }

    /// Forgets the front of a log that is too large.
    pub(crate) fn cut_log(&mut self, ctx: &mut Context<'_>) {
        if self.truncation.outgrew_its_pin(ctx) {
            self.snapshot_out.unpin(&mut self.group, ctx);
        }
        self.truncation.cut(self.snapshot_out.pins(), &mut self.group, ctx);
    }

    /// Quarantines the replica, where going on with it would break a promise: it neither votes, nor
    /// leads, nor applies, for as long as the process runs. Other shards go on.
    pub(crate) fn quarantine(&mut self, why: String, ctx: &mut Context<'_>) {
        self.group.quarantined = Some(why.clone());
        ctx.pass.effects.push(Effect::Quarantined { shard: self.group.shard, why });
        let (group, operations) = self.operations();
        operations.into_iter().for_each(|operation| operation.end(group, ctx));
    }

    /// Whether its commands are there and have come no further for long.
    pub(crate) fn stands_still(&self, now: Time, patience: Time) -> bool {
        self.write.stands_still(&self.group, now, patience)
    }

    /// Where it stands, for people.
    pub(crate) fn report(&self) -> ShardReport {
        self.group.report(self.truncation.bytes(), self.write.pending())
    }
}
