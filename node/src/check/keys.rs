//! The keys that a load has in use, their histories as they grow, and the judge who gets them.
//!
//! A key is in use for [`OPERATIONS_PER_KEY`] operations. Then it is retired, and a new one takes
//! its place; once the last of its operations has ended, its history goes to the judge, a thread of
//! its own, and is forgotten. Where the judge falls behind, whoever hands a history over waits: at
//! most [`KEYS_WAITING_MAX`] are kept.
//!
//! **Invariant.** A history is handed over exactly once, and complete: no operation begins on a
//! retired key, and each that began is counted as under way until it ends.

use super::history::{Input, Operation};
use super::lines::Writer;
use super::{Summary, Verdict, check_key};
use crate::rng::Rng;
use bytes::Bytes;
use flotilla_router::{KeyRange, Revision};
use std::fs::File;
use std::io::{self, BufWriter};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// After so many operations a key is retired.
pub const OPERATIONS_PER_KEY: u32 = 300;
/// At most so many keys wait for the judge.
const KEYS_WAITING_MAX: usize = 256;
/// So many of the last revisions of a key are used for conditions.
const REVISIONS_KEPT: usize = 4;

/// A key in use.
pub(super) struct Key {
    /// Its name.
    pub(super) name: Bytes,
    /// In which shard it lies: the number of the prefix.
    pub(super) shard: usize,
    log: Mutex<Log>,
}

#[derive(Default)]
struct Log {
    operations: Vec<Operation>,
    started: u32,
    under_way: u32,
    retired: bool,
    /// The last revisions that somebody was shown.
    revisions: Vec<Revision>,
}

/// All keys in use.
pub(super) struct Pool {
    /// The prefix of the keys in each shard.
    prefixes: Vec<Bytes>,
    slots: Mutex<Slots>,
    history: Mutex<History>,
}

struct Slots {
    in_use: Vec<Arc<Key>>,
    /// How many keys there were.
    made: u64,
    /// Taken away when the load ends.
    judge: Option<SyncSender<Vec<Operation>>>,
}

struct History {
    writer: Option<Writer<BufWriter<File>>>,
    next_id: u64,
    error: Option<io::Error>,
}

/// The verdict on all keys, and the history of the one that is wrong or undecided.
pub(super) type Judged = (Verdict, Vec<Operation>);

/// The prefix under which the keys of a run lie in each shard that has room for it.
pub fn prefixes(ranges: &[KeyRange], run: &str) -> Vec<Bytes> {
    let prefix = |range: &KeyRange| {
        Bytes::from([&range.start[..], b"/flotilla-check/", run.as_bytes(), b"/"].concat())
    };
    // The last possible key of the prefix must still be the shard's.
    let fits = |range: &KeyRange, prefix: &Bytes| {
        range.contains(&[&prefix[..], b"99999999999999999999"].concat())
    };
    ranges
        .iter()
        .map(|range| (range, prefix(range)))
        .filter(|(range, prefix)| fits(range, prefix))
        .map(|(_, p)| p)
        .collect()
}

/// Nothing is done while one of these is held that could panic.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// So many keys in these shards, and the judge of their histories, who sets `stop` when one is
    /// wrong.
    pub(super) fn new(
        keys: usize,
        prefixes: Vec<Bytes>,
        writer: Option<Writer<BufWriter<File>>>,
        stop: Arc<AtomicBool>,
    ) -> (Self, JoinHandle<Judged>) {
        let (sender, receiver) = sync_channel(KEYS_WAITING_MAX);
        let judge = std::thread::spawn(move || judge(&receiver, &stop));
        let slots = Mutex::new(Slots { in_use: Vec::new(), made: 0, judge: Some(sender) });
        let pool = Self {
            prefixes,
            slots,
            history: Mutex::new(History { writer, next_id: 0, error: None }),
        };
        {
            let mut slots = lock(&pool.slots);
            for _ in 0..keys {
                let key = pool.new_key(&mut slots);
                slots.in_use.push(key);
            }
        }
        (pool, judge)
    }

    /// The prefixes under which there were keys.
    pub(super) fn used_prefixes(&self) -> &[Bytes] {
        let made = usize::try_from(lock(&self.slots).made).unwrap_or(usize::MAX);
        &self.prefixes[..made.min(self.prefixes.len())]
    }

    fn new_key(&self, slots: &mut Slots) -> Arc<Key> {
        // One shard after the other; all names of one length, so that those of a shard are in the
        // order in which they were made.
        let shard = (slots.made % self.prefixes.len() as u64) as usize;
        slots.made += 1;
        let name = [&self.prefixes[shard][..], format!("{:020}", slots.made).as_bytes()].concat();
        Arc::new(Key { name: name.into(), shard, log: Mutex::default() })
    }

    /// Begins an operation on some key, if it is not retired just now. The first keys are taken
    /// more often than the last.
    pub(super) fn begin(&self, rng: &mut Rng) -> Option<Arc<Key>> {
        let (slot, key) = {
            let slots = lock(&self.slots);
            let below = rng.below(slots.in_use.len() as u64) + 1;
            let slot = rng.below(below) as usize;
            (slot, slots.in_use[slot].clone())
        };
        key.begin().then(|| {
            self.replace_worn(slot, &key);
            key
        })
    }

    /// Begins an operation on every key in use of some shard, and says which range has them and no
    /// older ones.
    pub(super) fn begin_all(&self, rng: &mut Rng) -> Option<(Vec<Arc<Key>>, KeyRange)> {
        let in_use = lock(&self.slots).in_use.clone();
        let shard = rng.choose(&in_use)?.shard;
        let keys: Vec<_> =
            in_use.into_iter().filter(|key| key.shard == shard && key.begin()).collect();
        let first = keys.iter().map(|key| &key.name).min()?.clone();
        Some((keys, KeyRange::new(first, KeyRange::prefix(self.prefixes[shard].clone()).end)))
    }

    /// A number for an operation. A write is noted in the history before it is sent.
    pub(super) fn note_asked(&self, operation: &Operation) -> u64 {
        let mut history = lock(&self.history);
        history.next_id += 1;
        let id = history.next_id;
        if operation.input != Input::Get {
            history.write(|writer| writer.asked(id, operation));
        }
        id
    }

    /// Ends an operation on a key, with what came of it, if anything did.
    pub(super) fn finish(&self, key: &Key, done: Option<(u64, Operation)>) {
        if let Some((id, operation)) = &done {
            lock(&self.history).write(|writer| writer.done(*id, operation));
        }
        {
            let mut log = lock(&key.log);
            if let Some(revision) = done.as_ref().and_then(|(_, operation)| operation.revision()) {
                if log.revisions.len() == REVISIONS_KEPT {
                    log.revisions.remove(0);
                }
                log.revisions.push(revision);
            }
            log.operations.extend(done.map(|(_, operation)| operation));
            log.under_way -= 1;
        }
        self.hand_over(key);
    }

    /// Retires all keys, and waits for nothing. Where the history file failed.
    pub(super) fn end(&self) -> Option<io::Error> {
        let in_use = std::mem::take(&mut lock(&self.slots).in_use);
        for key in in_use {
            self.retire(&key);
        }
        lock(&self.slots).judge = None;
        let mut history = lock(&self.history);
        history.write(Writer::flush);
        history.error.take()
    }

    /// Puts a new key into the place of one that was used enough.
    fn replace_worn(&self, slot: usize, key: &Arc<Key>) {
        if lock(&key.log).started < OPERATIONS_PER_KEY {
            return;
        }
        {
            let mut slots = lock(&self.slots);
            if slots.in_use.get(slot).is_none_or(|in_use| !Arc::ptr_eq(in_use, key)) {
                return;
            }
            slots.in_use[slot] = self.new_key(&mut slots);
        }
        self.retire(key);
    }

    /// No operation begins on a key any more; once none is under way it is judged.
    fn retire(&self, key: &Key) {
        lock(&key.log).retired = true;
        self.hand_over(key);
    }

    /// Hands a key's history to the judge, if nothing more comes.
    fn hand_over(&self, key: &Key) {
        let operations = {
            let mut log = lock(&key.log);
            if !log.retired || log.under_way > 0 {
                return;
            }
            std::mem::take(&mut log.operations)
        };
        lock(&self.history).write(|writer| writer.end_of_key(&key.name));
        let judge = lock(&self.slots).judge.clone();
        if let Some(judge) = judge {
            // The judge goes on until the last sender is gone, so this fails only if the judge has
            // panicked; who waits for it is told.
            let _ = judge.send(operations);
        }
    }
}

impl Key {
    /// Counts an operation as under way, if the key is still in use.
    fn begin(&self) -> bool {
        let mut log = lock(&self.log);
        if !log.retired {
            (log.started, log.under_way) = (log.started + 1, log.under_way + 1);
        }
        !log.retired
    }

    /// The last revisions that somebody was shown.
    pub(super) fn revisions(&self) -> Vec<Revision> {
        lock(&self.log).revisions.clone()
    }
}

impl History {
    fn write(&mut self, write: impl FnOnce(&mut Writer<BufWriter<File>>) -> io::Result<()>) {
        if self.error.is_none()
            && let Some(writer) = &mut self.writer
        {
            self.error = write(writer).err();
        }
    }
}

/// Judges histories as they come, until no more come. The first violation ends the load.
fn judge(receiver: &Receiver<Vec<Operation>>, stop: &AtomicBool) -> Judged {
    let (mut verdict, mut evidence) = (Verdict::Linearizable(Summary::default()), Vec::new());
    for operations in receiver {
        if matches!(verdict, Verdict::Violation(_)) {
            continue;
        }
        let of_key = check_key(&operations.iter().collect::<Vec<_>>());
        if matches!(of_key, Verdict::Violation(_)) {
            stop.store(true, Ordering::Relaxed);
            evidence = operations;
        } else if matches!(of_key, Verdict::Undecided(_)) && evidence.is_empty() {
            evidence = operations;
        }
        verdict = verdict.and(of_key);
    }
    (verdict, evidence)
}

#[cfg(test)]
mod tests {
    use super::super::Output;
    use super::*;

    #[test]
    fn keys_lie_in_their_shard() {
        let range = |start: &'static str, end: Option<&'static str>| {
            KeyRange::new(start, end.map(Bytes::from))
        };
        let ranges = [
            range("", Some("/flotilla")),
            range("5v", Some("a")),
            range("a", Some("a/")),
            range("m", None),
        ];
        let names = prefixes(&ranges, "r1");
        assert_eq!(
            names,
            ["5v/flotilla-check/r1/", "m/flotilla-check/r1/"],
            "the others have no room"
        );
    }

    #[test]
    fn a_worn_key_is_judged_once_all_of_its_operations_have_ended() {
        let stop = Arc::new(AtomicBool::new(false));
        let (pool, judge) = Pool::new(1, vec!["p/".into()], None, stop.clone());
        let mut rng = Rng::new(5);
        let first = pool.begin(&mut rng).unwrap();
        let finish = |key: &Key| {
            let read = Operation {
                client: 1,
                key: key.name.clone(),
                called: 1,
                returned: Some(2),
                input: Input::Get,
                output: Output::Read(None),
            };
            let id = pool.note_asked(&read);
            pool.finish(key, Some((id, read)));
        };
        for n in 1..OPERATIONS_PER_KEY {
            let key = pool.begin(&mut rng).unwrap();
            assert!(Arc::ptr_eq(&key, &first), "operation {n} is on another key");
            finish(&key);
        }
        let second = pool.begin(&mut rng).unwrap();
        assert!(
            second.name > first.name && !first.begin() && !lock(&first.log).operations.is_empty()
        );
        finish(&first);
        assert!(lock(&first.log).operations.is_empty(), "it was not handed over");
        let (scanned, range) = pool.begin_all(&mut rng).unwrap();
        assert!(scanned.len() == 1 && range.contains(&second.name) && !range.contains(&first.name));
        finish(&second);
        pool.finish(&second, None);
        assert!(pool.end().is_none());
        let (verdict, evidence) = judge.join().unwrap();
        let expected = u64::from(OPERATIONS_PER_KEY) + 1;
        assert!(
            matches!(
                verdict,
                Verdict::Linearizable(Summary { keys: 2, operations, .. }) if operations == expected
            ),
            "{verdict}"
        );
        assert!(evidence.is_empty() && !stop.load(Ordering::Relaxed));
    }

    #[test]
    fn the_first_violation_stops_the_load_and_keeps_its_history() {
        let stop = Arc::new(AtomicBool::new(false));
        let (pool, judge) = Pool::new(3, vec!["p/".into()], None, stop.clone());
        let key = pool.begin(&mut Rng::new(1)).unwrap();
        let output = Output::Read(Some((Revision(1), "nobody's".into())));
        let read = Operation {
            client: 1,
            key: key.name.clone(),
            called: 1,
            returned: Some(2),
            input: Input::Get,
            output,
        };
        pool.finish(&key, Some((1, read.clone())));
        pool.end();
        let (verdict, evidence) = judge.join().unwrap();
        assert!(matches!(verdict, Verdict::Violation(_)), "{verdict}");
        assert_eq!(evidence, [read]);
        assert!(stop.load(Ordering::Relaxed));
    }
}
