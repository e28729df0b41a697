//! The applier: committed entries of all shards, in order, into one unsynced batch; and what must happen in apply order.
//!
//! A snapshot is pinned here, between two batches, so that its data and its applied index agree. What a snapshot brought in is
//! taken note of here, before anything is applied on top of it.

use super::Engine;
use super::mailbox::Mailbox;
use super::queue::Queue;
use super::snapshots::Snapshots;
use crate::core::{Event, SnapshotId};
use flotilla_ops::Metrics;
use flotilla_router::ShardId;
use flotilla_storage::{Applier, ApplyWork, Engine as _, FailPoint, SnapshotManifest, fatal};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

/// What is to be done, in order.
pub enum Work {
    /// Apply committed entries.
    Apply(Vec<ApplyWork>),
    /// Pin the shard's state as of now, and have a snapshot built of it.
    Pin {
        /// The shard.
        shard: ShardId,
        /// What to call it.
        snapshot: SnapshotId,
    },
    /// A snapshot was installed.
    Installed(SnapshotManifest),
}

/// Starts the thread; it ends when the queue is closed.
pub fn start(
    engine: Arc<Engine>,
    applier: Applier,
    mailbox: Mailbox,
    snapshots: Arc<Snapshots>,
    metrics: Arc<Metrics>,
    queue: Arc<Queue<Work>>,
) -> std::io::Result<JoinHandle<()>> {
    let run = move || run(&engine, applier, &mailbox, &snapshots, &metrics, &queue);
    std::thread::Builder::new().name("applier".into()).spawn(run)
}

fn run(
    engine: &Arc<Engine>,
    mut applier: Applier,
    mailbox: &Mailbox,
    snapshots: &Arc<Snapshots>,
    metrics: &Metrics,
    queue: &Queue<Work>,
) {
    let mut works = Vec::new();
    while queue.take(&mut works, None) {
        for work in works.drain(..) {
            match work {
                Work::Apply(work) => {
                    let started = Instant::now();
                    let applied = fatal::or_abort(applier.apply(&**engine, work));
                    let commands: usize = applied.iter().flat_map(|a| &a.results).map(|(_, results)| results.len()).sum();
                    mailbox.report(Event::Applied { applied });
                    metrics.apply_seconds.observe(started.elapsed().as_secs_f64());
                    metrics.commands_per_apply.observe(commands as f64);
                }
                Work::Pin { shard, snapshot } => snapshots.build(shard, snapshot, engine.view()),
                Work::Installed(manifest) => {
                    applier.installed(&manifest);
                    fatal::or_abort(FailPoint::InstallNoted.pass());
                    let (shard, at, revision) = (manifest.descriptor.id, manifest.at, manifest.revision);
                    metrics.snapshots_installed.inc();
                    mailbox.report(Event::SnapshotInstalled { shard, at, revision });
                }
            }
        }
    }
}
