//! The commands that need a node's rooms: everything else is a client of the HTTP API, and lives in `flotilla-ops`.

pub(crate) mod cert;
pub(crate) mod dev;
pub(crate) mod start;
