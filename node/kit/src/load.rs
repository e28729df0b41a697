//! Load from several threads, with a ledger of what was acknowledged, against which every answer is checked.
//!
//! A key is written by one thread at a time, each value once: the number of the attempt. That makes linearizability checkable on
//! the spot, by revisions, which only grow:
//!
//! - Nobody may read a revision below the highest that was acknowledged or read **before the read began** ([`Key::floor`]).
//! - The acknowledged revision holds the acknowledged value; a higher one holds a value whose outcome is open, and nothing else:
//!   a write that was refused as `not_applied` must never be seen.
//!
//! A write that was not answered, or with an unknown outcome, stays open for ever: it may take effect at any time, or never.

use super::Cluster;
use super::http::{Answer, Client};
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A key, and what is known of it.
pub struct Key {
    /// Its shard.
    pub shard: u64,
    path: String,
    /// The highest revision that was acknowledged or read.
    floor: AtomicU64,
    written: Mutex<Written>,
}

#[derive(Default)]
struct Written {
    /// The number of the last attempt.
    attempts: u64,
    /// Revision and value of the last write that is known to have been applied.
    acked: (u64, u64),
    /// Values whose outcome is open.
    open: BTreeSet<u64>,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Acknowledged, or read.
    Done,
    /// Refused with `not_applied`.
    Refused,
    /// Answered with an unknown outcome.
    Unknown,
    /// The connection was refused, lost, or nothing came in time.
    Broken,
}

impl Fate {
    /// Every fate, in the order in which they are counted.
    pub const ALL: [Self; 4] = [Self::Done, Self::Refused, Self::Unknown, Self::Broken];
}

/// What a test counts, per node that was asked.
#[derive(Default)]
pub struct Counts {
    fates: [[AtomicU64; 4]; 8],
    slowest_micros: AtomicU64,
    refusals: Mutex<Vec<String>>,
}

impl Counts {
    /// Counts a request.
    pub fn count(&self, node: u64, fate: Fate, took: Duration) {
        self.fates[node as usize][fate as usize].fetch_add(1, Ordering::Relaxed);
        if fate == Fate::Done {
            self.slowest_micros.fetch_max(took.as_micros() as u64, Ordering::Relaxed);
        }
    }

    /// How many requests to a node had this fate.
    pub fn of(&self, node: u64, fate: Fate) -> u64 {
        self.fates[node as usize][fate as usize].load(Ordering::Relaxed)
    }

    /// How many requests had this fate.
    pub fn all(&self, fate: Fate) -> u64 {
        (0..8).map(|node| self.of(node, fate)).sum()
    }

    /// The slowest request that was done.
    pub fn slowest(&self) -> Duration {
        Duration::from_micros(self.slowest_micros.load(Ordering::Relaxed))
    }

    /// Some of the refusals, as they were worded.
    pub fn refusals(&self) -> Vec<String> {
        self.refusals.lock().unwrap().clone()
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [done, refused, unknown, broken] = Fate::ALL.map(|fate| self.all(fate));
        write!(f, "{done} done, {refused} refused, {unknown} unknown, {broken} broken, slowest {:?}", self.slowest())
    }
}

impl Key {
    /// Writes the next value. The lock keeps other writers of the key out, readers not.
    pub fn write(&self, client: &Client, node: u64, padding: usize) -> (Fate, Option<Answer>) {
        let mut written = self.written.lock().unwrap();
        written.attempts += 1;
        let value = written.attempts;
        let body = format!("{value} {}", "x".repeat(padding));
        match client.send(node, "PUT", &self.path, &[], Some(body.as_bytes())) {
            Ok(answer) if answer.status == 204 => {
                let revision = answer.revision();
                // Somebody may have read it already, or a later value whose outcome is open.
                self.floor.fetch_max(revision, Ordering::SeqCst);
                assert!(revision > written.acked.0, "{}: revision {revision} after {:?}", self.path, written.acked);
                written.acked = (revision, value);
                (Fate::Done, Some(answer))
            }
            Ok(answer) if answer.json()["outcome"] == "not_applied" => (Fate::Refused, Some(answer)),
            Ok(answer) => {
                assert_eq!(answer.json()["outcome"], "unknown", "{}", answer.text());
                written.open.insert(value);
                (Fate::Unknown, Some(answer))
            }
            Err(_) => {
                written.open.insert(value);
                (Fate::Broken, None)
            }
        }
    }

    /// Reads while others may write: never older than what was known before.
    pub fn read(&self, client: &Client, node: u64, query: &str) -> Fate {
        self.look(client, node, query).unwrap_or_else(|wrong| panic!("{wrong}"))
    }

    /// The same, with what is wrong as an error.
    pub fn look(&self, client: &Client, node: u64, query: &str) -> Result<Fate, String> {
        let floor = self.floor.load(Ordering::SeqCst);
        let Ok(answer) = client.send(node, "GET", &format!("{}{query}", self.path), &[], None) else { return Ok(Fate::Broken) };
        match answer.status {
            200 => {
                let revision = answer.revision();
                if revision < floor {
                    return Err(format!(
                        "stale read of {} through node {node} (answered by {:?}): revision {revision}, {floor} was known before",
                        self.path,
                        answer.header("flotilla-node")
                    ));
                }
                self.floor.fetch_max(revision, Ordering::SeqCst);
                Ok(Fate::Done)
            }
            404 if floor == 0 => Ok(Fate::Done),
            404 => Err(format!("{} is lost: read through node {node}, revision {floor} was known", self.path)),
            429.. => Ok(Fate::Refused),
            other => Err(format!("{other}: {}", answer.text())),
        }
    }

    /// Reads while nobody writes: the value, too, must be the one that was acknowledged, or an open one on top of it.
    pub fn check(&self, client: &Client, node: u64) {
        let mut written = self.written.lock().unwrap();
        let answer = client.get(node, &self.path);
        if answer.status == 404 {
            assert_eq!(written.acked.0, 0, "{} is lost, seen through node {node}", self.path);
            return;
        }
        let answer = answer.expect(200);
        let revision = answer.revision();
        let value: u64 = answer.text().split(' ').next().unwrap().parse().unwrap();
        let floor = self.floor.fetch_max(revision, Ordering::SeqCst);
        assert!(revision >= floor, "{}: revision {revision} through node {node}, {floor} was known", self.path);
        if revision == written.acked.0 {
            assert_eq!(value, written.acked.1, "{} at revision {revision}, through node {node}", self.path);
        } else {
            let was_open = written.open.remove(&value);
            assert!(was_open, "{}: value {value} at revision {revision} through node {node} is none that may be", self.path);
            written.acked = (revision, value);
        }
    }
}

/// Keys in every shard.
pub struct Ledger {
    /// The keys.
    pub keys: Vec<Key>,
}

impl Ledger {
    /// `per_shard` keys in every shard; nothing is written yet.
    pub fn new(cluster: &Cluster, name: &str, per_shard: usize) -> Self {
        let mut keys = Vec::new();
        for (shard, path) in cluster.shard_paths(1, name) {
            keys.extend((0..per_shard).map(|i| Key {
                shard,
                path: format!("/v1/kv/{path}{i}"),
                floor: AtomicU64::new(0),
                written: Mutex::default(),
            }));
        }
        Self { keys }
    }

    /// Checks all keys through each of these nodes; nobody may be writing. How many are known to be there.
    pub fn check(&self, client: &Client, nodes: &[u64]) -> usize {
        for node in nodes {
            for key in &self.keys {
                key.check(client, *node);
            }
        }
        self.keys.iter().filter(|key| key.written.lock().unwrap().acked.0 > 0).count()
    }

    /// How many writes were acknowledged at least, by the values that were reached.
    pub fn attempts(&self) -> u64 {
        self.keys.iter().map(|key| key.written.lock().unwrap().attempts).sum()
    }
}

/// Which nodes the load asks; changed while it runs.
pub struct Targets(AtomicU64);

impl Targets {
    /// These nodes.
    pub fn new(nodes: &[u64]) -> Self {
        let targets = Self(AtomicU64::new(0));
        targets.set(nodes);
        targets
    }

    /// These nodes from now on.
    pub fn set(&self, nodes: &[u64]) {
        self.0.store(nodes.iter().fold(0, |mask, node| mask | 1 << node), Ordering::SeqCst);
    }

    /// One of them, another for each `n`.
    fn pick(&self, n: u64) -> u64 {
        let mask = self.0.load(Ordering::SeqCst);
        let nodes: Vec<u64> = (0..64).filter(|node| mask & 1 << node != 0).collect();
        nodes[n as usize % nodes.len()]
    }
}

/// Runs `body` while threads write and read; reads go through another node than the write before, where there is one.
pub fn under_load<R>(
    cluster: &Cluster,
    ledger: &Ledger,
    targets: &Targets,
    threads: usize,
    body: impl FnOnce() -> R,
) -> (R, Counts) {
    under_load_of(&cluster.client, ledger, targets, threads, 100, "", body)
}

/// The same, with the client to use, the size of values and the query of reads.
pub fn under_load_of<R>(
    client: &Client,
    ledger: &Ledger,
    targets: &Targets,
    threads: usize,
    padding: usize,
    query: &str,
    body: impl FnOnce() -> R,
) -> (R, Counts) {
    /// Ends the threads also when the body panics.
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let (stop, counts) = (AtomicBool::new(false), Counts::default());
    let result = std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        for thread in 0..threads {
            let (client, stop, counts) = (client.clone(), &stop, &counts);
            scope.spawn(move || {
                // An odd step over the keys that are this thread's to write, so that neighbours in time differ in shard.
                let mine: Vec<&Key> = ledger.keys.iter().skip(thread).step_by(threads).collect();
                let mut n = thread as u64;
                while !stop.load(Ordering::SeqCst) {
                    n += 1;
                    let timed = |node: u64, request: &dyn Fn(u64) -> (Fate, Option<Answer>)| {
                        let begun = Instant::now();
                        let (fate, answer) = request(node);
                        counts.count(node, fate, begun.elapsed());
                        if let (Fate::Refused | Fate::Unknown, Some(answer)) = (fate, answer) {
                            let mut refusals = counts.refusals.lock().unwrap();
                            if refusals.len() < 20 {
                                refusals.push(format!("node {node}: {}", answer.text()));
                            }
                        }
                        fate
                    };
                    let key = mine[(n as usize * 7) % mine.len()];
                    let fate = timed(targets.pick(n), &|node| key.write(&client, node, padding));
                    let other = &ledger.keys[(n as usize * 13 + thread) % ledger.keys.len()];
                    for key in [key, other] {
                        timed(targets.pick(n + 1), &|node| (key.read(&client, node, query), None));
                    }
                    if fate == Fate::Broken {
                        // A refused connection fails in no time; no need to spin.
                        std::thread::sleep(Duration::from_millis(5));
                    }
                }
            });
        }
        body()
    });
    (result, counts)
}

/// Writes to every shard through these nodes until each has taken one: for each, how long after `since` that was.
///
/// `shards` are from [`Cluster::shard_paths`], asked for before anything was done to the cluster. A thread per shard, each with a
/// patience of 0.3 s per try, which shows when the shard is there again.
pub fn until_writes(client: &Client, shards: &[(u64, String)], nodes: &[u64], since: Instant) -> Vec<Duration> {
    let client = client.patience(Duration::from_millis(300));
    std::thread::scope(|scope| {
        let probes: Vec<_> = shards
            .iter()
            .enumerate()
            .map(|(i, (_, path))| {
                let client = &client;
                scope.spawn(move || {
                    for n in i.. {
                        let node = nodes[n % nodes.len()];
                        let tried = client.send(node, "PUT", &format!("/v1/kv/{path}p"), &[], Some(b"probe"));
                        if tried.is_ok_and(|answer| answer.status == 204) {
                            break;
                        }
                        assert!(since.elapsed() < crate::PATIENCE, "no write to {path} succeeds");
                        std::thread::sleep(Duration::from_millis(10));
                    }
                    since.elapsed()
                })
            })
            .collect();
        probes.into_iter().map(|probe| probe.join().unwrap()).collect()
    })
}
