//! The shell: the threads that feed the core and carry out what it asks.
//!
//! ```text
//!   HTTP, QUIC (tokio) ──▶ mailbox ──▶ loop thread: core.handle… core.finish_pass ──▶ effects
//!                             ▲                                                        │
//!          Persisted ── writer thread ◀── one batch of log entries, one fsync ─────────┤
//!   Applied, …Installed ── applier thread ◀── committed entries, in order ─────────────┤
//!       …Built, …Fetched ── blocking pool ◀── files and cold entries ──────────────────┘
//! ```
//!
//! - [`config`]: the configuration file and its flags. [`bootstrap`]: the shards that a new cluster
//!   starts with. [`files`]: who may open how many.
//! - [`mailbox`]: the loop's input, a [`queue`]. [`driver`]: the loop. [`writer`], [`applier`]: its
//!   hands. [`snapshots`]: files.
//! - [`clock`]: the time that leases and ages rest on.
//! - [`peers`]: frames, requests and snapshots from other nodes. `quic`: their threads.
//! - [`service`]: requests, answered here or forwarded (`forward`), to whom `choice` says;
//!   [`stale`]: stale ones; [`lines`]: writes that would be refused. [`reading`]: long looks at
//!   data, for [`pages`], and the [`views`] that streams keep.
//! - [`space`]: the disk, watched, and space on it given back. [`private`]: files that nobody else
//!   may read.
//! - [`admin`], [`health`]: what `flotilla-ops` asks for besides keys. [`rates`], `figures`: what
//!   is counted. [`logger`]: raft-rs's log. [`start`]: a node from configuration to shutdown.
//!
//! **Invariants.** Only the loop thread touches the core. Nothing here decides: who may lead, what
//! is committed and who is told what are the core's to say. A storage error or a panic of any
//! thread ends the process.

pub mod admin;
pub mod applier;
pub mod bootstrap;
mod choice;
pub mod clock;
pub mod config;
pub mod driver;
mod figures;
pub mod files;
mod forward;
pub mod health;
pub mod lines;
pub mod logger;
pub mod mailbox;
pub mod pages;
pub mod peers;
pub mod private;
pub mod queue;
mod quic;
pub mod rates;
pub mod reading;
pub mod service;
pub mod snapshots;
pub mod space;
pub mod stale;
pub mod start;
pub mod views;
pub mod writer;

/// The engine that the shell runs on.
pub type Engine = flotilla_storage::RocksEngine;
/// Its pinned views.
pub type View = <Engine as flotilla_storage::Engine>::View;
