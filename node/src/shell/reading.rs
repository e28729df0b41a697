//! Long looks at data: pages, parts of streams, hashes. They share few threads, and none holds one
//! for long.
//!
//! A look is taken in slices ([`PageLook`], [`HashLook`]): each waits for a place, reads on a
//! thread of the blocking pool for some milliseconds, and gives thread and place back. In between
//! it is looked whether there is time left; and whether anybody still wants it, because then the
//! future that waits here is dropped, and with it the look.
//!
//! - **The first slice** of a look has places of its own: most pages are done with it, and none of
//!   them waits behind the long ones.
//! - **Further slices** take turns, in the order of their coming, so that all long looks move on
//!   together.
//! - **Hashes** read whole shards, so that few are under way at a time; more wait in line, and more
//!   than that are refused.
//!
//! A look whose time is up is given back as it is: a page shows what it has, and where to go on. So
//! it is where looks that wait for their turn hold much together.

use super::View;
use flotilla_router::cure::NO_WAY_BACK;
use flotilla_router::{Refusal, ShardId};
use flotilla_storage::read::{HashLook, PageLook};
use flotilla_storage::{StateHash, StorageError};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

/// The longest slice.
const SLICE: Duration = Duration::from_millis(20);
/// Looks of one kind that may be under way or wait for their turn.
const LOOKS_MAX: usize = 1024;
/// Bytes that looks which are not done may hold together: beyond, each ends with its slice.
const HELD_BYTES_MAX: usize = 64 << 20;
/// Hashes under way at a time.
const HASHES_MAX: usize = 2;
/// Hashes that may wait for others to end.
const HASHES_WAITING_MAX: usize = 64;

/// Something that is looked at in slices.
pub trait Look: Send + 'static {
    /// Looks on in `view`; `true` when all is seen.
    fn look_on(&mut self, view: &View, go_on: impl FnMut() -> bool) -> Result<bool, StorageError>;

    /// Bytes of what was found so far.
    fn held_bytes(&self) -> usize;
}

impl Look for PageLook {
    fn look_on(&mut self, view: &View, go_on: impl FnMut() -> bool) -> Result<bool, StorageError> {
        Self::look_on(self, view, go_on)
    }

    fn held_bytes(&self) -> usize {
        Self::held_bytes(self)
    }
}

impl Look for HashLook {
    fn look_on(&mut self, view: &View, go_on: impl FnMut() -> bool) -> Result<bool, StorageError> {
        Self::look_on(self, view, go_on)
    }

    fn held_bytes(&self) -> usize {
        0
    }
}

/// The threads that long looks share.
pub struct Readers {
    /// Looks under way.
    looks: Semaphore,
    /// Bytes that those of them hold which wait for a further slice.
    held_bytes: AtomicUsize,
    /// Threads for the first slices.
    first: Arc<Semaphore>,
    /// Threads for all others.
    further: Arc<Semaphore>,
    /// Hashes under way.
    hashes: Semaphore,
    /// Hashes under way, and those that wait.
    hashes_in_line: Semaphore,
}

impl Default for Readers {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 16));
        Self {
            looks: Semaphore::new(LOOKS_MAX),
            held_bytes: AtomicUsize::new(0),
            first: Arc::new(Semaphore::new(cores)),
            further: Arc::new(Semaphore::new(cores)),
            hashes: Semaphore::new(HASHES_MAX),
            hashes_in_line: Semaphore::new(HASHES_MAX + HASHES_WAITING_MAX),
        }
    }
}

impl Readers {
    /// Looks on until all is seen or `until` has come. The look is given back with what it has by
    /// then.
    pub async fn look<L: Look>(
        &self,
        shard: ShardId,
        view: &Arc<View>,
        look: L,
        until: Instant,
    ) -> Result<L, Refusal> {
        let _counted = in_line(&self.looks, "pages being read", LOOKS_MAX)?;
        let mut look = look;
        let mut places = &self.first;
        let mut held = Held { all: &self.held_bytes, bytes: 0 };
        loop {
            let Some(place) = place(places, until).await else {
                return Ok(look);
            };
            let begun = Instant::now();
            let (returned, done) =
                slice(shard, view.clone(), look, until.min(begun + SLICE), place).await?;
            look = returned;
            // A slice that took long passed over removed records in vain, and the next one is twice
            // as long.
            let now = Instant::now();
            if done || now >= until || (now - begun > SLICE * 2 && now + (now - begun) * 2 > until)
            {
                return Ok(look);
            }
            if held.hold(look.held_bytes()) > HELD_BYTES_MAX && look.held_bytes() > 0 {
                return Ok(look);
            }
            places = &self.further;
        }
    }

    /// The hash of a shard as `view` shows it. Ends when it is done, or when nobody waits for it
    /// any more.
    pub async fn hash(
        &self,
        look: HashLook,
        shard: ShardId,
        view: &Arc<View>,
    ) -> Result<StateHash, Refusal> {
        let _in_line = in_line(
            &self.hashes_in_line,
            "hashes being worked out",
            HASHES_MAX + HASHES_WAITING_MAX,
        )?;
        let _under_way = self.hashes.acquire().await.map_err(|_| Refusal::ShuttingDown)?;
        let mut look = look;
        loop {
            let place =
                self.further.clone().acquire_owned().await.map_err(|_| Refusal::ShuttingDown)?;
            let (returned, done) =
                slice(shard, view.clone(), look, Instant::now() + SLICE, place).await?;
            look = returned;
            if done {
                return Ok(or_stop(shard, look.hash(&**view)));
            }
        }
    }
}

/// What one look holds, counted with what the others do.
struct Held<'a> {
    all: &'a AtomicUsize,
    bytes: usize,
}

impl Held<'_> {
    /// It is so much now; how much it is together with the others'.
    fn hold(&mut self, bytes: usize) -> usize {
        let more = bytes.saturating_sub(self.bytes);
        self.bytes += more;
        self.all.fetch_add(more, Ordering::Relaxed) + more
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Counts one more; 429 where there are too many.
fn in_line<'a>(
    places: &'a Semaphore,
    what: &str,
    limit: usize,
) -> Result<SemaphorePermit<'a>, Refusal> {
    places.try_acquire().map_err(|_| Refusal::Overloaded { what: what.into(), limit: limit as u64 })
}

/// Waits for a place; `None` when the time is up before there is one.
async fn place(places: &Arc<Semaphore>, until: Instant) -> Option<OwnedSemaphorePermit> {
    if let Ok(place) = places.clone().try_acquire_owned() {
        return Some(place);
    }
    tokio::time::timeout_at(until.into(), places.clone().acquire_owned()).await.ok()?.ok()
}

/// Reads for a moment, off the runtime's threads. The place comes free when the thread does, also
/// where nobody waits any more.
async fn slice<L: Look>(
    shard: ShardId,
    view: Arc<View>,
    mut look: L,
    until: Instant,
    place: OwnedSemaphorePermit,
) -> Result<(L, bool), Refusal> {
    let looked = tokio::task::spawn_blocking(move || {
        let done = or_stop(shard, look.look_on(&view, || Instant::now() < until));
        drop(place);
        (look, done)
    });
    // It can't be cancelled and does not panic; where the runtime ends, so does everything.
    looked.await.map_err(|_| Refusal::ShuttingDown)
}

/// What was read. A record that can't be read ends the process: this node's disk is not to be
/// trusted, and the other replicas can answer.
pub fn or_stop<T>(shard: ShardId, read: Result<T, StorageError>) -> T {
    read.unwrap_or_else(|error| {
        tracing::error!(%shard, "a stored record can't be read, the process ends; restore the \
                                 directory; {NO_WAY_BACK}");
        flotilla_storage::fatal::abort(&error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_storage::{Engine as _, RocksEngine, RocksOptions};
    use std::sync::atomic::AtomicU64;

    /// A look without an end, which counts its slices.
    struct Endless(Arc<AtomicU64>);

    /// The same, which finds so many bytes in each of its slices.
    struct Finds(usize, usize);

    impl Look for Finds {
        fn look_on(
            &mut self,
            _: &View,
            mut go_on: impl FnMut() -> bool,
        ) -> Result<bool, StorageError> {
            self.1 += self.0;
            while go_on() {
                std::thread::yield_now();
            }
            Ok(false)
        }

        fn held_bytes(&self) -> usize {
            self.1
        }
    }

    impl Look for Endless {
        fn look_on(
            &mut self,
            _: &View,
            mut go_on: impl FnMut() -> bool,
        ) -> Result<bool, StorageError> {
            self.0.fetch_add(1, Ordering::SeqCst);
            while go_on() {
                std::thread::yield_now();
            }
            Ok(false)
        }

        fn held_bytes(&self) -> usize {
            0
        }
    }

    fn view(dir: &tempfile::TempDir) -> Arc<View> {
        Arc::new(
            RocksEngine::open(&dir.path().join("db"), &RocksOptions::default(), None)
                .unwrap()
                .view(),
        )
    }

    fn free(readers: &Readers) -> usize {
        readers.first.available_permits()
            + readers.further.available_permits()
            + readers.looks.available_permits()
    }

    /// Waits for something that takes no longer than a few slices.
    async fn soon(what: &str, mut is_so: impl FnMut() -> bool) {
        for _ in 0..1000 {
            if is_so() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("still not so after 10 s: {what}");
    }

    #[tokio::test]
    async fn looks_share_few_threads_take_turns_and_end_in_time() {
        let (dir, readers) = (tempfile::tempdir().unwrap(), Readers::default());
        let (view, all) = (view(&dir), free(&readers));
        let slices: Vec<_> = (0..20).map(|_| Arc::new(AtomicU64::new(0))).collect();
        let until = Instant::now() + SLICE * 40;
        let looks = slices
            .iter()
            .map(|slices| readers.look(ShardId(2), &view, Endless(slices.clone()), until));
        let ended = futures_util::future::join_all(looks).await;
        assert!(ended.iter().all(Result::is_ok) && Instant::now() >= until);
        let counts: Vec<_> = slices.iter().map(|slices| slices.load(Ordering::SeqCst)).collect();
        assert!(counts.iter().all(|count| *count >= 2), "some had no turn: {counts:?}");
        assert_eq!(free(&readers), all);
    }

    #[tokio::test]
    async fn looks_that_wait_hold_no_more_than_so_much_together() {
        let (dir, readers) = (tempfile::tempdir().unwrap(), Readers::default());
        let view = view(&dir);
        let far = Instant::now() + Duration::from_secs(10);
        let looks = (0..100).map(|_| async {
            let Finds(_, found) =
                readers.look(ShardId(2), &view, Finds(8 << 20, 0), far).await.unwrap();
            assert!(found >= 8 << 20, "nothing was found");
        });
        let mut most = 0;
        let watch = async {
            loop {
                most = most.max(readers.held_bytes.load(Ordering::Relaxed));
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            _ = futures_util::future::join_all(looks) => {}
            () = watch => {}
        }
        assert!((16 << 20..=HELD_BYTES_MAX).contains(&most), "{most} bytes were held");
        assert_eq!(readers.held_bytes.load(Ordering::Relaxed), 0);
        // Who has nothing yet would show nothing, and goes on.
        readers.held_bytes.store(HELD_BYTES_MAX + 1, Ordering::Relaxed);
        let slices = Arc::new(AtomicU64::new(0));
        readers
            .look(ShardId(2), &view, Endless(slices.clone()), Instant::now() + SLICE * 10)
            .await
            .unwrap();
        assert!(slices.load(Ordering::SeqCst) > 1);
        let Finds(_, held) = readers.look(ShardId(2), &view, Finds(1, 0), far).await.unwrap();
        assert_eq!(held, 1, "it went on");
    }

    #[tokio::test]
    async fn nobody_looks_on_for_who_is_gone() {
        let (dir, readers) = (tempfile::tempdir().unwrap(), Readers::default());
        let (view, all, slices) = (view(&dir), free(&readers), Arc::new(AtomicU64::new(0)));
        let far = Instant::now() + Duration::from_secs(3600);
        let looks = (0..200).map(|_| readers.look(ShardId(2), &view, Endless(slices.clone()), far));
        let gone = tokio::time::timeout(SLICE * 5, futures_util::future::join_all(looks)).await;
        assert!(gone.is_err(), "an endless look ended");
        soon("all places are free", || free(&readers) == all).await;
        let counted = slices.load(Ordering::SeqCst);
        tokio::time::sleep(SLICE * 3).await;
        assert_eq!(slices.load(Ordering::SeqCst), counted);
    }

    #[tokio::test]
    async fn what_is_too_many_is_refused() {
        let (dir, readers) = (tempfile::tempdir().unwrap(), Readers::default());
        let view = view(&dir);
        let taken = readers.looks.acquire_many(LOOKS_MAX as u32).await.unwrap();
        let look = || readers.look(ShardId(2), &view, Endless(Arc::default()), Instant::now());
        assert!(matches!(look().await, Err(Refusal::Overloaded { .. })));
        drop(taken);
        assert!(look().await.is_ok());
        let taken = readers
            .hashes_in_line
            .acquire_many((HASHES_MAX + HASHES_WAITING_MAX) as u32)
            .await
            .unwrap();
        let shard = flotilla_router::Descriptor {
            id: ShardId(2),
            range: flotilla_router::KeyRange::all(),
            epoch: Default::default(),
            replicas: Vec::new(),
        };
        let hash = readers.hash(HashLook::new(&shard), ShardId(2), &view).await;
        assert!(matches!(hash, Err(Refusal::Overloaded { .. })));
        drop(taken);
    }
}
