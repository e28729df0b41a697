//! The HTTP server: HTTP/1.1 and HTTP/2 in clear text on one port, on hyper.
//!
//! A request's way: [`server`] accepts and counts connections, [`connection`] tells HTTP/1.1 from
//! HTTP/2 and closes who is too slow, [`guard`] (with [`heads`], [`chunks`], [`blocks`] and
//! [`target`]) and [`wire`] lie between hyper and the socket, [`service`] finds the route, and one
//! file per route answers: [`key`], [`scan`] (with [`stream`]) and [`delete_range`], [`batch`]
//! (with [`operations`]), [`admin`], [`health`]. What they share: [`path`] and [`query`] (decoding,
//! never normalising), [`head`] and [`pages`] (what is refused before any route), [`etag`]
//! (conditions), [`body`] (bodies, both ways, bounded), [`answer`] (headers, with [`date`]),
//! [`cursor`] and [`accept`] (a page or a stream).
//!
//! What a node has little of is bounded and shared: [`crowd`] has the connections, [`share`] the
//! places and bytes, [`room`] what the gets of a batch may find, [`owed`] what clients were given
//! and have not taken, [`ledger`] by when they must. [`pulse`] tells what a connection is doing,
//! [`leash`] what the server wants of it, and [`discard`] reads what is left of an unwanted body.
//!
//! **Invariants.** A handler returns an answer or a [`crate::Problem`]; only [`answer`] makes the
//! latter a response. A write is handed to the node after its whole body has been read, so a
//! half-sent body writes nothing. The way of a GET or PUT of one key boxes no future, spawns no
//! task and looks up no metric by name.
//!
//! What hyper answers by itself: a head that is no HTTP (400). [`wire`] puts a problem in the place
//! of its empty body. On HTTP/2, what is no request at all resets its stream, or ends the
//! connection.

mod accept;
mod admin;
mod answer;
mod batch;
mod blocks;
mod body;
mod chunks;
mod connection;
mod crowd;
mod cursor;
mod date;
mod delete_range;
mod discard;
mod etag;
mod guard;
mod head;
mod heads;
mod health;
mod key;
mod leash;
mod ledger;
mod operations;
mod owed;
mod pages;
mod path;
mod pulse;
mod query;
mod room;
mod scan;
mod server;
mod service;
mod share;
mod stream;
mod target;
mod wire;

#[doc(hidden)]
pub use connection::Socket;
#[doc(inline)]
pub use pages::Pages;
#[doc(hidden)]
pub use server::Offline;
pub use server::{BindError, Server, Serves};
