//! The same events give the same effects, byte by byte: over many shards, with everything that
//! raft-rs keeps in maps and draws at random. (The simulation shows the same for seeds with
//! faults.)

use super::cluster::{Cluster, FOREVER, config};
use flotilla_router::{Consistency, NodeId};

/// Elections, writes, reads, a crash, a hand-over, a partition; all effects, in words and hashed.
fn story() -> (Vec<String>, u64) {
    let mut cluster = Cluster::new(5, 16, config());
    cluster.run(70);
    for i in 0..50 {
        let key = format!("{}{i}", (b'a' + i % 26) as char);
        let node = cluster.leader(cluster.owner(key.as_bytes())).unwrap();
        cluster.post_put(node, &key, "v", FOREVER);
        cluster.post_get(node, &key, Consistency::Linearizable, FOREVER);
    }
    cluster.run(3);
    cluster.crash(NodeId(2), 0);
    cluster.run(40);
    cluster.start(NodeId(2));
    cluster.partition(&[NodeId(3)], &[NodeId(1), NodeId(2), NodeId(4), NodeId(5)]);
    cluster.run(40);
    cluster.network.heal();
    cluster.run(20);
    (cluster.take_trace(), cluster.fingerprint)
}

#[test]
fn the_same_events_give_the_same_effects() {
    let (first, again) = (story(), story());
    let differs = first.0.iter().zip(&again.0).position(|(a, b)| a != b);
    assert_eq!(differs.map(|i| (&first.0[i], &again.0[i])), None);
    assert!(first.0.len() > 1000, "only {} lines", first.0.len());
    assert_eq!(first.1, again.1, "effects that read the same differ in what is not shown");
}
