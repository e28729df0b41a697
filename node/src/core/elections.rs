//! Elections: deterministic timeouts, a staggered first election, and the hand-over of leadership.
//!
//! **Timeouts.** raft-rs draws an election timeout from a thread's random numbers whenever a replica changes state. After every
//! call that may have done so the timeout is set again, to a hash of (seed, shard, replica, term): spread like a random number,
//! equal in every replay.
//!
//! **The first election.** In a new cluster the first voter of each descriptor is meant to lead, which spreads leadership
//! evenly. It calls the election soon and again until somebody leads; the others hold back for a while.
//!
//! **The promise**, on which leases rest ([`super::reads`]): whoever has heard a leader gives nobody its vote for an election timeout of
//! its own ticks, unless that leader itself hands over. raft-rs has such a rule, but hangs it on `leader_id`, which it clears whenever a
//! message of a higher term comes along, be it late; and it forgets it in a restart. So the tick at which a leader was last heard is
//! kept here, and a node that has just started stands by whomever it may have heard before.
//!
//! **Hand-over.** Propose: only the leader, to a voter, one at a time. On result: the target leads, or an election timeout has
//! passed. A leader never holds a lease again in the term in which it tried to hand over ([`super::reads`]).

use super::config::CoreConfig;
use super::effect::Effect;
use super::event::Ticket;
use super::replica::Replica;
use super::{Counters, Node};
use flotilla_router::mutation::Mutation;
use flotilla_router::{NodeId, Refusal, ReplicaId, Role, ShardId};
use flotilla_storage::{INITIAL, Recovered};
use raft::StateRole;
use raft::eraftpb::Message;

/// Ticks between two attempts of the replica that is meant to lead a new shard.
const FIRST_ELECTION_RETRY_TICKS: u64 = 4;
/// Ticks for which the other replicas of a new shard hold back.
const FIRST_ELECTION_GRACE_TICKS: u64 = 60;

/// The election state of one replica.
pub(super) struct Elections {
    /// The group has never had a leader; only a founding.
    pub(super) is_new: bool,
    /// What raft-rs was last seen as, to notice changes.
    pub(super) role: StateRole,
    /// The leader that was last published.
    pub(super) leader: u64,
    /// The term of the timeout that is set.
    term: u64,
    /// A hand-over under way.
    pub(super) transfer: Option<Transfer>,
    /// The last term in which a hand-over was tried: no lease in it.
    pub(super) transferred_in_term: u64,
    /// Ticks since this replica began to lead.
    pub(super) led_ticks: u64,
    /// The node's tick at which this replica last heard a leader; that of its start, before it has: whom it stood by then it does not
    /// know.
    pub(super) heard_leader_at: u64,
}

/// A hand-over under way.
pub(super) struct Transfer {
    /// Who waits; nobody, where it was this node's own idea.
    pub(super) ticket: Option<Ticket>,
    /// Who shall lead.
    pub(super) to: ReplicaId,
    /// Ticks until it is given up.
    pub(super) ticks_left: usize,
}

/// What a tick needs beyond the replica.
pub(super) struct Context<'a> {
    /// The options.
    pub(super) config: &'a CoreConfig,
    /// Ticks since the node started.
    pub(super) ticks: u64,
    /// Counts elections.
    pub(super) counters: &'a mut Counters,
}

impl Elections {
    /// The state of a replica that was found on disk.
    pub(super) fn new(recovered: &Recovered) -> Self {
        Self {
            is_new: recovered.last == INITIAL && recovered.hard_state.term == INITIAL.term,
            role: StateRole::Follower,
            leader: 0,
            term: 0,
            transfer: None,
            transferred_in_term: 0,
            led_ticks: 0,
            heard_leader_at: 0,
        }
    }

    /// Gives the group a tick. Whether there may be something ready.
    pub(super) fn tick(replica: &mut Replica, context: Context<'_>) -> bool {
        if replica.snapshots.is_installing() {
            return false;
        }
        replica.elections.led_ticks += 1;
        let raft = &replica.raw.raft;
        if raft.state != StateRole::Leader && would_win_too_early(replica) {
            return false;
        }
        if replica.elections.is_new && raft.term == INITIAL.term && raft.leader_id == 0 {
            let meant_to_lead = replica.descriptor.voters_now().next().is_some_and(|first| first.id == replica.id);
            if !meant_to_lead && context.ticks < FIRST_ELECTION_GRACE_TICKS {
                return false;
            }
            // Spread over the first ticks, so that thousands of groups do not all call at once.
            let offset = mix(context.config.seed ^ replica.shard.0) % FIRST_ELECTION_RETRY_TICKS;
            if meant_to_lead && context.ticks % FIRST_ELECTION_RETRY_TICKS == offset {
                // Fails only where a conf change waits to be applied, which no new group has.
                let _ = replica.raw.campaign();
                context.counters.elections += 1;
                return true;
            }
        }
        let was = (raft.state, raft.term);
        let ready = replica.raw.tick();
        let is = replica.raw.raft.state;
        if matches!(is, StateRole::Candidate | StateRole::PreCandidate) && was != (is, replica.raw.raft.term) {
            context.counters.elections += 1;
        }
        ready
    }
}

/// Whether this replica stands by a leader whom it has heard, and so must not take up this request for its vote: its election timeout is
/// not over, and nobody hands over. A request of an older term is none: raft-rs answers it, so that whoever asks learns the term.
pub(super) fn stands_by_its_leader(replica: &Replica, message: &Message, config: &CoreConfig, ticks: u64) -> bool {
    let heard_at = replica.elections.heard_leader_at;
    let kept = if heard_at == 0 { !Mutation::PromiseForgotten.is_on() } else { !Mutation::PromiseByLeaderId.is_on() };
    config.reads.lease
        && message.term >= replica.raw.raft.term
        && message.context != raft::CAMPAIGN_TRANSFER
        && ticks - heard_at < config.raft.election_ticks as u64
        && kept
}

/// Whether a campaign would be won by this replica's own vote while entries are not yet on disk. raft-rs makes it a leader in the
/// same call, and ends the process, since it counts on votes that come from others only after all is written.
pub(super) fn would_win_too_early(replica: &Replica) -> bool {
    let raft = &replica.raw.raft;
    raft.raft_log.persisted != raft.raft_log.last_index()
        && raft.prs().conf().voters().ids().iter().all(|voter| voter == replica.id.0)
}

/// A leader that has just lost its vote leads no more. raft-rs lets it go on, and ends the process when what it proposed is committed:
/// it has no progress of its own any more. Leaders hand over before they are removed, but a change may stand in the log of whoever is
/// elected next.
pub(super) fn step_down_without_a_vote(replica: &mut Replica) {
    let raft = &mut replica.raw.raft;
    if raft.state == StateRole::Leader && !raft.promotable() {
        raft.become_follower(raft.term, 0);
    }
}

/// Sets the election timeout to a function of (seed, shard, replica, term). Called after everything that may have changed it.
pub(super) fn set_timeout(replica: &mut Replica, config: &CoreConfig) {
    let raft = &mut replica.raw.raft;
    let spread = config.raft.election_ticks as u64;
    let hash = [replica.shard.0, replica.id.0, raft.term].iter().fold(config.seed, |hash, &part| mix(hash ^ part));
    let ticks = config.raft.election_ticks + (hash % spread) as usize;
    if raft.randomized_election_timeout() != ticks {
        raft.set_randomized_election_timeout(ticks);
    }
    replica.elections.term = raft.term;
}

/// A well-spread 64-bit function (the finaliser of SplitMix64).
pub(super) fn mix(n: u64) -> u64 {
    let n = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

impl Node {
    /// Notices that a replica began or ceased to lead, or follows another; tells the router, and those who waited.
    pub(super) fn note_roles(&mut self, shard: ShardId) {
        let Some(replica) = self.registry.get_mut(shard) else { return };
        let (role, leader) = (replica.raw.raft.state, replica.raw.raft.leader_id);
        if (role, leader) == (replica.elections.role, replica.elections.leader) {
            return;
        }
        let led = replica.elections.role == StateRole::Leader;
        replica.elections.role = role;
        replica.elections.leader = leader;
        if leader != 0 {
            replica.elections.is_new = false;
        }
        let node = replica.leader_node();
        self.outbox.effects.push(Effect::PublishLeader { shard, leader: node });
        if role == StateRole::Leader && !led {
            replica.elections.led_ticks = 0;
            replica.proposals.moved(self.now);
            self.counters.elections_won += 1;
        }
        if led && role != StateRole::Leader {
            self.stop_leading(shard, node);
        }
        self.settle_transfer(shard);
    }

    /// Leadership is gone: what was not proposed was certainly not applied, and goes back to be asked elsewhere; what was
    /// proposed stays until the log shows what became of it.
    fn stop_leading(&mut self, shard: ShardId, leader: Option<NodeId>) {
        let replica = self.registry.get_mut(shard).expect("the caller has looked");
        let (commands, bytes) = replica.proposals.take_waiting();
        let reads = replica.reads.stop_leading();
        replica.freshness.stop_leading();
        self.waiting_bytes -= bytes;
        for ticket in commands.into_iter().chain(reads) {
            let refusal = Refusal::NotLeader { shard, leader };
            self.outbox.effects.push(Effect::Reply { ticket, shard, result: Err(refusal) });
        }
    }

    /// Hands a shard's leadership to the replica on node `to`.
    pub(super) fn transfer(&mut self, ticket: Ticket, shard: ShardId, to: NodeId) {
        let done = |result| Effect::TransferDone { ticket, result };
        let Some(replica) = self.registry.get_mut(shard) else {
            self.outbox.effects.push(done(Err(Refusal::NotHosted { shard })));
            return;
        };
        let refusal = if replica.quarantined.is_some() {
            Refusal::NotHosted { shard }
        } else if !replica.leads() {
            Refusal::NotLeader { shard, leader: replica.leader_node() }
        } else {
            match replica.descriptor.on_node(to) {
                None => Refusal::Invalid { why: format!("node {to} holds no replica of shard {shard}; see its replicas") },
                Some(target) if target.role == Role::Learner => {
                    Refusal::Invalid { why: format!("node {to} holds a learner of shard {shard}; only a voter can lead") }
                }
                Some(target) if !target.role.votes_now() => {
                    let why = format!("node {to} gives up its vote in shard {shard}; name another");
                    Refusal::Invalid { why }
                }
                Some(target) if target.id == replica.id => {
                    self.outbox.effects.push(done(Ok(replica.descriptor.clone())));
                    return;
                }
                Some(_) if replica.elections.transfer.is_some() => {
                    Refusal::Conflict { why: format!("shard {shard} is being handed over already; try again in a moment") }
                }
                Some(target) => {
                    self.start_transfer(shard, target.id, Some(ticket));
                    return;
                }
            }
        };
        self.outbox.effects.push(done(Err(refusal)));
    }

    /// Starts a hand-over. From here until it ends, raft-rs takes no proposals for the group: commands wait.
    pub(super) fn start_transfer(&mut self, shard: ShardId, to: ReplicaId, ticket: Option<Ticket>) {
        let Some(replica) = self.registry.get_mut(shard) else { return };
        replica.elections.transferred_in_term = replica.raw.raft.term;
        if !Mutation::LeaseKeptInTransfer.is_on() {
            replica.reads.void_lease();
        }
        replica.raw.transfer_leader(to.0);
        replica.elections.transfer = Some(Transfer { ticket, to, ticks_left: self.config.raft.election_ticks * 2 });
        self.touch(shard);
    }

    /// Gives a hand-over up after its time. raft-rs itself forgets it after one election timeout.
    pub(super) fn tick_transfer(&mut self, shard: ShardId) {
        let Some(replica) = self.registry.get_mut(shard) else { return };
        let Some(transfer) = &mut replica.elections.transfer else { return };
        transfer.ticks_left = transfer.ticks_left.saturating_sub(1);
        if transfer.ticks_left > 0 {
            return;
        }
        let transfer = replica.elections.transfer.take().expect("looked at just now");
        replica.raw.raft.abort_leader_transfer();
        let why = format!("shard {shard}: the other replica did not take over in time; it may be behind or unreachable");
        if let Some(ticket) = transfer.ticket {
            self.outbox.effects.push(Effect::TransferDone { ticket, result: Err(Refusal::Conflict { why }) });
        }
        self.touch(shard);
    }

    fn settle_transfer(&mut self, shard: ShardId) {
        let Some(replica) = self.registry.get_mut(shard) else { return };
        let leader = replica.raw.raft.leader_id;
        let Some(transfer) = &replica.elections.transfer else { return };
        if leader == 0 || leader == replica.id.0 {
            return;
        }
        let result = if leader == transfer.to.0 {
            Ok(replica.descriptor.clone())
        } else {
            Err(Refusal::Conflict { why: format!("shard {shard}: another replica was elected meanwhile") })
        };
        let transfer = replica.elections.transfer.take().expect("looked at just now");
        if let Some(ticket) = transfer.ticket {
            self.outbox.effects.push(Effect::TransferDone { ticket, result });
        }
    }
}
