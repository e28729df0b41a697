//! Snapshots as table files: written from a view, checked, and taken in.
//!
//! A file is taken in by a hard link: RocksDB moves the link into its own folder, and the original
//! stays where a restart can find it should the install be cut short. Both names share one file,
//! which RocksDB never changes (`write_global_seqno` is off by default). Where the file system
//! knows no hard links, RocksDB copies.

use super::{Db, RocksEngine, RocksView, failed};
use crate::engine::{Engine as _, Family};
use crate::error::StorageError;
use crate::work::SnapshotFile;
use rocksdb::{IngestExternalFileOptions, LogLevel, Options, ReadOptions, SstFileWriter};
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

/// The folder, inside a snapshot's, of the links that RocksDB takes away.
const LINKS: &str = "links";
/// The folder, inside a snapshot's, of the database in which its files are tried.
const SCRATCH: &str = "scratch";
/// How many of them are open there at a time.
const SCRATCH_FILES_MAX: i32 = 16;
/// How much is read ahead and checked at once.
const CHUNK_BYTES: usize = 1 << 20;

fn io_failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StorageError {
    move |error| StorageError::engine(action, format!("{}: {error}", path.display()))
}

/// Bytes written between two looks at what is left on the disk.
const LOOK_BYTES: usize = 1 << 20;

/// Writes the data records of a range into files, as long as the disk has room for them.
pub(super) fn export(
    engine: &RocksEngine,
    view: &RocksView,
    (start, end): (&[u8], &[u8]),
    folder: &Path,
    file_bytes_max: u64,
) -> Result<Vec<SnapshotFile>, StorageError> {
    const ACTION: &str = "write snapshot file";
    remove_folder(folder)?;
    fs::create_dir_all(folder).map_err(io_failed("make snapshot folder", folder))?;
    let mut read = ReadOptions::default();
    read.set_iterate_lower_bound(start);
    read.set_iterate_upper_bound(end.max(start));
    // A whole shard passes by once; it must not drive out what clients read.
    read.fill_cache(false);
    read.set_readahead_size(CHUNK_BYTES);
    let (db, snapshot) = view.parts();
    let mut records = snapshot.raw_iterator_cf_opt(db.family(Family::Data), read);
    // What the files hold may be deleted for the most part: then it is counted what is there.
    if engine.check_room_for(engine.data_file_bytes(start, end)).is_err() {
        records.seek_to_first();
        let (mut bytes, mut looked_at) = (0, 0);
        while let Some((key, value)) = records.item() {
            bytes += key.len() + value.len();
            if bytes - looked_at >= LOOK_BYTES {
                engine.check_room_for(bytes as u64)?;
                looked_at = bytes;
            }
            records.next();
        }
        engine.check_room_for(bytes as u64)?;
    }
    records.seek_to_first();
    let (mut files, mut unseen_bytes) = (Vec::new(), LOOK_BYTES);
    while records.valid() {
        let name = format!("{:06}.sst", files.len());
        let path = folder.join(&name);
        let mut writer = SstFileWriter::create(&engine.inner.data_options);
        writer.open(&path).map_err(failed(ACTION))?;
        while let Some((key, value)) = records.item() {
            unseen_bytes += key.len() + value.len();
            if unseen_bytes >= LOOK_BYTES {
                engine.check_room_for(0)?;
                unseen_bytes = 0;
            }
            writer.put(key, value).map_err(failed(ACTION))?;
            records.next();
            if writer.file_size() >= file_bytes_max {
                break;
            }
        }
        writer.finish().map_err(failed(ACTION))?;
        let (bytes, checksum) = measure(&path).map_err(io_failed(ACTION, &path))?;
        files.push(SnapshotFile { name, bytes, checksum });
    }
    records.status().map_err(failed("read for snapshot"))?;
    Ok(files)
}

/// The length and the CRC-32 of a file.
fn measure(path: &Path) -> io::Result<(u64, u32)> {
    let (mut file, mut hasher, mut bytes) = (File::open(path)?, crc32fast::Hasher::new(), 0);
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let n = file.read(&mut chunk)?;
        if n == 0 {
            return Ok((bytes, hasher.finalize()));
        }
        hasher.update(&chunk[..n]);
        bytes += n as u64;
    }
}

/// Whether a file is what the manifest says.
pub(super) fn check(folder: &Path, file: &SnapshotFile) -> Result<(), StorageError> {
    const ACTION: &str = "check snapshot file";
    let path = folder.join(&file.name);
    let (bytes, checksum) = measure(&path).map_err(io_failed(ACTION, &path))?;
    if (bytes, checksum) != (file.bytes, file.checksum) {
        let why = format!(
            "{} has {bytes} bytes and checksum {checksum:08x} instead of {} and {:08x}",
            path.display(),
            file.bytes,
            file.checksum
        );
        return Err(StorageError::engine(ACTION, why));
    }
    Ok(())
}

/// Whether a database takes the files in, and none of them reaches beyond `start` to `end`: tried
/// in a database of their own, before anything depends on them. Only their ends are looked at,
/// however large they are.
pub(super) fn check_span(
    folder: &Path,
    files: &[SnapshotFile],
    start: &[u8],
    end: &[u8],
) -> Result<(), StorageError> {
    const ACTION: &str = "try snapshot files";
    if files.is_empty() {
        return Ok(());
    }
    let scratch = folder.join(SCRATCH);
    remove_folder(&scratch)?;
    fs::create_dir_all(&scratch).map_err(io_failed(ACTION, &scratch))?;
    let originals: Vec<PathBuf> = files.iter().map(|file| folder.join(&file.name)).collect();
    // Without links each would have to be copied; then what is wrong with them shows when they are
    // taken in.
    if let Ok(links) = link(&originals, &scratch.join(LINKS)) {
        let mut options = Options::default()
            .get_options_from_string("allow_fallocate=false")
            .map_err(failed(ACTION))?;
        options.create_if_missing(true);
        options.set_log_level(LogLevel::Fatal);
        options.set_max_open_files(SCRATCH_FILES_MAX);
        let db = rocksdb::DB::open(&options, scratch.join("db")).map_err(failed(ACTION))?;
        let mut ingest = IngestExternalFileOptions::default();
        ingest.set_move_files(true);
        db.ingest_external_file_opts(&ingest, links).map_err(failed(ACTION))?;
        for file in db.live_files().map_err(failed(ACTION))? {
            let first_is_inside = file.start_key.is_some_and(|first| first[..] >= *start);
            if !first_is_inside || file.end_key.is_none_or(|last| last[..] >= *end) {
                return Err(StorageError::engine(
                    ACTION,
                    "one of them holds keys of another shard",
                ));
            }
        }
    }
    remove_folder(&scratch)
}

/// Takes files in, however many they are, without holding writes up.
pub(super) fn ingest_all(
    engine: &RocksEngine,
    folder: &Path,
    files: &[SnapshotFile],
) -> Result<(), StorageError> {
    // Where a file of the last level spans the range, as files of neighbours on both sides may,
    // these lie above it, in the first level, in which many files hold up every write. So a few at
    // a time, and where they pile up they are put into their place first.
    let few = engine.few();
    for some in groups(files, few, engine.inner.options.compaction_bytes_max) {
        engine.check_flush()?;
        engine.flush_family(Family::Data)?;
        ingest(&engine.inner.db, folder, some)?;
        engine.settle_first_level(few)?;
    }
    Ok(())
}

impl RocksEngine {
    /// How many bytes must be free for these files to be taken in: a memtable becomes a file
    /// before, and those of the other families may at any time; and some of them may have to be
    /// written anew before they go.
    pub fn bytes_to_ingest(&self, files: &[SnapshotFile]) -> u64 {
        let options = &self.inner.options;
        let some = groups(files, self.few(), options.compaction_bytes_max)
            .map(|some| some.iter().map(|file| file.bytes).sum::<u64>());
        self.flush_room(&[Family::Log, Family::State, Family::Data]) + some.max().unwrap_or(0)
    }

    /// How many files are taken in at a time.
    fn few(&self) -> usize {
        usize::try_from(self.inner.options.files_waiting_max / 3).unwrap_or(1).max(1)
    }
}

/// The files in groups of so many, and so many bytes, at most, or of one.
fn groups(
    files: &[SnapshotFile],
    files_max: usize,
    bytes_max: u64,
) -> impl Iterator<Item = &[SnapshotFile]> {
    let mut rest = files;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fitting = rest.iter().take(files_max).take_while(|file| {
            bytes += file.bytes;
            bytes <= bytes_max
        });
        let (some, others) = rest.split_at(fitting.count().max(1).min(rest.len()));
        rest = others;
        (!some.is_empty()).then_some(some)
    })
}

/// Takes files into the data family, durably and together. Its memtable must be empty there:
/// RocksDB makes a file of one that overlaps with these, and holds every write of the process
/// meanwhile. Done before, that holds nobody; and nothing is written into a range that is being
/// replaced.
fn ingest(db: &Db, folder: &Path, files: &[SnapshotFile]) -> Result<(), StorageError> {
    if files.is_empty() {
        return Ok(());
    }
    let originals: Vec<PathBuf> = files.iter().map(|file| folder.join(&file.name)).collect();
    let links = folder.join(LINKS);
    remove_folder(&links)?;
    let mut options = IngestExternalFileOptions::default();
    let paths = match link(&originals, &links) {
        Ok(linked) => {
            options.set_move_files(true);
            linked
        }
        Err(_) => originals,
    };
    db.raw()
        .ingest_external_file_cf_opts(db.family(Family::Data), &options, paths)
        .map_err(failed("ingest snapshot files"))?;
    remove_folder(&links)
}

/// Links every file into a new folder.
fn link(originals: &[PathBuf], links: &Path) -> io::Result<Vec<PathBuf>> {
    fs::create_dir_all(links)?;
    originals
        .iter()
        .map(|original| {
            let name = original.file_name().ok_or(io::ErrorKind::InvalidInput)?;
            let link = links.join(name);
            fs::hard_link(original, &link).map(|()| link)
        })
        .collect()
}

/// Removes a folder and what is in it.
pub(super) fn remove_folder(folder: &Path) -> Result<(), StorageError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io_failed("remove snapshot folder", folder)(error))
        }
        _ => Ok(()),
    }
}
