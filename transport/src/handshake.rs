//! Who speaks: after TLS, each end says its identity, and the other checks it against the
//! certificate and what it knows.
//!
//! The dialling end opens the first stream and sends a [`Hello`]; the other answers with its own,
//! or closes the connection with a [`Refusal`] as the reason, in words that say what to do. Both
//! ends log it. What is refused:
//!
//! - another protocol version, another cluster, or the same cluster bootstrapped otherwise;
//! - a node that is not the one its certificate names, or not the one that was dialled, or that
//!   claims to be this node;
//! - leases on one end that the other end makes no promises for ([`LeaseTerms`]);
//! - an incarnation older than one that was seen: a former self that has not noticed yet, or a copy
//!   of a data directory;
//! - whoever [`Handler::admit`](crate::Handler::admit) does not want: that is the node's judgement.

use crate::certs::NodeName;
use bytes::{BufMut, Bytes, BytesMut};
use flotilla_router::codec::Reader;
use flotilla_router::cure::NO_WAY_BACK;
use flotilla_router::{ClusterId, DecodeError, Incarnation, NodeId};

/// Rises with every change of what is said on these connections.
pub(crate) const PROTOCOL_VERSION: u16 = 3;
const MAGIC: &[u8; 8] = b"flotilla";
/// The longest handshake that is read, of any version.
pub(crate) const HELLO_BYTES_MAX: usize = 1024;

/// Who a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its node.
    pub node: NodeId,
    /// How often that node has started.
    pub incarnation: Incarnation,
    /// A hash of what its cluster was bootstrapped with. First nodes that began with different
    /// shards would never notice by themselves: their logs would agree and mean different things.
    pub bootstrap: u64,
    /// The number of its data directory, drawn when that was made: a node that lost its disk has
    /// another.
    pub directory: u64,
    /// What its leases rest on, where they are on.
    pub leases: Option<LeaseTerms>,
}

/// What a leader's lease and its followers' promises are made of. They are made on different nodes,
/// and fit only if these are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseTerms {
    /// Milliseconds of a tick.
    pub tick_ms: u64,
    /// Ticks for which a follower stands by a leader that it has heard.
    pub election_ticks: u64,
    /// By how many percent clocks may differ.
    pub drift_max_percent: u32,
}

/// Leases in words, as they are configured.
fn in_words(leases: Option<LeaseTerms>) -> String {
    leases.map_or_else(
        || "`reads.lease` off".into(),
        |LeaseTerms { tick_ms, election_ticks, drift_max_percent }| {
            format!(
                "`reads.lease` on, with `raft.tick_ms` {tick_ms}, `raft.election_ticks` \
                 {election_ticks}, `reads.clock_drift_percent_max` {drift_max_percent}"
            )
        },
    )
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Lanes and requests.
    Lanes,
    /// One snapshot.
    Snapshot,
}

/// The first thing that either end says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    /// The protocol that it speaks.
    pub(crate) version: u16,
    /// Who it is.
    pub(crate) identity: Identity,
    /// What the connection is for; the answer repeats it.
    pub(crate) purpose: Purpose,
}

/// Why a connection is refused, in words for the person who has to mend it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("{0}")]
    Malformed(#[from] DecodeError),
    #[error(
        "{0} speaks transport protocol {1}, the other end {PROTOCOL_VERSION}: run releases of \
         flotilla that fit each other"
    )]
    Version(NodeId, u16),
    #[error(
        "node {node} belongs to cluster {theirs}, not to {ours}: check its `peers` and its data \
         directory; a node talks only to its own cluster"
    )]
    Cluster { node: NodeId, theirs: ClusterId, ours: ClusterId },
    #[error(
        "node {node} was bootstrapped with other shards or nodes than this one: `bootstrap` \
         (`founding` in older files) and `peers` must be the same on every first node. The one \
         that differs from the other first nodes too is wrong: correct its configuration, and give \
         it an empty data directory if it never held data, or its old one back if it did"
    )]
    Bootstrap { node: NodeId },
    #[error(
        "the process says that it is node {said}, but its certificate is for node {named}: give it \
         its own certificate, made by `flotilla cert node`"
    )]
    Certificate { said: NodeId, named: NodeId },
    #[error("the certificate {0}")]
    NoName(String),
    #[error(
        "node {found} answers where node {dialled} was dialled: check the address of node \
         {dialled} in `peers`"
    )]
    WrongNode { dialled: NodeId, found: NodeId },
    #[error(
        "both ends say that they are node {0}: give each process its own node id, data directory \
         and certificate"
    )]
    SameNode(NodeId),
    #[error(
        "node {node} has {}, node {us} has {}: where leases are on these must be the same on every \
         node, or a leader would read by a lease that others do not stand by. Make them the same: \
         stop all nodes, change their configurations, and start them",
        in_words(*theirs), in_words(*ours)
    )]
    Leases { node: NodeId, theirs: Option<LeaseTerms>, us: NodeId, ours: Option<LeaseTerms> },
    #[error(
        "incarnation {theirs} of node {node} is older than {seen}, which was seen already: two \
         processes run as node {node}, or its data directory was put back to an old state; stop \
         one of them, or restore the directory as it was when the node ran last; {NO_WAY_BACK}"
    )]
    Incarnation { node: NodeId, theirs: Incarnation, seen: Incarnation },
    #[error("{0}")]
    NotAdmitted(String),
}

impl Hello {
    /// What `identity` says.
    pub(crate) fn new(identity: Identity, purpose: Purpose) -> Self {
        Self { version: PROTOCOL_VERSION, identity, purpose }
    }

    /// magic (8) ‖ version (2) ‖ node (8) ‖ cluster (8) ‖ incarnation (8) ‖ bootstrap (8) ‖
    /// directory (8) ‖ purpose (1) ‖ leases (1) ‖ where they are on: tick (8) ‖ election ticks (8)
    /// ‖ drift (4). Magic, version and node stay where they are in all versions, so that the
    /// complaint about a version can say whose it is.
    pub(crate) fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(64);
        bytes.put_slice(MAGIC);
        bytes.put_u16(self.version);
        bytes.put_u64(self.identity.node.0);
        bytes.put_u64(self.identity.cluster.0);
        bytes.put_u64(self.identity.incarnation.0);
        bytes.put_u64(self.identity.bootstrap);
        bytes.put_u64(self.identity.directory);
        bytes.put_u8(match self.purpose {
            Purpose::Lanes => 0,
            Purpose::Snapshot => 1,
        });
        bytes.put_u8(u8::from(self.identity.leases.is_some()));
        if let Some(LeaseTerms { tick_ms, election_ticks, drift_max_percent }) =
            self.identity.leases
        {
            bytes.put_u64(tick_ms);
            bytes.put_u64(election_ticks);
            bytes.put_u32(drift_max_percent);
        }
        bytes.freeze()
    }

    /// Reads what [`Hello::encode`] wrote.
    pub(crate) fn decode(bytes: Bytes) -> Result<Self, Refusal> {
        let mut reader = Reader::new("handshake", bytes);
        if reader.take(MAGIC.len())? != MAGIC[..] {
            return Err(reader.error("this is no flotilla node").into());
        }
        let version = u16::from_be_bytes([reader.u8()?, reader.u8()?]);
        let node = NodeId(reader.u64()?);
        if version != PROTOCOL_VERSION {
            return Err(Refusal::Version(node, version));
        }
        let (cluster, incarnation) = (ClusterId(reader.u64()?), Incarnation(reader.u64()?));
        let (bootstrap, directory) = (reader.u64()?, reader.u64()?);
        let purpose = match reader.u8()? {
            0 => Purpose::Lanes,
            1 => Purpose::Snapshot,
            other => return Err(reader.error(format!("unknown purpose {other}")).into()),
        };
        let leases = match reader.u8()? {
            0 => None,
            1 => Some(LeaseTerms {
                tick_ms: reader.u64()?,
                election_ticks: reader.u64()?,
                drift_max_percent: reader.u32()?,
            }),
            other => return Err(reader.error(format!("unknown leases {other}")).into()),
        };
        let identity = Identity { node, cluster, incarnation, bootstrap, directory, leases };
        reader.end()?;
        Ok(Self { version, identity, purpose })
    }

    /// Checks who speaks, except for the incarnation: `named` is what the certificate says,
    /// `dialled` the node that was dialled (`None` at the end that was dialled).
    pub(crate) fn check(
        &self,
        ours: Identity,
        named: NodeName,
        dialled: Option<NodeId>,
    ) -> Result<(), Refusal> {
        let theirs = self.identity;
        for cluster in [theirs.cluster, named.cluster] {
            if cluster != ours.cluster {
                return Err(Refusal::Cluster {
                    node: theirs.node,
                    theirs: cluster,
                    ours: ours.cluster,
                });
            }
        }
        if theirs.node != named.node {
            return Err(Refusal::Certificate { said: theirs.node, named: named.node });
        }
        if let Some(dialled) = dialled.filter(|dialled| *dialled != theirs.node) {
            return Err(Refusal::WrongNode { dialled, found: theirs.node });
        }
        if theirs.node == ours.node {
            return Err(Refusal::SameNode(ours.node));
        }
        if theirs.bootstrap != ours.bootstrap {
            return Err(Refusal::Bootstrap { node: theirs.node });
        }
        if theirs.leases != ours.leases {
            return Err(Refusal::Leases {
                node: theirs.node,
                theirs: theirs.leases,
                us: ours.node,
                ours: ours.leases,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LEASES: LeaseTerms =
        LeaseTerms { tick_ms: 50, election_ticks: 12, drift_max_percent: 10 };
    const OURS: Identity = Identity {
        cluster: ClusterId(1),
        node: NodeId(1),
        incarnation: Incarnation(1),
        bootstrap: 4,
        directory: 1,
        leases: None,
    };

    fn hello(cluster: u64, node: u64) -> Hello {
        let (cluster, node) = (ClusterId(cluster), NodeId(node));
        let identity = Identity {
            cluster,
            node,
            incarnation: Incarnation(9),
            bootstrap: 4,
            directory: 2,
            leases: None,
        };
        Hello::new(identity, Purpose::Lanes)
    }

    fn named(cluster: u64, node: u64) -> NodeName {
        NodeName { node: NodeId(node), cluster: ClusterId(cluster) }
    }

    #[test]
    fn a_handshake_survives_the_wire() {
        for purpose in [Purpose::Lanes, Purpose::Snapshot] {
            for leases in [None, Some(LEASES)] {
                let mut hello = Hello { purpose, ..hello(1, 2) };
                hello.identity.leases = leases;
                assert_eq!(Hello::decode(hello.encode()), Ok(hello));
            }
        }
    }

    #[test]
    fn another_version_is_refused_even_if_it_is_longer() {
        let mut bytes = BytesMut::from(&Hello { version: 99, ..hello(1, 2) }.encode()[..]);
        bytes.put_slice(b"more");
        assert_eq!(Hello::decode(bytes.freeze()), Err(Refusal::Version(NodeId(2), 99)));
    }

    #[test]
    fn each_mismatch_is_refused_with_its_cure() {
        assert_eq!(hello(1, 2).check(OURS, named(1, 2), None), Ok(()));
        assert_eq!(hello(1, 2).check(OURS, named(1, 2), Some(NodeId(2))), Ok(()));
        for (hello, named, dialled, expected) in [
            (
                hello(5, 2),
                named(1, 2),
                None,
                "belongs to cluster 0000000000000005, not to 0000000000000001",
            ),
            (
                hello(1, 2),
                named(5, 2),
                None,
                "belongs to cluster 0000000000000005, not to 0000000000000001",
            ),
            (
                hello(1, 2),
                named(1, 3),
                None,
                "says that it is node 2, but its certificate is for node 3",
            ),
            (hello(1, 3), named(1, 3), Some(NodeId(2)), "node 3 answers where node 2 was dialled"),
            (hello(1, 1), named(1, 1), None, "both ends say that they are node 1"),
        ] {
            let message = hello.check(OURS, named, dialled).unwrap_err().to_string();
            assert!(message.contains(expected), "{message:?} lacks {expected:?}");
        }
        let ours = Identity { bootstrap: 5, ..OURS };
        assert_eq!(
            hello(1, 2).check(ours, named(1, 2), None),
            Err(Refusal::Bootstrap { node: NodeId(2) })
        );
    }

    #[test]
    fn leases_that_do_not_fit_are_refused_on_both_ends() {
        let others = [
            None,
            Some(LeaseTerms { tick_ms: 100, ..LEASES }),
            Some(LeaseTerms { election_ticks: 11, ..LEASES }),
            Some(LeaseTerms { drift_max_percent: 0, ..LEASES }),
        ];
        for theirs in others {
            for (ours, theirs) in [(Some(LEASES), theirs), (theirs, Some(LEASES))] {
                let mut hello = hello(1, 2);
                hello.identity.leases = theirs;
                let message = hello
                    .check(Identity { leases: ours, ..OURS }, named(1, 2), None)
                    .unwrap_err()
                    .to_string();
                let words = [
                    "node 2 has `reads.lease`",
                    "node 1 has `reads.lease`",
                    "stop all nodes",
                    "same on every node",
                ];
                assert!(words.iter().all(|words| message.contains(words)), "{message}");
            }
        }
        let mut hello = hello(1, 2);
        hello.identity.leases = Some(LEASES);
        assert_eq!(
            hello.check(Identity { leases: Some(LEASES), ..OURS }, named(1, 2), None),
            Ok(())
        );
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = Hello::decode(bytes.into());
        }

        #[test]
        fn a_cut_handshake_is_refused(n in 0usize..52) {
            prop_assert!(Hello::decode(hello(1, 2).encode().slice(..n)).is_err());
        }
    }
}
