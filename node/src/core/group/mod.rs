//! One raft group's member on this node, without any operation: what raft-rs holds, what the shard
//! is, how far it is applied; the log that raft-rs sees, the order in which a Ready is handled, the
//! guard in front of `step`, the timeouts.
//!
//! Operations work on a group; a group knows of none of them. What several of them must know of a
//! replica stands here as a plain fact: whether it was quarantined, whether a snapshot is becoming
//! its state, in which term it tried to hand over.

pub(crate) mod entries;
pub(crate) mod guard;
pub(crate) mod log;
pub(crate) mod membership;
pub(crate) mod outgoing;
mod queue;
pub(crate) mod ready;
pub(crate) mod report;
pub(crate) mod timeouts;

use super::config::CoreConfig;
use super::liveness::Liveness;
use super::wire::Envelope;
use flotilla_router::{Descriptor, NodeId, ReplicaId, ShardId};
use flotilla_storage::{LogPosition, Recovered};
use log::LogView;
use membership::conf_state;
use queue::ReadyQueue;
use raft::eraftpb::{Message, MessageType};
use raft::{ProgressState, RawNode, StateRole};
use std::collections::BTreeMap;
use std::sync::Arc;

/// One member of one shard's group.
pub(crate) struct Group {
    /// The shard.
    pub(crate) shard: ShardId,
    /// The Raft id.
    pub(crate) id: ReplicaId,
    /// What the shard is, as of `applied`. Only `replicas.rs` sets it.
    descriptor: Arc<Descriptor>,
    /// The term that it had when it started.
    pub(crate) first_term: u64,
    /// The group, as raft-rs sees it.
    pub(crate) raw: RawNode<LogView>,
    /// Up to where the data are applied.
    pub(crate) applied: LogPosition,
    /// Up to where entries are scheduled to be applied.
    pub(crate) scheduled: u64,
    /// Readys that are not yet persisted, and the messages that wait for them.
    pub(crate) ready: ReadyQueue,
    /// Whether a snapshot is becoming this replica's state. Until it has, the group takes no
    /// message and no tick.
    pub(crate) installing: bool,
    /// The node's tick at which this replica last heard a leader; that of its start, before it has:
    /// whom it stood by then it does not know.
    pub(crate) heard_leader_at: u64,
    /// The last term in which a hand-over was tried: no lease in it.
    pub(crate) transferred_in_term: u64,
    /// Why the replica was quarantined, if it was.
    pub(crate) quarantined: Option<String>,
    /// Members that this replica's descriptor does not know yet, and where each was heard from.
    newcomers: BTreeMap<ReplicaId, NodeId>,
}

/// Who speaks, as far as this replica's descriptor and the envelope's epoch tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sender {
    /// A replica of the group, on its node.
    Member,
    /// A replica that the descriptor does not know, of a group that changed its members since: this
    /// one was away.
    Newcomer,
    /// A replica of another node, or of none that the group has or will have.
    Stranger,
}

/// Entries by which a replica may be behind and yet follow closely. A few more arrive while it is
/// looked at.
pub(crate) const CLOSE_ENTRIES: u64 = 64;
/// A group changes few members at a time.
const NEWCOMERS_MAX: usize = 8;
/// How many changes of members a replica may have missed: one a second for more than a month. A
/// number out of the air shows nothing.
const EPOCHS_AHEAD_MAX: u64 = 1 << 22;

impl Group {
    /// The group as it was found on disk.
    pub(crate) fn new(config: &CoreConfig, logger: &slog::Logger, recovered: Recovered) -> Self {
        let (shard, id) = (recovered.descriptor.id, recovered.replica);
        let logger = logger.new(slog::o!("shard" => shard.0, "replica" => id.0));
        let view = LogView::recovered(&recovered, conf_state(&recovered.descriptor));
        let raw = RawNode::new(&config.raft(id, recovered.applied.index), view, &logger)
            .expect("the configuration was validated, and recovery checked commit and applied");
        let mut group = Self {
            shard,
            id,
            first_term: raw.raft.term,
            raw,
            scheduled: recovered.applied.index,
            applied: recovered.applied,
            ready: ReadyQueue::new(recovered.hard_state, recovered.last.index),
            installing: false,
            heard_leader_at: 0,
            transferred_in_term: 0,
            quarantined: None,
            newcomers: BTreeMap::new(),
            descriptor: Arc::new(recovered.descriptor),
        };
        group.set_timeout(config);
        group
    }

    /// What the shard is.
    pub(crate) fn descriptor(&self) -> &Arc<Descriptor> {
        &self.descriptor
    }

    /// The shard is what this descriptor says, from now on. For `replicas.rs` alone, which judges
    /// it against all others.
    pub(crate) fn set_descriptor(&mut self, descriptor: Arc<Descriptor>) {
        self.descriptor = descriptor;
        self.newcomers.clear();
    }

    /// Who says `envelope`, which came from a node by its certificate. The certificate proves the
    /// node, and no more: a known replica speaks from its own node alone. A replica that is not
    /// known here may have been added while this one was away (thesis §4.1: a leader that is not in
    /// a server's configuration is heard), which its epoch shows; at the same epoch both know the
    /// same members. Such a one may lead or ask for votes, in this term or a later one; from nobody
    /// else is anything to be learnt. Which node it is on is noted once, and it speaks from there
    /// alone.
    pub(crate) fn sender(&self, node: NodeId, envelope: &Envelope) -> Sender {
        let (message, replica) = (&envelope.message, ReplicaId(envelope.message.from));
        match self.descriptor.replica(replica) {
            Some(member) if member.node == node => return Sender::Member,
            Some(_) => return Sender::Stranger,
            None => {}
        }
        let ahead = envelope.epoch.membership.checked_sub(self.descriptor.epoch.membership);
        let is_later = ahead.is_some_and(|ahead| (1..=EPOCHS_AHEAD_MAX).contains(&ahead));
        let elsewhere = self.newcomers.get(&replica).is_some_and(|known| *known != node);
        if is_later && !elsewhere && leads_or_asks(message) && message.term >= self.raw.raft.term {
            return Sender::Newcomer;
        }
        Sender::Stranger
    }

    /// A newcomer is heard, and is answered where it spoke from. Of more than a group may have the
    /// first is forgotten.
    pub(crate) fn note_newcomer(&mut self, replica: ReplicaId, node: NodeId) {
        if self.newcomers.len() >= NEWCOMERS_MAX && !self.newcomers.contains_key(&replica) {
            self.newcomers.pop_first();
        }
        self.newcomers.insert(replica, node);
    }

    /// The node of a member, be it one that the descriptor does not know yet.
    pub(crate) fn node_of(&self, replica: ReplicaId) -> Option<NodeId> {
        let known = self.descriptor.replica(replica).map(|member| member.node);
        known.or_else(|| self.newcomers.get(&replica).copied())
    }

    /// Whether this replica leads, as far as it knows.
    pub(crate) fn leads(&self) -> bool {
        self.raw.raft.state == StateRole::Leader && self.quarantined.is_none()
    }

    /// The node of the leader, as far as this replica knows. One that was quarantined hears of no
    /// election any more.
    pub(crate) fn leader_node(&self) -> Option<NodeId> {
        if self.quarantined.is_some() {
            return None;
        }
        self.node_of(ReplicaId(self.raw.raft.leader_id))
    }

    /// Whether a follower of this leader follows closely: entry by entry, heard of lately, and
    /// behind by little more than what is on its way.
    pub(crate) fn follows_closely(&self, follower: ReplicaId) -> bool {
        let raft = &self.raw.raft;
        raft.prs().get(follower.0).is_some_and(|progress| {
            progress.state == ProgressState::Replicate
                && progress.recent_active
                && progress.matched + CLOSE_ENTRIES > raft.raft_log.last_index()
        })
    }

    /// Gives a message to raft-rs. An error is its way to say that a response came from nobody it
    /// knows, or that nothing was appended.
    pub(crate) fn step(&mut self, message: Message, config: &CoreConfig) -> raft::Result<()> {
        let outcome = self.raw.step(message);
        self.set_timeout(config);
        outcome
    }

    /// Bytes of entries that are proposed, or committed, and not yet applied here.
    pub(crate) fn under_way_bytes(&self) -> u64 {
        self.raw.raft.uncommitted_size() as u64 + self.ready.unapplied_bytes
    }

    /// Whether so much is committed and not yet applied that nothing more is taken in; `all_bytes`
    /// are those of all groups. One group may have no more than the bound leaves for the others:
    /// one that stands still takes a part of it, and never all.
    pub(crate) fn apply_lags(&self, all_bytes: u64, config: &CoreConfig) -> bool {
        let left = config.log.unapplied_bytes_max.checked_sub(all_bytes);
        let own = self.ready.unapplied_bytes;
        own > 0 && left.is_none_or(|left| own > left)
    }

    /// The last index that every live follower is known to hold; everything, for a follower.
    pub(crate) fn needed_by_live_followers(&self, liveness: &Liveness) -> u64 {
        if !self.leads() {
            return u64::MAX;
        }
        let followers = self
            .descriptor
            .replicas
            .iter()
            .filter(|r| r.id != self.id && liveness.is_alive(r.node));
        followers
            .filter_map(|r| Some(self.raw.raft.prs().get(r.id.0)?.matched))
            .min()
            .unwrap_or(u64::MAX)
    }

    /// Drops bodies from memory that are not needed soon; all that are applied, where memory is
    /// short.
    pub(crate) fn evict(&mut self, liveness: &Liveness, is_short: bool) {
        if self.raw.store().cache_bytes() > 0 {
            let applied = self.applied.index;
            let index = if is_short {
                applied
            } else {
                applied.min(self.needed_by_live_followers(liveness))
            };
            self.raw.mut_store().evict(index);
        }
    }
}

/// Whether a leader says this, or somebody who would lead.
fn leads_or_asks(message: &Message) -> bool {
    use MessageType::{MsgAppend, MsgHeartbeat, MsgRequestPreVote, MsgRequestVote, MsgSnapshot};
    matches!(
        message.get_msg_type(),
        MsgAppend | MsgHeartbeat | MsgRequestVote | MsgRequestPreVote | MsgSnapshot
    )
}
