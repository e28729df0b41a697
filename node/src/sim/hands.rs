//! What the cores of a cluster in one thread ask for, carried out on engines in memory: storage
//! work goes into a node's lanes, messages become the frames of the wire, a snapshot a packet with
//! its files; and what arrives becomes events.
//!
//! The simulation and the golden scripts share this. They differ in what is around the nodes, which
//! is the trait [`Surroundings`]: how a packet travels, when a loop wakes up, who asked, and what
//! is written down.

use super::invariants::Holds;
use super::member::{Job, Lane, Member};
use super::network::{Link, Packet, SnapshotPacket};
use crate::core::dispatch::{self, Hands};
use crate::core::wire::{self, Envelope, Item};
use crate::core::{Beat, Delivery, Done, Effect, Event, SnapshotId, Ticket, Time};
use bytes::BytesMut;
use flotilla_router::call::Staleness;
use flotilla_router::{Descriptor, KeyRange, NodeId, Refusal, ReplicaId, ShardId};
use flotilla_storage::{ApplyWork, HardState, LogBatch};
use std::ops::ControlFlow;
use std::sync::Arc;

/// What is around the nodes.
pub(crate) trait Surroundings {
    /// A node.
    fn member(&mut self, node: NodeId) -> &mut Member;

    /// How large a frame may be.
    fn frame_bytes_max(&self) -> usize;

    /// Sees an effect before it is carried out; an error ends the pass.
    fn witness(&mut self, node: NodeId, effect: &Effect) -> Holds;

    /// Puts a packet on its way.
    fn transmit(&mut self, link: Link, packet: Packet);

    /// How a snapshot that has reached its node fares if it is not taken in.
    fn turned_away(&mut self, _link: Link, _snapshot: &SnapshotPacket) -> Option<Delivery> {
        None
    }

    /// The stream of a snapshot has ended for its sender, which hears of it, now or later, if it
    /// still lives.
    fn snapshot_sent(&mut self, sender: NodeId, shard: ShardId, to: ReplicaId, delivery: Delivery);

    /// A node's pass begins.
    fn pass_begins(&mut self, node: NodeId);

    /// Something lies in a node's mailbox.
    fn wake(&mut self, _node: NodeId) {}

    /// Reads of these tickets look.
    fn read(
        &mut self,
        node: NodeId,
        tickets: &[Ticket],
        descriptor: &Descriptor,
        staleness: Option<Staleness>,
    ) -> Holds;

    /// Whoever holds the ticket is answered.
    fn reply(&mut self, node: NodeId, ticket: Ticket, result: Result<Done, Refusal>) -> Holds;

    /// A node says who leads.
    fn publish_leader(&mut self, _node: NodeId, _shard: ShardId, _leader: Option<NodeId>) {}

    /// One pass of a node's loop: the clock, everything in its mailbox, and what comes of it.
    /// Returns the number of effects; an error is a promise that was broken.
    fn run_pass(&mut self, node: NodeId, now: Time) -> Result<usize, String>
    where
        Self: Sized,
    {
        self.pass_begins(node);
        let running = self.member(node).running_mut();
        running.core.handle(Event::Clock { now });
        for event in std::mem::take(&mut running.mailbox) {
            running.core.handle(event);
        }
        let effects = running.core.finish_pass();
        let count = effects.len();
        let mut hands = HandsOf { node, around: self, holds: Ok(()) };
        dispatch::carry_out(effects, &mut hands);
        hands.holds.map(|()| count)
    }

    /// A packet has come to the end of its link.
    fn arrive(&mut self, link: Link, packet: Packet) {
        let (from, to) = link;
        if self.member(to).running.is_none() {
            return self.lost(link, &packet);
        }
        match packet {
            Packet::Frame(frame) => {
                let mailbox = &mut self.member(to).running_mut().mailbox;
                wire::decode_frame(frame, |item| {
                    mailbox.push_back(match item {
                        Item::Message(envelope) => Event::Message { from, envelope: *envelope },
                        Item::Beat(beat) => Event::Beat { from, beat },
                    });
                })
                .expect("a core wrote this frame");
            }
            Packet::Snapshot(snapshot) => {
                let turned_away = self.turned_away(link, &snapshot);
                let SnapshotPacket { shard, replica, snapshot: _, announcement, manifest, files } =
                    *snapshot;
                if let Some(delivery) = turned_away {
                    return self.snapshot_sent(from, shard, replica, delivery);
                }
                let envelope =
                    wire::decode_envelope(announcement).expect("a core wrote this announcement");
                self.member(to).stage(from, envelope, manifest, files);
                self.snapshot_sent(from, shard, replica, Delivery::Taken);
            }
        }
        self.wake(to);
    }

    /// A packet will not arrive. Senders of snapshots are told, always; of frames, nobody is.
    fn lost(&mut self, link: Link, packet: &Packet) {
        if let Packet::Snapshot(snapshot) = packet {
            self.snapshot_sent(link.0, snapshot.shard, snapshot.replica, Delivery::Failed);
        }
    }
}

/// The hands of one node.
struct HandsOf<'a, S> {
    node: NodeId,
    around: &'a mut S,
    /// The first promise of the pass that was broken.
    holds: Holds,
}

impl<S: Surroundings> HandsOf<'_, S> {
    fn push(&mut self, lane: Lane, job: Job) {
        self.around.member(self.node).running_mut().push(lane, job);
    }
}

impl<S: Surroundings> Hands for HandsOf<'_, S> {
    fn witness(&mut self, effect: &Effect) -> ControlFlow<()> {
        if self.holds.is_ok() {
            self.holds = self.around.witness(self.node, effect);
        }
        if self.holds.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }

    fn publish_descriptors(&mut self, _descriptors: Vec<Arc<Descriptor>>) {}

    fn send(&mut self, to: NodeId, messages: Vec<Envelope>, beat: Option<Beat>) {
        let (link, bytes_max) = ((self.node, to), self.around.frame_bytes_max());
        let transmit = |(), frame| self.around.transmit(link, Packet::Frame(frame));
        wire::frames(&messages, beat.map(|beat| ((), beat)), bytes_max, |_| (), transmit);
    }

    fn persist(&mut self, write: u64, batch: LogBatch) {
        self.push(Lane::Persist, Job::Persist { write, batch });
    }

    fn apply(&mut self, work: Vec<ApplyWork>) {
        self.push(Lane::Apply, Job::Apply { work });
    }

    fn read(
        &mut self,
        tickets: Vec<Ticket>,
        descriptor: Arc<Descriptor>,
        staleness: Option<Staleness>,
    ) {
        self.holds = self.around.read(self.node, &tickets, &descriptor, staleness);
    }

    fn fetch_entries(&mut self, fetch: u64, shard: ShardId, low: u64, high: u64, bytes_max: u64) {
        self.push(Lane::Fetch, Job::Fetch { fetch, shard, low, high, bytes_max });
    }

    fn build_snapshot(&mut self, shard: ShardId, snapshot: SnapshotId) {
        self.push(Lane::Build, Job::Build { shard, snapshot });
    }

    fn drop_snapshot(&mut self, snapshot: SnapshotId) {
        self.around.member(self.node).drop_built(snapshot);
    }

    fn send_snapshot(
        &mut self,
        to: NodeId,
        replica: ReplicaId,
        snapshot: SnapshotId,
        envelope: Envelope,
    ) {
        let shard = envelope.shard;
        let Some((manifest, files)) = self.around.member(self.node).snapshot_files(snapshot) else {
            // It was given up in the pass in which it was to be sent.
            return self.around.snapshot_sent(self.node, shard, replica, Delivery::Failed);
        };
        let mut announcement = BytesMut::new();
        envelope.encode(&mut announcement);
        let announcement = announcement.freeze();
        let packet = SnapshotPacket { shard, replica, snapshot, announcement, manifest, files };
        self.around.transmit((self.node, to), Packet::Snapshot(Box::new(packet)));
    }

    fn install_snapshot(
        &mut self,
        (_, replica): (ShardId, ReplicaId),
        staged: SnapshotId,
        hard_state: HardState,
        clear: Vec<KeyRange>,
    ) {
        self.push(Lane::Install, Job::Install { replica, staged, hard_state, clear });
    }

    fn discard_staged(&mut self, staged: SnapshotId) {
        self.around.member(self.node).discard_staged(staged);
    }

    fn publish_leader(&mut self, shard: ShardId, leader: Option<NodeId>) {
        self.around.publish_leader(self.node, shard, leader);
    }

    fn reply(&mut self, ticket: Ticket, result: Result<Done, Refusal>) {
        self.holds = self.around.reply(self.node, ticket, result);
    }

    fn drained(&mut self) {}

    fn quarantined(&mut self, _shard: ShardId, _why: String) {}
}
