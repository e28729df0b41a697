//! The writer: one batch of log entries and hard states of all groups, one fsync.
//!
//! A thread of its own, so that the loop goes on stepping groups while the disk is busy. A failed
//! write ends the process.

use super::Engine;
use super::mailbox::Mailbox;
use super::queue::Queue;
use super::space::Space;
use crate::core::Event;
use flotilla_ops::Metrics;
use flotilla_router::command::count_commands;
use flotilla_storage::{LogBatch, fatal};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

/// A write to carry out: its number, and what to write.
pub type Work = (u64, LogBatch);

/// Starts the thread; it ends when the queue is closed.
pub fn start(
    engine: Arc<Engine>,
    mailbox: Mailbox,
    metrics: Arc<Metrics>,
    space: Arc<Space>,
    queue: Arc<Queue<Work>>,
) -> std::io::Result<JoinHandle<()>> {
    let run = move || {
        let mut works = Vec::new();
        while queue.take(&mut works, None) {
            works.drain(..).for_each(|work| space.wrote(write(&engine, work, &mailbox, &metrics)));
        }
    };
    std::thread::Builder::new().name("writer".into()).spawn(run)
}

/// Returns how many bytes of log it were.
fn write(engine: &Engine, (write, batch): Work, mailbox: &Mailbox, metrics: &Metrics) -> u64 {
    let started = Instant::now();
    let (mut entries, mut bytes, mut commands) = (0, 0, 0);
    for entry in batch.writes.iter().flat_map(|w| &w.entries) {
        let in_entry = count_commands(&entry.data);
        entries += 1;
        bytes += entry.bytes();
        commands += in_entry;
        metrics.commands_per_entry.observe(in_entry as f64);
    }
    fatal::or_abort(flotilla_storage::append(engine, &batch));
    mailbox.report(Event::Persisted { write });
    if batch.sync {
        metrics.fsync_seconds.observe(started.elapsed().as_secs_f64());
        metrics.entries_per_fsync.observe(f64::from(entries));
        metrics.commands_per_fsync.observe(commands as f64);
    }
    metrics.log_bytes.inc_by(bytes);
    metrics
        .log_truncations
        .inc_by(batch.writes.iter().filter(|w| w.truncate.is_some()).count() as u64);
    bytes
}
