//! The one place where storage ends the process.
//!
//! After a failed write or fsync nobody knows what the disk holds: the kernel may have dropped the
//! dirty pages and report success the next time (the PostgreSQL "fsyncgate" of 2018). So nothing is
//! retried, nothing is cleaned up, no destructor runs: one line that says what happened, then
//! `abort`. A restart reads what is really there. Corruption and an entry that can't be applied end
//! here as well, because every further step would build on it.

use crate::engine::Engine;
use crate::error::StorageError;
use std::io::Write as _;

/// What came of it, or the end of the process.
pub fn or_abort<T>(outcome: Result<T, StorageError>) -> T {
    outcome.unwrap_or_else(|error| abort(&error))
}

/// Writes a batch, or ends the process.
pub fn write_or_abort<E: Engine>(engine: &E, batch: E::Batch, sync: bool) {
    or_abort(engine.write(batch, sync));
}

/// Says what happened, and ends the process.
pub fn abort(error: &StorageError) -> ! {
    if tracing::enabled!(tracing::Level::ERROR) {
        tracing::error!(%error, "storage failed, the process ends");
    } else {
        let _ = writeln!(std::io::stderr(), "storage failed, the process ends: {error}");
    }
    std::process::abort()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    const CHILD: &str = "FLOTILLA_TEST_ABORT";

    #[test]
    fn a_failed_write_ends_the_process_with_a_line_that_says_why() {
        if std::env::var_os(CHILD).is_some() {
            or_abort::<()>(Err(StorageError::engine("write batch", "no space left on device")));
            unreachable!("the process goes on after a failed write");
        }
        let name = "fatal::tests::a_failed_write_ends_the_process_with_a_line_that_says_why";
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(6), "it did not abort: {stderr}");
        assert!(
            stderr.contains("the process ends: write batch: no space left on device"),
            "{stderr}"
        );
    }
}
