//! One peer: the connection that this node dials, and what waits to go over it.
//!
//! ```text
//!   waiting ──► dialling ──► connected ──┐
//!      ▲            │ failed             │ lost
//!      └────────────┴────────────────────┘
//! ```
//!
//! One task per peer goes round in this circle until the peer is removed or the transport stops.
//! Waiting grows from failure to failure, with jitter so that nodes don't dial in step, and ends
//! early when that node dials us: it is there, then. While there is no connection, queues are
//! closed and whatever is sent is dropped at once.

use crate::config::Config;
use crate::dial::dial;
use crate::frame::{FrameError, FrameReader};
use crate::handshake::Purpose;
use crate::lane::Lane;
use crate::outbox::Outbox;
use crate::quic::{self, Close};
use crate::requests::Requests;
use crate::round_trip::RoundTrip;
use crate::shared::{Shared, stopped};
use crate::stats::Stats;
use crate::writer;
use bytes::Bytes;
use flotilla_router::{Incarnation, NodeId, Throttle};
use quinn::Connection;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

/// At most this often a peer is reported unreachable while frames are dropped.
const REPORT_EVERY: Duration = Duration::from_millis(100);
/// How long what is queued may take to leave when the transport stops.
pub(crate) const FLUSH: Duration = Duration::from_millis(500);
/// A connection that lived this long was a good one: the next wait is short again.
const GOOD_CONNECTION: Duration = Duration::from_secs(1);
/// A failure to connect is logged at most so often, however it varies.
const COMPLAIN_EVERY: Duration = Duration::from_secs(5);
/// The control lane's stream goes before the others.
const CONTROL_PRIORITY: i32 = 1;

/// A connection that stands.
struct Live {
    /// Whom it leads to.
    incarnation: Incarnation,
    connection: Connection,
    round_trip: Arc<RoundTrip>,
}

/// A node that this node dials.
pub(crate) struct Peer {
    pub(crate) node: NodeId,
    address: Mutex<String>,
    /// Where that leads, as it was last looked up.
    found: Mutex<Vec<SocketAddr>>,
    control: Arc<Outbox>,
    append: Vec<Arc<Outbox>>,
    pub(crate) requests: Arc<Requests>,
    /// The connection, while there is one.
    connection: Mutex<Option<Live>>,
    /// Ends the wait before the next dialling.
    pub(crate) wake: Notify,
    /// Set when the peer is removed or the transport stops.
    pub(crate) stop: watch::Sender<bool>,
    /// When dropped frames were last reported, in milliseconds after `since`; 0 for never.
    reported_ms: AtomicU64,
    since: Instant,
}

impl Peer {
    /// A peer that is not dialled yet.
    pub(crate) fn new(node: NodeId, address: String, config: &Config, stats: &Arc<Stats>) -> Self {
        let outbox = || Arc::new(Outbox::new(config.outbox_bytes_max, config.frame_bytes_max));
        Self {
            node,
            // Most are no names, and known before anybody is dialled.
            found: Mutex::new(address.parse().into_iter().collect()),
            address: Mutex::new(address),
            control: outbox(),
            append: (0..config.append_lanes).map(|_| outbox()).collect(),
            requests: Arc::new(Requests::new(
                stats.clone(),
                config.request_bytes_in_flight_max,
                config.frame_bytes_max,
            )),
            connection: Mutex::new(None),
            wake: Notify::new(),
            stop: watch::Sender::new(false),
            reported_ms: AtomicU64::new(0),
            since: Instant::now(),
        }
    }

    /// Where it is dialled.
    pub(crate) fn address(&self) -> String {
        lock(&self.address).clone()
    }

    /// Notes where its address leads.
    pub(crate) fn found_at(&self, found: &[SocketAddr]) {
        *lock(&self.found) = found.to_vec();
    }

    /// Whether it is to be found there. A node dials from where it listens.
    pub(crate) fn is_at(&self, address: SocketAddr) -> bool {
        lock(&self.found).iter().any(|found| {
            found.ip().to_canonical() == address.ip().to_canonical()
                && found.port() == address.port()
        })
    }

    /// Dials it there from now on; a connection that stands is kept.
    pub(crate) fn set_address(&self, address: String) {
        *lock(&self.address) = address;
        self.wake.notify_one();
    }

    /// Whether there is a connection.
    pub(crate) fn is_connected(&self) -> bool {
        lock(&self.connection).is_some()
    }

    /// The round trip of the connection as it was last seen, while there is one.
    pub(crate) fn round_trip(&self) -> Option<Duration> {
        let round_trip = lock(&self.connection).as_ref()?.round_trip.clone();
        Some(round_trip.get())
    }

    /// Closes the connection if it leads to a former self of the node.
    pub(crate) fn close_older_than(&self, incarnation: Incarnation) {
        if let Some(live) = &*lock(&self.connection)
            && live.incarnation < incarnation
        {
            live.connection
                .close(Close::Superseded.into(), b"a newer incarnation of this node has come");
        }
    }

    /// Queues a frame; says whether it was taken.
    pub(crate) fn send(&self, lane: Lane, frame: Bytes, shared: &Shared) -> bool {
        let outbox = match lane {
            Lane::Control => &self.control,
            // A lane that is not there is a mistake of the caller's; the order within a shard holds
            // all the same.
            Lane::Append(n) => &self.append[usize::from(n) % self.append.len()],
        };
        let bytes = frame.len();
        match outbox.push(frame) {
            Ok(()) => true,
            Err(why) => {
                let stats = shared.stats.lane(lane);
                stats.frames_dropped.count();
                stats.bytes_dropped.add(bytes as u64);
                if self.may_report() {
                    tracing::debug!(peer = %self.node, ?lane, bytes, ?why, "frame dropped");
                    shared.handler.unreachable(self.node);
                }
                false
            }
        }
    }

    fn may_report(&self) -> bool {
        let now_ms =
            u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1);
        let last_ms = self.reported_ms.load(Relaxed);
        let is_due =
            last_ms == 0 || now_ms.saturating_sub(last_ms) >= REPORT_EVERY.as_millis() as u64;
        is_due && self.reported_ms.compare_exchange(last_ms, now_ms, Relaxed, Relaxed).is_ok()
    }
}

/// Dials a peer, again and again.
pub(crate) async fn run(shared: Arc<Shared>, peer: Arc<Peer>) {
    let mut stop = peer.stop.subscribe();
    let mut backoff = shared.config.connect_backoff_min;
    let mut last_failure = String::new();
    let may_complain = Throttle::new(COMPLAIN_EVERY);
    loop {
        let dialled = tokio::select! {
            dialled = dial(&shared, peer.node, peer.address(), Purpose::Lanes) => dialled,
            () = stopped(&mut stop) => return,
        };
        match dialled {
            Ok((connection, incarnation)) => {
                last_failure.clear();
                let started = Instant::now();
                let why = carry(&shared, &peer, connection, incarnation, &mut stop).await;
                if *stop.borrow() {
                    return;
                }
                shared.stats.connections_lost.count();
                tracing::info!(peer = %peer.node, why, "connection lost");
                if started.elapsed() >= GOOD_CONNECTION {
                    backoff = shared.config.connect_backoff_min;
                }
            }
            Err(why) => {
                shared.stats.connections_failed.count();
                // The same failure once a second would only fill the log; nor may whoever answers
                // there, with ever new reasons.
                if why != last_failure && may_complain.pass(Instant::now()).is_some() {
                    tracing::info!(peer = %peer.node, why, "can't connect; goes on trying");
                    last_failure = why;
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(jittered(backoff)) => {
                backoff = (backoff * 2).min(shared.config.connect_backoff_max);
            }
            () = peer.wake.notified() => backoff = shared.config.connect_backoff_min,
            () = stopped(&mut stop) => return,
        }
    }
}

/// Lets frames and requests flow until the connection ends or the peer is to stop; says why it
/// ended.
async fn carry(
    shared: &Arc<Shared>,
    peer: &Arc<Peer>,
    connection: Connection,
    incarnation: Incarnation,
    stop: &mut watch::Receiver<bool>,
) -> String {
    let mut writers = JoinSet::new();
    let mut readers = JoinSet::new();
    let started = start_streams(shared, peer, &connection, &mut writers, &mut readers).await;
    if let Err(why) = started {
        connection.close(Close::Protocol.into(), why.as_bytes());
        return why;
    }
    let measured = connection.clone();
    let round_trip = Arc::new(RoundTrip::new(move || measured.rtt()));
    *lock(&peer.connection) =
        Some(Live { incarnation, connection: connection.clone(), round_trip });
    for outbox in peer.outboxes() {
        outbox.open();
    }
    peer.requests.open();
    let address = connection.remote_address();
    tracing::info!(peer = %peer.node, %incarnation, %address, "connected");
    shared.handler.reachable(peer.node, incarnation);

    let why = tokio::select! {
        error = connection.closed() => quic::describe(&error),
        Some(_) = writers.join_next() => end_of(&connection, "a writer ended"),
        Some(ended) = readers.join_next() => match ended {
            Ok(Err(why)) => {
                shared.stats.protocol_errors.count();
                why
            }
            _ => end_of(&connection, "a reader ended"),
        },
        () = stopped(stop) => {
            // The writers have been told as well; they end when the peer has all that was queued.
            let drained = async { while writers.join_next().await.is_some() {} };
            let _ = tokio::time::timeout(FLUSH, drained).await;
            connection.close(Close::ShuttingDown.into(), b"this node is shutting down");
            "stopped".into()
        }
    };

    // First no more frames are taken, then those that wait are counted as dropped, then everybody
    // is told.
    *lock(&peer.connection) = None;
    connection.close(Close::Protocol.into(), why.as_bytes());
    writers.shutdown().await;
    readers.shutdown().await;
    for (lane, outbox) in peer.lanes() {
        let (frames, bytes) = outbox.close();
        let stats = shared.stats.lane(lane);
        stats.frames_dropped.add(frames as u64);
        stats.bytes_dropped.add(bytes as u64);
    }
    peer.requests.close();
    shared.handler.unreachable(peer.node);
    why
}

/// What ended a connection one of whose tasks ended first: its own reason, where it has one.
fn end_of(connection: &Connection, otherwise: &str) -> String {
    connection.close_reason().map_or_else(|| otherwise.to_owned(), |reason| quic::describe(&reason))
}

/// Opens a stream per lane and one for requests, and starts the tasks on them.
async fn start_streams(
    shared: &Arc<Shared>,
    peer: &Arc<Peer>,
    connection: &Connection,
    writers: &mut JoinSet<()>,
    readers: &mut JoinSet<Result<(), String>>,
) -> Result<(), String> {
    for (lane, outbox) in peer.lanes() {
        let mut stream = connection.open_uni().await.map_err(|error| quic::describe(&error))?;
        if lane == Lane::Control {
            stream.set_priority(CONTROL_PRIORITY).map_err(|error| error.to_string())?;
        }
        stream.write_all(&[lane.tag()]).await.map_err(|error| error.to_string())?;
        let kind: fn(&Stats) -> &_ = match lane {
            Lane::Control => |stats| &stats.control,
            Lane::Append(_) => |stats| &stats.append,
        };
        let write = writer::write(
            outbox.clone(),
            stream,
            shared.stats.clone(),
            kind,
            peer.stop.subscribe(),
        );
        // An error of a writer is one of the connection, whose reason is looked at.
        writers.spawn_on(async { drop(write.await) }, &shared.runtime);
    }
    let (send, receive) = connection.open_bi().await.map_err(|error| quic::describe(&error))?;
    let write = writer::write(
        peer.requests.clone(),
        send,
        shared.stats.clone(),
        |stats| &stats.requests,
        peer.stop.subscribe(),
    );
    writers.spawn_on(async { drop(write.await) }, &shared.runtime);
    let frames = FrameReader::new(receive, shared.config.frame_bytes_max);
    readers.spawn_on(
        read_answers(shared.clone(), peer.clone(), connection.clone(), frames),
        &shared.runtime,
    );
    Ok(())
}

/// Takes answers in until the connection ends, or the peer breaks the protocol: then says how.
async fn read_answers(
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    connection: Connection,
    mut frames: FrameReader,
) -> Result<(), String> {
    loop {
        match frames.next().await {
            Ok(Some(frame)) => {
                shared.stats.requests.frames_received.count();
                shared.stats.requests.bytes_received.add(frame.len() as u64);
                peer.requests.answered(frame).map_err(|error| error.to_string())?;
            }
            Ok(None) => {
                // A peer that shuts down ends its stream once it has answered all that it will; the
                // connection follows.
                connection.closed().await;
                return Ok(());
            }
            Err(FrameError::Read(_)) => return Ok(()),
            Err(error) => return Err(error.to_string()),
        }
    }
}

impl Peer {
    fn lanes(&self) -> impl Iterator<Item = (Lane, &Arc<Outbox>)> {
        let append = (0..).zip(&self.append).map(|(n, outbox)| (Lane::Append(n), outbox));
        std::iter::once((Lane::Control, &self.control)).chain(append)
    }

    fn outboxes(&self) -> impl Iterator<Item = &Arc<Outbox>> {
        self.lanes().map(|(_, outbox)| outbox)
    }
}

/// Between half and all of `backoff`.
fn jittered(backoff: Duration) -> Duration {
    backoff.mul_f64(fastrand::f64().midpoint(1.0))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nothing panics while it holds a peer")
}
