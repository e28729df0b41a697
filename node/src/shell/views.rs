//! Views that are kept for streams: what a stream shows of one shard is one moment, however many
//! parts it takes and however slowly they are read.
//!
//! The first part of a shard takes a view, as every read does. If more of the shard is to come, the
//! view is kept here, under a number that goes along with the next question; that one goes to
//! **this** node, whoever leads by then, and shows the same view. The part that comes to the
//! shard's end lets the view go; a stream that ends before says so.
//!
//! A view that is kept keeps on disk what was deleted since. So there are bounds, and whoever runs
//! into one is told (`view_given_up`):
//!
//! - in number: when there are too many, those go that were not asked for the longest, if that is
//!   long enough; otherwise none is kept;
//! - in time: since it was asked for last, and since it was taken, which is less while the disk is
//!   full;
//! - by what happens to the replica: where it is quarantined, or replaced by a snapshot, its past
//!   is nothing to build on.

use super::mailbox::Grant;
use flotilla_router::{HeldView, NodeId, Refusal, ShardId};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The most views.
const VIEWS_MAX: usize = 256;
/// How old a view may get.
const AGE_MAX: Duration = Duration::from_secs(15 * 60);
/// The same while the disk is full, and what was deleted has to go.
const AGE_MAX_FULL: Duration = Duration::from_secs(30);
/// A view that was not asked for so long may have to make room for another.
const IDLE_MIN: Duration = Duration::from_secs(5);

/// The views that this node keeps.
pub struct Views {
    node: NodeId,
    /// For how long a view is kept that nobody asks for.
    idle_max: Duration,
    state: Mutex<State>,
}

struct State {
    /// Of the next view. Begins anywhere, so that nobody takes a view for one of before a restart.
    next: u64,
    kept: BTreeMap<u64, Kept>,
}

struct Kept {
    grant: Grant,
    taken: Instant,
    asked: Instant,
}

impl Views {
    /// None yet. Numbers begin at `first`, which no earlier life of this node has come to.
    pub fn new(node: NodeId, first: u64, idle_max: Duration) -> Self {
        Self { node, idle_max, state: Mutex::new(State { next: first, kept: BTreeMap::new() }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a view; refused where there are too many.
    pub fn keep(&self, grant: Grant) -> Result<HeldView, Refusal> {
        let (now, shard) = (Instant::now(), grant.descriptor.id);
        let mut state = self.state();
        let mut gone = self.take_expired(&mut state, now);
        if state.kept.len() >= VIEWS_MAX {
            let idlest = state
                .kept
                .iter()
                .min_by_key(|(_, kept)| kept.asked)
                .map(|(id, kept)| (*id, kept.asked));
            let Some((idlest, _)) =
                idlest.filter(|(_, asked)| now.saturating_duration_since(*asked) >= IDLE_MIN)
            else {
                return Err(Refusal::Overloaded {
                    what: "views kept for streams".into(),
                    limit: VIEWS_MAX as u64,
                });
            };
            gone.extend(state.kept.remove(&idlest));
        }
        let id = state.next;
        state.next += 1;
        state.kept.insert(id, Kept { grant, taken: now, asked: now });
        drop(state);
        // Letting go of the last view of something may cost time: not under the lock.
        drop(gone);
        Ok(HeldView { node: self.node, shard, id })
    }

    /// The view that goes along with a part of a stream, where there is `more` to come, and what
    /// was `judged` of the part. For one that is refused none is kept: nobody would learn of it.
    pub fn keep_for_more<T>(
        &self,
        grant: &Grant,
        held: Option<HeldView>,
        more: bool,
        judged: Result<T, Refusal>,
    ) -> Result<(Option<HeldView>, T), Refusal> {
        if let Some(view) = held.filter(|_| judged.is_err() || !more) {
            self.let_go(view);
        }
        let judged = judged?;
        let view = match held {
            _ if !more => None,
            None => Some(self.keep(grant.clone())?),
            held => held,
        };
        Ok((view, judged))
    }

    /// A view that is kept.
    pub fn get(&self, view: HeldView) -> Result<Grant, Refusal> {
        let now = Instant::now();
        let mut state = self.state();
        let gone = self.take_expired(&mut state, now);
        let grant = state.kept.get_mut(&view.id).map(|kept| {
            kept.asked = now;
            kept.grant.clone()
        });
        drop(state);
        drop(gone);
        grant
            .filter(|grant| grant.descriptor.id == view.shard)
            .ok_or(Refusal::ViewGivenUp { shard: view.shard })
    }

    /// Nobody will ask for it any more.
    pub fn let_go(&self, view: HeldView) {
        let gone = self.state().kept.remove(&view.id);
        drop(gone);
    }

    /// Gives up the views of one shard, or all.
    pub fn give_up(&self, shard: Option<ShardId>) {
        let mut state = self.state();
        let all = std::mem::take(&mut state.kept);
        let (gone, kept): (BTreeMap<_, _>, _) = all
            .into_iter()
            .partition(|(_, kept)| shard.is_none_or(|shard| kept.grant.descriptor.id == shard));
        state.kept = kept;
        drop(state);
        drop(gone);
    }

    /// Room is needed on the disk: gives up the views that may stand in the way of it, which are
    /// those that have been there for a while.
    pub fn make_room(&self) {
        let now = Instant::now();
        let mut state = self.state();
        let ids: Vec<u64> = state
            .kept
            .iter()
            .filter(|(_, kept)| now.saturating_duration_since(kept.taken) >= AGE_MAX_FULL)
            .map(|(id, _)| *id)
            .collect();
        let gone: Vec<_> = ids.iter().filter_map(|id| state.kept.remove(id)).collect();
        drop(state);
        drop(gone);
    }

    /// Gives up what was kept long enough. To be called now and then, since a view that is
    /// forgotten keeps what was deleted.
    pub fn sweep(&self) {
        let gone = self.take_expired(&mut self.state(), Instant::now());
        drop(gone);
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.state().kept.len()
    }

    fn take_expired(&self, state: &mut State, now: Instant) -> Vec<Kept> {
        let age = |since: Instant| now.saturating_duration_since(since);
        let expired = |kept: &Kept| age(kept.asked) >= self.idle_max || age(kept.taken) >= AGE_MAX;
        let ids: Vec<u64> =
            state.kept.iter().filter(|(_, kept)| expired(kept)).map(|(id, _)| *id).collect();
        ids.iter().filter_map(|id| state.kept.remove(id)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_router::{Descriptor, KeyRange};
    use flotilla_storage::{Engine as _, RocksEngine, RocksOptions};
    use std::sync::Arc;

    fn grants(dir: &tempfile::TempDir) -> impl Fn(u64) -> Grant {
        let engine =
            RocksEngine::open(&dir.path().join("db"), &RocksOptions::default(), None).unwrap();
        move |shard| {
            let id = ShardId(shard);
            let descriptor = Descriptor {
                id,
                range: KeyRange::all(),
                epoch: Default::default(),
                replicas: Vec::new(),
            };
            Grant {
                view: Arc::new(engine.view()),
                descriptor: Arc::new(descriptor),
                staleness: None,
                at: Default::default(),
            }
        }
    }

    #[test]
    fn a_view_is_kept_until_it_is_let_go_or_its_replica_is_quarantined() {
        let dir = tempfile::tempdir().unwrap();
        let (views, grant) = (Views::new(NodeId(1), 100, Duration::from_secs(60)), grants(&dir));
        let kept: Vec<_> =
            [2, 2, 3].into_iter().map(|shard| views.keep(grant(shard)).unwrap()).collect();
        assert!(kept.iter().all(|view| views.get(*view).unwrap().descriptor.id == view.shard));
        views.let_go(kept[0]);
        assert_eq!(views.get(kept[0]).err(), Some(Refusal::ViewGivenUp { shard: ShardId(2) }));
        views.give_up(Some(ShardId(3)));
        assert!(views.get(kept[2]).is_err() && views.get(kept[1]).is_ok());
        // A number that somebody else's view has is no view of this shard.
        assert!(views.get(HeldView { shard: ShardId(3), ..kept[1] }).is_err());
        views.give_up(None);
        assert_eq!(views.count(), 0);
    }

    #[test]
    fn no_view_is_kept_for_a_part_that_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (views, grant) = (Views::new(NodeId(1), 0, Duration::from_secs(60)), grants(&dir)(2));
        let stale = || Err::<(), _>(Refusal::TooStale { shard: ShardId(2) });
        assert!(views.keep_for_more(&grant, None, true, stale()).is_err());
        assert_eq!(views.count(), 0, "it was kept, and nobody knows of it");
        let (first, ()) = views.keep_for_more(&grant, None, true, Ok(())).unwrap();
        assert_eq!(views.keep_for_more(&grant, first, true, Ok(())).unwrap(), (first, ()));
        assert!(views.keep_for_more(&grant, first, true, stale()).is_err());
        assert_eq!(views.count(), 0, "it was held on to after a refusal");
        let (again, ()) = views.keep_for_more(&grant, None, true, Ok(())).unwrap();
        assert_eq!(views.keep_for_more(&grant, again, false, Ok(())).unwrap().0, None);
        assert_eq!(views.count(), 0, "it was held on to after the end");
    }

    #[test]
    fn views_are_bounded_in_number_and_in_time() {
        let dir = tempfile::tempdir().unwrap();
        let grant = grants(&dir);
        let views = Views::new(NodeId(1), 0, Duration::from_secs(60));
        for _ in 0..VIEWS_MAX {
            views.keep(grant(2)).unwrap();
        }
        assert!(matches!(views.keep(grant(2)), Err(Refusal::Overloaded { .. })));
        // One that was not asked for in a while makes room.
        let idle = HeldView { node: NodeId(1), shard: ShardId(2), id: 7 };
        views.state().kept.get_mut(&7).unwrap().asked -= IDLE_MIN;
        assert!(views.keep(grant(2)).is_ok() && views.get(idle).is_err());
        views.make_room();
        assert_eq!(views.count(), VIEWS_MAX);
        views.state().kept.get_mut(&9).unwrap().taken -= AGE_MAX_FULL;
        views.make_room();
        assert!(views.get(HeldView { id: 9, ..idle }).is_err() && views.count() == VIEWS_MAX - 1);
        let old = HeldView { id: 8, ..idle };
        views.state().kept.get_mut(&8).unwrap().taken -= AGE_MAX;
        assert_eq!(views.get(old).err(), Some(Refusal::ViewGivenUp { shard: ShardId(2) }));
        for kept in views.state().kept.values_mut() {
            kept.asked -= Duration::from_secs(60);
        }
        views.sweep();
        assert_eq!(views.count(), 0);
    }
}
