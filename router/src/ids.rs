//! A newtype for every id and counter of the cluster, so that the compiler keeps a shard from being
//! taken for a node.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[derive(Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = std::num::ParseIntError;
            fn from_str(s: &str) -> Result<Self, Self::Err> {
                s.parse().map(Self)
            }
        }
    };
}

id! {
    /// One process with one data directory. Never changes, never 0.
    NodeId
}
id! {
    /// One key range and the Raft group that owns it.
    ShardId
}
id! {
    /// One member of a shard's group on one node: the Raft id. Never reused in the whole cluster,
    /// never 0.
    ReplicaId
}
id! {
    /// Grows by one each time a node starts. Sets a restarted process apart from its former self.
    Incarnation
}
id! {
    /// One operation that somebody ordered. What it does to a shard carries its id, so that whoever
    /// ordered it knows it again.
    OperationId
}
id! {
    /// What a key's ETag shows. Grows with each write of that key and never goes back. 0 stands for
    /// "no such key".
    Revision
}

impl ShardId {
    /// The one system shard, which keeps the cluster itself: nodes, descriptors, the next free ids.
    pub const META: Self = Self(1);

    /// Whether this is the system shard, whose keys live in a space of their own.
    pub fn is_meta(self) -> bool {
        self == Self::META
    }

    /// Where its keys are.
    pub fn key_space(self) -> KeySpace {
        if self.is_meta() { KeySpace::Meta } else { KeySpace::User }
    }
}

/// The cluster that a node, a certificate and a data directory belong to: drawn at random when the
/// cluster is made. Written as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(pub u64);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for ClusterId {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match u64::from_str_radix(s, 16) {
            Ok(id) if s.len() == 16 && id != 0 => Ok(Self(id)),
            _ => Err(format!(
                "cluster id {s:?} is not 16 hexadecimal digits; `flotilla cert ca` prints one"
            )),
        }
    }
}

impl Serialize for ClusterId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ClusterId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// One of the two sets of keys that know nothing of each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeySpace {
    /// What clients keep.
    User,
    /// What the cluster knows of itself, kept by the meta shard.
    Meta,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_id_is_what_it_prints() {
        let id = ClusterId(0x00ab_cdef_0123_4567);
        assert_eq!(id.to_string(), "00abcdef01234567");
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in ["", "12", "zz00000000000000", "00abcdef012345678", "0000000000000000"] {
            assert!(bad.parse::<ClusterId>().is_err(), "{bad:?} was taken");
        }
    }
}
