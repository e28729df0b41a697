//! A staged snapshot becomes a shard's state: one at a time, since two would need twice the room,
//! and on the runtime's blocking pool.
//!
//! How much room it takes was asked before the core heard of it; from there on there is no way
//! back. What others wrote since may be in the way all the same, or a compaction that has not
//! ended. Then it waits: the shard is shown by its other replicas meanwhile, and this node goes on
//! with all others.

use super::{INSTALL, Snapshots, Staged};
use crate::core::SnapshotId;
use crate::shell::applier;
use crate::shell::queue::Queue;
use flotilla_router::{KeyRange, ReplicaId, ShardId};
use flotilla_storage::snapshot::begin_install;
use flotilla_storage::{HardState, StorageError, fatal};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How long an installation for which there is no room waits before it looks again.
const ROOM_PAUSE: Duration = Duration::from_millis(500);

impl Snapshots {
    /// Moves a staged snapshot to where a restart leaves it alone, durably.
    fn put_aside(&self, staged: &Path) -> Result<PathBuf, StorageError> {
        let failed = |error: std::io::Error| {
            StorageError::engine("move a snapshot that is to be installed", error)
        };
        let (from, to) = (self.folder.join("in"), self.folder.join("install"));
        let folder = to.join(staged.file_name().unwrap_or(staged.as_os_str()));
        std::fs::rename(staged, &folder).map_err(failed)?;
        for changed in [from, to] {
            std::fs::File::open(changed).and_then(|folder| folder.sync_all()).map_err(failed)?;
        }
        Ok(folder)
    }

    /// Makes a staged snapshot the shard's state, in place of what lies in the ranges to clear, and
    /// has the applier take note of it.
    pub fn install(
        self: &Arc<Self>,
        (shard, replica): (ShardId, ReplicaId),
        staged: SnapshotId,
        hard_state: HardState,
        clear: Vec<KeyRange>,
        applier: Arc<Queue<applier::Work>>,
    ) {
        let Some(held) = self.take_staged(staged) else { return };
        let this = self.clone();
        self.runtime.spawn_blocking(move || {
            // The files were verified when they were staged; what fails now is this node's disk.
            let Staged { folder, manifest, verdict } = held;
            let folder = fatal::or_abort(this.put_aside(&folder));
            // Two at a time would need twice the room.
            let alone = this.installing.lock().expect("nothing panics with it held");
            let begun =
                begin_install(&*this.engine, &manifest, &folder, replica, hard_state, &clear);
            let Some(mut installing) = this.unless_stopping(begun) else { return };
            let installed =
                to_the_end(|| installing.step(&*this.engine), || this.wait_for_room(shard));
            let Some(()) = this.unless_stopping(installed) else { return };
            drop(alone);
            tracing::info!(%shard, index = manifest.at.index, "snapshot installed");
            applier.send(applier::Work::Installed(manifest));
            let _ = verdict.send(Ok(()));
        });
    }

    /// Waits for a moment, in which space may be given back; false where the node stops.
    fn wait_for_room(&self, shard: ShardId) -> bool {
        let seen = self.space.look();
        if let Some(unsaid) = self.complaints[INSTALL].pass(Instant::now()) {
            tracing::error!(%shard, ?seen, unsaid, "the installation of a snapshot waits for room \
                                                    on the disk");
        }
        std::thread::sleep(ROOM_PAUSE);
        !self.stopping.load(Ordering::Relaxed)
    }
}

/// Takes steps until there are no more. One for which there is no room is taken again, for as long
/// as `wait` says that it may be: others have written meanwhile, or compactions have not ended yet,
/// and nothing else is wrong.
fn to_the_end(
    mut step: impl FnMut() -> Result<bool, StorageError>,
    mut wait: impl FnMut() -> bool,
) -> Result<(), StorageError> {
    loop {
        match step() {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(StorageError::NoRoom { .. }) if wait() => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn no_room() -> Result<bool, StorageError> {
        Err(StorageError::NoRoom { dir: PathBuf::new(), free_bytes: 1, needed_bytes: 2 })
    }

    #[test]
    fn an_install_waits_for_room_and_goes_on_where_it_was() {
        let (mut steps, mut waits) =
            ([Ok(true), no_room(), no_room(), Ok(true), Ok(false)].into_iter(), 0);
        let installed = to_the_end(
            || steps.next().expect("it goes on beyond the last step"),
            || {
                waits += 1;
                true
            },
        );
        assert!(
            installed.is_ok() && waits == 2 && steps.next().is_none(),
            "{installed:?} after {waits} waits"
        );
        let stopped = to_the_end(no_room, || false);
        assert!(matches!(stopped, Err(StorageError::NoRoom { .. })), "{stopped:?}");
        let failed = to_the_end(
            || Err(StorageError::engine("ingest", "broken")),
            || panic!("waits for what time does not mend"),
        );
        assert!(failed.is_err());
    }
}
