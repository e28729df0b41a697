//! Strangers at the QUIC port: forged first packets, and handshakes that come to nothing. Peers get
//! in all the same, and the log stays short.

mod common;

use common::{Node, ca, eventually, logged};
use flotilla_transport::Config;
use quinn::Endpoint;
use quinn::crypto::rustls::QuicClientConfig;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A client's configuration without a certificate of its own.
fn stranger(ca_pem: &str) -> quinn::ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca_pem.as_bytes()).unwrap()).unwrap();
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(
        rustls::crypto::ring::default_provider(),
    ))
    .with_protocol_versions(&[&rustls::version::TLS13])
    .unwrap()
    .with_root_certificates(roots)
    .with_no_client_auth();
    config.alpn_protocols = vec![b"flotilla/1".to_vec()];
    quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).unwrap()))
}

/// First packets of connections, each good for one: what clients sent to a socket that never
/// answers.
fn first_packets(node: &Node, ca_pem: &str, wanted: usize) -> Vec<Vec<u8>> {
    let sink = UdpSocket::bind("127.0.0.1:0").unwrap();
    sink.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let (to, config) = (sink.local_addr().unwrap(), stranger(ca_pem));
    let mut packets = Vec::new();
    let mut buffer = [0; 2048];
    while packets.len() < wanted {
        let packet = node.block_on(async {
            let endpoint = Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
            let connecting = endpoint.connect_with(config.clone(), to, "n1.flotilla").unwrap();
            let length = tokio::task::block_in_place(|| sink.recv(&mut buffer)).unwrap();
            drop(connecting);
            buffer[..length].to_vec()
        });
        // The farewell of an earlier client may come in between: short.
        if packet.len() >= 1200 {
            packets.push(packet);
        }
    }
    packets
}

#[test]
fn forged_first_packets_keep_no_peer_out() {
    let ca = ca();
    let one = Node::start(&ca, 1, 1, Config::default());
    let packets = first_packets(&one, ca.cert_pem(), 400);
    let (target, done) = (one.transport.local_addr(), Arc::new(AtomicBool::new(false)));
    let flood = {
        let done = done.clone();
        std::thread::spawn(move || {
            // Each once within what a handshake may take, so that all of them count; from a socket
            // that never reads.
            let from = UdpSocket::bind("127.0.0.1:0").unwrap();
            let mut sent = 0;
            for packet in packets.iter().cycle() {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                from.send_to(packet, target).unwrap();
                sent += 1;
                std::thread::sleep(if sent < 100 {
                    Duration::ZERO
                } else {
                    Duration::from_millis(2)
                });
            }
        })
    };
    eventually("addresses are challenged", || one.transport.stats().addresses_challenged.get() > 0);
    let peers: Vec<_> = (2..12).map(|id| Node::start(&ca, id, 1, Config::default())).collect();
    for peer in &peers {
        peer.dial(&one);
    }
    for peer in &peers {
        peer.wait_reachable(one.id);
        assert_eq!(
            peer.transport.stats().connections_failed.get(),
            0,
            "node {} was turned away",
            peer.id
        );
    }
    done.store(true, Ordering::Relaxed);
    flood.join().unwrap();
}

#[test]
fn strangers_get_a_line_now_and_then() {
    let ca = ca();
    let one = Node::start(&ca, 1, 1, Config::default());
    let (to, config) = (one.transport.local_addr(), stranger(ca.cert_pem()));
    logged();
    let refused = |n: u64| one.transport.stats().connections_refused.get() >= n;
    for n in 0..50u32 {
        one.block_on(async {
            let endpoint = Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
            // A name that varies would make each reason another one; so does what a stranger says
            // when it goes.
            let connecting =
                endpoint.connect_with(config.clone(), to, &format!("n1.stranger{n}")).unwrap();
            if let Ok(connection) = connecting.await {
                connection.close(quinn::VarInt::from_u32(n), format!("reason {n}").as_bytes());
            }
            endpoint.wait_idle().await;
        });
    }
    eventually("all were refused", || refused(50));
    let lines =
        logged().lock().unwrap().iter().filter(|line| line.contains("connection refused")).count();
    assert!((1..=3).contains(&lines), "{lines} lines for 50 strangers");
}
