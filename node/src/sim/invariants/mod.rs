//! What must hold whatever happens: one file each, all looked at after every step of the
//! simulation.
//!
//! They see what a node says and what its disk holds, never what its core believes: effects as they
//! leave, results of apply as they come, the engine as readers see it, and as a crash would leave
//! it.
//!
//! | file | what it holds to be true |
//! |---|---|
//! | [`one_leader`] | one leader per shard and term |
//! | [`logs_match`] | an entry of one index and term is the same everywhere, and so is the one below it |
//! | [`committed_stays`] | what one node applies at an index every node applies there; no replica deletes it, no leader lacks it |
//! | [`applied_grows`] | each node applies every index once, in order |
//! | [`equal_state`] | equal data at equal applied index |
//! | [`ranges`] | live ranges on a node are disjoint; over the cluster they cover the key space |
//! | [`replica_ids`] | a replica id stays with its shard and node, and never comes back |
//! | [`applied_once`] | no write is applied twice, and none that was called *not applied* is applied at all |
//! | [`revisions_grow`] | revisions of a key only grow; one revision is one value |
//! | [`acknowledged_stays`] | an acknowledged write is durable on a quorum at that moment, and there at the end |
//! | [`orders_answered`] | an order to change members is answered once, and truly |
//! | [`stale_reads`] | a stale read shows the state at its index, and is no older than it says |
//! | [`nobody_quarantined`] | a disk that keeps its promises never makes a core quarantine a shard |

pub(crate) mod acknowledged_stays;
pub(crate) mod applied_grows;
pub(crate) mod applied_once;
pub(crate) mod committed_stays;
pub(crate) mod equal_state;
pub(crate) mod logs_match;
pub(crate) mod nobody_quarantined;
pub(crate) mod one_leader;
pub(crate) mod orders_answered;
pub(crate) mod ranges;
pub(crate) mod replica_ids;
pub(crate) mod revisions_grow;
pub(crate) mod stale_reads;

use crate::core::{Done, Effect, Event, Ticket};
use crate::sim::member::Running;
use bytes::Bytes;
use flotilla_router::command::Payload;
use flotilla_router::{Change, Command, Descriptor, NodeId, Refusal, ShardId};
use flotilla_storage::{Applied, EntryKind, LogPosition, MemoryEngine, Recovered};
use std::collections::BTreeMap;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// That something holds, or a sentence about what does not.
pub(crate) type Holds = Result<(), String>;

/// A promise that was broken, and where.
macro_rules! hold {
    ($condition:expr, $($words:tt)+) => {
        if !$condition {
            return Err(format!($($words)+));
        }
    };
}
pub(crate) use hold;

/// All invariants of one run.
pub(crate) struct Invariants {
    /// Every node's disk.
    disks: BTreeMap<NodeId, MemoryEngine>,
    /// What every shard is, as far as any node has said.
    descriptors: BTreeMap<ShardId, Descriptor>,
    one_leader: one_leader::OneLeader,
    logs_match: logs_match::LogsMatch,
    committed_stays: committed_stays::CommittedStays,
    applied_grows: applied_grows::AppliedGrows,
    equal_state: equal_state::EqualState,
    ranges: ranges::Ranges,
    replica_ids: replica_ids::ReplicaIds,
    applied_once: applied_once::AppliedOnce,
    revisions_grow: revisions_grow::RevisionsGrow,
    acknowledged_stays: acknowledged_stays::AcknowledgedStays,
    orders_answered: orders_answered::OrdersAnswered,
    stale_reads: stale_reads::StaleReads,
}

impl Invariants {
    /// For a cluster of these shards on these disks.
    pub(crate) fn new(shards: &[Descriptor], disks: BTreeMap<NodeId, MemoryEngine>) -> Self {
        Self {
            disks,
            descriptors: shards.iter().map(|d| (d.id, d.clone())).collect(),
            one_leader: Default::default(),
            logs_match: Default::default(),
            committed_stays: Default::default(),
            applied_grows: Default::default(),
            equal_state: Default::default(),
            ranges: Default::default(),
            replica_ids: Default::default(),
            applied_once: Default::default(),
            revisions_grow: Default::default(),
            acknowledged_stays: Default::default(),
            orders_answered: Default::default(),
            stale_reads: stale_reads::StaleReads::new(shards),
        }
    }

    /// A node's core has said something.
    pub(crate) fn effect(&mut self, node: NodeId, effect: &Effect) -> Holds {
        match effect {
            Effect::Send { messages, .. } => {
                for envelope in messages {
                    self.one_leader.message(node, envelope)?;
                    self.logs_match.message(node, envelope)?;
                    self.committed_stays.message(node, envelope)?;
                }
            }
            Effect::SendSnapshot { envelope, .. } => self.one_leader.message(node, envelope)?,
            Effect::Persist { batch, .. } => {
                for write in &batch.writes {
                    self.logs_match.write(node, write)?;
                    self.committed_stays.write(node, write, &self.disks[&node])?;
                }
            }
            Effect::Apply { work } => {
                for work in work {
                    self.acknowledged_stays.handed_out(node, work);
                    hold!(
                        !work.entries.is_empty(),
                        "node {node} is to apply nothing in shard {}",
                        work.shard
                    );
                    for apply in &work.entries {
                        let (shard, entry) = (work.shard, &apply.entry);
                        if self.committed_stays.committed(
                            node,
                            shard,
                            entry.at,
                            contents(entry.kind != EntryKind::Normal, &entry.data, &entry.context),
                        )? {
                            let commands = commands(&entry.data)?;
                            self.applied_once.committed(shard, entry.at, &commands)?;
                            self.orders_answered.committed(shard, entry)?;
                            self.acknowledged_stays.committed(shard, entry.at, &commands);
                            let keys = self.applied_once.between(
                                shard,
                                entry.at.index - 1,
                                entry.at.index,
                            );
                            self.stale_reads.committed(shard, entry, keys)?;
                        }
                    }
                }
            }
            Effect::PublishDescriptor { descriptor } => {
                self.acknowledged_stays.published(node, descriptor)?;
                let known = self.descriptors.get_mut(&descriptor.id);
                let known = known.ok_or_else(|| format!("nobody knows {descriptor:?}"))?;
                if known.epoch < descriptor.epoch {
                    *known = (**descriptor).clone();
                }
                self.ranges.published(node, descriptor)?;
                self.replica_ids.published(node, descriptor)?;
            }
            Effect::Quarantined { shard, why } => {
                nobody_quarantined::quarantined(node, *shard, why)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// A node's storage has done a job, whose outcome is the last thing in the mailbox.
    pub(crate) fn worked(&mut self, node: NodeId, running: &Running) -> Holds {
        match running.mailbox.back() {
            Some(Event::Applied { applied }) => self.applied(node, applied),
            Some(Event::SnapshotInstalled { shard, at, .. }) => self.installed(node, *shard, *at),
            Some(Event::SnapshotBuilt { snapshot, .. }) => {
                self.committed_stays.built(node, &running.built[snapshot])
            }
            _ => Ok(()),
        }
    }

    /// A node has applied entries; its engine shows them.
    fn applied(&mut self, node: NodeId, applied: &[Applied]) -> Holds {
        let disk = &self.disks[&node];
        for all in applied {
            self.orders_answered.applied(node, all)?;
            let Applied { shard, at, .. } = all;
            let from = self.applied_grows.applied(node, *shard, *at)?;
            self.equal_state.compare(node, &self.descriptors[shard], disk)?;
            for entry in self.applied_once.between(*shard, from, at.index) {
                self.revisions_grow.look(node, entry, disk)?;
            }
        }
        Ok(())
    }

    /// A snapshot has become a node's data.
    fn installed(&mut self, node: NodeId, shard: ShardId, at: LogPosition) -> Holds {
        self.applied_grows.installed(node, shard, at)?;
        self.committed_stays.installed(node, shard, at)?;
        self.equal_state.compare(node, &self.descriptors[&shard], &self.disks[&node])
    }

    /// A node went down.
    pub(crate) fn went_down(&mut self, node: NodeId) {
        self.revisions_grow.went_down(node);
        self.ranges.went_down(node);
        self.orders_answered.went_down(node);
    }

    /// A node starts with what was found on its disk.
    pub(crate) fn starts(&mut self, node: NodeId, recovered: &[Recovered]) -> Holds {
        self.applied_grows.starts(node, recovered)?;
        for replica in recovered {
            self.equal_state.compare(
                node,
                &self.descriptors[&replica.descriptor.id],
                &self.disks[&node],
            )?;
        }
        Ok(())
    }

    /// `ticket` writes, with these bytes or none, what nobody else writes.
    pub(crate) fn asks(&mut self, ticket: Ticket, value: Option<Bytes>) {
        if let Some(value) = value {
            self.applied_once.asks(ticket, value);
        }
    }

    /// A node's pass begins.
    pub(crate) fn pass_begins(&mut self) {
        self.acknowledged_stays.pass_begins();
    }

    /// A node is asked to change members.
    pub(crate) fn orders(&mut self, ticket: Ticket, node: NodeId, change: &Change) {
        self.orders_answered.asked(ticket, node, change);
    }

    /// A node answers such an order.
    pub(crate) fn order_answered(
        &mut self,
        node: NodeId,
        ticket: Ticket,
        result: &Result<Done, Refusal>,
    ) -> Holds {
        self.orders_answered.answered(node, ticket, result)
    }

    /// A client was told that its write was not, and will not be, applied.
    pub(crate) fn refused(&mut self, ticket: Ticket) -> Holds {
        self.applied_once.refused(ticket)
    }

    /// A client was told by a node, `now`, that this value was written.
    pub(crate) fn acknowledged(&mut self, node: NodeId, value: &Bytes, now: u64) -> Holds {
        let (shard, at) = self.acknowledged_stays.acknowledged(node, value, &self.disks)?;
        self.stale_reads.told(shard, at.index, now);
        Ok(())
    }

    /// A client was given a stale answer.
    pub(crate) fn stale(&self, shown: &stale_reads::Shown<'_>) -> Holds {
        self.stale_reads.shown(shown)
    }

    /// A client was shown what stands under a key, no matter how old.
    pub(crate) fn shown(
        &self,
        key: &Bytes,
        found: Option<&(flotilla_router::Revision, Bytes)>,
    ) -> Holds {
        self.revisions_grow.shown(key, found)
    }

    /// What a node last said that a shard is.
    pub(crate) fn told_by(&self, node: NodeId, shard: ShardId) -> Option<&Descriptor> {
        self.acknowledged_stays.told_by(node, shard)
    }

    /// A shard that is in the middle of a change of members, if any is.
    pub(crate) fn joint(&self) -> Option<&Descriptor> {
        self.descriptors.values().find(|descriptor| descriptor.is_joint())
    }

    /// The highest index that is known to be committed in a shard.
    pub(crate) fn last_committed(&self, shard: ShardId) -> u64 {
        self.committed_stays.last(shard)
    }

    /// Everything is healed, and every replica has applied all that is committed.
    pub(crate) fn end(&mut self) -> Holds {
        let shards: Vec<_> = self.descriptors.values().cloned().collect();
        self.ranges.end(&shards)?;
        for descriptor in &shards {
            for replica in &descriptor.replicas {
                self.equal_state.compare(replica.node, descriptor, &self.disks[&replica.node])?;
            }
        }
        self.orders_answered.end()?;
        self.acknowledged_stays.end(&self.descriptors, &self.disks)
    }
}

/// A hash of all that an entry says.
fn contents(is_change: bool, data: &[u8], context: &[u8]) -> u64 {
    xxh3_64_with_seed(data, xxh3_64_with_seed(context, is_change.into()))
}

/// The commands of an entry; none in what is not an entry of commands.
fn commands(data: &Bytes) -> Result<Vec<Command>, String> {
    if data.is_empty() {
        return Ok(Vec::new());
    }
    let Ok(payload) = Payload::decode(data.clone()) else { return Ok(Vec::new()) };
    payload
        .collect::<Result<_, _>>()
        .map_err(|error| format!("an entry was committed that can't be read: {error}"))
}

#[cfg(test)]
mod tests;
