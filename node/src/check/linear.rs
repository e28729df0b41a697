//! The search: is there an order of the operations of one key that respects real time and that a
//! register could have gone through?
//!
//! Depth first, after Wing & Gong with the cache of Lowe ("Testing for linearizability", 2017): of
//! the operations that are left, any that was called before the first of them returned may be next;
//! a pair (operations done, register) that was met before is not entered again. Histories are
//! decided in about as many steps as they have operations, because of three things that hold of
//! revisions and of unknown outcomes:
//!
//! 1. **Revisions order the writes.** A definite step that shows revision *r* is impossible once
//!    the key is past *r*. Where such a step is left behind, the branch is dead
//!    ([`Step::deadline`]). Among puts that may be next only the one with the lowest revision ever
//!    survives this.
//! 2. **A read of what is there goes first.** A read (or a failed condition) that may be next and
//!    leaves the register as it is can be taken at once, without an alternative: in any order that
//!    works it can be moved to the front, since nothing else needs it. Of deletes this is not true:
//!    one that finds nothing now may be needed later.
//! 3. **An unknown write takes effect only where it is needed.** It has no return, so it can always
//!    be put off. Take, of all orders that work, one with the fewest unknown writes in effect, and
//!    among those one in which they come as late as possible. Let `U` be one of its unknown writes,
//!    `S` the register before it, and `X` the step right behind it.
//!    - There is an `X`, or `U` could be left out.
//!    - If `X` writes and would have been possible at `S`, then `U` could be left out: `X` covers
//!      it at once, nobody saw it, and the register after `X` is the same or has a lower floor,
//!      which allows more.
//!    - If `X` writes nothing, would have been possible at `S`, and `S` has an exact revision, then
//!      `X` could come before `U`: it changes nothing at `S`, and `U` comes later.
//!
//!    So after an unknown write only a step that *was not possible without it* is tried
//!    ([`needs`]). A put that nobody ever saw, and whose revision and presence nobody ever depended
//!    on, is thereby never tried at all, whereas one whose revision shows up in a failed condition
//!    is. Where the revision of `S` itself is open (two unknown writes in a row), `X` might pin the
//!    one or the other, and both are tried. After each step that is no unknown write the revision
//!    is exact.
//!
//! Unknown writes that ask for the same thing are interchangeable once they are called: only the
//! first that is left is tried. Of deletes that were answered and asked for the same, only the one
//! that returned first: whatever works with another works with it.
//!
//! The cache is bounded, and so is the number of steps; beyond it there is no verdict
//! ([`Found::GaveUp`]).

use super::register::{Kind, Register, Step};
use std::collections::{BTreeMap, BTreeSet};

/// At most so many steps are tried before the search gives up.
pub(super) const STEPS_MAX: u64 = 400_000;
/// What the cache may take.
const CACHE_BYTES_MAX: usize = 64 << 20;
/// What an entry of the cache takes beside its bits, about.
const ENTRY_BYTES: usize = 120;

/// What the search found.
#[derive(Clone, Debug)]
pub(super) enum Found {
    /// An order that works.
    Order,
    /// There is none. The longest that works got here.
    Nothing(Stuck),
    /// Nobody knows: the bound was hit.
    GaveUp,
}

/// The end of the longest order that works.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stuck {
    /// The register there.
    pub(super) register: Register,
    /// The step that had to be done by then, by its number: of those left, the one that returned
    /// first.
    pub(super) step: usize,
    /// How many definite steps were done.
    pub(super) done: usize,
}

/// Looks for an order. Also says how many steps were tried.
pub(super) fn search(steps: &[Step], steps_max: u64) -> (Found, u64) {
    let mut search = Search::new(steps);
    let found = search.run(steps_max);
    (found, search.tried)
}

/// Whether `kind` was possible only because of the unknown write that turned `before` into what it
/// is now.
fn needs(kind: &Kind, before: &Register) -> bool {
    before.after(kind).is_none() || (before.is_open() && !kind.writes())
}

/// A set of step numbers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Bits(Box<[u64]>);

impl Bits {
    fn new(count: usize) -> Self {
        Self(vec![0; count.div_ceil(64)].into())
    }
    fn has(&self, n: usize) -> bool {
        self.0[n / 64] >> (n % 64) & 1 == 1
    }
    fn flip(&mut self, n: usize) {
        self.0[n / 64] ^= 1 << (n % 64);
    }
}

/// Where in the three orders of definite steps the first that is left stands. Only grows along a
/// branch.
#[derive(Clone, Copy, Debug, Default)]
struct Front {
    called: usize,
    returned: usize,
    deadline: usize,
}

/// A step that may be next, and the register after it.
#[derive(Clone, Copy, Debug)]
struct Move {
    step: usize,
    register: Register,
    /// For an unknown write: the register before, which the next step must not have been possible
    /// at.
    owes: Option<Register>,
}

/// A node of the search.
struct Node {
    /// What was done to get here, to be taken back.
    done: Vec<usize>,
    moves: Vec<Move>,
    next: usize,
    front: Front,
}

struct Search<'a> {
    steps: &'a [Step],
    /// The definite steps, in three orders.
    by_called: Vec<usize>,
    by_returned: Vec<usize>,
    by_deadline: Vec<(u128, usize)>,
    /// The optional steps, those that ask for the same thing together, in the order of their calls.
    optional: Vec<Vec<usize>>,
    done: Bits,
    definite_done: usize,
    seen: BTreeSet<(Bits, Register, Option<Register>)>,
    tried: u64,
    stuck: Stuck,
}

/// What became of a move.
enum Entered {
    Finished,
    Dead,
    Node(Node),
}

impl<'a> Search<'a> {
    fn new(steps: &'a [Step]) -> Self {
        let definite = || (0..steps.len()).filter(|n| !steps[*n].optional);
        let mut by_called: Vec<_> = definite().collect();
        by_called.sort_by_key(|n| steps[*n].called);
        let mut by_returned: Vec<_> = definite().collect();
        by_returned.sort_by_key(|n| steps[*n].returned);
        let mut by_deadline: Vec<_> = definite().map(|n| (steps[n].deadline(), n)).collect();
        by_deadline.sort_unstable();
        let mut classes: BTreeMap<Kind, Vec<usize>> = BTreeMap::new();
        for n in (0..steps.len()).filter(|n| steps[*n].optional) {
            classes.entry(steps[n].kind).or_default().push(n);
        }
        let mut optional: Vec<_> = classes.into_values().collect();
        optional.iter_mut().for_each(|class| class.sort_by_key(|n| steps[*n].called));
        let stuck = Stuck {
            register: Register::default(),
            step: by_returned.first().copied().unwrap_or(0),
            done: 0,
        };
        Self {
            steps,
            by_called,
            by_returned,
            by_deadline,
            optional,
            done: Bits::new(steps.len()),
            definite_done: 0,
            seen: BTreeSet::new(),
            tried: 0,
            stuck,
        }
    }

    fn run(&mut self, steps_max: u64) -> Found {
        let cached_max = CACHE_BYTES_MAX / (self.done.0.len() * 8 + ENTRY_BYTES);
        let mut path = match self.enter(Vec::new(), Register::default(), None, Front::default()) {
            Entered::Finished => return Found::Order,
            Entered::Dead => return Found::Nothing(self.stuck),
            Entered::Node(root) => vec![root],
        };
        while let Some(node) = path.last_mut() {
            let Some(&Move { step, register, owes }) = node.moves.get(node.next) else {
                let done = path.pop().map(|node| node.done).unwrap_or_default();
                self.take_back(&done);
                continue;
            };
            node.next += 1;
            if self.tried >= steps_max || self.seen.len() >= cached_max {
                return Found::GaveUp;
            }
            let front = node.front;
            self.take(step);
            match self.enter(vec![step], register, owes, front) {
                Entered::Finished => return Found::Order,
                Entered::Dead => {}
                Entered::Node(node) => path.push(node),
            }
        }
        Found::Nothing(self.stuck)
    }

    fn take(&mut self, step: usize) {
        self.done.flip(step);
        self.definite_done += usize::from(!self.steps[step].optional);
        self.tried += 1;
    }

    fn take_back(&mut self, done: &[usize]) {
        for &step in done {
            self.done.flip(step);
            self.definite_done -= usize::from(!self.steps[step].optional);
        }
    }

    /// Goes on from `register`, with what is in `done` newly done.
    fn enter(
        &mut self,
        mut done: Vec<usize>,
        register: Register,
        owes: Option<Register>,
        mut front: Front,
    ) -> Entered {
        debug_assert!(
            owes.is_some() || !register.is_open(),
            "a revision is open, and no unknown write came last"
        );
        let first_return = loop {
            let Some(first_return) = self.advance(&mut front) else { return Entered::Finished };
            let still = |n: &usize| {
                !self.steps[*n].kind.writes()
                    && register.after(&self.steps[*n].kind) == Some(register)
            };
            let greedy =
                if owes.is_some() { None } else { self.definite(front, first_return).find(still) };
            let Some(step) = greedy else { break first_return };
            self.take(step);
            done.push(step);
        };
        if owes.is_none() && self.definite_done >= self.stuck.done {
            self.stuck = Stuck {
                register,
                step: self.by_returned[front.returned],
                done: self.definite_done,
            };
        }
        let late = self
            .by_deadline
            .get(front.deadline)
            .is_some_and(|(deadline, _)| *deadline < register.position());
        if late || !self.seen.insert((self.done.clone(), register, owes)) {
            self.take_back(&done);
            return Entered::Dead;
        }
        let needed = |kind: &Kind| owes.is_none_or(|before| needs(kind, &before));
        let definite = self.definite(front, first_return).filter_map(|step| {
            let kind = &self.steps[step].kind;
            let register = needed(kind).then(|| register.after(kind))??;
            Some(Move { step, register, owes: None })
        });
        let mut moves: Vec<_> = definite.collect();
        moves.sort_by_key(|next| self.steps[next.step].returned);
        // Of deletes that ask for the same, the first to return.
        let mut deletes = BTreeSet::new();
        moves.retain(|next| match self.steps[next.step].kind {
            Kind::Delete(when) => deletes.insert(when),
            _ => true,
        });
        moves.extend(self.optional.iter().filter_map(|class| {
            let step = *class
                .iter()
                .find(|n| !self.done.has(**n))
                .filter(|n| self.steps[**n].called <= first_return)?;
            let kind = &self.steps[step].kind;
            let after = needed(kind).then(|| register.after(kind))??;
            Some(Move { step, register: after, owes: Some(register) })
        }));
        Entered::Node(Node { done, moves, next: 0, front })
    }

    /// Moves the front past what is done, and says when the first step that is left returned;
    /// `None` when none is left.
    fn advance(&self, front: &mut Front) -> Option<u64> {
        let past = |at: &mut usize, step: &dyn Fn(usize) -> Option<usize>| {
            while step(*at).is_some_and(|step| self.done.has(step)) {
                *at += 1;
            }
        };
        past(&mut front.called, &|at| self.by_called.get(at).copied());
        past(&mut front.returned, &|at| self.by_returned.get(at).copied());
        past(&mut front.deadline, &|at| self.by_deadline.get(at).map(|(_, step)| *step));
        self.by_returned.get(front.returned).map(|step| self.steps[*step].returned)
    }

    /// The definite steps that may be next: left, and not called after another that is left had
    /// returned.
    fn definite(&self, front: Front, first_return: u64) -> impl Iterator<Item = usize> + '_ {
        let left = self.by_called[front.called..].iter().copied();
        left.take_while(move |n| self.steps[*n].called <= first_return)
            .filter(|n| !self.done.has(*n))
    }
}
