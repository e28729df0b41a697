//! The folder of `flotilla dev`: made, completed, moved to other ports, or refused with what to do.
//!
//! What may lie there, and what comes of it:
//!
//! | found | done |
//! |---|---|
//! | nothing | a cluster is made |
//! | parts of a cluster no node of which has data: a first start that was cut short | made anew; an authority that is whole stays |
//! | every node that the configurations name | started; with another `--http`, at those ports |
//! | nodes with data, and another's folder gone, or what was in it | refused: it would come back with nothing, and forgets what it promised |
//! | another `--nodes` or `--shards` than it was made with | refused: both are fixed when a cluster is made |
//!
//! A configuration is written last and at once, so a node's folder that has one is complete. While
//! a process works in the folder a lock keeps others out.

use super::{Usage, cert, err};
use anyhow::{Context as _, bail};
use flotilla_node::shell::config::{BootstrapConfig, Config, PeerConfig};
use flotilla_router::NodeId;
use flotilla_transport::ClusterCa;
use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// The most nodes of one dev cluster: QUIC ports begin 100 above those of HTTP.
pub(super) const NODES_MAX: u64 = 99;
/// How many nodes where nobody says.
const NODES: u64 = 3;
/// How many shards where nobody says.
const SHARDS: u64 = 8;
/// Where the first node serves HTTP where nobody says.
const HTTP: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7001);
/// The file whose lock keeps a second process out.
const LOCK: &str = "dev.lock";

/// What was asked for; nothing where nobody said.
pub(super) struct Wanted {
    /// How many nodes.
    pub(super) nodes: Option<u64>,
    /// How many shards.
    pub(super) shards: Option<u64>,
    /// Where the first node serves HTTP.
    pub(super) http: Option<SocketAddr>,
}

/// One node of the dev cluster.
pub(super) struct Member {
    /// Its id.
    pub(super) id: u64,
    /// Where everything of it lies.
    pub(super) folder: PathBuf,
    /// Where its data lies.
    pub(super) data: PathBuf,
    /// Where it serves HTTP.
    pub(super) http: SocketAddr,
    /// Where other nodes reach it.
    pub(super) quic: SocketAddr,
}

/// A folder that is this process's, and the nodes in it.
pub(super) struct Folder {
    /// Every node.
    pub(super) members: Vec<Member>,
    /// Held for as long as the cluster runs.
    pub(super) lock: File,
}

/// Makes what is missing, and says what is there.
pub(super) fn prepare(folder: &Path, wanted: &Wanted) -> anyhow::Result<Folder> {
    if folder.exists() && !folder.is_dir() {
        return Err(Usage(format!(
            "--data {}: that is no folder; name one, which is made if it is not there",
            folder.display()
        ))
        .into());
    }
    std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    let folder = folder.canonicalize()?;
    let lock = lock(&folder)?;
    let complete = |id: &u64| home(&folder, *id).join("flotilla.toml").is_file();
    let known: Vec<u64> = (1..=NODES_MAX).filter(complete).collect();
    let mut ids = Vec::new();
    if let Some(first) = known.first() {
        ids = load(&folder, *first)?.peers.iter().map(|peer| peer.id.0).collect();
        ids.sort_unstable();
    }
    let missing: Vec<u64> = ids.iter().copied().filter(|id| !known.contains(id)).collect();
    let with_data = |id: &u64| match known.contains(id) {
        true => load(&folder, *id).map(|config| config.data.exists()),
        false => Ok(home(&folder, *id).join("data").exists()),
    };
    let mut has_data = Vec::new();
    for id in 1..=NODES_MAX {
        if with_data(&id)? {
            has_data.push(id);
        }
    }
    if has_data.is_empty() {
        let shards = |id: &u64| load(&folder, *id).map(|config| config.bootstrap.shards as u64);
        let differs = wanted.nodes.is_some_and(|nodes| nodes != ids.len() as u64)
            || (wanted.shards.is_some()
                && wanted.shards != known.first().map(shards).transpose()?);
        if ids.is_empty() || !missing.is_empty() || differs {
            if !known.is_empty() || home(&folder, 1).exists() {
                err(&format!(
                    "{}: no node has data yet; the cluster is made anew",
                    folder.display()
                ));
            }
            make(wanted, &folder)?;
            ids = (1..=wanted.nodes.unwrap_or(NODES)).collect();
        }
    } else {
        all_there(&folder, &ids, &missing, &has_data)?;
        as_it_was_made(&folder, &ids, wanted)?;
    }
    if let Some(http) = wanted.http {
        move_to(&folder, &ids, http)?;
    }
    let mut members = Vec::new();
    for id in ids {
        let config = load(&folder, id)?;
        members.push(Member {
            id,
            folder: home(&folder, id),
            data: config.data,
            http: config.http,
            quic: config.quic,
        });
    }
    Ok(Folder { members, lock })
}

fn home(folder: &Path, id: u64) -> PathBuf {
    folder.join(format!("n{id}"))
}

fn load(folder: &Path, id: u64) -> anyhow::Result<Config> {
    Ok(Config::load(Some(&home(folder, id).join("flotilla.toml")), &[])?)
}

/// Keeps a second process out of the folder.
fn lock(folder: &Path) -> anyhow::Result<File> {
    let path = folder.join(LOCK);
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.with_context(|| {
        format!(
            "write {}: `flotilla dev` keeps everything there; choose another with --data",
            path.display()
        )
    })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            bail!(
                "another `flotilla dev` works in {}; use that, stop it, or choose another folder \
                 with --data",
                folder.display()
            )
        }
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("lock {}", path.display()))
        }
    }
}

/// Refuses to start some of a cluster's nodes as if they were all.
fn all_there(folder: &Path, ids: &[u64], missing: &[u64], has_data: &[u64]) -> anyhow::Result<()> {
    let at = folder.display();
    if ids.is_empty() {
        bail!(
            "{at}/n{}/data is there, and no node's flotilla.toml: put that back, or choose another \
             folder with --data",
            has_data[0]
        );
    }
    let emptied: Vec<u64> =
        ids.iter().copied().filter(|id| !has_data.contains(id) && has_run(folder, *id)).collect();
    let (gone, what) = match (missing.first(), emptied.first()) {
        (Some(gone), _) => (gone, "is gone or has no flotilla.toml"),
        (None, Some(gone)) => (gone, "has run before and its data folder is gone"),
        (None, None) => return Ok(()),
    };
    let is_left = |id: &&u64| !missing.contains(id) && !emptied.contains(id);
    let left: Vec<String> = ids.iter().filter(is_left).map(|id| format!("n{id}")).collect();
    bail!(
        "{at}/n{gone} {what}, and the cluster has {} nodes: put it back as it was, since a node \
         that comes back with nothing has forgotten what it promised; or go on without it: start \
         the others ({}) by hand with `flotilla start --config {at}/n<i>/flotilla.toml`; or begin \
         anew: remove {at}, or choose another folder with --data",
        ids.len(),
        left.join(", ")
    )
}

/// Whether a node has opened its data folder before, as far as the beginning of its log tells.
fn has_run(folder: &Path, id: u64) -> bool {
    let mut begin = Vec::new();
    let log = File::open(home(folder, id).join("flotilla.log"));
    let read = log.and_then(|log| log.take(64 << 10).read_to_end(&mut begin));
    read.is_ok() && String::from_utf8_lossy(&begin).contains("data opened")
}

/// Refuses what is fixed when a cluster is made and was asked for otherwise.
fn as_it_was_made(folder: &Path, ids: &[u64], wanted: &Wanted) -> anyhow::Result<()> {
    let shards = load(folder, ids[0])?.bootstrap.shards as u64;
    let asked = [("nodes", wanted.nodes, ids.len() as u64), ("shards", wanted.shards, shards)];
    for (what, asked, made) in asked {
        if let Some(asked) = asked.filter(|asked| *asked != made) {
            let at = folder.display();
            return Err(Usage(format!(
                "--{what} {asked}: the cluster in {at} was made with {made}, and that can't be \
                 changed; leave --{what} away, choose another folder with --data, or remove {at} \
                 to begin anew"
            ))
            .into());
        }
    }
    Ok(())
}

/// Where node `id` serves HTTP and is reached over QUIC, when the first serves HTTP at `first`.
///
/// HTTP may listen on every address of the machine. Nodes need one to find each other at, and are
/// all here.
fn places(first: SocketAddr, id: u64) -> anyhow::Result<(SocketAddr, SocketAddr)> {
    let port = |offset: u64| u16::try_from(u64::from(first.port()) + id - 1 + offset);
    let (Ok(http), Ok(quic)) = (port(0), port(100)) else {
        return Err(Usage(format!("--http {first}: node {id}'s ports would be above 65535")).into());
    };
    Ok((SocketAddr::new(first.ip(), http), SocketAddr::new(reached_at(first.ip()), quic)))
}

/// An address at which this machine reaches what listens on `ip`.
pub(super) fn reached_at(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    }
}

fn peers(first: SocketAddr, nodes: u64) -> anyhow::Result<Vec<PeerConfig>> {
    let peer = |id| {
        let (http, quic) = places(first, id)?;
        let http = SocketAddr::new(reached_at(http.ip()), http.port());
        Ok(PeerConfig { id: NodeId(id), quic: quic.to_string(), http: Some(http.to_string()) })
    };
    (1..=nodes).map(peer).collect()
}

/// Makes a cluster of which no node has ever started.
fn make(wanted: &Wanted, folder: &Path) -> anyhow::Result<()> {
    let nodes = wanted.nodes.unwrap_or(NODES);
    let http = wanted.http.unwrap_or(HTTP);
    let peers = peers(http, nodes)?;
    let authority = authority(folder)?;
    // Before all else goes what says that a node is complete: when this is cut short, the next
    // start begins here again.
    for id in 1..=NODES_MAX {
        for name in ["flotilla.toml", "node.pem", "node.key"] {
            remove(&home(folder, id).join(name))?;
        }
    }
    let ca = match authority {
        Some(ca) => ca,
        None => new_authority(folder)?,
    };
    for id in 1..=nodes {
        let home = home(folder, id);
        std::fs::create_dir_all(&home)?;
        let (http, quic) = places(http, id)?;
        cert::write_node(&ca, NodeId(id), &[quic.ip().to_string()], &home, "node")?;
        let mut config = Config::sample();
        config.node = NodeId(id);
        config.cluster = ca.cluster();
        (config.http, config.quic) = (http, quic);
        config.pid_file = "flotilla.pid".into();
        config.tls.ca = "../ca.pem".into();
        config.peers = peers.clone();
        config.bootstrap = BootstrapConfig {
            shards: wanted.shards.unwrap_or(SHARDS) as usize,
            replicas: (nodes as usize).min(3),
        };
        replace(&home.join("flotilla.toml"), &config.to_toml())?;
    }
    Ok(())
}

/// The authority in the folder; none where there is not all of one. One that is whole and can't be
/// used is for a person to judge: its key may be all that is left of it.
fn authority(folder: &Path) -> anyhow::Result<Option<ClusterCa>> {
    let whole = |name: &str| {
        let text = std::fs::read_to_string(folder.join(name)).unwrap_or_default();
        text.contains("-----END") && text.trim_end().ends_with("-----")
    };
    (whole("ca.pem") && whole("ca.key")).then(|| cert::load_ca(folder)).transpose()
}

/// A new authority, in the place of what may be left of one.
fn new_authority(folder: &Path) -> anyhow::Result<ClusterCa> {
    remove(&folder.join("ca.key"))?;
    remove(&folder.join("ca.pem"))?;
    cert::new_ca(cert::random_cluster()?, folder)
}

fn remove(path: &Path) -> anyhow::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Writes a file as a whole: it is there with all of its text, or as it was before.
fn replace(path: &Path, text: &str) -> anyhow::Result<()> {
    let new = path.with_extension("new");
    let write = || {
        remove(&new)?;
        let mut file = File::create_new(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&new, path)?;
        anyhow::Ok(())
    };
    write().with_context(|| format!("write {}", path.display()))
}

/// Gives every node the addresses that go with `first`, in all configurations, and leaves all else
/// in them as it is.
fn move_to(folder: &Path, ids: &[u64], first: SocketAddr) -> anyhow::Result<()> {
    let before = load(folder, ids[0])?.http;
    if before == first {
        return Ok(());
    }
    let mut texts = Vec::new();
    for id in ids {
        let config = load(folder, *id)?;
        let mut moved = BTreeMap::new();
        for peer in &config.peers {
            let (http, quic) = places(first, peer.id.0)?;
            moved.insert(peer.quic.clone(), quic.to_string());
            moved.extend(
                peer.http.clone().map(|old| {
                    (old, SocketAddr::new(reached_at(http.ip()), http.port()).to_string())
                }),
            );
        }
        let (http, quic) = places(first, *id)?;
        let path = home(folder, *id).join("flotilla.toml");
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        texts.push((path, with_addresses(&text, http, quic, &moved)));
    }
    // The first node's last: as long as it has its old address, the next start does all of this
    // again.
    for (path, text) in texts.iter().rev() {
        replace(path, text)?;
    }
    err(&format!("{} moves from http://{before} to http://{first}", folder.display()));
    Ok(())
}

/// A configuration with other addresses, line by line, so that what a person wrote into it stays.
fn with_addresses(
    text: &str,
    http: SocketAddr,
    quic: SocketAddr,
    moved: &BTreeMap<String, String>,
) -> String {
    let mut in_table = false;
    let mut out = String::with_capacity(text.len());
    for line in text.lines() {
        in_table |= line.trim_start().starts_with('[');
        let own = line.split_once('=').map(|(key, _)| key.trim()).filter(|_| !in_table);
        match own {
            Some("http") => out.push_str(&format!("http = \"{http}\"")),
            Some("quic") => out.push_str(&format!("quic = \"{quic}\"")),
            _ => {
                // What stands between quotes are the odd parts.
                let parts = line.split('"').enumerate();
                let parts: Vec<&str> = parts
                    .map(|(i, part)| {
                        if i % 2 == 1 { moved.get(part).map_or(part, String::as_str) } else { part }
                    })
                    .collect();
                out.push_str(&parts.join("\""));
            }
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
#[path = "dev_folder_tests.rs"]
mod tests;
