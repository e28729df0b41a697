//! How a cluster begins on one node: every first node makes the same first state by itself, without
//! a word to the others.
//!
//! Every shard starts as if one entry had been written, applied and truncated ([`INITIAL`]):
//! raft-rs tells an empty replica from a first node by an index above 0. All of it is one synced
//! batch, so a crash leaves a node that was bootstrapped or one that was not.
//!
//! Beside its own replicas a node remembers the descriptors of all shards, so that it can route to
//! those which it does not hold.

use crate::engine::{Cursor, Engine, Family, Order, Read, WriteBatch};
use crate::error::StorageError;
use crate::failpoint::FailPoint;
use crate::keys::{self, NodeTag, StateTag};
use crate::records::{self, AppliedRecord};
use crate::work::{HardState, INITIAL};
use bytes::{BufMut, Bytes};
use flotilla_router::{DecodeError, Descriptor, KeySpace, NodeId, Revision};
use std::collections::BTreeMap;
use xxhash_rust::xxh3::Xxh3;

/// Makes this node's replicas of `shards`, which are all shards of the cluster, unless the node
/// was bootstrapped before. Says whether it was bootstrapped now.
///
/// `meta_contents` are the first keys of the meta shard, the same on every first node, in this
/// order: they take its revisions from 1 on.
pub fn bootstrap<E: Engine>(
    engine: &E,
    shards: &[Descriptor],
    node: NodeId,
    meta_contents: &[(Bytes, Bytes)],
) -> Result<bool, StorageError> {
    if is_bootstrapped(engine)? {
        return Ok(false);
    }
    let (mut batch, mut record) = (engine.batch(), Vec::new());
    let mut hash = Xxh3::new();
    for descriptor in shards {
        hash.update(&descriptor.encode());
        put_route(&mut batch, &mut record, descriptor);
        let shard = descriptor.id;
        let Some(replica) = descriptor.on_node(node) else { continue };
        let key = keys::state(shard, StateTag::Descriptor);
        records::encode_descriptor(&mut record, &key, descriptor);
        batch.put(Family::State, &key, &record);
        let key = keys::state(shard, StateTag::Replica);
        records::encode_replica(&mut record, &key, replica.id);
        batch.put(Family::State, &key, &record);
        let key = keys::state(shard, StateTag::HardState);
        records::encode_hard_state(
            &mut record,
            &key,
            HardState { term: INITIAL.term, vote: 0, commit: INITIAL.index },
        );
        batch.put(Family::State, &key, &record);
        let key = keys::state(shard, StateTag::Truncated);
        records::encode_truncated(&mut record, &key, INITIAL);
        batch.put(Family::State, &key, &record);
        let mut revision = Revision(0);
        if shard.is_meta() {
            for (key, value) in meta_contents {
                revision.0 += 1;
                records::encode_data(&mut record, revision, value);
                batch.put(Family::Data, &keys::data(KeySpace::Meta, key), &record);
            }
        }
        batch.put(
            Family::Data,
            &keys::applied(shard),
            &records::encode_applied(AppliedRecord { at: INITIAL, revision }),
        );
    }
    for (key, value) in meta_contents {
        hash.update(key);
        hash.update(value);
    }
    let key = keys::node(NodeTag::Bootstrapped);
    records::seal(&mut record, &key, |body| body.put_u64(hash.digest()));
    batch.put(Family::State, &key, &record);
    FailPoint::BootstrapBegun.pass()?;
    engine.write(batch, true)?;
    FailPoint::BootstrapWritten.pass()?;
    Ok(true)
}

/// Whether the node was bootstrapped.
pub fn is_bootstrapped<R: Read>(read: &R) -> Result<bool, StorageError> {
    Ok(bootstrap_mark(read)?.is_some())
}

/// A hash of what the node was bootstrapped with, shards and first keys: equal on first nodes that
/// agree. `None` before.
pub fn bootstrap_mark<R: Read>(read: &R) -> Result<Option<u64>, StorageError> {
    const WHAT: &str = "bootstrap mark";
    let key = keys::node(NodeTag::Bootstrapped);
    let decode = |record: &[u8]| {
        let body = records::unseal(WHAT, &key, record)?;
        body.try_into()
            .map(u64::from_be_bytes)
            .map_err(|_| DecodeError::new(WHAT, format!("{} bytes, not 8", body.len())))
    };
    read.look(Family::State, &key, decode)?.transpose().map_err(StorageError::node)
}

/// The descriptors of the cluster, as far as this node remembers them, in the order of ids.
pub fn routes<R: Read>(read: &R) -> Result<Vec<Descriptor>, StorageError> {
    let (start, end) = (keys::node(NodeTag::Route), keys::node_end(NodeTag::Route));
    let mut cursor = read.cursor(Family::State, &start, Some(&end), Order::Forward);
    let mut routes = Vec::new();
    while let Some((key, record)) = cursor.next()? {
        let descriptor = records::decode_descriptor(key, &Bytes::copy_from_slice(record))
            .map_err(StorageError::node)?;
        if key != keys::route(descriptor.id) {
            let why = format!("the descriptor of shard {} stands under another", descriptor.id);
            return Err(StorageError::node(DecodeError::new("route", why)));
        }
        routes.push(descriptor);
    }
    Ok(routes)
}

/// Remembers exactly these descriptors. Writes only what changed, and syncs nothing: what a crash
/// takes is learnt again.
pub fn save_routes<E: Engine>(engine: &E, shards: &[Descriptor]) -> Result<(), StorageError> {
    let mut stored: BTreeMap<_, _> =
        routes(engine)?.into_iter().map(|descriptor| (descriptor.id, descriptor)).collect();
    let (mut batch, mut record) = (engine.batch(), Vec::new());
    for descriptor in shards {
        if stored.remove(&descriptor.id).as_ref() != Some(descriptor) {
            put_route(&mut batch, &mut record, descriptor);
        }
    }
    for gone in stored.keys() {
        batch.delete(Family::State, &keys::route(*gone));
    }
    if batch.is_empty() { Ok(()) } else { engine.write(batch, false) }
}

fn put_route(batch: &mut impl WriteBatch, record: &mut Vec<u8>, descriptor: &Descriptor) {
    let key = keys::route(descriptor.id);
    records::encode_descriptor(record, &key, descriptor);
    batch.put(Family::State, &key, record);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryEngine;
    use crate::recover::recover;
    use crate::testing::descriptor;
    use flotilla_router::ShardId;

    #[test]
    fn a_first_node_has_its_replicas_at_the_initial_position_and_every_route() {
        let engine = MemoryEngine::new();
        let mut elsewhere = descriptor(9, "m", None);
        elsewhere.replicas.iter_mut().for_each(|replica| replica.node.0 += 10);
        let shards = [descriptor(1, "", None), descriptor(7, "", Some("m")), elsewhere];
        let contents = [("a".into(), "1".into()), ("b".into(), "2".into())];
        assert!(!is_bootstrapped(&engine).unwrap());
        assert!(bootstrap(&engine, &shards, NodeId(1), &contents).unwrap());
        engine.crash();
        assert!(is_bootstrapped(&engine).unwrap());
        assert_eq!(routes(&engine).unwrap(), shards);
        let found = recover(&engine).unwrap();
        assert_eq!(found.iter().map(|r| r.descriptor.clone()).collect::<Vec<_>>(), shards[..2]);
        for replica in &found {
            assert_eq!(
                (replica.applied, replica.truncated, replica.last),
                (INITIAL, INITIAL, INITIAL)
            );
            assert_eq!(replica.hard_state, HardState { term: 1, vote: 0, commit: 1 });
            assert_eq!(replica.replica, replica.descriptor.on_node(NodeId(1)).unwrap().id);
        }
        assert_eq!(
            crate::read::get(&engine, KeySpace::Meta, b"b").unwrap(),
            Some((Revision(2), "2".into()))
        );
        assert_eq!(
            crate::read::applied_record(&engine, ShardId::META).unwrap().revision,
            Revision(2)
        );
        assert_eq!(crate::read::applied_record(&engine, ShardId(7)).unwrap().revision, Revision(0));
    }

    #[test]
    fn bootstrapping_twice_changes_nothing() {
        let engine = MemoryEngine::new();
        assert!(bootstrap(&engine, &[descriptor(7, "", None)], NodeId(1), &[]).unwrap());
        let mark = bootstrap_mark(&engine).unwrap();
        assert!(!bootstrap(&engine, &[descriptor(8, "", None)], NodeId(1), &[]).unwrap());
        assert_eq!(bootstrap_mark(&engine).unwrap(), mark);
        let other = MemoryEngine::new();
        bootstrap(
            &other,
            &[descriptor(7, "", Some("m")), descriptor(8, "m", None)],
            NodeId(2),
            &[],
        )
        .unwrap();
        assert_ne!(bootstrap_mark(&other).unwrap(), mark, "another bootstrap has the same hash");
        assert_eq!(routes(&engine).unwrap(), [descriptor(7, "", None)]);
    }

    #[test]
    fn routes_are_replaced_as_a_whole() {
        let engine = MemoryEngine::new();
        save_routes(&engine, &[descriptor(7, "", Some("m")), descriptor(8, "m", None)]).unwrap();
        let merged = [descriptor(7, "", None)];
        save_routes(&engine, &merged).unwrap();
        assert_eq!(routes(&engine).unwrap(), merged);
        let before = engine.unsynced();
        save_routes(&engine, &merged).unwrap();
        assert_eq!(engine.unsynced(), before, "nothing changed, and yet something was written");
    }
}
