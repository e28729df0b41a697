//! What the tests of real processes share.
//!
//! ```text
//!   fleet      a cluster of processes: where it is, and how it is made
//!   nodes      each of them started, waited for, stopped, killed
//!   dev        all of them under `flotilla dev`
//!   admin      what they show: shards, leaders, equal replicas
//!   http       how they are asked
//!   register   a key, its history, and the verdict on it; registers: many of them
//!   load       threads that write to them
//!   journal    histories on disk, judged from there
//!   disk       small disks, and copies of folders
//!   process    children, signals, ports
//! ```
//!
//! **One fleet.** Whatever a suite does to its nodes, a [`Fleet`] starts and ends them. It never
//! outlives its test, a panic included; then it says what the nodes said last, and where it keeps
//! their folder.
//!
//! **One oracle.** What nodes answer is judged by [`flotilla_node::check`] and by nobody else:
//! every request to a [`Register`] is an operation of its history. What the checker can't see,
//! because it looks at one key at a time, is in `register` as well: that a shard gives out each
//! revision once.
//!
//! Suites are binaries of their own (`node/tests/<suite>/main.rs`), which cargo runs one after
//! another: they measure pauses, and the machine may be small. Tests of one binary take turns for
//! the same reason.

#![cfg(feature = "shell")]

mod admin;
mod dev;
pub mod disk;
mod fleet;
pub mod http;
mod journal;
mod load;
mod nodes;
pub mod process;
mod register;
mod registers;

pub use fleet::{CUT_BYTES, Fleet, set};
pub use flotilla_node::rng::Rng;
pub use http::{Answer, Client};
pub use journal::Totals;
pub use load::{Counts, Load, Outcome, Targets, until_writes};
pub use process::{finish, flotilla, run, until, wait};
pub use register::Register;
pub use registers::Registers;

use std::time::Duration;

/// How long anything may take that has to happen at all.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The nodes of a cluster of three.
pub const THREE: std::ops::RangeInclusive<u64> = 1..=3;

/// A number from the environment, such as how many rounds a run is to have.
pub fn asked(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}
