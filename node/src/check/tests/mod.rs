//! Tests of the checker: it must find what is wrong, and nothing else.
//!
//! - `table`: histories made by hand, right and wrong, each named by what it shows.
//! - `reference`: long histories from a register under random schedules, which are right, and the
//!   same with one answer changed.
//! - `brute`: thousands of small histories, right and wrong, judged by trying every order.

mod brute;
mod reference;
mod table;

use super::{Input, Operation, Output};
use bytes::Bytes;
use flotilla_router::{Condition, Revision};

/// An operation of client 1 on key `k`.
fn operation(called: u64, returned: u64, input: Input, output: Output) -> Operation {
    Operation {
        client: 1,
        key: Bytes::from_static(b"k"),
        called,
        returned: Some(returned),
        input,
        output,
    }
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
