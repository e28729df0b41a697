//! A replica's log as raft-rs sees it: all terms, and the newest bodies, in memory.
//!
//! raft-rs calls its `Storage` synchronously and panics on most errors, so nothing here ever
//! touches a disk:
//!
//! - the **terms** of the whole log are kept, as the first index of each run of equal terms;
//! - the **bodies** of everything that is not yet applied are kept, and of what followers still
//!   need as far as the cache allows. Older bodies are asked for (`LogTemporarilyUnavailable`),
//!   fetched by the shell, and held until raft-rs takes them;
//! - a **snapshot** is asked for the same way.
//!
//! **Invariants.** `truncated ≤ last`. The cache is contiguous and ends at `last`; it begins at or
//! below `applied + 1`. `term_starts` covers `(truncated, last]`. Entries that were handed out to
//! be persisted are here before `advance_append_async`.

use flotilla_storage::{EntryKind, HardState, LogEntry, LogPosition, Recovered};
use raft::eraftpb::{ConfState, Entry, EntryType, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};
use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};

/// What one entry is counted as: its payload and 32 bytes around it, as on disk.
pub(crate) fn entry_bytes(entry: &Entry) -> u64 {
    (entry.data.len() + entry.context.len() + 32) as u64
}

/// A raft-rs entry as storage knows it. Payloads are shared, not copied.
pub(crate) fn to_stored(entry: &Entry) -> LogEntry {
    LogEntry {
        at: LogPosition { index: entry.index, term: entry.term },
        kind: match entry.get_entry_type() {
            EntryType::EntryNormal => EntryKind::Normal,
            EntryType::EntryConfChange => EntryKind::ConfChange,
            EntryType::EntryConfChangeV2 => EntryKind::ConfChangeV2,
        },
        data: entry.data.clone(),
        context: entry.context.clone(),
    }
}

/// A stored entry as raft-rs knows it.
pub(crate) fn from_stored(entry: LogEntry) -> Entry {
    let mut out = Entry::default();
    out.set_entry_type(match entry.kind {
        EntryKind::Normal => EntryType::EntryNormal,
        EntryKind::ConfChange => EntryType::EntryConfChange,
        EntryKind::ConfChangeV2 => EntryType::EntryConfChangeV2,
    });
    out.index = entry.at.index;
    out.term = entry.at.term;
    out.data = entry.data;
    out.context = entry.context;
    out
}

/// raft-rs asked for entries that are not in memory.
#[derive(Debug)]
pub(crate) struct Wanted {
    /// The first index.
    pub(crate) low: u64,
    /// The index behind the last.
    pub(crate) high: u64,
    /// At most so many bytes.
    pub(crate) bytes_max: u64,
    /// What raft-rs wants to hear once they are here.
    pub(crate) context: GetEntriesContext,
}

/// What raft-rs's read-only questions leave behind for the replica to act on after the call.
#[derive(Default)]
struct Asked {
    entries: Vec<Wanted>,
    snapshot: BTreeSet<u64>,
}

/// The log of one replica.
pub(crate) struct LogView {
    truncated: LogPosition,
    last: LogPosition,
    term_starts: VecDeque<LogPosition>,
    cache: VecDeque<Entry>,
    cache_bytes: u64,
    /// Bodies that were fetched for a follower far behind; one run at a time, taken by raft-rs
    /// right after.
    fetched: Vec<Entry>,
    /// The snapshot that can be sent now.
    snapshot: Option<Snapshot>,
    /// The replicas that it may be sent to; the others wait for their turn.
    grants: BTreeSet<u64>,
    initial: RaftState,
    asked: RefCell<Asked>,
}

impl LogView {
    /// The log as it was found on disk.
    pub(crate) fn recovered(recovered: &Recovered, conf_state: ConfState) -> Self {
        let HardState { term, vote, commit } = recovered.hard_state;
        let hard_state = raft::eraftpb::HardState { term, vote, commit, ..Default::default() };
        let cache: VecDeque<_> = recovered.unapplied.iter().cloned().map(from_stored).collect();
        Self {
            truncated: recovered.truncated,
            last: recovered.last,
            term_starts: recovered.term_starts.iter().copied().collect(),
            cache_bytes: cache.iter().map(entry_bytes).sum(),
            cache,
            fetched: Vec::new(),
            snapshot: None,
            grants: BTreeSet::new(),
            initial: RaftState::new(hard_state, conf_state),
            asked: RefCell::default(),
        }
    }

    /// The last place that the log has forgotten.
    pub(crate) fn truncated(&self) -> LogPosition {
        self.truncated
    }

    /// Bytes of bodies in memory.
    pub(crate) fn cache_bytes(&self) -> u64 {
        self.cache_bytes
    }

    /// The term of the entry at `index`, where the log knows it.
    pub(crate) fn term_at(&self, index: u64) -> Option<u64> {
        if index == self.truncated.index {
            return Some(self.truncated.term);
        }
        if index < self.truncated.index || index > self.last.index {
            return None;
        }
        let run = self.term_starts.partition_point(|start| start.index <= index);
        run.checked_sub(1).map(|run| self.term_starts[run].term)
    }

    /// Appends entries, over whatever stood at their indices and above.
    pub(crate) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        assert!(
            first.index > self.truncated.index && first.index <= self.last.index + 1,
            "entries from {} do not follow a log that ends at {} and was truncated at {}",
            first.index,
            self.last.index,
            self.truncated.index
        );
        while self.cache.back().is_some_and(|e| e.index >= first.index) {
            let dropped = self.cache.pop_back().expect("looked at just now");
            self.cache_bytes -= entry_bytes(&dropped);
        }
        while self.term_starts.back().is_some_and(|start| start.index >= first.index) {
            self.term_starts.pop_back();
        }
        self.fetched.clear();
        for entry in entries {
            if self.term_starts.back().is_none_or(|start| start.term != entry.term) {
                self.term_starts.push_back(LogPosition { index: entry.index, term: entry.term });
            }
            self.cache_bytes += entry_bytes(entry);
            self.cache.push_back(entry.clone());
        }
        let last = entries.last().expect("not empty");
        self.last = LogPosition { index: last.index, term: last.term };
    }

    /// Forgets everything up to `to`, which is applied.
    pub(crate) fn truncate(&mut self, to: LogPosition) {
        assert!(
            to.index <= self.last.index && to.index >= self.truncated.index,
            "truncation outside the log"
        );
        self.evict(to.index);
        while self.term_starts.get(1).is_some_and(|next| next.index <= to.index + 1) {
            self.term_starts.pop_front();
        }
        if to.index == self.last.index {
            self.term_starts.clear();
        } else if let Some(first) = self.term_starts.front_mut() {
            first.index = first.index.max(to.index + 1);
        }
        self.truncated = to;
        if self.snapshot.as_ref().is_some_and(|s| s.get_metadata().index < to.index) {
            self.snapshot = None;
        }
    }

    /// Starts over at a snapshot.
    pub(crate) fn reset(&mut self, at: LogPosition, conf_state: ConfState) {
        self.truncated = at;
        self.last = at;
        self.term_starts.clear();
        self.cache.clear();
        self.cache_bytes = 0;
        self.fetched.clear();
        self.snapshot = None;
        self.initial.conf_state = conf_state;
    }

    /// Takes in a membership that was applied.
    pub(crate) fn set_conf_state(&mut self, conf_state: ConfState) {
        self.initial.conf_state = conf_state;
    }

    /// Drops the bodies up to `index` from memory; they stay on disk.
    pub(crate) fn evict(&mut self, index: u64) {
        while self.cache.front().is_some_and(|e| e.index <= index) {
            let dropped = self.cache.pop_front().expect("looked at just now");
            self.cache_bytes -= entry_bytes(&dropped);
        }
    }

    /// Takes in what was fetched from disk, until raft-rs has used it.
    pub(crate) fn hold_fetched(&mut self, entries: Vec<Entry>) {
        self.fetched = entries;
    }

    /// Lets go of what was fetched.
    pub(crate) fn drop_fetched(&mut self) {
        self.fetched = Vec::new();
    }

    /// Offers a snapshot to raft-rs, for the replicas that it is [granted](Self::grant_snapshot)
    /// to, or withdraws it.
    pub(crate) fn offer_snapshot(&mut self, snapshot: Option<Snapshot>) {
        if snapshot.is_none() {
            self.grants.clear();
        }
        self.snapshot = snapshot;
    }

    /// Whether what is offered still serves a follower.
    pub(crate) fn offers_snapshot(&self) -> bool {
        self.snapshot
            .as_ref()
            .is_some_and(|snapshot| snapshot.get_metadata().index >= self.truncated.index)
    }

    /// Has raft-rs send a snapshot to a replica when it asks the next time, or (with `false`) not
    /// any more.
    pub(crate) fn grant_snapshot(&mut self, to: u64, granted: bool) {
        if granted {
            self.grants.insert(to);
        } else {
            self.grants.remove(&to);
        }
    }

    /// Takes what raft-rs asked for since the last call: entries to fetch, and the replicas that
    /// need a snapshot.
    pub(crate) fn take_asked(&mut self) -> (Vec<Wanted>, BTreeSet<u64>) {
        let asked = self.asked.take();
        (asked.entries, asked.snapshot)
    }

    /// How many runs of entries raft-rs has asked for since the last call.
    pub(crate) fn wanted(&self) -> usize {
        self.asked.borrow().entries.len()
    }

    /// Forgets what it has asked for beyond so many.
    pub(crate) fn forget_wanted(&mut self, beyond: usize) {
        self.asked.get_mut().entries.truncate(beyond);
    }

    /// The cached bodies of `[low, high)`, cut at `bytes_max` but at least one; `None` if `low` is
    /// not in memory.
    fn cached(&self, low: u64, high: u64, bytes_max: u64) -> Option<Vec<Entry>> {
        let from = |first: u64| usize::try_from(low - first).ok();
        let (run, skip): (Box<dyn Iterator<Item = &Entry>>, _) =
            match (self.cache.front(), self.fetched.first()) {
                (Some(first), _) if first.index <= low => {
                    (Box::new(self.cache.iter()), from(first.index)?)
                }
                (_, Some(first))
                    if first.index <= low && low < first.index + self.fetched.len() as u64 =>
                {
                    (Box::new(self.fetched.iter()), from(first.index)?)
                }
                _ => return None,
            };
        let mut bytes = 0;
        let mut out = Vec::new();
        for entry in run.skip(skip).take_while(|e| e.index < high) {
            bytes += entry_bytes(entry);
            if !out.is_empty() && bytes > bytes_max {
                break;
            }
            out.push(entry.clone());
        }
        (!out.is_empty()).then_some(out)
    }
}

impl Storage for LogView {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(self.initial.clone())
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        assert!(
            high <= self.last.index + 1,
            "entries up to {high} of a log that ends at {}",
            self.last.index
        );
        if low <= self.truncated.index {
            return Err(StorageError::Compacted.into());
        }
        if low >= high {
            return Ok(Vec::new());
        }
        let bytes_max = max_size.into().unwrap_or(u64::MAX);
        if let Some(entries) = self.cached(low, high, bytes_max) {
            return Ok(entries);
        }
        assert!(
            context.can_async(),
            "bodies from {low} are asked for at once and not in memory: something unapplied was \
             evicted"
        );
        // What is in memory may not be on disk yet; what is not, is.
        let high = self.cache.front().map_or(high, |first| high.min(first.index));
        self.asked.borrow_mut().entries.push(Wanted { low, high, bytes_max, context });
        Err(StorageError::LogTemporarilyUnavailable.into())
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        self.term_at(index).ok_or_else(|| {
            let error = if index < self.truncated.index {
                StorageError::Compacted
            } else {
                StorageError::Unavailable
            };
            error.into()
        })
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.truncated.index + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last.index)
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        // A follower goes on from the snapshot by log, so it must not lie below what the log has
        // forgotten.
        let fits = |snapshot: &&Snapshot| {
            snapshot.get_metadata().index >= request_index.max(self.truncated.index)
        };
        match self.snapshot.as_ref().filter(fits).filter(|_| self.grants.contains(&to)) {
            Some(snapshot) => Ok(snapshot.clone()),
            None => {
                self.asked.borrow_mut().snapshot.insert(to);
                Err(StorageError::SnapshotTemporarilyUnavailable.into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_router::{Descriptor, Epoch, KeyRange, ReplicaId, ShardId};
    use flotilla_storage::INITIAL;

    fn view() -> LogView {
        let recovered = Recovered {
            descriptor: Descriptor {
                id: ShardId(2),
                range: KeyRange::all(),
                epoch: Epoch::default(),
                replicas: Vec::new(),
            },
            replica: ReplicaId(1),
            hard_state: HardState { term: 1, vote: 0, commit: 1 },
            truncated: INITIAL,
            last: INITIAL,
            term_starts: Vec::new(),
            applied: INITIAL,
            unapplied: Vec::new(),
            log_bytes: 0,
        };
        LogView::recovered(&recovered, ConfState::default())
    }

    fn entry(index: u64, term: u64) -> Entry {
        Entry { index, term, data: vec![0; 68].into(), ..Default::default() }
    }

    fn terms(view: &LogView) -> Vec<(u64, Option<u64>)> {
        (view.truncated.index..=view.last.index).map(|i| (i, view.term_at(i))).collect()
    }

    #[test]
    fn terms_follow_appends_overwrites_and_truncation() {
        let mut view = view();
        view.append(&[entry(2, 1), entry(3, 1), entry(4, 2), entry(5, 4)]);
        assert_eq!(
            terms(&view),
            [(1, Some(1)), (2, Some(1)), (3, Some(1)), (4, Some(2)), (5, Some(4))]
        );
        view.append(&[entry(4, 5)]);
        assert_eq!(terms(&view), [(1, Some(1)), (2, Some(1)), (3, Some(1)), (4, Some(5))]);
        assert_eq!(view.cache_bytes, 300);
        view.truncate(LogPosition { index: 2, term: 1 });
        assert_eq!(terms(&view), [(2, Some(1)), (3, Some(1)), (4, Some(5))]);
        view.truncate(LogPosition { index: 4, term: 5 });
        assert_eq!(terms(&view), [(4, Some(5))]);
        assert_eq!((view.term_at(3), view.term_at(5), view.cache_bytes), (None, None, 0));
    }

    #[test]
    fn what_is_not_in_memory_is_asked_for_and_found_once_fetched() {
        let mut view = view();
        view.append(&(2..=9).map(|i| entry(i, 1)).collect::<Vec<_>>());
        view.evict(5);
        let found = view.entries(6, 10, None, GetEntriesContext::empty(true)).unwrap();
        assert_eq!(found.iter().map(|e| e.index).collect::<Vec<_>>(), [6, 7, 8, 9]);
        assert_eq!(
            view.entries(6, 10, 250, GetEntriesContext::empty(true)).unwrap().len(),
            2,
            "cut at 250 bytes"
        );
        assert_eq!(
            view.entries(6, 10, 0, GetEntriesContext::empty(true)).unwrap().len(),
            1,
            "but at least one"
        );
        view.entries(3, 10, None, GetEntriesContext::empty(true)).unwrap_err();
        let (wanted, snapshot) = view.take_asked();
        assert_eq!((wanted.len(), wanted[0].low, wanted[0].high, snapshot.len()), (1, 3, 6, 0));
        view.hold_fetched(vec![entry(3, 1), entry(4, 1)]);
        assert_eq!(view.entries(3, 10, None, GetEntriesContext::empty(true)).unwrap().len(), 2);
        assert_eq!(
            view.entries(1, 10, None, GetEntriesContext::empty(true)).unwrap_err(),
            StorageError::Compacted.into()
        );
    }

    #[test]
    fn a_snapshot_below_the_truncated_log_is_not_offered() {
        let mut view = view();
        view.append(&(2..=9).map(|i| entry(i, 1)).collect::<Vec<_>>());
        let mut snapshot = Snapshot::default();
        snapshot.mut_metadata().index = 4;
        view.offer_snapshot(Some(snapshot));
        assert!(view.snapshot(0, 2).is_err(), "it is not that replica's turn");
        view.grant_snapshot(2, true);
        assert!(view.snapshot(0, 2).is_ok() && view.snapshot(0, 3).is_err());
        assert!(view.snapshot(5, 2).is_err(), "the follower asked for more");
        view.truncate(LogPosition { index: 6, term: 1 });
        assert!(view.snapshot(0, 2).is_err(), "the log goes on above it");
        assert_eq!(view.take_asked().1, [2, 3].into());
    }
}
