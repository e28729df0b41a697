//! What is asked of a node, and what it answers: the same whether the question came by HTTP or from
//! another node.
//!
//! Every question names a key (or the start of a range) and so a shard. A question about a range is
//! answered by **one** shard, for the part of the range that it owns; the answer says where to go
//! on.

use crate::codec::DecodeError;
use crate::command::Command;
use crate::ids::{NodeId, Revision, ShardId};
use crate::range::KeyRange;
use crate::sizes::{KEY_BYTES_MAX, PAGE_BYTES_MAX};
use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::time::{Duration, Instant};

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Consistency {
    /// It sees every write that was acknowledged before it began: confirmed by a quorum.
    Linearizable,
    /// The same, vouched for by the leader's clock instead of a quorum. Linearizable where leases
    /// are off or void.
    Lease,
    /// What any one replica has, no older than this where it is given.
    Stale {
        /// The greatest age that is accepted; without it any age is.
        age_max: Option<Duration>,
    },
}

/// A look at the keys of a range, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scan {
    /// The keys to look at.
    pub range: KeyRange,
    /// From the end backwards.
    pub reverse: bool,
    /// At most so many items.
    pub limit: u32,
    /// At most so many bytes of keys and values, but always at least one item.
    pub bytes_max: u32,
    /// Leaves the values out.
    pub keys_only: bool,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// One key.
    Get {
        /// 1 to 4096 bytes.
        key: Bytes,
        /// How fresh.
        consistency: Consistency,
    },
    /// The part of a range that one shard owns: the one with the range's first key, or, in reverse,
    /// with its last.
    Scan {
        /// Which keys, in which order, how many.
        scan: Scan,
        /// How fresh.
        consistency: Consistency,
    },
    /// A write, durable on a quorum and applied when it is answered. A range is cut to what one
    /// shard owns.
    Write(Command),
    /// An admin question or order, in JSON between ops and node; routing is the asker's business.
    Admin(Bytes),
    /// A part of a stream. Like a scan; but a shard's parts, which are asked for one after the
    /// other, all show the same view of it.
    Part {
        /// Which keys, in which order, how many in this part. A limit of 0 lets the view go.
        scan: Scan,
        /// How fresh the view must be, when it is taken.
        consistency: Consistency,
        /// The view that the shard's part before this one showed; `None` for its first part.
        view: Option<HeldView>,
    },
}

/// A view of a shard that a node keeps for a stream. It is given up when nobody asks for it for
/// some time, when it gets old, when there are too many, and when the replica that it is of is
/// quarantined or replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldView {
    /// Who keeps it.
    pub node: NodeId,
    /// Of what.
    pub shard: ShardId,
    /// Which of the node's.
    pub id: u64,
}

/// One key as a scan shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// The key.
    pub key: Bytes,
    /// Its value; empty where only keys were asked for.
    pub value: Bytes,
    /// Its revision.
    pub revision: Revision,
}

/// What one shard shows of a range.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScanPage {
    /// In the order that was asked for.
    pub items: Vec<Item>,
    /// The part of the range not yet looked at (in this shard or in its neighbours); `None` when
    /// all of it was.
    pub rest: Option<KeyRange>,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The key is there.
    Value {
        /// Its value.
        value: Bytes,
        /// Its revision.
        revision: Revision,
    },
    /// There is no such key.
    Missing,
    /// The key was set.
    Written {
        /// Its new revision.
        revision: Revision,
    },
    /// The key is not there (any more).
    Deleted,
    /// A part of the range was removed.
    DeletedRange {
        /// How many keys there were.
        count: u64,
        /// The part of the range that other shards own; `None` when all of it was removed.
        rest: Option<KeyRange>,
    },
    /// The condition did not hold, and nothing was written.
    ConditionFailed {
        /// The revision that the key is at; `None` when there is no such key.
        current: Option<Revision>,
    },
    /// A part of a scan.
    Page(ScanPage),
    /// An admin answer, in JSON between ops and node.
    Admin(Bytes),
    /// A part of a stream.
    Part {
        /// What it shows.
        page: ScanPage,
        /// What the next part is to show, where more of this shard is to come.
        view: Option<HeldView>,
    },
}

/// An answer and who gave it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// The shard that answered.
    pub shard: ShardId,
    /// The node whose replica answered.
    pub node: NodeId,
    /// The answer.
    pub answer: Answer,
    /// For a stale read: the applied index that it saw, and how old that is at most.
    pub staleness: Option<Staleness>,
}

/// How old a stale read's data may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Staleness {
    /// The replica's applied index.
    pub applied: u64,
    /// The time since the replica last knew that it had applied all that was committed; `None` when
    /// it never did.
    pub age: Option<Duration>,
}

/// A question on its way from node to node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forwarded {
    /// What is asked.
    pub request: Request,
    /// How often it was handed on, this time included. At most two.
    pub hops: u8,
    /// How much of its time is left.
    pub time_left: Duration,
}

/// What most questions and answers with a small key and value fit into.
const SMALL_BYTES: usize = 256;

/// The bytes of a [`Forwarded`], or of what it comes to.
pub fn encode<T: Serialize>(value: &T) -> Bytes {
    let into = Vec::with_capacity(SMALL_BYTES);
    let mut bytes =
        postcard::to_extend(value, into).expect("encoding to memory can't fail for these types");
    // It may wait in a queue that counts bytes, not the room that they were written into.
    if bytes.capacity() > bytes.len() + bytes.len() / 4 {
        bytes.shrink_to_fit();
    }
    bytes.into()
}

/// Reads what [`encode`] wrote.
pub fn decode<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, DecodeError> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(DecodeError::new(what, format!("{} bytes too many", rest.len()))),
        Err(error) => Err(DecodeError::new(what, error.to_string())),
    }
}

/// A page of a forwarded scan has no more items, so that it fits into a frame however short its
/// keys are.
const PAGE_ITEMS_MAX: u32 = (PAGE_BYTES_MAX / 64) as u32;
/// The longest that any node lets a request take.
const TIME_LEFT_MAX: Duration = Duration::from_secs(3600);

impl Forwarded {
    /// The question as this node takes it from another: in bounds, whatever that node's own limits
    /// are, or refused with what is wrong. A page may be shorter than it was asked to be, and time
    /// is only ever cut.
    pub fn checked(mut self) -> Result<Self, String> {
        self.time_left = self.time_left.min(TIME_LEFT_MAX);
        match &mut self.request {
            Request::Get { key, .. } if !(1..=KEY_BYTES_MAX).contains(&key.len()) => {
                return Err(format!(
                    "a key of {} bytes; 1 to {KEY_BYTES_MAX} are allowed",
                    key.len()
                ));
            }
            Request::Write(command) => command.check_sizes()?,
            Request::Scan { scan, .. } | Request::Part { scan, .. } => {
                scan.limit = scan.limit.min(PAGE_ITEMS_MAX);
                scan.bytes_max = scan.bytes_max.min(PAGE_BYTES_MAX as u32);
            }
            Request::Get { .. } | Request::Admin(_) => {}
        }
        Ok(self)
    }

    /// For how long whoever asked goes on waiting: what any clock can add.
    pub fn patience(&self) -> Duration {
        self.time_left.min(TIME_LEFT_MAX)
    }

    /// When that ends, for a question that came at `now`.
    pub fn deadline(&self, now: Instant) -> Instant {
        now + self.patience()
    }
}

impl Request {
    /// The key by which the question finds its shard; `None` for admin questions, and for "from the
    /// end" of an open range.
    pub fn routing_key(&self) -> Option<&Bytes> {
        match self {
            Self::Get { key, .. } => Some(key),
            Self::Scan { scan, .. } | Self::Part { scan, .. } if scan.reverse => None,
            Self::Scan { scan, .. } | Self::Part { scan, .. } => Some(&scan.range.start),
            Self::Write(command) => Some(command.routing_key()),
            Self::Admin(_) => None,
        }
    }

    /// Whether asking twice can do harm.
    pub fn is_write(&self) -> bool {
        matches!(self, Self::Write(_) | Self::Admin(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Condition, Op};
    use crate::refusal::Refusal;

    #[test]
    fn a_forwarded_question_survives_the_wire() {
        let question = Forwarded {
            request: Request::Write(Command::new(
                Op::Put { key: "k".into(), value: vec![0, 255].into() },
                Condition::At(Revision(3)),
            )),
            hops: 1,
            time_left: Duration::from_millis(1500),
        };
        let bytes = encode(&question);
        assert_eq!(decode::<Forwarded>("request", &bytes), Ok(question));
        for n in 0..bytes.len() {
            assert!(decode::<Forwarded>("request", &bytes[..n]).is_err());
        }
        let refusal: Result<Reply, Refusal> =
            Err(Refusal::NotLeader { shard: ShardId(3), leader: Some(NodeId(2)) });
        assert_eq!(decode::<Result<Reply, Refusal>>("response", &encode(&refusal)), Ok(refusal));
    }

    /// Queues between nodes count bytes, so thousands of answers must not hold several times as
    /// many.
    #[test]
    fn what_is_encoded_holds_little_more_room_than_its_bytes() {
        for value in [0, 10, 50, 60, 70, 200, 300, 5000, 1 << 20] {
            // What comes behind a large value makes twice the room for it.
            let bytes = encode(&(Bytes::from(vec![7_u8; value]), 1_u8));
            let (len, room) =
                (bytes.len(), bytes.try_into_mut().expect("nobody else has it").capacity());
            assert!(room <= len + len / 4, "{len} bytes hold {room}");
        }
    }

    #[test]
    fn what_another_node_asks_is_held_to_bounds() {
        let scan = Scan {
            range: KeyRange::all(),
            reverse: false,
            limit: u32::MAX,
            bytes_max: u32::MAX,
            keys_only: true,
        };
        let request = Request::Scan { scan, consistency: Consistency::Linearizable };
        let question =
            Forwarded { request, hops: 255, time_left: Duration::MAX }.checked().unwrap();
        let now = Instant::now();
        assert!(question.deadline(now) > now);
        let Request::Scan { scan, .. } = question.request else {
            panic!("it has become another question")
        };
        assert!(scan.bytes_max as usize + scan.limit as usize * 16 < crate::sizes::FRAME_BYTES_MAX);
        for key in [0, KEY_BYTES_MAX + 1] {
            let key = Bytes::from(vec![7; key]);
            let get = Request::Get { key: key.clone(), consistency: Consistency::Lease };
            let put = Request::Write(Command::new(
                Op::Put { key, value: Bytes::new() },
                Condition::Always,
            ));
            for request in [get, put] {
                assert!(
                    Forwarded { request, hops: 0, time_left: Duration::ZERO }.checked().is_err()
                );
            }
        }
    }
}
