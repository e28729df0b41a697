//! Fuzzes what lies on the disk: a node's records are replaced and added to, one by one, and then
//! everything reads them that reads at start and later. Each says what is wrong or gives an answer;
//! none panics, and what is read is written back as the same bytes.
//!
//! ```text
//! input  := where to begin (1) ‖ change*
//! change := what (1) ‖ where and what with ([`Script`])
//! ```
//!
//! Most changes are sealed with a right checksum: what they test lies behind it. A record whose
//! checksum is wrong must be refused, and that is checked apart.

use super::script::Script;
use super::template::Template;
use bytes::{BufMut, Bytes, BytesMut};
use flotilla_node::core::{CoreConfig, Event, Identity, Node};
use flotilla_router::codec::Put;
use flotilla_router::command::PayloadBuilder;
use flotilla_router::{
    Command, Condition, Descriptor, Epoch, Incarnation, KeyRange, KeySpace, NodeId, Op, Replica,
    ReplicaId, Revision, Role, Scan, ShardId,
};
use flotilla_storage::keys::{self, NodeTag, StateTag};
use flotilla_storage::records::{self, AppliedRecord};
use flotilla_storage::{
    Applier, ApplyEntry, ApplyWork, Engine, EntryKind, Family, HardState, LogBatch, LogEntry,
    LogPosition, LogWrite, MemoryEngine, Read, Recovered, SnapshotFile, SnapshotManifest,
    WriteBatch, append, bootstrap, bootstrap_mark, is_bootstrapped, known_directories, log, read,
    recover, remember_directory, routes, save_routes, snapshot, tombstones,
};
use std::path::Path;
use std::sync::LazyLock;

/// A script has at most so many changes.
const CHANGES_MAX: usize = 24;
/// Shards that records speak of: the meta shard, two user shards, one that is not there.
const SHARDS: [ShardId; 4] = [ShardId::META, ShardId(2), ShardId(3), ShardId(9)];

/// A node that has lived for a moment.
static BOOTSTRAPPED: LazyLock<Template> = LazyLock::new(|| Template::of(&bootstrapped()));

/// Runs one input.
pub(crate) fn run(data: &[u8]) {
    let mut script = Script::new(data);
    let engine = if script.u8() & 1 == 0 { BOOTSTRAPPED.engine() } else { MemoryEngine::new() };
    for _ in 0..CHANGES_MAX {
        if script.is_empty() {
            break;
        }
        change(&engine, &mut script);
    }
    look(&engine);
    restart(&engine);
}

fn shard(id: ShardId, start: &'static str, end: Option<&'static str>) -> Descriptor {
    let voter = |node: u64| Replica {
        id: ReplicaId(id.0 * 10 + node),
        node: NodeId(node),
        role: Role::Voter,
    };
    let range = KeyRange::new(start, end.map(Into::into));
    Descriptor {
        id,
        range,
        epoch: Epoch { membership: 1, range: 1 },
        replicas: vec![voter(1), voter(2), voter(3)],
    }
}

fn put(key: &'static str, value: &'static str) -> Command {
    Command::new(Op::Put { key: key.into(), value: value.into() }, Condition::Always)
}

fn payload(commands: &[Command]) -> Bytes {
    let mut payload = PayloadBuilder::new(1, 0);
    commands.iter().for_each(|command| payload.push(command));
    payload.finish()
}

/// Three shards, a few entries, some of them applied, another node known.
fn bootstrapped() -> MemoryEngine {
    let engine = MemoryEngine::new();
    let shards = [
        shard(ShardId::META, "", None),
        shard(ShardId(2), "", Some("m")),
        shard(ShardId(3), "m", None),
    ];
    let first = [(Bytes::from_static(b"next"), Bytes::from_static(b"4"))];
    bootstrap(&engine, &shards, NodeId(1), &first).expect("memory does not fail");
    let entry = |index: u64, term: u64, data: Bytes| LogEntry {
        at: LogPosition { index, term },
        kind: EntryKind::Normal,
        data,
        context: Bytes::new(),
    };
    let entries = vec![
        entry(2, 2, Bytes::new()),
        entry(3, 2, payload(&[put("a", "1"), put("b", "2")])),
        entry(4, 3, payload(&[put("c", "3")])),
        entry(5, 3, payload(&[put("d", "4")])),
    ];
    let apply = |entry: &LogEntry| ApplyEntry { entry: entry.clone(), wants_results: true };
    let work = ApplyWork { shard: ShardId(2), entries: entries[..3].iter().map(apply).collect() };
    let hard_state = Some(HardState { term: 3, vote: 21, commit: 5 });
    let write = LogWrite { shard: ShardId(2), entries, hard_state, ..LogWrite::default() };
    append(&engine, &LogBatch { writes: vec![write], sync: true }).expect("memory does not fail");
    let found = recover(&engine).expect("what was just bootstrapped is in order");
    let mut applier =
        Applier::new(&engine, &found).expect("what was just bootstrapped is in order");
    applier.apply(&engine, vec![work]).expect("honest entries");
    remember_directory(&engine, NodeId(2), 77).expect("memory does not fail");
    engine
}

/// Changes one record.
fn change(engine: &MemoryEngine, s: &mut Script<'_>) {
    let mut record = Vec::new();
    match s.below(16) {
        0 => {
            let at = LogPosition { index: s.number(5), term: s.number(3) };
            let key = keys::log_entry(s.pick(&SHARDS), at.index);
            let kind = s.pick(&[EntryKind::Normal, EntryKind::ConfChange, EntryKind::ConfChangeV2]);
            let entry = LogEntry { at, kind, data: data(s), context: context(s) };
            records::encode_entry(&mut record, &key, &entry);
            set(engine, Family::Log, &key, &record);
        }
        1 => {
            let key = keys::log_entry(s.pick(&SHARDS), s.number(5));
            sealed(engine, Family::Log, &key, s.bytes());
        }
        2 => {
            let key = keys::state(s.pick(&SHARDS), StateTag::HardState);
            let hard_state =
                HardState { term: s.number(3), vote: s.number(21), commit: s.number(5) };
            records::encode_hard_state(&mut record, &key, hard_state);
            set(engine, Family::State, &key, &record);
        }
        3 => {
            let key = keys::state(s.pick(&SHARDS), StateTag::Truncated);
            records::encode_truncated(
                &mut record,
                &key,
                LogPosition { index: s.number(1), term: s.number(1) },
            );
            set(engine, Family::State, &key, &record);
        }
        4 => {
            let under = s.pick(&SHARDS);
            let route = s.u8() & 1 == 1;
            let key = if route {
                keys::route(under).to_vec()
            } else {
                keys::state(under, StateTag::Descriptor).to_vec()
            };
            records::encode_descriptor(&mut record, &key, &descriptor(s));
            set(engine, Family::State, &key, &record);
        }
        5 => {
            let key =
                keys::state(s.pick(&SHARDS), s.pick(&[StateTag::Replica, StateTag::Tombstone]));
            records::encode_replica(&mut record, &key, ReplicaId(s.number(21)));
            set(engine, Family::State, &key, &record);
        }
        6 => install_marker(engine, s),
        7 => {
            let applied = AppliedRecord {
                at: LogPosition { index: s.number(4), term: s.number(3) },
                revision: Revision(s.number(3)),
            };
            set(
                engine,
                Family::Data,
                &keys::applied(s.pick(&SHARDS)),
                &records::encode_applied(applied),
            );
        }
        8 => {
            records::encode_data(&mut record, Revision(s.number(1)), s.bytes());
            let space = s.pick(&[KeySpace::User, KeySpace::Meta]);
            set(engine, Family::Data, &keys::data(space, s.bytes()), &record);
        }
        9 => {
            let tags = [
                StateTag::HardState,
                StateTag::Truncated,
                StateTag::Descriptor,
                StateTag::Tombstone,
                StateTag::Install,
            ];
            let key = keys::state(s.pick(&SHARDS), s.pick(&tags));
            sealed(engine, Family::State, &key, s.bytes());
        }
        10 => {
            let tag = s.pick(&[
                NodeTag::Identity,
                NodeTag::Bootstrapped,
                NodeTag::Route,
                NodeTag::Directory,
            ]);
            let key = match tag {
                NodeTag::Route => keys::route(s.pick(&SHARDS)).to_vec(),
                NodeTag::Directory => keys::directory(NodeId(s.number(2))).to_vec(),
                NodeTag::Identity | NodeTag::Bootstrapped => keys::node(tag).to_vec(),
            };
            sealed(engine, Family::State, &key, s.bytes());
        }
        // Keys that nobody writes, sealed or not.
        11 => {
            let family = s.pick(&[Family::Log, Family::State, Family::Data]);
            let key = s.bytes();
            if s.u8() & 1 == 1 {
                sealed(engine, family, key, s.bytes())
            } else {
                set(engine, family, key, s.bytes())
            }
        }
        // Data and applied states in any shape.
        12 => {
            let key = if s.u8() & 1 == 1 {
                keys::applied(s.pick(&SHARDS)).to_vec()
            } else {
                keys::data(KeySpace::User, s.bytes())
            };
            set(engine, Family::Data, &key, s.bytes());
        }
        13 => {
            let mut batch = engine.batch();
            let (which, index) = (s.pick(&SHARDS), s.number(3));
            match s.below(4) {
                0 => batch.delete(Family::Log, &keys::log_entry(which, index)),
                1 => batch.delete(Family::Data, &keys::applied(which)),
                2 => batch.delete(Family::State, &keys::state(which, StateTag::Replica)),
                _ => batch.delete(
                    Family::State,
                    &keys::state(
                        which,
                        StateTag::from_byte(index as u8).unwrap_or(StateTag::Truncated),
                    ),
                ),
            }
            engine.write(batch, true).expect("memory does not fail");
        }
        // A bit of what stands there flips. Never unnoticed where there is a checksum.
        14 => {
            let (which, byte, bit) = (s.pick(&SHARDS), usize::from(s.u8()), s.below(8));
            let (family, key) = match s.below(3) {
                0 => (Family::Log, keys::log_entry(which, s.number(4)).to_vec()),
                1 => (Family::State, keys::state(which, StateTag::HardState).to_vec()),
                _ => (Family::State, keys::state(which, StateTag::Descriptor).to_vec()),
            };
            let Some(found) = engine.get(family, &key).expect("memory does not fail") else {
                return;
            };
            let mut flipped = found.to_vec();
            let Some(at) = byte.checked_rem(flipped.len()) else { return };
            let was_sound = records::unseal("record", &key, &found).is_ok();
            flipped[at] ^= 1 << bit;
            assert!(
                !was_sound || records::unseal("record", &key, &flipped).is_err(),
                "a flipped bit was not noticed"
            );
            set(engine, family, &key, &flipped);
        }
        // As if it was restarted in the middle.
        _ => {
            engine.crash_keeping(s.below(4));
            let _ = recover(engine);
        }
    }
}

/// Commands, or something like them.
fn data(s: &mut Script<'_>) -> Bytes {
    match s.below(4) {
        0 => payload(&[put("a", "5")]),
        1 => Bytes::new(),
        2 => {
            // Any commands behind a right header.
            let mut data = payload(&[]).to_vec();
            data.extend_from_slice(s.bytes());
            data.into()
        }
        _ => Bytes::copy_from_slice(s.bytes()),
    }
}

/// The descriptor that a membership change leads to, or something like it.
fn context(s: &mut Script<'_>) -> Bytes {
    match s.below(4) {
        0 | 1 => Bytes::new(),
        2 => descriptor(s).encode(),
        _ => Bytes::copy_from_slice(s.bytes()),
    }
}

fn descriptor(s: &mut Script<'_>) -> Descriptor {
    let mut descriptor = match s.below(3) {
        0 => shard(ShardId(2), "", Some("m")),
        1 => shard(ShardId(3), "m", None),
        _ => shard(ShardId::META, "", None),
    };
    for _ in 0..s.below(4) {
        match s.below(8) {
            0 => descriptor.id = s.pick(&SHARDS),
            1 => descriptor.range.start = Bytes::copy_from_slice(s.bytes()),
            2 => descriptor.range.end = Some(Bytes::copy_from_slice(s.bytes())),
            3 => descriptor.range.end = None,
            4 => descriptor.epoch = Epoch { membership: s.number(1), range: s.number(1) },
            5 => drop(descriptor.replicas.pop()),
            6 => {
                descriptor.replicas.iter_mut().take(s.below(4)).for_each(|r| r.role = Role::Learner)
            }
            _ => {
                // Decoding refuses 0, so nothing could ever have written it.
                let (id, node) = (s.number(24).max(1), s.number(4).max(1));
                descriptor.replicas.push(Replica {
                    id: ReplicaId(id),
                    node: NodeId(node),
                    role: Role::Voter,
                });
            }
        }
    }
    descriptor
}

/// The mark of an install that was cut short, its files beside it.
fn install_marker(engine: &MemoryEngine, s: &mut Script<'_>) {
    let folder = Path::new("staged");
    let mut contents = Vec::new();
    for _ in 0..s.below(3) {
        // As the engine in memory writes its files: keys and records, each with its length.
        contents.put_bytes_prefixed(&keys::data(KeySpace::User, s.bytes()));
        let mut record = Vec::new();
        records::encode_data(&mut record, Revision(s.number(1)), b"v");
        contents.put_bytes_prefixed(&record);
    }
    contents.extend_from_slice(s.bytes());
    let (checksum, bytes) = (crc32fast::hash(&contents), contents.len() as u64);
    engine.put_file(folder, "000000.mem", contents.into());
    let descriptor = descriptor(s);
    let at = LogPosition { index: s.number(6), term: s.number(3) };
    let mut files = vec![SnapshotFile { name: "000000.mem".into(), bytes, checksum }];
    if s.u8() & 1 == 1 {
        files.push(SnapshotFile {
            name: String::from_utf8_lossy(s.bytes()).into_owned(),
            bytes: s.number(3),
            checksum: 0,
        });
    }
    let under = if s.u8() & 1 == 0 { descriptor.id } else { s.pick(&SHARDS) };
    let manifest = SnapshotManifest { descriptor, at, revision: Revision(s.number(3)), files };
    let key = keys::state(under, StateTag::Install);
    let mut record = Vec::new();
    // The format of now names what is to be cleared, the one before did not.
    let mut ranges = BytesMut::new();
    if manifest.at.term.is_multiple_of(2) {
        ranges.put_u32(2);
        manifest.descriptor.range.encode(&mut ranges);
        KeyRange::prefix("q").encode(&mut ranges);
    }
    let format = if ranges.is_empty() { 1 } else { 2 };
    records::seal_as(&mut record, &key, format, |out| {
        out.put_bytes_prefixed(&manifest.encode());
        out.put_bytes_prefixed(b"staged");
        out.put_u64(s.number(21));
        (0..3).for_each(|_| out.put_u64(s.number(3)));
        out.put_slice(&ranges);
    });
    set(engine, Family::State, &key, &record);
}

fn sealed(engine: &MemoryEngine, family: Family, key: &[u8], body: &[u8]) {
    let mut record = Vec::new();
    records::seal(&mut record, key, |out| out.extend_from_slice(body));
    set(engine, family, key, &record);
}

fn set(engine: &MemoryEngine, family: Family, key: &[u8], record: &[u8]) {
    canonical(key, &Bytes::copy_from_slice(record));
    let mut batch = engine.batch();
    batch.put(family, key, record);
    engine.write(batch, true).expect("memory does not fail");
}

/// Whatever a record can be read as, it is written as the same bytes.
fn canonical(key: &[u8], record: &Bytes) {
    let mut again = Vec::new();
    let same = |again: &[u8]| {
        assert_eq!(again, &record[..], "a record is written otherwise than it was read")
    };
    if let Ok(entry) = records::decode_entry(key, record) {
        records::encode_entry(&mut again, key, &entry);
        same(&again);
    }
    if let Ok(hard_state) = records::decode_hard_state(key, record) {
        records::encode_hard_state(&mut again, key, hard_state);
        same(&again);
    }
    if let Ok(at) = records::decode_truncated(key, record) {
        records::encode_truncated(&mut again, key, at);
        same(&again);
    }
    if let Ok(descriptor) = records::decode_descriptor(key, record) {
        records::encode_descriptor(&mut again, key, &descriptor);
        // Behind checksum and format of the record stands the descriptor's own format. One of the
        // format before is written in the new one.
        if again[5] == record[5] {
            same(&again);
        }
    }
    if let Ok(replica) = records::decode_replica(key, record) {
        records::encode_replica(&mut again, key, replica);
        same(&again);
    }
    if let Ok(identity) = records::decode_identity(key, record) {
        records::encode_identity(&mut again, key, identity);
        same(&again);
    }
    if let Ok(applied) = records::decode_applied(record) {
        same(&records::encode_applied(applied));
    }
    // The expiry (bytes 9 to 17) is there for later, and not read yet.
    if let Ok((revision, value)) = records::decode_data(record) {
        records::encode_data(&mut again, revision, value);
        assert!(
            again[..9] == record[..9] && again[17..] == record[17..],
            "a data record is written otherwise than it was read"
        );
    }
}

/// Everything that reads without changing anything.
fn look(engine: &MemoryEngine) {
    let _ = (
        tombstones(engine),
        bootstrap_mark(engine),
        is_bootstrapped(engine),
        known_directories(engine),
    );
    if let Ok(routes) = routes(engine) {
        let _ = save_routes(engine, &routes);
    }
    for shard in SHARDS {
        let _ = (read::applied(engine, shard), log::entries(engine, shard, 0, 12, 200));
        let _ = log::entries(engine, shard, u64::MAX - 1, u64::MAX, 200);
        if let Ok(manifest) = snapshot::build(engine, &engine.view(), shard, Path::new("built")) {
            assert_eq!(
                SnapshotManifest::decode(manifest.encode()).as_ref(),
                Ok(&manifest),
                "a manifest changes on its way"
            );
            snapshot::verify(engine, &manifest, Path::new("built"))
                .expect("a snapshot is what was just built");
            let _ = read::hash(engine, &manifest.descriptor);
        }
    }
    for space in [KeySpace::User, KeySpace::Meta] {
        let _ = (read::get(engine, space, b"a"), read::revision(engine, space, b""));
        for reverse in [false, true] {
            scan(engine, space, reverse);
        }
    }
}

/// Walks over all keys page by page: every page moves on, and together they hold what one large
/// page holds.
fn scan(engine: &MemoryEngine, space: KeySpace, reverse: bool) {
    let page = |range, limit| {
        let scan = Scan { range, reverse, limit, bytes_max: 64, keys_only: limit == 2 };
        read::scan(engine, &scan, &KeyRange::all(), space)
    };
    let (mut rest, mut keys) = (Some(KeyRange::all()), Vec::new());
    while let Some(range) = rest {
        let Ok(page) = page(range.clone(), 2) else { return };
        assert!(page.rest.as_ref() != Some(&range), "a scan does not move on");
        assert!(keys.len() < 1000, "a scan never ends");
        keys.extend(page.items.into_iter().map(|item| item.key));
        rest = page.rest;
    }
    let in_order =
        keys.windows(2).all(|pair| if reverse { pair[0] > pair[1] } else { pair[0] < pair[1] });
    assert!(in_order, "a scan gives keys twice or out of order");
}

/// Starts a node on it, as far as it lets itself be started.
fn restart(engine: &MemoryEngine) {
    let Ok(found) = recover(engine) else { return };
    assert_eq!(
        recover(engine).as_ref().ok(),
        Some(&found),
        "recovering twice finds something else"
    );
    if overlap(&found) {
        // Two owners of a key must never both run: this one ends the process, on purpose.
        return;
    }
    let Ok(mut applier) = Applier::new(engine, &found) else { return };
    let committed: Vec<ApplyWork> = found.iter().filter_map(to_apply).collect();
    let identity = Identity { node: NodeId(1), incarnation: Incarnation(2) };
    let mut core = Node::new(
        CoreConfig::default(),
        identity,
        found,
        slog::Logger::root(slog::Discard, slog::o!()),
    );
    (0..40).for_each(|_| core.handle(Event::Tick));
    core.finish_pass();
    let _ = applier.apply(engine, committed);
}

/// What of a log is committed and not applied.
fn to_apply(found: &Recovered) -> Option<ApplyWork> {
    let committed =
        found.unapplied.iter().take_while(|entry| entry.at.index <= found.hard_state.commit);
    let entries: Vec<_> =
        committed.map(|entry| ApplyEntry { entry: entry.clone(), wants_results: true }).collect();
    (!entries.is_empty()).then_some(ApplyWork { shard: found.descriptor.id, entries })
}

fn overlap(found: &[Recovered]) -> bool {
    let users: Vec<_> =
        found.iter().filter(|r| !r.descriptor.id.is_meta()).map(|r| &r.descriptor.range).collect();
    (0..users.len()).any(|i| users[..i].iter().any(|other| other.overlaps(users[i])))
}
