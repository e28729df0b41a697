//! The server: a bound port, and the tasks that accept on it. [`super::crowd`] has the connections
//! that are open.
//!
//! **Shutting down**: no more connections; those that are idle close, those with a request in
//! flight answer it with `Connection: close` (HTTP/2: GOAWAY) and close; what is left when the
//! grace is over is dropped. A write that was proposed goes on in the node whatever happens here.

use super::connection;
use super::crowd::{Crowd, KEPT_PLACES, kept_places};
use super::leash::Leash;
use super::pages::Pages;
use super::service::App;
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::traits::{Admin, Inspect, Kv};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 4096;

/// Why the server could not be started.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody listens there already.
    #[error(
        "HTTP address {addr} is in use already: stop what listens there (is the node running?), or \
         choose another address"
    )]
    InUse {
        /// The address.
        addr: SocketAddr,
    },
    /// The address can't be had for another reason.
    #[error("listen for HTTP on {addr}: {error}")]
    Io {
        /// The address.
        addr: SocketAddr,
        /// What the system says.
        error: io::Error,
    },
    /// The limits can't work.
    #[error("limits: {0}")]
    Limits(String),
}

/// What a server answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Serves {
    /// The whole API, also to these hosts and web pages.
    Everything(Pages),
    /// `/livez`, `/readyz` and `/metrics`, for an address of their own, also to these hosts and web
    /// pages.
    Probes(Pages),
}

/// A running HTTP server. Dropped, it accepts no more; [`Server::shutdown`] ends it in good order.
pub struct Server {
    addr: SocketAddr,
    crowd: Arc<Crowd>,
    /// Tells the accepting tasks to end.
    stop: watch::Sender<bool>,
    accepting: Vec<tokio::task::JoinHandle<()>>,
}

impl Server {
    /// Connections that a server takes beyond its limit, at most, for a moment each: those that
    /// look whether the node is well.
    pub const KEPT_PLACES: usize = KEPT_PLACES;

    /// The most connections that a server has with these limits.
    pub fn connections_of(limits: &Limits) -> usize {
        limits.connections_max + kept_places(limits.connections_max)
    }

    /// Listens on `addr` (port 0 for any) and serves from now on. To be called within a tokio
    /// runtime.
    pub async fn bind<K: Kv, A: Admin, I: Inspect>(
        addr: SocketAddr,
        limits: Limits,
        serves: Serves,
        kv: Arc<K>,
        admin: Arc<A>,
        inspect: Arc<I>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, BindError> {
        limits.check().map_err(BindError::Limits)?;
        let accept_loops = limits.accept_loops;
        let listener = listen(addr).map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => BindError::InUse { addr },
            _ => BindError::Io { addr, error },
        })?;
        let addr = listener.local_addr().map_err(|error| BindError::Io { addr, error })?;
        let app = Arc::new(App::new(limits, serves, kv, admin, inspect, metrics.clone()));
        let crowd = Crowd::new(app.limits.connections_max, app.shares.clone(), metrics);
        let listener = Arc::new(listener);
        let (stop, stopped) = watch::channel(false);
        let accepting = (0..accept_loops)
            .map(|_| {
                tokio::spawn(accept(listener.clone(), app.clone(), crowd.clone(), stopped.clone()))
            })
            .collect();
        Ok(Self { addr, crowd, stop, accepting })
    }

    /// The address that it listens on, with the port that it got.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// How many connections are open.
    pub fn connections(&self) -> usize {
        self.crowd.open()
    }

    /// Accepts no more, answers what is in flight, and closes; what takes longer than `grace` is
    /// dropped. Returns how many connections were.
    pub async fn shutdown(self, grace: Duration) -> usize {
        let Self { crowd, stop, accepting, .. } = self;
        let _ = stop.send(true);
        for task in accepting {
            let _ = task.await;
        }
        crowd.pull_all(Leash::FINISH);
        let in_order = tokio::time::timeout(grace, crowd.until_closed()).await.is_ok();
        if in_order {
            return 0;
        }
        let left = crowd.open();
        crowd.pull_all(Leash::DROP);
        let _ = tokio::time::timeout(Duration::from_secs(1), crowd.until_closed()).await;
        left
    }
}

/// The server without a port: it serves what it is handed. Public for fuzzing alone, which brings
/// connections from memory, far faster than any socket could.
#[doc(hidden)]
pub struct Offline<K, A, I>(Arc<App<K, A, I>>);

impl<K: Kv, A: Admin, I: Inspect> Offline<K, A, I> {
    /// A server in front of this node.
    pub fn new(
        limits: Limits,
        kv: Arc<K>,
        admin: Arc<A>,
        inspect: Arc<I>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self(Arc::new(App::new(
            limits,
            Serves::Everything(Pages::default()),
            kv,
            admin,
            inspect,
            metrics,
        )))
    }

    /// Serves one connection to its end.
    pub async fn serve(&self, stream: impl connection::Socket) {
        let account = self.0.shares.open(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        connection::serve(stream, true, self.0.clone(), Arc::default(), account, false).await;
    }
}

/// Binds the port. Not with `SO_REUSEPORT`: two nodes on one port would then share its connections
/// instead of one being told.
fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A port whose last owner was killed is free at once.
    #[cfg(unix)]
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)
}

/// Accepts connections until told to stop.
async fn accept<K: Kv, A: Admin, I: Inspect>(
    listener: Arc<TcpListener>,
    app: Arc<App<K, A, I>>,
    crowd: Arc<Crowd>,
    mut stopped: watch::Receiver<bool>,
) {
    loop {
        let accepted = tokio::select! {
            biased;
            _ = stopped.changed() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, address) = match accepted {
            Ok((stream, address)) => (stream, address.ip()),
            Err(error) => {
                if !is_about_one_connection(&error) {
                    // Out of files or memory: that passes when connections close, and asking again
                    // at once would only burn CPU.
                    if let Some(unsaid) = crowd.not_accepted.pass(Instant::now()) {
                        tracing::warn!(%error, unsaid, "HTTP connections could not be accepted; \
                                                        tries again");
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                continue;
            }
        };
        app.metrics.http.connections_accepted.inc();
        let _ = stream.set_nodelay(true);
        let open = crowd.enter(address);
        let app = app.clone();
        let on_loopback =
            stream.local_addr().is_ok_and(|addr| addr.ip().to_canonical().is_loopback());
        tokio::spawn(async move {
            connection::serve(
                stream,
                on_loopback,
                app,
                open.leash.clone(),
                open.account.clone(),
                open.kept,
            )
            .await;
            drop(open);
        });
    }
}

/// Whether an error of accepting is about the connection that was to be accepted, and not about us.
fn is_about_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}
