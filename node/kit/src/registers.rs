//! Registers in every shard, read and judged together.
//!
//! What one of them is, and who judges it, is told in `register`; who writes to them, in `load`.

use super::admin::bytes_of;
use super::http::{Client, is_not_connected};
use super::journal::{self, Journal, Record, Totals};
use super::load::Outcome;
use super::process::lock;
use super::register::{Register, attempt_of};
use super::{Fleet, PATIENCE, Rng, until};
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// How many registers are remembered as written of late.
const RECENT: usize = 200;

/// Registers in every shard.
pub struct Registers {
    /// They come by turns of the shards, so that neighbours in number differ in shard; those for
    /// large values come last.
    pub all: Vec<Register>,
    /// How many are for ordinary values.
    pub(crate) small: usize,
    by_key: BTreeMap<Vec<u8>, usize>,
    record: Arc<Record>,
    journal: Option<PathBuf>,
    recent: Mutex<VecDeque<usize>>,
    /// Held for reading by every attempt of a load; for writing, when nothing is to be written.
    pub(crate) gate: RwLock<()>,
    /// Whether the load rests for a while.
    pub(crate) resting: AtomicBool,
}

impl Registers {
    /// `per_shard` registers in every shard; nothing is written yet.
    pub fn new(fleet: &Fleet, name: &str, per_shard: usize) -> Self {
        Self::of(&fleet.shard_prefixes(1, name), per_shard, 0, None)
    }

    /// The same, and so many for large values; all that happens stands in a file beside the nodes'
    /// folders as well.
    pub fn journaled(fleet: &Fleet, per_shard: usize, large_per_shard: usize) -> Self {
        let journal = fleet.scratch().join("journal.ndjson");
        Self::of(&fleet.shard_prefixes(1, "crash"), per_shard, large_per_shard, Some(journal))
    }

    /// Registers in these shards, under these prefixes.
    pub fn of(
        shards: &[(u64, Vec<u8>)],
        per_shard: usize,
        large_per_shard: usize,
        journal: Option<PathBuf>,
    ) -> Self {
        let record = Record::new(journal.as_deref().map(Journal::new));
        let mut all = Vec::new();
        let names = (0..per_shard)
            .map(|i| format!("{i:05}"))
            .chain((0..large_per_shard).map(|i| format!("large{i:02}")));
        for name in names {
            for (shard, prefix) in shards {
                let key = [prefix, format!("{shard}-{name}").as_bytes()].concat();
                all.push(Register::new(*shard, all.len(), key, record.clone()));
            }
        }
        let by_key = all.iter().map(|register| (register.key.clone(), register.number)).collect();
        let (recent, gate, resting) = Default::default();
        Self {
            small: shards.len() * per_shard,
            all,
            by_key,
            record,
            journal,
            recent,
            gate,
            resting,
        }
    }

    /// The registers of a shard that carry large values.
    pub(crate) fn large(&self, shard: u64) -> Vec<usize> {
        (self.small..self.all.len()).filter(|number| self.all[*number].shard == shard).collect()
    }

    /// How many writes were acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.all.iter().map(Register::acknowledged).sum()
    }

    /// How many writes were tried so far.
    pub fn attempts(&self) -> u64 {
        self.all.iter().map(Register::attempts).sum()
    }

    /// Remembers a register as written of late.
    pub(crate) fn note_written(&self, register: &Register) {
        let mut recent = lock(&self.recent);
        recent.push_back(register.number);
        if recent.len() > RECENT {
            recent.pop_front();
        }
    }

    /// Judges all, as far as something was noted since.
    fn judge(&self) {
        for register in &self.all {
            register.judge().unwrap_or_else(|why| panic!("{why}"));
        }
    }

    /// Reads every register through each of these nodes, all of which answer, and judges all. How
    /// many were ever written.
    pub fn check(&self, client: &Client, nodes: &[u64]) -> usize {
        for (node, register) in
            nodes.iter().flat_map(|node| self.all.iter().map(move |register| (*node, register)))
        {
            let (outcome, answer) = register.read(client, node, "");
            assert_eq!(
                outcome,
                Outcome::Done,
                "through node {node}: {:?}",
                answer.map(|answer| answer.text())
            );
        }
        self.judge();
        self.all.iter().filter(|register| register.acknowledged() > 0).count()
    }

    /// Reads some registers that were written of late and some others, each through one of these
    /// nodes until it answers, under load too, and judges all.
    pub fn check_some(&self, client: &Client, nodes: &[u64], rng: &mut Rng, count: usize) {
        let recent: Vec<usize> = lock(&self.recent).iter().copied().collect();
        for i in 0..count {
            let any = rng.below(self.all.len() as u64) as usize;
            let register =
                &self.all[if i % 3 == 2 || recent.is_empty() { any } else { rng.pick(&recent) }];
            let node = rng.pick(nodes);
            until(&format!("node {node} answers"), PATIENCE, || {
                (register.read(client, node, "").0 == Outcome::Done).then_some(())
            });
        }
        self.judge();
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

    /// Scans all keys through a node, and judges all. How many are there.
    pub fn check_all(&self, client: &Client, node: u64) -> usize {
        let called = self.record.now();
        let seen = self
            .scan(client, node, "")
            .unwrap_or_else(|| panic!("node {node} does not answer scans"));
        let returned = self.record.now();
        for register in &self.all {
            register.saw(node, called, returned, seen.get(&register.number).copied());
        }
        self.judge();
        seen.len()
    }

    /// Scans what a node's own replicas hold: what was so at any time. How many keys that were;
    /// `None` where the node ended meanwhile, or does not answer.
    pub fn check_stale(&self, client: &Client, node: u64) -> Option<usize> {
        let seen = self.scan(client, node, "&consistency=stale")?;
        for (number, shown) in &seen {
            self.all[*number].saw(node, 0, self.record.now(), Some(*shown));
        }
        self.judge();
        Some(seen.len())
    }

    /// Everything that a node shows: revision and attempt of each register. A key that is none of
    /// ours is a failure.
    fn scan(&self, client: &Client, node: u64, query: &str) -> Option<BTreeMap<usize, (u64, u64)>> {
        let deadline = Instant::now() + PATIENCE;
        let (mut all, mut cursor) = (BTreeMap::new(), String::new());
        loop {
            let path = format!("/v1/kv?limit=2000&max_bytes=4000000{query}{cursor}");
            let page = match client.send(node, "GET", &path, &[], None) {
                Ok(answer) if answer.status == 200 => answer.json(),
                Err(error) if is_not_connected(&error) => return None,
                _ if Instant::now() > deadline => return None,
                _ => {
                    std::thread::sleep(Duration::from_millis(50));
                    continue;
                }
            };
            for item in page["items"].as_array().unwrap() {
                let number = self.by_key.get(&bytes_of(item, "key").unwrap());
                let number = *number
                    .unwrap_or_else(|| panic!("node {node} shows a key that nobody wrote: {item}"));
                let attempt = attempt_of(number, &bytes_of(item, "value").unwrap());
                let attempt = attempt
                    .unwrap_or_else(|why| panic!("scanned through node {node}: {why}: {item}"));
                all.insert(number, (item["revision"].as_u64().unwrap(), attempt));
            }
            match page["cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return Some(all),
            }
        }
    }

    /// Judges the journal, as somebody would who has nothing but the file.
    pub fn judge_file(&self) -> Result<Totals, String> {
        let path = self.journal.as_deref().expect("they have a journal");
        journal::judge(path).map_err(|why| format!("{}: {why}", path.display()))
    }
}
