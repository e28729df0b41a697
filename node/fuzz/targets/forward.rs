//! What a node does with a question that another node handed on, beside reading it: it is held to
//! bounds, gets a deadline, is looked up or becomes an entry and is applied, and what comes of it
//! leaves again in one frame.

use flotilla_router::call::{self, Forwarded};
use flotilla_router::command::PayloadBuilder;
use flotilla_router::sizes::{COMMAND_BYTES_MAX, FRAME_BYTES_MAX};
use flotilla_router::{
    Answer, Condition, Descriptor, Epoch, KeyRange, KeySpace, NodeId, Op, Refusal, Replica,
    ReplicaId, Reply, Request, Role, ShardId,
};
use flotilla_storage::{
    Applier, ApplyEntry, ApplyWork, EntryKind, INITIAL, LogEntry, LogPosition, MemoryEngine,
    bootstrap, read, recover,
};
use std::time::Instant;

const SHARD: ShardId = ShardId(2);
const NODE: NodeId = NodeId(1);

/// Does what a node does.
pub(crate) fn answer(forwarded: Forwarded) {
    let Ok(forwarded) = forwarded.checked() else { return };
    let now = Instant::now();
    assert!(forwarded.deadline(now) >= now);
    assert_eq!(
        forwarded.clone().checked().as_ref(),
        Ok(&forwarded),
        "what was in bounds is changed again"
    );
    let Some((engine, mut applier)) = bootstrapped() else { return };
    match &forwarded.request {
        Request::Get { key, .. } => {
            let found = read::get(&engine, KeySpace::User, key).expect("nothing is spoiled");
            leaves(
                found
                    .map_or(Answer::Missing, |(revision, value)| Answer::Value { value, revision }),
            );
        }
        Request::Scan { scan, .. } | Request::Part { scan, .. } => {
            let page = read::scan(&engine, scan, &KeyRange::all(), KeySpace::User)
                .expect("nothing is spoiled");
            assert!(
                page.rest.as_ref().is_none_or(|rest| *rest != scan.range),
                "a page after which as much is left"
            );
            leaves(Answer::Page(page));
        }
        Request::Write(command) => {
            assert!(command.encoded_bytes() <= COMMAND_BYTES_MAX);
            // A range is the only command with a condition that makes no sense; the core never
            // looks at it.
            let mut payload = PayloadBuilder::new(1, 0);
            payload.push(command);
            let at = LogPosition { index: INITIAL.index + 2, term: INITIAL.term };
            let entry = LogEntry {
                at,
                kind: EntryKind::Normal,
                data: payload.finish(),
                context: Default::default(),
            };
            let work = ApplyWork {
                shard: SHARD,
                entries: vec![ApplyEntry { entry, wants_results: true }],
            };
            let applied =
                applier.apply(&engine, vec![work]).expect("any command in bounds can be applied");
            let results = &applied[0].results[0].1;
            assert!(
                results.len() == 1 && results[0].fits(command),
                "{command:?} came to {results:?}"
            );
        }
        Request::Admin(_) => {}
    }
}

/// An answer fits into a frame, with what stands around it.
fn leaves(answer: Answer) {
    let response: Result<Reply, Refusal> =
        Ok(Reply { shard: SHARD, node: NODE, answer, staleness: None });
    assert!(call::encode(&response).len() + 64 <= FRAME_BYTES_MAX);
}

/// A shard of all keys, with one of them.
fn bootstrapped() -> Option<(MemoryEngine, Applier)> {
    let replicas = vec![Replica { id: ReplicaId(21), node: NODE, role: Role::Voter }];
    let descriptor = Descriptor {
        id: SHARD,
        range: KeyRange::all(),
        epoch: Epoch { membership: 1, range: 1 },
        replicas,
    };
    let engine = MemoryEngine::new();
    bootstrap(&engine, std::slice::from_ref(&descriptor), NODE, &[]).ok()?;
    let mut applier = Applier::new(&engine, &recover(&engine).ok()?).ok()?;
    let op = Op::Put { key: "k".into(), value: "v".into() };
    let mut payload = PayloadBuilder::new(1, 0);
    payload.push(&flotilla_router::Command::new(op, Condition::Always));
    let at = LogPosition { index: INITIAL.index + 1, term: INITIAL.term };
    let entry = LogEntry {
        at,
        kind: EntryKind::Normal,
        data: payload.finish(),
        context: Default::default(),
    };
    applier
        .apply(
            &engine,
            vec![ApplyWork {
                shard: SHARD,
                entries: vec![ApplyEntry { entry, wants_results: false }],
            }],
        )
        .ok()?;
    Some((engine, applier))
}
