//! The commands that need a node's rooms: everything else is a client of the HTTP API, and lives in
//! `flotilla-ops`. `check` is a client too, but judges by the node's own checker.
//!
//! **Invariant.** A reader of our output that has gone away ends nothing: what is printed goes
//! through [`out`] and [`err`], never through the macros that panic.

pub(crate) mod cert;
pub(crate) mod check;
pub(crate) mod dev;
mod dev_folder;
pub(crate) mod start;

use std::io::{self, Write as _};

/// What was asked for makes no sense; the process ends with 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

/// Prints a line of data. That nobody reads any more is no failure; a full disk is one.
pub(crate) fn out(line: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match writeln!(stdout, "{line}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

/// Says something that is not data. Where that fails there is nobody left to tell.
pub(crate) fn err(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}
