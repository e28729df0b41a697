//! The load that `flotilla check` makes.
//!
//! Each client asks one thing after the other, of any node, of one of the keys that are in use:
//! gets, puts, deletes, all with and without conditions, batches of these on several keys, and
//! scans. Some keys are asked for more than others, so that there is something to contend for.
//! Values are unique, and keys lie in every shard, under a prefix of this run alone. How keys come
//! and go, and their histories to a verdict while the load goes on, is told in [`super::keys`].
//!
//! Some of the gets are stale. Such an answer promises no more than that it was the state at some
//! moment since its age before it was asked for; so it goes into the history as a read that was
//! called as much earlier, and is judged with all the others.
//!
//! **Invariants.** A call is noted before anything is sent, a return after the whole answer came,
//! both on one monotonic clock. A write is in the history file before it is sent. What is not
//! certain is an unknown outcome.

use super::Verdict;
use super::figures::{Figures, Outcome as Counts};
use super::history::{Input, Operation, Output, Scanned};
use super::keys::{Judged, Key, Pool, lock};
use super::lines::{Header, Writer};
use crate::rng::Rng;
use bytes::Bytes;
use flotilla_ops::cli::probe::{Freshness, Probe, Told};
use flotilla_ops::cli::probe_batch::{Asked, Done};
use flotilla_router::{Condition, KeyRange, Revision};
use std::fs::File;
use std::io::{self, BufWriter};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A client that was refused waits so long.
const PAUSE: Duration = Duration::from_millis(20);
/// So often each endpoint is asked to remove what the run has written.
const CLEAN_UP_TRIES: usize = 3;

/// At most so many operations are in a batch.
const BATCH_MAX: u64 = 8;

/// What load to make.
#[derive(Clone, Debug)]
pub struct Plan {
    /// For how long.
    pub duration: Duration,
    /// How many clients ask at a time.
    pub clients: u64,
    /// How many keys are in use at a time.
    pub keys: usize,
    /// What all choices are drawn from.
    pub seed: u64,
}

/// What came of it.
pub struct Outcome {
    /// The verdict on all keys.
    pub verdict: Verdict,
    /// The history of the key that is wrong or undecided.
    pub evidence: Vec<Operation>,
    /// What was counted.
    pub figures: Figures,
    /// How long the load went on.
    pub lasted: Duration,
    /// Why the last operation that was refused, was.
    pub last_refusal: Option<String>,
    /// Where the history file failed.
    pub history_error: Option<io::Error>,
}

/// A load that goes on.
pub struct Load {
    plan: Plan,
    probe: Probe,
    pool: Pool,
    judge: Mutex<Option<JoinHandle<Judged>>>,
    begun: Instant,
    stop: Arc<AtomicBool>,
    counted: Mutex<Counted>,
}

#[derive(Default)]
struct Counted {
    figures: Figures,
    last_refusal: Option<String>,
}

impl Load {
    /// A load on keys under these prefixes, of which there is at least one. The history goes to
    /// `file`, if there is one.
    pub fn new(
        plan: Plan,
        probe: Probe,
        prefixes: Vec<Bytes>,
        file: Option<(File, Header)>,
    ) -> io::Result<Arc<Self>> {
        let writer =
            file.map(|(file, header)| Writer::new(BufWriter::new(file), &header)).transpose()?;
        let stop = Arc::new(AtomicBool::new(false));
        let (pool, judge) = Pool::new(plan.keys, prefixes, writer, stop.clone());
        let (judge, counted) = (Mutex::new(Some(judge)), Mutex::default());
        Ok(Arc::new(Self { plan, probe, pool, judge, begun: Instant::now(), stop, counted }))
    }

    /// Ends the load early.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// The figures so far, and since when.
    pub fn figures(&self) -> (Figures, Duration) {
        (lock(&self.counted).figures.clone(), self.begun.elapsed())
    }

    /// Makes the load, and waits for its verdict. Once; runs on a tokio runtime.
    pub async fn run(self: Arc<Self>) -> Outcome {
        let clients: Vec<_> =
            (0..self.plan.clients).map(|n| tokio::spawn(self.clone().client(n))).collect();
        for client in clients {
            // Without the operations of a client that panicked the verdict would be worth nothing.
            if let Err(error) = client.await {
                std::panic::resume_unwind(error.into_panic());
            }
        }
        let lasted = self.begun.elapsed();
        let judge = lock(&self.judge).take().expect("a load runs once");
        let ended = self.clone();
        // Handing over waits for the judge.
        let judged = tokio::task::spawn_blocking(move || (ended.pool.end(), judge.join())).await;
        let (history_error, (verdict, evidence)) = match judged {
            Ok((error, Ok(judged))) => (error, judged),
            Ok((_, Err(panic))) => std::panic::resume_unwind(panic),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        let counted = lock(&self.counted);
        let (figures, last_refusal) = (counted.figures.clone(), counted.last_refusal.clone());
        Outcome { verdict, evidence, figures, lasted, last_refusal, history_error }
    }

    /// Removes what the run has written, and says whether all of it is gone. What an unknown write
    /// may bring later is not.
    pub async fn clean_up(&self) -> bool {
        let mut clean = true;
        for prefix in self.pool.used_prefixes() {
            let range = KeyRange::prefix(prefix.clone());
            let mut gone = false;
            for at in 0..CLEAN_UP_TRIES * self.probe.endpoints() {
                gone = matches!(self.probe.delete_range(at, &range).await, Told::Answer(()));
                if gone {
                    break;
                }
                tokio::time::sleep(PAUSE).await;
            }
            clean &= gone;
        }
        clean
    }

    /// One client: asks until the time is up.
    async fn client(self: Arc<Self>, client: u64) {
        // Through another draw: streams of neighbouring states would draw the same numbers, one
        // step apart.
        let mut rng = Rng::new(Rng::new(self.plan.seed ^ client << 32).next());
        let mut asked = 0;
        while self.begun.elapsed() < self.plan.duration && !self.stop.load(Ordering::Relaxed) {
            asked += 1;
            let at = rng.below(self.probe.endpoints() as u64) as usize;
            let refused = match rng.below(100) {
                0..5 => self.scan(client, &mut rng, at).await,
                5..15 => self.batch(client, &mut rng, at, &mut asked).await,
                _ => self.ask(client, &mut rng, at, asked).await,
            };
            if refused {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// Asks for one key, and says whether that was refused.
    async fn ask(&self, client: u64, rng: &mut Rng, at: usize, asked: u64) -> bool {
        let Some(key) = self.pool.begin(rng) else { return false };
        let input = input(rng, &key.revisions(), client, asked);
        let (name, called) = (&key.name, self.now());
        let mut operation = Operation {
            client,
            key: name.clone(),
            called,
            returned: None,
            input,
            output: Output::Unknown,
        };
        let id = self.pool.note_asked(&operation);
        let mut as_of = Some(called);
        let (output, why) = match &operation.input {
            Input::Get => {
                let freshness = freshness(rng);
                output(self.probe.get_as(at, name, freshness).await, |(seen, age)| {
                    as_of = state_since(called, freshness, age);
                    // What does not know its age promises nothing.
                    as_of.map_or(Output::Unknown, |_| Output::Read(seen))
                })
            }
            Input::Put { value, condition } => {
                output(self.probe.put(at, name, value, *condition).await, |revision| {
                    Output::Written { revision }
                })
            }
            Input::Delete { condition } => {
                output(self.probe.delete(at, name, *condition).await, |()| Output::Deleted)
            }
        };
        let returned = self.now();
        let refused = output == Output::Refused;
        operation.returned = (output != Output::Unknown).then_some(returned);
        operation.output = output;
        self.count(&operation, returned, why);
        operation.called = as_of.unwrap_or(called);
        self.pool.finish(&key, Some((id, operation)));
        refused
    }

    /// Asks a batch about some keys, each once, and says whether all of it was refused. Each
    /// operation takes effect by itself.
    async fn batch(&self, client: u64, rng: &mut Rng, at: usize, asked: &mut u64) -> bool {
        let (mut keys, mut asks, called) = (Vec::<Arc<Key>>::new(), Vec::new(), self.now());
        let mut operations = Vec::new();
        for _ in 0..=rng.below(BATCH_MAX) {
            let Some(key) = self.pool.begin(rng) else { continue };
            if keys.iter().any(|other| other.name == key.name) {
                self.pool.finish(&key, None);
                continue;
            }
            *asked += 1;
            let input = input(rng, &key.revisions(), client, *asked);
            asks.push((key.name.clone(), as_asked(&input)));
            let operation = Operation {
                client,
                key: key.name.clone(),
                called,
                returned: None,
                input,
                output: Output::Unknown,
            };
            operations.push((self.pool.note_asked(&operation), operation));
            keys.push(key);
        }
        if keys.is_empty() {
            return false;
        }
        let told = self.probe.batch(at, &asks).await;
        let returned = self.now();
        let mut all_refused = true;
        for ((key, (id, mut operation)), told) in keys.iter().zip(operations).zip(told) {
            let (output, why) = output(told, |done| match done {
                Done::Read(found) => Output::Read(found),
                Done::Written(revision) => Output::Written { revision },
                Done::Deleted => Output::Deleted,
            });
            all_refused &= output == Output::Refused;
            operation.returned = (output != Output::Unknown).then_some(returned);
            operation.output = output;
            self.count(&operation, returned, why);
            self.pool.finish(key, Some((id, operation)));
        }
        all_refused
    }

    /// Scans the keys of a shard that are in use, and says whether that was refused.
    async fn scan(&self, client: u64, rng: &mut Rng, at: usize) -> bool {
        let Some((keys, range)) = self.pool.begin_all(rng) else { return false };
        let called = self.now();
        let told = self.probe.scan(at, &range).await;
        let returned = self.now();
        let (reads, why) = match told {
            Told::Answer(mut seen) => {
                // Keys that were retired, or came into use meanwhile, have no part in it.
                seen.items.retain(|(name, ..)| keys.iter().any(|key| key.name == *name));
                let scanned =
                    Scanned { client, range: seen.range, called, returned, items: seen.items };
                (scanned.reads(keys.iter().map(|key| &key.name)), None)
            }
            Told::ConditionFailed(_) => {
                (Vec::new(), Some("a condition failed that was not sent".to_owned()))
            }
            Told::Refused(why) | Told::Unknown(why) => (Vec::new(), Some(why)),
        };
        let refused = why.is_some();
        self.count_one(if refused { Counts::Refused } else { Counts::Ok }, called, returned, why);
        for key in &keys {
            let read = reads.iter().find(|read| read.key == key.name);
            self.pool.finish(key, read.map(|read| (self.pool.note_asked(read), read.clone())));
        }
        refused
    }

    /// Microseconds since the load began.
    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn count(&self, operation: &Operation, returned: u64, why: Option<String>) {
        let outcome = match &operation.output {
            Output::Read(_) | Output::Written { .. } | Output::Deleted => Counts::Ok,
            Output::ConditionFailed { .. } => Counts::ConditionFailed,
            Output::Unknown if operation.input != Input::Get => Counts::Unknown,
            Output::Refused | Output::Unknown => Counts::Refused,
        };
        self.count_one(outcome, operation.called, returned, why);
    }

    fn count_one(&self, outcome: Counts, called: u64, returned: u64, why: Option<String>) {
        let mut counted = lock(&self.counted);
        counted.figures.count(
            outcome,
            Duration::from_micros(called),
            Duration::from_micros(returned),
        );
        if why.is_some() {
            counted.last_refusal = why;
        }
    }
}

/// An operation as it stands in a batch.
fn as_asked(input: &Input) -> Asked {
    match input {
        Input::Get => Asked::Get,
        Input::Put { value, condition } => Asked::Put(value.clone(), *condition),
        Input::Delete { condition } => Asked::Delete(*condition),
    }
}

/// What an answer is in a history, and why it is none.
fn output<T>(told: Told<T>, answered: impl FnOnce(T) -> Output) -> (Output, Option<String>) {
    match told {
        Told::Answer(answer) => (answered(answer), None),
        Told::ConditionFailed(current) => (Output::ConditionFailed { current }, None),
        Told::Refused(why) => (Output::Refused, Some(why)),
        Told::Unknown(why) => (Output::Unknown, Some(why)),
    }
}

/// How a key is read: mostly as the run reads, sometimes by lease, sometimes stale, with a bound or
/// without.
fn freshness(rng: &mut Rng) -> Freshness {
    match rng.below(100) {
        0..15 => Freshness::Lease,
        15..30 => Freshness::Stale(rng.pick(&[None, Some(300), Some(1_000), Some(10_000)])),
        _ => Freshness::Usual,
    }
}

/// Since when, in microseconds, what a read shows may have been the state: since it was asked for,
/// or, where it is stale, for as long as it says, rounded up. `None` where it says nothing. A bound
/// that it breaks does not move it back any further, so that the verdict falls.
fn state_since(called: u64, freshness: Freshness, age: Option<Duration>) -> Option<u64> {
    let Freshness::Stale(age_max) = freshness else { return Some(called) };
    let bound = age_max.map(Duration::from_millis);
    let age = [age, bound].into_iter().flatten().min()?;
    // Shown in whole milliseconds, and measured on another clock.
    let micros =
        u64::try_from((age + age / 100).as_micros()).unwrap_or(u64::MAX).saturating_add(2_000);
    Some(called.saturating_sub(micros))
}

/// Something to ask of a key whose last revisions are these.
fn input(rng: &mut Rng, revisions: &[Revision], client: u64, asked: u64) -> Input {
    let last = revisions.last().copied();
    // Mostly the last revision that somebody was shown, so that some of the conditions hold.
    let some = if rng.percent(75) { last } else { rng.choose(revisions).copied() };
    let at = some.map_or(Condition::Absent, Condition::At);
    let value = Bytes::from(format!("{client}-{asked}"));
    match rng.below(100) {
        0..40 => Input::Get,
        40..60 => Input::Put { value, condition: Condition::Always },
        60..76 => Input::Put { value, condition: at },
        76..82 => Input::Put { value, condition: Condition::Absent },
        82..86 => Input::Put { value, condition: Condition::Present },
        86..93 => Input::Delete { condition: Condition::Always },
        93..96 => Input::Delete { condition: Condition::Present },
        _ => Input::Delete { condition: some.map_or(Condition::Always, Condition::At) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_read_is_judged_by_its_age_and_by_no_more_than_its_bound() {
        let (age, second) = (Some(Duration::from_millis(100)), 1_000_000);
        assert_eq!(state_since(second, Freshness::Usual, age), Some(second));
        assert_eq!(state_since(second, Freshness::Lease, None), Some(second));
        assert_eq!(
            state_since(second, Freshness::Stale(None), age),
            Some(second - 101_000 - 2_000)
        );
        assert_eq!(
            state_since(second, Freshness::Stale(Some(50)), age),
            Some(second - 50_500 - 2_000),
            "older than was asked for"
        );
        assert_eq!(state_since(second, Freshness::Stale(None), None), None, "nothing is promised");
        assert_eq!(state_since(5, Freshness::Stale(None), age), Some(0));
        let mut rng = Rng::new(1);
        let drawn: Vec<_> = (0..1000).map(|_| freshness(&mut rng)).collect();
        let count = |wanted: fn(&Freshness) -> bool| drawn.iter().filter(|f| wanted(f)).count();
        assert!(count(|f| *f == Freshness::Usual) > 600 && count(|f| *f == Freshness::Lease) > 100);
        assert!(
            count(|f| *f == Freshness::Stale(None)) > 10
                && count(|f| matches!(f, Freshness::Stale(Some(_)))) > 50
        );
    }

    #[test]
    fn every_question_is_asked_and_conditions_use_what_was_seen() {
        let mut rng = Rng::new(1);
        let seen = [Revision(3), Revision(8)];
        let inputs: Vec<Input> = (0..2_000).map(|n| input(&mut rng, &seen, 1, n)).collect();
        let count =
            |wanted: fn(&Input) -> bool| inputs.iter().filter(|input| wanted(input)).count();
        assert!(count(|input| *input == Input::Get) > 600);
        assert!(
            count(|input| matches!(
                input,
                Input::Put { condition: Condition::At(Revision(8)), .. }
            )) > 150
        );
        assert!(
            count(|input| matches!(
                input,
                Input::Put { condition: Condition::At(Revision(3)), .. }
            )) > 10
        );
        assert!(
            count(|input| matches!(input, Input::Delete { condition: Condition::Present })) > 20
        );
        assert!(
            count(|input| matches!(input, Input::Put { condition: Condition::Absent, .. })) > 60
        );
    }
}
