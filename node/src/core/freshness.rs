//! How old what a replica shows may be: a bound that is shown, or none.
//!
//! What a replica has applied is *fresh as of* a moment when every write that anybody was told of before that moment is in it. Such a
//! moment is a fact that stays true whoever leads later, so a replica keeps the latest one that it knows. The moment at which a message
//! is *handled* proves nothing: it may have waited for seconds while this process stood still, or on its way, and its sender may have
//! been deposed meanwhile. So every message carries when it left, on its sender's clock ([`Timing`]), and the other end says that
//! back:
//!
//! ```text
//! follower  ── sent at f ──▶ leader     remembers f, and when it heard it: h
//! leader    ── "f, held for now − h; I led as of now − lag; committed c" ──▶ follower
//! follower     fresh as of f + held − lag, once c is applied
//! ```
//!
//! - **It led as of s**: a quorum has answered, in the leader's term, messages that it sent at `s` or later. None of them had voted for
//!   anybody of a higher term by then, so nobody of a higher term had committed anything. The follower itself answers by taking the
//!   message up in that term.
//! - **What was known by then is at or below c**: the leader's commit index, once it has committed an entry of its own term.
//! - **On the follower's clock**: the leader heard `f` after it was sent, so `now` on the leader's clock is no earlier than `f` plus
//!   the time for which it was held. Spans that the other's clock has measured are shortened, or stretched, by the drift that is
//!   allowed for (`reads.clock_drift_max_percent`).
//!
//! A leader uses the same rule for itself, without the way back, and it, too, must have applied what it has committed.

use super::replica::Replica;
use super::wire::{Envelope, Stamp, Timing};
use super::{Node, Time};
use flotilla_router::mutation::Mutation;
use flotilla_router::{ReplicaId, ShardId};
use raft::eraftpb::{Message, MessageType};
use std::collections::BTreeMap;

/// What a replica knows of its age, and of its peers' clocks.
#[derive(Default)]
pub(super) struct Freshness {
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
            // Under load there is always something that is not applied yet. With two places the older one is not put off for ever.
            self.newest = Some(claim);
        }
    }

    /// This much is applied now.
    pub(super) fn applied(&mut self, applied: u64) {
        while let Some(next) = self.next.filter(|next| next.committed <= applied) {
            self.fresh_at = self.fresh_at.max(Some(next.at));
            self.next = self.newest.take();
        }
    }

    /// Leadership is gone, and what followers said to it in its term.
    pub(super) fn stop_leading(&mut self) {
        self.heard.clear();
    }
}

impl Replica {
    /// How old what it shows may be; `None` where nothing is known of it.
    pub(super) fn age(&mut self, now: Time) -> Option<Time> {
        self.claim_as_leader(now);
        self.freshness.fresh_at.map(|at| now.saturating_sub(at))
    }

    /// What a leader knows by itself.
    fn claim_as_leader(&mut self, now: Time) {
        if let Some(at) = self.led_at(now, None) {
            let committed = self.raw.raft.raft_log.committed;
            self.freshness.claim(Claim { committed, at }, self.applied.index);
        }
    }

    /// When this leader is last shown to have led, and all that was committed by then is committed here. `reader` is somebody who will
    /// have heard it by the time that he uses the answer.
    fn led_at(&self, now: Time, reader: Option<ReplicaId>) -> Option<Time> {
        if !self.leads() || !self.raw.raft.commit_to_current_term() {
            return None;
        }
        let at = |id| match self.freshness.heard.get(&id) {
            _ if id == self.id || Some(id) == reader => Some(now),
            heard => heard.and_then(|heard| heard.answered),
        };
        // A quorum of every set of voters has answered what was sent then, or later.
        self.descriptor.agreed(|voter| at(voter.id)).flatten()
    }

    /// What a message of this replica says of clocks, when it leaves at `now`.
    pub(super) fn timing(&self, message: &Message, stamp: Stamp, now: Time) -> Timing {
        let (to, mut timing) = (ReplicaId(message.to), Timing { stamp, ..Timing::default() });
        if message.term != self.raw.raft.term {
            return timing;
        }
        if !self.leads() {
            timing.echo = match self.freshness.leader {
                Some((term, leader, stamp)) if term == message.term && leader == to => stamp,
                _ => Stamp::NONE,
            };
        } else if is_from_leader(message)
            && let Some(heard) = self.freshness.heard.get(&to)
        {
            timing.echo = heard.stamp;
            timing.held = now.saturating_sub(heard.at);
            // Rounded up, so that nothing looks newer on the wire than it is.
            timing.lag = self.led_at(now, Some(to)).map(|at| now.saturating_sub(at) + Time::from_micros(1));
        }
        timing
    }
}

/// Whether only a leader says this.
fn is_from_leader(message: &Message) -> bool {
    matches!(message.get_msg_type(), MessageType::MsgHeartbeat | MessageType::MsgAppend)
}

impl Node {
    /// The clock has gone on.
    pub(super) fn set_clock(&mut self, now: Time) {
        self.now = self.now.max(now);
        self.outbox.now = self.now;
        self.outbox.stamp = Stamp::new(self.identity.incarnation, self.now);
    }

    /// Notes what a message that is about to be stepped tells of its sender: that it leads, and what the clocks show.
    pub(super) fn note_heard(&mut self, shard: ShardId, envelope: &Envelope) {
        let (now, life, drift) = (self.now, self.identity.incarnation, self.config.reads.clock_drift_max_percent.min(50));
        let Some(replica) = self.registry.get_mut(shard) else { return };
        let (message, timing) = (&envelope.message, envelope.timing);
        let (from, term) = (ReplicaId(message.from), replica.raw.raft.term);
        if replica.leads() {
            if message.term != term {
                return;
            }
            let heard = replica.freshness.heard.entry(from).or_insert(Heard { stamp: Stamp::NONE, at: now, answered: None });
            if timing.stamp.is_news_after(heard.stamp) {
                (heard.stamp, heard.at) = (timing.stamp, now);
            }
            heard.answered = heard.answered.max(timing.echo.at(life));
            if message.get_msg_type() == MessageType::MsgHeartbeatResponse {
                replica.claim_as_leader(now);
            }
        } else if is_from_leader(message) && message.term >= term {
            replica.elections.heard_leader_at = self.ticks;
            replica.freshness.leader = Some((message.term, from, timing.stamp));
            let committed = envelope.committed;
            let shown = || {
                let heard_at = timing.echo.at(life)?;
                let (held, lag) = (timing.held * (100 - drift) / 100, timing.lag? * 100 / (100 - drift));
                (heard_at + held).checked_sub(lag)
            };
            let at = if Mutation::AgeByArrival.is_on() { Some(now) } else { shown() };
            if let Some(at) = at {
                // The two clocks may disagree by more than was allowed for; but nothing is newer than now.
                let claim = Claim { committed, at: at.min(now) };
                replica.freshness.claim(claim, replica.applied.index);
            }
        }
    }

    /// Notes that more was applied.
    pub(super) fn note_applied(&mut self, shard: ShardId) {
        let Some(replica) = self.registry.get_mut(shard) else { return };
        replica.freshness.applied(replica.applied.index);
    }
}
