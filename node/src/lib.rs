//! The decisions of a Flotilla node.
//!
//! - [`core`]: every Raft group of the process as one pure state machine. It builds, and its tests
//!   run, without tokio, hyper, RocksDB and quinn (`--no-default-features`).
//! - [`check`]: whether what clients were told is linearizable.
//! - [`rng`]: numbers from a seed, for whatever is left to chance.
//! - `sim` (feature `sim`): whole clusters in simulated time, from seeds.
//! - `shell` (feature `shell`): the threads that feed the core and carry out what it asks.
//!
//! `main.rs` is the binary `flotilla`.

pub mod check;
pub mod core;
pub mod rng;
#[cfg(feature = "shell")]
pub mod shell;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
