//! Clients: each asks one thing at a time, of a node that probably leads, and writes down what it
//! was told.
//!
//! They fight over few keys, so that operations on a key overlap; values are unique, so that every
//! answer says what it saw. A client that is not answered within its patience gives up: what it
//! asked may still happen, and is *unknown*, as is what a node that went down was asked. At the end
//! the histories go through the linearizability checker.

use super::answers::short_input;
use super::invariants::Holds;
use super::plan::{MS, Plan, SECOND};
use super::world::{Happening, World};
use crate::check::{Input, Operation, Output};
use crate::core::{Ask, Event, Ticket};
use crate::rng::Rng;
use bytes::Bytes;
use flotilla_router::{Command, Condition, Consistency, Descriptor, NodeId, Op, Revision, ShardId};
use std::collections::BTreeMap;

/// Keys per shard that is fought over.
const HOT_KEYS: u64 = 2;
/// How often a shard is tried at the end, and how long in between.
const PROBE_EVERY: u64 = 150 * MS;
/// How long each try may take.
const PROBE_PATIENCE: u64 = 5 * SECOND;

/// A step of a client.
pub(super) enum Turn {
    /// It asks something.
    Ask { client: u64 },
    /// It has waited long enough.
    GiveUp { client: u64, ticket: Ticket },
    /// At the end: a write to a shard, and a linearizable read, again and again until one of each
    /// is answered.
    Probe { shard: ShardId },
}

/// Who waits for a ticket.
pub(super) struct Waiting {
    pub(super) client: u64,
    pub(super) node: NodeId,
    pub(super) called: u64,
    /// What it asked: more than one where it scans.
    pub(super) asks: Vec<(Bytes, Input)>,
    /// Whether what it sees counts for linearizability.
    pub(super) fresh: bool,
    /// How old what it sees may be, where it said so.
    pub(super) age_max: Option<std::time::Duration>,
    /// The whole value, where it writes one.
    pub(super) value: Option<Bytes>,
}

/// What a shard has done for whoever tried it.
#[derive(Clone, Copy, Default)]
pub(super) struct Probed {
    /// It has taken a write.
    pub(super) written: bool,
    /// It has answered a linearizable read.
    pub(super) read: bool,
}

/// All clients, and what they know.
pub(super) struct Clients {
    /// Shards that are fought over.
    hot: Vec<Descriptor>,
    pub(super) waiting: BTreeMap<Ticket, Waiting>,
    next_ticket: u64,
    next_value: u64,
    /// The last revision that anybody was shown.
    pub(super) seen: BTreeMap<Bytes, Revision>,
    /// What happened.
    pub(super) history: Vec<Operation>,
    /// What every shard has done since everything was healed.
    pub(super) probed: BTreeMap<ShardId, Probed>,
    /// Until when nobody writes to a shard.
    hushed: BTreeMap<ShardId, u64>,
    /// Whether clients go on asking.
    going: bool,
}

impl Clients {
    /// Clients of a plan.
    pub(super) fn new(plan: &Plan) -> Self {
        let step = plan.shards.len() / plan.hot_shards as usize;
        let hot = plan
            .shards
            .iter()
            .step_by(step.max(1))
            .take(plan.hot_shards as usize)
            .cloned()
            .collect();
        Self {
            hot,
            waiting: BTreeMap::new(),
            next_ticket: 1,
            next_value: 1,
            seen: BTreeMap::new(),
            history: Vec::new(),
            probed: plan.shards.iter().map(|d| (d.id, Probed::default())).collect(),
            hushed: BTreeMap::new(),
            going: true,
        }
    }

    /// Nobody writes to this shard until then; they read all the more.
    pub(super) fn hush(&mut self, shard: ShardId, until: u64) {
        self.hushed.insert(shard, until);
    }

    /// Whether some shard is hushed.
    pub(super) fn is_hushed(&self, now: u64) -> bool {
        self.hushed.values().any(|until| now < *until)
    }

    /// One of the shards that are fought over.
    pub(super) fn hot_shard(&self, rng: &mut Rng) -> ShardId {
        self.hot[rng.below(self.hot.len() as u64) as usize].id
    }

    /// A key of a shard.
    fn key(descriptor: &Descriptor, n: u64) -> Bytes {
        let key = [&descriptor.range.start[..], format!("\x01{n}").as_bytes()].concat();
        assert!(
            descriptor.range.contains(&key),
            "shard {} has no room for its keys",
            descriptor.id
        );
        key.into()
    }
}

impl World {
    /// Puts the clients' first questions into the queue.
    pub(super) fn clients_begin(&mut self) {
        for client in 0..self.plan.clients {
            let delay = self.rng.below(SECOND);
            self.later(delay, Happening::Client(Turn::Ask { client }));
        }
    }

    /// Clients ask no more; from here on every shard is tried, until it takes a write.
    pub(super) fn clients_probe(&mut self) {
        self.clients.going = false;
        let shards: Vec<_> = self.clients.probed.keys().copied().collect();
        for shard in shards {
            let delay = self.rng.below(PROBE_EVERY);
            self.later(delay, Happening::Client(Turn::Probe { shard }));
        }
    }

    /// A client does something.
    pub(super) fn client_turn(&mut self, turn: Turn) -> Holds {
        match turn {
            Turn::Ask { client } if self.clients.going => self.ask(client),
            Turn::GiveUp { client, ticket } => {
                if let Some(waiting) = self.clients.waiting.remove(&ticket) {
                    self.say(|| format!("client {client} gives {} up", ticket.0));
                    self.write_down(waiting, None, |_| Output::Unknown);
                    if client < PROBERS {
                        self.think(client);
                    }
                }
            }
            Turn::Probe { shard } => self.probe(shard),
            Turn::Ask { .. } => {}
        }
        Ok(())
    }

    /// A client asks again, after a while.
    pub(super) fn think(&mut self, client: u64) {
        let delay = self.rng.around(self.plan.think);
        self.later(delay, Happening::Client(Turn::Ask { client }));
    }

    /// A node to ask: mostly one that says that it leads, be it deposed or not; sometimes, or where
    /// `any` will do, any.
    fn ask_whom(&mut self, shard: ShardId, any: bool) -> Option<NodeId> {
        let leading: Vec<_> = self
            .seats
            .values()
            .filter(|s| s.leaders.get(&shard) == Some(&s.member.id))
            .map(|s| s.member.id)
            .collect();
        let members: Vec<_> = self.plan.shard(shard).replicas.iter().map(|r| r.node).collect();
        let from = if leading.is_empty() || self.rng.percent(if any { 80 } else { 10 }) {
            &members
        } else {
            &leading
        };
        let node = self.rng.pick(from);
        self.is_up(node).then_some(node)
    }

    fn ask(&mut self, client: u64) {
        let descriptor = {
            let hot = &self.clients.hot;
            let cold = self.rng.percent(3);
            let of = if cold { &self.plan.shards } else { hot };
            of[self.rng.below(of.len() as u64) as usize].clone()
        };
        let hushed = self.clients.hushed.get(&descriptor.id).is_some_and(|until| self.now < *until);
        let what = if hushed { self.rng.within(63..=99) } else { self.rng.below(100) };
        let stale = (63..70).contains(&what);
        let Some(node) = self.ask_whom(descriptor.id, stale) else { return self.think(client) };
        let key = Clients::key(&descriptor, self.rng.below(HOT_KEYS));
        let deadline = self.clock(node) + std::time::Duration::from_nanos(self.rng.around(SECOND));
        match what {
            0..55 => {
                let value = self.value(true);
                let condition = self.condition(&key, 25);
                let input = Input::Put { value: value.clone(), condition };
                let op = Op::Put { key: key.clone(), value: value.clone() };
                let ticket = self.wait(client, node, vec![(key, input)], true, Some(value));
                self.post(
                    node,
                    Event::Ask {
                        ticket,
                        ask: Ask::Write {
                            shard: descriptor.id,
                            command: Command::new(op, condition),
                        },
                        deadline,
                    },
                );
            }
            55..63 => {
                let condition = self.condition(&key, 40);
                let op = Op::Delete { key: key.clone() };
                let ticket =
                    self.wait(client, node, vec![(key, Input::Delete { condition })], true, None);
                self.post(
                    node,
                    Event::Ask {
                        ticket,
                        ask: Ask::Write {
                            shard: descriptor.id,
                            command: Command::new(op, condition),
                        },
                        deadline,
                    },
                );
            }
            n => {
                let age_max = self
                    .rng
                    .pick(&[None, None, Some(100), Some(250), Some(1000)])
                    .map(std::time::Duration::from_millis);
                let consistency = match n {
                    _ if stale => Consistency::Stale { age_max },
                    _ if self.plan.config.reads.lease && n < 93 => Consistency::Lease,
                    70..75 => Consistency::Lease,
                    _ => Consistency::Linearizable,
                };
                let keys = if self.rng.percent(15) { HOT_KEYS } else { 1 };
                let asks = match keys {
                    1 => vec![(key, Input::Get)],
                    // A scan of the shard.
                    _ => (0..keys).map(|n| (Clients::key(&descriptor, n), Input::Get)).collect(),
                };
                let ticket = self.wait(client, node, asks, !stale, None);
                if let (true, Some(waiting)) = (stale, self.clients.waiting.get_mut(&ticket)) {
                    waiting.age_max = age_max;
                }
                self.post(
                    node,
                    Event::Ask {
                        ticket,
                        ask: Ask::Read { shard: descriptor.id, consistency },
                        deadline,
                    },
                );
            }
        }
    }

    /// A value that nobody else writes.
    fn value(&mut self, may_be_large: bool) -> Bytes {
        let padding =
            if may_be_large && self.rng.percent(45) { self.plan.large_value_bytes } else { 0 };
        let n = self.clients.next_value;
        self.clients.next_value += 1;
        format!("v{n}:{}", ".".repeat(padding as usize)).into()
    }

    fn condition(&mut self, key: &Bytes, percent: u64) -> Condition {
        if !self.rng.percent(percent) {
            return Condition::Always;
        }
        let seen = self.clients.seen.get(key).copied();
        match (self.rng.below(8), seen) {
            (0, _) => Condition::Absent,
            (1, _) => Condition::Present,
            (_, Some(revision)) => Condition::At(revision),
            (_, None) => Condition::Absent,
        }
    }

    fn wait(
        &mut self,
        client: u64,
        node: NodeId,
        asks: Vec<(Bytes, Input)>,
        fresh: bool,
        value: Option<Bytes>,
    ) -> Ticket {
        let ticket = Ticket(self.clients.next_ticket);
        self.clients.next_ticket += 1;
        self.say(|| format!("client {client} asks n{node} #{}: {}", ticket.0, in_words(&asks)));
        self.invariants.asks(ticket, value.clone());
        self.clients.waiting.insert(
            ticket,
            Waiting { client, node, called: self.now, asks, fresh, age_max: None, value },
        );
        let patience = if client < PROBERS { self.rng.around(2 * SECOND) } else { PROBE_PATIENCE };
        self.later(patience, Happening::Client(Turn::GiveUp { client, ticket }));
        ticket
    }

    /// Somebody leads. Where another node says the same, one of them was deposed: something is
    /// written here, and read there by lease as soon as that is acknowledged.
    pub(super) fn hunt(&mut self, node: NodeId, shard: ShardId) {
        let hunted = self.plan.config.reads.lease && !self.others_leading(node, shard).is_empty();
        if !hunted || !self.clients.going {
            return;
        }
        self.meet("two leaders");
        let key = Clients::key(self.plan.shard(shard), 0);
        let value = self.value(false);
        let deadline = self.clock(node) + std::time::Duration::from_nanos(SECOND);
        let input = Input::Put { value: value.clone(), condition: Condition::Always };
        let ticket = self.wait(
            HUNTERS + shard.0,
            node,
            vec![(key.clone(), input)],
            true,
            Some(value.clone()),
        );
        let command = Command::new(Op::Put { key, value }, Condition::Always);
        self.post(node, Event::Ask { ticket, ask: Ask::Write { shard, command }, deadline });
    }

    /// See [`World::hunt`]: what was written on `node` is acknowledged.
    pub(super) fn hunt_deposed(&mut self, node: NodeId, shard: ShardId) {
        for other in self.others_leading(node, shard) {
            self.meet("two leaders, and one acknowledges");
            let key = Clients::key(self.plan.shard(shard), 0);
            // Without a lease it would have to wait.
            let deadline = self.clock(other) + std::time::Duration::from_nanos(10 * MS);
            let ticket = self.wait(HUNTERS + shard.0, other, vec![(key, Input::Get)], true, None);
            self.post(
                other,
                Event::Ask {
                    ticket,
                    ask: Ask::Read { shard, consistency: Consistency::Lease },
                    deadline,
                },
            );
        }
    }

    /// Who else says that it leads.
    fn others_leading(&self, node: NodeId, shard: ShardId) -> Vec<NodeId> {
        let leads = |id: &NodeId| {
            *id != node && self.is_up(*id) && self.seats[id].leaders.get(&shard) == Some(id)
        };
        self.seats.keys().copied().filter(leads).collect()
    }

    fn probe(&mut self, shard: ShardId) {
        let Probed { written, read } = self.clients.probed[&shard];
        if written && read {
            return;
        }
        let descriptor = self.plan.shard(shard).clone();
        let key = Clients::key(&descriptor, HOT_KEYS);
        if let Some(node) = self.ask_whom(shard, false).filter(|_| !read) {
            let deadline = self.clock(node) + std::time::Duration::from_nanos(PROBE_PATIENCE);
            let ticket =
                self.wait(PROBERS + shard.0, node, vec![(key.clone(), Input::Get)], true, None);
            self.post(
                node,
                Event::Ask {
                    ticket,
                    ask: Ask::Read { shard, consistency: Consistency::Linearizable },
                    deadline,
                },
            );
        }
        if let Some(node) = self.ask_whom(shard, false).filter(|_| !written) {
            let value = self.value(false);
            let deadline = self.clock(node) + std::time::Duration::from_nanos(PROBE_PATIENCE);
            let op = Op::Put { key: key.clone(), value: value.clone() };
            let input = Input::Put { value: value.clone(), condition: Condition::Always };
            let ticket = self.wait(PROBERS + shard.0, node, vec![(key, input)], true, Some(value));
            let command = Command::new(op, Condition::Always);
            self.post(node, Event::Ask { ticket, ask: Ask::Write { shard, command }, deadline });
        }
        self.later(PROBE_EVERY, Happening::Client(Turn::Probe { shard }));
    }
}

/// Clients from here on are the probes of shards.
pub(super) const PROBERS: u64 = 1 << 32;
/// And from here on those who hunt leases, one per shard.
pub(super) const HUNTERS: u64 = 1 << 48;

fn in_words(asks: &[(Bytes, Input)]) -> String {
    let words = asks.iter().map(|(key, input)| match short_input(input.clone()) {
        Input::Get => format!("get {}", key.escape_ascii()),
        Input::Put { value, condition } => {
            format!("put {} {} {condition:?}", key.escape_ascii(), value.escape_ascii())
        }
        Input::Delete { condition } => format!("delete {} {condition:?}", key.escape_ascii()),
    });
    words.collect::<Vec<_>>().join(", ")
}
