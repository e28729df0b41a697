//! Entries that were proposed, and who waits for what becomes of them: matched by index **and
//! term**, because another leader's entry may be committed at the same index.

use crate::core::event::Ticket;
use crate::core::time::Time;
use flotilla_storage::{LogPosition, WriteResult};
use std::collections::{BTreeMap, VecDeque};

/// Who waits for each command of an entry, and until when; nobody any more, where its time was up.
pub(super) type Tickets = Vec<(Option<Ticket>, Time)>;

/// The proposed entries of one shard.
#[derive(Default)]
pub(super) struct Proposed {
    /// Entries that were not yet seen committed. More than one may stand at an index: one of a term
    /// in which this replica led, was deposed and overruled, and one of a later term. Each may
    /// still be the one that is committed.
    in_flight: BTreeMap<LogPosition, Tickets>,
    /// Entries that are committed and being applied, in order.
    applying: VecDeque<(LogPosition, Tickets)>,
    /// How many commands are in either.
    commands: usize,
}

impl Proposed {
    /// How many commands they carry.
    pub(super) fn commands(&self) -> usize {
        self.commands
    }

    /// An entry was proposed.
    pub(super) fn insert(&mut self, at: LogPosition, tickets: Tickets) {
        self.commands += tickets.len();
        self.in_flight.insert(at, tickets);
    }

    /// Whether the entry committed at `at` is one of ours. Whoever waits for an entry that can't be
    /// committed any more is `lost`: its place was taken, or, since terms only grow along a log, an
    /// entry of a higher term was committed below it.
    pub(super) fn is_committed(&mut self, at: LogPosition, lost: &mut Vec<Ticket>) -> bool {
        let mut ours = false;
        while let Some(first) =
            self.in_flight.first_entry().filter(|first| first.key().index <= at.index)
        {
            let (place, tickets) = first.remove_entry();
            assert!(
                place.index == at.index,
                "entry {} was committed without a word about our {place:?}",
                at.index
            );
            if place == at {
                ours = true;
                self.applying.push_back((place, tickets));
            } else {
                self.commands -= tickets.len();
                lost.extend(tickets.into_iter().filter_map(|(ticket, _)| ticket));
            }
        }
        if self.in_flight.keys().any(|place| place.term < at.term) {
            self.in_flight.retain(|place, tickets| {
                let stays = place.term >= at.term;
                if !stays {
                    self.commands -= tickets.len();
                    lost.extend(tickets.drain(..).filter_map(|(ticket, _)| ticket));
                }
                stays
            });
        }
        ours
    }

    /// Pairs results with those who wait for them.
    pub(super) fn settle(
        &mut self,
        results: Vec<(u64, Vec<WriteResult>)>,
    ) -> Vec<(Ticket, WriteResult)> {
        let mut settled = Vec::new();
        for (index, results) in results {
            let Some((_, tickets)) = self.applying.pop_front_if(|(at, _)| at.index == index) else {
                continue;
            };
            assert_eq!(
                tickets.len(),
                results.len(),
                "entry {index} has another number of commands than it was given"
            );
            self.commands -= results.len();
            settled.extend(
                tickets
                    .into_iter()
                    .zip(results)
                    .filter_map(|((ticket, _), result)| Some((ticket?, result))),
            );
        }
        settled
    }

    /// Takes those whose entries a snapshot up to `index` passed over.
    pub(super) fn take_passed_over(&mut self, index: u64) -> Vec<Ticket> {
        let above =
            self.in_flight.split_off(&LogPosition { index: index.saturating_add(1), term: 0 });
        let passed_over = std::mem::replace(&mut self.in_flight, above).into_values();
        // A snapshot waits until all that was scheduled is applied, so these are only there in
        // quarantine.
        let applying = std::mem::take(&mut self.applying).into_iter().map(|(_, tickets)| tickets);
        let all: Vec<_> = applying.chain(passed_over).flatten().collect();
        self.commands -= all.len();
        all.into_iter().filter_map(|(ticket, _)| ticket).collect()
    }

    /// Takes all of them.
    pub(super) fn take_all(&mut self) -> Vec<Ticket> {
        self.take_passed_over(u64::MAX)
    }

    /// Takes those whose time is up. The entries stay: what they come to is known later.
    pub(super) fn take_expired(&mut self, now: Time) -> Vec<Ticket> {
        let expired = |(ticket, deadline): &mut (Option<Ticket>, Time)| {
            if *deadline <= now { ticket.take() } else { None }
        };
        let applying = self.applying.iter_mut().map(|(_, tickets)| tickets);
        let all = applying.chain(self.in_flight.values_mut());
        all.flat_map(|tickets| tickets.iter_mut().filter_map(expired)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(index: u64, term: u64) -> LogPosition {
        LogPosition { index, term }
    }

    /// Entries with one command each, whose tickets are numbered as they come.
    fn in_flight(places: &[LogPosition]) -> Proposed {
        let mut proposed = Proposed::default();
        for (place, ticket) in places.iter().zip(1..) {
            proposed.in_flight.insert(*place, vec![(Some(Ticket(ticket)), Time::MAX)]);
            proposed.commands += 1;
        }
        proposed
    }

    #[test]
    fn entries_that_commit_together_are_settled_in_order() {
        let mut proposed = in_flight(&[at(10, 2), at(11, 2)]);
        let mut lost = Vec::new();
        assert!(proposed.is_committed(at(10, 2), &mut lost));
        assert!(proposed.is_committed(at(11, 2), &mut lost));
        assert!(lost.is_empty());
        let results = vec![(10, vec![WriteResult::Deleted]), (11, vec![WriteResult::Deleted])];
        let settled: Vec<_> =
            proposed.settle(results).into_iter().map(|(ticket, _)| ticket).collect();
        assert_eq!((settled, proposed.commands()), (vec![Ticket(1), Ticket(2)], 0));
    }

    /// Led in term 2, deposed, overruled by a shorter log in term 3, leads again in term 4: at
    /// index 12 two of ours stand.
    #[test]
    fn overruled_entries_are_lost_once_a_higher_term_is_committed_at_or_below_them() {
        let mut proposed = in_flight(&[at(10, 2), at(12, 2), at(13, 2), at(12, 4)]);
        let mut lost = Vec::new();
        assert!(!proposed.is_committed(at(9, 2), &mut lost));
        assert_eq!(lost, [], "an entry of the same term says nothing about those above it");
        assert!(!proposed.is_committed(at(10, 3), &mut lost));
        assert_eq!(
            lost,
            [Ticket(1), Ticket(2), Ticket(3)],
            "above an entry of term 3 nothing of term 2 can stand"
        );
        assert!(proposed.is_committed(at(12, 4), &mut lost));
        assert_eq!(lost.len(), 3);
        assert_eq!(
            proposed.settle(vec![(12, vec![WriteResult::Deleted])]),
            [(Ticket(4), WriteResult::Deleted)]
        );
        assert_eq!(proposed.commands(), 0);
    }

    #[test]
    fn a_snapshot_passes_over_what_it_covers_and_nothing_above() {
        let mut proposed = in_flight(&[at(10, 2), at(11, 2), at(12, 2)]);
        assert_eq!(proposed.take_passed_over(11), [Ticket(1), Ticket(2)]);
        assert_eq!(proposed.commands(), 1);
        assert_eq!(proposed.take_all(), [Ticket(3)]);
    }
}
