//! Leadership spread over the nodes.
//!
//! Every node tells every other how many shards it leads ([`Beat`](crate::core::wire::Beat)).
//! Everybody works out the same fair share from that: all that is led, by the number of nodes. Who
//! leads more gives away what is above its share, and no more, to nodes below it, and only where
//! the difference is clear, which leaves an operator's own hand-over of a shard or two alone.
//! Whatever several givers do at once, and however late they hear of each other, none of them falls
//! below its share, so all together give no more than is missing.
//!
//! What others said before the last hand-over counts no more: a node gives again only when all of
//! them have spoken since.

use super::HandOver;
use crate::core::config::CoreConfig;
use crate::core::liveness::Liveness;
use crate::core::replica::Replica;
use crate::core::replicas::Replicas;
use crate::core::wire::Beat;
use flotilla_router::{NodeId, ReplicaId};
use std::collections::BTreeMap;

/// Hand-overs started at once, or an eighth of what is to be given away, where that is more.
const HANDOVERS_MAX: usize = 16;
/// How many more shards than another a node must lead before it hands any over.
const IMBALANCE_MIN: usize = 3;
/// Ticks that a leader stays at least, so that shards do not wander.
const STAY_TICKS: u64 = 40;

/// What balancing remembers.
#[derive(Default)]
pub(crate) struct Balance {
    /// The last tick at which a hand-over was under way, or begun.
    unsettled_at: u64,
}

impl Balance {
    /// What is led beyond the fair share, and who shall have it, where the difference is clear.
    pub(crate) fn hand_overs(
        &mut self,
        replicas: &Replicas,
        liveness: &Liveness,
        ticks: u64,
        config: &CoreConfig,
    ) -> Vec<HandOver> {
        if replicas.sums().handing_over > 0 {
            self.unsettled_at = ticks;
        }
        let mine = replicas.leaders();
        let takes = |(node, beat): (NodeId, Beat)| {
            (!beat.draining && !beat.disk_full && beat.replicas > 0)
                .then_some((node, beat.leaders as usize))
        };
        let takers: BTreeMap<NodeId, usize> = liveness.alive_nodes().filter_map(takes).collect();
        // A beat that came long enough after everything was settled shows it.
        let settled = ticks - self.unsettled_at;
        let on_the_way = config.raft.heartbeat_ticks * 2;
        let spoke = |node: &NodeId| {
            liveness.silent_ticks(*node).is_some_and(|ticks| (ticks + on_the_way) as u64 <= settled)
        };
        if self.unsettled_at > 0 && !takers.keys().all(spoke) {
            return Vec::new();
        }
        let given = to_give(replicas, mine, takers);
        if !given.is_empty() {
            self.unsettled_at = ticks;
        }
        given
    }
}

/// Which shards go to which replica now, where `mine` are led here, and so many by those who could
/// take some.
fn to_give(replicas: &Replicas, mine: usize, mut takers: BTreeMap<NodeId, usize>) -> Vec<HandOver> {
    let clear = IMBALANCE_MIN.max(mine / 10);
    let total = mine + takers.values().sum::<usize>();
    let share = total.div_ceil(takers.len() + 1);
    let surplus = mine.saturating_sub(share);
    let surplus_of_all =
        surplus + takers.values().map(|theirs| theirs.saturating_sub(share)).sum::<usize>();
    takers.retain(|_, theirs| *theirs < share && *theirs + clear <= mine);
    if surplus == 0 || takers.is_empty() {
        return Vec::new();
    }
    // Of what a node lacks, each giver brings a part like its part of what there is to give.
    let mut room: BTreeMap<NodeId, usize> = takers
        .iter()
        .map(|(node, theirs)| (*node, ((share - theirs) * surplus).div_ceil(surplus_of_all)))
        .collect();
    let wanted = surplus.min(HANDOVERS_MAX.max(surplus / 8));
    let mut given = Vec::new();
    for replica in replicas.led().filter(|r| r.election.led_ticks() >= STAY_TICKS) {
        if given.len() == wanted {
            break;
        }
        let fit = replica
            .group
            .descriptor()
            .voters_now()
            .filter_map(|v| Some((*room.get(&v.node).filter(|room| **room > 0)?, v)));
        let fit = fit.filter_map(|(room, v)| Some((room, v.node, can_take_over(replica, v.id)?)));
        // To whom lacks most.
        if let Some((_, node, to)) =
            fit.max_by_key(|(room, node, _)| (*room, std::cmp::Reverse(*node)))
        {
            *room.get_mut(&node).expect("looked up just now") -= 1;
            given.push((replica.group.shard, to));
        }
    }
    given
}

/// The replica, if it is a voter that follows closely and nothing is in the way.
fn can_take_over(replica: &Replica, to: ReplicaId) -> Option<ReplicaId> {
    let group = &replica.group;
    let votes = group.descriptor().replica(to)?.role.votes_now();
    let is_free = !replica.transfer.is_under_way() && !group.raw.raft.has_pending_conf();
    (group.follows_closely(to) && votes && is_free).then_some(to)
}
