//! Frames between real endpoints: in order, large, bounded, and dropped rather than waited for.

mod common;

use bytes::Bytes;
use common::{Node, Told, ca, cluster, eventually};
use flotilla_router::{Incarnation, NodeId};
use flotilla_transport::{Config, Congestion, Lane};
use std::time::Duration;

const LANES: [Lane; 3] = [Lane::Control, Lane::Append(0), Lane::Append(1)];

#[test]
fn frames_of_a_lane_arrive_in_order_between_all_nodes() {
    let nodes = cluster(3, &Config::default());
    for n in 0..1000u32 {
        for node in &nodes {
            for other in nodes.iter().filter(|other| other.id != node.id) {
                for lane in LANES {
                    let frame = [&node.id.0.to_be_bytes()[..], &n.to_be_bytes()].concat();
                    assert!(node.transport.send(other.id, lane, frame.into()));
                }
            }
        }
    }
    for node in &nodes {
        for lane in LANES {
            eventually("all frames", || node.record.frames(lane).len() == 2000);
        }
        let mut next = std::collections::HashMap::new();
        for told in node.record.told() {
            let Told::Frame(from, lane, frame) = told else { continue };
            assert_eq!(frame[..8], from.0.to_be_bytes(), "a frame came from another than it says");
            let expected = next.entry((from, lane)).or_insert(0u32);
            assert_eq!(frame[8..], expected.to_be_bytes(), "from {from} on {lane:?}");
            *expected += 1;
        }
        assert_eq!(node.transport.stats().append.frames_received.get(), 4000);
        assert_eq!(node.transport.stats().append.frames_sent.get(), 4000);
        assert_eq!(node.transport.stats().append.frames_dropped.get(), 0);
        assert!(
            nodes
                .iter()
                .filter(|other| other.id != node.id)
                .all(|other| node.transport.round_trip(other.id).is_some())
        );
    }
}

#[test]
fn large_and_empty_frames_pass_whole_with_every_congestion_control() {
    for congestion in [Congestion::Cubic, Congestion::NewReno, Congestion::Bbr] {
        let nodes = cluster(2, &Config { congestion, ..Config::default() });
        let large: Bytes = (0..16u32 << 20)
            .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect::<Vec<_>>()
            .into();
        let sent =
            [Bytes::new(), large.slice(..100_000), large.clone(), "small".into(), Bytes::new()];
        for frame in &sent {
            assert!(nodes[0].transport.send(NodeId(2), Lane::Append(0), frame.clone()));
        }
        eventually("all frames", || nodes[1].record.frames(Lane::Append(0)).len() == sent.len());
        assert!(nodes[1].record.frames(Lane::Append(0)) == sent, "what came is not what was sent");
    }
}

#[test]
fn an_urgent_frame_does_not_wait_behind_large_ones() {
    let nodes = cluster(2, &Config { outbox_bytes_max: 256 << 20, ..Config::default() });
    let large = Bytes::from(vec![1; 16 << 20]);
    for _ in 0..4 {
        for lane in [Lane::Append(0), Lane::Append(1)] {
            assert!(nodes[0].transport.send(NodeId(2), lane, large.clone()));
        }
    }
    std::thread::sleep(Duration::from_millis(20));
    nodes[0].transport.send(NodeId(2), Lane::Control, "urgent".into());
    eventually("the urgent frame", || nodes[1].record.frames(Lane::Control).len() == 1);
    let large_before = nodes[1].record.frames(Lane::Append(0)).len()
        + nodes[1].record.frames(Lane::Append(1)).len();
    assert!(large_before < 8, "the urgent frame came after all the large ones");
}

#[test]
fn without_a_connection_frames_are_dropped_counted_and_reported_now_and_then() {
    let ca = ca();
    let node = Node::start(&ca, 1, 1, Config::default());
    assert!(!node.transport.send(NodeId(9), Lane::Control, "to nobody".into()));
    // Nobody listens there.
    node.transport.add_peer(NodeId(2), "127.0.0.1:9".into());
    for _ in 0..100 {
        assert!(!node.transport.send(NodeId(2), Lane::Append(0), "lost".into()));
    }
    assert_eq!(node.transport.stats().append.frames_dropped.get(), 100);
    assert_eq!(node.transport.stats().append.bytes_dropped.get(), 400);
    assert_eq!(node.transport.stats().control.frames_dropped.get(), 1);
    let reports = node.record.count(|told| *told == Told::Unreachable(NodeId(2)));
    assert!((1..=20).contains(&reports), "100 drops in a burst were reported {reports} times");
    assert!(!node.transport.reachable(NodeId(2)));
}

#[test]
fn a_full_outbox_drops_counts_and_reports() {
    // A peer that is killed may, or may not, get a last packet out that closes the connection. Only
    // where it doesn't is there a peer that takes nothing.
    for _ in 0..10 {
        if a_full_outbox() {
            return;
        }
    }
    panic!("each of ten peers closed its connection although it was killed");
}

/// Whether the killed peer's connection stayed open for as long as it took to fill the outbox.
fn a_full_outbox() -> bool {
    let config =
        Config { outbox_bytes_max: 1 << 20, frame_bytes_max: 1 << 20, ..Config::default() };
    let mut nodes = cluster(2, &Config { idle_timeout: Duration::from_secs(30), ..config });
    nodes.pop().unwrap().kill();
    let before = nodes[0].record.count(|told| *told == Told::Unreachable(NodeId(2)));
    let frame = Bytes::from(vec![1; 256 << 10]);
    let mut taken = 0;
    while nodes[0].transport.send(NodeId(2), Lane::Append(0), frame.clone()) {
        taken += 1;
        assert!(taken < 1000, "a peer that takes nothing is sent to without end");
        std::thread::sleep(Duration::from_millis(1));
    }
    if !nodes[0].transport.reachable(NodeId(2)) {
        return false;
    }
    assert_eq!(nodes[0].transport.stats().append.frames_dropped.get(), 1);
    assert_eq!(nodes[0].record.count(|told| *told == Told::Unreachable(NodeId(2))), before + 1);
    assert!(
        nodes[0].transport.send(NodeId(2), Lane::Append(1), frame),
        "another lane has an outbox of its own"
    );
    true
}

#[test]
fn a_frame_too_large_to_send_is_dropped_and_one_too_large_to_take_closes_the_connection() {
    let ca = ca();
    let narrow = Node::start(&ca, 1, 1, Config { frame_bytes_max: 10_000, ..Config::default() });
    let wide = Node::start(&ca, 2, 1, Config { frame_bytes_max: 100_000, ..Config::default() });
    narrow.dial(&wide);
    wide.dial(&narrow);
    narrow.wait_reachable(wide.id);
    wide.wait_reachable(narrow.id);
    assert!(!narrow.transport.send(wide.id, Lane::Append(0), vec![1; 10_001].into()));
    assert!(narrow.transport.send(wide.id, Lane::Append(0), vec![1; 10_000].into()));
    eventually("the frame that fits", || wide.record.frames(Lane::Append(0)).len() == 1);

    common::logged();
    assert!(wide.transport.send(narrow.id, Lane::Append(0), vec![1; 10_001].into()));
    eventually("the protocol error", || narrow.transport.stats().protocol_errors.get() == 1);
    eventually("the loss to be told", || {
        wide.record.count(|told| *told == Told::Unreachable(narrow.id)) >= 1
    });
    eventually("the reason", || {
        common::was_logged("a frame of 10001 bytes; at most 10000 are allowed (`frame_bytes_max`)")
    });
    assert_eq!(narrow.record.frames(Lane::Append(0)).len(), 0);
    // It is dialled again, and what fits passes.
    eventually("the next frame", || {
        wide.transport.send(narrow.id, Lane::Append(0), "fits".into());
        !narrow.record.frames(Lane::Append(0)).is_empty()
    });
}

#[test]
fn a_restarted_peer_is_connected_to_at_once_and_old_frames_do_not_follow() {
    let ca = ca();
    let one = Node::start(&ca, 1, 1, Config::default());
    let two = Node::start(&ca, 2, 1, Config::default());
    let address = two.transport.local_addr();
    one.dial(&two);
    two.dial(&one);
    one.wait_reachable(two.id);
    two.wait_reachable(one.id);
    two.kill();
    // The port takes a moment to come free.
    std::thread::sleep(Duration::from_millis(100));
    let started = std::time::Instant::now();
    let two = Node::start(&ca, 2, 2, Config { listen: address, ..Config::default() });
    two.dial(&one);
    eventually("the new self", || {
        one.record.told().contains(&Told::Reachable(NodeId(2), Incarnation(2)))
    });
    assert!(
        started.elapsed() < Duration::from_millis(1200),
        "it took {:?}, as long as the idle timeout",
        started.elapsed()
    );
    let told = one.record.told();
    let lost = told
        .iter()
        .position(|told| *told == Told::Unreachable(NodeId(2)))
        .expect("the loss is told");
    let back =
        told.iter().position(|told| *told == Told::Reachable(NodeId(2), Incarnation(2))).unwrap();
    assert!(lost < back);
    assert!(one.transport.send(NodeId(2), Lane::Control, "hello again".into()));
    eventually("the frame", || two.record.frames(Lane::Control) == ["hello again"]);
}

#[test]
fn a_dead_peer_is_noticed_after_the_idle_timeout() {
    let config = Config {
        idle_timeout: Duration::from_millis(600),
        keep_alive: Duration::from_millis(100),
        ..Config::default()
    };
    let mut nodes = cluster(2, &config);
    std::thread::sleep(Duration::from_millis(1500));
    assert!(
        nodes[0].transport.reachable(NodeId(2)),
        "keep-alive does not keep a quiet connection alive"
    );
    assert_eq!(nodes[0].transport.stats().connections_lost.get(), 0);
    let started = std::time::Instant::now();
    nodes.pop().unwrap().kill();
    eventually("the loss", || !nodes[0].transport.reachable(NodeId(2)));
    assert!(started.elapsed() < Duration::from_millis(1500), "{:?}", started.elapsed());
    eventually("the loss to be told", || {
        nodes[0].record.told().contains(&Told::Unreachable(NodeId(2)))
    });
}

#[test]
fn what_is_queued_still_leaves_at_shutdown_and_the_peer_knows_at_once() {
    let mut nodes = cluster(2, &Config::default());
    let two = nodes.pop().unwrap();
    let one = nodes.pop().unwrap();
    for n in 0..2000u32 {
        assert!(one.transport.send(two.id, Lane::Append(1), vec![(n % 251) as u8; 2000].into()));
    }
    let started = std::time::Instant::now();
    one.block_on(one.transport.shutdown());
    assert!(started.elapsed() < Duration::from_secs(2), "shutdown took {:?}", started.elapsed());
    assert_eq!(two.record.frames(Lane::Append(1)).len(), 2000);
    eventually("the goodbye", || !two.transport.reachable(one.id));
    assert!(
        started.elapsed() < Duration::from_millis(1400),
        "the peer had to wait for the idle timeout"
    );
    assert!(!one.transport.send(two.id, Lane::Control, "late".into()));
}

#[test]
fn peers_come_go_and_move() {
    let ca = ca();
    let one = Node::start(&ca, 1, 1, Config::default());
    let two = Node::start(&ca, 2, 1, Config::default());
    one.transport.add_peer(NodeId(1), one.address());
    one.transport.add_peer(NodeId(2), "127.0.0.1:9".into());
    assert_eq!(one.transport.peers(), [NodeId(2)], "a node is no peer of itself");
    std::thread::sleep(Duration::from_millis(100));
    assert!(!one.transport.reachable(NodeId(2)));
    assert!(one.transport.set_address(NodeId(2), two.address()));
    assert!(!one.transport.set_address(NodeId(3), two.address()));
    one.wait_reachable(NodeId(2));
    assert!(one.transport.remove_peer(NodeId(2)));
    assert!(!one.transport.remove_peer(NodeId(2)));
    assert!(!one.transport.send(NodeId(2), Lane::Control, "gone".into()));
    eventually("the loss to be told", || one.record.told().contains(&Told::Unreachable(NodeId(2))));
}
