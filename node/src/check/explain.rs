//! The sentence that says why no order works.
//!
//! What most bugs look like has a sentence of its own, tried from the plainest on: an answer that
//! contradicts itself, a value that nobody wrote or that was refused, one revision with two values,
//! one put at two revisions, two conditional writes from one revision, time that goes backwards.
//! For everything else there is the end of the longest order that works, and what then does not
//! fit.

use super::history::{Input, Operation, Output};
use super::linear::Stuck;
use super::register::Register;
use super::shrink::Part;
use super::verdict::{Violation, answered, asked, quoted};
use bytes::Bytes;
use flotilla_router::{Condition, Revision};

/// What a part of a key's history that fails looks like to people.
pub(super) fn violation(operations: &[&Operation], part: &Part) -> Violation {
    let in_order = |mut chosen: Vec<Operation>| {
        chosen.sort_by_key(|operation| operation.called);
        chosen
    };
    let kept: Vec<&Operation> = part.kept.iter().map(|n| operations[*n]).collect();
    let others = || {
        operations
            .iter()
            .enumerate()
            .filter(|(n, _)| part.kept.binary_search(n).is_err())
            .map(|(_, other)| *other)
    };
    let context = others().filter(|other| wrote_what_is_shown(other, &kept)).cloned().collect();
    Violation {
        key: operations.first().map(|operation| operation.key.clone()).unwrap_or_default(),
        operations: operations.len() as u64,
        why: why(&kept, operations, &part.stuck),
        part: in_order(kept.into_iter().cloned().collect()),
        context: in_order(context),
    }
}

/// The value that an operation reads or writes, with the revision where it is known.
fn pair(operation: &Operation) -> Option<(Option<Revision>, &Bytes)> {
    match (&operation.input, &operation.output) {
        (Input::Get, Output::Read(Some((revision, value)))) => Some((Some(*revision), value)),
        (Input::Put { value, .. }, Output::Written { revision }) => Some((Some(*revision), value)),
        (Input::Put { value, .. }, Output::Unknown | Output::Refused) => Some((None, value)),
        _ => None,
    }
}

/// Whether `write` is a put whose value one of these shows, or whose revision.
fn wrote_what_is_shown(write: &Operation, shown: &[&Operation]) -> bool {
    let (Input::Put { .. }, Some((revision, value))) = (&write.input, pair(write)) else {
        return false;
    };
    shown.iter().any(|one| {
        let reads_it = matches!(&one.output, Output::Read(Some((_, read))) if read == value);
        reads_it
            || (revision.is_some() && (one.revision() == revision || expected(one) == revision))
    })
}

/// The revision that the operation's condition asks for.
fn expected(operation: &Operation) -> Option<Revision> {
    match &operation.input {
        Input::Put { condition: Condition::At(revision), .. }
        | Input::Delete { condition: Condition::At(revision) } => Some(*revision),
        _ => None,
    }
}

/// Whether it is certain that the operation took effect.
fn took_effect(operation: &Operation) -> bool {
    matches!(operation.output, Output::Written { .. } | Output::Deleted)
}

fn why(kept: &[&Operation], all: &[&Operation], stuck: &Stuck) -> String {
    let one = kept.iter().find_map(|operation| about_one(operation, all));
    let pairs = || {
        kept.iter()
            .flat_map(|a| kept.iter().map(move |b| (*a, *b)))
            .filter(|(a, b)| !std::ptr::eq(*a, *b))
    };
    one.or_else(|| pairs().find_map(|(a, b)| about_two(a, b)))
        .or_else(|| pairs().find_map(|(a, b)| about_time(a, b)))
        .unwrap_or_else(|| about_order(kept.len(), all[stuck.step], stuck))
}

/// What is wrong with an answer alone.
fn about_one(operation: &Operation, all: &[&Operation]) -> Option<String> {
    let client = operation.client;
    if let (
        Input::Put { condition, .. } | Input::Delete { condition },
        Output::ConditionFailed { current },
    ) = (&operation.input, &operation.output)
        && condition.holds(*current)
    {
        return Some(format!(
            "Client {client} was told that its condition failed, with an answer that meets the \
             condition."
        ));
    }
    let Output::Read(Some((revision, value))) = &operation.output else { return None };
    let puts = || {
        all.iter()
            .filter(|other| matches!(&other.input, Input::Put { value: put, .. } if put == value))
    };
    let none = |why: &str| Some(format!("Client {client} was shown {}, {why}.", quoted(value)));
    if puts().next().is_none() {
        return none("which nobody ever asked to write");
    }
    if puts().all(|put| put.output == Output::Refused) {
        return none("which was refused, and so must never take effect");
    }
    if puts().all(|put| matches!(put.output, Output::Refused | Output::ConditionFailed { .. })) {
        return none("which was not written, as its condition did not hold");
    }
    if puts().all(|put| operation.returned.is_some_and(|returned| put.called > returned)) {
        return none("before anybody asked to write it");
    }
    let written: Vec<_> = puts().filter(|put| took_effect(put)).collect();
    if written.len() == puts().count()
        && written.iter().all(|put| put.revision() != Some(*revision))
    {
        let known: Vec<String> =
            written.iter().filter_map(|put| Some(put.revision()?.to_string())).collect();
        return none(&format!(
            "at revision {revision}, and it was written at revision {}",
            known.join(" or ")
        ));
    }
    None
}

/// What two answers say of one revision or one value.
fn about_two(a: &Operation, b: &Operation) -> Option<String> {
    let (one, other) = (a.client, b.client);
    if let (Some((Some(at), value)), Some((Some(also_at), also))) = (pair(a), pair(b)) {
        if at == also_at && value != also {
            return Some(format!(
                "Revision {at} is {} to client {one} and {} to client {other}.",
                quoted(value),
                quoted(also)
            ));
        }
        if at == also_at && matches!((&a.input, &b.input), (Input::Put { .. }, Input::Put { .. })) {
            return Some(format!(
                "Clients {one} and {other} were both told that they wrote revision {at}."
            ));
        }
        if at < also_at && value == also && matches!((&a.input, &b.input), (Input::Get, Input::Get))
        {
            return Some(format!(
                "{} was shown at revision {at} and at revision {also_at}, so it was written more \
                 than once.",
                quoted(value)
            ));
        }
    }
    let from = expected(a)
        .filter(|from| took_effect(a) && took_effect(b) && expected(b) == Some(*from))?;
    Some(format!(
        "The writes of clients {one} and {other} both took effect on the condition that the key is \
         at revision {from}."
    ))
}

/// Time that goes backwards: `a` was answered before `b` was asked.
fn about_time(a: &Operation, b: &Operation) -> Option<String> {
    let (earlier, later) = (a.client, b.client);
    a.returned.filter(|returned| *returned < b.called)?;
    let is_write = |operation: &Operation| matches!(operation.output, Output::Written { .. });
    match (a.revision()?, b.revision()?) {
        (newer, older) if newer > older || (newer == older && is_write(b)) => {
            Some(if is_write(b) {
                format!(
                    "Revision {newer} was answered to client {earlier} before client {later} \
                     asked, and the write of client {later} was given revision {older}."
                )
            } else {
                format!(
                    "Revision {newer} was answered to client {earlier} before client {later} \
                     asked, and client {later} was shown the older revision {older}."
                )
            })
        }
        _ => None,
    }
}

/// The end of the longest order that works.
fn about_order(count: usize, next: &Operation, stuck: &Stuck) -> String {
    let Register { floor, held } = stuck.register;
    let state = match held {
        None if floor == 0 => "the key absent".to_owned(),
        None => format!("the key absent, after revision {floor}"),
        Some(_) => format!("the key at revision {floor}"),
    };
    let (client, asked, answered) = (next.client, asked(&next.input), answered(&next.output));
    let answer = format!("the answer to client {client} ({asked}: {answered})");
    if count <= 1 {
        return format!("Whatever the other writes of the key did, {answer} is impossible.");
    }
    format!(
        "At best {} of these {count} fit one order, which leaves {state}; {answer} does not fit \
         there, wherever the other writes of the key stand.",
        stuck.done
    )
}
