//! What stands under the keys, byte by byte. Every record has a format byte; those of `log` and
//! `state` a checksum as well.
//!
//! ```text
//! sealed     checksum (4) ‖ format (1) ‖ body          CRC-32 over key ‖ format ‖ body
//! log entry  sealed: kind (1) ‖ term (8) ‖ index (8) ‖ context (4 + n) ‖ data (rest)
//! hard state sealed: term (8) ‖ vote (8) ‖ commit (8)
//! truncated  sealed: index (8) ‖ term (8)
//! descriptor sealed: a router descriptor
//! replica    sealed: replica (8)                        the tombstone too
//! identity   sealed: cluster (8) ‖ node (8) ‖ incarnation (8) ‖ directory (8)
//! data       format (1) ‖ revision (8) ‖ expiry (8), 0 for none ‖ value (rest)
//! applied    format (1) ‖ index (8) ‖ term (8) ‖ revision (8)
//! ```
//!
//! The other sealed records stand in the rooms that write them: the install marker in
//! [`snapshot`](crate::snapshot), the bootstrap mark in [`bootstrap`](mod@crate::bootstrap), the
//! other nodes' directories in [`directories`](crate::directories).
//!
//! The checksum covers the key, so that a record which strayed to another shard or index is told
//! from one that belongs there. The `data` family rests on the engine's block checksums: its
//! records are read on every request. Decoding never panics, and shares the buffer that it was
//! given.

use crate::work::{EntryKind, HardState, LogEntry, LogPosition};
use bytes::{BufMut, Bytes};
use flotilla_router::codec::{Put, Reader};
use flotilla_router::{
    ClusterId, DecodeError, Descriptor, Incarnation, NodeId, ReplicaId, Revision,
};

/// The format byte of every record that this release writes, but for the install marker
/// ([`snapshot`](crate::snapshot)).
pub const FORMAT: u8 = 1;
/// Bytes of a data record in front of the value.
pub const DATA_HEADER_BYTES: usize = 17;
/// Bytes of a sealed record in front of its body.
const SEAL_BYTES: usize = 5;
/// Bytes of a log entry's body in front of its context.
const ENTRY_HEADER_BYTES: usize = 21;

/// Who a data directory belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdentityRecord {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
    /// How often the node was started on it.
    pub incarnation: Incarnation,
    /// Drawn at random when the directory was bound.
    pub directory: u64,
}

/// Up to where a shard's data were applied, and the highest revision given out on the way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AppliedRecord {
    /// The last entry applied.
    pub at: LogPosition,
    /// The highest revision given out.
    pub revision: Revision,
}

/// A log entry as it lies in its record: everything but the two strings, which are only pointed at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryHead {
    /// Where it stands.
    pub at: LogPosition,
    /// What it is.
    pub kind: EntryKind,
    /// The length of its context.
    pub context_bytes: usize,
    /// The length of its data.
    pub data_bytes: usize,
}

impl EntryHead {
    /// What the entry is counted as, the same as [`LogEntry::bytes`].
    pub fn bytes(&self) -> u64 {
        (self.data_bytes + self.context_bytes + 32) as u64
    }
}

/// CRC-32 over a record's key and the part of it behind the checksum.
fn checksum(key: &[u8], rest: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(rest);
    hasher.finalize()
}

/// Replaces `out` by a sealed record under `key`, whose body `fill` appends.
pub fn seal(out: &mut Vec<u8>, key: &[u8], fill: impl FnOnce(&mut Vec<u8>)) {
    seal_as(out, key, FORMAT, fill);
}

/// [`seal`] for a record whose format has changed since the others'.
pub fn seal_as(out: &mut Vec<u8>, key: &[u8], format: u8, fill: impl FnOnce(&mut Vec<u8>)) {
    out.clear();
    out.put_u32(0);
    out.put_u8(format);
    fill(out);
    let sum = checksum(key, &out[4..]);
    out[..4].copy_from_slice(&sum.to_be_bytes());
}

/// Checks a sealed record under `key`, and shows its body.
pub fn unseal<'a>(
    what: &'static str,
    key: &[u8],
    record: &'a [u8],
) -> Result<&'a [u8], DecodeError> {
    let (format, body) = unseal_any(what, key, record)?;
    check_format(what, format)?;
    Ok(body)
}

/// [`unseal`] for a record that may be in one of several formats: the format, which the caller has
/// to look at, and the body.
pub fn unseal_any<'a>(
    what: &'static str,
    key: &[u8],
    record: &'a [u8],
) -> Result<(u8, &'a [u8]), DecodeError> {
    let Some((sum, rest)) = record.split_first_chunk::<4>().filter(|(_, rest)| !rest.is_empty())
    else {
        return Err(DecodeError::new(
            what,
            format!("{} bytes are too few for a record", record.len()),
        ));
    };
    let (stored, computed) = (u32::from_be_bytes(*sum), checksum(key, rest));
    if stored != computed {
        return Err(DecodeError::new(
            what,
            format!("checksum {stored:08x} is stored, {computed:08x} computed"),
        ));
    }
    Ok((rest[0], &rest[1..]))
}

fn check_format(what: &'static str, format: u8) -> Result<(), DecodeError> {
    if format == FORMAT {
        return Ok(());
    }
    Err(DecodeError::new(what, format!("format {format}; this binary reads {FORMAT}")))
}

/// Unseals a record, and hands its body to `read`, which must use it up.
fn open<T>(
    what: &'static str,
    key: &[u8],
    record: &Bytes,
    read: impl FnOnce(&mut Reader) -> Result<T, DecodeError>,
) -> Result<T, DecodeError> {
    let body = unseal(what, key, record)?;
    let mut reader = Reader::new(what, record.slice_ref(body));
    let value = read(&mut reader)?;
    reader.end()?;
    Ok(value)
}

/// Replaces `out` by a log entry's record.
pub fn encode_entry(out: &mut Vec<u8>, key: &[u8], entry: &LogEntry) {
    out.reserve(SEAL_BYTES + ENTRY_HEADER_BYTES + entry.context.len() + entry.data.len());
    seal(out, key, |out| {
        out.put_u8(match entry.kind {
            EntryKind::Normal => 0,
            EntryKind::ConfChange => 1,
            EntryKind::ConfChangeV2 => 2,
        });
        out.put_u64(entry.at.term);
        out.put_u64(entry.at.index);
        out.put_bytes_prefixed(&entry.context);
        out.put_slice(&entry.data);
    });
}

/// Verifies a log entry's record without copying any of it.
pub fn check_entry(key: &[u8], record: &[u8]) -> Result<EntryHead, DecodeError> {
    const WHAT: &str = "log entry";
    let body = unseal(WHAT, key, record)?;
    let Some((head, rest)) = body.split_first_chunk::<ENTRY_HEADER_BYTES>() else {
        return Err(DecodeError::new(WHAT, format!("a body of {} bytes", body.len())));
    };
    let kind = match head[0] {
        0 => EntryKind::Normal,
        1 => EntryKind::ConfChange,
        2 => EntryKind::ConfChangeV2,
        other => return Err(DecodeError::new(WHAT, format!("kind {other}"))),
    };
    let eight = |from: usize| {
        u64::from_be_bytes(head[from..from + 8].try_into().expect("eight bytes of a fixed array"))
    };
    let at = LogPosition { term: eight(1), index: eight(9) };
    let context_bytes =
        u32::from_be_bytes(head[17..].try_into().expect("the last four bytes of a fixed array"))
            as usize;
    let Some(data_bytes) = rest.len().checked_sub(context_bytes) else {
        return Err(DecodeError::new(
            WHAT,
            format!("a context of {context_bytes} bytes in {}", rest.len()),
        ));
    };
    Ok(EntryHead { at, kind, context_bytes, data_bytes })
}

/// Reads what [`encode_entry`] wrote; the strings share the record's buffer.
pub fn decode_entry(key: &[u8], record: &Bytes) -> Result<LogEntry, DecodeError> {
    let head = check_entry(key, record)?;
    let (context, data) = record[SEAL_BYTES + ENTRY_HEADER_BYTES..].split_at(head.context_bytes);
    Ok(LogEntry {
        at: head.at,
        kind: head.kind,
        data: record.slice_ref(data),
        context: record.slice_ref(context),
    })
}

/// Replaces `out` by a hard state's record.
pub fn encode_hard_state(out: &mut Vec<u8>, key: &[u8], state: HardState) {
    seal(out, key, |out| put_hard_state(out, state));
}

/// Appends a hard state to a longer record.
pub(crate) fn put_hard_state(out: &mut impl BufMut, state: HardState) {
    out.put_u64(state.term);
    out.put_u64(state.vote);
    out.put_u64(state.commit);
}

/// Reads what [`encode_hard_state`] wrote.
pub fn decode_hard_state(key: &[u8], record: &Bytes) -> Result<HardState, DecodeError> {
    open("hard state", key, record, read_hard_state)
}

/// Reads what [`put_hard_state`] wrote.
pub(crate) fn read_hard_state(r: &mut Reader) -> Result<HardState, DecodeError> {
    Ok(HardState { term: r.u64()?, vote: r.u64()?, commit: r.u64()? })
}

/// Replaces `out` by a truncated position's record.
pub fn encode_truncated(out: &mut Vec<u8>, key: &[u8], at: LogPosition) {
    seal(out, key, |out| {
        out.put_u64(at.index);
        out.put_u64(at.term);
    });
}

/// Reads what [`encode_truncated`] wrote.
pub fn decode_truncated(key: &[u8], record: &Bytes) -> Result<LogPosition, DecodeError> {
    open("truncated position", key, record, |r| Ok(LogPosition { index: r.u64()?, term: r.u64()? }))
}

/// Replaces `out` by a descriptor's record.
pub fn encode_descriptor(out: &mut Vec<u8>, key: &[u8], descriptor: &Descriptor) {
    seal(out, key, |out| out.put_slice(&descriptor.encode()));
}

/// Reads what [`encode_descriptor`] wrote.
pub fn decode_descriptor(key: &[u8], record: &Bytes) -> Result<Descriptor, DecodeError> {
    open("descriptor", key, record, |r| Descriptor::decode(r.take(r.remaining())?))
}

/// Replaces `out` by a record of one replica id: this node's member of a shard, or its tombstone.
pub fn encode_replica(out: &mut Vec<u8>, key: &[u8], replica: ReplicaId) {
    seal(out, key, |out| out.put_u64(replica.0));
}

/// Reads what [`encode_replica`] wrote.
pub fn decode_replica(key: &[u8], record: &Bytes) -> Result<ReplicaId, DecodeError> {
    open("replica id", key, record, |r| match r.u64()? {
        0 => Err(r.error("a replica with id 0")),
        id => Ok(ReplicaId(id)),
    })
}

/// Replaces `out` by the node's identity.
pub fn encode_identity(out: &mut Vec<u8>, key: &[u8], identity: IdentityRecord) {
    seal(out, key, |out| {
        out.put_u64(identity.cluster.0);
        out.put_u64(identity.node.0);
        out.put_u64(identity.incarnation.0);
        out.put_u64(identity.directory);
    });
}

/// Reads what [`encode_identity`] wrote.
pub fn decode_identity(key: &[u8], record: &Bytes) -> Result<IdentityRecord, DecodeError> {
    open("node identity", key, record, |r| {
        let (cluster, node, incarnation) =
            (ClusterId(r.u64()?), NodeId(r.u64()?), Incarnation(r.u64()?));
        Ok(IdentityRecord { cluster, node, incarnation, directory: r.u64()? })
    })
}

/// Replaces `out` by a data record. The expiry is 0: keys don't expire yet.
pub fn encode_data(out: &mut Vec<u8>, revision: Revision, value: &[u8]) {
    out.clear();
    out.reserve(DATA_HEADER_BYTES + value.len());
    out.put_u8(FORMAT);
    out.put_u64(revision.0);
    out.put_u64(0);
    out.put_slice(value);
}

/// The revision and the value of a data record.
pub fn decode_data(record: &[u8]) -> Result<(Revision, &[u8]), DecodeError> {
    let Some((head, value)) = record.split_first_chunk::<DATA_HEADER_BYTES>() else {
        return Err(DecodeError::new(
            "data record",
            format!("{} bytes are too few for a record", record.len()),
        ));
    };
    check_format("data record", head[0])?;
    Ok((
        Revision(u64::from_be_bytes(head[1..9].try_into().expect("eight bytes of a fixed array"))),
        value,
    ))
}

/// An applied state's record.
pub fn encode_applied(applied: AppliedRecord) -> [u8; 25] {
    let mut out = [FORMAT; 25];
    out[1..9].copy_from_slice(&applied.at.index.to_be_bytes());
    out[9..17].copy_from_slice(&applied.at.term.to_be_bytes());
    out[17..].copy_from_slice(&applied.revision.0.to_be_bytes());
    out
}

/// Reads what [`encode_applied`] wrote.
pub fn decode_applied(record: &[u8]) -> Result<AppliedRecord, DecodeError> {
    let Ok(record) = <&[u8; 25]>::try_from(record) else {
        return Err(DecodeError::new(
            "applied state",
            format!("{} bytes instead of 25", record.len()),
        ));
    };
    check_format("applied state", record[0])?;
    let eight = |from: usize| {
        u64::from_be_bytes(record[from..from + 8].try_into().expect("eight bytes of a fixed array"))
    };
    Ok(AppliedRecord {
        at: LogPosition { index: eight(1), term: eight(9) },
        revision: Revision(eight(17)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys;
    use flotilla_router::ShardId;
    use proptest::prelude::*;

    fn entry(data: Vec<u8>, context: Vec<u8>) -> LogEntry {
        let at = LogPosition { index: 9, term: 4 };
        LogEntry { at, kind: EntryKind::ConfChangeV2, data: data.into(), context: context.into() }
    }

    #[test]
    fn state_records_survive_their_encoding() {
        let (key, mut out) = (b"key", Vec::new());
        let hard = HardState { term: 3, vote: 2, commit: 17 };
        encode_hard_state(&mut out, key, hard);
        assert_eq!(decode_hard_state(key, &out.clone().into()), Ok(hard));
        assert!(
            decode_hard_state(b"kez", &out.clone().into()).is_err(),
            "a record of another key was taken"
        );
        let at = LogPosition { index: 5, term: 2 };
        encode_truncated(&mut out, key, at);
        assert_eq!(decode_truncated(key, &out.clone().into()), Ok(at));
        encode_replica(&mut out, key, ReplicaId(8));
        assert_eq!(decode_replica(key, &out.clone().into()), Ok(ReplicaId(8)));
        let identity = IdentityRecord {
            cluster: ClusterId(1),
            node: NodeId(2),
            incarnation: Incarnation(3),
            directory: 4,
        };
        encode_identity(&mut out, key, identity);
        assert_eq!(decode_identity(key, &out.clone().into()), Ok(identity));
        let applied = AppliedRecord { at, revision: Revision(11) };
        assert_eq!(decode_applied(&encode_applied(applied)), Ok(applied));
        encode_data(&mut out, Revision(12), b"value");
        assert_eq!(decode_data(&out), Ok((Revision(12), &b"value"[..])));
    }

    #[test]
    fn a_record_of_another_format_says_so() {
        let mut record = encode_applied(AppliedRecord::default());
        record[0] = 9;
        assert!(
            decode_applied(&record)
                .unwrap_err()
                .to_string()
                .contains("format 9; this binary reads 1")
        );
    }

    proptest! {
        #[test]
        fn an_entry_survives_its_encoding_and_no_flipped_bit_does(
            data in proptest::collection::vec(any::<u8>(), 0..60),
            context in proptest::collection::vec(any::<u8>(), 0..60),
            flip in any::<prop::sample::Index>(),
            bit in 0..8u8,
        ) {
            let (key, entry) = (keys::log_entry(ShardId(7), 9), entry(data, context));
            let mut out = Vec::new();
            encode_entry(&mut out, &key, &entry);
            prop_assert_eq!(decode_entry(&key, &out.clone().into()).unwrap(), entry);
            let elsewhere = keys::log_entry(ShardId(8), 9);
            prop_assert!(decode_entry(&elsewhere, &out.clone().into()).is_err());
            let at = flip.index(out.len());
            out[at] ^= 1 << bit;
            prop_assert!(decode_entry(&key, &out.into()).is_err());
        }

        #[test]
        fn bytes_that_are_no_record_never_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..80),
            sealed in any::<bool>(),
        ) {
            // A valid seal lets the bytes through to what lies behind it.
            let mut record = bytes.clone();
            if sealed {
                seal(&mut record, b"key", |out| out.extend_from_slice(&bytes));
            }
            let record = Bytes::from(record);
            let _ = decode_entry(b"key", &record);
            let _ = decode_hard_state(b"key", &record);
            let _ = decode_truncated(b"key", &record);
            let _ = decode_descriptor(b"key", &record);
            let _ = decode_replica(b"key", &record);
            let _ = decode_identity(b"key", &record);
            let _ = decode_data(&record);
            let _ = decode_applied(&record);
        }
    }
}
