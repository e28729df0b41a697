//! A whole cluster in one thread: real cores, real raft-rs, real log, apply, recovery and
//! snapshots, on engines in memory.
//!
//! Nothing happens by itself. Time moves by [`Cluster::tick`]; packets arrive by
//! [`Cluster::deliver`], storage works by [`Cluster::work`], and [`Cluster::settle`] does all of
//! both that is not held, until nothing is left. Clients hold [`Ticket`]s; every ticket is answered
//! exactly once, or lost with its node, and the cluster checks that.
//!
//! Everything that leaves a core is written down in words ([`trace`]): golden scripts compare it
//! with what is in their file, and two runs of the same steps must give the same words.

use super::network::Network;
use crate::core::replica::Replica;
use crate::core::wire::{Envelope, Timing};
use crate::core::{Ask, CoreConfig, Delivery, Done, Effect, Event, Ticket, Time};
use crate::sim::hands::Surroundings;
use crate::sim::invariants::{Holds, Invariants};
use crate::sim::member::{Lane, Member, Running, Worked};
use crate::sim::network::{Link, Packet};
use crate::sim::plan::descriptors;
use crate::sim::trace;
use bytes::Bytes;
use flotilla_router::call::Staleness;
use flotilla_router::{
    Change, Command, Condition, Consistency, Descriptor, KeySpace, NodeId, Op, Outcome, Refusal,
    ReplicaId, Revision, ShardId,
};
use flotilla_storage::{WriteResult, read};
use raft::StateRole;
use raft::eraftpb::MessageType;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// How long a tick lasts.
pub(super) const TICK: Duration = Duration::from_millis(100);
/// A deadline that no test reaches.
pub(super) const FOREVER: Time = Duration::from_secs(1 << 30);
/// The first user shard.
pub(super) const SHARD: ShardId = ShardId(2);

/// What became of a client's question.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Answer {
    /// A write was applied, or its condition did not hold.
    Written(WriteResult),
    /// A read looked.
    Read {
        /// What stood under the key.
        found: Option<(Revision, Bytes)>,
        /// For stale reads.
        staleness: Option<Staleness>,
    },
    /// A hand-over ended well.
    Transferred,
    /// The members were changed; what the shard was then.
    Changed(Arc<Descriptor>),
    /// The node said no.
    Refused(Refusal),
    /// The node went down before it answered.
    Lost,
}

/// Somebody who waits, or waited.
#[derive(Clone, Debug)]
struct Client {
    node: NodeId,
    /// What a read wants to see.
    key: Bytes,
    answer: Option<Answer>,
}

/// The cluster.
pub(super) struct Cluster {
    /// What every core is told.
    pub(super) config: CoreConfig,
    /// The shards as the cluster was bootstrapped with them.
    pub(super) shards: Vec<Descriptor>,
    members: BTreeMap<NodeId, Member>,
    /// What connects them.
    pub(super) network: Network,
    clients: BTreeMap<Ticket, Client>,
    next_ticket: u64,
    /// What happened, in words, since it was last taken.
    trace: Vec<String>,
    /// The term and role of every replica after the last pass of its node.
    roles: BTreeMap<(NodeId, ShardId), String>,
    /// A running hash over all effects' debug output.
    pub(super) fingerprint: u64,
    /// Read contexts that were sent.
    contexts: Vec<Bytes>,
    /// What must hold.
    pub(super) invariants: Invariants,
}

/// The configuration of most tests: production defaults, and leaders that stay where they are.
pub(super) fn config() -> CoreConfig {
    let mut config = CoreConfig { seed: 7, ..CoreConfig::default() };
    config.raft.tick_ms = TICK.as_millis() as u64;
    config.raft.balance_leaders = false;
    config
}

impl Cluster {
    /// Bootstraps and starts a cluster in which every node holds every shard.
    pub(super) fn new(nodes: u64, shards: u64, config: CoreConfig) -> Self {
        config.validate().unwrap();
        let shards = descriptors(nodes, shards, nodes);
        let members: BTreeMap<_, _> =
            (1..=nodes).map(|id| (NodeId(id), Member::bootstrapped(NodeId(id), &shards))).collect();
        let disk = |(id, member): (&NodeId, &Member)| (*id, member.engine.clone());
        let invariants = Invariants::new(&shards, members.iter().map(disk).collect());
        let mut cluster = Self {
            config,
            shards,
            members,
            network: Network::default(),
            clients: BTreeMap::new(),
            next_ticket: 1,
            trace: Vec::new(),
            roles: BTreeMap::new(),
            fingerprint: 0,
            contexts: Vec::new(),
            invariants,
        };
        for id in cluster.nodes() {
            cluster.start(id);
        }
        cluster
    }

    /// A cluster of three with one shard, led by node 1.
    pub(super) fn led() -> Self {
        Self::led_with(config())
    }

    /// The same with another configuration.
    pub(super) fn led_with(config: CoreConfig) -> Self {
        let mut cluster = Self::new(3, 1, config);
        // Where leases are on, nobody votes for an election timeout after the start.
        cluster.run(20);
        assert_eq!(cluster.leader(SHARD), Some(NodeId(1)));
        cluster.take_trace();
        cluster
    }

    /// Every node's id.
    pub(super) fn nodes(&self) -> Vec<NodeId> {
        self.members.keys().copied().collect()
    }

    /// Every shard's id.
    pub(super) fn shard_ids(&self) -> Vec<ShardId> {
        self.shards.iter().map(|d| d.id).collect()
    }

    /// A node.
    pub(super) fn member(&self, id: NodeId) -> &Member {
        &self.members[&id]
    }

    /// A node, to change.
    pub(super) fn member_mut(&mut self, id: NodeId) -> &mut Member {
        self.members.get_mut(&id).unwrap_or_else(|| panic!("there is no node {id}"))
    }

    /// What runs on a node.
    pub(super) fn running_mut(&mut self, id: NodeId) -> &mut Running {
        self.member_mut(id).running_mut()
    }

    /// Whether a node runs.
    pub(super) fn is_up(&self, id: NodeId) -> bool {
        self.members[&id].running.is_some()
    }

    /// A replica, where its node runs.
    pub(super) fn replica(&self, id: NodeId, shard: ShardId) -> Option<&Replica> {
        self.members[&id].running.as_ref()?.core.replicas.range(shard..=shard).next()
    }

    /// The node that leads in the highest term.
    pub(super) fn leader(&self, shard: ShardId) -> Option<NodeId> {
        let leaders = self.nodes().into_iter().filter_map(|id| {
            let replica = self.replica(id, shard)?;
            replica.group.leads().then_some((replica.group.raw.raft.term, id))
        });
        leaders.max().map(|(_, id)| id)
    }

    /// A replica's term and role, `n1@2 leader`, where its node runs.
    pub(super) fn role(&self, id: NodeId, shard: ShardId) -> Option<String> {
        let raft = &self.replica(id, shard)?.group.raw.raft;
        let role = match raft.state {
            StateRole::Leader => "leader",
            StateRole::Follower => "follower",
            StateRole::Candidate => "candidate",
            StateRole::PreCandidate => "pre-candidate",
        };
        Some(format!("n{id}@{} {role}", raft.term))
    }

    /// The replicas of a node that are in another term or role than they were, in words.
    fn role_changes(&mut self, id: NodeId) -> Vec<String> {
        let shards = self.shard_ids().into_iter();
        let roles = shards.filter_map(|shard| Some((shard, self.role(id, shard)?)));
        let roles: Vec<_> = roles.collect();
        let changed = roles.into_iter().filter_map(|(shard, role)| {
            let before = self.roles.insert((id, shard), role.clone())?;
            (before != role).then(|| format!("{role} of s{shard}"))
        });
        changed.collect()
    }

    /// Starts a node that is down.
    pub(super) fn start(&mut self, id: NodeId) {
        let config = self.config.clone();
        let recovered = self.member_mut(id).start(&config).unwrap();
        self.invariants.starts(id, &recovered).unwrap();
        self.pass(id);
    }

    /// Takes a node's power: what was not synced is gone, but for the first `kept` unsynced writes;
    /// so is what was on the wire, and who waited there.
    pub(super) fn crash(&mut self, id: NodeId, kept: usize) {
        self.member_mut(id).crash(kept);
        self.roles.retain(|(node, _), _| *node != id);
        self.invariants.went_down(id);
        for (link, packet) in self.network.lose(id) {
            self.lost(link, &packet);
        }
        for client in self.clients.values_mut().filter(|c| c.node == id && c.answer.is_none()) {
            client.answer = Some(Answer::Lost);
        }
    }

    /// Puts an event into a node's mailbox; the next pass handles it.
    pub(super) fn post(&mut self, id: NodeId, event: Event) {
        self.running_mut(id).mailbox.push_back(event);
    }

    /// One pass of a node's loop: the clock, everything in the mailbox, and what comes of it.
    /// Returns the effects' number.
    pub(super) fn pass(&mut self, id: NodeId) -> usize {
        let now = self.member(id).now;
        let before = self.trace.len();
        let n = self.run_pass(id, now).unwrap();
        // What a replica has become stands above what it says as such.
        let changes = self.role_changes(id);
        self.trace.splice(before..before, changes);
        assert!(self.running_mut(id).core.is_at_rest(), "node {id} left work behind");
        n
    }

    /// Gives a node ticks, each with its share of time and a pass of its own.
    pub(super) fn tick(&mut self, id: NodeId, ticks: u64) {
        for _ in 0..ticks {
            self.member_mut(id).now += TICK;
            self.post(id, Event::Tick);
            self.pass(id);
        }
    }

    /// Time passes on a node, and it does not notice: a paused process, a stopped virtual machine.
    pub(super) fn pause(&mut self, id: NodeId, time: Duration) {
        self.member_mut(id).now += time;
    }

    /// Ticks all nodes that run, and lets everything settle, again and again.
    pub(super) fn run(&mut self, ticks: u64) {
        for _ in 0..ticks {
            for id in self.nodes() {
                if self.is_up(id) {
                    self.tick(id, 1);
                }
            }
            self.settle();
        }
    }

    /// Delivers and works until nothing is left that is not held.
    pub(super) fn settle(&mut self) {
        for round in 0.. {
            assert!(round < 100_000, "the cluster never settles");
            let mut moved = false;
            for id in self.nodes() {
                let Some(running) = &self.members[&id].running else { continue };
                for lane in running.workable() {
                    self.work(id, lane);
                    moved = true;
                }
                if !self.running_mut(id).mailbox.is_empty() {
                    self.pass(id);
                    moved = true;
                }
            }
            for link in self.network.deliverable() {
                self.deliver(link, 0);
                moved = true;
            }
            if !moved {
                return;
            }
        }
    }

    /// Carries out the oldest job of a lane, or a step of it, held or not; its outcome waits in the
    /// mailbox. Whether there was one.
    pub(super) fn work(&mut self, id: NodeId, lane: Lane) -> bool {
        let worked = self.member_mut(id).work(lane).unwrap();
        if let (Worked::Done, Some(running)) = (worked, &self.members[&id].running) {
            self.invariants.worked(id, running).unwrap();
        }
        worked != Worked::Idle
    }

    /// Delivers one packet of a link, held or not, into the mailbox at its end. Whether there was
    /// one.
    pub(super) fn deliver(&mut self, link: Link, place: usize) -> bool {
        let Some(packet) = self.network.take(link, place) else { return false };
        self.arrive(link, packet);
        true
    }

    /// Delivers what a held link keeps, but for snapshots, which stay on it.
    pub(super) fn deliver_frames(&mut self, link: Link) {
        while let Some(place) = self.network.first_frame(link) {
            self.deliver(link, place);
        }
        self.settle();
    }

    /// Loses one packet of a link. Whether there was one.
    pub(super) fn drop_packet(&mut self, link: Link, place: usize) -> bool {
        let Some(packet) = self.network.take(link, place) else { return false };
        self.lost(link, &packet);
        true
    }

    /// A node takes in as many snapshots as it may: it turns the next one of a link away. Whether
    /// there was one.
    pub(super) fn turn_snapshot_away(&mut self, link: Link) -> bool {
        match self.network.take(link, 0) {
            Some(Packet::Snapshot(snapshot)) => {
                self.snapshot_sent(link.0, snapshot.shard, snapshot.replica, Delivery::Busy);
                true
            }
            _ => false,
        }
    }

    /// Cuts the links from every node of one side to every node of the other, and back.
    pub(super) fn partition(&mut self, side: &[NodeId], other: &[NodeId]) {
        for a in side {
            for b in other {
                self.cut((*a, *b));
                self.cut((*b, *a));
            }
        }
    }

    /// Cuts one direction.
    pub(super) fn cut(&mut self, link: Link) {
        for packet in self.network.cut(link) {
            self.lost(link, &packet);
        }
    }

    /// A new client at a node, which will ask about `key`.
    pub(super) fn ticket(&mut self, node: NodeId, key: &[u8]) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.clients
            .insert(ticket, Client { node, key: Bytes::copy_from_slice(key), answer: None });
        ticket
    }

    /// Posts a put; the next pass takes it in.
    pub(super) fn post_put(
        &mut self,
        node: NodeId,
        key: &str,
        value: &str,
        deadline: Time,
    ) -> Ticket {
        let op = Op::Put {
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: Bytes::copy_from_slice(value.as_bytes()),
        };
        self.post_command(node, Command::new(op, Condition::Always), deadline)
    }

    /// Posts a write to the shard that owns its key.
    pub(super) fn post_command(
        &mut self,
        node: NodeId,
        command: Command,
        deadline: Time,
    ) -> Ticket {
        let key = command.routing_key().clone();
        let shard = self.owner(&key);
        let ticket = self.ticket(node, &key);
        self.post(node, Event::Ask { ticket, ask: Ask::Write { shard, command }, deadline });
        ticket
    }

    /// Posts a read.
    pub(super) fn post_get(
        &mut self,
        node: NodeId,
        key: &str,
        consistency: Consistency,
        deadline: Time,
    ) -> Ticket {
        let ticket = self.ticket(node, key.as_bytes());
        let shard = self.owner(key.as_bytes());
        self.post(node, Event::Ask { ticket, ask: Ask::Read { shard, consistency }, deadline });
        ticket
    }

    /// Posts an order to hand a shard over.
    pub(super) fn post_transfer(&mut self, node: NodeId, shard: ShardId, to: NodeId) -> Ticket {
        let ticket = self.ticket(node, b"");
        self.post(
            node,
            Event::Ask { ticket, ask: Ask::Transfer { shard, to }, deadline: Time::MAX },
        );
        ticket
    }

    /// Posts an order to change the first user shard's members.
    pub(super) fn post_change(&mut self, node: NodeId, change: Change, deadline: Time) -> Ticket {
        let ticket = self.ticket(node, b"");
        self.post(node, Event::Ask { ticket, ask: Ask::Change { shard: SHARD, change }, deadline });
        ticket
    }

    /// Puts, settles, and returns the answer, if there is one by then.
    pub(super) fn put(&mut self, node: NodeId, key: &str, value: &str) -> Option<Answer> {
        let ticket = self.post_put(node, key, value, FOREVER);
        self.settle();
        self.answer(ticket).cloned()
    }

    /// Gets, settles, and returns the answer, if there is one by then.
    pub(super) fn get(
        &mut self,
        node: NodeId,
        key: &str,
        consistency: Consistency,
    ) -> Option<Answer> {
        let ticket = self.post_get(node, key, consistency, FOREVER);
        self.settle();
        self.answer(ticket).cloned()
    }

    /// What a client was told so far.
    pub(super) fn answer(&self, ticket: Ticket) -> Option<&Answer> {
        self.clients[&ticket].answer.as_ref()
    }

    /// The clients that still wait, and where.
    pub(super) fn open_tickets(&self) -> Vec<(Ticket, NodeId)> {
        self.clients
            .iter()
            .filter(|(_, c)| c.answer.is_none())
            .map(|(ticket, c)| (*ticket, c.node))
            .collect()
    }

    /// The shard that owns a key.
    pub(super) fn owner(&self, key: &[u8]) -> ShardId {
        self.shards
            .iter()
            .find(|d| d.range.contains(key))
            .expect("the shards cover the key space")
            .id
    }

    /// What stands under a key on a node, whatever is committed.
    pub(super) fn look(&self, node: NodeId, key: &str) -> Option<(Revision, Bytes)> {
        read::get(&self.members[&node].engine, KeySpace::User, key.as_bytes()).unwrap()
    }

    /// The hash of a shard's data on a node that runs.
    pub(super) fn hash(&self, node: NodeId, shard: ShardId) -> Option<flotilla_storage::StateHash> {
        let descriptor = &self.replica(node, shard)?.group.descriptor();
        Some(read::hash(&self.members[&node].engine, descriptor).unwrap())
    }

    /// A message of [`SHARD`] as one node could write it to another, in the receiver's term, with
    /// `change` made to it.
    pub(super) fn forge(
        &self,
        from: NodeId,
        to: NodeId,
        change: impl FnOnce(&mut raft::eraftpb::Message),
    ) -> Envelope {
        let replica = self.replica(to, SHARD).expect("the receiver runs");
        let sender = replica.group.descriptor().on_node(from).expect("it holds a replica").id.0;
        let term = replica.group.raw.raft.term;
        let mut message = raft::eraftpb::Message {
            from: sender,
            to: replica.group.id.0,
            term,
            ..Default::default()
        };
        change(&mut message);
        Envelope {
            shard: SHARD,
            epoch: replica.group.descriptor().epoch,
            committed: message.commit,
            timing: Timing::default(),
            message,
        }
    }

    /// What happened since the last call, in words.
    pub(super) fn take_trace(&mut self) -> Vec<String> {
        std::mem::take(&mut self.trace)
    }

    /// The read contexts that were sent since the last call, each once.
    pub(super) fn take_contexts(&mut self) -> Vec<Bytes> {
        std::mem::take(&mut self.contexts)
    }

    /// Whether all nodes run and have applied all that any has committed.
    pub(super) fn is_level(&self) -> bool {
        let level = |id, shard| {
            self.replica(id, shard)
                .is_some_and(|r| r.group.applied.index == self.invariants.last_committed(shard))
        };
        self.nodes()
            .into_iter()
            .all(|id| self.shard_ids().into_iter().all(|shard| level(id, shard)))
    }

    /// Where every replica is: node, shard, term, committed, applied.
    pub(super) fn places(&self) -> Vec<(NodeId, ShardId, u64, u64, u64)> {
        let place = |id, shard| {
            let replica = self.replica(id, shard)?;
            Some((
                id,
                shard,
                replica.group.raw.raft.term,
                replica.group.raw.raft.raft_log.committed,
                replica.group.applied.index,
            ))
        };
        self.nodes()
            .into_iter()
            .flat_map(|id| self.shard_ids().into_iter().filter_map(move |s| place(id, s)))
            .collect()
    }

    fn settle_ticket(&mut self, node: NodeId, ticket: Ticket, answer: Answer) {
        let client = self
            .clients
            .get_mut(&ticket)
            .unwrap_or_else(|| panic!("{ticket:?} was never given out"));
        assert_eq!(
            client.node, node,
            "{ticket:?} is answered by another node than the one that was asked"
        );
        assert!(
            client.answer.is_none(),
            "{ticket:?} is answered twice: {:?}, then {answer:?}",
            client.answer
        );
        if let Answer::Refused(refusal) = &answer
            && refusal.outcome() == Outcome::NotApplied
        {
            self.invariants.refused(ticket).unwrap();
        }
        client.answer = Some(answer);
    }
}

impl Surroundings for Cluster {
    fn member(&mut self, node: NodeId) -> &mut Member {
        self.member_mut(node)
    }

    fn frame_bytes_max(&self) -> usize {
        self.config.frame_bytes_max
    }

    fn witness(&mut self, id: NodeId, effect: &Effect) -> Holds {
        let debug = format!("{id} {effect:?}");
        let chained = [self.fingerprint.to_be_bytes().as_slice(), debug.as_bytes()].concat();
        self.fingerprint = fnv(&chained);
        trace::effect(id, effect, &mut self.trace);
        match effect {
            // Whoever forges messages wants to see a shard quarantined.
            Effect::Quarantined { .. } => return Ok(()),
            Effect::Send { messages, .. } => {
                for message in messages.iter().map(|envelope| &envelope.message) {
                    let is_read = message.get_msg_type() == MessageType::MsgHeartbeat
                        && !message.context.is_empty();
                    if is_read && !self.contexts.contains(&message.context) {
                        self.contexts.push(message.context.clone());
                    }
                }
            }
            _ => {}
        }
        self.invariants.effect(id, effect)
    }

    fn pass_begins(&mut self, _: NodeId) {
        self.invariants.pass_begins();
    }

    fn transmit(&mut self, link: Link, packet: Packet) {
        if let Packet::Frame(frame) = &packet {
            assert!(frame.len() <= self.config.frame_bytes_max, "a frame of {} bytes", frame.len());
        }
        if let Some(packet) = self.network.send(link, packet) {
            self.lost(link, &packet);
        }
    }

    fn snapshot_sent(&mut self, sender: NodeId, shard: ShardId, to: ReplicaId, delivery: Delivery) {
        if self.is_up(sender) {
            self.post(sender, Event::SnapshotSent { shard, to, delivery });
        }
    }

    fn read(
        &mut self,
        id: NodeId,
        tickets: &[Ticket],
        descriptor: &Descriptor,
        staleness: Option<Staleness>,
    ) -> Holds {
        for ticket in tickets {
            let key = self.clients[ticket].key.clone();
            assert!(descriptor.range.contains(&key), "a read looks outside of its shard");
            let found = read::get(&self.members[&id].engine, KeySpace::User, &key).unwrap();
            self.settle_ticket(id, *ticket, Answer::Read { found, staleness });
        }
        Ok(())
    }

    fn reply(&mut self, id: NodeId, ticket: Ticket, result: Result<Done, Refusal>) -> Holds {
        let answer = match result {
            Ok(Done::Written(result)) => Answer::Written(result),
            Ok(Done::Transferred(_)) => Answer::Transferred,
            Ok(Done::Changed(descriptor)) => Answer::Changed(descriptor),
            Ok(Done::Report(_)) => return Ok(()),
            Err(refusal) => Answer::Refused(refusal),
        };
        self.settle_ticket(id, ticket, answer);
        Ok(())
    }
}

/// What a client was told.
pub(super) fn answer(answer: &Answer) -> String {
    match answer {
        Answer::Written(result) => trace::written(result),
        Answer::Read { found, .. } => match found {
            Some((revision, value)) if value.len() > 40 => {
                format!("{} bytes, r{revision}", value.len())
            }
            Some((revision, value)) => format!("{}, r{revision}", value.escape_ascii()),
            None => "missing".into(),
        },
        Answer::Transferred => "handed over".into(),
        Answer::Changed(descriptor) => format!("members changed, {}", descriptor.epoch),
        Answer::Refused(refusal) => trace::refused(refusal),
        Answer::Lost => "lost with its node".into(),
    }
}

/// A hash that is the same on every machine.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}
