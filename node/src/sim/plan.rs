//! What a seed stands for: the cluster, its configuration, its hardware, and how badly it is
//! treated.
//!
//! Every kind of fault is switched off in some seeds. A run that suffers everything at once gets
//! nowhere; many runs that each suffer a few things, hard, get everywhere (swarm testing).

use crate::core::CoreConfig;
use crate::rng::Rng;
use flotilla_router::{Descriptor, Epoch, NodeId, ReplicaId, Role, ShardId};

/// One simulated millisecond, in nanoseconds.
pub(crate) const MS: u64 = 1_000_000;
/// One simulated second.
pub(crate) const SECOND: u64 = 1000 * MS;

/// The smallest frame that is drawn: the largest value of any client takes less than half of it.
const FRAME_BYTES_MIN: usize = 48 << 10;

/// What goes wrong, and how often.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// One process dies; of its unsynced writes none, some or all survive.
    Crash,
    /// All nodes, or all but one, lose power at the same moment.
    PowerLoss,
    /// One node is cut off from all others, both ways.
    Isolate,
    /// One node is cut off; what it was told just before arrives late, when the others have gone on
    /// without it.
    Echo,
    /// The nodes fall into two halves.
    Split,
    /// One direction between two nodes, or from one node to all, loses everything.
    OneWay,
    /// Each node reaches only its neighbours.
    Ring,
    /// One direction between two nodes stands still; what was sent arrives later.
    Clog,
    /// One kind of storage work on one node stands still.
    SlowDisk,
    /// A process stands still while time goes on.
    Pause,
    /// Somebody orders a shard to be handed over.
    Transfer,
    /// Somebody orders the members of a shard to change.
    Members,
    /// A node is told to drain, and ends soon after.
    Drain,
    /// A disk is nearly full, for a while.
    DiskFull,
    /// The transport reports a node as unreachable.
    Unreachable,
    /// Single directions between the replicas of one shard stand still in turn, for a while:
    /// leaders are deposed, and old words arrive.
    Stutter,
    /// A follower that stands by its leader dies and is back at once; its leader it does not hear,
    /// but somebody else who wants to lead.
    Startle,
}

impl Fault {
    /// All of them.
    pub(crate) const ALL: [Self; 17] = [
        Self::Crash,
        Self::PowerLoss,
        Self::Isolate,
        Self::Echo,
        Self::Split,
        Self::OneWay,
        Self::Ring,
        Self::Clog,
        Self::SlowDisk,
        Self::Pause,
        Self::Transfer,
        Self::Members,
        Self::Drain,
        Self::DiskFull,
        Self::Unreachable,
        Self::Stutter,
        Self::Startle,
    ];
}

/// One seed's cluster, and how it is treated. Times are in nanoseconds.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// How many nodes.
    pub(crate) nodes: u64,
    /// The shards as the cluster was bootstrapped with them.
    pub(crate) shards: Vec<Descriptor>,
    /// What every core is told.
    pub(crate) config: CoreConfig,
    /// How long faults and clients go on.
    pub(crate) fault_phase: u64,
    /// What a packet takes at least.
    pub(crate) latency: u64,
    /// How many of a hundred packets are lost, doubled, or late by a lot.
    pub(crate) loss_percent: u64,
    /// See above.
    pub(crate) duplicate_percent: u64,
    /// See above.
    pub(crate) late_percent: u64,
    /// What a synced write takes.
    pub(crate) fsync: u64,
    /// How far each node's clock runs ahead of, or behind, simulated time, in parts of a thousand.
    pub(crate) clock_permille: Vec<u64>,
    /// The faults that happen in this seed.
    pub(crate) faults: Vec<Fault>,
    /// The mean time between two of them.
    pub(crate) fault_every: u64,
    /// How many clients.
    pub(crate) clients: u64,
    /// How long a client thinks between two operations.
    pub(crate) think: u64,
    /// How many shards the clients fight over.
    pub(crate) hot_shards: u64,
    /// Bytes of some of the values.
    pub(crate) large_value_bytes: u64,
}

impl Plan {
    /// Draws the plan of a seed.
    pub(crate) fn draw(seed: u64, rng: &mut Rng) -> Self {
        let nodes = rng.pick(&[3, 3, 3, 3, 4, 5, 5, 6, 7]);
        let voters = rng.pick(&[3, 3, 3, 5]).min(nodes);
        let shards = descriptors(nodes, rng.pick(&[8, 8, 8, 8, 8, 12, 12, 16, 24, 64]), voters);
        let mut config = configured(seed, rng);
        // Leases and ages hold as long as clocks differ by no more than was allowed for.
        let (spread, drift) =
            if config.reads.lease { (40, 10) } else { rng.pick(&[(0, 0), (100, 20), (300, 50)]) };
        config.reads.clock_drift_percent_max = drift;
        let clock_permille =
            (0..nodes).map(|_| 1000 - spread + rng.below(2 * spread + 1)).collect();
        let latency = rng.pick(&LATENCIES);
        if latency > 20 * MS {
            // One entry per round trip would take minutes to catch up.
            config.raft.inflight_messages_max = 256;
            config.raft.message_bytes_max = config.raft.message_bytes_max.max(4 << 10);
        }
        let mut faults: Vec<_> = Fault::ALL.into_iter().filter(|_| rng.percent(45)).collect();
        if faults.is_empty() {
            faults.push(Fault::Crash);
        }
        Self {
            nodes,
            hot_shards: rng.within(1..=3),
            shards,
            config,
            fault_phase: rng.within(4..=9) * SECOND,
            latency,
            loss_percent: rng.pick(&[0, 0, 1, 5, 15, 30]),
            duplicate_percent: rng.pick(&[0, 0, 5, 20]),
            late_percent: rng.pick(&[0, 0, 2, 10]),
            fsync: rng.pick(&FSYNCS),
            clock_permille,
            faults,
            fault_every: rng.pick(&[300, 700, 1500]) * MS,
            clients: rng.within(3..=8),
            think: rng.pick(&[2, 10, 30]) * MS,
            large_value_bytes: rng.pick(&[0, 4 << 10, 16 << 10, 16 << 10]),
        }
    }
}

/// Packets take two and a half times as much at most: there and back again up to an election
/// timeout of 600 ms.
const LATENCIES: [u64; 9] = [MS / 10, MS / 10, MS / 2, MS, MS, 5 * MS, 20 * MS, 50 * MS, 110 * MS];
/// A synced write takes twice as much at most: up to an election timeout.
const FSYNCS: [u64; 8] = [MS / 5, MS / 5, MS, MS, 5 * MS, 20 * MS, 100 * MS, 300 * MS];

impl Plan {
    /// A shard as it was bootstrapped.
    pub(crate) fn shard(&self, id: ShardId) -> &Descriptor {
        self.shards
            .iter()
            .find(|descriptor| descriptor.id == id)
            .expect("shards come from the plan")
    }
}

/// `count` shards of neighbouring ranges, each on `voters` nodes, the first voter of each on
/// another node.
pub(crate) fn descriptors(nodes: u64, count: u64, voters: u64) -> Vec<Descriptor> {
    const FIRST: u64 = 2;
    let ranges = flotilla_router::range::initial_ranges(count as usize);
    ranges
        .into_iter()
        .zip(FIRST..)
        .map(|(range, id)| {
            let node = |place| NodeId((id - FIRST + place) % nodes + 1);
            let replica = |node: NodeId| flotilla_router::Replica {
                id: ReplicaId(id * 10 + node.0),
                node,
                role: Role::Voter,
            };
            let replicas = (0..voters).map(|place| replica(node(place))).collect();
            Descriptor {
                id: ShardId(id),
                range,
                epoch: Epoch { membership: 1, range: 1 },
                replicas,
            }
        })
        .collect()
}

fn configured(seed: u64, rng: &mut Rng) -> CoreConfig {
    let mut config = CoreConfig { seed, ..CoreConfig::default() };
    config.frame_bytes_max = rng.pick(&[FRAME_BYTES_MIN, FRAME_BYTES_MIN, 16 << 20]);
    let half = config.frame_bytes_max as u64 / 2;
    config.raft.inflight_writes_max = rng.pick(&[1, 1, 2, 4]);
    config.raft.message_bytes_max = rng.pick(&[4 << 10, half]);
    config.raft.inflight_messages_max = rng.pick(&[4, 256]);
    config.raft.entry_bytes_max = rng.pick(&[1 << 10, half.min(256 << 10)]);
    config.log.bytes_per_shard_max = rng.pick(&[64 << 10, 64 << 10, 300 << 10, 64 << 20]);
    config.log.cache_bytes_max = rng.pick(&[100 << 10, 128 << 20]);
    config.raft.balance_leaders = rng.percent(50);
    // Every limit goes down to its least: some of them in every seed, all of them in a few.
    let percent = rng.pick(&[10, 25, 25, 100]);
    for place in 0..config.limits().len() {
        let limit = &config.limits()[place];
        if rng.percent(percent) {
            (limit.set)(&mut config, limit.least);
        }
    }
    config.reads.lease = rng.percent(30);
    config
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn every_limit_is_drawn_down_to_its_least_and_not_always() {
        const SEEDS: u64 = 300;
        let mut least: BTreeMap<&str, u64> = BTreeMap::new();
        for seed in 0..SEEDS {
            let config = Plan::draw(seed, &mut Rng::new(seed)).config;
            config.validate().unwrap_or_else(|why| panic!("seed {seed}: {why}"));
            for limit in config.limits() {
                *least.entry(limit.name).or_default() += u64::from(limit.value == limit.least);
            }
        }
        for (name, seeds) in least {
            assert!(
                (SEEDS / 10..SEEDS).contains(&seeds),
                "{name} is at its least in {seeds} of {SEEDS} seeds"
            );
        }
    }

    /// What is drawn is what an operator may set: a new limit of the configuration must be drawn,
    /// too.
    #[test]
    fn every_option_that_limits_something_is_among_the_limits() {
        let config = CoreConfig::default();
        let tables = [
            ("raft", toml::Table::try_from(&config.raft)),
            ("log", toml::Table::try_from(&config.log)),
        ];
        let limits: Vec<_> = config.limits().iter().map(|limit| limit.name).collect();
        for (table, options) in tables {
            for option in options
                .expect("every option has a form in TOML")
                .keys()
                .filter(|key| key.contains("max"))
            {
                let name = format!("{table}.{option}");
                assert!(limits.contains(&name.as_str()), "{name} is never drawn");
            }
        }
    }
}
