//! Snapshots: how a follower that fell behind the truncated log gets the shard as a whole.
//!
//! ```text
//! leader    raft-rs finds no entries ─▶ want ─▶ its turn? ─▶ BuildSnapshot ─▶ built, offered ─▶ raft-rs: MsgSnapshot ─▶ SendSnapshot
//!           ─▶ SnapshotSent ─▶ raft-rs hears of it, well or not, always
//! follower  SnapshotStaged (files verified on disk) ─▶ judged ─▶ step ─▶ raft-rs wants it? ─▶ gate 1 of `ready`
//!           ─▶ InstallSnapshot ─▶ SnapshotInstalled ─▶ applied, acknowledged
//! ```
//!
//! *Turns*: few snapshots at a time are made for one node, since it takes few in at a time; a follower whose turn it is not asks again with
//! each of its answers to a heartbeat. What failed is tried again after a pause that grows, since neither a full disk nor a follower
//! that says no changes its mind within a moment. A node to which others send as many as it takes in is asked again soon.
//!
//! **Invariants.** While a snapshot is on its way, the log is not truncated above it, or it would be useless on arrival; unless the log
//! grew to a multiple of its share meanwhile: then the snapshot is given up, and a new one is built when it is asked for. While one
//! is being installed, the group takes no message and no tick. Every staged snapshot is installed or discarded.

use super::Node;
use super::check::{is_absurd, is_absurd_index};
use super::effect::Effect;
use super::event::{Delivery, SnapshotId};
use super::membership::conf_state;
use super::wire::Envelope;
use flotilla_router::{Descriptor, NodeId, Refusal, ReplicaId, ShardId};
use flotilla_storage::{LogPosition, NUMBER_MAX, SnapshotManifest};
use raft::SnapshotStatus;
use raft::eraftpb::{MessageType, Snapshot};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Ticks for which a built snapshot is kept for another follower.
const KEEP_TICKS: usize = 200;

/// Snapshots for one node at a time, of all shards: it takes no more in.
const STREAMS_MAX: usize = 2;
/// The longest pause after a snapshot that failed, in milliseconds.
const PAUSE_MAX_MS: u64 = 10_000;

/// Whose turn it is: shards of which a snapshot is being built for a node, or sent to it, and when that was last seen.
#[derive(Default)]
pub(super) struct Streams(BTreeMap<(NodeId, ShardId), u64>);

impl Streams {
    /// Whether it is a shard's turn to be sent to a node; from here on it is, if so. Whoever has not been seen for `ticks_max` is done.
    fn take_turn(&mut self, to: NodeId, shard: ShardId, now: u64, ticks_max: u64) -> bool {
        self.0.retain(|_, seen| *seen + ticks_max >= now);
        let others = self.0.keys().filter(|(node, other)| *node == to && *other != shard).count();
        let turn = others < STREAMS_MAX;
        if turn {
            self.0.insert((to, shard), now);
        }
        turn
    }

    /// A shard's snapshot is still being built or sent.
    fn seen(&mut self, shard: ShardId, now: u64) {
        self.0.iter_mut().filter(|((_, of), _)| *of == shard).for_each(|(_, seen)| *seen = now);
    }
}

/// The snapshots of one shard.
#[derive(Default)]
pub(super) struct Snapshots {
    outgoing: Option<Outgoing>,
    /// Who is being sent which.
    sending: BTreeMap<ReplicaId, SnapshotId>,
    incoming: Option<Incoming>,
    /// How many failed in a row.
    failures: u32,
    /// Until which tick nothing is tried again.
    paused_until: u64,
}

/// A snapshot for followers.
struct Outgoing {
    id: SnapshotId,
    /// Where it stands, once it is built.
    at: Option<LogPosition>,
    /// What was applied when it was asked for: it will stand there or above. `None` once the log was cut above it, for having grown
    /// too long meanwhile.
    floor: Option<u64>,
    idle_ticks: usize,
}

/// A snapshot from the leader.
struct Incoming {
    staged: SnapshotId,
    at: LogPosition,
    /// What the shard is at that index.
    descriptor: Arc<Descriptor>,
    /// The Ready that it completes, once it is being installed.
    ready: Option<u64>,
}

impl Snapshots {
    /// What the shard will be once the snapshot that was accepted is installed.
    pub(super) fn incoming_descriptor(&self) -> Option<&Descriptor> {
        self.incoming.as_ref().map(|incoming| &*incoming.descriptor)
    }

    /// Whether a snapshot is becoming this replica's state.
    pub(super) fn is_installing(&self) -> bool {
        self.incoming.is_some()
    }

    /// Whether ticks matter.
    pub(super) fn is_busy(&self) -> bool {
        self.outgoing.is_some()
    }

    /// The index above which the log must stay, for the sake of a snapshot on its way.
    pub(super) fn pins(&self) -> Option<u64> {
        self.outgoing.as_ref().and_then(|o| o.at.map_or(o.floor, |at| Some(at.index)))
    }

    /// The log grew too long behind the snapshot for followers: it pins it no more. One that is built is given up, and must be dropped;
    /// of one that is still being built it shows when it is there whether it is of any use.
    pub(super) fn unpin(&mut self) -> Option<SnapshotId> {
        let outgoing = self.outgoing.as_mut()?;
        outgoing.floor = None;
        outgoing.at?;
        self.outgoing.take().map(|outgoing| outgoing.id)
    }

    /// A snapshot leaves for a follower.
    pub(super) fn sending(&mut self, to: ReplicaId, snapshot: SnapshotId) {
        self.sending.insert(to, snapshot);
        if let Some(outgoing) = &mut self.outgoing {
            outgoing.idle_ticks = 0;
        }
    }
}

impl Node {
    /// raft-rs has a follower that needs a snapshot, and none to send to it.
    pub(super) fn want_snapshot(&mut self, shard: ShardId, follower: ReplicaId) {
        let Some(replica) = self.registry.get_mut(shard) else { return };
        let Some(to) = replica.descriptor.replica(follower).map(|replica| replica.node) else { return };
        let seen_max = self.config.raft.election_ticks as u64;
        if replica.snapshots.paused_until > self.ticks || !self.streams.take_turn(to, shard, self.ticks, seen_max) {
            return;
        }
        let offered = replica.raw.store().offers_snapshot();
        match &replica.snapshots.outgoing {
            // Under way, or there: raft-rs will see so when it asks again.
            Some(outgoing) if outgoing.at.is_none() || offered => {
                return replica.raw.mut_store().grant_snapshot(follower.0, true);
            }
            // On its way to another follower, which still reads its files. This one asks again.
            Some(_) if !replica.snapshots.sending.is_empty() => return,
            // There is one that is too old.
            Some(outgoing) => self.outbox.effects.push(Effect::DropSnapshot { snapshot: outgoing.id }),
            None => {}
        }
        let id = SnapshotId(self.next_snapshot);
        self.next_snapshot += 1;
        replica.snapshots.outgoing = Some(Outgoing { id, at: None, floor: Some(replica.applied.index), idle_ticks: 0 });
        replica.raw.mut_store().offer_snapshot(None);
        replica.raw.mut_store().grant_snapshot(follower.0, true);
        self.outbox.effects.push(Effect::BuildSnapshot { shard, snapshot: id });
    }

    /// A snapshot is ready to be sent, or could not be built, or its files were spoiled; then raft-rs will ask again.
    pub(super) fn snapshot_built(&mut self, shard: ShardId, snapshot: SnapshotId, at: Option<LogPosition>) {
        if at.is_none() {
            self.snapshot_failed(shard);
        }
        let wanted = self.registry.get_mut(shard).filter(|r| r.snapshots.outgoing.as_ref().is_some_and(|o| o.id == snapshot));
        // A follower goes on from it by log, which may have been cut above it.
        let at = at.filter(|at| wanted.as_ref().is_none_or(|r| at.index >= r.raw.store().truncated().index));
        let (Some(replica), Some(at)) = (wanted, at) else {
            if let Some(replica) =
                self.registry.get_mut(shard).filter(|r| r.snapshots.outgoing.as_ref().is_some_and(|o| o.id == snapshot))
            {
                replica.snapshots.outgoing = None;
                // It may have been offered, and spoiled since.
                replica.raw.mut_store().offer_snapshot(None);
            }
            self.outbox.effects.push(Effect::DropSnapshot { snapshot });
            return;
        };
        let mut offered = Snapshot::default();
        offered.set_data(snapshot.0.to_be_bytes().to_vec().into());
        let metadata = offered.mut_metadata();
        metadata.index = at.index;
        metadata.term = at.term;
        metadata.set_conf_state(conf_state(&replica.descriptor));
        replica.raw.mut_store().offer_snapshot(Some(offered));
        replica.snapshots.outgoing = Some(Outgoing { id: snapshot, at: Some(at), floor: Some(at.index), idle_ticks: 0 });
    }

    /// A snapshot stream has ended.
    pub(super) fn snapshot_sent(&mut self, shard: ShardId, to: ReplicaId, delivery: Delivery) {
        let Some(replica) = self.registry.get_mut(shard) else { return };
        replica.snapshots.sending.remove(&to);
        // Whoever needs another one waits for its turn.
        replica.raw.mut_store().grant_snapshot(to.0, false);
        if delivery == Delivery::Taken {
            replica.snapshots.failures = 0;
            if let Some(to) = replica.descriptor.replica(to) {
                self.streams.0.remove(&(to.node, shard));
            }
        }
        let status = if delivery == Delivery::Taken { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
        replica.raw.report_snapshot(to.0, status);
        self.touch(shard);
        match delivery {
            Delivery::Taken => {}
            // Others send to it, too. It is asked again soon, and this shard keeps its turn meanwhile.
            Delivery::Busy => {
                let replica = self.registry.get_mut(shard).expect("looked up just now");
                replica.snapshots.paused_until = self.ticks + self.config.raft.election_ticks as u64 / 2;
                self.streams.seen(shard, self.ticks);
            }
            Delivery::Failed => self.snapshot_failed(shard),
        }
    }

    /// Has a shard wait before the next snapshot, longer each time. It keeps its turn for a while: whoever failed tries again before others
    /// begin.
    fn snapshot_failed(&mut self, shard: ShardId) {
        let Some(replica) = self.registry.get_mut(shard) else { return };
        let snapshots = &mut replica.snapshots;
        snapshots.failures = snapshots.failures.saturating_add(1);
        let pause = 1u64.checked_shl(snapshots.failures).unwrap_or(u64::MAX);
        snapshots.paused_until = self.ticks + pause.min(PAUSE_MAX_MS / self.config.raft.tick_ms);
    }

    /// Drops a built snapshot that nobody has needed for a while.
    pub(super) fn tick_snapshots(&mut self, shard: ShardId) {
        let Some(replica) = self.registry.get_mut(shard) else { return };
        let idle = replica.snapshots.sending.is_empty();
        let Some(outgoing) = &mut replica.snapshots.outgoing else { return };
        if !idle || outgoing.at.is_none() {
            self.streams.seen(shard, self.ticks);
        }
        if outgoing.at.is_none() {
            return;
        }
        outgoing.idle_ticks = if idle { outgoing.idle_ticks + 1 } else { 0 };
        if outgoing.idle_ticks >= KEEP_TICKS {
            self.outbox.effects.push(Effect::DropSnapshot { snapshot: outgoing.id });
            replica.snapshots.outgoing = None;
            replica.raw.mut_store().offer_snapshot(None);
            // It held the log; a shard that is idle now would keep it until its next write.
            self.truncate_log(shard);
        }
    }

    /// A snapshot from a peer lies verified on disk: judge it, and let raft-rs say whether it wants it.
    pub(super) fn snapshot_staged(&mut self, from: NodeId, staged: SnapshotId, envelope: Envelope, manifest: SnapshotManifest) {
        let shard = envelope.shard;
        if self.accept_snapshot(from, staged, envelope, &manifest) {
            self.touch(shard);
        } else {
            self.outbox.effects.push(Effect::DiscardStaged { staged });
        }
    }

    fn accept_snapshot(&mut self, from: NodeId, staged: SnapshotId, envelope: Envelope, manifest: &SnapshotManifest) -> bool {
        let shard = envelope.shard;
        let message = &envelope.message;
        let range = &manifest.descriptor.range;
        let others_overlap =
            self.registry.overlapping(shard, range).or_else(|| self.registry.about_to_overlap(shard, range)).is_some();
        let Some(replica) = self.registry.get_mut(shard) else { return false };
        let metadata = message.get_snapshot().get_metadata();
        let at = LogPosition { index: metadata.index, term: metadata.term };
        // An invalid conf state is fatal in raft-rs, so it is compared with the descriptor, which was decoded and checked.
        let honest = message.get_msg_type() == MessageType::MsgSnapshot
            && message.to == replica.id.0
            && message.term > 0
            && replica.descriptor.replica(ReplicaId(message.from)).is_some_and(|r| r.node == from)
            && manifest.descriptor.id == shard
            && manifest.at == at
            && message.term <= NUMBER_MAX
            && !is_absurd(message.term, replica.first_term, replica.raw.raft.term)
            // One leader per term.
            && (message.term != replica.raw.raft.term || [0, message.from].contains(&replica.raw.raft.leader_id))
            && at.index <= NUMBER_MAX
            && !is_absurd_index(at.index, replica.raw.raft.raft_log.last_index())
            // Writes go on above it.
            && manifest.revision.0 <= NUMBER_MAX
            && (1..=message.term).contains(&at.term)
            && manifest.descriptor.is_sound()
            && *metadata.get_conf_state() == conf_state(&manifest.descriptor)
            && manifest.descriptor.replica(replica.id).is_some();
        if !honest || others_overlap || replica.quarantined.is_some() || replica.snapshots.is_installing() {
            self.counters.messages_refused += u64::from(!honest);
            return false;
        }
        let _ = replica.raw.step(envelope.message);
        let wanted = replica.raw.snap().is_some_and(|s| s.get_metadata().index == at.index);
        if wanted {
            let descriptor = Arc::new(manifest.descriptor.clone());
            replica.snapshots.incoming = Some(Incoming { staged, at, descriptor, ready: None });
        } else {
            self.touch(shard);
        }
        wanted
    }

    /// raft-rs has taken the snapshot up: hand it to the shell.
    pub(super) fn install_snapshot(&mut self, shard: ShardId, at: LogPosition, ready: u64) {
        let replica = self.registry.get_mut(shard).expect("the caller holds it");
        let hard_state = replica.ready.hard_state();
        let incoming = replica.snapshots.incoming.as_mut().expect("raft-rs restores only what was accepted");
        assert_eq!(incoming.at, at, "raft-rs restores another snapshot than the one that was accepted");
        incoming.ready = Some(ready);
        let (staged, id) = (incoming.staged, replica.id);
        replica.compaction.reset(at.index);
        // Whatever was staged for the old log would be written over the new one.
        self.outbox.writes.remove(&shard);
        let bytes = self.outbox.staged_bytes.remove(&shard).unwrap_or_default();
        self.no_more_unpersisted(shard, bytes);
        self.outbox.effects.push(Effect::InstallSnapshot { shard, replica: id, staged, hard_state, at });
    }

    /// The snapshot is this replica's state now.
    pub(super) fn snapshot_installed(&mut self, shard: ShardId, at: LogPosition) {
        let Some(replica) = self.registry.get_mut(shard) else { return };
        let incoming = replica.snapshots.incoming.take().expect("an installation was reported that was not under way");
        let ready = incoming.ready.expect("it was handed out with its Ready");
        replica.applied = at;
        replica.handed_out = at.index;
        replica.ready.reset(at.index);
        let passed_over = replica.proposals.take_passed_over(at.index);
        let id = replica.id;
        self.registry.change(incoming.descriptor.clone());
        self.outbox.effects.push(Effect::PublishDescriptor { descriptor: incoming.descriptor });
        self.ready_persisted(shard, id, ready);
        let replica = self.registry.get_mut(shard).expect("looked up just now");
        replica.raw.advance_apply_to(at.index);
        for ticket in passed_over {
            self.outbox.effects.push(Effect::Reply { ticket, shard, result: Err(Refusal::Unknown { shard }) });
        }
        self.note_applied(shard);
        self.touch(shard);
    }
}
