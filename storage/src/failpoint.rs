//! Fail points: named places at which a test has the process die, or the disk say no, to see what a
//! restart makes of it.
//!
//! Without the feature `failpoints`, which no release has, [`FailPoint::pass`] is the constant
//! `Ok(())` and nothing can be armed. With it, `flotilla start` reads the environment variable
//! `FAILPOINTS` ([`arm`]):
//!
//! ```text
//! FAILPOINTS='install-marked=return'             dies there, the first time
//! FAILPOINTS='log-written=20*off->return'        dies there the 21st time
//! FAILPOINTS='apply-begun=1%return(error)'       one time in a hundred, fails there like a disk that answers with an error
//! ```
//!
//! To die is to abort on the spot, as a crash would: nothing is flushed, no destructor runs. One
//! line on standard error says where, and at which pass. The grammar is that of the crate `fail`.
//!
//! A point between two steps stands for the death before the second as much as for the one after
//! the first. Each has a round of its own in `node/tests/failpoints/`, and one that no round ever
//! meets fails that test. What was seen is told in `docs/crashes.md`.

use crate::error::StorageError;
use strum::{EnumCount, EnumIter, EnumString, IntoStaticStr};

/// A place at which the process can be made to die.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumCount, EnumIter, EnumString, IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
pub enum FailPoint {
    /// The data directory is locked, RocksDB not yet opened.
    OpenLocked,
    /// RocksDB's files were made, in a folder that does not count yet.
    OpenCreated,
    /// RocksDB has replayed its write-ahead log.
    OpenReplayed,
    /// The identity, with the new incarnation, is durable.
    OpenBound,
    /// A new node is about to write its first state.
    BootstrapBegun,
    /// It is durable.
    BootstrapWritten,
    /// Another node's data directory is about to be remembered.
    DirectoryBegun,
    /// It is durable.
    DirectoryWritten,
    /// A batch of entries and hard states is about to be written and synced.
    LogBegun,
    /// It is durable, and nobody was told.
    LogWritten,
    /// A batch that nobody waits for, such as a truncation, is about to be written.
    LazyLogBegun,
    /// It is written, not synced.
    LazyLogWritten,
    /// A batch of applied commands is about to be written.
    ApplyBegun,
    /// It is written, and nobody was told.
    ApplyWritten,
    /// A snapshot is about to be built of a pinned view.
    BuildBegun,
    /// Its files are complete, and nobody was told.
    BuildWritten,
    /// A built snapshot is about to be sent.
    SendBegun,
    /// The other end has said what became of it.
    SendEnded,
    /// A snapshot is about to come in.
    StageBegun,
    /// Its files are there and synced.
    StageArrived,
    /// They are what the manifest says.
    StageVerified,
    /// The core wants it, its files were verified once more, nothing was changed yet.
    InstallVerified,
    /// The install marker is durable.
    InstallMarked,
    /// The shard's data and log are deleted.
    InstallCleared,
    /// The files' records are taken in.
    InstallIngested,
    /// The shard's records are written, and the marker is gone.
    InstallFinished,
    /// The files are removed.
    InstallTidied,
    /// The applier has taken note of it, and the core does not know yet.
    InstallNoted,
    /// A restart has found an install marker.
    ResumeBegun,
    /// It has completed the install.
    ResumeEnded,
    /// The node is going down in good order, and its engine is about to be closed.
    CloseBegun,
    /// All is durable.
    CloseEnded,
}

impl FailPoint {
    /// Its name: that of its variant, in lower case and with dashes.
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// Goes on, always.
    #[cfg(not(feature = "failpoints"))]
    #[inline(always)]
    pub const fn pass(self) -> Result<(), StorageError> {
        Ok(())
    }

    /// Goes on, unless it is armed: then the process ends here, or a disk's error comes back.
    #[cfg(feature = "failpoints")]
    pub fn pass(self) -> Result<(), StorageError> {
        armed::pass(self)
    }
}

/// Arms what the environment variable `FAILPOINTS` names, for the rest of the process's life. A
/// name that is not known, or an action that can't be read, is an error that says so.
#[cfg(feature = "failpoints")]
pub use armed::arm;

#[cfg(feature = "failpoints")]
mod armed {
    //! What a build with fail points does at them.

    use super::FailPoint;
    use crate::error::StorageError;
    use std::io::Write as _;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::{Mutex, PoisonError};
    use strum::EnumCount as _;

    /// The argument of `return` that asks for an error instead of death.
    const ERROR: &str = "error";

    /// How often each point was passed.
    static PASSES: [AtomicU64; FailPoint::COUNT] = [const { AtomicU64::new(0) }; FailPoint::COUNT];

    /// Who holds it is dying: where several threads come to a point at once, one of them says so
    /// and ends the process.
    static DYING: Mutex<()> = Mutex::new(());

    /// Arms what `FAILPOINTS` names.
    pub fn arm() -> Result<(), String> {
        let Ok(wanted) = std::env::var("FAILPOINTS") else { return Ok(()) };
        for item in wanted.split(';').map(str::trim).filter(|item| !item.is_empty()) {
            let Some((name, actions)) = item.split_once('=') else {
                return Err(format!("FAILPOINTS: no action in {item:?}"));
            };
            if name.parse::<FailPoint>().is_err() {
                return Err(format!("FAILPOINTS: there is no fail point {name:?}"));
            }
            fail::cfg(name, actions).map_err(|why| format!("FAILPOINTS: {item:?}: {why}"))?;
        }
        Ok(())
    }

    pub(super) fn pass(point: FailPoint) -> Result<(), StorageError> {
        let passes = PASSES[point as usize].fetch_add(1, Ordering::Relaxed) + 1;
        fail::fail_point!(point.name(), |argument| {
            if argument.as_deref() == Some(ERROR) {
                return Err(StorageError::engine(
                    point.name(),
                    format!("input/output error, injected at pass {passes}"),
                ));
            }
            let _dying = DYING.lock().unwrap_or_else(PoisonError::into_inner);
            let _ = writeln!(
                std::io::stderr(),
                "fail point {}, pass {passes}: the process dies here",
                point.name()
            );
            std::process::abort()
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use strum::IntoEnumIterator as _;

    #[test]
    fn points_have_names_of_their_own_and_let_pass() {
        for point in FailPoint::iter() {
            assert_eq!(point.name().parse(), Ok(point));
            assert!(point.pass().is_ok(), "{} is armed", point.name());
        }
        assert_eq!(FailPoint::InstallTidied.name(), "install-tidied");
        assert!("no-such-point".parse::<FailPoint>().is_err());
    }
}
