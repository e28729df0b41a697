//! What a group has ready reaches those whom it concerns: messages leave, reads are confirmed,
//! entries are scheduled, and every operation hears of a change of role.

use super::Replica;
use crate::core::context::Context;
use crate::core::effect::Effect;
use crate::core::group::outgoing::{announced_snapshot, cut};
use crate::core::group::ready::Taken;
use crate::core::wire::Envelope;
use flotilla_router::{Refusal, ReplicaId};
use raft::eraftpb::{Entry, Message, MessageType};

impl Replica {
    /// Handles everything that the group has ready, and what it asked for on the way.
    pub(crate) fn advance(&mut self, ctx: &mut Context<'_>) {
        if self.group.quarantined.is_some() {
            return;
        }
        self.read.send_context(&mut self.group, ctx);
        while let Some(taken) = self.group.take_ready(ctx) {
            self.handle_ready(taken, ctx);
        }
        self.group.set_timeout(ctx.config);
        self.flow.bound(&mut self.group, ctx);
        if let Some(change) = self.election.notice(&self.group, ctx) {
            let (group, operations) = self.operations();
            operations.into_iter().for_each(|operation| operation.on_role(group, ctx, change));
        }
        // What was confirmed while it led is in the snapshot that is being installed, too; but not
        // before all of that is there.
        if !self.group.installing {
            self.lease.check(&self.group, ctx);
            self.read.serve(&mut self.group, ctx);
        }
        self.take_asked(ctx);
    }

    fn handle_ready(&mut self, taken: Taken, ctx: &mut Context<'_>) {
        for message in taken.messages {
            self.send(message, ctx);
        }
        for state in taken.read_states {
            let sent_at = self.read.confirm(&state.request_ctx, state.index);
            self.lease.renew(sent_at, ctx.config.lease());
        }
        if let Some((at, ready)) = taken.restored {
            self.truncation.reset(at.index);
            return self.snapshot_in.install(at, ready, &mut self.group, ctx);
        }
        self.truncation.appended(&taken.appended);
        if !taken.committed.is_empty() {
            self.schedule(&taken.committed, ctx);
        }
    }

    /// Sends a message of the group: with the frame of its node, or, a snapshot's announcement,
    /// with the snapshot.
    fn send(&mut self, mut message: Message, ctx: &mut Context<'_>) {
        let to = ReplicaId(message.to);
        let Some(node) = self.group.node_of(to) else { return };
        if message.get_msg_type() == MessageType::MsgAppend {
            if !self.group.put_in_place(&mut message) {
                return;
            }
            self.flow.sent(to, &message, &self.group, ctx.now);
        }
        while let Some(first) = cut(&mut message, ctx.config.raft.message_bytes_max) {
            let envelope = self.envelope(first, ctx);
            ctx.pass.send(node, envelope);
        }
        let envelope = self.envelope(message, ctx);
        if envelope.message.get_msg_type() == MessageType::MsgSnapshot {
            let snapshot = announced_snapshot(&envelope.message);
            self.snapshot_out.sending(to, snapshot);
            ctx.pass.effects.push(Effect::SendSnapshot {
                to: node,
                replica: to,
                snapshot,
                envelope,
            });
        } else {
            ctx.pass.send(node, envelope);
        }
    }

    /// A message with what raft does not know about it.
    fn envelope(&self, message: Message, ctx: &Context<'_>) -> Envelope {
        Envelope {
            shard: self.group.shard,
            epoch: self.group.descriptor().epoch,
            committed: self.group.raw.raft.raft_log.committed,
            timing: self.freshness.timing(&self.group, &message, ctx.pass.stamp, ctx.now),
            message,
        }
    }

    /// Schedules committed entries to be applied, and settles proposals that were overruled.
    fn schedule(&mut self, committed: &[Entry], ctx: &mut Context<'_>) {
        let (write, membership) = (&mut self.write, &mut self.membership);
        let (now, mut lost) = (ctx.now, Vec::new());
        let scheduled = self.group.schedule(committed, ctx, |at| {
            lost.extend(membership.note_committed(at));
            let ours = write.is_committed(at, &mut lost);
            if ours {
                write.moved(now);
            }
            ours
        });
        let (shard, leader) = (self.group.shard, self.group.leader_node());
        ctx.refuse_all(lost, &Refusal::NotLeader { shard, leader });
        // Those who were told above wait no more; those who still do are told now.
        if let Err(why) = scheduled {
            self.quarantine(why, ctx);
        }
    }

    /// Acts on what raft-rs asked of the log while it was not looking: entries on disk, a snapshot.
    fn take_asked(&mut self, ctx: &mut Context<'_>) {
        self.group.raw.mut_store().drop_fetched();
        let (wanted, behind) = self.group.raw.mut_store().take_asked();
        for wanted in wanted {
            self.fetch.ask(wanted, &self.group, ctx);
        }
        for follower in behind {
            self.snapshot_out.ask(ReplicaId(follower), &mut self.group, ctx);
        }
    }

    /// Readys up to `number` are persisted.
    pub(crate) fn persisted(&mut self, number: u64, ctx: &mut Context<'_>) {
        if let Some(messages) = self.group.persisted(number) {
            // However long that took: from here on it is the others who are waited for.
            self.write.moved(ctx.now);
            for message in messages {
                self.send(message, ctx);
            }
        }
        ctx.pass.touch(self.group.shard);
    }
}
