//! Room on the disk, as far as puts are concerned.
//!
//! The shell looks at the disk now and then, more often the more is written, and says what is free
//! and what must stay so. What no look can see is counted here: all that is in line, under way, or
//! committed and not yet applied; and what was applied lately, since what was applied before the
//! last look may still be on its way to the disk, so it counts until the next.

/// How often a value is written until it lies in its place: in the write-ahead log as an entry and
/// as data, in a file of the log and in one of the data.
const TIMES_WRITTEN: u64 = 4;

/// What is free, what must stay free, and what was promised since.
#[derive(Default)]
pub(crate) struct Room {
    /// Free and reserved bytes, as they were last seen; nothing is refused before that.
    seen: Option<(u64, u64)>,
    /// Bytes applied before the last look, and since.
    applied: (u64, u64),
}

impl Room {
    /// The shell has looked.
    pub(crate) fn seen(&mut self, free_bytes: u64, reserve_bytes: u64) {
        self.seen = Some((free_bytes, reserve_bytes));
        self.applied = (self.applied.1, 0);
    }

    /// Whether less is free than must be.
    pub(crate) fn is_full(&self) -> bool {
        self.seen.is_some_and(|(free, reserve)| free < reserve)
    }

    /// Whether more than this is free; or else what is, and what would have to be.
    pub(crate) fn check_last(&self, least: u64) -> Result<(), (u64, u64)> {
        match self.seen {
            Some((free, reserve)) if reserve > 0 && free < least => Err((free, least)),
            _ => Ok(()),
        }
    }

    /// So many bytes of entries were applied.
    pub(crate) fn applied(&mut self, bytes: u64) {
        self.applied.1 = self.applied.1.saturating_add(bytes);
    }

    /// Whether there is room for a put of so many bytes behind `in_line` that are accepted and not
    /// yet applied; or else what is free and what would have to be.
    pub(crate) fn check(&self, bytes: u64, in_line: u64) -> Result<(), (u64, u64)> {
        let Some((free, reserve)) = self.seen else { return Ok(()) };
        let (before, since) = self.applied;
        let promised = [before, since, in_line, bytes]
            .into_iter()
            .fold(0, u64::saturating_add)
            .saturating_mul(TIMES_WRITTEN);
        let needed = reserve.saturating_add(promised);
        if reserve > 0 && free < needed { Err((free, needed)) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_accepted_and_not_written_yet_takes_room() {
        let mut room = Room::default();
        assert_eq!(room.check(u64::MAX, 0), Ok(()), "refused before anybody looked");
        room.seen(1_000, 200);
        assert_eq!((room.check(100, 100), room.check(1, 200)), (Ok(()), Err((1_000, 1_004))));
        assert!(!room.is_full(), "a single large put does not make the node full");
        // However often somebody looks meanwhile: it is in line still.
        (0..5).for_each(|_| room.seen(1_000, 200));
        assert_eq!(room.check(1, 200), Err((1_000, 1_004)));
        // Applied, and on its way still: it counts once more, and then the look has seen it.
        room.applied(200);
        assert_eq!(room.check(1, 0), Err((1_000, 1_004)));
        room.seen(1_000, 200);
        assert_eq!(room.check(1, 0), Err((1_000, 1_004)));
        room.seen(1_000, 200);
        assert_eq!(room.check(200, 0), Ok(()));
        room.seen(199, 200);
        assert!(room.is_full());
        room.seen(0, 0);
        assert_eq!(room.check(1 << 40, 0), Ok(()), "a reserve of 0 refuses nothing");
    }
}
