//! The configuration of a node: one TOML file, every key also a flag, unknown keys refused.
//!
//! `raft.election_ticks = 12` in the file is `--raft-election-ticks 12` on the command line, which
//! wins. `flotilla start --print-config` shows what is in force, as a file that can be used again.
//! `read` makes a configuration of a file and flags, `check` refuses what can't be meant.

mod check;
mod read;
#[cfg(test)]
mod tests;

use crate::core::{CoreConfig, LogConfig, RaftConfig, ReadsConfig};
use flotilla_ops::logging::Format;
use flotilla_ops::{Limits, Pages};
use flotilla_router::{ClusterId, NodeId};
use flotilla_storage::RocksOptions;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use check::fits_the_disk;
pub use read::flag;

/// Everything that a node is told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// This node's id: 1 or more, its own for ever.
    pub node: NodeId,
    /// The cluster's id, as `flotilla cert ca` printed it.
    pub cluster: ClusterId,
    /// The folder of its data.
    pub data: PathBuf,
    /// Where it serves HTTP.
    pub http: SocketAddr,
    /// Host names that clients may ask by. Loopback names, names without a dot and, except on a
    /// loopback address, IP addresses are served in any case; where this is empty, an address that
    /// is no loopback one serves every name.
    #[serde(default)]
    pub http_hosts: Vec<String>,
    /// Origins, such as https://console.example.com, whose web pages may send requests and see the
    /// answers. Other pages are refused.
    #[serde(default)]
    pub http_origins: Vec<String>,
    /// Where `/livez`, `/readyz` and `/metrics` are served besides, on an address of their own, to
    /// 32 connections at a time; nowhere where empty.
    #[serde(default)]
    pub metrics_http: String,
    /// Where other nodes reach it, over QUIC.
    pub quic: SocketAddr,
    /// A file to keep the process id in; none where empty.
    #[serde(default)]
    pub pid_file: PathBuf,
    /// Threads for HTTP; QUIC has half as many of its own, one at least. By default as many as
    /// there are cores, but 2 to 8.
    #[serde(default = "default_threads")]
    pub threads: usize,
    /// How long a shutdown may take: leadership handed over, requests in flight answered.
    #[serde(default = "default_grace", with = "humantime_serde")]
    pub shutdown_grace: Duration,
    /// The certificates.
    pub tls: TlsConfig,
    /// Every node of the cluster, this one included.
    pub peers: Vec<PeerConfig>,
    /// What a new cluster starts with. The same on each of its first nodes; ignored once the data
    /// folder is in use. It was called `founding` once, and files that say so are read.
    #[serde(default)]
    pub bootstrap: BootstrapConfig,
    /// Elections, replication, and what may be in flight.
    #[serde(default)]
    pub raft: RaftConfig,
    /// How reads are done.
    #[serde(default)]
    pub reads: ReadsConfig,
    /// How much log is kept.
    #[serde(default)]
    pub log: LogConfig,
    /// Disk and memory.
    #[serde(default)]
    pub storage: StorageConfig,
    /// The connections between nodes.
    #[serde(default)]
    pub transport: TransportConfig,
    /// What one client, and all together, may ask for.
    #[serde(default)]
    pub limits: Limits,
    /// What is logged.
    #[serde(default)]
    pub logging: LoggingConfig,
}

fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 8))
}

fn default_grace() -> Duration {
    Duration::from_secs(10)
}

/// The `[tls]` table. `flotilla cert` makes all three files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// The cluster's certificate authority.
    pub ca: PathBuf,
    /// This node's certificate.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// One `[[peers]]` table: a node of the cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerConfig {
    /// Its id.
    pub id: NodeId,
    /// Where it is reached over QUIC: host and port.
    pub quic: String,
    /// Where it serves HTTP, for people who look at the list of nodes.
    #[serde(default)]
    pub http: Option<String>,
}

/// The `[bootstrap]` table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BootstrapConfig {
    /// How many shards the key space is cut into.
    pub shards: usize,
    /// On how many nodes each is kept: at most as many as there are, which is also the default
    /// where there are fewer than 3.
    pub replicas: usize,
}

impl Default for BootstrapConfig {
    fn default() -> Self {
        Self { shards: 8, replicas: 3 }
    }
}

/// The `[storage]` table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StorageConfig {
    /// Memory for blocks read from files.
    pub block_cache_bytes: usize,
    /// Size at which a memtable of the log is flushed.
    pub log_memtable_bytes: usize,
    /// Size at which a memtable of the data is flushed.
    pub data_memtable_bytes: usize,
    /// Memtables of one family, the ones being flushed included.
    pub memtables_max: i32,
    /// Size of the write-ahead log beyond which what holds it back is flushed.
    pub wal_bytes_max: u64,
    /// Files kept open.
    pub open_files_max: i32,
    /// Threads for flushes and compactions.
    pub background_jobs: i32,
    /// Bytes that stay free on the disk, besides what is still to be written: below, puts are
    /// refused and deletes taken. 0 for a tenth of the disk, 64 MiB to 1 GiB.
    pub reserve_bytes: u64,
}

impl Default for StorageConfig {
    fn default() -> Self {
        let rocks = RocksOptions::default();
        Self {
            block_cache_bytes: rocks.block_cache_bytes,
            log_memtable_bytes: rocks.log_memtable_bytes,
            data_memtable_bytes: rocks.data_memtable_bytes,
            memtables_max: rocks.memtables_max,
            wal_bytes_max: rocks.wal_bytes_max,
            open_files_max: rocks.open_files_max,
            background_jobs: rocks.background_jobs,
            reserve_bytes: 0,
        }
    }
}

/// The `[transport]` table. `raft.inflight_bytes_max` bounds each lane's outbox.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TransportConfig {
    /// Streams for the log to each node.
    pub append_lanes: u8,
    /// How often a quiet connection says that it is alive.
    #[serde(with = "humantime_serde")]
    pub keep_alive: Duration,
    /// After how long a silence a node counts as lost.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
    /// How fast snapshots leave and come in.
    pub snapshot_bytes_per_second: u64,
    /// Snapshots that may come in at a time.
    pub snapshots_at_once: usize,
}

impl Default for TransportConfig {
    fn default() -> Self {
        let transport = flotilla_transport::Config::default();
        Self {
            append_lanes: transport.append_lanes,
            keep_alive: transport.keep_alive,
            idle_timeout: transport.idle_timeout,
            snapshot_bytes_per_second: transport.snapshot_bytes_per_second,
            snapshots_at_once: transport.snapshots_at_once,
        }
    }
}

/// The `[logging]` table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoggingConfig {
    /// `text` or `json`.
    pub format: Format,
    /// What is logged, such as `info` or `warn,flotilla_node=debug`. The environment variable
    /// FLOTILLA_LOG wins.
    pub filter: String,
}

impl Default for LoggingConfig {
    fn default() -> Self {
        Self { format: Format::Text, filter: "info".into() }
    }
}

/// A complaint about the configuration: which part, and what is allowed.
#[derive(Debug, thiserror::Error)]
#[error("configuration: {0}")]
pub struct ConfigError(String);

impl ConfigError {
    /// A complaint, which begins with the key.
    pub fn new(why: String) -> Self {
        Self(why)
    }
}

impl Config {
    /// Reads the file, if there is one, and puts flags over it: pairs of a dotted key and a value,
    /// text as it is, all else as in TOML.
    pub fn load(file: Option<&Path>, flags: &[(String, String)]) -> Result<Self, ConfigError> {
        read::load(file, flags)
    }

    /// The keys that are paths.
    fn paths(&mut self) -> [(&'static str, &mut PathBuf); 5] {
        [
            ("data", &mut self.data),
            ("pid_file", &mut self.pid_file),
            ("tls.ca", &mut self.tls.ca),
            ("tls.cert", &mut self.tls.cert),
            ("tls.key", &mut self.tls.key),
        ]
    }

    /// Which hosts and web pages are served.
    pub fn pages(&self) -> Result<Pages, String> {
        Pages::new(&self.http_hosts, &self.http_origins)
    }

    /// What the core is told.
    pub fn core(&self) -> CoreConfig {
        CoreConfig::new(&self.raft, &self.reads, &self.log, self.cluster.0)
    }

    /// What the storage engine is told.
    pub fn rocks(&self) -> RocksOptions {
        let StorageConfig { block_cache_bytes, log_memtable_bytes, data_memtable_bytes, .. } =
            self.storage;
        RocksOptions {
            block_cache_bytes,
            log_memtable_bytes,
            data_memtable_bytes,
            memtables_max: self.storage.memtables_max,
            wal_bytes_max: self.storage.wal_bytes_max,
            open_files_max: self.storage.open_files_max,
            background_jobs: self.storage.background_jobs,
            ..RocksOptions::default()
        }
    }

    /// What the transport is told.
    pub fn transport(&self) -> flotilla_transport::Config {
        flotilla_transport::Config {
            listen: self.quic,
            peers: self
                .peers
                .iter()
                .filter(|p| p.id != self.node)
                .map(|p| (p.id, p.quic.clone()))
                .collect(),
            append_lanes: self.transport.append_lanes,
            outbox_bytes_max: self.raft.inflight_bytes_max as usize,
            keep_alive: self.transport.keep_alive,
            idle_timeout: self.transport.idle_timeout,
            snapshot_bytes_per_second: self.transport.snapshot_bytes_per_second,
            snapshots_at_once: self.transport.snapshots_at_once,
            ..flotilla_transport::Config::default()
        }
    }

    /// A complete configuration as a file.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("every field has a form in TOML")
    }

    /// A configuration of node 1 of a cluster of three on this machine, with defaults for all else.
    /// What the sample file and the list of flags are made of.
    pub fn sample() -> Self {
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let (http, quic) = (at(7001), at(7101));
        let peer = |i: u16| PeerConfig {
            id: NodeId(i.into()),
            quic: at(7100 + i).to_string(),
            http: Some(at(7000 + i).to_string()),
        };
        Self {
            node: NodeId(1),
            cluster: ClusterId(1),
            data: "data".into(),
            http,
            http_hosts: Vec::new(),
            http_origins: Vec::new(),
            metrics_http: String::new(),
            quic,
            pid_file: PathBuf::new(),
            threads: default_threads(),
            shutdown_grace: default_grace(),
            tls: TlsConfig { ca: "ca.pem".into(), cert: "node.pem".into(), key: "node.key".into() },
            peers: (1..=3).map(peer).collect(),
            bootstrap: BootstrapConfig::default(),
            raft: RaftConfig::default(),
            reads: ReadsConfig::default(),
            log: LogConfig::default(),
            storage: StorageConfig::default(),
            transport: TransportConfig::default(),
            limits: Limits::default(),
            logging: LoggingConfig::default(),
        }
    }

    /// Every key of the configuration, dotted, with its default as it stands in TOML.
    pub fn keys() -> Vec<(String, String)> {
        fn walk(prefix: &str, table: &toml::Table, keys: &mut Vec<(String, String)>) {
            for (name, value) in table {
                let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                match value {
                    toml::Value::Table(inner) => walk(&key, inner, keys),
                    other => keys.push((key, other.to_string())),
                }
            }
        }
        let mut keys = Vec::new();
        let table = toml::Table::try_from(Self::sample()).expect("every field has a form in TOML");
        walk("", &table, &mut keys);
        keys
    }
}
