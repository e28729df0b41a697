//! What a data directory remembers outside of RocksDB, so that it notices when RocksDB has
//! forgotten.
//!
//! RocksDB finds a flipped bit by checksums. But a write-ahead log that is gone, or a list of files
//! that lost its end, look to it like a younger database, and it opens that without a word. So one
//! small file says how far the database had come at least:
//!
//! ```text
//! <dir>/flotilla.started
//! flotilla 1 cluster 00abcdef01234567 node 3 directory 8c1f… incarnation 17 sequence 4711 manifest 12 bytes 961 crc32 5f3759df
//! ```
//!
//! It is written when the directory was opened, when files were taken into the database, and when
//! it is closed; each time as a whole, synced, and after what it speaks of is durable. So a
//! database that lies behind it has lost something that was synced, and is refused. One that lies
//! ahead of it was killed, which is no loss. A directory without the file is taken as it is.
//!
//! What it can't show: that a killed node's write-ahead log lost its end. That is what an ordinary
//! crash leaves, too. A leader that knows better quarantines the shard.

use crate::error::StorageError;
use flotilla_router::{ClusterId, Incarnation, NodeId};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

/// The file's name.
const NAME: &str = "flotilla.started";
/// Where it is written before it takes that name.
const NEW: &str = "flotilla.started.new";

/// How far a database had come at least.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Started {
    /// The cluster.
    pub(crate) cluster: ClusterId,
    /// The node.
    pub(crate) node: NodeId,
    /// The directory's own number.
    pub(crate) directory: u64,
    /// Which start this was.
    pub(crate) incarnation: Incarnation,
    /// RocksDB's number of the last write that is known to be durable.
    pub(crate) sequence: u64,
    /// RocksDB's list of files.
    pub(crate) manifest: Manifest,
}

/// RocksDB's list of its files: which one it is, and how long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Manifest {
    /// The number in its name; RocksDB counts up.
    pub(crate) number: u64,
    /// Its length. It only grows.
    pub(crate) bytes: u64,
}

impl Manifest {
    /// The one in force in RocksDB's folder.
    pub(crate) fn in_force(db: &Path) -> io::Result<Self> {
        let current = fs::read_to_string(db.join("CURRENT"))?;
        let name = current.trim_end();
        let number = name.strip_prefix("MANIFEST-").and_then(|number| number.parse().ok());
        let number = number.ok_or_else(|| io::Error::other(format!("CURRENT names {name:?}")))?;
        Ok(Self { number, bytes: fs::metadata(db.join(name))?.len() })
    }
}

impl Started {
    /// What stands in a directory; `None` where there is no such file.
    pub(crate) fn read(dir: &Path) -> Result<Option<Self>, StorageError> {
        let text = match fs::read(dir.join(NAME)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StorageError::engine("read flotilla.started", error)),
        };
        let started = std::str::from_utf8(&text).ok().and_then(Self::parse);
        started
            .map(Some)
            .ok_or_else(|| forgotten(dir, format!("{NAME} is not what this release writes")))
    }

    /// Writes it, durably, in the place of the one before.
    pub(crate) fn write(&self, dir: &Path) -> Result<(), StorageError> {
        let replace = || {
            let mut file = File::create(dir.join(NEW))?;
            file.write_all(self.line().as_bytes())?;
            file.sync_all()?;
            fs::rename(dir.join(NEW), dir.join(NAME))?;
            File::open(dir)?.sync_all()
        };
        replace().map_err(|error| StorageError::engine("write flotilla.started", error))
    }

    /// Refuses a database that lies behind.
    pub(crate) fn check(&self, dir: &Path, found: &Self) -> Result<(), StorageError> {
        let why = if (found.cluster, found.node, found.directory)
            != (self.cluster, self.node, self.directory)
        {
            "its database is that of another directory".into()
        } else if found.incarnation < self.incarnation {
            format!(
                "it was started {} times, and its database knows of {}",
                self.incarnation, found.incarnation
            )
        } else if found.sequence < self.sequence {
            format!(
                "write {} was durable, and its database ends with {}",
                self.sequence, found.sequence
            )
        } else {
            return self.check_manifest(dir, found.manifest);
        };
        Err(forgotten(dir, why))
    }

    /// Refuses a list of files that has lost its end, before RocksDB removes what is no longer in
    /// it.
    pub(crate) fn check_manifest(&self, dir: &Path, found: Manifest) -> Result<(), StorageError> {
        let Manifest { number, bytes } = self.manifest;
        let is_behind = found.number < number || (found.number == number && found.bytes < bytes);
        if !is_behind {
            return Ok(());
        }
        let why = format!(
            "MANIFEST-{number:06} had {bytes} bytes, and MANIFEST-{:06} has {}",
            found.number, found.bytes
        );
        Err(forgotten(dir, why))
    }

    fn line(&self) -> String {
        let Self {
            cluster,
            node,
            directory,
            incarnation,
            sequence,
            manifest: Manifest { number, bytes },
        } = self;
        let line = format!(
            "flotilla 1 cluster {cluster} node {node} directory {directory:016x} incarnation \
             {incarnation} sequence {sequence} manifest {number} bytes {bytes}"
        );
        format!("{line} crc32 {:08x}\n", crc32fast::hash(line.as_bytes()))
    }

    fn parse(text: &str) -> Option<Self> {
        let (line, checksum) = text.strip_suffix('\n')?.rsplit_once(" crc32 ")?;
        if checksum != format!("{:08x}", crc32fast::hash(line.as_bytes())) {
            return None;
        }
        let words: Vec<&str> = line.split(' ').collect();
        let after = |name: &str| words.windows(2).find(|pair| pair[0] == name).map(|pair| pair[1]);
        let number = |name: &str| after(name)?.parse().ok();
        if after("flotilla")? != "1" {
            return None;
        }
        Some(Self {
            cluster: after("cluster")?.parse().ok()?,
            node: NodeId(number("node")?),
            directory: u64::from_str_radix(after("directory")?, 16).ok()?,
            incarnation: Incarnation(number("incarnation")?),
            sequence: number("sequence")?,
            manifest: Manifest { number: number("manifest")?, bytes: number("bytes")? },
        })
    }
}

/// The directory has forgotten what it knew.
pub(crate) fn forgotten(dir: &Path, why: impl Into<String>) -> StorageError {
    StorageError::Forgotten { dir: dir.to_owned(), why: why.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started() -> Started {
        Started {
            cluster: ClusterId(0xabcd),
            node: NodeId(3),
            directory: 0x1234,
            incarnation: Incarnation(17),
            sequence: 4711,
            manifest: Manifest { number: 12, bytes: 961 },
        }
    }

    #[test]
    fn it_survives_being_written_and_no_damage() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Started::read(dir.path()).unwrap(), None);
        started().write(dir.path()).unwrap();
        started().write(dir.path()).unwrap();
        assert_eq!(Started::read(dir.path()).unwrap(), Some(started()));
        let path = dir.path().join(NAME);
        let sound = fs::read(&path).unwrap();
        for at in 0..sound.len() {
            let mut flipped = sound.clone();
            flipped[at] ^= 1;
            for damaged in [&flipped[..], &sound[..at]] {
                fs::write(&path, damaged).unwrap();
                let error = Started::read(dir.path()).unwrap_err().to_string();
                assert!(
                    error.contains("is not what this release writes")
                        && error.contains("restore the directory"),
                    "{error}"
                );
            }
        }
    }

    #[test]
    fn what_lies_behind_is_refused_and_what_lies_ahead_is_not() {
        let dir = Path::new("/data");
        let ahead = Started { incarnation: Incarnation(18), sequence: 5000, ..started() };
        for found in
            [started(), ahead, Started { manifest: Manifest { number: 13, bytes: 5 }, ..started() }]
        {
            started().check(dir, &found).unwrap();
        }
        for (found, wanted) in [
            (Started { directory: 1, ..started() }, "another directory"),
            (
                Started { incarnation: Incarnation(16), ..started() },
                "started 17 times, and its database knows of 16",
            ),
            (Started { sequence: 4710, ..started() }, "write 4711 was durable"),
            (
                Started { manifest: Manifest { number: 12, bytes: 960 }, ..started() },
                "MANIFEST-000012 had 961 bytes",
            ),
            (
                Started { manifest: Manifest { number: 11, bytes: 9999 }, ..started() },
                "MANIFEST-000011",
            ),
        ] {
            let error = started().check(dir, &found).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
    }
}
