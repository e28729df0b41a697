//! The sizes that every room must agree on: of a key, a value, and a frame between nodes.
//!
//! A node's own limits may be lower, never higher. What comes from another node is held to these:
//! that node's limits are its own, and its word is not taken for them.

use crate::command::{Command, Op};

/// The longest key, in bytes. Stored records rely on it.
pub const KEY_BYTES_MAX: usize = 4096;
/// The largest value, in bytes. Log entries and frames rely on it.
pub const VALUE_BYTES_MAX: usize = 1 << 20;
/// The largest command as a log entry carries it: a value, two keys, and what stands around them.
pub const COMMAND_BYTES_MAX: usize = VALUE_BYTES_MAX + 2 * KEY_BYTES_MAX + 64;
/// The largest frame between two nodes. What is larger is dropped where it is sent and ends the
/// connection where it arrives, so nothing may come near it.
pub const FRAME_BYTES_MAX: usize = 16 << 20;
/// What a page of keys and values may have at most when it is to fit into one frame, with room for
/// what stands around them.
pub const PAGE_BYTES_MAX: usize = FRAME_BYTES_MAX / 2;

const _: () =
    assert!(FRAME_BYTES_MAX >= 8 * COMMAND_BYTES_MAX, "a command takes a small part of a frame");

impl Command {
    /// Whether key and value have sizes that any node may accept; if not, what is wrong.
    pub fn check_sizes(&self) -> Result<(), String> {
        let key = |key: &[u8]| match key.len() {
            1..=KEY_BYTES_MAX => Ok(()),
            n => Err(format!("a key of {n} bytes; 1 to {KEY_BYTES_MAX} are allowed")),
        };
        // A range starts before every key, or at one; it may end right behind the longest.
        let bound = |bound: &[u8]| match bound.len() {
            0..=KEY_BYTES_MAX => Ok(()),
            n if n == KEY_BYTES_MAX + 1 && bound.last() == Some(&0) => Ok(()),
            n => Err(format!("a range bounded by {n} bytes; at most {KEY_BYTES_MAX} are allowed")),
        };
        match self.op() {
            Op::Put { value, .. } if value.len() > VALUE_BYTES_MAX => Err(format!(
                "a value of {} bytes; at most {VALUE_BYTES_MAX} are allowed",
                value.len()
            )),
            Op::Put { key: k, .. } | Op::Delete { key: k } => key(k),
            Op::DeleteRange { range } => {
                bound(&range.start).and_then(|()| range.end.as_deref().map_or(Ok(()), bound))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Condition;
    use crate::range::KeyRange;

    #[test]
    fn commands_of_any_size_but_those_that_may_be_stored_are_refused() {
        let put = |key: usize, value: usize| Op::Put {
            key: vec![7; key].into(),
            value: vec![7; value].into(),
        };
        let delete = |key: usize| Op::Delete { key: vec![7; key].into() };
        let range = |start: usize, end: Option<Vec<u8>>| Op::DeleteRange {
            range: KeyRange::new(vec![7; start], end.map(Into::into)),
        };
        let behind_the_longest = [vec![7; KEY_BYTES_MAX], vec![0]].concat();
        for (op, taken) in [
            (put(1, 0), true),
            (put(KEY_BYTES_MAX, VALUE_BYTES_MAX), true),
            (put(0, 1), false),
            (put(KEY_BYTES_MAX + 1, 1), false),
            (put(1, VALUE_BYTES_MAX + 1), false),
            (delete(KEY_BYTES_MAX), true),
            (delete(0), false),
            (delete(KEY_BYTES_MAX + 1), false),
            (range(0, None), true),
            (range(KEY_BYTES_MAX, Some(behind_the_longest)), true),
            (range(KEY_BYTES_MAX + 1, None), false),
            (range(0, Some(vec![7; KEY_BYTES_MAX + 1])), false),
        ] {
            let command = Command::new(op, Condition::Always);
            assert_eq!(command.check_sizes().is_ok(), taken, "{:?}", command.check_sizes());
            assert!(
                !taken || command.encoded_bytes() <= COMMAND_BYTES_MAX,
                "{} bytes",
                command.encoded_bytes()
            );
        }
    }
}
