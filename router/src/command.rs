//! What a log entry carries: the commands of one shard that waited together, byte by byte.
//!
//! ```text
//! payload  := format (1) ‖ range epoch (8) ‖ command*
//! command  := length (4) ‖ op (1) ‖ condition ‖ fields
//! put      := 1 ‖ condition ‖ key (4 + n) ‖ value (rest)
//! delete   := 2 ‖ condition ‖ key (rest)
//! range    := 3 ‖ condition ‖ key range
//! condition:= 0 | 1 | 2 | 3 ‖ revision (8)        always, absent, present, at this revision
//! ```
//!
//! A command is encoded once, where the request came in, and travels as the same bytes through
//! forwarding, log and apply. The range epoch is the one that the leader saw when it proposed;
//! apply compares it again.

use crate::codec::{DecodeError, Put, Reader};
use crate::ids::Revision;
use crate::range::KeyRange;
use bytes::{BufMut, Bytes, BytesMut};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// The first byte of a payload.
const FORMAT: u8 = 1;
/// Bytes of a payload before its first command.
pub const PAYLOAD_HEADER_BYTES: usize = 9;

/// What must hold of a key for a command to take effect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Condition {
    /// Nothing.
    #[default]
    Always,
    /// There is no such key (`If-None-Match: *`).
    Absent,
    /// There is such a key (`If-Match: *`).
    Present,
    /// The key is at exactly this revision (`If-Match: "<revision>"`).
    At(Revision),
}

impl Condition {
    /// Whether the condition holds of a key at `current`; `None` when there is no such key.
    pub fn holds(self, current: Option<Revision>) -> bool {
        match self {
            Self::Always => true,
            Self::Absent => current.is_none(),
            Self::Present => current.is_some(),
            Self::At(revision) => current == Some(revision),
        }
    }
}

/// What a command does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// Sets a key.
    Put {
        /// 1 to 4096 bytes.
        key: Bytes,
        /// 0 bytes to 1 MiB.
        value: Bytes,
    },
    /// Removes a key, whether it is there or not.
    Delete {
        /// 1 to 4096 bytes.
        key: Bytes,
    },
    /// Removes every key of a range, and answers how many there were. The range lies within the
    /// shard.
    DeleteRange {
        /// The keys to remove.
        range: KeyRange,
    },
}

/// One client's write, in its encoding. Keys and values share the buffer.
#[derive(Clone, PartialEq, Eq)]
pub struct Command {
    op: Op,
    condition: Condition,
    /// All of it but the length in front.
    encoded: Bytes,
}

impl Command {
    /// Encodes a command: the only time that its key and value are copied before an entry is made
    /// of it.
    pub fn new(op: Op, condition: Condition) -> Self {
        let mut out = BytesMut::with_capacity(encoded_bytes(&op, condition));
        encode(&op, condition, &mut out);
        Self::read(out.freeze()).expect("what was encoded just now can be read")
    }

    /// What it does.
    pub fn op(&self) -> &Op {
        &self.op
    }

    /// When it does so. `Always` for a range.
    pub fn condition(&self) -> Condition {
        self.condition
    }

    /// The key by which the command finds its shard.
    pub fn routing_key(&self) -> &Bytes {
        match &self.op {
            Op::Put { key, .. } | Op::Delete { key } => key,
            Op::DeleteRange { range } => &range.start,
        }
    }

    /// Whether all keys that the command touches lie in the range.
    pub fn is_within(&self, range: &KeyRange) -> bool {
        match &self.op {
            Op::Put { key, .. } | Op::Delete { key } => range.contains(key),
            Op::DeleteRange { range: deleted } => range.intersect(deleted) == *deleted,
        }
    }

    /// How many bytes of an entry it takes.
    pub fn encoded_bytes(&self) -> usize {
        4 + self.encoded.len()
    }

    /// Reads one of an entry's commands.
    fn decode(reader: &mut Reader) -> Result<Self, DecodeError> {
        Self::read(reader.bytes()?)
    }

    fn read(encoded: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("command", encoded.clone());
        let op = reader.u8()?;
        let condition = match reader.u8()? {
            0 => Condition::Always,
            1 => Condition::Absent,
            2 => Condition::Present,
            3 => Condition::At(Revision(reader.u64()?)),
            other => return Err(reader.error(format!("condition {other}"))),
        };
        let op = match op {
            1 => {
                let key = reader.bytes()?;
                let value = reader.take(reader.remaining())?;
                Op::Put { key, value }
            }
            2 => Op::Delete { key: reader.take(reader.remaining())? },
            DELETE_RANGE => Op::DeleteRange { range: KeyRange::decode(&mut reader)? },
            other => return Err(reader.error(format!("op {other}"))),
        };
        reader.end()?;
        Ok(Self { op, condition, encoded })
    }
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Command").field("op", &self.op).field("condition", &self.condition).finish()
    }
}

impl Serialize for Command {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.encoded.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Command {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::read(Bytes::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// How many bytes [`encode`] appends.
fn encoded_bytes(op: &Op, condition: Condition) -> usize {
    let condition = if matches!(condition, Condition::At(_)) { 9 } else { 1 };
    1 + condition
        + match op {
            Op::Put { key, value } => 4 + key.len() + value.len(),
            Op::Delete { key } => key.len(),
            Op::DeleteRange { range } => {
                5 + range.start.len() + range.end.as_ref().map_or(0, |end| 4 + end.len())
            }
        }
}

fn encode(op: &Op, condition: Condition, out: &mut BytesMut) {
    out.put_u8(match op {
        Op::Put { .. } => 1,
        Op::Delete { .. } => 2,
        Op::DeleteRange { .. } => DELETE_RANGE,
    });
    match condition {
        Condition::Always => out.put_u8(0),
        Condition::Absent => out.put_u8(1),
        Condition::Present => out.put_u8(2),
        Condition::At(revision) => {
            out.put_u8(3);
            out.put_u64(revision.0);
        }
    }
    match op {
        Op::Put { key, value } => {
            out.put_bytes_prefixed(key);
            out.put_slice(value);
        }
        Op::Delete { key } => out.put_slice(key),
        Op::DeleteRange { range } => range.encode(out),
    }
}

/// The byte of a command that deletes a range.
const DELETE_RANGE: u8 = 3;

/// Gathers the commands that become one log entry.
pub struct PayloadBuilder {
    out: BytesMut,
}

impl PayloadBuilder {
    /// An entry proposed at this range epoch, with room for `bytes` of commands.
    pub fn new(range_epoch: u64, bytes: usize) -> Self {
        let mut out = BytesMut::with_capacity(PAYLOAD_HEADER_BYTES + bytes);
        out.put_u8(FORMAT);
        out.put_u64(range_epoch);
        Self { out }
    }

    /// Adds one more command.
    pub fn push(&mut self, command: &Command) {
        self.out.put_bytes_prefixed(&command.encoded);
    }

    /// The entry's data.
    pub fn finish(self) -> Bytes {
        self.out.freeze()
    }
}

/// A log entry's data, read back.
pub struct Payload {
    /// The range epoch at which the leader proposed it.
    pub range_epoch: u64,
    commands: Reader,
}

impl Payload {
    /// Reads the header; the commands follow from the iterator, each with its own verdict.
    pub fn decode(data: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("log entry payload", data);
        let format = reader.u8()?;
        if format != FORMAT {
            return Err(reader.error(format!("format {format}; this binary reads {FORMAT}")));
        }
        Ok(Self { range_epoch: reader.u64()?, commands: reader })
    }
}

/// How many commands an entry's data carry; found by their lengths alone, for the metrics. 0 where
/// they make no sense.
pub fn count_commands(data: &[u8]) -> usize {
    let Some(mut rest) = data.get(PAYLOAD_HEADER_BYTES..) else { return 0 };
    let mut count = 0;
    while let Some((length, behind)) = rest.split_first_chunk::<4>() {
        let Some(next) = behind.get(u32::from_be_bytes(*length) as usize..) else { return 0 };
        rest = next;
        count += 1;
    }
    count
}

/// Whether any command of an entry's data deletes a range; found without reading the commands.
/// `false` where they make no sense.
pub fn deletes_a_range(data: &[u8]) -> bool {
    let Some(mut rest) = data.get(PAYLOAD_HEADER_BYTES..) else { return false };
    while let Some((length, behind)) = rest.split_first_chunk::<4>() {
        if behind.first() == Some(&DELETE_RANGE) {
            return true;
        }
        let Some(next) = behind.get(u32::from_be_bytes(*length) as usize..) else { return false };
        rest = next;
    }
    false
}

impl Iterator for Payload {
    type Item = Result<Command, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.commands.is_empty() {
            return None;
        }
        let command = Command::decode(&mut self.commands);
        if command.is_err() {
            // Nothing behind a malformed command can be trusted.
            let rest = self.commands.remaining();
            let _ = self.commands.take(rest);
        }
        Some(command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_command() -> impl Strategy<Value = Command> {
        let key = || proptest::collection::vec(any::<u8>(), 1..20).prop_map(Bytes::from);
        let op = prop_oneof![
            (key(), proptest::collection::vec(any::<u8>(), 0..50))
                .prop_map(|(key, value)| Op::Put { key, value: value.into() }),
            key().prop_map(|key| Op::Delete { key }),
            (key(), proptest::option::of(key()))
                .prop_map(|(start, end)| Op::DeleteRange { range: KeyRange { start, end } }),
        ];
        let condition = prop_oneof![
            Just(Condition::Always),
            Just(Condition::Absent),
            Just(Condition::Present),
            any::<u64>().prop_map(|r| Condition::At(Revision(r))),
        ];
        (op, condition).prop_map(|(op, condition)| Command::new(op, condition))
    }

    proptest! {
        #[test]
        fn a_payload_survives_its_encoding(
            epoch in any::<u64>(),
            commands in proptest::collection::vec(any_command(), 0..8),
        ) {
            let mut builder = PayloadBuilder::new(epoch, 0);
            for command in &commands {
                builder.push(command);
                let bytes = encoded_bytes(command.op(), command.condition());
                prop_assert_eq!(command.encoded.len(), bytes);
                let encoded = crate::call::encode(command);
                let read: Command = crate::call::decode("command", &encoded).unwrap();
                prop_assert_eq!(&read, command);
                prop_assert_eq!((read.op(), read.condition()), (command.op(), command.condition()));
            }
            let data = builder.finish();
            prop_assert_eq!(count_commands(&data), commands.len());
            let any = commands.iter().any(|command| matches!(command.op(), Op::DeleteRange { .. }));
            prop_assert_eq!(deletes_a_range(&data), any);
            let payload = Payload::decode(data).unwrap();
            prop_assert_eq!(payload.range_epoch, epoch);
            prop_assert_eq!(payload.collect::<Result<Vec<_>, _>>().unwrap(), commands);
        }

        #[test]
        fn bytes_that_are_no_payload_never_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            count_commands(&bytes);
            deletes_a_range(&bytes);
            if let Ok(payload) = Payload::decode(bytes.into()) {
                let _ = payload.count();
            }
        }
    }

    #[test]
    fn conditions_hold_as_http_says() {
        let (none, five) = (None, Some(Revision(5)));
        let table = [
            (Condition::Always, true, true),
            (Condition::Absent, true, false),
            (Condition::Present, false, true),
            (Condition::At(Revision(5)), false, true),
            (Condition::At(Revision(4)), false, false),
        ];
        for (condition, absent, at_five) in table {
            assert_eq!(condition.holds(none), absent, "{condition:?} of an absent key");
            assert_eq!(condition.holds(five), at_five, "{condition:?} of a key at 5");
        }
    }
}
