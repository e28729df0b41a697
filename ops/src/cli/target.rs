//! Where an export goes: a file that is replaced once it is whole, or something that is written to
//! as it is.
//!
//! A regular file is written beside its name, under a name that nobody could have put there before,
//! and moved in its place at the end: an export that fails or is interrupted leaves what was there.
//! A symbolic link stays, and the file that it leads to is replaced. A pipe, a device, or an open
//! file by way of `/dev/stdout` is never replaced: it is written to, behind what is in it.

use super::failure::Failure;
use std::fs::{File, Metadata};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// So many links may lead from one to the next; the system's own limit.
const LINKS_MAX: usize = 40;

/// Where an export goes.
pub(super) struct Target {
    out: Out,
    /// As it was named, for complaints.
    named: PathBuf,
}

enum Out {
    /// Written beside `path`, and moved there at the end. Dropped before, it is removed.
    Replaced { partial: BufWriter<NamedTempFile>, path: PathBuf },
    /// Written to as it is.
    Stream(BufWriter<File>),
}

impl Target {
    /// Opens what a path names.
    pub(super) fn open(named: &Path) -> Result<Self, Failure> {
        let failed = |error: io::Error| Failure::file("write", named, &error);
        let (path, through_open_file) = follow(named).map_err(failed)?;
        let there = std::fs::metadata(named).ok();
        let out = match &there {
            Some(there) if there.is_dir() => {
                return Err(Failure::Usage(format!(
                    "{} is a folder; name a file in it",
                    named.display()
                )));
            }
            Some(there) if through_open_file || !there.is_file() => {
                let file = File::options().append(true).open(named).map_err(failed)?;
                Out::Stream(BufWriter::new(file))
            }
            _ => Out::Replaced {
                partial: BufWriter::new(beside(&path, there.as_ref()).map_err(failed)?),
                path,
            },
        };
        Ok(Self { out, named: named.to_owned() })
    }

    /// Writes on.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let out: &mut dyn Write = match &mut self.out {
            Out::Replaced { partial, .. } => partial,
            Out::Stream(file) => file,
        };
        out.write_all(bytes).map_err(|error| Failure::broken("write", &self.named, &error))
    }

    /// All is written: puts it in its place.
    pub(super) fn finish(self) -> Result<(), Failure> {
        let failed = |error: io::Error| Failure::broken("write", &self.named, &error);
        match self.out {
            Out::Replaced { partial, path } => {
                let partial = partial.into_inner().map_err(|error| failed(error.into_error()))?;
                partial.as_file().sync_all().map_err(failed)?;
                partial.persist(&path).map_err(|error| failed(error.error))?;
            }
            Out::Stream(file) => {
                drop(file.into_inner().map_err(|error| failed(error.into_error()))?)
            }
        }
        Ok(())
    }
}

/// A new file in the folder of `path`, with the rights of the one that it will replace.
fn beside(path: &Path, there: Option<&Metadata>) -> io::Result<NamedTempFile> {
    let name = path.file_name().ok_or_else(|| io::Error::other("it names no file"))?;
    let folder =
        path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut prefix = std::ffi::OsString::from(".");
    prefix.push(name);
    prefix.push(".");
    let rights =
        there.map_or_else(|| std::fs::Permissions::from_mode(0o666), Metadata::permissions);
    let file = tempfile::Builder::new()
        .prefix(&prefix)
        .suffix(".partial")
        .permissions(rights)
        .tempfile_in(folder)?;
    if let Some(there) = there {
        // The umask had its say in a new file alone.
        file.as_file().set_permissions(there.permissions())?;
    }
    Ok(file)
}

/// Where a path leads through symbolic links, whether or not something is there; and whether that
/// is a file that some process holds open, as `/dev/stdout` is.
fn follow(named: &Path) -> io::Result<(PathBuf, bool)> {
    let mut path = named.to_owned();
    for _ in 0..LINKS_MAX {
        let Ok(to) = std::fs::read_link(&path) else { return Ok((path, false)) };
        // What stands in `/proc/…/fd` shows a name and is more than that.
        if folder_of(&path).starts_with("/proc") {
            return Ok((path, true));
        }
        path = path.parent().unwrap_or(Path::new("")).join(to);
    }
    Err(io::Error::other("symbolic links lead in a circle"))
}

/// The folder that a path stands in, by its one name.
fn folder_of(path: &Path) -> PathBuf {
    let parent =
        path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    parent.canonicalize().unwrap_or_else(|_| parent.to_owned())
}
