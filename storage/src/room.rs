//! Room on the disk: how much there is, how much a node needs to start, and a little that is kept
//! for when there is none.
//!
//! RocksDB replays its write-ahead logs at start and turns them into files before it removes them.
//! On a full disk there is no room for those files, and a node that ended for want of room could
//! never start again, not even to delete something. So it starts *lean* there: the logs stay where
//! they are, what they hold stays in memory, and a few hundred KiB are enough. For a disk on which
//! there is nothing left at all a **ballast** lies in the directory: a file that is removed then,
//! and made again once there is room.

use crate::error::StorageError;
use crate::rocks::RocksOptions;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// The file that is given up when there is no room.
const BALLAST: &str = "flotilla.ballast";
/// What a start takes at least: new lists of files, RocksDB's own log, the first entries.
const START_BYTES: u64 = 1 << 20;

/// What a file system holds.
#[derive(Clone, Copy, Debug)]
pub struct Disk {
    /// Bytes free to this user.
    pub free_bytes: u64,
    /// Bytes in all.
    pub capacity_bytes: u64,
}

/// Looks at the file system of a folder.
pub fn disk(folder: &Path) -> io::Result<Disk> {
    let stat = rustix::fs::statvfs(folder)?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    Ok(Disk { free_bytes: bytes(stat.f_bavail), capacity_bytes: bytes(stat.f_blocks) })
}

/// The bytes of the write-ahead logs in a database's folder.
pub(crate) fn wal_bytes(db: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(db) else { return 0 };
    let logs = entries
        .flatten()
        .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "log"));
    logs.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum()
}

/// How the database in `dir` is to be opened on the disk that it lies on; refused where even the
/// least that it needs is not there.
pub(crate) fn fit(
    dir: &Path,
    db: &Path,
    options: &RocksOptions,
) -> Result<RocksOptions, StorageError> {
    let look = || disk(dir).map_err(|error| StorageError::engine("look at the disk", error));
    let mut found = look()?;
    let mut options = options.clone().fit(found.capacity_bytes);
    let logs = wal_bytes(db);
    let needed_bytes = START_BYTES.saturating_add(logs);
    if found.free_bytes >= needed_bytes {
        return Ok(options);
    }
    if found.free_bytes < START_BYTES && Ballast::of(dir).give_up() {
        found = look()?;
    }
    let free_bytes = found.free_bytes;
    if free_bytes < START_BYTES {
        return Err(StorageError::NoRoom {
            dir: dir.to_owned(),
            free_bytes,
            needed_bytes: START_BYTES,
        });
    }
    tracing::warn!(
        free_bytes,
        needed_bytes,
        "the disk has no room for what the write-ahead logs hold: the node starts with it in \
         memory, takes deletes and refuses puts"
    );
    // At least one, so that it is lean.
    options.lean_bytes = logs.max(1);
    Ok(options)
}

/// A file of no use but that it can be given up.
#[derive(Clone, Debug)]
pub struct Ballast(PathBuf);

impl Ballast {
    /// That of a data directory.
    pub fn of(dir: &Path) -> Self {
        Self(dir.join(BALLAST))
    }

    /// How large it is on a disk of this size: 2 MiB to 16 MiB.
    pub fn bytes(capacity_bytes: u64) -> u64 {
        (capacity_bytes / 256).clamp(2 << 20, 16 << 20)
    }

    /// Makes it, unless it is there.
    pub fn keep(&self, bytes: u64) -> io::Result<()> {
        // One that was not finished is none.
        if fs::metadata(&self.0).is_ok_and(|metadata| metadata.len() >= bytes) {
            return Ok(());
        }
        let file = File::options().write(true).create(true).truncate(true).open(&self.0)?;
        let made = match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes)
        {
            // Not every file system can; a file with holes would be no ballast.
            Err(rustix::io::Errno::OPNOTSUPP) => {
                io::copy(&mut io::Read::take(io::repeat(0), bytes), &mut &file).map(drop)
            }
            other => other.map_err(io::Error::from),
        };
        if made.is_err() {
            let _ = fs::remove_file(&self.0);
        }
        made
    }

    /// Removes it; whether that gave anything back.
    pub fn give_up(&self) -> bool {
        fs::remove_file(&self.0).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ballast_takes_its_space_and_gives_it_back_once() {
        let dir = tempfile::tempdir().unwrap();
        let ballast = Ballast::of(dir.path());
        assert!(!ballast.give_up(), "there was none");
        fs::write(dir.path().join(BALLAST), "cut short").unwrap();
        ballast.keep(3 << 20).unwrap();
        ballast.keep(3 << 20).unwrap();
        let metadata = fs::metadata(dir.path().join(BALLAST)).unwrap();
        let taken = std::os::unix::fs::MetadataExt::blocks(&metadata) * 512;
        assert!(metadata.len() == 3 << 20 && taken >= 3 << 20, "{taken} bytes taken");
        assert!(ballast.give_up() && !ballast.give_up());
        assert_eq!((Ballast::bytes(0), Ballast::bytes(400 << 30)), (2 << 20, 16 << 20));
    }
}
