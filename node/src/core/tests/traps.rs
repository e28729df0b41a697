//! One test per trap of raft-rs 0.7 (`docs/raft-rs.md`), by its number. Where it can be shown, the
//! trap is first sprung on a bare `RawNode`, so that we notice when a new raft-rs closes it; then
//! the core is shown to avoid it.

use super::cluster::{Answer, Cluster, FOREVER, SHARD, config};
use crate::core::group::{entries, membership};
use crate::core::wire::{self, Item};
use crate::core::{CoreConfig, Event};
use crate::sim::member::{Lane, Member};
use crate::sim::network::Packet;
use bytes::{BufMut, Bytes};
use flotilla_router::{Change, ChangeKind, MemberChange, OperationId, Transition};
use flotilla_router::{Consistency, NodeId, ReplicaId};
use flotilla_storage::{Read as _, keys, records};
use raft::eraftpb::{
    ConfChangeSingle, ConfChangeType, ConfChangeV2, Entry, EntryType, Message, MessageType,
    Snapshot,
};
use raft::storage::MemStorage;
use raft::{GetEntriesContext, RawNode, ReadOnlyOption, Storage as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

const N1: NodeId = NodeId(1);
const N2: NodeId = NodeId(2);
const N3: NodeId = NodeId(3);

/// A bare member 1 of a group of three.
fn bare(change: impl FnOnce(&mut raft::Config)) -> RawNode<MemStorage> {
    let mut config =
        raft::Config { id: 1, election_tick: 10, heartbeat_tick: 3, ..raft::Config::default() };
    change(&mut config);
    let storage = MemStorage::new_with_conf_state((vec![1, 2, 3], vec![]));
    RawNode::new(&config, storage, &slog::Logger::root(slog::Discard, slog::o!())).unwrap()
}

fn message(kind: MessageType, from: u64, term: u64) -> Message {
    let mut message = Message { from, to: 1, term, ..Message::default() };
    message.set_msg_type(kind);
    message
}

/// Handles Readys; everything is persisted and applied at once. Returns what would be sent, and the
/// confirmed contexts.
fn handle(raw: &mut RawNode<MemStorage>) -> (Vec<Message>, Vec<Vec<u8>>) {
    let (mut sent, mut confirmed) = (Vec::new(), Vec::new());
    while raw.has_ready() {
        let mut ready = raw.ready();
        sent.extend(ready.take_messages());
        sent.extend(ready.take_persisted_messages());
        confirmed.extend(ready.take_read_states().into_iter().map(|state| state.request_ctx));
        raw.mut_store().wl().append(ready.entries()).unwrap();
        if let Some(hs) = ready.hs() {
            raw.mut_store().wl().set_hardstate(hs.clone());
        }
        let mut light = raw.advance(ready);
        sent.extend(light.take_messages());
        raw.advance_apply();
    }
    (sent, confirmed)
}

/// A bare leader of term 1; `committed` tells whether its first entry is.
fn bare_leader(committed: bool, change: impl FnOnce(&mut raft::Config)) -> RawNode<MemStorage> {
    let mut raw = bare(change);
    raw.campaign().unwrap();
    handle(&mut raw);
    raw.step(message(MessageType::MsgRequestVoteResponse, 2, 1)).unwrap();
    handle(&mut raw);
    assert_eq!(raw.raft.state, raft::StateRole::Leader);
    if committed {
        let mut response = message(MessageType::MsgAppendResponse, 2, 1);
        response.index = raw.raft.raft_log.last_index();
        raw.step(response).unwrap();
        handle(&mut raw);
    }
    raw
}

/// Whether raft-rs ends the process.
fn panics(act: impl FnOnce()) -> bool {
    catch_unwind(AssertUnwindSafe(act)).is_err()
}

fn read_context(message: &Message) -> bool {
    message.get_msg_type() == MessageType::MsgHeartbeat && !message.context.is_empty()
}

#[test]
fn trap_01_stale_read_index() {
    // Two uses of one context: an answer to the first, late, confirms the second.
    let mut raw = bare_leader(true, |_| {});
    let answer = |from| {
        let mut answer = message(MessageType::MsgHeartbeatResponse, from, 1);
        answer.context = Bytes::from_static(b"x");
        answer
    };
    raw.read_index(b"x".to_vec());
    raw.step(answer(3)).unwrap();
    assert_eq!(handle(&mut raw).1, [b"x"], "confirmed by 1 and 3");
    raw.read_index(b"x".to_vec());
    raw.step(answer(2)).unwrap();
    assert_eq!(
        handle(&mut raw).1,
        [b"x"],
        "the trap: 2 gave this answer before the second read began"
    );

    // The core: heartbeats carry a context again, as it is, and whoever joined did so before it was
    // first sent. A read that comes later has another, which a late answer to the first does not
    // confirm.
    let mut cluster = Cluster::led();
    cluster.partition(&[N1], &[N3]);
    cluster.network.hold((N2, N1));
    let first = cluster.post_get(N1, "k", Consistency::Linearizable, FOREVER);
    cluster.settle();
    assert_eq!(
        cluster.network.waiting((N2, N1)),
        1,
        "the answer to the first context is on its way"
    );
    cluster.network.hold((N1, N2));
    let second = cluster.post_get(N1, "k", Consistency::Linearizable, FOREVER);
    cluster.tick(N1, 4);
    assert_eq!(cluster.running_mut(N1).core.counters().read_contexts, 2);
    cluster.deliver((N2, N1), 0);
    cluster.pass(N1);
    assert!(
        matches!(cluster.answer(first), Some(Answer::Read { .. })),
        "it was asked before 2 answered"
    );
    assert_eq!(
        cluster.answer(second),
        None,
        "an answer to an earlier context confirmed a later one"
    );
    cluster.network.heal();
    cluster.settle();
    assert!(matches!(cluster.answer(second), Some(Answer::Read { .. })));

    // Nor does a context ever come back after a restart: it begins with the incarnation.
    let mut contexts = Vec::new();
    for _ in 0..2 {
        cluster.run(60);
        let leader = cluster.leader(SHARD).unwrap();
        cluster.take_contexts();
        cluster.get(leader, "k", Consistency::Linearizable);
        contexts.extend(cluster.take_contexts());
        let other = cluster.nodes().into_iter().find(|id| *id != leader).unwrap();
        cluster.crash(other, 0);
        cluster.start(other);
        cluster.run(3);
        cluster.post_transfer(leader, SHARD, other);
        cluster.run(3);
    }
    let incarnations: Vec<_> =
        contexts.iter().map(|c| u64::from_be_bytes(c[..8].try_into().unwrap())).collect();
    assert_eq!(incarnations, [1, 2], "{contexts:?}");
}

#[test]
fn trap_02_empty_entries_have_a_type() {
    let leave =
        Entry { index: 2, term: 1, entry_type: EntryType::EntryConfChangeV2, ..Entry::default() };
    let change = entries::conf_change(&leave).unwrap();
    assert_eq!(
        change,
        Some(ConfChangeV2::default()),
        "the step out of joint consensus was taken for nothing"
    );
    assert_eq!(entries::conf_change(&Entry::default()).unwrap(), None);

    // Committed where it does not fit, it is refused by every replica alike, and applied as an
    // entry.
    let mut cluster = Cluster::led();
    for (index, entries) in [(2, vec![Entry { index: 3, term: 2, ..leave }]), (3, vec![])] {
        let envelope = cluster.forge(N1, N2, |m| {
            m.set_msg_type(MessageType::MsgAppend);
            (m.index, m.log_term, m.commit) = (index, 2, 3);
            m.set_entries(entries.into());
        });
        cluster.post(N2, Event::Message { from: N1, envelope });
        cluster.pass(N2);
        cluster.work(N2, Lane::Persist);
        cluster.pass(N2);
        cluster.work(N2, Lane::Apply);
        cluster.pass(N2);
    }
    assert_eq!(cluster.replica(N2, SHARD).unwrap().group.applied.index, 3);
}

#[test]
fn trap_03_silent_drops() {
    // A conf change that raft-rs does not want becomes an empty normal entry, and the answer is Ok.
    let mut raw = bare_leader(true, |_| {});
    let mut single = ConfChangeSingle { node_id: 4, ..ConfChangeSingle::default() };
    single.set_change_type(ConfChangeType::AddLearnerNode);
    let change = ConfChangeV2 { changes: vec![single].into(), ..ConfChangeV2::default() };
    raw.propose_conf_change(vec![], change.clone()).unwrap();
    assert!(raw.raft.has_pending_conf());
    raw.propose_conf_change(vec![], change).unwrap();
    let kinds: Vec<_> =
        raw.raft.raft_log.unstable_entries().iter().map(Entry::get_entry_type).collect();
    assert_eq!(kinds, [EntryType::EntryConfChangeV2, EntryType::EntryNormal]);
    // A read before the leader's first commit of its term vanishes.
    let mut raw = bare_leader(false, |_| {});
    raw.read_index(b"x".to_vec());
    let mut response = message(MessageType::MsgAppendResponse, 2, 1);
    response.index = raw.raft.raft_log.last_index();
    raw.step(response).unwrap();
    let mut beat = message(MessageType::MsgHeartbeatResponse, 2, 1);
    beat.context = Bytes::from_static(b"x");
    raw.step(beat).unwrap();
    assert!(handle(&mut raw).1.is_empty(), "raft-rs did not drop the read");

    // The core holds it, and asks once it can.
    let mut cluster = Cluster::new(3, 1, config());
    for node in [N2, N3] {
        cluster.running_mut(node).hold(Lane::Persist);
    }
    cluster.tick(N1, 4);
    cluster.settle();
    for node in [N2, N3] {
        // The vote is written, the leader's first entry is not.
        cluster.work(node, Lane::Persist);
    }
    cluster.settle();
    assert_eq!(cluster.leader(SHARD), Some(N1));
    assert!(!cluster.replica(N1, SHARD).unwrap().group.raw.raft.commit_to_current_term());
    let ticket = cluster.post_get(N1, "k", Consistency::Linearizable, FOREVER);
    cluster.settle();
    assert_eq!(cluster.answer(ticket), None);
    assert_eq!(cluster.running_mut(N1).core.counters().read_contexts, 0, "it was asked too early");
    cluster.running_mut(N2).release(Lane::Persist);
    cluster.settle();
    assert!(
        matches!(cluster.answer(ticket), Some(Answer::Read { found: None, .. })),
        "no tick was needed"
    );
}

#[test]
fn trap_04_a_peer_can_crash_the_process_through_step() {
    let propose = || message(MessageType::MsgPropose, 2, 0);
    assert!(panics(|| drop(bare_leader(true, |_| {}).step(propose()))), "an empty proposal");
    let read = || message(MessageType::MsgReadIndex, 2, 0);
    assert!(panics(|| drop(bare_leader(true, |_| {}).step(read()))), "a read without entries");
    let mut heartbeat = message(MessageType::MsgHeartbeat, 2, 1);
    heartbeat.commit = 9;
    assert!(
        panics(|| drop(bare(|_| {}).step(heartbeat))),
        "a heartbeat that commits beyond the log"
    );
    let mut snapshot = message(MessageType::MsgSnapshot, 2, 1);
    snapshot.mut_snapshot().mut_metadata().index = 9;
    snapshot.mut_snapshot().mut_metadata().term = 1;
    snapshot.mut_snapshot().mut_metadata().mut_conf_state().set_voters(vec![1, 2]);
    snapshot.mut_snapshot().mut_metadata().mut_conf_state().set_learners(vec![2]);
    assert!(panics(|| drop(bare(|_| {}).step(snapshot))), "a membership that can't be");
    let mut append = message(MessageType::MsgAppend, 2, 1);
    (append.index, append.log_term) = (9, 0);
    append.set_entries(vec![Entry { index: 10, term: 1, ..Entry::default() }].into());
    assert!(
        panics(|| drop(bare(|_| {}).step(append))),
        "an append after an entry that is not there, of term 0"
    );

    // The same through the core. `messages` has the whole table.
    let mut cluster = Cluster::led();
    let before = cluster.running_mut(N1).core.counters().messages_refused;
    for kind in [MessageType::MsgPropose, MessageType::MsgReadIndex] {
        let envelope = cluster.forge(N2, N1, |m| m.set_msg_type(kind));
        cluster.post(N1, Event::Message { from: N2, envelope });
    }
    let envelope = cluster.forge(N2, N1, |m| {
        m.set_msg_type(MessageType::MsgAppend);
        (m.index, m.log_term) = (9, 0);
        m.set_entries(vec![Entry { index: 10, term: 1, ..Entry::default() }].into());
    });
    cluster.post(N1, Event::Message { from: N2, envelope });
    cluster.pass(N1);
    assert_eq!(cluster.running_mut(N1).core.counters().messages_refused, before + 3);
    assert!(matches!(cluster.put(N1, "k", "v"), Some(Answer::Written(_))), "and it goes on");
}

#[test]
fn trap_05_a_wiped_disk_under_an_old_replica_id() {
    let mut cluster = Cluster::led();
    cluster.put(N1, "k", "v");
    cluster.crash(N2, 0);
    let shards = cluster.shards.clone();
    *cluster.member_mut(N2) = Member::bootstrapped(N2, &shards);
    cluster.start(N2);
    cluster.take_trace();
    cluster.run(6);
    let said = cluster.take_trace().join("\n");
    assert!(
        said.contains("n2 quarantines s2")
            && said.contains("restore the directory")
            && said.contains("leave this node down"),
        "{said}"
    );
    assert!(matches!(cluster.put(N1, "k", "w"), Some(Answer::Written(_))), "the others go on");
    let read = cluster.get(N2, "k", Consistency::Stale { age_max: None });
    assert!(matches!(read, Some(Answer::Refused(_))), "{read:?}");
}

#[test]
fn trap_06_randomness() {
    let drawn: std::collections::BTreeSet<_> =
        (0..64).map(|_| bare(|_| {}).raft.randomized_election_timeout()).collect();
    assert!(drawn.len() > 1, "raft-rs draws its timeouts");

    let timeouts = |seed| {
        let mut cluster = Cluster::new(3, 8, CoreConfig { seed, ..config() });
        cluster.run(20);
        let of = |id, shard| {
            cluster.replica(id, shard).unwrap().group.raw.raft.randomized_election_timeout()
        };
        cluster
            .nodes()
            .into_iter()
            .flat_map(|id| cluster.shard_ids().into_iter().map(move |s| (id, s)))
            .map(|(id, s)| of(id, s))
            .collect::<Vec<_>>()
    };
    let first = timeouts(1);
    assert_eq!(first, timeouts(1), "the same seed");
    assert_ne!(first, timeouts(2), "another seed");
    let ticks = config().raft.election_ticks;
    assert!(first.iter().all(|t| (ticks..2 * ticks).contains(t)), "{first:?}");
    assert!(
        first.iter().collect::<std::collections::BTreeSet<_>>().len() > 6,
        "they are spread: {first:?}"
    );

    // Many ticks in one pass must not run on a timeout that raft-rs drew in between.
    let campaigns = || {
        // Without pre-vote every election is a new term, with a timeout of its own.
        let mut config = config();
        config.raft.pre_vote = false;
        let mut cluster = Cluster::led_with(config);
        cluster.partition(&[N2], &[N1, N3]);
        (0..200).for_each(|_| cluster.post(N2, Event::Tick));
        cluster.pass(N2);
        cluster.running_mut(N2).core.counters().elections
    };
    let first = campaigns();
    assert!((0..16).all(|_| campaigns() == first), "elections in one pass depend on chance");
}

#[test]
fn trap_07_defaults_are_not_for_production() {
    let theirs = raft::Config::default();
    assert_eq!((theirs.max_size_per_msg, theirs.pre_vote, theirs.check_quorum), (0, false, false));
    assert_eq!(
        (theirs.max_uncommitted_size, theirs.max_committed_size_per_ready),
        (u64::MAX, u64::MAX)
    );
    let ours = CoreConfig::default().raft(ReplicaId(1), 0);
    ours.validate().unwrap();
    assert!(ours.pre_vote && ours.check_quorum && ours.max_size_per_msg == 1 << 20);
    assert!(ours.max_uncommitted_size <= 64 << 20 && ours.max_committed_size_per_ready <= 4 << 20);
    assert_eq!(ours.read_only_option, ReadOnlyOption::Safe);
}

#[test]
fn trap_08_the_log_shows_entries_before_they_are_persisted() {
    let mut cluster = Cluster::led();
    cluster.running_mut(N1).hold(Lane::Persist);
    let ticket = cluster.post_put(N1, "k", "v", FOREVER);
    cluster.settle();
    let store = cluster.replica(N1, SHARD).unwrap().group.raw.store();
    assert_eq!(store.last_index().unwrap(), 3);
    assert_eq!(store.entries(3, 4, None, GetEntriesContext::empty(false)).unwrap()[0].index, 3);
    assert_eq!(cluster.member(N1).on_disk(SHARD).last.index, 2, "nothing of it is on disk");
    assert_eq!(cluster.answer(ticket), None, "and nobody is told");
    cluster.running_mut(N1).release(Lane::Persist);
    cluster.settle();
    assert!(matches!(cluster.answer(ticket), Some(Answer::Written(_))));
}

#[test]
fn trap_09_each_read_index_broadcasts() {
    let mut raw = bare_leader(true, |_| {});
    (0..5u8).for_each(|i| raw.read_index(vec![i]));
    assert_eq!(
        handle(&mut raw).0.iter().filter(|m| read_context(m)).count(),
        10,
        "five contexts, two followers"
    );

    let mut cluster = Cluster::led();
    cluster.take_contexts();
    let tickets: Vec<_> =
        (0..5).map(|_| cluster.post_get(N1, "k", Consistency::Linearizable, FOREVER)).collect();
    cluster.pass(N1);
    assert_eq!(cluster.take_contexts().len(), 1);
    cluster.settle();
    assert!(tickets.iter().all(|t| cluster.answer(*t).is_some()));
    assert_eq!(cluster.running_mut(N1).core.counters().read_contexts, 1);
}

#[test]
fn trap_10_lease_based_reads_check_no_clock() {
    let mut raw = bare_leader(true, |c| {
        c.check_quorum = true;
        c.read_only_option = ReadOnlyOption::LeaseBased;
    });
    raw.read_index(b"x".to_vec());
    assert_eq!(handle(&mut raw).1, [b"x"], "nobody was asked, and no clock was looked at");

    let mut config = config();
    config.reads.lease = true;
    assert_eq!(config.raft(ReplicaId(1), 0).read_only_option, ReadOnlyOption::Safe);
    let mut cluster = Cluster::led_with(config);
    cluster.get(N1, "k", Consistency::Linearizable);
    cluster.get(N1, "k", Consistency::Lease);
    assert_eq!(cluster.running_mut(N1).core.counters().lease_reads, 1);
    // The process stands still for longer than a lease, and does not know it: only the clock does.
    cluster.pause(N1, Duration::from_secs(2));
    cluster.partition(&[N1], &[N2, N3]);
    assert_eq!(
        cluster.get(N1, "k", Consistency::Lease),
        None,
        "answered on a lease that had run out"
    );
    assert_eq!(cluster.running_mut(N1).core.counters().lease_reads, 1);
}

#[test]
fn trap_11_applied_above_commit_at_start() {
    let discard = slog::Logger::root(slog::Discard, slog::o!());
    let bad = raft::Config {
        id: 1,
        applied: 5,
        election_tick: 10,
        heartbeat_tick: 3,
        ..raft::Config::default()
    };
    let storage = || MemStorage::new_with_conf_state((vec![1, 2, 3], vec![]));
    assert!(
        panics(|| drop(RawNode::new(&bad, storage(), &discard))),
        "raft-rs starts above its commit"
    );

    // A commit index alone is not written for its own sake, so this is an ordinary crash.
    let mut cluster = Cluster::led();
    cluster.put(N1, "k", "v");
    cluster.crash(N2, usize::MAX);
    let key = keys::state(SHARD, keys::StateTag::HardState);
    let record =
        cluster.member(N2).engine.get(flotilla_storage::Family::State, &key).unwrap().unwrap();
    let stored = records::decode_hard_state(&key, &record).unwrap();
    let found = cluster.member(N2).on_disk(SHARD);
    assert!(stored.commit < found.applied.index, "{stored:?} {:?}", found.applied);
    assert_eq!(found.hard_state.commit, found.applied.index);
    cluster.start(N2);
    cluster.run(3);
    assert!(matches!(cluster.put(N1, "k", "w"), Some(Answer::Written(_))));
}

#[test]
fn trap_12_groups_never_reach_the_parser() {
    let mut frame = wire::start_frame();
    frame.put_u8(1);
    frame.put_slice(&[0; 56]);
    frame.put_u32(1 << 20);
    frame.put_slice(&vec![0x0b; 1 << 20]);
    let mut seen = 0;
    let refused = wire::decode_frame(frame.freeze(), |_: Item| seen += 1).unwrap_err();
    assert!(refused.why.contains("group") && seen == 0, "{refused}");
}

#[test]
fn trap_13_unapplied_entries_are_bounded() {
    let mut config = config();
    config.log.cache_bytes_max = 0;
    config.log.unapplied_bytes_max = 1 << 20;
    let mut cluster = Cluster::led_with(config);
    cluster.running_mut(N2).hold(Lane::Apply);
    for i in 0..60 {
        let put = cluster.put(N1, &format!("k{i}"), &"x".repeat(100 << 10));
        assert!(matches!(put, Some(Answer::Written(_))), "the others go on");
        // A tick drops from memory what is applied.
        cluster.run(1);
    }
    let behind = cluster.running_mut(N2).core.counters().cache_bytes;
    assert!(behind < 4 << 20, "{behind} bytes wait to be applied");
    cluster.running_mut(N2).release(Lane::Apply);
    cluster.run(20);
    assert!(cluster.is_level(), "it catches up: {:?}", cluster.places());
}

#[test]
fn trap_14_a_removed_leader_goes_on() {
    let mut raw = bare_leader(true, |_| {});
    raw.propose(vec![], b"one".to_vec()).unwrap();
    handle(&mut raw);
    let mut single = ConfChangeSingle { node_id: 1, ..ConfChangeSingle::default() };
    single.set_change_type(ConfChangeType::RemoveNode);
    raw.apply_conf_change(&ConfChangeV2 {
        changes: vec![single].into(),
        ..ConfChangeV2::default()
    })
    .unwrap();
    for _ in 0..3 {
        raw.tick();
    }
    assert_eq!(raw.raft.state, raft::StateRole::Leader);
    assert!(
        handle(&mut raw).0.iter().any(|m| m.get_msg_type() == MessageType::MsgHeartbeat),
        "it still heartbeats"
    );

    // It has no progress of its own any more, and raft-rs looks at it when the next entry commits.
    let last = raw.raft.raft_log.last_index();
    let ended = panics(|| {
        for peer in [2, 3] {
            let mut answer = message(MessageType::MsgAppendResponse, peer, 1);
            answer.index = last;
            let _ = raw.step(answer);
        }
    });
    assert!(ended, "raft-rs has closed the trap");

    // A leader is to hand over before it is removed; hand-over is here, and ends with another
    // leader or with an answer.
    let mut cluster = Cluster::led();
    let ticket = cluster.post_transfer(N1, SHARD, N3);
    cluster.settle();
    assert_eq!(
        (cluster.answer(ticket), cluster.leader(SHARD)),
        (Some(&Answer::Transferred), Some(N3))
    );

    // And if its removal was in the log when it was elected, it leads until that is applied, and no
    // longer. The core has no event that changes a membership yet.
    let shard = &cluster.shards[0];
    let replica = shard.on_node(N3).unwrap().id;
    let (operation, expected) = (OperationId(1), shard.epoch);
    let members = vec![MemberChange { kind: ChangeKind::Remove, replica, node: N3 }];
    let removal = Change { operation, expected, transition: Transition::Simple, members };
    let (context, change) = (removal.encode().to_vec(), membership::to_raft(&removal));
    let core = &mut cluster.running_mut(N3).core;
    core.replicas.get_mut(SHARD).unwrap().group.raw.propose_conf_change(context, change).unwrap();
    let put = cluster.post_put(N3, "k", "v", FOREVER);
    cluster.settle();
    assert!(!cluster.replica(N3, SHARD).unwrap().group.leads(), "it leads without a vote");
    cluster.run(60);
    let leader = cluster.leader(SHARD).expect("the others elect one of them");
    assert!(leader != N3 && cluster.answer(put).is_some());
    assert!(matches!(cluster.put(leader, "k", "w"), Some(Answer::Written(_))));
}

#[test]
fn trap_15_inflight_buffers_are_freed_when_idle() {
    let mut cluster = Cluster::led();
    (0..4).for_each(|i| drop(cluster.put(N1, "k", &i.to_string())));
    cluster.run(10);
    let raft = &cluster.replica(N1, SHARD).unwrap().group.raw.raft;
    assert_eq!(
        raft.inflight_buffers_size(),
        0,
        "bytes are kept for every follower of an idle group"
    );
    assert!(matches!(cluster.put(N1, "k", "v"), Some(Answer::Written(_))));
}

/// A snapshot is only as good as its membership; see trap 4.
#[test]
fn trap_04_a_forged_snapshot_is_refused() {
    use crate::core::group::membership::conf_state;
    let mut cluster = Cluster::led();
    let honest = cluster.shards[0].clone();
    let spoil: [fn(&mut flotilla_router::Descriptor); 3] = [
        |d| d.replicas.push(d.replicas[0]),
        |d| {
            let twice =
                flotilla_router::Replica { role: flotilla_router::Role::Learner, ..d.replicas[1] };
            d.replicas.push(twice);
        },
        |d| d.replicas.iter_mut().for_each(|r| r.role = flotilla_router::Role::Learner),
    ];
    for spoil in spoil {
        let mut descriptor = honest.clone();
        spoil(&mut descriptor);
        let at = flotilla_storage::LogPosition { index: 9, term: 2 };
        let manifest = flotilla_storage::SnapshotManifest {
            descriptor,
            at,
            revision: Default::default(),
            files: vec![],
        };
        let envelope = cluster.forge(N1, N2, |m| {
            m.set_msg_type(MessageType::MsgSnapshot);
            let mut snapshot = Snapshot::default();
            snapshot.mut_metadata().index = at.index;
            snapshot.mut_metadata().term = at.term;
            snapshot.mut_metadata().set_conf_state(conf_state(&manifest.descriptor));
            m.set_snapshot(snapshot);
        });
        cluster.member_mut(N2).stage(N1, envelope, manifest, vec![]);
        let before = cluster.running_mut(N2).core.counters().messages_refused;
        cluster.pass(N2);
        assert_eq!(cluster.running_mut(N2).core.counters().messages_refused, before + 1);
        assert!(cluster.running_mut(N2).staged.is_empty(), "it is discarded");
    }
}

/// What peer 2 would be sent, and whether each append's entries follow the place that it names.
fn appends_in_place<'a>(messages: impl Iterator<Item = &'a Message>) -> Vec<bool> {
    let appends = messages.filter(|m| {
        m.get_msg_type() == MessageType::MsgAppend && m.to % 10 == 2 && !m.entries.is_empty()
    });
    appends.map(|m| m.entries[0].index == m.index + 1).collect()
}

/// An empty append, which only tells of a commit, waits to be sent when the follower turns out to
/// be further behind: raft-rs adds the entries that it lacks to that message, which names a place
/// above them.
#[test]
fn trap_16_entries_are_never_sent_behind_a_place_that_is_not_below_them() {
    // Sprung on a bare leader.
    let mut raw = bare_leader(true, |config| config.batch_append = true);
    let mut answer = message(MessageType::MsgAppendResponse, 2, 1);
    answer.index = 1;
    raw.step(answer.clone()).unwrap();
    handle(&mut raw);
    raw.propose(vec![], b"one".to_vec()).unwrap();
    raw.propose(vec![], b"two".to_vec()).unwrap();
    handle(&mut raw);
    let mut committed = message(MessageType::MsgAppendResponse, 3, 1);
    committed.index = 3;
    raw.step(committed).unwrap();
    answer.index = 3;
    answer.set_reject(true);
    answer.reject_hint = 1;
    answer.log_term = 1;
    raw.step(answer).unwrap();
    let (sent, _) = handle(&mut raw);
    assert_eq!(appends_in_place(sent.iter()), [false], "raft-rs has closed the trap: {sent:?}");

    // Avoided by the core, in the same situation.
    let mut cluster = Cluster::led();
    cluster.network.hold((N1, N2));
    cluster.post_put(N1, "a", "one", FOREVER);
    cluster.pass(N1);
    cluster.work(N1, Lane::Persist);
    cluster.deliver((N1, N3), 0);
    cluster.pass(N3);
    cluster.work(N3, Lane::Persist);
    cluster.pass(N3);
    while cluster.deliver((N3, N1), 0) {}
    let last = cluster.replica(N1, SHARD).unwrap().group.raw.raft.raft_log.last_index();
    let refusal = cluster.forge(N2, N1, |m| {
        m.set_msg_type(MessageType::MsgAppendResponse);
        (m.index, m.reject_hint, m.log_term) = (last, last - 1, m.term);
        m.set_reject(true);
    });
    cluster.post(N1, Event::Message { from: N2, envelope: refusal });
    while cluster.drop_packet((N1, N2), 0) {}
    cluster.pass(N1);
    let mut in_place = Vec::new();
    while let Some(Packet::Frame(frame)) = cluster.network.take((N1, N2), 0) {
        wire::decode_frame(frame, |item| {
            if let Item::Message(envelope) = item {
                in_place.extend(appends_in_place(std::iter::once(&envelope.message)));
            }
        })
        .unwrap();
    }
    assert_eq!(in_place, [true]);
}

/// With `batch_append`, entries are added to an append that waits to be sent, however large it has
/// become: a follower that lagged is sent everything in one message, which no frame carries, and
/// again, and again.
#[test]
fn trap_18_many_large_entries_never_become_one_message() {
    // Sprung on a bare leader: each proposal alone is as large as a message may be.
    let mut raw = bare_leader(true, |config| {
        config.batch_append = true;
        config.max_size_per_msg = 1000;
    });
    let mut answer = message(MessageType::MsgAppendResponse, 2, 1);
    answer.index = 1;
    raw.step(answer).unwrap();
    handle(&mut raw);
    (0..8).for_each(|_| raw.propose(vec![], vec![7; 1000]).unwrap());
    let (sent, _) = handle(&mut raw);
    assert!(sent.iter().any(|m| m.entries.len() == 8), "raft-rs has closed the trap: {sent:?}");

    // The core: whatever is proposed at once, and whatever a follower lacks. The cluster refuses
    // frames that are too large.
    let mut config = config();
    config.frame_bytes_max = 64 << 10;
    config.raft.message_bytes_max = 8 << 10;
    config.raft.entry_bytes_max = 8 << 10;
    let mut cluster = Cluster::led_with(config);
    let value = "v".repeat(4 << 10);
    for lagging in [false, true] {
        if lagging {
            cluster.partition(&[N1], &[N2]);
        }
        let tickets: Vec<_> =
            (0..64).map(|n| cluster.post_put(N1, &format!("k{n}"), &value, FOREVER)).collect();
        cluster.settle();
        for ticket in tickets {
            assert!(
                matches!(cluster.answer(ticket), Some(Answer::Written(_))),
                "{:?}",
                cluster.answer(ticket)
            );
        }
    }
    cluster.network.heal();
    cluster.run(20);
    assert!(cluster.is_level(), "the follower that lagged has caught up: {:?}", cluster.places());
}
