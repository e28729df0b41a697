//! What is around the nodes in simulated time: what cores say is judged and goes into the trace,
//! packets travel as the network lets them, senders hear late of their snapshots, and clients are
//! answered.

use super::faults::{NOBODY, ORDERS};
use super::hands::Surroundings;
use super::invariants::Holds;
use super::member::Member;
use super::network::{Link, Packet, SnapshotPacket};
use super::plan::MS;
use super::trace;
use super::world::{Happening, World};
use crate::core::{Delivery, Done, Effect, Event, Ticket};
use flotilla_router::call::Staleness;
use flotilla_router::{Descriptor, NodeId, Outcome, Refusal, ReplicaId, ShardId};

impl Surroundings for World {
    fn member(&mut self, node: NodeId) -> &mut Member {
        &mut self.seat(node).member
    }

    fn frame_bytes_max(&self) -> usize {
        self.plan.config.frame_bytes_max
    }

    fn witness(&mut self, node: NodeId, effect: &Effect) -> Holds {
        if self.words.is_some() {
            let mut lines = Vec::new();
            trace::effect(node, effect, &mut lines);
            lines.into_iter().for_each(|line| self.say(|| line));
        }
        self.invariants.effect(node, effect)?;
        match effect {
            Effect::Send { to, messages, .. } => self.overhear((node, *to), messages),
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
            }
            Effect::InstallSnapshot { .. } => self.meet("installed snapshots"),
            Effect::FetchEntries { .. } => self.meet("fetched entries"),
            Effect::Read { .. } => self.note(&[1]),
            _ => {}
        }
        Ok(())
    }

    fn pass_begins(&mut self, _: NodeId) {
        self.invariants.pass_begins();
    }

    fn transmit(&mut self, link: Link, packet: Packet) {
        if let Packet::Frame(frame) = &packet {
            self.note(frame);
        }
        if self.network.refuses(&packet) {
            // As the transport does: the frame is dropped, and the core hears that the node can't
            // be reached.
            self.meet("refused frames");
            let (from, node) = link;
            self.say(|| format!("a frame from n{from} to n{node} is too large"));
            return self.post(from, Event::NodeUnreachable { node });
        }
        let arrivals = self.network.send(link, &packet, self.now, &mut self.rng);
        if let [None, _] = arrivals {
            self.lost(link, &packet);
        }
        for at in arrivals.into_iter().flatten() {
            self.later(at - self.now, Happening::Arrive { link, packet: packet.clone() });
        }
    }

    fn turned_away(&mut self, (from, _): Link, snapshot: &SnapshotPacket) -> Option<Delivery> {
        // Its sender gave it up while it was on its way: the stream breaks off, unless all of it
        // was read already.
        let given_up = self.is_up(from)
            && self.seats[&from].member.snapshot_files(snapshot.snapshot).is_none();
        if given_up && self.rng.percent(80) {
            self.meet("given up snapshots");
            return Some(Delivery::Failed);
        }
        let busy = self.rng.percent(10);
        busy.then(|| {
            self.meet("snapshots to a busy node");
            Delivery::Busy
        })
    }

    fn snapshot_sent(&mut self, sender: NodeId, shard: ShardId, to: ReplicaId, delivery: Delivery) {
        let (delay, life) = (self.rng.around(10 * MS), self.seats[&sender].life);
        self.later(delay, Happening::SnapshotSent { node: sender, life, shard, to, delivery });
    }

    fn wake(&mut self, node: NodeId) {
        let delay = self.rng.below(MS / 10);
        let seat = self.seat(node);
        if !seat.pass_due {
            seat.pass_due = true;
            let life = seat.life;
            self.later(delay, Happening::Pass { node, life });
        }
    }

    fn read(
        &mut self,
        node: NodeId,
        tickets: &[Ticket],
        descriptor: &Descriptor,
        staleness: Option<Staleness>,
    ) -> Holds {
        self.clients_look(node, tickets, descriptor, staleness)
    }

    fn reply(&mut self, node: NodeId, ticket: Ticket, result: Result<Done, Refusal>) -> Holds {
        let result = match result {
            Ok(Done::Written(result)) => Ok(result),
            result if ticket.0 >= ORDERS => {
                self.meet(match &result {
                    Ok(_) => "changes of members",
                    Err(refusal) if refusal.outcome() == Outcome::Unknown => {
                        "changes of members whose outcome is unknown"
                    }
                    Err(_) => "refused changes of members",
                });
                return self.invariants.order_answered(node, ticket, &result);
            }
            // Nobody waits for these.
            _ if ticket.0 >= NOBODY => return Ok(()),
            Ok(done) => return Err(format!("{ticket:?} wrote, and is told of {done:?}")),
            Err(refusal) => Err(refusal),
        };
        self.note(format!("{ticket:?} {result:?}").as_bytes());
        self.client_answered(node, ticket, result)
    }

    fn publish_leader(&mut self, node: NodeId, shard: ShardId, leader: Option<NodeId>) {
        match leader {
            Some(leader) => self.seat(node).leaders.insert(shard, leader),
            None => self.seat(node).leaders.remove(&shard),
        };
        if leader == Some(node) {
            self.hunt(node, shard);
        }
    }
}
