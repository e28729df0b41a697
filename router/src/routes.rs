//! Key to shard, and shard to the node that probably leads it.
//!
//! Two structures, because they change at different rates. Which shard owns a key changes with a
//! split or a merge: an immutable ordered snapshot, swapped whole, so that a look-up takes no lock
//! and sees one consistent cut of the key space. Who leads a shard changes with every election: a
//! `DashMap` of hints, each possibly wrong; whoever follows one is told better.
//!
//! **Invariants.** The ranges of a snapshot are disjoint. A descriptor is replaced only by one with
//! a higher epoch. No `DashMap` reference leaves this file, so none is ever held across an await.

use crate::descriptor::Descriptor;
use crate::ids::{NodeId, ShardId};
use crate::range::KeyRange;
use arc_swap::ArcSwap;
use bytes::Bytes;
use dashmap::DashMap;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex};

/// The map from keys to shards. Cheap to look into from any thread.
#[derive(Default)]
pub struct Routes {
    table: ArcSwap<Table>,
    leaders: DashMap<ShardId, NodeId>,
    /// Whom this node's own replicas take for their leaders; no hint of anybody else's changes it.
    followed: DashMap<ShardId, NodeId>,
    /// Held while a new table is made of the old one, so that no two makers lose each other's
    /// change.
    writing: Mutex<()>,
}

/// One consistent cut of the key space.
#[derive(Clone, Default)]
pub struct Table {
    by_start: BTreeMap<Bytes, Arc<Descriptor>>,
    by_id: BTreeMap<ShardId, Arc<Descriptor>>,
}

impl Table {
    /// The shard that owns `key`.
    pub fn owner(&self, key: &[u8]) -> Option<&Arc<Descriptor>> {
        let (_, descriptor) =
            self.by_start.range::<[u8], _>((Bound::Unbounded, Bound::Included(key))).next_back()?;
        descriptor.range.contains(key).then_some(descriptor)
    }

    /// The shard that owns the last key below `end` (of all keys, where `end` is `None`).
    pub fn owner_before(&self, end: Option<&Bytes>) -> Option<&Arc<Descriptor>> {
        match end {
            Some(end) => self.by_start.range::<Bytes, _>(..end).next_back().map(|(_, d)| d),
            None => self.by_start.last_key_value().map(|(_, d)| d),
        }
    }

    /// The shard with this id, the meta shard included.
    pub fn shard(&self, id: ShardId) -> Option<&Arc<Descriptor>> {
        self.by_id.get(&id)
    }

    /// Every shard in the order of ids, the meta shard included.
    pub fn shards(&self) -> impl Iterator<Item = &Arc<Descriptor>> {
        self.by_id.values()
    }

    /// Every user shard that owns a key of `range`, in key order.
    pub fn overlapping<'a>(
        &'a self,
        range: &'a KeyRange,
    ) -> impl Iterator<Item = &'a Arc<Descriptor>> {
        // Ranges are disjoint: at most one begins at or before `range` and reaches into it, and the
        // others begin within.
        let start = &range.start[..];
        let first =
            self.by_start.range::<[u8], _>((Bound::Unbounded, Bound::Included(start))).next_back();
        let others = self.by_start.range::<[u8], _>((Bound::Excluded(start), Bound::Unbounded));
        let first = first.into_iter().filter(|(_, d)| d.range.overlaps(range));
        first.chain(others.take_while(|(_, d)| d.range.overlaps(range))).map(|(_, d)| d)
    }

    /// Whether as much is known about this shard already, or more.
    fn knows(&self, descriptor: &Descriptor) -> bool {
        let known = self.by_id.get(&descriptor.id);
        known.is_some_and(|known| {
            known.epoch.range > descriptor.epoch.range || known.epoch >= descriptor.epoch
        })
    }

    /// Takes a descriptor in, unless a newer one about the same keys is known.
    fn learn(&mut self, descriptor: Arc<Descriptor>) {
        if self.knows(&descriptor) {
            return;
        }
        if !descriptor.id.is_meta() {
            let overlapping: Vec<_> = self.overlapping(&descriptor.range).cloned().collect();
            if overlapping
                .iter()
                .any(|d| d.id != descriptor.id && d.epoch.range >= descriptor.epoch.range)
            {
                return;
            }
            for old in overlapping {
                self.by_start.remove(&old.range.start);
                self.by_id.remove(&old.id);
            }
            if let Some(old) = self.by_id.get(&descriptor.id) {
                self.by_start.remove(&old.range.start);
            }
            self.by_start.insert(descriptor.range.start.clone(), descriptor.clone());
        }
        self.by_id.insert(descriptor.id, descriptor);
    }
}

impl Routes {
    /// The table as it is now. Hold it for one request, not longer.
    pub fn table(&self) -> Arc<Table> {
        self.table.load_full()
    }

    /// The shard that owns `key`.
    pub fn owner(&self, key: &[u8]) -> Option<Arc<Descriptor>> {
        self.table.load().owner(key).cloned()
    }

    /// Takes in what was learnt about shards; older news is ignored. A table is made for all of it
    /// together, and only where any of it is news: with many shards a table is large, and at a
    /// start each of them is published.
    pub fn learn<D: Into<Arc<Descriptor>>>(&self, descriptors: impl IntoIterator<Item = D>) {
        let mut descriptors = descriptors.into_iter().map(Into::into).peekable();
        if descriptors.peek().is_none() {
            return;
        }
        let _writing = self.writing.lock().expect("no maker of a table panics");
        let known = self.table.load();
        let mut news = descriptors.filter(|d| !known.knows(d)).peekable();
        if news.peek().is_none() {
            return;
        }
        let mut table = Table::clone(&known);
        news.for_each(|descriptor| table.learn(descriptor));
        self.table.store(Arc::new(table));
    }

    /// Who leads `shard`, as far as is known here.
    pub fn leader(&self, shard: ShardId) -> Option<NodeId> {
        self.leaders.get(&shard).map(|hint| *hint)
    }

    /// Whom this node's own replica of `shard` takes for its leader.
    pub fn followed(&self, shard: ShardId) -> Option<NodeId> {
        self.followed.get(&shard).map(|leader| *leader)
    }

    /// Notes whom this node's own replica takes for its leader. It says so when that changes, and
    /// not again: what others say of it later, and too late, may take the hint away, but not this.
    pub fn follow(&self, shard: ShardId, leader: Option<NodeId>) {
        match leader {
            Some(node) => {
                self.followed.insert(shard, node);
            }
            None => {
                self.followed.remove(&shard);
            }
        }
        self.set_leader(shard, leader);
    }

    /// Notes who is said to lead `shard`.
    pub fn set_leader(&self, shard: ShardId, leader: Option<NodeId>) {
        match leader {
            Some(node) => {
                self.leaders.insert(shard, node);
            }
            None => {
                self.leaders.remove(&shard);
            }
        }
    }

    /// Forgets that `node` leads `shard`, because it said otherwise; a newer hint stays.
    pub fn not_leader(&self, shard: ShardId, node: NodeId) {
        self.leaders.remove_if(&shard, |_, hint| *hint == node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptor::Epoch;

    fn shard(
        id: u64,
        start: &'static str,
        end: Option<&'static str>,
        range_epoch: u64,
    ) -> Descriptor {
        Descriptor {
            id: ShardId(id),
            range: KeyRange::new(start, end.map(Bytes::from)),
            epoch: Epoch { membership: 1, range: range_epoch },
            replicas: Vec::new(),
        }
    }

    #[test]
    fn every_key_has_one_owner() {
        let routes = Routes::default();
        routes.learn([
            shard(2, "", Some("g"), 1),
            shard(3, "g", Some("p"), 1),
            shard(4, "p", None, 1),
        ]);
        for (key, id) in [("", 2), ("a", 2), ("fzz", 2), ("g", 3), ("p", 4), ("zzz", 4)] {
            assert_eq!(routes.owner(key.as_bytes()).unwrap().id, ShardId(id), "{key:?}");
        }
        let table = routes.table();
        for (end, id) in [(Some("g"), 2), (Some("ga"), 3), (None, 4)] {
            assert_eq!(
                table.owner_before(end.map(Bytes::from).as_ref()).unwrap().id,
                ShardId(id),
                "before {end:?}"
            );
        }
    }

    #[test]
    fn a_late_no_takes_a_hint_away_and_not_what_the_own_replica_knows() {
        let (routes, shard) = (Routes::default(), ShardId(2));
        routes.follow(shard, Some(NodeId(1)));
        // Asked before it led, and heard after this node's replica had found it.
        routes.not_leader(shard, NodeId(1));
        assert_eq!((routes.leader(shard), routes.followed(shard)), (None, Some(NodeId(1))));
        routes.set_leader(shard, Some(NodeId(3)));
        assert_eq!(
            (routes.leader(shard), routes.followed(shard)),
            (Some(NodeId(3)), Some(NodeId(1)))
        );
        routes.follow(shard, None);
        assert_eq!((routes.leader(shard), routes.followed(shard)), (None, None));
    }

    #[test]
    fn a_split_replaces_its_parent_and_old_news_is_ignored() {
        let routes = Routes::default();
        let parent = shard(2, "", None, 1);
        routes.learn([parent.clone()]);
        routes.learn([shard(2, "", Some("m"), 2), shard(3, "m", None, 2)]);
        routes.learn([parent]);
        assert_eq!(routes.owner(b"a").unwrap().id, ShardId(2));
        assert_eq!(routes.owner(b"x").unwrap().id, ShardId(3));
    }

    #[test]
    fn what_is_known_makes_no_new_table() {
        let routes = Routes::default();
        let shards = [shard(2, "", Some("g"), 2), shard(3, "g", None, 2)];
        routes.learn(shards.clone());
        let before = routes.table();
        routes.learn(shards);
        routes.learn([shard(2, "", None, 1)]);
        assert!(Arc::ptr_eq(&before, &routes.table()));
    }

    #[test]
    fn who_overlaps_a_range_is_found_without_looking_at_all() {
        let routes = Routes::default();
        routes.learn([
            shard(2, "b", Some("d"), 1),
            shard(3, "d", Some("f"), 1),
            shard(4, "h", Some("k"), 1),
            shard(5, "k", None, 1),
        ]);
        let table = routes.table();
        let bounds = ["", "a", "b", "c", "d", "e", "f", "g", "h", "i", "k", "z"];
        for start in bounds {
            for end in bounds.iter().map(|end| Some(Bytes::from(*end))).chain([None]) {
                let range = KeyRange::new(start, end);
                let found: Vec<_> = table.overlapping(&range).map(|d| d.id.0).collect();
                let expected: Vec<_> = table
                    .by_start
                    .values()
                    .filter(|d| d.range.overlaps(&range))
                    .map(|d| d.id.0)
                    .collect();
                assert_eq!(found, expected, "{range:?}");
            }
        }
    }

    #[test]
    fn the_meta_shard_owns_no_user_key() {
        let routes = Routes::default();
        routes.learn([shard(1, "", None, 1), shard(2, "", None, 1)]);
        assert_eq!(routes.owner(b"a").unwrap().id, ShardId(2));
        assert!(routes.table().shard(ShardId::META).is_some());
    }
}
