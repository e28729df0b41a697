//! What a stale read shows is the state at the index that it is given with, and it is no older than
//! it says: every write that anybody was told of before that age is in it.
//!
//! The state at every index is known from a witness, which applies each entry alone, in order, when
//! it is first seen to be committed.

use super::{Holds, hold};
use bytes::Bytes;
use flotilla_router::{Descriptor, KeySpace, NodeId, Replica, ReplicaId, Revision, Role, ShardId};
use flotilla_storage::{
    Applier, ApplyEntry, ApplyWork, Engine as _, LogEntry, MemoryEngine, StorageError, bootstrap,
    read, recover,
};
use std::collections::BTreeMap;
use xxhash_rust::xxh3::xxh3_64;

/// The node whose replicas the witness holds; no other has its id.
const WITNESS: NodeId = NodeId(u64::MAX);

/// What stood under a key: its revision and a hash of its value; `None` for nothing.
type Found = Option<(Revision, u64)>;

/// The witness, and what clients were told, and when.
pub(crate) struct StaleReads {
    engine: MemoryEngine,
    applier: Applier,
    /// What each key was, from which index on.
    states: BTreeMap<Bytes, Vec<(u64, Found)>>,
    /// Per shard: from when on somebody knew of the write at which index. Both only grow.
    told: BTreeMap<ShardId, Vec<(u64, u64)>>,
}

/// A stale answer.
pub(crate) struct Shown<'a> {
    /// Who gave it.
    pub(crate) node: NodeId,
    /// The shard.
    pub(crate) shard: ShardId,
    /// The index that the engine it looked at had applied.
    pub(crate) applied: u64,
    /// Everything that somebody was told of up to this moment must be in it, if there is a bound at
    /// all.
    pub(crate) fresh_as_of: Option<u64>,
    /// What it says stands under these keys.
    pub(crate) found: Vec<(&'a Bytes, Option<&'a (Revision, Bytes)>)>,
}

impl StaleReads {
    /// For shards as they were bootstrapped.
    pub(crate) fn new(shards: &[Descriptor]) -> Self {
        let held = |descriptor: &Descriptor| {
            let replicas = vec![Replica {
                id: ReplicaId(u64::MAX - descriptor.id.0),
                node: WITNESS,
                role: Role::Voter,
            }];
            Descriptor { replicas, ..descriptor.clone() }
        };
        let engine = MemoryEngine::new();
        let shards: Vec<_> = shards.iter().map(held).collect();
        bootstrap(&engine, &shards, WITNESS, &[]).expect("memory does not fail");
        let recovered = recover(&engine).expect("it was just bootstrapped");
        let applier = Applier::new(&engine, &recovered).expect("it was just bootstrapped");
        Self { engine, applier, states: BTreeMap::new(), told: BTreeMap::new() }
    }

    /// An entry was committed, and nobody knew of it before. It writes `keys`.
    pub(crate) fn committed<'a>(
        &mut self,
        shard: ShardId,
        entry: &LogEntry,
        keys: impl IntoIterator<Item = &'a Bytes>,
    ) -> Holds {
        let words = |error: StorageError| format!("the witness: {error}");
        let entries = vec![ApplyEntry { entry: entry.clone(), wants_results: false }];
        self.applier.apply(&self.engine, vec![ApplyWork { shard, entries }]).map_err(words)?;
        if entry.at.index.is_multiple_of(64) {
            // Nothing is to be taken back, so nothing needs to be kept for it.
            self.engine.flush().map_err(words)?;
        }
        for key in keys {
            let found = read::get(&self.engine, KeySpace::User, key).map_err(words)?;
            let found = found.map(|(revision, value)| (revision, xxh3_64(&value)));
            self.states.entry(key.clone()).or_default().push((entry.at.index, found));
        }
        Ok(())
    }

    /// Somebody knows, from `now` on, of the write at this index.
    pub(crate) fn told(&mut self, shard: ShardId, index: u64, now: u64) {
        let told = self.told.entry(shard).or_default();
        if told.last().is_none_or(|(_, last)| *last < index) {
            told.push((now, index));
        }
    }

    /// Judges a stale answer.
    pub(crate) fn shown(&self, shown: &Shown<'_>) -> Holds {
        let Shown { node, shard, applied, fresh_as_of, found } = shown;
        for (key, found) in found {
            let states = self.states.get(*key).map_or(&[][..], Vec::as_slice);
            let known = states.partition_point(|(index, _)| index <= applied);
            let expected = known.checked_sub(1).and_then(|place| states[place].1);
            let found = found.map(|(revision, value)| (*revision, xxh3_64(value)));
            hold!(
                found == expected,
                "shard {shard} on node {node}: a stale read at index {applied} shows {} as \
                 {found:?}, which was {expected:?}",
                key.escape_ascii()
            );
        }
        let Some(moment) = fresh_as_of else { return Ok(()) };
        let told = self.told.get(shard).map_or(&[][..], Vec::as_slice);
        let before = told.partition_point(|(at, _)| at < moment);
        if let Some((at, index)) = before.checked_sub(1).map(|place| told[place]) {
            hold!(
                index <= *applied,
                "shard {shard} on node {node}: a stale read at index {applied} is said to be fresh \
                 as of {moment} ns; a client was told of index {index} at {at} ns"
            );
        }
        Ok(())
    }
}
