//! Whether a history of reads and writes is linearizable: as if each operation had taken effect at
//! one moment between its call and its return, on one copy of the data.
//!
//! Keys are independent of each other (linearizability is local), so each is judged for itself, by
//! [`check_key`]; [`check`] does so for all keys of a history. Pure but for what needs the feature
//! `shell`: the simulator of the core uses it as well as `flotilla check`.
//!
//! - [`history`]: what was asked and answered, and scans as reads of single keys.
//! - `register`: what one key may be, and what each answer says about it.
//! - `linear`: the search for an order, and why it is fast and misses none.
//! - `shrink`: from a history that fails to the few operations that show why.
//! - [`verdict`]: what comes of it, and how people read it; `explain` finds the sentence that says
//!   why no order works.
//! - `lines`, `workload`, `keys` and `figures` (feature `shell`): histories as NDJSON, the load
//!   that `flotilla check` makes, the keys that it uses, and what it counts.
//!
//! **Invariants.** A history is called linearizable only when an order was found, and wrong only
//! when there is none; where the search gives up, the verdict says so. A key is absent, and never
//! had a revision, when its history begins. An operation that only shows something never makes a
//! wrong history right by being left out of the picture: what is shown fails by itself.
//!
//! The tests are in `tests/`: hand-made histories, a brute-force checker that judges the same small
//! histories, and a reference register under random schedules.

mod explain;
#[cfg(feature = "shell")]
pub mod figures;
pub mod history;
#[cfg(feature = "shell")]
pub mod keys;
mod linear;
#[cfg(feature = "shell")]
pub mod lines;
mod register;
mod shrink;
#[cfg(test)]
mod tests;
pub mod verdict;
#[cfg(feature = "shell")]
pub mod workload;

pub use history::{Input, Operation, Output, Scanned};
pub use verdict::{Summary, Undecided, Verdict, Violation};

use bytes::Bytes;
use linear::{Found, STEPS_MAX, search};
use std::collections::BTreeMap;

/// Judges a history of any number of keys. The first violation ends it; a key on which the search
/// gives up does so only when no other key is wrong.
pub fn check(history: &[Operation]) -> Verdict {
    let mut keys: BTreeMap<&Bytes, Vec<&Operation>> = BTreeMap::new();
    for operation in history {
        keys.entry(&operation.key).or_default().push(operation);
    }
    let mut verdict = Verdict::Linearizable(Summary::default());
    for operations in keys.values() {
        verdict = verdict.and(check_key(operations));
        if matches!(verdict, Verdict::Violation(_)) {
            break;
        }
    }
    verdict
}

/// Judges the history of one key. All operations are of that key; they may come in any order.
pub fn check_key(operations: &[&Operation]) -> Verdict {
    check_key_within(operations, STEPS_MAX)
}

/// [`check_key`] in at most so many steps.
fn check_key_within(operations: &[&Operation], steps_max: u64) -> Verdict {
    let count = operations.len() as u64;
    let Some(first) = operations.first() else { return Verdict::Linearizable(Summary::default()) };
    if let Some(odd) = operations.iter().find(|operation| !operation.is_coherent()) {
        return Verdict::Violation(Box::new(Violation::incoherent(odd, count)));
    }
    let steps = register::steps(operations);
    let (numbers, all): (Vec<_>, Vec<_>) =
        steps.iter().enumerate().filter_map(|(n, step)| Some((n, (*step)?))).unzip();
    let (found, tried) = search(&all, steps_max);
    match found {
        Found::Order => Verdict::Linearizable(Summary { keys: 1, operations: count, steps: tried }),
        Found::GaveUp => Verdict::Undecided(Undecided {
            key: first.key.clone(),
            operations: count,
            steps: tried,
        }),
        Found::Nothing(stuck) => {
            let part = shrink::shrink(&steps, linear::Stuck { step: numbers[stuck.step], ..stuck });
            Verdict::Violation(Box::new(explain::violation(operations, &part)))
        }
    }
}
