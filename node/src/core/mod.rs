//! The core: every Raft group of a process, driven by one pure state machine.
//!
//! ```text
//!      Event ──▶ handle ──▶ RawNodes step ──┐
//!      Event ──▶ handle ──▶ …               ├──▶ finish_pass ──▶ Effects, in order
//!      Event ──▶ handle ──▶ …               ┘    (Ready of every touched group, merged)
//! ```
//!
//! The shell drains its mailbox, feeds every event to [`Node::handle`], and ends the pass with
//! [`Node::finish_pass`], which collects the `Ready` of every group that was touched and merges
//! them: commands of a shard that wait together become one entry, entries of all groups become one
//! write, messages to one node become one effect, reads of a shard share one context.
//!
//! **What the core does not have**, so that a seed replays it byte by byte: no clock (time is an
//! event), no thread, no lock, no socket, no file, no async, no map with a random seed. raft-rs
//! draws election timeouts from a thread's random numbers, so [`group::timeouts`] overwrites them
//! after every call that may have drawn one.
//!
//! **Rooms**, each of which imports only those to its left (`node/tests/tidy.rs` checks it):
//!
//! ```text
//! leaves       pass        group/      operations/   replica/    replicas   placement/   mod
//! time event ▶ liveness ▶ raw node, ▶ write read… ▶ composes ▶ owns     ▶ balance    ▶ Node:
//! effect wire  budgets     log,        one file      them, in    ranges     drain        inputs,
//! config …     context     Ready       each          order                               tick …
//! ```
//!
//! **Duties of the shell.** Whoever drives a [`Node`] must
//!
//! 1. begin every pass with [`Event::Clock`], read from a monotonic clock **after** the pass's
//!    other events were taken from wherever they wait: what is vouched for at that time is vouched
//!    for to everybody who asked before;
//! 2. give [`Event::Tick`] no more often than once in `raft.tick_ms` by its own clock, however late
//!    the last one came: whoever counts a tick promises to have stood by its leader for that long;
//! 3. carry effects out in the order in which they come, those of one pass before those of the next
//!    ([`dispatch::carry_out`]);
//! 4. report [`Event::Persisted`] only once the batch, and every batch before it, is durable, in
//!    the order of the numbers;
//! 5. apply in order, data and applied index in one batch, and report each piece of work in an
//!    [`Event::Applied`], one that takes long in an event of its own;
//! 6. let a read look at what was applied when its pass began, or later, never at an earlier state;
//! 7. report the end of every [`Effect::SendSnapshot`], well or not, always; and of every
//!    [`Effect::BuildSnapshot`];
//! 8. build a snapshot in apply order, and install one whole, so that a crash leaves the old state
//!    or the new one;
//! 9. hand in from peers only what the connection's certificate vouches for: `from` is the node
//!    that it names;
//! 10. end the process where a write or an fsync failed: nobody knows what the disk holds then;
//! 11. lose, repeat, delay or reorder messages as it must: nothing else of the network is relied
//!     upon.
//!
//! **Invariants.** A ticket is answered exactly once. A write is acknowledged only after it was
//! applied here, hence committed. A proposal that was lost is called *not applied* only when what
//! was committed at or below its index rules it out. Nothing that a peer sends can panic.

#![warn(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod config;
pub mod dispatch;
pub mod effect;
pub mod event;
pub mod report;
pub mod wire;

mod budgets;
mod context;
mod counters;
mod gathering;
mod group;
mod inputs;
mod liveness;
mod operations;
mod pass;
mod placement;
mod replica;
mod replicas;
mod tick;
mod time;

pub use config::{CoreConfig, Identity, LogConfig, RaftConfig, ReadMode, ReadsConfig};
pub use counters::Counters;
pub use effect::{Done, Effect};
pub use event::{Ask, Built, Delivery, Event, SnapshotId, Ticket};
pub use time::Time;
pub use wire::{Beat, Envelope, Timing};

use budgets::Budgets;
use context::{Context, Ids};
use flotilla_router::ShardId;
use flotilla_storage::Recovered;
use liveness::Liveness;
use pass::Pass;
use placement::balance::Balance;
use placement::drain::Drain;
use replica::Replica;
use replicas::{Replicas, Sums};

/// Rounds after which groups that still have something ready are taken to spin.
const ROUNDS_MAX: usize = 64;

/// All Raft groups of one process.
pub struct Node {
    config: CoreConfig,
    identity: Identity,
    /// The time of this pass.
    now: Time,
    /// Ticks since the node started.
    ticks: u64,
    replicas: Replicas,
    liveness: Liveness,
    pass: Pass,
    budgets: Budgets,
    ids: Ids,
    balance: Balance,
    drain: Drain,
    counters: Counters,
}

impl Node {
    /// A node with the replicas that were found on disk.
    pub fn new(
        config: CoreConfig,
        identity: Identity,
        recovered: Vec<Recovered>,
        logger: slog::Logger,
    ) -> Self {
        let mut node = Self {
            identity,
            now: Time::ZERO,
            ticks: 0,
            replicas: Replicas::default(),
            liveness: Liveness::new(config.raft.election_ticks),
            pass: Pass::default(),
            budgets: Budgets::new(&config),
            ids: Ids::default(),
            balance: Balance::default(),
            drain: Drain::default(),
            counters: Counters::default(),
            config,
        };
        for recovered in recovered {
            node.replicas.create(&node.config, &logger, recovered);
        }
        node.budgets.replicas = node.replicas.len() as u64;
        for replica in node.replicas.iter() {
            let descriptor = replica.group.descriptor();
            node.pass.effects.push(Effect::PublishDescriptor { descriptor: descriptor.clone() });
            descriptor
                .replicas
                .iter()
                .filter(|r| r.node != identity.node)
                .for_each(|r| node.liveness.meet(r.node));
            node.pass.touch(replica.group.shard);
        }
        node
    }

    /// Takes one event in.
    pub fn handle(&mut self, event: Event) {
        match event {
            Event::Clock { now } => {
                self.now = self.now.max(now);
                self.pass.begin(self.identity.incarnation, self.now);
            }
            Event::Tick => self.tick(),
            Event::Message { from, envelope } => {
                let hosted =
                    self.with(envelope.shard, |replica, ctx| replica.message(from, envelope, ctx));
                self.counters.messages_refused += u64::from(hosted.is_none());
            }
            Event::Beat { from, beat } => self.liveness.heard(from, beat),
            Event::Ask { ticket, ask, deadline } => self.ask(ticket, ask, deadline),
            Event::Persisted { write } => self.persisted(write),
            Event::Applied { applied } => self.applied(applied),
            Event::EntriesFetched { fetch, shard, entries } => {
                self.with(shard, |replica, ctx| replica.entries_fetched(fetch, entries, ctx));
            }
            Event::SnapshotBuilt { shard, snapshot, built } => {
                if self
                    .with(shard, |replica, ctx| replica.snapshot_built(snapshot, built, ctx))
                    .is_none()
                {
                    self.pass.effects.push(Effect::DropSnapshot { snapshot });
                }
            }
            Event::SnapshotSent { shard, to, delivery } => {
                self.with(shard, |replica, ctx| replica.snapshot_sent(to, delivery, ctx));
            }
            Event::SnapshotStaged { from, staged, envelope, manifest } => {
                self.snapshot_staged((from, staged), envelope, &manifest);
            }
            Event::SnapshotInstalled { shard, at, revision: _ } => {
                self.snapshot_installed(shard, at)
            }
            Event::NodeReachable { node, .. } => self.liveness.meet(node),
            Event::NodeUnreachable { node } => {
                for shard in self.replicas.led_shards() {
                    self.with(shard, |replica, ctx| replica.unreachable(node, ctx));
                }
            }
            Event::Disk { free_bytes, reserve_bytes } => {
                self.budgets.room.seen(free_bytes, reserve_bytes)
            }
            Event::Drain => self.drain(),
        }
    }

    /// Ends the pass: everything that it came to, in the order in which it must be carried out.
    pub fn finish_pass(&mut self) -> Vec<Effect> {
        self.propose_gathered();
        // Handling one group's Ready can touch it again (a proposal that waited, entries fetched);
        // each round strictly uses up what raft-rs had ready, and the bound catches a group that
        // would spin.
        for round in 0.. {
            let dirty = self.pass.take_dirty();
            if dirty.is_empty() {
                break;
            }
            assert!(round < ROUNDS_MAX, "groups {dirty:?} never come to rest");
            for shard in dirty {
                self.with(shard, Replica::advance);
            }
        }
        self.pass.emit_writes(self.config.raft.inflight_writes_max);
        self.pass.emit_apply();
        if self.drain.ends(&self.replicas, &self.liveness) {
            self.pass.effects.push(Effect::Drained);
        }
        let due = self.liveness.is_beat_due(self.ticks, self.config.raft.heartbeat_ticks as u64);
        let beat = due.then(|| self.beat());
        self.pass.emit_messages(beat, self.liveness.nodes());
        std::mem::take(&mut self.pass.effects)
    }

    /// What was counted so far.
    pub fn counters(&self) -> Counters {
        let (leaders, replicas) = (self.replicas.leaders() as u64, self.replicas.len() as u64);
        let Sums { quarantined, apply_lag, cache_bytes, .. } = self.replicas.sums();
        Counters { leaders, quarantined, apply_lag, replicas, cache_bytes, ..self.counters }
    }

    /// Whether nothing waits that another pass, without a new event, would move on, and what is
    /// kept by increments is right. Always true after [`Self::finish_pass`].
    #[cfg(test)]
    pub(crate) fn is_at_rest(&mut self) -> bool {
        self.pass.is_at_rest() && self.replicas.are_summed_up()
    }

    /// Has something done with one shard's replica; `None` where there is none.
    fn with<T>(
        &mut self,
        shard: ShardId,
        act: impl FnOnce(&mut Replica, &mut Context<'_>) -> T,
    ) -> Option<T> {
        let (replicas, mut context) = self.split();
        let outcome = replicas.with(shard, |replica| act(replica, &mut context));
        self.budgets.note_logs(self.replicas.sums().cache_bytes, self.replicas.sums().log_bytes);
        outcome
    }

    /// Gives every group its tick.
    fn tick_groups(&mut self) {
        let (replicas, mut context) = self.split();
        replicas.tick(|replica| replica.tick(&mut context));
    }

    /// The replicas, and what they share.
    fn split(&mut self) -> (&mut Replicas, Context<'_>) {
        let context = Context {
            config: &self.config,
            identity: self.identity,
            now: self.now,
            ticks: self.ticks,
            liveness: &self.liveness,
            pass: &mut self.pass,
            budgets: &mut self.budgets,
            ids: &mut self.ids,
            counters: &mut self.counters,
        };
        (&mut self.replicas, context)
    }

    /// What this node says of itself.
    fn beat(&self) -> Beat {
        Beat {
            leaders: self.replicas.leaders() as u32,
            replicas: self.replicas.len() as u32,
            draining: self.drain.is_draining,
            disk_full: self.budgets.room.is_full(),
        }
    }
}

#[cfg(test)]
mod tests;
