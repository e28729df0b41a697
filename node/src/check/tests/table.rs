//! Histories made by hand. Each wrong one says how many operations are needed to show it, and what
//! the sentence must say.

use super::super::{Operation, Scanned, Verdict, check, check_key_within};
use super::{Input, Output, at, failed, operation as op, put, read, written};
use bytes::Bytes;
use flotilla_router::Condition::{Absent, Always, Present};
use flotilla_router::{KeyRange, Revision};

const GET: Input = Input::Get;
const GONE: Output = Output::Read(None);
const DELETED: Output = Output::Deleted;
const UNKNOWN: Output = Output::Unknown;
const REFUSED: Output = Output::Refused;

fn delete(condition: flotilla_router::Condition) -> Input {
    Input::Delete { condition }
}

/// The operations as clients 1, 2, 3, …
fn of_clients(operations: Vec<Operation>) -> Vec<Operation> {
    operations
        .into_iter()
        .zip(1..)
        .map(|(operation, client)| Operation { client, ..operation })
        .collect()
}

#[test]
fn right_histories_are_accepted() {
    let table: Vec<(&str, Vec<Operation>)> = vec![
        ("nothing happened", vec![]),
        ("absent at first", vec![op(1, 2, GET, GONE)]),
        (
            "a read during a write sees either",
            vec![
                op(1, 9, put("a", Always), written(4)),
                op(2, 3, GET, GONE),
                op(4, 5, GET, read(4, "a")),
            ],
        ),
        (
            "at equal times nobody was first",
            vec![op(1, 5, put("a", Always), written(1)), op(5, 6, GET, GONE)],
        ),
        (
            "revisions may skip",
            vec![op(1, 2, put("a", Always), written(7)), op(3, 4, put("b", Always), written(900))],
        ),
        (
            "concurrent writes in the order of their revisions",
            vec![
                op(1, 9, put("a", Always), written(5)),
                op(1, 9, put("b", Always), written(3)),
                op(10, 11, GET, read(5, "a")),
            ],
        ),
        (
            "an unknown write that never was",
            vec![op(1, 2, put("a", Always), UNKNOWN), op(3, 4, GET, GONE)],
        ),
        (
            "an unknown write that appears late",
            vec![
                op(1, 2, put("a", Always), UNKNOWN),
                op(3, 4, put("b", Always), written(1)),
                op(5, 6, GET, read(1, "b")),
                op(7, 8, GET, read(2, "a")),
            ],
        ),
        (
            "an unknown write that was overwritten unseen",
            vec![
                op(1, 2, put("a", Always), UNKNOWN),
                op(3, 4, put("b", Always), written(5)),
                op(5, 6, GET, read(5, "b")),
            ],
        ),
        (
            "an unknown write whose revision alone was told",
            vec![
                op(1, 2, put("a", Always), UNKNOWN),
                op(3, 4, put("b", Absent), failed(Some(6))),
                op(5, 6, put("c", at(6)), written(7)),
            ],
        ),
        (
            "an unknown write that a condition needed and nobody saw",
            vec![op(1, 2, put("a", Always), UNKNOWN), op(3, 4, put("b", Present), written(2))],
        ),
        (
            "a chain of unknown writes",
            vec![
                op(1, 2, put("a", Absent), UNKNOWN),
                op(1, 2, put("b", at(3)), UNKNOWN),
                op(1, 2, delete(Present), UNKNOWN),
                op(1, 2, put("c", Absent), UNKNOWN),
                op(3, 4, GET, read(5, "c")),
                op(5, 6, GET, read(5, "c")),
            ],
        ),
        (
            "two unknown writes in a row, and the revision of the second is told",
            vec![
                op(1, 2, put("a", Absent), UNKNOWN),
                op(1, 2, put("b", Present), UNKNOWN),
                op(3, 4, put("c", Absent), failed(Some(2))),
                op(5, 6, GET, read(2, "b")),
            ],
        ),
        (
            "two unknown writes in a row, and the revisions of both are told",
            vec![
                op(1, 2, put("a", Absent), UNKNOWN),
                op(1, 2, put("b", Present), UNKNOWN),
                op(3, 4, put("c", Absent), failed(Some(1))),
                op(5, 6, GET, read(2, "b")),
            ],
        ),
        (
            "an unknown delete",
            vec![
                op(1, 2, put("a", Always), written(1)),
                op(3, 4, delete(Always), UNKNOWN),
                op(5, 6, GET, read(1, "a")),
                op(7, 8, GET, GONE),
            ],
        ),
        (
            "deletes find nothing, or something",
            vec![
                op(1, 2, delete(Always), DELETED),
                op(3, 4, put("a", Absent), written(1)),
                op(5, 9, delete(Always), DELETED),
                op(5, 9, delete(Always), DELETED),
                op(6, 8, put("b", Absent), written(3)),
                op(10, 11, GET, GONE),
            ],
        ),
        (
            "a delete that found nothing then may be needed later",
            vec![
                op(1, 9, delete(Always), DELETED),
                op(2, 3, put("a", Always), written(1)),
                op(10, 11, GET, GONE),
            ],
        ),
        (
            "conditions and their failures",
            vec![
                op(1, 2, put("a", Absent), written(1)),
                op(3, 4, put("b", Absent), failed(Some(1))),
                op(5, 6, put("b", at(1)), written(2)),
                op(7, 8, put("c", at(1)), failed(Some(2))),
                op(9, 10, delete(at(1)), failed(Some(2))),
                op(11, 12, delete(at(2)), DELETED),
                op(13, 14, put("c", Present), failed(None)),
                op(15, 16, put("c", at(2)), failed(None)),
            ],
        ),
        (
            "refused and unanswered things say nothing",
            vec![
                op(1, 2, put("a", Always), REFUSED),
                op(3, 4, GET, REFUSED),
                op(3, 4, GET, UNKNOWN),
                op(5, 6, GET, GONE),
            ],
        ),
        (
            "one value, written twice",
            vec![
                op(1, 2, put("a", Always), written(1)),
                op(3, 4, put("a", Always), UNKNOWN),
                op(5, 6, GET, read(4, "a")),
            ],
        ),
    ];
    for (name, history) in table {
        let verdict = check(&of_clients(history));
        assert!(verdict.is_linearizable(), "{name}: {verdict}");
    }
}

#[test]
fn wrong_histories_are_found_cut_down_and_explained() {
    let table: Vec<(&str, Vec<Operation>, usize, &str)> = vec![
        (
            "a stale read",
            vec![
                op(1, 2, put("a", Always), written(1)),
                op(3, 4, put("b", Always), written(2)),
                op(5, 6, GET, read(1, "a")),
            ],
            2,
            "Revision 2 was answered to client 2 before client 3 asked, and client 3 was shown the \
             older revision 1.",
        ),
        (
            "a stale read after a read",
            vec![
                op(1, 20, put("a", Always), written(1)),
                op(1, 20, put("b", Always), written(2)),
                op(5, 6, GET, read(2, "b")),
                op(7, 8, GET, read(1, "a")),
            ],
            2,
            "Revision 2 was answered to client 3 before client 4 asked",
        ),
        (
            "a lost write",
            vec![op(1, 2, put("a", Always), written(1)), op(3, 4, GET, GONE)],
            2,
            "of these 2 fit one order",
        ),
        (
            "a lost update: the same revision for two",
            vec![op(1, 5, put("a", Always), written(1)), op(1, 5, put("b", Always), written(1))],
            2,
            "Revision 1 is \"a\" to client 1 and \"b\" to client 2.",
        ),
        (
            "a revision that goes back",
            vec![op(1, 2, put("a", Always), written(5)), op(3, 4, put("b", Always), written(4))],
            2,
            "the write of client 2 was given revision 4",
        ),
        (
            "a revision that goes back after a deletion",
            vec![
                op(1, 2, put("a", Always), written(5)),
                op(3, 4, delete(Always), DELETED),
                op(5, 6, put("b", Absent), written(5)),
            ],
            2,
            "Revision 5 is",
        ),
        (
            "a value that nobody wrote",
            vec![op(1, 2, put("a", Always), written(1)), op(1, 2, GET, read(1, "x"))],
            1,
            "nobody ever asked",
        ),
        (
            "a value at another revision",
            vec![op(1, 2, put("a", Always), written(1)), op(3, 4, GET, read(2, "a"))],
            1,
            "it was written at revision 1",
        ),
        (
            "a value from the future",
            vec![op(5, 6, put("a", Always), written(1)), op(1, 2, GET, read(1, "a"))],
            2,
            "before anybody asked",
        ),
        (
            "a refused write that shows up",
            vec![op(1, 2, put("a", Always), REFUSED), op(3, 4, GET, read(1, "a"))],
            1,
            "was refused",
        ),
        (
            "a write whose condition failed shows up",
            vec![
                op(1, 2, put("a", Always), written(1)),
                op(3, 4, put("b", Absent), failed(Some(1))),
                op(5, 6, GET, read(2, "b")),
            ],
            1,
            "its condition did not hold",
        ),
        (
            "two conditional writes from one revision",
            vec![
                op(1, 2, put("a", Always), written(1)),
                op(3, 9, put("b", at(1)), written(2)),
                op(3, 9, put("c", at(1)), written(3)),
            ],
            2,
            "The writes of clients 2 and 3 both took effect on the condition that the key is at \
             revision 1.",
        ),
        (
            "two creations",
            vec![op(1, 9, put("a", Absent), written(1)), op(1, 9, put("b", Absent), written(2))],
            2,
            "of these 2 fit one order",
        ),
        (
            "an unknown write seen before it was asked for",
            vec![op(5, 6, put("a", Always), UNKNOWN), op(1, 2, GET, read(1, "a"))],
            2,
            "before anybody asked",
        ),
        (
            "an unknown write that took effect twice",
            vec![
                op(1, 2, put("a", Always), UNKNOWN),
                op(3, 4, GET, read(1, "a")),
                op(5, 6, put("b", Always), written(2)),
                op(7, 8, GET, read(3, "a")),
            ],
            2,
            "\"a\" was shown at revision 1 and at revision 3, so it was written more than once.",
        ),
        (
            "an unknown write that came and went",
            vec![
                op(1, 2, put("a", Always), UNKNOWN),
                op(3, 4, GET, read(1, "a")),
                op(5, 6, GET, GONE),
            ],
            2,
            "of these 2 fit one order",
        ),
        (
            "a deleted key that is still there",
            vec![
                op(1, 2, put("a", Always), written(1)),
                op(3, 4, delete(Always), DELETED),
                op(5, 6, GET, read(1, "a")),
            ],
            3,
            "At best 2 of these 3 fit one order",
        ),
        (
            "a conditional delete of nothing",
            vec![op(1, 2, delete(Present), DELETED)],
            1,
            "is impossible",
        ),
        (
            "a failure with a wrong revision",
            vec![
                op(1, 2, put("a", Always), written(1)),
                op(3, 4, put("b", at(7)), failed(Some(3))),
            ],
            1,
            "is impossible",
        ),
        (
            "a failure that names no key where there is one",
            vec![op(1, 2, put("a", Always), written(1)), op(3, 4, put("b", at(7)), failed(None))],
            2,
            "of these 2 fit one order",
        ),
        (
            "a failure of a condition that held",
            vec![
                op(1, 2, put("a", Always), written(1)),
                op(3, 4, put("b", at(1)), failed(Some(1))),
            ],
            1,
            "an answer that meets the condition",
        ),
        (
            "a failure of no condition",
            vec![op(1, 2, put("b", Always), failed(None))],
            1,
            "meets the condition",
        ),
        (
            "an answer to another question",
            vec![op(1, 2, GET, DELETED)],
            1,
            "no answer to what client 1 asked",
        ),
        (
            "a missing key that was never deleted, between two reads",
            vec![
                op(1, 2, put("a", Always), written(1)),
                op(3, 4, GET, read(1, "a")),
                op(5, 6, GET, GONE),
                op(7, 8, GET, read(1, "a")),
            ],
            2,
            "of these 2 fit one order",
        ),
    ];
    for (name, history, part, sentence) in table {
        let history = of_clients(history);
        let Verdict::Violation(violation) = check(&history) else { panic!("{name}: accepted") };
        println!("--- {name}\n{violation}\n");
        assert_eq!(violation.part.len(), part, "{name}: {violation}");
        assert!(violation.why.contains(sentence), "{name}: {violation}");
        assert_eq!(violation.operations as usize, history.len());
        let again = violation.part.iter().chain(&violation.context).cloned().collect::<Vec<_>>();
        assert!(
            !check(&again).is_linearizable(),
            "{name}: what is shown is fine by itself: {violation}"
        );
    }
}

#[test]
fn a_violation_is_a_table_that_people_can_read() {
    let history = vec![
        Operation { client: 3, ..op(120, 131, put("b", Always), written(9)) },
        Operation { client: 12, ..op(100, 101, put("a", Absent), written(7)) },
        Operation { client: 5, ..op(140, 142, GET, read(7, "a")) },
    ];
    let shown = check(&history).to_string();
    let expected = "\
not linearizable: key \"k\": 2 of 3 operations can't all be true
  client  called  returned  asked              answered
  12      100     101       put \"a\" if absent  written, revision 7 (for context)
  3       120     131       put \"b\"            written, revision 9
  5       140     142       get                \"a\", revision 7
Revision 9 was answered to client 3 before client 5 asked, and client 5 was shown the older \
revision 7.";
    assert_eq!(shown, expected, "\n{shown}");
}

#[test]
fn keys_are_judged_apart_and_counted_together() {
    let on = |key: &'static str, operation: Operation| Operation { key: key.into(), ..operation };
    let mut history = vec![
        on("a", op(1, 2, put("x", Always), written(9))),
        on("b", op(3, 4, put("x", Always), written(2))),
        on("a", op(5, 6, GET, read(9, "x"))),
        on("b", op(5, 6, GET, read(2, "x"))),
    ];
    let Verdict::Linearizable(summary) = check(&history) else { panic!("{}", check(&history)) };
    assert_eq!((summary.keys, summary.operations), (2, 4));
    history.push(on("b", op(7, 8, GET, read(9, "x"))));
    let Verdict::Violation(violation) = check(&history) else { panic!("accepted") };
    assert_eq!(&violation.key[..], b"b");
}

#[test]
fn scans_are_reads_of_what_they_show_and_of_what_they_leave_out() {
    let keys: Vec<Bytes> =
        ["a", "b", "c", "d"].iter().map(|key| Bytes::from_static(key.as_bytes())).collect();
    let scanned = Scanned {
        client: 7,
        range: KeyRange::new("b", Some("d".into())),
        called: 3,
        returned: 5,
        items: vec![("b".into(), Revision(1), "x".into())],
    };
    let reads = scanned.reads(&keys);
    let get = |key: &'static str, output| Operation {
        client: 7,
        key: key.into(),
        ..op(3, 5, GET, output)
    };
    assert_eq!(reads, vec![get("b", read(1, "x")), get("c", GONE)]);
    let write =
        |key: &'static str| Operation { key: key.into(), ..op(1, 2, put("x", Always), written(1)) };
    let with = |more: Vec<Operation>| check(&reads.iter().cloned().chain(more).collect::<Vec<_>>());
    assert!(with(vec![write("b")]).is_linearizable());
    assert!(
        matches!(with(vec![write("b"), write("c")]), Verdict::Violation(v) if &v.key[..] == b"c")
    );
    assert!(matches!(with(vec![]), Verdict::Violation(v) if &v.key[..] == b"b"));
}

#[test]
fn a_search_that_is_cut_short_says_so() {
    let history: Vec<_> =
        (0..20).map(|n| op(1, 100, put(&format!("v{n}"), Always), written(20 - n))).collect();
    let operations: Vec<_> = history.iter().collect();
    assert!(check_key_within(&operations, 1_000).is_linearizable());
    let verdict = check_key_within(&operations, 3);
    assert!(matches!(&verdict, Verdict::Undecided(undecided) if undecided.steps == 3), "{verdict}");
    assert!(verdict.to_string().starts_with("undecided: key \"k\""), "{verdict}");
}
