//! What clients are told, and what they make of it: the history, one operation after the other.
//!
//! Also of those who gave up: a write that is refused as *not applied* must not happen later,
//! whoever still listens.

use super::clients::{HUNTERS, PROBERS, Waiting};
use super::invariants::Holds;
use super::invariants::stale_reads::Shown;
use super::world::World;
use crate::check::{Input, Operation, Output};
use crate::core::Ticket;
use bytes::Bytes;
use flotilla_router::call::Staleness;
use flotilla_router::{Descriptor, KeySpace, NodeId, Outcome, Refusal, Revision, ShardId};
use flotilla_storage::{WriteResult, read};

impl World {
    /// A node answers a write, or refuses whatever was asked.
    pub(super) fn client_answered(
        &mut self,
        node: NodeId,
        ticket: Ticket,
        result: Result<WriteResult, Refusal>,
    ) -> Holds {
        let not_applied =
            result.as_ref().is_err_and(|refusal| refusal.outcome() == Outcome::NotApplied);
        if not_applied {
            // Also of one that was given up: it must not happen later.
            self.invariants.refused(ticket)?;
        }
        let Some(waiting) = self.answered(node, ticket)? else { return Ok(()) };
        let (client, now) = (waiting.client, self.now);
        self.meet(match &result {
            Ok(WriteResult::ConditionFailed { .. }) => "failed conditions",
            Ok(_) => "acknowledged writes",
            Err(Refusal::NotLeader { .. }) => "refused by no leader",
            Err(Refusal::DiskFull { .. }) => "refused by a full disk",
            Err(_) if not_applied => "refused otherwise",
            Err(_) => "unknown outcomes",
        });
        let output = match result {
            Ok(WriteResult::Written { revision }) => {
                let value = waiting.value.as_ref().ok_or("a delete is answered as a put")?;
                self.invariants.acknowledged(node, value, now)?;
                self.clients.seen.insert(waiting.asks[0].0.clone(), revision);
                if let Some(probed) = client.checked_sub(PROBERS).filter(|_| client < HUNTERS) {
                    self.clients.probed.entry(ShardId(probed)).or_default().written = true;
                }
                Output::Written { revision }
            }
            Ok(WriteResult::Deleted) => Output::Deleted,
            Ok(WriteResult::ConditionFailed { current }) => Output::ConditionFailed { current },
            Ok(WriteResult::DeletedRange { .. }) => {
                return Err(format!("{ticket:?} deleted no range, and is told so"));
            }
            Ok(WriteResult::WrongShard) => {
                return Err(format!(
                    "{ticket:?} was asked of the right shard, and is told otherwise"
                ));
            }
            Err(_) if not_applied => Output::Refused,
            Err(_) => Output::Unknown,
        };
        let returned = (output != Output::Unknown).then_some(now);
        self.write_down(waiting, returned, |_| output.clone());
        if client < PROBERS {
            self.think(client);
        } else if client >= HUNTERS && matches!(output, Output::Written { .. }) {
            self.hunt_deposed(node, ShardId(client - HUNTERS));
        }
        Ok(())
    }

    /// Readers look, on a node's engine as it is at this moment.
    pub(super) fn clients_look(
        &mut self,
        node: NodeId,
        tickets: &[Ticket],
        descriptor: &Descriptor,
        staleness: Option<Staleness>,
    ) -> Holds {
        for ticket in tickets {
            let Some(waiting) = self.answered(node, *ticket)? else { continue };
            let (client, now) = (waiting.client, self.now);
            self.meet(if waiting.fresh { "fresh reads" } else { "stale reads" });
            if staleness.is_none() != waiting.fresh {
                return Err(format!("{ticket:?} asked for another freshness than it is given"));
            }
            let mut found = Vec::new();
            for (key, _) in &waiting.asks {
                if !descriptor.range.contains(key) {
                    return Err(format!("{ticket:?} looks outside of shard {}", descriptor.id));
                }
                let look = read::get(&self.seats[&node].member.engine, KeySpace::User, key)
                    .map_err(|error| error.to_string())?;
                self.invariants.shown(key, look.as_ref())?;
                if let Some((revision, _)) = &look {
                    self.clients.seen.insert(key.clone(), *revision);
                }
                found.push(look);
            }
            if let Some(staleness) = staleness {
                self.judge_stale(node, descriptor.id, staleness, &waiting, &found)?;
            }
            self.say(|| {
                format!(
                    "client {client} sees for #{}: {:?}",
                    ticket.0,
                    found.iter().map(|f| f.as_ref().map(|f| f.0)).collect::<Vec<_>>()
                )
            });
            self.write_down(waiting, Some(now), |place| Output::Read(found[place].clone()));
            match client.checked_sub(PROBERS) {
                Some(_) if client >= HUNTERS => {
                    self.meet("leases beside another leader, or soon after it")
                }
                Some(probed) => self.clients.probed.entry(ShardId(probed)).or_default().read = true,
                None => self.think(client),
            }
        }
        Ok(())
    }

    /// A stale answer shows the state at its index, and is as fresh as it says, on its node's own
    /// clock.
    fn judge_stale(
        &mut self,
        node: NodeId,
        shard: ShardId,
        staleness: Staleness,
        waiting: &Waiting,
        found: &[Option<(Revision, Bytes)>],
    ) -> Holds {
        let applied = read::applied(&self.seats[&node].member.engine, shard)
            .map_err(|error| error.to_string())?
            .index;
        if staleness.applied > applied {
            return Err(format!(
                "node {node} says that it has applied {}, and has applied {applied}",
                staleness.applied
            ));
        }
        if staleness.age > waiting.age_max.or(staleness.age)
            || waiting.age_max.is_some() && staleness.age.is_none()
        {
            return Err(format!(
                "node {node} answers with age {:?}, at most {:?} was asked for",
                staleness.age, waiting.age_max
            ));
        }
        self.meet(if staleness.age.is_some() {
            "stale reads with an age"
        } else {
            "stale reads without an age"
        });
        // Clocks show whole microseconds.
        let age =
            |age: std::time::Duration| age.as_nanos() as u64 * 1000 / self.permille(node) + 2000;
        let fresh_as_of = staleness.age.map(|claimed| self.now.saturating_sub(age(claimed)));
        let found =
            waiting.asks.iter().zip(found).map(|((key, _), found)| (key, found.as_ref())).collect();
        self.invariants.stale(&Shown { node, shard, applied, fresh_as_of, found })
    }

    /// A node went down: who waits there will never know.
    pub(super) fn client_lost(&mut self, node: NodeId) -> Holds {
        let lost: Vec<_> = self
            .clients
            .waiting
            .iter()
            .filter(|(_, w)| w.node == node)
            .map(|(ticket, _)| *ticket)
            .collect();
        for ticket in lost {
            let waiting = self.clients.waiting.remove(&ticket).expect("listed just now");
            let client = waiting.client;
            self.write_down(waiting, None, |_| Output::Unknown);
            if client < PROBERS {
                self.think(client);
            }
        }
        Ok(())
    }

    /// The run is over: who still waits will never know.
    pub(super) fn clients_end(&mut self) {
        for waiting in std::mem::take(&mut self.clients.waiting).into_values() {
            self.write_down(waiting, None, |_| Output::Unknown);
        }
    }

    /// Takes whoever waits for a ticket, unless it was given up.
    fn answered(&mut self, node: NodeId, ticket: Ticket) -> Result<Option<Waiting>, String> {
        let Some(waiting) = self.clients.waiting.remove(&ticket) else { return Ok(None) };
        if waiting.node != node {
            return Err(format!(
                "{ticket:?} was asked of node {}, and is answered by node {node}",
                waiting.node
            ));
        }
        Ok(Some(waiting))
    }

    /// Writes down what became of what was asked.
    pub(super) fn write_down(
        &mut self,
        waiting: Waiting,
        returned: Option<u64>,
        mut output: impl FnMut(usize) -> Output,
    ) {
        if !waiting.fresh {
            return;
        }
        for (place, (key, input)) in waiting.asks.into_iter().enumerate() {
            let (client, called) = (waiting.client, waiting.called);
            let output = short_output(output(place));
            self.clients.history.push(Operation {
                client,
                key,
                called,
                returned,
                input: short_input(input),
                output,
            });
        }
    }
}

/// What tells a value apart is in front; the rest only takes room.
fn short(value: &Bytes) -> Bytes {
    let end = value.iter().position(|byte| *byte == b':').unwrap_or(value.len());
    value.slice(..end)
}

/// The same without what only takes room.
pub(super) fn short_input(input: Input) -> Input {
    match input {
        Input::Put { value, condition } => Input::Put { value: short(&value), condition },
        other => other,
    }
}

fn short_output(output: Output) -> Output {
    match output {
        Output::Read(Some((revision, value))) => Output::Read(Some((revision, short(&value)))),
        other => other,
    }
}
