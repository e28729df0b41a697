//! Who is alive: the signs of life that nodes give each other, one per pair and interval, whatever
//! they hold.
//!
//! A node is alive once it has said how it is, and for an election timeout of silence after that.
//! What it said last counts for no longer.

use super::wire::Beat;
use flotilla_router::{Descriptor, NodeId};
use std::collections::BTreeMap;

/// A peer, seen from here.
#[derive(Clone, Copy, Debug, Default)]
struct Peer {
    /// Its last sign of life.
    beat: Beat,
    /// Ticks since then.
    silent_ticks: usize,
    /// Whether it ever gave one in this life of ours.
    heard: bool,
}

/// The other nodes, and when they are told how this one is.
#[derive(Debug, Default)]
pub(crate) struct Liveness {
    peers: BTreeMap<NodeId, Peer>,
    /// Ticks of silence after which a peer is no longer alive.
    silent_ticks_max: usize,
    /// The tick of this node's last sign of life, and whether one is due at once.
    last_beat: u64,
    beat_now: bool,
}

impl Liveness {
    /// Nobody is known. A peer is alive for `silent_ticks_max` ticks after each sign of life.
    pub(crate) fn new(silent_ticks_max: usize) -> Self {
        Self { silent_ticks_max, ..Self::default() }
    }

    /// The node is one of the cluster's. It is alive once it has said how it is.
    pub(crate) fn meet(&mut self, node: NodeId) {
        self.peers.entry(node).or_default();
    }

    /// The node gave a sign of life.
    pub(crate) fn heard(&mut self, node: NodeId, beat: Beat) {
        *self.peers.entry(node).or_default() = Peer { beat, silent_ticks: 0, heard: true };
    }

    /// Time passes.
    pub(crate) fn tick(&mut self) {
        for peer in self.peers.values_mut() {
            peer.silent_ticks = peer.silent_ticks.saturating_add(1);
        }
    }

    /// Every node that is known.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.peers.keys().copied()
    }

    /// Whether a node was heard of lately.
    pub(crate) fn is_alive(&self, node: NodeId) -> bool {
        self.alive(node).is_some()
    }

    /// What a node that is alive said last.
    pub(crate) fn beat_of(&self, node: NodeId) -> Option<Beat> {
        self.alive(node).map(|peer| peer.beat)
    }

    /// Ticks since a node that is alive gave its last sign of life.
    pub(crate) fn silent_ticks(&self, node: NodeId) -> Option<usize> {
        self.alive(node).map(|peer| peer.silent_ticks)
    }

    /// Every node that is alive, and what it said last.
    pub(crate) fn alive_nodes(&self) -> impl Iterator<Item = (NodeId, Beat)> + '_ {
        self.peers.keys().filter_map(|node| Some((*node, self.beat_of(*node)?)))
    }

    /// Whether any node, alive or not, last said that its disk is full.
    pub(crate) fn is_any_disk_full(&self) -> bool {
        self.peers.values().any(|peer| peer.beat.disk_full)
    }

    /// Whether a shard's replica lies on a live node without room: that one would stop taking
    /// entries, or stop altogether. What a node that is gone said last counts no more, or the shard
    /// could not be written for as long as it is gone.
    pub(crate) fn lacks_room_for(&self, shard: &Descriptor) -> bool {
        shard
            .replicas
            .iter()
            .any(|replica| self.beat_of(replica.node).is_some_and(|beat| beat.disk_full))
    }

    /// Whether this node's own sign of life is due in the pass that ends.
    pub(crate) fn is_beat_due(&mut self, ticks: u64, interval: u64) -> bool {
        let due = std::mem::take(&mut self.beat_now) || ticks >= self.last_beat + interval;
        if due {
            self.last_beat = ticks;
        }
        due
    }

    /// Something changed that the others should know at once.
    pub(crate) fn beat_at_once(&mut self) {
        self.beat_now = true;
    }

    fn alive(&self, node: NodeId) -> Option<&Peer> {
        self.peers.get(&node).filter(|peer| peer.heard && peer.silent_ticks < self.silent_ticks_max)
    }
}
