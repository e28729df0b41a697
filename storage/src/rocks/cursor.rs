//! Walks over a family, within bounds, and at a pace where they may be long.

use super::{RawDb, failed};
use crate::engine::{Cursor, Order, Pace, Record};
use crate::error::StorageError;
use rocksdb::{DBRawIteratorWithThreadMode, ErrorKind, ReadOptions};

/// A walk over a family.
pub struct RocksCursor<'a> {
    iterator: DBRawIteratorWithThreadMode<'a, RawDb>,
    order: Order,
    started: bool,
    /// [`Pace::removed_max`], where the walk has a pace.
    removed_max: u64,
}

/// Bounds of a walk.
pub(super) fn bounds(start: &[u8], end: Option<&[u8]>) -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_iterate_lower_bound(start);
    if let Some(end) = end {
        // RocksDB asserts that the bounds are in order.
        options.set_iterate_upper_bound(end.max(start));
    }
    options
}

/// The same at a pace.
pub(super) fn paced(start: &[u8], end: Option<&[u8]>, pace: Pace) -> ReadOptions {
    let mut options = bounds(start, end);
    options.set_max_skippable_internal_keys(pace.removed_max);
    options.fill_cache(pace.keep);
    options
}

impl<'a> RocksCursor<'a> {
    /// Not begun.
    pub(super) fn new(iterator: DBRawIteratorWithThreadMode<'a, RawDb>, order: Order) -> Self {
        Self { iterator, order, started: false, removed_max: u64::MAX }
    }

    /// The same at the pace with which its iterator was made.
    pub(super) fn at(self, pace: Pace) -> Self {
        Self { removed_max: pace.removed_max, ..self }
    }
}

impl Cursor for RocksCursor<'_> {
    fn next(&mut self) -> Result<Option<Record<'_>>, StorageError> {
        match (self.started, self.order) {
            (false, Order::Forward) => self.iterator.seek_to_first(),
            (false, Order::Reverse) => self.iterator.seek_to_last(),
            // A walk that has ended stays ended.
            (true, _) if !self.iterator.valid() => return Ok(None),
            (true, Order::Forward) => self.iterator.next(),
            (true, Order::Reverse) => self.iterator.prev(),
        }
        self.started = true;
        if !self.iterator.valid() {
            self.iterator.status().map_err(|error| match error.kind() {
                ErrorKind::Incomplete => StorageError::TooManyRemoved(self.removed_max),
                _ => failed("walk over keys")(error),
            })?;
        }
        Ok(self.iterator.item())
    }
}
