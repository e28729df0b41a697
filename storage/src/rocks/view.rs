//! Reads: of the engine as it is, and of a view, which shows it as it was.
//!
//! A view is a RocksDB snapshot together with a share of the database that it borrows from; the
//! pair is held by `self_cell`, so that neither outlives the other.

use super::cursor::{RocksCursor, bounds, paced};
use super::{Db, RawDb, RocksEngine, failed};
use crate::engine::{Family, Order, Pace, Read};
use crate::error::StorageError;
use rocksdb::SnapshotWithThreadMode;
use self_cell::self_cell;
use std::sync::Arc;

type Snapshot<'a> = SnapshotWithThreadMode<'a, RawDb>;

self_cell!(
    struct Pinned {
        owner: Arc<Db>,
        #[covariant]
        dependent: Snapshot,
    }
);

/// A [`RocksEngine`] as it was.
#[derive(Clone)]
pub struct RocksView {
    pinned: Arc<Pinned>,
}

impl RocksView {
    /// What `db` holds now.
    pub(super) fn of(db: &Arc<Db>) -> Self {
        Self { pinned: Arc::new(Pinned::new(db.clone(), |db| db.raw().snapshot())) }
    }

    /// The database, and what it held.
    pub(super) fn parts(&self) -> (&Db, &Snapshot<'_>) {
        (self.pinned.borrow_owner(), self.pinned.borrow_dependent())
    }
}

impl Read for RocksEngine {
    type Cursor<'a> = RocksCursor<'a>;

    fn look<R>(
        &self,
        family: Family,
        key: &[u8],
        look: impl FnOnce(&[u8]) -> R,
    ) -> Result<Option<R>, StorageError> {
        let db = &self.inner.db;
        let value = db
            .raw()
            .get_pinned_cf_opt(db.family(family), key, &self.inner.read)
            .map_err(failed("read key"))?;
        Ok(value.map(|value| look(&value)))
    }

    fn cursor<'a>(
        &'a self,
        family: Family,
        start: &[u8],
        end: Option<&[u8]>,
        order: Order,
    ) -> RocksCursor<'a> {
        let db = &self.inner.db;
        RocksCursor::new(db.raw().raw_iterator_cf_opt(db.family(family), bounds(start, end)), order)
    }

    fn cursor_at<'a>(
        &'a self,
        family: Family,
        start: &[u8],
        end: Option<&[u8]>,
        order: Order,
        pace: Pace,
    ) -> RocksCursor<'a> {
        let db = &self.inner.db;
        RocksCursor::new(
            db.raw().raw_iterator_cf_opt(db.family(family), paced(start, end, pace)),
            order,
        )
        .at(pace)
    }
}

impl Read for RocksView {
    type Cursor<'a> = RocksCursor<'a>;

    fn look<R>(
        &self,
        family: Family,
        key: &[u8],
        look: impl FnOnce(&[u8]) -> R,
    ) -> Result<Option<R>, StorageError> {
        let (db, snapshot) = self.parts();
        let value = snapshot.get_pinned_cf(db.family(family), key).map_err(failed("read key"))?;
        Ok(value.map(|value| look(&value)))
    }

    fn cursor<'a>(
        &'a self,
        family: Family,
        start: &[u8],
        end: Option<&[u8]>,
        order: Order,
    ) -> RocksCursor<'a> {
        let (db, snapshot) = self.parts();
        RocksCursor::new(snapshot.raw_iterator_cf_opt(db.family(family), bounds(start, end)), order)
    }

    fn cursor_at<'a>(
        &'a self,
        family: Family,
        start: &[u8],
        end: Option<&[u8]>,
        order: Order,
        pace: Pace,
    ) -> RocksCursor<'a> {
        let (db, snapshot) = self.parts();
        RocksCursor::new(
            snapshot.raw_iterator_cf_opt(db.family(family), paced(start, end, pace)),
            order,
        )
        .at(pace)
    }
}
