//! What a node keeps is for the user that it runs as, and for nobody else.
//!
//! The mask of the process takes care of every file and folder that is made from then on, RocksDB's
//! included. A data directory that was made before, or by hand, is closed when it is opened
//! (`storage/src/open.rs`); a key that others can read is refused (`transport/src/tls.rs`). The
//! file with the process id is the one thing that others may read.

use anyhow::{Context as _, bail};
use rustix::fs::Mode;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// From here on nothing is made that others can read. To be called before there are threads.
pub fn keep_private() {
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
}

/// From here on nothing is made that others can write.
pub fn keep_others_from_writing() {
    let before = rustix::process::umask(Mode::RWXG | Mode::RWXO);
    rustix::process::umask(before | Mode::WGRP | Mode::WOTH);
}

/// The file that keeps the process id, for as long as the process runs.
pub struct PidFile(PathBuf);

impl PidFile {
    /// Writes it; none where the path is empty. A link that stands there is replaced, and never
    /// followed.
    pub fn write(path: &Path) -> anyhow::Result<Option<Self>> {
        if path.as_os_str().is_empty() {
            return Ok(None);
        }
        match fs::symlink_metadata(path) {
            Ok(found) if !found.is_file() && !found.is_symlink() => {
                bail!(
                    "pid_file {} is there and no ordinary file; remove it, or choose another path",
                    path.display()
                );
            }
            _ => {}
        }
        let new = path.with_added_extension("new");
        let write = || {
            match fs::remove_file(&new) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = File::options().write(true).create_new(true).mode(0o600).open(&new)?;
            file.write_all(Self::line().as_bytes())?;
            file.set_permissions(fs::Permissions::from_mode(0o644))?;
            fs::rename(&new, path)
        };
        write().with_context(|| format!("write pid_file {}", path.display()))?;
        Ok(Some(Self(path.to_owned())))
    }

    fn line() -> String {
        format!("{}\n", std::process::id())
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // Another process may have taken the path over.
        if fs::read_to_string(&self.0).is_ok_and(|text| text == Self::line()) {
            let _ = fs::remove_file(&self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_in_the_place_of_the_pid_file_is_replaced_and_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (precious, pid_file) = (dir.path().join("precious"), dir.path().join("flotilla.pid"));
        fs::write(&precious, "kept").unwrap();
        for link in [&pid_file, &dir.path().join("flotilla.pid.new")] {
            std::os::unix::fs::symlink(&precious, link).unwrap();
        }
        let held = PidFile::write(&pid_file).unwrap();
        assert!(fs::symlink_metadata(&pid_file).unwrap().is_file());
        assert_eq!(fs::read_to_string(&pid_file).unwrap(), format!("{}\n", std::process::id()));
        assert_eq!(fs::read_to_string(&precious).unwrap(), "kept");
        drop(held);
        assert!(!pid_file.exists());
        fs::write(&pid_file, "1\n").unwrap();
        drop(PidFile(pid_file.clone()));
        assert!(pid_file.exists(), "another process's was removed");
    }

    #[test]
    fn what_is_no_file_is_left_alone() {
        assert!(PidFile::write(Path::new("")).unwrap().is_none());
        let Err(error) = PidFile::write(Path::new("/dev/null")) else {
            panic!("/dev/null was replaced")
        };
        assert!(error.to_string().contains("no ordinary file"), "{error}");
    }
}
