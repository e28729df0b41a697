//! Room on the disk, as far as puts are concerned.
//!
//! The shell looks at the disk now and then, more often the more is written, and says what is free and what must stay so. Between two
//! looks what was accepted is counted here: a put that was accepted and is not written yet takes no space that a look could see. What
//! was accepted before the last look may still be on its way through log and apply, so it counts until the next.

/// How often a value is written until it lies in its place: in the write-ahead log as an entry and as data, in a file of the log and in
/// one of the data.
const TIMES_WRITTEN: u64 = 4;

/// What is free, what must stay free, and what was promised since.
#[derive(Default)]
pub(super) struct Room {
    /// Free and reserved bytes, as they were last seen; nothing is refused before that.
    seen: Option<(u64, u64)>,
    /// Bytes accepted before the last look, and since.
    accepted: (u64, u64),
}

impl Room {
    /// The shell has looked.
    pub(super) fn seen(&mut self, free_bytes: u64, reserve_bytes: u64) {
        self.seen = Some((free_bytes, reserve_bytes));
        self.accepted = (self.accepted.1, 0);
    }

    /// Whether less is free than must be.
    pub(super) fn is_full(&self) -> bool {
        self.seen.is_some_and(|(free, reserve)| free < reserve)
    }

    /// Accepts a put of so many bytes, or says what is free and what would have to be.
    pub(super) fn accept(&mut self, bytes: u64) -> Result<(), (u64, u64)> {
        let Some((free, reserve)) = self.seen else { return Ok(()) };
        let (before, since) = self.accepted;
        let promised = before.saturating_add(since).saturating_add(bytes).saturating_mul(TIMES_WRITTEN);
        let needed = reserve.saturating_add(promised);
        if reserve > 0 && free < needed {
            return Err((free, needed));
        }
        self.accepted.1 = since.saturating_add(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_accepted_and_is_not_written_yet_takes_room() {
        let mut room = Room::default();
        assert_eq!(room.accept(u64::MAX), Ok(()), "refused before anybody looked");
        room.seen(1_000, 200);
        assert_eq!((room.accept(100), room.accept(100), room.accept(1)), (Ok(()), Ok(()), Err((1_000, 1_004))));
        assert!(!room.is_full(), "a single large put does not make the node full");
        // On its way still: it counts once more, and then the look has seen it.
        room.seen(1_000, 200);
        assert_eq!(room.accept(1), Err((1_000, 1_004)));
        room.seen(1_000, 200);
        assert_eq!(room.accept(200), Ok(()));
        room.seen(199, 200);
        assert!(room.is_full());
        room.seen(0, 0);
        assert_eq!(room.accept(1 << 40), Ok(()), "a reserve of 0 refuses nothing");
    }
}
