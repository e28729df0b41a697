//! `flotilla dev`: a real cluster on this machine.
//!
//! One process per node, QUIC with mutual TLS between them, data kept between runs. Everything is
//! an ordinary node that was started with `flotilla start --config <data>/n<i>/flotilla.toml`, so
//! that any of them can be killed and started again by hand. A node that was killed stays down
//! until somebody starts it; the others go on. What the folder holds, and what is done about it, is
//! `dev_folder`'s story.
//!
//! ```text
//! <data>/ca.pem, ca.key            the cluster's authority
//! <data>/n<i>/flotilla.toml        the node's configuration
//! <data>/n<i>/node.pem, node.key   its certificate
//! <data>/n<i>/flotilla.log, .pid   what it says, and its process id
//! <data>/n<i>/data/                its data
//! ```
//!
//! Ctrl-C, SIGTERM and the end of the terminal stop the cluster in good order; a second one of them
//! at once. That nobody reads the output any more (`flotilla dev | head -1`) stops nothing.

use super::dev_folder::{self, Folder, Member, NODES_MAX, Wanted, reached_at};
use super::{err, out};
use anyhow::{Context as _, bail};
use clap::Args;
use flotilla_node::shell::private;
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom};
use std::net::{SocketAddr, TcpListener, ToSocketAddrs as _, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How long the cluster may take until every shard has a leader.
const READY_PATIENCE: Duration = Duration::from_secs(120);
/// After so long it is said what is waited for.
const QUIET: Duration = Duration::from_secs(10);
/// How long a node may take to stop before it is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(15);

/// A real cluster on this machine: one process per node, data kept between runs, until Ctrl-C.
#[derive(Args)]
#[command(after_help = "Example:  flotilla dev --nodes 3 --shards 8\n\n\
                        Then:     curl -X PUT --data hello http://127.0.0.1:7001/v1/kv/greeting")]
pub(crate) struct Dev {
    /// How many nodes [default: 3, or as many as the folder has].
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=NODES_MAX))]
    nodes: Option<u64>,
    /// How many shards the key space is cut into when the cluster is made [default: 8, or as many
    /// as it was made with].
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    shards: Option<u64>,
    /// The folder to keep everything in; what is there already is started again.
    #[arg(long, default_value = "flotilla-dev", value_name = "FOLDER")]
    data: PathBuf,
    /// Where the first node serves HTTP [default: 127.0.0.1:7001, or where it did]. Node i: that
    /// port + i - 1; QUIC: 100 above.
    #[arg(long, value_name = "ADDRESS", value_parser = http_address)]
    http: Option<SocketAddr>,
}

/// Reads `127.0.0.1:7001`, `localhost:7001`, `[::1]:7001`, `0.0.0.0:7001`, `http://…` before them,
/// or a port alone.
fn http_address(text: &str) -> Result<SocketAddr, String> {
    let bare = text.trim().trim_start_matches("http://").trim_end_matches('/');
    let address = match (bare.parse::<SocketAddr>(), bare.parse::<u16>()) {
        (Ok(address), _) => address,
        (_, Ok(port)) => SocketAddr::from(([127, 0, 0, 1], port)),
        _ => {
            let cure = "it takes an address and a port, such as 127.0.0.1:7001 or localhost:7001";
            let (_, port) = bare.rsplit_once(':').ok_or(cure)?;
            port.parse::<u16>()
                .map_err(|_| format!("{port:?} is no port from 1 to 65535; {cure}"))?;
            let found: Vec<SocketAddr> =
                bare.to_socket_addrs().map_err(|error| format!("{error}; {cure}"))?.collect();
            let first = found.iter().find(|address| address.is_ipv4()).or(found.first());
            *first.ok_or_else(|| format!("no address has that name; {cure}"))?
        }
    };
    if address.port() == 0 {
        Err("it needs a port of its own: each node has the one after it".into())
    } else {
        Ok(address)
    }
}

/// Carries the command out.
pub(crate) fn run(args: &Dev) -> anyhow::Result<()> {
    private::keep_private();
    // One thread: children are told to end when the thread that made them does.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(cluster(args))
}

async fn cluster(args: &Dev) -> anyhow::Result<()> {
    let mut told = Told::new()?;
    let wanted = Wanted { nodes: args.nodes, shards: args.shards, http: args.http };
    let Folder { members, lock: _lock } = dev_folder::prepare(&args.data, &wanted)?;
    tokio::select! {
        ended = former_selves_ended(&members) => ended?,
        () = told.once_more() => return Ok(()),
    }
    members.iter().try_for_each(check_free)?;
    let mut children = Vec::new();
    let mut done = Ok(());
    for member in &members {
        match spawn(member) {
            Ok(child) => children.push(child),
            Err(error) => done = Err(error),
        }
    }
    if done.is_ok() {
        done = tokio::select! {
            ready = until_ready(&members, &mut children) => match ready {
                Ok(()) => {
                    for member in &members {
                        let Member { id, http, quic, folder, .. } = member;
                        let (http, folder) = (shown(*http), folder.display());
                        let _ = out(&format!("node {id}  {http}  quic {quic}  {folder}"));
                    }
                    let _ = out("ready");
                    tokio::select! {
                        () = watch(&members, &mut children) => Ok(()),
                        () = told.once_more() => Ok(()),
                    }
                }
                Err(error) => Err(error),
            },
            () = told.once_more() => Ok(()),
        };
    }
    tokio::select! {
        () = stop(&mut children) => {}
        // Who asks twice does not want to wait. The nodes end with this process.
        () = told.once_more() => {}
    }
    for child in &mut children {
        let _ = child.kill().await;
    }
    done
}

/// The signals that end the cluster.
struct Told {
    interrupt: Signal,
    terminate: Signal,
    /// The terminal is gone; `None` under `nohup`, which means that this is to be ignored.
    hangup: Option<Signal>,
}

impl Told {
    fn new() -> anyhow::Result<Self> {
        let hangup = if is_ignored(SignalKind::hangup()) {
            None
        } else {
            Some(signal(SignalKind::hangup())?)
        };
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup,
        })
    }

    /// Waits for one of them.
    async fn once_more(&mut self) {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = hangup => {}
        }
    }
}

/// Whether whoever started this process told it to ignore a signal.
fn is_ignored(kind: SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (kind.as_raw_value() - 1) & 1 == 1
}

/// Waits for nodes of a cluster that was killed, or is being stopped: they end in good order, which
/// takes a while.
async fn former_selves_ended(members: &[Member]) -> anyhow::Result<()> {
    let begun = Instant::now();
    let mut said = false;
    while let Some(Member { id, folder, .. }) =
        members.iter().find(|member| flotilla_storage::is_in_use(&member.data))
    {
        if begun.elapsed() > STOP_PATIENCE {
            let at = folder.display();
            bail!(
                "node {id} runs already, by itself; stop it first: kill $(cat {at}/flotilla.pid)"
            );
        }
        if !said {
            said = true;
            err(&format!("node {id} still runs; waiting until it has ended"));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Says at once, and for all nodes, if a port can't be had.
fn check_free(member: &Member) -> anyhow::Result<()> {
    let bound = [
        ("HTTP", member.http, TcpListener::bind(member.http).map(drop)),
        ("QUIC", member.quic, UdpSocket::bind(member.quic).map(drop)),
    ];
    for (what, address, bound) in bound {
        let Err(error) = bound else { continue };
        let why = match error.kind() {
            ErrorKind::AddrInUse => {
                "is in use; stop what listens there (is the cluster running?), or choose other \
                 ports with --http"
                    .into()
            }
            ErrorKind::AddrNotAvailable => "is not an address of this machine; choose one that is \
                                            with --http"
                .into(),
            ErrorKind::PermissionDenied => "may not be opened by this user; choose ports above \
                                            1023 with --http"
                .into(),
            _ => format!("can't be opened: {error}"),
        };
        bail!("node {}: {what} address {address} {why}", member.id);
    }
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
    let begun = Instant::now();
    let mut said = false;
    for member in members {
        loop {
            for (other, child) in members.iter().zip(children.iter_mut()) {
                if let Some(status) = child.try_wait()? {
                    let log = other.folder.join("flotilla.log");
                    bail!(
                        "node {} ended with {status}; the end of {}:\n{}",
                        other.id,
                        log.display(),
                        last_lines(&log, 5)
                    );
                }
            }
            let Err(why) = is_ready(member.http).await else { break };
            let Member { id, folder, .. } = member;
            let log = folder.join("flotilla.log");
            if begun.elapsed() > READY_PATIENCE {
                let end = last_lines(&log, 5);
                bail!(
                    "node {id} is not ready after {} s: {why}; the end of {}:\n{end}",
                    READY_PATIENCE.as_secs(),
                    log.display()
                );
            }
            if begun.elapsed() > QUIET && !said {
                said = true;
                err(&format!(
                    "waiting for node {id}: {why}; its log is {}, and says last:\n{}",
                    log.display(),
                    last_lines(&log, 1)
                ));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    Ok(())
}

/// The last lines of a file that may be long.
fn last_lines(path: &Path, lines: usize) -> String {
    const TAIL_BYTES: u64 = 16 << 10;
    let read = || {
        let mut file = std::fs::File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        std::io::Result::Ok(bytes)
    };
    let text = String::from_utf8_lossy(&read().unwrap_or_default()).into_owned();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Where a node's clients reach it from this machine, as it is shown.
fn shown(http: SocketAddr) -> String {
    let at = SocketAddr::new(reached_at(http.ip()), http.port());
    if at == http { format!("http://{at}") } else { format!("http://{at} (on all addresses)") }
}

/// Whether `GET /readyz` says 200; if not, what is missing.
async fn is_ready(http: SocketAddr) -> Result<(), String> {
    let at = SocketAddr::new(reached_at(http.ip()), http.port());
    let ask = async {
        let mut stream = tokio::net::TcpStream::connect(at).await?;
        let request =
            format!("GET /readyz?verbose HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        std::io::Result::Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    match tokio::time::timeout(Duration::from_secs(2), ask).await {
        Ok(Ok(answer)) if answer.starts_with("HTTP/1.1 200") => Ok(()),
        Ok(Ok(answer)) => {
            let failed: Vec<&str> =
                answer.lines().filter_map(|line| line.strip_prefix("[-]")).collect();
            Err(if failed.is_empty() {
                answer.lines().next().unwrap_or("no answer").to_owned()
            } else {
                failed.join("; ")
            })
        }
        Ok(Err(error)) => Err(format!("http://{at} does not answer ({error})")),
        Err(_) => Err(format!("http://{at} does not answer in time")),
    }
}

/// Tells of nodes that end; they stay down. Never returns.
async fn watch(members: &[Member], children: &mut [Child]) {
    let mut told = vec![false; members.len()];
    loop {
        for ((member, child), told) in members.iter().zip(children.iter_mut()).zip(&mut told) {
            if let (false, Ok(Some(status))) = (*told, child.try_wait()) {
                *told = true;
                let Member { id, folder, .. } = member;
                let _ = out(&format!(
                    "node {id} ended ({status}); the others go on. Start it again with: flotilla \
                     start --config {}/flotilla.toml",
                    folder.display()
                ));
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
        let _ = tokio::time::timeout(left, child.wait()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_be_written_in_every_usual_way() {
        for (text, expected) in [
            ("127.0.0.1:7001", "127.0.0.1:7001"),
            ("http://127.0.0.1:7001/", "127.0.0.1:7001"),
            ("[::1]:7001", "[::1]:7001"),
            ("0.0.0.0:7001", "0.0.0.0:7001"),
            ("localhost:7001", "127.0.0.1:7001"),
            (" 7001", "127.0.0.1:7001"),
        ] {
            assert_eq!(
                http_address(text).map(|address| address.to_string()),
                Ok(expected.to_owned()),
                "{text}"
            );
        }
        for bad in
            ["", "localhost", "127.0.0.1", "127.0.0.1:70000", "127.0.0.1:0", "0", "a b:1", ":7001"]
        {
            let said = http_address(bad).expect_err(bad);
            assert!(said.contains("port"), "{bad}: {said}");
        }
    }

    #[test]
    fn what_is_shown_is_an_address_that_answers() {
        for (http, expected) in [
            ("127.0.0.1:7001", "http://127.0.0.1:7001"),
            ("192.168.0.9:7001", "http://192.168.0.9:7001"),
            ("0.0.0.0:7001", "http://127.0.0.1:7001 (on all addresses)"),
            ("[::]:7001", "http://[::1]:7001 (on all addresses)"),
        ] {
            assert_eq!(shown(http.parse().unwrap()), expected);
        }
    }

    #[test]
    fn a_signal_is_ignored_only_where_somebody_said_so() {
        assert!(!is_ignored(SignalKind::terminate()));
    }
}
