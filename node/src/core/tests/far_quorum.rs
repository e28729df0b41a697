//! Reads at a quorum that is far away, up to an election timeout, or whose disks are slow.

use super::cluster::{Answer, Cluster, FOREVER, SHARD, config};
use crate::sim::member::Lane;
use flotilla_router::{Consistency, NodeId};
use std::collections::VecDeque;

const N1: NodeId = NodeId(1);

/// One tick for everybody; what was sent to or from node 1 arrives `ticks` later.
fn far_tick(
    cluster: &mut Cluster,
    ticks: usize,
    on_their_way: &mut VecDeque<Vec<((NodeId, NodeId), usize)>>,
) {
    let links = || [NodeId(2), NodeId(3)].into_iter().flat_map(|other| [(N1, other), (other, N1)]);
    cluster.nodes().into_iter().for_each(|node| cluster.tick(node, 1));
    cluster.settle();
    let counted: usize = on_their_way.iter().flatten().map(|(_, count)| count).sum();
    let waiting =
        |cluster: &Cluster| links().map(|link| cluster.network.waiting(link)).sum::<usize>();
    assert!(waiting(cluster) >= counted);
    let known = |link| {
        on_their_way
            .iter()
            .flatten()
            .filter(|(of, _)| *of == link)
            .map(|(_, count)| *count)
            .sum::<usize>()
    };
    let new = links().map(|link| (link, cluster.network.waiting(link) - known(link))).collect();
    on_their_way.push_back(new);
    if on_their_way.len() > ticks {
        for (link, count) in on_their_way.pop_front().unwrap_or_default() {
            for _ in 0..count {
                assert!(cluster.deliver(link, 0), "it was counted");
            }
        }
        for node in cluster.nodes() {
            cluster.pass(node);
        }
    }
}

#[test]
fn reads_succeed_up_to_an_election_timeout() {
    let election_ticks = config().raft.election_ticks;
    // There and back again.
    for ticks in [1, 2, 4, election_ticks / 2] {
        let mut cluster = Cluster::led();
        [NodeId(2), NodeId(3)].into_iter().for_each(|other| {
            cluster.network.hold((N1, other));
            cluster.network.hold((other, N1));
        });
        let mut on_their_way = VecDeque::new();
        (0..20).for_each(|_| far_tick(&mut cluster, ticks, &mut on_their_way));
        assert_eq!(cluster.leader(SHARD), Some(N1), "{ticks} ticks each way");
        let begun = cluster.running_mut(N1).core.counters().read_contexts;
        let mut reads = Vec::new();
        for _ in 0..60 {
            reads.push(cluster.post_get(N1, "k", Consistency::Linearizable, FOREVER));
            far_tick(&mut cluster, ticks, &mut on_their_way);
        }
        // A read waits for the contexts before it for a heartbeat interval at most.
        let patience = 2 * (ticks + 1) + config().raft.heartbeat_ticks + 1;
        for (place, read) in reads.iter().enumerate().take(60 - patience) {
            assert!(
                matches!(cluster.answer(*read), Some(Answer::Read { .. })),
                "{ticks} ticks each way: read {place} waits"
            );
        }
        let contexts = cluster.running_mut(N1).core.counters().read_contexts - begun;
        assert!(contexts <= 61, "{contexts} contexts for 60 reads");
    }
}

#[test]
fn a_context_whose_heartbeats_were_lost_goes_again() {
    let mut cluster = Cluster::led();
    let read = cluster.post_get(N1, "k", Consistency::Linearizable, FOREVER);
    cluster.pass(N1);
    for other in [NodeId(2), NodeId(3)] {
        while cluster.drop_packet((N1, other), 0) {}
    }
    cluster.settle();
    assert_eq!(cluster.answer(read), None);
    cluster.run(config().raft.heartbeat_ticks as u64);
    assert!(matches!(cluster.answer(read), Some(Answer::Read { .. })));
}

#[test]
fn reads_do_not_wait_for_the_followers_disks() {
    let mut cluster = Cluster::led();
    [NodeId(2), NodeId(3)]
        .into_iter()
        .for_each(|node| cluster.running_mut(node).hold(Lane::Persist));
    let put = cluster.post_put(N1, "k", "v", FOREVER);
    cluster.settle();
    assert_eq!(cluster.answer(put), None, "nobody else has it");
    let read = cluster.get(N1, "k", Consistency::Linearizable);
    assert!(
        matches!(read, Some(Answer::Read { .. })),
        "it waits for an fsync that it has nothing to do with: {read:?}"
    );
}
