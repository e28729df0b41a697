//! How old what a replica shows may be: a bound that is shown, or none.
//!
//! What a replica has applied is *fresh as of* a moment when every write that anybody was told of
//! before that moment is in it. Such a moment is a fact that stays true whoever leads later, so a
//! replica keeps the latest one that it knows. The moment at which a message is *handled* proves
//! nothing: it may have waited for seconds while this process stood still, or on its way, and its
//! sender may have been deposed meanwhile. So every message carries when it left, on its sender's
//! clock ([`Timing`]), and the other end says that back:
//!
//! ```text
//! follower  ── sent at f ──▶ leader     remembers f, and when it heard it: h
//! leader    ── "f, held for now − h; I led as of now − lag; committed c" ──▶ follower
//! follower     fresh as of f + held − lag, once c is applied
//! ```
//!
//! - **It led as of s**: a quorum has answered, in the leader's term, messages that it sent at `s`
//!   or later. None of them had voted for anybody of a higher term by then, so nobody of a higher
//!   term had committed anything. The follower itself answers by taking the message up in that
//!   term.
//! - **What was known by then is at or below c**: the leader's commit index, once it has committed
//!   an entry of its own term.
//! - **On the follower's clock**: the leader heard `f` after it was sent, so `now` on the leader's
//!   clock is no earlier than `f` plus the time for which it was held. Spans that the other's clock
//!   has measured are shortened, or stretched, by the drift that is allowed for
//!   (`reads.clock_drift_percent_max`).
//!
//! A leader uses the same rule for itself, without the way back, and it, too, must have applied
//! what it has committed.

use super::{Changes, Operation, RoleChange};
use crate::core::context::Context;
use crate::core::effect::Effect;
use crate::core::event::Ticket;
use crate::core::group::Group;
use crate::core::time::Time;
use crate::core::wire::{Envelope, Stamp, Timing};
use flotilla_router::call::Staleness;
use flotilla_router::mutation::Mutation;
use flotilla_router::{Refusal, ReplicaId};
use raft::eraftpb::{Message, MessageType};
use std::collections::BTreeMap;

/// What a replica knows of its age, and of its peers' clocks.
#[derive(Default)]
pub(crate) struct Freshness {
    /// What is applied is fresh as of then.
    fresh_at: Option<Time>,
    /// What will be fresh as of when, once this much is applied; the older of two.
    next: Option<Claim>,
    /// The newest, for which the same will hold later.
    newest: Option<Claim>,
    /// On a leader: what its followers' clocks showed, in this term.
    heard: BTreeMap<ReplicaId, Heard>,
    /// On a follower: the term, the leader, and the last that its clock showed.
    leader: Option<(u64, ReplicaId, Stamp)>,
}

/// Whoever has applied `committed` is fresh as of `at`.
#[derive(Clone, Copy)]
struct Claim {
    committed: u64,
    at: Time,
}

/// What a leader has heard from one follower.
struct Heard {
    /// The last that its clock showed.
    stamp: Stamp,
    /// When that was heard.
    at: Time,
    /// The latest of this leader's own times that it has answered.
    answered: Option<Time>,
}

impl Freshness {
    /// Takes a claim in, on a replica that has applied this much.
    fn claim(&mut self, claim: Claim, applied: u64) {
        if claim.committed <= applied || Mutation::AgeBeforeApplied.is_on() {
            self.fresh_at = self.fresh_at.max(Some(claim.at));
        } else if self.next.is_none_or(|next| claim.committed < next.committed) {
            // One that asks for more than the leader does now would only be waited for.
            self.next = Some(claim);
        } else {
            // Under load there is always something that is not applied yet. With two places the
            // older one is not put off for ever.
            self.newest = Some(claim);
        }
    }
}

impl Freshness {
    /// How old what it shows may be; `None` where nothing is known of it.
    pub(crate) fn age(&mut self, group: &Group, now: Time) -> Option<Time> {
        self.claim_as_leader(group, now);
        self.fresh_at.map(|at| now.saturating_sub(at))
    }

    /// The latest of this leader's own times that a follower has answered, in this term.
    pub(crate) fn answered(&self, follower: ReplicaId) -> Option<Time> {
        self.heard.get(&follower)?.answered
    }

    /// What a leader knows by itself.
    fn claim_as_leader(&mut self, group: &Group, now: Time) {
        if let Some(at) = self.led_at(group, now, None) {
            let committed = group.raw.raft.raft_log.committed;
            self.claim(Claim { committed, at }, group.applied.index);
        }
    }

    /// When this leader is last shown to have led, and all that was committed by then is committed
    /// here. `reader` is a replica that will have heard it by the time that it uses the answer.
    fn led_at(&self, group: &Group, now: Time, reader: Option<ReplicaId>) -> Option<Time> {
        if !group.leads() || !group.raw.raft.commit_to_current_term() {
            return None;
        }
        let at = |id| {
            let is_here = id == group.id || Some(id) == reader;
            if is_here { Some(now) } else { self.answered(id) }
        };
        // A quorum of every set of voters has answered what was sent then, or later.
        group.descriptor().agreed(|voter| at(voter.id)).flatten()
    }

    /// What a message of this replica says of clocks, when it leaves at `now`.
    pub(crate) fn timing(
        &self,
        group: &Group,
        message: &Message,
        stamp: Stamp,
        now: Time,
    ) -> Timing {
        let (to, mut timing) = (ReplicaId(message.to), Timing { stamp, ..Timing::default() });
        if message.term != group.raw.raft.term {
            return timing;
        }
        if !group.leads() {
            timing.echo = match self.leader {
                Some((term, leader, stamp)) if term == message.term && leader == to => stamp,
                _ => Stamp::NONE,
            };
        } else if is_from_leader(message)
            && let Some(heard) = self.heard.get(&to)
        {
            timing.echo = heard.stamp;
            timing.held = now.saturating_sub(heard.at);
            // Rounded up, so that nothing looks newer on the wire than it is.
            timing.lag = self
                .led_at(group, now, Some(to))
                .map(|at| now.saturating_sub(at) + Time::from_micros(1));
        }
        timing
    }

    /// Notes what a message that is about to be stepped tells of its sender: that it leads, and
    /// what the clocks show.
    pub(crate) fn note_heard(&mut self, envelope: &Envelope, group: &mut Group, ctx: &Context<'_>) {
        let (now, life) = (ctx.now, ctx.identity.incarnation);
        let drift = ctx.config.reads.clock_drift_percent_max.min(50);
        let (message, timing) = (&envelope.message, envelope.timing);
        let (from, term) = (ReplicaId(message.from), group.raw.raft.term);
        if group.leads() {
            if message.term != term {
                return;
            }
            let heard = self.heard.entry(from).or_insert(Heard {
                stamp: Stamp::NONE,
                at: now,
                answered: None,
            });
            if timing.stamp.is_news_after(heard.stamp) {
                (heard.stamp, heard.at) = (timing.stamp, now);
            }
            heard.answered = heard.answered.max(timing.echo.at(life));
            if message.get_msg_type() == MessageType::MsgHeartbeatResponse {
                self.claim_as_leader(group, now);
            }
        } else if is_from_leader(message) && message.term >= term {
            group.heard_leader_at = ctx.ticks;
            self.leader = Some((message.term, from, timing.stamp));
            let committed = envelope.committed;
            let shown = || {
                let heard_at = timing.echo.at(life)?;
                let (held, lag) =
                    (timing.held * (100 - drift) / 100, timing.lag? * 100 / (100 - drift));
                (heard_at + held).checked_sub(lag)
            };
            let at = if Mutation::AgeByArrival.is_on() { Some(now) } else { shown() };
            if let Some(at) = at {
                // The two clocks may disagree by more than was allowed for; but nothing is newer
                // than now.
                self.claim(Claim { committed, at: at.min(now) }, group.applied.index);
            }
        }
    }

    /// More was applied, by entries or by a snapshot.
    pub(crate) fn note_applied(&mut self, group: &Group) {
        while let Some(next) = self.next.filter(|next| next.committed <= group.applied.index) {
            self.fresh_at = self.fresh_at.max(Some(next.at));
            self.next = self.newest.take();
        }
    }

    /// Answers a stale read: at once, by any replica, with its applied index and its age.
    pub(crate) fn read(
        &mut self,
        ticket: Ticket,
        age_max: Option<Time>,
        group: &Group,
        ctx: &mut Context<'_>,
    ) {
        let age = self.age(group, ctx.now);
        if age_max.is_some_and(|max| age.is_none_or(|age| age > max)) {
            return ctx.reply(ticket, Err(Refusal::TooStale { shard: group.shard }));
        }
        let staleness = Some(Staleness { applied: group.applied.index, age });
        let descriptor = group.descriptor().clone();
        ctx.pass.effects.push(Effect::Read { tickets: vec![ticket], descriptor, staleness });
    }
}

/// Whether only a leader says this.
fn is_from_leader(message: &Message) -> bool {
    matches!(message.get_msg_type(), MessageType::MsgHeartbeat | MessageType::MsgAppend)
}

impl Operation for Freshness {
    fn on_applied(&mut self, group: &mut Group, _: &mut Context<'_>, _: &mut Changes) {
        self.note_applied(group);
    }

    fn on_role(&mut self, _: &mut Group, _: &mut Context<'_>, change: RoleChange) {
        if change.ends {
            // What followers said to it in its term.
            self.heard.clear();
        }
    }

    fn on_tick(&mut self, _: &mut Group, _: &mut Context<'_>) {}
    fn end(&mut self, _: &mut Group, _: &mut Context<'_>) {}

    /// Ages are worked out when somebody asks.
    fn is_idle(&self) -> bool {
        true
    }
}
