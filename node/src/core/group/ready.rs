//! How a `Ready` is handled, in the order that raft-rs demands (its thesis: §10.2.1; its traps:
//! `docs/raft-rs.md`).
//!
//! For each group that was touched, until it has nothing more:
//!
//! 1. A snapshot that waits to be installed is taken up only once every scheduled entry is applied,
//!    no Ready is unpersisted and no write of the group is under way; until then the group rests.
//!    Otherwise an older write could land on the new log. Its members raft-rs has taken over long
//!    before, when the snapshot was stepped: what is applied until then makes no conf change.
//! 2. `ready()`. From here to `advance_append_async` nothing else is called on the group.
//! 3. A leader's messages leave at once, before its own fsync. Read states and committed entries
//!    are handed back.
//! 4. Entries are put where raft-rs can read them, and with the hard state into the write that all
//!    groups of the pass share.
//! 5. A follower's messages wait for that write. A Ready that needs no sync waits for nothing, but
//!    never overtakes one that does. Only its answers to heartbeats leave at once: they vouch for
//!    nothing that the write holds, only that this replica was in the leader's term when it heard
//!    it, and reads that wait for a quorum would otherwise wait for its slowest disk.
//! 6. After the fsync: `on_persist_ready` with the highest number, then the messages that waited.
//! 7. After apply: conf changes first, then `advance_apply_to`.
//!
//! A hard state in which only the commit index changed is not written on its own: it goes along
//! with the group's next write. Should it be lost, the leader tells it again, and recovery raises
//! it to what was applied.

use super::Group;
use super::entries::conf_change;
use super::log::{entry_bytes, to_stored};
use super::membership;
use super::queue::Waiting;
use crate::core::context::Context;
use flotilla_router::Unfit;
use flotilla_router::mutation::Mutation;
use flotilla_storage::{ApplyEntry, HardState, LogPosition};
use raft::ReadState;
use raft::eraftpb::{Entry, Message, MessageType};

/// Whether a conf change was taken, by its index; if not, why.
type Outcome = (u64, Result<(), Unfit>);

/// What a Ready held, for those whom it concerns.
#[derive(Default)]
pub(crate) struct Taken {
    /// Messages that may leave now, in order.
    pub(crate) messages: Vec<Message>,
    /// Read contexts that a quorum has confirmed.
    pub(crate) read_states: Vec<ReadState>,
    /// A snapshot that the log starts over at, and the number of the Ready that its install
    /// completes.
    pub(crate) restored: Option<(LogPosition, u64)>,
    /// Entries that were appended to the log.
    pub(crate) appended: Vec<Entry>,
    /// Entries that were committed, to be scheduled.
    pub(crate) committed: Vec<Entry>,
}

impl Group {
    /// Takes one Ready, if there is one, and stages what of it must be written.
    pub(crate) fn take_ready(&mut self, ctx: &mut Context<'_>) -> Option<Taken> {
        if !self.raw.has_ready() || self.must_rest(ctx) {
            return None;
        }
        let mut ready = self.raw.ready();
        let (number, must_sync) = (ready.number(), ready.must_sync());
        let mut taken = Taken {
            messages: ready.take_messages(),
            read_states: ready.take_read_states(),
            committed: ready.take_committed_entries(),
            ..Taken::default()
        };
        if let Some(hs) = ready.hs() {
            self.ready.hard_state = HardState { term: hs.term, vote: hs.vote, commit: hs.commit };
            self.ready.hard_state_written = false;
        }
        let mut messages = ready.take_persisted_messages();
        let may_leave = |message: &mut Message| {
            message.get_msg_type() == MessageType::MsgHeartbeatResponse
                || Mutation::EarlyAnswers.is_on()
        };
        taken.messages.extend(messages.extract_if(.., may_leave));
        if !ready.snapshot().is_empty() {
            let metadata = ready.snapshot().get_metadata();
            let at = LogPosition { index: metadata.index, term: metadata.term };
            self.raw.mut_store().reset(at, metadata.get_conf_state().clone());
            self.ready.waiting.push_back(Waiting { number, in_write: true, messages });
            self.raw.advance_append_async(ready);
            taken.restored = Some((at, number));
            return Some(taken);
        }
        if must_sync {
            taken.appended = ready.take_entries();
            self.raw.mut_store().append(&taken.appended);
            self.stage(&taken.appended, ctx);
            ctx.pass.complete_with_write(self.shard, self.id, number);
        }
        if must_sync || !self.ready.is_empty() {
            self.ready.waiting.push_back(Waiting { number, in_write: must_sync, messages });
            self.raw.advance_append_async(ready);
        } else {
            self.raw.advance_append_async(ready);
            self.raw.on_persist_ready(number);
            taken.messages.extend(messages);
        }
        Some(taken)
    }

    /// Whether a snapshot waits for what is under way. A write under way may be about the old log,
    /// even if only to truncate it: it must not land on the new one.
    fn must_rest(&self, ctx: &Context<'_>) -> bool {
        let snapshot_waits = self.raw.snap().is_some_and(|snapshot| !snapshot.is_empty());
        let at_rest = self.ready.is_empty() && self.applied.index == self.scheduled;
        snapshot_waits && (!at_rest || ctx.pass.is_writing(self.shard))
    }

    /// Puts entries and the newest hard state into the write that the pass shares.
    fn stage(&mut self, entries: &[Entry], ctx: &mut Context<'_>) {
        let write = ctx.pass.write(self.shard);
        if !self.ready.hard_state_written && !Mutation::VoteForgotten.is_on() {
            write.hard_state = Some(self.ready.hard_state);
            self.ready.hard_state_written = true;
        }
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return };
        if self.ready.disk_last > last.index {
            let (low, high) = write.delete.unwrap_or((last.index + 1, self.ready.disk_last));
            write.delete = Some((low.min(last.index + 1), high.max(self.ready.disk_last)));
        }
        while write.entries.last().is_some_and(|e| e.at.index >= first.index) {
            write.entries.pop();
        }
        write.entries.extend(entries.iter().map(to_stored));
        let bytes: u64 = entries.iter().map(entry_bytes).sum();
        ctx.pass.note_staged(self.shard, bytes);
        ctx.budgets.unpersisted_bytes += bytes;
        self.ready.unpersisted_bytes += bytes;
        self.ready.disk_last = last.index;
    }

    /// Schedules committed entries to be applied. `is_ours` is asked of each whether its results
    /// are waited for. An error is a change that can't be read: committed, so equal on every
    /// replica, and all of them stop here rather than diverge.
    pub(crate) fn schedule(
        &mut self,
        committed: &[Entry],
        ctx: &mut Context<'_>,
        mut is_ours: impl FnMut(LogPosition) -> bool,
    ) -> Result<(), String> {
        let (mut last, mut bytes, mut outcome) = (0, 0, Ok(()));
        for entry in committed {
            assert_eq!(entry.index, self.scheduled + 1, "committed entries have a gap");
            self.scheduled = entry.index;
            match conf_change(entry) {
                Ok(Some(change)) => self.ready.conf_changes.push_back((entry.index, change)),
                Ok(None) => {}
                Err(why) => {
                    outcome = Err(format!(
                        "the conf change at index {} can't be read: {why}",
                        entry.index
                    ));
                    break;
                }
            }
            let wants_results = is_ours(LogPosition { index: entry.index, term: entry.term });
            ctx.pass.schedule(self.shard, ApplyEntry { entry: to_stored(entry), wants_results });
            (last, bytes) = (entry.index, bytes + entry_bytes(entry));
        }
        self.ready.unapplied.push_back((last, bytes));
        self.ready.unapplied_bytes += bytes;
        ctx.budgets.unapplied_bytes += bytes;
        outcome
    }

    /// Readys up to `number` are persisted; the messages that waited for that, or `None` where none
    /// did.
    pub(crate) fn persisted(&mut self, number: u64) -> Option<Vec<Message>> {
        let (number, messages) = self.ready.complete(number)?;
        self.raw.on_persist_ready(number);
        Some(messages)
    }

    /// So many bytes of its entries are on the disk, or will never be.
    pub(crate) fn no_more_unpersisted(&mut self, bytes: u64, ctx: &mut Context<'_>) {
        ctx.budgets.unpersisted_bytes -= bytes;
        self.ready.unpersisted_bytes -= bytes;
    }

    /// Entries up to `at` were applied, and with them these conf changes; the descriptor is what
    /// they came to. An error says how raft-rs and the descriptor have parted.
    pub(crate) fn note_applied(
        &mut self,
        at: LogPosition,
        conf_changes: &[Outcome],
        ctx: &mut Context<'_>,
    ) -> Result<(), String> {
        assert!(
            at.index > self.applied.index && at.index <= self.scheduled,
            "applied what was not scheduled"
        );
        self.applied = at;
        let bytes = self.ready.note_applied(at.index);
        ctx.budgets.unapplied_bytes -= bytes;
        ctx.budgets.room.applied(bytes);
        let changed = self.change_members(at.index, conf_changes);
        self.raw.advance_apply_to(at.index);
        changed
    }

    /// Has raft-rs make the conf changes up to `index` that apply has taken, and no other: of one
    /// that was refused it need not hear, since one that is applied is pending no more, whatever
    /// came of it. Nor of any, once it has taken up a snapshot that waits to be installed: with
    /// that it has gone on to members that these have led to.
    fn change_members(&mut self, index: u64, outcomes: &[Outcome]) -> Result<(), String> {
        let mut changed = false;
        while let Some((at, change)) = self.ready.conf_changes.pop_front_if(|(at, _)| *at <= index)
        {
            let is_taken = outcomes.iter().any(|(of, outcome)| *of == at && outcome.is_ok());
            let is_late = self.installing && !Mutation::LateChangeMade.is_on();
            if !is_taken || is_late || Mutation::RaftUntold.is_on() {
                continue;
            }
            let refused =
                |error| format!("conf change {at} was taken, and raft refuses it: {error}");
            let conf_state = self.raw.apply_conf_change(&change).map_err(refused)?;
            self.raw.mut_store().set_conf_state(conf_state);
            self.step_down_without_a_vote();
            changed = true;
        }
        if changed { self.check_members() } else { Ok(()) }
    }

    /// Whether raft-rs has come to the members that the descriptor names; if not, how they differ.
    pub(crate) fn check_members(&self) -> Result<(), String> {
        let conf_state = self.raw.raft.prs().conf().to_conf_state();
        if membership::agrees(&conf_state, self.descriptor()) {
            return Ok(());
        }
        let members = &self.descriptor().replicas;
        Err(format!("its members are {members:?}, and raft has come to {conf_state:?}"))
    }

    /// A snapshot that stands at `at` has become this replica's state.
    pub(crate) fn note_installed(&mut self, at: LogPosition) {
        self.installing = false;
        self.applied = at;
        self.scheduled = at.index;
        self.ready.disk_last = at.index;
        self.ready.hard_state_written = true;
    }
}
