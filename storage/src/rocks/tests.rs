//! What only real files show: kills, torn tails, corruption in the middle, and the figures.

use super::*;
use crate::engine::Cursor;
use crate::engine::{Order, Pace, Read as _};
use crate::read::PageLook;
use crate::testing::{TestEngine, small_rocks};
use crate::{keys, records};
use flotilla_router::{KeyRange, KeySpace, Revision, Scan};
use std::fs;

/// Copies the files of an open database, which is what a kill leaves: everything that was handed to
/// the kernel.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != "LOCK" {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

/// An engine with `n` writes, each to all families, none synced.
fn filled(dir: &Path, n: u8) -> RocksEngine {
    let engine = RocksEngine::start(dir);
    for i in 0..n {
        let mut batch = engine.batch();
        for family in [Family::Log, Family::State, Family::Data] {
            batch.put(family, &[i], &[i; 100]);
        }
        engine.write(batch, false).unwrap();
    }
    engine
}

/// How many writes survived; in every family the same ones, and the first ones.
fn survivors(engine: &RocksEngine) -> u8 {
    let counts = [Family::Log, Family::State, Family::Data].map(|family| {
        let mut cursor = engine.cursor(family, &[], None, Order::Forward);
        let mut n = 0;
        while let Some((key, _)) = cursor.next().unwrap() {
            assert_eq!(key, [n], "a write is missing in the middle");
            n += 1;
        }
        n
    });
    assert!(counts.iter().all(|n| *n == counts[0]), "a batch was torn: {counts:?}");
    counts[0]
}

fn wal(dir: &Path) -> PathBuf {
    let logs = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    logs.filter(|path| path.extension().is_some_and(|e| e == "log"))
        .max_by_key(|path| path.metadata().unwrap().len())
        .unwrap()
}

#[test]
fn a_kill_loses_nothing_and_a_torn_tail_costs_whole_writes_only() {
    let dir = tempfile::tempdir().unwrap();
    let engine = filled(dir.path(), 20);
    let db = dir.path().join("db");
    let bytes = fs::metadata(wal(&db)).unwrap().len();
    let mut seen = std::collections::BTreeSet::new();
    for cut in [0, 1, 50, 400, bytes / 2, bytes - 3] {
        let copied = dir.path().join(format!("cut{cut}"));
        copy(&db, &copied);
        File::options().write(true).open(wal(&copied)).unwrap().set_len(bytes - cut).unwrap();
        let reopened = RocksEngine::open(&copied, &small_rocks(), None).unwrap();
        let n = survivors(&reopened);
        assert_eq!(n == 20, cut == 0, "{n} writes after {cut} bytes were lost");
        seen.insert(n);
    }
    assert!(seen.len() >= 4, "{seen:?}");
    drop(engine);
}

#[test]
fn corruption_in_the_middle_of_the_log_refuses_to_open() {
    let dir = tempfile::tempdir().unwrap();
    let engine = filled(dir.path(), 20);
    let copied = dir.path().join("copied");
    copy(&dir.path().join("db"), &copied);
    let path = wal(&copied);
    let mut contents = fs::read(&path).unwrap();
    let middle = contents.len() / 2;
    contents[middle] ^= 0x55;
    fs::write(&path, contents).unwrap();
    let Err(error) = RocksEngine::open(&copied, &small_rocks(), None) else {
        panic!("synced writes were dropped silently")
    };
    assert!(matches!(error, StorageError::Unopenable { .. }), "{error}");
    drop(engine);
}

#[test]
fn figures_follow_what_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let engine = filled(dir.path(), 200);
    let before = engine.statistics();
    assert!(before.wal_bytes > 60_000 && before.memtable_bytes > 60_000, "{before:?}");
    assert_eq!((before.sst_bytes, before.block_cache_bytes_max), (0, 1 << 20));
    engine.flush().unwrap();
    let after = engine.statistics();
    assert!(after.sst_bytes > 0 && after.memtable_bytes < before.memtable_bytes, "{after:?}");
    assert!(engine.free_bytes().unwrap().unwrap() > 0);
}

#[test]
fn a_cold_family_does_not_pin_the_write_ahead_log() {
    let dir = tempfile::tempdir().unwrap();
    let options = RocksOptions { wal_bytes_max: 2 << 20, ..small_rocks() };
    let engine = RocksEngine::open(&dir.path().join("db"), &options, None).unwrap();
    let mut batch = engine.batch();
    batch.put(Family::State, b"written once", b"");
    engine.write(batch, false).unwrap();
    for i in 0..200u32 {
        let mut batch = engine.batch();
        batch.put(Family::Data, &i.to_be_bytes(), &[1; 100_000]);
        engine.write(batch, false).unwrap();
    }
    engine.flush().unwrap();
    // Files are removed in the background, soon after nobody needs them.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while engine.statistics().wal_bytes > 8 << 20 {
        assert!(std::time::Instant::now() < deadline, "{:?}", engine.statistics());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert!(engine.get(Family::State, b"written once").unwrap().is_some());
}

#[test]
fn a_view_keeps_the_database_open() {
    let dir = tempfile::tempdir().unwrap();
    let engine = filled(dir.path(), 3);
    let view = engine.view();
    drop(engine);
    assert!(view.get(Family::Data, &[2]).unwrap().is_some());
    drop(view);
    assert_eq!(survivors(&RocksEngine::start(dir.path())), 3);
}

/// A log that was cut short is followed by a younger one: what stands in the younger must not be
/// applied on top of the gap.
#[test]
fn a_hole_between_two_logs_refuses_to_open() {
    let dir = tempfile::tempdir().unwrap();
    let engine = filled(dir.path(), 20);
    let db = dir.path().join("db");
    let older = wal(&db);
    // The other families still need the older log; what comes goes into a new one.
    let raw = engine.inner.db.raw();
    raw.flush_cf(engine.inner.db.family(Family::Data)).unwrap();
    let mut batch = engine.batch();
    batch.put(Family::State, &[20], &[20; 100]);
    engine.write(batch, false).unwrap();
    for cut in [0, 50, u64::MAX] {
        let copied = dir.path().join(format!("cut{cut}"));
        copy(&db, &copied);
        let log = copied.join(older.file_name().unwrap());
        match cut {
            u64::MAX => fs::remove_file(log).unwrap(),
            _ => File::options()
                .write(true)
                .open(&log)
                .unwrap()
                .set_len(log.metadata().unwrap().len() - cut)
                .unwrap(),
        }
        match RocksEngine::open(&copied, &small_rocks(), None) {
            Ok(_) => assert_eq!(cut, 0, "the log goes on behind a hole"),
            Err(StorageError::Unopenable { why, .. }) => {
                assert!(cut > 0 && why.contains("WAL"), "{cut} bytes cut: {why}")
            }
            Err(error) => panic!("{cut} bytes cut: {error}"),
        }
    }
}

/// A step over many removed records gives up at its pace, says so, and comes through with more
/// patience; a page over them is a matter of several slices, and shows what lies behind.
#[test]
fn a_walk_over_removed_records_has_an_end() {
    let dir = tempfile::tempdir().unwrap();
    let engine = RocksEngine::start(dir.path());
    let mut record = Vec::new();
    records::encode_data(&mut record, Revision(1), b"value");
    let key = |n: u32| keys::data(KeySpace::User, &n.to_be_bytes());
    const REMOVED: u32 = 120_000;
    for n in 0..REMOVED {
        let mut batch = engine.batch();
        batch.put(Family::Data, &key(n), &record);
        batch.delete(Family::Data, &key(n));
        engine.write(batch, false).unwrap();
    }
    let mut batch = engine.batch();
    batch.put(Family::Data, &key(REMOVED), &record);
    engine.write(batch, false).unwrap();
    let view = engine.view();
    for order in [Order::Forward, Order::Reverse] {
        let step = |removed_max| {
            let end = match order {
                Order::Forward => key(u32::MAX),
                Order::Reverse => key(REMOVED),
            };
            let pace = Pace { removed_max, keep: false };
            let mut cursor = view.cursor_at(Family::Data, &key(0), Some(&end), order, pace);
            let seen = cursor.next().map(|record| record.is_some());
            let mut cursor = engine.cursor_at(Family::Data, &key(0), Some(&end), order, pace);
            let at_once = cursor.next().map(|record| record.is_some());
            assert_eq!(
                seen.is_ok(),
                at_once.is_ok(),
                "the engine itself walks at another pace than a view of it"
            );
            seen
        };
        assert!(matches!(step(1000), Err(StorageError::TooManyRemoved(1000))), "{order:?}");
        assert_eq!(step(u64::from(REMOVED) * 4).unwrap(), order == Order::Forward, "{order:?}");
    }
    let asked = Scan {
        range: KeyRange::all(),
        reverse: false,
        limit: 10,
        bytes_max: 1000,
        keys_only: false,
    };
    let mut look = PageLook::new(asked, KeyRange::all(), KeySpace::User, false);
    assert!(
        !look.look_on(&view, || true).unwrap() && look.is_bare(),
        "it came over {REMOVED} removed records in one step"
    );
    while !look.look_on(&view, || true).unwrap() {}
    assert_eq!(look.page().items.len(), 1);
}

/// Removed records that walks pass over are compacted away, from memory and from files, without
/// anybody's doing.
#[test]
fn removed_records_do_not_stay_in_the_way() {
    let dir = tempfile::tempdir().unwrap();
    let engine = RocksEngine::open(&dir.path().join("db"), &RocksOptions::default(), None).unwrap();
    let key = |n: u32| n.to_be_bytes();
    for n in 0..60_000 {
        let mut batch = engine.batch();
        batch.put(Family::Data, &key(n), b"value");
        batch.delete(Family::Data, &key(n));
        engine.write(batch, false).unwrap();
    }
    let mut batch = engine.batch();
    batch.put(Family::Data, &key(u32::MAX), b"last");
    engine.write(batch, false).unwrap();
    let first = |removed_max| {
        let view = engine.view();
        let mut cursor = view.cursor_at(
            Family::Data,
            &key(0),
            None,
            Order::Forward,
            Pace { removed_max, keep: false },
        );
        cursor.next().map(|record| record.is_some())
    };
    assert!(first(1000).is_err());
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while first(1000).is_err() {
        assert!(std::time::Instant::now() < deadline, "they are in the way for ever");
        assert!(first(u64::MAX).unwrap());
        // A memtable is turned into a file by the next write.
        let mut batch = engine.batch();
        batch.put(Family::Data, &key(u32::MAX), b"again");
        engine.write(batch, false).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// A deletion over what was removed before is a matter for a thread of its own, before anybody has
/// walked over it: over keys that were removed one by one, and over those that lie below a deletion
/// by range, which RocksDB steps over without counting them.
#[test]
fn a_deletion_over_removed_records_keeps_nobody() {
    use crate::testing::{SHARD, bootstrapped, delete_range, descriptor, normal, payload, work};
    const REMOVED: u32 = 300_000;
    for by_range in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let engine =
            RocksEngine::open(&dir.path().join("db"), &RocksOptions::default(), None).unwrap();
        bootstrapped(&engine, &[descriptor(SHARD.0, "", None), descriptor(1, "", None)]);
        let mut applier =
            crate::Applier::new(&engine, &crate::recover::recover(&engine).unwrap()).unwrap();
        let mut record = Vec::new();
        records::encode_data(&mut record, Revision(1), b"value");
        let key = |n: u32| keys::data(KeySpace::User, format!("k{n:08}").as_bytes());
        let mut batch = engine.batch();
        for n in 0..REMOVED {
            batch.put(Family::Data, &key(n), &record);
            if !by_range {
                batch.delete(Family::Data, &key(n));
            }
        }
        engine.write(batch, false).unwrap();
        if by_range {
            let mut batch = engine.batch();
            batch.delete_range(Family::Data, &key(0), &key(REMOVED));
            engine.write(batch, false).unwrap();
        }
        let deletion = || normal(2, 2, payload(1, &[delete_range("k", Some("l"))]));
        let (applied, mut asides) =
            applier.apply_short(&engine, vec![work(SHARD, [deletion()])]).unwrap();
        assert_eq!(
            (applied.len(), asides.len()),
            (0, 1),
            "it was carried out at once (removed by range: {by_range})"
        );
        let aside = asides.remove(0);
        assert!(!aside.is_among_the_longest(), "nothing of it is in files");
        applier.take_back(aside.run(&engine, Arc::default()).unwrap());
    }
}

/// What empties files of many bytes is told from what does not.
#[test]
fn a_deletion_of_much_is_among_the_longest() {
    use crate::testing::{SHARD, bootstrapped, delete_range, descriptor, normal, payload, work};
    let dir = tempfile::tempdir().unwrap();
    let engine = RocksEngine::start(dir.path());
    bootstrapped(&engine, &[descriptor(SHARD.0, "", None), descriptor(1, "", None)]);
    let mut applier =
        crate::Applier::new(&engine, &crate::recover::recover(&engine).unwrap()).unwrap();
    for n in 0..320 {
        let mut record = Vec::new();
        records::encode_data(&mut record, Revision(1), &[n as u8; 64 << 10]);
        let mut batch = engine.batch();
        batch.put(
            Family::Data,
            &keys::data(KeySpace::User, format!("k{n:08}").as_bytes()),
            &record,
        );
        engine.write(batch, false).unwrap();
    }
    engine.flush().unwrap();
    for (index, (end, longest)) in
        (2..).zip([("k00000001", None), ("k00000100", Some(false)), ("l", Some(true))])
    {
        let entry = normal(index, 2, payload(1, &[delete_range("k", Some(end))]));
        let (_, mut asides) = applier.apply_short(&engine, vec![work(SHARD, [entry])]).unwrap();
        let aside = asides.pop();
        assert_eq!(aside.as_ref().map(crate::Aside::is_among_the_longest), longest, "up to {end}");
        if let Some(aside) = aside {
            applier.take_back(aside.run(&engine, Arc::default()).unwrap());
        }
    }
}
