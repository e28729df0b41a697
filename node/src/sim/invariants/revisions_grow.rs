//! Revisions of a key only grow, on every node; and one revision of a key is one value, wherever
//! and however it is read.

use super::{Holds, hold};
use bytes::Bytes;
use flotilla_router::{KeySpace, NodeId, Revision};
use flotilla_storage::{MemoryEngine, read};
use std::collections::BTreeMap;
use xxhash_rust::xxh3::xxh3_64;

/// What was seen of every key.
#[derive(Default)]
pub(crate) struct RevisionsGrow {
    /// The highest revision that a node showed in its present life.
    highest: BTreeMap<(NodeId, Bytes), Revision>,
    /// A hash of the value at each revision.
    values: BTreeMap<(Bytes, Revision), u64>,
}

impl RevisionsGrow {
    /// A node has applied a write of `key`.
    pub(crate) fn look(&mut self, node: NodeId, key: &Bytes, disk: &MemoryEngine) -> Holds {
        let found = read::get(disk, KeySpace::User, key)
            .map_err(|error| format!("node {node}: {error}"))?;
        let Some((revision, value)) = found else { return Ok(()) };
        let highest = self.highest.entry((node, key.clone())).or_default();
        let name = key.escape_ascii();
        hold!(
            *highest <= revision,
            "node {node}: {name} was at revision {highest}, and is at {revision}"
        );
        *highest = revision;
        let contents = xxh3_64(&value);
        let known = *self.values.entry((key.clone(), revision)).or_insert(contents);
        hold!(
            known == contents,
            "node {node}: {name} at revision {revision} is not what another node has there"
        );
        Ok(())
    }

    /// A client was shown `key`: something that was the key's value once.
    pub(crate) fn shown(&self, key: &Bytes, found: Option<&(Revision, Bytes)>) -> Holds {
        let Some((revision, value)) = found else { return Ok(()) };
        let known = self.values.get(&(key.clone(), *revision)).copied();
        let name = key.escape_ascii();
        hold!(
            known == Some(xxh3_64(value)),
            "a client is shown {name} at revision {revision}, as it never was"
        );
        Ok(())
    }

    /// A node went down: what it had applied may be less when it comes back.
    pub(crate) fn went_down(&mut self, node: NodeId) {
        self.highest.retain(|(of, _), _| *of != node);
    }
}
