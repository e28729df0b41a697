//! What peers say to the node that the target `message` fuzzes: honest answers, answers that are
//! bent in one place, and messages, entries and descriptors of every sort, drawn close to what the
//! replica itself is at.

use super::script::Script;
use bytes::Bytes;
use flotilla_node::core::wire::Stamp;
use flotilla_node::core::{Envelope, Time, Timing};
use flotilla_router::command::PayloadBuilder;
use flotilla_router::{Change, ChangeKind, MemberChange, OperationId, Transition};
use flotilla_router::{
    Command, Condition, Descriptor, Epoch, Incarnation, KeyRange, NodeId, Op, Replica, ReplicaId,
    Revision, Role, ShardId,
};
use protobuf::{Message as _, ProtobufEnum as _};
use raft::eraftpb::{
    ConfChange, ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState,
    Entry, EntryType, Message, MessageType,
};

/// This node.
pub(crate) const ME: NodeId = NodeId(1);
/// The shards of this node, and one that it does not have.
pub(crate) const SHARDS: [ShardId; 4] = [ShardId(2), ShardId(3), ShardId::META, ShardId(9)];

/// What the node was bootstrapped with.
pub(crate) fn shards() -> [Descriptor; 3] {
    let shard =
        |id: u64, start: &'static str, end: Option<&'static str>, learner: bool| Descriptor {
            id: ShardId(id),
            range: KeyRange::new(start, end.map(Into::into)),
            epoch: Epoch { membership: 1, range: 1 },
            replicas: (1..=3 + u64::from(learner))
                .map(|node| Replica {
                    id: ReplicaId(id * 10 + node),
                    node: NodeId(node),
                    role: if node == 4 { Role::Learner } else { Role::Voter },
                })
                .collect(),
        };
    [shard(1, "", None, false), shard(2, "", Some("m"), false), shard(3, "m", None, true)]
}

/// What an honest peer that has everything would say to a message; `None` where nothing is to be
/// said.
pub(crate) fn honest_answer(asked: &Envelope) -> Option<Envelope> {
    use MessageType::*;
    let asked_message = &asked.message;
    let mut answer = Message {
        from: asked_message.to,
        to: asked_message.from,
        term: asked_message.term,
        ..Message::default()
    };
    answer.set_msg_type(match asked_message.get_msg_type() {
        MsgRequestPreVote => MsgRequestPreVoteResponse,
        MsgRequestVote => MsgRequestVoteResponse,
        MsgAppend => MsgAppendResponse,
        MsgHeartbeat => MsgHeartbeatResponse,
        _ => return None,
    });
    if asked_message.get_msg_type() == MsgAppend {
        answer.index = asked_message.entries.last().map_or(asked_message.index, |last| last.index);
        answer.commit = asked_message.commit;
    }
    answer.context = asked_message.context.clone();
    let timing = Timing { echo: asked.timing.stamp, ..asked.timing };
    Some(Envelope { timing, message: answer, ..asked.clone() })
}

/// Mostly a type that a peer may send.
fn kind(s: &mut Script<'_>) -> MessageType {
    use MessageType::*;
    let usual = [
        MsgAppend,
        MsgAppendResponse,
        MsgRequestVote,
        MsgRequestVoteResponse,
        MsgRequestPreVote,
        MsgRequestPreVoteResponse,
        MsgHeartbeat,
        MsgHeartbeatResponse,
        MsgTimeoutNow,
        MsgSnapshot,
    ];
    let all = MessageType::values();
    let which = s.below(usual.len() + all.len());
    usual.get(which).copied().unwrap_or_else(|| all[which - usual.len()])
}

/// An entry, honest or not.
fn entry(index: u64, term: u64, s: &mut Script<'_>) -> Entry {
    let mut entry = Entry { index, term, ..Entry::default() };
    match s.below(8) {
        0 => {}
        1 => entry.data = payload(b"c", b"2"),
        2 => {
            entry.set_entry_type(EntryType::EntryConfChange);
            let mut change = ConfChange { node_id: s.number(22), ..ConfChange::default() };
            change.set_change_type(change_type(s));
            entry.data = change.write_to_bytes().expect("memory does not fail").into();
            entry.context = change_of_members(s).map_or(Bytes::new(), |change| change.encode());
        }
        3 => {
            entry.set_entry_type(EntryType::EntryConfChangeV2);
            let changes = (0..s.below(4)).map(|_| {
                let mut single =
                    ConfChangeSingle { node_id: s.number(22), ..ConfChangeSingle::default() };
                single.set_change_type(change_type(s));
                single
            });
            let mut data = ConfChangeV2 {
                changes: changes.collect::<Vec<_>>().into(),
                ..ConfChangeV2::default()
            };
            if let Some(change) = change_of_members(s) {
                entry.context = change.encode();
                // Mostly the two say the same; what differs is not let into the log.
                if !index.is_multiple_of(4) {
                    data = to_raft(&change);
                }
            }
            entry.data = data.write_to_bytes().expect("memory does not fail").into();
        }
        4 => entry.data = payload(b"c", &[7; 70 << 10]),
        5 => {
            entry.data = Bytes::copy_from_slice(s.bytes());
            let types =
                [EntryType::EntryNormal, EntryType::EntryConfChange, EntryType::EntryConfChangeV2];
            entry.set_entry_type(s.pick(&types));
        }
        6 => entry.index = s.number(index),
        _ => entry.term = s.number(term),
    }
    entry
}

fn change_type(s: &mut Script<'_>) -> ConfChangeType {
    s.pick(&[ConfChangeType::AddNode, ConfChangeType::RemoveNode, ConfChangeType::AddLearnerNode])
}

/// A membership change, to what somebody would like the shard to be.
fn change_of_members(s: &mut Script<'_>) -> Option<Change> {
    if s.u8() & 1 == 0 {
        return None;
    }
    let is = shards()[1].clone();
    let mut wanted = is.clone();
    spoil(&mut wanted, s);
    let member = |kind, r: &Replica| MemberChange { kind, replica: r.id, node: r.node };
    let gone = is.replicas.iter().filter(|r| wanted.replica(r.id).is_none());
    let mut members: Vec<_> = gone.map(|r| member(ChangeKind::Remove, r)).collect();
    for replica in wanted.replicas.iter().filter(|r| !is.replicas.contains(r)) {
        let votes = replica.role.votes_now();
        members.push(member(if votes { ChangeKind::Voter } else { ChangeKind::Learner }, replica));
    }
    let transition = match members.len() {
        0 => Transition::LeaveJoint,
        1 => Transition::Simple,
        _ => Transition::EnterJoint,
    };
    Some(Change { operation: OperationId(1), expected: wanted.epoch, transition, members })
}

/// The same as raft-rs says it.
fn to_raft(change: &Change) -> ConfChangeV2 {
    let single = |member: &MemberChange| {
        let mut single =
            ConfChangeSingle { node_id: member.replica.0, ..ConfChangeSingle::default() };
        single.set_change_type(match member.kind {
            ChangeKind::Voter => ConfChangeType::AddNode,
            ChangeKind::Learner => ConfChangeType::AddLearnerNode,
            ChangeKind::Remove => ConfChangeType::RemoveNode,
        });
        single
    };
    let mut data = ConfChangeV2::default();
    data.set_changes(change.members.iter().map(single).collect::<Vec<_>>().into());
    if change.transition == Transition::EnterJoint {
        data.set_transition(ConfChangeTransition::Explicit);
    }
    data
}

fn payload(key: &'static [u8], value: &[u8]) -> Bytes {
    let op = Op::Put { key: Bytes::from_static(key), value: Bytes::copy_from_slice(value) };
    let mut payload = PayloadBuilder::new(1, value.len());
    payload.push(&Command::new(op, Condition::Always));
    payload.finish()
}

/// Changes a descriptor, as a peer could that wants to do harm.
pub(crate) fn spoil(descriptor: &mut Descriptor, s: &mut Script<'_>) {
    match s.below(8) {
        0 => descriptor.id = s.pick(&SHARDS),
        1 => descriptor.range = KeyRange::all(),
        2 => {
            descriptor.range = KeyRange::new(
                Bytes::copy_from_slice(s.bytes()),
                Some(Bytes::copy_from_slice(s.bytes())),
            )
        }
        3 => descriptor.epoch = Epoch { membership: s.number(1), range: s.number(1) },
        4 => drop(descriptor.replicas.pop()),
        5 => descriptor.replicas.iter_mut().take(s.below(4)).for_each(|r| r.role = Role::Learner),
        6 => descriptor.replicas.clear(),
        _ => {
            let (id, node) = (s.number(24), s.number(4));
            descriptor.replicas.push(Replica {
                id: ReplicaId(id),
                node: NodeId(node),
                role: s.pick(&[
                    Role::Voter,
                    Role::Learner,
                    Role::Incoming,
                    Role::Outgoing,
                    Role::Demoting,
                ]),
            });
        }
    }
}

/// A file with one key of the shard, as the engine in memory writes its files.
pub(crate) fn one_key(descriptor: &Descriptor) -> Bytes {
    use flotilla_router::codec::Put as _;
    let mut record = Vec::new();
    flotilla_storage::records::encode_data(&mut record, Revision(1), b"v");
    let mut file = Vec::new();
    file.put_bytes_prefixed(&flotilla_storage::keys::data(
        descriptor.id.key_space(),
        &descriptor.range.start,
    ));
    file.put_bytes_prefixed(&record);
    file.into()
}

/// Its members, as raft-rs says it.
pub(crate) fn conf_state(descriptor: &Descriptor) -> ConfState {
    let ids = |who: fn(Role) -> bool| {
        let members = descriptor.replicas.iter().filter(|replica| who(replica.role));
        members.map(|replica| replica.id.0).collect::<Vec<_>>()
    };
    let mut conf_state = ConfState::default();
    conf_state.set_voters(ids(Role::votes_now));
    conf_state.set_learners(ids(|role| role == Role::Learner));
    if descriptor.is_joint() {
        conf_state.set_voters_outgoing(ids(Role::votes_before));
        conf_state.set_learners_next(ids(|role| role == Role::Demoting));
    }
    conf_state
}

/// Changes one thing in an honest answer, or nothing.
pub(crate) fn bend(message: &mut Message, s: &mut Script<'_>) {
    match s.below(10) {
        0..=3 => {}
        4 => message.reject = true,
        5 => message.index = s.number(message.index),
        6 => message.term = s.number(message.term),
        7 => {
            message.reject = true;
            message.reject_hint = s.number(message.index);
            message.log_term = s.number(message.term);
        }
        8 => message.request_snapshot = s.number(message.index),
        _ => message.commit = s.number(message.commit),
    }
}

/// What clocks may show: any times, of this life and of others.
fn timing(s: &mut Script<'_>) -> Timing {
    let mut stamp =
        || Stamp::new(Incarnation(u64::from(s.u8() & 3)), Time::from_millis(s.number(1000)));
    let (stamp, echo) = (stamp(), stamp());
    let lag = (s.u8() & 1 == 0).then(|| Time::from_micros(s.number(0)));
    Timing { stamp, echo, held: Time::from_micros(s.number(0)), lag }
}

/// Any message of a shard, to a replica whose term, last and committed index are these.
pub(crate) fn message(
    shard: ShardId,
    (term, last, committed): (u64, u64, u64),
    s: &mut Script<'_>,
) -> (NodeId, Envelope) {
    let mut message = Message::default();
    message.set_msg_type(kind(s));
    let who = s.u8();
    let node = NodeId(2 + u64::from(who & 3));
    message.from = if who & 0x80 == 0 { shard.0 * 10 + node.0 } else { s.number(shard.0 * 10 + 2) };
    message.to = if who & 0x40 == 0 { shard.0 * 10 + ME.0 } else { s.number(shard.0 * 10 + 1) };
    let from = if who & 0x20 == 0 { node } else { NodeId(s.number(2)) };
    message.term = s.number(term);
    message.index = s.number(last);
    message.log_term = s.number(term);
    message.commit = s.number(committed);
    let shape = s.u8();
    message.reject = shape & 1 != 0;
    if shape & 2 != 0 {
        message.reject_hint = s.number(last);
    }
    if shape & 4 != 0 {
        message.request_snapshot = s.number(last);
    }
    if shape & 8 != 0 {
        let contexts: [&[u8]; 3] = [b"CampaignTransfer", b"", s.bytes()];
        message.context = Bytes::copy_from_slice(s.pick(&contexts));
    }
    if shape & 16 != 0 {
        message.priority = s.number(0) as i64;
        message.commit_term = s.number(term);
    }
    if shape & 32 != 0 {
        let metadata = message.mut_snapshot().mut_metadata();
        metadata.index = s.number(last);
        metadata.term = s.number(term);
    }
    let entries = (0..u64::from(shape >> 6))
        .map(|i| entry(message.index.wrapping_add(1 + i), message.log_term.max(term), s));
    message.set_entries(entries.collect::<Vec<_>>().into());
    let epoch = Epoch { membership: s.number(1), range: 1 };
    let committed = s.number(committed);
    let timing = if who & 0x10 == 0 { Timing::default() } else { timing(s) };
    (from, Envelope { shard, epoch, committed, timing, message })
}
