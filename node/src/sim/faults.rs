//! What goes wrong: drawn from the plan, one after the other, several at a time, each with an end.

use super::invariants::Holds;
use super::member::Lane;
use super::network::Link;
use super::plan::{Fault, MS, SECOND};
use super::rivals::Trap;
use super::world::{Happening, World};
use crate::core::{Ask, Event, Ticket, Time};
use flotilla_router::{NodeId, ShardId};
use std::collections::BTreeMap;

/// A step of what goes wrong.
pub(super) enum Turn {
    /// The next fault.
    Next,
    /// A node that is down starts, if it is still that one that went down then.
    Start { node: NodeId, life: u64 },
    /// A node that was told to drain ends.
    End { node: NodeId, life: u64 },
    /// A disk has room again.
    Room { node: NodeId },
    /// A node hears nothing any more.
    Deafen { node: NodeId, until: u64 },
    /// A node is cut off both ways.
    Isolate { node: NodeId, until: u64 },
    /// Another direction between two replicas of a shard stands still.
    Stutter { shard: ShardId, until: u64 },
    /// A direction stands still.
    Still { link: Link, until: u64 },
    /// What rivals had said arrives late; see [`rivals`](super::rivals).
    OldWords { shard: ShardId },
    /// A follower goes on hearing nothing of its leader.
    Deaf { link: Link, until: u64 },
    /// See [`Fault::Startle`].
    Startle { shard: ShardId },
    /// A node dies and is back at once.
    Blink { node: NodeId },
}

/// What went wrong so far.
#[derive(Default)]
pub(super) struct Faults {
    /// How often.
    pub(super) counts: BTreeMap<Fault, u64>,
    /// What is set up for leases that are too long.
    pub(super) trap: Option<Trap>,
    /// Orders use tickets from here on.
    next_ticket: u64,
}

impl Faults {
    /// The next ticket of nobody.
    pub(super) fn draw_ticket(&mut self) -> u64 {
        self.next_ticket += 1;
        self.next_ticket
    }
}

/// Tickets of nobody: orders whose outcome does not matter.
pub(super) const NOBODY: u64 = 1 << 60;
/// Tickets of orders to change members: it is looked at whether their answers are true.
pub(super) const ORDERS: u64 = 1 << 61;

impl World {
    /// Puts the first fault into the queue.
    pub(super) fn faults_begin(&mut self) {
        // Let there be leaders first.
        self.later(SECOND, Happening::Fault(Turn::Next));
    }

    /// Something goes wrong, or right again.
    pub(super) fn fault_turn(&mut self, turn: Turn) -> Holds {
        match turn {
            Turn::Next if self.now < self.plan.fault_phase => {
                let fault = self.rng.pick(&self.plan.faults.clone());
                *self.faults.counts.entry(fault).or_default() += 1;
                self.strike(fault)?;
                let next = self.rng.around(self.plan.fault_every);
                self.later(next, Happening::Fault(Turn::Next));
            }
            Turn::Start { node, life } if self.seats[&node].life == life && !self.is_up(node) => {
                self.start(node)?
            }
            Turn::End { node, life } if self.seats[&node].life == life && self.is_up(node) => {
                // A process that ends well closes its engine, which syncs everything.
                self.crash(node, usize::MAX)?;
                self.start(node)?;
            }
            Turn::Room { node } => {
                self.post(node, Event::Disk { free_bytes: 1 << 40, reserve_bytes: 1 })
            }
            Turn::Deafen { node, until } => {
                self.nodes().into_iter().for_each(|other| self.network.cut((other, node), until));
            }
            Turn::Isolate { node, until } => self.isolate(node, until),
            Turn::Stutter { shard, until } if self.now < until.min(self.plan.fault_phase) => {
                self.stutter(shard, until)
            }
            Turn::Still { link, until } if self.now < self.plan.fault_phase => {
                self.network.clog(link, until)
            }
            Turn::OldWords { shard } | Turn::Startle { shard }
                if self.now < self.plan.fault_phase =>
            {
                let old_words = matches!(turn, Turn::OldWords { .. });
                match self.leader_and_two(shard) {
                    Some(three) if old_words => self.old_words(three),
                    Some(three) => self.startle(three),
                    None => {}
                }
            }
            Turn::Deaf { link, until } if self.now < until.min(self.plan.fault_phase) => {
                self.deafen(link, until)
            }
            Turn::Blink { node } if self.now < self.plan.fault_phase && self.is_up(node) => {
                let kept = self.survivors();
                self.crash(node, kept)?;
                let (delay, life) = (self.rng.within(1..=60) * MS, self.seats[&node].life);
                self.later(delay, Happening::Fault(Turn::Start { node, life }));
            }
            Turn::OldWords { .. }
            | Turn::Deaf { .. }
            | Turn::Startle { .. }
            | Turn::Still { .. }
            | Turn::Blink { .. }
            | Turn::Next
            | Turn::Start { .. }
            | Turn::End { .. }
            | Turn::Stutter { .. } => {}
        }
        Ok(())
    }

    /// Everything works again: all nodes run, nothing is lost, late, cut, clogged, held or paused.
    pub(super) fn heal(&mut self) -> Holds {
        self.say(|| "everything is healed".into());
        self.network.heal();
        // What the hardware is like stays so, as far as anybody could be elected on it, which takes
        // several writes one after the other.
        if self.rng.percent(50) {
            self.plan.fsync = self.plan.fsync.min(5 * MS);
        } else {
            self.plan.fsync = self.plan.fsync.min(50 * MS);
            self.network.hurry();
        }
        let now = self.now;
        for node in self.nodes() {
            let seat = self.seat(node);
            seat.paused_until = seat.paused_until.min(now);
            seat.lane_held_until.clear();
            if self.is_up(node) {
                self.post(node, Event::Disk { free_bytes: 1 << 40, reserve_bytes: 1 });
            } else {
                self.start(node)?;
            }
        }
        Ok(())
    }

    /// The hardware gets better, too.
    pub(super) fn hurry(&mut self) {
        self.network.hurry();
        self.plan.fsync = self.plan.fsync.min(5 * MS);
    }

    fn any_node(&mut self) -> NodeId {
        let nodes = self.nodes();
        self.rng.pick(&nodes)
    }

    fn any_shard(&mut self) -> ShardId {
        let at = self.rng.below(self.plan.shards.len() as u64);
        self.plan.shards[at as usize].id
    }

    /// A node that leads a shard which clients care about, or any.
    fn somebody(&mut self) -> NodeId {
        let shard = if self.rng.percent(70) {
            self.clients.hot_shard(&mut self.rng)
        } else {
            self.any_shard()
        };
        self.leader(shard).filter(|_| self.rng.percent(60)).unwrap_or_else(|| self.any_node())
    }

    /// A node that says that it leads.
    pub(super) fn leader(&self, shard: ShardId) -> Option<NodeId> {
        self.seats
            .values()
            .find(|s| s.member.running.is_some() && s.leaders.get(&shard) == Some(&s.member.id))
            .map(|s| s.member.id)
    }

    fn isolate(&mut self, node: NodeId, until: u64) {
        for other in self.nodes().into_iter().filter(|other| *other != node) {
            self.network.cut((node, other), until);
            self.network.cut((other, node), until);
        }
    }

    /// One direction stands still for a while, mostly from or to the leader, or between two others;
    /// soon another.
    fn stutter(&mut self, shard: ShardId, until: u64) {
        let members: Vec<_> =
            self.plan.shard(shard).replicas.iter().map(|replica| replica.node).collect();
        let (mut from, to) = (self.rng.pick(&members), self.rng.pick(&members));
        if self.rng.percent(40) {
            from = self.leader(shard).unwrap_or(from);
        }
        if from != to {
            let link = if self.rng.percent(70) { (from, to) } else { (to, from) };
            let still = self.rng.within(50..=1200) * MS;
            self.network.clog(link, self.now + still);
        }
        let next = self.rng.below(200 * MS);
        self.later(next, Happening::Fault(Turn::Stutter { shard, until }));
    }

    pub(super) fn survivors(&mut self) -> usize {
        self.rng.pick(&[0, 0, 1, 2, 5, usize::MAX])
    }

    fn down(&mut self, node: NodeId, kept: usize, at_least: u64) -> Holds {
        if !self.is_up(node) {
            return Ok(());
        }
        self.crash(node, kept)?;
        let away = self.rng.pick(&[100 * MS, 500 * MS, 2 * SECOND]);
        let (delay, life) = (at_least + self.rng.around(away), self.seats[&node].life);
        self.later(delay, Happening::Fault(Turn::Start { node, life }));
        Ok(())
    }

    fn strike(&mut self, fault: Fault) -> Holds {
        if matches!(fault, Fault::Stutter | Fault::Startle) && self.clients.is_hushed(self.now) {
            // Two plots at a time would spoil each other.
            return Ok(());
        }
        let (a, b) = (self.somebody(), self.any_node());
        let until = self.now + self.rng.around(SECOND);
        self.say(|| format!("{fault:?} of n{a}, n{b}"));
        let others: Vec<_> = self.nodes().into_iter().filter(|id| *id != a).collect();
        match fault {
            Fault::Crash => {
                let kept = self.survivors();
                self.down(a, kept, 0)?;
            }
            Fault::PowerLoss => {
                let spared = self.rng.percent(40).then_some(b);
                let delay = self.rng.pick(&[0, 200 * MS]);
                for node in self.nodes().into_iter().filter(|id| Some(*id) != spared) {
                    let kept = self.survivors();
                    self.down(node, kept, delay)?;
                }
            }
            Fault::Isolate => self.isolate(a, until),
            Fault::Echo => {
                // From within the time in which the others elect anew to about when a leader that
                // hears nothing gives up.
                let heard_at = self.now + self.rng.within(500..=1699) * MS;
                others.iter().for_each(|other| self.network.clog((*other, a), heard_at));
                let (delay, until) = (self.rng.below(300 * MS), heard_at + 500 * MS);
                self.later(delay, Happening::Fault(Turn::Isolate { node: a, until }));
            }
            Fault::Split => {
                let (left, right): (Vec<_>, Vec<_>) =
                    self.nodes().into_iter().partition(|_| self.rng.percent(50));
                for (l, r) in left.iter().flat_map(|l| right.iter().map(move |r| (*l, *r))) {
                    self.network.cut((l, r), until);
                    self.network.cut((r, l), until);
                }
            }
            Fault::OneWay if self.rng.percent(50) => {
                others.iter().for_each(|other| self.network.cut((a, *other), until))
            }
            Fault::OneWay if self.rng.percent(50) => {
                others.iter().for_each(|other| self.network.cut((*other, a), until))
            }
            Fault::OneWay => self.network.cut((a, b), until),
            Fault::Ring => {
                let nodes = self.plan.nodes;
                for (x, y) in (1..=nodes).flat_map(|x| (1..=nodes).map(move |y| (x, y))) {
                    let apart = x.abs_diff(y).min(nodes - x.abs_diff(y));
                    if apart > 1 {
                        self.network.cut((NodeId(x), NodeId(y)), until);
                    }
                }
            }
            Fault::Clog if self.rng.percent(50) => {
                others.iter().for_each(|other| self.network.clog((a, *other), until))
            }
            Fault::Clog => self.network.clog((a, b), until),
            Fault::SlowDisk => {
                let lane = self.rng.pick(&[
                    Lane::Persist,
                    Lane::Persist,
                    Lane::Apply,
                    Lane::Install,
                    Lane::Build,
                    Lane::Fetch,
                ]);
                self.seat(a).lane_held_until.insert(lane, until);
            }
            Fault::Pause => self.seat(a).paused_until = until,
            Fault::Transfer => {
                let shard = self.clients.hot_shard(&mut self.rng);
                let from = self.leader(shard).unwrap_or(a);
                let ticket = Ticket(NOBODY + self.faults.draw_ticket());
                self.post(
                    from,
                    Event::Ask { ticket, ask: Ask::Transfer { shard, to: b }, deadline: Time::MAX },
                );
                if self.rng.percent(40) {
                    // The one that hands over does not hear how it went.
                    let delay = self.rng.below(3 * self.plan.latency);
                    self.later(delay, Happening::Fault(Turn::Deafen { node: from, until }));
                }
            }
            Fault::Members => {
                let shard = self.clients.hot_shard(&mut self.rng);
                self.change_members(shard, b);
            }
            Fault::Drain => {
                self.post(a, Event::Drain);
                let (delay, life) = (self.rng.around(SECOND), self.seats[&a].life);
                self.later(delay, Happening::Fault(Turn::End { node: a, life }));
            }
            Fault::DiskFull => {
                self.post(a, Event::Disk { free_bytes: 0, reserve_bytes: 1 });
                let delay = until - self.now;
                self.later(delay, Happening::Fault(Turn::Room { node: a }));
            }
            Fault::Stutter if self.rng.percent(40) => {
                let shard = self.clients.hot_shard(&mut self.rng);
                let until = self.now + self.rng.within(1000..=3000) * MS;
                self.stutter(shard, until);
            }
            Fault::Stutter | Fault::Startle => {
                // A rival can only win whose log is no shorter: nobody writes for a while, and then
                // it begins.
                let shard = self.clients.hot_shard(&mut self.rng);
                self.clients.hush(shard, self.now + 3500 * MS);
                let turn = if fault == Fault::Stutter {
                    Turn::OldWords { shard }
                } else {
                    Turn::Startle { shard }
                };
                self.later(400 * MS, Happening::Fault(turn));
            }
            Fault::Unreachable => self.post(a, Event::NodeUnreachable { node: b }),
        }
        Ok(())
    }
}
