//! What passes between nodes: QUIC, mutual TLS, lanes of frames, forwarded requests, snapshots.
//!
//! Router names, storage keeps, **transport carries**, ops shows, node decides. This crate carries
//! opaque bytes and knows who sent them; whether a raft message makes sense is judged above, by
//! whoever takes the frame.
//!
//! ```text
//! Transport::send ───► outbox ──► writer ─┐                      ┌─► lane reader ──► Handler::frame
//! Transport::request ► requests ► writer ─┤ one QUIC connection  ├─► its reader ► Handler::request
//!                ◄──── answers ◄─ reader ─┘ per pair, direction  └─◄ writer ◄ answers ◄ Responder
//! ```
//!
//! - Each node dials every peer and sends only on the connection that it dialled; answers come back
//!   on that same connection. So who may write where is never a question, and a request dies with
//!   the one connection that carried it. ([`peer`], [`dial`], [`accept`])
//! - One long-lived stream per [`Lane`], one for requests; a frame is a length and bytes. A writer
//!   takes all that waits and writes it at once: while one write is under way the next one gathers.
//!   ([`frame`], [`outbox`], [`writer`])
//! - Snapshots have a connection of their own, so that they never stand in the way of a heartbeat.
//!   ([`snapshot`])
//! - Every queue is bounded in bytes. A full one drops and reports; nothing here ever waits for a
//!   slow peer.
//!
//! **Invariants.** No byte passes before both ends have proved node and cluster by certificate and
//! handshake ([`handshake`]). Whatever a peer sends, nothing panics, and memory grows only with
//! bytes that really arrived, up to a limit. A request that fails with [`RequestError::NotSent`],
//! [`RequestError::TooLate`] or [`RequestError::Full`] was never handed to QUIC.
//!
//! Where the tests are: units beside the code, whole endpoints on loopback in `tests/`.

mod accept;
mod answers;
mod batch;
mod certs;
mod config;
mod dial;
mod doors;
mod error;
mod frame;
#[doc(hidden)]
pub mod fuzzing;
mod handler;
mod handshake;
mod lane;
mod outbox;
mod peer;
mod quic;
mod requests;
mod round_trip;
mod shared;
mod snapshot;
mod stats;
mod tls;
mod transport;
mod writer;

pub use answers::{DATA_BYTES_MAX, Responder};
pub use certs::{ClusterCa, NodeName};
pub use config::{Config, Congestion};
pub use error::{RequestError, SnapshotError, TransportError};
pub use handler::{Handler, Staging};
pub use handshake::{Identity, LeaseTerms};
pub use lane::Lane;
pub use stats::{Counter, LaneStats, Stats};
pub use tls::{Credentials, check_private};
pub use transport::Transport;
