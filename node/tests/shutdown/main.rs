//! SIGTERM to one node under load: it hands over, answers what it has, and nobody else notices much.

#![cfg(feature = "shell")]

use flotilla_kit::Cluster;
use flotilla_kit::load::{Fate, Ledger, Targets, under_load};
use rustix::process::{Pid, Signal, kill_process};
use std::time::{Duration, Instant};

#[test]
fn a_node_that_is_told_to_stop_fails_no_request() {
    let mut cluster = Cluster::new(3, 8);
    let ledger = Ledger::new(&cluster, "shutdown", 3);
    for node in [2, 1] {
        let led = cluster.wait_leading(node);
        // All nodes are asked, the one that ends too, until it has ended and a moment longer.
        let targets = Targets::new(&[1, 2, 3]);
        let pid = Pid::from_raw(cluster.pid(node) as i32).unwrap();
        let home = cluster.home(node);
        let (took, counts) = under_load(&cluster, &ledger, &targets, 4, || {
            std::thread::sleep(Duration::from_millis(700));
            let begun = Instant::now();
            kill_process(pid, Signal::TERM).unwrap();
            // Removed as the last thing that it does.
            flotilla_kit::until("the node ends", Duration::from_secs(15), || (!home.join("flotilla.pid").exists()).then_some(()));
            let took = begun.elapsed();
            std::thread::sleep(Duration::from_millis(300));
            targets.set(&cluster.others(node));
            std::thread::sleep(Duration::from_millis(700));
            took
        });
        let others: Vec<_> = cluster.others(node).iter().map(|n| Fate::ALL.map(|fate| counts.of(*n, fate))).collect();
        let own = Fate::ALL.map(|fate| counts.of(node, fate));
        println!("node {node}, leader of {led}, ended {took:?} after SIGTERM under load: {counts}");
        println!("  through the others [done, refused, unknown, broken]: {others:?}; through the node itself: {own:?}");
        assert!(took < Duration::from_secs(5), "ended after {took:?}");
        for refusal in counts.refusals() {
            println!("  {refusal}");
        }
        assert!(counts.all(Fate::Done) > 200, "hardly any load: {counts}");
        assert_eq!(counts.all(Fate::Unknown), 0, "unknown outcomes: {:?}", counts.refusals());
        assert_eq!(counts.all(Fate::Refused), 0, "refused: {:?}", counts.refusals());
        for other in cluster.others(node) {
            assert_eq!(counts.of(other, Fate::Broken), 0, "connections to node {other} broke");
        }
        assert!(counts.slowest() < Duration::from_secs(2), "the pause was {:?}", counts.slowest());
        ledger.check(&cluster.client, &cluster.others(node));
        println!("  ready again after {:?}", cluster.start(node));
        println!("  equal again after {:?}", cluster.wait_equal(Duration::from_secs(20)));
    }
    ledger.check(&cluster.client, &[1, 2, 3]);
}
