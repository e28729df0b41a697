//! Tests of the checker: it must find what is wrong, and nothing else.
//!
//! - `table`: histories made by hand, right and wrong, each named by what it shows.
//! - `reference`: long histories from a register under random schedules, which are right, and the same with one answer changed.
//! - `brute`: thousands of small histories, right and wrong, judged by trying every order.

mod brute;
mod reference;
mod table;

use super::{Input, Operation, Output};
use bytes::Bytes;
use flotilla_router::{Condition, Revision};

/// A small generator of random numbers (SplitMix64): a seed repeats a test.
pub(super) struct Random(pub(super) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn pick<'a, T>(&mut self, all: &'a [T]) -> Option<&'a T> {
        (!all.is_empty()).then(|| &all[self.below(all.len() as u64) as usize])
    }
}

/// An operation of client 1 on key `k`.
fn operation(called: u64, returned: u64, input: Input, output: Output) -> Operation {
    Operation { client: 1, key: Bytes::from_static(b"k"), called, returned: Some(returned), input, output }
}

fn put(value: &str, condition: Condition) -> Input {
    Input::Put { value: Bytes::copy_from_slice(value.as_bytes()), condition }
}

fn read(revision: u64, value: &str) -> Output {
    Output::Read(Some((Revision(revision), Bytes::copy_from_slice(value.as_bytes()))))
}

fn written(revision: u64) -> Output {
    Output::Written { revision: Revision(revision) }
}

fn failed(current: Option<u64>) -> Output {
    Output::ConditionFailed { current: current.map(Revision) }
}

fn at(revision: u64) -> Condition {
    Condition::At(Revision(revision))
}
