//! What all tasks of one transport share.

use crate::config::Config;
use crate::handler::Handler;
use crate::handshake::{Hello, Identity, Purpose, Refusal};
use crate::peer::Peer;
use crate::quic::Close;
use crate::snapshot::Pace;
use crate::stats::Stats;
use flotilla_router::{Incarnation, NodeId, Throttle};
use quinn::{Connection, Endpoint};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, RwLock};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};

/// What all tasks of one transport share.
pub(crate) struct Shared {
    /// As it was started with; the peers in it are not looked at again.
    pub(crate) config: Config,
    /// Who this process is.
    pub(crate) identity: Identity,
    /// Takes what comes in.
    pub(crate) handler: Arc<dyn Handler>,
    /// What is counted.
    pub(crate) stats: Arc<Stats>,
    /// The socket and all its connections.
    pub(crate) endpoint: Endpoint,
    /// How to dial; swapped when certificates are read anew.
    pub(crate) client: RwLock<quinn::ClientConfig>,
    /// Where tasks run.
    pub(crate) runtime: Handle,
    /// Whom this node dials.
    pub(crate) peers: RwLock<HashMap<NodeId, Arc<Peer>>>,
    /// Who has dialled this node, and with which newest incarnation a node was ever seen.
    pub(crate) seen: Mutex<Seen>,
    /// Set once, when the transport shuts down.
    pub(crate) stop: watch::Sender<bool>,
    /// When it was last said that a peer breaks the protocol.
    pub(crate) protocol_complaints: Throttle,
    /// How many snapshots may still be taken in.
    pub(crate) snapshot_slots: Arc<Semaphore>,
    /// How fast snapshots leave.
    pub(crate) snapshot_send_pace: Pace,
    /// How fast snapshots are taken in.
    pub(crate) snapshot_receive_pace: Pace,
}

/// Waits until `stop` says so. That its sender is gone means the same.
pub(crate) async fn stopped(stop: &mut watch::Receiver<bool>) {
    drop(stop.wait_for(|stop| *stop).await);
}

/// What is known of nodes from their handshakes.
#[derive(Default)]
pub(crate) struct Seen {
    /// The newest incarnation of each node.
    incarnations: HashMap<NodeId, Incarnation>,
    /// The newest connection that each node dialled for lanes.
    incoming: HashMap<NodeId, (Incarnation, Connection)>,
}

impl Shared {
    /// What this node says first.
    pub(crate) fn hello(&self, purpose: Purpose) -> Hello {
        Hello::new(self.identity, purpose)
    }

    /// Judges who comes. A newer one than was known ends the connections to the former self at
    /// once: nobody is there any more, and waiting for the idle timeout would only keep requests
    /// waiting.
    pub(crate) fn admit(&self, identity: Identity) -> Result<(), Refusal> {
        let Identity { node, incarnation, .. } = identity;
        self.handler.admit(identity).map_err(Refusal::NotAdmitted)?;
        let former = {
            let mut seen = self.lock_seen();
            let known = seen.incarnations.get(&node).copied().unwrap_or_default();
            if incarnation < known {
                return Err(Refusal::Incarnation { node, theirs: incarnation, seen: known });
            }
            if incarnation == known {
                return Ok(());
            }
            seen.incarnations.insert(node, incarnation);
            seen.incoming.remove(&node)
        };
        if let Some((_, connection)) = former {
            connection
                .close(Close::Superseded.into(), b"a newer incarnation of this node has come");
        }
        if let Some(peer) = self.peer(node) {
            peer.close_older_than(incarnation);
        }
        Ok(())
    }

    /// Notes the connection on which `node` sends from now on, and closes the one before.
    pub(crate) fn supersede(
        &self,
        node: NodeId,
        incarnation: Incarnation,
        connection: &Connection,
    ) {
        let former = self.lock_seen().incoming.insert(node, (incarnation, connection.clone()));
        if let Some((_, former)) = former {
            former.close(Close::Superseded.into(), b"this node has dialled anew");
        }
    }

    /// Forgets a connection that is gone, unless another has taken its place.
    pub(crate) fn forget(&self, node: NodeId, connection: &Connection) {
        let mut seen = self.lock_seen();
        if seen
            .incoming
            .get(&node)
            .is_some_and(|(_, known)| known.stable_id() == connection.stable_id())
        {
            seen.incoming.remove(&node);
        }
    }

    /// The peer of that id.
    pub(crate) fn peer(&self, node: NodeId) -> Option<Arc<Peer>> {
        self.peers.read().expect("nothing panics while it holds the peers").get(&node).cloned()
    }

    /// Whether a peer is to be found at this address, as far as it was looked up.
    pub(crate) fn is_peer_at(&self, address: SocketAddr) -> bool {
        let peers = self.peers.read().expect("nothing panics while it holds the peers");
        peers.values().any(|peer| peer.is_at(address))
    }

    fn lock_seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().expect("nothing panics while it holds what was seen")
    }
}
