//! A peer with a valid certificate that breaks the protocol: its connection is closed with a
//! reason, and nothing else happens.
//!
//! The peer here is plain quinn, so that it can send what the transport never would.

mod common;

use common::{CLUSTER, Node, Told, ca, eventually};
use flotilla_router::NodeId;
use flotilla_transport::{ClusterCa, Config, Lane};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, ConnectionError, Endpoint};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::sync::Arc;
use std::time::Duration;

const LANES: u8 = 0;
const SNAPSHOT: u8 = 1;

fn hello(cluster: u64, node: u64, incarnation: u64, purpose: u8) -> Vec<u8> {
    let (bootstrap, directory) = (0u64, 1u64);
    let numbers = [node, cluster, incarnation, bootstrap, directory].map(u64::to_be_bytes).concat();
    // Protocol 3; no leases.
    let body = [b"flotilla\0\x03", &numbers[..], &[purpose, 0]].concat();
    framed(&body)
}

fn framed(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
}

/// Connects to `node`, which must be node 1, with the given certificate or none.
async fn connect(
    ca: &ClusterCa,
    node: &Node,
    pems: Option<(String, String)>,
    alpn: &[u8],
) -> Result<Connection, ConnectionError> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.cert_pem().as_bytes()).unwrap()).unwrap();
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(
        rustls::crypto::ring::default_provider(),
    ))
    .with_protocol_versions(&[&rustls::version::TLS13])
    .unwrap()
    .with_root_certificates(roots);
    let mut config = match pems {
        Some((cert, key)) => config
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
            )
            .unwrap(),
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    let endpoint = Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).unwrap()));
    let name = format!("n1.{CLUSTER}.flotilla");
    endpoint.connect_with(config, node.transport.local_addr(), &name).unwrap().await
}

async fn greeted(ca: &ClusterCa, node: &Node, purpose: u8) -> Connection {
    let connection =
        connect(ca, node, Some(ca.node(NodeId(2), &[]).unwrap()), b"flotilla/1").await.unwrap();
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    send.write_all(&hello(CLUSTER.0, 2, 1, purpose)).await.unwrap();
    send.finish().unwrap();
    let answer = receive.read_to_end(1000).await.unwrap();
    assert_eq!(
        answer,
        hello(CLUSTER.0, 1, 1, purpose),
        "the handshake is not what docs and the other end say"
    );
    connection
}

async fn close_reason(connection: &Connection) -> String {
    let closed = tokio::time::timeout(Duration::from_secs(5), connection.closed())
        .await
        .expect("the connection stays open");
    match closed {
        ConnectionError::ApplicationClosed(close) => {
            String::from_utf8_lossy(&close.reason).into_owned()
        }
        other => panic!("{other}"),
    }
}

#[test]
fn each_bad_handshake_is_refused_with_what_to_do() {
    let ca = ca();
    let node = Node::start(&ca, 1, 1, Config::default());
    let node_2 = || ca.node(NodeId(2), &[]).unwrap();
    let cases: [(&str, (String, String), Vec<u8>); 8] = [
        (
            "belongs to cluster 0000000000000005, not to 00abcdef01234567",
            node_2(),
            hello(5, 2, 1, LANES),
        ),
        (
            "says that it is node 3, but its certificate is for node 2",
            node_2(),
            hello(CLUSTER.0, 3, 1, LANES),
        ),
        (
            "both ends say that they are node 1",
            ca.node(NodeId(1), &[]).unwrap(),
            hello(CLUSTER.0, 1, 1, LANES),
        ),
        (
            "the certificate names no node",
            ca.client("backup").unwrap(),
            hello(CLUSTER.0, 2, 1, LANES),
        ),
        ("unknown purpose 7", node_2(), hello(CLUSTER.0, 2, 1, 7)),
        ("this is no flotilla node", node_2(), framed(b"GET / HTTP/1.1\r\n\r\n")),
        (
            "2 speaks transport protocol 9, the other end 3",
            node_2(),
            framed(b"flotilla\0\x09\0\0\0\0\0\0\0\x02 and more"),
        ),
        ("malformed handshake", node_2(), framed(b"flot")),
    ];
    for (n, (expected, pems, bytes)) in cases.into_iter().enumerate() {
        let reason = node.block_on(async {
            let connection = connect(&ca, &node, Some(pems), b"flotilla/1").await.unwrap();
            let (mut send, _receive) = connection.open_bi().await.unwrap();
            send.write_all(&bytes).await.unwrap();
            close_reason(&connection).await
        });
        assert!(reason.contains(expected), "{reason:?} lacks {expected:?}");
        assert_eq!(node.transport.stats().connections_refused.get(), n as u64 + 1);
    }
    assert_eq!(node.transport.stats().connections_accepted.get(), 0);
}

#[test]
fn without_a_certificate_or_with_another_protocol_there_is_no_connection() {
    let ca = ca();
    let node = Node::start(&ca, 1, 1, Config::default());
    node.block_on(async {
        let wrong_protocol =
            connect(&ca, &node, Some(ca.node(NodeId(2), &[]).unwrap()), b"h3").await;
        assert!(
            matches!(wrong_protocol, Err(ConnectionError::ConnectionClosed(_))),
            "{wrong_protocol:?}"
        );
        // In TLS 1.3 the client is done before the server has looked for its certificate: it learns
        // a moment later.
        let closed = match connect(&ca, &node, None, b"flotilla/1").await {
            Ok(connection) => connection.closed().await,
            Err(error) => error,
        };
        assert!(matches!(closed, ConnectionError::ConnectionClosed(_)), "{closed:?}");
    });
    eventually("the refusals", || node.transport.stats().connections_refused.get() == 2);
}

#[test]
fn whoever_says_nothing_is_sent_away() {
    let ca = ca();
    let config = Config {
        idle_timeout: Duration::from_millis(300),
        keep_alive: Duration::from_millis(100),
        ..Config::default()
    };
    let node = Node::start(&ca, 1, 1, config);
    node.block_on(async {
        let connection = connect(&ca, &node, Some(ca.node(NodeId(2), &[]).unwrap()), b"flotilla/1")
            .await
            .unwrap();
        tokio::time::timeout(Duration::from_secs(3), connection.closed())
            .await
            .expect("the connection stays open");
    });
    eventually("the refusal", || node.transport.stats().connections_refused.get() == 1);
}

#[test]
fn what_no_node_sends_closes_the_connection() {
    let ca = ca();
    let node = Node::start(&ca, 1, 1, Config { frame_bytes_max: 1 << 20, ..Config::default() });
    let requests = [&7u64.to_be_bytes()[..], &1000u32.to_be_bytes(), b"short"].concat();
    let cases: [(&str, bool, Vec<u8>); 5] = [
        ("an unknown lane, 200", false, vec![200]),
        ("a frame of 4294967295 bytes", false, [&[0][..], &[255; 4]].concat()),
        ("a stream ended within a frame", false, [&[1][..], &[0, 0, 0, 9], b"short"].concat()),
        ("a frame of 1048577 bytes; at most 1048576", true, (1048577u32).to_be_bytes().to_vec()),
        ("malformed request frame", true, framed(&requests)),
    ];
    for (n, (expected, is_request, bytes)) in cases.into_iter().enumerate() {
        let reason = node.block_on(async {
            let connection = greeted(&ca, &node, LANES).await;
            let mut send = if is_request {
                connection.open_bi().await.unwrap().0
            } else {
                connection.open_uni().await.unwrap()
            };
            send.write_all(&bytes).await.unwrap();
            let _ = send.finish();
            close_reason(&connection).await
        });
        assert!(reason.contains(expected), "{reason:?} lacks {expected:?}");
        assert_eq!(node.transport.stats().protocol_errors.get(), n as u64 + 1);
    }
    assert_eq!(node.record.frames(Lane::Control).len(), 0);
    // One that keeps to the rules is welcome all the same.
    node.block_on(async {
        let connection = greeted(&ca, &node, LANES).await;
        let mut send = connection.open_uni().await.unwrap();
        send.write_all(&[&[0][..], &framed(b"good")].concat()).await.unwrap();
        send.finish().unwrap();
        let _ = send.stopped().await;
    });
    eventually("the frame", || node.record.frames(Lane::Control) == ["good"]);
}

#[test]
fn a_forged_snapshot_is_refused_with_the_reason_and_cleaned_up() {
    let ca = ca();
    let node = Node::start(&ca, 1, 1, Config::default());
    let target = tempfile::tempdir().unwrap();
    *node.record.stage.lock().unwrap() = Some(target.path().join("inner"));
    let file = |name: &[u8], content: &[u8], checksum: u32| {
        [&framed(name)[..], &(content.len() as u64).to_be_bytes(), content, &checksum.to_be_bytes()]
            .concat()
    };
    let files =
        |count: u32, files: &[u8]| [&framed(b"forged")[..], &count.to_be_bytes(), files].concat();
    let right = crc32fast::hash(b"content");
    let cases: [(&str, Vec<u8>); 9] = [
        ("a name that is not allowed", files(1, &file(b"../evil", b"content", right))),
        ("a name that is not allowed", files(1, &file(b".hidden", b"content", right))),
        ("a name that is not allowed", files(1, &file(b"\xff\xfe", b"content", right))),
        ("a name of 4294967295 bytes", files(1, &[255; 4])),
        ("10001 files", files(10_001, b"")),
        ("another checksum", files(1, &file(b"a", b"content", right ^ 1))),
        ("ends too early", files(2, &file(b"a", b"content", right))),
        ("ends too early", files(1, &file(b"a", b"content", right)[..12])),
        ("more than it says", files(0, &file(b"a", b"content", right))),
    ];
    for (n, (expected, bytes)) in cases.into_iter().enumerate() {
        let verdict = node.block_on(async {
            let connection = greeted(&ca, &node, SNAPSHOT).await;
            let (mut send, mut receive) = connection.open_bi().await.unwrap();
            // The receiver may stop reading before all is written.
            let _ = send.write_all(&bytes).await;
            let _ = send.finish();
            receive.read_to_end(10_000).await.unwrap()
        });
        let text = String::from_utf8_lossy(&verdict[9..]).into_owned();
        assert_eq!(verdict[4], 3, "{text}");
        assert!(text.contains(expected), "{text:?} lacks {expected:?}");
        assert_eq!(node.record.count(|told| matches!(told, Told::SnapshotFailed(..))), n + 1);
        assert!(!target.path().join("inner/forged").exists());
    }
    assert_eq!(node.record.count(|told| matches!(told, Told::SnapshotStaged(..))), 0);
    assert!(!target.path().join("evil").exists() && !target.path().join("inner/evil").exists());
    assert_eq!(node.transport.stats().snapshots_receive_failed.get(), 9);
}
