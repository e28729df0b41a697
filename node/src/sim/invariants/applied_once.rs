//! Nothing is applied twice, and nothing that was called *not applied* is applied at all. Every
//! value that clients write is unique, so a value that is committed at two places is one write
//! applied twice. Since it reads every entry that is committed, it also tells which keys the
//! entries of a stretch of log write.

use super::{Holds, hold};
use crate::core::Ticket;
use bytes::Bytes;
use flotilla_router::{Command, Op, ShardId};
use flotilla_storage::LogPosition;
use std::collections::{BTreeMap, BTreeSet};

/// Where every write stands.
#[derive(Default)]
pub(crate) struct AppliedOnce {
    writers: BTreeMap<Bytes, Ticket>,
    places: BTreeMap<Ticket, LogPosition>,
    refused: BTreeSet<Ticket>,
    /// The keys that each entry writes.
    keys: BTreeMap<(ShardId, u64), Vec<Bytes>>,
}

impl AppliedOnce {
    /// `ticket` writes `value`, which nobody else writes.
    pub(crate) fn asks(&mut self, ticket: Ticket, value: Bytes) {
        let before = self.writers.insert(value, ticket);
        assert!(before.is_none(), "the simulation itself writes a value twice");
    }

    /// An entry was committed, and nobody knew of it before.
    pub(crate) fn committed(
        &mut self,
        shard: ShardId,
        at: LogPosition,
        commands: &[Command],
    ) -> Holds {
        for command in commands {
            let (Op::Put { key, .. } | Op::Delete { key }) = command.op() else { continue };
            self.keys.entry((shard, at.index)).or_default().push(key.clone());
            let Op::Put { value, .. } = command.op() else { continue };
            let Some(ticket) = self.writers.get(value) else { continue };
            hold!(
                !self.refused.contains(ticket),
                "{ticket:?} was told that it was not applied, and is committed at {at:?}"
            );
            if let Some(before) = self.places.insert(*ticket, at) {
                return Err(format!("{ticket:?} is committed twice: at {before:?} and at {at:?}"));
            }
        }
        Ok(())
    }

    /// A client was told that its write was not, and will not be, applied.
    pub(crate) fn refused(&mut self, ticket: Ticket) -> Holds {
        self.refused.insert(ticket);
        let place = self.places.get(&ticket);
        hold!(
            place.is_none(),
            "{ticket:?} is told that it was not applied, and is committed at {place:?}"
        );
        Ok(())
    }

    /// The keys that entries above `from`, up to `to`, write.
    pub(crate) fn between(
        &self,
        shard: ShardId,
        from: u64,
        to: u64,
    ) -> impl Iterator<Item = &Bytes> {
        self.keys.range((shard, from + 1)..=(shard, to)).flat_map(|(_, keys)| keys)
    }
}
