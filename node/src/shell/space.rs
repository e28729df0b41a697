//! Space on the disk: watched more closely the faster it fills, and given back when it runs out.
//!
//! *Watching.* What must stay free is more than a reserve. Memtables still become files,
//! compactions write anew before they remove, and while this looks, others (nodes on the same disk,
//! too) go on as they did a moment ago. Whoever writes says how much it was; after a MiB or so it
//! looks itself, so that nothing is overlooked between two turns of a slow timer. The core is told
//! each time.
//!
//! *Giving back.* While less is free than must be, a thread of its own turns memtables into files
//! and compacts what lies below tombstones (`storage/src/rocks/space.rs`); the core cuts its logs
//! shorter meanwhile. When all is gone the ballast goes, too.
//!
//! *Keeping.* A snapshot on its way in has the room that it will need from the moment it is
//! announced: what has not arrived of it counts as taken, so that nobody else takes it meanwhile.

use super::Engine;
use super::mailbox::Mailbox;
use crate::core::Event;
use flotilla_storage::{Ballast, Disk, GivenBack, disk, fatal};
use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long what was seen before says how fast the disk fills.
const PAST: Duration = Duration::from_millis(500);
/// How many looks are remembered.
const LOOKS_MAX: usize = 64;
/// A disk at the edge is full and is not, many times a second: said is no more often than this.
const SAY_INTERVAL: Duration = Duration::from_secs(10);
/// The least time between two attempts to give space back. One that took long is followed by a
/// longer rest.
const REST: Duration = Duration::from_secs(1);

/// What was seen of the disk, and what must stay free on it.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Bytes free to this user.
    pub free_bytes: u64,
    /// Bytes that must stay free: the reserve, and what is still to be written on account of what
    /// was accepted.
    pub needed_bytes: u64,
}

/// Watches the disk of the data, and gives space back.
pub struct Space {
    data: PathBuf,
    engine: Arc<Engine>,
    mailbox: Mailbox,
    reserve_bytes: u64,
    /// Bytes written between two looks, by whoever writes.
    look_bytes: u64,
    ballast: Ballast,
    ballast_bytes: u64,
    written: AtomicU64,
    stopping: AtomicBool,
    past: Mutex<Past>,
    /// Folders that are being filled, and the bytes that each will have.
    kept: Mutex<BTreeMap<PathBuf, u64>>,
    /// Wakes the thread that gives back.
    wanted: Condvar,
}

/// What was seen so far.
struct Past {
    looks: VecDeque<(Instant, u64)>,
    seen: Seen,
    is_full: bool,
    has_ballast: bool,
    /// What was said last, and when.
    said: Option<(bool, Instant)>,
}

/// What has not arrived yet of what is on its way.
fn to_come<'a>(kept: impl IntoIterator<Item = (&'a PathBuf, &'a u64)>) -> u64 {
    let arrived = |folder: &PathBuf| -> u64 {
        let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
        files
            .filter_map(|file| file.metadata().ok())
            .filter(|file| file.is_file())
            .map(|file| file.len())
            .sum()
    };
    kept.into_iter().map(|(folder, bytes)| bytes.saturating_sub(arrived(folder))).sum()
}

/// The bytes that stay free, where the configuration leaves it to us: a tenth of the disk, 64 MiB
/// to 1 GiB.
fn reserve_bytes(configured: u64, capacity_bytes: u64) -> u64 {
    if configured == 0 { (capacity_bytes / 10).clamp(64 << 20, 1 << 30) } else { configured }
}

impl Space {
    /// Looks for the first time.
    pub fn new(
        data: &Path,
        engine: Arc<Engine>,
        mailbox: Mailbox,
        configured_reserve_bytes: u64,
    ) -> std::io::Result<Self> {
        let Disk { free_bytes, capacity_bytes } = disk(data)?;
        let reserve_bytes = reserve_bytes(configured_reserve_bytes, capacity_bytes);
        let seen = Seen { free_bytes, needed_bytes: reserve_bytes };
        let space = Self {
            data: data.to_owned(),
            engine,
            mailbox,
            reserve_bytes,
            look_bytes: (capacity_bytes / 1024).clamp(256 << 10, 4 << 20),
            ballast: Ballast::of(data),
            ballast_bytes: Ballast::bytes(capacity_bytes),
            written: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            past: Mutex::new(Past {
                looks: VecDeque::new(),
                seen,
                is_full: false,
                has_ballast: false,
                said: None,
            }),
            kept: Mutex::default(),
            wanted: Condvar::new(),
        };
        space.look();
        Ok(space)
    }

    fn past(&self) -> MutexGuard<'_, Past> {
        self.past.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was seen last.
    pub fn seen(&self) -> Seen {
        self.past().seen
    }

    /// Keeps room for a folder that is about to be filled with so many bytes, until it is [let
    /// go](Self::let_go), if there is any. Or else how much there is.
    pub fn keep(&self, folder: &Path, bytes: u64) -> Result<(), u64> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let Seen { free_bytes, needed_bytes } = self.look_beside(&kept);
        let spare = free_bytes.saturating_sub(needed_bytes);
        if bytes > spare {
            return Err(spare);
        }
        kept.insert(folder.to_owned(), bytes);
        drop(kept);
        self.look();
        Ok(())
    }

    /// A folder needs no more room.
    pub fn let_go(&self, folder: &Path) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).remove(folder);
    }

    /// How many bytes are free but for what other folders are still to be filled with.
    pub fn free_beside(&self, folder: &Path) -> u64 {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = self.look_beside(&kept);
        seen.free_bytes.saturating_sub(to_come(kept.iter().filter(|(other, _)| *other != folder)))
    }

    /// So many bytes were written to the disk.
    pub fn wrote(&self, bytes: u64) {
        if self.written.fetch_add(bytes, Ordering::Relaxed) + bytes >= self.look_bytes {
            self.look();
        }
    }

    /// Looks at the disk, and tells the core.
    pub fn look(&self) -> Seen {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        self.look_beside(&kept)
    }

    fn look_beside(&self, kept: &BTreeMap<PathBuf, u64>) -> Seen {
        self.written.store(0, Ordering::Relaxed);
        let Ok(disk) = disk(&self.data) else { return self.seen() };
        let owed = self.engine.owed();
        let now = Instant::now();
        let mut past = self.past();
        let falls = past.falls_by(now, disk.free_bytes);
        // A compaction gives its space back, so it may use a part of the reserve; a memtable that
        // became a file stays.
        let reserve =
            (self.reserve_bytes / 2).max(owed.compaction_bytes) + self.reserve_bytes.div_ceil(2);
        let needed = reserve + owed.memtable_bytes + falls + to_come(kept);
        // Once full, it takes a little more to be so no longer: or every second put would be
        // refused.
        let margin = if past.is_full { self.reserve_bytes / 8 } else { 0 };
        past.seen = Seen { free_bytes: disk.free_bytes, needed_bytes: needed + margin };
        let Seen { free_bytes, needed_bytes } = past.seen;
        past.is_full = free_bytes < needed_bytes;
        past.say(now);
        self.mind_ballast(&mut past);
        if past.is_full || self.engine.is_lean() {
            self.wanted.notify_all();
        }
        let seen = past.seen;
        drop(past);
        self.engine.keep_free(needed_bytes);
        self.mailbox.report(Event::Disk { free_bytes, reserve_bytes: needed_bytes });
        seen
    }

    /// Gives the ballast up where nothing else is left, and lays it by again where there is plenty.
    fn mind_ballast(&self, past: &mut Past) {
        let Seen { free_bytes, needed_bytes } = past.seen;
        if free_bytes < self.ballast_bytes {
            past.has_ballast = false;
            if self.ballast.give_up() {
                tracing::error!(
                    free_bytes,
                    "hardly anything is left on the disk: the ballast was removed from it"
                );
            }
        } else if !past.has_ballast && free_bytes > needed_bytes + 4 * self.ballast_bytes {
            // Without it the node runs as well; it is tried again.
            past.has_ballast = self.ballast.keep(self.ballast_bytes).is_ok();
        }
    }

    /// Starts the thread that gives space back while the disk is full.
    pub fn start(self: &Arc<Self>) -> std::io::Result<()> {
        let this = self.clone();
        // Not waited for at the end: the engine ends its compactions when it is closed.
        std::thread::Builder::new().name("reclaimer".into()).spawn(move || this.run()).map(drop)
    }

    /// Nothing is given back any more.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.wanted.notify_all();
    }

    fn run(&self) {
        let mut rest = REST;
        while !self.stopping.load(Ordering::Relaxed) {
            let past = self.past();
            if !past.is_full && !self.engine.is_lean() {
                drop(self.wanted.wait(past).unwrap_or_else(PoisonError::into_inner));
                continue;
            }
            drop(past);
            let begun = Instant::now();
            let is_wanted = || {
                !self.stopping.load(Ordering::Relaxed)
                    && (self.past().is_full || self.engine.is_lean())
            };
            match self.engine.give_back(is_wanted) {
                Ok(given) if given != GivenBack::default() => {
                    let milliseconds = begun.elapsed().as_millis() as u64;
                    tracing::info!(
                        ranges = given.ranges,
                        flushed_bytes = given.flushed_bytes,
                        left_bytes = given.left_bytes,
                        left_ranges = given.left_ranges,
                        milliseconds,
                        "space was given back"
                    );
                }
                Ok(_) => {}
                // Closed meanwhile.
                Err(_) if self.stopping.load(Ordering::Relaxed) => return,
                Err(error) => fatal::abort(&error),
            }
            self.look();
            rest = REST.max(begun.elapsed() * 2).max(rest / 2);
            let resting = Instant::now() + rest;
            while Instant::now() < resting && !self.stopping.load(Ordering::Relaxed) {
                std::thread::sleep(REST / 10);
            }
        }
    }
}

impl Past {
    /// Says whether there is room, where that has changed and was not said just now.
    fn say(&mut self, now: Instant) {
        let (is_full, Seen { free_bytes, needed_bytes }) = (self.is_full, self.seen);
        let (was_full, recently) = self
            .said
            .map_or((false, false), |(full, at)| (full, now.duration_since(at) < SAY_INTERVAL));
        if is_full == was_full || recently {
            return;
        }
        if is_full {
            tracing::error!(
                free_bytes,
                needed_bytes,
                "the disk is nearly full: puts are refused, deletes are taken"
            );
        } else {
            tracing::info!(free_bytes, needed_bytes, "the disk has room again");
        }
        self.said = Some((is_full, now));
    }

    /// By how much less may soon be free, if it goes on as it went: the most that it fell by within
    /// the time that is remembered.
    fn falls_by(&mut self, now: Instant, free_bytes: u64) -> u64 {
        while self.looks.len() >= LOOKS_MAX
            || self.looks.front().is_some_and(|(at, _)| now.duration_since(*at) > PAST)
        {
            self.looks.pop_front();
        }
        self.looks.push_back((now, free_bytes));
        let most = self.looks.iter().map(|(_, free)| *free).max().unwrap_or(free_bytes);
        most - free_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_fills_fast_is_full_sooner() {
        let seen = Seen { free_bytes: 0, needed_bytes: 0 };
        let mut past =
            Past { looks: VecDeque::new(), seen, is_full: false, has_ballast: false, said: None };
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let table =
            [(0, 1000, 0), (100, 900, 100), (200, 950, 50), (550, 700, 250), (1200, 700, 0)];
        for (ms, free, falls) in table {
            assert_eq!(past.falls_by(at(ms), free), falls, "at {ms} ms");
        }
        for _ in 0..1000 {
            past.falls_by(at(1200), 600);
        }
        assert!(past.looks.len() <= LOOKS_MAX);
    }

    #[test]
    fn what_is_on_its_way_takes_room_until_it_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("1"), dir.path().join("2"));
        let kept = BTreeMap::from([(one.clone(), 1000), (two, 50)]);
        assert_eq!(to_come(&kept), 1050);
        std::fs::create_dir(&one).unwrap();
        std::fs::write(one.join("a"), [0; 600]).unwrap();
        assert_eq!(to_come(&kept), 450);
        std::fs::write(one.join("b"), [0; 600]).unwrap();
        assert_eq!(to_come(&kept), 50);
    }

    #[test]
    fn the_reserve_is_a_tenth_of_the_disk_within_bounds() {
        let mib = 1u64 << 20;
        for (configured, capacity, reserve) in
            [(0, 400 * mib, 64 * mib), (0, 4000 * mib, 400 * mib), (7, 4000 * mib, 7)]
        {
            assert_eq!(reserve_bytes(configured, capacity), reserve);
        }
        assert_eq!(reserve_bytes(0, 1 << 50), 1 << 30);
    }
}
