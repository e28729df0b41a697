//! The network of the simulation: per pair of nodes and direction, in simulated time.
//!
//! A packet takes a while, which differs from packet to packet, so they overtake each other; it may
//! be lost, doubled, or late by a lot. A direction can be **cut** (what is sent is lost) or
//! **clogged** (what is sent arrives when the clog is gone), until a moment. What travels are the
//! very bytes of [`wire`](crate::core::wire), and frames above a size are refused, as the transport
//! refuses them.

use super::plan::{MS, Plan};
use crate::core::SnapshotId;
use crate::rng::Rng;
use bytes::Bytes;
use flotilla_router::{NodeId, ReplicaId, ShardId};
use flotilla_storage::SnapshotManifest;
use std::collections::BTreeMap;

/// From one node to another.
pub(crate) type Link = (NodeId, NodeId);

/// What travels.
#[derive(Clone, Debug)]
pub(crate) enum Packet {
    /// The messages of one pass.
    Frame(Bytes),
    /// A snapshot.
    Snapshot(Box<SnapshotPacket>),
}

/// A snapshot on its way.
#[derive(Clone, Debug)]
pub(crate) struct SnapshotPacket {
    /// The shard.
    pub(crate) shard: ShardId,
    /// Whom it is for.
    pub(crate) replica: ReplicaId,
    /// What its sender calls it.
    pub(crate) snapshot: SnapshotId,
    /// The encoded raft message that announces it.
    pub(crate) announcement: Bytes,
    /// What it holds.
    pub(crate) manifest: SnapshotManifest,
    /// Its files' contents, by name.
    pub(crate) files: Vec<(String, Bytes)>,
}

/// The state of all links.
#[derive(Default)]
pub(crate) struct Network {
    latency: u64,
    loss_percent: u64,
    duplicate_percent: u64,
    late_percent: u64,
    frame_bytes_max: usize,
    cut: BTreeMap<Link, u64>,
    clogged: BTreeMap<Link, u64>,
    /// Packets that were lost, doubled, and late.
    pub(crate) lost: u64,
    /// See above.
    pub(crate) doubled: u64,
    /// See above.
    pub(crate) late: u64,
}

impl Network {
    /// As bad as the plan has it.
    pub(crate) fn new(plan: &Plan) -> Self {
        Self {
            latency: plan.latency,
            loss_percent: plan.loss_percent,
            duplicate_percent: plan.duplicate_percent,
            late_percent: plan.late_percent,
            frame_bytes_max: plan.config.frame_bytes_max,
            ..Self::default()
        }
    }

    /// Whether a packet is a frame that the transport would refuse for its size.
    pub(crate) fn refuses(&self, packet: &Packet) -> bool {
        matches!(packet, Packet::Frame(frame) if frame.len() > self.frame_bytes_max)
    }

    /// From here on everything arrives, once.
    pub(crate) fn heal(&mut self) {
        let (latency, frame_bytes_max) = (self.latency, self.frame_bytes_max);
        *self = Self {
            latency,
            frame_bytes_max,
            lost: self.lost,
            doubled: self.doubled,
            late: self.late,
            ..Self::default()
        };
    }

    /// From here on it arrives soon.
    pub(crate) fn hurry(&mut self) {
        self.latency = self.latency.min(MS);
    }

    /// Until then the direction loses everything.
    pub(crate) fn cut(&mut self, link: Link, until: u64) {
        let known = self.cut.entry(link).or_default();
        *known = until.max(*known);
    }

    /// Until then the direction keeps everything back.
    pub(crate) fn clog(&mut self, link: Link, until: u64) {
        let known = self.clogged.entry(link).or_default();
        *known = until.max(*known);
    }

    /// Whether the direction is cut.
    pub(crate) fn is_cut(&self, link: Link, now: u64) -> bool {
        self.cut.get(&link).is_some_and(|until| now < *until)
    }

    /// When a packet arrives that is sent now: twice where it is doubled, never where it is lost.
    pub(crate) fn send(
        &mut self,
        link: Link,
        packet: &Packet,
        now: u64,
        rng: &mut Rng,
    ) -> [Option<u64>; 2] {
        // A snapshot's stream repeats what is lost; it breaks with its connection, or arrives.
        let is_frame = matches!(packet, Packet::Frame(_));
        if self.is_cut(link, now) || is_frame && rng.percent(self.loss_percent) {
            self.lost += 1;
            return [None, None];
        }
        let mut arrival = |rng: &mut Rng| {
            let mut takes = self.latency / 2 + rng.around(self.latency);
            if rng.percent(self.late_percent) {
                self.late += 1;
                takes += rng.around(100 * MS);
            }
            if !is_frame {
                takes += rng.around(20 * MS);
            }
            (now + takes).max(self.clogged.get(&link).copied().unwrap_or(0))
        };
        let first = arrival(rng);
        let again = is_frame && rng.percent(self.duplicate_percent);
        let second = again.then(|| arrival(rng) + rng.around(50 * MS));
        self.doubled += u64::from(again);
        [Some(first), second]
    }
}
