//! What a new cluster starts with: the meta shard and the first shards, the same on every first
//! node.
//!
//! Nothing is negotiated. Each first node works out all shards from the same configuration, and
//! keeps those that it has a replica of. Shard *i* is led, at first, by first node *i*, so that
//! leadership is spread from the beginning.

use super::config::Config;
use bytes::Bytes;
use flotilla_router::range::initial_ranges;
use flotilla_router::{Descriptor, Epoch, KeyRange, NodeId, Replica, ReplicaId, Role, ShardId};

/// Every shard of the new cluster, the meta shard first.
pub fn descriptors(config: &Config) -> Vec<Descriptor> {
    let mut nodes: Vec<NodeId> = config.peers.iter().map(|p| p.id).collect();
    nodes.sort();
    let replicas = config.bootstrap.replicas.min(nodes.len());
    let ranges = std::iter::once(KeyRange::all()).chain(initial_ranges(config.bootstrap.shards));
    let mut next_replica = 1;
    let mut shards = Vec::with_capacity(config.bootstrap.shards + 1);
    for (i, range) in ranges.enumerate() {
        let members = (0..replicas).map(|offset| {
            let id = ReplicaId(next_replica + offset as u64);
            Replica { id, node: nodes[(i + offset) % nodes.len()], role: Role::Voter }
        });
        let id = ShardId(ShardId::META.0 + i as u64);
        shards.push(Descriptor {
            id,
            range,
            epoch: Epoch { membership: 1, range: 1 },
            replicas: members.collect(),
        });
        next_replica += replicas as u64;
    }
    shards
}

/// The meta shard's first keys: the cluster, its nodes, its shards, and the next free ids.
pub fn meta_contents(config: &Config, shards: &[Descriptor]) -> Vec<(Bytes, Bytes)> {
    let next_shard = shards.iter().map(|s| s.id.0).max().unwrap_or(0) + 1;
    let next_replica =
        shards.iter().flat_map(|s| &s.replicas).map(|r| r.id.0).max().unwrap_or(0) + 1;
    let number = |n: u64| Bytes::copy_from_slice(&n.to_be_bytes());
    let mut contents = vec![
        (Bytes::from_static(b"cluster"), number(config.cluster.0)),
        (Bytes::from_static(b"next/replica"), number(next_replica)),
        (Bytes::from_static(b"next/shard"), number(next_shard)),
    ];
    let mut peers = config.peers.clone();
    peers.sort_by_key(|p| p.id);
    for peer in &peers {
        let record = serde_json::json!({ "quic": peer.quic, "http": peer.http });
        contents.push((format!("node/{:016x}", peer.id.0).into(), record.to_string().into()));
    }
    for shard in shards {
        contents.push((format!("shard/{:016x}", shard.id.0).into(), shard.encode()));
    }
    contents
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shell::config::PeerConfig;
    use std::collections::BTreeSet;

    #[test]
    fn first_nodes_agree_ids_are_unique_and_first_leaders_are_spread() {
        let mut config = Config::sample();
        config.peers = [3, 1, 2, 5, 4]
            .map(|id| PeerConfig { id: NodeId(id), quic: format!("h{id}:1"), http: None })
            .to_vec();
        config.bootstrap.shards = 10;
        let shards = descriptors(&config);
        assert_eq!(shards.len(), 11);
        let replicas: Vec<_> = shards.iter().flat_map(|s| &s.replicas).collect();
        assert_eq!(replicas.iter().map(|r| r.id).collect::<BTreeSet<_>>().len(), 33);
        let leads = |node| shards.iter().filter(|s| s.replicas[0].node == NodeId(node)).count();
        assert!((1..=5).all(|node| (2..=3).contains(&leads(node))));
        assert!(
            shards
                .iter()
                .all(|s| s.replicas.iter().map(|r| r.node).collect::<BTreeSet<_>>().len() == 3)
        );
        config.peers.reverse();
        assert_eq!(descriptors(&config), shards);
    }
}
