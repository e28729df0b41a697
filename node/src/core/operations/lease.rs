//! Leases: a leader that may answer reads alone for a while (thesis §6.4.1).
//!
//! A confirmed read context proves that a quorum heard this leader at, or after, the time when it
//! was sent; each of them stands by it for an election timeout of its own clock
//! ([`timeouts`](crate::core::group::timeouts)). Until then, less a drift bound, no other leader
//! can exist. Void while and after handing over in the same term, and on stepping down. Never
//! raft-rs's own lease mode. The clock is read after the read was taken in: a process that then
//! stands still answers late, not wrongly.

use super::{Changes, Operation, RoleChange};
use crate::core::context::Context;
use crate::core::group::Group;
use crate::core::time::Time;
use flotilla_router::mutation::Mutation;

/// The lease of one leader.
#[derive(Default)]
pub(crate) struct Lease {
    /// Until when this leader may answer alone.
    until: Option<Time>,
}

impl Lease {
    /// A quorum has answered what was sent at these times.
    pub(crate) fn renew(&mut self, sent_at: impl Iterator<Item = Time>, lease: Option<Time>) {
        if let Some(lease) = lease {
            self.until = self.until.max(sent_at.max().map(|at| at + lease));
        }
    }

    /// Whether it holds at `now`.
    pub(crate) fn holds(&self, now: Time) -> bool {
        self.until.is_some_and(|until| now < until || Mutation::LeaseWithoutClock.is_on())
    }

    /// No lease from here on: this leader begins to hand over.
    pub(crate) fn hand_over(&mut self) {
        if !Mutation::LeaseKeptInTransfer.is_on() {
            self.until = None;
        }
    }

    /// Voids it where there must be none: leases are off, or this leader has tried to hand over in
    /// its term.
    pub(crate) fn check(&mut self, group: &Group, ctx: &Context<'_>) {
        let transferred = group.transferred_in_term == group.raw.raft.term;
        if ctx.config.lease().is_none() || transferred && !Mutation::LeaseKeptInTransfer.is_on() {
            self.until = None;
        }
    }
}

impl Operation for Lease {
    fn on_applied(&mut self, _: &mut Group, _: &mut Context<'_>, _: &mut Changes) {}

    fn on_role(&mut self, _: &mut Group, _: &mut Context<'_>, change: RoleChange) {
        if change.ends {
            self.until = None;
        }
    }

    fn on_tick(&mut self, _: &mut Group, _: &mut Context<'_>) {}

    fn end(&mut self, _: &mut Group, _: &mut Context<'_>) {
        self.until = None;
    }

    fn is_idle(&self) -> bool {
        true
    }
}
