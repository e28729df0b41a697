//! How a node takes hold of its data directory.
//!
//! ```text
//! <dir>/flotilla.lock      held, as a file lock, by the process that works in the directory
//! <dir>/flotilla.started   how far the database had come at least (`started.rs`)
//! <dir>/db/                RocksDB's files; made in db.new/, so that what stands here is never half a database
//! ```
//!
//! 1. The directory is made, if it is not there, closed to other users, and locked. A second
//!    process is told so, and touches nothing. Snapshots that a former self had built, or half
//!    received, are removed. Where the disk has no room left, it is opened lean, or refused with
//!    what it needs (`room.rs`).
//! 2. RocksDB opens its files and replays its write-ahead log. A database that lies behind what the
//!    directory remembers of it is refused, as far as that can be seen before RocksDB changes
//!    anything.
//! 3. The identity record is compared: a directory belongs to one node of one cluster for ever. A
//!    foreign one is refused with the cure. An empty directory is bound now. It gets a number at
//!    random, by which the other nodes know it again: a node that comes back with an empty
//!    directory has forgotten what it promised, and must not pass for its former self.
//! 4. The incarnation is raised by one, synced, before anything else happens: what a former self of
//!    this node sent or promised by incarnation can't be mistaken for ours. The directory remembers
//!    it.

use crate::engine::{Cursor, Engine, Family, Order, Read, WriteBatch};
use crate::error::StorageError;
use crate::failpoint::FailPoint;
use crate::keys::{self, NodeTag};
use crate::records::{self, IdentityRecord};
use crate::rocks::{RocksEngine, RocksOptions};
use crate::started::{Manifest, Started, forgotten};
use flotilla_router::{ClusterId, Incarnation, NodeId};
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

/// The file whose lock keeps other processes out.
const LOCK: &str = "flotilla.lock";
/// How often it is tried to get it, and the pause in between.
const LOCK_TRIES: u32 = 10;
const LOCK_PAUSE: Duration = Duration::from_millis(20);
/// The folder of RocksDB's files.
const DB: &str = "db";

/// The folder of a snapshot that is being installed.
const INSTALL: &str = "snapshots/install";
/// The folders of snapshots that the node builds, and of those that are on their way to it.
const UNFINISHED: [&str; 2] = ["snapshots/out", "snapshots/in"];

/// Whose directory it has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
}

/// A directory that is ours.
pub struct Opened {
    /// The engine; the directory stays locked for as long as it lives.
    pub engine: RocksEngine,
    /// How often the node was started on this directory, this time included.
    pub incarnation: Incarnation,
    /// The directory's own number, drawn at random when it was bound.
    pub directory: u64,
    /// Whether the directory was empty and was bound only now.
    pub fresh: bool,
}

/// Opens a node's data directory.
pub fn open(
    dir: &Path,
    identity: Identity,
    options: &RocksOptions,
) -> Result<Opened, StorageError> {
    let lock = lock(dir)?;
    FailPoint::OpenLocked.pass()?;
    let (started, db) = (Started::read(dir)?, dir.join(DB));
    if let Some(started) = &started {
        if !db.is_dir() {
            return Err(forgotten(dir, "its database is gone"));
        }
        // One that can't be found, RocksDB complains about.
        if let Ok(manifest) = Manifest::in_force(&db) {
            started.check_manifest(dir, manifest)?;
        }
    }
    clear_unfinished(dir)?;
    let options = crate::room::fit(dir, &db, options)?;
    let engine = RocksEngine::open(&db, &options, Some(lock))?;
    FailPoint::OpenReplayed.pass()?;
    let known = known_identity(&engine, dir)?;
    let fresh = known.is_none();
    let Identity { cluster, node } = identity;
    if let Some(known) = known
        && (known.cluster, known.node) != (cluster, node)
    {
        return Err(StorageError::ForeignDirectory {
            dir: dir.to_owned(),
            cluster: known.cluster,
            node: known.node,
            wanted_cluster: cluster,
            wanted_node: node,
        });
    }
    let (sequence, manifest) = (engine.sequence(), engine.manifest()?);
    if let Some(started) = &started {
        let Some(IdentityRecord { directory, incarnation, .. }) = known else {
            return Err(forgotten(dir, "its database knows of no node"));
        };
        started
            .check(dir, &Started { cluster, node, directory, incarnation, sequence, manifest })?;
    }
    let incarnation = Incarnation(known.map_or(0, |known| known.incarnation.0) + 1);
    let directory = match known {
        Some(known) => known.directory,
        None => draw()
            .map_err(|error| StorageError::engine("draw a number for the directory", error))?,
    };
    let (key, mut record, mut batch) = (keys::node(NodeTag::Identity), Vec::new(), engine.batch());
    records::encode_identity(
        &mut record,
        &key,
        IdentityRecord { cluster, node, incarnation, directory },
    );
    batch.put(Family::State, &key, &record);
    engine.write(batch, true)?;
    let (sequence, manifest) = (engine.sequence(), engine.manifest()?);
    engine.remember(dir, Started { cluster, node, directory, incarnation, sequence, manifest })?;
    FailPoint::OpenBound.pass()?;
    Ok(Opened { engine, incarnation, directory, fresh })
}

/// Removes snapshots that were built to be sent, or had not arrived: nobody asks for them any more,
/// and they may be what a full disk lacks.
fn clear_unfinished(dir: &Path) -> Result<(), StorageError> {
    if !dir.join(INSTALL).is_dir() {
        // An earlier release installed from where they arrive.
        return Ok(());
    }
    UNFINISHED.iter().try_for_each(|folder| match fs::remove_dir_all(dir.join(folder)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(StorageError::engine("remove old snapshots", error))
        }
        _ => Ok(()),
    })
}

/// A number that no other directory has.
fn draw() -> io::Result<u64> {
    Ok(getrandom::u64()?)
}

/// Makes the directory, if need be, and locks it.
fn lock(dir: &Path) -> Result<File, StorageError> {
    if dir.exists() && !dir.is_dir() {
        return Err(StorageError::NotADirectory { dir: dir.to_owned() });
    }
    let unusable = |error: io::Error| match error.kind() {
        io::ErrorKind::NotADirectory => StorageError::NotADirectory { dir: dir.to_owned() },
        _ => StorageError::ReadOnly { dir: dir.to_owned(), why: error.to_string() },
    };
    fs::create_dir_all(dir).map_err(unusable)?;
    close(dir).map_err(unusable)?;
    // Not truncated, and never removed: a lock on a file that is gone keeps nobody out.
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(dir.join(LOCK))
        .map_err(unusable)?;
    // Whoever has just ended, or has just been forked from whoever had it, lets go within a moment.
    for left in (0..LOCK_TRIES).rev() {
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(TryLockError::WouldBlock) if left > 0 => std::thread::sleep(LOCK_PAUSE),
            Err(TryLockError::WouldBlock) => break,
            Err(TryLockError::Error(error)) => return Err(unusable(error)),
        }
    }
    Err(StorageError::InUse { dir: dir.to_owned() })
}

/// Leaves the directory to its owner. What is in it may have been made by an earlier release,
/// readable by all. One that belongs to somebody else, or lies on a file system without modes,
/// stays as it is: what is made inside is closed all the same.
fn close(dir: &Path) -> io::Result<()> {
    let mode = fs::metadata(dir)?.permissions().mode() & 0o777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    let (shown, mode) = (dir.display(), format!("{mode:03o}"));
    match fs::set_permissions(dir, fs::Permissions::from_mode(0o700)) {
        Ok(()) => {
            tracing::info!(dir = %shown, mode, "the data directory was open to others; it is \
                                                closed (700)")
        }
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported
            ) =>
        {
            tracing::warn!(dir = %shown, mode, %error, "the data directory is open to others, and \
                                                        can't be closed, since it is not this \
                                                        user's");
        }
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Whether a process works in a node's data directory. Nothing is made there, and nothing changed.
pub fn is_in_use(dir: &Path) -> bool {
    let lock = File::options().write(true).open(dir.join(LOCK));
    lock.is_ok_and(|lock| matches!(lock.try_lock(), Err(TryLockError::WouldBlock)))
}

/// Who the directory belongs to; `None` for an empty one.
fn known_identity(
    engine: &RocksEngine,
    dir: &Path,
) -> Result<Option<IdentityRecord>, StorageError> {
    let unknown = |why: String| StorageError::UnknownFormat { dir: dir.to_owned(), why };
    let key = keys::node(NodeTag::Identity);
    if let Some(record) = engine.get(Family::State, &key)? {
        return records::decode_identity(&key, &record)
            .map(Some)
            .map_err(|e| unknown(e.to_string()));
    }
    // Binding is the first thing that is ever written; records without it are somebody else's.
    for family in [Family::State, Family::Log, Family::Data] {
        if engine.cursor(family, &[], None, Order::Forward).next()?.is_some() {
            return Err(unknown("it holds records but no node identity".into()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests;
