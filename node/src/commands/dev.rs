//! `flotilla dev`: a real cluster on this machine.
//!
//! One process per node, QUIC with mutual TLS between them, data kept between runs. Everything is an ordinary node that was
//! started with `flotilla start --config <data>/n<i>/flotilla.toml`, so that any of them can be killed and started again by hand.
//! A node that was killed stays down until somebody starts it; the others go on.
//!
//! ```text
//! <data>/ca.pem, ca.key            the cluster's authority
//! <data>/n<i>/flotilla.toml        the node's configuration
//! <data>/n<i>/node.pem, node.key   its certificate
//! <data>/n<i>/flotilla.log, .pid   what it says, and its process id
//! <data>/n<i>/data/                its data
//! ```

use super::cert;
use anyhow::{Context as _, bail};
use clap::Args;
use flotilla_node::shell::config::{Config, FoundingConfig, PeerConfig};
use flotilla_router::NodeId;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

/// How long the cluster may take until every shard has a leader.
const READY_PATIENCE: Duration = Duration::from_secs(120);
/// How long a node may take to stop before it is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(15);

/// A real cluster on this machine: one process per node, data kept between runs, until Ctrl-C.
#[derive(Args)]
#[command(
    after_help = "Example:  flotilla dev --nodes 3 --shards 8\n\nThen:     curl -X PUT --data hello http://127.0.0.1:7001/v1/kv/greeting"
)]
pub(crate) struct Dev {
    /// How many nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=99))]
    nodes: u64,
    /// How many shards the key space is cut into when the cluster is made.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    shards: u64,
    /// The folder to keep everything in; what is there already is started again.
    #[arg(long, default_value = "flotilla-dev", value_name = "FOLDER")]
    data: PathBuf,
    /// Where the first node serves HTTP. Node i: that port + i - 1; QUIC: 100 above.
    #[arg(long, default_value = "127.0.0.1:7001", value_name = "ADDRESS")]
    http: SocketAddr,
}

/// One node of the dev cluster.
struct Member {
    id: u64,
    folder: PathBuf,
    http: SocketAddr,
    quic: SocketAddr,
}

/// Carries the command out.
pub(crate) fn run(args: &Dev) -> anyhow::Result<()> {
    // One thread: children are told to end when the thread that made them does.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(cluster(args))
}

async fn cluster(args: &Dev) -> anyhow::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let members = prepare(args)?;
    let mut children = Vec::new();
    for member in &members {
        children.push(spawn(member)?);
    }
    let done = tokio::select! {
        ready = until_ready(&members, &mut children) => match ready {
            Ok(()) => {
                for member in &members {
                    println!("node {}  http://{}  quic {}  {}", member.id, member.http, member.quic, member.folder.display());
                }
                println!("ready");
                tokio::select! {
                    () = watch(&members, &mut children) => Ok(()),
                    _ = terminate.recv() => Ok(()),
                    _ = interrupt.recv() => Ok(()),
                }
            }
            Err(error) => Err(error),
        },
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    stop(&mut children).await;
    done
}

/// Makes what is missing: certificates, configurations. What is there is left as it is.
fn prepare(args: &Dev) -> anyhow::Result<Vec<Member>> {
    let folder = &args.data;
    std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    let folder = folder.canonicalize()?;
    let known: Vec<u64> = (1..=99).take_while(|i| folder.join(format!("n{i}/flotilla.toml")).exists()).collect();
    if known.is_empty() {
        make(args, &folder)?;
    } else if known.len() as u64 != args.nodes {
        eprintln!("{} has {} nodes; starting those", folder.display(), known.len());
    }
    let count = if known.is_empty() { args.nodes } else { known.len() as u64 };
    let mut members = Vec::new();
    for id in 1..=count {
        let folder = folder.join(format!("n{id}"));
        let config = Config::load(Some(&folder.join("flotilla.toml")), &[])?;
        let member = Member { id, folder, http: config.http, quic: config.quic };
        check_free(&member)?;
        members.push(member);
    }
    Ok(members)
}

fn address(args: &Dev, id: u64, offset: u16) -> anyhow::Result<SocketAddr> {
    let port = u16::try_from(id - 1).ok().and_then(|i| args.http.port().checked_add(i)?.checked_add(offset));
    let Some(port) = port else { bail!("--http {}: node {id}'s ports would be above 65535", args.http) };
    Ok(SocketAddr::new(args.http.ip(), port))
}

fn make(args: &Dev, folder: &Path) -> anyhow::Result<()> {
    if args.nodes > 100 - 1 || args.http.port() == 0 {
        bail!("--http needs a fixed port, so that each node has its own");
    }
    let ca = if folder.join("ca.pem").exists() { cert::load_ca(folder)? } else { cert::new_ca(cert::random_cluster()?, folder)? };
    let mut peers = Vec::new();
    for id in 1..=args.nodes {
        let (http, quic) = (address(args, id, 0)?, address(args, id, 100)?);
        peers.push(PeerConfig { id: NodeId(id), quic: quic.to_string(), http: Some(http.to_string()) });
    }
    for id in 1..=args.nodes {
        let home = folder.join(format!("n{id}"));
        std::fs::create_dir_all(&home)?;
        cert::write_node(&ca, NodeId(id), &[args.http.ip().to_string()], &home, "node")?;
        let mut config = Config::sample();
        config.node = NodeId(id);
        config.cluster = ca.cluster();
        (config.http, config.quic) = (address(args, id, 0)?, address(args, id, 100)?);
        config.pid_file = "flotilla.pid".into();
        config.tls.ca = "../ca.pem".into();
        config.peers = peers.clone();
        config.founding = FoundingConfig { shards: args.shards as usize, replicas: (args.nodes as usize).min(3) };
        // Written last: a folder with a configuration is complete.
        std::fs::write(home.join("flotilla.toml"), config.to_toml())?;
    }
    Ok(())
}

/// Says at once, and for all nodes, if a port is taken.
fn check_free(member: &Member) -> anyhow::Result<()> {
    let advice = "stop what listens there (is the cluster running?), or choose other ports with --http and another --data";
    TcpListener::bind(member.http)
        .with_context(|| format!("node {}: HTTP address {} is in use; {advice}", member.id, member.http))?;
    UdpSocket::bind(member.quic)
        .with_context(|| format!("node {}: QUIC address {} is in use; {advice}", member.id, member.quic))?;
    Ok(())
}

fn spawn(member: &Member) -> anyhow::Result<Child> {
    let log_path = member.folder.join("flotilla.log");
    let log = std::fs::OpenOptions::new().create(true).append(true).open(&log_path);
    let log = log.with_context(|| format!("write {}", log_path.display()))?;
    let program = std::env::current_exe().context("find this program")?;
    Command::new(program)
        .args(["start", "--with-parent", "--config"])
        .arg(member.folder.join("flotilla.toml"))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        // Ctrl-C is for this process; it stops the nodes in good order.
        .process_group(0)
        .kill_on_drop(false)
        .spawn()
        .with_context(|| format!("start node {}", member.id))
}

/// Waits until every node says that each of its shards has a leader.
async fn until_ready(members: &[Member], children: &mut [Child]) -> anyhow::Result<()> {
    let deadline = Instant::now() + READY_PATIENCE;
    for member in members {
        loop {
            for (other, child) in members.iter().zip(children.iter_mut()) {
                if let Some(status) = child.try_wait()? {
                    let log = std::fs::read_to_string(other.folder.join("flotilla.log")).unwrap_or_default();
                    let last: Vec<_> = log.lines().rev().take(5).collect();
                    let last: Vec<_> = last.into_iter().rev().collect();
                    bail!(
                        "node {} ended with {status}; the end of {}/flotilla.log:\n{}",
                        other.id,
                        other.folder.display(),
                        last.join("\n")
                    );
                }
            }
            if is_ready(member.http).await {
                break;
            }
            if Instant::now() > deadline {
                bail!(
                    "node {} is not ready after {} s; see {}/flotilla.log",
                    member.id,
                    READY_PATIENCE.as_secs(),
                    member.folder.display()
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    Ok(())
}

/// Whether `GET /readyz` says 200.
async fn is_ready(http: SocketAddr) -> bool {
    let ask = async {
        let mut stream = tokio::net::TcpStream::connect(http).await?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: dev\r\nConnection: close\r\n\r\n").await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer.starts_with(b"HTTP/1.1 200"))
    };
    matches!(tokio::time::timeout(Duration::from_secs(2), ask).await, Ok(Ok(true)))
}

/// Tells of nodes that end; they stay down. Never returns.
async fn watch(members: &[Member], children: &mut [Child]) {
    let mut told = vec![false; members.len()];
    loop {
        for ((member, child), told) in members.iter().zip(children.iter_mut()).zip(&mut told) {
            if let (false, Ok(Some(status))) = (*told, child.try_wait()) {
                *told = true;
                println!(
                    "node {} ended ({status}); the others go on. Start it again with: flotilla start --config {}/flotilla.toml",
                    member.id,
                    member.folder.display()
                );
            }
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Stops every node that this process started, all at once, and waits for them.
async fn stop(children: &mut [Child]) {
    for child in children.iter() {
        let running = child.id().and_then(|id| rustix::process::Pid::from_raw(id as i32));
        if let Some(pid) = running {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
    }
    let deadline = Instant::now() + STOP_PATIENCE;
    for child in children {
        let left = deadline.saturating_duration_since(Instant::now());
        if tokio::time::timeout(left, child.wait()).await.is_err() {
            let _ = child.kill().await;
        }
    }
}
