//! What is wrong on the outside: certificates, directories, ports, configurations, files, disks.
//! One clear line and an exit that says so, nothing damaged; or, where the process can go on, it
//! does.

#![cfg(feature = "shell")]

use flotilla_kit::disk::SmallDisk;
use flotilla_kit::{Fleet, Load, Outcome, PATIENCE, Registers, Targets, flotilla, run, until};
use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

/// A command with a flag more.
fn with(mut command: Command, flag: &str, value: impl AsRef<std::ffi::OsStr>) -> Command {
    command.arg(flag).arg(value);
    command
}

/// Every way in which a node can't be started. The cluster that it belongs to is there before and
/// after.
#[test]
fn a_node_that_can_not_run_says_why_in_one_line() {
    let mut cluster = Fleet::new(3, 2);
    cluster.client.put(1, "kept", b"through all of it");
    let refused = |cluster: &Fleet, what: &str, command: Command, wanted: &[&str]| {
        let begun = Instant::now();
        let complaint = cluster.refused(command);
        println!("{what} ({:?}): {complaint}", begun.elapsed());
        for wanted in wanted {
            assert!(complaint.contains(wanted), "{what}: {wanted:?} is not in: {complaint}");
        }
    };

    // While the node runs: its directory is in use; with another directory, its ports are.
    let elsewhere = tempfile::tempdir().unwrap();
    let fresh = |name: &str| elsewhere.path().join(name);
    refused(
        &cluster,
        "directory in use",
        cluster.start_command(3),
        &["is in use by another process"],
    );
    let port = cluster.http(3);
    let command = with(cluster.start_command(3), "--data", fresh("a"));
    refused(&cluster, "QUIC port in use", command, &[&(port + 100).to_string(), "in use"]);
    // Another address than `peers` say is taken only where something in between may map it.
    let free =
        format!("0.0.0.0:{}", UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port());
    let command = with(with(cluster.start_command(3), "--data", fresh("b")), "--quic", &free);
    refused(&cluster, "HTTP port in use", command, &[&port.to_string(), "in use"]);
    let mut command = cluster.dev_command();
    command.env("FLOTILLA_LOG", "off");
    refused(&cluster, "dev on a running cluster", command, &["another `flotilla dev` works in"]);

    // From here on node 3 is down.
    cluster.stop(3);
    let start = |cluster: &Fleet| cluster.start_command(3);
    let command = with(start(&cluster), "--cluster", "00000000000000aa");
    refused(&cluster, "foreign cluster id", command, &["00000000000000aa"]);
    let command = with(start(&cluster), "--data", cluster.home(2).join("data"));
    refused(&cluster, "directory of a node that runs", command, &["is in use by another process"]);

    // Another cluster's authority vouches for nobody here; a certificate of it with our authority
    // is refused before it serves.
    let foreign = fresh("foreign");
    for args in
        [&["cert", "ca", "--out"][..], &["cert", "node", "3", "--address", "127.0.0.1", "--out"]]
    {
        let output = run(flotilla().args(args).arg(&foreign));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let certificate = |command, cert: &str, key: &str| {
        with(with(command, "--tls-cert", foreign.join(cert)), "--tls-key", foreign.join(key))
    };
    refused(
        &cluster,
        "certificate of another cluster",
        certificate(start(&cluster), "n3.pem", "n3.key"),
        &["certificate"],
    );
    let command =
        with(certificate(start(&cluster), "n3.pem", "n3.key"), "--tls-ca", foreign.join("ca.pem"));
    refused(&cluster, "certificate and authority of another cluster", command, &["cluster"]);
    let command = with(start(&cluster), "--tls-cert", cluster.home(2).join("node.pem"));
    refused(&cluster, "certificate of another node", command, &[]);
    let command = with(start(&cluster), "--tls-cert", fresh("nowhere.pem"));
    refused(&cluster, "no certificate", command, &["nowhere.pem"]);

    // Directories.
    fs::write(fresh("file"), b"not a folder").unwrap();
    let command = with(start(&cluster), "--data", fresh("file"));
    refused(&cluster, "a file as directory", command, &["is not a directory"]);
    let command = with(start(&cluster), "--data", fresh("file/below"));
    refused(&cluster, "a directory below a file", command, &["is not a directory"]);
    // Binds also the superuser, to whom permissions mean nothing.
    let command = with(start(&cluster), "--data", "/proc/flotilla");
    refused(&cluster, "a directory that can't be written", command, &["can't be written to"]);

    // Configuration.
    let config = cluster.home(3).join("flotilla.toml");
    let text = fs::read_to_string(&config).unwrap();
    let edited = |name: &str, text: String| {
        let path = cluster.home(3).join(name);
        fs::write(&path, text).unwrap();
        let mut command = flotilla();
        command.args(["start", "--config"]).arg(path);
        command
    };
    let command = edited("unknown.toml", text.clone() + "\n[rafft]\ntick_ms = 5\n");
    refused(&cluster, "unknown table", command, &["rafft", "unknown.toml"]);
    let command = edited("key.toml", text.replace("election_ticks", "electon_ticks"));
    refused(&cluster, "unknown key", command, &["electon_ticks"]);
    let mut command = edited("broken.toml", text.clone() + "\n[raft\n");
    let output = run(&mut command);
    assert_eq!(
        output.status.code(),
        Some(2),
        "broken TOML is bad usage: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let command = with(start(&cluster), "--raft-election-ticks", "1");
    refused(&cluster, "bad value", command, &["raft.election_ticks is 1", "heartbeat"]);
    let command = with(start(&cluster), "--http", "somewhere");
    refused(&cluster, "bad address", command, &["socket address"]);
    let command =
        with(with(flotilla(), "start", "--config"), "/nowhere/flotilla.toml", "--print-config");
    refused(&cluster, "no such configuration", command, &["/nowhere/flotilla.toml"]);

    // A directory of another node, stopped properly.
    cluster.stop(2);
    let command = with(start(&cluster), "--data", cluster.home(2).join("data"));
    refused(
        &cluster,
        "directory of another node",
        command,
        &["belongs to node 2", "not to node 3"],
    );

    // Nothing of all this did any damage.
    cluster.start(2);
    cluster.start(3);
    cluster.wait_equal(Duration::from_secs(20));
    for node in cluster.all() {
        assert_eq!(cluster.client.get(node, "/v1/kv/kept").text(), "through all of it");
    }
}

/// A node of another cluster that calls, and anybody who throws bytes at the QUIC port.
#[test]
fn garbage_on_the_wire_ends_nothing() {
    let cluster = Fleet::new(3, 2);
    let registers = Registers::new(&cluster, "garbage", 2);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let targets = Targets::new(&[1, 2, 3]);
    let (sent, counts) = registers.under_load(&cluster.client, &targets, Load::plain(2), || {
        let (mut sent, mut seed) = (0, 0x9e37_79b9_7f4a_7c15u64);
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(2) {
            let mut datagram = Vec::with_capacity(1400);
            for _ in 0..(seed % 170 + 1) {
                seed = seed
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                datagram.extend_from_slice(&(seed ^ seed >> 29).to_le_bytes());
            }
            // Every second one begins like a QUIC 1 Initial, so that it comes further.
            if sent % 2 == 0 {
                let head = [0xc0 | (seed as u8 & 0x0f), 0, 0, 0, 1, 8];
                let length = datagram.len().min(head.len());
                datagram[..length].copy_from_slice(&head[..length]);
                datagram.resize(1200, 7);
            }
            for node in cluster.all() {
                let _ = socket.send_to(&datagram, ("127.0.0.1", cluster.http(node) + 100));
                sent += 1;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        // And a TLS hello on the HTTP port, and half of a request.
        for bytes in [
            &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
            b"PUT /v1/kv/x HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nab",
        ] {
            use std::io::Write as _;
            let mut stream = std::net::TcpStream::connect(("127.0.0.1", cluster.http(1))).unwrap();
            stream.write_all(bytes).unwrap();
        }
        sent
    });
    println!("{sent} datagrams of garbage; meanwhile {counts}");
    assert!(counts.all(Outcome::Done) > 100, "hardly any load: {counts}");
    assert_eq!(
        counts.all(Outcome::Unknown) + counts.all(Outcome::Broken),
        0,
        "{:?}",
        counts.refusals()
    );
    for node in cluster.all() {
        cluster.client.get(node, "/readyz").expect(200);
    }
    cluster.assert_no_panic();
    registers.check(&cluster.client, &[1, 2, 3]);
}

/// A disk that fills up: puts are refused, deletes are taken, and with room again all is as before.
#[test]
fn a_full_disk_refuses_puts_and_takes_deletes() {
    let Some(disk) = SmallDisk::of_test(400 << 20) else { return };
    let mut cluster = Fleet::prepare(3, 4, Some(&disk.path().join("dev")));
    cluster.start_dev();
    let client = cluster.client.clone();
    let paths = cluster.shard_paths(1, "full");
    for (_, path) in &paths {
        client.put(1, &format!("{path}a"), b"before");
        client.put(1, &format!("{path}b"), b"before");
    }
    // Less is left than the reserve of 64 MiB, and more than the nodes need to go on.
    disk.fill(32 << 20);
    let begun = Instant::now();
    let refused = until("puts are refused", Duration::from_secs(5), || {
        let answer = client.ask(
            1,
            "PUT",
            &format!("/v1/kv/{}a", paths[0].1),
            &[],
            Some(b"while it is full"),
        );
        (answer.status != 204).then_some(answer)
    });
    println!("refused {:?} after the disk was full: {}", begun.elapsed(), refused.text());
    for node in cluster.all() {
        for (shard, path) in &paths {
            let put = until("each leader refuses", Duration::from_secs(5), || {
                Some(client.ask(
                    node,
                    "PUT",
                    &format!("/v1/kv/{path}a"),
                    &[],
                    Some(b"while it is full"),
                ))
                .filter(|a| a.status != 204)
            });
            let put = put.expect(507).json();
            assert_eq!(
                (&put["code"], &put["outcome"]),
                (&"disk_full".into(), &"not_applied".into()),
                "shard {shard}: {put}"
            );
        }
        client.get(node, "/livez").expect(200);
        assert_eq!(
            client.get(node, "/readyz").status,
            503,
            "a node that takes no writes does not say that it is ready"
        );
    }
    for (_, path) in &paths {
        client.ask(2, "DELETE", &format!("/v1/kv/{path}b"), &[], None).expect(204);
        client.get(3, &format!("/v1/kv/{path}b")).expect(404);
        client.get(3, &format!("/v1/kv/{path}a")).expect(200);
    }
    disk.empty();
    let begun = Instant::now();
    for node in cluster.all() {
        for (_, path) in &paths {
            until("puts are taken again", Duration::from_secs(10), || {
                let answer =
                    client.ask(node, "PUT", &format!("/v1/kv/{path}a"), &[], Some(b"after"));
                (answer.status == 204).then_some(())
            });
        }
        cluster.wait_ready(&[node]);
    }
    println!("taken again {:?} after there was room", begun.elapsed());
    cluster.wait_equal(Duration::from_secs(20));
}

/// Bytes that no compression makes smaller.
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 32) as u8
    };
    std::iter::repeat_with(next).take(bytes).collect()
}

/// Three nodes fill the disk that they share by what is put into them: puts are refused before
/// anybody ends for want of room, and once all is deleted there is room again, without a restart
/// and though nothing is written that would flush a memtable.
#[test]
fn a_disk_that_puts_have_filled_has_room_again_once_they_are_deleted() {
    let Some(disk) = SmallDisk::of_test(400 << 20) else { return };
    let mut cluster = Fleet::prepare(3, 4, Some(&disk.path().join("dev")));
    cluster.start_dev();
    let client = cluster.client.clone();
    let paths = cluster.shard_paths(1, "full");
    for round in 1..=2 {
        let refused: Vec<u64> = std::thread::scope(|scope| {
            let fill = |thread: u64| {
                let (client, paths) = (&client, &paths);
                move || {
                    let put = |i: &u64| {
                        let path = &paths[(i % paths.len() as u64) as usize].1;
                        let value = noise(i * 8 + thread, 256 << 10);
                        let answer = client.ask(
                            thread % 3 + 1,
                            "PUT",
                            &format!("/v1/kv/{path}{thread}/{i}"),
                            &[],
                            Some(&value),
                        );
                        assert!(
                            [204, 429, 503, 504, 507].contains(&answer.status),
                            "{}",
                            answer.text()
                        );
                        answer.status == 507
                    };
                    (0..2_000)
                        .find(put)
                        .expect("500 MB went onto a disk of 400 MiB, three times over")
                }
            };
            let threads: Vec<_> = (0..6).map(|thread| scope.spawn(fill(thread))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        println!("round {round}: refused at {refused:?}, {} MiB free", disk.free_bytes() >> 20);
        for node in cluster.all() {
            client.get(node, "/livez").expect(200);
        }
        for (_, path) in &paths {
            client.get(2, &format!("/v1/kv/{path}0/0?consistency=stale"));
            client.ask(3, "DELETE", &format!("/v1/kv?prefix={path}"), &[], None).expect(200);
        }
        let begun = Instant::now();
        for node in cluster.all() {
            for (_, path) in &paths {
                until("puts are taken again", Duration::from_secs(60), || {
                    let answer = client.ask(
                        node,
                        "PUT",
                        &format!("/v1/kv/{path}after"),
                        &[],
                        Some(b"after"),
                    );
                    (answer.status == 204).then_some(())
                });
            }
            assert!(
                !cluster.log_tail(node, 1000).contains("the process ends"),
                "node {node} ended"
            );
        }
        println!(
            "round {round}: taken again {:?} after all was deleted, {} MiB free",
            begun.elapsed(),
            disk.free_bytes() >> 20
        );
    }
    cluster.wait_equal(Duration::from_secs(20));
}

/// A node that was killed on a disk which is full to the last starts on it, and takes deletes;
/// where even the ballast is gone it says how much it needs.
#[test]
fn a_node_starts_on_a_disk_that_is_full_to_the_last() {
    let Some(disk) = SmallDisk::of_test(200 << 20) else { return };
    let mut cluster = Fleet::prepare(1, 2, Some(&disk.path().join("dev")));
    cluster.start_dev();
    for i in 0..6u64 {
        cluster.client.put(1, &format!("key{i}"), &noise(i, 512 << 10));
    }
    let fill = || {
        disk.fill(0);
        println!("{} bytes free", disk.free_bytes());
    };
    cluster.kill(&[1]);
    fill();
    let begun = Instant::now();
    cluster.spawn(1);
    // It has no room to be ready.
    until("a read is answered", PATIENCE, || {
        let answer = cluster.client.send(1, "GET", "/v1/kv/nothing-here", &[], None);
        answer.is_ok_and(|answer| answer.status == 404).then_some(())
    });
    println!("serves {:?} after a start on a full disk", begun.elapsed());
    let client = cluster.client.clone();
    client.ask(1, "DELETE", "/v1/kv/key0", &[], None).expect(204);
    client.get(1, "/v1/kv/key0").expect(404);
    assert_eq!(client.get(1, "/v1/kv/key1").expect(200).body, noise(1, 512 << 10));
    let refused = client.ask(1, "PUT", "/v1/kv/key0", &[], Some(b"no room")).expect(507).json();
    assert_eq!(refused["code"], "disk_full");
    cluster.kill(&[1]);
    fill();
    let complaint = cluster.refused(cluster.start_command(1));
    assert!(
        complaint.contains("needs 1048576 to start") && complaint.contains("larger one"),
        "{complaint}"
    );
    disk.empty();
    cluster.start(1);
    until("puts are taken again", Duration::from_secs(10), || {
        let answer = client.ask(1, "PUT", "/v1/kv/key0", &[], Some(b"room"));
        (answer.status == 204).then_some(())
    });
    client.get(1, "/v1/kv/key5").expect(200);
}

/// Said at once, before any node is started.
#[test]
fn dev_names_the_port_that_is_taken() {
    let cluster = Fleet::prepare(3, 2, None);
    let _taken = TcpListener::bind(("127.0.0.1", cluster.http(2))).unwrap();
    let complaint = cluster.refused(cluster.dev_command());
    println!("{complaint}");
    assert!(
        complaint.contains("node 2") && complaint.contains(&cluster.http(2).to_string()),
        "{complaint}"
    );
    assert!(complaint.contains("in use"), "{complaint}");
}

/// A node whose disk was lost comes back empty under its old id: it has forgotten its votes and
/// entries, and must not pass for its former self, not even with nodes that were started again
/// since. With its old directory it is welcome.
#[test]
fn a_wiped_disk_does_not_pass_for_the_old_one() {
    let mut cluster = Fleet::new(3, 4);
    cluster.client.put(1, "kept", b"by all three");
    cluster.kill(&[3]);
    let (data, kept) = (cluster.home(3).join("data"), cluster.folder.join("kept"));
    fs::rename(&data, &kept).unwrap();
    // What the others know must be on their disks, too.
    cluster.kill(&[2]);
    cluster.start(2);
    cluster.spawn(3);
    let complaint = until("a complaint about the directory", Duration::from_secs(10), || {
        cluster
            .log_tail(2, 50)
            .lines()
            .find(|line| line.contains("another data directory"))
            .map(str::to_owned)
    });
    assert!(
        complaint.contains("node 3") && complaint.contains("leave this node down"),
        "{complaint}"
    );
    let answer = cluster.client.send(3, "GET", "/readyz", &[], None);
    assert!(
        !answer.is_ok_and(|answer| answer.status == 200),
        "a node that forgot everything is ready"
    );
    assert_eq!(cluster.client.get(1, "/v1/kv/kept").expect(200).body, b"by all three");
    cluster.kill(&[3]);
    fs::remove_dir_all(&data).unwrap();
    fs::rename(&kept, &data).unwrap();
    cluster.start(3);
    assert_eq!(cluster.client.get(3, "/v1/kv/kept").expect(200).body, b"by all three");
}

/// Whatever the mask of whoever starts it, nobody else can read what a node keeps, nor write what a
/// command makes.
#[test]
fn what_a_node_keeps_is_for_its_user_alone() {
    let open_to_all = |command: &Command| {
        let mut open = Command::new("sh");
        open.args(["-c", "umask 000; exec \"$0\" \"$@\""])
            .arg(command.get_program())
            .args(command.get_args());
        open
    };
    let cluster = Fleet::new(1, 2);
    cluster.client.put(1, "secret", b"secret");
    let mut stack = vec![cluster.home(1).join("data")];
    let certs = cluster.folder.join("certs");
    let mut command = flotilla();
    command.args(["cert", "ca", "--out"]).arg(&certs);
    assert!(run(&mut open_to_all(&command)).status.success());
    let mut seen = 0;
    while let Some(path) = stack.pop() {
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{} has mode {mode:o}", path.display());
        seen += 1;
        if path.is_dir() {
            stack.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    assert!(seen > 10, "only {seen} files");
    for made in [&certs, &certs.join("ca.pem")] {
        assert_eq!(
            fs::metadata(made).unwrap().permissions().mode() & 0o022,
            0,
            "{}",
            made.display()
        );
    }
    assert_eq!(fs::metadata(certs.join("ca.key")).unwrap().permissions().mode() & 0o777, 0o600);
    // Its key, lent to all, is refused.
    let key = cluster.home(1).join("node.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let complaint = cluster.refused(cluster.start_command(1));
    assert!(complaint.contains("node.key") && complaint.contains("chmod 600"), "{complaint}");
}
