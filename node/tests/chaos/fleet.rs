//! A cluster whose network and disks the test holds in its hands.
//!
//! `flotilla dev` founds it and is stopped; then every configuration is changed (where the peers are reached: through the proxy;
//! small logs, so that snapshots happen; for one node a small disk), and every node is started by itself with `flotilla start`.
//!
//! It never outlives its test: processes end first, then namespaces, mounts and the folder go. After a failure the folder stays,
//! with logs, histories and schedule, and the last lines say where it is.

use super::disk::{self, SmallDisk};
use super::namespace::Namespaces;
use super::proxy::{Circuit, Proxy};
use super::world::World;
use flotilla_kit::http::Client;
use flotilla_kit::{Cluster, PATIENCE, until};
use flotilla_node::dice::Dice;
use rustix::process::Signal;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What carries the datagrams between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Loopback, and the proxy does everything.
    Proxy,
    /// A network namespace per node; iptables cuts and loses, the proxy does the rest.
    Namespaces,
}

impl Mode {
    /// How it is called.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Proxy => "proxy",
            Self::Namespaces => "namespaces",
        }
    }
}

/// What is wanted.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Draws faults, datagrams' fates and settings.
    pub(crate) seed: u64,
    /// How many nodes.
    pub(crate) nodes: u64,
    /// How many shards.
    pub(crate) shards: u64,
    /// Namespaces where the system lets us, or the proxy alone.
    pub(crate) mode: Mode,
    /// Whether leaders hold leases, and reads use them.
    pub(crate) lease: bool,
}

/// The cluster. What is dropped first stands first.
pub(crate) struct Fleet {
    /// The processes.
    pub(crate) cluster: Cluster,
    /// What is between them.
    pub(crate) proxy: Proxy,
    /// Where each is, in namespace mode.
    pub(crate) spaces: Option<Namespaces>,
    /// The small disk, and whose it is.
    pub(crate) disk: Option<(u64, SmallDisk)>,
    /// What the faults make of it.
    pub(crate) world: Arc<World>,
    /// Nodes that must be running.
    pub(crate) running: BTreeSet<u64>,
    /// Where each node serves HTTP.
    pub(crate) http: Vec<SocketAddr>,
    /// On which nodes each shard is, the meta shard among them.
    pub(crate) replicas: BTreeMap<u64, Vec<u64>>,
    /// How it was made.
    pub(crate) plan: Plan,
    folder: Folder,
}

/// The folder of a run, which stays when the test fails.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("logs, histories and schedule are kept in {}", self.0.display());
        } else {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

impl Fleet {
    /// Founds a cluster and starts it anew under our hands; says which mode it is, and what is left out.
    pub(crate) fn new(plan: Plan) -> Self {
        let prefix = format!("{}{}-", disk::FOLDER_PREFIX, std::process::id());
        let folder = Folder(tempfile::Builder::new().prefix(&prefix).tempdir().unwrap().keep());
        let mut cluster = Cluster::prepare(plan.nodes, plan.shards, Some(&folder.0.join("nodes")));
        cluster.start_dev();
        cluster.stop_dev(Signal::INT);
        make_blanks(&cluster);

        let spaces = (plan.mode == Mode::Namespaces).then(|| Namespaces::new(plan.nodes));
        let spaces = spaces.and_then(|made| made.map_err(|why| println!("no namespaces, the proxy does everything: {why}")).ok());
        let mode = if spaces.is_some() { Mode::Namespaces } else { Mode::Proxy };
        let plan = Plan { mode, ..plan };
        println!("mode {}, {} nodes, {} shards, seed {}, leases {}", mode.name(), plan.nodes, plan.shards, plan.seed, plan.lease);

        let small = Dice::new(plan.seed ^ 0xd15c).within(1..=plan.nodes);
        let disk = SmallDisk::mount(&cluster.home(small).join("disk"));
        let disk = disk.map_err(|why| println!("SKIPPED: full disks, for no small one can be mounted: {why}")).ok();
        if let Some(disk) = &disk {
            let needed = disk::BYTES / 2;
            assert!(disk.free_bytes() > needed, "the small disk has only {} bytes", disk.free_bytes());
            disk::copy(&cluster.home(small).join("data"), &cluster.home(small).join("disk/data")).unwrap();
            fs::remove_dir_all(cluster.home(small).join("data")).unwrap();
            println!("node {small} has a small disk");
        }
        let disk = disk.map(|disk| (small, disk));

        let network = Network::new(&cluster, spaces.as_ref());
        let proxy = Proxy::start(plan.seed, &network.circuits).unwrap();
        for node in cluster.all() {
            if let Some(spaces) = &spaces {
                cluster.launchers.insert(node, spaces.launcher(node));
            }
        }
        let small = disk.as_ref().map(|(node, _)| *node);
        cluster.edit_config(|config| edit(config, &plan, &network, &proxy, small));
        cluster.client = Client::at(&network.http, Duration::from_secs(10));
        let http = network.http;
        let (running, replicas) = Default::default();
        let mut fleet =
            Self { cluster, proxy, spaces, disk, world: Arc::new(World::new()), running, http, replicas, plan, folder };
        fleet.start_all(&fleet.cluster.all());
        fleet.replicas = fleet.placement();
        fleet
    }

    /// The folder that is kept after a failure.
    pub(crate) fn folder(&self) -> &std::path::Path {
        &self.folder.0
    }

    /// Where a node's data are.
    pub(crate) fn data(&self, node: u64) -> PathBuf {
        let is_small = self.disk.as_ref().is_some_and(|(small, _)| *small == node);
        self.cluster.home(node).join(if is_small { "disk/data" } else { "data" })
    }

    /// Starts nodes, all before the first is waited for.
    pub(crate) fn start_all(&mut self, nodes: &[u64]) {
        for node in nodes {
            self.spawn(*node);
        }
        for node in nodes {
            self.wait_ready(*node);
        }
    }

    /// Starts a node; from now on it must run.
    pub(crate) fn spawn(&mut self, node: u64) {
        self.cluster.spawn(node);
        self.running.insert(node);
    }

    /// Waits until a node is ready, and watches meanwhile that nobody ends.
    pub(crate) fn wait_ready(&mut self, node: u64) {
        let client = self.cluster.client.patience(Duration::from_secs(2));
        let deadline = Instant::now() + PATIENCE;
        loop {
            let said = match client.send(node, "GET", "/readyz?verbose", &[], None) {
                Ok(answer) if answer.status == 200 => return,
                Ok(answer) => answer.text(),
                Err(error) => error.to_string(),
            };
            self.check_running();
            assert!(Instant::now() < deadline, "node {node} is not ready {PATIENCE:?} after all was healed; it says {said}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// `kill -9`; the process is gone afterwards.
    pub(crate) fn kill_all(&mut self, nodes: &[u64]) {
        for node in nodes {
            self.running.remove(node);
            self.cluster.signal(*node, Signal::KILL);
        }
        for node in nodes {
            self.cluster.wait_gone(*node, Duration::from_secs(10));
        }
    }

    /// Panics where a node has ended that nobody killed.
    pub(crate) fn check_running(&mut self) {
        let ended: Vec<u64> = self.running.iter().copied().filter(|node| self.cluster.exited(*node)).collect();
        if let Some(node) = ended.first() {
            self.running.remove(node);
            panic!("node {node} ended by itself:\n{}", self.cluster.log_tail(*node, 8));
        }
    }

    /// A node's log from this byte on.
    pub(crate) fn log_from(&self, node: u64, from: usize) -> String {
        let log = fs::read(self.cluster.home(node).join("flotilla.log")).unwrap_or_default();
        String::from_utf8_lossy(log.get(from..).unwrap_or_default()).into_owned()
    }

    /// On which nodes each shard is.
    fn placement(&self) -> BTreeMap<u64, Vec<u64>> {
        let list = self.cluster.client.json(1, "/v1/admin/shards?limit=1000");
        let shards = list["shards"].as_array().unwrap().iter().map(|shard| {
            let replicas = shard["replicas"].as_array().unwrap().iter().map(|replica| replica["node"].as_u64().unwrap());
            (shard["id"].as_u64().unwrap(), replicas.collect())
        });
        shards.collect()
    }

    /// Waits until all replicas of all shards have applied the same, and are equal by hash. How long that took.
    ///
    /// Unlike the harness's own, also where a shard is not on every node.
    pub(crate) fn wait_equal(&self, patience: Duration) -> Duration {
        let begun = Instant::now();
        for (shard, nodes) in &self.replicas {
            let path = format!("/v1/admin/shards/{shard}?hash=1");
            until(&format!("all replicas of shard {shard} are equal"), patience, || {
                let mut seen = BTreeMap::new();
                for node in nodes {
                    let answer = self.cluster.client.send(*node, "GET", &path, &[], None).ok().filter(|a| a.status == 200)?;
                    let local = answer.json()["local"].clone();
                    seen.insert(*node, (local["applied"].as_u64()?, local["hash"].as_str()?.to_owned()));
                }
                let (applied, hash) = seen.values().next()?;
                let same = seen.values().all(|(other, _)| other == applied);
                let equal = seen.values().all(|(_, other)| other == hash);
                assert!(!same || equal, "shard {shard}: replicas differ at the same index: {seen:?}");
                same.then_some(())
            });
        }
        begun.elapsed()
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // The small disk goes with its mount; what was on it is wanted, too.
        if let (true, Some((node, _))) = (std::thread::panicking(), &self.disk) {
            let _ = disk::copy(&self.data(*node), &self.folder.0.join(format!("disk-of-n{node}")));
        }
    }
}

/// For each node a directory as it has it after its disk was lost: founded anew, from the same configuration, with nothing in it.
///
/// Made before the configurations are changed, because a node that founds itself with other addresses is turned away for those
/// already; here it is to be turned away because it has forgotten what it promised, and for nothing else.
fn make_blanks(cluster: &Cluster) {
    let nodes = cluster.all().into_iter().map(|node| {
        let log = cluster.home(node).join("blank.log");
        let mut command = cluster.start_command(node);
        command.arg("--data").arg(cluster.home(node).join("blank")).args(["--http", "127.0.0.1:0", "--quic", "127.0.0.1:0"]);
        let output = fs::File::create(&log).unwrap();
        (node, log, command.stdout(output.try_clone().unwrap()).stderr(output).spawn().unwrap())
    });
    for (node, log, mut child) in nodes.collect::<Vec<_>>() {
        until(&format!("node {node} founds itself"), PATIENCE, || {
            fs::read_to_string(&log).unwrap().contains("data opened").then_some(())
        });
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

/// Where everything is reached.
struct Network {
    http: Vec<SocketAddr>,
    quic: Vec<SocketAddr>,
    circuits: Vec<Circuit>,
}

impl Network {
    fn new(cluster: &Cluster, spaces: Option<&Namespaces>) -> Self {
        let loopback = std::net::IpAddr::from([127, 0, 0, 1]);
        // In a namespace of its own every node has all ports.
        let address = |node, port| match spaces {
            Some(spaces) => SocketAddr::new(spaces.inside(node), port),
            None => SocketAddr::new(loopback, cluster.http(node) + if port == 7101 { 100 } else { 0 }),
        };
        let [http, quic] = [7001, 7101].map(|port| cluster.all().into_iter().map(|node| address(node, port)).collect::<Vec<_>>());
        let mut circuits = Vec::new();
        for (from, to) in cluster.all().into_iter().flat_map(|from| cluster.others(from).into_iter().map(move |to| (from, to))) {
            let ends = spaces.map_or([loopback; 2], |spaces| [spaces.outside(from, to), spaces.outside(to, from)]);
            circuits.push(Circuit {
                from,
                to,
                from_address: quic[from as usize - 1],
                to_address: quic[to as usize - 1],
                front: SocketAddr::new(ends[0], 0),
                back: SocketAddr::new(ends[1], 0),
            });
        }
        Self { http, quic, circuits }
    }
}

/// Changes one node's configuration.
fn edit(config: &mut toml::Table, plan: &Plan, network: &Network, proxy: &Proxy, small: Option<u64>) {
    let node = config["node"].as_integer().unwrap() as u64;
    let set = |config: &mut toml::Table, table: &str, key: &str, value: toml::Value| {
        config[table].as_table_mut().unwrap().insert(key.into(), value);
    };
    config["http"] = network.http[node as usize - 1].to_string().into();
    config["quic"] = network.quic[node as usize - 1].to_string().into();
    for peer in config["peers"].as_array_mut().unwrap() {
        let id = peer["id"].as_integer().unwrap() as u64;
        let quic = if id == node { network.quic[id as usize - 1] } else { proxy.front(node, id) };
        peer["quic"] = quic.to_string().into();
        peer["http"] = network.http[id as usize - 1].to_string().into();
    }
    // The least that is allowed, so that who was away for a second or two gets a snapshot.
    set(config, "log", "bytes_per_shard_max", (64 << 10).into());
    for (key, bytes) in [("log_memtable_bytes", 8 << 20), ("data_memtable_bytes", 8 << 20), ("wal_bytes_max", 32 << 20)] {
        set(config, "storage", key, bytes.into());
    }
    // A developer's disk may be nearly full; it is not what is tested here.
    let reserve = if small == Some(node) { disk::RESERVE_BYTES } else { 16 << 20 };
    set(config, "storage", "reserve_bytes", (reserve as i64).into());
    if small == Some(node) {
        config["data"] = "disk/data".into();
    }
    if plan.lease {
        set(config, "reads", "lease", true.into());
        set(config, "reads", "default_consistency", "lease".into());
    }
}
