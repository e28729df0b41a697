//! What must hold whatever happens, checked by every [`Cluster`](super::cluster::Cluster) in every test.
//!
//! - **One leader** per shard and term.
//! - **Committed entries never differ** between nodes, nor between two lives of one node.
//! - **Applied only grows** while a node runs.
//! - **Equal data** at equal applied index.
//! - **No lie**: a write that was answered *not applied* is never applied, and none is applied twice. (Values are unique where
//!   a test wants this checked: see [`Invariants::expect_once`].)

use crate::core::Ticket;
use bytes::Bytes;
use flotilla_router::command::Payload;
use flotilla_router::{NodeId, Op, ShardId};
use flotilla_storage::{ApplyWork, StateHash};
use std::collections::{BTreeMap, BTreeSet};

/// What was seen so far.
#[derive(Default)]
pub(super) struct Invariants {
    /// Who led.
    leaders: BTreeMap<(ShardId, u64), NodeId>,
    /// Every entry that any node was told to apply: its term and data.
    committed: BTreeMap<(ShardId, u64), (u64, Bytes)>,
    /// Up to where each node has applied in its present life.
    applied: BTreeMap<(NodeId, ShardId), u64>,
    /// The data at each applied index.
    hashes: BTreeMap<(ShardId, u64), (NodeId, StateHash)>,
    /// Whose write a value is, where values are unique.
    writers: BTreeMap<Bytes, Ticket>,
    /// Where each of those values was committed.
    places: BTreeMap<Bytes, (ShardId, u64)>,
    /// Those who were told that their write was not applied.
    refused: BTreeSet<Ticket>,
}

impl Invariants {
    /// `ticket` writes `value`, which nobody else writes.
    pub(super) fn expect_once(&mut self, ticket: Ticket, value: Bytes) {
        assert!(self.writers.insert(value, ticket).is_none(), "a test writes a value twice");
    }

    /// A node leads.
    pub(super) fn leads(&mut self, node: NodeId, shard: ShardId, term: u64) {
        let first = *self.leaders.entry((shard, term)).or_insert(node);
        assert_eq!(first, node, "two leaders of shard {shard} in term {term}");
    }

    /// A node was told to apply entries.
    pub(super) fn committed(&mut self, node: NodeId, work: &ApplyWork) {
        let shard = work.shard;
        assert!(!work.entries.is_empty(), "node {node} is to apply nothing in shard {shard}");
        for apply in &work.entries {
            let (at, data) = (apply.entry.at, &apply.entry.data);
            if let Some((term, known)) = self.committed.get(&(shard, at.index)) {
                assert!(
                    (*term, known) == (at.term, data),
                    "shard {shard}, index {}: node {node} commits an entry of term {}, another committed one of term {term}",
                    at.index,
                    at.term
                );
                continue;
            }
            self.committed.insert((shard, at.index), (at.term, data.clone()));
            let Ok(payload) = Payload::decode(data.clone()) else { continue };
            for command in payload.map(Result::unwrap) {
                let Op::Put { value, .. } = command.op else { continue };
                let Some(ticket) = self.writers.get(&value) else { continue };
                assert!(!self.refused.contains(ticket), "{ticket:?} was told that it was not applied, and is at {at:?}");
                if let Some(before) = self.places.insert(value, (shard, at.index)) {
                    panic!("{ticket:?} is applied twice: at {before:?} and at {at:?}");
                }
            }
        }
    }

    /// A client was told that its write was not, and will not be, applied.
    pub(super) fn refused(&mut self, ticket: Ticket) {
        self.refused.insert(ticket);
        let applied = self.places.iter().find(|(value, _)| self.writers.get(*value) == Some(&ticket));
        assert!(applied.is_none(), "{ticket:?} is told that it was not applied, and stands at {:?}", applied.map(|(_, at)| at));
    }

    /// A node has applied up to an index.
    pub(super) fn applied(&mut self, node: NodeId, shard: ShardId, index: u64) {
        let before = self.applied.insert((node, shard), index).unwrap_or(0);
        assert!(before <= index, "node {node} had applied {before} in shard {shard}, and is at {index} now");
    }

    /// A node's data, at what they say of themselves.
    pub(super) fn hash(&mut self, node: NodeId, shard: ShardId, hash: StateHash) {
        let (other, known) = *self.hashes.entry((shard, hash.applied.index)).or_insert((node, hash));
        assert_eq!(known, hash, "shard {shard} differs between nodes {other} and {node} at the same applied index");
    }

    /// A node went down: what it had applied may be less when it comes back.
    pub(super) fn went_down(&mut self, node: NodeId) {
        self.applied.retain(|(of, _), _| *of != node);
    }

    /// The highest index that is known to be committed in a shard.
    pub(super) fn last_committed(&self, shard: ShardId) -> u64 {
        self.committed.range((shard, 0)..=(shard, u64::MAX)).next_back().map_or(0, |((_, index), _)| *index)
    }
}
