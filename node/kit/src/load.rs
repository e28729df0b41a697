//! Threads that write to registers and read them, and what became of their requests.
//!
//! A plain load puts, and reads what it has put through another node than the one that took it;
//! each register is written about as often as any other. A mixed one does without the reads, and
//! has conditions and deletions; half of it goes to few registers, for the sake of conditions that
//! fail and outcomes that overlap, and half round all, so that what was acknowledged stays to be
//! found.

use super::http::{Answer, Client};
use super::process::{RaiseOnDrop, lock};
use super::register::{LARGE_BYTES, Register};
use super::{PATIENCE, Registers, Rng};
use flotilla_router::{Condition, Revision};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a mixed load waits for one answer; then the outcome is unknown.
const MIXED_PATIENCE: Duration = Duration::from_secs(2);

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Acknowledged, or read.
    Done,
    /// Refused, and certainly not applied.
    Refused,
    /// Answered with an unknown outcome.
    Unknown,
    /// The connection was refused, lost, or nothing came in time.
    Broken,
}

impl Outcome {
    /// Every outcome, in the order in which they are counted.
    pub const ALL: [Self; 4] = [Self::Done, Self::Refused, Self::Unknown, Self::Broken];
}

/// What a test counts, per node that was asked.
#[derive(Default)]
pub struct Counts {
    outcomes: [[AtomicU64; 4]; 8],
    slowest_micros: AtomicU64,
    refusals: Mutex<Vec<String>>,
}

impl Counts {
    /// Makes a request and counts it.
    pub fn count(&self, node: u64, request: impl FnOnce() -> (Outcome, Option<Answer>)) -> Outcome {
        let begun = Instant::now();
        let (outcome, answer) = request();
        self.outcomes[node as usize][outcome as usize].fetch_add(1, Ordering::Relaxed);
        if outcome == Outcome::Done {
            self.slowest_micros.fetch_max(begun.elapsed().as_micros() as u64, Ordering::Relaxed);
        }
        if let (Outcome::Refused | Outcome::Unknown, Some(answer)) = (outcome, answer) {
            let mut refusals = lock(&self.refusals);
            if refusals.len() < 20 {
                refusals.push(format!("node {node}: {}", answer.text()));
            }
        }
        outcome
    }

    /// How many requests to a node had this outcome.
    pub fn of(&self, node: u64, outcome: Outcome) -> u64 {
        self.outcomes[node as usize][outcome as usize].load(Ordering::Relaxed)
    }

    /// How many requests had this outcome.
    pub fn all(&self, outcome: Outcome) -> u64 {
        (0..8).map(|node| self.of(node, outcome)).sum()
    }

    /// The slowest request that was done.
    pub fn slowest(&self) -> Duration {
        Duration::from_micros(self.slowest_micros.load(Ordering::Relaxed))
    }

    /// Some of the refusals, as they were worded.
    pub fn refusals(&self) -> Vec<String> {
        lock(&self.refusals).clone()
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [done, refused, unknown, broken] = Outcome::ALL.map(|outcome| self.all(outcome));
        write!(
            f,
            "{done} done, {refused} refused, {unknown} unknown, {broken} broken, slowest {:?}",
            self.slowest()
        )
    }
}

/// Which nodes a load asks; changed while it runs.
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
    fn pick(&self, n: usize) -> u64 {
        let mask = self.0.load(Ordering::SeqCst);
        let nodes: Vec<u64> = (0..64).filter(|node| mask & 1 << node != 0).collect();
        nodes[n % nodes.len()]
    }
}

/// What a load does.
#[derive(Clone, Copy)]
pub struct Load {
    threads: usize,
    /// The query of reads.
    query: &'static str,
    /// Whether there are conditions, deletions and much-used registers, and no reads.
    mixed: bool,
    bytes: usize,
    pause: Duration,
    seed: u64,
}

impl Load {
    /// Puts and reads, as fast as it goes.
    pub fn plain(threads: usize) -> Self {
        Self { threads, query: "", mixed: false, bytes: 100, pause: Duration::ZERO, seed: 0 }
    }

    /// The same with a query for the reads, such as `?consistency=lease`.
    pub fn reading(self, query: &'static str) -> Self {
        Self { query, ..self }
    }

    /// Puts and deletions, some with conditions, drawn from a seed; each thread rests after each.
    pub fn mixed(threads: usize, pause: Duration, seed: u64) -> Self {
        Self { threads, query: "", mixed: true, bytes: 64, pause, seed }
    }
}

/// What a mixed load wants of a register next: whether it is a put, and on what condition. Of ten,
/// five are plain puts, two conditional, and three deletions, one of them conditional. There is no
/// deletion on the condition that nothing is there.
fn draw(rng: &mut Rng, register: &Register) -> (bool, Condition) {
    let known = register.revision().map(|revision| Condition::At(Revision(revision)));
    match rng.below(10) {
        0..2 => (true, known.unwrap_or(Condition::Absent)),
        2 => (false, known.unwrap_or(Condition::Always)),
        3..5 => (false, Condition::Always),
        _ => (true, Condition::Always),
    }
}

impl Registers {
    /// Runs `body` under a load through these nodes.
    pub fn under_load<R>(
        &self,
        client: &Client,
        targets: &Targets,
        load: Load,
        body: impl FnOnce() -> R,
    ) -> (R, Counts) {
        let (stop, counts) = (AtomicBool::new(false), Counts::default());
        let result = std::thread::scope(|scope| {
            let _stop = RaiseOnDrop(&stop);
            for thread in 0..load.threads {
                let client =
                    if load.mixed { client.patience(MIXED_PATIENCE) } else { client.clone() };
                let (stop, counts) = (&stop, &counts);
                scope.spawn(move || self.run(&client, targets, load, thread, counts, stop));
            }
            body()
        });
        (result, counts)
    }

    fn run(
        &self,
        client: &Client,
        targets: &Targets,
        load: Load,
        thread: usize,
        counts: &Counts,
        stop: &AtomicBool,
    ) {
        let mut rng = Rng::new(load.seed.wrapping_mul(1000) + thread as u64);
        let few = (self.small as u64 / 10).max(1);
        let start = thread * self.small / load.threads;
        for n in 1.. {
            if stop.load(Ordering::SeqCst) {
                return;
            }
            if self.resting.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(2));
                continue;
            }
            let is_hot = load.mixed && rng.below(2) == 0;
            let register =
                &self.all[if is_hot { rng.below(few) as usize } else { (start + n) % self.small }];
            let (put, condition) =
                if load.mixed { draw(&mut rng, register) } else { (true, Condition::Always) };
            let node = targets.pick(if load.mixed { rng.below(1 << 32) as usize } else { n });
            let outcome = {
                let _gate = self.gate.read().unwrap_or_else(PoisonError::into_inner);
                let Ok(_turn) = register.turn.try_lock() else { continue };
                counts.count(node, || {
                    register.write(client, node, put.then_some(load.bytes), condition)
                })
            };
            self.note_written(register);
            if !load.mixed {
                let other = &self.all[(n * 13 + thread) % self.small];
                let node = targets.pick(n + 1);
                for register in [register, other] {
                    counts.count(node, || register.read(client, node, load.query));
                }
            }
            // A refused connection fails in no time; no need to spin.
            let is_vain =
                if load.mixed { outcome != Outcome::Done } else { outcome == Outcome::Broken };
            std::thread::sleep(load.pause.max(Duration::from_millis(if is_vain { 5 } else { 0 })));
        }
    }

    /// Large values into these shards, through these nodes, until each has taken so many bytes.
    /// `false` where that took too long.
    pub fn fill(
        &self,
        client: &Client,
        nodes: &[u64],
        shards: &[u64],
        bytes: usize,
        rng: &mut Rng,
    ) -> bool {
        let deadline = Instant::now() + Duration::from_secs(15);
        let client = client.patience(MIXED_PATIENCE);
        for shard in shards {
            let (mut taken, registers) = (0, self.large(*shard));
            while taken < bytes {
                let register = &self.all[rng.pick(&registers)];
                let gate = self.gate.read().unwrap_or_else(PoisonError::into_inner);
                let (outcome, _) = register.put(&client, rng.pick(nodes), LARGE_BYTES);
                drop(gate);
                self.note_written(register);
                if Instant::now() > deadline {
                    return false;
                }
                match outcome {
                    Outcome::Done => taken += LARGE_BYTES,
                    _ => std::thread::sleep(Duration::from_millis(20)),
                }
            }
        }
        true
    }
}

/// Writes to every shard through these nodes until each has taken one: for each, how long after
/// `since` that was.
///
/// `shards` are from [`Fleet::shard_paths`](super::Fleet::shard_paths), asked for before anything
/// was done to the cluster. A thread per shard, each with a patience of 0.3 s per try, which shows
/// when the shard is there again.
pub fn until_writes(
    client: &Client,
    shards: &[(u64, String)],
    nodes: &[u64],
    since: Instant,
) -> Vec<Duration> {
    let client = client.patience(Duration::from_millis(300));
    let until_write = |i: usize, path: &str| {
        for node in nodes.iter().cycle().skip(i) {
            let tried = client.send(*node, "PUT", &format!("/v1/kv/{path}p"), &[], Some(b"probe"));
            if tried.is_ok_and(|answer| answer.status == 204) {
                break;
            }
            assert!(since.elapsed() < PATIENCE, "no write to {path} succeeds");
            std::thread::sleep(Duration::from_millis(10));
        }
        since.elapsed()
    };
    std::thread::scope(|scope| {
        let probe = |(i, (_, path)): (usize, &(u64, String))| {
            let (path, until_write) = (path.clone(), &until_write);
            scope.spawn(move || until_write(i, &path))
        };
        let probes: Vec<_> = shards.iter().enumerate().map(probe).collect();
        probes.into_iter().map(|probe| probe.join().unwrap()).collect()
    })
}
