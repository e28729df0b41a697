//! Each invariant is shown what it is for, and notices; and what is no offence, and lets it pass.
//! (Known mistakes in the product itself are the business of the test `mutations`.)

use super::*;
use crate::core::{Envelope, Timing};
use crate::sim::plan::descriptors;
use flotilla_router::{Epoch, KeyRange, ReplicaId, Revision};
use flotilla_storage::{
    Applier, ApplyEntry, ApplyWork, EntryKind, HardState, LogBatch, LogEntry, LogWrite, append,
    bootstrap, recover,
};
use raft::eraftpb::{Entry, Message, MessageType};

const N1: NodeId = NodeId(1);
const N2: NodeId = NodeId(2);
const N3: NodeId = NodeId(3);
const SHARD: ShardId = ShardId(2);

fn at(index: u64, term: u64) -> LogPosition {
    LogPosition { index, term }
}

fn envelope(kind: MessageType, term: u64, change: impl FnOnce(&mut Message)) -> Envelope {
    let mut message = Message { term, ..Message::default() };
    message.set_msg_type(kind);
    change(&mut message);
    Envelope {
        shard: SHARD,
        epoch: Epoch { membership: 1, range: 1 },
        committed: 0,
        timing: Timing::default(),
        message,
    }
}

fn appends(term: u64, after: LogPosition, entries: &[(u64, u64, &'static str)]) -> Envelope {
    envelope(MessageType::MsgAppend, term, |message| {
        (message.index, message.log_term) = (after.index, after.term);
        let entry = |&(index, term, data): &(u64, u64, &'static str)| Entry {
            index,
            term,
            data: data.into(),
            ..Entry::default()
        };
        message.set_entries(entries.iter().map(entry).collect::<Vec<_>>().into());
    })
}

fn entry(index: u64, term: u64, data: Bytes) -> LogEntry {
    LogEntry { at: at(index, term), kind: EntryKind::Normal, data, context: Bytes::new() }
}

fn put(value: &'static str) -> Bytes {
    let mut payload = flotilla_router::command::PayloadBuilder::new(1, 0);
    payload.push(&command(value));
    payload.finish()
}

fn command(value: &'static str) -> Command {
    let op = flotilla_router::Op::Put { key: "k".into(), value: value.into() };
    Command::new(op, flotilla_router::Condition::Always)
}

/// Three first nodes of the same shards, on disks of their own.
fn disks() -> (Vec<Descriptor>, BTreeMap<NodeId, MemoryEngine>) {
    let shards = descriptors(3, 1, 3);
    let disk = |node| {
        let engine = MemoryEngine::new();
        bootstrap(&engine, &shards, node, &[]).unwrap();
        (node, engine)
    };
    let disks = [N1, N2, N3].map(disk).into();
    (shards, disks)
}

/// Writes and applies one put on a disk, the shard's next entry.
fn apply(disk: &MemoryEngine, index: u64, value: &'static str) {
    let mut applier = Applier::new(disk, &recover(disk).unwrap()).unwrap();
    append(
        disk,
        &LogBatch { writes: vec![write(vec![entry(index, 1, put(value))], None)], sync: true },
    )
    .unwrap();
    let entries = vec![ApplyEntry { entry: entry(index, 1, put(value)), wants_results: false }];
    applier.apply(disk, vec![ApplyWork { shard: SHARD, entries }]).unwrap();
}

fn write(entries: Vec<LogEntry>, delete: Option<(u64, u64)>) -> LogWrite {
    LogWrite { shard: SHARD, entries, delete, ..LogWrite::default() }
}

#[track_caller]
fn broken<T: std::fmt::Debug>(holds: Result<T, String>, words: &str) {
    let why = holds.expect_err("it was let pass");
    assert!(why.contains(words), "{why:?} lacks {words:?}");
}

#[test]
fn two_leaders_of_one_term() {
    let mut leaders = one_leader::OneLeader::default();
    let heartbeat = |term| envelope(MessageType::MsgHeartbeat, term, |_| {});
    leaders.message(N1, &heartbeat(2)).unwrap();
    leaders.message(N2, &heartbeat(3)).unwrap();
    leaders.message(N3, &envelope(MessageType::MsgRequestVote, 3, |_| {})).unwrap();
    broken(leaders.message(N3, &heartbeat(3)), "both lead");
}

#[test]
fn logs_that_do_not_match() {
    let mut logs = logs_match::LogsMatch::default();
    logs.message(N1, &appends(2, at(5, 1), &[(6, 2, "a"), (7, 2, "b")])).unwrap();
    logs.write(N2, &write(vec![entry(6, 2, "a".into()), entry(7, 2, "b".into())], None)).unwrap();
    broken(logs.write(N2, &write(vec![entry(7, 2, "other".into())], None)), "another entry");
    broken(logs.message(N1, &appends(3, at(6, 3), &[(7, 2, "b")])), "below it");
    broken(logs.message(N1, &appends(2, at(9, 2), &[(7, 2, "b")])), "as those above");
}

#[test]
fn what_was_committed_is_lost() {
    let mut stays = committed_stays::CommittedStays::default();
    let (_, disks) = disks();
    let disk = &disks[&N1];
    let held = write(vec![entry(2, 1, "a".into())], None);
    append(disk, &LogBatch { writes: vec![held.clone()], sync: true }).unwrap();
    stays.message(N1, &appends(1, at(1, 1), &[(2, 1, "a")])).unwrap();
    assert_eq!(stays.committed(N1, SHARD, at(2, 1), 7), Ok(true));
    assert_eq!(stays.committed(N2, SHARD, at(2, 1), 7), Ok(false));
    broken(stays.committed(N3, SHARD, at(2, 2), 7).map(drop), "applies an entry of term 2");
    broken(stays.committed(N3, SHARD, at(2, 1), 8).map(drop), "applies an entry");
    stays.write(N1, &held, disk).unwrap();
    broken(
        stays.write(N1, &write(vec![entry(2, 3, "b".into())], None), disk),
        "overwrites committed",
    );
    broken(stays.write(N1, &write(vec![], Some((2, 9))), disk), "deletes committed");
    // A replica that never had it may hold something else there until it hears.
    stays.write(N2, &write(vec![], Some((2, 9))), &disks[&N2]).unwrap();
    stays.message(N2, &appends(1, at(2, 2), &[])).unwrap();
    broken(stays.message(N2, &appends(5, at(2, 4), &[])), "appends above");
    broken(stays.installed(N2, SHARD, at(2, 4)), "installs a snapshot");
    assert_eq!(stays.last(SHARD), 2);
}

#[test]
fn applied_goes_back() {
    let mut grows = applied_grows::AppliedGrows::default();
    assert_eq!(grows.applied(N1, SHARD, at(5, 1)), Ok(0));
    assert_eq!(grows.applied(N1, SHARD, at(6, 1)), Ok(5));
    broken(grows.applied(N1, SHARD, at(6, 1)).map(drop), "had applied 6");
    broken(grows.installed(N1, SHARD, at(3, 1)), "installs a snapshot at 3");
    // A new life may have forgotten what was not synced.
    let (_, disks) = disks();
    let recovered = recover(&disks[&N1]).unwrap();
    grows.starts(N1, &recovered).unwrap();
    grows.applied(N1, SHARD, at(2, 1)).unwrap();
    // But not what it had found when it last started.
    apply(&disks[&N1], 2, "one");
    grows.starts(N1, &recover(&disks[&N1]).unwrap()).unwrap();
    broken(grows.starts(N1, &recovered), "started with 2 applied");
}

#[test]
fn data_differ_at_one_index() {
    let mut equal = equal_state::EqualState::default();
    let (shards, disks) = disks();
    apply(&disks[&N1], 2, "one");
    apply(&disks[&N2], 2, "one");
    apply(&disks[&N3], 2, "two");
    equal.compare(N1, &shards[0], &disks[&N1]).unwrap();
    equal.compare(N2, &shards[0], &disks[&N2]).unwrap();
    broken(equal.compare(N3, &shards[0], &disks[&N3]), "at applied index 2: node 3");
}

#[test]
fn ranges_overlap_or_leave_a_gap() {
    let mut ranges = ranges::Ranges::default();
    let shards = descriptors(3, 3, 3);
    shards.iter().for_each(|descriptor| ranges.published(N1, descriptor).unwrap());
    ranges.end(&shards).unwrap();
    let wider = Descriptor { range: KeyRange::all(), ..shards[1].clone() };
    broken(ranges.published(N1, &wider), "overlaps");
    // Where it is the only one, it may.
    ranges.published(N2, &wider).unwrap();
    broken(ranges.end(&shards[1..]), "first key");
    broken(ranges.end(&shards[..2]), "last keys");
    broken(ranges.end(&[shards[0].clone(), shards[2].clone()]), "do not meet");
}

#[test]
fn a_replica_id_comes_back() {
    let mut ids = replica_ids::ReplicaIds::default();
    let with = |membership, members: &[(u64, NodeId)]| {
        let replicas = members.iter().map(|(id, node)| flotilla_router::Replica {
            id: ReplicaId(*id),
            node: *node,
            role: flotilla_router::Role::Voter,
        });
        let epoch = Epoch { membership, range: 1 };
        Descriptor { id: SHARD, range: KeyRange::all(), epoch, replicas: replicas.collect() }
    };
    ids.published(N1, &with(1, &[(21, N1), (22, N2)])).unwrap();
    ids.published(N1, &with(2, &[(21, N1)])).unwrap();
    // Who is behind still speaks of the old membership.
    ids.published(N2, &with(1, &[(21, N1), (22, N2)])).unwrap();
    broken(ids.published(N1, &with(3, &[(21, N1), (22, N2)])), "is back");
    broken(ids.published(N1, &with(3, &[(21, N3)])), "replica id 21 is");
}

#[test]
fn a_write_is_applied_twice_or_after_it_was_refused() {
    let mut once = applied_once::AppliedOnce::default();
    (1..=3)
        .zip(["a", "b", "c"])
        .for_each(|(ticket, value)| once.asks(Ticket(ticket), value.into()));
    once.committed(SHARD, at(2, 1), &[command("a")]).unwrap();
    broken(once.committed(SHARD, at(3, 1), &[command("a")]), "committed twice");
    once.refused(Ticket(2)).unwrap();
    broken(once.committed(SHARD, at(4, 1), &[command("b")]), "told that it was not applied");
    once.committed(SHARD, at(5, 1), &[command("c")]).unwrap();
    broken(once.refused(Ticket(3)), "is told that it was not applied");
    assert_eq!(once.between(SHARD, 1, 2).count(), 1);
}

#[test]
fn a_revision_falls_or_means_two_values() {
    let mut revisions = revisions_grow::RevisionsGrow::default();
    let (_, disks) = disks();
    let key = Bytes::from("k");
    apply(&disks[&N1], 2, "one");
    revisions.look(N1, &key, &disks[&N1]).unwrap();
    revisions.shown(&key, Some(&(Revision(1), "one".into()))).unwrap();
    broken(revisions.shown(&key, Some(&(Revision(1), "two".into()))), "as it never was");
    apply(&disks[&N2], 2, "two");
    broken(revisions.look(N2, &key, &disks[&N2]), "is not what another node has");
    apply(&disks[&N1], 3, "three");
    revisions.look(N1, &key, &disks[&N1]).unwrap();
    broken(revisions.look(N1, &key, &disks[&N2]), "was at revision 2");
}

#[test]
fn an_acknowledged_write_would_not_survive() {
    let mut stays = acknowledged_stays::AcknowledgedStays::default();
    let (shards, disks) = disks();
    let descriptors: BTreeMap<_, _> = shards.iter().map(|d| (d.id, d.clone())).collect();
    let value = Bytes::from("a");
    shards.iter().for_each(|shard| stays.published(N1, shard).unwrap());
    broken(stays.acknowledged(N1, &value, &disks), "no node was told");
    stays.committed(SHARD, at(2, 1), &[command("a")]);
    let batch = |sync| {
        let hard_state = Some(HardState { term: 1, vote: 0, commit: 1 });
        LogBatch {
            writes: vec![LogWrite { hard_state, ..write(vec![entry(2, 1, put("a"))], None) }],
            sync,
        }
    };
    append(&disks[&N1], &batch(true)).unwrap();
    append(&disks[&N2], &batch(false)).unwrap();
    broken(stays.acknowledged(N1, &value, &disks), "would survive a crash on 1 of 3");
    append(&disks[&N3], &batch(true)).unwrap();
    stays.acknowledged(N1, &value, &disks).unwrap();
    broken(stays.end(&descriptors, &disks), "was acknowledged");
    [N1, N2, N3].iter().for_each(|node| apply(&disks[node], 2, "a"));
    stays.end(&descriptors, &disks).unwrap();
}

#[test]
fn a_shard_is_quarantined() {
    let (shards, disks) = disks();
    let mut all = Invariants::new(&shards, disks);
    broken(
        all.effect(N1, &Effect::Quarantined { shard: SHARD, why: "it forgot".into() }),
        "quarantines shard 2: it forgot",
    );
}

#[test]
fn a_stale_read_shows_another_state_or_is_older_than_it_says() {
    let mut stale = stale_reads::StaleReads::new(&descriptors(3, 1, 3));
    let (key, first) = (Bytes::from("k"), (Revision(1), Bytes::from("one")));
    stale.committed(SHARD, &entry(2, 1, put("one")), [&key]).unwrap();
    stale.committed(SHARD, &entry(3, 1, put("two")), [&key]).unwrap();
    stale.told(SHARD, 2, 100);
    stale.told(SHARD, 3, 200);
    let shown = |applied, fresh_as_of, found| stale_reads::Shown {
        node: N1,
        shard: SHARD,
        applied,
        fresh_as_of,
        found: vec![(&key, found)],
    };
    stale.shown(&shown(1, None, None)).unwrap();
    stale.shown(&shown(2, Some(200), Some(&first))).unwrap();
    broken(stale.shown(&shown(2, None, None)), "shows k as None");
    broken(stale.shown(&shown(3, None, Some(&first))), "shows k as");
    broken(stale.shown(&shown(2, Some(201), Some(&first))), "was told of index 3 at 200 ns");
}
