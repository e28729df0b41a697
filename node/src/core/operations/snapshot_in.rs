//! A snapshot that becomes this replica's state: the receiver's half.
//!
//! ```text
//! SnapshotStaged (files verified on disk) ─▶ judged ─▶ step ─▶ raft-rs wants it?
//! ─▶ gate 1 of `ready` ─▶ InstallSnapshot ─▶ SnapshotInstalled ─▶ applied, acknowledged
//! ```
//!
//! **Invariants.** Every staged snapshot is installed or discarded. While one is being installed,
//! the group takes no message and no tick, and whoever would read sees nothing whole. The sender's
//! half is [`snapshot_out`](super::snapshot_out).

use super::{Changes, Operation, RoleChange};
use crate::core::context::Context;
use crate::core::effect::Effect;
use crate::core::event::SnapshotId;
use crate::core::group::guard::{is_absurd, is_absurd_index};
use crate::core::group::membership::conf_state;
use crate::core::group::{Group, Sender};
use crate::core::wire::Envelope;
use flotilla_router::{Descriptor, KeyRange, NodeId, ReplicaId};
use flotilla_storage::{LogPosition, NUMBER_MAX, SnapshotManifest};
use raft::eraftpb::MessageType;
use std::sync::Arc;

/// A snapshot from the leader, if one was accepted.
#[derive(Default)]
pub(crate) struct SnapshotIn {
    incoming: Option<Incoming>,
}

/// What all replicas of the node together say to the range of a snapshot.
pub(crate) enum Claim {
    /// Another one owns a key of it, or is about to.
    Taken,
    /// Nobody does. Before it is installed, these ranges are cleared: what the shard has here and
    /// will have, less what others own.
    Free(Vec<KeyRange>),
}

struct Incoming {
    staged: SnapshotId,
    at: LogPosition,
    /// What the shard is at that index.
    descriptor: Arc<Descriptor>,
    /// What is cleared before it is installed.
    clear: Vec<KeyRange>,
    /// The Ready that it completes, once it is being installed.
    ready: Option<u64>,
}

impl SnapshotIn {
    /// What the shard will be once the snapshot that was accepted is installed.
    pub(crate) fn descriptor(&self) -> Option<&Arc<Descriptor>> {
        self.incoming.as_ref().map(|incoming| &incoming.descriptor)
    }

    /// A snapshot from a peer lies verified on disk: judges it, and lets raft-rs say whether it
    /// wants it; where not, the shell is told to discard it.
    pub(crate) fn staged(
        &mut self,
        (from, staged): (NodeId, SnapshotId),
        envelope: Envelope,
        manifest: &SnapshotManifest,
        claim: Claim,
        group: &mut Group,
        ctx: &mut Context<'_>,
    ) {
        let honest = is_honest(from, &envelope, manifest, group);
        ctx.counters.messages_refused += u64::from(!honest);
        let clear = match claim {
            Claim::Free(clear) if honest && group.quarantined.is_none() && !group.installing => {
                clear
            }
            _ => return ctx.pass.effects.push(Effect::DiscardStaged { staged }),
        };
        ctx.pass.touch(group.shard);
        if group.sender(from, &envelope) == Sender::Newcomer {
            group.note_newcomer(ReplicaId(envelope.message.from), from);
        }
        let _ = group.step(envelope.message, ctx.config);
        if group.raw.snap().is_some_and(|s| s.get_metadata().index == manifest.at.index) {
            group.installing = true;
            let descriptor = Arc::new(manifest.descriptor.clone());
            self.incoming =
                Some(Incoming { staged, at: manifest.at, descriptor, clear, ready: None });
        } else {
            ctx.pass.effects.push(Effect::DiscardStaged { staged });
        }
    }

    /// raft-rs has taken the snapshot up: hands it to the shell.
    pub(crate) fn install(
        &mut self,
        at: LogPosition,
        ready: u64,
        group: &mut Group,
        ctx: &mut Context<'_>,
    ) {
        let incoming = self.incoming.as_mut().expect("raft-rs restores only what was accepted");
        assert_eq!(
            incoming.at, at,
            "raft-rs restores another snapshot than the one that was accepted"
        );
        incoming.ready = Some(ready);
        // Whatever was staged for the old log would be written over the new one.
        let bytes = ctx.pass.forget_writes(group.shard);
        group.no_more_unpersisted(bytes, ctx);
        ctx.pass.effects.push(Effect::InstallSnapshot {
            shard: group.shard,
            replica: group.id,
            staged: incoming.staged,
            hard_state: group.ready.hard_state(),
            at,
            clear: std::mem::take(&mut incoming.clear),
        });
    }

    /// The snapshot is this replica's state now; the Ready that this completes.
    pub(crate) fn installed(&mut self, at: LogPosition, group: &mut Group) -> u64 {
        let incoming =
            self.incoming.take().expect("an installation was reported that was not under way");
        group.note_installed(at);
        incoming.ready.expect("it was handed out with its Ready")
    }
}

/// Whether a snapshot is what an honest leader would send. An invalid conf state is fatal in
/// raft-rs, so it is compared with the descriptor, which was decoded and checked.
fn is_honest(
    from: NodeId,
    envelope: &Envelope,
    manifest: &SnapshotManifest,
    group: &Group,
) -> bool {
    let message = &envelope.message;
    let metadata = message.get_snapshot().get_metadata();
    let at = LogPosition { index: metadata.index, term: metadata.term };
    let raft = &group.raw.raft;
    message.get_msg_type() == MessageType::MsgSnapshot
        && message.to == group.id.0
        && message.term > 0
        // A leader that was added while this replica was away stands in what it sends.
        && match group.sender(from, envelope) {
            Sender::Member => true,
            Sender::Newcomer => {
                let (theirs, ours) = (manifest.descriptor.epoch, group.descriptor().epoch);
                theirs.membership > ours.membership
                    && theirs.range >= ours.range
                    && manifest
                        .descriptor
                        .replica(ReplicaId(message.from))
                        .is_some_and(|replica| replica.node == from)
            }
            Sender::Stranger => false,
        }
        && manifest.descriptor.id == group.shard
        && manifest.at == at
        && message.term <= NUMBER_MAX
        && !is_absurd(message.term, group.first_term, raft.term)
        // One leader per term.
        && (message.term != raft.term || [0, message.from].contains(&raft.leader_id))
        && at.index <= NUMBER_MAX
        && !is_absurd_index(at.index, raft.raft_log.last_index())
        // Writes go on above it.
        && manifest.revision.0 <= NUMBER_MAX
        && (1..=message.term).contains(&at.term)
        && manifest.descriptor.is_sound()
        && *metadata.get_conf_state() == conf_state(&manifest.descriptor)
        && manifest.descriptor.replica(group.id).is_some()
}

impl Operation for SnapshotIn {
    fn on_applied(&mut self, _: &mut Group, _: &mut Context<'_>, _: &mut Changes) {}
    fn on_role(&mut self, _: &mut Group, _: &mut Context<'_>, _: RoleChange) {}
    fn on_tick(&mut self, _: &mut Group, _: &mut Context<'_>) {}

    /// An install that was handed out goes on to its end, and is reported; one that was not will
    /// never be.
    fn end(&mut self, group: &mut Group, ctx: &mut Context<'_>) {
        if let Some(Incoming { staged, .. }) =
            self.incoming.take_if(|incoming| incoming.ready.is_none())
        {
            group.installing = false;
            ctx.pass.effects.push(Effect::DiscardStaged { staged });
        }
    }

    fn is_idle(&self) -> bool {
        self.incoming.is_none()
    }
}
