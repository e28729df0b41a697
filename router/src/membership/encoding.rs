//! A change in bytes: the context of a log entry that is a conf change.
//!
//! ```text
//! change := 2 ‖ operation (8) ‖ expected epoch.membership (8) ‖ expected epoch.range (8)
//!           ‖ transition (1) ‖ count (1) ‖ (kind (1) ‖ replica (8) ‖ node (8))*
//! ```
//!
//! It may come from a peer, so any bytes are read without a panic and with little memory. A change
//! has one writing only. Whether it fits a shard is not asked here.

use super::{Change, ChangeKind, MEMBER_CHANGES_MAX, MemberChange, Transition};
use crate::codec::{DecodeError, Reader};
use crate::descriptor::Epoch;
use crate::ids::{NodeId, OperationId, ReplicaId};
use bytes::{BufMut, Bytes, BytesMut};

/// The first byte of an encoded change. A 1 began the descriptors that stood in this place before.
const FORMAT: u8 = 2;

impl Change {
    /// The encoding, the context of a log entry.
    ///
    /// # Panics
    /// If it names more members than [`MEMBER_CHANGES_MAX`]; it would fit no shard either.
    pub fn encode(&self) -> Bytes {
        let count = self.members.len();
        assert!(count <= MEMBER_CHANGES_MAX, "a change of {count} members is encoded");
        let mut out = BytesMut::with_capacity(27 + count * 17);
        out.put_u8(FORMAT);
        out.put_u64(self.operation.0);
        out.put_u64(self.expected.membership);
        out.put_u64(self.expected.range);
        out.put_u8(match self.transition {
            Transition::Simple => 0,
            Transition::EnterJoint => 1,
            Transition::LeaveJoint => 2,
        });
        out.put_u8(count as u8);
        for member in &self.members {
            out.put_u8(match member.kind {
                ChangeKind::Voter => 0,
                ChangeKind::Learner => 1,
                ChangeKind::Remove => 2,
            });
            out.put_u64(member.replica.0);
            out.put_u64(member.node.0);
        }
        out.freeze()
    }

    /// Reads what [`Self::encode`] wrote.
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("membership change", bytes);
        let format = reader.u8()?;
        if format != FORMAT {
            return Err(reader.error(format!("format {format}; this binary reads {FORMAT}")));
        }
        let operation = OperationId(reader.u64()?);
        let expected = Epoch { membership: reader.u64()?, range: reader.u64()? };
        let transition = match reader.u8()? {
            0 => Transition::Simple,
            1 => Transition::EnterJoint,
            2 => Transition::LeaveJoint,
            other => return Err(reader.error(format!("transition {other}"))),
        };
        let count = reader.u8()?.into();
        if count > MEMBER_CHANGES_MAX {
            return Err(reader.error(format!("{count} members; at most {MEMBER_CHANGES_MAX}")));
        }
        let mut members = Vec::with_capacity(count);
        for _ in 0..count {
            let kind = match reader.u8()? {
                0 => ChangeKind::Voter,
                1 => ChangeKind::Learner,
                2 => ChangeKind::Remove,
                other => return Err(reader.error(format!("kind {other}"))),
            };
            let (replica, node) = (ReplicaId(reader.u64()?), NodeId(reader.u64()?));
            if replica.0 == 0 || node.0 == 0 {
                return Err(reader.error("a replica or node with id 0"));
            }
            members.push(MemberChange { kind, replica, node });
        }
        reader.end()?;
        Ok(Self { operation, expected, transition, members })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ChangeKind::{Learner, Remove, Voter};
    use Transition::{EnterJoint, LeaveJoint, Simple};
    use proptest::prelude::*;

    fn member(kind: ChangeKind, replica: u64, node: u64) -> MemberChange {
        MemberChange { kind, replica: ReplicaId(replica), node: NodeId(node) }
    }

    fn one_member() -> Change {
        let expected = Epoch { membership: 5, range: 3 };
        let members = vec![member(Voter, 9, 90)];
        Change { operation: OperationId(9), expected, transition: EnterJoint, members }
    }

    #[test]
    fn what_can_not_be_read_says_so() {
        let good = one_member().encode();
        let with = |at: usize, byte: u8| {
            let mut bytes = good.to_vec();
            bytes[at] = byte;
            Change::decode(bytes.into()).unwrap_err().to_string()
        };
        for (at, byte, why) in [
            (0, 1, "format 1; this binary reads 2"),
            (25, 3, "transition 3"),
            (26, 0, "17 bytes too many"),
            (26, 2, "needs 1 more bytes"),
            (26, 129, "129 members; at most 128"),
            (27, 3, "kind 3"),
            (35, 0, "id 0"),
        ] {
            assert!(with(at, byte).contains(why), "{}", with(at, byte));
        }
    }

    fn some_change() -> impl Strategy<Value = Change> {
        let kind = prop::sample::select(vec![Voter, Learner, Remove]);
        let ids = 1..u64::MAX;
        let member = (kind, ids.clone(), ids).prop_map(|(kind, id, node)| member(kind, id, node));
        let members = prop::collection::vec(member, 0..9);
        let transition = prop::sample::select(vec![Simple, EnterJoint, LeaveJoint]);
        (any::<[u64; 3]>(), transition, members).prop_map(|(numbers, transition, members)| {
            let [operation, membership, range] = numbers;
            let (operation, expected) = (OperationId(operation), Epoch { membership, range });
            Change { operation, expected, transition, members }
        })
    }

    proptest! {
        #[test]
        fn a_change_survives_its_encoding_and_no_truncation_does(change in some_change()) {
            let bytes = change.encode();
            prop_assert_eq!(Change::decode(bytes.clone()), Ok(change));
            for n in 0..bytes.len() {
                prop_assert!(Change::decode(bytes.slice(..n)).is_err());
            }
        }

        #[test]
        fn bytes_that_are_no_change_never_panic(
            mut bytes in prop::collection::vec(any::<u8>(), 0..200),
            likely in any::<bool>(),
        ) {
            if likely && bytes.len() > 26 {
                (bytes[0], bytes[25], bytes[26]) = (2, bytes[25] % 4, bytes[26] % 12);
            }
            // One writing only: what can be read is written as the same bytes.
            if let Ok(change) = Change::decode(bytes.clone().into()) {
                prop_assert_eq!(change.encode(), bytes);
            }
        }
    }
}
