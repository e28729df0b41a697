//! Every metric of a node, in one struct: what `GET /metrics` renders.
//!
//! Names start with `flotilla_`, units are base units, counters end in `_total`. Each room
//! increments the public fields that are its own; that is one atomic addition, without a look-up by
//! label. What has labels is resolved once, at the start ([`HttpMetrics`]); what another room
//! counts by itself is shown as it stands ([`Metrics::show`]). Metrics are per node; only the
//! busiest few shards get a label ([`Metrics::set_busiest`]), however many there are.

mod http;
mod process;
mod shown;

pub use http::{HttpMetrics, Route};
pub use shown::Kind;

use flotilla_router::{Consistency, ShardId};
use process::ProcessMetrics;
use prometheus::core::Collector;
use prometheus::{
    Counter, Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};

/// Buckets of everything that takes time, in seconds: 50 µs to 10 s.
pub const SECONDS: [f64; 17] = [
    5e-5, 1e-4, 2e-4, 3e-4, 5e-4, 1e-3, 2e-3, 3e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 1e-1, 2.5e-1, 1.0,
    2.5, 10.0,
];
/// Buckets of the short things in the loop, in seconds: 1 µs to 1 s.
pub const LOOP_SECONDS: [f64; 15] =
    [1e-6, 3e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0];
/// Buckets of everything that is counted in a batch.
pub const BATCH: [f64; 13] =
    [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 4096.0];

/// Makes metrics and registers them in one step.
struct Maker<'a>(&'a Registry);

impl Maker<'_> {
    fn registered<C: Collector + Clone + 'static>(&self, metric: prometheus::Result<C>) -> C {
        let metric = metric.expect("the name and labels are constants, and a test makes them all");
        self.0
            .register(Box::new(metric.clone()))
            .expect("each name is registered once, and a test makes them all");
        metric
    }
    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.registered(IntCounter::new(name, help))
    }
    fn seconds_counter(&self, name: &str, help: &str) -> Counter {
        self.registered(Counter::new(name, help))
    }
    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.registered(IntCounterVec::new(Opts::new(name, help), labels))
    }
    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.registered(IntGauge::new(name, help))
    }
    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.registered(IntGaugeVec::new(Opts::new(name, help), labels))
    }
    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        self.registered(Histogram::with_opts(
            HistogramOpts::new(name, help).buckets(buckets.to_vec()),
        ))
    }
}

/// A shard among the busiest, for [`Metrics::set_busiest`].
#[derive(Clone, Copy, Debug)]
pub struct BusyShard {
    /// Which one.
    pub shard: ShardId,
    /// Its requests per second, of late.
    pub requests_per_second: i64,
}

macro_rules! metrics {
    ($($kind:ident $field:ident: $type:ty = $name:literal, $help:literal $(, $arg:expr)*;)*) => {
        /// Every metric of a node.
        pub struct Metrics {
            registry: Registry,
            process: ProcessMetrics,
            /// The HTTP server's own.
            pub http: HttpMetrics,
            reads: [IntCounter; 3],
            busy_requests: IntGaugeVec,
            /// Frames and requests from other nodes that make no sense. Shown with what the core
            /// refuses.
            pub malformed_messages: IntCounter,
            $(#[doc = $help] pub $field: $type,)*
        }

        impl Default for Metrics {
            fn default() -> Self {
                let registry = Registry::new();
                let make = Maker(&registry);
                let reads = make.counters("flotilla_reads_total", "Reads answered, by \
                    consistency.", &["consistency"]);
                Self {
                    process: ProcessMetrics::new(&make),
                    http: HttpMetrics::new(&make),
                    reads: ["linearizable", "lease", "stale"]
                        .map(|consistency| reads.with_label_values(&[consistency])),
                    malformed_messages: IntCounter::new("malformed", "Not shown by itself.")
                        .expect("a plain name"),
                    busy_requests: make.gauges("flotilla_shard_requests_per_second", "Requests per \
                        second of the busiest shards.", &["shard"]),
                    $($field: make.$kind($name, $help $(, $arg)*),)*
                    registry,
                }
            }
        }
    };
}

metrics! {
    counter proposals_refused: IntCounter = "flotilla_proposals_refused_total", "Writes that \
        this node's loop answered with an error: refused, or proposed and lost.";
    histogram commands_per_entry: Histogram = "flotilla_commands_per_entry", "Commands in one \
        proposed log entry.", &BATCH;
    histogram loop_pass_seconds: Histogram = "flotilla_loop_pass_seconds", "Time of one pass of \
        the loop.", &LOOP_SECONDS;
    histogram loop_events: Histogram = "flotilla_loop_events_per_pass", "Events taken from the \
        mailbox in one pass.", &BATCH;
    gauge mailbox_events: IntGauge = "flotilla_mailbox_events", "Events that wait for the loop.";
    histogram fsync_seconds: Histogram = "flotilla_fsync_seconds", "Time of one synced write of \
        entries and hard states.", &SECONDS;
    histogram commands_per_fsync: Histogram = "flotilla_commands_per_fsync", "Commands made \
        durable by one synced write, as leader or follower.", &BATCH;
    histogram entries_per_fsync: Histogram = "flotilla_entries_per_fsync", "Log entries made \
        durable by one synced write.", &BATCH;
    counter log_bytes: IntCounter = "flotilla_log_bytes_written_total", "Bytes of log entries \
        written.";
    histogram apply_seconds: Histogram = "flotilla_apply_seconds", "Time to apply one batch of \
        committed entries.", &LOOP_SECONDS;
    histogram commands_per_apply: Histogram = "flotilla_commands_per_apply", "Commands in one \
        applied batch.", &BATCH;
    gauge shards_quarantined: IntGauge = "flotilla_shards_quarantined", "Replicas here that were \
        quarantined; others answer for them.";
    gauge shards_without_leader: IntGauge = "flotilla_shards_without_leader", "Replicas here whose \
        shard has no leader that they know of.";
    counter leader_transfers: IntCounter = "flotilla_leader_transfers_total", "Leaderships that \
        replicas here handed over.";
    gauge peers_connected: IntGauge = "flotilla_peers_connected", "Other nodes that are connected.";
    counter forwarded_sent: IntCounter = "flotilla_forwarded_requests_sent_total", "Requests \
        handed on to another node.";
    counter forwarded_received: IntCounter =
        "flotilla_forwarded_requests_received_total", "Requests handed on by another node.";
    counter forward_retries: IntCounter = "flotilla_forward_retries_total", "Requests tried again \
        elsewhere, because they were certainly not applied.";
    counter forward_failures: IntCounter = "flotilla_forward_failures_total", "Requests handed on \
        that came back without an answer.";
    counter snapshots_built: IntCounter = "flotilla_snapshots_built_total", "Snapshots of shards \
        built here.";
    counter snapshots_sent: IntCounter = "flotilla_snapshots_sent_total", "Snapshots sent whole to \
        another node.";
    counter snapshots_received: IntCounter = "flotilla_snapshots_received_total", "Snapshots \
        received whole and verified.";
    counter snapshots_installed: IntCounter = "flotilla_snapshots_installed_total", "Snapshots \
        installed.";
    counter snapshots_failed: IntCounter = "flotilla_snapshots_failed_total", "Snapshots that \
        failed at any step, on either end.";
    counter snapshot_bytes_received: IntCounter =
        "flotilla_snapshot_bytes_received_total", "Bytes of snapshots received.";
    counter log_truncations: IntCounter = "flotilla_log_truncations_total", "Times that a shard's \
        log was cut at its front.";
    counter entry_fetches: IntCounter = "flotilla_entry_fetches_total", "Times that log entries \
        were read back from disk.";
    gauge disk_used_bytes: IntGauge = "flotilla_disk_used_bytes", "Bytes that the data directory \
        takes.";
    gauge disk_free_bytes: IntGauge = "flotilla_disk_free_bytes", "Bytes free on the data \
        directory's file system.";
    gauge disk_needed_bytes: IntGauge = "flotilla_disk_needed_bytes", "Bytes that must stay free: \
        the reserve, and what is still to be written.";
    gauge disk_capacity_bytes: IntGauge = "flotilla_disk_capacity_bytes", "Size of the data \
        directory's file system.";
    gauge rocksdb_slowed: IntGauge = "flotilla_rocksdb_write_slowed", "1 while RocksDB slows \
        writes down, because compaction lags behind.";
    gauge rocksdb_stopped: IntGauge = "flotilla_rocksdb_write_stopped", "1 while RocksDB takes no \
        writes at all.";
    gauge rocksdb_wal_bytes: IntGauge = "flotilla_rocksdb_wal_bytes", "Size of RocksDB's \
        write-ahead log.";
    gauge rocksdb_memtable_bytes: IntGauge = "flotilla_rocksdb_memtable_bytes", "Size of RocksDB's \
        memtables.";
    gauge rocksdb_pending_compaction_bytes: IntGauge =
        "flotilla_rocksdb_pending_compaction_bytes", "What RocksDB estimates it has to compact.";
}

impl Metrics {
    /// The counter of reads with this consistency. Counted by the node that answers, once each.
    pub fn reads(&self, consistency: Consistency) -> &IntCounter {
        match consistency {
            Consistency::Linearizable => &self.reads[0],
            Consistency::Lease => &self.reads[1],
            Consistency::Stale { .. } => &self.reads[2],
        }
    }

    /// Shows these shards, and no others, with a label each. The caller keeps them few.
    pub fn set_busiest(&self, busiest: &[BusyShard]) {
        self.busy_requests.reset();
        for busy in busiest {
            let label = busy.shard.to_string();
            self.busy_requests.with_label_values(&[&label]).set(busy.requests_per_second);
        }
    }

    /// Everything in Prometheus' text format.
    pub fn render(&self) -> Vec<u8> {
        self.process.collect();
        let mut out = Vec::with_capacity(32 << 10);
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut out) {
            tracing::warn!(%error, "render metrics");
        }
        out
    }

    /// The content type of [`Self::render`].
    pub const CONTENT_TYPE: &'static str = prometheus::TEXT_FORMAT;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_ours_and_says_its_kind() {
        let metrics = Metrics::default();
        metrics.show(Kind::Gauge, "flotilla_leaders", "Led here.", || 7);
        for (lane, frames) in [("control", 1), ("append", 2)] {
            metrics.show_of_lane(
                lane,
                Kind::Counter,
                "flotilla_lane_messages_sent_total",
                "Sent.",
                move || frames,
            );
        }
        metrics.http.observe(
            Route::Key,
            &::http::Method::GET,
            200,
            std::time::Duration::from_millis(1),
        );
        metrics.set_busiest(&[BusyShard { shard: ShardId(7), requests_per_second: 9 }]);
        let text = String::from_utf8(metrics.render()).unwrap();
        for line in text.lines().filter(|line| line.starts_with("# TYPE ")) {
            let [name, kind] = line["# TYPE ".len()..].split(' ').collect::<Vec<_>>()[..] else {
                panic!("{line}")
            };
            assert!(name.starts_with("flotilla_"), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
        }
        assert!(text.contains("flotilla_shard_requests_per_second{shard=\"7\"} 9"), "{text}");
        assert!(text.contains("flotilla_lane_messages_sent_total{lane=\"control\"} 1"), "{text}");
        assert!(text.contains("flotilla_lane_messages_sent_total{lane=\"append\"} 2"), "{text}");
        assert!(text.contains("# TYPE flotilla_leaders gauge\nflotilla_leaders 7\n"), "{text}");
        assert!(
            text.contains(
                "flotilla_http_requests_total{method=\"GET\",route=\"key\",status=\"200\"} 1"
            ),
            "{text}"
        );
        metrics.set_busiest(&[]);
        assert!(
            !String::from_utf8(metrics.render()).unwrap().contains("shard=\"7\""),
            "a shard stays once it is quiet"
        );
    }

    #[test]
    fn the_process_shows_its_memory_files_and_time() {
        let text = String::from_utf8(Metrics::default().render()).unwrap();
        for name in [
            "flotilla_process_resident_memory_bytes",
            "flotilla_process_open_fds",
            "flotilla_process_threads",
        ] {
            let line = text
                .lines()
                .find(|line| line.starts_with(&format!("{name} ")))
                .unwrap_or_else(|| panic!("no {name}"));
            assert!(line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() > 0.0, "{line}");
        }
        assert!(text.contains("\nflotilla_process_cpu_seconds_total "));
    }
}
