//! The seeds of the corpus: for each target a few inputs of every kind that it knows, all of them
//! honest.
//!
//! A fuzzer that begins with them need not find out what a request or a raft message looks like;
//! `cargo fuzz cmin` later keeps of them what is not covered by others. `cargo test -p
//! flotilla-node --release --test corpus -- --ignored seeds` writes them.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::{BufMut, Bytes, BytesMut};
use flotilla_node::core::wire;
use flotilla_node::core::{Beat, Envelope, Timing};
use flotilla_router::call::{
    self, Answer, Consistency, Forwarded, HeldView, Item, Reply, Request, Scan, ScanPage, Staleness,
};
use flotilla_router::codec::Put;
use flotilla_router::command::PayloadBuilder;
use flotilla_router::{
    ClusterId, Command, Condition, Descriptor, Epoch, KeyRange, NodeId, Op, Refusal, Replica,
    ReplicaId, Revision, Role, ShardId,
};
use flotilla_storage::{LogPosition, SnapshotFile, SnapshotManifest};
use flotilla_transport::fuzzing;
use raft::eraftpb::{Entry, Message, MessageType};
use std::fs;
use std::path::Path;
use std::time::Duration;

/// Writes `<folder>/<target>/seed-*`.
pub(crate) fn write(folder: &Path) {
    let targets: [(&str, Vec<Vec<u8>>); 5] = [
        ("http", http()),
        ("quic", quic()),
        ("message", message()),
        ("records", records()),
        ("config", config()),
    ];
    for (target, seeds) in targets {
        let folder = folder.join(target);
        fs::create_dir_all(&folder).expect("make the folder");
        for (number, seed) in seeds.iter().enumerate() {
            fs::write(folder.join(format!("seed-{number:02}")), seed).expect("write a seed");
        }
    }
}

/// Requests of every route, some behind one another, in one piece and in many, to a node that is
/// well and to one that isn't.
fn http() -> Vec<Vec<u8>> {
    let with_body = |head: &str, kind: &str, body: &str| {
        format!(
            "{head} HTTP/1.1\r\nhost: a\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n\
             {body}",
            body.len()
        )
    };
    let json = "application/json";
    let put = |key: &str, value: &str| {
        with_body(&format!("PUT /v1/kv/{key}"), "application/octet-stream", value)
    };
    let get = |target: &str| format!("GET {target} HTTP/1.1\r\nhost: a\r\n\r\n");
    let three =
        format!("{}{}{}{}", put("a", "1"), put("h", "2"), put("q%2F%00x", "3"), put("b", "4"));
    let batch = r#"{"ops":[{"put":{"key":"a","value":"1","if_none_match":"*"}},{"get":{"key_b64":"/w=="}},{"delete":{"key":"a","if_match":1}},{"put":{"key":"h","value_b64":"AAE=","if_match":"\"5\""}},{"get":{"key":"h"}}]}"#;
    let mut requests = vec![
        put("a", "1") + &get("/v1/kv/a"),
        put("h", "1")
            + &get("/v1/kv/h?consistency=stale&max_staleness=2s")
            + &get("/v1/kv/h?consistency=lease"),
        put("h", "1") + "DELETE /v1/kv/h HTTP/1.1\r\nhost: a\r\nif-match: \"1\"\r\n\r\n",
        put("h", "1") + "GET /v1/kv/h HTTP/1.1\r\nhost: a\r\nif-none-match: W/\"1\", \"2\"\r\n\r\n",
        "PUT /v1/kv/h HTTP/1.1\r\nhost: a\r\nif-none-match: *\r\ntransfer-encoding: chunked\r\n\r\n\
         3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n".into(),
        "PUT /v1/kv/h HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n\
         abc".into(),
        "HEAD /v1/kv/h HTTP/1.1\r\nhost: a\r\n\r\n".into(),
        three.clone()
            + &get("/v1/kv?prefix=&limit=2")
            + &get("/v1/kv?start=a&end=z&reverse&keys_only=true"),
        three.clone() + &get(&format!("/v1/kv?cursor={}&limit=3", cursor(0, b"h"))),
        three.clone() + &get(&format!("/v1/kv?cursor={}", cursor(3, b"q"))),
        three.clone() + "GET /v1/kv?start=a HTTP/1.1\r\nhost: a\r\n\
                         accept: application/x-ndjson\r\n\r\n",
        three + "DELETE /v1/kv?start=a&end=i HTTP/1.1\r\nhost: a\r\n\r\n",
        with_body("POST /v1/batch", json, batch),
        with_body("POST /v1/batch?consistency=lease", json, r#"{"ops":[{"get":{"key":"a"}}]}"#),
        get("/v1/admin/cluster") + &get("/v1/admin/nodes") + &get("/v1/admin/nodes/9"),
        get("/v1/admin/shards?limit=1&cursor=2") + &get("/v1/admin/shards/3?hash=true"),
        get("/v1/admin/explain/a%20b") + &get("/v1/admin/operations"),
        with_body("POST /v1/admin/shards/3/leader?dry_run=true", json, r#"{"node":9}"#),
        with_body("POST /v1/admin/shards/3/split", json, "{}")
            + "DELETE /v1/admin/shards/3/replicas/9 HTTP/1.1\r\nhost: a\r\n\r\n",
        get("/v1/limits") + &get("/livez") + &get("/readyz"),
        with_body("POST /v1/txn", json, "{}") + &get("/v1/watch"),
        "GET /v1/kv/h HTTP/1.0\r\n\r\n".into(),
        "BREW /v1/kv/h HTTP/1.1\r\nhost: a\r\n\r\n".into(),
        "GET http://a/v1/kv/h HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n".into(),
        "\0\x01\x02 nothing of the kind\r\n\r\n".into(),
    ]
    .into_iter()
    .map(|request| [&[0, 0], request.as_bytes()].concat())
    .collect::<Vec<_>>();
    // HTTP/2: the preface, settings, and the head of a GET.
    let frames = b"\0\0\0\x04\0\0\0\0\0\0\0\x06\x01\x05\0\0\0\x01\x82\x84\x86\x41\x01a";
    requests.push([&[0, 0], &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], frames].concat());
    let (pieces, faults) = (requests[0][2..].to_vec(), requests[1][2..].to_vec());
    requests.extend([1, 7, 64].map(|piece| [&[piece, 0], &pieces[..]].concat()));
    requests.extend((1..=8).map(|fault| [&[0, fault], &faults[..]].concat()));
    requests
}

/// The cursor of a scan of everything, spelled as the server does. No fuzzer guesses its checksum.
fn cursor(flags: u8, next: &[u8]) -> String {
    let mut out = vec![1, flags];
    // From the empty key to no end.
    out.extend_from_slice(&[0; 5]);
    out.put_bytes_prefixed(next);
    out.put_u32(crc32fast::hash(&out));
    URL_SAFE_NO_PAD.encode(&out)
}

fn descriptor() -> Descriptor {
    Descriptor {
        id: ShardId(3),
        range: KeyRange::new("a", Some("m".into())),
        epoch: Epoch { membership: 2, range: 1 },
        replicas: vec![
            Replica { id: ReplicaId(31), node: NodeId(1), role: Role::Voter },
            Replica { id: ReplicaId(34), node: NodeId(4), role: Role::Learner },
        ],
    }
}

fn commands() -> Vec<Command> {
    vec![
        Command::new(Op::Put { key: "k".into(), value: "v".into() }, Condition::Absent),
        Command::new(Op::Delete { key: "k".into() }, Condition::At(Revision(3))),
        Command::new(
            Op::DeleteRange { range: KeyRange::new("a", Some("b".into())) },
            Condition::Always,
        ),
    ]
}

fn payload() -> Bytes {
    let mut payload = PayloadBuilder::new(1, 0);
    commands().iter().for_each(|command| payload.push(command));
    payload.finish()
}

fn envelope(kind: MessageType) -> Envelope {
    let mut message = Message {
        from: 32,
        to: 31,
        term: 2,
        index: 4,
        log_term: 2,
        commit: 3,
        ..Message::default()
    };
    message.set_msg_type(kind);
    match kind {
        MessageType::MsgAppend => {
            let entry = Entry { index: 5, term: 2, data: payload(), ..Entry::default() };
            message.set_entries(vec![entry].into());
        }
        MessageType::MsgSnapshot => {
            let metadata = message.mut_snapshot().mut_metadata();
            (metadata.index, metadata.term) = (9, 2);
            metadata.mut_conf_state().set_voters(vec![31]);
        }
        _ => message.context = Bytes::from_static(&[1; 16]),
    }
    Envelope {
        shard: ShardId(3),
        epoch: Epoch { membership: 2, range: 1 },
        committed: 4,
        timing: Timing::default(),
        message,
    }
}

fn raft_frame() -> Bytes {
    let mut frame = wire::start_frame();
    for kind in [MessageType::MsgAppend, MessageType::MsgHeartbeat, MessageType::MsgRequestVote] {
        envelope(kind).encode(&mut frame);
    }
    wire::encode_beat(
        Beat { leaders: 2, replicas: 3, draining: false, disk_full: true },
        &mut frame,
    );
    frame.freeze()
}

/// Of every kind of stream one or a few, whole and in pieces.
fn quic() -> Vec<Vec<u8>> {
    let seed = |kind: u8, piece: u8, wire: &[u8]| [&[kind, piece], wire].concat();
    let mut hello = BytesMut::from(&b"flotilla"[..]);
    hello.put_u16(1);
    [2, 7, 1, 4, 5].iter().for_each(|number| hello.put_u64(*number));
    hello.put_u8(0);
    let scan = Scan {
        range: KeyRange::prefix("a"),
        reverse: false,
        limit: 10,
        bytes_max: 1000,
        keys_only: false,
    };
    let consistency = Consistency::Stale { age_max: Some(Duration::from_secs(1)) };
    let asks = [
        Request::Get { key: "k".into(), consistency },
        Request::Scan { scan: scan.clone(), consistency: Consistency::Linearizable },
        Request::Part {
            scan,
            consistency,
            view: Some(HeldView { node: NodeId(1), shard: ShardId(3), id: 5 }),
        },
        Request::Write(commands().remove(0)),
        Request::Write(commands().remove(2)),
        Request::Admin("{}".into()),
    ];
    let questions: Vec<Bytes> = asks
        .map(|request| {
            call::encode(&Forwarded { request, hops: 1, time_left: Duration::from_millis(700) })
        })
        .into();
    let mut requests = BytesMut::new();
    for (id, question) in questions.iter().enumerate() {
        requests.put_u64(id as u64);
        requests.put_bytes_prefixed(question);
    }
    let staleness = Some(Staleness { applied: 3, age: None });
    let item = Item { key: "k".into(), value: "v".into(), revision: Revision(1) };
    let reply = |answer| Ok(Reply { shard: ShardId(3), node: NodeId(1), answer, staleness });
    let responses: Vec<Result<Reply, Refusal>> = vec![
        reply(Answer::Value { value: "v".into(), revision: Revision(3) }),
        reply(Answer::Page(ScanPage {
            items: vec![item.clone()],
            rest: Some(KeyRange::new("b", None)),
        })),
        reply(Answer::Part { page: ScanPage { items: vec![item], rest: None }, view: None }),
        reply(Answer::ConditionFailed { current: Some(Revision(2)) }),
        Err(Refusal::WrongShard { shard: ShardId(3), descriptors: vec![(&descriptor()).into()] }),
        Err(Refusal::NotLeader { shard: ShardId(3), leader: Some(NodeId(2)) }),
        Err(Refusal::Internal {
            why: "it broke".into(),
            outcome: flotilla_router::Outcome::Unknown,
        }),
    ];
    let mut answers = BytesMut::new();
    for (id, response) in responses.iter().enumerate() {
        answers.put_u64(id as u64);
        answers.put_u8(0);
        answers.put_bytes_prefixed(&call::encode(response));
    }
    // The last one was given up.
    answers.put_u64(9);
    answers.put_slice(&[1, 0, 0, 0, 0]);
    let mut header = BytesMut::new();
    let mut announcement = BytesMut::new();
    envelope(MessageType::MsgSnapshot).encode(&mut announcement);
    let files = vec![SnapshotFile { name: "000000.sst".into(), bytes: 70, checksum: 5 }];
    let at = LogPosition { index: 9, term: 2 };
    header.put_u8(1);
    header.put_bytes_prefixed(&announcement);
    header.put_bytes_prefixed(
        &SnapshotManifest { descriptor: descriptor(), at, revision: Revision(7), files }.encode(),
    );
    let mut verdict = BytesMut::new();
    verdict.put_u8(1);
    verdict.put_bytes_prefixed(b"no room");
    let lane = [&[0][..], &fuzzing::gather(&[raft_frame(), raft_frame()])].concat();
    let (requests, answers) =
        (fuzzing::gather(&[requests.freeze()]), fuzzing::gather(&[answers.freeze()]));
    let mut seeds = vec![
        seed(0, 0, &hello),
        seed(1, 0, &lane),
        seed(1, 3, &lane),
        seed(2, 0, &requests),
        seed(2, 5, &requests),
        seed(3, 0, &answers),
        seed(3, 6, &answers),
        seed(4, 0, &header),
        seed(5, 0, &verdict),
        seed(5, 0, &[0, 0, 0, 0, 0]),
        seed(6, 0, &payload()),
        seed(8, 0, &descriptor().encode()),
    ];
    seeds.extend(questions.iter().map(|question| seed(7, 0, question)));
    seeds
}

/// Short lives of a node. The bytes are steps of the target's `step`.
fn message() -> Vec<Vec<u8>> {
    // Ticks until the first election is called, and everybody votes for it: shards 2 and 3 are led
    // here.
    let lead = [9, 23, 8, 8];
    let put = |shard: u8, kind: u8| [14, shard, kind, 1, b'v', 0, 200];
    let large = |shard: u8| [14, shard, 2, 0, 200];
    let heartbeat = [1, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0];
    let append = |entries: u8, kind: u8| {
        let mut step = vec![1, 0, 0, 0, 0, 0, 0, 0, entries << 6];
        step.extend((0..entries).map(|_| kind));
        step.extend([0, 0]);
        step
    };
    // A snapshot of shard 2 from its leader on node 2, five entries ahead.
    let snapshot = [18, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0];
    vec![
        [&[0][..], &lead].concat(),
        [&[0][..], &lead, &put(0, 0), &[8], &put(1, 0), &[8, 16, 0, 0, 200, 8]].concat(),
        // Large writes: the log is cut, and a follower that lags asks for a snapshot.
        [
            &[0][..],
            &lead,
            &large(0),
            &[8],
            &large(0),
            &[8],
            &large(0),
            &[8],
            &large(0),
            &[8],
            &large(0),
            &[8, 5, 0, 7, 1, 1, 8, 12, 20, 0, 8],
        ]
        .concat(),
        // A follower: heartbeats and entries from node 2, written, committed, applied.
        [&[0][..], &heartbeat, &[0, 10, 0], &append(2, 1), &[0, 10, 0, 11, 0]].concat(),
        [&[0][..], &append(1, 0), &[0, 10, 0], &append(3, 4), &[0, 10, 0, 11, 0, 21, 2]].concat(),
        // A membership change.
        [&[0][..], &append(1, 2), &[33, 0, 0, 10, 0, 11, 0, 8]].concat(),
        [&[0][..], &snapshot, &[0, 11, 0, 8]].concat(),
        // Hand-overs, drain, beats.
        [&[0][..], &lead, &[22, 0, 1, 1, 0, 0, 17, 0, 0, 8, 23, 2, 8, 9, 23, 8]].concat(),
        // Without pre-vote and quorum check, writes in parallel, messages of one entry.
        [&[31][..], &lead, &put(0, 0), &put(0, 3), &[0], &put(0, 4), &[10, 0, 8]].concat(),
        // With leases.
        [&[32][..], &lead, &put(0, 0), &[8, 16, 0, 0, 200, 8, 16, 1, 0, 200, 8]].concat(),
        [&[0][..], &[13, 0, 20], &raft_frame()[1..21]].concat(),
        [&[0][..], &lead, &put(0, 0), &[0, 21, 1], &lead, &put(0, 0), &[8]].concat(),
    ]
}

/// A node's disk with one thing changed, each kind once. The bytes are steps of the target's
/// `change`.
fn records() -> Vec<Vec<u8>> {
    let descriptor = descriptor().encode();
    let sealed = |start: &[u8], body: &[u8]| [&[0], start, &[body.len() as u8], body].concat();
    vec![
        vec![0],
        vec![1],
        vec![0, 0, 1, 1, 0, 0, 0, 0],
        vec![0, 0, 1, 1, 0, 1, 3, 4, 1, 2, 3, 4, 2, 0, 1, 0],
        sealed(&[1, 1, 0], &[0; 25]),
        vec![0, 2, 1, 0, 0, 0],
        vec![0, 3, 1, 0, 0],
        vec![0, 4, 1, 0, 0, 1, 6, 1],
        vec![0, 4, 1, 1, 1, 0],
        vec![0, 5, 3, 1, 0],
        vec![0, 6, 2, 1, b'a', 0, 1, b'b', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        vec![0, 7, 1, 0, 0, 0],
        vec![0, 8, 0, 1, b'v', 0, 1, b'a'],
        sealed(&[9, 1, 2], &descriptor),
        sealed(&[10, 1], &[0; 8]),
        sealed(&[10, 3, 0], &[0; 8]),
        vec![0, 11, 0, 16, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 6, 1, 3, 1, 2, 3],
        vec![0, 12, 0, 1, b'x', 3, 1, 2, 3],
        vec![0, 13, 1, 0, 0],
        vec![0, 14, 1, 7, 3, 0, 0],
        vec![0, 15, 1],
    ]
}

/// Tables as the documentation shows them, and names.
fn config() -> Vec<Vec<u8>> {
    let cluster = ClusterId(0xabcdef01234567);
    [
        "[raft]\ntick_ms = 50\nelection_ticks = 12\nheartbeat_ticks = 3\npre_vote = true\n\
         check_quorum = true\n"
            .to_owned(),
        "[raft]\nmessage_bytes_max = 1\ninflight_messages_max = 1\ninflight_writes_max = 2\n\
         entry_bytes_max = 10\n"
            .into(),
        "[raft]\nelection_ticks = 9223372036854775807\n".into(),
        "[reads]\ndefault_consistency = \"lease\"\nlease = true\nclock_drift_max_percent = 10\n"
            .into(),
        "[log]\nbytes_per_shard_max = 65536\nbytes_max = 70000\ncache_bytes_max = 0\n\
         unapplied_bytes_max = 1048576\n"
            .into(),
        "[limits]\nkey_bytes_max = 100\nrequest_timeout = \"5s\"\nidle_timeout = \"1m 30s\"\n\
         headers_max = 10\n"
            .into(),
        format!("n1.{cluster}.flotilla"),
        cluster.to_string(),
    ]
    .map(String::into_bytes)
    .into()
}
