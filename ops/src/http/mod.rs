//! The HTTP server: HTTP/1.1 and HTTP/2 in clear text on one port, on hyper.
//!
//! A request's way: [`server`] accepts and counts connections, [`connection`] tells HTTP/1.1 from HTTP/2 and closes who is too slow,
//! [`wire`] lies between hyper and the socket, [`service`] finds the route, and one file per route answers: [`key`], [`scan`] and
//! [`delete_range`], [`batch`], [`admin`], [`health`]. What they share: [`path`] and [`query`] (decoding, never normalising),
//! [`etag`] (conditions), [`body`] (bodies, both ways, bounded), [`answer`] (headers), [`cursor`].
//!
//! **Invariants.** A handler returns an answer or a [`crate::Problem`]; only [`answer`] makes the latter a response. A write is
//! handed to the node after its whole body has been read, so a half-sent body writes nothing. The way of a GET or PUT of one key
//! boxes no future, spawns no task and looks up no metric by name.
//!
//! What hyper answers by itself: a head that is no HTTP (400), with too many or too large fields (431) or too long a target (414).
//! [`wire`] puts a problem in the place of hyper's empty body, except where such a head came in one packet with a good request in
//! front of it. HTTP/2 heads over the limit are answered by h2, with 431 and no body.

mod admin;
mod answer;
mod batch;
mod body;
mod connection;
mod cursor;
mod delete_range;
mod etag;
mod health;
mod key;
mod path;
mod query;
mod scan;
mod server;
mod service;
mod wire;

#[doc(hidden)]
pub use server::Offline;
pub use server::{BindError, Server};
