//! Opening: who may, who may not, and what is told to those who may not.

use super::*;
use crate::testing::small_rocks;

const OURS: Identity = Identity { cluster: ClusterId(0xabcd), node: NodeId(2) };

fn open_here(dir: &Path) -> Result<Opened, StorageError> {
    open(dir, OURS, &small_rocks())
}

fn refusal(dir: &Path, identity: Identity) -> String {
    match open(dir, identity, &small_rocks()) {
        Ok(_) => panic!("{} was opened", dir.display()),
        Err(error) => error.to_string(),
    }
}

#[test]
fn each_start_raises_the_incarnation() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("made").join("on demand");
    for n in 1..=3 {
        let opened = open_here(&dir).unwrap();
        assert_eq!((opened.incarnation, opened.fresh), (Incarnation(n), n == 1));
    }
}

#[test]
fn snapshots_that_nobody_waits_for_are_removed_before_room_is_judged() {
    let dir = tempfile::tempdir().unwrap();
    drop(open_here(dir.path()).unwrap());
    for folder in ["snapshots/out/3", "snapshots/in/4", "snapshots/install/5"] {
        fs::create_dir_all(dir.path().join(folder)).unwrap();
        fs::write(dir.path().join(folder).join("000000.sst"), [7; 1000]).unwrap();
    }
    drop(open_here(dir.path()).unwrap());
    let is_there = |path: &str| dir.path().join(path).exists();
    let left =
        ["snapshots/out/3", "snapshots/in/4", "snapshots/install/5/000000.sst"].map(is_there);
    assert_eq!(left, [false, false, true], "an install may have to be completed");
}

#[test]
fn a_directory_that_others_can_read_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    for mode in [0o777, 0o755, 0o750, 0o700] {
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
        drop(open_here(dir.path()).unwrap());
        assert_eq!(
            fs::metadata(dir.path()).unwrap().permissions().mode() & 0o777,
            0o700,
            "it was {mode:o}"
        );
    }
}

/// A directory that somebody else made for us, with a group that may write, as platforms do it: it
/// can be used, but not be closed.
#[test]
fn a_directory_of_another_user_in_which_we_may_write_is_opened() {
    const DIR: &str = "FLOTILLA_TEST_OTHERS_DIRECTORY";
    if let Some(dir) = std::env::var_os(DIR) {
        drop(open_here(Path::new(&dir)).unwrap());
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    fs::create_dir(&data).unwrap();
    // Whoever is not root can't make one that belongs to somebody else.
    let (user, group) = (65534, 65533);
    if std::os::unix::fs::chown(&data, Some(0), Some(group)).is_err() {
        return eprintln!("skipped: only root can make a directory for somebody else");
    }
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&data, fs::Permissions::from_mode(0o2775)).unwrap();
    // The other user can't reach the test's own folder.
    let binary = dir.path().join("tests");
    fs::copy(std::env::current_exe().unwrap(), &binary).unwrap();
    let name = "open::tests::a_directory_of_another_user_in_which_we_may_write_is_opened";
    let mut child = std::process::Command::new(&binary);
    std::os::unix::process::CommandExt::uid(&mut child, user);
    std::os::unix::process::CommandExt::gid(&mut child, group);
    let output = child
        .args(["--exact", name, "--nocapture"])
        .env(DIR, &data)
        .current_dir(dir.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "{output:?}");
    assert_eq!(fs::metadata(&data).unwrap().permissions().mode() & 0o7777, 0o2775);
    assert!(data.join(DB).is_dir());
}

#[test]
fn a_foreign_directory_is_refused_with_the_cure_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    drop(open_here(dir.path()).unwrap());
    for foreign in
        [Identity { node: NodeId(3), ..OURS }, Identity { cluster: ClusterId(9), ..OURS }]
    {
        let error = refusal(dir.path(), foreign);
        for part in [
            "belongs to node 2 of cluster 000000000000abcd",
            "start it with that id",
            "its own directory",
        ] {
            assert!(error.contains(part), "{error:?} does not say {part:?}");
        }
    }
    let again = open_here(dir.path()).unwrap();
    assert_eq!(again.incarnation, Incarnation(2), "a refused start counted as one");
}

#[test]
fn a_directory_in_use_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let opened = open_here(dir.path()).unwrap();
    assert!(refusal(dir.path(), OURS).contains("in use by another process"));
    // The lock lives as long as the last clone of the engine.
    let clone = opened.engine.clone();
    drop(opened);
    assert!(refusal(dir.path(), OURS).contains("in use by another process"));
    drop(clone);
    assert_eq!(open_here(dir.path()).unwrap().incarnation, Incarnation(2));
}

#[test]
fn what_is_no_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "contents").unwrap();
    for path in [file.clone(), file.join("below")] {
        assert!(refusal(&path, OURS).contains("is not a directory"), "{}", path.display());
    }
    assert_eq!(fs::read(&file).unwrap(), b"contents");
}

#[test]
fn a_directory_that_cannot_be_written_is_refused() {
    // A kernel's own file system refuses every user, root included.
    if Path::new("/proc/self").is_dir() {
        assert!(refusal(Path::new("/proc/self/flotilla"), OURS).contains("can't be written to"));
    }
}

#[test]
fn another_format_and_a_stranger_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let opened = open_here(dir.path()).unwrap();
    let (key, mut record) = (keys::node(NodeTag::Identity), Vec::new());
    records::seal(&mut record, &key, |out| out.extend_from_slice(b"fields of the future"));
    // A later release's record: sealed right, with another format byte.
    record[4] = 2;
    let sum = crc32fast::hash(&[&key[..], &record[4..]].concat());
    record[..4].copy_from_slice(&sum.to_be_bytes());
    let mut batch = opened.engine.batch();
    batch.put(Family::State, &key, &record);
    opened.engine.write(batch, true).unwrap();
    drop(opened);
    let error = refusal(dir.path(), OURS);
    assert!(
        error.contains("format 2; this binary reads 1") && error.contains("release that wrote it"),
        "{error}"
    );

    let dir = tempfile::tempdir().unwrap();
    let engine = RocksEngine::open(&dir.path().join(DB), &small_rocks(), None).unwrap();
    let mut batch = engine.batch();
    batch.put(Family::Data, b"somebody's", b"data");
    engine.write(batch, true).unwrap();
    drop(engine);
    assert!(refusal(dir.path(), OURS).contains("no node identity"));
}

#[test]
fn corrupt_files_are_refused_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    drop(open_here(dir.path()).unwrap());
    let current = dir.path().join(DB).join("CURRENT");
    let sound = fs::read(&current).unwrap();
    fs::write(&current, "no manifest").unwrap();
    let error = refusal(dir.path(), OURS);
    assert!(error.contains("can't be opened") && error.contains("nothing was removed"), "{error}");
    fs::write(&current, sound).unwrap();
    assert_eq!(open_here(dir.path()).unwrap().incarnation, Incarnation(2));
}

/// RocksDB by itself would begin anew, or go back to what it was once, without a word.
#[test]
fn a_database_that_has_forgotten_is_refused_each_time_and_opens_again_when_it_is_whole() {
    let files = |db: &Path, what: &str| -> Vec<std::path::PathBuf> {
        let all = fs::read_dir(db).unwrap().map(|entry| entry.unwrap().path());
        all.filter(|path| path.file_name().unwrap().to_str().unwrap().contains(what)).collect()
    };
    type Damage<'a> = (&'a str, Box<dyn Fn(&Path)>, &'a [&'a str]);
    let damages: Vec<Damage<'_>> = vec![
        (
            "no CURRENT",
            Box::new(|db| fs::remove_file(db.join("CURRENT")).unwrap()),
            &["can't be opened", "nothing was removed"],
        ),
        (
            "no log",
            Box::new(move |db| {
                files(db, ".log").iter().for_each(|path| fs::remove_file(path).unwrap())
            }),
            &["no WAL files"],
        ),
        (
            "an empty log",
            Box::new(move |db| {
                files(db, ".log").iter().for_each(|path| fs::write(path, "").unwrap())
            }),
            &["has forgotten", "its database knows of 1"],
        ),
        (
            // Its last line, by which RocksDB knows what was flushed: without it, it would open
            // with a gap in the middle.
            "a list of files without its end",
            Box::new(move |db| {
                let path = files(db, "MANIFEST").pop().unwrap();
                let contents = fs::read(&path).unwrap();
                fs::write(path, &contents[..contents.len() - 1]).unwrap();
            }),
            &["has forgotten", "MANIFEST-"],
        ),
        (
            "no database",
            Box::new(|db| fs::remove_dir_all(db).unwrap()),
            &["its database is gone", "restore the directory"],
        ),
    ];
    for (what, damage, wanted) in damages {
        let dir = tempfile::tempdir().unwrap();
        for n in 1..=2u8 {
            let opened = open_here(dir.path()).unwrap();
            let mut batch = opened.engine.batch();
            batch.put(Family::Data, &[n], &[n; 100]);
            opened.engine.write(batch, true).unwrap();
        }
        let (db, kept) = (dir.path().join(DB), dir.path().join("kept"));
        copy(&db, &kept);
        damage(&db);
        for _ in 0..2 {
            let error = refusal(dir.path(), OURS);
            for wanted in wanted {
                assert!(error.contains(wanted), "{what}: {error:?} does not say {wanted:?}");
            }
        }
        let _ = fs::remove_dir_all(&db);
        copy(&kept, &db);
        let opened = open_here(dir.path()).unwrap();
        assert_eq!((opened.incarnation, opened.fresh), (Incarnation(3), false), "{what}");
        assert!(
            (1..=2)
                .all(|n| opened.engine.get(Family::Data, &[n]).unwrap().unwrap() == [n; 100][..]),
            "{what}"
        );
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(|entry| entry.unwrap()) {
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// After an orderly end the log's end is known, and a log that lost it is told from one that a
/// crash cut short.
#[test]
fn a_log_that_lost_its_end_after_an_orderly_end_is_refused() {
    for orderly in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let opened = open_here(dir.path()).unwrap();
        let mut batch = opened.engine.batch();
        batch.put(Family::Data, b"last", &[7; 100]);
        opened.engine.write(batch, true).unwrap();
        if orderly {
            opened.engine.close().unwrap();
        }
        drop(opened);
        let logs = fs::read_dir(dir.path().join(DB)).unwrap().map(|entry| entry.unwrap().path());
        let log = logs
            .filter(|path| path.extension().is_some_and(|e| e == "log"))
            .max_by_key(|p| p.metadata().unwrap().len())
            .unwrap();
        File::options()
            .write(true)
            .open(&log)
            .unwrap()
            .set_len(log.metadata().unwrap().len() - 20)
            .unwrap();
        match open(dir.path(), OURS, &small_rocks()) {
            Ok(opened) => {
                assert!(!orderly && opened.engine.get(Family::Data, b"last").unwrap().is_none())
            }
            Err(error) => assert!(
                orderly && error.to_string().contains("was durable, and its database ends with"),
                "{error}"
            ),
        }
    }
}

/// A crash while the database is made leaves nothing in its place.
#[test]
fn a_database_that_was_never_finished_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let new = dir.path().join("db.new");
    fs::create_dir_all(&new).unwrap();
    fs::write(new.join("CURRENT"), "half of it").unwrap();
    let opened = open_here(dir.path()).unwrap();
    assert!(opened.fresh && !new.exists());
}
