//! The nouns that every room of Flotilla speaks, and the map from keys to shards.
//!
//! Router names, storage keeps, transport carries, ops shows, node decides. This crate is the first
//! word of that sentence:
//!
//! - [`ids`]: a newtype for every id, so that a shard is never mistaken for a node.
//! - [`range`]: half-open key ranges, and the boundaries that a new cluster starts with.
//! - [`descriptor`]: what a shard is: id, range, epoch, replicas.
//! - [`membership`]: how a change of its members leads from one descriptor to the next.
//! - [`command`]: what a log entry carries, byte by byte.
//! - [`codec`]: the byte encoding that everything stored or sent shares.
//! - [`call`]: what is asked of a node and what it answers; the same whether the question came by
//!   HTTP or from another node.
//! - [`refusal`]: every way a node says no, each with its outcome and its cure.
//! - [`cure`]: what is left to do about a node that can't come back.
//! - [`mutation`]: known mistakes, which only tests can switch on.
//! - [`sizes`]: what a key, a value and a frame may have.
//! - [`routes`]: key to shard on an immutable snapshot that is swapped whole, and what changes per
//!   shard (the leader's hint).
//! - [`throttle`]: how often a line of one kind may be written to the log.
//!
//! Pure look-up and pure encoding: **no IO, no clock, no thread**, and no import of a sibling
//! crate.

pub mod call;
pub mod codec;
pub mod command;
pub mod cure;
pub mod descriptor;
pub mod ids;
pub mod membership;
pub mod mutation;
pub mod range;
pub mod refusal;
pub mod routes;
pub mod sizes;
pub mod throttle;

pub use call::{Answer, Consistency, HeldView, Item, Reply, Request, Scan, ScanPage};
pub use codec::DecodeError;
pub use command::{Command, Condition, Op};
pub use descriptor::{Descriptor, Epoch, Replica, Role};
pub use ids::{
    ClusterId, Incarnation, KeySpace, NodeId, OperationId, ReplicaId, Revision, ShardId,
};
pub use membership::{Change, ChangeKind, MemberChange, Transition, Unfit};
pub use range::KeyRange;
pub use refusal::{Outcome, Refusal};
pub use routes::Routes;
pub use throttle::Throttle;
