//! What takes long is carried out aside, and keeps no other shard.
//!
//! A deletion by range counts its keys, and counting millions takes seconds. All shards share the
//! applier, so from such an entry on a shard is taken *aside*, with all that the next entry depends
//! on: its entries are applied elsewhere, into batches of their own, which hold data, applied state
//! and descriptor together as ever. Nobody else writes into the shard's range, so it finds what it
//! would have found here. Meanwhile the applier knows nothing of the shard; whoever has taken it
//! aside gives it back.
//!
//! What comes of it is the same either way, so it need not be the same on every replica what was
//! taken aside. Whether an entry takes long is asked here, on behalf of all shards, so the question
//! must not take long itself: only where little lies in the range for certain it is walked over.
//! What was removed is in the way of a walk, too, and what lies below a deletion by range is passed
//! over without being counted.

use super::{Applied, Applier, ApplyWork, ShardState, Staged};
use crate::engine::{Cursor as _, Engine, Family, Order, Pace};
use crate::error::StorageError;
use crate::keys;
use flotilla_router::command::{Payload, deletes_a_range};
use flotilla_router::{Command, Op, ShardId};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// From how many records on in the ranges that entries delete they take long together: those behind
/// go aside.
const LONG_RECORDS_MIN: usize = 2048;
/// What a range costs beside its records.
const RANGE_RECORDS: usize = LONG_RECORDS_MIN / 64;
/// From how many bytes of files on in the ranges that an aside deletes it is one of those that take
/// longest.
const LONGEST_BYTES_MIN: u64 = 16 << 20;

/// A shard that was taken aside, with the entries that it is to apply.
#[derive(Debug)]
pub struct Aside {
    state: ShardState,
    work: ApplyWork,
    batch_bytes_max: usize,
    /// Bytes of files in the ranges that it empties.
    file_bytes: u64,
}

/// A shard that comes back, and what became of its entries.
#[derive(Debug)]
pub struct Returned {
    state: ShardState,
    applied: Applied,
}

impl Applier {
    /// [`apply`](Applier::apply), but for what takes long: that comes back, shard by shard, from
    /// the entry on at which it begins. Until such a shard is [taken back](Applier::take_back) it
    /// must not be in any work.
    pub fn apply_short<E: Engine>(
        &mut self,
        engine: &E,
        mut works: Vec<ApplyWork>,
    ) -> Result<(Vec<Applied>, Vec<Aside>), StorageError> {
        let mut long = Vec::new();
        // What each deletes may be little; it is all of them that the others wait for.
        let mut left = LONG_RECORDS_MIN;
        for work in &mut works {
            let begins = work.entries.iter().position(|apply| deletes_a_range(&apply.entry.data));
            let Some(begins) = begins else { continue };
            // Rare: only now each is looked at.
            for i in begins..work.entries.len() {
                if self.takes_long(engine, work, i, &mut left)? {
                    long.push(ApplyWork { shard: work.shard, entries: work.entries.split_off(i) });
                    break;
                }
            }
        }
        works.retain(|work| !work.entries.is_empty());
        let applied = self.apply(engine, works)?;
        let batch_bytes_max = self.batch_bytes_max;
        let aside = |work: ApplyWork| {
            let ranges = (0..work.entries.len()).flat_map(|i| self.deleted_ranges(&work, i));
            let file_bytes = ranges.map(|(start, end)| engine.data_file_bytes(&start, &end)).sum();
            // As in `apply`: work for a shard that is not here is dropped.
            let state = self.shards.remove(&work.shard)?;
            self.away.insert(work.shard);
            Some(Aside { state, work, batch_bytes_max, file_bytes })
        };
        Ok((applied, long.into_iter().filter_map(aside).collect()))
    }

    /// A shard comes back; what became of its entries.
    pub fn take_back(&mut self, returned: Returned) -> Applied {
        let was_away = self.away.remove(&returned.applied.shard);
        assert!(was_away, "shard {} comes back, and was not taken aside", returned.applied.shard);
        self.shards.insert(returned.applied.shard, returned.state);
        returned.applied
    }

    /// Whether an entry deletes ranges in which more than the records that are `left` are, or may
    /// be. If not, so many fewer are left.
    fn takes_long<E: Engine>(
        &self,
        engine: &E,
        work: &ApplyWork,
        i: usize,
        left: &mut usize,
    ) -> Result<bool, StorageError> {
        let ranges = self.deleted_ranges(work, i);
        let mut after = *left;
        for (start, end) in ranges {
            let passed = if engine.data_is_little(&start, &end) {
                records_within(engine, &start, &end, after)?
            } else {
                None
            };
            // Each costs something, whatever is in it.
            let Some(rest) = passed.and_then(|passed| after.checked_sub(passed + RANGE_RECORDS))
            else {
                return Ok(true);
            };
            after = rest;
        }
        *left = after;
        Ok(false)
    }

    /// The ranges of keys that an entry deletes.
    fn deleted_ranges(&self, work: &ApplyWork, i: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
        let data = &work.entries[i].entry.data;
        let Some(state) = self.shards.get(&work.shard).filter(|_| deletes_a_range(data)) else {
            return Vec::new();
        };
        // What can't be read is for apply to complain about.
        let Ok(payload) = Payload::decode(data.clone()) else { return Vec::new() };
        let range = |command: Command| match command.op() {
            Op::DeleteRange { range } => Some(keys::data_range(
                work.shard.key_space(),
                &range.intersect(&state.descriptor.range),
            )),
            Op::Put { .. } | Op::Delete { .. } => None,
        };
        payload.map_while(Result::ok).filter_map(range).filter(|(start, end)| start < end).collect()
    }
}

/// How many records a walk from `start` up to `end` finds; `None` where there are more than so
/// many, those that were removed and are still in the way included.
fn records_within<E: Engine>(
    engine: &E,
    start: &[u8],
    end: &[u8],
    records_max: usize,
) -> Result<Option<usize>, StorageError> {
    let pace = Pace { removed_max: records_max as u64, keep: true };
    let mut cursor = engine.cursor_at(Family::Data, start, Some(end), Order::Forward, pace);
    for passed in 0..=records_max {
        match cursor.next() {
            Ok(Some(_)) => {}
            Ok(None) => return Ok(Some(passed)),
            Err(StorageError::TooManyRemoved(_)) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

impl Aside {
    /// The shard.
    pub fn shard(&self) -> ShardId {
        self.work.shard
    }

    /// Whether so much lies in the ranges that it deletes that it is one of those that take
    /// longest.
    pub fn is_among_the_longest(&self) -> bool {
        self.file_bytes >= LONGEST_BYTES_MIN
    }

    /// Applies what is to be applied. When `stop` is set it may end with an error that means no
    /// more than that: what was not written is in the log.
    pub fn run<E: Engine>(
        mut self,
        engine: &E,
        stop: Arc<AtomicBool>,
    ) -> Result<Returned, StorageError> {
        let mut staged = Staged::new(engine);
        staged.stop = Some(stop);
        let applied = self.state.apply(engine, &mut staged, self.work, self.batch_bytes_max)?;
        staged.write(engine)?;
        Ok(Returned { state: self.state, applied })
    }
}
