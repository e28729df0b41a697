//! A cluster whose network and disks the test holds in its hands.
//!
//! It is bootstrapped and stopped; then every configuration is changed (where the peers are
//! reached: through the proxy; small logs, so that snapshots happen; for one node a small disk),
//! and every node is started by itself.
//!
//! It never outlives its test: processes end first, then namespaces, mounts and the folder go.
//! After a failure the folder stays, with logs, histories and schedule.

use super::health::Health;
use super::namespace::Namespaces;
use super::proxy::{Circuit, Proxy};
use flotilla_kit::disk::{SmallDisk, copy};
use flotilla_kit::{Client, Fleet, PATIENCE, Rng, set, until};
use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How large a small disk is.
const DISK_BYTES: u64 = 320 << 20;
/// What its node is told to keep free on it.
pub(crate) const RESERVE_BYTES: u64 = 96 << 20;

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
    /// Draws faults, what becomes of datagrams, and settings.
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
pub(crate) struct Harness {
    /// What is between the processes.
    pub(crate) proxy: Proxy,
    /// Where each is, in namespace mode.
    pub(crate) spaces: Option<Namespaces>,
    /// The small disk, and whose it is.
    pub(crate) disk: Option<(u64, SmallDisk)>,
    /// The processes.
    pub(crate) fleet: Fleet,
    /// What the faults make of them.
    pub(crate) health: Arc<Health>,
    /// Where each node serves HTTP.
    pub(crate) http: Vec<SocketAddr>,
    /// On which nodes each shard is, the meta shard among them.
    pub(crate) replicas: BTreeMap<u64, Vec<u64>>,
    /// How it was made.
    pub(crate) plan: Plan,
}

impl Harness {
    /// Bootstraps a cluster and starts it anew under our hands; says which mode it is, and what is
    /// left out.
    pub(crate) fn new(plan: Plan) -> Self {
        let mut fleet = Fleet::bootstrapped(plan.nodes, plan.shards, |_| {});
        make_blanks(&fleet);

        let spaces = (plan.mode == Mode::Namespaces).then(|| Namespaces::new(plan.nodes));
        let spaces = spaces.and_then(|made| {
            made.map_err(|why| println!("no namespaces, the proxy does everything: {why}")).ok()
        });
        let mode = if spaces.is_some() { Mode::Namespaces } else { Mode::Proxy };
        let plan = Plan { mode, ..plan };
        println!(
            "mode {}, {} nodes, {} shards, seed {}, leases {}",
            mode.name(),
            plan.nodes,
            plan.shards,
            plan.seed,
            plan.lease
        );

        let small = Rng::new(plan.seed ^ 0xd15c).within(1..=plan.nodes);
        let home = fleet.home(small);
        let disk = SmallDisk::mount(&home.join("disk"), DISK_BYTES);
        let disk = disk
            .map_err(|why| println!("SKIPPED: full disks, for no small one can be mounted: {why}"))
            .ok();
        if let Some(disk) = &disk {
            assert!(
                disk.free_bytes() > DISK_BYTES / 2,
                "the small disk has only {} bytes",
                disk.free_bytes()
            );
            copy(&home.join("data"), &home.join("disk/data")).unwrap();
            fs::remove_dir_all(home.join("data")).unwrap();
            println!("node {small} has a small disk");
        }
        let disk = disk.map(|disk| (small, disk));

        let network = Network::new(&fleet, spaces.as_ref());
        let proxy = Proxy::start(plan.seed, &network.circuits).unwrap();
        if let Some(spaces) = &spaces {
            fleet
                .launchers
                .extend(fleet.all().into_iter().map(|node| (node, spaces.launcher(node))));
        }
        let small = disk.as_ref().map(|(node, _)| *node);
        fleet.edit_config(|config| edit(config, &plan, &network, &proxy, small));
        fleet.client = Client::new(&*network.http, Duration::from_secs(10));
        fleet.start_all(&fleet.all());
        let replicas = fleet.placement();
        Self {
            proxy,
            spaces,
            disk,
            fleet,
            health: Arc::new(Health::new()),
            http: network.http,
            replicas,
            plan,
        }
    }

    /// Where a node's data are.
    pub(crate) fn data(&self, node: u64) -> PathBuf {
        let is_small = self.disk.as_ref().is_some_and(|(small, _)| *small == node);
        self.fleet.home(node).join(if is_small { "disk/data" } else { "data" })
    }
}

impl Drop for Harness {
    fn drop(&mut self) {
        self.fleet.end();
        // The small disk goes with its mount; what was on it is wanted, too.
        if let (true, Some((node, _))) = (std::thread::panicking(), &self.disk) {
            let _ = copy(&self.data(*node), &self.fleet.scratch().join(format!("disk-of-n{node}")));
        }
    }
}

/// For each node a directory as it has it after its disk was lost: made anew, from the same
/// configuration, with nothing in it.
///
/// Made before the configurations are changed, because a node that bootstraps with other
/// addresses is turned away for those already; here it is to be turned away because it has
/// forgotten what it promised, and for nothing else.
fn make_blanks(fleet: &Fleet) {
    let nodes = fleet.all().into_iter().map(|node| {
        let log = fleet.home(node).join("blank.log");
        let mut command = fleet.start_command(node);
        command.arg("--data").arg(fleet.home(node).join("blank")).args([
            "--http",
            "127.0.0.1:0",
            "--quic",
            "127.0.0.1:0",
        ]);
        let output = fs::File::create(&log).unwrap();
        (node, log, command.stdout(output.try_clone().unwrap()).stderr(output).spawn().unwrap())
    });
    for (node, log, mut child) in nodes.collect::<Vec<_>>() {
        until(&format!("node {node} bootstraps"), PATIENCE, || {
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
    fn new(fleet: &Fleet, spaces: Option<&Namespaces>) -> Self {
        let loopback = std::net::IpAddr::from([127, 0, 0, 1]);
        // In a namespace of its own every node has all ports.
        let address = |node, port| match spaces {
            Some(spaces) => SocketAddr::new(spaces.inside(node), port),
            None => {
                SocketAddr::new(loopback, fleet.http(node) + if port == 7101 { 100 } else { 0 })
            }
        };
        let [http, quic] = [7001, 7101].map(|port| {
            fleet.all().into_iter().map(|node| address(node, port)).collect::<Vec<_>>()
        });
        let mut circuits = Vec::new();
        for (from, to) in fleet
            .all()
            .into_iter()
            .flat_map(|from| fleet.others(from).into_iter().map(move |to| (from, to)))
        {
            let ends = spaces.map_or([loopback; 2], |spaces| {
                [spaces.outside(from, to), spaces.outside(to, from)]
            });
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
fn edit(
    config: &mut toml::Table,
    plan: &Plan,
    network: &Network,
    proxy: &Proxy,
    small: Option<u64>,
) {
    let node = config["node"].as_integer().unwrap() as u64;
    config["http"] = network.http[node as usize - 1].to_string().into();
    config["quic"] = network.quic[node as usize - 1].to_string().into();
    for peer in config["peers"].as_array_mut().unwrap() {
        let id = peer["id"].as_integer().unwrap() as u64;
        let quic = if id == node { network.quic[id as usize - 1] } else { proxy.front(node, id) };
        peer["quic"] = quic.to_string().into();
        peer["http"] = network.http[id as usize - 1].to_string().into();
    }
    // The least that is allowed, so that who was away for a second or two gets a snapshot.
    set(config, "log", "bytes_per_shard_max", 64 << 10);
    for (key, bytes) in [
        ("log_memtable_bytes", 8 << 20),
        ("data_memtable_bytes", 8 << 20),
        ("wal_bytes_max", 32 << 20),
    ] {
        set(config, "storage", key, bytes);
    }
    // A developer's disk may be nearly full; it is not what is tested here.
    let reserve = if small == Some(node) { RESERVE_BYTES } else { 16 << 20 };
    set(config, "storage", "reserve_bytes", reserve as i64);
    if small == Some(node) {
        config["data"] = "disk/data".into();
    }
    if plan.lease {
        set(config, "reads", "lease", true);
        set(config, "reads", "default_consistency", "lease");
    }
}
