//! Forwarded requests between real endpoints: answered in any order, and never left without an end.

mod common;

use bytes::Bytes;
use common::{Habit, Node, ca, cluster, eventually};
use flotilla_router::NodeId;
use flotilla_transport::{Config, RequestError};
use std::sync::Arc;
use std::time::{Duration, Instant};

#[test]
fn many_requests_both_ways_each_get_their_own_answer() {
    let nodes = cluster(2, &Config::default());
    let ask = |node: &Node, to: u64| {
        let transport = node.transport.clone();
        let from = node.id;
        node.spawn(async move {
            let mut asked = Vec::new();
            for task in 0..64u64 {
                let transport = transport.clone();
                asked.push(tokio::spawn(async move {
                    for n in 0..50u64 {
                        let request =
                            format!("{task}-{n}-{}", "x".repeat((task * n % 3000) as usize));
                        let deadline = Instant::now() + Duration::from_secs(10);
                        let answer =
                            transport.request(NodeId(to), request.clone().into(), deadline).await;
                        assert_eq!(answer, Ok(Bytes::from(format!("{to}<{from}:{request}"))));
                    }
                }));
            }
            for task in asked {
                task.await.unwrap();
            }
        })
    };
    let (there, back) = (ask(&nodes[0], 2), ask(&nodes[1], 1));
    nodes[0].block_on(there).unwrap();
    nodes[1].block_on(back).unwrap();
    for node in &nodes {
        let stats = node.transport.stats();
        assert_eq!(stats.requests_answered.get(), 3200);
        assert_eq!(stats.requests_received.get(), 3200);
        let frames = stats.requests.frames_sent.get();
        assert!(
            frames < 5000,
            "3200 requests and 3200 answers took {frames} frames: they don't gather"
        );
    }
}

#[test]
fn large_requests_and_answers_pass() {
    let nodes = cluster(2, &Config::default());
    let request = Bytes::from(vec![7; 5 << 20]);
    let answer = nodes[0].request(NodeId(2), request.clone()).unwrap();
    assert!(answer[4..] == request[..]);
    assert!(matches!(
        nodes[0].request(NodeId(2), vec![7; 17 << 20]),
        Err(RequestError::NotSent(_))
    ));
}

#[test]
fn answers_may_come_in_any_order_and_from_any_thread() {
    let nodes = cluster(2, &Config::default());
    nodes[1].record.set_habit(Habit::Keep);
    let deadline = Instant::now() + Duration::from_secs(10);
    let asked: Vec<_> = (0..10u8)
        .map(|n| nodes[0].transport.request(NodeId(2), vec![n].into(), deadline))
        .collect();
    eventually("all requests", || nodes[1].record.kept.lock().unwrap().len() == 10);
    let mut kept: Vec<_> = nodes[1].record.kept.lock().unwrap().drain(..).enumerate().collect();
    kept.reverse();
    std::thread::spawn(|| {
        kept.into_iter().for_each(|(n, responder)| responder.respond(vec![n as u8, 100].into()))
    })
    .join()
    .unwrap();
    for (n, asked) in asked.into_iter().enumerate() {
        assert_eq!(nodes[0].block_on(asked), Ok(vec![n as u8, 100].into()));
    }
}

#[test]
fn a_dropped_responder_is_lost_at_once() {
    let nodes = cluster(2, &Config::default());
    nodes[1].record.set_habit(Habit::Drop);
    let started = Instant::now();
    assert_eq!(nodes[0].request(NodeId(2), "a"), Err(RequestError::Lost));
    assert!(started.elapsed() < Duration::from_secs(1));
    assert_eq!(nodes[1].transport.stats().requests_abandoned.get(), 1);
    assert_eq!(nodes[0].transport.stats().requests_lost.get(), 1);
}

#[test]
fn when_a_peer_dies_what_was_sent_is_lost_and_what_comes_later_is_not_sent() {
    let mut nodes = cluster(2, &Config::default());
    let two = nodes.pop().unwrap();
    let one = &nodes[0];
    two.record.set_habit(Habit::Keep);
    let deadline = Instant::now() + Duration::from_secs(20);
    let asked: Vec<_> =
        (0..100u8).map(|n| one.transport.request(NodeId(2), vec![n].into(), deadline)).collect();
    eventually("all requests", || two.record.kept.lock().unwrap().len() == 100);
    let started = Instant::now();
    let record = two.record.clone();
    two.kill();
    for asked in asked {
        assert_eq!(one.block_on(asked), Err(RequestError::Lost));
    }
    assert!(started.elapsed() < Duration::from_secs(4), "it took {:?}", started.elapsed());
    assert!(matches!(one.request(NodeId(2), "late"), Err(RequestError::NotSent(_))));
    assert!(matches!(one.request(NodeId(7), "to nobody"), Err(RequestError::NotSent(_))));
    drop(record);
}

#[test]
fn what_was_still_queued_when_the_connection_was_lost_is_not_sent() {
    // The peer reads requests only as far as it has room for; beyond that and the stream's window
    // they stay here.
    let ca = ca();
    let config = Config { request_bytes_in_flight_max: 1 << 10, ..Config::default() };
    let two = Node::start(&ca, 2, 1, config);
    let one = Node::start(
        &ca,
        1,
        1,
        Config { request_bytes_in_flight_max: 256 << 20, ..Config::default() },
    );
    one.dial(&two);
    one.wait_reachable(two.id);
    two.record.set_habit(Habit::Keep);
    let deadline = Instant::now() + Duration::from_secs(20);
    let request = Bytes::from(vec![1; 1 << 20]);
    let asked: Vec<_> =
        (0..100).map(|_| one.transport.request(NodeId(2), request.clone(), deadline)).collect();
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(
        two.record.kept.lock().unwrap().len(),
        1,
        "more was taken in than there is room for"
    );
    two.kill();
    let ends: Vec<_> = asked.into_iter().map(|asked| one.block_on(asked)).collect();
    let lost = ends.iter().filter(|end| **end == Err(RequestError::Lost)).count();
    let not_sent = ends.iter().filter(|end| matches!(end, Err(RequestError::NotSent(_)))).count();
    assert_eq!(lost + not_sent, 100);
    assert!(lost >= 1, "the one that arrived is not lost");
    assert!(not_sent >= 30, "only {not_sent} of 100 MiB are known not to have left");
    assert_eq!(one.transport.stats().requests_sent.get(), lost as u64);
}

#[test]
fn a_deadline_ends_a_request_that_was_sent() {
    let nodes = cluster(2, &Config::default());
    nodes[1].record.set_habit(Habit::Keep);
    let started = Instant::now();
    let asked =
        nodes[0].transport.request(NodeId(2), "a".into(), started + Duration::from_millis(200));
    assert_eq!(nodes[0].block_on(asked), Err(RequestError::Expired));
    assert!(started.elapsed() < Duration::from_secs(1));
    let asked = nodes[0].transport.request(NodeId(2), "a".into(), started);
    assert_eq!(nodes[0].block_on(asked), Err(RequestError::TooLate));
    // The late answer harms nobody.
    nodes[1]
        .record
        .kept
        .lock()
        .unwrap()
        .drain(..)
        .for_each(|responder| responder.respond("late".into()));
    nodes[1].record.set_habit(Habit::Answer);
    assert_eq!(nodes[0].request(NodeId(2), "b"), Ok("2<1:b".into()));
}

#[test]
fn too_much_under_way_is_not_sent_and_told_apart() {
    let ca = ca();
    let two = Node::start(&ca, 2, 1, Config::default());
    let one =
        Node::start(&ca, 1, 1, Config { request_bytes_in_flight_max: 1000, ..Config::default() });
    one.dial(&two);
    one.wait_reachable(two.id);
    two.record.set_habit(Habit::Keep);
    let deadline = Instant::now() + Duration::from_secs(20);
    let first = one.spawn(one.transport.request(NodeId(2), vec![1; 900].into(), deadline));
    eventually("the request", || two.record.kept.lock().unwrap().len() == 1);
    assert!(matches!(
        one.request(NodeId(2), vec![1; 900]),
        Err(RequestError::Full { limit: 1000 })
    ));
    two.record.kept.lock().unwrap().drain(..).for_each(|responder| responder.respond("yes".into()));
    assert_eq!(one.block_on(first).unwrap(), Ok("yes".into()));
    two.record.set_habit(Habit::Answer);
    assert!(one.request(NodeId(2), vec![1; 900]).is_ok());
}

#[test]
fn an_asker_that_goes_away_leaves_nothing_behind() {
    let ca = ca();
    let two = Node::start(&ca, 2, 1, Config::default());
    let one =
        Node::start(&ca, 1, 1, Config { request_bytes_in_flight_max: 1000, ..Config::default() });
    one.dial(&two);
    one.wait_reachable(two.id);
    two.record.set_habit(Habit::Keep);
    let transport = Arc::clone(&one.transport);
    for _ in 0..50 {
        drop(transport.request(
            NodeId(2),
            vec![1; 900].into(),
            Instant::now() + Duration::from_secs(20),
        ));
    }
    two.record.set_habit(Habit::Answer);
    assert!(one.request(NodeId(2), vec![1; 900]).is_ok());
}
