//! What people and programs touch: the HTTP server, metrics, logs and the command line.
//!
//! Router names, storage keeps, transport carries, **ops shows**, node decides. This crate speaks
//! HTTP on one side and the nouns of `flotilla-router` on the other, and knows nothing of Raft,
//! disks or peers: what it needs from a node it says in three traits, and `node` implements them.
//!
//! - [`traits`]: those three: [`Kv`] (keys), [`Admin`] (the cluster), [`Inspect`] (health).
//! - [`http`]: the server: connections, routes, the KV API, admin, health. It begins at [`Server`].
//! - [`problem`]: every error as RFC 9457 says, with `code`, `outcome` and `retryable`.
//! - [`admin`]: what the admin API shows, as it stands in JSON.
//! - [`limits`]: the limits in force, which `GET /v1/limits` shows.
//! - [`metrics`]: every metric of a node, in one struct with public fields.
//! - [`cli`]: the command-line client, which speaks HTTP to any node.
//! - [`logging`]: how logs are set up. Keys and values are never logged.
//!
//! **Invariants.** No sibling crate but `router` is imported. An unknown outcome is never shown as
//! a failure or a success. Memory that a client can make us hold is bounded by [`Limits`].

pub mod admin;
pub mod cli;
pub mod http;
pub mod limits;
pub mod logging;
pub mod metrics;
pub mod problem;
pub mod traits;

pub use http::{BindError, Pages, Server, Serves};
pub use limits::Limits;
pub use metrics::Metrics;
pub use problem::Problem;
pub use traits::{Admin, Check, Inspect, Kv, Ordered, Readiness};
