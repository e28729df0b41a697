//! The core: every Raft group of a process, driven by one pure state machine.
//!
//! ```text
//!      Event ──▶ handle ──▶ RawNodes step ──┐
//!      Event ──▶ handle ──▶ …               ├──▶ finish_pass ──▶ Effects, in order
//!      Event ──▶ handle ──▶ …               ┘    (Ready of every dirty group, merged)
//! ```
//!
//! The shell drains its mailbox, feeds every event to [`Node::handle`], and ends the pass with [`Node::finish_pass`], which
//! collects the `Ready` of every group that was touched and merges them: commands of a shard that wait together become one
//! entry, entries of all groups become one write, messages to one node become one effect, reads of a shard share one context.
//!
//! **What the core does not have**, so that a seed replays it byte by byte: no clock (time is an event), no thread, no lock,
//! no socket, no file, no async, no map with a random seed. raft-rs draws election timeouts from a thread's random numbers, so
//! [`elections`] overwrites them after every call that may have drawn one.
//!
//! **Rooms.** One file per operation, each with its own state, which a [`replica::Replica`] holds as one field: [`proposals`],
//! [`reads`], [`freshness`], [`elections`], [`snapshots`], [`compaction`], [`flow`]; [`fetches`] is what is no longer in memory; [`admission`] says which writes are taken in, [`under_way`] how many are; [`ready`]
//! is the order in which a `Ready` is handled; [`outbox`] is
//! what leaves at the end of a pass; [`inbox`] is what peers send, and [`check`] what stands between them and `step`; [`registry`] alone creates and destroys
//! replicas; [`membership`] says what a descriptor is to raft-rs; [`balance`] spreads leadership; [`wire`] is the encoding between nodes.
//!
//! **Invariants.** A ticket is answered exactly once. A write is acknowledged only after it was applied here, hence committed. A
//! proposal that was lost is called *not applied* only when what was committed at or below its index rules it out. Nothing that a
//! peer sends can panic.

#![warn(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod config;
pub mod effect;
pub mod event;
pub mod inspect;
pub mod wire;

mod admission;
mod balance;
mod check;
mod compaction;
mod conf_change;
mod elections;
mod fetches;
mod flow;
mod freshness;
mod inbox;
mod log;
mod membership;
mod outbox;
mod proposals;
mod quarantine;
mod reads;
mod ready;
mod registry;
mod replica;
mod room;
mod snapshots;
mod under_way;

pub use config::{CoreConfig, LogConfig, RaftConfig, ReadMode, ReadsConfig};
pub use effect::Effect;
pub use event::{Beat, Delivery, Event, SnapshotId, Ticket};
pub use wire::{Envelope, Timing};

use elections::Elections;
use flotilla_router::{Incarnation, NodeId, ShardId};
use flotilla_storage::Recovered;
use outbox::{Outbox, Writing};
use registry::Registry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// A moment, or a span, on the shell's monotonic clock.
pub type Time = Duration;

/// Who this node is.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// The node.
    pub node: NodeId,
    /// Its present life. Part of every read context, so that none is ever used twice.
    pub incarnation: Incarnation,
}

/// What the core counts; the shell reads it for metrics after each pass.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Commands taken in.
    pub commands: u64,
    /// Log entries proposed.
    pub proposals: u64,
    /// Elections that a replica here has called.
    pub elections: u64,
    /// Elections that a replica here has won.
    pub elections_won: u64,
    /// Read contexts sent.
    pub read_contexts: u64,
    /// Reads that those contexts carried.
    pub context_reads: u64,
    /// Reads served by a lease.
    pub lease_reads: u64,
    /// Lease reads that went through a quorum, because there was no lease.
    pub lease_reads_refused: u64,
    /// Messages from peers that were refused before `step`.
    pub messages_refused: u64,
    /// Shards led here.
    pub leaders: u64,
    /// Replicas held here.
    pub replicas: u64,
    /// Replicas set aside.
    pub quarantined: u64,
    /// Committed entries that are not yet applied, over all replicas.
    pub apply_lag: u64,
    /// Bytes of log bodies in memory.
    pub cache_bytes: u64,
}

/// A peer, seen from here.
#[derive(Clone, Copy, Debug, Default)]
struct Peer {
    /// Its last sign of life.
    beat: Beat,
    /// Ticks since then.
    silent_ticks: usize,
    /// Whether it ever gave one in this life of ours.
    heard: bool,
    /// Bytes of entries on their way to it, of all groups that lead here.
    in_flight_bytes: u64,
}

/// All Raft groups of one process.
pub struct Node {
    config: CoreConfig,
    identity: Identity,
    logger: slog::Logger,
    now: Time,
    ticks: u64,
    registry: Registry,
    peers: BTreeMap<NodeId, Peer>,
    outbox: Outbox,
    /// Groups that were touched in this pass.
    dirty: BTreeSet<ShardId>,
    /// Groups whose commands wait for a write to finish.
    gathering: BTreeSet<ShardId>,
    /// The first of them to propose, so that each gets its turn.
    propose_first: ShardId,
    /// Writes under way, oldest first.
    writing: VecDeque<Writing>,
    next_write: u64,
    /// Whether apply has work; more gathers meanwhile.
    applying: bool,
    fetches: BTreeMap<u64, fetches::Fetch>,
    next_fetch: u64,
    next_snapshot: u64,
    /// Snapshots that are built for a node or on their way to it.
    streams: snapshots::Streams,
    next_read: u64,
    waiting_bytes: u64,
    /// How fast what waits is proposed.
    pace: admission::Pace,
    /// Shards of whose proposals some are not yet applied.
    under_way: BTreeSet<ShardId>,
    /// Bytes that are proposed here and were not committed when something was last proposed, over all replicas.
    uncommitted_bytes: u64,
    /// Bytes of log bodies in memory, over all replicas.
    cache_bytes: u64,
    /// Bytes of log on disk, over all replicas, as of the last tick.
    log_bytes: u64,
    /// Bytes of entries that are committed and not yet applied, over all replicas.
    unapplied_bytes: u64,
    /// Room on the disk.
    room: room::Room,
    balance: balance::Balance,
    draining: bool,
    drained: bool,
    /// Whether this pass had a tick.
    ticked: bool,
    counters: Counters,
}

impl Node {
    /// A node with the replicas that were found on disk.
    pub fn new(config: CoreConfig, identity: Identity, recovered: Vec<Recovered>, logger: slog::Logger) -> Self {
        let (append_bytes_max, pace) = (config.raft.max_size_per_msg_bytes, admission::Pace::new(&config));
        let mut node = Self {
            registry: Registry::default(),
            config,
            identity,
            logger,
            now: Time::ZERO,
            ticks: 0,
            peers: BTreeMap::new(),
            outbox: Outbox { append_bytes_max, ..Outbox::default() },
            dirty: BTreeSet::new(),
            gathering: BTreeSet::new(),
            propose_first: ShardId(0),
            writing: VecDeque::new(),
            next_write: 1,
            applying: false,
            fetches: BTreeMap::new(),
            next_fetch: 1,
            next_snapshot: 1,
            streams: snapshots::Streams::default(),
            next_read: 1,
            waiting_bytes: 0,
            pace,
            under_way: BTreeSet::new(),
            uncommitted_bytes: 0,
            cache_bytes: 0,
            log_bytes: 0,
            unapplied_bytes: 0,
            room: room::Room::default(),
            balance: balance::Balance::default(),
            draining: false,
            drained: false,
            ticked: false,
            counters: Counters::default(),
        };
        for recovered in recovered {
            node.registry.create(&node.config, &node.logger, recovered);
        }
        let shards: Vec<_> = node.registry.shards().collect();
        for shard in shards {
            let replica = node.registry.get_mut(shard).expect("created just now");
            node.cache_bytes += replica.raw.store().cache_bytes();
            node.outbox.effects.push(Effect::PublishDescriptor { descriptor: replica.descriptor.clone() });
            for member in replica.descriptor.replicas.iter().filter(|r| r.node != identity.node) {
                node.peers.entry(member.node).or_default();
            }
            node.touch(shard);
        }
        node
    }

    /// Takes one event in.
    pub fn handle(&mut self, event: Event) {
        match event {
            Event::Clock { now } => self.set_clock(now),
            Event::Tick => self.tick(),
            Event::Message { from, envelope } => self.message(from, envelope),
            Event::Beat { from, beat } => self.heard(from, beat),
            Event::Command { ticket, shard, command, deadline } => self.command(ticket, shard, command, deadline),
            Event::Read { ticket, shard, consistency, deadline } => self.read(ticket, shard, consistency, deadline),
            Event::Transfer { ticket, shard, to } => self.transfer(ticket, shard, to),
            Event::Inspect { ticket, after, limit } => {
                let shards = self.inspect(after, limit);
                self.outbox.effects.push(Effect::Report { ticket, shards });
            }
            Event::Persisted { write } => self.persisted(write),
            Event::Applied { applied } => self.applied(applied),
            Event::EntriesFetched { fetch, shard, entries } => self.entries_fetched(fetch, shard, entries),
            Event::SnapshotBuilt { shard, snapshot, at } => self.snapshot_built(shard, snapshot, at),
            Event::SnapshotSent { shard, to, delivery } => self.snapshot_sent(shard, to, delivery),
            Event::SnapshotStaged { from, staged, envelope, manifest } => self.snapshot_staged(from, staged, envelope, manifest),
            Event::SnapshotInstalled { shard, at, revision: _ } => self.snapshot_installed(shard, at),
            // It is alive once it has said how it is.
            Event::NodeReachable { node, .. } => {
                self.peers.entry(node).or_default();
            }
            Event::NodeUnreachable { node } => self.node_unreachable(node),
            Event::Disk { free_bytes, reserve_bytes } => self.room.seen(free_bytes, reserve_bytes),
            Event::Drain => self.drain(),
        }
    }

    /// Ends the pass: everything that it came to, in the order in which it must be carried out.
    pub fn finish_pass(&mut self) -> Vec<Effect> {
        self.propose_gathered();
        // Handling one group's Ready can dirty it again (a proposal that waited, entries fetched); each round strictly uses
        // up what raft-rs had ready, and the bound catches a group that would spin.
        for round in 0.. {
            assert!(round < 64, "groups {:?} never come to rest", self.dirty);
            let dirty = std::mem::take(&mut self.dirty);
            if dirty.is_empty() {
                break;
            }
            for shard in dirty {
                self.advance(shard);
            }
        }
        self.emit_writes();
        self.emit_apply();
        if self.draining && !self.drained && self.nothing_left_to_hand_over() {
            self.drained = true;
            self.outbox.effects.push(Effect::Drained);
        }
        self.emit_messages();
        std::mem::take(&mut self.outbox.effects)
    }

    /// What was counted so far.
    pub fn counters(&self) -> Counters {
        let mut counters = self.counters;
        counters.replicas = self.registry.len() as u64;
        let registry::Census { leaders, quarantined, apply_lag } = self.registry.census();
        (counters.leaders, counters.quarantined, counters.apply_lag) = (leaders, quarantined, apply_lag);
        counters.cache_bytes = self.cache_bytes;
        counters
    }

    /// Whether anything waits that another pass, without a new event, would move on. Never true after [`Self::finish_pass`].
    #[cfg(test)]
    pub(crate) fn is_at_rest(&self) -> bool {
        self.dirty.is_empty()
    }

    /// Marks a group to be looked at before the pass ends.
    fn touch(&mut self, shard: ShardId) {
        self.dirty.insert(shard);
    }

    fn tick(&mut self) {
        self.ticks += 1;
        self.ticked = true;
        for peer in self.peers.values_mut() {
            peer.silent_ticks = peer.silent_ticks.saturating_add(1);
        }
        // In one walk: with many shards, looking each of them up again would cost more than its tick.
        let mut waiting = Vec::new();
        for replica in self.registry.iter_mut().filter(|replica| replica.quarantined.is_none()) {
            let context = elections::Context { config: &self.config, ticks: self.ticks, counters: &mut self.counters };
            if Elections::tick(replica, context) {
                // At once, since the same pass may bring more ticks.
                elections::set_timeout(replica, &self.config);
                self.dirty.insert(replica.shard);
            }
            if replica.waits_for_something() {
                waiting.push(replica.shard);
            }
        }
        for shard in waiting {
            self.expire_commands(shard);
            self.tick_reads(shard);
            self.tick_transfer(shard);
            self.tick_snapshots(shard);
            self.tick_flow(shard);
        }
        if self.ticks.is_multiple_of(self.config.raft.heartbeat_ticks as u64 * 2) {
            self.balance_leaders();
        }
        self.cut_logs_while_full();
        self.evict_caches();
        self.note_pace();
    }
}

#[cfg(test)]
mod tests;
