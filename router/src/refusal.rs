//! Every way a node says no, in three families: *routable* (carries its cure, and is followed
//! inside the cluster), *retryable* (the same question may succeed later) and *final*.
//!
//! Each knows its outcome: whether it is certain that a write was not applied. An unknown outcome
//! is never dressed up as a failure, and never retried by us.

use crate::descriptor::Descriptor;
use crate::ids::{NodeId, ShardId};
use serde::{Deserialize, Serialize};

/// What is known of a write that was not acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It is certain that it was not, and will not be, applied.
    NotApplied,
    /// It may have been applied, or may still be.
    Unknown,
}

/// What is limited where a leader has more writes in line than it proposes in time.
pub const FULL_LINE: &str =
    "the line of writes on the leader's node, at the pace at which it proposes, in bytes,";

/// A node's no.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// Routable: another replica leads.
    #[error("this node does not lead shard {shard}")]
    NotLeader {
        /// The shard.
        shard: ShardId,
        /// Who leads, as far as this node knows.
        leader: Option<NodeId>,
    },
    /// Routable: this node holds no replica of the shard.
    #[error("this node holds no replica of shard {shard}")]
    NotHosted {
        /// The shard.
        shard: ShardId,
    },
    /// Routable: the key belongs to another shard now.
    #[error("shard {shard} does not own that key any more")]
    WrongShard {
        /// The shard that was asked.
        shard: ShardId,
        /// What this node knows of the shards there now.
        descriptors: Vec<DescriptorBytes>,
    },
    /// Retryable: no leader was found in time.
    #[error("shard {shard} has no leader that could be reached in time; try again")]
    NoLeader {
        /// The shard.
        shard: ShardId,
    },
    /// Retryable: too much is in flight.
    #[error("too much in flight: {what} is limited to {limit}; try again later")]
    Overloaded {
        /// What is limited.
        what: String,
        /// The limit in force.
        limit: u64,
    },
    /// Retryable: the replica is further behind than the reader accepts.
    #[error("the replica of shard {shard} is older than allowed; allow more, or read linearizably")]
    TooStale {
        /// The shard.
        shard: ShardId,
    },
    /// Retryable: the node is going down.
    #[error("this node is shutting down; ask another")]
    ShuttingDown,
    /// Retryable: the time was up before the write was proposed, or before a read was answered.
    #[error("the deadline passed before shard {shard} answered")]
    Expired {
        /// The shard.
        shard: ShardId,
    },
    /// Final, and unknown: the write was proposed, and nothing more was heard of it in time.
    #[error(
        "the write to shard {shard} was proposed, and its outcome was not known before the deadline"
    )]
    OutcomeUnknown {
        /// The shard.
        shard: ShardId,
    },
    /// Retryable once there is room: the disk is nearly full.
    #[error(
        "the disk is nearly full: {free_bytes} bytes free, {reserve_bytes} reserved; deletes are \
         still taken"
    )]
    DiskFull {
        /// What is free.
        free_bytes: u64,
        /// Below this, writes are refused.
        reserve_bytes: u64,
    },
    /// Final: something asked about does not exist.
    #[error("no such {what}")]
    NotFound {
        /// What.
        what: String,
    },
    /// Final for now: an admin order conflicts with the state of the cluster.
    #[error("{why}")]
    Conflict {
        /// Why, and what to do.
        why: String,
    },
    /// Final: the question makes no sense.
    #[error("{why}")]
    Invalid {
        /// Why.
        why: String,
    },
    /// Final: something broke that a person must look at.
    #[error("internal error: {why}")]
    Internal {
        /// What broke.
        why: String,
        /// Whether a write may have been applied.
        outcome: Outcome,
    },
    /// Retryable, from where the stream came to: the view of the shard that it showed was given up.
    #[error(
        "the view of shard {shard} that this stream showed was given up, since it was old, long \
         unused or one of too many, or the replica was quarantined; go on at the cursor, which \
         shows the rest as it is now"
    )]
    ViewGivenUp {
        /// The shard.
        shard: ShardId,
    },
}

/// A [`Descriptor`] in its own stored encoding, so that there is only one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescriptorBytes(pub bytes::Bytes);

impl From<&Descriptor> for DescriptorBytes {
    fn from(descriptor: &Descriptor) -> Self {
        Self(descriptor.encode())
    }
}

impl Refusal {
    /// Whether a leader's line of writes is full.
    pub fn is_full_line(&self) -> bool {
        matches!(self, Self::Overloaded { what, .. } if what == FULL_LINE)
    }

    /// The stable name of the refusal.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotLeader { .. } => "not_leader",
            Self::NotHosted { .. } => "not_hosted",
            Self::WrongShard { .. } => "wrong_shard",
            Self::NoLeader { .. } => "no_leader",
            Self::Overloaded { .. } => "overloaded",
            Self::TooStale { .. } => "too_stale",
            Self::ShuttingDown => "shutting_down",
            Self::Expired { .. } => "expired",
            Self::OutcomeUnknown { .. } => "unknown_outcome",
            Self::DiskFull { .. } => "disk_full",
            Self::NotFound { .. } => "not_found",
            Self::Conflict { .. } => "conflict",
            Self::Invalid { .. } => "invalid",
            Self::Internal { .. } => "internal",
            Self::ViewGivenUp { .. } => "view_given_up",
        }
    }

    /// What is known of the write that was refused.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::OutcomeUnknown { .. } => Outcome::Unknown,
            Self::Internal { outcome, .. } => *outcome,
            _ => Outcome::NotApplied,
        }
    }

    /// Whether the same question may succeed later, or elsewhere.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NotLeader { .. }
            | Self::NotHosted { .. }
            | Self::WrongShard { .. }
            | Self::NoLeader { .. }
            | Self::Overloaded { .. }
            | Self::TooStale { .. }
            | Self::ShuttingDown
            | Self::Expired { .. }
            | Self::DiskFull { .. }
            | Self::ViewGivenUp { .. } => true,
            Self::OutcomeUnknown { .. }
            | Self::NotFound { .. }
            | Self::Conflict { .. }
            | Self::Invalid { .. }
            | Self::Internal { .. } => false,
        }
    }

    /// The shard concerned, where there is one.
    pub fn shard(&self) -> Option<ShardId> {
        match self {
            Self::NotLeader { shard, .. }
            | Self::NotHosted { shard }
            | Self::WrongShard { shard, .. }
            | Self::NoLeader { shard }
            | Self::TooStale { shard }
            | Self::Expired { shard }
            | Self::OutcomeUnknown { shard }
            | Self::ViewGivenUp { shard } => Some(*shard),
            _ => None,
        }
    }
}
