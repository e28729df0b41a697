//! Where every record stands: the keys of the three families, byte by byte.
//!
//! ```text
//! log    shard (8) ‖ index (8)
//! state  shard (8) ‖ tag (1)                 of a replica
//!        0 (8) ‖ tag (1) [‖ shard or node (8)] of the node: no shard has the id 0, so these stand in front and never collide
//! data   1 (1) ‖ shard (8)                   up to where the shard has applied
//!        2 (1) ‖ user key
//!        3 (1) ‖ key of the meta shard       a space of its own, which no user key reaches
//! ```
//!
//! Integers are big-endian, so that records lie in the order of shards and indexes. User keys carry
//! no shard: the ranges of a node's shards are disjoint, and a split moves no bytes.

use bytes::BufMut;
use flotilla_router::{KeyRange, KeySpace, NodeId, ShardId};

/// Which record of a replica, in the `state` family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum StateTag {
    /// Term, vote and commit.
    HardState = 1,
    /// The last place that the log has forgotten.
    Truncated = 2,
    /// What the shard is.
    Descriptor = 3,
    /// The replica that was here and must not come back.
    Tombstone = 4,
    /// A snapshot is being installed.
    Install = 5,
    /// This node's member of the shard.
    Replica = 6,
}

/// Which record of the node, in the `state` family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum NodeTag {
    /// Cluster, node, incarnation and the number of the directory.
    Identity = 1,
    /// The node's shards were bootstrapped.
    Bootstrapped = 2,
    /// A descriptor of the cluster, one record per shard.
    Route = 3,
    /// The data directory that another node was met with, one record per node.
    Directory = 4,
}

impl StateTag {
    /// The tag that this byte stands for.
    pub fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::HardState,
            2 => Self::Truncated,
            3 => Self::Descriptor,
            4 => Self::Tombstone,
            5 => Self::Install,
            6 => Self::Replica,
            _ => return None,
        })
    }
}

/// First byte of applied states in the `data` family.
const APPLIED: u8 = 1;
/// First byte of user keys in the `data` family.
const USER: u8 = 2;
/// First byte of the meta shard's keys in the `data` family.
const META: u8 = 3;

/// The key of a log entry.
pub fn log_entry(shard: ShardId, index: u64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&shard.0.to_be_bytes());
    key[8..].copy_from_slice(&index.to_be_bytes());
    key
}

/// The first key above every entry of a shard's log.
pub fn log_end(shard: ShardId) -> [u8; 17] {
    let mut key = [0; 17];
    key[..16].copy_from_slice(&log_entry(shard, u64::MAX));
    key
}

/// The shard and the index of a log entry's key.
pub fn parse_log_entry(key: &[u8]) -> Option<(ShardId, u64)> {
    let (shard, index) = key.split_first_chunk::<8>()?;
    Some((ShardId(u64::from_be_bytes(*shard)), u64::from_be_bytes(index.try_into().ok()?)))
}

/// The key of a replica's record.
pub fn state(shard: ShardId, tag: StateTag) -> [u8; 9] {
    let mut key = [tag as u8; 9];
    key[..8].copy_from_slice(&shard.0.to_be_bytes());
    key
}

/// Where the replicas' records begin, behind those of the node.
pub fn state_start() -> [u8; 8] {
    1u64.to_be_bytes()
}

/// The shard and the tag's byte of a replica's record.
pub fn parse_state(key: &[u8]) -> Option<(ShardId, u8)> {
    let (shard, tag) = key.split_first_chunk::<8>()?;
    let &[tag] = tag else { return None };
    Some((ShardId(u64::from_be_bytes(*shard)), tag))
}

/// The key of a record of the node.
pub fn node(tag: NodeTag) -> [u8; 9] {
    state_of_no_shard(tag as u8)
}

/// The key of the node's copy of a shard's descriptor.
pub fn route(shard: ShardId) -> [u8; 17] {
    let mut key = [0; 17];
    key[..9].copy_from_slice(&node(NodeTag::Route));
    key[9..].copy_from_slice(&shard.0.to_be_bytes());
    key
}

/// The key of what is known of another node's data directory.
pub fn directory(node: NodeId) -> [u8; 17] {
    let mut key = [0; 17];
    key[..9].copy_from_slice(&self::node(NodeTag::Directory));
    key[9..].copy_from_slice(&node.0.to_be_bytes());
    key
}

/// The first key above every record of the node under this tag.
pub fn node_end(tag: NodeTag) -> [u8; 9] {
    state_of_no_shard(tag as u8 + 1)
}

fn state_of_no_shard(tag: u8) -> [u8; 9] {
    let mut key = [0; 9];
    key[8] = tag;
    key
}

/// The key of a shard's applied state.
pub fn applied(shard: ShardId) -> [u8; 9] {
    let mut key = [APPLIED; 9];
    key[1..].copy_from_slice(&shard.0.to_be_bytes());
    key
}

/// The keys from the first applied state up to, and without, the first user key.
pub fn all_applied() -> ([u8; 1], [u8; 1]) {
    ([APPLIED], [APPLIED + 1])
}

/// The shard of an applied state's key.
pub fn parse_applied(key: &[u8]) -> Option<ShardId> {
    Some(ShardId(u64::from_be_bytes(key.strip_prefix(&[APPLIED])?.try_into().ok()?)))
}

/// What stands in front of a key in the data family: by the space that it lies in.
pub fn data_prefix(space: KeySpace) -> u8 {
    match space {
        KeySpace::User => USER,
        KeySpace::Meta => META,
    }
}

/// Replaces `out` by the key under which the data family keeps `key`.
pub fn data_into(out: &mut Vec<u8>, space: KeySpace, key: &[u8]) {
    out.clear();
    out.reserve(1 + key.len());
    out.put_u8(data_prefix(space));
    out.put_slice(key);
}

/// The key under which the data family keeps `key`.
pub fn data(space: KeySpace, key: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    data_into(&mut out, space, key);
    out
}

/// The part of the data family where the keys of `range` lie: its first key, and the first above
/// it.
pub fn data_range(space: KeySpace, range: &KeyRange) -> (Vec<u8>, Vec<u8>) {
    let end = match &range.end {
        Some(end) => data(space, end),
        None => vec![data_prefix(space) + 1],
    };
    (data(space, &range.start), end)
}

/// The client's (or the meta shard's) key in a key of the data family.
pub fn parse_data(space: KeySpace, key: &[u8]) -> Option<&[u8]> {
    key.strip_prefix(&[data_prefix(space)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_parse_to_what_they_were_made_of_and_lie_in_order() {
        for (shard, index) in [(1, 1), (7, u64::MAX), (u64::MAX, 0)] {
            let (shard, key) = (ShardId(shard), log_entry(ShardId(shard), index));
            assert_eq!(parse_log_entry(&key), Some((shard, index)));
            assert!(key[..] < log_end(shard)[..]);
            assert_eq!(
                parse_state(&state(shard, StateTag::Install)),
                Some((shard, StateTag::Install as u8))
            );
            assert_eq!(parse_applied(&applied(shard)), Some(shard));
            assert!(
                route(shard)[..] < node_end(NodeTag::Route)[..],
                "a route lies outside of the routes"
            );
            assert!(
                node_end(NodeTag::Directory)[..] < state_start()[..],
                "a node's record lies among the replicas'"
            );
            assert!(state(shard, StateTag::HardState)[..] > state_start()[..]);
        }
        assert!(log_end(ShardId(1))[..] < log_entry(ShardId(2), 0)[..]);
        for byte in 0..=255 {
            assert!(StateTag::from_byte(byte).is_none_or(|tag| tag as u8 == byte));
        }
    }

    #[test]
    fn user_keys_and_meta_keys_never_meet() {
        let (user, meta) = (
            data_range(KeySpace::User, &KeyRange::all()),
            data_range(KeySpace::Meta, &KeyRange::all()),
        );
        assert!(user.1 <= meta.0);
        assert!(user.0 > applied(ShardId(u64::MAX)).to_vec());
        let key = data(KeySpace::User, b"\xff\xff\xff");
        assert!(user.0 <= key && key < user.1);
        assert_eq!(parse_data(KeySpace::User, &key), Some(&b"\xff\xff\xff"[..]));
        assert_eq!(parse_data(KeySpace::Meta, &key), None);
    }
}
