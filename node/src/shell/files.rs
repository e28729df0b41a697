//! How many files the process may open, and who may have how many of them.
//!
//! Connections, RocksDB's files and snapshots all draw on the one number that the system allows
//! (`ulimit -n`), and who asks last gets nothing. For a client that is a nuisance; for RocksDB,
//! which is about to write what was acknowledged, it is the end of the process. So the number is
//! divided at the start: first the soft limit is raised as far as the system lets us, then each of
//! them gets a share that it can't exceed. Where that is less than was configured, it is said once,
//! and connections beyond it are refused as if they had been configured so. Where it is too little
//! to work with, the node does not start.

use super::config::Config;
use flotilla_ops::{Limits, Server};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Beyond this nobody needs any more, and some programs walk through all that may be open.
const LIMIT_MAX: u64 = 1 << 20;
/// What is open however the node is configured: logs, write-ahead logs, the lock, sockets that are
/// listened to, wakers, `/proc`; and files that RocksDB opens beyond its share while a compaction
/// or a scan holds all of level 0.
const ALWAYS: u64 = 80;
/// For each other node: a look-up of its address, a file of a snapshot that is sent to it. QUIC
/// itself has one socket for all.
const PER_PEER: u64 = 4;
/// For each snapshot that comes in: what is being written, verified or taken into the database.
const PER_SNAPSHOT: u64 = 8;
/// For each thread that compacts: what it reads and writes.
const PER_JOB: u64 = 8;
/// Connections of clients that are not counted with the others: those in kept places, and those
/// that are just being closed.
const BESIDE_CLIENTS: u64 = Server::KEPT_PLACES as u64 + 16;
/// With less than this RocksDB would open and close files all the time.
const TABLES_MIN: u64 = 32;
/// With less than this nobody could use the node.
const CLIENTS_MIN: u64 = 16;

/// Who may have how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    /// What the system allows the process.
    pub limit: u64,
    /// Connections of clients.
    pub connections_max: usize,
    /// Files of RocksDB's tables.
    pub open_files_max: i32,
}

/// What is wanted, and by how many.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    peers: u64,
    snapshots: u64,
    jobs: u64,
    /// Connections to an address for probes alone, where there is one.
    probes: u64,
    connections: u64,
    tables: u64,
}

/// Raises the soft limit, divides what there is, and says so once where it is less than was
/// configured.
pub fn share(config: &Config) -> anyhow::Result<Shares> {
    let wanted = Wanted {
        peers: config.peers.len() as u64,
        snapshots: config.transport.snapshots_at_once as u64,
        jobs: u64::try_from(config.storage.background_jobs).unwrap_or(0),
        probes: probes_of(&config.metrics_http),
        connections: config.limits.connections_max as u64,
        // RocksDB takes -1 for as many as there are.
        tables: u64::try_from(config.storage.open_files_max).unwrap_or(i32::MAX as u64),
    };
    let shares = divide(raise(), wanted).map_err(anyhow::Error::msg)?;
    let (connections_max, open_files_max) = (shares.connections_max, shares.open_files_max);
    if (connections_max as u64) < wanted.connections {
        tracing::warn!(
            limit = shares.limit,
            connections_max,
            open_files_max,
            "the system lets this process open few files: connections beyond connections_max are \
             refused, though limits.connections_max allows {}; raise it with `ulimit -Hn` or \
             LimitNOFILE=",
            wanted.connections
        );
    } else if config.storage.open_files_max > 0 && open_files_max < config.storage.open_files_max {
        tracing::info!(
            limit = shares.limit,
            open_files_max,
            "RocksDB keeps fewer files open than storage.open_files_max allows"
        );
    }
    Ok(shares)
}

/// The most connections to an address for probes alone, and those that are just being closed.
fn probes_of(metrics_http: &str) -> u64 {
    if metrics_http.is_empty() {
        0
    } else {
        Server::connections_of(&Limits::of_probes()) as u64 + 6
    }
}

/// Raises the soft limit to the hard one, and gives what may be open from now on.
fn raise() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let (soft, hard) = (current.unwrap_or(u64::MAX), maximum.unwrap_or(u64::MAX));
    let target = hard.min(LIMIT_MAX);
    if soft >= target
        || setrlimit(Resource::Nofile, Rlimit { current: Some(target), maximum }).is_err()
    {
        return soft;
    }
    target
}

/// Gives everybody what was wanted, or, where that is too much together, RocksDB and the clients
/// half each of what is left.
fn divide(limit: u64, wanted: Wanted) -> Result<Shares, String> {
    let work = wanted.peers * PER_PEER + wanted.snapshots * PER_SNAPSHOT + wanted.jobs * PER_JOB;
    let fixed = ALWAYS + work + wanted.probes + BESIDE_CLIENTS;
    let least = fixed + TABLES_MIN + CLIENTS_MIN;
    if limit < least {
        return Err(format!(
            "the system lets this process open {limit} files, and it needs {least} at least, \
             better 65536: raise the hard limit, with `ulimit -Hn`, LimitNOFILE= in systemd, or \
             --ulimit nofile= in a container"
        ));
    }
    let left = limit - fixed;
    let half = left / 2;
    let (mut tables, mut connections) = (wanted.tables.max(TABLES_MIN), wanted.connections);
    if tables.saturating_add(connections) > left {
        // What one of them does not need of its half, the other may have.
        tables = tables.min(half.max(TABLES_MIN).max(left.saturating_sub(connections)));
        connections = connections.min(left - tables);
    }
    Ok(Shares {
        limit,
        connections_max: usize::try_from(connections).unwrap_or(usize::MAX),
        open_files_max: i32::try_from(tables).unwrap_or(i32::MAX),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: Wanted =
        Wanted { peers: 3, snapshots: 2, jobs: 2, probes: 0, connections: 10_000, tables: 1024 };

    #[test]
    fn everybody_gets_what_was_configured_where_there_is_enough() {
        let shares = divide(65_536, WANTED).unwrap();
        assert_eq!((shares.connections_max, shares.open_files_max), (10_000, 1024));
        let all = divide(65_536, Wanted { tables: i32::MAX as u64, ..WANTED }).unwrap();
        assert_eq!(all.connections_max, 10_000);
        assert!(
            (50_000..65_536).contains(&all.open_files_max),
            "RocksDB's -1 is a number all the same: {all:?}"
        );
    }

    #[test]
    fn what_is_handed_out_is_never_more_than_there_is() {
        for wanted in [
            WANTED,
            Wanted { connections: 10, ..WANTED },
            Wanted { tables: 20, ..WANTED },
            Wanted { peers: 99, ..WANTED },
            Wanted { probes: 40, ..WANTED },
        ] {
            for limit in 0..20_000 {
                let work = wanted.peers * PER_PEER
                    + wanted.snapshots * PER_SNAPSHOT
                    + wanted.jobs * PER_JOB;
                let fixed = ALWAYS + work + wanted.probes;
                let Ok(shares) = divide(limit, wanted) else {
                    assert!(limit < fixed + 132, "a limit of {limit} is enough");
                    continue;
                };
                let (connections, tables) =
                    (shares.connections_max as u64, shares.open_files_max as u64);
                assert!(connections + tables + fixed + BESIDE_CLIENTS <= limit, "{shares:?}");
                assert!(
                    connections >= CLIENTS_MIN.min(wanted.connections) && tables >= TABLES_MIN,
                    "{shares:?}"
                );
            }
        }
        let shares = divide(1024, WANTED).unwrap();
        assert!(shares.connections_max > 300 && shares.open_files_max > 300, "{shares:?}");
    }

    #[test]
    fn every_connection_that_a_server_may_have_is_counted() {
        for connections in [1, 31, 500, 10_000, 1_000_000] {
            let limits = Limits { connections_max: connections, ..Limits::default() };
            assert!(
                Server::connections_of(&limits) as u64 <= connections as u64 + BESIDE_CLIENTS,
                "of {connections}"
            );
        }
        assert_eq!(probes_of(""), 0);
        assert!(probes_of("127.0.0.1:7201") > Server::connections_of(&Limits::of_probes()) as u64);
        // A small limit is divided all the same: the address for probes takes no more than clients
        // are left with.
        let shares = divide(320, Wanted { probes: probes_of("127.0.0.1:7201"), ..WANTED }).unwrap();
        assert!(shares.connections_max >= 16, "{shares:?}");
    }

    #[test]
    fn too_small_a_limit_says_what_to_do() {
        let why = divide(128, WANTED).unwrap_err();
        assert!(why.contains("open 128 files") && why.contains("ulimit -Hn"), "{why}");
    }
}
