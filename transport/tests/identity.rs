//! Who may speak: every mismatch of certificate, cluster, node and incarnation is refused, with
//! words that say what to do.

mod common;

use common::{CLUSTER, Node, Told, ca, eventually, logged, was_logged};
use flotilla_router::{ClusterId, Incarnation, NodeId};
use flotilla_transport::{
    ClusterCa, Config, Credentials, Identity, Lane, Transport, TransportError,
};
use std::sync::Arc;
use std::time::Duration;

fn credentials(ca: &ClusterCa, node: u64) -> Credentials {
    let (cert, key) = ca.node(NodeId(node), &["127.0.0.1".into()]).unwrap();
    Credentials::from_pem(ca.cert_pem(), &cert, &key).unwrap()
}

fn refused(dialling: &Node, dialled: &Node, words: &[&str]) {
    logged();
    dialling.dial(dialled);
    for words in words {
        eventually(words, || was_logged(words));
    }
    eventually("the count", || dialling.transport.stats().connections_failed.get() >= 1);
    assert!(!dialling.transport.reachable(dialled.id));
    assert!(!dialling.transport.send(dialled.id, Lane::Control, "let me in".into()));
    assert_eq!(dialled.record.told(), [], "something came through");
    assert_eq!(dialling.record.count(|told| matches!(told, Told::Reachable(..))), 0);
}

#[test]
fn a_certificate_from_another_authority_is_refused_at_both_ends() {
    let one = Node::start(&ca(), 1, 1, Config::default());
    let two = Node::start(&ca(), 2, 1, Config::default());
    refused(
        &one,
        &two,
        &[
            "the peer's certificate was not made by the CA that this node trusts",
            "the peer trusts another CA than the one that made this node's certificate",
        ],
    );
}

#[test]
fn a_node_of_another_cluster_is_refused_even_where_its_authority_is_trusted() {
    let (ours, theirs) = (ca(), ClusterCa::new(ClusterId(99)).unwrap());
    let both = format!("{}{}", ours.cert_pem(), theirs.cert_pem());
    let start = |ca: &ClusterCa, node: u64| {
        let (cert, key) = ca.node(NodeId(node), &[]).unwrap();
        let identity = Identity {
            cluster: ca.cluster(),
            node: NodeId(node),
            incarnation: Incarnation(1),
            bootstrap: 0,
            directory: 1,
            leases: None,
        };
        Node::start_as(
            identity,
            &Credentials::from_pem(&both, &cert, &key).unwrap(),
            Config::default(),
        )
        .unwrap()
    };
    let (one, two) = (start(&ours, 1), start(&theirs, 2));
    refused(&one, &two, &["another node or cluster than the one dialled answers at that address"]);
}

#[test]
fn a_node_that_answers_at_the_wrong_address_is_refused() {
    let ca = ca();
    let one = Node::start(&ca, 1, 1, Config::default());
    let three = Node::start(&ca, 3, 1, Config::default());
    logged();
    one.transport.add_peer(NodeId(2), three.address());
    eventually("the words", || {
        was_logged(
            "another node or cluster than the one dialled answers at that address: check it in \
             `peers`",
        )
    });
    eventually("who answers there", || was_logged("n3.00abcdef01234567.flotilla"));
    assert!(!one.transport.reachable(NodeId(2)));
    assert_eq!(three.record.told(), []);
}

#[test]
fn two_processes_with_one_node_id_are_told_so() {
    let ca = ca();
    let one = Node::start(&ca, 1, 1, Config::default());
    let also_one = Node::start(&ca, 1, 1, Config::default());
    let two = Node::start(&ca, 2, 1, Config::default());
    two.dial(&one);
    two.wait_reachable(one.id);
    // A node takes itself for no peer, so its namesake can only be met under another name: the
    // certificate decides.
    logged();
    also_one.transport.add_peer(NodeId(2), one.address());
    eventually("the words", || was_logged("another node or cluster than the one dialled answers"));
    assert_eq!(one.record.told(), []);
}

#[test]
fn an_older_incarnation_is_refused_and_told_why() {
    let ca = ca();
    let one = Node::start(&ca, 1, 1, Config::default());
    let two = Node::start(&ca, 2, 5, Config::default());
    two.dial(&one);
    two.wait_reachable(one.id);
    logged();
    let old_two = Node::start(&ca, 2, 4, Config::default());
    old_two.dial(&one);
    eventually("the words at the old one", || {
        let lines = logged().lock().unwrap().clone();
        let says = |line: &&String| line.contains("incarnation 4 of node 2 is older than 5");
        lines
            .iter()
            .filter(says)
            .any(|line| line.starts_with("INFO") && line.contains("stop one of them"))
    });
    eventually("the words at the other end", || {
        let lines = logged().lock().unwrap().clone();
        lines.iter().any(|line| {
            line.starts_with("WARN") && line.contains("incarnation 4 of node 2 is older than 5")
        })
    });
    assert!(!old_two.transport.reachable(one.id));
    assert!(two.transport.reachable(one.id), "the newer one lost its connection to the older one");
    assert!(one.transport.stats().connections_refused.get() >= 1);
    // The same holds where the old one is dialled.
    one.dial(&old_two);
    eventually("a refusal", || one.transport.stats().connections_failed.get() >= 1);
    assert!(!one.transport.reachable(NodeId(2)));
}

#[test]
fn a_newer_incarnation_takes_the_place_of_the_older_one() {
    let ca = ca();
    let one = Node::start(&ca, 1, 1, Config::default());
    let two = Node::start(&ca, 2, 1, Config::default());
    one.dial(&two);
    two.dial(&one);
    one.wait_reachable(two.id);
    two.wait_reachable(one.id);
    let new_two = Node::start(&ca, 2, 2, Config::default());
    one.transport.set_address(NodeId(2), new_two.address());
    new_two.dial(&one);
    eventually("the new one", || {
        one.record.told().contains(&Told::Reachable(NodeId(2), Incarnation(2)))
    });
    eventually("the old one to be shut out", || !two.transport.reachable(one.id));
    std::thread::sleep(Duration::from_millis(300));
    assert!(!two.transport.reachable(one.id), "the old one got in again");
    assert!(one.transport.send(NodeId(2), Lane::Control, "new".into()));
    eventually("the frame", || new_two.record.frames(Lane::Control) == ["new"]);
    assert_eq!(two.record.frames(Lane::Control).len(), 0);
}

#[test]
fn a_client_certificate_opens_no_peer_connection() {
    let ca = ca();
    let (cert, key) = ca.client("backup").unwrap();
    let error = Credentials::from_pem(ca.cert_pem(), &cert, &key).unwrap_err().to_string();
    assert!(error.contains("names no node"), "{error}");
}

#[test]
fn what_cannot_start_says_why_in_one_line() {
    let ca = ca();
    let record = Arc::new(common::Record::default());
    let identity = Identity {
        cluster: CLUSTER,
        node: NodeId(1),
        incarnation: Incarnation(1),
        bootstrap: 0,
        directory: 1,
        leases: None,
    };
    let error =
        Transport::start(Config::default(), identity, &credentials(&ca, 1), record).err().unwrap();
    assert!(matches!(error, TransportError::NoRuntime));

    let start = |identity, config| {
        Node::start_as(identity, &credentials(&ca, 1), config).err().unwrap().to_string()
    };
    let node = Node::start(&ca, 1, 1, Config::default());
    let taken = Config { listen: node.transport.local_addr(), ..Config::default() };
    assert_eq!(
        start(identity, taken),
        format!("{} is in use; choose another with `quic = ...`", node.address())
    );

    let foreign = Config { listen: ([192, 0, 2, 1], 0).into(), ..Config::default() };
    assert!(start(identity, foreign).contains("is not an address of this machine"));

    let message = start(Identity { node: NodeId(2), ..identity }, Config::default());
    assert!(
        message.contains("it is for node 1 of cluster 00abcdef01234567, but this is node 2"),
        "{message}"
    );
    let message = start(Identity { cluster: ClusterId(5), ..identity }, Config::default());
    assert!(message.contains("but this is node 1 of cluster 0000000000000005"), "{message}");
}

/// One end turns the other away, which for its part is content: it must not be made to dial anew by
/// each call from the first.
#[test]
fn a_node_that_is_turned_away_tries_less_and_less_often() {
    let ca = ca();
    let config = Config {
        connect_backoff_min: Duration::from_millis(20),
        connect_backoff_max: Duration::from_secs(10),
        ..Config::default()
    };
    let one = Node::start(&ca, 1, 1, config.clone());
    let newer = Node::start(&ca, 2, 9, config.clone());
    newer.dial(&one);
    newer.wait_reachable(one.id);
    newer.kill();
    let older = Node::start(&ca, 2, 1, config);
    older.dial(&one);
    one.dial(&older);
    std::thread::sleep(Duration::from_millis(1500));
    let tries = older.transport.stats().connections_failed.get();
    // Pauses of 20, 40, 80, … ms, the shortest half as long.
    assert!((1..=10).contains(&tries), "{tries} tries in 1.5 s");
}
