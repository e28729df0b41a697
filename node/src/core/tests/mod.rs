//! Tests of the core as a whole, over clusters in one thread.
//!
//! - [`cluster`] and [`network`]: the harness, with the simulation's nodes. [`crate::sim`] lets
//!   them live in simulated time.
//! - [`golden`]: golden scripts, one per behaviour, in `testdata`.
//! - [`traps`]: one test per trap of raft-rs 0.7, named by its number.
//! - [`bounds`]: limits at their least, queues filled. [`overload`]: more than a node can carry.
//! - [`messages`]: what a peer may not send, as a table and as a property.
//! - [`ages`], [`promises`], [`far_quorum`]: what stale, lease and linearizable reads rest on.
//! - [`determinism`]: the same events give the same effects.
//! - [`membership`]: raft-rs and the descriptor never part, in random histories and whole cores.
//! - [`balance`]: leadership spread anew, counted.

mod ages;
mod balance;
mod bounds;
mod cluster;
mod determinism;
mod far_quorum;
mod golden;
mod membership;
mod messages;
mod network;
mod overload;
mod promises;
mod traps;
