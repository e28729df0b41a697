//! Whether the process is alive, whether it should be sent requests, and the gauges that nobody
//! else keeps up to date.

use super::Engine;
use super::driver::{LoopState, millis};
use super::mailbox::Mailbox;
use super::space::{Seen, Space};
use flotilla_ops::metrics::BusyShard;
use flotilla_ops::{Check, Inspect, Metrics, Readiness};
use flotilla_router::{NodeId, Routes, ShardId};
use flotilla_storage::{Engine as _, disk};
use flotilla_transport::Transport;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};
use std::time::Instant;

/// A loop that has not turned for so long is stuck.
const STUCK_MS: u64 = 5_000;
/// Shards that get a label of their own in the metrics.
const BUSIEST: usize = 8;

/// Looks at the node from outside the loop.
pub struct Health {
    /// This node.
    pub node: NodeId,
    /// The clock.
    pub mailbox: Mailbox,
    /// What the loop shows.
    pub state: Arc<LoopState>,
    /// Who leads what.
    pub routes: Arc<Routes>,
    /// The other nodes.
    pub transport: Arc<Transport>,
    /// The disk.
    pub engine: Arc<Engine>,
    /// The folder of the data.
    pub data: PathBuf,
    /// Room on its disk.
    pub space: Arc<Space>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

impl Inspect for Health {
    fn node(&self) -> NodeId {
        self.node
    }

    fn live(&self) -> Result<(), String> {
        let now = millis(self.mailbox.time(Instant::now()));
        let silent = now.saturating_sub(self.state.last_pass_ms.load(Ordering::Relaxed));
        if silent < STUCK_MS {
            Ok(())
        } else {
            Err(format!("the loop has not turned for {silent} ms"))
        }
    }

    fn ready(&self) -> Readiness {
        let check = |name: &str, ok, detail: String| Check { name: name.into(), ok, detail };
        let peers = self.transport.peers();
        let reachable = peers.iter().filter(|p| self.transport.reachable(**p)).count();
        let quorum = peers.len().div_ceil(2);
        let (leaderless, quarantined) = (self.leaderless(), self.quarantined().len());
        let draining = self.state.draining.load(Ordering::Relaxed);
        let Seen { free_bytes, needed_bytes } = self.space.seen();
        let disk_check = check(
            "disk",
            free_bytes >= needed_bytes,
            format!("{free_bytes} bytes free, {needed_bytes} needed"),
        );
        let checks = vec![
            check("loop", self.live().is_ok(), self.live().err().unwrap_or_default()),
            check(
                "joined",
                reachable >= quorum,
                format!("{reachable} of {} other nodes connected", peers.len()),
            ),
            check(
                "leaders",
                leaderless == 0,
                format!("{leaderless} shards of this node without a leader"),
            ),
            // Its other replicas answer; a person has to look all the same.
            check("replicas", true, format!("{quarantined} shards of this node quarantined")),
            disk_check,
            check(
                "staying",
                !draining,
                if draining { "shutting down".into() } else { String::new() },
            ),
        ];
        Readiness { ready: checks.iter().all(|c| c.ok), checks }
    }

    fn collect(&self) {
        let metrics = &self.metrics;
        if let Ok(disk) = disk(&self.data) {
            metrics.disk_free_bytes.set(disk.free_bytes as i64);
            metrics.disk_capacity_bytes.set(disk.capacity_bytes as i64);
        }
        metrics.disk_needed_bytes.set(self.space.seen().needed_bytes as i64);
        let statistics = self.engine.statistics();
        metrics.disk_used_bytes.set((statistics.sst_bytes + statistics.wal_bytes) as i64);
        metrics.rocksdb_stopped.set(statistics.writes_stopped.into());
        metrics.rocksdb_slowed.set(statistics.writes_slowed.into());
        metrics.rocksdb_wal_bytes.set(statistics.wal_bytes as i64);
        metrics.rocksdb_memtable_bytes.set(statistics.memtable_bytes as i64);
        metrics.rocksdb_pending_compaction_bytes.set(statistics.compaction_pending_bytes as i64);
        metrics.shards_without_leader.set(self.leaderless() as i64);
        metrics.shards_quarantined.set(self.quarantined().len() as i64);
        let connected =
            self.transport.peers().iter().filter(|p| self.transport.reachable(**p)).count();
        metrics.peers_connected.set(connected as i64);
        self.collect_busiest();
    }
}

impl Health {
    fn quarantined(&self) -> MutexGuard<'_, BTreeSet<ShardId>> {
        self.state.quarantined.lock().expect("nothing panics while it holds them")
    }

    /// Shards of this node whose replica here has no leader. A replica that was quarantined knows
    /// nothing, and need not.
    fn leaderless(&self) -> usize {
        let (table, quarantined) = (self.routes.table(), self.quarantined());
        let mine = table
            .shards()
            .filter(|s| s.on_node(self.node).is_some() && !quarantined.contains(&s.id));
        mine.filter(|s| self.routes.followed(s.id).is_none()).count()
    }

    fn collect_busiest(&self) {
        let busiest = self
            .state
            .rates
            .lock()
            .expect("nothing panics while it holds the rates")
            .busiest(BUSIEST);
        let busiest: Vec<_> = busiest
            .into_iter()
            .map(|(shard, rate)| BusyShard {
                shard,
                requests_per_second: (rate.reads + rate.writes) as i64,
            })
            .collect();
        self.metrics.set_busiest(&busiest);
    }
}
