//! Deterministic election timeouts, and the promise on which leases rest.
//!
//! **Timeouts.** raft-rs draws an election timeout from a thread's random numbers whenever a
//! replica changes state. After every call that may have done so the timeout is set again, to a
//! hash of (seed, shard, replica, term): spread like a random number, equal in every replay.
//!
//! **The promise.** Whoever has heard a leader gives nobody its vote for an election timeout of its
//! own ticks, unless that leader itself hands over. raft-rs has such a rule, but hangs it on
//! `leader_id`, which it clears whenever a message of a higher term comes along, be it late; and it
//! forgets it in a restart. So the tick at which a leader was last heard is kept here, and a node
//! that has just started stands by whomever it may have heard before.

use super::Group;
use crate::core::config::CoreConfig;
use flotilla_router::mutation::Mutation;
use raft::StateRole;
use raft::eraftpb::Message;

impl Group {
    /// Sets the election timeout. Called after everything that may have changed it.
    pub(crate) fn set_timeout(&mut self, config: &CoreConfig) {
        let raft = &mut self.raw.raft;
        let spread = config.raft.election_ticks as u64;
        let hash = [self.shard.0, self.id.0, raft.term]
            .iter()
            .fold(config.seed, |hash, &part| mix(hash ^ part));
        let ticks = config.raft.election_ticks + (hash % spread) as usize;
        if raft.randomized_election_timeout() != ticks {
            raft.set_randomized_election_timeout(ticks);
        }
    }

    /// Whether this replica stands by a leader whom it has heard, and so must not take up this
    /// request for its vote: its election timeout is not over, and nobody hands over. A request of
    /// an older term is none: raft-rs answers it, so that whoever asks learns the term.
    pub(crate) fn stands_by_its_leader(
        &self,
        message: &Message,
        config: &CoreConfig,
        ticks: u64,
    ) -> bool {
        let heard_at = self.heard_leader_at;
        let kept = if heard_at == 0 {
            !Mutation::PromiseForgotten.is_on()
        } else {
            !Mutation::PromiseByLeaderId.is_on()
        };
        config.reads.lease
            && message.term >= self.raw.raft.term
            && message.context != raft::CAMPAIGN_TRANSFER
            && ticks - heard_at < config.raft.election_ticks as u64
            && kept
    }

    /// Whether a campaign would be won by this replica's own vote while entries are not yet on
    /// disk. raft-rs makes it a leader in the same call, and ends the process, since it counts on
    /// votes that come from others only after all is written.
    pub(crate) fn would_win_too_early(&self) -> bool {
        let raft = &self.raw.raft;
        raft.raft_log.persisted != raft.raft_log.last_index()
            && raft.prs().conf().voters().ids().iter().all(|voter| voter == self.id.0)
    }

    /// A leader that has just lost its vote leads no more. raft-rs lets it go on, and ends the
    /// process when what it proposed is committed: it has no progress of its own any more. Leaders
    /// hand over before they are removed, but a change may stand in the log of whoever is elected
    /// next.
    pub(crate) fn step_down_without_a_vote(&mut self) {
        let raft = &mut self.raw.raft;
        if raft.state == StateRole::Leader && !raft.promotable() {
            raft.become_follower(raft.term, 0);
        }
    }
}

/// A well-spread 64-bit function (the finaliser of SplitMix64).
pub(crate) fn mix(n: u64) -> u64 {
    let n = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}
