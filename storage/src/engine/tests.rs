//! The contract of [`Engine`], checked on both engines. What only a crash shows is in `memory.rs`
//! and `rocks/tests.rs`.

use super::*;
use crate::testing::{Tampering, TestEngine, on_both_engines};

on_both_engines!(
    a_batch_takes_effect_whole_and_in_order,
    a_view_shows_how_it_was,
    cursors_walk_both_ways_within_their_bounds,
    a_restart_finds_what_was_synced,
    exported_files_are_taken_in_elsewhere,
    a_file_that_changed_is_found_out,
    the_rest_of_the_contract,
);

const FAMILIES: [Family; 3] = [Family::Log, Family::State, Family::Data];

fn put<E: Engine>(engine: &E, family: Family, pairs: &[(&str, &str)]) {
    let mut batch = engine.batch();
    for (key, value) in pairs {
        batch.put(family, key.as_bytes(), value.as_bytes());
    }
    engine.write(batch, true).unwrap();
}

fn all<R: Read>(read: &R, family: Family) -> Vec<(String, String)> {
    walk(read, family, "", None, Order::Forward)
}

fn walk<R: Read>(
    read: &R,
    family: Family,
    start: &str,
    end: Option<&str>,
    order: Order,
) -> Vec<(String, String)> {
    let mut cursor = read.cursor(family, start.as_bytes(), end.map(str::as_bytes), order);
    let mut pairs = Vec::new();
    while let Some((key, value)) = cursor.next().unwrap() {
        pairs.push((
            String::from_utf8(key.to_vec()).unwrap(),
            String::from_utf8(value.to_vec()).unwrap(),
        ));
    }
    assert_eq!(cursor.next().unwrap(), None, "a walk that has ended goes on");
    pairs
}

fn pairs(keys: &[(&str, &str)]) -> Vec<(String, String)> {
    keys.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}

fn a_batch_takes_effect_whole_and_in_order<E: TestEngine>() {
    let dir = tempfile::tempdir().unwrap();
    let engine = E::start(dir.path());
    put(&engine, Family::Data, &[("a", "0"), ("b", "0"), ("c", "0"), ("d", "0")]);
    let mut batch = engine.batch();
    assert!(batch.is_empty());
    batch.put(Family::Data, b"bb", b"1");
    batch.delete_range(Family::Data, b"b", b"d");
    batch.put(Family::Data, b"c", b"1");
    batch.put(Family::Data, b"a", b"1");
    batch.delete(Family::Data, b"a");
    batch.put(Family::Log, b"c", b"log");
    batch.put(Family::State, b"c", b"state");
    batch.delete_range(Family::Data, b"z", b"a");
    assert!(!batch.is_empty() && batch.bytes() > 0);
    assert_eq!(all(&engine, Family::Data).len(), 4, "a batch that was not written shows");
    engine.write(batch, false).unwrap();
    assert_eq!(all(&engine, Family::Data), pairs(&[("c", "1"), ("d", "0")]));
    assert_eq!(all(&engine, Family::Log), pairs(&[("c", "log")]));
    assert_eq!(engine.get(Family::State, b"c").unwrap().as_deref(), Some(&b"state"[..]));
    assert_eq!(engine.look(Family::Data, b"c", <[u8]>::len).unwrap(), Some(1));
    assert_eq!(engine.get(Family::Data, b"b").unwrap(), None);
}

fn a_view_shows_how_it_was<E: TestEngine>() {
    let dir = tempfile::tempdir().unwrap();
    let engine = E::start(dir.path());
    for family in FAMILIES {
        put(&engine, family, &[("a", "1"), ("b", "1")]);
    }
    let view = engine.view();
    for family in FAMILIES {
        put(&engine, family, &[("a", "2"), ("c", "2")]);
        let mut batch = engine.batch();
        batch.delete(family, b"b");
        engine.write(batch, true).unwrap();
    }
    engine.flush().unwrap();
    for family in FAMILIES {
        assert_eq!(all(&view.clone(), family), pairs(&[("a", "1"), ("b", "1")]));
        assert_eq!(all(&engine, family), pairs(&[("a", "2"), ("c", "2")]));
        assert_eq!(view.get(family, b"a").unwrap().as_deref(), Some(&b"1"[..]));
    }
    // Views go where they are needed, and outlive the hand that took them.
    let other = std::thread::spawn(move || all(&view, Family::Data)).join().unwrap();
    assert_eq!(other.len(), 2);
}

fn cursors_walk_both_ways_within_their_bounds<E: TestEngine>() {
    let dir = tempfile::tempdir().unwrap();
    let engine = E::start(dir.path());
    put(&engine, Family::Data, &[("a", "1"), ("b", "1"), ("c", "1"), ("d", "1")]);
    let table = [
        ("", None, "abcd"),
        ("b", None, "bcd"),
        ("b", Some("d"), "bc"),
        ("aa", Some("bb"), "b"),
        ("b", Some("b"), ""),
        ("c", Some("b"), ""),
        ("x", None, ""),
        ("", Some("a"), ""),
    ];
    for (start, end, keys) in table {
        let view = engine.view();
        for order in [Order::Forward, Order::Reverse] {
            let mut want: Vec<char> = keys.chars().collect();
            if order == Order::Reverse {
                want.reverse();
            }
            let want: String = want.into_iter().collect();
            let of = |walked: Vec<(String, String)>| {
                walked.into_iter().map(|(key, _)| key).collect::<String>()
            };
            assert_eq!(
                of(walk(&engine, Family::Data, start, end, order)),
                want,
                "{start:?} to {end:?}, {order:?}"
            );
            assert_eq!(
                of(walk(&view, Family::Data, start, end, order)),
                want,
                "{start:?} to {end:?}, {order:?}, view"
            );
        }
    }
}

fn a_restart_finds_what_was_synced<E: TestEngine>() {
    let dir = tempfile::tempdir().unwrap();
    let engine = E::start(dir.path());
    let mut batch = engine.batch();
    batch.put(Family::Data, b"before", b"");
    engine.write(batch, false).unwrap();
    // A sync of nothing covers what was written before it.
    engine.write(engine.batch(), true).unwrap();
    let engine = engine.restart(dir.path());
    assert_eq!(all(&engine, Family::Data), pairs(&[("before", "")]));
}

fn exported_files_are_taken_in_elsewhere<E: TestEngine>() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (source, target) = (E::start(here.path()), E::start(there.path()));
    let mut batch = source.batch();
    for i in 0..1000u64 {
        // Values that no compression makes smaller.
        let value: Vec<u8> = (0..125)
            .flat_map(|j| xxhash_rust::xxh3::xxh3_64(&(i << 32 | j).to_be_bytes()).to_be_bytes())
            .collect();
        batch.put(Family::Data, &(i as u32).to_be_bytes(), &value);
    }
    source.write(batch, false).unwrap();
    let (from, to) = (here.path().join("snapshot"), there.path().join("snapshot"));
    let view = source.view();
    let mut batch = source.batch();
    batch.delete_range(Family::Data, &0u32.to_be_bytes(), &500u32.to_be_bytes());
    source.write(batch, false).unwrap();
    let (start, end) = (100u32.to_be_bytes(), 900u32.to_be_bytes());
    let files = source.export(&view, &start, &end, &from, 100_000).unwrap();
    assert!(files.len() > 1, "800 kB in files of 100 kB: {files:?}");
    for file in &files {
        source.check_file(&from, file).unwrap();
        source.ship(&from, &file.name, &target, &to);
        target.check_file(&to, file).unwrap();
    }
    // What is there is overwritten, and a view from before does not change.
    let mut batch = target.batch();
    batch.put(Family::Data, &150u32.to_be_bytes(), b"old");
    batch.put(Family::Data, &950u32.to_be_bytes(), b"old");
    target.write(batch, true).unwrap();
    let before = target.view();
    target.ingest(&to, &files).unwrap();
    assert_eq!(before.look(Family::Data, &150u32.to_be_bytes(), <[u8]>::len).unwrap(), Some(3));
    drop(before);
    // Durable without a sync of ours, and the files are still there for a second time.
    let target = target.restart(there.path());
    files.iter().for_each(|file| target.check_file(&to, file).unwrap());
    target.ingest(&to, &files).unwrap();
    for (i, bytes) in [
        (99u32, None),
        (100, Some(1000)),
        (150, Some(1000)),
        (899, Some(1000)),
        (900, None),
        (950, Some(3)),
    ] {
        assert_eq!(target.look(Family::Data, &i.to_be_bytes(), <[u8]>::len).unwrap(), bytes, "{i}");
    }
    target.remove_folder(&to).unwrap();
    target.remove_folder(&to).unwrap();
    assert!(target.check_file(&to, &files[0]).is_err());
    assert_eq!(source.export(&view, &end, &end, &from, 1).unwrap(), [], "no records, no files");
    assert_eq!(source.export(&view, &end, &start, &from, 1).unwrap(), [], "no records, no files");
}

fn a_file_that_changed_is_found_out<E: TestEngine>() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, folder) = (E::start(dir.path()), dir.path().join("snapshot"));
    put(&engine, Family::Data, &[("a", "1")]);
    let export = || engine.export(&engine.view(), b"a", b"b", &folder, u64::MAX).unwrap().remove(0);
    let changes: [Tampering; 3] = [
        |contents| Some(contents[1..].to_vec()),
        |contents| {
            Some(contents.iter().enumerate().map(|(i, byte)| byte ^ u8::from(i == 0)).collect())
        },
        |_| None,
    ];
    for (i, change) in changes.into_iter().enumerate() {
        let file = export();
        engine.check_file(&folder, &file).unwrap();
        engine.tamper(&folder, &file.name, change);
        assert!(engine.check_file(&folder, &file).is_err(), "change {i} was not seen");
    }
}

fn the_rest_of_the_contract<E: TestEngine>() {
    let dir = tempfile::tempdir().unwrap();
    let engine = E::start(dir.path());
    put(&engine, Family::Data, &[("a", "1")]);
    engine.flush().unwrap();
    assert!(engine.free_bytes().unwrap().is_none_or(|bytes| bytes > 0));
    let statistics = engine.statistics();
    assert!(!statistics.writes_stopped && !statistics.writes_slowed);
    engine.close().unwrap();
}
