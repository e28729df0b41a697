//! Snapshots: a round trip is equal by hash on both engines, and a restart after every step of an
//! install completes it.

use super::*;
use crate::apply::Applier;
use crate::read;
use crate::recover::recover;
use crate::testing::{
    SHARD, Tampering, TestEngine, append_committed, bootstrapped, descriptor, normal,
    on_both_engines, payload, put, work,
};
use crate::work::{LogEntry, LogPosition};
use flotilla_router::{Descriptor, KeySpace};
use std::path::Path;

on_both_engines!(
    a_snapshot_makes_an_equal_shard,
    a_restart_after_every_step_completes_the_install,
    what_was_the_shards_is_cleared_and_nothing_else_whatever_happens_in_between,
    a_marker_of_the_format_before_clears_what_the_snapshot_brings,
    an_install_that_would_leave_old_keys_changes_nothing,
    a_damaged_snapshot_changes_nothing,
    files_that_hold_anything_else_are_refused,
    an_install_without_its_files_is_named,
    an_empty_shard_travels_too,
    what_is_applied_later_is_not_in_the_snapshot,
);

const AT: LogPosition = LogPosition { index: 6, term: 3 };

fn shards() -> [Descriptor; 2] {
    [descriptor(7, "b", Some("y")), descriptor(8, "y", None)]
}

fn entry(index: u64, term: u64, tag: &str) -> LogEntry {
    let puts: Vec<_> = (0..50)
        .map(|i| put(&format!("k{:03}", (index * 37 + i) % 200), &format!("{tag}{index}")))
        .collect();
    normal(index, term, payload(1, &puts))
}

/// An engine with both shards, SHARD applied up to `last` with values of this tag, and one key of
/// the neighbour.
fn filled<E: TestEngine>(dir: &Path, last: LogPosition, tag: &str) -> E {
    let engine = E::start(dir);
    bootstrapped(&engine, &shards());
    let mut applier = Applier::new(&engine, &recover(&engine).unwrap()).unwrap();
    let entries: Vec<_> = (2..=last.index).map(|index| entry(index, last.term, tag)).collect();
    append_committed(&engine, SHARD, entries.clone());
    let neighbour = normal(2, 2, payload(1, &[put("z", tag)]));
    append_committed(&engine, ShardId(8), vec![neighbour.clone()]);
    applier.apply(&engine, vec![work(SHARD, entries), work(ShardId(8), [neighbour])]).unwrap();
    engine.write(engine.batch(), true).unwrap();
    engine
}

/// A source ahead of a target, and the source's snapshot in the target's hands.
struct Scene<E: TestEngine> {
    source: E,
    target: E,
    manifest: SnapshotManifest,
    /// Where the files lie at the target.
    folder: PathBuf,
    /// What is cleared there.
    clear: Vec<KeyRange>,
    dir: tempfile::TempDir,
}

impl<E: TestEngine> Scene<E> {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let source = filled::<E>(&dir.path().join("source"), AT, "new");
        let target =
            filled::<E>(&dir.path().join("target"), LogPosition { index: 3, term: 2 }, "old");
        let (from, folder) = (dir.path().join("built"), dir.path().join("staged"));
        let manifest = build_with(&source, &source.view(), SHARD, &from, 1000).unwrap();
        assert!(manifest.files.len() > 1, "{manifest:?}");
        manifest.files.iter().for_each(|file| source.ship(&from, &file.name, &target, &folder));
        let clear = vec![manifest.descriptor.range.clone()];
        Self { source, target, manifest, folder, clear, dir }
    }

    fn install(&self) -> Install {
        let (manifest, folder) = (self.manifest.clone(), self.folder.clone());
        Install::new(manifest, folder, ReplicaId(99), hard_state(), &self.clear).unwrap()
    }

    fn install_whole(&self) -> Result<(), StorageError> {
        let Self { target, manifest, folder, clear, .. } = self;
        install(target, manifest, folder, ReplicaId(99), hard_state(), clear)
    }

    /// Makes the snapshot one of after a split: `m` and above are the shard's no more, and of these
    /// `p` up to `q` are another's already. At the target there is one key in each of these parts.
    fn after_a_split() -> Self {
        let mut scene = Self::new();
        let old = scene.manifest.descriptor.range.clone();
        scene.manifest.descriptor = descriptor(7, "b", Some("m"));
        let others = [KeyRange::new("p", Some("q".into()))];
        scene.clear = range::to_clear(Some(&old), &scene.manifest.descriptor.range, &others);
        let (mut batch, mut record) = (scene.target.batch(), Vec::new());
        records::encode_data(&mut record, flotilla_router::Revision(1), b"old");
        for key in ["a", "c", "n", "p", "q", "x"] {
            batch.put(Family::Data, &keys::data(KeySpace::User, key.as_bytes()), &record);
        }
        scene.target.write(batch, true).unwrap();
        scene
    }

    /// Which of these keys the target has, in the order in which they are given.
    fn has(&self, keys: &str) -> String {
        let look = |key: &str| read::get(&self.target, KeySpace::User, key.as_bytes()).unwrap();
        let is_there = |key: &&str| look(key).is_some();
        keys.split(' ').filter(is_there).collect::<Vec<_>>().join(" ")
    }

    fn restart(&mut self) {
        let dir = self.dir.path().join("target");
        let spare = self.source.clone();
        self.target = std::mem::replace(&mut self.target, spare).restart(&dir);
    }

    /// Checks that the target's shard is the source's, ready to go on.
    fn check_installed(&self, when: &str) {
        let found = recover(&self.target).unwrap();
        let shard = found.iter().find(|found| found.descriptor.id == SHARD).unwrap();
        assert_eq!(shard.descriptor, self.manifest.descriptor, "{when}");
        assert_eq!(
            (shard.applied, shard.truncated, shard.last, shard.replica),
            (AT, AT, AT, ReplicaId(99)),
            "{when}"
        );
        assert_eq!(shard.hard_state, HardState { term: 4, vote: 2, commit: AT.index }, "{when}");
        assert!(shard.unapplied.is_empty() && shard.log_bytes == 0, "{when}: {shard:?}");
        let hash = |engine: &E| read::hash(engine, &self.manifest.descriptor).unwrap();
        assert_eq!(hash(&self.target), hash(&self.source), "{when}");
        assert_eq!(
            read::applied_record(&self.target, SHARD).unwrap().revision,
            self.manifest.revision,
            "{when}"
        );
        assert_eq!(
            read::get(&self.target, KeySpace::User, b"z").unwrap().unwrap().1,
            "old",
            "{when}: the neighbour was touched"
        );
        assert!(Install::marked(&self.target).unwrap().is_empty(), "{when}");
    }

    /// Checks that the target's shard is what it was before.
    fn check_untouched(&self) {
        let found = recover(&self.target).unwrap();
        let shard = found.iter().find(|found| found.descriptor.id == SHARD).unwrap();
        assert_eq!(
            (shard.applied.index, shard.truncated.index, shard.last.index, shard.replica),
            (3, 1, 3, ReplicaId(71))
        );
        assert_ne!(
            read::hash(&self.target, &shards()[0]).unwrap().hash,
            read::hash(&self.source, &shards()[0]).unwrap().hash
        );
    }
}

fn hard_state() -> HardState {
    HardState { term: 4, vote: 2, commit: 3 }
}

fn a_snapshot_makes_an_equal_shard<E: TestEngine>() {
    let mut scene = Scene::<E>::new();
    assert_eq!((scene.manifest.at, scene.manifest.revision.0), (AT, 250));
    assert_eq!(SnapshotManifest::decode(scene.manifest.encode()), Ok(scene.manifest.clone()));
    let mut applier = Applier::new(&scene.target, &recover(&scene.target).unwrap()).unwrap();
    scene.install_whole().unwrap();
    scene.check_installed("at once");
    assert!(
        verify(&scene.target, &scene.manifest, &scene.folder).is_err(),
        "the staged files are still there"
    );
    // Both go on to the same state.
    applier.installed(&scene.manifest);
    let next = work(SHARD, [entry(7, 4, "next")]);
    append_committed(&scene.target, SHARD, vec![entry(7, 4, "next")]);
    applier.apply(&scene.target, vec![next.clone()]).unwrap();
    let mut ahead = Applier::new(&scene.source, &recover(&scene.source).unwrap()).unwrap();
    ahead.apply(&scene.source, vec![next]).unwrap();
    let hash = |engine: &E| read::hash(engine, &scene.manifest.descriptor).unwrap();
    assert_eq!(hash(&scene.target), hash(&scene.source));
    scene.restart();
    let found = recover(&scene.target).unwrap();
    assert_eq!(
        (found[0].truncated, found[0].last.index),
        (AT, 7),
        "the log does not go on above the snapshot"
    );
}

fn a_restart_after_every_step_completes_the_install<E: TestEngine>() {
    for done in 0..=STEPS.len() {
        let mut scene = Scene::<E>::new();
        let install = scene.install();
        verify(&scene.target, &scene.manifest, &scene.folder).unwrap();
        STEPS[..done].iter().for_each(|step| install.take(*step, &scene.target).unwrap());
        scene.restart();
        if done == 0 {
            scene.check_untouched();
            continue;
        }
        scene.check_installed(&format!("after {done} steps"));
        scene.restart();
        scene.check_installed(&format!("after {done} steps and a second restart"));
    }
}

/// A replica that missed a split: the keys that went to the other half go here, too, unless the
/// other half lives here already. A crash at any place clears the same.
fn what_was_the_shards_is_cleared_and_nothing_else_whatever_happens_in_between<E: TestEngine>() {
    const KEYS: &str = "a c n p q x z";
    for done in 0..=STEPS.len() {
        let mut scene = Scene::<E>::after_a_split();
        let install = scene.install();
        STEPS[..done].iter().for_each(|step| install.take(*step, &scene.target).unwrap());
        scene.restart();
        recover(&scene.target).unwrap();
        let left = if done == 0 { KEYS } else { "a p z" };
        assert_eq!(scene.has(KEYS), left, "after {done} steps");
        if done > 0 {
            scene.check_installed(&format!("after {done} steps"));
        }
    }
}

/// What lies on disks since before.
fn a_marker_of_the_format_before_clears_what_the_snapshot_brings<E: TestEngine>() {
    let mut scene = Scene::<E>::after_a_split();
    let (key, mut record) = (keys::state(SHARD, StateTag::Install), Vec::new());
    let hard_state = HardState { commit: AT.index, ..hard_state() };
    let marker = |format: u8, record: &mut Vec<u8>| {
        records::seal_as(record, &key, format, |out| {
            out.put_bytes_prefixed(&scene.manifest.encode());
            out.put_bytes_prefixed(scene.folder.to_str().unwrap().as_bytes());
            out.put_u64(99);
            records::put_hard_state(out, hard_state);
        });
    };
    // In the new format the ranges are missing.
    for (format, why) in [(2, "needs 4 more bytes"), (3, "format 3; this binary reads 1 and 2")] {
        marker(format, &mut record);
        let error = Install::decode(&key, &record).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
    marker(1, &mut record);
    let mut batch = scene.target.batch();
    batch.put(Family::State, &key, &record);
    scene.target.write(batch, true).unwrap();
    scene.restart();
    scene.check_installed("from a marker of the format before");
    assert_eq!(scene.has("a c n p q x z"), "a n p q x z");
}

/// What was left of the old keys would be taken for the snapshot's.
fn an_install_that_would_leave_old_keys_changes_nothing<E: TestEngine>() {
    let range = |start: &'static str, end: &'static str| KeyRange::new(start, Some(end.into()));
    let mut scene = Scene::<E>::new();
    for clear in [vec![], vec![range("b", "x")], vec![range("b", "k"), range("l", "z")]] {
        scene.clear = clear;
        let error = scene.install_whole().unwrap_err();
        assert!(matches!(error, StorageError::Snapshot { shard: SHARD, .. }), "{error}");
        assert!(error.to_string().contains("would not all be cleared"), "{error}");
        scene.restart();
        scene.check_untouched();
    }
    // In pieces, out of order, and more than enough is enough.
    scene.clear = vec![range("k", "y"), range("b", "l"), range("0", "1")];
    scene.install_whole().unwrap();
    scene.check_installed("from pieces");
}

#[cfg(feature = "rocksdb")]
#[test]
fn an_install_goes_on_where_the_data_directory_was_moved() {
    type Rocks = crate::rocks::RocksEngine;
    let mut scene = Scene::<Rocks>::new();
    let (home, moved) = (scene.dir.path().join("target"), scene.dir.path().join("moved"));
    let staged = home.join("snapshots/install/1");
    std::fs::create_dir_all(home.join("snapshots/install")).unwrap();
    std::fs::rename(std::mem::replace(&mut scene.folder, staged.clone()), staged).unwrap();
    let install = scene.install();
    [Step::Mark, Step::Clear]
        .into_iter()
        .for_each(|step| install.take(step, &scene.target).unwrap());
    let spare = scene.source.clone();
    drop(std::mem::replace(&mut scene.target, spare));
    std::fs::rename(home, &moved).unwrap();
    scene.target = Rocks::start(&moved);
    scene.check_installed("after a move");
}

fn a_damaged_snapshot_changes_nothing<E: TestEngine>() {
    let changes: [Tampering; 2] =
        [|contents| Some(contents[..contents.len() - 1].to_vec()), |_| None];
    for change in changes {
        let mut scene = Scene::<E>::new();
        scene.target.tamper(&scene.folder, &scene.manifest.files[1].name, change);
        let error = scene.install_whole().unwrap_err();
        assert!(matches!(error, StorageError::Snapshot { shard: SHARD, .. }), "{error}");
        scene.restart();
        scene.check_untouched();
    }
    let mut scene = Scene::<E>::new();
    scene.manifest.files[0].name = "../built/000000.sst".into();
    let error = scene.install_whole().unwrap_err();
    assert!(error.to_string().contains("file name"), "{error}");
    scene.check_untouched();
}

fn files_that_hold_anything_else_are_refused<E: TestEngine>() {
    let scene = Scene::<E>::new();
    verify_foreign(&scene.target, &scene.manifest, &scene.folder).unwrap();
    // Looked at only: they can be installed still.
    verify(&scene.target, &scene.manifest, &scene.folder).unwrap();
    // Bytes that are no table, with their own length and checksum.
    let mut spoilt = scene.manifest.clone();
    scene.target.tamper(&scene.folder, &spoilt.files[0].name, |_| Some(b"no records".to_vec()));
    (spoilt.files[0].bytes, spoilt.files[0].checksum) = (10, crc32fast::hash(b"no records"));
    let error = verify_foreign(&scene.target, &spoilt, &scene.folder).unwrap_err();
    assert!(matches!(error, StorageError::Snapshot { shard: SHARD, .. }), "{error}");
    // Keys of a neighbour: the files hold more than the shard that they are announced for has.
    let scene = Scene::<E>::new();
    for (start, end) in [("k100", Some("y")), ("b", Some("k100"))] {
        let mut narrow = scene.manifest.clone();
        narrow.descriptor = descriptor(7, start, end);
        let error = verify_foreign(&scene.target, &narrow, &scene.folder).unwrap_err().to_string();
        assert!(error.contains("another shard"), "{error}");
    }
}

fn an_install_without_its_files_is_named<E: TestEngine>() {
    let mut scene = Scene::<E>::new();
    scene.install().mark(&scene.target).unwrap();
    scene.target.remove_folder(&scene.folder).unwrap();
    scene.restart();
    let error = recover(&scene.target).unwrap_err().to_string();
    assert!(
        error.contains("snapshot of shard 7") && error.contains("can't be completed"),
        "{error}"
    );
}

fn an_empty_shard_travels_too<E: TestEngine>() {
    let dir = tempfile::tempdir().unwrap();
    let source = E::start(&dir.path().join("source"));
    bootstrapped(&source, &shards());
    let manifest = build(&source, &source.view(), SHARD, &dir.path().join("built")).unwrap();
    assert_eq!((manifest.files.len(), manifest.at), (0, crate::work::INITIAL));
    let target = filled::<E>(&dir.path().join("target"), AT, "old");
    let (staged, clear) = (dir.path().join("staged"), [manifest.descriptor.range.clone()]);
    install(&target, &manifest, &staged, ReplicaId(99), HardState::default(), &clear).unwrap();
    let hash = read::hash(&target, &manifest.descriptor).unwrap();
    assert_eq!((hash, hash.keys), (read::hash(&source, &manifest.descriptor).unwrap(), 0));
    let missing = build(&source, &source.view(), ShardId(99), &dir.path().join("built"))
        .unwrap_err()
        .to_string();
    assert!(missing.contains("no replica"), "{missing}");
}

fn what_is_applied_later_is_not_in_the_snapshot<E: TestEngine>() {
    let dir = tempfile::tempdir().unwrap();
    let source = filled::<E>(&dir.path().join("source"), AT, "new");
    let (view, before) = (source.view(), read::hash(&source, &shards()[0]).unwrap());
    let mut applier = Applier::new(&source, &recover(&source).unwrap()).unwrap();
    applier.apply(&source, vec![work(SHARD, [entry(7, 4, "later")])]).unwrap();
    let manifest = build(&source, &view, SHARD, &dir.path().join("built")).unwrap();
    assert_eq!((manifest.at, manifest.revision.0), (AT, 250));
    let target = E::start(&dir.path().join("target"));
    manifest.files.iter().for_each(|file| {
        source.ship(&dir.path().join("built"), &file.name, &target, &dir.path().join("staged"))
    });
    let (staged, clear) = (dir.path().join("staged"), [manifest.descriptor.range.clone()]);
    install(&target, &manifest, &staged, ReplicaId(99), hard_state(), &clear).unwrap();
    assert_eq!(read::hash(&target, &manifest.descriptor).unwrap(), before);
}
