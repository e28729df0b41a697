//! Apply: committed commands become data, the same on every replica.
//!
//! The [`Applier`] owns, per shard, what the next entry depends on besides the data: the applied
//! position, the highest revision given out, and the descriptor. It merges the entries of all
//! shards of a pass into **one** unsynced batch: unsynced, because a crash only takes back what the
//! log still holds; one, because batches cost more than what is in them. A pass of many MiB is cut
//! between entries.
//!
//! **Invariants.**
//! - Data, applied state and descriptor of a shard change in one batch, so that no crash separates
//!   them, and an entry is applied exactly once. An entry at or below the applied position is
//!   refused, and one beyond the next as well.
//! - The outcome depends on the entries and on the shard's data alone: no clock, no randomness, no
//!   hash order.
//! - The kind of an entry is looked at before its data: the step out of joint consensus is a conf
//!   change without data.
//! - A conf change is judged by what its context says, and by the descriptor: one function of the
//!   router tells what it leads to ([`Change::applied_to`]). One that does not fit changes nothing,
//!   and neither does one without a context, which Flotilla never proposes. Every replica sees the
//!   same refusal, and raft-rs never hears of such a change.
//! - A payload proposed at another range epoch, or a command outside of the range, writes nothing
//!   and answers [`WriteResult::WrongShard`].
//! - Every write that takes effect consumes a revision, deletions too: a key that is deleted and
//!   written again goes on above.
//! - An unconditional put or delete reads nothing. What was written in the batch but is not in the
//!   engine yet is seen by later conditions through the overlay (`overlay.rs`).
//!
//! A payload that can't be read is corruption: an error that names shard and index, on all replicas
//! alike. After any error the applier is of no use any more; the process ends.
//!
//! How one command is carried out is told in `commands.rs`, how one that takes long keeps nobody
//! else, in `aside.rs`.

mod aside;
pub(crate) mod commands;
pub(crate) mod overlay;

use crate::engine::{Engine, Family, WriteBatch};
use crate::error::StorageError;
use crate::failpoint::FailPoint;
use crate::keys::{self, StateTag};
use crate::records::{self, AppliedRecord};
use crate::work::{
    Applied, ApplyWork, EntryKind, LogEntry, LogPosition, Recovered, SnapshotManifest, WriteResult,
};
pub use aside::{Aside, Returned};
use commands::Commands;
use flotilla_router::command::Payload;
use flotilla_router::mutation::Mutation;
use flotilla_router::{Change, Descriptor, ShardId, Unfit};
use overlay::Overlay;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// A batch that has grown to this size is written, and the pass goes on with a new one.
const BATCH_BYTES_MAX: usize = 4 << 20;

/// Applies committed entries, in index order per shard.
pub struct Applier {
    shards: BTreeMap<ShardId, ShardState>,
    /// Shards that were taken aside and have not come back.
    away: BTreeSet<ShardId>,
    /// Set by the first error: what was staged then is lost, so nothing may follow.
    failed: bool,
    batch_bytes_max: usize,
}

/// What the next entry of a shard depends on, besides the data.
#[derive(Debug)]
struct ShardState {
    descriptor: Descriptor,
    applied: AppliedRecord,
}

/// The batch that is being filled, and what it changes.
struct Staged<E: Engine> {
    batch: E::Batch,
    /// The user keys that it changes.
    users: Overlay,
    /// The meta shard's keys that it changes.
    metas: Overlay,
    /// A buffer for one key.
    key: Vec<u8>,
    /// A buffer for one record.
    record: Vec<u8>,
    /// Set when what takes long is to be given up.
    stop: Option<Arc<AtomicBool>>,
}

impl Applier {
    /// An applier of the replicas that were found at start.
    pub fn new<E: Engine>(engine: &E, replicas: &[Recovered]) -> Result<Self, StorageError> {
        let (shards, away) = (BTreeMap::new(), BTreeSet::new());
        let mut applier = Self { shards, away, failed: false, batch_bytes_max: BATCH_BYTES_MAX };
        for replica in replicas {
            let shard = replica.descriptor.id;
            let applied = crate::read::applied_record(engine, shard)?;
            if applied.at != replica.applied {
                let why =
                    format!("{:?} is stored, {:?} was recovered", applied.at, replica.applied);
                return Err(StorageError::ShardRecord { shard, record: "applied state", why });
            }
            applier
                .shards
                .insert(shard, ShardState { descriptor: replica.descriptor.clone(), applied });
        }
        Ok(applier)
    }

    /// The last entry of `shard` that was applied; `None` for a shard that has no replica here.
    pub fn applied(&self, shard: ShardId) -> Option<LogPosition> {
        self.shards.get(&shard).map(|state| state.applied.at)
    }

    /// What `shard` is as of [`Self::applied`].
    pub fn descriptor(&self, shard: ShardId) -> Option<&Descriptor> {
        self.shards.get(&shard).map(|state| &state.descriptor)
    }

    /// Takes note of a snapshot that was installed: its shard goes on from there.
    pub fn installed(&mut self, manifest: &SnapshotManifest) {
        let applied = AppliedRecord { at: manifest.at, revision: manifest.revision };
        self.shards.insert(
            manifest.descriptor.id,
            ShardState { descriptor: manifest.descriptor.clone(), applied },
        );
    }

    /// Applies the entries of a pass, and says what became of them: one [`Applied`] per work, in
    /// order. The batch is written when this returns, but not synced.
    ///
    /// Work for a shard that has no replica here is dropped, without an [`Applied`]: a replica may
    /// be removed while its entries are on their way.
    pub fn apply<E: Engine>(
        &mut self,
        engine: &E,
        works: Vec<ApplyWork>,
    ) -> Result<Vec<Applied>, StorageError> {
        assert!(!self.failed, "apply goes on after an error: entries would be skipped");
        let outcome = self.apply_all(engine, works);
        self.failed = outcome.is_err();
        outcome
    }

    fn apply_all<E: Engine>(
        &mut self,
        engine: &E,
        works: Vec<ApplyWork>,
    ) -> Result<Vec<Applied>, StorageError> {
        let mut staged = Staged::new(engine);
        let mut all = Vec::with_capacity(works.len());
        for work in works {
            let shard = work.shard;
            assert!(!self.away.contains(&shard), "work for shard {shard}, which was taken aside");
            let Some(state) = self.shards.get_mut(&shard) else { continue };
            all.push(state.apply(engine, &mut staged, work, self.batch_bytes_max)?);
        }
        staged.write(engine)?;
        Ok(all)
    }
}

impl ShardState {
    /// Applies the entries of one work.
    fn apply<E: Engine>(
        &mut self,
        engine: &E,
        staged: &mut Staged<E>,
        work: ApplyWork,
        batch_bytes_max: usize,
    ) -> Result<Applied, StorageError> {
        let shard = work.shard;
        let (mut results, mut conf_changes) = (Vec::new(), Vec::new());
        for (i, apply) in work.entries.iter().enumerate() {
            let entry = &apply.entry;
            self.check_next(shard, entry.at)?;
            let mut answers = apply.wants_results.then(Vec::new);
            match entry.kind {
                EntryKind::Normal if entry.data.is_empty() => {}
                EntryKind::Normal => self.apply_commands(engine, staged, entry, &mut answers)?,
                EntryKind::ConfChange | EntryKind::ConfChangeV2 => {
                    let outcome = self.change_membership(entry)?;
                    if outcome.is_ok() {
                        staged.put_descriptor(&self.descriptor);
                    }
                    conf_changes.push((entry.at.index, outcome));
                }
            }
            self.applied.at = entry.at;
            results.extend(answers.map(|answers| (entry.at.index, answers)));
            let last = i + 1 == work.entries.len();
            let full = staged.batch.bytes() >= batch_bytes_max;
            if last || full {
                if Mutation::AppliedApart.is_on() {
                    staged.write(engine)?;
                }
                staged.batch.put(
                    Family::Data,
                    &keys::applied(shard),
                    &records::encode_applied(self.applied),
                );
            }
            if full {
                staged.write(engine)?;
            }
        }
        let changed = conf_changes.iter().any(|(_, outcome)| outcome.is_ok());
        let descriptor = changed.then(|| self.descriptor.clone());
        Ok(Applied { shard, at: self.applied.at, results, conf_changes, descriptor })
    }

    /// Refuses an entry that is not the next one.
    fn check_next(&self, shard: ShardId, at: LogPosition) -> Result<(), StorageError> {
        let applied = self.applied.at;
        let why = if at.index <= applied.index {
            format!("index {} is applied already", applied.index)
        } else if at.index != applied.index + 1 {
            format!("the entries after index {} are missing", applied.index)
        } else if at.term < applied.term {
            format!("its term {} lies below {}, which is applied", at.term, applied.term)
        } else {
            return Ok(());
        };
        Err(StorageError::Apply { shard, index: at.index, why })
    }

    /// Applies the commands of a normal entry.
    fn apply_commands<E: Engine>(
        &mut self,
        engine: &E,
        staged: &mut Staged<E>,
        entry: &LogEntry,
        answers: &mut Option<Vec<WriteResult>>,
    ) -> Result<(), StorageError> {
        let shard = self.descriptor.id;
        let corrupt = |error| StorageError::entry(shard, entry.at.index, error);
        let payload = Payload::decode(entry.data.clone()).map_err(corrupt)?;
        let in_epoch =
            payload.range_epoch == self.descriptor.epoch.range || Mutation::EpochUnchecked.is_on();
        let overlay = if shard.is_meta() { &mut staged.metas } else { &mut staged.users };
        let mut commands = Commands {
            engine,
            batch: &mut staged.batch,
            overlay,
            key: &mut staged.key,
            record: &mut staged.record,
            space: shard.key_space(),
            revision: &mut self.applied.revision,
            stop: staged.stop.as_deref(),
        };
        for command in payload {
            let command = command.map_err(corrupt)?;
            let result = if in_epoch && command.is_within(&self.descriptor.range) {
                commands.carry_out(&command)?
            } else {
                WriteResult::WrongShard
            };
            debug_assert!(result.fits(&command));
            if let Some(answers) = answers {
                answers.push(result);
            }
        }
        Ok(())
    }

    /// Makes a membership change, if it fits; whether it does, and if not, why.
    fn change_membership(&mut self, entry: &LogEntry) -> Result<Result<(), Unfit>, StorageError> {
        if entry.context.is_empty() {
            return Ok(Err(Unfit::Bare));
        }
        let shard = self.descriptor.id;
        let corrupt = |error| StorageError::entry(shard, entry.at.index, error);
        let change = Change::decode(entry.context.clone()).map_err(corrupt)?;
        Ok(change.applied_to(&self.descriptor).map(|changed| self.descriptor = changed))
    }
}

impl<E: Engine> Staged<E> {
    fn new(engine: &E) -> Self {
        let (users, metas) = (Overlay::default(), Overlay::default());
        Self {
            batch: engine.batch(),
            users,
            metas,
            key: Vec::new(),
            record: Vec::new(),
            stop: None,
        }
    }

    fn put_descriptor(&mut self, descriptor: &Descriptor) {
        let key = keys::state(descriptor.id, StateTag::Descriptor);
        records::encode_descriptor(&mut self.record, &key, descriptor);
        self.batch.put(Family::State, &key, &self.record);
    }

    /// Writes what is staged, and begins anew.
    fn write(&mut self, engine: &E) -> Result<(), StorageError> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let batch = std::mem::replace(&mut self.batch, engine.batch());
        self.users.clear();
        self.metas.clear();
        FailPoint::ApplyBegun.pass()?;
        engine.write(batch, false)?;
        FailPoint::ApplyWritten.pass()
    }
}

#[cfg(test)]
mod tests;
