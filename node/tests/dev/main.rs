//! `flotilla dev` as a process among others: what becomes of it when its reader or its terminal is
//! gone.

#![cfg(feature = "shell")]

use flotilla_kit::process::send;
use flotilla_kit::{Fleet, THREE, flotilla, run, until, wait};
use rustix::process::Signal;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::time::Duration;

/// Ends with the test; its nodes end with it.
struct Dev(Child);

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `flotilla dev | head -1`: what it says goes nowhere, and it goes on. When the terminal is
/// closed, it ends in good order.
#[test]
fn a_reader_that_is_gone_ends_nothing_and_a_terminal_that_is_gone_ends_it() {
    let mut cluster = Fleet::prepare(3, 4, None);
    let mut dev = Dev(cluster
        .dev_command_on_a_terminal()
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap());
    let mut said = BufReader::new(dev.0.stdout.take().unwrap()).lines();
    assert!(said.any(|line| line.unwrap() == "ready"), "it ended before it was ready");
    drop((said, dev.0.stderr.take()));
    // It wants to tell of a node that has ended, twice; the second of them it tells after it could
    // not tell of the first.
    cluster.kill(&[3]);
    until("the others go on without node 3", Duration::from_secs(20), || {
        let answer = cluster.client.send(1, "PUT", "/v1/kv/alone", &[], Some(b"1"));
        answer.is_ok_and(|answer| answer.status == 204).then_some(())
    });
    cluster.kill(&[2]);
    // It looks five times a second; nodes end with it.
    for _ in 0..20 {
        assert!(dev.0.try_wait().unwrap().is_none(), "it ended because nobody reads");
        std::thread::sleep(Duration::from_millis(50));
        cluster.client.get(1, "/livez").expect(200);
    }
    send(dev.0.id(), Signal::HUP);
    assert!(
        wait(&mut dev.0, "it ends when the terminal is gone", Duration::from_secs(30)).success()
    );
    assert!(cluster.client.send(1, "GET", "/livez", &[], None).is_err(), "node 1 still answers");
    assert!(!cluster.home(1).join("flotilla.pid").exists(), "node 1 did not end in good order");
    assert!(cluster.log_tail(1, 1).contains("stopped"), "{}", cluster.log_tail(1, 3));
}

/// Its nodes end in good order when it is killed, which takes a moment; to start it again at once
/// must do all the same.
#[test]
fn a_cluster_that_was_killed_starts_again_at_once() {
    let cluster = Fleet::prepare(3, 4, None);
    for round in 0..3 {
        let mut dev = Dev(cluster
            .dev_command()
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap());
        let mut said = BufReader::new(dev.0.stdout.take().unwrap()).lines();
        let mut complaints = BufReader::new(dev.0.stderr.take().unwrap()).lines();
        let ready = said.any(|line| line.unwrap() == "ready");
        assert!(
            ready,
            "round {round}: {:?}",
            complaints.by_ref().map_while(Result::ok).collect::<Vec<_>>()
        );
        cluster.client.put(1, "k", b"v");
        // Dropped, it is killed.
    }
}

/// Where HTTP listens on every address, the nodes find each other all the same; and a place that is
/// taken is told at once.
#[test]
fn every_address_may_be_listened_on_and_what_is_taken_is_told() {
    let mut cluster = Fleet::prepare(3, 2, None);
    let folder = cluster.folder.clone();
    let dev_at = |http: String| {
        let mut command = flotilla();
        command
            .args(["dev", "--nodes", "3", "--shards", "2", "--http", &http, "--data"])
            .arg(&folder);
        command
    };
    let dev = Dev(dev_at(format!("0.0.0.0:{}", cluster.http(1)))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap());
    cluster.wait_ready(&cluster.all());
    let second = run(&mut dev_at(format!("127.0.0.1:{}", cluster.http(1))));
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(
        second.status.code() == Some(1) && said.contains("another `flotilla dev` works in"),
        "{said}"
    );
    let mut elsewhere = flotilla();
    elsewhere
        .args(["dev", "--http", &format!("localhost:{}", cluster.http(1)), "--data"])
        .arg(cluster.folder.with_extension("other"));
    let third = run(&mut elsewhere);
    let said = String::from_utf8_lossy(&third.stderr).into_owned();
    assert!(
        third.status.code() == Some(1) && said.contains("is in use") && said.contains("--http"),
        "{said}"
    );
    // What is logged on an ordinary first start gives nobody reason to worry.
    for node in THREE {
        let log = cluster.log_tail(node, 1000);
        assert!(!log.contains(" WARN ") && !log.contains(" ERROR "), "node {node}: {log}");
    }
    drop(dev);
}

/// A log that can't be written (here: nobody reads the pipe that it goes into) ends no node.
#[test]
fn a_node_lives_on_when_its_log_can_not_be_written() {
    let mut cluster = Fleet::bootstrapped(1, 2, |_| {});
    let mut node = Dev(cluster
        .start_command(1)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap());
    drop((node.0.stdout.take(), node.0.stderr.take()));
    cluster.wait_ready(&[1]);
    cluster.client.put(1, "k", b"v");
    send(node.0.id(), Signal::TERM);
    assert!(wait(&mut node.0, "it ends in good order", Duration::from_secs(30)).success());
}
