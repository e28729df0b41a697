//! Fuzzes the core with what peers could send: a real node with real raft-rs, log and apply, on an
//! engine in memory, whose peers say whatever a fuzzer likes. Nothing panics; every ticket is
//! answered exactly once; and what was written can be started from again, whatever was said.
//!
//! ```text
//! input := options (1) ‖ step*
//! step  := what (1) ‖ with what ([`Script`])
//! ```
//!
//! Random bytes would hardly ever pass the first check. So numbers are drawn close to what the
//! replica itself is at, peers may answer what they were asked as honest ones would, and then one
//! field of it is changed: that is where the traps of raft-rs lie (`peers.rs`).
//!
//! The node around the core is as in the simulation: what the core asks of storage waits in lanes,
//! and a step carries out the oldest. An error of apply ends the run, as it ends the process: a
//! leader that commits nonsense is beyond what Raft promises against.

use super::peers::{self, ME, SHARDS, conf_state, honest_answer, one_key, shards, spoil};
use super::script::Script;
use super::template::Template;
use bytes::{BufMut, Bytes};
use flotilla_node::core::config::{LogConfig, RaftConfig, ReadsConfig};
use flotilla_node::core::report::ShardReport;
use flotilla_node::core::wire::{self, Item};
use flotilla_node::core::{
    Ask, Beat, Built, CoreConfig, Delivery, Done, Effect, Envelope, Event, Identity, Node,
    SnapshotId, Ticket, Time,
};
use flotilla_router::{
    Command, Condition, Consistency, Incarnation, KeyRange, NodeId, Op, ReplicaId, Revision,
    ShardId,
};
use flotilla_storage::{
    Applier, ApplyWork, Engine as _, HardState, LogBatch, MemoryEngine, Recovered, SnapshotFile,
    SnapshotManifest, append, bootstrap, log, recover, snapshot,
};
use raft::eraftpb::MessageType;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::LazyLock;

/// A script has at most so many steps.
const STEPS_MAX: usize = 96;
/// Messages that left and wait for an answer; older ones are lost.
const SENT_MAX: usize = 32;
/// A node that was just bootstrapped.
struct Bootstrapped {
    disk: Template,
    /// What it finds when it starts.
    found: Vec<Recovered>,
}

/// With the meta shard, and without it.
static BOOTSTRAPPED: LazyLock<[Bootstrapped; 2]> = LazyLock::new(|| {
    [0, 1].map(|first| {
        let engine = MemoryEngine::new();
        bootstrap(&engine, &shards()[first..], ME, &[]).expect("memory does not fail");
        let found = recover(&engine).expect("it was just bootstrapped");
        Bootstrapped { disk: Template::of(&engine), found }
    })
});

/// Runs one input.
pub(crate) fn run(data: &[u8]) {
    let mut script = Script::new(data);
    let mut world = World::new(script.u8());
    for _ in 0..STEPS_MAX {
        if script.is_empty() || world.ended {
            break;
        }
        world.step(&mut script);
    }
    world.finish();
}

/// Something that the core asked of storage.
enum Job {
    Persist {
        write: u64,
        batch: LogBatch,
    },
    Apply {
        work: Vec<ApplyWork>,
    },
    Install {
        shard: ShardId,
        replica: ReplicaId,
        staged: SnapshotId,
        hard_state: HardState,
        clear: Vec<KeyRange>,
    },
    Build {
        shard: ShardId,
        snapshot: SnapshotId,
    },
    Fetch {
        fetch: u64,
        shard: ShardId,
        low: u64,
        high: u64,
        bytes_max: u64,
    },
}

/// Which worker does a job; each does its own in order.
const PERSIST: usize = 0;
const APPLY: usize = 1;
const OTHERS: usize = 2;

/// One node, and what would be around it.
struct World {
    config: CoreConfig,
    engine: MemoryEngine,
    incarnation: u64,
    now: Time,
    core: Node,
    applier: Applier,
    lanes: [VecDeque<Job>; 3],
    /// What left, for peers to answer.
    sent: VecDeque<(NodeId, Envelope)>,
    /// Snapshots on their way; each end of one must be reported.
    streams: VecDeque<(ShardId, ReplicaId)>,
    staged: BTreeMap<SnapshotId, SnapshotManifest>,
    next_staged: u64,
    /// Who waits for an answer.
    open: BTreeSet<Ticket>,
    next_ticket: u64,
    next_write: u64,
    /// The shards as they were after the last pass.
    reports: BTreeMap<ShardId, ShardReport>,
    /// Apply has failed: the process is gone.
    ended: bool,
}

impl World {
    fn new(options: u8) -> Self {
        let config = CoreConfig {
            raft: RaftConfig {
                election_ticks: 10,
                heartbeat_ticks: 2,
                pre_vote: options & 1 == 0,
                check_quorum: options & 2 == 0,
                inflight_messages_max: if options & 4 == 0 { 256 } else { 1 },
                inflight_writes_max: if options & 8 == 0 { 1 } else { 3 },
                message_bytes_max: if options & 16 == 0 { 1 << 20 } else { 1 },
                ..RaftConfig::default()
            },
            reads: ReadsConfig {
                lease: options & 2 == 0 && options & 32 != 0,
                ..ReadsConfig::default()
            },
            // So small that a few large writes make the log forget its front, and its cache the
            // bodies.
            log: LogConfig {
                bytes_per_shard_max: 1 << 16,
                cache_bytes_max: 1 << 16,
                ..LogConfig::default()
            },
            seed: 7,
            ..CoreConfig::default()
        };
        config.validate().expect("these options are allowed");
        // Without the meta shard, mostly: it is a group like the others, and takes a third of the
        // time.
        let bootstrapped = &BOOTSTRAPPED[usize::from(options & 64 == 0)];
        let engine = bootstrapped.disk.engine();
        let applier = Applier::new(&engine, &bootstrapped.found).expect("it was recovered");
        let core = node(&config, 1, bootstrapped.found.clone());
        let mut world = Self {
            config,
            engine,
            incarnation: 1,
            now: Time::ZERO,
            core,
            applier,
            lanes: Default::default(),
            sent: VecDeque::new(),
            streams: VecDeque::new(),
            staged: BTreeMap::new(),
            next_staged: 1,
            open: BTreeSet::new(),
            next_ticket: 1,
            next_write: 1,
            reports: BTreeMap::new(),
            ended: false,
        };
        world.pass();
        world
    }

    /// One step of the script.
    fn step(&mut self, s: &mut Script<'_>) {
        match s.below(24) {
            0 => self.pass(),
            1..=4 => {
                let (from, envelope) = self.message(s);
                self.core.handle(Event::Message { from, envelope });
            }
            5..=7 => self.answer(s),
            8 => self.converse(),
            9 => {
                for _ in 0..1 + s.below(24) {
                    self.now += Time::from_millis(100);
                    self.core.handle(Event::Clock { now: self.now });
                    self.core.handle(Event::Tick);
                }
            }
            10 => self.work(PERSIST),
            11 => self.work(APPLY),
            12 => self.work(OTHERS),
            13 => self.frame(s),
            14 | 15 => self.command(s),
            16 => {
                let consistency = match s.below(4) {
                    0 => Consistency::Linearizable,
                    1 => Consistency::Lease,
                    2 => Consistency::Stale { age_max: None },
                    _ => Consistency::Stale { age_max: Some(Time::from_millis(s.number(100))) },
                };
                let (ticket, shard, deadline) = (self.ticket(), s.pick(&SHARDS), self.deadline(s));
                self.core.handle(Event::Ask {
                    ticket,
                    ask: Ask::Read { shard, consistency },
                    deadline,
                });
            }
            17 => {
                let (ticket, shard, to) = (self.ticket(), s.pick(&SHARDS), NodeId(s.number(2)));
                self.core.handle(Event::Ask {
                    ticket,
                    ask: Ask::Transfer { shard, to },
                    deadline: Time::MAX,
                });
            }
            18 | 19 => self.snapshot(s),
            20 => self.stream_ended(s.u8() & 1 == 0),
            21 => self.restart(s.below(4)),
            22 => {
                let beat = Beat {
                    leaders: u32::from(s.u8()),
                    replicas: s.number(0) as u32,
                    draining: s.u8() & 1 == 1,
                    disk_full: s.u8() & 1 == 1,
                };
                self.core.handle(Event::Beat { from: NodeId(s.number(2)), beat });
            }
            _ => match s.below(5) {
                0 => self.core.handle(Event::NodeUnreachable { node: NodeId(s.number(2)) }),
                1 => self.core.handle(Event::NodeReachable {
                    node: NodeId(s.number(2)),
                    incarnation: Incarnation(s.number(1)),
                }),
                2 => self.core.handle(Event::Drain),
                3 => self
                    .core
                    .handle(Event::Disk { free_bytes: s.number(5), reserve_bytes: s.number(5) }),
                _ => self.now += Time::from_millis(s.number(500).min(1 << 40)),
            },
        }
    }

    /// Ends a pass and takes in what it came to.
    fn pass(&mut self) {
        self.core.handle(Event::Ask {
            ticket: Ticket(0),
            ask: Ask::Inspect { after: ShardId(0), limit: 10 },
            deadline: Time::MAX,
        });
        for effect in self.core.finish_pass() {
            match effect {
                Effect::Send { to, messages, .. } => {
                    self.sent.extend(messages.into_iter().map(|message| (to, message)))
                }
                Effect::Persist { write, batch } => {
                    assert_eq!(write, self.next_write, "writes are numbered one after the other");
                    self.next_write += 1;
                    self.lanes[PERSIST].push_back(Job::Persist { write, batch });
                }
                Effect::Apply { work } => self.lanes[APPLY].push_back(Job::Apply { work }),
                Effect::InstallSnapshot { shard, replica, staged, hard_state, at: _, clear } => {
                    self.lanes[APPLY].push_back(Job::Install {
                        shard,
                        replica,
                        staged,
                        hard_state,
                        clear,
                    });
                }
                Effect::BuildSnapshot { shard, snapshot } => {
                    self.lanes[OTHERS].push_back(Job::Build { shard, snapshot })
                }
                Effect::FetchEntries { fetch, shard, low, high, bytes_max } => {
                    self.lanes[OTHERS].push_back(Job::Fetch { fetch, shard, low, high, bytes_max });
                }
                Effect::SendSnapshot { replica, envelope, .. } => {
                    self.streams.push_back((envelope.shard, replica))
                }
                Effect::DiscardStaged { staged } => {
                    assert!(
                        self.staged.remove(&staged).is_some(),
                        "{staged:?} is discarded, which is not there"
                    );
                }
                Effect::Read { tickets, .. } => {
                    tickets.into_iter().for_each(|ticket| self.close(ticket))
                }
                Effect::Reply { result: Ok(Done::Report(shards)), .. } => self.note(shards),
                Effect::Reply { ticket, .. } => self.close(ticket),
                Effect::DropSnapshot { .. }
                | Effect::PublishLeader { .. }
                | Effect::PublishDescriptor { .. }
                | Effect::Drained
                | Effect::Quarantined { .. } => {}
            }
        }
        let surplus = self.sent.len().saturating_sub(SENT_MAX);
        self.sent.drain(..surplus);
    }

    /// Takes note of what the shards are now. What a replica knows to be committed and applied
    /// never shrinks while it lives.
    fn note(&mut self, shards: Vec<ShardReport>) {
        for report in shards {
            let shard = report.descriptor.id;
            assert!(
                report.applied <= report.committed,
                "shard {shard} applied what is not committed: {report:?}"
            );
            assert!(
                report.committed <= report.log.1,
                "shard {shard} committed what it does not have: {report:?}"
            );
            if let Some(before) = self.reports.insert(shard, report) {
                let now = &self.reports[&shard];
                assert!(
                    now.term >= before.term,
                    "the term of shard {shard} fell from {} to {}",
                    before.term,
                    now.term
                );
                assert!(
                    now.committed >= before.committed && now.applied >= before.applied,
                    "{before:?} became {now:?}"
                );
            }
        }
    }

    fn ticket(&mut self) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.open.insert(ticket);
        ticket
    }

    fn close(&mut self, ticket: Ticket) {
        assert!(self.open.remove(&ticket), "{ticket:?} is answered twice, or never asked");
    }

    fn deadline(&self, s: &mut Script<'_>) -> Time {
        self.now + Time::from_millis(u64::from(s.u8()) * 40)
    }

    /// Carries out the oldest job of a lane.
    fn work(&mut self, lane: usize) {
        let Some(job) = self.lanes[lane].pop_front() else { return };
        let event = match job {
            Job::Persist { write, batch } => {
                append(&self.engine, &batch).expect("memory does not fail");
                Event::Persisted { write }
            }
            Job::Apply { work } => match self.applier.apply(&self.engine, work) {
                Ok(applied) => Event::Applied { applied },
                Err(_) => {
                    self.ended = true;
                    return;
                }
            },
            Job::Install { shard, replica, staged, hard_state, clear } => {
                let manifest = self.staged.remove(&staged).expect("what is installed was staged");
                assert_eq!(
                    manifest.descriptor.id, shard,
                    "a snapshot of another shard is installed"
                );
                let folder = self.folder(staged);
                snapshot::install(&self.engine, &manifest, &folder, replica, hard_state, &clear)
                    .expect("it was verified");
                self.applier.installed(&manifest);
                Event::SnapshotInstalled { shard, at: manifest.at, revision: manifest.revision }
            }
            Job::Build { shard, snapshot: id } => {
                let folder = PathBuf::from(format!("built-{}", id.0));
                let built = snapshot::build(&self.engine, &self.engine.view(), shard, &folder)
                    .expect("the shard is here");
                Event::SnapshotBuilt {
                    shard,
                    snapshot: id,
                    built: Some(Built { at: built.at, descriptor: built.descriptor }),
                }
            }
            Job::Fetch { fetch, shard, low, high, bytes_max } => {
                let entries = log::entries(&self.engine, shard, low, high, bytes_max)
                    .expect("what was written can be read");
                Event::EntriesFetched { fetch, shard, entries }
            }
        };
        self.core.handle(event);
    }

    /// Passes, works and lets honest peers answer, until nothing is left to do or a few rounds are
    /// over.
    fn converse(&mut self) {
        for _ in 0..8 {
            self.pass();
            let mut idle = self.sent.is_empty();
            for (to, envelope) in std::mem::take(&mut self.sent) {
                if let Some(envelope) = honest_answer(&envelope) {
                    self.core.handle(Event::Message { from: to, envelope });
                }
            }
            for lane in [PERSIST, APPLY, OTHERS] {
                while !self.lanes[lane].is_empty() && !self.ended {
                    self.work(lane);
                    idle = false;
                }
            }
            while !self.streams.is_empty() {
                self.stream_ended(true);
            }
            if idle || self.ended {
                return;
            }
        }
    }

    /// A peer answers the oldest message that was sent to it; perhaps not quite as it should.
    fn answer(&mut self, s: &mut Script<'_>) {
        let place = s.below(4);
        let Some((from, asked)) = self.sent.remove(place.min(self.sent.len().saturating_sub(1)))
        else {
            return;
        };
        let Some(mut envelope) = honest_answer(&asked) else { return };
        peers::bend(&mut envelope.message, s);
        self.core.handle(Event::Message { from, envelope });
    }

    /// Any message, built around what the replica is at.
    fn message(&self, s: &mut Script<'_>) -> (NodeId, Envelope) {
        let shard = s.pick(&SHARDS);
        let reached =
            self.reports.get(&shard).map_or((1, 1, 1), |r| (r.term, r.log.1, r.committed));
        peers::message(shard, reached, s)
    }

    /// A frame of any bytes, as the transport hands it up.
    fn frame(&mut self, s: &mut Script<'_>) {
        let from = NodeId(2 + u64::from(s.u8() & 1));
        let mut frame = wire::start_frame();
        frame.put_slice(s.bytes());
        let core = &mut self.core;
        let _ = wire::decode_frame(frame.freeze(), |item| {
            core.handle(match item {
                Item::Message(envelope) => Event::Message { from, envelope: *envelope },
                Item::Beat(beat) => Event::Beat { from, beat },
            });
        });
    }

    /// A client's write.
    fn command(&mut self, s: &mut Script<'_>) {
        let shard = s.pick(&SHARDS);
        let key = Bytes::from_static(if shard == ShardId(3) { b"n" } else { b"b" });
        let op = match s.below(6) {
            0 | 1 => Op::Put { key, value: Bytes::copy_from_slice(s.bytes()) },
            // Four of these, and the log is cut.
            2 => Op::Put { key, value: vec![7; 70 << 10].into() },
            3 => Op::Delete { key },
            4 => Op::DeleteRange {
                range: KeyRange::new(key, Some(Bytes::copy_from_slice(s.bytes()))),
            },
            _ => Op::Put { key: Bytes::copy_from_slice(s.bytes()), value: Bytes::new() },
        };
        let condition = s.pick(&[
            Condition::Always,
            Condition::Absent,
            Condition::Present,
            Condition::At(Revision(1)),
        ]);
        let (ticket, deadline) = (self.ticket(), self.deadline(s));
        self.core.handle(Event::Ask {
            ticket,
            ask: Ask::Write { shard, command: Command::new(op, condition) },
            deadline,
        });
    }

    /// Where a snapshot that came lies.
    fn folder(&self, staged: SnapshotId) -> PathBuf {
        format!("staged-{}-{}", self.incarnation, staged.0).into()
    }

    /// A snapshot has come from a peer and lies verified on disk. What it says is up to the peer.
    fn snapshot(&mut self, s: &mut Script<'_>) {
        let staged = SnapshotId(self.next_staged);
        self.next_staged += 1;
        let (from, mut envelope) = self.message(s);
        let shard = envelope.shard;
        let report = self.reports.get(&shard);
        let (term, last) = report.map_or((1, 1), |r| (r.term, r.log.1));
        let mut descriptor =
            report.map_or_else(|| shards()[1].clone(), |r| (*r.descriptor).clone());
        let odd = s.u8();
        if odd & 1 != 0 {
            spoil(&mut descriptor, s);
        }
        let at = flotilla_storage::LogPosition {
            index: s.number(last.saturating_add(5)),
            term: s.number(term),
        };
        let mut manifest =
            SnapshotManifest { descriptor, at, revision: Revision(s.number(9)), files: Vec::new() };
        if odd & 2 != 0 {
            let file = one_key(&manifest.descriptor);
            manifest.files.push(SnapshotFile {
                name: "000000.mem".into(),
                bytes: file.len() as u64,
                checksum: crc32fast::hash(&file),
            });
            self.engine.put_file(&self.folder(staged), "000000.mem", file);
        }
        let message = &mut envelope.message;
        if odd & 4 == 0 {
            message.set_msg_type(MessageType::MsgSnapshot);
            message.clear_entries();
            let metadata = message.mut_snapshot().mut_metadata();
            (metadata.index, metadata.term) = (at.index, at.term);
            metadata.set_conf_state(conf_state(&manifest.descriptor));
        }
        // It came over the wire, like the manifest.
        let Ok(manifest) = SnapshotManifest::decode(manifest.encode()) else { return };
        self.staged.insert(staged, manifest.clone());
        self.core.handle(Event::SnapshotStaged { from, staged, envelope, manifest });
    }

    /// The oldest snapshot that was sent has arrived, or has not.
    fn stream_ended(&mut self, delivered: bool) {
        if let Some((shard, to)) = self.streams.pop_front() {
            let delivery = if delivered { Delivery::Taken } else { Delivery::Failed };
            self.core.handle(Event::SnapshotSent { shard, to, delivery });
        }
    }

    /// Loses power with some luck, and starts from what is left.
    fn restart(&mut self, kept: usize) {
        self.pass();
        self.engine.crash_keeping(kept);
        self.incarnation += 1;
        (self.core, self.applier) = start(&self.engine, &self.config, self.incarnation);
        self.lanes = Default::default();
        self.sent.clear();
        self.streams.clear();
        self.staged.clear();
        self.reports.clear();
        self.open.clear();
        self.next_write = 1;
        self.now = Time::ZERO;
        self.pass();
    }

    /// Lets everybody's time run out, so that all are answered, and starts once more from what is
    /// on the disk.
    fn finish(&mut self) {
        self.pass();
        if self.ended {
            return;
        }
        self.now += Time::from_secs(100);
        self.core.handle(Event::Clock { now: self.now });
        // A hand-over is given up after two election timeouts.
        (0..2 * self.config.raft.election_ticks + 1).for_each(|_| self.core.handle(Event::Tick));
        self.pass();
        assert!(self.open.is_empty(), "{:?} are never answered: {:?}", self.open, self.reports);
        self.restart(usize::MAX);
    }
}

/// Starts a node on what lies on its disk.
fn start(engine: &MemoryEngine, config: &CoreConfig, incarnation: u64) -> (Node, Applier) {
    let found = recover(engine)
        .unwrap_or_else(|error| panic!("what the node wrote does not let it start: {error}"));
    let applier = Applier::new(engine, &found).expect("it was just recovered");
    (node(config, incarnation, found), applier)
}

fn node(config: &CoreConfig, incarnation: u64, found: Vec<Recovered>) -> Node {
    let identity = Identity { node: ME, incarnation: Incarnation(incarnation) };
    Node::new(config.clone(), identity, found, slog::Logger::root(slog::Discard, slog::o!()))
}
