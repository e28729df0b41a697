//! How a `Ready` is handled, in the order that raft-rs demands (its thesis: §10.2.1; its traps: `docs/raft-rs.md`).
//!
//! For each group that was touched, until it has nothing more:
//!
//! 1. A snapshot that waits to be installed is taken up only once every entry handed out is applied and no Ready is
//!    unpersisted; until then the group rests. Otherwise an older conf change could be applied on top of a newer snapshot.
//! 2. `ready()`. From here to `advance_append_async` nothing else is called on the group.
//! 3. A leader's messages leave at once, before its own fsync. Read states and committed entries are queued.
//! 4. Entries are put where raft-rs can read them, and with the hard state into the write that all groups of the pass share.
//! 5. A follower's messages wait for that write. A Ready that needs no sync waits for nothing, but never overtakes one that does. Only
//!    its answers to heartbeats leave at once: they vouch for nothing that the write holds, only that this replica was in the leader's
//!    term when it heard it, and reads that wait for a quorum would otherwise wait for its slowest disk.
//! 6. After the fsync: `on_persist_ready` with the highest number, then the messages that waited.
//! 7. After apply: conf changes first, then `advance_apply_to`.
//!
//! A hard state in which only the commit index changed is not written on its own: it goes along with the group's next write.
//! Should it be lost, the leader tells it again, and recovery raises it to what was applied.

use super::Node;
use super::conf_change::conf_change;
use super::effect::Effect;
use super::elections;
use super::log::{entry_bytes, to_stored};
use super::membership;
use super::outbox::Outbox;
use super::replica::Replica;
use flotilla_router::mutation::Mutation;
use flotilla_router::{Refusal, ReplicaId, ShardId, Unfit};
use flotilla_storage::{Applied, ApplyEntry, ApplyWork, HardState, LogPosition, LogWrite};
use raft::eraftpb::{ConfChangeV2, Entry, Message, MessageType};
use std::collections::VecDeque;

/// Readys of one group that are not yet persisted.
pub(super) struct ReadyQueue {
    waiting: VecDeque<Waiting>,
    /// The newest hard state, and whether it was handed out to be written.
    hard_state: HardState,
    hard_state_written: bool,
    /// The highest index that may stand in the log on disk.
    disk_last: u64,
    /// Conf changes handed out to be applied: index, and change.
    conf_changes: VecDeque<(u64, ConfChangeV2)>,
    /// Bytes of entries handed out to be applied: the last index of each batch, and its bytes.
    unapplied: VecDeque<(u64, u64)>,
    /// The sum of those bytes.
    pub(super) unapplied_bytes: u64,
    /// Bytes of entries that the disk has not taken yet.
    pub(super) unpersisted_bytes: u64,
}

/// One Ready that is not yet persisted.
struct Waiting {
    number: u64,
    /// Whether it is part of a write. One that is not waits only for those before it.
    in_write: bool,
    messages: Vec<Message>,
}

impl ReadyQueue {
    /// Nothing waits; this hard state and a log up to `disk_last` were found on disk.
    pub(super) fn new(hard_state: HardState, disk_last: u64) -> Self {
        Self {
            waiting: VecDeque::new(),
            hard_state,
            hard_state_written: true,
            disk_last,
            conf_changes: VecDeque::new(),
            unapplied: VecDeque::new(),
            unapplied_bytes: 0,
            unpersisted_bytes: 0,
        }
    }

    /// Whether every Ready is persisted.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The newest hard state.
    pub(super) fn hard_state(&self) -> HardState {
        self.hard_state
    }

    /// The log on disk starts over.
    pub(super) fn reset(&mut self, disk_last: u64) {
        self.disk_last = disk_last;
        self.hard_state_written = true;
    }

    /// Everything up to `index` is applied; how many bytes of entries that were.
    fn note_applied(&mut self, index: u64) -> u64 {
        let mut bytes = 0;
        while let Some((_, more)) = self.unapplied.pop_front_if(|(last, _)| *last <= index) {
            bytes += more;
        }
        self.unapplied_bytes -= bytes;
        bytes
    }

    /// Takes what `number` completes: the highest number that counts as persisted now, and the messages that may leave.
    fn complete(&mut self, number: u64) -> Option<(u64, Vec<Message>)> {
        let mut done = None;
        let mut messages = Vec::new();
        while self.waiting.front().is_some_and(|w| w.number <= number || !w.in_write) {
            let first = self.waiting.pop_front().expect("looked at just now");
            messages.extend(first.messages);
            done = Some(first.number);
        }
        done.map(|number| (number, messages))
    }
}

impl Node {
    /// Handles everything that one group has ready, and what it asked for on the way.
    pub(super) fn advance(&mut self, shard: ShardId) {
        let Some(replica) = self.registry.get_mut(shard) else { return };
        if replica.quarantined.is_some() {
            return;
        }
        let cached_before = replica.raw.store().cache_bytes();
        self.send_read_contexts(shard);
        while self.take_ready(shard) {}
        let replica = self.registry.get_mut(shard).expect("nothing removes a replica while it is handled");
        elections::set_timeout(replica, &self.config);
        let cached = replica.raw.store().cache_bytes();
        self.cache_bytes = self.cache_bytes + cached - cached_before;
        self.bound_flow(shard);
        self.note_roles(shard);
        self.serve_confirmed_reads(shard);
        self.take_asked(shard);
    }

    /// Handles one Ready; whether there was one.
    fn take_ready(&mut self, shard: ShardId) -> bool {
        let Some(replica) = self.registry.get_mut(shard) else { return false };
        if !replica.raw.has_ready() {
            return false;
        }
        let snapshot_waits = replica.raw.snap().is_some_and(|s| !s.is_empty());
        if snapshot_waits {
            // A write under way may be about the old log, even if only to truncate it: it must not land on the new one.
            let at_rest = replica.ready.is_empty() && replica.applied.index == replica.handed_out;
            if !at_rest || self.writing.iter().any(|w| w.shards.contains(&shard)) {
                return false;
            }
        }
        let mut ready = replica.raw.ready();
        for message in ready.take_messages() {
            self.outbox.send(replica, message);
        }
        for state in ready.take_read_states() {
            replica.reads.confirm(&state.request_ctx, state.index, self.config.lease());
        }
        if let Some(hs) = ready.hs() {
            replica.ready.hard_state = HardState { term: hs.term, vote: hs.vote, commit: hs.commit };
            replica.ready.hard_state_written = false;
        }
        let number = ready.number();
        let mut messages = ready.take_persisted_messages();
        let may_leave =
            |message: &mut Message| message.get_msg_type() == MessageType::MsgHeartbeatResponse || Mutation::EarlyAnswers.is_on();
        for message in messages.extract_if(.., may_leave) {
            self.outbox.send(replica, message);
        }
        let committed = ready.take_committed_entries();
        if !ready.snapshot().is_empty() {
            let metadata = ready.snapshot().get_metadata();
            let at = LogPosition { index: metadata.index, term: metadata.term };
            replica.raw.mut_store().reset(at, metadata.get_conf_state().clone());
            replica.ready.waiting.push_back(Waiting { number, in_write: true, messages });
            replica.raw.advance_append_async(ready);
            self.install_snapshot(shard, at, number);
            return true;
        }
        let entries = ready.take_entries();
        let must_sync = ready.must_sync();
        if must_sync {
            replica.raw.mut_store().append(&entries);
            replica.compaction.appended(&entries);
            stage(&mut self.outbox, replica, &entries);
            self.outbox.readies.push((shard, replica.id, number));
            self.outbox.sync = true;
        }
        if must_sync || !replica.ready.is_empty() {
            replica.ready.waiting.push_back(Waiting { number, in_write: must_sync, messages });
            replica.raw.advance_append_async(ready);
        } else {
            replica.raw.advance_append_async(ready);
            replica.raw.on_persist_ready(number);
            for message in messages {
                self.outbox.send(replica, message);
            }
        }
        if !committed.is_empty() {
            self.hand_out(shard, &committed);
        }
        true
    }

    /// Queues committed entries to be applied, and settles proposals that were overruled.
    fn hand_out(&mut self, shard: ShardId, committed: &[Entry]) {
        let replica = self.registry.get_mut(shard).expect("the caller holds it");
        let (mut lost, mut unreadable) = (Vec::new(), None);
        let (mut last, mut bytes) = (0, 0);
        for entry in committed {
            assert_eq!(entry.index, replica.handed_out + 1, "committed entries have a gap");
            replica.handed_out = entry.index;
            match conf_change(entry) {
                Ok(Some(change)) => replica.ready.conf_changes.push_back((entry.index, change)),
                Ok(None) => {}
                Err(why) => {
                    // Committed, so equal on every replica: all of them stop here rather than diverge.
                    unreadable = Some(format!("the conf change at index {} can't be read: {why}", entry.index));
                    break;
                }
            }
            let at = LogPosition { index: entry.index, term: entry.term };
            let wants_results = replica.proposals.is_committed(at, &mut lost);
            if wants_results {
                replica.proposals.moved(self.now);
            }
            let work = self.outbox.apply.entry(shard).or_insert_with(|| ApplyWork { shard, entries: Vec::new() });
            work.entries.push(ApplyEntry { entry: to_stored(entry), wants_results });
            (last, bytes) = (entry.index, bytes + entry_bytes(entry));
        }
        replica.ready.unapplied.push_back((last, bytes));
        replica.ready.unapplied_bytes += bytes;
        self.unapplied_bytes += bytes;
        let leader = replica.leader_node();
        let overruled = |ticket| Effect::Reply { ticket, shard, result: Err(Refusal::NotLeader { shard, leader }) };
        self.outbox.effects.extend(lost.into_iter().map(overruled));
        // Those who were told above wait no more; those who still do are told now.
        if let Some(why) = unreadable {
            self.quarantine(shard, why);
        }
    }

    /// A write is durable.
    pub(super) fn persisted(&mut self, write: u64) {
        let done = self.writing.pop_front().expect("a write was reported that was not under way");
        assert_eq!(done.number, write, "writes were reported out of order");
        for (shard, bytes) in done.bytes {
            self.no_more_unpersisted(shard, bytes);
        }
        for (shard, id, number) in done.readies {
            self.ready_persisted(shard, id, number);
        }
        for shard in done.shards {
            self.touch(shard);
        }
    }

    /// One group's Readys up to `number` are persisted.
    pub(super) fn ready_persisted(&mut self, shard: ShardId, id: ReplicaId, number: u64) {
        let Some(replica) = self.registry.get_mut(shard).filter(|r| r.id == id) else { return };
        if let Some((number, messages)) = replica.ready.complete(number) {
            replica.raw.on_persist_ready(number);
            // However long that took: from here on it is the others who are waited for.
            replica.proposals.moved(self.now);
            for message in messages {
                self.outbox.send(replica, message);
            }
        }
        self.touch(shard);
    }

    /// Entries were applied.
    pub(super) fn applied(&mut self, applied: Vec<Applied>) {
        self.applying = false;
        for Applied { shard, at, results, conf_changes, descriptor } in applied {
            let Some(replica) = self.registry.get_mut(shard) else { continue };
            assert!(at.index > replica.applied.index && at.index <= replica.handed_out, "applied what was not handed out");
            replica.applied = at;
            let bytes = replica.ready.note_applied(at.index);
            self.unapplied_bytes -= bytes;
            self.room.applied(bytes);
            if let Some(descriptor) = descriptor {
                replica.descriptor = std::sync::Arc::new(descriptor);
                self.outbox.effects.push(Effect::PublishDescriptor { descriptor: replica.descriptor.clone() });
            }
            let parted = change_members(replica, at.index, &conf_changes);
            replica.raw.advance_apply_to(at.index);
            for (ticket, result) in replica.proposals.settle(results) {
                self.outbox.effects.push(Effect::Reply { ticket, shard, result: Ok(result) });
            }
            self.note_applied(shard);
            self.truncate_log(shard);
            self.touch(shard);
            if let Err(why) = parted {
                self.quarantine(shard, why);
            }
        }
    }
}

/// Whether a conf change was taken, by its index; if not, why.
type Outcome = (u64, Result<(), Unfit>);

/// Has raft-rs make the conf changes up to `index` that apply has taken, and no other: of one that
/// was refused it need not hear, since one that is applied is pending no more, whatever came of it.
/// An error says how raft-rs and the descriptor have parted.
fn change_members(replica: &mut Replica, index: u64, outcomes: &[Outcome]) -> Result<(), String> {
    let mut came_to = None;
    while let Some((at, change)) = replica.ready.conf_changes.pop_front_if(|(at, _)| *at <= index) {
        if !outcomes.iter().any(|(of, outcome)| *of == at && outcome.is_ok()) {
            continue;
        }
        let refused = |error| format!("conf change {at} was taken, and raft refuses it: {error}");
        let conf_state = replica.raw.apply_conf_change(&change).map_err(refused)?;
        replica.raw.mut_store().set_conf_state(conf_state.clone());
        elections::step_down_without_a_vote(replica);
        came_to = Some(conf_state);
    }
    let Some(conf_state) = came_to else { return Ok(()) };
    if membership::agrees(&conf_state, &replica.descriptor) {
        return Ok(());
    }
    let members = &replica.descriptor.replicas;
    Err(format!("its members are {members:?}, and raft has come to {conf_state:?}"))
}

/// Puts entries and the newest hard state into the write that the pass shares.
fn stage(outbox: &mut Outbox, replica: &mut Replica, entries: &[Entry]) {
    let shard = replica.shard;
    let write = outbox.writes.entry(shard).or_insert_with(|| LogWrite { shard, ..LogWrite::default() });
    if let (Some(first), Some(last)) = (entries.first(), entries.last()) {
        if replica.ready.disk_last > last.index {
            let (low, high) = write.delete.unwrap_or((last.index + 1, replica.ready.disk_last));
            write.delete = Some((low.min(last.index + 1), high.max(replica.ready.disk_last)));
        }
        while write.entries.last().is_some_and(|e| e.at.index >= first.index) {
            write.entries.pop();
        }
        write.entries.extend(entries.iter().map(to_stored));
        let bytes: u64 = entries.iter().map(entry_bytes).sum();
        *outbox.staged_bytes.entry(shard).or_default() += bytes;
        outbox.unpersisted_bytes += bytes;
        replica.ready.unpersisted_bytes += bytes;
        replica.ready.disk_last = last.index;
    }
    if !replica.ready.hard_state_written && !Mutation::VoteForgotten.is_on() {
        write.hard_state = Some(replica.ready.hard_state);
        replica.ready.hard_state_written = true;
    }
}
