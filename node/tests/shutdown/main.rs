//! SIGTERM to one node under load: it hands over, answers what it has, and nobody else notices
//! much.

#![cfg(feature = "shell")]

use flotilla_kit::process::send;
use flotilla_kit::{Fleet, Load, Outcome, Registers, Targets, until};
use rustix::process::Signal;
use std::time::{Duration, Instant};

#[test]
fn a_node_that_is_told_to_stop_fails_no_request() {
    let mut cluster = Fleet::new(3, 8);
    let registers = Registers::new(&cluster, "shutdown", 3);
    for node in [2, 1] {
        let led = cluster.wait_leading(node);
        // All nodes are asked, the one that ends too, until it has ended and a moment longer.
        let targets = Targets::new(&[1, 2, 3]);
        let pid = cluster.pid(node);
        let home = cluster.home(node);
        let (took, counts) =
            registers.under_load(&cluster.client, &targets, Load::plain(4), || {
                std::thread::sleep(Duration::from_millis(700));
                let begun = Instant::now();
                send(pid, Signal::TERM);
                // Removed as the last thing that it does.
                until("the node ends", Duration::from_secs(15), || {
                    (!home.join("flotilla.pid").exists()).then_some(())
                });
                let took = begun.elapsed();
                std::thread::sleep(Duration::from_millis(300));
                targets.set(&cluster.others(node));
                std::thread::sleep(Duration::from_millis(700));
                took
            });
        let others: Vec<_> = cluster
            .others(node)
            .iter()
            .map(|n| Outcome::ALL.map(|outcome| counts.of(*n, outcome)))
            .collect();
        let own = Outcome::ALL.map(|outcome| counts.of(node, outcome));
        println!("node {node}, leader of {led}, ended {took:?} after SIGTERM under load: {counts}");
        println!(
            "  through the others [done, refused, unknown, broken]: {others:?}; through the node \
             itself: {own:?}"
        );
        assert!(took < Duration::from_secs(5), "ended after {took:?}");
        for refusal in counts.refusals() {
            println!("  {refusal}");
        }
        assert!(counts.all(Outcome::Done) > 200, "hardly any load: {counts}");
        assert_eq!(counts.all(Outcome::Unknown), 0, "unknown outcomes: {:?}", counts.refusals());
        assert_eq!(counts.all(Outcome::Refused), 0, "refused: {:?}", counts.refusals());
        for other in cluster.others(node) {
            assert_eq!(counts.of(other, Outcome::Broken), 0, "connections to node {other} broke");
        }
        assert!(counts.slowest() < Duration::from_secs(2), "the pause was {:?}", counts.slowest());
        registers.check(&cluster.client, &cluster.others(node));
        println!("  ready again after {:?}", cluster.start(node));
        println!("  equal again after {:?}", cluster.wait_equal(Duration::from_secs(20)));
    }
    registers.check(&cluster.client, &[1, 2, 3]);
}
