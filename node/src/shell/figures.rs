//! What the core and the transport count, shown as metrics.

use super::driver::LoopState;
use crate::core::Counters;
use flotilla_ops::Metrics;
use flotilla_ops::metrics::Kind;
use flotilla_transport::{LaneStats, Stats, Transport};
use std::sync::Arc;

/// A number of the core: its name, what it means, and where it stands.
type OfCore = (Kind, &'static str, &'static str, fn(&Counters) -> u64);

const OF_CORE: [OfCore; 11] = [
    (
        Kind::Counter,
        "flotilla_proposals_total",
        "Writes that came to this node's loop, those that it refused included.",
        |c| c.commands,
    ),
    (
        Kind::Counter,
        "flotilla_entries_total",
        "Log entries proposed by leaders on this node.",
        |c| c.proposals,
    ),
    (
        Kind::Counter,
        "flotilla_elections_total",
        "Elections that replicas here called, each from its pre-vote on.",
        |c| c.elections,
    ),
    (Kind::Counter, "flotilla_elections_won_total", "Elections that replicas here won.", |c| {
        c.elections_won
    }),
    (
        Kind::Counter,
        "flotilla_read_contexts_total",
        "ReadIndex contexts sent to a quorum; each carries the reads of one shard and pass.",
        |c| c.read_contexts,
    ),
    (
        Kind::Counter,
        "flotilla_read_context_reads_total",
        "Reads that ReadIndex contexts carried: divided by the contexts, how many shared one.",
        |c| c.context_reads,
    ),
    (
        Kind::Counter,
        "flotilla_lease_reads_without_lease_total",
        "Lease reads that went through a quorum because the lease was off or void.",
        |c| c.lease_reads_refused,
    ),
    (
        Kind::Gauge,
        "flotilla_apply_lag_entries",
        "Committed entries not yet applied, over all replicas here.",
        |c| c.apply_lag,
    ),
    (Kind::Gauge, "flotilla_leaders", "Shards that this node leads.", |c| c.leaders),
    (Kind::Gauge, "flotilla_replicas", "Replicas that this node holds.", |c| c.replicas),
    (
        Kind::Gauge,
        "flotilla_entry_cache_bytes",
        "Log entries held in memory, over all shards.",
        |c| c.cache_bytes,
    ),
];

/// A number of a lane between nodes.
type OfLane = (&'static str, &'static str, fn(&LaneStats) -> u64);

const OF_LANES: [OfLane; 5] = [
    ("flotilla_lane_messages_sent_total", "Frames sent to other nodes, by lane.", |lane| {
        lane.frames_sent.get()
    }),
    ("flotilla_lane_bytes_sent_total", "Bytes sent to other nodes, by lane.", |lane| {
        lane.bytes_sent.get()
    }),
    ("flotilla_lane_messages_received_total", "Frames from other nodes, by lane.", |lane| {
        lane.frames_received.get()
    }),
    ("flotilla_lane_bytes_received_total", "Bytes from other nodes, by lane.", |lane| {
        lane.bytes_received.get()
    }),
    (
        "flotilla_lane_messages_dropped_total",
        "Frames dropped instead of sent (full outbox, peer away), by lane.",
        |lane| lane.frames_dropped.get(),
    ),
];

/// The lanes, by name.
type Lane = (&'static str, fn(&Stats) -> &LaneStats);

const LANES: [Lane; 3] = [
    ("control", |stats| &stats.control),
    ("append", |stats| &stats.append),
    ("requests", |stats| &stats.requests),
];

/// A number of the transport as a whole.
type OfTransport = (&'static str, &'static str, fn(&Stats) -> u64);

const OF_TRANSPORT: [OfTransport; 3] = [
    (
        "flotilla_peer_connects_total",
        "Connections made to other nodes or taken from them.",
        |stats| stats.connections_opened.get() + stats.connections_accepted.get(),
    ),
    (
        "flotilla_peer_rejects_total",
        "Connections from elsewhere turned away: refused, given up, late, or no room for them.",
        |stats| stats.connections_refused.get(),
    ),
    ("flotilla_snapshot_bytes_sent_total", "Bytes of snapshots sent.", |stats| {
        stats.snapshot_bytes_sent.get()
    }),
];

/// Shows all of them.
pub(super) fn show(metrics: &Metrics, state: &Arc<LoopState>, transport: &Arc<Transport>) {
    for (kind, name, help, read) in OF_CORE {
        let state = state.clone();
        metrics.show(kind, name, help, move || read(&state.counters()));
    }
    let (state, malformed) = (state.clone(), metrics.malformed_messages.clone());
    metrics.show(
        Kind::Counter,
        "flotilla_messages_malformed_total",
        "Messages from other nodes that failed the checks and were dropped.",
        move || malformed.get() + state.counters().messages_refused,
    );
    for (lane, of) in LANES {
        for (name, help, read) in OF_LANES {
            let transport = transport.clone();
            metrics
                .show_of_lane(lane, Kind::Counter, name, help, move || read(of(transport.stats())));
        }
    }
    for (name, help, read) in OF_TRANSPORT {
        let transport = transport.clone();
        metrics.show(Kind::Counter, name, help, move || read(transport.stats()));
    }
}
