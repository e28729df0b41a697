//! Effects in words, one line each, for people who read golden scripts or follow a seed.
//!
//! A message goes by raft-rs' name for it, behind its shard and its own term (`s2 t3`; a pre-vote's
//! is the term that the candidate would have). Entries are `index@term`, and behind a colon stands
//! how many commands one holds: `4@3 5@3:1`.
//!
//! Signs of life between nodes and published descriptors are left out: they are in every other pass
//! and say nothing new.

use crate::core::wire::Envelope;
use crate::core::{Done, Effect};
use flotilla_router::{NodeId, Refusal};
use flotilla_storage::{LogEntry, LogWrite, WriteResult};
use raft::eraftpb::MessageType;

/// Appends what an effect of node `id` says.
pub(crate) fn effect(id: NodeId, effect: &Effect, out: &mut Vec<String>) {
    let mut say = |words: String| out.push(format!("n{id} {words}"));
    match effect {
        Effect::Send { to, messages, .. } => {
            for envelope in messages {
                say(format!("-> n{to}  {}", message(envelope)));
            }
        }
        Effect::Persist { write: number, batch } => {
            let writes: Vec<_> = batch.writes.iter().map(write).collect();
            say(format!("persists #{number}: {}", writes.join("; ")));
        }
        Effect::Apply { work } => {
            for work in work {
                say(format!(
                    "applies s{}: {}",
                    work.shard,
                    entries(work.entries.iter().map(|e| &e.entry))
                ));
            }
        }
        Effect::Read { tickets, staleness, .. } => {
            let tickets: Vec<_> = tickets.iter().map(|t| format!("#{}", t.0)).collect();
            let age = staleness
                .map(|s| format!(" at applied {}, age {:?}", s.applied, s.age))
                .unwrap_or_default();
            say(format!("looks for {}{age}", tickets.join(" ")));
        }
        Effect::FetchEntries { shard, low, high, .. } => {
            say(format!("fetches s{shard} [{low}, {high})"))
        }
        Effect::BuildSnapshot { shard, snapshot } => {
            say(format!("builds snapshot {} of s{shard}", snapshot.0))
        }
        Effect::DropSnapshot { snapshot } => say(format!("drops snapshot {}", snapshot.0)),
        Effect::SendSnapshot { to, snapshot, envelope, .. } => {
            let (metadata, term) =
                (envelope.message.get_snapshot().get_metadata(), envelope.message.term);
            let at = format!("{}@{}", metadata.index, metadata.term);
            say(format!(
                "=> n{to}  s{} t{term} MsgSnapshot {} at {at}",
                envelope.shard, snapshot.0
            ));
        }
        Effect::InstallSnapshot { shard, at, .. } => {
            say(format!("installs snapshot of s{shard} at {}@{}", at.index, at.term))
        }
        Effect::DiscardStaged { .. } => say("discards a staged snapshot".into()),
        Effect::PublishLeader { shard, leader: Some(leader) } => {
            say(format!("publishes n{leader} as leader of s{shard}"))
        }
        Effect::PublishLeader { shard, leader: None } => {
            say(format!("publishes no leader of s{shard}"))
        }
        Effect::PublishDescriptor { .. } => {}
        Effect::Reply { ticket, result } => {
            let words = match result {
                Ok(Done::Written(result)) => written(result),
                Ok(Done::Transferred(_)) => "handed over".into(),
                Ok(Done::Changed(descriptor)) => format!("members changed, {}", descriptor.epoch),
                Ok(Done::Report(shards)) => format!("{} shards", shards.len()),
                Err(refusal) => refused(refusal),
            };
            say(format!("answers #{}: {words}", ticket.0));
        }
        Effect::Drained => say("is drained".into()),
        Effect::Quarantined { shard, why } => say(format!("quarantines s{shard}: {why}")),
    }
}

/// What became of a write.
pub(crate) fn written(result: &WriteResult) -> String {
    match result {
        WriteResult::Written { revision } => format!("written, r{revision}"),
        WriteResult::Deleted => "deleted".into(),
        WriteResult::DeletedRange { count } => format!("{count} deleted"),
        WriteResult::ConditionFailed { current } => format!("condition failed, at {current:?}"),
        WriteResult::WrongShard => "wrong shard".into(),
    }
}

/// Why somebody says no.
pub(crate) fn refused(refusal: &Refusal) -> String {
    let hint = match refusal {
        Refusal::NotLeader { leader: Some(leader), .. } => format!(", n{leader} leads"),
        Refusal::Conflict { why } | Refusal::Invalid { why } => format!(", {why}"),
        _ => String::new(),
    };
    format!("{} ({:?}){hint}", refusal.code(), refusal.outcome())
}

fn write(write: &LogWrite) -> String {
    let mut parts = Vec::new();
    if let Some((first, last)) = write.delete {
        parts.push(format!("delete {first}..{last}"));
    }
    if !write.entries.is_empty() {
        parts.push(entries(write.entries.iter()));
    }
    if let Some(hs) = write.hard_state {
        parts.push(format!("term {} vote {} commit {}", hs.term, hs.vote, hs.commit));
    }
    if let Some(truncate) = write.truncate {
        parts.push(format!("truncate to {}@{}", truncate.to.index, truncate.to.term));
    }
    format!("s{} {}", write.shard, parts.join(", "))
}

/// `2@1 3..5@2`, with the number of commands of an entry behind a colon.
fn entries<'a>(entries: impl Iterator<Item = &'a LogEntry>) -> String {
    let words: Vec<_> = entries.map(|e| entry(e.at.index, e.at.term, &e.data)).collect();
    if words.len() > 8 {
        return format!("{} … {} ({} entries)", words[0], words[words.len() - 1], words.len());
    }
    words.join(" ")
}

fn entry(index: u64, term: u64, data: &bytes::Bytes) -> String {
    let commands = match flotilla_router::command::Payload::decode(data.clone()) {
        Ok(payload) => format!(":{}", payload.count()),
        Err(_) => String::new(),
    };
    format!("{index}@{term}{commands}")
}

fn message(envelope: &Envelope) -> String {
    let (m, shard) = (&envelope.message, envelope.shard);
    let context = match m.context.len() {
        16 if matches!(
            m.get_msg_type(),
            MessageType::MsgHeartbeat | MessageType::MsgHeartbeatResponse
        ) =>
        {
            format!(
                ", read {}",
                u64::from_be_bytes(m.context[8..].try_into().expect("eight bytes"))
            )
        }
        0 => String::new(),
        _ => format!(", {}", m.context.escape_ascii()),
    };
    let kind = m.get_msg_type();
    let details = match kind {
        MessageType::MsgAppend => {
            let list: Vec<_> = m.entries.iter().map(|e| entry(e.index, e.term, &e.data)).collect();
            let list = if list.len() > 8 {
                vec![format!("{} … ({} entries)", list[0], list.len())]
            } else {
                list
            };
            format!(" after {}@{} [{}] commit {}", m.index, m.log_term, list.join(" "), m.commit)
        }
        MessageType::MsgAppendResponse if m.reject => {
            format!(" refused at {}, ask at {}@{}", m.index, m.reject_hint, m.log_term)
        }
        MessageType::MsgAppendResponse => format!(" up to {}, commit {}", m.index, m.commit),
        MessageType::MsgHeartbeat | MessageType::MsgHeartbeatResponse => {
            format!(" commit {}", m.commit)
        }
        MessageType::MsgRequestPreVote | MessageType::MsgRequestVote => {
            format!(" log ends at {}@{}", m.index, m.log_term)
        }
        MessageType::MsgRequestPreVoteResponse | MessageType::MsgRequestVoteResponse
            if m.reject =>
        {
            " refused".into()
        }
        MessageType::MsgRequestPreVoteResponse | MessageType::MsgRequestVoteResponse => {
            " granted".into()
        }
        _ => String::new(),
    };
    format!("s{shard} t{} {kind:?}{details}{context}", m.term)
}
