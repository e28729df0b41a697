//! What an operation may see and use of the node beyond its own group: time and options to read,
//! and the few things that all groups share to write to.

use super::budgets::Budgets;
use super::config::{CoreConfig, Identity};
use super::counters::Counters;
use super::effect::{Done, Effect};
use super::event::{SnapshotId, Ticket};
use super::liveness::Liveness;
use super::pass::Pass;
use super::time::Time;
use flotilla_router::Refusal;
use flotilla_router::mutation::Mutation;

/// The node, as one replica sees it while something happens to it.
pub(crate) struct Context<'a> {
    /// The options.
    pub(crate) config: &'a CoreConfig,
    /// Who this node is.
    pub(crate) identity: Identity,
    /// The time of this pass.
    pub(crate) now: Time,
    /// Ticks since the node started.
    pub(crate) ticks: u64,
    /// Which other nodes are alive.
    pub(crate) liveness: &'a Liveness,
    /// What leaves at the end of the pass.
    pub(crate) pass: &'a mut Pass,
    /// What all groups together may hold.
    pub(crate) budgets: &'a mut Budgets,
    /// Numbers that are given out once.
    pub(crate) ids: &'a mut Ids,
    /// What is counted.
    pub(crate) counters: &'a mut Counters,
}

impl Context<'_> {
    /// Answers whoever waits.
    pub(crate) fn reply(&mut self, ticket: Ticket, result: Result<Done, Refusal>) {
        self.pass.effects.push(Effect::Reply { ticket, result });
    }

    /// Refuses what many wait for.
    pub(crate) fn refuse_all(
        &mut self,
        tickets: impl IntoIterator<Item = Ticket>,
        refusal: &Refusal,
    ) {
        tickets.into_iter().for_each(|ticket| self.reply(ticket, Err(refusal.clone())));
    }
}

/// Numbers that this life of the node gives out, each once.
#[derive(Debug)]
pub(crate) struct Ids {
    fetch: u64,
    snapshot: u64,
    read: u64,
}

impl Default for Ids {
    fn default() -> Self {
        Self { fetch: 1, snapshot: 1, read: 1 }
    }
}

impl Ids {
    /// The next number of a fetch.
    pub(crate) fn fetch(&mut self) -> u64 {
        self.fetch += 1;
        self.fetch - 1
    }

    /// The next name of a snapshot.
    pub(crate) fn snapshot(&mut self) -> SnapshotId {
        self.snapshot += 1;
        SnapshotId(self.snapshot - 1)
    }

    /// The next number of a read context.
    pub(crate) fn read(&mut self) -> u64 {
        let read = self.read;
        self.read += u64::from(!Mutation::ReusedReadContext.is_on());
        read
    }
}
