//! How RocksDB's folder is opened, and how it comes to be.
//!
//! A folder in its place is a database, whatever is missing in it: RocksDB is never told to make
//! one there. Where it finds no list of its files, it would begin anew in the midst of the old
//! ones, and remove them. So a new database is made beside its place, and moved there when it is
//! whole; a crash on the way leaves nothing in the place.

use super::files::remove_folder;
use super::{Db, Families, RawDb, RocksOptions, failed};
use crate::error::StorageError;
use crate::failpoint::FailPoint;
use rocksdb::{Cache, ColumnFamilyDescriptor};
use std::fs::{self, File};
use std::io;
use std::path::Path;

/// Opens the database in `dir`, which is made where there is nothing.
pub(super) fn open(dir: &Path, options: &RocksOptions, cache: &Cache) -> Result<Db, StorageError> {
    // A folder in which nothing is, a person may have made.
    if fs::read_dir(dir).map_or(true, |mut entries| entries.next().is_none()) {
        create(dir, options, cache)?;
    }
    let unopenable = |why: String| StorageError::Unopenable { dir: dir.to_owned(), why };
    let raw =
        open_raw(dir, options, cache, false).map_err(|error| unopenable(error.into_string()))?;
    Db::try_new(raw, |raw| {
        let family = |name: &str| {
            raw.cf_handle(name).ok_or_else(|| unopenable(format!("it has no family {name}")))
        };
        Ok::<_, StorageError>(Families {
            log: family("log")?,
            state: family("state")?,
            data: family("data")?,
        })
    })
}

fn open_raw(
    dir: &Path,
    options: &RocksOptions,
    cache: &Cache,
    create: bool,
) -> Result<RawDb, rocksdb::Error> {
    let families = [
        ("log", options.log(cache)),
        ("state", options.state(cache)),
        ("data", options.data(cache)),
    ];
    let descriptors =
        families.into_iter().map(|(name, options)| ColumnFamilyDescriptor::new(name, options));
    RawDb::open_cf_descriptors(&options.database(create)?, dir, descriptors)
}

/// Makes the database beside its place, and moves it there.
fn create(dir: &Path, options: &RocksOptions, cache: &Cache) -> Result<(), StorageError> {
    const ACTION: &str = "make the database";
    let io_failed = |error: io::Error| StorageError::engine(ACTION, error);
    let new = dir.with_extension("new");
    remove_folder(&new)?;
    fs::create_dir_all(&new).map_err(io_failed)?;
    drop(open_raw(&new, options, cache, true).map_err(failed(ACTION))?);
    FailPoint::OpenCreated.pass()?;
    fs::rename(&new, dir).map_err(io_failed)?;
    let above = dir.parent().unwrap_or(Path::new("."));
    File::open(above).and_then(|above| above.sync_all()).map_err(io_failed)
}
