//! Fuzzes what people write: configuration in TOML, names and ids. What is refused is refused in
//! words; what is taken must work.
//!
//! "Taken" is tried out: a core is made with the configuration and run for a while, since an option
//! that passes its check and then overflows a sum would end the process at an election, not at its
//! start.

use flotilla_node::core::{
    Ask, CoreConfig, Event, Identity, LogConfig, Node, RaftConfig, ReadsConfig, Ticket, Time,
};
use flotilla_ops::Limits;
use flotilla_router::{
    ClusterId, Command, Condition, Consistency, Descriptor, Epoch, Incarnation, KeyRange, NodeId,
    Op, Replica, ReplicaId, Role, ShardId,
};
use flotilla_storage::{MemoryEngine, bootstrap, recover};
use flotilla_transport::NodeName;

/// The tables that need no disk.
#[derive(serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
#[derive(Default)]
struct Tables {
    raft: RaftConfig,
    reads: ReadsConfig,
    log: LogConfig,
    limits: Limits,
}

/// Runs one input.
pub(crate) fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(name) = text.parse::<NodeName>() {
        assert_eq!(name.to_string(), text, "a node has two names");
    }
    if let Ok(cluster) = text.parse::<ClusterId>() {
        assert_eq!(cluster.to_string().parse(), Ok(cluster));
    }
    let Ok(tables) = toml::from_str::<Tables>(text) else { return };
    if tables.limits.check().is_ok() {
        let written = toml::to_string(&tables.limits).expect("limits have a form in TOML");
        assert_eq!(
            toml::from_str::<Limits>(&written).as_ref(),
            Ok(&tables.limits),
            "limits change when they are written"
        );
    }
    let config = CoreConfig::new(&tables.raft, &tables.reads, &tables.log, 1);
    if config.validate().is_ok() {
        try_out(config);
    }
}

/// A group of one elects itself, takes a write and a read, and ticks on; a group of three calls
/// elections in vain.
fn try_out(config: CoreConfig) {
    let shard = |id: u64, start: &'static str, end: Option<&'static str>, nodes: u64| Descriptor {
        id: ShardId(id),
        range: KeyRange::new(start, end.map(Into::into)),
        epoch: Epoch { membership: 1, range: 1 },
        replicas: (1..=nodes)
            .map(|node| Replica {
                id: ReplicaId(id * 10 + node),
                node: NodeId(node),
                role: Role::Voter,
            })
            .collect(),
    };
    let engine = MemoryEngine::new();
    let shards = [shard(2, "", Some("m"), 1), shard(3, "m", None, 3)];
    bootstrap(&engine, &shards, NodeId(1), &[]).expect("memory does not fail");
    let found = recover(&engine).expect("what was just written is in order");
    let identity = Identity { node: NodeId(1), incarnation: Incarnation(1) };
    let mut core =
        Node::new(config, identity, found, slog::Logger::root(slog::Discard, slog::o!()));
    let mut writes = std::collections::VecDeque::new();
    for round in 0..40u64 {
        core.handle(Event::Clock { now: Time::from_millis(round * 100) });
        core.handle(Event::Tick);
        if round == 20 {
            let command =
                Command::new(Op::Put { key: "k".into(), value: "v".into() }, Condition::Always);
            let (shard, deadline) = (ShardId(2), Time::from_secs(3));
            core.handle(Event::Ask {
                ticket: Ticket(1),
                ask: Ask::Write { shard, command },
                deadline,
            });
            core.handle(Event::Ask {
                ticket: Ticket(2),
                ask: Ask::Read { shard, consistency: Consistency::Lease },
                deadline,
            });
            core.handle(Event::Ask {
                ticket: Ticket(3),
                ask: Ask::Transfer { shard, to: NodeId(1) },
                deadline,
            });
        }
        for effect in core.finish_pass() {
            if let flotilla_node::core::Effect::Persist { write, .. } = effect {
                writes.push_back(write);
            }
        }
        if let Some(write) = writes.pop_front() {
            core.handle(Event::Persisted { write });
        }
    }
}
