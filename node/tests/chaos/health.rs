//! What the test knows of the cluster's health, and probes that measure it against what it must be
//! able to do.
//!
//! [`Health`] is what the faults make of the nodes and links. Where a majority of a shard's
//! replicas runs, and every link between them is clean, the shard must take writes, whatever else
//! is wrong: [`Probes`] write and read one key per shard all the time, and note the longest time
//! without a success **while such a majority was there**. That time holds the elections, the
//! connections that have to be noticed as lost, the leaders that were killed. Beside it every
//! answer is checked on the spot against what was acknowledged (by the kit's registers), which is a
//! second opinion on what `flotilla check` sees.

use flotilla_kit::{Client, Counts, Outcome, Register, Registers};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A shard that must take writes and takes none for so long has stopped working.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(30);
/// The size of values, such that logs are soon cut and who was away gets a snapshot.
const PADDING_BYTES: usize = 4000;
/// How long a probe waits for an answer before it asks another node: at first, after one in vain,
/// and from then on. The silences are exact to about this much. A leader behind late links leads
/// on, and a write takes four times the delay.
const PATIENCE: [Duration; 3] =
    [Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(2)];
/// What a link may lose and still count as clean, in a thousand.
const CLEAN_LOSS_PERMILLE_MAX: u64 = 20;
/// How late a link may be and still count as clean.
const CLEAN_DELAY_MILLIS_MAX: u64 = 50;

/// The health of every node and link at a time.
#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    /// Nodes that don't run, or don't run yet.
    pub(crate) down: BTreeSet<u64>,
    /// Directed links that are cut, or too bad to count on.
    pub(crate) bad_links: BTreeSet<(u64, u64)>,
    /// Nodes whose disk is too full: puts to their shards are refused on purpose.
    pub(crate) full: BTreeSet<u64>,
    /// What is wrong, in words.
    pub(crate) faults: String,
}

impl State {
    /// A majority of these replicas that can do everything a shard must do.
    fn quorum(&self, replicas: &[u64]) -> Option<Vec<u64>> {
        if replicas.iter().any(|node| self.full.contains(node)) {
            return None;
        }
        let sets = (0..1u32 << replicas.len()).map(|mask| {
            let members = replicas.iter().enumerate().filter(|(i, _)| mask & 1 << i != 0);
            members.map(|(_, node)| *node).collect::<Vec<u64>>()
        });
        let is_well = |set: &Vec<u64>| {
            let links_are_clean =
                || set.iter().all(|a| set.iter().all(|b| !self.bad_links.contains(&(*a, *b))));
            set.iter().all(|node| !self.down.contains(node)) && links_are_clean()
        };
        sets.filter(|set| set.len() > replicas.len() / 2 && is_well(set)).max_by_key(Vec::len)
    }

    /// Takes note of a rule for what `from` sends to `to`.
    pub(crate) fn spoil(&mut self, from: u64, to: u64, loss_permille: u64, delay_millis: u64) {
        if loss_permille > CLEAN_LOSS_PERMILLE_MAX || delay_millis > CLEAN_DELAY_MILLIS_MAX {
            self.bad_links.insert((from, to));
        }
    }
}

/// The health of the cluster over time.
pub(crate) struct Health {
    /// Each state with the moment since when it holds; the last is now's.
    history: Mutex<Vec<(Instant, State)>>,
}

impl Health {
    /// All is well.
    pub(crate) fn new() -> Self {
        Self { history: Mutex::new(vec![(Instant::now(), State::default())]) }
    }

    /// From now on it is so.
    pub(crate) fn change(&self, edit: impl FnOnce(&mut State)) {
        let mut history = self.history.lock().unwrap();
        let mut state = history.last().expect("never empty").1.clone();
        edit(&mut state);
        history.push((Instant::now(), state));
        // Nobody asks about what was before the longest silence that may be.
        if history.len() > 2000 {
            history.drain(..1000);
        }
    }

    /// What is so now.
    pub(crate) fn now(&self) -> State {
        self.history.lock().unwrap().last().expect("never empty").1.clone()
    }

    /// A healthy majority of these replicas, and since when there is always one.
    fn quorum(&self, replicas: &[u64]) -> Option<(Vec<u64>, Instant)> {
        let history = self.history.lock().unwrap();
        let nodes = history.last().expect("never empty").1.quorum(replicas)?;
        let healthy =
            history.iter().rev().take_while(|(_, state)| state.quorum(replicas).is_some());
        Some((nodes, healthy.last().expect("the last one is").0))
    }
}

/// A time without success, and when.
#[derive(Clone, Debug, Default)]
pub(crate) struct Silence {
    /// How long.
    pub(crate) lasted: Duration,
    /// The shard.
    pub(crate) shard: u64,
    /// When it ended, after the start of the probes.
    pub(crate) at: Duration,
    /// What was wrong then.
    pub(crate) faults: String,
}

#[derive(Default)]
struct Seen {
    worst: Silence,
    /// The longest of each shard, which shows whether one is unlike the others.
    per_shard: BTreeMap<u64, Duration>,
    violations: Vec<String>,
}

/// One prober per shard.
pub(crate) struct Probes {
    /// What was acknowledged.
    pub(crate) registers: Arc<Registers>,
    /// What became of the requests.
    pub(crate) counts: Arc<Counts>,
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    threads: Vec<(u64, JoinHandle<()>)>,
}

impl Probes {
    /// Starts them. `replicas` says on which nodes each shard is.
    pub(crate) fn start(
        client: &Client,
        registers: Registers,
        replicas: &BTreeMap<u64, Vec<u64>>,
        all: &[u64],
        health: &Arc<Health>,
    ) -> Self {
        let (registers, counts, seen) =
            (Arc::new(registers), Arc::<Counts>::default(), Arc::<Mutex<Seen>>::default());
        let stop = Arc::<AtomicBool>::default();
        let begun = Instant::now();
        let threads = (0..registers.all.len()).map(|i| {
            let shard = registers.all[i].shard;
            let prober = Prober {
                clients: PATIENCE.map(|patience| client.patience(patience)),
                replicas: replicas[&shard].clone(),
                all: all.to_vec(),
                health: health.clone(),
                counts: counts.clone(),
                seen: seen.clone(),
                stop: stop.clone(),
                begun,
            };
            let registers = registers.clone();
            (shard, std::thread::spawn(move || prober.run(&registers.all[i])))
        });
        let threads = threads.collect();
        Self { registers, counts, seen, stop, threads }
    }

    /// What was found wrong, the first of it.
    pub(crate) fn violation(&self) -> Option<String> {
        if let Some(violation) = self.seen.lock().unwrap().violations.first() {
            return Some(violation.clone());
        }
        let ended =
            |thread: &JoinHandle<()>| thread.is_finished() && !self.stop.load(Ordering::SeqCst);
        let died = self.threads.iter().find(|(_, thread)| ended(thread));
        died.map(|(shard, _)| {
            format!("the probe of shard {shard} panicked; what it says stands above")
        })
    }

    /// The longest time without success while a majority was healthy, and the longest of each
    /// shard.
    pub(crate) fn silences(&self) -> (Silence, BTreeMap<u64, Duration>) {
        let seen = self.seen.lock().unwrap();
        (seen.worst.clone(), seen.per_shard.clone())
    }

    /// Ends them.
    pub(crate) fn stop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for (shard, thread) in self.threads.drain(..) {
            let ended = thread.join();
            assert!(ended.is_ok(), "the probe of shard {shard} panicked");
        }
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        // Not waited for here: a panic may be under way, and the cluster with it.
        self.stop.store(true, Ordering::SeqCst);
    }
}

struct Prober {
    clients: [Client; PATIENCE.len()],
    replicas: Vec<u64>,
    all: Vec<u64>,
    health: Arc<Health>,
    counts: Arc<Counts>,
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    begun: Instant,
}

impl Prober {
    fn run(self, register: &Register) {
        let mut spoke = Instant::now();
        let mut in_vain = 0;
        for n in register.shard as usize.. {
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            let before = self.health.quorum(&self.replicas);
            let nodes = before.map_or_else(|| self.all.clone(), |(nodes, _)| nodes);
            let (writer, reader) = (nodes[n % nodes.len()], nodes[(n + 1) % nodes.len()]);
            let client = &self.clients[in_vain.min(PATIENCE.len() - 1)];
            // Judged with each read, which takes the longer the more there is to be judged.
            register.renew();
            let outcome = self.counts.count(writer, || register.put(client, writer, PADDING_BYTES));
            let is_done = outcome == Outcome::Done;
            in_vain = if is_done { 0 } else { in_vain + 1 };
            // A majority that was gone meanwhile, if only for a moment, excuses the silence until
            // it came back.
            match self.health.quorum(&self.replicas) {
                Some((_, since)) => self.note(register.shard, spoke.max(since).elapsed(), is_done),
                None => spoke = Instant::now(),
            }
            if is_done {
                spoke = Instant::now();
            }
            match register.look(client, reader, "") {
                Ok(outcome) => drop(self.counts.count(reader, || (outcome, None))),
                Err(wrong) => self.seen.lock().unwrap().violations.push(wrong),
            }
            std::thread::sleep(Duration::from_millis(if is_done { 25 } else { 5 }));
        }
    }

    fn note(&self, shard: u64, lasted: Duration, is_over: bool) {
        let mut seen = self.seen.lock().unwrap();
        let longest = seen.per_shard.entry(shard).or_default();
        *longest = lasted.max(*longest);
        if lasted > seen.worst.lasted {
            seen.worst = Silence {
                lasted,
                shard,
                at: self.begun.elapsed(),
                faults: self.health.now().faults,
            };
        }
        if lasted > SILENCE_MAX && !is_over {
            let faults = self.health.now().faults;
            seen.violations.push(format!(
                "no write to shard {shard} for {lasted:?} while a majority was healthy ({faults})"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_majority_is_healthy_where_its_nodes_and_links_are() {
        let mut state = State::default();
        assert_eq!(state.quorum(&[1, 2, 3]), Some(vec![1, 2, 3]));
        state.down.insert(2);
        assert_eq!(state.quorum(&[1, 2, 3]), Some(vec![1, 3]));
        assert_eq!(state.quorum(&[2]), None);
        state.spoil(3, 1, 10, 20);
        assert!(state.quorum(&[1, 2, 3]).is_some(), "a little loss is no excuse");
        state.spoil(3, 1, 300, 0);
        assert_eq!(state.quorum(&[1, 2, 3]), None);
        assert_eq!(state.quorum(&[1, 3, 4, 5, 6]).map(|set| set.len()), Some(4));
        let full = State { full: [9].into(), ..State::default() };
        assert_eq!((full.quorum(&[1, 2, 9]), full.quorum(&[1, 2, 3]).is_some()), (None, true));
    }

    #[test]
    fn silence_counts_from_when_a_majority_is_there_again() {
        let health = Health::new();
        let start = health.quorum(&[1, 2, 3]).unwrap().1;
        health.change(|state| state.down.extend([1]));
        assert_eq!(health.quorum(&[1, 2, 3]).unwrap().1, start, "two are left");
        health.change(|state| state.down.extend([2]));
        assert!(health.quorum(&[1, 2, 3]).is_none());
        health.change(|state| state.down.clear());
        assert!(health.quorum(&[1, 2, 3]).unwrap().1 > start);
    }
}
