//! Files: snapshots built, sent, staged and installed; and log entries that are no longer in
//! memory.
//!
//! Everything here blocks, so it runs on the runtime's blocking pool, and reports to the loop when
//! it is done, well or not.
//!
//! A shutdown waits for none of it: what is half built or half staged is thrown away by a restart,
//! an install is completed by it.
//!
//! ```text
//! <data>/snapshots/out/<n>      built here, to be sent
//! <data>/snapshots/in/<n>       on its way here
//! <data>/snapshots/install/<n>  being installed; a restart in the middle of it completes it first
//! ```

mod install;

use super::mailbox::{Mail, Mailbox};
use super::space::Space;
use super::{Engine, View};
use crate::core::{Built, Delivery, Envelope, Event, SnapshotId, wire};
use bytes::{BufMut, Bytes, BytesMut};
use flotilla_ops::Metrics;
use flotilla_router::codec::{Put, Reader};
use flotilla_router::{NodeId, ReplicaId, ShardId, Throttle};
use flotilla_storage::{FailPoint, SnapshotManifest, StorageError, fatal};
use flotilla_transport::{SnapshotError, Staging, Transport};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// A snapshot that was staged: where, what it holds, and who is to be told what became of it.
struct Staged {
    folder: PathBuf,
    manifest: SnapshotManifest,
    verdict: oneshot::Sender<Result<(), String>>,
}

/// The node's snapshot files.
pub struct Snapshots {
    space: Arc<Space>,
    engine: Arc<Engine>,
    mailbox: Mailbox,
    metrics: Arc<Metrics>,
    runtime: Handle,
    folder: PathBuf,
    next_staged: AtomicU64,
    built: Mutex<HashMap<SnapshotId, Arc<SnapshotManifest>>>,
    staged: Mutex<HashMap<SnapshotId, Staged>>,
    /// Held by whoever installs one.
    installing: Mutex<()>,
    /// Set when the engine is about to be closed.
    stopping: AtomicBool,
    /// When it was last said that a snapshot could not be built, did not arrive, or waits for room.
    complaints: [Throttle; 3],
}

/// The same complaint about snapshots is logged again after so long.
const COMPLAIN_EVERY: Duration = Duration::from_secs(10);
/// Kinds of complaints.
const BUILD: usize = 0;
const SEND: usize = 1;
const INSTALL: usize = 2;

/// The folder of all of them in a data directory.
fn folder(data: &Path) -> PathBuf {
    data.join("snapshots")
}

impl Snapshots {
    /// Empties `<data>/snapshots`: recovery has completed whatever was being installed, and nothing
    /// refers to it any more. Before anybody judges how much room there is: it may be most of the
    /// disk.
    pub fn clear(data: &Path) -> std::io::Result<()> {
        let folder = folder(data);
        match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        std::fs::create_dir_all(folder.join("out"))?;
        std::fs::create_dir_all(folder.join("in"))?;
        std::fs::create_dir_all(folder.join("install"))?;
        // An install marker names files in there: a power cut must not take the folder away from
        // above them.
        for made in [&folder, data] {
            std::fs::File::open(made)?.sync_all()?;
        }
        Ok(())
    }

    /// No snapshot yet, in folders that were [cleared](Self::clear).
    pub fn new(
        space: Arc<Space>,
        engine: Arc<Engine>,
        mailbox: Mailbox,
        metrics: Arc<Metrics>,
        runtime: Handle,
        data: &Path,
    ) -> Self {
        let folder = folder(data);
        let (built, staged, stopping) =
            (Mutex::default(), Mutex::default(), AtomicBool::new(false));
        let complaints = std::array::from_fn(|_| Throttle::new(COMPLAIN_EVERY));
        let (next_staged, installing) = (AtomicU64::new(1), Mutex::default());
        Self {
            space,
            engine,
            mailbox,
            metrics,
            runtime,
            folder,
            next_staged,
            built,
            staged,
            installing,
            stopping,
            complaints,
        }
    }

    /// The engine is about to be closed: what is under way here may fail from now on, and nobody is
    /// to mind.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// What came of it, or the end of the process; `None` where it is about to end anyway.
    fn unless_stopping<T>(&self, outcome: Result<T, StorageError>) -> Option<T> {
        match outcome {
            Err(error) if self.stopping.load(Ordering::Relaxed) => {
                tracing::info!(%error, "given up, since the node stops");
                None
            }
            outcome => Some(fatal::or_abort(outcome)),
        }
    }

    fn out(&self, snapshot: SnapshotId) -> PathBuf {
        self.folder.join("out").join(snapshot.0.to_string())
    }

    /// Builds a snapshot of what the view shows, and reports it.
    pub fn build(self: &Arc<Self>, shard: ShardId, snapshot: SnapshotId, view: View) {
        let this = self.clone();
        self.runtime.spawn_blocking(move || {
            let built =
                flotilla_storage::snapshot::build(&*this.engine, &view, shard, &this.out(snapshot));
            let built = match built {
                Ok(manifest) => {
                    let built = Built { at: manifest.at, descriptor: manifest.descriptor.clone() };
                    this.metrics.snapshots_built.inc();
                    this.built
                        .lock()
                        .expect("nothing panics with it held")
                        .insert(snapshot, Arc::new(manifest));
                    Some(built)
                }
                Err(error) => {
                    if let Some(unsaid) = this.complaints[BUILD].pass(Instant::now()) {
                        tracing::warn!(%shard, %error, unsaid, "a snapshot could not be built; it \
                            will be tried again");
                    }
                    this.metrics.snapshots_failed.inc();
                    // On a full disk half a snapshot would be in the way of everything.
                    this.remove(this.out(snapshot));
                    None
                }
            };
            this.mailbox.report(Event::SnapshotBuilt { shard, snapshot, built });
        });
    }

    /// Removes a built snapshot.
    pub fn drop_built(self: &Arc<Self>, snapshot: SnapshotId) {
        self.built.lock().expect("nothing panics with it held").remove(&snapshot);
        self.remove(self.out(snapshot));
    }

    fn remove(&self, folder: PathBuf) {
        self.space.let_go(&folder);
        self.runtime.spawn_blocking(move || {
            if let Err(error) = std::fs::remove_dir_all(&folder)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::warn!(folder = %folder.display(), %error, "a snapshot's files could not \
                    be removed");
            }
        });
    }

    /// Streams a built snapshot to a node, and reports how it went.
    pub fn send(
        self: &Arc<Self>,
        transport: &Arc<Transport>,
        to: NodeId,
        replica: ReplicaId,
        snapshot: SnapshotId,
        envelope: &Envelope,
    ) {
        let shard = envelope.shard;
        let manifest =
            self.built.lock().expect("nothing panics with it held").get(&snapshot).cloned();
        let Some(manifest) = manifest else {
            return self.mailbox.report(Event::SnapshotSent {
                shard,
                to: replica,
                delivery: Delivery::Failed,
            });
        };
        let header = encode_header(envelope, &manifest);
        let folder = self.out(snapshot);
        let files = manifest.files.iter().map(|f| (f.name.clone(), folder.join(&f.name))).collect();
        fatal::or_abort(FailPoint::SendBegun.pass());
        let sending = transport.send_snapshot(to, header, files);
        let this = self.clone();
        self.runtime.spawn(async move {
            let sent = sending.await;
            fatal::or_abort(FailPoint::SendEnded.pass());
            match &sent {
                Ok(()) => this.metrics.snapshots_sent.inc(),
                Err(SnapshotError::Busy) => {}
                Err(error) => {
                    this.metrics.snapshots_failed.inc();
                    if let Some(unsaid) = this.complaints[SEND].pass(Instant::now()) {
                        tracing::info!(%shard, %to, %error, unsaid, "a snapshot did not arrive; it \
                            will be tried again");
                    }
                    if matches!(error, SnapshotError::Refused(_) | SnapshotError::Read { .. }) {
                        this.drop_if_spoiled(shard, snapshot, manifest).await;
                    }
                }
            }
            let delivery = match sent {
                Ok(()) => Delivery::Taken,
                Err(SnapshotError::Busy) => Delivery::Busy,
                Err(_) => Delivery::Failed,
            };
            this.mailbox.report(Event::SnapshotSent { shard, to: replica, delivery });
        });
    }

    /// Has a built snapshot built anew if its files are not what they were: sent again, they would
    /// be refused again.
    async fn drop_if_spoiled(
        self: &Arc<Self>,
        shard: ShardId,
        snapshot: SnapshotId,
        manifest: Arc<SnapshotManifest>,
    ) {
        let this = self.clone();
        let verify = move || {
            flotilla_storage::snapshot::verify(&*this.engine, &manifest, &this.out(snapshot))
        };
        let verified = self.runtime.spawn_blocking(verify).await;
        // One that was dropped meanwhile has no files either.
        let is_kept =
            self.built.lock().expect("nothing panics with it held").contains_key(&snapshot);
        if let (Ok(Err(error)), true) = (verified, is_kept) {
            tracing::warn!(%shard, %error, "the files of a snapshot were spoiled on this node's \
                                            disk; it is built anew");
            self.mailbox.report(Event::SnapshotBuilt { shard, snapshot, built: None });
        }
    }

    /// A fresh folder for a snapshot that is about to come, if there is room for what its header
    /// says.
    pub fn stage(&self, header: Bytes) -> Result<Staging, String> {
        fatal::or_abort(FailPoint::StageBegun.pass());
        let (_, manifest) = decode_header(header)?;
        let n = self.next_staged.fetch_add(1, Ordering::Relaxed);
        let (dir, bytes_max) = (self.folder.join("in").join(n.to_string()), manifest.bytes());
        self.space.keep(&dir, bytes_max).map_err(|spare| {
            format!(
                "the disk is nearly full: the snapshot has {bytes_max} bytes, and {spare} can be \
                 spared"
            )
        })?;
        Ok(Staging { dir, bytes_max })
    }

    /// Removes what has come of a snapshot that broke off.
    pub fn clear_staged(&self, dir: PathBuf) {
        self.remove(dir);
    }

    /// A snapshot lies in `folder`: tells the core. Its verdict is given when it was installed or
    /// discarded.
    pub fn staged(
        &self,
        from: NodeId,
        header: Bytes,
        folder: PathBuf,
        verdict: oneshot::Sender<Result<(), String>>,
    ) {
        fatal::or_abort(FailPoint::StageArrived.pass());
        let (envelope, manifest) = match decode_header(header) {
            Ok(decoded) => decoded,
            Err(why) => {
                let _ = verdict.send(Err(why));
                return self.remove(folder);
            }
        };
        if let Err(error) =
            flotilla_storage::snapshot::verify_foreign(&*self.engine, &manifest, &folder)
        {
            let _ = verdict.send(Err(error.to_string()));
            return self.remove(folder);
        }
        fatal::or_abort(FailPoint::StageVerified.pass());
        // Once it is being installed there is no way back.
        let (needed, free) =
            (self.engine.bytes_to_ingest(&manifest.files), self.space.free_beside(&folder));
        if free < needed {
            let _ = verdict.send(Err(format!(
                "the disk is nearly full: installing takes {needed} bytes, and {free} are free"
            )));
            return self.remove(folder);
        }
        // All of it is there: it takes the room that was kept for it.
        self.space.let_go(&folder);
        self.metrics.snapshots_received.inc();
        self.metrics.snapshot_bytes_received.inc_by(manifest.bytes());
        let staged = SnapshotId(self.next_staged.fetch_add(1, Ordering::Relaxed));
        let held = Staged { folder, manifest: manifest.clone(), verdict };
        self.staged.lock().expect("nothing panics with it held").insert(staged, held);
        if !self.mailbox.offer(Mail::Event(Event::SnapshotStaged {
            from,
            staged,
            envelope,
            manifest,
        })) {
            self.discard(staged);
        }
    }

    fn take_staged(&self, staged: SnapshotId) -> Option<Staged> {
        self.staged.lock().expect("nothing panics with it held").remove(&staged)
    }

    /// The core does not want it.
    pub fn discard(&self, staged: SnapshotId) {
        if let Some(held) = self.take_staged(staged) {
            let _ = held.verdict.send(Err("it was not needed any more".into()));
            self.remove(held.folder);
        }
    }

    /// Reads entries that are no longer in memory, and reports them; none where they were truncated
    /// meanwhile.
    pub fn fetch_entries(
        self: &Arc<Self>,
        fetch: u64,
        shard: ShardId,
        low: u64,
        high: u64,
        bytes_max: u64,
    ) {
        let this = self.clone();
        self.runtime.spawn_blocking(move || {
            // What was truncated or overruled meanwhile is not there, and raft-rs asks again. A
            // record that can't be read is this node's disk.
            let read = flotilla_storage::log::entries(&*this.engine, shard, low, high, bytes_max);
            let Some(entries) = this.unless_stopping(read) else { return };
            this.mailbox.report(Event::EntriesFetched { fetch, shard, entries });
        });
    }
}

/// What goes ahead of the files: the raft message that announces them, and the manifest.
fn encode_header(envelope: &Envelope, manifest: &SnapshotManifest) -> Bytes {
    let mut announcement = BytesMut::new();
    envelope.encode(&mut announcement);
    let mut out = BytesMut::new();
    out.put_u8(1);
    out.put_bytes_prefixed(&announcement);
    out.put_bytes_prefixed(&manifest.encode());
    out.freeze()
}

fn decode_header(header: Bytes) -> Result<(Envelope, SnapshotManifest), String> {
    let mut reader = Reader::new("snapshot header", header);
    let decode = |reader: &mut Reader| {
        let format = reader.u8()?;
        if format != 1 {
            return Err(reader.error(format!("format {format}; this binary reads 1")));
        }
        let envelope = wire::decode_envelope(reader.bytes()?)?;
        let manifest = SnapshotManifest::decode(reader.bytes()?)?;
        Ok((envelope, manifest))
    };
    decode(&mut reader).map_err(|e| e.to_string())
}
