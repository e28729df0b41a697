//! What a node finds when it starts: its replicas, verified from the first log entry to the last.
//!
//! 1. A snapshot install that a crash cut short is completed ([`snapshot`](crate::snapshot)).
//! 2. One ordered walk over `state` gathers what each replica remembers, one over the applied
//!    states up to where it applied.
//! 3. One ordered walk over `log` checks every entry: its checksum, that it belongs to this shard
//!    and index, that it follows the one before without a gap, that terms don't fall. Bodies are
//!    copied only above the applied position.
//! 4. Per replica the pieces must fit: truncated ≤ applied ≤ last, commit ≤ last, and the log holds
//!    the applied entry with the applied term. No number lies so high that sums of it could
//!    overflow, and raft-rs can make a group of the members.
//!
//! Anything else is an error that names shard and index. Nothing is skipped or repaired by guess: a
//! replica that forgot what it promised may cost an acknowledged write, a process that does not
//! start costs none.
//!
//! The hard state's commit may lie below the applied index, because nothing waits for an fsync to
//! learn a commit. It is raised to it, which raft-rs demands, but only after the applied entry was
//! found in the log: then it was committed indeed.

use crate::engine::{Cursor, Engine, Family, Order, Read};
use crate::error::StorageError;
use crate::keys::{self, StateTag};
use crate::records::{self, AppliedRecord};
use crate::work::{HardState, LogEntry, LogPosition, NUMBER_MAX, Recovered};
use bytes::Bytes;
use flotilla_router::mutation::Mutation;
use flotilla_router::{Descriptor, ReplicaId, ShardId};
use std::collections::BTreeMap;

/// No number on a disk comes this far. Above what peers may say, since a node counts on from that:
/// a term that was taken from a peer and raised by an election must not keep the node from
/// starting.
const REACHED_MAX: u64 = NUMBER_MAX << 4;

/// What one replica remembers beside its log and data.
#[derive(Default)]
struct Remembered {
    hard_state: Option<HardState>,
    truncated: Option<LogPosition>,
    descriptor: Option<Descriptor>,
    replica: Option<ReplicaId>,
    tombstone: Option<ReplicaId>,
    applied: Option<AppliedRecord>,
    log: Log,
}

/// What the walk over a replica's log found.
#[derive(Default)]
struct Log {
    last: LogPosition,
    term_starts: Vec<LogPosition>,
    /// The term of the entry at the applied index.
    applied_term: Option<u64>,
    unapplied: Vec<LogEntry>,
    bytes: u64,
}

/// Everything that `state` and the applied states say, by shard.
type Node = BTreeMap<ShardId, Remembered>;

/// All replicas of this node, in the order of shard ids.
pub fn recover<E: Engine>(engine: &E) -> Result<Vec<Recovered>, StorageError> {
    crate::snapshot::complete_installs(engine)?;
    let view = engine.view();
    let mut node = Node::new();
    walk_states(&view, &mut node)?;
    walk_applied(&view, &mut node)?;
    walk_logs(&view, &mut node)?;
    node.into_iter()
        .filter_map(|(shard, remembered)| finish(shard, remembered).transpose())
        .collect()
}

/// Replicas that were removed from this node, by shard: none of these ids may come back.
pub fn tombstones<R: Read>(read: &R) -> Result<BTreeMap<ShardId, ReplicaId>, StorageError> {
    let mut node = Node::new();
    walk_states(read, &mut node)?;
    Ok(node
        .into_iter()
        .filter_map(|(shard, remembered)| Some((shard, remembered.tombstone?)))
        .collect())
}

fn walk_states<R: Read>(read: &R, node: &mut Node) -> Result<(), StorageError> {
    let mut cursor = read.cursor(Family::State, &keys::state_start(), None, Order::Forward);
    while let Some((key, record)) = cursor.next()? {
        let Some((shard, tag)) = keys::parse_state(key) else {
            let why = format!("a key of {} bytes among the replicas' records", key.len());
            return Err(StorageError::NodeRecord { record: "state key", why });
        };
        let Some(tag) = StateTag::from_byte(tag) else {
            return Err(StorageError::ShardRecord {
                shard,
                record: "state key",
                why: format!("tag {tag}, which this binary doesn't know"),
            });
        };
        let remembered = node.entry(shard).or_default();
        let record = Bytes::copy_from_slice(record);
        let mut read = || {
            match tag {
                StateTag::HardState => {
                    remembered.hard_state = Some(records::decode_hard_state(key, &record)?)
                }
                StateTag::Truncated => {
                    remembered.truncated = Some(records::decode_truncated(key, &record)?)
                }
                StateTag::Descriptor => {
                    remembered.descriptor = Some(records::decode_descriptor(key, &record)?)
                }
                StateTag::Replica => {
                    remembered.replica = Some(records::decode_replica(key, &record)?)
                }
                StateTag::Tombstone if Mutation::TombstoneForgotten.is_on() => {}
                StateTag::Tombstone => {
                    remembered.tombstone = Some(records::decode_replica(key, &record)?)
                }
                // Completed before the walk began.
                StateTag::Install => {}
            }
            Ok(())
        };
        read().map_err(|e| StorageError::record(shard, e))?;
    }
    Ok(())
}

fn walk_applied<R: Read>(read: &R, node: &mut Node) -> Result<(), StorageError> {
    let (start, end) = keys::all_applied();
    let mut cursor = read.cursor(Family::Data, &start, Some(&end), Order::Forward);
    while let Some((key, record)) = cursor.next()? {
        let Some(shard) = keys::parse_applied(key) else {
            return Err(StorageError::NodeRecord {
                record: "applied state",
                why: format!("a key of {} bytes", key.len()),
            });
        };
        let applied =
            records::decode_applied(record).map_err(|e| StorageError::record(shard, e))?;
        node.entry(shard).or_default().applied = Some(applied);
    }
    Ok(())
}

fn walk_logs<R: Read>(read: &R, node: &mut Node) -> Result<(), StorageError> {
    let mut cursor = read.cursor(Family::Log, &[], None, Order::Forward);
    // The replica whose log the walk is in. Its truncated position stands for the entry before the
    // first.
    let mut current: Option<(ShardId, &mut Remembered)> = None;
    while let Some((key, record)) = cursor.next()? {
        let Some((shard, index)) = keys::parse_log_entry(key) else {
            return Err(StorageError::NodeRecord {
                record: "log key",
                why: format!("a key of {} bytes", key.len()),
            });
        };
        if current.as_ref().is_none_or(|(of, _)| *of != shard) {
            let Some(remembered) = node.get_mut(&shard) else {
                return Err(StorageError::entry(
                    shard,
                    index,
                    "the entry belongs to no replica of this node",
                ));
            };
            let Some(truncated) = remembered.truncated else {
                return Err(StorageError::ShardRecord {
                    shard,
                    record: "truncated position",
                    why: "it is missing".into(),
                });
            };
            remembered.log.last = truncated;
            current = Some((shard, remembered));
        }
        if let Some((_, remembered)) = &mut current {
            remembered.next_entry(shard, index, key, record)?;
        }
    }
    Ok(())
}

impl Remembered {
    /// Takes in the next entry of the log.
    fn next_entry(
        &mut self,
        shard: ShardId,
        index: u64,
        key: &[u8],
        record: &[u8],
    ) -> Result<(), StorageError> {
        let before = self.log.last;
        if index <= before.index {
            let why = format!(
                "the entry was truncated with those up to {}, and is still there",
                before.index
            );
            return Err(StorageError::entry(shard, index, why));
        }
        if index != before.index + 1 {
            let why = format!("the entry is missing; the next one is {index}");
            return Err(StorageError::entry(shard, before.index + 1, why));
        }
        let head =
            records::check_entry(key, record).map_err(|e| StorageError::entry(shard, index, e))?;
        if head.at.index != index {
            return Err(StorageError::entry(
                shard,
                index,
                format!("the entry of index {} stands here", head.at.index),
            ));
        }
        if head.at.term < before.term {
            return Err(StorageError::entry(
                shard,
                index,
                format!("term {} follows term {}", head.at.term, before.term),
            ));
        }
        if self.log.term_starts.last().is_none_or(|run| run.term != head.at.term) {
            self.log.term_starts.push(head.at);
        }
        let applied = self.applied.map_or(0, |applied| applied.at.index);
        if index == applied {
            self.log.applied_term = Some(head.at.term);
        } else if index > applied {
            let entry = records::decode_entry(key, &Bytes::copy_from_slice(record))
                .map_err(|e| StorageError::entry(shard, index, e))?;
            self.log.unapplied.push(entry);
        }
        self.log.bytes += head.bytes();
        self.log.last = head.at;
        Ok(())
    }
}

/// Fits the pieces of one replica together; `None` where only a tombstone is left of it.
fn finish(shard: ShardId, remembered: Remembered) -> Result<Option<Recovered>, StorageError> {
    let Remembered { hard_state, truncated, descriptor, replica, tombstone, applied, log } =
        remembered;
    if tombstone.is_some()
        && descriptor.is_none()
        && hard_state.is_none()
        && applied.is_none()
        && log.last.index == 0
    {
        return Ok(None);
    }
    let missing = |record| StorageError::ShardRecord { shard, record, why: "it is missing".into() };
    let descriptor = descriptor.ok_or_else(|| missing("descriptor"))?;
    let replica = replica.ok_or_else(|| missing("replica id"))?;
    let mut hard_state = hard_state.ok_or_else(|| missing("hard state"))?;
    let truncated = truncated.ok_or_else(|| missing("truncated position"))?;
    let applied = applied.ok_or_else(|| missing("applied state"))?;
    // What the log holds is bounded by these, below.
    for (record, number) in [
        ("truncated position", truncated.index.max(truncated.term)),
        ("hard state", hard_state.term.max(hard_state.commit)),
        ("applied state", applied.revision.0),
    ] {
        if number > REACHED_MAX {
            let why = format!("{number} is beyond what any node counts to");
            return Err(StorageError::ShardRecord { shard, record, why });
        }
    }
    let applied = applied.at;
    if !descriptor.is_sound() {
        let why = "it owns no key, nobody votes, or a replica or node is there twice".into();
        return Err(StorageError::ShardRecord { shard, record: "descriptor", why });
    }
    if descriptor.id != shard {
        let why = format!("the descriptor of shard {} stands here", descriptor.id);
        return Err(StorageError::ShardRecord { shard, record: "descriptor", why });
    }
    let last = if log.last.index == 0 { truncated } else { log.last };
    let wrong = |index, why: String| Err(StorageError::entry(shard, index, why));
    if applied.index < truncated.index {
        return wrong(
            applied.index + 1,
            format!(
                "the entry was truncated with those up to {}, but never applied",
                truncated.index
            ),
        );
    }
    if applied.index > last.index {
        return wrong(
            last.index + 1,
            format!("the entry is missing, but was applied with those up to {}", applied.index),
        );
    }
    let term =
        if applied.index == truncated.index { Some(truncated.term) } else { log.applied_term };
    if term != Some(applied.term) {
        let held = term.map_or("none".into(), |term| format!("term {term}"));
        return wrong(
            applied.index,
            format!("term {} was applied here, the log holds {held}", applied.term),
        );
    }
    if hard_state.commit > last.index {
        return wrong(
            last.index + 1,
            format!(
                "the entry is missing, but was committed with those up to {}",
                hard_state.commit
            ),
        );
    }
    if hard_state.term < last.term {
        let why = format!("it is at term {}, the log at term {}", hard_state.term, last.term);
        return Err(StorageError::ShardRecord { shard, record: "hard state", why });
    }
    hard_state.commit = hard_state.commit.max(applied.index);
    let Log { term_starts, unapplied, bytes: log_bytes, .. } = log;
    Ok(Some(Recovered {
        descriptor,
        replica,
        hard_state,
        truncated,
        last,
        term_starts,
        applied,
        unapplied,
        log_bytes,
    }))
}

#[cfg(test)]
mod tests;
