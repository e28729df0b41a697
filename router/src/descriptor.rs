//! What a shard is: id, range, epoch, and the replicas that hold it.
//!
//! The descriptor is the one truth of who belongs to a shard's group, a half-made change of several
//! members included: what raft-rs calls a configuration is derived from it, and from nothing else.
//! Such a change is *joint* (the thesis, §4.3): while it lasts there are two sets of voters, the
//! one before and the one now, and whatever needs a quorum needs one of **both**.
//!
//! | role | votes before | votes now | once the change is complete |
//! |---|---|---|---|
//! | voter | yes | yes | voter |
//! | learner | no | no | learner |
//! | incoming | no | yes | voter |
//! | outgoing | yes | no | gone |
//! | demoting | yes | no | learner |
//!
//! A descriptor is joint where any replica is incoming, outgoing or demoting. In all others the two
//! sets are the same. How one descriptor leads to the next is told in
//! [`membership`](crate::membership).

use crate::codec::{DecodeError, Put, Reader};
use crate::ids::{NodeId, ReplicaId, ShardId};
use crate::range::KeyRange;
use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The first byte of an encoded descriptor.
const FORMAT: u8 = 2;

/// The first byte before changes of membership: the same fields, and no role of a joint group.
const FORMAT_BEFORE_JOINT: u8 = 1;

/// More members than this no group has. What costs more than linear time in them may rest on it.
pub const REPLICAS_MAX: usize = 64;

/// How often a shard changed. A request, a message or a plan made against an older epoch is
/// refused, not half done.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
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
    /// Votes in the new set of a joint group only; a voter afterwards.
    Incoming,
    /// Votes in the old set of a joint group only; gone afterwards.
    Outgoing,
    /// Votes in the old set of a joint group only; a learner afterwards.
    Demoting,
}

impl Role {
    /// Whether it votes in the newer set of voters: who will vote when the change is complete.
    pub fn votes_now(self) -> bool {
        matches!(self, Self::Voter | Self::Incoming)
    }

    /// Whether it votes in the older set of voters.
    pub fn votes_before(self) -> bool {
        matches!(self, Self::Voter | Self::Outgoing | Self::Demoting)
    }

    /// Whether only a group in the middle of a change has it.
    pub fn is_joint(self) -> bool {
        self.votes_now() != self.votes_before()
    }

    fn to_byte(self) -> u8 {
        match self {
            Self::Voter => 0,
            Self::Learner => 1,
            Self::Incoming => 2,
            Self::Outgoing => 3,
            Self::Demoting => 4,
        }
    }

    fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Voter),
            1 => Some(Self::Learner),
            2 => Some(Self::Incoming),
            3 => Some(Self::Outgoing),
            4 => Some(Self::Demoting),
            _ => None,
        }
    }
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

    /// Whether a change of its members is half made: two sets of voters decide together.
    pub fn is_joint(&self) -> bool {
        self.replicas.iter().any(|r| r.role.is_joint())
    }

    /// The replicas that vote once the change that is under way is complete; outside of one, all
    /// that vote.
    pub fn voters_now(&self) -> impl Iterator<Item = Replica> + '_ {
        self.replicas.iter().copied().filter(|r| r.role.votes_now())
    }

    /// The replicas that voted before the change that is under way; outside of one, all that vote.
    pub fn voters_before(&self) -> impl Iterator<Item = Replica> + '_ {
        self.replicas.iter().copied().filter(|r| r.role.votes_before())
    }

    /// Every set of voters of which a decision needs a quorum: two in a joint group, otherwise one.
    pub fn voter_sets(&self) -> impl Iterator<Item = Vec<Replica>> + '_ {
        let before = self.is_joint().then(|| self.voters_before().collect());
        std::iter::once(self.voters_now().collect()).chain(before)
    }

    /// Whether those of whom `holds` says so are more than half of every set of voters.
    pub fn has_quorum(&self, holds: impl FnMut(Replica) -> bool) -> bool {
        let (voters, holding) = self.weakest_set(holds);
        holding > voters / 2
    }

    /// How many voters there are, and of how many of them `holds` says so: in that set of voters in
    /// which they are furthest from a quorum, or have least to spare above one.
    pub fn weakest_set(&self, mut holds: impl FnMut(Replica) -> bool) -> (usize, usize) {
        let count = |voters: Vec<Replica>| {
            let holding = voters.iter().filter(|voter| holds(**voter)).count();
            (voters.len(), holding)
        };
        let spare = |&(voters, holding): &(usize, usize)| holding as i64 - (voters / 2) as i64;
        self.voter_sets().map(count).min_by_key(spare).expect("there is a set, if an empty one")
    }

    /// The greatest value that a quorum of every set of voters has reached; `None` for a group in
    /// which nobody votes.
    pub fn agreed<T: Ord>(&self, mut reached: impl FnMut(Replica) -> T) -> Option<T> {
        let of_set = |voters: Vec<Replica>| {
            let mut values: Vec<T> = voters.into_iter().map(&mut reached).collect();
            values.sort();
            // Of n voters, n / 2 + 1 have reached the value at this place, or more.
            let place = values.len().checked_sub(values.len() / 2 + 1)?;
            values.into_iter().nth(place)
        };
        self.voter_sets().map(of_set).min().flatten()
    }

    /// Whether a shard can be made of it: it owns keys, somebody votes, before and now, no replica
    /// or node is there twice or has id 0, and there are no more of them than [`REPLICAS_MAX`].
    pub fn is_sound(&self) -> bool {
        let replicas = &self.replicas;
        let unique = |i: usize| {
            let own = replicas[i];
            replicas[..i].iter().all(|r| r.id != own.id && r.node != own.node)
        };
        !self.range.is_empty()
            && replicas.len() <= REPLICAS_MAX
            && self.voters_now().next().is_some()
            && self.voters_before().next().is_some()
            && replicas.iter().all(|r| r.id.0 > 0 && r.node.0 > 0)
            && (0..replicas.len()).all(unique)
    }

    /// The encoding: format ‖ id ‖ epoch ‖ range ‖ replicas.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(64 + self.replicas.len() * 17);
        // As long as the older form says all there is to say it is written: hashes of first states
        // rest on it.
        out.put_u8(if self.is_joint() { FORMAT } else { FORMAT_BEFORE_JOINT });
        out.put_u64(self.id.0);
        out.put_u64(self.epoch.membership);
        out.put_u64(self.epoch.range);
        self.range.encode(&mut out);
        out.put_u32(self.replicas.len() as u32);
        for replica in &self.replicas {
            out.put_u64(replica.id.0);
            out.put_u64(replica.node.0);
            out.put_u8(replica.role.to_byte());
        }
        out.freeze()
    }

    /// Reads what [`Self::encode`] wrote, now or before groups could be joint.
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
        if ![FORMAT_BEFORE_JOINT, FORMAT].contains(&format) {
            let known = format!("{FORMAT_BEFORE_JOINT} and {FORMAT}");
            return Err(reader.error(format!("format {format}; this binary reads {known}")));
        }
        let id = ShardId(reader.u64()?);
        let epoch = Epoch { membership: reader.u64()?, range: reader.u64()? };
        let range = KeyRange::decode(reader)?;
        let n = reader.count(17)?;
        let mut replicas = Vec::with_capacity(n);
        for _ in 0..n {
            let (id, node) = (ReplicaId(reader.u64()?), NodeId(reader.u64()?));
            let role = reader.u8()?;
            let known = Role::from_byte(role).filter(|role| format == FORMAT || !role.is_joint());
            let Some(role) = known else { return Err(reader.error(format!("role {role}"))) };
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
    use Role::{Demoting, Incoming, Learner, Outgoing, Voter};

    /// A shard whose replicas have these roles, with ids from 1 and nodes from 11.
    fn group(roles: &[Role]) -> Descriptor {
        let replica = |(i, role): (usize, &Role)| {
            let i = i as u64;
            Replica { id: ReplicaId(i + 1), node: NodeId(i + 11), role: *role }
        };
        let (id, range, epoch) = (ShardId(7), KeyRange::all(), Epoch::default());
        Descriptor { id, range, epoch, replicas: roles.iter().enumerate().map(replica).collect() }
    }

    /// Hashes of first states rest on the form that they were written in.
    #[test]
    fn what_the_older_form_can_say_is_written_in_it() {
        let replica = |id, role| Replica { id: ReplicaId(id), node: NodeId(id), role };
        let (range, epoch) = (KeyRange::all(), Epoch::default());
        let mut descriptor =
            Descriptor { id: ShardId(7), range, epoch, replicas: vec![replica(1, Voter)] };
        assert_eq!(descriptor.encode()[0], FORMAT_BEFORE_JOINT);
        descriptor.replicas.push(replica(2, Incoming));
        assert_eq!(descriptor.encode()[0], FORMAT);
    }

    #[test]
    fn a_descriptor_survives_its_encoding_and_no_truncation_panics() {
        let mut descriptor = group(&[Voter, Learner, Incoming, Outgoing, Demoting]);
        descriptor.range = KeyRange::new(&b"a"[..], Some("m".into()));
        descriptor.epoch = Epoch { membership: 3, range: 2 };
        let bytes = descriptor.encode();
        assert_eq!(Descriptor::decode(bytes.clone()), Ok(descriptor));
        for n in 0..bytes.len() {
            let cut = Descriptor::decode(bytes.slice(..n));
            assert!(cut.is_err(), "the first {n} bytes were taken for a descriptor");
        }
    }

    /// What lies on disks since before groups could be joint.
    #[test]
    fn the_format_before_is_read_still_and_knows_no_joint_role() {
        let with_format = |format: u8, role: u8| {
            let mut bytes = group(&[Voter, Learner]).encode().to_vec();
            let last = bytes.len() - 1;
            (bytes[0], bytes[last]) = (format, role);
            Descriptor::decode(bytes.into())
        };
        assert_eq!(with_format(1, 1), Ok(group(&[Voter, Learner])));
        for (format, role, why) in [
            (1, 2, "role 2"),
            (1, 4, "role 4"),
            (2, 5, "role 5"),
            (0, 1, "format 0; this binary reads 1 and 2"),
            (3, 1, "format 3; this binary reads 1 and 2"),
        ] {
            let error = with_format(format, role).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn a_shard_needs_keys_and_voters_and_nobody_twice() {
        for sound in [
            &[Voter][..],
            &[Voter, Learner],
            &[Incoming, Outgoing],
            &[Incoming, Demoting],
            &[Voter, Incoming, Outgoing, Demoting, Learner],
            &[Voter; REPLICAS_MAX],
        ] {
            assert!(group(sound).is_sound(), "{sound:?} was refused");
        }
        for (unsound, why) in [
            (&[][..], "nobody"),
            (&[Learner], "nobody votes"),
            (&[Incoming, Learner], "nobody voted before"),
            (&[Outgoing, Demoting], "nobody votes now"),
            (&[Voter; REPLICAS_MAX + 1], "too many"),
        ] {
            assert!(!group(unsound).is_sound(), "{why}, and it was taken");
        }
        type Spoil = fn(&mut Descriptor);
        let spoilt: [(&str, Spoil); 5] = [
            ("a replica twice", |d| d.replicas[1].id = d.replicas[0].id),
            ("a node twice", |d| d.replicas[1].node = d.replicas[0].node),
            ("replica 0", |d| d.replicas[0].id = ReplicaId(0)),
            ("node 0", |d| d.replicas[0].node = NodeId(0)),
            ("no key", |d| d.range = KeyRange::new(&b"m"[..], Some("m".into()))),
        ];
        for (what, spoil) in spoilt {
            let mut descriptor = group(&[Voter, Voter]);
            spoil(&mut descriptor);
            assert!(!descriptor.is_sound(), "{what} was taken");
        }
    }

    #[test]
    fn a_joint_group_has_two_sets_of_voters() {
        let ids = |voters: Vec<Replica>| voters.iter().map(|r| r.id.0).collect::<Vec<_>>();
        let sets = |roles: &[Role]| group(roles).voter_sets().map(ids).collect::<Vec<_>>();
        assert_eq!(sets(&[Voter, Learner, Voter]), [vec![1, 3]]);
        let joint = [Voter, Incoming, Outgoing, Demoting, Learner];
        assert_eq!(sets(&joint), [vec![1, 2], vec![1, 3, 4]]);
        for role in [Incoming, Outgoing, Demoting] {
            assert!(group(&[Voter, role]).is_joint(), "{role:?}");
        }
        assert!(!group(&[Voter, Learner]).is_joint());
    }

    #[test]
    fn a_quorum_is_more_than_half_of_every_set() {
        // Who holds, one letter each, and whether that is a quorum.
        let table: [(&[Role], &str, bool); 15] = [
            (&[Voter], "y", true),
            (&[Voter], "n", false),
            (&[Voter, Voter], "yn", false),
            (&[Voter, Voter, Voter], "yyn", true),
            (&[Voter, Voter, Voter], "ynn", false),
            (&[Voter, Voter, Voter, Voter], "yynn", false),
            (&[Voter, Learner, Learner], "ynn", true),
            (&[Voter, Voter, Voter, Learner], "ynny", false),
            // A swap of one for one: each set alone is not enough.
            (&[Voter, Voter, Outgoing, Incoming], "yynn", true),
            (&[Voter, Voter, Outgoing, Incoming], "ynyn", false),
            (&[Voter, Voter, Outgoing, Incoming], "ynny", false),
            (&[Voter, Voter, Demoting, Incoming], "ynyy", true),
            // The sole voter is exchanged: both must hold.
            (&[Incoming, Demoting], "yn", false),
            (&[Incoming, Demoting], "yy", true),
            (&[], "", false),
        ];
        for (roles, who, quorum) in table {
            let holds = |r: Replica| who.as_bytes()[r.id.0 as usize - 1] == b'y';
            assert_eq!(group(roles).has_quorum(holds), quorum, "{roles:?} {who}");
        }
    }

    #[test]
    fn the_weakest_set_is_the_one_that_decides() {
        let holding = |roles: &[Role], who: &str| {
            let holds = |r: Replica| who.as_bytes()[r.id.0 as usize - 1] == b'y';
            group(roles).weakest_set(holds)
        };
        assert_eq!(holding(&[Voter, Voter, Voter, Learner], "yyny"), (3, 2));
        // One voter becomes three, and three become one.
        assert_eq!(holding(&[Voter, Incoming, Incoming], "yyn"), (3, 2));
        assert_eq!(holding(&[Voter, Incoming, Incoming], "nyy"), (1, 0));
        assert_eq!(holding(&[Voter, Outgoing, Demoting], "ynn"), (3, 1));
        assert_eq!(holding(&[], ""), (0, 0));
    }

    #[test]
    fn what_is_agreed_is_reached_by_a_quorum_of_every_set() {
        let table: [(&[Role], &[u64], Option<u64>); 10] = [
            (&[Voter], &[5], Some(5)),
            (&[Voter, Voter], &[5, 3], Some(3)),
            (&[Voter, Voter, Voter], &[9, 3, 5], Some(5)),
            (&[Voter, Voter, Voter, Voter], &[9, 3, 5, 7], Some(5)),
            (&[Voter, Voter, Voter, Learner], &[9, 3, 5, 99], Some(5)),
            (&[Voter, Voter, Outgoing, Incoming], &[9, 5, 7, 1], Some(5)),
            (&[Voter, Voter, Outgoing, Incoming], &[9, 5, 1, 7], Some(5)),
            (&[Incoming, Demoting, Learner], &[9, 4, 99], Some(4)),
            (&[Incoming, Incoming, Incoming, Outgoing], &[2, 6, 8, 3], Some(3)),
            (&[Learner], &[7], None),
        ];
        for (roles, reached, agreed) in table {
            let value = |r: Replica| reached[r.id.0 as usize - 1];
            let group = group(roles);
            assert_eq!(group.agreed(value), agreed, "{roles:?} {reached:?}");
            // The two say the same of every value.
            for bound in 0..10 {
                let quorum = group.has_quorum(|r| value(r) >= bound);
                let agreed = agreed.is_some_and(|agreed| agreed >= bound);
                assert_eq!(quorum, agreed, "{roles:?} {reached:?} at {bound}");
            }
        }
    }
}
