//! Leadership spread over the nodes, and handed over before a node goes down.
//!
//! Every node tells every other how many shards it leads ([`Beat`]). Everybody works out the same fair share from that: all that is
//! led, by the number of nodes. Who leads more gives away what is above its share, and no more, to nodes below it, and only where the
//! difference is clear, which leaves an operator's own hand-over of a shard or two alone. Whatever several givers do at once, and
//! however late they hear of each other, none of them falls below its share, so all together give no more than is missing.
//!
//! What others said before the last hand-over counts no more: a node gives again only when all of them have spoken since.

use super::event::Beat;
use super::replica::Replica;
use super::{Node, Peer};
use flotilla_router::{NodeId, ReplicaId, ShardId};
use raft::ProgressState;
use std::collections::BTreeMap;

/// Hand-overs started at once, or an eighth of what is to be given away, where that is more.
const HANDOVERS_MAX: usize = 16;
/// How many more shards than another a node must lead before it hands any over.
const IMBALANCE_MIN: usize = 3;
/// Ticks that a leader stays at least, so that shards do not wander.
const STAY_TICKS: u64 = 40;

/// What balancing remembers.
#[derive(Default)]
pub(super) struct Balance {
    /// The last tick at which a hand-over was under way, or begun.
    unsettled_at: u64,
    /// The tick of the last sign of life, and whether one is due at once.
    last_beat: u64,
    beat_now: bool,
}

impl Node {
    /// What this node says of itself.
    pub(super) fn beat(&self) -> Beat {
        Beat {
            leaders: self.registry.leaders() as u32,
            replicas: self.registry.len() as u32,
            draining: self.draining,
            disk_full: self.room.is_full(),
        }
    }

    /// A peer gave a sign of life.
    pub(super) fn heard(&mut self, from: NodeId, beat: Beat) {
        let peer = self.peers.entry(from).or_default();
        (peer.beat, peer.silent_ticks, peer.heard) = (beat, 0, true);
    }

    /// Whether a sign of life is due in the pass that ends. One per pair of nodes and heartbeat interval, not one per group.
    pub(super) fn beat_is_due(&mut self) -> bool {
        let interval = self.config.raft.heartbeat_ticks as u64;
        let due = std::mem::take(&mut self.balance.beat_now) || self.ticks >= self.balance.last_beat + interval;
        if due {
            self.balance.last_beat = self.ticks;
        }
        due
    }

    /// The process is about to end: says so to all, and hands over.
    pub(super) fn drain(&mut self) {
        self.draining = true;
        self.balance.beat_now = true;
        self.hand_over_everything();
    }

    fn is_alive(&self, node: NodeId) -> bool {
        is_alive(&self.peers, node, self.config.raft.election_ticks)
    }

    /// Hands what is led beyond the fair share to nodes that lead less, where the difference is clear; all of it while going down.
    pub(super) fn balance_leaders(&mut self) {
        if self.draining {
            self.hand_over_everything();
            return;
        }
        if !self.config.raft.balance_leaders {
            return;
        }
        if self.registry.iter().any(|r| r.elections.transfer.is_some()) {
            self.balance.unsettled_at = self.ticks;
        }
        let mine = self.registry.leaders() as usize;
        let takers: BTreeMap<NodeId, usize> = self
            .peers
            .iter()
            .filter(|(node, p)| self.is_alive(**node) && !p.beat.draining && !p.beat.disk_full && p.beat.replicas > 0)
            .map(|(node, p)| (*node, p.beat.leaders as usize))
            .collect();
        // A beat that came long enough after everything was settled shows it.
        let settled = self.ticks - self.balance.unsettled_at;
        let on_the_way = self.config.raft.heartbeat_ticks * 2;
        let all_spoke = takers.keys().all(|node| (self.peers[node].silent_ticks + on_the_way) as u64 <= settled);
        if self.balance.unsettled_at > 0 && !all_spoke {
            return;
        }
        let shards = self.to_give(mine, takers);
        if !shards.is_empty() {
            self.balance.unsettled_at = self.ticks;
        }
        for (shard, to) in shards {
            self.start_transfer(shard, to, None);
        }
    }

    /// Which shards go to which replica now, where `mine` are led here, and so many by those who could take some.
    fn to_give(&self, mine: usize, mut takers: BTreeMap<NodeId, usize>) -> Vec<(ShardId, ReplicaId)> {
        let clear = IMBALANCE_MIN.max(mine / 10);
        let total = mine + takers.values().sum::<usize>();
        let share = total.div_ceil(takers.len() + 1);
        let surplus = mine.saturating_sub(share);
        let surplus_of_all = surplus + takers.values().map(|theirs| theirs.saturating_sub(share)).sum::<usize>();
        takers.retain(|_, theirs| *theirs < share && *theirs + clear <= mine);
        if surplus == 0 || takers.is_empty() {
            return Vec::new();
        }
        // Of what a node lacks, each giver brings a part like its part of what there is to give.
        let mut room: BTreeMap<NodeId, usize> =
            takers.iter().map(|(node, theirs)| (*node, ((share - theirs) * surplus).div_ceil(surplus_of_all))).collect();
        let wanted = surplus.min(HANDOVERS_MAX.max(surplus / 8));
        let mut given = Vec::new();
        for replica in self.registry.iter().filter(|r| r.leads() && r.elections.led_ticks >= STAY_TICKS) {
            if given.len() == wanted {
                break;
            }
            let fit = replica.descriptor.voters_now().filter_map(|v| Some((*room.get(&v.node).filter(|room| **room > 0)?, v)));
            let fit = fit.filter_map(|(room, v)| Some((room, v.node, can_take_over(replica, v.id)?)));
            // To whom lacks most.
            if let Some((_, node, to)) = fit.max_by_key(|(room, node, _)| (*room, std::cmp::Reverse(*node))) {
                *room.get_mut(&node).expect("looked up just now") -= 1;
                given.push((replica.shard, to));
            }
        }
        given
    }

    /// Going down: every shard that is led here goes to the voter that is furthest, among nodes that stay.
    pub(super) fn hand_over_everything(&mut self) {
        let shards: Vec<(ShardId, ReplicaId)> = self
            .registry
            .iter()
            .filter(|r| r.leads() && r.elections.transfer.is_none())
            .filter_map(|r| {
                let stays = |node: NodeId| self.is_alive(node) && !self.peers[&node].beat.draining;
                let voters = r.descriptor.voters_now().filter(|v| v.id != r.id && stays(v.node));
                let best = voters.filter_map(|v| Some((r.raw.raft.prs().get(v.id.0)?.matched, v.id))).max()?;
                Some((r.shard, best.1))
            })
            .collect();
        for (shard, to) in shards {
            self.start_transfer(shard, to, None);
        }
    }

    /// Whether going down need wait no longer: nothing is led here that anybody alive could take.
    pub(super) fn nothing_left_to_hand_over(&self) -> bool {
        self.registry.iter().filter(|r| r.leads()).all(|r| {
            !r.descriptor.voters_now().any(|v| v.id != r.id && self.is_alive(v.node) && !self.peers[&v.node].beat.draining)
        })
    }
}

/// Whether a node was heard of lately.
pub(super) fn is_alive(peers: &BTreeMap<NodeId, Peer>, node: NodeId, silent_ticks_max: usize) -> bool {
    peers.get(&node).is_some_and(|p| p.heard && p.silent_ticks < silent_ticks_max)
}

/// The replica, if it is a voter that follows closely and nothing is in the way.
fn can_take_over(replica: &Replica, to: ReplicaId) -> Option<ReplicaId> {
    let raft = &replica.raw.raft;
    let progress = raft.prs().get(to.0)?;
    let follows = progress.state == ProgressState::Replicate
        && progress.recent_active
        && progress.matched + 64 > raft.raft_log.last_index();
    let votes = replica.descriptor.replica(to)?.role.votes_now();
    (follows && votes && replica.elections.transfer.is_none() && !raft.has_pending_conf()).then_some(to)
}
