//! Recovery: what fits is found as it was, and everything else is named.

use super::*;
use crate::apply::Applier;
use crate::engine::WriteBatch;
use crate::log::append;
use crate::memory::MemoryEngine;
use crate::testing::{
    SHARD, append_committed, bootstrapped as bootstrap_node, descriptor, normal, put_payload, work,
};
use crate::work::{LogBatch, LogWrite, Truncate};

/// Bootstrapped, with entries 2 to 9 in terms 2, 2, 2, 3, 3, 5, 5, 5, of which those up to 5 are
/// applied.
fn filled() -> MemoryEngine {
    let engine = MemoryEngine::new();
    bootstrap_node(&engine, &[descriptor(7, "", None)]);
    append_committed(&engine, SHARD, log().collect());
    let mut applier = Applier::new(&engine, &recover(&engine).unwrap()).unwrap();
    applier.apply(&engine, vec![work(SHARD, log().take(4))]).unwrap();
    engine
}

fn log() -> impl Iterator<Item = LogEntry> {
    let terms = [2, 2, 2, 3, 3, 5, 5, 5];
    (2..)
        .zip(terms)
        .map(|(index, term)| normal(index, term, put_payload(1, &[("k", &index.to_string())])))
}

fn at(index: u64, term: u64) -> LogPosition {
    LogPosition { index, term }
}

fn truncate(engine: &MemoryEngine, from: u64, to: LogPosition) {
    let writes = vec![LogWrite {
        shard: SHARD,
        truncate: Some(Truncate { from, to }),
        ..Default::default()
    }];
    append(engine, &LogBatch { writes, sync: true }).unwrap();
}

fn change(engine: &MemoryEngine, fill: impl FnOnce(&mut crate::memory::MemoryBatch)) {
    let mut batch = engine.batch();
    fill(&mut batch);
    engine.write(batch, true).unwrap();
}

fn set_applied(engine: &MemoryEngine, at: LogPosition) {
    let mut record = crate::read::applied_record(engine, SHARD).unwrap();
    record.at = at;
    change(engine, |batch| {
        batch.put(Family::Data, &keys::applied(SHARD), &records::encode_applied(record))
    });
}

fn set_hard_state(engine: &MemoryEngine, hard_state: HardState) {
    let (key, mut record) = (keys::state(SHARD, StateTag::HardState), Vec::new());
    records::encode_hard_state(&mut record, &key, hard_state);
    change(engine, |batch| batch.put(Family::State, &key, &record));
}

fn fails_with(engine: &MemoryEngine, parts: &[&str]) {
    let error = recover(engine).expect_err("a broken log was taken").to_string();
    for part in parts {
        assert!(error.contains(part), "{error:?} does not say {part:?}");
    }
}

#[test]
fn a_replica_is_found_as_it_was() {
    let engine = filled();
    let found = recover(&engine).unwrap();
    let want = Recovered {
        descriptor: descriptor(7, "", None),
        replica: ReplicaId(71),
        hard_state: HardState { term: 5, vote: 0, commit: 9 },
        truncated: at(1, 1),
        last: at(9, 5),
        term_starts: vec![at(2, 2), at(5, 3), at(7, 5)],
        applied: at(5, 3),
        unapplied: log().skip(4).collect(),
        log_bytes: log().map(|entry| entry.bytes()).sum(),
    };
    assert_eq!(found, [want]);
}

#[test]
fn a_truncated_log_begins_behind_its_truncated_position() {
    let engine = filled();
    truncate(&engine, 2, at(5, 3));
    let found = &recover(&engine).unwrap()[0];
    assert_eq!(
        (found.truncated, found.last, &found.term_starts[..]),
        (at(5, 3), at(9, 5), &[at(6, 3), at(7, 5)][..])
    );
    assert_eq!((found.applied, found.unapplied.len()), (at(5, 3), 4));
    // The whole log truncated: the truncated position is the last.
    set_applied(&engine, at(9, 5));
    truncate(&engine, 6, at(9, 5));
    let found = &recover(&engine).unwrap()[0];
    assert_eq!((found.truncated, found.last, found.log_bytes), (at(9, 5), at(9, 5), 0));
    assert!(found.term_starts.is_empty() && found.unapplied.is_empty());
}

#[test]
fn a_missing_entry_is_named() {
    for (index, says) in
        [(2, "log index 2: the entry is missing"), (6, "log index 6: the entry is missing")]
    {
        let engine = filled();
        change(&engine, |batch| batch.delete(Family::Log, &keys::log_entry(SHARD, index)));
        fails_with(&engine, &["shard 7", says]);
    }
    // The last entries: committed, so they must be there.
    let engine = filled();
    change(&engine, |batch| batch.delete(Family::Log, &keys::log_entry(SHARD, 9)));
    fails_with(&engine, &["shard 7", "log index 9: the entry is missing, but was committed"]);
    set_hard_state(&engine, HardState { term: 5, vote: 0, commit: 5 });
    assert_eq!(
        recover(&engine).unwrap()[0].last,
        at(8, 5),
        "what was not committed may be missing at the end"
    );
}

#[test]
fn a_flipped_bit_anywhere_in_an_entry_is_named() {
    let engine = filled();
    let key = keys::log_entry(SHARD, 6);
    let record = engine.get(Family::Log, &key).unwrap().unwrap();
    for byte in 0..record.len() {
        let mut flipped = record.to_vec();
        flipped[byte] ^= 0x10;
        change(&engine, |batch| batch.put(Family::Log, &key, &flipped));
        fails_with(&engine, &["shard 7, log index 6", "checksum"]);
    }
    change(&engine, |batch| batch.put(Family::Log, &key, &record));
    assert!(recover(&engine).is_ok());
}

#[test]
fn an_entry_in_a_wrong_place_is_named() {
    // A valid record of index 5, stored under 6: the checksum covers the key.
    let engine = filled();
    let five = engine.get(Family::Log, &keys::log_entry(SHARD, 5)).unwrap().unwrap();
    change(&engine, |batch| batch.put(Family::Log, &keys::log_entry(SHARD, 6), &five));
    fails_with(&engine, &["shard 7, log index 6", "checksum"]);
    // Even with a checksum that fits the key.
    let (engine, key, mut record) = (filled(), keys::log_entry(SHARD, 6), Vec::new());
    records::encode_entry(&mut record, &key, &normal(5, 3, Bytes::new()));
    change(&engine, |batch| batch.put(Family::Log, &key, &record));
    fails_with(&engine, &["shard 7, log index 6", "the entry of index 5 stands here"]);
    // A term that falls.
    let (engine, key) = (filled(), keys::log_entry(SHARD, 6));
    records::encode_entry(&mut record, &key, &normal(6, 2, Bytes::new()));
    change(&engine, |batch| batch.put(Family::Log, &key, &record));
    fails_with(&engine, &["shard 7, log index 6", "term 2 follows term 3"]);
    // An entry that was truncated and is still there.
    let engine = filled();
    let two = engine.get(Family::Log, &keys::log_entry(SHARD, 2)).unwrap().unwrap();
    truncate(&engine, 2, at(3, 2));
    change(&engine, |batch| batch.put(Family::Log, &keys::log_entry(SHARD, 2), &two));
    fails_with(&engine, &["shard 7, log index 2", "still there"]);
    // A log of nobody.
    let engine = filled();
    let stray = keys::log_entry(ShardId(99), 4);
    change(&engine, |batch| batch.put(Family::Log, &stray, b"?"));
    fails_with(&engine, &["shard 99, log index 4", "no replica"]);
}

#[test]
fn commit_is_raised_only_to_what_the_log_holds() {
    let engine = filled();
    let behind = HardState { term: 5, vote: 3, commit: 2 };
    set_hard_state(&engine, behind);
    assert_eq!(recover(&engine).unwrap()[0].hard_state, HardState { commit: 5, ..behind });
    // Applied with another term than the log holds.
    set_applied(&engine, at(5, 4));
    fails_with(&engine, &["shard 7, log index 5", "term 4 was applied here, the log holds term 3"]);
    // Applied beyond the log.
    set_applied(&engine, at(12, 5));
    fails_with(&engine, &["shard 7, log index 10", "applied with those up to 12"]);
    // The truncated position vouches for itself, and only with its term.
    let engine = filled();
    truncate(&engine, 2, at(5, 3));
    set_hard_state(&engine, behind);
    assert_eq!(recover(&engine).unwrap()[0].hard_state.commit, 5);
    set_applied(&engine, at(5, 2));
    fails_with(&engine, &["shard 7, log index 5", "the log holds term 3"]);
    // Truncated beyond what was applied.
    set_applied(&engine, at(4, 2));
    fails_with(&engine, &["shard 7, log index 5", "never applied"]);
}

#[test]
fn a_hard_state_below_the_log_is_refused() {
    let engine = filled();
    set_hard_state(&engine, HardState { term: 4, vote: 0, commit: 5 });
    fails_with(&engine, &["shard 7, hard state", "term 4", "term 5"]);
}

#[test]
fn a_missing_or_corrupt_state_record_is_named() {
    let tags = [
        (StateTag::HardState, "hard state"),
        (StateTag::Truncated, "truncated position"),
        (StateTag::Descriptor, "descriptor"),
        (StateTag::Replica, "replica id"),
    ];
    for (tag, name) in tags {
        let (engine, key) = (filled(), keys::state(SHARD, tag));
        let mut record = engine.get(Family::State, &key).unwrap().unwrap().to_vec();
        *record.last_mut().unwrap() ^= 1;
        change(&engine, |batch| batch.put(Family::State, &key, &record));
        fails_with(&engine, &["shard 7", name, "checksum"]);
        change(&engine, |batch| batch.delete(Family::State, &key));
        fails_with(&engine, &["shard 7", name, "it is missing"]);
    }
    let engine = filled();
    change(&engine, |batch| batch.delete(Family::Data, &keys::applied(SHARD)));
    fails_with(&engine, &["shard 7, applied state: it is missing"]);
    let engine = filled();
    let mut unknown = keys::state(SHARD, StateTag::Replica);
    unknown[8] = 77;
    change(&engine, |batch| batch.put(Family::State, &unknown, b"?"));
    fails_with(&engine, &["shard 7", "tag 77"]);
}

#[test]
fn a_tombstone_is_remembered_and_is_no_replica() {
    let engine = filled();
    let (key, mut record) = (keys::state(ShardId(5), StateTag::Tombstone), Vec::new());
    records::encode_replica(&mut record, &key, ReplicaId(51));
    change(&engine, |batch| batch.put(Family::State, &key, &record));
    assert_eq!(recover(&engine).unwrap().len(), 1);
    assert_eq!(tombstones(&engine).unwrap(), BTreeMap::from([(ShardId(5), ReplicaId(51))]));
}

#[test]
fn many_shards_are_found_in_order() {
    let engine = MemoryEngine::new();
    let ranges: Vec<String> = (0..300).map(|i| format!("k{i:04}")).collect();
    let shards: Vec<_> =
        (0..299).map(|i| descriptor(2 + i as u64, &ranges[i], Some(&ranges[i + 1]))).collect();
    bootstrap_node(&engine, &shards);
    for shard in shards.iter().step_by(3) {
        append_committed(&engine, shard.id, log().take(3).collect());
    }
    let found = recover(&engine).unwrap();
    assert_eq!(
        found.iter().map(|r| &r.descriptor).collect::<Vec<_>>(),
        shards.iter().collect::<Vec<_>>()
    );
    for (i, replica) in found.iter().enumerate() {
        assert_eq!(
            replica.last,
            if i % 3 == 0 { at(4, 2) } else { at(1, 1) },
            "shard {}",
            replica.descriptor.id
        );
    }
}

/// The checksums are right, so something wrote it; raft-rs would overflow at the next election, or
/// end the process at this start.
#[test]
fn a_record_that_no_group_could_work_with_is_named() {
    let too_high = REACHED_MAX + 1;
    let engine = filled();
    set_hard_state(&engine, HardState { term: NUMBER_MAX + 1, vote: 0, commit: 9 });
    assert!(
        recover(&engine).is_ok(),
        "an election above the highest term that a peer may say keeps the node from starting"
    );
    set_hard_state(&engine, HardState { term: too_high, vote: 0, commit: 9 });
    fails_with(&engine, &["shard 7", "hard state", "beyond what any node counts to"]);
    let engine = filled();
    let mut record = crate::read::applied_record(&engine, SHARD).unwrap();
    record.revision.0 = too_high;
    change(&engine, |batch| {
        batch.put(Family::Data, &keys::applied(SHARD), &records::encode_applied(record))
    });
    fails_with(&engine, &["shard 7", "applied state", "beyond what any node counts to"]);
    let spoils: [fn(&mut Descriptor); 2] =
        [|d| d.replicas.clear(), |d| d.replicas.push(d.replicas[0])];
    for spoil in spoils {
        let (engine, mut descriptor) = (filled(), descriptor(7, "", None));
        spoil(&mut descriptor);
        let (key, mut record) = (keys::state(SHARD, StateTag::Descriptor), Vec::new());
        records::encode_descriptor(&mut record, &key, &descriptor);
        change(&engine, |batch| batch.put(Family::State, &key, &record));
        fails_with(&engine, &["shard 7", "descriptor", "nobody votes"]);
    }
}
