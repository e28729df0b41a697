//! Histories from a register that is right by construction, under a random schedule; and one answer changed.

use super::super::{Operation, Verdict, check};
use super::{Input, Output};
use crate::dice::Dice;
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
pub(super) fn history(dice: &mut Dice, load: Load) -> Vec<Operation> {
    let mut history: Vec<Operation> = Vec::new();
    let mut events: BTreeMap<(u64, u64), (u64, Moment)> = BTreeMap::new();
    let mut sequence = 0;
    let mut schedule = |events: &mut BTreeMap<_, _>, at: u64, client: u64, moment: Moment| {
        sequence += 1;
        events.insert((at, sequence), (client, moment));
    };
    for client in 0..load.clients {
        schedule(&mut events, 1 + dice.below(10), client, Moment::Call);
    }
    let (mut last, mut held): (u64, Option<(u64, Bytes)>) = (0, None);
    while let Some(((now, _), (client, moment))) = events.pop_first() {
        match moment {
            Moment::Call if history.len() as u64 == load.operations => {}
            Moment::Call => {
                let n = history.len();
                let input = input(dice, load, n, last);
                let key = Bytes::from_static(b"k");
                let (unknown, effective) = (dice.percent(load.unknown_percent), dice.percent(50));
                let took = 2 + dice.below(18);
                let output = if unknown { Output::Unknown } else { Output::Refused };
                let returned = (!unknown || dice.percent(50)).then_some(now + took);
                history.push(Operation { client, key, called: now, returned, input, output });
                if unknown && effective {
                    // Some take effect long after everybody has forgotten them.
                    let late = if dice.percent(30) { dice.below(1_000) } else { dice.below(took) };
                    schedule(&mut events, now + late, client, Moment::Effect(n));
                } else if !unknown && !dice.percent(3) {
                    schedule(&mut events, now + dice.below(took), client, Moment::Effect(n));
                }
                schedule(&mut events, now + took, client, Moment::Return);
            }
            Moment::Effect(n) => {
                let output = effect(&history[n].input, &mut last, &mut held, 1 + dice.below(2));
                if history[n].output == Output::Refused {
                    history[n].output = output;
                }
            }
            Moment::Return => schedule(&mut events, now + 1 + dice.below(4), client, Moment::Call),
        }
    }
    history
}

/// Something to ask.
fn input(dice: &mut Dice, load: Load, n: usize, last: u64) -> Input {
    let condition = match dice.below(10) {
        0..5 => Condition::Always,
        5 => Condition::Absent,
        6 => Condition::Present,
        _ => Condition::At(Revision(last.saturating_sub(dice.below(3)))),
    };
    match dice.below(10) {
        0..4 => Input::Get,
        4..9 => Input::Put { value: format!("v{}", n as u64 % load.values).into(), condition },
        _ => Input::Delete { condition },
    }
}

/// Carries out what was asked, and says what is answered. `step` is how much the revision grows.
fn effect(input: &Input, last: &mut u64, held: &mut Option<(u64, Bytes)>, step: u64) -> Output {
    let current = held.as_ref().map(|(revision, _)| Revision(*revision));
    match input {
        Input::Get => Output::Read(held.clone().map(|(revision, value)| (Revision(revision), value))),
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
pub(super) fn mutate(dice: &mut Dice, history: &mut [Operation]) {
    let values: Vec<(Revision, Bytes)> = history
        .iter()
        .filter_map(|operation| match (&operation.input, &operation.output) {
            (Input::Put { value, .. }, Output::Written { revision }) => Some((*revision, value.clone())),
            _ => None,
        })
        .collect();
    let n = dice.below(history.len() as u64) as usize;
    let near = |dice: &mut Dice, revision: Revision| Revision((revision.0 + dice.below(4)).saturating_sub(2));
    let chosen = &mut history[n];
    chosen.output = match &chosen.output {
        Output::Read(_) if dice.percent(60) => Output::Read(dice.choose(&values).cloned()),
        Output::Read(Some((revision, value))) if dice.percent(60) => Output::Read(Some((near(dice, *revision), value.clone()))),
        Output::Read(_) => Output::Read(None),
        Output::Written { revision } if dice.percent(60) => Output::Written { revision: near(dice, *revision) },
        Output::Written { revision } => Output::ConditionFailed { current: Some(*revision) },
        Output::Deleted => Output::ConditionFailed { current: values.last().map(|(revision, _)| *revision) },
        Output::ConditionFailed { current: Some(current) } => Output::ConditionFailed { current: Some(near(dice, *current)) },
        Output::ConditionFailed { current: None } => Output::ConditionFailed { current: Some(Revision(1)) },
        Output::Refused | Output::Unknown => match chosen.input {
            Input::Get => Output::Read(dice.choose(&values).cloned()),
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
        let history = history(&mut Dice::new(seed), BUSY);
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
        let mut dice = Dice::new(seed);
        let load = Load {
            operations: 50 + dice.below(500),
            clients: 1 + dice.below(20),
            unknown_percent: dice.below(25),
            values: if dice.percent(20) { 5 } else { u64::MAX },
        };
        let verdict = check(&history(&mut dice, load));
        assert!(verdict.is_linearizable(), "seed {seed}: {verdict}");
    }
}

#[test]
fn a_changed_revision_in_a_long_history_is_found_and_cut_down() {
    let mut largest = 0;
    for seed in 0..60 {
        let mut dice = Dice::new(seed);
        let mut history = history(&mut dice, BUSY);
        // A read late in the history shows what an early one showed: whatever the schedule, that is long overwritten.
        let reads: Vec<usize> = (0..history.len()).filter(|n| matches!(history[*n].output, Output::Read(Some(_)))).collect();
        let (early, late) = (reads[reads.len() / 4], reads[reads.len() * 3 / 4]);
        history[late].output = history[early].output.clone();
        let Verdict::Violation(violation) = check(&history) else { panic!("seed {seed}: a stale read was accepted") };
        largest = largest.max(violation.part.len());
        assert!(violation.part.len() <= 3, "seed {seed}: {violation}");
        assert!(violation.part.contains(&history[late]), "seed {seed}: {violation}");
        assert!(!check(&violation.part).is_linearizable(), "seed {seed}: the part alone is fine: {violation}");
    }
    println!("at most {largest} operations shown");
}
