//! Golden scripts: `testdata/<behaviour>.txt`, in the spirit of etcd-io/raft's and toydb's.
//!
//! ```text
//! # A comment; stays.
//! tick all 3              A command, and below it
//! ---                     what came of it, up to an empty line.
//! n1 -> n2  s2 t1 would you vote? …
//! ```
//!
//! The output of every command is compared with what stands in the file; `UPDATE_GOLDEN=1 cargo test -p flotilla-node
//! --no-default-features golden` writes the file anew. Read what it wrote before you commit it.
//!
//! One small handler per command, in [`Script::command`]. A command behind `quiet` says nothing.

use super::cluster::{self, Cluster, FOREVER, SHARD, config};
use crate::core::{CoreConfig, Event, Ticket};
use crate::sim::member::Lane;
use flotilla_router::{Consistency, NodeId, ShardId};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

/// A script while it runs.
struct Script {
    cluster: Cluster,
}

/// Runs `testdata/<name>.txt`.
pub(super) fn golden(name: &str) {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "testdata", &format!("{name}.txt")].iter().collect();
    let found = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let made = run(&found);
    if made == found {
        return;
    }
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, made).unwrap();
        return;
    }
    let differs =
        found.lines().zip(made.lines()).position(|(a, b)| a != b).unwrap_or(found.lines().count().min(made.lines().count()));
    let line = |text: &str| text.lines().nth(differs).unwrap_or("(end)").to_owned();
    panic!(
        "{}:{} differs\n  in the file: {}\n  as it is:    {}\nUPDATE_GOLDEN=1 writes the file anew; read it then\n--- all of it ---\n{made}",
        path.display(),
        differs + 1,
        line(&found),
        line(&made),
    );
}

/// The script with the output of this run in place of that in the text.
fn run(text: &str) -> String {
    let mut script = Script { cluster: Cluster::new(3, 1, config()) };
    script.cluster.take_trace();
    let mut out = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        writeln!(out, "{line}").unwrap();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let said = script.line(line);
        // What the file says came of it, up to an empty line, makes room for what did.
        let had_output = lines.next_if_eq(&"---").is_some();
        if had_output {
            while lines.next_if(|line| !line.is_empty()).is_some() {}
        }
        if !said.is_empty() {
            writeln!(out, "---").unwrap();
            said.iter().for_each(|said| writeln!(out, "{said}").unwrap());
            if lines.peek().is_some_and(|line| !line.is_empty()) {
                writeln!(out).unwrap();
            }
        } else if had_output {
            lines.next_if_eq(&"");
        }
    }
    out
}

fn node(word: &str) -> NodeId {
    NodeId(word.trim_start_matches('n').parse().unwrap_or_else(|_| panic!("{word:?} is not a node")))
}

fn number(word: &str) -> u64 {
    word.parse().unwrap_or_else(|_| panic!("{word:?} is not a number"))
}

fn milliseconds(word: &str) -> Duration {
    Duration::from_millis(number(word))
}

/// The value behind `key=`, if it is there.
fn option<'a>(words: &[&'a str], key: &str) -> Option<&'a str> {
    words.iter().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

fn configured(words: &[&str]) -> CoreConfig {
    let mut config = config();
    for word in words {
        let Some((key, value)) = word.split_once('=') else { panic!("{word:?} is not key=value") };
        match key {
            "nodes" | "shards" => {}
            "lease" => config.reads.lease = value == "on",
            "balance" => config.raft.balance_leaders = value == "on",
            "pre_vote" => config.raft.pre_vote = value == "on",
            "inflight_writes" => config.raft.max_inflight_writes = number(value) as usize,
            "entry_bytes" => config.raft.max_entry_size_bytes = number(value),
            "msg_bytes" => config.raft.max_size_per_msg_bytes = number(value),
            "log_bytes" => config.log.bytes_per_shard_max = number(value),
            "cache_bytes" => config.log.cache_bytes_max = number(value),
            "seed" => config.seed = number(value),
            other => panic!("no option {other:?}"),
        }
    }
    config
}

impl Script {
    fn line(&mut self, line: &str) -> Vec<String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        if words[0] == "quiet" {
            self.command(words[1], &words[2..]);
            self.cluster.take_trace();
            return Vec::new();
        }
        let said = self.command(words[0], &words[1..]);
        let mut all = self.cluster.take_trace();
        all.extend(said);
        all
    }

    /// Carries a command out; what it says itself comes behind the trace.
    fn command(&mut self, command: &str, words: &[&str]) -> Vec<String> {
        match command {
            "cluster" => self.found(words),
            "tick" => self.tick(words),
            "run" => self.cluster.run(number(words[0])),
            "settle" => self.cluster.settle(),
            "pass" => drop(self.cluster.pass(node(words[0]))),
            "pause" => self.cluster.pause(node(words[0]), milliseconds(words[1])),
            "deliver" => self.deliver(words),
            "drop" => self.drop_packets(words),
            "partition" => self.partition(words),
            "cut" => self.cluster.cut((node(words[0]), node(words[1]))),
            "heal" => self.cluster.network.heal(),
            "hold" if words.len() == 2 && words[1].starts_with('n') => {
                self.cluster.network.hold((node(words[0]), node(words[1])));
            }
            "hold" => self.cluster.running_mut(node(words[0])).hold(lane(words[1])),
            "release" if words.len() == 2 && words[1].starts_with('n') => {
                self.cluster.network.release((node(words[0]), node(words[1])));
            }
            "release" => self.cluster.running_mut(node(words[0])).release(lane(words[1])),
            "work" => self.work(words),
            "crash" => self.cluster.crash(node(words[0]), option(words, "keep").map_or(0, |n| number(n) as usize)),
            "start" => self.cluster.start(node(words[0])),
            "put" => return self.put(words),
            "fill" => self.fill(words),
            "get" => return self.get(words),
            "transfer" => self.transfer(words),
            "drain" => self.event(words, Event::Drain),
            "disk" => {
                let (free_bytes, reserve_bytes) = (number(words[1]), number(words[2]));
                self.event(words, Event::Disk { free_bytes, reserve_bytes });
            }
            "unreachable" => self.event(words, Event::NodeUnreachable { node: node(words[1]) }),
            "status" => return self.status(),
            "leaders" => return self.leaders(),
            "disk_log" => return self.disk_log(words),
            "look" => return self.look(words),
            "same" => return self.same(),
            "counters" => return self.counters(words),
            "forge_heartbeat" => self.forge_heartbeat(words),
            other => panic!("no command {other:?}"),
        }
        Vec::new()
    }

    /// `cluster nodes=3 shards=1 …`: a new cluster.
    fn found(&mut self, words: &[&str]) {
        let count = |key, default| option(words, key).map_or(default, number);
        self.cluster = Cluster::new(count("nodes", 3), count("shards", 1), configured(words));
    }

    /// `tick <node>|all [n]`: time passes there; nothing is delivered.
    fn tick(&mut self, words: &[&str]) {
        let ticks = words.get(1).map_or(1, |n| number(n));
        let all = self.cluster.nodes();
        for _ in 0..ticks {
            for id in all.iter().copied().filter(|id| words[0] == "all" || *id == node(words[0])) {
                if self.cluster.is_up(id) {
                    self.cluster.tick(id, 1);
                }
            }
        }
    }

    /// `deliver <from> <to> [n|all]`, and a pass at the receiver.
    fn deliver(&mut self, words: &[&str]) {
        let link = (node(words[0]), node(words[1]));
        let n = match words.get(2) {
            Some(&"all") => self.cluster.network.waiting(link),
            Some(n) => number(n) as usize,
            None => 1,
        };
        for _ in 0..n {
            assert!(self.cluster.deliver(link, 0), "nothing waits on {link:?}");
        }
        self.cluster.pass(link.1);
    }

    /// `drop <from> <to> [n|all]`.
    fn drop_packets(&mut self, words: &[&str]) {
        let link = (node(words[0]), node(words[1]));
        let n = match words.get(2) {
            Some(&"all") => self.cluster.network.waiting(link),
            Some(n) => number(n) as usize,
            None => 1,
        };
        for _ in 0..n {
            assert!(self.cluster.drop_packet(link, 0), "nothing waits on {link:?}");
        }
    }

    /// `partition 1 | 2 3`.
    fn partition(&mut self, words: &[&str]) {
        let mut sides = words.split(|word| *word == "|").map(|side| side.iter().map(|w| node(w)).collect::<Vec<_>>());
        let (side, other) = (sides.next().unwrap(), sides.next().unwrap());
        self.cluster.partition(&side, &other);
    }

    /// `work <node> <lane>`: its oldest job, and a pass.
    fn work(&mut self, words: &[&str]) {
        let id = node(words[0]);
        assert!(self.cluster.work(id, lane(words[1])), "node {id} has nothing to do there");
        self.cluster.pass(id);
    }

    /// `put <node> k=v … [within=ms]`: all in one pass.
    fn put(&mut self, words: &[&str]) -> Vec<String> {
        let id = node(words[0]);
        let now = self.cluster.member(id).now;
        let deadline = option(words, "within").map_or(FOREVER, |ms| now + milliseconds(ms));
        let mut tickets = Vec::new();
        for word in words[1..].iter().filter(|word| !word.starts_with("within=")) {
            let (key, value) = word.split_once('=').expect("key=value");
            tickets.push(self.cluster.post_put(id, key, value, deadline));
        }
        self.asked(id, &tickets)
    }

    /// `fill <node> <puts> <bytes>`: each in an entry of its own, settled.
    fn fill(&mut self, words: &[&str]) {
        let (id, n, bytes) = (node(words[0]), number(words[1]), number(words[2]) as usize);
        for i in 0..n {
            let key = format!("fill{i}");
            let ticket = self.cluster.post_put(id, &key, &"x".repeat(bytes), FOREVER);
            self.cluster.settle();
            assert!(self.cluster.answer(ticket).is_some(), "the put was not answered");
        }
    }

    /// `get <node> <key> … [lease|stale|stale=ms] [within=ms]`: all in one pass.
    fn get(&mut self, words: &[&str]) -> Vec<String> {
        let id = node(words[0]);
        let now = self.cluster.member(id).now;
        let deadline = option(words, "within").map_or(FOREVER, |ms| now + milliseconds(ms));
        let mut consistency = Consistency::Linearizable;
        let mut keys = Vec::new();
        for word in &words[1..] {
            match *word {
                "lease" => consistency = Consistency::Lease,
                "stale" => consistency = Consistency::Stale { age_max: None },
                word if word.starts_with("within=") => {}
                word => match word.strip_prefix("stale=") {
                    Some(ms) => consistency = Consistency::Stale { age_max: Some(milliseconds(ms)) },
                    None => keys.push(word),
                },
            }
        }
        let tickets: Vec<_> = keys.iter().map(|key| self.cluster.post_get(id, key, consistency, deadline)).collect();
        self.asked(id, &tickets)
    }

    fn asked(&mut self, id: NodeId, tickets: &[Ticket]) -> Vec<String> {
        self.cluster.pass(id);
        let answer = |t: &Ticket| Some(format!("#{}: {}", t.0, cluster::answer(self.cluster.answer(*t)?)));
        tickets.iter().map(|t| answer(t).unwrap_or_else(|| format!("#{} waits", t.0))).collect()
    }

    /// `transfer <node> <to> [shard=n]`.
    fn transfer(&mut self, words: &[&str]) {
        let (id, to) = (node(words[0]), node(words[1]));
        let shard = option(words, "shard").map_or(SHARD, |n| ShardId(number(n)));
        self.cluster.post_transfer(id, shard, to);
        self.cluster.pass(id);
    }

    fn event(&mut self, words: &[&str], event: Event) {
        let id = node(words[0]);
        self.cluster.post(id, event);
        self.cluster.pass(id);
    }

    /// One line per node and shard.
    fn status(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        for id in self.cluster.nodes() {
            for shard in self.cluster.shard_ids() {
                let Some(replica) = self.cluster.replica(id, shard) else {
                    lines.push(format!("n{id} is down"));
                    break;
                };
                let raft = &replica.group.raw.raft;
                let aside = if replica.group.quarantined.is_some() { ", set aside" } else { "" };
                lines.push(format!(
                    "n{id} s{shard} {:?} of term {}, log {}..{}, committed {}, applied {}{aside}",
                    raft.state,
                    raft.term,
                    raft.raft_log.first_index(),
                    raft.raft_log.last_index(),
                    raft.raft_log.committed,
                    replica.group.applied.index,
                ));
            }
        }
        lines
    }

    /// How many shards each node leads.
    fn leaders(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        for id in self.cluster.nodes() {
            if self.cluster.is_up(id) {
                lines.push(format!("n{id} leads {}", self.cluster.running_mut(id).core.counters().leaders));
            }
        }
        lines
    }

    /// `disk_log <node>`: what a restart would find there.
    fn disk_log(&mut self, words: &[&str]) -> Vec<String> {
        let found = self.cluster.member(node(words[0])).on_disk(SHARD);
        let hs = found.hard_state;
        vec![format!(
            "truncated {}@{}, last {}@{}, applied {}, term {} vote {} commit {}",
            found.truncated.index,
            found.truncated.term,
            found.last.index,
            found.last.term,
            found.applied.index,
            hs.term,
            hs.vote,
            hs.commit
        )]
    }

    /// `look <node> <key> …`: what is applied there.
    fn look(&mut self, words: &[&str]) -> Vec<String> {
        let id = node(words[0]);
        let show = |key: &&str| match self.cluster.look(id, key) {
            Some((revision, value)) => format!("{key}={} r{revision}", value.escape_ascii()),
            None => format!("{key} is missing"),
        };
        words[1..].iter().map(show).collect()
    }

    /// Whether all nodes that run hold the same data at the same place.
    fn same(&mut self) -> Vec<String> {
        let hashes: Vec<_> = self.cluster.nodes().into_iter().filter_map(|id| self.cluster.hash(id, SHARD)).collect();
        vec![if hashes.windows(2).all(|pair| pair[0] == pair[1]) {
            format!("all {} are the same", hashes.len())
        } else {
            format!("they differ: {hashes:?}")
        }]
    }

    /// `counters <node>`: what the core counted.
    fn counters(&mut self, words: &[&str]) -> Vec<String> {
        let counters = self.cluster.running_mut(node(words[0])).core.counters();
        vec![format!(
            "commands {}, proposals {}, read contexts {}, lease reads {}, refused {}",
            counters.commands, counters.proposals, counters.read_contexts, counters.lease_reads, counters.messages_refused
        )]
    }

    /// `forge_heartbeat <from> <to> <commit>`: as a leader that knows more of the receiver's log than the receiver.
    fn forge_heartbeat(&mut self, words: &[&str]) {
        let (from, to) = (node(words[0]), node(words[1]));
        let envelope = self.cluster.forge(from, to, |message| {
            message.set_msg_type(raft::eraftpb::MessageType::MsgHeartbeat);
            message.commit = number(words[2]);
        });
        self.cluster.post(to, Event::Message { from, envelope });
        self.cluster.pass(to);
    }
}

/// A lane by its name.
fn lane(name: &str) -> Lane {
    match name {
        "persist" => Lane::Persist,
        "apply" => Lane::Apply,
        "install" => Lane::Install,
        "build" => Lane::Build,
        "fetch" => Lane::Fetch,
        other => panic!("no lane {other:?}; there are persist, apply, build, fetch"),
    }
}
