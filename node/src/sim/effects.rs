//! What a core asks for, carried out in simulated time: storage work goes into the node's lanes, messages onto the network, answers
//! to the clients.

use super::faults::NOBODY;
use super::invariants::Holds;
use super::member::{Job, Lane};
use super::network::{Link, Packet, SnapshotPacket};
use super::plan::MS;
use super::world::{Happening, World};
use crate::core::wire::{self, Envelope, Item};
use crate::core::{Delivery, Done, Effect, Event, SnapshotId};
use bytes::BytesMut;
use flotilla_router::{NodeId, ReplicaId, ShardId};

impl World {
    /// Carries out what a core has just said.
    pub(super) fn carry_out(&mut self, node: NodeId, effect: Effect) -> Holds {
        let push = |world: &mut Self, lane, job| {
            let running = world.seat(node).member.running.as_mut().expect("it has just spoken");
            running.push(lane, job);
        };
        match effect {
            Effect::Send { to, messages, beat } => {
                self.overhear((node, to), &messages);
                let mut frames = Vec::new();
                let bytes_max = self.plan.config.frame_bytes_max;
                wire::frames(&messages, beat.map(|beat| ((), beat)), bytes_max, |_| (), |(), frame| frames.push(frame));
                for frame in frames {
                    self.note(&frame);
                    self.send((node, to), Packet::Frame(frame));
                }
            }
            Effect::Persist { write, batch } => {
                self.note(&write.to_be_bytes());
                for write in &batch.writes {
                    if write.delete.is_some() {
                        self.meet("overruled entries");
                    }
                    if write.truncate.is_some() {
                        self.meet("truncated logs");
                    }
                }
                push(self, Lane::Persist, Job::Persist { write, batch });
            }
            Effect::Apply { work } => push(self, Lane::Apply, Job::Apply { work }),
            Effect::InstallSnapshot { shard: _, replica, staged, hard_state, at: _, clear } => {
                self.meet("installed snapshots");
                push(self, Lane::Install, Job::Install { replica, staged, hard_state, clear });
            }
            Effect::BuildSnapshot { shard, snapshot } => push(self, Lane::Build, Job::Build { shard, snapshot }),
            Effect::FetchEntries { fetch, shard, low, high, bytes_max } => {
                self.meet("fetched entries");
                push(self, Lane::Fetch, Job::Fetch { fetch, shard, low, high, bytes_max });
            }
            Effect::DropSnapshot { snapshot } => self.seat(node).member.drop_built(snapshot),
            Effect::SendSnapshot { to, replica, snapshot, envelope } => {
                self.send_snapshot(node, to, replica, snapshot, &envelope)?
            }
            Effect::DiscardStaged { staged } => self.seat(node).member.discard_staged(staged),
            Effect::PublishLeader { shard, leader } => {
                match leader {
                    Some(leader) => self.seat(node).leaders.insert(shard, leader),
                    None => self.seat(node).leaders.remove(&shard),
                };
                if leader == Some(node) {
                    self.hunt(node, shard);
                }
            }
            Effect::Read { tickets, descriptor, staleness } => {
                self.note(&[1]);
                return self.clients_look(node, &tickets, &descriptor, staleness);
            }
            Effect::Reply { ticket, result } => {
                let result = match result {
                    Ok(Done::Written(result)) => Ok(result),
                    // Nobody waits for these.
                    _ if ticket.0 >= NOBODY => return Ok(()),
                    Ok(done) => return Err(format!("{ticket:?} wrote, and is told of {done:?}")),
                    Err(refusal) => Err(refusal),
                };
                self.note(format!("{ticket:?} {result:?}").as_bytes());
                return self.client_answered(node, ticket, result);
            }
            Effect::PublishDescriptor { .. } | Effect::Drained | Effect::Quarantined { .. } => {}
        }
        Ok(())
    }

    fn send(&mut self, link: Link, packet: Packet) {
        if self.network.refuses(&packet) {
            // As the transport does: the frame is dropped, and the core hears that the node can't be reached.
            self.meet("refused frames");
            let (from, node) = link;
            self.say(|| format!("a frame from n{from} to n{node} is too large"));
            return self.post(from, Event::NodeUnreachable { node });
        }
        let fate = self.network.send(link, &packet, self.now, &mut self.dice);
        if let [None, _] = fate.arrivals {
            self.lost(link, &packet);
        }
        for at in fate.arrivals.into_iter().flatten() {
            self.later(at - self.now, Happening::Arrive { link, packet: packet.clone() });
        }
    }

    fn send_snapshot(
        &mut self,
        from: NodeId,
        to: NodeId,
        replica: ReplicaId,
        snapshot: SnapshotId,
        envelope: &Envelope,
    ) -> Holds {
        let Some((manifest, files)) = self.seats[&from].member.snapshot_files(snapshot) else {
            // Given up in the pass in which it was to be sent.
            self.snapshot_sent(from, envelope.shard, replica, Delivery::Failed);
            return Ok(());
        };
        let mut announcement = BytesMut::new();
        envelope.encode(&mut announcement);
        let packet =
            SnapshotPacket { shard: envelope.shard, replica, snapshot, announcement: announcement.freeze(), manifest, files };
        self.send((from, to), Packet::Snapshot(Box::new(packet)));
        Ok(())
    }

    /// A packet will not arrive. Senders of snapshots are told, always.
    fn lost(&mut self, link: Link, packet: &Packet) {
        if let Packet::Snapshot(snapshot) = packet {
            self.snapshot_sent(link.0, snapshot.shard, snapshot.replica, Delivery::Failed);
        }
    }

    fn snapshot_sent(&mut self, node: NodeId, shard: ShardId, to: ReplicaId, delivery: Delivery) {
        let (delay, life) = (self.dice.around(10 * MS), self.seats[&node].life);
        self.later(delay, Happening::SnapshotSent { node, life, shard, to, delivery });
    }

    /// A packet has come to the end of its link.
    pub(super) fn arrive(&mut self, link: Link, packet: Packet) {
        let (from, to) = link;
        if !self.is_up(to) {
            return self.lost(link, &packet);
        }
        match packet {
            Packet::Frame(frame) => {
                let running = self.seat(to).member.running.as_mut().expect("it is up");
                let mailbox = &mut running.mailbox;
                wire::decode_frame(frame, |item| {
                    mailbox.push_back(match item {
                        Item::Message(envelope) => Event::Message { from, envelope: *envelope },
                        Item::Beat(beat) => Event::Beat { from, beat },
                    });
                })
                .expect("a core wrote this frame");
                self.wake(to);
            }
            Packet::Snapshot(snapshot) => {
                let SnapshotPacket { shard, replica, snapshot, announcement, manifest, files } = *snapshot;
                // Its sender gave it up while it was on its way: the stream breaks off, unless all of it was read already.
                let given_up = self.is_up(from) && self.seats[&from].member.snapshot_files(snapshot).is_none();
                if given_up && self.dice.percent(80) {
                    self.meet("given up snapshots");
                    return self.snapshot_sent(from, shard, replica, Delivery::Failed);
                }
                if self.dice.percent(10) {
                    self.meet("snapshots to a busy node");
                    return self.snapshot_sent(from, shard, replica, Delivery::Busy);
                }
                let envelope = wire::decode_envelope(announcement).expect("a core wrote this announcement");
                self.seat(to).member.stage(from, envelope, manifest, files);
                self.snapshot_sent(from, shard, replica, Delivery::Taken);
                self.wake(to);
            }
        }
    }
}
