//! Snapshots for followers that fell behind the truncated log: the sender's half.
//!
//! A log can't grow for ever: once entries are applied their effect is in the data, and the front
//! of the log is forgotten. A follower that was away for longer than the log remembers can't be
//! told what happened any more; it is told how things stand. A **snapshot** is the shard's data as
//! of one index, with the term of that entry and the members of that moment, in files. The follower
//! throws away what it has, data and log, and goes on from there as if it had applied all of it.
//!
//! What makes it hard is that everything goes on meanwhile. The snapshot is of a moment that is
//! past when it is built, and further past when it arrives: the log above it must still be there,
//! or the follower needs another one at once. The members may change between building and sending.
//! It takes long, and takes disk and network from everybody else at both ends. And at the other end
//! it replaces what stands there, in steps that a power cut may separate: an install is marked
//! before it begins, and completed by a restart, since there is no way back once the old data are
//! gone.
//!
//! ```text
//! raft-rs finds no entries ─▶ ask ─▶ its turn? ─▶ BuildSnapshot ─▶ built, offered
//! ─▶ raft-rs: MsgSnapshot ─▶ SendSnapshot ─▶ SnapshotSent ─▶ raft-rs hears of it, well or not
//! ```
//!
//! *Turns*: few snapshots at a time are made for one node, since it takes few in at a time; a
//! follower whose turn it is not asks again with each of its answers to a heartbeat. What failed is
//! tried again after a pause that grows, since neither a full disk nor a follower that says no
//! changes its mind within a moment. A node to which others send as many as it takes in is asked
//! again soon.
//!
//! **Invariant.** While a snapshot is on its way, the log is not truncated above it, or it would be
//! useless on arrival; unless the log grew to a multiple of its share meanwhile: then the snapshot
//! is given up, and a new one is built when it is asked for. The receiver's half is
//! [`snapshot_in`](super::snapshot_in).

use super::{Changes, Operation, RoleChange};
use crate::core::context::Context;
use crate::core::effect::Effect;
use crate::core::event::{Built, Delivery, SnapshotId};
use crate::core::group::Group;
use crate::core::group::membership::conf_state;
use flotilla_router::ReplicaId;
use raft::SnapshotStatus;
use raft::eraftpb::Snapshot;
use std::collections::BTreeMap;

/// Ticks for which a built snapshot is kept for another follower.
const KEEP_TICKS: usize = 200;
/// The longest pause after a snapshot that failed, in milliseconds.
const PAUSE_MAX_MS: u64 = 10_000;

/// The snapshot of one shard that followers are sent.
#[derive(Default)]
pub(crate) struct SnapshotOut {
    outgoing: Option<Outgoing>,
    /// Who is being sent which.
    sending: BTreeMap<ReplicaId, SnapshotId>,
    /// How many failed in a row.
    failures: u32,
    /// Until which tick nothing is tried again.
    paused_until: u64,
}

/// A snapshot for followers.
struct Outgoing {
    id: SnapshotId,
    /// Where it stands, and what the shard was there, once it is built.
    built: Option<Built>,
    /// What was applied when it was asked for: it will stand there or above. `None` once the log
    /// was cut above it, for having grown too long meanwhile.
    floor: Option<u64>,
    idle_ticks: usize,
}

impl SnapshotOut {
    /// The index above which the log must stay, for the sake of a snapshot on its way.
    pub(crate) fn pins(&self) -> Option<u64> {
        self.outgoing
            .as_ref()
            .and_then(|o| o.built.as_ref().map_or(o.floor, |built| Some(built.at.index)))
    }

    /// The log grew too long behind it: it pins it no more. One that is built is given up. It takes
    /// longer than the log may grow, or never arrives; a stream under way breaks off, or is of no
    /// use; either way raft-rs hears how it ended, and asks for a snapshot from where the log
    /// begins then. Of one that is still being built it shows when it is there whether it is of any
    /// use.
    pub(crate) fn unpin(&mut self, group: &mut Group, ctx: &mut Context<'_>) {
        if let Some(outgoing) = &mut self.outgoing {
            outgoing.floor = None;
            if outgoing.built.is_some() {
                self.drop_built(group, ctx);
            }
        }
    }

    /// raft-rs has a follower that needs a snapshot, and none to send to it.
    pub(crate) fn ask(&mut self, follower: ReplicaId, group: &mut Group, ctx: &mut Context<'_>) {
        let shard = group.shard;
        let Some(to) = group.descriptor().replica(follower).map(|replica| replica.node) else {
            return;
        };
        let seen_max = ctx.config.raft.election_ticks as u64;
        if self.paused_until > ctx.ticks || !ctx.budgets.turns.take(to, shard, ctx.ticks, seen_max)
        {
            return;
        }
        let offered = group.raw.store().offers_snapshot();
        match &self.outgoing {
            // Under way, or there, and for this follower, too: raft-rs will see so when it asks
            // again. Whoever was added after it was built finds itself in none of its members, and
            // can't use it.
            Some(Outgoing { built, .. })
                if built.as_ref().is_none_or(|built| {
                    offered && built.descriptor.replica(follower).is_some()
                }) =>
            {
                return group.raw.mut_store().grant_snapshot(follower.0, true);
            }
            // On its way to another follower, which still reads its files. This one asks again.
            Some(_) if !self.sending.is_empty() => return,
            // There is one that is too old.
            Some(outgoing) => ctx.pass.effects.push(Effect::DropSnapshot { snapshot: outgoing.id }),
            None => {}
        }
        let id = ctx.ids.snapshot();
        self.outgoing =
            Some(Outgoing { id, built: None, floor: Some(group.applied.index), idle_ticks: 0 });
        group.raw.mut_store().offer_snapshot(None);
        group.raw.mut_store().grant_snapshot(follower.0, true);
        ctx.pass.effects.push(Effect::BuildSnapshot { shard, snapshot: id });
    }

    /// A snapshot is ready to be sent, or could not be built, or its files were spoiled; then
    /// raft-rs will ask again.
    pub(crate) fn built(
        &mut self,
        snapshot: SnapshotId,
        built: Option<Built>,
        group: &mut Group,
        ctx: &mut Context<'_>,
    ) {
        if built.is_none() {
            self.failed(ctx);
        }
        let wanted = self.outgoing.as_ref().is_some_and(|outgoing| outgoing.id == snapshot);
        // A follower goes on from it by log, which may have been cut above it.
        let useful =
            built.filter(|built| wanted && built.at.index >= group.raw.store().truncated().index);
        let Some(built) = useful else {
            if wanted {
                self.outgoing = None;
                // It may have been offered, and spoiled since.
                group.raw.mut_store().offer_snapshot(None);
            }
            ctx.pass.effects.push(Effect::DropSnapshot { snapshot });
            return;
        };
        let mut offered = Snapshot::default();
        offered.set_data(snapshot.0.to_be_bytes().to_vec().into());
        let metadata = offered.mut_metadata();
        metadata.index = built.at.index;
        metadata.term = built.at.term;
        // Not the members of today: a change may have been applied meanwhile, and whoever gets it
        // compares.
        metadata.set_conf_state(conf_state(&built.descriptor));
        group.raw.mut_store().offer_snapshot(Some(offered));
        self.outgoing = Some(Outgoing {
            id: snapshot,
            floor: Some(built.at.index),
            built: Some(built),
            idle_ticks: 0,
        });
    }

    /// A snapshot leaves for a follower.
    pub(crate) fn sending(&mut self, to: ReplicaId, snapshot: SnapshotId) {
        self.sending.insert(to, snapshot);
        if let Some(outgoing) = &mut self.outgoing {
            outgoing.idle_ticks = 0;
        }
    }

    /// A snapshot stream has ended.
    pub(crate) fn sent(
        &mut self,
        to: ReplicaId,
        delivery: Delivery,
        group: &mut Group,
        ctx: &mut Context<'_>,
    ) {
        let shard = group.shard;
        self.sending.remove(&to);
        // Whoever needs another one waits for its turn.
        group.raw.mut_store().grant_snapshot(to.0, false);
        let is_taken = delivery == Delivery::Taken;
        let status = if is_taken { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
        group.raw.report_snapshot(to.0, status);
        ctx.pass.touch(shard);
        match delivery {
            Delivery::Taken => {
                self.failures = 0;
                if let Some(to) = group.descriptor().replica(to) {
                    ctx.budgets.turns.end(to.node, shard);
                }
            }
            // Others send to it, too. It is asked again soon, and this shard keeps its turn
            // meanwhile.
            Delivery::Busy => {
                self.paused_until = ctx.ticks + ctx.config.raft.election_ticks as u64 / 2;
                ctx.budgets.turns.seen(shard, ctx.ticks);
            }
            Delivery::Failed => self.failed(ctx),
        }
    }

    /// Waits before the next snapshot, longer each time. The shard keeps its turn for a while:
    /// whoever failed tries again before others begin.
    fn failed(&mut self, ctx: &Context<'_>) {
        self.failures = self.failures.saturating_add(1);
        let pause = 1u64.checked_shl(self.failures).unwrap_or(u64::MAX);
        self.paused_until = ctx.ticks + pause.min(PAUSE_MAX_MS / ctx.config.raft.tick_ms);
    }

    fn drop_built(&mut self, group: &mut Group, ctx: &mut Context<'_>) {
        if let Some(outgoing) = self.outgoing.take() {
            group.raw.mut_store().offer_snapshot(None);
            ctx.pass.effects.push(Effect::DropSnapshot { snapshot: outgoing.id });
        }
    }
}

impl Operation for SnapshotOut {
    fn on_applied(&mut self, _: &mut Group, _: &mut Context<'_>, _: &mut Changes) {}
    fn on_role(&mut self, _: &mut Group, _: &mut Context<'_>, _: RoleChange) {}

    /// Drops a built snapshot that nobody has needed for a while. It held the log, which the
    /// composer cuts then: a shard that is idle now would keep it until its next write.
    fn on_tick(&mut self, group: &mut Group, ctx: &mut Context<'_>) {
        let idle = self.sending.is_empty();
        let Some(outgoing) = &mut self.outgoing else { return };
        if !idle || outgoing.built.is_none() {
            ctx.budgets.turns.seen(group.shard, ctx.ticks);
        }
        if outgoing.built.is_none() {
            return;
        }
        outgoing.idle_ticks = if idle { outgoing.idle_ticks + 1 } else { 0 };
        if outgoing.idle_ticks >= KEEP_TICKS {
            self.drop_built(group, ctx);
        }
    }

    fn end(&mut self, _: &mut Group, _: &mut Context<'_>) {
        // A stream under way breaks off at the other end, and is reported then.
    }

    fn is_idle(&self) -> bool {
        self.outgoing.is_none()
    }
}
