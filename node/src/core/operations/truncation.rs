//! Truncation: when the front of a log is forgotten.
//!
//! It is driven by size. A log larger than its share is cut to half of it, but never beyond what is
//! applied; up to twice the share not beyond what a live follower still needs, and up to four times
//! not above a snapshot that is on its way to one. A snapshot that takes longer than that, or keeps
//! failing, is given up. For these two the share is what one shard may have at most, as long as all
//! logs together stay within their bound: with many shards most are idle, and a busy one needs what
//! they leave. While the disk is full a log keeps an eighth of its share: what nobody needs soon
//! makes room.
//!
//! It is staged like any write: applied data were written before it, to the same write-ahead log,
//! so that no crash can keep the cut and lose what justified it.

use super::{Changes, Operation, RoleChange};
use crate::core::context::Context;
use crate::core::group::Group;
use crate::core::group::log::entry_bytes;
use flotilla_storage::{LogPosition, Truncate};
use raft::eraftpb::Entry;
use std::collections::VecDeque;

/// As many times its share a log may grow for the sake of a live follower.
const NEEDED_SHARES_MAX: u64 = 2;
/// The same for the sake of a snapshot that is on its way.
const PINNED_SHARES_MAX: u64 = 4;
/// Bytes of log between two places at which it can be cut.
const MARK_BYTES: u64 = 256 << 10;

/// The size of one log, and where it can be cut.
pub(crate) struct Truncation {
    /// The last index up to each mark, and the bytes between it and the mark before.
    marks: VecDeque<(u64, u64)>,
    /// Bytes above the last mark.
    open_bytes: u64,
    last: u64,
    bytes: u64,
}

impl Truncation {
    /// A log of this many bytes was found on disk; where they lie inside it is not known.
    pub(crate) fn new(last: LogPosition, bytes: u64) -> Self {
        Self {
            marks: VecDeque::from([(last.index, bytes)]),
            open_bytes: 0,
            last: last.index,
            bytes,
        }
    }

    /// Bytes of log.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Entries were appended. What they overwrote still counts until it is cut: overwriting is rare
    /// and short.
    pub(crate) fn appended(&mut self, entries: &[Entry]) {
        for entry in entries {
            let bytes = entry_bytes(entry);
            self.bytes += bytes;
            self.open_bytes += bytes;
            self.last = self.last.max(entry.index);
            if self.open_bytes >= MARK_BYTES {
                self.marks.push_back((self.last, std::mem::take(&mut self.open_bytes)));
            }
        }
    }

    /// The lowest place to cut at which the log would be no larger than `bytes_max`, or the highest
    /// below `index_max`.
    fn place(&self, bytes_max: u64, index_max: u64) -> Option<u64> {
        let mut left = self.bytes;
        let mut place = None;
        for (index, bytes) in &self.marks {
            if left <= bytes_max || *index > index_max {
                break;
            }
            left -= bytes;
            place = Some(*index);
        }
        place
    }

    /// The log was cut at `index`.
    fn forget_up_to(&mut self, index: u64) {
        while self.marks.front().is_some_and(|(mark, _)| *mark <= index) {
            let (_, bytes) = self.marks.pop_front().expect("looked at just now");
            self.bytes -= bytes;
        }
    }

    /// The log starts over at `index`.
    pub(crate) fn reset(&mut self, index: u64) {
        *self = Self { marks: VecDeque::new(), open_bytes: 0, last: index, bytes: 0 };
    }
}

impl Truncation {
    /// Whether the log has grown so long that no snapshot on its way may hold it any more.
    pub(crate) fn outgrew_its_pin(&self, ctx: &Context<'_>) -> bool {
        self.bytes() > PINNED_SHARES_MAX.saturating_mul(Share::of(ctx).lent)
    }

    /// Forgets the front of a log that is too large, up to `pinned` where a snapshot on its way
    /// needs what is above.
    pub(crate) fn cut(&mut self, pinned: Option<u64>, group: &mut Group, ctx: &mut Context<'_>) {
        let Share { kept, lent } = Share::of(ctx);
        if self.bytes() <= kept {
            return;
        }
        let mut index_max = group.applied.index.min(pinned.unwrap_or(u64::MAX));
        if self.bytes() <= NEEDED_SHARES_MAX.saturating_mul(lent) {
            index_max = index_max.min(group.needed_by_live_followers(ctx.liveness));
        }
        let Some(index) = self.place(kept / 2, index_max) else { return };
        let log = group.raw.store();
        let (truncated, Some(term)) = (log.truncated(), log.term_at(index)) else { return };
        if index <= truncated.index {
            return;
        }
        let to = LogPosition { index, term };
        group.raw.mut_store().truncate(to);
        self.forget_up_to(index);
        let write = ctx.pass.write(group.shard);
        let from = write.truncate.map_or(truncated.index + 1, |t| t.from);
        write.truncate = Some(Truncate { from, to });
    }
}

/// What one log may have.
struct Share {
    /// What it keeps.
    kept: u64,
    /// What it may have for the sake of others.
    lent: u64,
}

impl Share {
    fn of(ctx: &Context<'_>) -> Self {
        let (log, budgets) = (&ctx.config.log, &ctx.budgets);
        let share =
            log.bytes_per_shard_max.min((log.bytes_max / budgets.replicas.max(1)).max(1 << 20));
        let kept = if budgets.room.is_full() { share / 8 } else { share };
        let lent = if budgets.log_bytes <= log.bytes_max { log.bytes_per_shard_max } else { share };
        Self { kept, lent }
    }
}

impl Operation for Truncation {
    fn on_applied(&mut self, _: &mut Group, _: &mut Context<'_>, _: &mut Changes) {
        // The composer has it cut, with what a snapshot on its way needs.
    }

    fn on_role(&mut self, _: &mut Group, _: &mut Context<'_>, _: RoleChange) {}
    fn on_tick(&mut self, _: &mut Group, _: &mut Context<'_>) {}
    fn end(&mut self, _: &mut Group, _: &mut Context<'_>) {}

    fn is_idle(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(from: u64, to: u64) -> Vec<Entry> {
        (from..=to)
            .map(|index| Entry {
                index,
                term: 1,
                data: vec![0; (64 << 10) - 32].into(),
                ..Default::default()
            })
            .collect()
    }

    #[test]
    fn the_log_is_cut_at_marks_and_never_above_what_is_allowed() {
        let mut log = Truncation::new(LogPosition { index: 1, term: 1 }, 0);
        log.appended(&entries(2, 41));
        assert_eq!(log.bytes(), 40 * (64 << 10));
        let half = log.bytes() / 2;
        let place = log.place(half, u64::MAX).unwrap();
        assert_eq!(place, 21, "twenty entries go, twenty stay");
        assert_eq!(log.place(half, 20).unwrap(), 17, "the highest mark at or below 20");
        assert_eq!(log.place(half, 4), Some(1), "only the mark of what was found on disk");
        log.forget_up_to(place);
        assert_eq!(log.bytes(), half);
        assert_eq!(log.place(half, u64::MAX), None, "small enough");
    }
}
