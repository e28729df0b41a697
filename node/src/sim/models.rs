//! What no cluster can show yet, because shards don't split and replicas aren't removed so far:
//! apply against a model, with entries as a split will leave them in the log; and tombstones across
//! a restart. Each seed of the simulation tries both.

use super::invariants::{Holds, hold};
use crate::rng::Rng;
use bytes::Bytes;
use flotilla_router::command::PayloadBuilder;
use flotilla_router::{
    Command, Condition, Descriptor, Epoch, KeyRange, KeySpace, NodeId, Op, ReplicaId, Revision,
    Role, ShardId,
};
use flotilla_storage::{
    Applier, ApplyEntry, ApplyWork, Engine as _, EntryKind, Family, INITIAL, LogEntry, LogPosition,
    MemoryEngine, WriteBatch as _, WriteResult, bootstrap, keys, read, records, recover,
    tombstones,
};
use std::collections::BTreeMap;

const SHARD: ShardId = ShardId(2);
const EPOCH: Epoch = Epoch { membership: 1, range: 5 };
const ENTRIES: u64 = 40;

/// Tries both.
pub(super) fn check(seed: u64) -> Holds {
    let mut rng = Rng::new(seed ^ 0x6d6f_6465_6c73);
    apply(&mut rng).map_err(|why| format!("apply against the model: {why}"))?;
    tombstone(&mut rng).map_err(|why| format!("tombstones: {why}"))
}

fn bootstrapped() -> Result<(MemoryEngine, Descriptor), String> {
    let replicas =
        vec![flotilla_router::Replica { id: ReplicaId(21), node: NodeId(1), role: Role::Voter }];
    let range = KeyRange::new(&b"b"[..], Some(Bytes::from_static(b"y")));
    let descriptor = Descriptor { id: SHARD, range, epoch: EPOCH, replicas };
    let engine = MemoryEngine::new();
    bootstrap(&engine, std::slice::from_ref(&descriptor), NodeId(1), &[])
        .map_err(|error| error.to_string())?;
    Ok((engine, descriptor))
}

/// Entries proposed at the present range epoch and at others, of keys inside the range and beyond
/// it, with every condition.
fn apply(rng: &mut Rng) -> Holds {
    let (engine, descriptor) = bootstrapped()?;
    let words = |error: flotilla_storage::StorageError| error.to_string();
    let mut applier = Applier::new(&engine, &recover(&engine).map_err(words)?).map_err(words)?;
    let mut model = BTreeMap::<Bytes, (Revision, Bytes)>::new();
    let mut highest = Revision(0);
    for n in 1..=ENTRIES {
        let range_epoch =
            rng.pick(&[EPOCH.range, EPOCH.range, EPOCH.range, EPOCH.range - 1, EPOCH.range + 1]);
        let commands: Vec<_> = (0..rng.within(1..=3)).map(|_| command(rng, &model, n)).collect();
        let mut payload = PayloadBuilder::new(range_epoch, 0);
        commands.iter().for_each(|command| payload.push(command));
        let at = LogPosition { index: INITIAL.index + n, term: INITIAL.term };
        let entry =
            LogEntry { at, kind: EntryKind::Normal, data: payload.finish(), context: Bytes::new() };
        let work =
            ApplyWork { shard: SHARD, entries: vec![ApplyEntry { entry, wants_results: true }] };
        let applied = applier.apply(&engine, vec![work]).map_err(words)?;
        let results: Vec<_> =
            applied.into_iter().flat_map(|a| a.results).flat_map(|(_, results)| results).collect();
        hold!(
            results.len() == commands.len(),
            "entry {n}: {} commands came to {} results",
            commands.len(),
            results.len()
        );
        for (command, result) in commands.iter().zip(results) {
            hold!(result.fits(command), "entry {n}: {command:?} can't come to {result:?}");
            let valid = range_epoch == EPOCH.range && command.is_within(&descriptor.range);
            let key = command.routing_key();
            let current = model.get(key).map(|(revision, _)| *revision);
            let expected = if !valid {
                WriteResult::WrongShard
            } else if !command.condition().holds(current) {
                WriteResult::ConditionFailed { current }
            } else if let (Op::Put { value, .. }, WriteResult::Written { revision }) =
                (command.op(), result)
            {
                hold!(revision > highest, "entry {n}: revision {revision} after {highest}");
                highest = revision;
                model.insert(key.clone(), (revision, value.clone()));
                result
            } else {
                model.remove(key);
                WriteResult::Deleted
            };
            hold!(
                result == expected,
                "entry {n} of range epoch {range_epoch}: {command:?} came to {result:?}, not \
                 {expected:?}"
            );
        }
        for key in commands.iter().map(Command::routing_key) {
            let found = read::get(&engine, KeySpace::User, key).map_err(words)?;
            hold!(
                found.as_ref() == model.get(key),
                "entry {n}: {key:?} is {found:?}, not {:?}",
                model.get(key)
            );
        }
    }
    Ok(())
}

fn command(rng: &mut Rng, model: &BTreeMap<Bytes, (Revision, Bytes)>, n: u64) -> Command {
    let key = Bytes::from_static(rng.pick(&[b"a", b"b", b"c", b"x", b"y", b"z"]));
    let condition = match (rng.below(6), model.get(&key)) {
        (0, _) => Condition::Absent,
        (1, _) => Condition::Present,
        (2, Some((revision, _))) => Condition::At(*revision),
        (3, _) => Condition::At(Revision(rng.below(20))),
        _ => Condition::Always,
    };
    let value = Bytes::from(format!("{n}.{}", rng.below(1000)));
    let op = if rng.percent(70) { Op::Put { key, value } } else { Op::Delete { key } };
    Command::new(op, condition)
}

/// A replica that was removed is remembered by a restart, beside those that live on.
fn tombstone(rng: &mut Rng) -> Holds {
    let (engine, _) = bootstrapped()?;
    let (shard, replica) = (ShardId(rng.within(3..=999)), ReplicaId(rng.within(30..=9999)));
    let (key, mut record) = (keys::state(shard, keys::StateTag::Tombstone), Vec::new());
    records::encode_replica(&mut record, &key, replica);
    let mut batch = engine.batch();
    batch.put(Family::State, &key, &record);
    engine.write(batch, true).map_err(|error| error.to_string())?;
    engine.crash();
    let found = tombstones(&engine).map_err(|error| error.to_string())?;
    hold!(
        found == BTreeMap::from([(shard, replica)]),
        "replica {replica} of shard {shard} was removed, and is {found:?} after a restart"
    );
    let replicas = recover(&engine).map_err(|error| error.to_string())?;
    hold!(replicas.len() == 1, "{} replicas are found beside a tombstone, not one", replicas.len());
    Ok(())
}
