//! The HTTP server (placeholder until the next commit).

/// The server.
pub struct Server;
/// Why a port could not be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {}
