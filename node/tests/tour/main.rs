//! A walk through everything that a person sees of a cluster of three real processes, from
//! `flotilla dev` to its end.

#![cfg(feature = "shell")]

use flotilla_kit::{Fleet, THREE, flotilla, run, until};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Keys from all over the key space, the ends and the odd bytes included.
fn keys() -> Vec<String> {
    let mut keys: Vec<String> =
        ('0'..='9').chain('A'..='Z').chain('a'..='z').map(|c| format!("{c}/tour")).collect();
    keys.extend(["%00", "%FF%FF", "a//b", ".", "..", "a%2Fb%2F", "%C3%A4"].map(str::to_owned));
    keys
}

fn get(cluster: &Fleet, node: u64, key: &str) -> (u16, Vec<u8>) {
    let answer = cluster.client.get(node, &format!("/v1/kv/{key}"));
    (answer.status, answer.body)
}

#[test]
fn a_cluster_from_one_command() {
    let mut cluster = Fleet::prepare(3, 8, None);
    println!("ready after {:?}", cluster.start_dev());
    let said = cluster.dev_says("ready", Duration::ZERO);
    for node in THREE {
        let line = format!(
            "node {node}  http://127.0.0.1:{}  quic 127.0.0.1:{}",
            cluster.http(node),
            cluster.http(node) + 100
        );
        assert!(said.iter().any(|said| said.starts_with(&line)), "{line:?} is not in {said:?}");
        for file in ["flotilla.toml", "flotilla.pid", "flotilla.log"] {
            assert!(cluster.home(node).join(file).is_file(), "n{node}/{file}");
        }
    }
    leaders_are_spread(&cluster);
    any_node_takes_any_request(&cluster);
    conditions(&cluster);
    stale_reads(&cluster);
    streams(&cluster);
    batches(&cluster);
    admin(&cluster);
    health_and_metrics(&cluster);
    the_command_line(&cluster);
    ranges_are_deleted_over_shards(&cluster);
    it_ends_and_starts_again(&mut cluster);
}

/// No node leads more than 4 of the 9 groups, none leads none.
fn leaders_are_spread(cluster: &Fleet) {
    // Counted once per tick.
    let leads = until("each group has one leader", Duration::from_secs(2), || {
        let leads: Vec<_> = THREE
            .map(|node| cluster.client.metric(node, "flotilla_leaders").unwrap() as u64)
            .collect();
        (leads.iter().sum::<u64>() == 9).then_some(leads)
    });
    assert!(leads.iter().all(|n| (1..=4).contains(n)), "leaders per node: {leads:?}");
    let shown = cluster.client.json(2, "/v1/admin/cluster");
    let per_node = shown["leaders_per_node"].as_array().unwrap();
    assert!(
        per_node.iter().all(|one| (1..=4).contains(&one["leaders"].as_u64().unwrap())),
        "{shown}"
    );
}

/// Put through one, get through another, list through the third: JSON pages and NDJSON, over all
/// shards.
fn any_node_takes_any_request(cluster: &Fleet) {
    let client = &cluster.client;
    let mut shards = BTreeSet::new();
    let keys = keys();
    for key in &keys {
        client.put(1, key, format!("value of {key}").as_bytes());
        let read = client.get(2, &format!("/v1/kv/{key}")).expect(200);
        assert_eq!(read.text(), format!("value of {key}"));
        assert_eq!(read.header("content-type"), Some("application/octet-stream"));
        assert_eq!(read.header("x-content-type-options"), Some("nosniff"));
        shards.insert(read.header("flotilla-shard").unwrap().to_owned());
        assert!(read.header("flotilla-node").is_some());
    }
    assert_eq!(shards.len(), 8, "the keys are in shards {shards:?}");

    let mut paged = Vec::new();
    let mut path = "/v1/kv?prefix=&limit=10".to_owned();
    loop {
        let page = client.json(3, &path);
        paged.extend(page["items"].as_array().unwrap().iter().cloned());
        match page["cursor"].as_str() {
            Some(cursor) => path = format!("/v1/kv?limit=10&cursor={cursor}"),
            None => break,
        }
    }
    let stream = client
        .ask(3, "GET", "/v1/kv?prefix=", &[("accept", "application/x-ndjson")], None)
        .expect(200)
        .text();
    let mut streamed: Vec<Value> =
        stream.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let last = streamed.pop().unwrap();
    assert_eq!(last, json!({ "complete": true, "count": keys.len() }));
    assert_eq!(streamed, paged);
    assert_eq!(paged.len(), keys.len());
    let reverse = client.json(1, "/v1/kv?prefix=&limit=1000&reverse=1&keys_only=1");
    let reverse: Vec<_> = reverse["items"]
        .as_array()
        .unwrap()
        .iter()
        .rev()
        .map(|item| (item["key"].clone(), item["key_b64"].clone()))
        .collect();
    assert_eq!(
        reverse,
        paged.iter().map(|item| (item["key"].clone(), item["key_b64"].clone())).collect::<Vec<_>>()
    );
    for item in &paged {
        let Some(key) = item["key"].as_str() else { continue };
        let read = client.get(2, &format!("/v1/kv/{}", percent(key))).expect(200);
        assert_eq!(item["value"], read.text());
        assert_eq!(item["revision"], read.revision());
    }
}

fn percent(key: &str) -> String {
    key.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

fn conditions(cluster: &Fleet) {
    let client = &cluster.client;
    let path = "/v1/kv/condition";
    let ask = |node, method: &str, header: (&str, &str), body: Option<&[u8]>| {
        client.ask(node, method, path, &[header], body)
    };
    let first = ask(1, "PUT", ("if-none-match", "*"), Some(b"one")).expect(204).revision();
    let refused = ask(2, "PUT", ("if-none-match", "*"), Some(b"two")).expect(412);
    assert_eq!(refused.revision(), first);
    assert_eq!(refused.json()["code"], "precondition_failed");
    assert_eq!(refused.json()["outcome"], "not_applied");
    let tag = format!("\"{first}\"");
    assert!(ask(3, "GET", ("if-none-match", &tag), None).expect(304).body.is_empty());
    let head = client.ask(3, "HEAD", path, &[], None).expect(200);
    assert_eq!(
        (head.header("content-length"), head.revision(), head.body.len()),
        (Some("3"), first, 0)
    );
    let second = ask(3, "PUT", ("if-match", &tag), Some(b"two")).expect(204).revision();
    assert!(second > first);
    assert_eq!(ask(1, "PUT", ("if-match", &tag), Some(b"three")).expect(412).revision(), second);
    ask(2, "DELETE", ("if-match", &tag), None).expect(412);
    assert_eq!(get(cluster, 1, "condition"), (200, b"two".to_vec()));
    ask(2, "DELETE", ("if-match", &format!("\"{second}\"")), None).expect(204);
    client.ask(3, "DELETE", path, &[], None).expect(204);
    let missing = client.get(1, path).expect(404);
    assert_eq!(missing.header("content-type"), Some("application/problem+json"));
    ask(1, "PUT", ("if-match", "*"), Some(b"four")).expect(412);
    let third = ask(1, "PUT", ("if-none-match", "*"), Some(b"five")).expect(204).revision();
    assert!(third > second, "a revision came back after a delete: {third} after {second}");
}

/// A stream whose reader pauses shows what was there when it began, through whichever node it
/// comes: more than lies in the buffers on the way is still to be read when everything is written
/// anew.
fn streams(cluster: &Fleet) {
    const KEYS: usize = 30;
    let client = &cluster.client;
    for node in THREE {
        for n in 0..KEYS {
            client.put(1, &format!("stream/{n:02}"), &[b'v'; 1 << 20]);
        }
        let mut stream = TcpStream::connect(("127.0.0.1", cluster.http(node))).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let head = "GET /v1/kv?prefix=stream/ HTTP/1.1\r\nhost: 127.0.0.1\r\n\
                    accept: application/x-ndjson\r\nconnection: close\r\n\r\n";
        stream.write_all(head.as_bytes()).unwrap();
        let mut seen = vec![0; 1000];
        stream.read_exact(&mut seen).unwrap();
        for n in 0..KEYS {
            client.put(2, &format!("stream/{n:02}"), b"written later");
        }
        stream.read_to_end(&mut seen).unwrap();
        let seen = String::from_utf8_lossy(&seen);
        assert!(
            seen.contains(&format!("{{\"complete\":true,\"count\":{KEYS}}}")),
            "the stream through node {node} is not whole"
        );
        assert!(
            !seen.contains("written later"),
            "the stream through node {node} shows two moments"
        );
    }
    client.ask(1, "DELETE", "/v1/kv?prefix=stream/", &[], None).expect(200);
}

/// A follower answers from its own replica, and says how old that is.
fn stale_reads(cluster: &Fleet) {
    let client = &cluster.client;
    client.put(1, "stale", b"seen");
    let leader = client.json(1, "/v1/admin/explain/stale")["shard"]["leader"].as_u64().unwrap();
    for node in cluster.others(leader) {
        let path = "/v1/kv/stale?consistency=stale&max_staleness=2s";
        let answer = until("a follower has it", Duration::from_secs(3), || {
            Some(client.get(node, path)).filter(|a| a.status == 200)
        });
        assert_eq!(answer.text(), "seen");
        assert_eq!(
            answer.header("flotilla-node"),
            Some(&*node.to_string()),
            "the follower itself answers"
        );
        assert!(answer.header("flotilla-applied").unwrap().parse::<u64>().unwrap() > 0);
        let age: f64 = answer.header("flotilla-age").expect("an age").parse().unwrap();
        assert!((0.0..=2.0).contains(&age), "{age}");
    }
    assert_eq!(client.get(1, "/v1/kv/stale?consistency=lease").expect(200).text(), "seen");
}

fn batches(cluster: &Fleet) {
    let ops = json!({ "ops": [
        { "put": { "key": "0/batch", "value": "1" } },
        { "put": { "key": "z/batch", "value_b64": "/w==" } },
        { "get": { "key": "0/batch" } },
        { "get": { "key": "m/nobody" } },
        { "put": { "key": "0/batch", "value": "2", "if_none_match": "*" } },
        { "delete": { "key": "z/batch" } },
        { "get": { "key": "z/batch" } },
    ]});
    let body = ops.to_string();
    let headers = [("content-type", "application/json")];
    let answer = cluster
        .client
        .ask(2, "POST", "/v1/batch", &headers, Some(body.as_bytes()))
        .expect(200)
        .json();
    let results = answer["results"].as_array().unwrap();
    let statuses: Vec<_> =
        results.iter().map(|result| result["status"].as_u64().unwrap()).collect();
    assert_eq!(statuses, [204, 204, 200, 404, 412, 204, 404], "{answer}");
    assert_eq!(results[2]["value"], "1");
    assert_eq!(results[2]["revision"], results[0]["revision"]);
    assert_eq!(get(cluster, 3, "0/batch"), (200, b"1".to_vec()));
}

fn admin(cluster: &Fleet) {
    let client = &cluster.client;
    for node in THREE {
        let shown = client.json(node, "/v1/admin/cluster");
        assert_eq!(shown["nodes"], 3);
        assert_eq!(
            (&shown["nodes_up"], &shown["shards"], &shown["shards_without_leader"]),
            (&json!(3), &json!(8), &json!(0))
        );
        assert_eq!(shown["answered_by"], node);
        let nodes = client.json(node, "/v1/admin/nodes");
        for (n, view) in THREE.zip(nodes["nodes"].as_array().unwrap()) {
            assert_eq!(
                (&view["id"], &view["state"], &view["replicas"]),
                (&json!(n), &json!("up"), &json!(9)),
                "{view}"
            );
            assert!(
                view["disk"]["free_bytes"].as_u64().unwrap() > 0
                    && view["uptime_seconds"].as_f64().unwrap() > 0.0,
                "{view}"
            );
        }
    }
    assert_eq!(
        client.json(1, "/v1/admin/nodes/3")["http"],
        format!("127.0.0.1:{}", cluster.http(3))
    );
    client.get(1, "/v1/admin/nodes/9").expect(404);
    client.get(1, "/v1/admin/shards/999").expect(404);
    let page = client.json(1, "/v1/admin/shards?limit=5");
    assert_eq!(page["shards"].as_array().unwrap().len(), 5);
    let rest =
        client.json(1, &format!("/v1/admin/shards?cursor={}", page["cursor"].as_str().unwrap()));
    assert_eq!((rest["shards"].as_array().unwrap().len(), &rest["cursor"]), (4, &Value::Null));

    let explained = client.json(3, "/v1/admin/explain/transfer-me");
    let (shard, before) = (&explained["shard"], explained["shard"]["leader"].as_u64().unwrap());
    assert_eq!(explained["key"], "transfer-me");
    assert!(!explained["why"].as_array().unwrap().is_empty());
    assert_eq!(shard["replicas"].as_array().unwrap().len(), 3);
    let id = shard["id"].as_u64().unwrap();
    let revision = client.put(1, "transfer-me", b"before");
    // To each of the others in turn, asked of every node in turn; it stays there.
    let mut leader = before;
    for (asked, to) in THREE.zip([before % 3 + 1, (before + 1) % 3 + 1, before % 3 + 1]) {
        let body = json!({ "node": to }).to_string();
        let path = format!("/v1/admin/shards/{id}/leader");
        let post = |path: &str, headers: &[(&str, &str)]| {
            client.ask(asked, "POST", path, headers, Some(body.as_bytes()))
        };
        let kind = ("content-type", "application/json");
        let dry = post(&format!("{path}?dry_run=1"), &[kind]).expect(200).json();
        assert_eq!(
            (&dry["dry_run"], &dry["leader_before"], &dry["leader_after"]),
            (&json!(true), &json!(leader), &json!(to))
        );
        assert_eq!(
            client.json(asked, &format!("/v1/admin/shards/{id}"))["leader"],
            leader,
            "a dry run does nothing"
        );
        post(&path, &[kind, ("if-match", "\"7.7\"")]).expect(412);
        let done = post(&path, &[kind]).expect(200).json();
        assert_eq!(
            (&done["leader_before"], &done["leader_after"]),
            (&json!(leader), &json!(to)),
            "{done}"
        );
        leader = to;
        for node in THREE {
            let seen = || {
                (client.json(node, &format!("/v1/admin/shards/{id}"))["leader"] == leader)
                    .then_some(())
            };
            until("every node sees the new leader", Duration::from_secs(3), seen);
        }
        let read = client.get(asked, "/v1/kv/transfer-me").expect(200);
        assert_eq!(
            (read.header("flotilla-node"), read.revision()),
            (Some(&*leader.to_string()), revision)
        );
    }
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(
        client.json(1, &format!("/v1/admin/shards/{id}"))["leader"],
        leader,
        "it stays where it was put"
    );
    assert!(client.put(2, "transfer-me", b"after") > revision);
    let body = json!({ "node": 9 }).to_string();
    let headers = [("content-type", "application/json")];
    client
        .ask(1, "POST", &format!("/v1/admin/shards/{id}/leader"), &headers, Some(body.as_bytes()))
        .expect(404);
}

/// The families of the contract are there, and what this test did shows in them.
fn health_and_metrics(cluster: &Fleet) {
    for node in THREE {
        for path in ["/livez", "/readyz", "/readyz?verbose"] {
            cluster.client.get(node, path).expect(200);
        }
        let text = cluster.client.get(node, "/metrics").expect(200).text();
        let samples: BTreeMap<&str, f64> = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.rsplit_once(' '))
            .map(|(k, v)| (k, v.parse().unwrap()))
            .collect();
        let sum = |family: &str| {
            let of = |name: &str| {
                name == family
                    || name.strip_prefix(family).is_some_and(|rest| rest.starts_with('{'))
            };
            let found: Vec<f64> =
                samples.iter().filter(|(name, _)| of(name)).map(|(_, value)| *value).collect();
            assert!(!found.is_empty(), "node {node} has no metric {family}");
            found.iter().sum::<f64>()
        };
        for moved in [
            "flotilla_http_requests_total",
            "flotilla_http_request_seconds_count",
            "flotilla_proposals_total",
            "flotilla_entries_total",
            "flotilla_commands_per_entry_count",
            "flotilla_loop_pass_seconds_count",
            "flotilla_loop_events_per_pass_count",
            "flotilla_fsync_seconds_count",
            "flotilla_entries_per_fsync_count",
            "flotilla_commands_per_fsync_count",
            "flotilla_apply_seconds_count",
            "flotilla_leaders",
            "flotilla_replicas",
            "flotilla_elections_total",
            "flotilla_lane_messages_sent_total",
            "flotilla_lane_bytes_sent_total",
            "flotilla_lane_messages_received_total",
            "flotilla_reads_total",
            "flotilla_forwarded_requests_sent_total",
            "flotilla_forwarded_requests_received_total",
            "flotilla_disk_used_bytes",
            "flotilla_disk_free_bytes",
            "flotilla_process_cpu_seconds_total",
            "flotilla_process_resident_memory_bytes",
            "flotilla_process_open_fds",
        ] {
            assert!(sum(moved) > 0.0, "node {node}: {moved} did not move");
        }
        for there in [
            "flotilla_apply_lag_entries",
            "flotilla_lane_messages_dropped_total",
            "flotilla_forward_retries_total",
            "flotilla_snapshots_installed_total",
            "flotilla_rocksdb_pending_compaction_bytes",
            "flotilla_rocksdb_write_stopped",
        ] {
            assert!(sum(there) >= 0.0, "node {node}: {there}");
        }
    }
}

/// The client commands against real nodes, with their exit codes.
fn the_command_line(cluster: &Fleet) {
    let run_at = |port: u16, args: &[&str]| {
        let mut command = flotilla();
        command.args(args).env("FLOTILLA_ENDPOINTS", format!("http://127.0.0.1:{port}"));
        let output = run(&mut command);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code().unwrap(), said, String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let flotilla = |args: &[&str]| run_at(cluster.http(2), args);
    assert_eq!(flotilla(&["kv", "put", "9/cli", "by hand"]).0, 0);
    let (code, said, _) = flotilla(&["kv", "get", "9/cli"]);
    assert_eq!((code, said.trim_end()), (0, "by hand"));
    assert_eq!(get(cluster, 3, "9/cli"), (200, b"by hand".to_vec()));
    let (code, said, complaint) = flotilla(&["kv", "get", "9/nobody"]);
    assert_eq!((code, said.as_str()), (1, ""), "{complaint}");
    assert!(complaint.contains("no such key"), "{complaint}");
    let (code, said, _) = flotilla(&["kv", "scan", "--prefix", "9/", "--json"]);
    assert_eq!((code, said.lines().count()), (0, 2), "{said}");
    let (code, said, _) = flotilla(&["shard", "list", "--json"]);
    assert_eq!((code, said.lines().count()), (0, 9), "{said}");
    let (code, said, _) = flotilla(&["node", "list", "--json"]);
    assert_eq!((code, said.lines().count()), (0, 3), "{said}");
    let (code, said, _) = flotilla(&["shard", "explain", "9/cli"]);
    assert!(code == 0 && said.contains("leads it"), "{said}");
    assert_eq!(flotilla(&["kv", "delete", "9/cli"]).0, 0);
    assert_eq!(get(cluster, 1, "9/cli").0, 404);
    assert_eq!(flotilla(&["kv", "put"]).0, 2);
    let (code, _, complaint) = run_at(cluster.http(1) + 50, &["kv", "get", "9/cli"]);
    assert_eq!(code, 3, "{complaint}");
}

fn ranges_are_deleted_over_shards(cluster: &Fleet) {
    let client = &cluster.client;
    let refused = client.ask(1, "DELETE", "/v1/kv", &[], None).expect(400);
    assert_eq!(refused.json()["code"], "range_missing");
    let deleted = client.ask(3, "DELETE", "/v1/kv?start=A&end=n", &[], None).expect(200).json();
    let count = |range: &str| {
        let text = client
            .ask(1, "GET", &format!("/v1/kv?{range}"), &[("accept", "application/x-ndjson")], None)
            .expect(200)
            .text();
        text.lines().count() - 1
    };
    assert_eq!(count("start=A&end=n"), 0);
    // The letters from A to Z and from a to m, what was written beside them by then, and nothing
    // outside.
    assert!(deleted["count"].as_u64().unwrap() >= 26 + 13, "{deleted}");
    assert_eq!(get(cluster, 2, "9/tour"), (200, b"value of 9/tour".to_vec()));
    assert_eq!(get(cluster, 2, "n/tour"), (200, b"value of n/tour".to_vec()));
    assert_eq!(get(cluster, 2, "m/tour").0, 404);
}

/// Ctrl-C and SIGTERM stop all of it; the same folder starts again with what was written.
fn it_ends_and_starts_again(cluster: &mut Fleet) {
    for signal in [Signal::INT, Signal::TERM] {
        cluster.client.put(1, "kept", format!("{signal:?}").as_bytes());
        let (status, took) = cluster.stop_dev(signal);
        println!("{signal:?} stopped the cluster after {took:?}");
        assert!(status.success(), "{signal:?}: {status}");
        for node in THREE {
            assert!(
                cluster.client.send(node, "GET", "/livez", &[], None).is_err(),
                "node {node} still answers"
            );
        }
        println!("ready again after {:?}", cluster.start_dev());
        for node in THREE {
            assert_eq!(get(cluster, node, "kept"), (200, format!("{signal:?}").into_bytes()));
            assert_eq!(get(cluster, node, "9/tour"), (200, b"value of 9/tour".to_vec()));
        }
    }
    cluster.wait_equal(Duration::from_secs(10));
}
