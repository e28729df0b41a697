//! The net is tested too: small histories, and what the oracle of these tests must say of each,
//! live and from its journal.
//!
//! One line is one fact about one of two registers of one shard:
//!
//! ```text
//! try   <register> <attempt> put|delete [<revision>]   about to be sent; on condition that the key is at that revision
//! ack   <register> <attempt> <revision>                acknowledged; of a deletion the revision is not told
//! not   <register> <attempt>                           certainly not applied
//! fail  <register> <attempt> <revision>                its condition did not hold, as the key was at that revision
//! saw   <register> <revision> <attempt>                a read showed the value of that attempt
//! gone  <register>                                     a read showed nothing
//! stale <register> <revision> <attempt>                a read showed what was so at any time before
//! ```

use flotilla_kit::{Registers, Totals};
use flotilla_node::check::{Input, Output};
use flotilla_router::{Condition, Revision};
use std::collections::BTreeMap;

/// Histories that may be.
const FINE: &[&str] = &[
    "try 0 1 put\nack 0 1 5\nsaw 0 5 1\nsaw 0 5 1",
    "gone 0\ntry 0 1 put\ngone 0\nsaw 0 7 1\nsaw 0 7 1",
    "try 0 1 put\nack 0 1 5\ntry 0 2 delete\nack 0 2 0\ngone 0\ntry 0 3 put\nack 0 3 9\nsaw 0 9 3",
    "try 0 1 put\nack 0 1 5\ntry 0 2 delete\nsaw 0 5 1\ngone 0\ngone 0",
    // An attempt that was given up may still come after a later one.
    "try 0 1 put\ntry 0 2 put\nack 0 2 5\nsaw 0 6 1\nsaw 0 6 1",
    "try 0 1 put\nack 0 1 5\ntry 0 2 put\ntry 0 3 put 5\nfail 0 3 6\nsaw 0 6 2",
    "try 0 1 put\nnot 0 1\ngone 0",
    "try 0 1 put\nack 0 1 5\ntry 1 1 put\nack 1 1 6\nsaw 0 5 1\nsaw 1 6 1",
    "try 0 1 put\nack 0 1 5\ntry 0 2 put\nack 0 2 7\ntry 0 3 put\nstale 0 5 1\nstale 0 7 2\n\
     stale 0 8 3",
];

/// Histories that may not, and a word of why.
const WRONG: &[(&str, &str)] = &[
    ("try 0 1 put\nack 0 1 5\ngone 0", "no such key"),
    ("try 0 1 put\nack 0 1 5\ntry 0 2 put\nack 0 2 6\nsaw 0 5 1", "older revision"),
    ("try 0 1 put\nack 0 1 5\ntry 0 2 put\nack 0 2 6\nsaw 0 6 1", "written at revision 5"),
    ("try 0 1 put\nack 0 1 5\ntry 0 2 put\nack 0 2 5", "revision 5"),
    ("try 0 1 put\nack 0 1 5\ntry 1 1 put\nack 1 1 5", "given out twice"),
    ("try 0 1 put\nack 0 1 5\ntry 0 2 delete\nack 0 2 0\nsaw 0 5 1", "not linearizable"),
    ("try 0 1 put\nack 0 1 5\ntry 0 2 delete\ngone 0\nsaw 0 5 1", "not linearizable"),
    ("try 0 1 put\nnot 0 1\nsaw 0 5 1", "refused"),
    ("saw 0 5 1", "nobody ever asked"),
    ("try 0 1 put\nack 0 1 5\ntry 0 2 put 5\nfail 0 2 5", "condition"),
    ("try 0 1 put\nack 0 1 5\ntry 0 2 put 5\nfail 0 2 6", "condition failed"),
    // One open deletion explains one disappearance.
    (
        "try 0 1 put\nack 0 1 5\ntry 0 2 delete\ngone 0\ntry 0 3 put\nack 0 3 8\ngone 0",
        "not linearizable",
    ),
    // An open put is applied once.
    ("try 0 1 put\nsaw 0 5 1\ntry 0 2 put\nack 0 2 6\nsaw 0 7 1", "more than once"),
    ("try 0 1 put\nack 0 1 5\ntry 0 2 put\nack 0 2 7\nstale 0 5 2", "written at revision 7"),
    ("try 0 1 put\nack 0 1 5\ntry 0 2 put\nack 0 2 7\ntry 0 3 put\nstale 0 7 3", "7"),
    ("try 0 1 put\nack 0 1 5\ntry 0 2 put\nack 0 2 7\nstale 0 8 2", "written at revision 7"),
    ("try 0 1 put\nack 0 1 5\nstale 0 9 4", "nobody ever asked"),
];

/// Plays a history; what the oracle says of it live, and what of its journal.
fn play(lines: &str) -> (Result<(), String>, Result<Totals, String>) {
    let folder = tempfile::tempdir().unwrap();
    let registers =
        Registers::of(&[(7, b"a/".to_vec())], 2, 0, Some(folder.path().join("journal")));
    let mut open = BTreeMap::new();
    for line in lines.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |i: usize| words.get(i).map(|word| word.parse::<u64>().unwrap_or_default());
        let register = &registers.all[number(1).unwrap() as usize];
        // What follows comes after what is before.
        std::thread::sleep(std::time::Duration::from_micros(10));
        let mut answer =
            |output| register.answered(open.remove(&(number(1), number(2))).unwrap(), output);
        match words[0] {
            "try" => {
                let condition = number(4)
                    .map_or(Condition::Always, |revision| Condition::At(Revision(revision)));
                let input = match words[3] {
                    "put" => Input::Put { value: words[2].to_owned().into(), condition },
                    _ => Input::Delete { condition },
                };
                open.insert((number(1), number(2)), register.asked(1, input));
            }
            "ack" if number(3) == Some(0) => answer(Output::Deleted),
            "ack" => answer(Output::Written { revision: Revision(number(3).unwrap()) }),
            "not" => answer(Output::Refused),
            "fail" => answer(Output::ConditionFailed { current: number(3).map(Revision) }),
            "saw" => {
                register.saw(1, register.now(), register.now(), number(2).zip(number(3)));
            }
            "stale" => {
                register.saw(1, 0, register.now(), number(2).zip(number(3)));
            }
            _ => {
                register.saw(1, register.now(), register.now(), None);
            }
        }
    }
    let verdict = registers.all.iter().try_for_each(|register| register.judge());
    (verdict, registers.judge_file())
}

#[test]
fn small_histories_are_judged_as_they_must_be() {
    for lines in FINE {
        let (live, from_file) = play(lines);
        live.and(from_file.map(drop)).unwrap_or_else(|why| panic!("{why}, in\n{lines}"));
    }
    for (lines, wanted) in WRONG {
        let (live, from_file) = play(lines);
        for why in [live.expect_err(lines), from_file.expect_err(lines)] {
            assert!(why.contains(wanted), "{why:?} does not say {wanted:?}, of\n{lines}");
        }
    }
    let lines = "try 0 1 put\nack 0 1 5\ntry 0 2 put\ntry 0 3 put\nnot 0 3\ntry 0 4 put\nsaw 0 9 4";
    let totals = play(lines).1.unwrap();
    assert_eq!(totals, Totals { tried: 4, acknowledged: 1, refused: 1, settled: 1, reads: 1 });
    assert_eq!(totals.unknown(), 1);
}
