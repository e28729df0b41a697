//! Snapshots of one shard: built from a view, verified where they arrive, installed so that a
//! restart can finish the job.
//!
//! **Build.** The view was pinned in apply order, and everything is read from it: descriptor,
//! applied state and data. So the manifest's index and the files agree, whatever is applied
//! meanwhile.
//!
//! **Install**, each step durable before the next begins:
//!
//! 1. *verify*: every file is there, with its length and checksum. Nothing was changed so far.
//! 2. *mark*: the install marker says what is being installed, from where, and what is cleared
//!    before. From here on the shard's records mean nothing.
//! 3. *clear*: the data in the ranges to clear and the shard's log are deleted, and the space of
//!    the data given back.
//! 4. *ingest*: the files' records are taken in. The files themselves stay.
//! 5. *finish*: one batch with applied state, truncated position, hard state, descriptor and
//!    replica, which removes the marker.
//! 6. *tidy*: the files are removed.
//!
//! **What is cleared** the caller says: the keys that the snapshot brings, and those that the shard
//! owned here until now, which may be others if it was split or merged meanwhile; but no key that a
//! replica of another shard owns here ([`to_clear`](flotilla_router::range::to_clear)). Nothing
//! outside of these ranges is touched. What others own here changes, so the marker holds the ranges
//! themselves: a restart clears what was to be cleared when the install began.
//!
//! A restart that finds the marker begins again at step 3: each step may be done twice. If the
//! files are gone while the marker stands, the shard can't be completed, and
//! [`recover`](crate::recover()) says so. The caller keeps the applier away from the shard
//! meanwhile, and tells it [`installed`](crate::Applier::installed) afterwards. After recovery
//! nothing refers to any folder of snapshots any more: the node empties it.

use crate::engine::{Cursor, Engine, Family, Order, Read, WriteBatch};
use crate::error::StorageError;
use crate::failpoint::FailPoint;
use crate::keys::{self, StateTag};
use crate::records::{self, AppliedRecord};
use crate::work::{HardState, SnapshotManifest};
use bytes::{BufMut, Bytes, BytesMut};
use flotilla_router::codec::{Put, Reader};
use flotilla_router::{DecodeError, KeyRange, ReplicaId, ShardId, range};
use std::path::{Path, PathBuf};

/// A file of a snapshot ends at about this size: small enough to be sent and taken in piece by
/// piece.
pub const FILE_BYTES_MAX: u64 = 64 << 20;

/// Writes the shard, as `view` shows it, into files in `folder`, which is emptied first.
pub fn build<E: Engine>(
    engine: &E,
    view: &E::View,
    shard: ShardId,
    folder: &Path,
) -> Result<SnapshotManifest, StorageError> {
    build_with(engine, view, shard, folder, FILE_BYTES_MAX)
}

/// [`build`] with files of another size.
pub fn build_with<E: Engine>(
    engine: &E,
    view: &E::View,
    shard: ShardId,
    folder: &Path,
    file_bytes_max: u64,
) -> Result<SnapshotManifest, StorageError> {
    let key = keys::state(shard, StateTag::Descriptor);
    let Some(record) = view.get(Family::State, &key)? else {
        return Err(StorageError::snapshot(shard, "this node has no replica of the shard"));
    };
    let descriptor =
        records::decode_descriptor(&key, &record).map_err(|e| StorageError::record(shard, e))?;
    let applied = crate::read::applied_record(view, shard)?;
    let (start, end) = keys::data_range(shard.key_space(), &descriptor.range);
    FailPoint::BuildBegun.pass()?;
    let files = engine.export(view, &start, &end, folder, file_bytes_max)?;
    FailPoint::BuildWritten.pass()?;
    Ok(SnapshotManifest { descriptor, at: applied.at, revision: applied.revision, files })
}

/// Whether `folder` holds exactly what the manifest says.
pub fn verify<E: Engine>(
    engine: &E,
    manifest: &SnapshotManifest,
    folder: &Path,
) -> Result<(), StorageError> {
    let shard = manifest.descriptor.id;
    for file in &manifest.files {
        if !crate::manifest::is_plain_name(&file.name) {
            return Err(StorageError::snapshot(shard, format!("the file name {:?}", file.name)));
        }
        engine.check_file(folder, file).map_err(|e| StorageError::snapshot(shard, e))?;
    }
    Ok(())
}

/// The same for what another node has sent: and whether it can be taken in, and holds no key of
/// another shard. For once it is being installed there is no way back.
pub fn verify_foreign<E: Engine>(
    engine: &E,
    manifest: &SnapshotManifest,
    folder: &Path,
) -> Result<(), StorageError> {
    verify(engine, manifest, folder)?;
    let shard = &manifest.descriptor;
    let (start, end) = keys::data_range(shard.id.key_space(), &shard.range);
    engine
        .check_span(folder, &manifest.files, &start, &end)
        .map_err(|e| StorageError::snapshot(shard.id, e))
}

/// Replaces the shard by a verified snapshot, as `replica`, and clears the ranges of `clear`, in
/// which all keys of the snapshot must lie. The hard state is stored with it; its term and commit
/// are raised to the snapshot's where they lie below. An error before the marker was written is a
/// [`StorageError::Snapshot`] and changed nothing; any other is fatal.
pub fn install<E: Engine>(
    engine: &E,
    manifest: &SnapshotManifest,
    folder: &Path,
    replica: ReplicaId,
    hard_state: HardState,
    clear: &[KeyRange],
) -> Result<(), StorageError> {
    let mut installing = begin_install(engine, manifest, folder, replica, hard_state, clear)?;
    while installing.step(engine)? {}
    Ok(())
}

/// Step 1 of [`install`]; the others are [`Installing::step`]s. Whoever takes them one by one sees
/// what readers see in between.
pub fn begin_install<E: Engine>(
    engine: &E,
    manifest: &SnapshotManifest,
    folder: &Path,
    replica: ReplicaId,
    hard_state: HardState,
    clear: &[KeyRange],
) -> Result<Installing, StorageError> {
    verify(engine, manifest, folder)?;
    let install = Install::new(manifest.clone(), folder.to_owned(), replica, hard_state, clear)?;
    FailPoint::InstallVerified.pass()?;
    Ok(Installing { install, next: 0 })
}

/// An install under way, whose files were verified.
pub struct Installing {
    install: Install,
    /// The place of the next step in [`STEPS`].
    next: usize,
}

impl Installing {
    /// Takes the next step, durably; whether there is another.
    pub fn step<E: Engine>(&mut self, engine: &E) -> Result<bool, StorageError> {
        self.install.take(STEPS[self.next], engine)?;
        self.next += 1;
        Ok(self.next < STEPS.len())
    }
}

/// A step that changes something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Mark,
    Clear,
    Ingest,
    Finish,
    Tidy,
}

/// The steps 2 to 6, in order.
const STEPS: [Step; 5] = [Step::Mark, Step::Clear, Step::Ingest, Step::Finish, Step::Tidy];

/// Completes every install whose marker stands. The first thing to do at start.
pub(crate) fn complete_installs<E: Engine>(engine: &E) -> Result<(), StorageError> {
    for install in Install::marked(engine)? {
        FailPoint::ResumeBegun.pass()?;
        verify(engine, &install.manifest, &install.folder).map_err(|e| {
            StorageError::snapshot(
                install.shard(),
                format!("its install was cut short and can't be completed: {e}"),
            )
        })?;
        install.complete(engine)?;
        FailPoint::ResumeEnded.pass()?;
    }
    Ok(())
}

/// The format of the marker.
const MARKER_FORMAT: u8 = 2;
/// The one before, which had no ranges to clear: the snapshot's own was.
const MARKER_FORMAT_BEFORE: u8 = 1;

/// An install under way: what its marker says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Install {
    manifest: SnapshotManifest,
    folder: PathBuf,
    replica: ReplicaId,
    hard_state: HardState,
    /// In order, and apart from each other.
    clear: Vec<KeyRange>,
}

impl Install {
    fn new(
        manifest: SnapshotManifest,
        folder: PathBuf,
        replica: ReplicaId,
        mut hard_state: HardState,
        clear: &[KeyRange],
    ) -> Result<Self, StorageError> {
        let shard = manifest.descriptor.id;
        if folder.to_str().is_none() {
            return Err(StorageError::snapshot(shard, "the path of its folder is not UTF-8"));
        }
        // What was left of the old keys there would be taken for the snapshot's.
        if !manifest.descriptor.range.is_within(clear) {
            let keys = &manifest.descriptor.range;
            let why = format!("its keys {keys:?} would not all be cleared before: {clear:?}");
            return Err(StorageError::snapshot(shard, why));
        }
        if hard_state.term < manifest.at.term {
            hard_state = HardState { term: manifest.at.term, vote: 0, ..hard_state };
        }
        // The log below the snapshot is gone and the one above does not exist.
        hard_state.commit = manifest.at.index;
        let clear = range::union(clear.iter().cloned());
        Ok(Self { manifest, folder, replica, hard_state, clear })
    }

    fn shard(&self) -> ShardId {
        self.manifest.descriptor.id
    }

    /// Step 2.
    fn mark<E: Engine>(&self, engine: &E) -> Result<(), StorageError> {
        let key = keys::state(self.shard(), StateTag::Install);
        let mut ranges = BytesMut::new();
        ranges.put_u32(self.clear.len() as u32);
        self.clear.iter().for_each(|range| range.encode(&mut ranges));
        let (mut batch, mut record) = (engine.batch(), Vec::new());
        records::seal_as(&mut record, &key, MARKER_FORMAT, |out| {
            out.put_bytes_prefixed(&self.manifest.encode());
            // Below the data directory, which may be moved.
            let folder = self.folder.strip_prefix(engine.home()).unwrap_or(&self.folder);
            out.put_bytes_prefixed(folder.to_string_lossy().as_bytes());
            out.put_u64(self.replica.0);
            records::put_hard_state(out, self.hard_state);
            out.put_slice(&ranges);
        });
        batch.put(Family::State, &key, &record);
        engine.write(batch, true)
    }

    /// One step, and the place behind it at which a test can end the process.
    fn take<E: Engine>(&self, step: Step, engine: &E) -> Result<(), StorageError> {
        let point = match step {
            Step::Mark => self.mark(engine).map(|()| FailPoint::InstallMarked),
            Step::Clear => self.clear(engine).map(|()| FailPoint::InstallCleared),
            Step::Ingest => self.ingest(engine).map(|()| FailPoint::InstallIngested),
            Step::Finish => self.finish(engine).map(|()| FailPoint::InstallFinished),
            Step::Tidy => engine.remove_folder(&self.folder).map(|()| FailPoint::InstallTidied),
        }?;
        point.pass()
    }

    /// Steps 3 to 6.
    fn complete<E: Engine>(&self, engine: &E) -> Result<(), StorageError> {
        STEPS.into_iter().skip(1).try_for_each(|step| self.take(step, engine))
    }

    /// Step 3.
    fn clear<E: Engine>(&self, engine: &E) -> Result<(), StorageError> {
        let shard = self.shard();
        let mut batch = engine.batch();
        let of_data = |range| keys::data_range(shard.key_space(), range);
        let ranges: Vec<_> = self.clear.iter().map(of_data).collect();
        for (start, end) in &ranges {
            batch.delete_range(Family::Data, start, end);
        }
        batch.delete_range(Family::Log, &keys::log_entry(shard, 0), &keys::log_end(shard));
        engine.write(batch, true)?;
        ranges.iter().try_for_each(|(start, end)| engine.vacate(start, end))
    }

    /// Step 4.
    fn ingest<E: Engine>(&self, engine: &E) -> Result<(), StorageError> {
        engine.ingest(&self.folder, &self.manifest.files)
    }

    /// Step 5.
    fn finish<E: Engine>(&self, engine: &E) -> Result<(), StorageError> {
        let (shard, at) = (self.shard(), self.manifest.at);
        let (mut batch, mut record) = (engine.batch(), Vec::new());
        let applied = AppliedRecord { at, revision: self.manifest.revision };
        batch.put(Family::Data, &keys::applied(shard), &records::encode_applied(applied));
        let key = keys::state(shard, StateTag::Truncated);
        records::encode_truncated(&mut record, &key, at);
        batch.put(Family::State, &key, &record);
        let key = keys::state(shard, StateTag::HardState);
        records::encode_hard_state(&mut record, &key, self.hard_state);
        batch.put(Family::State, &key, &record);
        let key = keys::state(shard, StateTag::Descriptor);
        records::encode_descriptor(&mut record, &key, &self.manifest.descriptor);
        batch.put(Family::State, &key, &record);
        let key = keys::state(shard, StateTag::Replica);
        records::encode_replica(&mut record, &key, self.replica);
        batch.put(Family::State, &key, &record);
        batch.delete(Family::State, &keys::state(shard, StateTag::Install));
        engine.write(batch, true)
    }

    /// The installs whose markers stand.
    fn marked<E: Engine>(engine: &E) -> Result<Vec<Self>, StorageError> {
        let mut cursor = engine.cursor(Family::State, &keys::state_start(), None, Order::Forward);
        let mut installs = Vec::new();
        while let Some((key, record)) = cursor.next()? {
            let Some((shard, _)) =
                keys::parse_state(key).filter(|(_, tag)| *tag == StateTag::Install as u8)
            else {
                continue;
            };
            let mut install =
                Self::decode(key, record).map_err(|e| StorageError::record(shard, e))?;
            install.folder = engine.home().join(install.folder);
            if install.shard() != shard {
                let why = format!("the marker of shard {} stands here", install.shard());
                return Err(StorageError::record(shard, DecodeError::new("install marker", why)));
            }
            installs.push(install);
        }
        Ok(installs)
    }

    fn decode(key: &[u8], record: &[u8]) -> Result<Self, DecodeError> {
        const WHAT: &str = "install marker";
        let (format, body) = records::unseal_any(WHAT, key, record)?;
        if ![MARKER_FORMAT_BEFORE, MARKER_FORMAT].contains(&format) {
            let (old, new) = (MARKER_FORMAT_BEFORE, MARKER_FORMAT);
            let why = format!("format {format}; this binary reads {old} and {new}");
            return Err(DecodeError::new(WHAT, why));
        }
        let mut reader = Reader::new(WHAT, Bytes::copy_from_slice(body));
        let manifest = SnapshotManifest::decode(reader.bytes()?)?;
        let folder = PathBuf::from(reader.string()?);
        let replica = ReplicaId(reader.u64()?);
        let hard_state = records::read_hard_state(&mut reader)?;
        let clear = match format {
            MARKER_FORMAT_BEFORE => vec![manifest.descriptor.range.clone()],
            _ => read_ranges(&mut reader)?,
        };
        if !manifest.descriptor.range.is_within(&clear) {
            return Err(reader.error("keys of the shard lie outside of what is to be cleared"));
        }
        reader.end()?;
        Ok(Self { manifest, folder, replica, hard_state, clear })
    }
}

/// The ranges that a marker holds.
fn read_ranges(reader: &mut Reader) -> Result<Vec<KeyRange>, DecodeError> {
    // Two lengths or one, and whether there is an end.
    let count = reader.count(5)?;
    (0..count).map(|_| KeyRange::decode(reader)).collect()
}

#[cfg(test)]
mod tests;
