//! The guard between a peer and `step`: raft-rs trusts its input, and ends the process on much that
//! a peer could send.
//!
//! Each check names the trap of raft-rs 0.7 that it closes. A message that fails is counted and
//! dropped. One that shows that this replica forgot what it had promised (a heartbeat that commits
//! beyond the log, an entry that contradicts a committed one) quarantines the shard, and never ends
//! the process.

use super::entries::check_entry;
use super::log::entry_bytes;
use super::{Group, Sender};
use crate::core::context::Context;
use crate::core::wire::Envelope;
use flotilla_router::NodeId;
use flotilla_router::cure::NO_WAY_BACK;
use flotilla_storage::NUMBER_MAX;
use raft::StateRole;
use raft::eraftpb::MessageType::{self, *};

/// How far a message's term may be above the one that this replica had when it started: one
/// election in 10 ms for more than a year. Whoever took a term from near the end would never see
/// another election; and what is counted from the present term can be raised step by step.
const TERM_LEAP_MAX: u64 = 1 << 32;

/// How far it may be above the present one even so: whoever has once taken the last that is allowed
/// must be able to elect.
const TERM_STEP_MAX: u64 = 1 << 10;

/// How far a snapshot may lie above this replica's log: a hundred thousand entries a second for
/// five years. No log goes on for long from near the end.
const INDEX_LEAP_MAX: u64 = 1 << 44;

/// Whether a replica that had `first` as its term when it started, and has `own`, can't have missed
/// so many elections.
pub(crate) fn is_absurd(term: u64, first: u64, own: u64) -> bool {
    term.saturating_sub(first) > TERM_LEAP_MAX && term.saturating_sub(own) > TERM_STEP_MAX
}

/// The same of a log's end.
pub(crate) fn is_absurd_index(index: u64, own: u64) -> bool {
    index.saturating_sub(own) > INDEX_LEAP_MAX
}

/// What is to be done with a message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Step it.
    Step,
    /// It is honest, and not wanted now.
    Drop,
    /// It is not honest.
    Refuse(&'static str),
    /// Stepping it would break a promise.
    Quarantine(String),
}

/// Judges one message from the node that the certificate names.
pub(crate) fn check(
    group: &Group,
    from: NodeId,
    envelope: &Envelope,
    ctx: &Context<'_>,
) -> Verdict {
    use Verdict::{Drop, Refuse, Step};
    let message = &envelope.message;
    let kind = message.get_msg_type();
    let raft = &group.raw.raft;
    if group.quarantined.is_some() {
        return Drop;
    }
    // raft-rs trusts `from`: without this, one node could vote for all.
    let sender = group.sender(from, envelope);
    if sender == Sender::Stranger {
        return Refuse("its sender is not that node's replica");
    }
    if message.to != group.id.0 {
        return Refuse("it is for another replica");
    }
    // `MsgReadIndex` without entries panics, an empty `MsgPropose` is fatal, proposals and reads
    // are never forwarded here.
    if !is_allowed(kind) {
        return Refuse("a type that never comes from a peer");
    }
    // Term 0 marks a local message and skips the term check; a term near the end would end all
    // elections.
    if message.term == 0 || message.term > NUMBER_MAX {
        return Refuse("its term");
    }
    if is_absurd(message.term, group.first_term, raft.term) {
        return Refuse("a term far above any that elections could have reached");
    }
    if [
        message.index,
        message.commit,
        message.log_term,
        message.reject_hint,
        message.commit_term,
        message.request_snapshot,
    ]
    .iter()
    .chain([&envelope.committed])
    .any(|&n| n > NUMBER_MAX)
    {
        return Refuse("an index or term out of reach");
    }
    // It would have a snapshot built, again and again, that can never be. Nobody here asks for one.
    if message.request_snapshot != 0 {
        return Refuse("it asks for a snapshot of its choosing");
    }
    // It commits no more than it says to have committed: what is fresh is judged by that.
    if matches!(kind, MsgAppend | MsgHeartbeat) && message.commit > envelope.committed {
        return Refuse("it commits more than its sender has committed");
    }
    if !message.entries.is_empty() && kind != MsgAppend {
        return Refuse("entries in a message that has none");
    }
    if message.has_snapshot() && kind != MsgSnapshot {
        return Refuse("a snapshot in a message that has none");
    }
    if group.installing {
        // The log is about to start over; whatever comes now comes again.
        return Drop;
    }
    // One leader per term: another one is none, and what it says of this log is not to be believed.
    let leaders = matches!(kind, MsgAppend | MsgHeartbeat);
    if leaders && message.term == raft.term && ![0, message.from].contains(&raft.leader_id) {
        return Refuse("a leader's message of somebody who does not lead");
    }
    let verdict = match kind {
        MsgAppend => check_append(group, envelope, ctx),
        // Snapshots come by their own stream, with what they announce.
        MsgSnapshot => Refuse("a snapshot outside its stream"),
        // Committing beyond the log is fatal in raft-rs. An honest leader never asks for it, unless
        // this log lost its end.
        MsgHeartbeat
            if message.commit > raft.raft_log.last_index() && message.term >= raft.term =>
        {
            Verdict::Quarantine(format!(
                "the leader knows this replica to hold entry {}, and its log ends at {}: its disk \
                 has lost synced data; restore the directory as it was when the node ran last; \
                 {NO_WAY_BACK}",
                message.commit,
                raft.raft_log.last_index()
            ))
        }
        MsgAppendResponse
            if !message.reject
                && message.index > raft.raft_log.last_index()
                && message.term == raft.term =>
        {
            Refuse("it acknowledges entries that do not exist")
        }
        // A candidate asks for votes once its term is on disk. An answer before that was not asked
        // for, and would make raft-rs a leader with entries that it has not persisted, which ends
        // the process.
        MsgRequestVoteResponse
            if raft.state == StateRole::Candidate
                && (!group.ready.is_empty()
                    || raft.raft_log.persisted != raft.raft_log.last_index()) =>
        {
            Refuse("a vote that was not asked for")
        }
        // The same trap, where this replica's own vote is enough. A leader, too, may lose its lead
        // to the message's term first. Whoever wants to hand over asks again.
        MsgTimeoutNow | MsgRequestPreVoteResponse if group.would_win_too_early() => Drop,
        MsgRequestVote | MsgRequestPreVote
            if group.stands_by_its_leader(message, ctx.config, ctx.ticks) =>
        {
            Drop
        }
        _ => Step,
    };
    match verdict {
        // Nobody here vouches for it; whoever is known will show the same, if it is true.
        Verdict::Quarantine(_) if sender == Sender::Newcomer => Drop,
        verdict => verdict,
    }
}

fn check_append(group: &Group, envelope: &Envelope, ctx: &Context<'_>) -> Verdict {
    let message = &envelope.message;
    let log = &group.raw.raft.raft_log;
    // Every log starts at term 1, and raft-rs takes term 0 to match any place beyond the log: it
    // would append there, and end.
    if message.log_term == 0 {
        return Verdict::Refuse("it follows an entry of term 0");
    }
    // raft-rs would walk the whole log for an entry of that term. What is committed here ends above
    // it in every leader's log.
    let raft = &group.raw.raft;
    if message.term >= raft.term
        && message.index >= log.committed
        && message.log_term < group.raw.store().truncated().term
    {
        return Verdict::Refuse("it follows an entry of a term that this log has left behind");
    }
    let mut bytes = 0;
    let mut term_before = message.log_term;
    for (offset, entry) in message.entries.iter().enumerate() {
        if entry.index != message.index + 1 + offset as u64
            || entry.term < term_before
            || entry.term > message.term
        {
            return Verdict::Refuse("entries that do not follow one another");
        }
        term_before = entry.term;
        bytes += entry_bytes(entry);
        // raft-rs ends the process where a committed entry would be overwritten.
        if entry.index <= log.committed
            && entry.index > log.first_index()
            && message.term >= group.raw.raft.term
            && let Ok(term) = log.term(entry.index)
            && term != entry.term
            && term != 0
        {
            return Verdict::Quarantine(format!(
                "the leader of term {} has an entry of term {} at index {}, where this replica has \
                 committed one of term {term}",
                message.term, entry.term, entry.index
            ));
        }
    }
    if message.log_term > message.term {
        return Verdict::Refuse("a log term above its term");
    }
    if bytes > ctx.config.frame_bytes_max as u64 {
        return Verdict::Refuse("more entries than fit in a message");
    }
    // What the disk has not taken yet lies in memory; with what is persisted it shrinks.
    if bytes > 0
        && group.ready.unpersisted_bytes > 0
        && ctx.budgets.unpersisted_bytes > ctx.config.raft.inflight_bytes_max
    {
        return Verdict::Drop;
    }
    if !message.entries.is_empty() && group.apply_lags(ctx.budgets.unapplied_bytes, ctx.config) {
        // Bounds memory when apply can't keep up. The leader sends it again.
        return Verdict::Drop;
    }
    // Once committed they would quarantine the shard, or end the process, on every node.
    let spoilt = message.entries.iter().find_map(|entry| check_entry(entry).err());
    spoilt.map_or(Verdict::Step, Verdict::Refuse)
}

fn is_allowed(kind: MessageType) -> bool {
    matches!(
        kind,
        MsgAppend
            | MsgAppendResponse
            | MsgRequestVote
            | MsgRequestVoteResponse
            | MsgRequestPreVote
            | MsgRequestPreVoteResponse
            | MsgHeartbeat
            | MsgHeartbeatResponse
            | MsgSnapshot
            | MsgTimeoutNow
    )
}
