//! Tests of the core as a whole, over clusters in one thread.
//!
//! - [`cluster`] with [`member`] and [`network`]: the harness. [`trace`] puts what happens into words.
//! - [`script`], [`golden`]: golden scripts, one per behaviour, in `testdata`.
//! - [`traps`]: one test per trap of raft-rs 0.7, named by its number.
//! - [`messages`]: what a peer may not send, as a table and as a property.
//! - [`determinism`]: the same events give the same effects.
//! - [`random`]: seeded clusters under faults, held against [`invariants`].

mod cluster;
mod determinism;
mod golden;
mod invariants;
mod member;
mod messages;
mod network;
mod random;
mod script;
mod trace;
mod traps;
