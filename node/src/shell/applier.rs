//! The applier: committed entries of all shards, in order, into one unsynced batch; and what must
//! happen in apply order.
//!
//! A snapshot is pinned here, between two batches, so that its data and its applied index agree.
//! What a snapshot brought in is taken note of here, before anything is applied on top of it.
//!
//! A shard whose next entry takes long is applied by a thread of its own
//! (`storage/src/apply/aside.rs`). What comes for it meanwhile waits here, bounded by what the core
//! hands out before it hears of the rest.

use super::Engine;
use super::mailbox::Mailbox;
use super::queue::Queue;
use super::snapshots::Snapshots;
use super::space::Space;
use crate::core::{Event, SnapshotId};
use flotilla_ops::Metrics;
use flotilla_router::ShardId;
use flotilla_storage::{
    Applied, Applier, ApplyWork, Aside, Engine as _, FailPoint, Returned, SnapshotManifest, fatal,
};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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
    /// A shard that was taken aside comes back.
    Back(Returned),
}

/// Shards that are applied aside at a time; more wait.
const ASIDE_MAX: usize = 8;
/// Of those, shards of which much is deleted: they must not keep those that are done soon.
const LONGEST_MAX: usize = 6;
/// How far the threads of those stand back.
const ASIDE_NICE: i32 = 10;

/// Starts the thread; it ends when the queue is closed.
pub fn start(
    engine: Arc<Engine>,
    applier: Applier,
    mailbox: Mailbox,
    snapshots: Arc<Snapshots>,
    metrics: Arc<Metrics>,
    space: Arc<Space>,
    queue: Arc<Queue<Work>>,
) -> std::io::Result<JoinHandle<()>> {
    let hands = Hands { engine, mailbox, snapshots, metrics, space, queue };
    let run = move || {
        Thread {
            applier,
            hands,
            away: BTreeMap::new(),
            next: VecDeque::new(),
            aside: Vec::new(),
            stop: Arc::default(),
        }
        .run()
    };
    std::thread::Builder::new().name("applier".into()).spawn(run)
}

/// What the applier works with.
struct Hands {
    engine: Arc<Engine>,
    mailbox: Mailbox,
    snapshots: Arc<Snapshots>,
    metrics: Arc<Metrics>,
    space: Arc<Space>,
    queue: Arc<Queue<Work>>,
}

/// The thread.
struct Thread {
    applier: Applier,
    hands: Hands,
    /// What waits for shards that were taken aside.
    away: BTreeMap<ShardId, Vec<ApplyWork>>,
    /// Shards that were taken aside and wait for a thread.
    next: VecDeque<Aside>,
    /// The threads of those that have one, and which of them take longest.
    aside: Vec<(JoinHandle<()>, bool)>,
    /// Set at the end.
    stop: Arc<AtomicBool>,
}

impl Thread {
    fn run(mut self) {
        let mut works = Vec::new();
        while self.hands.queue.take(&mut works, None) {
            for work in works.drain(..) {
                match work {
                    Work::Apply(work) => self.apply(work),
                    Work::Pin { shard, snapshot } => {
                        self.hands.snapshots.build(shard, snapshot, self.hands.engine.view())
                    }
                    Work::Installed(manifest) => self.installed(&manifest),
                    Work::Back(returned) => self.back(returned),
                }
            }
        }
        // What is not written yet is in the log; but nobody may write once the engine is closed.
        self.stop.store(true, Ordering::Relaxed);
        self.aside.into_iter().for_each(|(thread, _)| drop(thread.join()));
    }

    fn apply(&mut self, mut works: Vec<ApplyWork>) {
        let started = Instant::now();
        let mut kept = Vec::new();
        for work in works.extract_if(.., |work| self.away.contains_key(&work.shard)) {
            kept.push(work);
        }
        for work in kept {
            self.away.entry(work.shard).or_default().push(work);
        }
        let bytes =
            works.iter().flat_map(|work| &work.entries).map(|work| work.entry.bytes()).sum();
        let (applied, asides) =
            fatal::or_abort(self.applier.apply_short(&*self.hands.engine, works));
        self.report(applied, started);
        self.hands.space.wrote(bytes);
        for aside in asides {
            self.away.insert(aside.shard(), Vec::new());
            self.next.push_back(aside);
        }
        self.start_next();
    }

    fn report(&self, applied: Vec<Applied>, started: Instant) {
        let commands: usize =
            applied.iter().flat_map(|a| &a.results).map(|(_, results)| results.len()).sum();
        self.hands.mailbox.report(Event::Applied { applied });
        self.hands.metrics.apply_seconds.observe(started.elapsed().as_secs_f64());
        self.hands.metrics.commands_per_apply.observe(commands as f64);
    }

    /// Gives threads to shards that wait for one.
    fn start_next(&mut self) {
        self.aside.retain(|(thread, _)| !thread.is_finished());
        loop {
            let longest = self.aside.iter().filter(|(_, longest)| *longest).count();
            let next = whose_turn(
                self.next.iter().map(Aside::is_among_the_longest),
                self.aside.len(),
                longest,
            );
            let Some(aside) = next.and_then(|next| self.next.remove(next)) else { return };
            let longest = aside.is_among_the_longest();
            let (engine, queue, stop) =
                (self.hands.engine.clone(), self.hands.queue.clone(), self.stop.clone());
            let run = move || {
                // It is in no hurry; what others wait for goes first, where there are too few cores
                // for both. This thread alone: Linux keeps priorities by thread.
                if longest {
                    let _ = rustix::process::setpriority_process(None, ASIDE_NICE);
                }
                match aside.run(&*engine, stop.clone()) {
                    Ok(returned) => {
                        queue.send(Work::Back(returned));
                    }
                    Err(_) if stop.load(Ordering::Relaxed) => {}
                    Err(error) => fatal::abort(&error),
                }
            };
            let thread = std::thread::Builder::new().name("apply aside".into()).spawn(run);
            self.aside.push((
                thread.unwrap_or_else(|error| panic!("no thread for what takes long: {error}")),
                longest,
            ));
        }
    }

    /// A shard comes back, and what waited for it is applied.
    fn back(&mut self, returned: Returned) {
        let applied = self.applier.take_back(returned);
        let waited = self.away.remove(&applied.shard).unwrap_or_default();
        self.report(vec![applied], Instant::now());
        for work in waited {
            self.apply(vec![work]);
        }
        self.start_next();
    }

    fn installed(&mut self, manifest: &SnapshotManifest) {
        self.applier.installed(manifest);
        fatal::or_abort(FailPoint::InstallNoted.pass());
        let (shard, at, revision) = (manifest.descriptor.id, manifest.at, manifest.revision);
        self.hands.metrics.snapshots_installed.inc();
        self.hands.mailbox.report(Event::SnapshotInstalled { shard, at, revision });
    }
}

/// Which of those that wait is next, if any: the first, unless it takes longest and as many of that
/// kind as may have a thread already.
fn whose_turn(
    mut waiting: impl Iterator<Item = bool>,
    running: usize,
    longest: usize,
) -> Option<usize> {
    let may_start =
        |is_longest: bool| running < ASIDE_MAX && (!is_longest || longest < LONGEST_MAX);
    waiting.position(may_start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_done_soon_does_not_wait_for_what_takes_longest() {
        let waiting = [true, true, false];
        let next = |running, longest| whose_turn(waiting.into_iter(), running, longest);
        assert_eq!(next(5, 5), Some(0), "in the order in which they came");
        assert_eq!(next(6, 6), Some(2), "threads are kept for what is done soon");
        assert_eq!(next(8, 6), None);
    }
}
