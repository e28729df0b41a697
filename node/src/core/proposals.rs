//! Writes: from a client's command to the entry that carries it, and from the applied entry back to the client.
//!
//! *Propose*: commands of a shard wait in line; when no write to the log is under way (or fewer than allowed), all that wait
//! become one entry, up to a size. While a write is under way the next ones gather: self-clocking, no timer.
//! *Apply*: [`flotilla_storage::apply`] finds a result for each command.
//! *On result*: the results are matched with those who wait, by the entry's index **and term**.
//!
//! What is known of a command that was not applied:
//!
//! | it was | and then | answer |
//! |---|---|---|
//! | waiting | leadership was lost, or the time was up | not applied |
//! | proposed | another entry was committed at its index, or one of a higher term below it | not applied |
//! | proposed | the time was up, or a snapshot passed over its index | unknown |

use super::check::apply_lags;
use super::effect::Effect;
use super::event::Ticket;
use super::under_way::UnderWay;
use super::{Node, Time};
use bytes::Bytes;
use flotilla_router::command::{PAYLOAD_HEADER_BYTES, PayloadBuilder};
use flotilla_router::mutation::Mutation;
use flotilla_router::{Command, Op, Refusal, ShardId};
use flotilla_storage::{LogPosition, WriteResult};
use raft::eraftpb::{Entry, Message, MessageType};
use std::collections::{BTreeMap, VecDeque};

/// Committed entries of a shard that are not yet applied, beyond which nothing more is proposed.
const APPLY_LAG_ENTRIES_MAX: u64 = 4096;

/// The writes of one shard.
#[derive(Default)]
pub(super) struct Proposals {
    waiting: VecDeque<Waiting>,
    waiting_bytes: u64,
    /// Entries that were proposed and not yet seen committed. More than one may stand at an index: one of a term in which this
    /// replica led, was deposed and overruled, and one of a later term. Each may still be the one that is committed.
    in_flight: BTreeMap<LogPosition, Tickets>,
    /// Entries that are committed and being applied, in order.
    applying: VecDeque<(LogPosition, Tickets)>,
    /// How many commands are in either.
    in_flight_commands: usize,
    /// When one of its entries was last committed, or the disk here took some; where nothing had been under way, when the first command
    /// came; or when it began to lead.
    moved_at: Time,
}

struct Waiting {
    ticket: Ticket,
    command: Command,
    deadline: Time,
}

/// Who waits for each command of an entry, and until when; nobody any more, where its time was up.
type Tickets = Vec<(Option<Ticket>, Time)>;

impl Proposals {
    /// How many commands wait or are in flight.
    pub(super) fn pending(&self) -> usize {
        self.waiting.len() + self.in_flight_commands
    }

    /// When something last happened to what is under way.
    pub(super) fn moved_at(&self) -> Time {
        self.moved_at
    }

    /// One of its entries was committed, or got onto the disk here, or from now on this replica leads.
    pub(super) fn moved(&mut self, now: Time) {
        self.moved_at = now;
    }

    /// The next commands that fit into one entry: how many, and their bytes. At least one if any wait.
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

    /// Whether the entry committed at `at` is one of ours. Whoever waits for an entry that can't be committed any more is `lost`:
    /// its place was taken, or, since terms only grow along a log, an entry of a higher term was committed below it.
    pub(super) fn is_committed(&mut self, at: LogPosition, lost: &mut Vec<Ticket>) -> bool {
        let mut ours = false;
        while let Some(first) = self.in_flight.first_entry().filter(|first| first.key().index <= at.index) {
            let (place, tickets) = first.remove_entry();
            assert!(place.index == at.index, "entry {} was committed without a word about our {place:?}", at.index);
            if place == at {
                ours = true;
                self.applying.push_back((place, tickets));
            } else {
                self.in_flight_commands -= tickets.len();
                lost.extend(tickets.into_iter().filter_map(|(ticket, _)| ticket));
            }
        }
        if self.in_flight.keys().any(|place| place.term < at.term) {
            self.in_flight.retain(|place, tickets| {
                let stays = place.term >= at.term;
                if !stays {
                    self.in_flight_commands -= tickets.len();
                    lost.extend(tickets.drain(..).filter_map(|(ticket, _)| ticket));
                }
                stays
            });
        }
        ours
    }

    /// Pairs results with those who wait for them.
    pub(super) fn settle(&mut self, results: Vec<(u64, Vec<WriteResult>)>) -> Vec<(Ticket, WriteResult)> {
        let mut settled = Vec::new();
        for (index, results) in results {
            let Some((_, tickets)) = self.applying.pop_front_if(|(at, _)| at.index == index) else { continue };
            assert_eq!(tickets.len(), results.len(), "entry {index} has another number of commands than it was given");
            self.in_flight_commands -= results.len();
            settled.extend(tickets.into_iter().zip(results).filter_map(|((ticket, _), result)| Some((ticket?, result))));
        }
        settled
    }

    /// Takes everything that waits to be proposed: who, and how many bytes.
    pub(super) fn take_waiting(&mut self) -> (Vec<Ticket>, u64) {
        (self.waiting.drain(..).map(|w| w.ticket).collect(), std::mem::take(&mut self.waiting_bytes))
    }

    /// Takes everything, with whether it was proposed. Its bytes must not count any more, either.
    pub(super) fn take_all(&mut self) -> Vec<(Ticket, bool)> {
        let (waiting, _) = self.take_waiting();
        let mut all: Vec<_> = waiting.into_iter().map(|ticket| (ticket, false)).collect();
        all.extend(self.take_passed_over(u64::MAX).into_iter().map(|ticket| (ticket, true)));
        all
    }

    /// Takes those whose entries a snapshot up to `index` passed over: nobody here will ever see what became of them.
    pub(super) fn take_passed_over(&mut self, index: u64) -> Vec<Ticket> {
        let above = self.in_flight.split_off(&LogPosition { index: index.saturating_add(1), term: 0 });
        let passed_over = std::mem::replace(&mut self.in_flight, above).into_values();
        // A snapshot waits until all that was handed out is applied, so these are only there when a shard is set aside.
        let applying = std::mem::take(&mut self.applying).into_iter().map(|(_, tickets)| tickets);
        let all: Vec<_> = applying.chain(passed_over).flatten().collect();
        self.in_flight_commands -= all.len();
        all.into_iter().filter_map(|(ticket, _)| ticket).collect()
    }

    /// Takes the puts that wait, with their bytes.
    pub(super) fn take_puts(&mut self) -> (Vec<Ticket>, u64) {
        let (mut tickets, mut bytes) = (Vec::new(), 0);
        self.waiting.retain(|waiting| {
            let is_put = matches!(waiting.command.op, Op::Put { .. });
            if is_put {
                tickets.push(waiting.ticket);
                bytes += waiting.command.encoded_bytes() as u64;
            }
            !is_put
        });
        self.waiting_bytes -= bytes;
        (tickets, bytes)
    }

    /// Bytes that wait to be proposed.
    pub(super) fn waiting_bytes(&self) -> u64 {
        self.waiting_bytes
    }

    /// Takes those whose time is up: first those that were not proposed, with their bytes, then those that were.
    fn take_expired(&mut self, now: Time) -> (Vec<Ticket>, u64, Vec<Ticket>) {
        let mut unproposed = Vec::new();
        let mut bytes = 0;
        self.waiting.retain(|w| {
            let expired = w.deadline <= now;
            if expired {
                unproposed.push(w.ticket);
                bytes += w.command.encoded_bytes() as u64;
            }
            !expired
        });
        self.waiting_bytes -= bytes;
        let expired = |(ticket, deadline): &mut (Option<Ticket>, Time)| if *deadline <= now { ticket.take() } else { None };
        let proposed = self
            .applying
            .iter_mut()
            .map(|(_, tickets)| tickets)
            .chain(self.in_flight.values_mut())
            .flat_map(|tickets| tickets.iter_mut().filter_map(expired))
            .collect();
        (unproposed, bytes, proposed)
    }
}

impl Node {
    /// A client's write: refused at once, or in line.
    pub(super) fn command(&mut self, ticket: Ticket, shard: ShardId, command: Command, deadline: Time) {
        self.counters.commands += 1;
        let result = self.admit(shard, &command, deadline);
        if let Err(refusal) = result {
            self.outbox.effects.push(Effect::Reply { ticket, shard, result: Err(refusal) });
            return;
        }
        let bytes = command.encoded_bytes() as u64;
        let replica = self.registry.get_mut(shard).expect("admitted");
        if replica.proposals.pending() == 0 {
            replica.proposals.moved_at = self.now;
        }
        replica.proposals.waiting_bytes += bytes;
        replica.proposals.waiting.push_back(Waiting { ticket, command, deadline });
        self.waiting_bytes += bytes;
        self.gathering.insert(shard);
    }

    /// Proposes what has gathered, unless as many writes as allowed are under way: their end brings us here again.
    pub(super) fn propose_gathered(&mut self) {
        if self.writing.len() >= self.config.raft.max_inflight_writes || self.gathering.is_empty() {
            return;
        }
        self.turn_puts_away_where_disks_are_full();
        let mut last = std::mem::take(&mut self.gathering);
        let first = last.split_off(&self.propose_first);
        let mut under_way = self.under_way();
        for shard in first.into_iter().chain(last) {
            self.propose(shard, &mut under_way);
        }
        self.take_note(under_way);
        // Whoever was held back for the sake of others goes before them the next time.
        if let Some(held) = self.gathering.range(self.propose_first..).next().or(self.gathering.first()) {
            self.propose_first = *held;
        }
    }

    fn propose(&mut self, shard: ShardId, under_way: &mut UnderWay) {
        let (now, patience) = (self.now, self.config.stand_still_patience());
        let Some(replica) = self.registry.get_mut(shard) else { return };
        if !replica.leads() {
            return;
        }
        let range_epoch = replica.descriptor.epoch.range;
        loop {
            let (count, bytes) = replica.proposals.next_entry(self.config.raft.max_entry_size_bytes);
            if count == 0 {
                break;
            }
            let raft = &replica.raw.raft;
            let uncommitted = raft.uncommitted_size() as u64;
            let more = bytes + PAYLOAD_HEADER_BYTES as u64;
            // One entry of a group may always be under way, however large it is; raft-rs sees it the same way. All groups together may
            // have no more than leaves and is applied soon, those that stand still apart, and one group no more than it leaves to the
            // others: the rest waits here, where it can still be refused.
            let own = replica.under_way_bytes();
            let most = self.config.raft.max_inflight_bytes;
            let beside = if replica.stands_still(now, patience) { 0 } else { under_way.standing };
            let left = (most / 4).saturating_sub(under_way.bytes - beside).min(most.saturating_sub(under_way.bytes));
            let full = own > 0 && (uncommitted + more > self.config.raft.max_uncommitted_size_bytes || own + more > left);
            let apply_lags = raft.raft_log.committed.saturating_sub(replica.applied.index) > APPLY_LAG_ENTRIES_MAX
                || apply_lags(replica, self.unapplied_bytes, &self.config);
            if raft.lead_transferee.is_some() || full || apply_lags {
                // They go on waiting; every pass looks again.
                self.gathering.insert(shard);
                break;
            }
            let (data, tickets) = replica.proposals.take_entry((count, bytes), range_epoch);
            self.waiting_bytes -= bytes;
            self.pace.proposed(bytes);
            under_way.bytes += more;
            under_way.uncommitted += more;
            self.under_way.insert(shard);
            let mut message = Message::default();
            message.set_msg_type(MessageType::MsgPropose);
            message.from = replica.id.0;
            message.set_entries(vec![Entry { data, ..Entry::default() }].into());
            if Mutation::ProposedTwice.is_on() {
                let _ = replica.raw.step(message.clone());
            }
            match replica.raw.step(message) {
                Ok(()) => {
                    let raft = &replica.raw.raft;
                    let at = LogPosition { index: raft.raft_log.last_index(), term: raft.term };
                    replica.proposals.in_flight_commands += tickets.len();
                    replica.proposals.in_flight.insert(at, tickets);
                    self.counters.proposals += 1;
                }
                // raft-rs appended nothing, so nothing of it can ever be committed.
                Err(_) => {
                    for (ticket, _) in tickets {
                        let Some(ticket) = ticket else { continue };
                        let limit = self.config.raft.max_uncommitted_size_bytes;
                        let refusal = Refusal::Overloaded { what: "raft.max_uncommitted_size_bytes".into(), limit };
                        self.outbox.effects.push(Effect::Reply { ticket, shard, result: Err(refusal) });
                    }
                }
            }
        }
        self.touch(shard);
    }

    /// Answers those whose time is up, as honestly as is known.
    pub(super) fn expire_commands(&mut self, shard: ShardId) {
        let Some(replica) = self.registry.get_mut(shard) else { return };
        let (unproposed, bytes, proposed) = replica.proposals.take_expired(self.now);
        self.waiting_bytes -= bytes;
        let overdue = || match Mutation::UnknownAsFailure.is_on() {
            true => Refusal::Expired { shard },
            false => Refusal::Unknown { shard },
        };
        let answers = unproposed
            .into_iter()
            .map(|ticket| (ticket, Refusal::Expired { shard }))
            .chain(proposed.into_iter().map(|ticket| (ticket, overdue())));
        for (ticket, refusal) in answers {
            self.outbox.effects.push(Effect::Reply { ticket, shard, result: Err(refusal) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(index: u64, term: u64) -> LogPosition {
        LogPosition { index, term }
    }

    /// Entries with one command each, whose tickets are numbered as they come.
    fn in_flight(places: &[LogPosition]) -> Proposals {
        let mut proposals = Proposals::default();
        for (place, ticket) in places.iter().zip(1..) {
            proposals.in_flight.insert(*place, vec![(Some(Ticket(ticket)), Time::MAX)]);
            proposals.in_flight_commands += 1;
        }
        proposals
    }

    #[test]
    fn entries_that_commit_together_are_settled_in_order() {
        let mut proposals = in_flight(&[at(10, 2), at(11, 2)]);
        let mut lost = Vec::new();
        assert!(proposals.is_committed(at(10, 2), &mut lost));
        assert!(proposals.is_committed(at(11, 2), &mut lost));
        assert!(lost.is_empty());
        let results = vec![(10, vec![WriteResult::Deleted]), (11, vec![WriteResult::Deleted])];
        let settled: Vec<_> = proposals.settle(results).into_iter().map(|(ticket, _)| ticket).collect();
        assert_eq!((settled, proposals.pending()), (vec![Ticket(1), Ticket(2)], 0));
    }

    /// Led in term 2, deposed, overruled by a shorter log in term 3, leads again in term 4: at index 12 two of ours stand.
    #[test]
    fn overruled_entries_are_lost_once_a_higher_term_is_committed_at_or_below_them() {
        let mut proposals = in_flight(&[at(10, 2), at(12, 2), at(13, 2), at(12, 4)]);
        let mut lost = Vec::new();
        assert!(!proposals.is_committed(at(9, 2), &mut lost));
        assert_eq!(lost, [], "an entry of the same term says nothing about those above it");
        assert!(!proposals.is_committed(at(10, 3), &mut lost));
        assert_eq!(lost, [Ticket(1), Ticket(2), Ticket(3)], "above an entry of term 3 nothing of term 2 can stand");
        assert!(proposals.is_committed(at(12, 4), &mut lost));
        assert_eq!(lost.len(), 3);
        assert_eq!(proposals.settle(vec![(12, vec![WriteResult::Deleted])]), [(Ticket(4), WriteResult::Deleted)]);
        assert_eq!(proposals.pending(), 0);
    }

    #[test]
    fn a_snapshot_passes_over_what_it_covers_and_nothing_above() {
        let mut proposals = in_flight(&[at(10, 2), at(11, 2), at(12, 2)]);
        assert_eq!(proposals.take_passed_over(11), [Ticket(1), Ticket(2)]);
        assert_eq!(proposals.pending(), 1);
        assert_eq!(proposals.take_all(), [(Ticket(3), true)]);
    }
}
