//! Entries that raft-rs wants for a follower far behind, and that are no longer in memory.
//!
//! *Propose*: raft-rs looks into its log and finds nothing; what it looked for is asked of the
//! disk. *On result*: what came is held where raft-rs looks next, and it is told so. Only what the
//! log still says is held: it may have been truncated or overwritten since.

use super::{Changes, Operation, RoleChange};
use crate::core::context::Context;
use crate::core::effect::Effect;
use crate::core::group::Group;
use crate::core::group::log::{Wanted, from_stored};
use flotilla_storage::LogEntry;
use raft::GetEntriesContext;
use std::collections::BTreeMap;

/// Bytes of entries that are fetched at once.
const BYTES_MAX: u64 = 4 << 20;

/// What is on its way from disk, by the number of the fetch.
#[derive(Default)]
pub(crate) struct Fetch {
    under_way: BTreeMap<u64, UnderWay>,
}

struct UnderWay {
    low: u64,
    /// What raft-rs wants to hear once the entries are here.
    context: GetEntriesContext,
}

impl Fetch {
    /// raft-rs has found entries missing.
    pub(crate) fn ask(&mut self, wanted: Wanted, group: &Group, ctx: &mut Context<'_>) {
        // Every proposal asks again for what a follower far behind needs; without this each would
        // start a row of fetches that never ends before the follower has caught up. Another
        // follower at the same place asks again on its heartbeat.
        if self.under_way.values().any(|under_way| under_way.low == wanted.low) {
            return;
        }
        let (fetch, shard) = (ctx.ids.fetch(), group.shard);
        let Wanted { low, high, bytes_max, context } = wanted;
        let bytes_max = bytes_max.min(BYTES_MAX);
        ctx.pass.effects.push(Effect::FetchEntries { fetch, shard, low, high, bytes_max });
        self.under_way.insert(fetch, UnderWay { low, context });
    }

    /// Entries have come from disk: raft-rs sends them on, if the follower still needs them.
    pub(crate) fn fetched(
        &mut self,
        fetch: u64,
        entries: Vec<LogEntry>,
        group: &mut Group,
        ctx: &mut Context<'_>,
    ) {
        let Some(UnderWay { context, .. }) = self.under_way.remove(&fetch) else { return };
        if entries.is_empty() || group.quarantined.is_some() {
            return;
        }
        let log = group.raw.mut_store();
        if entries.iter().all(|entry| log.term_at(entry.at.index) == Some(entry.at.term)) {
            log.hold_fetched(entries.into_iter().map(from_stored).collect());
            group.raw.on_entries_fetched(context);
            ctx.pass.touch(group.shard);
        }
    }
}

impl Operation for Fetch {
    fn on_applied(&mut self, _: &mut Group, _: &mut Context<'_>, _: &mut Changes) {}
    fn on_role(&mut self, _: &mut Group, _: &mut Context<'_>, _: RoleChange) {}
    fn on_tick(&mut self, _: &mut Group, _: &mut Context<'_>) {}

    fn end(&mut self, _: &mut Group, _: &mut Context<'_>) {
        // What still comes is let go of when it comes.
    }

    fn is_idle(&self) -> bool {
        self.under_way.is_empty()
    }
}
