//! Leadership spread anew when nodes come back: as many moves as it takes, and nobody is flooded.

use super::cluster::{Cluster, config};
use flotilla_router::NodeId;

/// Each node's number of shards that it leads, by node.
fn counts(cluster: &Cluster) -> Vec<usize> {
    let leaders: Vec<_> =
        cluster.shard_ids().into_iter().map(|shard| cluster.leader(shard)).collect();
    cluster
        .nodes()
        .into_iter()
        .map(|node| leaders.iter().filter(|leader| **leader == Some(node)).count())
        .collect()
}

/// Takes the last `gone` nodes away, brings them back, and watches: the most that any of them
/// leads, the moves, and the end.
fn comes_back(nodes: u64, shards: u64, gone: u64) -> (usize, usize, Vec<usize>) {
    let mut config = config();
    config.raft.balance_leaders = true;
    let mut cluster = Cluster::new(nodes, shards, config);
    cluster.run(300);
    let back: Vec<_> = (nodes - gone + 1..=nodes).map(NodeId).collect();
    back.iter().for_each(|node| cluster.crash(*node, 0));
    cluster.run(200);
    back.iter().for_each(|node| cluster.start(*node));
    let (mut peak, mut moves) = (0, 0);
    let leaders = |cluster: &Cluster| {
        cluster.shard_ids().into_iter().map(|shard| cluster.leader(shard)).collect::<Vec<_>>()
    };
    let mut before = leaders(&cluster);
    for _ in 0..400 {
        cluster.run(1);
        let now = leaders(&cluster);
        moves +=
            now.iter().zip(&before).filter(|(now, before)| now.is_some() && now != before).count();
        before = now;
        let counts = counts(&cluster);
        peak = peak.max(back.iter().map(|node| counts[node.0 as usize - 1]).max().unwrap());
    }
    (peak, moves, counts(&cluster))
}

/// On 7 nodes a node that came back led 69 of 140 shards for a while, and 199 shards moved: each of
/// the six others gave it half of what *it* led more, and heard too late what the others gave.
#[test]
fn a_node_that_comes_back_gets_its_share_and_no_more() {
    for (nodes, shards, gone) in [(3, 60, 1), (5, 60, 1), (7, 140, 1), (7, 140, 2)] {
        let share = (shards / nodes) as usize;
        let (peak, moves, end) = comes_back(nodes, shards, gone);
        println!(
            "{nodes} nodes, {shards} shards, {gone} back: share {share}, peak {peak}, moves \
             {moves}, at the end {end:?}"
        );
        assert!(
            peak <= share + 2,
            "{nodes} nodes, {shards} shards: one that came back led {peak}, its share is {share}"
        );
        assert!(
            moves <= share * gone as usize + 6,
            "{nodes} nodes, {shards} shards: {moves} moves, {share} each were needed"
        );
        let spread = end.iter().max().unwrap() - end.iter().min().unwrap();
        assert!(spread <= 5, "{nodes} nodes, {shards} shards: at the end {end:?}");
    }
}
