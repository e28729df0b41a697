//! What the system does to a process: signals that a service manager or a closed terminal sends,
//! few files that may be open, and a disk that has lost the end of what was synced.

#![cfg(feature = "shell")]

use flotilla_kit::{Fleet, PATIENCE, set, until};
use rustix::process::Signal;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

/// How many lines of a node's log hold `text`.
fn lines(cluster: &Fleet, node: u64, text: &str) -> usize {
    cluster.said(node).lines().filter(|line| line.contains(text)).count()
}

#[test]
fn sighup_reads_the_certificates_again_and_ends_nothing() {
    let cluster = Fleet::new(3, 2);
    let pid = cluster.pid(2);
    for signal in [Signal::USR1, Signal::USR2, Signal::HUP] {
        cluster.signal(2, signal);
    }
    until("the certificates are read again", PATIENCE, || {
        (lines(&cluster, 2, "SIGHUP: the certificates were read again") == 1).then_some(())
    });
    // What can't be used changes nothing, and is said.
    let cert = cluster.home(2).join("node.pem");
    let good = std::fs::read(&cert).unwrap();
    std::fs::copy(cluster.home(1).join("node.pem"), &cert).unwrap();
    cluster.signal(2, Signal::HUP);
    until("the wrong certificate is refused", PATIENCE, || {
        (lines(&cluster, 2, "SIGHUP: the certificates could not be read again") == 1).then_some(())
    });
    std::fs::write(&cert, good).unwrap();
    cluster.signal(2, Signal::HUP);
    until("the certificates are read again", PATIENCE, || {
        (lines(&cluster, 2, "SIGHUP: the certificates were read again") == 2).then_some(())
    });
    cluster.client.put(2, "after", b"signals");
    assert_eq!(cluster.pid(2), pid, "another process");
}

/// A connection that has had an answer and stays open; `None` where the node closed it.
fn idle(port: u16) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(b"GET /v1/limits HTTP/1.1\r\nHost: localhost\r\n\r\n").ok()?;
    let mut head = [0; 15];
    stream.read_exact(&mut head).ok()?;
    (&head == b"HTTP/1.1 200 OK").then_some(stream)
}

/// Whether the node has left it open, behind what is still to be read.
fn is_open(stream: &mut TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let mut rest = [0; 4096];
    loop {
        match stream.read(&mut rest) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) => return error.kind() == std::io::ErrorKind::WouldBlock,
        }
    }
}

#[test]
fn idle_clients_leave_the_files_that_the_database_needs() {
    const FILES: u64 = 300;
    // Small memtables, so that a few writes need new files.
    let mut cluster = Fleet::bootstrapped(3, 2, |config| {
        set(config, "storage", "data_memtable_bytes", 1 << 20);
        set(config, "storage", "log_memtable_bytes", 1 << 20);
    });
    cluster.launchers.insert(1, vec!["prlimit".into(), format!("--nofile={FILES}:{FILES}").into()]);
    // As most systems have it: few, unless a process asks for more.
    cluster.launchers.insert(2, vec!["prlimit".into(), "--nofile=256:20000".into()]);
    cluster.start_all(&cluster.all());
    let allowed =
        |node| cluster.client.json(node, "/v1/limits")["connections_max"].as_u64().unwrap();
    assert!(allowed(2) > 1000, "{} connections, where 20,000 files may be asked for", allowed(2));
    let allowed = allowed(1);
    assert!((16..FILES / 2).contains(&allowed), "{allowed} connections at {FILES} files");
    let port = cluster.http(1);
    let mut held: Vec<_> = (0..FILES + 100).filter_map(|_| idle(port)).collect();
    // For a new connection the one goes that has been idle longest.
    held.retain_mut(is_open);
    assert!(held.len() as u64 <= allowed, "{} connections, {allowed} are allowed", held.len());
    for i in 0..40 {
        cluster.client.put(2, &format!("k{i}"), &vec![b'v'; 1 << 20]);
    }
    drop(held);
    until("its clients are served again", PATIENCE, || idle(port).map(drop));
    cluster.client.get(1, "/v1/kv/k39").expect(200);
    assert_eq!(
        lines(&cluster, 1, "lets this process open few files"),
        1,
        "{}",
        cluster.log_tail(1, 20)
    );
    assert!(lines(&cluster, 1, "HTTP connections") <= 2, "{}", cluster.log_tail(1, 20));
    cluster.wait_equal(PATIENCE);

    // So few that it could not work is no way to start.
    cluster.kill(&[1]);
    cluster.launchers.insert(1, vec!["prlimit".into(), "--nofile=100:100".into()]);
    let why = cluster.refused(cluster.start_command(1));
    assert!(why.contains("open 100 files") && why.contains("LimitNOFILE"), "{why}");
}

/// A replica that was quarantined answers nothing, and knows of no election any more. Whoever asks
/// its node must not notice.
#[test]
fn requests_about_a_quarantined_shard_are_handed_on() {
    let mut cluster = Fleet::new(3, 1);
    let leader = cluster.leaders(1)[&2].unwrap();
    let node = cluster.others(leader)[0];
    let newest = {
        let files = std::fs::read_dir(cluster.home(node).join("data/db"))
            .unwrap()
            .map(|entry| entry.unwrap().path());
        files.filter(|path| path.extension().is_some_and(|e| e == "log")).max().unwrap()
    };
    let before = std::fs::metadata(&newest).unwrap().len();
    for i in 0..20 {
        cluster.client.put(leader, &format!("k{i}"), &[b'v'; 100]);
    }
    cluster.wait_equal(PATIENCE);
    cluster.kill(&[node]);
    // All that it had told the leader to be on its disk since.
    std::fs::File::options().write(true).open(&newest).unwrap().set_len(before).unwrap();
    cluster.spawn(node);
    until("the shard is quarantined", PATIENCE, || {
        (lines(&cluster, node, "shard quarantined on this node") > 0).then_some(())
    });
    for i in 0..5 {
        cluster.client.put(node, &format!("after{i}"), b"through it");
        assert_eq!(
            cluster.client.get(node, &format!("/v1/kv/after{i}")).expect(200).text(),
            "through it"
        );
        cluster.client.get(node, "/v1/kv/k19?consistency=stale").expect(200);
        cluster.client.get(node, "/v1/kv?prefix=after&limit=1").expect(200);
    }
    cluster.wait_ready(&[node]);
    assert_eq!(cluster.client.metric(node, "flotilla_shards_quarantined"), Some(1.0));
}

/// The resident memory of a process, in MiB.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10
}

/// Half a gigabyte of answers that nobody reads, and then everybody leaves.
#[test]
fn what_a_load_took_of_memory_comes_back() {
    const VALUES: u64 = 64;
    let cluster = Fleet::with_config(3, 1, |config| {
        // What stays in memory on purpose is to be little.
        set(config, "storage", "block_cache_bytes", 8 << 20);
        set(config, "storage", "data_memtable_bytes", 4 << 20);
        set(config, "storage", "log_memtable_bytes", 4 << 20);
    });
    for i in 0..VALUES {
        cluster.client.put(1, &format!("big/{i:03}"), &vec![b'v'; 1 << 20]);
    }
    cluster.wait_equal(PATIENCE);
    let pids: Vec<u32> = cluster.all().iter().map(|node| cluster.pid(*node)).collect();
    let of_all = || pids.iter().map(|pid| resident(*pid)).max().unwrap();
    let mut peak = 0;
    for node in cluster.all() {
        let ask = |i: u64| {
            let mut stream = TcpStream::connect(("127.0.0.1", cluster.http(node))).unwrap();
            let path = if i.is_multiple_of(2) {
                format!("/v1/kv/big/{:03}", i % VALUES)
            } else {
                "/v1/kv?prefix=big/&max_bytes=8388608".into()
            };
            stream
                .write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes())
                .unwrap();
            stream
        };
        let unread: Vec<TcpStream> = (0..200).map(ask).collect();
        for _ in 0..150 {
            peak = peak.max(of_all());
            std::thread::sleep(Duration::from_millis(20));
        }
        drop(unread);
    }
    assert!(peak > 150, "{peak} MiB are no load");
    // What one node may have for memtables, caches and buffers, and no more than that.
    until("memory comes back", Duration::from_secs(10), || (of_all() < 100).then_some(()));
    println!("{peak} MiB, and then {}", of_all());
}
