//! What an entry of the log says, and whether it can be applied.
//!
//! Read twice: before an entry from a peer gets into the log, since what can't be read would
//! quarantine the shard on every node, or end the process, once it is committed, and again after
//! each start; and when it is applied.

use super::membership;
use crate::core::wire;
use flotilla_router::DecodeError;
use flotilla_router::command::Payload;
use protobuf::Message as _;
use raft::eraftpb::{ConfChange, ConfChangeSingle, ConfChangeV2, Entry, EntryType};

/// The membership change that an entry carries. The type is looked at before the data: leaving
/// joint consensus has none.
///
/// It came from a peer, so it is looked at by the guard before the parser sees it, as every message
/// is.
pub(crate) fn conf_change(entry: &Entry) -> Result<Option<ConfChangeV2>, String> {
    let words = |error: protobuf::ProtobufError| error.to_string();
    match entry.get_entry_type() {
        EntryType::EntryNormal => Ok(None),
        EntryType::EntryConfChange => {
            let mut change = ConfChange::default();
            wire::guard_conf_change(&entry.data)?;
            change.merge_from_bytes(&entry.data).map_err(words)?;
            let mut single =
                ConfChangeSingle { node_id: change.node_id, ..ConfChangeSingle::default() };
            single.set_change_type(change.get_change_type());
            Ok(Some(ConfChangeV2 { changes: vec![single].into(), ..ConfChangeV2::default() }))
        }
        EntryType::EntryConfChangeV2 => {
            let mut change = ConfChangeV2::default();
            wire::guard_conf_change_v2(&entry.data)?;
            change.merge_from_bytes(&entry.data).map_err(words)?;
            Ok(Some(change))
        }
    }
}

/// Whether an entry can be applied; if not, why.
pub(crate) fn check_entry(entry: &Entry) -> Result<(), &'static str> {
    let Ok(change) = conf_change(entry) else {
        return Err("a membership change that can't be read");
    };
    let Some(change) = change else {
        let commands = |mut payload: Payload| -> Result<(), DecodeError> {
            payload.try_for_each(|command| command.map(drop))
        };
        let read = match entry.data.is_empty() {
            true => Ok(()),
            false => Payload::decode(entry.data.clone()).and_then(commands),
        };
        return read.map_err(|_| "an entry whose commands can't be read");
    };
    membership::check_context(entry, &change)
}
