//! The loop: takes what waits in the mailbox, feeds the core, carries out what it asks.
//!
//! It owns the core, and nothing else touches it. It never waits for anything but its mailbox and
//! the next tick: disk, network and clients each have a thread or queue of their own. Ticks are
//! never closer together than the tick's length, so that a pause does not make a follower count
//! time that did not pass since it heard its leader; leases rest on that. Those who hold them count
//! on a clock that runs in suspend, too ([`super::clock`]).

use super::applier;
use super::mailbox::{Answered, Grant, Mail, Mailbox, ReplyTo};
use super::queue::Queue;
use super::rates::Rates;
use super::snapshots::Snapshots;
use super::views::Views;
use super::{Engine, View, writer};
use crate::core::dispatch::{self, Hands};
use crate::core::{Ask, Beat, Counters, Done, Event, Node, SnapshotId, Ticket, Time, wire};
use flotilla_ops::Metrics;
use flotilla_router::call::Staleness;
use flotilla_router::sizes::FRAME_BYTES_MAX;
use flotilla_router::{Descriptor, KeyRange, NodeId, Refusal, ReplicaId, Routes, ShardId};
use flotilla_storage::{ApplyWork, Engine as _, HardState, LogBatch};
use flotilla_transport::{Lane, Transport};
use raft::eraftpb::MessageType;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// What the loop shares with the rest of the process.
#[derive(Default)]
pub struct LoopState {
    /// When the last pass ended, in milliseconds of the mailbox's clock.
    pub last_pass_ms: AtomicU64,
    /// Set when the process is going down.
    pub draining: std::sync::atomic::AtomicBool,
    /// Shards whose replica here was quarantined: others are asked about them.
    pub quarantined: std::sync::Mutex<BTreeSet<ShardId>>,
    /// What the core counted, as of the last tick.
    counters: std::sync::Mutex<Counters>,
    /// How busy each shard is.
    pub rates: std::sync::Mutex<Rates>,
}

impl LoopState {
    /// What the core counted, as of the last tick: a look at every shard would hold all of them up.
    pub fn counters(&self) -> Counters {
        *self.counters.lock().expect("nothing panics while it holds them")
    }
}

/// What the loop works with.
pub struct Workers {
    /// Log writes.
    pub writer: Arc<Queue<writer::Work>>,
    /// Apply work.
    pub applier: Arc<Queue<applier::Work>>,
    /// Snapshot and cold-entry work.
    pub snapshots: Arc<Snapshots>,
    /// Where the reads of other nodes look.
    pub runtime: tokio::runtime::Handle,
    /// The other nodes.
    pub transport: Arc<Transport>,
    /// Where who leads is published.
    pub routes: Arc<Routes>,
    /// Where reads look.
    pub engine: Arc<Engine>,
    /// The views that are kept for streams.
    pub views: Arc<Views>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What the rest of the process sees of the loop.
    pub state: Arc<LoopState>,
}

/// The loop.
pub struct Driver {
    core: Node,
    workers: Workers,
    mailbox: Mailbox,
    /// Who waits for each ticket, and whether for a write.
    waiters: HashMap<Ticket, (ReplyTo, bool)>,
    next_ticket: u64,
    drained: Vec<oneshot::Sender<()>>,
    requests: HashMap<ShardId, (u64, u64)>,
    /// The core's time in this pass.
    now: Time,
}

impl Driver {
    /// A loop around `core`.
    pub fn new(core: Node, workers: Workers, mailbox: Mailbox) -> Self {
        Self {
            core,
            workers,
            mailbox,
            waiters: HashMap::new(),
            next_ticket: 1,
            drained: Vec::new(),
            requests: HashMap::new(),
            now: Time::ZERO,
        }
    }

    /// Turns until it is told to stop.
    pub fn run(mut self, tick: Duration) {
        let mut next_tick = Instant::now() + tick;
        let mut mails = Vec::new();
        loop {
            self.mailbox.take(&mut mails, next_tick);
            // After the mailbox was emptied: what is vouched for at this moment is vouched for to
            // everybody who asked before.
            let started = Instant::now();
            self.now = self.mailbox.now();
            self.core.handle(Event::Clock { now: self.now });
            if started >= next_tick {
                next_tick = started + tick;
                self.core.handle(Event::Tick);
                self.count();
            }
            let events = mails.len();
            for mail in mails.drain(..) {
                if matches!(mail, Mail::Stop) {
                    self.workers.writer.close();
                    self.workers.applier.close();
                    // Whoever asked meanwhile is told so at once, since what is asked is dropped
                    // with the queue.
                    self.mailbox.close();
                    return;
                }
                self.take_in(mail);
            }
            let effects = self.core.finish_pass();
            dispatch::carry_out(effects, &mut Turn { driver: &mut self, view: None });
            let now = self.mailbox.time(Instant::now());
            self.workers.state.last_pass_ms.store(now.as_millis() as u64, Ordering::Relaxed);
            self.workers.metrics.loop_pass_seconds.observe(started.elapsed().as_secs_f64());
            self.workers.metrics.loop_events.observe(events as f64);
        }
    }

    fn ticket(&mut self, waiter: ReplyTo, is_write: bool) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.waiters.insert(ticket, (waiter, is_write));
        ticket
    }

    fn take_in(&mut self, mail: Mail) {
        let event = match mail {
            Mail::Event(event) => {
                if let Event::Disk { free_bytes, reserve_bytes } = event
                    && free_bytes < reserve_bytes
                {
                    self.workers.views.make_room();
                }
                event
            }
            Mail::Events { events, bytes: _ } => {
                return events.into_iter().for_each(|event| self.core.handle(event));
            }
            Mail::Ask { ask, deadline, reply } => {
                match &ask {
                    Ask::Write { shard, .. } => self.requests.entry(*shard).or_default().1 += 1,
                    Ask::Read { shard, .. } => self.requests.entry(*shard).or_default().0 += 1,
                    Ask::Transfer { .. } | Ask::Change { .. } | Ask::Inspect { .. } => {}
                }
                let ticket = self.ticket(reply, matches!(ask, Ask::Write { .. }));
                Event::Ask { ticket, ask, deadline }
            }
            Mail::Drain { reply } => {
                self.workers.state.draining.store(true, Ordering::Relaxed);
                self.drained.push(reply);
                Event::Drain
            }
            Mail::Stop => return,
        };
        self.core.handle(event);
    }

    /// Once per tick: what the core counted, for all to see.
    fn count(&mut self) {
        *self.workers.state.counters.lock().expect("nothing panics while it holds them") =
            self.core.counters();
        self.workers.metrics.mailbox_events.set(self.mailbox.waiting() as i64);
        if !self.requests.is_empty() {
            let mut rates =
                self.workers.state.rates.lock().expect("nothing panics while it holds the rates");
            self.requests
                .drain()
                .for_each(|(shard, (reads, writes))| rates.count(shard, reads, writes));
        }
    }
}

/// One turn of the loop, while its effects are carried out.
struct Turn<'a> {
    driver: &'a mut Driver,
    /// The view of the pass, once a read needs one: all that may look now may look at the same.
    view: Option<Arc<View>>,
}

impl Turn<'_> {
    fn workers(&self) -> &Workers {
        &self.driver.workers
    }
}

impl Hands for Turn<'_> {
    fn publish_descriptors(&mut self, descriptors: Vec<Arc<Descriptor>>) {
        self.workers().routes.learn(descriptors);
    }

    /// One frame per lane, unless it grows too large.
    fn send(&mut self, to: NodeId, messages: Vec<wire::Envelope>, beat: Option<Beat>) {
        let transport = &self.workers().transport;
        let lanes = transport.append_lanes();
        let lane_of = |envelope: &wire::Envelope| match envelope.message.get_msg_type() {
            MessageType::MsgAppend | MessageType::MsgAppendResponse => {
                Lane::append_for(envelope.shard, lanes)
            }
            _ => Lane::Control,
        };
        let beat = beat.map(|beat| (Lane::Control, beat));
        wire::frames(&messages, beat, FRAME_BYTES_MAX, lane_of, |lane, frame| {
            transport.send(to, lane, frame);
        });
    }

    // The queues are closed by this thread alone, when it ends.

    fn persist(&mut self, write: u64, batch: LogBatch) {
        self.workers().writer.send((write, batch));
    }

    fn apply(&mut self, work: Vec<ApplyWork>) {
        self.workers().applier.send(applier::Work::Apply(work));
    }

    fn read(
        &mut self,
        tickets: Vec<Ticket>,
        descriptor: Arc<Descriptor>,
        staleness: Option<Staleness>,
    ) {
        let workers = &self.driver.workers;
        let view = self.view.get_or_insert_with(|| Arc::new(workers.engine.view())).clone();
        let grant = Grant { view, descriptor, staleness, at: self.driver.now };
        let mut of_peers = Vec::new();
        for ticket in tickets {
            match self.driver.waiters.remove(&ticket) {
                Some((ReplyTo::Peer(answered), _)) => of_peers.push(answered),
                Some((reply, _)) => reply.send(Ok(Answered::Granted(grant.clone()))),
                None => {}
            }
        }
        if !of_peers.is_empty() {
            // Looking may have to wait for the disk: not here.
            self.driver.workers.runtime.spawn(async move {
                of_peers
                    .into_iter()
                    .for_each(|answered| answered(Ok(Answered::Granted(grant.clone()))));
            });
        }
    }

    fn fetch_entries(&mut self, fetch: u64, shard: ShardId, low: u64, high: u64, bytes_max: u64) {
        self.workers().metrics.entry_fetches.inc();
        self.workers().snapshots.fetch_entries(fetch, shard, low, high, bytes_max);
    }

    fn build_snapshot(&mut self, shard: ShardId, snapshot: SnapshotId) {
        self.workers().applier.send(applier::Work::Pin { shard, snapshot });
    }

    fn drop_snapshot(&mut self, snapshot: SnapshotId) {
        self.workers().snapshots.drop_built(snapshot);
    }

    fn send_snapshot(
        &mut self,
        to: NodeId,
        replica: ReplicaId,
        snapshot: SnapshotId,
        envelope: wire::Envelope,
    ) {
        self.workers().snapshots.send(&self.workers().transport, to, replica, snapshot, &envelope);
    }

    fn install_snapshot(
        &mut self,
        replica: (ShardId, ReplicaId),
        staged: SnapshotId,
        hard_state: HardState,
        clear: Vec<KeyRange>,
    ) {
        self.workers().views.give_up(Some(replica.0));
        self.workers().snapshots.install(
            replica,
            staged,
            hard_state,
            clear,
            self.workers().applier.clone(),
        );
    }

    fn discard_staged(&mut self, staged: SnapshotId) {
        self.workers().snapshots.discard(staged);
    }

    fn publish_leader(&mut self, shard: ShardId, leader: Option<NodeId>) {
        self.workers().routes.follow(shard, leader);
    }

    fn reply(&mut self, ticket: Ticket, result: Result<Done, Refusal>) {
        let Some((reply, is_write)) = self.driver.waiters.remove(&ticket) else { return };
        let metrics = &self.workers().metrics;
        metrics.proposals_refused.inc_by((is_write && result.is_err()).into());
        metrics.leader_transfers.inc_by(matches!(result, Ok(Done::Transferred(_))).into());
        reply.send(result.map(Answered::Done));
    }

    fn drained(&mut self) {
        self.driver.drained.drain(..).for_each(|reply| {
            let _ = reply.send(());
        });
    }

    fn quarantined(&mut self, shard: ShardId, why: String) {
        self.workers().views.give_up(Some(shard));
        tracing::error!(%shard, why, "shard quarantined on this node; its other replicas go on, \
                                      and requests go to them");
        self.workers()
            .state
            .quarantined
            .lock()
            .expect("nothing panics while it holds them")
            .insert(shard);
    }
}

/// The core's time in milliseconds.
pub fn millis(time: Time) -> u64 {
    time.as_millis() as u64
}
