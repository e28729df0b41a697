//! What a shard is: id, range, epoch, and the replicas that hold it.

use crate::codec::{DecodeError, Put, Reader};
use crate::ids::{NodeId, ReplicaId, ShardId};
use crate::range::KeyRange;
use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The first byte of an encoded descriptor.
const FORMAT: u8 = 1;

/// How often a shard changed. A request, a message or a plan made against an older epoch is refused, not half done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch {
    /// Rises with each change of the replicas.
    pub membership: u64,
    /// Rises with each split and merge.
    pub range: u64,
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.membership, self.range)
    }
}

/// What a replica may do in its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Votes, counts for the quorum, can lead.
    Voter,
    /// Receives the log, and nothing else.
    Learner,
}

/// One member of a shard's group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Replica {
    /// Its Raft id.
    pub id: ReplicaId,
    /// The node that holds it.
    pub node: NodeId,
    /// What it may do.
    pub role: Role,
}

/// What a shard is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// The shard's id.
    pub id: ShardId,
    /// The keys that it owns. The meta shard owns the whole of a key space of its own.
    pub range: KeyRange,
    /// How often it changed.
    pub epoch: Epoch,
    /// Its members; the first voter is the one that leads a new shard.
    pub replicas: Vec<Replica>,
}

impl Descriptor {
    /// The replica that `node` holds, if it holds one.
    pub fn on_node(&self, node: NodeId) -> Option<Replica> {
        self.replicas.iter().copied().find(|r| r.node == node)
    }

    /// The replica with this Raft id.
    pub fn replica(&self, id: ReplicaId) -> Option<Replica> {
        self.replicas.iter().copied().find(|r| r.id == id)
    }

    /// The replicas that vote.
    pub fn voters(&self) -> impl Iterator<Item = Replica> + '_ {
        self.replicas.iter().copied().filter(|r| r.role == Role::Voter)
    }

    /// Whether a shard can be made of it: it owns keys, somebody votes, and no replica or node is there twice.
    pub fn is_sound(&self) -> bool {
        let replicas = &self.replicas;
        let unique = |i: usize| replicas[..i].iter().all(|r| r.id != replicas[i].id && r.node != replicas[i].node);
        !self.range.is_empty() && self.voters().next().is_some() && (0..replicas.len()).all(unique)
    }

    /// The encoding: format ‖ id ‖ epoch ‖ range ‖ replicas.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(64 + self.replicas.len() * 17);
        out.put_u8(FORMAT);
        out.put_u64(self.id.0);
        out.put_u64(self.epoch.membership);
        out.put_u64(self.epoch.range);
        self.range.encode(&mut out);
        out.put_u32(self.replicas.len() as u32);
        for replica in &self.replicas {
            out.put_u64(replica.id.0);
            out.put_u64(replica.node.0);
            out.put_u8(match replica.role {
                Role::Voter => 0,
                Role::Learner => 1,
            });
        }
        out.freeze()
    }

    /// Reads what [`Self::encode`] wrote.
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("shard descriptor", bytes);
        let descriptor = Self::read(&mut reader)?;
        reader.end()?;
        Ok(descriptor)
    }

    /// Appends the descriptor to a longer record, for [`Self::read_prefixed`].
    pub fn encode_prefixed(&self, out: &mut BytesMut) {
        out.put_bytes_prefixed(&self.encode());
    }

    /// Reads what [`Self::encode_prefixed`] wrote.
    pub fn read_prefixed(reader: &mut Reader) -> Result<Self, DecodeError> {
        Self::decode(reader.bytes()?)
    }

    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        let format = reader.u8()?;
        if format != FORMAT {
            return Err(reader.error(format!("format {format}; this binary reads {FORMAT}")));
        }
        let id = ShardId(reader.u64()?);
        let epoch = Epoch { membership: reader.u64()?, range: reader.u64()? };
        let range = KeyRange::decode(reader)?;
        let n = reader.count(17)?;
        let mut replicas = Vec::with_capacity(n);
        for _ in 0..n {
            let (id, node) = (ReplicaId(reader.u64()?), NodeId(reader.u64()?));
            let role = match reader.u8()? {
                0 => Role::Voter,
                1 => Role::Learner,
                other => return Err(reader.error(format!("role {other}"))),
            };
            if id.0 == 0 || node.0 == 0 {
                return Err(reader.error("a replica or node with id 0"));
            }
            replicas.push(Replica { id, node, role });
        }
        Ok(Self { id, range, epoch, replicas })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_survives_its_encoding_and_no_truncation_panics() {
        let descriptor = Descriptor {
            id: ShardId(7),
            range: KeyRange::new(&b"a"[..], Some("m".into())),
            epoch: Epoch { membership: 3, range: 2 },
            replicas: vec![
                Replica { id: ReplicaId(1), node: NodeId(1), role: Role::Voter },
                Replica { id: ReplicaId(9), node: NodeId(2), role: Role::Learner },
            ],
        };
        let bytes = descriptor.encode();
        assert_eq!(Descriptor::decode(bytes.clone()), Ok(descriptor));
        for n in 0..bytes.len() {
            assert!(Descriptor::decode(bytes.slice(..n)).is_err(), "the first {n} bytes were taken for a descriptor");
        }
    }

    #[test]
    fn a_shard_needs_keys_and_a_voter_and_nobody_twice() {
        let replica = |id, node, role| Replica { id: ReplicaId(id), node: NodeId(node), role };
        let sound = |replicas: &[Replica]| {
            let (id, range, epoch) = (ShardId(7), KeyRange::all(), Epoch::default());
            Descriptor { id, range, epoch, replicas: replicas.to_vec() }.is_sound()
        };
        let first = replica(1, 1, Role::Voter);
        assert!(sound(&[first]) && sound(&[first, replica(2, 2, Role::Learner)]));
        assert!(!sound(&[]) && !sound(&[replica(1, 1, Role::Learner)]), "a group without a voter was taken");
        assert!(!sound(&[first, replica(1, 2, Role::Voter)]), "a replica was taken twice");
        assert!(!sound(&[first, replica(2, 1, Role::Voter)]), "a node was taken twice");
        let range = KeyRange::new(&b"m"[..], Some("m".into()));
        let nothing = Descriptor { id: ShardId(7), range, epoch: Epoch::default(), replicas: vec![first] };
        assert!(!nothing.is_sound(), "a shard without a key was taken");
    }
}
