//! Snapshots between real endpoints: whole and durable at the receiver, or an error at the sender;
//! never a silence.

mod common;

use common::{Node, Told, ca, cluster, eventually};
use flotilla_router::NodeId;
use flotilla_transport::{Config, Lane, SnapshotError};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;

fn files(dir: &Path) -> Vec<(String, PathBuf)> {
    let contents: [(&str, Vec<u8>); 4] = [
        (
            "000001.sst",
            (0..3_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect(),
        ),
        ("empty", Vec::new()),
        ("one", vec![1]),
        ("chunk-1", vec![9; 256 << 10]),
    ];
    let write = |(name, content): (&str, Vec<u8>)| {
        std::fs::write(dir.join(name), content).unwrap();
        (name.to_owned(), dir.join(name))
    };
    contents.into_iter().map(write).collect()
}

struct Pair {
    one: Node,
    two: Node,
    source: TempDir,
    target: TempDir,
}

fn pair(config: &Config) -> Pair {
    let mut nodes = cluster(2, config);
    let (two, one) = (nodes.pop().unwrap(), nodes.pop().unwrap());
    let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    *two.record.stage.lock().unwrap() = Some(target.path().into());
    Pair { one, two, source, target }
}

impl Pair {
    fn send(&self, header: &'static str) -> Result<(), SnapshotError> {
        self.one.block_on(self.one.transport.send_snapshot(
            self.two.id,
            header.into(),
            files(self.source.path()),
        ))
    }
}

#[test]
fn a_snapshot_arrives_whole() {
    let pair = pair(&Config::default());
    pair.send("shard-3").unwrap();
    let dir = pair.target.path().join("shard-3");
    assert_eq!(
        pair.two.record.told().pop(),
        Some(Told::SnapshotStaged("shard-3".into(), dir.clone()))
    );
    let sent = files(pair.source.path());
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), sent.len());
    let mut bytes = 0;
    for (name, path) in sent {
        let content = std::fs::read(path).unwrap();
        bytes += content.len() as u64;
        assert!(std::fs::read(dir.join(&name)).unwrap() == content, "{name} is not what was sent");
    }
    assert_eq!(pair.one.transport.stats().snapshots_sent.get(), 1);
    assert_eq!(pair.one.transport.stats().snapshot_bytes_sent.get(), bytes);
    assert_eq!(pair.two.transport.stats().snapshots_received.get(), 1);
    assert_eq!(pair.two.transport.stats().snapshot_bytes_received.get(), bytes);
    // Lanes know nothing of it.
    assert!(pair.one.transport.send(pair.two.id, Lane::Control, "still here".into()));
    eventually("the frame", || pair.two.record.frames(Lane::Control).len() == 1);
}

#[test]
fn a_snapshot_without_files_is_one_too() {
    let pair = pair(&Config::default());
    pair.one
        .block_on(pair.one.transport.send_snapshot(pair.two.id, "empty".into(), Vec::new()))
        .unwrap();
    assert!(pair.target.path().join("empty").is_dir());
}

#[test]
fn no_more_is_taken_in_than_was_announced() {
    let pair = pair(&Config::default());
    // 3,000,000, none, 1, and 256 KiB.
    pair.send("all 3262145").unwrap();
    let error = pair.send("less 3262144").unwrap_err().to_string();
    assert!(error.contains("more bytes than it was announced with"), "{error}");
    eventually("the folder to go", || !pair.target.path().join("less 3262144").exists());
}

#[test]
fn the_receivers_no_is_the_senders_error() {
    let pair = pair(&Config::default());
    *pair.two.record.verdict.lock().unwrap() = Some("it overlaps shard 4".into());
    assert!(
        matches!(pair.send("a"), Err(SnapshotError::Refused(why)) if why == "it overlaps shard 4")
    );
    *pair.two.record.stage.lock().unwrap() = None;
    assert!(
        matches!(pair.send("b"), Err(SnapshotError::Refused(why)) if why == "this node wants no \
            snapshot")
    );
    // What was staged belongs to the handler; what was not staged left nothing to clean up.
    assert_eq!(pair.two.record.count(|told| matches!(told, Told::SnapshotFailed(..))), 0);
    assert_eq!(pair.one.transport.stats().snapshots_send_failed.get(), 2);
}

#[test]
fn a_verdict_that_is_never_given_is_a_no_and_one_that_takes_too_long_is_lost() {
    let pair =
        pair(&Config { snapshot_stall_timeout: Duration::from_millis(500), ..Config::default() });
    *pair.two.record.hold_verdicts.lock().unwrap() = true;
    let started = Instant::now();
    assert!(
        matches!(pair.send("slow"), Err(SnapshotError::Lost(why)) if why.contains("no verdict in \
            time"))
    );
    assert!(started.elapsed() < Duration::from_secs(5));
    let sending =
        pair.one.spawn(pair.one.transport.send_snapshot(pair.two.id, "dropped".into(), Vec::new()));
    eventually("the snapshot", || pair.two.record.held.lock().unwrap().len() == 2);
    pair.two.record.held.lock().unwrap().clear();
    assert!(matches!(
        pair.one.block_on(sending).unwrap(),
        Err(SnapshotError::Refused(why)) if why.contains("without a verdict")
    ));
}

#[test]
fn names_that_lead_out_of_the_folder_do_not_even_leave() {
    let pair = pair(&Config::default());
    for name in ["../evil", "/etc/evil", ".", "..", ".hidden", "a/b", "", "a b"] {
        let files = vec![(name.to_owned(), pair.source.path().join("x"))];
        let result =
            pair.one.block_on(pair.one.transport.send_snapshot(pair.two.id, "bad".into(), files));
        assert!(matches!(result, Err(SnapshotError::Invalid(_))), "{name:?} was taken: {result:?}");
    }
    assert_eq!(pair.two.record.count(|told| matches!(told, Told::SnapshotStaged(..))), 0);
}

#[test]
fn a_name_that_comes_twice_fails_and_is_cleaned_up() {
    let pair = pair(&Config::default());
    let path = pair.source.path().join("x");
    std::fs::write(&path, "content").unwrap();
    let files = vec![("x".to_owned(), path.clone()), ("x".to_owned(), path)];
    let result =
        pair.one.block_on(pair.one.transport.send_snapshot(pair.two.id, "twice".into(), files));
    assert!(
        matches!(&result, Err(SnapshotError::Lost(why)) if why.contains("write: ")),
        "{result:?}"
    );
    let dir = pair.target.path().join("twice");
    assert!(pair.two.record.told().contains(&Told::SnapshotFailed("twice".into(), dir.clone())));
    assert!(!dir.exists());
}

#[test]
fn a_file_that_cannot_be_read_is_named_and_the_receiver_cleans_up() {
    let pair = pair(&Config::default());
    let mut files = files(pair.source.path());
    files.push(("missing".into(), pair.source.path().join("missing")));
    let result =
        pair.one.block_on(pair.one.transport.send_snapshot(pair.two.id, "part".into(), files));
    assert!(
        matches!(&result, Err(SnapshotError::Read { file, .. }) if file == "missing"),
        "{result:?}"
    );
    let dir = pair.target.path().join("part");
    eventually("the clean-up", || {
        pair.two.record.told().contains(&Told::SnapshotFailed("part".into(), dir.clone()))
    });
    assert!(!dir.exists());
    assert_eq!(pair.two.transport.stats().snapshots_receive_failed.get(), 1);
}

#[test]
fn more_than_may_come_at_once_are_told_to_come_later() {
    let pair = pair(&Config { snapshots_at_once: 1, ..Config::default() });
    *pair.two.record.hold_verdicts.lock().unwrap() = true;
    let first =
        pair.one.spawn(pair.one.transport.send_snapshot(pair.two.id, "first".into(), Vec::new()));
    eventually("the first", || pair.two.record.held.lock().unwrap().len() == 1);
    assert!(matches!(pair.send("second"), Err(SnapshotError::Busy)));
    pair.two.record.held.lock().unwrap().pop().unwrap().send(Ok(())).unwrap();
    pair.one.block_on(first).unwrap().unwrap();
    *pair.two.record.hold_verdicts.lock().unwrap() = false;
    pair.send("third").unwrap();
}

#[test]
fn a_sender_that_gives_up_or_dies_is_cleaned_up_after() {
    let slow = Config { snapshot_bytes_per_second: 200_000, ..Config::default() };
    let mut pair = pair(&slow);
    for (header, dies) in [("given-up", false), ("died", true)] {
        let files = files(pair.source.path());
        let sending =
            pair.one.spawn(pair.one.transport.send_snapshot(pair.two.id, header.into(), files));
        let dir = pair.target.path().join(header);
        eventually("its beginning", || dir.join("000001.sst").exists());
        if dies {
            std::mem::replace(&mut pair.one, Node::start(&ca(), 1, 1, Config::default())).kill();
        } else {
            sending.abort();
        }
        eventually("the clean-up", || {
            pair.two.record.told().contains(&Told::SnapshotFailed(header.into(), dir.clone()))
                && !dir.exists()
        });
    }
    assert_eq!(pair.two.transport.stats().snapshots_receive_failed.get(), 2);
}

#[test]
fn a_receiver_that_dies_is_an_error_at_the_sender() {
    let pair = pair(&Config { snapshot_bytes_per_second: 200_000, ..Config::default() });
    let sending = pair.one.spawn(pair.one.transport.send_snapshot(
        pair.two.id,
        "x".into(),
        files(pair.source.path()),
    ));
    eventually("its beginning", || pair.target.path().join("x/000001.sst").exists());
    let started = Instant::now();
    pair.two.kill();
    assert!(matches!(pair.one.block_on(sending).unwrap(), Err(SnapshotError::Lost(_))));
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    let unknown =
        pair.one.block_on(pair.one.transport.send_snapshot(NodeId(9), "x".into(), Vec::new()));
    assert!(matches!(unknown, Err(SnapshotError::Unreachable(_))));
}

#[test]
fn the_rate_holds() {
    let pair = pair(&Config { snapshot_bytes_per_second: 3_000_000, ..Config::default() });
    let started = Instant::now();
    pair.send("slowly").unwrap();
    assert!(
        started.elapsed() >= Duration::from_millis(900),
        "3.2 MB at 3 MB/s took {:?} only",
        started.elapsed()
    );
}
