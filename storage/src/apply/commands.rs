//! One command, carried out: it reads what its condition needs, adds to the batch, and says what
//! became of it.
//!
//! A condition is judged against the latest revision of the key: the batch's own change if there is
//! one, otherwise the engine's. A deletion by range counts every key first, the engine's merged
//! with the batch's; few keys are then deleted one by one, many by one range. The choice shows
//! nowhere but in tombstones, the count is exact either way, and entry and deletion are in one
//! batch, so that it is all or nothing.

use super::overlay::Overlay;
use crate::engine::{Cursor, Engine, Family, Order, Pace, WriteBatch};
use crate::error::StorageError;
use crate::keys;
use crate::records;
use crate::work::WriteResult;
use bytes::Bytes;
use flotilla_router::{Command, Condition, KeyRange, KeySpace, Op, Revision};
use std::sync::atomic::{AtomicBool, Ordering};

/// From how many keys on a range is deleted by one tombstone instead of one per key.
pub(crate) const RANGE_DELETE_KEYS_MIN: usize = 1024;

/// What the commands of one entry work with.
pub(super) struct Commands<'a, E: Engine> {
    pub(super) engine: &'a E,
    pub(super) batch: &'a mut E::Batch,
    /// What the batch changes so far, in this key space.
    pub(super) overlay: &'a mut Overlay,
    /// A buffer for one key.
    pub(super) key: &'a mut Vec<u8>,
    /// A buffer for one record.
    pub(super) record: &'a mut Vec<u8>,
    /// Where the shard's keys are.
    pub(super) space: KeySpace,
    /// The highest revision of the shard so far.
    pub(super) revision: &'a mut Revision,
    /// Set when what takes long is to be given up.
    pub(super) stop: Option<&'a AtomicBool>,
}

impl<E: Engine> Commands<'_, E> {
    /// Carries out a command of this shard.
    pub(super) fn carry_out(&mut self, command: &Command) -> Result<WriteResult, StorageError> {
        match command.op() {
            Op::Put { key, value } => {
                if let Some(refused) = self.judge(command.condition(), key)? {
                    return Ok(refused);
                }
                let revision = self.next_revision();
                keys::data_into(self.key, self.space, key);
                records::encode_data(self.record, revision, value);
                self.batch.put(Family::Data, self.key, self.record);
                self.overlay.note(key.clone(), Some(revision));
                Ok(WriteResult::Written { revision })
            }
            Op::Delete { key } => {
                if let Some(refused) = self.judge(command.condition(), key)? {
                    return Ok(refused);
                }
                self.next_revision();
                self.delete(key);
                Ok(WriteResult::Deleted)
            }
            // A condition on a range means nothing; refused, so that nobody believes that it was
            // looked at.
            Op::DeleteRange { .. } if command.condition() != Condition::Always => {
                Ok(WriteResult::ConditionFailed { current: None })
            }
            Op::DeleteRange { range } => {
                self.next_revision();
                Ok(WriteResult::DeletedRange { count: self.delete_range(range)? })
            }
        }
    }

    fn next_revision(&mut self) -> Revision {
        self.revision.0 += 1;
        *self.revision
    }

    /// What a command comes to whose condition does not hold.
    fn judge(
        &mut self,
        condition: Condition,
        key: &Bytes,
    ) -> Result<Option<WriteResult>, StorageError> {
        if condition == Condition::Always {
            return Ok(None);
        }
        let current = match self.overlay.look(key) {
            Some(change) => change,
            None => crate::read::revision(self.engine, self.space, key)?,
        };
        Ok((!condition.holds(current)).then_some(WriteResult::ConditionFailed { current }))
    }

    fn delete(&mut self, key: &Bytes) {
        keys::data_into(self.key, self.space, key);
        self.batch.delete(Family::Data, self.key);
        self.overlay.note(key.clone(), None);
    }

    /// Empties a range, and says how many keys were there.
    fn delete_range(&mut self, range: &KeyRange) -> Result<u64, StorageError> {
        if range.is_empty() {
            return Ok(0);
        }
        // The keys that the batch wrote and those that the engine has, both in order; each key
        // once.
        let (mut count, mut first_keys) = (0u64, Vec::new());
        let mut found = |key: &[u8]| {
            count += 1;
            if first_keys.len() < RANGE_DELETE_KEYS_MIN {
                first_keys.push(Bytes::copy_from_slice(key));
            }
        };
        let changed: Vec<(Bytes, bool)> =
            self.overlay.changed(range).map(|(key, there)| (key.clone(), there)).collect();
        let mut changed = changed.iter().peekable();
        let (start, end) = keys::data_range(self.space, range);
        // What is counted is about to go; it must not drive out what is read.
        let pace = Pace { removed_max: u64::MAX, keep: false };
        let mut cursor =
            self.engine.cursor_at(Family::Data, &start, Some(&end), Order::Forward, pace);
        while let Some((stored, _)) = cursor.next()? {
            if self.stop.is_some_and(|stop| stop.load(Ordering::Relaxed)) {
                return Err(StorageError::engine("delete a range", "it was given up"));
            }
            let key = keys::parse_data(self.space, stored).unwrap_or_default();
            let mut changed_too = false;
            while let Some((changed_key, there)) =
                changed.next_if(|(changed_key, _)| &changed_key[..] <= key)
            {
                changed_too |= changed_key == key;
                if *there {
                    found(changed_key);
                }
            }
            if !changed_too && !self.overlay.emptied(key) {
                found(key);
            }
        }
        changed.filter(|(_, there)| *there).for_each(|(key, _)| found(key));
        drop(cursor);
        if first_keys.len() < RANGE_DELETE_KEYS_MIN {
            for key in &first_keys {
                self.delete(key);
            }
        } else {
            self.batch.delete_range(Family::Data, &start, &end);
            self.overlay.note_emptied(range);
        }
        Ok(count)
    }
}
