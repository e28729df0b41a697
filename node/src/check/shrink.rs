//! From a history that no order fits to the few operations that show why.
//!
//! To drop an operation must not make a failure of its own: without the write, the read of what it
//! wrote would look wrong. So nothing is dropped, it is **relaxed**: of a write is kept that it may
//! have taken effect at any time at all, or never ([`Step::relaxed`]); what only shows something
//! says nothing any more. What still fails then is a contradiction between the operations that are
//! left as they were, wherever all the other writes may stand. Parts are relaxed by halves,
//! quarters and so on, down to single operations, until none can be relaxed any more; where a
//! search gives up, the part stays as it is.

use super::linear::{Found, STEPS_MAX, Stuck, search};
use super::register::Step;

/// At most so many searches; then what is left is what is shown.
const SEARCHES_MAX: usize = 4_000;
/// At most so many steps over all searches.
const STEPS_ALL_MAX: u64 = 4_000_000;

/// A part that fails.
pub(super) struct Part {
    /// The numbers of its operations, in the order of the history.
    pub(super) kept: Vec<usize>,
    /// Where the longest order of it that works ends. The step is the number of an operation.
    pub(super) stuck: Stuck,
}

/// Shrinks the steps of a history that fails, stuck as it is. `None` stands for an operation that
/// says nothing.
pub(super) fn shrink(steps: &[Option<Step>], whole: Stuck) -> Part {
    let mut kept: Vec<usize> = (0..steps.len()).filter(|n| steps[*n].is_some()).collect();
    let mut stuck = whole;
    let (mut searches, mut tried_all) = (0, 0);
    let mut size = kept.len().div_ceil(2);
    while size > 0 && !kept.is_empty() {
        let mut at = 0;
        let mut smaller = false;
        // From the end: what came later rarely is the reason.
        while at < kept.len() {
            let end = kept.len() - at;
            let start = end.saturating_sub(size);
            let mut fewer = kept.clone();
            fewer.drain(start..end);
            if searches >= SEARCHES_MAX || tried_all >= STEPS_ALL_MAX {
                return Part { kept, stuck };
            }
            searches += 1;
            let (found, tried) = fails(steps, &fewer);
            tried_all += tried;
            match found {
                Some(found) => (kept, stuck, smaller) = (fewer, found, true),
                None => at += end - start,
            }
        }
        // Once more over single operations, as long as that helps: one may hold another in place.
        if size > 1 {
            size = size.div_ceil(2);
        } else if !smaller {
            break;
        }
    }
    Part { kept, stuck }
}

/// Where the history is stuck with all but `kept` relaxed; `None` where an order works, or nobody
/// knows.
fn fails(steps: &[Option<Step>], kept: &[usize]) -> (Option<Stuck>, u64) {
    let mut numbers = Vec::new();
    let mut all = Vec::new();
    for (n, step) in steps.iter().enumerate() {
        let step =
            if kept.binary_search(&n).is_ok() { *step } else { step.and_then(Step::relaxed) };
        if let Some(step) = step {
            numbers.push(n);
            all.push(step);
        }
    }
    let (found, tried) = search(&all, STEPS_MAX / 8);
    match found {
        Found::Nothing(stuck) => (Some(Stuck { step: numbers[stuck.step], ..stuck }), tried),
        Found::Order | Found::GaveUp => (None, tried),
    }
}
