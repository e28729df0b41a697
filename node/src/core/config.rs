//! The core's options: every knob of etcd's raft and of raft-rs that an operator may want, with
//! production defaults.
//!
//! Ticks are the core's only clock for elections; the shell gives them, `raft.tick_ms` apart.

use super::time::Time;
use flotilla_router::sizes::{COMMAND_BYTES_MAX, FRAME_BYTES_MAX};
use flotilla_router::{Incarnation, NodeId};
use serde::{Deserialize, Serialize};

/// A day of the longest ticks. Sums and products of election timeouts stay far from overflowing.
const ELECTION_TICKS_MAX: usize = 10_000;
/// More than any disk or memory has; sums of two such limits can't overflow.
const BYTES_MAX: u64 = 1 << 50;
/// raft-rs makes room for as many messages as may be in flight, for every follower of a group.
const INFLIGHT_MAX: usize = 1 << 16;

/// Who this node is.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// The node.
    pub node: NodeId,
    /// Its present life. Part of every read context, so that none is ever used twice.
    pub incarnation: Incarnation,
}

/// The `[raft]` table: how groups elect, replicate and bound what is in flight.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RaftConfig {
    /// Milliseconds of a tick, the clock of elections and heartbeats.
    pub tick_ms: u64,
    /// Ticks without a word from the leader after which a follower may call an election; the actual
    /// timeout is spread over one to two times this. More than `heartbeat_ticks`.
    pub election_ticks: usize,
    /// Ticks between a leader's heartbeats. At least 1.
    pub heartbeat_ticks: usize,
    /// A candidate asks first whether it could win, so that a node that comes back from a partition
    /// does not depose a leader.
    pub pre_vote: bool,
    /// A leader that hears from no quorum for an election timeout steps down.
    pub check_quorum: bool,
    /// Bytes of entries in one append message; a larger single entry still goes as one. 0 would
    /// mean one entry per message, and is refused; so is more than half of what a frame between
    /// nodes may have (16 MiB).
    pub message_bytes_max: u64,
    /// Bytes of committed entries handed to apply at once, per group and pass.
    pub committed_bytes_per_ready_max: u64,
    /// Bytes of entries that a leader may have proposed and not yet committed, per group. Further
    /// commands wait.
    pub uncommitted_bytes_max: u64,
    /// Append messages in flight to one follower of one group.
    pub inflight_messages_max: usize,
    /// Bytes queued for one peer and lane; when it is full, messages are dropped and the peer is
    /// reported unreachable. Of it, half may be on its way to a peer unacknowledged, an eighth to
    /// one follower of a group, and a quarter proposed on this node and not yet applied, of which
    /// one shard takes no more than it leaves to the others. No less than a frame (16 MiB).
    pub inflight_bytes_max: u64,
    /// Bytes of commands that become one log entry. A larger single command still becomes one. At
    /// most half of a frame (8 MiB).
    pub entry_bytes_max: u64,
    /// Writes to the log that may be under way at once; commands gather while all are.
    pub inflight_writes_max: usize,
    /// Bytes of commands that may wait to be proposed on this node, of which one shard takes no
    /// more than it leaves to the others; beyond, they are refused as too much in flight, and so is
    /// what would wait for more than a third of its time at the pace of the last moments.
    pub waiting_bytes_max: u64,
    /// Moves leadership to nodes that lead clearly fewer shards.
    pub balance_leaders: bool,
}

impl Default for RaftConfig {
    fn default() -> Self {
        Self {
            tick_ms: 50,
            election_ticks: 12,
            heartbeat_ticks: 3,
            pre_vote: true,
            check_quorum: true,
            message_bytes_max: 1 << 20,
            committed_bytes_per_ready_max: 4 << 20,
            uncommitted_bytes_max: 64 << 20,
            inflight_messages_max: 256,
            inflight_bytes_max: 64 << 20,
            entry_bytes_max: 256 << 10,
            inflight_writes_max: 1,
            waiting_bytes_max: 64 << 20,
            balance_leaders: true,
        }
    }
}

/// How a read that does not say otherwise is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReadMode {
    /// Confirmed by a quorum.
    #[default]
    Linearizable,
    /// Vouched for by the leader's clock, where leases are on.
    Lease,
    /// What the nearest replica has.
    Stale,
}

impl From<ReadMode> for flotilla_router::Consistency {
    fn from(mode: ReadMode) -> Self {
        match mode {
            ReadMode::Linearizable => Self::Linearizable,
            ReadMode::Lease => Self::Lease,
            ReadMode::Stale => Self::Stale { age_max: None },
        }
    }
}

/// The `[reads]` table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReadsConfig {
    /// What a request without `consistency=` gets.
    pub default_consistency: ReadMode,
    /// Whether leaders hold leases. Without, `consistency=lease` is answered through a quorum. The
    /// same on every node.
    pub lease: bool,
    /// How much faster another node's clock may run than this one's, in percent. A lease is shorter
    /// by as much, and what other clocks have measured counts for as much less where the age of a
    /// stale read is shown.
    pub clock_drift_percent_max: u32,
}

impl Default for ReadsConfig {
    fn default() -> Self {
        Self {
            default_consistency: ReadMode::Linearizable,
            lease: false,
            clock_drift_percent_max: 10,
        }
    }
}

/// The `[log]` table: how much log is kept on disk and in memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// Bytes of log that one shard keeps before its front is truncated; a follower that needs more
    /// gets a snapshot.
    pub bytes_per_shard_max: u64,
    /// Bytes of log that all shards of the node keep together; with many shards each keeps less
    /// than the above, but for one whose followers need more while the others leave room.
    pub bytes_max: u64,
    /// Bytes of entries kept in memory over all shards, beyond those that are not yet applied.
    pub cache_bytes_max: u64,
    /// Bytes of entries that are committed and not yet applied, over all shards; beyond, nothing is
    /// proposed, and appends from leaders are turned away, until apply has caught up. One shard may
    /// have as many as it leaves to the others, half of them at most.
    pub unapplied_bytes_max: u64,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            bytes_per_shard_max: 64 << 20,
            bytes_max: 4 << 30,
            cache_bytes_max: 128 << 20,
            unapplied_bytes_max: 512 << 20,
        }
    }
}

/// Everything that the core is told at its start.
#[derive(Clone, Debug, PartialEq)]
pub struct CoreConfig {
    /// The `[raft]` table.
    pub raft: RaftConfig,
    /// The `[reads]` table.
    pub reads: ReadsConfig,
    /// The `[log]` table.
    pub log: LogConfig,
    /// What all of the core's randomness is made of.
    pub seed: u64,
    /// The largest frame that reaches another node. No option: the transport's constant, which the
    /// simulation draws smaller.
    pub frame_bytes_max: usize,
}

impl Default for CoreConfig {
    fn default() -> Self {
        Self {
            raft: RaftConfig::default(),
            reads: ReadsConfig::default(),
            log: LogConfig::default(),
            seed: 0,
            frame_bytes_max: FRAME_BYTES_MAX,
        }
    }
}

/// A limit of the configuration: what it is, and between what it may be.
pub(crate) struct Limit {
    /// Its key.
    pub(crate) name: &'static str,
    /// What it is.
    pub(crate) value: u64,
    /// The least that it may be, with the others as they are.
    pub(crate) least: u64,
    /// The most.
    pub(crate) most: u64,
    /// Sets it. Only the simulation does: it draws limits.
    #[cfg_attr(not(any(test, feature = "sim")), allow(dead_code))]
    pub(crate) set: fn(&mut CoreConfig, u64),
}

/// The part of a disk that the logs of all shards may take at most, and the least that they have.
const LOG_PART: u64 = 16;
const LOG_BYTES_MIN: u64 = 16 << 20;

impl CoreConfig {
    /// The same, made to fit a disk of this size: on a small one the logs leave room for the data.
    pub fn fit(mut self, capacity_bytes: u64) -> Self {
        self.log.bytes_max = self.log.bytes_max.min((capacity_bytes / LOG_PART).max(LOG_BYTES_MIN));
        self.log.bytes_per_shard_max = self.log.bytes_per_shard_max.min(self.log.bytes_max);
        self
    }

    /// What the tables of a file say, with a seed.
    pub fn new(raft: &RaftConfig, reads: &ReadsConfig, log: &LogConfig, seed: u64) -> Self {
        Self { raft: raft.clone(), reads: reads.clone(), log: log.clone(), seed, ..Self::default() }
    }

    /// Checks what types can't: each complaint names the key, the value and what is allowed.
    pub fn validate(&self) -> Result<(), String> {
        let raft = &self.raft;
        if !(5..=10_000).contains(&raft.tick_ms) {
            return Err(format!("raft.tick_ms is {}; 5 to 10000 are allowed", raft.tick_ms));
        }
        if !(1..ELECTION_TICKS_MAX).contains(&raft.heartbeat_ticks) {
            return Err(format!(
                "raft.heartbeat_ticks is {}; 1 to {} are allowed",
                raft.heartbeat_ticks,
                ELECTION_TICKS_MAX - 1
            ));
        }
        if raft.election_ticks <= raft.heartbeat_ticks {
            return Err(format!(
                "raft.election_ticks is {}; it must be more than raft.heartbeat_ticks ({}), ten \
                 times as much is usual",
                raft.election_ticks, raft.heartbeat_ticks
            ));
        }
        if raft.election_ticks > ELECTION_TICKS_MAX {
            return Err(format!(
                "raft.election_ticks is {}; at most {ELECTION_TICKS_MAX}",
                raft.election_ticks
            ));
        }
        for Limit { name, value, least, most, .. } in self.limits() {
            if value < least {
                return Err(format!("{name} is {value}; it must be at least {least}"));
            }
            if value > most {
                return Err(format!("{name} is {value}; at most {most} is allowed"));
            }
        }
        if self.reads.lease && !raft.check_quorum {
            return Err(
                "reads.lease is on and raft.check_quorum is off; a lease rests on followers that \
                 stand by their leader"
                    .into(),
            );
        }
        if self.reads.clock_drift_percent_max > 50 {
            return Err(format!(
                "reads.clock_drift_percent_max is {}; at most 50",
                self.reads.clock_drift_percent_max
            ));
        }
        Ok(())
    }

    /// Every limit on what a node may hold or send, in an order in which each may be set to its
    /// least: what it depends on comes first.
    pub(crate) fn limits(&self) -> [Limit; 12] {
        let (raft, log) = (&self.raft, &self.log);
        let (size, frame) = (raft.message_bytes_max, self.frame_bytes_max as u64);
        let bytes = |name, value, least, set| Limit { name, value, least, most: BYTES_MAX, set };
        // Half of a frame, so that what stands around the entries, and a frame begun before, have
        // room.
        let half = |limit| Limit { most: frame / 2, ..limit };
        let count = |name, value, set| Limit {
            name,
            value: value as u64,
            least: 1,
            most: INFLIGHT_MAX as u64,
            set,
        };
        [
            half(bytes("raft.message_bytes_max", size, 1, |c, n| c.raft.message_bytes_max = n)),
            half(bytes("raft.entry_bytes_max", raft.entry_bytes_max, 1, |c, n| {
                c.raft.entry_bytes_max = n
            })),
            bytes(
                "raft.committed_bytes_per_ready_max",
                raft.committed_bytes_per_ready_max,
                1,
                |c, n| {
                    c.raft.committed_bytes_per_ready_max = n;
                },
            ),
            bytes(
                "raft.uncommitted_bytes_max",
                raft.uncommitted_bytes_max,
                size.max(64 << 10),
                |c, n| {
                    c.raft.uncommitted_bytes_max = n;
                },
            ),
            bytes("raft.inflight_bytes_max", raft.inflight_bytes_max, frame, |c, n| {
                c.raft.inflight_bytes_max = n
            }),
            bytes(
                "raft.waiting_bytes_max",
                raft.waiting_bytes_max,
                raft.entry_bytes_max,
                |c, n| {
                    c.raft.waiting_bytes_max = n;
                },
            ),
            count("raft.inflight_messages_max", raft.inflight_messages_max, |c, n| {
                c.raft.inflight_messages_max = n as usize
            }),
            count("raft.inflight_writes_max", raft.inflight_writes_max, |c, n| {
                c.raft.inflight_writes_max = n as usize
            }),
            bytes("log.bytes_per_shard_max", log.bytes_per_shard_max, 1 << 16, |c, n| {
                c.log.bytes_per_shard_max = n
            }),
            bytes("log.bytes_max", log.bytes_max, log.bytes_per_shard_max, |c, n| {
                c.log.bytes_max = n
            }),
            bytes("log.unapplied_bytes_max", log.unapplied_bytes_max, 64 << 10, |c, n| {
                c.log.unapplied_bytes_max = n
            }),
            bytes("log.cache_bytes_max", log.cache_bytes_max, 0, |c, n| c.log.cache_bytes_max = n),
        ]
    }

    /// How long a tick lasts.
    pub fn tick(&self) -> Time {
        Time::from_millis(self.raft.tick_ms)
    }

    /// How long a follower waits for its leader, at least.
    pub(crate) fn election_timeout(&self) -> Time {
        self.tick() * u32::try_from(self.raft.election_ticks).unwrap_or(u32::MAX)
    }

    /// After how long without a commit a shard that has something to commit stands still: longer
    /// than the way to a quorum and back, which may take an election timeout.
    pub(crate) fn stand_still_patience(&self) -> Time {
        self.election_timeout() * 2
    }

    /// How long a leader's lease lasts from the moment at which the heartbeats that renew it were
    /// sent; `None` where leases are off. Followers stand by their leader for at least
    /// `election_ticks - 1` ticks after they heard it.
    pub(crate) fn lease(&self) -> Option<Time> {
        let ticks = u32::try_from(self.raft.election_ticks.saturating_sub(2)).unwrap_or(0);
        self.reads.lease.then(|| {
            self.tick() * ticks * (100 - self.reads.clock_drift_percent_max.min(100)) / 100
        })
    }

    /// What leases rest on, where they are on: the length of a tick in milliseconds, ticks of an
    /// election timeout, percent of drift. A leader counts on what its followers promise by theirs,
    /// so all nodes must have the same.
    pub fn lease_terms(&self) -> Option<(u64, u64, u32)> {
        let raft = &self.raft;
        self.reads.lease.then_some((
            raft.tick_ms,
            raft.election_ticks as u64,
            self.reads.clock_drift_percent_max,
        ))
    }

    /// What may be on its way to one follower of one group.
    pub(crate) fn flow_bytes_max(&self) -> u64 {
        self.raft.inflight_bytes_max / 8
    }

    /// What one append may have at most.
    pub(crate) fn append_bytes_max(&self) -> u64 {
        let command = (COMMAND_BYTES_MAX as u64).min(self.frame_bytes_max as u64 / 2);
        self.raft.message_bytes_max.max(self.raft.entry_bytes_max).max(command)
    }

    /// How many messages may be in flight to a follower to which none is.
    pub(crate) fn inflight_msgs_at_first(&self) -> usize {
        let room =
            usize::try_from(self.flow_bytes_max() / self.append_bytes_max()).unwrap_or(usize::MAX);
        room.clamp(1, self.raft.inflight_messages_max)
    }

    /// raft-rs's own configuration for one replica.
    pub(crate) fn raft(&self, replica: flotilla_router::ReplicaId, applied: u64) -> raft::Config {
        raft::Config {
            id: replica.0,
            election_tick: self.raft.election_ticks,
            heartbeat_tick: self.raft.heartbeat_ticks,
            applied,
            max_size_per_msg: self.raft.message_bytes_max,
            max_inflight_msgs: self.inflight_msgs_at_first(),
            check_quorum: self.raft.check_quorum,
            pre_vote: self.raft.pre_vote,
            max_uncommitted_size: self.raft.uncommitted_bytes_max,
            max_committed_size_per_ready: self.raft.committed_bytes_per_ready_max,
            // Leases are ours: raft-rs's lease mode checks no clock.
            read_only_option: raft::ReadOnlyOption::Safe,
            batch_append: true,
            ..raft::Config::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_each_bad_value_is_named() {
        CoreConfig::default().validate().unwrap();
        type Spoil = fn(&mut CoreConfig);
        let bad: [(&str, Spoil); 12] = [
            ("raft.message_bytes_max", |c| c.raft.message_bytes_max = 9 << 20),
            ("raft.entry_bytes_max", |c| c.raft.entry_bytes_max = 9 << 20),
            ("raft.inflight_bytes_max", |c| c.raft.inflight_bytes_max = 2 << 20),
            ("raft.heartbeat_ticks", |c| c.raft.heartbeat_ticks = 0),
            ("raft.election_ticks", |c| c.raft.election_ticks = c.raft.heartbeat_ticks),
            ("raft.election_ticks", |c| c.raft.election_ticks = usize::MAX / 2 + 1),
            ("raft.inflight_messages_max", |c| c.raft.inflight_messages_max = usize::MAX),
            ("log.cache_bytes_max", |c| c.log.cache_bytes_max = u64::MAX),
            ("raft.message_bytes_max", |c| c.raft.message_bytes_max = 0),
            ("raft.inflight_messages_max", |c| c.raft.inflight_messages_max = 0),
            ("raft.uncommitted_bytes_max", |c| c.raft.uncommitted_bytes_max = 1),
            ("reads.lease", |c| {
                c.reads.lease = true;
                c.raft.check_quorum = false;
            }),
        ];
        for (name, spoil) in bad {
            let mut config = CoreConfig::default();
            spoil(&mut config);
            assert!(config.validate().unwrap_err().contains(name), "{name}");
        }
    }
}
