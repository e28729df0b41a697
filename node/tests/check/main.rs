//! `flotilla check` against a real cluster: a clean verdict, the same verdict from the history that
//! was kept, and one falsified answer that is found in it. Without a cluster: what it says when it
//! can't begin.

#![cfg(feature = "shell")]

use flotilla_kit::{Fleet, THREE, flotilla, process, run};
use serde_json::Value;
use std::path::Path;
use std::process::Output;

fn check(args: &[&str], folder: &Path) -> (i32, String, String) {
    let Output { status, stdout, stderr } =
        run(flotilla().arg("check").args(args).current_dir(folder));
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

#[test]
fn a_cluster_is_checked_and_its_history_checked_again() {
    let cluster = Fleet::new(3, 8);
    let folder = tempfile::tempdir().unwrap();
    let endpoints: Vec<String> =
        THREE.map(|node| format!("http://127.0.0.1:{}", cluster.http(node))).collect();
    let endpoints = endpoints.join(",");

    let args =
        ["--endpoint", &endpoints, "--duration", "3s", "--seed", "7", "--history", "kept.ndjson"];
    let (code, said, complaints) = check(&args, folder.path());
    println!("{said}{complaints}");
    assert_eq!(code, 0, "{said}{complaints}");
    assert!(said.contains("linearizable: "), "{said}");
    let left = cluster.client.get(1, "/v1/kv?limit=10").expect(200).json();
    assert_eq!(left["items"].as_array().map(Vec::len), Some(0), "keys were left behind: {left}");
    let (code, again, complaints) = check(&args, folder.path());
    assert!(
        code == 2 && again.is_empty() && complaints.contains("can't create kept.ndjson"),
        "{code}: {again}{complaints}"
    );

    let kept = folder.path().join("kept.ndjson");
    let (code, said, complaints) = check(&["--verify", "kept.ndjson", "--json"], folder.path());
    let verdict: Value =
        serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}{complaints}"));
    assert_eq!(
        (code, &verdict["verdict"], &verdict["torn"]),
        (0, &"linearizable".into(), &false.into()),
        "{said}"
    );
    assert!(
        verdict["operations"].as_u64().unwrap() > 500 && verdict["keys"].as_u64().unwrap() >= 24,
        "{said}"
    );

    // Every kind of question is in it, in every shard, through every node, and it is read again as
    // far as a torn file goes.
    let history = std::fs::read_to_string(&kept).unwrap();
    for wanted in [
        "\"op\":\"delete\"",
        "\"if\":\"absent\"",
        "\"if\":\"present\"",
        "\"if\":",
        "condition_failed",
        "\"missing\"",
    ] {
        assert!(history.contains(wanted), "{wanted} is not in the history");
    }
    std::fs::write(folder.path().join("torn.ndjson"), &history[..history.len() * 2 / 3 - 7])
        .unwrap();
    let (code, said, complaints) = check(&["--verify", "torn.ndjson"], folder.path());
    assert_eq!(code, 0, "{said}{complaints}");

    // One read of a later revision shows the value that is long overwritten.
    let reads: Vec<(usize, Value)> = history
        .lines()
        .enumerate()
        .map(|(n, line)| (n, serde_json::from_str::<Value>(line).unwrap()))
        // Keys that are no text stand there in another form.
        .filter(|(_, line)| line["answer"] == "value" && line["key"].is_string())
        .collect();
    let overwritten = |(early, (_, old)): (usize, &(usize, Value))| {
        let mut later = reads[early + 1..]
            .iter()
            .filter(|(_, new)| new["key"] == old["key"] && new["revision"] != old["revision"]);
        later
            .next_back()
            .filter(|(_, new)| {
                new["called"].as_u64() > old["returned"].as_u64().map(|at| at + 1_000_000)
            })
            .cloned()
    };
    let (old, (at, mut falsified)) = reads
        .iter()
        .enumerate()
        .find_map(|one| Some((one.1.1.clone(), overwritten(one)?)))
        .expect("keys are read more than once");
    let true_revision = falsified["revision"].clone();
    (falsified["revision"], falsified["read"]) = (old["revision"].clone(), old["read"].clone());
    let mut lines: Vec<String> = history.lines().map(str::to_owned).collect();
    lines[at] = falsified.to_string();
    std::fs::write(folder.path().join("false.ndjson"), lines.join("\n")).unwrap();
    let (code, said, complaints) = check(&["--verify", "false.ndjson"], folder.path());
    println!("{true_revision} was falsified:\n{said}{complaints}");
    assert_eq!(code, 1, "{said}{complaints}");
    assert!(
        said.starts_with("not linearizable: key ")
            && said.contains(falsified["key"].as_str().unwrap()),
        "{said}"
    );

    let args = [
        "--endpoint",
        &endpoints,
        "--duration",
        "1s",
        "--clients",
        "4",
        "--keys",
        "3",
        "--consistency",
        "lease",
        "--keep",
        "--json",
    ];
    let (code, said, complaints) = check(&args, folder.path());
    let figures: Value =
        serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}{complaints}"));
    assert_eq!(
        (code, &figures["verdict"], &figures["unknown"]),
        (0, &"linearizable".into(), &0.into()),
        "{said}{complaints}"
    );
    assert!(figures["ok"].as_u64().unwrap() > 50, "{said}");
    let kept = figures["kept_under"].as_str().unwrap();
    let left = cluster.client.get(1, "/v1/kv?limit=100").expect(200).text();
    assert!(left.contains(kept), "{kept} is not in {left}");
}

#[test]
fn what_can_not_begin_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let port = process::free_ports(1);
    let nobody = format!("http://127.0.0.1:{port}");
    let (code, said, complaints) =
        check(&["--endpoint", &nobody, "--history", "none.ndjson"], folder.path());
    assert!(
        code == 3 && said.is_empty() && complaints.contains(&nobody),
        "{code}: {said}{complaints}"
    );
    assert!(!folder.path().join("none.ndjson").exists(), "a history of nothing was begun");
    std::fs::write(folder.path().join("odd.ndjson"), "hello\n").unwrap();
    for (bad, because) in [
        (&["--duration", "0s"][..], "more than nothing"),
        (&["--duration", "soon"], "a time is 5s, 500ms or 2m"),
        (&["--clients", "0"], "1..=1024"),
        (&["--consistency", "stale"], "linearizable, lease"),
        (&["--endpoint", "https://a:1"], "http://host:port"),
        (&["--verify", "a", "--history", "b"], "cannot be used with"),
        (&["--verify", "missing.ndjson"], "can't read missing.ndjson"),
        (&["--verify", "odd.ndjson"], "line 1: this is no history"),
    ] {
        let (code, said, complaints) = check(bad, folder.path());
        assert!(
            code == 2 && said.is_empty() && complaints.contains(because),
            "{bad:?}: {code}: {said}{complaints}"
        );
    }
}
