//! Load for crash tests: puts, conditional puts and deletes at many keys of every shard, each told to the journal before and after;
//! and checks of the cluster against the journal.
//!
//! A [`Book`] has a lock for each key. An attempt holds it from its `try` to its outcome, a read from before it is sent until it is
//! written down, so the lines of a key are in order and checks can go on under load. Half of the attempts go to a few keys, for
//! the sake of conditions that fail and outcomes that overlap; the other half goes round many keys, so that what was acknowledged
//! stays to be found.

use super::crash_journal::{Journal, Judge, Seen, Totals};
use crate::Cluster;
use crate::http::{Answer, Client};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use flotilla_node::dice::Dice;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, TryLockError};
use std::time::{Duration, Instant};

/// How long a check waits for a cluster that is to answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the load waits for one answer; then the outcome is open.
const LOAD_PATIENCE: Duration = Duration::from_secs(2);
/// How many keys are remembered as touched of late.
const RECENT: usize = 200;
/// The length of ordinary values, and of those that fill logs.
const SMALL_BYTES: usize = 64;
const LARGE_BYTES: usize = 32 << 10;

/// The value of an attempt, which no other has: who reads it knows which it is, and whether a byte of it changed. Printable, and
/// nothing that could be compressed.
fn value(key: usize, attempt: u64, bytes: usize) -> Vec<u8> {
    let mut dice = Dice::new((key as u64) << 40 ^ attempt);
    let mut value = format!("{key} {attempt} {bytes} ").into_bytes();
    value
        .extend((0..bytes).map(|_| b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_"[dice.below(64) as usize]));
    value
}

/// Which attempt at this key a value is of; `Err` where it is none.
fn attempt_of(key: usize, seen: &[u8]) -> Result<u64, String> {
    let number = |i: usize| -> Option<u64> { std::str::from_utf8(seen.split(|b| *b == b' ').nth(i)?).ok()?.parse().ok() };
    let (attempt, bytes) = number(1).zip(number(2)).ok_or("a value that nobody ever wrote")?;
    let whole = bytes <= LARGE_BYTES as u64 && value(key, attempt, bytes as usize) == seen;
    if whole { Ok(attempt) } else { Err(format!("key {key}: a value that nobody ever wrote, begins like attempt {attempt}")) }
}

/// What the writer of a key goes by.
struct Slot {
    path: String,
    attempts: u64,
    /// The revision that conditions are on; `None` where it is thought to be absent.
    revision: Option<u64>,
}

/// Keys, their journal, and its judge.
pub struct Book {
    slots: Vec<Mutex<Slot>>,
    /// The keys of each shard that carry large values.
    large: BTreeMap<u64, Vec<usize>>,
    /// How many of the others there are; they come first.
    small: usize,
    by_bytes: BTreeMap<Vec<u8>, usize>,
    journal: Mutex<Journal>,
    judge: Mutex<Judge>,
    recent: Mutex<VecDeque<usize>>,
    /// Held for reading by every attempt; for writing, when the cluster is to be at rest.
    gate: RwLock<()>,
    /// Whether the load rests for a while.
    resting: AtomicBool,
    acknowledged: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A thread that panicked has said why, and ends the test.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Book {
    /// `per_shard` keys in every shard, and so many for large values; the journal is a new file at `path`.
    pub fn new(cluster: &Cluster, path: &Path, per_shard: usize, large_per_shard: usize) -> Self {
        let (mut journal, mut slots, mut by_bytes, mut large) =
            (Journal::new(path), Vec::new(), BTreeMap::new(), BTreeMap::new());
        let shards = cluster.shard_paths(1, "crash");
        let mut add = |shard: u64, path: String| {
            journal.say(&format!("key {} {shard} {path}", slots.len()));
            by_bytes.insert(unescape(&path), slots.len());
            slots.push(Mutex::new(Slot { path, attempts: 0, revision: None }));
            slots.len() - 1
        };
        // The shards by turns, so that neighbours in number differ in shard.
        for i in 0..per_shard {
            for (shard, path) in &shards {
                add(*shard, format!("{path}{i:05}"));
            }
        }
        for (shard, path) in &shards {
            let keys = (0..large_per_shard).map(|i| add(*shard, format!("{path}large{i:02}"))).collect();
            large.insert(*shard, keys);
        }
        let small = shards.len() * per_shard;
        let (journal, judge, recent) = (Mutex::new(journal), Mutex::default(), Mutex::default());
        let (gate, resting, acknowledged) = Default::default();
        Self { slots, large, small, by_bytes, journal, judge, recent, gate, resting, acknowledged }
    }

    /// How many attempts were acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::SeqCst)
    }

    fn say(&self, line: &str) {
        lock(&self.journal).say(line);
    }

    fn judge(&self) -> MutexGuard<'_, Judge> {
        let mut judge = lock(&self.judge);
        let path = lock(&self.journal).path().to_owned();
        judge.read_on(&path).unwrap_or_else(|why| panic!("{why}"));
        judge
    }

    /// One attempt at a key through a node; whether it was acknowledged.
    fn attempt(&self, client: &Client, node: u64, index: usize, slot: &mut Slot, dice: &mut Dice, bytes: usize) -> bool {
        slot.attempts += 1;
        let attempt = slot.attempts;
        let condition =
            slot.revision.map_or(("if-none-match", "*".to_owned()), |revision| ("if-match", format!("\"{revision}\"")));
        // Of ten attempts at a small key, five are plain puts, two conditional, and three deletions, one of them conditional. There is
        // no deletion on the condition that nothing is there.
        let (delete, conditional) = match (bytes, dice.below(10)) {
            (SMALL_BYTES, 0..2) => (false, true),
            (SMALL_BYTES, 2) => (true, slot.revision.is_some()),
            (SMALL_BYTES, 3..5) => (true, false),
            _ => (false, false),
        };
        let headers: &[(&str, &str)] = if conditional { &[(condition.0, &condition.1)] } else { &[] };
        self.say(&format!("try {index} {attempt} {}", if delete { "delete" } else { "put" }));
        let path = format!("/v1/kv/{}", slot.path);
        let sent = if delete {
            client.send(node, "DELETE", &path, headers, None)
        } else {
            client.send(node, "PUT", &path, headers, Some(&value(index, attempt, bytes)))
        };
        let acknowledged = match sent {
            Ok(answer) if answer.status == 204 => {
                let revision = if delete { 0 } else { answer.revision() };
                self.say(&format!("ack {index} {attempt} {revision}"));
                slot.revision = (!delete).then_some(revision);
                self.acknowledged.fetch_add(1, Ordering::SeqCst);
                true
            }
            Ok(answer) if answer.status == 412 => {
                self.say(&format!("not {index} {attempt} 412"));
                if let Ok(answer) = client.send(node, "GET", &path, &[], None) {
                    self.note(node, index, slot, &answer);
                }
                false
            }
            Ok(answer) if is_not_applied(&answer) => {
                self.say(&format!("not {index} {attempt} {}", answer.status));
                false
            }
            Err(error) if is_not_connected(&error) => {
                self.say(&format!("not {index} {attempt} 0"));
                false
            }
            // Nobody knows, and nobody ever will, until it is seen.
            Ok(_) | Err(_) => false,
        };
        let mut recent = lock(&self.recent);
        recent.push_back(index);
        if recent.len() > RECENT {
            recent.pop_front();
        }
        acknowledged
    }

    /// Writes down what a read showed, if it was answered at all.
    fn note(&self, node: u64, index: usize, slot: &mut Slot, answer: &Answer) -> bool {
        let seen = match answer.status {
            200 => {
                let attempt = attempt_of(index, &answer.body).unwrap_or_else(|why| panic!("through node {node}: {why}"));
                Seen::Value { revision: answer.revision(), attempt }
            }
            404 => Seen::Nothing,
            _ => return false,
        };
        self.write_down(node, index, slot, seen);
        true
    }

    fn write_down(&self, node: u64, index: usize, slot: &mut Slot, seen: Seen) {
        match seen {
            Seen::Value { revision, attempt } => {
                self.say(&format!("saw {index} {node} {revision} {attempt}"));
                slot.revision = Some(revision);
            }
            Seen::Nothing => {
                self.say(&format!("gone {index} {node}"));
                slot.revision = None;
            }
        }
    }

    /// Reads one key through a node, under load too, and has the journal judged.
    fn check_key(&self, client: &Client, node: u64, index: usize) {
        let mut slot = lock(&self.slots[index]);
        let deadline = Instant::now() + PATIENCE;
        let path = format!("/v1/kv/{}", slot.path);
        loop {
            let answer = client.send(node, "GET", &path, &[], None);
            if answer.as_ref().is_ok_and(|answer| self.note(node, index, &mut slot, answer)) {
                break;
            }
            let said = answer.map_or_else(|error| error.to_string(), |answer| answer.text());
            assert!(Instant::now() < deadline, "node {node} does not answer for {path}: {said}");
            drop(slot);
            std::thread::sleep(Duration::from_millis(20));
            slot = lock(&self.slots[index]);
        }
    }

    /// Checks some keys that were written of late and some others, each through one of these nodes, and all lines so far.
    pub fn check_some(&self, client: &Client, nodes: &[u64], dice: &mut Dice, count: usize) {
        let recent: Vec<usize> = lock(&self.recent).iter().copied().collect();
        for i in 0..count {
            let any = dice.below(self.slots.len() as u64) as usize;
            let index = if i % 3 == 2 || recent.is_empty() { any } else { dice.pick(&recent) };
            self.check_key(client, dice.pick(nodes), index);
        }
        drop(self.judge());
    }

    /// Has nobody write while `body` runs.
    pub fn at_rest<R>(&self, body: impl FnOnce() -> R) -> R {
        self.resting.store(true, Ordering::SeqCst);
        let gate = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        let result = body();
        drop(gate);
        self.resting.store(false, Ordering::SeqCst);
        result
    }

    /// Checks every key through a node while nobody writes; how many are there.
    pub fn check_all(&self, client: &Client, node: u64) -> usize {
        let mut seen = self.scan(client, node, "").unwrap_or_else(|| panic!("node {node} does not answer scans"));
        for (index, slot) in self.slots.iter().enumerate() {
            self.write_down(node, index, &mut lock(slot), seen.remove(&index).unwrap_or(Seen::Nothing));
        }
        self.judge().present()
    }

    /// Checks what a node's own replicas hold: never anything that was not written, at the revision that it was written at. How many
    /// keys that were; `None` where the node ended meanwhile, or does not answer.
    pub fn check_stale(&self, client: &Client, node: u64) -> Option<usize> {
        let seen = self.scan(client, node, "&consistency=stale")?;
        let judge = self.judge();
        for (index, seen) in &seen {
            judge.may_have_been(*index, *seen).unwrap_or_else(|why| panic!("stale, through node {node}: {why}"));
        }
        Some(seen.len())
    }

    /// Everything that a node shows, by key. A key that is none of ours is a failure.
    fn scan(&self, client: &Client, node: u64, query: &str) -> Option<BTreeMap<usize, Seen>> {
        let deadline = Instant::now() + PATIENCE;
        let (mut all, mut cursor) = (BTreeMap::new(), String::new());
        loop {
            let path = format!("/v1/kv?limit=2000&max_bytes=4000000{query}{cursor}");
            let answer = match client.send(node, "GET", &path, &[], None) {
                Ok(answer) if answer.status == 200 => answer.json(),
                // Nobody listens there any more.
                Err(error) if is_not_connected(&error) => return None,
                _ if Instant::now() > deadline => return None,
                _ => {
                    std::thread::sleep(Duration::from_millis(50));
                    continue;
                }
            };
            for item in answer["items"].as_array().unwrap() {
                let bytes = |name: &str| match (item[name].as_str(), item[format!("{name}_b64")].as_str()) {
                    (Some(text), _) => text.as_bytes().to_vec(),
                    (None, base64) => BASE64.decode(base64.unwrap()).unwrap(),
                };
                let key = bytes("key");
                let index =
                    *self.by_bytes.get(&key).unwrap_or_else(|| panic!("node {node} shows a key that nobody wrote: {item}"));
                let attempt =
                    attempt_of(index, &bytes("value")).unwrap_or_else(|why| panic!("scanned through node {node}: {why}"));
                all.insert(index, Seen::Value { revision: item["revision"].as_u64().unwrap(), attempt });
            }
            match answer["cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return Some(all),
            }
        }
    }

    /// Judges the whole file once more, from its beginning, as somebody would who has nothing but it.
    pub fn judge_again(&self) -> Totals {
        let mut judge = Judge::default();
        judge.read_on(lock(&self.journal).path()).unwrap_or_else(|why| panic!("{why}"));
        judge.totals
    }

    /// Large values into these shards, through these nodes, until each has taken so many bytes. `false` where that took too long.
    pub fn fill(&self, client: &Client, nodes: &[u64], shards: &[u64], bytes: usize, dice: &mut Dice) -> bool {
        let deadline = Instant::now() + Duration::from_secs(15);
        let client = client.patience(LOAD_PATIENCE);
        for shard in shards {
            let mut taken = 0;
            while taken < bytes {
                let index = dice.pick(&self.large[shard]);
                let gate = self.gate.read().unwrap_or_else(PoisonError::into_inner);
                let done = self.attempt(&client, dice.pick(nodes), index, &mut lock(&self.slots[index]), dice, LARGE_BYTES);
                drop(gate);
                taken += if done { LARGE_BYTES } else { 0 };
                if Instant::now() > deadline {
                    return false;
                }
                if !done {
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        }
        true
    }

    /// Runs `body` while `threads` write through these nodes, each with a pause after each attempt.
    pub fn under_load<R>(
        &self,
        client: &Client,
        nodes: &[u64],
        threads: usize,
        pause: Duration,
        seed: u64,
        body: impl FnOnce() -> R,
    ) -> R {
        /// Ends the threads also when the body panics.
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::SeqCst);
            }
        }
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let _stop = Stop(&stop);
            for thread in 0..threads {
                let (client, stop) = (client.patience(LOAD_PATIENCE), &stop);
                let mut dice = Dice::new(seed.wrapping_mul(1000) + thread as u64);
                scope.spawn(move || {
                    let mut round = thread * self.small / threads;
                    while !stop.load(Ordering::SeqCst) {
                        if self.resting.load(Ordering::SeqCst) {
                            std::thread::sleep(Duration::from_millis(2));
                            continue;
                        }
                        round = (round + 1) % self.small;
                        let hot = dice.below((self.small as u64 / 10).max(1)) as usize;
                        let index = if dice.below(2) == 0 { hot } else { round };
                        let done = {
                            let _gate = self.gate.read().unwrap_or_else(PoisonError::into_inner);
                            match self.slots[index].try_lock() {
                                Ok(mut slot) => self.attempt(&client, dice.pick(nodes), index, &mut slot, &mut dice, SMALL_BYTES),
                                Err(TryLockError::WouldBlock) => continue,
                                Err(TryLockError::Poisoned(_)) => return,
                            }
                        };
                        // A refused connection fails in no time; no need to spin.
                        std::thread::sleep(if done { pause } else { pause.max(Duration::from_millis(5)) });
                    }
                });
            }
            body()
        })
    }
}

/// The bytes of a path in which every byte of a part of the key stands as `%xx`.
fn unescape(path: &str) -> Vec<u8> {
    let (mut bytes, mut rest) = (Vec::new(), path.as_bytes());
    while let [first, tail @ ..] = rest {
        let escaped = tail.get(..2).filter(|_| *first == b'%').and_then(|hex| std::str::from_utf8(hex).ok());
        match escaped.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    bytes
}

/// Whether an answer says that the write was not applied.
fn is_not_applied(answer: &Answer) -> bool {
    serde_json::from_slice::<serde_json::Value>(&answer.body).is_ok_and(|problem| problem["outcome"] == "not_applied")
}

/// Whether nothing was sent, because nobody listens.
fn is_not_connected(error: &ureq::Error) -> bool {
    matches!(error, ureq::Error::Io(error) if error.kind() == io::ErrorKind::ConnectionRefused)
        || matches!(error, ureq::Error::ConnectionFailed)
}
