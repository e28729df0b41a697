//! One node of a simulated cluster: the core, and around it what the shell would be, on an engine
//! in memory.
//!
//! What the core asks of storage becomes a [`Job`] in one of a few [`Lane`]s, each carried out in
//! order, each of which a test can hold: so it sees what leaves before an fsync, and what only
//! after. A crash forgets jobs, events and unsynced writes.

use crate::core::wire::Envelope;
use crate::core::{Built, CoreConfig, Event, Identity, Node, SnapshotId};
use flotilla_router::{Descriptor, Incarnation, KeyRange, NodeId, ReplicaId, ShardId};
use flotilla_storage::snapshot::{self, Installing};
use flotilla_storage::{
    Applier, ApplyWork, Family, HardState, LogBatch, MemoryEngine, Read as _, Recovered,
    SnapshotManifest, append, bootstrap, keys, log, records, recover,
};
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;

/// Which of a node's storage workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Lane {
    /// Writes to the log.
    Persist,
    /// Applies entries.
    Apply,
    /// Installs snapshots, step by step, while other shards go on.
    Install,
    /// Builds snapshots.
    Build,
    /// Reads entries from disk.
    Fetch,
}

impl Lane {
    /// All of them.
    pub(crate) const ALL: [Self; 5] =
        [Self::Persist, Self::Apply, Self::Install, Self::Build, Self::Fetch];
}

/// Something that the core asked of storage.
pub(crate) enum Job {
    /// Write to the log, synced.
    Persist { write: u64, batch: LogBatch },
    /// Apply entries, unsynced.
    Apply { work: Vec<ApplyWork> },
    /// Install a staged snapshot.
    Install { replica: ReplicaId, staged: SnapshotId, hard_state: HardState, clear: Vec<KeyRange> },
    /// Go on with an installation.
    GoOn { manifest: Box<SnapshotManifest>, installing: Box<Installing> },
    /// Build a snapshot.
    Build { shard: ShardId, snapshot: SnapshotId },
    /// Read entries.
    Fetch { fetch: u64, shard: ShardId, low: u64, high: u64, bytes_max: u64 },
}

/// What became of a lane's oldest job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Worked {
    /// There was none.
    Idle,
    /// It goes on.
    Midway,
    /// It is done, and its outcome is the last thing in the mailbox.
    Done,
}

/// A node, up or down.
pub(crate) struct Member {
    /// Which.
    pub(crate) id: NodeId,
    /// Its disk.
    pub(crate) engine: MemoryEngine,
    /// How often it was started.
    pub(crate) incarnation: u64,
    /// Its own monotonic clock, where a test moves it by hand.
    #[cfg(test)]
    pub(crate) now: crate::core::Time,
    /// What runs; nothing while it is down.
    pub(crate) running: Option<Running>,
}

/// What a crash takes away.
pub(crate) struct Running {
    /// The core.
    pub(crate) core: Node,
    applier: Applier,
    /// Events that the next pass handles.
    pub(crate) mailbox: VecDeque<Event>,
    jobs: BTreeMap<Lane, VecDeque<Job>>,
    /// Lanes that a test holds by hand.
    #[cfg(test)]
    held: std::collections::BTreeSet<Lane>,
    /// A shard that a test has taken aside, and what waits to be applied to it.
    #[cfg(test)]
    aside: Option<(ShardId, Vec<ApplyWork>)>,
    /// Snapshots that were built and not dropped.
    pub(crate) built: BTreeMap<SnapshotId, SnapshotManifest>,
    /// Snapshots that arrived and were neither installed nor discarded.
    pub(crate) staged: BTreeMap<SnapshotId, SnapshotManifest>,
    next_staged: u64,
}

impl Member {
    /// A first node of the cluster that consists of these shards; down.
    pub(crate) fn bootstrapped(id: NodeId, shards: &[Descriptor]) -> Self {
        let engine = MemoryEngine::new();
        assert!(bootstrap(&engine, shards, id, &[]).unwrap());
        Self {
            id,
            engine,
            incarnation: 0,
            #[cfg(test)]
            now: crate::core::Time::ZERO,
            running: None,
        }
    }

    /// Starts through recovery, as a new incarnation. Returns what was found.
    pub(crate) fn start(&mut self, config: &CoreConfig) -> Result<Vec<Recovered>, String> {
        assert!(self.running.is_none(), "node {} runs already", self.id);
        self.incarnation += 1;
        let recovered =
            recover(&self.engine).map_err(|e| format!("node {} does not recover: {e}", self.id))?;
        let found = recovered.clone();
        let applier = Applier::new(&self.engine, &recovered)
            .map_err(|e| format!("node {} does not start: {e}", self.id))?;
        let identity = Identity { node: self.id, incarnation: Incarnation(self.incarnation) };
        let core = Node::new(
            config.clone(),
            identity,
            recovered,
            slog::Logger::root(slog::Discard, slog::o!()),
        );
        self.running = Some(Running {
            core,
            applier,
            mailbox: VecDeque::new(),
            jobs: BTreeMap::new(),
            #[cfg(test)]
            held: Default::default(),
            #[cfg(test)]
            aside: None,
            built: BTreeMap::new(),
            staged: BTreeMap::new(),
            next_staged: 1,
        });
        Ok(found)
    }

    /// Loses power; of the writes behind the last synced one the first `kept` survive.
    pub(crate) fn crash(&mut self, kept: usize) {
        assert!(self.running.take().is_some(), "node {} is down already", self.id);
        self.engine.crash_keeping(kept);
    }

    /// Where a snapshot that this node built lies.
    fn built_folder(snapshot: SnapshotId) -> PathBuf {
        format!("built-{}", snapshot.0).into()
    }

    /// Where a snapshot that came to this life of the node lies. Installs that a restart completes
    /// look there again.
    fn staged_folder(&self, staged: SnapshotId) -> PathBuf {
        format!("staged-{}-{}", self.incarnation, staged.0).into()
    }

    /// The files of a built snapshot.
    pub(crate) fn snapshot_files(
        &self,
        snapshot: SnapshotId,
    ) -> Option<(SnapshotManifest, Vec<(String, bytes::Bytes)>)> {
        let manifest = self.running.as_ref()?.built.get(&snapshot)?.clone();
        let folder = Self::built_folder(snapshot);
        let files = manifest
            .files
            .iter()
            .map(|f| (f.name.clone(), self.engine.file(&folder, &f.name).unwrap()))
            .collect();
        Some((manifest, files))
    }

    /// A snapshot has arrived whole.
    pub(crate) fn stage(
        &mut self,
        from: NodeId,
        envelope: Envelope,
        manifest: SnapshotManifest,
        files: Vec<(String, bytes::Bytes)>,
    ) {
        let running = self.running.as_mut().expect("packets reach only nodes that run");
        let staged = SnapshotId(running.next_staged);
        running.next_staged += 1;
        running.staged.insert(staged, manifest.clone());
        running.mailbox.push_back(Event::SnapshotStaged { from, staged, envelope, manifest });
        let folder = self.staged_folder(staged);
        for (name, contents) in files {
            self.engine.put_file(&folder, &name, contents);
        }
    }

    /// Forgets a snapshot that this node built.
    pub(crate) fn drop_built(&mut self, snapshot: SnapshotId) {
        self.running_mut().built.remove(&snapshot);
    }

    /// Forgets a snapshot that came.
    pub(crate) fn discard_staged(&mut self, staged: SnapshotId) {
        let gone = self.running_mut().staged.remove(&staged);
        assert!(gone.is_some(), "node {} discards {staged:?}, which it doesn't have", self.id);
    }

    /// What runs.
    pub(crate) fn running_mut(&mut self) -> &mut Running {
        self.running.as_mut().unwrap_or_else(|| panic!("node {} is down", self.id))
    }

    /// Carries out the oldest job of a lane, or a step of it. An error is what would end the
    /// process.
    pub(crate) fn work(&mut self, lane: Lane) -> Result<Worked, String> {
        let Some(job) = self.running.as_mut().and_then(|r| r.jobs.get_mut(&lane)?.pop_front())
        else {
            return Ok(Worked::Idle);
        };
        let id = self.id;
        let ends = |error: flotilla_storage::StorageError| format!("node {id} ends: {error}");
        let event = match job {
            Job::Persist { write, batch } => {
                append(&self.engine, &batch).map_err(ends)?;
                Event::Persisted { write }
            }
            Job::Apply { work } => {
                let running = self.running.as_mut().expect("a job was taken from it");
                #[cfg(test)]
                let work = running.keep_aside(work);
                let applied = running.applier.apply(&self.engine, work).map_err(ends)?;
                Event::Applied { applied }
            }
            Job::Install { replica, staged, hard_state, clear } => {
                let folder = self.staged_folder(staged);
                let running = self.running.as_mut().expect("a job was taken from it");
                let manifest =
                    running.staged.remove(&staged).expect("what is installed was staged");
                let begun = snapshot::begin_install(
                    &self.engine,
                    &manifest,
                    &folder,
                    replica,
                    hard_state,
                    &clear,
                );
                let installing = begun.map_err(ends)?;
                running.jobs.entry(lane).or_default().push_front(Job::GoOn {
                    manifest: Box::new(manifest),
                    installing: Box::new(installing),
                });
                return Ok(Worked::Midway);
            }
            Job::GoOn { manifest, mut installing } => {
                let running = self.running.as_mut().expect("a job was taken from it");
                if installing.step(&self.engine).map_err(ends)? {
                    running
                        .jobs
                        .entry(lane)
                        .or_default()
                        .push_front(Job::GoOn { manifest, installing });
                    return Ok(Worked::Midway);
                }
                running.applier.installed(&manifest);
                Event::SnapshotInstalled {
                    shard: manifest.descriptor.id,
                    at: manifest.at,
                    revision: manifest.revision,
                }
            }
            Job::Build { shard, snapshot: id } => {
                use flotilla_storage::Engine as _;
                let folder = Self::built_folder(id);
                let manifest = snapshot::build(&self.engine, &self.engine.view(), shard, &folder)
                    .map_err(ends)?;
                let built =
                    Some(Built { at: manifest.at, descriptor: manifest.descriptor.clone() });
                self.running_mut().built.insert(id, manifest);
                Event::SnapshotBuilt { shard, snapshot: id, built }
            }
            Job::Fetch { fetch, shard, low, high, bytes_max } => {
                // Every entry must be there, unless the log was truncated since the core asked.
                let entries =
                    log::entries(&self.engine, shard, low, high, bytes_max).map_err(ends)?;
                let there = !entries.is_empty() || self.truncated_index(shard) >= low;
                assert!(
                    there,
                    "node {} was asked for entries from {low} that are not on its disk",
                    self.id
                );
                Event::EntriesFetched { fetch, shard, entries }
            }
        };
        self.running_mut().mailbox.push_back(event);
        Ok(Worked::Done)
    }

    fn truncated_index(&self, shard: ShardId) -> u64 {
        // Not by recovery, which would complete installations.
        let key = keys::state(shard, keys::StateTag::Truncated);
        let record = self.engine.get(Family::State, &key).unwrap();
        record.map_or(0, |record| records::decode_truncated(&key, &record).unwrap().index)
    }

    /// What a restart would find.
    #[cfg(test)]
    pub(crate) fn on_disk(&self, shard: ShardId) -> Recovered {
        recover(&self.engine)
            .unwrap()
            .into_iter()
            .find(|r| r.descriptor.id == shard)
            .expect("the node holds the shard")
    }
}

impl Running {
    /// Adds a job.
    pub(crate) fn push(&mut self, lane: Lane, job: Job) {
        self.jobs.entry(lane).or_default().push_back(job);
    }

    /// From here on a shard is applied aside, for as long as the test likes.
    #[cfg(test)]
    pub(crate) fn take_aside(&mut self, shard: ShardId) {
        self.aside = Some((shard, Vec::new()));
    }

    /// The shard comes back.
    #[cfg(test)]
    pub(crate) fn come_back(&mut self) {
        let (_, waited) = self.aside.take().expect("a shard is aside");
        waited.into_iter().for_each(|work| self.push(Lane::Apply, Job::Apply { work: vec![work] }));
    }

    #[cfg(test)]
    fn keep_aside(&mut self, mut works: Vec<ApplyWork>) -> Vec<ApplyWork> {
        if let Some((shard, waiting)) = &mut self.aside {
            waiting.extend(works.extract_if(.., |work| work.shard == *shard));
        }
        works
    }

    /// The oldest snapshot that is to be built can't be. Whether there was one.
    #[cfg(test)]
    pub(crate) fn fail_build(&mut self) -> bool {
        let job = self.jobs.get_mut(&Lane::Build).and_then(VecDeque::pop_front);
        let Some(Job::Build { shard, snapshot }) = job else { return false };
        self.mailbox.push_back(Event::SnapshotBuilt { shard, snapshot, built: None });
        true
    }

    /// From here on a lane's jobs wait.
    #[cfg(test)]
    pub(crate) fn hold(&mut self, lane: Lane) {
        self.held.insert(lane);
    }

    /// A lane's jobs may be done again.
    #[cfg(test)]
    pub(crate) fn release(&mut self, lane: Lane) {
        self.held.remove(&lane);
    }

    /// How many jobs of a lane wait.
    pub(crate) fn waiting(&self, lane: Lane) -> usize {
        self.jobs.get(&lane).map_or(0, VecDeque::len)
    }

    /// The lanes that have something to do and are not held.
    #[cfg(test)]
    pub(crate) fn workable(&self) -> Vec<Lane> {
        Lane::ALL
            .into_iter()
            .filter(|lane| !self.held.contains(lane) && self.waiting(*lane) > 0)
            .collect()
    }
}
