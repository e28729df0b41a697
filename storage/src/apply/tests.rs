//! Apply: what commands come to, that a crash separates nothing, and what is refused.

use super::*;
use crate::engine::Read;
use crate::log::append;
use crate::memory::MemoryEngine;
use crate::read;
use crate::recover::recover;
use crate::testing::{
    SHARD, append_committed, bootstrapped, delete, delete_range, descriptor, normal, payload, put,
    put_payload, work,
};
use crate::work::{HardState, LogBatch, LogWrite};
use bytes::Bytes;
use flotilla_router::{
    ChangeKind, KeySpace, MemberChange, NodeId, OperationId, ReplicaId, Role, Transition,
};
use flotilla_router::{Command, Condition, Epoch, Revision};

fn started() -> (MemoryEngine, Applier) {
    let engine = MemoryEngine::new();
    bootstrapped(
        &engine,
        &[descriptor(7, "b", Some("y")), descriptor(8, "y", None), descriptor(1, "", None)],
    );
    let applier = Applier::new(&engine, &recover(&engine).unwrap()).unwrap();
    (engine, applier)
}

fn when(condition: Condition, command: Command) -> Command {
    Command::new(command.op().clone(), condition)
}

/// Applies one entry of these commands at the next index, and gives their results.
fn run(engine: &MemoryEngine, applier: &mut Applier, commands: &[Command]) -> Vec<WriteResult> {
    let index = applier.applied(SHARD).unwrap().index + 1;
    let applied =
        applier.apply(engine, vec![work(SHARD, [normal(index, 2, payload(1, commands))])]).unwrap();
    assert_eq!((applied.len(), applied[0].at.index), (1, index));
    applied[0].results[0].1.clone()
}

fn value(engine: &MemoryEngine, key: &str) -> Option<(u64, String)> {
    let found = read::get(engine, KeySpace::User, key.as_bytes()).unwrap();
    found.map(|(revision, value)| (revision.0, String::from_utf8(value.to_vec()).unwrap()))
}

fn written(revision: u64) -> WriteResult {
    WriteResult::Written { revision: Revision(revision) }
}

fn refused(current: Option<u64>) -> WriteResult {
    WriteResult::ConditionFailed { current: current.map(Revision) }
}

use WriteResult::{Deleted, DeletedRange, WrongShard};

#[test]
fn commands_come_to_what_http_says() {
    let (engine, mut applier) = started();
    let at = |revision| Condition::At(Revision(revision));
    // Each row is one entry; revisions go on from row to row.
    let table = [
        (vec![put("k", "1")], vec![written(1)]),
        (vec![put("k", "2"), put("l", "1")], vec![written(2), written(3)]),
        (vec![when(Condition::Absent, put("k", "x"))], vec![refused(Some(2))]),
        (vec![when(Condition::Absent, put("m", "x"))], vec![written(4)]),
        (vec![when(Condition::Present, put("n", "x"))], vec![refused(None)]),
        (
            vec![when(at(2), put("k", "3")), when(at(2), put("k", "4"))],
            vec![written(5), refused(Some(5))],
        ),
        // Deletions consume a revision, refused ones don't.
        (vec![when(at(1), delete("k")), when(at(5), delete("k"))], vec![refused(Some(5)), Deleted]),
        (vec![when(Condition::Present, delete("k")), delete("k")], vec![refused(None), Deleted]),
        (vec![when(Condition::Absent, put("k", "5"))], vec![written(8)]),
        // A later command of the entry sees the earlier ones.
        (vec![delete("k"), when(Condition::Absent, put("k", "6"))], vec![Deleted, written(10)]),
        (vec![when(Condition::Present, delete_range("b", Some("y")))], vec![refused(None)]),
    ];
    for (commands, results) in table {
        assert_eq!(run(&engine, &mut applier, &commands), results, "{commands:?}");
    }
    assert_eq!(value(&engine, "k"), Some((10, "6".into())));
    assert_eq!(value(&engine, "l"), Some((3, "1".into())));
}

#[test]
fn conditions_see_earlier_entries_of_the_same_batch() {
    let (engine, mut applier) = started();
    let entries = [
        normal(2, 2, put_payload(1, &[("k", "1")])),
        normal(3, 2, payload(1, &[when(Condition::Absent, put("k", "2"))])),
        normal(4, 2, payload(1, &[delete("k")])),
        normal(5, 2, payload(1, &[when(Condition::Absent, put("k", "3"))])),
    ];
    let before = engine.unsynced();
    let applied = applier.apply(&engine, vec![work(SHARD, entries)]).unwrap();
    assert_eq!(engine.unsynced(), before + 1, "one batch for all entries");
    let results: Vec<_> =
        applied[0].results.iter().map(|(index, results)| (*index, results[0])).collect();
    assert_eq!(results, [(2, written(1)), (3, refused(Some(1))), (4, Deleted), (5, written(3))]);
    assert_eq!(value(&engine, "k"), Some((3, "3".into())));
}

#[test]
fn the_meta_shards_keys_are_not_the_clients() {
    let (engine, mut applier) = started();
    let one = |id| {
        work(ShardId(id), [normal(2, 2, payload(1, &[when(Condition::Absent, put("k", "v"))]))])
    };
    let applied = applier.apply(&engine, vec![one(7), one(1)]).unwrap();
    for shard in applied {
        assert_eq!(shard.results[0].1, [written(1)], "the other space's key was seen");
    }
    assert_eq!(read::get(&engine, KeySpace::Meta, b"k").unwrap(), Some((Revision(1), "v".into())));
    run(&engine, &mut applier, &[delete_range("b", Some("y"))]);
    assert!(read::get(&engine, KeySpace::Meta, b"k").unwrap().is_some());
}

#[test]
fn a_deleted_range_counts_what_was_there_once() {
    let (engine, mut applier) = started();
    run(&engine, &mut applier, &[put("c", "1"), put("d", "1"), put("e", "1"), put("f", "1")]);
    let commands = [
        put("d", "2"),                // there and written again: once
        delete("e"),                  // gone already
        put("da", "1"),               // only in the batch
        put("zz", "1"),               // another shard's
        delete_range("c", Some("f")), // c, d, da
        put("d", "3"),                // written again
        delete_range("c", Some("f")), // d
        delete_range("f", Some("f")), // an empty range
        delete_range("f", Some("c")), // a range turned around
        delete_range("a", Some("f")), // begins outside of the shard
        delete_range("c", None),      // ends outside of the shard
    ];
    let results = run(&engine, &mut applier, &commands);
    assert_eq!(
        results[3..7],
        [WrongShard, DeletedRange { count: 3 }, written(9), DeletedRange { count: 1 }]
    );
    assert!(matches!(results[7], DeletedRange { count: 0 } | WrongShard), "{:?}", results[7]);
    assert!(matches!(results[8], DeletedRange { count: 0 } | WrongShard), "{:?}", results[8]);
    assert_eq!(results[9..], [WrongShard, WrongShard]);
    for (key, there) in [("c", false), ("d", false), ("da", false), ("e", false), ("f", true)] {
        assert_eq!(value(&engine, key).is_some(), there, "{key}");
    }
}

#[test]
fn a_large_range_goes_by_one_tombstone_and_its_count_is_as_exact() {
    let (engine, mut applier) = started();
    let n = commands::RANGE_DELETE_KEYS_MIN + 10;
    let keys: Vec<String> = (0..n).map(|i| format!("k{i:06}")).collect();
    let puts: Vec<Command> = keys.iter().map(|key| put(key, "v")).collect();
    run(&engine, &mut applier, &puts);
    let commands = [
        delete(&keys[0]),
        put("k", "v"),
        delete_range("k", Some("l")),
        when(Condition::Present, put(&keys[5], "x")),
        when(Condition::Absent, put(&keys[6], "y")),
        delete_range("k", Some("l")),
    ];
    let results = run(&engine, &mut applier, &commands);
    let count = n as u64;
    assert_eq!(
        results[2..4],
        [DeletedRange { count }, refused(None)],
        "n keys, less one, and one more"
    );
    assert!(matches!(results[4], WriteResult::Written { .. }));
    assert_eq!(
        results[5],
        DeletedRange { count: 1 },
        "only what was written after the range was emptied"
    );
    assert_eq!((value(&engine, &keys[5]), value(&engine, &keys[6])), (None, None));
}

#[test]
fn another_range_epoch_and_keys_outside_write_nothing() {
    let (engine, mut applier) = started();
    let stale = normal(2, 2, put_payload(2, &[("k", "v")]));
    let outside = normal(3, 2, put_payload(1, &[("a", "v"), ("y", "v"), ("k", "v")]));
    let applied = applier.apply(&engine, vec![work(SHARD, [stale, outside])]).unwrap();
    assert_eq!(
        applied[0].results,
        [(2, vec![WrongShard]), (3, vec![WrongShard, WrongShard, written(1)])]
    );
    assert_eq!((value(&engine, "a"), value(&engine, "y")), (None, None));
    assert_eq!(
        read::applied(&engine, SHARD).unwrap().index,
        3,
        "an entry that writes nothing is applied all the same"
    );
}

/// The shard's epoch is 1.1 at first; this one was made for a later membership.
fn change(membership: u64, transition: Transition, members: &[(ChangeKind, u64)]) -> Change {
    let member = |&(kind, replica)| {
        let (replica, node) = (ReplicaId(replica), NodeId(replica - 70));
        MemberChange { kind, replica, node }
    };
    let members = members.iter().map(member).collect();
    let expected = Epoch { membership, range: 1 };
    Change { operation: OperationId(5), expected, transition, members }
}

/// The entry that a change is proposed as. Only raft-rs reads its data.
fn conf_change(index: u64, data: &'static str, change: &Change) -> LogEntry {
    let mut entry = normal(index, 2, data.into());
    (entry.kind, entry.context) = (EntryKind::ConfChangeV2, change.encode());
    entry
}

fn stored_descriptor(engine: &MemoryEngine) -> Descriptor {
    let key = keys::state(SHARD, StateTag::Descriptor);
    let stored = engine.get(Family::State, &key).unwrap().unwrap();
    records::decode_descriptor(&key, &stored).unwrap()
}

#[test]
fn a_membership_change_that_fits_is_stored_and_told() {
    let (engine, mut applier) = started();
    let swap = [(ChangeKind::Voter, 72), (ChangeKind::Learner, 71)];
    let enter = change(1, Transition::EnterJoint, &swap);
    let leave = Change::leave(OperationId(5), Epoch { membership: 2, range: 1 });
    let role = |replica: &flotilla_router::Replica| (replica.id.0, replica.node.0, replica.role);
    let roles = |shard: &Descriptor| shard.replicas.iter().map(role).collect::<Vec<_>>();
    let entries = [normal(2, 2, Bytes::new()), conf_change(3, "in protobuf", &enter)];
    let applied = applier.apply(&engine, vec![work(SHARD, entries)]).unwrap();
    let joint = applied[0].descriptor.clone().unwrap();
    assert_eq!(roles(&joint), [(71, 1, Role::Demoting), (72, 2, Role::Incoming)]);
    assert_eq!(joint.epoch, Epoch { membership: 2, range: 1 });
    assert_eq!(applied[0].conf_changes, [(3, Ok(()))]);
    assert_eq!(applied[0].results, [(2, vec![]), (3, vec![])]);
    assert_eq!((applier.descriptor(SHARD), &stored_descriptor(&engine)), (Some(&joint), &joint));
    // A restart finds it as it is, and goes on. The step out has no data, and is a change all the
    // same.
    let mut applier = Applier::new(&engine, &recover_applied(&engine, 3)).unwrap();
    let applied = applier.apply(&engine, vec![work(SHARD, [conf_change(4, "", &leave)])]).unwrap();
    let left = applied[0].descriptor.clone().unwrap();
    assert_eq!(roles(&left), [(71, 1, Role::Learner), (72, 2, Role::Voter)]);
    assert_eq!(applied[0].conf_changes, [(4, Ok(()))]);
    assert_eq!((applier.descriptor(SHARD), &stored_descriptor(&engine)), (Some(&left), &left));
}

/// What recovery finds, once the log holds what was applied.
fn recover_applied(engine: &MemoryEngine, last: u64) -> Vec<Recovered> {
    let entries = (2..=last).map(|index| normal(index, 2, Bytes::new())).collect();
    append_committed(engine, SHARD, entries);
    recover(engine).unwrap()
}

/// Every replica refuses the same, so none must end for it.
#[test]
fn a_membership_change_that_does_not_fit_changes_nothing_and_is_no_error() {
    let simple = |members: &[_]| change(1, Transition::Simple, members);
    let nobody = simple(&[(ChangeKind::Remove, 71)]);
    let learner = [(ChangeKind::Learner, 72)];
    let stale = change(2, Transition::Simple, &learner);
    let mut other_range = simple(&learner);
    other_range.expected.range = 2;
    let current = Epoch { membership: 1, range: 1 };
    let not_current = |change: &Change| Unfit::Stale { expected: change.expected, current };
    let not_joint = Change::leave(OperationId(5), current);
    let mut bare = normal(2, 2, "a conf change in protobuf".into());
    bare.kind = EntryKind::ConfChange;
    let mut empty = normal(2, 2, Bytes::new());
    empty.kind = EntryKind::ConfChangeV2;
    for (entry, why) in [
        (conf_change(2, "data", &nobody), Unfit::NoVoter),
        (conf_change(2, "data", &stale), not_current(&stale)),
        (conf_change(2, "data", &other_range), not_current(&other_range)),
        (conf_change(2, "", &not_joint), Unfit::NotJoint),
        (bare, Unfit::Bare),
        (empty, Unfit::Bare),
    ] {
        let (engine, mut applier) = started();
        let before = stored_descriptor(&engine);
        let good = conf_change(3, "data", &simple(&learner));
        let applied = applier.apply(&engine, vec![work(SHARD, [entry])]).unwrap();
        assert_eq!(applied[0].conf_changes, [(2, Err(why))]);
        assert_eq!(applied[0].descriptor, None);
        assert_eq!(applier.descriptor(SHARD), Some(&before));
        assert_eq!(stored_descriptor(&engine), before);
        assert_eq!(read::applied(&engine, SHARD).unwrap().index, 2);
        // It stands in nobody's way.
        let applied = applier.apply(&engine, vec![work(SHARD, [good])]).unwrap();
        assert_eq!(applied[0].conf_changes, [(3, Ok(()))]);
    }
}

/// Two of one epoch in one work: the first is taken, the second was made for another shard.
#[test]
fn of_two_membership_changes_made_for_one_epoch_one_is_taken() {
    let (engine, mut applier) = started();
    let add = |replica| change(1, Transition::Simple, &[(ChangeKind::Learner, replica)]);
    let entries = [conf_change(2, "", &add(72)), conf_change(3, "", &add(73))];
    let applied = applier.apply(&engine, vec![work(SHARD, entries)]).unwrap();
    let [(2, Ok(())), (3, Err(Unfit::Stale { .. }))] = applied[0].conf_changes[..] else {
        panic!("{applied:?}");
    };
    let ids: Vec<_> = stored_descriptor(&engine).replicas.iter().map(|r| r.id.0).collect();
    assert_eq!(ids, [71, 72]);
}

#[test]
fn results_are_only_gathered_where_somebody_waits() {
    let (engine, mut applier) = started();
    let mut work = work(
        SHARD,
        [normal(2, 2, put_payload(1, &[("k", "1")])), normal(3, 2, put_payload(1, &[("k", "2")]))],
    );
    work.entries[0].wants_results = false;
    let applied = applier.apply(&engine, vec![work]).unwrap();
    assert_eq!(applied[0].results, [(3, vec![written(2)])]);
}

#[test]
fn nothing_is_applied_twice_or_left_out() {
    for (index, term, why) in [
        (1, 2, "index 2 is applied already"),
        (2, 2, "index 2 is applied already"),
        (4, 2, "the entries after index 2 are missing"),
        (3, 1, "its term 1 lies below 2"),
    ] {
        let (engine, mut applier) = started();
        run(&engine, &mut applier, &[put("k", "1")]);
        let error = applier
            .apply(&engine, vec![work(SHARD, [normal(index, term, put_payload(1, &[("k", "2")]))])])
            .unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains(&format!("shard 7, apply of log index {index}")) && error.contains(why),
            "{error}"
        );
        assert_eq!(value(&engine, "k"), Some((1, "1".into())));
    }
}

/// A replica may be removed while its entries are on their way: the others of the pass are applied.
#[test]
fn work_for_a_shard_that_is_not_here_is_dropped() {
    let gone = || work(ShardId(99), [normal(2, 2, put_payload(1, &[("k", "gone")]))]);
    let here = |index| work(SHARD, [normal(index, 2, put_payload(1, &[("k", "here")]))]);
    let (engine, mut applier) = started();
    let applied = applier.apply(&engine, vec![gone(), here(2), gone()]).unwrap();
    assert_eq!(applied.iter().map(|applied| applied.shard).collect::<Vec<_>>(), [SHARD]);
    let (applied, asides) = applier.apply_short(&engine, vec![gone(), here(3)]).unwrap();
    assert_eq!((applied.len(), asides.len()), (1, 0));
    assert_eq!(value(&engine, "k"), Some((2, "here".into())));
    assert!(engine.get(Family::Data, &keys::applied(ShardId(99))).unwrap().is_none());
}

#[test]
fn a_malformed_payload_names_shard_and_index() {
    let good = put_payload(1, &[("k", "v")]);
    let mut context = normal(2, 2, Bytes::new());
    (context.kind, context.context) = (EntryKind::ConfChangeV2, "no change".into());
    let mut before = context.clone();
    before.context = descriptor(7, "b", Some("y")).encode();
    let cut_off = normal(2, 2, good.slice(..good.len() - 3));
    for bad in [normal(2, 2, "?".into()), cut_off, context, before] {
        let (engine, mut applier) = started();
        let error = applier.apply(&engine, vec![work(SHARD, [bad])]).unwrap_err().to_string();
        assert!(error.contains("shard 7") && error.contains("log index 2"), "{error}");
        assert_eq!(read::applied(&engine, SHARD).unwrap().index, 1);
    }
}

#[test]
#[should_panic(expected = "apply goes on after an error")]
fn nothing_follows_an_error() {
    let (engine, mut applier) = started();
    let bad = applier.apply(&engine, vec![work(SHARD, [normal(2, 2, "?".into())])]);
    assert!(bad.is_err());
    let _ = applier.apply(&engine, vec![work(SHARD, [normal(3, 2, Bytes::new())])]);
}

#[test]
fn a_snapshot_resets_its_shard() {
    let (engine, mut applier) = started();
    let at = LogPosition { index: 50, term: 4 };
    let mut descriptor = descriptor(7, "b", Some("y"));
    descriptor.epoch.membership = 9;
    applier.installed(&SnapshotManifest {
        descriptor: descriptor.clone(),
        at,
        revision: Revision(70),
        files: Vec::new(),
    });
    assert_eq!((applier.applied(SHARD), applier.descriptor(SHARD)), (Some(at), Some(&descriptor)));
    let applied = applier
        .apply(&engine, vec![work(SHARD, [normal(51, 4, put_payload(1, &[("k", "v")]))])])
        .unwrap();
    assert_eq!(applied[0].results[0].1, [written(71)]);
}

/// The entries of the crash tests: each leaves a trace in data, revision and (some) descriptor that
/// must fit the applied index.
fn traced(index: u64) -> LogEntry {
    if index.is_multiple_of(5) {
        let learner = [(ChangeKind::Learner, 71 + index)];
        return conf_change(index, "", &change(index / 5, Transition::Simple, &learner));
    }
    let (index_key, text) = (format!("k{index}"), index.to_string());
    normal(
        index,
        2,
        payload(1, &[when(Condition::Absent, put(&index_key, "v")), put("last", &text)]),
    )
}

/// Checks that data, applied state and descriptor agree, and gives the applied index.
fn check_agreement(engine: &MemoryEngine) -> u64 {
    let applied = read::applied_record(engine, SHARD).unwrap();
    let index = applied.at.index;
    let writes: Vec<u64> = (2..=index).filter(|i| i % 5 != 0).collect();
    assert_eq!(
        applied.revision.0,
        2 * writes.len() as u64,
        "revision and applied index {index} were separated"
    );
    let last = writes.last().map(|last| (applied.revision.0, last.to_string()));
    assert_eq!(value(engine, "last"), last, "data and applied index {index} were separated");
    for i in 2..40 {
        assert_eq!(
            value(engine, &format!("k{i}")).is_some(),
            writes.contains(&i),
            "k{i} at applied index {index}"
        );
    }
    let (stored, changes) = (stored_descriptor(engine), index / 5);
    for found in [stored.epoch.membership, stored.replicas.len() as u64] {
        assert_eq!(found, changes + 1, "descriptor and applied index {index} were separated");
    }
    index
}

#[test]
fn a_crash_at_any_point_separates_nothing_and_a_restart_applies_the_rest_once() {
    const LAST: u64 = 31;
    // With a tiny limit every entry is a batch of its own; with the real one each pass is.
    for batch_bytes_max in [1, 200, BATCH_BYTES_MAX] {
        let mut kept = 0;
        loop {
            let (engine, mut applier) = started();
            applier.batch_bytes_max = batch_bytes_max;
            append_committed(&engine, SHARD, (2..=LAST).map(traced).collect());
            for pass in [2..=9, 10..=11, 12..=LAST] {
                applier.apply(&engine, vec![work(SHARD, pass.map(traced))]).unwrap();
            }
            let unsynced = engine.unsynced();
            engine.crash_keeping(kept);
            let applied = check_agreement(&engine);
            let found = recover(&engine).unwrap();
            let shard = found.iter().find(|r| r.descriptor.id == SHARD).unwrap();
            assert_eq!(shard.applied.index, applied);
            assert_eq!(
                shard.unapplied.iter().map(|e| e.at.index).collect::<Vec<_>>(),
                (applied + 1..=LAST).collect::<Vec<_>>()
            );
            let mut applier = Applier::new(&engine, &found).unwrap();
            if !shard.unapplied.is_empty() {
                let outcome =
                    applier.apply(&engine, vec![work(SHARD, shard.unapplied.clone())]).unwrap();
                for (index, results) in &outcome[0].results {
                    let refusals = results
                        .iter()
                        .filter(|result| matches!(result, WriteResult::ConditionFailed { .. }));
                    assert_eq!(refusals.count(), 0, "index {index} was applied twice");
                }
            }
            assert_eq!(check_agreement(&engine), LAST);
            if kept > unsynced {
                break;
            }
            kept += 1;
        }
        assert!(
            kept >= if batch_bytes_max == 1 { 30 } else { 3 },
            "only {kept} crashes at {batch_bytes_max}"
        );
    }
}

#[test]
fn shards_of_a_pass_share_one_unsynced_batch() {
    let (engine, mut applier) = started();
    let works = vec![
        work(SHARD, [normal(2, 2, put_payload(1, &[("k", "v")]))]),
        work(ShardId(8), [normal(2, 2, put_payload(1, &[("z", "v")]))]),
    ];
    let hard_state = Some(HardState { term: 2, vote: 0, commit: 1 });
    append(
        &engine,
        &LogBatch {
            writes: vec![LogWrite { shard: SHARD, hard_state, ..Default::default() }],
            sync: true,
        },
    )
    .unwrap();
    assert_eq!(applier.apply(&engine, works).unwrap().len(), 2);
    assert_eq!(engine.unsynced(), 1);
    assert_eq!(
        (value(&engine, "k"), value(&engine, "z")),
        (Some((1, "v".into())), Some((1, "v".into())))
    );
}

#[test]
fn replicas_that_batch_differently_end_equal() {
    let (mut hashes, entries): (Vec<_>, Vec<_>) = (Vec::new(), (2..=31).map(traced).collect());
    for (batch_bytes_max, pass) in [(1, 30), (BATCH_BYTES_MAX, 30), (BATCH_BYTES_MAX, 1), (100, 7)]
    {
        let (engine, mut applier) = started();
        applier.batch_bytes_max = batch_bytes_max;
        for entries in entries.chunks(pass) {
            applier.apply(&engine, vec![work(SHARD, entries.to_vec())]).unwrap();
        }
        hashes.push(read::hash(&engine, applier.descriptor(SHARD).unwrap()).unwrap());
    }
    assert!(hashes.windows(2).all(|pair| pair[0] == pair[1]), "{hashes:?}");
}

/// Entries of two shards, in one of which a deletion counts many keys: the other one is applied at
/// once, and what comes of the first is the same as without taking it aside, also when a crash
/// comes in between.
#[test]
fn a_long_deletion_keeps_no_other_shard() {
    let other = ShardId(8);
    let many: Vec<String> = (0..3000).map(|i| format!("k{i:05}")).collect();
    let filled = || {
        let (engine, mut applier) = started();
        let puts: Vec<Command> = many.iter().map(|key| put(key, "v")).collect();
        run(&engine, &mut applier, &puts);
        (engine, applier)
    };
    let works = || {
        let first = [put("k00000x", "new"), put("m", "1")];
        let second = [
            put("k1", "2"),
            delete_range("k", Some("l")),
            put("k2", "3"),
            delete_range("a", Some("b")),
        ];
        let entries = [
            normal(3, 2, payload(1, &first)),
            normal(4, 2, payload(1, &second)),
            normal(5, 2, payload(1, &[put("k3", "4")])),
        ];
        vec![work(SHARD, entries), work(other, [normal(2, 2, put_payload(1, &[("z", "1")]))])]
    };
    let (plain, mut all_at_once) = filled();
    let expected = all_at_once.apply(&plain, works()).unwrap();
    let (engine, mut applier) = filled();
    append_committed(
        &engine,
        SHARD,
        works()[0].entries.iter().map(|apply| apply.entry.clone()).collect(),
    );
    let (applied, mut asides) = applier.apply_short(&engine, works()).unwrap();
    assert_eq!(
        applied.iter().map(|a| (a.shard, a.at.index)).collect::<Vec<_>>(),
        [(SHARD, 3), (other, 2)]
    );
    assert_eq!(asides.len(), 1, "nothing was taken aside");
    let aside = asides.remove(0);
    assert_eq!((aside.shard(), applier.applied(SHARD)), (SHARD, None));
    assert_eq!(read::applied(&engine, SHARD).unwrap().index, 3);
    // Given up: nothing of the entry is there.
    let (given_up, mut second) = filled();
    let (_, asides) = second.apply_short(&given_up, works()).unwrap();
    let stop = Arc::new(AtomicBool::new(true));
    let error = asides.into_iter().next().unwrap().run(&given_up, stop).unwrap_err();
    assert!(error.to_string().contains("given up"), "{error}");
    assert_eq!((read::applied(&given_up, SHARD).unwrap().index, value(&given_up, "k1")), (3, None));
    // Carried out.
    let returned = aside.run(&engine, Arc::default()).unwrap();
    let last = applier.take_back(returned);
    assert_eq!(last.results[..], expected[0].results[1..]);
    assert_eq!(last.results[0].1[1], DeletedRange { count: 3002 });
    assert_eq!(applier.applied(SHARD), all_at_once.applied(SHARD));
    let shard = descriptor(7, "b", Some("y"));
    assert_eq!(read::hash(&engine, &shard).unwrap(), read::hash(&plain, &shard).unwrap());
    // A short one stays where it is.
    let index = applier.applied(SHARD).unwrap().index + 1;
    let short = vec![work(SHARD, [normal(index, 2, payload(1, &[delete_range("k", Some("l"))]))])];
    assert!(applier.apply_short(&engine, short).unwrap().1.is_empty());
}

/// Deletions each of which is short, in entries of their own: together they would hold the others,
/// so from some entry on they go aside.
#[test]
fn many_short_deletions_are_long_together() {
    let (engine, mut applier) = started();
    let keys: Vec<Command> =
        (0..40).flat_map(|i| (0..100).map(move |j| put(&format!("k{i:02}-{j}"), "v"))).collect();
    run(&engine, &mut applier, &keys);
    let delete = |i: u64| {
        normal(
            3 + i,
            2,
            payload(1, &[delete_range(&format!("k{i:02}-"), Some(&format!("k{i:02}.")))]),
        )
    };
    let entries: Vec<LogEntry> = (0..40).map(delete).collect();
    append_committed(&engine, SHARD, entries.clone());
    let (applied, asides) = applier.apply_short(&engine, vec![work(SHARD, entries)]).unwrap();
    let done = applied[0].at.index - 2;
    assert!(asides.len() == 1 && (10..=20).contains(&done), "{done} of 40 were applied at once");
    let returned = asides.into_iter().next().unwrap().run(&engine, Arc::default()).unwrap();
    assert_eq!(applier.take_back(returned).at.index, 42);
}
