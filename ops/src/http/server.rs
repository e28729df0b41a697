//! The server: a bound port, the tasks that accept on it, and the connections that are open.
//!
//! **Shutting down**: no more connections; those that are idle close, those with a request in flight answer it with
//! `Connection: close` (HTTP/2: GOAWAY) and close; what is left when the grace is over is dropped. A write that was proposed goes on
//! in the node whatever happens here.

use super::connection::{self, Leash};
use super::pages::Pages;
use super::service::App;
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::problem::Problem;
use crate::traits::{Admin, Inspect, Kv};
use flotilla_router::Throttle;
use http::StatusCode;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Notify, watch};

/// Connections that are being told that there are too many, at a time; more are closed without a word.
const REFUSALS_MAX: usize = 128;
/// The same complaint is logged again after so long.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);
/// Connections that may wait to be accepted.
const BACKLOG: u32 = 4096;

/// Why the server could not be started.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody listens there already.
    #[error("HTTP address {addr} is in use already: stop what listens there (is the node running?), or choose another address")]
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

/// A running HTTP server. Dropped, it accepts no more; [`Server::shutdown`] ends it in good order.
pub struct Server {
    addr: SocketAddr,
    control: Arc<Control>,
    /// Tells the accepting tasks to end.
    stop: watch::Sender<bool>,
    accepting: Vec<tokio::task::JoinHandle<()>>,
}

/// The open connections.
struct Control {
    connections: Mutex<Connections>,
    /// How many there are.
    open: AtomicUsize,
    /// Connections that are being refused.
    refusing: AtomicUsize,
    /// When it was last said that there are too many connections,
    too_many: Throttle,
    /// and that none could be accepted. Clients decide how often there is reason to.
    not_accepted: Throttle,
    /// Called when the last one closed.
    all_closed: Notify,
}

impl Default for Control {
    fn default() -> Self {
        Self {
            connections: Mutex::default(),
            open: AtomicUsize::new(0),
            refusing: AtomicUsize::new(0),
            too_many: Throttle::new(COMPLAIN_EVERY),
            not_accepted: Throttle::new(COMPLAIN_EVERY),
            all_closed: Notify::new(),
        }
    }
}

#[derive(Default)]
struct Connections {
    next: u64,
    leashes: HashMap<u64, Arc<Leash>>,
    /// What every connection was told.
    phase: u8,
}

impl Control {
    fn connections(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells all connections, also those that come later.
    fn pull_all(&self, phase: u8) {
        let mut connections = self.connections();
        connections.phase = connections.phase.max(phase);
        for leash in connections.leashes.values() {
            leash.pull(phase);
        }
    }
}

/// An open connection: counted, and within reach of the server, while this lives.
struct Open {
    control: Arc<Control>,
    metrics: Arc<Metrics>,
    id: u64,
    leash: Arc<Leash>,
}

impl Open {
    fn new(control: &Arc<Control>, metrics: &Arc<Metrics>) -> Self {
        let leash = Arc::new(Leash::default());
        let mut connections = control.connections();
        let id = connections.next;
        connections.next += 1;
        connections.leashes.insert(id, leash.clone());
        if connections.phase > 0 {
            leash.pull(connections.phase);
        }
        drop(connections);
        control.open.fetch_add(1, Ordering::SeqCst);
        metrics.http.connections.inc();
        Self { control: control.clone(), metrics: metrics.clone(), id, leash }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.control.connections().leashes.remove(&self.id);
        self.metrics.http.connections.dec();
        if self.control.open.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.control.all_closed.notify_waiters();
        }
    }
}

impl Server {
    /// Listens on `addr` (port 0 for any) and serves from now on. To be called within a tokio runtime.
    pub async fn bind<K: Kv, A: Admin, I: Inspect>(
        addr: SocketAddr,
        limits: Limits,
        pages: Pages,
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
        let app = Arc::new(App::new(limits, pages, kv, admin, inspect, metrics));
        let (listener, control) = (Arc::new(listener), Arc::new(Control::default()));
        let (stop, stopped) = watch::channel(false);
        let accepting = (0..accept_loops)
            .map(|_| tokio::spawn(accept(listener.clone(), app.clone(), control.clone(), stopped.clone())))
            .collect();
        Ok(Self { addr, control, stop, accepting })
    }

    /// The address that it listens on, with the port that it got.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// How many connections are open.
    pub fn connections(&self) -> usize {
        self.control.open.load(Ordering::SeqCst)
    }

    /// Accepts no more, answers what is in flight, and closes; what takes longer than `grace` is dropped. Returns how many
    /// connections were.
    pub async fn shutdown(self, grace: Duration) -> usize {
        let Self { control, stop, accepting, .. } = self;
        let _ = stop.send(true);
        for task in accepting {
            let _ = task.await;
        }
        control.pull_all(Leash::FINISH);
        let in_order = tokio::time::timeout(grace, until_closed(&control)).await.is_ok();
        if in_order {
            return 0;
        }
        let left = control.open.load(Ordering::SeqCst);
        control.pull_all(Leash::DROP);
        let _ = tokio::time::timeout(Duration::from_secs(1), until_closed(&control)).await;
        left
    }
}

/// The server without a port: it serves what it is handed. Public for fuzzing alone, which brings connections from memory, far
/// faster than any socket could.
#[doc(hidden)]
pub struct Offline<K, A, I>(Arc<App<K, A, I>>);

impl<K: Kv, A: Admin, I: Inspect> Offline<K, A, I> {
    /// A server in front of this node.
    pub fn new(limits: Limits, kv: Arc<K>, admin: Arc<A>, inspect: Arc<I>, metrics: Arc<Metrics>) -> Self {
        Self(Arc::new(App::new(limits, Pages::default(), kv, admin, inspect, metrics)))
    }

    /// Serves one connection to its end.
    pub async fn serve(&self, stream: impl connection::Socket) {
        connection::serve(stream, true, self.0.clone(), Arc::default()).await;
    }
}

/// Waits until no connection is open.
async fn until_closed(control: &Control) {
    loop {
        let mut closed = std::pin::pin!(control.all_closed.notified());
        closed.as_mut().enable();
        if control.open.load(Ordering::SeqCst) == 0 {
            return;
        }
        closed.await;
    }
}

/// Binds the port. Not with `SO_REUSEPORT`: two nodes on one port would then share its connections instead of one being told.
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
    control: Arc<Control>,
    mut stopped: watch::Receiver<bool>,
) {
    loop {
        let accepted = tokio::select! {
            biased;
            _ = stopped.changed() => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                if !is_about_one_connection(&error) {
                    // Out of files or memory: that passes when connections close, and asking again at once would only burn CPU.
                    if let Some(unsaid) = control.not_accepted.pass(Instant::now()) {
                        tracing::warn!(%error, unsaid, "HTTP connections could not be accepted; tries again");
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                continue;
            }
        };
        app.metrics.http.connections_accepted.inc();
        let _ = stream.set_nodelay(true);
        if control.open.load(Ordering::SeqCst) >= app.limits.connections_max {
            app.metrics.http.connections_refused.inc();
            if let Some(unsaid) = control.too_many.pass(Instant::now()) {
                tracing::warn!(
                    connections_max = app.limits.connections_max,
                    unsaid,
                    "HTTP connections are refused: too many are open"
                );
            }
            refuse(stream, app.limits.connections_max, &control);
            continue;
        }
        let open = Open::new(&control, &app.metrics);
        let app = app.clone();
        let on_loopback = stream.local_addr().is_ok_and(|addr| addr.ip().to_canonical().is_loopback());
        tokio::spawn(async move {
            connection::serve(stream, on_loopback, app, open.leash.clone()).await;
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

/// Says that there are too many connections, and closes.
fn refuse(stream: TcpStream, connections_max: usize, control: &Arc<Control>) {
    // Each takes a file, and where few may be open, few are told.
    if control.refusing.fetch_add(1, Ordering::SeqCst) >= REFUSALS_MAX.min(connections_max / 32 + 1) {
        control.refusing.fetch_sub(1, Ordering::SeqCst);
        return;
    }
    let control = control.clone();
    tokio::spawn(async move {
        let detail = format!("this node has {connections_max} connections, and takes no more; close some, or ask another node");
        let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too_many_connections", "too many connections", detail)
            .retryable()
            .limit(connections_max as u64, None);
        connection::refuse(stream, &problem).await;
        control.refusing.fetch_sub(1, Ordering::SeqCst);
    });
}
