//! What a batch changes, for commands that must see it before it is written.
//!
//! Most entries only put: they ask nothing. So a change is merely noted at the end of a list, and
//! the list is sorted into a map when the first condition, or the first deletion of a range, asks.
//! A range that was deleted as a whole is noted as such: keys inside it are gone, unless they were
//! written again later.

use bytes::Bytes;
use flotilla_router::{KeyRange, Revision};
use std::collections::BTreeMap;
use std::ops::Bound;

/// The changes of one key space in the batch that is being filled.
#[derive(Default)]
pub(crate) struct Overlay {
    /// Changes in order, not yet in `keys`: the key, and its revision unless it was deleted.
    noted: Vec<(Bytes, Option<Revision>)>,
    /// The latest change of each key.
    keys: BTreeMap<Bytes, Option<Revision>>,
    /// Ranges that were emptied; what lies in `keys` is newer.
    emptied: Vec<KeyRange>,
}

impl Overlay {
    /// Notes that the batch sets a key, or (with `None`) deletes it.
    pub(crate) fn note(&mut self, key: Bytes, revision: Option<Revision>) {
        self.noted.push((key, revision));
    }

    /// Notes that the batch empties a range.
    pub(crate) fn note_emptied(&mut self, range: &KeyRange) {
        self.settle();
        self.keys.retain(|key, _| !range.contains(key));
        self.emptied.push(range.clone());
    }

    /// What the batch makes of a key: `None` if it leaves it alone, `Some(None)` if it deletes it.
    pub(crate) fn look(&mut self, key: &[u8]) -> Option<Option<Revision>> {
        self.settle();
        match self.keys.get(key) {
            Some(change) => Some(*change),
            None if self.emptied(key) => Some(None),
            None => None,
        }
    }

    /// The keys of a range that the batch changes one by one, in order, and whether each is there
    /// afterwards.
    pub(crate) fn changed<'a>(
        &'a mut self,
        range: &'a KeyRange,
    ) -> impl Iterator<Item = (&'a Bytes, bool)> {
        self.settle();
        let end = range.end.as_ref().map_or(Bound::Unbounded, |end| Bound::Excluded(&end[..]));
        // An empty range is no range to a BTreeMap.
        let bounds = (!range.is_empty()).then_some((Bound::Included(&range.start[..]), end));
        bounds
            .into_iter()
            .flat_map(|bounds| self.keys.range::<[u8], _>(bounds))
            .map(|(key, change)| (key, change.is_some()))
    }

    /// Whether the batch empties a range around this key. The key may have been written again.
    pub(crate) fn emptied(&self, key: &[u8]) -> bool {
        self.emptied.iter().any(|range| range.contains(key))
    }

    /// Forgets everything: the batch was written.
    pub(crate) fn clear(&mut self) {
        self.noted.clear();
        self.keys.clear();
        self.emptied.clear();
    }

    /// Sorts what was noted.
    fn settle(&mut self) {
        self.keys.extend(self.noted.drain(..));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_change_counts() {
        let mut overlay = Overlay::default();
        overlay.note("a".into(), Some(Revision(1)));
        overlay.note("b".into(), Some(Revision(2)));
        overlay.note("a".into(), None);
        assert_eq!(
            (overlay.look(b"a"), overlay.look(b"b"), overlay.look(b"c")),
            (Some(None), Some(Some(Revision(2))), None)
        );
        overlay.note_emptied(&KeyRange::new("b", Some("d".into())));
        assert_eq!(
            (overlay.look(b"b"), overlay.look(b"c"), overlay.look(b"d")),
            (Some(None), Some(None), None)
        );
        overlay.note("c".into(), Some(Revision(3)));
        assert_eq!(
            overlay.look(b"c"),
            Some(Some(Revision(3))),
            "written again after its range was emptied"
        );
        let all = KeyRange::all();
        let changed: Vec<_> =
            overlay.changed(&all).map(|(key, there)| (key.clone(), there)).collect();
        assert_eq!(changed, [("a".into(), false), ("c".into(), true)]);
        overlay.clear();
        assert_eq!((overlay.look(b"b"), overlay.look(b"c")), (None, None));
    }
}
