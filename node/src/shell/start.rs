//! A node, from its configuration to its shutdown.
//!
//! Start: lock and open the directory; bootstrap the cluster, unless this was done before; recover
//! every replica; start the hands, the loop, QUIC, HTTP. Stop: no new requests; hand leadership
//! over; answer what is in flight; stop the loop; close the engine.

use super::admin::Admin;
use super::config::{Config, TlsConfig};
use super::driver::{Driver, LoopState, Workers};
use super::forward::Forwarder;
use super::health::Health;
use super::lines::Lines;
use super::mailbox::Mailbox;
use super::peers::{Answerers, Peers};
use super::quic::QuicThreads;
use super::reading::Readers;
use super::service::Service;
use super::snapshots::Snapshots;
use super::space::Space;
use super::views::Views;
use super::{applier, bootstrap, figures, files, logger, writer};
use crate::core::{Identity, Node};
use anyhow::Context as _;
use flotilla_ops::{Limits, Metrics, Server, Serves};
use flotilla_router::cure::NO_WAY_BACK;
use flotilla_router::{Routes, Throttle};
use flotilla_storage::{Applier, Engine as _, FailPoint, RocksOptions, StorageError, disk};
use flotilla_transport::{Credentials, LeaseTerms, Transport, TransportError};
use std::sync::{Arc, OnceLock, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;

/// How often the disk's free space is looked at.
const DISK_INTERVAL: Duration = Duration::from_millis(200);
/// The same complaint about a peer is logged again after so long.
const COMPLAIN_EVERY: Duration = Duration::from_secs(30);
/// How often it is looked whether views that are kept for streams are too old.
const VIEWS_SWEEP: Duration = Duration::from_secs(5);

/// How long the address of probes has at a shutdown to answer what was asked there.
const PROBES_GRACE: Duration = Duration::from_millis(200);

/// A running node.
pub struct Running {
    server: Server,
    /// Serves probes on an address of their own, where configured.
    probes: Option<Server>,
    transport: Arc<Transport>,
    quic: QuicThreads,
    mailbox: Mailbox,
    engine: Arc<super::Engine>,
    threads: Vec<JoinHandle<()>>,
    space: Arc<Space>,
    snapshots: Arc<Snapshots>,
    disk_watch: tokio::task::JoinHandle<()>,
    grace: Duration,
    tls: TlsConfig,
}

/// Starts a node; it serves when this returns. Must be called within a tokio runtime.
pub async fn start(config: &Config) -> anyhow::Result<Running> {
    let started = Instant::now();
    let shares = files::share(config)?;
    let identity = flotilla_storage::Identity { cluster: config.cluster, node: config.node };
    let credentials = credentials(&config.tls)?;
    let rocks = RocksOptions { open_files_max: shares.open_files_max, ..config.rocks() };
    let opened = flotilla_storage::open(&config.data, identity, &rocks).map_err(with_cure)?;
    let (engine, incarnation) = (Arc::new(opened.engine), opened.incarnation);
    if !flotilla_storage::is_bootstrapped(&*engine).map_err(with_cure)? {
        let shards = bootstrap::descriptors(config);
        let contents = bootstrap::meta_contents(config, &shards);
        flotilla_storage::bootstrap(&*engine, &shards, config.node, &contents)
            .map_err(with_cure)?;
        tracing::info!(
            shards = shards.len() - 1,
            nodes = config.peers.len(),
            "a new cluster was bootstrapped"
        );
    }
    let recovered =
        flotilla_storage::recover(&*engine).map_err(with_cure).context("recover replicas")?;
    let routes = Arc::new(Routes::default());
    routes.learn(flotilla_storage::routes(&*engine).map_err(with_cure)?);
    tracing::info!(
        node = %config.node,
        %incarnation,
        replicas = recovered.len(),
        milliseconds = started.elapsed().as_millis() as u64,
        "data opened"
    );

    let metrics = Arc::new(Metrics::default());
    let mailbox = Mailbox::default();
    let runtime = Handle::current();
    Snapshots::clear(&config.data).context("clear away old snapshots")?;
    let space =
        Space::new(&config.data, engine.clone(), mailbox.clone(), config.storage.reserve_bytes)
            .context("look at the disk")?;
    let space = Arc::new(space);
    space.start()?;
    let snapshots = Snapshots::new(
        space.clone(),
        engine.clone(),
        mailbox.clone(),
        metrics.clone(),
        runtime.clone(),
        &config.data,
    );
    let snapshots = Arc::new(snapshots);
    let applier = Applier::new(&*engine, &recovered).map_err(with_cure)?;
    let (to_apply, to_write) = (Arc::default(), Arc::default());
    let mut threads = vec![
        writer::start(
            engine.clone(),
            mailbox.clone(),
            metrics.clone(),
            space.clone(),
            Arc::clone(&to_write),
        )?,
        applier::start(
            engine.clone(),
            applier,
            mailbox.clone(),
            snapshots.clone(),
            metrics.clone(),
            space.clone(),
            Arc::clone(&to_apply),
        )?,
    ];

    let known_directories =
        std::sync::Mutex::new(flotilla_storage::known_directories(&*engine).map_err(with_cure)?);
    let peers = Arc::new(Peers {
        engine: engine.clone(),
        members: config.peers.iter().map(|peer| peer.id).collect(),
        complaints: [Throttle::new(COMPLAIN_EVERY), Throttle::new(COMPLAIN_EVERY)],
        known_directories,
        mailbox: mailbox.clone(),
        snapshots: snapshots.clone(),
        answerers: OnceLock::new(),
        metrics: metrics.clone(),
        runtime,
    });
    let bootstrap = flotilla_storage::bootstrap_mark(&*engine)
        .map_err(with_cure)?
        .context("the data directory was bootstrapped just now")?;
    let identity = flotilla_transport::Identity {
        cluster: config.cluster,
        node: config.node,
        incarnation,
        bootstrap,
        directory: opened.directory,
        leases: config.core().lease_terms().map(|(tick_ms, election_ticks, drift_max_percent)| {
            LeaseTerms { tick_ms, election_ticks, drift_max_percent }
        }),
    };
    let quic = QuicThreads::start(config.threads)?;
    let transport = {
        let _on_its_own_threads = quic.enter();
        Arc::new(Transport::start(config.transport(), identity, &credentials, peers.clone())?)
    };

    // A client that reads slowly is waited for as long as `write_timeout` says.
    let idle_max = config.limits.write_timeout + config.limits.request_timeout + VIEWS_SWEEP;
    let views = Arc::new(Views::new(config.node, incarnation.0 << 32, idle_max));
    tokio::spawn(sweep(Arc::downgrade(&views)));
    let state = Arc::new(LoopState::default());
    figures::show(&metrics, &state, &transport);
    let core = Node::new(
        config.core().fit(disk(&config.data).context("look at the disk")?.capacity_bytes),
        Identity { node: config.node, incarnation },
        recovered,
        logger::logger(),
    );
    let workers = Workers {
        writer: to_write,
        applier: to_apply,
        snapshots: snapshots.clone(),
        runtime: Handle::current(),
        transport: transport.clone(),
        routes: routes.clone(),
        engine: engine.clone(),
        views: views.clone(),
        metrics: metrics.clone(),
        state: state.clone(),
    };
    let driver = Driver::new(core, workers, mailbox.clone());
    let tick = config.core().tick();
    threads.push(std::thread::Builder::new().name("loop".into()).spawn(move || driver.run(tick))?);

    let forwarder = Arc::new(Forwarder {
        node: config.node,
        routes: routes.clone(),
        transport: transport.clone(),
        metrics: metrics.clone(),
        tick,
    });
    let readers = Arc::new(Readers::default());
    let service = Arc::new(Service {
        forwarder: forwarder.clone(),
        mailbox: mailbox.clone(),
        default_consistency: config.reads.default_consistency.into(),
        readers: readers.clone(),
        lines: Lines::default(),
        views,
    });
    let admin = Arc::new(Admin {
        cluster: config.cluster,
        incarnation,
        nodes: config.peers.iter().map(|p| (p.id, (p.quic.clone(), p.http.clone()))).collect(),
        forwarder,
        readers,
        mailbox: mailbox.clone(),
        state: state.clone(),
        engine: engine.clone(),
        data: config.data.clone(),
        started,
    });
    let _ = peers.answerers.set(Answerers { service: service.clone(), admin: admin.clone() });
    let health = Arc::new(Health {
        node: config.node,
        mailbox: mailbox.clone(),
        state,
        routes,
        transport: transport.clone(),
        engine: engine.clone(),
        data: config.data.clone(),
        space: space.clone(),
        metrics: metrics.clone(),
    });
    let disk_watch = tokio::spawn(watch_disk(space.clone()));
    let pages = config.pages().map_err(anyhow::Error::msg)?;
    let probes = match config.metrics_address().map_err(anyhow::Error::msg)? {
        Some(address) => {
            let (limits, serves) = (Limits::of_probes(), Serves::Probes(pages.clone()));
            let (service, admin) = (service.clone(), admin.clone());
            Some(
                Server::bind(
                    address,
                    limits,
                    serves,
                    service,
                    admin,
                    health.clone(),
                    metrics.clone(),
                )
                .await?,
            )
        }
        None => None,
    };
    let limits = Limits { connections_max: shares.connections_max, ..config.limits.clone() };
    let server = Server::bind(
        config.http,
        limits,
        Serves::Everything(pages),
        service,
        admin,
        health,
        metrics,
    )
    .await?;
    Ok(Running {
        server,
        probes,
        transport,
        quic,
        mailbox,
        engine,
        threads,
        space,
        snapshots,
        disk_watch,
        grace: config.shutdown_grace,
        tls: config.tls.clone(),
    })
}

/// Reads the certificates.
fn credentials(tls: &TlsConfig) -> Result<Credentials, TransportError> {
    Credentials::load(&tls.ca, &tls.cert, &tls.key)
}

/// Gives up the views that streams have left behind.
async fn sweep(views: Weak<Views>) {
    while let Some(views) = views.upgrade() {
        views.sweep();
        drop(views);
        tokio::time::sleep(VIEWS_SWEEP).await;
    }
}

/// What is wrong with the data, and what to do about it.
fn with_cure(error: StorageError) -> anyhow::Error {
    if error.is_refusal() {
        return error.into();
    }
    anyhow::anyhow!(
        "{error}; nothing was skipped or removed: repair the disk or restore the directory as it \
         was when the node ran last; {NO_WAY_BACK}"
    )
}

/// Looks at the disk where nobody writes, either: others may.
async fn watch_disk(space: Arc<Space>) {
    loop {
        tokio::time::sleep(DISK_INTERVAL).await;
        space.look();
    }
}

impl Running {
    /// Where HTTP is served.
    pub fn http(&self) -> std::net::SocketAddr {
        self.server.local_addr()
    }

    /// Reads the certificates again; connections made from now on use them. Where that fails, the
    /// old ones stay.
    pub fn reload(&self) -> Result<(), TransportError> {
        self.transport.reload(&credentials(&self.tls)?)
    }

    /// Ends in good order: leadership handed over, requests in flight answered, everything durable.
    pub async fn shutdown(self) -> anyhow::Result<()> {
        let deadline = Instant::now() + self.grace;
        // Half of the time for the hand-over; where nobody can take over, the others elect.
        let _ = tokio::time::timeout(self.grace / 2, self.mailbox.drain()).await;
        let left = self.server.shutdown(deadline.saturating_duration_since(Instant::now())).await;
        if left > 0 {
            tracing::warn!(left, "connections were cut at the end of the grace");
        }
        if let Some(probes) = self.probes {
            // Until here it said that the node is stopping.
            probes.shutdown(PROBES_GRACE).await;
        }
        self.disk_watch.abort();
        self.space.stop();
        self.transport.shutdown().await;
        drop(self.quic);
        self.mailbox.stop();
        let threads = self.threads;
        tokio::task::spawn_blocking(move || threads.into_iter().for_each(|t| drop(t.join())))
            .await?;
        FailPoint::CloseBegun.pass()?;
        self.snapshots.stop();
        self.engine.close().context("close the data directory")?;
        FailPoint::CloseEnded.pass()?;
        tracing::info!("stopped");
        Ok(())
    }
}
