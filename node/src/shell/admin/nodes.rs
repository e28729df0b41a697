//! What is shown of nodes: of this one what it knows, of the others what they say in time, or what
//! stands in the map.

use super::Admin;
use super::PEER_PATIENCE;
use super::asking::AdminRequest;
use flotilla_ops::admin::{DiskView, NodeState, NodeView};
use flotilla_router::NodeId;
use flotilla_storage::{Engine as _, disk};
use std::time::Instant;

impl Admin {
    pub(super) async fn node_view(&self, node: NodeId) -> NodeView {
        if node == self.forwarder.node {
            return self.own_view();
        }
        let deadline = Instant::now() + PEER_PATIENCE;
        let mut view = match self.ask::<NodeView>(node, &AdminRequest::Node, deadline).await {
            Ok(view) => NodeView { state: NodeState::Up, ..view },
            Err(_) => self.view_from_afar(node, NodeState::Down),
        };
        view.rtt_seconds = self.forwarder.transport.round_trip(node).map(|rtt| rtt.as_secs_f64());
        view
    }

    fn view_from_afar(&self, node: NodeId, state: NodeState) -> NodeView {
        let (address, http) = self.nodes.get(&node).cloned().unwrap_or_default();
        let table = self.forwarder.routes.table();
        NodeView {
            id: node,
            address,
            http,
            state,
            incarnation: None,
            version: None,
            replicas: table.shards().filter(|s| s.on_node(node).is_some()).count(),
            leaders: table
                .shards()
                .filter(|s| self.forwarder.routes.leader(s.id) == Some(node))
                .count(),
            disk: None,
            apply_lag: None,
            rtt_seconds: None,
            uptime_seconds: None,
        }
    }

    pub(super) fn own_view(&self) -> NodeView {
        let statistics = self.engine.statistics();
        let disk = disk(&self.data).ok().map(|disk| DiskView {
            used_bytes: statistics.sst_bytes + statistics.wal_bytes,
            free_bytes: disk.free_bytes,
            capacity_bytes: disk.capacity_bytes,
        });
        NodeView {
            incarnation: Some(self.incarnation),
            version: Some(env!("CARGO_PKG_VERSION").into()),
            disk,
            apply_lag: Some(self.state.counters().apply_lag),
            leaders: self.state.counters().leaders as usize,
            uptime_seconds: Some(self.started.elapsed().as_secs_f64()),
            ..self.view_from_afar(self.forwarder.node, NodeState::Up)
        }
    }
}
