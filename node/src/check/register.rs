//! The model: what one key may be, and what each answer says about it.
//!
//! A [`Register`] is absent or holds a value at a revision. Every put that takes effect gives the
//! key a revision above all that it ever had, also across deletion and re-creation. The revision of
//! a put that was answered is known; that of a put with an unknown outcome is not, until somebody
//! is shown it. So a revision is either exact, or anything from a lower bound on ([`Held::open`]),
//! and what somebody is shown pins it.
//!
//! That deletions consume revisions too is how Flotilla does it and nothing that a client is
//! promised: not asked for here.
//!
//! A [`Step`] is an operation with its answer, in the form in which the search plays it against a
//! register. What was refused is no step at all, nor is a read without an answer.

use super::history::{Input, Operation, Output};
use bytes::Bytes;
use flotilla_router::{Condition, Revision};
use std::collections::BTreeMap;

/// A value, by number. All values that nobody ever read are one: [`Value::UNSEEN`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Value(u32);

impl Value {
    /// Any value that no read shows; which of them it is makes no difference to any answer.
    pub(super) const UNSEEN: Self = Self(0);
}

/// What a key holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Held {
    /// The value.
    pub(super) value: Value,
    /// Whether its revision is only known to be [`Register::floor`] or more.
    pub(super) open: bool,
}

/// The state of one key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Register {
    /// The revision of the last put; where that is open, the lowest that it can be. 0 before the
    /// first.
    pub(super) floor: u64,
    /// What the key holds, if it is there.
    pub(super) held: Option<Held>,
}

/// What an operation, as it was answered, does to a register or needs of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// A read saw this: a revision and a value, or nothing.
    See(Option<(u64, Value)>),
    /// A condition did not hold, and this was the revision.
    Fail(When, Option<u64>),
    /// A put took effect; its revision, where it is known.
    Put(Value, When, Option<u64>),
    /// A delete took effect.
    Delete(When),
}

impl Kind {
    /// Whether it writes, as opposed to only showing something.
    pub(super) fn writes(&self) -> bool {
        matches!(self, Self::Put(..) | Self::Delete(_))
    }
}

/// [`Condition`], in a form with an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum When {
    /// In any case.
    Always,
    /// If there is no such key.
    Absent,
    /// If there is such a key.
    Present,
    /// If the key is at this revision.
    At(u64),
}

impl When {
    fn holds(self, current: Option<u64>) -> bool {
        let condition = match self {
            Self::Always => Condition::Always,
            Self::Absent => Condition::Absent,
            Self::Present => Condition::Present,
            Self::At(revision) => Condition::At(Revision(revision)),
        };
        condition.holds(current.map(Revision))
    }
}

impl From<Condition> for When {
    fn from(condition: Condition) -> Self {
        match condition {
            Condition::Always => Self::Always,
            Condition::Absent => Self::Absent,
            Condition::Present => Self::Present,
            Condition::At(revision) => Self::At(revision.0),
        }
    }
}

/// One operation of the search.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    /// It took effect at this moment or later.
    pub(super) called: u64,
    /// It took effect at this moment or earlier.
    pub(super) returned: u64,
    /// Whether it may as well never have taken effect.
    pub(super) optional: bool,
    /// What it says.
    pub(super) kind: Kind,
}

impl Step {
    /// The same operation as it would stand there if nothing were known of it but that it was
    /// asked: it took effect at any time at all, or never. `None` for what writes nothing, which
    /// then says nothing.
    ///
    /// Whatever order fits a history fits it with one operation relaxed, too.
    pub(super) fn relaxed(self) -> Option<Self> {
        match self.kind {
            Kind::See(_) | Kind::Fail(..) => None,
            Kind::Put(..) | Kind::Delete(_) => {
                Some(Self { called: 0, returned: u64::MAX, optional: true, ..self })
            }
        }
    }

    /// How far a register may have gone, as [`Register::position`] counts, for this to be possible
    /// at all. Revisions only grow: what shows revision 5 is impossible from the moment on at which
    /// the key is past it.
    pub(super) fn deadline(&self) -> u128 {
        let seen = |revision: u64| 2 * u128::from(revision);
        let condition =
            |when| if let When::At(revision) = when { seen(revision) } else { u128::MAX };
        match self.kind {
            Kind::See(Some((revision, _))) | Kind::Fail(_, Some(revision)) => seen(revision),
            Kind::See(None) | Kind::Fail(_, None) => u128::MAX,
            Kind::Put(_, when, Some(revision)) => {
                condition(when).min(seen(revision).saturating_sub(1))
            }
            Kind::Put(_, when, None) | Kind::Delete(when) => condition(when),
        }
    }
}

impl Register {
    /// How far the key has gone: past every revision below its own, and when it is absent past the
    /// last one too.
    pub(super) fn position(&self) -> u128 {
        2 * u128::from(self.floor) + u128::from(self.held.is_none())
    }

    /// The register after a step, or `None` where the step is impossible.
    pub(super) fn after(&self, kind: &Kind) -> Option<Self> {
        match *kind {
            Kind::See(None) => self.held.is_none().then_some(*self),
            Kind::See(Some((revision, value))) => {
                self.held.filter(|held| held.value == value)?;
                self.pinned(revision)
            }
            Kind::Fail(when, current) if when.holds(current) => None,
            Kind::Fail(_, None) => self.held.is_none().then_some(*self),
            Kind::Fail(_, Some(revision)) => self.pinned(revision),
            Kind::Put(value, when, revision) => {
                let before = self.meeting(when)?;
                match revision {
                    Some(revision) if revision <= before.floor => None,
                    Some(revision) => {
                        Some(Self { floor: revision, held: Some(Held { value, open: false }) })
                    }
                    // A revision that does not exist would be needed above the highest one.
                    None => Some(Self {
                        floor: before.floor.checked_add(1)?,
                        held: Some(Held { value, open: true }),
                    }),
                }
            }
            Kind::Delete(when) => Some(Self { held: None, ..self.meeting(when)? }),
        }
    }

    /// The register, now that somebody saw its revision.
    fn pinned(&self, revision: u64) -> Option<Self> {
        let held = self.held?;
        let fits = if held.open { revision >= self.floor } else { revision == self.floor };
        fits.then_some(Self { floor: revision, held: Some(Held { open: false, ..held }) })
    }

    /// The register, now that a condition is known to have held.
    fn meeting(&self, when: When) -> Option<Self> {
        match when {
            When::Always => Some(*self),
            When::Absent => self.held.is_none().then_some(*self),
            When::Present => self.held.is_some().then_some(*self),
            When::At(revision) => self.pinned(revision),
        }
    }

    /// Whether the revision that the key holds is open.
    pub(super) fn is_open(&self) -> bool {
        self.held.is_some_and(|held| held.open)
    }
}

/// Turns the operations of one key into steps, in the order of the operations; `None` for what says
/// nothing.
pub(super) fn steps<'a>(operations: &[&'a Operation]) -> Vec<Option<Step>> {
    // 0 is what nobody read.
    let mut numbers: BTreeMap<&'a Bytes, u32> = BTreeMap::new();
    for operation in operations {
        if let Output::Read(Some((_, value))) = &operation.output {
            let next = numbers.len() as u32 + 1;
            numbers.entry(value).or_insert(next);
        }
    }
    let number = |value: &Bytes| numbers.get(value).map_or(Value::UNSEEN, |number| Value(*number));
    let step = |operation: &&Operation| {
        let optional = operation.output == Output::Unknown;
        let kind = match (&operation.input, &operation.output) {
            (_, Output::Refused) | (Input::Get, Output::Unknown) => return None,
            (_, Output::Read(seen)) => {
                Kind::See(seen.as_ref().map(|(revision, value)| (revision.0, number(value))))
            }
            (
                Input::Put { condition, .. } | Input::Delete { condition },
                Output::ConditionFailed { current },
            ) => Kind::Fail((*condition).into(), current.map(|revision| revision.0)),
            (Input::Put { value, condition }, output) => {
                let revision =
                    if let Output::Written { revision } = output { Some(revision.0) } else { None };
                Kind::Put(number(value), (*condition).into(), revision)
            }
            (Input::Delete { condition }, _) => Kind::Delete((*condition).into()),
            (Input::Get, _) => return None,
        };
        let returned = operation.returned.filter(|_| !optional).unwrap_or(u64::MAX);
        Some(Step { called: operation.called, returned, optional, kind })
    };
    operations.iter().map(step).collect()
}
