//! Storage keeps: the logs of all shards, what the replicas remember, and what clients stored.
//!
//! One engine per node, with three families of keys over **one** write-ahead log, so that a batch
//! over several families is atomic and one fsync makes it durable:
//!
//! | family | key | value |
//! |---|---|---|
//! | `log` | shard ‖ index | checksum ‖ format ‖ entry |
//! | `state` | shard ‖ tag; for the node 0 ‖ tag | checksum ‖ format ‖ record |
//! | `data` | `2` ‖ user key, `3` ‖ the meta shard's key | format ‖ revision ‖ expiry ‖ value |
//! | `data` | `1` ‖ shard | the shard's applied state |
//!
//! A shard's records in `state` are its hard state, truncated position, descriptor, replica,
//! tombstone and install marker; the node's are its identity, bootstrap mark, routes, and the other
//! nodes' directories. The keys are told byte by byte in [`keys`], the records in [`records`].
//!
//! Two writers, in the order in which a node does things. [`log::append`] writes what the shards of
//! a pass must remember, synced where it must be durable before it counts. The [`Applier`] turns
//! committed entries into data, unsynced: the log still holds what a crash takes away.
//! [`recover()`] puts the two together again.
//!
//! **Invariants.**
//! - Data, applied state and descriptor of a shard change in one batch; nothing is applied twice,
//!   and nothing is left out.
//! - A log holds exactly the entries above its truncated position, and truncated ≤ applied ≤ last,
//!   commit ≤ last.
//! - Every stored record has a format byte; those of `log` and `state` a checksum over key and
//!   record. A corrupt record stops the process with shard and index named; it is never skipped.
//! - A failed write or fsync ends the process (`fatal`); it is never retried.
//! - The ranges of a node's shards are disjoint, so keys carry no shard. The core alone judges
//!   overlap; nothing here does.
//!
//! **Rooms.** [`engine`] is the contract; [`memory`] keeps it without a disk and forgets in a crash
//! what a disk would, `rocks` (with the feature `rocksdb`) is the real one, and `open` locks a
//! directory and binds it to a node, `started` notices when RocksDB has forgotten, `room` fits it
//! to its disk. [`bootstrap`](mod@bootstrap) makes the first state, [`log`] and [`apply`] write,
//! [`read`] looks, [`snapshot`] and [`manifest`] move a shard as a whole, [`removal`] ends one,
//! [`recover`](mod@recover) starts again. [`directories`] remembers which directory each other
//! node was met with. [`work`] holds the plain data that the core speaks. At a [`failpoint`] a test
//! stops the process. Without the feature the crate depends on no RocksDB, no file system and no
//! thread: that is what the pure core and its simulator are built with.
//!
//! **Tests** stand beside what they test. The contract's suite, run on both engines, is in
//! `engine/tests.rs`; crashes at every unsynced prefix in `apply/tests.rs`, restarts after every
//! step of an install in `snapshot/tests.rs`.

pub mod apply;
pub mod bootstrap;
pub mod directories;
pub mod engine;
pub mod error;
pub mod failpoint;
#[cfg(feature = "rocksdb")]
pub mod fatal;
pub mod keys;
pub mod log;
pub mod manifest;
pub mod memory;
#[cfg(feature = "rocksdb")]
pub mod open;
pub mod read;
pub mod records;
pub mod recover;
pub mod removal;
#[cfg(feature = "rocksdb")]
pub mod rocks;
#[cfg(feature = "rocksdb")]
pub mod room;
pub mod snapshot;
#[cfg(feature = "rocksdb")]
mod started;
#[cfg(test)]
pub(crate) mod testing;
pub mod work;

pub use apply::{Applier, Aside, Returned};
pub use bootstrap::{bootstrap, bootstrap_mark, is_bootstrapped, routes, save_routes};
pub use directories::{known_directories, remember_directory};
pub use engine::{Cursor, Engine, Family, Order, Pace, Read, Statistics, WriteBatch};
pub use error::StorageError;
pub use failpoint::FailPoint;
pub use log::append;
pub use memory::MemoryEngine;
#[cfg(feature = "rocksdb")]
pub use open::{Identity, Opened, is_in_use, open};
pub use read::StateHash;
pub use recover::{recover, tombstones};
pub use removal::remove;
#[cfg(feature = "rocksdb")]
pub use rocks::{GivenBack, Owed, RocksEngine, RocksOptions};
#[cfg(feature = "rocksdb")]
pub use room::{Ballast, Disk, disk};
pub use work::*;
