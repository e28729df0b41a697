//! Small disks that can be filled, and folders that can be put aside and brought back.
//!
//! A small disk is a tmpfs, which takes the superuser. It is unmounted when it is dropped; one
//! whose process was killed is unmounted by the next test, which knows it by the process id in its
//! path.

use super::fleet::FOLDER_PREFIX;
use super::run;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A small disk of its own, as long as it lives.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts it, or says why that can't be.
    pub fn mount(path: &Path, bytes: u64) -> Result<Self, String> {
        unmount_stale();
        if !rustix::process::geteuid().is_root() {
            return Err("mounting takes the superuser".into());
        }
        fs::create_dir_all(path).map_err(|error| error.to_string())?;
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "flotilla-test"]).arg(path);
        let output = command.output().map_err(|error| format!("mount: {error}"))?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        output.status.success().then(|| Self(path.to_owned())).ok_or(said)
    }

    /// One that is as long there as the test, for a fleet's folder; where there is none, says so.
    pub fn of_test(bytes: u64) -> Option<Self> {
        let prefix = format!("{FOLDER_PREFIX}{}-disk-", std::process::id());
        let path = tempfile::Builder::new().prefix(&prefix).tempdir().unwrap().keep();
        Self::mount(&path, bytes)
            .map_err(|why| println!("SKIPPED: no small disk can be mounted: {why}"))
            .ok()
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Takes space until no more than so much is left, which may be nothing.
    pub fn fill(&self, leave_bytes: u64) {
        let mut ballast =
            fs::File::options().create(true).append(true).open(self.ballast()).unwrap();
        let chunk = vec![7; 1 << 20];
        loop {
            let free = self.free_bytes();
            if free <= leave_bytes {
                break;
            }
            let wanted = (free - leave_bytes).min(chunk.len() as u64) as usize;
            match ballast.write(&chunk[..wanted]) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::StorageFull => break,
                Err(error) => panic!("filling a disk: {error}"),
            }
        }
    }

    /// Gives the space back.
    pub fn empty(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }

    /// What is free on it.
    pub fn free_bytes(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.0).unwrap();
        stat.f_bavail * stat.f_frsize
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = run(Command::new("umount").arg("-l").arg(&self.0));
        let _ = fs::remove_dir(&self.0);
    }
}

/// Unmounts what processes left that are gone.
fn unmount_stale() {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    for path in mounts.lines().filter_map(|line| line.split(' ').nth(1)) {
        let owner =
            path.split('/').find_map(|part| part.strip_prefix(FOLDER_PREFIX)?.split('-').next());
        if owner
            .is_some_and(|pid| pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists())
        {
            let _ = run(Command::new("umount").arg("-l").arg(path));
        }
    }
}

/// Copies a folder with all that is in it.
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy(&from, &to)?;
        } else {
            fs::copy(from, to)?;
        }
    }
    Ok(())
}

/// Makes a folder what another is.
pub fn restore(from: &Path, to: &Path) {
    fs::remove_dir_all(to).unwrap();
    copy(from, to).unwrap();
}
