//! The judge of the judge: every order of a small history is tried, on a register written down a
//! second time, in the plainest way.
//!
//! Nothing is shared with the search: unknown writes are tried with every revision that could
//! matter, one by one.

use super::super::{Operation, Verdict, check};
use super::reference::{self, Load};
use super::{Input, Output};
use crate::rng::Rng;
use bytes::Bytes;
use flotilla_router::Revision;

/// Whether any order of `left` works, for a key that had `last` as its last revision and holds
/// `held`.
fn some_order(
    left: &[&Operation],
    last: u64,
    held: Option<(u64, &Bytes)>,
    revision_max: u64,
) -> bool {
    let definite = |operation: &&&Operation| operation.output != Output::Unknown;
    if left.iter().filter(definite).count() == 0 {
        return true;
    }
    let current = held.map(|(revision, _)| Revision(revision));
    for (n, next) in left.iter().enumerate() {
        let before = |other: &&Operation| {
            other.output != Output::Unknown && other.returned.is_some_and(|at| at < next.called)
        };
        if left.iter().any(before) {
            continue;
        }
        let mut rest = left.to_vec();
        rest.remove(n);
        let works = match (&next.input, &next.output) {
            (Input::Get, Output::Read(seen)) => {
                let same = seen.as_ref().map(|(revision, value)| (revision.0, value)) == held;
                same && some_order(&rest, last, held, revision_max)
            }
            (
                Input::Put { condition, .. } | Input::Delete { condition },
                Output::ConditionFailed { current: told },
            ) => {
                !condition.holds(current)
                    && *told == current
                    && some_order(&rest, last, held, revision_max)
            }
            (Input::Put { condition, .. } | Input::Delete { condition }, _)
                if !condition.holds(current) =>
            {
                false
            }
            (Input::Put { value, .. }, Output::Written { revision }) => {
                revision.0 > last
                    && some_order(&rest, revision.0, Some((revision.0, value)), revision_max)
            }
            (Input::Put { value, .. }, _) => (last + 1..=revision_max)
                .any(|revision| some_order(&rest, revision, Some((revision, value)), revision_max)),
            (Input::Delete { .. }, _) => some_order(&rest, last, None, revision_max),
            (Input::Get, _) => false,
        };
        if works {
            return true;
        }
    }
    false
}

fn brute_force(history: &[Operation]) -> bool {
    let says_something = |operation: &&Operation| {
        operation.output != Output::Refused
            && !(operation.input == Input::Get && operation.output == Output::Unknown)
    };
    let said: Vec<&Operation> = history.iter().filter(says_something).collect();
    let mentioned = history
        .iter()
        .filter_map(|operation| operation.revision())
        .map(|revision| revision.0)
        .max()
        .unwrap_or(0);
    some_order(&said, 0, None, mentioned + said.len() as u64)
}

#[test]
fn search_and_brute_force_agree_on_small_histories() {
    let (mut right, mut wrong, mut with_unknown) = (0, 0, 0);
    for seed in 0..12_000 {
        let mut rng = Rng::new(seed);
        let load = Load {
            operations: 3 + rng.below(5),
            clients: 2 + rng.below(3),
            unknown_percent: [0, 15, 40][seed as usize % 3],
            values: if rng.percent(30) { 2 } else { 1000 },
        };
        let mut history = reference::history(&mut rng, load);
        for _ in 0..rng.below(3) {
            reference::mutate(&mut rng, &mut history);
        }
        let expected = brute_force(&history);
        let verdict = check(&history);
        match &verdict {
            Verdict::Linearizable(_) => right += 1,
            Verdict::Violation(violation) => {
                wrong += 1;
                // What is shown fails by itself, and wherever the unknown writes stand.
                let others = history.iter().filter(|operation| !violation.part.contains(operation));
                let unknown = others.filter(|operation| {
                    operation.output == Output::Unknown && operation.input != Input::Get
                });
                let unknown = unknown.map(|operation| Operation { called: 0, ..operation.clone() });
                let shown: Vec<_> = violation.part.iter().cloned().chain(unknown).collect();
                assert!(
                    !brute_force(&violation.part) && !brute_force(&shown),
                    "seed {seed}: {shown:#?}\n{verdict}"
                );
            }
            Verdict::Undecided(_) => panic!("seed {seed}: {verdict}"),
        }
        with_unknown +=
            u64::from(history.iter().any(|operation| operation.output == Output::Unknown));
        assert_eq!(verdict.is_linearizable(), expected, "seed {seed}: {verdict}\n{history:#?}");
    }
    println!("{right} right, {wrong} wrong, {with_unknown} with unknown outcomes");
    assert!(
        right > 3_000 && wrong > 3_000 && with_unknown > 4_000,
        "{right} right, {wrong} wrong, {with_unknown} unknown"
    );
}
