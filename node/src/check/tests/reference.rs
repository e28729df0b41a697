//! Histories from a register that is right by construction, under a random schedule; and one answer
//! changed.

use super::super::{Operation, Verdict, check};
use super::{Input, Output};
use crate::rng::Rng;
use bytes::Bytes;
use flotilla_router::{Condition, Revision};
use std::collections::BTreeMap;

/// What a history is made of.
#[derive(Clone, Copy)]
pub(super) struct Load {
    /// How many operations.
    pub(super) operations: u64,
    /// How many are under way at a time.
    pub(super) clients: u64,
    /// How many of a hundred have an unknown outcome. Half of those take effect, sooner or later.
    pub(super) unknown_percent: u64,
    /// How many different values there are.
    pub(super) values: u64,
}

enum Moment {
    Call,
    Effect(usize),
    Return,
}

/// A history of one key.
pub(super) fn history(rng: &mut Rng, load: Load) -> Vec<Operation> {
    let mut history: Vec<Operation> = Vec::new();
    let mut events: BTreeMap<(u64, u64), (u64, Moment)> = BTreeMap::new();
    let mut sequence = 0;
    let mut schedule = |events: &mut BTreeMap<_, _>, at: u64, client: u64, moment: Moment| {
        sequence += 1;
        events.insert((at, sequence), (client, moment));
    };
    for client in 0..load.clients {
        schedule(&mut events, 1 + rng.below(10), client, Moment::Call);
    }
    let (mut last, mut held): (u64, Option<(u64, Bytes)>) = (0, None);
    while let Some(((now, _), (client, moment))) = events.pop_first() {
        match moment {
            Moment::Call if history.len() as u64 == load.operations => {}
            Moment::Call => {
                let n = history.len();
                let input = input(rng, load, n, last);
                let key = Bytes::from_static(b"k");
                let (unknown, effective) = (rng.percent(load.unknown_percent), rng.percent(50));
                let took = 2 + rng.below(18);
                let output = if unknown { Output::Unknown } else { Output::Refused };
                let returned = (!unknown || rng.percent(50)).then_some(now + took);
                history.push(Operation { client, key, called: now, returned, input, output });
                if unknown && effective {
                    // Some take effect long after everybody has forgotten them.
                    let late = if rng.percent(30) { rng.below(1_000) } else { rng.below(took) };
                    schedule(&mut events, now + late, client, Moment::Effect(n));
                } else if !unknown && !rng.percent(3) {
                    schedule(&mut events, now + rng.below(took), client, Moment::Effect(n));
                }
                schedule(&mut events, now + took, client, Moment::Return);
            }
            Moment::Effect(n) => {
                let output = effect(&history[n].input, &mut last, &mut held, 1 + rng.below(2));
                if history[n].output == Output::Refused {
                    history[n].output = output;
                }
            }
            Moment::Return => schedule(&mut events, now + 1 + rng.below(4), client, Moment::Call),
        }
    }
    history
}

/// Something to ask.
fn input(rng: &mut Rng, load: Load, n: usize, last: u64) -> Input {
    let condition = match rng.below(10) {
        0..5 => Condition::Always,
        5 => Condition::Absent,
        6 => Condition::Present,
        _ => Condition::At(Revision(last.saturating_sub(rng.below(3)))),
    };
    match rng.below(10) {
        0..4 => Input::Get,
        4..9 => Input::Put { value: format!("v{}", n as u64 % load.values).into(), condition },
        _ => Input::Delete { condition },
    }
}

/// Carries out what was asked, and says what is answered. `step` is how much the revision grows.
fn effect(input: &Input, last: &mut u64, held: &mut Option<(u64, Bytes)>, step: u64) -> Output {
    let current = held.as_ref().map(|(revision, _)| Revision(*revision));
    match input {
        Input::Get => {
            Output::Read(held.clone().map(|(revision, value)| (Revision(revision), value)))
        }
        Input::Put { condition, .. } | Input::Delete { condition } if !condition.holds(current) => {
            Output::ConditionFailed { current }
        }
        Input::Put { value, .. } => {
            *last += step;
            *held = Some((*last, value.clone()));
            Output::Written { revision: Revision(*last) }
        }
        Input::Delete { .. } => {
            *held = None;
            Output::Deleted
        }
    }
}

/// Changes one answer (or the time of one); the history may still be right.
pub(super) fn mutate(rng: &mut Rng, history: &mut [Operation]) {
    let values: Vec<(Revision, Bytes)> = history
        .iter()
        .filter_map(|operation| match (&operation.input, &operation.output) {
            (Input::Put { value, .. }, Output::Written { revision }) => {
                Some((*revision, value.clone()))
            }
            _ => None,
        })
        .collect();
    let n = rng.below(history.len() as u64) as usize;
    let near =
        |rng: &mut Rng, revision: Revision| Revision((revision.0 + rng.below(4)).saturating_sub(2));
    let chosen = &mut history[n];
    chosen.output = match &chosen.output {
        Output::Read(_) if rng.percent(60) => Output::Read(rng.choose(&values).cloned()),
        Output::Read(Some((revision, value))) if rng.percent(60) => {
            Output::Read(Some((near(rng, *revision), value.clone())))
        }
        Output::Read(_) => Output::Read(None),
        Output::Written { revision } if rng.percent(60) => {
            Output::Written { revision: near(rng, *revision) }
        }
        Output::Written { revision } => Output::ConditionFailed { current: Some(*revision) },
        Output::Deleted => {
            Output::ConditionFailed { current: values.last().map(|(revision, _)| *revision) }
        }
        Output::ConditionFailed { current: Some(current) } => {
            Output::ConditionFailed { current: Some(near(rng, *current)) }
        }
        Output::ConditionFailed { current: None } => {
            Output::ConditionFailed { current: Some(Revision(1)) }
        }
        Output::Refused | Output::Unknown => match chosen.input {
            Input::Get => Output::Read(rng.choose(&values).cloned()),
            Input::Put { .. } => Output::Refused,
            Input::Delete { .. } => Output::Deleted,
        },
    };
}

/// A load as `flotilla check` makes it, on one key.
const BUSY: Load = Load { operations: 400, clients: 10, unknown_percent: 8, values: u64::MAX };

#[test]
fn right_histories_of_400_operations_are_accepted_in_few_steps() {
    let (mut most, mut all) = (0, 0);
    for seed in 0..300 {
        let history = history(&mut Rng::new(seed), BUSY);
        match check(&history) {
            Verdict::Linearizable(summary) => {
                assert_eq!((summary.keys, summary.operations), (1, 400));
                most = most.max(summary.steps);
                all += summary.steps;
            }
            other => panic!("seed {seed}: {other}"),
        }
    }
    println!("{} steps on average, {most} at most", all / 300);
    assert!(all / 300 < 1_000, "{} steps on average", all / 300);
    assert!(most < 20_000, "{most} steps for 400 operations");
}

#[test]
fn right_histories_are_accepted_however_busy_and_unsure() {
    for seed in 0..200 {
        let mut rng = Rng::new(seed);
        let load = Load {
            operations: 50 + rng.below(500),
            clients: 1 + rng.below(20),
            unknown_percent: rng.below(25),
            values: if rng.percent(20) { 5 } else { u64::MAX },
        };
        let verdict = check(&history(&mut rng, load));
        assert!(verdict.is_linearizable(), "seed {seed}: {verdict}");
    }
}

#[test]
fn a_changed_revision_in_a_long_history_is_found_and_cut_down() {
    let mut largest = 0;
    for seed in 0..60 {
        let mut rng = Rng::new(seed);
        let mut history = history(&mut rng, BUSY);
        // A read late in the history shows what an early one showed: whatever the schedule, that is
        // long overwritten.
        let reads: Vec<usize> = (0..history.len())
            .filter(|n| matches!(history[*n].output, Output::Read(Some(_))))
            .collect();
        let (early, late) = (reads[reads.len() / 4], reads[reads.len() * 3 / 4]);
        history[late].output = history[early].output.clone();
        let Verdict::Violation(violation) = check(&history) else {
            panic!("seed {seed}: a stale read was accepted")
        };
        largest = largest.max(violation.part.len());
        assert!(violation.part.len() <= 3, "seed {seed}: {violation}");
        assert!(violation.part.contains(&history[late]), "seed {seed}: {violation}");
        assert!(
            !check(&violation.part).is_linearizable(),
            "seed {seed}: the part alone is fine: {violation}"
        );
    }
    println!("at most {largest} operations shown");
}
