//! What types can't say about a configuration: the least and the greatest value of every key, and
//! what must fit together.
//!
//! Each complaint begins with the key, tells its value, and what is allowed or what to do. What the
//! core alone can judge it judges itself
//! ([`CoreConfig::validate`](crate::core::CoreConfig::validate)), and so do the limits. The disk is
//! looked at only by [`fits_the_disk`], at a start.

use super::{Config, ConfigError, PeerConfig};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

/// How many nodes a configuration may name.
const NODES_MAX: usize = 1_000;
/// No disk and no memory has more.
const BYTES_MAX: u64 = 1 << 50;

impl Config {
    /// Refuses what can't be meant.
    pub(super) fn check(&self) -> Result<(), String> {
        self.check_node()?;
        self.check_peers()?;
        self.check_addresses()?;
        self.check_bootstrap()?;
        self.check_storage()?;
        self.check_transport()?;
        self.pages()?;
        self.metrics_address()?;
        self.limits.check().map_err(|why| format!("limits.{why}"))?;
        self.core().validate()
    }

    /// Where probes are served besides, if anywhere.
    pub fn metrics_address(&self) -> Result<Option<SocketAddr>, String> {
        let text = &self.metrics_http;
        if text.is_empty() {
            return Ok(None);
        }
        let address: SocketAddr = text.parse().map_err(|_| {
            format!(
                "metrics_http is {text:?}; an address and a port are allowed, such as \
                 127.0.0.1:7201"
            )
        })?;
        if address == self.http {
            return Err(format!(
                "metrics_http is {address}, and so is http; leave it out, or give it a port of its \
                 own"
            ));
        }
        Ok(Some(address))
    }

    fn check_node(&self) -> Result<(), String> {
        if self.node.0 == 0 {
            return Err("node is 0; ids start with 1".into());
        }
        let paths = [
            ("data", &self.data),
            ("tls.ca", &self.tls.ca),
            ("tls.cert", &self.tls.cert),
            ("tls.key", &self.tls.key),
        ];
        for (key, path) in paths {
            if path.as_os_str().is_empty() {
                return Err(format!("{key} is empty; it takes a path"));
            }
        }
        within("threads", self.threads as u64, 1, 256)?;
        between(
            "shutdown_grace",
            self.shutdown_grace,
            Duration::from_millis(100),
            Duration::from_secs(3600),
        )
    }

    fn check_peers(&self) -> Result<(), String> {
        if self.peers.len() > NODES_MAX {
            return Err(format!("peers are {}; at most {NODES_MAX}", self.peers.len()));
        }
        for (i, peer) in self.peers.iter().enumerate() {
            if peer.id.0 == 0 {
                return Err(format!("peers[{i}].id is 0; ids start with 1"));
            }
            reachable(&peer.quic).map_err(|why| {
                format!("peers[{i}].quic is {:?} for node {}: {why}", peer.quic, peer.id)
            })?;
            if let Some(http) = &peer.http {
                reachable(http).map_err(|why| {
                    format!("peers[{i}].http is {http:?} for node {}: {why}", peer.id)
                })?;
            }
            for other in &self.peers[..i] {
                if other.id == peer.id {
                    return Err(format!(
                        "peers[{i}].id is {}, which another one has; every node has an id of its \
                         own",
                        peer.id
                    ));
                }
                for (name, one, two) in [
                    ("quic", Some(&peer.quic), Some(&other.quic)),
                    ("http", peer.http.as_ref(), other.http.as_ref()),
                ] {
                    if let (Some(one), Some(two)) = (one, two)
                        && same_place(one, two)
                    {
                        return Err(format!(
                            "peers[{i}].{name} is {one:?} for node {}, and so it is for node {}; \
                             every node has an address of its own",
                            peer.id, other.id
                        ));
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether the others will look for this node where it is.
    fn check_addresses(&self) -> Result<(), String> {
        let Some(PeerConfig { quic, http, .. }) = self.peers.iter().find(|p| p.id == self.node)
        else {
            let ids: Vec<String> = self.peers.iter().map(|p| p.id.to_string()).collect();
            return Err(format!(
                "peers: node {} itself is not among them ({}); every node of the cluster stands \
                 there, this one too",
                self.node,
                ids.join(", ")
            ));
        };
        for (key, own, said) in
            [("quic", self.quic, Some(quic)), ("http", self.http, http.as_ref())]
        {
            if let Some(said) = said
                && !may_be_reached_at(own, said)
            {
                return Err(format!(
                    "{key} is {own}, and peers say {said:?} of this node; refused, because others \
                     would look for it in another place: write the same in both (or 0.0.0.0 as \
                     {key}, where an address in between is mapped to it)"
                ));
            }
        }
        Ok(())
    }

    fn check_bootstrap(&self) -> Result<(), String> {
        within("bootstrap.shards", self.bootstrap.shards as u64, 1, 100_000)?;
        let (replicas, nodes) = (self.bootstrap.replicas, self.peers.len());
        if replicas == 0 {
            return Err("bootstrap.replicas is 0; at least 1, and 3 to survive a loss".into());
        }
        if replicas > nodes {
            return Err(format!(
                "bootstrap.replicas is {replicas}, and peers are {nodes}: a shard has at most one \
                 replica on a node; name more nodes, or write {} or less",
                nodes
            ));
        }
        Ok(())
    }

    fn check_storage(&self) -> Result<(), String> {
        let storage = &self.storage;
        within("storage.block_cache_bytes", storage.block_cache_bytes as u64, 1 << 20, BYTES_MAX)?;
        within("storage.log_memtable_bytes", storage.log_memtable_bytes as u64, 64 << 10, 4 << 30)?;
        within(
            "storage.data_memtable_bytes",
            storage.data_memtable_bytes as u64,
            64 << 10,
            4 << 30,
        )?;
        // One that is full and one that is written to: with fewer, writes would stop at every
        // flush.
        signed("storage.memtables_max", storage.memtables_max, 2, 64)?;
        within("storage.wal_bytes_max", storage.wal_bytes_max, 1 << 20, BYTES_MAX)?;
        signed("storage.open_files_max", storage.open_files_max, 64, 1_000_000)?;
        signed("storage.background_jobs", storage.background_jobs, 1, 64)?;
        within("storage.reserve_bytes", storage.reserve_bytes, 0, BYTES_MAX)
    }

    fn check_transport(&self) -> Result<(), String> {
        let transport = &self.transport;
        within("transport.append_lanes", transport.append_lanes.into(), 1, 16)?;
        between(
            "transport.idle_timeout",
            transport.idle_timeout,
            Duration::from_millis(50),
            Duration::from_secs(600),
        )?;
        between(
            "transport.keep_alive",
            transport.keep_alive,
            Duration::from_millis(10),
            transport.idle_timeout / 2,
        )
        .map_err(|why| {
            format!(
                "{why} (half of transport.idle_timeout: a quiet connection must speak before it \
                 counts as lost)"
            )
        })?;
        within(
            "transport.snapshot_bytes_per_second",
            transport.snapshot_bytes_per_second,
            64 << 10,
            BYTES_MAX,
        )?;
        within("transport.snapshots_at_once", transport.snapshots_at_once as u64, 1, 64)
    }
}

/// Refuses a reserve that the disk under the data can't keep. The folder need not be there yet.
pub fn fits_the_disk(config: &Config) -> Result<(), ConfigError> {
    let reserve = config.storage.reserve_bytes;
    let there = config.data.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("."));
    match flotilla_storage::disk(there) {
        Ok(disk) if disk.capacity_bytes > 0 && reserve >= disk.capacity_bytes => {
            Err(ConfigError(format!(
                "storage.reserve_bytes is {reserve}, and the disk of {} has {} bytes in all: every \
                 put would be refused; write less, or 0 for a tenth of the disk",
                there.display(),
                disk.capacity_bytes
            )))
        }
        // Of what can't be looked at, or is no disk (/proc), the start complains.
        _ => Ok(()),
    }
}

fn within(key: &str, value: u64, least: u64, most: u64) -> Result<(), String> {
    if (least..=most).contains(&value) {
        Ok(())
    } else {
        Err(format!("{key} is {value}; {least} to {most} are allowed"))
    }
}

fn signed(key: &str, value: i32, least: i32, most: i32) -> Result<(), String> {
    if (least..=most).contains(&value) {
        Ok(())
    } else {
        Err(format!("{key} is {value}; {least} to {most} are allowed"))
    }
}

fn between(key: &str, value: Duration, least: Duration, most: Duration) -> Result<(), String> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    let shown = humantime_serde::re::humantime::format_duration;
    Err(format!("{key} is {}; {} to {} are allowed", shown(value), shown(least), shown(most)))
}

/// Whether an address is one that others can connect to: host and port.
fn reachable(address: &str) -> Result<(), &'static str> {
    if let Ok(address) = address.parse::<SocketAddr>() {
        return match address {
            _ if address.port() == 0 => Err("port 0 is none that others can connect to"),
            _ if address.ip().is_unspecified() => Err(
                "it means every address of a machine, and others need one of them: write that, or \
                 a host name",
            ),
            _ => Ok(()),
        };
    }
    let Some((host, port)) = address.rsplit_once(':') else {
        return Err("it takes a host and a port, such as 10.0.0.1:7101");
    };
    let host_can_be = !host.is_empty()
        && !host.contains([':', '/', '[', ']'])
        && !host.contains(char::is_whitespace);
    if !host_can_be {
        return Err("it takes a host and a port, such as 10.0.0.1:7101, [fd00::1]:7101 or \
                    db-1.example:7101");
    }
    match port.parse::<u16>() {
        Ok(1..) => Ok(()),
        _ => Err("its port is no number from 1 to 65535"),
    }
}

/// Whether two addresses are written differently and still the same.
fn same_place(one: &str, two: &str) -> bool {
    match (one.parse::<SocketAddr>(), two.parse::<SocketAddr>()) {
        (Ok(one), Ok(two)) => one == two,
        _ => one.eq_ignore_ascii_case(two),
    }
}

/// Whether a node that listens at `own` may be where others look for it. Names are not looked up,
/// and what listens everywhere may have any address in front of it.
fn may_be_reached_at(own: SocketAddr, said: &str) -> bool {
    let any_ip = own.ip().is_unspecified();
    match said.parse::<SocketAddr>() {
        Ok(said) => {
            any_ip || own.port() == 0 || (own.port() == said.port() && same_ip(own.ip(), said.ip()))
        }
        Err(_) => {
            any_ip
                || own.port() == 0
                || said.rsplit_once(':').is_some_and(|(_, port)| port.parse() == Ok(own.port()))
        }
    }
}

fn same_ip(one: IpAddr, two: IpAddr) -> bool {
    one.to_canonical() == two.to_canonical()
}
