//! What a peer may not send: a table of bad messages, each refused and counted, and the property
//! that no message, no matter what is in it, ends the process.

use super::cluster::{Answer, Cluster, SHARD, config};
use crate::core::group::membership::conf_state;
use crate::core::wire::{self, Envelope, Timing};
use crate::core::{Ask, Effect, Event, Identity, Node, Ticket, Time};
use crate::sim::member::{Lane, Member, Worked};
use bytes::Bytes;
use flotilla_router::command::PayloadBuilder;
use flotilla_router::{Change, ChangeKind, MemberChange, OperationId, ReplicaId, Transition};
use flotilla_router::{
    Command, Condition, Consistency, Epoch, Incarnation, KeyRange, NodeId, Op, ShardId,
};
use flotilla_storage::{Applied, Applier, LogPosition, MemoryEngine, SnapshotManifest, recover};
use proptest::prelude::*;
use protobuf::ProtobufEnum as _;
use raft::eraftpb::{Entry, EntryType, Message, MessageType};

const N1: NodeId = NodeId(1);
const N2: NodeId = NodeId(2);
const N3: NodeId = NodeId(3);

fn entry(index: u64, term: u64) -> Entry {
    Entry { index, term, ..Entry::default() }
}

fn conf_change(kind: EntryType, data: &'static [u8]) -> Entry {
    let mut entry = Entry { data: Bytes::from_static(data), ..entry(3, 2) };
    entry.set_entry_type(kind);
    entry
}

fn put() -> Command {
    Command::new(Op::Put { key: "k".into(), value: "v".into() }, Condition::Always)
}

#[test]
fn bad_messages_are_refused_and_counted() {
    use MessageType::*;
    type Spoil = fn(&mut Message);
    let table: [(&str, Spoil); 34] = [
        ("another node's replica", |m| m.from = 23),
        ("nobody's replica", |m| m.from = 99),
        ("the receiver's own", |m| m.from = 21),
        ("for another replica", |m| m.to = 22),
        ("term 0", |m| m.term = 0),
        ("the highest term", |m| m.term = u64::MAX),
        ("the highest term that a log may hold", |m| m.term = 1 << 56),
        ("a term beyond all elections", |m| m.term += (1 << 32) + 1),
        ("a wish for a snapshot that can't be", |m| {
            m.set_msg_type(MsgAppendResponse);
            m.set_reject(true);
            m.request_snapshot = 1 << 50;
        }),
        ("a vote for a term beyond all elections", |m| {
            m.set_msg_type(MsgRequestVote);
            m.term += 1 << 40;
        }),
        ("a membership change of nested groups", |m| {
            m.set_msg_type(MsgAppend);
            (m.index, m.log_term) = (2, 2);
            m.set_entries(vec![conf_change(EntryType::EntryConfChange, &[0x0b; 1000])].into());
        }),
        ("a large membership change with a group inside", |m| {
            m.set_msg_type(MsgAppend);
            (m.index, m.log_term) = (2, 2);
            m.set_entries(
                vec![conf_change(EntryType::EntryConfChangeV2, &[0x12, 2, 0x0b, 0x0c])].into(),
            );
        }),
        ("a proposal", |m| m.set_msg_type(MsgPropose)),
        ("a read", |m| m.set_msg_type(MsgReadIndex)),
        ("an answer to a read", |m| m.set_msg_type(MsgReadIndexResp)),
        ("a local call to campaign", |m| m.set_msg_type(MsgHup)),
        ("a local beat", |m| m.set_msg_type(MsgBeat)),
        ("a local check", |m| m.set_msg_type(MsgCheckQuorum)),
        ("a hand-over", |m| m.set_msg_type(MsgTransferLeader)),
        ("word of a snapshot", |m| m.set_msg_type(MsgSnapStatus)),
        ("a snapshot outside its stream", |m| m.set_msg_type(MsgSnapshot)),
        ("entries in a heartbeat", |m| m.set_entries(vec![entry(3, 2)].into())),
        ("a snapshot in a heartbeat", |m| m.mut_snapshot().mut_metadata().index = 3),
        ("the highest index", |m| m.commit = u64::MAX),
        ("an append after term 0", |m| {
            m.set_msg_type(MsgAppend);
            m.index = 9;
        }),
        ("an entry that is no commands", |m| {
            m.set_msg_type(MsgAppend);
            (m.index, m.log_term) = (2, 2);
            m.set_entries(vec![Entry { data: Bytes::from_static(&[0xff]), ..entry(3, 2) }].into());
        }),
        ("a command that is cut off", |m| {
            m.set_msg_type(MsgAppend);
            (m.index, m.log_term) = (2, 2);
            let mut payload = PayloadBuilder::new(1, 100);
            payload.push(&put());
            let payload = payload.finish();
            m.set_entries(
                vec![Entry { data: payload.slice(..payload.len() - 1), ..entry(3, 2) }].into(),
            );
        }),
        ("a membership change whose context is none", |m| {
            m.set_msg_type(MsgAppend);
            (m.index, m.log_term) = (2, 2);
            let change = conf_change(EntryType::EntryConfChangeV2, &[]);
            m.set_entries(vec![Entry { context: Bytes::from_static(&[0xff]), ..change }].into());
        }),
        ("a step out of a joint group whose data is something else", |m| {
            m.set_msg_type(MsgAppend);
            (m.index, m.log_term) = (2, 2);
            let leave = Change::leave(OperationId(1), Epoch { membership: 1, range: 1 });
            // A voter is removed, says raft's own part of it.
            let change = conf_change(EntryType::EntryConfChangeV2, &[0x12, 4, 0x08, 1, 0x10, 22]);
            m.set_entries(vec![Entry { context: leave.encode(), ..change }].into());
        }),
        ("a membership change with another one for its data", |m| {
            m.set_msg_type(MsgAppend);
            (m.index, m.log_term) = (2, 2);
            let (kind, replica, node) = (ChangeKind::Remove, ReplicaId(23), NodeId(3));
            let change = Change {
                operation: OperationId(1),
                expected: Epoch { membership: 1, range: 1 },
                transition: Transition::Simple,
                members: vec![MemberChange { kind, replica, node }],
            };
            let data = conf_change(EntryType::EntryConfChange, &[0x10, 1, 0x18, 22]);
            m.set_entries(vec![Entry { context: change.encode(), ..data }].into());
        }),
        ("a gap between entries", |m| {
            m.set_msg_type(MsgAppend);
            (m.index, m.log_term) = (2, 2);
            m.set_entries(vec![entry(3, 2), entry(5, 2)].into());
        }),
        ("entries of falling terms", |m| {
            m.set_msg_type(MsgAppend);
            (m.index, m.log_term) = (2, 2);
            m.set_entries(vec![entry(3, 2), entry(4, 1)].into());
        }),
        ("entries of a later term", |m| {
            m.set_msg_type(MsgAppend);
            (m.index, m.log_term) = (2, 2);
            m.set_entries(vec![entry(3, 3)].into());
        }),
        ("an acknowledgement of what is not there", |m| {
            m.set_msg_type(MsgAppendResponse);
            m.index = 99;
        }),
    ];
    for (name, spoil) in table {
        let mut cluster = Cluster::led();
        let forge = |from, to| {
            cluster.forge(from, to, |m| {
                m.set_msg_type(MsgHeartbeat);
                spoil(m);
            })
        };
        // Appends come from the leader: of anybody else they are refused, whatever is in them.
        let is_append = forge(N2, N1).message.get_msg_type() == MsgAppend;
        let (from, to) = if is_append { (N1, N2) } else { (N2, N1) };
        let envelope = forge(from, to);
        let before = cluster.running_mut(to).core.counters().messages_refused;
        cluster.post(to, Event::Message { from, envelope });
        cluster.pass(to);
        let after = cluster.running_mut(to).core.counters().messages_refused;
        assert_eq!(after, before + 1, "{name} was not refused");
        assert_eq!(cluster.leader(SHARD), Some(N1), "{name} changed something");
    }
}

/// Terms that are raised step by step, each of them small enough, would reach the end all the same.
#[test]
fn no_row_of_messages_uses_the_terms_up() {
    let mut cluster = Cluster::led();
    let refused = |cluster: &mut Cluster| {
        let envelope = cluster.forge(N2, N1, |m| {
            m.set_msg_type(MessageType::MsgHeartbeat);
            m.term += (1 << 32) - 9;
        });
        let before = cluster.running_mut(N1).core.counters().messages_refused;
        cluster.post(N1, Event::Message { from: N2, envelope });
        cluster.pass(N1);
        cluster.running_mut(N1).core.counters().messages_refused > before
    };
    assert_eq!(
        (refused(&mut cluster), refused(&mut cluster), refused(&mut cluster)),
        (false, true, true)
    );
    // And the last that is allowed ends no elections.
    let last = cluster.replica(N1, SHARD).unwrap().group.first_term + (1 << 32);
    let envelope = cluster.forge(N2, N1, |m| {
        m.set_msg_type(MessageType::MsgHeartbeat);
        m.term = last;
    });
    cluster.post(N1, Event::Message { from: N2, envelope });
    cluster.run(80);
    let leader = cluster.leader(SHARD).expect("somebody leads");
    assert!(cluster.replica(leader, SHARD).unwrap().group.raw.raft.term > last);
    assert!(matches!(cluster.put(leader, "k", "it goes on"), Some(Answer::Written(_))));
}

/// A node that does not lead can't have a replica quarantined in the term in which another leads;
/// nor claim that more is committed than it says.
#[test]
fn whoever_does_not_lead_commits_nothing() {
    let mut cluster = Cluster::led();
    let last = cluster.replica(N2, SHARD).unwrap().group.raw.raft.raft_log.last_index();
    for (from, commit, committed) in [
        (N3, last + 1, last + 1),
        (N3, last, last),
        (N1, last, last - 1),
        (N1, last, (1 << 56) + 1),
    ] {
        let mut envelope = cluster.forge(from, N2, |m| {
            m.set_msg_type(MessageType::MsgHeartbeat);
            m.commit = commit;
        });
        envelope.committed = committed;
        let before = cluster.running_mut(N2).core.counters().messages_refused;
        cluster.post(N2, Event::Message { from, envelope });
        cluster.pass(N2);
        assert!(cluster.replica(N2, SHARD).unwrap().group.quarantined.is_none());
        assert_eq!(
            cluster.running_mut(N2).core.counters().messages_refused,
            before + 1,
            "{from} {commit} {committed}"
        );
    }
}

#[test]
fn messages_of_a_shard_that_is_not_here_are_refused() {
    let mut cluster = Cluster::led();
    let mut envelope = cluster.forge(N2, N1, |m| m.set_msg_type(MessageType::MsgHeartbeat));
    envelope.shard = ShardId(77);
    cluster.post(N1, Event::Message { from: N2, envelope });
    cluster.pass(N1);
    assert_eq!(cluster.running_mut(N1).core.counters().messages_refused, 1);
}

/// One thing that happens to a lonely core.
#[derive(Clone, Debug)]
enum Input {
    Message { from: NodeId, envelope: Box<Envelope> },
    Ticks(u8),
    Persisted,
    Applied,
    Pass,
    Put,
    Get,
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => 0..6u64,
        1 => Just(u64::MAX),
        1 => Just(u64::MAX - 1),
        1 => Just(1 << 56),
        1 => any::<u64>(),
    ]
}

fn any_entry() -> impl Strategy<Value = Entry> {
    (number(), number(), 0..3i32, proptest::collection::vec(any::<u8>(), 0..4)).prop_map(
        |(index, term, kind, data)| {
            let mut entry = Entry { index, term, data: data.into(), ..Entry::default() };
            entry.set_entry_type(match kind {
                0 => EntryType::EntryNormal,
                1 => EntryType::EntryConfChange,
                _ => EntryType::EntryConfChangeV2,
            });
            entry
        },
    )
}

/// Entries that follow one another, as an honest peer's do, so that more gets past the first
/// checks.
fn run_of_entries(index: u64, term: u64, n: u64) -> Vec<Entry> {
    (1..=n).map(|i| entry(index.wrapping_add(i), term)).collect()
}

fn any_message() -> impl Strategy<Value = Input> {
    let kinds = prop_oneof![
        4 => proptest::sample::select(vec![
            MessageType::MsgAppend,
            MessageType::MsgAppendResponse,
            MessageType::MsgRequestVote,
            MessageType::MsgRequestVoteResponse,
            MessageType::MsgRequestPreVote,
            MessageType::MsgRequestPreVoteResponse,
            MessageType::MsgHeartbeat,
            MessageType::MsgHeartbeatResponse,
            MessageType::MsgTimeoutNow,
        ]),
        1 => proptest::sample::select(MessageType::values().to_vec()),
    ];
    let ids = (
        prop_oneof![6 => Just(2u64), 6 => Just(3u64), 1 => Just(1u64), 1 => number()],
        prop_oneof![12 => Just(0u64), 1 => number()],
        prop_oneof![12 => Just(21u64), 1 => number()],
        kinds,
    );
    let numbers = (
        number(),
        number(),
        number(),
        number(),
        number(),
        prop_oneof![4 => Just(0u64), 1 => number()],
    );
    let rest = (
        any::<bool>(),
        prop_oneof![
            2 => Just(None),
            1 => proptest::collection::vec(any_entry(), 0..4).prop_map(Some),
        ],
        0..4u64,
        any::<bool>(),
        prop_oneof![Just(&b""[..]), Just(&b"CampaignTransfer"[..]), Just(&[0u8; 16][..])],
    );
    (ids, numbers, rest).prop_map(|(ids, numbers, rest)| {
        let (node, other_id, to, kind) = ids;
        let (term, index, log_term, commit, reject_hint, request_snapshot) = numbers;
        let (reject, entries, run, has_snapshot, context) = rest;
        let mut message = Message {
            term,
            index,
            log_term,
            commit,
            reject_hint,
            request_snapshot,
            reject,
            ..Message::default()
        };
        message.set_msg_type(kind);
        message.from = if other_id == 0 { 20 + node.min(9) } else { other_id };
        message.to = to;
        message.context = Bytes::from_static(context);
        match entries {
            Some(entries) => message.set_entries(entries.into()),
            None if kind == MessageType::MsgAppend => {
                message.set_entries(run_of_entries(index, term, run).into())
            }
            None => {}
        }
        if has_snapshot && kind == MessageType::MsgSnapshot {
            message.mut_snapshot().mut_metadata().index = commit;
        }
        let envelope = Envelope {
            shard: SHARD,
            epoch: Epoch::default(),
            committed: commit,
            timing: Timing::default(),
            message,
        };
        Input::Message { from: NodeId(node), envelope: Box::new(envelope) }
    })
}

fn any_input() -> impl Strategy<Value = Input> {
    prop_oneof![
        10 => any_message(),
        2 => (1..30u8).prop_map(Input::Ticks),
        2 => Just(Input::Persisted),
        1 => Just(Input::Applied),
        4 => Just(Input::Pass),
        1 => Just(Input::Put),
        1 => Just(Input::Get),
    ]
}

/// A core without a cluster around it, whose peers say whatever they like.
struct Lonely {
    core: Node,
    engine: MemoryEngine,
    applier: Applier,
    persists: Vec<u64>,
    applies: Vec<Vec<Applied>>,
    tickets: u64,
}

impl Lonely {
    fn new() -> Self {
        let cluster = Cluster::new(3, 1, config());
        let engine = Member::bootstrapped(N1, &cluster.shards).engine;
        let identity = Identity { node: N1, incarnation: Incarnation(1) };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let recovered = recover(&engine).unwrap();
        let applier = Applier::new(&engine, &recovered).unwrap();
        let core = Node::new(cluster.config, identity, recovered, logger);
        Self { core, engine, applier, persists: Vec::new(), applies: Vec::new(), tickets: 0 }
    }

    fn pass(&mut self) {
        for effect in self.core.finish_pass() {
            match effect {
                Effect::Persist { write, .. } => self.persists.push(write),
                Effect::Apply { work } => {
                    // What can't be applied ends the process.
                    self.applies.push(self.applier.apply(&self.engine, work).unwrap());
                }
                _ => {}
            }
        }
    }

    fn feed(&mut self, input: Input) {
        let (shard, deadline) = (SHARD, Time::from_secs(9));
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        match input {
            Input::Message { from, envelope } => {
                self.core.handle(Event::Message { from, envelope: *envelope })
            }
            Input::Ticks(n) => (0..n).for_each(|_| self.core.handle(Event::Tick)),
            Input::Persisted if !self.persists.is_empty() => {
                let write = self.persists.remove(0);
                self.core.handle(Event::Persisted { write });
            }
            Input::Applied if !self.applies.is_empty() => {
                let applied = self.applies.remove(0);
                self.core.handle(Event::Applied { applied });
            }
            Input::Persisted | Input::Applied => {}
            Input::Pass => self.pass(),
            Input::Put => {
                self.core.handle(Event::Ask {
                    ticket,
                    ask: Ask::Write { shard, command: put() },
                    deadline,
                });
            }
            Input::Get => self.core.handle(Event::Ask {
                ticket,
                ask: Ask::Read { shard, consistency: Consistency::Linearizable },
                deadline,
            }),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 4000, failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn no_message_ends_the_process(inputs in proptest::collection::vec(any_input(), 1..40)) {
        let mut lonely = Lonely::new();
        for input in inputs {
            lonely.feed(input);
        }
        lonely.pass();
    }

    #[test]
    fn no_frame_ends_the_process(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = wire::decode_frame(bytes.clone().into(), |_| {});
        let mut framed = vec![1, 1];
        framed.extend([0; 32]);
        framed.extend((bytes.len() as u32).to_be_bytes());
        framed.extend(&bytes);
        let _ = wire::decode_frame(framed.into(), |_| {});
    }
}

/// Votes for a candidate whose own term is not yet on disk: no honest peer can have been asked.
#[test]
fn votes_that_were_not_asked_for_are_refused() {
    let mut cluster = Cluster::led();
    cluster.running_mut(N2).hold(Lane::Persist);
    cluster.put(N1, "k", "v");
    cluster.partition(&[N2], &[N1, N3]);
    cluster.tick(N2, 30);
    for kind in [MessageType::MsgRequestPreVoteResponse, MessageType::MsgRequestVoteResponse] {
        let envelope = cluster.forge(N3, N2, |m| {
            m.set_msg_type(kind);
            m.term = 3;
        });
        cluster.post(N2, Event::Message { from: N3, envelope });
    }
    cluster.pass(N2);
    assert!(!cluster.replica(N2, SHARD).unwrap().group.leads());
}

/// A shard that is quarantined answers everybody who waits there, also whoever ordered a hand-over.
#[test]
fn a_shard_that_is_quarantined_leaves_nobody_waiting() {
    let mut cluster = Cluster::led();
    cluster.partition(&[N1], &[N2, N3]);
    cluster.post_put(N1, "k", "v", super::cluster::FOREVER);
    cluster.post_get(N1, "k", Consistency::Linearizable, super::cluster::FOREVER);
    cluster.settle();
    cluster.post_transfer(N1, SHARD, N2);
    cluster.post_put(N1, "k", "w", super::cluster::FOREVER);
    cluster.pass(N1);
    assert_eq!(cluster.open_tickets().len(), 4);
    let envelope = cluster.forge(N2, N1, |m| {
        m.set_msg_type(MessageType::MsgHeartbeat);
        (m.term, m.commit) = (3, 99);
    });
    cluster.post(N1, Event::Message { from: N2, envelope });
    cluster.pass(N1);
    assert_eq!(cluster.open_tickets(), []);
}

/// Has node 3, which leads neither shard, be sent a snapshot after which the shard's range would be
/// this one. Whether it is taken.
fn offer(
    cluster: &mut Cluster,
    shard: ShardId,
    start: &'static str,
    end: Option<&'static str>,
) -> bool {
    let replica = cluster.replica(N3, shard).unwrap();
    let raft = &replica.group.raw.raft;
    let (leader, term, index) = (raft.leader_id, raft.term, raft.raft_log.last_index() + 10);
    let from = replica.group.leader_node().unwrap();
    let mut descriptor = (**replica.group.descriptor()).clone();
    descriptor.range = KeyRange::new(start, end.map(Into::into));
    let epoch = descriptor.epoch;
    let mut message = Message { from: leader, to: replica.group.id.0, term, ..Message::default() };
    message.set_msg_type(MessageType::MsgSnapshot);
    let metadata = message.mut_snapshot().mut_metadata();
    (metadata.index, metadata.term) = (index, term);
    metadata.set_conf_state(conf_state(&descriptor));
    let at = LogPosition { index, term };
    let before = cluster.running_mut(N3).staged.len();
    let manifest = SnapshotManifest { descriptor, at, revision: Default::default(), files: vec![] };
    cluster.member_mut(N3).stage(
        from,
        Envelope { shard, epoch, committed: 0, timing: Timing::default(), message },
        manifest,
        vec![],
    );
    cluster.pass(N3);
    cluster.running_mut(N3).staged.len() > before
}

/// What was taken is installed.
fn install(cluster: &mut Cluster) {
    while cluster.member_mut(N3).work(Lane::Install).unwrap() == Worked::Midway {}
    cluster.pass(N3);
    assert!(cluster.running_mut(N3).staged.is_empty());
}

/// A peer that lies about ranges must not leave a node with two owners of a key: it would never
/// start again.
#[test]
fn no_snapshot_takes_keys_that_another_shard_of_the_node_has_or_is_about_to_have() {
    let (low, high) = (ShardId(2), ShardId(3));
    let mut cluster = Cluster::new(3, 2, config());
    cluster.run(20);
    assert!(!offer(&mut cluster, high, "", None), "the lower shard has some of it");
    assert!(!offer(&mut cluster, high, "x", Some("x")), "a shard without a key");
    assert!(offer(&mut cluster, low, "", Some("a")));
    assert!(!offer(&mut cluster, high, "a", None), "the lower shard still has some of it");
    install(&mut cluster);
    assert!(offer(&mut cluster, high, "b", None));
    install(&mut cluster);
    assert!(!offer(&mut cluster, low, "", Some("c")), "the higher shard begins below now");
    assert!(offer(&mut cluster, high, "p", None));
    install(&mut cluster);
    assert!(offer(&mut cluster, low, "", Some("n")));
    assert!(!offer(&mut cluster, high, "m", None), "the lower shard is about to have some of it");
    install(&mut cluster);
    let running = cluster.running_mut(N3);
    let ranges = [low, high].map(|shard| {
        running.core.replicas.get_mut(shard).unwrap().group.descriptor().range.clone()
    });
    assert_eq!(ranges, [KeyRange::new("", Some("n".into())), KeyRange::new("p", None)]);
}
