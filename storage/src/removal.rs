//! A replica leaves this node for good: it is a member of its group no more.
//!
//! Its records, its log and the data that nobody else here owns go, and a **tombstone** stays: no
//! replica of that shard with this id, or a lower one, comes to life here again. All of it is one
//! synced batch, so a crash leaves either the whole replica, which then learns once more that it
//! was removed, or none of it. Space is given back afterwards; what a crash leaves of that work,
//! compactions do later.
//!
//! What is cleared the caller says, as with an install: what the shard owned here, less what
//! replicas of other shards own.

use crate::engine::{Engine, Family, WriteBatch};
use crate::error::StorageError;
use crate::keys::{self, StateTag};
use crate::records;
use flotilla_router::{KeyRange, ReplicaId, ShardId};

/// Removes the replica of a shard, and the data in the ranges of `clear`.
pub fn remove<E: Engine>(
    engine: &E,
    shard: ShardId,
    replica: ReplicaId,
    clear: &[KeyRange],
) -> Result<(), StorageError> {
    let (mut batch, mut record) = (engine.batch(), Vec::new());
    let ranges: Vec<_> =
        clear.iter().map(|range| keys::data_range(shard.key_space(), range)).collect();
    for (start, end) in &ranges {
        batch.delete_range(Family::Data, start, end);
    }
    batch.delete(Family::Data, &keys::applied(shard));
    batch.delete_range(Family::Log, &keys::log_entry(shard, 0), &keys::log_end(shard));
    for tag in [StateTag::HardState, StateTag::Truncated, StateTag::Descriptor, StateTag::Replica] {
        batch.delete(Family::State, &keys::state(shard, tag));
    }
    let key = keys::state(shard, StateTag::Tombstone);
    records::encode_replica(&mut record, &key, replica);
    batch.put(Family::State, &key, &record);
    engine.write(batch, true)?;
    ranges.iter().try_for_each(|(start, end)| engine.vacate(start, end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::Applier;
    use crate::read;
    use crate::recover::{recover, tombstones};
    use crate::snapshot;
    use crate::testing::{
        SHARD, TestEngine, append_committed, bootstrapped, descriptor, normal, on_both_engines,
        put_payload, work,
    };
    use crate::work::HardState;
    use flotilla_router::KeySpace;
    use std::path::Path;

    on_both_engines!(
        nothing_is_left_but_the_tombstone_and_what_others_own,
        a_replica_with_a_higher_id_may_come_and_knows_of_the_one_before,
    );

    /// Two neighbours, each with one key.
    fn filled<E: TestEngine>(dir: &Path) -> E {
        let engine = E::start(dir);
        bootstrapped(&engine, &[descriptor(7, "b", Some("m")), descriptor(8, "m", None)]);
        let mut applier = Applier::new(&engine, &recover(&engine).unwrap()).unwrap();
        for (shard, key) in [(SHARD, "k"), (ShardId(8), "x")] {
            let entry = normal(2, 2, put_payload(1, &[(key, "v")]));
            append_committed(&engine, shard, vec![entry.clone()]);
            applier.apply(&engine, vec![work(shard, [entry])]).unwrap();
        }
        engine.write(engine.batch(), true).unwrap();
        engine
    }

    fn has<E: Engine>(engine: &E, key: &str) -> bool {
        read::get(engine, KeySpace::User, key.as_bytes()).unwrap().is_some()
    }

    fn nothing_is_left_but_the_tombstone_and_what_others_own<E: TestEngine>() {
        let dir = tempfile::tempdir().unwrap();
        let engine: E = filled(dir.path());
        remove(&engine, SHARD, ReplicaId(71), &[descriptor(7, "b", Some("m")).range]).unwrap();
        let engine = engine.restart(dir.path());
        assert!(!has(&engine, "k") && has(&engine, "x"));
        let found = recover(&engine).unwrap();
        assert_eq!(found.iter().map(|r| r.descriptor.id).collect::<Vec<_>>(), [ShardId(8)]);
        assert_eq!(tombstones(&engine).unwrap(), [(SHARD, ReplicaId(71))].into());
        // Twice is as good as once.
        remove(&engine, SHARD, ReplicaId(71), &[]).unwrap();
        assert_eq!(recover(&engine).unwrap().len(), 1);
    }

    fn a_replica_with_a_higher_id_may_come_and_knows_of_the_one_before<E: TestEngine>() {
        let dir = tempfile::tempdir().unwrap();
        let engine: E = filled(dir.path());
        let (view, folder) = (engine.view(), dir.path().join("snapshot"));
        let manifest = snapshot::build(&engine, &view, SHARD, &folder).unwrap();
        drop(view);
        let range = [manifest.descriptor.range.clone()];
        remove(&engine, SHARD, ReplicaId(71), &range).unwrap();
        let hard_state = HardState { term: 3, vote: 0, commit: 0 };
        snapshot::install(&engine, &manifest, &folder, ReplicaId(75), hard_state, &range).unwrap();
        let engine = engine.restart(dir.path());
        let found = recover(&engine).unwrap();
        assert_eq!(found[0].replica, ReplicaId(75));
        assert_eq!(found[0].applied, manifest.at);
        assert!(has(&engine, "k"));
        assert_eq!(tombstones(&engine).unwrap(), [(SHARD, ReplicaId(71))].into());
    }
}
