//! Which data directory each other node was met with.
//!
//! A node whose disk was lost comes back empty under its old id: it has forgotten whom it voted for
//! and what it acknowledged, and a quorum that counts on it could lose a committed write. Its new
//! directory has another number, and every node that met the old one remembers, through restarts,
//! and refuses it.

use crate::engine::{Cursor, Engine, Family, Order, Read, WriteBatch};
use crate::error::StorageError;
use crate::failpoint::FailPoint;
use crate::keys::{self, NodeTag};
use crate::records;
use bytes::BufMut;
use flotilla_router::{DecodeError, NodeId};
use std::collections::BTreeMap;

const WHAT: &str = "known data directory";

/// The directory of every node that was ever met.
pub fn known_directories<R: Read>(read: &R) -> Result<BTreeMap<NodeId, u64>, StorageError> {
    let (start, end) = (keys::node(NodeTag::Directory), keys::node_end(NodeTag::Directory));
    let mut cursor = read.cursor(Family::State, &start, Some(&end), Order::Forward);
    let mut known = BTreeMap::new();
    while let Some((key, record)) = cursor.next()? {
        let decode = |key: &[u8], record: &[u8]| {
            let body = records::unseal(WHAT, key, record)?;
            let number = |bytes: &[u8]| {
                bytes
                    .try_into()
                    .map(u64::from_be_bytes)
                    .map_err(|_| DecodeError::new(WHAT, "not 8 bytes"))
            };
            Ok((NodeId(number(key.get(9..).unwrap_or_default())?), number(body)?))
        };
        let (node, directory) = decode(key, record).map_err(StorageError::node)?;
        known.insert(node, directory);
    }
    Ok(known)
}

/// Remembers the directory of a node that was met for the first time. Synced: it is met once.
pub fn remember_directory<E: Engine>(
    engine: &E,
    node: NodeId,
    directory: u64,
) -> Result<(), StorageError> {
    let (key, mut record, mut batch) = (keys::directory(node), Vec::new(), engine.batch());
    records::seal(&mut record, &key, |body| body.put_u64(directory));
    batch.put(Family::State, &key, &record);
    FailPoint::DirectoryBegun.pass()?;
    engine.write(batch, true)?;
    FailPoint::DirectoryWritten.pass()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryEngine;

    #[test]
    fn what_was_remembered_survives_a_crash() {
        let engine = MemoryEngine::new();
        remember_directory(&engine, NodeId(2), 77).unwrap();
        remember_directory(&engine, NodeId(3), 88).unwrap();
        engine.crash();
        assert_eq!(
            known_directories(&engine).unwrap(),
            BTreeMap::from([(NodeId(2), 77), (NodeId(3), 88)])
        );
        assert_eq!(
            crate::routes(&engine).unwrap(),
            [],
            "another kind of record was taken for a route"
        );
    }
}
