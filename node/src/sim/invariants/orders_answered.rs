//! An order to change a shard's members is answered exactly once, and truly. Whoever hears that it
//! was made: it was, and the shard is one step on from what it was made for. Whoever hears that it
//! was not applied: no node ever takes it. Changes are told apart by their operation.

use super::{Holds, hold};
use crate::core::{Done, Ticket};
use flotilla_router::{Change, Epoch, NodeId, OperationId, Outcome, Refusal, ShardId};
use flotilla_storage::{Applied, EntryKind, LogEntry};
use std::collections::{BTreeMap, BTreeSet};

/// Every order that was given.
#[derive(Default)]
pub(crate) struct OrdersAnswered {
    /// Those that wait, and the node that was asked.
    open: BTreeMap<Ticket, (NodeId, OperationId, Epoch)>,
    /// The operation of each change that was committed.
    committed: BTreeMap<(ShardId, u64), OperationId>,
    taken: BTreeSet<OperationId>,
    refused: BTreeSet<OperationId>,
}

impl OrdersAnswered {
    /// A node is asked for a change.
    pub(crate) fn asked(&mut self, ticket: Ticket, node: NodeId, change: &Change) {
        self.open.insert(ticket, (node, change.operation, change.expected));
    }

    /// An entry was committed.
    pub(crate) fn committed(&mut self, shard: ShardId, entry: &LogEntry) -> Holds {
        if entry.kind != EntryKind::Normal && !entry.context.is_empty() {
            let change = Change::decode(entry.context.clone()).map_err(|e| e.to_string())?;
            self.committed.insert((shard, entry.at.index), change.operation);
        }
        Ok(())
    }

    /// A node has applied entries.
    pub(crate) fn applied(&mut self, node: NodeId, applied: &Applied) -> Holds {
        for (index, outcome) in &applied.conf_changes {
            if outcome.is_err() {
                continue;
            }
            let shard = applied.shard;
            let Some(operation) = self.committed.get(&(shard, *index)) else {
                return Err(format!("node {node} takes a change of shard {shard} at {index}"));
            };
            self.taken.insert(*operation);
            hold!(
                !self.refused.contains(operation),
                "shard {shard}: node {node} takes, at index {index}, a change that was called not \
                 applied"
            );
        }
        Ok(())
    }

    /// A node answers an order.
    pub(crate) fn answered(
        &mut self,
        node: NodeId,
        ticket: Ticket,
        result: &Result<Done, Refusal>,
    ) -> Holds {
        let Some((asked, operation, expected)) = self.open.remove(&ticket) else {
            return Err(format!("node {node} answers an order for the second time: {result:?}"));
        };
        hold!(asked == node, "node {node} answers an order that node {asked} was given");
        let is_taken = self.taken.contains(&operation);
        match result {
            Ok(Done::Changed(descriptor)) => {
                let epoch = descriptor.epoch.membership;
                let is_next = epoch == expected.membership + 1;
                hold!(
                    is_taken && is_next,
                    "node {node} says that a change was made, at epoch {epoch}, and it was not"
                );
            }
            Ok(other) => return Err(format!("node {node} answers an order by {other:?}")),
            Err(refusal) if refusal.outcome() == Outcome::NotApplied => {
                hold!(!is_taken, "node {node} says that a change was not applied, and it was");
                self.refused.insert(operation);
            }
            Err(_) => {}
        }
        Ok(())
    }

    /// A node went down; whoever waited for it hears nothing any more.
    pub(crate) fn went_down(&mut self, node: NodeId) {
        self.open.retain(|_, (asked, ..)| *asked != node);
    }

    /// Everything is healed, applied and at rest.
    pub(crate) fn end(&self) -> Holds {
        hold!(self.open.is_empty(), "orders were never answered: {:?}", self.open);
        Ok(())
    }
}
