//! What the process takes: CPU, memory, files, threads. Read from `/proc` when metrics are
//! rendered; where there is no `/proc`, the gauges stay at 0.
//!
//! The collector of the `prometheus` crate counts CPU in whole seconds, too coarse to see what a
//! node takes between two scrapes.

use super::Maker;
use prometheus::{Counter, IntGauge};
use std::fs;

/// Clock ticks in a second, in what Linux shows to programs on every architecture that we build
/// for.
const TICKS_PER_SECOND: f64 = 100.0;

/// What the process takes.
pub(super) struct ProcessMetrics {
    cpu_seconds: Counter,
    resident_bytes: IntGauge,
    virtual_bytes: IntGauge,
    open_fds: IntGauge,
    max_fds: IntGauge,
    threads: IntGauge,
}

impl ProcessMetrics {
    pub(super) fn new(make: &Maker<'_>) -> Self {
        Self {
            cpu_seconds: make.seconds_counter(
                "flotilla_process_cpu_seconds_total",
                "CPU time of the process, user and system.",
            ),
            resident_bytes: make
                .gauge("flotilla_process_resident_memory_bytes", "Memory that the process holds."),
            virtual_bytes: make.gauge(
                "flotilla_process_virtual_memory_bytes",
                "Address space that the process has mapped.",
            ),
            open_fds: make.gauge("flotilla_process_open_fds", "Files and sockets that are open."),
            max_fds: make.gauge("flotilla_process_max_fds", "Files and sockets that may be open."),
            threads: make.gauge("flotilla_process_threads", "Threads."),
        }
    }

    /// Looks at `/proc`.
    pub(super) fn collect(&self) {
        if let Ok(stat) = fs::read_to_string("/proc/self/stat") {
            // The second field is the program's name in parentheses, and may hold anything; the
            // third follows the last of them.
            let fields: Vec<&str> =
                stat.rsplit(") ").next().unwrap_or_default().split_whitespace().collect();
            let ticks =
                |i: usize| fields.get(i).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
            let seconds = (ticks(11) + ticks(12)) / TICKS_PER_SECOND;
            self.cpu_seconds.inc_by((seconds - self.cpu_seconds.get()).max(0.0));
        }
        if let Ok(status) = fs::read_to_string("/proc/self/status") {
            let number = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name))?;
                line.split_whitespace().next()?.parse::<i64>().ok()
            };
            self.resident_bytes.set(number("VmRSS:").unwrap_or(0) * 1024);
            self.virtual_bytes.set(number("VmSize:").unwrap_or(0) * 1024);
            self.threads.set(number("Threads:").unwrap_or(0));
        }
        if let Ok(fds) = fs::read_dir("/proc/self/fd") {
            self.open_fds.set(fds.count() as i64);
        }
        if let Ok(limits) = fs::read_to_string("/proc/self/limits") {
            let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
            let soft = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
            self.max_fds.set(soft.unwrap_or(0));
        }
    }
}
