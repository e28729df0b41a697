//! A cluster in simulated time: one queue of things that are going to happen, taken one by one, in
//! one thread.
//!
//! ```text
//! Tick ──┐                                ┌─▶ network (Arrive, later)
//! Arrive ┼─▶ mailbox ─▶ Pass ─▶ effects ──┼─▶ storage lanes (Work, later)
//! Work ──┘                                └─▶ answers (clients, now)
//! ```
//!
//! A node is the real core and the real apply, log, recovery and snapshots on an engine in memory
//! ([`member`](super::member)). Its passes come soon after something enters its mailbox; a lane of
//! its storage does one job at a time, and each takes a while. A process that stands still makes no
//! passes and finishes no jobs; a crash forgets mailbox, jobs and unsynced writes.
//!
//! What happens at the same moment happens in the order in which it was put into the queue, so a
//! seed gives one run. Every effect and every arrival goes into the trace's hash.

use super::clients::Clients;
use super::faults::Faults;
use super::hands::Surroundings;
use super::invariants::{Holds, Invariants};
use super::member::{Lane, Member, Worked};
use super::network::{Link, Network, Packet};
use super::plan::{MS, Plan};
use crate::core::{Delivery, Event, Time};
use crate::rng::Rng;
use flotilla_router::{NodeId, ReplicaId, ShardId};
use std::collections::{BTreeMap, BTreeSet};
use xxhash_rust::xxh3::Xxh3;

/// Something that is going to happen.
pub(super) enum Happening {
    /// A node's election clock ticks.
    Tick(NodeId),
    /// A node's loop takes what is in the mailbox. `life` sets it apart from what an earlier life
    /// had in mind.
    Pass { node: NodeId, life: u64 },
    /// A packet arrives.
    Arrive { link: Link, packet: Packet },
    /// A lane's oldest job is done.
    Work { node: NodeId, life: u64, lane: Lane },
    /// A stream of a snapshot has ended, for its sender.
    SnapshotSent { node: NodeId, life: u64, shard: ShardId, to: ReplicaId, delivery: Delivery },
    /// A client asks, or gives up.
    Client(super::clients::Turn),
    /// Something goes wrong, or right again.
    Fault(super::faults::Turn),
}

/// A node as the simulation sees it, beside what it is.
pub(super) struct Seat {
    /// The node.
    pub(super) member: Member,
    /// Counts starts.
    pub(super) life: u64,
    /// When that was.
    started_at: u64,
    /// Until then the process stands still.
    pub(super) paused_until: u64,
    /// Until then a lane stands still.
    pub(super) lane_held_until: BTreeMap<Lane, u64>,
    /// Who leads each shard, as the node has said.
    pub(super) leaders: BTreeMap<ShardId, NodeId>,
    /// Whether a pass is due.
    pub(super) pass_due: bool,
    /// Lanes that are at work.
    busy: BTreeSet<Lane>,
    /// The clock's rate, in parts of a thousand.
    permille: u64,
}

/// The cluster.
pub(super) struct World {
    pub(super) plan: Plan,
    pub(super) rng: Rng,
    /// Simulated time, in nanoseconds.
    pub(super) now: u64,
    queue: BTreeMap<(u64, u64), Happening>,
    order: u64,
    pub(super) seats: BTreeMap<NodeId, Seat>,
    pub(super) network: Network,
    pub(super) clients: Clients,
    pub(super) faults: Faults,
    pub(super) invariants: Invariants,
    hash: Xxh3,
    /// What happened, in words, where somebody wants to read it.
    pub(super) words: Option<Vec<String>>,
    /// Happenings so far.
    pub(super) steps: u64,
    /// Rare things that cores and clients were brought to, and how often.
    pub(super) met: BTreeMap<&'static str, u64>,
}

impl World {
    /// Bootstraps and starts the cluster of a plan.
    pub(super) fn new(plan: Plan, rng: Rng, tell: bool) -> Result<Self, String> {
        let members = (1..=plan.nodes).map(|id| Member::bootstrapped(NodeId(id), &plan.shards));
        let seats: BTreeMap<_, _> = members
            .zip(&plan.clock_permille)
            .map(|(member, permille)| {
                let seat = Seat {
                    life: 0,
                    started_at: 0,
                    paused_until: 0,
                    lane_held_until: BTreeMap::new(),
                    leaders: BTreeMap::new(),
                    pass_due: false,
                    busy: BTreeSet::new(),
                    permille: *permille,
                    member,
                };
                (seat.member.id, seat)
            })
            .collect();
        let disks = seats.iter().map(|(id, seat)| (*id, seat.member.engine.clone())).collect();
        let mut world = Self {
            network: Network::new(&plan),
            clients: Clients::new(&plan),
            faults: Faults::default(),
            invariants: Invariants::new(&plan.shards, disks),
            plan,
            rng,
            now: 0,
            queue: BTreeMap::new(),
            order: 0,
            seats,
            hash: Xxh3::new(),
            words: tell.then(Vec::new),
            steps: 0,
            met: BTreeMap::new(),
        };
        for node in world.nodes() {
            world.start(node)?;
            world.later(world.rng.clone().below(50 * MS), Happening::Tick(node));
        }
        world.clients_begin();
        world.faults_begin();
        Ok(world)
    }

    /// Every node's id.
    pub(super) fn nodes(&self) -> Vec<NodeId> {
        self.seats.keys().copied().collect()
    }

    /// A node.
    pub(super) fn seat(&mut self, node: NodeId) -> &mut Seat {
        self.seats.get_mut(&node).expect("nodes come from the plan")
    }

    /// Whether a node's process is there, even if it stands still.
    pub(super) fn is_up(&self, node: NodeId) -> bool {
        self.seats[&node].member.running.is_some()
    }

    /// Puts something into the queue.
    pub(super) fn later(&mut self, delay: u64, happening: Happening) {
        self.order += 1;
        self.queue.insert((self.now + delay, self.order), happening);
    }

    /// The time on a node's own clock, which begins anew with each of its lives.
    pub(super) fn clock(&self, node: NodeId) -> Time {
        let seat = &self.seats[&node];
        Time::from_nanos((self.now - seat.started_at) / 1000 * seat.permille)
    }

    /// The rate of a node's clock, in parts of a thousand.
    pub(super) fn permille(&self, node: NodeId) -> u64 {
        self.seats[&node].permille
    }

    /// Says something, where somebody listens.
    pub(super) fn say(&mut self, words: impl FnOnce() -> String) {
        if let Some(said) = &mut self.words {
            said.push(format!("{:>12.3} ms  {}", self.now as f64 / MS as f64, words()));
        }
    }

    /// Counts something rare, so that somebody can see that it does happen.
    pub(super) fn meet(&mut self, what: &'static str) {
        *self.met.entry(what).or_default() += 1;
    }

    /// Makes something a part of the trace that two runs of a seed must share.
    pub(super) fn note(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
    }

    /// The hash of all that happened so far.
    pub(super) fn trace_hash(&self) -> u64 {
        self.hash.digest()
    }

    /// Lets things happen up to a moment, or until `enough`, which is asked now and then.
    pub(super) fn run_until(
        &mut self,
        moment: u64,
        mut enough: impl FnMut(&Self) -> bool,
    ) -> Result<bool, String> {
        let mut look_at = self.now;
        while let Some((&(at, order), _)) = self.queue.first_key_value() {
            if at > moment {
                break;
            }
            if at >= look_at {
                if enough(self) {
                    return Ok(true);
                }
                look_at = at + 20 * MS;
            }
            let happening = self.queue.remove(&(at, order)).expect("looked at just now");
            self.now = at;
            self.steps += 1;
            self.happen(happening)?;
        }
        self.now = moment;
        Ok(enough(self))
    }

    fn happen(&mut self, happening: Happening) -> Holds {
        match happening {
            Happening::Tick(node) => self.tick(node),
            Happening::Pass { node, life } if self.seats[&node].life == life => self.pass(node)?,
            Happening::Work { node, life, lane } if self.seats[&node].life == life => {
                self.work(node, lane)?
            }
            Happening::SnapshotSent { node, life, shard, to, delivery }
                if self.seats[&node].life == life =>
            {
                self.post(node, Event::SnapshotSent { shard, to, delivery });
            }
            Happening::Pass { .. } | Happening::Work { .. } | Happening::SnapshotSent { .. } => {}
            Happening::Arrive { link, packet } => self.arrive(link, packet),
            Happening::Client(turn) => self.client_turn(turn)?,
            Happening::Fault(turn) => self.fault_turn(turn)?,
        }
        Ok(())
    }

    /// Starts a node through recovery.
    pub(super) fn start(&mut self, node: NodeId) -> Holds {
        let (config, now) = (self.plan.config.clone(), self.now);
        let seat = self.seat(node);
        let recovered = seat.member.start(&config)?;
        seat.life += 1;
        seat.started_at = now;
        (seat.pass_due, seat.paused_until) = (false, 0);
        seat.busy.clear();
        seat.leaders.clear();
        seat.lane_held_until.clear();
        self.say(|| format!("n{node} starts"));
        self.hash.update(&node.0.to_be_bytes());
        self.invariants.starts(node, &recovered)?;
        self.wake(node);
        Ok(())
    }

    /// Takes a node down; of its unsynced writes the first `kept` survive.
    pub(super) fn crash(&mut self, node: NodeId, kept: usize) -> Holds {
        self.say(|| format!("n{node} crashes, {kept} unsynced writes survive"));
        self.seat(node).member.crash(kept);
        // What its earlier life had in mind does not happen any more.
        self.seat(node).life += 1;
        self.invariants.went_down(node);
        self.client_lost(node)
    }

    /// Puts an event into a node's mailbox.
    pub(super) fn post(&mut self, node: NodeId, event: Event) {
        if let Some(running) = &mut self.seat(node).member.running {
            running.mailbox.push_back(event);
            self.wake(node);
        }
    }

    fn tick(&mut self, node: NodeId) {
        let (now, seat) = (self.now, &self.seats[&node]);
        let tick = self.plan.config.raft.tick_ms * MS * 1000 / seat.permille;
        // A process that stands still misses its ticks.
        if now >= seat.paused_until {
            self.post(node, Event::Tick);
        }
        self.later(tick, Happening::Tick(node));
    }

    fn pass(&mut self, node: NodeId) -> Holds {
        let (now, clock) = (self.now, self.clock(node));
        let seat = self.seat(node);
        if now < seat.paused_until {
            let (rest, life) = (seat.paused_until - now, seat.life);
            self.later(rest, Happening::Pass { node, life });
            return Ok(());
        }
        seat.pass_due = false;
        self.run_pass(node, clock)?;
        self.set_to_work(node);
        Ok(())
    }

    /// Starts the lanes that have something to do.
    fn set_to_work(&mut self, node: NodeId) {
        for lane in Lane::ALL {
            let seat = &self.seats[&node];
            let waits = seat.member.running.as_ref().is_some_and(|r| r.waiting(lane) > 0);
            if waits && !seat.busy.contains(&lane) {
                let takes = match lane {
                    Lane::Persist => self.rng.around(self.plan.fsync),
                    Lane::Apply => self.rng.around(MS / 5),
                    Lane::Install => self.rng.around(20 * MS),
                    Lane::Build | Lane::Fetch => self.rng.around(2 * MS),
                };
                let seat = self.seat(node);
                seat.busy.insert(lane);
                let life = seat.life;
                self.later(takes, Happening::Work { node, life, lane });
            }
        }
    }

    fn work(&mut self, node: NodeId, lane: Lane) -> Holds {
        let now = self.now;
        let seat = self.seats.get_mut(&node).expect("nodes come from the plan");
        let held = seat.lane_held_until.get(&lane).copied().unwrap_or(0).max(seat.paused_until);
        let life = seat.life;
        if now < held {
            self.later(held - now, Happening::Work { node, life, lane });
            return Ok(());
        }
        seat.busy.remove(&lane);
        if seat.member.work(lane)? != Worked::Done {
            self.set_to_work(node);
            return Ok(());
        }
        let running = seat.member.running.as_ref().expect("a job was done in it");
        self.invariants.worked(node, running)?;
        self.wake(node);
        self.set_to_work(node);
        Ok(())
    }
}
