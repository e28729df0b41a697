//! Two ways to have somebody elected beside a leader that holds a lease, if followers did not stand
//! by it. Both begin with a rival: a follower that does not hear the leader, nor reach it, and so
//! will want to lead.
//!
//! - **Old words.** The other follower, too, hears nothing for a while, and grants the rival its
//!   pre-vote. What the rival says next stands still. The follower asks for votes itself, and then
//!   hears its leader again, which has a quorum, and a lease. Now it goes deaf once more, and the
//!   rival's old words arrive: its request, and its answers, of a higher term.
//! - **Startle.** The other follower dies, and is back at once without a memory of whom it stood
//!   by.

use super::faults::Turn;
use super::network::Link;
use super::plan::MS;
use super::world::{Happening, World};
use crate::core::Envelope;
use flotilla_router::{NodeId, ShardId};
use raft::eraftpb::MessageType;

/// Old words are being prepared.
#[derive(Clone, Copy)]
pub(super) struct Trap {
    leader: NodeId,
    follower: NodeId,
    rival: NodeId,
    /// When what the rival says will arrive, once it has asked for votes.
    heard_at: Option<u64>,
}

impl World {
    /// Who leads a shard of three, and the other two.
    pub(super) fn leader_and_two(&mut self, shard: ShardId) -> Option<[NodeId; 3]> {
        let leader = self.leader(shard)?;
        let mut others: Vec<_> = self
            .plan
            .shard(shard)
            .replicas
            .iter()
            .map(|r| r.node)
            .filter(|node| *node != leader)
            .collect();
        if self.rng.percent(50) {
            others.reverse();
        }
        <[NodeId; 2]>::try_from(others).ok().map(|[one, other]| [leader, one, other])
    }

    /// The rival hears nothing of the leader until long after, and the leader nothing of it.
    fn estrange(&mut self, leader: NodeId, rival: NodeId) {
        let until = self.now + 2500 * MS;
        self.network.clog((leader, rival), until);
        self.network.cut((rival, leader), until);
    }

    /// The first of the two ways.
    pub(super) fn old_words(&mut self, [leader, follower, rival]: [NodeId; 3]) {
        self.estrange(leader, rival);
        self.faults.trap = Some(Trap { leader, follower, rival, heard_at: None });
        self.deafen((leader, follower), self.now + 1200 * MS);
    }

    /// The direction loses everything, until the trap is set or it is too late.
    pub(super) fn deafen(&mut self, link: Link, until: u64) {
        if self.faults.trap.is_some_and(|trap| (trap.leader, trap.follower) == link) {
            self.network.cut(link, self.now + 12 * MS);
            self.later(10 * MS, Happening::Fault(Turn::Deaf { link, until }));
        }
    }

    /// Whether what a node is about to say is what the trap waits for.
    pub(super) fn overhear(&mut self, link: Link, messages: &[Envelope]) {
        let Some(trap) = self.faults.trap else { return };
        let says = |kind| messages.iter().any(|envelope| envelope.message.get_msg_type() == kind);
        match trap.heard_at {
            None if link == (trap.rival, trap.follower) && says(MessageType::MsgRequestVote) => {
                let heard_at = self.now + self.rng.within(350..=650) * MS;
                self.network.clog(link, heard_at);
                self.faults.trap = Some(Trap { heard_at: Some(heard_at), ..trap });
            }
            Some(heard_at)
                if link == (trap.follower, trap.rival) && says(MessageType::MsgRequestPreVote) =>
            {
                let (still, deaf_at) =
                    ((trap.leader, trap.follower), heard_at - self.rng.below(40 * MS));
                let delay = deaf_at.saturating_sub(self.now);
                self.later(
                    delay,
                    Happening::Fault(Turn::Still { link: still, until: heard_at + 1000 * MS }),
                );
                self.faults.trap = None;
            }
            _ => {}
        }
    }

    /// The second of the two ways.
    pub(super) fn startle(&mut self, [leader, follower, rival]: [NodeId; 3]) {
        self.estrange(leader, rival);
        let at = self.rng.within(600..=1500) * MS;
        let link = (leader, follower);
        self.later(at, Happening::Fault(Turn::Still { link, until: self.now + at + 1000 * MS }));
        self.later(at, Happening::Fault(Turn::Blink { node: follower }));
    }
}
