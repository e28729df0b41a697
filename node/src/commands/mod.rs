//! The commands that need a node's rooms: everything else is a client of the HTTP API, and lives in `flotilla-ops`.
//! `check` is a client too, but judges by the node's own checker.

pub(crate) mod cert;
pub(crate) mod check;
pub(crate) mod dev;
pub(crate) mod start;
