//! Leadership given away before the process ends, so that nobody waits for an election.

use super::HandOver;
use crate::core::liveness::Liveness;
use crate::core::replica::Replica;
use crate::core::replicas::Replicas;
use flotilla_router::NodeId;

/// Whether the process is about to end.
#[derive(Default)]
pub(crate) struct Drain {
    /// It is.
    pub(crate) is_draining: bool,
    /// The shell was told that nothing is left to hand over.
    is_drained: bool,
}

impl Drain {
    /// Every shard that is led here, and its voter that is furthest, among nodes that stay.
    pub(crate) fn hand_overs(replicas: &Replicas, liveness: &Liveness) -> Vec<HandOver> {
        let is_free = |r: &&Replica| !r.transfer.is_under_way() && !r.membership.is_under_way();
        let led = replicas.led().filter(is_free);
        led.filter_map(|r| {
            let takers = takers(r, liveness);
            let best = takers
                .filter_map(|id| Some((r.group.raw.raft.prs().get(id.0)?.matched, id)))
                .max()?;
            Some((r.group.shard, best.1))
        })
        .collect()
    }

    /// Whether it is time to say that going down need wait no longer, said once: nothing is led
    /// here that anybody alive could take.
    pub(crate) fn ends(&mut self, replicas: &Replicas, liveness: &Liveness) -> bool {
        let ends = self.is_draining
            && !self.is_drained
            && replicas.led().all(|r| takers(r, liveness).next().is_none());
        self.is_drained |= ends;
        ends
    }
}

/// The other voters of a replica's group, on nodes that are alive and stay.
fn takers(
    replica: &Replica,
    liveness: &Liveness,
) -> impl Iterator<Item = flotilla_router::ReplicaId> {
    let stays = |node: NodeId| liveness.beat_of(node).is_some_and(|beat| !beat.draining);
    let voters = replica.group.descriptor().voters_now().filter(|v| v.id != replica.group.id);
    voters.filter(move |v| stays(v.node)).map(|v| v.id)
}
