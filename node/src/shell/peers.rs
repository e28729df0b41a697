//! What comes from other nodes: frames for the core, forwarded requests, snapshots.

use super::Engine;
use super::mailbox::{Mail, Mailbox};
use super::service::Service;
use super::snapshots::Snapshots;
use crate::core::Event;
use crate::core::wire::{self, Item};
use bytes::Bytes;
use flotilla_ops::Metrics;
use flotilla_router::call::{self, Forwarded, Response};
use flotilla_router::cure::NO_WAY_BACK;
use flotilla_router::{Incarnation, NodeId, Refusal};
use flotilla_storage::fatal;
use flotilla_transport::{Handler, Identity, Lane, Responder};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// Takes what peers send.
pub struct Peers {
    /// Where known data directories are kept.
    pub engine: Arc<Engine>,
    /// With which data directory each node was met.
    pub known_directories: Mutex<BTreeMap<NodeId, u64>>,
    /// The loop.
    pub mailbox: Mailbox,
    /// Staging.
    pub snapshots: Arc<Snapshots>,
    /// Who answers forwarded requests; set once the node is complete.
    pub service: OnceLock<Arc<Service>>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Where requests run.
    pub runtime: Handle,
}

impl Handler for Peers {
    fn admit(&self, identity: Identity) -> Result<(), String> {
        let Identity { node, directory, .. } = identity;
        let mut known = self.known_directories.lock().expect("nothing panics with it held");
        match known.get(&node) {
            Some(known) if *known == directory => {}
            Some(_) => {
                return Err(format!(
                    "node {node} comes with another data directory than the one that it was met with: it has forgotten what it \
                     promised, and would endanger acknowledged writes; give it its old directory back; {NO_WAY_BACK}"
                ));
            }
            None => {
                known.insert(node, directory);
                let engine = self.engine.clone();
                self.runtime.spawn_blocking(move || {
                    fatal::or_abort(flotilla_storage::remember_directory(&*engine, node, directory));
                });
            }
        }
        Ok(())
    }

    fn frame(&self, from: NodeId, _lane: Lane, frame: Bytes) {
        let mut events = Vec::new();
        let decoded = wire::decode_frame(frame, |item| {
            events.push(match item {
                Item::Message(envelope) => Event::Message { from, envelope: *envelope },
                Item::Beat(beat) => Event::Beat { from, beat },
            });
        });
        if let Err(error) = decoded {
            self.metrics.malformed_messages.inc();
            tracing::warn!(%from, %error, "a frame from a peer makes no sense");
        }
        // Dropped when too much waits, as the network may do.
        self.mailbox.offer(Mail::Events(events));
    }

    fn request(&self, from: NodeId, request: Bytes, responder: Responder) {
        self.metrics.forwarded_received.inc();
        let decoded = call::decode::<Forwarded>("forwarded request", &request).map_err(|error| error.to_string());
        let forwarded = match decoded.and_then(Forwarded::checked) {
            Ok(forwarded) => forwarded,
            Err(why) => {
                tracing::warn!(%from, why, "a request from a peer makes no sense");
                self.metrics.malformed_messages.inc();
                let refusal: Response = Err(Refusal::Invalid { why });
                return responder.respond(call::encode(&refusal));
            }
        };
        let Some(service) = self.service.get().cloned() else {
            let refusal: Response = Err(Refusal::ShuttingDown);
            return responder.respond(call::encode(&refusal));
        };
        if let Some((forwarded, responder)) = service.answer_at_once(forwarded, responder) {
            self.runtime.spawn(async move {
                let response = service.answer_forwarded(forwarded).await;
                responder.respond(call::encode(&response));
            });
        }
    }

    fn reachable(&self, node: NodeId, incarnation: Incarnation) {
        self.mailbox.report(Event::NodeReachable { node, incarnation });
    }

    fn unreachable(&self, node: NodeId) {
        self.mailbox.report(Event::NodeUnreachable { node });
    }

    fn stage_snapshot(&self, _from: NodeId, _header: &Bytes) -> Result<PathBuf, String> {
        Ok(self.snapshots.stage())
    }

    fn snapshot_staged(&self, from: NodeId, header: Bytes, dir: PathBuf, done: oneshot::Sender<Result<(), String>>) {
        // Reads every file once more.
        let snapshots = self.snapshots.clone();
        self.runtime.spawn_blocking(move || snapshots.staged(from, header, dir, done));
    }

    fn snapshot_failed(&self, from: NodeId, _header: Bytes, dir: PathBuf) {
        self.metrics.snapshots_failed.inc();
        tracing::info!(%from, "a snapshot from a peer broke off");
        let _ = std::fs::remove_dir_all(dir);
    }
}
