//! What the tests of this crate share: small descriptors, entries and payloads.

use crate::bootstrap::bootstrap;
use crate::engine::Engine;
use crate::log::append;
use crate::work::{ApplyEntry, ApplyWork, EntryKind, HardState, LogBatch, LogEntry, LogPosition, LogWrite};
use bytes::Bytes;
use flotilla_router::command::PayloadBuilder;
use flotilla_router::{Command, Condition, Descriptor, Epoch, KeyRange, NodeId, Op, Replica, ReplicaId, Role, ShardId};

/// The shard of most tests.
pub(crate) const SHARD: ShardId = ShardId(7);

/// A shard at range epoch 1 with one replica on node 1.
pub(crate) fn descriptor(id: u64, start: &str, end: Option<&str>) -> Descriptor {
    Descriptor {
        id: ShardId(id),
        range: KeyRange::new(start.as_bytes().to_vec(), end.map(|end| end.as_bytes().to_vec().into())),
        epoch: Epoch { membership: 1, range: 1 },
        replicas: vec![Replica { id: ReplicaId(id * 10 + 1), node: NodeId(1), role: Role::Voter }],
    }
}

/// Founds node 1 with these shards.
pub(crate) fn found<E: Engine>(engine: &E, shards: &[Descriptor]) {
    assert!(bootstrap(engine, shards, NodeId(1), &[]).unwrap());
}

/// A normal entry.
pub(crate) fn normal(index: u64, term: u64, data: Bytes) -> LogEntry {
    LogEntry { at: LogPosition { index, term }, kind: EntryKind::Normal, data, context: Bytes::new() }
}

/// A put without a condition.
pub(crate) fn put(key: &str, value: &str) -> Command {
    let op = Op::Put { key: key.as_bytes().to_vec().into(), value: value.as_bytes().to_vec().into() };
    Command { op, condition: Condition::Always }
}

/// A deletion without a condition.
pub(crate) fn delete(key: &str) -> Command {
    Command { op: Op::Delete { key: key.as_bytes().to_vec().into() }, condition: Condition::Always }
}

/// A deletion of a range.
pub(crate) fn delete_range(start: &str, end: Option<&str>) -> Command {
    let range = KeyRange::new(start.as_bytes().to_vec(), end.map(|end| end.as_bytes().to_vec().into()));
    Command { op: Op::DeleteRange { range }, condition: Condition::Always }
}

/// A payload of these commands.
pub(crate) fn payload(range_epoch: u64, commands: &[Command]) -> Bytes {
    let mut builder = PayloadBuilder::new(range_epoch, 0);
    commands.iter().for_each(|command| builder.push(command));
    builder.finish()
}

/// A payload of puts.
pub(crate) fn put_payload(range_epoch: u64, puts: &[(&str, &str)]) -> Bytes {
    payload(range_epoch, &puts.iter().map(|(key, value)| put(key, value)).collect::<Vec<_>>())
}

/// Work that wants all results.
pub(crate) fn work(shard: ShardId, entries: impl IntoIterator<Item = LogEntry>) -> ApplyWork {
    ApplyWork { shard, entries: entries.into_iter().map(|entry| ApplyEntry { entry, wants_results: true }).collect() }
}

/// Appends entries, committed up to the last of them, and syncs.
pub(crate) fn append_committed<E: Engine>(engine: &E, shard: ShardId, entries: Vec<LogEntry>) {
    let last = entries.last().unwrap().at;
    let hard_state = Some(HardState { term: last.term, vote: 0, commit: last.index });
    append(engine, &LogBatch { writes: vec![LogWrite { shard, entries, hard_state, ..Default::default() }], sync: true })
        .unwrap();
}
