//! Writes: from a client's command to the entry that carries it, and from the applied entry back to
//! the client.
//!
//! Every replica of a shard keeps a **log**, a row of entries, each with its index and the **term**
//! of the leader that proposed it. A write is safe once its entry is on the disks of a majority:
//! whoever is elected later has asked a majority for its votes, so one of those who hold the entry
//! was among them, and gives its vote only to a log that ends no earlier than its own. Such an
//! entry is **committed**: every later leader has it at that index, and every replica applies the
//! same entries in the same order. Until then nothing is certain. A leader that is cut off may have
//! proposed an entry that another, elected meanwhile, overrules by its own at the same index; or
//! the entry reached one more replica than anybody knows, and the next leader carries it on. So
//! what was proposed and not seen committed is neither done nor undone, and the only honest answer
//! to whoever can't wait is *unknown*. That it is lost is certain at one moment alone: when another
//! entry is committed in its place, or one of a higher term below it, since terms only grow along a
//! log.
//!
//! *Propose*: commands of a shard wait in line ([`admission`] says which are taken in); when no
//! write to the log is under way (or fewer than allowed), all that wait become one entry, up to a
//! size. While a write is under way the next ones gather: self-clocking, no timer. *Apply*:
//! [`flotilla_storage::apply`] finds a result for each command. *On result*: the results are
//! matched with those who wait, by the entry's index **and term**.
//!
//! What is known of a command that was not applied:
//!
//! | it was | and then | answer |
//! |---|---|---|
//! | waiting | leadership was lost, or the time was up | not applied |
//! | proposed | another entry was committed there, or one of a higher term below | not applied |
//! | proposed | the time was up, or a snapshot passed over its index | unknown |

mod admission;
mod proposed;

use super::{Changes, Operation, RoleChange};
use crate::core::context::Context;
use crate::core::effect::Done;
use crate::core::event::Ticket;
use crate::core::group::Group;
use crate::core::time::Time;
use bytes::Bytes;
use flotilla_router::command::{PAYLOAD_HEADER_BYTES, PayloadBuilder};
use flotilla_router::mutation::Mutation;
use flotilla_router::{Command, Op, Refusal};
use flotilla_storage::LogPosition;
use proposed::{Proposed, Tickets};
use raft::eraftpb::{Entry, Message, MessageType};
use std::collections::VecDeque;

/// Committed entries of a shard that are not yet applied, beyond which nothing more is proposed.
const APPLY_LAG_ENTRIES_MAX: u64 = 4096;

/// The writes of one shard.
#[derive(Default)]
pub(crate) struct Write {
    waiting: VecDeque<Waiting>,
    waiting_bytes: u64,
    /// Entries that were proposed, and who waits for what they come to.
    proposed: Proposed,
    /// When one of its entries was last committed, or the disk here took some; where nothing had
    /// been under way, when the first command came; or when it began to lead.
    moved_at: Time,
}

struct Waiting {
    ticket: Ticket,
    command: Command,
    deadline: Time,
}

impl Write {
    /// How many commands wait or are in flight.
    pub(crate) fn pending(&self) -> usize {
        self.waiting.len() + self.proposed.commands()
    }

    /// Bytes that wait to be proposed.
    pub(crate) fn waiting_bytes(&self) -> u64 {
        self.waiting_bytes
    }

    /// One of its entries was committed, or got onto the disk here, or from now on this replica
    /// leads.
    pub(crate) fn moved(&mut self, now: Time) {
        self.moved_at = now;
    }

    /// Whether commands are there and none of them has come any further for so long, though the
    /// disk here has all: no quorum, an apply that takes long, a hand-over that does not end.
    pub(crate) fn stands_still(&self, group: &Group, now: Time, patience: Time) -> bool {
        let log = &group.raw.raft.raft_log;
        self.pending() > 0
            && log.persisted == log.last_index()
            && now.saturating_sub(self.moved_at) > patience
    }

    /// The next commands that fit into one entry: how many, and their bytes. At least one if any
    /// wait.
    fn next_entry(&self, bytes_max: u64) -> (usize, u64) {
        let (mut count, mut bytes) = (0, 0);
        for waiting in &self.waiting {
            let more = waiting.command.encoded_bytes() as u64;
            if count > 0 && bytes + more > bytes_max {
                break;
            }
            bytes += more;
            count += 1;
        }
        (count, bytes)
    }

    /// Takes the oldest `count` commands, of so many bytes, as one entry.
    fn take_entry(&mut self, (count, bytes): (usize, u64), range_epoch: u64) -> (Bytes, Tickets) {
        let mut payload = PayloadBuilder::new(range_epoch, PAYLOAD_HEADER_BYTES + bytes as usize);
        let mut tickets = Vec::with_capacity(count);
        for waiting in self.waiting.drain(..count) {
            payload.push(&waiting.command);
            tickets.push((Some(waiting.ticket), waiting.deadline));
        }
        self.waiting_bytes -= bytes;
        (payload.finish(), tickets)
    }

    /// Whether the entry committed at `at` is one of ours. Whoever waits for an entry that can't be
    /// committed any more is `lost`.
    pub(crate) fn is_committed(&mut self, at: LogPosition, lost: &mut Vec<Ticket>) -> bool {
        self.proposed.is_committed(at, lost)
    }

    /// Takes those whose entries a snapshot up to `index` passed over: nobody here will ever see
    /// what became of them.
    pub(crate) fn take_passed_over(&mut self, index: u64) -> Vec<Ticket> {
        self.proposed.take_passed_over(index)
    }

    /// Takes everything that waits to be proposed: who, and how many bytes.
    fn take_waiting(&mut self) -> (Vec<Ticket>, u64) {
        (
            self.waiting.drain(..).map(|w| w.ticket).collect(),
            std::mem::take(&mut self.waiting_bytes),
        )
    }

    /// Takes those that wait and that `goes` is true of, with their bytes.
    fn take_those(&mut self, goes: impl Fn(&Waiting) -> bool) -> (Vec<Ticket>, u64) {
        let (mut tickets, mut bytes) = (Vec::new(), 0);
        self.waiting.retain(|waiting| {
            let goes = goes(waiting);
            if goes {
                tickets.push(waiting.ticket);
                bytes += waiting.command.encoded_bytes() as u64;
            }
            !goes
        });
        self.waiting_bytes -= bytes;
        (tickets, bytes)
    }
}

impl Write {
    /// A client's write: refused at once, or in line.
    pub(crate) fn ask(
        &mut self,
        ticket: Ticket,
        command: Command,
        deadline: Time,
        group: &Group,
        ctx: &mut Context<'_>,
    ) {
        if let Err(refusal) = self.admit(&command, deadline, group, ctx) {
            return ctx.reply(ticket, Err(refusal));
        }
        let bytes = command.encoded_bytes() as u64;
        if self.pending() == 0 {
            self.moved_at = ctx.now;
        }
        self.waiting_bytes += bytes;
        self.waiting.push_back(Waiting { ticket, command, deadline });
        ctx.budgets.waiting_bytes += bytes;
        ctx.budgets.gathering.insert(group.shard);
    }

    /// Proposes what has gathered, as far as there is room for it.
    pub(crate) fn propose(&mut self, group: &mut Group, ctx: &mut Context<'_>) {
        if !group.leads() {
            return;
        }
        loop {
            let next = self.next_entry(ctx.config.raft.entry_bytes_max);
            if next.0 == 0 {
                break;
            }
            if group.raw.raft.lead_transferee.is_some() || self.must_wait(next.1, group, ctx) {
                // They go on waiting; every pass looks again.
                ctx.budgets.gathering.insert(group.shard);
                break;
            }
            self.propose_one(next, group, ctx);
        }
        ctx.pass.touch(group.shard);
    }

    /// Whether an entry of so many bytes must wait for what is under way.
    ///
    /// One entry of a group may always be under way, however large it is; raft-rs sees it the same
    /// way. All groups together may have no more than leaves and is applied soon, those that stand
    /// still apart, and one group no more than it leaves to the others: the rest waits here, where
    /// it can still be refused.
    fn must_wait(&self, bytes: u64, group: &Group, ctx: &Context<'_>) -> bool {
        let (raft, config) = (&group.raw.raft, ctx.config);
        let under_way = ctx.budgets.under_way;
        let more = bytes + PAYLOAD_HEADER_BYTES as u64;
        let own = group.under_way_bytes();
        let most = config.raft.inflight_bytes_max;
        let stands_still = self.stands_still(group, ctx.now, config.stand_still_patience());
        let beside = if stands_still { 0 } else { under_way.standing };
        let left = (most / 4)
            .saturating_sub(under_way.bytes - beside)
            .min(most.saturating_sub(under_way.bytes));
        let uncommitted = raft.uncommitted_size() as u64;
        let full = own > 0
            && (uncommitted + more > config.raft.uncommitted_bytes_max || own + more > left);
        full || raft.raft_log.committed.saturating_sub(group.applied.index) > APPLY_LAG_ENTRIES_MAX
            || group.apply_lags(ctx.budgets.unapplied_bytes, config)
    }

    /// Proposes the oldest `count` commands, of so many bytes, as one entry.
    fn propose_one(
        &mut self,
        (count, bytes): (usize, u64),
        group: &mut Group,
        ctx: &mut Context<'_>,
    ) {
        let (data, tickets) = self.take_entry((count, bytes), group.descriptor().epoch.range);
        ctx.budgets.waiting_bytes -= bytes;
        ctx.budgets.pace.proposed(bytes);
        let more = bytes + PAYLOAD_HEADER_BYTES as u64;
        ctx.budgets.under_way.bytes += more;
        ctx.budgets.under_way.uncommitted += more;
        ctx.budgets.proposing.insert(group.shard);
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = group.id.0;
        message.set_entries(vec![Entry { data, ..Entry::default() }].into());
        if Mutation::ProposedTwice.is_on() {
            let _ = group.step(message.clone(), ctx.config);
        }
        match group.step(message, ctx.config) {
            Ok(()) => {
                let raft = &group.raw.raft;
                let at = LogPosition { index: raft.raft_log.last_index(), term: raft.term };
                self.proposed.insert(at, tickets);
                ctx.counters.proposals += 1;
            }
            // raft-rs appended nothing, so nothing of it can ever be committed.
            Err(_) => {
                let limit = ctx.config.raft.uncommitted_bytes_max;
                let refusal =
                    Refusal::Overloaded { what: "raft.uncommitted_bytes_max".into(), limit };
                ctx.refuse_all(tickets.into_iter().filter_map(|(ticket, _)| ticket), &refusal);
            }
        }
    }

    /// What was taken in while there was room waits still, and there is none any more, here or
    /// where the shard has another replica: puts are refused, for certain; deletions go on.
    pub(crate) fn turn_puts_away_without_room(&mut self, group: &Group, ctx: &mut Context<'_>) {
        if ctx.budgets.room.is_full() || ctx.liveness.lacks_room_for(group.descriptor()) {
            let (tickets, bytes) =
                self.take_those(|waiting| matches!(waiting.command.op(), Op::Put { .. }));
            ctx.budgets.waiting_bytes -= bytes;
            ctx.refuse_all(tickets, &Refusal::DiskFull { free_bytes: 0, reserve_bytes: 0 });
        }
    }
}

impl Operation for Write {
    fn on_applied(&mut self, _: &mut Group, ctx: &mut Context<'_>, changes: &mut Changes) {
        for (ticket, result) in self.proposed.settle(std::mem::take(&mut changes.results)) {
            ctx.reply(ticket, Ok(Done::Written(result)));
        }
    }

    /// What was not proposed was certainly not applied, and goes back to be asked elsewhere; what
    /// was proposed stays until the log shows what became of it.
    fn on_role(&mut self, group: &mut Group, ctx: &mut Context<'_>, change: RoleChange) {
        if change.begins {
            self.moved(ctx.now);
        }
        if change.ends {
            let (tickets, bytes) = self.take_waiting();
            ctx.budgets.waiting_bytes -= bytes;
            let refusal = Refusal::NotLeader { shard: group.shard, leader: change.leader };
            ctx.refuse_all(tickets, &refusal);
        }
    }

    /// Answers those whose time is up, as honestly as is known.
    fn on_tick(&mut self, group: &mut Group, ctx: &mut Context<'_>) {
        let shard = group.shard;
        let now = ctx.now;
        let (tickets, bytes) = self.take_those(|waiting| waiting.deadline <= now);
        ctx.budgets.waiting_bytes -= bytes;
        ctx.refuse_all(tickets, &Refusal::Expired { shard });
        let overdue = match Mutation::UnknownAsFailure.is_on() {
            true => Refusal::Expired { shard },
            false => Refusal::OutcomeUnknown { shard },
        };
        ctx.refuse_all(self.proposed.take_expired(ctx.now), &overdue);
    }

    fn end(&mut self, group: &mut Group, ctx: &mut Context<'_>) {
        let shard = group.shard;
        let (tickets, bytes) = self.take_waiting();
        ctx.budgets.waiting_bytes -= bytes;
        ctx.refuse_all(tickets, &Refusal::NotHosted { shard });
        ctx.refuse_all(self.proposed.take_all(), &Refusal::OutcomeUnknown { shard });
    }

    fn is_idle(&self) -> bool {
        self.pending() == 0
    }
}
