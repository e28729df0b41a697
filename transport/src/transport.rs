//! The transport as the node sees it: start, send, ask, send a snapshot, stop.

use crate::config::Config;
use crate::error::{RequestError, SnapshotError, TransportError};
use crate::handler::Handler;
use crate::handshake::Identity;
use crate::lane::Lane;
use crate::peer::{self, FLUSH, Peer};
use crate::quic::{self, Close};
use crate::shared::Shared;
use crate::snapshot::{self, Pace};
use crate::stats::Stats;
use crate::tls::Credentials;
use crate::{accept, certs::NodeName};
use bytes::Bytes;
use flotilla_router::{NodeId, Throttle};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};

/// One node's end of all connections to its peers. Dropping it closes them all at once, without a
/// word more.
pub struct Transport {
    shared: Arc<Shared>,
}

impl Transport {
    /// Listens, and starts to dial the peers. Must be called within a tokio runtime, where its
    /// tasks then run.
    pub fn start(
        config: Config,
        identity: Identity,
        credentials: &Credentials,
        handler: Arc<dyn Handler>,
    ) -> Result<Self, TransportError> {
        let runtime = Handle::try_current().map_err(|_| TransportError::NoRuntime)?;
        config.validate()?;
        check_name(identity, credentials)?;
        let (server, client) = quic::configs(&config, credentials)?;
        let endpoint = quic::endpoint(&config, server)?;
        let peers = config.peers.clone();
        let shared = Arc::new(Shared {
            identity,
            handler,
            stats: Arc::default(),
            endpoint,
            client: RwLock::new(client),
            runtime,
            peers: RwLock::new(HashMap::new()),
            seen: Mutex::default(),
            stop: watch::Sender::new(false),
            protocol_complaints: Throttle::new(Duration::from_secs(30)),
            snapshot_slots: Arc::new(Semaphore::new(config.snapshots_at_once)),
            snapshot_send_pace: Pace::new(config.snapshot_bytes_per_second),
            snapshot_receive_pace: Pace::new(config.snapshot_bytes_per_second),
            config,
        });
        shared.runtime.spawn(accept::run(shared.clone()));
        let transport = Self { shared };
        for (node, address) in peers {
            transport.add_peer(node, address);
        }
        Ok(transport)
    }

    /// Takes other certificates from the next connection on; those that stand are kept. Where they
    /// can't be used, nothing changes.
    pub fn reload(&self, credentials: &Credentials) -> Result<(), TransportError> {
        check_name(self.shared.identity, credentials)?;
        let (server, client) = quic::configs(&self.shared.config, credentials)?;
        self.shared.endpoint.set_server_config(Some(server));
        *self.shared.client.write().expect("nothing panics while it holds the configuration") =
            client;
        Ok(())
    }

    /// The address that it listens on, with the port that was found where 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.shared.endpoint.local_addr().unwrap_or(self.shared.config.listen)
    }

    /// Who this node says it is.
    pub fn identity(&self) -> Identity {
        self.shared.identity
    }

    /// What has been counted since the start.
    pub fn stats(&self) -> &Arc<Stats> {
        &self.shared.stats
    }

    /// How many append lanes each peer has; for [`Lane::append_for`].
    pub fn append_lanes(&self) -> u8 {
        self.shared.config.append_lanes
    }

    /// Queues a frame, from any thread, without ever waiting. `false` when it was dropped: no such
    /// peer, no connection, a full outbox, a frame too large. Then [`Handler::unreachable`] is
    /// called, here and now, unless that was just done.
    pub fn send(&self, to: NodeId, lane: Lane, frame: Bytes) -> bool {
        let peers = self.shared.peers.read().expect("nothing panics while it holds the peers");
        match peers.get(&to) {
            Some(peer) => peer.send(lane, frame, &self.shared),
            None => {
                let stats = self.shared.stats.lane(lane);
                stats.frames_dropped.count();
                stats.bytes_dropped.add(frame.len() as u64);
                false
            }
        }
    }

    /// Asks a peer. The request is queued at once; the future waits for its end, until `deadline`
    /// at the latest, and gives the request up when it is dropped. It must be polled within a tokio
    /// runtime with a timer.
    pub fn request(
        &self,
        to: NodeId,
        request: Bytes,
        deadline: Instant,
    ) -> impl Future<Output = Result<Bytes, RequestError>> + Send + use<> {
        let submitted = match self.shared.peer(to) {
            None => Err(RequestError::NotSent("that node is not known as a peer")),
            Some(_) if deadline <= Instant::now() => Err(RequestError::TooLate),
            Some(peer) => peer.requests.submit(request),
        };
        async move { submitted?.wait(deadline).await }
    }

    /// Whether a request of so many bytes would be taken now, as far as what is under way to that
    /// node goes; the limit, where not.
    pub fn has_room(&self, to: NodeId, bytes: usize) -> Result<(), usize> {
        self.shared.peer(to).map_or(Ok(()), |peer| peer.requests.has_room(bytes))
    }

    /// Sends a snapshot on a connection of its own: a header that the receiver judges, and files by
    /// name. Ends always: with the receiver's verdict, or with what went wrong. Dropping the future
    /// breaks the snapshot off.
    pub fn send_snapshot(
        &self,
        to: NodeId,
        header: Bytes,
        files: Vec<(String, PathBuf)>,
    ) -> impl Future<Output = Result<(), SnapshotError>> + Send + use<> {
        snapshot::send(self.shared.clone(), to, header, files)
    }

    /// Whether there is a connection to `node` on which frames leave.
    pub fn reachable(&self, node: NodeId) -> bool {
        self.shared.peer(node).is_some_and(|peer| peer.is_connected())
    }

    /// The measured round trip to `node`, while there is a connection.
    pub fn round_trip(&self, node: NodeId) -> Option<Duration> {
        self.shared.peer(node)?.round_trip()
    }

    /// The nodes that are dialled, in order.
    pub fn peers(&self) -> Vec<NodeId> {
        let peers = self.shared.peers.read().expect("nothing panics while it holds the peers");
        let mut nodes: Vec<_> = peers.keys().copied().collect();
        nodes.sort_unstable();
        nodes
    }

    /// Dials one more node; one that is dialled already gets the new address. This node itself is
    /// no peer.
    pub fn add_peer(&self, node: NodeId, address: String) {
        if node == self.shared.identity.node {
            return;
        }
        let mut peers = self.shared.peers.write().expect("nothing panics while it holds the peers");
        if *self.shared.stop.borrow() {
            return;
        }
        if let Some(peer) = peers.get(&node) {
            peer.set_address(address);
            return;
        }
        let peer = Arc::new(Peer::new(node, address, &self.shared.config, &self.shared.stats));
        peers.insert(node, peer.clone());
        drop(peers);
        self.shared.runtime.spawn(peer::run(self.shared.clone(), peer));
    }

    /// Dials a node no more; what is queued for it still leaves, as far as that takes but a moment.
    /// Says whether it was known.
    pub fn remove_peer(&self, node: NodeId) -> bool {
        let removed = self
            .shared
            .peers
            .write()
            .expect("nothing panics while it holds the peers")
            .remove(&node);
        if let Some(peer) = &removed {
            peer.stop.send_replace(true);
        }
        removed.is_some()
    }

    /// Dials a node at another address from the next time on. Says whether the node is known.
    pub fn set_address(&self, node: NodeId, address: String) -> bool {
        match self.shared.peer(node) {
            Some(peer) => {
                peer.set_address(address);
                true
            }
            None => false,
        }
    }

    /// Lets go what is queued, for a moment, and closes all connections with a reason.
    pub async fn shutdown(&self) {
        self.stop();
        // Every task ends its streams by itself, within FLUSH.
        let quiet = async {
            while self.shared.endpoint.open_connections() > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let _ = tokio::time::timeout(FLUSH + FLUSH / 2, quiet).await;
        self.shared.endpoint.close(Close::ShuttingDown.into(), b"this node is shutting down");
        let _ = tokio::time::timeout(FLUSH, self.shared.endpoint.wait_idle()).await;
    }

    fn stop(&self) {
        let peers = self.shared.peers.write().expect("nothing panics while it holds the peers");
        self.shared.stop.send_replace(true);
        for peer in peers.values() {
            peer.stop.send_replace(true);
        }
    }
}

/// Whether a certificate is this node's.
fn check_name(identity: Identity, credentials: &Credentials) -> Result<(), TransportError> {
    let NodeName { node, cluster } = credentials.name();
    if (node, cluster) == (identity.node, identity.cluster) {
        return Ok(());
    }
    Err(TransportError::Credentials {
        what: "node certificate".into(),
        why: format!(
            "it is for node {node} of cluster {cluster}, but this is node {} of cluster {}; make \
             one for this node with `flotilla cert node`",
            identity.node, identity.cluster
        ),
    })
}

impl Drop for Transport {
    fn drop(&mut self) {
        self.stop();
        self.shared.endpoint.close(Close::ShuttingDown.into(), b"this node is shutting down");
    }
}
